//! Why a device process could not be started, and what to do about it.

use std::fmt;

use rustix::io::Errno;

/// A step of starting a process that failed. Its text says what is missing on this host, where
/// that can be told.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {errno}{}", in_brackets(.hint.as_ref()))]
pub struct SpawnError {
    step: &'static str,
    errno: Errno,
    hint: Option<Hint>,
}

fn in_brackets(hint: Option<&Hint>) -> String {
    hint.map_or_else(String::new, |hint| format!(" ({hint})"))
}

/// What may help after a step that failed: the likely cause, and what its reader can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    text: String,
    without: Option<Without>,
}

/// What a process could be started without, so that the step is not taken: for a supervisor that
/// offers this to its user. It is then less jailed, or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// [`Spawn::namespaces(false)`](super::Spawn::namespaces), and
    /// [`Jail::namespaces(false)`](crate::Jail::namespaces).
    Namespaces,
    /// [`Begun::stay_outside`](crate::Begun::stay_outside).
    Jail,
}

impl Hint {
    fn new(text: impl Into<String>) -> Self {
        let text = text.into();
        Self {
            text,
            without: None,
        }
    }

    fn or_without(self, without: Without) -> Self {
        Self {
            without: Some(without),
            ..self
        }
    }

    /// What would do without the step.
    pub fn without(&self) -> Option<Without> {
        self.without
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl SpawnError {
    pub(super) fn new(step: &'static str, errno: Errno) -> Self {
        let hint = hint(step, errno);
        Self { step, errno, hint }
    }

    /// Of a process without namespaces, which a host can hardly forbid.
    pub(super) fn without_namespaces(step: &'static str, errno: Errno) -> Self {
        let profile = || {
            let forbids = errno == Errno::PERM;
            forbids.then(|| {
                format!("the seccomp profile of the container that this runs in must allow {step}")
            })
        };
        let limit = hint_of_limit(step, errno).map(str::to_owned);
        let hint = limit.or_else(profile).map(Hint::new);
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

    /// What may help, if that can be told.
    pub fn hint(&self) -> Option<&Hint> {
        self.hint.as_ref()
    }
}

/// The step before all others: which id of ours the process gets.
pub const STEP_IDENTITY: &str = "choose an unprivileged id";

/// The step that makes the namespaces.
pub const STEP_CLONE: &str = "clone3";

/// A setting that can forbid namespaces.
struct Setting {
    file: &'static str,
    name: &'static str,
    /// The value that forbids.
    forbids: &'static str,
    /// One that allows.
    allows: &'static str,
}

const fn setting(
    file: &'static str,
    name: &'static str,
    [forbids, allows]: [&'static str; 2],
) -> Setting {
    Setting {
        file,
        name,
        forbids,
        allows,
    }
}

/// Any number that is enough.
const MANY: &str = "10000";

const SETTINGS: [Setting; 8] = [
    setting(
        "/proc/sys/kernel/unprivileged_userns_clone",
        "kernel.unprivileged_userns_clone",
        ["0", "1"],
    ),
    setting(
        "/proc/sys/user/max_user_namespaces",
        "user.max_user_namespaces",
        ["0", MANY],
    ),
    setting(
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "kernel.apparmor_restrict_unprivileged_userns",
        ["1", "0"],
    ),
    setting(
        "/proc/sys/user/max_pid_namespaces",
        "user.max_pid_namespaces",
        ["0", MANY],
    ),
    setting(
        "/proc/sys/user/max_mnt_namespaces",
        "user.max_mnt_namespaces",
        ["0", MANY],
    ),
    setting(
        "/proc/sys/user/max_net_namespaces",
        "user.max_net_namespaces",
        ["0", MANY],
    ),
    setting(
        "/proc/sys/user/max_ipc_namespaces",
        "user.max_ipc_namespaces",
        ["0", MANY],
    ),
    setting(
        "/proc/sys/user/max_uts_namespaces",
        "user.max_uts_namespaces",
        ["0", MANY],
    ),
];

/// The remedy for a failed step of [`Spawn::spawn`](super::Spawn::spawn) or of a
/// [role](crate::role), if the likely cause is a limit, or that this host forbids namespaces. To be
/// called by the supervisor, which still sees `/proc`.
pub fn hint(step: &str, errno: Errno) -> Option<Hint> {
    if step == STEP_IDENTITY {
        let text = "in this user namespace only the real root has an id; map 65534 too, or start \
                    as an ordinary user";
        return Some(Hint::new(text).or_without(Without::Namespaces));
    }
    if let Some(limit) = hint_of_limit(step, errno) {
        return Some(Hint::new(limit));
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
        let read = |setting: &Setting| std::fs::read_to_string(setting.file).unwrap_or_default();
        let text = describe(SETTINGS.iter().map(|setting| (read(setting), setting)));
        Hint::new(text).or_without(Without::Namespaces)
    })
}

/// The remedy where something forbids a single call that everybody may make.
fn hint_of_profile(step: &str, errno: Errno) -> Option<Hint> {
    let forbids = [Errno::PERM, Errno::ACCESS, Errno::NOSYS].contains(&errno);
    let hint = Hint::new(
        "the seccomp profile of the container that this runs in, or a security module, must allow \
         it",
    );
    let hint = match step {
        _ if crate::role::OTHER_STEPS.contains(&step) => hint.or_without(Without::Jail),
        // With and without a jail.
        "execveat" | "descriptors" => hint,
        _ if crate::role::STEPS_OUTSIDE_TOO.contains(&step) => hint,
        _ => return None,
    };
    forbids.then_some(hint)
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
        // pivot_root(2): "The current root is on the rootfs (initial ramfs) mount".
        (crate::role::STEP_PIVOT, Errno::INVAL) => Some(
            "the root is the kernel's initramfs, which cannot be left: move to a tmpfs and \
             switch_root first, see docs/vvu.md",
        ),
        // A process can have one listener, and whoever manages the container may be it.
        (crate::role::STEP_LISTENER, Errno::BUSY) => {
            Some("something else listens to system calls here already, and one alone can")
        }
        _ => None,
    }
}

fn describe<'a>(settings: impl Iterator<Item = (String, &'a Setting)>) -> String {
    let found: Vec<_> = settings
        .filter(|(value, setting)| value.trim() == setting.forbids)
        .map(|(_, setting)| setting)
        .collect();
    if found.is_empty() {
        return "user namespaces seem to be forbidden here: see the sysctls \
                kernel.unprivileged_userns_clone, user.max_user_namespaces and \
                kernel.apparmor_restrict_unprivileged_userns, or the container's own seccomp \
                policy"
            .to_owned();
    }
    let values = found.iter().map(|s| format!("{} = {}", s.name, s.forbids));
    let remedies = found.iter().map(|s| format!("{}={}", s.name, s.allows));
    format!(
        "namespaces are forbidden here: {}; sysctl -w {} allows them",
        Vec::from_iter(values).join(", "),
        Vec::from_iter(remedies).join(" ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_namespaces_are_explained_with_the_setting_and_the_command() {
        let error = SpawnError::new("clone3", Errno::PERM);
        let text = error.to_string();
        assert!(text.starts_with("clone3: "), "{text}");
        assert!(text.contains("forbidden here"), "{text}");
        let without = error.hint().and_then(Hint::without);
        assert_eq!(without, Some(Without::Namespaces));
        let settings = [
            ("0\n".to_owned(), &setting("", "a.b", ["0", "1"])),
            ("5\n".to_owned(), &setting("", "c.d", ["0", MANY])),
            ("0\n".to_owned(), &setting("", "e.f", ["0", MANY])),
        ];
        assert_eq!(
            describe(settings.into_iter()),
            "namespaces are forbidden here: a.b = 0, e.f = 0; sysctl -w a.b=1 e.f=10000 allows them"
        );
    }

    #[test]
    fn a_step_that_could_be_left_out_says_with_what() {
        let without = |step, errno| hint(step, errno).and_then(|hint| hint.without());
        let namespaces = Some(Without::Namespaces);
        assert_eq!(without(STEP_IDENTITY, Errno::PERM), namespaces);
        assert_eq!(without("clone3", Errno::PERM), namespaces);
        assert_eq!(without("seccomp", Errno::PERM), Some(Without::Jail));
        assert_eq!(without("execveat", Errno::PERM), None);
        let error = SpawnError::without_namespaces("clone3", Errno::PERM);
        assert_eq!(error.hint().and_then(Hint::without), None);
    }

    #[test]
    fn a_limit_is_explained_with_what_raises_it() {
        for (step, errno, remedy) in [
            ("pipe", Errno::MFILE, "ulimit -n"),
            ("clone3", Errno::MFILE, "ulimit -n"),
            ("clone3", Errno::AGAIN, "ulimit -u"),
            ("clone3", Errno::NOSYS, "seccomp profile"),
            ("seccomp", Errno::PERM, "profile of the container"),
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
