//! Damage that a database finds by itself, at an open or by a scrub, and a follower that mends it by what
//! its leader has, over real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use strandline::repair::repair_from;
use strandline::replica::{Following, Server};
use strandline::verify::verify;
use strandline::{Background, Database, Durability, Error, ErrorKind, Options, ShardRouter};
use strandline_wal::io::Env;
use strandline_wal::io::sim::SimEnv;

fn options() -> Options {
    Options {
        durability: Durability::Os,
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        reserve_len_max: 64 << 10,
        // Files that are damaged stay what they are.
        settle_after: None,
        ..Options::default()
    }
}

fn put(db: &Database, from: u32, to: u32) {
    let map = db.keyspace("map").unwrap();
    for n in from..to {
        map.put(n.to_be_bytes(), [n as u8; 200]).unwrap();
    }
}

fn values(db: &Database) -> Vec<(Vec<u8>, Vec<u8>)> {
    let map = db.keyspace("map").unwrap();
    map.iter()
        .map(|entry| entry.map(|(key, value)| (key.to_vec(), value.to_vec())))
        .collect::<Result<_, _>>()
        .unwrap()
}

/// The files whose path has `part`, sorted.
fn files_of(root: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_of(&path, part)),
            false if path.to_string_lossy().contains(part) => found.push(path),
            false => {}
        }
    }
    found.sort();
    found
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn wait(what: &str, mut is_done: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_done() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn wait_for_all(leader: &Database, follower: &Database) {
    let wanted = leader.dataset("").unwrap().positions();
    let follower = follower.dataset("").unwrap();
    wait("the follower has everything", || {
        let status = follower.follow_status().unwrap();
        status.apply_lag == 0 && status.positions == wanted
    });
}

/// A leader with tables and segments, and its follower that has everything.
struct Pair {
    dir: tempfile::TempDir,
    leader: Database,
    _server: Server,
    address: String,
}

impl Pair {
    fn new() -> Pair {
        let dir = tempfile::tempdir().unwrap();
        let leader = options().open(dir.path().join("leader")).unwrap();
        leader.dataset("").unwrap();
        let server = leader.serve("127.0.0.1:0").unwrap();
        let address = server.address().to_string();
        Pair {
            dir,
            leader,
            _server: server,
            address,
        }
    }

    fn follower_dir(&self) -> PathBuf {
        self.dir.path().join("follower")
    }

    fn follower(&self, options: Options) -> (Database, Following) {
        let follower = options.open(self.follower_dir()).unwrap();
        let following = follower.follow(&self.address, "").unwrap();
        wait_for_all(&self.leader, &follower);
        (follower, following)
    }

    fn healing(&self) -> Options {
        Options {
            heal_from: vec!["127.0.0.1:1".to_owned(), self.address.clone()],
            ..options()
        }
    }
}

#[test]
fn a_node_with_a_damaged_file_heals_at_its_open_when_it_may() {
    let pair = Pair::new();
    put(&pair.leader, 0, 1_500);
    let (follower, following) = pair.follower(options());
    follower.flush().unwrap();
    following.stop();
    follower.close().unwrap();
    drop(follower);
    let root = pair.follower_dir();
    let table = files_of(&root, ".tbl").remove(0);
    let segment = files_of(&root, "/wal-").remove(0);
    let manifest = root.join("primary/manifest");
    for damaged in [table, segment, manifest] {
        flip(&damaged, 20);
        if damaged.ends_with("manifest") {
            flip(&root.join("primary/manifest.copy"), 20);
        }
        let before = std::fs::read(&damaged).unwrap();
        let refused = options().open(&root).expect_err(&damaged.to_string_lossy());
        assert_eq!(refused.kind(), ErrorKind::Restore, "{refused}");
        // Nobody there to ask: both reasons are told, and nothing is changed.
        let alone = Options {
            heal_from: vec!["127.0.0.1:1".to_owned()],
            ..options()
        };
        let error = alone.open(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Restore);
        assert!(matches!(error, Error::NotHealed { .. }), "{error:?}");
        assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
        assert!(error.to_string().contains(&refused.to_string()), "{error}");
        assert_eq!(std::fs::read(&damaged).unwrap(), before);
        let healed = pair.healing().open(&root).unwrap();
        let report = healed.last_heal().unwrap().unwrap();
        assert!(
            report.repair_count() > 0 && report.problems.is_empty(),
            "{report:?}"
        );
        assert_eq!(healed.stats().heal_count, 1);
        assert_eq!(values(&healed), values(&pair.leader));
        healed.close().unwrap();
        assert_eq!(verify(&root, &Env::real_pread()).unwrap().problems, []);
        assert!(!root.with_extension("copy").exists());
    }
}

#[test]
fn a_scrub_finds_rot_and_a_follower_mends_it_while_it_follows() {
    let pair = Pair::new();
    put(&pair.leader, 0, 1_500);
    let (follower, following) = pair.follower(Options {
        scrub_rate: 1 << 30,
        // Tables point into sealed segments, which stay.
        large_value_len_min: 128,
        run_count_max: 16,
        ..pair.healing()
    });
    follower.flush().unwrap();
    let root = pair.follower_dir();
    for (kind, next) in [(".tbl", 1_500), ("/wal-", 1_600)] {
        let heal_count = follower.stats().heal_count;
        let damaged = files_of(&root, kind).remove(0);
        flip(&damaged, 9_000);
        wait("it heals", || follower.stats().heal_count > heal_count);
        let report = follower.last_heal().unwrap().unwrap();
        assert!(report.repair_count() > 0, "{report:?}");
        let events = follower.events();
        let names: Vec<&str> = events.iter().map(|event| event.what.name()).collect();
        assert!(
            names.contains(&"damaged") && names.contains(&"healed"),
            "{names:?}"
        );
        // It follows on.
        put(&pair.leader, next, next + 100);
        wait_for_all(&pair.leader, &follower);
        assert_eq!(values(&follower), values(&pair.leader));
    }
    following.stop();
    follower.close().unwrap();
    assert_eq!(verify(&root, &Env::real_pread()).unwrap().problems, []);
}

/// Nobody leads what a leader has, so whoever answered would have an older copy.
#[test]
fn a_leader_tells_of_rot_and_mends_nothing_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        scrub_rate: 1 << 30,
        heal_from: vec!["127.0.0.1:1".to_owned()],
        ..options()
    };
    let leader = options.open(dir.path()).unwrap();
    put(&leader, 0, 500);
    leader.flush().unwrap();
    flip(&files_of(dir.path(), ".tbl")[0], 9_000);
    let dataset = leader.dataset("").unwrap();
    wait("the scrub finds it", || dataset.stats().damage_count > 0);
    let pass_count = dataset.stats().scrub_pass_count;
    wait("it goes on", || {
        dataset.stats().scrub_pass_count > pass_count
    });
    assert!(leader.last_heal().is_none());
    assert_eq!(leader.stats().heal_count, 0);
    leader.close().unwrap();
}

