//! Automatic failover: what a node is told, who asks its coordinator, and how it stands.
//!
//! The rules are in [`strandline_replication::failover`] (when) and [`strandline_replication::membership`]
//! (who may); the node carries out what they say (`node/elected.rs`).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use strandline_replication::coordinator::Coordinator;
use strandline_replication::failover::{Answer, Ask, LEASE_MS_MIN};
use strandline_replication::{Error as ReplicationError, Notifier};

use crate::database::Database;
use crate::dataset::Dataset;
use crate::error::{Error, Result};

/// Most calls that wait for the coordinator's thread.
const CALL_COUNT_MAX: usize = 1024;

/// How a node takes part in the failover of a dataset.
#[derive(Clone, Debug)]
pub struct Failover {
    /// Addresses of the other nodes, at most 63.
    pub peers: Vec<String>,
    /// Least number of followers in sync with which writes are acknowledged from
    /// [`Durability::Received`](crate::Durability::Received) on, 0 to 63. Of the first record: later ones
    /// keep it. With two nodes, 1 means that neither acknowledges such writes while it is alone.
    pub min_in_sync: u32,
    /// Whether this node may lead a dataset that has no record yet: for one node of the cluster, the one
    /// that has the data if there are any. Where the dataset is new it begins its history; of two nodes
    /// that did, one could never follow the other.
    pub first: bool,
    /// A leader that was not heard for this long is replaced, in milliseconds: 100 and more, 3,000 by
    /// default. What is too short costs needless elections and nothing else.
    pub lease_ms: u64,
    /// A follower that did not catch up for this long is waited for no more, in milliseconds: 100 and more,
    /// 10,000 by default.
    pub in_sync_ms: u64,
}

impl Default for Failover {
    fn default() -> Failover {
        Failover {
            peers: Vec::new(),
            min_in_sync: 1,
            first: false,
            lease_ms: 3_000,
            in_sync_ms: 10_000,
        }
    }
}

impl Failover {
    pub(super) fn check(&self) -> Result<()> {
        let wrong = |what, expected: String, found: String| {
            Err(Error::Argument {
                what,
                expected,
                found,
            })
        };
        let others_max = strandline_replication::quorum::MEMBER_COUNT_MAX - 1;
        if self.peers.len() > others_max {
            let expected = format!("at most {others_max} addresses");
            return wrong("peers", expected, self.peers.len().to_string());
        }
        if self.min_in_sync as usize > self.peers.len() {
            let expected = format!("no more followers than peers, {}", self.peers.len());
            return wrong("min_in_sync", expected, self.min_in_sync.to_string());
        }
        for (what, ms) in [("lease_ms", self.lease_ms), ("in_sync_ms", self.in_sync_ms)] {
            if !(LEASE_MS_MIN..=86_400_000).contains(&ms) {
                let expected = format!("{LEASE_MS_MIN} to 86,400,000 milliseconds");
                return wrong(what, expected, ms.to_string());
            }
        }
        Ok(())
    }
}

/// How a node stands in the failover of a dataset.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct FailoverStatus {
    /// `leader`, `follower` or `candidate`.
    pub role: &'static str,
    /// Epoch of the coordinator's record; 0 where none was read.
    pub epoch: u32,
    /// Who leads by the record.
    pub leader: [u8; 16],
    /// The nodes that have every acknowledged write, the leader among them.
    pub members: Vec<[u8; 16]>,
    /// Least number of followers among them with which writes are acknowledged.
    pub min_in_sync: u32,
    /// How often this node became leader since it takes part.
    pub elected_count: u64,
    /// What the coordinator, or the disk, last failed with.
    pub last_error: Option<String>,
    /// Why this node was last not elected.
    pub refused: Option<String>,
}

/// Asks a coordinator and does not wait for the answer.
pub trait Desk: Send {
    /// Queues a call; exactly one answer of that number comes.
    fn ask(&mut self, number: u64, ask: Ask);
    /// The next answer, in the order of the calls.
    fn answered(&mut self) -> Option<(u64, Answer)>;
}

/// A coordinator on a thread of its own, `strandline-coordinator`, for any number of datasets of a database.
/// Its clones are the same one.
#[derive(Clone)]
pub struct Coordination {
    inner: Arc<Inner>,
}

