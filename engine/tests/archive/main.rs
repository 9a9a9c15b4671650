//! Archives and their restores: clusters over simulated disks and a store in memory that fails as told,
//! held against a model of what was written.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod failovers;
mod kit;
mod trouble;

use std::path::Path;
use std::sync::Arc;
use strandline::archive::{
    ArchiveError, ArchiveOptions, ArchiveStore, Faults, MemoryArchive, Target, Uploader, check,
    prune, restore,
};
use strandline::{Database, Error};
use strandline_replication::archive::{Base, Root, Start, Term};
use strandline_replication::{LeaderId, Lineage};
use strandline_wal::Epoch;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimEnv};

use kit::*;

#[test]
fn an_idle_hour_sends_no_request() {
    let store = MemoryArchive::default();
    let (env, db, _, mut uploader) = archived(&store, 2, 300);
    settle(&mut uploader);
    db.run_background(100).unwrap();
    settle(&mut uploader);
    let before = store.request_count();
    for _ in 0..3_600 {
        env.clock.advance_ms(1_000);
        assert!(!uploader.step().unwrap());
    }
    assert_eq!(store.request_count(), before);
    db.keyspace("map").unwrap().put("one", "more").unwrap();
    assert!(uploader.step().unwrap());
    assert_eq!(store.request_count(), before + 1);
}

