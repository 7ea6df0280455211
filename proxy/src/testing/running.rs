//! A proxy in this process.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread::JoinHandle;

use futures_util::future::{Either, select};
use rustix::event::{EventfdFlags, eventfd};
use tempfile::TempDir;
use vudev_executor::{Executor, Kick};

use crate::{OPERATIONS, Parts, Proxy, SharedMemory};

/// A proxy in a thread of its own, until dropped.
pub struct Running {
    folder: PathBuf,
    /// Removed with it.
    own: Option<TempDir>,
    stop: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    /// Its sockets are in a folder of its own.
    pub fn start(shared_memory: SharedMemory) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut this = Self::start_in(own.path(), shared_memory);
        this.own = Some(own);
        this
    }

    /// Its sockets are `vfio` and `vhost` in this folder.
    #[expect(clippy::disallowed_methods, reason = "the proxy beside its two VMs")]
    pub fn start_in(folder: &Path, shared_memory: SharedMemory) -> Self {
        let listen = |name| UnixListener::bind(folder.join(name)).unwrap();
        let front_ends = listen("vhost").into();
        let parts = Parts {
            clients: listen("vfio").into(),
            shared_memory,
            identity: Default::default(),
            uuid: [7; 16],
        };
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let stopped = stop.try_clone().unwrap();
        let thread = std::thread::spawn(move || {
            let executor = Executor::with_operations(OPERATIONS).unwrap();
            let handle = executor.handle();
            let proxy = Proxy::new(handle, parts).unwrap();
            let mut stop = Kick::new(handle, stopped).unwrap();
            let end = executor.run(async {
                let (run, stop) = (pin!(proxy.run(front_ends)), pin!(stop.wait()));
                matches!(select(run, stop).await, Either::Right(_))
            });
            assert!(end.unwrap(), "the proxy has ended by itself");
        });
        Self {
            folder: folder.to_owned(),
            own: None,
            stop,
            thread: Some(thread),
        }
    }

    /// Where the VMM of a device VM connects.
    pub fn vfio(&self) -> PathBuf {
        self.folder.join("vfio")
    }

    /// Where front-ends connect.
    pub fn vhost(&self) -> PathBuf {
        self.folder.join("vhost")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).unwrap();
        let end = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            end.unwrap();
        }
    }
}
