//! The only loop: runs the machines of any number of datasets over one transport and their stores.
//!
//! [`Driver::step`] does everything that can be done at one moment and returns; it takes time as an
//! argument and starts no thread, so a simulator runs a whole cluster with it. [`Driver::run`] calls
//! it in a loop, sleeps on the notifier in between, and takes commands from other threads.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use strandline_wal::io::Clock;
use strandline_wal::{DatasetId, Epoch};

use crate::candidate::CandidateOptions;
use crate::error::{Error, Reason, Result};
use crate::failover::Follows;
use crate::follower::FollowerOptions;
use crate::lag::LagGauges;
use crate::leader::LeaderOptions;
use crate::message::Message;
use crate::notify::Notifier;
use crate::quorum::Policy;
use crate::state::ReplicationState;
use crate::store::{FollowerStore, LeaderStore};
use crate::transport::Transport;

mod dataset;
mod pursue;
mod serve;
mod wires;

use dataset::Dataset;
use wires::{Incoming, Part, Wires};

/// Frames handled in one step, so that one step ends.
const FRAMES_PER_STEP_MAX: usize = 1024;
/// An accepted connection says hello within this time, in milliseconds.
pub const HELLO_MS_MAX: u64 = 5_000;
/// Most commands that may wait.
pub const COMMAND_COUNT_MAX: usize = 1024;
/// The loop looks around at least this often, in milliseconds.
const SLEEP_MS_MAX: u64 = 100;

/// The time of a step. Order and safety never depend on either.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Now {
    /// Milliseconds since some start; never goes back. All timeouts use it.
    pub mono_ms: u64,
    /// Milliseconds since 1970, for lag.
    pub wall_ms: u64,
}

/// Something for the driver to do, from any thread.
pub enum Command {
    /// Serve a dataset that this node leads.
    Lead(Arc<dyn LeaderStore>, LeaderOptions),
    /// Follow a dataset.
    Follow(Arc<dyn FollowerStore>, FollowerOptions),
    /// Try to become the leader of a dataset: ends with a report to its store.
    Campaign(Arc<dyn FollowerStore>, CandidateOptions),
    /// Count other nodes from now on.
    Policy(DatasetId, Policy),
    /// Someone acted on what stopped a follower.
    Retry(DatasetId),
    /// Let go of a dataset and its store.
    Retire(DatasetId),
}

/// See the module.
pub struct Driver {
    wires: Wires,
    datasets: BTreeMap<DatasetId, Dataset>,
    gauges: Arc<LagGauges>,
    handle: DriverHandle,
}

/// The driver from other threads.
#[derive(Clone)]
pub struct DriverHandle(Arc<Shared>);

struct Shared {
    commands: Mutex<Commands>,
    done: Condvar,
    notifier: Arc<Notifier>,
    stop: AtomicBool,
}

#[derive(Default)]
struct Commands {
    queue: VecDeque<Command>,
    // Numbers of the last command queued and the last one carried out.
    queued: u64,
    done: u64,
    ended: bool,
}

impl DriverHandle {
    /// Queues a command and waits until the driver carried it out: after [`Command::Retire`] the
    /// driver has let go of the store.
    ///
    /// # Errors
    /// [`Error::Full`] where too many wait, [`Error::Store`] where the driver has ended.
    pub fn call(&self, command: Command) -> Result<()> {
        let mut commands = self.0.commands.lock();
        if commands.queue.len() >= COMMAND_COUNT_MAX {
            return Err(Error::Full {
                what: "command queue",
                limit: COMMAND_COUNT_MAX,
            });
        }
        commands.queue.push_back(command);
        commands.queued += 1;
        let number = commands.queued;
        self.0.notifier.notify();
        while commands.done < number {
            if commands.ended {
                return Err(Error::Store {
                    what: "the driver has ended".to_owned(),
                });
            }
            self.0.done.wait(&mut commands);
        }
        Ok(())
    }

    /// Ends [`Driver::run`].
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.notifier.notify();
    }
}

