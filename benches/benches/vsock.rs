//! A stream from the guest, bytes a second, beside `vhost-device-vsock`: see
//! `streams/vsock.rs`.

use vudev_benches::streams::{VSOCK, bench};

fn main() -> anyhow::Result<()> {
    bench(
        &VSOCK,
        env!("CARGO_BIN_EXE_vudev-benched"),
        env!("CARGO_TARGET_TMPDIR"),
    )
}
