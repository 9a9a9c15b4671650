//! One dataset on one node: its role, and what it answers whatever its role is.

use std::collections::VecDeque;
use std::sync::Arc;

use strandline_wal::bug::planted;
use strandline_wal::unless;
use strandline_wal::{DatasetId, Epoch};

use super::Now;
use super::pursue::Pursuer;
use super::serve::Server;
use super::wires::{Part, Wires};
use crate::candidate::{self, Candidate, CandidateOptions};
use crate::error::{Error, Reason, Result};
use crate::failover::Follows;
use crate::follower::{self, FollowerOptions};
use crate::ids::{Identity, LeaderId, Lineage, Promise, ShardEnd};
use crate::lag::LagGauges;
use crate::leader::{self, LeaderOptions};
use crate::message::{AckEntry, Hello, Message, Purpose, Role as MessageRole, Status};
use crate::state::ReplicationState;
use crate::store::{FollowerStore, LeaderStore, LogSource, Report};
use crate::transport::ConnId;
use crate::voter::{self, Voter};

pub(super) struct Dataset {
    identity: Identity,
    source: Arc<dyn LogSource>,
    role: Role,
    voter: Voter,
    // Hands the log to the candidate that was promised an epoch.
    lender: Option<Server>,
}

enum Role {
    Leading(Box<Server>, Arc<dyn LeaderStore>),
    Following(Box<Pursuer>, Arc<dyn FollowerStore>),
    Campaigning(Box<Campaign>),
}

struct Campaign {
    candidate: Candidate,
    store: Arc<dyn FollowerStore>,
    fetch: Option<(Pursuer, Vec<ShardEnd>)>,
    over: bool,
}

impl Dataset {
    pub fn lead(store: Arc<dyn LeaderStore>, options: LeaderOptions) -> Dataset {
        let server = Server::lead(Arc::clone(&store), options);
        let source: Arc<dyn LogSource> = store.clone();
        let leadership = store.leadership();
        let mut dataset = Dataset::new(source, Role::Leading(Box::new(server), store));
        // Its own epoch is promised to itself, whatever the store wrote down.
        let promise = Promise {
            epoch: leadership.epoch,
            to: dataset.identity.node,
        };
        dataset.voter.handle(voter::Event::Learned(promise));
        dataset
    }

    pub fn follow(store: Arc<dyn FollowerStore>, options: FollowerOptions) -> Dataset {
        let pursuer = Pursuer::new(Arc::clone(&store), options, Part::Pursuer);
        let source: Arc<dyn LogSource> = store.clone();
        Dataset::new(source, Role::Following(Box::new(pursuer), store))
    }

    pub fn campaign(
        now: Now,
        wires: &mut Wires,
        store: Arc<dyn FollowerStore>,
        options: CandidateOptions,
    ) -> Dataset {
        let mut known = store.promised();
        known.epoch = known.epoch.max(store.highest_epoch()).max(options.above);
        let candidate = Candidate::new(now.mono_ms, store.identity(), known, options);
        let source: Arc<dyn LogSource> = store.clone();
        let campaign = Campaign {
            candidate,
            store,
            fetch: None,
            over: false,
        };
        let mut dataset = Dataset::new(source, Role::Campaigning(Box::new(campaign)));
        dataset.campaign_on(now, wires, None);
        dataset
    }

    fn new(source: Arc<dyn LogSource>, role: Role) -> Dataset {
        let identity = source.identity();
        let voter = Voter::new(identity.clone(), source.promised(), source.highest_epoch());
        Dataset {
            identity,
            source,
            role,
            voter,
            lender: None,
        }
    }

    pub fn id(&self) -> &DatasetId {
        &self.identity.dataset
    }

    pub fn state(&self) -> Option<Arc<ReplicationState>> {
        match &self.role {
            Role::Following(pursuer, _) => Some(Arc::clone(pursuer.state())),
            Role::Leading(..) | Role::Campaigning(_) => None,
        }
    }

