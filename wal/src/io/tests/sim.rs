//! The simulated disk: its death, its limits, its copies, and what a failed sync leaves.

use std::any::Any;
use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;
use crate::io::sim::{Damage, SimClock, SimEnv, SimFile, SimRandom};

fn at(path: &str) -> &Path {
    Path::new(path)
}

fn write(disk: &SimDisk, path: &str, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.create(at(path)).unwrap();
    write_all_at(file.as_ref(), bytes, 0).unwrap();
    file
}

fn read(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    disk.files().get(at(path)).cloned()
}

#[test]
fn the_machine_dies_at_the_chosen_call() {
    let disk = sim(1);
    assert_eq!(disk.io_count(), 1, "settling is no call");
    disk.crash_at(4);
    let file = write(&disk, "/db/a", b"a");
    file.sync().unwrap();
    assert!(!disk.is_dead());
    assert_eq!(kind(file.write_at(b"b", 1)), Some(SimDisk::DEAD));
    assert!(disk.is_dead());
    assert_eq!(kind(file.sync()), Some(SimDisk::DEAD));
    assert_eq!(kind(file.read_at(&mut [0], 0)), Some(SimDisk::DEAD));
    assert_eq!(kind(disk.list(at("/db"))), Some(SimDisk::DEAD));
    assert_eq!(
        kind(disk.lock(at("/db/L"), LockMode::Shared)),
        Some(SimDisk::DEAD)
    );
    assert_eq!(disk.io_count(), 4);
    let after = disk.crash(1, Damage::KeepAll);
    assert!(!after.is_dead());
    assert_eq!(after.io_count(), 0);
    assert_eq!(read(&after, "/db/a").unwrap(), b"a");
}

#[test]
fn locks_and_handles_die_with_the_machine() {
    let disk = sim(1);
    let _held = disk.lock(at("/db/LOCK"), LockMode::Exclusive).unwrap();
    for after in [disk.crash(1, Damage::KeepAll), disk.fork()] {
        after.lock(at("/db/LOCK"), LockMode::Exclusive).unwrap();
    }
    let again = disk.lock(at("/db/LOCK"), LockMode::Exclusive);
    assert_eq!(
        kind(again),
        Some(ErrorKind::WouldBlock),
        "the old machine is not touched"
    );
}

#[test]
fn a_fork_is_independent_and_keeps_what_is_unsynced_unsynced() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", b"one");
    let fork = disk.fork();
    write_all_at(file.as_ref(), b"two", 0).unwrap();
    assert_eq!(read(&fork, "/db/a").unwrap(), b"one");
    assert_eq!(read(&disk, "/db/a").unwrap(), b"two");
    assert_eq!(
        read(&fork.crash(1, Damage::KeepAll), "/db/a").unwrap(),
        b"one"
    );
    assert_eq!(
        read(&fork.crash(1, Damage::LoseData), "/db/a").unwrap(),
        [0; 3]
    );
    assert_eq!(read(&fork.crash(1, Damage::LoseAll), "/db/a"), None);
}

#[test]
fn a_full_disk_takes_what_fits_and_recovers_when_space_returns() {
    let disk = sim(1);
    disk.limit(Some(1_000));
    let file = write(&disk, "/db/a", &[1; 600]);
    assert_eq!(disk.free_len(at("/db")).unwrap(), Some(400));
    let other = disk.create(at("/db/b")).unwrap();
    assert_eq!(other.write_at(&[2; 500], 0).unwrap(), 400, "a short write");
    assert_eq!(
        kind(other.write_at(&[2; 100], 400)),
        Some(ErrorKind::StorageFull)
    );
    assert_eq!(kind(other.set_len(401)), Some(ErrorKind::StorageFull));
    assert_eq!(
        kind(other.write_at(&[2; 10], 2_000)),
        Some(ErrorKind::StorageFull)
    );
    other.write_at(&[3; 400], 0).unwrap();
    file.set_len(500).unwrap();
    write_all_at(other.as_ref(), &[2; 100], 400).unwrap();
    disk.remove(at("/db/a")).unwrap();
    assert_eq!(
        disk.used_len(),
        1_000,
        "a removed file takes space while it is open"
    );
    drop(file);
    assert_eq!(disk.used_len(), 500);
    disk.limit(Some(100));
    assert_eq!(disk.free_len(at("/db")).unwrap(), Some(0));
    disk.limit(None);
    assert_eq!(disk.free_len(at("/db")).unwrap(), None);
    write_all_at(other.as_ref(), &[2; 5_000], 0).unwrap();
}

