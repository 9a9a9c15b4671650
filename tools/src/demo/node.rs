//! One node of the demonstration: a process that is told what to do on standard input, and can be
//! killed at any moment.
//!
//! | Command | Answer |
//! |---------|--------|
//! | `lead` | `ok {"address"}`: creates the database and serves it |
//! | `follow ADDR` | `ok {"address"}`: follows from now on, served too |
//! | `promote ADDR,..` | `ok {"epoch"}`: leads from now on |
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
use std::path::PathBuf;

use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use strandline::replica::{Following, Promote, Server};
use strandline::{Database, Dataset, DatasetId, NodeRole, Options, Position, Role, ShardRouter};

use super::work::{Load, Readers, check, digest};
use super::{NODE_COUNT, SHARD_COUNT};
use crate::failure::{Exit, Failure, Result};
use crate::signal::Ending;

/// `strandline demo-node`
#[derive(Args)]
pub struct DemoNode {
    /// The database directory
    dir: PathBuf,
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

/// A node once it has been told its role.
struct Node {
    // Dropped in this order: first what uses the database, then the database.
    load: Option<Load>,
    readers: Readers,
    following: Option<Following>,
    server: Server,
    dataset: Dataset,
    database: Database,
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
        let not_yet = || Failure::usage("tell this node to lead or to follow first");
        match (verb, &mut *node) {
            ("lead", None) => {
                let opened = node.insert(self.open(NodeRole::Leader)?);
                Ok(json!({ "address": opened.server.address().to_string() }))
            }
            ("follow", current) => {
                if current.is_none() {
                    *current = Some(self.open(NodeRole::Follower)?);
                }
                let node = current.as_mut().ok_or_else(not_yet)?;
                node.following = None;
                node.following = Some(node.database.follow(rest, DatasetId::PRIMARY)?);
                Ok(json!({ "address": node.server.address().to_string() }))
            }
            ("quit", _) => {
                if let Some(mut node) = node.take() {
                    node.close()?;
                }
                Ok(json!({}))
            }
            (_, Some(node)) => node.act(verb, rest),
            (_, None) => Err(not_yet()),
        }
    }

    fn open(&self, role: NodeRole) -> Result<Node> {
        let mut options = Options {
            router: ShardRouter::hash(SHARD_COUNT)?,
            ..Options::default()
        };
        options.node.role = role;
        let database = options.open(&self.dir)?;
        let dataset = match role {
            NodeRole::Follower => database.follower(DatasetId::PRIMARY)?,
            _ => database.dataset(DatasetId::PRIMARY)?,
        };
        let server = database.serve("127.0.0.1:0")?;
        Ok(Node {
            load: None,
            readers: Readers::start(&dataset)?,
            following: None,
            server,
            dataset,
            database,
        })
    }
}

impl Node {
    fn act(&mut self, verb: &str, rest: &str) -> Result<Value> {
        match verb {
            "promote" => {
                let promotion = self.dataset.promote(&Promote {
                    peers: rest.split(',').map(str::to_owned).collect(),
                    node_count: NODE_COUNT,
                    follower_count: 1,
                    force: false,
                })?;
                self.following = None;
                Ok(json!({ "epoch": promotion.epoch }))
            }
            "load" => {
                self.load = Some(Load::start(&self.dataset, rest)?);
                Ok(json!({}))
            }
            "stop" => {
                self.load.take().map_or(Ok(()), Load::stop)?;
                Ok(json!({}))
            }
            "status" => json_of(&self.status()),
            "check" => json_of(&check(&self.dataset, rest)?),
            "digest" => json_of(&digest(&self.dataset)?),
            _ => Err(Failure::usage(format!("no command {verb:?}"))),
        }
    }

    fn status(&self) -> Status {
        let following = self.dataset.follow_status().unwrap_or_default();
        let of = |position: Position| (position.epoch.0, position.seq);
        let follower = |status: strandline::replica::FollowerStatus| Follower {
            name: status.name,
            connected: status.connected,
            behind: status.transport_lag + status.apply_lag,
            lag_ms: status.lag_ms,
        };
        let (read_count, wrong_count, wrong) = self.readers.counts();
        Status {
            leads: self.dataset.role() == Role::Leader,
            positions: self.dataset.positions().into_iter().map(of).collect(),
            read_count,
            wrong_count,
            wrong,
            followers: self.dataset.followers().into_iter().map(follower).collect(),
            connected: following.connected,
            unapplied: following.apply_lag,
            cut: following.last_cut,
            error: following.last_error,
        }
    }

    fn close(&mut self) -> Result<()> {
        self.load.take().map_or(Ok(()), Load::stop)?;
        self.readers.stop();
        self.following = None;
        self.database.close()?;
        Ok(())
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
