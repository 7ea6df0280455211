//! The project's chores: what cargo cannot do alone. It holds no code of the product.

mod apt;
mod arm64;
mod built;
mod compare;
mod demo;
mod fuzz;
mod guest;
mod image;
mod kernel;
mod lint;
mod outcome;
mod process;
mod source;
mod static_programs;
mod suites;
mod test;
mod tidy;
mod tightness;
mod tools;
mod user;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo            builds vudev, starts it with a console and a disk, and boots a guest to a shell
  demo --smoke    the same, but runs a script in the guest and prints what it saw
  test            builds and tests everything: units, contracts, guests; as root also as a user
  lint            fmt, clippy, doc and tidy, all without a warning
  tidy            only the house rules that no other tool knows
  tightness       records what the tests make jailed devices call, and names unused rules
  compare         measures a release of ours beside the peers that are installed, and writes tables
                  and plots into target/compare (--rounds, --window, --only)
  arm64           builds all for 64-bit ARM, and tests it there in an emulated machine
  fuzz [TARGET] [--seconds N]
                  feeds what parses foreign bytes with all that a fuzzer thinks of, or one target
  guest           fetches and assembles the guest that demo and test use (they do it themselves)
  static          builds the programs that device VMs of the tests run (test does it itself)
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["demo"] => demo::interactive(),
        ["demo", "--smoke"] => demo::smoke(),
        ["test", filters @ ..] => test::run(filters),
        ["lint"] => lint::run(),
        ["tidy"] => tidy::run(),
        ["tightness", runs @ ..] => tightness::run(runs),
        ["compare", arguments @ ..] => compare::compare(arguments),
        ["arm64", filters @ ..] => arm64::run(filters),
        ["fuzz", arguments @ ..] => fuzz::run(arguments),
        ["guest"] => guest::ensure().map(|_| ()),
        ["static"] => static_programs::ensure(),
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    exit_code(done)
}

fn exit_code(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
