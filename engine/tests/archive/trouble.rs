//! Objects that are wrong or gone, and stores that fail.

use std::path::Path;
use std::sync::Arc;
use strandline::archive::{
    ArchiveError, ArchiveOptions, ArchiveStore, MemoryArchive, Target, Uploader, check, restore,
};
use strandline::{Database, Error, Result};
use strandline_replication::archive::{Base, Listed, Put, Root};
use strandline_wal::io::sim::SimEnv;

use crate::kit::*;

#[test]
fn a_base_beside_the_log_is_refused() {
    let store = MemoryArchive::default();
    let (env, db, model, mut uploader) = archived(&store, 1, 600);
    settle(&mut uploader);
    let objects = store.objects();
    let bases: Vec<&String> = objects.keys().filter(|n| n.contains("/base/")).collect();
    let newest = bases.last().unwrap();
    let mut base = Base::decode(&objects[*newest], newest).unwrap();
    assert!(bases.len() > 1 && base.ends[0].position.seq > 0);
    base.ends[0].chain ^= 1;
    store.lose(newest);
    store.put(newest, &base.encode()).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    let is_it = |error: &Error| matches!(error, Error::Archive(ArchiveError::Gap(gap)) if gap.object == **newest);
    assert!(is_it(&error), "{error}");
    let (found, report) = restored(&store, 1, &Target::Latest).unwrap();
    assert!(found == model.at(model.ops.len()) && report.base < base.timestamp);
    // One under another's name.
    store.lose(newest);
    store.put(newest, &objects[bases[0]]).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    assert!(error.to_string().contains("another place"), "{error}");
    drop(db);
}

#[test]
fn a_segment_of_another_log_is_found() {
    let made = |seed: u64| {
        let env = SimEnv::new(seed);
        env.clock.jump_to_ms(START_MS);
        let db = options(1).open_with("/db", env.env()).unwrap();
        let store = MemoryArchive::default();
        let shared = Arc::new(store.clone());
        let options = ArchiveOptions::default();
        let mut uploader = Uploader::new(&db.dataset("").unwrap(), shared, options);
        settle(&mut uploader);
        for n in 0..600u64 {
            let map = db.keyspace("map").unwrap();
            map.put(n.to_be_bytes(), vec![seed as u8; 500]).unwrap();
        }
        settle(&mut uploader);
        let names = store.objects().into_keys();
        let segments: Vec<String> = names.filter(|name| name.ends_with(".seg")).collect();
        (env, store, segments)
    };
    let ((env, store, ours), (_, other, theirs)) = (made(1), made(2));
    assert!(ours.len() > 2, "{ours:?}");
    store.lose(&ours[1]);
    store.put(&ours[1], &other.objects()[&theirs[1]]).unwrap();
    let error = check(&env.env(), &store, &id(), None).unwrap_err();
    assert!(error.to_string().contains("does not continue"), "{error}");
}

