//! The driver's side of split rings in a memfd, so that a test of a device in one process is ten
//! lines. Not a front-end: nothing here speaks vhost-user, and a test that wants sockets takes
//! `vudev-frontend`.
//!
//! ```
//! use vudev_executor::Executor;
//! use vudev_virtio::{Chain, testing::Guest};
//!
//! let executor = Executor::with_operations(8)?;
//! let ring = Guest::new(1 << 20).ring(16);
//! let (queue, control) = ring.start(executor.handle(), 0);
//! ring.add(&[b"ping"], &[4]);
//! let server = executor.handle().spawn(queue.serve(4, async |chain: &mut Chain| {
//!     let mut bytes = chain.readable.read_array::<4>().expect("four bytes");
//!     bytes.reverse();
//!     chain.writable.write(&bytes).expect("four bytes");
//!     4
//! }));
//! executor.run(async {
//!     assert_eq!(ring.next_used(executor.handle()).await.bytes, b"gnip");
//!     control.stop();
//!     server.await
//! })??;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! It panics where a test would: on what cannot fail, and on misuse.

pub mod allocations;
pub mod copies;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use vudev_executor::{Call, Handle, Kick};

use crate::memory::{GuestMemory, Region, RegionLayout};
use crate::queue::{Queue, QueueControl, QueueParts, RingAddresses};
use crate::spec::{DESCRIPTOR_BYTES, descriptor_flag, feature, ring_flag};

/// Where a [`Guest`]'s memory begins in the guest.
pub const GUEST_BASE: u64 = 0x10_0000;

/// Where a [`Guest`]'s memory begins in its front-end.
const USER_BASE: u64 = 0x7000_0000_0000;

/// A guest's memory: one memfd, one region, and an allocator that only goes up.
pub struct Guest {
    file: OwnedFd,
    memory: Rc<GuestMemory>,
    layout: RegionLayout,
    next: Cell<u64>,
}

/// A descriptor for [`Ring::set_descriptor`]: also a broken one.
#[derive(Clone, Copy, Debug, Default)]
pub struct RawDescriptor {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub len: u32,
    /// Of [`descriptor_flag`].
    pub flags: u16,
    /// The next one, with `NEXT`.
    pub next: u16,
}

impl RawDescriptor {
    /// As it stands in a table.
    pub fn to_bytes(self) -> [u8; DESCRIPTOR_BYTES] {
        let Self {
            address,
            len,
            flags,
            next,
        } = self;
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }
}

/// A chain that the device gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Used {
    /// Which chain.
    pub head: u16,
    /// How many bytes the device says it wrote.
    pub written: u32,
    /// The whole writable part, written or not.
    pub bytes: Vec<u8>,
}

impl Guest {
    /// A guest with `bytes` of memory.
    pub fn new(bytes: u64) -> Rc<Self> {
        let file = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        rustix::fs::ftruncate(&file, bytes).expect("a memfd grows");
        let layout = RegionLayout {
            guest_address: GUEST_BASE,
            user_address: USER_BASE,
            size: bytes,
            offset: 0,
        };
        let memory = map(layout, &file);
        Rc::new(Self {
            file,
            memory,
            layout,
            next: Cell::new(GUEST_BASE),
        })
    }

    /// The memory as the device sees it.
    pub fn memory(&self) -> Rc<GuestMemory> {
        self.memory.clone()
    }

    /// The same file, mapped once more: what a new memory table gives.
    pub fn map_again(&self) -> Rc<GuestMemory> {
        map(self.layout, &self.file)
    }

    /// Where the memory lies.
    pub fn layout(&self) -> RegionLayout {
        self.layout
    }

    /// The file behind it.
    pub fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// Fresh memory, aligned to a power of two.
    pub fn allocate(&self, bytes: u64, align: u64) -> u64 {
        let address = self.next.get().next_multiple_of(align);
        assert!(
            address + bytes <= GUEST_BASE + self.layout.size,
            "the guest is out of memory"
        );
        self.next.set(address + bytes);
        address
    }

    /// Writes memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write(address, bytes).expect("in memory");
    }

    /// Reads memory.
    pub fn read(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.memory.read(address, &mut into).expect("in memory");
        into
    }

    /// A ring of `size` entries in this memory, with all of [`feature::FRAMEWORK`].
    pub fn ring(self: &Rc<Self>, size: u16) -> Ring {
        self.ring_with(size, feature::FRAMEWORK)
    }

    /// A ring with these features.
    pub fn ring_with(self: &Rc<Self>, size: u16, features: u64) -> Ring {
        let entries = u64::from(size);
        let addresses = RingAddresses {
            descriptors: self.allocate(DESCRIPTOR_BYTES as u64 * entries, 16),
            available: self.allocate(6 + 2 * entries, 2),
            used: self.allocate(6 + 8 * entries, 4),
        };
        Ring {
            guest: self.clone(),
            size,
            features,
            addresses,
            kick: event(),
            call: event(),
            error: event(),
            available: Cell::new(0),
            seen_used: Cell::new(0),
            free: RefCell::new((0..size).rev().collect()),
            out: RefCell::default(),
        }
    }

    fn u16_at(&self, address: u64) -> u16 {
        let bytes = self.read(address, 2);
        u16::from_le_bytes([bytes[0], bytes[1]])
    }

    fn u32_at(&self, address: u64) -> u32 {
        let bytes = self.read(address, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }
}

