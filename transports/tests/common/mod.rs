//! What the tests of this crate share: small devices, and a back-end that serves them to a script
//! which plays the front-end on a thread of its own. No assertions about the protocol.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;

use futures_util::future::{Either, select};
use vudev_executor::{Executor, File, Handle, Notify};
use vudev_frontend::{Buffer, FrontEnd};
use vudev_transports::session::SessionError;
use vudev_transports::unix::Listener;
use vudev_transports::vvu;
use vudev_transports::vvu::software::{self, SoftwareFunction};
use vudev_transports::{Session, Transport};
use vudev_virtio::{Chain, ConfigReadOnly, Device, GuestBuffers, Identity, Queue, QueueError};

/// Ring operations of a test's executor.
const OPERATIONS: u32 = 64;

/// What makes a [`Mirror`]'s configuration change.
pub(crate) const CHANGE: u8 = 0xff;

/// A feature bit of [`Mirror`]'s own.
pub(crate) const MIRROR_FEATURE: u64 = 1 << 5;

/// The largest size of a ring of the devices here.
pub(crate) const RING_SIZE_MAX: u16 = 256;

/// Answers every chain with the complement of its bytes. Sixteen bytes of configuration space, the
/// first four of them writable; when the first is set to [`CHANGE`], the last changes by itself.
pub(crate) struct Mirror {
    pub(crate) changed: Notify,
    pub(crate) config: RefCell<[u8; 16]>,
    pub(crate) negotiated: RefCell<Vec<u64>>,
    pub(crate) resets: Cell<u32>,
    pub(crate) running: Cell<u32>,
}

impl Mirror {
    pub(crate) fn new() -> Self {
        let mut config = [0; 16];
        config
            .iter_mut()
            .zip(1..)
            .for_each(|(byte, number)| *byte = number);
        Self {
            changed: Notify::new(),
            config: RefCell::new(config),
            negotiated: RefCell::default(),
            resets: Cell::new(0),
            running: Cell::new(0),
        }
    }

    fn answer(chain: &mut Chain) -> u32 {
        let mut bytes = vec![0; chain.readable.len().min(chain.writable.len())];
        chain.readable.read(&mut bytes).unwrap();
        bytes.iter_mut().for_each(|byte| *byte = !*byte);
        chain.writable.write(&bytes).unwrap();
        u32::try_from(bytes.len()).unwrap()
    }
}

/// A device of so many queues and operations, and of nothing else.
fn plain_identity(queues: usize, operations: u32) -> Identity {
    Identity {
        device_id: 63,
        features: 0,
        queue_sizes: vec![RING_SIZE_MAX; queues],
        config_size: 0,
        operations,
    }
}

/// Counts a queue while it runs, however it ends.
struct Running<'a>(&'a Cell<u32>);

impl<'a> Running<'a> {
    fn new(count: &'a Cell<u32>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Device for Mirror {
    fn identity(&self) -> Identity {
        Identity {
            features: MIRROR_FEATURE,
            config_size: 16,
            ..plain_identity(2, 2)
        }
    }

    fn read_config(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.config.borrow()[offset..offset + into.len()]);
    }

    fn write_config(&self, offset: usize, from: &[u8]) -> Result<(), ConfigReadOnly> {
        if offset + from.len() > 4 {
            return Err(ConfigReadOnly { offset });
        }
        let mut config = self.config.borrow_mut();
        config[offset..offset + from.len()].copy_from_slice(from);
        if config[0] == CHANGE {
            config[15] = config[15].wrapping_add(1);
            self.changed.notify();
        }
        Ok(())
    }

    async fn config_changed(&self) {
        self.changed.notified().await;
    }

    fn negotiated(&self, features: u64) {
        self.negotiated.borrow_mut().push(features);
    }

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let _running = Running::new(&self.running);
        queue.serve(8, async |chain| Self::answer(chain)).await
    }

    fn reset(&self) {
        assert_eq!(self.running.get(), 0, "no queue runs at a reset");
        self.resets.set(self.resets.get() + 1);
    }
}

/// Ring 0 fills its chains from a pipe, and so holds them until the test writes into it. Ring 1 is
/// a [`Mirror`]'s.
pub(crate) struct Slow {
    pub(crate) input: File,
    pub(crate) resets: Cell<u32>,
}

impl Slow {
    pub(crate) fn new(handle: &Handle, input: OwnedFd) -> Self {
        Self {
            input: File::new(handle, input),
            resets: Cell::new(0),
        }
    }

    async fn fill(&self, chain: &mut Chain) -> u32 {
        let buffers: GuestBuffers = chain.writable.take();
        let (read, buffers) = self.input.read(buffers).await;
        chain.writable = buffers;
        u32::try_from(read.unwrap()).unwrap()
    }
}

