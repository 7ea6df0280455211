//! The table of rules and their uses, and the verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Result, bail, ensure};
use vudev_jail::Embedded;

use super::argued;
use super::record::{ADDRESS, Device, Record};
use super::rules::{Alternative, Rules};

/// How many values of an argument are listed.
const VALUES_MAX: usize = 10;

/// Prints everything; an error if a device was never recorded, or if a rule is unused and its file
/// does not say why it stays, or says so of one that is used.
pub(super) fn run(records: &[(&str, Record)]) -> Result<()> {
    for (name, record) in records {
        println!("{name}:");
        for (kind, device) in &record.devices {
            let calls: u64 = device.calls.values().sum();
            let submissions: u64 = device.submissions.values().sum();
            let processes = device.processes;
            println!("  {processes} processes of {kind}, {calls} calls, {submissions} submissions");
        }
        for remark in &record.remarks {
            println!("  {remark}");
        }
    }
    let kinds = kinds();
    for kind in &kinds {
        let recorded = |(_, record): &(&str, Record)| record.devices.contains_key(kind);
        ensure!(
            records.iter().any(recorded),
            "no process of {kind} was recorded: there is nothing to judge its policy by"
        );
    }
    let mut totals: BTreeMap<Alternative, BTreeMap<&str, u64>> = BTreeMap::new();
    for kind in &kinds {
        let rules = Rules::of(kind)?;
        for (alternative, count) in table(kind, &rules, records) {
            *totals
                .entry(alternative)
                .or_default()
                .entry(kind)
                .or_default() += count;
        }
    }
    verdict(&totals)
}

/// What each device with a policy is called.
fn kinds() -> BTreeSet<String> {
    let kind = |name: &str| {
        let name = name.strip_prefix("ring/")?;
        Some(name.strip_suffix("_device_vhost_user.ring")?.to_owned())
    };
    Embedded.names().filter_map(kind).collect()
}

/// Prints one device's table; the sums.
fn table(kind: &str, rules: &Rules, records: &[(&str, Record)]) -> BTreeMap<Alternative, u64> {
    let none = Device::default();
    let devices = records
        .iter()
        .map(|(name, record)| (*name, record.devices.get(kind).unwrap_or(&none)));
    let columns: Vec<_> = devices
        .map(|(name, device)| (name, device, rules.uses(device)))
        .collect();
    let mut sums: BTreeMap<Alternative, u64> = BTreeMap::new();
    let mut heads = String::new();
    for (name, _, uses) in &columns {
        let _ = write!(heads, " {name:>13}");
        for (alternative, count) in &uses.counts {
            *sums.entry(alternative.clone()).or_default() += count;
        }
    }
    println!("\n{:<60}{heads}", format!("{kind}: rule"));
    for alternative in sums.keys() {
        let rule = format!(
            "{}:{} {}",
            alternative.file, alternative.line, alternative.text
        );
        let mut counts = String::new();
        for (_, _, uses) in &columns {
            let _ = write!(
                counts,
                " {:>13}",
                uses.counts.get(alternative).copied().unwrap_or(0)
            );
        }
        println!("{rule:<60}{counts}");
    }
    for (name, _, uses) in &columns {
        for (call, count) in &uses.denied {
            println!("denied in {name}: {call}, {count} times");
        }
    }
    println!("\n{kind}: arguments that were passed");
    for (call, arguments) in values(rules, columns.iter().map(|(_, device, _)| *device)) {
        println!("  {call}({arguments})");
    }
    sums
}

/// By call, the values of each argument, those of all processes together.
fn values<'a>(
    rules: &Rules,
    devices: impl Iterator<Item = &'a Device>,
) -> BTreeMap<String, String> {
    let mut values: BTreeMap<String, [BTreeSet<u64>; 6]> = BTreeMap::new();
    for (number, args) in devices.flat_map(|device| device.calls.keys()) {
        let sets = values.entry(rules.name(*number)).or_default();
        for (set, argument) in sets.iter_mut().zip(args) {
            set.insert(*argument);
        }
    }
    let listed = values.into_iter().map(|(call, sets)| {
        let used = 6 - sets
            .iter()
            .rev()
            .take_while(|set| set.iter().all(|v| *v == 0))
            .count();
        let arguments: Vec<_> = sets[..used].iter().map(list).collect();
        (call, arguments.join(", "))
    });
    listed.collect()
}

fn list(values: &BTreeSet<u64>) -> String {
    let value = |value: &u64| match *value {
        ADDRESS => "address".to_owned(),
        value => format!("{value:#x}"),
    };
    let mut listed: Vec<_> = values.iter().take(VALUES_MAX).map(value).collect();
    if values.len() > VALUES_MAX {
        listed.push(format!("{} more", values.len() - VALUES_MAX));
    }
    listed.join("|")
}

fn verdict(totals: &BTreeMap<Alternative, BTreeMap<&str, u64>>) -> Result<()> {
    println!();
    let mut faults = 0;
    for (alternative, devices) in totals {
        let Alternative {
            file,
            line,
            clause: _,
            text,
        } = alternative;
        let of: Vec<_> = devices.iter().filter(|(_, count)| **count > 0).collect();
        let reason = argued::reason(alternative)?;
        match (of.as_slice(), reason) {
            ([], Some(reason)) => println!("unused: {file}:{line} {text}\n  {reason}"),
            ([], None) => {
                println!("unused, and its file does not say why: {file}:{line} {text}");
                faults += 1;
            }
            (_, Some(_)) => {
                println!("used, though its file says no test does: {file}:{line} {text}");
                faults += 1;
            }
            ([(kind, _)], None) if devices.len() > 1 => {
                println!("used by {kind} alone: {file}:{line} {text}");
            }
            _ => {}
        }
    }
    match faults {
        0 => Ok(()),
        _ => bail!(
            "{faults} rules whose file does not say the truth: remove those that no test uses, or \
             say why above each; and take back what is said of those that are used"
        ),
    }
}
