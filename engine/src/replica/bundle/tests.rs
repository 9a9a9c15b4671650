//! Tests of what a node takes of a bundle.

use strandline_wal::io::sim::{Damage, SimEnv};

use super::*;
use crate::options::Options;

#[test]
fn a_file_of_another_digest_is_refused_and_asked_for_again() {
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let dataset = db.follower("").unwrap();
    let mut sink = Sink::new(Arc::clone(dataset.inner()));
    let bytes = b"the bytes of a manifest";
    let plan = BundlePlan {
        id: BundleId([1; 16]),
        ends: Vec::new(),
        files: vec![BundleFile {
            kind: KIND_MANIFEST,
            number: 0,
            len: bytes.len() as u64,
            digest: *blake3::hash(bytes).as_bytes(),
        }],
    };
    sink.begin(&plan).unwrap();
    let mut damaged = *bytes;
    damaged[3] ^= 1;
    let refused = sink.write(0, 0, &damaged);
    assert!(
        matches!(refused, Err(ReplicationError::Damaged { .. })),
        "{refused:?}"
    );
    let place = sink.staged().unwrap();
    assert_eq!((place.file, place.at), (0, 0));
    sink.write(0, 0, bytes).unwrap();
    assert_eq!(sink.staged().unwrap().file, 1);
}

/// Makes a durable file.
fn put(machine: &SimEnv, path: &Path, bytes: &[u8]) {
    let disk = machine.env().disk;
    let dir = path.parent().unwrap();
    disk.create_dir_all(dir).unwrap();
    let file = disk.create(path).unwrap();
    write_all_at(file.as_ref(), bytes, 0).unwrap();
    file.sync().unwrap();
    for dir in dir.ancestors() {
        disk.sync_dir(dir).unwrap();
    }
}

/// What stands beside the data, and the data where it is to be kept, come through a death at every
/// call of an installation.
#[test]
fn an_installation_that_dies_loses_nothing_that_is_kept() {
    let (root, id) = (Path::new("/db"), DatasetId::new("primary").unwrap());
    let (from, to) = (install_dir(root, &id), files::dataset(root, &id));
    for (has_tail, keeps) in [(true, false), (false, true), (true, true)] {
        let ready = SimEnv::new(1);
        put(&ready, &from.join("manifest"), b"new");
        put(&ready, &to.join("manifest"), b"old");
        if has_tail {
            put(&ready, &files::divergent(&to).join("s00000/1"), b"tail");
        }
        if keeps {
            put(&ready, &from.join(format!("{KEEP}1/note")), b"");
        }
        let fork = || SimEnv {
            disk: ready.disk.fork(),
            ..ready.clone()
        };
        let whole = fork();
        finish_installs(&whole.env(), root).unwrap();
        for at in 0..=whole.disk.io_count() {
            let machine = fork();
            machine.disk.crash_at(at);
            let ended = finish_installs(&machine.env(), root);
            assert_eq!(ended.is_err(), at < whole.disk.io_count(), "call {at}");
            for damage in Damage::ALL {
                let again = machine.crash(at, damage);
                finish_installs(&again.env(), root).unwrap();
                let files = again.crash(1, Damage::LoseAll).disk.files();
                let has = |bytes: &[u8]| files.values().any(|file| file == bytes);
                let place = format!("call {at}, {damage:?}: {:?}", files.keys());
                assert_eq!(files[&to.join("manifest")], b"new", "{place}");
                assert!(has(b"old") || !keeps, "{place}");
                assert!(has(b"tail") || !has_tail, "{place}");
            }
        }
    }
}

/// A bundle names a segment by 16 bits of shard and 48 of its first record. What has more was no log of
/// ours: serving it ended in a panic.
#[test]
fn a_segment_that_a_bundle_cannot_name_is_refused() {
    let machine = SimEnv::new(1);
    let (dir, options) = (Path::new("/db"), Options::default());
    let manifest = Manifest::new(
        DatasetId::default(),
        RegionId(0),
        [1; 16],
        options.router,
        options.entity_rule,
    );
    let region = files::region(dir, manifest.region);
    let listed = || files_of(machine.env().disk.as_ref(), dir, &manifest);
    put(
        &machine,
        &region.join(file_name(ShardId(7), (1 << 48) - 1)),
        b"",
    );
    let found = listed().unwrap();
    let (kind, number, path) = &found[0];
    assert_eq!(*number, (8 << 48) - 1);
    assert_eq!(
        path_of(dir, manifest.region, *kind, *number).as_ref(),
        Some(path)
    );
    put(&machine, &region.join(file_name(ShardId(7), 1 << 48)), b"");
    let error = listed().unwrap_err().to_string();
    assert!(error.contains(&(1u64 << 48).to_string()), "{error}");
}

fn follower() -> (crate::Database, Sink) {
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let sink = Sink::new(Arc::clone(db.follower("").unwrap().inner()));
    (db, sink)
}

