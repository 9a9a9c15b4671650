//! Every setting of a database, each with its unit, default, range and reason.

use std::time::Duration;

use strandline_replication::slot::IDLE_MS_MAX;
use strandline_wal::DatasetId;

use crate::config::NodeConfig;
use crate::error::{Error, Result};
use crate::replica::Links;
use crate::router::{EntityRule, ShardRouter};

/// Longest key, in bytes.
pub const KEY_LEN_MAX: usize = 65_535;
/// Longest value, in bytes.
pub const VALUE_LEN_MAX: usize = 64 << 20;
/// Longest keyspace name, in bytes.
pub const KEYSPACE_NAME_LEN_MAX: usize = 255;

/// What a write has survived when its call returns. Each level includes the ones before it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Durability {
    /// Nothing: it is visible in this process. Only an in-memory database has this level; others
    /// treat it as [`Durability::Os`].
    Memory,
    /// The death of the process.
    Os,
    /// The death of the machine: synced to the disk.
    #[default]
    Disk,
    /// `Disk`, and every one of at least n followers has received it.
    Received(u8),
    /// `Disk`, and at least n followers have synced it.
    Durable(u8),
    /// `Disk`, and at least n followers show it to readers.
    Applied(u8),
}

impl Durability {
    /// The part of the level that concerns this node alone.
    pub(crate) fn local(self) -> Durability {
        match self {
            Durability::Memory | Durability::Os => Durability::Os,
            _ => Durability::Disk,
        }
    }

    /// The number of followers that it needs; 0 where it is local.
    pub fn follower_count(self) -> u8 {
        match self {
            Durability::Received(n) | Durability::Durable(n) | Durability::Applied(n) => n,
            Durability::Memory | Durability::Os | Durability::Disk => 0,
        }
    }
}

/// What becomes of a write that too few followers confirmed in time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AckPolicy {
    /// It is not acknowledged: [`Error::Unacknowledged`], durable here, its copies unknown.
    #[default]
    Refuse,
    /// It is acknowledged as [`Durability::Disk`] and counted:
    /// [`crate::stats::DatasetStats::degraded_acks`].
    Degrade,
}

/// Who does background work: flushes, compaction, pre-zeroed files.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Background {
    /// One thread of the database's own.
    #[default]
    Thread,
    /// Whoever calls [`crate::Database::run_background`], and writers that cannot go on without.
    /// One thread then replays everything from a seed.
    Manual,
}

