//! How far anybody comes whose back-end does nothing of its own: the bare calls, the driver, and
//! the wake-ups of both. Not what ours does, or a peer.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::Result;
use vudev_benches::bare::{self, Blocks, Call, Places};
use vudev_benches::calls::Wait;
use vudev_benches::disk::{Image, Storage};
use vudev_benches::load::Job;
use vudev_benches::run::Run;
use vudev_benches::streams;

use crate::Effort;
use crate::line::Figures;

/// Calls that warm up, and tell how many fill a window.
const WARM_UP: u64 = 1000;

/// The limit of a disk, in the place where this thread may run: `pinned` if that is one processor,
/// which driver and back-end share. `driver_us` is what the driver has used for a request.
///
/// One request at a time: a bare thread makes the call for each, polling where that helps. Several:
/// the calls take their time and the driver its own, at once if there are processors for both.
/// Past the page cache: a bare ring keeps the disk as busy. `None` for several requests of
/// nothing, which take no call.
pub(crate) fn of_disk(
    effort: &Effort,
    image: &Image,
    storage: Storage,
    job: Job,
    pinned: bool,
    driver_us: f64,
) -> Result<Option<Figures>> {
    let mut call = match storage {
        Storage::Cached => block(image, job)?,
        Storage::Direct => return direct(effort, image, job).map(Some),
        Storage::Null => nothing(),
    };
    if job.depth == 1 {
        return one_at_a_time(effort, !pinned, Wait::Asleep, &mut call).map(Some);
    }
    if storage == Storage::Null {
        return Ok(None);
    }
    let alone = many(effort, &mut call)?;
    let each_us = match pinned {
        true => driver_us + alone.cpu_us,
        false => driver_us.max(alone.cpu_us),
    };
    Ok(Some(Figures {
        rate: 1e6 / each_us,
        ..alone
    }))
}

/// The limit of a stream. Several buffers at a time: the bare calls, or what the driver comes to
/// with a device of `nothing`, whichever is less.
pub(crate) fn of_stream(
    effort: &Effort,
    stream: &streams::Stream,
    job: streams::Job,
    nothing: Option<&Figures>,
) -> Result<Figures> {
    let mut call = (stream.bare.call)(job)?;
    if job.depth == 1 {
        return one_at_a_time(effort, true, job.wait, &mut call);
    }
    let requests = (stream.bare.requests)(job) as f64;
    let alone = many(effort, &mut call)?;
    let rate = alone.rate * requests;
    Ok(Figures {
        rate: nothing.map_or(rate, |nothing| rate.min(nothing.rate)),
        cpu_us: alone.cpu_us / requests,
        ..alone
    })
}

fn many(effort: &Effort, call: &mut Call) -> Result<Figures> {
    figures(effort, |times| Ok(bare::alone(times, call)?))
}

/// A thread that sleeps, or one that polls where it may, whichever is faster: who polls while
/// others want its processor loses it.
fn one_at_a_time(effort: &Effort, may_poll: bool, wait: Wait, call: &mut Call) -> Result<Figures> {
    let mut handed_over =
        |polls| figures(effort, |times| bare::handed_over(times, polls, wait, call));
    let sleeping = handed_over(false)?;
    if !may_poll || std::thread::available_parallelism()?.get() == 1 {
        return Ok(sleeping);
    }
    let polling = handed_over(true)?;
    Ok(match polling.rate > sleeping.rate {
        true => polling,
        false => sleeping,
    })
}

fn direct(effort: &Effort, image: &Image, job: Job) -> Result<Figures> {
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    let file = options.open(image.path())?;
    let blocks = Blocks {
        file: &file,
        size: job.size,
        depth: job.depth,
        write: job.write,
    };
    let mut places = Places::new(image.size(), job.size);
    figures(effort, |times| blocks.run(times, &mut places))
}

/// Measures once.
fn figures(effort: &Effort, mut run: impl FnMut(u64) -> Result<Run>) -> Result<Figures> {
    let warm = run(WARM_UP)?;
    Ok(Figures::from(&run(effort.fill(WARM_UP, warm.elapsed))?))
}

fn nothing() -> Call {
    Box::new(|| Ok(()))
}

/// A block in a random place of the file, one call; as many buffers in turn as there are requests
/// in flight, for a device cannot have them all in the processor's nearest cache either.
fn block(image: &Image, job: Job) -> Result<Call> {
    let file = File::options().read(true).write(true).open(image.path())?;
    let size = job.size as usize;
    let depth = usize::from(job.depth);
    let mut bytes = vec![0x5a; size * depth];
    let mut places = Places::new(image.size(), job.size);
    let mut turn = (0..depth).cycle();
    Ok(Box::new(move || {
        let at = places.choose();
        let start = turn.next().unwrap_or_default() * size;
        let buffer = &mut bytes[start..start + size];
        if job.write {
            rustix::io::pwritev(&file, &[IoSlice::new(buffer)], at)?;
        } else {
            rustix::io::preadv(&file, &mut [IoSliceMut::new(buffer)], at)?;
        }
        Ok(())
    }))
}
