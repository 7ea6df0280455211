//! What the benchmarks share: back-ends as a user would start them, drivers whose own work is small
//! beside theirs, processor time, and figures. No benchmark is here, and no promise.

pub mod backend;
pub mod figures;
pub mod load;
pub mod processor;
