//! A follower's side: shipped bytes become log and state, and a leader's marks make them visible.
//!
//! A follower is a database that never finishes recovering: the same bytes pass through the same
//! `apply`. What is appended is in the memtable at once and invisible until the leader's committed
//! mark covers it in every shard.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use strandline_wal::batch::BatchHeader;
use strandline_wal::bug::planted;
use strandline_wal::unless;
use strandline_wal::writer::{Appended, Shipped};
use strandline_wal::{Hlc, Position, ShardId};

use super::recover::apply_stored;
use super::watermarks::Mark;
use super::{Commit, Counters, Role, Store};
use crate::error::{Error, Result};

/// Batches that are in the logs and not known to be committed, per shard, oldest first.
pub(super) struct Pending {
    shards: Vec<VecDeque<PendingBatch>>,
    /// The exact cut that everything taken out makes up.
    mark: Mark,
}

#[derive(Clone, Copy)]
struct PendingBatch {
    timestamp: Hlc,
    ordinal: u16,
    last_seq: u64,
}

impl Pending {
    pub fn new(mark: Mark) -> Pending {
        Pending {
            shards: mark.seqs.iter().map(|_| VecDeque::new()).collect(),
            mark,
        }
    }

    pub fn note(&mut self, shard: ShardId, header: &BatchHeader) {
        let shard = usize::from(shard.0);
        if header.last_seq() > self.mark.seqs[shard] {
            self.shards[shard].push_back(PendingBatch {
                timestamp: header.timestamp,
                ordinal: header.ordinal,
                last_seq: header.last_seq(),
            });
        }
    }

    /// A time up to which a shard's log is complete: that of its last batch.
    fn last_timestamp(&self, shard: usize) -> Hlc {
        let last = self.shards[shard].back();
        last.map_or(self.mark.timestamp, |batch| batch.timestamp)
    }

    /// Takes out everything up to a time, and returns the cut that it ends at.
    fn take(&mut self, until: Hlc) -> Mark {
        for (shard, batches) in self.shards.iter_mut().enumerate() {
            while let Some(batch) = pop_until(batches, until) {
                self.mark.seqs[shard] = batch.last_seq;
                if batch.timestamp > self.mark.timestamp {
                    self.mark.timestamp = batch.timestamp;
                    self.mark.ordinal = batch.ordinal;
                }
            }
        }
        self.mark.clone()
    }
}

fn pop_until(batches: &mut VecDeque<PendingBatch>, until: Hlc) -> Option<PendingBatch> {
    let due = batches
        .front()
        .is_some_and(|batch| batch.timestamp <= until);
    due.then(|| batches.pop_front()).flatten()
}

/// Syncs that were asked for and those that ended, by their number.
#[derive(Default)]
pub(super) struct Asked {
    last: u64,
    ended: u64,
    failed: Option<Error>,
}

impl Store {
    /// Appends bytes of a leader's segment, from offset `at` on, and applies the batches in them.
    /// Stops at the last whole batch; what was appended before is skipped.
    ///
    /// # Errors
    /// The log's, where the bytes do not continue it or are damaged; nothing of a bad batch is kept.
    pub fn append_shipped(
        &self,
        shard: ShardId,
        segment: u64,
        at: u64,
        bytes: &[u8],
    ) -> Result<Appended> {
        self.check_follows()?;
        let now_ns = self.shared.env.clock.coarse_ns();
        self.counters.last_write_ns.store(now_ns, Relaxed);
        if self.view.sealed_count() > self.options().memtable_count_max {
            self.make_room()?;
        }
        let mut commit = self.commit.lock();
        self.check_writes()?;
        if commit.level.log_len() >= self.options().memtable_len_max {
            self.seal_memtable(&mut commit);
            (self.shared.wake)();
        }
        let level = Arc::clone(&commit.level);
        let Commit {
            writers, timestamp, ..
        } = &mut *commit;
        let writer = &mut writers[usize::from(shard.0)];
        let mut pending = self.pending.lock();
        let mut applied = Ok(());
        let mut append = || {
            writer.append_each(segment, at, bytes, |shipped| {
                // What stands behind a batch that cannot be applied is not applied either.
                if applied.is_ok() {
                    applied = self.apply_shipped(shard, &shipped, &level);
                    pending.note(shard, &shipped.batch.header);
                }
            })
        };
        let mut appended = append();
        if let Err(error) = &appended
            && error.is_no_space()
            && !planted("reserve.follower")
            && self.shared.reserve.release()
        {
            // A follower cannot choose what it takes; what frees space may be next.
            appended = append();
        }
        *timestamp = (*timestamp).max(writer.tail().timestamp);
        let by_call = u64::from(writer.is_by_call());
        Counters::add_alone(&self.counters.pieces_by_call, by_call);
        drop(pending);
        drop(commit);
        applied?;
        let appended = appended?;
        self.shared.arrived();
        Ok(appended)
    }

    fn apply_shipped(
        &self,
        shard: ShardId,
        shipped: &Shipped<'_>,
        level: &super::view::MemLevel,
    ) -> Result<()> {
        let Shipped { segment, at, batch } = shipped;
        apply_stored(segment, *at, batch, level, &self.catalog)?;
        if let Some(entry) = super::recover::epoch_start(batch) {
            self.note_epoch(shard, entry);
        }
        Ok(())
    }

