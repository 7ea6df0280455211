//! The `log` facade of a device's process and its panic hook: every line goes to the supervisor
//! over the control channel. Nothing in a device writes to stderr.

use std::panic::PanicHookInfo;

use log::{LevelFilter, Log, Metadata, Record};

use super::Up;
use super::device::Channel;

/// The exit status after a panic, the one of Rust's own.
const PANICKED: i32 = 101;

/// Sends each line over the channel.
struct DeviceLogger(&'static Channel);

impl Log for DeviceLogger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record.level(), record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// Makes the channel this process's log, and its panics the channel's business.
pub(crate) fn install(channel: &'static Channel, verbosity: LevelFilter) {
    // A second logger cannot be installed: a role starts once.
    if log::set_boxed_logger(Box::new(DeviceLogger(channel))).is_ok() {
        log::set_max_level(verbosity);
    }
    std::panic::set_hook(Box::new(|panic| report_panic(channel, panic)));
}

/// Reports and ends the process at once: unwinding would run the device's destructors over a
/// broken state, and abort(3) raises a signal that PID 1 of a namespace does not die of.
fn report_panic(channel: &Channel, panic: &PanicHookInfo<'_>) {
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message");
    let place = panic
        .location()
        .map_or_else(String::new, |place| format!(" at {place}"));
    let _ = channel.tell(&Up::Died(format!("panicked{place}: {message}")));
    std::process::exit(PANICKED);
}
