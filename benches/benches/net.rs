//! Frames through the network card of a jailed `vudev`, over its socket, between a driver's buffers
//! and a tap in a network of its own: 64 bytes, 1500, and 64 KiB of TCP that is still to be cut,
//! each way. What nobody takes comes out: the network drops it.
//!
//! Beside it a bare loop of `readv` or `writev` on another tap, which is the kernel's part. It
//! moves the same frames through as much memory: out, each in turn from as many frames as the
//! driver has, behind a header that lies elsewhere; in, in turn into receive buffers that are as
//! many and as large, as many of them at once as the frame fills.
//!
//! Both by the clock, and by the processor time of whoever moves the frames, which is what says
//! most on a busy machine. For the latter all are on one processor: what a frame's maker left in
//! its cache is there for both. The device is there from its start on, so it knows, and does not
//! poll.
//!
//! Frames in are measured from where they wait in the tap and the driver gives the buffers for
//! them: who makes them is not measured, nor how the queue was started. By the clock the loop, too,
//! is on another processor than their maker.

use std::cell::{LazyCell, RefCell};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use criterion::{Criterion, Throughput};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::CpuSet;
use vudev_benches::contest::{Contest, ProcessorTime, Report};
use vudev_benches::processor::{Usage, move_to, one_of, others_of, own_set};
use vudev_devices::net::tap;
use vudev_frontend::net::{HEADER_SIZE, Header, feature};
use vudev_frontend::{Buffer, FrontEnd, LIMIT, Token};
use vudev_harness::{Vudev, VudevCommand};

#[path = "../../tests/tests/support/network.rs"]
mod network;

use network::{OTHER, Protocol, Wire, ip};

/// Promised: four fifths of the bare loop's frames.
const OF_THE_BARE: f64 = 1.25;

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Entries of a queue: the most that the device has.
const QUEUE_SIZE: u16 = 1024;
/// Frames out that the device has at a time.
const DEPTH: u16 = 256;
/// Bytes of a receive buffer: what Linux's driver has for small frames, and for large ones.
const SMALL: u32 = 1536;
const LARGE: u32 = 4096;

/// What Linux's driver cuts its receive buffers from.
const PAGES: u32 = 32 << 10;

/// Bytes of the longest frame with all its headers, where it is still to be cut.
const LONGEST: u32 = 12 + 14 + 8 + 65_535;

/// What a driver of Linux's takes.
const FEATURES: u64 = feature::CSUM
    | feature::HOST_TSO4
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::MRG_RXBUF;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    // A list needs no network.
    let listed = std::env::args().any(|argument| argument == "--list");
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("net.txt");
    if !listed && !network::enter() {
        report.line("needs root, /dev/net/tun and a network namespace");
        return Ok(report.close(&file)?);
    }
    let folder = tempfile::tempdir()?;
    // Not before it is wanted: the benchmarks may only be listed.
    let everywhere = own_set()?;
    let start = |clock| Ours::start(folder.path(), clock, everywhere).expect("vudev starts");
    let anywhere = LazyCell::new(|| start(Clock::Wall));
    let on_one = LazyCell::new(|| start(Clock::Processor));
    let ours = |clock| match clock {
        Clock::Wall => &*anywhere,
        Clock::Processor => &*on_one,
    };
    let bare = LazyCell::new(|| Bare::start(everywhere).expect("a tap"));
    for frame in [Frame::small(64), Frame::small(1500), Frame::large()] {
        for (way, clock) in [
            (Way::Out, Clock::Wall),
            (Way::Out, Clock::Processor),
            (Way::In, Clock::Wall),
            (Way::In, Clock::Processor),
        ] {
            Contest::new(format!("net {} {}{}", way.name(), frame.name, clock.name()))
                .moves(frame.throughput())
                .of("vudev", |times| {
                    let ours = ours(clock);
                    ours.run(&frame, way, times).expect("frames pass")
                })
                .of("bare loop", |times| {
                    bare.run(&frame, way, clock, times).expect("frames pass")
                })
                .promise("bare loop", OF_THE_BARE)
                .run(&mut criterion, &mut report);
        }
    }
    criterion.final_summary();
    report.close(&file)?;
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// From the driver to the tap.
    Out,
    In,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

#[derive(Clone, Copy)]
enum Clock {
    Wall,
    Processor,
}

impl Clock {
    /// Puts this thread where `everywhere` it is measured, and what it starts.
    fn place(self, everywhere: &CpuSet) -> Result<()> {
        let set = match self {
            Self::Wall => *everywhere,
            Self::Processor => one_of(everywhere),
        };
        Ok(move_to(&set, &[])?)
    }

