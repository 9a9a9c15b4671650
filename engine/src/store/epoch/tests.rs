//! Tests of the epoch file: what was opened, promised and claimed only rises, and survives a reopen.

use std::path::Path;

use super::*;
use strandline_wal::io::sim::{Damage, SimDisk};

const ME: [u8; 16] = [1; 16];
const OTHER: [u8; 16] = [2; 16];

fn open(disk: &SimDisk) -> EpochFile {
    EpochFile::open(disk, Path::new("/epoch")).unwrap()
}

#[test]
fn every_open_for_writing_has_an_epoch_of_its_own() {
    let disk = SimDisk::new(1);
    let first = open(&disk).open_next(Epoch(0), None).unwrap();
    // The first record of that epoch may be lost; its number is not used again.
    let second = open(&disk).open_next(Epoch(0), None).unwrap();
    assert!(second > first);
    let third = open(&disk).open_next(Epoch(9), None).unwrap();
    assert_eq!(third, Epoch(10), "above what the logs have");
}

#[test]
fn an_elected_epoch_is_opened_unless_a_later_one_was_promised() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(4), ME, ME).unwrap();
    assert_eq!(file.open_next(Epoch(1), Some(Epoch(4))).unwrap(), Epoch(4));
    file.promise(Epoch(7), OTHER, ME).unwrap();
    let opened = file.open_next(Epoch(4), Some(Epoch(6))).unwrap();
    assert!(opened > Epoch(7), "{opened}");
}

#[test]
fn a_promise_to_another_never_falls() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(5), OTHER, ME).unwrap();
    file.promise(Epoch(3), [3; 16], ME).unwrap();
    assert_eq!(file.binding(ME), (Epoch(5), OTHER));
}

#[test]
fn a_promise_is_durable_once_it_is_made() {
    let disk = SimDisk::new(1);
    open(&disk).promise(Epoch(5), OTHER, ME).unwrap();
    let after = disk.crash(1, Damage::LoseAll);
    assert_eq!(open(&after).binding(ME), (Epoch(5), OTHER));
}

#[test]
fn the_own_claim_binds_until_another_is_followed() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(5), OTHER, ME).unwrap();
    file.promise(Epoch(7), ME, ME).unwrap();
    assert_eq!(file.binding(ME), (Epoch(7), ME));
    file.follow().unwrap();
    assert_eq!(file.binding(ME), (Epoch(5), OTHER));
}

#[test]
fn what_was_won_binds_until_a_later_epoch_is_promised() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(5), OTHER, ME).unwrap();
    file.promise(Epoch(7), ME, ME).unwrap();
    file.open_next(Epoch(5), Some(Epoch(7))).unwrap();
    file.follow().unwrap();
    let mut file = open(&disk);
    assert_eq!(file.binding(ME), (Epoch(7), ME));
    assert_eq!(file.unyielded(), Some(Epoch(7)));
    file.promise(Epoch(8), OTHER, ME).unwrap();
    assert_eq!(open(&disk).binding(ME), (Epoch(8), OTHER));
    assert_eq!(open(&disk).unyielded(), None);
}

#[test]
fn what_was_won_is_yielded_by_its_number_alone() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(2), OTHER, ME).unwrap();
    file.open_next(Epoch(2), Some(Epoch(7))).unwrap();
    file.follow().unwrap();
    assert!(!file.yield_won(Epoch(6)).unwrap());
    assert_eq!(open(&disk).binding(ME), (Epoch(7), ME));
    assert!(file.yield_won(Epoch(7)).unwrap());
    assert_eq!(open(&disk).binding(ME), (Epoch(2), OTHER));
    assert!(!file.yield_won(Epoch(7)).unwrap());
}

/// A leader that restarts opens an epoch that nobody promised; it is bound by none of that.
#[test]
fn an_epoch_that_was_opened_and_not_won_is_given_up() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.open_next(Epoch(6), None).unwrap();
    file.follow().unwrap();
    assert_eq!(file.binding(ME).0, Epoch(0));
}

