//! The `vudev` command: our devices in our host. Everything it does is done by `vudev-host`.

use std::process::ExitCode;

use vudev_host::Registry;
use vudev_host::kinds::{Block, Net, Serial};

fn main() -> ExitCode {
    let registry = Registry::new();
    vudev_host::run(&registry.with::<Serial>().with::<Block>().with::<Net>())
}
