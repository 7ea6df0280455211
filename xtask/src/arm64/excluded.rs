//! What is not run in the emulated machine, by name and with the reason. It runs nothing.

/// A test, or all of a suite (`*`), that is left out.
pub(super) struct Excluded {
    /// The suite: its source file without `.rs`.
    pub(super) suite: &'static str,
    /// The test's name.
    pub(super) test: &'static str,
    /// Why.
    pub(super) reason: &'static str,
}

const fn all_of(suite: &'static str, reason: &'static str) -> Excluded {
    Excluded {
        suite,
        test: "*",
        reason,
    }
}

const GUESTS: &str = "it boots guests of its own in QEMU";

/// All of them. An entry that names nothing any more is an error.
pub(super) const EXCLUDED: &[Excluded] = &[
    Excluded {
        suite: "jail/tests/roles/main",
        test: "the_kernel_answers_what_a_policy_means",
        reason: "its random policies take minutes here, and are of no architecture",
    },
    Excluded {
        suite: "jail/tests/roles/main",
        test: "as_an_ordinary_user::the_kernel_answers_what_a_policy_means",
        reason: "its random policies take minutes here, and are of no architecture",
    },
    all_of("tests/tests/guest", GUESTS),
    all_of("tests/tests/guest_disk", GUESTS),
    all_of("tests/tests/guest_net", GUESTS),
    all_of("tests/tests/guest_ports", GUESTS),
    all_of("tests/tests/guest_sockets", GUESTS),
    Excluded {
        suite: "bin/tests/check",
        test: "without_user_namespaces_no_device_is_started_with_less",
        reason: "it needs all of setpriv(1), of which busybox has a part",
    },
    all_of(
        "jail/tests/policy_properties",
        "it compiles thousands of policies, which takes minutes here, and loads none",
    ),
    all_of(
        "frontend/tests/storage_daemon",
        "it needs qemu-storage-daemon",
    ),
];

/// The entry for a test.
pub(super) fn find(suite: &str, test: &str) -> Option<&'static Excluded> {
    EXCLUDED
        .iter()
        .find(|one| one.suite == suite && (one.test == "*" || one.test == test))
}
