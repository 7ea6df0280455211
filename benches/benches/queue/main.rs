//! A split ring from the device's side: taking 1 and 32 chains and giving them back, each of three
//! descriptors as a disk's requests are, direct and in an indirect table, through the public
//! interface of `vudev-virtio`; beside it the crate `virtio-queue`, on `vm-memory`, at the same
//! ring in the same memory.
//!
//! Both check every descriptor and find its bytes in memory, and both tell whether the driver wants
//! a call, ours at the end of its executor's turn. The driver stores one index for all chains, and
//! wants none. No device is here, and no call is made. Time is processor time.

mod driver;
mod ours;
mod theirs;

use std::path::Path;

use anyhow::Result;
use criterion::{Criterion, Throughput};
use vudev_benches::contest::{Contest, Report};

use driver::Layout;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    for (layout, name) in [(Layout::Direct, "direct"), (Layout::Indirect, "indirect")] {
        for batch in [1, 32] {
            Contest::new(format!("{batch} {name}"))
                .moves(Throughput::Elements(batch.into()))
                .of("vudev", move |times| ours::batches(layout, batch, times))
                .of("virtio-queue", move |times| {
                    theirs::batches(layout, batch, times)
                })
                .run(&mut criterion, &mut report);
        }
    }
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("queue.txt"))?;
    Ok(())
}
