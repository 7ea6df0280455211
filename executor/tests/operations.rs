//! What operations promise, on the real kernel: who owns memory, and what is bounded.

mod common;

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use common::{Witnessed, disk, executor, pipe};
use rustix::event::EventfdFlags;
use vudev_executor::{Bytes, Executor, File, Vectored};

/// Polls once, so that the operation is submitted.
async fn submit(future: &mut (impl Future + Unpin)) {
    poll_fn(|cx| {
        assert!(Pin::new(&mut *future).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
}

async fn until_idle(executor: &Executor) {
    while executor.handle().stats().in_flight > 0 {
        executor.handle().yield_now().await;
    }
}

#[test]
fn reads_and_writes_give_their_buffers_back() {
    let executor = executor(8);
    let file = File::new(executor.handle(), disk(b"hello, guest"));
    executor
        .run(async {
            let (read, mut bytes) = file.read_at(Bytes::zeroed(5), 7).await;
            assert_eq!((read.unwrap(), bytes.as_slice()), (5, &b"guest"[..]));
            bytes.set_range(0..2);
            let (written, bytes) = file.write_at(bytes, 0).await;
            assert_eq!((written.unwrap(), bytes.into_vec().len()), (2, 5));
            file.sync(true).await.unwrap();
            file.sync(false).await.unwrap();
            file.allocate(0, 4096, 4096).await.unwrap();
            let (read, bytes) = file.read_at(Bytes::zeroed(16384), 0).await;
            assert_eq!(
                (read.unwrap(), &bytes.as_slice()[..12]),
                (8192, &b"gullo, guest"[..])
            );
        })
        .unwrap();
}

#[test]
fn a_failed_operation_gives_its_buffers_back() {
    let executor = executor(8);
    let (read_end, _write_end) = pipe();
    let file = File::new(executor.handle(), read_end);
    let (written, bytes) = executor.run(file.write(Bytes::from(vec![7; 3]))).unwrap();
    assert_eq!(written.unwrap_err().raw_os_error(), Some(libc::EBADF));
    assert_eq!(bytes.into_vec(), [7; 3]);
}

#[test]
fn a_dropped_operation_keeps_its_memory_until_the_kernel_lets_go() {
    let executor = executor(8);
    let freed = Rc::new(Cell::new(false));
    let (read_end, _write_end) = pipe();
    let file = File::new(executor.handle(), read_end);
    executor
        .run(async {
            let mut read = file.read(Witnessed(Bytes::zeroed(16), freed.clone()));
            submit(&mut read).await;
            drop(read);
            assert!(!freed.get(), "the kernel has it still");
            until_idle(&executor).await;
        })
        .unwrap();
    assert!(freed.get(), "cancelled, so freed");
}

#[test]
fn a_cancelled_operation_still_tells_what_it_did() {
    let executor = executor(8);
    let (read_end, write_end) = pipe();
    let file = File::new(executor.handle(), read_end);
    executor
        .run(async {
            let mut read = file.read(Bytes::zeroed(16));
            submit(&mut read).await;
            read.cancel();
            let (result, _) = read.await;
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));

            let mut read = file.read(Bytes::zeroed(16));
            submit(&mut read).await;
            rustix::io::write(&write_end, b"typed").unwrap();
            executor.handle().yield_now().await;
            read.cancel();
            let (result, bytes) = read.await;
            assert_eq!(
                (result.unwrap(), &bytes.as_slice()[..5]),
                (5, &b"typed"[..])
            );
        })
        .unwrap();
}

#[test]
fn dropping_the_executor_drains() {
    let freed = Rc::new(Cell::new(false));
    let (read_end, _write_end) = pipe();
    let executor = executor(8);
    let file = File::new(executor.handle(), read_end);
    let task = executor.handle().spawn({
        let freed = freed.clone();
        async move {
            file.read(Witnessed(Bytes::zeroed(16), freed))
                .await
                .0
                .map(drop)
        }
    });
    let handle = executor.handle().clone();
    executor.run(handle.yield_now()).unwrap();
    drop(task);
    drop(executor);
    assert!(freed.get());
    assert_eq!(handle.stats().in_flight, 0);
}

#[test]
fn a_future_that_outlives_the_executor_is_refused_and_frees_its_memory() {
    let (read_end, _write_end) = pipe();
    let executor = executor(8);
    let file = File::new(executor.handle(), read_end);
    let freed = Rc::new(Cell::new(false));
    let mut read = file.read(Witnessed(Bytes::zeroed(16), freed.clone()));
    executor.run(submit(&mut read)).unwrap();
    drop(executor);
    assert!(!freed.get());
    drop(read);
    assert!(freed.get());
    let mut late = pin!(file.read(Bytes::zeroed(1)));
    let mut cx = Context::from_waker(Waker::noop());
    let Poll::Ready((result, _)) = late.as_mut().poll(&mut cx) else {
        panic!("a closed ring refuses at once")
    };
    assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
}

#[test]
fn a_full_table_makes_operations_wait() {
    let executor = executor(4);
    let file = Rc::new(File::new(executor.handle(), disk(&[1; 4096])));
    let handle = executor.handle();
    let read = executor
        .run(async {
            let tasks: Vec<_> = (0..500)
                .map(|i| {
                    let file = file.clone();
                    handle.spawn(async move { file.read_at(Bytes::zeroed(1), i).await.0.unwrap() })
                })
                .collect();
            let mut read = 0;
            for task in tasks {
                assert!(handle.stats().in_flight <= 4);
                read += task.await;
            }
            read
        })
        .unwrap();
    assert_eq!(read, 500);
}

#[test]
fn the_reserve_is_free_when_a_device_has_filled_its_slots() {
    let executor = executor(2);
    let handle = executor.handle();
    let (read_end, write_end) = pipe();
    let file = File::new(handle, read_end);
    let important = File::new(&handle.reserved(), disk(b"stop"));
    executor
        .run(async {
            let mut reads: Vec<_> = (0..3).map(|_| file.read(Bytes::zeroed(1))).collect();
            for read in &mut reads {
                submit(read).await;
            }
            assert_eq!(handle.stats().in_flight, 2);
            let (read, bytes) = important.read_at(Bytes::zeroed(4), 0).await;
            assert_eq!((read.unwrap(), bytes.as_slice()), (4, &b"stop"[..]));
            rustix::io::write(&write_end, b"abc").unwrap();
            for read in reads {
                assert_eq!(read.await.0.unwrap(), 1);
            }
        })
        .unwrap();
}

#[test]
fn everything_cancelled_at_once_leaves_nothing_behind() {
    const OPERATIONS: usize = 512;
    let executor = executor(512);
    let handle = executor.handle();
    let (read_end, _write_end) = pipe();
    let file = File::new(handle, read_end);
    let freed: Vec<_> = (0..OPERATIONS).map(|_| Rc::new(Cell::new(false))).collect();
    executor
        .run(async {
            let mut reads: Vec<_> = freed
                .iter()
                .map(|freed| file.read(Witnessed(Bytes::zeroed(1), freed.clone())))
                .collect();
            for read in &mut reads {
                submit(read).await;
            }
            handle.yield_now().await;
            assert_eq!(handle.stats().in_flight, OPERATIONS as u64);
            drop(reads);
            until_idle(&executor).await;
        })
        .unwrap();
    assert!(freed.iter().all(|freed| freed.get()));
}

#[test]
fn a_slot_that_comes_free_wakes_one_of_those_who_wait_for_one() {
    const READS: usize = 200;
    let executor = executor(8);
    let handle = executor.handle();
    let (read_end, write_end) = pipe();
    let file = Rc::new(File::new(handle, read_end));
    let (polls, done) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let read = |_| {
        let (file, polls, done) = (file.clone(), polls.clone(), done.clone());
        handle.spawn(async move {
            let mut read = file.read(Bytes::zeroed(1));
            let ((result, _), ()) = poll_fn(|cx| {
                polls.set(polls.get() + 1);
                Pin::new(&mut read).poll(cx).map(|output| (output, ()))
            })
            .await;
            assert_eq!(result.unwrap(), 1);
            done.set(done.get() + 1);
        })
    };
    executor
        .run(async {
            let tasks: Vec<_> = (0..READS).map(read).collect();
            for _ in 0..4 {
                handle.yield_now().await;
            }
            assert_eq!(polls.get(), READS, "nobody is woken in vain");
            for count in 1..=READS {
                rustix::io::write(&write_end, b"x").unwrap();
                while done.get() < count {
                    handle.yield_now().await;
                }
            }
            // Once to find no slot, once to get one, and once to be done.
            assert!(polls.get() <= 3 * READS, "{}", polls.get());
            drop(tasks);
        })
        .unwrap();
}

#[test]
fn a_connection_that_arrives_for_a_dropped_accept_is_closed() {
    let executor = executor(8);
    let path = tempfile::tempdir().unwrap();
    let path = path.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let socket = vudev_executor::Socket::new(executor.handle(), listener);
    let client = executor
        .run(async {
            let mut accept = socket.accept();
            submit(&mut accept).await;
            executor.handle().yield_now().await;
            let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
            drop(accept);
            until_idle(&executor).await;
            client
        })
        .unwrap();
    // Whether the accept or the cancel won: the client is either closed or still in the backlog.
    drop(socket);
    drop(executor);
    let mut client = client;
    assert_eq!(io::Read::read(&mut client, &mut [0]).unwrap_or(0), 0);
}

#[test]
fn messages_carry_descriptors() {
    let executor = executor(8);
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    let (left, right) = (
        vudev_executor::Socket::new(executor.handle(), left),
        vudev_executor::Socket::new(executor.handle(), right),
    );
    let (read_end, write_end) = pipe();
    executor
        .run(async {
            let mut message = vudev_executor::Message::with_capacity(64);
            message.set(b"take this", vec![write_end]);
            let (sent, message) = left.send(message).await;
            assert_eq!(sent.unwrap(), 9);
            let (received, mut message) = right.receive(message).await;
            assert_eq!((received.unwrap(), message.bytes()), (9, &b"take this"[..]));
            let mut descriptors = message.take_descriptors();
            assert_eq!(descriptors.len(), 1);
            let write_end: OwnedFd = descriptors.remove(0);
            let flags = rustix::io::fcntl_getfd(&write_end).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            rustix::io::write(&write_end, b"x").unwrap();
            assert_eq!(rustix::io::read(&read_end, &mut [0; 4]), Ok(1));
            drop(left);
            let (received, message) = right.receive(message).await;
            assert_eq!((received.unwrap(), message.bytes().len()), (0, 0));
        })
        .unwrap();
}

#[test]
fn more_descriptors_than_fit_are_told_and_none_leaks() {
    let executor = executor(8);
    let (left, right) = std::os::unix::net::UnixStream::pair().unwrap();
    let right = vudev_executor::Socket::new(executor.handle(), right);
    let event = common::eventfd(EventfdFlags::empty());
    let before = open_descriptors();
    send_copies(&left, &event, 40);
    executor
        .run(async {
            let message = vudev_executor::Message::with_capacity(64);
            let (received, message) = right.receive(message).await;
            assert_eq!(received.unwrap(), 1);
            assert!(message.truncated());
        })
        .unwrap();
    assert_eq!(open_descriptors(), before);
}

/// Sends one byte with `count` copies of a descriptor: more than `Message` itself would.
#[expect(unsafe_code, reason = "hand-made control message")]
fn send_copies(socket: &impl std::os::fd::AsRawFd, fd: &OwnedFd, count: u32) {
    use std::os::fd::AsRawFd;
    let mut control = [0u64; 64];
    let mut byte = [1u8];
    let mut piece = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: everything is a live local; 40 descriptors fit into 512 bytes.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(count * 4) as usize;
        let message = libc::CMSG_FIRSTHDR(&raw const header);
        (*message).cmsg_level = libc::SOL_SOCKET;
        (*message).cmsg_type = libc::SCM_RIGHTS;
        (*message).cmsg_len = libc::CMSG_LEN(count * 4) as usize;
        let data = libc::CMSG_DATA(message).cast::<i32>();
        for i in 0..count {
            data.add(i as usize).write_unaligned(fd.as_raw_fd());
        }
        assert_eq!(libc::sendmsg(socket.as_raw_fd(), &raw const header, 0), 1);
    }
}

