//! A node that wants to lead: gathers promises, fetches the longest logs among them, and only then
//! may open the epoch. Holds no file, no socket, no thread, and no clock.
//!
//! | State | entered by | left by |
//! |-------|------------|---------|
//! | Promising | an epoch that is one above all that are known | its own promise, durable |
//! | Asking | own promise | enough promises: Fetching; one refused: Promising with a higher epoch |
//! | Fetching | the choice of the longest logs | all fetched: Done |
//! | Done | | |
//!
//! On a control connection Welcome, Promise, PromiseRefused and Refused may come; others end it.

use std::collections::{BTreeMap, VecDeque};

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::ids::{Identity, Lineage, NodeId, Promise, ShardEnd};
use crate::message::{Hello, Message, Purpose, Refusal, VERSIONS};
use crate::quorum::{Promised, longest};
use crate::transport::ConnId;

/// Settings of a candidate.
#[derive(Clone, Debug)]
pub struct CandidateOptions {
    /// Names of the other nodes of the list.
    pub peers: Vec<String>,
    /// Promises needed, its own included: [`crate::quorum::promises_needed`], or 1 for a member of an
    /// in-sync set.
    pub needed: usize,
    /// It asks for an epoch above this one: the coordinator's record has it.
    pub above: Epoch,
    /// It gives up after this long, in milliseconds.
    pub timeout_ms: u64,
    /// It gives up once this many epochs were refused.
    pub epoch_count_max: u32,
}

