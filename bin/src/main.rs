//! The `vudev` command: our devices in our host. Everything it does is done by `vudev-host`.

use std::process::ExitCode;

use vudev_host::Registry;
use vudev_host::kinds::{Block, Serial};

fn main() -> ExitCode {
    vudev_host::run(&Registry::new().with::<Serial>().with::<Block>())
}
