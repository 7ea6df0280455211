//! `cargo +nightly fuzz run vfio_user_proxy`: what is tried is in `targets/`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vudev_fuzz_targets::run("vfio_user_proxy", bytes));
