//! What a driver, and whoever is at the other end, can rely on from the console.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test panics where it fails, and its numbers are small"
)]

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Seek, Write, pipe};
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use vudev_devices::Console;
use vudev_devices::console::detached;
use vudev_executor::Handle;
use vudev_frontend::Buffer;
use vudev_virtio::Device;

mod common;

use common::terminal::terminal;
use common::{Rig, run, wait_until};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

fn start(handle: &Handle, input: Option<OwnedFd>, output: Option<OwnedFd>) -> Rig<Console> {
    Rig::start(handle, Console::new(handle, input, output), 0)
}

/// Sends a chain and waits until it is done with.
async fn print(console: &mut Rig<Console>, bytes: &[u8]) {
    let text = console.put(bytes);
    console.send(TRANSMIT, &[text], &[]);
    assert_eq!(console.used(TRANSMIT).await.written, 0);
}

fn post(console: &mut Rig<Console>, length: usize) -> Buffer {
    let buffer = console.allocate(length, 1);
    console.send(RECEIVE, &[], &[buffer]);
    buffer
}

/// Waits for the oldest posted buffer, and gives what was read into it.
async fn receive(console: &mut Rig<Console>, posted: Buffer) -> Vec<u8> {
    let used = console.used(RECEIVE).await;
    console.bytes(posted)[..used.written as usize].to_vec()
}

/// Bytes that differ everywhere.
fn text(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// Reads what there is without waiting for more.
fn drain(pipe: &mut PipeReader) -> Vec<u8> {
    let flags = fcntl_getfl(&*pipe).unwrap();
    fcntl_setfl(&*pipe, flags | OFlags::NONBLOCK).unwrap();
    let mut bytes = Vec::new();
    let ended = pipe.read_to_end(&mut bytes);
    fcntl_setfl(&*pipe, flags).unwrap();
    assert!(ended.is_ok() || Errno::from_io_error(&ended.unwrap_err()) == Some(Errno::AGAIN));
    bytes
}

/// Reads until `length` bytes have come.
async fn collect(handle: &Handle, pipe: &mut PipeReader, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    wait_until(handle, || {
        bytes.extend(drain(pipe));
        bytes.len() >= length
    })
    .await;
    bytes
}

/// Whether the console comes to rest without a receive buffer in its hands.
async fn holds_nothing(console: &mut Rig<Console>) {
    console.settle().await;
    let handle = console.handle.clone();
    wait_until(&handle, || console.in_flight(RECEIVE) == 0).await;
}

#[test]
fn what_the_guest_prints_comes_out_in_order_and_what_is_typed_goes_in() {
    let (input, mut keyboard) = pipe().unwrap();
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), Some(output.into()));
        let posted = post(&mut console, 100);
        holds_nothing(&mut console).await;
        print(&mut console, b"login: ").await;
        print(&mut console, b"now\n").await;
        assert_eq!(drain(&mut screen), b"login: now\n");
        keyboard.write_all(b"root\r").unwrap();
        assert_eq!(receive(&mut console, posted).await, b"root\r");
    });
}

#[test]
fn chains_in_flight_together_are_written_whole_and_in_order() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        let expected = text(40 * 1000);
        for piece in expected.chunks(1000) {
            let (left, right) = piece.split_at(333);
            let (left, right) = (console.put(left), console.put(right));
            console.ring(TRANSMIT).add(&[left, right], &[]).unwrap();
        }
        console.ring(TRANSMIT).kick().unwrap();
        for _ in 0..40 {
            let _ = console.used(TRANSMIT).await;
        }
        assert_eq!(drain(&mut screen), expected);
    });
}

#[test]
fn more_than_the_output_takes_at_once_waits_for_its_reader() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        let expected = text(1 << 20);
        let buffer = console.put(&expected);
        console.send(TRANSMIT, &[buffer], &[]);
        console.settle().await;
        assert_eq!(console.ring(TRANSMIT).poll_used().unwrap(), None);
        assert_eq!(
            collect(&handle, &mut screen, expected.len()).await,
            expected
        );
        let _ = console.used(TRANSMIT).await;
    });
}

