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
[--peers] [--rounds NUMBER] [--window MILLISECONDS] [--only WORDS] [--beside VUDEV]",
        help: "\
measures a release of ours beside the peers that are installed, or beside another build
of ours, and writes tables and plots into target/compare/; with --peers it installs
those of rust-vmm first, into target/peers/",
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
    match rest.iter().find(|word| !command.takes(word)) {
        Some(word) => Err(format!(
            "xtask: {name} takes no {word}\n{}",
            command.in_full()
        )),
        None => Ok(Asked::Chore(command.run, rest)),
    }
}

fn is_help(word: &str) -> bool {
    matches!(word, "--help" | "-h")
}

impl Command {
    /// Whether a word is one of its options, or it has words.
    fn takes(&self, word: &str) -> bool {
        if word.starts_with('-') {
            let mut options = self.usage.split(['[', ']', ' ']);
            return options.any(|option| option == word);
        }
        self.usage
            .contains(|letter: char| letter.is_ascii_uppercase())
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
    fn what_a_command_knows_comes_to_it() {
        for words in [
            &["demo", "--smoke"][..],
            &["test", "block", "net"],
            &["tightness", "debug", "guest"],
            &["tightness", "--report"],
            &["compare", "--rounds", "9", "--only", "read"],
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
