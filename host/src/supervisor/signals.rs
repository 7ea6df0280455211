//! The signals that end a command, kept until the supervisor looks at them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use rustix::process::Signal;
use vudev_executor::{Handle, Notify, Signals, Task};

/// Signals that have come.
pub(super) struct StopSignals {
    pending: Rc<RefCell<VecDeque<i32>>>,
    /// Ends with this.
    _collector: Task<()>,
}

impl StopSignals {
    /// Blocks them for this thread and collects them from now on; `changed` is told of each.
    ///
    /// SIGTTOU is only blocked (see [`super::terminal::RawTerminal`]). A hangup and a quit (Ctrl-\)
    /// end a command like this one, unless somebody (nohup) has said otherwise.
    pub(super) fn collect(handle: &Handle, changed: Rc<Notify>) -> io::Result<Self> {
        let mut set = vec![Signal::TERM, Signal::INT, Signal::TTOU];
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
    pub(super) fn take(&self) -> Option<i32> {
        self.pending.borrow_mut().pop_front()
    }
}

/// A task of its own, since a read that is dropped half-way could lose the signal.
async fn collect(mut source: Signals, pending: Rc<RefCell<VecDeque<i32>>>, changed: Rc<Notify>) {
    loop {
        match source.next().await {
            Ok(libc::SIGTTOU) => {}
            Ok(signal) => {
                pending.borrow_mut().push_back(signal);
                changed.notify();
            }
            Err(error) => return log::error!("signalfd: {error}"),
        }
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
