//! The whole of the model: three nodes, the record, and what is on its way to it.

use std::sync::Arc;

use strandline_replication::coordinator::{Record, Replaced, Version};
use strandline_replication::ids::Lineage;
use strandline_replication::membership::{
    Action, Election, ElectionAction, ElectionEvent, Event, Membership, Reach,
};
use strandline_replication::quorum::{Promised, longest};
use strandline_wal::Epoch;

use crate::node::{Campaign, Entry, Lead, Node, Owed, Role, member, node_id};

/// How often each thing may happen.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Bounds {
    pub writes: u8,
    pub campaigns: u8,
    pub crashes: u8,
    pub wipes: u8,
    /// Drops and joins that are proposed.
    pub changes: u8,
    /// Changes of the record whose answer does not come.
    pub unknowns: u8,
    /// Promises of others than the candidate.
    pub promises: u8,
    /// So many of the three are in sync at first.
    pub members: u8,
}

const MIN_IN_SYNC: u32 = 1;

/// A change on its way to the record.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Change {
    /// Who waits for the answer.
    by: Option<u8>,
    expected: Version,
    record: Record,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct World {
    left: Bounds,
    version: Version,
    record: Record,
    changes: Vec<Change>,
    nodes: [Arc<Node>; 3],
    /// The longest prefix that was ever confirmed.
    history: Vec<Entry>,
    /// Who confirmed something in each epoch.
    ackers: [Option<u8>; 6],
    pub forked: bool,
    pub two_in_one: bool,
    /// A log was cut below what it had of the history.
    pub cut: bool,
    pub has_dropped: bool,
    pub has_joined: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    Write(u8),
    Sync(u8),
    /// A follower takes the next record of its leader.
    Replicate(u8),
    /// A follower syncs and confirms.
    Ack(u8),
    /// The first connects to the second, agrees with its log, and follows it.
    Follow(u8, u8),
    Crash(u8),
    Wipe(u8),
    Campaign(u8),
    /// The first is promised its epoch by the second.
    Promise(u8, u8),
    /// Fetches the longest log and asks for its epoch.
    Open(u8),
    /// A change reaches the record, and its answer who waits for it.
    Land(usize),
    /// A node gives up waiting for the answer to its change.
    Unknown(u8),
    Read(u8),
    Drop(u8, u8),
    Join(u8, u8),
}

const IDS: [u8; 3] = [0, 1, 2];

impl World {
    /// The first node leads, the others follow.
    pub fn new(left: Bounds) -> World {
        let record = Record {
            lineage: Lineage([9; 16]),
            epoch: Epoch(1),
            leader: member(0, 0),
            members: (0..left.members).map(|id| member(id, 0)).collect(),
            min_in_sync: MIN_IN_SYNC,
        };
        let start = Entry {
            epoch: 1,
            by: 0,
            write: 0,
        };
        let node = |id| Node {
            id,
            life: 0,
            promised: (1, 0),
            log: vec![start],
            synced: 1,
            role: Role::Following {
                leader: 0,
                epoch: 1,
            },
        };
        let mut nodes = IDS.map(node);
        nodes[0].role = Role::Leading(Lead {
            membership: Membership::new(record.leader, Version(1), record.clone()),
            epoch: 1,
            start: 1,
            acks: [None, Some((0, 1)), Some((0, 1))],
            confirmed: 1,
            owed: Owed::Nothing,
        });
        World {
            left,
            version: Version(1),
            record,
            changes: Vec::new(),
            nodes: nodes.map(Arc::new),
            history: vec![start],
            ackers: [None; 6],
            forked: false,
            two_in_one: false,
            cut: false,
            has_dropped: false,
            has_joined: false,
        }
    }

