//! Group commit: the first waiter syncs for all who wait, in its own thread, with no timer.
//!
//! A waiter that finds no sync under way becomes the leader and syncs everything published by then;
//! whoever arrives meanwhile waits and is covered by the next one. There is no flusher thread to hand
//! over to: waking a parked thread costs a good part of a sync.
//!
//! Whom a sync has covered tends to write again at once. So where several were there the last time, the
//! next leader lets others run before it begins, until as many are there again or nobody comes any
//! more; otherwise every sync would carry the one or two who were awake first. A single writer never
//! waits.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use crate::bug::planted;
use crate::error::{Error, Result};
use crate::sync::{Mutex, Thread, current, park, yield_now};

/// Turns in a row that a leader gives to others without anybody coming: about as long as it takes to
/// wake a thread.
const TURNS_MAX: usize = if cfg!(loom) { 1 } else { 64 };

/// One group of waiters and the mark up to which their work is done.
///
/// A mark is any number that rises with the order of the work: a ticket, a timestamp, a sequence.
pub struct Group {
    state: Mutex<State>,
}

struct State {
    /// Everything up to here is done. Never goes back.
    done: u64,
    leading: bool,
    /// Who is parked. Taken off the list by whoever wakes them.
    waiters: Vec<Waiter>,
    /// How many were there when the last work ended: those that it covered and those that it did not.
    crowd: usize,
    failed: Option<Arc<Error>>,
}

struct Waiter {
    target: u64,
    thread: Thread,
}

impl Group {
    /// A group whose work is done up to `done`.
    pub fn new(done: u64) -> Group {
        let state = State {
            done,
            leading: false,
            waiters: Vec::new(),
            crowd: 0,
            failed: None,
        };
        Group {
            state: Mutex::new(state),
        }
    }

    /// Returns once the mark covers `target`. `work` does everything there is to do and returns the
    /// mark it reached, which must cover what was published when it was called; it is called without
    /// the lock, never twice at a time, and never again after a failure.
    ///
    /// # Errors
    /// The failure of the work, for this and every later waiter that it did not cover:
    /// [`Error::Panicked`] where it panicked.
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
                let thread = current();
                let id = thread.id();
                state.waiters.push(Waiter { target, thread });
                // A thread may also wake for no reason.
                while state.waiters.iter().any(|waiter| waiter.thread.id() == id) {
                    drop(state);
                    park();
                    state = self.state.lock();
                }
                continue;
            }
            state.leading = true;
            let crowd = state.crowd;
            drop(state);
            self.gather(crowd);
            // Whoever waits is told of a panic, too.
            let reached = catch_unwind(AssertUnwindSafe(&work));
            let (reached, panic) = match reached {
                Ok(reached) => (reached, None),
                Err(panic) => (Err(Error::Panicked), Some(panic)),
            };
            self.end(target, reached);
            if let Some(panic) = panic {
                resume_unwind(panic);
            }
            state = self.state.lock();
        }
    }

    /// Lets others run until `crowd` are there, the leader among them, or nobody comes any more.
    fn gather(&self, crowd: usize) {
        let (mut seen, mut turns) = (1, 0);
        while seen < crowd && turns < TURNS_MAX {
            yield_now();
            let here = 1 + self.state.lock().waiters.len();
            turns = if here > seen { 0 } else { turns + 1 };
            seen = here;
        }
    }

    /// Notes how far a leader's work has come, and wakes whom it covers and who leads next.
    fn end(&self, target: u64, reached: Result<u64>) {
        let mut state = self.state.lock();
        state.leading = false;
        match reached {
            Ok(done) => state.done = state.done.max(done),
            Err(_) if planted("group.swallow") => state.done = target,
            Err(error) => state.failed = Some(Arc::new(error)),
        }
        state.crowd = 1 + state.waiters.len();
        let (done, has_failed) = (state.done, state.failed.is_some());
        let mut woken = Vec::with_capacity(state.waiters.len());
        // Of those whom it does not cover one is enough: it leads, unless somebody was quicker.
        let mut leads = false;
        for waiter in std::mem::take(&mut state.waiters) {
            let is_covered = has_failed || waiter.target <= done;
            if is_covered || !std::mem::replace(&mut leads, true) {
                woken.push(waiter.thread);
            } else {
                state.waiters.push(waiter);
            }
        }
        drop(state);
        for thread in woken {
            thread.unpark();
        }
    }

    /// Begins nothing any more, and waits for what is under way. Who is not covered by that fails with
    /// `why`, unless an earlier failure counts.
    pub fn stop(&self, why: Error) {
        let mut state = self.state.lock();
        state.failed.get_or_insert_with(|| Arc::new(why));
        while state.leading {
            drop(state);
            yield_now();
            state = self.state.lock();
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
