//! The server's session against hostile clients: whatever is sent, what follows is in step, or the
//! connection ends and the next client is served.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::cell::RefCell;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread::JoinHandle;

use common::runner;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;
use vudev_executor::{Executor, Socket};
use vudev_proxy::WireError;
use vudev_proxy::testing::{Raw, access, command, dma_map, dma_unmap, header, version, words};
use vudev_proxy::vfio_user::{
    DmaMap, DmaUnmap, Function, MapError, RegionInfo, ServerError, SetInterrupts, serve,
};

/// What a command may reach here: a region of a page that is memory, with a file, and one of four
/// bytes without.
struct Memory {
    bytes: RefCell<[u8; 4096]>,
    file: File,
}

impl Function for Memory {
    fn region(&self, index: u32) -> RegionInfo {
        match index {
            0 => RegionInfo {
                size: 4096,
                mapped: Some(0..4096),
            },
            1 => RegionInfo {
                size: 4,
                mapped: None,
            },
            _ => RegionInfo::default(),
        }
    }

    fn region_file(&self, index: u32) -> Option<BorrowedFd<'_>> {
        (index == 0).then(|| self.file.as_fd())
    }

    fn interrupts(&self, index: u32) -> u32 {
        if index == 2 { 3 } else { 0 }
    }

    fn read(&self, _: u32, offset: u64, into: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        into.copy_from_slice(&self.bytes.borrow()[offset..offset + into.len()]);
    }

    fn write(&self, _: u32, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.bytes.borrow_mut()[offset..offset + data.len()].copy_from_slice(data);
    }

    fn map(&self, map: DmaMap) -> Result<(), MapError> {
        match map.address {
            0 => Err(MapError::Overlap),
            _ => Ok(()),
        }
    }

    fn unmap(&self, _: &DmaUnmap) -> Result<(), Errno> {
        Ok(())
    }

    fn set_interrupts(&self, _: SetInterrupts<'_>) -> Result<(), Errno> {
        Ok(())
    }

    fn reset(&self) {
        self.bytes.borrow_mut().fill(0);
    }
}

/// Serves `clients`, one after the other, in a thread; how each session ended.
#[expect(clippy::disallowed_methods, reason = "the server beside its clients")]
fn server(path: &Path, clients: usize) -> JoinHandle<Vec<Result<(), ServerError>>> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let executor = Executor::with_operations(16).unwrap();
        let socket = Socket::new(executor.handle(), listener);
        let memory = Memory {
            bytes: RefCell::new([0; 4096]),
            file: tempfile::tempfile().unwrap(),
        };
        executor
            .run(async {
                let mut ends = Vec::new();
                for _ in 0..clients {
                    let connection = socket.accept().await.unwrap();
                    ends.push(serve(executor.handle(), connection, &memory).await);
                }
                ends
            })
            .unwrap()
    })
}

/// A server for one client, this client, and how the session ended.
fn with_client(talk: impl FnOnce(&mut Raw)) -> Result<(), ServerError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let server = server(&path, 1);
    let mut client = Raw::new(UnixStream::connect(path).unwrap());
    talk(&mut client);
    drop(client);
    server.join().unwrap().remove(0)
}

/// What was written is read, and so the stream is in step.
fn in_step(client: &mut Raw, byte: u8) {
    client.ask(10, &[access(9, 0, 1), vec![byte]].concat());
    let read = client.ask(9, &access(9, 0, 1));
    assert_eq!(read, [access(9, 0, 1), vec![byte]].concat());
}

#[test]
fn versions_are_agreed_upon_first_and_once() {
    with_client(|client| {
        assert_eq!(client.outcome(13, &[], &[]), Err(22));
        assert_eq!(client.outcome(1, &version(1, 0, &[]), &[]), Err(22));
        let data = b"{\"capabilities\":{\"max_msg_fds\":8,\"max_data_xfer_size\":1048576}}\0";
        let answer = client.ask(1, &version(0, 3, data));
        assert_eq!(answer[..4], [0; 4]);
        assert!(answer.len() <= 4 + data.len());
        assert!(answer.ends_with(b"\"max_data_xfer_size\":4096}}\0"));
        assert_eq!(client.outcome(1, &version(0, 0, &[]), &[]), Err(22));
        in_step(client, 1);
    })
    .unwrap();
}

