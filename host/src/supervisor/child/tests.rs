//! One device's process against its supervisor, with the device's end in the test's hands.

use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use log::LevelFilter;
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use vudev_executor::Executor;

use super::super::pace::CONNECTS_PER_PERIOD;
use super::*;
use crate::channel::UP_MAX;
use crate::kind::Target;

/// How long what must not hang may take here.
const LIMIT: Duration = Duration::from_secs(5);

/// A process that would run for a minute, and its end of the channel, which the test holds.
fn sleeper(handle: &Handle, mode: Option<SeccompMode>) -> (Rc<Child>, OwnedFd) {
    sleeper_with(handle, mode, Vec::new())
}

#[expect(clippy::zombie_processes, reason = "`Child::watch` reaps it")]
fn sleeper_with(
    handle: &Handle,
    mode: Option<SeccompMode>,
    reach: Vec<Target>,
) -> (Rc<Child>, OwnedFd) {
    let process = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    let (lines, changed) = (Rc::default(), Rc::default());
    let child = Child::new(
        Known {
            name: "block-0".to_owned(),
            place: "/run/b".to_owned(),
            mode,
            reach: Reach::new(reach),
            windows: Windows::default(),
            names: Names::default(),
        },
        vudev_jail::Child { pid, pidfd },
        ours,
        (handle, &lines, &changed),
    );
    (Rc::new(child), theirs)
}

fn ending(send: impl FnOnce(OwnedFd)) -> Ending {
    ending_in(None, send)
}

fn ending_in(mode: Option<SeccompMode>, send: impl FnOnce(OwnedFd)) -> Ending {
    let executor = Executor::with_operations(8).unwrap();
    let (child, channel) = sleeper(executor.handle(), mode);
    send(channel);
    watched(&executor, child)
}

/// How it ends, which must be soon.
fn watched(executor: &Executor, child: Rc<Child>) -> Ending {
    let watch = child.watch(executor.handle().clone());
    soon(executor, watch).1
}

fn soon<F: Future>(executor: &Executor, future: F) -> F::Output {
    let in_time = executor.handle().timeout(LIMIT, future);
    executor.run(in_time).unwrap().expect("it hangs")
}

fn packet(channel: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) {
    let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    sendmsg(
        channel,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::empty(),
    )
    .unwrap();
}

#[test]
fn a_device_that_breaks_the_rules_of_the_channel_is_killed_and_named_for_it() {
    let long = vec![3; UP_MAX + 1];
    for (bytes, told) in [
        (
            &[99][..],
            "has sent a packet of unknown kind 99 and was killed",
        ),
        (&long[..], "has sent a packet that is too large"),
        (&[1, 1][..], "has sent a malformed packet of kind 1"),
    ] {
        // The test keeps the channel open: only the packet ends it.
        let mut kept = None;
        let ending = ending(|channel| {
            packet(&channel, bytes, &[]);
            kept = Some(channel);
        });
        assert!(!ending.as_asked);
        assert!(ending.text.starts_with(told), "{}", ending.text);
        assert!(
            ending.text.ends_with("(killed by signal SIGKILL)"),
            "{}",
            ending.text
        );
    }
}

#[test]
fn a_device_that_sends_descriptors_is_killed_and_nobody_takes_or_closes_them() {
    let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let mut kept = None;
    let ending = ending(|channel| {
        packet(&channel, &Up::Ready.encode(), &[write]);
        kept = Some(channel);
    });
    assert!(
        ending.text.starts_with("has sent descriptors in a packet"),
        "{}",
        ending.text
    );
    // The channel has it: to let it go is the kernel's matter, at our end.
    assert_eq!(rustix::io::read(&read, &mut [0_u8; 1]), Err(Errno::AGAIN));
}

/// A connection that waits half a minute for its peer when it is closed: the peer does not read.
fn lingering() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    set_socket_linger(&stream, Some(Duration::from_secs(30))).unwrap();
    stream.set_nonblocking(true).unwrap();
    while stream.write(&[0; 65536]).is_ok() {}
    stream.set_nonblocking(false).unwrap();
    (stream.into(), peer)
}

