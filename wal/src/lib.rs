//! The log of Strandline: segmented, batch-headered files that are the database, and the disk
//! that they are written to.

pub mod error;
pub mod ids;
pub mod io;

pub use error::{Error, IoContext, Result};
pub use ids::{
    DatasetId, EntityId, Epoch, Hlc, LogId, ParseIdError, Position, RegionId, ShardId, WalSegmentId,
};
