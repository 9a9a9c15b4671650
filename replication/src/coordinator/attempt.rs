//! One attempt to change a record, which is known again by its nonce when its answer was lost.

use std::pin::Pin;
use std::task::Poll;

use super::codec::{self, Nonce};
use super::{Record, Version};
use crate::error::{Error, Result};

/// Most times that one attempt is sent before its outcome is unknown.
pub const SEND_COUNT_MAX: u32 = 4;
/// Between the first and the second time; each later pause is twice as long.
pub const PAUSE_MS: u64 = 50;

/// Random nonces. No two attempts of any node may have the same one.
pub type Nonces = Box<dyn FnMut() -> Nonce + Send>;

/// A request that failed: it may have been done, may still be, or never.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What happened.
    pub what: String,
    /// It fails always: the engine does not know such requests.
    pub is_unsupported: bool,
}

impl Failure {
    /// One that may go away.
    pub fn new(what: impl Into<String>) -> Failure {
        Failure {
            what: what.into(),
            is_unsupported: false,
        }
    }

    pub(super) fn error(self, name: &str) -> Error {
        Error::Coordinator {
            name: name.to_owned(),
            what: self.what,
        }
    }
}

/// What was sent, and would be sent again to the byte.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub expected: Version,
    pub nonce: Nonce,
    pub bytes: Vec<u8>,
}

impl Attempt {
    pub fn new(expected: Version, nonce: Nonce, record: &Record) -> Result<Attempt> {
        Ok(Attempt {
            expected,
            nonce,
            bytes: codec::encode(&nonce, record)?,
        })
    }
}

/// How long to wait before something is sent for the `n`th time, from 1.
pub(super) fn pause_ms(n: u32) -> u64 {
    PAUSE_MS << (n - 1)
}

/// All of some futures at once, on one thread.
pub(super) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    enum Slot<F: Future> {
        Open(Pin<Box<F>>),
        Done(Option<F::Output>),
    }
    let mut slots: Vec<_> = futures
        .into_iter()
        .map(|future| Slot::Open(Box::pin(future)))
        .collect();
    std::future::poll_fn(move |context| {
        let mut is_open = false;
        for slot in &mut slots {
            if let Slot::Open(future) = slot {
                match future.as_mut().poll(context) {
                    Poll::Ready(output) => *slot = Slot::Done(Some(output)),
                    Poll::Pending => is_open = true,
                }
            }
        }
        if is_open {
            return Poll::Pending;
        }
        let outputs = slots.iter_mut().filter_map(|slot| match slot {
            Slot::Done(output) => output.take(),
            Slot::Open(_) => None,
        });
        Poll::Ready(outputs.collect())
    })
    .await
}
