//! The report of a forbidden system call: what a role's handler sends, and how its supervisor
//! reads it. A supervisor does not believe a device: any bytes parse, and print harmlessly.

use std::fmt;

use crate::policy::Arch;

/// Exit status of a role that its seccomp policy ended: 128 + SIGSYS, as a shell would say it.
pub const SIGSYS_EXIT_STATUS: i32 = 128 + libc::SIGSYS;

/// A system call that the policy does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigsysReport {
    /// Its number, in the numbering of `arch`.
    pub syscall: i32,
    /// `AUDIT_ARCH_*`.
    pub arch: u32,
    /// The instruction after the call.
    pub ip: u64,
    /// The argument registers; how many of them mean something depends on the call.
    pub args: [u64; 6],
}

impl SigsysReport {
    /// Bytes of a report, without the tag before it.
    pub const SIZE: usize = 64;

    /// Fixed layout, native byte order: syscall, arch, ip, args. Async-signal-safe.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let (numbers, words) = bytes.split_at_mut(8);
        let (syscall, arch) = numbers.split_at_mut(4);
        syscall.copy_from_slice(&self.syscall.to_ne_bytes());
        arch.copy_from_slice(&self.arch.to_ne_bytes());
        for (chunk, word) in words
            .chunks_exact_mut(8)
            .zip([self.ip].iter().chain(&self.args))
        {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// `None` for any other length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::SIZE] = bytes.try_into().ok()?;
        let (numbers, words) = bytes.split_at(8);
        let (syscall, arch) = numbers.split_at(4);
        let mut words = words
            .chunks_exact(8)
            .filter_map(|chunk| chunk.try_into().ok());
        let mut word = || words.next().map(u64::from_ne_bytes);
        Some(Self {
            syscall: i32::from_ne_bytes(syscall.try_into().ok()?),
            arch: u32::from_ne_bytes(arch.try_into().ok()?),
            ip: word()?,
            args: [word()?, word()?, word()?, word()?, word()?, word()?],
        })
    }

    /// The call's name, if `arch` is one that we have policies for.
    pub fn name(&self) -> Option<&'static str> {
        let number = u32::try_from(self.syscall).ok()?;
        Arch::from_audit(self.arch)?.syscall_name(number)
    }
}

impl fmt::Display for SigsysReport {
    /// `openat(0xffffff9c, 0x7f0010, 0x80000, 0x0, 0x0, 0x0) at 0x7f2a40`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name)?,
            None => write!(
                f,
                "system call {} of architecture {:#x}",
                self.syscall, self.arch
            )?,
        }
        let [a, b, c, d, e, g] = self.args;
        write!(
            f,
            "({a:#x}, {b:#x}, {c:#x}, {d:#x}, {e:#x}, {g:#x}) at {:#x}",
            self.ip
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: SigsysReport = SigsysReport {
        syscall: 257,
        arch: 0xc000_003e,
        ip: 0x7f00_1234,
        args: [0xffff_ff9c, 2, 3, 4, 5, u64::MAX],
    };

    #[test]
    fn a_report_survives_the_wire_and_names_the_call() {
        let bytes = REPORT.to_bytes();
        assert_eq!(SigsysReport::from_bytes(&bytes), Some(REPORT));
        assert_eq!(
            REPORT.to_string(),
            "openat(0xffffff9c, 0x2, 0x3, 0x4, 0x5, 0xffffffffffffffff) at 0x7f001234"
        );
    }

    #[test]
    fn nonsense_from_a_device_parses_or_is_refused_but_never_panics() {
        assert_eq!(SigsysReport::from_bytes(&[0; 63]), None);
        assert_eq!(SigsysReport::from_bytes(&[0; 65]), None);
        let nonsense = SigsysReport::from_bytes(&[0xff; 64]).unwrap();
        assert!(
            nonsense
                .to_string()
                .starts_with("system call -1 of architecture 0xffffffff(")
        );
        let x32 = SigsysReport {
            syscall: 0x4000_0001,
            ..REPORT
        };
        assert_eq!(x32.name(), None);
    }
}
