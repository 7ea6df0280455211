//! A driver that keeps a disk busy: a fixed number of requests in flight on each queue, each laid
//! out once and sent again as soon as it came back. What came back together goes out together, with
//! one kick; it sleeps when nothing came back, and is called then. Its own work is a fraction of a
//! microsecond a request.

use std::hint::spin_loop;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vudev_frontend::block::{SECTOR, feature, kind};
use vudev_frontend::{Buffer, Builder, FrontEnd, Step, Token};

use crate::backend::Backend;
use crate::calls::Calls;
use crate::figures::Histogram;
use crate::run::{Run, Watch};

/// Nothing takes so long but what will never come.
const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of a request's header.
const HEADER: u32 = 16;

/// What is asked of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Whether it writes, and does not read.
    pub write: bool,
    /// Whether each request is where the last one ended, and not anywhere.
    pub sequential: bool,
    /// Bytes of a request.
    pub size: u32,
    /// Requests in flight on each queue.
    pub depth: u16,
    /// Queues in use.
    pub queues: u16,
    /// Regions of memory that the requests' data is spread over, each far from the others.
    pub regions: usize,
    /// What the driver does with its processor before it sends a request again.
    pub pause: Duration,
}

impl Default for Job {
    /// One random read of 4 KiB at a time.
    fn default() -> Self {
        Self {
            write: false,
            sequential: false,
            size: 4096,
            depth: 1,
            queues: 1,
            regions: 1,
            pause: Duration::ZERO,
        }
    }
}

/// A driver with its requests laid out.
pub struct Load {
    front: FrontEnd,
    job: Job,
    worker: u32,
    calls: Calls,
    /// Of each queue, by its token.
    slots: Vec<Vec<Slot>>,
    /// Requests of this size that the disk holds.
    places: u64,
    state: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    header: u64,
    status: u64,
    sent: Option<Instant>,
}

impl Load {
    /// Connects to `backend`, whose disk has `size` bytes.
    ///
    /// # Errors
    ///
    /// What is wrong with the back-end.
    pub fn new(backend: &Backend, size: u64, job: Job) -> Result<Self> {
        let Job {
            queues,
            size: length,
            ..
        } = job;
        let builder = memory(FrontEnd::connect(backend.socket()), job)
            .queues(queues)
            .queue_size(128)
            // As every guest does: else each write is made durable before it is complete.
            .features(feature::FLUSH);
        let mut front = builder.start()?;
        let calls = Calls::new()?;
        for queue in 0..queues {
            calls.add_queue(front.ring(queue))?;
        }
        let mut load = Self {
            front,
            job,
            worker: backend.worker(),
            calls,
            slots: vec![vec![Slot::default(); 128]; queues.into()],
            places: size / u64::from(length),
            state: 1,
        };
        load.lay_out()?;
        Ok(load)
    }

    fn lay_out(&mut self) -> Result<()> {
        let Job {
            write,
            size,
            depth,
            queues,
            regions,
            ..
        } = self.job;
        let memory = self.front.memory().clone();
        let count = usize::from(depth) * usize::from(queues);
        let region = |place: usize| place * regions / count;
        for queue in 0..queues {
            for number in 0..depth {
                let place = usize::from(queue) * usize::from(depth) + usize::from(number);
                // As in a guest, a request's parts lie apart.
                let (near, far) = (region(place), region(count - 1 - place));
                let header = memory.allocate_in(near, HEADER.into(), 16)?;
                let status = memory.allocate_in(near, 1, 1)?;
                let data = memory.allocate_in(far, size.into(), 4096)?;
                let kind = if write { kind::OUT } else { kind::IN };
                memory.write(header, &kind.to_le_bytes())?;
                let (head, data) = (Buffer::new(header, HEADER), Buffer::new(data, size));
                let tail = Buffer::new(status, 1);
                let ring = self.front.ring(queue);
                let Token(token) = if write {
                    ring.lay_out_chain(&[head, data], &[tail])?
                } else {
                    ring.lay_out_chain(&[head], &[data, tail])?
                };
                self.slots[usize::from(queue)][usize::from(token)] = Slot {
                    header,
                    status,
                    sent: None,
                };
            }
        }
        Ok(())
    }

