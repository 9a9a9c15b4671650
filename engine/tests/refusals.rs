//! Calls that are refused: by wrong names and settings, by what a node is, by what is closed, and by a disk
//! that fails any one of its calls.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use strandline::manifest::Manifest;
use strandline::replica::remote_status;
use strandline::verify::{recovery_plans, verify};
use strandline::{
    Background, Database, DatasetId, EntityRule, Error, ErrorKind, NodeConfig, NodeRole, Options,
    RegionId, Result, Role, ShardId, ShardRange, ShardRouter,
};
use strandline_wal::Error as LogError;
use strandline_wal::io::fault::{Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Disk, Env};

const ROOT: &str = "/db";

fn options() -> Options {
    Options {
        router: ShardRouter::hash(2).unwrap(),
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        reserve_len_max: 64 << 10,
        background: Background::Manual,
        ..Options::default()
    }
}

fn text_of<T>(result: Result<T>, kind: ErrorKind) -> String {
    let error = result.err().unwrap();
    assert_eq!(error.kind(), kind, "{error}");
    error.to_string()
}

#[track_caller]
fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word:?} is not in: {text}");
    }
}

#[test]
fn a_database_is_opened_as_it_was_created_or_told_how_it_was() {
    let machine = SimEnv::new(1);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    db.dataset("").unwrap();
    db.close().unwrap();
    let halves = |at: u64| {
        let range = |first, last, shard| ShardRange {
            first,
            last,
            shard: ShardId(shard),
        };
        ShardRouter::ranges(vec![range(0, at, 0), range(at + 1, u64::MAX, 1)]).unwrap()
    };
    let region = |region| NodeConfig {
        region: RegionId(region),
        ..NodeConfig::default()
    };
    let others = [
        (
            Options {
                node: region(4),
                ..options()
            },
            ["region", "4", "0"],
        ),
        (
            Options {
                router: ShardRouter::Single,
                ..options()
            },
            ["shard count", "1", "2"],
        ),
        (
            Options {
                router: halves(9),
                ..options()
            },
            [
                "router",
                "hash(2)",
                "ranges(0..=9 -> 0, 10..=18446744073709551615 -> 1)",
            ],
        ),
        (
            Options {
                entity_rule: EntityRule::FirstEight,
                ..options()
            },
            ["entity rule", "key hash", "first eight bytes"],
        ),
        (
            Options {
                entity_rule: EntityRule::PrefixHash(b'/'),
                ..options()
            },
            ["entity rule", "key hash", "hash of the prefix up to '/'"],
        ),
    ];
    for (other, words) in others {
        let text = text_of(
            other.clone().open_with(ROOT, machine.env()),
            ErrorKind::Operator,
        );
        says(&text, &["/db/primary", "open it as it was created"]);
        says(&text, &words);
        // A reader takes the layout as it is.
        other.open_read_only_with(ROOT, machine.env()).unwrap();
    }
    let out_of_range = Options {
        run_count_max: 17,
        ..options()
    };
    let text = text_of(
        out_of_range.open_with(ROOT, machine.env()),
        ErrorKind::Caller,
    );
    says(&text, &["run_count_max", "from 1 to 16", "17"]);
}

#[test]
fn a_dataset_under_another_name_is_not_taken_for_that() {
    let machine = SimEnv::new(1);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    db.keyspace("map").unwrap();
    db.close().unwrap();
    machine
        .disk
        .rename(Path::new("/db/primary"), Path::new("/db/other"))
        .unwrap();
    let text = text_of(
        options().open_with(ROOT, machine.env()),
        ErrorKind::Operator,
    );
    says(&text, &["/db/other", "dataset name", "primary"]);
}

