//! What the serving side knows of one follower. Every transition of it is in this file.
//!
//! | State | frames that may come | left by |
//! |-------|----------------------|---------|
//! | Judging | none | the verdicts: to Agreeing, or to Shipping where all agree |
//! | Agreeing | Ends, BundleAsk, Credit | Ends: to Judging; BundleAsk: to Pinning |
//! | Shipping | Ack, Credit, BundleAsk | BundleAsk before any byte: to Pinning; the end of the connection |
//! | Pinning | none | the pinned bundle: to Listed |
//! | Listed | BundleFrom | it: to Sending |
//! | Sending | Credit | the last byte: to Agreeing |
//!
//! Refused may come in every state and ends the connection. A Credit of nothing new is a sign of life:
//! without one, a lost Ends would leave both sides waiting for each other.

use std::collections::BTreeMap;

use strandline_wal::ShardId;
use strandline_wal::bug::planted;

use crate::bundle::BundlePlan;
use crate::credit::Purse;
use crate::error::{Error, Result};
use crate::ids::{Identity, ShardEnd};
use crate::message::{Ack, AckEntry, Hello, Message, Purpose, Verdict};
use crate::store::{Marks, Times};

/// Where one shard of one follower stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// Where the next bytes come from. `None` until both agree.
    pub place: Option<(u64, u64)>,
    /// Nothing was left to ship when this much was written.
    pub tail_at: Option<u64>,
    /// What the follower confirmed on this connection.
    pub ack: AckEntry,
    /// The committed mark that it was told.
    pub told_committed: u64,
}

/// See the table of the module.
#[derive(Clone, Debug)]
pub(crate) enum State {
    Judging,
    Agreeing,
    Shipping,
    Pinning,
    Listed(Listing),
    Sending(Listing, u32, u64),
}

/// What is needed of a pinned bundle: the lengths of its files.
#[derive(Clone, Debug)]
pub(crate) struct Listing {
    pub id: crate::ids::BundleId,
    pub lens: Vec<u64>,
}

/// What the leader has to do after a frame.
#[derive(Debug)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// Say where these ends lie in our logs.
    Judge(Vec<ShardEnd>),
    /// Something was confirmed.
    Confirmed,
    /// Pin a bundle.
    Pin(crate::ids::BundleId),
}

/// One connection of one follower.
pub(crate) struct Progress {
    pub peer: Identity,
    pub purpose: Purpose,
    pub state: State,
    pub streams: BTreeMap<ShardId, Stream>,
    pub purse: Purse,
    /// Bytes that the follower says it took.
    pub taken: u64,
    /// Newest wall clock of ours whose marks the follower has applied.
    pub applied_wall_ms: u64,
    pub heard_ms: u64,
    pub told_ms: u64,
    pub told_times: Times,
    /// The welcome was sent: further verdicts go alone.
    pub welcomed: bool,
    /// An ack that is ahead of the marks that we saw last; looked at again when they rise.
    early: Option<(u64, Ack)>,
    turn: usize,
}

/// An ack may be ahead of the marks that this side read last by this long, not longer.
const EARLY_MS_MAX: u64 = 1_000;

impl Progress {
    pub fn new(now: u64, hello: &Hello) -> Progress {
        let peer = Identity {
            node: hello.node,
            incarnation: hello.incarnation,
            name: hello.name.clone(),
            dataset: hello.dataset.clone(),
            lineage: hello.lineage,
        };
        let stream = |end: &ShardEnd| {
            let ack = AckEntry {
                shard: end.shard,
                ..AckEntry::default()
            };
            (
                end.shard,
                Stream {
                    ack,
                    ..Stream::default()
                },
            )
        };
        Progress {
            peer,
            purpose: hello.purpose,
            state: State::Judging,
            streams: hello.ends.iter().map(stream).collect(),
            purse: Purse::default(),
            taken: 0,
            applied_wall_ms: 0,
            heard_ms: now,
            told_ms: now,
            told_times: Times::default(),
            welcomed: false,
            early: None,
            turn: 0,
        }
    }

    /// A frame came. `marks` are those of all shards.
    pub fn frame(
        &mut self,
        now: u64,
        message: Message,
        marks: &BTreeMap<ShardId, Marks>,
        epoch: strandline_wal::Epoch,
    ) -> Result<Step> {
        self.heard_ms = now;
        match (&self.state, message) {
            (State::Agreeing, Message::Ends(ends)) => self.asked(ends),
            // Both agree on a place that the follower cannot cut to: what lies behind it is in its
            // tables. Nothing was shipped yet, because it granted no credit.
            (State::Agreeing | State::Shipping, Message::BundleAsk { again })
                if self.purse.spent() == 0 =>
            {
                self.streams
                    .values_mut()
                    .for_each(|stream| stream.place = None);
                self.state = State::Pinning;
                Ok(Step::Pin(again))
            }
            (State::Shipping, Message::Ack(ack)) if ack.epoch == epoch || planted("ack.epoch") => {
                let since = self.early.as_ref().map_or(now, |(since, _)| *since);
                self.acked(now, since, ack, marks)
            }
            (
                State::Agreeing | State::Shipping | State::Sending(..),
                Message::Credit { granted },
            ) => {
                self.purse.grant(granted);
                Ok(Step::Wait)
            }
            (State::Listed(listing), Message::BundleFrom { file, at }) => {
                let listing = listing.clone();
                self.start_sending(listing, file, at)
            }
            (_, message) => {
                let what = format!("{} while {}", message.name(), self.state_name());
                Err(Error::protocol(&self.peer.name, what))
            }
        }
    }

