//! From the first byte on: append, sync, ack, apply, and the marks that ride on everything.

use strandline_wal::ShardId;
use strandline_wal::bug::planted;
use strandline_wal::writer::Appended;

use super::{Action, Follower, State, Stream};
use crate::error::{Error, Result};
use crate::message::{Ack, Data, Message, Seal, Tick};
use crate::store::CommitMark;

/// A follower that lacks more records than this catches up: there are rarely so many writers that wait.
pub(super) const BEHIND_COUNT: u64 = 1_024;
/// Time between two syncs of a follower that catches up, in milliseconds.
pub(super) const BEHIND_MS: u64 = 10;
/// So many bytes are synced beside everything else: to wait for the disk would be to take nothing
/// meanwhile. Fewer are there before another thread is.
pub(super) const BESIDE_LEN: u64 = 64 << 10;

/// Most wall clocks that wait for their records to be applied.
const CLOCK_COUNT_MAX: usize = 64;

impl Follower {
    pub(super) fn data(&mut self, now: u64, data: Data) {
        let Data { head, bytes } = data;
        let len = bytes.len() as u64;
        if head.epoch != self.epoch && !planted("follower.data_epoch") {
            return self.protocol(now, format!("Data of epoch {}", head.epoch));
        }
        let Some(stream) = self.streams.get_mut(&head.shard) else {
            return self.protocol(now, format!("Data of shard {}", head.shard));
        };
        if !self.grantor.take(len) {
            return self.protocol(now, "more Data than was granted");
        }
        if head.committed > head.written {
            return self.protocol(now, "a committed mark above the written one");
        }
        self.commit_due |=
            head.committed > stream.committed || head.times.committed > self.times.committed;
        stream.written = stream.written.max(head.written);
        stream.committed = stream.committed.max(head.committed);
        self.times.closed = self.times.closed.max(head.times.closed);
        self.times.committed = self.times.committed.max(head.times.committed);
        let whole = stream.assembler.push(head.segment, head.at, bytes);
        self.note_clock(head.wall_ms);
        match whole {
            Ok(wholes) => {
                let appends = wholes.into_iter().map(|w| Action::Append(head.shard, w));
                self.actions.extend(appends);
            }
            Err(why) => self.fail(now, why),
        }
    }

    pub(super) fn appended(&mut self, now: u64, shard: ShardId, done: Result<Appended>) {
        let Some(stream) = self.streams.get_mut(&shard) else {
            return;
        };
        match done {
            Ok(appended) => {
                assert!(appended.position.seq >= stream.ack.received, "a log grows");
                stream.ack.received = appended.position.seq;
                if planted("ack.before_sync") {
                    stream.ack.durable = stream.ack.received;
                }
                (stream.untold, stream.unsynced) = (true, true);
                stream.unsynced_len += appended.end - appended.at;
                self.commit_due = true;
            }
            // Of its own bytes the log is silent here: what was shipped does not fit, so ask anew.
            Err(why @ Error::Log(strandline_wal::Error::Refused { .. })) => {
                self.does_not_fit(now, shard, why);
            }
            Err(why @ Error::Log(strandline_wal::Error::Corrupt { .. })) => self.fail(now, why),
            Err(why) => self.stop(now, why),
        }
    }

    pub(super) fn seal(&mut self, now: u64, seal: Seal) {
        if seal.epoch != self.epoch && !planted("follower.seal_epoch") {
            return self.protocol(now, format!("Seal of epoch {}", seal.epoch));
        }
        let Some(stream) = self.streams.get_mut(&seal.shard) else {
            return self.protocol(now, format!("Seal of shard {}", seal.shard));
        };
        if !stream
            .assembler
            .sealed(seal.segment, seal.at, stream.ack.received + 1)
        {
            return self.protocol(now, "Seal before the segment's last byte");
        }
        self.actions
            .push_back(Action::Seal(seal.shard, seal.segment, seal.footer));
    }