#[test]
fn what_is_not_there_is_not_created_unless_that_was_asked_for() {
    let machine = SimEnv::new(1);
    let must_be_there = Options {
        create: false,
        ..options()
    };
    let hint = "it is created by opening it for writing";
    for opened in [
        must_be_there.clone().open_with(ROOT, machine.env()),
        options().open_read_only_with(ROOT, machine.env()),
    ] {
        says(
            &text_of(opened, ErrorKind::Caller),
            &["database", ROOT, hint],
        );
    }
    assert!(machine.disk.files().is_empty());
    let found = verify(Path::new(ROOT), &machine.env());
    says(&text_of(found, ErrorKind::Caller), &["database", ROOT]);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    says(
        &text_of(
            recovery_plans(
                Path::new(ROOT),
                &DatasetId::new("logs").unwrap(),
                &machine.env(),
            ),
            ErrorKind::Caller,
        ),
        &["dataset", "logs", "no manifest"],
    );
    db.close().unwrap();
    for db in [
        must_be_there.open_with(ROOT, machine.env()).unwrap(),
        options().open_read_only_with(ROOT, machine.env()).unwrap(),
    ] {
        let absent = db.dataset("logs");
        says(
            &text_of(absent, ErrorKind::Caller),
            &["dataset", "logs", "opening for writing"],
        );
        db.close().unwrap();
    }
}

#[test]
fn names_that_are_none_are_refused_everywhere() {
    let db = options().open_with(ROOT, SimEnv::new(1).env()).unwrap();
    let bad = "a/b";
    for text in [
        text_of(db.dataset(bad), ErrorKind::Caller),
        text_of(db.follower(bad), ErrorKind::Caller),
        text_of(db.is_follower(bad), ErrorKind::Caller),
        text_of(db.follow("127.0.0.1:1", bad), ErrorKind::Caller),
        text_of(remote_status("127.0.0.1:1", bad), ErrorKind::Caller),
    ] {
        says(&text, &["dataset name", bad]);
    }
    for name in ["", &"k".repeat(256)] {
        let text = text_of(db.keyspace(name), ErrorKind::Caller);
        says(
            &text,
            &[
                "keyspace name",
                "1 to 255 bytes",
                &format!("{} bytes", name.len()),
            ],
        );
    }
    assert!(!db.is_follower("").unwrap());
    let text = text_of(db.serve("nowhere"), ErrorKind::Caller);
    says(&text, &["address to listen on", "nowhere"]);
    let server = db.serve("127.0.0.1:0").unwrap();
    let address = server.address().to_string();
    for again in ["127.0.0.1:0", &address] {
        let text = text_of(db.serve(again), ErrorKind::Caller);
        says(&text, &["one that serves at", &address]);
    }
}

/// Following starts the node at a port that the system chooses. Serving later did not look at the address
/// it was given: the server stood at that port, and nobody found it where it was to be.
#[test]
fn a_node_that_follows_serves_where_it_is_told_or_says_that_it_cannot() {
    let db = options().open_with(ROOT, SimEnv::new(1).env()).unwrap();
    let following = db.follow("127.0.0.1:1", "").unwrap();
    let text = text_of(db.serve("nowhere"), ErrorKind::Caller);
    says(&text, &["address to listen on", "nowhere"]);
    let text = text_of(db.serve("127.0.0.1:1"), ErrorKind::Caller);
    says(&text, &["127.0.0.1:1 is not", "serve before you follow"]);
    let server = db.serve("127.0.0.1:0").unwrap();
    assert!(text.contains(&server.address().to_string()), "{text}");
    drop(following);
}

