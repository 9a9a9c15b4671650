//! The decorator: which calls its rules fall on, and what a failed call leaves.

use std::collections::BTreeSet;
use std::io::ErrorKind;

use super::*;
use crate::io::fault::{Call, Effect, Rule};
use crate::io::sim::Damage;

fn over_sim() -> (FaultDisk, SimDisk) {
    let below = sim(1);
    (FaultDisk::new(Arc::new(below.clone())), below)
}

fn at(path: &str) -> &Path {
    Path::new(path)
}

/// Every method once; the errors by method.
fn call_all(disk: &FaultDisk) -> Vec<(Call, ErrorKind)> {
    let mut failed = Vec::new();
    let mut note = |call, result: io::Result<()>| {
        if let Err(e) = result {
            failed.push((call, e.kind()));
        }
    };
    note(Call::CreateDirAll, disk.create_dir_all(at("/db/dir")));
    note(Call::Create, disk.create(at("/db/a")).map(drop));
    note(Call::Open, disk.open(at("/db/f"), Access::Read).map(drop));
    note(
        Call::Lock,
        disk.lock(at("/db/LOCK"), LockMode::Shared).map(drop),
    );
    note(Call::List, disk.list(at("/db")).map(drop));
    note(Call::Stat, disk.stat(at("/db/f")).map(drop));
    note(Call::FreeLen, disk.free_len(at("/db")).map(drop));
    note(Call::Link, disk.link(at("/db/f"), at("/db/g")));
    note(Call::Rename, disk.rename(at("/db/f"), at("/db/h")));
    note(Call::Remove, disk.remove(at("/db/gone")));
    note(Call::SyncDir, disk.sync_dir(at("/db")));
    note(Call::RemoveDirAll, disk.remove_dir_all(at("/db/old")));
    failed
}

/// Every method of a file once.
fn call_all_of(file: &dyn File) -> Vec<(Call, ErrorKind)> {
    let mut failed = Vec::new();
    let mut note = |call, result: io::Result<()>| {
        if let Err(e) = result {
            failed.push((call, e.kind()));
        }
    };
    note(Call::Write, file.write_at(b"abcd", 0).map(drop));
    note(Call::Read, file.read_at(&mut [0; 2], 0).map(drop));
    note(Call::SetLen, file.set_len(4));
    note(Call::Len, file.len().map(drop));
    note(Call::Map, file.map(2).map(drop));
    note(Call::Image, file.image(2).map(drop));
    note(Call::View, file.view(2).map(drop));
    note(Call::Sync, file.sync());
    failed
}

#[test]
fn every_method_can_fail_and_is_counted() {
    let mut seen = BTreeSet::new();
    for call in Call::ALL {
        let (disk, below) = over_sim();
        for name in ["/db/f", "/db/gone", "/db/open"] {
            below.create(at(name)).unwrap().set_len(4).unwrap();
        }
        let file = disk.open(at("/db/open"), Access::Write).unwrap();
        let rule = disk.add(Rule::new(Effect::EIO).on(call));
        let mut failed = call_all(&disk);
        failed.extend(call_all_of(file.as_ref()));
        let expected = io::Error::from_raw_os_error(5).kind();
        assert_eq!(failed, [(call, expected)]);
        assert_eq!(disk.fired_count(rule), 1);
        assert_eq!(disk.count(call), if call == Call::Open { 2 } else { 1 });
        assert_eq!(disk.call_count(), Call::ALL.len() as u64 + 1);
        seen.insert(call);
    }
    assert_eq!(seen.len(), Call::ALL.len());
}

#[test]
fn a_failed_call_does_nothing_below() {
    let (disk, below) = over_sim();
    disk.add(Rule::new(Effect::ENOSPC).sticky());
    let calls = below.io_count();
    let error = disk.create(at("/db/a")).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(kind(disk.remove(at("/db/a"))), Some(ErrorKind::StorageFull));
    assert_eq!(below.io_count(), calls);
    assert!(below.files().is_empty());
}

#[test]
fn a_rule_falls_on_the_chosen_calls_alone() {
    let (disk, _) = over_sim();
    let a = disk.create(at("/db/a")).unwrap();
    let b = disk.create(at("/db/b")).unwrap();
    let third = disk.add(Rule::new(Effect::EIO).on(Call::Write).path("/a").after(2));
    let write = |file: &Arc<dyn File>| file.write_at(b"x", 0).is_ok();
    let written: Vec<bool> = (0..4).flat_map(|_| [write(&a), write(&b)]).collect();
    assert_eq!(written, [true, true, true, true, false, true, true, true]);
    assert_eq!(disk.fired_count(third), 1);
    let next = disk.call_count() + 1;
    disk.add(Rule::new(Effect::EIO).at_call(next));
    assert_eq!([write(&b), write(&b), write(&b)], [true, false, true]);
    disk.add(Rule::new(Effect::EIO).on(Call::Rename).path("target"));
    assert!(disk.rename(at("/db/a"), at("/db/target")).is_err());
    assert!(disk.rename(at("/db/a"), at("/db/target")).is_ok());
}

