//! Chains that are laid out once and sent again and again, as a driver with fixed buffers does:
//! for figures, where the driver's own work must be small beside the device's. Nothing here counts
//! what is in flight; the caller knows.

use std::time::{Duration, Instant};

use super::{Buffer, Ring, Token, Used};
use crate::Error;

impl Ring {
    /// Lays out a chain that stays laid out; nobody sees it before [`Ring::send`].
    pub fn lay_out_chain(
        &mut self,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Result<Token, Error> {
        self.prepare(readable, writable)
    }

    /// Makes a chain of [`Ring::lay_out_chain`] available, which the device must not have now.
    pub fn send(&mut self, token: Token) -> Result<(), Error> {
        self.make_available(token.0)
    }

    /// Takes one chain that the device gave back and leaves it laid out.
    pub fn take_used(&mut self) -> Result<Option<Used>, Error> {
        let Some((id, written)) = self.next_used_element()? else {
            return Ok(None);
        };
        let token = Token(self.laid_out(id, written)?);
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { token, written }))
    }

    /// Takes more bytes written than there is room for without an error from now on: there are
    /// devices that count what they have read.
    pub fn forgive_lengths(&mut self) {
        self.forgiving = true;
    }

    /// Asks for a call at the next used chain. True when one came meanwhile, and is not called for.
    pub fn want_call(&mut self) -> Result<bool, Error> {
        self.ask_for_call()?;
        self.has_used()
    }

    /// Whether [`Ring::take_used`] has one to give.
    pub fn has_used(&self) -> Result<bool, Error> {
        Ok(self.used_index()? != self.next_used)
    }

    /// Sleeps until a call comes that [`Ring::want_call`] has asked for. One that came counts,
    /// however late we notice.
    pub fn wait_call(&mut self, limit: Duration) -> Result<(), Error> {
        let start = Instant::now();
        if self.wait_for_event(limit)? || start.elapsed() < limit {
            return Ok(());
        }
        let awaited = format!("a call of ring {}", self.index);
        Err(Error::Deadline { awaited, limit })
    }
}
