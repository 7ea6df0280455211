//! The writable memory of several chains as one run of bytes. The chains are not made one by one:
//! of each its head, its place and its length are all that is kept. What lies around the run is
//! [`super::Framed`]'s; when chains come and go is the queue's.

use std::collections::VecDeque;
use std::mem;
use std::ptr;
use std::rc::Rc;

use libc::iovec;

use super::list::{BufferList, extends};
use super::{GuestMemory, MemoryError, ShortBuffers};
use crate::chain::Ledger;

/// `UIO_MAXIOV`: how many pieces one operation moves.
const PIECES_MAX: usize = 1024;

/// A chain of a run.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    pub(crate) head: u16,
    /// The free-running index in the available ring that it was taken from.
    pub(crate) position: u16,
    /// How many bytes can be written.
    pub(crate) bytes: u32,
}

/// What all chains of a run have in common.
struct Origin {
    memory: Rc<GuestMemory>,
    ledger: Rc<Ledger>,
}

/// Chains of one queue in one memory, in their order, and their bytes.
pub(crate) struct Run {
    chains: VecDeque<Link>,
    /// `None` of no chain: nothing is kept mapped then.
    of: Option<Origin>,
    /// So many bytes of the first chain are left out. Every chain has as many.
    skip: usize,
    /// Where those are: together, as nearly always, or in these pieces.
    left_out: Option<iovec>,
    scattered: Vec<iovec>,
    /// Bytes of the guest's that are not left out: those of the iovecs between ours.
    room: usize,
    /// What lies together in one region is one piece, for the kernel likes few: a driver cuts its
    /// buffers from larger pages.
    iovecs: Vec<iovec>,
    /// How many of the iovecs are our own, in front of the guest's and behind them.
    front: usize,
    behind: usize,
}

impl Run {
    /// No chains, between these.
    pub(super) fn between(head: Option<iovec>, tail: Option<iovec>, skip: usize) -> Self {
        let (front, behind) = (usize::from(head.is_some()), usize::from(tail.is_some()));
        Self {
            chains: VecDeque::new(),
            of: None,
            skip,
            left_out: None,
            scattered: Vec::new(),
            room: 0,
            iovecs: head.into_iter().chain(tail).collect(),
            front,
            behind,
        }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.chains.len()
    }

    #[inline]
    pub(super) fn room(&self) -> usize {
        self.room
    }

    #[inline]
    pub(super) fn iovecs(&self) -> &[iovec] {
        &self.iovecs
    }

    /// Whether chains of that account, in that memory, may come behind those that are here.
    #[inline]
    pub(crate) fn takes(&self, memory: &Rc<GuestMemory>, ledger: &Rc<Ledger>) -> bool {
        self.of
            .as_ref()
            .is_none_or(|of| Rc::ptr_eq(&of.memory, memory) && Rc::ptr_eq(&of.ledger, ledger))
    }

    /// Whether the chains, if there are any, are of that account.
    #[inline]
    pub(crate) fn is_of(&self, ledger: &Rc<Ledger>) -> bool {
        self.of
            .as_ref()
            .is_none_or(|of| Rc::ptr_eq(&of.ledger, ledger))
    }

