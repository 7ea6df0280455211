//! Classic BPF as seccomp uses it: instructions, a program, and what it answers.

use super::{Action, Call};

/// The kernel's BPF_MAXINSNS.
pub(super) const MAX_LENGTH: usize = 4096;

/// `BPF_LD | BPF_W | BPF_ABS`
pub(super) const LOAD_WORD: u16 = 0x20;
/// `BPF_JMP | BPF_JA`
pub(super) const JUMP: u16 = 0x05;
/// `BPF_RET | BPF_K`
pub(super) const RETURN: u16 = 0x06;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub(super) const TEST_EQUAL: u16 = 0x15;
/// `BPF_JMP | BPF_JGT | BPF_K`
pub(super) const TEST_GREATER: u16 = 0x25;
/// `BPF_JMP | BPF_JGE | BPF_K`
pub(super) const TEST_GREATER_OR_EQUAL: u16 = 0x35;
/// `BPF_JMP | BPF_JSET | BPF_K`
pub(super) const TEST_ANY_BIT: u16 = 0x45;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`).
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCH: u32 = 4;
const INSTRUCTION_POINTER: u32 = 8;
const ARGUMENTS: u32 = 16;

/// Offsets of an argument's low and high word; all our architectures are little-endian.
pub(super) fn argument(index: u8) -> (u32, u32) {
    let low = ARGUMENTS + 8 * u32::from(index);
    (low, low + 4)
}

/// `struct sock_filter`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when a test holds.
    pub jump_true: u8,
    /// Instructions to skip when it does not.
    pub jump_false: u8,
    /// The constant.
    pub k: u32,
}

impl Instruction {
    pub(super) fn plain(code: u16, k: u32) -> Self {
        Self {
            code,
            jump_true: 0,
            jump_false: 0,
            k,
        }
    }
}

/// A program that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramError {
    /// More than the kernel takes.
    #[error("the program has {length} instructions, more than the kernel's {MAX_LENGTH}")]
    TooLong {
        /// Its length.
        length: usize,
    },
}

/// A compiled policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    instructions: Vec<Instruction>,
}

impl Program {
    pub(super) fn new(instructions: Vec<Instruction>) -> Self {
        Self { instructions }
    }

    /// What the kernel loads.
    pub fn instructions(&self) -> &[Instruction] {
        &self.instructions
    }

    /// What the kernel would answer to `call`; `None` where it would not have loaded the program:
    /// an instruction that we never emit, a load outside the data, or no return.
    pub fn run(&self, call: &Call) -> Option<Action> {
        self.walk(call).map(|(action, _)| action)
    }

    /// How many instructions the kernel carries out for `call`; `None` as [`Self::run`].
    pub fn steps(&self, call: &Call) -> Option<usize> {
        self.walk(call).map(|(_, steps)| steps)
    }

    fn walk(&self, call: &Call) -> Option<(Action, usize)> {
        let mut accumulator = 0;
        let mut next = 0;
        // Jumps only lead on: a program ends after as many steps as it is long.
        for steps in 1.. {
            let Instruction {
                code,
                jump_true,
                jump_false,
                k,
            } = *self.instructions.get(next)?;
            next += 1;
            let holds = match code {
                LOAD_WORD => {
                    accumulator = word(call, k)?;
                    continue;
                }
                JUMP => {
                    next += k as usize;
                    continue;
                }
                RETURN => return decode(k).map(|action| (action, steps)),
                TEST_EQUAL => accumulator == k,
                TEST_GREATER => accumulator > k,
                TEST_GREATER_OR_EQUAL => accumulator >= k,
                TEST_ANY_BIT => accumulator & k != 0,
                _ => return None,
            };
            next += usize::from(if holds { jump_true } else { jump_false });
        }
        None
    }
}

/// The word of `struct seccomp_data` at an offset.
fn word(call: &Call, offset: u32) -> Option<u32> {
    if !offset.is_multiple_of(4) {
        return None;
    }
    match offset {
        NUMBER => Some(call.number),
        ARCH => Some(call.arch),
        INSTRUCTION_POINTER..ARGUMENTS => Some(0),
        _ => {
            let index = usize::try_from((offset - ARGUMENTS) / 8).ok()?;
            let shift = (offset - ARGUMENTS) % 8 * 8;
            call.args
                .get(index)
                .map(|argument| ((argument >> shift) & 0xffff_ffff) as u32)
        }
    }
}

/// `SECCOMP_RET_*`
pub(super) fn encode(action: Action) -> u32 {
    match action {
        Action::Allow => libc::SECCOMP_RET_ALLOW,
        Action::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
        Action::Trap => libc::SECCOMP_RET_TRAP,
        Action::KillThread => libc::SECCOMP_RET_KILL_THREAD,
        Action::KillProcess => libc::SECCOMP_RET_KILL_PROCESS,
        Action::Log => libc::SECCOMP_RET_LOG,
        Action::UserNotify => libc::SECCOMP_RET_USER_NOTIF,
    }
}

fn decode(value: u32) -> Option<Action> {
    let data = u16::try_from(value & libc::SECCOMP_RET_DATA).ok()?;
    match value & libc::SECCOMP_RET_ACTION_FULL {
        libc::SECCOMP_RET_ALLOW => Some(Action::Allow),
        libc::SECCOMP_RET_ERRNO => Some(Action::Errno(data)),
        libc::SECCOMP_RET_TRAP => Some(Action::Trap),
        libc::SECCOMP_RET_KILL_THREAD => Some(Action::KillThread),
        libc::SECCOMP_RET_KILL_PROCESS => Some(Action::KillProcess),
        libc::SECCOMP_RET_LOG => Some(Action::Log),
        libc::SECCOMP_RET_USER_NOTIF => Some(Action::UserNotify),
        _ => None,
    }
}
