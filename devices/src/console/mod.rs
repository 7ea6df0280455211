//! The console device (virtio 1.3, 5.3) with its one port: what a guest prints goes to an output,
//! what comes from an input the guest reads. Not a terminal: bytes pass as they are, and raw mode
//! is the business of whoever owns the terminal.
//!
//! Input and output are descriptors of any kind (files, pipes, terminals, character devices), the
//! same or different ones. Their flags are never changed, since others may share them.
//!
//! What a chain cannot have: a receive chain without writable bytes, or a transmit chain without
//! readable ones, is completed with nothing moved; bytes in the wrong direction are not looked at.
//!
//! No byte is lost or doubled when a front-end leaves and comes back. Input is asked for only when
//! there is some and a chain to put it in; output that was written in part goes on where it was.

mod input;
mod output;
mod terminal;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use vudev_executor::{File, Handle, Vectored};
use vudev_virtio::spec::device_id;
use vudev_virtio::{Device, GuestBuffers, Identity, Queue, QueueError};

use self::input::Input;
use self::output::Output;
pub use self::terminal::detached;

/// receiveq(port0), device to driver, and transmitq(port0), the other way (virtio 1.3, 5.3.2).
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// cols, rows, max_nr_ports, emerg_wr: `struct virtio_console_config` (virtio 1.3, 5.3.4).
const CONFIG_SIZE: usize = 12;

/// The greatest size of a queue. A guest prints line by line, and posts few receive buffers.
const QUEUE_SIZE_MAX: u16 = 256;

/// At most so many operations are in flight: two for each of the two queues, the one that it waits
/// for and the wait before it that a stop dropped and the kernel has yet to let go of.
pub const OPERATIONS: u32 = 4;

/// How long a descriptor is left alone that says it is ready and then is not, or when the ring has
/// no worker thread for it.
const PAUSE: Duration = Duration::from_millis(10);

/// A console.
pub struct Console {
    input: Input,
    output: Output,
}

impl Console {
    /// A console that reads `input` (`None`: there is never any) and writes to `output` (`None`:
    /// what the guest prints is thrown away). Terminals should be [`detached`] before.
    pub fn new(handle: &Handle, input: Option<OwnedFd>, output: Option<OwnedFd>) -> Self {
        let file = |descriptor| File::new(handle, descriptor);
        Self {
            input: Input::new(input.map(file)),
            output: Output::new(output.map(file)),
        }
    }
}

impl Device for Console {
    fn identity(&self) -> Identity {
        Identity {
            device_id: device_id::CONSOLE,
            // Neither F_SIZE nor F_MULTIPORT nor F_EMERG_WRITE: config space is all zero.
            features: 0,
            queue_sizes: vec![QUEUE_SIZE_MAX; 2],
            config_size: CONFIG_SIZE,
            operations: OPERATIONS,
        }
    }

    fn read_config(&self, _offset: usize, into: &mut [u8]) {
        into.fill(0);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        match queue.index() {
            RECEIVE => self.input.serve(queue).await,
            TRANSMIT => self.output.serve(queue).await,
            index => unreachable!("queue {index} of a device that has two"),
        }
    }
}

/// How a read or a write that a stop may interrupt has ended.
struct Moved {
    result: io::Result<usize>,
    buffers: GuestBuffers,
}

/// Awaits `operation`; a stop ends it early. Either way its answer counts: bytes may have moved
/// before the end came, and forgetting them would lose or double them.
async fn finish(queue: &Queue, mut operation: impl Vectored<GuestBuffers>) -> Moved {
    // It is polled before the stop is looked at, so it has begun: only then can it be cancelled.
    let (result, buffers) = match queue.until_stop(&mut operation).await {
        Some(output) => output,
        None => {
            operation.cancel();
            operation.await
        }
    };
    Moved { result, buffers }
}

/// Leaves a descriptor alone for a moment; `None` when a stop is asked for meanwhile.
async fn rest(queue: &Queue) -> Option<()> {
    queue.until_stop(queue.handle().sleep(PAUSE)).await
}

/// Whether the file behind guest memory has shrunk under the chain (the kernel answers EFAULT): the
/// fault of a front-end, which must not cost the next one its input or output.
fn is_memory_lost(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::FAULT)
}
