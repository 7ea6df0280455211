//! For how long a device polls its queues before it sleeps: `poll-us=`. What polling is, the
//! executor knows.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vudev_executor::Polling;

/// A processor that is spun on for longer than this has better things to do.
pub(super) const POLL_US_MAX: u64 = 1000;

pub(super) const POLL_MEANING: &str = "for how many microseconds after its last work the device \
     looks for more before it sleeps; auto: up to 50 while requests come in quick succession and \
     that finds them; 0: not at all; a number: so long whatever comes of it, so that one request \
     in that time keeps a whole processor busy: only for a device with a processor of its own; \
     never while a disk works for it, nor where it was started on one processor";

/// With fewer nobody polls: who is polled for could not run meanwhile.
pub(super) const PROCESSORS_MIN: u32 = 2;

/// The word that leaves it to the device.
pub(super) const AUTO: &str = "auto";

/// For how long a device polls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Poll {
    /// As long as it pays.
    Auto,
    /// So many microseconds.
    Us(u64),
}

impl Poll {
    /// As the loop has it, on so many processors.
    pub(crate) fn on(self, processors: u32) -> Polling {
        match self {
            _ if processors < PROCESSORS_MIN => Polling::Off,
            Self::Auto => Polling::Adaptive,
            Self::Us(0) => Polling::Off,
            Self::Us(us) => Polling::For(Duration::from_micros(us)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_one_processor_does_not_poll() {
        for poll in [Poll::Auto, Poll::Us(0), Poll::Us(20)] {
            assert_eq!(poll.on(1), Polling::Off);
        }
        assert_eq!(Poll::Auto.on(2), Polling::Adaptive);
        assert_eq!(Poll::Us(0).on(2), Polling::Off);
        let twenty = Polling::For(Duration::from_micros(20));
        assert_eq!(Poll::Us(20).on(2), twenty);
    }
}