    /// Does so many requests.
    ///
    /// # Errors
    ///
    /// When one fails, or does not come back.
    pub fn run(&mut self, requests: u64) -> Result<Run> {
        let mut progress = Progress {
            left: requests,
            finished: 0,
            latencies: Histogram::default(),
        };
        let watch = Watch::start(self.worker)?;
        let start = watch.started();
        for queue in 0..self.job.queues {
            let slots = self.slots[usize::from(queue)].clone();
            for (token, _) in (0..).zip(&slots).filter(|(_, slot)| slot.header != 0) {
                if progress.left > 0 {
                    progress.left -= 1;
                    self.send(queue, Token(token), start)?;
                }
            }
            self.front.ring(queue).kick()?;
        }
        while progress.finished < requests {
            let now = Instant::now();
            let before = progress.finished;
            for queue in 0..self.job.queues {
                self.take(queue, now, &mut progress)?;
            }
            if progress.finished == before && !self.came_meanwhile()? {
                self.calls.sleep(LIMIT)?;
            }
        }
        Ok(watch.stop(requests, progress.latencies)?)
    }

    /// Takes what has come back on a queue, once around at most, and sends it again.
    fn take(&mut self, queue: u16, now: Instant, progress: &mut Progress) -> Result<()> {
        let mut sent = false;
        for _ in 0..self.job.depth {
            let Some(used) = self.front.ring(queue).take_used()? else {
                break;
            };
            let slot = self.slots[usize::from(queue)][usize::from(used.token.0)];
            let mut status = [0];
            self.front.memory().read(slot.status, &mut status)?;
            let expected = if self.job.write { 1 } else { self.job.size + 1 };
            if status != [0] || used.written != expected {
                bail!(
                    "a request failed: status {status:?}, {} written",
                    used.written
                );
            }
            if let Some(sent) = slot.sent {
                progress.latencies.add(now.saturating_duration_since(sent));
            }
            progress.finished += 1;
            if progress.left > 0 {
                progress.left -= 1;
                self.send(queue, used.token, self.after_pause(now))?;
                sent = true;
            }
        }
        if sent {
            self.front.ring(queue).kick()?;
        }
        Ok(())
    }

    fn send(&mut self, queue: u16, token: Token, now: Instant) -> Result<()> {
        let place = self.next_place();
        let slot = &mut self.slots[usize::from(queue)][usize::from(token.0)];
        slot.sent = Some(now);
        let sector = place * u64::from(self.job.size) / SECTOR;
        let memory = self.front.memory();
        memory.write(slot.header + 8, &sector.to_le_bytes())?;
        // What no device writes.
        memory.write(slot.status, &[0xee])?;
        Ok(self.front.ring(queue).send(token)?)
    }

    /// When it is to be sent that came back at `now`.
    fn after_pause(&self, now: Instant) -> Instant {
        if self.job.pause.is_zero() {
            return now;
        }
        loop {
            let later = Instant::now();
            if later - now >= self.job.pause {
                return later;
            }
            spin_loop();
        }
    }

    fn next_place(&mut self) -> u64 {
        if self.job.sequential {
            self.state = (self.state + 1) % self.places;
            return self.state;
        }
        // Xorshift (Marsaglia 2003): cheap, and without a pattern that anybody reads ahead by.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.places
    }

    /// Asks to be called on all queues; whether something came before that was heard.
    fn came_meanwhile(&mut self) -> Result<bool> {
        let mut came = false;
        for queue in 0..self.job.queues {
            came |= self.front.ring(queue).want_call()?;
        }
        Ok(came)
    }
}

/// Room for the requests' parts and, in the first region, for a table of descriptors for each and
/// the rings. More regions than a table tells are told one by one.
fn memory(builder: Builder, job: Job) -> Builder {
    let requests = u64::from(job.depth) * u64::from(job.queues);
    let parts = u64::from(job.size) + 8192;
    let first = (requests * parts + (1 << 20)).next_multiple_of(2 << 20);
    let share = requests.div_ceil(job.regions as u64) + 1;
    let builder = (1..job.regions).fold(builder.memory(first), |builder, _| {
        builder.memory((share * parts).next_multiple_of(1 << 16))
    });
    if job.regions == 1 {
        return builder;
    }
    let mut steps = vec![
        Step::Features,
        Step::Protocol,
        Step::Owner,
        Step::SetFeatures,
        Step::MemoryRegions,
    ];
    steps.extend((0..job.queues).map(Step::WholeRing));
    builder.script(&steps)
}

/// How far a run is.
struct Progress {
    /// To be sent.
    left: u64,
    finished: u64,
    latencies: Histogram,
}
