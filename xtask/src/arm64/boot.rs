//! Boots the emulated machine with the suites in its memory, and reads from its serial line what
//! became of them. Every file lies where it lies on the host, for suites are built with paths.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vudev_harness::{Child, Lines};

use super::build::Built;
use super::excluded;
use super::parts::Parts;
use super::report::Report;
use crate::image::Image;
use crate::process::text;
use crate::workspace;

/// The machine's first program, and what it starts once for each user.
const INIT: &str = include_str!("init.sh");
const SUITES: &str = include_str!("suites.sh");

/// How long all suites may take.
const DEADLINE: Duration = Duration::from_secs(2 * 60 * 60);

/// A processor without what newer ones do for security: it is emulated faster. Its clock counts
/// instructions, a nanosecond each, and is a real one only while all wait (`sleep=off`, where it
/// jumps then, has been seen to stop): a test's time limits hold however busy the host is.
#[rustfmt::skip]
const MACHINE: &[&str] = &[
    "-M", "virt", "-cpu", "cortex-a57", "-smp", "2",
    "-accel", "tcg,thread=single", "-icount", "shift=0",
    "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
];

/// Suites, and what they write to temporary files, are in memory, twice while they are unpacked.
const MEMORY: &str = "3G";

/// Runs the suites, each test in a process of its own.
pub(super) fn run(parts: &Parts, built: &Built, filters: &[&str]) -> Result<Report> {
    let folder = tempfile::Builder::new().prefix("vudev-arm64-").tempdir()?;
    let initramfs = folder.path().join("initramfs");
    write_initramfs(&initramfs, parts, built, filters)?;
    let mut command = parts.qemu();
    command
        .args(MACHINE)
        .args(["-m", MEMORY, "-kernel"])
        .arg(parts.kernel())
        .arg("-initrd")
        .arg(&initramfs)
        // Only a panic is said between the lines of the suites.
        .args([
            "-append",
            "console=ttyAMA0 panic=-1 loglevel=1 random.trust_cpu=on",
        ]);
    let mut qemu = Child::start_with("QEMU", &command, |command| {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    })?;
    let mut lines = Lines::new(qemu.take_stdout().context("QEMU's output")?);
    let mut report = Report::new();
    let deadline = Instant::now() + DEADLINE;
    while let Some(line) = lines.next(deadline)? {
        report.take(&line);
    }
    report.end()?;
    Ok(report)
}

fn write_initramfs(path: &Path, parts: &Parts, built: &Built, filters: &[&str]) -> Result<()> {
    let mut image = Image::new(BufWriter::new(File::create(path)?));
    for folder in ["/bin", "/dev", "/etc", "/new", "/proc", "/sys", "/tmp"] {
        image.folder(Path::new(folder))?;
    }
    image.console()?;
    image.program_from(Path::new("/bin/busybox"), &parts.busybox())?;
    image.program(Path::new("init"), INIT.as_bytes())?;
    image.program(Path::new("suites.sh"), SUITES.as_bytes())?;

    let suites = built.suites.iter().map(|suite| {
        let (program, folder) = (suite.program.display(), suite.folder.display());
        format!("{}|{program}|{folder}\n", suite.name)
    });
    let mut text = |name, text: &str| image.file(Path::new(name), text.as_bytes());
    text("suites", &suites.collect::<String>())?;
    let excluded = excluded::all()
        .into_iter()
        .map(|one| format!("{} {}\n", one.suite, one.test));
    text("excluded", &excluded.collect::<String>())?;
    // Every line contains an empty word.
    text("wanted", &format!("{}\n", filters.join("\n")))?;
    text("temporary", &format!("{}\n", built.temporary.display()))?;
    image.folder(&built.temporary)?;

    let suites = built.suites.iter().map(|suite| &suite.program);
    for program in built.programs.iter().chain(suites) {
        image.program_from(program, program)?;
    }
    for file in tracked_files()? {
        image.file(&file, &fs::read(&file)?)?;
    }
    image.finish()?;
    Ok(())
}

/// Some suites read files of the workspace.
fn tracked_files() -> Result<Vec<PathBuf>> {
    let root = workspace::root();
    let listed = text(Command::new("git").arg("ls-files").current_dir(&root))?;
    let files = listed.lines().map(|line| root.join(line));
    Ok(files.filter(|path| path.is_file()).collect())
}
