//! Datasets whose leader a coordinator names: carries out what [`Failover`] says.

use std::sync::Arc;

use strandline_replication::candidate::CandidateOptions;
use strandline_replication::failover::{
    Action, Answer, Event, Failover, FailoverOptions, Standing,
};
use strandline_replication::follower::FollowerOptions;
use strandline_replication::leader::LeaderOptions;
use strandline_replication::quorum::Policy;
use strandline_replication::{Command, Incarnation, Lineage, NodeId, Now};
use strandline_wal::bug::planted;
use strandline_wal::{DatasetId, Epoch};

use super::super::failover::{Desk, Failover as How, FailoverStatus};
use super::{Member, Node, highest_epoch};
use crate::dataset::{Dataset, Reopen};
use crate::error::{Error, Result};
use crate::store::Role;

/// Heartbeats, and looks at what followers do, in one lease.
const LOOKS_PER_LEASE: u64 = 4;
/// Looks at how the followers stand, between two heartbeats.
const LOOKS_PER_HEARTBEAT: u64 = 4;
/// Shortest and longest pause between two tries to reach a leader: a new one is found soon.
const RETRY_MS: (u64, u64) = (50, 250);

/// A dataset's part in failover.
pub(super) struct Elected {
    machine: Failover,
    desk: Box<dyn Desk>,
    how: How,
    looked_ms: u64,
    /// It is to follow, and could not: tried again then.
    follow_ms: Option<u64>,
    status: FailoverStatus,
}

impl Elected {
    /// Whose confirmations count, where it leads.
    pub fn policy(&self) -> Option<Policy> {
        self.machine.policy()
    }

    /// It follows no more. Nobody may be there to act on it, and a full disk may have room again.
    pub fn stopped(&mut self, now: Now) {
        let again_ms = now.mono_ms + self.how.in_sync_ms;
        self.follow_ms.get_or_insert(again_ms);
    }

    /// When it looks again.
    pub fn due_ms(&self) -> u64 {
        self.looked_ms + self.how.lease_ms / LOOKS_PER_LEASE / LOOKS_PER_HEARTBEAT
    }
}

impl Member {
    /// Settings of a leader that is to be heard within its lease.
    pub(super) fn leader_options(&self) -> LeaderOptions {
        let Some(elected) = &self.elected else {
            return LeaderOptions::default();
        };
        LeaderOptions {
            heartbeat_ms: elected.how.lease_ms / LOOKS_PER_LEASE,
            silence_ms: elected.how.lease_ms,
            ..LeaderOptions::default()
        }
    }

    /// Settings of a follower that finds a new leader soon.
    pub(super) fn follower_options(&self) -> FollowerOptions {
        let Some(elected) = &self.elected else {
            return FollowerOptions::default();
        };
        let lease_ms = elected.how.lease_ms;
        FollowerOptions {
            heartbeat_ms: lease_ms / LOOKS_PER_LEASE,
            silence_ms: lease_ms,
            retry_ms: RETRY_MS,
            // What it led itself was the record's, and others may have confirmed it: a leader before that
            // is over, whether it knows it or not.
            least_epoch: highest_epoch(&self.dataset.store()).max(elected.machine.known()),
            ..FollowerOptions::default()
        }
    }
}

impl Node {
    /// Takes part in the failover of a dataset, which `desk` asks the coordinator for. It follows first.
    ///
    /// # Errors
    /// [`Error::Argument`] names the setting; the disk's, where the dataset must change its role.
    pub fn take_part(
        &mut self,
        now: Now,
        dataset: &Dataset,
        how: &How,
        desk: Box<dyn Desk>,
    ) -> Result<()> {
        how.check()?;
        let id = self.join(dataset.inner());
        let store = dataset.inner().store();
        let me = (
            NodeId(store.node().node),
            Incarnation(store.node().incarnation),
        );
        let options = FailoverOptions {
            lease_ms: how.lease_ms,
            in_sync_ms: how.in_sync_ms,
            first: how.first.then_some(how.min_in_sync),
        };
        let seed = store.env().random.next_u64();
        drop(store);
        self.member(&id).elected = Some(Elected {
            machine: Failover::new(now.mono_ms, me, options, seed),
            desk,
            how: how.clone(),
            looked_ms: now.mono_ms,
            follow_ms: None,
            status: FailoverStatus::default(),
        });
        let followed = self.follow(now, dataset, &how.peers);
        if followed.is_err() {
            self.retire(now, dataset);
        }
        followed
    }

