//! The driver's end of a split virtqueue (virtio 1.3, 2.7) over shared memory and eventfds. It is
//! lawful unless it is told otherwise: `raw` writes nonsense for hostile tests.

mod fixed;
mod raw;

use std::{
    os::fd::AsFd,
    rc::Rc,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

use crate::{
    Error, Event, GuestMemory, LIMIT,
    event::readable,
    message::feature::{EVENT_IDX, INDIRECT_DESC},
    requests::RingAddresses,
};

/// Descriptor flags (2.7.5).
pub mod flag {
    /// The chain goes on at `next`.
    pub const NEXT: u16 = 1;
    /// The device writes this buffer.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// In the available ring's flags: calls are not wanted (only without `EVENT_IDX`).
const NO_INTERRUPT: u16 = 1;
/// In the used ring's flags: kicks are not wanted (only without `EVENT_IDX`).
const NO_NOTIFY: u16 = 1;
/// Length of a descriptor.
const DESCRIPTOR_SIZE: u64 = 16;
/// Descriptors in an indirect table of ours; longer chains are laid out in the ring itself.
const TABLE_LENGTH: usize = 128;

/// A piece of guest memory that a chain hands to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// First guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
}

impl Buffer {
    /// A buffer.
    pub fn new(address: u64, length: u32) -> Self {
        Self { address, length }
    }
}

/// A chain that the device holds, named by its head descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(pub u16);

/// A chain that the device gave back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Used {
    /// Which chain.
    pub token: Token,
    /// How many bytes the device says it wrote.
    pub written: u32,
}

/// A descriptor as it is in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// First guest address.
    pub address: u64,
    /// Length in bytes.
    pub length: u32,
    /// [`flag`]s.
    pub flags: u16,
    /// The next descriptor of the chain.
    pub next: u16,
}

impl Descriptor {
    /// Its bytes.
    pub fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.length.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// Where a ring lies, as guest addresses.
#[derive(Clone, Copy, Debug)]
struct Layout {
    descriptors: u64,
    available: u64,
    used: u64,
}

/// A chain in flight: what comes back to the free list, and how much the device may write.
#[derive(Clone, Debug)]
struct InFlight {
    descriptors: Vec<u16>,
    writable: u64,
}

/// The driver's end of one split virtqueue.
#[derive(Debug)]
pub struct Ring {
    index: u16,
    size: u16,
    memory: Rc<GuestMemory>,
    layout: Layout,
    event_idx: bool,
    indirect: bool,
    kick: Option<Event>,
    call: Option<Event>,
    error: Event,
    free: Vec<u16>,
    chains: Vec<Option<InFlight>>,
    tables: Vec<Option<u64>>,
    next_available: u16,
    next_used: u16,
    kicked_at: u16,
    calls_wanted: bool,
    kicks: u64,
    calls: u64,
    forgiving: bool,
}

impl Ring {
    /// Lays out a ring in guest memory.
    pub fn new(memory: &Rc<GuestMemory>, index: u16, size: u16) -> Result<Self, Error> {
        let entries = u64::from(size);
        let layout = Layout {
            descriptors: memory.allocate(entries * DESCRIPTOR_SIZE, 16)?,
            available: memory.allocate(6 + 2 * entries, 2)?,
            used: memory.allocate(6 + 8 * entries, 4)?,
        };
        Ok(Self {
            index,
            size,
            memory: Rc::clone(memory),
            layout,
            event_idx: false,
            indirect: false,
            kick: Some(Event::new()?),
            call: Some(Event::new()?),
            error: Event::new()?,
            free: (0..size).rev().collect(),
            chains: vec![None; size.into()],
            tables: vec![None; size.into()],
            next_available: 0,
            next_used: 0,
            kicked_at: 0,
            calls_wanted: true,
            kicks: 0,
            calls: 0,
            forgiving: false,
        })
    }

