//! The receive queue: whoever is first in the hub's line gets the guest's next buffer. No buffer is
//! held while there is nothing for the guest.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use vudev_virtio::{Chain, Queue, QueueError};

use super::connection::{Connection, Lent};
use super::hub::{Hub, Work};
use super::packet::{HEADER_BYTES, HEADER_LENGTH, Header};

/// The most data in one packet to the guest: what Linux puts into one
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
const DATA_MAX: usize = 64 * 1024;

/// Serves the queue; `started` is told of its first chain.
pub(super) async fn serve(
    hub: &Hub,
    mut queue: Queue,
    started: impl Fn(&Chain),
) -> Result<(), QueueError> {
    hub.running.set(true);
    let result = give(hub, &mut queue, started).await;
    hub.running.set(false);
    // Transfers do not wait, so all buffers are soon back.
    while hub.settle(&queue) > 0 {
        hub.news.notified().await;
    }
    result
}

async fn give(hub: &Hub, queue: &mut Queue, started: impl Fn(&Chain)) -> Result<(), QueueError> {
    loop {
        hub.settle(queue);
        if !hub.has_work() {
            if queue.until_stop(hub.news.notified()).await.is_none() {
                return Ok(());
            }
            continue;
        }
        match buffer_or_news(hub, queue).await {
            None => {}
            Some(next) => match next? {
                Some(chain) => {
                    started(&chain);
                    dispatch(hub, queue, chain);
                }
                None => return Ok(()),
            },
        }
    }
}

/// The next buffer; `None` when buffers have come back first.
async fn buffer_or_news(hub: &Hub, queue: &mut Queue) -> Option<Result<Option<Chain>, QueueError>> {
    let mut next = pin!(queue.next());
    let mut news = pin!(hub.news.notified());
    poll_fn(|cx| match next.as_mut().poll(cx) {
        Poll::Ready(next) => Poll::Ready(Some(next)),
        Poll::Pending => news.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Uses a buffer for the first that has a use for it.
fn dispatch(hub: &Hub, queue: &Queue, chain: Chain) {
    if chain.writable.len() < HEADER_BYTES {
        log::debug!("a receive buffer of {} bytes", chain.writable.len());
        return queue.complete(chain, 0);
    }
    while let Some(work) = hub.next_work() {
        let connection = match work {
            Work::Reset(header) => return speak(queue, chain, &header),
            Work::Of(connection) => connection,
        };
        if connection.is_done() {
            continue;
        }
        let owed = connection.state.borrow_mut().next_owed();
        if let Some(header) = owed {
            if connection.wants_buffer() || connection.state.borrow().owes() {
                hub.enqueue(&connection);
            }
            return speak(queue, chain, &header);
        }
        let room = connection.state.borrow().room();
        if !connection.wants_buffer() {
            continue;
        }
        if room == 0 {
            // The guest has taken credit back, or ended this half: the connection looks again.
            connection.look_again();
            continue;
        }
        if chain.writable.len() == HEADER_BYTES {
            // No room for data: a packet that needs none.
            hub.enqueue(&connection);
            let header = connection.state.borrow_mut().update();
            return speak(queue, chain, &header);
        }
        return lend(hub, &connection, chain, room);
    }
    // Whoever was in line has gone.
    queue.put_back(chain);
}

fn speak(queue: &Queue, mut chain: Chain, header: &Header) {
    let written = match chain.writable.write(&header.bytes()) {
        Ok(()) => HEADER_LENGTH,
        Err(_) => 0,
    };
    queue.complete(chain, written);
}

fn lend(hub: &Hub, connection: &Rc<Connection>, mut chain: Chain, room: u32) {
    let data = chain.writable.split_off(HEADER_BYTES);
    let mut data = data.expect("there are more bytes than a header has");
    data.truncate(DATA_MAX.min(usize::try_from(room).unwrap_or(DATA_MAX)));
    hub.lend();
    connection.lend(Lent { chain, data });
}
