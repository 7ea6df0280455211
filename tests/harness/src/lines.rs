//! Lines from a pipe or a terminal, each waited for with a deadline. It is not a general reader:
//! it exists so that no test can wait for ever.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::child::readable_before;

/// A test's other side that writes more than this without being read is broken.
const BYTES_MAX: usize = 16 << 20;

/// What came from a descriptor, cut into lines.
#[derive(Debug)]
pub struct Lines {
    fd: OwnedFd,
    complete: VecDeque<String>,
    partial: Vec<u8>,
    received: usize,
    ended: bool,
}

impl Lines {
    /// Reads from `fd`.
    pub fn new(fd: impl Into<OwnedFd>) -> Self {
        let (complete, partial) = (VecDeque::new(), Vec::new());
        Self {
            fd: fd.into(),
            complete,
            partial,
            received: 0,
            ended: false,
        }
    }

    /// The next line without its end, or `None` at the end of the stream.
    pub fn next(&mut self, deadline: Instant) -> Result<Option<String>> {
        loop {
            if let Some(line) = self.complete.pop_front() {
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            self.fill(deadline)?;
        }
    }

    /// Reads on until a line contains `wanted`, and returns that line.
    pub fn until(&mut self, wanted: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut last = Vec::new();
        loop {
            // A prompt has no line end, so what has come of the next line counts too.
            let partial = String::from_utf8_lossy(&self.partial);
            if self.complete.is_empty() && partial.contains(wanted) {
                let partial = partial.into_owned();
                self.partial.clear();
                return Ok(partial);
            }
            if self.complete.is_empty() && !self.ended {
                let partial = partial.into_owned();
                self.fill(deadline).map_err(|error| {
                    error.context(format!(
                        "waiting for {wanted:?}; what came was {last:?} and {partial:?}"
                    ))
                })?;
                continue;
            }
            match self.complete.pop_front() {
                Some(line) if line.contains(wanted) => return Ok(line),
                Some(line) => last.push(line),
                None => bail!("ended without {wanted:?}; what came was {last:?}"),
            }
        }
    }

    fn fill(&mut self, deadline: Instant) -> Result<()> {
        if !readable_before(&self.fd, deadline)? {
            bail!("nothing came in time");
        }
        let mut chunk = [0; 4096];
        match rustix::io::read(&self.fd, &mut chunk) {
            // A terminal whose other side is closed answers EIO (pty(7)).
            Ok(0) | Err(rustix::io::Errno::IO) => self.end(),
            Ok(count) => self.take(&chunk[..count])?,
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.received += bytes.len();
        if self.received > BYTES_MAX {
            bail!("more than {BYTES_MAX} bytes came");
        }
        for &byte in bytes {
            match byte {
                b'\n' => self.cut(),
                b'\r' => {}
                byte => self.partial.push(byte),
            }
        }
        Ok(())
    }

    fn end(&mut self) {
        self.ended = true;
        if !self.partial.is_empty() {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.complete
            .push_back(String::from_utf8_lossy(&self.partial).into_owned());
        self.partial.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe(contents: &[u8]) -> (Lines, OwnedFd) {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, contents).unwrap();
        (Lines::new(read), write)
    }

    #[test]
    fn lines_come_without_their_ends_and_the_last_needs_none() {
        let (mut lines, write) = pipe(b"one\r\ntwo\nthree");
        drop(write);
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut next = || lines.next(deadline).unwrap();
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next().as_deref(), Some("two"));
        assert_eq!(next().as_deref(), Some("three"));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_prompt_without_a_line_end_is_found() {
        let (mut lines, _write) = pipe(b"booting\nguest# ");
        assert_eq!(
            lines.until("guest#", Duration::from_secs(5)).unwrap(),
            "guest# "
        );
    }

    #[test]
    fn a_silent_other_side_is_an_error_that_says_what_came_last() {
        let (mut lines, _write) = pipe(b"hello\n");
        let error = lines
            .until("goodbye", Duration::from_millis(10))
            .unwrap_err();
        assert!(format!("{error:#}").contains("hello"), "{error:#}");
    }
}
