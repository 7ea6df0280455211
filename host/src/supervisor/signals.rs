//! The signals that end a command or tell it of a change, kept until the supervisor looks at them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use rustix::process::Signal;
use vudev_executor::{Handle, Notify, Signals, Task};

/// What a signal means to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Stop, by this signal.
    Stop(i32),
    /// Something outside is another.
    Change(Change),
}

/// What devices are told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Sizes are to be read again.
    Refresh,
    /// A terminal has another size.
    Window,
}

/// Signals that have come.
pub(super) struct HeardSignals {
    pending: Rc<RefCell<VecDeque<Heard>>>,
    /// Ends with this.
    _collector: Task<()>,
}

impl HeardSignals {
    /// Blocks them for this thread and collects them from now on; `changed` is told of each.
    ///
    /// SIGTTOU is only blocked (see [`super::terminal::RawTerminal`]). A hangup and a quit (Ctrl-\)
    /// end a command like this one, unless somebody (nohup) has said otherwise. An interrupt does
    /// so in any case: a script's background jobs are started with it ignored, and whoever sends it
    /// to one means it (as QEMU takes it).
    pub(super) fn collect(handle: &Handle, changed: Rc<Notify>) -> io::Result<Self> {
        let mut set = vec![
            Signal::TERM,
            Signal::INT,
            Signal::TTOU,
            Signal::USR1,
            Signal::WINCH,
        ];
        // To be asked before: a signal that is blocked is not ignored.
        set.extend(
            [Signal::HUP, Signal::QUIT]
                .into_iter()
                .filter(|s| !is_ignored(*s)),
        );
        let source = Signals::new(handle, &set)?;
        let pending = Rc::default();
        let collector = handle.spawn(collect(source, Rc::clone(&pending), changed));
        Ok(Self {
            pending,
            _collector: collector,
        })
    }

    /// The oldest that has not been taken yet.
    pub(super) fn take(&self) -> Option<Heard> {
        self.pending.borrow_mut().pop_front()
    }
}

/// A task of its own, since a read that is dropped half-way could lose the signal.
async fn collect(mut source: Signals, pending: Rc<RefCell<VecDeque<Heard>>>, changed: Rc<Notify>) {
    loop {
        match source.next().await {
            Ok(libc::SIGTTOU) => {}
            Ok(signal) => {
                keep(&mut pending.borrow_mut(), signal);
                changed.notify();
            }
            Err(error) => return log::error!("signalfd: {error}"),
        }
    }
}

/// Keeps what nobody has looked at yet: a change needs no second word, nor a stop a third, and
/// whoever sends signals without end gets no memory for it.
fn keep(pending: &mut VecDeque<Heard>, signal: i32) {
    let (heard, most) = match signal {
        libc::SIGUSR1 => (Heard::Change(Change::Refresh), 1),
        libc::SIGWINCH => (Heard::Change(Change::Window), 1),
        signal => (Heard::Stop(signal), 2),
    };
    if pending.iter().filter(|other| **other == heard).count() < most {
        pending.push_back(heard);
    }
}

/// Whether we were started with this signal ignored (proc(5), `SigIgn`).
fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask >> (signal.as_raw() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_nobody_looks_at_do_not_pile_up() {
        let mut pending = VecDeque::new();
        for _ in 0..1000 {
            for signal in [libc::SIGUSR1, libc::SIGTERM, libc::SIGWINCH] {
                keep(&mut pending, signal);
            }
        }
        let stop = Heard::Stop(libc::SIGTERM);
        let [refresh, window] = [Change::Refresh, Change::Window].map(Heard::Change);
        assert_eq!(pending, [refresh, stop, window, stop]);
    }
}