#[test]
fn a_planted_gap_is_found_and_named() {
    let store = MemoryArchive::default();
    let (env, _db, _, mut uploader) = archived(&store, 2, 900);
    settle(&mut uploader);
    check(&env.env(), &store, &id(), None).unwrap();
    let names: Vec<String> = store.objects().into_keys().collect();
    let pieces = |end: &str| {
        names
            .iter()
            .filter(|n| n.ends_with(end))
            .cloned()
            .collect::<Vec<_>>()
    };
    let segments = pieces(".seg");
    let files: Vec<_> = names.iter().filter(|n| n.contains("/file/")).collect();
    assert!(segments.len() > 4 && files.len() > 2, "{names:?}");
    let objects = store.objects();
    let again = || {
        let copy = MemoryArchive::default();
        for (name, bytes) in &objects {
            copy.put(name, bytes).unwrap();
        }
        copy
    };
    // A base of the same state as the one before is not made twice; what was uploaded for it stays behind.
    let is_named = |name: &str| {
        let bases = objects.iter().filter(|(name, _)| name.contains("/base/"));
        let mut bases = bases.map(|(name, bytes)| Base::decode(bytes, name).unwrap());
        !name.contains("/file/") || bases.any(|base| base.files.iter().any(|f| f.object == name))
    };
    let mut gaps = 0;
    for name in &names {
        let lost = again();
        lost.lose(name);
        let outcome = check(&env.env(), &lost, &id(), None);
        match outcome {
            Err(Error::Archive(ArchiveError::Gap(gap))) => {
                assert!(gap.from <= gap.to, "{gap}");
                gaps += 1;
            }
            Err(Error::Archive(ArchiveError::Missing { object })) => assert_eq!(object, *name),
            Err(Error::Archive(ArchiveError::Refused(text))) => {
                assert!(
                    name.contains("/term/") && text.contains("base"),
                    "{name}: {text}"
                );
            }
            Err(error) => panic!("{name}: {error}"),
            // The newest of a log, a part that a segment covers, one before the oldest base, a base itself.
            Ok(_) => assert!(
                name.contains("/base/") || name.contains("/log/") || !is_named(name),
                "{name} is not missed"
            ),
        }
        let flipped = again();
        flipped.flip(name, objects[name].len() / 2);
        let is_read = check(&env.env(), &flipped, &id(), None);
        match is_read {
            Err(Error::Archive(ArchiveError::Damaged { object, .. })) => assert_eq!(object, *name),
            Ok(_) => assert!(name.contains("/log/") || !is_named(name), "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    assert!(gaps >= 3, "{gaps} of {}", segments.len());
}

/// The process dies at every request, as the store sees it, and another one goes on.
#[test]
fn an_uploader_that_dies_at_any_request_is_gone_on_from() {
    let whole = MemoryArchive::default();
    let (_, _db, _, mut uploader) = archived(&whole, 2, 250);
    settle(&mut uploader);
    let count = whole.request_count();
    assert!(count > 40, "{count}");
    for n in (1..=count).step_by(3) {
        let store = MemoryArchive::new(n, Faults::default());
        store.dies_at(Some(n));
        let (env, db, model, uploader) = archived(&store, 2, 250);
        drop(uploader);
        drop(db);
        let env = env.crash(n, Damage::LoseAll);
        let db = options(2).open_with("/db", env.env()).unwrap();
        store.dies_at(None);
        let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
        let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, often());
        settle(&mut uploader);
        check(&env.env(), &store, &id(), None)
            .unwrap_or_else(|error| panic!("request {n}: {error}"));
        let (found, _) = restored(&store, 2, &Target::Latest).unwrap();
        assert!(found == model.at(model.ops.len()), "request {n}");
    }
}

/// A restore dies at every call of the disk, or meets a full one: nothing stands at the target, or all.
#[test]
fn a_restore_is_there_whole_or_not_at_all() {
    let store = MemoryArchive::default();
    let (_, _db, model, mut uploader) = archived(&store, 2, 300);
    settle(&mut uploader);
    let into = |env: &SimEnv| {
        restore(
            &env.env(),
            &store,
            &id(),
            None,
            &Target::Latest,
            Path::new("/restored"),
        )
    };
    let whole = SimEnv::new(1);
    into(&whole).unwrap();
    let (count, used) = (whole.disk.io_count(), whole.disk.used_len());
    let expected = model.at(model.ops.len());
    let see = |env: &SimEnv| {
        let is_there = env
            .disk
            .files()
            .keys()
            .any(|path| path.starts_with("/restored"));
        if is_there {
            let db = options(2).open_with("/restored", env.env()).unwrap();
            let map = db.keyspace("map").unwrap();
            assert_eq!(map.iter().count(), expected.len());
        }
        is_there
    };
    let (mut there, mut absent) = (0, 0);
    for n in 1..=count + 1 {
        let env = SimEnv::new(1);
        env.disk.crash_at(n);
        let outcome = into(&env);
        let after = env.crash(n, Damage::ALL[n as usize % Damage::ALL.len()]);
        let is_there = see(&after);
        assert!(is_there || outcome.is_err(), "call {n}: {outcome:?}");
        *(if is_there { &mut there } else { &mut absent }) += 1;
        if !is_there {
            into(&after).unwrap_or_else(|error| panic!("again after call {n}: {error}"));
            assert!(see(&after));
        }
    }
    // Once it is done nothing takes it away.
    for (seed, damage) in (0..8).flat_map(|seed| Damage::ALL.map(|damage| (seed, damage))) {
        let env = SimEnv::new(1);
        into(&env).unwrap();
        assert!(see(&env.crash(seed, damage)), "{damage:?}");
    }
    assert!(absent > 10 && there >= 1, "{absent} {there}");
    for share in 1..10 {
        let env = SimEnv::new(1);
        env.disk.limit(Some(used * share / 10));
        let error = into(&env).unwrap_err();
        assert!(error.is_no_space(), "{error}");
        assert!(!see(&env));
        assert_eq!(env.disk.used_len(), 0, "what was staged is removed");
    }
}

#[test]
fn what_the_archive_lacks_stays_in_the_log() {
    let store = MemoryArchive::default();
    store.dies_at(Some(30));
    let (env, db, model, mut uploader) = archived(&store, 2, 1_000);
    let dataset = db.dataset("").unwrap();
    dataset.flush().unwrap();
    db.run_background(100).unwrap();
    store.dies_at(None);
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 0);
    check(&env.env(), &store, &id(), None).unwrap();
    let (found, _) = restored(&store, 2, &Target::Position(model.ops[700].seqs.clone())).unwrap();
    assert!(found == model.at(701));
    // Then it may go.
    let first = |db: &Database| db.dataset("").unwrap().stats().segment_count;
    let before = first(&db);
    dataset.flush().unwrap();
    db.run_background(100).unwrap();
    assert!(first(&db) <= before);
}

#[test]
fn what_is_not_committed_is_not_uploaded() {
    let machine = SimEnv::new(1);
    let mut env = machine.env();
    let faults = FaultDisk::new(env.disk.clone());
    env.disk = Arc::new(faults.clone());
    let db = options(1).open_with("/db", env).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "before").unwrap();
    let store = MemoryArchive::default();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, often());
    settle(&mut uploader);
    let (before, seqs) = (store.request_count(), uploader.status().seqs.clone());
    faults.add(Rule::new(Effect::EIO).on(Call::Sync).path(".seg").sticky());
    map.put("key", "after").unwrap_err();
    let _ = uploader.step();
    assert_eq!(
        (store.request_count(), &uploader.status().seqs),
        (before, &seqs)
    );
}

