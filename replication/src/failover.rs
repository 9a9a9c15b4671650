//! Automatic failover of one dataset on one node: when to ask for the record, when to campaign, whom a
//! leader drops and takes in. Holds no file, no socket, no thread, and no clock.
//!
//! | State | entered by | left by |
//! |-------|------------|---------|
//! | Following | the beginning, a lost election, a lost leadership | no leader heard for the lease: looking |
//! | Looking | Ask(Read) | the record: electing, where this node should; otherwise following |
//! | Electing | the record | elected: leading; not elected, or no coordinator: following |
//! | Leading | the record names this node, and its store is open as leader | fenced: looking |
//!
//! Safety is [`crate::membership`] and the promises alone. What is here is timing, and nothing breaks where
//! it is wrong:
//!
//! - A leader gives up a member that it did not hear for two thirds of the lease, and a follower a leader
//!   that it did not hear for all of it. So of two that lost each other the leader changes the record first,
//!   if it is alive, and the follower finds that it may not campaign (PacificA's order of grace and lease).
//! - The leader of the record campaigns at once: whoever else led changed the record. Others wait for the
//!   lease after a record that they had not seen: its leader may be about to begin.
//! - Who campaigns again before it heard a leader, or led a follower, waits twice as long each time, up to
//!   eight times, and all by a part of the lease that is drawn.
//! - A leader that lacks members and cannot ask the coordinator either gives up: the others may have both.

use std::collections::{BTreeMap, VecDeque};

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use crate::coordinator::{Record, Replaced, Version};
use crate::error::Result;
use crate::ids::Lineage;
use crate::membership::{
    self, Election, ElectionAction, ElectionEvent, Membership, Reach, Refused,
};
use crate::quorum::{Member, Policy};

#[cfg(test)]
mod tests;

/// Least lease, in milliseconds: heartbeats go out four times as often.
pub const LEASE_MS_MIN: u64 = 100;
/// Most reads and changes that fail before an election is given up.
const FAILURE_COUNT_MAX: u32 = 3;
/// How often the wait between two campaigns doubles at most.
const DOUBLING_COUNT_MAX: u32 = 3;

/// Settings of a node.
#[derive(Clone, Copy, Debug)]
pub struct FailoverOptions {
    /// A leader that was not heard for this long is replaced, in milliseconds.
    pub lease_ms: u64,
    /// A member that did not catch up for this long is dropped, in milliseconds.
    pub in_sync_ms: u64,
    /// The minimum of the first record, where this node may make it.
    pub first: Option<u32>,
}

/// A call of the coordinator.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ask {
    /// [`crate::coordinator::Coordinator::read`].
    Read,
    /// [`crate::coordinator::Coordinator::replace`].
    Replace(Version, Record),
}

/// What it returned.
#[derive(Clone, Debug)]
pub enum Answer {
    /// To [`Ask::Read`].
    Read(Result<Option<(Version, Record)>>),
    /// To [`Ask::Replace`].
    Replaced(Result<Replaced>),
}

/// A follower as its leader sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Follows {
    /// Who.
    pub member: Member,
    /// When it was last heard.
    pub heard_ms: u64,
    /// How far it is, shard by shard; empty until its logs agree with the leader's.
    pub reach: Vec<Reach>,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The answer to the [`Action::Ask`] of that number. Each has one.
    Answered(u64, Answer),
    /// The answer to [`Action::Campaign`]: the epoch is promised here, and everything is durable.
    Claimed(Epoch),
    /// The answer to [`Action::Campaign`]: it cannot be.
    NotClaimed,
    /// The answer to [`Action::Lead`]: the store leads this epoch.
    Opened(Epoch),
    /// The answer to [`Action::Lead`]: it cannot be opened.
    NotOpened,
    /// The leader of that epoch, which is followed, was heard at that time.
    Heard(u64, Epoch),
    /// Where this node leads: the durable ends of its logs, and how its followers stand.
    Led(Vec<u64>, Vec<Follows>),
    /// A later epoch than the one that is led was promised or seen.
    Outdated(Epoch),
    /// Time passed.
    Tick,
}

