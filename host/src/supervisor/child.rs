//! One device's process as its supervisor sees it: what it says, until it ends. Nothing that it
//! says is believed without need, and nothing it does can keep the supervisor busy.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use log::Level;
use rustix::net::SendFlags;
use rustix::process::{Pid, Signal, pidfd_send_signal};
use vudev_executor::{ExitStatus, Handle, Message, Notify, ProcessFd, Socket, Task};

use super::denied;
use super::ending::{Asked, Ending, LastWords};
use super::log_lines::LogLines;
use super::pace::{CONNECTS_PER_WINDOW, PACKETS_PER_WINDOW, Pace};
use super::reach::{Reach, Windows};
use crate::channel::{Down, RUNNING_DOWN_MAX, UP_MAX, Up, WireError};
use crate::kind::Notice;
use crate::options::SeccompMode;

/// How long a process may live on after it has closed its channel: the kernel closes descriptors
/// a little before it reports the exit.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(1);

/// How long to wait for a tracer of a process that has ended.
const REAP_AGAIN: Duration = Duration::from_millis(10);

/// How far a device has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Its jail is not closed yet.
    Starting,
    /// It serves.
    Ready,
    /// It is gone, and has been reaped.
    Ended,
}

/// What a device's process is to its supervisor beside a process.
pub(crate) struct Known {
    pub(crate) name: String,
    /// Where its front-end connects.
    pub(crate) place: String,
    /// What it comes to when it calls what its policy denies; `None` without a policy.
    pub(crate) mode: Option<SeccompMode>,
    pub(crate) reach: Reach,
    pub(crate) windows: Windows,
}

/// One device's process.
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) place: String,
    pub(crate) pid: Pid,
    mode: Option<SeccompMode>,
    reach: Reach,
    windows: Windows,
    process: ProcessFd,
    channel: Socket,
    progress: Cell<Progress>,
    /// That it is ready has been told.
    told: Cell<bool>,
    asked: Cell<Asked>,
    /// Told whenever `progress` or `asked` has changed.
    changed: Rc<Notify>,
    hurry: Notify,
    lines: Rc<LogLines>,
    pace: RefCell<Pace>,
    connects: RefCell<Pace>,
    /// Lets its denied calls go on, until it is gone: its very exit may be one.
    answering: RefCell<Option<Task<()>>>,
}

