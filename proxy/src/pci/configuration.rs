//! The configuration space: 256 bytes, which of their bits a driver may write, and the one write
//! that does something. Where BARs are mapped is kept for whoever reads it; the VMM knows better.

use std::iter;
use std::ops::Range;

use super::layout::{
    COMMON, CONFIGURATION_SIZE, DEVICE, DOORBELL_MULTIPLIER, DOORBELLS, DOORBELLS_SIZE, ISR,
    MSIX_SIZE, NOTIFICATION, NOTIFY, NOTIFY_MULTIPLIER, PENDING, TABLE, VECTORS, VIRTIO_SIZE,
    region,
};

/// Which device it says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device. No number is official for virtio-vhost-user.
    pub device: u16,
}

impl Default for Identity {
    /// crosvm's: virtio's vendor, and 0x1040 + 61.
    fn default() -> Self {
        Self {
            vendor: 0x1af4,
            device: 0x107d,
        }
    }
}

/// What a write to the configuration space does beyond itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a function-level reset is for the whole function"]
pub enum Effect {
    /// Nothing.
    None,
    /// A function-level reset.
    FunctionLevelReset,
}

const COMMAND: usize = 0x04;
/// Memory space, bus master, parity, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const REVISION: usize = 0x08;
const CLASS: usize = 0x0b;
/// "Device does not fit in any defined classes".
const CLASS_OTHER: u8 = 0xff;
const CACHE_LINE: usize = 0x0c;
const LATENCY: usize = 0x0d;
const BAR: usize = 0x10;
const BAR_64_BIT: u32 = 0x4;
const BAR_PREFETCHABLE: u32 = 0x8;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

const FIRST_CAPABILITY: u8 = 0x40;
const ID_VENDOR: u8 = 0x09;
const ID_MSIX: u8 = 0x11;
const ID_ADVANCED_FEATURES: u8 = 0x13;
/// Enable and function mask, in the upper byte of the message control.
const MSIX_CONTROL_WRITABLE: u8 = 0xc0;
/// Function-level reset and transactions pending.
const ADVANCED_FEATURES: u8 = 0x03;
const INITIATE_FLR: u8 = 0x01;

/// `cfg_type` of virtio's vendor capabilities: virtio 1.3, 4.1.4, and of virtio-vhost-user.
mod kind {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
    pub(super) const DOORBELL: u8 = 6;
    pub(super) const NOTIFICATION: u8 = 7;
    pub(super) const SHARED_MEMORY: u8 = 8;
}

/// Where in `struct virtio_pci_cfg_cap` (4.1.4.9) the driver names a BAR, an offset, a length, and
/// where the data is.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LENGTH: usize = 12;
const WINDOW_DATA: usize = 16;

/// An access to a BAR by way of the configuration space, for drivers that cannot map BARs yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowAccess {
    /// Which BAR: one of six.
    pub bar: u32,
    /// Where in it, a multiple of the length. Perhaps beyond it.
    pub offset: u64,
    /// How many bytes: 1, 2 or 4.
    pub length: usize,
}

/// The configuration space.
#[derive(Clone, Debug)]
pub struct Configuration {
    bytes: [u8; CONFIGURATION_SIZE],
    initial: [u8; CONFIGURATION_SIZE],
    writable: [u8; CONFIGURATION_SIZE],
    /// Where the control byte of the advanced features is.
    reset_control: usize,
    /// Where the capability is that gives access to BARs.
    window: usize,
}

impl Configuration {
    /// That of a function which says it is `identity`, with this much shared memory: a power of
    /// two, at least a page.
    pub fn new(identity: Identity, shared_memory_bytes: u64) -> Self {
        debug_assert!(shared_memory_bytes.is_power_of_two() && shared_memory_bytes >= 4096);
        let mut builder = Builder::new(identity);
        builder.bars(shared_memory_bytes);
        let (reset_control, window) = builder.capabilities(shared_memory_bytes);
        Self {
            bytes: builder.bytes,
            initial: builder.bytes,
            writable: builder.writable,
            reset_control,
            window,
        }
    }

