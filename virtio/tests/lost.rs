//! A file that shrinks under mapped guest memory ends its queue, not the process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::rc::Rc;

use rustix::fs::MemfdFlags;
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};
use vudev_executor::{Executor, IoBuffers as _};
use vudev_virtio::testing::{GUEST_BASE, Guest};
use vudev_virtio::{
    Framed, GuestMemory, QueueError, Region, RegionLayout, Taken, install_sigbus_guard,
};

const MEMORY: u64 = 1 << 20;

fn shrink(guest: &Guest) {
    rustix::fs::ftruncate(guest.file(), 0).unwrap();
}

#[test]
fn memory_whose_file_shrank_reads_zeros_and_is_lost() {
    install_sigbus_guard().unwrap();
    let (guest, other) = (Guest::new(MEMORY), Guest::new(MEMORY));
    let address = guest.allocate(4, 1);
    guest.write(address, b"here");
    shrink(&guest);
    assert!(
        !guest.memory().is_lost(),
        "nobody can know before an access"
    );
    assert_eq!(guest.read(address, 4), [0; 4]);
    assert!(guest.memory().is_lost());
    assert!(!other.memory().is_lost(), "other memory is not concerned");
    guest.write(address + 100_000, b"another page, by a write");
    // The same place mapped anew later is not lost.
    drop(guest);
    assert!(!Guest::new(MEMORY).memory().is_lost());
}

#[test]
fn a_queue_whose_memory_is_lost_retires_and_the_process_lives() {
    install_sigbus_guard().unwrap();
    let executor = Executor::with_operations(8).unwrap();
    let guest = Guest::new(MEMORY);
    let ring = guest.ring(8);
    let (mut queue, control) = ring.start(executor.handle(), 0);
    ring.add(&[b"request"], &[16]);
    executor
        .run(async {
            let chain = queue.next().await.unwrap().unwrap();
            ring.kick();
            shrink(&guest);
            let error = queue.next().await.unwrap_err();
            assert!(matches!(error, QueueError::MemoryLost), "{error}");
            assert!(control.is_retired());
            assert_eq!(ring.errors(), 1);
            // What was in flight is given back into nothing, without harm.
            queue.complete(chain, 16);
            executor.handle().yield_now().await;
            assert_eq!((control.in_flight(), ring.calls()), (0, 0));
            control.stop();
            assert!(queue.next().await.unwrap().is_none());
        })
        .unwrap();
}

#[test]
fn a_region_of_whole_pages_shrunk_in_part_keeps_the_rest() {
    install_sigbus_guard().unwrap();
    let guest = Guest::new(MEMORY);
    let first = guest.allocate(8192, 4096);
    guest.write(first, b"stays");
    rustix::fs::ftruncate(guest.file(), first - guest.layout().guest_address + 4096).unwrap();
    assert_eq!(guest.read(first, 5), b"stays");
    assert!(!guest.memory().is_lost());
    assert_eq!(guest.read(first + 4096, 1), [0]);
    assert!(guest.memory().is_lost());
    assert_eq!(guest.read(first, 5), b"stays");
}

/// Where the host has no huge pages to spare every access faults, and the page that takes a lost
/// one's place is a huge one too. Where it has some, nothing is lost.
#[test]
fn memory_in_huge_pages_is_mapped_and_guarded_in_whole_ones() {
    install_sigbus_guard().unwrap();
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    let Ok(file) = rustix::fs::memfd_create("huge", flags) else {
        return; // A kernel without them.
    };
    let huge = rustix::fs::fstatfs(&file).unwrap().f_bsize.unsigned_abs();
    rustix::fs::ftruncate(&file, 2 * huge).unwrap();
    let layout = RegionLayout {
        guest_address: 0x1000,
        user_address: 0x1000,
        // Neither begins nor ends at a page of theirs.
        size: huge + 5000,
        offset: 4096,
    };
    let region = Region::map(layout, file).unwrap();
    let memory = GuestMemory::new(vec![region]).unwrap();
    let mut last = [1];
    memory.read(0x1000 + layout.size - 1, &mut last).unwrap();
    memory.write(0x1000, b"first").unwrap();
    assert_eq!(last, [0]);
}

