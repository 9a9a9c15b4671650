//! Positions and an ack policy give what is confirmed; promises give who may lead. Pure functions.
//!
//! *In-sync set*: a record is confirmed by n once every member confirms it and the set has at least n
//! followers, and at least as many as the record wants: n is a floor, not a choice of whom to wait for.
//! While a change of the set is unanswered both sets must confirm. One promise of a member suffices to
//! lead, since each has everything.
//!
//! *Fixed list* of m nodes: a record is confirmed by n once any n followers of the list confirm it, and
//! leading needs promises from m - n nodes, the candidate's own among them: n + 1 nodes have the record
//! and m - n were asked, so at least one of those asked has it.
//!
//! Where m - n is no majority, two candidates may win one epoch number. That loses nothing: who has a
//! record of that epoch confirmed has the promises of n + 1 nodes, and the m - n - 1 others elect nobody.
//! So one of two winners confirms nothing in it, and [`longest`] tells their logs apart by the claim. To
//! ask for a majority instead would close it and take from two nodes, of which one confirms, that the
//! other can be promoted alone.

use std::collections::BTreeMap;

use strandline_wal::ShardId;
use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::ids::{Incarnation, NodeId, ShardEnd};
use crate::message::AckEntry;
use crate::store::Confirmed;

/// Most nodes that one policy may name.
pub const MEMBER_COUNT_MAX: usize = 64;

/// A member of an in-sync set.
pub type Member = (NodeId, Incarnation);

/// How well followers must have a record. Each includes a disk write here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// In the logs of n followers.
    Received(usize),
    /// On the disks of n followers.
    Durable(usize),
    /// Readable at n followers.
    Applied(usize),
}

/// Who counts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Policy {
    /// The operator's list, the leader among them.
    Fixed(Vec<NodeId>),
    /// The coordinator's record.
    InSync {
        /// The set, the leader among them.
        members: Vec<Member>,
        /// The set of a change whose outcome is unknown.
        next: Option<Vec<Member>>,
        /// Nothing is confirmed where fewer followers count.
        min_in_sync: usize,
    },
}

impl Default for Policy {
    /// Nobody counts: an asynchronous dataset.
    fn default() -> Policy {
        Policy::Fixed(Vec::new())
    }
}

/// What one follower has of one shard.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Who.
    pub member: Member,
    /// What.
    pub ack: AckEntry,
}

impl Policy {
    /// What is confirmed of a shard. Followers without a standing have nothing.
    pub fn confirmed(&self, leader: NodeId, shard: ShardId, standings: &[Standing]) -> Confirmed {
        let by = |field: fn(&AckEntry) -> u64| match self {
            Policy::Fixed(list) => {
                let mut seqs: Vec<u64> = list
                    .iter()
                    .filter(|node| **node != leader)
                    .map(|node| held(standings, field, |member| member.0 == *node))
                    .collect();
                seqs.sort_unstable_by(|a, b| b.cmp(a));
                seqs
            }
            Policy::InSync {
                members,
                next,
                min_in_sync,
            } => {
                let all = |set: &[Member]| -> Vec<u64> {
                    let followers = set.iter().filter(|member| member.0 != leader);
                    followers
                        .map(|m| held(standings, field, |member| member == m))
                        .collect()
                };
                let mut seqs = all(members);
                let mut count = seqs.len();
                if let Some(next) = next {
                    let others = all(next);
                    count = count.min(others.len());
                    seqs.extend(others);
                }
                if count < *min_in_sync && !planted("quorum.minimum") {
                    count = 0;
                }
                vec![seqs.into_iter().min().unwrap_or(0); count]
            }
        };
        Confirmed {
            shard,
            received: by(|ack| ack.received),
            durable: by(|ack| ack.durable),
            applied: by(|ack| ack.applied),
        }
    }
}

fn held(standings: &[Standing], field: fn(&AckEntry) -> u64, is: impl Fn(&Member) -> bool) -> u64 {
    standings
        .iter()
        .filter(|s| is(&s.member))
        .map(|s| field(&s.ack))
        .max()
        .unwrap_or(0)
}

/// Standings as they count for a leadership that begins with record `start` of the shard, while the leader's
/// own disk has everything up to `durable`. Who lacks that record has nothing, and where the leader lacks it
/// nobody has: a record of an earlier epoch, on however many nodes, may still lose to a log with a later
/// epoch (Raft, figure 8), against the leader's own if that comes back without it.
pub fn since(start: u64, durable: u64, standings: &[Standing]) -> Vec<Standing> {
    if durable < start && !planted("quorum.own_start") {
        return Vec::new();
    }
    let start = if planted("quorum.start") { 0 } else { start };
    let counted = |seq: u64| if seq >= start { seq } else { 0 };
    let standing = |Standing { member, ack }: &Standing| Standing {
        member: *member,
        ack: AckEntry {
            shard: ack.shard,
            received: counted(ack.received),
            durable: counted(ack.durable),
            applied: counted(ack.applied),
        },
    };
    standings.iter().map(standing).collect()
}

