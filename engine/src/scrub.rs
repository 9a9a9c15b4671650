//! Reads everything that an open database has stored, at a set rate, and tells what is damaged.
//!
//! What lies in files that nobody asks for rots unseen. A pass reads a dataset's root records, its tables
//! and its sealed segments; a growing segment is recovery's to judge. Where
//! [`Options::heal_from`](crate::Options::heal_from) names nodes, a follower mends what a pass finds.

use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::Error as LogError;
use strandline_wal::bug::planted;

use crate::database::{Database, Inner};
use crate::dataset::Dataset;
use crate::event::What;
use crate::files;
use crate::manifest::Slots;
use crate::store::epoch::EpochFile;
use crate::store::{Counters, Role, Store};
use crate::verify::{Pace, StoredSegment, VerifyReport};

/// Pause between two passes; ten times as long for each time that mending failed.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// Time that reading is ahead of its rate before it waits.
const AHEAD_NS: u64 = 10_000_000;

impl Store {
    /// Reads everything stored once and keeps what is damaged for [`Store::damage`]. Ends early where
    /// `goes_on` says so, with what was found by then.
    pub fn scrub(&self, pace: Pace<'_>, goes_on: &dyn Fn() -> bool) -> VerifyReport {
        let mut report = VerifyReport::default();
        self.scrub_roots(&mut report);
        let mut read_len = 0;
        let mut paced = |len: usize| {
            read_len += len as u64;
            pace(len);
        };
        let view = self.view();
        let tables: Vec<_> = view
            .runs
            .iter()
            .flat_map(|run| run.tables.clone())
            .collect();
        drop(view);
        for table in tables {
            if !goes_on() {
                return report;
            }
            report.file_count += 1;
            let mut damages = table.verify_at_pace(&mut paced);
            damages.retain(|_| !planted("scrub.tables"));
            if !damages.is_empty() {
                table.distrust();
            }
            damages.extend(table.warnings().iter().cloned());
            for damage in damages {
                report.problem(table.path(), &damage.into_error(table.path()));
            }
        }
        for log in self.logs() {
            let first_seqs: Vec<u64> = log.segments().iter().map(|s| s.first_seq()).collect();
            for first_seq in first_seqs {
                if !goes_on() {
                    return report;
                }
                // Held one at a time: a file that is held is not used again.
                let Some(segment) = log.segment(first_seq) else {
                    continue;
                };
                let Some(sealed) = segment.sealed() else {
                    continue;
                };
                let stored = StoredSegment {
                    path: segment.path(),
                    nonce: segment.header().nonce,
                    data_len: segment.data_len(),
                    digest: Some(sealed.footer.digest),
                };
                report.file_count += 1;
                match stored.check(self.env().disk.as_ref(), &mut paced) {
                    Ok(batch_count) => report.batch_count += batch_count,
                    // It was dropped meanwhile.
                    Err(_) if log.segment(first_seq).is_none() || planted("scrub.segments") => {}
                    Err(error) => {
                        segment.distrust();
                        report.problem(segment.path(), &error);
                    }
                }
            }
        }
        report.len = read_len;
        Counters::add(&self.counters().scrubbed_len, read_len);
        Counters::add(&self.counters().scrub_passes, 1);
        if !planted("scrub.damage") {
            let mut known = self.damage().lock();
            for problem in report.problems.iter().filter(|it| !known.contains(it)) {
                self.tell(What::Damaged {
                    path: problem.path.clone(),
                    what: problem.what.clone(),
                });
            }
            known.clone_from(&report.problems);
        }
        report
    }

    fn scrub_roots(&self, report: &mut VerifyReport) {
        let disk = self.env().disk.as_ref();
        let path = files::manifest(self.dir());
        // Held, so that no slot is half written.
        let slots = self.with_manifest(|| Slots::load(disk, &path));
        report.file_count += 3;
        match slots {
            Ok(Some(slots)) => {
                let is_told = !slots.is_behind && !planted("scrub.manifest");
                if let Some(error) = slots.other.filter(|_| is_told) {
                    report.problem(&path, &error);
                }
            }
            Ok(None) => {
                let error = LogError::corrupt(&path, 0, "manifest", "a manifest", "no such file");
                report.problem(&path, &error);
            }
            Err(error) => report.problem(&path, &error),
        }
        let path = files::epoch(self.dir());
        let held = self.epoch_file().lock();
        if let Err(error) = EpochFile::read(disk, &path) {
            report.problem(&path, &error);
        }
        drop(held);
    }
}