#[test]
fn a_descriptor_whose_closing_hangs_does_not_hang_the_supervisor() {
    let begun = Instant::now();
    for (mode, first) in [
        (None, None),
        (Some(SeccompMode::Log), Some(Up::Listener)),
        // Behind a packet that ends it: nobody looks so far.
        (None, Some(Up::Listener)),
    ] {
        let (stream, _peer) = lingering();
        let mut kept = None;
        let ending = ending_in(mode, |channel| {
            if let Some(up) = first {
                let null = std::fs::File::open("/dev/null").unwrap().into();
                packet(&channel, &up.encode(), &[null]);
            }
            packet(&channel, &Up::Ready.encode(), &[stream]);
            kept = Some(channel);
        });
        let text = "has sent descriptors in a packet that takes none and was killed";
        assert!(ending.text.starts_with(text), "{}", ending.text);
    }
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
}

/// Ends its process, and waits for that without reaping it.
fn end(child: &Child) {
    child.kill();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::PidFd(child.process.as_fd()), options).unwrap();
    assert!(child.has_ended());
}

#[test]
fn a_death_is_told_though_somebody_has_a_copy_of_the_channel() {
    let executor = Executor::with_operations(8).unwrap();
    let (child, channel) = sleeper(executor.handle(), None);
    let died = Up::Died("panicked at x.rs:1: no".to_owned());
    end(&child);
    packet(&channel, &died.encode(), &[]);
    let ending = watched(&executor, child);
    let text = "has panicked at x.rs:1: no (killed by signal SIGKILL)";
    assert_eq!(ending.text, text);
    // It can say no more.
    let flags = SendFlags::NOSIGNAL;
    let sent = rustix::net::send(&channel, &Up::Ready.encode(), flags);
    assert_eq!(sent, Err(Errno::PIPE));
}

/// More than is heard in a second, then its last words; all is there when its process ends.
#[test]
fn last_words_behind_a_flood_are_heard() {
    let executor = Executor::with_operations(8).unwrap();
    let (child, channel) = sleeper(executor.handle(), None);
    let line = Up::Log {
        level: Level::Info,
        dropped: 0,
        text: "x".to_owned(),
    };
    for _ in 0..PACKETS_PER_PERIOD + 20 {
        packet(&channel, &line.encode(), &[]);
    }
    packet(&channel, &Up::Died("panicked".to_owned()).encode(), &[]);
    let process = Rc::clone(&child);
    let handle = executor.handle().clone();
    let ending = soon(&executor, async {
        let watch = handle.spawn(child.watch(handle.clone()));
        // It waits for the next second now, with a packet that it has only looked at.
        handle.sleep(Duration::from_millis(100)).await;
        process.kill();
        watch.await.1
    });
    assert_eq!(ending.text, "has panicked (killed by signal SIGKILL)");
}

fn stream_target(folder: &tempfile::TempDir) -> (UnixListener, PathBuf) {
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener, path)
}

fn connect(ticket: u32) -> Vec<u8> {
    Up::Connect {
        ticket,
        target: 0,
        number: 0,
    }
    .encode()
}

#[test]
fn nobody_is_connected_for_a_process_that_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, path) = stream_target(&folder);
    let executor = Executor::with_operations(8).unwrap();
    let reach = vec![Target::Stream(path)];
    let (child, channel) = sleeper_with(executor.handle(), None, reach);
    packet(&channel, &Up::Ready.encode(), &[]);
    packet(&channel, &connect(1), &[]);
    end(&child);
    let ending = watched(&executor, child);
    assert_eq!(ending.text, "has died: killed by signal SIGKILL");
    assert!(listener.accept().is_err());
    assert!(answer(&channel).is_none());
}

