//! The serving side of one dataset: ships its logs to any number of followers and counts what they
//! confirm. Holds no file, no socket, no thread, and no clock.
//!
//! The same machine serves in two ways. As *leader* it holds an epoch, reports what is confirmed, and
//! is over the moment that it hears of a later epoch; what it found in its log is confirmed with the
//! first record of its own epoch, never before. As *lender* it hands its log to one candidate
//! that it promised an epoch to, under that epoch, and confirms nothing.

use std::collections::{BTreeMap, VecDeque};

use strandline_wal::bug::planted;
use strandline_wal::{Epoch, ShardId};

use crate::bundle::BundlePlan;
use crate::error::{Error, Reason, Result};
use crate::failover::Follows;
use crate::ids::{Identity, Incarnation, LeaderId, Leadership, Lineage, NodeId};
use crate::membership::Reach;
use crate::message::{
    FILES_PER_FRAME_MAX, Hello, Message, Purpose, Refusal, Tick, TickMark, VERSIONS, Verdict,
    Welcome,
};
use crate::progress::{Progress, Step};
use crate::quorum::{Standing, since};
use crate::store::{Confirmed, Marks, Times};
use crate::transport::ConnId;

mod event;
#[cfg(test)]
mod tests;

pub use event::{Action, Event, LeaderOptions};

/// What a serving side is.
#[derive(Clone, Debug)]
pub struct Serving {
    /// Who it is.
    pub identity: Identity,
    /// The epoch that its frames carry, and its claim: zeros where it lends.
    pub leadership: Leadership,
    /// Only this node is served: the candidate that it lends to.
    pub only: Option<NodeId>,
}

/// See the module.
pub struct Leader {
    serving: Serving,
    options: LeaderOptions,
    // Invariant: once set, nothing is shipped, confirmed or welcomed any more.
    fenced: Option<Epoch>,
    marks: BTreeMap<ShardId, Marks>,
    times: Times,
    followers: BTreeMap<ConnId, Progress>,
    // What every follower that was here last confirmed; one entry per node and shard.
    standings: BTreeMap<ShardId, Vec<Standing>>,
    confirmed: BTreeMap<ShardId, Confirmed>,
    // Last sequence that was ever confirmed, at any level.
    highest: BTreeMap<ShardId, u64>,
    // First record of this leadership per shard: followers count from there on only.
    starts: BTreeMap<ShardId, u64>,
    wall_ms: u64,
    actions: VecDeque<Action>,
}

impl Leader {
    /// A serving side of these shards.
    pub fn new(serving: Serving, options: LeaderOptions, shards: &[ShardId]) -> Leader {
        Leader {
            serving,
            options,
            fenced: None,
            marks: shards
                .iter()
                .map(|shard| (*shard, Marks::default()))
                .collect(),
            times: Times::default(),
            followers: BTreeMap::new(),
            standings: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            highest: BTreeMap::new(),
            starts: BTreeMap::new(),
            wall_ms: 0,
            actions: VecDeque::new(),
        }
    }

    /// The only way in. Drain [`Leader::poll_action`] before the next call. `wall_ms` is sent to
    /// followers to measure lag and is used for nothing else.
    pub fn handle(&mut self, now: u64, wall_ms: u64, event: Event) {
        assert!(
            self.actions.is_empty(),
            "drain poll_action before the next event"
        );
        self.wall_ms = wall_ms;
        match event {
            Event::Frame(conn, message) => self.frame(now, conn, message),
            Event::Closed(conn, why) => self.gone(conn, why),
            Event::Marks(marks, times) => self.marks(now, marks, times),
            Event::Started(shard, first_seq) => {
                self.starts.insert(shard, first_seq);
                self.confirm(shard);
            }
            Event::Judged(conn, judged) => self.judged(conn, judged),
            Event::Ship => self.ship(now),
            Event::Shipped(conn, shard, len) => {
                if let Some(follower) = self.followers.get_mut(&conn) {
                    follower.shipped(now, shard, len, &self.marks, self.times);
                }
            }
            Event::Sealed(conn, shard, next) => self.with(conn, |f| f.sealed(shard, next)),
            Event::AtTail(conn, shard) => {
                let written = self.marks[&shard].written;
                self.with(conn, |follower| follower.at_tail(shard, written));
            }
            Event::Failed(conn, why) => self.fail(conn, why),
            Event::Pinned(conn, pinned) => self.pinned(conn, pinned),
            Event::PieceShipped(conn, len) => self.with(conn, |f| f.piece_sent(len)),
            Event::Outdated(epoch) => self.fence(epoch),
            Event::Policy(policy) => {
                self.options.policy = policy;
                let shards: Vec<_> = self.marks.keys().copied().collect();
                shards.into_iter().for_each(|shard| self.confirm(shard));
            }
            Event::Tick => self.tick(now),
        }
        assert!(
            self.fenced.is_none() || self.followers.is_empty(),
            "a fenced leader serves nobody"
        );
    }

