//! A device that never ends what it began: every wait for it is bounded. On a played clock, with a
//! transport that is a list of messages, so that seconds cost nothing.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

use vudev_executor::{Executor, Faults, Handle};
use vudev_frontend::{Buffer, GuestMemory, Ring};
use vudev_transports::message::{
    Body, Code, ConfigRequest, FeatureRequest, Header, Incoming, LifecycleRequest, MemoryRequest,
    Reply, Request, RingRequest, UserAddresses,
};
use vudev_transports::{Session, SessionError, Transport, TransportError};
use vudev_virtio::{Region, RegionLayout};

use crate::common::Stuck;

/// Messages come from a list here.
const WIRE: common::Wire = common::Wire::Socket;

/// Longer than every limit together.
const LONG: Duration = Duration::from_secs(120);

/// Messages one after the other, and what was answered.
struct Script {
    handle: Handle,
    messages: VecDeque<Request>,
    replies: Rc<RefCell<Vec<Body>>>,
    /// Whether the front-end leaves when it has said everything.
    leaves: bool,
}

impl Transport for Script {
    async fn recv(&mut self) -> Result<Option<Incoming>, TransportError> {
        // The device gets its turns between two messages.
        self.handle.sleep(Duration::from_millis(10)).await;
        match self.messages.pop_front() {
            Some(request) => Ok(Some(incoming(request))),
            None if self.leaves => Ok(None),
            None => pending().await,
        }
    }

    async fn reply(&mut self, reply: Reply) -> Result<(), TransportError> {
        self.replies.borrow_mut().push(reply.body);
        Ok(())
    }
}

/// A message that asks for an acknowledgement.
fn incoming(request: Request) -> Incoming {
    let code = match &request {
        Request::Feature(FeatureRequest::SetFeatures(_)) => Code::SetFeatures,
        Request::Feature(FeatureRequest::SetProtocolFeatures(_)) => Code::SetProtocolFeatures,
        Request::Memory(MemoryRequest::Add(_)) => Code::AddMemReg,
        Request::Memory(MemoryRequest::Remove(_)) => Code::RemMemReg,
        Request::Lifecycle(LifecycleRequest::ResetDevice) => Code::ResetDevice,
        Request::Ring {
            request: RingRequest::Base,
            ..
        } => Code::GetVringBase,
        Request::Config(ConfigRequest::Read { .. }) => Code::GetConfig,
        Request::Ring { .. } => Code::SetVringNum,
        Request::BackendChannel(_) => Code::SetBackendReqFd,
        Request::Feature(_) | Request::Memory(_) | Request::Lifecycle(_) | Request::Config(_) => {
            Code::SetOwner
        }
    };
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&code.number().to_ne_bytes());
    bytes[4..8].copy_from_slice(&0x9_u32.to_ne_bytes());
    Incoming {
        header: Header::parse(bytes).unwrap(),
        content: Ok(request),
    }
}

/// A driver with one chain in a ring of its own region, and a second region where its buffer lies.
struct Driver {
    memory: Rc<GuestMemory>,
    ring: Ring,
}

impl Driver {
    fn new() -> Self {
        let memory = Rc::new(GuestMemory::new());
        memory.add_region(0x10000).unwrap();
        memory.add_region(0x1000).unwrap();
        let mut ring = Ring::new(&memory, 0, 16).unwrap();
        let buffer = memory.allocate_in(1, 16, 1).unwrap();
        ring.add(&[], &[Buffer::new(buffer, 16)]).unwrap();
        Self { memory, ring }
    }

    fn layout(&self, number: usize) -> RegionLayout {
        self.memory.with_region(number, |layout, _| RegionLayout {
            guest_address: layout.guest_address,
            user_address: layout.user_address,
            size: layout.size,
            offset: layout.offset,
        })
    }

    fn region(&self, number: usize) -> Region {
        let file: OwnedFd = self
            .memory
            .with_region(number, |_, file| file.try_clone_to_owned().unwrap());
        Region::map(self.layout(number), file).unwrap()
    }

    /// Everything up to a running ring that is polled.
    fn start(&self) -> Vec<Request> {
        let addresses = self.ring.addresses().unwrap();
        let addresses = UserAddresses {
            descriptors: addresses.descriptors,
            available: addresses.available,
            used: addresses.used,
        };
        let error = self
            .ring
            .error_event()
            .as_fd()
            .try_clone_to_owned()
            .unwrap();
        let of_ring = |request| Request::Ring { index: 0, request };
        vec![
            Request::Feature(FeatureRequest::SetProtocolFeatures(u64::MAX)),
            Request::Feature(FeatureRequest::SetFeatures(1 << 32)),
            Request::Memory(MemoryRequest::Add(self.region(0))),
            Request::Memory(MemoryRequest::Add(self.region(1))),
            of_ring(RingRequest::SetSize(16)),
            of_ring(RingRequest::SetAddresses(addresses)),
            of_ring(RingRequest::SetError(Some(error.into()))),
            of_ring(RingRequest::SetKick(None)),
        ]
    }
}

