//! Direct access to a ring, for tests that look at it or write nonsense; not for lawful drivers.

use super::{DESCRIPTOR_SIZE, Descriptor, Ring};
use crate::{Error, Event};

impl Ring {
    /// Writes a descriptor, whatever it says.
    pub fn write_descriptor(&self, slot: u16, descriptor: &Descriptor) -> Result<(), Error> {
        let address = self.layout.descriptors + u64::from(slot) * DESCRIPTOR_SIZE;
        self.memory.write(address, &descriptor.bytes())
    }

    /// Writes a head into the available ring and moves the index on, as [`Ring::add`] does last;
    /// the head need not be one.
    pub fn make_available(&mut self, head: u16) -> Result<(), Error> {
        let slot = u64::from(self.next_available % self.size);
        self.memory
            .store(self.layout.available + 4 + 2 * slot, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        self.memory
            .store(self.layout.available + 2, self.next_available)
    }

    /// Writes the available index, whatever is behind it.
    pub fn set_available_index(&mut self, index: u16) -> Result<(), Error> {
        self.next_available = index;
        self.memory.store(self.layout.available + 2, index)
    }

    /// Kicks, whether the device wants it or not.
    pub fn kick_anyway(&mut self) -> Result<(), Error> {
        self.kicked_at = self.next_available;
        self.kicks += 1;
        self.kick.as_ref().map_or(Ok(()), Event::signal)
    }

    /// The available index as we wrote it.
    pub fn available_index(&self) -> u16 {
        self.next_available
    }

    /// The used index as the device wrote it.
    pub fn used_index(&self) -> Result<u16, Error> {
        self.memory.load(self.layout.used + 2)
    }

    /// The used ring's flags as the device wrote them.
    pub fn used_flags(&self) -> Result<u16, Error> {
        self.memory.load(self.layout.used)
    }

    /// What both sides have written, for whoever waits in vain: who waits for whom.
    pub fn describe(&self) -> Result<String, Error> {
        let (made, used) = (self.next_available, self.used_index()?);
        let mut text = format!(
            "ring {}: {made} made available, {used} used, {} of them taken",
            self.index, self.next_used
        );
        if self.event_idx {
            let kick = self.memory.load(self.available_event_address())?;
            let call = self.memory.load(self.used_event_address())?;
            text += &format!(", a kick asked for at {kick} and a call at {call}");
        }
        Ok(text + &format!(", kicked {} times, last at {}", self.kicks, self.kicked_at))
    }
}