    /// The only way out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The leadership, and whether it is over.
    pub fn leadership(&self) -> (Leadership, Option<Epoch>) {
        (self.serving.leadership, self.fenced)
    }

    /// When [`Event::Tick`] has something to do, at the latest.
    pub fn due_ms(&self) -> Option<u64> {
        self.followers
            .values()
            .map(|f| f.told_ms + self.options.heartbeat_ms)
            .min()
    }

    /// The followers at hand: who, bytes under way, newest wall clock applied, and per shard the place
    /// of the next bytes and the last ack. For gauges.
    pub(crate) fn followers(&self) -> impl Iterator<Item = &Progress> {
        self.followers.values()
    }

    /// The durable ends of the logs, and how the followers stand.
    pub fn follows(&self) -> (Vec<u64>, Vec<Follows>) {
        let ends = self.marks.values().map(|marks| marks.durable).collect();
        let of = |follower: &Progress| {
            let is_shipping = matches!(follower.state, crate::progress::State::Shipping);
            let reach = |(shard, stream): (&ShardId, &crate::progress::Stream)| Reach {
                durable: stream.ack.durable,
                confirmed: self.highest.get(shard).copied().unwrap_or_default(),
                start: self.starts.get(shard).copied().unwrap_or(u64::MAX),
            };
            let streams = follower.streams.iter().filter(|_| is_shipping);
            Follows {
                member: (follower.peer.node, follower.peer.incarnation),
                heard_ms: follower.heard_ms,
                reach: streams.map(reach).collect(),
            }
        };
        let followers = self.followers();
        let follow = followers.filter(|f| f.purpose == Purpose::Follow);
        (ends, follow.map(of).collect())
    }

    /// The follower of a connection.
    pub(crate) fn follower(&self, conn: ConnId) -> Option<&Progress> {
        self.followers.get(&conn)
    }

    /// Runs `f` on a follower that may have left meanwhile.
    fn with(&mut self, conn: ConnId, f: impl FnOnce(&mut Progress)) {
        if let Some(follower) = self.followers.get_mut(&conn) {
            f(follower);
        }
    }

    fn frame(&mut self, now: u64, conn: ConnId, message: Message) {
        match (self.followers.get_mut(&conn), message) {
            (None, Message::Hello(hello)) => self.hello(now, conn, hello),
            // A frame that was under way when the connection was closed.
            (None, _) => {}
            (Some(_), Message::Refused(refusal)) => self.refused(conn, refusal),
            (Some(follower), message) => {
                let epoch = self.serving.leadership.epoch;
                let step = follower.frame(now, message, &self.marks, epoch);
                self.step(conn, step);
            }
        }
    }

    fn step(&mut self, conn: ConnId, step: Result<Step>) {
        match step {
            Ok(Step::Wait) => {}
            Ok(Step::Judge(ends)) => self.actions.push_back(Action::Judge(conn, ends)),
            Ok(Step::Pin(again)) => self.actions.push_back(Action::Pin(conn, again)),
            Ok(Step::Confirmed) => self.acked(conn),
            Err(why) => self.refuse(conn, Reason::Protocol, why),
        }
    }

