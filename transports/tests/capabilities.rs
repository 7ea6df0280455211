//! The capability walk against lists as devices of the field have them, and against bytes that
//! nobody meant: it refuses or finds ranges that lie in their bars, and never panics or goes round.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

use proptest::collection::vec;
use proptest::prelude::*;
use vudev_transports::vvu::{BARS, CONFIGURATION_SIZE, Layout, LayoutError, Range, What, Window};

/// A capability as a device may have it.
#[derive(Clone, Copy, Debug)]
struct Capability {
    kind: u8,
    bar: u8,
    offset: u64,
    size: u64,
    length: u8,
    multiplier: u32,
}

/// A capability without anything behind it.
fn plain(kind: u8, bar: u8, offset: u64, size: u64) -> Capability {
    Capability {
        kind,
        bar,
        offset,
        size,
        length: 16,
        multiplier: 0,
    }
}

fn multiplied(kind: u8, bar: u8, offset: u64, size: u64, multiplier: u32) -> Capability {
    Capability {
        length: 20,
        multiplier,
        ..plain(kind, bar, offset, size)
    }
}

/// A configuration space with these capabilities, the first at 0x40.
fn configuration(list: &[Capability]) -> [u8; CONFIGURATION_SIZE] {
    let mut bytes = [0; CONFIGURATION_SIZE];
    bytes[0x06] = 0x10;
    bytes[0x34] = 0x40;
    let mut at = 0x40;
    for (number, capability) in list.iter().enumerate() {
        let size = usize::from(capability.length);
        let next = at + size.next_multiple_of(4);
        let mut capability_bytes = vec![0x09, 0, capability.length, capability.kind];
        if number + 1 < list.len() {
            capability_bytes[1] = u8::try_from(next).unwrap();
        }
        capability_bytes.extend([capability.bar, 0, 0, 0]);
        let (offset, size) = (
            capability.offset.to_le_bytes(),
            capability.size.to_le_bytes(),
        );
        capability_bytes.extend_from_slice(&offset[..4]);
        capability_bytes.extend_from_slice(&size[..4]);
        if capability.length >= 24 {
            capability_bytes.extend_from_slice(&offset[4..]);
            capability_bytes.extend_from_slice(&size[4..]);
        } else if capability.length >= 20 {
            capability_bytes.extend_from_slice(&capability.multiplier.to_le_bytes());
        }
        bytes[at..at + capability_bytes.len()].copy_from_slice(&capability_bytes);
        at = next;
    }
    bytes
}

/// As a vfio-user server of ours has it: registers in bar 0, doorbells in bar 2, memory in bar 4.
fn list() -> Vec<Capability> {
    vec![
        plain(1, 0, 0, 0x38),
        multiplied(2, 0, 0x3000, 0x1000, 4),
        plain(3, 0, 0x1000, 1),
        plain(4, 0, 0x2000, 24),
        multiplied(6, 2, 0, 0x2000, 4),
        plain(7, 2, 0x2000, 0x1000),
        Capability {
            length: 24,
            ..plain(8, 4, 0x1_0000_0000, 0x2_0000_0000)
        },
    ]
}

const BAR_SIZES: [u64; BARS] = [0x4000, 0x1000, 0x4000, 0, 0x4_0000_0000, 0];

/// What is said of a list in which one capability was changed.
fn changed(kind: u8, change: impl FnOnce(&mut Capability)) -> Result<Layout, LayoutError> {
    let mut list = list();
    let capability = list.iter_mut().find(|one| one.kind == kind).unwrap();
    change(capability);
    Layout::parse(&configuration(&list), &BAR_SIZES)
}

#[test]
fn every_window_is_found_by_its_capability_wherever_it_lies() {
    let layout = Layout::parse(&configuration(&list()), &BAR_SIZES).unwrap();
    let range = |bar, offset, size| Range { bar, offset, size };
    assert_eq!(layout.window(Window::Common), range(0, 0, 0x38));
    assert_eq!(layout.window(Window::Notify), range(0, 0x3000, 0x1000));
    assert_eq!(layout.window(Window::Isr), range(0, 0x1000, 1));
    assert_eq!(layout.window(Window::Device), range(0, 0x2000, 24));
    assert_eq!(layout.window(Window::Doorbell), range(2, 0, 0x2000));
    assert_eq!(
        layout.window(Window::Notification),
        range(2, 0x2000, 0x1000)
    );
    assert_eq!(layout.shared_memory, range(4, 1 << 32, 2 << 32));
    assert_eq!(
        (layout.notify_multiplier, layout.doorbell_multiplier),
        (4, 4)
    );

    // One bar for all, doorbells without a multiplier, memory in the short form.
    let one_bar: Vec<_> = (1..=8)
        .filter(|kind| *kind != 5)
        .map(|kind| Capability {
            length: if kind == 2 || kind == 6 { 20 } else { 16 },
            ..plain(kind, 5, u64::from(kind) << 12, 0x1000)
        })
        .collect();
    let layout = Layout::parse(&configuration(&one_bar), &[0, 0, 0, 0, 0, 0x9000]).unwrap();
    assert_eq!(layout.window(Window::Doorbell), range(5, 0x6000, 0x1000));
    assert_eq!(layout.shared_memory, range(5, 0x8000, 0x1000));
}

