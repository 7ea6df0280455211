//! From the guest to the host: each packet's data goes into the socket in its turn, and what the
//! host does not take at once is kept and sent later. The ends of halves come behind it.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use vudev_executor::{Bytes, Half, Handle, Stream, Task};
use vudev_virtio::GuestBuffers;

use super::super::hub::Hub;
use super::super::turns::Place;
use super::{Connection, shut_down};
use crate::passing::{PAUSE, is_memory_lost, is_passing};

/// How long a program of the host may read nothing of what a guest that has ended its connection
/// sent before.
const LINGER_LIMIT: Duration = Duration::from_secs(60);

impl Connection {
    /// The guest has said yes: the program of the host hears so before anything else (the
    /// convention of Firecracker and cloud-hypervisor).
    pub(in super::super) async fn opened(self: &Rc<Self>, hub: &Hub) {
        let place = self.turns.place();
        if !place.wait().await {
            return;
        }
        let stream = self.stream.borrow().clone();
        let Some(stream) = stream else { return };
        let line = Bytes::from(format!("OK {}\n", self.ports.host).into_bytes());
        let length = line.as_slice().len();
        let (result, _line) = stream.send(line).await;
        match result {
            // Nothing was sent before it, so there is room.
            Ok(count) if count == length => self.changed.notify(),
            _ => hub.reset(self),
        }
    }

    /// Sends a packet's data to the host, in its turn: at once what there is room for, and the
    /// rest when the host reads. Whose turn it is sends what waits behind it along.
    pub(in super::super) async fn forward(self: &Rc<Self>, hub: &Rc<Hub>, data: &mut GuestBuffers) {
        let place = self.turns.place();
        let waits = (place.number(), data.take());
        self.waiting.borrow_mut().push_back(waits);
        let turn = place.wait().await;
        let all = self.take_waiting(&place);
        let (true, Some(mut data)) = (turn, all) else {
            return;
        };
        let stream = self.stream.borrow().clone();
        let Some(stream) = stream else { return };
        if self.backlog.borrow().is_empty() {
            let (result, rest) = stream.send(data).await;
            data = rest;
            match result {
                Ok(count) => {
                    self.count(hub, count);
                    let _ = data.advance(count);
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.lost_host(hub, &error),
            }
        }
        if data.is_empty() || self.turns.is_over() {
            return;
        }
        if !self.backlog.borrow_mut().append(&mut data) {
            // The credit that was given is the room that there is.
            log::error!("port {}: a backlog that overflows", self.ports.host);
            return hub.reset(self);
        }
        self.start_draining(hub, stream);
    }

    /// The data that waits in this place, if nobody took it along, with what waits right behind.
    fn take_waiting(&self, place: &Place<'_>) -> Option<GuestBuffers> {
        let mut waiting = self.waiting.borrow_mut();
        // Whoever was dropped while it waited has left its data here.
        while (waiting.front()).is_some_and(|(number, _)| *number < place.number()) {
            waiting.pop_front();
        }
        let (_, mut all) = waiting.pop_front_if(|(number, _)| *number == place.number())?;
        while let Some((number, more)) = waiting.pop_front_if(|it| it.0 == place.next()) {
            if let Err(more) = all.append(more) {
                waiting.push_front((number, more));
                break;
            }
            place.cover_next();
        }
        Some(all)
    }

    fn count(self: &Rc<Self>, hub: &Hub, bytes: usize) {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.state.borrow_mut().forwarded(bytes);
        hub.enqueue_if_owed(self);
    }

    /// Nobody reads on the host any more. What it still has to say is read on.
    fn lost_host(self: &Rc<Self>, hub: &Hub, error: &io::Error) {
        // A front-end's lost memory is not the host's fault, but no less the end of this.
        if is_memory_lost(error) {
            return hub.reset(self);
        }
        self.backlog.borrow_mut().clear();
        self.state.borrow_mut().host_receives_no_more();
        hub.enqueue_if_owed(self);
    }

    fn start_draining(self: &Rc<Self>, hub: &Rc<Hub>, stream: Stream) {
        let runs = self
            .draining
            .borrow()
            .as_ref()
            .is_some_and(|it| !it.is_finished());
        if runs {
            return;
        }
        let (connection, drains) = (self.clone(), hub.clone());
        let drain = async move { connection.drain(&drains, &stream).await };
        let task = hub.handle.spawn(drain);
        self.draining.replace(Some(task));
    }

    /// Sends the backlog whenever there is room, until nothing is left of it.
    async fn drain(self: &Rc<Self>, hub: &Hub, stream: &Stream) {
        let mut room = stream.room();
        loop {
            // What is wrong with the socket shows itself again in the transfer.
            if room.wait().await.is_err() {
                hub.handle.sleep(PAUSE).await;
            }
            let place = self.turns.place();
            if !place.wait().await {
                return;
            }
            let Some(bytes) = self.backlog.borrow_mut().take() else {
                return;
            };
            let (result, bytes) = stream.send(bytes).await;
            let sent = result.as_ref().map_or(0, |count| *count);
            self.backlog.borrow_mut().sent(bytes, sent);
            match result {
                Ok(_) => self.count(hub, sent),
                Err(error) if is_passing(&error) => {}
                Err(error) => return self.lost_host(hub, &error),
            }
            if self.backlog.borrow().is_empty() {
                return self.ended_by_guest(hub, stream).await;
            }
        }
    }

    /// The guest has ended a half, or both are to be: what it sent goes first.
    pub(in super::super) async fn ended(self: &Rc<Self>, hub: &Hub) {
        // The task that reads sees to the other half.
        self.changed.notify();
        let place = self.turns.place();
        if !place.wait().await {
            return;
        }
        let stream = self.stream.borrow().clone();
        if let Some(stream) = stream
            && self.backlog.borrow().is_empty()
        {
            self.ended_by_guest(hub, &stream).await;
        }
    }

    /// Tells the host that nothing more comes, if that is so.
    async fn ended_by_guest(&self, hub: &Hub, stream: &Stream) {
        if self.state.borrow().guest_sends_no_more() {
            let ended = shut_down(hub, &self.turns, stream, Half::Sending).await;
            // A host that is gone knows it.
            let _ = ended;
        }
    }

    /// The guest has ended both halves. It is answered once its data is with the host, or with us;
    /// what is with us goes on to the host for as long as that takes some of it now and then.
    pub(in super::super) async fn finished(self: &Rc<Self>, hub: &Rc<Hub>) {
        let was_there = hub.remove(self);
        self.silent.set(true);
        self.stop_reading();
        let place = self.turns.place();
        place.wait().await;
        if was_there {
            let reset = self.state.borrow().reset();
            hub.send_reset(reset);
        }
        drop(place);
        let draining = self.draining.take();
        if self.turns.is_over() || self.backlog.borrow().is_empty() {
            drop(draining);
            return self.end();
        }
        if let Some(draining) = draining {
            let (connection, handle) = (self.clone(), hub.handle.clone());
            hub.errand(async move { connection.linger(&handle, draining).await });
        }
    }

    async fn linger(&self, handle: &Handle, mut draining: Task<()>) {
        loop {
            let held = self.state.borrow().held();
            match handle.timeout(LINGER_LIMIT, &mut draining).await {
                None if self.state.borrow().held() < held => {}
                None => {
                    let held = self.state.borrow().held();
                    log::debug!("port {}: {held} bytes that nobody took", self.ports.host);
                    break;
                }
                Some(()) => break,
            }
        }
        drop(draining);
        self.end();
    }
}