    fn hello(&mut self, now: u64, conn: ConnId, hello: Hello) {
        let ours = &self.serving;
        let epoch = ours.leadership.epoch;
        let wants: Vec<_> = hello.ends.iter().map(|end| end.shard).collect();
        let shards: Vec<_> = self.marks.keys().copied().collect();
        let refuse = |reason, text: &str, have: String, want: String| {
            Some(Refusal {
                reason,
                text: text.to_owned(),
                have,
                want,
                epoch,
            })
        };
        let fits = match hello.purpose {
            Purpose::Fetch => wants.iter().all(|shard| shards.contains(shard)),
            Purpose::Follow | Purpose::Control => wants == shards,
        };
        let sorted = wants.windows(2).all(|w| w[0] < w[1]) && !wants.is_empty();
        let refusal = if self.fenced.is_some() || ours.only.is_some_and(|only| only != hello.node) {
            refuse(
                Reason::NotLeader,
                "this leadership is over",
                epoch.to_string(),
                String::new(),
            )
        } else if common_version(hello.versions).is_none() {
            let range = |(min, max): (u16, u16)| format!("versions {min} to {max}");
            let text = "upgrade the older side";
            refuse(
                Reason::Version,
                text,
                range(VERSIONS),
                range(hello.versions),
            )
        } else if hello.dataset != ours.identity.dataset {
            let (have, want) = (ours.identity.dataset.to_string(), hello.dataset.to_string());
            refuse(Reason::UnknownDataset, "another dataset", have, want)
        } else if hello.lineage != ours.identity.lineage && hello.lineage != Lineage::default() {
            let (have, want) = (ours.identity.lineage.to_string(), hello.lineage.to_string());
            refuse(
                Reason::Lineage,
                "clone the dataset, or name its own leader",
                have,
                want,
            )
        } else if hello.node == ours.identity.node {
            refuse(
                Reason::Loop,
                "the peer list names this node",
                hello.name.clone(),
                String::new(),
            )
        } else if !sorted || !fits {
            let text = "shard counts must be the same";
            refuse(
                Reason::Shards,
                text,
                format!("{shards:?}"),
                format!("{wants:?}"),
            )
        } else if self.followers.len() >= self.options.follower_count_max {
            let have = self.options.follower_count_max.to_string();
            refuse(Reason::Busy, "too many followers", have, String::new())
        } else {
            None
        };
        // The epoch is looked at whatever else is wrong, but only of the same history.
        let same = hello.lineage == ours.identity.lineage && hello.dataset == ours.identity.dataset;
        if same && hello.promised_epoch > epoch && !planted("leader.promised") {
            self.fence(hello.promised_epoch);
            let text = format!("epoch {} was promised there", hello.promised_epoch);
            let refusal = refuse(Reason::NotLeader, &text, epoch.to_string(), String::new());
            return self.turn_away(conn, &hello.name, refusal.expect("it is one"));
        }
        if let Some(refusal) = refusal {
            return self.turn_away(conn, &hello.name, refusal);
        }
        self.replace(&hello);
        self.forget_standing(hello.node, hello.incarnation);
        self.actions
            .push_back(Action::Judge(conn, hello.ends.clone()));
        self.followers.insert(conn, Progress::new(now, &hello));
    }

    /// A follower that comes again has given up its old connection, half open as it may be.
    fn replace(&mut self, hello: &Hello) {
        let same = |f: &Progress| f.peer.node == hello.node && f.purpose == hello.purpose;
        let old: Vec<_> = self
            .followers
            .iter()
            .filter(|(_, f)| same(f))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in old {
            self.fail(conn, Error::unreachable(&hello.name, "it connected anew"));
        }
    }

    /// What a follower confirmed before it came again may be lost to it: it confirms anew.
    fn forget_standing(&mut self, node: NodeId, incarnation: Incarnation) {
        for standings in self.standings.values_mut() {
            standings.retain(|standing| standing.member != (node, incarnation));
        }
    }

    fn turn_away(&mut self, conn: ConnId, name: &str, refusal: Refusal) {
        let why = Error::Refused {
            reason: refusal.reason,
            text: refusal.text.clone(),
            have: refusal.have.clone(),
            want: refusal.want.clone(),
        };
        self.actions
            .push_back(Action::Send(conn, Message::Refused(refusal)));
        self.actions.push_back(Action::Close(conn, why.clone()));
        self.actions.push_back(Action::Left(name.to_owned(), why));
    }

    fn judged(&mut self, conn: ConnId, judged: Result<Vec<Verdict>>) {
        let Some(follower) = self.followers.get_mut(&conn) else {
            return;
        };
        let verdicts = match judged {
            Ok(verdicts) => verdicts,
            Err(why @ Error::Diverged { .. }) => return self.refuse(conn, Reason::Diverged, why),
            Err(why @ Error::Full { .. }) => return self.refuse(conn, Reason::Busy, why),
            Err(why) => return self.fail(conn, why),
        };
        follower.judged(&verdicts);
        let joined = matches!(follower.state, crate::progress::State::Shipping);
        let (node, name) = (follower.peer.node, follower.peer.name.clone());
        let welcomed = std::mem::replace(&mut follower.welcomed, true);
        let message = if welcomed {
            Message::Verdicts(verdicts)
        } else {
            self.welcome(verdicts)
        };
        self.actions.push_back(Action::Send(conn, message));
        if joined {
            self.actions.push_back(Action::Joined(node, name));
        }
    }

    fn welcome(&self, verdicts: Vec<Verdict>) -> Message {
        let Serving {
            identity,
            leadership,
            ..
        } = &self.serving;
        Message::Welcome(Welcome {
            version: VERSIONS.1,
            wants: self.options.wants,
            epoch: leadership.epoch,
            node: identity.node,
            incarnation: identity.incarnation,
            leader: leadership.leader,
            lineage: identity.lineage,
            name: identity.name.clone(),
            verdicts,
            sole: self.options.sole,
        })
    }

