//! What memory is accepted, how it is addressed, and that buffers are the bytes they stand for.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use vudev_executor::IoBuffers;
use vudev_virtio::{
    GuestBuffers, GuestMemory, MemoryError, REGIONS_MAX, Region, RegionLayout, ShortBuffers,
};

const PAGE: u64 = 4096;

fn file(bytes: u64) -> std::fs::File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

fn layout(guest_address: u64, size: u64) -> RegionLayout {
    RegionLayout {
        guest_address,
        user_address: guest_address + (1 << 40),
        size,
        offset: 0,
    }
}

fn region(guest_address: u64, size: u64) -> Region {
    Region::map(layout(guest_address, size), file(size).into()).unwrap()
}

/// Three regions: two that touch in the guest, and one apart.
fn memory() -> Rc<GuestMemory> {
    // The kernel maps downwards, so in this order those that touch in the guest most likely touch
    // where they are mapped as well; they are two mappings all the same.
    let regions = vec![
        region(5 * PAGE, PAGE),
        region(2 * PAGE, PAGE),
        region(PAGE, PAGE),
    ];
    Rc::new(GuestMemory::new(regions).unwrap())
}

#[test]
fn a_region_larger_than_its_file_is_refused() {
    let refused = Region::map(layout(0, 2 * PAGE), file(PAGE).into()).unwrap_err();
    let (needed, actual) = (2 * PAGE, PAGE);
    assert_eq!(refused, MemoryError::FileTooShort { needed, actual });
    let behind = RegionLayout {
        offset: 1,
        ..layout(0, PAGE)
    };
    let refused = Region::map(behind, file(PAGE).into()).unwrap_err();
    assert!(matches!(refused, MemoryError::FileTooShort { .. }));
}

#[test]
fn an_empty_region_is_refused() {
    let refused = Region::map(layout(7, 0), file(PAGE).into()).unwrap_err();
    assert_eq!(refused, MemoryError::EmptyRegion { guest_address: 7 });
}

#[test]
fn a_region_whose_end_wraps_is_refused() {
    let lawful = layout(0, PAGE);
    let wrapping = u64::MAX - PAGE + 1;
    for wraps in [
        RegionLayout {
            guest_address: wrapping,
            ..lawful
        },
        RegionLayout {
            user_address: wrapping,
            ..lawful
        },
        RegionLayout {
            offset: wrapping,
            ..lawful
        },
        RegionLayout {
            offset: i64::MAX as u64,
            ..lawful
        },
        RegionLayout {
            size: u64::MAX,
            offset: 1,
            ..lawful
        },
    ] {
        let refused = Region::map(wraps, file(PAGE).into()).unwrap_err();
        assert_eq!(refused, MemoryError::RegionOverflow(wraps));
    }
}

#[test]
fn what_is_no_regular_file_is_refused() {
    let (pipe, _writer) = std::io::pipe().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let device = std::fs::File::open("/dev/zero").unwrap();
    for fd in [OwnedFd::from(pipe), directory.into(), device.into()] {
        let refused = Region::map(layout(0, PAGE), fd).unwrap_err();
        assert_eq!(refused, MemoryError::NotAFile);
    }
}

#[test]
fn a_file_that_cannot_be_written_is_refused() {
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(PAGE).unwrap();
    let read_only = std::fs::File::open(named.path()).unwrap();
    let refused = Region::map(layout(0, PAGE), read_only.into()).unwrap_err();
    assert!(matches!(refused, MemoryError::System { call: "mmap", .. }));
}

#[test]
fn an_offset_within_a_page_and_a_size_of_no_whole_pages_are_lawful() {
    let file = file(3 * PAGE);
    let offset = PAGE + 100;
    file.write_all_at(b"first", offset).unwrap();
    let size = PAGE + 1;
    let place = RegionLayout {
        offset,
        ..layout(0x1000, size)
    };
    let region = Region::map(place, file.try_clone().unwrap().into()).unwrap();
    let memory = GuestMemory::new(vec![region]).unwrap();
    let mut bytes = [0; 5];
    memory.read(0x1000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"first");
    memory.write(0x1000 + size - 1, b"!").unwrap();
    let mut last = [0];
    file.read_exact_at(&mut last, offset + size - 1).unwrap();
    assert_eq!(&last, b"!");
    assert!(
        memory.write(0x1000 + size, b"!").is_err(),
        "the page goes on, the region does not"
    );
}

