//! The whole command line: which devices, in which order, under which jail. It knows the tables
//! that it is given and no device by name. Pure.

use std::ffi::OsString;

use log::LevelFilter;
use vudev_jail::nearest;

use super::convert::Value;
use super::error::{OptionError, repeat};
use super::help::{CHECK, LOG_LEVELS, Topic};
use super::jail::{JAIL, JailOptions, SeccompMode};
use super::table::{FLAGS, Key, Kind, Table, same_name};
use super::values::Values;

/// Devices of one command. Each is a process and a handful of descriptors of the supervisor, which
/// often has only 1,024.
pub(crate) const DEVICES_MAX: usize = 128;

/// The exit status of a command line that makes no sense.
pub(crate) const USAGE_STATUS: u8 = 2;

/// The command line of a program that offers these devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CommandLine<'a> {
    /// As the user calls it, for texts.
    pub(crate) program: &'a str,
    /// One for each kind of device.
    pub(crate) tables: &'a [&'static Table],
}

/// What the user asks for.
#[derive(Debug)]
pub(crate) enum Command {
    /// Run these devices.
    Run(RunOptions),
    /// Print what this host has of a jail.
    Check {
        /// As one JSON object.
        json: bool,
        /// How the jails would be made.
        jail: JailOptions,
    },
    /// Print this text on standard output and exit with 0.
    Help(Topic),
    /// Print [`CommandLine::version`] on standard output and exit with 0.
    Version,
}

/// A run of one device or several.
#[derive(Debug)]
pub(crate) struct RunOptions {
    /// In the order given; never empty.
    pub(crate) devices: Vec<DeviceRequest>,
    /// No jail at all, for debugging.
    pub(crate) disable_sandbox: bool,
    /// How the jails are made.
    pub(crate) jail: JailOptions,
    /// What is logged.
    pub(crate) log_level: LevelFilter,
}

/// One device.
#[derive(Debug)]
pub(crate) struct DeviceRequest {
    /// [`Table::device`] of its kind.
    pub(crate) kind: &'static str,
    /// Counts the devices of its kind from 0.
    pub(crate) index: usize,
    /// Its options.
    pub(crate) values: Values,
}

/// A command line that makes no sense. One line; the exit status is [`USAGE_STATUS`].
#[derive(Debug, thiserror::Error)]
pub(crate) enum UsageError {
    /// An argument of a flag is wrong.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// There is no such flag or subcommand.
    #[error("unknown argument {given}: {remedy}")]
    Unknown {
        /// What was given, quoted.
        given: String,
        /// What may have been meant.
        remedy: String,
    },
    /// A flag stands without its value.
    #[error("--{flag}: needs a value: write --{flag} {placeholder}")]
    MissingValue {
        /// The flag without its dashes.
        flag: &'static str,
        /// What a value looks like.
        placeholder: String,
    },
    /// A flag that takes no value has one.
    #[error("--{flag}: takes no value: leave out ={value}")]
    NeedlessValue {
        /// The flag without its dashes.
        flag: &'static str,
        /// The value, quoted.
        value: String,
    },
    /// A flag that counts once is given twice.
    #[error("--{flag}: is given twice: remove one")]
    Twice {
        /// The flag without its dashes.
        flag: &'static str,
    },
    /// An argument is not UTF-8, so no column of it can be told.
    #[error("the argument {given} is not UTF-8: rename the file, or link to it by another name")]
    NotUtf8 {
        /// What was given, quoted.
        given: String,
    },
    /// Nothing to run.
    #[error("no device is given: add one, {example}; see {program} --help")]
    NoDevice {
        /// A device that would work.
        example: String,
        /// The program's name.
        program: String,
    },
    /// More devices than [`DEVICES_MAX`].
    #[error("more than {DEVICES_MAX} devices are given: use several commands")]
    TooManyDevices,
}

impl DeviceRequest {
    /// The device's name in logs and reports, `block-0` say.
    pub(crate) fn name(&self) -> String {
        format!("{}-{}", self.kind, self.index)
    }
}

/// The user should not mistake a log for a jail.
const LOGGED_ONLY: &str = "--jail: seccomp-mode=log: what the policies forbid is logged, and \
                           CARRIED OUT all the same";

