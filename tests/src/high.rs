//! Databases whose numbers stand just below 2^32, so that a short workload takes them past it.
//!
//! A new database is moved there: the sequences of its log, by which segments are named, the numbers of its
//! tables, the generations of its manifests, and the clock. No byte of what would lie before is held.

use std::path::Path;

use strandline::manifest::Manifest;
use strandline::{DatasetId, Options, files};
use strandline_wal::batch::Batch;
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Disk, read_file, write_all_at};
use strandline_wal::marks;
use strandline_wal::segment::{SEGMENT_HEADER_LEN, SegmentHeader, parse_file_name, path_of};

use crate::run::{ROOT, Tally};

/// What an unsigned number of 32 bits cannot hold.
pub const WRAP: u64 = 1 << 32;
/// How many records are written before the sequence is [`WRAP`], tables and manifests likewise.
const RECORDS_BEFORE: u64 = 12;
const FILES_BEFORE: u64 = 2;

/// Makes an empty database just below [`WRAP`]. The machine has made no call then.
///
/// # Panics
/// Where it cannot be made.
pub fn machine(machine: SimEnv, options: &Options) -> SimEnv {
    machine.clock.jump_to_ms(WRAP - 1);
    let env = machine.env();
    let db = options.clone().open_with(ROOT, env.clone()).unwrap();
    db.keyspace("map-0").unwrap();
    db.close().unwrap();
    let disk = env.disk.as_ref();
    let dir = files::dataset(Path::new(ROOT), &DatasetId::default());
    let path = files::manifest(&dir);
    let mut manifest = Manifest::load(disk, &path).unwrap().unwrap();
    let by = WRAP - RECORDS_BEFORE;
    for log in &mut manifest.logs {
        log.position.seq += by;
        log.complete_seq += by;
    }
    for entry in manifest.epochs.iter_mut().flatten() {
        entry.first_seq += by;
    }
    manifest.next_file = WRAP - FILES_BEFORE;
    manifest.generation = WRAP - FILES_BEFORE;
    let region = files::region(&dir, manifest.region);
    disk.remove(&region.join(marks::FILE_NAME)).unwrap();
    for entry in disk.list(&region).unwrap() {
        if parse_file_name(&entry.name).is_some() {
            raise(disk, &region, &entry.name, by);
        }
    }
    manifest.store(disk, &path).unwrap();
    machine.disk.settle();
    SimEnv {
        disk: machine.disk.fork(),
        ..machine
    }
}

/// Writes a segment anew, with every sequence in it higher, and growing as an open leaves it.
fn raise(disk: &dyn Disk, region: &Path, name: &str, by: u64) {
    let path = region.join(name);
    let bytes = read_file(disk, &path, u64::MAX).unwrap();
    let mut header = SegmentHeader::decode(&bytes, &path).unwrap();
    header.first_seq += by;
    let mut raised = header.encode().to_vec();
    let (mut at, mut chain) = (SEGMENT_HEADER_LEN, header.prev_crc);
    while let Ok(batch) = Batch::decode(&bytes[at..]) {
        at += batch.header.batch_len();
        let mut header = batch.header;
        header.first_seq += by;
        header.prev_crc = chain;
        let (head, crc) = header.encode();
        raised.extend_from_slice(&head);
        raised.extend_from_slice(batch.payload);
        chain = crc;
    }
    assert!(raised.len() > SEGMENT_HEADER_LEN, "{name}: no batch");
    disk.remove(&path).unwrap();
    let path = path_of(region, header.log.shard, header.first_seq);
    write_all_at(disk.create(&path).unwrap().as_ref(), &raised, 0).unwrap();
}

/// Counts which numbers of the database have passed [`WRAP`].
///
/// # Panics
/// Where its manifest cannot be read.
pub fn note(machine: &SimEnv, tally: &mut Tally) {
    let dir = files::dataset(Path::new(ROOT), &DatasetId::default());
    let path = files::manifest(&dir);
    let files = machine.disk.files();
    let manifest = Manifest::decode(&files[&path], &path).unwrap();
    let names = files.keys().filter_map(|path| path.file_name()?.to_str());
    let segments = names.filter_map(parse_file_name);
    let first_seq = segments.map(|(_, first_seq)| first_seq).max();
    let flushed_seq = manifest.logs.iter().map(|log| log.position.seq).max();
    let table = manifest.tables().map(|table| table.identity.number).max();
    let millis = manifest.complete_timestamp.millis();
    for (what, number) in [
        ("segments past 2^32", first_seq),
        ("flushed sequences past 2^32", flushed_seq),
        ("tables past 2^32", table),
        ("manifests past 2^32", Some(manifest.generation)),
        ("times past 2^32", Some(millis)),
    ] {
        tally.add(what, u64::from(number >= Some(WRAP)));
    }
}
