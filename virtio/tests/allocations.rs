//! In steady state a request allocates nothing: counted by the allocator itself, so alone in its
//! process.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use vudev_executor::Executor;
use vudev_virtio::Chain;
use vudev_virtio::testing::allocations::{CountingAllocator, allocations};
use vudev_virtio::testing::{Guest, Ring};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const SIZE: u16 = 256;

/// Makes the same chains available once more, and waits until all are used.
async fn round(ring: &Ring, heads: &[u16], handle: &vudev_executor::Handle, used: &mut u16) {
    for &head in heads {
        ring.publish(head);
    }
    ring.kick();
    *used = used.wrapping_add(u16::try_from(heads.len()).unwrap());
    while used_index(ring) != *used {
        handle.yield_now().await;
    }
}

/// `Ring::used_index` without its vector.
fn used_index(ring: &Ring) -> u16 {
    let mut bytes = [0; 2];
    ring.guest()
        .memory()
        .read(ring.addresses().used + 2, &mut bytes)
        .unwrap();
    u16::from_le_bytes(bytes)
}

/// Allocations in 200 rounds of `chains` requests with data in `pieces` pieces that do not join.
fn allocated(chains: u16, readable: &[&[u8]], pieces: usize) -> u64 {
    let executor = Executor::with_operations(64).unwrap();
    let handle = executor.handle().clone();
    let ring = Guest::new(1 << 20).ring(SIZE);
    let (queue, control) = ring.start(&handle, 0);
    let writable = [vec![32; pieces], vec![1]].concat();
    let heads: Vec<u16> = (0..chains)
        .map(|_| ring.lay_out(readable, &writable))
        .collect();
    let server = handle.spawn(queue.serve(8, {
        let handle = handle.clone();
        async move |chain: &mut Chain| {
            let header = chain.readable.read_array::<6>().unwrap_or(*b"nobody");
            let mut status = chain.writable.split_off(32 * pieces).unwrap();
            // As for an operation: out by value and back.
            let mut data = chain.writable.take();
            handle.yield_now().await;
            data.write(&header).unwrap();
            chain.writable = data;
            status.write(&[0]).unwrap();
            97
        }
    }));
    executor
        .run(async {
            let mut used = 0;
            for _ in 0..8 {
                round(&ring, &heads, &handle, &mut used).await;
            }
            let before = allocations();
            assert!(before > 0, "the count counts");
            for _ in 0..200 {
                round(&ring, &heads, &handle, &mut used).await;
            }
            let counted = allocations() - before;
            control.stop();
            server.await.unwrap();
            counted
        })
        .unwrap()
}

/// What a disk gets, and chains whose lists are too long to stay where they stood.
#[test]
fn a_request_in_steady_state_allocates_nothing() {
    for (chains, readable, pieces) in [
        (16, &[b"header".as_slice()][..], 2),
        (4, &[b"header"], 60),
        (4, &[], 60),
    ] {
        let counted = allocated(chains, readable, pieces);
        let requests = 200 * chains;
        assert_eq!(
            counted, 0,
            "{counted} allocations in {requests} requests of {pieces} pieces"
        );
    }
}
