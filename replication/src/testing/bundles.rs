//! Bundles of the test store: copies of its files, staged and installed so that a crash at any step
//! leaves the old dataset or the new one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use strandline_wal::io::{Access, Env, read_file, replace_file, write_all_at};
use strandline_wal::segment::{parse_file_name, path_of};
use strandline_wal::{IoContext, ShardId};

use super::{Meta, TestStore, decode_meta, encode_meta, read_meta};
use crate::bundle::{Bundle, BundleFile, BundlePlace, BundlePlan, BundleSink, BundleSource};
use crate::error::{Error, Result};
use crate::ids::{BundleId, ShardEnd};
use crate::store::LogSource;

pub(super) type Pin = Arc<(BundlePlan, Vec<Vec<u8>>)>;

/// Kinds of files in a test bundle.
const SEGMENT: u8 = 1;
const META: u8 = 2;

pub(super) struct TestBundles(Arc<TestStore>);

struct TestBundle(Pin, Arc<TestStore>);

impl TestBundles {
    pub fn new(store: Arc<TestStore>) -> TestBundles {
        TestBundles(store)
    }

    fn pin(&self) -> Pin {
        let store = &self.0;
        let (mut files, mut contents) = (Vec::new(), Vec::new());
        let mut put = |kind, number, bytes: Vec<u8>| {
            let digest = *blake3::hash(&bytes).as_bytes();
            files.push(BundleFile {
                kind,
                number,
                len: bytes.len() as u64,
                digest,
            });
            contents.push(bytes);
        };
        let mut ends = Vec::new();
        for shard in store.shards() {
            ends.push(store.end(shard));
            for segment in store.log(shard).segments() {
                let len = usize::try_from(segment.data_len()).unwrap();
                let mut bytes = segment.read(0, len).unwrap().to_vec();
                if let Some(sealed) = segment.sealed() {
                    bytes.extend_from_slice(&sealed.bytes);
                }
                put(
                    SEGMENT,
                    u64::from(shard.0) << 48 | segment.first_seq(),
                    bytes,
                );
            }
        }
        put(META, 0, encode_meta(&store.inner.lock().meta));
        let id = BundleId(store.env.random.next_id());
        Arc::new((BundlePlan { id, ends, files }, contents))
    }
}

impl BundleSource for TestBundles {
    fn open(&self, again: Option<BundleId>) -> Result<Option<Box<dyn Bundle>>> {
        let known = again.and_then(|id| self.0.pins.lock().get(&id).cloned());
        let pin = known.unwrap_or_else(|| {
            let pin = self.pin();
            self.0.pins.lock().insert(pin.0.id, Arc::clone(&pin));
            pin
        });
        Ok(Some(Box::new(TestBundle(pin, Arc::clone(&self.0)))))
    }
}

impl Bundle for TestBundle {
    fn plan(&self) -> &BundlePlan {
        &self.0.0
    }

    fn read(&mut self, file: u32, at: u64, len_max: usize) -> Result<Vec<u8>> {
        if let Some(len) = *self.1.reads.lock() {
            return Ok(vec![0; len]);
        }
        let bytes = &self.0.1[file as usize];
        let at = usize::try_from(at).unwrap();
        Ok(bytes[at..bytes.len().min(at + len_max)].to_vec())
    }
}

pub(super) struct TestSink {
    store: Arc<TestStore>,
    dir: PathBuf,
    plan: BundlePlan,
}

impl TestSink {
    pub fn new(store: Arc<TestStore>) -> TestSink {
        let dir = store.dir.join("staging");
        TestSink {
            store,
            dir,
            plan: BundlePlan::default(),
        }
    }

    fn path(&self, file: &BundleFile) -> PathBuf {
        staged_path(&self.dir, file.kind, file.number)
    }

    fn part(&self) -> PathBuf {
        self.dir.join("part")
    }

    /// The first byte that is not staged.
    fn place(&self) -> BundlePlace {
        let disk = self.store.env.disk.as_ref();
        let missing = |f: &BundleFile| disk.stat(&self.path(f)).is_err();
        let file = self
            .plan
            .files
            .iter()
            .position(missing)
            .unwrap_or(self.plan.files.len());
        let at = disk.stat(&self.part()).map_or(0, |stat| stat.len);
        BundlePlace {
            id: self.plan.id,
            file: file as u32,
            at,
        }
    }
}

