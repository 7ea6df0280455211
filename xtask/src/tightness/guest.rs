//! Runs suites in a guest whose clock the vDSO cannot read, so that asking for the time is a
//! system call, recorded. All of the guest is in its memory; what was recorded comes out over a
//! disk, as a tar archive.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use vudev_harness::{Assets, Child};

use super::build::{Program, plain, script};
use super::record::Record;
use super::{ring, trace};
use crate::image::Image;
use crate::outcome::Outcome;
use crate::process::{output, say, text};
use crate::suites::NEED_QEMU;
use crate::tools;

/// Programs of the host that the guest has too, since those of busybox have not all that the tests
/// ask of them.
const PROGRAMS: [&str; 3] = ["strace", "setpriv", "unshare"];

/// The clock that has no vDSO (`arch/x86/include/asm/vdso/gettimeofday.h`: TSC, KVM and Hyper-V
/// pages have).
const CLOCK: &str = "acpi_pm";

const MEMORY_MIB: u32 = 3072;
const PROCESSORS: &str = "2";

/// Software emulation, and each system call stopped twice: a hundred times slower than the host.
const LIMIT: Duration = Duration::from_secs(2 * 3600);

/// For one suite. One that takes longer is ended; what was recorded until then counts.
const SUITE_LIMIT_SECONDS: u32 = 120;

/// Room for what is recorded; the file has holes.
const DISK_BYTES: u64 = 4 << 30;

/// Folders inside the guest.
const RECORD: &str = "/record";
const SUITES: &str = "/suites";

/// Runs all suites of a static program.
pub(super) fn record(program: &Program) -> Result<Record> {
    let assets = crate::guest::ensure()?;
    let folder = tempfile::Builder::new().prefix("vudev-record-").tempdir()?;
    let initramfs = folder.path().join("initramfs");
    fs::copy(assets.initramfs(), &initramfs)?;
    let mut appended = OpenOptions::new().append(true).open(&initramfs)?;
    appended.write_all(&own_files(program)?)?;
    let disk = folder.path().join("disk");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    boot(&assets, folder.path())?;

    let unpacked = folder.path().join("record");
    fs::create_dir(&unpacked)?;
    output(
        Command::new("tar")
            .arg("-xf")
            .arg(&disk)
            .arg("-C")
            .arg(&unpacked),
    )
    .with_context(|| said(folder.path()))?;
    let mut record = Record::default();
    let clock = fs::read_to_string(unpacked.join("clock")).unwrap_or_default();
    ensure!(clock.trim() == CLOCK, "the guest's clock is {clock}");
    record.remark(&format!("clocksource: {CLOCK}"));
    for suite in &program.suites {
        let Ok(printed) = fs::read_to_string(unpacked.join(format!("{}.log", suite.name))) else {
            continue;
        };
        let outcome = Outcome::from_cargo_test(&printed);
        if outcome.failed > 0 || outcome.passed == 0 {
            record.remark(&format!(
                "{}: some failed, or did not end in time",
                suite.name
            ));
            let path = super::folder()?.join(format!("guest-{}.log", suite.name));
            fs::write(&path, &printed)?;
            say(&format!("{}: see {}", suite.name, path.display()));
        }
        let outcome = outcome.closing_line();
        say(&format!("{}: {outcome}", suite.name));
        record.remark(&format!("{}: {outcome}", suite.name));
    }
    let submissions = unpacked.join("submissions");
    let submissions = submissions.exists().then_some(&*submissions);
    trace::collect(&unpacked, submissions, &mut record)?;
    Ok(record)
}

