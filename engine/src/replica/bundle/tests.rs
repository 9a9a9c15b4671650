//! Tests of what a node takes of a bundle.

use strandline_wal::io::sim::{Damage, SimEnv};

use super::*;
use crate::options::{Background, Options};

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
