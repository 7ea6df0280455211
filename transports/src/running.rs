//! A queue that runs as a task: how it is started, asked to stop, waited for and, when all else
//! fails, dropped. Shared by every way to a device. It knows no protocol.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use vudev_executor::{Handle, Notify, Task};
use vudev_virtio::{Device, QueueControl, QueueError, QueueParts};

/// How long a queue may take to finish what is in flight, before it is dropped. It is what Linux as
/// a guest gives one request of a disk: storage that needs longer has failed by the guest's own
/// measure.
pub(crate) const DRAIN_LIMIT: Duration = Duration::from_secs(30);

/// Resets a device whose queues have all been stopped or dropped.
pub(crate) async fn reset<D: Device>(handle: &Handle, device: &D) {
    // A queue that was dropped lets go of its device in the next turn.
    handle.yield_now().await;
    device.reset();
}

/// A running queue.
///
/// Its task's end is the proof that nothing of it is in flight, so what [`QueueControl`] says about
/// indices after that is the truth.
pub(crate) struct RunningQueue {
    control: QueueControl,
    task: Task<()>,
    life: Rc<Life>,
}

/// What the task tells the outside.
#[derive(Default)]
struct Life {
    stop_asked: Cell<bool>,
    ended: Cell<bool>,
}

impl RunningQueue {
    /// Starts a queue of `device`. `changed` is notified when it ends, by itself or because it was
    /// asked to.
    pub(crate) fn start<D: Device>(
        handle: &Handle,
        device: &Rc<D>,
        parts: QueueParts,
        changed: Rc<Notify>,
    ) -> Result<Self, QueueError> {
        let index = parts.index;
        let (queue, control) = vudev_virtio::Queue::start(handle, parts)?;
        let life = Rc::new(Life::default());
        let serving = {
            let (device, control, life) = (device.clone(), control.clone(), life.clone());
            async move {
                match device.serve(queue).await {
                    Ok(()) if life.stop_asked.get() => {}
                    Ok(()) => log::warn!("queue {index}: the device has stopped serving it"),
                    Err(error) => control.retire(&error),
                }
                life.ended.set(true);
                changed.notify();
            }
        };
        Ok(Self {
            control,
            task: handle.spawn(serving),
            life,
        })
    }

    /// The framework's end of the queue.
    pub(crate) fn control(&self) -> &QueueControl {
        &self.control
    }

    /// Whether the task has returned.
    pub(crate) fn has_ended(&self) -> bool {
        self.life.ended.get()
    }

    /// Whether it was asked to stop.
    pub(crate) fn is_asked_to_stop(&self) -> bool {
        self.life.stop_asked.get()
    }

    /// Asks the queue to take no more chains and to finish those it has.
    pub(crate) fn ask_to_stop(&self) {
        self.life.stop_asked.set(true);
        self.control.stop();
    }

    /// Waits until the task has returned. May be dropped and called again.
    pub(crate) async fn drained(&mut self) {
        if !self.has_ended() {
            (&mut self.task).await;
        }
    }

    /// Stops and waits, for as long as `limit`. `false`: something is still in flight. Dropped
    /// half-way it leaves a queue that is stopping, and may be called again.
    pub(crate) async fn stop(&mut self, handle: &Handle, limit: Duration) -> bool {
        self.ask_to_stop();
        handle.timeout(limit, self.drained()).await.is_some()
    }
}