    /// Takes note of the negotiated features, before the ring is used.
    pub fn set_features(&mut self, features: u64) {
        self.event_idx = features & EVENT_IDX != 0;
        self.indirect = features & INDIRECT_DESC != 0;
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Its areas as `SET_VRING_ADDR` tells them.
    pub fn addresses(&self) -> Result<RingAddresses, Error> {
        Ok(RingAddresses {
            descriptors: self.memory.user_address(self.layout.descriptors)?,
            available: self.memory.user_address(self.layout.available)?,
            used: self.memory.user_address(self.layout.used)?,
        })
    }

    /// Makes a chain available to the device: readable buffers first, then writable ones.
    pub fn add(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<Token, Error> {
        let token = self.prepare(readable, writable)?;
        self.make_available(token.0)?;
        Ok(token)
    }

    /// Tells the device about new chains, unless it said that it does not want to be told.
    /// Whether it was told.
    pub fn kick(&mut self) -> Result<bool, Error> {
        // The index must be visible before we look whether the device sleeps (2.7.13.4.1).
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked_at, self.next_available);
        self.kicked_at = new;
        let wanted = if self.event_idx {
            crosses(self.memory.load(self.available_event_address())?, new, old)
        } else {
            self.used_flags()? & NO_NOTIFY == 0
        };
        let Some(kick) = self.kick.as_ref().filter(|_| wanted) else {
            return Ok(false);
        };
        kick.signal()?;
        self.kicks += 1;
        Ok(true)
    }

    /// Takes one chain that the device gave back, if there is one.
    pub fn poll_used(&mut self) -> Result<Option<Used>, Error> {
        let Some((id, written)) = self.next_used_element()? else {
            return Ok(None);
        };
        let token = self.release(id, written)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used { token, written }))
    }