/// Each flipped byte of a table or a sealed segment is found by a pass, with its file; an intact database
/// gives none.
#[test]
fn a_pass_of_a_scrub_names_each_damaged_file() {
    let machine = SimEnv::new(3);
    let options = Options {
        background: Background::Manual,
        large_value_len_min: 1 << 10,
        ..options()
    };
    let db = options.open_with("/db", machine.env()).unwrap();
    put(&db, 0, 1_000);
    let map = db.keyspace("map").unwrap();
    for n in 0..40u32 {
        map.put(n.to_be_bytes(), vec![7; 3_000]).unwrap();
    }
    db.flush().unwrap();
    put(&db, 1_000, 1_100);
    let dataset = db.dataset("").unwrap();
    let report = dataset.scrub();
    assert_eq!(report.problems, []);
    assert!(
        report.len > 300 << 10 && report.batch_count > 40,
        "{report:?}"
    );
    let files = machine.disk.files();
    let stored = files.iter().filter(|(path, _)| {
        let name = path.to_string_lossy();
        name.ends_with(".tbl") || name.contains("manifest") || name.ends_with("epoch")
    });
    let sealed: Vec<&PathBuf> = files
        .keys()
        .filter(|p| p.to_string_lossy().contains("wal-"))
        .collect();
    let sealed = sealed[..sealed.len() - 1]
        .iter()
        .map(|path| (*path, &files[*path]));
    let mut count = 0;
    for (path, bytes) in stored.chain(sealed) {
        for at in (0..bytes.len()).step_by(bytes.len() / 13 + 1) {
            let is_epoch = path.ends_with("epoch");
            machine.disk.rot(path, at as u64, 1).unwrap();
            let found = dataset.scrub().problems;
            assert_eq!(dataset.damage(), found);
            machine.disk.rot(path, at as u64, 1).unwrap();
            let named = found.iter().filter(|problem| problem.path == *path);
            // A slot of the record of epochs may be the older one, or empty.
            assert!(
                named.count() > 0 || is_epoch,
                "{}, byte {at}: {found:?}",
                path.display()
            );
            count += 1;
        }
    }
    assert!(count > 60, "{count}");
    assert_eq!(dataset.scrub().problems, []);
    let stats = dataset.stats();
    assert!(stats.scrub_pass_count > count && stats.damage_count == 0);
    db.close().unwrap();
}