    fn asked(&mut self, ends: Vec<ShardEnd>) -> Result<Step> {
        let mut shards: Vec<_> = ends.iter().map(|end| end.shard).collect();
        shards.dedup();
        let known = shards.iter().all(|shard| self.streams.contains_key(shard));
        if !known || shards.len() != ends.len() || ends.is_empty() {
            return Err(Error::protocol(
                &self.peer.name,
                "ends of shards that it did not greet with",
            ));
        }
        for shard in shards {
            self.streams.get_mut(&shard).expect("looked at above").place = None;
        }
        self.state = State::Judging;
        Ok(Step::Judge(ends))
    }

    /// Our verdicts on the ends that were asked.
    pub fn judged(&mut self, verdicts: &[Verdict]) {
        assert!(
            matches!(self.state, State::Judging),
            "verdicts are asked for"
        );
        for verdict in verdicts {
            if let Verdict::Agreed {
                shard, segment, at, ..
            } = *verdict
            {
                let stream = self.streams.get_mut(&shard).expect("it was asked for");
                stream.place = Some((segment, at));
                stream.tail_at = None;
            }
        }
        let all = self.streams.values().all(|stream| stream.place.is_some());
        self.state = if all {
            State::Shipping
        } else {
            State::Agreeing
        };
        if all {
            // Whatever ticks said before, the follower was not listening.
            self.told_times = Times::default();
            self.streams
                .values_mut()
                .for_each(|stream| stream.told_committed = u64::MAX);
        }
    }

    fn acked(
        &mut self,
        now: u64,
        since: u64,
        ack: Ack,
        marks: &BTreeMap<ShardId, Marks>,
    ) -> Result<Step> {
        if ack.taken > self.purse.spent() {
            return Err(self.false_ack("more bytes than were sent"));
        }
        let mut ahead = false;
        for entry in &ack.acks {
            let (Some(stream), Some(marks)) =
                (self.streams.get(&entry.shard), marks.get(&entry.shard))
            else {
                return Err(self.false_ack("a shard that it does not follow"));
            };
            let before = &stream.ack;
            let is_more = entry.durable > entry.received || entry.applied > entry.received;
            if is_more && !planted("ack.durable") {
                return Err(self.false_ack("durable or applied records that were not received"));
            }
            if entry.received < before.received
                || entry.durable < before.durable
                || entry.applied < before.applied
            {
                return Err(self.false_ack("less than before"));
            }
            // Bytes are published before the mark: a quick follower may be ahead of what we read.
            ahead |= entry.received > marks.written && !planted("ack.ahead");
        }
        if ahead {
            if now.saturating_sub(since) > EARLY_MS_MAX {
                return Err(self.false_ack("records that were never written"));
            }
            self.early = Some((since, ack));
            return Ok(Step::Wait);
        }
        self.early = None;
        self.taken = self.taken.max(ack.taken);
        self.applied_wall_ms = self.applied_wall_ms.max(ack.wall_ms);
        for entry in ack.acks {
            self.streams
                .get_mut(&entry.shard)
                .expect("looked at above")
                .ack = entry;
        }
        Ok(Step::Confirmed)
    }

    /// The marks rose, or time passed: an ack that was ahead of them is looked at again.
    pub fn look_again(&mut self, now: u64, marks: &BTreeMap<ShardId, Marks>) -> Result<Step> {
        match self.early.take() {
            None => Ok(Step::Wait),
            Some((since, ack)) => self.acked(now, since, ack, marks),
        }
    }

    fn false_ack(&self, what: &str) -> Error {
        Error::protocol(&self.peer.name, format!("an Ack of {what}"))
    }

    /// The bundle is pinned.
    pub fn pinned(&mut self, plan: &BundlePlan) {
        assert!(
            matches!(self.state, State::Pinning),
            "a bundle is asked for"
        );
        let lens = plan.files.iter().map(|file| file.len).collect();
        self.state = State::Listed(Listing { id: plan.id, lens });
    }

    fn start_sending(&mut self, listing: Listing, file: u32, at: u64) -> Result<Step> {
        let len = listing.lens.get(file as usize).copied();
        let behind_all = file as usize == listing.lens.len() && at == 0;
        if !behind_all && len.is_none_or(|len| at > len) {
            return Err(Error::protocol(
                &self.peer.name,
                "BundleFrom behind the end of a file",
            ));
        }
        self.state = State::Sending(listing, file, at);
        Ok(Step::Wait)
    }

