//! How much either side may still send (virtio 1.3, 5.10.6.3). All counters are free-running and
//! wrap at 2^32. Pure arithmetic: who is told, and when, is `state`'s.

/// Bytes that a connection keeps of what the guest sent and the host has not taken, at least: what
/// the guest is told as `buf_alloc`. As much as Linux sends in one packet; memory for it is only
/// there while a program of the host does not keep up.
pub(super) const BUFFER_MIN: u32 = 64 * 1024;

/// The same for one of the first connections: while the guest hears that a packet of 64 KiB has
/// gone on, the next ones are on their way. As much as Linux's own sockets have
/// (`VIRTIO_VSOCK_DEFAULT_BUF_SIZE`).
pub(super) const BUFFER_MAX: u32 = 256 * 1024;

/// The most that is believed of a guest's own buffer. Beyond it "ahead" and "behind" could no
/// longer be told apart in counters of 32 bits.
const PEER_BUFFER_MAX: u32 = 1 << 30;

/// The guest broke the rules of credit; its connection is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CreditError {
    /// More data than there was room for.
    #[error("{length} bytes, and room for {room}")]
    Overrun { length: u32, room: u32 },
    /// It says it has forwarded what it was never sent.
    #[error("forwarded {ahead} bytes more than it was sent")]
    Ahead { ahead: u32 },
}

/// What the guest may send us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    buffer: u32,
    received: u32,
    forwarded: u32,
    told: u32,
}

impl Incoming {
    /// Of a connection that keeps so many bytes.
    pub(super) fn new(buffer: u32) -> Self {
        Self {
            buffer,
            received: 0,
            forwarded: 0,
            told: 0,
        }
    }

    /// How many bytes that is.
    pub(super) fn buffer(&self) -> u32 {
        self.buffer
    }

    /// Bytes that came and have not gone on to the host.
    pub(super) fn held(&self) -> u32 {
        self.received.wrapping_sub(self.forwarded)
    }

    /// Takes a packet's data in.
    pub(super) fn accept(&mut self, length: u32) -> Result<(), CreditError> {
        let room = self.buffer - self.held();
        if length > room {
            return Err(CreditError::Overrun { length, room });
        }
        self.received = self.received.wrapping_add(length);
        Ok(())
    }

    /// So much has gone on to the host. Never more than is held.
    pub(super) fn forward(&mut self, length: u32) {
        debug_assert!(length <= self.held(), "{length} of {}", self.held());
        self.forwarded = self.forwarded.wrapping_add(length.min(self.held()));
    }

    /// What a packet to the guest says: the guest knows it from now on.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        (self.buffer, self.forwarded)
    }

    /// Whether the guest sees less than half of the buffer free, and there is more.
    pub(super) fn owes_update(&self) -> bool {
        // Nothing of it, to a guest that has sent more than it was told.
        let unheard = self.received.wrapping_sub(self.told);
        let seen = self.buffer.saturating_sub(unheard);
        seen < self.buffer / 2 && self.told != self.forwarded
    }
}

/// What we may send the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outgoing {
    sent: u32,
    forwarded: u32,
    buffer: u32,
}

impl Outgoing {
    /// Takes in what a packet of the guest's says. A count older than one that was seen is nobody's
    /// fault: Linux makes packets on several processors and queues them in another order.
    pub(super) fn hear(&mut self, buffer: u32, forwarded: u32) -> Result<(), CreditError> {
        let flying = self.flying();
        let advance = forwarded.wrapping_sub(self.forwarded);
        if advance <= flying {
            self.forwarded = forwarded;
        } else if self.forwarded.wrapping_sub(forwarded) > i32::MAX.cast_unsigned() {
            let ahead = advance - flying;
            return Err(CreditError::Ahead { ahead });
        }
        self.buffer = buffer.min(PEER_BUFFER_MAX);
        Ok(())
    }

    /// Bytes that may be sent now. A buffer that has shrunk below what is on its way takes none.
    pub(super) fn room(&self) -> u32 {
        self.buffer.saturating_sub(self.flying())
    }

    /// So much is sent, no more than there was room for; the guest may have taken that back since.
    pub(super) fn send(&mut self, length: u32) {
        self.sent = self.sent.wrapping_add(length);
    }

    fn flying(&self) -> u32 {
        self.sent.wrapping_sub(self.forwarded)
    }

    /// Counters as after so many bytes, so that tests see them wrap.
    #[cfg(test)]
    pub(super) fn at(count: u32) -> Self {
        Self {
            sent: count,
            forwarded: count,
            buffer: 0,
        }
    }
}
