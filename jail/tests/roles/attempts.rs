//! What a role tries under its real policy: forbidden system calls, and the ring's other half.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::net::{SendFlags, send};
use vudev_jail::report::SIGSYS_EXIT_STATUS;
use vudev_jail::{Arch, Embedded, SigsysReport, ring};

use crate::Test;
use crate::role::{POLICY, TAG, call, complete, tell};
use crate::support::{End, Role};

pub(crate) const TESTS: &[Test] = &[
    (
        "a_forbidden_call_ends_the_role_and_is_named",
        a_forbidden_call_ends_the_role_and_is_named,
    ),
    (
        "the_ring_refuses_what_its_list_does_not_name",
        the_ring_refuses_what_its_list_does_not_name,
    ),
    (
        "a_full_channel_does_not_keep_a_forbidden_call_alive",
        a_full_channel_is_no_way_out,
    ),
    (
        "an_abort_or_a_fault_ends_the_role_by_a_signal",
        an_abort_or_a_fault_ends_the_role_by_a_signal,
    ),
];

/// Names and harmless arguments; what is given in `args` must come back in the report.
const FORBIDDEN: [(&str, [u64; 6]); 17] = [
    ("openat", [0xffff_ff9c, 0, 0x80000, 0, 5, 6]),
    ("open", [0; 6]),
    ("socket", [1, 1, 0, 0, 0, 0]),
    ("connect", [3, 0, 0, 0, 0, 0]),
    ("execve", [0; 6]),
    ("execveat", [0; 6]),
    ("io_uring_setup", [8, 0, 0, 0, 0, 0]),
    ("io_uring_register", [4, 0, 0, 0, 0, 0]),
    ("clone", [0; 6]),
    ("clone3", [0; 6]),
    ("fork", [0; 6]),
    ("ptrace", [0; 6]),
    ("mount", [0; 6]),
    ("unshare", [0x1000_0000, 0, 0, 0, 0, 0]),
    ("mmap", [0, 4096, 5, 0x22, u64::MAX, 0]),
    ("mprotect", [0, 4096, 4 | 1 << 40, 0, 0, 0]),
    ("tgkill", [1, 1, 9, 0, 0, 0]),
];

fn a_forbidden_call_ends_the_role_and_is_named() {
    let host = Arch::HOST.unwrap();
    // `open` and `fork` are not everywhere.
    let exists = |(name, _): &(&str, _)| host.syscall_number(name).is_some();
    for (name, args) in FORBIDDEN.into_iter().filter(exists) {
        let role = Role::start("forbidden", name);
        let message = role.hear();
        assert_eq!(message.first(), Some(&TAG), "{name}: {message:?}");
        let report = SigsysReport::from_bytes(&message[1..]).unwrap();
        assert_eq!((report.name(), report.args), (Some(name), args));
        assert_ne!(report.ip, 0);
        assert!(
            report
                .to_string()
                .starts_with(&format!("{name}({:#x}, ", args[0])),
            "{report}"
        );
        assert_eq!(role.end(), End::Code(SIGSYS_EXIT_STATUS), "{name}");
    }
}

/// The role's side.
pub(crate) fn forbidden(name: &str) {
    let (_, args) = FORBIDDEN
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let number = Arch::HOST.unwrap().syscall_number(name).unwrap();
    call(number.into(), args);
}

fn the_ring_refuses_what_its_list_does_not_name() {
    let mut role = Role::start("ring", "");
    assert_eq!(role.hear_text(), "listed: 0");
    let others = role.hear_text();
    assert!(others.len() > 40 * "READ: 13\n".len(), "{others}");
    let flags = role.hear_text();
    assert_eq!(flags.lines().count(), 6, "{flags}");
    // What this kernel has not heard of is not looked up in the list.
    let unknown = format!(": -{}", libc::EINVAL);
    let known = others.trim_end().lines().rev();
    let known = known.skip_while(|line| line.ends_with(&unknown));
    let known: Vec<_> = known.chain(flags.lines()).collect();
    assert!(known.len() > 40, "{others}");
    for line in known {
        assert!(line.ends_with(&format!(": -{}", libc::EACCES)), "{line}");
    }
    assert_eq!(role.hear_text(), "ready");
    role.leave();
    assert_eq!(role.end(), End::Code(0));
}

/// The role's side: one listed operation, every one that is not, and each flag that is not.
pub(crate) fn by_ring(ring: &mut IoUring, channel: &OwnedFd) {
    let listed = ring::allow_list(POLICY, &Embedded).unwrap().opcodes;
    let writable = libc::POLLOUT.cast_unsigned().into();
    let poll = opcode::PollAdd::new(types::Fd(channel.as_raw_fd()), writable).build();
    tell(
        channel,
        &format!("listed: {}", complete(ring, &poll).min(0)),
    );

    let others = (0..=u8::MAX)
        .filter(|number| !listed.contains(number))
        .filter_map(|number| Some((ring::opcode_name(number)?, number)));
    let outcomes: String = others
        .map(|(name, number)| format!("{name}: {}\n", complete(ring, &with_opcode(number))))
        .collect();
    tell(channel, &outcomes);

    let flags = squeue::Flags::all() - squeue::Flags::SKIP_SUCCESS;
    let read = || opcode::Readv::new(types::Fd(-1), std::ptr::null(), 0).build();
    let outcomes: String = flags
        .iter()
        .map(|flag| format!("{flag:?}: {}\n", complete(ring, &read().flags(flag))))
        .collect();
    tell(channel, &outcomes);
}

/// An entry that is all zero but for its operation; the crate has a constructor only for those it
/// knows the meaning of.
fn with_opcode(number: u8) -> squeue::Entry {
    let mut bytes = [0_u8; 64];
    bytes[0] = number;
    // SAFETY: an entry is `struct io_uring_sqe`: 64 bytes of integers, the operation first. It
    // points nowhere.
    #[expect(unsafe_code, reason = "an entry of any operation")]
    unsafe {
        std::mem::transmute::<[u8; 64], squeue::Entry>(bytes)
    }
}

/// A device that fills its channel first loses its report, not its end.
fn a_full_channel_is_no_way_out() {
    let role = Role::start("full", "socket");
    assert_eq!(role.end(), End::Code(SIGSYS_EXIT_STATUS));
}

/// The role's side.
pub(crate) fn fill(channel: &OwnedFd) {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    while send(channel, &[0; 1024], flags).is_ok() {}
}

/// The kernel spares the init of a namespace its own SIGABRT; abort(3) then goes on to a fault,
/// which nothing spares it. No rule of the policy may turn either into something else.
fn an_abort_or_a_fault_ends_the_role_by_a_signal() {
    for scenario in ["abort", "fault"] {
        let role = Role::start(scenario, "");
        let end = role.end();
        // On aarch64 the fault is a breakpoint.
        let ends = [libc::SIGABRT, libc::SIGSEGV, libc::SIGILL, libc::SIGTRAP];
        let expected = ends.map(End::Signal);
        assert!(expected.contains(&end), "{scenario}: {end:?}");
    }
}

/// The role's side: reads where nothing is.
pub(crate) fn fault() {
    // SAFETY: not sound, and meant: this process is to die of it.
    #[expect(unsafe_code, reason = "a fault for a test")]
    unsafe {
        std::ptr::without_provenance::<u64>(8).read_volatile();
    }
}