    /// Where it follows: the epoch of the leader, and when that was last heard.
    pub fn heard(&self) -> Option<(Epoch, u64)> {
        match &self.role {
            Role::Following(pursuer, _) => pursuer.machine().heard(),
            Role::Leading(..) | Role::Campaigning(_) => None,
        }
    }

    /// Where it leads: the durable ends of its logs, and how its followers stand.
    pub fn follows(&self) -> Option<(Vec<u64>, Vec<Follows>)> {
        match &self.role {
            Role::Leading(server, _) => Some(server.follows()),
            Role::Following(..) | Role::Campaigning(_) => None,
        }
    }

    /// The first frame of an accepted connection: which machine takes it?
    pub fn greet(&mut self, now: Now, wires: &mut Wires, conn: ConnId, hello: Hello) {
        let part = match hello.purpose {
            Purpose::Control => Part::Voter,
            Purpose::Fetch => Part::Lender,
            Purpose::Follow => Part::Server,
        };
        if let Some(entry) = wires.conns.get_mut(&conn) {
            entry.peer.clone_from(&hello.name);
            entry.owner = Some((self.identity.dataset.clone(), part));
        }
        if part == Part::Server && !matches!(self.role, Role::Leading(..)) {
            let (_, _, leader) = self.followed();
            let text = "it does not lead this dataset";
            return wires.turn_away(now.mono_ms, conn, Reason::NotLeader, text, &leader);
        }
        if part == Part::Lender {
            let promise = self.voter.promise();
            if promise
                != (Promise {
                    epoch: hello.promised_epoch,
                    to: hello.node,
                })
            {
                let text = "it was promised to another";
                return wires.turn_away(now.mono_ms, conn, Reason::StaleEpoch, text, "");
            }
            let stale = self
                .lender
                .as_ref()
                .is_none_or(|l| l.leadership().0.epoch != promise.epoch);
            if stale {
                let lender = Server::lend(Arc::clone(&self.source), promise.epoch, promise.to);
                self.lender = Some(lender);
            }
            if let Some(lender) = &mut self.lender {
                lender.refresh(now, wires);
            }
        }
        self.message(now, wires, conn, part, Message::Hello(hello));
    }

    pub fn opened(&mut self, now: Now, wires: &mut Wires, conn: ConnId, part: Part) {
        match (&mut self.role, part) {
            (Role::Following(pursuer, _), Part::Pursuer) => pursuer.opened(now, wires, conn),
            (Role::Campaigning(_), Part::Candidate) => {
                self.campaign_on(now, wires, Some(candidate::Event::Opened(conn)));
            }
            (Role::Campaigning(campaign), Part::Fetcher) => {
                if let Some((pursuer, _)) = &mut campaign.fetch {
                    pursuer.opened(now, wires, conn);
                }
            }
            // Of a role that this dataset had before.
            _ => wires.close(now.mono_ms, conn),
        }
    }

    pub fn message(
        &mut self,
        now: Now,
        wires: &mut Wires,
        conn: ConnId,
        part: Part,
        message: Message,
    ) {
        match (&mut self.role, part) {
            (Role::Leading(server, _), Part::Server) => {
                server.feed(now, wires, leader::Event::Frame(conn, message));
            }
            (_, Part::Lender) => {
                if let Some(lender) = &mut self.lender {
                    lender.feed(now, wires, leader::Event::Frame(conn, message));
                }
            }
            (_, Part::Voter) => self.vote(now, wires, voter::Event::Frame(conn, message)),
            (Role::Following(pursuer, _), Part::Pursuer) => {
                pursuer.feed(now, wires, follower::Event::Frame(conn, message));
                if let Some(promise) = pursuer.take_promise() {
                    // Whoever it lent its log to can no longer win, and the log may be cut now.
                    self.lender = None;
                    close_all(now, wires, &self.identity.dataset, Part::Lender);
                    self.vote(now, wires, voter::Event::Learned(promise));
                }
                if self.identity.lineage == Lineage::default() {
                    self.identity = self.source.identity();
                    let lineage = self.identity.lineage;
                    self.vote(now, wires, voter::Event::Adopted(lineage));
                }
            }
            (Role::Campaigning(campaign), Part::Fetcher) => {
                if let Some((pursuer, _)) = &mut campaign.fetch {
                    pursuer.feed(now, wires, follower::Event::Frame(conn, message));
                }
            }
            (Role::Campaigning(_), Part::Candidate) => {
                self.campaign_on(now, wires, Some(candidate::Event::Frame(conn, message)));
            }
            _ => wires.close(now.mono_ms, conn),
        }
    }

