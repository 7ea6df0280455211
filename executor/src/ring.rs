//! The kernel's ring: how it is made and restricted, and the one system call of the loop. The only
//! file that names a submission entry.

use std::io;
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use libc::iovec;

use crate::completion::Completion;
use crate::operation::Operation;
use crate::registered::Registered;

/// Slots kept for sessions, stop and kicks, unless a [`Config`] says otherwise: a device that fills
/// its own slots must still hear a stop and a `GET_VRING_BASE`.
const RESERVED_DEFAULT: u32 = 64;

/// The most slots a ring may have: the kernel refuses more than 32768 entries, and the submission
/// queue has two for each slot.
pub const SLOTS_MAX: u32 = 16384;

/// How a [`Ring`] is made.
#[derive(Clone, Debug)]
pub struct Config {
    /// How many operations a device may have in flight; further ones wait for a slot.
    pub operations: u32,
    /// Slots beyond these, for sessions, stop and kicks only.
    pub reserved: u32,
    /// What the ring accepts once enabled; `None` is everything.
    pub allowed: Option<Allowed>,
}

/// The ring's half of a device's policy: seccomp does not see what a ring does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// `IORING_OP_*` numbers.
    pub opcodes: Vec<u8>,
    /// `IOSQE_*` bits an entry may carry.
    pub flags: u8,
}

impl Config {
    /// A ring for `operations` in flight, with the usual reserve and no restriction.
    pub fn new(operations: u32) -> Self {
        Self {
            operations,
            reserved: RESERVED_DEFAULT,
            allowed: None,
        }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.operations.saturating_add(self.reserved)
    }
}

/// Why there is no ring. The message names the likely cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RingError {
    /// The kernel has no io_uring.
    #[error("io_uring is not available: the kernel was built without it or is older than 5.1")]
    Missing(#[source] io::Error),
    /// Something forbids it.
    #[error(
        "io_uring is forbidden: see `sysctl kernel.io_uring_disabled` (0 allows it), or the \
         seccomp profile of the container this runs in"
    )]
    Forbidden(#[source] io::Error),
    /// The kernel does not know a flag.
    #[error("io_uring lacks what this needs: the kernel is older than 6.1")]
    TooOld(#[source] io::Error),
    /// Memory, or the limit of locked memory, as which many kernels count all rings of a user.
    #[error(
        "no memory for a ring of {slots} operations: raise the limit of locked memory (ulimit -l)"
    )]
    NoMemory {
        /// What was asked for.
        slots: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// More operations than a ring can have.
    #[error("{slots} operations in flight are more than a ring can have ({SLOTS_MAX})")]
    TooMany {
        /// What was asked for.
        slots: u32,
    },
    /// Anything else.
    #[error("the ring could not be made: {0}")]
    Other(#[source] io::Error),
}

impl RingError {
    pub(crate) fn new(error: io::Error, slots: u32) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSYS) => Self::Missing(error),
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden(error),
            Some(libc::EINVAL) => Self::TooOld(error),
            Some(libc::ENOMEM) => Self::NoMemory {
                slots,
                source: error,
            },
            _ => Self::Other(error),
        }
    }
}

/// An io_uring that only one task, the one that enables it, may use. Made disabled, so that it can
/// be restricted before it does anything.
pub struct Ring {
    uring: IoUring,
    operations: u32,
    reserved: u32,
    plain: Plain,
    /// Whether the last enter has found nothing behind the kernel's word that there is something.
    found_nothing: bool,
}

/// Whether what has one piece may go as a plain read or write: the kernel then need not fetch a
/// list of pieces, which is a twelfth of a cached read; and whether registered memory may be used.
#[derive(Clone, Copy)]
struct Plain {
    read: bool,
    write: bool,
    registered: bool,
}

impl Plain {
    /// As far as the ring allows it.
    fn new(allowed: Option<&Allowed>) -> Self {
        let may = |opcode| allowed.is_none_or(|allowed| allowed.opcodes.contains(&opcode));
        Self {
            read: may(opcode::Read::CODE),
            write: may(opcode::Write::CODE),
            registered: may(opcode::ReadFixed::CODE) && may(opcode::WriteFixed::CODE),
        }
    }
}