impl Child {
    pub(crate) fn new(
        known: Known,
        process: vudev_jail::Child,
        channel: OwnedFd,
        (handle, lines, changed): (&Handle, &Rc<LogLines>, &Rc<Notify>),
    ) -> Self {
        let vudev_jail::Child { pid, pidfd } = process;
        let Known {
            name,
            place,
            mode,
            reach,
            windows,
        } = known;
        Self {
            name,
            place,
            pid,
            mode,
            reach,
            windows,
            process: ProcessFd::new(handle, pidfd),
            channel: Socket::new(handle, channel),
            progress: Cell::new(Progress::Starting),
            told: Cell::new(false),
            asked: Cell::new(Asked::Nothing),
            changed: Rc::clone(changed),
            hurry: Notify::new(),
            lines: Rc::clone(lines),
            pace: RefCell::new(Pace::new(PACKETS_PER_WINDOW, handle.now())),
            connects: RefCell::new(Pace::new(CONNECTS_PER_WINDOW, handle.now())),
            answering: RefCell::new(None),
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        self.progress.get()
    }

    /// Whether it is ready, the first time that this is asked then.
    pub(crate) fn has_become_ready(&self) -> bool {
        self.progress.get() == Progress::Ready && !self.told.replace(true)
    }

    /// Asks it to stop. Its end comes through [`Child::watch`].
    pub(crate) fn ask_to_stop(&self) {
        self.asked.set(Asked::Stop);
        self.hurry.notify();
        if let Err(error) = self.send(&Down::Stop) {
            // It has just ended, or does not read: the deadline is for that.
            log::debug!("{}: the stop could not be sent: {error}", self.name);
        }
    }

    /// Tells it that sizes are to be read again, and of its terminals those that have changed.
    pub(crate) fn refresh(&self) {
        self.notify(Notice::Refresh);
        self.tell_windows();
    }

    /// Tells it which of its terminals have another size now.
    pub(crate) fn tell_windows(&self) {
        for notice in self.windows.changed() {
            self.notify(notice);
        }
    }

    fn notify(&self, notice: Notice) {
        if let Err(error) = self.send(&Down::Notice(notice)) {
            let text = format!("was not told of a change, it does not read: {error}");
            self.lines.line(&self.name, Level::Warn, &text);
        }
    }

    /// Sends if there is room: it is never waited for.
    fn send(&self, packet: &Down) -> io::Result<()> {
        let packet = packet.encode().map_err(io::Error::other)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(&self.channel, &packet, flags)?;
        Ok(())
    }

    /// Kills it because it did not stop.
    pub(crate) fn kill_overdue(&self) {
        self.asked.set(Asked::Killed);
        self.kill();
    }

    fn kill(&self) {
        // ESRCH: it has ended by itself meanwhile.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Everything it says until it ends, and how it ended.
    pub(crate) async fn watch(self: Rc<Self>, handle: Handle) -> (Rc<Self>, Ending) {
        let mut words = LastWords::default();
        if let Err(error) = self.listen(&handle, &mut words).await {
            words.broken = Some(error);
            self.kill();
        }
        let status = self.exited(&handle).await;
        self.answering.take();
        self.tell_suppressed();
        self.progress.set(Progress::Ended);
        self.changed.notify();
        let ending = Ending::judge(self.asked.get(), status, self.mode, &words);
        (self, ending)
    }

    /// Until it closes its channel.
    async fn listen(&self, handle: &Handle, words: &mut LastWords) -> Result<(), WireError> {
        if self.mode == Some(SeccompMode::Log) {
            self.listen_for_listener(handle, words).await?;
        }
        // A device that was taken over could send a file whose closing hangs whoever closes it.
        let mut message = Message::without_descriptors(UP_MAX);
        while let Some((up, buffer)) = self.next(message).await? {
            message = buffer;
            match up {
                Up::Listener => return Err(WireError::Listener),
                Up::Connect { .. } if self.progress.get() != Progress::Ready => {
                    return Err(WireError::Listener);
                }
                Up::Connect {
                    ticket,
                    target,
                    number,
                } => {
                    self.pace(handle, &self.connects).await;
                    self.connect(ticket, target, number).await;
                }
                up => {
                    let in_time = self.pace(handle, &self.pace).await;
                    self.hear(up, in_time, words);
                }
            }
        }
        Ok(())
    }

    /// Until its listener has come. Before that it is not ready, and until it is ready it has
    /// read no byte of a front-end: it is still our own program, with the user's options, and can
    /// be believed. So descriptors are received in this mode, up to this packet, and at no other
    /// time.
    ///
    /// To take it by pidfd_getfd(2) would need no packet, but the right to trace the device,
    /// which Yama or a container's profile may forbid.
    async fn listen_for_listener(
        &self,
        handle: &Handle,
        words: &mut LastWords,
    ) -> Result<(), WireError> {
        let mut message = Message::with_capacity(UP_MAX);
        while let Some((up, buffer)) = self.next(message).await? {
            message = buffer;
            let descriptors = message.take_descriptors();
            match (up, <[OwnedFd; 1]>::try_from(descriptors)) {
                (Up::Listener, Ok([listener])) => {
                    let (lines, name) = (Rc::clone(&self.lines), self.name.clone());
                    let answer = denied::let_go_on(handle.clone(), listener, lines, name);
                    self.answering.replace(Some(handle.spawn(answer)));
                    return Ok(());
                }
                (Up::Listener | Up::Ready | Up::Connect { .. }, _) | (_, Ok(_)) => {
                    return Err(WireError::Listener);
                }
                (_, Err(several)) if !several.is_empty() => return Err(WireError::Descriptors),
                (up, Err(_)) => {
                    let in_time = self.pace(handle, &self.pace).await;
                    self.hear(up, in_time, words);
                }
            }
        }
        Ok(())
    }

    /// Answers a wish to be connected. A device that does not read its answers is not heard
    /// meanwhile, and nobody else suffers from it.
    async fn connect(&self, ticket: u32, target: u8, number: u32) {
        let (errno, socket) = match self.reach.connect(target, number) {
            Ok(socket) => (0, vec![socket]),
            Err(errno) => (errno.raw_os_error(), Vec::new()),
        };
        let answer = Down::Connected { ticket, errno };
        let packet = answer.encode().expect("an answer is nine bytes");
        let mut message = Message::with_capacity(RUNNING_DOWN_MAX);
        message.set(&packet, socket);
        // It has ended, and so will `listen`.
        let _ = self.channel.send(message).await;
    }

    /// The next packet, and its buffer; `None` when it has closed its channel.
    async fn next(&self, message: Message) -> Result<Option<(Up, Message)>, WireError> {
        let (received, message) = self.channel.receive(message).await;
        match received {
            Ok(_) if message.descriptors_lost() => Err(WireError::Descriptors),
            Ok(0) | Err(_) => Ok(None),
            Ok(_) if message.truncated() => Err(WireError::TooLarge),
            Ok(_) => Ok(Some((Up::decode(message.bytes())?, message))),
        }
    }

    fn hear(&self, up: Up, in_time: bool, words: &mut LastWords) {
        match up {
            Up::Ready if self.progress.get() == Progress::Starting => {
                self.progress.set(Progress::Ready);
                self.changed.notify();
            }
            Up::Ready => {}
            Up::StepFailed { step, errno, text } => words.step = Some((step, errno, text)),
            Up::Log {
                level,
                dropped,
                text,
            } => {
                self.pace
                    .borrow_mut()
                    .suppress(dropped.saturating_add(u32::from(!in_time)));
                if in_time {
                    self.tell_suppressed();
                    self.lines.line(&self.name, level, &text);
                }
            }
            Up::Died(text) => words.panic = Some(text),
            Up::Sigsys(report) => words.sigsys = Some(report),
            // Their only place is before all this, see `listen`.
            Up::Listener | Up::Connect { .. } => {}
        }
    }

    /// Counts a packet, in time or not. A device that says too much is not read from until the
    /// second is over: its own end of the channel then fills, and it drops and counts its lines
    /// itself. Once it is to stop there is no time for that.
    async fn pace(&self, handle: &Handle, pace: &RefCell<Pace>) -> bool {
        let full = pace.borrow().full_until(handle.now());
        if let Some(until) = full
            && self.asked.get() == Asked::Nothing
        {
            let rest = until.saturating_duration_since(handle.now());
            let _ = handle.timeout(rest, self.hurry.notified()).await;
        }
        pace.borrow_mut().admit(handle.now())
    }

    fn tell_suppressed(&self) {
        let suppressed = self.pace.borrow_mut().take_suppressed();
        if suppressed > 0 {
            let text = format!("{suppressed} lines suppressed");
            self.lines.line(&self.name, Level::Warn, &text);
        }
    }

    /// Its exit status, made sure of.
    async fn exited(&self, handle: &Handle) -> ExitStatus {
        match handle.timeout(EXIT_AFTER_CLOSE, self.reaped(handle)).await {
            Some(status) => status,
            None => {
                let text = "lives without its channel: killed";
                self.lines.line(&self.name, Level::Error, text);
                self.kill();
                self.reaped(handle).await
            }
        }
    }

    async fn reaped(&self, handle: &Handle) -> ExitStatus {
        loop {
            match self.process.exited().await {
                Ok(status) => return status,
                // Somebody traces it, and hears of its end first.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    handle.sleep(REAP_AGAIN).await;
                }
                // Nobody else can reap it (see `vudev_jail::spawn::keep_exit_statuses`).
                Err(error) => panic!("waitid of {}: {error}", self.name),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::AsFd;
    use std::process::Command;

    use rustix::net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SocketFlags, SocketType, sendmsg,
        socketpair,
    };
    use rustix::process::{PidfdFlags, pidfd_open};
    use vudev_executor::Executor;

    use super::*;

    /// A process that would run for a minute, and its end of the channel, which the test holds.
    #[expect(clippy::zombie_processes, reason = "`Child::watch` reaps it")]
    fn sleeper(handle: &Handle, mode: Option<SeccompMode>) -> (Rc<Child>, OwnedFd) {
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
                reach: Reach::default(),
                windows: Windows::default(),
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
        let watch = child.watch(executor.handle().clone());
        executor.run(watch).unwrap().1
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
    fn a_device_that_sends_descriptors_is_killed_and_they_are_closed() {
        let (read, write) = rustix::pipe::pipe().unwrap();
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
        // No writer is left: the end of the stream.
        assert_eq!(rustix::io::read(&read, &mut [0_u8; 1]), Ok(0));
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
}
