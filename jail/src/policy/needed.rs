//! What every policy of a device must allow, whatever the device: without these its process dies at
//! its first step, or cannot say why it dies.

use super::Policy;

/// The loop; log lines and the report of a forbidden call; the exit after it; the return from the
/// handlers of other signals.
const NEEDED: [&str; 4] = ["io_uring_enter", "sendto", "exit_group", "rt_sigreturn"];

/// Those of `io_uring_enter`, `sendto`, `exit_group` and `rt_sigreturn` that `policy` never allows,
/// with whatever arguments. A daemon without a ring can do without the first.
pub fn missing(policy: &Policy) -> Vec<&'static str> {
    let permits = |name: &str| match policy.rules.values().find(|rule| rule.name == name) {
        Some(rule) => rule.filters.iter().any(|filter| filter.action.permits()),
        None => policy.default.permits(),
    };
    NEEDED.into_iter().filter(|name| !permits(name)).collect()
}
