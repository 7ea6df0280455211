//! The network device (virtio 1.3, 5.1) on a tap. Frames go between the tap and the guest's memory
//! without a copy in this process; only the 12 bytes of header in front of each pass through memory
//! of ours, where they are checked. The ring waits for frames; those that are there are moved in
//! the same turn, by a system call each. Not a switch: where frames go on the host
//! is the interface's affair.
//!
//! What a chain cannot have:
//!
//! - A frame to send whose header is missing, contradicts its length, or asks for an offload that
//!   was not negotiated, is not sent; nor is one that is no Ethernet frame, or that the kernel
//!   refuses. Its chain is completed as if it had been, as on a real link.
//! - A receive buffer with less room than a header is completed empty. A frame that is longer than
//!   the buffers there are is dropped.
//! - A command that cannot be carried out is answered with ERR; see `control`.
//!
//! All of these are counted, and the log tells the first, the second, the fourth and so on.
//!
//! Receive filters (modes, addresses, VLANs) are applied when a frame has been read: what does not
//! pass is overwritten by the next one. A guest that looks there sees what it could ask for
//! anyway. Until a driver sets a mode it gets everything, and VLANs are filtered only once the
//! control queue runs: a front-end that keeps that queue to itself, as QEMU's `-netdev vhost-user`
//! does, filters by itself. For the same reason all pairs that run are used until then, and one
//! after it, until the driver says how many.
//!
//! A tap that goes away takes the link down: the driver is told, frames to send are dropped, and
//! the device lives on.

mod config;
mod control;
mod filter;
mod header;
mod receive;
mod spec;
pub mod tap;
mod transmit;

use std::cell::{Cell, RefCell};
use std::future::{Future, pending};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_executor::{File, Handle, Notify};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

use self::config::CONFIG_SIZE;
pub use self::config::{MTU_MAX, MTU_MIN, NetConfig, NetError, PAIRS_MAX};
use self::filter::Filter;
pub use self::filter::Mac;
pub use self::spec::feature;
use self::spec::status;
use crate::counter::Counter;
use crate::no_wait::NoWait;

/// The control queue's place without `MQ`; with it, it is behind all pairs (5.1.2).
const CONTROL_WITHOUT_PAIRS: u16 = 2;

/// Commands worked on at once; each is done when it is polled.
const COMMANDS: usize = 1;

/// A network device.
pub struct Net {
    config: NetConfig,
    taps: Vec<File>,
    /// Linux's taps can be asked so since 6.4.
    reads: NoWait,
    writes: NoWait,
    /// What the driver has set up, from here on.
    features: Cell<u64>,
    offloads: Cell<u64>,
    filter: RefCell<Filter>,
    /// How many pairs the driver uses.
    pairs_in_use: Cell<u16>,
    /// Whether the control queue is ours to serve: it has run since the last reset.
    controlled: Cell<bool>,
    announce: Cell<bool>,
    /// False once the tap is gone.
    link: Cell<bool>,
    served: Vec<Cell<bool>>,
    attached: Vec<Cell<bool>>,
    /// Notified when a pair's queue of the tap was taken or let go of.
    switched: Vec<Notify>,
    /// Notified when the configuration space changes.
    changed: Notify,
    drops: Drops,
}

/// What did not reach the other side, or the tap, by reason.
struct Drops {
    malformed: Counter,
    unsent: Counter,
    unread: Counter,
    too_long: Counter,
    unfit: Counter,
    unusable: Counter,
    offloads: Counter,
}

impl Net {
    /// A device on the queues of one tap, one for each pair. They pass frames with virtio's header
    /// of 12 bytes, wait by themselves (no O_NONBLOCK), and are left attached.
    ///
    /// # Errors
    ///
    /// [`NetError`] names the value that cannot be.
    pub fn new(handle: &Handle, config: NetConfig, taps: Vec<OwnedFd>) -> Result<Self, NetError> {
        config.check()?;
        let pairs = config.pairs;
        if taps.len() != usize::from(pairs) {
            let taps = taps.len();
            return Err(NetError::Taps { taps, pairs });
        }
        let each = || 0..pairs;
        let net = Self {
            taps: taps.into_iter().map(|tap| File::new(handle, tap)).collect(),
            reads: NoWait::of_device(),
            writes: NoWait::of_device(),
            features: Cell::new(0),
            offloads: Cell::new(0),
            filter: RefCell::new(Filter::open(config.mac)),
            pairs_in_use: Cell::new(1),
            controlled: Cell::new(false),
            announce: Cell::new(false),
            link: Cell::new(true),
            served: each().map(|_| Cell::new(false)).collect(),
            attached: each().map(|_| Cell::new(true)).collect(),
            switched: each().map(|_| Notify::new()).collect(),
            changed: Notify::new(),
            drops: Drops::new(),
            config,
        };
        net.switch();
        Ok(net)
    }

    /// Asks the driver to announce itself to its network: the tap is perhaps elsewhere now. Nothing
    /// happens if it did not say that it can.
    pub fn announce(&self) {
        let needed = feature::GUEST_ANNOUNCE | feature::CTRL_VQ | feature::STATUS;
        if self.features.get() & needed == needed && self.link.get() {
            self.announce.set(true);
            self.changed.notify();
        }
    }