#[test]
fn a_sticky_fault_lasts_until_it_is_healed() {
    let (disk, _) = over_sim();
    let file = disk.create(at("/db/a")).unwrap();
    let rule = disk.add(Rule::new(Effect::ENOSPC).on(Call::Write).after(1).sticky());
    let write = || file.write_at(b"x", 0).is_ok();
    assert_eq!([write(), write(), write()], [true, false, false]);
    disk.heal();
    assert!(write());
    assert_eq!(disk.fired_count(rule), 2);
}

#[test]
fn short_and_interrupted_calls_are_completed_by_the_exact_ones() {
    let (disk, below) = over_sim();
    let file = disk.create(at("/db/a")).unwrap();
    disk.add(Rule::new(Effect::Short(3)).on(Call::Write));
    disk.add(
        Rule::new(Effect::Error(ErrorKind::Interrupted))
            .on(Call::Write)
            .after(1),
    );
    write_all_at(file.as_ref(), b"0123456789", 0).unwrap();
    assert_eq!(disk.count(Call::Write), 3);
    assert_eq!(below.files()[at("/db/a")], b"0123456789");
    disk.add(Rule::new(Effect::Short(1)).on(Call::Read).sticky());
    let mut buf = [0; 10];
    read_exact_at(file.as_ref(), &mut buf, 0).unwrap();
    assert_eq!(&buf, b"0123456789");
    assert_eq!(disk.count(Call::Read), 10);
    disk.add(Rule::new(Effect::Short(0)).on(Call::Write));
    let none = write_all_at(file.as_ref(), b"x", 0);
    assert_eq!(kind(none), Some(ErrorKind::WriteZero));
}

#[test]
fn a_slow_call_passes_and_is_told() {
    let (disk, _) = over_sim();
    let file = disk.create(at("/db/a")).unwrap();
    let rule = disk.add(Rule::new(Effect::Slow).on(Call::Sync).sticky());
    file.sync().unwrap();
    file.sync().unwrap();
    assert_eq!(disk.fired_count(rule), 2);
}

#[test]
fn a_failed_sync_is_one_for_the_simulated_disk_however_deep_it_is() {
    for depth in 1..4 {
        let below = sim(1);
        let inner: Arc<dyn Disk> = Arc::new(below.clone());
        let middle = (1..depth).fold(inner, |disk, _| Arc::new(FaultDisk::new(disk)));
        let disk = FaultDisk::new(middle);
        let file = disk.create(at("/db/a")).unwrap();
        file.sync().unwrap();
        disk.sync_dir(at("/db")).unwrap();
        write_all_at(file.as_ref(), b"lost", 0).unwrap();
        disk.add(Rule::new(Effect::EIO).on(Call::Sync));
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let after = below.crash(1, Damage::LoseAll).files();
        assert_ne!(
            after[at("/db/a")],
            b"lost",
            "a good sync after a failed one proves nothing"
        );

        disk.create(at("/db/b")).unwrap();
        disk.add(Rule::new(Effect::EIO).on(Call::SyncDir));
        assert!(disk.sync_dir(at("/db")).is_err());
        disk.sync_dir(at("/db")).unwrap();
        let after = below.crash(1, Damage::LoseAll).files();
        assert!(!after.contains_key(at("/db/b")));
    }
}

#[test]
fn a_trace_shows_the_calls_in_order() {
    let (disk, _) = over_sim();
    disk.create(at("/db/before")).unwrap();
    disk.trace();
    disk.add(Rule::new(Effect::EIO).on(Call::SyncDir));
    let file = disk.create(at("/db/a.tmp")).unwrap();
    file.write_at(b"abc", 512).unwrap();
    file.sync().unwrap();
    disk.rename(at("/db/a.tmp"), at("/db/a")).unwrap();
    assert!(disk.sync_dir(at("/db")).is_err());
    let expected = [
        "create /db/a.tmp",
        "write /db/a.tmp 3 at 512",
        "sync /db/a.tmp",
        "rename /db/a.tmp /db/a",
        "syncdir /db: failed",
    ];
    assert_eq!(disk.take_trace(), expected);
    assert!(disk.take_trace().is_empty());
}

