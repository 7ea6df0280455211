//! The front-end against a back-end that is not ours: the vhost-user-blk export of
//! `qemu-storage-daemon`.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails here says where; its numbers are small"
)]

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use vudev_frontend::{
    Block, Builder, Error, FrontEnd, LIMIT, RingStep, Step,
    block::{Finished, feature, kind},
    message::{feature::EVENT_IDX, feature::INDIRECT_DESC},
};
use vudev_harness::{Child, wait_until_listening};

/// Bytes on the test's disk.
const SIZE: u64 = 4 << 20;

/// A storage daemon with one disk; killed when dropped.
struct Daemon {
    _child: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    /// Starts one, or says why the test is skipped.
    fn start() -> Option<Self> {
        let program = "qemu-storage-daemon";
        if Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status()
            .is_err()
        {
            println!("SKIPPED: needs qemu-storage-daemon (package qemu-utils)");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("disk")).unwrap();
        file.set_len(SIZE).unwrap();
        let place = directory.path().display();
        let mut command = Command::new(program);
        command
            .arg("--blockdev")
            .arg(format!("driver=file,filename={place}/disk,node-name=f"))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={place}/socket,\
                 writable=on,num-queues=2"
            ));
        let mut child = Child::start(program, &command).unwrap();
        let socket = directory.path().join("socket");
        wait_until_listening(&socket, &mut child, LIMIT).unwrap();
        Some(Self {
            _child: child,
            directory,
        })
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn disk(&self) -> File {
        File::options()
            .read(true)
            .write(true)
            .open(self.directory.path().join("disk"))
            .unwrap()
    }

    fn front(&self) -> Builder {
        FrontEnd::connect(self.socket()).memory(4 << 20)
    }
}

/// Bytes that differ from place to place.
fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8 ^ seed).collect()
}

#[test]
fn what_is_written_is_on_the_disk_and_reads_back() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut block = Block::start(daemon.front(), 1, 16 << 10).unwrap();
    assert_eq!(block.config().capacity, SIZE / 512);
    let bytes = pattern(64 << 10, 7);
    block.write(1 << 20, &bytes).unwrap();
    block.flush().unwrap();
    let mut back = vec![0; bytes.len()];
    block.read(1 << 20, &mut back).unwrap();
    assert_eq!(back, bytes);
    let mut file = daemon.disk();
    file.seek(SeekFrom::Start(1 << 20)).unwrap();
    file.read_exact(&mut back).unwrap();
    assert_eq!(back, bytes);
    assert!(!block.id().unwrap().is_empty());
}

#[test]
fn many_requests_are_in_flight_on_both_queues_with_every_kind_of_ring() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let disk = pattern(SIZE as usize, 3);
    daemon.disk().write_all_at(&disk, 0).unwrap();
    for without in [0, EVENT_IDX, INDIRECT_DESC, EVENT_IDX | INDIRECT_DESC] {
        let front = daemon
            .front()
            .queues(2)
            .features(feature::MQ)
            .without_features(without);
        let mut block = Block::start(front, 32, 4096).unwrap();
        let mut sent = std::collections::HashMap::new();
        for at in 0..64 {
            let (queue, offset) = ((at % 2) as u16, at * 8192);
            let request = block.send_read(queue, offset, 4096).unwrap();
            sent.insert(format!("{request:?}"), offset as usize);
        }
        block.kick(0).unwrap();
        block.kick(1).unwrap();
        for at in 0..64 {
            let Finished {
                request,
                status,
                written,
            } = block.wait(at % 2, LIMIT).unwrap();
            assert_eq!((status, written), (0, 4097));
            let offset = sent.remove(&format!("{request:?}")).unwrap();
            assert_eq!(block.data(request).unwrap(), disk[offset..offset + 4096]);
        }
        assert_eq!(block.front().ring(0).in_flight(), 0);
    }
}

#[test]
fn a_ring_that_stopped_goes_on_where_it_was_after_a_reconnect() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut block = Block::start(daemon.front(), 1, 4096).unwrap();
    block.write(0, &pattern(4096, 1)).unwrap();
    block.flush().unwrap();
    let parked = block.into_front().leave().unwrap();
    assert_eq!(parked.bases(), [2]);
    let mut block = Block::over(parked.resume().unwrap(), 1, 4096).unwrap();
    let mut back = vec![0; 4096];
    block.read(0, &mut back).unwrap();
    assert_eq!(back, pattern(4096, 1));
    let mut front = block.into_front().vanish().unwrap().resume().unwrap();
    assert_eq!(front.stop().unwrap(), [0]);
}

#[test]
fn a_driver_that_wants_no_calls_gets_none() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    for without in [0, EVENT_IDX] {
        let mut block = Block::start(daemon.front().without_features(without), 1, 4096).unwrap();
        block.front().ring(0).suppress_calls(true).unwrap();
        // libvhost-user calls when a ring starts, and once before it knows an event index.
        block.read(0, &mut [0; 512]).unwrap();
        let calls = block.front().ring(0).calls().unwrap();
        for _ in 0..10 {
            block.read(0, &mut [0; 512]).unwrap();
        }
        assert_eq!(block.front().ring(0).calls().unwrap(), calls);
    }
}

#[test]
fn regions_can_be_added_one_by_one_and_messages_come_in_another_order() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let script = [
        Step::Features,
        Step::SetFeatures,
        Step::Protocol,
        Step::Owner,
        Step::MemoryRegions,
        Step::Rings(RingStep::Call),
        Step::Rings(RingStep::Error),
        Step::Rings(RingStep::Size),
        Step::Rings(RingStep::Addresses),
        Step::Rings(RingStep::Base),
        Step::Rings(RingStep::Enable),
        Step::Rings(RingStep::Kick),
    ];
    let front = daemon
        .front()
        .memory(1 << 20)
        .queues(2)
        .script(&script)
        .start()
        .unwrap();
    let mut block = Block::over(front, 2, 4096).unwrap();
    assert!(block.front().connection().memory_slots_max().unwrap() >= 2);
    assert!(block.front().connection().queue_count().unwrap() >= 2);
    block.read(0, &mut [0; 4096]).unwrap();
}

#[test]
fn errors_of_requests_come_back_as_their_status() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let mut block = Block::start(daemon.front(), 1, 4096).unwrap();
    assert!(matches!(
        block.read(SIZE, &mut [0; 512]),
        Err(Error::Status { status: 1 })
    ));
    let _sent = block.send(0, 0x7777, 0, 0).unwrap();
    block.kick(0).unwrap();
    assert_eq!(
        block.wait(0, LIMIT).unwrap().status,
        2,
        "an unknown request is unsupported"
    );
    let _sent = block.send(0, kind::FLUSH, 0, 0).unwrap();
    block.kick(0).unwrap();
    assert_eq!(block.wait(0, Duration::from_secs(1)).unwrap().status, 0);
}

#[test]
fn features_that_are_not_offered_end_the_start() {
    let Some(daemon) = Daemon::start() else {
        return;
    };
    let error = daemon.front().features(1 << 63).start().unwrap_err();
    assert!(matches!(error, Error::NotOffered { .. }), "{error}");
}