/// The settings of a database. Start from [`Options::default`] and change what you must.
#[derive(Clone, Debug)]
pub struct Options {
    /// Level of writes that do not name one. Default `Disk`: an acknowledged write is synced.
    pub durability: Durability,
    /// How entities are spread over shards; fixed at creation. Default one shard: more pay off with
    /// several busy writers.
    pub router: ShardRouter,
    /// Which entity a key belongs to; fixed at creation. Default: the hash of the whole key.
    pub entity_rule: EntityRule,
    /// Bytes of log that a memtable may cover before it is flushed. Default 64 MiB; 64 KiB to 4 GiB.
    /// Recovery reads up to this much per memtable; larger ones write less.
    pub memtable_len_max: u64,
    /// Sealed memtables that may wait for their flush before writers wait too. Default 2; 1 to 16.
    pub memtable_count_max: usize,
    /// Capacity of a log's first segment, in bytes. Default 1 MiB; 64 KiB to 1 GiB. Grows with load.
    pub segment_len_start: u64,
    /// Capacity that busy segments double up to, in bytes. Default 64 MiB; 64 KiB to 1 GiB.
    pub segment_len_max: u64,
    /// Values of at least this many bytes stay in their log segment. Default 4 KiB; 64 to 64 MiB.
    /// Smaller ones are cheaper to move than to look up elsewhere.
    pub large_value_len_min: usize,
    /// Most bytes at which a compaction starts a new table. Default 64 MiB; 64 KiB to 2 GiB. Where all
    /// tables have less than 32 times as much, it starts one at a 32nd of them, or at 1 MiB.
    pub table_len_max: u64,
    /// Sorted runs above the bottom one before they are merged. Default 4; 1 to 16. More write less
    /// and read more.
    pub run_count_max: usize,
    /// How long nothing must have been written before everything becomes one run, which is read and counted
    /// best and takes the least space. Default 200 ms; any, `None` for never. It happens once after a write
    /// or an open, where what is new is at least a 16th of the rest; below 64 MiB in all, less than that is
    /// merged after an accordingly longer pause. A leader that others can follow waits until its followers
    /// have everything, and one that none has reached yet does not do it. Nor does one without room for a
    /// second copy of what is new and of a 32nd of the rest. What was held for writes to come is given back:
    /// spare segments, and all but the start of the log.
    pub settle_after: Option<Duration>,
    /// Memory for table blocks where files are not mapped, in bytes. Default 64 MiB; any.
    pub cache_len_max: u64,
    /// Disk space kept aside, in bytes, so that a full disk takes removals and compaction can free it;
    /// everything else is refused until it is back. Default 64 MiB; any, 0 for none. It begins with
    /// 4 MiB and grows with what flushes write.
    pub reserve_len_max: u64,
    /// Bytes per second that a thread reads of what is stored, over and over, to find damage before it is
    /// asked for. Default 0: none. See [`crate::Dataset::damage`].
    pub scrub_rate: u64,
    /// Addresses of nodes that may lead the datasets here. Damage that an open meets, and damage of a
    /// follower that a scrub finds, is mended by itself by what the leader has. Default none: an open is
    /// refused, and a scrub tells.
    pub heal_from: Vec<String>,
    /// Log kept for a follower, here or away, in bytes. Default `None`: 10 GiB, or a quarter of the free
    /// disk where that is less; any. A follower that falls behind further gets a checkpoint. Whatever it
    /// is, a disk that runs full is not filled with it: see [`crate::Dataset::slots`].
    pub slot_bytes_max: Option<u64>,
    /// How long log is kept for a follower that is away, in milliseconds. Default 7 days; 1 minute to 10
    /// years. Long enough for a weekend and a repair, and not for ever.
    pub slot_idle_max_ms: u64,
    /// How long a write waits for followers, in milliseconds. Default 10 000; 1 to 3 600 000.
    pub ack_timeout_ms: u64,
    /// What becomes of a write that too few followers confirmed in that time. Default: it is refused.
    pub ack_policy: AckPolicy,
    /// How connections to other nodes are made. Default: plain TCP, over loopback and nowhere else.
    pub links: Links,
    /// Who does background work. Default: a thread.
    pub background: Background,
    /// Datasets that are opened as followers, whatever they were before: so a leader that was deposed comes
    /// back without another epoch of its own. Default none.
    pub followed: Vec<DatasetId>,
    /// What this node is. Default: a single node, shard 0, region 0.
    pub node: NodeConfig,
    /// Whether a missing database is created. Default true.
    pub create: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            durability: Durability::Disk,
            router: ShardRouter::Single,
            entity_rule: EntityRule::KeyHash,
            memtable_len_max: 64 << 20,
            memtable_count_max: 2,
            segment_len_start: 1 << 20,
            segment_len_max: 64 << 20,
            large_value_len_min: 4 << 10,
            table_len_max: 64 << 20,
            run_count_max: 4,
            settle_after: Some(Duration::from_millis(200)),
            cache_len_max: 64 << 20,
            reserve_len_max: 64 << 20,
            scrub_rate: 0,
            heal_from: Vec::new(),
            slot_bytes_max: None,
            slot_idle_max_ms: IDLE_MS_MAX,
            ack_timeout_ms: 10_000,
            links: Links::default(),
            ack_policy: AckPolicy::Refuse,
            background: Background::Thread,
            followed: Vec::new(),
            node: NodeConfig::default(),
            create: true,
        }
    }
}

impl Options {
    /// Checks every range.
    ///
    /// # Errors
    /// Names the first setting that is out of its range.
    pub fn check(&self) -> Result<()> {
        const KIB: u64 = 1 << 10;
        const GIB: u64 = 1 << 30;
        let ranges: [(&'static str, u64, u64, u64); 10] = [
            ("memtable_len_max", self.memtable_len_max, 64 * KIB, 4 * GIB),
            ("memtable_count_max", self.memtable_count_max as u64, 1, 16),
            ("segment_len_start", self.segment_len_start, 64 * KIB, GIB),
            ("segment_len_max", self.segment_len_max, 64 * KIB, GIB),
            (
                "large_value_len_min",
                self.large_value_len_min as u64,
                64,
                64 << 20,
            ),
            ("table_len_max", self.table_len_max, 64 * KIB, 2 * GIB),
            ("run_count_max", self.run_count_max as u64, 1, 16),
            ("ack_timeout_ms", self.ack_timeout_ms, 1, 3_600_000),
            (
                "slot_idle_max_ms",
                self.slot_idle_max_ms,
                60_000,
                10 * 366 * 24 * 3_600_000,
            ),
            (
                "segment_len_start",
                self.segment_len_start,
                0,
                self.segment_len_max,
            ),
        ];
        match ranges
            .iter()
            .find(|(_, value, min, max)| !(min..=max).contains(&value))
        {
            None => self.node.check(),
            Some((what, value, min, max)) => Err(Error::Argument {
                what,
                expected: format!("from {min} to {max}"),
                found: value.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_in_range() {
        Options::default().check().unwrap();
    }

    #[test]
    fn a_setting_out_of_range_is_named() {
        let options = Options {
            memtable_len_max: 1,
            ..Options::default()
        };
        assert!(
            options
                .check()
                .unwrap_err()
                .to_string()
                .contains("memtable_len_max")
        );
        let options = Options {
            segment_len_max: 64 << 10,
            ..Options::default()
        };
        assert!(
            options
                .check()
                .unwrap_err()
                .to_string()
                .contains("segment_len_start")
        );
    }
}
