//! The driver's end against a device that the test plays by hand.

use super::*;

fn ring(features: u64) -> Ring {
    let memory = Rc::new(GuestMemory::new());
    memory.add_region(1 << 20).unwrap();
    let mut ring = Ring::new(&memory, 0, 4).unwrap();
    ring.set_features(features);
    ring
}

/// Plays the device: writes one used element.
fn use_chain(ring: &Ring, id: u32, written: u32) {
    let index = ring.used_index().unwrap();
    let mut element = id.to_le_bytes().to_vec();
    element.extend(written.to_le_bytes());
    let at = ring.layout.used + 4 + 8 * u64::from(index % ring.size);
    ring.memory.write(at, &element).unwrap();
    ring.memory
        .store(ring.layout.used + 2, index.wrapping_add(1))
        .unwrap();
}

fn buffer() -> Buffer {
    Buffer::new(0x4000_0000, 8)
}

#[test]
fn chains_come_back_in_any_order_and_their_descriptors_are_free_again() {
    let mut ring = ring(0);
    let first = ring.add(&[buffer()], &[buffer()]).unwrap();
    let second = ring.add(&[buffer()], &[buffer()]).unwrap();
    assert!(matches!(
        ring.add(&[buffer()], &[]),
        Err(Error::RingFull { .. })
    ));
    use_chain(&ring, second.0.into(), 8);
    use_chain(&ring, first.0.into(), 0);
    assert_eq!(
        ring.poll_used().unwrap(),
        Some(Used {
            token: second,
            written: 8
        })
    );
    assert_eq!(
        ring.poll_used().unwrap(),
        Some(Used {
            token: first,
            written: 0
        })
    );
    assert_eq!(ring.poll_used().unwrap(), None);
    assert_eq!((ring.in_flight(), ring.free_descriptors()), (0, 4));
}

#[test]
fn a_chain_of_several_buffers_takes_one_descriptor_where_indirect_is_negotiated() {
    let mut ring = ring(INDIRECT_DESC);
    for _ in 0..4 {
        ring.add(&[buffer(), buffer()], &[buffer()]).unwrap();
    }
    assert_eq!(ring.free_descriptors(), 0);
}

#[test]
fn a_device_that_returns_what_it_was_not_given_is_caught() {
    let mut ring = ring(0);
    let token = ring.add(&[], &[buffer()]).unwrap();
    use_chain(&ring, u32::from(token.0) + 1, 0);
    assert!(matches!(ring.poll_used(), Err(Error::BadUsed { .. })));
}

#[test]
fn a_device_that_writes_more_than_there_is_is_caught() {
    let mut ring = ring(0);
    let token = ring.add(&[], &[buffer()]).unwrap();
    use_chain(&ring, token.0.into(), 9);
    assert!(matches!(ring.poll_used(), Err(Error::BadUsed { .. })));
}

#[test]
fn a_device_that_does_not_want_kicks_gets_none() {
    let mut plain = ring(0);
    plain.memory.store(plain.layout.used, NO_NOTIFY).unwrap();
    plain.add(&[buffer()], &[]).unwrap();
    assert!(!plain.kick().unwrap());

    let mut indexed = ring(EVENT_IDX);
    indexed
        .memory
        .store(indexed.available_event_address(), 1)
        .unwrap();
    indexed.add(&[buffer()], &[]).unwrap();
    assert!(!indexed.kick().unwrap(), "index 1 was reached, not passed");
    indexed.add(&[buffer()], &[]).unwrap();
    assert!(indexed.kick().unwrap());
}

#[test]
fn events_are_crossed_around_the_end_of_the_indices_too() {
    assert!(crosses(0xffff, 0, 0xffff));
    assert!(!crosses(0, 0, 0xffff));
    assert!(crosses(0, 1, 0xfff0));
    assert!(!crosses(5, 5, 4));
}

#[test]
fn the_error_eventfd_ends_a_wait() {
    let mut ring = ring(0);
    ring.add(&[buffer()], &[]).unwrap();
    ring.error_event().signal().unwrap();
    assert!(matches!(
        ring.wait_used(LIMIT),
        Err(Error::RingError { ring: 0 })
    ));
}

#[test]
fn who_waits_in_vain_is_told_what_both_sides_have_written() {
    let mut ring = ring(EVENT_IDX);
    let token = ring.add(&[buffer()], &[]).unwrap();
    ring.kick().unwrap();
    use_chain(&ring, token.0.into(), 0);
    assert_eq!(
        ring.describe().unwrap(),
        "ring 0: 1 made available, 1 used, 0 of them taken, a kick asked for at 0 and a call at 0, \
         kicked 1 times, last at 1"
    );
}

#[test]
fn a_call_that_has_come_is_there_even_when_the_time_is_over() {
    let mut ring = ring(EVENT_IDX);
    ring.add(&[buffer()], &[]).unwrap();
    assert!(!ring.want_call().unwrap());
    ring.call_event().unwrap().signal().unwrap();
    ring.wait_call(Duration::ZERO).unwrap();
    assert!(matches!(
        ring.wait_call(Duration::ZERO),
        Err(Error::Deadline { .. })
    ));
}
