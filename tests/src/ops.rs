//! What can be done to a database, as data: a list of operations is a test case.

use std::ops::Bound;

use strandline::Durability;
use strandline_wal::io::sim::Damage;

/// The number of a key in the case's list of keys.
pub type KeyId = usize;

/// One operation.
#[derive(Clone, Debug)]
pub enum Op {
    /// Sets a key to a value of a length.
    Put(usize, KeyId, usize, Durability),
    /// Removes a key.
    Delete(usize, KeyId, Durability),
    /// Several changes at once: keyspace, key, length of the value or `None` to remove.
    Batch(Vec<(usize, KeyId, Option<usize>)>, Durability),
    /// Reads a key.
    Get(usize, KeyId),
    /// Reads several keys of one moment.
    MultiGet(usize, Vec<KeyId>),
    /// Walks a range.
    Range(usize, Walk),
    /// Walks the keys with the first so many bytes of a key.
    Prefix(usize, KeyId, usize, Ends),
    /// Moves a cursor, over a snapshot or what is there now.
    Cursor(usize, Option<usize>, Vec<Move>),
    /// Takes a snapshot.
    Snapshot,
    /// Reads a key in a snapshot.
    SnapshotGet(usize, usize, KeyId),
    /// Walks a range of a snapshot.
    SnapshotRange(usize, usize, Walk),
    /// Lets a snapshot go.
    Release(usize),
    /// Writes memtables into tables.
    Flush,
    /// Merges all tables.
    Compact,
    /// Does background work, at most so many pieces.
    Background(usize),
    /// Makes everything durable.
    Sync,
    /// Lets time pass, in milliseconds.
    Advance(u64),
    /// Closes and opens.
    Reopen,
    /// The process or the machine dies.
    Crash(Crash),
    /// It will die at a later call of the disk.
    CrashAfter(u64, Crash),
    /// Opens for reading beside the writer and reads everything.
    Reader,
    /// Makes a checkpoint, opens it, and expects it to stay as it is.
    Checkpoint,
}

impl Op {
    /// The same operation with less in it, to make a failing case small. There are several ways to
    /// take something away, numbered from 0; behind the last one there is nothing.
    pub fn smaller(&self, way: usize) -> Option<Op> {
        let mut op = self.clone();
        match &mut op {
            Op::Put(_, _, len, _) if way == 0 && *len > 0 => *len /= 2,
            Op::Batch(changes, _) if way < changes.len() => drop(changes.remove(way)),
            Op::MultiGet(_, keys) if way < keys.len() => drop(keys.remove(way)),
            Op::Cursor(_, _, moves) if way < moves.len() => drop(moves.remove(way)),
            Op::Background(count) if way == 0 && *count > 1 => *count -= 1,
            Op::Crash(crash) | Op::CrashAfter(_, crash) if way < crash.nested.len() => {
                crash.nested.remove(way);
            }
            _ => return None,
        }
        Some(op)
    }
}

/// How the process or the machine dies, and again while it recovers.
#[derive(Clone, Debug)]
pub struct Crash {
    /// What becomes of unsynced changes; `None` where only the process dies.
    pub damage: Option<Damage>,
    /// Which of the images that this allows.
    pub seed: u64,
    /// At which calls of the recoveries that follow it dies again, and how.
    pub nested: Vec<(u64, Option<Damage>)>,
}

/// A range and how it is walked.
#[derive(Clone, Debug)]
pub struct Walk {
    /// Where it starts.
    pub lower: Bound<KeyId>,
    /// Where it ends.
    pub upper: Bound<KeyId>,
    /// From which end.
    pub ends: Ends,
}

/// From which end a range is walked.
#[derive(Clone, Debug)]
pub enum Ends {
    /// From the first to the last.
    Forward,
    /// From the last to the first.
    Backward,
    /// The bits say which end is next, over and over: 1 is the back.
    Both(u16),
}

/// A move of a cursor.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "each is the method of its name")]
pub enum Move {
    First,
    Last,
    Next,
    Prev,
    Seek(KeyId),
    SeekBack(KeyId),
}