/// Descriptors that lead to an eventfd: other tests of this process open others meanwhile.
fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd")
        .expect("proc is mounted")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().contains("eventfd"))
        .count()
}

type Reading = Pin<Box<dyn Future<Output = (io::Result<usize>, Witnessed<Bytes>)>>>;

thread_local!(static HELD: RefCell<Option<Reading>> = const { RefCell::new(None) });

/// A waker that drops an operation when it is dropped itself.
struct Holds;

impl Wake for Holds {
    fn wake(self: Arc<Self>) {}
}

impl Drop for Holds {
    fn drop(&mut self) {
        drop(HELD.take());
    }
}

#[test]
fn an_operation_that_a_waker_drops_in_the_wrong_place_keeps_its_memory() {
    let executor = executor(8);
    let ends = [pipe(), pipe()];
    let [first, second] = ends.map(|(end, other)| (File::new(executor.handle(), end), other));
    let freed = Rc::new(Cell::new(false));
    let witnessed = Witnessed(Bytes::zeroed(8), freed.clone());
    let mut held: Reading = Box::pin(async move { first.0.read(witnessed).await });
    let mut nobody = Context::from_waker(Waker::noop());
    assert!(held.as_mut().poll(&mut nobody).is_pending());
    HELD.set(Some(held));
    let mut read = second.0.read(Bytes::zeroed(8));
    let waker = Waker::from(Arc::new(Holds));
    let mut somebody = Context::from_waker(&waker);
    assert!(Pin::new(&mut read).poll(&mut somebody).is_pending());
    drop(waker);
    // The waker goes where the table of operations is borrowed.
    let again = catch_unwind(AssertUnwindSafe(|| {
        Pin::new(&mut read).poll(&mut nobody).is_pending()
    }));
    assert!(again.is_err());
    assert_eq!(
        (freed.get(), executor.handle().stats().in_flight),
        (false, 2)
    );
}