    /// Receive buffers that the device is told of at a time. By the clock it works while the driver
    /// lays out the next ones, as with a driver that refills while frames come. On one processor
    /// that would be a switch to it and back, whose cost is not a frame's.
    fn told(self) -> usize {
        match self {
            Self::Wall => 64,
            Self::Processor => usize::MAX,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Wall => "",
            Self::Processor => ", processor time",
        }
    }
}

struct Frame {
    name: String,
    header: Header,
    bytes: Vec<u8>,
}

impl Frame {
    /// Of no protocol, to nobody.
    fn small(length: usize) -> Self {
        let mut bytes = vec![0x5a; length];
        bytes[..6].copy_from_slice(&OTHER);
        bytes[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
        Self {
            name: format!("{length} bytes"),
            header: Header::default(),
            bytes,
        }
    }

    fn large() -> Self {
        let (header, bytes) = network::large(Protocol::TCP4, 65_535, 1448);
        Self {
            name: "64 KiB of TCP".to_owned(),
            header,
            bytes,
        }
    }

    fn is_large(&self) -> bool {
        self.bytes.len() > 2048
    }

    fn throughput(&self) -> Throughput {
        match self.is_large() {
            true => Throughput::Bytes(self.bytes.len() as u64),
            false => Throughput::Elements(1),
        }
    }

    fn buffer_size(&self) -> u32 {
        if self.is_large() { LARGE } else { SMALL }
    }

    /// Receive buffers that it fills.
    fn buffers(&self) -> u64 {
        (self.bytes.len() + HEADER_SIZE).div_ceil(self.buffer_size() as usize) as u64
    }

    /// Whether a chain that came back with so many bytes is of one of these frames: another is the
    /// kernel's own.
    fn has(&self, written: u32) -> bool {
        let length = (self.bytes.len() + HEADER_SIZE) as u64;
        let size = u64::from(self.buffer_size());
        let written = u64::from(written);
        written == length % size || written == size && length >= size
    }

    /// Receive buffers that the device holds ready: what the longest frame fills.
    fn held(&self) -> u64 {
        LONGEST.div_ceil(self.buffer_size()).into()
    }

    /// Frames in that the rest of a full queue has buffers for.
    fn batch(&self) -> u64 {
        (u64::from(QUEUE_SIZE) - self.held()) / self.buffers()
    }
}

/// A tap that holds a batch, and a raw socket that fills it. The kernel sends nothing of its own.
fn make_tap(name: &str) -> Wire {
    network::tap(name, false);
    ip(&format!(
        "link set {name} txqueuelen {QUEUE_SIZE} arp off multicast off"
    ));
    Wire::on(name)
}

struct Ours {
    wire: Wire,
    vudev: Vudev,
    clock: Clock,
    everywhere: CpuSet,
    socket: std::path::PathBuf,
    /// The last driver, for samples of the same frames.
    driver: RefCell<Option<(String, Driver)>>,
}

impl Ours {
    fn start(folder: &Path, clock: Clock, everywhere: CpuSet) -> Result<Self> {
        let tap = match clock {
            Clock::Wall => "tap0",
            Clock::Processor => "tap2",
        };
        let wire = make_tap(tap);
        let socket = folder.join(tap);
        let program = Path::new(env!("CARGO_BIN_EXE_vudev-benched"));
        let options = format!("tap-name={tap}");
        let command = VudevCommand::of(program).device("net", &options, &socket);
        clock.place(&everywhere)?;
        Ok(Self {
            wire,
            vudev: command.start()?,
            clock,
            everywhere,
            socket,
            driver: RefCell::default(),
        })
    }

    fn run(&self, frame: &Frame, way: Way, times: u64) -> Result<Duration> {
        let name = format!("{} {}", way.name(), frame.name);
        let mut driver = self.driver.borrow_mut();
        if driver.as_ref().is_none_or(|(of, _)| *of != name) {
            // The device has one at a time.
            driver.take();
            let front = FrontEnd::connect(&self.socket).memory(32 << 20).queues(2);
            let front = front.queue_size(QUEUE_SIZE).features(FEATURES).start()?;
            *driver = Some((name, Driver::new(front, frame, way)?));
        }
        let Some((_, driver)) = &mut *driver else {
            bail!("there is a driver");
        };
        let worker = *self.vudev.devices()?.first().expect("vudev has a device");
        self.clock.place(&self.everywhere)?;
        let meter = || Meter::start(self.clock, worker);
        match way {
            Way::Out => driver.send(times, meter),
            Way::In => driver.receive(frame, &self.wire, times, self.clock.told(), meter),
        }
    }
}

/// The time that passes, or that a process uses.
enum Meter {
    Wall(Instant),
    Processor(Usage),
}

impl Meter {
    fn start(clock: Clock, process: u32) -> Result<Self> {
        Ok(match clock {
            Clock::Wall => Self::Wall(Instant::now()),
            Clock::Processor => Self::Processor(Usage::of(process)?),
        })
    }

