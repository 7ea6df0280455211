//! An operation as a future that owns what the kernel reads and writes.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::completion::outcome;
use crate::driver::Driver;
use crate::executor::Handle;
use crate::operation::Operation;
use crate::slot::{Abandoned, Key};

/// Something the kernel can do, with all the memory and descriptors it needs for it.
///
/// # Safety
///
/// Every pointer and descriptor in [`Request::operation`] must stay valid for as long as `self`
/// lives, wherever `self` is moved to: point into the heap or a mapping that `self` keeps, never
/// into `self`.
#[expect(unsafe_code, reason = "the contract that makes `Op` sound")]
pub(crate) unsafe trait Request: 'static {
    /// What awaiting it yields; gives back what it owned.
    type Output;

    /// What to ask; called until there is a slot for it, and not again.
    fn operation(&mut self) -> Operation;

    /// Turns the kernel's answer, or the ring's refusal, into the output.
    fn complete(self, result: io::Result<u32>) -> Self::Output;
}

/// A [`Request`] that points at no memory: it only keeps the owner of its descriptor.
pub(crate) struct Plain<K, T> {
    _kept: Rc<K>,
    operation: Operation,
    output: fn(u32) -> T,
}

impl<K, T> Plain<K, T> {
    /// Asks for `operation` on a descriptor of `kept`; `output` is made of the kernel's answer.
    pub(crate) fn new(kept: &Rc<K>, operation: Operation, output: fn(u32) -> T) -> Self {
        assert!(!operation.has_pointers(), "{operation:?} needs an owner");
        Self {
            _kept: kept.clone(),
            operation,
            output,
        }
    }
}

// SAFETY: `new` takes operations without pointers only; the descriptor is kept.
#[expect(unsafe_code, reason = "its operations point at nothing")]
unsafe impl<K: 'static, T: 'static> Request for Plain<K, T> {
    type Output = io::Result<T>;

    fn operation(&mut self) -> Operation {
        self.operation
    }

    fn complete(self, result: io::Result<u32>) -> Self::Output {
        result.map(self.output)
    }
}

/// A [`Request`] on its way. Submitted at the first poll; dropping it cancels it, and what it owns
/// is kept until the kernel has let go.
pub(crate) struct Op<T: Request> {
    driver: Rc<Driver>,
    reserve: bool,
    request: Option<T>,
    key: Option<Key>,
}

impl<T: Request> Op<T> {
    pub(crate) fn new(handle: &Handle, request: T) -> Self {
        Self {
            driver: handle.driver().clone(),
            reserve: handle.reserve(),
            request: Some(request),
            key: None,
        }
    }
}

impl<T: Request> Unpin for Op<T> {}

impl<T: Request> Future for Op<T> {
    type Output = T::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T::Output> {
        let this = self.get_mut();
        let request = this.request.as_mut().expect("not polled after completion");
        let Some(key) = this.key else {
            let operation = request.operation();
            // SAFETY: `request` owns what `operation` points at (its trait's contract), and goes
            // to `abandon` if this future is dropped before the completion.
            #[expect(unsafe_code, reason = "hands pointers to the kernel")]
            let submitted = ready!(unsafe { this.driver.submit(cx, &operation, this.reserve) });
            return match submitted {
                Ok(key) => {
                    this.key = Some(key);
                    Poll::Pending
                }
                Err(error) => Poll::Ready(this.finish(Err(error))),
            };
        };
        let result = ready!(this.driver.poll(key, cx));
        this.key = None;
        Poll::Ready(this.finish(outcome(result)))
    }
}

impl<T: Request> Op<T> {
    /// Asks for an early end; the completion is still to be awaited.
    pub(crate) fn cancel(&mut self) {
        if let Some(key) = self.key {
            self.driver.cancel(key);
        }
    }

    fn finish(&mut self, result: io::Result<u32>) -> T::Output {
        let request = self.request.take().expect("completed once");
        request.complete(result)
    }
}

impl<T: Request> Drop for Op<T> {
    #[inline]
    fn drop(&mut self) {
        if let Some(key) = self.key
            && let Some(request) = self.request.take()
        {
            self.driver.abandon(key, Box::new(Leftover(request)));
        }
    }
}

struct Leftover<T>(T);

impl<T: Request> Abandoned for Leftover<T> {
    fn finish(self: Box<Self>, result: i32) {
        // The output holds whatever the operation produced, a descriptor say: dropping closes it.
        drop(self.0.complete(outcome(result)));
    }
}