/// A disk that fails may lie over another that does: both are told of a failed sync.
#[test]
fn a_sync_that_fails_above_another_decorator_reaches_the_simulated_disk() {
    let (inner, below) = over_sim();
    let outer = FaultDisk::new(Arc::new(inner));
    let file = outer.create(at("/db/a")).unwrap();
    file.keep_in_place();
    outer.sync_dir(at("/db")).unwrap();
    write_all_at(file.as_ref(), &[7; 4096], 0).unwrap();
    outer.add(Rule::new(Effect::EIO).on(Call::Sync));
    outer.add(Rule::new(Effect::EIO).on(Call::SyncDir));
    assert!(file.sync().is_err());
    outer.create(at("/db/b")).unwrap();
    assert!(outer.sync_dir(at("/db")).is_err());
    file.sync().unwrap();
    outer.sync_dir(at("/db")).unwrap();
    let kept = |seed| {
        let files = below.crash(seed, Damage::ALL[0]).files();
        (
            files[at("/db/a")] == [7; 4096],
            files.contains_key(at("/db/b")),
        )
    };
    let kept: BTreeSet<_> = (0..64).map(kept).collect();
    assert!(
        kept.iter().any(|(whole, _)| !whole),
        "the second sync proves nothing"
    );
    assert!(
        kept.iter().any(|(_, named)| !named),
        "nor that of the names"
    );
}

#[test]
#[should_panic(expected = "a panic that a rule asked for")]
fn a_rule_can_ask_for_a_panic() {
    let (disk, _) = over_sim();
    disk.add(Rule::new(Effect::Panic).on(Call::List));
    drop(disk.list(at("/db")));
}

#[test]
fn a_disk_of_the_machine_is_told_nothing_of_a_failed_sync() {
    let place = real("faults over real", Env::real().disk, true);
    let disk = FaultDisk::new(Arc::clone(&place.disk));
    let file = disk.create(&place.path("a")).unwrap();
    disk.add(Rule::new(Effect::EIO).on(Call::Sync));
    disk.add(Rule::new(Effect::EIO).on(Call::SyncDir));
    assert!(file.sync().is_err() && disk.sync_dir(&place.root).is_err());
    file.sync().unwrap();
    disk.sync_dir(&place.root).unwrap();
}

/// A short count and an interrupted call are no failures: whoever reads or writes all goes on.
#[test]
fn short_and_interrupted_calls_are_completed_and_no_progress_is_an_error() {
    for effect in [Effect::Short(1), Effect::Error(ErrorKind::Interrupted)] {
        let (disk, _) = over_sim();
        let file = disk.create(at("/db/a")).unwrap();
        let rules = [Call::Write, Call::Read].map(|call| disk.add(Rule::new(effect).on(call)));
        write_all_at(file.as_ref(), b"abc", 0).unwrap();
        let mut read = [0; 3];
        read_exact_at(file.as_ref(), &mut read, 0).unwrap();
        assert_eq!(&read, b"abc");
        assert!(rules.iter().all(|rule| disk.fired_count(*rule) == 1));
        disk.add(Rule::new(Effect::Short(0)).on(Call::Write));
        disk.add(Rule::new(Effect::Short(0)).on(Call::Read));
        let written = write_all_at(file.as_ref(), b"abc", 0);
        assert_eq!(kind(written), Some(ErrorKind::WriteZero));
        let read = read_exact_at(file.as_ref(), &mut read, 0);
        assert_eq!(kind(read), Some(ErrorKind::UnexpectedEof));
    }
}

#[test]
fn a_file_that_cannot_be_replaced_is_as_it_was() {
    for call in [
        Call::Remove,
        Call::Create,
        Call::Write,
        Call::Sync,
        Call::Rename,
    ] {
        let (disk, below) = over_sim();
        replace_file(&disk, at("/db/a"), b"old").unwrap();
        disk.add(Rule::new(Effect::EIO).on(call));
        assert!(
            replace_file(&disk, at("/db/a"), b"new").is_err(),
            "{call:?}"
        );
        assert_eq!(below.files()[at("/db/a")], b"old", "{call:?}");
        replace_file(&disk, at("/db/a"), b"new").unwrap();
        assert_eq!(below.files()[at("/db/a")], b"new", "{call:?}");
    }
    let root = replace_file(&over_sim().0, at("/"), b"");
    assert_eq!(kind(root), Some(ErrorKind::InvalidInput));
}
