//! Runs a program under a seccomp filter that refuses some calls, as a container's profile does,
//! and lets all others be.
#![expect(
    unsafe_code,
    reason = "a filter is loaded between fork and exec, by a pointer to its program"
)]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// A call that is refused.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    call: libc::c_long,
    /// Only if the low half of this argument is this.
    only: Option<(u32, u32)>,
    /// Only if the low half of this argument is not 0.
    set: Option<u32>,
    errno: i32,
}

impl Refused {
    pub const fn new(call: libc::c_long, errno: i32) -> Self {
        Self {
            call,
            only: None,
            set: None,
            errno,
        }
    }

    /// Only if argument `argument` is `value`.
    pub const fn only(self, argument: u32, value: i32) -> Self {
        Self {
            only: Some((argument, value.cast_unsigned())),
            ..self
        }
    }

    /// Only if argument `argument` is not 0.
    pub const fn set(self, argument: u32) -> Self {
        Self {
            set: Some(argument),
            ..self
        }
    }

    /// The instructions for it; with the call's number not in the accumulator afterwards.
    fn instructions(&self) -> Vec<libc::sock_filter> {
        let number = u32::try_from(self.call).expect("numbers are small");
        let mut tests = vec![(NUMBER, number, true)];
        tests.extend(
            self.only
                .map(|(index, value)| (argument(index), value, true)),
        );
        tests.extend(self.set.map(|index| (argument(index), 0, false)));
        let mut left = u8::try_from(tests.len()).expect("three at most");
        let mut program = Vec::new();
        for (offset, value, equal) in tests {
            // Behind this jump: two for each further test, and the answer.
            left -= 1;
            let over = 2 * left + 1;
            let (jt, jf) = if equal { (0, over) } else { (over, 0) };
            program.push(instruction(LOAD, 0, 0, offset));
            program.push(instruction(JUMP_EQUAL, jt, jf, value));
        }
        let errno = libc::SECCOMP_RET_ERRNO | self.errno.cast_unsigned();
        program.push(instruction(RETURN, 0, 0, errno));
        program
    }
}

/// `BPF_LD | BPF_W | BPF_ABS`, `BPF_JMP | BPF_JEQ | BPF_K`, `BPF_RET | BPF_K`.
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

const fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// The command's program, and all that it starts, are refused these calls.
pub fn refuse(command: &mut Command, refused: &[Refused]) {
    let mut program: Vec<_> = refused.iter().flat_map(Refused::instructions).collect();
    program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    // SAFETY: the closure makes two system calls and allocates nothing; the program lives in it.
    unsafe { command.pre_exec(move || load(&mut program)) };
}

fn load(program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: plain system calls; the kernel copies the program, whose length is right.
    let loaded = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
            && libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            ) == 0
    };
    match loaded {
        true => Ok(()),
        false => Err(io::Error::last_os_error()),
    }
}
