//! Devices of ours by every wire: what they do must not depend on how a front-end came to them. The
//! memory of a function's bar cannot be pinned, so a disk with O_DIRECT copies there.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use vudev_devices::block::{Block, BlockConfig, measure};
use vudev_devices::console::Console;
use vudev_devices::net::{Net, NetConfig};
use vudev_devices::rng::Rng;
use vudev_frontend::{FrontEnd, LIMIT, block, console, net, rng};

use crate::common::{Wire, serve_over};

/// What the helpers take for granted; each test says its own.
const WIRE: Wire = Wire::Socket;

const BOTH: [Wire; 2] = [Wire::Socket, Wire::Vvu];

/// Bytes of the disk, and of what is written at once.
const DISK: u64 = 1 << 20;
const PIECE: usize = 64 << 10;

/// Bytes that are nowhere the same.
fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let words = (0_u32..).map(|at| (at ^ seed).wrapping_mul(0x9e37_79b1));
    words.flat_map(u32::to_le_bytes).take(len).collect()
}

/// Writes, reads back, and reads what the file had.
fn use_disk(path: &Path, before: &[u8]) {
    let builder = FrontEnd::connect(path).memory(4 << 20);
    let length = u32::try_from(PIECE).unwrap();
    let mut disk = block::Block::start(builder, 4, length).unwrap();
    let mut read = vec![0; before.len()];
    disk.read(0, &mut read).unwrap();
    assert!(read == before, "what the file had");
    // Whole blocks, and a sector in the midst of one.
    for (offset, len) in [(0, 3 * PIECE), (512 * 7, 512), (DISK - 512, 512)] {
        let data = pattern(u32::try_from(offset).unwrap(), len);
        disk.write(offset, &data).unwrap();
        let mut back = vec![0; len];
        disk.read(offset, &mut back).unwrap();
        assert!(back == data, "{len} bytes at {offset}");
    }
    disk.flush().unwrap();
}

fn serve_disk(wire: Wire, direct: bool) {
    let named = tempfile::NamedTempFile::new().unwrap();
    let before = pattern(7, usize::try_from(DISK).unwrap());
    named.as_file().write_all_at(&before, 0).unwrap();
    let flags = if direct { libc::O_DIRECT } else { 0 };
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(named.path())
        .unwrap();
    let config = BlockConfig {
        capacity: DISK,
        direct,
        direct_alignment: measure(&file).unwrap().direct_alignment.unwrap_or(4096),
        ..BlockConfig::default()
    };
    let expected = before.clone();
    let served = serve_over(
        wire,
        |handle| Block::new(handle, &config, file).unwrap(),
        move |path| use_disk(path, &expected),
    );
    served.assert_all_left();
    let mut after = vec![0; before.len()];
    named.as_file().read_exact_at(&mut after, 0).unwrap();
    let (start, end) = (512 * 7, after.len() - 512);
    assert!(after[start..start + 512] == pattern(512 * 7, 512));
    assert!(after[end..] == pattern(u32::try_from(DISK - 512).unwrap(), 512));
    assert!(after[3 * PIECE..end] == before[3 * PIECE..end], "untouched");
}

#[test]
fn a_disk_is_the_same_by_every_wire() {
    BOTH.into_iter().for_each(|wire| serve_disk(wire, false));
}

#[test]
fn a_disk_past_the_page_cache_is_the_same_by_every_wire() {
    BOTH.into_iter().for_each(|wire| serve_disk(wire, true));
}

#[test]
fn random_bytes_come_by_every_wire() {
    for wire in BOTH {
        let served = serve_over(
            wire,
            |handle| Rng::new(handle, None, None),
            |path| {
                let mut rng = rng::Rng::start(FrontEnd::connect(path).queue_size(8)).unwrap();
                let (one, other) = (rng.read(64, LIMIT).unwrap(), rng.read(64, LIMIT).unwrap());
                assert!(!one.is_empty() && one != other);
            },
        );
        served.assert_all_left();
    }
}

#[test]
fn a_console_keeps_every_byte_while_front_ends_come_and_go_by_every_wire() {
    for wire in BOTH {
        let (input, mut typing) = std::io::pipe().unwrap();
        let (mut reading, output) = std::io::pipe().unwrap();
        let served = serve_over(
            wire,
            |handle| Console::new(handle, Some(input.into()), Some(output.into())),
            move |path| {
                let mut console =
                    console::Console::start(FrontEnd::connect(path).queues(2), 4).unwrap();
                for round in 0..3_u8 {
                    let said = [b'a' + round; 300];
                    console.send(&said).unwrap();
                    let mut printed = [0; 300];
                    reading.read_exact(&mut printed).unwrap();
                    assert_eq!(printed, said);
                    typing.write_all(&[b'0' + round; 5]).unwrap();
                    assert_eq!(console.receive(5, LIMIT).unwrap(), [b'0' + round; 5]);
                    console = console.leave().unwrap().resume().unwrap();
                }
            },
        );
        served.assert_all_left();
        assert_eq!(served.outcomes.len(), 4);
    }
}

/// Bytes of a frame's header (virtio 1.3, 5.1.6).
const HEADER: usize = 12;

#[test]
fn frames_go_both_ways_by_every_wire() {
    for wire in BOTH {
        let (network, tap) = UnixDatagram::pair().unwrap();
        network.set_read_timeout(Some(LIMIT)).unwrap();
        let config = NetConfig {
            mac: None,
            mtu: 1500,
            pairs: 1,
            multi_queue: false,
            mergeable: true,
            offloads: 0,
        };
        let served = serve_over(
            wire,
            |handle| Net::new(handle, config, vec![tap.into()]).unwrap(),
            move |path| {
                let builder = FrontEnd::connect(path).memory(4 << 20);
                let mut net = net::Net::start(builder, 1, 16, 2048).unwrap();
                for round in 0..20_u8 {
                    let frame = vec![round; 60 + usize::from(round) * 70];
                    net.send(0, &net::Header::default(), &frame).unwrap();
                    let mut went = [0; 2048];
                    let count = network.recv(&mut went).unwrap();
                    assert!(went[HEADER..count] == frame, "round {round} out");
                    network.send(&[&[0; HEADER][..], &frame].concat()).unwrap();
                    let came = net.receive(0, LIMIT).unwrap();
                    assert!(came.bytes == frame, "round {round} in");
                }
            },
        );
        served.assert_all_left();
    }
}
