//! Commits that no thread waits for: a ticket is a future, of any executor, and one thread may have
//! thousands of them under way.
//!
//! | Step | Who |
//! |------|-----|
//! | a place in the log and in the memtable | whoever submits, before it has the ticket |
//! | the sync | `strandline-commit`, a thread of the database: one sync for all tickets there are |
//! | what followers confirm | whoever hears of it |

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::unless;

use crate::dataset::DatasetInner;
use crate::error::{Error, Result};
use crate::options::{Background, Durability};
use crate::store::Store;
use crate::store::write::Written;
use crate::token::WriteToken;

/// Most tickets that wait for their sync; who submits more syncs itself before it goes on.
const TICKET_COUNT_MAX: usize = 1 << 16;
/// How often it is looked for tickets whose time is up.
const PATIENCE: Duration = Duration::from_millis(50);

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Acked {
    /// The level that it has reached: the one that was asked for, or [`Durability::Disk`] where followers
    /// were too few or too slow and [`crate::AckPolicy::Degrade`] allows that.
    pub level: Durability,
    /// Names the write, for whoever reads elsewhere.
    pub token: WriteToken,
}

/// A write that is in the log and on its way to its level: a future of [`Acked`], for any executor.
///
/// A waker that it is polled with may be called by any thread of the database, and by one that closes it or
/// changes the dataset's role: it hands over to its executor, and calls nothing of the database.
///
/// Dropped, the write goes on, and nobody is told of it. It keeps no database open: where that is closed
/// first, the future ends with [`Error::Closed`], and the next open tells whether the write is there.
///
/// # Errors
/// The future's: [`Error::Unacknowledged`] where the write is durable here and its copies are unknown,
/// after [`crate::Options::ack_timeout_ms`]; [`Error::Fenced`]; those of
/// [`crate::WriteBatch::commit_with`].
#[must_use = "whether the write is acknowledged is told by the ticket alone"]
pub struct CommitTicket(Waiting);

/// Where the outcome of a ticket is put.
#[derive(Default)]
pub(crate) struct Slot(Mutex<State>);

#[derive(Default)]
struct State {
    outcome: Option<Result<Acked>>,
    waker: Option<Waker>,
}

impl Slot {
    /// Whether the outcome is there, or nobody wants it.
    pub fn is_done(&self) -> bool {
        self.0.lock().outcome.is_some()
    }