#[test]
fn two_leaders_of_one_epoch_do_not_mix() {
    let store = MemoryArchive::default();
    let (env, db, _, uploader) = archived(&store, 1, 50);
    drop(uploader);
    let other = MemoryArchive::default();
    let ours = db.dataset("").unwrap().lineage();
    let root = Root::new(&id(), Lineage(ours));
    let term = Term {
        epoch: Epoch(1),
        previous: Epoch(0),
        lineage: Lineage(ours),
        leader: LeaderId([1; 16]),
        from: vec![Start {
            seq: 1,
            chain: 0,
            end: 1,
        }],
    };
    other.put(&root.term(Epoch(1)), &term.encode()).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(other.clone());
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::clone(&shared), often());
    let error = uploader.step().unwrap_err();
    assert!(
        matches!(error, Error::Archive(ArchiveError::Taken { .. })),
        "{error}"
    );
    assert_eq!(other.objects().len(), 1);
    // A later one is a failover.
    let term = Term {
        epoch: Epoch(2),
        previous: Epoch(1),
        ..term
    };
    other.put(&root.term(Epoch(2)), &term.encode()).unwrap();
    let error = uploader.step().unwrap_err();
    assert!(
        matches!(error, Error::Fenced { ours: 1, found: 2 }),
        "{error}"
    );
    drop((uploader, env));
}

#[test]
fn retention_keeps_what_points_need() {
    let store = MemoryArchive::default();
    let (env, db, model, mut uploader) = archived(&store, 2, 1_500);
    settle(&mut uploader);
    let before = store.objects().len();
    let now_ms = START_MS + 15_000;
    let options = ArchiveOptions {
        pitr_window_ms: 4_000,
        retention_ms: 9_000,
        ..often()
    };
    env.clock.jump_to_ms(now_ms);
    drop(uploader);
    let removed = prune(&env.env(), &store, &id(), None, &options).unwrap();
    assert_eq!(
        store.objects().len() as u64,
        before as u64 - removed.removed_count
    );
    assert!(removed.removed_count > 5, "{removed:?}");
    drop(db);
    let mut dice = Dice(9);
    for _ in 0..10 {
        let ms = now_ms - dice.roll(4_000);
        let count = model.ops.iter().filter(|op| op.ms <= ms).count();
        let (found, _) = restored(&store, 2, &Target::Time(ms)).unwrap();
        assert!(found == model.at(count), "{ms}");
    }
    // Beyond the window the ends of buckets, which are bases, and nothing between.
    let mut ends = 0;
    for op in &model.ops {
        if now_ms - op.ms <= 4_000 {
            break;
        }
        if let Ok((found, report)) = restored(&store, 2, &Target::Position(op.seqs.clone())) {
            let count = model
                .ops
                .iter()
                .filter(|it| it.seqs.iter().zip(&report.seqs).all(|(a, b)| a <= b))
                .count();
            assert!(found == model.at(count), "{report:?}");
            ends += 1;
        }
    }
    assert!(ends >= 1, "{ends}");
    let error = restored(&store, 2, &Target::Time(START_MS)).unwrap_err();
    assert!(error.to_string().contains("the oldest point"), "{error}");
    let again = prune(&env.env(), &store, &id(), None, &options).unwrap();
    assert_eq!(again.removed_count, 0);
}

