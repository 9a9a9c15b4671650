//! Manifests that come back, and damage to them and to either slot.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};

use super::*;
use crate::files;

fn sample() -> Manifest {
    let router = ShardRouter::hash(2).expect("two shards");
    let dataset = DatasetId::new("logs").expect("a legal name");
    let rule = EntityRule::PrefixHash(b'/');
    let mut manifest = Manifest::new(dataset, RegionId(3), [7; 16], router, rule);
    manifest.logs[1] = FlushedLog {
        position: Position {
            epoch: Epoch(2),
            seq: 99,
        },
        chain: 0x1234,
        complete_seq: 101,
    };
    manifest.complete_timestamp = Hlc(5);
    manifest.complete_ordinal = 65_535;
    manifest.next_file = 9;
    let entry = |epoch, first_seq| EpochEntry {
        epoch: Epoch(epoch),
        leader: [3; 16],
        first_seq,
    };
    manifest.epochs[0] = vec![entry(1, 1), entry(4, 50)];
    manifest.next_keyspace = 3;
    manifest.keyspaces = vec![(1, "users".to_owned()), (2, String::new())];
    let table = |number, name_min: &[u8], name_max: &[u8]| TableMeta {
        identity: Identity {
            number,
            lineage: [7; 16],
        },
        len: 4096,
        digest: [1; 32],
        name_min: name_min.to_vec(),
        name_max: name_max.to_vec(),
        entry_count: 3,
        tombstone_count: 1,
        name_count: 2,
        version_min: Hlc(1),
        version_max: Hlc(4),
        names_len: 10,
        values_len: 20,
        files: vec![PointerFile {
            source: PointerSource::Segment,
            shard: ShardId(1),
            file: 42,
            live_len: 8192,
            live_count: 2,
        }],
    };
    manifest.runs = vec![
        vec![table(8, b"a", b"z")],
        vec![table(3, b"a", b"k"), table(4, b"l", b"z")],
    ];
    manifest
}

#[test]
fn a_manifest_comes_back() {
    let path = Path::new("manifest");
    let manifest = sample();
    assert_eq!(
        Manifest::decode(&manifest.encode(), path).unwrap(),
        manifest
    );
}

#[test]
fn epochs_that_do_not_rise_are_no_history() {
    let mut manifest = sample();
    manifest.epochs[0].reverse();
    let error = Manifest::decode(&manifest.encode(), Path::new("manifest")).unwrap_err();
    assert!(error.to_string().contains("epochs"), "{error}");
}

#[test]
fn every_flip_and_every_cut_is_named() {
    let path = Path::new("some/manifest");
    let bytes = sample().encode();
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        let error = Manifest::decode(&bad, path).unwrap_err();
        assert!(error.to_string().contains("some/manifest"), "{error}");
        assert!(Manifest::decode(&bytes[..at], path).is_err());
    }
}

#[test]
fn an_unknown_section_is_skipped_unless_it_must_be_known() {
    let with = |kind: u32| {
        let mut bytes = sample().encode();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&3u32.to_le_bytes());
        bytes.extend_from_slice(b"new");
        let len = (bytes.len() - HEADER_LEN) as u64;
        bytes[16..24].copy_from_slice(&len.to_le_bytes());
        let digest = *blake3::hash(&bytes[HEADER_LEN..]).as_bytes();
        bytes[24..56].copy_from_slice(&digest);
        let crc = crc32fast::hash(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        Manifest::decode(&bytes, Path::new("m"))
    };
    assert_eq!(with(77).unwrap(), sample());
    assert!(matches!(with(77 | MUST), Err(Error::Unsupported { .. })));
}

#[test]
fn one_intact_slot_is_enough_and_the_newer_one_wins() {
    let path = Path::new("/d/manifest");
    let env = SimEnv::new(1);
    env.disk.create_dir_all(Path::new("/d")).unwrap();
    assert!(Slots::load(&env.disk, path).unwrap().is_none());
    let first = sample();
    first.store(&env.disk, path).unwrap();
    let slots = Slots::load(&env.disk, path).unwrap().unwrap();
    assert!(slots.other.is_none() && slots.manifest == first);
    let slot_paths = [path.to_owned(), files::manifest_copy(path)];
    let bytes = first.encode();
    let write = |slot: &Path, bytes: &[u8]| {
        let _ = env.disk.remove(slot);
        let file = env.disk.create(slot).unwrap();
        file.write_at(bytes, 0).unwrap();
    };
    for (n, slot) in slot_paths.iter().enumerate() {
        // One is damaged.
        let mut bad = bytes.clone();
        bad[100] ^= 1;
        write(slot, &bad);
        let slots = Slots::load(&env.disk, path).unwrap().unwrap();
        assert_eq!(slots.manifest, first);
        let told = slots.other.unwrap().to_string();
        assert!(told.contains(&slot.display().to_string()), "{told}");
        assert!(!slots.is_behind);
        // One is newer, by one generation and by more.
        for (ahead, is_behind) in [(1, true), (2, false)] {
            let mut newer = first.clone();
            newer.generation += ahead;
            write(slot, &newer.encode());
            let slots = Slots::load(&env.disk, path).unwrap().unwrap();
            assert_eq!(slots.manifest, newer);
            assert_eq!(slots.is_behind, is_behind);
            let told = slots.other.unwrap().to_string();
            assert!(
                told.contains(&slot_paths[1 - n].display().to_string()),
                "{told}"
            );
        }
        // One is missing.
        env.disk.remove(slot).unwrap();
        let slots = Slots::load(&env.disk, path).unwrap().unwrap();
        assert!(slots.manifest == first && slots.other.is_some());
        write(slot, &bytes);
    }
    // Both are damaged: it is never taken for absent.
    for slot in &slot_paths {
        let file = env.disk.open(slot, Access::Write).unwrap();
        file.write_at(b"?", 0).unwrap();
    }
    assert!(matches!(
        Slots::load(&env.disk, path),
        Err(Error::Corrupt { .. })
    ));
}
