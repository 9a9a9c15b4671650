//! Joins datasets to replication: serving, following, promotion, and what can be seen of it.
//!
//! | Part | File |
//! |------|------|
//! | a dataset as the driver sees it | `joint` |
//! | a node: datasets on one driver, acting on its reports | `node` |
//! | datasets whose leader a coordinator names | `failover`, `node/elected` |
//! | the thread that steps it over TCP | `hub` |
//! | how its connections are made | `links` |
//! | files for a follower that the log no longer reaches | `bundle` |
//! | writers that wait for followers | `acks` |
//! | reports as events for operators | `events` |

mod acks;
pub(crate) mod bundle;
mod events;
mod failover;
mod hub;
mod joint;
mod links;
mod node;

use std::net::SocketAddr;

use strandline_wal::{DatasetId, Position};

pub(crate) use acks::Acks;
#[cfg(test)]
pub(crate) use acks::ShardAcks;
pub use failover::{ClusterMember, Coordination, Desk, Failover, FailoverStatus};
pub(crate) use hub::Hub;
pub use links::Links;
#[cfg(feature = "tls")]
pub use links::{Pem, Pin, TlsConfig, key_pin};
pub use node::{Campaign, Node};
pub use strandline_replication::coordinator;

use crate::database::Database;
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::store::Role;

/// How to take over a dataset.
#[derive(Clone, Debug, Default)]
pub struct Promote {
    /// Addresses of the other nodes of the list.
    pub peers: Vec<String>,
    /// Nodes on the list, this one included.
    pub node_count: usize,
    /// Followers that an acknowledged write waited for: promises are needed from
    /// `node_count - follower_count` nodes, this one included.
    pub follower_count: usize,
    /// Ask nobody: what only others hold is lost.
    pub force: bool,
}

/// A promotion that succeeded.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Promotion {
    /// The epoch that this node leads now.
    pub epoch: u32,
    /// Per shard, where the log ends.
    pub positions: Vec<Position>,
    /// What may be lost by a forced promotion.
    pub may_be_lost: Option<String>,
}

/// How a follower stands, as its leader sees it. Lags are in records.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct FollowerStatus {
    /// Its address.
    pub name: String,
    /// Who it is.
    pub node: [u8; 16],
    /// Whether it is connected.
    pub connected: bool,
    /// Per shard, the last sequence in its log.
    pub received: Vec<u64>,
    /// Per shard, the last sequence on its disk.
    pub durable: Vec<u64>,
    /// Per shard, the last sequence that its readers see.
    pub applied: Vec<u64>,
    /// Records written here that it does not have.
    pub transport_lag: u64,
    /// Records that it has and does not show.
    pub apply_lag: u64,
    /// Age of what its readers see, in milliseconds; 0 where they see everything.
    pub lag_ms: u64,
}

/// How a follower stands, as it sees itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FollowStatus {
    /// Whom it follows.
    pub leader: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Per shard, where the log ends.
    pub positions: Vec<Position>,
    /// Records that it has and does not show.
    pub apply_lag: u64,
    /// Why the last connection ended, or why it follows no more.
    pub last_error: Option<String>,
    /// What was cut because it forked, and where it was saved.
    pub last_cut: Option<String>,
    /// Whether it may lack what its leader had when it came: it neither votes nor leads until then.
    pub joins: bool,
    /// Bundles that replaced its data.
    pub bundle_count: u64,
}

/// How a running node stands, asked over the network.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RemoteStatus {
    /// Its role: `leader`, `follower` or `candidate`.
    pub role: String,
    /// The epoch that it leads or follows.
    pub epoch: u32,
    /// The address of the leader that it knows.
    pub leader: String,
    /// Per shard, where its log ends.
    pub positions: Vec<Position>,
    /// Per shard, the last sequence on its disk.
    pub durable: Vec<u64>,
    /// Per shard, the last sequence that its readers see.
    pub applied: Vec<u64>,
}

/// Serves a database's datasets until it is stopped or dropped.
pub struct Server {
    database: Database,
    address: SocketAddr,
}

impl Server {
    /// The address that other nodes connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Why connections were refused before they belonged to a dataset: lines for people, those since the
    /// last call. An address has one a minute.
    pub fn refusals(&self) -> Vec<String> {
        self.database.hub().map_or(Vec::new(), |hub| hub.refusals())
    }

    /// Ends serving and following; connections are closed.
    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        self.database.stop_hub();
    }
}

