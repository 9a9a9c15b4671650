//! loom models of the log's concurrent protocols: every interleaving of a few threads.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p strandline-wal --lib -- loom`.

use loom::sync::Arc;
use loom::sync::Mutex;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use loom::thread;

use crate::error::Result;
use crate::group::Group;
use crate::publish::Publisher;

/// Explores every schedule with at most this many preemptions; real bugs need fewer.
const PREEMPTIONS_MAX: usize = 3;

fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

#[test]
fn loom_batches_become_visible_in_the_order_of_their_reservation() {
    explore(|| {
        let publisher = Arc::new(Publisher::<u64>::default());
        let reserve = Arc::new(Mutex::new(0u64));
        let published = Arc::new(Mutex::new(Vec::new()));
        let writer = |publisher: Arc<Publisher<u64>>,
                      reserve: Arc<Mutex<u64>>,
                      published: Arc<Mutex<Vec<u64>>>| {
            let (ticket, seq) = {
                let mut next = reserve.lock().unwrap();
                *next += 1;
                (publisher.take(), *next)
            };
            // Copying and applying happen here, in any order.
            thread::yield_now();
            publisher.complete(ticket, seq, |seq| published.lock().unwrap().push(seq));
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (a, b, c) = (publisher.clone(), reserve.clone(), published.clone());
                thread::spawn(move || writer(a, b, c))
            })
            .collect();
        writer(publisher.clone(), reserve, published.clone());
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*published.lock().unwrap(), [1, 2, 3]);
        assert_eq!(publisher.open_count(), 0);
    });
}

/// A log that counts what is written and what a sync covers, and that notices two syncs at once.
#[derive(Default)]
struct Log {
    written: AtomicU64,
    synced: AtomicU64,
    syncing: AtomicBool,
}

impl Log {
    fn sync(&self) -> Result<u64> {
        assert!(
            !self.syncing.swap(true, Ordering::AcqRel),
            "two leaders at once"
        );
        let mark = self.written.load(Ordering::Acquire);
        thread::yield_now();
        self.synced.store(mark, Ordering::Release);
        self.syncing.store(false, Ordering::Release);
        Ok(mark)
    }
}

#[test]
fn loom_every_waiter_is_covered_by_a_sync_that_began_after_its_write() {
    explore(|| {
        let group = Arc::new(Group::new(0));
        let log = Arc::new(Log::default());
        let writer = |group: Arc<Group>, log: Arc<Log>| {
            let target = log.written.fetch_add(1, Ordering::AcqRel) + 1;
            let done = group.wait(target, || log.sync()).unwrap();
            assert!(done >= target);
            assert!(
                log.synced.load(Ordering::Acquire) >= target,
                "acknowledged before the sync"
            );
        };
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (group, log) = (group.clone(), log.clone());
                thread::spawn(move || writer(group, log))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(group.done(), 2);
    });
}

#[test]
fn loom_a_failed_sync_fails_every_waiter_it_did_not_cover_and_is_never_repeated() {
    explore(|| {
        let group = Arc::new(Group::new(0));
        let calls = Arc::new(AtomicU64::new(0));
        let waiter = |group: Arc<Group>, calls: Arc<AtomicU64>| {
            let outcome = group.wait(1, || {
                calls.fetch_add(1, Ordering::AcqRel);
                let path = std::path::Path::new("log");
                Err(crate::Error::corrupt(path, 0, "sync", "success", "failure"))
            });
            assert!(outcome.is_err());
        };
        let other = {
            let (group, calls) = (group.clone(), calls.clone());
            thread::spawn(move || waiter(group, calls))
        };
        waiter(group.clone(), calls.clone());
        other.join().unwrap();
        assert_eq!(
            calls.load(Ordering::Acquire),
            1,
            "a failed sync is not tried again"
        );
    });
}

/// The protocol of [`crate::pool::Pool::retire`]: a segment's file is written again only after the
/// segment was taken off the list and was found to be nobody else's, the segment first and its bytes
/// second. The other way round a reader slips through: it takes the bytes after they were looked at
/// and lets go of the segment before that is.
#[test]
fn loom_a_segment_is_reused_only_when_no_reader_holds_its_bytes() {
    struct Segment {
        bytes: Arc<Bytes>,
    }
    struct Bytes {
        reused: AtomicBool,
    }
    explore(|| {
        let bytes = Arc::new(Bytes {
            reused: AtomicBool::new(false),
        });
        let list = Arc::new(Mutex::new(Some(Arc::new(Segment { bytes }))));
        let reader = {
            let list = list.clone();
            thread::spawn(move || {
                let segment = list.lock().unwrap().clone();
                let Some(segment) = segment else { return };
                let bytes = segment.bytes.clone();
                drop(segment);
                thread::yield_now();
                assert!(
                    !bytes.reused.load(Ordering::Acquire),
                    "read while it was written anew"
                );
            })
        };
        let detached = list.lock().unwrap().take().unwrap();
        if let Ok(segment) = Arc::try_unwrap(detached) {
            let Segment { mut bytes } = segment;
            if let Some(bytes) = Arc::get_mut(&mut bytes) {
                bytes.reused.store(true, Ordering::Release);
            }
        }
        reader.join().unwrap();
    });
}
