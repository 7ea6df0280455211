//! `cargo +nightly fuzz run vhost_user_codec`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("vhost_user_codec", bytes));
