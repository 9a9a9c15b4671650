//! A node of a cluster: a database's datasets on one driver, stepped by hand or by a thread.
//!
//! The driver ships and follows; what it reports is acted on here. Stepped by hand, over the local
//! transport and a simulated disk, a whole cluster runs on one thread.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use strandline_replication::Error::{Outlived, Refused};
use strandline_replication::Reason;
use strandline_replication::candidate::CandidateOptions;
use strandline_replication::failover::Event;
use strandline_replication::follower::FollowerOptions;
use strandline_replication::lag::LagGauges;
use strandline_replication::leader::LeaderOptions;
use strandline_replication::message::Wants;
use strandline_replication::quorum::{Policy, promises_needed};
use strandline_replication::transport::Transport;
use strandline_replication::{Command, Driver, NodeId, Notifier, Now, Report};
use strandline_wal::unless;
use strandline_wal::{DatasetId, Epoch, Position};

use super::joint::Joint;
use super::{FollowStatus, FollowerStatus, Promotion};
use crate::dataset::{Dataset, DatasetInner, Reopen};
use crate::error::{Error, Result};
use crate::event::What;
use crate::store::Role;
use crate::store::recover::NO_LINEAGE;
use elected::Elected;

mod elected;

/// Most reports that wait for the next step.
const REPORT_COUNT_MAX: usize = 4096;

/// A forced leadership skips this many epochs: what others promised to candidates that nobody can ask
/// now lies below it.
const FORCED_EPOCH_STEP: u32 = 1_000;

/// Reports of the driver's stores, in order.
type Reports = Arc<Mutex<VecDeque<(DatasetId, Report)>>>;

/// How a campaign ended, or that it has not.
#[derive(Clone, Debug, Default)]
pub enum Campaign {
    /// None was started, or it goes on.
    #[default]
    Open,
    /// This node leads now.
    Won(Promotion),
    /// It does not.
    Lost(Error),
}

/// A node of a cluster. See the module.
pub struct Node {
    name: String,
    driver: Driver,
    reports: Reports,
    members: BTreeMap<DatasetId, Member>,
    status: Arc<Mutex<BTreeMap<DatasetId, Observed>>>,
}

/// A dataset on the driver.
struct Member {
    dataset: Arc<DatasetInner>,
    /// Nodes whose confirmations count.
    counted: BTreeSet<NodeId>,
    campaign: Campaign,
    /// Whether winning the campaign takes the promises of more than half of the list.
    by_majority: bool,
    /// Where a coordinator says who leads.
    elected: Option<Elected>,
}

/// What the driver told of a dataset.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    pub leader: String,
    pub connected: bool,
    pub last_error: Option<String>,
    pub last_cut: Option<String>,
    pub bundle_count: u64,
}

impl Node {
    /// A node that other nodes reach as `name`. `notifier` is the one that the transport wakes.
    pub fn new(name: &str, transport: Box<dyn Transport>, notifier: Arc<Notifier>) -> Node {
        Node {
            name: name.to_owned(),
            driver: Driver::new(transport, notifier),
            reports: Reports::default(),
            members: BTreeMap::new(),
            status: Arc::default(),
        }
    }

    pub(super) fn gauges(&self) -> Arc<LagGauges> {
        self.driver.gauges()
    }

    pub(super) fn observed(&self) -> Arc<Mutex<BTreeMap<DatasetId, Observed>>> {
        Arc::clone(&self.status)
    }

    fn joint(&self, dataset: &Arc<DatasetInner>) -> Arc<Joint> {
        let id = dataset.store().id().clone();
        let reports = Arc::clone(&self.reports);
        let report = move |report| {
            let mut reports = reports.lock();
            if reports.len() < REPORT_COUNT_MAX {
                reports.push_back((id.clone(), report));
            }
        };
        Arc::new(Joint::new(Arc::clone(dataset), self.name.clone(), report))
    }

    fn join(&mut self, dataset: &Arc<DatasetInner>) -> DatasetId {
        let id = dataset.store().id().clone();
        let member = Member {
            dataset: Arc::clone(dataset),
            counted: BTreeSet::new(),
            campaign: Campaign::Open,
            by_majority: false,
            elected: None,
        };
        self.members.entry(id.clone()).or_insert(member);
        id
    }

    /// Ships a dataset that this node leads.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] where it follows.
    pub fn lead(&mut self, now: Now, dataset: &Dataset) -> Result<()> {
        self.lead_inner(now, dataset.inner(), false)
    }

