//! What followers have confirmed, and the writers that wait for it.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::options::Durability;
use crate::store::Store;

/// What followers have confirmed, and the writers that wait for it.
pub(crate) struct Acks {
    state: Mutex<AckState>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct AckState {
    /// Per shard and level, entry `n - 1`: the last sequence that n followers confirm.
    shards: Vec<ShardAcks>,
    /// Why nothing is acknowledged any more.
    fenced: Option<Error>,
}

/// What followers have confirmed of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShardAcks {
    pub received: Vec<u64>,
    pub durable: Vec<u64>,
    pub applied: Vec<u64>,
}

impl Acks {
    pub fn new(shard_count: usize) -> Acks {
        let shards = vec![ShardAcks::default(); shard_count];
        Acks {
            state: Mutex::new(AckState {
                shards,
                fenced: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Forgets everything: the dataset was opened anew.
    pub fn reset(&self, shard_count: usize) {
        let mut state = self.state.lock();
        *state = AckState {
            shards: vec![ShardAcks::default(); shard_count],
            fenced: None,
        };
        self.changed.notify_all();
    }

    /// Notes what followers confirm of a shard.
    pub fn confirm(&self, shard: usize, acks: ShardAcks) {
        self.state.lock().shards[shard] = acks;
        self.changed.notify_all();
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
        self.state.lock().fenced = Some(error);
        self.changed.notify_all();
    }

    /// Waits until everything written so far is confirmed at a level.
    ///
    /// # Errors
    /// [`Error::Unacknowledged`] after the timeout; [`Error::Fenced`].
    pub fn wait(&self, store: &Store, level: Durability) -> Result<()> {
        let mark = store.watermarks().published();
        let timeout_ms = store.options().ack_timeout_ms;
        let deadline = std::time::Duration::from_millis(timeout_ms);
        let mut waited = Duration::ZERO;
        let mut state = self.state.lock();
        loop {
            if let Some(error) = &state.fenced {
                return Err(error.clone());
            }
            store.check_writes()?;
            let covered = state.shards.iter().zip(&mark.seqs).all(|(acks, seq)| {
                confirmed(acks, level).is_some_and(|confirmed| confirmed >= *seq)
            });
            if covered || planted("acks.wait") {
                return Ok(());
            }
            if waited >= deadline {
                return Err(Error::Unacknowledged {
                    wanted: level,
                    waited_ms: timeout_ms,
                });
            }
            let step = Duration::from_millis(50).min(deadline - waited);
            if self.changed.wait_for(&mut state, step).timed_out() {
                waited += step;
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