#[test]
fn memory_of_a_bar_lies_where_the_bar_has_it_and_cannot_be_pinned() {
    use std::os::fd::AsFd;
    let bar = file(3 * PAGE);
    bar.write_all_at(b"over there", PAGE + 100).unwrap();
    // What the front-end says of an offset in its own file is of no meaning here.
    let described = RegionLayout {
        offset: 1 << 50,
        ..layout(0, PAGE)
    };
    let region = Region::map_bar(described, bar.as_fd(), PAGE + 100).unwrap();
    assert_eq!(region.layout(), described);
    let memory = GuestMemory::new(vec![region.clone()]).unwrap();
    let mut bytes = [0; 10];
    memory.read(0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"over there");
    memory.write(PAGE - 1, &[7]).unwrap();
    bar.read_exact_at(&mut bytes[..1], 2 * PAGE + 99).unwrap();
    assert_eq!(bytes[0], 7);
    assert!(memory.write(PAGE, &[7]).is_err(), "behind the region");

    assert!(!memory.pinnable());
    let both = GuestMemory::new(vec![self::region(2 * PAGE, PAGE), region]).unwrap();
    assert!(!both.pinnable(), "one region is enough");
    assert!(self::memory().pinnable());

    let beyond = Region::map_bar(layout(0, PAGE), bar.as_fd(), u64::MAX - PAGE);
    assert!(matches!(beyond, Err(MemoryError::RegionOverflow(_))));
}

#[test]
fn regions_that_overlap_are_refused() {
    let mut apart = layout(9 * PAGE, PAGE);
    apart.user_address = layout(PAGE, 2 * PAGE).user_address + PAGE;
    let user = Region::map(apart, file(PAGE).into()).unwrap();
    let refused = GuestMemory::new(vec![region(PAGE, 2 * PAGE), user]).unwrap_err();
    assert_eq!(
        refused,
        MemoryError::UserOverlap {
            at: apart.user_address
        }
    );

    let guest = layout(2 * PAGE, PAGE);
    let elsewhere = RegionLayout {
        user_address: 1 << 50,
        ..guest
    };
    let guest = Region::map(elsewhere, file(PAGE).into()).unwrap();
    let refused = GuestMemory::new(vec![region(PAGE, 2 * PAGE), guest]).unwrap_err();
    assert_eq!(refused, MemoryError::GuestOverlap { at: 2 * PAGE });

    let by_a_byte = vec![region(PAGE, PAGE + 1), region(2 * PAGE, PAGE)];
    assert!(GuestMemory::new(by_a_byte).is_err());
    let mut in_the_guest_only = layout(2 * PAGE, PAGE);
    in_the_guest_only.user_address = 1 << 50;
    let second = Region::map(in_the_guest_only, file(PAGE).into()).unwrap();
    let refused = GuestMemory::new(vec![region(PAGE, PAGE + 1), second]).unwrap_err();
    assert_eq!(refused, MemoryError::GuestOverlap { at: 2 * PAGE });
}

#[test]
fn more_regions_than_a_table_may_have_are_refused() {
    let one = region(PAGE, PAGE);
    let many = vec![one; REGIONS_MAX + 1];
    assert!(matches!(
        GuestMemory::new(many),
        Err(MemoryError::TooManyRegions(513))
    ));
}

#[test]
fn user_addresses_translate_within_their_region_only() {
    let memory = memory();
    let user = layout(PAGE, PAGE).user_address;
    assert_eq!(memory.guest_address(user), Some(PAGE));
    assert_eq!(memory.guest_address(user + PAGE - 1), Some(2 * PAGE - 1));
    assert_eq!(memory.guest_address(user - 1), None);
    assert_eq!(memory.guest_address(user + 2 * PAGE), None, "the gap");
    assert_eq!(memory.guest_address(0), None);
    assert_eq!(memory.guest_address(u64::MAX), None);
}

