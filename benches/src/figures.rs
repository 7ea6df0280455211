//! Medians, and how long requests took. Not what the figures mean.

use std::time::Duration;

/// Steps of a [`Histogram`] from one power of two to the next: it is right to a sixteenth.
const STEPS: u64 = 16;

/// The middle one of some values; of an even number the upper of the two.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// How long requests took, in steps of a sixteenth: it costs the same for a million as for ten.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64]>,
    total: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * 16].into_boxed_slice(),
            total: 0,
        }
    }
}

impl Histogram {
    /// Counts one.
    pub fn add(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(place(nanoseconds)) {
            *count += 1;
            self.total += 1;
        }
    }

    /// The time within which `thousandths` of all were done.
    pub fn percentile(&self, thousandths: u64) -> Duration {
        let wanted = (self.total * thousandths).div_ceil(1000);
        let mut seen = 0;
        let found = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        Duration::from_nanos(found.map_or(0, least))
    }
}

/// The step that a time falls into.
fn place(nanoseconds: u64) -> usize {
    let power = u64::from(nanoseconds.max(STEPS).ilog2());
    let within = (nanoseconds >> (power - 4)) & (STEPS - 1);
    let step = if nanoseconds < STEPS {
        nanoseconds
    } else {
        (power - 3) * STEPS + within
    };
    usize::try_from(step).unwrap_or(usize::MAX)
}

/// The least time of a step.
fn least(step: usize) -> u64 {
    let step = step as u64;
    if step < STEPS {
        return step;
    }
    let (power, within) = (step / STEPS + 3, step % STEPS);
    (STEPS + within) << (power - 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_never_more_than_a_sixteenth_off() {
        for nanoseconds in [0, 1, 15, 16, 17, 1000, 123_456, 9_876_543_210] {
            let low = least(place(nanoseconds));
            assert!(
                low <= nanoseconds && nanoseconds - low <= nanoseconds / STEPS,
                "{nanoseconds} {low}"
            );
        }
    }

    #[test]
    fn of_a_hundred_times_half_are_no_longer_than_the_fiftieth() {
        let mut histogram = Histogram::default();
        (1..=100).for_each(|time| histogram.add(Duration::from_nanos(time * 16)));
        assert_eq!(histogram.percentile(500), Duration::from_nanos(50 * 16));
        // The step of the 99th begins there.
        assert_eq!(histogram.percentile(990), Duration::from_nanos(96 * 16));
    }
}
