//! The handler that tells of a forbidden system call, and the mask that lets it run.
//!
//! The handler runs between any two instructions: it allocates nothing, takes no lock, and leaves
//! only by `_exit`. It is not installed with SA_NODEFER: if the report itself is forbidden, the
//! blocked SIGSYS kills the process, and the supervisor sees that.
#![expect(
    unsafe_code,
    reason = "signal handlers, and what the kernel hands to one"
)]

use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU8, Ordering};

use super::StepError;
use crate::last_errno;
use crate::report::{SIGSYS_EXIT_STATUS, SigsysReport};

static CHANNEL: AtomicI32 = AtomicI32::new(-1);
static TAG: AtomicU8 = AtomicU8::new(0);

/// From here on a system call that the filter traps is sent as `tag` and a [`SigsysReport`], one
/// message on `channel` (a socket that stays open under this number), and the process exits with
/// [`SIGSYS_EXIT_STATUS`]. When the channel is full the report is lost and the status remains.
pub(super) fn report_sigsys(channel: BorrowedFd<'_>, tag: u8) -> Result<(), StepError> {
    CHANNEL.store(channel.as_raw_fd(), Ordering::Relaxed);
    TAG.store(tag, Ordering::Relaxed);
    // SAFETY: an all-zero sigaction is valid: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handle_sigsys as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO asks for and is async-signal-safe.
    let installed = unsafe { libc::sigaction(libc::SIGSYS, &raw const action, ptr::null_mut()) };
    step(installed, "sigaction SIGSYS")
}

/// SIGSYS, SIGSEGV and SIGBUS reach their handlers: blocked, they kill without (a forced signal
/// whose signal is blocked gets its default action).
pub(super) fn unblock_fault_signals() -> Result<(), StepError> {
    // SAFETY: `set` is initialised by sigemptyset before it is read.
    let unblocked = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut())
    };
    step(unblocked, "unblock fault signals")
}

fn step(result: libc::c_int, step: &'static str) -> Result<(), StepError> {
    if result == 0 {
        Ok(())
    } else {
        Err(StepError::at(step)(last_errno()))
    }
}

/// The `_sigsys` part of `siginfo_t`, which the C library has no accessor for
/// (`include/uapi/asm-generic/siginfo.h`).
#[repr(C)]
struct SigsysInfo {
    signal: i32,
    errno: i32,
    code: i32,
    call_address: *const libc::c_void,
    syscall: i32,
    arch: u32,
}

extern "C" fn handle_sigsys(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: with SA_SIGINFO the kernel passes a siginfo_t, which for a SIGSYS of seccomp has
    // this form, and is larger than it; and a ucontext_t.
    let (info, args) = unsafe { (&*info.cast::<SigsysInfo>(), arguments(context.cast())) };
    let report = SigsysReport {
        syscall: info.syscall,
        arch: info.arch,
        ip: info.call_address.addr() as u64,
        args,
    };
    let mut message = [0; SigsysReport::SIZE + 1];
    let (tag, body) = message.split_at_mut(1);
    tag.copy_from_slice(&[TAG.load(Ordering::Relaxed)]);
    body.copy_from_slice(&report.to_bytes());
    // SAFETY: plain system calls on memory of ours; both are async-signal-safe.
    unsafe {
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let channel = CHANNEL.load(Ordering::Relaxed);
        libc::send(channel, message.as_ptr().cast(), message.len(), flags);
        libc::_exit(SIGSYS_EXIT_STATUS);
    }
}

/// The six argument registers at the trapped call.
///
/// # Safety
/// `context` is what the kernel gave to a handler.
#[cfg(target_arch = "x86_64")]
unsafe fn arguments(context: *const libc::ucontext_t) -> [u64; 6] {
    use libc::{REG_R8, REG_R9, REG_R10, REG_RDI, REG_RDX, REG_RSI};
    let register = |index: libc::c_int| {
        let index = usize::try_from(index).unwrap_or_default();
        // SAFETY: the caller's promise; the indices are below the register file's 23.
        unsafe { (*context).uc_mcontext.gregs[index].cast_unsigned() }
    };
    [REG_RDI, REG_RSI, REG_RDX, REG_R10, REG_R8, REG_R9].map(register)
}

/// As above. The first argument's register is put back before the handler runs
/// (`syscall_rollback`).
///
/// # Safety
/// `context` is what the kernel gave to a handler.
#[cfg(target_arch = "aarch64")]
unsafe fn arguments(context: *const libc::ucontext_t) -> [u64; 6] {
    // SAFETY: the caller's promise; there are 31 registers.
    std::array::from_fn(|index| unsafe { (*context).uc_mcontext.regs[index] })
}

/// As above.
///
/// # Safety
/// `context` is what the kernel gave to a handler.
#[cfg(target_arch = "arm")]
unsafe fn arguments(context: *const libc::ucontext_t) -> [u64; 6] {
    // SAFETY: the caller's promise.
    let machine = unsafe { &(*context).uc_mcontext };
    let (a, b, c) = (machine.arm_r0, machine.arm_r1, machine.arm_r2);
    let (d, e, f) = (machine.arm_r3, machine.arm_r4, machine.arm_r5);
    [a, b, c, d, e, f].map(u64::from)
}