    fn lead_inner(&mut self, now: Now, dataset: &Arc<DatasetInner>, sole: bool) -> Result<()> {
        if dataset.store().role() != Role::Leader {
            let why = "it follows; promote it to lead";
            return Err(Error::ReadOnly {
                what: dataset.store().id().to_string(),
                why,
            });
        }
        // The start of the epoch is durable before anybody hears of it.
        unless!("node.lead", dataset.store().sync())?;
        let id = self.join(dataset);
        let options = LeaderOptions {
            policy: self.policy(&id),
            wants: Wants {
                received: true,
                durable: true,
                applied: true,
            },
            sole,
            ..self.members[&id].leader_options()
        };
        self.driver
            .command(now, Command::Lead(self.joint(dataset), options));
        Ok(())
    }

    /// Follows the first of `peers` that leads the dataset.
    ///
    /// # Errors
    /// The disk's, where the dataset must change its role.
    pub fn follow(&mut self, now: Now, dataset: &Dataset, peers: &[String]) -> Result<()> {
        self.follow_inner(now, dataset.inner(), peers)
    }

    fn follow_inner(
        &mut self,
        now: Now,
        inner: &Arc<DatasetInner>,
        peers: &[String],
    ) -> Result<()> {
        let id = self.join(inner);
        self.driver.command(now, Command::Retire(id.clone()));
        // A reopen that failed, on a full disk for example, has left it closed.
        let is_closed = matches!(inner.store().check(), Err(Error::Closed(_)));
        if is_closed || inner.store().role() != Role::Follower {
            inner.reopen(Reopen::role(Role::Follower), || Ok(()))?;
        }
        let store = inner.store();
        store.epoch_file().lock().follow()?;
        let leader = peers.first().cloned().unwrap_or_default();
        self.status.lock().insert(
            id.clone(),
            Observed {
                leader,
                ..Observed::default()
            },
        );
        let options = FollowerOptions {
            peers: peers.to_vec(),
            ..self.member(&id).follower_options()
        };
        self.driver
            .command(now, Command::Follow(self.joint(inner), options));
        Ok(())
    }

    /// Does something with a dataset that follows while it is closed, and goes on following.
    ///
    /// # Errors
    /// The disk's, where it cannot be opened again.
    pub(super) fn closed<T>(
        &mut self,
        now: Now,
        dataset: &Dataset,
        work: impl FnOnce() -> T,
    ) -> Result<T> {
        let id = dataset.inner().store().id().clone();
        self.check_follows(&id)?;
        let observed = self.status.lock().get(&id).cloned();
        self.driver.command(now, Command::Retire(id.clone()));
        let done = dataset.inner().closed(work)?;
        if self.follow_again(now, &id) {
            return Ok(done);
        }
        if let Some(observed) = observed {
            let leader = Some(observed.leader).filter(|leader| !leader.is_empty());
            self.follow(now, dataset, leader.as_slice())?;
        }
        Ok(done)
    }

    /// Lets go of a dataset: nothing of it is shipped or followed any more.
    pub fn retire(&mut self, now: Now, dataset: &Dataset) {
        let id = dataset.inner().store().id().clone();
        self.members.remove(&id);
        self.driver.command(now, Command::Retire(id));
    }

    /// Tries to become the leader: [`Node::campaign_of`] tells how it ends.
    ///
    /// # Errors
    /// The disk's, where the dataset must change its role.
    pub fn campaign(&mut self, now: Now, dataset: &Dataset, how: &super::Promote) -> Result<()> {
        let inner = dataset.inner();
        let id = self.join(inner);
        if self.member(&id).elected.is_some() {
            let text =
                "a coordinator's record names its leader: end that one, and another takes over";
            return Err(Error::Replication(text.to_owned()));
        }
        self.driver.command(now, Command::Retire(id.clone()));
        if inner.store().role() != Role::Follower {
            inner.reopen(Reopen::role(Role::Follower), || Ok(()))?;
        }
        if inner.store().lineage() == NO_LINEAGE {
            // It may have been wiped: what it once confirmed is not here.
            let text = "this node never met its leader and has nothing to lead with; follow first";
            return Err(Error::Replication(text.to_owned()));
        }
        if !how.force && inner.store().epoch_file().lock().epochs().joins {
            let text =
                "this node joins and may lack what its leader had when it came; let it catch up";
            return Err(Error::Replication(text.to_owned()));
        }
        let needed = promises_needed(how.node_count, how.follower_count);
        let member = self.member(&id);
        member.campaign = Campaign::Open;
        // More nodes than the list has would promise to two.
        let listed = how.peers.len() < how.node_count;
        member.by_majority = !how.force && listed && needed > how.node_count / 2;
        if how.force {
            let lost = "what only the other nodes hold: none of them was asked".to_owned();
            let highest = highest_epoch(&inner.store()).0;
            let epoch = Epoch(highest.saturating_add(FORCED_EPOCH_STEP));
            return self.take_over(now, &id, epoch, Some(lost));
        }
        let options = CandidateOptions {
            peers: how.peers.clone(),
            needed,
            ..CandidateOptions::default()
        };
        self.driver
            .command(now, Command::Campaign(self.joint(inner), options));
        Ok(())
    }