#[test]
fn the_bytes_are_those_of_the_table_and_files_of_version_0_are_read() {
    let path = Path::new("/epoch");
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    file.promise(Epoch(2), OTHER, ME).unwrap();
    file.open_next(Epoch(3), Some(Epoch(4))).unwrap();
    file.join(true).unwrap();
    let loaded = SlotFile::read(&disk, path, MAGIC, SLOT_LEN)
        .unwrap()
        .unwrap();
    let payload = loaded.payload.unwrap();
    let head = [[4, 0, 0, 0, 2, 0, 0, 0].as_slice(), &OTHER, &[4, 0, 0, 0]].concat();
    let parts = [&head[..], &[2, 1, 1, 0], &[4, 0, 0, 0], &[4, 0, 0, 0]];
    assert_eq!(payload, parts.concat());

    let disk = SimDisk::new(1);
    let (mut slots, _) = SlotFile::open(&disk, path, MAGIC, SLOT_LEN).unwrap();
    let parts = [&head[..], &[2, 0, 1, 0], &[4, 0, 0, 0]];
    slots.write(&parts.concat(), true).unwrap();
    drop(slots);
    let old = Epochs {
        won: Epoch(0),
        ..file.epochs().clone()
    };
    assert_eq!(open(&disk).epochs(), &old);
}

#[test]
fn an_epoch_that_was_cut_is_another_nodes_from_then_on() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    for seen in 0..3 {
        file.open_next(Epoch(seen), None).unwrap();
    }
    file.forget_cut(|epoch| epoch <= Epoch(2)).unwrap();
    assert_eq!(open(&disk).epochs().led, [Epoch(1), Epoch(2)]);
}

/// Found by fuzzing: a file that tells of the last epoch there is made the next open panic.
#[test]
fn no_epoch_is_opened_above_the_last_one() {
    let disk = SimDisk::new(1);
    disk.create_dir_all(Path::new("/db")).unwrap();
    let path = Path::new("/db/epoch");
    EpochFile::renew(&disk, path, Epoch(u32::MAX)).unwrap();
    let mut file = EpochFile::open(&disk, path).unwrap();
    let error = file.open_next(Epoch(3), None).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert_eq!(file.epochs().opened, Epoch(u32::MAX), "nothing changed");
}

#[test]
fn an_epoch_that_a_log_has_gone_beyond_is_not_opened_for_an_election() {
    let disk = SimDisk::new(1);
    let opened = open(&disk).open_next(Epoch(9), Some(Epoch(9))).unwrap();
    assert_eq!(opened, Epoch(10));
}

#[test]
fn the_newest_epochs_that_were_led_are_remembered() {
    let disk = SimDisk::new(1);
    let mut file = open(&disk);
    for seen in 0..LED_COUNT_MAX as u32 + 5 {
        file.open_next(Epoch(seen), None).unwrap();
    }
    let led = open(&disk).epochs().led.clone();
    assert_eq!((led.len(), led[0]), (LED_COUNT_MAX, Epoch(6)));
    assert_eq!(led.last(), Some(&Epoch(105)));
}

#[test]
fn a_file_whose_parts_do_not_fit_is_damaged_and_not_begun_again() {
    let path = Path::new("/epoch");
    for payload in [
        &[0; 31][..],
        &[0; 36],
        &[[0; 30].as_slice(), &[2, 0], &[0; 4]].concat(),
        &[[0; 29].as_slice(), &[1, 0, 0]].concat(),
        &[[0; 29].as_slice(), &[2, 0, 0], &[0; 4]].concat(),
    ] {
        let disk = SimDisk::new(1);
        let (mut slots, _) = SlotFile::open(&disk, path, MAGIC, SLOT_LEN).unwrap();
        slots.write(payload, true).unwrap();
        drop(slots);
        for error in [EpochFile::open(&disk, path), EpochFile::read(&disk, path)] {
            let text = error.err().unwrap().to_string();
            assert!(text.contains("/epoch is damaged"), "{text}");
            assert!(
                text.contains(&format!("found {} bytes", payload.len())),
                "{text}"
            );
        }
    }
}

#[test]
fn who_is_followed_and_joined_survives_a_reopen() {
    let disk = SimDisk::new(1);
    let roles = || {
        let file = open(&disk);
        (file.epochs().follows, file.epochs().joins)
    };
    assert_eq!(roles(), (false, false));
    open(&disk).follow().unwrap();
    assert_eq!(roles(), (true, false));
    open(&disk).join(true).unwrap();
    assert_eq!(roles(), (true, true));
    open(&disk).join(false).unwrap();
    assert_eq!(roles(), (true, false));
    open(&disk).open_next(Epoch(0), None).unwrap();
    assert_eq!(roles(), (false, false));
}
