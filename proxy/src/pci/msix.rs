//! MSI-X as a vfio-user client wants it: a vector is told of by the eventfd that the client gave
//! for it. The table is kept for whoever reads it, but its masks mean nothing here: QEMU keeps the
//! table to itself, and masks by giving no eventfd. What was due without one is pending until one
//! comes.

use std::cell::RefCell;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use vudev_executor::{Call, EventError, Handle};

use super::layout::{PENDING, TABLE, VECTORS};
use crate::vfio_user::{InterruptAction, SetInterrupts, Which};

/// `VIRTIO_MSI_NO_VECTOR`: told of by nothing.
pub const NO_VECTOR: u16 = 0xffff;

const ENTRY: usize = 16;
/// By byte of an entry: address (its lower two bits are zero), data, the mask bit.
const WRITABLE: [u8; ENTRY] = [
    0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0,
];

/// All vectors.
pub struct Msix {
    handle: Handle,
    vectors: RefCell<Vec<Vector>>,
}

struct Vector {
    call: Option<Call>,
    pending: bool,
    entry: [u8; ENTRY],
}

impl Vector {
    fn new() -> Self {
        let mut entry = [0; ENTRY];
        // Masked, as after a reset.
        entry[12] = 1;
        Self {
            call: None,
            pending: false,
            entry,
        }
    }

    /// Tells of it, or remembers to.
    fn trigger(&mut self) {
        self.pending = true;
        self.deliver();
    }

    fn deliver(&mut self) {
        let Some(call) = self.call.as_ref().filter(|_| self.pending) else {
            return;
        };
        self.pending = false;
        if let Err(error) = call.signal() {
            log::warn!("an interrupt's eventfd is given up: {error}");
            self.call = None;
        }
    }
}

impl Msix {
    /// Vectors that are told of by nothing yet.
    pub fn new(handle: &Handle) -> Self {
        Self {
            handle: handle.clone(),
            vectors: RefCell::new((0..VECTORS).map(|_| Vector::new()).collect()),
        }
    }

    /// Tells of `vector`. One that does not exist is told of by nothing.
    pub fn trigger(&self, vector: u16) {
        if let Some(vector) = self.vectors.borrow_mut().get_mut(usize::from(vector)) {
            vector.trigger();
        }
    }