/// What to do, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Ask the coordinator, behind what it was asked before.
    Ask(u64, Ask),
    /// Begin a history: nobody has one, and this node is to be the first.
    Begin,
    /// Stop following; promise this node an epoch above that one.
    Campaign(Epoch),
    /// Open the store as leader of that epoch.
    Lead(Epoch),
    /// Confirm by this from now on.
    Policy(Policy),
    /// Lead or campaign no longer: follow whoever leads.
    Follow,
}

/// What a node is, for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It follows, or looks for somebody to follow.
    Following,
    /// It campaigns.
    Electing,
    /// It leads.
    Leading,
}

/// See the module.
pub struct Failover {
    me: Member,
    lineage: Lineage,
    options: FailoverOptions,
    state: State,
    /// The record that was read last.
    seen: Option<Record>,
    /// The highest epoch of a record that was read, or of a leader that was heard.
    known: Epoch,
    heard_ms: u64,
    /// When it looks again, at the earliest, and how much later than others.
    due_ms: u64,
    spread_ms: u64,
    doublings: u32,
    refused: Option<Refused>,
    random: u64,
    /// Number of the next call of the coordinator, and of the first one of this state.
    number: u64,
    first_number: u64,
    actions: VecDeque<Action>,
}

enum State {
    Following,
    /// `true` where nobody was waited for: at the beginning, and after a leadership.
    Looking(bool),
    Electing(Campaign),
    Leading(Box<Leading>),
}

struct Campaign {
    election: Election,
    failures: u32,
    is_claimed: bool,
    /// When the record is to be read again, where that failed.
    read_ms: Option<u64>,
}

struct Leading {
    membership: Membership,
    is_open: bool,
    began_ms: u64,
    /// Who led before: it was lost.
    lost: Option<Member>,
    members: BTreeMap<Member, Health>,
    read_ms: u64,
    /// A read is under way.
    is_reading: bool,
    is_read_due: bool,
    /// Since when every read failed.
    unread_ms: Option<u64>,
}

/// How a member keeps up.
struct Health {
    heard_ms: u64,
    was_heard: bool,
    /// Where the leader's logs ended at that time; it had everything before.
    target: Vec<u64>,
    target_ms: u64,
}

impl Failover {
    /// A node that begins by looking for a leadership of its own. `seed` spreads its campaigns.
    pub fn new(now: u64, me: Member, options: FailoverOptions, seed: u64) -> Failover {
        Failover {
            me,
            lineage: Lineage::default(),
            options,
            state: State::Following,
            seen: None,
            known: Epoch(0),
            heard_ms: 0,
            due_ms: now,
            spread_ms: 0,
            doublings: 0,
            refused: None,
            random: seed,
            number: 0,
            first_number: 0,
            actions: VecDeque::new(),
        }
    }

    /// The only way in, but for [`Failover::adopt`]. Drain [`Failover::poll_action`] before the next call.
    pub fn handle(&mut self, now: u64, event: Event) {
        assert!(
            self.actions.is_empty(),
            "drain poll_action before the next event"
        );
        match event {
            Event::Answered(number, answer) => {
                if number >= self.first_number || planted("failover.stale") {
                    self.answered(now, answer);
                }
            }
            Event::Claimed(epoch) => self.elect(now, ElectionEvent::Ready(epoch)),
            Event::NotClaimed => self.give_up(now),
            Event::Opened(epoch) => self.opened(now, epoch),
            Event::NotOpened => self.give_up(now),
            Event::Heard(at_ms, epoch) => {
                self.heard_ms = self.heard_ms.max(at_ms);
                self.known = self.known.max(epoch);
                self.doublings = 0;
            }
            Event::Led(ends, followers) => self.led(now, &ends, &followers),
            Event::Outdated(epoch) => self.outdated(now, epoch),
            Event::Tick => self.tick(now),
        }
    }

    /// The history that this node has; zeros where it has none yet.
    pub fn adopt(&mut self, lineage: Lineage) {
        self.lineage = lineage;
    }

