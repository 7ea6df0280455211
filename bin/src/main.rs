//! The `vudev` command: our devices in our host. Everything it does is done by `vudev-host`.

use std::process::ExitCode;

use vudev_host::Registry;
use vudev_host::kinds::{Block, Net, Rng, Serial, Vsock};

fn main() -> ExitCode {
    let registry = Registry::new();
    let registry = registry.with::<Serial>().with::<Block>().with::<Net>();
    vudev_host::run(&registry.with::<Rng>().with::<Vsock>().with_vvu_proxy())
}
