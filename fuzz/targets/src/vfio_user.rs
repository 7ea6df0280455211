//! The codec of vfio-user: a header, a payload, descriptors.

use vudev_proxy::vfio_user::{
    DATA_MAX, DmaMap, DmaUnmap, HEADER_SIZE, Header, InterruptAction, PAYLOAD_MAX, Reply, Request,
    SKIPPED_MAX, SetInterrupts, Which, answer, encode, encode_error, parse,
};

use crate::descriptors::Counted;
use crate::input::Input;

pub(crate) fn codec(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let count = usize::from(input.u8() % 18);
    let bytes = input.array::<HEADER_SIZE>();
    let Ok(header) = Header::parse(bytes) else {
        return;
    };
    assert!(header.payload_size() + HEADER_SIZE <= SKIPPED_MAX as usize);
    // The size that it says, or another: the codec is to find that out.
    let payload = input.rest();
    let mut reply = Vec::new();
    let (counted, descriptors) = Counted::new(count);
    match parse(&header, payload, descriptors) {
        Ok(request) => {
            check(&header, &request, count, &mut reply);
            drop(request);
        }
        Err(error) => {
            assert!(!error.to_string().is_empty() && error.errno().raw_os_error() > 0);
            encode_error(&header, error.errno(), &mut reply);
            assert_eq!(reply.len(), HEADER_SIZE);
        }
    }
    assert!(counted.all_closed(), "descriptors are closed");
}

/// What a request promises by existing.
fn check(header: &Header, request: &Request<'_>, count: usize, reply: &mut Vec<u8>) {
    let mut descriptors = 0;
    match *request {
        Request::Version {
            minor: _,
            ref proposal,
            data_size,
        } => {
            let data = answer(proposal, data_size);
            assert!(data.len() <= data_size);
            encode(header, &Reply::Version { data: &data }, reply);
        }
        Request::DmaMap(DmaMap {
            readable: _,
            writable: _,
            address,
            size,
            offset,
            ref file,
        }) => {
            assert!(size > 0 && address.checked_add(size - 1).is_some());
            assert!(offset.checked_add(size).is_some());
            descriptors = usize::from(file.is_some());
        }
        Request::DmaUnmap(DmaUnmap { first, last, .. }) => assert!(first <= last),
        Request::RegionInfo { index: _, room } => assert!(room >= 32),
        Request::SetIrqs(ref set) => descriptors = check_interrupts(set),
        Request::RegionRead {
            region: _,
            offset,
            count,
        } => check_access(offset, count),
        Request::RegionWrite {
            region,
            offset,
            data,
        } => {
            check_access(offset, data.len());
            let access = Reply::Access {
                region,
                offset,
                count: data.len(),
                data,
            };
            encode(header, &access, reply);
        }
        Request::DeviceInfo | Request::IrqInfo { .. } | Request::Reset => {}
    }
    assert_eq!(descriptors, count, "none is lost and none is made up");
    assert!(reply.len() <= HEADER_SIZE + PAYLOAD_MAX);
}

fn check_access(offset: u64, count: usize) {
    assert!((1..=DATA_MAX).contains(&count) && offset.checked_add(count as u64).is_some());
}

fn check_interrupts(set: &SetInterrupts<'_>) -> usize {
    assert!(set.start.checked_add(set.count).is_some());
    let count = set.count as usize;
    match &set.action {
        InterruptAction::Assign(files) => {
            assert_eq!(files.len(), count);
            count
        }
        InterruptAction::Trigger(Which::Marked(marks)) => {
            assert_eq!(marks.len(), count);
            0
        }
        InterruptAction::Unassign
        | InterruptAction::DisableAll
        | InterruptAction::Trigger(Which::All) => 0,
    }
}
