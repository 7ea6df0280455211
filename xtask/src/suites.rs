//! Facts about the suites that more than one command needs.

/// Suites of `tests/tests` that start QEMU, or its tools, from `target/guest/`.
pub(crate) const NEED_QEMU: [&str; 11] = [
    "guest",
    "guest_again",
    "guest_all",
    "guest_disk",
    "guest_escape",
    "guest_net",
    "guest_ports",
    "guest_sockets",
    "guest_two",
    "guest_vvu",
    "qemu_img",
];