#[test]
fn a_log_that_outgrew_its_limit_breaks_the_archive_and_a_new_base_begins() {
    let store = MemoryArchive::default();
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = options(1).open_with("/db", env.env()).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let limited = ArchiveOptions {
        log_len_max: 1 << 20,
        ..often()
    };
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, limited);
    let (mut dice, mut model) = (Dice(3), Model::default());
    for n in 0..3_000 {
        env.clock.advance_ms(10);
        // Small values stay in tables, so no table keeps a segment.
        let _ = dice.roll(2);
        let map = db.keyspace("map").unwrap();
        map.put((n % 300u64).to_be_bytes(), vec![n as u8; 500])
            .unwrap();
        let seqs = seqs(&db.dataset("").unwrap());
        let value = Some(vec![n as u8; 500]);
        model.ops.push(Op {
            seqs,
            ms: 0,
            key: n % 300,
            value,
        });
        let is_away = (500..2_900).contains(&n);
        store.dies_at(is_away.then_some(0));
        if n % 10 == 0 {
            db.run_background(10).unwrap();
            assert_eq!(uploader.step().is_err(), is_away, "{n}");
        }
    }
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 1);
    let report = check(&env.env(), &store, &id(), None).unwrap();
    assert_eq!(report.break_count, 1);
    for count in [400, 3_000] {
        let target = Target::Position(model.ops[count - 1].seqs.clone());
        assert!(
            restored(&store, 1, &target).unwrap().0 == model.at(count),
            "{count}"
        );
    }
    let lost = Target::Position(model.ops[1_000].seqs.clone());
    let error = restored(&store, 1, &lost).unwrap_err();
    assert!(
        matches!(error, Error::Archive(ArchiveError::Gap(_))),
        "{error}"
    );
}

#[test]
fn a_database_that_is_opened_again_keeps_what_the_archive_lacks() {
    let store = MemoryArchive::default();
    let (env, db, mut model, mut uploader) = archived(&store, 1, 200);
    settle(&mut uploader);
    drop(uploader);
    let mut dice = Dice(11);
    for n in 0..400 {
        write(&db, &mut dice, &mut model, START_MS + 3_000 + n);
    }
    drop(db);
    let db = options(1).open_with("/db", env.env()).unwrap();
    // Before the archive goes on.
    for n in 0..400 {
        write(&db, &mut dice, &mut model, START_MS + 4_000 + n);
    }
    let dataset = db.dataset("").unwrap();
    dataset.flush().unwrap();
    db.run_background(100).unwrap();
    let shared: Arc<dyn ArchiveStore> = Arc::new(store.clone());
    let mut uploader = Uploader::new(&dataset, shared, often());
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 0);
    check(&env.env(), &store, &id(), None).unwrap();
    let (found, _) = restored(&store, 1, &Target::Position(model.ops[300].seqs.clone())).unwrap();
    assert!(found == model.at(301));
    let holders = |db: &Database| {
        let holders = db.dataset("").unwrap().who_blocks();
        holders
            .into_iter()
            .filter(|it| it.what == "archive")
            .count()
    };
    drop(uploader);
    for n in 0..400 {
        write(&db, &mut dice, &mut model, START_MS + 5_000 + n);
    }
    dataset.flush().unwrap();
    assert_eq!(holders(&db), 1);
    dataset.forget_archive().unwrap();
    assert_eq!(holders(&db), 0);
    drop((dataset, db));
    let db = options(1).open_with("/db", env.env()).unwrap();
    assert_eq!(holders(&db), 0);
}
