//! Tests of slot files: a bad slot costs a generation and never the file.

use std::path::Path;

use super::*;
use crate::io::sim::SimDisk;

const PATH: &str = "/slots";
const LEN: usize = 512;

fn read(disk: &SimDisk) -> Loaded {
    let loaded = SlotFile::read(disk, Path::new(PATH), *b"TEST", LEN).unwrap();
    loaded.expect("the file is there")
}

fn written(generations: &[&[u8]]) -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut file, _) = SlotFile::open(&disk, Path::new(PATH), *b"TEST", LEN).unwrap();
    for payload in generations {
        file.write(payload, true).unwrap();
        assert_eq!(read(&disk).payload.as_deref(), Some(*payload));
    }
    disk
}

#[test]
fn any_flipped_bit_of_a_slot_leaves_the_one_before() {
    for at in 0..2 * LEN as u64 {
        let disk = written(&[b"one", b"two"]);
        disk.rot(Path::new(PATH), at, 1).unwrap();
        let loaded = read(&disk);
        // Generations lie by turns: the second one is in the first slot.
        let expected: &[u8] = if at < LEN as u64 { b"one" } else { b"two" };
        assert_eq!(loaded.payload.as_deref(), Some(expected), "byte {at}");
        assert!(loaded.damaged_at.is_some(), "byte {at}");
    }
}

#[test]
fn two_bad_slots_are_an_error_and_not_an_empty_file() {
    let disk = written(&[b"one", b"two"]);
    for slot in 0..2 {
        disk.rot(Path::new(PATH), slot * LEN as u64 + 20, 1)
            .unwrap();
    }
    let refused = SlotFile::read(&disk, Path::new(PATH), *b"TEST", LEN);
    assert!(matches!(refused, Err(Error::Corrupt { .. })));
}

#[test]
fn a_file_of_another_length_is_damage_and_a_failing_disk_is_not() {
    let disk = written(&[b"one"]);
    let file = disk.open(Path::new(PATH), Access::Write).unwrap();
    file.set_len(LEN as u64 + 1).unwrap();
    let error = SlotFile::read(&disk, Path::new(PATH), *b"TEST", LEN).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/slots is damaged at byte 0: length"),
        "{text}"
    );
    assert!(
        text.contains("expected 1024 bytes, found 513 bytes"),
        "{text}"
    );
    disk.create_dir_all(Path::new("/dir")).unwrap();
    let opened = SlotFile::open(&disk, Path::new("/dir"), *b"TEST", LEN)
        .err()
        .unwrap();
    let read = SlotFile::read(&disk, Path::new("/dir"), *b"TEST", LEN).unwrap_err();
    for error in [opened, read] {
        assert!(error.to_string().starts_with("open /dir: "), "{error}");
        assert!(!error.is_corruption());
    }
    let absent = SlotFile::read(&disk, Path::new("/absent"), *b"TEST", LEN).unwrap();
    assert_eq!(absent, None);
}

/// A slot copied over the other one is intact and in the wrong place; one of another owner is foreign.
#[test]
fn an_intact_slot_in_the_wrong_place_is_damage() {
    for (bytes, at) in [
        (slot(*b"TEST", LEN, 2, b"two"), LEN as u64),
        (slot(*b"ELSE", LEN, 3, b"three"), LEN as u64),
        (slot(*b"TEST", LEN, u64::MAX, b"last"), LEN as u64),
        (slot(*b"TEST", LEN, 1, b"one"), 0),
    ] {
        let disk = written(&[b"one", b"two"]);
        let file = disk.open(Path::new(PATH), Access::Write).unwrap();
        write_all_at(file.as_ref(), &bytes, at).unwrap();
        let loaded = read(&disk);
        let kept: &[u8] = if at == 0 { b"one" } else { b"two" };
        assert_eq!(loaded.payload.as_deref(), Some(kept));
        assert_eq!(loaded.damaged_at, Some(at));
    }
}

#[test]
fn a_generation_that_is_not_synced_counts_until_a_crash() {
    let disk = SimDisk::new(1);
    let (mut file, loaded) = SlotFile::open(&disk, Path::new(PATH), *b"TEST", LEN).unwrap();
    assert_eq!(loaded.payload, None);
    assert_eq!(file.payload_len_max(), LEN - 20);
    let longest = vec![7; file.payload_len_max()];
    file.write(&longest, true).unwrap();
    file.write(b"unsynced", false).unwrap();
    let (again, loaded) = SlotFile::open(&disk, Path::new(PATH), *b"TEST", LEN).unwrap();
    assert_eq!(loaded.payload.as_deref(), Some(&b"unsynced"[..]));
    assert_eq!(again.generation, 2);
    let crashed = disk.crash(1, crate::io::sim::Damage::ALL[0]);
    let payload = read(&crashed).payload.unwrap();
    assert!(payload == longest || payload == b"unsynced");
}
