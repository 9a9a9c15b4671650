//! The thread that steps a node over TCP, and the calls of other threads to it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use strandline_replication::lag::LagGauges;
use strandline_replication::message::{Hello, Link, Message, Purpose, Role, VERSIONS};
use strandline_replication::transport::tcp::{Refusals, TcpOptions, TcpTransport};
use strandline_replication::transport::{Transport, TransportEvent};
use strandline_replication::{Incarnation, Lineage, NodeId, Notifier, Now};
use strandline_wal::io::{Clock, Env};
use strandline_wal::{DatasetId, Epoch};

use super::failover::{Coordination, Failover, FailoverStatus};
use super::links::Links;
use super::node::{Campaign, Node, Observed, follow_status, followers_of};
use super::{FollowStatus, FollowerStatus, Promote, Promotion, RemoteStatus};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::store::Hook;

/// Most calls that wait for the thread.
const CALL_COUNT_MAX: usize = 64;
/// Longest sleep of the thread, in milliseconds.
const SLEEP_MS_MAX: u64 = 100;
/// How long a status call waits, in milliseconds.
const STATUS_MS_MAX: u64 = 5_000;
/// How long a promotion waits beyond the candidate's own patience, in milliseconds.
const PROMOTE_MS_MAX: u64 = 60_000;

type Call = Box<dyn FnOnce(&mut Node, Now) + Send>;

/// A node of this process, on a thread of its own.
pub(crate) struct Hub {
    address: SocketAddr,
    calls: SyncSender<Call>,
    notifier: Arc<Notifier>,
    gauges: Arc<LagGauges>,
    refusals: Arc<Refusals>,
    observed: Arc<Mutex<std::collections::BTreeMap<DatasetId, Observed>>>,
    hook: Arc<Hook>,
    thread: Mutex<Option<JoinHandle<()>>>,
    stopped: Arc<AtomicBool>,
    serving: AtomicBool,
}

pub(super) fn failed(error: strandline_replication::Error) -> Error {
    Error::Replication(error.to_string())
}

fn wrong_address(listen: &str, expected: String) -> Error {
    Error::Argument {
        what: "address to listen on",
        expected,
        found: listen.to_owned(),
    }
}

fn parse(listen: &str) -> Result<SocketAddr> {
    let expected = || "an address and a port, as 127.0.0.1:0".to_owned();
    listen
        .parse()
        .map_err(|_| wrong_address(listen, expected()))
}

impl Hub {
    pub fn start(env: &Env, listen: &str, links: &Links, hook: Arc<Hook>) -> Result<Hub> {
        let notifier = Arc::new(Notifier::default());
        let options = TcpOptions {
            listen: Some(parse(listen)?),
            ..links.options(&env.clock)?
        };
        let (clock, wake) = (Arc::clone(&env.clock), Arc::clone(&notifier));
        let transport = TcpTransport::new(options.clone(), clock, wake).map_err(failed)?;
        let (address, refusals) = (transport.local_addr(), transport.refusals());
        let address = address.expect("it listens");
        let name = links.name(&options, &address.to_string())?;
        let node = Node::new(&name, Box::new(transport), Arc::clone(&notifier));
        let (gauges, observed) = (node.gauges(), node.observed());
        let (calls, queue) = sync_channel(CALL_COUNT_MAX);
        let stopped = Arc::new(AtomicBool::new(false));
        let wake = Arc::clone(&notifier);
        hook.set(Some(Arc::new(move || wake.notify())));
        let run = Running {
            node,
            queue,
            clock: Arc::clone(&env.clock),
            notifier: Arc::clone(&notifier),
            stopped: Arc::clone(&stopped),
        };
        let thread = std::thread::Builder::new()
            .name("strandline-ship".to_owned())
            .spawn(move || run.run())
            .map_err(|error| Error::Replication(format!("no thread for shipping: {error}")))?;
        let thread = Mutex::new(Some(thread));
        Ok(Hub {
            address,
            calls,
            notifier,
            gauges,
            refusals,
            observed,
            hook,
            thread,
            stopped,
            serving: AtomicBool::new(false),
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn refusals(&self) -> Vec<String> {
        self.refusals.take()
    }

    /// Fails where the node was to listen elsewhere.
    pub fn check_address(&self, listen: &str) -> Result<()> {
        let wanted = parse(listen)?;
        if wanted.port() == 0 || wanted == self.address {
            return Ok(());
        }
        let expected = format!(
            "{}, where it listens; serve before you follow",
            self.address
        );
        Err(wrong_address(listen, expected))
    }

    /// Marks the node as one that serves; `false` where it was already.
    pub fn claim_serving(&self) -> bool {
        !self.serving.swap(true, Ordering::AcqRel)
    }

    /// Runs something on the node's thread and returns what it returns.
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Node, Now) -> T + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        let call: Call = Box::new(move |node, now| {
            // A caller that went away needs no answer.
            let _ = answer.send(f(node, now));
        });
        self.calls
            .send(call)
            .map_err(|_| Error::Closed("replication"))?;
        self.notifier.notify();
        answered.recv().map_err(|_| Error::Closed("replication"))
    }

    pub fn lead(&self, dataset: &Dataset) -> Result<()> {
        let dataset = dataset.clone();
        self.call(move |node, now| node.lead(now, &dataset))?
    }

    pub fn follow(&self, dataset: &Dataset, peers: &[String]) -> Result<()> {
        let (dataset, peers) = (dataset.clone(), peers.to_vec());
        self.call(move |node, now| node.follow(now, &dataset, &peers))?
    }

    /// Does something with a dataset that follows while it is closed.
    pub fn closed<T: Send + 'static>(
        &self,
        dataset: &Dataset,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let dataset = dataset.clone();
        self.call(move |node, now| node.closed(now, &dataset, work))?
    }

