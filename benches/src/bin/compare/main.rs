//! Ours beside a peer on the same work in the same run: rounds of short measurements, one back-end
//! right after the other, and medians of the rounds. Writes tables and plots. A machine that does
//! something else meanwhile moves both; ratios and processor time suffer less than rates. What
//! cannot be measured is named, and the rest goes on.

mod block;
mod circumstances;
mod contests;
mod growth;
mod lab;
mod limit;
mod line;
mod pauses;
mod plot;
mod report;
mod start;
mod streams;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use vudev_benches::backend::Build;

use crate::lab::Lab;
use crate::report::Report;

const USAGE: &str = "\
usage: compare [--check] [--rounds NUMBER] [--window MILLISECONDS] [--only WORDS]
               [--options OPTIONS] [--beside VUDEV] [--beside-options OPTIONS]
               [--figures FOLDER --benchmarks NAME,NAME...] FOLDER
  --check           only whether there is anything of what is asked for
  --only            only what has this in its name
  --options         what our devices are started with besides, as poll-us=0
  --beside          another build of ours, in place of the peers: what a change brings
  --beside-options  what that one's devices are started with besides; without --beside it is
                    this build once more
  --figures         where these benchmarks have left what they promise
  FOLDER            where the tables and plots go; the disk is made there too, and removed";

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    /// Measurements of each figure.
    pub(crate) rounds: usize,
    /// How long each takes.
    pub(crate) window: Duration,
    /// Only figures with this in their names.
    pub(crate) only: String,
    /// Another build of ours, in place of the peers.
    pub(crate) beside: Option<PathBuf>,
    /// What our devices are started with besides.
    pub(crate) options: String,
    /// And those in place of the peers.
    pub(crate) beside_options: Option<String>,
    /// Whether nothing is to be measured.
    pub(crate) check: bool,
    /// Benchmarks that are programs of their own.
    pub(crate) benchmarks: Vec<String>,
    /// Where those have left figures.
    pub(crate) figures: Option<PathBuf>,
    /// Where everything goes.
    pub(crate) folder: PathBuf,
    /// Where the programs are.
    pub(crate) programs: PathBuf,
}

impl Effort {
    /// Whether something of this name is to be measured.
    pub(crate) fn wants(&self, name: &str) -> bool {
        name.contains(&self.only)
    }