    /// The only way out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What it is.
    pub fn standing(&self) -> Standing {
        match &self.state {
            State::Following | State::Looking(_) => Standing::Following,
            State::Electing(_) => Standing::Electing,
            State::Leading(_) => Standing::Leading,
        }
    }

    /// The record as far as it is known.
    pub fn record(&self) -> Option<&Record> {
        match &self.state {
            State::Leading(leading) => Some(leading.membership.record()),
            _ => self.seen.as_ref(),
        }
    }

    /// The highest epoch of a record that was read, or of a leader that was heard.
    pub fn known(&self) -> Epoch {
        self.known
    }

    /// Why the last campaign came to nothing, until another one.
    pub fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Whose confirmations count, where this node leads.
    pub fn policy(&self) -> Option<Policy> {
        match &self.state {
            State::Leading(leading) => Some(leading.membership.policy()),
            _ => None,
        }
    }

    fn tick(&mut self, now: u64) {
        let due_ms = self.due_ms.max(self.patience());
        match &mut self.state {
            State::Following if now >= due_ms => {
                let is_start = self.known == Epoch(0);
                self.look(is_start);
            }
            State::Electing(campaign) if campaign.read_ms.is_some_and(|at_ms| now >= at_ms) => {
                campaign.read_ms = None;
                self.ask(Ask::Read);
            }
            State::Following | State::Electing(_) | State::Looking(_) | State::Leading(_) => {}
        }
    }

    /// Until then somebody else may lead.
    fn patience(&self) -> u64 {
        match self.heard_ms {
            0 => 0,
            heard_ms => heard_ms + self.options.lease_ms + self.spread_ms,
        }
    }

    /// A part of the lease, up to a quarter (SplitMix64).
    fn jitter(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % (self.options.lease_ms / 4 + 1)
    }

    fn ask(&mut self, ask: Ask) {
        self.actions.push_back(Action::Ask(self.number, ask));
        self.number += 1;
    }

    /// Answers to what was asked before are of no use from here on.
    fn enter(&mut self, state: State) {
        self.state = state;
        self.first_number = self.number;
    }

    fn look(&mut self, is_start: bool) {
        self.enter(State::Looking(is_start));
        self.ask(Ask::Read);
    }

    fn follow(&mut self, due_ms: u64) {
        self.enter(State::Following);
        self.spread_ms = self.jitter();
        self.due_ms = due_ms + self.spread_ms;
    }

    /// After a wait in which others may come forward.
    fn later(&self, now: u64) -> u64 {
        now + (self.options.lease_ms << self.doublings)
    }

    /// The campaign came to nothing.
    fn give_up(&mut self, now: u64) {
        if let State::Following | State::Looking(_) = self.state {
            return;
        }
        self.actions.push_back(Action::Follow);
        self.follow(self.later(now));
    }

    fn answered(&mut self, now: u64, answer: Answer) {
        match (&mut self.state, answer) {
            (State::Following, _) | (State::Looking(_), Answer::Replaced(_)) => {}
            (State::Looking(_), Answer::Read(Err(_))) => {
                self.follow(now + self.options.lease_ms / 2);
            }
            (State::Looking(is_start), Answer::Read(Ok(found))) => {
                let is_start = *is_start;
                self.looked(now, is_start, found);
            }
            (State::Electing(campaign), Answer::Read(Err(_))) => {
                campaign.failures += 1;
                if campaign.failures >= FAILURE_COUNT_MAX {
                    self.give_up(now);
                } else {
                    campaign.read_ms = Some(now + self.options.lease_ms / 4);
                }
            }
            (State::Electing(_), Answer::Read(Ok(found))) => {
                self.elect(now, ElectionEvent::Read(found));
            }
            (State::Electing(_), Answer::Replaced(Ok(done))) => {
                self.elect(now, ElectionEvent::Replaced(done));
            }
            (State::Electing(_), Answer::Replaced(Err(_))) => {
                self.elect(now, ElectionEvent::Unknown);
            }
            (State::Leading(leading), answer) => {
                let event = match answer {
                    Answer::Read(Ok(found)) => membership::Event::Read(found),
                    Answer::Read(Err(_)) => {
                        (leading.is_reading, leading.is_read_due) = (false, true);
                        leading.unread_ms.get_or_insert(now);
                        return;
                    }
                    Answer::Replaced(Ok(done)) => membership::Event::Replaced(done),
                    Answer::Replaced(Err(_)) => membership::Event::Unknown,
                };
                self.change(now, event);
            }
        }
    }

