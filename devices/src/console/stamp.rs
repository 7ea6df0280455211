//! The time in words, for lines of a log: in UTC, since a jail has no files of time zones, and from
//! the vDSO, or by `clock_gettime` where there is none (every policy has it).

use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The longest stamp.
pub(super) const STAMP_MAX: usize = 40;

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Now, since 1970.
pub(super) fn now() -> Duration {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    // A clock that stands before 1970 has not been set.
    since.unwrap_or_default()
}

/// `[ 2022-08-19 11:22:33.000000000 ]: `, as crosvm writes.
pub(super) fn write_full(time: Duration, into: &mut Vec<u8>) {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
    } = Civil::of(time.as_secs());
    let nanoseconds = time.subsec_nanos();
    // Writing to a vector does not fail.
    let _ = write!(
        into,
        "[ {year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{nanoseconds:09} ]: "
    );
}

/// `Aug 19 11:22:33`, as RFC 3164 has it (4.1.2).
pub(super) fn write_short(time: Duration, into: &mut Vec<u8>) {
    let Civil {
        year: _,
        month,
        day,
        hour,
        minute,
        second,
    } = Civil::of(time.as_secs());
    let month = usize::try_from(month).unwrap_or(1);
    let month = MONTHS.get(month.wrapping_sub(1)).unwrap_or(&"Jan");
    let _ = write!(into, "{month} {day:2} {hour:02}:{minute:02}:{second:02}");
}

#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: u64,
    month: u64,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Civil {
    /// Of seconds since 1970, in the Gregorian calendar. Years are counted from March on, so that
    /// a leap day is the last of its year; 400 years are 146,097 days.
    fn of(seconds: u64) -> Self {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Days since the 1st of March of the year 0.
        let days = days + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * day_of_year + 2) / 153;
        let month = if from_march < 10 {
            from_march + 3
        } else {
            from_march - 9
        };
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month,
            day: day_of_year - (153 * from_march + 2) / 5 + 1,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        let cases = [
            (0, "[ 1970-01-01 00:00:00.000000007 ]: ", "Jan  1 00:00:00"),
            (
                951_827_696,
                "[ 2000-02-29 12:34:56.000000007 ]: ",
                "Feb 29 12:34:56",
            ),
            (
                1_660_908_153,
                "[ 2022-08-19 11:22:33.000000007 ]: ",
                "Aug 19 11:22:33",
            ),
            (
                4_107_542_399,
                "[ 2100-02-28 23:59:59.000000007 ]: ",
                "Feb 28 23:59:59",
            ),
            (
                4_107_542_400,
                "[ 2100-03-01 00:00:00.000000007 ]: ",
                "Mar  1 00:00:00",
            ),
        ];
        for (seconds, full, short) in cases {
            let (mut a, mut b) = (Vec::new(), Vec::new());
            let time = Duration::new(seconds, 7);
            write_full(time, &mut a);
            write_short(time, &mut b);
            assert_eq!(String::from_utf8_lossy(&a), full);
            assert_eq!(String::from_utf8_lossy(&b), short);
            assert!(a.len() <= STAMP_MAX);
        }
    }
}
