//! What an operator needs to hear of a database: a bounded queue of typed events.
//!
//! The engine writes no log of its own. Whoever runs it takes the events by [`Database::events`] and
//! tells them as it tells everything else. Nothing waits for that: where nobody takes them the oldest
//! make room, and how many did is an event itself.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

use parking_lot::Mutex;

use crate::database::Database;
use crate::options::Durability;

/// Most events that wait to be taken.
const EVENT_COUNT_MAX: usize = 1024;

/// Something happened that an operator may want to know.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// When it last happened: milliseconds since 1970, by the machine's clock.
    pub at_ms: u64,
    /// The dataset; empty where it concerns the database.
    pub dataset: String,
    /// How often it happened in a row.
    pub count: u64,
    /// What happened.
    pub what: What,
}

impl Event {
    /// Something that happened once.
    pub fn new(at_ms: u64, dataset: &str, what: What) -> Event {
        Event {
            at_ms,
            dataset: dataset.to_owned(),
            count: 1,
            what,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum What {
    /// A follower is up and agrees with the log of this leader.
    Joined {
        /// What it calls itself.
        peer: String,
    },
    /// This node follows a leader and agrees with its log.
    Following {
        /// The leader.
        peer: String,
    },
    /// A connection ended, or could not be made.
    Left {
        /// The peer, as far as it is known.
        peer: String,
        /// Why.
        why: String,
    },
    /// What this node had and its leader has not was saved aside and cut.
    Cut {
        /// What and where.
        what: String,
    },
    /// A checkpoint of the leader begins to replace this node's data.
    CheckpointBegun {
        /// Bytes of all its files.
        len: u64,
    },
    /// A checkpoint of the leader has replaced this node's data.
    CheckpointInstalled,
    /// Replication of the dataset has stopped for good: somebody must act.
    ReplicationStopped {
        /// Why.
        why: String,
    },
    /// This node leads now.
    Promoted {
        /// In this epoch.
        epoch: u32,
        /// What may be lost by a forced promotion.
        may_be_lost: Option<String>,
    },
    /// This node wanted to lead and may not.
    NotPromoted {
        /// Why.
        why: String,
    },
    /// Another node leads now; this one takes no more writes.
    Fenced {
        /// The epoch that this node wrote in.
        ours: u32,
        /// The higher one.
        found: u32,
    },
    /// A failure ended all writing until the dataset is opened again.
    Stopped {
        /// What failed.
        why: String,
    },
    /// Stored bytes are damaged.
    Damaged {
        /// The file, where that is known.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// Damage was mended by another node's copy.
    Healed {
        /// Places that were mended.
        place_count: usize,
    },
    /// Damage could not be mended.
    NotHealed {
        /// Why.
        why: String,
    },
    /// A write was acknowledged with too few followers, as [`crate::AckPolicy::Degrade`] allows.
    Degraded {
        /// The level that it was to have.
        wanted: Durability,
    },
    /// Background work failed because the disk is full; it is tried again.
    DiskFull {
        /// What failed.
        why: String,
    },
    /// Nobody took the events, and the oldest are gone.
    Dropped {
        /// How many.
        event_count: u64,
    },
}

/// Whether somebody must act.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// Nobody.
    Info,
    /// Somebody, where it does not pass.
    Warning,
    /// Somebody.
    Error,
}

impl What {
    /// The names of all events.
    pub const NAMES: [&'static str; 17] = [
        "joined",
        "following",
        "left",
        "cut",
        "checkpoint_begun",
        "checkpoint_installed",
        "replication_stopped",
        "promoted",
        "not_promoted",
        "fenced",
        "stopped",
        "damaged",
        "healed",
        "not_healed",
        "degraded",
        "disk_full",
        "dropped",
    ];

    /// A name for programs, which stays.
    pub fn name(&self) -> &'static str {
        match self {
            What::Joined { .. } => "joined",
            What::Following { .. } => "following",
            What::Left { .. } => "left",
            What::Cut { .. } => "cut",
            What::CheckpointBegun { .. } => "checkpoint_begun",
            What::CheckpointInstalled => "checkpoint_installed",
            What::ReplicationStopped { .. } => "replication_stopped",
            What::Promoted { .. } => "promoted",
            What::NotPromoted { .. } => "not_promoted",
            What::Fenced { .. } => "fenced",
            What::Stopped { .. } => "stopped",
            What::Damaged { .. } => "damaged",
            What::Healed { .. } => "healed",
            What::NotHealed { .. } => "not_healed",
            What::Degraded { .. } => "degraded",
            What::DiskFull { .. } => "disk_full",
            What::Dropped { .. } => "dropped",
        }
    }

    /// Whether somebody must act.
    pub fn severity(&self) -> Severity {
        match self {
            What::Joined { .. }
            | What::Following { .. }
            | What::CheckpointBegun { .. }
            | What::CheckpointInstalled
            | What::Promoted {
                may_be_lost: None, ..
            }
            | What::Healed { .. } => Severity::Info,
            What::Left { .. }
            | What::Cut { .. }
            | What::Promoted { .. }
            | What::NotPromoted { .. }
            | What::Fenced { .. }
            | What::Degraded { .. }
            | What::Dropped { .. } => Severity::Warning,
            What::ReplicationStopped { .. }
            | What::Stopped { .. }
            | What::Damaged { .. }
            | What::NotHealed { .. }
            | What::DiskFull { .. } => Severity::Error,
        }
    }

    /// The other node that it is about.
    pub fn peer(&self) -> Option<&str> {
        match self {
            What::Joined { peer } | What::Following { peer } | What::Left { peer, .. } => {
                Some(peer).filter(|peer| !peer.is_empty())
            }
            _ => None,
        }
        .map(String::as_str)
    }
}

/// One line for people, without the dataset.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Joined { peer } => write!(f, "{peer} follows"),
            What::Following { peer } => write!(f, "following {peer}"),
            What::Left { why, .. } => write!(f, "not connected: {why}"),
            What::Cut { what } => f.write_str(what),
            What::CheckpointBegun { len } => {
                write!(f, "takes a checkpoint of the leader: {len} bytes")
            }
            What::CheckpointInstalled => f.write_str("took a checkpoint of the leader"),
            What::ReplicationStopped { why } => write!(f, "follows no more: {why}"),
            What::Promoted { epoch, may_be_lost } => match may_be_lost {
                None => write!(f, "leads epoch {epoch}"),
                Some(lost) => write!(f, "leads epoch {epoch}; may be lost: {lost}"),
            },
            What::NotPromoted { why } => write!(f, "does not lead: {why}"),
            What::Fenced { ours, found } => write!(
                f,
                "this node no longer leads: epoch {found} was promised, it wrote in {ours}"
            ),
            What::Stopped { why } => write!(f, "takes no more writes: {why}"),
            What::Damaged { path, what } if path.as_os_str().is_empty() => {
                write!(f, "damaged: {what}")
            }
            What::Damaged { path, what } => write!(f, "damaged: {}: {what}", path.display()),
            What::Healed { place_count: 1 } => f.write_str("mended 1 place"),
            What::Healed { place_count } => write!(f, "mended {place_count} places"),
            What::NotHealed { why } => write!(f, "damage is not mended: {why}"),
            What::Degraded { wanted } => {
                write!(
                    f,
                    "acknowledged on this node's disk alone, not as {wanted:?}"
                )
            }
            What::DiskFull { why } => write!(f, "the disk is full: {why}"),
            What::Dropped { event_count } => {
                write!(f, "{event_count} events were not taken and are gone")
            }
        }
    }
}

