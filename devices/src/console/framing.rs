//! Output that is not written as it comes: with the time before each line, or a line a datagram.
//! The bytes are copied then, into one buffer that is written as a whole.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vudev_executor::{Bytes, IoBuffers};
use vudev_virtio::GuestBuffers;

use super::stamp::{self, STAMP_MAX};

/// The longest line that is one datagram; a longer one is several.
const LINE_MAX: usize = 1024;

/// What is written at once otherwise.
const BLOCK_MAX: usize = 16 * 1024;

/// Bytes taken from the guest at once.
const SCRATCH_BYTES: usize = 1024;

/// Facility "user", severity "informational" (RFC 3164, 4.1.1).
const PRIORITY: u8 = 8 + 6;

/// How output is cut into writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Framing {
    /// As it comes.
    Bytes,
    /// A line at once, with its end; for datagrams.
    Lines,
    /// A line at once, as syslog(3) sends it: `<14>Aug 19 11:22:33 TAG: text`.
    Syslog {
        /// Says whose line it is.
        tag: String,
    },
}

/// Where a framer takes bytes from.
pub(super) trait Source {
    /// Takes up to so many as `into` has; how many.
    fn take_bytes(&mut self, into: &mut [u8]) -> usize;
}

impl Source for GuestBuffers {
    fn take_bytes(&mut self, into: &mut [u8]) -> usize {
        let count = self.len().min(into.len());
        match self.read(&mut into[..count]) {
            Ok(()) => count,
            Err(_) => 0,
        }
    }
}

/// Makes frames of bytes. It holds at most one frame and [`SCRATCH_BYTES`].
pub(super) struct Framer {
    framing: Framing,
    timestamps: bool,
    frame: Vec<u8>,
    frame_max: usize,
    scratch: Box<[u8; SCRATCH_BYTES]>,
    /// What is left in the scratch.
    from: usize,
    to: usize,
    /// The next byte begins a line.
    at_line_start: bool,
    /// Bytes of the guest's in the frame.
    text: usize,
    spare: Option<Staged>,
    /// What a stop has left of a frame.
    unwritten: Option<Staged>,
}

impl Framer {
    /// `None` when bytes are written as they come.
    pub(super) fn new(framing: &Framing, timestamps: bool) -> Option<Self> {
        let needed = timestamps || *framing != Framing::Bytes;
        needed.then(|| Self::always(framing, timestamps))
    }

    /// A framer also where none is needed.
    pub(super) fn always(framing: &Framing, timestamps: bool) -> Self {
        let (prefix_max, frame_max) = match framing {
            Framing::Bytes => (STAMP_MAX, BLOCK_MAX),
            Framing::Lines => (STAMP_MAX, LINE_MAX + STAMP_MAX),
            Framing::Syslog { tag } => {
                let prefix = STAMP_MAX * 2 + tag.len();
                (prefix, LINE_MAX + prefix)
            }
        };
        Self {
            framing: framing.clone(),
            timestamps,
            frame: Vec::with_capacity(frame_max + prefix_max),
            frame_max,
            scratch: Box::new([0; SCRATCH_BYTES]),
            from: 0,
            to: 0,
            at_line_start: true,
            text: 0,
            spare: Some(Staged::new(frame_max + prefix_max)),
            unwritten: None,
        }
    }

    /// Takes bytes until there is a frame to be written: `true`; or there are no more. Of lines
    /// the last one may be unfinished then, and waits for its rest.
    pub(super) fn fill(&mut self, source: &mut impl Source) -> bool {
        if self.unwritten.is_some() {
            return true;
        }
        let now = stamp::now();
        loop {
            if self.from == self.to {
                self.to = source.take_bytes(&mut self.scratch[..]);
                self.from = 0;
                if self.to == 0 {
                    return self.framing == Framing::Bytes && !self.frame.is_empty();
                }
            }
            if self.absorb(now) {
                return true;
            }
        }
    }

    /// How long a line is that waits for its end, if there is one; it is a frame now.
    pub(super) fn finish_line(&mut self) -> Option<usize> {
        (self.text > 0).then_some(self.text)
    }