    pub fn closed(&mut self, now: Now, wires: &mut Wires, conn: ConnId, part: Part, why: Error) {
        match (&mut self.role, part) {
            (Role::Leading(server, _), Part::Server) => {
                server.feed(now, wires, leader::Event::Closed(conn, why));
            }
            (_, Part::Lender) => {
                if let Some(lender) = &mut self.lender {
                    lender.feed(now, wires, leader::Event::Closed(conn, why));
                }
            }
            (_, Part::Voter) => self.vote(now, wires, voter::Event::Closed(conn)),
            (Role::Following(pursuer, _), Part::Pursuer) => {
                pursuer.feed(now, wires, follower::Event::Closed(conn, why));
            }
            (Role::Campaigning(campaign), Part::Fetcher) => {
                if let Some((pursuer, _)) = &mut campaign.fetch {
                    pursuer.feed(now, wires, follower::Event::Closed(conn, why));
                }
            }
            (Role::Campaigning(_), Part::Candidate) => {
                self.campaign_on(now, wires, Some(candidate::Event::Closed(conn)));
            }
            _ => {}
        }
    }

    /// Before frames are handled: a leader judges them by what is written now.
    pub fn refresh(&mut self, now: Now, wires: &mut Wires) {
        if let Role::Leading(server, _) = &mut self.role {
            server.refresh(now, wires);
        }
    }

    /// After frames are handled: ship, sync, ack, apply. `true` where more is left to do.
    pub fn settle(&mut self, now: Now, wires: &mut Wires, gauges: &LagGauges) -> bool {
        let mut busy = false;
        if let Some(lender) = &mut self.lender {
            lender.refresh(now, wires);
            busy |= lender.ship(now, wires);
            lender.feed(now, wires, leader::Event::Tick);
        }
        match &mut self.role {
            Role::Leading(server, _) => {
                server.refresh(now, wires);
                busy |= server.ship(now, wires);
                server.feed(now, wires, leader::Event::Tick);
                server.gauge(now, &self.identity, gauges);
            }
            Role::Following(pursuer, _) => {
                pursuer.flush(now, wires);
                pursuer.feed(now, wires, follower::Event::Tick);
            }
            Role::Campaigning(campaign) => {
                let mut fetched = None;
                if let Some((pursuer, ends)) = &mut campaign.fetch {
                    pursuer.flush(now, wires);
                    pursuer.feed(now, wires, follower::Event::Tick);
                    fetched = match pursuer.stopped() {
                        Some(why) => Some(Err(why.clone())),
                        None => pursuer.has(ends).then_some(Ok(())),
                    };
                }
                if let Some(fetched) = fetched {
                    campaign.fetch = None;
                    close_all(now, wires, &self.identity.dataset, Part::Fetcher);
                    self.campaign_on(now, wires, Some(candidate::Event::Fetched(fetched)));
                }
                self.campaign_on(now, wires, Some(candidate::Event::Tick));
            }
        }
        busy
    }

