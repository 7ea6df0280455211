//! The codec of vhost-user, a back-end's side: a header, a payload, descriptors.

use vudev_transports::message::{
    ConfigRequest, HEADER_SIZE, Header, MEMORY_TABLE_REGIONS_MAX, MemoryFile, MemoryRequest,
    PAYLOAD_SIZE_MAX, Request, RingRequest, parse,
};
use vudev_virtio::RegionLayout;

use crate::descriptors::Counted;
use crate::input::Input;

pub(crate) fn codec(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let count = usize::from(input.u8() % 10);
    let Ok(header) = Header::parse(input.array::<HEADER_SIZE>()) else {
        return;
    };
    assert!(header.payload_size() <= PAYLOAD_SIZE_MAX);
    let payload = input.rest();
    let (counted, descriptors) = Counted::new(count);
    match parse(&header, payload, descriptors) {
        Ok(request) => {
            let rule = header.code().expect("one that we speak").rule();
            assert!(rule.payload.contains(&payload.len()));
            assert!(rule.descriptors.contains(&count));
            check(&request, count);
            drop(request);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    assert!(counted.all_closed(), "descriptors are closed");
}

/// What a request promises by existing.
fn check(request: &Request<MemoryFile>, count: usize) {
    match request {
        Request::Ring {
            index: _,
            request: RingRequest::SetSize(size),
        } => assert!(size.is_power_of_two()),
        Request::Config(ConfigRequest::Read { offset, length, .. }) => {
            assert!(*length > 0 && offset + length <= 256);
        }
        Request::Config(ConfigRequest::Write { offset, bytes }) => {
            assert!(!bytes.is_empty() && usize::from(*offset) + bytes.len() <= 256);
        }
        Request::Memory(MemoryRequest::SetTable(regions)) => {
            assert!(regions.len() <= MEMORY_TABLE_REGIONS_MAX && regions.len() == count);
            regions
                .iter()
                .for_each(|region| check_layout(&region.layout));
        }
        Request::Memory(MemoryRequest::Add(region)) => check_layout(&region.layout),
        Request::Memory(MemoryRequest::Remove(layout)) => check_layout(layout),
        Request::Memory(MemoryRequest::Slots)
        | Request::Feature(_)
        | Request::Lifecycle(_)
        | Request::BackendChannel(_)
        | Request::Ring { .. } => {}
    }
}

fn check_layout(layout: &RegionLayout) {
    let &RegionLayout {
        guest_address,
        user_address,
        size,
        offset,
    } = layout;
    assert!(size > 0);
    for start in [guest_address, user_address, offset] {
        assert!(start.checked_add(size).is_some(), "{layout:?}");
    }
}
