//! A write: reserve, fill, apply, publish, and wait for the level that was asked for.
//!
//! Only [`Store::reserve`] holds the commit lock, for as long as it takes to give a batch its place:
//! log order, ticket order, timestamp order and ordinal order are one order. The bytes are copied and
//! the memtable is filled outside. Publication is in ticket order, so everything below the published
//! mark is in the log and in the memtable. A sync covers every shard up to the published mark.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use strandline_wal::Error as LogError;
use strandline_wal::batch::{Kind, SealedPayload};
use strandline_wal::bug::planted;
use strandline_wal::publish::Ticket;
use strandline_wal::unless;
use strandline_wal::writer::{Filled, Reservation};
use strandline_wal::{Hlc, ShardId};

use super::apply::{EXPECT_COUNT, PayloadPlace, apply, expect};
use super::batch::Changes;
use super::view::MemLevel;
use super::{Commit, Counters, News, Role, Store};
use crate::error::{Error, Result};
use crate::options::Durability;

/// A batch that waits for its turn to be published.
pub(crate) struct Done {
    filled: Filled,
    timestamp: Hlc,
    ordinal: u16,
    shard: usize,
    last_seq: u64,
    is_committed: bool,
}

/// A batch's place in everything.
struct Place {
    reservation: Reservation,
    ticket: Ticket,
    level: Arc<MemLevel>,
    timestamp: Hlc,
    ordinal: u16,
}

/// Where a write went.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Written {
    /// Its version.
    pub timestamp: Hlc,
    /// The shard whose log has it.
    pub shard: ShardId,
    /// Its last sequence there.
    pub seq: u64,
}

/// Whether a batch only takes keys away, and so may use the reserve.
fn is_removal(payload: &SealedPayload) -> bool {
    let mut records = payload.records();
    records.all(|record| record.is_ok_and(|record| record.kind == Kind::Delete))
}

impl Store {
    /// Writes a batch and waits until it has reached the local part of `level`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`]; a full disk's, where the batch does more than remove keys and the reserve is
    /// given up; the log's: nothing is written where no space was reserved, and after a
    /// failed write or sync the outcome is unknown until the database is reopened.
    pub fn write(&self, changes: Changes, level: Durability) -> Result<Written> {
        let (home, payload) = changes.seal();
        self.write_payload(home, &payload, level)
    }

    pub(super) fn write_payload(
        &self,
        home: ShardId,
        payload: &SealedPayload,
        level: Durability,
    ) -> Result<Written> {
        let written = self.submit_payload(home, payload, level)?;
        self.reach(written.timestamp, level)?;
        Ok(written)
    }

