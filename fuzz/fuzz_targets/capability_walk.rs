//! `cargo +nightly fuzz run capability_walk`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("capability_walk", bytes));