#[test]
fn what_is_closed_stays_closed() {
    let db = options().open_with(ROOT, SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let dataset = db.dataset("").unwrap();
    dataset.health().unwrap();
    db.close().unwrap();
    db.close().unwrap();
    for (result, what) in [
        (map.put("key", "other"), "dataset"),
        (map.delete("key"), "dataset"),
        (dataset.flush(), "dataset"),
        (dataset.compact(), "dataset"),
        (dataset.health(), "dataset"),
        (db.keyspace("new").map(|_| ()), "database"),
        (db.dataset("").map(|_| ()), "database"),
    ] {
        assert!(
            matches!(&result, Err(Error::Closed(closed)) if *closed == what),
            "{result:?}"
        );
    }
    // What was read stays readable: closing takes nothing back.
    assert_eq!(map.get("key").unwrap().unwrap(), "value");
}

#[test]
fn followers_and_readers_take_no_writes_and_say_why() {
    let machine = SimEnv::new(1);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    // A follower shows what it knows to be committed: what is in tables.
    db.flush().unwrap();
    let reader = options().open_read_only_with(ROOT, machine.env()).unwrap();
    assert_eq!(reader.dataset("").unwrap().role(), Role::Reader);
    let follower = db.follower("").unwrap();
    assert_eq!(follower.role(), Role::Follower);
    assert!(db.is_follower("").unwrap());
    for (db, why) in [
        (&reader, "it was opened for reading"),
        (&db, "it follows a leader"),
    ] {
        let map = db.keyspace("map").unwrap();
        let text = text_of(map.put("key", "other"), ErrorKind::Caller);
        says(&text, &["dataset primary", "takes no writes", why]);
        let text = text_of(db.keyspace("new"), ErrorKind::Caller);
        says(&text, &["keyspace", "new", "the leader creates keyspaces"]);
        assert_eq!(map.get("key").unwrap().unwrap(), "value");
        assert_eq!(db.run_background(10).unwrap(), 0);
    }
    reader.close().unwrap();
    // A node whose role is to follow opens everything like that.
    db.close().unwrap();
    let role = NodeRole::Follower;
    let options = Options {
        node: NodeConfig {
            role,
            ..NodeConfig::default()
        },
        ..options()
    };
    let db = options.open_with("/other", machine.env()).unwrap();
    let text = text_of(db.keyspace("new"), ErrorKind::Caller);
    says(&text, &["the leader creates keyspaces"]);
    assert_eq!(db.dataset("").unwrap().role(), Role::Follower);
}

#[test]
fn a_checkpoint_replaces_nothing() {
    let machine = SimEnv::new(1);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    db.checkpoint("/copy").unwrap();
    let text = text_of(db.checkpoint("/copy"), ErrorKind::Caller);
    says(&text, &["checkpoint directory", "does not exist", "/copy"]);
}

/// The stored manifest of the primary dataset, changed under good checksums.
fn craft_manifest(machine: &SimEnv, change: impl Fn(&mut Manifest)) {
    let path = Path::new("/db/primary/manifest");
    let mut manifest = Manifest::load(&machine.disk, path).unwrap().unwrap();
    change(&mut manifest);
    manifest.store(&machine.disk, path).unwrap();
}

/// A crafted manifest that says that every keyspace number is used made the next creation panic, and one
/// that says the same of file numbers the next flush.
#[test]
fn a_manifest_with_no_number_left_is_told_and_not_a_panic() {
    let machine = SimEnv::new(1);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    db.flush().unwrap();
    db.close().unwrap();
    craft_manifest(&machine, |manifest| manifest.next_keyspace = u32::MAX);
    let db = options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    assert_eq!(map.get("key").unwrap().unwrap(), "value");
    let text = text_of(db.keyspace("new"), ErrorKind::Caller);
    says(&text, &["keyspace", "new", "4294967294"]);
    map.put("key", "other").unwrap();
    db.close().unwrap();
    type Craft = fn(&mut Manifest);
    let crafts: [(&str, Craft); 4] = [
        ("next keyspace number", |m| {
            m.keyspaces.clear();
            m.next_keyspace = 0;
        }),
        ("next file number", |m| m.next_file = 0),
        ("next file number", |m| m.next_file = u64::MAX),
        ("next file number", |m| {
            m.next_file = m.runs[0][0].identity.number
        }),
    ];
    for (what, craft) in crafts {
        let crafted = SimEnv {
            disk: machine.disk.fork(),
            ..machine.clone()
        };
        craft_manifest(&crafted, craft);
        let text = text_of(options().open_with(ROOT, crafted.env()), ErrorKind::Restore);
        says(&text, &["/db/primary/manifest", what]);
    }
}

/// A database with tables, sealed segments, large values and a tail, closed.
fn filled(machine: &SimEnv) -> usize {
    let db = options().open_with(ROOT, machine.env()).unwrap();
    let map = db.keyspace("map").unwrap();
    for n in 0..200u32 {
        let len = if n.is_multiple_of(10) { 9_000 } else { 300 };
        map.put(n.to_be_bytes(), vec![n as u8; len]).unwrap();
        if n % 90 == 89 {
            db.flush().unwrap();
        }
    }
    db.close().unwrap();
    200
}

fn count(db: &Database) -> usize {
    db.keyspace("map")
        .unwrap()
        .iter()
        .map(Result::unwrap)
        .count()
}

type Work = fn(&Env) -> Result<()>;

fn reopen(env: &Env) -> Result<()> {
    options().open_with(ROOT, env.clone())?.close()
}

fn read(env: &Env) -> Result<()> {
    let db = options().open_read_only_with(ROOT, env.clone())?;
    assert_eq!(count(&db), 200);
    db.close()
}

fn write(env: &Env) -> Result<()> {
    let db = options().open_with(ROOT, env.clone())?;
    let map = db.keyspace("map")?;
    for n in 0..100u32 {
        map.put(n.to_be_bytes(), vec![n as u8; 1_000])?;
    }
    db.flush()?;
    db.dataset("")?.compact()?;
    db.close()
}

fn check(env: &Env) -> Result<()> {
    let report = verify(Path::new(ROOT), env)?;
    for problem in &report.problems {
        assert!(problem.path.starts_with(ROOT), "{problem:?}");
        assert!(problem.what.contains(FAILED), "{problem:?}");
    }
    recovery_plans(Path::new(ROOT), &DatasetId::default(), env)?;
    Ok(())
}

fn checkpoint(env: &Env) -> Result<()> {
    let db = options().open_with(ROOT, env.clone())?;
    db.checkpoint("/copy")?;
    db.close()
}

fn second_dataset(env: &Env) -> Result<()> {
    let db = options().open_with(ROOT, env.clone())?;
    db.dataset("second")?;
    db.follower("third")?;
    db.follower("second")?;
    db.close()
}

/// What the failing disk says.
const FAILED: &str = "os error 5";

/// Each call that the disk gets in the middle of each work fails once. The work succeeds without it or
/// names it, and what was acknowledged is there at the next open.
#[test]
fn a_disk_call_that_fails_is_named_and_loses_nothing() {
    let ready = SimEnv::new(1);
    let wanted = filled(&ready);
    let works: [(&str, Work); 6] = [
        ("reopen", reopen),
        ("read", read),
        ("write", write),
        ("check", check),
        ("checkpoint", checkpoint),
        ("second dataset", second_dataset),
    ];
    for (name, work) in works {
        let with_faults = || {
            let machine = SimEnv {
                disk: ready.disk.fork(),
                ..ready.clone()
            };
            let faults = FaultDisk::new(machine.env().disk);
            let env = Env {
                disk: Arc::new(faults.clone()),
                ..machine.env()
            };
            (machine, faults, env)
        };
        let (_, faults, env) = with_faults();
        work(&env).unwrap();
        let (call_count, mut refused) = (faults.call_count(), 0);
        assert!(call_count > 50, "{name}: {call_count} calls");
        for at in 0..call_count {
            let (machine, faults, env) = with_faults();
            let rule = faults.add(Rule::new(Effect::EIO).at_call(at));
            let outcome = work(&env);
            assert_eq!(faults.fired_count(rule), 1, "{name}: call {at}");
            drop(env);
            if let Err(error) = outcome {
                let text = error.to_string();
                says(&text, &[FAILED, " /"]);
                let is_io = matches!(
                    error,
                    Error::Log(LogError::Io { .. } | LogError::Poisoned { .. })
                );
                assert!(is_io, "{name}: call {at}: {text}");
                refused += 1;
            }
            let db = options()
                .open_with(ROOT, machine.env())
                .unwrap_or_else(|error| panic!("{name}: call {at}: {error}"));
            assert_eq!(count(&db), wanted, "{name}: call {at}");
            db.close().unwrap();
            let found = verify(Path::new(ROOT), &machine.env()).unwrap().problems;
            assert_eq!(found, [], "{name}: call {at}");
        }
        assert!(
            refused > call_count / 20,
            "{name}: {refused} of {call_count}"
        );
    }
}
