//! A guard over blocking calls: whoever we signal can fill an eventfd so that our `write(2)` to it
//! never returns. A timer signal whose handler does nothing, without SA_RESTART, turns that into
//! EINTR. Not a timer for tasks: those are in `timer`.
//!
//! The timer is one-shot and lazy. It is armed by a call, if it is not armed yet, and by its own
//! handler while a call lasts; so it costs a busy loop one system call a period, and a loop that
//! calls nobody is not woken.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering, compiler_fence};
use std::sync::{Mutex, Once, PoisonError};

/// How long a call may block at most. One that blocks at all is to an eventfd that its owner has
/// filled: whoever waits for calls reads them.
const PERIOD_MS: i64 = 500;

/// What the handler sees. Never freed, for a signal may come late; used again, so that there are
/// only as many as there were loops at one time.
#[derive(Default)]
struct State {
    timer: AtomicPtr<libc::c_void>,
    calling: AtomicBool,
    armed: AtomicBool,
}

static UNUSED: Mutex<Vec<&'static State>> = Mutex::new(Vec::new());

/// The timer of one thread.
pub(crate) struct Watchdog {
    state: &'static State,
}

impl Watchdog {
    /// A timer that signals the calling thread.
    pub(crate) fn new() -> io::Result<Self> {
        install_handler()?;
        let unused = UNUSED.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let state = unused.unwrap_or_else(|| Box::leak(Box::default()));
        let timer = create_timer(ptr::from_ref(state).cast_mut().cast())?;
        state.timer.store(timer, Ordering::Relaxed);
        state.armed.store(false, Ordering::Relaxed);
        Ok(Self { state })
    }

    /// Runs `call`, which the kernel ends with EINTR if it blocks.
    pub(crate) fn guard<T>(&self, call: impl FnOnce() -> T) -> T {
        let State {
            timer,
            calling,
            armed,
        } = self.state;
        // The handler runs on this same thread, so the order of these lines is all it takes, and
        // no exchange: it either sees `calling` and arms, or has left `armed` false for us to see.
        calling.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        if !armed.load(Ordering::Relaxed) {
            armed.store(true, Ordering::Relaxed);
            arm(timer.load(Ordering::Relaxed));
        }
        let result = call();
        compiler_fence(Ordering::SeqCst);
        calling.store(false, Ordering::Relaxed);
        result
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let timer = self.state.timer.load(Ordering::Relaxed);
        // SAFETY: `timer` is a timer of ours, deleted once.
        #[expect(unsafe_code, reason = "libc call")]
        unsafe {
            libc::timer_delete(timer);
        }
        UNUSED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(self.state);
    }
}

#[expect(unsafe_code, reason = "libc call with pointers to locals")]
fn create_timer(argument: *mut libc::c_void) -> io::Result<libc::timer_t> {
    // SAFETY: all-zero is a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    event.sigev_notify = libc::SIGEV_THREAD_ID;
    event.sigev_signo = libc::SIGALRM;
    event.sigev_value.sival_ptr = argument;
    event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
    let mut timer = ptr::null_mut();
    // SAFETY: both pointers are to live locals.
    let made = unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
    if made == 0 {
        Ok(timer)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Async-signal-safe: one system call.
fn arm(timer: libc::timer_t) {
    let value = libc::timespec {
        tv_sec: PERIOD_MS / 1000,
        tv_nsec: PERIOD_MS % 1000 * 1_000_000,
    };
    let once = libc::itimerspec {
        it_interval: libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        },
        it_value: value,
    };
    // SAFETY: `once` is a live local. A timer that is gone gives EINVAL, which is as good.
    #[expect(unsafe_code, reason = "libc call")]
    unsafe {
        libc::timer_settime(timer, 0, &raw const once, ptr::null_mut());
    }
}

fn install_handler() -> io::Result<()> {
    static INSTALLED: Once = Once::new();
    let mut result = Ok(());
    INSTALLED.call_once(|| {
        // SAFETY: all-zero is a valid sigaction: no flags but those set here, an empty mask.
        #[expect(unsafe_code, reason = "installs a signal handler")]
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_alarm;
            action.sa_sigaction = handler as usize;
            // Without SA_RESTART: that is the point.
            action.sa_flags = libc::SA_SIGINFO;
            if libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) != 0 {
                result = Err(io::Error::last_os_error());
            }
        }
    });
    result
}

extern "C" fn on_alarm(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo. Only a timer's carries our pointer, and what it
    // points at is leaked, so it lives.
    #[expect(unsafe_code, reason = "reads what the kernel passed")]
    let state = unsafe {
        if (*info).si_code != libc::SI_TIMER {
            return;
        }
        let state: *const State = (*info).si_value().sival_ptr.cast();
        &*state
    };
    if state.calling.load(Ordering::Relaxed) {
        arm(state.timer.load(Ordering::Relaxed));
    } else {
        state.armed.store(false, Ordering::Relaxed);
    }
}
