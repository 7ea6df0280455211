//! Where a virtio-vhost-user function has its registers: the PCI capability list, read once and
//! checked against the sizes of the bars. Pure: bytes in, a [`Layout`] out. No bar has a number
//! that we would know beforehand, and nothing is read or mapped here.
//!
//! "virtio" below is virtio 1.3, whose 4.1.4 has the capabilities 1 to 5 and 8; "VVU" is the draft
//! of virtio-vhost-user, which adds 6 and 7.

use std::fmt;

/// Bytes of configuration space that every PCI function has.
pub const CONFIGURATION_SIZE: usize = 256;

/// Bars of a function.
pub const BARS: usize = 6;

/// The status register (PCI 3.0, 6.2.3) and its bit that says that there is a list.
const STATUS: u8 = 0x06;
const CAPABILITIES_LIST: u16 = 1 << 4;

/// Where the list begins (PCI 3.0, 6.7), and how pointers are read: the two low bits are reserved.
const CAPABILITIES_POINTER: u8 = 0x34;
const POINTER_MASK: u8 = !3;

/// The header that no capability lies in.
const HEADER_SIZE: u8 = 0x40;

/// Capabilities that fit behind the header, at one every four bytes: a longer list has a loop.
const CAPABILITIES_MAX: usize = (CONFIGURATION_SIZE - HEADER_SIZE as usize) / 4;

/// `PCI_CAP_ID_VNDR`.
const VENDOR_SPECIFIC: u8 = 0x09;

/// `struct virtio_pci_cap` (virtio, 4.1.4), and what follows it in some of them.
const LENGTH: usize = 2;
const KIND: usize = 3;
const BAR: usize = 4;
const OFFSET: usize = 8;
const SIZE: usize = 12;
const CAPABILITY_SIZE: u8 = 16;
/// A multiplier, or the upper half of an offset.
const EXTRA: usize = 16;
const WITH_MULTIPLIER: u8 = 20;
/// The upper half of a size.
const SIZE_HIGH: usize = 20;
const WITH_HIGH_HALVES: u8 = 24;

/// Memory is mapped page by page (VVU: "4096-byte aligned").
const PAGE: u64 = 4096;

/// A range of registers that one capability describes. The names are those of the specifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Window {
    /// `VIRTIO_PCI_CAP_COMMON_CFG`: features, status, queues.
    Common,
    /// `VIRTIO_PCI_CAP_NOTIFY_CFG`: where queues are notified.
    Notify,
    /// `VIRTIO_PCI_CAP_ISR_CFG`: interrupts without MSI-X.
    Isr,
    /// `VIRTIO_PCI_CAP_DEVICE_CFG`: status of both ends, how many queues.
    Device,
    /// `VIRTIO_PCI_CAP_DOORBELL_CFG`: calls to the other guest.
    Doorbell,
    /// `VIRTIO_PCI_CAP_NOTIFICATION_CFG`: which vector a kick of it raises.
    Notification,
}

impl Window {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Common,
        Self::Notify,
        Self::Isr,
        Self::Device,
        Self::Doorbell,
        Self::Notification,
    ];

    /// Fewest bytes that are of use, and what the beginning must be a multiple of, so that fields
    /// are accessed in their natural width.
    const fn shape(self) -> (u64, u64) {
        match self {
            Self::Common => (56, 4),
            Self::Notify | Self::Doorbell => (2, 2),
            Self::Isr => (1, 1),
            Self::Device => (24, 4),
            Self::Notification => (4, 2),
        }
    }

    const fn kind(self) -> u8 {
        match self {
            Self::Common => 1,
            Self::Notify => 2,
            Self::Isr => 3,
            Self::Device => 4,
            Self::Doorbell => 6,
            Self::Notification => 7,
        }
    }
}

/// `VIRTIO_PCI_CAP_SHARED_MEMORY_CFG`.
const SHARED_MEMORY: u8 = 8;

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Common => "common configuration",
            Self::Notify => "queue notification",
            Self::Isr => "ISR",
            Self::Device => "device configuration",
            Self::Doorbell => "doorbell",
            Self::Notification => "notification",
        })
    }
}

/// Bytes of a bar, all of them within it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// Which bar.
    pub bar: u8,
    /// Where in it.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
}

/// All that a driver needs to know of a function's bars. Right by construction: every range lies in
/// its bar, is long enough and aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    windows: [Range; Window::ALL.len()],
    /// Bytes between the notification addresses of two queues with neighbouring offsets.
    pub notify_multiplier: u32,
    /// Bytes between two doorbells: 0, or a power of two.
    pub doorbell_multiplier: u32,
    /// The driver VM's memory: whole pages.
    pub shared_memory: Range,
}

