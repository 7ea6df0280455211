//! Starts a device process: `clone3` into namespaces of its own, an unprivileged id, the kept
//! descriptors at fixed numbers, `execveat` of our own binary. What the process then takes away
//! from itself is [`crate::role`].
//!
//! Exec, not fork alone: ring mappings are shared memory that survives a fork, so a forked child
//! could write entries into the supervisor's ring; exec also gives each device an address layout
//! of its own and no leftover heap.

mod child;
mod error;
mod identity;
mod namespace;

use std::ffi::{CString, NulError};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

pub use child::keep_exit_statuses;
use child::{Move, Plan, Step};
pub use error::{Hint, STEP_CLONE, STEP_IDENTITY, SpawnError, Without, hint};
use identity::Identity;
pub use namespace::Namespace;

/// How many descriptors a process may be started with; whatever else it needs comes over its
/// control channel. The bound keeps the fixed numbers low and the moves a short list.
pub const KEPT_MAX: usize = 32;

/// One past the greatest number a kept descriptor may get.
pub const KEPT_NUMBER_END: RawFd = 64;

/// Our own binary, opened once by the supervisor and executed by descriptor, so that neither a
/// path nor a later replacement of the file matters.
pub fn own_program() -> io::Result<OwnedFd> {
    // O_PATH: a binary may be executable without being readable.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/exe", flags, Mode::empty()).map_err(|errno| {
        let error = io::Error::from(errno);
        match errno {
            Errno::NOENT => io::Error::new(error.kind(), format!("{error}: /proc must be mounted")),
            _ => error,
        }
    })
}

/// A device process that is about to be started.
#[derive(Debug)]
#[must_use]
pub struct Spawn<'a> {
    program: BorrowedFd<'a>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    kept: Vec<(BorrowedFd<'a>, RawFd)>,
    namespaces: i32,
}

/// A started process: its id as its supervisor sees it, and the descriptor to wait on and to
/// signal by. It is reaped by whoever holds `pidfd`. Dropping this ends nothing; the end of the
/// thread that has called [`Spawn::spawn`] does, once the process is in its jail.
#[derive(Debug)]
pub struct Child {
    /// Process id in the supervisor's namespace, for messages only.
    pub pid: Pid,
    /// Becomes readable when the process ends; CLOEXEC.
    pub pidfd: OwnedFd,
}

impl<'a> Spawn<'a> {
    /// Starts `program` (see [`own_program`]) with `name` as its `argv[0]`, in all namespaces,
    /// with an empty environment, and 0, 1 and 2 at `/dev/null`.
    pub fn new(program: BorrowedFd<'a>, name: &str) -> Result<Self, NulError> {
        let arguments = vec![CString::new(name)?];
        Ok(Self {
            program,
            arguments,
            environment: Vec::new(),
            kept: Vec::new(),
            namespaces: namespace::flags(&Namespace::ALL),
        })
    }

    /// Appends an argument.
    pub fn argument(mut self, argument: &str) -> Result<Self, NulError> {
        self.arguments.push(CString::new(argument)?);
        Ok(self)
    }

    /// Appends `NAME=value` to the environment, which is empty otherwise.
    pub fn environment(mut self, assignment: &str) -> Result<Self, NulError> {
        self.environment.push(CString::new(assignment)?);
        Ok(self)
    }

    /// Gives the process a copy of `descriptor` under `number`. Numbers 0, 1 and 2 replace
    /// `/dev/null` there.
    pub fn keep(mut self, descriptor: BorrowedFd<'a>, number: RawFd) -> Self {
        self.kept.push((descriptor, number));
        self
    }

    /// `false` starts the process in our own namespaces and with our own
    /// id.
    pub fn namespaces(self, namespaces: bool) -> Self {
        match namespaces {
            true => self.only(&Namespace::ALL),
            false => self.only(&[]),
        }
    }

    /// Only these namespaces, of which the user namespace must be one unless there is none: to find
    /// out which of them a host refuses. A device is not jailed by less than all.
    pub fn only(mut self, namespaces: &[Namespace]) -> Self {
        self.namespaces = namespace::flags(namespaces);
        self
    }

    /// Starts the process and returns once the new program runs, or says which step failed. It
    /// waits for a few system calls of the child, and for nothing that the new program does.
    ///
    /// **Call it in a thread that lives as long as the process shall**, such as the main one: for
    /// the kernel the *thread* is the parent, and the process is killed when that ends
    /// (PR_SET_PDEATHSIG, which [`Jail::enter`](crate::Jail::enter) sets). A thread of a pool that
    /// ends when it is idle takes its processes along. One that ends before the new program has
    /// come to `Jail::enter` does not: the process then is another thread's of this program, and
    /// ends with that one.
    pub fn spawn(&self) -> Result<Child, SpawnError> {
        spawn(self)
    }
}