    pub fn join_cluster(
        &self,
        dataset: &Dataset,
        how: &Failover,
        coordination: &Coordination,
    ) -> Result<()> {
        let (dataset, how) = (dataset.clone(), how.clone());
        let desk = coordination.desk(&dataset.name(), Arc::clone(&self.notifier));
        self.call(move |node, now| node.take_part(now, &dataset, &how, desk))?
    }

    pub fn failover_status(&self, dataset: &Dataset) -> FailoverStatus {
        let dataset = dataset.clone();
        self.call(move |node, _| node.failover_status(&dataset))
            .unwrap_or_default()
    }

    pub fn retire(&self, dataset: &Dataset) {
        let dataset = dataset.clone();
        // A thread that has ended follows nothing any more.
        let _ = self.call(move |node, now| node.retire(now, &dataset));
    }

    pub fn promote(&self, dataset: &Dataset, how: &Promote) -> Result<Promotion> {
        let (candidate, how) = (dataset.clone(), how.clone());
        self.call(move |node, now| node.campaign(now, &candidate, &how))??;
        let mut waited_ms = 0;
        loop {
            let asked = dataset.clone();
            match self.call(move |node, _| node.campaign_of(&asked))? {
                Campaign::Won(promotion) => return Ok(promotion),
                Campaign::Lost(error) => return Err(error),
                Campaign::Open if waited_ms >= PROMOTE_MS_MAX => {
                    let text = format!("no outcome of the promotion within {PROMOTE_MS_MAX} ms");
                    return Err(Error::Replication(text));
                }
                Campaign::Open => {
                    std::thread::sleep(Duration::from_millis(2));
                    waited_ms += 2;
                }
            }
        }
    }

    pub fn followers(&self, id: &DatasetId) -> Vec<FollowerStatus> {
        followers_of(&self.gauges, id)
    }

    pub fn follow_status(&self, dataset: &Dataset) -> FollowStatus {
        let id = dataset.inner().store().id().clone();
        let observed = self.observed.lock().get(&id).cloned().unwrap_or_default();
        follow_status(dataset, &observed)
    }