    pub(super) fn sealed(&mut self, now: u64, shard: ShardId, done: Result<()>) {
        match done {
            Ok(()) => {
                if let Some(stream) = self.streams.get_mut(&shard) {
                    stream.unsynced = true;
                }
            }
            Err(why @ Error::Log(strandline_wal::Error::Refused { .. })) => {
                self.does_not_fit(now, shard, why);
            }
            Err(why @ Error::Log(strandline_wal::Error::Corrupt { .. })) => self.fail(now, why),
            Err(why) => self.stop(now, why),
        }
    }

    /// The store refuses what continues its log. Once that may be a frame that got lost; at the same
    /// place again it is the files: a node that led ended a segment there which the leader's log goes
    /// on with, and its first batch behind it was cut or lost. Asking anew would be refused for ever.
    fn does_not_fit(&mut self, now: u64, shard: ShardId, why: Error) {
        let received = self.streams.get(&shard).map(|s| s.ack.received);
        let at = received.map(|seq| (shard, seq));
        self.misfits |= at.is_some() && self.refused_at == at;
        self.refused_at = at;
        self.fail(now, why);
    }

    pub(super) fn marks(&mut self, now: u64, tick: Tick) {
        if tick.epoch != self.epoch && !planted("follower.tick_epoch") {
            return self.protocol(now, format!("Tick of epoch {}", tick.epoch));
        }
        for mark in &tick.marks {
            if mark.committed > mark.written {
                return self.protocol(now, "a committed mark above the written one");
            }
            // The leader has all shards; one who fetches follows some.
            let Some(stream) = self.streams.get_mut(&mark.shard) else {
                continue;
            };
            self.commit_due |= mark.committed > stream.committed;
            stream.written = stream.written.max(mark.written);
            stream.committed = stream.committed.max(mark.committed);
        }
        self.commit_due |= tick.times.committed > self.times.committed;
        self.times.closed = self.times.closed.max(tick.times.closed);
        self.times.committed = self.times.committed.max(tick.times.committed);
        self.note_clock(tick.wall_ms);
    }

    /// Remembers when the leader had written what, to tell it later when that was applied.
    fn note_clock(&mut self, wall_ms: u64) {
        let last = self
            .clocks
            .back()
            .map_or(self.applied_wall_ms, |(wall_ms, _)| *wall_ms);
        if wall_ms > last && self.clocks.len() < CLOCK_COUNT_MAX {
            let written = self
                .streams
                .iter()
                .map(|(shard, s)| (*shard, s.written))
                .collect();
            self.clocks.push_back((wall_ms, written));
        }
    }

    pub(super) fn applied(&mut self, now: u64, applied: Vec<(ShardId, u64)>) {
        if !matches!(self.state, State::Following) {
            return;
        }
        let mut rose = false;
        for (shard, seq) in applied {
            let Some(stream) = self.streams.get_mut(&shard) else {
                continue;
            };
            // A store that shows what an earlier life of this connection committed says so at once.
            let seq = seq.min(stream.ack.received);
            if seq > stream.ack.applied {
                stream.ack.applied = seq;
                (stream.untold, rose) = (true, true);
            }
        }
        let streams = &self.streams;
        let is_applied = |(shard, written): &(ShardId, u64)| {
            streams
                .get(shard)
                .is_none_or(|stream| stream.ack.applied >= *written)
        };
        while let Some((wall_ms, _)) = self
            .clocks
            .front()
            .filter(|(_, w)| w.iter().all(is_applied))
        {
            self.applied_wall_ms = *wall_ms;
            self.clocks.pop_front();
        }
        if rose && self.wants.applied {
            self.send_ack(now);
        }
    }

