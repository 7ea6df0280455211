//! What was thrown away, and the log's words about it. Not whether it is: that is for
//! [`super::output`] to decide.

use std::cell::Cell;
use std::fmt::Display;

/// How often it is said again that output is thrown away: when the count has doubled, from here on.
const SAY_AGAIN_FROM: u64 = 64 * 1024;

/// Bytes of one output that nobody got.
pub(super) struct Losses {
    /// Names the port, when there are several.
    label: String,
    total: Cell<u64>,
    /// Since the output last worked.
    recent: Cell<u64>,
    say_at: Cell<u64>,
}

impl Losses {
    pub(super) fn new(label: String) -> Self {
        Self {
            label,
            total: Cell::new(0),
            recent: Cell::new(0),
            say_at: Cell::new(0),
        }
    }

    /// These were thrown away. A guest prints without end, so it is said the first time and
    /// whenever the count has doubled.
    pub(super) fn add(&self, bytes: usize, why: &dyn Display) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.total.set(self.total.get().saturating_add(bytes));
        let recent = self.recent.get().saturating_add(bytes);
        self.recent.set(recent);
        if recent > self.say_at.get() {
            self.say_at
                .set(recent.saturating_mul(2).max(SAY_AGAIN_FROM));
            let label = &self.label;
            log::warn!("{label}output is thrown away ({recent} bytes so far): {why}");
        }
    }

    /// The output works. Says what was lost before, if anything was.
    pub(super) fn end(&self) {
        let recent = self.recent.replace(0);
        if recent > 0 {
            self.say_at.set(0);
            let (label, total) = (&self.label, self.total.get());
            log::warn!(
                "{label}output is written again: {recent} bytes were thrown away, {total} in all"
            );
        }
    }
}
