//! Reads what strace has written: which process was what device, and what it called once its jail
//! was closed. Of a process that was no device, or was given other policies than its own, nothing
//! is kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result};
use vudev_jail::Arch;

use super::record::{Call, Record, folded};
use super::ring;

/// Reads and removes all traces in a folder; `submissions` is what [`ring`] wrote meanwhile.
pub(super) fn collect(
    folder: &Path,
    submissions: Option<&Path>,
    record: &mut Record,
) -> Result<()> {
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let process = path
            .extension()
            .and_then(|end| end.to_str()?.parse::<u32>().ok());
        let Some(process) = process else { continue };
        if let Some((kind, calls)) = device(BufReader::new(File::open(&path)?))? {
            let device = record.device(&kind);
            device.processes += 1;
            for (call, count) in calls {
                *device.calls.entry(call).or_default() += count;
            }
            processes.insert(process, kind);
        }
        fs::remove_file(&path)?;
    }
    if let Some(path) = submissions {
        ring::collect(path, &processes, record)?;
        fs::remove_file(path)?;
    }
    Ok(())
}

/// A device's kind and calls, if the trace is of one.
fn device(trace: impl BufRead) -> Result<Option<(String, BTreeMap<Call, u64>)>> {
    let arch = Arch::HOST.context("this machine's architecture has no policies")?;
    let seccomp = arch.syscall_number("seccomp");
    let mut kind = None;
    let mut jailed = false;
    let mut calls = BTreeMap::new();
    for line in trace.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if kind.is_none() {
            kind = started_as(&line);
        }
        let Some(call) = parse(&line) else { continue };
        if jailed {
            *calls.entry(call).or_default() += 1;
        }
        jailed |= Some(call.0) == seccomp && line.ends_with("= 0");
    }
    Ok(kind.filter(|_| jailed).map(|kind| (kind, calls)))
}

/// The kind in the packet that tells a role what it is to be, if its policies are our own: as its
/// policies spell it, which have no dash in their names.
fn started_as(line: &str) -> Option<String> {
    let (_, packet) = line.split_once(r#"iov_base="\1{"#)?;
    let packet = packet.replace(r#"\""#, "\"");
    let own = [
        r#""sandbox":true"#,
        r#""policies":null"#,
        r#""seccomp_mode":"trap""#,
    ];
    let (_, kind) = packet.split_once(r#""kind":""#)?;
    let (kind, _) = kind.split_once('"')?;
    own.iter()
        .all(|field| packet.contains(field))
        .then(|| kind.replace('-', "_"))
}

/// `[ 426] io_uring_enter(0x5, 0x1, 0, 0x9, 0, 0x80) = 0`; a call that did not return has no end.
/// Arguments that a call does not have are zero: no rule can ask for them.
fn parse(line: &str) -> Option<Call> {
    let (number, call) = line.strip_prefix('[')?.split_once(']')?;
    let number = number.trim().parse().ok()?;
    let (_, arguments) = call.split_once('(')?;
    let end = arguments.find([')', '<']).unwrap_or(arguments.len());
    let mut args = [0; 6];
    for (argument, text) in args.iter_mut().zip(arguments[..end].split(", ")) {
        *argument = folded(value(text.trim()).unwrap_or_default());
    }
    Some((number, args))
}

fn value(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = concat!(
        r#"[  47] recvmsg(3, {msg_iov=[{iov_base="\1{\"name\":\"block-0\",\"kind\":\"block\","#,
        r#"\"transport\":\"vhost-user\",\"sandbox\":true,\"policies\":null,"#,
        r#"\"seccomp_mode\":\"trap\""}]}, 0) = 273"#
    );

    #[test]
    fn only_what_a_device_calls_in_its_jail_counts() {
        let arch = Arch::HOST.unwrap();
        let number = |name| arch.syscall_number(name).unwrap();
        let (seccomp, close, exit) = (number("seccomp"), number("close"), number("exit_group"));
        let trace = format!(
            "[ {close}] close(0x3) = 0\n{START}\n\
             [ {seccomp}] seccomp(0x1, 0, 0x7ffd33d8b538)  = 0\n\
             [ {close}] close(0x7)                       = 0\n[ {exit}] exit_group(0) = ?\n"
        );
        let (kind, calls) = device(trace.as_bytes()).unwrap().unwrap();
        assert_eq!(kind, "block");
        let expected = [((close, [7, 0, 0, 0, 0, 0]), 1), ((exit, [0; 6]), 1)];
        assert_eq!(calls, BTreeMap::from(expected));
        assert_eq!(device(&b"[   3] close(0x3) = 0\n"[..]).unwrap(), None);
        let proxy = trace.replace(r#"\"block\""#, r#"\"vvu-proxy\""#);
        let (kind, _) = device(proxy.as_bytes()).unwrap().unwrap();
        assert_eq!(kind, "vvu_proxy");
        let others = trace.replace("null", "{}");
        assert_eq!(device(others.as_bytes()).unwrap(), None);
    }

    #[test]
    fn a_call_that_was_cut_off_has_the_arguments_that_are_there() {
        let call = parse("[ 426] io_uring_enter(0x5, 0x1, 0xffffff9c, 0x7f0000001000 <unfinished");
        assert_eq!(
            call,
            Some((
                426,
                [5, 1, 0xffff_ff9c, super::super::record::ADDRESS, 0, 0]
            ))
        );
        assert_eq!(parse("+++ exited with 0 +++"), None);
    }
}