    /// Goes on following after the dataset was closed for a while; `false` where nobody elects it.
    pub(super) fn follow_again(&mut self, now: Now, id: &DatasetId) -> bool {
        let is_elected = self.elected(id).is_some();
        if is_elected {
            self.follow_whoever(now, id);
        }
        is_elected
    }

    /// Refuses what only a follower may do, where a coordinator says who leads.
    pub(super) fn check_follows(&self, id: &DatasetId) -> Result<()> {
        let elected = self
            .members
            .get(id)
            .and_then(|member| member.elected.as_ref());
        match elected.is_some_and(|e| e.machine.standing() != Standing::Following) {
            true => Err(Error::Replication("it leads or campaigns".to_owned())),
            false => Ok(()),
        }
    }

    /// How a dataset's part in failover stands.
    pub fn failover_status(&self, dataset: &Dataset) -> FailoverStatus {
        let id = dataset.inner().store().id().clone();
        let elected = self.members.get(&id).and_then(|m| m.elected.as_ref());
        let Some(elected) = elected else {
            return FailoverStatus::default();
        };
        let mut status = FailoverStatus {
            role: match elected.machine.standing() {
                Standing::Following => "follower",
                Standing::Electing => "candidate",
                Standing::Leading => "leader",
            },
            refused: elected.machine.refused().map(|why| why.to_string()),
            ..elected.status.clone()
        };
        if let Some(record) = elected.machine.record() {
            status.epoch = record.epoch.0;
            status.leader = record.leader.0.0;
            status.members = record.members.iter().map(|member| member.0.0).collect();
            status.min_in_sync = record.min_in_sync;
        }
        status
    }

    /// Tells every machine what happened meanwhile. `true` where anything was done.
    pub(super) fn step_elected(&mut self, now: Now) -> bool {
        let ids: Vec<_> = self.members.keys().cloned().collect();
        let mut any = false;
        for id in ids {
            any |= self.step_one(now, &id);
        }
        any
    }

    fn step_one(&mut self, now: Now, id: &DatasetId) -> bool {
        let mut any = false;
        while let Some((number, answer)) = self.elected(id).and_then(|e| e.desk.answered()) {
            if let Some(elected) = self.elected(id) {
                elected.note(&answer);
            }
            self.tell_elected(now, id, Event::Answered(number, answer));
            any = true;
        }
        if self.elected(id).is_none_or(|e| now.mono_ms < e.due_ms()) {
            return any;
        }
        let lineage = Lineage(self.member(id).dataset.store().lineage());
        let elected = self.elected(id).expect("it was there");
        elected.looked_ms = now.mono_ms;
        elected.machine.adopt(lineage);
        let follows = elected.machine.standing() == Standing::Following;
        let is_due = elected.follow_ms.is_some_and(|at_ms| now.mono_ms >= at_ms);
        if is_due && follows {
            self.follow_whoever(now, id);
        }
        self.give_way(now, id);
        if let Some((epoch, heard_ms)) = self.driver.heard(id) {
            self.tell_elected(now, id, Event::Heard(heard_ms, epoch));
        }
        if let Some((ends, follows)) = self.driver.follows(id) {
            self.tell_elected(now, id, Event::Led(ends, follows));
        }
        self.tell_elected(now, id, Event::Tick);
        any
    }

    /// A leader whose disk failed takes no more writes: others may.
    fn give_way(&mut self, now: Now, id: &DatasetId) {
        let store = self.member(id).dataset.store();
        let leads = self.elected(id).map(|e| e.machine.standing()) == Some(Standing::Leading);
        if leads && let Err(error) = store.check_health() {
            // That it was fenced is told by a report of its own.
            if !matches!(error, Error::Fenced { .. }) {
                let _ = self.fault(id, Err(error));
                self.tell_elected(now, id, Event::NotOpened);
            }
        }
    }

    fn elected(&mut self, id: &DatasetId) -> Option<&mut Elected> {
        self.members.get_mut(id)?.elected.as_mut()
    }

