//! The architectures a policy can be compiled for: numbers and names of their system calls.

use std::fmt;
use std::str::FromStr;

use syscalls::{aarch64, arm, x86_64};

/// An architecture, by the name that its compiler has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86; the x32 calls, which share its `AUDIT_ARCH`, are refused by every program.
    X86_64,
    /// 64-bit Arm.
    Aarch64,
    /// 32-bit Arm (EABI).
    Arm,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::X86_64, Self::Aarch64, Self::Arm];

    /// What this program runs on, if it is one of them.
    pub const HOST: Option<Self> = if cfg!(target_arch = "x86_64") {
        Some(Self::X86_64)
    } else if cfg!(target_arch = "aarch64") {
        Some(Self::Aarch64)
    } else if cfg!(target_arch = "arm") {
        Some(Self::Arm)
    } else {
        None
    };

    /// Its name, which is the directory of its policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
            Self::Arm => "arm",
        }
    }

    /// Its name with the kernel where that is another; minijail's, in `[arch=…]`.
    pub(super) fn other_name(self) -> Option<&'static str> {
        match self {
            Self::Aarch64 => Some("arm64"),
            Self::X86_64 | Self::Arm => None,
        }
    }

    /// `AUDIT_ARCH_*` (`linux/audit.h`): the ELF machine, 64-bit and little-endian marks.
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
        }
    }

    /// The inverse of [`Self::audit`].
    pub fn from_audit(audit: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.audit() == audit)
    }

    /// Bits of a system call's argument.
    pub(super) fn bits(self) -> u32 {
        match self {
            Self::X86_64 | Self::Aarch64 => 64,
            Self::Arm => 32,
        }
    }

    /// The greatest argument.
    pub(super) fn word_mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }

    /// First number that is of another calling convention under the same `AUDIT_ARCH`.
    pub(super) fn foreign_numbers(self) -> Option<u32> {
        match self {
            // __X32_SYSCALL_BIT
            Self::X86_64 => Some(0x4000_0000),
            Self::Aarch64 | Self::Arm => None,
        }
    }

    /// The number of a call by name.
    pub fn syscall_number(self, name: &str) -> Option<u32> {
        let number = match self {
            Self::X86_64 => x86_64::Sysno::from_str(name).ok().map(|call| call.id()),
            Self::Aarch64 => aarch64::Sysno::from_str(match name {
                NEWFSTATAT => FSTATAT,
                FSTATAT => return None,
                name => name,
            })
            .ok()
            .map(|call| call.id()),
            Self::Arm => arm::Sysno::from_str(name).ok().map(|call| call.id()),
        };
        number.and_then(|number| u32::try_from(number).ok())
    }

    /// The names of all calls that every process may make; not those that arm has beside them.
    pub(super) fn syscall_names(self) -> impl Iterator<Item = &'static str> {
        (0..SYSCALLS_END).filter_map(move |number| self.syscall_name(number))
    }

    /// The name of a call by number.
    pub fn syscall_name(self, number: u32) -> Option<&'static str> {
        let number = usize::try_from(number).ok()?;
        match self {
            Self::X86_64 => x86_64::Sysno::new(number).map(|call| call.name()),
            Self::Aarch64 => match aarch64::Sysno::new(number)?.name() {
                FSTATAT => Some(NEWFSTATAT),
                name => Some(name),
            },
            Self::Arm => arm::Sysno::new(number).map(|call| call.name()),
        }
    }
}

/// Above every number in the kernel's tables.
const SYSCALLS_END: u32 = 1024;

/// The kernel's name of a call on aarch64 (`__NR_newfstatat`), and what `syscalls` has instead.
const NEWFSTATAT: &str = "newfstatat";
const FSTATAT: &str = "fstatat";

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_have_the_names_that_the_kernel_gave_them() {
        assert_eq!(Arch::Aarch64.syscall_number("newfstatat"), Some(79));
        assert_eq!(Arch::Aarch64.syscall_name(79), Some("newfstatat"));
        assert_eq!(Arch::Aarch64.syscall_number("fstatat"), None);
        assert_eq!(Arch::X86_64.syscall_number("newfstatat"), Some(262));
    }
}
