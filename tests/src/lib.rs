//! What the end-to-end suites in `tests/` share with each other and with programs that they start:
//! the harness, what the test device `vudev-escape` can be asked to do, the contents of disks
//! and streams, and both sides of all devices at once. It contains no test.

pub mod attempt;
pub mod five;
pub mod intruder;
pub mod streams;

pub use vudev_harness::*;
pub use vudev_sums as sums;