fn staged_path(dir: &Path, kind: u8, number: u64) -> PathBuf {
    dir.join(format!("{kind}-{number}"))
}

impl BundleSink for TestSink {
    fn staged(&self) -> Option<BundlePlace> {
        let disk = self.store.env.disk.as_ref();
        let id = read_file(disk, &self.dir.join("id"), 16).ok()?;
        Some(BundlePlace {
            id: BundleId(id.try_into().ok()?),
            file: 0,
            at: 0,
        })
    }

    fn begin(&mut self, plan: &BundlePlan) -> Result<BundlePlace> {
        let disk = self.store.env.disk.as_ref();
        if self.staged().is_none_or(|place| place.id != plan.id) {
            disk.remove_dir_all(&self.dir).during("remove", &self.dir)?;
            disk.create_dir_all(&self.dir).during("create", &self.dir)?;
            let path = self.dir.join("id");
            replace_file(disk, &path, &plan.id.0).during("write", &path)?;
        }
        self.plan = plan.clone();
        Ok(self.place())
    }

    fn write(&mut self, file: u32, at: u64, bytes: &[u8]) -> Result<()> {
        let disk = self.store.env.disk.as_ref();
        let (entry, part) = (self.plan.files[file as usize], self.part());
        let open = match at {
            0 => disk.create(&part),
            _ => disk.open(&part, Access::Write),
        };
        let handle = open.during("open", &part)?;
        write_all_at(handle.as_ref(), bytes, at).during("write", &part)?;
        if at + (bytes.len() as u64) < entry.len {
            return Ok(());
        }
        let whole = read_file(disk, &part, entry.len).during("read", &part)?;
        disk.remove(&part).during("remove", &part)?;
        if *blake3::hash(&whole).as_bytes() != entry.digest {
            let (expected, found) = ("its digest".to_owned(), "another".to_owned());
            return Err(Error::Damaged {
                what: "bundle file",
                expected,
                found,
            });
        }
        let path = self.path(&entry);
        replace_file(disk, &path, &whole).during("write", &path)?;
        Ok(())
    }

    fn install(&mut self) -> Result<Vec<ShardEnd>> {
        let (env, dir) = (&self.store.env, &self.store.dir);
        let mut inner = self.store.inner.lock();
        inner.shards.clear();
        let marker = dir.join("installing");
        replace_file(env.disk.as_ref(), &marker, b"x").during("write", &marker)?;
        roll_forward(env, dir)?;
        inner.meta = read_meta(env, dir)?.expect("it was installed");
        inner.shards = self.store.reopen(&inner.meta)?;
        drop(inner);
        Ok(self
            .store
            .shards()
            .into_iter()
            .map(|shard| self.store.end(shard))
            .collect())
    }
}

/// Finishes an installation that was begun; every step may be done again.
pub(super) fn roll_forward(env: &Env, dir: &Path) -> Result<()> {
    let disk = env.disk.as_ref();
    let marker = dir.join("installing");
    if disk.stat(&marker).is_err() {
        return Ok(());
    }
    let staging = dir.join("staging");
    for entry in disk.list(dir).during("list", dir)? {
        if parse_file_name(&entry.name).is_some() {
            let path = dir.join(&entry.name);
            disk.remove(&path).during("remove", &path)?;
        }
    }
    let own = read_meta(env, dir)?.expect("it is written at open");
    for entry in disk.list(&staging).during("list", &staging)? {
        let Some((kind, number)) = entry.name.split_once('-') else {
            continue;
        };
        let Ok(number) = number.parse::<u64>() else {
            continue;
        };
        let from = staging.join(&entry.name);
        let bytes = read_file(disk, &from, u64::MAX).during("read", &from)?;
        let (to, bytes) = match kind {
            "1" => {
                let shard = ShardId((number >> 48) as u16);
                (path_of(dir, shard, number & ((1 << 48) - 1)), bytes)
            }
            _ => {
                // Everything of the leader's but the promise, which is this node's own.
                let meta = Meta {
                    promise: own.promise,
                    ..decode_meta(&bytes)
                };
                (dir.join("meta"), encode_meta(&meta))
            }
        };
        replace_file(disk, &to, &bytes).during("write", &to)?;
    }
    disk.remove(&marker).during("remove", &marker)?;
    disk.sync_dir(dir).during("sync", dir)?;
    disk.remove_dir_all(&staging).during("remove", &staging)?;
    Ok(())
}
