//! What may help after a step of starting or jailing a device that failed: what `vudev-jail` knows
//! of this host, and the option of ours that does without.

use rustix::io::Errno;
use vudev_jail::SpawnError;
use vudev_jail::spawn::{Hint, Without, hint};

/// As [`vudev_jail::spawn::hint`], with the option.
pub(crate) fn of_step(step: &str, errno: Errno) -> Option<String> {
    hint(step, errno).as_ref().map(text)
}

/// The error with its remedy, for a line of the log.
pub(crate) fn told(error: &SpawnError) -> String {
    let (step, errno) = (error.step(), error.errno());
    match error.hint() {
        Some(hint) => format!("{step}: {errno} ({})", text(hint)),
        None => format!("{step}: {errno}"),
    }
}

fn text(hint: &Hint) -> String {
    match hint.without() {
        Some(Without::Namespaces) => format!("{hint}; --disable-sandbox does without namespaces"),
        Some(Without::Jail) => format!("{hint}; --disable-sandbox does without a jail"),
        None => hint.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_told_with_what_it_does_without() {
        let told = |step, errno| of_step(step, errno).unwrap_or_default();
        assert!(
            told("clone3", Errno::PERM).ends_with("; --disable-sandbox does without namespaces")
        );
        assert!(told("seccomp", Errno::PERM).ends_with("; --disable-sandbox does without a jail"));
        // What is done without a jail too is not helped by having none.
        for step in [
            "execveat",
            "setsid",
            "PR_SET_PDEATHSIG",
            "PR_SET_NO_NEW_PRIVS",
        ] {
            let told = told(step, Errno::PERM);
            assert!(
                !told.is_empty() && !told.contains("--disable-sandbox"),
                "{step}: {told}"
            );
        }
        let initramfs = told("pivot_root", Errno::INVAL);
        assert!(initramfs.contains("switch_root first"), "{initramfs}");
        assert_eq!(of_step("clone3", Errno::NOMEM), None);
    }
}