#[test]
fn a_non_blocking_output_that_is_full_is_waited_for_and_its_flags_stay() {
    let (mut screen, output) = pipe().unwrap();
    fcntl_setfl(&output, OFlags::NONBLOCK).unwrap();
    let shared = output.try_clone().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        let expected = text(300_000);
        let buffer = console.put(&expected);
        console.send(TRANSMIT, &[buffer], &[]);
        assert_eq!(
            collect(&handle, &mut screen, expected.len()).await,
            expected
        );
        let _ = console.used(TRANSMIT).await;
        assert!(fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK));
    });
}

#[test]
fn a_stop_while_output_waits_neither_loses_nor_doubles_a_byte() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        let expected = text(200_000);
        let buffer = console.put(&expected);
        console.send(TRANSMIT, &[buffer], &[]);
        console.settle().await;
        // The pipe is full; the chain was taken, and goes back.
        assert_eq!(console.stop_queue(TRANSMIT).await, 0);
        // As the framework does when a front-end has left.
        console.device.reset();
        let mut seen = drain(&mut screen);
        assert!(!seen.is_empty() && seen.len() < expected.len());
        console.start_queue(TRANSMIT);
        let left = expected.len() - seen.len();
        seen.extend(collect(&handle, &mut screen, left).await);
        let _ = console.used(TRANSMIT).await;
        assert!(seen == expected);
        print(&mut console, b"next").await;
        assert_eq!(drain(&mut screen), b"next");
    });
}

#[test]
fn another_guest_s_first_line_is_whole() {
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        let buffer = console.put(&text(200_000));
        console.send(TRANSMIT, &[buffer], &[]);
        console.settle().await;
        console.stop_queue(TRANSMIT).await;
        drain(&mut screen);
        console.device.reset();
        console.ring(TRANSMIT).reset().unwrap();
        console.start_queue(TRANSMIT);
        print(&mut console, b"Linux version").await;
        assert_eq!(drain(&mut screen), b"Linux version");
    });
}

#[test]
fn input_that_comes_while_no_front_end_is_there_is_kept() {
    let (input, mut keyboard) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), None);
        let first = post(&mut console, 100);
        let second = post(&mut console, 100);
        keyboard.write_all(b"one").unwrap();
        assert_eq!(receive(&mut console, first).await, b"one");
        console.settle().await;
        assert_eq!(
            console.stop_queue(RECEIVE).await,
            1,
            "the posted buffer was not taken"
        );
        keyboard.write_all(b"two").unwrap();
        console.settle().await;
        console.start_queue(RECEIVE);
        assert_eq!(receive(&mut console, second).await, b"two");
    });
}

#[test]
fn input_waits_for_a_buffer_and_a_stop_does_not_wait_for_either() {
    let (input, mut keyboard) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), None);
        keyboard.write_all(b"early").unwrap();
        console.settle().await;
        assert_eq!(console.stop_queue(RECEIVE).await, 0);
        console.start_queue(RECEIVE);
        let buffer = post(&mut console, 2);
        assert_eq!(receive(&mut console, buffer).await, b"ea");
        let buffer = post(&mut console, 10);
        assert_eq!(receive(&mut console, buffer).await, b"rly");
    });
}

#[test]
fn the_end_of_input_leaves_the_buffers_and_the_output_alone() {
    let (input, mut keyboard) = pipe().unwrap();
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), Some(output.into()));
        let first = post(&mut console, 10);
        let _second = post(&mut console, 10);
        keyboard.write_all(b"bye").unwrap();
        drop(keyboard);
        assert_eq!(receive(&mut console, first).await, b"bye");
        holds_nothing(&mut console).await;
        print(&mut console, b"still here").await;
        assert_eq!(drain(&mut screen), b"still here");
        assert_eq!(console.stop_queue(RECEIVE).await, 1);
    });
}