impl RunOptions {
    /// What the user should know about options that are accepted but change nothing on so many
    /// processors, each line once, however many devices have it.
    pub(crate) fn notes(&self, processors: u32) -> Vec<String> {
        let mut notes: Vec<String> = Vec::new();
        let of_device = |device: &DeviceRequest| {
            let values = &device.values;
            values.notes().into_iter().chain(values.vain(processors))
        };
        for note in self.devices.iter().flat_map(of_device) {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
        if self.disable_sandbox && self.jail != JailOptions::default() {
            let note = "--jail: accepted, but changes nothing here: --disable-sandbox is given";
            notes.push(note.to_owned());
        } else if self.jail.seccomp_mode == SeccompMode::Log {
            notes.push(LOGGED_ONLY.to_owned());
        }
        notes
    }
}

impl CommandLine<'_> {
    /// Parses the arguments behind the program's name.
    ///
    /// # Errors
    /// The first mistake that is found. Nothing has been started or opened then.
    ///
    /// # Panics
    /// A table contradicts itself: two keys of one name, a default that is not a value of its key.
    pub(crate) fn parse(
        &self,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Command, UsageError> {
        self.tables.iter().for_each(|table| table.assert_sound());
        let mut arguments = Arguments {
            rest: arguments.into_iter(),
        };
        let mut partial = Partial::default();
        let mut first = true;
        while let Some(argument) = arguments.next()? {
            if first && argument == "help" {
                let help = self.help_command(&mut arguments)?;
                return Self::alone(help, &mut arguments);
            }
            if first && argument == CHECK {
                return self.check_command(&mut arguments);
            }
            let named = |table: &&&'static Table| first && table.device == argument;
            if let Some(table) = self.tables.iter().find(named) {
                return self.device_command(table, &mut arguments);
            }
            first = false;
            match argument.as_str() {
                "-h" | "--help" => return self.help_command(&mut arguments),
                "-V" | "--version" => return Ok(Command::Version),
                flag => match flag.strip_prefix("--help=") {
                    Some(topic) => return self.help_on(topic),
                    None => self.flag(flag, &mut arguments, &mut partial)?,
                },
            }
        }
        self.finish(partial).map(Command::Run)
    }

    /// The text that `--version` prints.
    pub(crate) fn version(&self) -> String {
        format!("{} {}", self.program, env!("CARGO_PKG_VERSION"))
    }

    /// `help`, `help serial`, `--help`, `--help serial`.
    fn help_command<I: Iterator<Item = OsString>>(
        &self,
        arguments: &mut Arguments<I>,
    ) -> Result<Command, UsageError> {
        match arguments.next()? {
            Some(topic) => self.help_on(&topic),
            None => Ok(Command::Help(Topic::Overview)),
        }
    }

    /// Nothing comes behind the topic of `help`.
    fn alone<I: Iterator<Item = OsString>>(
        command: Command,
        arguments: &mut Arguments<I>,
    ) -> Result<Command, UsageError> {
        match arguments.next()? {
            None => Ok(command),
            Some(extra) => Err(UsageError::Unknown {
                given: repeat(&extra),
                remedy: "help takes one topic: leave it out".to_owned(),
            }),
        }
    }

    /// `check`, `check --json`, `check --jail KEY=VALUE,…`, `check --help`.
    fn check_command<I: Iterator<Item = OsString>>(
        &self,
        arguments: &mut Arguments<I>,
    ) -> Result<Command, UsageError> {
        let mut json = false;
        let mut partial = Partial::default();
        while let Some(argument) = arguments.next()? {
            match argument.as_str() {
                "--json" => json = true,
                "-h" | "--help" => return Ok(Command::Help(Topic::Check)),
                other => match other.strip_prefix("--jail") {
                    Some(rest) if rest.is_empty() || rest.starts_with('=') => {
                        self.flag(other, arguments, &mut partial)?;
                    }
                    _ => {
                        let flags = ["json", "help", JAIL.device];
                        let known = nearest(other.trim_start_matches('-'), flags);
                        let known = known.map(|name| format!("check --{name}"));
                        return Err(self.unknown(other, known));
                    }
                },
            }
        }
        Ok(Command::Check {
            json,
            jail: partial.jail.unwrap_or_default(),
        })
    }

    /// `block --path disk.img --ro`: one device, each of whose keys is an argument of its own.
    fn device_command<I: Iterator<Item = OsString>>(
        &self,
        table: &'static Table,
        arguments: &mut Arguments<I>,
    ) -> Result<Command, UsageError> {
        let mut partial = Partial::default();
        let mut words = Vec::new();
        while let Some(argument) = arguments.next()? {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let flag = name.strip_prefix("--").unwrap_or_default();
            match table.all_keys().find(|key| key.is_called(flag)) {
                Some(key) => words.push((key, arguments.value_of_key(key, value)?)),
                None => match argument.as_str() {
                    "-h" | "--help" => return Ok(Command::Help(Topic::Device(table))),
                    "-V" | "--version" => return Ok(Command::Version),
                    _ if FLAGS.iter().any(|known| same_name(known, flag)) => {
                        self.flag(&argument, arguments, &mut partial)?;
                    }
                    "help" if words.is_empty() => {
                        return Self::alone(Command::Help(Topic::Device(table)), arguments);
                    }
                    // Rather a flag without its dashes.
                    _ if words.is_empty() && !argument.starts_with('-') => {
                        return Err(self.unknown(table.device, self.nearest_flag(table.device)));
                    }
                    _ => {
                        let keys = table.all_keys().map(|key| key.name).chain(FLAGS);
                        let known = nearest(name.trim_start_matches('-'), keys);
                        let known = known.map(|key| format!("{} --{key}", table.device));
                        return Err(self.unknown(name, known));
                    }
                },
            }
        }
        partial.device(table, Values::of_words(table, words))?;
        self.finish(partial).map(Command::Run)
    }

    fn help_on(&self, topic: &str) -> Result<Command, UsageError> {
        let name = topic.trim_start_matches('-');
        if name == JAIL.device {
            return Ok(Command::Help(Topic::Jail));
        }
        if name == CHECK {
            return Ok(Command::Help(Topic::Check));
        }
        let found = self.tables.iter().find(|table| table.device == name);
        let topic = found.ok_or_else(|| {
            let devices = self.tables.iter().map(|table| table.device);
            let names: Vec<_> = devices.chain([JAIL.device, CHECK]).collect();
            let remedy = match nearest(name, names.iter().copied()) {
                Some(name) => format!("did you mean help {name}?"),
                None => format!("there is help on {}", names.join(", ")),
            };
            UsageError::Unknown {
                given: repeat(topic),
                remedy,
            }
        })?;
        Ok(Command::Help(Topic::Device(topic)))
    }

    fn flag<I: Iterator<Item = OsString>>(
        &self,
        argument: &str,
        arguments: &mut Arguments<I>,
        partial: &mut Partial,
    ) -> Result<(), UsageError> {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument, None),
        };
        let flag = name.strip_prefix("--").map(|flag| flag.replace('_', "-"));
        match flag.as_deref() {
            Some("version") => Err(UsageError::NeedlessValue {
                flag: "version",
                value: repeat(value.as_deref().unwrap_or_default()),
            }),
            Some("disable-sandbox") => partial.disable_sandbox(value),
            Some("jail") => {
                let value = arguments.value_of("jail", value, "KEY=VALUE,…")?;
                partial.jail(&value)
            }
            Some("log-level") => {
                let value = arguments.value_of("log-level", value, "LEVEL")?;
                partial.log_level(&value)
            }
            Some(other) => match self.tables.iter().find(|table| table.device == other) {
                Some(table) => {
                    let value = arguments.value_of(table.device, value, "KEY=VALUE,…")?;
                    partial.device(table, Values::parse(table, &value))
                }
                None => Err(self.unknown_flag(name, other)),
            },
            None => Err(self.unknown(argument, self.nearest_flag(name.trim_start_matches('-')))),
        }
    }

    /// A flag that there is not may be a device's key.
    fn unknown_flag(&self, given: &str, flag: &str) -> UsageError {
        let mut tables = self.tables.iter();
        let key = tables.find_map(|table| {
            let key = table.all_keys().find(|key| key.is_called(flag))?;
            Some((table.device, key))
        });
        let Some((device, key)) = key else {
            return self.unknown(given, self.nearest_flag(flag));
        };
        let (name, value) = (key.name, key.value.placeholder());
        UsageError::Unknown {
            given: repeat(given),
            remedy: format!("it is a key of a device: write --{device} …,{name}={value}"),
        }
    }

    fn nearest_flag(&self, given: &str) -> Option<String> {
        let flags = self.tables.iter().map(|table| table.device).chain(FLAGS);
        nearest(given, flags).map(|flag| format!("--{flag}"))
    }

    fn unknown(&self, given: &str, meant: Option<String>) -> UsageError {
        let remedy = match meant {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("see {} --help", self.program),
        };
        UsageError::Unknown {
            given: repeat(given),
            remedy,
        }
    }

    fn finish(&self, partial: Partial) -> Result<RunOptions, UsageError> {
        let Partial {
            devices,
            disable_sandbox,
            jail,
            log_level,
        } = partial;
        if devices.is_empty() {
            let example = self.tables.first().map_or_else(String::new, |table| {
                format!("--{} {}", table.device, table.example)
            });
            return Err(UsageError::NoDevice {
                example,
                program: self.program.to_owned(),
            });
        }
        shared_value(&devices)?;
        Ok(RunOptions {
            devices,
            disable_sandbox,
            jail: jail.unwrap_or_default(),
            log_level: log_level.unwrap_or(LevelFilter::Info),
        })
    }
}

