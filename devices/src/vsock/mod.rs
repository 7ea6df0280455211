//! The socket device (virtio 1.3, 5.10), in user space: streams between a guest's `AF_VSOCK`
//! sockets and Unix sockets of the host. No kernel vhost has a part in it.
//!
//! A guest that connects to port P of the host reaches the program that listens on the Unix socket
//! of that number; a program of the host that connects to the device's own socket and says
//! `CONNECT P` reaches the guest's port P (`host`). Which sockets these are is not known here:
//! one is given, the others are asked for ([`Connect`]).
//!
//! Bytes go from the socket into the guest's receive buffers, behind a header of ours, and from its
//! transmit buffers into the socket. They are copied in one case: a program of the host that does
//! not keep up has them kept, at most the `credit` its guest was given: 256 KiB for each of the
//! first 256 connections, 64 KiB for others. So no transmit buffer is held for longer than a few
//! turns of the loop, and receive buffers are dealt out one packet a connection in turn: a peer
//! that does not read, or a guest's program that does not, stalls its own connection only. Packets
//! of a connection that wait for the one before them are sent together.
//!
//! There are [`CONNECTIONS_MAX`] connections at most, those that are being opened and those whose
//! last bytes are on their way included. One costs a descriptor, two operations of the ring at
//! most and some KiB; all of them, with nobody reading, 240 MiB of backlog. The ring for it is made
//! at the start: 1.6 MiB, which some kernels count as locked memory. A guest beyond it gets a
//! reset, a program of the host is hung up on.
//!
//! Streams only. SEQPACKET is not offered: message boundaries would need sockets of that type on
//! the host, which the convention above does not have.
//!
//! What a chain cannot have: a packet without a whole header, from another address than the guest's
//! own, or not to the host's, is dropped. An unknown type, an unknown operation, an operation in
//! the wrong place, data without or beyond credit or beyond its chain, data after an end, and a
//! guest that has forwarded more than it was sent: the connection is reset (5.10.6). A receive
//! buffer too small for a header is completed with nothing in it, and so is one whose connection
//! ended while it was being filled. Resets are not answered. A guest that takes none of its resets
//! gets no more than a thousand.
//!
//! Ends: a half is ended by SHUTDOWN in either direction, and by `shutdown(2)` on the host, after
//! the bytes before it. When a guest has ended both halves it is answered with a reset at once, and
//! its last bytes are kept for the host, for a minute from whenever it last took some. When the
//! host has, the guest is told so, and reset after eight seconds if it has not done so itself.
//!
//! When a front-end leaves, all connections end. The next one's driver is told so by the event
//! TRANSPORT_RESET, if its front-end passes the event queue on (QEMU keeps it to itself).

mod backlog;
mod connection;
mod credit;
mod host;
mod hub;
mod packet;
mod receive;
mod state;
mod transmit;
mod turns;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use vudev_executor::{Handle, Notify, Socket, Task};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

pub use self::hub::Connect;
use self::hub::Hub;

/// The most connections at once. A device's process may have 4096 descriptors, of which a
/// front-end with its memory and its queues takes up to 600.
pub const CONNECTIONS_MAX: usize = CONNECTIONS as usize;
const CONNECTIONS: u32 = 3072;

/// Two for each connection, one that waits to read and one that waits to send; packets that are
/// being sent, the listening socket, and waits that were dropped and the kernel has yet to let go
/// of.
pub const OPERATIONS: u32 = 2 * CONNECTIONS + 256;

/// rx, tx and event (5.10.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const EVENT: u16 = 2;

/// `guest_cid` (5.10.4), of which the upper half is reserved and zero.
const CONFIG_SIZE: usize = 8;

/// Linux's driver takes 128.
const QUEUE_SIZE_MAX: u16 = 1024;

/// Packets of the guest's worked on at once.
const DEPTH: usize = 64;

/// `struct virtio_vsock_event` with `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET` (5.10.6.7).
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// A socket device.
pub struct Vsock {
    hub: Rc<Hub>,
    guest_cid: u32,
    /// A driver has been here.
    served: Cell<bool>,
    /// The driver is to be told that its connections are gone.
    reset_owed: Cell<bool>,
    reset_news: Notify,
    _listening: Task<()>,
}

impl Vsock {
    /// The device of the guest with this context identifier, which must be neither reserved nor
    /// the host's. Programs of the host connect to `listener`, a listening stream socket, and the
    /// guest to what `connect` gives.
    pub fn new(handle: &Handle, guest_cid: u32, listener: OwnedFd, connect: Connect) -> Self {
        let hub = Rc::new(Hub::new(handle, guest_cid, connect));
        let listening = host::listen(hub.clone(), Socket::new(handle, listener));
        Self {
            _listening: handle.spawn(listening),
            hub,
            guest_cid,
            served: Cell::new(false),
            reset_owed: Cell::new(false),
            reset_news: Notify::new(),
        }
    }

    fn owe_reset(&self) {
        self.reset_owed.set(true);
        self.reset_news.notify();
    }

    /// A driver whose queue goes on where another device of its left it has connections that this
    /// one does not know.
    fn look_at_first(&self, chain: &Chain) {
        if !self.served.replace(true) && chain.position() != 0 {
            self.owe_reset();
        }
    }

    async fn events(&self, mut queue: Queue) -> Result<(), QueueError> {
        loop {
            while !self.reset_owed.get() {
                if queue.until_stop(self.reset_news.notified()).await.is_none() {
                    return Ok(());
                }
            }
            let Some(mut chain) = queue.next().await? else {
                return Ok(());
            };
            match chain.writable.write(&TRANSPORT_RESET) {
                Ok(()) => {
                    self.reset_owed.set(false);
                    queue.complete(chain, 4);
                }
                Err(_) => queue.complete(chain, 0),
            }
        }
    }
}

impl Device for Vsock {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::SOCKET,
            // No bit is F_STREAM alone (5.10.3).
            features: 0,
            queue_sizes: vec![QUEUE_SIZE_MAX; 3],
            config_size: CONFIG_SIZE,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        let space = u64::from(self.guest_cid).to_le_bytes();
        into.copy_from_slice(&space[offset..offset + into.len()]);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        match queue.index() {
            RECEIVE => {
                let started = |chain: &Chain| self.look_at_first(chain);
                receive::serve(&self.hub, queue, started).await
            }
            TRANSMIT => {
                let hub = &self.hub;
                let take = async |chain: &mut Chain| transmit::take(hub, chain).await;
                queue.serve(DEPTH, take).await
            }
            EVENT => self.events(queue).await,
            index => unreachable!("queue {index} of a device that has three"),
        }
    }

    fn reset(&self) {
        self.hub.clear();
        if self.served.get() {
            self.owe_reset();
        }
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        // Connections and the hub hold each other.
        self.hub.clear();
    }
}