    /// Stops and joins the thread. Idempotent.
    pub fn stop(&self) {
        self.hook.set(None);
        self.stopped.store(true, Ordering::Release);
        self.notifier.notify();
        let thread = self.thread.lock().take();
        // The last owner of the database may be a call that runs on the thread itself.
        let is_self = |t: &JoinHandle<()>| t.thread().id() == std::thread::current().id();
        if let Some(thread) = thread.filter(|thread| !is_self(thread)) {
            // A panic was printed by the thread; the stores it stepped are poisoned by their own rules.
            let _ = thread.join();
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Running {
    node: Node,
    queue: Receiver<Call>,
    clock: Arc<dyn Clock>,
    notifier: Arc<Notifier>,
    stopped: Arc<AtomicBool>,
}

impl Running {
    fn run(mut self) {
        while !self.stopped.load(Ordering::Acquire) {
            self.notifier.rearm();
            let now = now(self.clock.as_ref());
            while let Ok(call) = self.queue.try_recv() {
                call(&mut self.node, now);
            }
            if !self.node.step(now) {
                let due = self.node.due_ms().unwrap_or(u64::MAX);
                let sleep_ms = due.saturating_sub(now.mono_ms).clamp(1, SLEEP_MS_MAX);
                self.notifier.wait(Duration::from_millis(sleep_ms));
            }
        }
    }
}

fn now(clock: &dyn Clock) -> Now {
    Now {
        mono_ms: clock.mono_ns() / 1_000_000,
        wall_ms: clock.wall_ms(),
    }
}

/// Asks a node for the status of a dataset.
pub(super) fn ask_status(address: &str, dataset: DatasetId, links: &Links) -> Result<RemoteStatus> {
    let env = Env::real();
    let notifier = Arc::new(Notifier::default());
    let options = links.options(&env.clock)?;
    let name = Links::asker(&options);
    let (clock, wake) = (Arc::clone(&env.clock), Arc::clone(&notifier));
    let mut transport = TcpTransport::new(options, clock, wake).map_err(failed)?;
    let started = now(env.clock.as_ref()).mono_ms;
    let conn = transport.connect(started, address).map_err(failed)?;
    let mut link = Link::default();
    loop {
        notifier.rearm();
        let at = now(env.clock.as_ref()).mono_ms;
        if at - started > STATUS_MS_MAX {
            return Err(Error::Replication(format!("{address} does not answer")));
        }
        let message = match transport.poll(at) {
            None => {
                notifier.wait(Duration::from_millis(10));
                continue;
            }
            Some(TransportEvent::Opened(_)) => {
                let hello = hello(&env, &name, dataset.clone());
                // Where it fails the end of the connection, which comes next, says why.
                let _ = transport.send(at, conn, link.seal(&Message::Hello(hello)));
                continue;
            }
            Some(TransportEvent::Closed(_, why)) => return Err(failed(why)),
            Some(TransportEvent::Accepted(stranger, _)) => {
                transport.close(at, stranger);
                continue;
            }
            Some(TransportEvent::Frame(_, frame)) => link.open(address, frame).map_err(failed)?,
        };
        match message {
            Some(Message::Welcome(_)) => {
                let _ = transport.send(at, conn, link.seal(&Message::StatusRequest));
            }
            Some(Message::Status(status)) => {
                return Ok(RemoteStatus {
                    role: match status.role {
                        Role::Leader => "leader",
                        Role::Follower => "follower",
                        Role::Candidate => "candidate",
                    }
                    .to_owned(),
                    epoch: status.epoch.0,
                    leader: status.leader_name,
                    positions: status.shards.iter().map(|(end, _)| end.position).collect(),
                    durable: status.shards.iter().map(|(_, ack)| ack.durable).collect(),
                    applied: status.shards.iter().map(|(_, ack)| ack.applied).collect(),
                });
            }
            Some(Message::Refused(refusal)) => {
                return Err(Error::Replication(format!(
                    "{}: {}",
                    refusal.reason, refusal.text
                )));
            }
            Some(_) | None => {}
        }
    }
}

fn hello(env: &Env, name: &str, dataset: DatasetId) -> Hello {
    Hello {
        versions: VERSIONS,
        purpose: Purpose::Control,
        promised_epoch: Epoch(0),
        node: NodeId(env.random.next_id()),
        incarnation: Incarnation(env.random.next_id()),
        lineage: Lineage::default(),
        name: name.to_owned(),
        dataset,
        ends: Vec::new(),
    }
}