impl Driver {
    /// A driver of no dataset yet. `notifier` is the one that its transport and its stores wake.
    pub fn new(transport: Box<dyn Transport>, notifier: Arc<Notifier>) -> Driver {
        let shared = Shared {
            commands: Mutex::default(),
            done: Condvar::new(),
            notifier,
            stop: AtomicBool::new(false),
        };
        Driver {
            wires: Wires::new(transport),
            datasets: BTreeMap::new(),
            gauges: Arc::default(),
            handle: DriverHandle(Arc::new(shared)),
        }
    }

    /// For other threads.
    pub fn handle(&self) -> DriverHandle {
        self.handle.clone()
    }

    /// The lag of all followers of datasets that are led here.
    pub fn gauges(&self) -> Arc<LagGauges> {
        Arc::clone(&self.gauges)
    }

    /// The contiguous received marks of a dataset that is followed here.
    pub fn state(&self, dataset: &DatasetId) -> Option<Arc<ReplicationState>> {
        self.datasets
            .get(dataset)
            .and_then(|dataset| dataset.state())
    }

    /// Of a dataset that is followed here: the epoch of its leader, and when that was last heard.
    pub fn heard(&self, dataset: &DatasetId) -> Option<(Epoch, u64)> {
        self.datasets.get(dataset)?.heard()
    }

    /// Of a dataset that is led here: the durable ends of its logs, and how its followers stand.
    pub fn follows(&self, dataset: &DatasetId) -> Option<(Vec<u64>, Vec<Follows>)> {
        self.datasets.get(dataset)?.follows()
    }

    /// Carries out a command. A new role of a dataset replaces the old one.
    pub fn command(&mut self, now: Now, command: Command) {
        let dataset = match command {
            Command::Lead(store, options) => {
                self.retire(now, &store.identity().dataset);
                Dataset::lead(store, options)
            }
            Command::Follow(store, options) => {
                self.retire(now, &store.identity().dataset);
                Dataset::follow(store, options)
            }
            Command::Campaign(store, options) => {
                self.retire(now, &store.identity().dataset);
                Dataset::campaign(now, &mut self.wires, store, options)
            }
            Command::Policy(id, policy) => {
                if let Some(dataset) = self.datasets.get_mut(&id) {
                    dataset.policy(now, &mut self.wires, policy);
                }
                return;
            }
            Command::Retry(id) => {
                if let Some(dataset) = self.datasets.get_mut(&id) {
                    dataset.retry(now, &mut self.wires);
                }
                return;
            }
            Command::Retire(id) => return self.retire(now, &id),
        };
        self.datasets.insert(dataset.id().clone(), dataset);
    }

    fn retire(&mut self, now: Now, id: &DatasetId) {
        if self.datasets.remove(id).is_some() {
            self.gauges.forget(id);
            for part in [
                Part::Server,
                Part::Lender,
                Part::Pursuer,
                Part::Voter,
                Part::Candidate,
                Part::Fetcher,
            ] {
                dataset::close_all(now, &mut self.wires, id, part);
            }
        }
    }

    /// Does everything that can be done at `now`. `true` where more is left: call it again soon.
    pub fn step(&mut self, now: Now) -> bool {
        self.commands(now);
        for dataset in self.datasets.values_mut() {
            dataset.refresh(now, &mut self.wires);
        }
        let mut frames = 0;
        while frames < FRAMES_PER_STEP_MAX {
            let Some(incoming) = self.wires.poll(now.mono_ms) else {
                break;
            };
            self.incoming(now, incoming);
            frames += 1;
        }
        let mut busy = frames == FRAMES_PER_STEP_MAX;
        for dataset in self.datasets.values_mut() {
            busy |= dataset.settle(now, &mut self.wires, &self.gauges);
        }
        self.drop_silent(now);
        busy
    }

    /// When [`Driver::step`] has something to do, as far as that is known ahead.
    pub fn due_ms(&self) -> Option<u64> {
        let datasets = self
            .datasets
            .values()
            .filter_map(|dataset| dataset.due_ms());
        datasets.chain(self.wires.due_ms()).min()
    }