fn plan_of(files: &[(u8, u64, &[u8])]) -> BundlePlan {
    let file = |(kind, number, bytes): &(u8, u64, &[u8])| BundleFile {
        kind: *kind,
        number: *number,
        len: bytes.len() as u64,
        digest: *blake3::hash(bytes).as_bytes(),
    };
    BundlePlan {
        id: BundleId([1; 16]),
        ends: Vec::new(),
        files: files.iter().map(file).collect(),
    }
}

/// A peer decides what comes: only the next bytes of the plan are taken, and no name of its own.
#[test]
fn bytes_that_are_not_the_next_of_the_plan_are_refused() {
    let (_db, mut sink) = follower();
    let refused = |done: Result<(), ReplicationError>, what: &str| {
        let text = done.unwrap_err().to_string();
        assert!(text.contains(what), "{what:?} is not in: {text}");
    };
    assert!(sink.staged().is_none());
    refused(sink.write(0, 0, b"x"), "before its plan");
    for plan in [
        plan_of(&[]),
        plan_of(&[(KIND_TABLE, 1, b"t")]),
        plan_of(&[(KIND_MANIFEST, 1 << 16, b"m")]),
    ] {
        refused(sink.begin(&plan).map(|_| ()), "without a manifest");
    }
    let plan = plan_of(&[
        (KIND_TABLE, 1, b"a table"),
        (KIND_MARKS, 0, b"marks"),
        (9, 0, b"of another kind"),
        (KIND_MANIFEST, 0, b"a manifest"),
    ]);
    sink.begin(&plan).unwrap();
    refused(sink.write(4, 0, b"x"), "not in the plan");
    refused(sink.write(1, 0, b"marks"), "another place");
    refused(sink.write(0, 1, b" table"), "another place");
    refused(sink.write(0, 0, b"a table and more"), "another place");
    sink.write(0, 0, b"a ").unwrap();
    // The same plan goes on where it was; another one begins anew.
    let place = sink.begin(&plan).unwrap();
    assert_eq!((place.file, place.at), (0, 2));
    sink.write(0, 2, b"table").unwrap();
    sink.write(1, 0, b"marks").unwrap();
    refused(sink.write(2, 0, b"of another kind"), "not ours");
    refused(sink.install().map(|_| ()), "not complete");
    refused(sink.install().map(|_| ()), "not complete");
    let place = sink.begin(&plan).unwrap();
    assert_eq!((place.file, place.at), (0, 0));
}

#[test]
fn a_bundle_of_another_dataset_is_not_installed() {
    let (db, mut sink) = follower();
    let mut manifest = db.dataset("").unwrap().inner().store().manifest();
    manifest.dataset = DatasetId::new("other").unwrap();
    let bytes = manifest.encode();
    sink.begin(&plan_of(&[(KIND_MANIFEST, 0, &bytes)])).unwrap();
    sink.write(0, 0, &bytes).unwrap();
    let text = sink.install().unwrap_err().to_string();
    assert!(text.contains("of another dataset"), "{text}");
    db.dataset("").unwrap().health().unwrap();
}

#[test]
fn a_follower_that_comes_back_gets_the_bundle_that_it_began() {
    let options = Options {
        background: Background::Manual,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let bundles = Bundles::new(Arc::clone(db.dataset("").unwrap().inner()));
    let first = bundles.open(None).unwrap().unwrap().plan().clone();
    map.put("key", "later").unwrap();
    let mut again = bundles.open(Some(first.id)).unwrap().unwrap();
    assert_eq!(*again.plan(), first);
    for (n, file) in first.files.iter().enumerate() {
        let bytes = again.read(n as u32, 0, usize::MAX).unwrap();
        assert_eq!(*blake3::hash(&bytes).as_bytes(), file.digest);
        assert_eq!(again.read(n as u32, 3, 5).unwrap(), bytes[3..8]);
    }
    for other in [None, Some(BundleId([9; 16]))] {
        assert_ne!(bundles.open(other).unwrap().unwrap().plan().id, first.id);
    }
}

#[test]
fn a_bundle_is_made_beside_whoever_asked_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let db = Options::default().open(dir.path()).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("key", "value").unwrap();
    let bundles = Bundles::new(Arc::clone(db.dataset("").unwrap().inner()));
    // The lock is held by nobody while it is made: the answer is always there at once.
    let asked = bundles.open(None).unwrap();
    assert!(asked.is_none());
    let start = std::time::Instant::now();
    let bundle = loop {
        if let Some(bundle) = bundles.open(None).unwrap() {
            break bundle;
        }
        assert!(start.elapsed().as_secs() < 20);
        std::thread::sleep(std::time::Duration::from_millis(1));
    };
    assert!(!bundle.plan().files.is_empty());
    // One that nobody took is not left behind.
    assert!(bundles.open(None).unwrap().is_none());
    drop((bundle, bundles));
    let staging = files::staging(db.dataset("").unwrap().inner().store().dir());
    assert_eq!(std::fs::read_dir(staging).map_or(0, Iterator::count), 0);
}
