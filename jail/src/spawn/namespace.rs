//! The kinds of namespaces that a device's process has of its own.

/// One kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Ids and capabilities. The others are made by the right of this one.
    User,
    /// Processes.
    Pid,
    /// The tree of files.
    Mount,
    /// Network interfaces and abstract sockets.
    Network,
    /// System V IPC and POSIX message queues.
    Ipc,
    /// Host and domain name.
    Uts,
}

impl Namespace {
    /// All that a device's process has, the one first that the others need.
    pub const ALL: [Self; 6] = [
        Self::User,
        Self::Pid,
        Self::Mount,
        Self::Network,
        Self::Ipc,
        Self::Uts,
    ];

    /// As in `/proc/PID/ns/`, and in the sysctl `user.max_NAME_namespaces`.
    pub fn name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Pid => "pid",
            Self::Mount => "mnt",
            Self::Network => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
        }
    }

    /// The flag of clone3(2).
    fn flag(self) -> i32 {
        match self {
            Self::User => libc::CLONE_NEWUSER,
            Self::Pid => libc::CLONE_NEWPID,
            Self::Mount => libc::CLONE_NEWNS,
            Self::Network => libc::CLONE_NEWNET,
            Self::Ipc => libc::CLONE_NEWIPC,
            Self::Uts => libc::CLONE_NEWUTS,
        }
    }
}

/// The flags of these kinds together.
pub(super) fn flags(namespaces: &[Namespace]) -> i32 {
    namespaces
        .iter()
        .fold(0, |flags, namespace| flags | namespace.flag())
}