#[test]
fn a_file_is_read_from_where_it_stands_to_its_end() {
    let mut script = tempfile::tempfile().unwrap();
    script.write_all(b"skipped;uname -a\nexit\n").unwrap();
    script.seek(std::io::SeekFrom::Start(8)).unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(script.into()), None);
        let first = post(&mut console, 9);
        let second = post(&mut console, 100);
        let _third = post(&mut console, 100);
        assert_eq!(receive(&mut console, first).await, b"uname -a\n");
        assert_eq!(receive(&mut console, second).await, b"exit\n");
        holds_nothing(&mut console).await;
        assert_eq!(console.ring(RECEIVE).poll_used().unwrap(), None);
    });
}

#[test]
fn output_to_a_file_goes_where_it_stands() {
    let mut log = tempfile::tempfile().unwrap();
    log.write_all(b"before\n").unwrap();
    let output = log.try_clone().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(output.into()));
        print(&mut console, b"one\n").await;
        print(&mut console, b"two\n").await;
    });
    let mut all = String::new();
    log.rewind().unwrap();
    log.read_to_string(&mut all).unwrap();
    assert_eq!(all, "before\none\ntwo\n");
}

#[test]
fn without_input_and_output_the_guest_is_never_held_up() {
    run(async |handle| {
        let mut console = start(&handle, None, None);
        let _posted = post(&mut console, 10);
        for _ in 0..3 {
            let lines: Vec<Buffer> = (0..200).map(|_| console.put(b"into the void\n")).collect();
            for line in lines {
                console.ring(TRANSMIT).add(&[line], &[]).unwrap();
            }
            console.ring(TRANSMIT).kick().unwrap();
            for _ in 0..200 {
                let _ = console.used(TRANSMIT).await;
            }
        }
        assert_eq!(console.stop_queue(RECEIVE).await, 0);
        assert_eq!(console.stop_queue(TRANSMIT).await, 600);
    });
}

#[test]
fn an_output_that_nobody_reads_any_more_does_not_hold_the_guest_up() {
    let (screen, output) = pipe().unwrap();
    let (input, mut keyboard): (PipeReader, PipeWriter) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), Some(output.into()));
        drop(screen);
        print(&mut console, b"nobody hears this").await;
        print(&mut console, b"nor that").await;
        let posted = post(&mut console, 10);
        keyboard.write_all(b"x").unwrap();
        assert_eq!(receive(&mut console, posted).await, b"x");
    });
}

#[test]
fn a_full_disk_loses_output_and_nothing_else() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(full.into()));
        for _ in 0..5 {
            print(&mut console, b"no room").await;
        }
    });
}

#[test]
fn chains_in_the_wrong_direction_come_back_and_move_nothing() {
    let (input, mut keyboard) = pipe().unwrap();
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), Some(output.into()));
        let buffer = console.put(b"wrong");
        console.send(TRANSMIT, &[], &[buffer]);
        assert_eq!(console.used(TRANSMIT).await.written, 0);
        keyboard.write_all(b"kept").unwrap();
        console.send(RECEIVE, &[buffer], &[]);
        assert_eq!(console.used(RECEIVE).await.written, 0);
        assert_eq!(console.bytes(buffer), b"wrong");
        let posted = post(&mut console, 10);
        assert_eq!(receive(&mut console, posted).await, b"kept");
        print(&mut console, b"fine").await;
        assert_eq!(drain(&mut screen), b"fine");
    });
}

#[test]
fn a_terminal_is_input_and_output_at_once() {
    let (mut user, program) = terminal();
    let output = program.try_clone().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(program), Some(output));
        let posted = post(&mut console, 100);
        print(&mut console, b"$ ").await;
        let mut seen = [0; 2];
        user.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"$ ");
        user.write_all(b"ls\r").unwrap();
        let mut typed = receive(&mut console, posted).await;
        while typed.len() < 3 {
            let posted = post(&mut console, 100);
            typed.extend(receive(&mut console, posted).await);
        }
        assert_eq!(typed, b"ls\r");
    });
}