/// Events that wait to be taken.
#[derive(Default)]
pub(crate) struct Events(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Event>,
    dropped: u64,
}

impl Events {
    /// Tells one. Repeated in a row it is one event that counts.
    pub fn push(&self, at_ms: u64, dataset: &str, what: What) {
        let mut queue = self.0.lock();
        let last = queue.waiting.back_mut();
        if let Some(last) = last.filter(|last| last.dataset == dataset && last.what == what) {
            (last.at_ms, last.count) = (at_ms, last.count + 1);
            return;
        }
        if queue.waiting.len() == EVENT_COUNT_MAX {
            queue.waiting.pop_front();
            queue.dropped += 1;
        }
        queue.waiting.push_back(Event::new(at_ms, dataset, what));
    }

    fn take(&self, at_ms: u64) -> Vec<Event> {
        let Queue { waiting, dropped } = std::mem::take(&mut *self.0.lock());
        let what = What::Dropped {
            event_count: dropped,
        };
        let lost = (dropped > 0).then(|| Event::new(at_ms, "", what));
        lost.into_iter().chain(waiting).collect()
    }
}

impl Database {
    /// What happened since the last call, oldest first: at most 1024 events, and one that says how many
    /// more there were.
    pub fn events(&self) -> Vec<Event> {
        for dataset in self.datasets() {
            if let Some(store) = dataset.inner().try_store() {
                store.tell_log();
            }
        }
        self.shared().events.take(self.env().clock.wall_ms())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn all() -> Vec<What> {
        let text = || "text".to_owned();
        vec![
            What::Joined { peer: text() },
            What::Following { peer: text() },
            What::Left {
                peer: String::new(),
                why: text(),
            },
            What::Cut { what: text() },
            What::CheckpointBegun { len: 1 },
            What::CheckpointInstalled,
            What::ReplicationStopped { why: text() },
            What::Promoted {
                epoch: 1,
                may_be_lost: Some(text()),
            },
            What::NotPromoted { why: text() },
            What::Fenced { ours: 1, found: 2 },
            What::Stopped { why: text() },
            What::Damaged {
                path: "file".into(),
                what: text(),
            },
            What::Healed { place_count: 2 },
            What::NotHealed { why: text() },
            What::Degraded {
                wanted: Durability::Durable(1),
            },
            What::DiskFull { why: text() },
            What::Dropped { event_count: 1 },
        ]
    }

    #[test]
    fn every_event_has_a_name_of_its_own_and_words() {
        let names: Vec<&str> = all().iter().map(What::name).collect();
        assert_eq!(names, What::NAMES);
        let lines: Vec<String> = all().iter().map(What::to_string).collect();
        for (n, line) in lines.iter().enumerate() {
            assert!(!line.is_empty() && !lines[..n].contains(line), "{line}");
        }
        assert_eq!(all()[0].peer(), Some("text"));
        assert_eq!(all()[2].peer(), None);
    }

    #[test]
    fn a_repeated_event_counts_and_the_oldest_make_room() {
        let events = Events::default();
        let full = |why: &str| What::DiskFull { why: why.into() };
        for at in 0..3 {
            events.push(at, "primary", full("a"));
        }
        events.push(3, "other", full("a"));
        let taken = events.take(9);
        assert_eq!(taken.len(), 2);
        assert_eq!((taken[0].at_ms, taken[0].count), (2, 3));
        assert_eq!((taken[1].dataset.as_str(), taken[1].count), ("other", 1));
        assert_eq!(events.take(9), []);
        for n in 0..EVENT_COUNT_MAX as u64 + 7 {
            events.push(n, "primary", full(&n.to_string()));
        }
        let taken = events.take(9);
        assert_eq!(taken.len(), EVENT_COUNT_MAX + 1);
        assert_eq!(taken[0].what, What::Dropped { event_count: 7 });
        assert_eq!(taken[1].what, full("7"));
        assert_eq!(events.take(9), [], "what was dropped is told once");
    }
}