    /// Tells an outcome; the first one counts.
    pub fn complete(&self, outcome: Result<Acked>) {
        let mut state = self.0.lock();
        state.outcome.get_or_insert(outcome);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            // It is foreign code, and others wait for this thread.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

/// A write whose level was not reached yet.
#[derive(Clone)]
pub(crate) struct Pending {
    pub store: Arc<Store>,
    pub token: WriteToken,
    pub level: Durability,
    /// Per shard, the last sequence that must be confirmed.
    pub seqs: Arc<[u64]>,
    /// When it was submitted.
    pub since_ns: u64,
}

impl Pending {
    /// A batch that is published. With it, everything that was written before is to be confirmed.
    pub fn new(store: &Arc<Store>, written: &Written, level: Durability) -> Pending {
        let seqs = match level.follower_count() {
            0 => Vec::new(),
            _ => store.watermarks().published().seqs,
        };
        Pending {
            store: Arc::clone(store),
            token: WriteToken::new(store, written.shard, written.seq, written.timestamp),
            level,
            seqs: seqs.into(),
            since_ns: store.env().clock.mono_ns(),
        }
    }

    /// Everything that was written so far.
    #[cfg(test)]
    pub fn all(store: &Arc<Store>, level: Durability) -> Pending {
        let mark = store.watermarks().published();
        let written = Written {
            timestamp: mark.timestamp,
            shard: strandline_wal::ShardId(0),
            seq: mark.seqs[0],
        };
        Pending::new(store, &written, level)
    }

    /// How long ago it was submitted.
    pub fn waited_ms(&self) -> u64 {
        let now_ns = self.store.env().clock.mono_ns();
        now_ns.saturating_sub(self.since_ns) / 1_000_000
    }

    pub fn acked(&self, level: Durability) -> Acked {
        let token = self.token;
        Acked { level, token }
    }

    /// Brings it to the local part of its level, in this thread.
    fn reach(&self) -> Result<()> {
        self.store.reach(self.token.timestamp(), self.level)
    }
}

impl CommitTicket {
    /// Sees to it that a write comes to its level.
    pub(crate) fn submit(
        tickets: &Arc<Tickets>,
        dataset: &Arc<DatasetInner>,
        pending: Pending,
    ) -> CommitTicket {
        let waiting = Waiting {
            slot: Arc::default(),
            dataset: Arc::clone(dataset),
            pending,
        };
        match waiting.pending.level.local() {
            Durability::Disk => tickets.push(waiting.clone()),
            // No disk is waited for.
            _ => waiting.slot.complete(waiting.finish()),
        }
        CommitTicket(waiting)
    }

    /// Names the write, for whoever reads elsewhere. It is not acknowledged yet.
    pub fn token(&self) -> WriteToken {
        self.0.pending.token
    }

    /// Whether the outcome is there.
    pub fn is_done(&self) -> bool {
        self.0.slot.is_done()
    }

    /// Waits in this thread, which syncs itself where nobody else does.
    ///
    /// # Errors
    /// As the future's.
    pub fn wait(self) -> Result<Acked> {
        let mut state = self.0.slot.0.lock();
        // From here on nobody else is to tell.
        let nobody = Some(Err(Error::Closed("ticket")));
        if let Some(outcome) = std::mem::replace(&mut state.outcome, nobody) {
            return outcome;
        }
        drop(state);
        self.0.finish()
    }
}

impl Future for CommitTicket {
    type Output = Result<Acked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Acked>> {
        let mut state = self.0.slot.0.lock();
        // Kept: a future that is asked once more says the same.
        if let Some(outcome) = &state.outcome {
            return Poll::Ready(outcome.clone());
        }
        let before = state.waker.replace(cx.waker().clone());
        // Foreign code, which may come back here, as `wake` does.
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl std::fmt::Debug for CommitTicket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommitTicket")
            .field("level", &self.0.pending.level)
            .field("token", &self.0.pending.token)
            .finish_non_exhaustive()
    }
}

/// The tickets of a database that wait for their sync, and the thread that sees to them.
#[derive(Default)]
pub(crate) struct Tickets {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// A write and where its outcome goes.
#[derive(Clone)]
struct Waiting {
    slot: Arc<Slot>,
    dataset: Arc<DatasetInner>,
    pending: Pending,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Waiting>,
    /// Datasets with tickets that wait for followers.
    confirming: Vec<Weak<DatasetInner>>,
    thread: Option<JoinHandle<()>>,
    is_stopped: bool,
}

impl Waiting {
    /// Waits for everything, in this thread.
    fn finish(&self) -> Result<Acked> {
        self.pending.reach()?;
        let level = match self.pending.level.follower_count() {
            0 => self.pending.level,
            _ => self.dataset.acks.wait(&self.pending)?,
        };
        Ok(self.pending.acked(level))
    }
}

impl Tickets {
    /// Queues a write, or brings it to its level before this returns: where too many wait already, or no
    /// thread can be had. It is written: whatever goes wrong is told by its ticket.
    fn push(self: &Arc<Tickets>, waiting: Waiting) {
        let background = waiting.pending.store.options().background;
        let confirming_count = waiting.dataset.acks.ticket_count();
        let mut queue = self.queue.lock();
        if queue.is_stopped {
            drop(queue);
            return waiting.slot.complete(Err(Error::Closed("database")));
        }
        if queue.waiting.len() + confirming_count >= TICKET_COUNT_MAX {
            queue.waiting.retain(|other| !other.slot.is_done());
        }
        let has_room = queue.waiting.len() + confirming_count < TICKET_COUNT_MAX;
        if has_room && queue.thread.is_none() && background == Background::Thread {
            queue.thread = self.spawn();
        }
        let has_thread = queue.thread.is_some() || background == Background::Manual;
        if has_room && has_thread {
            queue.waiting.push(waiting);
            drop(queue);
            self.changed.notify_one();
        } else {
            drop(queue);
            let outcome = waiting.finish();
            waiting.slot.complete(outcome);
        }
    }

    /// The thread, where the system gives one.
    fn spawn(self: &Arc<Tickets>) -> Option<JoinHandle<()>> {
        let tickets = Arc::clone(self);
        let run = move || while tickets.wait() && tickets.step() {};
        let thread = std::thread::Builder::new().name("strandline-commit".to_owned());
        thread.spawn(run).ok()
    }

    /// Waits until there is something to do. Returns whether there will be more.
    fn wait(&self) -> bool {
        let mut queue = self.queue.lock();
        while queue.waiting.is_empty() && !queue.is_stopped {
            if queue.confirming.is_empty() {
                self.changed.wait(&mut queue);
            } else if self.changed.wait_for(&mut queue, PATIENCE).timed_out() {
                break;
            }
        }
        !queue.is_stopped
    }

    /// Syncs for all tickets there are, and ends those whose time is up. Returns whether to go on.
    pub fn step(&self) -> bool {
        let mut queue = self.queue.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        let confirming = std::mem::take(&mut queue.confirming);
        drop(queue);
        let mut confirming: Vec<_> = confirming.iter().filter_map(Weak::upgrade).collect();
        let mut stores: Vec<(Arc<Store>, Result<()>)> = Vec::new();
        // The last write of a store first: its sync covers those before it.
        for Waiting { pending, .. } in waiting.iter().rev() {
            if !stores
                .iter()
                .any(|(store, _)| Arc::ptr_eq(store, &pending.store))
            {
                let synced = unless!("ticket.sync", pending.reach());
                stores.push((Arc::clone(&pending.store), synced));
            }
        }
        for Waiting {
            slot,
            dataset,
            pending,
        } in waiting
        {
            let mut stores = stores.iter();
            let synced = stores.find(|(store, _)| Arc::ptr_eq(store, &pending.store));
            match synced.expect("it was synced above") {
                (_, Err(error)) => slot.complete(Err(error.clone())),
                _ if pending.level.follower_count() == 0 => {
                    slot.complete(Ok(pending.acked(pending.level)));
                }
                _ => {
                    dataset.acks.follow(slot, pending);
                    if !confirming.iter().any(|other| Arc::ptr_eq(other, &dataset)) {
                        confirming.push(dataset);
                    }
                }
            }
        }
        confirming.retain(|dataset| dataset.acks.expire());
        let mut queue = self.queue.lock();
        let is_stopped = queue.is_stopped;
        if !is_stopped {
            let confirming = confirming.iter().map(Arc::downgrade);
            queue.confirming.extend(confirming);
        }
        drop(queue);
        if is_stopped {
            // Nobody looks after them any more.
            for dataset in confirming {
                dataset.acks.fence(Error::Closed("database"));
            }
        }
        !is_stopped
    }

    /// Ends the thread; what still waits is told that the database is closed.
    pub fn stop(&self) {
        let mut queue = self.queue.lock();
        queue.is_stopped = true;
        let thread = queue.thread.take();
        drop(queue);
        self.changed.notify_one();
        // A waker may have dropped the last handle of the database, in that thread.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
        let mut queue = self.queue.lock();
        let waiting = std::mem::take(&mut queue.waiting);
        let confirming = std::mem::take(&mut queue.confirming);
        drop(queue);
        for Waiting { slot, .. } in waiting {
            slot.complete(Err(Error::Closed("database")));
        }
        for dataset in confirming.iter().filter_map(Weak::upgrade) {
            dataset.acks.fence(Error::Closed("database"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
