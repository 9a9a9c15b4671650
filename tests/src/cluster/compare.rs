//! What must hold once a cluster has healed: one state, the same bytes, nothing lost in silence.

use std::collections::BTreeMap;
use std::path::Path;

use strandline::Role;
use strandline::manifest::Manifest;
use strandline_wal::recover::{Known, Plan, plan};
use strandline_wal::{LogId, ShardId};

use super::{Cluster, NODE_COUNT};

impl Cluster {
    pub(super) fn compare(&mut self) {
        let leader = self.leader.expect("a healed cluster has a leader");
        let state = self.digest(leader);
        for n in 0..NODE_COUNT {
            assert_eq!(
                self.digest(n),
                state,
                "seed {}: node {n} has another state",
                self.seed
            );
            self.same_bytes(leader, n);
        }
        let up = self.machines[leader].up.as_ref().expect("all are up");
        let saved = self.saved_tails();
        self.counters.counts.entry("tails cut").or_default();
        if !saved.is_empty() {
            *self.counters.counts.entry("tails cut").or_default() += 1;
        }
        if self.writes.is_empty() {
            return;
        }
        let map = up.db.keyspace("map").expect("it was written to");
        for write in &self.writes {
            let found = map.get(&write.key).expect("it is readable");
            if found.as_deref() == Some(&write.value[..]) {
                continue;
            }
            assert!(
                found.is_none(),
                "seed {}: key {:?} has another value",
                self.seed,
                write.key
            );
            if write.is_lost {
                continue;
            }
            let is_saved = saved.iter().any(|bytes| contains(bytes, &write.value));
            if write.on_follower {
                // Only force may lose it, and then it lies in what a deposed node saved.
                assert!(
                    !self.forced_epochs.is_empty() && is_saved,
                    "seed {}: {:?} of epoch {} was acknowledged on a follower and is lost",
                    self.seed,
                    write.key,
                    write.epoch
                );
            } else {
                assert!(
                    is_saved,
                    "seed {}: {:?} of epoch {} was acknowledged by its leader, is gone, and was not saved",
                    self.seed, write.key, write.epoch
                );
            }
        }
    }

    /// A digest of everything that a reader sees.
    pub(super) fn digest(&self, n: usize) -> String {
        let up = self.machines[n].up.as_ref().expect("all are up");
        let mut text = Vec::new();
        for keyspace in up.dataset().keyspaces() {
            text.extend_from_slice(keyspace.name().as_bytes());
            for entry in keyspace.iter() {
                let (key, value) = entry.expect("it is readable");
                text.extend_from_slice(&key);
                text.extend_from_slice(&value);
            }
        }
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(&text))
    }

    /// Segments that two nodes both have are the same bytes.
    fn same_bytes(&self, a: usize, b: usize) {
        let segments = |n: usize| {
            let machine = &self.machines[n];
            let dataset = machine.up.as_ref().expect("all are up").dataset();
            // A leader's last batches may still be on their way to the disk.
            if dataset.role() == Role::Leader {
                dataset.sync().expect("a sync");
            }
            let files = machine.env.disk.files();
            let mut found = BTreeMap::new();
            for shard in 0..self.shards {
                for segment in self.plan(n, shard).segments {
                    let bytes = files[&segment.path][..segment.data_len as usize].to_vec();
                    found.insert(segment.path, bytes);
                }
            }
            found
        };
        let (ours, theirs) = (segments(a), segments(b));
        for (path, bytes) in &ours {
            let Some(other) = theirs.get(path) else {
                continue;
            };
            let len = bytes.len().min(other.len());
            let same = bytes[..len] == other[..len];
            assert!(
                same,
                "seed {}: {} differs between {a} and {b}",
                self.seed,
                path.display()
            );
        }
    }

    /// What recovery would find of a node's log.
    fn plan(&self, n: usize, shard: u16) -> Plan {
        let disk = &self.machines[n].env.disk;
        let manifest = Manifest::load(disk, Path::new("/db/primary/manifest"));
        let manifest = manifest.expect("it is readable").expect("it is there");
        let known = Known {
            log: LogId {
                shard: ShardId(shard),
                ..LogId::default()
            },
            lineage: None,
            durable_seq: 0,
            flushed_seq: manifest.logs[usize::from(shard)].position.seq,
            led: &|_| false,
            fork_seq: None,
        };
        let sealed = plan(disk, Path::new("/db/primary/r00000"), &known);
        sealed.unwrap_or_else(|error| panic!("seed {}: node {n}: {error}", self.seed))
    }

    /// The bytes of every tail that any node saved.
    fn saved_tails(&self) -> Vec<Vec<u8>> {
        let files = self
            .machines
            .iter()
            .flat_map(|machine| machine.env.disk.files());
        files
            .filter(|(path, _)| path.components().any(|c| c.as_os_str() == "divergent"))
            .map(|(_, bytes)| bytes)
            .collect()
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    // The first 8 bytes of a value are its key: unique, so they find the place.
    bytes
        .windows(part.len().min(24))
        .any(|window| *window == part[..part.len().min(24)])
}
