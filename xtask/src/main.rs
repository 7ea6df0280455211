//! The project's chores: what cargo cannot do alone. It holds no code of the product.

mod apt;
mod arm64;
mod built;
mod commands;
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

use self::commands::Asked;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match commands::read(&words) {
        Ok(Asked::Chore(run, words)) => exit_code(run(words)),
        Ok(Asked::Help(text)) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
    }
}

fn exit_code(done: Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            match error.is::<compare::Misuse>() {
                true => ExitCode::from(2),
                false => ExitCode::FAILURE,
            }
        }
    }
}