/// Why a function is not one that we can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The configuration space reads as ones, as that of a function that is gone.
    #[error(
        "the function does not answer: its proxy or VMM side is gone: start the proxy and then \
         the device VM again"
    )]
    NoAnswer,
    /// The status register says that there are none.
    #[error("the function has no PCI capabilities: it is not a modern virtio device")]
    NoCapabilities,
    /// A pointer into the header, or back to a capability that was there before.
    #[error("the capability list goes to {pointer:#x}, into the header or in a circle")]
    BrokenList {
        /// The pointer.
        pointer: u8,
    },
    /// A capability that goes beyond the configuration space, or says that it is shorter than it
    /// must be.
    #[error("the capability at {at:#x} has {length} bytes, which cannot be")]
    Length {
        /// Where it is.
        at: u8,
        /// What it says.
        length: u8,
    },
    /// There is no capability for it, or only in bars that do not exist for software.
    #[error("no {0} capability: not a virtio-vhost-user device, or one of before the capabilities")]
    Missing(What),
    /// A range that ends behind its bar.
    #[error(
        "the {what} window has {size:#x} bytes at {offset:#x} of bar {bar}, which has {bar_size:#x}"
    )]
    Outside {
        /// Which range.
        what: What,
        /// The bar.
        bar: u8,
        /// Where in it.
        offset: u64,
        /// How many bytes.
        size: u64,
        /// How many bytes the bar has.
        bar_size: u64,
    },
    /// Fewer bytes than its registers need.
    #[error("the {what} window has {size} bytes, and {least} is the least")]
    TooSmall {
        /// Which range.
        what: What,
        /// Its bytes.
        size: u64,
        /// What it needs.
        least: u64,
    },
    /// It begins where its registers cannot be accessed in their own width.
    #[error("the {what} window begins at {offset:#x}, no multiple of {align}")]
    Misaligned {
        /// Which range.
        what: What,
        /// Where it begins.
        offset: u64,
        /// What that must be a multiple of.
        align: u64,
    },
    /// A multiplier that puts registers at addresses where they cannot be.
    #[error("the {what} multiplier is {multiplier}, neither 0 nor an even power of two")]
    Multiplier {
        /// Of which window.
        what: What,
        /// What it is.
        multiplier: u32,
    },
}

/// What an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Registers.
    Registers(Window),
    /// The driver VM's memory.
    SharedMemory,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registers(window) => window.fmt(f),
            Self::SharedMemory => f.write_str("shared memory"),
        }
    }
}

impl Layout {
    /// Walks the capability list of a function. `bars` is how many bytes each bar has; 0 for none.
    ///
    /// Of several capabilities of one kind the first counts that lies in a bar of the function
    /// (virtio, 4.1.4.1: the device says first what it likes best); kinds and bars that nobody
    /// knows are passed over, as virtio demands.
    ///
    /// # Errors
    ///
    /// When the list is broken, or does not describe a virtio-vhost-user device.
    pub fn parse(
        configuration: &[u8; CONFIGURATION_SIZE],
        bars: &[u64; BARS],
    ) -> Result<Self, LayoutError> {
        Found::all(configuration)?.check(bars)
    }

    /// Whether a function has doorbells, which no other virtio device has.
    ///
    /// # Errors
    ///
    /// When it does not answer, or its list is broken.
    pub(super) fn has_doorbells(
        configuration: &[u8; CONFIGURATION_SIZE],
    ) -> Result<bool, LayoutError> {
        let found = Found::all(configuration)?;
        Ok(found.windows[Window::Doorbell as usize].is_some())
    }

    /// Where a window lies.
    pub fn window(&self, window: Window) -> Range {
        self.windows[window as usize]
    }
}

/// The capabilities, one after the other; ends after an error.
struct List<'a> {
    configuration: &'a [u8; CONFIGURATION_SIZE],
    next: u8,
    left: usize,
}

impl<'a> List<'a> {
    fn new(configuration: &'a [u8; CONFIGURATION_SIZE]) -> Result<Self, LayoutError> {
        let status = usize::from(STATUS);
        let status = u16::from_le_bytes([configuration[status], configuration[status + 1]]);
        // Some of its bits are reserved, and zero where there is a function.
        if status == u16::MAX {
            return Err(LayoutError::NoAnswer);
        }
        if status & CAPABILITIES_LIST == 0 {
            return Err(LayoutError::NoCapabilities);
        }
        Ok(Self {
            configuration,
            next: configuration[usize::from(CAPABILITIES_POINTER)] & POINTER_MASK,
            left: CAPABILITIES_MAX,
        })
    }
}

impl Iterator for List<'_> {
    type Item = Result<u8, LayoutError>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.next;
        if at == 0 {
            return None;
        }
        self.next = 0;
        // More steps than there are places: some place came twice.
        if at < HEADER_SIZE || self.left == 0 {
            return Some(Err(LayoutError::BrokenList { pointer: at }));
        }
        self.left -= 1;
        // A pointer is at most 0xfc, so its successor is there too.
        self.next = self.configuration[usize::from(at) + 1] & POINTER_MASK;
        Some(Ok(at))
    }
}

/// A capability of virtio's, or `None` for what is none.
struct Capability {
    kind: u8,
    bar: u8,
    offset: u32,
    size: u32,
    /// The word behind it, if it is that long.
    extra: Option<u32>,
    /// Upper halves of offset and size, if it is that long.
    high: Option<(u32, u32)>,
}

