//! What was recorded in a run: the distinct system calls and ring submissions of each kind of
//! device, with their counts. Its text form is kept, so that it can be judged again by other
//! policies.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};

/// A system call's number and arguments; addresses are all [`ADDRESS`], which no policy tells
/// apart.
pub(super) type Call = (u32, [u64; 6]);

/// An operation's number and the flags of its submission entry.
pub(super) type Submission = (u8, u8);

/// Stands for every number that a 64-bit process can only mean as an address.
pub(super) const ADDRESS: u64 = 1 << 32;

/// Above this a number is negative, below an address, if it is [`ADDRESS`] at least.
const USER_ADDRESS_END: u64 = 1 << 56;

/// One run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// By kind of device.
    pub(super) devices: BTreeMap<String, Device>,
    /// How the suites went, one line each.
    pub(super) remarks: Vec<String>,
}

/// All processes of one kind of device.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) processes: u64,
    pub(super) calls: BTreeMap<Call, u64>,
    pub(super) submissions: BTreeMap<Submission, u64>,
}

impl Record {
    pub(super) fn remark(&mut self, line: &str) {
        self.remarks.push(line.to_owned());
    }

    pub(super) fn device(&mut self, kind: &str) -> &mut Device {
        self.devices.entry(kind.to_owned()).or_default()
    }

    /// `kind call COUNT NUMBER ARGUMENTS`, the last two in hexadecimal, and the like.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for line in &self.remarks {
            let _ = writeln!(text, "# {line}");
        }
        for (kind, device) in &self.devices {
            let _ = writeln!(text, "{kind} processes {}", device.processes);
            for ((number, args), count) in &device.calls {
                let args = args.map(|argument| format!("{argument:x}")).join(" ");
                let _ = writeln!(text, "{kind} call {count} {number:x} {args}");
            }
            for ((opcode, flags), count) in &device.submissions {
                let _ = writeln!(text, "{kind} submission {count} {opcode:x} {flags:x}");
            }
        }
        text
    }

    pub(super) fn from_text(text: &str) -> Result<Self> {
        let mut record = Self::default();
        for line in text.lines() {
            match line.strip_prefix("# ") {
                Some(remark) => record.remark(remark),
                None => record.add_line(line).with_context(|| line.to_owned())?,
            }
        }
        Ok(record)
    }

    fn add_line(&mut self, line: &str) -> Option<()> {
        let words: Vec<_> = line.split(' ').collect();
        let hex = |word: &&str| u64::from_str_radix(word, 16).ok();
        let (kind, rest) = words.split_first()?;
        let device = self.device(kind);
        match rest {
            ["processes", count] => device.processes = count.parse().ok()?,
            ["call", count, number, args @ ..] => {
                let args: Vec<_> = args.iter().map(hex).collect::<Option<_>>()?;
                let call = (hex(number)?.try_into().ok()?, args.try_into().ok()?);
                device.calls.insert(call, count.parse().ok()?);
            }
            ["submission", count, opcode, flags] => {
                let submission = (hex(opcode)?.try_into().ok()?, hex(flags)?.try_into().ok()?);
                device.submissions.insert(submission, count.parse().ok()?);
            }
            _ => return None,
        }
        Some(())
    }
}

/// An argument with all addresses made one.
pub(super) fn folded(argument: u64) -> u64 {
    match argument {
        ADDRESS..USER_ADDRESS_END => ADDRESS,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_survives_its_text() {
        let mut record = Record::default();
        record.remark("running: 10 passed, 0 failed, 0 skipped");
        let device = record.device("block");
        device.processes = 2;
        device
            .calls
            .insert((9, [0, folded(0x7f12_3456_7000), 3, 0x22, u64::MAX, 0]), 7);
        device.submissions.insert((1, 64), 9);
        assert!(
            record
                .to_text()
                .contains("block call 7 9 0 100000000 3 22 ffffffffffffffff 0")
        );
        assert_eq!(Record::from_text(&record.to_text()).unwrap(), record);
        assert!(Record::from_text("block call 1 2").is_err());
    }
}
