//! What reads and writes without the ring promise, on the real kernel: they do not wait, and a turn
//! has only so many of them.

mod common;

use std::io::{self, IoSliceMut};

use common::{disk, executor};
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use vudev_executor::{Bytes, File};

/// Bytes that a turn moves at once.
const TURN: usize = 1 << 20;

fn errno(result: &io::Result<usize>) -> Option<i32> {
    result.as_ref().err().and_then(io::Error::raw_os_error)
}

/// Whether the temporary folder is on a file system that can say that a read would wait; else says
/// that it is not.
fn says_that_it_would_wait(file: &std::fs::File) -> bool {
    let mut byte = [0];
    let buffers = &mut [IoSliceMut::new(&mut byte)];
    let unknown = preadv2(file, buffers, 0, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP);
    if unknown {
        println!("SKIPPED: needs a temporary folder whose reads can be refused (no tmpfs)");
    }
    !unknown
}

#[test]
fn what_is_in_the_page_cache_is_read_at_once_and_the_ring_is_not_asked() {
    let executor = executor(8);
    let handle = executor.handle();
    let content = disk(b"hello, guest");
    if !says_that_it_would_wait(&content) {
        return;
    }
    let file = File::new(handle, content);
    let mut bytes = Bytes::zeroed(5);
    let run = executor.run(async {
        assert_eq!(file.try_read_at(&mut bytes, 7).unwrap(), 5);
        assert_eq!(bytes.as_slice(), b"guest");
        assert_eq!(file.write_at_once(&bytes, 0).unwrap(), 5);
        assert_eq!(file.try_read_at(&mut bytes, 12).unwrap(), 0, "at the end");
    });
    run.unwrap();
    let stats = handle.stats();
    assert_eq!((stats.at_once, stats.operations), (3, 0));
}

#[test]
fn what_is_not_in_the_page_cache_is_left_to_the_ring() {
    /// Far enough from each other that no page is read ahead for another.
    const APART: usize = 1 << 20;
    let executor = executor(8);
    let content = disk(&vec![7; 32 * APART]);
    if !says_that_it_would_wait(&content) {
        return;
    }
    content.sync_all().unwrap();
    // The kernel keeps some pages all the same.
    fadvise(&content, 0, None, Advice::DontNeed).unwrap();
    let file = File::new(executor.handle(), content);
    let mut refused = 0;
    let run = executor.run(async {
        for offset in (0..32).map(|number| number * APART as u64) {
            let mut bytes = Bytes::zeroed(4096);
            let tried = file.try_read_at(&mut bytes, offset);
            if errno(&tried) == Some(libc::EAGAIN) {
                refused += 1;
                let (read, back) = file.read_at(bytes, offset).await;
                assert_eq!(read.unwrap(), 4096);
                bytes = back;
            } else {
                assert_eq!(tried.unwrap(), 4096);
            }
            assert_eq!(bytes.as_slice(), [7; 4096]);
        }
    });
    run.unwrap();
    assert!(refused > 0);
}

#[test]
fn a_turn_moves_so_many_bytes_at_once_and_the_next_as_many_again() {
    let executor = executor(8);
    let handle = executor.handle();
    let content = disk(&vec![7; 2 * TURN]);
    if !says_that_it_would_wait(&content) {
        return;
    }
    let file = File::new(handle, content);
    let (mut half, mut more) = (Bytes::zeroed(TURN / 2), Bytes::zeroed(TURN + 1));
    let run = executor.run(async {
        assert_eq!(errno(&file.try_read_at(&mut more, 0)), Some(libc::EAGAIN));
        assert_eq!(handle.stats().at_once, 0, "it is too long for a turn");
        for _ in 0..2 {
            assert_eq!(file.try_read_at(&mut half, 0).unwrap(), TURN / 2);
            assert_eq!(file.write_at_once(&half, 0).unwrap(), TURN / 2);
            let before = handle.stats().at_once;
            let read = file.try_read_at(&mut half, 0);
            let written = file.write_at_once(&half, 0);
            assert_eq!(errno(&read), Some(libc::EAGAIN));
            assert_eq!(errno(&written), Some(libc::EAGAIN));
            assert_eq!(handle.stats().at_once, before, "the kernel was not asked");
            handle.yield_now().await;
        }
    });
    run.unwrap();
}

#[test]
fn an_offset_beyond_four_gigabytes_is_the_one_that_was_meant() {
    let executor = executor(8);
    let sparse = disk(b"");
    if !says_that_it_would_wait(&sparse) {
        return;
    }
    let far = 5 << 32;
    sparse.set_len(far + 8192).unwrap();
    let file = File::new(executor.handle(), sparse);
    let run = executor.run(async {
        let bytes = Bytes::from(vec![9; 4096]);
        assert_eq!(file.write_at_once(&bytes, far).unwrap(), 4096);
        let (read, bytes) = file.read_at(Bytes::zeroed(8), far + 4092).await;
        assert_eq!(
            (read.unwrap(), bytes.as_slice()),
            (8, &[9, 9, 9, 9, 0, 0, 0, 0][..])
        );
        let mut near = Bytes::zeroed(8);
        assert_eq!(file.try_read_at(&mut near, far).unwrap(), 8);
        assert_eq!(near.as_slice(), [9; 8]);
    });
    run.unwrap();
}

#[test]
fn what_has_no_offsets_is_an_error() {
    let executor = executor(8);
    let (read_end, _write_end) = common::pipe();
    let file = File::new(executor.handle(), read_end);
    let tried = file.try_read_at(&mut Bytes::zeroed(1), 0);
    assert_eq!(errno(&tried), Some(libc::ESPIPE));
}
