//! How many packets of a device are heard in a second. It counts; who waits or drops is the
//! caller's choice.

use std::time::{Duration, Instant};

/// Packets per second and device; nearly all are log lines. A person reads ten; a disk that fails
/// every request says a few hundred before anybody looks.
pub(crate) const PACKETS_PER_PERIOD: u32 = 100;

/// Connections per second to a numbered target, at some 30 µs each: guests open them for their
/// own connections.
pub(crate) const NUMBERED_CONNECTS_PER_PERIOD: u32 = 2000;

/// Connections per second to any other target: there is one, made again when it was lost. Whoever
/// listens there is not to be filled with connections by a device.
pub(crate) const CONNECTS_PER_PERIOD: u32 = 10;

/// The length over which packets are counted.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// The packets of one device.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: u32,
    begun: Instant,
    packets: u32,
    /// Lines that were not printed since that was told last.
    suppressed: u64,
}

impl Pace {
    pub(crate) fn new(limit: u32, now: Instant) -> Self {
        Self {
            limit,
            begun: now,
            packets: 0,
            suppressed: 0,
        }
    }

    /// When the next packet is due, if that is not at once.
    pub(crate) fn full_until(&self, now: Instant) -> Option<Instant> {
        let end = self.begun + PERIOD;
        (self.packets >= self.limit && now < end).then_some(end)
    }

    /// Counts a packet: whether it came in time to be printed.
    pub(crate) fn admit(&mut self, now: Instant) -> bool {
        if now >= self.begun + PERIOD {
            self.begun = now;
            self.packets = 0;
        }
        let room = self.packets < self.limit;
        self.packets += u32::from(room);
        room
    }

    /// Counts lines that nobody will see.
    pub(crate) fn suppress(&mut self, lines: u32) {
        self.suppressed = self.suppressed.saturating_add(u64::from(lines));
    }

    /// How many there were since this was asked last.
    pub(crate) fn take_suppressed(&mut self) -> u64 {
        std::mem::take(&mut self.suppressed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_the_next_second_is_free_again() {
        let start = Instant::now();
        let mut pace = Pace::new(PACKETS_PER_PERIOD, start);
        let heard = (0..1000).filter(|_| pace.admit(start)).count();
        assert_eq!(heard, usize::try_from(PACKETS_PER_PERIOD).unwrap());
        assert_eq!(pace.full_until(start), Some(start + PERIOD));
        let later = start + PERIOD;
        assert_eq!(pace.full_until(later), None);
        assert!(pace.admit(later));
    }

    #[test]
    fn suppressed_lines_are_told_once() {
        let mut pace = Pace::new(PACKETS_PER_PERIOD, Instant::now());
        pace.suppress(3);
        pace.suppress(4);
        assert_eq!((pace.take_suppressed(), pace.take_suppressed()), (7, 0));
    }
}