#[test]
fn a_refused_command_leaves_the_stream_in_step() {
    with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        let refused = [
            (9, access(4096, 0, 1), 22),
            (9, access(4095, 0, 2), 22),
            (9, access(u64::MAX - 1, 0, 1), 22),
            (9, access(0, 2, 1), 22),
            (9, access(0, 9, 1), 22),
            (10, [access(3, 1, 2), vec![0; 2]].concat(), 22),
            (10, access(0, 0, 5), 22),
            (5, words(&[32, 0, 9, 0, 0, 0, 0, 0]), 22),
            (7, words(&[16, 0, 5, 0]), 22),
            (8, words(&[20, 0x21, 2, 3, 1]), 22),
            (8, words(&[20, 0x21, 5, 0, 0]), 22),
            (2, dma_map(3, 0, 0, 4096), 17),
            (15, vec![0; 32], 95),
            (99, vec![7; 3000], 95),
            (10, vec![0; 100_000], 7),
            (99, vec![0; 1 << 20], 7),
        ];
        for (number, payload, errno) in refused {
            let outcome = client.outcome(number, &payload, &[]);
            assert_eq!(outcome, Err(errno), "{number}");
            in_step(client, u8::try_from(errno).unwrap());
        }
    })
    .unwrap();
}

#[test]
fn descriptors_where_none_belong_are_closed_and_refused() {
    with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        let (end, other) = UnixStream::pair().unwrap();
        for (number, payload) in [(9, access(0, 0, 1)), (99, vec![]), (10, vec![0; 9000])] {
            let files = [other.as_fd(), other.as_fd()];
            assert!(client.outcome(number, &payload, &files).is_err());
        }
        drop(other);
        assert!(Raw::new(end).is_closed(), "a descriptor was kept");
        in_step(client, 3);
    })
    .unwrap();
    let end = with_client(|client| {
        let files: Vec<_> = (0..17).map(|_| client.0.as_fd()).collect();
        client.send(&command(1, 13, &[]), &files).unwrap();
        assert!(Raw::new(client.0.try_clone().unwrap()).is_closed());
    });
    assert!(
        matches!(
            end,
            Err(ServerError::Wire(WireError::DescriptorsLost { max: 16 }))
        ),
        "{end:?}"
    );
}

#[test]
fn a_region_comes_with_its_file_where_there_is_room_for_all_of_it() {
    with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        for (room, files_due) in [(32, 0), (64, 1)] {
            let payload = words(&[room, 0, 0, 0, 0, 0, 0, 0]);
            client.send(&command(2, 5, &payload), &[]).unwrap();
            let (answer, files) = client.answer_with_files();
            assert_eq!(answer.payload.len(), room as usize);
            assert_eq!(files.len(), files_due);
        }
        assert_eq!(client.ask(4, &words(&[16, 0, 0, 0])), words(&[16, 3, 9, 5]));
        assert_eq!(client.ask(7, &words(&[16, 0, 2, 0])), words(&[16, 1, 2, 3]));
        let echo = dma_unmap(0, 4096, 4096);
        assert_eq!(client.ask(3, &echo), echo);
    })
    .unwrap();
}

#[test]
fn a_command_that_wants_no_reply_gets_none_not_even_an_error() {
    with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        for (number, payload) in [(13, vec![]), (99, vec![]), (9, access(0, 9, 1))] {
            let size = u32::try_from(16 + payload.len()).unwrap();
            let message = [&header(0, number, size, 0x10)[..], &payload].concat();
            client.send(&message, &[]).unwrap();
        }
        in_step(client, 4);
    })
    .unwrap();
}

