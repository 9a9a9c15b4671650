//! One follower of one dataset: connects to the leader, agrees where their logs part, and takes what
//! it is sent. Holds no file, no socket, no thread, and no clock.
//!
//! | State | entered by | frames that may come |
//! |-------|------------|----------------------|
//! | Idle | a connection that ended | none |
//! | Connecting | time | none |
//! | Greeting | the connection: Hello is sent | Welcome, Refused |
//! | Agreeing | the welcome | Verdicts, Tick, Refused |
//! | Asking | a log that does not reach back: BundleAsk is sent | BundleBegin, Tick, Refused |
//! | Listing | BundleBegin | BundleFiles, Tick, Refused |
//! | Receiving | the last file of the list: BundleFrom is sent | BundleData, BundleEnd, Tick, Refused |
//! | Following | all shards agreed: Credit is sent | Data, Seal, Tick, Refused |
//! | Stopped | a failure that someone must act on | none |
//!
//! It appends everything and shows what is committed. It acks `received` after the append, `durable`
//! after the store reported a sync, `applied` after the store applied.

use std::collections::{BTreeMap, VecDeque};

use strandline_wal::writer::Appended;
use strandline_wal::{Epoch, Position, ShardId};

use crate::assemble::{Assembler, Whole};
use crate::bundle::{BundlePlace, BundlePlan};
use crate::credit::{Grantor, WINDOW_DEFAULT};
use crate::error::{Error, Reason, Result};
use crate::ids::{Identity, LeaderId, Lineage, Promise, ShardEnd};
use crate::message::{
    Ack, AckEntry, Data, Hello, Message, Purpose, Refusal, Seal, Tick, VERSIONS, Wants, Welcome,
};
use crate::store::{CommitMark, Floor, Times};
use crate::transport::ConnId;

mod agreeing;
mod bundling;

use agreeing::Agreement;
use bundling::Receipt;

/// Settings of a follower.
#[derive(Clone, Debug)]
pub struct FollowerOptions {
    /// Names of nodes that may lead; tried in turn.
    pub peers: Vec<String>,
    /// Follow the leader, or fetch logs from one who promised.
    pub purpose: Purpose,
    /// Only these shards; all where it is empty. For fetching.
    pub only: Vec<ShardId>,
    /// Bytes that may be under way.
    pub window: u64,
    /// A sign of life goes out at least this often, in milliseconds.
    pub heartbeat_ms: u64,
    /// A leader that is silent for longer is given up, in milliseconds.
    pub silence_ms: u64,
    /// Least and most time between two tries to connect, in milliseconds.
    pub retry_ms: (u64, u64),
    /// Where nobody waits for `durable`, records are synced at least this often, in milliseconds.
    pub sync_ms: u64,
    /// Where nobody waits for an ack, one goes out at least this often, in milliseconds.
    pub ack_ms: u64,
}

impl Default for FollowerOptions {
    fn default() -> FollowerOptions {
        FollowerOptions {
            peers: Vec::new(),
            purpose: Purpose::Follow,
            only: Vec::new(),
            window: WINDOW_DEFAULT,
            heartbeat_ms: 1_000,
            silence_ms: 10_000,
            retry_ms: (50, 1_000),
            sync_ms: 100,
            ack_ms: 50,
        }
    }
}

/// How the store stands; the driver looks it up.
#[derive(Clone, Debug)]
pub struct Here {
    /// Who this node is.
    pub identity: Identity,
    /// Its promise.
    pub promise: Promise,
    /// Where its logs end, and what may not be cut.
    pub shards: Vec<(ShardEnd, Floor)>,
}