impl Default for CandidateOptions {
    fn default() -> CandidateOptions {
        CandidateOptions {
            peers: Vec::new(),
            needed: 1,
            above: Epoch(0),
            timeout_ms: 10_000,
            epoch_count_max: 16,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// The answer to [`Action::Promise`]: the durable ends of the own logs.
    Promised(Result<Vec<ShardEnd>>),
    /// The answer to [`Action::Connect`]: under way, or not even that.
    Connecting(String, Result<ConnId>),
    /// A connection is up.
    Opened(ConnId),
    /// A frame came.
    Frame(ConnId, Message),
    /// A connection ended.
    Closed(ConnId),
    /// The answer to [`Action::Fetch`]: the logs are here and durable.
    Fetched(Result<()>),
    /// A higher epoch was promised here meanwhile.
    Outdated(Promise),
    /// Time passed.
    Tick,
}

/// What to do, in order.
#[derive(Debug)]
pub enum Action {
    /// Make the promise to itself durable, sync, and tell the ends of the own logs.
    Promise(Promise),
    /// Connect to a node.
    Connect(String),
    /// Queue a frame.
    Send(ConnId, Message),
    /// End a connection.
    Close(ConnId),
    /// Follow that node, which lends its logs, up to these ends.
    Fetch(String, Vec<ShardEnd>),
    /// It may lead.
    Elected(Epoch),
    /// It may not.
    NotElected(Error),
}

#[derive(Debug, Eq, PartialEq)]
enum State {
    Promising,
    Asking,
    Fetching,
    Done,
}

#[derive(Debug)]
struct Voter {
    name: String,
    // Once welcomed.
    node: Option<NodeId>,
}

/// See the module.
pub struct Candidate {
    identity: Identity,
    options: CandidateOptions,
    state: State,
    epoch: Epoch,
    epoch_count: u32,
    voters: BTreeMap<ConnId, Voter>,
    names: BTreeMap<NodeId, String>,
    promises: Vec<Promised>,
    fetches: VecDeque<(String, Vec<ShardEnd>)>,
    began_ms: u64,
    actions: VecDeque<Action>,
}

impl Candidate {
    /// Begins with the epoch above `promised`.
    pub fn new(
        now: u64,
        identity: Identity,
        promised: Promise,
        options: CandidateOptions,
    ) -> Candidate {
        let mut candidate = Candidate {
            identity,
            options,
            state: State::Promising,
            epoch: promised.epoch,
            epoch_count: 0,
            voters: BTreeMap::new(),
            names: BTreeMap::new(),
            promises: Vec::new(),
            fetches: VecDeque::new(),
            began_ms: now,
            actions: VecDeque::new(),
        };
        if candidate.identity.lineage == Lineage::default() {
            // Its first leader had an epoch that it does not know of: it might claim the same one.
            let what = "a node that never followed cannot lead".to_owned();
            candidate.give_up(Error::Store { what });
        } else {
            candidate.claim(promised.epoch);
        }
        candidate
    }

    /// The only way in. Drain [`Candidate::poll_action`] before the next call, and after the first
    /// breath.
    pub fn handle(&mut self, now: u64, event: Event) {
        assert!(
            self.actions.is_empty(),
            "drain poll_action before the next event"
        );
        match event {
            Event::Promised(ends) => self.promised(ends),
            Event::Connecting(name, Ok(conn)) => {
                self.voters.insert(conn, Voter { name, node: None });
            }
            Event::Connecting(_, Err(_)) => {}
            Event::Opened(conn) => self.greet(conn),
            Event::Frame(conn, message) => self.frame(conn, message),
            Event::Closed(conn) => {
                self.voters.remove(&conn);
            }
            Event::Fetched(done) => self.fetched(done),
            Event::Outdated(promise) => {
                if promise.epoch > self.epoch && !planted("candidate.outdated") {
                    let (epoch, ours) = (promise.epoch, self.epoch);
                    self.give_up(Error::Fenced { epoch, ours });
                }
            }
            Event::Tick => {
                if now.saturating_sub(self.began_ms) > self.options.timeout_ms {
                    let (needed, found) = (self.options.needed, self.promises.len());
                    self.give_up(Error::TooFewPromises { needed, found });
                }
            }
        }
    }

    /// The only way out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Event::Tick`] has something to do.
    pub fn due_ms(&self) -> Option<u64> {
        (self.state != State::Done).then_some(self.began_ms + self.options.timeout_ms + 1)
    }

    /// Asks for the epoch above `known`, of itself first.
    fn claim(&mut self, known: Epoch) {
        self.epoch_count += 1;
        if self.epoch_count > self.options.epoch_count_max || known.0 == u32::MAX {
            let (needed, found) = (self.options.needed, self.promises.len());
            return self.give_up(Error::TooFewPromises { needed, found });
        }
        self.epoch = Epoch(known.0 + 1);
        self.promises.clear();
        self.state = State::Promising;
        let promise = Promise {
            epoch: self.epoch,
            to: self.identity.node,
        };
        self.actions.push_back(Action::Promise(promise));
    }

    fn promised(&mut self, ends: Result<Vec<ShardEnd>>) {
        if self.state != State::Promising {
            return;
        }
        let ends = match ends {
            Ok(ends) => ends,
            Err(why) => return self.give_up(why),
        };
        self.state = State::Asking;
        self.promises.push(Promised {
            node: self.identity.node,
            ends,
        });
        if self.voters.is_empty() {
            for peer in &self.options.peers {
                self.actions.push_back(Action::Connect(peer.clone()));
            }
        }
        let epoch = self.epoch;
        let welcomed = self.voters.iter().filter(|(_, voter)| voter.node.is_some());
        let ask =
            |(conn, _): (&ConnId, &Voter)| Action::Send(*conn, Message::PromiseRequest { epoch });
        self.actions.extend(welcomed.map(ask));
        self.decide();
    }

    fn greet(&mut self, conn: ConnId) {
        if !self.voters.contains_key(&conn) || self.state == State::Done {
            return;
        }
        let Identity {
            node,
            incarnation,
            name,
            dataset,
            lineage,
        } = self.identity.clone();
        let hello = Hello {
            versions: VERSIONS,
            purpose: Purpose::Control,
            promised_epoch: self.epoch,
            node,
            incarnation,
            lineage,
            name,
            dataset,
            ends: Vec::new(),
        };
        self.actions
            .push_back(Action::Send(conn, Message::Hello(hello)));
    }

    fn frame(&mut self, conn: ConnId, message: Message) {
        let Some(voter) = self.voters.get_mut(&conn) else {
            return;
        };
        match (voter.node, message) {
            (None, Message::Welcome(welcome)) if welcome.lineage == self.identity.lineage => {
                voter.node = Some(welcome.node);
                self.names.insert(welcome.node, voter.name.clone());
                if self.state == State::Asking {
                    let ask = Message::PromiseRequest { epoch: self.epoch };
                    self.actions.push_back(Action::Send(conn, ask));
                }
            }
            (Some(node), Message::Promise { epoch, ends }) => {
                let first = self.promises.iter().all(|promised| promised.node != node)
                    || planted("candidate.twice");
                let is_ours = epoch == self.epoch || planted("candidate.promise");
                if is_ours && self.state == State::Asking && first {
                    self.promises.push(Promised { node, ends });
                    self.decide();
                }
            }
            (Some(_), Message::PromiseRefused { promise }) => {
                let is_later = promise.epoch >= self.epoch && !planted("candidate.refused");
                if self.state == State::Asking && is_later {
                    self.claim(promise.epoch);
                }
            }
            (_, Message::Refused(Refusal { .. })) | (_, _) => {
                self.voters.remove(&conn);
                self.actions.push_back(Action::Close(conn));
            }
        }
    }

    /// Chooses the longest logs once there are enough promises.
    fn decide(&mut self) {
        if self.promises.len() < self.options.needed {
            return;
        }
        let own = self.identity.node;
        let chosen = match longest(own, &self.promises, self.options.needed) {
            Ok(chosen) => chosen,
            Err(why) => return self.give_up(why),
        };
        let mut sources: BTreeMap<NodeId, Vec<ShardEnd>> = BTreeMap::new();
        for (node, end) in chosen.into_iter().filter(|(node, _)| *node != own) {
            sources.entry(node).or_default().push(end);
        }
        self.fetches = sources
            .into_iter()
            .map(|(n, ends)| (self.names[&n].clone(), ends))
            .collect();
        self.state = State::Fetching;
        self.fetch_next();
    }

    fn fetch_next(&mut self) {
        match self.fetches.pop_front() {
            Some((name, ends)) => self.actions.push_back(Action::Fetch(name, ends)),
            None => {
                self.actions.push_back(Action::Elected(self.epoch));
                self.end();
            }
        }
    }

    fn fetched(&mut self, done: Result<()>) {
        if self.state != State::Fetching {
            return;
        }
        match done {
            Ok(()) => self.fetch_next(),
            Err(why) => self.give_up(why),
        }
    }

    fn give_up(&mut self, why: Error) {
        if self.state != State::Done {
            self.actions.push_back(Action::NotElected(why));
            self.end();
        }
    }

    fn end(&mut self) {
        self.state = State::Done;
        let conns = std::mem::take(&mut self.voters).into_keys();
        self.actions.extend(conns.map(Action::Close));
    }
}

#[cfg(test)]
mod tests;