impl Device for Slow {
    fn identity(&self) -> Identity {
        plain_identity(2, 8)
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        if queue.index() == 0 {
            queue.serve(4, async |chain| self.fill(chain).await).await
        } else {
            queue.serve(4, async |chain| Mirror::answer(chain)).await
        }
    }

    fn reset(&self) {
        self.resets.set(self.resets.get() + 1);
    }
}

/// Takes chains and never gives them back.
pub(crate) struct Stuck {
    pub(crate) taken: Cell<u32>,
    pub(crate) resets: Cell<u32>,
    running: Cell<u32>,
}

impl Stuck {
    pub(crate) fn new() -> Self {
        Self {
            taken: Cell::new(0),
            resets: Cell::new(0),
            running: Cell::new(0),
        }
    }
}

impl Device for Stuck {
    fn identity(&self) -> Identity {
        plain_identity(1, 1)
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        let _running = Running::new(&self.running);
        let taken = &self.taken;
        queue
            .serve(4, async |_| {
                taken.set(taken.get() + 1);
                pending::<u32>().await
            })
            .await
    }

    fn reset(&self) {
        assert_eq!(self.running.get(), 0, "no queue runs at a reset");
        self.resets.set(self.resets.get() + 1);
    }
}

/// Drops every chain.
pub(crate) struct Forgetful;

impl Device for Forgetful {
    fn identity(&self) -> Identity {
        plain_identity(1, 1)
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    async fn serve(self: Rc<Self>, mut queue: Queue) -> Result<(), QueueError> {
        while let Some(chain) = queue.next().await? {
            drop(chain);
        }
        Ok(())
    }
}

/// What is left when the script has ended.
pub(crate) struct Served<D> {
    pub(crate) device: Rc<D>,
    /// How each session ended, in order.
    pub(crate) outcomes: Vec<Result<(), SessionError>>,
}

impl<D> Served<D> {
    /// The error of the only session.
    pub(crate) fn only_error(&self) -> String {
        assert_eq!(self.outcomes.len(), 1);
        self.outcomes[0].as_ref().unwrap_err().to_string()
    }

    /// Asserts that the stream of the only session could not be followed. Over the function it is
    /// the function that finds it out, and for the session the front-end has left.
    pub(crate) fn assert_stream_lost(&self, part: &str) {
        match crate::WIRE {
            Wire::Socket => assert!(self.only_error().contains(part), "{}", self.only_error()),
            Wire::Vvu => self.assert_all_left(),
        }
    }

    /// Asserts that every front-end left by itself.
    pub(crate) fn assert_all_left(&self) {
        for outcome in &self.outcomes {
            assert!(outcome.is_ok(), "{}", outcome.as_ref().unwrap_err());
        }
    }
}

/// What carries the messages of a test between its script and its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// The socket that the script connects to.
    Socket,
    /// A virtio-vhost-user function in software, behind that socket.
    Vvu,
}

impl Wire {
    /// What is offered over it.
    pub(crate) fn protocol_features(self) -> u64 {
        use vudev_frontend::message::protocol;
        let everywhere = protocol::MQ
            | protocol::REPLY_ACK
            | protocol::BACKEND_REQ
            | protocol::CONFIG
            | protocol::RESET_DEVICE;
        match self {
            Self::Socket => everywhere | protocol::CONFIGURE_MEM_SLOTS,
            Self::Vvu => everywhere,
        }
    }
}

/// Serves a device to one front-end after the other until `script`, on another thread, returns. The
/// test binary says by which wire.
pub(crate) fn serve<D: Device>(
    make: impl FnOnce(&Handle) -> D,
    script: impl FnOnce(&Path) + Send + 'static,
) -> Served<D> {
    serve_over(crate::WIRE, make, script)
}

/// The same by a wire of the test's choice.
pub(crate) fn serve_over<D: Device>(
    wire: Wire,
    make: impl FnOnce(&Handle) -> D,
    script: impl FnOnce(&Path) + Send + 'static,
) -> Served<D> {
    match wire {
        Wire::Vvu => serve_function(software::Options::default(), make, script),
        Wire::Socket => serve_by(make, script, async |around, device| {
            let listener = Listener::new(&around.handle, around.listening);
            let accept = async || listener.accept().await.unwrap();
            serve_until(&around.handle, &device, around.ended, accept).await
        }),
    }
}

/// The same through a function that is built as the test likes it.
pub(crate) fn serve_function<D: Device>(
    options: software::Options,
    make: impl FnOnce(&Handle) -> D,
    script: impl FnOnce(&Path) + Send + 'static,
) -> Served<D> {
    serve_function_and_look(options, make, script, |_| {})
}