/// What happened. The driver turns sockets, disks and clocks into these.
#[derive(Debug)]
pub enum Event {
    /// The answer to [`Action::Connect`]: it is under way.
    Connecting(ConnId),
    /// The answer to [`Action::Connect`]: it cannot even be tried.
    NoWay(Error),
    /// The connection is up.
    Opened(ConnId, Here),
    /// A frame came.
    Frame(ConnId, Message),
    /// The connection ended.
    Closed(ConnId, Error),
    /// The answer to [`Action::Promise`].
    Promised(Result<()>),
    /// The answer to [`Action::Adopt`].
    Adopted(Result<()>),
    /// The answer to [`Action::FallBack`], shard by shard.
    FellBack(Vec<Result<ShardEnd>>),
    /// The answer to [`Action::Cut`].
    Cut(ShardId, Result<()>),
    /// The answer to [`Action::Append`].
    Appended(ShardId, Result<Appended>),
    /// The answer to [`Action::Seal`].
    Sealed(ShardId, Result<()>),
    /// The answer to [`Action::Sync`]: everything up to there survives a crash.
    Synced(ShardId, Result<u64>),
    /// The answer to [`Action::Commit`].
    Committed(Result<()>),
    /// How far the store has applied.
    Applied(Vec<(ShardId, u64)>),
    /// The answer to [`Action::OpenSink`].
    SinkOpened(Option<Option<BundlePlace>>),
    /// The answer to [`Action::BeginBundle`].
    BundleBegun(Result<BundlePlace>),
    /// The answer to [`Action::WriteBundle`].
    BundleWritten(Result<()>),
    /// The answer to [`Action::Install`]: how the store stands now.
    Installed(Result<Here>),
    /// All frames at hand are handled; the store takes this many bytes more.
    Flush(u64),
    /// A candidate was promised an epoch here.
    PromisedElsewhere(Promise),
    /// Someone acted: try again after [`Action::Stopped`].
    Retry,
    /// Time passed. Time enters only through `now`.
    Tick,
}

/// What to do. The driver performs these in order.
#[derive(Debug)]
pub enum Action {
    /// Connect to a node.
    Connect(String),
    /// Queue a frame.
    Send(ConnId, Message),
    /// End the connection once what is queued is sent.
    Close(ConnId, Error),
    /// Make a promise durable.
    Promise(Promise),
    /// Take over the leader's lineage.
    Adopt(Lineage),
    /// Say where this log falls back to, per shard: [`crate::locate::fall_back`].
    FallBack(Vec<(ShardId, Position, LeaderId)>),
    /// Save and cut what lies behind `to`.
    Cut(ShardEnd, ShardEnd),
    /// Append whole batches.
    Append(ShardId, Whole),
    /// Seal a segment.
    Seal(ShardId, u64, Vec<u8>),
    /// Make a shard's log durable.
    Sync(ShardId),
    /// Apply up to the committed marks.
    Commit(Vec<CommitMark>, Times),
    /// Make ready for a bundle.
    OpenSink,
    /// A bundle begins.
    BeginBundle(BundlePlan),
    /// Stage bytes of a bundle.
    WriteBundle(u32, u64, Vec<u8>),
    /// Make the bundle the dataset.
    Install,
    /// This node agrees with the leader of this name.
    Joined(String),
    /// The connection ended.
    Left(String, Error),
    /// Nothing more happens until someone acts.
    Stopped(Error),
}

/// One shard while it is followed. Invariant: `durable <= received`, `applied <= received`.
#[derive(Debug, Default)]
struct Stream {
    assembler: Assembler,
    ack: AckEntry,
    // Last sequence that the leader said it wrote and committed.
    written: u64,
    committed: u64,
    // The ack changed since it was sent.
    untold: bool,
    // Records or a seal were added since the last sync.
    unsynced: bool,
}

#[derive(Debug)]
enum State {
    Idle,
    Connecting,
    Greeting,
    /// The welcome waits for a promise, or for a lineage.
    Bowing(Box<Welcome>),
    Agreeing(Agreement),
    Asking,
    Listing(Receipt),
    Receiving(Receipt),
    Following,
    Stopped,
}

/// See the module.
pub struct Follower {
    options: FollowerOptions,
    state: State,
    conn: Option<ConnId>,
    here: Option<Here>,
    // Whom this node follows, once welcomed.
    leader_name: String,
    epoch: Epoch,
    leader: LeaderId,
    wants: Wants,
    streams: BTreeMap<ShardId, Stream>,
    grantor: Grantor,
    times: Times,
    commit_due: bool,
    // Syncs that were asked for and did not come back.
    syncing: usize,
    // Wall clocks of the leader with what it had written then, oldest first; for the lag.
    clocks: VecDeque<(u64, Vec<(ShardId, u64)>)>,
    applied_wall_ms: u64,
    peer: usize,
    retry_ms: u64,
    backoff_ms: u64,
    heard_ms: u64,
    told_ms: u64,
    synced_ms: u64,
    actions: VecDeque<Action>,
}