    /// A list for the writable buffers of the next chain.
    #[inline]
    pub(crate) fn extend(&mut self) -> Extension<'_> {
        let begin = self.end();
        let last = begin.checked_sub(1).and_then(|last| self.iovecs.get(last));
        Extension {
            begin,
            last_len: last.map_or(0, |last| last.iov_len),
            bytes: 0,
            finished: false,
            run: self,
        }
    }

    /// The first iovec behind the guest's.
    #[inline]
    fn end(&self) -> usize {
        self.iovecs.len() - self.behind
    }

    /// How many of the first chains have so many bytes, what is left out counted too; all, if they
    /// have fewer.
    #[inline]
    pub(super) fn chains_for(&self, bytes: usize) -> usize {
        let mut left = bytes;
        let mut count = 0;
        for link in &self.chains {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(link.bytes as usize);
            count += 1;
        }
        count
    }

    /// Copies to the bytes that are left out, if there are as many.
    #[inline]
    pub(super) fn write_front<const N: usize>(&self, from: &[u8; N]) -> Result<(), ShortBuffers> {
        match self.left_out {
            Some(piece) if N <= piece.iov_len => {
                store(from, piece);
                Ok(())
            }
            _ => self.scatter(from),
        }
    }

    #[cold]
    fn scatter(&self, from: &[u8]) -> Result<(), ShortBuffers> {
        let available = if self.chains.is_empty() { 0 } else { self.skip };
        let Some(of) = self.of.as_ref().filter(|_| from.len() <= available) else {
            let wanted = from.len();
            return Err(ShortBuffers { wanted, available });
        };
        let mut rest = from;
        for piece in &self.scattered {
            let (part, after) = rest.split_at(piece.iov_len.min(rest.len()));
            let bytes = of.memory.bytes(piece.iov_base.addr(), part.len());
            bytes.copy_from(part);
            rest = after;
        }
        Ok(())
    }

    /// Copies from the front, with what is left out, as much as there is; how much that was.
    pub(super) fn peek(&self, into: &mut [u8]) -> usize {
        let Some(of) = &self.of else {
            return 0;
        };
        let guest = &self.iovecs[self.front..self.end()];
        let left_out = self.left_out.iter().chain(&self.scattered);
        let mut done = 0;
        for piece in left_out.chain(guest) {
            let count = piece.iov_len.min(into.len() - done);
            if count == 0 {
                break;
            }
            of.memory
                .bytes(piece.iov_base.addr(), count)
                .copy_to(&mut into[done..done + count]);
            done += count;
        }
        done
    }

    /// Takes the first chains out.
    #[inline]
    pub(crate) fn shift(&mut self, count: usize, mut each: impl FnMut(Link)) {
        let mut gone = 0;
        for _ in 0..count {
            let Some(link) = self.chains.pop_front() else {
                break;
            };
            gone += link.bytes as usize;
            each(link);
        }
        if gone == 0 {
            // None went, for each has bytes. What is left out is so still, and once is enough.
            return;
        }
        if self.chains.is_empty() {
            return self.clear();
        }
        match (self.left_out, self.iovecs.get_mut(self.front)) {
            // Of what is gone, a part was left out before, and as much is of what comes.
            (Some(_), Some(piece)) if gone < piece.iov_len => {
                let next = piece.iov_base.wrapping_byte_add(gone);
                self.left_out = Some(iovec {
                    iov_base: next.wrapping_byte_sub(self.skip),
                    iov_len: self.skip,
                });
                piece.iov_base = next;
                piece.iov_len -= gone;
                self.room -= gone;
            }
            _ => {
                self.pass(gone.saturating_sub(self.skip), |_| ());
                self.leave_out();
            }
        }
    }

    /// Takes all chains out, the last one first.
    pub(crate) fn take_back(&mut self, mut each: impl FnMut(Link)) {
        while let Some(link) = self.chains.pop_back() {
            each(link);
        }
        self.clear();
    }

    /// The first chain is here, of this account and in this memory.
    #[inline(never)]
    fn begin(&mut self, memory: &Rc<GuestMemory>, ledger: &Rc<Ledger>) {
        self.of = Some(Origin {
            memory: memory.clone(),
            ledger: ledger.clone(),
        });
        self.leave_out();
    }

    /// Forgets the memory of chains that are gone.
    fn clear(&mut self) {
        let end = self.end();
        self.iovecs.drain(self.front..end);
        self.left_out = None;
        self.scattered.clear();
        self.room = 0;
        self.of = None;
    }

    /// Leaves out the first bytes of the first chain.
    fn leave_out(&mut self) {
        let mut scattered = mem::take(&mut self.scattered);
        scattered.clear();
        self.pass(self.skip, |piece| scattered.push(piece));
        self.left_out = match scattered.len() {
            1 => scattered.pop(),
            _ => None,
        };
        self.scattered = scattered;
    }

    /// Moves past the first `count` bytes, which are there, and shows `each` piece of them.
    #[inline(never)]
    fn pass(&mut self, count: usize, mut each: impl FnMut(iovec)) {
        self.room -= count;
        let mut left = count;
        let mut gone = 0;
        for piece in &mut self.iovecs[self.front..] {
            let part = left.min(piece.iov_len);
            if part == 0 {
                break;
            }
            each(iovec {
                iov_len: part,
                ..*piece
            });
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            left -= part;
            gone += usize::from(piece.iov_len == 0);
        }
        self.iovecs.drain(self.front..self.front + gone);
    }
}

