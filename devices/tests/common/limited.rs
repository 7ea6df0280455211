//! Tests that limit their own process, and so run in one of their own.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::getuid;

/// Runs an ignored test of this binary in a process of its own, as a user whom limits bind.
pub(crate) fn run_limited(test: &str) {
    let mut child = Command::new("/proc/self/exe");
    child.args(["--exact", test, "--ignored", "--test-threads=1"]);
    if getuid().is_root() {
        // The user that owns nothing, on every Linux.
        child
            .uid(65534)
            .gid(65534)
            .current_dir("/")
            .env_remove("TMPDIR");
    }
    let output = child.output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}"
    );
}
