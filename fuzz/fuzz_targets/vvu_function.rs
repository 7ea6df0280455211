//! `cargo +nightly fuzz run vvu_function`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("vvu_function", bytes));