/// A follower has no copy to give. The leader's tells of how many shards it is where nothing else does.
#[test]
fn a_node_without_a_manifest_is_mended_by_who_leads_and_by_nobody_else() {
    let sharded = || Options {
        router: ShardRouter::hash(2).unwrap(),
        ..options()
    };
    let dir = tempfile::tempdir().unwrap();
    let leader = sharded().open(dir.path().join("leader")).unwrap();
    leader.dataset("").unwrap();
    let leading = leader.serve("127.0.0.1:0").unwrap();
    let address = leading.address().to_string();
    put(&leader, 0, 300);
    let follower = sharded().open(dir.path().join("follower")).unwrap();
    let following = follower.follow(&address, "").unwrap();
    let serving = follower.serve("127.0.0.1:0").unwrap();
    let peer = serving.address().to_string();
    let wanted = values(&leader);
    let root = dir.path().join("third");
    let third = sharded().open(&root).unwrap();
    let third_follows = third.follow(&address, "").unwrap();
    wait_for_all(&leader, &third);
    third_follows.stop();
    third.close().unwrap();
    drop(third);
    for manifest in files_of(&root, "manifest") {
        std::fs::remove_file(manifest).unwrap();
    }
    let refused = repair_from(&root, std::slice::from_ref(&peer), &Env::real_pread()).unwrap_err();
    let text = refused.to_string();
    assert!(text.contains(&format!("{peer} is a follower")), "{text}");
    let peers = [peer, address.clone()];
    let report = repair_from(&root, &peers, &Env::real_pread()).unwrap();
    assert!(report.datasets[0].is_replaced, "{report:?}");
    assert_eq!(report.problems, []);
    let third = sharded().open(&root).unwrap();
    let third_follows = third.follow(&address, "").unwrap();
    wait_for_all(&leader, &third);
    assert!(values(&third) == wanted);
    drop((following, third_follows));
}

/// What rots in a mapped file after it was read, and was right then, is served as it is until a scrub or a
/// merge finds it, but never copied into another file, where a checksum of its own would hide it.
#[test]
fn what_rots_after_it_was_read_is_not_merged_into_another_file() {
    for len in [200, 5_000] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            background: Background::Manual,
            large_value_len_min: 1 << 10,
            ..options()
        };
        let db = options.open(dir.path()).unwrap();
        let (dataset, map) = (db.dataset("").unwrap(), db.keyspace("map").unwrap());
        let value = |n: u32| [n.to_le_bytes(), [7; 4]].concat().repeat(len / 8);
        let put = |numbers: &mut dyn Iterator<Item = u32>| {
            for n in numbers {
                map.put(n.to_be_bytes(), value(n)).unwrap();
            }
            db.flush().unwrap();
        };
        put(&mut (0..100));
        // Most of the values are written over: a merge finds out, and the next one moves the others.
        put(&mut (0..100).filter(|n| n % 8 != 3));
        dataset.compact().unwrap();
        let all_is_well = || {
            for n in 0..100u32 {
                assert_eq!(map.get(n.to_be_bytes()).unwrap().unwrap(), value(n));
            }
        };
        all_is_well();
        let (part, wanted) = match len {
            200 => (".tbl", value(3)),
            _ => (".seg", value(3)),
        };
        let find = |bytes: Vec<u8>| bytes.windows(len).position(|w| w == wanted);
        let damaged = files_of(dir.path(), part).into_iter().find_map(|path| {
            let at = find(std::fs::read(&path).unwrap())?;
            Some((path, at))
        });
        let (path, at) = damaged.unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_told = |error: Error| {
            assert_eq!(error.kind(), ErrorKind::Restore, "{error}");
            assert!(error.to_string().contains(name), "{len}: {error}");
        };
        flip(&path, at as u64 + 9);
        assert_eq!(dataset.scrub().problems[0].path, path);
        is_told(map.get(3u32.to_be_bytes()).unwrap_err());
        flip(&path, at as u64 + 9);
        all_is_well();
        flip(&path, at as u64 + 9);
        for _ in 0..2 {
            is_told(dataset.compact().unwrap_err());
            is_told(map.get(3u32.to_be_bytes()).unwrap_err());
        }
        flip(&path, at as u64 + 9);
        dataset.compact().unwrap();
        all_is_well();
    }
}

/// So it is with what rots in the log before it is flushed.
#[test]
fn what_rots_in_the_log_is_not_flushed_into_a_table() {
    for len in [200, 5_000] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            background: Background::Manual,
            large_value_len_min: 1 << 10,
            ..options()
        };
        let db = options.open(dir.path()).unwrap();
        let map = db.keyspace("map").unwrap();
        let value = |n: u8| vec![n; len];
        for n in 0..10 {
            map.put([n], value(n)).unwrap();
        }
        let find = |bytes: Vec<u8>| bytes.windows(len).position(|w| w == value(7));
        let damaged = files_of(dir.path(), ".seg").into_iter().find_map(|path| {
            let at = find(std::fs::read(&path).unwrap())?;
            Some((path, at))
        });
        let (path, at) = damaged.unwrap();
        flip(&path, at as u64 + 9);
        for _ in 0..2 {
            let error = db.flush().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Restore, "{error}");
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(error.to_string().contains(name), "{len}: {error}");
        }
        flip(&path, at as u64 + 9);
        db.flush().unwrap();
        for n in 0..10 {
            assert_eq!(map.get([n]).unwrap().unwrap(), value(n));
        }
    }
}