    /// As the one in the peer's place is called.
    pub(crate) fn other(&self, peer: &'static str) -> &'static str {
        match (&self.beside, &self.beside_options) {
            (Some(_), _) => "another build",
            (None, Some(_)) => "other options",
            (None, None) => peer,
        }
    }

    /// Whether ours are in place of the peers.
    pub(crate) fn is_beside_ours(&self) -> bool {
        self.beside.is_some() || self.beside_options.is_some()
    }

    /// What is measured: one of our programs.
    pub(crate) fn ours(&self, program: &str) -> Build {
        Build {
            program: self.programs.join(program),
            options: self.options.clone(),
        }
    }

    /// What it is measured beside, if that is not a peer: another build's program, or the same one.
    pub(crate) fn in_place_of_peers(&self, program: &str) -> Option<Build> {
        self.is_beside_ours().then(|| Build {
            program: match &self.beside {
                Some(other) => other.clone(),
                None => self.programs.join(program),
            },
            options: self.beside_options.clone().unwrap_or_default(),
        })
    }

    /// How many requests fill a window, after `requests` that took so long.
    pub(crate) fn fill(&self, requests: u64, took: Duration) -> u64 {
        let each = took.as_nanos() / u128::from(requests.max(1));
        u64::try_from(self.window.as_nanos() / each.max(1)).map_or(u64::MAX, |fit| fit + 1)
    }
}

fn main() -> ExitCode {
    match compare() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("compare: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything could be measured that was tried.
fn compare() -> Result<bool> {
    let effort = effort(std::env::args().skip(1)).context(USAGE)?;
    let of_disk = [block::names(), pauses::names(), growth::names()].concat();
    let others = [
        streams::names(),
        vec![start::name()],
        effort.benchmarks.clone(),
    ]
    .concat();
    let wants_one = |names: &[String]| names.iter().any(|name| effort.wants(name));
    if !wants_one(&of_disk) && !wants_one(&others) {
        let names = [of_disk, others].concat().join("\n  ");
        bail!(
            "nothing has {:?} in its name; there are\n  {names}",
            effort.only
        );
    }
    if effort.check {
        return Ok(true);
    }
    std::fs::create_dir_all(&effort.folder)?;
    let mut report = Report::default();
    if wants_one(&of_disk) {
        match Lab::new(&effort, &mut report) {
            Ok(lab) => {
                block::compare(&effort, &lab, &mut report);
                pauses::measure(&effort, &lab, &mut report);
                growth::measure(&effort, &lab, &mut report);
            }
            Err(error) => report.failed("the disk", &error),
        }
    }
    streams::compare(&effort, &mut report);
    start::measure(&effort, &mut report);
    contests::gather(&effort, &mut report);
    report.write(&effort)?;
    for section in &report.sections {
        plot::write(&effort.folder, section)?;
    }
    Ok(report.failures.is_empty())
}

fn effort(mut arguments: impl Iterator<Item = String>) -> Result<Effort> {
    let program = std::env::current_exe()?;
    let mut effort = Effort {
        rounds: 5,
        window: Duration::from_millis(300),
        only: String::new(),
        beside: None,
        options: String::new(),
        beside_options: None,
        check: false,
        benchmarks: Vec::new(),
        figures: None,
        folder: PathBuf::new(),
        programs: program.parent().unwrap_or(&program).to_owned(),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let value = arguments.next().filter(|value| !value.starts_with("--"));
            value.with_context(|| format!("{argument} wants a value"))
        };
        match argument.as_str() {
            "--check" => effort.check = true,
            "--rounds" => effort.rounds = usize::try_from(number(&argument, &value()?)?)?,
            "--window" => effort.window = Duration::from_millis(number(&argument, &value()?)?),
            "--beside" => effort.beside = Some(value()?.into()),
            "--options" => effort.options = value()?,
            "--beside-options" => effort.beside_options = Some(value()?),
            "--only" => effort.only = value()?,
            "--figures" => effort.figures = Some(value()?.into()),
            "--benchmarks" => effort.benchmarks = value()?.split(',').map(str::to_owned).collect(),
            folder if effort.folder.as_os_str().is_empty() && !folder.starts_with("--") => {
                effort.folder = folder.into();
            }
            other => bail!("{other} is not known"),
        }
    }
    if effort.folder.as_os_str().is_empty() {
        bail!("a folder is needed");
    }
    Ok(effort)
}

fn number(argument: &str, value: &str) -> Result<u64> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.with_context(|| format!("{argument} takes a number from 1, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &str) -> Result<Effort> {
        let words = arguments.split_whitespace().chain(["folder"]);
        effort(words.map(str::to_owned))
    }

    #[test]
    fn without_another_build_or_other_options_peers_are_beside_ours() {
        let effort = asked("--options poll-us=0").unwrap();
        assert!(!effort.is_beside_ours());
        assert!(effort.in_place_of_peers("vudev-benched").is_none());
        assert_eq!(effort.other("peer"), "peer");
        assert_eq!(effort.ours("vudev-null").options, "poll-us=0");
        assert!(effort.ours("vudev-null").program.ends_with("vudev-null"));
    }

    #[test]
    fn other_options_alone_are_of_the_same_program() {
        let effort = asked("--beside-options poll-us=0").unwrap();
        let ours = effort.ours("vudev-null");
        let beside = effort.in_place_of_peers("vudev-null").unwrap();
        assert_eq!(beside.program, ours.program);
        assert_eq!((&*ours.options, &*beside.options), ("", "poll-us=0"));
        assert_eq!(effort.other("peer"), "other options");
    }

    #[test]
    fn another_build_has_options_of_its_own_or_none() {
        let effort = asked("--options poll-us=5 --beside other/vudev").unwrap();
        let beside = effort.in_place_of_peers("vudev-benched").unwrap();
        assert_eq!(beside.program, PathBuf::from("other/vudev"));
        assert_eq!(beside.options, "");
        assert_eq!(effort.other("peer"), "another build");
        let effort = asked("--beside other/vudev --beside-options poll-us=7").unwrap();
        let beside = effort.in_place_of_peers("vudev-benched").unwrap();
        assert_eq!(beside.options, "poll-us=7");
    }

    #[test]
    fn an_option_without_its_value_is_named() {
        for option in ["--options", "--beside", "--beside-options", "--rounds"] {
            let error = effort([option.to_owned()].into_iter()).unwrap_err();
            assert_eq!(error.to_string(), format!("{option} wants a value"));
        }
    }
}