    pub fn due_ms(&self) -> Option<u64> {
        let role = match &self.role {
            Role::Leading(server, _) => server.due_ms(),
            Role::Following(pursuer, _) => pursuer.due_ms(),
            Role::Campaigning(campaign) => {
                let fetch = campaign
                    .fetch
                    .as_ref()
                    .and_then(|(pursuer, _)| pursuer.due_ms());
                [campaign.candidate.due_ms(), fetch]
                    .into_iter()
                    .flatten()
                    .min()
            }
        };
        let lender = self.lender.as_ref().and_then(|lender| lender.due_ms());
        [role, lender].into_iter().flatten().min()
    }

    pub fn policy(&mut self, now: Now, wires: &mut Wires, policy: crate::quorum::Policy) {
        if let Role::Leading(server, _) = &mut self.role {
            server.feed(now, wires, leader::Event::Policy(policy));
        }
    }

    pub fn retry(&mut self, now: Now, wires: &mut Wires) {
        if let Role::Following(pursuer, _) = &mut self.role {
            pursuer.feed(now, wires, follower::Event::Retry);
        }
    }

    fn vote(&mut self, now: Now, wires: &mut Wires, event: voter::Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.voter.handle(event);
            while let Some(action) = self.voter.poll_action() {
                match action {
                    voter::Action::Send(conn, message) => {
                        if wires.send(now.mono_ms, conn, &message).is_err() {
                            events.push_back(voter::Event::Closed(conn));
                        }
                    }
                    voter::Action::Close(conn, _) => wires.close(now.mono_ms, conn),
                    voter::Action::Promise(conn, promise) => {
                        let ends = self.promise(now, wires, promise);
                        events.push_back(voter::Event::Promised(conn, promise, ends));
                    }
                    voter::Action::LookUp(conn) => {
                        events.push_back(voter::Event::LookedUp(conn, self.status()));
                    }
                }
            }
        }
    }

    /// Makes a promise to another node: no append of a lower epoch comes after it, and the ends are
    /// durable when they are told.
    fn promise(&mut self, now: Now, wires: &mut Wires, promise: Promise) -> Result<Vec<ShardEnd>> {
        if !self.source.votes() {
            let what = "it joins, and may lack what its leader had when it came".to_owned();
            return Err(Error::Store { what });
        }
        if let Role::Leading(server, _) = &mut self.role {
            server.feed(now, wires, leader::Event::Outdated(promise.epoch));
        }
        if promise != self.source.promised() && !planted("promise.volatile") {
            self.source.promise(promise)?;
        }
        self.lender = None;
        close_all(now, wires, &self.identity.dataset, Part::Lender);
        match &mut self.role {
            Role::Leading(..) => {}
            Role::Following(pursuer, _) => {
                pursuer.feed(now, wires, follower::Event::PromisedElsewhere(promise));
            }
            Role::Campaigning(_) => {
                self.campaign_on(now, wires, Some(candidate::Event::Outdated(promise)));
            }
        }
        durable_ends(self.source.as_ref())
    }

    fn followed(&self) -> (Epoch, LeaderId, String) {
        match &self.role {
            Role::Leading(server, _) => {
                let (leadership, fenced) = server.leadership();
                let name = if fenced.is_none() {
                    self.identity.name.clone()
                } else {
                    String::new()
                };
                (leadership.epoch, leadership.leader, name)
            }
            Role::Following(pursuer, _) => {
                let (epoch, leader, name) = pursuer.machine().following();
                (epoch, leader, name.to_owned())
            }
            Role::Campaigning(_) => (Epoch(0), LeaderId::default(), String::new()),
        }
    }

    fn status(&self) -> Status {
        let (epoch, leader, leader_name) = self.followed();
        let shards = self.source.shards().into_iter().map(|shard| {
            let (log, end) = (self.source.log(shard), self.source.end(shard));
            let applied = match &self.role {
                Role::Leading(_, store) => store.marks(shard).committed,
                Role::Following(_, store) => store.applied(shard),
                Role::Campaigning(campaign) => campaign.store.applied(shard),
            };
            let (received, durable) = (end.position.seq, log.synced_seq());
            (
                end,
                AckEntry {
                    shard,
                    received,
                    durable,
                    applied,
                },
            )
        });
        let role = match &self.role {
            Role::Leading(..) => MessageRole::Leader,
            Role::Following(..) => MessageRole::Follower,
            Role::Campaigning(_) => MessageRole::Candidate,
        };
        let promise = self.voter.promise();
        Status {
            role,
            promise,
            epoch,
            leader,
            leader_name,
            shards: shards.collect(),
        }
    }

    /// One event of the campaign in, all its consequences out; `None` just drains.
    fn campaign_on(&mut self, now: Now, wires: &mut Wires, event: Option<candidate::Event>) {
        let dataset = self.identity.dataset.clone();
        let mut events: VecDeque<_> = event.into_iter().collect();
        loop {
            let Role::Campaigning(campaign) = &mut self.role else {
                return;
            };
            while let Some(action) = campaign.candidate.poll_action() {
                match action {
                    candidate::Action::Promise(promise) => {
                        let store = campaign.store.as_ref();
                        let ends = store.promise(promise).and_then(|()| durable_ends(store));
                        if ends.is_ok() {
                            self.voter.handle(voter::Event::Learned(promise));
                        }
                        events.push_back(candidate::Event::Promised(ends));
                    }
                    candidate::Action::Connect(name) => {
                        let conn = wires.connect(now.mono_ms, &name, &dataset, Part::Candidate);
                        events.push_back(candidate::Event::Connecting(name, conn));
                    }
                    candidate::Action::Send(conn, message) => {
                        if wires.send(now.mono_ms, conn, &message).is_err() {
                            events.push_back(candidate::Event::Closed(conn));
                        }
                    }
                    candidate::Action::Close(conn) => wires.close(now.mono_ms, conn),
                    candidate::Action::Fetch(name, ends) => {
                        let options = FollowerOptions {
                            peers: vec![name],
                            purpose: Purpose::Fetch,
                            only: ends.iter().map(|end| end.shard).collect(),
                            sync_ms: 0,
                            ..FollowerOptions::default()
                        };
                        let store = Arc::clone(&campaign.store);
                        let pursuer = Pursuer::new(store, options, Part::Fetcher);
                        campaign.fetch = Some((pursuer, ends));
                    }
                    candidate::Action::Elected(epoch) => {
                        campaign.over = true;
                        campaign.store.report(Report::Elected { epoch });
                    }
                    candidate::Action::NotElected(why) => {
                        campaign.over = true;
                        campaign.fetch = None;
                        campaign.store.report(Report::NotElected { why });
                    }
                }
            }
            let Some(event) = events.pop_front() else {
                return;
            };
            campaign.candidate.handle(now.mono_ms, event);
        }
    }
}

/// Syncs all shards and tells where they end.
fn durable_ends(source: &dyn LogSource) -> Result<Vec<ShardEnd>> {
    let shards = source.shards();
    shards
        .iter()
        .try_for_each(|shard| unless!("promise.sync", source.sync(*shard)).map(|_| ()))?;
    Ok(shards.into_iter().map(|shard| source.end(shard)).collect())
}

/// Ends the connections of one part of a dataset.
pub(super) fn close_all(now: Now, wires: &mut Wires, dataset: &DatasetId, part: Part) {
    let own = |owner: &Option<(DatasetId, Part)>| {
        owner
            .as_ref()
            .is_some_and(|(of, p)| of == dataset && *p == part)
    };
    let conns: Vec<_> = wires
        .conns
        .iter()
        .filter(|(_, c)| own(&c.owner))
        .map(|(conn, _)| *conn)
        .collect();
    conns
        .into_iter()
        .for_each(|conn| wires.close(now.mono_ms, conn));
}
