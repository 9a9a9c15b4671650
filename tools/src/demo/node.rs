//! One node of the demonstration: a process that is told what to do on standard input, and can be
//! killed at any moment.
//!
//! | Command | Answer |
//! |---------|--------|
//! | `serve ADDR` | `ok {"address"}`: opens the database, listens there |
//! | `join LEASE_MS first\|later COORDINATOR ADDR,..` | `ok {}`: takes part with these others; whoever is first leads a new dataset |
//! | `load PHASE BYTES DIRECTORY` | `ok {}`, then `ack WRITER NUMBER FILES BYTES` for every batch |
//! | `stop` | `ok {}`: no batch is written after it |
//! | `status` | `ok {..}`, see [`Status`] |
//! | `check WRITER:NUMBER,..` | `ok {..}`, see `super::work::Checked` |
//! | `digest` | `ok {..}`, see `super::work::State` |
//! | `quit` | `ok {}`: closed |
//!
//! What cannot be done is answered `error` and why. The end of standard input ends the process, so
//! no node outlives the one that started it.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strandline::replica::coordinator::directory::DirectoryCoordinator;
use strandline::replica::{ClusterMember, Coordination, Failover, Links, Server};
use strandline::{Database, Dataset, DatasetId, NodeRole, Options, Position, Role, ShardRouter};
use strandline_wal::io::Env;

use super::SHARD_COUNT;
use super::work::{Load, Readers, check, digest};
use crate::cli::links::LinkArgs;
use crate::failure::{Exit, Failure, Result};
use crate::signal::Ending;

/// `strandline demo-node`
#[derive(Args)]
pub struct DemoNode {
    /// The database directory
    dir: PathBuf,
    #[command(flatten)]
    links: LinkArgs,
}

/// How a node stands.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Status {
    /// Whether it leads.
    pub leads: bool,
    /// Per shard, epoch and sequence where its log ends.
    pub positions: Vec<(u32, u64)>,
    /// Values that were read and checked.
    pub read_count: u64,
    /// Of them those that were not what they should be.
    pub wrong_count: u64,
    /// The first of these.
    pub wrong: Option<String>,
    /// On a leader, its followers.
    pub followers: Vec<Follower>,
    /// Nodes that have everything that was acknowledged, itself included, by the record that it knows.
    pub in_sync: usize,
    /// Full copies that it took since it was started.
    pub bundle_count: u64,
    /// On a follower, whether it is connected.
    pub connected: bool,
    /// On a follower, records that it has and does not show yet.
    pub unapplied: u64,
    /// On a follower, what was cut because it forked.
    pub cut: Option<String>,
    /// On a follower, why it is not connected.
    pub error: Option<String>,
}

/// How a follower stands, as its leader sees it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Follower {
    /// Its address.
    pub name: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Records that it does not have yet.
    pub behind: u64,
    /// Age of what its readers see, in milliseconds.
    pub lag_ms: u64,
}

/// A node once it serves.
struct Node {
    // Dropped in this order: first what uses the database, then the database.
    part: Option<Part>,
    server: Server,
    database: Database,
}

/// A node's part in the dataset.
struct Part {
    load: Option<Load>,
    readers: Readers,
    member: ClusterMember,
}

impl DemoNode {
    pub(crate) fn run(self) -> Result<Exit> {
        // Ctrl-C reaches every process of a terminal; the one that started this one decides.
        let _ending = Ending::prepare()?;
        let mut node = None;
        for line in std::io::stdin().lock().lines() {
            let line = line.map_err(|error| Failure::io(format!("standard input: {error}")))?;
            let (verb, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
            let answer = match self.act(&mut node, verb, rest) {
                Ok(answer) => format!("ok {answer}"),
                Err(failure) => format!("error {}", failure.message.replace('\n', " ")),
            };
            say(&answer)?;
            if verb == "quit" {
                break;
            }
        }
        Ok(Exit::Ok)
    }

    fn act(&self, node: &mut Option<Node>, verb: &str, rest: &str) -> Result<Value> {
        let not_yet = || Failure::usage("tell this node to serve first");
        match (verb, &mut *node) {
            ("serve", None) => {
                let links = self.links.read()?;
                let name = self.links.name();
                let opened = node.insert(Node::open(&self.dir, links, rest)?);
                let address = opened.server.address();
                let address = name.map_or(address.to_string(), |name| format!("{name}@{address}"));
                Ok(json!({ "address": address }))
            }
            ("quit", _) => {
                if let Some(node) = node.take() {
                    node.close()?;
                }
                Ok(json!({}))
            }
            (_, Some(node)) => node.act(verb, rest),
            (_, None) => Err(not_yet()),
        }
    }
}

impl Node {
    fn open(dir: &Path, links: Links, listen: &str) -> Result<Node> {
        let mut options = Options {
            router: ShardRouter::hash(SHARD_COUNT)?,
            links,
            ..Options::default()
        };
        options.node.role = NodeRole::Follower;
        let database = options.open(dir)?;
        let server = database.serve(listen)?;
        Ok(Node {
            part: None,
            server,
            database,
        })
    }

