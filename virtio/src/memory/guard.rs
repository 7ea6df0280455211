//! The SIGBUS guard: what happens when a file behind guest memory shrinks after it was mapped. Not
//! a crash handler: faults outside guest memory take the way they took before.
//!
//! An access beyond the end of a file kills a process with SIGBUS, so a front-end could kill its
//! back-end with one `ftruncate`. The handler maps a page of zeros where the fault was and marks
//! the region lost; the access is tried again, reads zeros, and the queue finds out at its next
//! look. What the kernel itself copies needs no guard: a system call gets EFAULT there.
//!
//! The table is static and lock-free because a signal handler reads it. Its system calls are
//! `mmap(MAP_FIXED | MAP_ANONYMOUS)` without `PROT_EXEC`, and, for a fault that is not ours,
//! `rt_sigaction` to bring back the former action: a policy must allow both.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence};

/// How many mappings can be watched at once, in the whole process: the 512 regions that one memory
/// table may have, the table that takes its place, and as much again for an embedder's sessions.
const WATCHED_MAX: usize = 2048;

const FREE: usize = 0;
const BEING_WRITTEN: usize = usize::MAX;

struct Slot {
    /// First byte of the mapping, or `FREE`, or `BEING_WRITTEN`.
    start: AtomicUsize,
    end: AtomicUsize,
    page_bytes: AtomicUsize,
    lost: AtomicBool,
}

static WATCHED: [Slot; WATCHED_MAX] = [const {
    Slot {
        start: AtomicUsize::new(FREE),
        end: AtomicUsize::new(0),
        page_bytes: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; WATCHED_MAX];

/// How many pages were ever lost in this process: 0 spares everyone the look at the regions.
static PAGES_LOST: AtomicUsize = AtomicUsize::new(0);

/// The action that was in place before ours.
static FORMER: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

static INSTALL: Once = Once::new();

/// Installs the handler, once a process; later calls do nothing. Before a syscall filter closes,
/// and after any other handler of SIGBUS, which then still gets the faults that are not ours.
///
/// # Errors
///
/// What `sigaction(2)` says.
pub fn install_sigbus_guard() -> io::Result<()> {
    let mut result = Ok(());
    INSTALL.call_once(|| result = install());
    result
}

/// A mapping under watch, until dropped.
#[derive(Debug)]
pub(super) struct Watched(usize);

impl Watched {
    /// Watches `start..end`, made of pages of `page_bytes`; `None` when the table is full.
    pub(super) fn new(start: usize, end: usize, page_bytes: usize) -> Option<Self> {
        let free = |slot: &Slot| {
            slot.start
                .compare_exchange(FREE, BEING_WRITTEN, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        };
        let index = WATCHED.iter().position(free)?;
        let slot = &WATCHED[index];
        slot.end.store(end, Ordering::Relaxed);
        slot.page_bytes.store(page_bytes, Ordering::Relaxed);
        slot.lost.store(false, Ordering::Relaxed);
        slot.start.store(start, Ordering::Release);
        Some(Self(index))
    }

    pub(super) fn is_lost(&self) -> bool {
        any_lost() && WATCHED[self.0].lost.load(Ordering::Relaxed)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED[self.0].start.store(FREE, Ordering::Release);
    }
}

/// Whether any mapping of this process ever lost a page.
#[inline]
pub(super) fn any_lost() -> bool {
    // What this thread has read of guest memory so far was read before: the signal comes with it.
    compiler_fence(Ordering::SeqCst);
    PAGES_LOST.load(Ordering::Relaxed) != 0
}

#[expect(unsafe_code, reason = "a signal handler is installed by sigaction(2)")]
fn install() -> io::Result<()> {
    let mut former = Box::new(MaybeUninit::<libc::sigaction>::zeroed());
    // SAFETY: both structures are valid for the call, all zeros is a valid `sigaction`, and the
    // handler has the signature that SA_SIGINFO asks for. The box is leaked below, so the handler
    // can read it for ever.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = on_sigbus as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // The former action is known before ours can run.
        if libc::sigaction(libc::SIGBUS, ptr::null(), former.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        FORMER.store(Box::into_raw(former).cast(), Ordering::Release);
        if libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a signal handler: raw pointers from the kernel")]
extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a valid `siginfo_t` to an SA_SIGINFO handler; errno is this
    // thread's, and is put back so that the interrupted code never sees a change.
    unsafe {
        let errno = *libc::__errno_location();
        let sent_by_kernel = (*info).si_code > 0;
        let address = (*info).si_addr() as usize;
        if !(sent_by_kernel && replace_page(address)) {
            // The access is tried again and faults again, now under the former action. What
            // somebody sent by `kill` does not come again by itself.
            libc::sigaction(signal, FORMER.load(Ordering::Acquire), ptr::null_mut());
            if !sent_by_kernel {
                libc::raise(signal);
            }
        }
        *libc::__errno_location() = errno;
    }
}

/// Puts a page of zeros where `address` faulted, if it lies in a watched mapping.
#[expect(unsafe_code, reason = "mmap(MAP_FIXED) over a page of our own mapping")]
fn replace_page(address: usize) -> bool {
    let holds = |slot: &&Slot| {
        let start = slot.start.load(Ordering::Acquire);
        start != FREE
            && start != BEING_WRITTEN
            && (start..slot.end.load(Ordering::Relaxed)).contains(&address)
            && slot.start.load(Ordering::Relaxed) == start
    };
    let Some(slot) = WATCHED.iter().find(holds) else {
        return false;
    };
    let page_bytes = slot.page_bytes.load(Ordering::Relaxed);
    // SAFETY: the page lies within a mapping that `Watched`'s owner made and keeps; its bounds
    // and alignment are those of whole pages, so nothing else is replaced. Guest memory may change
    // at any time by the guest's own hand, so no reference of ours sees bytes change that it
    // believed constant.
    let page = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(address & !(page_bytes - 1)),
            page_bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return false;
    }
    slot.lost.store(true, Ordering::Relaxed);
    PAGES_LOST.fetch_add(1, Ordering::Relaxed);
    true
}
