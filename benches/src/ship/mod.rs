//! Strandline and its peers as pairs of a leader and a follower.

pub mod ours;
pub mod postgres;
pub mod redis;
pub mod relay;
pub mod server;
pub mod system;