    /// Waits until the device gives a chain back.
    pub fn wait_used(&mut self, limit: Duration) -> Result<Used, Error> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(used) = self.poll_used()? {
                return Ok(used);
            }
            self.ask_for_call()?;
            if let Some(used) = self.poll_used()? {
                return Ok(used);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let awaited = format!(
                    "a used chain of ring {} ({} in flight)",
                    self.index,
                    self.in_flight()
                );
                return Err(Error::Deadline { awaited, limit });
            }
            self.wait_for_event(left)?;
        }
    }

    /// Makes a chain available, tells the device, and waits until that gives it back; what it has
    /// written. It must be the only one that the device has.
    pub fn exchange(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<u32, Error> {
        let token = self.add(readable, writable)?;
        self.kick()?;
        let used = self.wait_used(LIMIT)?;
        if used.token != token {
            let reason = format!("{:?} came back, {token:?} was sent", used.token);
            return Err(Error::BadUsed {
                ring: self.index,
                reason,
            });
        }
        Ok(used.written)
    }

    /// Waits until the device signals the error eventfd.
    pub fn wait_error(&self, limit: Duration) -> Result<(), Error> {
        self.error
            .wait(&format!("an error of ring {}", self.index), limit)?;
        Ok(())
    }

    /// Number of chains that the device holds.
    pub fn in_flight(&self) -> usize {
        self.chains.iter().flatten().count()
    }

    /// Number of free descriptors.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Sets whether we ask for calls when we wait. Without, the device should be silent.
    pub fn suppress_calls(&mut self, suppress: bool) -> Result<(), Error> {
        self.calls_wanted = !suppress;
        if self.event_idx {
            // One behind: the device reaches it only after going once around (2.7.7.2).
            let event = if suppress {
                self.next_used.wrapping_sub(1)
            } else {
                self.next_used
            };
            self.memory.store(self.used_event_address(), event)
        } else {
            self.memory.store(
                self.layout.available,
                if suppress { NO_INTERRUPT } else { 0 },
            )
        }
    }

    /// How often the device was told.
    pub fn kicks(&self) -> u64 {
        self.kicks
    }

    /// How often the device called, as far as we took its calls.
    pub fn calls(&mut self) -> Result<u64, Error> {
        self.take_calls()?;
        Ok(self.calls)
    }

    /// The kick eventfd; none if the device is to poll.
    pub fn kick_event(&self) -> Option<&Event> {
        self.kick.as_ref()
    }

    /// The call eventfd; none if we poll.
    pub fn call_event(&self) -> Option<&Event> {
        self.call.as_ref()
    }

    /// The error eventfd.
    pub fn error_event(&self) -> &Event {
        &self.error
    }

    /// Replaces the kick eventfd. The back-end is told by `SET_VRING_KICK`, the caller's business.
    pub fn set_kick_event(&mut self, kick: Option<Event>) {
        self.kick = kick;
    }

    /// Replaces the call eventfd. The back-end is told by `SET_VRING_CALL`, the caller's business.
    pub fn set_call_event(&mut self, call: Option<Event>) {
        self.call = call;
    }

    /// Replaces the error eventfd. The back-end is told by `SET_VRING_ERR`, the caller's business.
    pub fn set_error_event(&mut self, error: Event) {
        self.error = error;
    }

    /// Empties the ring as a driver does that starts anew: nothing in flight, all indices 0.
    pub fn reset(&mut self) -> Result<(), Error> {
        let entries = usize::from(self.size);
        self.memory
            .write(self.layout.descriptors, &vec![0; entries * 16])?;
        self.memory
            .write(self.layout.available, &vec![0; 6 + 2 * entries])?;
        self.memory
            .write(self.layout.used, &vec![0; 6 + 8 * entries])?;
        self.free = (0..self.size).rev().collect();
        self.chains = vec![None; entries];
        (self.next_available, self.next_used, self.kicked_at) = (0, 0, 0);
        for event in [self.kick.as_ref(), self.call.as_ref(), Some(&self.error)] {
            event.map_or(Ok(0), Event::take)?;
        }
        Ok(())
    }

    /// Puts both indices to a value, on a ring that was not used yet.
    pub(crate) fn start_at(&mut self, index: u16) -> Result<(), Error> {
        (self.next_available, self.next_used, self.kicked_at) = (index, index, index);
        self.memory.store(self.layout.available + 2, index)?;
        self.memory.store(self.layout.used + 2, index)
    }

    /// Lays out a chain in free descriptors.
    fn prepare(&mut self, readable: &[Buffer], writable: &[Buffer]) -> Result<Token, Error> {
        let count = readable.len() + writable.len();
        if count == 0 {
            return Err(Error::Misuse("a chain has at least one buffer"));
        }
        let indirect = self.indirect && count > 1 && count <= TABLE_LENGTH;
        let slots = self.take_slots(if indirect { 1 } else { count })?;
        let head = slots[0];
        if indirect {
            self.lay_out_table(head, readable, writable)?;
        } else {
            let place =
                |ring: &Self, at: usize, descriptor| ring.write_descriptor(slots[at], &descriptor);
            self.lay_out(&slots, readable, writable, place)?;
        }
        let writable = writable.iter().map(|buffer| u64::from(buffer.length)).sum();
        self.chains[usize::from(head)] = Some(InFlight {
            descriptors: slots,
            writable,
        });
        Ok(Token(head))
    }

    /// The next entry of the used ring, if there is one: a head, and how much was written.
    fn next_used_element(&self) -> Result<Option<(u32, u32)>, Error> {
        if self.used_index()? == self.next_used {
            return Ok(None);
        }
        let mut element = [0; 8];
        let slot = u64::from(self.next_used % self.size);
        self.memory
            .read(self.layout.used + 4 + 8 * slot, &mut element)?;
        let [a, b, c, d, e, f, g, h] = element;
        let id = u32::from_le_bytes([a, b, c, d]);
        let written = u32::from_le_bytes([e, f, g, h]);
        Ok(Some((id, written)))
    }

    fn take_slots(&mut self, needed: usize) -> Result<Vec<u16>, Error> {
        let free = self.free.len();
        let Some(rest) = free.checked_sub(needed) else {
            return Err(Error::RingFull {
                ring: self.index,
                needed,
                free,
            });
        };
        Ok(self.free.split_off(rest))
    }

    fn lay_out_table(
        &mut self,
        head: u16,
        readable: &[Buffer],
        writable: &[Buffer],
    ) -> Result<(), Error> {
        let table = match self.tables[usize::from(head)] {
            Some(table) => table,
            None => self
                .memory
                .allocate(TABLE_LENGTH as u64 * DESCRIPTOR_SIZE, 16)?,
        };
        self.tables[usize::from(head)] = Some(table);
        let count = readable.len() + writable.len();
        let numbers: Vec<u16> = (0..).take(count).collect();
        let place = |ring: &Self, at: usize, descriptor: Descriptor| {
            ring.memory
                .write(table + at as u64 * DESCRIPTOR_SIZE, &descriptor.bytes())
        };
        self.lay_out(&numbers, readable, writable, place)?;
        let length = u32::try_from(count * 16).map_err(|_| Error::Misuse("chain too long"))?;
        let descriptor = Descriptor {
            address: table,
            length,
            flags: flag::INDIRECT,
            next: 0,
        };
        self.write_descriptor(head, &descriptor)
    }

    /// Gives each buffer's descriptor to `place`, linked by the numbers in `slots`.
    fn lay_out(
        &self,
        slots: &[u16],
        readable: &[Buffer],
        writable: &[Buffer],
        place: impl Fn(&Self, usize, Descriptor) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let read = readable.iter().map(|buffer| (buffer, 0));
        let all = read.chain(writable.iter().map(|buffer| (buffer, flag::WRITE)));
        for (at, (buffer, direction)) in all.enumerate() {
            let next = slots.get(at + 1).copied();
            let flags = direction | if next.is_some() { flag::NEXT } else { 0 };
            let Buffer { address, length } = *buffer;
            place(
                self,
                at,
                Descriptor {
                    address,
                    length,
                    flags,
                    next: next.unwrap_or(0),
                },
            )?;
        }
        Ok(())
    }

    fn release(&mut self, id: u32, written: u32) -> Result<Token, Error> {
        let head = self.laid_out(id, written)?;
        let chain = self.chains[usize::from(head)].take();
        let descriptors = chain.map(|chain| chain.descriptors).unwrap_or_default();
        self.free.extend(descriptors.into_iter().rev());
        Ok(Token(head))
    }

    /// The head that a used entry names, if there is such a chain and it has so much room.
    fn laid_out(&self, id: u32, written: u32) -> Result<u16, Error> {
        let bad = |reason| Error::BadUsed {
            ring: self.index,
            reason,
        };
        let head = u16::try_from(id).map_err(|_| bad(format!("used id {id:#x}")))?;
        let slot = self.chains.get(usize::from(head));
        let Some(chain) = slot.and_then(Option::as_ref) else {
            return Err(bad(format!("used id {head} is not in flight")));
        };
        if u64::from(written) > chain.writable && !self.forgiving {
            return Err(bad(format!(
                "{written} bytes written of {}",
                chain.writable
            )));
        }
        Ok(head)
    }

    fn ask_for_call(&mut self) -> Result<(), Error> {
        if self.calls_wanted && self.event_idx {
            self.memory
                .store(self.used_event_address(), self.next_used)?;
        }
        // The wish must be visible before we look at the index again (2.7.7.2).
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether there was a call. Without calls it is over at once.
    fn wait_for_event(&mut self, left: Duration) -> Result<bool, Error> {
        let Some(call) = self.call.as_ref().filter(|_| self.calls_wanted) else {
            // Nobody calls us: we poll, and let the device have the processor.
            std::thread::yield_now();
            self.look_for_error()?;
            return Ok(false);
        };
        let fds = [call.as_fd(), self.error.as_fd()];
        let called = readable(&fds, left).map_err(Error::system("poll"))?[0];
        self.take_calls()?;
        self.look_for_error()?;
        Ok(called)
    }

    fn look_for_error(&self) -> Result<(), Error> {
        match self.error.take()? {
            0 => Ok(()),
            _ => Err(Error::RingError { ring: self.index }),
        }
    }

    fn take_calls(&mut self) -> Result<(), Error> {
        if let Some(call) = self.call.as_ref() {
            self.calls += call.take()?;
        }
        Ok(())
    }

    fn available_event_address(&self) -> u64 {
        self.layout.used + 4 + 8 * u64::from(self.size)
    }

    fn used_event_address(&self) -> u64 {
        self.layout.available + 4 + 2 * u64::from(self.size)
    }
}

/// Whether the step from `old` to `new` passes `event` (2.7.10.1, `vring_need_event`).
fn crosses(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests;
