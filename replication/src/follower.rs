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

use strandline_wal::bug::planted;
use strandline_wal::{Epoch, ShardId};

use crate::assemble::Assembler;
use crate::credit::Grantor;
use crate::error::{Error, Reason};
use crate::ids::{LeaderId, NodeId, Promise, ShardEnd};
use crate::message::{AckEntry, Hello, Message, Refusal, VERSIONS, Wants, Welcome};
use crate::store::Times;
use crate::transport::ConnId;

mod agreeing;
mod bundling;
mod event;
mod following;
#[cfg(test)]
mod tests;

use agreeing::Agreement;
use bundling::Receipt;
pub use event::{Action, Event, FollowerOptions, Here};

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
    // Bytes that were added since the last sync.
    unsynced_len: u64,
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
    leader_node: NodeId,
    epoch: Epoch,
    leader: LeaderId,
    wants: Wants,
    streams: BTreeMap<ShardId, Stream>,
    grantor: Grantor,
    times: Times,
    commit_due: bool,
    // Where the store last refused what was shipped: a shard and its end.
    refused_at: Option<(ShardId, u64)>,
    // It refused there twice: the files differ though the logs agree, and only a bundle helps.
    misfits: bool,
    // Syncs that were asked for and did not come back.
    syncing: usize,
    // A sync that goes on beside everything else.
    is_syncing_beside: bool,
    // Wall clocks of the leader with what it had written then, oldest first; for the lag.
    clocks: VecDeque<(u64, Vec<(ShardId, u64)>)>,
    applied_wall_ms: u64,
    peer: usize,
    // Connections that ended before a peer greeted, since one did.
    ungreeted: u32,
    retry_ms: u64,
    backoff_ms: u64,
    heard_ms: u64,
    told_ms: u64,
    synced_ms: u64,
    actions: VecDeque<Action>,
}

impl Follower {
    /// A follower that connects at its first tick. Without peers it stays where it is: its node
    /// answers candidates and status calls all the same.
    pub fn new(options: FollowerOptions) -> Follower {
        Follower {
            state: State::Idle,
            conn: None,
            here: None,
            leader_name: String::new(),
            leader_node: NodeId::default(),
            epoch: Epoch(0),
            leader: LeaderId::default(),
            wants: Wants::default(),
            streams: BTreeMap::new(),
            grantor: Grantor::new(options.window),
            times: Times::default(),
            commit_due: false,
            refused_at: None,
            misfits: false,
            syncing: 0,
            is_syncing_beside: false,
            clocks: VecDeque::new(),
            applied_wall_ms: 0,
            peer: 0,
            ungreeted: 0,
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
            Event::SyncEnded(done) => self.persisted(now, done),
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

    /// The epoch of the leader that welcomed this node, and when it was last heard; `None` where there is
    /// no such connection.
    pub fn heard(&self) -> Option<(Epoch, u64)> {
        match self.state {
            State::Idle | State::Connecting | State::Greeting | State::Stopped => None,
            _ => Some((self.epoch, self.heard_ms)),
        }
    }

    /// What this node has of a shard that it follows, and what the leader wrote and committed.
    pub fn standing(&self, shard: ShardId) -> Option<(AckEntry, u64, u64)> {
        let stream = self.streams.get(&shard)?;
        Some((stream.ack, stream.written, stream.committed))
    }

    /// Whether the end of an [`Action::Persist`] is waited for.
    pub fn is_syncing_beside(&self) -> bool {
        self.is_syncing_beside
    }

    /// When [`Event::Tick`] has something to do, at the latest.
    pub fn due_ms(&self) -> Option<u64> {
        match self.state {
            State::Stopped => None,
            State::Idle if self.options.peers.is_empty() => None,
            State::Idle => Some(self.retry_ms),
            State::Following => {
                let sync = self.streams.values().any(|stream| stream.unsynced);
                let sync = sync && !self.is_syncing_beside;
                let untold = self.streams.values().any(|stream| stream.untold);
                let heartbeat = self.told_ms + self.options.heartbeat_ms;
                let ack = if untold {
                    self.told_ms + self.options.ack_ms
                } else {
                    heartbeat
                };
                let sync = if sync {
                    self.synced_ms + self.pause_ms()
                } else {
                    heartbeat
                };
                Some(heartbeat.min(ack).min(sync))
            }
            _ => Some(
                (self.told_ms + self.options.heartbeat_ms)
                    .min(self.heard_ms + self.patience_ms() + 1),
            ),
        }
    }

    /// How long the peer may be silent.
    fn patience_ms(&self) -> u64 {
        match self.state {
            // Whoever is far away needs longer: twice as long each time that all peers were tried.
            State::Connecting | State::Greeting => {
                let peer_count = self.options.peers.len().max(1) as u64;
                let rounds = (u64::from(self.ungreeted) / peer_count).min(16);
                let greeting_ms = self.options.greeting_ms.saturating_mul(1 << rounds);
                self.options.silence_ms.min(greeting_ms)
            }
            _ => self.options.silence_ms,
        }
    }

    fn opened(&mut self, now: u64, conn: ConnId, mut here: Here) {
        if !matches!(self.state, State::Connecting) {
            return;
        }
        let least = Promise {
            epoch: self.options.least_epoch,
            to: here.identity.node,
        };
        if here.promise.epoch < least.epoch && !planted("follower.least") {
            here.promise = least;
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
            ) if tick.epoch == self.epoch || planted("follower.early_tick") => self.state = state,
            (state, message) => {
                let what = format!("{} while {}", message.name(), state.name());
                self.state = state;
                self.protocol(now, what);
            }
        }
    }

    fn promised_elsewhere(&mut self, now: u64, promise: Promise) {
        let Some(here) = &mut self.here else { return };
        here.promise = promise;
        let greeted = !matches!(
            self.state,
            State::Idle | State::Connecting | State::Stopped | State::Greeting
        );
        if greeted && self.epoch < promise.epoch && !planted("follower.promised") {
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
            _ if now.saturating_sub(self.heard_ms) > self.patience_ms() => {
                let why = Error::unreachable(&self.leader_name, "it was silent for too long");
                self.fail(now, why);
            }
            _ if now.saturating_sub(self.told_ms) < self.options.heartbeat_ms => {}
            State::Following => self.send_ack(now),
            // A sign of life that changes nothing; its number shows a frame that was lost before it.
            State::Agreeing(_) | State::Asking | State::Listing(_) | State::Receiving(_) => {
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
            self.ungreeted = self.ungreeted.saturating_add(1);
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
        self.is_syncing_beside = false;
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