/// The driver's end of one split ring, and the eventfds between the two.
pub struct Ring {
    guest: Rc<Guest>,
    size: u16,
    features: u64,
    addresses: RingAddresses,
    kick: OwnedFd,
    call: OwnedFd,
    error: OwnedFd,
    available: Cell<u16>,
    seen_used: Cell<u16>,
    free: RefCell<Vec<u16>>,
    out: RefCell<HashMap<u16, Out>>,
}

/// A chain that the device has: its descriptors, and where its answer will stand.
struct Out {
    descriptors: Vec<u16>,
    writable: Vec<(u64, u32)>,
}

impl Ring {
    /// The memory that it lies in.
    pub fn guest(&self) -> &Rc<Guest> {
        &self.guest
    }

    /// Where its parts lie.
    pub fn addresses(&self) -> RingAddresses {
        self.addresses
    }

    /// What starts the device's end at index 0, with the three eventfds.
    pub fn parts(&self, handle: &Handle, index: u16) -> QueueParts {
        let call = |fd: &OwnedFd| Call::new(handle, duplicate(fd)).expect("an eventfd");
        QueueParts {
            index,
            size: self.size,
            rings: self.addresses,
            next_available: 0,
            features: self.features,
            memory: self.guest.memory(),
            kick: Some(Kick::new(handle, duplicate(&self.kick)).expect("an eventfd")),
            call: Some(call(&self.call)),
            error: Some(call(&self.error)),
        }
    }

    /// The device's end, started.
    pub fn start(&self, handle: &Handle, index: u16) -> (Queue, QueueControl) {
        Queue::start(handle, self.parts(handle, index)).expect("a lawful ring")
    }

    /// Makes a chain available, of direct descriptors, and kicks.
    pub fn add(&self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let head = self.lay_out(readable, writable);
        self.publish(head);
        self.kick();
        head
    }

    /// Makes a chain available through an indirect table, and kicks.
    pub fn add_indirect(&self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (buffers, answer) = self.buffers(readable, writable);
        let mut table = Vec::new();
        for (index, &(address, len, flags)) in (1..).zip(&buffers) {
            let more = if usize::from(index) < buffers.len() {
                descriptor_flag::NEXT
            } else {
                0
            };
            table.extend(
                RawDescriptor {
                    address,
                    len,
                    flags: flags | more,
                    next: index,
                }
                .to_bytes(),
            );
        }
        let address = self.guest.allocate(table.len() as u64, 16);
        self.guest.write(address, &table);
        let len = u32::try_from(table.len()).expect("a short table");
        let head = self.free.borrow_mut().pop().expect("a free descriptor");
        let flags = descriptor_flag::INDIRECT;
        self.set_descriptor(
            head,
            RawDescriptor {
                address,
                len,
                flags,
                next: 0,
            },
        );
        let out = Out {
            descriptors: vec![head],
            writable: answer,
        };
        self.out.borrow_mut().insert(head, out);
        self.publish(head);
        self.kick();
        head
    }

    /// Writes a chain of direct descriptors without making it available.
    pub fn lay_out(&self, readable: &[&[u8]], writable: &[u32]) -> u16 {
        let (buffers, answer) = self.buffers(readable, writable);
        assert!(!buffers.is_empty(), "a chain has buffers");
        let mut free = self.free.borrow_mut();
        let take = |_: &_| free.pop().expect("a free descriptor");
        let descriptors: Vec<u16> = buffers.iter().map(take).collect();
        for (at, &(address, len, flags)) in buffers.iter().enumerate() {
            let next = descriptors.get(at + 1).copied();
            let flags = flags | next.map_or(0, |_| descriptor_flag::NEXT);
            let next = next.unwrap_or(0);
            self.set_descriptor(
                descriptors[at],
                RawDescriptor {
                    address,
                    len,
                    flags,
                    next,
                },
            );
        }
        let head = descriptors[0];
        self.out.borrow_mut().insert(
            head,
            Out {
                descriptors,
                writable: answer,
            },
        );
        head
    }

    /// Sets both ends' indices, as if this many chains had been through the ring.
    pub fn start_at(&self, index: u16) {
        self.set_available_index(index);
        self.guest
            .write(self.addresses.used + 2, &index.to_le_bytes());
        self.seen_used.set(index);
    }

