//! Resource limits. RLIMIT_NPROC is left alone: the kernel makes io_uring workers for an fsync
//! already, and a user's limit counts every process of that user.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::StepError;

/// The limits that a process sets for itself, soft and hard, once; one that is above the hard limit
/// which it was started with stays at that. No core file is written, whatever is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Greatest number of open descriptors: what the other side can make us hold.
    pub open_files: u64,
    /// Bytes of locked memory, for what the process locks or pins from here on; a ring that has
    /// been made stays counted. `None` leaves the limit as it is.
    pub locked_memory: Option<u64>,
    /// Bytes of private writable memory, the heap above all; what others share with the process is
    /// not counted. `None` leaves the limit as it is.
    pub data: Option<u64>,
}

impl Default for Limits {
    /// 1024 descriptors, which is what most processes start with, no locked memory, and 1 GiB of
    /// memory of its own.
    fn default() -> Self {
        Self {
            open_files: 1024,
            locked_memory: Some(0),
            data: Some(1 << 30),
        }
    }
}

/// Sets them, soft and hard. A limit above the hard one that we came with is lowered to that:
/// nobody here may raise it.
pub(super) fn limit_resources(limits: Limits) -> Result<(), StepError> {
    // A core file would hold guest memory.
    limit(Resource::Core, 0, "RLIMIT_CORE")?;
    limit(Resource::Nofile, limits.open_files, "RLIMIT_NOFILE")?;
    limits.locked_memory.map_or(Ok(()), |bytes| {
        limit(Resource::Memlock, bytes, "RLIMIT_MEMLOCK")
    })?;
    limits
        .data
        .map_or(Ok(()), |bytes| limit(Resource::Data, bytes, "RLIMIT_DATA"))
}

fn limit(resource: Resource, wanted: u64, step: &'static str) -> Result<(), StepError> {
    let hard = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let value = Some(wanted.min(hard));
    setrlimit(
        resource,
        Rlimit {
            current: value,
            maximum: value,
        },
    )
    .map_err(StepError::at(step))
}
