//! Small databases, tables and disks in memory that the targets start from.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use strandline::table::{Entry, EntryKind, Identity, TableBuilder, TableOptions};
use strandline::{Background, Database, Options};
use strandline_wal::Hlc;
use strandline_wal::io::sim::{SimDisk, SimEnv};
use strandline_wal::io::{Access, Disk, Env, write_all_at};

/// Where databases lie.
pub const ROOT: &str = "/db";

/// An empty disk in memory.
pub fn memory() -> (Env, Arc<SimDisk>) {
    let machine = SimEnv::new(1);
    let disk = Arc::new(machine.disk.clone());
    let env = machine.env();
    env.disk
        .create_dir_all(Path::new(ROOT))
        .expect("an empty disk in memory");
    (env, disk)
}

/// Writes a file, in the place of the one that is there.
pub fn put(disk: &dyn Disk, path: &Path, bytes: &[u8]) {
    if let Some(dir) = path.parent() {
        disk.create_dir_all(dir).expect("memory takes it");
    }
    let file = match disk.open(path, Access::Write) {
        Ok(file) => file,
        Err(_) => disk.create(path).expect("a new file in memory"),
    };
    file.set_len(0).expect("memory takes it");
    write_all_at(file.as_ref(), bytes, 0).expect("memory takes it");
}

/// Settings under which a few writes make every kind of file, and all memory together stays small.
pub fn small_options() -> Options {
    Options {
        background: Background::Manual,
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        large_value_len_min: 256,
        cache_len_max: 64 << 10,
        reserve_len_max: 8 << 10,
        run_count_max: 4,
        ..Options::default()
    }
}

/// The files of a closed database: tables with values and with pointers, sealed segments that are in
/// tables and that are not, a growing one, and the small files. Zeros at the end of segments are cut.
pub fn database() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let machine = SimEnv::new(2);
        write_database(&machine).expect("a new database in memory");
        let files = machine.disk.files().into_iter();
        files
            .map(|(path, mut bytes)| {
                let name = path.display().to_string();
                if name.ends_with(".seg") {
                    let len = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
                    // A footer ends the file; behind a growing log a few zeros say as much as many.
                    bytes.truncate((len + 64).min(bytes.len()));
                }
                (name, bytes)
            })
            .filter(|(name, _)| !name.contains("/spare-"))
            .collect()
    })
}

fn write_database(machine: &SimEnv) -> strandline::Result<()> {
    let open =
        || -> strandline::Result<Database> { small_options().open_with(ROOT, machine.env()) };
    let db = open()?;
    let map = db.keyspace("map")?;
    let other = db.keyspace("other")?;
    for n in 0..24u32 {
        let len = if n % 6 == 5 { 400 } else { 20 };
        map.put(n.to_be_bytes(), vec![n as u8; len])?;
    }
    db.flush()?;
    map.delete(3u32.to_be_bytes())?;
    map.put(5u32.to_be_bytes(), vec![7; 30])?;
    other.put(b"only", b"one")?;
    db.flush()?;
    other.put(b"two", vec![2; 300])?;
    db.close()?;
    drop((map, other, db));
    let db = open()?;
    let map = db.keyspace("map")?;
    map.put(b"last", b"in the log alone")?;
    map.delete(9u32.to_be_bytes())?;
    // Without a close: the last segment stays as it grew.
    drop((map, db));
    Ok(())
}

/// A table of its own with all kinds of entries, several versions, and some chunks.
pub fn table() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| build_table().expect("memory"))
}

fn build_table() -> strandline_wal::Result<Vec<u8>> {
    let (_, disk) = memory();
    let path = Path::new("/db/0000000001.tbl");
    let identity = Identity {
        number: 1,
        lineage: [7; 16],
    };
    let shared: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
    let mut builder = TableBuilder::create(shared, path, identity, TableOptions::default())?;
    for n in 0..40u32 {
        let name = n.to_be_bytes();
        if n % 7 == 3 {
            builder.add(Entry {
                name: &name,
                version: Hlc(10),
                kind: EntryKind::Tombstone,
                value: b"",
            })?;
        }
        builder.add(Entry {
            name: &name,
            version: Hlc(9),
            kind: EntryKind::Value,
            value: b"some value",
        })?;
    }
    builder.finish()?;
    let bytes = disk.files().remove(path);
    Ok(bytes.expect("the file that was written"))
}