#[test]
fn a_range_is_translated_whole_and_split_at_the_edges_of_regions() {
    let memory = memory();
    let mut across = memory.buffers(&[(2 * PAGE - 3, 6)]).unwrap();
    assert_eq!(across.iovecs().len(), 2);
    across.write(b"abcdef").unwrap();
    let mut bytes = [0; 6];
    memory.read(2 * PAGE - 3, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abcdef");
    for (address, len) in [
        (0, 1),
        (PAGE - 1, 2),
        (3 * PAGE - 1, 2),
        (3 * PAGE, 1),
        (PAGE, 5 * 4096),
        (6 * PAGE - 1, 2),
        (u64::MAX, 1),
        (u64::MAX, 2),
    ] {
        let refused = memory.buffers(&[(PAGE, 1), (address, len)]).unwrap_err();
        let len = len.into();
        assert_eq!(refused, MemoryError::OutOfRange { address, len });
    }
    for nothing in [&[][..], &[(PAGE, 0)], &[(0, 0), (PAGE, 0)]] {
        let buffers = memory.buffers(nothing).unwrap();
        assert!(buffers.is_empty() && buffers.iovecs().is_empty());
    }
}

#[test]
fn ranges_that_follow_one_another_become_one_piece() {
    let memory = memory();
    let ranges = [(PAGE, 10), (PAGE + 10, 10), (PAGE + 30, 10)];
    let buffers = memory.buffers(&ranges).unwrap();
    let lengths: Vec<_> = buffers.iovecs().iter().map(|one| one.iov_len).collect();
    assert_eq!((lengths, buffers.len()), (vec![20, 10], 30));
}

#[test]
fn the_last_byte_is_written_where_it_lies_whatever_became_of_the_others() {
    let memory = memory();
    // One byte in the region before, and two in the next.
    let mut buffers = memory.buffers(&[(2 * PAGE - 1, 3)]).unwrap();
    let last = buffers.split_last().unwrap();
    buffers.write(b"ab").unwrap();
    assert!(buffers.split_last().is_none());
    drop(buffers);
    last.write(b'c');
    let mut bytes = [0; 4];
    memory.read(2 * PAGE - 1, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abc\0");
}

#[test]
fn short_buffers_refuse_and_change_nothing() {
    let memory = memory();
    let mut buffers = memory.buffers(&[(PAGE, 4)]).unwrap();
    let short = ShortBuffers {
        wanted: 5,
        available: 4,
    };
    assert_eq!(buffers.read(&mut [0; 5]).unwrap_err(), short);
    assert_eq!(buffers.write(&[1; 5]).unwrap_err(), short);
    assert_eq!(buffers.advance(5).unwrap_err(), short);
    assert_eq!(buffers.split_off(5).unwrap_err(), short);
    assert_eq!(buffers.len(), 4);
    assert_eq!(buffers.read_array::<4>().unwrap(), [0; 4]);
    assert!(buffers.is_empty());
}

#[test]
fn buffers_taken_leave_none_and_keep_their_memory_mapped() {
    let memory = memory();
    memory.write(PAGE, b"kept").unwrap();
    let mut buffers = memory.buffers(&[(PAGE, 4)]).unwrap();
    drop(memory);
    let mut taken = buffers.take();
    assert!(buffers.is_empty() && buffers.iovecs().is_empty());
    assert_eq!(&taken.read_array::<4>().unwrap(), b"kept");
}

#[test]
fn buffers_of_two_memories_or_in_very_many_pieces_are_not_joined() {
    let (memory, other) = (memory(), memory());
    let mut buffers = memory.buffers(&[(PAGE, 4)]).unwrap();
    let more = buffers.append(other.buffers(&[(PAGE, 8)]).unwrap());
    assert_eq!((more.unwrap_err().len(), buffers.len()), (8, 4));
    let joined = (0..1000).take_while(|_| {
        let more = memory.buffers(&[(PAGE, 4)]).unwrap();
        buffers.append(more).is_ok()
    });
    assert_eq!(joined.count(), 127);
    assert_eq!((buffers.len(), buffers.iovecs().len()), (512, 128));
}

mod model {
    //! Buffers against a plain vector that stands for the same bytes.

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Read(usize),
        Write(Vec<u8>),
        Advance(usize),
        SplitOff(usize),
        SplitAndKeepTail(usize),
        SplitAndJoin(usize),
        Truncate(usize),
        SplitLast,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..40_usize).prop_map(Step::Read),
            proptest::collection::vec(any::<u8>(), 0..40).prop_map(Step::Write),
            (0..40_usize).prop_map(Step::Advance),
            (0..200_usize).prop_map(Step::SplitOff),
            (0..200_usize).prop_map(Step::SplitAndKeepTail),
            (0..200_usize).prop_map(Step::SplitAndJoin),
            (0..200_usize).prop_map(Step::Truncate),
            Just(Step::SplitLast),
        ]
    }

    /// The bytes and what stands for them must agree after every step.
    fn apply(step: Step, buffers: &mut GuestBuffers, model: &mut Vec<u8>) {
        let short = |wanted: usize, model: &Vec<u8>| wanted > model.len();
        match step {
            Step::Read(count) => {
                let mut into = vec![0; count];
                assert_eq!(buffers.read(&mut into).is_err(), short(count, model));
                if !short(count, model) {
                    let read: Vec<u8> = model.drain(..count).collect();
                    assert_eq!(into, read);
                }
            }
            Step::Write(bytes) => {
                assert_eq!(buffers.write(&bytes).is_err(), short(bytes.len(), model));
                if !short(bytes.len(), model) {
                    model.drain(..bytes.len());
                }
            }
            Step::Advance(count) => {
                assert_eq!(buffers.advance(count).is_err(), short(count, model));
                if !short(count, model) {
                    model.drain(..count);
                }
            }
            Step::SplitOff(at) => {
                if let Ok(tail) = buffers.split_off(at) {
                    assert_eq!(contents(tail), model.split_off(at));
                }
            }
            Step::SplitAndKeepTail(at) => {
                if let Ok(tail) = buffers.split_off(at) {
                    let rest = model.split_off(at);
                    assert_eq!(contents(std::mem::replace(buffers, tail)), *model);
                    *model = rest;
                }
            }
            Step::SplitAndJoin(at) => {
                if let Ok(tail) = buffers.split_off(at) {
                    buffers.append(tail).unwrap();
                }
            }
            Step::SplitLast => {
                assert_eq!(buffers.split_last().is_some(), model.pop().is_some());
            }
            Step::Truncate(len) => {
                buffers.truncate(len);
                model.truncate(len);
            }
        }
        assert_eq!(buffers.len(), model.len());
        let pieces = buffers.iovecs().iter();
        assert!(pieces.clone().all(|piece| piece.iov_len > 0));
        assert_eq!(
            pieces.map(|piece| piece.iov_len).sum::<usize>(),
            model.len()
        );
    }

    fn contents(mut buffers: GuestBuffers) -> Vec<u8> {
        let mut bytes = vec![0; buffers.len()];
        buffers.read(&mut bytes).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn buffers_behave_as_the_bytes_they_stand_for(
            cuts in proptest::collection::vec(1..60_u32, 0..8),
            steps in proptest::collection::vec(step(), 0..20),
        ) {
            let memory = memory();
            let mut address = 2 * PAGE - 50;
            let mut ranges = Vec::new();
            for (index, &len) in cuts.iter().enumerate() {
                ranges.push((address, len));
                // Every other one leaves a gap, so that some join and some do not.
                address += u64::from(len) + (index as u64 % 2);
            }
            let mut model = Vec::new();
            for &(address, len) in &ranges {
                let byte = |at: u64| at.to_le_bytes()[0];
                let bytes: Vec<u8> = (address..address + u64::from(len)).map(byte).collect();
                memory.write(address, &bytes).unwrap();
                model.extend(bytes);
            }
            let mut buffers = memory.buffers(&ranges).unwrap();
            for step in steps {
                apply(step, &mut buffers, &mut model);
            }
            prop_assert_eq!(contents(buffers), model);
        }
    }
}