    /// The record is here: is it this node's turn?
    fn looked(&mut self, now: u64, is_start: bool, found: Option<(Version, Record)>) {
        self.seen = found.as_ref().map(|(_, record)| record.clone());
        let is_led = !is_start && now < self.patience();
        let may = match &self.seen {
            _ if is_led => false,
            None if self.options.first.is_some() && self.lineage == Lineage::default() => {
                self.actions.push_back(Action::Begin);
                return self.follow(now);
            }
            None => self.options.first.is_some(),
            Some(record) if record.leader == self.me => true,
            // Its leader has as long as anybody.
            Some(record) => record.epoch <= self.known,
        };
        self.known = self
            .seen
            .as_ref()
            .map_or(self.known, |record| self.known.max(record.epoch));
        if !may {
            return self.follow(self.later(now));
        }
        self.doublings = (self.doublings + 1).min(DOUBLING_COUNT_MAX);
        let (election, _) = Election::new(self.me, self.lineage, self.options.first);
        self.refused = None;
        self.enter(State::Electing(Campaign {
            election,
            failures: 0,
            is_claimed: false,
            read_ms: None,
        }));
        self.elect(now, ElectionEvent::Read(found));
    }

    fn elect(&mut self, now: u64, event: ElectionEvent) {
        let State::Electing(campaign) = &mut self.state else {
            return;
        };
        if let ElectionEvent::Read(found) = &event {
            self.seen = found.as_ref().map(|(_, record)| record.clone());
        }
        match campaign.election.handle(event) {
            None => {}
            Some(ElectionAction::Read) => self.ask(Ask::Read),
            Some(ElectionAction::Claim(above)) => {
                campaign.is_claimed = true;
                self.actions.push_back(Action::Campaign(above));
            }
            Some(ElectionAction::Replace(version, record)) => {
                self.ask(Ask::Replace(version, record));
            }
            Some(ElectionAction::Elected(version, record)) => {
                let before = self.seen.take().map(|record| record.leader);
                let epoch = record.epoch;
                let leading = Leading {
                    membership: Membership::new(self.me, version, record),
                    is_open: false,
                    began_ms: now,
                    lost: before.filter(|leader| *leader != self.me),
                    members: BTreeMap::new(),
                    read_ms: now,
                    is_reading: false,
                    is_read_due: false,
                    unread_ms: None,
                };
                self.enter(State::Leading(Box::new(leading)));
                self.actions.push_back(Action::Lead(epoch));
            }
            Some(ElectionAction::NotElected(why)) => {
                self.refused = Some(why);
                if campaign.is_claimed {
                    self.actions.push_back(Action::Follow);
                }
                self.follow(self.later(now));
            }
        }
    }

    fn opened(&mut self, now: u64, epoch: Epoch) {
        let State::Leading(leading) = &mut self.state else {
            return;
        };
        // Another epoch than the record's is nobody's: it may be led by two.
        if epoch != leading.membership.record().epoch && !planted("failover.other") {
            return self.step_down();
        }
        leading.is_open = true;
        (leading.began_ms, leading.read_ms) = (now, now);
    }

    /// The record tells who leads now; this node, where nobody took the leadership from it.
    fn step_down(&mut self) {
        if let State::Leading(leading) = &self.state {
            let record = leading.membership.record();
            self.known = self.known.max(record.epoch);
            self.seen = Some(record.clone());
        }
        self.actions.push_back(Action::Follow);
        self.look(true);
    }

    fn outdated(&mut self, now: u64, epoch: Epoch) {
        if let State::Leading(_) = &self.state {
            self.change(now, membership::Event::Outdated(epoch));
        }
    }

