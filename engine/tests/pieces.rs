//! What goes into the bottom run goes there piece by piece: what that needs of the disk, what is seen
//! between two pieces, and what becomes of a merge that is given up there.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use strandline::stats::DatasetStats;
use strandline::verify::verify;
use strandline::{Background, Database, Durability, Options};
use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::SimEnv;

fn options() -> Options {
    Options {
        memtable_len_max: 8 << 20,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        run_count_max: 3,
        reserve_len_max: 0,
        durability: Durability::Os,
        background: Background::Manual,
        ..Options::default()
    }
}

/// A database on a disk that takes orders to fail.
struct Fixture {
    machine: SimEnv,
    faults: Arc<FaultDisk>,
    db: Database,
}

const COUNT: u32 = 4_000;

impl Fixture {
    /// With a bottom of many tables, all with values of 7.
    fn new() -> Fixture {
        let machine = SimEnv::new(1);
        let faults = Arc::new(FaultDisk::new(machine.env().disk));
        let env = Env {
            disk: Arc::clone(&faults) as _,
            ..machine.env()
        };
        let db = options().open_with("/db", env).unwrap();
        let fixture = Fixture {
            machine,
            faults,
            db,
        };
        fixture.put(0..COUNT, 7);
        fixture.db.dataset("").unwrap().compact().unwrap();
        let stats = fixture.stats();
        assert_eq!(stats.run_count, 1);
        assert!(stats.table_count > 10, "{} tables", stats.table_count);
        fixture
    }

    fn put(&self, keys: impl Iterator<Item = u32>, value: u8) {
        let map = self.db.keyspace("map").unwrap();
        for n in keys {
            map.put(n.to_be_bytes(), [value; 200]).unwrap();
        }
        self.db.flush().unwrap();
    }

    fn stats(&self) -> DatasetStats {
        self.db.dataset("").unwrap().stats()
    }

    /// Has the merge of everything die at its table of that number, and tells how many pieces were done.
    fn cut_at(&self, table: u64) -> u64 {
        let before = self.stats();
        let rule = Rule::new(Effect::EIO).on(Call::Create).path(".tbl");
        self.faults.add(rule.after(table));
        assert!(self.db.dataset("").unwrap().compact().is_err());
        assert_eq!(self.stats().compaction_count, before.compaction_count);
        self.stats().merge_piece_count - before.merge_piece_count
    }

    /// Every third key is 8, every fifth is gone, and the rest is 7: found by key, in order and by number.
    fn check(&self) {
        let expected: Vec<(u32, u8)> = (0..COUNT)
            .filter(|n| !n.is_multiple_of(5))
            .map(|n| (n, if n.is_multiple_of(3) { 8 } else { 7 }))
            .collect();
        let map = self.db.keyspace("map").unwrap();
        let found: Vec<(u32, u8)> = map
            .iter()
            .map(Result::unwrap)
            .map(|(key, value)| (u32::from_be_bytes(key[..].try_into().unwrap()), value[0]))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(map.iter().rev().count(), expected.len());
        assert_eq!(map.len().unwrap(), expected.len() as u64);
        for n in 0..COUNT {
            let value = map.get(n.to_be_bytes()).unwrap().map(|value| value[0]);
            let at = expected.binary_search_by_key(&n, |(key, _)| *key);
            assert_eq!(value, at.ok().map(|at| expected[at].1), "{n}");
        }
    }

    /// Adds two runs above the bottom, see [`Fixture::check`].
    fn change(&self) {
        self.put((0..COUNT).filter(|n| n.is_multiple_of(3)), 8);
        let map = self.db.keyspace("map").unwrap();
        for n in (0..COUNT).filter(|n| n.is_multiple_of(5)) {
            map.delete(n.to_be_bytes()).unwrap();
        }
        self.db.flush().unwrap();
    }
}