    /// The steps that may be taken; some of them change nothing.
    pub fn steps(&self, steps: &mut Vec<Step>) {
        let left = &self.left;
        for id in IDS {
            let node = &self.nodes[usize::from(id)];
            let (mut leads, mut owed, mut is_idle) = (false, Owed::Nothing, false);
            match &node.role {
                Role::Idle => is_idle = true,
                Role::Following { .. } => {
                    is_idle = true;
                    steps.extend([Step::Replicate(id), Step::Ack(id)]);
                }
                Role::Campaigning(campaign) => {
                    owed = campaign.owed;
                    if owed == Owed::Nothing {
                        steps.push(Step::Open(id));
                    }
                }
                Role::Leading(lead) => {
                    owed = lead.owed;
                    leads = !lead.membership.is_fenced();
                    is_idle = !leads;
                }
            }
            let mut may = |may: bool, step: Step| {
                if may {
                    steps.push(step);
                }
            };
            may(leads && left.writes > 0, Step::Write(id));
            may(leads && node.synced < node.log.len(), Step::Sync(id));
            may(left.crashes > 0, Step::Crash(id));
            may(left.wipes > 0, Step::Wipe(id));
            may(is_idle && left.campaigns > 0, Step::Campaign(id));
            may(owed == Owed::Answer && left.unknowns > 0, Step::Unknown(id));
            may(owed == Owed::Read, Step::Read(id));
            for other in IDS.into_iter().filter(|other| *other != id) {
                let is_asking = matches!(node.role, Role::Campaigning(_)) && owed == Owed::Nothing;
                may(!leads, Step::Follow(id, other));
                may(is_asking && left.promises > 0, Step::Promise(id, other));
                may(leads && left.changes > 0, Step::Drop(id, other));
                may(leads && left.changes > 0, Step::Join(id, other));
            }
        }
        steps.extend((0..self.changes.len()).map(Step::Land));
    }

    /// `None` where the step cannot be taken, or changes nothing.
    pub fn after(&self, step: Step) -> Option<World> {
        let mut world = self.clone();
        match step {
            Step::Write(id) => world.write(id),
            Step::Sync(id) => world.sync(id),
            Step::Replicate(id) => world.replicate(id),
            Step::Ack(id) => world.ack(id),
            Step::Follow(id, leader) => world.follow(id, leader),
            Step::Crash(id) => world.crash(id),
            Step::Wipe(id) => world.wipe(id),
            Step::Campaign(id) => world.campaign(id),
            Step::Promise(id, voter) => world.promise(id, voter),
            Step::Open(id) => world.open(id),
            Step::Land(n) => world.land(n),
            Step::Unknown(id) => world.unknown(id),
            Step::Read(id) => world.read(id),
            Step::Drop(id, whom) => world.drop_member(id, whom),
            Step::Join(id, whom) => world.join(id, whom),
        }?;
        Some(world)
    }

    fn node(&mut self, id: u8) -> &mut Node {
        Arc::make_mut(&mut self.nodes[usize::from(id)])
    }

    fn at(&self, id: u8) -> &Node {
        &self.nodes[usize::from(id)]
    }

    /// A leadership that does not know of its end.
    fn lead(&mut self, id: u8) -> Option<&mut Lead> {
        match &mut self.node(id).role {
            Role::Leading(lead) if !lead.membership.is_fenced() => Some(lead),
            _ => None,
        }
    }

    fn leads(&self, id: u8) -> Option<&Lead> {
        match &self.at(id).role {
            Role::Leading(lead) if !lead.membership.is_fenced() => Some(lead),
            _ => None,
        }
    }

    fn spend(left: &mut u8) -> Option<()> {
        *left = left.checked_sub(1)?;
        Some(())
    }

    fn write(&mut self, id: u8) -> Option<()> {
        let epoch = self.leads(id)?.epoch;
        World::spend(&mut self.left.writes)?;
        // Each is told apart by what is left.
        let write = self.left.writes + 1;
        self.node(id).log.push(Entry {
            epoch,
            by: id,
            write,
        });
        Some(())
    }

    fn sync(&mut self, id: u8) -> Option<()> {
        self.lead(id)?;
        let node = self.node(id);
        let is_new = node.synced < node.log.len();
        node.synced = node.log.len();
        self.confirm(id);
        is_new.then_some(())
    }

    /// The leader that a node follows, where both still think so.
    fn followed(&self, id: u8) -> Option<u8> {
        let Role::Following { leader, epoch } = self.at(id).role else {
            return None;
        };
        (self.leads(leader)?.epoch == epoch).then_some(leader)
    }

    fn replicate(&mut self, id: u8) -> Option<()> {
        let leader = self.followed(id)?;
        let at = self.at(id).log.len();
        let entry = *self.at(leader).log.get(at)?;
        self.node(id).log.push(entry);
        Some(())
    }

    fn ack(&mut self, id: u8) -> Option<()> {
        let leader = self.followed(id)?;
        let node = self.node(id);
        node.synced = node.log.len();
        let ack = Some((node.life, node.synced));
        let before = std::mem::replace(&mut self.lead(leader)?.acks[usize::from(id)], ack);
        self.confirm(leader);
        (before != ack).then_some(())
    }

