//! Why a device process could not be started, and what to do about it.

use rustix::io::Errno;

/// A step of starting a process that failed. Its text says what is missing on this host, where
/// that can be told.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}{hint}")]
pub struct SpawnError {
    step: &'static str,
    errno: Errno,
    hint: String,
}

impl SpawnError {
    pub(super) fn new(step: &'static str, errno: Errno) -> Self {
        let hint = hint(step, errno).map_or_else(String::new, |hint| format!(" ({hint})"));
        Self { step, errno, hint }
    }

    /// Of a process without namespaces, which a host can hardly forbid.
    pub(super) fn without_namespaces(step: &'static str, errno: Errno) -> Self {
        let hint = match (hint_of_limit(step, errno), errno) {
            (Some(limit), _) => format!(" ({limit})"),
            (None, Errno::PERM) => {
                format!(
                    " (the seccomp profile of the container that this runs in must allow {step})"
                )
            }
            (None, _) => String::new(),
        };
        Self { step, errno, hint }
    }

    pub(super) fn at(step: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::new(step, errno)
    }

    /// The system call or step by name.
    pub fn step(&self) -> &'static str {
        self.step
    }

    /// What the kernel said.
    pub fn errno(&self) -> Errno {
        self.errno
    }
}

/// The step before all others: which id of ours the process gets.
pub const STEP_IDENTITY: &str = "choose an unprivileged id";

/// The step that makes the namespaces.
pub const STEP_CLONE: &str = "clone3";

/// Settings that forbid namespaces: the file, the value that forbids, the sysctl's name.
const SETTINGS: [(&str, &str, &str); 8] = [
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "kernel.unprivileged_userns_clone",
    ),
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "user.max_user_namespaces",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "kernel.apparmor_restrict_unprivileged_userns",
    ),
    (
        "/proc/sys/user/max_pid_namespaces",
        "0",
        "user.max_pid_namespaces",
    ),
    (
        "/proc/sys/user/max_mnt_namespaces",
        "0",
        "user.max_mnt_namespaces",
    ),
    (
        "/proc/sys/user/max_net_namespaces",
        "0",
        "user.max_net_namespaces",
    ),
    (
        "/proc/sys/user/max_ipc_namespaces",
        "0",
        "user.max_ipc_namespaces",
    ),
    (
        "/proc/sys/user/max_uts_namespaces",
        "0",
        "user.max_uts_namespaces",
    ),
];

/// The remedy for a failed step of [`Spawn::spawn`](super::Spawn::spawn) or of a
/// [role](crate::role), if the likely cause is a limit, or that this host forbids namespaces. To be
/// called by the supervisor, which still sees `/proc`.
pub fn hint(step: &str, errno: Errno) -> Option<String> {
    if step == STEP_IDENTITY {
        return Some(
            "in this user namespace only the real root has an id; map 65534 too, or start as an \
             ordinary user; --disable-sandbox does without"
                .to_owned(),
        );
    }
    if let Some(limit) = hint_of_limit(step, errno) {
        return Some(limit.to_owned());
    }
    let forbids = [Errno::PERM, Errno::ACCESS, Errno::NOSPC, Errno::USERS].contains(&errno);
    let needs_namespaces = [
        STEP_CLONE,
        "write setgroups",
        "write uid_map",
        "write gid_map",
        "setresgid",
        "setresuid",
    ]
    .contains(&step)
        || crate::role::STEPS_OF_NAMESPACES.contains(&step);
    if !needs_namespaces {
        return hint_of_profile(step, errno);
    }
    forbids.then(|| {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        describe(
            SETTINGS
                .iter()
                .map(|(path, forbids, name)| (read(path), *forbids, *name)),
        )
    })
}

/// The remedy where something forbids a single call that everybody may make.
fn hint_of_profile(step: &str, errno: Errno) -> Option<String> {
    let forbids = [Errno::PERM, Errno::ACCESS, Errno::NOSYS].contains(&errno);
    let switch = match step {
        _ if crate::role::OTHER_STEPS.contains(&step) => "; --disable-sandbox does without a jail",
        // With and without a jail.
        "execveat" | "descriptors" => "",
        _ => return None,
    };
    forbids.then(|| {
        format!(
            "the seccomp profile of the container that this runs in, or a security module, must \
             allow it{switch}"
        )
    })
}

/// The remedy where this host has namespaces, but not enough of something else.
fn hint_of_limit(step: &str, errno: Errno) -> Option<&'static str> {
    match (step, errno) {
        (_, Errno::MFILE) => Some("raise the limit of open files (ulimit -n)"),
        ("clone3", Errno::AGAIN) => Some("raise the limit of processes (ulimit -u)"),
        // What a container's profile says that leaves only clone(2), which cannot do this.
        ("clone3", Errno::NOSYS) => {
            Some("the seccomp profile of the container that this runs in must allow clone3")
        }
        // A process can have one listener, and whoever manages the container may be it.
        (crate::role::STEP_LISTENER, Errno::BUSY) => {
            Some("something else listens to system calls here, so seccomp-mode=log cannot")
        }
        _ => None,
    }
}

fn describe<'a>(settings: impl Iterator<Item = (String, &'a str, &'a str)>) -> String {
    let found: Vec<_> = settings
        .filter(|(value, forbids, _)| value.trim() == *forbids)
        .map(|(_, value, name)| format!("{name} = {value}"))
        .collect();
    let cause = match found.is_empty() {
        false => format!("namespaces are forbidden here: {}", found.join(", ")),
        true => "user namespaces seem to be forbidden here: see the sysctls \
                 kernel.unprivileged_userns_clone, user.max_user_namespaces and \
                 kernel.apparmor_restrict_unprivileged_userns, or the container's own seccomp \
                 policy"
            .to_owned(),
    };
    format!("{cause}; --disable-sandbox does without them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_namespaces_are_explained_with_the_setting_and_the_switch() {
        let text = SpawnError::new("clone3", Errno::PERM).to_string();
        assert!(
            text.starts_with("clone3: ") && text.contains("--disable-sandbox"),
            "{text}"
        );
        let settings = [
            ("0\n".to_owned(), "0", "a.b"),
            ("5\n".to_owned(), "0", "c.d"),
        ];
        let text = describe(settings.into_iter());
        assert_eq!(
            text,
            "namespaces are forbidden here: a.b = 0; --disable-sandbox does without them"
        );
    }

    #[test]
    fn a_limit_is_explained_with_what_raises_it() {
        for (step, errno, remedy) in [
            ("pipe", Errno::MFILE, "ulimit -n"),
            ("clone3", Errno::MFILE, "ulimit -n"),
            ("clone3", Errno::AGAIN, "ulimit -u"),
            ("clone3", Errno::NOSYS, "seccomp profile"),
            ("seccomp", Errno::PERM, "profile of the container"),
            ("seccomp", Errno::PERM, "--disable-sandbox"),
            ("execveat", Errno::ACCESS, "security module"),
            (crate::role::STEP_LISTENER, Errno::BUSY, "something else"),
        ] {
            let text = SpawnError::new(step, errno).to_string();
            assert!(text.contains(remedy), "{text}");
        }
    }

    #[test]
    fn an_unrelated_failure_gets_no_advice() {
        assert_eq!(hint("execveat", Errno::NOENT), None);
        assert_eq!(hint("clone3", Errno::NOMEM), None);
    }
}