/// See [`Spawn::spawn`].
fn spawn(spawn: &Spawn<'_>) -> Result<Child, SpawnError> {
    check_kept(&spawn.kept)?;
    let identity = match spawn.namespaces {
        0 => None,
        _ => Some(Identity::choose()?),
    };
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(SpawnError::at("open /dev/null"))?;
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(SpawnError::at("pipe"));
    let (go_read, go_write) = pipe()?;
    let (errors_read, errors_write) = pipe()?;

    let arguments = pointers(&spawn.arguments);
    let environment = pointers(&spawn.environment);
    let mut moves = moves(&spawn.kept, null.as_fd());
    let first_free = moves.iter().map(|m| m.to).max().map_or(3, |last| last + 1);
    let mut plan = Plan {
        namespaces: spawn.namespaces,
        empty_groups: identity
            .as_ref()
            .is_some_and(|identity| identity.empty_groups),
        go: go_read.as_raw_fd(),
        go_write: go_write.as_raw_fd(),
        errors: errors_write.as_raw_fd(),
        program: spawn.program.as_raw_fd(),
        moves: &mut moves,
        first_free,
        arguments: &arguments,
        environment: &environment,
    };
    let child = child::clone(&mut plan).map_err(|errno| match spawn.namespaces {
        0 => SpawnError::without_namespaces(STEP_CLONE, errno),
        _ => SpawnError::new(STEP_CLONE, errno),
    })?;
    drop((go_read, errors_write));

    let outcome = release(&child, identity.as_ref(), go_write)
        .and_then(|()| first_report(errors_read).map_or(Ok(()), Err));
    if outcome.is_err() {
        reap(&child);
    }
    outcome.map(|()| child)
}

/// Refuses numbers that make no sense before anything is started.
fn check_kept(kept: &[(BorrowedFd<'_>, RawFd)]) -> Result<(), SpawnError> {
    let twice = |index: usize| {
        kept[..index]
            .iter()
            .any(|(_, number)| *number == kept[index].1)
    };
    let wrong = kept.len() > KEPT_MAX
        || kept
            .iter()
            .any(|(_, number)| !(0..KEPT_NUMBER_END).contains(number))
        || (0..kept.len()).any(twice);
    match wrong {
        true => Err(SpawnError::new("kept descriptors", Errno::INVAL)),
        false => Ok(()),
    }
}

/// The kept descriptors, and `/dev/null` for those of 0, 1 and 2 that are not kept.
fn moves(kept: &[(BorrowedFd<'_>, RawFd)], null: BorrowedFd<'_>) -> Vec<Move> {
    let nulls = (0..3)
        .filter(|number| kept.iter().all(|(_, to)| to != number))
        .map(|to| Move {
            from: null.as_raw_fd(),
            to,
        });
    kept.iter()
        .map(|(from, to)| Move {
            from: from.as_raw_fd(),
            to: *to,
        })
        .chain(nulls)
        .collect()
}

/// A null-terminated list for `execveat`.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings
        .iter()
        .map(|s| s.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// Writes the id maps, then lets the child go on. When a map cannot be written, the pipe's end is
/// dropped without a byte, and the child ends by itself.
fn release(child: &Child, identity: Option<&Identity>, go: OwnedFd) -> Result<(), SpawnError> {
    if let Some(identity) = identity {
        let pid = child.pid;
        if !identity.empty_groups {
            // Without CAP_SETGID in our own namespace a gid map is accepted only after this
            // (user_namespaces(7)). With it, groups are emptied by the child instead, which this
            // would forbid.
            write_once(&format!("/proc/{pid}/setgroups"), "deny")
                .map_err(SpawnError::at("write setgroups"))?;
        }
        write_once(
            &format!("/proc/{pid}/uid_map"),
            &format!("0 {} 1", identity.user),
        )
        .map_err(SpawnError::at("write uid_map"))?;
        write_once(
            &format!("/proc/{pid}/gid_map"),
            &format!("0 {} 1", identity.group),
        )
        .map_err(SpawnError::at("write gid_map"))?;
    }
    // A child that was killed meanwhile gives EPIPE; its pidfd tells that better.
    match rustix::io::write(go, &[1]) {
        Ok(_) | Err(Errno::PIPE) => Ok(()),
        Err(errno) => Err(SpawnError::new("go", errno)),
    }
}

/// A map file takes its whole content in one write, once.
fn write_once(path: &str, content: &str) -> Result<(), Errno> {
    let written = OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut f| f.write(content.as_bytes()));
    written
        .map(drop)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// What the child could not do, or nothing: its end of the pipe closes when the program is
/// executed.
fn first_report(errors: OwnedFd) -> Option<SpawnError> {
    let mut report = [0; child::REPORT_SIZE];
    match std::fs::File::from(errors).read_exact(&mut report) {
        Ok(()) => {
            let (step, errno) = child::decode(report);
            Some(SpawnError::new(step.map_or("child", Step::name), errno))
        }
        Err(_) => None,
    }
}

/// Waits for a child that failed, so that no zombie stays.
fn reap(child: &Child) {
    let exited = WaitIdOptions::EXITED;
    while let Err(Errno::INTR) = waitid(WaitId::PidFd(child.pidfd.as_fd()), exited) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_given_twice_or_out_of_range_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let program = own_program().unwrap();
        let spawn = || Spawn::new(program.as_fd(), "x").unwrap();
        for wrong in [
            spawn().keep(null.as_fd(), 5).keep(null.as_fd(), 5),
            spawn().keep(null.as_fd(), -1),
            spawn().keep(null.as_fd(), KEPT_NUMBER_END),
        ] {
            let error = wrong.spawn().unwrap_err();
            assert_eq!(
                (error.step(), error.errno()),
                ("kept descriptors", Errno::INVAL)
            );
        }
    }

    #[test]
    fn numbers_below_three_are_null_unless_kept() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut numbers: Vec<_> = moves(&[(null.as_fd(), 3), (null.as_fd(), 1)], null.as_fd())
            .iter()
            .map(|m| m.to)
            .collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 1, 2, 3]);
    }
}
