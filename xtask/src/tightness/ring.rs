//! Records what is submitted to rings, which strace does not see: the kernel's trace event
//! `io_uring_submit_req`, in a tracing instance of our own. Only root can; without, the ring lists
//! are judged by the guest's recording alone.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use vudev_harness::Child;
use vudev_jail::ring::opcode;

use super::record::Record;
use crate::process::{output, say};
use crate::tools;

/// The event, below a tracing instance. Linux had another name for it before 6.0.
pub(super) const EVENT: &str = "events/io_uring/io_uring_submit_req";

/// Bits of the event's flags that are `IOSQE_*` (`io_uring_types.h`: `REQ_F_*` begin with them).
const FLAGS: u64 = 0xff;

/// The reader is through with all that was there before.
const SETTLED: Duration = Duration::from_millis(500);

/// A recording that is going on.
pub(super) struct Ring {
    instance: PathBuf,
    mount: PathBuf,
    reader: Child,
    written: PathBuf,
}

impl Ring {
    /// Begins, if this user and kernel can.
    pub(super) fn start(folder: &Path) -> Result<Option<Self>> {
        if !tools::is_root() {
            say("ring submissions are not recorded: only root can");
            return Ok(None);
        }
        let mount = folder.join("tracefs");
        fs::create_dir_all(&mount)?;
        output(
            Command::new("mount")
                .args(["-t", "tracefs", "tracefs"])
                .arg(&mount),
        )?;
        let instance = mount.join(format!("instances/vudev-{}", std::process::id()));
        if !mount.join(EVENT).exists() {
            say("ring submissions are not recorded: this kernel has no event for them");
            output(Command::new("umount").arg(&mount))?;
            return Ok(None);
        }
        fs::create_dir(&instance)?;
        fs::write(instance.join("buffer_size_kb"), "65536")?;
        fs::write(instance.join(EVENT).join("enable"), "1")?;
        let written = folder.join("submissions");
        let mut command = Command::new("cat");
        command.arg(instance.join("trace_pipe"));
        let output = File::create(&written)?;
        let reader = Child::start_with("cat", &command, |command| {
            command.stdout(output);
        })?;
        Ok(Some(Self {
            instance,
            mount,
            reader,
            written,
        }))
    }

    /// Ends it; the file with what was recorded.
    pub(super) fn stop(mut self) -> Result<PathBuf> {
        fs::write(self.instance.join(EVENT).join("enable"), "0")?;
        // The reader takes what there still is, and then waits for more until it is killed.
        self.reader.wait_at_most(SETTLED)?;
        drop(self.reader);
        fs::remove_dir(&self.instance)?;
        output(Command::new("umount").arg(&self.mount))?;
        Ok(self.written)
    }
}

/// Adds what these processes, by id, have submitted.
pub(super) fn collect(
    path: &Path,
    processes: &BTreeMap<u32, String>,
    record: &mut Record,
) -> Result<()> {
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if line.contains("LOST") {
            record.remark(&format!("ring: {}", line.trim()));
        }
        let Some((process, submission)) = parse(&line) else {
            continue;
        };
        if let Some(kind) = processes.get(&process) {
            *record
                .device(kind)
                .submissions
                .entry(submission)
                .or_default() += 1;
        }
    }
    Ok(())
}

/// `NAME-22027 [001] ..... 12.3: io_uring_submit_req: ring …, opcode READV, flags 0x40, …`
fn parse(line: &str) -> Option<(u32, (u8, u8))> {
    let (task, event) = line.split_once(" [")?;
    let (_, process) = task.trim().rsplit_once('-')?;
    let field = |name: &str| event.split_once(name)?.1.split(',').next();
    let operation = opcode(&format!("IORING_OP_{}", field(", opcode ")?))?;
    let flags = field(", flags 0x")?;
    let flags = u64::from_str_radix(flags, 16).ok()? & FLAGS;
    Some((
        process.parse().ok()?,
        (operation, u8::try_from(flags).ok()?),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_has_its_process_operation_and_flags() {
        let line = "    vudev-device-22027   [001] .....  1234.567890: io_uring_submit_req: \
            ring 00000000d0c0ffee, req 00000000deadbeef, user_data 0x3, opcode ASYNC_CANCEL, \
            flags 0x200040, sq_thread 0";
        assert_eq!(parse(line), Some((22027, (14, 0x40))));
        assert_eq!(parse("CPU:0 [LOST 12 EVENTS]"), None);
    }
}