    /// What its set confirms is acknowledged, and is history from now on.
    fn confirm(&mut self, id: u8) {
        let synced = self.at(id).synced;
        let Some(lead) = self.leads(id) else { return };
        let confirmed = lead.confirmed(id, synced);
        if confirmed <= lead.confirmed {
            return;
        }
        let lead = self.lead(id).expect("it leads");
        lead.confirmed = confirmed;
        let epoch = usize::from(lead.epoch);
        let prefix = self.at(id).log[..confirmed].to_vec();
        self.two_in_one |= self.ackers[epoch].is_some_and(|acker| acker != id);
        self.ackers[epoch] = Some(id);
        let common = prefix.len().min(self.history.len());
        self.forked |= prefix[..common] != self.history[..common];
        if prefix.len() > self.history.len() {
            self.history = prefix;
        }
    }

    fn follow(&mut self, id: u8, leader: u8) -> Option<()> {
        if self.leads(id).is_some() || self.followed(id) == Some(leader) {
            return None;
        }
        let epoch = self.leads(leader)?.epoch;
        let promise = self.at(id).promise();
        let epochs = Epoch(epoch.into());
        // The record had one winner of that epoch: whoever else was promised it cannot win it any more.
        let is_sole = promise.epoch == epochs;
        if !promise.admits(epochs, node_id(leader)) && !is_sole {
            let lead = self.lead(leader)?;
            lead.membership.handle(Event::Outdated(promise.epoch));
            self.forget(leader);
            return Some(());
        }
        let source = self.at(leader).clone();
        self.forget(id);
        self.node(id).promised = (epoch, leader);
        self.agree(id, &source);
        let node = self.node(id);
        node.role = Role::Following { leader, epoch };
        self.lead(leader)?.acks[usize::from(id)] = None;
        Some(())
    }

    /// Cuts a log where it parts from another one.
    fn agree(&mut self, id: u8, source: &Node) {
        let pairs = self.at(id).log.iter().zip(&self.history);
        let has = pairs.take_while(|(a, b)| a == b).count();
        let agreed = self.node(id).agree(source);
        self.forked |= agreed.is_none();
        self.cut |= self.at(id).log.len() < has;
    }

    fn crash(&mut self, id: u8) -> Option<()> {
        World::spend(&mut self.left.crashes)?;
        self.forget(id);
        self.node(id).crash();
        Some(())
    }

    fn wipe(&mut self, id: u8) -> Option<()> {
        World::spend(&mut self.left.wipes)?;
        self.forget(id);
        let node = self.node(id);
        node.life += 1;
        node.promised = (0, 0);
        node.log.clear();
        node.synced = 0;
        node.role = Role::Idle;
        Some(())
    }

    fn campaign(&mut self, id: u8) -> Option<()> {
        let (version, record) = (self.version, self.record.clone());
        let node = self.node(id);
        // A node without a history does not try.
        let may = match &node.role {
            Role::Leading(lead) => lead.membership.is_fenced(),
            Role::Campaigning(_) => false,
            Role::Idle | Role::Following { .. } => true,
        };
        if !may || node.log.is_empty() {
            return None;
        }
        let (mut election, _) = Election::new(node.member(), record.lineage, None);
        let found = Some((version, record));
        let Some(ElectionAction::Claim(above)) = election.handle(ElectionEvent::Read(found)) else {
            return None;
        };
        let epoch = node.promised.0.max(u8::try_from(above.0).unwrap()) + 1;
        node.promise_to(epoch, id);
        let promises = vec![(id, node.log.len())];
        node.role = Role::Campaigning(Campaign {
            election,
            epoch,
            promises,
            owed: Owed::Nothing,
        });
        World::spend(&mut self.left.campaigns)
    }

    fn promise(&mut self, id: u8, voter: u8) -> Option<()> {
        World::spend(&mut self.left.promises)?;
        let Role::Campaigning(campaign) = &self.at(id).role else {
            return None;
        };
        let epoch = campaign.epoch;
        let is_asking = campaign.owed == Owed::Nothing;
        let node = self.node(voter);
        if !is_asking || node.promised.0 >= epoch || node.log.is_empty() {
            return None;
        }
        node.promise_to(epoch, id);
        match &mut node.role {
            Role::Leading(lead) => {
                lead.membership.handle(Event::Outdated(Epoch(epoch.into())));
            }
            role => *role = Role::Idle,
        }
        let len = node.log.len();
        self.forget(voter);
        if let Role::Campaigning(campaign) = &mut self.node(id).role {
            campaign.promises.push((voter, len));
        }
        Some(())
    }