/// Two devices cannot listen on one socket, drive one function, or both read the terminal.
fn shared_value(devices: &[DeviceRequest]) -> Result<(), OptionError> {
    let mut seen: Vec<(&'static str, &Value, &DeviceRequest)> = Vec::new();
    for device in devices {
        for (values, key, value) in device.values.exclusive() {
            if let Some((_, _, other)) = seen.iter().find(|(k, v, _)| (*k, *v) == (key, value)) {
                let problem = format!("{} has it already", other.name());
                return Err(values
                    .error(key, problem)
                    .remedy("give each device its own"));
            }
            seen.push((key, value, device));
        }
    }
    Ok(())
}

/// What the arguments up to here ask for.
#[derive(Default)]
struct Partial {
    devices: Vec<DeviceRequest>,
    disable_sandbox: bool,
    jail: Option<JailOptions>,
    log_level: Option<LevelFilter>,
}

impl Partial {
    fn device(
        &mut self,
        table: &'static Table,
        values: Result<Values, OptionError>,
    ) -> Result<(), UsageError> {
        if self.devices.len() == DEVICES_MAX {
            return Err(UsageError::TooManyDevices);
        }
        let kind = table.device;
        let same = || self.devices.iter().filter(|device| device.kind == kind);
        let index = same().count();
        // Of which of several it would be a part is not known then.
        let values = values.map_err(|error| match table.joins {
            true => error,
            false => error.of_device(index),
        })?;
        let whole = |device: &&mut DeviceRequest| {
            device.kind == kind && table.joins && device.values.vhost() == values.vhost()
        };
        if let Some(device) = self.devices.iter_mut().find(whole) {
            device.values.join(values);
            return Ok(());
        }
        self.devices.push(DeviceRequest {
            kind,
            index,
            values: values.of_device(index),
        });
        Ok(())
    }

    fn disable_sandbox(&mut self, value: Option<String>) -> Result<(), UsageError> {
        if let Some(value) = value {
            let value = repeat(&value);
            return Err(UsageError::NeedlessValue {
                flag: "disable-sandbox",
                value,
            });
        }
        self.disable_sandbox = true;
        Ok(())
    }

    fn jail(&mut self, argument: &str) -> Result<(), UsageError> {
        match self.jail.replace(JailOptions::parse(argument)?) {
            None => Ok(()),
            Some(_) => Err(UsageError::Twice { flag: JAIL.device }),
        }
    }

    fn log_level(&mut self, argument: &str) -> Result<(), UsageError> {
        let flag = "log-level";
        let Some((_, level, _)) = LOG_LEVELS.iter().find(|(name, _, _)| *name == argument) else {
            let names: Vec<_> = LOG_LEVELS.iter().map(|(name, _, _)| *name).collect();
            let error = OptionError::new(flag, format!("{} is no level", repeat(argument)));
            return Err(error
                .remedy(format!("write one of {}", names.join(", ")))
                .into());
        };
        match self.log_level.replace(*level) {
            None => Ok(()),
            Some(_) => Err(UsageError::Twice { flag }),
        }
    }
}

struct Arguments<I> {
    rest: I,
}

impl<I: Iterator<Item = OsString>> Arguments<I> {
    fn next(&mut self) -> Result<Option<String>, UsageError> {
        let next = self.rest.next().map(OsString::into_string).transpose();
        next.map_err(|given| UsageError::NotUtf8 {
            given: repeat(&given.to_string_lossy()),
        })
    }

    /// The value of a key that is an argument of its own.
    fn value_of_key(
        &mut self,
        key: &'static Key,
        inline: Option<String>,
    ) -> Result<String, UsageError> {
        match key.value {
            Kind::Flag => Ok(inline.unwrap_or_else(|| "true".to_owned())),
            kind => self.value_of(key.name, inline, &kind.placeholder()),
        }
    }

    /// The value behind the `=`, or the next argument. That one is no flag: a path that begins
    /// with dashes can be written behind the `=`, or as `./--path`.
    fn value_of(
        &mut self,
        flag: &'static str,
        inline: Option<String>,
        placeholder: &str,
    ) -> Result<String, UsageError> {
        let value = match inline {
            Some(value) => Some(value),
            None => self.next()?.filter(|next| !next.starts_with("--")),
        };
        value.ok_or_else(|| UsageError::MissingValue {
            flag,
            placeholder: placeholder.to_owned(),
        })
    }
}