struct Inner {
    calls: Mutex<Option<SyncSender<Call>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Call {
    dataset: String,
    number: u64,
    ask: Ask,
    answers: Arc<Answers>,
}

struct Answers {
    queue: Mutex<VecDeque<(u64, Answer)>>,
    notifier: Arc<Notifier>,
}

impl Answers {
    fn push(&self, number: u64, answer: Answer) {
        self.queue.lock().push_back((number, answer));
        self.notifier.notify();
    }
}

impl Coordination {
    /// Puts a coordinator on its thread.
    ///
    /// # Errors
    /// [`Error::Replication`] where there is no thread to be had.
    pub fn new(coordinator: Box<dyn Coordinator>) -> Result<Coordination> {
        let (calls, queue) = sync_channel(CALL_COUNT_MAX);
        let thread = std::thread::Builder::new()
            .name("strandline-coordinator".to_owned())
            .spawn(move || serve(coordinator, &queue))
            .map_err(|error| Error::Replication(format!("no thread for a coordinator: {error}")))?;
        let inner = Inner {
            calls: Mutex::new(Some(calls)),
            thread: Mutex::new(Some(thread)),
        };
        Ok(Coordination {
            inner: Arc::new(inner),
        })
    }

    pub(super) fn desk(&self, dataset: &str, notifier: Arc<Notifier>) -> Box<dyn Desk> {
        let calls = self.inner.calls.lock().clone();
        Box::new(ThreadDesk {
            calls: calls.expect("it goes when the last owner does"),
            dataset: dataset.to_owned(),
            answers: Arc::new(Answers {
                queue: Mutex::default(),
                notifier,
            }),
        })
    }
}

impl Drop for Inner {
    /// Waits for the call that is under way; each has a deadline of its own.
    fn drop(&mut self) {
        self.calls.lock().take();
        if let Some(thread) = self.thread.lock().take() {
            // A panic was printed by the thread.
            let _ = thread.join();
        }
    }
}

fn serve(mut coordinator: Box<dyn Coordinator>, queue: &Receiver<Call>) {
    while let Ok(call) = queue.recv() {
        let answer = match &call.ask {
            Ask::Read => Answer::Read(coordinator.read(&call.dataset)),
            Ask::Replace(version, record) => {
                Answer::Replaced(coordinator.replace(&call.dataset, *version, record))
            }
        };
        call.answers.push(call.number, answer);
    }
}

struct ThreadDesk {
    calls: SyncSender<Call>,
    dataset: String,
    answers: Arc<Answers>,
}

impl Desk for ThreadDesk {
    fn ask(&mut self, number: u64, ask: Ask) {
        let call = Call {
            dataset: self.dataset.clone(),
            number,
            ask,
            answers: Arc::clone(&self.answers),
        };
        // It was not asked: an outcome that is not known is the careful answer.
        if let Err(TrySendError::Full(call) | TrySendError::Disconnected(call)) =
            self.calls.try_send(call)
        {
            let error = ReplicationError::Full {
                what: "queue of the coordinator",
                limit: CALL_COUNT_MAX,
            };
            let answer = match call.ask {
                Ask::Read => Answer::Read(Err(error)),
                Ask::Replace(..) => Answer::Replaced(Err(error)),
            };
            self.answers.push(number, answer);
        }
    }

    fn answered(&mut self) -> Option<(u64, Answer)> {
        self.answers.queue.lock().pop_front()
    }
}

/// A dataset that takes part in failover until this is stopped or dropped.
pub struct ClusterMember {
    dataset: Dataset,
    // Waits for its thread when it is dropped: behind the node's part, which has a way to it.
    _coordination: Coordination,
}

impl ClusterMember {
    /// The dataset: it leads, follows, or campaigns. Writes where it does not lead are refused with
    /// [`Error::ReadOnly`].
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// How it stands.
    pub fn status(&self) -> FailoverStatus {
        let hub = self.dataset.database().hub();
        hub.map(|hub| hub.failover_status(&self.dataset))
            .unwrap_or_default()
    }

    /// Ends taking part: others take over after the lease.
    pub fn stop(self) {}
}

impl Drop for ClusterMember {
    fn drop(&mut self) {
        if let Some(hub) = self.dataset.database().hub() {
            hub.retire(&self.dataset);
        }
    }
}

impl Database {
    /// Takes part in the automatic failover of a dataset: leads it where the coordinator's record says so,
    /// follows whoever leads otherwise, and campaigns where nobody does. The database must serve at an
    /// address that the peers know: [`Database::serve`] first, with no such dataset open.
    ///
    /// # Errors
    /// [`Error::Argument`] names the setting; the disk's.
    pub fn join_cluster(
        &self,
        dataset: &str,
        how: &Failover,
        coordination: &Coordination,
    ) -> Result<ClusterMember> {
        how.check()?;
        let hub = self.start_hub("127.0.0.1:0")?;
        let dataset = self.follower(dataset)?;
        hub.join_cluster(&dataset, how, coordination)?;
        Ok(ClusterMember {
            dataset,
            _coordination: coordination.clone(),
        })
    }
}
