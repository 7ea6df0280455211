//! A virtio-vhost-user function in software, in the process of its driver: registers behind
//! [`Function`], doorbells, vectors, and a Unix socket for the front-end. For tests: the same
//! sessions run over it as over the socket. It is no PCI device and speaks no vfio-user.
//!
//! Its virtqueues are served by [`vudev_virtio::Queue`], so that the driver's rings are read by
//! code that shares none with what wrote them.

mod connection;
mod registers;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use vudev_executor::{Call, CallTarget, Handle, Kick, Notify, Socket, Task};
use vudev_virtio::{GuestMemory, Queue, QueueParts, Region, RegionLayout};

use self::connection::Connection;
use self::registers::{NO_VECTOR, Registers, configuration};
use super::capabilities::{BARS, Layout, Window};
use super::function::{Function, Width};
use super::resources::MemoryPlacement;
use super::rings::{DMA_ADDRESS, DMA_SIZE};
use super::{BACKEND_UP, FRONTEND_UP};

/// How the function is built, and what is wrong with it.
#[derive(Clone, Debug)]
pub struct Options {
    /// MSI-X vectors.
    pub vectors: u16,
    /// `max_vhost_queues`. There are 2048 doorbells: with more than 1024 queues some have none for
    /// errors.
    pub max_vhost_queues: u16,
    /// Bytes of the shared memory window: whole pages.
    pub shared_memory: u64,
    /// How the regions of a table lie in it. Offsets in files become 0 where that says nothing.
    pub placement: MemoryPlacement,
    /// How it says that the front-end has left.
    pub farewell: Farewell,
    /// Entries of its queues at most.
    pub queue_size: u16,
    /// What it does wrong.
    pub defect: Option<Defect>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vectors: 3 + 16,
            max_vhost_queues: 16,
            shared_memory: 1 << 30,
            placement: MemoryPlacement::WholeFiles,
            farewell: Farewell::Status,
            queue_size: 128,
            defect: None,
        }
    }
}

/// How a function says that the front-end has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Farewell {
    /// Both bits of the status cleared and a configuration interrupt, as the draft says.
    Status,
    /// A buffer of length 0, and never a word about the front-end in the status, as crosvm.
    EmptyBuffer,
}

/// What a function does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// Its status never becomes 0.
    NeverResets,
    /// It does not offer these features (the upper 32 bits of them).
    Offers(u32),
    /// FEATURES_OK does not stay.
    RefusesFeatures,
    /// It takes no vector above this.
    VectorsUpTo(u16),
    /// Its queues' notification offset.
    NotifyOffset(u16),
    /// It has only so many queues.
    Queues(u16),
    /// BACKEND_UP does not stay.
    ForgetsBackend,
    /// It touches neither queues nor sockets: whoever tests it does.
    Idle,
}

/// The function. Dropped, it closes its connection.
pub struct SoftwareFunction(Rc<Inner>);

/// What tasks share with registers.
struct Inner {
    handle: Handle,
    options: Options,
    layout: Layout,
    dma: Rc<GuestMemory>,
    vectors: Vec<OwnedFd>,
    listener: Socket,
    registers: RefCell<Registers>,
    /// The eventfds by which its own queues are kicked.
    kicks: RefCell<[Option<OwnedFd>; 2]>,
    connection: RefCell<Option<Connection>>,
    /// Notified when the driver changes the status.
    status_changed: Notify,
    /// From DRIVER_OK to the next reset.
    life: RefCell<Option<Task<()>>>,
    accesses: Cell<u64>,
}

