//! Our driver of a virtio-vhost-user function and our device side of it, the proxy, together: the
//! bus between them is a vfio-user client that is not ours, and no VM is needed.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use vfio_user::Client;
use vudev_executor::{Executor, Handle};
use vudev_frontend::message::backend::CONFIG_CHANGE;
use vudev_frontend::{Builder, FrontEnd, Parked};
use vudev_proxy::SharedMemory;
use vudev_proxy::testing::Running;
use vudev_transports::vvu::{
    BARS, CONFIGURATION_SIZE, DMA_ADDRESS, DMA_SIZE, Function, Layout, Listener, MemoryPlacement,
    Width, Window,
};
use vudev_virtio::{GuestMemory, Region, RegionLayout};

use crate::common::{CHANGE, Mirror, Served, Wire, mirror, serve_until};

/// What the helpers take for granted.
const WIRE: Wire = Wire::Vvu;

/// The configuration space's number among the regions, and that of MSI-X among the interrupts.
const CONFIGURATION: u32 = 7;
const MSIX: u32 = 2;

/// Queues of the device in these tests.
const QUEUES: u16 = 2;

/// A vfio-user client as the bus of a function. Interrupts come as eventfds, memory as the file
/// that the bar is made of, as they do from VFIO.
struct Bus {
    client: RefCell<Client>,
    layout: Layout,
    dma: Rc<GuestMemory>,
    vectors: Vec<OwnedFd>,
    bar: Rc<OwnedFd>,
    accesses: RefCell<u64>,
}

impl Bus {
    fn open(path: &Path) -> Self {
        let mut client = Client::new(path).unwrap();
        let mut configuration = [0; CONFIGURATION_SIZE];
        client
            .region_read(CONFIGURATION, 0, &mut configuration)
            .unwrap();
        let bars: [u64; BARS] = std::array::from_fn(|bar| {
            let region = client.region(u32::try_from(bar).unwrap());
            region.map_or(0, |region| region.size)
        });
        let layout = Layout::parse(&configuration, &bars).unwrap();
        let shown = client.region(layout.shared_memory.bar.into()).unwrap();
        let bar = shown.file_offset.as_ref().unwrap();
        assert_eq!(bar.start(), 0);
        let bar = Rc::new(bar.file().try_clone().unwrap().into());

        let vectors = client.get_irq_info(MSIX).unwrap().count;
        let vectors: Vec<_> = (0..vectors)
            .map(|vector| {
                let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
                // VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER
                client
                    .set_irqs(MSIX, 0x24, vector, 1, &[event.as_raw_fd()])
                    .unwrap();
                event
            })
            .collect();
        let dma = dma(&mut client);
        Self {
            client: RefCell::new(client),
            layout,
            dma,
            vectors,
            bar,
            accesses: RefCell::new(0),
        }
    }
}

/// Memory for both, known to the proxy page by page, as behind an IOMMU.
fn dma(client: &mut Client) -> Rc<GuestMemory> {
    let file = rustix::fs::memfd_create("dma", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, DMA_SIZE).unwrap();
    for at in (0..DMA_SIZE).step_by(4096) {
        client
            .dma_map(at, DMA_ADDRESS + at, 4096, file.as_raw_fd())
            .unwrap();
    }
    let place = RegionLayout {
        guest_address: DMA_ADDRESS,
        user_address: DMA_ADDRESS,
        size: DMA_SIZE,
        offset: 0,
    };
    Rc::new(GuestMemory::new(vec![Region::map(place, file).unwrap()]).unwrap())
}

impl Function for Bus {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, window: Window, at: u64, width: Width) -> u32 {
        *self.accesses.borrow_mut() += 1;
        let range = self.layout.window(window);
        let mut bytes = [0; 4];
        self.client
            .borrow_mut()
            .region_read(
                range.bar.into(),
                range.offset + at,
                &mut bytes[..width as usize],
            )
            .unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&self, window: Window, at: u64, width: Width, value: u32) {
        *self.accesses.borrow_mut() += 1;
        let range = self.layout.window(window);
        let bytes = &value.to_le_bytes()[..width as usize];
        self.client
            .borrow_mut()
            .region_write(range.bar.into(), range.offset + at, bytes)
            .unwrap();
    }

    fn dma(&self) -> &Rc<GuestMemory> {
        &self.dma
    }

    fn vectors(&self) -> &[OwnedFd] {
        &self.vectors
    }

    fn shared_memory(&self, at: u64, size: u64) -> Option<(Rc<OwnedFd>, u64)> {
        let end = at.checked_add(size)?;
        (end <= self.layout.shared_memory.size)
            .then(|| (self.bar.clone(), self.layout.shared_memory.offset + at))
    }
}

