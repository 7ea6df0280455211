//! Prints how much the embedded policies allow: for each file and architecture the number of
//! system calls and the length of the BPF program, and of each ring list its operations.
//!
//! `cargo run -p vudev-jail --example policies`

use std::collections::BTreeSet;
use std::error::Error;

use vudev_jail::policy::{self, Arch};
use vudev_jail::{Embedded, ring};

fn main() -> Result<(), Box<dyn Error>> {
    println!("| file | architecture | system calls allowed | BPF instructions |");
    println!("|---|---|---|---|");
    let names: BTreeSet<_> = Embedded.names().filter_map(loadable).collect();
    for name in &names {
        for arch in Arch::ALL {
            let policy = policy::read(name, arch, &Embedded)?;
            let allowed = policy
                .rules
                .values()
                .filter(|rule| rule.filters.iter().any(|filter| filter.action.permits()));
            let (calls, length) = (allowed.count(), policy.compile()?.instructions().len());
            println!("| {name}.policy | {arch} | {calls} | {length} |");
        }
    }
    println!("\n| file | ring operations allowed |\n|---|---|");
    for name in &names {
        let list = ring::allow_list(name, &Embedded)?;
        let operations = list.opcodes.iter().filter_map(|op| ring::opcode_name(*op));
        let operations: Vec<_> = operations
            .map(|name| name.trim_start_matches("IORING_OP_"))
            .collect();
        println!("| {name}.ring | {} |", operations.join(" "));
    }
    Ok(())
}

/// The name of a file that is loaded, without directory and extension.
fn loadable(file: &'static str) -> Option<&'static str> {
    let (_, name) = file.split_once('/')?;
    let (name, _) = name.split_once('.')?;
    policy::is_loadable(name).then_some(name)
}
