//! The device's way to host paths that it cannot reach itself: it names a target, the supervisor
//! connects to exactly the path that the target stands for, and the socket comes over the control
//! channel. The other half is [`crate::supervisor`]'s.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use futures_util::future::Either;
use rustix::io::Errno;

use crate::channel::Up;
use crate::channel::device::Channel;

/// Asks the supervisor for connections. Clones are the same one.
#[derive(Clone)]
pub struct Broker {
    asked: Rc<Asked>,
}

struct Asked {
    /// `None` reaches nothing.
    channel: Option<&'static Channel>,
    next_ticket: Cell<u32>,
    waiting: RefCell<HashMap<u32, Answer>>,
}

type Answer = futures_channel::oneshot::Sender<io::Result<OwnedFd>>;

impl Broker {
    /// A broker that reaches nothing: every connect is EPERM. For tests, and for devices in one's
    /// own process.
    pub fn unreachable() -> Self {
        Self::over(None)
    }

    pub(crate) fn new(channel: &'static Channel) -> Self {
        Self::over(Some(channel))
    }

    fn over(channel: Option<&'static Channel>) -> Self {
        Self {
            asked: Rc::new(Asked {
                channel,
                next_ticket: Cell::new(0),
                waiting: RefCell::default(),
            }),
        }
    }

    /// A socket connected to the target at this place of [`crate::Opened::reach`]; `number` is of
    /// a [`crate::Target::NumberedStream`], and nothing to the others. Blocking and close-on-exec.
    /// A future that is dropped gives the socket up.
    ///
    /// # Errors
    /// What `connect(2)` said: ECONNREFUSED or ENOENT when nobody listens; EAGAIN when the
    /// listener's backlog is full, or the supervisor is busy; EPERM for a target out of reach.
    pub fn connect(
        &self,
        target: u8,
        number: u32,
    ) -> impl Future<Output = io::Result<OwnedFd>> + 'static + use<> {
        let ticket = self.asked.next_ticket.get();
        self.asked.next_ticket.set(ticket.wrapping_add(1));
        let wish = Up::Connect {
            ticket,
            target,
            number,
        };
        let asked = match self.asked.channel {
            Some(channel) => channel.ask(&wish),
            None => Err(Errno::PERM.into()),
        };
        if let Err(error) = asked {
            return Either::Left(std::future::ready(Err(error)));
        }
        let (answer, answered) = futures_channel::oneshot::channel();
        self.asked.waiting.borrow_mut().insert(ticket, answer);
        Either::Right(async move {
            let gone = |_| Err(Errno::PIPE.into());
            answered.await.unwrap_or_else(gone)
        })
    }

    /// Hands an answer to whoever waits for it.
    pub(crate) fn connected(&self, ticket: u32, errno: i32, socket: Option<OwnedFd>) {
        let Some(answer) = self.asked.waiting.borrow_mut().remove(&ticket) else {
            return log::error!("control channel: an answer that nobody has asked for");
        };
        let answered = match (errno, socket) {
            (0, Some(socket)) => Ok(socket),
            (0, None) => Err(Errno::BADF.into()),
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        };
        // Whoever asked may not want it any more.
        let _ = answer.send(answered);
    }
}
