//! Group commit: the first waiter syncs for all who wait, in its own thread, with no timer.
//!
//! A waiter that finds no sync under way becomes the leader and syncs everything published by then;
//! whoever arrives meanwhile waits and is covered by the next one. There is no flusher thread to hand
//! over to: waking a parked thread costs a good part of a sync.

use std::sync::Arc;

use crate::bug::planted;
use crate::error::{Error, Result};
use crate::sync::{Condvar, Mutex};

/// One group of waiters and the mark up to which their work is done.
///
/// A mark is any number that rises with the order of the work: a ticket, a timestamp, a sequence.
pub struct Group {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Everything up to here is done. Never goes back.
    done: u64,
    leading: bool,
    waiting: usize,
    failed: Option<Arc<Error>>,
}

impl Group {
    /// A group whose work is done up to `done`.
    pub fn new(done: u64) -> Group {
        let state = State {
            done,
            leading: false,
            waiting: 0,
            failed: None,
        };
        Group {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Returns once the mark covers `target`. `work` does everything there is to do and returns the
    /// mark it reached, which must cover what was published when it was called; it is called without
    /// the lock, never twice at a time, and never again after a failure.
    ///
    /// # Errors
    /// The failure of the work, for this and every later waiter that it did not cover.
    pub fn wait(&self, target: u64, work: impl Fn() -> Result<u64>) -> Result<u64> {
        let mut state = self.state.lock();
        loop {
            if state.done >= target {
                return Ok(state.done);
            }
            if let Some(cause) = &state.failed {
                return Err(cause.as_ref().clone());
            }
            if state.leading {
                state.waiting += 1;
                self.changed.wait(&mut state);
                state.waiting -= 1;
                continue;
            }
            state.leading = true;
            drop(state);
            let reached = work();
            state = self.state.lock();
            state.leading = false;
            match reached {
                Ok(done) => state.done = state.done.max(done),
                Err(_) if planted("group.swallow") => state.done = target,
                Err(error) => state.failed = Some(Arc::new(error)),
            }
            if state.waiting > 0 {
                self.changed.notify_all();
            }
        }
    }

    /// The mark.
    pub fn done(&self) -> u64 {
        self.state.lock().done
    }

    /// The failure that ended the group's work, if any.
    pub fn failed(&self) -> Option<Arc<Error>> {
        self.state.lock().failed.clone()
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