    /// Steps until [`DriverHandle::stop`]. The caller owns the thread and its name.
    pub fn run(&mut self, clock: &dyn Clock) {
        let shared = Arc::clone(&self.handle.0);
        while !shared.stop.load(Ordering::Acquire) {
            shared.notifier.rearm();
            let now = Now {
                mono_ms: clock.mono_ns() / 1_000_000,
                wall_ms: clock.wall_ms(),
            };
            if !self.step(now) {
                let due = self.due_ms().unwrap_or(u64::MAX);
                let sleep_ms = due.saturating_sub(now.mono_ms).clamp(1, SLEEP_MS_MAX);
                shared.notifier.wait(Duration::from_millis(sleep_ms));
            }
        }
        let mut commands = shared.commands.lock();
        commands.ended = true;
        commands.queue.clear();
        shared.done.notify_all();
    }

    fn commands(&mut self, now: Now) {
        let shared = Arc::clone(&self.handle.0);
        loop {
            let Some(command) = shared.commands.lock().queue.pop_front() else {
                return;
            };
            self.command(now, command);
            shared.commands.lock().done += 1;
            shared.done.notify_all();
        }
    }

    fn incoming(&mut self, now: Now, incoming: Incoming) {
        let conn = match &incoming {
            Incoming::Opened(conn) | Incoming::Message(conn, _) | Incoming::Closed(conn, _) => {
                *conn
            }
        };
        let Some(entry) = self.wires.conns.get(&conn) else {
            return;
        };
        let Some((id, part)) = entry.owner.clone() else {
            return self.stranger(now, incoming);
        };
        if let Incoming::Closed(..) = incoming {
            self.wires.conns.remove(&conn);
        }
        let Some(dataset) = self.datasets.get_mut(&id) else {
            return self.wires.close(now.mono_ms, conn);
        };
        match incoming {
            Incoming::Opened(conn) => dataset.opened(now, &mut self.wires, conn, part),
            Incoming::Message(conn, message) => {
                dataset.message(now, &mut self.wires, conn, part, message);
            }
            Incoming::Closed(conn, why) => dataset.closed(now, &mut self.wires, conn, part, why),
        }
    }

    /// Something of a connection that has not said hello.
    fn stranger(&mut self, now: Now, incoming: Incoming) {
        match incoming {
            Incoming::Opened(_) => {}
            Incoming::Closed(conn, _) => {
                self.wires.conns.remove(&conn);
            }
            Incoming::Message(conn, Message::Hello(hello))
                if !self.wires.may_claim(conn, &hello.name) =>
            {
                let text = "its certificate does not say that it is this node";
                self.wires
                    .turn_away(now.mono_ms, conn, Reason::Name, text, &hello.name);
            }
            Incoming::Message(conn, Message::Hello(hello)) => {
                match self.datasets.get_mut(&hello.dataset) {
                    Some(dataset) => dataset.greet(now, &mut self.wires, conn, hello),
                    None => {
                        let text = "the dataset is not open here";
                        let reason = Reason::UnknownDataset;
                        self.wires.turn_away(now.mono_ms, conn, reason, text, "");
                    }
                }
            }
            Incoming::Message(conn, message) => {
                let text = format!("{} before Hello", message.name());
                self.wires
                    .turn_away(now.mono_ms, conn, Reason::Protocol, &text, "");
            }
        }
    }

    /// Ends accepted connections that do not say hello.
    fn drop_silent(&mut self, now: Now) {
        let late = |c: &wires::Conn| c.owner.is_none() && now.mono_ms > c.since_ms + HELLO_MS_MAX;
        let conns: Vec<_> = self
            .wires
            .conns
            .iter()
            .filter(|(_, c)| late(c))
            .map(|(conn, _)| *conn)
            .collect();
        conns
            .into_iter()
            .for_each(|conn| self.wires.close(now.mono_ms, conn));
    }
}

#[cfg(test)]
mod tests;
