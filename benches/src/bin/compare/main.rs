//! Ours beside a peer on the same work in the same run: rounds of short measurements, one back-end
//! right after the other, and medians of the rounds. Writes a table and plots. A machine that does
//! something else meanwhile moves both; ratios and processor time suffer less than rates.

mod block;
mod plot;
mod report;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

const USAGE: &str = "\
usage: compare [--rounds NUMBER] [--window MILLISECONDS] [--only WORDS] [--beside VUDEV] FOLDER
  --beside another build of ours, in place of the peer: what a change brings
  FOLDER   where the tables and plots go; the disk is made there too, and removed";

/// How much is measured.
#[derive(Clone, Debug)]
pub(crate) struct Effort {
    /// Measurements of each figure.
    pub(crate) rounds: usize,
    /// How long each takes, in milliseconds.
    pub(crate) window_ms: u64,
    /// Only figures with this in their names.
    pub(crate) only: String,
    /// Another build of ours, in place of the peer.
    pub(crate) beside: Option<PathBuf>,
    /// Where everything goes.
    pub(crate) folder: PathBuf,
}

fn main() -> Result<()> {
    let effort = effort(std::env::args().skip(1)).context(USAGE)?;
    std::fs::create_dir_all(&effort.folder)?;
    let lines = block::compare(&effort)?;
    report::write(&effort.folder, "block", &lines)?;
    plot::write(&effort.folder, "block", &lines)?;
    Ok(())
}

fn effort(mut arguments: impl Iterator<Item = String>) -> Result<Effort> {
    let mut effort = Effort {
        rounds: 5,
        window_ms: 300,
        only: String::new(),
        beside: None,
        folder: PathBuf::new(),
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().context("a value is missing");
        match argument.as_str() {
            "--rounds" => effort.rounds = value()?.parse()?,
            "--window" => effort.window_ms = value()?.parse()?,
            "--beside" => effort.beside = Some(value()?.into()),
            "--only" => effort.only = value()?,
            folder if effort.folder.as_os_str().is_empty() => effort.folder = folder.into(),
            other => bail!("{other} is not known"),
        }
    }
    if effort.rounds == 0 || effort.folder.as_os_str().is_empty() {
        bail!("a folder and at least one round are needed");
    }
    Ok(effort)
}
