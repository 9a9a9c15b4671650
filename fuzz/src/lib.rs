//! What the fuzz targets do, as plain functions, and the seeds that they start from.
//!
//! Each function takes foreign bytes and must come back: with what they hold or an error, never with a
//! panic. Where a checksum would stop every mutation at the door, the function mends it first, as an
//! attacker would. `fuzz/run` builds and runs the targets; `cargo test` runs the seeds.

use std::path::Path;
use std::sync::Arc;

use strandline::manifest::Manifest;
use strandline::table::{
    BlockCache, Cursor, Entry, EntryKind, Identity, InternalKey, OpenOptions, Table, TableBuilder,
    TableOptions,
};
use strandline_replication::message::Link;
use strandline_wal::batch::{Batch, Kind, Payload};
use strandline_wal::io::sim::SimDisk;
use strandline_wal::io::{Disk, Env, write_all_at};
use strandline_wal::open::open_read_only;
use strandline_wal::reader::{Reader, Step};
use strandline_wal::recover::{Known, plan};
use strandline_wal::segment::{Footer, SegmentHeader, path_of};
use strandline_wal::{Epoch, Hlc, LogId, ShardId};

/// A batch header, its payload and its records, as they are and with mended checksums.
pub fn batch(bytes: &[u8]) {
    walk_batch(bytes);
    let mut mended = bytes.to_vec();
    mend_batch(&mut mended, 0);
    walk_batch(&mended);
}

fn walk_batch(bytes: &[u8]) {
    if let Ok(batch) = Batch::decode(bytes) {
        assert!(batch.payload.len() <= bytes.len());
        for record in batch.records() {
            let Ok(record) = record else { break };
            assert!(record.body_at + record.body.len() <= batch.payload.len());
        }
    }
}

/// Writes magic, version and the checksums that the batch at `at` should have.
fn mend_batch(bytes: &mut [u8], at: usize) {
    let Some(batch) = bytes.get_mut(at..).filter(|batch| batch.len() >= 64) else {
        return;
    };
    batch[..4].copy_from_slice(b"SDLB");
    let len = u32::from_le_bytes([batch[20], batch[21], batch[22], batch[23]]) as usize;
    if let Some(payload) = batch.get(64..).and_then(|rest| rest.get(..len)) {
        let crc = crc32fast::hash(payload).to_le_bytes();
        batch[48..52].copy_from_slice(&crc);
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&batch[..52]);
    hasher.update(&batch[56..64]);
    let crc = hasher.finalize().to_le_bytes();
    batch[52..56].copy_from_slice(&crc);
}

/// A segment file: header, footer, recovery's plan, and a read of everything that it keeps.
pub fn segment(bytes: &[u8]) {
    open_segment(bytes);
    let mut mended = bytes.to_vec();
    if mended.len() >= 512 {
        mended[..4].copy_from_slice(b"SDLS");
        let crc = crc32fast::hash(&mended[..508]).to_le_bytes();
        mended[508..512].copy_from_slice(&crc);
        let mut at = 512;
        for _ in 0..16 {
            mend_batch(&mut mended, at);
            let Some(header) = mended.get(at..at + 64) else {
                break;
            };
            let len = u32::from_le_bytes([header[20], header[21], header[22], header[23]]);
            at = at.saturating_add(64).saturating_add(len as usize);
        }
        open_segment(&mended);
    }
}

fn open_segment(bytes: &[u8]) {
    let path = Path::new("/db");
    let Ok(header) = SegmentHeader::decode(bytes, path) else {
        return;
    };
    for at in [0, bytes.len() / 2] {
        // Found or refused; the result itself says nothing more.
        let _ = Footer::decode(&bytes[at..], header.nonce, at as u64, path);
    }
    let (env, disk) = memory();
    let file = path_of(path, header.log.shard, header.first_seq);
    put(disk.as_ref(), &file, bytes);
    let known = Known {
        log: LogId {
            ..header.log.clone()
        },
        lineage: None,
        durable_seq: 0,
        flushed_seq: header.first_seq - 1,
        led: &|_: Epoch| true,
        fork_seq: None,
    };
    let Ok(plan) = plan(disk.as_ref(), path, &known) else {
        return;
    };
    let Ok(log) = open_read_only(&env, &plan) else {
        return;
    };
    let mut reader = Reader::new(log, header.first_seq);
    while let Ok(Step::Batch(batch)) = reader.next() {
        assert!(batch.header.first_seq >= header.first_seq);
    }
}

/// A table file: opened, walked in both directions, looked up and verified.
pub fn table(bytes: &[u8]) {
    let (_, disk) = memory();
    let path = Path::new("/db/0000000001.tbl");
    put(disk.as_ref(), path, bytes);
    let options = OpenOptions::new(Arc::new(BlockCache::new(1 << 20)));
    let Ok(table) = Table::open(disk.as_ref(), path, None, &options) else {
        return;
    };
    let mut cursor = table.cursor();
    cursor.first();
    let mut last: Option<(Vec<u8>, Hlc)> = None;
    while cursor.is_valid() {
        let key = cursor.key();
        if let Some((name, version)) = &last {
            let before = InternalKey {
                name,
                version: *version,
            };
            assert!(before < key, "a table that opens is in order");
        }
        last = Some((key.name.to_vec(), key.version));
        cursor.next();
    }
    cursor.last();
    while cursor.is_valid() {
        cursor.prev();
    }
    // What a lookup or a check finds in damaged bytes is an error or not; it must come back.
    let _ = table.get(b"key", Hlc::MAX);
    let _ = table.verify();
}

