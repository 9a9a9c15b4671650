//! Strandline beside its peers: the engines, the rows, and the report.

mod beside;
mod blocks;
pub mod child;
mod draw;
mod durable;
pub mod engine;
mod files;
mod fjall;
pub mod floor;
mod large;
pub mod limited;
mod lmdb;
mod load;
mod ours;
mod reads;
mod redb;
pub mod report;
#[cfg(feature = "peers-rocksdb")]
mod rocksdb;
pub mod rows;
mod shapes;
#[cfg(feature = "peers-surrealkv")]
mod surrealkv;
pub mod svg;
mod work;
mod ycsb;

use engine::Entrant;

/// Everything that was built in, ours first.
pub fn all() -> Vec<Entrant> {
    vec![
        ours::ENTRANT,
        fjall::ENTRANT,
        redb::ENTRANT,
        lmdb::ENTRANT,
        lmdb::WITH_WRITE_MAP,
        #[cfg(feature = "peers-rocksdb")]
        rocksdb::ENTRANT,
        #[cfg(feature = "peers-surrealkv")]
        surrealkv::ENTRANT,
    ]
}