#[test]
fn a_huge_sparse_file_costs_nothing() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", b"start");
    let far = 1 << 40;
    write_all_at(file.as_ref(), b"end", far).unwrap();
    write_all_at(file.as_ref(), &vec![0; 1 << 20], 4_096).unwrap();
    let mut buf = [0; 4];
    assert_eq!(file.read_at(&mut buf, far).unwrap(), 3);
    file.sync().unwrap();
    disk.sync_dir(at("/db")).unwrap();
    let after = disk.crash(1, Damage::LoseAll);
    let file = after.open(at("/db/a"), Access::Write).unwrap();
    assert_eq!(file.len().unwrap(), far + 3);
    assert_eq!(file.read_at(&mut buf, far - 1).unwrap(), 4);
    assert_eq!(&buf, b"\0end");
    assert_eq!(
        kind(file.write_at(b"x", u64::MAX)),
        Some(ErrorKind::FileTooLarge)
    );
}

#[test]
fn a_special_file_is_refused() {
    let disk = sim(1);
    disk.place_special(at("/db/pipe")).unwrap();
    assert_eq!(
        kind(disk.place_special(at("/db/pipe"))),
        Some(ErrorKind::AlreadyExists)
    );
    assert_eq!(disk.stat(at("/db/pipe")).unwrap().kind, FileKind::Other);
    assert_eq!(
        kind(disk.open(at("/db/pipe"), Access::Read)),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        kind(disk.lock(at("/db/pipe"), LockMode::Shared)),
        Some(ErrorKind::InvalidInput)
    );
    assert_eq!(
        kind(disk.create(at("/db/../x"))),
        Some(ErrorKind::InvalidInput)
    );
}

#[test]
fn rot_changes_what_is_durable_without_a_call() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", b"aaa");
    disk.settle();
    let calls = disk.io_count();
    disk.rot(at("/db/a"), 1, 0b11).unwrap();
    assert_eq!(disk.io_count(), calls);
    assert_eq!(read(&disk, "/db/a").unwrap(), b"aba");
    assert_eq!(
        read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap(),
        b"aba"
    );
    assert_eq!(
        kind(disk.rot(at("/db/a"), 3, 1)),
        Some(ErrorKind::UnexpectedEof)
    );
    drop(file);
}

#[test]
fn published_bytes_are_unsynced_until_the_file_is_synced() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", &[0; 4_096]);
    disk.settle();
    let image = Arc::new(file.image(4_096).unwrap().unwrap());
    let publish = |byte: u8| {
        let mut slot = image.reserve(300).unwrap();
        slot.bytes_mut().fill(byte);
        let end = slot.end();
        drop(slot);
        image.publish(end);
    };
    publish(1);
    file.sync().unwrap();
    publish(2);
    publish(3);
    let mut unpublished = image.reserve(300).unwrap();
    unpublished.bytes_mut().fill(4);
    let lost = read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap();
    assert!(lost[..300].iter().all(|b| *b == 1) && lost[300..].iter().all(|b| *b == 0));
    let kept = read(&disk.crash(1, Damage::KeepAll), "/db/a").unwrap();
    assert_eq!(
        (kept[299], kept[300], kept[600], kept[899], kept[900]),
        (1, 2, 3, 3, 0)
    );
    // The sector that both share was on the disk after the first of them, for some seed.
    let between = (0..50).any(|seed| {
        let bytes = read(&disk.crash(seed, Damage::FilePrefix), "/db/a").unwrap();
        (bytes[300], bytes[511], bytes[512], bytes[600]) == (2, 2, 2, 0)
    });
    assert!(between, "publications are told apart");
    drop((image, unpublished));
    assert_eq!(
        read(&disk, "/db/a").unwrap()[899],
        3,
        "an image that is gone is not forgotten"
    );
    file.sync().unwrap();
    assert_eq!(
        read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap(),
        kept
    );
}

#[test]
fn a_cut_below_an_image_hides_what_it_cuts_off() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", &[0; 4_096]);
    let image = Arc::new(file.image(4_096).unwrap().unwrap());
    file.set_len(100).unwrap();
    let mut slot = image.reserve(4_096).unwrap();
    slot.bytes_mut().fill(1);
    drop(slot);
    image.publish(4_096);
    assert_eq!(read(&disk, "/db/a").unwrap(), [1; 100]);
}

#[test]
fn a_cut_that_is_lost_leaves_the_bytes_that_it_cut_off() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", &[1; 4_096]);
    disk.settle();
    file.set_len(700).unwrap();
    let mut lens = BTreeSet::new();
    for damage in Damage::ALL {
        for seed in 0..20 {
            let bytes = read(&disk.crash(seed, damage), "/db/a").unwrap();
            assert!(bytes.iter().all(|b| *b == 1), "{damage:?} {seed}");
            lens.insert(bytes.len());
        }
    }
    assert_eq!(lens, BTreeSet::from([700, 4_096]));
}

