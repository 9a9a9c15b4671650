//! The log of Strandline: segmented, batch-headered files that are the database, and the disk
//! that they are written to.
//!
//! Read it in this order:
//!
//! | To learn | read |
//! |----------|------|
//! | what may go wrong with a disk, and what may not | [`io`] |
//! | the bytes of a batch and of its records | [`batch`] |
//! | the bytes of a file: header, footer, names | [`segment`] |
//! | how a batch gets into the log | [`writer`], [`publish`], [`group`] |
//! | how it comes out again | [`log`], [`reader`] |
//! | what happens after a crash | [`recover`] plans, [`mod@open`] acts |
//! | where files come from and go to, what is kept for a full disk | [`pool`], [`reserve`] |
//!
//! The crate knows no keys, values, keyspaces or peers: a record is a head and a body. Every byte
//! goes through [`io::Env`], so that one seed can replay everything.

pub mod batch;
#[doc(hidden)]
pub mod bug;
mod bytes;
pub mod control;
pub mod error;
pub mod group;
pub mod ids;
pub mod io;
pub mod log;
pub mod marks;
#[cfg(all(test, loom))]
mod models;
pub mod open;
pub mod pool;
pub mod publish;
pub mod reader;
pub mod recover;
pub mod repair;
pub mod reserve;
pub mod segment;
pub mod slots;
mod sync;
pub mod writer;

pub use error::{Error, IoContext, Result};
pub use ids::{
    DatasetId, EntityId, Epoch, Hlc, LogId, ParseIdError, Position, RegionId, ShardId, WalSegmentId,
};
