//! One node of the model: what is on its disk, and its role.

use strandline_replication::epoch::{Answer, EpochEntry, EpochTable, end_of_log};
use strandline_replication::ids::{Incarnation, LeaderId, NodeId, Promise, ShardEnd};
use strandline_replication::membership::{Election, Membership};
use strandline_replication::message::AckEntry;
use strandline_replication::quorum::{Level, Member, Standing, since};
use strandline_wal::{Epoch, ShardId};

pub const SHARD: ShardId = ShardId(0);

/// One record: the epoch that wrote it, whose it was, and which write it is; 0 begins the epoch.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Entry {
    pub epoch: u8,
    pub by: u8,
    pub write: u8,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Node {
    pub id: u8,
    pub life: u8,
    pub promised: (u8, u8),
    pub log: Vec<Entry>,
    /// So much of the log survives a crash.
    pub synced: usize,
    pub role: Role,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    Idle,
    Following { leader: u8, epoch: u8 },
    Campaigning(Campaign),
    Leading(Lead),
}

/// What the coordinator owes a node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Owed {
    Nothing,
    Answer,
    Read,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Campaign {
    pub election: Election,
    pub epoch: u8,
    /// Who promised, and how long its log was then.
    pub promises: Vec<(u8, usize)>,
    pub owed: Owed,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Lead {
    pub membership: Membership,
    pub epoch: u8,
    /// Sequence of the first record of its epoch.
    pub start: usize,
    /// What each node confirmed on its present connection, and in which life.
    pub acks: [Option<(u8, usize)>; 3],
    /// The most that was ever confirmed.
    pub confirmed: usize,
    pub owed: Owed,
}

pub fn member(id: u8, life: u8) -> Member {
    (node_id(id), Incarnation([life + 1; 16]))
}

pub fn node_id(id: u8) -> NodeId {
    NodeId([id + 1; 16])
}

impl Node {
    pub fn member(&self) -> Member {
        member(self.id, self.life)
    }

    pub fn promise(&self) -> Promise {
        Promise {
            epoch: Epoch(self.promised.0.into()),
            to: node_id(self.promised.1),
        }
    }

    pub fn table(&self) -> EpochTable {
        let mut entries: Vec<EpochEntry> = Vec::new();
        for (n, entry) in self.log.iter().enumerate() {
            let epoch = Epoch(entry.epoch.into());
            let leader = LeaderId([(entry.by + 1) << 4 | entry.epoch; 16]);
            if entries.last().is_none_or(|last| last.epoch != epoch) {
                let first_seq = n as u64 + 1;
                entries.push(EpochEntry {
                    epoch,
                    leader,
                    first_seq,
                });
            }
        }
        EpochTable::of(entries).expect("epochs rise in every log")
    }

    pub fn end(&self) -> ShardEnd {
        end_of_log(SHARD, &self.table(), self.log.len() as u64, 0)
    }

    /// Becomes a prefix of `source`: both name where they may part until they agree. `None` where the
    /// source says that this cannot be.
    pub fn agree(&mut self, source: &Node) -> Option<()> {
        let (mine, theirs) = (self.table(), source.table());
        let (mine_end, theirs_end) = (self.log.len() as u64, source.log.len() as u64);
        let live = match &source.role {
            Role::Leading(_) => theirs.last().map(|entry| entry.leader),
            _ => None,
        };
        let mut ask = self.end();
        loop {
            let (told, leader) = match theirs.answer(&ask, theirs_end, live) {
                Answer::Same => break,
                Answer::Ends(told, leader) => (told, leader),
                Answer::Impossible => return None,
            };
            let (position, leader) = mine.fall_back(told, leader, mine_end);
            assert!(position.seq < ask.position.seq, "every round asks lower");
            ask = ShardEnd {
                position,
                leader,
                ..ask
            };
        }
        let agreed = usize::try_from(ask.position.seq).unwrap();
        let is_prefix = self.log[..agreed] == source.log[..agreed];
        self.log.truncate(agreed);
        self.synced = self.synced.min(agreed);
        is_prefix.then_some(())
    }

    pub fn promise_to(&mut self, epoch: u8, to: u8) {
        self.promised = (epoch, to);
        self.synced = self.log.len();
    }

    pub fn crash(&mut self) {
        self.log.truncate(self.synced);
        self.role = Role::Idle;
    }
}

impl Lead {
    /// What the set confirms to be on its disks, and on the leader's own.
    pub fn confirmed(&self, id: u8, synced: usize) -> usize {
        let standing = |(n, ack): (usize, &Option<(u8, usize)>)| {
            ack.map(|(life, durable)| {
                let durable = durable as u64;
                Standing {
                    member: member(n as u8, life),
                    ack: AckEntry {
                        shard: SHARD,
                        received: durable,
                        durable,
                        applied: durable,
                    },
                }
            })
        };
        let standings: Vec<_> = self.acks.iter().enumerate().filter_map(standing).collect();
        let standings = since(self.start as u64, synced as u64, &standings);
        let policy = self.membership.policy();
        let confirmed = policy.confirmed(node_id(id), SHARD, &standings);
        usize::try_from(confirmed.at(Level::Durable(1)))
            .unwrap()
            .min(synced)
    }
}