    /// The frame, to be written, and to be given back by [`Framer::written`] or
    /// [`Framer::take_back`].
    pub(super) fn take_frame(&mut self) -> Staged {
        if let Some(unwritten) = self.unwritten.take() {
            return unwritten;
        }
        if !matches!(self.framing, Framing::Bytes) {
            self.at_line_start = true;
        }
        let mut staged = (self.spare.take()).unwrap_or_else(|| Staged::new(self.frame.capacity()));
        staged.set(&self.frame);
        self.frame.clear();
        self.text = 0;
        staged
    }

    /// The frame's buffer is free again.
    pub(super) fn written(&mut self, staged: Staged) {
        self.spare = Some(staged);
    }

    /// What is left of the frame comes first when there is a way again.
    pub(super) fn take_back(&mut self, staged: Staged) {
        self.unwritten = Some(staged);
    }

    /// Takes a part of a line from the scratch; whether the frame is to be written.
    fn absorb(&mut self, now: Duration) -> bool {
        let is_syslog = matches!(self.framing, Framing::Syslog { .. });
        let is_stream = self.framing == Framing::Bytes;
        if self.at_line_start {
            if self.frame.len() + STAMP_MAX > self.frame_max {
                return true;
            }
            self.begin_line(now);
        }
        let room = self.frame_max.saturating_sub(self.frame.len());
        let rest = &self.scratch[self.from..self.to];
        let line = rest.iter().position(|byte| *byte == b'\n');
        let count = line.map_or(rest.len(), |end| end + 1).min(room);
        let part = &rest[..count];
        let ends = part.last() == Some(&b'\n');
        if is_syslog {
            let text = if ends { &part[..count - 1] } else { part };
            self.frame.extend(text.iter().map(|byte| printable(*byte)));
        } else {
            self.frame.extend_from_slice(part);
        }
        self.text += count;
        self.from += count;
        self.at_line_start = ends;
        let full = self.frame.len() >= self.frame_max;
        if is_stream { full } else { ends || full }
    }

    fn begin_line(&mut self, now: Duration) {
        self.at_line_start = false;
        if let Framing::Syslog { tag } = &self.framing {
            self.frame.extend_from_slice(b"<");
            self.frame
                .extend_from_slice(PRIORITY.to_string().as_bytes());
            self.frame.extend_from_slice(b">");
            stamp::write_short(now, &mut self.frame);
            self.frame.extend_from_slice(b" ");
            self.frame.extend_from_slice(tag.as_bytes());
            self.frame.extend_from_slice(b": ");
        }
        if self.timestamps {
            stamp::write_full(now, &mut self.frame);
        }
    }
}

/// A log is read by people and by parsers: what is no text is no part of a line.
fn printable(byte: u8) -> u8 {
    match byte {
        b'\r' => b' ',
        b'\t' | b' '..=b'~' | 0x80.. => byte,
        _ => b'?',
    }
}

/// Bytes on the heap on their way out, consumed from the front.
pub(super) struct Staged {
    /// `None` while an operation has them.
    bytes: Option<Bytes>,
    start: usize,
    end: usize,
}

impl Staged {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            bytes: Some(Bytes::zeroed(capacity)),
            start: 0,
            end: 0,
        }
    }

    /// Replaces the bytes; those beyond the capacity are not taken.
    pub(super) fn set(&mut self, from: &[u8]) {
        if let Some(bytes) = &mut self.bytes {
            let count = from.len().min(bytes.capacity());
            bytes.set_range(0..count);
            bytes.as_mut_slice().copy_from_slice(&from[..count]);
            (self.start, self.end) = (0, count);
        }
    }
}

/// What can be written, in as many parts as it takes.
pub(super) trait Outgoing {
    type Buffers: IoBuffers;

    /// Bytes left.
    fn remaining(&self) -> usize;

    /// Hands them to an operation.
    fn hand_out(&mut self) -> Self::Buffers;

    /// Takes them back, the first `written` of them written.
    fn take_back(&mut self, buffers: Self::Buffers, written: usize);
}