/// The thread that scrubs a database.
pub(crate) struct Scrubber {
    stop: Arc<Stop>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Stop {
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn is_stopped(&self) -> bool {
        *self.stopped.lock()
    }

    /// Waits for so long, or until it is stopped.
    fn wait(&self, time: Duration) {
        let mut stopped = self.stopped.lock();
        if !*stopped {
            self.changed.wait_for(&mut stopped, time);
        }
    }
}

impl Scrubber {
    /// Starts the thread; `rate` is in bytes per second.
    pub fn start(database: Weak<Inner>, rate: u64) -> std::io::Result<Scrubber> {
        let stop = Arc::new(Stop::default());
        let own = Arc::clone(&stop);
        let run = move || {
            let mut failed = 0;
            while !own.is_stopped() {
                let Some(inner) = database.upgrade() else {
                    return;
                };
                let database = Database::of(inner);
                for dataset in database.datasets() {
                    match visit(&database, &dataset, rate, &own) {
                        Ok(()) => failed = 0,
                        Err(()) => failed += 1,
                    }
                }
                drop(database);
                own.wait((PAUSE * 10u32.saturating_pow(failed)).min(PAUSE_MAX));
            }
        };
        let thread = std::thread::Builder::new()
            .name("strandline-scrub".to_owned())
            .spawn(run)?;
        Ok(Scrubber {
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Stops the thread and waits for it, unless this is it: the last one to hold a database that was
    /// dropped meanwhile.
    pub fn stop(&self) {
        *self.stop.stopped.lock() = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.lock().take()
            && thread.thread().id() != std::thread::current().id()
        {
            // A panic inside was told by the panic hook; what it was to find is found by the next.
            let _ = thread.join();
        }
    }
}

/// One pass over a dataset, and the mending of what it finds; an error where that failed.
fn visit(database: &Database, dataset: &Dataset, rate: u64, stop: &Stop) -> Result<(), ()> {
    let mut ahead_ns = 0;
    let mut pace = |len: usize| {
        ahead_ns += (len as u64).saturating_mul(1_000_000_000) / rate.max(1);
        if ahead_ns >= AHEAD_NS {
            stop.wait(Duration::from_nanos(std::mem::take(&mut ahead_ns)));
        }
    };
    let goes_on = || !stop.is_stopped();
    let store = dataset.inner().store();
    let report = store.scrub(&mut pace, &goes_on);
    let is_healed = store.options().heal_from.is_empty() || report.problems.is_empty();
    let is_mendable = store.role() == Role::Follower || planted("heal.role");
    if is_healed || !is_mendable || !goes_on() {
        return Ok(());
    }
    drop(store);
    database.heal(dataset, &goes_on)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::cell::Cell;

    use strandline_wal::io::sim::SimEnv;
    use strandline_wal::io::{Access, Disk};

    use super::*;
    use crate::options::{Background, Durability, Options};

    fn database(machine: &SimEnv, heal_from: &[&str]) -> Database {
        let options = Options {
            segment_len_start: 64 << 10,
            segment_len_max: 64 << 10,
            table_len_max: 64 << 10,
            reserve_len_max: 0,
            durability: Durability::Os,
            background: Background::Manual,
            heal_from: heal_from.iter().map(ToString::to_string).collect(),
            ..Options::default()
        };
        let db = options.open_with("/db", machine.env()).unwrap();
        let map = db.keyspace("map").unwrap();
        for round in 0..2 {
            for n in 0..600u32 {
                map.put(n.to_be_bytes(), [round; 300]).unwrap();
            }
            if round == 0 {
                db.flush().unwrap();
            }
        }
        db
    }

    fn damage_epochs(machine: &SimEnv) {
        let path = "/db/primary/epoch".as_ref();
        let file = machine.disk.open(path, Access::Write).unwrap();
        let len = file.len().unwrap() as usize;
        strandline_wal::io::write_all_at(file.as_ref(), &vec![7; len], 0).unwrap();
    }

    #[test]
    fn a_pass_ends_where_it_is_told_to_and_counts_only_as_a_whole() {
        let machine = SimEnv::new(1);
        let db = database(&machine, &[]);
        let store = db.dataset("").unwrap().inner().store();
        let whole = store.scrub(&mut |_| {}, &|| true);
        let passes = || db.dataset("").unwrap().stats().scrub_pass_count;
        assert_eq!(passes(), 1);
        // The root records are looked at in any case; then it is asked once for each file.
        for stop_at in 0..whole.file_count - 3 {
            let asked = Cell::new(0);
            let goes_on = || asked.replace(asked.get() + 1) < stop_at;
            let report = store.scrub(&mut |_| {}, &goes_on);
            assert!(report.file_count <= 3 + stop_at, "{report:?}");
            assert_eq!(asked.get(), stop_at + 1);
        }
        assert_eq!(passes(), 1);
    }

    #[test]
    fn a_record_of_epochs_that_rots_is_told_and_a_leader_mends_nothing() {
        let machine = SimEnv::new(1);
        let db = database(&machine, &["127.0.0.1:1"]);
        let dataset = db.dataset("").unwrap();
        damage_epochs(&machine);
        let stop = Stop::default();
        // At a rate that asks for waits; a stopped scrubber waits for nothing.
        *stop.stopped.lock() = true;
        visit(&db, &dataset, 1_000, &stop).unwrap();
        assert_eq!(dataset.damage(), [], "it was stopped before the end");
        *stop.stopped.lock() = false;
        visit(&db, &dataset, u64::MAX, &stop).unwrap();
        let damage = dataset.damage();
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(damage[0].path.ends_with("primary/epoch"), "{damage:?}");
        assert!(db.last_heal().is_none(), "a leader has nobody to ask");
    }

    #[test]
    fn a_scrubber_ends_with_its_database() {
        let machine = SimEnv::new(1);
        let db = database(&machine, &[]);
        drop(db);
        let scrubber = Scrubber::start(Weak::new(), 1).unwrap();
        scrubber.stop();
        scrubber.stop();
        assert!(scrubber.thread.lock().is_none());
    }
}
