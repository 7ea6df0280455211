//! A driver that keeps a queue full: the same chains, laid out once, go round and round, many for
//! one kick. What is in them is the caller's affair.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use vudev_frontend::{Buffer, FrontEnd, LIMIT};

use crate::calls::{Calls, Wait, spin};
use crate::figures::Histogram;
use crate::run::{Run, Watch};

/// A chain's readable and writable parts.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// What the device reads.
    pub readable: Vec<Buffer>,
    /// What it writes.
    pub writable: Vec<Buffer>,
}

/// Sends each of `chains` again as soon as it is back, until `times` were, to the device of the
/// process `worker`, and waits for them so. Each is to come back with `written` bytes, if anybody
/// knows how many.
///
/// # Errors
///
/// The front-end's, and when one came back with another length, or none for [`LIMIT`].
pub fn pump(
    front: &mut FrontEnd,
    queue: u16,
    chains: &[Chain],
    wait: Wait,
    times: u64,
    written: Option<u32>,
    worker: u32,
) -> Result<Run> {
    let ring = front.ring(queue);
    let calls = Calls::new()?;
    calls.add_queue(ring)?;
    if written.is_none() {
        ring.forgive_lengths();
    }
    let mut next = Vec::with_capacity(chains.len());
    for Chain { readable, writable } in chains {
        next.push(ring.lay_out_chain(readable, writable)?);
    }
    let mut latencies = Histogram::default();
    let watch = Watch::start(worker)?;
    let mut now = watch.started();
    let mut since = vec![now; ring.size().into()];
    let (mut sent, mut back) = (0, 0);
    loop {
        // What came back together goes out together.
        for token in next.drain(..) {
            if sent < times {
                since[usize::from(token.0)] = now;
                ring.send(token)?;
                sent += 1;
            }
        }
        if back == times {
            return Ok(watch.stop(times, latencies)?);
        }
        ring.kick()?;
        while next.is_empty() {
            while let Some(used) = ring.take_used()? {
                if written.is_some_and(|expected| expected != used.written) {
                    bail!("a chain came back with {} bytes written", used.written);
                }
                next.push(used.token);
            }
            if next.is_empty() && !ring.want_call()? {
                let waited = match wait {
                    Wait::Asleep => calls.sleep(LIMIT),
                    Wait::Spinning => spin(LIMIT, || Ok(ring.has_used()?)),
                };
                waited.with_context(|| ring.describe().unwrap_or_default())?;
            }
        }
        now = Instant::now();
        for token in &next {
            latencies.add(now.saturating_duration_since(since[usize::from(token.0)]));
        }
        back += next.len() as u64;
    }
}
