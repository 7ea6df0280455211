//! What `--help` and `help DEVICE` print, from the tables that parse. It teaches: synopsis,
//! examples, every key with its type, default and meaning. Text only.

use std::fmt::Write as _;

use log::LevelFilter;

use super::command::CommandLine;
use super::jail::JAIL;
use super::number::show_size;
use super::table::{Choice, Effect, Key, Kind, Table};

/// Which help.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Topic {
    /// The program.
    Overview,
    /// One device's keys.
    Device(&'static Table),
    /// The keys of `--jail`.
    Jail,
    /// The report about this host.
    Check,
}

/// The command that makes that report.
pub(super) const CHECK: &str = "check";

/// The values of `--log-level`.
pub(super) const LOG_LEVELS: [(&str, LevelFilter, &str); 6] = [
    ("off", LevelFilter::Off, "nothing"),
    (
        "error",
        LevelFilter::Error,
        "what ended a device or a front-end's connection",
    ),
    ("warn", LevelFilter::Warn, "and what should be looked at"),
    (
        "info",
        LevelFilter::Info,
        "and what comes and goes (the default)",
    ),
    (
        "debug",
        LevelFilter::Debug,
        "and each message of a front-end",
    ),
    ("trace", LevelFilter::Trace, "and everything else"),
];

/// Text is wrapped at this column.
const WIDTH: usize = 80;

/// The same for all devices.
const GRAMMAR: &str = "
Keys and values:
  Elements are separated by commas. A key alone is KEY=true. A value with a
  comma in it, or a quote at its beginning, is put between \" or '; within them
  \\ takes the next character as it is. Numbers are decimal, 0x, 0o or 0b; sizes
  take k, M, G or T. Keys may be written with _ instead of -.
";

impl CommandLine<'_> {
    /// The help text of a topic, with a newline at its end.
    pub(crate) fn help(&self, topic: Topic) -> String {
        match topic {
            Topic::Overview => self.overview(),
            Topic::Device(table) => self.device(table),
            Topic::Jail => self.jail(),
            Topic::Check => self.check(),
        }
    }

    fn overview(&self) -> String {
        let program = self.program;
        let mut text = format!(
            "{program}: virtio devices as vhost-user back-ends, each in its own jailed \
             process.\n\nUsage:\n  \
             {program} [OPTION…] --DEVICE KEY=VALUE,… [--DEVICE KEY=VALUE,… …]\n  \
             {program} DEVICE [OPTION…] --KEY VALUE …   (one device)\n  \
             {program} check [--json] [--jail KEY=VALUE,…]\n  \
             {program} help [DEVICE|jail|check]\n\nExamples:\n"
        );
        for table in self.tables {
            line(
                &mut text,
                format_args!("  {program} --{} {}", table.device, table.example),
            );
        }
        if let [first, .., last] = self.tables {
            line(
                &mut text,
                format_args!("  {program} --{} {} \\", first.device, first.example),
            );
            let indent = program.len() + 3;
            line(
                &mut text,
                format_args!("{:indent$}--{} {}", "", last.device, last.example),
            );
        }
        text.push_str("\nDevices, each as often as wanted:\n");
        for table in self.tables {
            entry(
                &mut text,
                &format!("--{} KEY=VALUE,…", table.device),
                table.about,
            );
        }
        options(&mut text);
        text.push_str(GRAMMAR);
        text.push_str(
            "\nA front-end (QEMU, crosvm, cloud-hypervisor …) connects to the socket that\n\
             vhost= names. In a device VM it can be the PCI address of a virtio-vhost-user\n\
             device instead, which another VM's front-end is connected to.\n\
             SIGTERM, SIGINT, SIGHUP or SIGQUIT ends all devices.\n",
        );
        text.push_str("\nExit status:\n");
        entry(&mut text, "0", "every device ended as asked");
        entry(&mut text, "1", "a device could not be started, or failed");
        entry(
            &mut text,
            "2",
            "the command line makes no sense, or names what cannot be used; nothing was started",
        );
        let names: Vec<_> = self
            .tables
            .iter()
            .map(|t| format!("{program} help {}", t.device))
            .collect();
        if !names.is_empty() {
            line(
                &mut text,
                format_args!("\nThe keys of a device: {}.", names.join(", ")),
            );
        }
        text
    }

    fn device(&self, table: &'static Table) -> String {
        let Table {
            device,
            about,
            keys: _,
            front_ends: _,
            joins,
            example,
        } = table;
        let program = self.program;
        let mut text = format!("--{device} KEY=VALUE,…   {about}\n\n");
        line(
            &mut text,
            format_args!(
                "Example:\n  {program} --{device} {example}\n\n\
                 Of one device each key may be an argument of its own:\n  \
                 {program} {device} [OPTION…] --KEY VALUE …\n\nKeys:"
            ),
        );
        keys(&mut text, &table.all_keys().collect::<Vec<_>>());
        if *joins {
            let ports = "Several of them with one vhost= are one device with several ports.\n\
                         What vvu-memory= and poll-us= say is one for them: at the first.";
            line(&mut text, format_args!("\n{ports}"));
        }
        text.push_str(GRAMMAR);
        text
    }

    fn jail(&self) -> String {
        let mut text = format!("--jail KEY=VALUE,…   {}\n\n", JAIL.about);
        line(
            &mut text,
            format_args!(
                "Example:\n  {} --jail {} …\n\nKeys:",
                self.program, JAIL.example
            ),
        );
        keys(&mut text, &JAIL.keys.iter().collect::<Vec<_>>());
        text
    }
}

