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

/// The bytes with lengths and checksums as if they had been written so.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = (bytes.len() - HEADER_LEN) as u64;
    bytes[16..24].copy_from_slice(&len.to_le_bytes());
    let digest = *blake3::hash(&bytes[HEADER_LEN..]).as_bytes();
    bytes[24..56].copy_from_slice(&digest);
    resealed_header(bytes)
}

fn resealed_header(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// Where the body of a section begins.
fn body_of(bytes: &[u8], wanted: u32) -> usize {
    let mut at = HEADER_LEN;
    loop {
        let field = |at: usize| u32::from_le_bytes(*bytes[at..].first_chunk().unwrap());
        if field(at) == wanted | MUST {
            return at + 8;
        }
        at += 8 + field(at + 4) as usize;
    }
}

/// The error of a manifest whose checksums are good.
fn refusal(bytes: Vec<u8>) -> String {
    let error = Manifest::decode(&bytes, Path::new("some/manifest")).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("some/manifest"), "{text}");
    text
}

/// A file with good checksums is not trusted either: each field that says what cannot be is named.
#[test]
fn crafted_manifests_are_refused_by_the_field_that_is_wrong() {
    let edited = |edit: &dyn Fn(&mut Manifest)| {
        let mut manifest = sample();
        edit(&mut manifest);
        refusal(manifest.encode())
    };
    let patched = |section: u32, at: usize, with: &[u8]| {
        let mut bytes = sample().encode();
        let at = body_of(&bytes, section) + at;
        bytes[at..at + with.len()].copy_from_slice(with);
        refusal(resealed(bytes))
    };
    let ranges = |shards: [u16; 2]| {
        let range = |first, last, shard| ShardRange {
            first,
            last,
            shard: ShardId(shard),
        };
        let ranges = vec![range(0, 9, shards[0]), range(10, u64::MAX, shards[1])];
        ShardRouter::ranges(ranges).expect("all entities once")
    };
    let with_ranges = |at: usize, with: &[u8]| {
        let mut manifest = sample();
        manifest.router = ranges([0, 1]);
        let mut bytes = manifest.encode();
        let at = body_of(&bytes, 2) + at;
        bytes[at..at + with.len()].copy_from_slice(with);
        refusal(resealed(bytes))
    };
    // The sample's sections: the name is 4 bytes long, the router is `hash(2)` without ranges.
    for (text, words) in [
        (patched(1, 4, b"\xff"), ["dataset name", "UTF-8"]),
        (patched(1, 4, b"L/.."), ["dataset name", "L/.."]),
        (
            patched(2, 0, &[9]),
            ["router version 1", "router version 9"],
        ),
        (patched(2, 4, &[3]), ["router kind", "found 3"]),
        (patched(2, 5, &[0, 0]), ["router", "shard count"]),
        (with_ranges(11, &[1]), ["router", "0 is next"]),
        (patched(2, 7, &[200]), ["count", "found 200"]),
        (patched(2, 11, &[7]), ["entity rule", "found 7"]),
        (patched(3, 4, &[1]), ["shard", "expected 0"]),
        (
            edited(&|m| m.generation = u64::MAX),
            ["manifest generation", "found 18446744073709551615"],
        ),
        (
            edited(&|m| m.logs[0].position.seq = u64::MAX),
            ["sequence of a log", "at most"],
        ),
        (
            edited(&|m| m.logs[1].complete_seq = u64::MAX),
            ["sequence of a log", "at most"],
        ),
        (patched(5, 8, &[3]), ["keyspace number", "below 3"]),
        (patched(5, 16, b"\xff"), ["keyspace name", "UTF-8"]),
        (patched(6, 8, &[0]), ["table number", "1 or more"]),
        (
            edited(&|m| m.runs[1].reverse()),
            ["tables that ascend", "table 3"],
        ),
        (
            edited(&|m| m.runs[0][0].name_min = b"zz".to_vec()),
            ["tables that ascend", "table 8"],
        ),
        (
            edited(&|m| m.logs.truncate(1)),
            ["manifest logs", "expected 2 logs"],
        ),
        (
            edited(&|m| m.epochs.truncate(1)),
            ["manifest logs", "expected 2 logs"],
        ),
    ] {
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }
    let mut unnamed = sample().encode();
    let at = body_of(&unnamed, 1);
    unnamed[at..at + 4].fill(0);
    unnamed.drain(at + 4..at + 8);
    unnamed[at - 4] -= 4;
    let text = refusal(resealed(unnamed));
    assert!(text.contains("dataset name: expected a name"), "{text}");
    let mut bytes = sample().encode();
    let table = bytes.len() - body_of(&bytes, 7) + 8;
    let source = bytes.len() - table - 27;
    bytes[source] = 2;
    let text = refusal(resealed(bytes));
    assert!(
        text.contains("pointer source: expected 0 or 1, found 2"),
        "{text}"
    );
}

#[test]
fn a_manifest_of_another_kind_length_or_version_is_called_that() {
    let good = sample().encode();
    let mut bad = good.clone();
    bad[..4].copy_from_slice(b"SDXX");
    assert!(refusal(bad).contains("manifest magic: expected SDLM"));
    for (at, version) in [(4, 9), (56, 1)] {
        let mut bad = good.clone();
        bad[at] = version;
        let error = Manifest::decode(&resealed_header(bad), Path::new("m")).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("manifest version 1"), "{error}");
    }
    let mut bad = good.clone();
    bad[16] ^= 1;
    assert!(refusal(resealed_header(bad)).contains("manifest length"));
    let mut bad = good.clone();
    bad[24] ^= 1;
    assert!(refusal(resealed_header(bad)).contains("manifest digest"));
    let mut bad = good.clone();
    let len = body_of(&bad, 4) - 4;
    bad[len] -= 1;
    assert!(refusal(resealed(bad)).contains("manifest section length"));
    let epochs = body_of(&good, 7) - 8;
    let text = refusal(resealed(good[..epochs].to_vec()));
    let expected = "manifest sections: expected 1 to 7, found 1 to 6";
    assert!(text.contains(expected), "{text}");
}

/// A second dataset behind the tables gave the manifest another lineage than them.
#[test]
fn sections_come_in_their_order_and_once() {
    let good = sample().encode();
    let section = |kind| body_of(&good, kind) - 8;
    let parts = [section(1), section(2), section(3), good.len()];
    let [first, second, third, end] = parts;
    let twice = [&good[..end], &good[first..second]].concat();
    let text = refusal(resealed(twice));
    let expected = "manifest sections: expected none behind the last one, found 1";
    assert!(text.contains(expected), "{text}");
    let swapped = [&good[..second], &good[third..], &good[second..third]].concat();
    let text = refusal(resealed(swapped));
    let expected = "manifest sections: expected section 2, found 3";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn an_unknown_section_is_skipped_unless_it_must_be_known() {
    let with = |kind: u32| {
        let mut bytes = sample().encode();
        bytes.extend_from_slice(&kind.to_le_bytes());
        bytes.extend_from_slice(&3u32.to_le_bytes());
        bytes.extend_from_slice(b"new");
        Manifest::decode(&resealed(bytes), Path::new("m"))
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
