//! One measurement: so many requests, how long they took, and what the back-end used of processors
//! for them. Not what is done with several.

use std::io;
use std::time::{Duration, Instant};

use crate::figures::Histogram;
use crate::processor::{Usage, thread_time};

/// What came of a measurement.
#[derive(Debug)]
pub struct Run {
    /// Requests that were done.
    pub requests: u64,
    /// From the first request's start to the last one's end.
    pub elapsed: Duration,
    /// Processor time of the back-end meanwhile.
    pub used: Duration,
    /// And of the driver, the thread that watches.
    pub driver: Duration,
    /// How long each took, where that is known.
    pub latencies: Histogram,
}

impl Run {
    /// So many requests since `start`, by who has used so much of processors, without a driver; how
    /// long each took is not known.
    pub(crate) fn bare(requests: u64, start: Instant, used: Duration) -> Self {
        Self {
            requests,
            elapsed: start.elapsed(),
            used,
            driver: Duration::ZERO,
            latencies: Histogram::default(),
        }
    }
}

/// A measurement that goes on.
#[derive(Debug)]
pub struct Watch {
    usage: Usage,
    own: Duration,
    start: Instant,
}

impl Watch {
    /// Begins, with a look at the process that does the work.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn start(worker: u32) -> io::Result<Self> {
        let usage = Usage::of(worker)?;
        Ok(Self {
            usage,
            own: thread_time(),
            start: Instant::now(),
        })
    }

    /// When it began.
    pub fn started(&self) -> Instant {
        self.start
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn stop(self, requests: u64, latencies: Histogram) -> io::Result<Run> {
        let elapsed = self.start.elapsed();
        let driver = thread_time() - self.own;
        Ok(Run {
            requests,
            elapsed,
            used: self.usage.since()?,
            driver,
            latencies,
        })
    }
}