impl CommandLine<'_> {
    fn check(&self) -> String {
        let program = self.program;
        let mut text = format!(
            "{program} check [--json] [--jail KEY=VALUE,…]   what this host has of the jail\n\n\
             Tries each layer of a device's jail, as the user who asks: a line a layer,\n\
             yes, NO (devices need it) or no, and the remedy for what is missing. With\n\
             --jail seccomp-policy-dir=DIR also each device's policy files there, and with\n\
             seccomp-mode=log what that needs of the kernel.\n\n\
             With --json it is one object on one line:\n"
        );
        entry(
            &mut text,
            "jailed",
            "whether devices can be fully jailed here",
        );
        entry(&mut text, "devices", "the names of this program's devices");
        let layers = "a list of objects: name, available, required, detail, missing (names of \
                      the kernel's), remedy (null if it is available)";
        entry(&mut text, "layers", layers);
        text.push_str("\nExit status:\n");
        entry(&mut text, "0", "devices can be fully jailed here");
        entry(&mut text, "1", "they cannot, and would not be started");
        text
    }
}

fn options(text: &mut String) {
    text.push_str("\nOptions:\n");
    entry(text, "--jail KEY=VALUE,…", JAIL.about);
    entry(
        text,
        "--disable-sandbox",
        "no jail at all, for debugging: a device can then do what you can",
    );
    let levels: Vec<_> = LOG_LEVELS
        .iter()
        .map(|(name, _, what)| format!("{name}: {what}"))
        .collect();
    entry(text, "--log-level LEVEL", &levels.join("; "));
    entry(
        text,
        "-h, --help [DEVICE|jail|check]",
        "this text, or the keys of a device or of --jail, or what check prints",
    );
    entry(text, "-V, --version", "the version");
}

/// First what does something, then what is only accepted, then what is refused.
fn keys(text: &mut String, keys: &[&Key]) {
    for key in keys
        .iter()
        .filter(|key| matches!(key.effect, Effect::Honoured))
    {
        entry(
            text,
            &format!("{}   ({})", synopsis(key), limits(key)),
            &explanation(key),
        );
    }
    let mut title = "\nAccepted because crosvm takes them, without effect here:\n";
    for key in keys {
        if let Effect::Noted(reason) = key.effect {
            text.push_str(std::mem::take(&mut title));
            entry(text, &synopsis(key), &format!("{}: {reason}", key.meaning));
        }
    }
    let mut title = "\nKnown from crosvm, refused here:\n";
    for key in keys {
        if let Effect::Refused(reason) = key.effect {
            text.push_str(std::mem::take(&mut title));
            entry(text, &synopsis(key), &format!("{}: {reason}", key.meaning));
        }
    }
}

fn synopsis(key: &Key) -> String {
    let value = key.value.placeholder();
    match (key.value, key.positional) {
        (Kind::Flag, _) => format!("{}[={value}]", key.name),
        (_, true) => format!("[{}=]{value}", key.name),
        (_, false) => format!("{}={value}", key.name),
    }
}

/// The range of a key's value, and what holds without it.
fn limits(key: &Key) -> String {
    let range = match key.value {
        Kind::Text { max } => format!("at most {max} bytes, "),
        Kind::Number { min, max }
        | Kind::NumberOrAuto { min, max }
        | Kind::Numbers { min, max } => format!("{min} to {max}, "),
        Kind::Size { min, max } => format!("{} to {}, ", show_size(min), show_size(max)),
        Kind::Choice(_) | Kind::Path | Kind::Flag | Kind::PciAddress | Kind::Vhost => String::new(),
    };
    match (key.required, key.default) {
        (true, _) => format!("{range}required"),
        (false, "") => format!("{range}no default"),
        (false, default) => format!("{range}default {default}"),
    }
}

fn explanation(key: &Key) -> String {
    let mut text = key.meaning.to_owned();
    if !key.aliases.is_empty() {
        text.push_str(&format!("; also called {}", key.aliases.join(", ")));
    }
    if let Kind::Choice(choices) = key.value {
        for (words, reason) in refused(choices) {
            text.push_str(&format!(". Not {}: {reason}", words.join(", ")));
        }
    }
    text
}

/// The words that cannot be had, those with one reason together.
fn refused(choices: &[Choice]) -> Vec<(Vec<&'static str>, &'static str)> {
    let mut groups: Vec<(Vec<_>, _)> = Vec::new();
    for choice in choices {
        let Some(reason) = choice.refused else {
            continue;
        };
        match groups.iter_mut().find(|(_, other)| *other == reason) {
            Some((words, _)) => words.push(choice.name),
            None => groups.push((vec![choice.name], reason)),
        }
    }
    groups
}

/// A term and what it means, wrapped and indented.
fn entry(text: &mut String, term: &str, meaning: &str) {
    const INDENT: usize = 6;
    line(text, format_args!("  {term}"));
    let mut current = " ".repeat(INDENT - 1);
    for word in meaning.split(' ') {
        let length = current.chars().count() + 1 + word.chars().count();
        if length > WIDTH && current.trim() != "" {
            line(text, format_args!("{current}"));
            current = " ".repeat(INDENT - 1);
        }
        current.push(' ');
        current.push_str(word);
    }
    line(text, format_args!("{current}"));
}

fn line(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    writeln!(text, "{arguments}").expect("a string takes everything");
}
