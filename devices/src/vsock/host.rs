//! Programs of the host that connect to the guest: they say `CONNECT PORT`, and the answer is
//! `OK PORT` with the port that stands for them, the convention of Firecracker and
//! cloud-hypervisor. Whoever says something else, or nothing, is hung up on.

use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use vudev_executor::{Bytes, Socket, Stream};

use super::connection::Connection;
use super::hub::Hub;
use crate::passing::is_passing;

/// How long a program may take to say whom it wants.
const GREETING_LIMIT: Duration = Duration::from_secs(5);

/// The longest greeting: `CONNECT 4294967295` and its end of line, and some blanks.
const GREETING_MAX: usize = 32;

/// How long to wait after a failed accept: its causes (no descriptors, no memory) do not go away
/// at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes whoever comes.
pub(super) async fn listen(hub: Rc<Hub>, socket: Socket) {
    loop {
        match socket.accept().await {
            Ok(_) if !hub.running.get() => {
                log::debug!("a program of the host wants a guest, and there is none");
            }
            Ok(_) if hub.is_full() => {
                log::debug!("a program of the host beyond what connections there may be");
            }
            Ok(program) => {
                let stream = Stream::new(&hub.handle, program);
                let greeter = hub.clone();
                hub.errand(async move { greet(&greeter, stream).await });
            }
            Err(error) => {
                log::debug!("accept: {error}");
                hub.handle.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn greet(hub: &Rc<Hub>, stream: Stream) {
    let greeting = hub.handle.timeout(GREETING_LIMIT, hear(&stream)).await;
    let (port, early) = match greeting {
        Some(Ok(greeting)) => greeting,
        Some(Err(error)) => return log::debug!("a program of the host: {error}"),
        None => return log::debug!("a program of the host says nothing"),
    };
    // The guest may have gone meanwhile.
    if !hub.running.get() {
        return;
    }
    let connection = Connection::offered(hub, port, stream, early);
    hub.insert(&connection);
    hub.enqueue(&connection);
    let task = connection.clone().answered(hub.clone());
    connection.set_task(hub.handle.spawn(task));
}

/// The port of the greeting, and what was said behind it.
async fn hear(stream: &Stream) -> io::Result<(u32, Vec<u8>)> {
    let mut bytes = Bytes::zeroed(GREETING_MAX);
    let mut length = 0;
    loop {
        stream.readable().await?;
        bytes.set_range(length..GREETING_MAX);
        let (result, buffer) = stream.receive(bytes).await;
        bytes = buffer;
        let count = match result {
            Ok(0) => return Err(Errno::PIPE.into()),
            Ok(count) => count,
            Err(error) if is_passing(&error) => 0,
            Err(error) => return Err(error),
        };
        length += count;
        bytes.set_range(0..length);
        if let Some(greeting) = parse(bytes.as_slice())? {
            return Ok(greeting);
        }
        if length == GREETING_MAX {
            return Err(Errno::PROTO.into());
        }
    }
}

/// The port of a greeting and what is behind it; `None` while there is no whole line.
fn parse(bytes: &[u8]) -> Result<Option<(u32, Vec<u8>)>, Errno> {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return Ok(None);
    };
    let greeting = || {
        let line = std::str::from_utf8(&bytes[..end]).ok()?;
        let mut words = line.split_ascii_whitespace();
        let (word, port) = (words.next()?, words.next()?);
        let only_digits = port.bytes().all(|byte| byte.is_ascii_digit());
        if !word.eq_ignore_ascii_case("connect") || words.next().is_some() || !only_digits {
            return None;
        }
        Some((port.parse().ok()?, bytes[end + 1..].to_vec()))
    };
    greeting().map(Some).ok_or(Errno::PROTO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_is_one_line_with_a_port() {
        assert_eq!(parse(b"CONNECT 1024"), Ok(None));
        assert_eq!(parse(b"CONNECT 1024\n"), Ok(Some((1024, vec![]))));
        let early = Ok(Some((u32::MAX, b"early".to_vec())));
        assert_eq!(parse(b"connect 4294967295\nearly"), early);
        for wrong in [
            &b"\n"[..],
            b"CONNECT\n",
            b"CONNECT 4294967296\n",
            b"CONNECT -1\n",
            b"CONNECT +1\n",
            b"CONNECT 1 2\n",
            b"GET / HTTP/1.1\n",
            b"CONNECT \xff\n",
        ] {
            assert_eq!(parse(wrong), Err(Errno::PROTO), "{wrong:?}");
        }
    }
}
