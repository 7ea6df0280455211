//! The files of `seccomp/` as they are embedded: that all of them, on every architecture, hold what
//! their README says. What the language means is tested where it is read (`src/policy`).

mod calls;
mod files;
mod net;
mod rings;
mod table;