    fn act(&mut self, verb: &str, rest: &str) -> Result<Value> {
        match (verb, &mut self.part) {
            ("join", None) => {
                self.part = Some(self.join(rest)?);
                Ok(json!({}))
            }
            (_, Some(part)) => part.act(verb, rest),
            (_, None) => Err(Failure::usage("tell this node to join first")),
        }
    }

    /// `LEASE_MS first|later COORDINATOR ADDR,..`
    fn join(&self, rest: &str) -> Result<Part> {
        let usage = || Failure::usage("join LEASE_MS first|later COORDINATOR ADDR,..");
        let mut words = rest.splitn(3, ' ');
        let (lease_ms, first) = (words.next(), words.next());
        // The directory may have spaces in its name.
        let (dir, peers) = words
            .next()
            .and_then(|rest| rest.rsplit_once(' '))
            .ok_or_else(usage)?;
        let how = Failover {
            peers: peers.split(',').map(str::to_owned).collect(),
            min_in_sync: 1,
            first: first == Some("first"),
            lease_ms: lease_ms.and_then(|ms| ms.parse().ok()).ok_or_else(usage)?,
            ..Failover::default()
        };
        let coordinator = DirectoryCoordinator::open(&Env::real_pread(), Path::new(dir));
        let coordinator = coordinator.map_err(|error| Failure::io(error.to_string()))?;
        let coordination = Coordination::new(Box::new(coordinator))?;
        let member = self
            .database
            .join_cluster(DatasetId::PRIMARY, &how, &coordination)?;
        Ok(Part {
            load: None,
            readers: Readers::start(member.dataset())?,
            member,
        })
    }

    fn close(self) -> Result<()> {
        if let Some(mut part) = self.part {
            part.load.take().map_or(Ok(()), Load::stop)?;
            part.readers.stop();
            part.member.stop();
        }
        self.server.stop();
        self.database.close()?;
        Ok(())
    }
}

impl Part {
    fn dataset(&self) -> &Dataset {
        self.member.dataset()
    }

    fn act(&mut self, verb: &str, rest: &str) -> Result<Value> {
        match verb {
            "load" => {
                self.load = Some(Load::start(self.dataset(), rest)?);
                Ok(json!({}))
            }
            "stop" => {
                self.load.take().map_or(Ok(()), Load::stop)?;
                Ok(json!({}))
            }
            "status" => json_of(&self.status()),
            "check" => json_of(&check(self.dataset(), rest)?),
            "digest" => json_of(&digest(self.dataset())?),
            _ => Err(Failure::usage(format!("no command {verb:?}"))),
        }
    }

    fn status(&self) -> Status {
        let dataset = self.dataset();
        let following = dataset.follow_status().unwrap_or_default();
        let of = |position: Position| (position.epoch.0, position.seq);
        let follower = |status: strandline::replica::FollowerStatus| Follower {
            name: status.name,
            connected: status.connected,
            behind: status.transport_lag + status.apply_lag,
            lag_ms: status.lag_ms,
        };
        let (read_count, wrong_count, wrong) = self.readers.counts();
        Status {
            leads: dataset.role() == Role::Leader && dataset.health().is_ok(),
            positions: dataset.positions().into_iter().map(of).collect(),
            read_count,
            wrong_count,
            wrong,
            followers: dataset.followers().into_iter().map(follower).collect(),
            in_sync: self.member.status().members.len(),
            bundle_count: following.bundle_count,
            connected: following.connected,
            unapplied: following.apply_lag,
            cut: following.last_cut,
            error: following.last_error,
        }
    }
}

fn json_of<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(Failure::problems)
}

/// Prints one line as a whole, whatever other threads print.
pub(super) fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()?;
    Ok(())
}
