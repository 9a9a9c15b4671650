//! How far a dataset has come: published, durable, committed. One struct, asserted on every change.
//!
//! A [`Mark`] is a consistent cut: everything with a version up to its timestamp, in every shard's
//! log, and nothing else. Readers see up to `committed`.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use strandline_wal::Hlc;

/// A consistent cut of a dataset.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct Mark {
    /// Version of its newest batch.
    pub timestamp: Hlc,
    /// Ordinal of that batch.
    pub ordinal: u16,
    /// Per shard, the last sequence that belongs to it.
    pub seqs: Vec<u64>,
}

impl Clone for Mark {
    fn clone(&self) -> Mark {
        Mark {
            seqs: self.seqs.clone(),
            ..*self
        }
    }

    /// Keeps the memory that is there: marks move with every batch.
    fn clone_from(&mut self, other: &Mark) {
        (self.timestamp, self.ordinal) = (other.timestamp, other.ordinal);
        self.seqs.clone_from(&other.seqs);
    }
}

impl Mark {
    /// The cut before everything.
    #[cfg(test)]
    pub fn zero(shard_count: usize) -> Mark {
        Mark {
            timestamp: Hlc(0),
            ordinal: 0,
            seqs: vec![0; shard_count],
        }
    }

    /// Whether everything in `other` is in this one.
    pub fn covers(&self, other: &Mark) -> bool {
        self.timestamp >= other.timestamp
    }
}

/// Invariant: `committed <= published` and `durable <= published`; none goes back.
pub(crate) struct Watermarks {
    marks: Mutex<Marks>,
    /// Copies of the timestamps, for readers without the lock.
    published: AtomicU64,
    committed: AtomicU64,
}

struct Marks {
    published: Mark,
    durable: Mark,
    committed: Mark,
}

impl Watermarks {
    /// Everything up to `mark` is published, durable and committed.
    pub fn new(mark: Mark) -> Watermarks {
        let timestamp = mark.timestamp.0;
        let (durable, committed) = (mark.clone(), mark.clone());
        Watermarks {
            marks: Mutex::new(Marks {
                published: mark,
                durable,
                committed,
            }),
            published: AtomicU64::new(timestamp),
            committed: AtomicU64::new(timestamp),
        }
    }

    /// The batch of `timestamp` in `shard` is readable in the log and applied; batches come in order. With
    /// it all that is published is committed, where it `is_committed`.
    pub fn publish(
        &self,
        timestamp: Hlc,
        ordinal: u16,
        (shard, last_seq): (usize, u64),
        is_committed: bool,
    ) {
        let marks = &mut *self.marks.lock();
        let published = &mut marks.published;
        assert!(timestamp > published.timestamp, "timestamps rise");
        assert!(last_seq > published.seqs[shard], "sequences rise");
        published.timestamp = timestamp;
        published.ordinal = ordinal;
        published.seqs[shard] = last_seq;
        self.published.store(timestamp.0, Ordering::Release);
        if is_committed {
            self.commit_all(marks);
        }
    }

    /// Moves the published mark to a cut that a leader declared.
    pub fn publish_to(&self, mark: &Mark) {
        let mut marks = self.marks.lock();
        if mark.timestamp > marks.published.timestamp {
            marks.published = mark.clone();
            self.published.store(mark.timestamp.0, Ordering::Release);
        }
    }

    /// Everything in `mark` survives a crash.
    pub fn sync_to(&self, mark: &Mark) {
        let mut marks = self.marks.lock();
        assert!(
            marks.published.covers(mark),
            "only what is published is durable"
        );
        if mark.timestamp > marks.durable.timestamp {
            marks.durable.clone_from(mark);
        }
    }

    /// Everything in `mark` is committed: readers may see it.
    pub fn commit_to(&self, mark: &Mark) {
        let mut marks = self.marks.lock();
        assert!(
            marks.published.covers(mark),
            "only what is published is committed"
        );
        if mark.timestamp > marks.committed.timestamp {
            marks.committed.clone_from(mark);
            self.committed.store(mark.timestamp.0, Ordering::Release);
        }
    }

    /// Commits what is published.
    pub fn commit_published(&self) {
        self.commit_all(&mut self.marks.lock());
    }

    fn commit_all(&self, marks: &mut Marks) {
        if marks.published.timestamp > marks.committed.timestamp {
            marks.committed.clone_from(&marks.published);
            let timestamp = marks.committed.timestamp.0;
            self.committed.store(timestamp, Ordering::Release);
        }
    }

    /// What is in the logs and applied.
    pub fn published(&self) -> Mark {
        self.marks.lock().published.clone()
    }

    /// What survives a crash.
    pub fn durable(&self) -> Mark {
        self.marks.lock().durable.clone()
    }

    /// What readers see.
    pub fn committed(&self) -> Mark {
        self.marks.lock().committed.clone()
    }

    /// Timestamp of the published mark.
    pub fn published_timestamp(&self) -> Hlc {
        Hlc(self.published.load(Ordering::Acquire))
    }

    /// Timestamp of the committed mark: what a read without a snapshot sees.
    pub fn visible(&self) -> Hlc {
        Hlc(self.committed.load(Ordering::Acquire))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_see_what_is_committed_and_nothing_more() {
        let marks = Watermarks::new(Mark::zero(2));
        marks.publish(Hlc(5), 1, (1, 3), false);
        assert_eq!(marks.visible(), Hlc(0));
        marks.sync_to(&marks.published());
        marks.commit_to(&marks.durable());
        assert_eq!(marks.visible(), Hlc(5));
        assert_eq!(marks.committed().seqs, [0, 3]);
        marks.commit_to(&Mark::zero(2));
        assert_eq!(marks.visible(), Hlc(5), "it never goes back");
        marks.publish(Hlc(6), 2, (0, 1), true);
        assert_eq!(marks.committed(), marks.published());
        assert_eq!(marks.visible(), Hlc(6));
    }

    #[test]
    fn no_mark_goes_back() {
        let (low, high) = (
            Mark::zero(1),
            Mark {
                timestamp: Hlc(7),
                ordinal: 3,
                seqs: vec![4],
            },
        );
        let marks = Watermarks::new(low.clone());
        marks.publish_to(&high);
        marks.commit_published();
        marks.sync_to(&high);
        marks.publish_to(&low);
        marks.commit_published();
        marks.sync_to(&low);
        for mark in [marks.published(), marks.durable(), marks.committed()] {
            assert_eq!(mark, high);
        }
        assert_eq!(marks.published_timestamp(), Hlc(7));
    }

    #[test]
    #[should_panic(expected = "only what is published is committed")]
    fn nothing_unpublished_is_committed() {
        let mark = Mark {
            timestamp: Hlc(1),
            ordinal: 1,
            seqs: vec![1],
        };
        Watermarks::new(Mark::zero(1)).commit_to(&mark);
    }
}
