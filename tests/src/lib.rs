//! What the end-to-end suites in `tests/` share: the harness, and what the test device
//! `vudev-escape` can be asked to do. It contains no test.

pub mod attempt;
pub mod intruder;

pub use vudev_harness::*;
