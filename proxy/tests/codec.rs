//! The codec of vfio-user: against arbitrary bytes, against messages as QEMU's client sends them,
//! and against messages that are wrong in one thing.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::os::fd::OwnedFd;

use common::runner;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::event::{EventfdFlags, eventfd};
use vudev_proxy::testing::{access, command, dma_map, dma_unmap, header, longs, version, words};
use vudev_proxy::vfio_user::{
    FrameError, HEADER_SIZE, Header, InterruptAction, RegionInfo, Reply, Request, RequestError,
    SKIPPED_MAX, Which, answer, encode, encode_error, parse,
};

fn events(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| eventfd(0, EventfdFlags::CLOEXEC).unwrap())
        .collect()
}

/// The header of a command with a payload of this size.
fn head(number: u16, payload: usize) -> Header {
    let size = u32::try_from(HEADER_SIZE + payload).unwrap();
    Header::parse(header(7, number, size, 0)).unwrap()
}

/// What becomes of a payload that came with `descriptors` eventfds.
fn parsed(number: u16, payload: &[u8], descriptors: usize) -> Result<Request<'_>, RequestError> {
    parse(&head(number, payload.len()), payload, events(descriptors))
}

fn refused(number: u16, payload: &[u8], descriptors: usize) -> RequestError {
    parsed(number, payload, descriptors).expect_err("to be refused")
}

#[test]
fn a_header_is_a_command_whose_payload_can_be_read_or_read_past() {
    let most = Header::parse(header(0xffff, 10, SKIPPED_MAX, 0x10)).unwrap();
    assert_eq!(most.payload_size(), SKIPPED_MAX as usize - HEADER_SIZE);
    assert!(most.no_reply());
    assert!(matches!(
        Header::parse(header(0, 10, SKIPPED_MAX + 1, 0)),
        Err(FrameError::Oversized { .. })
    ));
    assert!(matches!(
        Header::parse(header(0, 10, 15, 0)),
        Err(FrameError::Undersized { .. })
    ));
    for kind in 1..16 {
        assert!(matches!(
            Header::parse(header(0, 10, 16, kind)),
            Err(FrameError::NoCommand { .. })
        ));
    }
}

#[test]
fn every_command_of_the_clients_of_qemu_is_understood() {
    assert!(matches!(
        parsed(1, &version(0, 0, b"{\"capabilities\":{\"max_msg_fds\":16}}\0"), 0),
        Ok(Request::Version { minor: 0, proposal, .. }) if proposal.max_msg_fds == Some(16)
    ));
    let Ok(Request::DmaMap(map)) = parsed(2, &dma_map(3, 0x2000, 0x1000, 0x3000), 1) else {
        panic!("a map");
    };
    assert!(map.readable && map.writable && map.file.is_some());
    assert_eq!(
        (map.address, map.size, map.offset),
        (0x1000, 0x3000, 0x2000)
    );
    assert!(matches!(
        parsed(2, &dma_map(1, 0, 0xc0000, 0x20000), 0),
        Ok(Request::DmaMap(map)) if !map.writable && map.file.is_none()
    ));
    // Up to the end of all addresses, as QEMU does.
    let Ok(Request::DmaUnmap(unmap)) =
        parsed(3, &dma_unmap(0, 0xfef0_0000, 0xffff_ffff_0110_0000), 0)
    else {
        panic!("an unmap");
    };
    assert_eq!((unmap.first, unmap.last), (0xfef0_0000, u64::MAX));
    let Ok(Request::DmaUnmap(unmap)) = parsed(3, &dma_unmap(2, 0, 0), 0) else {
        panic!("an unmap of all");
    };
    assert_eq!((unmap.first, unmap.last), (0, u64::MAX));
    assert!(matches!(
        parsed(4, &words(&[16, 0, 0, 0]), 0),
        Ok(Request::DeviceInfo)
    ));
    assert!(matches!(
        parsed(5, &words(&[64, 0, 4, 0, 0, 0, 0, 0]), 0),
        Ok(Request::RegionInfo { index: 4, room: 64 })
    ));
    assert!(matches!(
        parsed(7, &words(&[16, 0, 2, 0]), 0),
        Ok(Request::IrqInfo { index: 2 })
    ));
    assert!(matches!(
        parsed(9, &access(0, 7, 256), 0),
        Ok(Request::RegionRead {
            region: 7,
            offset: 0,
            count: 256
        })
    ));
    let write = [access(0x2000, 2, 2), vec![5, 6]].concat();
    assert!(matches!(
        parsed(10, &write, 0),
        Ok(Request::RegionWrite {
            region: 2,
            offset: 0x2000,
            data: [5, 6]
        })
    ));
    assert!(matches!(parsed(13, &[], 0), Ok(Request::Reset)));
}

