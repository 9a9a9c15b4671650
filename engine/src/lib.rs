//! Strandline: an embedded, log-structured key-value engine with built-in replication.
//!
//! A database is a directory, opened by one call and written by one process at a time. It holds
//! *datasets*, the units of isolation and replication; a dataset holds *keyspaces*, ordered maps of
//! byte strings. A write batch is atomic across the keyspaces of its dataset, a snapshot sees all of
//! them at one moment, and every acknowledged write is on the disk unless you ask for less.
//!
//! ```
//! use strandline::{Database, Result};
//!
//! fn main() -> Result<()> {
//!     let dir = tempfile::tempdir().expect("a temporary directory");
//!     let db = Database::open(dir.path())?;
//!     let users = db.keyspace("users")?;
//!     users.put("ada", "1815")?;
//!
//!     let mut batch = db.dataset("primary")?.batch();
//!     batch.put(&users, "grace", "1906")?.delete(&users, "ada")?;
//!     batch.commit()?;
//!
//!     assert_eq!(users.get("grace")?.as_deref(), Some(&b"1906"[..]));
//!     for entry in users.prefix("gr") {
//!         let (key, year) = entry?;
//!         println!("{} {}", String::from_utf8_lossy(&key), String::from_utf8_lossy(&year));
//!     }
//!     Ok(())
//! }
//! ```
//!
//! The log is the database: a value is written once, into a segment of the log; memtables and tables
//! point to it, and followers receive those bytes as they are. `ARCHITECTURE.md` beside this crate
//! tells how the parts hold together; [`options`] lists every setting with its reason.

pub mod archive;
mod checkpoint;
pub mod config;
mod database;
mod dataset;
pub mod error;
pub mod event;
pub mod files;
pub mod iter;
mod keyspace;
pub mod manifest;
pub mod metrics;
mod node;
pub mod options;
pub mod repair;
pub mod replica;
pub mod retention;
pub mod router;
mod runtime;
pub mod salvage;
mod scrub;
mod snapshot;
pub mod stats;
mod store;
pub mod table;
mod ticket;
mod token;
pub mod verify;

pub use checkpoint::CheckpointReport;
pub use config::{NodeConfig, NodeRole};
pub use database::Database;
pub use dataset::{Dataset, WriteBatch};
pub use error::{Error, ErrorKind, Result};
pub use iter::{Cursor, Iter};
pub use keyspace::Keyspace;
pub use options::{AckPolicy, Background, Durability, Options};
pub use router::{EntityRule, ShardRange, ShardRouter};
pub use snapshot::Snapshot;
pub use store::catalog::keyspace_created;
pub use store::{RecoveryReport, Role, Value};
pub use strandline_wal::{DatasetId, EntityId, Hlc, Position, RegionId, ShardId};
pub use ticket::{Acked, CommitTicket};
pub use token::{Arrival, Arrived, TOKEN_LEN, WriteToken};