/// Most wall clocks that wait for their records to be applied.
const CLOCK_COUNT_MAX: usize = 64;

impl Follower {
    /// A follower that connects at its first tick. Without peers it stays where it is: its node
    /// answers candidates and status calls all the same.
    pub fn new(options: FollowerOptions) -> Follower {
        Follower {
            state: State::Idle,
            conn: None,
            here: None,
            leader_name: String::new(),
            epoch: Epoch(0),
            leader: LeaderId::default(),
            wants: Wants::default(),
            streams: BTreeMap::new(),
            grantor: Grantor::new(options.window),
            times: Times::default(),
            commit_due: false,
            syncing: 0,
            clocks: VecDeque::new(),
            applied_wall_ms: 0,
            peer: 0,
            retry_ms: 0,
            backoff_ms: options.retry_ms.0,
            heard_ms: 0,
            told_ms: 0,
            synced_ms: 0,
            actions: VecDeque::new(),
            options,
        }
    }

    /// The only way in. Drain [`Follower::poll_action`] before the next call.
    pub fn handle(&mut self, now: u64, event: Event) {
        assert!(
            self.actions.is_empty(),
            "drain poll_action before the next event"
        );
        match event {
            Event::Connecting(conn) => {
                if matches!(self.state, State::Connecting) {
                    self.conn = Some(conn);
                }
            }
            Event::NoWay(why) => self.fail(now, why),
            Event::Opened(conn, here) => self.opened(now, conn, here),
            Event::Frame(conn, message) if self.conn == Some(conn) => self.frame(now, message),
            Event::Closed(conn, why) if self.conn == Some(conn) => {
                self.conn = None;
                self.fail(now, why);
            }
            // Of a connection that was given up.
            Event::Frame(..) | Event::Closed(..) => {}
            Event::Promised(done) => self.promised(now, done),
            Event::Adopted(done) => self.adopted(now, done),
            Event::FellBack(ends) => self.fell_back(now, ends),
            Event::Cut(shard, done) => self.was_cut(now, shard, done),
            Event::Appended(shard, done) => self.appended(now, shard, done),
            Event::Sealed(shard, done) => self.sealed(now, shard, done),
            Event::Synced(shard, done) => self.synced(now, shard, done),
            Event::Committed(done) => {
                if let Err(why) = done {
                    self.stop(now, why);
                }
            }
            Event::Applied(applied) => self.applied(now, applied),
            Event::SinkOpened(staged) => self.sink_opened(now, staged),
            Event::BundleBegun(place) => self.bundle_begun(now, place),
            Event::BundleWritten(done) => self.bundle_written(now, done),
            Event::Installed(here) => self.installed(now, here),
            Event::Flush(room) => self.flush(now, room),
            Event::PromisedElsewhere(promise) => self.promised_elsewhere(now, promise),
            Event::Retry => {
                if matches!(self.state, State::Stopped) {
                    self.state = State::Idle;
                    self.retry_ms = now;
                }
            }
            Event::Tick => self.tick(now),
        }
        let sound = |s: &Stream| s.ack.durable <= s.ack.received && s.ack.applied <= s.ack.received;
        assert!(
            self.streams.values().all(sound),
            "acks never run ahead of the log"
        );
    }

    /// The only way out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The leadership that is followed; zeros where none is.
    pub fn following(&self) -> (Epoch, LeaderId, &str) {
        match self.state {
            State::Following => (self.epoch, self.leader, &self.leader_name),
            _ => (Epoch(0), LeaderId::default(), ""),
        }
    }

    /// What this node has of a shard that it follows, and what the leader wrote and committed.
    pub fn standing(&self, shard: ShardId) -> Option<(AckEntry, u64, u64)> {
        let stream = self.streams.get(&shard)?;
        Some((stream.ack, stream.written, stream.committed))
    }

