//! What a back-end answers, and the two back-ends behind one face.

use std::io;
use std::time::{Duration, Instant};

use crate::at_once;
use crate::operation::Operation;
use crate::registered::Registered;
use crate::ring::Ring;
use crate::simulation::Simulation;

/// One completion.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    /// What the operation was submitted with.
    pub(crate) user_data: u64,
    /// A count, or a negated errno.
    pub(crate) result: i32,
    /// Whether the operation will complete again.
    pub(crate) more: bool,
}

/// A count, or the error that a negated errno stands for.
#[inline]
pub(crate) fn outcome(result: i32) -> io::Result<u32> {
    u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(result.wrapping_neg()))
}

/// Who carries the operations out, and whose clock it is.
pub(crate) enum Backend {
    /// The kernel, through a ring.
    Kernel(Ring),
    /// A seeded play of it, for tests.
    Simulated(Simulation),
}

impl Backend {
    /// See [`Ring::push`].
    ///
    /// # Safety
    ///
    /// What `operation` points at must stay valid until its last completion is reaped.
    #[expect(unsafe_code, reason = "passes the ring's contract on")]
    #[inline]
    pub(crate) unsafe fn push(&mut self, user_data: u64, operation: &Operation) -> bool {
        match self {
            // SAFETY: the caller's contract.
            Self::Kernel(ring) => unsafe { ring.push(user_data, operation) },
            // SAFETY: the caller's contract.
            Self::Simulated(simulation) => unsafe { simulation.push(user_data, operation) },
        }
    }

    /// See [`at_once::call`].
    ///
    /// # Safety
    ///
    /// What `operation` points at must be valid now.
    #[inline]
    #[expect(unsafe_code, reason = "passes the contract on")]
    pub(crate) unsafe fn at_once(&mut self, operation: &Operation, wait: bool) -> i32 {
        match self {
            // SAFETY: the caller's contract.
            Self::Kernel(_) => unsafe { at_once::call(operation, wait) },
            // SAFETY: the caller's contract.
            Self::Simulated(simulation) => unsafe { simulation.at_once(operation, wait) },
        }
    }

    pub(crate) fn thread_sleeps(&self) -> u64 {
        match self {
            Self::Kernel(_) => at_once::thread_sleeps(),
            Self::Simulated(simulation) => simulation.thread_sleeps(),
        }
    }

    pub(crate) fn cancel(&mut self, user_data: u64) -> bool {
        match self {
            Self::Kernel(ring) => ring.cancel(user_data),
            Self::Simulated(simulation) => simulation.cancel(user_data),
        }
    }

    #[inline]
    pub(crate) fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Kernel(ring) => ring.enter(wait),
            Self::Simulated(simulation) => simulation.enter(wait),
        }
    }

    #[inline]
    pub(crate) fn next_completion(&mut self) -> Option<Completion> {
        match self {
            Self::Kernel(ring) => ring.next_completion(),
            Self::Simulated(simulation) => simulation.next_completion(),
        }
    }

    pub(crate) fn wants_enter(&mut self) -> bool {
        match self {
            Self::Kernel(ring) => ring.wants_enter(),
            Self::Simulated(simulation) => simulation.wants_enter(),
        }
    }

    /// Whether entries or completions wait for a turn.
    pub(crate) fn is_due(&mut self) -> bool {
        match self {
            Self::Kernel(ring) => ring.is_due(),
            Self::Simulated(simulation) => simulation.is_due(),
        }
    }

    /// Lets a moment pass between two looks at memory.
    pub(crate) fn pause(&mut self) {
        match self {
            Self::Kernel(_) => std::hint::spin_loop(),
            Self::Simulated(simulation) => simulation.pause(),
        }
    }

    #[inline]
    pub(crate) fn overflown(&mut self) -> bool {
        match self {
            Self::Kernel(ring) => ring.overflown(),
            Self::Simulated(_) => false,
        }
    }

    /// See [`Ring::register`]. A played ring pins nothing, and refuses nothing.
    pub(crate) fn register(&self, memory: &Registered) -> io::Result<()> {
        match self {
            Self::Kernel(ring) => ring.register(memory),
            Self::Simulated(_) => Ok(()),
        }
    }

    pub(crate) fn enable(&self) -> io::Result<()> {
        match self {
            Self::Kernel(ring) => ring.enable(),
            Self::Simulated(_) => Ok(()),
        }
    }

    pub(crate) fn now(&self) -> Instant {
        match self {
            Self::Kernel(_) => Instant::now(),
            Self::Simulated(simulation) => simulation.now(),
        }
    }

    pub(crate) fn random(&mut self) -> u64 {
        match self {
            Self::Kernel(_) => kernel_random(),
            Self::Simulated(simulation) => simulation.random(),
        }
    }
}

fn kernel_random() -> u64 {
    let mut bytes = [0; 8];
    // `getrandom` of up to 256 bytes cannot fail or be short once the pool is seeded; before that
    // (early boot) it waits.
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    assert_eq!(filled, Ok(bytes.len()), "getrandom gives eight bytes");
    u64::from_ne_bytes(bytes)
}