impl Outgoing for Staged {
    type Buffers = Bytes;

    fn remaining(&self) -> usize {
        self.end - self.start
    }

    fn hand_out(&mut self) -> Bytes {
        let mut bytes = self.bytes.take().unwrap_or_else(|| Bytes::zeroed(0));
        bytes.set_range(self.start..self.end);
        bytes
    }

    fn take_back(&mut self, bytes: Bytes, written: usize) {
        self.start = self.start.saturating_add(written).min(self.end);
        self.bytes = Some(bytes);
    }
}

impl Outgoing for GuestBuffers {
    type Buffers = Self;

    fn remaining(&self) -> usize {
        self.len()
    }

    fn hand_out(&mut self) -> Self {
        self.take()
    }

    fn take_back(&mut self, mut buffers: Self, written: usize) {
        // No more than there are.
        let _ = buffers.advance(written.min(buffers.len()));
        *self = buffers;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Source for &[u8] {
        fn take_bytes(&mut self, into: &mut [u8]) -> usize {
            let count = self.len().min(into.len());
            into[..count].copy_from_slice(&self[..count]);
            *self = &self[count..];
            count
        }
    }

    /// The frames of these bytes; what waits for its end comes last, after `|`.
    fn frames(framing: &Framing, timestamps: bool, bytes: &[u8]) -> Vec<String> {
        let mut framer = Framer::new(framing, timestamps).unwrap();
        let (mut source, mut frames) = (bytes, Vec::new());
        while framer.fill(&mut source) {
            frames.push(text(&mut framer));
        }
        if framer.finish_line().is_some() {
            frames.push(format!("|{}", text(&mut framer)));
        }
        frames
    }

    fn text(framer: &mut Framer) -> String {
        let mut staged = framer.take_frame();
        let bytes = staged.hand_out();
        let text = String::from_utf8_lossy(bytes.as_slice()).into_owned();
        let written = bytes.as_slice().len();
        staged.take_back(bytes, written);
        assert_eq!(staged.remaining(), 0);
        framer.written(staged);
        text
    }

    #[test]
    fn lines_are_datagrams_and_a_line_too_long_is_several() {
        let long = "x".repeat(3000);
        let all = frames(&Framing::Lines, false, format!("a\n\n{long}\nb").as_bytes());
        assert_eq!(all[..2], ["a\n", "\n"]);
        assert_eq!(all[2..all.len() - 1].concat(), format!("{long}\n"));
        assert_eq!(all.last().unwrap(), "|b");
        assert!(all.iter().all(|frame| frame.len() <= LINE_MAX + STAMP_MAX));
    }

    #[test]
    fn a_line_for_the_log_has_priority_time_and_tag_and_nothing_unprintable() {
        let tag = "vm-1".to_owned();
        let all = frames(
            &Framing::Syslog { tag },
            false,
            b"a\x1b[0m\0\tb\r\n\xc3\xa9\n",
        );
        assert_eq!(all.len(), 2);
        for (frame, end) in all.iter().zip([" vm-1: a?[0m?\tb ", " vm-1: \u{e9}"]) {
            assert!(frame.starts_with("<14>") && frame.ends_with(end), "{frame}");
            assert_eq!(frame.len(), "<14>Aug 19 11:22:33".len() + end.len());
        }
    }

    #[test]
    fn a_stamp_stands_before_each_line_and_nowhere_else() {
        let lines: String = (0..5000).map(|line| format!("line {line}\n")).collect();
        let all = frames(&Framing::Bytes, true, lines.as_bytes()).concat();
        for (number, line) in all.lines().enumerate() {
            let (stamp, text) = line.split_at(35);
            assert!(
                stamp.starts_with("[ 2") && stamp.ends_with(" ]: "),
                "{line}"
            );
            assert_eq!(text, format!("line {number}"));
        }
        assert_eq!(all.lines().count(), 5000);
        // A prompt is written before its line is whole.
        assert!(frames(&Framing::Bytes, true, b"login: ")[0].ends_with(" ]: login: "));
    }
}
