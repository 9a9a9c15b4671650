//! What followers have confirmed, and the writers that wait for it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::event::What;
use crate::options::{AckPolicy, Durability};
use crate::store::Counters;
use crate::ticket::{Acked, Pending, Slot};

/// How often a waiting writer looks whether its store was stopped.
const PATIENCE_MS: u64 = 50;

/// What followers have confirmed, and the writers that wait for it.
pub(crate) struct Acks {
    state: Mutex<AckState>,
    changed: Condvar,
}

type Queue = VecDeque<(Arc<Slot>, Pending)>;

#[derive(Default)]
struct AckState {
    /// Per shard and level, entry `n - 1`: the last sequence that n followers confirm.
    shards: Vec<ShardAcks>,
    /// Why nothing is acknowledged any more.
    fenced: Option<Error>,
    /// Tickets that wait, each with where its outcome goes: by level, in the order of their writes, which is
    /// the order that they end in.
    tickets: Vec<(Durability, Queue)>,
}

/// What followers have confirmed of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardAcks {
    pub received: Vec<u64>,
    pub durable: Vec<u64>,
    pub applied: Vec<u64>,
}

impl AckState {
    fn new(shard_count: usize) -> AckState {
        AckState {
            shards: vec![ShardAcks::default(); shard_count],
            ..AckState::default()
        }
    }

    /// Whether all of this is confirmed at a level.
    fn covers(&self, seqs: &[u64], level: Durability) -> bool {
        let mut shards = self.shards.iter().zip(seqs);
        shards.all(|(acks, seq)| confirmed(acks, level).is_some_and(|last| last >= *seq))
    }

    /// How a write stands; `None` while followers may still confirm it.
    fn outcome(&self, pending: &Pending, waited_ms: u64) -> Option<Result<Durability>> {
        let store = &pending.store;
        if let Some(error) = &self.fenced {
            return Some(Err(error.clone()));
        }
        if let Err(error) = store.check_writes() {
            return Some(Err(error));
        }
        if self.covers(&pending.seqs, pending.level) || planted("acks.wait") {
            return Some(Ok(pending.level));
        }
        let options = store.options();
        if waited_ms < options.ack_timeout_ms {
            return None;
        }
        Some(match options.ack_policy {
            AckPolicy::Refuse => Err(Error::Unacknowledged {
                wanted: pending.level,
                waited_ms: options.ack_timeout_ms,
            }),
            AckPolicy::Degrade => {
                Counters::add(&store.counters().degraded_acks, 1);
                store.tell(What::Degraded {
                    wanted: pending.level,
                });
                Ok(Durability::Disk)
            }
        })
    }

    /// Takes out the tickets that are over.
    fn take_over(&mut self) -> Over {
        let mut over = Vec::new();
        let mut queues = std::mem::take(&mut self.tickets);
        for (_, queue) in &mut queues {
            while let Some((slot, pending)) = queue.front() {
                let outcome = match slot.is_done() {
                    // Whoever has the ticket waits for itself.
                    true => None,
                    false => match self.outcome(pending, pending.waited_ms()) {
                        None => break,
                        outcome => outcome,
                    },
                };
                let (slot, pending) = queue.pop_front().expect("it was there");
                let outcome = outcome.map(|outcome| outcome.map(|level| pending.acked(level)));
                over.extend(outcome.map(|outcome| (slot, outcome)));
            }
        }
        self.tickets = queues;
        Over(over)
    }
}

/// Tickets that are over and were not told yet: that calls foreign code.
#[must_use]
pub(crate) struct Over(Vec<(Arc<Slot>, Result<Acked>)>);

impl Over {
    pub fn tell(self) {
        for (slot, outcome) in self.0 {
            slot.complete(outcome);
        }
    }
}

impl Acks {
    pub fn new(shard_count: usize) -> Acks {
        Acks {
            state: Mutex::new(AckState::new(shard_count)),
            changed: Condvar::new(),
        }
    }

    /// Changes what is known, and tells whoever waits.
    fn change(&self, change: impl FnOnce(&mut AckState)) -> Over {
        let mut state = self.state.lock();
        change(&mut state);
        let over = state.take_over();
        drop(state);
        self.changed.notify_all();
        over
    }

    /// Forgets everything: the dataset was opened anew. Tickets of before are over, with their store.
    pub fn reset(&self, shard_count: usize) -> Over {
        self.change(|state| {
            state.shards = vec![ShardAcks::default(); shard_count];
            state.fenced = None;
        })
    }

    /// Notes what followers confirm of a shard.
    pub fn confirm(&self, shard: usize, acks: ShardAcks) {
        self.change(|state| state.shards[shard] = acks).tell();
    }

    /// Per shard, the last sequence that enough followers confirm at a level; 0 where none do.
    pub fn confirmed(&self, level: Durability) -> Vec<u64> {
        let state = self.state.lock();
        state
            .shards
            .iter()
            .map(|acks| confirmed(acks, level).unwrap_or_default())
            .collect()
    }

    /// Nothing is acknowledged from here on.
    pub fn fence(&self, error: Error) {
        self.change(|state| state.fenced = Some(error)).tell();
    }

    /// Tells a ticket once its write is confirmed, or cannot be any more: by [`Acks::confirm`], or by
    /// [`Acks::expire`], which is to be called next.
    pub fn follow(&self, slot: Arc<Slot>, pending: Pending) {
        let queues = &mut self.state.lock().tickets;
        let at = queues.iter().position(|(level, _)| *level == pending.level);
        let at = at.unwrap_or_else(|| {
            queues.push((pending.level, Queue::new()));
            queues.len() - 1
        });
        queues[at].1.push_back((slot, pending));
    }

    /// Ends tickets that are confirmed or whose time is up. Returns whether others wait.
    pub fn expire(&self) -> bool {
        let mut state = self.state.lock();
        let over = state.take_over();
        drop(state);
        over.tell();
        self.ticket_count() > 0
    }

    /// How many tickets wait.
    pub fn ticket_count(&self) -> usize {
        let state = self.state.lock();
        state.tickets.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Waits until a write is confirmed at its level, in this thread. Returns the level that it has.
    ///
    /// # Errors
    /// [`Error::Unacknowledged`] after the timeout; [`Error::Fenced`].
    pub fn wait(&self, pending: &Pending) -> Result<Durability> {
        let timeout_ms = pending.store.options().ack_timeout_ms;
        let mut waited_ms = 0;
        let mut state = self.state.lock();
        loop {
            // A clock that stands still does not keep anybody waiting.
            waited_ms = waited_ms.max(pending.waited_ms());
            if let Some(outcome) = state.outcome(pending, waited_ms) {
                return outcome;
            }
            let step_ms = PATIENCE_MS.min(timeout_ms - waited_ms);
            let step = Duration::from_millis(step_ms);
            if self.changed.wait_for(&mut state, step).timed_out() {
                waited_ms += step_ms;
            }
        }
    }
}

/// The last sequence that enough followers confirm at a level.
fn confirmed(acks: &ShardAcks, level: Durability) -> Option<u64> {
    let list = match level {
        Durability::Received(_) => &acks.received,
        Durability::Durable(_) => &acks.durable,
        Durability::Applied(_) => &acks.applied,
        Durability::Memory | Durability::Os | Durability::Disk => return Some(u64::MAX),
    };
    list.get(usize::from(level.follower_count().max(1)) - 1)
        .copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