#[test]
fn interrupts_are_assigned_taken_away_and_triggered() {
    let set = |flags, start, count, data: &[u8], descriptors| {
        let argsz = u32::try_from(20 + data.len()).unwrap();
        let payload = [&words(&[argsz, flags, 2, start, count]), data].concat();
        let header = head(8, payload.len());
        match parse(&header, &payload, events(descriptors)) {
            Ok(Request::SetIrqs(set)) => {
                assert_eq!((set.index, set.start, set.count), (2, start, count));
                Ok(match set.action {
                    InterruptAction::Assign(events) => format!("assign {}", events.len()),
                    InterruptAction::Unassign => "unassign".into(),
                    InterruptAction::DisableAll => "disable".into(),
                    InterruptAction::Trigger(Which::All) => "trigger".into(),
                    InterruptAction::Trigger(Which::Marked(marks)) => format!("trigger {marks:?}"),
                })
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error),
        }
    };
    assert_eq!(set(0x24, 3, 2, &[], 2).unwrap(), "assign 2");
    assert_eq!(set(0x24, 0, 1, &[], 0).unwrap(), "unassign");
    assert_eq!(set(0x21, 0, 0, &[], 0).unwrap(), "disable");
    assert_eq!(set(0x21, 1, 1, &[], 0).unwrap(), "trigger");
    assert_eq!(set(0x22, 1, 2, &[0, 1], 0).unwrap(), "trigger [0, 1]");
    // Too few descriptors, too many, or where none belong; data of another length.
    for (flags, count, data, descriptors) in [
        (0x24, 2, &[][..], 1),
        (0x24, 0, &[], 1),
        (0x21, 1, &[], 1),
        (0x22, 2, &[1], 0),
        (0x22, u32::MAX, &[1], 0),
        (0x24, 1, &[0], 1),
    ] {
        assert!(set(flags, 0, count, data, descriptors).is_err());
    }
    // Masks, two kinds of data, two actions, none.
    for flags in [0x0c, 0x11, 0x26, 0x31, 0x20, 0x01, 0x00, 0x40] {
        assert!(set(flags, 0, 0, &[], 0).is_err(), "{flags:#x}");
    }
    assert!(set(0x21, u32::MAX, 1, &[], 0).is_err());
}

#[test]
fn what_is_wrong_in_one_thing_is_refused_with_its_errno() {
    // (number, payload, descriptors)
    let wrong: &[(u16, Vec<u8>, usize)] = &[
        (1, version(1, 0, &[]), 0),
        (1, version(0, 0, b"{}"), 0),
        (1, version(0, 0, b"[]\0"), 0),
        (
            1,
            version(0, 0, b"{\"capabilities\":{\"max_msg_fds\":-1}}\0"),
            0,
        ),
        (1, vec![0; 3], 0),
        (1, version(0, 0, &[]), 1),
        (2, dma_map(4, 0, 0, 1), 0),
        (2, dma_map(3, 0, 0, 0), 0),
        (2, dma_map(3, 0, u64::MAX, 2), 0),
        (2, dma_map(3, u64::MAX, 0, 1), 0),
        (2, dma_map(3, 0, 0, 1), 2),
        (2, vec![0; 31], 0),
        (3, dma_unmap(0, 0, 0), 0),
        (3, dma_unmap(0, 2, u64::MAX), 0),
        (3, dma_unmap(2, 0, 1), 0),
        (3, dma_unmap(1, 0, 1), 0),
        (4, words(&[15, 0, 0, 0]), 0),
        (5, words(&[31, 0, 0, 0, 0, 0, 0, 0]), 0),
        (5, words(&[32, 0, 0, 0]), 0),
        (7, words(&[16, 0, 0, 0]), 1),
        (9, access(0, 0, 0), 0),
        (9, access(0, 0, 4097), 0),
        (9, access(u64::MAX, 0, 1), 0),
        (10, access(0, 0, 1), 0),
        (10, [access(0, 0, 1), vec![0; 2]].concat(), 0),
        (13, vec![0], 0),
    ];
    for (number, payload, descriptors) in wrong {
        let error = refused(*number, payload, *descriptors);
        let errno = error.errno();
        assert_eq!(
            errno,
            rustix::io::Errno::INVAL,
            "{number} {payload:?} {error}"
        );
    }
    for number in [0, 6, 11, 12, 14, 15, 16, 17, 18, 19, u16::MAX] {
        let errno = refused(number, &[], 0).errno();
        assert_eq!(errno, rustix::io::Errno::OPNOTSUPP, "{number}");
    }
    let huge = vec![0; 1 << 16];
    assert_eq!(refused(10, &huge, 0).errno(), rustix::io::Errno::TOOBIG);
}