    /// Reads a range; what lies beyond the end reads as ones.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let there = self.bytes.get(offset..).unwrap_or_default();
        let ones = iter::repeat(&0xff);
        for (into, byte) in into.iter_mut().zip(there.iter().chain(ones)) {
            *into = *byte;
        }
    }

    /// Writes the writable bits of a range.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Effect {
        let there = self.bytes.get_mut(offset..).unwrap_or_default();
        let writable = self.writable.get(offset..).unwrap_or_default();
        for ((byte, writable), new) in there.iter_mut().zip(writable).zip(data) {
            *byte = *byte & !writable | new & writable;
        }
        let control = self.reset_control.checked_sub(offset);
        match control.and_then(|at| data.get(at)) {
            Some(control) if control & INITIATE_FLR != 0 => Effect::FunctionLevelReset,
            _ => Effect::None,
        }
    }

    /// The access to a BAR that an access to these bytes means, if it means one (4.1.4.9.1).
    pub fn window_access(&self, offset: usize, bytes: usize) -> Option<WindowAccess> {
        if offset != self.window + WINDOW_DATA || !matches!(bytes, 1 | 2 | 4) {
            return None;
        }
        let word = |at: usize| {
            let mut word = [0; 4];
            self.read(self.window + at, &mut word);
            u32::from_le_bytes(word)
        };
        let bar = u32::from(self.bytes[self.window + WINDOW_BAR]);
        let (offset, length) = (word(WINDOW_OFFSET), word(WINDOW_LENGTH));
        let lawful = bar < 6 && matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length);
        lawful.then_some(WindowAccess {
            bar,
            offset: offset.into(),
            length: length as usize,
        })
    }

    /// As it was at first.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }
}

struct Builder {
    bytes: [u8; CONFIGURATION_SIZE],
    writable: [u8; CONFIGURATION_SIZE],
    next: u8,
    /// Where the number of the next capability is to be written.
    link: usize,
}

