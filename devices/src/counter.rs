//! Counts what anyone outside can cause without end, and tells it ever more rarely.

use std::cell::Cell;
use std::fmt::Display;

/// How often something has happened. The first time, the second, the fourth and so on make a line.
pub(crate) struct Counter {
    what: &'static str,
    count: Cell<u64>,
}

impl Counter {
    /// Of what the log calls so, in the plural.
    pub(crate) fn of(what: &'static str) -> Self {
        Self {
            what,
            count: Cell::new(0),
        }
    }

    /// Once more, and how it was this time.
    pub(crate) fn count(&self, last: &dyn Display) {
        let count = self.count.get().saturating_add(1);
        self.count.set(count);
        if count.is_power_of_two() {
            log::warn!("{}: {count} so far, the last: {last}", self.what);
        }
    }
}
