//! What a database holds and has done, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::options::Durability;
use crate::store::{Role, Store};

/// Numbers of every open dataset.
#[derive(Clone, Debug)]
pub struct DatabaseStats {
    /// By dataset name.
    pub datasets: Vec<DatasetStats>,
    /// Repairs that the database did by itself.
    pub heal_count: u64,
}

/// Numbers of one dataset. Lengths are in bytes; counts are since it was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DatasetStats {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// The epoch it writes in; 0 where it does not.
    pub epoch: u32,
    /// Level of writes that do not name one.
    pub durability: Durability,
    /// Per shard, the last sequence in the log.
    pub last_seqs: Vec<u64>,
    /// Per shard, the last sequence known to survive a crash.
    pub synced_seqs: Vec<u64>,
    /// Keyspaces.
    pub keyspace_count: usize,
    /// Log segments and their bytes.
    pub segment_count: usize,
    /// Bytes of log files.
    pub segment_len: u64,
    /// Tables.
    pub table_count: usize,
    /// Bytes of tables.
    pub table_len: u64,
    /// Sorted runs that the tables make up.
    pub run_count: usize,
    /// Entries in tables, old versions and tombstones included.
    pub table_entry_count: u64,
    /// Memtables that wait for their flush.
    pub sealed_memtable_count: usize,
    /// Bytes of log that only memtables cover.
    pub unflushed_len: u64,
    /// Bytes of values that tables point to in segments.
    pub live_value_len: u64,
    /// Batches written.
    pub batch_count: u64,
    /// Records written.
    pub record_count: u64,
    /// Bytes of records written.
    pub payload_len: u64,
    /// Syncs of the logs.
    pub sync_count: u64,
    /// Writes that were acknowledged with too few followers, by [`crate::AckPolicy::Degrade`].
    pub degraded_acks: u64,
    /// Flushes.
    pub flush_count: u64,
    /// Compactions.
    pub compaction_count: u64,
    /// Pieces that compactions were done in.
    pub merge_piece_count: u64,
    /// Bytes written to tables.
    pub table_len_written: u64,
    /// Large values that were moved out of mostly dead segments.
    pub values_moved: u64,
    /// Segment files that were used again.
    pub segments_recycled: u64,
    /// Segment files that were removed.
    pub segments_removed: u64,
    /// Pieces of the leader's log that went to a file by a call of their own: this node was far behind.
    pub pieces_by_call: u64,
    /// Bytes that scrubs read.
    pub scrubbed_len: u64,
    /// Whole passes of scrubs.
    pub scrub_pass_count: u64,
    /// Damaged places that the last one found.
    pub damage_count: usize,
}

impl DatasetStats {
    pub(crate) fn of(store: &Store) -> DatasetStats {
        let view = store.view();
        let counters = store.counters();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tables = || {
            view.runs
                .iter()
                .flat_map(|run| &run.tables)
                .map(|table| table.meta())
        };
        let memtables = view.sealed.iter().map(|sealed| sealed.level.log_len());
        DatasetStats {
            name: store.id().to_string(),
            role: store.role(),
            epoch: store.epoch().0,
            durability: store.options().durability,
            last_seqs: store.logs().iter().map(|log| log.last_seq()).collect(),
            synced_seqs: store.logs().iter().map(|log| log.synced_seq()).collect(),
            keyspace_count: store.catalog().list().len(),
            segment_count: store.logs().iter().map(|log| log.segments().len()).sum(),
            segment_len: store.logs().iter().map(|log| log.file_len()).sum(),
            table_count: tables().count(),
            table_len: tables().map(|meta| meta.len).sum(),
            run_count: view.runs.len(),
            table_entry_count: tables().map(|meta| meta.entry_count).sum(),
            sealed_memtable_count: view.sealed.len(),
            unflushed_len: view.active.log_len() + memtables.sum::<u64>(),
            live_value_len: tables()
                .flat_map(|meta| &meta.files)
                .map(|file| file.live_len)
                .sum(),
            batch_count: get(&counters.batches),
            record_count: get(&counters.records),
            payload_len: get(&counters.payload_len),
            sync_count: get(&counters.syncs),
            degraded_acks: get(&counters.degraded_acks),
            flush_count: get(&counters.flushes),
            compaction_count: get(&counters.compactions),
            merge_piece_count: get(&counters.merge_pieces),
            table_len_written: get(&counters.table_len_written),
            values_moved: get(&counters.values_moved),
            segments_recycled: get(&counters.segments_recycled),
            segments_removed: get(&counters.segments_removed),
            pieces_by_call: get(&counters.pieces_by_call),
            scrubbed_len: get(&counters.scrubbed_len),
            scrub_pass_count: get(&counters.scrub_passes),
            damage_count: store.damage().lock().len(),
        }
    }
}