    /// How the last campaign of a dataset ended.
    pub fn campaign_of(&self, dataset: &Dataset) -> Campaign {
        let id = dataset.inner().store().id().clone();
        self.members
            .get(&id)
            .map(|member| member.campaign.clone())
            .unwrap_or_default()
    }

    /// How a dataset that follows stands.
    pub fn follow_status(&self, dataset: &Dataset) -> FollowStatus {
        let id = dataset.inner().store().id().clone();
        follow_status(
            dataset,
            &self.status.lock().get(&id).cloned().unwrap_or_default(),
        )
    }

    /// The followers of a dataset that were seen since this node leads it.
    pub fn followers(&self, dataset: &Dataset) -> Vec<FollowerStatus> {
        followers_of(&self.driver.gauges(), dataset.inner().store().id())
    }

    fn member(&mut self, id: &DatasetId) -> &mut Member {
        self.members.get_mut(id).expect("the dataset was joined")
    }

    /// Everyone counts who ever joined, this node among them.
    fn policy(&self, id: &DatasetId) -> Policy {
        let member = &self.members[id];
        if let Some(policy) = member.elected.as_ref().and_then(Elected::policy) {
            return policy;
        }
        let mut nodes: Vec<NodeId> = member.counted.iter().copied().collect();
        nodes.push(NodeId(member.dataset.store().node().node));
        Policy::Fixed(nodes)
    }

    /// Does everything that can be done at `now`; `true` where more is left.
    pub fn step(&mut self, now: Now) -> bool {
        let busy = self.driver.step(now);
        let reports = std::mem::take(&mut *self.reports.lock());
        let any = !reports.is_empty();
        for (id, report) in reports {
            self.act(now, &id, report);
        }
        let any = self.step_elected(now) || any;
        self.keep_log();
        busy || any
    }

    /// See [`Driver::is_followed`].
    pub fn is_followed(&self) -> bool {
        self.driver.is_followed()
    }

    /// See [`Driver::has_drained`].
    pub fn has_drained(&self) -> bool {
        self.driver.has_drained()
    }

    /// When [`Node::step`] has something to do, as far as that is known ahead.
    pub fn due_ms(&self) -> Option<u64> {
        let members = self.members.values();
        let elected = members.filter_map(|member| member.elected.as_ref());
        let looks = elected.map(Elected::due_ms);
        self.driver.due_ms().into_iter().chain(looks).min()
    }

    fn act(&mut self, now: Now, id: &DatasetId, report: Report) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        let report = member.explained(report);
        super::events::tell(&member.dataset.store(), &report);
        let mut status = self.status.lock();
        let observed = status.entry(id.clone()).or_default();
        match report {
            Report::Joined { node, name } => {
                observed.connected = true;
                observed.last_error = None;
                if member.dataset.store().role() == Role::Leader {
                    if member.elected.is_none() && member.counted.insert(node) {
                        drop(status);
                        let policy = self.policy(id);
                        self.driver
                            .command(now, Command::Policy(id.clone(), policy));
                    }
                } else {
                    observed.leader = name;
                }
            }
            Report::Left { why, .. } => {
                observed.connected = false;
                observed.last_error = Some(why.to_string());
            }
            Report::Cut { from, to } => {
                observed.last_cut =
                    Some(super::events::cut(from.shard.0, from.position, to.position));
            }
            Report::BundleBegun { .. } => {}
            Report::BundleInstalled { .. } => {
                observed.bundle_count += 1;
                let store = member.dataset.store();
                let kept = store.env().disk.list(&crate::files::divergent(store.dir()));
                let is_kept = |e: &strandline_wal::io::DirEntry| e.name.starts_with("replaced-");
                if kept.is_ok_and(|entries| entries.iter().any(is_kept)) {
                    let text = "its data forked from the leader's and was saved under divergent/";
                    observed.last_cut = Some(text.to_owned());
                    store.tell(What::Cut {
                        what: text.to_owned(),
                    });
                }
            }
            Report::Stopped { why } => {
                observed.connected = false;
                observed.last_error = Some(why.to_string());
                if let Some(elected) = &mut member.elected {
                    elected.stopped(now);
                }
            }
            Report::Fenced { epoch } => {
                observed.last_error = Some(format!("epoch {epoch} is known: it leads no more"));
                drop(status);
                self.tell_elected(now, id, Event::Outdated(epoch));
            }
            Report::Elected { epoch } if member.elected.is_some() => {
                drop(status);
                self.tell_elected(now, id, Event::Claimed(epoch));
            }
            Report::NotElected { why } if member.elected.is_some() => {
                observed.last_error = Some(why.to_string());
                drop(status);
                self.tell_elected(now, id, Event::NotClaimed);
            }
            Report::Elected { epoch } => {
                drop(status);
                if let Err(error) = self.take_over(now, id, epoch, None) {
                    self.member(id).campaign = Campaign::Lost(error);
                }
            }
            Report::NotElected { why } => {
                member.campaign = Campaign::Lost(Error::Replication(why.to_string()));
            }
        }
    }

    /// Opens the dataset as its leader and ships it.
    fn take_over(
        &mut self,
        now: Now,
        id: &DatasetId,
        elected: Epoch,
        may_be_lost: Option<String>,
    ) -> Result<()> {
        self.driver.command(now, Command::Retire(id.clone()));
        let dataset = Arc::clone(&self.member(id).dataset);
        dataset.reopen(
            Reopen {
                role: Role::Leader,
                forks: None,
                elected: Some(elected),
            },
            || Ok(()),
        )?;
        let store = dataset.store();
        // What was promised is the epoch that was asked for, should another have been opened.
        let member = self.member(id);
        let sole = (member.by_majority || member.elected.is_some()) && store.epoch() == elected;
        self.lead_inner(now, &dataset, sole)?;
        store.tell(What::Promoted {
            epoch: store.epoch().0,
            may_be_lost: may_be_lost.clone(),
        });
        let promotion = Promotion {
            epoch: store.epoch().0,
            positions: store.positions(),
            may_be_lost,
        };
        self.member(id).campaign = Campaign::Won(promotion);
        Ok(())
    }

    /// Tells the stores that they may have followers.
    fn keep_log(&self) {
        for member in self.members.values() {
            member.dataset.store().set_shipped();
        }
    }
}