    /// Does what DEVICE_SET_IRQS asks. The range exists.
    ///
    /// # Errors
    ///
    /// EINVAL for what is no eventfd, and then nothing changes; what the kernel says otherwise.
    pub fn set(&self, set: SetInterrupts<'_>) -> Result<(), Errno> {
        let (start, count) = (set.start as usize, set.count as usize);
        match set.action {
            InterruptAction::Assign(files) => {
                let calls = files.into_iter().map(|file| self.call(file));
                self.assign(start, count, calls.collect::<Result<_, _>>()?);
            }
            InterruptAction::Unassign => self.assign(start, count, Vec::new()),
            InterruptAction::DisableAll => {
                for vector in &mut *self.vectors.borrow_mut() {
                    vector.call = None;
                    vector.pending = false;
                }
            }
            InterruptAction::Trigger(which) => {
                let mut vectors = self.vectors.borrow_mut();
                for (index, vector) in vectors.iter_mut().skip(start).take(count).enumerate() {
                    match which {
                        Which::All => vector.trigger(),
                        Which::Marked(marks) if marks.get(index) != Some(&0) => vector.trigger(),
                        Which::Marked(_) => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// Gives a range of vectors these calls, and the rest of it none.
    fn assign(&self, start: usize, count: usize, calls: Vec<Call>) {
        let mut vectors = self.vectors.borrow_mut();
        let mut calls = calls.into_iter();
        for vector in vectors.iter_mut().skip(start).take(count) {
            vector.call = calls.next();
            vector.deliver();
        }
    }

    fn call(&self, file: OwnedFd) -> Result<Call, Errno> {
        Call::new(&self.handle, file).map_err(|error| match error {
            EventError::System { source, .. } => Errno::from_io_error(&source).unwrap_or(Errno::IO),
            _ => Errno::INVAL,
        })
    }

    /// Reads the BAR; what is nothing of these reads as zeros.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        let vectors = self.vectors.borrow();
        for (byte, at) in into.iter_mut().zip(offset..) {
            *byte = if TABLE.contains(&at) {
                let (vector, part) = place(at - TABLE.start);
                vectors[vector].entry[part]
            } else if PENDING.contains(&at) {
                let (first, _) = place((at - PENDING.start) * 8 * ENTRY as u64);
                let eight = vectors.iter().skip(first).take(8).enumerate();
                eight.fold(0, |bits, (bit, vector)| {
                    bits | u8::from(vector.pending) << bit
                })
            } else {
                0
            };
        }
    }

    /// Writes the BAR.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut vectors = self.vectors.borrow_mut();
        for (new, at) in data.iter().zip(offset..) {
            if TABLE.contains(&at) {
                let (vector, part) = place(at - TABLE.start);
                let (byte, writable) = (&mut vectors[vector].entry[part], WRITABLE[part]);
                *byte = *byte & !writable | new & writable;
            }
        }
    }

    /// As after power-on, but for the eventfds: they are the client's, who resets.
    pub fn reset(&self) {
        for vector in &mut *self.vectors.borrow_mut() {
            let call = vector.call.take();
            *vector = Vector::new();
            vector.call = call;
        }
    }

    /// Closes the eventfds of a client that is gone.
    pub fn forget(&self) {
        self.vectors.borrow_mut().fill_with(Vector::new);
    }
}

/// Which vector, and where in its entry.
fn place(at: u64) -> (usize, usize) {
    // Within a BAR of one page.
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    (at / ENTRY, at % ENTRY)
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};
    use vudev_executor::Executor;

    use super::*;

    fn set(action: InterruptAction<'_>, start: u32, count: u32) -> SetInterrupts<'_> {
        SetInterrupts {
            index: 2,
            start,
            count,
            action,
        }
    }

    fn event() -> (OwnedFd, OwnedFd) {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        (event.try_clone().unwrap(), event)
    }

    /// How often it was signalled since the last look.
    fn told(event: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        match rustix::io::read(event, &mut bytes) {
            Ok(_) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }

    fn pending(msix: &Msix) -> u128 {
        let mut bytes = [0; 16];
        msix.read(PENDING.start, &mut bytes);
        u128::from_le_bytes(bytes)
    }

    fn with_msix(test: impl FnOnce(&Msix)) {
        let executor = Executor::with_operations(8).unwrap();
        test(&Msix::new(executor.handle()));
    }

    #[test]
    fn what_is_due_without_an_eventfd_is_pending_until_one_comes() {
        with_msix(|msix| {
            msix.trigger(66);
            msix.trigger(1);
            msix.trigger(67);
            msix.trigger(NO_VECTOR);
            assert_eq!(pending(msix), 1 << 66 | 1 << 1);
            let (given, kept) = event();
            msix.set(set(InterruptAction::Assign(vec![given]), 1, 1))
                .unwrap();
            assert_eq!((told(&kept), pending(msix)), (1, 1 << 66));
            msix.trigger(1);
            assert_eq!((told(&kept), pending(msix)), (1, 1 << 66));
            msix.set(set(InterruptAction::Unassign, 0, 67)).unwrap();
            msix.trigger(1);
            assert_eq!((told(&kept), pending(msix)), (0, 1 << 66 | 1 << 1));
            msix.set(set(InterruptAction::DisableAll, 0, 0)).unwrap();
            assert_eq!(pending(msix), 0);
        });
    }

    #[test]
    fn a_client_triggers_some_and_a_reset_keeps_its_eventfds() {
        with_msix(|msix| {
            let (given, kept) = event();
            msix.set(set(InterruptAction::Assign(vec![given]), 5, 1))
                .unwrap();
            let marks = InterruptAction::Trigger(Which::Marked(&[1, 0, 2]));
            msix.set(set(marks, 3, 3)).unwrap();
            assert_eq!((told(&kept), pending(msix)), (1, 1 << 3));
            msix.set(set(InterruptAction::Trigger(Which::All), 4, 2))
                .unwrap();
            assert_eq!((told(&kept), pending(msix)), (1, 3 << 3));
            msix.reset();
            msix.trigger(5);
            assert_eq!((told(&kept), pending(msix)), (1, 0));
            msix.forget();
            msix.trigger(5);
            assert_eq!((told(&kept), pending(msix)), (0, 1 << 5));
        });
    }

    #[test]
    fn one_that_is_no_eventfd_changes_nothing() {
        with_msix(|msix| {
            let (given, _kept) = event();
            let (pipe, _) = rustix::pipe::pipe().unwrap();
            let files = InterruptAction::Assign(vec![given, pipe]);
            assert_eq!(msix.set(set(files, 0, 2)), Err(Errno::INVAL));
            msix.trigger(0);
            assert_eq!(pending(msix), 1);
        });
    }

    #[test]
    fn the_table_keeps_what_is_written_to_it() {
        with_msix(|msix| {
            msix.write(16, &[0xff; 16]);
            msix.write(TABLE.end - 4, &[0xff; 8]);
            msix.write(PENDING.start, &[0xff; 16]);
            let mut bytes = [0; 20];
            msix.read(12, &mut bytes);
            assert_eq!(bytes[..5], [1, 0, 0, 0, 0xfc]);
            assert_eq!(bytes[5..], [[0xff; 11].as_slice(), &[1, 0, 0, 0]].concat());
            assert_eq!(pending(msix), 0);
            let mut bytes = [7; 8];
            msix.read(TABLE.end - 4, &mut bytes);
            assert_eq!(bytes, [1, 0, 0, 0, 0, 0, 0, 0]);
        });
    }
}
