//! The walk of a chain: a descriptor table, noise in memory for indirect tables, heads. Each chain
//! by itself, or all in a frame.

use std::collections::VecDeque;
use std::rc::Rc;

use vudev_executor::IoBuffers;
use vudev_virtio::spec::{DESCRIPTOR_BYTES, feature};
use vudev_virtio::testing::{GUEST_BASE, Guest, RawDescriptor};
use vudev_virtio::{Framed, GuestMemory, Queue, RegionLayout, Taken};

use crate::executor::with_executor;
use crate::input::Input;

const MEMORY: u64 = 1 << 16;
const SIZE: u16 = 16;
/// Noise lies in as many places, evenly.
const PLACES: u64 = 64;

pub(crate) fn walk(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let choice = input.u8();
    let unless = |bit: u8, feature: u64| if choice & bit == 0 { feature } else { 0 };
    let features =
        feature::VERSION_1 | unless(1, feature::INDIRECT_DESC) | unless(2, feature::EVENT_IDX);
    let guest = Guest::new(MEMORY);
    let ring = guest.ring_with(SIZE, features);
    for index in 0..SIZE {
        ring.set_descriptor(index, descriptor(&mut input));
    }
    with_executor(|executor| {
        let mut parts = ring.parts(executor.handle(), 0);
        if choice & 4 != 0 {
            // From anywhere in the 16 bits, and anything in the available ring.
            parts.next_available = input.u16();
            let ready = input.u16() % (2 * SIZE);
            guest.write(ring.addresses().available + 4, &input.array::<32>());
            ring.set_available_index(parts.next_available.wrapping_add(ready));
        } else {
            let heads = input.u8() % 40;
            (0..heads).for_each(|_| ring.publish(head(&mut input)));
        }
        let mut steps = Input::new(match choice & 8 {
            0 => &[],
            _ => input.bytes(STEP_BYTES * usize::from(STEPS)),
        });
        for place in 0..PLACES {
            let at = GUEST_BASE + place * (MEMORY / PLACES);
            let noise = input.array::<DESCRIPTOR_BYTES>();
            if noise != [0; DESCRIPTOR_BYTES] {
                guest.write(at, &noise);
            }
        }
        if let Ok((mut queue, _control)) = Queue::start(executor.handle(), parts) {
            let memory = guest.memory();
            match choice & 8 {
                0 => drain(&mut queue, &memory),
                _ => drain_framed(&mut queue, &memory, &mut steps),
            }
        }
        // The turn's end has the call to the driver, and lets go of the queue and its memory.
        executor.run(async {}).expect("the ring works");
    });
}

/// Mostly near the truth, so that walks go deep; sometimes anything.
fn descriptor(input: &mut Input<'_>) -> RawDescriptor {
    let kind = input.u8();
    let near = u64::from(input.u16());
    let address = match kind & 7 {
        7 => input.u64(),
        6 => GUEST_BASE + MEMORY - 40 + near % 80,
        _ => GUEST_BASE + near,
    };
    let len = match kind >> 3 & 3 {
        0 => u32::from(input.u16() % 600),
        1 => 16 * u32::from(input.u8() % 40),
        2 => u32::from(input.u16()),
        _ => input.u32(),
    };
    let flags = match kind >> 5 & 1 {
        0 => u16::from(input.u8() % 8),
        _ => input.u16(),
    };
    RawDescriptor {
        address,
        len,
        flags,
        next: head(input),
    }
}

fn head(input: &mut Input<'_>) -> u16 {
    match input.u8() {
        byte @ 0..=223 => u16::from(byte) % SIZE,
        _ => input.u16(),
    }
}