impl Confirmed {
    /// The last sequence that is confirmed at a level; 0 where too few followers count.
    pub fn at(&self, level: Level) -> u64 {
        let (seqs, n) = match level {
            Level::Received(n) => (&self.received, n),
            Level::Durable(n) => (&self.durable, n),
            Level::Applied(n) => (&self.applied, n),
        };
        n.checked_sub(1)
            .and_then(|n| seqs.get(if planted("quorum.first") { 0 } else { n }))
            .copied()
            .unwrap_or(0)
    }
}

/// Promises that a candidate needs among a fixed list of `nodes` where writes are confirmed by
/// `followers` of them; its own counts.
pub fn promises_needed(nodes: usize, followers: usize) -> usize {
    nodes.saturating_sub(followers).max(1)
}

/// A node's promise, with the durable ends of its logs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Promised {
    /// Who promised.
    pub node: NodeId,
    /// Its logs.
    pub ends: Vec<ShardEnd>,
}

/// Shard by shard the longest log among the promises: the later epoch first, then the higher
/// sequence. Where `own` has as much, it is chosen.
///
/// Two claims to one epoch number are two histories, as after two promotions by force. All shards that
/// reached that epoch are taken from one of them, however long the other's are: a mixture would be a
/// history that no node ever had, and that none may be able to fetch.
///
/// # Errors
/// [`Error::TooFewPromises`].
pub fn longest(
    own: NodeId,
    promises: &[Promised],
    needed: usize,
) -> Result<Vec<(NodeId, ShardEnd)>> {
    if promises.len() < needed {
        return Err(Error::TooFewPromises {
            needed,
            found: promises.len(),
        });
    }
    let mut best: BTreeMap<ShardId, (NodeId, ShardEnd)> = BTreeMap::new();
    let rank = |node: NodeId, end: &ShardEnd| {
        let claim = (end.position.epoch, end.leader);
        (claim, end.position.seq, node == own, node)
    };
    for promise in promises {
        for end in &promise.ends {
            let entry = best.entry(end.shard).or_insert((promise.node, *end));
            if rank(promise.node, end) > rank(entry.0, &entry.1) && !planted("quorum.longest") {
                *entry = (promise.node, *end);
            }
        }
    }
    Ok(best.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::LeaderId;
    use strandline_wal::{Epoch, Position};

    fn node(n: u8) -> NodeId {
        NodeId([n; 16])
    }

    fn standing(n: u8, received: u64, durable: u64, applied: u64) -> Standing {
        let ack = AckEntry {
            shard: ShardId(0),
            received,
            durable,
            applied,
        };
        Standing {
            member: (node(n), Incarnation([n; 16])),
            ack,
        }
    }

    fn member(n: u8) -> Member {
        (node(n), Incarnation([n; 16]))
    }

    #[test]
    fn a_fixed_list_confirms_what_any_n_followers_have() {
        let policy = Policy::Fixed(vec![node(0), node(1), node(2), node(3)]);
        let standings = [
            standing(1, 10, 8, 2),
            standing(2, 7, 7, 7),
            standing(9, 99, 99, 99),
        ];
        let confirmed = policy.confirmed(node(0), ShardId(0), &standings);
        assert_eq!(confirmed.received, [10, 7, 0]);
        assert_eq!(confirmed.at(Level::Durable(2)), 7);
        assert_eq!(confirmed.at(Level::Applied(1)), 7);
        assert_eq!(confirmed.at(Level::Received(3)), 0);
        assert_eq!(confirmed.at(Level::Received(4)), 0);
        assert_eq!(confirmed.at(Level::Received(0)), 0);
    }

    #[test]
    fn an_in_sync_set_confirms_what_every_member_has() {
        let members = vec![member(0), member(1), member(2)];
        let standings = [
            standing(1, 10, 8, 2),
            standing(2, 7, 7, 7),
            standing(3, 5, 5, 5),
        ];
        let policy = Policy::InSync {
            members: members.clone(),
            next: None,
            min_in_sync: 1,
        };
        assert_eq!(
            policy.confirmed(node(0), ShardId(0), &standings).received,
            [7, 7]
        );
        let next = Some(vec![member(0), member(3)]);
        let policy = Policy::InSync {
            members,
            next,
            min_in_sync: 1,
        };
        let both = policy.confirmed(node(0), ShardId(0), &standings);
        assert_eq!(
            both.received,
            [5],
            "old and new set, and no more than the smaller one"
        );
    }

    #[test]
    fn below_the_minimum_nothing_is_confirmed() {
        let members = vec![member(0), member(1), member(2)];
        let standings = [standing(1, 9, 9, 9), standing(2, 9, 9, 9)];
        let at = |next, min_in_sync| {
            let members = members.clone();
            let policy = Policy::InSync {
                members,
                next,
                min_in_sync,
            };
            let confirmed = policy.confirmed(node(0), ShardId(0), &standings);
            confirmed.at(Level::Durable(1))
        };
        assert_eq!(at(None, 2), 9);
        assert_eq!(at(None, 3), 0);
        let next = Some(vec![member(0), member(1)]);
        assert_eq!(at(next, 2), 0, "nor while a change to less is unanswered");
    }

    #[test]
    fn a_wiped_member_counts_for_nothing() {
        let policy = Policy::InSync {
            members: vec![member(0), member(1)],
            next: None,
            min_in_sync: 1,
        };
        let mut wiped = standing(1, 10, 10, 10);
        wiped.member.1 = Incarnation([7; 16]);
        assert_eq!(
            policy.confirmed(node(0), ShardId(0), &[wiped]).received,
            [0]
        );
    }

    fn end(shard: u16, epoch: u32, seq: u64) -> ShardEnd {
        let position = Position {
            epoch: Epoch(epoch),
            seq,
        };
        ShardEnd {
            position,
            ..ShardEnd::empty(ShardId(shard))
        }
    }

    #[test]
    fn the_longest_log_is_chosen_by_epoch_and_then_by_sequence() {
        let promises = [
            Promised {
                node: node(1),
                ends: vec![end(0, 1, 100), end(1, 2, 9)],
            },
            Promised {
                node: node(2),
                ends: vec![end(0, 2, 50), end(1, 2, 9)],
            },
        ];
        let chosen = longest(node(1), &promises, 2).unwrap();
        assert_eq!(
            chosen[0],
            (node(2), end(0, 2, 50)),
            "a later epoch beats a longer log"
        );
        assert_eq!(
            chosen[1],
            (node(1), end(1, 2, 9)),
            "no fetch where the own log is as long"
        );
        assert!(longest(node(1), &promises[..1], 2).is_err());
    }

    #[test]
    fn of_two_claims_to_one_epoch_all_shards_take_the_same() {
        let claimed = |shard, seq, leader| ShardEnd {
            leader: LeaderId([leader; 16]),
            ..end(shard, 1_003, seq)
        };
        let promises = [
            Promised {
                node: node(1),
                ends: vec![claimed(0, 72, 1), claimed(1, 29, 1)],
            },
            Promised {
                node: node(2),
                ends: vec![claimed(0, 56, 2), claimed(1, 30, 2)],
            },
        ];
        for own in [node(1), node(2)] {
            let chosen = longest(own, &promises, 2).unwrap();
            assert_eq!(
                chosen,
                [(node(2), claimed(0, 56, 2)), (node(2), claimed(1, 30, 2))]
            );
        }
    }

    /// Every node has promised one epoch number to the first or to the second of two candidates.
    #[test]
    fn of_two_winners_of_one_epoch_one_confirms_nothing() {
        let mut both_count = 0;
        for m in 2..=6usize {
            for n in 1..m {
                for promised in 0u32..1 << m {
                    let first = promised.count_ones() as usize;
                    let second = m - first;
                    let both = first.min(second) >= promises_needed(m, n);
                    both_count += usize::from(both);
                    let confirms = |promises: usize| promises > n;
                    assert!(!both || !confirms(first) && !confirms(second), "{m} {n}");
                    assert!(
                        !both || promises_needed(m, n) <= m / 2,
                        "a majority wins alone"
                    );
                }
            }
        }
        assert!(both_count > 0, "it happens");
    }

    /// P7, for every list of up to six nodes: whichever nodes have a confirmed record and whichever
    /// promise, one node is in both.
    #[test]
    fn promises_always_reach_a_node_that_has_the_record() {
        for m in 1..=6usize {
            for n in 0..m {
                let sets = || 0u32..1 << m;
                for has in sets().filter(|has| has.count_ones() as usize > n) {
                    let enough = |asked: &u32| asked.count_ones() as usize >= promises_needed(m, n);
                    assert!(
                        sets().filter(enough).all(|asked| has & asked != 0),
                        "{m} {n} {has:b}"
                    );
                }
            }
        }
    }
}
