//! The last step: the seccomp filter, and whom it tells.
#![expect(
    unsafe_code,
    reason = "seccomp(2) takes a program by pointer and gives a descriptor by number"
)]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::StepError;
use crate::denials::{HAND_OVER_FLAGS, HANDED_OVER};
use crate::last_errno;
use crate::policy::{Action, Arch, Call, Program};

pub(super) const STEP: &str = "seccomp";
pub(crate) const STEP_LISTENER: &str = "seccomp with a listener";

/// Loads `program` for this thread, which is the only one. From here on, what it does not allow
/// ends the process. `no_new_privileges` comes before.
pub(super) fn load_filter(program: &Program) -> Result<(), StepError> {
    let loaded = load(&mut instructions(program), 0).map_err(StepError::at(STEP))?;
    assert_eq!(loaded, 0, "seccomp(2) gives a number only for a listener");
    Ok(())
}

/// Loads `program` with each of its traps turned into a notification, and sends the listener up
/// `channel`, in a packet of `tag` alone. From here on each call that the program traps waits for
/// what the reader of the listener says ([`crate::listener`]).
///
/// The program is one that [`crate::Denials::Notify`] was applied to, for this channel: between
/// the filter and the listener's arrival a denied call would wait for nobody, so the only call
/// that is made there is the `sendmsg` that this allows.
pub(super) fn load_filter_and_listen(
    program: &Program,
    channel: BorrowedFd<'_>,
    tag: u8,
) -> Result<(), StepError> {
    if !hands_over(program, channel) {
        return Err(StepError::at(STEP_LISTENER)(Errno::INVAL));
    }
    let mut instructions = instructions(program);
    for instruction in &mut instructions {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRAP {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    let number = load(&mut instructions, flags).map_err(StepError::at(STEP_LISTENER))?;
    // SAFETY: new, and open until the end of this function.
    let descriptors = [unsafe { BorrowedFd::borrow_raw(number) }];
    control.push(SendAncillaryMessage::ScmRights(&descriptors));
    let flags = SendFlags::from_bits_retain(HAND_OVER_FLAGS.cast_unsigned());
    let sent = rustix::net::sendmsg(channel, &[IoSlice::new(&[tag])], &mut control, flags);
    // SAFETY: nobody else's, and not used again. As an owned value it would be closed without the
    // mark, and in debug builds looked at before.
    unsafe { libc::syscall(libc::SYS_close, number, HANDED_OVER) };
    sent.map_err(StepError::at("send the listener"))?;
    Ok(())
}

/// Whether the one call that is made before anybody reads the listener is allowed: it would wait
/// for ever otherwise.
fn hands_over(program: &Program, channel: BorrowedFd<'_>) -> bool {
    let Some(arch) = Arch::HOST else { return false };
    let Some(number) = arch.syscall_number("sendmsg") else {
        return false;
    };
    let word = |value: i32| u64::from(value.cast_unsigned());
    let mut args = [0; 6];
    args[0] = word(channel.as_raw_fd());
    args[2] = word(HAND_OVER_FLAGS);
    let call = Call {
        number,
        arch: arch.audit(),
        args,
    };
    program.run(&call) == Some(Action::Allow)
}

/// `BPF_RET | BPF_K`
const RETURN: u16 = 0x06;

fn instructions(program: &Program) -> Vec<libc::sock_filter> {
    program
        .instructions()
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.k,
        })
        .collect()
}

/// What seccomp(2) gives: 0, or the listener.
fn load(instructions: &mut [libc::sock_filter], flags: libc::c_ulong) -> Result<RawFd, Errno> {
    let len = u16::try_from(instructions.len()).map_err(|_| Errno::INVAL)?;
    let program = libc::sock_fprog {
        len,
        filter: instructions.as_mut_ptr(),
    };
    // SAFETY: `program` points at `len` instructions that live through the call; the kernel copies
    // and checks them.
    let loaded = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    match RawFd::try_from(loaded) {
        Ok(number @ 0..) => Ok(number),
        _ => Err(last_errno()),
    }
}