    fn open(&mut self, id: u8) -> Option<()> {
        let Role::Campaigning(campaign) = &self.at(id).role else {
            return None;
        };
        let (epoch, promises) = (campaign.epoch, campaign.promises.clone());
        if campaign.owed != Owed::Nothing {
            return None;
        }
        let promised = |(node, _): &(u8, usize)| Promised {
            node: node_id(*node),
            ends: vec![self.nodes[usize::from(*node)].end()],
        };
        let is_kept = |(node, len): &(u8, usize)| {
            let node = &self.nodes[usize::from(*node)];
            node.promised == (epoch, id) && node.log.len() == *len
        };
        // One that promised another one meanwhile lends nothing.
        if !promises.iter().all(is_kept) {
            return None;
        }
        let promised: Vec<_> = promises.iter().map(promised).collect();
        let (lender, _) = longest(node_id(id), &promised, 1).unwrap()[0];
        let lender = IDS.into_iter().find(|n| node_id(*n) == lender).unwrap();
        if lender != id {
            let source = self.at(lender).clone();
            self.agree(id, &source);
            let node = self.node(id);
            node.log = source.log;
            node.synced = node.log.len();
        }
        self.elect(id, ElectionEvent::Ready(Epoch(epoch.into())));
        Some(())
    }

    /// One event of a campaign, and what comes of it.
    fn elect(&mut self, id: u8, event: ElectionEvent) {
        let Role::Campaigning(campaign) = &mut self.node(id).role else {
            return;
        };
        campaign.owed = Owed::Nothing;
        match campaign.election.handle(event) {
            Some(ElectionAction::Read) => campaign.owed = Owed::Read,
            Some(ElectionAction::Replace(expected, record)) => {
                campaign.owed = Owed::Answer;
                self.ask(id, expected, record);
            }
            Some(ElectionAction::Elected(version, record)) => self.begin(id, version, record),
            Some(ElectionAction::NotElected(_)) => self.node(id).role = Role::Idle,
            Some(ElectionAction::Claim(_)) | None => unreachable!("it has claimed"),
        }
    }

    /// Its epoch is open.
    fn begin(&mut self, id: u8, version: Version, record: Record) {
        let node = self.node(id);
        let epoch = u8::try_from(record.epoch.0).unwrap();
        node.log.push(Entry {
            epoch,
            by: id,
            write: 0,
        });
        node.role = Role::Leading(Lead {
            membership: Membership::new(node.member(), version, record),
            epoch,
            start: node.log.len(),
            acks: [None; 3],
            confirmed: 0,
            owed: Owed::Nothing,
        });
    }

    fn ask(&mut self, by: u8, expected: Version, record: Record) {
        self.changes.push(Change {
            by: Some(by),
            expected,
            record,
        });
    }

    /// Nobody waits for the answer to its change any more; it may still come into place.
    fn forget(&mut self, id: u8) {
        let own = self.changes.iter_mut().filter(|c| c.by == Some(id));
        own.for_each(|change| change.by = None);
        self.tidy();
    }

    /// What nobody waits for and what can no more come into place is nothing.
    fn tidy(&mut self) {
        let version = self.version;
        let counts = |c: &Change| c.by.is_some() || c.expected == version;
        self.changes.retain(counts);
    }

    fn land(&mut self, n: usize) -> Option<()> {
        let change = self.changes.remove(n);
        let replaced = if change.expected == self.version {
            let (before, after) = (self.record.members.len(), change.record.members.len());
            self.has_dropped |= after < before;
            self.has_joined |= after > before;
            self.version = Version(self.version.0 + 1);
            self.record = change.record;
            Replaced::Done(self.version)
        } else {
            Replaced::Conflict
        };
        self.tidy();
        let Some(by) = change.by else {
            return Some(());
        };
        match &self.at(by).role {
            Role::Leading(_) => self.manage(by, Event::Replaced(replaced)),
            Role::Campaigning(_) => self.elect(by, ElectionEvent::Replaced(replaced)),
            Role::Idle | Role::Following { .. } => unreachable!("it waits"),
        }
        Some(())
    }

    /// One event of a leader's set, and what comes of it.
    fn manage(&mut self, id: u8, event: Event) {
        let Some(lead) = self.lead(id) else { return };
        let actions = lead.membership.handle(event);
        lead.owed = Owed::Nothing;
        for action in actions {
            match action {
                Action::Read => self.lead(id).unwrap().owed = Owed::Read,
                Action::Replace(expected, record) => {
                    self.lead(id).unwrap().owed = Owed::Answer;
                    self.ask(id, expected, record);
                }
                Action::Policy(_) | Action::Fenced(_) => {}
            }
        }
        self.confirm(id);
    }

