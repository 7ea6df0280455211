//! The few system calls between `clone3` and `execveat`; no policy is decided here.
//!
//! The child is a copy of one thread of a process that may have had others (in tests it has): a
//! lock may be held for ever, so nothing here allocates, locks, formats or panics. Everything it
//! needs was built by the parent.
#![expect(
    unsafe_code,
    reason = "clone3, and raw system calls in a child that may not allocate"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::process::Pid;

use super::Child;
use crate::last_errno;

/// Bytes of the report that a failing child writes: step, errno.
pub(super) const REPORT_SIZE: usize = 8;

/// A descriptor and the number that the new program finds it under.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: RawFd,
    pub(super) to: RawFd,
}

/// All that the child needs, in memory that the parent owns.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// `CLONE_NEW*` flags; with none of them the child keeps its id.
    pub(super) namespaces: i32,
    pub(super) empty_groups: bool,
    pub(super) go: RawFd,
    pub(super) go_write: RawFd,
    pub(super) errors: RawFd,
    pub(super) program: RawFd,
    pub(super) moves: &'a mut [Move],
    /// Above every number in `moves`.
    pub(super) first_free: RawFd,
    pub(super) arguments: &'a [*const libc::c_char],
    pub(super) environment: &'a [*const libc::c_char],
}

/// What a child can fail at. The numbers cross the pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    Groups = 1,
    Group,
    User,
    Descriptors,
    Exec,
}

impl Step {
    const ALL: [Self; 5] = [
        Self::Groups,
        Self::Group,
        Self::User,
        Self::Descriptors,
        Self::Exec,
    ];

    /// The name in an error message.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Groups => "setgroups",
            Self::Group => "setresgid",
            Self::User => "setresuid",
            Self::Descriptors => "descriptors",
            Self::Exec => "execveat",
        }
    }
}

/// Reads a report; a step number that is none of ours gives `None`.
pub(super) fn decode(report: [u8; REPORT_SIZE]) -> (Option<Step>, Errno) {
    let [a, b, c, d, e, f, g, h] = report;
    let number = u32::from_ne_bytes([a, b, c, d]);
    let step = Step::ALL.into_iter().find(|step| *step as u32 == number);
    (
        step,
        Errno::from_raw_os_error(i32::from_ne_bytes([e, f, g, h])),
    )
}

/// Clones; the child never returns from here.
pub(super) fn clone(plan: &mut Plan<'_>) -> Result<Child, Errno> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid: each field is an integer.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((libc::CLONE_PIDFD | plan.namespaces).cast_unsigned());
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    // SAFETY: without CLONE_VM the child has a copy of our memory and goes on where we are, on a
    // copy of this stack; `arguments` and `pidfd` outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    if result == 0 {
        run(plan);
    }
    if result < 0 {
        return Err(last_errno());
    }
    let pid = i32::try_from(result)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(Errno::RANGE)?;
    // SAFETY: the kernel stored a new descriptor there that nothing else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Child { pid, pidfd })
}

/// Sees to it that the exit statuses of our children are kept until somebody asks: with SIGCHLD
/// ignored, which a program inherits, the kernel reaps them itself (waitpid(2)). To be called
/// once, before the first [`super::Spawn::spawn`].
pub fn keep_exit_statuses() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// The child: all steps, or a report of the one that failed.
fn run(plan: &mut Plan<'_>) -> ! {
    if let Err(step) = become_the_program(plan) {
        // SAFETY: errno is this thread's; `report` is ours. Nothing is left to be done when the
        // write fails. _exit runs no handlers of the parent's.
        unsafe {
            let report = [step as i32, *libc::__errno_location()];
            libc::write(plan.errors, (&raw const report).cast(), REPORT_SIZE);
            libc::_exit(1);
        }
    }
    // SAFETY: as above; the parent gave no go, and says why itself.
    unsafe { libc::_exit(1) }
}

