//! Tests of the durable marks: they only ever add proof, so damage costs proof and not the log.

use super::*;
use crate::io::fault::{Call, Effect, FaultDisk, Rule};
use crate::io::sim::SimDisk;

const DIR: &str = "/";
const MARKS: [Mark; 2] = [(ShardId(0), 7), (ShardId(300), u64::MAX)];

fn written() -> SimDisk {
    let disk = SimDisk::new(1);
    let (mut file, marks, damaged) = Marks::open(&disk, Path::new(DIR)).unwrap();
    assert!(marks.is_empty() && !damaged);
    file.write(&MARKS[..1], true).unwrap();
    file.write(&MARKS, false).unwrap();
    disk
}

fn rot(disk: &SimDisk, slot: usize) {
    let at = (slot * SLOT_LEN) as u64;
    disk.rot(Path::new("/durable"), at, 1).unwrap();
}

fn inspect(disk: &dyn Disk) -> (Vec<Mark>, bool) {
    Marks::inspect(disk, Path::new(DIR)).unwrap()
}

#[test]
fn marks_come_back_and_a_damaged_slot_is_told() {
    let disk = written();
    assert_eq!(inspect(&disk), (MARKS.to_vec(), false));
    assert_eq!(Marks::read(&disk, Path::new(DIR)).unwrap(), MARKS);
    assert_eq!(Marks::open(&disk, Path::new(DIR)).unwrap().1, MARKS);
    // The second generation is in the first slot.
    rot(&disk, 0);
    assert_eq!(inspect(&disk), (MARKS[..1].to_vec(), true));
    assert_eq!(inspect(&SimDisk::new(1)), (Vec::new(), true), "absent");
}

#[test]
fn marks_of_which_nothing_is_left_are_made_anew_by_whoever_may_write() {
    let disk = written();
    rot(&disk, 0);
    rot(&disk, 1);
    assert_eq!(inspect(&disk), (Vec::new(), true));
    let (mut file, marks, damaged) = Marks::open(&disk, Path::new(DIR)).unwrap();
    assert!(marks.is_empty() && damaged);
    file.write(&MARKS, true).unwrap();
    assert_eq!(inspect(&disk), (MARKS.to_vec(), false));
}

#[test]
fn a_disk_that_fails_is_no_missing_file() {
    let faults = FaultDisk::new(std::sync::Arc::new(written()));
    let fail = || faults.add(Rule::new(Effect::EIO).on(Call::Open));
    fail();
    let opened = Marks::open(&faults, Path::new(DIR)).err().unwrap();
    fail();
    let inspected = Marks::inspect(&faults, Path::new(DIR)).unwrap_err();
    for error in [opened, inspected] {
        assert!(error.to_string().starts_with("open /durable: "), "{error}");
    }
    assert_eq!(inspect(&faults), (MARKS.to_vec(), false));
}

#[test]
fn a_count_that_is_not_that_of_the_entries_is_damage() {
    for payload in [&[2, 0][..], &[0, 0, 1], &[1, 0, 9, 9]] {
        let disk = SimDisk::new(1);
        let path = Path::new("/durable");
        let (mut slots, _) = SlotFile::open(&disk, path, MAGIC, SLOT_LEN).unwrap();
        slots.write(payload, true).unwrap();
        let error = Marks::inspect(&disk, Path::new(DIR)).unwrap_err();
        let expected = format!(
            "expected {} entries, found {} bytes",
            payload[0],
            payload.len() - 2
        );
        let text = error.to_string();
        assert!(
            text.contains("/durable is damaged at byte 16: marks"),
            "{text}"
        );
        assert!(text.contains(&expected), "{text}");
        assert!(Marks::open(&disk, Path::new(DIR)).is_err());
    }
    assert_eq!(decode(&[], Path::new(DIR)).unwrap(), []);
}
