//! What is not run in the emulated machine, by name and with the reason. It runs nothing.

use crate::suites::NEED_QEMU;

/// A test, or all of a suite (`*`), that is left out.
pub(super) struct Excluded {
    /// The suite: its source file without `.rs`.
    pub(super) suite: String,
    /// The test's name.
    pub(super) test: &'static str,
    /// Why.
    pub(super) reason: &'static str,
}

impl Excluded {
    fn new(suite: &str, test: &'static str, reason: &'static str) -> Self {
        let suite = suite.to_owned();
        Self {
            suite,
            test,
            reason,
        }
    }

    /// Whether it leaves a test out.
    pub(super) fn names(&self, suite: &str, test: &str) -> bool {
        self.suite == suite && (self.test == "*" || self.test == test)
    }
}

const RANDOM: &str = "its random policies take minutes here, and are of no architecture";

/// All of them. An entry that names nothing any more is an error.
pub(super) fn all() -> Vec<Excluded> {
    let others = [
        Excluded::new(
            "jail/tests/roles/main",
            "the_kernel_answers_what_a_policy_means",
            RANDOM,
        ),
        Excluded::new(
            "jail/tests/roles/main",
            "as_an_ordinary_user::the_kernel_answers_what_a_policy_means",
            RANDOM,
        ),
        Excluded::new(
            "tests/tests/author",
            "a_crate_made_from_the_document_has_a_device_in_a_jail_that_names_a_forbidden_call",
            "it builds a crate with cargo",
        ),
        Excluded::new("tests/tests/keys", "*", "it reads the sources"),
        Excluded::new(
            "bin/tests/check",
            "without_user_namespaces_no_device_is_started_with_less",
            "it needs all of setpriv(1), of which busybox has a part",
        ),
        Excluded::new(
            "jail/tests/policy_properties",
            "*",
            "it compiles thousands of policies, which takes minutes here, and loads none",
        ),
        Excluded::new(
            "fuzz/targets/tests/targets",
            "*",
            "it reads its inputs from the sources, and what it tries is of no architecture",
        ),
        Excluded::new(
            "frontend/tests/storage_daemon",
            "*",
            "it needs qemu-storage-daemon",
        ),
    ];
    let guests = NEED_QEMU.map(|name| {
        let suite = format!("tests/tests/{name}");
        Excluded::new(&suite, "*", "it starts QEMU or its tools")
    });
    others.into_iter().chain(guests).collect()
}