    fn change(&mut self, now: u64, event: membership::Event) {
        let State::Leading(leading) = &mut self.state else {
            return;
        };
        if let membership::Event::Read(_) = event {
            (leading.read_ms, leading.is_read_due) = (now, false);
            (leading.is_reading, leading.unread_ms) = (false, None);
        }
        let actions = leading.membership.handle(event);
        for action in actions {
            let State::Leading(leading) = &mut self.state else {
                return;
            };
            match action {
                membership::Action::Policy(policy) => {
                    self.actions.push_back(Action::Policy(policy));
                }
                membership::Action::Replace(version, record) => {
                    self.ask(Ask::Replace(version, record));
                }
                membership::Action::Read => {
                    leading.is_reading = true;
                    self.ask(Ask::Read);
                }
                membership::Action::Fenced(_) => return self.step_down(),
            }
        }
    }

    fn led(&mut self, now: u64, ends: &[u64], followers: &[Follows]) {
        let FailoverOptions {
            lease_ms,
            in_sync_ms,
            ..
        } = self.options;
        let State::Leading(leading) = &mut self.state else {
            return;
        };
        if !leading.is_open {
            return;
        }
        let slow = leading.slow(now, lease_ms, in_sync_ms, ends, followers);
        let is_quiet = !slow.is_empty() && now >= leading.read_ms + lease_ms;
        let is_due = leading.is_read_due && now >= leading.read_ms + lease_ms / 4;
        let is_reading = leading.is_reading;
        let is_alone = leading
            .unread_ms
            .is_some_and(|since_ms| now >= since_ms + in_sync_ms);
        if is_alone && !slow.is_empty() {
            return self.give_up(now);
        }
        let is_near = |follower: &Follows| now < follower.heard_ms + lease_ms / 2;
        if followers.iter().any(is_near) {
            self.doublings = 0;
        }
        let record = leading.membership.record();
        let strangers: Vec<_> = followers
            .iter()
            .filter(|follower| is_near(follower) && !record.members.contains(&follower.member))
            .cloned()
            .collect();
        if (is_quiet || is_due) && !is_reading {
            // Nobody may be left who would tell of another leader.
            (leading.read_ms, leading.is_read_due) = (now, false);
            leading.is_reading = true;
            self.ask(Ask::Read);
        }
        if !slow.is_empty() {
            self.change(now, membership::Event::Slow(slow));
        }
        for follower in strangers {
            self.change(
                now,
                membership::Event::Joins(follower.member, follower.reach),
            );
        }
    }
}

impl Leading {
    /// The members that are not to be waited for, the one that is away for longest first.
    fn slow(
        &mut self,
        now: u64,
        lease_ms: u64,
        in_sync_ms: u64,
        ends: &[u64],
        followers: &[Follows],
    ) -> Vec<Member> {
        let record = self.membership.record();
        let me = record.leader;
        let members: Vec<_> = record
            .members
            .iter()
            .filter(|member| **member != me)
            .copied()
            .collect();
        self.members.retain(|member, _| members.contains(member));
        let mut slow = Vec::new();
        for member in members {
            let began_ms = self.began_ms;
            let health = self.members.entry(member).or_insert_with(|| Health {
                heard_ms: now.max(began_ms),
                was_heard: false,
                target: ends.to_vec(),
                target_ms: now,
            });
            if let Some(follower) = followers.iter().find(|f| f.member == member) {
                health.was_heard = true;
                health.heard_ms = health.heard_ms.max(follower.heard_ms);
                let has = |(reach, end): (&Reach, &u64)| reach.durable >= *end;
                let all = follower.reach.len() == ends.len();
                if all && follower.reach.iter().zip(&health.target).all(has) {
                    (health.target, health.target_ms) = (ends.to_vec(), now);
                }
            }
            let patience_ms = match (health.was_heard, self.lost == Some(member)) {
                (true, _) => lease_ms * 2 / 3,
                (false, true) => 0,
                (false, false) => lease_ms,
            };
            let is_away = now >= health.heard_ms + patience_ms;
            let is_behind = now >= health.target_ms + in_sync_ms;
            if is_away || is_behind {
                slow.push((health.heard_ms, member));
            }
        }
        slow.sort_unstable();
        slow.into_iter().map(|(_, member)| member).collect()
    }
}
