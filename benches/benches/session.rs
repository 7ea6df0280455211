//! A session over a real socket, in this process: how fast messages are answered, and how long it
//! takes from connecting until the first request has come back. The front-end has a thread of its
//! own; its answers are beside those of two threads that only send each other bytes of the same
//! lengths, which is what the socket and the scheduler leave to anybody. No process is made and no
//! jail: that is `start`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use criterion::{Criterion, Throughput};
use vudev_benches::contest::{Contest, Report};
use vudev_executor::Executor;
use vudev_frontend::{Buffer, Connection, FrontEnd};
use vudev_transports::Session;
use vudev_transports::unix::Listener;
use vudev_virtio::{Device, Identity, Queue, QueueError};

/// Bytes of a question without payload, and of its answer of eight bytes.
const QUESTION: usize = 12;
const ANSWER: usize = 20;

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut report = Report::default();
    Contest::new("message")
        .moves(Throughput::Elements(1))
        .of("vudev", messages)
        .of("socket", bytes)
        .run(&mut criterion, &mut report);
    Contest::new("connect to first completion")
        .of("vudev", starts)
        .run(&mut criterion, &mut report);
    criterion.final_summary();
    report.close(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("session.txt"))?;
    Ok(())
}

/// Gives every chain back as it is.
struct Nothing;

impl Device for Nothing {
    fn identity(&self) -> Identity {
        Identity {
            device_id: 63,
            features: 0,
            queue_sizes: vec![128],
            config_size: 0,
            operations: 1,
        }
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        queue.serve(8, async |_| 0).await
    }
}

/// Serves so many front-ends, while `front_end` runs on a thread of its own.
fn serve(sessions: u64, front_end: impl FnOnce(&Path) -> Duration + Send + 'static) -> Duration {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("socket");
    let listening = UnixListener::bind(&path).expect("a socket");
    let front_end = aside(move || front_end(&path));
    let executor = Executor::with_operations(64).expect("a ring");
    let handle = executor.handle();
    let work = async {
        let listener = Listener::new(handle, listening.into());
        let device = Rc::new(Nothing);
        for _ in 0..sessions {
            let transport = listener.accept().await.expect("a front-end");
            let session = Session::new(handle, transport, device.clone());
            session.run().await.expect("it leaves by itself");
        }
    };
    executor.run(work).expect("a ring that works");
    front_end.join().expect("no panic")
}

#[expect(clippy::disallowed_methods, reason = "the other side of the socket")]
fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    std::thread::spawn(work)
}

/// Questions, each asked when the last one is answered.
fn messages(times: u64) -> Duration {
    serve(1, move |path| {
        let connection = Connection::open(path).expect("it listens");
        let start = Instant::now();
        for _ in 0..times {
            connection.features().expect("an answer");
        }
        start.elapsed()
    })
}

fn bytes(times: u64) -> Duration {
    let (mut asks, mut answers) = UnixStream::pair().expect("a pair");
    let answering = aside(move || {
        while answers.read_exact(&mut [0; QUESTION]).is_ok() {
            answers
                .write_all(&[0; ANSWER])
                .expect("the other side waits");
        }
    });
    let start = Instant::now();
    for _ in 0..times {
        asks.write_all(&[0; QUESTION])
            .expect("the other side reads");
        asks.read_exact(&mut [0; ANSWER]).expect("it answers");
    }
    let took = start.elapsed();
    drop(asks);
    answering.join().expect("no panic");
    took
}

/// From nothing to the first request's return, each time by another front-end.
fn starts(times: u64) -> Duration {
    serve(times, move |path| {
        let start = || {
            let start = Instant::now();
            let mut front = FrontEnd::connect(path).start().expect("it listens");
            let address = front.memory().allocate(16, 1).expect("room");
            let buffer = Buffer::new(address, 16);
            front
                .ring(0)
                .exchange(&[buffer], &[])
                .expect("it is served");
            start.elapsed()
        };
        (0..times).map(|_| start()).sum()
    })
}