/// Takes and touches all that the ring offers, until it is empty or retired.
fn drain(queue: &mut Queue, memory: &Rc<GuestMemory>) {
    for _ in 0..2 * SIZE {
        let Ok(Some(mut chain)) = queue.try_next() else {
            return;
        };
        lies_in(&chain.readable, 0, memory);
        lies_in(&chain.writable, 0, memory);
        let (readable, writable) = (chain.readable.len(), chain.writable.len());
        assert!(u32::try_from(readable + writable).is_ok_and(|total| total > 0));
        // Larger ones only overlap more.
        let mut bytes = vec![0; readable.min(1 << 17)];
        chain.readable.read(&mut bytes).expect("in memory");
        // Written over whatever lies there, the ring itself too.
        let bytes = vec![0xa5; writable.min(1 << 17)];
        chain.writable.write(&bytes).expect("in memory");
        queue.complete(chain, u32::MAX);
    }
}

/// A frame as the network card has one, and what it leaves out.
type Frame = Framed<4, 1>;
const SKIP: usize = 12;

/// Chains that are taken into it, and the bytes that say what is done after each.
const STEPS: u16 = 4 * SIZE;
const STEP_BYTES: usize = 3;

/// The same through a frame: chains come in, are completed from its front, and are put back.
fn drain_framed(queue: &mut Queue, memory: &Rc<GuestMemory>, steps: &mut Input<'_>) {
    let mut frame = Frame::skipping(SKIP);
    let mut lengths = VecDeque::new();
    for _ in 0..STEPS {
        let room = frame.room();
        match queue.take_into(&mut frame) {
            Ok(Taken::Chain) => {
                let left_out = if lengths.is_empty() { SKIP } else { 0 };
                lengths.push_back(frame.room() - room + left_out);
            }
            Ok(Taken::Unfit) => {}
            Ok(Taken::Elsewhere) => unreachable!("there is one memory and one queue"),
            Ok(Taken::None) | Err(_) => break,
        }
        check(&frame, &lengths, memory);
        let bytes = usize::from(steps.u16());
        let count = match steps.u8() % 8 {
            7 => {
                queue.put_back_all(&mut frame);
                lengths.clear();
                continue;
            }
            6 => bytes % 5,
            3..=5 => frame.chains_for(bytes),
            _ => continue,
        };
        queue.complete_first(&mut frame, count, bytes);
        lengths.drain(..count.min(lengths.len()));
        check(&frame, &lengths, memory);
    }
    check(&frame, &lengths, memory);
    queue.put_back_all(&mut frame);
    assert_eq!((frame.chains(), frame.room(), frame.pieces()), (0, 0, 2));
}

/// `lengths`: those of its chains.
fn check(frame: &Frame, lengths: &VecDeque<usize>, memory: &Rc<GuestMemory>) {
    let [_head, guest @ .., _tail] = frame.iovecs() else {
        unreachable!("two pieces are our own");
    };
    lies_in(frame, 1, memory);
    assert!(guest.iter().all(|piece| piece.iov_len > 0));
    let room: usize = guest.iter().map(|piece| piece.iov_len).sum();
    assert_eq!((frame.room(), frame.bytes()), (room, room + 5));
    let expected = lengths.iter().sum::<usize>().saturating_sub(SKIP);
    assert_eq!((frame.chains(), room), (lengths.len(), expected));
    assert!(frame.pieces() <= 1024);
    let has_some = frame.chains() > 0;
    // Written over whatever lies there, the ring itself too.
    let mark = [0x5a; SKIP];
    assert_eq!(frame.write_front(&mark).is_ok(), has_some);
    let mut begin = [0; SKIP];
    assert_eq!(frame.peek(&mut begin), if has_some { SKIP } else { 0 });
}

/// But for so many pieces of our own, in front of the guest's and behind them.
fn lies_in(buffers: &impl IoBuffers, own: usize, memory: &Rc<GuestMemory>) {
    let RegionLayout {
        guest_address,
        size,
        ..
    } = memory.regions()[0].layout();
    // Where the region is mapped shows in any buffer that begins at its first byte.
    let first = memory.buffers(&[(guest_address, 1)]).expect("in memory");
    let base = first.iovecs()[0].iov_base.addr();
    let end = base + usize::try_from(size).expect("a size");
    let pieces = buffers.iovecs();
    for piece in &pieces[own..pieces.len() - own] {
        let start = piece.iov_base.addr();
        assert!(base <= start && start + piece.iov_len <= end);
    }
}
