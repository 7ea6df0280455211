//! What the benchmarks share: back-ends as a user would start them, drivers whose own work is small
//! beside theirs, contests, processor time, and figures. No benchmark is here, and no promise.

pub mod backend;
pub mod bare;
pub mod calls;
pub mod contest;
pub mod disk;
pub mod figures;
pub mod load;
pub mod peer;
pub mod processor;
pub mod pump;
pub mod run;
pub mod starting;
pub mod streams;