#[test]
fn a_sync_after_a_failed_one_proves_nothing() {
    let disk = sim(1);
    let file = write(&disk, "/db/a", &[1; 4_096]);
    disk.settle();
    write_all_at(file.as_ref(), &[2; 2_048], 0).unwrap();
    fail_sync(&file);
    file.sync().unwrap();
    file.sync().unwrap();
    let mut buf = [0; 4_096];
    read_exact_at(file.as_ref(), &mut buf, 0).unwrap();
    assert_eq!(buf[0], 2, "the cache shows what is not on the disk");
    let lost = read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap();
    assert_eq!(lost, [1; 4_096], "two good syncs made nothing durable");
    // What comes after is durable by a good sync, sector by sector.
    write_all_at(file.as_ref(), &[3; 10], 500).unwrap();
    write_all_at(file.as_ref(), &[3; 10], 4_096).unwrap();
    file.sync().unwrap();
    let lost = read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap();
    assert_eq!(
        lost.len(),
        4_106,
        "the length is the file system's and was written"
    );
    assert_eq!(
        (lost[499], lost[500], lost[511]),
        (2, 3, 2),
        "this sector was written out again"
    );
    assert_eq!((lost[512], lost[4_095], lost[4_096]), (1, 1, 3));
    let kept = read(&disk.crash(1, Damage::KeepAll), "/db/a").unwrap();
    assert_eq!(
        (kept[512], kept[2_048]),
        (2, 1),
        "for all that is known it was written out"
    );
}

#[test]
fn opening_a_file_shows_what_a_failed_sync_left() {
    let mut images = BTreeSet::new();
    for seed in 0..40 {
        let disk = sim(seed);
        let file = write(&disk, "/db/a", &[1; 1_024]);
        disk.settle();
        write_all_at(file.as_ref(), &[2; 1_024], 0).unwrap();
        fail_sync(&file);
        drop(file);
        let file = disk.open(at("/db/a"), Access::Write).unwrap();
        let seen = read(&disk, "/db/a").unwrap();
        file.sync().unwrap();
        for damage in Damage::ALL {
            let after = read(&disk.crash(seed, damage), "/db/a").unwrap();
            assert_eq!(after, seen, "what is read after the open is what there is");
        }
        images.insert((seen[0], seen[512]));
    }
    assert_eq!(images.len(), 4, "each sector is lost or kept");
}

#[test]
fn an_image_from_before_a_failed_sync_is_cut_off_by_the_next_open() {
    let disk = sim(3);
    let file = write(&disk, "/db/a", &[0; 1_024]);
    disk.settle();
    let image = Arc::new(file.image(1_024).unwrap().unwrap());
    let mut slot = image.reserve(512).unwrap();
    slot.bytes_mut().fill(1);
    drop(slot);
    image.publish(512);
    fail_sync(&file);
    let again = disk.open(at("/db/a"), Access::Write).unwrap();
    let seen = read(&disk, "/db/a").unwrap();
    image.reserve(512).unwrap();
    image.publish(1_024);
    again.sync().unwrap();
    assert_eq!(
        read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap(),
        seen
    );
}

fn fail_sync(file: &Arc<dyn File>) {
    let file: &dyn Any = file.as_ref();
    file.downcast_ref::<SimFile>().unwrap().fail_sync();
}

#[test]
fn a_directory_sync_after_a_failed_one_proves_nothing() {
    let disk = sim(1);
    write(&disk, "/db/a", b"a").sync().unwrap();
    disk.fail_sync_dir(at("/db")).unwrap();
    write(&disk, "/db/b", b"b").sync().unwrap();
    disk.sync_dir(at("/db")).unwrap();
    let after = disk.crash(1, Damage::LoseAll);
    assert_eq!(read(&after, "/db/a"), None);
    assert_eq!(read(&after, "/db/b").unwrap(), b"b");
    disk.list(at("/db")).unwrap();
    disk.sync_dir(at("/db")).unwrap();
    let after = disk.crash(1, Damage::LoseAll);
    assert_eq!(
        read(&after, "/db/a").unwrap(),
        b"a",
        "listed and synced, it can be relied on"
    );
}

#[test]
fn a_rename_that_survives_brings_the_name_that_was_never_synced() {
    let disk = sim(1);
    write(&disk, "/db/a.tmp", b"a").sync().unwrap();
    disk.rename(at("/db/a.tmp"), at("/db/a")).unwrap();
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let names: Vec<_> = disk
            .crash(seed, Damage::Mixed)
            .files()
            .into_keys()
            .collect();
        assert!(names.len() <= 1, "never both names: {names:?}");
        seen.insert(names);
    }
    assert_eq!(
        seen.len(),
        3,
        "absent, the old name, the new name: {seen:?}"
    );
}

