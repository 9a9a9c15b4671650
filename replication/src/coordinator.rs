//! Who leads a dataset, and who has everything that was acknowledged: one small record, kept by an
//! engine outside, changed by compare-and-set alone.
//!
//! Safety is the promises of the nodes and the compare-and-set; no clock and no lease is part of it. The
//! record is touched only where it changes: nodes judge each other's liveness by their own connections.

pub mod attempt;
pub mod codec;
pub mod directory;
pub mod etcd;
pub mod memory;
pub mod object_store;
#[cfg(test)]
mod testing;

use std::collections::BTreeSet;

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::ids::Lineage;
use crate::quorum::{MEMBER_COUNT_MAX, Member};

/// What all nodes of a dataset agree on.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Record {
    /// The history that this is about. A dataset that was created anew or restored has another.
    pub lineage: Lineage,
    /// The last epoch that anybody may have led. Rises only.
    pub epoch: Epoch,
    /// Who may lead it, one of `members`.
    pub leader: Member,
    /// Who has every acknowledged record, each node once. Only they may campaign.
    pub members: Vec<Member>,
    /// The least number of followers among `members` with which writes are acknowledged from
    /// `Received` on.
    pub min_in_sync: u32,
}

impl Record {
    /// Checks what must hold of every record, wherever it comes from.
    ///
    /// # Errors
    /// [`Error::BadRecord`] names the rule.
    pub fn check(&self) -> Result<()> {
        let nodes: BTreeSet<_> = self.members.iter().map(|member| member.0).collect();
        let broken = if self.epoch == Epoch(0) && !planted("coordinator.epoch") {
            Some("its epoch is 0")
        } else if self.members.len() > MEMBER_COUNT_MAX {
            Some("it names more members than there may be")
        } else if nodes.len() != self.members.len() {
            Some("it names a node twice")
        } else if !self.members.contains(&self.leader) {
            Some("its leader is no member")
        } else {
            None
        };
        match broken {
            Some(what) => Err(Error::BadRecord {
                what: what.to_owned(),
            }),
            None => Ok(()),
        }
    }
}

/// Which state of a dataset's record: rises with every change, 0 where there is no record yet.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Version(pub u64);

/// What a compare-and-set did.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Replaced {
    /// The record is in place, as this version.
    Done(Version),
    /// Another record was in place of the expected one; nothing changed.
    Conflict,
}

/// The engine that keeps the records. Calls may block for as long as the network takes, within a
/// deadline of their own; so they are made from a thread that does nothing else.
pub trait Coordinator: Send {
    /// The newest record of a dataset; `None` where there is none yet.
    ///
    /// # Errors
    /// [`Error::Coordinator`] where it cannot be asked, [`Error::BadRecord`] for a record that cannot be.
    fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>>;

    /// Replaces the record that is in place as version `expected` (`Version(0)`: none).
    ///
    /// # Errors
    /// [`Error::Coordinator`]: whether it is in place is not known. Who asked must count with both
    /// until a [`Coordinator::read`] has told.
    fn replace(&mut self, dataset: &str, expected: Version, record: &Record) -> Result<Replaced>;

    /// Waits until the record is newer than `seen`, `wait_ms` at most. It may return early, so its caller
    /// reads afterwards. Only nodes that have no leader call it.
    ///
    /// # Errors
    /// As [`Coordinator::read`].
    fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()>;
}
