//! What the end-to-end suites in `tests/` share with each other and with programs that they start:
//! the harness, what the test device `vudev-escape` can be asked to do, and the contents of disks.
//! It contains no test.

pub mod attempt;
pub mod intruder;
pub mod sums;

pub use vudev_harness::*;