    fn elapsed(&self) -> Result<Duration> {
        Ok(match self {
            Self::Wall(start) => start.elapsed(),
            Self::Processor(usage) => usage.since()?,
        })
    }
}

/// A driver whose buffers are laid out once.
struct Driver {
    front: FrontEnd,
    /// Chains that the device has not.
    free: Vec<Token>,
}

impl Driver {
    fn new(mut front: FrontEnd, frame: &Frame, way: Way) -> Result<Self> {
        let memory = front.memory().clone();
        let bytes = [&frame.header.bytes()[..], &frame.bytes].concat();
        let (count, ring) = match way {
            Way::Out => (DEPTH, front.ring(TRANSMIT)),
            Way::In => (QUEUE_SIZE, front.ring(RECEIVE)),
        };
        let lay_out = |at: u32| -> Result<Token> {
            if way == Way::In {
                let size = frame.buffer_size();
                // Linux's driver cuts them from pieces of 32 KiB, which lie anywhere.
                let align = if at.is_multiple_of(PAGES / size) {
                    2 * u64::from(PAGES)
                } else {
                    64
                };
                let buffer = Buffer::new(memory.allocate(size.into(), align)?, size);
                return Ok(ring.lay_out_chain(&[], &[buffer])?);
            }
            let length = u32::try_from(bytes.len())?;
            let buffer = Buffer::new(memory.allocate(length.into(), 64)?, length);
            memory.write(buffer.address, &bytes)?;
            Ok(ring.lay_out_chain(&[buffer], &[])?)
        };
        let free = (0..count.into()).map(lay_out).collect::<Result<_>>()?;
        let mut this = Self { front, free };
        if way == Way::In {
            this.post(frame.held(), usize::MAX)?;
        }
        Ok(this)
    }

    /// Sends so many frames, each chain again as soon as it is back.
    fn send(&mut self, times: u64, meter: impl Fn() -> Result<Meter>) -> Result<Duration> {
        let meter = meter()?;
        let (mut sent, mut back) = (0, 0);
        let ring = self.front.ring(TRANSMIT);
        while back < times {
            let more = usize::try_from(times - sent)?.min(self.free.len());
            for token in self.free.drain(..more) {
                ring.send(token)?;
                sent += 1;
            }
            ring.kick()?;
            let came = self.free.len();
            while let Some(used) = ring.take_used()? {
                self.free.push(used.token);
                back += 1;
            }
            if self.free.len() == came && !ring.want_call()? {
                ring.wait_call(LIMIT)?;
            }
        }
        meter.elapsed()
    }

    /// Receives so many, in batches that wait in the tap for their buffers. The device has buffers
    /// for the longest frame and no more, and reads one frame into those; then it waits, for it
    /// takes no other before it has as many again.
    fn receive(
        &mut self,
        frame: &Frame,
        wire: &Wire,
        times: u64,
        told: usize,
        meter: impl Fn() -> Result<Meter>,
    ) -> Result<Duration> {
        let header = frame.header.bytes();
        let mut took = Duration::ZERO;
        let mut left = times;
        while left > 0 {
            let batch = left.min(frame.batch());
            wire.send(&header, &frame.bytes);
            self.take_back(frame, 1)?;
            (0..batch).for_each(|_| wire.send(&header, &frame.bytes));
            let meter = meter()?;
            self.post((1 + batch) * frame.buffers(), told)?;
            self.take_back(frame, batch)?;
            took += meter.elapsed()?;
            left -= batch;
        }
        Ok(took)
    }

    /// Gives the device so many receive buffers, and tells it of so many at a time.
    fn post(&mut self, count: u64, told: usize) -> Result<()> {
        let ring = self.front.ring(RECEIVE);
        for (index, token) in self.free.drain(..usize::try_from(count)?).enumerate() {
            ring.send(token)?;
            if index % told == told - 1 {
                ring.kick()?;
            }
        }
        ring.kick()?;
        Ok(())
    }

