//! The driver of a virtio-vhost-user function against functions of every kind that there are, and
//! against those that do what none may do: refused with a name, or served, and never in the way of
//! the next session.

#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests, outside of any #[test]"
)]

mod common;

use std::cell::{Cell, RefCell};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::{Either, join, select};
use proptest::collection::vec;
use proptest::prelude::*;
use vudev_executor::{Executor, Faults, Handle};
use vudev_frontend::message::{frame, long_words, request};
use vudev_frontend::{FrontEnd, RegionLayout};
use vudev_transports::message::{Body, Code, FeatureRequest, Incoming, Reply, Request};
use vudev_transports::vvu::software::{Defect, Farewell, Options, SoftwareFunction};
use vudev_transports::vvu::{
    DMA_ADDRESS, Function, FunctionError, Listener, MemoryPlacement, VvuTransport,
};
use vudev_transports::{Transport, TransportError};

use crate::common::{Mirror, Served, Wire, mirror, mirror_at, serve_function};

/// What the helpers take for granted.
const WIRE: Wire = Wire::Vvu;

/// Queues of the device in these tests.
const QUEUES: u16 = 2;

/// Bits of the status.
const BOTH_UP: u32 = 3;

/// Serves a mirror through a function built like this.
fn served(options: Options, script: impl FnOnce(&Path) + Send + 'static) -> Served<Mirror> {
    serve_function(options, |_| Mirror::new(), script)
}

fn both_rings(path: &Path) {
    let mut front = FrontEnd::connect(path).queues(2).start().unwrap();
    for _ in 0..3 {
        mirror(&mut front, 0);
        mirror(&mut front, 1);
    }
}

/// Asserts that a mirror answers through a function built like this.
fn assert_served(options: Options) {
    served(options, both_rings).assert_all_left();
}

#[test]
fn queues_share_a_vector_where_there_are_too_few() {
    assert_served(Options {
        vectors: 4,
        ..Options::default()
    });
}

#[test]
fn a_function_with_short_queues_of_its_own_is_served() {
    for queue_size in [2, 8, 16, 1024] {
        assert_served(Options {
            queue_size,
            ..Options::default()
        });
    }
}

#[test]
fn a_function_without_doorbells_for_errors_is_served() {
    assert_served(Options {
        max_vhost_queues: 2047,
        ..Options::default()
    });
}

#[test]
fn a_buffer_without_a_byte_is_a_farewell_as_well() {
    let options = Options {
        farewell: Farewell::EmptyBuffer,
        ..Options::default()
    };
    let served = served(options, |path| (0..3).for_each(|_| both_rings(path)));
    served.assert_all_left();
    assert_eq!(served.outcomes.len(), 3);
    assert_eq!(served.device.resets.get(), 3);
}

#[test]
fn memory_lies_where_each_kind_of_function_puts_it() {
    for (placement, regions) in [
        (MemoryPlacement::WholeFiles, 2),
        (MemoryPlacement::Regions, 2),
        // With more than one this layout makes no sense.
        (MemoryPlacement::FileOffsets, 1),
    ] {
        let options = Options {
            placement,
            ..Options::default()
        };
        let served = served(options, move |path| buffers_behind_an_offset(path, regions));
        served.assert_all_left();
    }
}

/// Shares the rings' own region, then in its place that and another of which only a part far behind
/// the file's beginning is shared.
fn buffers_behind_an_offset(path: &Path, regions: usize) {
    let mut front = FrontEnd::connect(path).start().unwrap();
    front.connection().set_acknowledge(true);
    mirror(&mut front, 0);
    if regions == 1 {
        return;
    }
    let memory = front.memory().clone();
    let more = memory.add_region(0x8000).unwrap();
    let buffer = memory.with_region(more, |layout, _| layout.guest_address + 0x5000);
    memory.with_regions(|all| {
        let (layout, file) = all[more];
        let part = RegionLayout {
            guest_address: layout.guest_address + 0x4000,
            user_address: layout.user_address + 0x4000,
            size: 0x2000,
            offset: layout.offset + 0x4000,
        };
        // The part first, so that what follows it lies behind its offset as well.
        let table = [(part, file), all[0]];
        front.connection().set_memory_table(&table).unwrap();
    });
    mirror_at(&mut front, 0, buffer, buffer + 8);
}

#[test]
fn memory_beyond_the_window_is_refused_and_what_fits_is_served() {
    let options = Options {
        shared_memory: 1 << 20,
        ..Options::default()
    };
    let served = served(options, |path| {
        let refused = FrontEnd::connect(path).memory((1 << 20) + 1).start();
        assert!(refused.is_err());
        let fitting = FrontEnd::connect(path).memory(1 << 20);
        mirror(&mut fitting.start().unwrap(), 0);
    });
    assert_eq!(served.outcomes.len(), 2);
    served.assert_all_left();
}

