//! What can be asked for, and the answer to `--help`. It carries out nothing itself.

use anyhow::Result;

use crate::{arm64, compare, demo, fuzz, guest, lint, static_programs, test, tidy, tightness};

/// One of the chores.
struct Command {
    name: &'static str,
    /// What may follow the name: options, and words in capitals. Nothing else is let through.
    usage: &'static str,
    /// What it does, in lines.
    help: &'static str,
    run: fn(&[&str]) -> Result<()>,
}

const COMMANDS: [Command; 10] = [
    Command {
        name: "demo",
        usage: "[--smoke]",
        help: "\
builds vudev, starts it with a console and a disk, and boots a guest to a shell;
with --smoke it runs a script in the guest instead, and prints what it saw",
        run: demo::run,
    },
    Command {
        name: "test",
        usage: "[WORD...]",
        help: "\
builds and tests everything: units, contracts, guests; as root also as a user;
with words only the tests whose names contain one of them",
        run: test::run,
    },
    Command {
        name: "lint",
        usage: "",
        help: "fmt, clippy, doc and tidy, all without a warning",
        run: |_| lint::run(),
    },
    Command {
        name: "tidy",
        usage: "",
        help: "only the house rules that no other tool knows",
        run: |_| tidy::run(),
    },
    Command {
        name: "tightness",
        usage: "[--report] [RUN...]",
        help: "\
records what the tests make jailed devices call, and names unused rules; all runs, or
some of debug, release, static-debug, static, no-brk, no-brk-static and guest, or with
--report none: it judges all that were ever recorded",
        run: tightness::run,
    },
    Command {
        name: "compare",
        usage: "\
[--peers] [--rounds NUMBER] [--window MILLISECONDS] [--only WORDS] [--options OPTIONS] \
[--beside VUDEV] [--beside-options OPTIONS]",
        help: compare::HELP,
        run: compare::compare,
    },
    Command {
        name: "arm64",
        usage: "[WORD...]",
        help: "\
builds all for 64-bit ARM, and tests it there in an emulated machine; with words only
the tests that have one of them in \"SUITE TEST\", as failures are named",
        run: arm64::run,
    },
    Command {
        name: "fuzz",
        usage: "[TARGET] [--seconds NUMBER]",
        help: "\
feeds what parses foreign bytes with all that a fuzzer thinks of, or one target, for a
minute each",
        run: fuzz::run,
    },
    Command {
        name: "guest",
        usage: "",
        help: "fetches and assembles the guest of demo and test (they do it themselves)",
        run: |_| guest::ensure().map(|_| ()),
    },
    Command {
        name: "static",
        usage: "[--release]",
        help: "\
builds the programs that device VMs of the tests run (test does it itself), or releases
of them for measurements",
        run: static_programs::run,
    },
];

/// What a command line asks for.
pub(crate) enum Asked<'a> {
    /// To be told this.
    Help(String),
    /// A chore, with its words.
    Chore(fn(&[&str]) -> Result<()>, &'a [&'a str]),
}

