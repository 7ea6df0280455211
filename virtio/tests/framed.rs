//! Guest buffers of several chains behind bytes of our own: what the kernel moves, in which order,
//! and how such chains are used together.

use vudev_executor::{Executor, File, IoBuffers as _};
use vudev_virtio::Framed;
use vudev_virtio::testing::Guest;

#[test]
fn the_kernel_moves_our_bytes_and_those_of_every_chain_in_their_order() {
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle();
    let ring = Guest::new(1 << 20).ring(16);
    let (mut queue, _control) = ring.start(handle, 0);
    let moved = executor.run(async {
        for sizes in [&[4][..], &[2, 3]] {
            ring.add(&[], sizes);
        }
        let mut first = queue.next().await.unwrap().unwrap();
        let mut second = queue.next().await.unwrap().unwrap();
        let mut framed = Framed::<3, 2>::new();
        assert_eq!(framed.pieces(), 2, "head and tail");
        framed.edit_guest(|guest| {
            guest.push_back(first.writable.take());
            guest.push_back(second.writable.take());
        });
        let (from, to) = std::io::pipe().unwrap();
        let (from, to) = (File::new(handle, from), File::new(handle, to));
        let sent = vudev_executor::Bytes::from(b"HEDabcdefghiTL".to_vec());
        assert_eq!(to.write(sent).await.0.unwrap(), 14);
        let (read, mut framed) = from.read(framed).await;
        assert_eq!((read.unwrap(), framed.head()), (14, b"HED"));
        // A look takes nothing away, and ends where the bytes do.
        let mut begin = [0; 8];
        assert_eq!(framed.guest()[1].peek(&mut begin), 5);
        assert_eq!(&begin, b"efghi\0\0\0");
        assert_eq!(framed.guest()[0].peek(&mut begin[..2]), 2);
        assert_eq!((&begin[..2], framed.guest()[0].len()), (&b"ab"[..], 4));
        // And back again, with another head.
        framed.set_head(*b"hed");
        let (written, mut framed) = to.write(framed).await;
        assert_eq!(written.unwrap(), 14);
        let (read, back) = from.read(vudev_executor::Bytes::zeroed(20)).await;
        assert_eq!(&back.as_slice()[..read.unwrap()], b"hedabcdefghiTL");
        framed.edit_guest(|guest| guest.clear());
        assert_eq!(framed.iovecs().len(), 2, "nothing of the guest's is left");
        // Neither is seen before both are.
        let before = ring.used_index();
        let chains = [(first, 4), (second, 5)].into_iter();
        queue.complete_together(chains.inspect(|_| assert_eq!(ring.used_index(), before)));
        assert_eq!(ring.used_index(), before.wrapping_add(2));
        assert_eq!(ring.next_used(handle).await.bytes, b"abcd");
        assert_eq!(ring.next_used(handle).await.bytes, b"efghi");
    });
    moved.unwrap();
}
