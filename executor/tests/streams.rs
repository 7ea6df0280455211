//! Stream sockets on a real ring: transfers that never wait, ends of halves, and a hang-up that is
//! told from the end of one half.

#![allow(clippy::unwrap_used, reason = "a test panics where it fails")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vudev_executor::{Bytes, Executor, Half, Handle, Stream};

const SHORTLY: Duration = Duration::from_millis(20);

fn run<F: Future>(test: impl FnOnce(Handle, Stream, UnixStream) -> F) {
    let executor = Executor::with_operations(16).unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let stream = Stream::new(executor.handle(), ours);
    executor
        .run(test(executor.handle().clone(), stream, theirs))
        .unwrap();
}

/// Sends until there is no room; how much that was.
async fn fill(stream: &Stream) -> usize {
    let mut sent = 0;
    loop {
        match stream.send(Bytes::zeroed(1 << 16)).await.0 {
            Ok(count) => sent += count,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                return sent;
            }
        }
    }
}

#[test]
fn a_transfer_moves_what_it_can_and_never_waits() {
    run(async |_, stream, mut peer| {
        let (nothing, bytes) = stream.receive(Bytes::zeroed(8)).await;
        assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
        peer.write_all(b"hello").unwrap();
        stream.readable().await.unwrap();
        let (count, bytes) = stream.receive(bytes).await;
        assert_eq!(&bytes.as_slice()[..count.unwrap()], b"hello");
        assert!(fill(&stream).await > 0);
        drop(peer);
        let gone = stream.send(bytes).await.0.unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::BrokenPipe);
    });
}

#[test]
fn room_is_waited_for_even_when_the_peer_sends_no_more() {
    run(async |handle, stream, mut peer| {
        peer.shutdown(Shutdown::Write).unwrap();
        let mut room = stream.room();
        room.wait().await.unwrap();
        let sent = fill(&stream).await;
        // What was signalled meanwhile is over; then there is nothing more to hear.
        while handle.timeout(SHORTLY, room.wait()).await.is_some() {}
        peer.read_exact(&mut vec![0; sent]).unwrap();
        room.wait().await.unwrap();
        assert!(fill(&stream).await > 0);
    });
}

#[test]
fn a_hang_up_is_the_end_of_both_halves_and_not_of_one() {
    run(async |handle, stream, peer| {
        peer.shutdown(Shutdown::Write).unwrap();
        assert!(handle.timeout(SHORTLY, stream.hung_up()).await.is_none());
        let later = handle.spawn(async move { drop(peer) });
        stream.hung_up().await.unwrap();
        later.await;
    });
    run(async |_, stream, mut peer| {
        peer.shutdown(Shutdown::Write).unwrap();
        stream.shut_down(Half::Sending).await.unwrap();
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        stream.hung_up().await.unwrap();
    });
}

#[test]
fn an_end_of_receiving_fails_the_peers_writes() {
    run(async |_, stream, mut peer| {
        stream.shut_down(Half::Receiving).await.unwrap();
        let gone = peer.write(b"x").unwrap_err();
        assert_eq!(gone.kind(), ErrorKind::BrokenPipe);
    });
}