/// Follows a leader until it is stopped, dropped or promoted.
pub struct Following {
    dataset: Dataset,
}

impl Following {
    /// How it stands.
    pub fn status(&self) -> FollowStatus {
        self.dataset.follow_status().unwrap_or_default()
    }

    /// Ends following; the dataset stays a follower, with what it has.
    pub fn stop(self) {}
}

impl Drop for Following {
    fn drop(&mut self) {
        if self.dataset.role() == Role::Follower
            && let Some(hub) = self.dataset.database().hub()
        {
            hub.retire(&self.dataset);
        }
    }
}

impl Database {
    /// Serves the datasets that are open to followers and candidates: at any address where
    /// [`Options::links`](crate::Options::links) have a certificate, and at loopback where they have none.
    /// Port 0 lets the system choose.
    ///
    /// # Errors
    /// [`Error::Replication`] for an address beyond loopback without a certificate, for a certificate that
    /// is of no use, and where the address is taken;
    /// [`Error::Argument`] where this database serves already, or follows and so listens elsewhere.
    pub fn serve(&self, listen: &str) -> Result<Server> {
        let hub = self.start_hub(listen)?;
        if !hub.claim_serving() {
            return Err(Error::Argument {
                what: "serve",
                expected: "a database that does not serve yet".to_owned(),
                found: format!("one that serves at {}", hub.address()),
            });
        }
        for dataset in self.datasets() {
            match dataset.role() {
                Role::Leader => hub.lead(&dataset)?,
                Role::Follower => hub.follow(&dataset, &[])?,
                Role::Reader => {}
            }
        }
        Ok(Server {
            database: self.clone(),
            address: hub.address(),
        })
    }

    /// Makes a dataset a copy of the one that the node at `leader` has, and keeps following. The leader is
    /// `HOST:PORT`, `NODE@HOST:PORT` under TLS, or a name of [`Links::commands`]. Where
    /// this dataset has records that the leader does not, they are saved under `divergent/` and cut.
    ///
    /// # Errors
    /// The disk's. An absent leader is none: it is tried again, and [`FollowStatus`] tells.
    pub fn follow(&self, leader: &str, dataset: &str) -> Result<Following> {
        let hub = self.start_hub("127.0.0.1:0")?;
        let dataset = self.follower(dataset)?;
        hub.follow(&dataset, &[leader.to_owned()])?;
        Ok(Following { dataset })
    }
}

impl Dataset {
    /// Per shard, where the log ends.
    pub fn positions(&self) -> Vec<Position> {
        self.inner().store().positions()
    }

    /// Takes over: gathers promises, fetches what others have and this node lacks, and starts an
    /// epoch. The database must serve or follow.
    ///
    /// # Errors
    /// [`Error::Replication`] where too few nodes promise; the disk's.
    pub fn promote(&self, how: &Promote) -> Result<Promotion> {
        let hub = match self.database().hub() {
            Some(hub) => hub,
            None => self.database().start_hub("127.0.0.1:0")?,
        };
        hub.promote(self, how)
    }

    /// Per shard, the last sequence that enough followers confirm at a level: what a write at that
    /// level waits for. For callers that do not want to wait.
    pub fn confirmed(&self, level: crate::Durability) -> Vec<u64> {
        self.inner().acks.confirmed(level)
    }

    /// The followers that were seen since this node leads.
    pub fn followers(&self) -> Vec<FollowerStatus> {
        let id = self.inner().store().id().clone();
        self.database()
            .hub()
            .map(|hub| hub.followers(&id))
            .unwrap_or_default()
    }

    /// How this dataset follows; `None` where it does not.
    pub fn follow_status(&self) -> Option<FollowStatus> {
        let hub = self.database().hub()?;
        (self.role() == Role::Follower).then(|| hub.follow_status(self))
    }
}

/// Asks a running node how a dataset of its stands.
///
/// # Errors
/// [`Error::Replication`] where nobody answers within five seconds.
pub fn remote_status(address: &str, dataset: &str) -> Result<RemoteStatus> {
    remote_status_by(address, dataset, &Links::default())
}

/// As [`remote_status`], over connections of one's own choice.
///
/// # Errors
/// Those of [`remote_status`].
pub fn remote_status_by(address: &str, dataset: &str, links: &Links) -> Result<RemoteStatus> {
    let id = DatasetId::new(dataset).map_err(|error| Error::Argument {
        what: "dataset name",
        expected: error.expected.to_owned(),
        found: error.found,
    })?;
    hub::ask_status(address, id, links)
}