/// A store that does something before a put.
struct Hooked {
    store: MemoryArchive,
    hook: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl ArchiveStore for Hooked {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put, ArchiveError> {
        match (self.hook)(name) {
            true => self.store.put(name, bytes),
            false => Err(ArchiveError::Store {
                object: name.to_owned(),
                what: "503".to_owned(),
            }),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        self.store.get(name)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>, ArchiveError> {
        self.store.list(prefix)
    }

    fn delete(&self, name: &str) -> Result<(), ArchiveError> {
        self.store.delete(name)
    }

    fn request_count(&self) -> u64 {
        self.store.request_count()
    }
}

#[test]
fn a_log_that_is_dropped_under_the_uploader_is_a_break_and_a_new_base() {
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = Arc::new(options(1).open_with("/db", env.env()).unwrap());
    let store = MemoryArchive::default();
    let put = |db: &Database, count: u64| {
        let map = db.keyspace("map").unwrap();
        for n in 0..count {
            map.put((n % 300).to_be_bytes(), vec![n as u8; 500])
                .unwrap();
        }
    };
    let (its, is_done) = (Arc::clone(&db), std::sync::atomic::AtomicBool::new(false));
    let hook = move |name: &str| {
        let order = std::sync::atomic::Ordering::Relaxed;
        if name.contains("/log/") && !is_done.swap(true, order) {
            put(&its, 900);
            its.dataset("").unwrap().flush().unwrap();
            its.run_background(100).unwrap();
        }
        true
    };
    let hooked = Hooked {
        store: store.clone(),
        hook: Box::new(hook),
    };
    let limited = ArchiveOptions {
        log_len_max: 1,
        ..often()
    };
    put(&db, 900);
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::new(hooked), limited);
    settle(&mut uploader);
    assert_eq!(uploader.status().break_count, 1);
    env.clock.advance_ms(10_000);
    settle(&mut uploader);
    let map = db.keyspace("map").unwrap();
    let (found, _) = restored(&store, 1, &Target::Latest).unwrap();
    assert_eq!(found.len(), map.iter().count());
    check(&env.env(), &store, &id(), None).unwrap();
}

#[test]
fn a_base_names_only_what_is_there() {
    let store = MemoryArchive::default();
    let (env, db, _, mut uploader) = archived(&store, 1, 300);
    db.dataset("").unwrap().flush().unwrap();
    settle(&mut uploader);
    let newest = || {
        let objects = store.objects();
        let (name, bytes) = objects.iter().rfind(|(n, _)| n.contains("/base/")).unwrap();
        Base::decode(bytes, name).unwrap()
    };
    let before = newest();
    // As retention does once no base that is kept names them.
    for file in &before.files {
        store.lose(&file.object);
    }
    store.lose(&Root::new(&id(), before.lineage).base(&before.name()));
    let map = db.keyspace("map").unwrap();
    for n in 0..200u64 {
        map.put(n.to_be_bytes(), vec![1; 500]).unwrap();
    }
    settle(&mut uploader);
    let (objects, base) = (store.objects(), newest());
    assert!(base.timestamp > before.timestamp);
    let shared = base.files.iter().filter(|it| before.files.contains(it));
    assert!(shared.count() > 0);
    for file in &base.files {
        assert!(objects.contains_key(&file.object), "{file:?}");
    }
    drop(env);
}

#[test]
fn a_base_that_fails_is_tried_less_and_less() {
    let env = SimEnv::new(7);
    env.clock.jump_to_ms(START_MS);
    let db = options(1).open_with("/db", env.env()).unwrap();
    let store = MemoryArchive::default();
    let hooked = Hooked {
        store: store.clone(),
        hook: Box::new(|name| !name.contains("/file/")),
    };
    let mut uploader = Uploader::new(&db.dataset("").unwrap(), Arc::new(hooked), often());
    let (mut failed, mut dice, mut model) = (0, Dice(1), Model::default());
    for n in 0..600 {
        env.clock.advance_ms(1_000);
        write(&db, &mut dice, &mut model, START_MS + n * 1_000);
        failed += u64::from(uploader.step().is_err());
        assert_eq!(uploader.status().seqs, seqs(&db.dataset("").unwrap()));
    }
    assert!((4..12).contains(&failed), "{failed}");
}

#[test]
fn what_a_restore_is_told_is_looked_at() {
    let store = MemoryArchive::default();
    let (_, _db, model, mut uploader) = archived(&store, 2, 100);
    settle(&mut uploader);
    let some = Target::Position(vec![model.ops[50].seqs[0]]);
    let error = restored(&store, 2, &some).unwrap_err().to_string();
    assert!(error.contains("2 records, one of each shard"), "{error}");
    let env = SimEnv::new(1);
    let into = |dir: &str| {
        let target = Target::Latest;
        restore(&env.env(), &store, &id(), None, &target, Path::new(dir))
    };
    let error = into("/").unwrap_err();
    assert!(matches!(error, Error::Argument { .. }), "{error}");
    into("/out/").unwrap();
    let files = env.disk.files();
    assert!(files.keys().all(|path| path.starts_with("/out")));
    let is_staged = |path: &Path| path.to_string_lossy().contains("restoring");
    assert!(!files.keys().any(|path| is_staged(path)));
}
