//! The one device with an ioctl: which it may be.

use vudev_jail::policy::{Arch, Call};

use crate::table::{VARIANTS, programs};

/// TUNSETOFFLOAD, whose argument is checked, and TUNSETQUEUE.
const SET_OFFLOAD: u64 = 0x4004_54d0;
const SET_QUEUE: u64 = 0x4004_54d9;

/// What else a tap can be asked: TUNSETIFF, TUNSETPERSIST, TUNSETOWNER, TUNSETLINK, TUNSETGROUP,
/// TUNSETTXFILTER, TUNATTACHFILTER, TUNSETSNDBUF, TUNSETVNETHDRSZ, TUNSETSTEERINGEBPF; and what
/// every descriptor can: FIOASYNC, FIONBIO, TIOCSTI.
const OTHERS: [u64; 13] = [
    0x4004_54ca,
    0x4004_54cb,
    0x4004_54cc,
    0x4004_54cd,
    0x4004_54ce,
    0x4004_54d1,
    0x4010_54d5,
    0x4004_54d4,
    0x4004_54d8,
    0x8004_54e0,
    0x5452,
    0x5421,
    0x5412,
];

#[test]
fn a_network_card_asks_its_tap_for_offloads_and_queues_and_for_nothing_else() {
    let mut seen = 0;
    for (file, arch, program) in programs() {
        if !file.contains("/net_device") {
            continue;
        }
        seen += 1;
        let number = arch.syscall_number("ioctl").expect("everywhere");
        let audit = arch.audit();
        let permits = |request, argument| {
            let call = Call {
                number,
                arch: audit,
                args: [7, request, argument, 0, 0, 0],
            };
            program.run(&call).is_some_and(|action| action.permits())
        };
        for flags in [0, 1, 0x7f] {
            assert!(permits(SET_OFFLOAD, flags), "{file}: {flags:#x}");
        }
        for flags in [0x80, 0xff, 0xffff_ffff] {
            assert!(!permits(SET_OFFLOAD, flags), "{file}: {flags:#x}");
        }
        assert!(
            permits(SET_QUEUE, 0x7fff_0000),
            "{file}: a pointer is a pointer"
        );
        for request in OTHERS {
            assert!(!permits(request, 0), "{file}: {request:#x}");
        }
        // Where arguments have 32 bits, there are no others to be fooled by.
        if arch != Arch::Arm {
            assert!(!permits(SET_OFFLOAD, 1 << 32), "{file}");
            assert!(!permits(SET_QUEUE | 1 << 32, 0), "{file}");
        }
    }
    assert_eq!(seen, 3 * VARIANTS.len());
}