/// The same, with a look at the function afterwards.
pub(crate) fn serve_function_and_look<D: Device>(
    options: software::Options,
    make: impl FnOnce(&Handle) -> D,
    script: impl FnOnce(&Path) + Send + 'static,
    look: impl FnOnce(&SoftwareFunction),
) -> Served<D> {
    serve_by(make, script, async |around, device| {
        let handle = &around.handle;
        let placement = options.placement;
        let function = SoftwareFunction::new(handle, around.listening, options).unwrap();
        let function = Rc::new(function);
        let queues = u16::try_from(device.identity().queue_sizes.len()).unwrap();
        let listener = vvu::Listener::new(handle, function.clone(), queues, placement).unwrap();
        let accept = async || listener.accept().await.unwrap();
        let outcomes = serve_until(handle, &device, around.ended, accept).await;
        look(&function);
        outcomes
    })
}

/// What a back-end is served with.
struct Around {
    handle: Handle,
    listening: OwnedFd,
    /// Readable when the script has ended.
    ended: File,
}

fn serve_by<D: Device>(
    make: impl FnOnce(&Handle) -> D,
    script: impl FnOnce(&Path) + Send + 'static,
    serve: impl AsyncFnOnce(Around, Rc<D>) -> Vec<Result<(), SessionError>>,
) -> Served<D> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listening = UnixListener::bind(&path).unwrap().into();
    let (ended, ends) = rustix::pipe::pipe().unwrap();

    #[expect(clippy::disallowed_methods, reason = "the other side of the socket")]
    let front_end = std::thread::spawn(move || {
        let _ends = ends;
        script(&path);
    });
    let executor = Executor::with_operations(OPERATIONS).unwrap();
    let handle = executor.handle().clone();
    let device = Rc::new(make(&handle));
    let ended = File::new(&handle, ended);
    let around = Around {
        handle,
        listening,
        ended,
    };
    let outcomes = executor.run(serve(around, device.clone())).unwrap();
    if let Err(panic) = front_end.join() {
        std::panic::resume_unwind(panic);
    }
    Served { device, outcomes }
}

/// One front-end after the other, until `ended` is readable.
pub(crate) async fn serve_until<D: Device, T: Transport>(
    handle: &Handle,
    device: &Rc<D>,
    ended: File,
    accept: impl AsyncFn() -> T,
) -> Vec<Result<(), SessionError>> {
    let mut end = pin!(ended.readable());
    let mut outcomes = Vec::new();
    loop {
        let accepted = match select(pin!(accept()), &mut end).await {
            Either::Left((accepted, _)) => accepted,
            Either::Right(_) => return outcomes,
        };
        outcomes.push(Session::new(handle, accepted, device.clone()).run().await);
    }
}

/// Serves a [`Mirror`].
pub(crate) fn serve_mirror(script: impl FnOnce(&Path) + Send + 'static) -> Served<Mirror> {
    serve(|_| Mirror::new(), script)
}

/// Shares one more region: by itself, or where the wire has no slots by a table with all of them.
pub(crate) fn share(front: &mut FrontEnd, number: usize) {
    let memory = front.memory().clone();
    let connection = front.connection();
    match crate::WIRE {
        Wire::Socket => memory.with_region(number, |layout, file| {
            connection.add_memory_region(layout, file)
        }),
        Wire::Vvu => memory.with_regions(|regions| connection.set_memory_table(regions)),
    }
    .unwrap();
}

/// Takes a region back: by itself, or by a table without it.
pub(crate) fn unshare(front: &mut FrontEnd, gone: usize) {
    let memory = front.memory().clone();
    let connection = front.connection();
    match crate::WIRE {
        Wire::Socket => memory.with_region(gone, |layout, _| {
            connection.remove_memory_region(layout, None)
        }),
        Wire::Vvu => memory.with_regions(|regions| {
            let mut regions = regions.to_vec();
            regions.remove(gone);
            connection.set_memory_table(&regions)
        }),
    }
    .unwrap();
}

/// Sends one chain through a [`Mirror`] ring and checks what comes back.
pub(crate) fn mirror(front: &mut FrontEnd, ring: u16) {
    let memory = front.memory().clone();
    let (there, back) = (
        memory.allocate(4, 1).unwrap(),
        memory.allocate(4, 1).unwrap(),
    );
    mirror_at(front, ring, there, back);
}

/// The same with buffers at these guest addresses.
pub(crate) fn mirror_at(front: &mut FrontEnd, ring: u16, there: u64, back: u64) {
    let memory = front.memory().clone();
    memory.write(there, b"ping").unwrap();
    memory.write(back, &[0; 4]).unwrap();
    let (readable, writable) = ([Buffer::new(there, 4)], [Buffer::new(back, 4)]);
    let written = front.ring(ring).exchange(&readable, &writable).unwrap();
    assert_eq!(written, 4);
    let mut answer = [0; 4];
    memory.read(back, &mut answer).unwrap();
    assert_eq!(answer, b"ping".map(|byte| !byte));
}

/// Waits until every copy of a pipe's writing end is closed.
pub(crate) fn assert_closed(read_end: OwnedFd) {
    let mut byte = [0];
    let count = std::fs::File::from(read_end).read(&mut byte).unwrap();
    assert_eq!(count, 0);
}