    /// Waits until so many frames are in buffers.
    fn take_back(&mut self, frame: &Frame, frames: u64) -> Result<()> {
        let mut awaited = frames * frame.buffers();
        let ring = self.front.ring(RECEIVE);
        while awaited > 0 {
            while let Some(used) = ring.take_used()? {
                self.free.push(used.token);
                let ours = u64::from(frame.has(used.written));
                ensure!(awaited >= ours, "more frames came than were sent");
                awaited -= ours;
            }
            if awaited > 0 && !ring.want_call()? {
                ring.wait_call(LIMIT)?;
            }
        }
        Ok(())
    }
}

/// Until frames pass: those of the first moment after a tap was opened are lost, because the kernel
/// tells its interface of the carrier later (linkwatch).
fn wake(wire: &Wire, tap: &mut File) -> Result<()> {
    let frame = Frame::small(64);
    let deadline = Instant::now() + LIMIT;
    while !readable(tap)? {
        ensure!(Instant::now() < deadline, "no frame passes the tap");
        wire.send(&frame.header.bytes(), &frame.bytes);
    }
    while readable(tap)? {
        tap.read_exact(&mut vec![0; HEADER_SIZE + frame.bytes.len()])?;
    }
    Ok(())
}

/// Whether a frame is there soon.
fn readable(tap: &File) -> Result<bool> {
    let limit = Timespec::try_from(Duration::from_millis(20))?;
    let mut tap = [PollFd::new(tap, PollFlags::IN)];
    Ok(poll(&mut tap, Some(&limit))? > 0)
}

/// A tap, and nobody between it and its reader.
struct Bare {
    wire: Wire,
    tap: RefCell<File>,
    everywhere: CpuSet,
}

impl Bare {
    fn start(everywhere: CpuSet) -> Result<Self> {
        let wire = make_tap("tap1");
        let tap = tap::open("tap1", false)?;
        tap::use_virtio_header(&tap)?;
        tap::set_offloads(&tap, FEATURES)?;
        let mut tap = File::from(tap);
        wake(&wire, &mut tap)?;
        Ok(Self {
            wire,
            tap: RefCell::new(tap),
            everywhere,
        })
    }

    fn run(&self, frame: &Frame, way: Way, clock: Clock, times: u64) -> Result<Duration> {
        clock.place(&self.everywhere)?;
        let (wall, processor) = match way {
            Way::Out => self.write(frame, times)?,
            Way::In => self.read(frame, clock, times)?,
        };
        Ok(match clock {
            Clock::Wall => wall,
            Clock::Processor => processor,
        })
    }

    fn write(&self, frame: &Frame, times: u64) -> Result<(Duration, Duration)> {
        let header = frame.header.bytes();
        let frames = vec![frame.bytes.clone(); DEPTH.into()];
        let mut tap = self.tap.borrow_mut();
        let (start, used) = (Instant::now(), ProcessorTime::start());
        for (bytes, _) in frames.iter().cycle().zip(0..times) {
            let pieces = [IoSlice::new(&header), IoSlice::new(bytes)];
            let written = tap.write_vectored(&pieces)?;
            ensure!(written == HEADER_SIZE + bytes.len());
        }
        Ok((start.elapsed(), used.elapsed()))
    }

    /// In batches as the driver's, which wait in the tap before the clock runs. By the clock their
    /// maker is on another processor, as a device's driver is.
    fn read(&self, frame: &Frame, clock: Clock, times: u64) -> Result<(Duration, Duration)> {
        let (maker, reader) = match clock {
            Clock::Wall => (one_of(&self.everywhere), others_of(&self.everywhere)),
            Clock::Processor => (one_of(&self.everywhere), one_of(&self.everywhere)),
        };
        let (header, length) = (frame.header.bytes(), HEADER_SIZE + frame.bytes.len());
        let size = usize::try_from(frame.buffer_size())?;
        let mut buffers = vec![vec![0; size]; QUEUE_SIZE.into()];
        let mut pieces: Vec<_> = buffers.iter_mut().map(|it| IoSliceMut::new(it)).collect();
        let at_once = usize::try_from(frame.buffers())?;
        let mut tap = self.tap.borrow_mut();
        let (mut wall, mut processor) = (Duration::ZERO, Duration::ZERO);
        let mut left = times;
        while left > 0 {
            let batch = left.min(frame.batch());
            move_to(&maker, &[])?;
            (0..batch).for_each(|_| self.wire.send(&header, &frame.bytes));
            move_to(&reader, &[])?;
            let (start, used) = (Instant::now(), ProcessorTime::start());
            for (pieces, _) in pieces.chunks_exact_mut(at_once).zip(0..batch) {
                ensure!(tap.read_vectored(pieces)? == length);
            }
            wall += start.elapsed();
            processor += used.elapsed();
            left -= batch;
        }
        Ok((wall, processor))
    }
}