/// `user_data` of entries that own no slot.
pub(crate) const NO_SLOT: u64 = u64::MAX;

impl Ring {
    /// Makes a disabled ring and registers its allow-list.
    ///
    /// # Errors
    ///
    /// [`RingError`], with the likely cause.
    pub fn new(config: &Config) -> Result<Self, RingError> {
        let slots = config.slots();
        if slots > SLOTS_MAX {
            return Err(RingError::TooMany { slots });
        }
        // Completions: one for each slot, one for each cancel that fails, and room for a multishot
        // poll to complete more than once between two turns. More than that overflows, and is
        // flushed by the kernel on the next enter.
        // A slot submits at most its operation and its cancel in one turn.
        let slots = slots.next_power_of_two();
        Self::with_entries(config, slots * 2, slots * 4)
    }

    /// As [`Ring::new`], with queues of the given sizes: tests make them overflow.
    pub(crate) fn with_entries(
        config: &Config,
        submissions: u32,
        completions: u32,
    ) -> Result<Self, RingError> {
        let slots = config.slots();
        let uring = IoUring::builder()
            .setup_r_disabled()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions)
            .build(submissions)
            .map_err(|error| RingError::new(error, slots))?;
        if let Some(allowed) = &config.allowed {
            let mut restrictions: Vec<_> = allowed
                .opcodes
                .iter()
                .map(|&opcode| Restriction::sqe_op(opcode))
                .collect();
            restrictions.push(Restriction::sqe_flags_allowed(allowed.flags));
            // No registration is listed: once enabled, the ring refuses every one.
            uring
                .submitter()
                .register_restrictions(&mut restrictions)
                .map_err(|error| RingError::new(error, slots))?;
        }
        Ok(Self {
            uring,
            operations: config.operations,
            reserved: config.reserved,
            plain: Plain::new(config.allowed.as_ref()),
            found_nothing: false,
        })
    }

    /// [`Config::operations`] and [`Config::reserved`].
    pub(crate) fn slots(&self) -> (u32, u32) {
        (self.operations, self.reserved)
    }

    /// Pins `memory` and has the ring know it. Needs `io_uring_register`, and a restricted ring
    /// takes none once it is enabled.
    pub(crate) fn register(&self, memory: &Registered) -> io::Result<()> {
        if !self.plain.registered {
            return Err(io::Error::from_raw_os_error(libc::EACCES));
        }
        let submitter = self.uring.submitter();
        // SAFETY: the kernel holds the pages, and touches them only for an operation on a part of
        // them, whose owner holds the memory.
        #[expect(unsafe_code, reason = "registers memory with the kernel")]
        unsafe {
            submitter.register_buffers(&[memory.whole()])
        }
    }

    /// Ties the ring to the calling task. Needs `io_uring_register`, so it comes before seccomp.
    pub(crate) fn enable(&self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()
    }

    /// Queues `operation`; `false` when the queue is full and the kernel would not take any.
    ///
    /// # Safety
    ///
    /// What `operation` points at must stay valid until its last completion is reaped.
    #[expect(unsafe_code, reason = "hands pointers to the kernel")]
    pub(crate) unsafe fn push(&mut self, user_data: u64, operation: &Operation) -> bool {
        if !self.has_room() {
            return false;
        }
        // SAFETY: the caller's contract is that of both.
        unsafe {
            self.push_plain(user_data, operation)
                .unwrap_or_else(|| self.push_entry(&entry(operation).user_data(user_data)))
        }
    }

    /// Queues the cancellation of `user_data`; `false` as [`Ring::push`].
    pub(crate) fn cancel(&mut self, user_data: u64) -> bool {
        // A cancel that finds its operation says so by the operation's own completion.
        let entry = opcode::AsyncCancel::new(user_data)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(NO_SLOT);
        // SAFETY: a cancel points at nothing.
        #[expect(unsafe_code, reason = "pushes an entry without pointers")]
        unsafe {
            self.has_room() && self.push_entry(&entry)
        }
    }

    /// Whether an entry can be pushed.
    #[inline]
    fn has_room(&mut self) -> bool {
        !self.uring.submission().is_full() || self.makes_room()
    }

    #[cold]
    fn makes_room(&mut self) -> bool {
        // Only when a turn has very much to do, or an earlier enter took nothing; a second refusal
        // is the caller's to wait out.
        let _ = self.uring.submit();
        !self.uring.submission().is_full()
    }

    // It is inlined so that the entry is made where it belongs: a copy of what was written a moment
    // before in other pieces has to wait for them.
    #[expect(unsafe_code, reason = "hands pointers to the kernel")]
    #[inline(always)]
    unsafe fn push_entry(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller keeps what the entry points at.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// A vectored operation as one on registered memory or as a plain one, if it has one piece and
    /// may be.
    ///
    /// # Safety
    ///
    /// What `operation` points at is valid, and stays so.
    #[expect(unsafe_code, reason = "reads what the kernel would")]
    #[inline]
    unsafe fn push_plain(&mut self, user_data: u64, operation: &Operation) -> Option<bool> {
        let (fd, pieces, offset, registered, is_read) = match *operation {
            Operation::ReadVectored {
                fd,
                pieces,
                count: 1,
                offset,
                registered,
            } if self.plain.read || registered => (Fd(fd), pieces, offset, registered, true),
            Operation::WriteVectored {
                fd,
                pieces,
                count: 1,
                offset,
                registered,
            } if self.plain.write || registered => (Fd(fd), pieces, offset, registered, false),
            _ => return None,
        };
        // SAFETY: there is one piece; the caller's contract.
        let iovec { iov_base, iov_len } = unsafe { *pieces };
        let (start, len) = (iov_base.cast::<u8>(), u32::try_from(iov_len).ok()?);
        macro_rules! push {
            ($opcode:ident, $($argument:expr),*) => {{
                let entry = opcode::$opcode::new(fd, start, len $(, $argument)*).offset(offset);
                // SAFETY: the caller's contract.
                unsafe { self.push_entry(&entry.build().user_data(user_data)) }
            }};
        }
        Some(match (is_read, registered) {
            (true, true) => push!(ReadFixed, REGISTERED),
            (true, false) => push!(Read,),
            (false, true) => push!(WriteFixed, REGISTERED),
            (false, false) => push!(Write,),
        })
    }

    /// Submits what is queued and, unless `wait` is zero, sleeps until a completion or the timeout.
    #[inline]
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let entered = match wait {
            None => self.enter_for(1),
            Some(Duration::ZERO) => self.enter_for(0),
            Some(limit) => {
                let limit = Timespec::from(limit);
                let arguments = SubmitArgs::new().timespec(&limit);
                self.uring.submitter().submit_with_args(1, &arguments)
            }
        };
        // The kernel holds a completion back first and says so then. An enter between the two takes
        // it, and the word stands, for nothing, until there is another.
        self.found_nothing = self.uring.submission().taskrun() && !self.has_completed();
        match entered {
            Ok(_) => Ok(()),
            // A timeout, a signal, or a full completion queue: reaping is the answer to each.
            Err(e)
                if matches!(
                    e.raw_os_error(),
                    Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    /// With GETEVENTS even if it waits for nothing: with DEFER_TASKRUN completions run only in such
    /// a call.
    #[expect(
        unsafe_code,
        reason = "the enter without waiting, which the crate has no safe call for"
    )]
    #[inline]
    fn enter_for(&mut self, completions: u32) -> io::Result<usize> {
        let staged = self.uring.submission().len();
        let staged = u32::try_from(staged).unwrap_or(u32::MAX);
        // SAFETY: no argument is passed.
        unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(
                staged,
                completions,
                EnterFlags::GETEVENTS.bits(),
                None,
            )
        }
    }

    /// The oldest of the completions that are there.
    #[inline]
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        self.uring.completion().next().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
        })
    }

    /// Whether an enter would do something without waiting: entries to submit, completions held
    /// back for this task, or completions that did not fit.
    pub(crate) fn wants_enter(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Whether there is something to do without waiting: for an enter, the kernel's word that was
    /// for nothing aside, or to be reaped.
    pub(crate) fn is_due(&mut self) -> bool {
        let submission = self.uring.submission();
        let held_back = submission.taskrun() && !self.found_nothing;
        let enters = held_back || !submission.is_empty() || submission.cq_overflow();
        drop(submission);
        enters || self.has_completed()
    }

    /// Whether completions are there to be reaped.
    fn has_completed(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Whether completions wait in the kernel for room.
    pub(crate) fn overflown(&mut self) -> bool {
        self.uring.submission().cq_overflow()
    }
}

/// The opcodes this crate ever submits: what an allow-list must choose from.
pub const OPCODES: &[u8] = &[
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::ReadFixed::CODE,
    opcode::WriteFixed::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::PollAdd::CODE,
    opcode::Accept::CODE,
    opcode::RecvMsg::CODE,
    opcode::SendMsg::CODE,
    opcode::Shutdown::CODE,
    opcode::AsyncCancel::CODE,
];

/// What a ring's one registration is called.
const REGISTERED: u16 = 0;

fn entry(operation: &Operation) -> squeue::Entry {
    match *operation {
        Operation::ReadVectored {
            fd,
            pieces,
            count,
            offset,
            registered: _,
        } => opcode::Readv::new(Fd(fd), pieces, count)
            .offset(offset)
            .build(),
        Operation::WriteVectored {
            fd,
            pieces,
            count,
            offset,
            registered: _,
        } => opcode::Writev::new(Fd(fd), pieces, count)
            .offset(offset)
            .build(),
        Operation::Sync { fd, data_only } => {
            let flags = if data_only {
                FsyncFlags::DATASYNC
            } else {
                FsyncFlags::empty()
            };
            opcode::Fsync::new(Fd(fd)).flags(flags).build()
        }
        Operation::Allocate {
            fd,
            mode,
            offset,
            len,
        } => opcode::Fallocate::new(Fd(fd), len)
            .offset(offset)
            .mode(mode)
            .build(),
        Operation::Poll {
            fd,
            events,
            multishot,
        } => opcode::PollAdd::new(Fd(fd), events)
            .multi(multishot)
            .build(),
        Operation::Accept { fd } => {
            opcode::Accept::new(Fd(fd), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC)
                .build()
        }
        Operation::ReceiveMessage { fd, header, flags } => {
            opcode::RecvMsg::new(Fd(fd), header).flags(flags).build()
        }
        Operation::SendMessage { fd, header, flags } => {
            opcode::SendMsg::new(Fd(fd), header).flags(flags).build()
        }
        Operation::Shutdown { fd, how } => opcode::Shutdown::new(Fd(fd), how).build(),
    }
}

#[cfg(test)]
impl Ring {
    /// Says in the kernel's place that it holds completions back, which stands until it does so.
    #[expect(unsafe_code, reason = "writes where only the kernel does")]
    pub(crate) fn say_held_back(&self) {
        use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
        use std::ptr;
        use std::sync::atomic::{AtomicU32, Ordering};

        /// Words of `io_uring_params`, and which of them is `sq_off.flags`.
        const PARAMETERS: usize = 30;
        const FLAGS_OFFSET: usize = 14;
        /// `IORING_SQ_TASKRUN`.
        const TASKRUN: u32 = 1 << 2;
        const PAGE: usize = 4096;
        // Another ring tells where all have their flags.
        let mut parameters = [0_u32; PARAMETERS];
        // SAFETY: `parameters` is as long as the structure, and all zeros are valid.
        let other = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, &raw mut parameters) };
        let other = i32::try_from(other).expect("a descriptor");
        // SAFETY: it is new, and nobody else's.
        drop(unsafe { OwnedFd::from_raw_fd(other) });
        let offset = parameters[FLAGS_OFFSET] as usize;
        assert!(offset > 0 && offset.is_multiple_of(4) && offset < PAGE);
        let (access, ring) = (libc::PROT_READ | libc::PROT_WRITE, self.uring.as_raw_fd());
        // SAFETY: a new mapping, of the page that begins the ring's; the word is in it, aligned,
        // and the kernel's accesses are atomic too.
        unsafe {
            let page = libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_SHARED, ring, 0);
            assert_ne!(page, libc::MAP_FAILED);
            AtomicU32::from_ptr(page.byte_add(offset).cast()).fetch_or(TASKRUN, Ordering::SeqCst);
            libc::munmap(page, PAGE);
        }
    }
}