    /// One event in, all its consequences out.
    pub(super) fn tell_elected(&mut self, now: Now, id: &DatasetId, event: Event) {
        let mut event = Some(event);
        while let Some(told) = event.take() {
            let Some(elected) = self.elected(id) else {
                return;
            };
            elected.machine.handle(now.mono_ms, told);
            while let Some(action) = self.elected(id).and_then(|e| e.machine.poll_action()) {
                // At most one of them is answered at once: the last of its batch.
                event = self.carry_out(now, id, action).or(event);
            }
        }
    }

    fn carry_out(&mut self, now: Now, id: &DatasetId, action: Action) -> Option<Event> {
        match action {
            Action::Ask(number, ask) => {
                self.elected(id)?.desk.ask(number, ask);
                None
            }
            Action::Policy(policy) => {
                self.driver
                    .command(now, Command::Policy(id.clone(), policy));
                None
            }
            Action::Begin => {
                let dataset = Arc::clone(&self.member(id).dataset);
                self.driver.command(now, Command::Retire(id.clone()));
                let begun = dataset.reopen(Reopen::role(Role::Leader), || Ok(()));
                // Where it failed the record is looked at again, and this tried again.
                let _ = self.fault(id, begun);
                self.follow_whoever(now, id);
                None
            }
            Action::Campaign(above) => {
                let done = self.claim(now, id, above);
                self.fault(id, done).err().map(|()| Event::NotClaimed)
            }
            Action::Lead(epoch) => {
                let done = self.take_over(now, id, epoch, None);
                let done = self.fault(id, done);
                let opened = self.member(id).dataset.store().epoch();
                if done.is_ok() {
                    self.elected(id)?.status.elected_count += 1;
                }
                Some(done.map_or(Event::NotOpened, |()| Event::Opened(opened)))
            }
            Action::Follow => {
                self.follow_whoever(now, id);
                None
            }
        }
    }

    /// Promises this node an epoch. Its own promise is enough: the record names it as one that has
    /// everything.
    fn claim(&mut self, now: Now, id: &DatasetId, above: Epoch) -> Result<()> {
        let dataset = Arc::clone(&self.member(id).dataset);
        if dataset.store().epoch_file().lock().epochs().joins && !planted("elected.joins") {
            // Its directory was emptied below a node that the record names.
            let text = "this node joins and may lack what its leader had when it came";
            return Err(Error::Replication(text.to_owned()));
        }
        if let Some(elected) = self.elected(id) {
            elected.follow_ms = None;
        }
        self.driver.command(now, Command::Retire(id.clone()));
        let is_closed = matches!(dataset.store().check(), Err(Error::Closed(_)));
        if is_closed || dataset.store().role() != Role::Follower {
            dataset.reopen(Reopen::role(Role::Follower), || Ok(()))?;
        }
        let options = CandidateOptions {
            above,
            ..CandidateOptions::default()
        };
        let joint = self.joint(&dataset);
        self.driver.command(now, Command::Campaign(joint, options));
        Ok(())
    }

    fn follow_whoever(&mut self, now: Now, id: &DatasetId) {
        let Some(elected) = self.elected(id) else {
            return;
        };
        let peers = elected.how.peers.clone();
        let retry_ms = now.mono_ms + elected.how.lease_ms;
        let inner = Arc::clone(&self.member(id).dataset);
        let followed = self.follow_inner(now, &inner, &peers);
        let failed = self.fault(id, followed).is_err();
        if let Some(elected) = self.elected(id) {
            elected.follow_ms = failed.then_some(retry_ms);
        }
    }

    /// Notes what failed.
    fn fault(&mut self, id: &DatasetId, done: Result<()>) -> Result<(), ()> {
        done.map_err(|error| {
            if let Some(elected) = self.elected(id) {
                elected.status.last_error = Some(error.to_string());
            }
        })
    }
}

impl Elected {
    fn note(&mut self, answer: &Answer) {
        let failed = match answer {
            Answer::Read(Err(error)) | Answer::Replaced(Err(error)) => Some(error.to_string()),
            Answer::Read(Ok(_)) | Answer::Replaced(Ok(_)) => None,
        };
        self.status.last_error = failed;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
