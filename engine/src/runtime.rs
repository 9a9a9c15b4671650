//! Background work of one database: a thread that flushes, one that compacts, one for the logs and one
//! that syncs what a follower took, or none at all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::compact::GoesOn;

/// Longest sleep of a background thread: idle work is looked for this often.
const PATIENCE: Duration = Duration::from_millis(500);

/// The stores that background work is done for, as they are now.
pub(crate) type Stores = Arc<dyn Fn() -> Vec<Arc<Store>> + Send + Sync>;

/// One piece of work for a store. Returns whether there was something to do.
type Work = fn(&Store, GoesOn<'_>) -> Result<bool>;

/// Wakes background threads.
#[derive(Default)]
pub(crate) struct Signal {
    rung: Mutex<u64>,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Signal {
    pub fn ring(&self) {
        *self.rung.lock() += 1;
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.ring();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    fn wait(&self, seen: &mut u64) {
        let mut rung = self.rung.lock();
        if *rung == *seen && !self.is_stopped() {
            self.changed.wait_for(&mut rung, PATIENCE);
        }
        *seen = *rung;
    }
}

/// The background threads of one database; dropped, they are stopped and joined.
pub(crate) struct Runtime {
    signal: Arc<Signal>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Runtime {
    /// Starts the threads.
    pub fn start(signal: Arc<Signal>, stores: &Stores) -> std::io::Result<Runtime> {
        let runtime = Runtime {
            signal,
            threads: Mutex::default(),
        };
        runtime.spawn("strandline-flush", Arc::clone(stores), flush_step)?;
        runtime.spawn("strandline-compact", Arc::clone(stores), compact_step)?;
        runtime.spawn("strandline-log", Arc::clone(stores), log_step)?;
        runtime.spawn("strandline-sync", Arc::clone(stores), persist_step)?;
        Ok(runtime)
    }

    /// No threads: whoever calls does the work.
    pub fn manual(signal: Arc<Signal>) -> Runtime {
        Runtime {
            signal,
            threads: Mutex::default(),
        }
    }

    fn spawn(&self, name: &str, stores: Stores, work: Work) -> std::io::Result<()> {
        let signal = Arc::clone(&self.signal);
        let run = move || {
            let mut seen = 0;
            while !signal.is_stopped() {
                for store in stores() {
                    step(&store, work, &signal);
                }
                signal.wait(&mut seen);
            }
        };
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(run)?;
        self.threads.lock().push(thread);
        Ok(())
    }

    /// Stops and joins the threads. Idempotent.
    pub fn stop(&self) {
        self.signal.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // A panic inside was caught and told to the store; nothing is left to say here.
            let _ = thread.join();
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Works for one store until there is nothing to do. Failures are the store's to report: a full disk
/// is met again by writers, and tried again later.
fn step(store: &Store, work: Work, signal: &Signal) {
    let goes_on = || !signal.is_stopped();
    while goes_on() && store.check().is_ok() {
        match catch_unwind(AssertUnwindSafe(|| work(store, &goes_on))) {
            Ok(Ok(true)) => {}
            // Closed: it was given up because the threads end.
            Ok(Ok(false) | Err(Error::Closed(_))) => return,
            Ok(Err(error)) => {
                store.note_background_failure(error);
                return;
            }
            Err(panic) => {
                store.stop(Error::Stopped {
                    what: "background work",
                    cause: said(&panic),
                });
                return;
            }
        }
    }
}

fn said(panic: &Box<dyn std::any::Any + Send>) -> Arc<str> {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").into()
}

/// Flushes everything as the threads would, for who closes a store that none works for any more.
pub(crate) fn flush_all(store: &Store) {
    step(store, flush_whole, &Signal::default());
}

fn flush_whole(store: &Store, _: GoesOn<'_>) -> Result<bool> {
    store.flush().map(|()| false)
}

/// One piece of flushing. Returns whether there was something to do.
pub(crate) fn flush_step(store: &Store, _: GoesOn<'_>) -> Result<bool> {
    store.flush_oldest()
}

/// One piece of compaction. Returns whether there was something to do.
pub(crate) fn compact_step(store: &Store, goes_on: GoesOn<'_>) -> Result<bool> {
    // First: it does once what compactions of what came in a burst would do in steps.
    Ok(store.settle(goes_on)? || store.compact_step(goes_on)?)
}

/// One piece of work on the logs. Returns whether there was something to do.
fn log_step(store: &Store, _: GoesOn<'_>) -> Result<bool> {
    Ok(store.log_step())
}

/// A sync that a follower asked for. Returns whether there was one.
fn persist_step(store: &Store, _: GoesOn<'_>) -> Result<bool> {
    Ok(store.persist_step())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::path::Path;

    use strandline_wal::{Error as LogError, IoContext};

    use super::*;
    use crate::options::{Background, Options};
    use strandline_wal::io::sim::SimEnv;

    fn store() -> (crate::Database, Arc<Store>) {
        let options = Options {
            background: Background::Manual,
            ..Options::default()
        };
        let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
        let store = db.dataset("").unwrap().inner().store();
        (db, store)
    }

    fn failed(kind: std::io::ErrorKind) -> Error {
        let failed: std::io::Result<()> = Err(kind.into());
        failed
            .during("write", Path::new("/db/x"))
            .unwrap_err()
            .into()
    }

    #[test]
    fn a_panic_of_background_work_stops_the_dataset_and_says_so() {
        let works: [(Work, &str); 3] = [
            (|_, _| panic!("a bug"), "a bug"),
            (
                |store, _| panic!("a bug of {}", store.id()),
                "a bug of primary",
            ),
            (|_, _| std::panic::panic_any(7), "a panic without a message"),
        ];
        for (work, said) in works {
            let (db, store) = store();
            step(&store, work, &Signal::default());
            let error = store.check().unwrap_err();
            assert!(matches!(error, Error::Stopped { .. }), "{error}");
            assert!(error.to_string().contains(said), "{error}");
            // Nothing more is done for it, nor written to it.
            step(&store, |_, _| panic!("it was called"), &Signal::default());
            let refused = db.keyspace("map").unwrap_err();
            assert_eq!(refused.to_string(), error.to_string());
        }
    }

    #[test]
    fn a_full_disk_and_damage_leave_a_dataset_open_and_other_failures_do_not() {
        let corrupt = LogError::corrupt(Path::new("/db/x"), 0, "table", "a", "b");
        for (error, goes_on, told) in [
            (failed(std::io::ErrorKind::StorageFull), true, "disk_full"),
            (corrupt.into(), true, "damaged"),
            (
                failed(std::io::ErrorKind::PermissionDenied),
                false,
                "stopped",
            ),
        ] {
            let (db, store) = store();
            for _ in 0..2 {
                store.note_background_failure(error.clone());
            }
            let events = db.events();
            assert_eq!(events.len(), 1, "{events:?}");
            assert_eq!(
                (events[0].what.name(), events[0].dataset.as_str()),
                (told, "primary")
            );
            assert_eq!(store.check().is_ok(), goes_on, "{error}");
            // The first failure is the one that is told.
            store.note_background_failure(failed(std::io::ErrorKind::TimedOut));
            let told = store.check().unwrap_err().to_string();
            assert_eq!(told.contains("timed out"), goes_on, "{told}");
        }
    }

    /// A database whose one dataset has two runs of tables.
    fn with_two_runs() -> (SimEnv, crate::Database) {
        let machine = SimEnv::new(1);
        let options = Options {
            background: Background::Manual,
            ..Options::default()
        };
        let db = options.open_with("/db", machine.env()).unwrap();
        let (map, dataset) = (db.keyspace("map").unwrap(), db.dataset("").unwrap());
        for n in 0..2u8 {
            map.put([n], "value").unwrap();
            dataset.flush().unwrap();
        }
        (machine, db)
    }

    /// A close does not wait for a long merge: it is given up, and leaves nothing behind.
    #[test]
    fn a_merge_that_is_not_to_go_on_leaves_everything_as_it_was() {
        let (machine, db) = with_two_runs();
        let dataset = db.dataset("").unwrap();
        let store = dataset.inner().store();
        let before = (store.manifest(), machine.disk.files().len());
        machine.clock.advance_ms(200);
        let given_up = store.settle(&|| false).unwrap_err();
        assert!(matches!(given_up, Error::Closed(_)), "{given_up}");
        let manifest = store.manifest();
        assert_eq!(manifest.runs, before.0.runs);
        assert_eq!(machine.disk.files().len(), before.1);
        step(
            &store,
            |_, _| Err(Error::Closed("database")),
            &Signal::default(),
        );
        store.check().unwrap();
        dataset.compact().unwrap();
        assert_eq!(store.manifest().runs.len(), 1);
    }

    /// Whoever opens the directory next must not meet work that is still under way there.
    #[test]
    fn a_close_waits_for_work_on_the_files_and_none_begins_after_it() {
        let (_db, store) = store();
        let [began, goes_on, done] = [const { AtomicBool::new(false) }; 3];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                store.with_files(|_| {
                    began.store(true, Ordering::Release);
                    while !goes_on.load(Ordering::Acquire) {
                        std::thread::yield_now();
                    }
                    done.store(true, Ordering::Release);
                });
            });
            while !began.load(Ordering::Acquire) {
                std::thread::yield_now();
            }
            let closer = scope.spawn(|| {
                store.close(true).unwrap();
                done.load(Ordering::Acquire)
            });
            while store.check().is_ok() {
                std::thread::yield_now();
            }
            // Time enough for a close that does not wait.
            for _ in 0..10_000 {
                std::thread::yield_now();
            }
            let is_early = closer.is_finished();
            goes_on.store(true, Ordering::Release);
            assert!(closer.join().unwrap() && !is_early);
        });
        let refused = [
            store.flush_oldest().map(|_| ()),
            store.compact_step(&|| true).map(|_| ()),
            store.compact(),
        ];
        for refused in refused {
            assert!(matches!(refused, Err(Error::Closed(_))), "{refused:?}");
        }
        store.drop_segments().unwrap();
    }

    /// A write that comes while a database settles is more urgent; it settles after the next pause.
    #[test]
    fn a_write_ends_a_settling_and_a_later_one_does_it() {
        let (machine, db) = with_two_runs();
        let (map, dataset) = (db.keyspace("map").unwrap(), db.dataset("").unwrap());
        let store = dataset.inner().store();
        machine.clock.advance_ms(200);
        let writes = || {
            map.put("key", "value").unwrap();
            true
        };
        assert!(!store.settle(&writes).unwrap());
        assert_eq!(store.manifest().runs.len(), 2);
        assert!(!store.settle(&|| true).unwrap(), "it is not over yet");
        machine.clock.advance_ms(200);
        assert!(store.settle(&|| true).unwrap());
        assert_eq!(store.manifest().runs.len(), 1);
    }

    #[test]
    fn work_ends_where_there_is_none_and_where_it_is_stopped() {
        let (_db, store) = store();
        let signal = Signal::default();
        step(&store, |_, _| Ok(false), &signal);
        signal.stop();
        step(&store, |_, _| panic!("it was called"), &signal);
        store.check().unwrap();
    }
}
