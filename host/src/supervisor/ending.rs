//! How a device's process ended, and what is said about it. Pure: what the device claimed about
//! its own death is shown beside what the kernel says, never instead of it.

use std::fmt::Write as _;
use std::time::Duration;

use vudev_executor::ExitStatus;
use vudev_jail::SigsysReport;

use crate::channel::PacketError;
use crate::options::SeccompMode;

/// What a device said before it ended. The last word of each kind counts.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    /// A step of the start, its errno and a text.
    pub(crate) step: Option<(String, i32, String)>,
    /// The panic hook's text.
    pub(crate) panic: Option<String>,
    /// A system call that its policy forbids.
    pub(crate) sigsys: Option<SigsysReport>,
    /// What it must not have said; it was killed for it, if it still lived.
    pub(crate) broken: Option<PacketError>,
}

/// What the supervisor had asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing: it should be running.
    Nothing,
    /// To stop.
    Stop,
    /// To stop, in vain: it was killed.
    Killed(Patience),
}

/// For how long a device that was asked to stop was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// As long as a device may take.
    Limit(Duration),
    /// Until the user sent a second signal.
    SecondSignal,
}

/// How a process ended, in one line, and whether that is as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// It was asked to stop and exited with 0.
    pub(crate) as_asked: bool,
    /// For the log.
    pub(crate) text: String,
}

impl Ending {
    /// Of everything that is known.
    pub(crate) fn judge(
        asked: Asked,
        status: ExitStatus,
        mode: Option<SeccompMode>,
        words: &LastWords,
    ) -> Self {
        let how = status_text(status);
        let text = match (asked, status) {
            (Asked::Killed(patience), _) => {
                let when = match patience {
                    Patience::Limit(limit) => format!("{} ms after the stop", limit.as_millis()),
                    Patience::SecondSignal => "at the second signal".to_owned(),
                };
                format!("did not end in time and was killed {when} ({how})")
            }
            (Asked::Stop, ExitStatus::Code(0)) => "has ended".to_owned(),
            (Asked::Nothing, ExitStatus::Code(0)) => "has ended without being asked".to_owned(),
            (_, ExitStatus::Code(_) | ExitStatus::Signal(_)) => match cause(status, words) {
                Some(cause) => format!("{cause} ({how})"),
                None => format!("has died: {how}{}", remedy(status, mode)),
            },
        };
        let as_asked = asked == Asked::Stop && status == ExitStatus::Code(0);
        Self { as_asked, text }
    }
}

/// What names the call that nobody could report.
fn remedy(status: ExitStatus, mode: Option<SeccompMode>) -> &'static str {
    match (status, mode) {
        (ExitStatus::Signal(libc::SIGSYS), Some(SeccompMode::Kill)) => {
            ": its policy forbids a system call; run it with --jail seccomp-mode=trap to hear which"
        }
        // A file's own kill, or a report that is itself forbidden.
        (ExitStatus::Signal(libc::SIGSYS), Some(SeccompMode::Trap)) => {
            ": its policy forbids a system call; run it with --jail seccomp-mode=log to hear which"
        }
        // In a log nothing is killed but calls of a foreign architecture.
        (ExitStatus::Signal(_) | ExitStatus::Code(_), _) => "",
    }
}

fn cause(status: ExitStatus, words: &LastWords) -> Option<String> {
    let LastWords {
        step,
        panic,
        sigsys,
        broken,
    } = words;
    if let Some(error) = broken {
        // It may have been faster.
        let killed = match status {
            ExitStatus::Signal(libc::SIGKILL) => " and was killed",
            ExitStatus::Signal(_) | ExitStatus::Code(_) => "",
        };
        return Some(format!("has sent {error}{killed}"));
    }
    if let Some(report) = sigsys {
        return Some(format!(
            "has died of a system call that its policy forbids: {report}"
        ));
    }
    if let Some(text) = panic {
        return Some(format!("has {text}"));
    }
    step.as_ref()
        .map(|(step, errno, text)| step_text(step, *errno, text))
}

/// `step: text`, with the errno's own words and what may help.
fn step_text(step: &str, errno: i32, text: &str) -> String {
    let mut line = format!("could not {step}: {text}");
    if errno != 0 {
        let errno = rustix::io::Errno::from_raw_os_error(errno);
        let words = errno.to_string();
        if !text.contains(&words) {
            let _ = write!(line, ": {words}");
        }
        if let Some(hint) = crate::remedy::of_step(step, errno) {
            let _ = write!(line, ": {hint}");
        }
    }
    line
}

