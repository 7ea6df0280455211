//! A driver that keeps a queue full: the same chains go round and round, many for one kick. What is
//! in them is the caller's affair.

use std::time::Instant;

use anyhow::{Result, bail};
use vudev_frontend::{Buffer, FrontEnd, LIMIT};

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
/// process `worker`. Each is to come back with `written` bytes, if anybody knows how many.
///
/// # Errors
///
/// The front-end's, and when one came back with another length.
pub fn pump(
    front: &mut FrontEnd,
    queue: u16,
    chains: &[Chain],
    times: u64,
    written: Option<u32>,
    worker: u32,
) -> Result<Run> {
    let ring = front.ring(queue);
    if written.is_none() {
        ring.forgive_lengths();
    }
    let mut places = vec![0; ring.size().into()];
    let mut latencies = Histogram::default();
    let watch = Watch::start(worker)?;
    let mut since = vec![watch.started(); chains.len()];
    let (mut sent, mut back) = (0, 0);
    let mut next: Vec<usize> = (0..chains.len()).collect();
    loop {
        for place in next.drain(..) {
            if sent < times {
                let Chain { readable, writable } = &chains[place];
                let token = ring.add(readable, writable)?;
                places[usize::from(token.0)] = place;
                sent += 1;
            }
        }
        if back == times {
            return Ok(watch.stop(times, latencies)?);
        }
        ring.kick()?;
        let mut used = Some(ring.wait_used(LIMIT)?);
        let now = Instant::now();
        while let Some(one) = used {
            if written.is_some_and(|expected| expected != one.written) {
                bail!("a chain came back with {} bytes written", one.written);
            }
            let place = places[usize::from(one.token.0)];
            latencies.add(now.saturating_duration_since(since[place]));
            // It goes out again at once.
            since[place] = now;
            next.push(place);
            back += 1;
            used = ring.poll_used()?;
        }
    }
}