/// The ticket and errno of an answer that has come, and whether it has a socket.
fn answer(channel: &OwnedFd) -> Option<(u32, i32, bool)> {
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let pieces = &mut [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(channel, pieces, &mut control, RecvFlags::DONTWAIT).ok()?;
    let socket = control
        .drain()
        .any(|message| matches!(message, RecvAncillaryMessage::ScmRights(_)));
    match Down::decode(&bytes[..received.bytes]) {
        Ok(Down::Connected { ticket, errno }) => Some((ticket, errno, socket)),
        _ => None,
    }
}

#[test]
fn wishes_beyond_the_pace_wait_and_once_it_is_to_stop_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (listener, path) = stream_target(&folder);
    let executor = Executor::with_operations(8).unwrap();
    let reach = vec![Target::Stream(path)];
    let (child, channel) = sleeper_with(executor.handle(), None, reach);
    packet(&channel, &Up::Ready.encode(), &[]);
    let wishes = CONNECTS_PER_PERIOD + 5;
    (0..wishes).for_each(|ticket| packet(&channel, &connect(ticket), &[]));
    let known = Rc::clone(&child);
    let handle = executor.handle().clone();
    soon(&executor, async {
        let watch = handle.spawn(child.watch(handle.clone()));
        handle.sleep(Duration::from_millis(100)).await;
        let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
        assert_eq!(accepted, usize::try_from(CONNECTS_PER_PERIOD).unwrap());
        known.ask_to_stop();
        handle.sleep(Duration::from_millis(100)).await;
        known.kill();
        watch.await
    });
    assert!(listener.accept().is_err(), "connected after the stop");
    // The stop is between them.
    let answers: Vec<_> = (0..=wishes).filter_map(|_| answer(&channel)).collect();
    assert_eq!(answers.len(), usize::try_from(wishes).unwrap());
    for (place, (ticket, errno, socket)) in (0..).zip(answers) {
        let in_time = place < CONNECTS_PER_PERIOD;
        let wanted = if in_time { 0 } else { libc::EAGAIN };
        assert_eq!((ticket, errno, socket), (place, wanted, in_time));
    }
}

/// The kernel sends nobody a ring; what else it may refuse to send (ETOOMANYREFS, ENOMEM) it does
/// not refuse when asked.
#[test]
fn a_socket_that_cannot_be_sent_is_an_answer_all_the_same() {
    let executor = Executor::with_operations(8).unwrap();
    let (child, channel) = sleeper(executor.handle(), None);
    soon(&executor, child.answer(7, Ok(a_ring())));
    assert_eq!(answer(&channel), Some((7, libc::EINVAL, false)));
    packet(&channel, &[99], &[]);
    watched(&executor, child);
}

/// A copy of the descriptor of this process's own ring.
fn a_ring() -> OwnedFd {
    let own = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let is_ring = |number: &i32| {
        let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
        link.is_ok_and(|link| link.as_os_str() == "anon_inode:[io_uring]")
    };
    let number = (3..100).find(is_ring).unwrap();
    pidfd_getfd(&own, number, PidfdGetfdFlags::empty()).unwrap()
}

#[test]
fn lines_below_the_level_of_the_command_are_not_printed() {
    log::set_max_level(LevelFilter::Info);
    let executor = Executor::with_operations(8).unwrap();
    let (child, channel) = sleeper(executor.handle(), None);
    let lines = Rc::clone(&child.lines);
    for level in Level::iter() {
        let text = "a line".to_owned();
        let line = Up::Log {
            level,
            dropped: 0,
            text,
        };
        packet(&channel, &line.encode(), &[]);
    }
    end(&child);
    watched(&executor, child);
    let printed = "block-0: error: a line\nblock-0: warning: a line\nblock-0: info: a line\n";
    assert_eq!(lines.queued(), printed);
}

#[test]
fn only_one_listener_is_taken_and_only_when_and_where_it_is_due() {
    let sent = |mode, packets: &[(Up, usize)]| {
        let mut kept = None;
        let ending = ending_in(mode, |channel| {
            for (up, descriptors) in packets {
                let null = || std::fs::File::open("/dev/null").unwrap().into();
                let descriptors: Vec<_> = (0..*descriptors).map(|_| null()).collect();
                packet(&channel, &up.encode(), &descriptors);
            }
            kept = Some(channel);
        });
        ending.text
    };
    let log = Some(SeccompMode::Log);
    let not_due = "has sent a packet that is not due";
    for (mode, packets, told) in [
        (None, &[(Up::Listener, 0)][..], not_due),
        (log, &[(Up::Listener, 0)], not_due),
        (log, &[(Up::Ready, 0)], not_due),
        (log, &[(Up::Died(String::new()), 1)], not_due),
        (log, &[(Up::Listener, 1), (Up::Listener, 0)], not_due),
        (
            log,
            &[(Up::Listener, 1), (Up::Ready, 1)],
            "has sent descriptors in a packet",
        ),
        (
            Some(SeccompMode::Trap),
            &[(Up::Listener, 1)],
            "has sent descriptors in a packet",
        ),
    ] {
        let text = sent(mode, packets);
        assert!(text.starts_with(told), "{packets:?}: {text}");
    }
}

#[test]
fn a_process_that_lives_without_its_channel_is_killed() {
    let ending = ending(drop);
    assert_eq!(ending.text, "has died: killed by signal SIGKILL");
}
