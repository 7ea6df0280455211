//! A driver that keeps a queue full: the same chains go round and round, many for one kick. What is
//! in them is the caller's affair.

use std::time::{Duration, Instant};

use vudev_frontend::{Buffer, Error, FrontEnd, LIMIT};

/// A chain's readable and writable parts.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    /// What the device reads.
    pub readable: Vec<Buffer>,
    /// What it writes.
    pub writable: Vec<Buffer>,
}

/// Sends each of `chains` again as soon as it is back, until `times` were; how long that took.
///
/// # Errors
///
/// The front-end's, and [`Error::Misuse`] when one came back with other than `written` bytes.
pub fn pump(
    front: &mut FrontEnd,
    queue: u16,
    chains: &[Chain],
    times: u64,
    written: u32,
) -> Result<Duration, Error> {
    let ring = front.ring(queue);
    let mut places = vec![0; ring.size().into()];
    let start = Instant::now();
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
            return Ok(start.elapsed());
        }
        ring.kick()?;
        let mut used = Some(ring.wait_used(LIMIT)?);
        while let Some(one) = used {
            if one.written != written {
                return Err(Error::Misuse("a chain came back with another length"));
            }
            next.push(places[usize::from(one.token.0)]);
            back += 1;
            used = ring.poll_used()?;
        }
    }
}