    async fn control(&self, queue: Queue) -> Result<(), QueueError> {
        if !self.controlled.replace(true) {
            if self.features.get() & feature::CTRL_VLAN != 0 {
                self.filter.borrow_mut().filter_vlans();
            }
            self.switch();
        }
        let answer = async |chain: &mut Chain| control::answer(self, chain);
        queue.serve(COMMANDS, answer).await
    }

    fn use_pairs(&self, pairs: u16) {
        self.pairs_in_use.set(pairs);
        self.switch();
    }

    fn use_offloads(&self, offloads: u64) -> io::Result<()> {
        if self.offloads.get() != offloads
            && let Some(tap) = self.taps.first()
        {
            tap::set_offloads(tap, offloads)
                .inspect_err(|error| self.drops.offloads.count(error))?;
            self.offloads.set(offloads);
        }
        Ok(())
    }

    /// Lets frames come to the queues of the tap that are read, and to no others: what the kernel
    /// puts into one that nobody reads is lost. The first stays, or the interface would lose its
    /// carrier.
    fn switch(&self) {
        let limit = match (self.features.get() & feature::MQ, self.controlled.get()) {
            (0, _) => 1,
            (_, true) => self.pairs_in_use.get(),
            (_, false) => self.config.pairs,
        };
        for pair in 1..self.config.pairs {
            let at = usize::from(pair);
            let wanted = self.served[at].get() && pair < limit;
            if self.attached[at].replace(wanted) == wanted {
                continue;
            }
            if let Err(error) = tap::attach(&self.taps[at], wanted) {
                log::debug!("pair {pair}, attached {wanted}: {error}");
            }
            self.switched[at].notify();
        }
    }

    fn is_attached(&self, pair: u16) -> bool {
        let attached = self.attached.get(usize::from(pair));
        attached.is_some_and(Cell::get)
    }

    /// Says that a pair's receive queue runs, as long as the answer lives.
    fn served(&self, pair: u16) -> impl Drop + '_ {
        self.served[usize::from(pair)].set(true);
        self.switch();
        Served { net: self, pair }
    }

    fn tap_is_gone(&self, error: &io::Error) {
        if self.link.replace(false) {
            log::error!("the tap is gone, and the link down: {error}");
            self.changed.notify();
            self.switched.iter().for_each(Notify::notify);
        }
    }

    /// What a driver finds first, with `features` of it.
    fn begin(&self, features: u64) {
        let has = |feature: u64| features & feature != 0;
        let mac = self.config.mac.filter(|_| has(feature::MAC));
        self.features.set(features);
        self.filter.replace(Filter::open(mac));
        self.pairs_in_use.set(1);
        self.controlled.set(false);
        self.announce.set(false);
        // 5.1.3.1: all of them need GUEST_CSUM.
        let offloads = match has(feature::GUEST_CSUM) {
            true => features & feature::GUEST_OFFLOADS,
            false => 0,
        };
        // What it cannot have, it is told of by no way that there is.
        let _ = self.use_offloads(offloads);
        self.switch();
    }

    fn status(&self) -> u16 {
        [
            (self.link.get(), status::LINK_UP),
            (self.announce.get(), status::ANNOUNCE),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .fold(0, |bits, (_, bit)| bits | bit)
    }
}

struct Served<'n> {
    net: &'n Net,
    pair: u16,
}

impl Drop for Served<'_> {
    fn drop(&mut self) {
        self.net.served[usize::from(self.pair)].set(false);
        self.net.switch();
    }
}

impl Device for Net {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::NET,
            features: self.config.features(),
            queue_sizes: self.config.queue_sizes(),
            config_size: CONFIG_SIZE,
            operations: self.config.operations(),
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let mac = self.filter.borrow().address.or(self.config.mac);
        let space = self.config.space(mac.unwrap_or_default(), self.status());
        let length = into.len();
        into.copy_from_slice(&space[offset..offset + length]);
    }

    fn config_changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    fn negotiated(&self, features: u64) {
        self.begin(features);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let index = queue.index();
        let has_pairs = queue.features() & feature::MQ != 0;
        let (pairs, control) = match has_pairs {
            true => (self.config.pairs, 2 * self.config.pairs),
            false => (1, CONTROL_WITHOUT_PAIRS),
        };
        match (index / 2, index % 2) {
            _ if index == control => self.control(queue).await,
            (pair, 0) if pair < pairs => self.receive(queue, pair).await,
            (pair, _) if pair < pairs => self.transmit(queue, pair).await,
            // A queue that only `MQ` would give a meaning.
            _ => {
                queue.until_stop(pending::<()>()).await;
                Ok(())
            }
        }
    }

    fn reset(&self) {
        self.begin(0);
    }
}

impl Drops {
    fn new() -> Self {
        Self {
            malformed: Counter::of("frames from the driver dropped, which are malformed"),
            unsent: Counter::of("frames from the driver dropped, which the kernel did not take"),
            unread: Counter::of("reads of the tap that failed"),
            too_long: Counter::of("frames to the driver dropped, longer than its buffers"),
            unfit: Counter::of("frames to the driver dropped, which it cannot take"),
            unusable: Counter::of("receive buffers that cannot be used"),
            offloads: Counter::of("changes of offloads that the kernel did not take"),
        }
    }
}
