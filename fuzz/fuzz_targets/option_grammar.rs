//! `cargo +nightly fuzz run option_grammar`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("option_grammar", bytes));
