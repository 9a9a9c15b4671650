//! Replication of Strandline's logs: stored bytes travel as they are, from the node that leads a
//! dataset to those that follow it.
//!
//! Read it in this order:
//!
//! | To learn | read |
//! |----------|------|
//! | the protocol on one page | `PROTOCOL.md` beside the crate |
//! | what a store must offer | [`store`], [`bundle`] |
//! | the bytes on the wire | [`message`] |
//! | where two logs part, who may lead | [`epoch`], `quorum` |
//! | who is in sync, by the coordinator's record | [`coordinator`], [`membership`] |
//! | the archive in an object store, and what a restore takes of it | [`archive`] |
//! | what went wrong and who must act | [`error`] |
//!
//! The crate sees the format of the log and nothing else: payloads are opaque. The state machines
//! hold no file, socket, thread, lock, clock or randomness; the driver is the only loop.

#![forbid(unsafe_code)]

pub mod archive;
mod assemble;
pub mod bundle;
pub mod candidate;
pub mod coordinator;
pub mod credit;
pub mod driver;
pub mod epoch;
pub mod error;
pub mod failover;
pub mod follower;
pub mod ids;
pub mod lag;
pub mod leader;
pub mod locate;
pub mod membership;
pub mod message;
mod notify;
mod progress;
pub mod quorum;
pub mod slot;
pub mod state;
pub mod store;
mod sync;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod voter;

pub use driver::{Command, Driver, DriverHandle, Now};
pub use error::{Error, Reason, Result};
pub use ids::{
    BundleId, Identity, Incarnation, LeaderId, Leadership, Lineage, NodeId, Promise, ShardEnd,
};
pub use notify::Notifier;
pub use store::{
    CommitMark, Confirmed, Floor, FollowerStore, LeaderStore, LogSource, Marks, Report, Times,
};
