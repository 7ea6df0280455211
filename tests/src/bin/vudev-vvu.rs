//! Drives a virtio-vhost-user function from inside a guest of the tests, and serves a device that
//! answers every chain with the complement of its bytes: the driver alone, without host or jail.
//!
//!     vudev-vvu ADDRESS SESSIONS
//!
//! It says `ready` when a front-end may come, `session` and how it ended after each, and ends after
//! so many.

use std::error::Error;
use std::process::ExitCode;
use std::rc::Rc;

use vudev_executor::Executor;
use vudev_transports::Session;
use vudev_transports::vvu::{Listener, MemoryPlacement, Opened, PciAddress};
use vudev_virtio::{Chain, Device, Identity, Queue, QueueError};

/// Queues of the device.
const QUEUES: u16 = 2;

/// Bytes of a chain that are answered at most.
const ANSWER_MAX: usize = 4096;

/// The device.
struct Complement;

impl Complement {
    fn answer(chain: &mut Chain) -> u32 {
        let mut bytes = [0; ANSWER_MAX];
        let len = chain
            .readable
            .len()
            .min(chain.writable.len())
            .min(ANSWER_MAX);
        let bytes = &mut bytes[..len];
        let copied = chain.readable.read(bytes).and_then(|()| {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
            chain.writable.write(bytes)
        });
        copied.map_or(0, |()| u32::try_from(len).unwrap_or(0))
    }
}

impl Device for Complement {
    fn identity(&self) -> Identity {
        Identity {
            device_id: 63,
            features: 0,
            queue_sizes: vec![256; usize::from(QUEUES)],
            config_size: 0,
            operations: 2,
        }
    }

    fn read_config(&self, _: usize, _: &mut [u8]) {}

    async fn serve(self: Rc<Self>, queue: Queue) -> Result<(), QueueError> {
        queue.serve(8, async |chain| Self::answer(chain)).await
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, address, sessions] = arguments.as_slice() else {
        eprintln!("usage: vudev-vvu ADDRESS SESSIONS");
        return ExitCode::from(2);
    };
    match run(address, sessions) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(address: &str, sessions: &str) -> Result<(), Box<dyn Error>> {
    let (address, sessions): (PciAddress, u32) = (address.parse()?, sessions.parse()?);
    let function = Rc::new(Opened::open(address)?.map()?);
    let executor = Executor::with_operations(64)?;
    let handle = executor.handle();
    let listener = Listener::new(handle, function, QUEUES, MemoryPlacement::default())?;
    println!("ready");
    executor.run(async {
        for _ in 0..sessions {
            let transport = listener.accept().await?;
            let session = Session::new(handle, transport, Rc::new(Complement));
            match session.run().await {
                Ok(()) => println!("session: left"),
                Err(error) => println!("session: {error}"),
            }
        }
        Ok(())
    })?
}
