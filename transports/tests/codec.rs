//! The codec against bytes that nobody meant: it refuses or understands, and never panics; and
//! descriptors that it does not hand on are closed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

use std::os::fd::{AsRawFd, OwnedFd};

use proptest::collection::vec;
use proptest::prelude::*;
use vudev_transports::message::{
    Code, ConfigRequest, FeatureRequest, HEADER_SIZE, Header, MemoryFile, MemoryRequest,
    MessageError, Request, RingRequest, UserAddresses, parse,
};

/// Numbers of all messages that we speak.
fn numbers() -> Vec<u32> {
    (0..64)
        .filter(|number| Code::from_wire(*number).is_some())
        .collect()
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn descriptors(count: usize) -> Vec<OwnedFd> {
    (0..count)
        .map(|_| std::fs::File::open("/dev/null").unwrap().into())
        .collect()
}

fn understood(
    number: u32,
    payload: &[u8],
    count: usize,
) -> Result<Request<MemoryFile>, MessageError> {
    let size = u32::try_from(payload.len()).unwrap();
    let bytes: [u8; HEADER_SIZE] = words(&[number, 1, size]).try_into().unwrap();
    parse(&Header::parse(bytes).unwrap(), payload, descriptors(count))
}

proptest! {
    #[test]
    fn any_header_is_refused_or_understood(bytes: [u8; HEADER_SIZE]) {
        if let Ok(header) = Header::parse(bytes) {
            prop_assert!(header.payload_size() <= 4096);
        }
    }

    #[test]
    fn any_payload_with_any_descriptors_is_refused_or_understood(
        number in prop_oneof![prop::sample::select(numbers()), any::<u32>()],
        payload in vec(any::<u8>(), 0..300),
        count in 0usize..10,
    ) {
        let outcome = understood(number, &payload, count);
        if let Some(code) = Code::from_wire(number) {
            let fits = code.rule().payload.contains(&payload.len())
                && code.rule().descriptors.contains(&count);
            prop_assert!(fits || outcome.is_err());
        } else {
            let unsupported = matches!(outcome, Err(MessageError::Unsupported { .. }));
            prop_assert!(unsupported);
        }
    }

    #[test]
    fn a_payload_of_a_lawful_size_is_refused_or_understood(
        (number, payload) in prop::sample::select(numbers()).prop_flat_map(|number| {
            let sizes = Code::from_wire(number).unwrap().rule().payload.clone();
            // Small values, so that indices, flags and sizes are often right.
            let byte = prop_oneof![3 => Just(0u8), 1 => 0u8..4, 1 => any::<u8>()];
            (Just(number), vec(byte, sizes))
        }),
        count in 0usize..9,
    ) {
        if let Ok(request) = understood(number, &payload, count) {
            check_promises(&request);
        }
    }

    #[test]
    fn a_memory_table_has_a_region_for_each_descriptor(count in 0usize..=8, claimed in 0u32..=9) {
        let mut payload = words(&[claimed, 0]);
        for region in 0..count as u64 {
            payload.extend(longs(&[region << 20, 1 << 20, region << 20, 0]));
        }
        match understood(5, &payload, count) {
            Ok(Request::Memory(MemoryRequest::SetTable(regions))) => {
                prop_assert_eq!(regions.len(), count);
                prop_assert_eq!(claimed as usize, count);
            }
            outcome => prop_assert!(outcome.is_err() && claimed as usize != count),
        }
    }
}

/// What a request promises by existing.
fn check_promises(request: &Request<MemoryFile>) {
    match request {
        Request::Ring {
            request: RingRequest::SetSize(size),
            ..
        } => {
            assert!(size.is_power_of_two());
        }
        Request::Config(ConfigRequest::Read { offset, length, .. }) => {
            assert!(*length > 0 && offset + length <= 256);
        }
        Request::Config(ConfigRequest::Write { offset, bytes }) => {
            assert!(!bytes.is_empty() && usize::from(*offset) + bytes.len() <= 256);
        }
        Request::Memory(MemoryRequest::Add(MemoryFile { layout, .. }))
        | Request::Memory(MemoryRequest::Remove(layout)) => {
            assert!(layout.size > 0);
            assert!(layout.guest_address.checked_add(layout.size).is_some());
            assert!(layout.offset.checked_add(layout.size).is_some());
        }
        Request::Memory(MemoryRequest::SetTable(regions)) => assert!(regions.len() <= 8),
        Request::Memory(MemoryRequest::Slots)
        | Request::Feature(_)
        | Request::Lifecycle(_)
        | Request::BackendChannel(_)
        | Request::Ring { .. } => {}
    }
}

#[test]
fn fields_are_where_the_spec_puts_them() {
    let Ok(Request::Feature(FeatureRequest::SetFeatures(bits))) =
        understood(2, &longs(&[1 << 32]), 0)
    else {
        panic!("SET_FEATURES");
    };
    assert_eq!(bits, 1 << 32);

    // Index and flags, then descriptors, *used*, available, log.
    let mut payload = words(&[3, 0]);
    payload.extend(longs(&[0x1000, 0x3000, 0x2000, 0]));
    let Ok(Request::Ring {
        index: 3,
        request: RingRequest::SetAddresses(addresses),
    }) = understood(9, &payload, 0)
    else {
        panic!("SET_VRING_ADDR");
    };
    let expected = UserAddresses {
        descriptors: 0x1000,
        available: 0x2000,
        used: 0x3000,
    };
    assert_eq!(addresses, expected);

    // Guest address, *size*, user address, offset, behind eight bytes of padding.
    let Ok(Request::Memory(MemoryRequest::Add(memory))) =
        understood(37, &longs(&[0, 0x10, 0x20, 0x30, 0x40]), 1)
    else {
        panic!("ADD_MEM_REG");
    };
    let layout = memory.layout;
    assert_eq!((layout.guest_address, layout.size), (0x10, 0x20));
    assert_eq!((layout.user_address, layout.offset), (0x30, 0x40));
}

#[test]
fn a_ring_event_has_a_descriptor_or_says_that_it_has_none() {
    assert!(matches!(
        understood(12, &longs(&[2]), 1),
        Ok(Request::Ring {
            index: 2,
            request: RingRequest::SetKick(Some(_))
        })
    ));
    assert!(matches!(
        understood(13, &longs(&[0x102]), 0),
        Ok(Request::Ring {
            index: 2,
            request: RingRequest::SetCall(None)
        })
    ));
    assert!(understood(14, &longs(&[2]), 0).is_err());
    assert!(understood(14, &longs(&[0x102]), 1).is_err());
    assert!(understood(14, &longs(&[0x202]), 1).is_err());
}

#[test]
fn a_refused_message_closes_its_descriptors() {
    let (read_end, write_end) = rustix::pipe::pipe().unwrap();
    let number = write_end.as_raw_fd();
    let bytes: [u8; HEADER_SIZE] = words(&[1, 1, 0]).try_into().unwrap();
    let refused = parse(&Header::parse(bytes).unwrap(), &[], vec![write_end]);
    let error = refused.unwrap_err().to_string();
    assert_eq!(error, "GET_FEATURES: 1 descriptors, 0 expected");
    let mut byte = [0];
    assert_eq!(
        rustix::io::read(&read_end, &mut byte).unwrap(),
        0,
        "descriptor {number} is open"
    );
}