#[test]
fn a_merge_needs_room_for_what_is_new_and_for_one_piece() {
    let fixture = Fixture::new();
    fixture.put((0..COUNT).filter(|n| n.is_multiple_of(9)), 8);
    let stats = fixture.stats();
    let newer_len = stats.table_len / 9;
    let room = newer_len + 3 * (64 << 10);
    assert!(room < stats.table_len / 2, "{room} of {}", stats.table_len);
    let disk = &fixture.machine.disk;
    disk.limit(Some(disk.used_len() + room));
    fixture.db.dataset("").unwrap().compact().unwrap();
    let pieces = fixture.stats().merge_piece_count - stats.merge_piece_count;
    assert!(pieces > 10, "{pieces} pieces");
    assert_eq!(fixture.stats().run_count, 1);
    let map = fixture.db.keyspace("map").unwrap();
    let new = map.iter().map(Result::unwrap).filter(|(_, v)| v[0] == 8);
    assert_eq!(new.count(), COUNT.div_ceil(9) as usize);
}

/// The pieces that are there are what the runs above say as well, whatever is read, and a reader that began
/// before sees what it saw.
#[test]
fn between_two_pieces_everything_is_as_before() {
    for cut in [1, 5, 12] {
        let fixture = Fixture::new();
        let dataset = fixture.db.dataset("").unwrap();
        let map = fixture.db.keyspace("map").unwrap();
        let old = dataset.snapshot();
        fixture.change();
        let new = dataset.snapshot();
        let mut scan = map.iter();
        assert_eq!(scan.next().unwrap().unwrap().0[..], 1u32.to_be_bytes());
        assert!(fixture.cut_at(cut) > 0);
        assert_eq!(fixture.stats().run_count, 3);
        fixture.check();
        assert_eq!(old.len(&map).unwrap(), u64::from(COUNT));
        assert_eq!(new.len(&map).unwrap(), map.len().unwrap());
        assert_eq!(scan.count() as u64 + 1, map.len().unwrap());
        // A death there changes nothing.
        drop((old, new, map, dataset));
        let Fixture { machine, .. } = fixture;
        let problems = verify(Path::new("/db"), &machine.env()).unwrap().problems;
        assert_eq!(problems, []);
    }
}

#[test]
fn a_merge_that_was_cut_off_is_taken_up_where_it_stopped() {
    let fixture = Fixture::new();
    fixture.change();
    let bottom = fixture.stats();
    let done = fixture.cut_at(9);
    assert!(done >= 6, "{done} pieces");
    // What comes meanwhile stays above, and waits for its turn.
    fixture.put([COUNT].into_iter(), 9);
    let before = fixture.stats();
    assert_eq!(before.run_count, 4);
    fixture.machine.clock.advance_ms(200);
    assert_eq!(fixture.db.run_background(1).unwrap(), 1);
    let after = fixture.stats();
    assert_eq!(after.run_count, 2);
    let written = after.table_len_written - before.table_len_written;
    assert!(
        written < bottom.table_len * 3 / 4,
        "{written} of {}",
        bottom.table_len
    );
    let map = fixture.db.keyspace("map").unwrap();
    map.delete(COUNT.to_be_bytes()).unwrap();
    fixture.check();
    // One that names the runs as they were is not gone on with once they are others.
    fixture.change();
    assert!(fixture.cut_at(5) > 0);
    fixture.db.dataset("").unwrap().compact().unwrap();
    fixture.check();
    assert_eq!(fixture.stats().run_count, 1);
    assert_eq!(fixture.db.run_background(9).unwrap(), 0);
}

/// The disk has room for tables, and no longer for a manifest: the piece is done once there is.
#[test]
fn a_piece_whose_manifest_is_not_stored_is_as_if_it_never_was() {
    let fixture = Fixture::new();
    fixture.change();
    let rule = Rule::new(Effect::ENOSPC).on(Call::Create).path("manifest");
    fixture.faults.add(rule.after(5));
    let error = fixture.db.dataset("").unwrap().compact().unwrap_err();
    assert!(error.is_no_space(), "{error}");
    fixture.check();
    fixture.db.dataset("").unwrap().compact().unwrap();
    fixture.check();
    let disk = fixture.machine.env().disk;
    let files = disk.list(Path::new("/db/primary")).unwrap();
    let tables = files.iter().filter(|file| file.name.ends_with(".tbl"));
    assert_eq!(tables.count(), fixture.stats().table_count);
}