#[test]
fn a_file_that_was_renamed_and_followed_by_another_never_loses_both_names() {
    let disk = sim(1);
    write(&disk, "/db/log", b"old").sync().unwrap();
    disk.sync_dir(at("/db")).unwrap();
    disk.rename(at("/db/log"), at("/db/log.1")).unwrap();
    write(&disk, "/db/log", b"new").sync().unwrap();
    for damage in Damage::ALL {
        for seed in 0..50 {
            let after = disk.crash(seed, damage).files();
            assert!(
                after.values().any(|bytes| bytes == b"old"),
                "{damage:?} {seed}"
            );
        }
    }
}

#[test]
fn a_rename_over_a_file_leaves_the_old_content_or_the_new() {
    let disk = sim(1);
    replace_file(&disk, at("/db/a"), b"old").unwrap();
    let temp = write(&disk, "/db/a.tmp", b"new");
    temp.sync().unwrap();
    disk.rename(at("/db/a.tmp"), at("/db/a")).unwrap();
    let mut seen = BTreeSet::new();
    for damage in Damage::ALL {
        for seed in 0..50 {
            seen.insert(read(&disk.crash(seed, damage), "/db/a"));
        }
    }
    let whole = [Some(b"new".to_vec()), Some(b"old".to_vec())];
    assert_eq!(seen, BTreeSet::from(whole));
}

#[test]
fn a_rename_between_directories_is_durable_by_the_sync_of_either() {
    for synced in ["/db/from", "/db/to"] {
        let disk = sim(1);
        disk.create_dir_all(at("/db/from")).unwrap();
        disk.create_dir_all(at("/db/to")).unwrap();
        disk.settle();
        write(&disk, "/db/from/a", b"a").sync().unwrap();
        disk.rename(at("/db/from/a"), at("/db/to/a")).unwrap();
        disk.sync_dir(at(synced)).unwrap();
        for damage in Damage::ALL {
            let names: Vec<_> = disk.crash(1, damage).files().into_keys().collect();
            assert_eq!(
                names,
                [at("/db/to/a")],
                "{damage:?} after the sync of {synced}"
            );
        }
    }
}

#[test]
fn a_file_below_a_directory_that_was_never_synced_may_vanish_with_it() {
    let disk = sim(1);
    disk.create_dir_all(at("/db/new")).unwrap();
    write(&disk, "/db/new/a", b"a").sync().unwrap();
    disk.sync_dir(at("/db/new")).unwrap();
    assert!(disk.crash(1, Damage::LoseAll).files().is_empty());
    disk.sync_dir(at("/db")).unwrap();
    assert_eq!(
        read(&disk.crash(1, Damage::LoseAll), "/db/new/a").unwrap(),
        b"a"
    );
}

#[test]
fn a_removed_file_may_come_back_with_its_content() {
    let disk = sim(1);
    replace_file(&disk, at("/db/a"), b"a").unwrap();
    disk.remove(at("/db/a")).unwrap();
    disk.remove_dir_all(at("/db")).unwrap();
    assert_eq!(
        read(&disk.crash(1, Damage::LoseAll), "/db/a").unwrap(),
        b"a"
    );
    assert!(disk.crash(1, Damage::KeepAll).files().is_empty());
    disk.sync_dir(at("/")).unwrap();
    assert!(disk.crash(1, Damage::LoseAll).files().is_empty());
}

#[test]
fn a_dump_tells_what_is_not_durable() {
    let disk = sim(1);
    write(&disk, "/db/a", b"abc");
    let dump = format!("{disk:?}");
    assert!(
        dump.contains("/db/a: node 2, len 3, durable len 0, 1 changes unsynced, 0 lost"),
        "{dump}"
    );
    assert!(dump.contains("pending create: a in 1 is node 2;"), "{dump}");
}

#[test]
fn the_simulated_clock_moves_when_it_is_moved() {
    let clock = SimClock::at(1_000);
    clock.advance_ms(5);
    clock.jump_to_ms(3);
    assert_eq!((clock.wall_ms(), clock.mono_ns()), (3, 5_000_000));
}

#[test]
fn simulated_randomness_comes_from_its_seed() {
    let ids = |seed| SimRandom::new(seed).next_id();
    assert_eq!(ids(1), ids(1));
    assert_ne!(ids(1), ids(2));
    // The first value of splitmix64 from 0, as its authors publish it.
    assert_eq!(SimRandom::new(0).next_u64(), 0xe220_a839_7b1d_cdaf);
}

#[test]
fn a_simulated_machine_crashes_as_a_whole() {
    let machine = SimEnv::new(1);
    let env = machine.env();
    env.disk.create(at("/a")).unwrap();
    env.disk.sync_dir(at("/")).unwrap();
    machine.clock.advance_ms(7);
    let first = env.random.next_u64();
    let after = machine.crash(1, Damage::LoseAll);
    assert_eq!(after.disk.files().len(), 1);
    assert_eq!(after.env().clock.wall_ms(), env.clock.wall_ms());
    assert_ne!(after.env().random.next_u64(), first);
}