/// In a process of its own, since it dies.
#[test]
fn a_fault_outside_guest_memory_kills_as_it_always_did() {
    const CHILD: &str = "VUDEV_TEST_SIGBUS_CHILD";
    if std::env::var_os(CHILD).is_some() {
        install_sigbus_guard().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let shrunk = file.try_clone().unwrap();
        let region = MmapRegion::<()>::from_file(FileOffset::new(file, 0), 4096).unwrap();
        shrunk.set_len(0).unwrap();
        region.get_slice(0, 1).unwrap().copy_to(&mut [0_u8]);
        unreachable!("the access is beyond the file");
    }
    let this = std::env::current_exe().unwrap();
    let name = "a_fault_outside_guest_memory_kills_as_it_always_did";
    let output = Command::new(this)
        .args(["--exact", name])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

#[test]
fn regions_come_and_go_without_using_up_the_watch() {
    for _ in 0..5000 {
        let guest = Guest::new(4096);
        let memory: Rc<GuestMemory> = guest.memory();
        assert!(!memory.is_lost());
    }
}

#[test]
fn a_frame_takes_nothing_from_lost_memory_and_stays_as_it_was() {
    install_sigbus_guard().unwrap();
    let executor = Executor::with_operations(16).unwrap();
    // The ring is lost, before the second chain was seen or after; or only what is behind it, and
    // the chain is walked to its end.
    for (seen, left) in [(1, 0), (2, 0), (2, 4096)] {
        let guest = Guest::new(MEMORY);
        let ring = guest.ring(16);
        let (mut queue, control) = ring.start(executor.handle(), 0);
        let mut frame = Framed::<1, 1>::skipping(4);
        for _ in 0..seen {
            ring.add(&[], &[20]);
        }
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Chain);
        for _ in seen..3 {
            ring.add(&[], &[20]);
        }
        let pieces = |frame: &Framed<1, 1>| -> Vec<_> {
            let piece = |it: &libc::iovec| (it.iov_base, it.iov_len);
            frame.iovecs().iter().map(piece).collect()
        };
        let before = pieces(&frame);
        rustix::fs::ftruncate(guest.file(), left).unwrap();
        if left > 0 {
            guest.read(GUEST_BASE + left, 1);
        }
        let error = queue.take_into(&mut frame).unwrap_err();
        assert!(matches!(error, QueueError::MemoryLost), "{error}");
        assert_eq!((pieces(&frame), frame.chains()), (before, 1));
        assert_eq!((frame.room(), control.in_flight()), (16, 1));
        assert_eq!((control.is_retired(), ring.errors()), (true, 1));
        assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::None);
        // What it has goes back into nothing.
        queue.put_back_all(&mut frame);
        assert_eq!((frame.chains(), control.in_flight()), (0, 0));
        assert_eq!(control.dropped(), 0);
    }
}

#[test]
fn what_was_lost_with_its_memory_is_not_published_in_the_next() {
    install_sigbus_guard().unwrap();
    let executor = Executor::with_operations(16).unwrap();
    let ring = Guest::new(1 << 20).ring(16);
    let (mut queue, control) = ring.start(executor.handle(), 0);
    ring.add(&[], &[4]);
    let mut frame = Framed::<0, 0>::new();
    assert_eq!(queue.take_into(&mut frame).unwrap(), Taken::Chain);
    rustix::fs::ftruncate(ring.guest().file(), 0).unwrap();
    ring.guest().read(GUEST_BASE, 1);
    queue.complete_first(&mut frame, 1, 4);
    let other = Guest::new(1 << 20).ring(16);
    assert_eq!(other.addresses(), ring.addresses());
    other.add(&[], &[4]);
    other.add(&[], &[4]);
    control.set_memory(other.guest().memory()).unwrap();
    let chain = queue.try_next().unwrap().unwrap();
    queue.complete(chain, 1);
    assert_eq!(other.used_index(), 1, "one was completed in this memory");
}
