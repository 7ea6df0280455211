//! Entropy, bytes a second, beside `vhost-device-rng` and `getrandom`: see `streams/rng.rs`.

use vudev_benches::streams::{RNG, bench};

fn main() -> anyhow::Result<()> {
    bench(
        &RNG,
        env!("CARGO_BIN_EXE_vudev-benched"),
        env!("CARGO_TARGET_TMPDIR"),
    )
}