#[test]
fn the_first_of_a_kind_counts_and_what_nobody_knows_is_passed_over() {
    let mut list = list();
    list.insert(0, plain(3, 6, 0, 1));
    list.push(plain(3, 0, 8, 1));
    let layout = Layout::parse(&configuration(&list), &BAR_SIZES).unwrap();
    assert_eq!(layout.window(Window::Isr).offset, 0x1000);
    list[0] = plain(5, 0, 0, 4);
    assert!(Layout::parse(&configuration(&list), &BAR_SIZES).is_ok());
    list[0].kind = 0xff;
    assert!(Layout::parse(&configuration(&list), &BAR_SIZES).is_ok());
    // A capability of another id may be two bytes at the very end.
    let mut bytes = configuration(&list);
    (bytes[0x34], bytes[0xfc], bytes[0xfd]) = (0xfc, 0x01, 0x40);
    assert!(Layout::parse(&bytes, &BAR_SIZES).is_ok());
}

#[test]
fn a_list_in_a_circle_or_into_the_header_is_refused() {
    let good = configuration(&list());
    let broken = |change: &dyn Fn(&mut [u8; CONFIGURATION_SIZE])| {
        let mut bytes = good;
        change(&mut bytes);
        Layout::parse(&bytes, &BAR_SIZES).unwrap_err()
    };
    let circle = broken(&|bytes| bytes[0x41] = 0x40);
    assert!(matches!(circle, LayoutError::BrokenList { pointer: 0x40 }));
    let header = broken(&|bytes| bytes[0x41] = 0x3f);
    assert!(matches!(header, LayoutError::BrokenList { pointer: 0x3c }));
    let none = broken(&|bytes| bytes[0x06] = 0);
    assert_eq!(none, LayoutError::NoCapabilities);
    let gone = Layout::parse(&[0xff; CONFIGURATION_SIZE], &[0; BARS]).unwrap_err();
    assert_eq!(gone, LayoutError::NoAnswer);
    let empty = broken(&|bytes| bytes[0x34] = 0);
    assert_eq!(empty, LayoutError::Missing(What::Registers(Window::Common)));
}

#[test]
fn a_capability_that_is_too_short_or_too_long_is_refused() {
    for length in [0, 3, 15] {
        let mut bytes = configuration(&list());
        bytes[0x42] = length;
        let error = Layout::parse(&bytes, &BAR_SIZES).unwrap_err();
        assert_eq!(error, LayoutError::Length { at: 0x40, length });
    }
    let mut bytes = configuration(&list());
    bytes[0x42] = 0xc1;
    assert!(Layout::parse(&bytes, &BAR_SIZES).is_err());
    bytes[0x34] = 0xfc;
    (bytes[0xfc], bytes[0xfd], bytes[0xfe]) = (0x09, 0, 16);
    assert!(Layout::parse(&bytes, &BAR_SIZES).is_err());
    // A doorbell without its multiplier is no doorbell.
    let error = changed(6, |doorbell| doorbell.length = 16).unwrap_err();
    assert!(
        error.to_string().contains("no doorbell capability"),
        "{error}"
    );
}

#[test]
fn a_window_beyond_its_bar_too_small_or_misaligned_is_refused_by_name() {
    for (error, part) in [
        (changed(1, |common| common.bar = 3), "bar 3, which has 0x0"),
        (changed(7, |window| window.size = 0x2001), "bar 2"),
        (
            changed(7, |window| window.offset = 0xffff_fffe),
            "notification",
        ),
        (
            changed(8, |memory| memory.size = u64::MAX - 4095),
            "shared memory",
        ),
        (changed(8, |memory| memory.bar = 2), "shared memory"),
        (changed(1, |common| common.size = 55), "56 is the least"),
        (changed(4, |device| device.size = 0), "24 is the least"),
        (changed(6, |doorbell| doorbell.size = 1), "2 is the least"),
        (changed(8, |memory| memory.size = 4095), "4096 is the least"),
        (changed(1, |common| common.offset = 2), "no multiple of 4"),
        (
            changed(8, |memory| memory.offset = 0x800),
            "no multiple of 4096",
        ),
        (
            changed(6, |doorbell| doorbell.multiplier = 1),
            "multiplier is 1",
        ),
        (
            changed(2, |notify| notify.multiplier = 6),
            "multiplier is 6",
        ),
    ] {
        let error = error.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

/// Every range of a layout lies in its bar.
fn assert_inside(layout: &Layout, bars: &[u64; BARS]) -> Result<(), TestCaseError> {
    let windows = Window::ALL.map(|window| layout.window(window));
    for Range { bar, offset, size } in windows.into_iter().chain([layout.shared_memory]) {
        let end = offset.checked_add(size);
        prop_assert!(size > 0 && end.is_some_and(|end| end <= bars[usize::from(bar)]));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_refused_or_describe_ranges_within_bars(
        bytes in vec(any::<u8>(), CONFIGURATION_SIZE),
        bars: [u64; BARS],
    ) {
        let mut bytes: [u8; CONFIGURATION_SIZE] = bytes.try_into().unwrap();
        bytes[0x06] |= 0x10;
        if let Ok(layout) = Layout::parse(&bytes, &bars) {
            assert_inside(&layout, &bars)?;
        }
    }

    #[test]
    fn a_good_list_with_any_bytes_changed_is_refused_or_describes_ranges_within_bars(
        changes in vec((0x34..CONFIGURATION_SIZE, any::<u8>()), 0..8),
        bars in prop_oneof![Just(BAR_SIZES), any::<[u64; BARS]>()],
    ) {
        let mut bytes = configuration(&list());
        for (at, byte) in &changes {
            bytes[*at] = *byte;
        }
        match Layout::parse(&bytes, &bars) {
            Ok(layout) => assert_inside(&layout, &bars)?,
            Err(error) => prop_assert!(!changes.is_empty() || bars != BAR_SIZES, "{}", error),
        }
    }
}
