//! A candidate's part: may it campaign, which epoch, and does the record name it in the end.
//!
//! | State | entered by | left by |
//! |-------|------------|---------|
//! | looking | Read | a record that names this incarnation: claiming; another: over |
//! | claiming | Claim | the epoch is promised, the longest logs are here and durable: opening |
//! | opening | Replace | done: over; conflict or no answer: looking again |
//! | looking again | Read | the record names it in that epoch, or has that epoch: over; otherwise opening |

use std::fmt;

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use super::first;
use crate::coordinator::{Record, Replaced, Version};
use crate::ids::Lineage;
use crate::quorum::Member;

/// What happened at a candidate.
#[derive(Clone, Debug)]
pub enum ElectionEvent {
    /// The answer to [`ElectionAction::Read`].
    Read(Option<(Version, Record)>),
    /// The epoch is promised here, and the longest logs among the promises are here, both durably.
    Ready(Epoch),
    /// The answer to [`ElectionAction::Replace`].
    Replaced(Replaced),
    /// [`ElectionAction::Replace`] was not answered, and will not be.
    Unknown,
}

/// What a candidate has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ElectionAction {
    /// Read the record, until there is an answer.
    Read,
    /// Promise itself an epoch above that one, gather promises, fetch the longest logs.
    Claim(Epoch),
    /// Replace the record that is in place as that version.
    Replace(Version, Record),
    /// It leads, by the record that is in place as that version.
    Elected(Version, Record),
    /// It does not.
    NotElected(Refused),
}

/// Why a node may not lead.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refused {
    /// There is no record, and it was not asked to make one.
    NoRecord,
    /// The record is of another history.
    Lineage(Lineage),
    /// The record does not name this incarnation: it may lack what was acknowledged.
    NotMember,
    /// Another node opened this epoch, or a later one.
    Lost(Epoch),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::NoRecord => {
                f.write_str("there is no record, and this node may not make the first")
            }
            Refused::Lineage(lineage) => write!(f, "the record is of another history, {lineage}"),
            Refused::NotMember => {
                f.write_str("the record does not name this node: it may lack what was acknowledged")
            }
            Refused::Lost(epoch) => write!(f, "another node opened epoch {epoch}"),
        }
    }
}

/// See the module.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Election {
    me: Member,
    lineage: Lineage,
    // The minimum of a first record, where it may make one.
    first: Option<u32>,
    state: State,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum State {
    Looking,
    Claiming(Version, Option<Record>),
    Opening(Record),
    LookingAgain(Epoch),
    Over,
}

impl Election {
    /// Begins with a read. With `first` it may make the first record of its dataset, with that minimum:
    /// only where the operator says that no other node ever led it.
    pub fn new(me: Member, lineage: Lineage, first: Option<u32>) -> (Election, ElectionAction) {
        let election = Election {
            me,
            lineage,
            first,
            state: State::Looking,
        };
        (election, ElectionAction::Read)
    }

    /// Whether its outcome was told.
    pub fn is_over(&self) -> bool {
        self.state == State::Over
    }

    /// The only way in.
    pub fn handle(&mut self, event: ElectionEvent) -> Option<ElectionAction> {
        match (std::mem::replace(&mut self.state, State::Over), event) {
            (State::Looking, ElectionEvent::Read(found)) => Some(self.looked(found)),
            (State::Claiming(version, record), ElectionEvent::Ready(epoch)) => {
                Some(self.open(version, record, epoch))
            }
            (State::Opening(record), ElectionEvent::Replaced(Replaced::Done(version))) => {
                Some(ElectionAction::Elected(version, record))
            }
            (
                State::Opening(record),
                ElectionEvent::Replaced(Replaced::Conflict) | ElectionEvent::Unknown,
            ) => {
                self.state = State::LookingAgain(record.epoch);
                Some(ElectionAction::Read)
            }
            (State::LookingAgain(epoch), ElectionEvent::Read(found)) => {
                Some(self.looked_again(epoch, found))
            }
            (state, _) => {
                self.state = state;
                None
            }
        }
    }

    fn looked(&mut self, found: Option<(Version, Record)>) -> ElectionAction {
        if let Some(why) = self.refusal(found.as_ref().map(|(_, record)| record)) {
            return ElectionAction::NotElected(why);
        }
        let (version, record) = found.map_or((Version(0), None), |(v, record)| (v, Some(record)));
        let above = match &record {
            Some(record) if !planted("election.above") => record.epoch,
            _ => Epoch(0),
        };
        self.state = State::Claiming(version, record);
        ElectionAction::Claim(above)
    }

    fn refusal(&self, record: Option<&Record>) -> Option<Refused> {
        let Some(record) = record else {
            return self.first.is_none().then_some(Refused::NoRecord);
        };
        let is_me = |member: &Member| match planted("election.wiped") {
            true => member.0 == self.me.0,
            false => *member == self.me,
        };
        if record.lineage != self.lineage {
            Some(Refused::Lineage(record.lineage))
        } else if !record.members.iter().any(is_me) && !planted("election.member") {
            Some(Refused::NotMember)
        } else {
            None
        }
    }

    fn open(&mut self, expected: Version, record: Option<Record>, epoch: Epoch) -> ElectionAction {
        let record = match record {
            // Laggards are dropped later, by the leader: each of them has all that was acknowledged.
            Some(record) => Record {
                epoch,
                leader: self.me,
                ..record
            },
            None => first(self.lineage, epoch, self.me, self.first.unwrap_or_default()),
        };
        self.state = State::Opening(record.clone());
        ElectionAction::Replace(expected, record)
    }

    fn looked_again(&mut self, epoch: Epoch, found: Option<(Version, Record)>) -> ElectionAction {
        if let Some((version, record)) = &found {
            let is_ours = record.leader == self.me || planted("election.ours");
            if record.epoch == epoch && is_ours {
                return ElectionAction::Elected(*version, record.clone());
            }
            if record.epoch >= epoch && !planted("election.lost") {
                return ElectionAction::NotElected(Refused::Lost(record.epoch));
            }
        }
        if let Some(why) = self.refusal(found.as_ref().map(|(_, record)| record)) {
            return ElectionAction::NotElected(why);
        }
        let (version, record) = found.map_or((Version(0), None), |(v, record)| (v, Some(record)));
        self.open(version, record, epoch)
    }
}
