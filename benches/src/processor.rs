//! Whose processor time it was, and which processor. Only what `/proc` says: nothing is sampled.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// What the threads of a process had used of processors when it was looked at, the workers of its
/// ring among them: the kernel lists those as its threads.
#[derive(Debug)]
pub struct Usage {
    process: u32,
    threads: HashMap<i32, u64>,
}

impl Usage {
    /// Looks at a process.
    ///
    /// # Errors
    ///
    /// When it is gone.
    pub fn of(process: u32) -> io::Result<Self> {
        let mut used = HashMap::new();
        for thread in threads(process)? {
            let path = format!("/proc/{process}/task/{thread}/schedstat");
            // A thread may end meanwhile.
            let Ok(text) = fs::read_to_string(path) else {
                continue;
            };
            let first = text.split_whitespace().next();
            used.insert(
                thread,
                first.and_then(|time| time.parse().ok()).unwrap_or(0),
            );
        }
        Ok(Self {
            process,
            threads: used,
        })
    }

    /// What has been used since. A worker thread that has ended takes its part along: those end
    /// when they were idle for seconds.
    ///
    /// # Errors
    ///
    /// When the process is gone.
    pub fn since(&self) -> io::Result<Duration> {
        let now = Self::of(self.process)?;
        let more = now.threads.iter().map(|(thread, used)| {
            let before = self.threads.get(thread).copied().unwrap_or(0);
            used.saturating_sub(before)
        });
        Ok(Duration::from_nanos(more.sum()))
    }
}

/// What this thread has used of processors.
pub fn thread_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Where this thread may run.
///
/// # Errors
///
/// The kernel's.
pub fn own_set() -> io::Result<CpuSet> {
    Ok(sched_getaffinity(None)?)
}

/// Lets this thread and all threads of `processes` run on `set` only, and those they make.
///
/// # Errors
///
/// The kernel's.
pub fn move_to(set: &CpuSet, processes: &[u32]) -> io::Result<()> {
    sched_setaffinity(None, set)?;
    for &process in processes {
        for thread in threads(process)? {
            // One that has ended needs no place, and a ring's worker has its own.
            let _ = sched_setaffinity(Pid::from_raw(thread), set);
        }
    }
    Ok(())
}

/// The first processor of `set` alone.
pub fn one_of(set: &CpuSet) -> CpuSet {
    let mut one = CpuSet::new();
    if let Some(first) = (0..CpuSet::MAX_CPU).find(|&cpu| set.is_set(cpu)) {
        one.set(first);
    }
    one
}

/// The processors of `set` but the first, if there are others.
pub fn others_of(set: &CpuSet) -> CpuSet {
    let mut others = *set;
    if set.count() > 1
        && let Some(first) = (0..CpuSet::MAX_CPU).find(|&cpu| set.is_set(cpu))
    {
        others.unset(first);
    }
    others
}

fn threads(process: u32) -> io::Result<Vec<i32>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        threads.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(threads)
}