#[test]
fn commands_sent_at_once_or_byte_by_byte_are_answered_in_their_order() {
    with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        let many: Vec<u8> = (0..200)
            .flat_map(|id| command(id, 9, &access(0, 0, 1)))
            .collect();
        client.send(&many, &[]).unwrap();
        for id in 0..200 {
            assert_eq!(client.answer().unwrap().id, id);
        }
        for byte in command(5, 9, &access(9, 0, 1)) {
            client.0.write_all(&[byte]).unwrap();
        }
        assert_eq!(client.answer().unwrap().id, 5);
    })
    .unwrap();
}

#[test]
fn a_stream_that_cannot_be_followed_ends_and_the_next_client_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let hostile: &[&[u8]] = &[
        &header(0, 9, 15, 0),
        &header(0, 9, u32::MAX, 0),
        &header(0, 9, 16, 1),
        &[1, 2, 3],
        &header(0, 9, 32, 0),
        &header(0, 10, 60_000, 0),
        &[0xff; 400],
    ];
    let server = server(&path, hostile.len() + 1);
    for bytes in hostile {
        let mut client = Raw::agreed(UnixStream::connect(&path).unwrap());
        client.send(bytes, &[]).unwrap();
        client.0.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_closed());
    }
    let mut client = Raw::agreed(UnixStream::connect(&path).unwrap());
    in_step(&mut client, 8);
    drop(client);
    let ends = server.join().unwrap();
    assert!(ends[..hostile.len()].iter().all(Result::is_err), "{ends:?}");
    assert!(ends[hostile.len()].is_ok());
}

/// The answers to a flood fill the socket; the server waits with it, and reads no more.
#[test]
fn a_client_that_floods_and_reads_nothing_holds_up_only_itself() {
    // It leaves in the middle of a message or not, as the socket's buffers happen to be.
    let _ = with_client(|client| {
        client.ask(1, &version(0, 0, &[]));
        client.0.set_nonblocking(true).unwrap();
        let read = command(1, 9, &access(0, 0, 4096));
        let (mut sent, mut waits) = (0_usize, 0);
        // Two buffers of a socket's hold some hundred kilobytes; a server that took everything
        // would take this too.
        while sent < 64 << 20 && waits < 50 {
            match client.0.write(&read) {
                Ok(count) => sent += count,
                Err(_) => {
                    waits += 1;
                    let mut ready = [rustix::event::PollFd::new(
                        &client.0,
                        rustix::event::PollFlags::OUT,
                    )];
                    let limit = rustix::event::Timespec {
                        tv_sec: 0,
                        tv_nsec: 2_000_000,
                    };
                    rustix::event::poll(&mut ready, Some(&limit)).unwrap();
                }
            }
        }
        assert!(
            sent < 64 << 20,
            "{sent} bytes were taken without an answer being read"
        );
    });
}

/// Anything but a client's silence leads to answers or to the end, and to no panic.
#[test]
fn no_stream_of_bytes_hangs_or_panics_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    const CASES: u32 = 300;
    let server = server(&path, CASES as usize);
    let word = prop_oneof![4 => 0..64_u32, 1 => any::<u32>()];
    let message = (0..20_u16, vec(word, 0..12), 0..3_u32)
        .prop_map(|(number, payload, flags)| (number, words(&payload), flags * 8));
    runner(CASES)
        .run(&vec(message, 0..6), |messages| {
            let mut client = Raw::agreed(UnixStream::connect(&path).unwrap());
            for (number, payload, flags) in messages {
                let size = u32::try_from(16 + payload.len()).unwrap();
                let bytes = [&header(0, number, size, flags)[..], &payload].concat();
                if client.send(&bytes, &[]).is_err() {
                    break;
                }
            }
            let _ = client.0.shutdown(std::net::Shutdown::Write);
            while client.answer().is_ok() {}
            Ok(())
        })
        .unwrap();
    assert_eq!(server.join().unwrap().len(), CASES as usize);
}