impl SoftwareFunction {
    /// A function whose front-ends come to a listening socket.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Panics
    ///
    /// When the options describe no function that could be.
    pub fn new(handle: &Handle, listening: OwnedFd, options: Options) -> io::Result<Self> {
        let bars: [u64; BARS] = [0x4000, 0, 0x3000, 0, options.shared_memory, 0];
        let layout = Layout::parse(&configuration(options.shared_memory), &bars)
            .expect("the layout is one that can be driven");
        let file = rustix::fs::memfd_create("dma", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, DMA_SIZE)?;
        let place = RegionLayout {
            guest_address: DMA_ADDRESS,
            user_address: DMA_ADDRESS,
            size: DMA_SIZE,
            offset: 0,
        };
        let region = Region::map(place, file).map_err(io::Error::other)?;
        let dma = GuestMemory::new(vec![region]).map_err(io::Error::other)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let vectors: Result<_, _> = (0..options.vectors).map(|_| eventfd(0, flags)).collect();
        Ok(Self(Rc::new(Inner {
            handle: handle.clone(),
            registers: RefCell::new(Registers::new(&options)),
            options,
            layout,
            dma: Rc::new(dma),
            vectors: vectors?,
            listener: Socket::new(handle, listening),
            kicks: RefCell::default(),
            connection: RefCell::default(),
            status_changed: Notify::new(),
            life: RefCell::default(),
            accesses: Cell::new(0),
        })))
    }

    /// Register accesses so far: each is a way out of a VM and back.
    pub fn accesses(&self) -> u64 {
        self.0.accesses.get()
    }

    /// Writes into the status as the function does, and raises the configuration interrupt.
    pub fn set_status(&self, status: u32) {
        self.0.set_status(status);
    }

    /// Says that it has failed (DEVICE_NEEDS_RESET).
    pub fn fail(&self) {
        self.0.fail();
    }

    /// Raises the interrupt of a queue.
    pub fn interrupt_queue(&self, queue: u16) {
        let vector = self.0.registers.borrow().queue(queue).vector;
        self.0.raise(vector);
    }

    /// Where the driver has put a queue's used ring.
    pub fn used_ring(&self, queue: u16) -> u64 {
        self.0.registers.borrow().queue(queue).addresses().used
    }
}

impl Drop for SoftwareFunction {
    fn drop(&mut self) {
        self.0.reset();
    }
}

impl Function for SoftwareFunction {
    fn layout(&self) -> &Layout {
        &self.0.layout
    }

    fn read(&self, window: Window, at: u64, width: Width) -> u32 {
        self.0.accesses.set(self.0.accesses.get() + 1);
        self.0.registers.borrow().read(window, at, width)
    }

    fn write(&self, window: Window, at: u64, width: Width, value: u32) {
        self.0.accesses.set(self.0.accesses.get() + 1);
        match window {
            Window::Notify => self.0.notify(value),
            Window::Doorbell => self.0.doorbell(at, width),
            _ => {
                let change = {
                    let mut registers = self.0.registers.borrow_mut();
                    registers.write(window, at, width, value)
                };
                self.0.follow(change);
            }
        }
    }

    fn dma(&self) -> &Rc<GuestMemory> {
        &self.0.dma
    }

    fn vectors(&self) -> &[OwnedFd] {
        &self.0.vectors
    }

    fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)> {
        let connection = self.0.connection.borrow();
        connection.as_ref()?.shared_memory(at, size)
    }
}

/// What follows from a write to a register.
#[derive(Clone, Copy)]
enum Change {
    Nothing,
    /// 0 was written to the device's status.
    Reset,
    /// The driver is ready.
    Start,
    /// The driver has changed its bit of the VVU status.
    Status,
}

impl Inner {
    fn follow(self: &Rc<Self>, change: Change) {
        match change {
            Change::Nothing => {}
            Change::Reset => self.reset(),
            Change::Start if self.options.defect == Some(Defect::Idle) => {}
            Change::Start => self.start(),
            Change::Status => self.status_changed.notify(),
        }
    }

    fn reset(&self) {
        drop(self.life.take());
        drop(self.connection.take());
        *self.kicks.borrow_mut() = [None, None];
    }

    /// Starts both queues and waits for the driver's bit.
    fn start(self: &Rc<Self>) {
        let receive = self.start_queue(0);
        let transmit = self.start_queue(1);
        let inner = self.clone();
        let transmitting = self
            .handle
            .spawn(connection::transmit(self.clone(), transmit));
        let life = self.handle.spawn(async move {
            let _transmitting = transmitting;
            inner.live(receive).await;
        });
        *self.life.borrow_mut() = Some(life);
    }