    fn marks(&mut self, now: u64, marks: Vec<(ShardId, Marks)>, times: Times) {
        for (shard, marks) in marks {
            assert!(
                marks.committed <= marks.written,
                "committed records are written"
            );
            assert!(
                marks.durable <= marks.written,
                "durable records are written"
            );
            let old = self.marks.get_mut(&shard).expect("shards are fixed");
            assert!(marks.written >= old.written, "a leader's log never shrinks");
            let start = self.starts.get(&shard).copied().unwrap_or(u64::MAX);
            let begins = old.durable < start && marks.durable >= start;
            *old = marks;
            if begins {
                self.confirm(shard);
            }
        }
        self.times = times;
        let conns: Vec<_> = self.followers.keys().copied().collect();
        for conn in conns {
            let Some(follower) = self.followers.get_mut(&conn) else {
                continue;
            };
            let step = follower.look_again(now, &self.marks);
            self.step(conn, step);
        }
    }

    fn acked(&mut self, conn: ConnId) {
        let Some(follower) = self.followers.get(&conn) else {
            return;
        };
        if follower.purpose != Purpose::Follow {
            return;
        }
        let member = (follower.peer.node, follower.peer.incarnation);
        let acks: Vec<_> = follower.streams.values().map(|stream| stream.ack).collect();
        for ack in acks {
            let standings = self.standings.entry(ack.shard).or_default();
            match standings
                .iter_mut()
                .find(|standing| standing.member == member)
            {
                Some(standing) if standing.ack == ack => continue,
                Some(standing) => standing.ack = ack,
                None => standings.push(Standing { member, ack }),
            }
            self.confirm(ack.shard);
        }
    }

    /// Recomputes what is confirmed of a shard and reports it where anything rose.
    fn confirm(&mut self, shard: ShardId) {
        if self.fenced.is_some() || self.serving.only.is_some() {
            return;
        }
        let start = self.starts.get(&shard).copied().unwrap_or(u64::MAX);
        let standings = self.standings.get(&shard).map_or(&[][..], Vec::as_slice);
        let standings = since(start, self.marks[&shard].durable, standings);
        let leader = self.serving.identity.node;
        let confirmed = self.options.policy.confirmed(leader, shard, &standings);
        let before = self.confirmed.get(&shard);
        if before.is_none_or(|before| *before != confirmed) && !confirmed.received.is_empty() {
            let lists = [&confirmed.received, &confirmed.durable, &confirmed.applied];
            let last = lists.into_iter().flatten().max().copied();
            let highest = self.highest.entry(shard).or_default();
            *highest = last.unwrap_or_default().max(*highest);
            self.confirmed.insert(shard, confirmed.clone());
            self.actions.push_back(Action::Confirm(confirmed));
        }
    }

    fn ship(&mut self, now: u64) {
        let mut pieces = Vec::new();
        for (conn, follower) in &mut self.followers {
            if let Some((shard, segment, at)) = follower.due(&self.marks) {
                let left = usize::try_from(follower.purse.left()).unwrap_or(usize::MAX);
                self.actions.push_back(Action::Ship {
                    conn: *conn,
                    shard,
                    segment,
                    at,
                    len_max: left.min(self.options.chunk_len),
                    marks: self.marks[&shard],
                    times: follower.times_with(shard, &self.marks, self.times),
                });
            } else if let Some(piece) = follower.piece(self.options.chunk_len as u64) {
                pieces.push((*conn, piece));
            } else if follower.lacks_marks(&self.marks, self.times) {
                follower.ticked(now, &self.marks, self.times);
                let tick = self.serving.tick(self.wall_ms, &self.marks, self.times);
                self.actions.push_back(Action::Send(*conn, tick));
            }
        }
        for (conn, piece) in pieces {
            match piece {
                Ok((file, at, len)) => {
                    let len = usize::try_from(len).expect("a chunk fits in memory");
                    self.actions.push_back(Action::ShipPiece {
                        conn,
                        file,
                        at,
                        len,
                    });
                }
                Err(id) => {
                    self.actions
                        .push_back(Action::Send(conn, Message::BundleEnd { id }));
                    self.actions.push_back(Action::Unpin(conn));
                }
            }
        }
    }