#[test]
fn a_request_costs_at_most_one_store_to_a_doorbell_and_no_other_access() {
    let accesses = |rounds: usize| {
        let count = Rc::new(RefCell::new(0));
        let options = Options::default();
        let script = move |path: &Path| {
            let mut front = FrontEnd::connect(path).start().unwrap();
            (0..rounds).for_each(|_| mirror(&mut front, 0));
        };
        common::serve_function_and_look(
            options,
            |_| Mirror::new(),
            script,
            |function| {
                *count.borrow_mut() = function.accesses();
            },
        )
        .assert_all_left();
        count.take()
    };
    // How often the status is looked at while front-ends come and go is a matter of time.
    let looks = 8;
    let (none, many) = (accesses(0), accesses(300));
    assert!(many <= none + looks + 300, "{none} and {many}");
}

fn with(defect: Defect) -> Options {
    Options {
        defect: Some(defect),
        ..Options::default()
    }
}

/// A function that nobody connects to.
fn function(handle: &Handle, options: Options) -> Rc<SoftwareFunction> {
    let directory = tempfile::tempdir().unwrap();
    let listening = UnixListener::bind(directory.path().join("socket")).unwrap();
    Rc::new(SoftwareFunction::new(handle, listening.into(), options).unwrap())
}

/// A driver that waits for front-ends at such a function, whose other side the test plays.
fn waiting(executor: &Executor, options: Options) -> (Handle, Rc<SoftwareFunction>, Listener) {
    let handle = executor.handle().clone();
    let function = function(&handle, options);
    let placement = MemoryPlacement::default();
    let listener = Listener::new(&handle, function.clone(), QUEUES, placement).unwrap();
    (handle, function, listener)
}

