//! Who leads and who is in sync: what a leader and a candidate do with the coordinator's record. Holds
//! no file, no socket, no thread, and no clock; an event in, actions out.
//!
//! Three things hold whatever is lost, late or repeated:
//!
//! 1. *Every member has every record on its disk that was acknowledged at `Durable` or above.* A leader acknowledges what all members
//!    confirm. It asks for more than the record says while a change is under way (the members of both),
//!    never for less; and who joins has, before that is proposed, everything that was confirmed.
//! 2. *Who promised confirms nothing more of earlier epochs.* So when a member that promised itself an
//!    epoch becomes leader by a compare-and-set, it has everything that ever was or will be acknowledged
//!    before its epoch: to go on without it the old leader must change the same record, and one of both
//!    changes fails.
//! 3. *An epoch has one leader.* Its number rises with the change that names its leader.
//!
//! A change whose answer is lost may be in place, or come into place later: as long as the version of the
//! record is the expected one. So a read that shows that version says nothing; the same change is asked for
//! again, and only a newer version tells.
//!
//! | A leader's change | entered by | left by |
//! |-------------------|------------|---------|
//! | none | done, or another version was read | a slow or a joining member: asked |
//! | asked | Replace | done: none; conflict or no answer: reading |
//! | reading | Read | the same version: asked again; a newer one: none, or the end |

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use crate::coordinator::{Record, Replaced, Version};
use crate::ids::Lineage;
use crate::quorum::{MEMBER_COUNT_MAX, Member, Policy};

mod election;
#[cfg(test)]
mod tests;

pub use election::{Election, ElectionAction, ElectionEvent, Refused};

/// How far a follower that wants to join has come in one shard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reach {
    /// Last sequence on its disk, of a log that agrees with the leader's.
    pub durable: u64,
    /// Last sequence that this leadership ever confirmed, at any level.
    pub confirmed: u64,
    /// First sequence of this leadership: what earlier ones confirmed lies before it. `u64::MAX` while it
    /// is not known.
    pub start: u64,
}

/// Whether a follower has, in every shard, what was confirmed by this leadership and those before it.
pub fn has_caught_up(reach: &[Reach]) -> bool {
    let has = |r: &Reach| {
        let earlier = r.durable >= r.start || planted("membership.start");
        let own = r.durable >= r.confirmed || planted("membership.caught_up");
        earlier && own
    };
    !reach.is_empty() && reach.iter().all(has)
}

/// What happened at a leader.
#[derive(Clone, Debug)]
pub enum Event {
    /// The answer to [`Action::Read`], or a look at the record without being asked.
    Read(Option<(Version, Record)>),
    /// The answer to [`Action::Replace`]. Each has one answer at most.
    Replaced(Replaced),
    /// [`Action::Replace`] was not answered, and will not be.
    Unknown,
    /// These members are too slow to wait for, the slowest first. Said again for as long as it holds.
    Slow(Vec<Member>),
    /// A follower wants to join. Said again for as long as it is none of the members.
    Joins(Member, Vec<Reach>),
    /// A later epoch was promised or seen.
    Outdated(Epoch),
}

/// What a leader has to do, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// Confirm by this from now on: before anything else is confirmed.
    Policy(Policy),
    /// Replace the record that is in place as that version.
    Replace(Version, Record),
    /// Read the record, until there is an answer.
    Read,
    /// This leadership is over, by an epoch of at least that.
    Fenced(Epoch),
}

/// What a leader knows of its record.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Membership {
    me: Member,
    version: Version,
    // Invariant: its epoch is this leadership's, its leader is `me`.
    record: Record,
    change: Option<Change>,
    // Invariant: once set, nothing is asked for any more.
    fenced: Option<Epoch>,
}

/// A change that may be in place or come into place.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
struct Change {
    record: Record,
    // The answer of the coordinator is under way; otherwise that of a read.
    asked: bool,
}

impl Membership {
    /// A leader whose record is in place as that version.
    ///
    /// # Panics
    /// Where the record names another leader.
    pub fn new(me: Member, version: Version, record: Record) -> Membership {
        assert!(record.leader == me, "the record names this leader");
        Membership {
            me,
            version,
            record,
            change: None,
            fenced: None,
        }
    }

    /// The record as far as it is known.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whether a change is under way: nobody else joins or is dropped until then.
    pub fn is_changing(&self) -> bool {
        self.change.is_some()
    }

    /// Whether this leadership is over.
    pub fn is_fenced(&self) -> bool {
        self.fenced.is_some()
    }

    /// Whose confirmations count.
    pub fn policy(&self) -> Policy {
        let next = self.change.as_ref().map(|change| &change.record.members);
        let members = match next {
            Some(next) if planted("membership.shrink") => next,
            _ => &self.record.members,
        };
        Policy::InSync {
            members: members.clone(),
            next: next.filter(|_| !planted("membership.union")).cloned(),
            min_in_sync: self.record.min_in_sync as usize,
        }
    }