/// Copies to a piece of a run by a few words, whose number is known when this is compiled.
#[inline]
#[expect(unsafe_code, reason = "writes memory shared with the guest")]
fn store<const N: usize>(from: &[u8; N], to: iovec) {
    assert!(N <= to.iov_len, "the caller has looked");
    // SAFETY: as for the iovecs that the kernel is given (`Framed`): a piece of a run lies in a
    // region that the run keeps mapped. `from` is no part of it, for nobody has a reference to
    // guest memory. To be marked by hand once `DirtyLog` is more than nothing.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to.iov_base.cast(), N) };
    #[cfg(feature = "testing")]
    crate::testing::copies::count(N);
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Some(of) = &self.of {
            for link in &self.chains {
                of.ledger.chain_dropped(link.head);
            }
        }
    }
}

/// The writable buffers of a chain on their way into a run. What is not finished leaves it as it
/// was.
pub(crate) struct Extension<'r> {
    run: &'r mut Run,
    /// The guest's iovecs from this one on are the chain's, and so is what the one before has more
    /// than `last_len`.
    begin: usize,
    last_len: usize,
    bytes: usize,
    finished: bool,
}

impl Extension<'_> {
    /// The chain is the run's last; or, false, it cannot be: it has no room for what is left out of
    /// a first one, or there would be more pieces than an operation moves.
    #[inline]
    pub(crate) fn finish(
        mut self,
        head: u16,
        position: u16,
        memory: &Rc<GuestMemory>,
        ledger: &Rc<Ledger>,
    ) -> bool {
        let run = &mut *self.run;
        let Ok(bytes) = u32::try_from(self.bytes) else {
            return false;
        };
        if self.bytes < run.skip.max(1) || run.iovecs.len() > PIECES_MAX {
            return false;
        }
        self.finished = true;
        run.room += self.bytes;
        run.chains.push_back(Link {
            head,
            position,
            bytes,
        });
        if run.of.is_none() {
            run.begin(memory, ledger);
        }
        true
    }

    #[cold]
    fn undo(&mut self) {
        let end = self.run.end();
        self.run.iovecs.drain(self.begin..end);
        // What has come in is not more: one guest with giant chains does not hold memory for ever.
        self.run.iovecs.shrink_to(PIECES_MAX);
        let last = self.begin.checked_sub(1);
        if let Some(last) = last.and_then(|last| self.run.iovecs.get_mut(last)) {
            last.iov_len = self.last_len;
        }
    }
}

impl Drop for Extension<'_> {
    #[inline]
    fn drop(&mut self) {
        if !self.finished {
            self.undo();
        }
    }
}

impl BufferList for Extension<'_> {
    #[inline]
    fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    fn pieces(&self) -> usize {
        self.run.end() - self.begin
    }

    // A call costs as much as half of it.
    #[inline(always)]
    fn push_whole(&mut self, memory: &GuestMemory, address: u64, len: u32) -> bool {
        let Some((host, offset)) = memory.in_one(address, len.into()) else {
            return false;
        };
        self.push(host, offset, len as usize);
        true
    }

    #[cold]
    #[inline(never)]
    fn push_pieces(
        &mut self,
        memory: &GuestMemory,
        address: u64,
        len: u32,
    ) -> Result<(), MemoryError> {
        memory.pieces(address, len.into(), |region, offset, count| {
            self.push(region.host().wrapping_add(offset), offset, count);
        })
    }
}

impl Extension<'_> {
    #[inline]
    fn push(&mut self, host: *mut u8, offset: usize, count: usize) {
        self.bytes += count;
        let end = self.run.end();
        // The one before the guest's first is ours, and no part of a region.
        if end > self.run.front
            && let Some(last) = self.run.iovecs.get_mut(end - 1)
            && extends(last, host, offset)
        {
            last.iov_len += count;
            return;
        }
        let piece = iovec {
            iov_base: host.cast(),
            iov_len: count,
        };
        self.run.iovecs.insert(end, piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{GUEST_BASE, Guest};

    #[test]
    fn what_a_chain_in_too_many_pieces_was_listed_in_is_not_kept() {
        let memory = Guest::new(1 << 20).memory();
        let ledger = Ledger::new(0);
        let mut run = Run::between(None, None, 0);
        let mut list = run.extend();
        for at in 0..10_000 {
            assert!(list.push_whole(&memory, GUEST_BASE + 2 * at, 1));
        }
        assert_eq!(list.pieces(), 10_000);
        assert!(!list.finish(0, 0, &memory, &ledger));
        assert_eq!(run.iovecs.len(), 0);
        assert!(
            run.iovecs.capacity() <= PIECES_MAX,
            "{}",
            run.iovecs.capacity()
        );
    }
}