/// The suites, the program with its recorder in its place, and the guest's first program.
fn own_files(program: &Program) -> Result<Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in PROGRAMS {
        let path = tools::find(name).with_context(|| format!("{name} is missing"))?;
        let libraries = libraries(&path)?;
        files.extend(
            libraries
                .into_iter()
                .chain([path])
                .map(|path| (path.clone(), path)),
        );
    }
    let suites = program
        .suites
        .iter()
        .filter(|suite| !NEED_QEMU.contains(&&*suite.name));
    let mut names = Vec::new();
    for suite in suites {
        let place = Path::new(SUITES).join(&suite.name);
        files.insert(place, suite.path.clone());
        names.push(suite.name.as_str());
    }
    files.insert(plain(&program.path), program.path.clone());

    let mut image = Image::new(Vec::new());
    for (place, from) in &files {
        image.program_from(place, from)?;
    }
    let wrapper = script(&plain(&program.path), Path::new(RECORD), "");
    image.program(&program.path, wrapper.as_bytes())?;
    image.program(Path::new("init"), INIT.as_bytes())?;
    let init2 = init2(&names, &program.path);
    image.program(Path::new("init2"), init2.as_bytes())?;
    image.finish()
}

/// What a program is linked with, where it looks for each: the words of `ldd` that are paths.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let listed = text(Command::new("ldd").arg(program))?;
    let words = listed.split_whitespace();
    Ok(words
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect())
}

/// The initramfs cannot be a root that is pivoted from; a copy of it in a tmpfs can.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /new
mount -t tmpfs -o size=90% tmpfs /new
for name in /*; do
    [ $name = /new ] || cp -a $name /new/
done
exec switch_root /new /init2
";

fn init2(suites: &[&str], program: &Path) -> String {
    // `CARGO_TARGET_TMPDIR`, which cargo makes.
    let temporary = program.ancestors().nth(2).unwrap_or(program).join("tmp");
    let (suites, event, program) = (suites.join(" "), ring::EVENT, program.display());
    let temporary = temporary.display();
    format!(
        "#!/bin/sh
export PATH=/usr/bin:/usr/sbin:/bin:/sbin HOME=/ TMPDIR=/tmp VUDEV={program} CARGO_MANIFEST_DIR=/
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm {RECORD} /tmp {temporary}
mount -t devpts devpts /dev/pts
mount -t tracefs tracefs /sys/kernel/tracing
chmod 1777 /tmp {RECORD}
ip link set lo up
insmod /modules/virtio_blk.ko
cat /sys/devices/system/clocksource/clocksource0/current_clocksource >{RECORD}/clock
cd /sys/kernel/tracing
echo 65536 >buffer_size_kb
if echo 1 >{event}/enable; then cat trace_pipe >{RECORD}/submissions & fi
cd /
for suite in {suites}; do
    echo \"@@ $suite\"
    timeout -s KILL {SUITE_LIMIT_SECONDS} {SUITES}/$suite --test-threads 1 --show-output \
        >{RECORD}/$suite.log 2>&1
    grep '^test result' {RECORD}/$suite.log
done
echo 0 >/sys/kernel/tracing/{event}/enable
sleep 1
tar cf /dev/vda -C {RECORD} .
sync
echo '@@ done'
poweroff -f
"
    )
}

fn boot(assets: &Assets, folder: &Path) -> Result<()> {
    let append = format!(
        "console=ttyS0 panic=-1 loglevel=4 random.trust_cpu=on clocksource={CLOCK} tsc=unstable"
    );
    let disk = format!(
        "file={},format=raw,if=virtio",
        folder.join("disk").display()
    );
    let log = File::create(folder.join("log"))?;
    let mut qemu = assets.qemu()?;
    qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args([
            "-m",
            &MEMORY_MIB.to_string(),
            "-smp",
            PROCESSORS,
            "-no-reboot",
        ])
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .arg("-kernel")
        .arg(assets.kernel())
        .arg("-initrd")
        .arg(folder.join("initramfs"))
        .args(["-append", &append, "-serial", "stdio", "-drive", &disk]);
    let errors = log.try_clone()?;
    let mut child = Child::start_with("QEMU", &qemu, |command| {
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
    })?;
    say(&format!(
        "the guest says what it does in {}",
        folder.join("log").display()
    ));
    let status = child.wait(LIMIT).with_context(|| said(folder))?;
    ensure!(
        status.success(),
        "QEMU ended with {status}: {}",
        said(folder)
    );
    Ok(())
}

/// The end of what the guest said.
fn said(folder: &Path) -> String {
    let log = fs::read(folder.join("log")).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
