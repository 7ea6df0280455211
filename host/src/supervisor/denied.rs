//! What a device calls against its policy under `seccomp-mode=log`: each call is named once, and
//! let go on. The device waits for its supervisor here, never the other way round.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use log::Level;
use rustix::io::Errno;
use vudev_executor::{File, Handle};
use vudev_jail::SigsysReport;
use vudev_jail::listener::{self, Received};

use super::log_lines::LogLines;

/// How many different calls of one device are named. There are some four hundred; numbers that no
/// call has are a device's way to fill a log.
const CALLS_MAX: usize = 512;

/// Until the device can make no more calls. Dropped, it closes the listener, and each further
/// denied call fails with ENOSYS.
pub(super) async fn let_go_on(
    handle: Handle,
    listener: OwnedFd,
    lines: Rc<LogLines>,
    name: String,
) {
    let listener = File::new(&handle, listener);
    let mut named = Named::default();
    let answered = async {
        loop {
            listener.readable().await.map_err(|_| Errno::IO)?;
            match listener::receive(listener.as_fd())? {
                Received::Call(call) => {
                    let text = named.line(&call.call);
                    if let Some(text) = text.filter(|_| Level::Warn <= log::max_level()) {
                        lines.relay(&name, Level::Warn, &text);
                    }
                    listener::let_go_on(listener.as_fd(), &call)?;
                }
                Received::Nothing => {}
                Received::Ended => return Ok::<(), Errno>(()),
            }
        }
    };
    if let Err(errno) = answered.await {
        let text = format!("its denied calls are no longer carried out: listener: {errno}");
        lines.line(&name, Level::Error, &text);
    }
}

/// The calls that have been told of.
#[derive(Default)]
struct Named {
    calls: BTreeSet<(u32, i32)>,
    more: bool,
}

impl Named {
    /// What is to be said of this call; nothing of one that is known.
    fn line(&mut self, call: &SigsysReport) -> Option<String> {
        if self.calls.contains(&(call.arch, call.syscall)) {
            return None;
        }
        if self.calls.len() == CALLS_MAX {
            let first = !std::mem::replace(&mut self.more, true);
            return first.then(|| format!("more than {CALLS_MAX} calls: no more are named"));
        }
        self.calls.insert((call.arch, call.syscall));
        Some(format!(
            "its policy forbids, and the log lets go on: {call}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_named_once_and_their_number_is_bounded() {
        let mut named = Named::default();
        let call = |syscall| SigsysReport {
            syscall,
            arch: 0xc000_003e,
            ip: 0,
            args: [0; 6],
        };
        let first = named.line(&call(257)).unwrap_or_default();
        assert!(first.ends_with("openat(0x0, 0x0, 0x0, 0x0, 0x0, 0x0) at 0x0"));
        assert_eq!(named.line(&call(257)), None);
        let lines = (10_000..20_000)
            .filter_map(|n| named.line(&call(n)))
            .count();
        assert_eq!(lines, CALLS_MAX);
        assert_eq!(named.line(&call(258)), None);
    }
}