    /// The only way in.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        if self.fenced.is_some() {
            return Vec::new();
        }
        match event {
            Event::Read(found) => self.read(found),
            Event::Replaced(Replaced::Done(version)) => self.done(version),
            Event::Replaced(Replaced::Conflict) if planted("membership.conflict") => {
                self.done(self.version)
            }
            Event::Unknown if planted("membership.unknown") => self.forget(),
            Event::Replaced(Replaced::Conflict) | Event::Unknown => self.look(),
            Event::Slow(members) => self.drop(&members),
            Event::Joins(member, reach) => self.join(member, &reach),
            Event::Outdated(epoch) => {
                let is_later = epoch > self.record.epoch && !planted("membership.outdated");
                if is_later {
                    self.fence(epoch)
                } else {
                    Vec::new()
                }
            }
        }
    }

    /// Drops as many as may go. Below the minimum nothing is confirmed whoever is dropped, and who was
    /// dropped could not lead: the minimum stays.
    fn drop(&mut self, slow: &[Member]) -> Vec<Action> {
        let mut members = self.record.members.clone();
        let least = self.record.min_in_sync as usize + 1;
        for member in slow.iter().filter(|member| **member != self.me) {
            if members.len() > least {
                members.retain(|other| other != member);
            }
        }
        self.propose(members)
    }

    fn join(&mut self, member: Member, reach: &[Reach]) -> Vec<Action> {
        let is_own = member.0 == self.me.0;
        if is_own || self.record.members.contains(&member) || !has_caught_up(reach) {
            return Vec::new();
        }
        // What it was in an earlier life is gone, and with it what was confirmed then.
        let stays = |other: &&Member| other.0 != member.0;
        let mut members: Vec<_> = self.record.members.iter().filter(stays).copied().collect();
        members.push(member);
        self.propose(members)
    }

    fn propose(&mut self, members: Vec<Member>) -> Vec<Action> {
        let is_same = members == self.record.members;
        if self.change.is_some() || is_same || members.len() > MEMBER_COUNT_MAX {
            return Vec::new();
        }
        let record = Record {
            members,
            ..self.record.clone()
        };
        let replace = Action::Replace(self.version, record.clone());
        self.change = Some(Change {
            record,
            asked: true,
        });
        vec![Action::Policy(self.policy()), replace]
    }

    fn done(&mut self, version: Version) -> Vec<Action> {
        match self.change.take() {
            Some(change) if change.asked => self.adopt(version, change.record),
            other => {
                self.change = other;
                Vec::new()
            }
        }
    }

    fn adopt(&mut self, version: Version, record: Record) -> Vec<Action> {
        self.change = None;
        (self.version, self.record) = (version, record);
        vec![Action::Policy(self.policy())]
    }

    /// It may be in place, and may come into place.
    fn look(&mut self) -> Vec<Action> {
        match &mut self.change {
            Some(change) if change.asked => {
                change.asked = false;
                vec![Action::Read]
            }
            _ => Vec::new(),
        }
    }

    fn forget(&mut self) -> Vec<Action> {
        self.change = None;
        vec![Action::Policy(self.policy())]
    }

    fn read(&mut self, found: Option<(Version, Record)>) -> Vec<Action> {
        // The answer that is under way is of this change, the next one might be taken for it.
        if self.change.as_ref().is_some_and(|change| change.asked) {
            return Vec::new();
        }
        let later = Epoch(self.record.epoch.0.saturating_add(1));
        let Some((version, record)) = found else {
            return self.fence(later);
        };
        if version < self.version {
            // A look that was begun before this leadership.
            return Vec::new();
        }
        let is_ours = record.epoch == self.record.epoch && record.leader == self.me;
        if (!is_ours || record.lineage != self.record.lineage) && !planted("membership.fenced") {
            return self.fence(record.epoch.max(later));
        }
        match &mut self.change {
            _ if version > self.version => self.adopt(version, record),
            None => Vec::new(),
            Some(_) if planted("membership.late") => self.forget(),
            Some(change) => {
                change.asked = true;
                vec![Action::Replace(self.version, change.record.clone())]
            }
        }
    }

    fn fence(&mut self, epoch: Epoch) -> Vec<Action> {
        self.fenced = Some(epoch);
        vec![Action::Fenced(epoch)]
    }
}

/// The record of a dataset that never had one: its first leader is in sync with itself.
pub(crate) fn first(lineage: Lineage, epoch: Epoch, leader: Member, min_in_sync: u32) -> Record {
    Record {
        lineage,
        epoch,
        leader,
        members: vec![leader],
        min_in_sync,
    }
}