    /// Whether it waits for someone to act.
    pub fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped)
    }

    /// When [`Event::Tick`] has something to do, at the latest.
    pub fn due_ms(&self) -> Option<u64> {
        match self.state {
            State::Stopped => None,
            State::Idle if self.options.peers.is_empty() => None,
            State::Idle => Some(self.retry_ms),
            State::Following => {
                let sync = self.streams.values().any(|stream| stream.unsynced);
                let untold = self.streams.values().any(|stream| stream.untold);
                let heartbeat = self.told_ms + self.options.heartbeat_ms;
                let ack = if untold {
                    self.told_ms + self.options.ack_ms
                } else {
                    heartbeat
                };
                let sync = if sync {
                    self.synced_ms + self.options.sync_ms
                } else {
                    heartbeat
                };
                Some(heartbeat.min(ack).min(sync))
            }
            _ => Some(self.told_ms + self.options.heartbeat_ms),
        }
    }

    fn opened(&mut self, now: u64, conn: ConnId, here: Here) {
        if !matches!(self.state, State::Connecting) {
            return;
        }
        self.conn = Some(conn);
        self.state = State::Greeting;
        (self.heard_ms, self.told_ms) = (now, now);
        self.grantor = Grantor::new(self.options.window);
        let wanted =
            |end: &ShardEnd| self.options.only.is_empty() || self.options.only.contains(&end.shard);
        let hello = Hello {
            versions: VERSIONS,
            purpose: self.options.purpose,
            promised_epoch: here.promise.epoch,
            node: here.identity.node,
            incarnation: here.identity.incarnation,
            lineage: here.identity.lineage,
            name: here.identity.name.clone(),
            dataset: here.identity.dataset.clone(),
            ends: here
                .shards
                .iter()
                .map(|(end, _)| *end)
                .filter(wanted)
                .collect(),
        };
        self.here = Some(here);
        self.send(now, Message::Hello(hello));
    }

    fn frame(&mut self, now: u64, message: Message) {
        self.heard_ms = now;
        let state = std::mem::replace(&mut self.state, State::Idle);
        match (state, message) {
            (state, Message::Refused(refusal))
                if !matches!(state, State::Idle | State::Stopped | State::Connecting) =>
            {
                self.state = state;
                self.refused(now, refusal);
            }
            (State::Greeting, Message::Welcome(welcome)) => self.welcomed(now, welcome),
            (State::Agreeing(agreement), Message::Verdicts(verdicts)) => {
                self.state = State::Agreeing(agreement);
                self.verdicts(now, verdicts);
            }
            (
                State::Asking,
                Message::BundleBegin {
                    id,
                    file_count,
                    ends,
                },
            ) => {
                self.bundle_listed(now, Receipt::new(id, file_count, ends), Vec::new());
            }
            (State::Listing(receipt), Message::BundleFiles(files)) => {
                self.bundle_listed(now, receipt, files);
            }
            (State::Receiving(receipt), Message::BundleData { file, at, bytes }) => {
                self.bundle_data(now, receipt, file, at, bytes);
            }
            (State::Receiving(receipt), Message::BundleEnd { id }) => {
                self.bundle_end(now, receipt, id);
            }
            (State::Following, Message::Data(data)) => {
                self.state = State::Following;
                self.data(now, data);
            }
            (State::Following, Message::Seal(seal)) => {
                self.state = State::Following;
                self.seal(now, seal);
            }
            (State::Following, Message::Tick(tick)) => {
                self.state = State::Following;
                self.marks(now, tick);
            }
            // Before the logs agree its marks mean nothing here; it is a sign of life.
            (
                state @ (State::Agreeing(_)
                | State::Asking
                | State::Listing(_)
                | State::Receiving(_)),
                Message::Tick(tick),
            ) if tick.epoch == self.epoch => self.state = state,
            (state, message) => {
                let what = format!("{} while {}", message.name(), state.name());
                self.state = state;
                self.protocol(now, what);
            }
        }
    }

    fn data(&mut self, now: u64, data: Data) {
        let Data { head, bytes } = data;
        let len = bytes.len() as u64;
        if head.epoch != self.epoch {
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
            Ok(None) => {}
            Ok(Some(whole)) => self.actions.push_back(Action::Append(head.shard, whole)),
            Err(why) => self.fail(now, why),
        }
    }

    fn appended(&mut self, now: u64, shard: ShardId, done: Result<Appended>) {
        let Some(stream) = self.streams.get_mut(&shard) else {
            return;
        };
        match done {
            Ok(appended) => {
                assert!(appended.position.seq >= stream.ack.received, "a log grows");
                stream.ack.received = appended.position.seq;
                (stream.untold, stream.unsynced) = (true, true);
                self.commit_due = true;
            }
            // Of its own bytes the log is silent here: what was shipped does not fit, so ask anew.
            Err(
                why @ Error::Log(
                    strandline_wal::Error::Refused { .. } | strandline_wal::Error::Corrupt { .. },
                ),
            ) => {
                self.fail(now, why);
            }
            Err(why) => self.stop(now, why),
        }
    }

    fn seal(&mut self, now: u64, seal: Seal) {
        if seal.epoch != self.epoch {
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

    fn sealed(&mut self, now: u64, shard: ShardId, done: Result<()>) {
        match done {
            Ok(()) => {
                if let Some(stream) = self.streams.get_mut(&shard) {
                    stream.unsynced = true;
                }
            }
            Err(
                why @ Error::Log(
                    strandline_wal::Error::Refused { .. } | strandline_wal::Error::Corrupt { .. },
                ),
            ) => {
                self.fail(now, why);
            }
            Err(why) => self.stop(now, why),
        }
    }

    fn marks(&mut self, now: u64, tick: Tick) {
        if tick.epoch != self.epoch {
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

    fn applied(&mut self, now: u64, applied: Vec<(ShardId, u64)>) {
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

    fn flush(&mut self, now: u64, room: u64) {
        if let Some(granted) = match self.state {
            State::Following | State::Receiving(_) => self.grantor.grant(room),
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
        if self.wants.durable || now.saturating_sub(self.synced_ms) >= self.options.sync_ms {
            for (shard, stream) in &mut self.streams {
                if std::mem::take(&mut stream.unsynced) {
                    self.syncing += 1;
                    self.actions.push_back(Action::Sync(*shard));
                }
            }
        }
        if self.syncing == 0 {
            self.commit();
        }
    }

    fn synced(&mut self, now: u64, shard: ShardId, done: Result<u64>) {
        self.syncing = self.syncing.saturating_sub(1);
        let seq = match done {
            Ok(seq) => seq,
            Err(why) => return self.stop(now, why),
        };
        if let Some(stream) = self.streams.get_mut(&shard) {
            let seq = seq.min(stream.ack.received);
            stream.untold |= seq > stream.ack.durable;
            stream.ack.durable = stream.ack.durable.max(seq);
        }
        if self.syncing == 0 && matches!(self.state, State::Following) {
            self.synced_ms = now;
            if self.wants.durable && self.streams.values().any(|stream| stream.untold) {
                self.send_ack(now);
            }
            // After the ack: whoever waits for a disk does not wait for readers.
            self.commit();
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

    fn send_ack(&mut self, now: u64) {
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

    fn promised_elsewhere(&mut self, now: u64, promise: Promise) {
        let Some(here) = &mut self.here else { return };
        here.promise = promise;
        let greeted = !matches!(
            self.state,
            State::Idle | State::Connecting | State::Stopped | State::Greeting
        );
        if greeted && self.epoch < promise.epoch {
            let text = format!("epoch {} was promised here", promise.epoch);
            self.refuse(now, Reason::StaleEpoch, text);
        }
    }

    fn tick(&mut self, now: u64) {
        match self.state {
            State::Stopped => {}
            State::Idle if now < self.retry_ms || self.options.peers.is_empty() => {}
            State::Idle => {
                self.state = State::Connecting;
                (self.heard_ms, self.told_ms) = (now, now);
                let peer = self.options.peers[self.peer % self.options.peers.len()].clone();
                self.leader_name.clone_from(&peer);
                self.actions.push_back(Action::Connect(peer));
            }
            _ if now.saturating_sub(self.heard_ms) > self.options.silence_ms => {
                let why = Error::unreachable(&self.leader_name, "it was silent for too long");
                self.fail(now, why);
            }
            _ if now.saturating_sub(self.told_ms) < self.options.heartbeat_ms => {}
            State::Following => self.send_ack(now),
            State::Receiving(_) => {
                let granted = self.grantor.granted();
                self.send(now, Message::Credit { granted });
            }
            _ => {}
        }
    }

    fn refused(&mut self, now: u64, refusal: Refusal) {
        let why = Error::Refused {
            reason: refusal.reason,
            text: refusal.text,
            have: refusal.have,
            want: refusal.want.clone(),
        };
        match refusal.reason {
            Reason::Diverged | Reason::Lineage | Reason::Loop | Reason::Shards | Reason::Pruned => {
                self.stop(now, why);
            }
            reason => {
                let hint = self
                    .options
                    .peers
                    .iter()
                    .position(|peer| *peer == refusal.want);
                let next = match (reason, hint) {
                    (Reason::NotLeader, Some(hint)) => hint,
                    _ => self.peer + 1,
                };
                self.fail(now, why);
                self.peer = next;
            }
        }
    }

    fn protocol(&mut self, now: u64, what: impl Into<String>) {
        let why = Error::protocol(&self.leader_name, what);
        self.refuse_with(now, Reason::Protocol, why);
    }

    /// Tells the leader why it is refused, and tries another one later.
    fn refuse(&mut self, now: u64, reason: Reason, text: String) {
        let promise = self
            .here
            .as_ref()
            .map(|here| here.promise)
            .unwrap_or_default();
        let (have, want) = (promise.epoch.to_string(), self.epoch.to_string());
        self.refuse_with(
            now,
            reason,
            Error::Refused {
                reason,
                text,
                have,
                want,
            },
        );
    }

    fn refuse_with(&mut self, now: u64, reason: Reason, why: Error) {
        let epoch = self
            .here
            .as_ref()
            .map(|here| here.promise.epoch)
            .unwrap_or_default();
        let (text, have, want) = match &why {
            Error::Refused {
                text, have, want, ..
            } => (text.clone(), have.clone(), want.clone()),
            why => (why.to_string(), String::new(), String::new()),
        };
        self.send(
            now,
            Message::Refused(Refusal {
                reason,
                text,
                have,
                want,
                epoch,
            }),
        );
        let next = self.peer + 1;
        self.fail(now, why);
        self.peer = next;
    }

    /// Ends the connection; it is made again.
    fn fail(&mut self, now: u64, why: Error) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        // A connection that never came up says that the peer is away: try the next one.
        if matches!(self.state, State::Connecting | State::Greeting) {
            self.peer += 1;
        }
        self.leave(&why);
        self.state = State::Idle;
        self.retry_ms = now + self.backoff_ms;
        self.backoff_ms = (self.backoff_ms * 2).min(self.options.retry_ms.1);
    }

    /// Ends the connection and everything else until someone acts.
    fn stop(&mut self, now: u64, why: Error) {
        if matches!(self.state, State::Stopped) {
            return;
        }
        if let Error::Diverged { .. } | Error::BelowCommitted { .. } = why {
            let reason = Reason::Diverged;
            let epoch = self
                .here
                .as_ref()
                .map(|here| here.promise.epoch)
                .unwrap_or_default();
            let (have, want) = (String::new(), String::new());
            let text = why.to_string();
            self.send(
                now,
                Message::Refused(Refusal {
                    reason,
                    text,
                    have,
                    want,
                    epoch,
                }),
            );
        }
        self.leave(&why);
        self.state = State::Stopped;
        self.actions.push_back(Action::Stopped(why));
    }

    fn leave(&mut self, why: &Error) {
        if let Some(conn) = self.conn.take() {
            self.actions.push_back(Action::Close(conn, why.clone()));
        }
        self.actions
            .push_back(Action::Left(self.leader_name.clone(), why.clone()));
        self.streams.clear();
        self.clocks.clear();
        self.syncing = 0;
        self.commit_due = false;
    }

    fn send(&mut self, now: u64, message: Message) {
        let Some(conn) = self.conn else { return };
        self.told_ms = now;
        self.actions.push_back(Action::Send(conn, message));
    }
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            State::Idle => "idle",
            State::Connecting => "connecting",
            State::Greeting => "greeting",
            State::Bowing(_) => "promising",
            State::Agreeing(_) => "agreeing",
            State::Asking => "asking for a bundle",
            State::Listing(_) => "listing a bundle",
            State::Receiving(_) => "receiving a bundle",
            State::Following => "following",
            State::Stopped => "stopped",
        }
    }
}