impl Member {
    /// Where no coordinator says who leads, a leader that this node outlived is named as one.
    fn explained(&self, mut report: Report) -> Report {
        let won = self.dataset.store().epoch_file().lock().unyielded();
        let (Report::Left { name, why, .. }, Some(won), None) = (&mut report, won, &self.elected)
        else {
            return report;
        };
        // What either side names as the leader's epoch. Two that were elected by themselves alone may have won
        // the same one.
        let is_outlived = match why {
            Refused { reason, want, .. } if *reason == Reason::StaleEpoch => {
                want.parse().is_ok_and(|epoch| Epoch(epoch) <= won)
            }
            Refused { reason, have, .. } if *reason == Reason::NotLeader => {
                have.parse().is_ok_and(|epoch| Epoch(epoch) < won)
            }
            _ => false,
        };
        if is_outlived {
            let leader = name.clone();
            *why = Outlived { won, leader };
        }
        report
    }
}

/// The highest epoch that a node opened, promised or has in its logs.
pub(super) fn highest_epoch(store: &crate::store::Store) -> Epoch {
    let file = store.epoch_file().lock();
    let epochs = file.epochs();
    let known = epochs.opened.max(epochs.promised).max(epochs.claimed);
    store
        .positions()
        .iter()
        .map(|end| end.epoch)
        .fold(known, Epoch::max)
}

/// The followers of a dataset, as the gauges have them.
pub(super) fn followers_of(gauges: &LagGauges, id: &DatasetId) -> Vec<FollowerStatus> {
    let status = |(node, lag): (NodeId, strandline_replication::lag::FollowerLag)| {
        let of = |field: fn(&strandline_replication::lag::ShardLag) -> u64| {
            lag.shards.values().map(field).collect::<Vec<u64>>()
        };
        FollowerStatus {
            node: node.0,
            connected: lag.connected,
            received: of(|shard| shard.received),
            durable: of(|shard| shard.durable),
            applied: of(|shard| shard.applied),
            transport_lag: of(|shard| shard.transport_seqs).iter().sum(),
            apply_lag: of(|shard| shard.apply_seqs).iter().sum(),
            lag_ms: lag.apply_ms,
            name: lag.name,
        }
    };
    gauges.dataset(id).into_iter().map(status).collect()
}

/// How a dataset that follows stands.
pub(super) fn follow_status(dataset: &Dataset, observed: &Observed) -> FollowStatus {
    let store = dataset.inner().store();
    let positions: Vec<Position> = store.positions();
    let applied = store.watermarks().committed();
    let behind = positions
        .iter()
        .zip(&applied.seqs)
        .map(|(end, seq)| end.seq.saturating_sub(*seq));
    FollowStatus {
        leader: observed.leader.clone(),
        connected: observed.connected,
        apply_lag: behind.sum(),
        positions,
        last_error: observed.last_error.clone(),
        last_cut: observed.last_cut.clone(),
        joins: store.epoch_file().lock().epochs().joins,
        bundle_count: observed.bundle_count,
    }
}