    fn pinned(&mut self, conn: ConnId, pinned: Result<BundlePlan>) {
        let Some(follower) = self.followers.get_mut(&conn) else {
            return;
        };
        let plan = match pinned {
            Ok(plan) => plan,
            Err(why @ Error::Pruned { .. }) => return self.refuse(conn, Reason::Pruned, why),
            // It could not be made now, for lack of room perhaps: nothing that anyone at the follower
            // could mend, so the follower asks again.
            Err(why) => return self.refuse(conn, Reason::Busy, why),
        };
        follower.pinned(&plan);
        let file_count = u32::try_from(plan.files.len()).unwrap_or(u32::MAX);
        let begin = Message::BundleBegin {
            id: plan.id,
            file_count,
            ends: plan.ends,
        };
        self.actions.push_back(Action::Send(conn, begin));
        for files in plan.files.chunks(FILES_PER_FRAME_MAX) {
            self.actions
                .push_back(Action::Send(conn, Message::BundleFiles(files.to_vec())));
        }
    }

    fn tick(&mut self, now: u64) {
        let mut silent = Vec::new();
        for (conn, follower) in &mut self.followers {
            use crate::progress::State;
            let limit = match follower.state {
                State::Shipping | State::Sending(..) | State::Listed(_) => self.options.silence_ms,
                State::Judging | State::Agreeing | State::Pinning => self.options.install_ms,
            };
            if now.saturating_sub(follower.heard_ms) > limit {
                silent.push((*conn, follower.peer.name.clone()));
            } else if follower.welcomed
                && now.saturating_sub(follower.told_ms) >= self.options.heartbeat_ms
            {
                // While the follower is judged or fetches a bundle the tick is a sign of life only.
                follower.ticked(now, &self.marks, self.times);
                let tick = self.serving.tick(self.wall_ms, &self.marks, self.times);
                self.actions.push_back(Action::Send(*conn, tick));
            }
        }
        for (conn, name) in silent {
            self.fail(
                conn,
                Error::unreachable(&name, "it was silent for too long"),
            );
        }
    }

    /// The follower refused what this leadership sent.
    fn refused(&mut self, conn: ConnId, refusal: Refusal) {
        let epoch = refusal.epoch;
        let why = Error::Refused {
            reason: refusal.reason,
            text: refusal.text,
            have: refusal.have,
            want: refusal.want,
        };
        self.fail(conn, why);
        if epoch > self.serving.leadership.epoch && !planted("leader.refused") {
            self.fence(epoch);
        }
    }

    /// A later epoch is known: nothing of this one counts any more.
    fn fence(&mut self, epoch: Epoch) {
        let is_fenced = self.fenced.is_some() || epoch <= self.serving.leadership.epoch;
        if is_fenced || planted("leader.fence") {
            return;
        }
        self.fenced = Some(epoch);
        if self.serving.only.is_none() {
            self.actions.push_back(Action::Fenced(epoch));
        }
        let ours = self.serving.leadership.epoch;
        for conn in self.followers.keys().copied().collect::<Vec<_>>() {
            self.fail(conn, Error::Fenced { epoch, ours });
        }
    }

    /// Tells the follower why, then ends the connection.
    fn refuse(&mut self, conn: ConnId, reason: Reason, why: Error) {
        let refusal = Refusal {
            reason,
            text: why.to_string(),
            have: String::new(),
            want: String::new(),
            epoch: self.serving.leadership.epoch,
        };
        self.actions
            .push_back(Action::Send(conn, Message::Refused(refusal)));
        self.fail(conn, why);
    }

    fn fail(&mut self, conn: ConnId, why: Error) {
        self.actions.push_back(Action::Close(conn, why.clone()));
        self.gone(conn, why);
    }

    fn gone(&mut self, conn: ConnId, why: Error) {
        if let Some(follower) = self.followers.remove(&conn) {
            self.actions.push_back(Action::Unpin(conn));
            self.actions
                .push_back(Action::Left(follower.peer.name, why));
        }
    }
}

impl Serving {
    fn tick(&self, wall_ms: u64, marks: &BTreeMap<ShardId, Marks>, times: Times) -> Message {
        let mark = |(shard, marks): (&ShardId, &Marks)| TickMark {
            shard: *shard,
            written: marks.written,
            committed: marks.committed,
        };
        Message::Tick(Tick {
            epoch: self.leadership.epoch,
            wall_ms,
            times,
            marks: marks.iter().map(mark).collect(),
        })
    }
}

/// The highest version that both sides speak.
pub(crate) fn common_version(theirs: (u16, u16)) -> Option<u16> {
    let version = theirs.1.min(VERSIONS.1);
    (version >= theirs.0.max(VERSIONS.0)).then_some(version)
}

/// A claim that nobody made: of one who lends.
pub(crate) const NO_CLAIM: LeaderId = LeaderId([0; 16]);