/// Reads a command line; the error is how to write one.
pub(crate) fn read<'a>(words: &'a [&'a str]) -> Result<Asked<'a>, String> {
    let Some((name, rest)) = words.split_first() else {
        return Err(overview());
    };
    if is_help(name) || *name == "help" {
        return Ok(Asked::Help(overview()));
    }
    let Some(command) = COMMANDS.iter().find(|command| command.name == *name) else {
        return Err(format!("xtask: there is no {name}\n{}", overview()));
    };
    if rest.iter().any(|word| is_help(word)) {
        return Ok(Asked::Help(command.in_full()));
    }
    match command.wrong(rest) {
        Some(wrong) => Err(format!("xtask: {name} {wrong}\n{}", command.in_full())),
        None => Ok(Asked::Chore(command.run, rest)),
    }
}

fn is_help(word: &str) -> bool {
    matches!(word, "--help" | "-h")
}

impl Command {
    /// What its usage does not have.
    fn wrong(&self, words: &[&str]) -> Option<String> {
        let usage = self.usage.split(['[', ']']).map(str::trim);
        let usage: Vec<&str> = usage.filter(|part| !part.is_empty()).collect();
        let has_words = usage.iter().any(|part| !part.starts_with('-'));
        let mut words = words.iter();
        while let Some(word) = words.next() {
            if !word.starts_with('-') && has_words {
                continue;
            }
            let mut options = usage
                .iter()
                .map(|part| part.split_once(' ').unwrap_or((part, "")));
            let Some((_, kind)) = options.find(|(option, _)| option == word) else {
                return Some(format!("takes no {word}"));
            };
            let value = words
                .clone()
                .next()
                .filter(|value| !value.starts_with("--"));
            match (kind, value) {
                ("", _) => continue,
                (_, None) => return Some(format!("wants a value behind {word}: {word} {kind}")),
                ("NUMBER" | "MILLISECONDS", Some(value)) if !is_count(value) => {
                    return Some(format!("takes a number from 1 behind {word}, not {value}"));
                }
                (_, Some(_)) => drop(words.next()),
            }
        }
        None
    }

    /// Name and arguments.
    fn line(&self) -> String {
        format!("{} {}", self.name, self.usage)
            .trim_end()
            .to_owned()
    }

    fn in_full(&self) -> String {
        format!("usage: cargo xtask {}\n\n{}", self.line(), self.help)
    }
}

fn is_count(value: &str) -> bool {
    value.parse::<u32>().is_ok_and(|number| number > 0)
}

fn overview() -> String {
    let mut text = "usage: cargo xtask COMMAND [--help]\n".to_owned();
    for command in &COMMANDS {
        let help = command.help.replace('\n', "\n      ");
        text += &format!("\n  {}\n      {help}", command.line());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn help(words: &[&str]) -> String {
        match read(words) {
            Ok(Asked::Help(text)) => text,
            Ok(Asked::Chore(..)) => panic!("{words:?} runs"),
            Err(text) => panic!("{words:?}: {text}"),
        }
    }

    #[test]
    fn every_command_answers_help_and_runs_nothing() {
        for command in &COMMANDS {
            for asked in [&["--help"][..], &["-h"], &["word", "--help"]] {
                let words = [&[command.name], asked].concat();
                let text = help(&words);
                assert!(text.contains(command.name) && text.contains(command.help));
            }
            assert!(help(&["--help"]).contains(command.name));
        }
    }

    #[test]
    fn what_a_command_does_not_know_is_refused_before_it_runs() {
        for (words, unknown) in [
            (&["arm64", "--release"][..], "--release"),
            (&["test", "-v"], "-v"),
            (&["demo", "smoke"], "smoke"),
            (&["demo", "--smok"], "--smok"),
            (&["lint", "devices"], "devices"),
            (&["compare", "--round", "3"], "--round"),
            (&["compare", "depth"], "depth"),
            (&["compare", "--only", "read", "write"], "write"),
            (&["tests"], "tests"),
        ] {
            match read(words) {
                Err(text) => assert!(text.contains(&format!(" {unknown}\n")), "{text}"),
                Ok(_) => panic!("{words:?} was taken"),
            }
        }
        assert!(read(&[]).is_err());
    }

    #[test]
    fn a_value_that_is_missing_or_is_no_number_is_named_with_its_option() {
        for (words, told) in [
            (&["compare", "--rounds", "abc"][..], "--rounds, not abc\n"),
            (&["compare", "--rounds", "0"], "--rounds, not 0\n"),
            (&["compare", "--window", "5s"], "--window, not 5s\n"),
            (&["compare", "--only", "--peers"], "--only: --only WORDS\n"),
            (&["compare", "--beside"], "--beside: --beside VUDEV\n"),
            (
                &["compare", "--beside-options", "--options", "poll-us=0"],
                "--beside-options: --beside-options OPTIONS\n",
            ),
            (&["fuzz", "--seconds", "x"], "--seconds, not x\n"),
        ] {
            match read(words) {
                Err(text) => assert!(text.contains(told), "{text}"),
                Ok(_) => panic!("{words:?} was taken"),
            }
        }
    }

    #[test]
    fn what_a_command_knows_comes_to_it() {
        for words in [
            &["demo", "--smoke"][..],
            &["test", "block", "net"],
            &["tightness", "debug", "guest"],
            &["tightness", "--report"],
            &[
                "compare",
                "--peers",
                "--rounds",
                "9",
                "--only",
                "read, depth 1",
            ],
            &["fuzz", "chain_walk", "--seconds", "5"],
            &["lint"],
        ] {
            match read(words) {
                Ok(Asked::Chore(_, rest)) => assert_eq!(rest, &words[1..]),
                _ => panic!("{words:?}"),
            }
        }
    }
}