    pub(super) fn flush(&mut self, now: u64, room: u64) {
        if let Some(granted) = match self.state {
            State::Following => self.grantor.grant(room),
            // A bundle is staged beside the store and then replaces it: a store that is full of what
            // it cannot use has as much room for one as any other.
            State::Receiving(_) => self.grantor.grant(u64::MAX),
            _ => None,
        } {
            self.send(now, Message::Credit { granted });
        }
        if !matches!(self.state, State::Following) || self.syncing > 0 {
            return;
        }
        let untold = self.streams.values().any(|stream| stream.untold);
        if untold
            && (self.wants.received || now.saturating_sub(self.told_ms) >= self.options.ack_ms)
        {
            self.send_ack(now);
        }
        if now.saturating_sub(self.synced_ms) >= self.pause_ms() && !self.is_syncing_beside {
            self.persist();
        }
        if self.syncing == 0 {
            self.commit();
        }
    }

    fn persist(&mut self) {
        let len: u64 = self.streams.values().map(|s| s.unsynced_len).sum();
        self.is_syncing_beside = len >= BESIDE_LEN;
        if self.is_syncing_beside {
            self.actions.push_back(Action::Persist);
        }
        for (shard, stream) in &mut self.streams {
            stream.unsynced_len = 0;
            if std::mem::take(&mut stream.unsynced) && !self.is_syncing_beside {
                self.syncing += 1;
                self.actions.push_back(Action::Sync(*shard));
            }
        }
    }

    /// How long records may wait for a sync. Nobody waits for those of a follower that is behind as long as
    /// for the syncs that it would take to catch up.
    pub(super) fn pause_ms(&self) -> u64 {
        let is_behind = |s: &Stream| s.written.saturating_sub(s.ack.received) > BEHIND_COUNT;
        match self.wants.durable {
            true if self.streams.values().any(is_behind) => BEHIND_MS.min(self.options.sync_ms),
            true => 0,
            false => self.options.sync_ms,
        }
    }

    pub(super) fn synced(&mut self, now: u64, shard: ShardId, done: Result<u64>) {
        self.syncing = self.syncing.saturating_sub(1);
        let seq = match done {
            Ok(seq) => seq,
            Err(why) => return self.stop(now, why),
        };
        self.note_durable(shard, seq);
        if self.syncing == 0 && matches!(self.state, State::Following) {
            self.tell_synced(now);
            // After the ack: whoever waits for a disk does not wait for readers.
            self.commit();
        }
    }

    pub(super) fn persisted(&mut self, now: u64, done: Result<Vec<(ShardId, u64)>>) {
        // Of a connection that ended: the next one finds out anew.
        if !std::mem::take(&mut self.is_syncing_beside) {
            return;
        }
        match done {
            Ok(seqs) => {
                for (shard, seq) in seqs {
                    self.note_durable(shard, seq);
                }
                self.tell_synced(now);
            }
            Err(why) => self.stop(now, why),
        }
    }

    fn note_durable(&mut self, shard: ShardId, seq: u64) {
        if let Some(stream) = self.streams.get_mut(&shard) {
            let seq = seq.min(stream.ack.received);
            stream.untold |= seq > stream.ack.durable;
            stream.ack.durable = stream.ack.durable.max(seq);
        }
    }

    fn tell_synced(&mut self, now: u64) {
        self.synced_ms = now;
        if self.wants.durable && self.streams.values().any(|stream| stream.untold) {
            self.send_ack(now);
        }
    }

    fn commit(&mut self) {
        if std::mem::take(&mut self.commit_due) {
            let mark = |(shard, stream): (&ShardId, &Stream)| CommitMark {
                shard: *shard,
                seq: stream.committed,
            };
            let marks = self.streams.iter().map(mark).collect();
            self.actions.push_back(Action::Commit(marks, self.times));
        }
    }

    pub(super) fn send_ack(&mut self, now: u64) {
        let acks = self.streams.values_mut();
        let acks = acks
            .filter_map(|s| std::mem::take(&mut s.untold).then_some(s.ack))
            .collect();
        let ack = Ack {
            epoch: self.epoch,
            wall_ms: self.applied_wall_ms,
            taken: self.grantor.taken(),
            acks,
        };
        self.send(now, Message::Ack(ack));
    }
}