impl Builder {
    fn new(identity: Identity) -> Self {
        let mut this = Self {
            bytes: [0; CONFIGURATION_SIZE],
            writable: [0; CONFIGURATION_SIZE],
            next: FIRST_CAPABILITY,
            link: CAPABILITIES,
        };
        this.put(0, &identity.vendor.to_le_bytes());
        this.put(2, &identity.device.to_le_bytes());
        this.put(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        // virtio 1.3, 4.1.2.1: a device that is not transitional has revision 1 or higher.
        this.put(REVISION, &[1]);
        this.put(CLASS, &[CLASS_OTHER]);
        this.put(SUBSYSTEM_VENDOR, &identity.vendor.to_le_bytes());
        // 4.1.2.1: 0x40 or higher.
        this.put(SUBSYSTEM, &0x1100_u16.to_le_bytes());
        this.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        this.allow(CACHE_LINE, &[0xff]);
        this.allow(LATENCY, &[0xff]);
        this.allow(INTERRUPT_LINE, &[0xff]);
        this
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    fn bars(&mut self, shared_memory_bytes: u64) {
        let small = [
            (region::VIRTIO, VIRTIO_SIZE),
            (region::MSIX, MSIX_SIZE),
            (region::DOORBELLS, DOORBELLS_SIZE),
        ];
        for (index, size) in small {
            // Below 4 GiB, so the upper half of the mask is that of no register.
            let mask = (!(size - 1)).to_le_bytes();
            self.allow(bar(index), &mask[..4]);
        }
        let shared = bar(region::SHARED_MEMORY);
        self.put(shared, &(BAR_64_BIT | BAR_PREFETCHABLE).to_le_bytes());
        self.allow(shared, &(!(shared_memory_bytes - 1)).to_le_bytes());
    }

    /// All capabilities; where the control byte for resets is, and the access to BARs.
    fn capabilities(&mut self, shared_memory_bytes: u64) -> (usize, usize) {
        let msix = usize::from(self.next);
        let mut body = Vec::new();
        body.extend((VECTORS - 1).to_le_bytes());
        body.extend(place(region::MSIX, &TABLE));
        body.extend(place(region::MSIX, &PENDING));
        self.capability(ID_MSIX, &body);
        self.allow(msix + 3, &[MSIX_CONTROL_WRITABLE]);

        let advanced = usize::from(self.next);
        self.capability(ID_ADVANCED_FEATURES, &[6, ADVANCED_FEATURES, 0, 0]);

        let (virtio, doorbells) = (region::VIRTIO, region::DOORBELLS);
        self.vendor(kind::COMMON, virtio, &COMMON, &[]);
        self.vendor(
            kind::NOTIFY,
            virtio,
            &NOTIFY,
            &NOTIFY_MULTIPLIER.to_le_bytes(),
        );
        self.vendor(kind::ISR, virtio, &ISR, &[]);
        self.vendor(kind::DEVICE, virtio, &DEVICE, &[]);
        let multiplier = DOORBELL_MULTIPLIER.to_le_bytes();
        self.vendor(kind::DOORBELL, doorbells, &DOORBELLS, &multiplier);
        self.vendor(kind::NOTIFICATION, doorbells, &NOTIFICATION, &[]);
        // virtio's own form of it (`virtio_pci_cap64`): the upper halves of offset and length.
        let high = shared_memory_bytes >> 32;
        let high = [[0; 4], word(high)].concat();
        let shared = 0..shared_memory_bytes;
        self.vendor(kind::SHARED_MEMORY, region::SHARED_MEMORY, &shared, &high);
        let window = usize::from(self.next);
        self.vendor(kind::PCI, region::VIRTIO, &(0..0), &[0; 4]);
        self.allow(window + WINDOW_BAR, &[0xff]);
        self.allow(window + WINDOW_OFFSET, &[0xff; 8]);
        (advanced + 4, window)
    }

    /// `struct virtio_pci_cap` (4.1.4) and what a kind of it has behind.
    fn vendor(&mut self, kind: u8, region: u32, range: &Range<u64>, behind: &[u8]) {
        let length = u8::try_from(16 + behind.len()).expect("a capability is short");
        let bar = u8::try_from(region).expect("one of six");
        let mut body = vec![length, kind, bar, 0, 0, 0];
        body.extend(word(range.start));
        body.extend(word(range.end - range.start));
        body.extend_from_slice(behind);
        self.capability(ID_VENDOR, &body);
    }

    fn capability(&mut self, id: u8, body: &[u8]) {
        let at = usize::from(self.next);
        self.put(self.link, &[self.next]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.link = at + 1;
        let end = (at + 2 + body.len()).next_multiple_of(4);
        self.next = u8::try_from(end).expect("capabilities end within the space");
    }
}

fn bar(region: u32) -> usize {
    BAR + 4 * region as usize
}

/// Offset and BAR number in one word, as MSI-X has it.
fn place(region: u32, range: &Range<u64>) -> [u8; 4] {
    let [low, rest @ ..] = word(range.start);
    let bar = u8::try_from(region).expect("one of six");
    [[low | bar].as_slice(), &rest]
        .concat()
        .try_into()
        .expect("four bytes")
}

/// The lower half.
fn word(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> Configuration {
        Configuration::new(Identity::default(), 4 << 30)
    }

    fn read<const N: usize>(of: &Configuration, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        of.read(offset, &mut bytes);
        bytes
    }

    /// (id, offset) of all capabilities.
    fn walk(of: &Configuration) -> Vec<(u8, usize)> {
        let mut list = Vec::new();
        let [mut at] = read(of, CAPABILITIES);
        while at != 0 {
            let [id, next] = read(of, at.into());
            list.push((id, at.into()));
            at = next;
            assert!(list.len() < 48, "the list goes in circles");
        }
        list
    }

    #[test]
    fn it_says_what_it_is() {
        let configuration = configuration();
        assert_eq!(read(&configuration, 0), [0xf4, 0x1a, 0x7d, 0x10]);
        assert_eq!(read(&configuration, REVISION), [1, 0, 0, 0xff]);
        let other = Identity {
            vendor: 0x1234,
            device: 0x5678,
        };
        let other = Configuration::new(other, 4096);
        assert_eq!(read(&other, 0), [0x34, 0x12, 0x78, 0x56]);
    }

    #[test]
    fn a_bar_is_sized_by_writing_ones() {
        let mut configuration = configuration();
        let sizes: [(usize, u32); 6] = [
            (0, 0xffff_c000),
            (1, 0xffff_f000),
            (2, 0xffff_c000),
            (3, 0),
            (4, 0x0000_000c),
            (5, 0xffff_ffff),
        ];
        for (bar, size) in sizes {
            let at = BAR + 4 * bar;
            assert_eq!(configuration.write(at, &[0xff; 4]), Effect::None);
            assert_eq!(
                u32::from_le_bytes(read(&configuration, at)),
                size,
                "BAR {bar}"
            );
        }
        configuration.reset();
        assert_eq!(read(&configuration, BAR + 16), [0x0c, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn every_capability_is_there_once_and_within_its_bar() {
        let configuration = configuration();
        let list = walk(&configuration);
        assert_eq!(list.len(), 10);
        let mut kinds = Vec::new();
        for (id, at) in list {
            match id {
                ID_MSIX => {
                    let [low, high] = read(&configuration, at + 2);
                    assert_eq!(u16::from_le_bytes([low, high]) + 1, VECTORS);
                    assert_eq!(read(&configuration, at + 4), [1, 0, 0, 0, 1, 8, 0, 0]);
                }
                ID_ADVANCED_FEATURES => {
                    assert_eq!(read(&configuration, at + 2), [6, 3, 0, 0]);
                }
                ID_VENDOR => {
                    let [length, kind, bar] = read(&configuration, at + 2);
                    let offset = u32::from_le_bytes(read(&configuration, at + 8));
                    let size = u32::from_le_bytes(read(&configuration, at + 12));
                    let end = u64::from(offset) + u64::from(size);
                    kinds.push((kind, bar, length, offset, size));
                    assert!(end <= 0x4000, "{kind}");
                }
                _ => panic!("capability {id:#x}"),
            }
        }
        assert_eq!(
            kinds,
            [
                (1, 0, 16, 0, 0x38),
                (2, 0, 20, 0x3000, 8),
                (3, 0, 16, 0x1000, 4),
                (4, 0, 16, 0x2000, 24),
                (6, 2, 20, 0, 0x2000),
                (7, 2, 16, 0x2000, 0x1000),
                // 4 GiB: its length is in the upper half.
                (8, 4, 24, 0, 0),
                (5, 0, 20, 0, 0),
            ]
        );
        let (_, shared) = walk(&configuration)[8];
        assert_eq!(read(&configuration, shared + 16), [0, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn only_writable_bits_change_and_only_flr_does_something() {
        let fresh = configuration();
        let mut configuration = configuration();
        for at in 0..CONFIGURATION_SIZE {
            let effect = configuration.write(at, &[0xff]);
            let is_control = at == configuration.reset_control;
            assert_eq!(effect == Effect::FunctionLevelReset, is_control, "{at:#x}");
        }
        // Identity, status, class, capabilities but for MSI-X's control.
        assert_eq!(read::<4>(&configuration, 0), read(&fresh, 0));
        assert_eq!(read(&configuration, COMMAND), [0x46, 0x05]);
        assert_eq!(read::<6>(&configuration, STATUS), read(&fresh, STATUS));
        let (before, after): ([u8; 192], [u8; 192]) =
            (read(&fresh, 0x40), read(&configuration, 0x40));
        let changed: Vec<_> = (0..192).filter(|&i| before[i] != after[i]).collect();
        // And where drivers say which part of which BAR they mean.
        assert_eq!(changed[0], 3);
        assert_eq!(changed[1..], [152, 156, 157, 158, 159, 160, 161, 162, 163]);
        configuration.reset();
        assert_eq!(configuration.bytes, fresh.bytes);
        assert_eq!(configuration.window_access(0xe4, 4), None);
        // Ranges that span the end, and lie behind it.
        assert_eq!(configuration.write(254, &[1; 4]), Effect::None);
        assert_eq!(configuration.write(usize::MAX, &[1; 4]), Effect::None);
        assert_eq!(read(&configuration, 255), [0, 0xff]);
    }
}
