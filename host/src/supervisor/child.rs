//! One device's process as its supervisor sees it: what it says, until it ends. Nothing that it
//! says is believed without need, and nothing it does can keep the supervisor busy.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use log::Level;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use vudev_executor::{ExitStatus, Handle, Notify, ProcessFd, Task};

use super::denied;
use super::ending::{Asked, Ending, LastWords, Patience};
use super::log_lines::LogLines;
use super::pace::{PACKETS_PER_PERIOD, Pace};
use super::packets::{Packet, Packets};
use super::reach::Reach;
use super::start::Names;
use super::windows::Windows;
use crate::channel::{Down, PacketError, Up};
use crate::kind::Notice;
use crate::options::SeccompMode;

/// How long a process may live on after it has closed its channel: the kernel closes descriptors
/// a little before it reports the exit.
const EXIT_AFTER_CLOSE: Duration = Duration::from_secs(1);

/// How long to wait for a tracer of a process that has ended.
const REAP_AGAIN: Duration = Duration::from_millis(10);

/// How many packets a process that has ended can have left behind. The kernel's bound for a socket
/// (net.core.wmem_default) is some 280; whoever sets a greater one has fewer last words.
const LEFT_MAX: usize = 1024;

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
    pub(crate) names: Names,
}

/// One device's process.
pub(crate) struct Child {
    pub(crate) name: String,
    pub(crate) place: String,
    pub(crate) pid: Pid,
    mode: Option<SeccompMode>,
    reach: Reach,
    windows: Windows,
    /// Until it is gone: whoever comes then hears at once that nobody is there.
    names: RefCell<Names>,
    process: ProcessFd,
    packets: Packets,
    progress: Cell<Progress>,
    /// That it is ready has been told.
    told: Cell<bool>,
    asked: Cell<Asked>,
    /// Told whenever `progress` or `asked` has changed.
    changed: Rc<Notify>,
    hurry: Notify,
    lines: Rc<LogLines>,
    pace: RefCell<Pace>,
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
            names,
        } = known;
        Self {
            name,
            place,
            pid,
            mode,
            reach,
            windows,
            names: RefCell::new(names),
            process: ProcessFd::new(handle, pidfd),
            packets: Packets::new(handle, channel),
            progress: Cell::new(Progress::Starting),
            told: Cell::new(false),
            asked: Cell::new(Asked::Nothing),
            changed: Rc::clone(changed),
            hurry: Notify::new(),
            lines: Rc::clone(lines),
            pace: RefCell::new(Pace::new(PACKETS_PER_PERIOD, handle.now())),
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
        Ok(self.packets.send_now(&packet)?)
    }

    /// Kills it because it did not stop.
    pub(crate) fn kill_overdue(&self, patience: Patience) {
        self.asked.set(Asked::Killed(patience));
        self.kill();
    }

    /// Removes its sockets, and the links to its terminals.
    pub(crate) fn remove_names(&self) {
        drop(self.names.take());
    }

    fn kill(&self) {
        // ESRCH: it has ended by itself meanwhile.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Everything it says until it ends, and how it ended. Its end is its process's: a copy of its
    /// channel, which it may have sent to its front-end, keeps nothing alive.
    pub(crate) async fn watch(self: Rc<Self>, handle: Handle) -> (Rc<Self>, Ending) {
        let mut words = LastWords::default();
        let first = {
            let listened = pin!(self.listen(&handle, &mut words));
            match select(listened, pin!(self.reaped(&handle))).await {
                Either::Left((listened, _)) => Either::Left(listened),
                Either::Right((status, _)) => Either::Right(status),
            }
        };
        let status = match first {
            Either::Left(listened) => {
                if let Err(error) = listened {
                    words.broken = Some(error);
                    self.kill();
                }
                self.exited(&handle).await
            }
            Either::Right(status) => {
                self.hear_what_is_left(&handle, &mut words);
                status
            }
        };
        self.packets.shut();
        self.answering.take();
        self.remove_names();
        self.tell_suppressed();
        self.progress.set(Progress::Ended);
        self.changed.notify();
        let ending = Ending::judge(self.asked.get(), status, self.mode, &words);
        (self, ending)
    }

    /// Until it closes its channel. Dropped, it leaves in the channel what was not heard.
    async fn listen(&self, handle: &Handle, words: &mut LastWords) -> Result<(), PacketError> {
        if self.mode == Some(SeccompMode::Log) {
            self.listen_for_listener(handle, words).await?;
        }
        while let Some(packet) = self.packets.look().await? {
            match packet.plain()? {
                Up::Listener => return Err(PacketError::NotDue),
                Up::Connect { .. } if self.progress.get() != Progress::Ready => {
                    return Err(PacketError::NotDue);
                }
                Up::Connect {
                    ticket,
                    target,
                    number,
                } => {
                    let pace = self.reach.pace(target).unwrap_or(&self.pace);
                    let in_time = self.wait_for_turn(handle, pace).await;
                    self.packets.take();
                    self.connect(ticket, target, number, in_time).await;
                }
                up => {
                    let in_time = self.wait_for_turn(handle, &self.pace).await;
                    self.packets.take();
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
    ) -> Result<(), PacketError> {
        while let Some(Packet { up, descriptors }) = self.packets.look().await? {
            match (up, descriptors) {
                (Up::Listener, true) => {
                    let taken = <[OwnedFd; 1]>::try_from(self.packets.take_descriptors());
                    let [listener] = taken.map_err(|_| PacketError::Descriptors)?;
                    let (lines, name) = (Rc::clone(&self.lines), self.name.clone());
                    let answer = denied::let_go_on(handle.clone(), listener, lines, name);
                    self.answering.replace(Some(handle.spawn(answer)));
                    return Ok(());
                }
                (Up::Listener | Up::Ready | Up::Connect { .. }, _) | (_, true) => {
                    return Err(PacketError::NotDue);
                }
                (up, false) => {
                    let in_time = self.wait_for_turn(handle, &self.pace).await;
                    self.packets.take();
                    self.hear(up, in_time, words);
                }
            }
        }
        Ok(())
    }

    /// What it had said and nobody had heard when its process ended. Whoever has a copy of its
    /// channel says no more, and is not served.
    fn hear_what_is_left(&self, handle: &Handle, words: &mut LastWords) {
        self.packets.shut();
        for _ in 0..LEFT_MAX {
            match self.packets.look_now() {
                Ok(Some(up)) => {
                    self.packets.take();
                    let in_time = self.pace.borrow_mut().admit(handle.now());
                    self.hear(up, in_time, words);
                }
                Ok(None) => return,
                Err(error) => {
                    words.broken = Some(error);
                    return;
                }
            }
        }
    }

    /// Answers a wish to be connected; one that is not in time is to be asked again. A device that
    /// does not read its answers is not heard meanwhile, and nobody else suffers from it.
    async fn connect(&self, ticket: u32, target: u8, number: u32, in_time: bool) {
        if self.has_ended() {
            return;
        }
        let socket = if in_time {
            self.reach.connect(target, number)
        } else {
            Err(Errno::AGAIN)
        };
        self.answer(ticket, socket).await;
    }

    async fn answer(&self, ticket: u32, socket: Result<OwnedFd, Errno>) {
        let packet = |errno| {
            let answer = Down::Connected { ticket, errno };
            answer.encode().expect("an answer is nine bytes")
        };
        let errno = match socket {
            Ok(socket) => match self.packets.send(&packet(0), Some(&socket)).await {
                Ok(()) => return,
                // ETOOMANYREFS, say: the socket cannot be sent, but that can be said.
                Err(errno) => errno,
            },
            Err(errno) => errno,
        };
        // It has ended, and so will `listen`.
        let _ = self.packets.send(&packet(errno.raw_os_error()), None).await;
    }

    /// Whether its process has ended, reaped or not.
    fn has_ended(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(
            waitid(WaitId::PidFd(self.process.as_fd()), options),
            Ok(None)
        )
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
            } if level <= log::max_level() => {
                self.pace
                    .borrow_mut()
                    .suppress(dropped.saturating_add(u32::from(!in_time)));
                if in_time {
                    self.tell_suppressed();
                    self.lines.relay(&self.name, level, &text);
                }
            }
            // It was told the level, and sends no such lines.
            Up::Log { .. } => {}
            Up::Died(text) => words.panic = Some(text),
            Up::Sigsys(report) => words.sigsys = Some(report),
            // Their only place is before all this, see `listen`.
            Up::Listener | Up::Connect { .. } => {}
        }
    }

    /// Counts a packet, in time or not. A device that says too much is not read from until the
    /// second is over: its own end of the channel then fills, and it drops and counts its lines
    /// itself. Once it is to stop there is no time for that.
    async fn wait_for_turn(&self, handle: &Handle, pace: &RefCell<Pace>) -> bool {
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
            self.lines.relay(&self.name, Level::Warn, &text);
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
mod tests;
