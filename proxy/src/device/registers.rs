//! virtio's registers in BAR 0, doorbells and the notification registers in BAR 2.

use std::ops::Range;
use std::rc::Rc;

use vudev_executor::Latch;

use super::{BACKEND_UP, Device, FRONTEND_UP};
use crate::pci::NO_VECTOR;
use crate::pci::layout::{
    COMMON, DEVICE, DOORBELL_MULTIPLIER, DOORBELLS, ISR, NOTIFICATION, NOTIFY, NOTIFY_MULTIPLIER,
    VECTORS, VHOST_QUEUES_MAX,
};
use crate::virtio::Change;

/// Where in a range of registers an offset is, if it is there.
fn within(range: &Range<u64>, offset: u64) -> Option<usize> {
    let at = range.contains(&offset).then(|| offset - range.start)?;
    usize::try_from(at).ok()
}

/// The part of `image` from `at` on, and zeros behind it.
fn copy(image: &[u8], at: usize, into: &mut [u8]) {
    let there = image.get(at..).unwrap_or_default();
    for (into, byte) in into
        .iter_mut()
        .zip(there.iter().chain(std::iter::repeat(&0)))
    {
        *into = *byte;
    }
}

impl Device {
    pub(super) fn read_virtio(&self, offset: u64, into: &mut [u8]) {
        if let Some(at) = within(&COMMON, offset) {
            self.common.borrow().read(at, into);
        } else if let Some(at) = within(&DEVICE, offset) {
            copy(&self.device_configuration(), at, into);
        } else if within(&ISR, offset) == Some(0) {
            // 4.1.4.5: a read takes it away.
            copy(&[self.isr.take()], 0, into);
        } else {
            into.fill(0);
        }
    }

    /// status, `max_vhost_queues`, uuid.
    fn device_configuration(&self) -> [u8; 24] {
        let mut image = [0; 24];
        image[0..4].copy_from_slice(&self.status.get().to_le_bytes());
        image[4..8].copy_from_slice(&u32::from(VHOST_QUEUES_MAX).to_le_bytes());
        image[8..24].copy_from_slice(&self.uuid);
        image
    }

    pub(super) fn write_virtio(&self, offset: u64, data: &[u8]) {
        if let Some(at) = within(&COMMON, offset) {
            let change = self.common.borrow_mut().write(at, data);
            match change {
                Change::None => {}
                Change::Reset => self.reset_device(),
                Change::DriverOk => self.start_queues(),
            }
        } else if let Some(at) = within(&NOTIFY, offset) {
            // What is written repeats the queue's index; where it is written says as much.
            self.notify_queue(at / NOTIFY_MULTIPLIER as usize);
        } else if within(&DEVICE, offset) == Some(0) {
            // The other bits of the status, and the rest, are the device's.
            self.set_status(data.first().copied().unwrap_or(0));
        }
    }

    fn set_status(&self, value: u8) {
        let (up, wanted) = (
            self.status.get() & BACKEND_UP,
            u32::from(value) & BACKEND_UP,
        );
        if up == wanted {
            return;
        }
        if wanted == 0 {
            return self.end_session();
        }
        if self.common.borrow().is_running() {
            self.status.set(BACKEND_UP);
            self.over.replace(Rc::new(Latch::new()));
            self.backend_up.notify();
        }
    }

    pub(super) fn has_front_end(&self) -> bool {
        self.status.get() & FRONTEND_UP != 0
    }

    pub(super) fn read_doorbells(&self, offset: u64, into: &mut [u8]) {
        let Some(at) = within(&NOTIFICATION, offset) else {
            // Doorbells are written only.
            return into.fill(0);
        };
        let select = self.notification_select.get();
        let vectors = self.notification_vectors.borrow();
        let vector = vectors.get(usize::from(select)).unwrap_or(&NO_VECTOR);
        let ([a, b], [c, d]) = (select.to_le_bytes(), vector.to_le_bytes());
        copy(&[a, b, c, d], at, into);
    }

    pub(super) fn write_doorbells(&self, offset: u64, data: &[u8]) {
        if let Some(at) = within(&DOORBELLS, offset) {
            let multiplier = DOORBELL_MULTIPLIER as usize;
            if at.is_multiple_of(multiplier) {
                self.ring_doorbell(at / multiplier);
            }
            return;
        }
        match (within(&NOTIFICATION, offset), data) {
            (Some(0), &[a, b]) => self.notification_select.set(u16::from_le_bytes([a, b])),
            (Some(0), &[a, b, c, d]) => {
                self.notification_select.set(u16::from_le_bytes([a, b]));
                self.set_notification_vector(u16::from_le_bytes([c, d]));
            }
            (Some(2), &[a, b]) => self.set_notification_vector(u16::from_le_bytes([a, b])),
            _ => {}
        }
    }

    /// One that does not exist reads back as none.
    fn set_notification_vector(&self, value: u16) {
        let select = usize::from(self.notification_select.get());
        if let Some(vector) = self.notification_vectors.borrow_mut().get_mut(select) {
            *vector = if value < VECTORS { value } else { NO_VECTOR };
        }
    }

    fn ring_doorbell(&self, index: usize) {
        let mut doorbells = self.doorbells.borrow_mut();
        let Some(doorbell) = doorbells.get_mut(index) else {
            return;
        };
        let Some(bell) = &*doorbell else { return };
        if let Err(error) = bell.ring() {
            self.complain(format_args!("doorbell {index} is given up: {error}"));
            *doorbell = None;
        }
    }
}
