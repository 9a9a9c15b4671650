//! From the welcome to the first byte: promise, lineage, where the logs part, and the cut.

use std::collections::BTreeMap;

use strandline_wal::ShardId;
use strandline_wal::bug::planted;

use super::{Action, Assembler, Follower, Here, State, Stream};
use crate::error::{Error, Reason, Result};
use crate::ids::{Lineage, NodeId, Promise, ShardEnd};
use crate::leader::{NO_CLAIM, common_version};
use crate::message::{AckEntry, Message, Purpose, Verdict, Welcome};
use crate::store::Times;

/// What is settled of each shard while both sides agree.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    shards: BTreeMap<ShardId, Asked>,
    // Cuts that are not done yet.
    cutting: usize,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    // The end that the last question named.
    end: ShardEnd,
    // Where the next bytes come from, once both agree.
    place: Option<(u64, u64)>,
}

impl Follower {
    pub(super) fn welcomed(&mut self, now: u64, welcome: Welcome) {
        let here = self.here.as_ref().expect("it was looked up for the hello");
        let (ours, promise) = (here.identity.lineage, here.promise);
        let lends = welcome.leader == NO_CLAIM;
        self.leader_name.clone_from(&welcome.name);
        self.leader_node = welcome.node;
        (self.epoch, self.leader, self.wants) = (welcome.epoch, welcome.leader, welcome.wants);
        let admitted = match self.options.purpose {
            Purpose::Fetch => lends && (welcome.epoch == promise.epoch || planted("fetch.epoch")),
            Purpose::Follow | Purpose::Control => {
                // A promise of this very epoch to another binds only while that one may still win.
                let won =
                    welcome.sole && (welcome.epoch == promise.epoch || planted("follower.sole"));
                !lends && (won || promise.admits(welcome.epoch, welcome.node))
            }
        };
        let known = ours == Lineage::default() || ours == welcome.lineage;
        if common_version((welcome.version, welcome.version)).is_none() {
            return self.protocol(
                now,
                format!("version {} was never offered", welcome.version),
            );
        }
        if welcome.lineage == Lineage::default() || welcome.node == NodeId::default() {
            return self.protocol(now, "a welcome without lineage or node");
        }
        if !known {
            let theirs = welcome.lineage;
            return self.stop(now, Error::OtherLineage { ours, theirs });
        }
        if !admitted {
            let text = format!("epoch {} is promised to {}", promise.epoch, promise.to);
            return self.refuse(now, Reason::StaleEpoch, text);
        }
        self.ungreeted = 0;
        self.state = State::Bowing(Box::new(welcome));
        self.bow(now);
    }

    /// Promise and lineage are made durable before anything is answered.
    fn bow(&mut self, now: u64) {
        let State::Bowing(welcome) = std::mem::replace(&mut self.state, State::Idle) else {
            unreachable!("the welcome is kept there");
        };
        let here = self.here.as_ref().expect("it was looked up for the hello");
        let is_bound = match self.options.purpose {
            // The epoch that it fetches under is promised to itself.
            Purpose::Fetch => here.promise.epoch == welcome.epoch,
            Purpose::Follow | Purpose::Control => {
                here.promise.epoch == welcome.epoch && here.promise.to == welcome.node
            }
        };
        if !is_bound && !planted("follower.promise") {
            let promise = Promise {
                epoch: welcome.epoch,
                to: welcome.node,
            };
            self.actions.push_back(Action::Promise(promise));
            self.state = State::Bowing(welcome);
        } else if here.identity.lineage != welcome.lineage {
            self.actions.push_back(Action::Adopt(welcome.lineage));
            self.state = State::Bowing(welcome);
        } else {
            let here = here.clone();
            self.ask_with(&here);
            self.verdicts(now, welcome.verdicts);
        }
    }

    /// Nothing is agreed yet; the question names the ends of these logs.
    pub(super) fn ask_with(&mut self, here: &Here) {
        let only = &self.options.only;
        let shards = here
            .shards
            .iter()
            .filter(|(end, _)| only.is_empty() || only.contains(&end.shard))
            .map(|(end, _)| {
                (
                    end.shard,
                    Asked {
                        end: *end,
                        place: None,
                    },
                )
            })
            .collect();
        self.state = State::Agreeing(Agreement { shards, cutting: 0 });
    }

    pub(super) fn promised(&mut self, now: u64, done: Result<()>) {
        let State::Bowing(welcome) = &self.state else {
            return;
        };
        let promise = Promise {
            epoch: welcome.epoch,
            to: welcome.node,
        };
        match done {
            Ok(()) => {
                self.here
                    .as_mut()
                    .expect("it was looked up for the hello")
                    .promise = promise;
                self.bow(now);
            }
            Err(why) => self.stop(now, why),
        }
    }

    pub(super) fn adopted(&mut self, now: u64, done: Result<()>) {
        let State::Bowing(welcome) = &self.state else {
            return;
        };
        let lineage = welcome.lineage;
        match done {
            Ok(()) => {
                let here = self.here.as_mut().expect("it was looked up for the hello");
                here.identity.lineage = lineage;
                self.bow(now);
            }
            Err(why) => self.stop(now, why),
        }
    }