/// A manifest, as it is and with mended checksums.
pub fn manifest(bytes: &[u8]) {
    let path = Path::new("manifest");
    let mut mended = bytes.to_vec();
    if mended.len() >= 64 {
        mended[..8].copy_from_slice(b"SDLM\x01\0\0\0");
        let len = (mended.len() - 64) as u64;
        mended[16..24].copy_from_slice(&len.to_le_bytes());
        let digest = *blake3::hash(&mended[64..]).as_bytes();
        mended[24..56].copy_from_slice(&digest);
        mended[56..60].fill(0);
        let crc = crc32fast::hash(&mended[..60]).to_le_bytes();
        mended[60..64].copy_from_slice(&crc);
    }
    for bytes in [bytes, &mended] {
        if let Ok(manifest) = Manifest::decode(bytes, path) {
            let again = Manifest::decode(&manifest.encode(), path);
            assert_eq!(
                again.ok().as_ref(),
                Some(&manifest),
                "what was read is written alike"
            );
        }
    }
}

/// A frame from the network, as it is and with a mended checksum.
pub fn message(bytes: &[u8]) {
    // Whatever it is, it is a message or an error.
    let _ = Link::default().open("peer", bytes.to_vec());
    if bytes.len() >= 24 {
        let mut mended = bytes.to_vec();
        let len = (mended.len() - 24) as u32;
        mended[4..8].copy_from_slice(&len.to_le_bytes());
        mended[8..16].copy_from_slice(&1u64.to_le_bytes());
        mended[17..24].fill(0);
        let crc = crc32fast::hash(&mended[4..]).to_le_bytes();
        mended[..4].copy_from_slice(&crc);
        let _ = Link::default().open("peer", mended);
    }
}

fn memory() -> (Env, Arc<SimDisk>) {
    let disk = Arc::new(SimDisk::new(1));
    let env = Env {
        disk: Arc::clone(&disk) as Arc<dyn Disk>,
        ..Env::real()
    };
    env.disk
        .create_dir_all(Path::new("/db"))
        .expect("an empty disk in memory");
    (env, disk)
}

fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    let file = disk.create(path).expect("a new file in memory");
    write_all_at(file.as_ref(), bytes, 0).expect("memory takes it");
}

/// Good inputs of every target, for mutation to start from: (target, bytes).
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let files = database_files();
    let mut seeds = vec![("batch", sample_batch()), ("table", sample_table())];
    for (name, bytes) in files {
        if name.ends_with(".seg") {
            seeds.push(("segment", bytes));
        } else if name.ends_with("manifest") {
            seeds.push(("manifest", bytes));
        } else if name.ends_with(".tbl") {
            seeds.push(("table", bytes));
        }
    }
    for kind in 1..=24u8 {
        let mut frame = vec![0; 24 + usize::from(kind) * 7];
        frame[16] = kind;
        seeds.push(("message", frame));
    }
    seeds
}

fn sample_batch() -> Vec<u8> {
    let mut payload = Payload::new();
    payload
        .push(Kind::Put, ShardId(0), &[b"\0\0\0\x01key"], b"value")
        .expect("it is small");
    payload
        .push(Kind::Delete, ShardId(0), &[b"\0\0\0\x01gone"], b"")
        .expect("it is small");
    let sealed = payload.seal(0);
    let mut bytes = vec![0; 64];
    bytes[4] = 2;
    bytes[6] = 64;
    bytes[8] = 1;
    bytes[16] = 2;
    bytes[20..24].copy_from_slice(&(sealed.bytes().len() as u32).to_le_bytes());
    bytes[28] = 1;
    bytes.extend_from_slice(sealed.bytes());
    mend_batch(&mut bytes, 0);
    bytes
}

fn sample_table() -> Vec<u8> {
    let (_, disk) = memory();
    let path = Path::new("/db/0000000001.tbl");
    let identity = Identity {
        number: 1,
        lineage: [7; 16],
    };
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
    let options = TableOptions::default();
    let mut builder = TableBuilder::create(shared, path, identity, options).expect("memory");
    for n in 0..40u32 {
        let name = n.to_be_bytes();
        let entry = Entry {
            name: &name,
            version: Hlc(9),
            kind: EntryKind::Value,
            value: b"some value",
        };
        builder.add(entry).expect("in order");
    }
    builder.finish().expect("memory");
    disk.files()
        .remove(path)
        .expect("the file that was written")
}

/// The files of a small database with every kind of file.
fn database_files() -> Vec<(String, Vec<u8>)> {
    let disk = SimDisk::new(2);
    let env = Env {
        disk: Arc::new(disk.clone()),
        ..Env::real()
    };
    let options = strandline::Options {
        background: strandline::Background::Manual,
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        ..strandline::Options::default()
    };
    let db = options
        .open_with("/db", env)
        .expect("a new database in memory");
    let map = db.keyspace("map").expect("a legal name");
    for n in 0..60u32 {
        map.put(
            n.to_be_bytes(),
            vec![n as u8; 50 + (n as usize % 5) * 1_500],
        )
        .expect("memory");
    }
    db.flush().expect("memory");
    map.delete(3u32.to_be_bytes()).expect("memory");
    db.close().expect("memory");
    let files = disk.files().into_iter();
    files
        .map(|(path, bytes)| (path.display().to_string(), bytes))
        .collect()
}
