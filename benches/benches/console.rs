//! A console's output, bytes a second, beside `vhost-device-console`: see `streams/console.rs`.

use vudev_benches::streams::{CONSOLE, bench};

fn main() -> anyhow::Result<()> {
    bench(
        &CONSOLE,
        env!("CARGO_BIN_EXE_vudev-benched"),
        env!("CARGO_TARGET_TMPDIR"),
    )
}