#[test]
fn a_terminal_that_nobody_reads_neither_holds_up_the_loop_nor_loses_a_byte() {
    let (mut user, program) = terminal();
    let shared = program.try_clone().unwrap();
    run(async |handle| {
        let mut console = start(&handle, None, Some(detached(program)));
        assert!(!fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK));
        let expected = text(100_000);
        let buffer = console.put(&expected);
        console.send(TRANSMIT, &[buffer], &[]);
        // Nobody reads before this is over, so a write that waited would wait for ever.
        console.settle().await;
        assert_eq!(console.stop_queue(TRANSMIT).await, 0);
        console.start_queue(TRANSMIT);
        assert!(read_all(&handle, &mut user, expected.len()).await == expected);
        let _ = console.used(TRANSMIT).await;
    });
}

#[test]
fn a_terminal_that_others_share_gets_every_byte_too() {
    let (mut user, program) = terminal();
    run(async |handle| {
        let mut console = start(&handle, None, Some(program));
        let expected = text(50_000);
        let buffer = console.put(&expected);
        console.send(TRANSMIT, &[buffer], &[]);
        assert!(read_all(&handle, &mut user, expected.len()).await == expected);
        let _ = console.used(TRANSMIT).await;
    });
}

/// What comes out of a terminal, until it is so much.
async fn read_all(handle: &Handle, user: &mut File, length: usize) -> Vec<u8> {
    let flags = fcntl_getfl(&*user).unwrap();
    fcntl_setfl(&*user, flags | OFlags::NONBLOCK).unwrap();
    let mut seen: Vec<u8> = Vec::new();
    let mut piece = [0; 4096];
    wait_until(handle, || {
        while let Ok(read) = user.read(&mut piece) {
            seen.extend(&piece[..read]);
        }
        seen.len() >= length
    })
    .await;
    seen
}

#[test]
fn what_is_not_a_terminal_or_makes_a_new_one_when_opened_stays_as_it_is() {
    let (user, program) = terminal();
    let (_, pipe) = pipe().unwrap();
    for descriptor in [
        OwnedFd::from(user),
        pipe.into(),
        tempfile::tempfile().unwrap().into(),
    ] {
        let number = descriptor.as_raw_fd();
        assert_eq!(detached(descriptor).as_raw_fd(), number);
    }
    let before = fstat(&program).unwrap();
    let after = fstat(detached(program)).unwrap();
    assert_eq!(
        (before.st_rdev, before.st_ino),
        (after.st_rdev, after.st_ino)
    );
}

#[test]
fn a_terminal_that_is_hung_up_ends_input_and_output() {
    let (user, program) = terminal();
    let output = program.try_clone().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(program), Some(output));
        let _posted = post(&mut console, 10);
        console.settle().await;
        drop(user);
        print(&mut console, b"hello?").await;
        holds_nothing(&mut console).await;
        assert_eq!(console.stop_queue(RECEIVE).await, 0);
    });
}

#[test]
fn memory_that_shrinks_costs_its_chains_and_neither_input_nor_output() {
    let (input, mut keyboard) = pipe().unwrap();
    let (mut screen, output) = pipe().unwrap();
    run(async |handle| {
        let mut console = start(&handle, Some(input.into()), Some(output.into()));
        let (kept, text) = (console.allocate(10, 1), console.put(b"still here"));
        let _rings_and_these = console.allocate(8 << 20, 4096);
        let lost = console.allocate(10, 4096);
        console.memory.shrink(0, 8 << 20).unwrap();

        console.send(TRANSMIT, &[lost], &[]);
        assert_eq!(console.used(TRANSMIT).await.written, 0);
        console.send(TRANSMIT, &[text], &[]);
        assert_eq!(console.used(TRANSMIT).await.written, 0);
        assert_eq!(drain(&mut screen), b"still here");

        console.send(RECEIVE, &[], &[lost]);
        keyboard.write_all(b"root\r").unwrap();
        assert_eq!(console.used(RECEIVE).await.written, 0);
        console.send(RECEIVE, &[], &[kept]);
        assert_eq!(receive(&mut console, kept).await, b"root\r");
    });
}