struct Outcome {
    result: Result<(), SessionError>,
    device: Rc<Stuck>,
    replies: Vec<Body>,
    elapsed: Duration,
}

/// Runs a session with a device that is stuck. `stop_after` is when it is asked to stop.
fn run(messages: Vec<Request>, leaves: bool, stop_after: Duration) -> Outcome {
    let executor = Executor::simulated(1, Faults::default());
    let handle = executor.handle().clone();
    let replies = Rc::new(RefCell::default());
    let transport = Script {
        handle: handle.clone(),
        messages: messages.into(),
        replies: replies.clone(),
        leaves,
    };
    let device = Rc::new(Stuck::new());
    let session = Session::new(&handle, transport, device.clone());
    let stopper = session.stopper();
    let (result, elapsed) = executor
        .run(async {
            let begun = handle.now();
            let timer = {
                let handle = handle.clone();
                handle.clone().spawn(async move {
                    handle.sleep(stop_after).await;
                    stopper.stop();
                })
            };
            let result = session.run().await;
            drop(timer);
            (result, handle.now() - begun)
        })
        .unwrap();
    assert_eq!(device.taken.get(), 1, "the chain was taken");
    let replies = replies.take();
    Outcome {
        result,
        device,
        replies,
        elapsed,
    }
}

#[test]
fn a_ring_that_does_not_drain_is_not_answered_for() {
    let driver = Driver::new();
    for last in [
        Request::Ring {
            index: 0,
            request: RingRequest::Base,
        },
        Request::Lifecycle(LifecycleRequest::ResetDevice),
    ] {
        let mut messages = driver.start();
        messages.push(last);
        let outcome = run(messages, false, LONG);
        let error = outcome.result.unwrap_err().to_string();
        assert!(error.contains("did not end within 30s"), "{error}");
        assert!(
            outcome.elapsed < Duration::from_secs(33),
            "{:?}",
            outcome.elapsed
        );
        assert!(outcome.device.resets.get() > 0);
        assert_eq!(outcome.replies.len(), 8, "only the start was answered");
    }
}

#[test]
fn a_front_end_that_left_is_not_waited_for_without_end() {
    let outcome = run(Driver::new().start(), true, LONG);
    assert!(outcome.result.is_ok());
    assert!(
        outcome.elapsed < Duration::from_secs(33),
        "{:?}",
        outcome.elapsed
    );
    assert_eq!(outcome.device.resets.get(), 1);
}

#[test]
fn a_stop_from_outside_takes_a_second_at_most() {
    let begun = Duration::from_millis(500);
    let outcome = run(Driver::new().start(), false, begun);
    assert!(outcome.result.is_ok());
    assert!(
        outcome.elapsed < Duration::from_millis(1600),
        "{:?}",
        outcome.elapsed
    );
    assert_eq!(outcome.device.resets.get(), 1);

    // In the middle of another wait, too.
    let mut messages = Driver::new().start();
    messages.push(Request::Ring {
        index: 0,
        request: RingRequest::Base,
    });
    let outcome = run(messages, false, begun);
    assert!(
        outcome.elapsed < Duration::from_millis(1600),
        "{:?}",
        outcome.elapsed
    );
    let leaving = run(Driver::new().start(), true, begun);
    assert!(
        leaving.elapsed < Duration::from_millis(1600),
        "{:?}",
        leaving.elapsed
    );
}

#[test]
fn memory_that_a_stuck_ring_holds_is_removed_and_the_ring_given_up() {
    let driver = Driver::new();
    let mut messages = driver.start();
    messages.push(Request::Memory(MemoryRequest::Remove(driver.layout(1))));
    let outcome = run(messages, true, LONG);
    assert!(outcome.result.is_ok(), "{}", outcome.result.unwrap_err());
    assert_eq!(outcome.replies.len(), 9);
    assert!(
        outcome
            .replies
            .iter()
            .all(|body| *body == Body::Acknowledgement { done: true })
    );
    assert!(
        outcome.elapsed < Duration::from_secs(33),
        "{:?}",
        outcome.elapsed
    );
    driver.ring.wait_error(Duration::ZERO).unwrap();
}

#[test]
fn memory_that_a_stuck_ring_lies_in_is_removed_and_the_ring_given_up() {
    let driver = Driver::new();
    let mut messages = driver.start();
    messages.push(Request::Memory(MemoryRequest::Remove(driver.layout(0))));
    let outcome = run(messages, true, LONG);
    assert!(outcome.result.is_ok(), "{}", outcome.result.unwrap_err());
    assert_eq!(
        outcome.replies.last(),
        Some(&Body::Acknowledgement { done: true })
    );
    driver.ring.wait_error(Duration::ZERO).unwrap();
}
