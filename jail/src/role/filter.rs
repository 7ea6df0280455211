//! The last step: the seccomp filter.
#![expect(unsafe_code, reason = "seccomp(2) takes a program by pointer")]

use rustix::io::Errno;

use super::StepError;
use crate::last_errno;
use crate::policy::Program;

/// Loads `program` for this thread, which is the only one. From here on, what it does not allow
/// ends the process. [`super::no_new_privileges`] comes before.
pub fn load_filter(program: &Program) -> Result<(), StepError> {
    let fail = StepError::at("seccomp");
    let mut instructions: Vec<libc::sock_filter> = program
        .instructions()
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jump_true,
            jf: i.jump_false,
            k: i.k,
        })
        .collect();
    let len = u16::try_from(instructions.len()).map_err(|_| fail(Errno::INVAL))?;
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
            0,
            &raw const program,
        )
    };
    match loaded {
        0 => Ok(()),
        _ => Err(fail(last_errno())),
    }
}
