//! The front-ends of crates `vhost` and `virtio-driver`, which are not ours, as a second opinion.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_driver::{Le64, VhostUser, VirtioTransport};
use vmm_sys_util::eventfd::EventFd;
use vudev_frontend::message::feature;
use vudev_frontend::{GuestMemory, Ring};

use crate::WIRE;
use crate::common::{RING_SIZE_MAX, Wire, serve_mirror};

#[test]
fn the_front_end_of_crate_vhost_is_content_with_every_answer() {
    let served = serve_mirror(|path| {
        let mut front = Frontend::from_stream(UnixStream::connect(path).unwrap(), 2);
        negotiate(&mut front);

        let memory = std::rc::Rc::new(GuestMemory::new());
        memory.add_region(1 << 20).unwrap();
        let mut ring = Ring::new(&memory, 0, 64).unwrap();
        ring.set_features(feature::VERSION_1);
        share(&front, &memory);
        let new = || EventFd::new(0).unwrap();
        let events = Events {
            kick: new(),
            call: new(),
            error: new(),
        };
        start(&mut front, &ring, &events);

        let there = memory.allocate(4, 1).unwrap();
        memory.write(there, b"ping").unwrap();
        let back = memory.allocate(4, 1).unwrap();
        let buffer = |address| vudev_frontend::Buffer::new(address, 4);
        ring.add(&[buffer(there)], &[buffer(back)]).unwrap();
        events.kick.write(1).unwrap();
        events.call.read().unwrap();
        assert_eq!(ring.poll_used().unwrap().unwrap().written, 4);

        configuration(&mut front);
        assert!(
            front.set_vring_num(0, RING_SIZE_MAX).is_err(),
            "it is running"
        );
        assert_eq!(front.get_vring_base(0).unwrap(), 1);
        front.reset_device().unwrap();
        front.reset_owner().unwrap();
    });
    served.assert_all_left();
}

#[test]
fn the_front_end_of_crate_virtio_driver_is_content_with_every_answer() {
    let served = serve_mirror(|path| {
        let path = path.to_str().unwrap();
        let connected: Result<VhostUser<Le64, ()>, _> = VhostUser::new(path, feature::VERSION_1);
        if WIRE == Wire::Vvu {
            // It knows memory by slots only.
            let error = connected.err().unwrap().to_string();
            assert!(error.contains("required protocol features"), "{error}");
            return;
        }
        let mut front = connected.unwrap();
        assert_eq!(front.max_queues(), Some(2));
        assert_eq!(front.max_mem_regions(), 509);
        assert_eq!(
            front.get_config().unwrap().to_native(),
            u64::from_le_bytes([1, 2, 3, 4, 5, 6, 7, 8])
        );

        // Guest addresses are user addresses here, and no region is whole pages.
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let address = 0x7f12_3456_7000;
        for _ in 0..3 {
            front
                .map_mem_region(address, 0x1001, file.as_raw_fd(), 0x1000)
                .unwrap();
            let overlapping = front.map_mem_region(address + 0x800, 8, file.as_raw_fd(), 0);
            assert!(overlapping.is_err());
            front.unmap_mem_region(address, 0x1001).unwrap();
        }
    });
    served.assert_all_left();
}

fn negotiate(front: &mut Frontend) {
    front.set_owner().unwrap();
    let offered = front.get_features().unwrap();
    let protocol = front.get_protocol_features().unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::REPLY_ACK));
    front.set_protocol_features(protocol).unwrap();
    front.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    let wanted = feature::VERSION_1 | feature::PROTOCOL_FEATURES;
    front.set_features(offered & wanted).unwrap();
    assert_eq!(front.get_queue_num().unwrap(), 2);
    if WIRE == Wire::Socket {
        assert_eq!(front.get_max_mem_slots().unwrap(), 509);
    }
}

fn region(memory: &GuestMemory, number: usize) -> VhostUserMemoryRegionInfo {
    memory.with_region(number, |layout, file| VhostUserMemoryRegionInfo {
        guest_phys_addr: layout.guest_address,
        memory_size: layout.size,
        userspace_addr: layout.user_address,
        mmap_offset: layout.offset,
        mmap_handle: file.as_raw_fd(),
    })
}

fn share(front: &Frontend, memory: &GuestMemory) {
    let mut front = front.clone();
    front.set_mem_table(&[region(memory, 0)]).unwrap();
    if WIRE == Wire::Vvu {
        return;
    }
    let more = memory.add_region(0x2000).unwrap();
    front.add_mem_region(&region(memory, more)).unwrap();
    front.remove_mem_region(&region(memory, more)).unwrap();
}

struct Events {
    kick: EventFd,
    call: EventFd,
    error: EventFd,
}

fn start(front: &mut Frontend, ring: &Ring, events: &Events) {
    let addresses = ring.addresses().unwrap();
    front.set_vring_num(0, 64).unwrap();
    front.set_vring_base(0, 0).unwrap();
    let data = VringConfigData {
        queue_max_size: RING_SIZE_MAX,
        queue_size: 64,
        flags: 0,
        desc_table_addr: addresses.descriptors,
        used_ring_addr: addresses.used,
        avail_ring_addr: addresses.available,
        log_addr: None,
    };
    front.set_vring_addr(0, &data).unwrap();
    front.set_vring_kick(0, &events.kick).unwrap();
    front.set_vring_call(0, &events.call).unwrap();
    front.set_vring_err(0, &events.error).unwrap();
    front.set_vring_enable(0, true).unwrap();
}

fn configuration(front: &mut Frontend) {
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, bytes) = front.get_config(0, 16, flags, &[0; 16]).unwrap();
    assert_eq!(bytes, (1..=16).collect::<Vec<u8>>());
    front.set_config(0, flags, &[9, 9]).unwrap();
    front
        .set_config(0, VhostUserConfigFlags::empty(), &[8, 8])
        .unwrap();
    assert!(front.set_config(8, flags, &[9]).is_err());
}
