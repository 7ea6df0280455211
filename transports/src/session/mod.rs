//! A front-end's session with a device: the only place where vhost-user has state. Not a wire, and
//! not a queue: a [`Transport`] brings whole messages, and each ring runs as a task of its own, so
//! that a session that waits (for a ring to drain, for memory to be let go of) holds up no other
//! ring.
//!
//! - Messages may come in any lawful order. A ring starts when the last thing it needs is there.
//! - A request that cannot be carried out is answered by a failing acknowledgement if the front-end
//!   asked for one (REPLY_ACK), and the session goes on. If it did not ask, it would go on in a
//!   false belief, and the connection ends.
//! - When the front-end leaves, rings are stopped and drained, the device is reset, and
//!   [`Session::run`] returns.

mod backend_channel;
mod error;
mod memory;
mod queue_setup;
mod rings;
mod state;

pub use error::{Reason, Refusal, RingError, SessionError};
pub use memory::MEMORY_SLOTS;

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, select};
use vudev_executor::{Handle, Latch};
use vudev_virtio::Device;

use self::state::State;
use crate::message::{Answer, Body, Code, Header, Incoming, Reply, Request};
use crate::running::{self, DRAIN_LIMIT};
use crate::transport::{Transport, TransportError};

/// How long queues may drain after [`Stopper::stop`]: half of the time in which the whole program
/// is to be gone.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// How many refusals of one connection are logged: a front-end can ask for more without end.
const REFUSALS_LOGGED_MAX: u32 = 16;

/// One front-end's use of a device, from its first message until it leaves.
pub struct Session<T, D> {
    transport: T,
    state: State<D>,
    stop: Rc<Latch>,
}

/// Ends a session from outside.
#[derive(Clone)]
pub struct Stopper(Rc<Latch>);

impl<T: Transport, D: Device> Session<T, D> {
    /// A session that has not begun. A device serves one session at a time.
    pub fn new(handle: &Handle, transport: T, device: Rc<D>) -> Self {
        let state = State::new(handle, device, transport.protocol_features());
        Self {
            transport,
            state,
            stop: Rc::new(Latch::new()),
        }
    }

    /// What ends this session from outside.
    pub fn stopper(&self) -> Stopper {
        Stopper(self.stop.clone())
    }

    /// Serves the front-end until it leaves or a [`Stopper`] is used; `Ok` means either. Queues are
    /// drained, as far as they can be in bounded time, and the device is reset before this returns.
    ///
    /// # Errors
    ///
    /// When the session had to be ended from this side.
    pub async fn run(self) -> Result<(), SessionError> {
        let Self {
            mut transport,
            mut state,
            stop,
        } = self;
        let outcome = {
            let served = pin!(serve(&mut transport, &mut state));
            match select(served, stop.wait()).await {
                Either::Left((outcome, _)) => outcome,
                Either::Right(((), _)) => Ok(()),
            }
        };
        // The connection is closed last: a front-end that has seen its end takes the used index of
        // that moment for the last word, and would send again what is completed after it.
        shut_down(state, &stop).await;
        drop(transport);
        outcome
    }
}

impl Stopper {
    /// Asks the session to stop. Safe to call at any time, and more than once.
    pub fn stop(&self) {
        self.0.set();
    }
}

/// Carries out one message after the other.
async fn serve<T: Transport, D: Device>(
    transport: &mut T,
    state: &mut State<D>,
) -> Result<(), SessionError> {
    let mut refusals = 0;
    while let Some(incoming) = next_message(transport, state).await? {
        let Incoming { header, content } = incoming;
        let outcome = match content {
            Ok(request) => carry_out(state, &header, request).await,
            Err(error) => Err(Refusal::Malformed(error)),
        };
        if let Err(refusal) = &outcome {
            refusals += 1;
            if refusals <= REFUSALS_LOGGED_MAX {
                log::warn!("refused: {refusal}");
            }
        }
        state.check_memory()?;
        let Some(body) = answer(state, &header, outcome)? else {
            continue;
        };
        match transport
            .reply(Reply {
                request: header.request(),
                body,
            })
            .await
        {
            Err(TransportError::FrontEndLeft) => break,
            sent => sent?,
        }
    }
    Ok(())
}

/// Waits for a message, and meanwhile for memory that is lost under a running ring.
async fn next_message<T: Transport, D: Device>(
    transport: &mut T,
    state: &State<D>,
) -> Result<Option<Incoming>, SessionError> {
    let mut receiving = pin!(transport.recv());
    loop {
        match select(&mut receiving, pin!(state.changed.notified())).await {
            Either::Left((received, _)) => return Ok(received?),
            Either::Right(((), _)) => state.check_memory()?,
        }
    }
}

async fn carry_out<D: Device>(
    state: &mut State<D>,
    header: &Header,
    request: Request,
) -> Result<Option<Body>, Refusal> {
    let denied = |reason| Refusal::Denied {
        message: header.name(),
        reason,
    };
    if let Some(code) = header.code() {
        state.allows(code.rule().gate).map_err(denied)?;
    }
    state.dispatch(request).await.map_err(denied)
}

/// What is said about an outcome, or the end of the session if nothing may be said about a failure.
fn answer<D: Device>(
    state: &State<D>,
    header: &Header,
    outcome: Result<Option<Body>, Refusal>,
) -> Result<Option<Body>, SessionError> {
    let asked = header.need_reply() && state.acknowledges();
    let rule = header.code().map(Code::rule);
    if let (Some(rule), Ok(reply)) = (rule, &outcome) {
        let expected = rule.answer != Answer::Acknowledgement;
        debug_assert_eq!(reply.is_some(), expected, "{}", rule.name);
    }
    let empty_for_no = rule
        .is_some_and(|rule| rule.answer == Answer::OwnOrEmpty && state.allows(rule.gate).is_ok());
    match outcome {
        Ok(Some(reply)) => Ok(Some(reply)),
        Ok(None) => Ok(asked.then_some(Body::Acknowledgement { done: true })),
        Err(refusal) if is_fatal(&refusal) => Err(refusal.into()),
        Err(_) if empty_for_no => Ok(Some(Body::NoConfig)),
        Err(_) if asked => Ok(Some(Body::Acknowledgement { done: false })),
        Err(refusal) => Err(refusal.into()),
    }
}

fn is_fatal(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Malformed(_) => false,
        Refusal::Denied { reason, .. } => reason.is_fatal(),
    }
}

/// Stops and drains all rings, gives up those that take too long, and resets the device.
async fn shut_down<D: Device>(mut state: State<D>, stop: &Latch) {
    let handle = state.handle.clone();
    let gave_up = async {
        if handle.timeout(DRAIN_LIMIT, stop.wait()).await.is_some() {
            handle.sleep(STOP_LIMIT).await;
        }
    };
    if let Either::Right(_) = select(pin!(state.drain_rings()), pin!(gave_up)).await {
        log::warn!("operations in flight did not end in time and are cancelled");
    }
    let device = state.device.clone();
    // With the queues that were given up.
    drop(state);
    running::reset(&handle, &*device).await;
}