    /// Seals a segment with its leader's footer.
    ///
    /// # Errors
    /// The log's, where it is not the footer of exactly these bytes.
    pub fn seal_shipped(&self, shard: ShardId, segment: u64, footer: &[u8]) -> Result<()> {
        self.check_follows()?;
        let mut commit = self.commit.lock();
        self.check()?;
        commit.writers[usize::from(shard.0)].seal_verbatim(segment, footer)?;
        drop(commit);
        self.shared.arrived();
        Ok(())
    }

    /// Makes everything appended so far durable, and returns what that is, per shard.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it.
    pub fn sync_shipped(&self) -> Result<Vec<u64>> {
        self.check_follows()?;
        let mut seqs = Vec::with_capacity(self.logs.len());
        for log in &self.logs {
            seqs.push(unless!("follow.sync", log.sync())?);
        }
        let now_ns = self.shared.env.clock.mono_ns();
        let written_ns = self.marks.lock().written_ns;
        if now_ns.saturating_sub(written_ns) >= strandline_wal::marks::INTERVAL_NS {
            // Marks only ever add proof: where they cannot be written, the next ones are.
            let _ = self.write_marks(false);
        }
        Ok(seqs)
    }

    /// Asks for a sync of everything that was appended, in the background.
    pub fn ask_persist(&self) {
        self.asked.lock().last += 1;
        (self.shared.wake)();
    }

    /// How the sync that was asked for last ended; `None` while it goes on. Without background threads it
    /// is done here.
    pub fn asked_persist(&self) -> Option<Result<()>> {
        if self.is_manual() {
            self.persist_step();
        }
        if let Err(error) = self.check() {
            // Nobody works for it any more.
            return Some(Err(error));
        }
        let asked = self.asked.lock();
        let is_over = asked.ended == asked.last;
        is_over.then(|| asked.failed.clone().map_or(Ok(()), Err))
    }

    /// Does the sync that was asked for. Returns whether there was one.
    pub fn persist_step(&self) -> bool {
        let _syncing = self.syncing.lock();
        let number = self.asked.lock().last;
        if number == self.asked.lock().ended {
            return false;
        }
        // A store that was closed meanwhile says so.
        let synced = self.check();
        let synced = synced.and_then(|()| unless!("follow.beside", self.sync_shipped()));
        let mut asked = self.asked.lock();
        asked.ended = number;
        asked.failed = synced.err();
        drop(asked);
        self.shared.arrived();
        true
    }

    /// Shows readers what is here of the cut at `committed`: `seqs` are, per shard, the last sequences
    /// that it may reach. Returns whether all of it is here.
    ///
    /// A shard that lacks some of it has everything up to its own last batch, because versions rise in
    /// every log: the cut at the earliest such time is whole. Showing that one and not waiting for the
    /// last is what lets a follower that is far behind flush, and so take more.
    pub fn commit_shipped(&self, committed: Hlc, seqs: &[u64]) -> bool {
        if seqs.len() != self.logs.len() {
            return false;
        }
        let mut pending = self.pending.lock();
        let (mut until, mut here) = (committed, true);
        for (shard, (log, seq)) in self.logs.iter().zip(seqs).enumerate() {
            if log.last_seq() < *seq && !planted("follow.commits_absent") {
                here = false;
                until = until.min(pending.last_timestamp(shard));
            }
        }
        if until > self.watermarks.visible() {
            let mark = pending.take(until);
            drop(pending);
            if mark.timestamp > self.watermarks.visible() {
                self.watermarks.publish_to(&mark);
                self.watermarks.commit_to(&mark);
                self.shared.arrived();
            }
        }
        here
    }

    /// Whether memtables wait for their flush, and the oldest of them must wait for a commit.
    pub fn flush_waits_for_commit(&self) -> bool {
        let committed = self.watermarks.committed();
        let view = self.view.look();
        let oldest = view.sealed.last();
        oldest.is_some_and(|sealed| !sealed.cut.is_within(&committed))
    }

    /// Where each shard's log ends.
    pub fn positions(&self) -> Vec<Position> {
        let commit = self.commit.lock();
        commit
            .writers
            .iter()
            .map(strandline_wal::writer::Writer::position)
            .collect()
    }

    /// Where each shard's log ends, with the chain value there.
    pub fn tails(&self) -> Vec<(Position, u32)> {
        let commit = self.commit.lock();
        commit
            .writers
            .iter()
            .map(|w| (w.position(), w.tail().chain))
            .collect()
    }

    fn check_follows(&self) -> Result<()> {
        match self.role {
            Role::Follower => Ok(()),
            Role::Leader | Role::Reader => Err(Error::ReadOnly {
                what: format!("dataset {}", self.id),
                why: "it does not follow; shipped bytes are for followers",
            }),
        }
    }

    /// Waits, or works, while too many memtables wait for their flush.
    fn make_room(&self) -> Result<()> {
        if self.is_manual() {
            self.flush_oldest()?;
            return Ok(());
        }
        (self.shared.wake)();
        Ok(())
    }
}