#[test]
fn a_function_that_cannot_be_used_is_refused_with_the_reason() {
    for (options, reason) in [
        (with(Defect::Offers(1)), "iommu_platform=on"),
        (with(Defect::Offers(2)), "VIRTIO_F_VERSION_1"),
        (
            with(Defect::RefusesFeatures),
            "does not accept the features",
        ),
        (with(Defect::Queues(1)), "no queue 1"),
        (with(Defect::VectorsUpTo(1)), "vector 2 for changes"),
        (with(Defect::VectorsUpTo(3)), "vector 4 for kicks"),
        (
            with(Defect::NotifyOffset(0x400)),
            "0x1000 of its queue notification",
        ),
        (with(Defect::NeverResets), "has not within 5s"),
    ] {
        // On a played clock: a reset is waited for.
        let executor = Executor::simulated(1, Faults::default());
        let (_, _, listener) = waiting(&executor, options);
        let accepted = executor.run(listener.accept()).unwrap();
        let error = accepted.err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_function_that_says_goodbye_without_end_is_asked_with_pauses() {
    let executor = Executor::simulated(1, Faults::default());
    let (handle, function, listener) = waiting(&executor, with(Defect::ForgetsBackend));
    let limit = Duration::from_secs(1);
    let accepted = executor.run(handle.timeout(limit, listener.accept()));
    assert!(accepted.unwrap().is_none());
    // It is set up a hundred times in this second, and not more often.
    let accesses = function.accesses();
    assert!((1000..10_000).contains(&accesses), "{accesses}");
}

#[test]
fn a_function_with_too_few_vectors_or_queues_is_refused_before_anybody_waits_at_it() {
    let too_few = [
        (
            Options {
                vectors: 3,
                ..Options::default()
            },
            "3 MSI-X vectors, and 4 is the least",
        ),
        (
            Options {
                max_vhost_queues: 1,
                ..Options::default()
            },
            "forwards 1 queues, and this device has 2",
        ),
    ];
    let executor = Executor::with_operations(8).unwrap();
    let handle = executor.handle();
    for (options, reason) in too_few {
        let function = function(handle, options);
        let refused = Listener::new(handle, function, QUEUES, MemoryPlacement::default());
        let error = refused.err().unwrap().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

/// A session with a function whose other side is played by the test.
struct Played {
    handle: Handle,
    function: Rc<SoftwareFunction>,
    transport: VvuTransport,
    /// Buffers that were given back.
    used: u16,
}

/// The receive queue in the DMA area: where its buffers are, and how large.
const BUFFERS: u64 = DMA_ADDRESS + 0x1000;
const BUFFER_SIZE: u64 = 0x1100;

impl Played {
    fn run<T>(play: impl AsyncFnOnce(Self) -> T) -> T {
        let executor = Executor::with_operations(32).unwrap();
        let (handle, function, listener) = waiting(&executor, with(Defect::Idle));
        let played = async {
            let mut accepting = pin!(listener.accept());
            // Set up, and waiting for a front-end.
            if let Either::Left((accepted, _)) = select(&mut accepting, handle.yield_now()).await {
                panic!("without a front-end: {:?}", accepted.err());
            }
            function.set_status(BOTH_UP);
            let transport = accepting.await.unwrap();
            play(Self {
                handle: handle.clone(),
                function: function.clone(),
                transport,
                used: 0,
            })
            .await
        };
        executor.run(played).unwrap()
    }

    /// Writes bytes into a buffer.
    fn fill(&self, buffer: u64, bytes: &[u8]) {
        let address = BUFFERS + buffer * BUFFER_SIZE;
        self.function.dma().write(address, bytes).unwrap();
    }

    /// Gives a buffer back.
    fn give_back(&mut self, queue: u16, buffer: u32, length: u32) {
        let ring = self.function.used_ring(queue);
        let slot = u64::from(self.used % 16);
        let mut entry = buffer.to_le_bytes().to_vec();
        entry.extend(length.to_le_bytes());
        self.function
            .dma()
            .write(ring + 4 + slot * 8, &entry)
            .unwrap();
        self.used = self.used.wrapping_add(1);
        self.set_used_index(queue, self.used);
    }

    fn set_used_index(&self, queue: u16, index: u16) {
        let ring = self.function.used_ring(queue);
        self.function
            .dma()
            .write(ring + 2, &index.to_le_bytes())
            .unwrap();
        self.function.interrupt_queue(queue);
    }

    async fn recv(&mut self) -> Result<Option<Incoming>, TransportError> {
        self.transport.recv().await
    }

    async fn error(&mut self) -> String {
        self.recv().await.unwrap_err().to_string()
    }
}

#[test]
fn a_message_is_a_buffer_and_the_buffer_goes_back() {
    Played::run(async |mut played| {
        // More than there are buffers, so that each comes again.
        for round in 0..40_u64 {
            let message = frame(request::SET_FEATURES, 1, &long_words(&[round]));
            let buffer = round % 16;
            played.fill(buffer, &message);
            played.give_back(0, u32::try_from(buffer).unwrap(), 20);
            let incoming = played.recv().await.unwrap().unwrap();
            let Ok(Request::Feature(FeatureRequest::SetFeatures(features))) = incoming.content
            else {
                panic!("{incoming:?}");
            };
            assert_eq!(features, round);
        }
    });
}

#[test]
fn a_function_that_lies_about_its_buffers_loses_its_session() {
    let fails = |lie: fn(&mut Played), part: &str| {
        let error = Played::run(async |mut played| {
            lie(&mut played);
            played.error().await
        });
        assert!(error.contains(part), "{error}");
    };
    fails(
        |played| played.set_used_index(0, 17),
        "17 buffers came back of 16",
    );
    fails(|played| played.set_used_index(0, 0xffff), "65535 buffers");
    fails(|played| played.give_back(0, 16, 20), "buffer 16 came back");
    fails(
        |played| played.give_back(0, u32::MAX, 20),
        "buffer 4294967295",
    );
    fails(
        |played| played.give_back(0, 0, 0x1101),
        "4353 bytes in a buffer of 4352",
    );
    fails(
        |played| played.give_back(0, 0, u32::MAX),
        "in a buffer of 4352",
    );
    fails(|played| played.give_back(0, 0, 5), "after 5 of 12 bytes");
    fails(
        |played| {
            played.fill(0, &frame(request::SET_FEATURES, 1, &long_words(&[0])));
            played.give_back(0, 0, 19);
        },
        "after 19 of 20 bytes",
    );
    fails(
        |played| {
            played.fill(0, &frame(request::GET_FEATURES, 1, &[]));
            played.give_back(0, 0, 0x1100);
        },
        "after 4352 of 12 bytes",
    );
    fails(|played| played.function.fail(), "wants a reset");
}

#[test]
fn a_buffer_that_comes_back_twice_is_found_out() {
    let answer = || Reply::to(Code::GetFeatures, Body::Number(7));
    let error = Played::run(async |mut played| {
        for _ in 0..2 {
            played.transport.reply(answer()).await.unwrap();
        }
        played.give_back(1, 0, 0);
        played.give_back(1, 0, 0);
        played.transport.reply(answer()).await.unwrap_err()
    });
    let unknown = FunctionError::UnknownBuffer {
        queue: 1,
        buffer: 0,
    };
    assert_eq!(error.to_string(), unknown.to_string());
}

#[test]
fn a_front_end_that_never_ends_its_messages_leaves_every_other_turn_to_others() {
    Played::run(async |mut played| {
        let turns = Rc::new(Cell::new(0));
        let other = {
            let (handle, turns) = (played.handle.clone(), turns.clone());
            played.handle.spawn(async move {
                loop {
                    turns.set(turns.get() + 1);
                    handle.yield_now().await;
                }
            })
        };
        for buffer in 0..16 {
            played.fill(buffer, &frame(request::GET_FEATURES, 1, &[]));
            played.give_back(0, u32::try_from(buffer).unwrap(), 12);
        }
        for message in 1..=16 {
            assert!(played.recv().await.unwrap().is_some());
            assert!(turns.get() >= message, "{} turns", turns.get());
        }
        drop(other);
    });
}

#[test]
fn what_was_said_before_the_farewell_is_heard() {
    for farewell in [0, 1, 2] {
        Played::run(async |mut played| {
            for buffer in 0..2 {
                played.fill(buffer, &frame(request::GET_FEATURES, 1, &[]));
                played.give_back(0, u32::try_from(buffer).unwrap(), 12);
            }
            played.function.set_status(farewell);
            for _ in 0..2 {
                assert!(played.recv().await.unwrap().is_some());
            }
            assert!(played.recv().await.unwrap().is_none(), "{farewell}");
            assert!(played.recv().await.unwrap().is_none(), "and stays so");
        });
    }
}

#[test]
fn an_answer_waits_for_a_buffer_and_not_for_a_front_end_that_has_left() {
    Played::run(async |mut played| {
        let answer = || Reply::to(Code::GetFeatures, Body::Number(7));
        for _ in 0..16 {
            played.transport.reply(answer()).await.unwrap();
        }
        // One comes back: one more fits.
        played.give_back(1, 5, 0);
        played.transport.reply(answer()).await.unwrap();
        played.function.set_status(0);
        let left = played.transport.reply(answer()).await;
        assert!(
            matches!(left, Err(TransportError::FrontEndLeft)),
            "{left:?}"
        );
    });
    let error = Played::run(async |mut played| {
        played.give_back(1, 5, 0);
        let answer = Reply::to(Code::GetFeatures, Body::Number(7));
        played.transport.reply(answer).await.unwrap_err()
    });
    let unknown = matches!(
        error,
        TransportError::Function(FunctionError::TooManyUsed { queue: 1, .. })
    );
    assert!(unknown, "{error}");
}

#[test]
fn an_answer_of_the_front_end_is_nothing_once_it_may_come() {
    let answer = frame(2, 5, &long_words(&[0]));
    Played::run(async |mut played| {
        played.fill(0, &frame(request::SET_BACKEND_REQ_FD, 1, &[]));
        played.fill(1, &answer);
        played.fill(2, &frame(request::GET_FEATURES, 1, &[]));
        for (buffer, length) in [(0, 12), (1, 20), (2, 12)] {
            played.give_back(0, buffer, length);
        }
        let channel = played.recv().await.unwrap().unwrap();
        assert!(matches!(channel.content, Ok(Request::BackendChannel(_))));
        let next = played.recv().await.unwrap().unwrap();
        assert!(matches!(
            next.content,
            Ok(Request::Feature(FeatureRequest::Features))
        ));
    });
}

#[test]
fn a_wait_for_a_front_end_may_be_given_up_and_begun_again() {
    let executor = Executor::with_operations(32).unwrap();
    let (handle, function, listener) = waiting(&executor, with(Defect::Idle));
    let accepted = executor.run(async {
        for _ in 0..3 {
            let limit = Duration::from_millis(1);
            assert!(handle.timeout(limit, listener.accept()).await.is_none());
        }
        let comes = async {
            handle.yield_now().await;
            function.set_status(BOTH_UP);
        };
        join(listener.accept(), comes).await.0
    });
    assert!(accepted.unwrap().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_used_ring_and_any_buffers_are_understood_or_refused(
        ring in vec(any::<u8>(), 4 + 16 * 8),
        used in prop_oneof![0_u16..20, any::<u16>()],
        plausible in any::<bool>(),
        bytes in vec(any::<u8>(), 0..400),
    ) {
        Played::run(async |mut played| {
            for buffer in 0..16 {
                played.fill(buffer, &bytes);
            }
            let mut ring = ring;
            if plausible {
                // Buffers that exist, of lengths that may be.
                for (number, entry) in (0..).zip(ring[4..].chunks_exact_mut(8)) {
                    entry[..4].copy_from_slice(&u32::to_le_bytes(number));
                    entry[6..].fill(0);
                }
            }
            let address = played.function.used_ring(0);
            played.function.dma().write(address, &ring).unwrap();
            played.set_used_index(0, used);
            for _ in 0..32 {
                let handle = played.handle.clone();
                let turns = async {
                    for _ in 0..4 {
                        handle.yield_now().await;
                    }
                };
                match select(pin!(played.transport.recv()), pin!(turns)).await {
                    Either::Left((Ok(Some(_)), _)) => {}
                    Either::Left((Ok(None) | Err(_), _)) | Either::Right(_) => break,
                }
            }
        });
    }
}