    /// Writes one descriptor of the table, as it is.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) {
        let address = self.addresses.descriptors + DESCRIPTOR_BYTES as u64 * u64::from(index);
        self.guest.write(address, &descriptor.to_bytes());
    }

    /// Makes the chain at `head` available, without a kick.
    pub fn publish(&self, head: u16) {
        let at = self.available.get();
        let entry = self.addresses.available + 4 + 2 * u64::from(at % self.size);
        self.guest.write(entry, &head.to_le_bytes());
        self.set_available_index(at.wrapping_add(1));
    }

    /// Says that entries up to `index` are available, whether they are or not.
    pub fn set_available_index(&self, index: u16) {
        self.available.set(index);
        fence(Ordering::SeqCst);
        self.guest
            .write(self.addresses.available + 2, &index.to_le_bytes());
        fence(Ordering::SeqCst);
    }

    /// Asks for calls or not, by flag: for rings without EVENT_IDX.
    pub fn set_no_interrupt(&self, none: bool) {
        let flags = if none { ring_flag::NO_INTERRUPT } else { 0 };
        self.guest
            .write(self.addresses.available, &flags.to_le_bytes());
    }

    /// Asks for a call once entry `index` is used: for rings with EVENT_IDX.
    pub fn set_used_event(&self, index: u16) {
        let address = self.addresses.available + 4 + 2 * u64::from(self.size);
        self.guest.write(address, &index.to_le_bytes());
    }

    /// Which entry the device wants to be kicked for, with EVENT_IDX.
    pub fn available_event(&self) -> u16 {
        self.guest
            .u16_at(self.addresses.used + 4 + 8 * u64::from(self.size))
    }

    /// The device's flags, without EVENT_IDX.
    pub fn used_flags(&self) -> u16 {
        self.guest.u16_at(self.addresses.used)
    }

    /// How many chains the device has given back, modulo 2^16.
    pub fn used_index(&self) -> u16 {
        self.guest.u16_at(self.addresses.used + 2)
    }

    /// The next chain that the device gave back.
    pub fn used(&self) -> Option<Used> {
        let at = self.seen_used.get();
        if self.used_index() == at {
            return None;
        }
        fence(Ordering::SeqCst);
        let entry = self.addresses.used + 4 + 8 * u64::from(at % self.size);
        let head = u16::try_from(self.guest.u32_at(entry)).expect("a head");
        let written = self.guest.u32_at(entry + 4);
        self.seen_used.set(at.wrapping_add(1));
        let Some(Out {
            descriptors,
            writable,
        }) = self.out.borrow_mut().remove(&head)
        else {
            return Some(Used {
                head,
                written,
                bytes: Vec::new(),
            });
        };
        let part = |&(address, len): &(u64, u32)| self.guest.read(address, len as usize);
        let bytes = writable.iter().flat_map(part).collect();
        self.free.borrow_mut().extend(descriptors);
        Some(Used {
            head,
            written,
            bytes,
        })
    }

    /// Waits for the next chain that the device gives back, and gives it its turns.
    pub async fn next_used(&self, handle: &Handle) -> Used {
        loop {
            if let Some(used) = self.used() {
                return used;
            }
            handle.yield_now().await;
        }
    }

    /// Signals the kick eventfd.
    pub fn kick(&self) {
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).expect("an eventfd with room");
    }

    /// How many calls came since the last question.
    pub fn calls(&self) -> u64 {
        count(&self.call)
    }

    /// How often the error eventfd was signalled since the last question.
    pub fn errors(&self) -> u64 {
        count(&self.error)
    }

    /// The kick eventfd.
    pub fn kick_descriptor(&self) -> OwnedFd {
        duplicate(&self.kick)
    }

    /// The call eventfd.
    pub fn call_descriptor(&self) -> OwnedFd {
        duplicate(&self.call)
    }

    /// Buffers in fresh memory: all of them, and those to be written.
    fn buffers(&self, readable: &[&[u8]], writable: &[u32]) -> (Vec<Buffer>, Vec<(u64, u32)>) {
        let mut buffers = Vec::new();
        let mut answer = Vec::new();
        for bytes in readable {
            let address = self.guest.allocate(bytes.len() as u64, 1);
            self.guest.write(address, bytes);
            buffers.push((
                address,
                u32::try_from(bytes.len()).expect("a short buffer"),
                0,
            ));
        }
        for &len in writable {
            let address = self.guest.allocate(len.into(), 1);
            buffers.push((address, len, descriptor_flag::WRITE));
            answer.push((address, len));
        }
        (buffers, answer)
    }
}

/// Address, bytes, flags.
type Buffer = (u64, u32, u16);

fn map(layout: RegionLayout, file: &OwnedFd) -> Rc<GuestMemory> {
    let region = Region::map(layout, duplicate(file)).expect("a lawful region");
    Rc::new(GuestMemory::new(vec![region]).expect("one region overlaps nothing"))
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd")
}

fn duplicate(fd: &impl AsFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, 0).expect("a free descriptor")
}

fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    rustix::io::read(fd, &mut bytes).map_or(0, |_| u64::from_ne_bytes(bytes))
}
