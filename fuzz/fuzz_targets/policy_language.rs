//! `cargo +nightly fuzz run policy_language`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("policy_language", bytes));