    pub(super) fn verdicts(&mut self, now: u64, verdicts: Vec<Verdict>) {
        let State::Agreeing(agreement) = &mut self.state else {
            return;
        };
        let open = agreement
            .shards
            .iter()
            .filter(|(_, a)| a.place.is_none())
            .map(|(s, _)| *s);
        if !open.eq(verdicts.iter().map(Verdict::shard)) {
            return self.protocol(now, "verdicts on other shards than were asked");
        }
        let (mut lower, mut pruned) = (Vec::new(), None);
        for verdict in verdicts {
            let asked = agreement
                .shards
                .get_mut(&verdict.shard())
                .expect("looked at above");
            match verdict {
                Verdict::Agreed {
                    position,
                    segment,
                    at,
                    ..
                } if position == asked.end.position => {
                    asked.place = Some((segment, at));
                }
                Verdict::Ends {
                    shard,
                    position,
                    leader,
                } if position < asked.end.position => {
                    lower.push((shard, position, leader));
                }
                Verdict::Pruned {
                    shard,
                    first_available,
                } => {
                    let needed = asked.end.position.seq.saturating_add(1);
                    pruned = Some(Error::Pruned {
                        shard,
                        needed,
                        first_available,
                    });
                }
                Verdict::Agreed { .. } | Verdict::Ends { .. } => {
                    return self.protocol(now, "a verdict that is not below the question");
                }
            }
        }
        if let Some(why) = pruned {
            self.ask_for_bundle(now, why);
        } else if lower.is_empty() {
            self.agreed(now);
        } else {
            self.actions.push_back(Action::FallBack(lower));
        }
    }

    pub(super) fn fell_back(&mut self, now: u64, ends: Vec<Result<ShardEnd>>) {
        let State::Agreeing(agreement) = &mut self.state else {
            return;
        };
        let mut asks = Vec::new();
        for end in ends {
            match end {
                Ok(end) => {
                    let asked = agreement
                        .shards
                        .get_mut(&end.shard)
                        .expect("it was asked for");
                    assert!(end.position < asked.end.position, "every round asks lower");
                    asked.end = end;
                    asks.push(end);
                }
                Err(why @ Error::Pruned { .. }) => return self.ask_for_bundle(now, why),
                Err(why) => return self.stop(now, why),
            }
        }
        self.send(now, Message::Ends(asks));
    }

    /// Both sides agree on every shard: cut what lies behind.
    fn agreed(&mut self, now: u64) {
        let State::Agreeing(agreement) = &mut self.state else {
            return;
        };
        if std::mem::take(&mut self.misfits)
            && let Some((shard, end)) = self.refused_at.take()
        {
            let why = Error::Pruned {
                shard,
                needed: end.saturating_add(1),
                first_available: 0,
            };
            return self.ask_for_bundle(now, why);
        }
        let here = self.here.as_ref().expect("it was looked up for the hello");
        let mut cuts = Vec::new();
        for (own, floor) in &here.shards {
            let Some(asked) = agreement.shards.get(&own.shard) else {
                continue;
            };
            let to = asked.end.position.seq;
            if to == own.position.seq {
                continue;
            }
            if floor.strict && to < floor.committed {
                let (shard, committed) = (own.shard, floor.committed);
                return self.stop(
                    now,
                    Error::BelowCommitted {
                        shard,
                        committed,
                        to,
                    },
                );
            }
            if to < floor.flushed {
                // What would have to be cut is in tables.
                let why = Error::Pruned {
                    shard: own.shard,
                    needed: to + 1,
                    first_available: floor.flushed + 1,
                };
                return self.ask_for_bundle(now, why);
            }
            cuts.push(Action::Cut(*own, asked.end));
        }
        agreement.cutting = cuts.len();
        self.actions.extend(cuts);
        self.follow_when_cut(now);
    }

    pub(super) fn was_cut(&mut self, now: u64, shard: ShardId, done: Result<()>) {
        let State::Agreeing(agreement) = &mut self.state else {
            return;
        };
        match done {
            Ok(()) => {}
            // What would have to be cut is in tables since this node said where it stands.
            Err(why @ Error::Pruned { .. }) => return self.ask_for_bundle(now, why),
            Err(why) => return self.stop(now, why),
        }
        agreement.cutting -= 1;
        let end = agreement.shards[&shard].end;
        let here = self.here.as_mut().expect("it was looked up for the hello");
        let own = here.shards.iter_mut().find(|(own, _)| own.shard == shard);
        own.expect("it was cut").0 = end;
        self.follow_when_cut(now);
    }

    fn follow_when_cut(&mut self, now: u64) {
        let State::Agreeing(agreement) = &self.state else {
            return;
        };
        if agreement.cutting > 0 {
            return;
        }
        self.streams = agreement
            .shards
            .iter()
            .map(|(shard, asked)| {
                let (segment, at) = asked.place.expect("all shards agreed");
                let received = asked.end.position.seq;
                let ack = AckEntry {
                    shard: *shard,
                    received,
                    durable: 0,
                    applied: 0,
                };
                let assembler = Assembler::new(segment, at);
                // Whether it was ever synced is not known: the first flush finds out.
                let stream = Stream {
                    assembler,
                    ack,
                    untold: true,
                    unsynced: true,
                    ..Stream::default()
                };
                (*shard, stream)
            })
            .collect();
        self.state = State::Following;
        self.backoff_ms = self.options.retry_ms.0;
        // A time belongs to the marks that came with it: those of another connection are gone.
        self.times = Times::default();
        self.synced_ms = now.saturating_sub(self.options.sync_ms);
        self.told_ms = now.saturating_sub(self.options.ack_ms);
        self.actions
            .push_back(Action::Joined(self.leader_node, self.leader_name.clone()));
    }

    /// The logs do not reach to where both agree: the leader sends its files.
    fn ask_for_bundle(&mut self, now: u64, why: Error) {
        if self.options.purpose == Purpose::Fetch {
            // A candidate without the log cannot lead: another one must.
            return self.stop(now, why);
        }
        self.state = State::Asking;
        self.actions.push_back(Action::OpenSink);
    }
}