#[test]
fn version_data_names_only_what_was_proposed_and_is_never_longer() {
    let data = b"{\"capabilities\":{\"max_msg_fds\":8,\"twin_socket\":{\"supported\":true}}}\0";
    let payload = version(0, 1, data);
    let Ok(Request::Version {
        proposal,
        data_size,
        ..
    }) = parsed(1, &payload, 0)
    else {
        panic!("a version");
    };
    let answered = answer(&proposal, data_size);
    assert_eq!(answered, b"{\"capabilities\":{\"max_msg_fds\":16}}\0");
    assert!(answer(&proposal, answered.len() - 1).is_empty());
    assert!(answer(&Default::default(), 1000).is_empty());
}

#[test]
fn a_region_tells_its_whole_size_also_where_there_is_no_room_for_it() {
    let info = RegionInfo {
        size: 1 << 30,
        mapped: Some(0..3 << 28),
    };
    let mut bytes = Vec::new();
    for room in [32, 63, 64, 1000] {
        assert_eq!(info.sends_file(room), room >= 64);
        let info = info.clone();
        let index = 4;
        encode(
            &head(5, 32),
            &Reply::RegionInfo { index, info, room },
            &mut bytes,
        );
        assert_eq!(bytes.len(), if room >= 64 { 80 } else { 48 });
        assert_eq!(
            bytes[4..8],
            u32::try_from(bytes.len()).unwrap().to_ne_bytes()
        );
        // argsz, flags, index, cap_offset.
        assert_eq!(bytes[16..32], words(&[64, 0xf, 4, 32]));
    }
    assert_eq!(bytes[48..64], words(&[0x0001_0001, 0, 1, 0]));
    assert_eq!(bytes[64..80], longs(&[0, 3 << 28]));
}

#[test]
fn an_error_is_a_header_that_says_so() {
    let mut bytes = vec![1, 2, 3];
    encode_error(&head(9, 16), rustix::io::Errno::INVAL, &mut bytes);
    assert_eq!(bytes[..12], header(7, 9, 16, 0x21)[..12]);
    assert_eq!(bytes[12..], 22_u32.to_ne_bytes());
}

/// A payload near the truth: right in size for some command, or anything.
fn payload() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => 0..40_u32,
        1 => any::<u32>(),
        1 => Just(u32::MAX),
    ];
    prop_oneof![
        6 => vec(word, 0..12).prop_map(|all| words(&all)),
        2 => vec(any::<u8>(), 0..300),
        1 => Just(vec![0; 5000]),
    ]
}

#[test]
fn no_bytes_make_the_codec_panic_and_what_it_accepts_is_within_bounds() {
    let all = (any::<[u8; 16]>(), 0..20_u16, payload(), 0..4_usize);
    runner(4000)
        .run(&all, |(raw, number, payload, descriptors)| {
            let _ = Header::parse(raw);
            let whole = command(1, number, &payload);
            let header = Header::parse(whole[..16].try_into().unwrap()).unwrap();
            let outcome = parse(&header, &payload, events(descriptors));
            if let Err(error) = &outcome {
                prop_assert!(!error.to_string().is_empty());
                return Ok(());
            }
            match outcome.unwrap() {
                Request::RegionRead { offset, count, .. } => {
                    prop_assert!((1..=4096).contains(&count));
                    prop_assert!(offset.checked_add(count as u64).is_some());
                }
                Request::RegionWrite { offset, data, .. } => {
                    prop_assert_eq!(data.len() + 16, payload.len());
                    prop_assert!(offset.checked_add(data.len() as u64).is_some());
                }
                Request::DmaMap(map) => {
                    prop_assert!(map.size > 0);
                    prop_assert!(map.address.checked_add(map.size - 1).is_some());
                    prop_assert!(map.offset.checked_add(map.size).is_some());
                }
                Request::DmaUnmap(unmap) => prop_assert!(unmap.first <= unmap.last),
                Request::SetIrqs(set) => {
                    prop_assert!(set.start.checked_add(set.count).is_some());
                    match set.action {
                        InterruptAction::Assign(events) => {
                            prop_assert_eq!(events.len(), set.count as usize);
                        }
                        InterruptAction::Trigger(Which::Marked(marks)) => {
                            prop_assert_eq!(marks.len(), set.count as usize);
                        }
                        _ => prop_assert_eq!(descriptors, 0),
                    }
                }
                Request::RegionInfo { room, .. } => prop_assert!(room >= 32),
                Request::Version {
                    data_size,
                    proposal,
                    ..
                } => {
                    prop_assert!(answer(&proposal, data_size).len() <= data_size);
                }
                Request::DeviceInfo | Request::IrqInfo { .. } | Request::Reset => {}
            }
            Ok(())
        })
        .unwrap();
}
