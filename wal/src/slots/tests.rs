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