fn status_text(status: ExitStatus) -> String {
    match status {
        ExitStatus::Code(code) => format!("exit status {code}"),
        ExitStatus::Signal(signal) => match signal_name(signal) {
            Some(name) => format!("killed by signal {name}"),
            None => format!("killed by signal {signal}"),
        },
    }
}

/// The signals that end processes in practice.
pub(crate) fn signal_name(signal: i32) -> Option<&'static str> {
    Some(match signal {
        libc::SIGHUP => "SIGHUP",
        libc::SIGINT => "SIGINT",
        libc::SIGQUIT => "SIGQUIT",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGPIPE => "SIGPIPE",
        libc::SIGALRM => "SIGALRM",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        libc::SIGSYS => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(asked: Asked, status: ExitStatus, words: &LastWords) -> (bool, String) {
        let Ending { as_asked, text } = Ending::judge(asked, status, None, words);
        (as_asked, text)
    }

    #[test]
    fn only_an_asked_for_exit_with_0_is_as_asked() {
        let none = LastWords::default();
        assert!(judged(Asked::Stop, ExitStatus::Code(0), &none).0);
        for (asked, status, text) in [
            (
                Asked::Nothing,
                ExitStatus::Code(0),
                "has ended without being asked",
            ),
            (
                Asked::Nothing,
                ExitStatus::Signal(9),
                "has died: killed by signal SIGKILL",
            ),
            (Asked::Stop, ExitStatus::Code(3), "has died: exit status 3"),
            (
                Asked::Killed(Patience::Limit(Duration::from_millis(1500))),
                ExitStatus::Signal(9),
                "did not end in time and was killed 1500 ms after the stop \
                 (killed by signal SIGKILL)",
            ),
            (
                Asked::Killed(Patience::SecondSignal),
                ExitStatus::Signal(9),
                "did not end in time and was killed at the second signal \
                 (killed by signal SIGKILL)",
            ),
        ] {
            assert_eq!(judged(asked, status, &none), (false, text.to_owned()));
        }
    }

    #[test]
    fn a_death_is_told_with_what_the_device_said_and_what_the_kernel_says() {
        let words = LastWords {
            panic: Some("panicked at x.rs:1: no".to_owned()),
            ..LastWords::default()
        };
        let (_, text) = judged(Asked::Nothing, ExitStatus::Code(101), &words);
        assert_eq!(text, "has panicked at x.rs:1: no (exit status 101)");

        let report = SigsysReport {
            syscall: 257,
            arch: 0xc000_003e,
            ip: 0,
            args: [0; 6],
        };
        let words = LastWords {
            sigsys: Some(report),
            ..words
        };
        let (_, text) = judged(Asked::Nothing, ExitStatus::Code(159), &words);
        assert!(text.contains("its policy forbids: openat("), "{text}");

        for (mode, remedy) in [
            (SeccompMode::Kill, "--jail seccomp-mode=trap to hear which"),
            (SeccompMode::Trap, "--jail seccomp-mode=log to hear which"),
        ] {
            let status = ExitStatus::Signal(libc::SIGSYS);
            let none = LastWords::default();
            let Ending { text, .. } = Ending::judge(Asked::Nothing, status, Some(mode), &none);
            assert!(
                text.starts_with("has died: killed by signal SIGSYS: "),
                "{text}"
            );
            assert!(text.ends_with(remedy), "{text}");
        }

        for (status, told) in [
            (
                ExitStatus::Signal(libc::SIGKILL),
                "has sent an empty packet and was killed (killed by signal SIGKILL)",
            ),
            (
                ExitStatus::Code(3),
                "has sent an empty packet (exit status 3)",
            ),
        ] {
            let words = LastWords {
                broken: Some(PacketError::Empty),
                ..LastWords::default()
            };
            assert_eq!(judged(Asked::Nothing, status, &words).1, told);
        }

        let words = LastWords {
            step: Some((
                "pivot_root".to_owned(),
                libc::EPERM,
                "jail: pivot_root: no".to_owned(),
            )),
            ..LastWords::default()
        };
        let (_, text) = judged(Asked::Nothing, ExitStatus::Code(1), &words);
        assert!(
            text.starts_with("could not pivot_root: jail: pivot_root: no: "),
            "{text}"
        );
        assert!(text.ends_with("(exit status 1)"), "{text}");
    }
}
