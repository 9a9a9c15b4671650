//! What followers have confirmed, and the writers that wait for it.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
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

#[derive(Default)]
struct AckState {
    /// Per shard and level, entry `n - 1`: the last sequence that n followers confirm.
    shards: Vec<ShardAcks>,
    /// Why nothing is acknowledged any more.
    fenced: Option<Error>,
    /// Tickets that wait, each with where its outcome goes.
    tickets: Vec<(Arc<Slot>, Pending)>,
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
                Ok(Durability::Disk)
            }
        })
    }

    /// Takes out the tickets that are over.
    fn take_over(&mut self) -> Vec<(Arc<Slot>, Result<Acked>)> {
        let mut over = Vec::new();
        let tickets = std::mem::take(&mut self.tickets);
        for (slot, pending) in tickets {
            let waited_ns = pending.store.env().clock.mono_ns() - pending.since_ns;
            match self.outcome(&pending, waited_ns / 1_000_000) {
                Some(outcome) => over.push((slot, outcome.map(|level| pending.acked(level)))),
                None => self.tickets.push((slot, pending)),
            }
        }
        over
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
    fn change(&self, change: impl FnOnce(&mut AckState)) {
        let mut state = self.state.lock();
        change(&mut state);
        let over = state.take_over();
        drop(state);
        self.changed.notify_all();
        for (slot, outcome) in over {
            slot.complete(outcome);
        }
    }

    /// Forgets everything: the dataset was opened anew. Tickets of before are over, with their store.
    pub fn reset(&self, shard_count: usize) {
        self.change(|state| {
            state.shards = vec![ShardAcks::default(); shard_count];
            state.fenced = None;
        });
    }

    /// Notes what followers confirm of a shard.
    pub fn confirm(&self, shard: usize, acks: ShardAcks) {
        self.change(|state| state.shards[shard] = acks);
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
        self.change(|state| state.fenced = Some(error));
    }

    /// Tells a ticket once its write is confirmed, or cannot be any more.
    pub fn follow(&self, slot: Arc<Slot>, pending: Pending) {
        self.change(|state| state.tickets.push((slot, pending)));
    }

    /// Ends tickets whose time is up. Returns whether others wait.
    pub fn expire(&self) -> bool {
        self.change(|_| ());
        !self.state.lock().tickets.is_empty()
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
