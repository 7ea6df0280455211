//! The only writer to stderr: lines of the supervisor and of all devices, each with its name and
//! level. Nobody ever waits for the reader: lines queue up to a bound and are counted beyond it.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use vudev_executor::{Bytes, File, Handle, Notify};

/// How much text waits for a reader that is slow or stuck, in bytes. Beyond it lines are lost.
const BACKLOG_MAX: usize = 256 * 1024;

/// How much of it only the supervisor's own lines may use, however much the devices say: a hundred
/// ends, each with a device's last words, or many more without.
const OWN_RESERVE: usize = 64 * 1024;

/// How long the program's end waits for a reader that does not read.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

/// The name on the supervisor's own lines: the program's. There is one a process, as there is one
/// stderr.
static NAME: OnceLock<String> = OnceLock::new();

/// Gives the supervisor's lines their name, once and before the first.
pub(crate) fn name(program: &str) {
    // A second program in one process would be a second supervisor: the first one's name stays.
    let _ = NAME.set(program.to_owned());
}

fn supervisor() -> &'static str {
    NAME.get().map_or("vudev", String::as_str)
}

/// Lines on their way to stderr.
#[derive(Default)]
pub(crate) struct LogLines {
    backlog: RefCell<String>,
    /// Lines lost since the last one that found room.
    lost: Cell<u64>,
    /// Bytes are with the kernel.
    writing: Cell<bool>,
    added: Notify,
    written: Notify,
}

impl LogLines {
    /// Queues one line of the supervisor's own, about itself or a device. `text` is printable:
    /// foreign texts have been through [`crate::text::printable`].
    pub(crate) fn line(&self, name: &str, level: Level, text: &str) {
        self.queue(name, level, text, BACKLOG_MAX);
    }

    /// Queues one line that a device has said, or has caused as often as it liked.
    pub(crate) fn relay(&self, name: &str, level: Level, text: &str) {
        self.queue(name, level, text, BACKLOG_MAX - OWN_RESERVE);
    }

    fn queue(&self, name: &str, level: Level, text: &str, limit: usize) {
        let mut backlog = self.backlog.borrow_mut();
        if backlog.len() + name.len() + text.len() > limit {
            self.lost.set(self.lost.get() + 1);
            return;
        }
        let lost = self.lost.take();
        if lost > 0 {
            push_line(
                &mut backlog,
                supervisor(),
                Level::Warn,
                &format!("{lost} lines were lost"),
            );
        }
        push_line(&mut backlog, name, level, text);
        self.added.notify();
    }

    /// Writes what is queued, for ever. The ring waits for the reader, not this process.
    pub(crate) async fn write_to(self: Rc<Self>, stderr: File) {
        loop {
            let text = mem::take(&mut *self.backlog.borrow_mut());
            if text.is_empty() {
                self.added.notified().await;
                continue;
            }
            self.writing.set(true);
            write_all(&stderr, text).await;
            self.writing.set(false);
            self.written.notify();
        }
    }

    /// Until everything is written, or nobody reads it.
    pub(crate) async fn flush(&self, handle: &Handle) {
        let drained = async {
            while self.writing.get() || !self.backlog.borrow().is_empty() {
                self.written.notified().await;
            }
        };
        let _ = handle.timeout(FLUSH_LIMIT, drained).await;
    }
}

/// What cannot be written is lost: there is no other place to say so.
async fn write_all(stderr: &File, text: String) {
    let mut rest = text.into_bytes();
    while !rest.is_empty() {
        let length = rest.len();
        let (result, buffer) = stderr.write(Bytes::from(rest)).await;
        rest = buffer.into_vec();
        match result {
            Ok(written @ 1..) => drop(rest.drain(..written.min(length))),
            // A terminal's descriptor of our own, see `supervise`.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stderr.writable().await.is_err() {
                    return;
                }
            }
            Ok(0) | Err(_) => return,
        }
    }
}

fn push_line(to: &mut String, name: &str, level: Level, text: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(to, "{name}: {}: {text}", level_name(level));
}

/// As a user would say it.
fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error",
        Level::Warn => "warning",
        Level::Info => "info",
        Level::Debug => "debug",
        Level::Trace => "trace",
    }
}

/// One line straight to stderr, for what happens before the event loop runs. As there, what cannot
/// be written is lost: `eprint!` would panic.
pub(crate) fn say(level: Level, text: &str) {
    use io::Write;
    let mut line = String::new();
    push_line(&mut line, supervisor(), level, text);
    let _ = io::stderr().write_all(line.as_bytes());
}

thread_local! {
    static LINES: RefCell<Option<Rc<LogLines>>> = const { RefCell::new(None) };
}

/// The `log` facade of the supervisor, for the crates below this one.
struct Facade;

impl Log for Facade {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let text = crate::text::printable(record.args().to_string().as_bytes());
            LINES.with_borrow(|lines| match lines {
                Some(lines) => lines.line(supervisor(), record.level(), &text),
                None => say(record.level(), &text),
            });
        }
    }

    fn flush(&self) {}
}

/// Makes `log`'s macros end here. Lines of other threads, of which there are none, go straight
/// to stderr.
pub(crate) fn install(verbosity: LevelFilter) {
    static FACADE: Facade = Facade;
    // A second logger cannot be installed; an embedder may have its own.
    if log::set_logger(&FACADE).is_ok() {
        log::set_max_level(verbosity);
    }
}

/// From now on `log`'s macros on this thread queue their lines here.
pub(crate) fn adopt(lines: &Rc<LogLines>) {
    LINES.set(Some(Rc::clone(lines)));
}

#[cfg(test)]
impl LogLines {
    /// What is queued.
    pub(crate) fn queued(&self) -> String {
        self.backlog.borrow().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_a_device_leaves_room_for_the_lines_about_it() {
        let lines = LogLines::default();
        let text = "x".repeat(1000);
        for _ in 0..1000 {
            lines.relay("block-0", Level::Info, &text);
        }
        lines.line("block-0", Level::Error, "has died");
        for _ in 0..1000 {
            lines.relay("block-0", Level::Info, &text);
        }
        let queued = lines.queued();
        assert!(queued.ends_with("lines were lost\nblock-0: error: has died\n"));
        assert!(queued.len() <= BACKLOG_MAX - OWN_RESERVE + 1024);
    }

    #[test]
    fn a_backlog_that_nobody_reads_stays_bounded_and_counts_what_it_lost() {
        let lines = LogLines::default();
        let text = "x".repeat(1000);
        for _ in 0..1000 {
            lines.line("block-0", Level::Info, &text);
        }
        assert!(lines.backlog.borrow().len() <= BACKLOG_MAX + 1024);
        let lost = lines.lost.get();
        assert!(lost > 0);
        lines.backlog.borrow_mut().clear();
        lines.line("serial-0", Level::Error, "after");
        let expected = format!("vudev: warning: {lost} lines were lost\nserial-0: error: after\n");
        assert_eq!(*lines.backlog.borrow(), expected);
    }
}