    fn start_queue(self: &Rc<Self>, index: u16) -> Queue {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let kick = eventfd(0, flags).expect("an eventfd");
        let theirs = kick.try_clone().expect("a descriptor");
        self.kicks.borrow_mut()[usize::from(index)] = Some(kick);
        let registers = self.registers.borrow();
        let (queue, vector) = (registers.queue(index), registers.queue(index).vector);
        // Not the function itself: its queue would keep it alive.
        let inner = Rc::downgrade(self);
        let interrupt = move || {
            if let Some(inner) = inner.upgrade() {
                inner.raise(vector);
            }
        };
        let parts = QueueParts {
            index,
            size: queue.size,
            rings: queue.addresses(),
            next_available: 0,
            features: 1 << 32,
            memory: self.dma.clone(),
            kick: Some(Kick::new(&self.handle, theirs).expect("an eventfd")),
            call: Some(
                Call::new(&self.handle, CallTarget::doorbell(interrupt)).expect("a doorbell"),
            ),
            error: None,
        };
        Queue::start(&self.handle, parts)
            .expect("a ring of our driver")
            .0
    }

    /// Serves one front-end after the other, as long as the driver is there.
    async fn live(self: Rc<Self>, mut receive: Queue) {
        loop {
            self.backend_is(true).await;
            let accepted = {
                let accepting = self.listener.accept();
                let down = std::pin::pin!(self.backend_is(false));
                match futures_util::future::select(accepting, down).await {
                    futures_util::future::Either::Left((accepted, _)) => accepted,
                    futures_util::future::Either::Right(_) => continue,
                }
            };
            let Ok(socket) = accepted else {
                return self.fail();
            };
            *self.connection.borrow_mut() = Some(Connection::new(&self, socket));
            if self.options.farewell == Farewell::Status {
                self.set_status(BACKEND_UP | FRONTEND_UP);
            }
            {
                let serving = std::pin::pin!(connection::receive(&self, &mut receive));
                let down = std::pin::pin!(self.backend_is(false));
                futures_util::future::select(serving, down).await;
            }
            drop(self.connection.take());
            if self.backend_up() {
                self.say_farewell(&mut receive).await;
            }
        }
    }

    async fn say_farewell(&self, receive: &mut Queue) {
        match self.options.farewell {
            Farewell::Status => self.set_status(0),
            Farewell::EmptyBuffer => {
                if let Ok(Some(chain)) = receive.next().await {
                    receive.complete(chain, 0);
                }
                self.backend_is(false).await;
            }
        }
    }

    fn backend_up(&self) -> bool {
        self.registers.borrow().vvu_status & BACKEND_UP != 0
    }

    async fn backend_is(&self, up: bool) {
        while self.backend_up() != up {
            self.status_changed.notified().await;
        }
    }

    fn set_status(&self, status: u32) {
        let vector = {
            let mut registers = self.registers.borrow_mut();
            registers.vvu_status = status;
            registers.config_vector
        };
        self.raise(vector);
    }

    fn fail(&self) {
        let vector = {
            let mut registers = self.registers.borrow_mut();
            registers.fail();
            registers.config_vector
        };
        self.raise(vector);
    }

    /// Raises an interrupt.
    fn raise(&self, vector: u16) {
        if vector != NO_VECTOR
            && let Some(event) = self.vectors.get(usize::from(vector))
        {
            rustix::io::write(event, &1_u64.to_ne_bytes()).expect("an eventfd that never fills");
        }
    }

    fn notify(&self, queue: u32) {
        let kicks = self.kicks.borrow();
        let kick = usize::try_from(queue)
            .ok()
            .and_then(|queue| kicks.get(queue));
        if let Some(Some(kick)) = kick {
            rustix::io::write(kick, &1_u64.to_ne_bytes()).expect("an eventfd that never fills");
        }
    }

    fn doorbell(&self, at: u64, width: Width) {
        assert_eq!(width, Width::Word, "a doorbell is stored to in 16 bits");
        let number = at / u64::from(self.layout.doorbell_multiplier);
        let connection = self.connection.borrow();
        if let Some(connection) = connection.as_ref() {
            connection.ring(number);
        }
    }
}