    /// The next piece of the bundle to send: (file, at, len); `None` where there is no credit.
    /// `Some(Err(id))` once everything is sent.
    pub fn piece(
        &mut self,
        len_max: u64,
    ) -> Option<std::result::Result<(u32, u64, u64), crate::ids::BundleId>> {
        let State::Sending(listing, file, at) = &mut self.state else {
            return None;
        };
        while let Some(len) = listing.lens.get(*file as usize) {
            if *at < *len {
                let piece = (*len - *at).min(len_max).min(self.purse.left());
                return (piece > 0).then_some(Ok((*file, *at, piece)));
            }
            (*file, *at) = (*file + 1, 0);
        }
        let id = listing.id;
        self.state = State::Agreeing;
        // The follower greets anew with the ends that the bundle gave it.
        self.streams.values_mut().for_each(|stream| {
            stream.place = None;
            stream.ack = AckEntry {
                shard: stream.ack.shard,
                ..AckEntry::default()
            };
        });
        Some(Err(id))
    }

    /// A piece was sent.
    pub fn piece_sent(&mut self, len: u64) {
        self.purse.spend(len);
        if let State::Sending(_, _, at) = &mut self.state {
            *at += len;
        }
    }

    /// The next shard that has something to ship and where it comes from, in turns.
    pub fn due(&mut self, marks: &BTreeMap<ShardId, Marks>) -> Option<(ShardId, u64, u64)> {
        if !matches!(self.state, State::Shipping) || self.purse.left() == 0 {
            return None;
        }
        let count = self.streams.len();
        for step in 0..count {
            let n = (self.turn + step) % count;
            let (shard, stream) = self.streams.iter().nth(n).expect("it is below the count");
            let written = marks.get(shard).map_or(0, |marks| marks.written);
            if stream.tail_at == Some(written) {
                continue;
            }
            self.turn = n + 1;
            let (segment, at) = stream.place.expect("all shards agreed");
            return Some((*shard, segment, at));
        }
        None
    }

    /// The times that may ride on bytes of `shard`. A committed time is a cut through all shards, and
    /// such a frame has the mark of one: it goes along where the others' marks were told before.
    /// Otherwise the follower would show a cut that lacks what is still under way to it.
    pub fn times_with(
        &self,
        shard: ShardId,
        marks: &BTreeMap<ShardId, Marks>,
        times: Times,
    ) -> Times {
        let is_told = |(other, stream): (&ShardId, &Stream)| {
            let committed = marks.get(other).map(|marks| marks.committed);
            *other == shard || committed == Some(stream.told_committed)
        };
        match self.streams.iter().all(is_told) {
            true => times,
            false => Times {
                committed: self.told_times.committed,
                ..times
            },
        }
    }

    /// Bytes of a shard were sent, and with them its marks and [`Progress::times_with`] it.
    pub fn shipped(
        &mut self,
        now: u64,
        shard: ShardId,
        len: u64,
        marks: &BTreeMap<ShardId, Marks>,
        times: Times,
    ) {
        self.purse.spend(len);
        self.told_ms = now;
        self.told_times = self.times_with(shard, marks, times);
        let stream = self.streams.get_mut(&shard).expect("it was due");
        stream.told_committed = marks[&shard].committed;
        if let Some((_, at)) = &mut stream.place {
            *at += len;
        }
    }

    /// The footer of a shard's segment was sent: the next one starts with `next_segment`.
    pub fn sealed(&mut self, shard: ShardId, next_segment: u64) {
        let stream = self.streams.get_mut(&shard).expect("it was due");
        stream.place = Some((next_segment, 0));
    }

    /// Nothing more of a shard is to be shipped, as of this written mark.
    pub fn at_tail(&mut self, shard: ShardId, written: u64) {
        self.streams.get_mut(&shard).expect("it was due").tail_at = Some(written);
    }

    /// Whether the follower lacks marks that no Data will carry soon.
    pub fn lacks_marks(&self, marks: &BTreeMap<ShardId, Marks>, times: Times) -> bool {
        matches!(self.state, State::Shipping)
            && (self.told_times.committed != times.committed
                || self.streams.iter().any(|(shard, stream)| {
                    marks
                        .get(shard)
                        .is_some_and(|marks| marks.committed != stream.told_committed)
                }))
    }

    /// All marks were told.
    pub fn ticked(&mut self, now: u64, marks: &BTreeMap<ShardId, Marks>, times: Times) {
        self.told_ms = now;
        self.told_times = times;
        for (shard, stream) in &mut self.streams {
            let marks = marks.get(shard).copied().unwrap_or_default();
            stream.told_committed = marks.committed;
        }
    }

    pub fn state_name(&self) -> &'static str {
        match self.state {
            State::Judging => "judging its ends",
            State::Agreeing => "waiting for its ends",
            State::Shipping => "shipping",
            State::Pinning => "pinning a bundle",
            State::Listed(_) => "waiting for the place in a bundle",
            State::Sending(..) => "sending a bundle",
        }
    }
}