/// Serves a mirror to a front-end through the proxy, which shows the memory of that front-end. Also
/// how often the driver went to the bus.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver VM beside the device's"
)]
fn served(
    build: fn(Builder) -> Builder,
    script: impl FnOnce(Parked) + Send + 'static,
) -> (Served<Mirror>, u64) {
    let folder = tempfile::tempdir().unwrap();
    let place: PathBuf = folder.path().into();
    let (ready, is_ready) = mpsc::channel();
    let (ended, ends) = rustix::pipe::pipe().unwrap();
    let driver_vm = std::thread::spawn(move || {
        let _ends = ends;
        // Its memory is there before the proxy, as a VM's is that is started with a file.
        let parked = build(FrontEnd::connect(place.join("vhost")))
            .prepare()
            .unwrap();
        let ram = parked
            .memory()
            .with_region(0, |_, file| file.try_clone_to_owned().unwrap());
        let running = Running::start_in(&place, SharedMemory::RamFile(ram));
        ready.send(running).unwrap();
        script(parked);
    });
    let running = is_ready.recv().unwrap();
    let executor = Executor::with_operations(64).unwrap();
    let handle: Handle = executor.handle().clone();
    let device = Rc::new(Mirror::new());
    let bus = Rc::new(Bus::open(&folder.path().join("vfio")));
    let placement = MemoryPlacement::default();
    let listener = Listener::new(&handle, bus.clone(), QUEUES, placement).unwrap();
    let ended = vudev_executor::File::new(&handle, File::from(ended));
    let accept = async || listener.accept().await.unwrap();
    let outcomes = executor
        .run(serve_until(&handle, &device, ended, accept))
        .unwrap();
    if let Err(panic) = driver_vm.join() {
        std::panic::resume_unwind(panic);
    }
    let accesses = *bus.accesses.borrow();
    drop(running);
    (Served { device, outcomes }, accesses)
}

#[test]
fn both_halves_of_ours_understand_one_another() {
    let (served, _) = served(
        |front| front.queues(2),
        |parked| {
            let mut front = parked.resume().unwrap();
            for _ in 0..20 {
                mirror(&mut front, 0);
                mirror(&mut front, 1);
            }
            front.connection().set_acknowledge(true);
            assert_eq!(front.connection().config(4, 4).unwrap(), [5, 6, 7, 8]);
            assert_eq!(front.stop().unwrap(), [20, 20]);
        },
    );
    served.assert_all_left();
    assert_eq!(served.device.resets.get(), 1);
}

#[test]
fn front_ends_come_and_go_in_good_order_and_otherwise() {
    let (served, _) = served(
        |front| front.queues(2),
        |mut parked| {
            for round in 0..20 {
                let mut front = parked.resume().unwrap();
                mirror(&mut front, 0);
                mirror(&mut front, 1);
                parked = if round % 2 == 0 {
                    front.leave().unwrap()
                } else {
                    front.vanish().unwrap()
                };
            }
        },
    );
    served.assert_all_left();
    assert_eq!(served.outcomes.len(), 20);
}

#[test]
fn the_front_end_hears_of_changes() {
    let (served, _) = served(
        |front| front,
        |parked| {
            let mut front = parked.resume().unwrap();
            let channel = front.connection().backend_channel().unwrap();
            for _ in 0..3 {
                front.connection().set_config(0, 0, &[CHANGE]).unwrap();
                assert_eq!(channel.backend_request().unwrap(), CONFIG_CHANGE);
            }
            mirror(&mut front, 0);
        },
    );
    served.assert_all_left();
}

#[test]
fn a_request_costs_at_most_one_way_to_the_bus() {
    let accesses = |rounds: fn(&mut FrontEnd)| {
        let (served, accesses) = served(
            |front| front,
            move |parked| rounds(&mut parked.resume().unwrap()),
        );
        served.assert_all_left();
        accesses
    };
    let none = accesses(|front| mirror(front, 0));
    let many = accesses(|front| (0..201).for_each(|_| mirror(front, 0)));
    // How often the status is looked at while front-ends come and go is a matter of time.
    let looks = 8;
    assert!(many <= none + looks + 200, "{none} and {many}");
}