    /// Waits until what was submitted has reached the local part of its level.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn reach(&self, timestamp: Hlc, level: Durability) -> Result<()> {
        if let Err(error) = self.wait_local(timestamp, level.local()) {
            // Why it was stopped or closed says more than that it was.
            return Err(self.check().err().unwrap_or(error));
        }
        // Whoever synced told of it.
        if level.local() != Durability::Disk {
            self.shared.hook.call(News::Written);
        }
        Ok(())
    }

    /// Writes a batch, and leaves it to the caller to see that it comes to its level.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn submit(&self, changes: Changes, level: Durability) -> Result<Written> {
        let (home, payload) = changes.seal();
        self.submit_payload(home, &payload, level)
    }

    fn submit_payload(
        &self,
        home: ShardId,
        payload: &SealedPayload,
        level: Durability,
    ) -> Result<Written> {
        if self.role != Role::Leader {
            return Err(self.read_only());
        }
        let reserve = &self.shared.reserve;
        if reserve.is_released() && !is_removal(payload) {
            unless!("reserve.writes", reserve.restore())?;
        }
        self.make_way()?;
        let place = match self.reserve(home, payload) {
            Err(error)
                if error.is_no_space()
                    && is_removal(payload)
                    && !planted("reserve.removal")
                    && reserve.release() =>
            {
                self.reserve(home, payload)
            }
            place => place,
        }?;
        let is_durable = level.local() == Durability::Disk;
        let written = self.finish(home, payload, place, !is_durable);
        if is_durable {
            // It is shipped while it is synced here.
            self.shared.hook.call(match level.follower_count() {
                0 => News::Written,
                _ => News::Awaited,
            });
        }
        Ok(written)
    }

    fn read_only(&self) -> Error {
        let why = match self.role {
            Role::Follower => "it follows a leader; write there, or promote it",
            Role::Reader | Role::Leader => "it was opened for reading",
        };
        Error::ReadOnly {
            what: format!("dataset {}", self.id),
            why,
        }
    }

    /// The version of the next batch.
    fn next_timestamp(&self, commit: &Commit) -> Result<Hlc> {
        let next = commit.timestamp.after(self.shared.env.clock.wall_ms());
        match next {
            // Only a clock gone wild, or a forged log, comes here.
            Hlc::MAX => Err(Error::from(LogError::TooLarge {
                what: "version of a batch",
                limit: Hlc::MAX.0 - 1,
                found: next.0,
            })),
            next => Ok(next),
        }
    }

    /// The reserve section.
    fn reserve(&self, home: ShardId, payload: &SealedPayload) -> Result<Place> {
        let mut commit = self.commit.lock();
        expect(&mut payload.records(), EXPECT_COUNT, &commit.level.index);
        self.check_writes()?;
        // Where one shard's log takes nothing more, no other one may go on: the next open would show
        // a later write without an earlier one.
        for log in &self.logs {
            log.check()?;
        }
        if commit.level.log_len() >= self.options().memtable_len_max {
            self.seal_memtable(&mut commit);
            (self.shared.wake)();
        }
        self.place(&mut commit, home, payload)
    }

    /// Gives a batch its place in everything.
    fn place(&self, commit: &mut Commit, home: ShardId, payload: &SealedPayload) -> Result<Place> {
        let timestamp = self.next_timestamp(commit)?;
        let ordinal = commit.ordinal.wrapping_add(1);
        let writer = &mut commit.writers[usize::from(home.0)];
        let reservation = writer.reserve(payload, timestamp, ordinal)?;
        let ticket = self.publisher.take();
        commit.timestamp = timestamp;
        commit.ordinal = ordinal;
        let level = Arc::clone(&commit.level);
        level.pin(reservation.segment(), payload.bytes().len(), timestamp);
        let counters = &self.counters;
        Counters::add_alone(&counters.batches, 1);
        Counters::add_alone(&counters.records, payload.record_count().into());
        Counters::add_alone(&counters.payload_len, payload.bytes().len() as u64);
        Ok(Place {
            reservation,
            ticket,
            level,
            timestamp,
            ordinal,
        })
    }

    /// Fills, applies and publishes a reserved batch, and commits it where it `is_committed` as soon as
    /// that is in the log.
    fn finish(
        &self,
        home: ShardId,
        payload: &SealedPayload,
        place: Place,
        is_committed: bool,
    ) -> Written {
        let Place {
            reservation,
            ticket,
            level,
            timestamp,
            ordinal,
        } = place;
        let last_seq = reservation.last_seq();
        let at = PayloadPlace {
            shard: home,
            segment: reservation.segment().first_seq(),
            at: reservation.payload_at(),
        };
        let filled = reservation.fill(payload);
        apply(
            payload.records(),
            true,
            timestamp,
            at,
            &level.index,
            &self.catalog,
        )
        .expect("we encoded these records");
        let shard = usize::from(home.0);
        let done = Done {
            filled,
            timestamp,
            ordinal,
            shard,
            last_seq,
            is_committed: is_committed && self.is_in_place(),
        };
        self.publisher.complete(ticket, done, |done| {
            done.filled.publish();
            let is_committed = done.is_committed && self.logs.iter().all(|log| log.check().is_ok());
            let place = (done.shard, done.last_seq);
            self.watermarks
                .publish(done.timestamp, done.ordinal, place, is_committed);
        });
        Written {
            timestamp,
            shard: home,
            seq: last_seq,
        }
    }

    /// Appends a batch while the commit lock is held: an epoch's start.
    pub(super) fn write_locked(
        &self,
        commit: &mut Commit,
        home: ShardId,
        payload: &SealedPayload,
    ) -> Result<()> {
        let place = self.place(commit, home, payload)?;
        self.finish(home, payload, place, false);
        Ok(())
    }

    /// Waits until everything up to `timestamp` has reached a local level, and makes it visible.
    pub(super) fn wait_local(&self, timestamp: Hlc, level: Durability) -> Result<()> {
        self.wait_published(timestamp);
        match level {
            Durability::Memory | Durability::Os if self.is_in_place() => {
                if self.watermarks.visible() < timestamp {
                    self.logs.iter().try_for_each(|log| log.check())?;
                    self.watermarks.commit_published();
                }
            }
            Durability::Memory | Durability::Os => {
                self.written.wait(timestamp.0, || self.write_out())?;
            }
            _ => {
                unless!(
                    "write.wait",
                    self.synced.wait(timestamp.0, || self.sync_logs())
                )?;
            }
        }
        Ok(())
    }

    /// Waits for earlier batches that are still being filled: their writers do not wait for anything.
    pub fn wait_published(&self, timestamp: Hlc) {
        while self.watermarks.published_timestamp() < timestamp {
            std::thread::yield_now();
        }
    }

    /// Whether what is published is with the operating system already.
    fn is_in_place(&self) -> bool {
        self.logs.iter().all(|log| log.is_in_place())
    }

    /// Hands everything published to the operating system. The leader of the group runs it.
    fn write_out(&self) -> strandline_wal::Result<u64> {
        let mark = self.watermarks.published();
        for log in &self.logs {
            log.write_out()?;
        }
        self.watermarks.commit_to(&mark);
        Ok(mark.timestamp.0)
    }

    /// Makes everything published durable, in all shards. The leader of the group runs it.
    fn sync_logs(&self) -> strandline_wal::Result<u64> {
        let mark = self.watermarks.published();
        if planted("write.commit_first") {
            self.watermarks.commit_to(&mark);
        }
        for log in &self.logs {
            unless!("write.sync_logs", log.sync())?;
        }
        Counters::add(&self.counters.syncs, 1);
        self.watermarks.sync_to(&mark);
        self.watermarks.commit_to(&mark);
        self.shared.hook.call(News::Committed);
        let now_ns = self.shared.env.clock.mono_ns();
        let due = {
            let marks = self.marks.lock();
            now_ns.saturating_sub(marks.written_ns) >= strandline_wal::marks::INTERVAL_NS
        };
        if due {
            // Marks only ever add proof: where they cannot be written, the next ones are.
            let _ = self.write_marks(false);
        }
        Ok(mark.timestamp.0)
    }

    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it.
    pub fn sync(&self) -> Result<()> {
        let timestamp = self.watermarks.published_timestamp();
        unless!(
            "store.sync",
            self.synced.wait(timestamp.0, || self.sync_logs())
        )?;
        Ok(())
    }

    /// Waits, or works, while more memtables wait for their flush than may.
    fn make_way(&self) -> Result<()> {
        self.counters
            .last_write_ns
            .store(self.shared.env.clock.coarse_ns(), Ordering::Relaxed);
        loop {
            self.check_writes()?;
            if self.view.sealed_count() <= self.options().memtable_count_max {
                return Ok(());
            }
            if self.is_manual() {
                self.flush_oldest()?;
                continue;
            }
            (self.shared.wake)();
            let mut failed = self.pressure.failed.lock();
            if let Some(error) = &*failed {
                return Err(error.clone());
            }
            if self.view.sealed_count() > self.options().memtable_count_max {
                let patience = std::time::Duration::from_millis(100);
                self.pressure.changed.wait_for(&mut failed, patience);
            }
        }
    }

    /// The number of a keyspace, created in the log where it is new.
    ///
    /// # Errors
    /// As [`Store::write`]; [`Error::NotFound`] where this store cannot create it.
    pub fn keyspace(&self, name: &str) -> Result<u32> {
        if let Some(number) = self.catalog.number_of(name) {
            return Ok(number);
        }
        let limit = crate::options::KEYSPACE_NAME_LEN_MAX;
        if name.is_empty() || name.len() > limit {
            return Err(Error::Argument {
                what: "keyspace name",
                expected: format!("1 to {limit} bytes"),
                found: format!("{} bytes", name.len()),
            });
        }
        if self.role != Role::Leader {
            let hint = "; the leader creates keyspaces";
            return Err(Error::NotFound {
                what: "keyspace",
                name: name.to_owned(),
                hint,
            });
        }
        if self.shared.reserve.is_released() {
            unless!("reserve.keyspace", self.shared.reserve.restore())?;
        }
        {
            // Under the lock, so that two callers of one name get one number.
            let mut commit = self.commit.lock();
            self.check_writes()?;
            if self.catalog.number_of(name).is_none() {
                let number = self.catalog.next();
                if number == u32::MAX {
                    // Only a crafted file has used them up.
                    return Err(Error::Argument {
                        what: "keyspace",
                        expected: format!("one of the first {}", u32::MAX - 1),
                        found: name.to_owned(),
                    });
                }
                let payload = super::catalog::payload(ShardId(0), number, name);
                self.write_locked(&mut commit, ShardId(0), &payload)?;
            }
        }
        let timestamp = self.watermarks.published_timestamp();
        self.wait_local(timestamp, self.options().durability.local())?;
        self.shared.hook.call(News::Written);
        Ok(self.catalog.number_of(name).expect("it was created above"))
    }
}
