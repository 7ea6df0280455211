//! The `vudev` command.
fn main() {}
