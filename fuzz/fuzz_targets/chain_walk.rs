//! `cargo +nightly fuzz run chain_walk`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("chain_walk", bytes));