/// `Ok` means that no go came.
fn become_the_program(plan: &mut Plan<'_>) -> Result<(), Step> {
    // SAFETY: raw system calls on our own descriptors and on memory of `plan`.
    unsafe {
        // Our copy of the end that the parent writes to would keep the read from ever ending.
        libc::close(plan.go_write);
        let mut go = 0_u8;
        if libc::read(plan.go, (&raw mut go).cast(), 1) != 1 {
            return Ok(());
        }
    }
    if plan.namespaces != 0 {
        become_root_of_namespace(plan.empty_groups)?;
    }
    empty_signal_mask();
    place_descriptors(plan)?;
    // SAFETY: both lists end in a null pointer, as their strings in NUL, and live in `plan`.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            plan.program,
            c"".as_ptr(),
            plan.arguments.as_ptr(),
            plan.environment.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    Err(Step::Exec)
}

/// Takes the one id that is mapped; capabilities *in this namespace* stay until the role drops
/// them. Raw calls, since the C library's wrappers signal all threads.
fn become_root_of_namespace(empty_groups: bool) -> Result<(), Step> {
    let no_groups: *const libc::gid_t = std::ptr::null();
    // SAFETY: plain system calls; setgroups with zero groups reads nothing.
    unsafe {
        check(
            !empty_groups || libc::syscall(libc::SYS_setgroups, 0, no_groups) == 0,
            Step::Groups,
        )?;
        check(
            libc::syscall(libc::SYS_setresgid, 0, 0, 0) == 0,
            Step::Group,
        )?;
        check(libc::syscall(libc::SYS_setresuid, 0, 0, 0) == 0, Step::User)
    }
}

/// The supervisor blocks signals for its signalfd; a mask survives exec, and the role decides
/// about its own.
fn empty_signal_mask() {
    let mask: u64 = 0;
    let none: *mut u64 = std::ptr::null_mut();
    // SAFETY: the kernel's signal set is 64 bits on Linux, and it reads just that.
    unsafe {
        let set = &raw const mask;
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            set,
            none,
            size_of::<u64>(),
        );
    }
}

/// First moves everything above the wanted numbers, so that no move overwrites a source; then
/// copies each to its number; then sees to it that exec closes all the rest.
fn place_descriptors(plan: &mut Plan<'_>) -> Result<(), Step> {
    let end = plan.first_free;
    plan.errors = above(plan.errors, end)?;
    plan.program = above(plan.program, end)?;
    for entry in &mut *plan.moves {
        entry.from = above(entry.from, end)?;
    }
    for entry in &*plan.moves {
        // SAFETY: a system call on numbers; it clears CLOEXEC on the copy.
        let copied = unsafe { libc::syscall(libc::SYS_dup3, entry.from, entry.to, 0) };
        check(copied >= 0, Step::Descriptors)?;
    }
    for number in 3..end {
        if plan.moves.iter().all(|entry| entry.to != number) {
            // SAFETY: nothing in this child uses the number any more.
            unsafe { libc::close(number) };
        }
    }
    // SAFETY: a system call on numbers; ours are CLOEXEC already, a stranger's may not be.
    let marked = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            end,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    check(marked == 0, Step::Descriptors)
}

fn above(descriptor: RawFd, end: RawFd) -> Result<RawFd, Step> {
    // SAFETY: a system call on numbers.
    let copy = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, end) };
    check(copy >= 0, Step::Descriptors).map(|()| copy)
}

fn check(done: bool, step: Step) -> Result<(), Step> {
    if done { Ok(()) } else { Err(step) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_its_step_and_errno() {
        for step in Step::ALL {
            let mut report = [0; REPORT_SIZE];
            report[..4].copy_from_slice(&(step as u32).to_ne_bytes());
            report[4..].copy_from_slice(&libc::EMFILE.to_ne_bytes());
            assert_eq!(decode(report), (Some(step), Errno::MFILE));
        }
        assert_eq!(decode([9; REPORT_SIZE]).0, None);
    }
}