    fn unknown(&mut self, id: u8) -> Option<()> {
        World::spend(&mut self.left.unknowns)?;
        self.forget(id);
        match &self.at(id).role {
            Role::Leading(lead) if lead.owed == Owed::Answer => {
                self.manage(id, Event::Unknown);
            }
            Role::Campaigning(campaign) if campaign.owed == Owed::Answer => {
                self.elect(id, ElectionEvent::Unknown);
            }
            _ => return None,
        }
        Some(())
    }

    fn read(&mut self, id: u8) -> Option<()> {
        let found = Some((self.version, self.record.clone()));
        match &self.at(id).role {
            Role::Leading(lead) if lead.owed == Owed::Read => {
                self.manage(id, Event::Read(found));
            }
            Role::Campaigning(campaign) if campaign.owed == Owed::Read => {
                self.elect(id, ElectionEvent::Read(found));
            }
            _ => return None,
        }
        Some(())
    }

    fn drop_member(&mut self, id: u8, whom: u8) -> Option<()> {
        let member = self.at(whom).member();
        let lead = self.leads(id)?;
        if lead.membership.is_changing() || !lead.membership.record().members.contains(&member) {
            return None;
        }
        World::spend(&mut self.left.changes)?;
        self.manage(id, Event::Slow(vec![member]));
        Some(())
    }

    fn join(&mut self, id: u8, whom: u8) -> Option<()> {
        if self.followed(whom) != Some(id) {
            return None;
        }
        let member = self.at(whom).member();
        let lead = self.leads(id)?;
        if lead.membership.is_changing() || lead.membership.record().members.contains(&member) {
            return None;
        }
        let (_, durable) = lead.acks[usize::from(whom)]?;
        let reach = Reach {
            durable: durable as u64,
            confirmed: lead.confirmed as u64,
            start: lead.start as u64,
        };
        World::spend(&mut self.left.changes)?;
        self.manage(id, Event::Joins(member, vec![reach]));
        self.lead(id)?.membership.is_changing().then_some(())
    }

    fn leaders(&self) -> impl Iterator<Item = (&Node, &Lead)> {
        self.nodes.iter().filter_map(|node| match &node.role {
            Role::Leading(lead) => Some((&**node, lead)),
            _ => None,
        })
    }

    fn last_epoch(&self) -> u8 {
        self.history.last().map_or(0, |entry| entry.epoch)
    }

    pub fn leaders_have_history(&self) -> bool {
        let mut leaders = self.leaders();
        leaders.all(|(node, lead)| {
            lead.epoch < self.last_epoch() || node.log.starts_with(&self.history)
        })
    }

    pub fn members_have_history(&self) -> bool {
        self.nodes.iter().all(|node| {
            !self.record.members.contains(&node.member())
                || node.log[..node.synced].starts_with(&self.history)
        })
    }

    pub fn outlived(&self) -> bool {
        self.history
            .windows(2)
            .any(|w| w[0].write > 0 && w[1].epoch > w[0].epoch)
    }

    pub fn zombie_refused(&self) -> bool {
        let is_told_by_record = |(node, lead): (&Node, &Lead)| {
            lead.membership.is_fenced()
                && node.promised.0 == lead.epoch
                && u32::from(lead.epoch) < self.record.epoch.0
        };
        self.leaders().any(is_told_by_record)
    }

    pub fn below_minimum(&self) -> bool {
        self.record.members.len() <= self.record.min_in_sync as usize
    }

    fn owed_read(&self) -> impl Iterator<Item = &Node> {
        self.nodes
            .iter()
            .map(Arc::as_ref)
            .filter(|node| match &node.role {
                Role::Leading(lead) => lead.owed == Owed::Read,
                Role::Campaigning(campaign) => campaign.owed == Owed::Read,
                _ => false,
            })
    }

    pub fn unknown_landed(&self) -> bool {
        self.owed_read().any(|node| {
            matches!(&node.role, Role::Campaigning(campaign)
                if self.record.epoch.0 == u32::from(campaign.epoch)
                    && self.record.leader == node.member())
        })
    }

    pub fn unknown_pending(&self) -> bool {
        self.owed_read().any(|node| {
            self.changes
                .iter()
                .any(|c| c.record.leader == node.member())
        })
    }
}