impl Capability {
    fn new(configuration: &[u8; CONFIGURATION_SIZE], at: u8) -> Result<Option<Self>, LayoutError> {
        let rest = &configuration[usize::from(at)..];
        if rest[0] != VENDOR_SPECIFIC {
            return Ok(None);
        }
        let length = rest.get(LENGTH).copied().unwrap_or(0);
        let Some(bytes) = rest.get(..usize::from(length)) else {
            return Err(LayoutError::Length { at, length });
        };
        if length < CAPABILITY_SIZE {
            return Err(LayoutError::Length { at, length });
        }
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        Ok(Some(Self {
            kind: bytes[KIND],
            bar: bytes[BAR],
            offset: word(OFFSET),
            size: word(SIZE),
            extra: (length >= WITH_MULTIPLIER).then(|| word(EXTRA)),
            high: (length >= WITH_HIGH_HALVES).then(|| (word(EXTRA), word(SIZE_HIGH))),
        }))
    }

    fn range(&self) -> Range {
        Range {
            bar: self.bar,
            offset: self.offset.into(),
            size: self.size.into(),
        }
    }

    /// The range of memory, which may be larger than 32 bits can say.
    fn wide_range(&self) -> Range {
        let (offset_high, size_high) = self.high.unwrap_or((0, 0));
        let wide = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        Range {
            bar: self.bar,
            offset: wide(offset_high, self.offset),
            size: wide(size_high, self.size),
        }
    }
}

/// What the list has, not yet checked against bars.
#[derive(Default)]
struct Found {
    windows: [Option<Range>; Window::ALL.len()],
    notify_multiplier: u32,
    doorbell_multiplier: u32,
    shared_memory: Option<Range>,
}

impl Found {
    fn all(configuration: &[u8; CONFIGURATION_SIZE]) -> Result<Self, LayoutError> {
        let mut found = Self::default();
        for at in List::new(configuration)? {
            found.take(Capability::new(configuration, at?)?);
        }
        Ok(found)
    }

    fn take(&mut self, capability: Option<Capability>) {
        // Bars above 5 are reserved, and to be passed over (virtio, 4.1.4).
        let Some(capability) = capability.filter(|found| usize::from(found.bar) < BARS) else {
            return;
        };
        if capability.kind == SHARED_MEMORY {
            self.shared_memory
                .get_or_insert_with(|| capability.wide_range());
            return;
        }
        let known = |window: &&Window| window.kind() == capability.kind;
        let Some(&window) = Window::ALL.iter().find(known) else {
            return;
        };
        let multiplier = match window {
            Window::Notify => Some(&mut self.notify_multiplier),
            Window::Doorbell => Some(&mut self.doorbell_multiplier),
            Window::Common | Window::Isr | Window::Device | Window::Notification => None,
        };
        let place = &mut self.windows[window as usize];
        match (multiplier, capability.extra) {
            _ if place.is_some() => {}
            // One that is too short for its multiplier says nothing.
            (Some(_), None) => {}
            (Some(multiplier), Some(extra)) => {
                *multiplier = extra;
                *place = Some(capability.range());
            }
            (None, _) => *place = Some(capability.range()),
        }
    }

    fn check(self, bars: &[u64; BARS]) -> Result<Layout, LayoutError> {
        let empty = Range {
            bar: 0,
            offset: 0,
            size: 0,
        };
        let mut windows = [empty; Window::ALL.len()];
        for window in Window::ALL {
            let range = self.windows[window as usize];
            let (least, align) = window.shape();
            windows[window as usize] =
                check_range(What::Registers(window), range, (least, align), bars)?;
        }
        for (window, multiplier) in [
            (Window::Notify, self.notify_multiplier),
            (Window::Doorbell, self.doorbell_multiplier),
        ] {
            if multiplier != 0 && (!multiplier.is_power_of_two() || multiplier == 1) {
                return Err(LayoutError::Multiplier {
                    what: What::Registers(window),
                    multiplier,
                });
            }
        }
        let shared_memory =
            check_range(What::SharedMemory, self.shared_memory, (PAGE, PAGE), bars)?;
        Ok(Layout {
            windows,
            notify_multiplier: self.notify_multiplier,
            doorbell_multiplier: self.doorbell_multiplier,
            shared_memory,
        })
    }
}

fn check_range(
    what: What,
    range: Option<Range>,
    (least, align): (u64, u64),
    bars: &[u64; BARS],
) -> Result<Range, LayoutError> {
    let range = range.ok_or(LayoutError::Missing(what))?;
    let Range { bar, offset, size } = range;
    let bar_size = bars.get(usize::from(bar)).copied().unwrap_or(0);
    if offset.checked_add(size).is_none_or(|end| end > bar_size) {
        return Err(LayoutError::Outside {
            what,
            bar,
            offset,
            size,
            bar_size,
        });
    }
    if size < least {
        return Err(LayoutError::TooSmall { what, size, least });
    }
    if !offset.is_multiple_of(align) {
        return Err(LayoutError::Misaligned {
            what,
            offset,
            align,
        });
    }
    Ok(range)
}
