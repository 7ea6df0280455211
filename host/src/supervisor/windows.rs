//! What size a device's terminals have, and which of them have another one now. When to look, and
//! to tell the device, is its supervisor's matter.

use std::cell::Cell;
use std::os::fd::OwnedFd;

use rustix::termios::tcgetwinsize;

use crate::kind::Notice;

/// The terminals whose size one device is told.
#[derive(Debug, Default)]
pub(crate) struct Windows(Vec<Window>);

#[derive(Debug)]
struct Window {
    terminal: OwnedFd,
    /// Columns and rows, as the device knows them.
    told: Cell<(u16, u16)>,
}

impl Windows {
    /// Their sizes now are what the device's description says.
    pub(crate) fn new(terminals: Vec<OwnedFd>) -> Self {
        let window = |terminal| Window {
            told: Cell::new(size(&terminal).unwrap_or_default()),
            terminal,
        };
        Self(terminals.into_iter().map(window).collect())
    }

    /// One notice for each that has another size than was told last.
    pub(crate) fn changed(&self) -> impl Iterator<Item = Notice> + '_ {
        (0..).zip(&self.0).filter_map(|(place, window)| {
            let now = size(&window.terminal)?;
            let (columns, rows) = now;
            let changed = window.told.replace(now) != now;
            changed.then_some(Notice::Window {
                place,
                columns,
                rows,
            })
        })
    }
}

fn size(terminal: &OwnedFd) -> Option<(u16, u16)> {
    let size = tcgetwinsize(terminal).ok()?;
    Some((size.ws_col, size.ws_row))
}
