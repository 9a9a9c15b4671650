//! `serve`, `follow`, `promote` and `status`: a node among others.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use strandline::replica::{Links, Promote as How, Server, remote_status_by};
use strandline::{Database, DatasetId, NodeRole, Options, Position, ShardRouter};
use strandline_wal::io::Env;

use super::asked;
use super::links::LinkArgs;
use super::stdio;
use crate::failure::{Exit, Failure, Result};
use crate::inspect::diff::ends;
use crate::inspect::store::{self, DatasetFiles};
use crate::log::{LogArgs, Teller, one_line};
use crate::open::{self, Place, Writing};
use crate::signal::Ending;
use crate::text;

/// How often a node looks for signals and for news to tell.
pub(super) const POLL: Duration = Duration::from_millis(100);

/// `strandline serve`
#[derive(Args)]
pub struct Serve {
    #[command(flatten)]
    place: Place,
    /// Address to listen on: loopback only, because connections are not authenticated, unless there is
    /// a certificate; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: String,
    /// HOST:PORT at which other nodes reach this one [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    #[command(flatten)]
    links: LinkArgs,
    /// Serve one connection on standard input and output, as ssh gives it
    #[arg(long, conflicts_with_all = ["listen", "advertise", "tls_cert"])]
    stdio: bool,
    /// With --stdio, the loopback address of a running node: the connection is handed on to it, and the
    /// directory, which it has open, is not touched
    #[arg(long, value_name = "ADDR", requires = "stdio")]
    to: Option<SocketAddr>,
    #[command(flatten)]
    archive: super::archive::Into,
    #[command(flatten)]
    writing: Writing,
    #[command(flatten)]
    log: LogArgs,
    /// Bytes per second to read of what is stored, to find damage before it is asked for; 0: none
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    scrub_rate: u64,
}

impl Serve {
    pub(super) fn run(self) -> Result<Exit> {
        if let Some(to) = self.to {
            stdio::hand_on(to)?;
            return Ok(Exit::Ok);
        }
        self.log.start();
        // A connection that was cut off ends the process; nothing else should be needed to.
        let ending = match self.stdio {
            true => None,
            false => Some(Ending::prepare()?),
        };
        open::datasets(&Env::real_pread(), &self.place.dir)?;
        let writing = Writing {
            scrub_rate: self.scrub_rate,
            links: Links {
                advertise: self.advertise,
                ..self.links.read()?
            },
            ..self.writing
        };
        let (database, _) = writing.open(&self.place)?;
        let server = database.serve(&self.listen)?;
        let _archiving = self.archive.start(&database)?;
        match ending {
            Some(mut ending) => {
                say(&format!("listening {}", server.address()))?;
                wait(&mut ending, &database, &server);
            }
            None => stdio::hand_on(server.address())?,
        }
        server.stop();
        database.close()?;
        Ok(Exit::Ok)
    }
}

/// Waits for a signal and tells meanwhile what happens.
fn wait(ending: &mut Ending, database: &Database, server: &Server) {
    let mut teller = Teller::default();
    while !ending.has_come() {
        teller.tell(database, server);
        std::thread::sleep(POLL);
    }
    teller.tell(database, server);
}

/// Prints a line that another program waits for.
pub(super) fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()?;
    Ok(())
}

/// `strandline follow`
#[derive(Args)]
pub struct Follow {
    #[command(flatten)]
    place: Place,
    /// The leader's address
    #[arg(long, value_name = "ADDR", required_unless_present = "command")]
    leader: Option<String>,
    /// A command whose standard input and output are the connection to the leader, and its arguments, as:
    /// -- ssh HOST strandline serve --stdio DIR
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "leader")]
    command: Vec<String>,
    /// Address to listen on for status calls and promotions of others
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    listen: String,
    /// HOST:PORT at which other nodes reach this one [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    /// Give up epoch N, which this node was promoted to, and follow a leader of an earlier one: what it
    /// wrote there is cut, whoever confirmed it, and saved under divergent/
    #[arg(long, value_name = "N")]
    yield_epoch: Option<u32>,
    #[command(flatten)]
    links: LinkArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Mend damaged files by what the leader has: those that the start meets, and those that a scrub
    /// finds
    #[arg(long)]
    heal: bool,
    /// Bytes per second to read of what is stored, to find damage before it is asked for; 0: none
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    scrub_rate: u64,
}

impl Follow {
    pub(super) fn run(self) -> Result<Exit> {
        self.log.start();
        let mut ending = Ending::prepare()?;
        let (leader, links) = self.links()?;
        let Some(options) = self.options(&mut ending, &leader, links)? else {
            return Ok(Exit::Ok);
        };
        let database = options.open(&self.place.dir)?;
        if let Some(epoch) = self.yield_epoch {
            database.dataset(&self.place.dataset)?.yield_epoch(epoch)?;
        }
        let server = database.serve(&self.listen)?;
        let following = database.follow(&leader, &self.place.dataset)?;
        say(&format!("listening {}", server.address()))?;
        wait(&mut ending, &database, &server);
        following.stop();
        server.stop();
        database.close()?;
        Ok(Exit::Ok)
    }

    /// The leader's name, and how it is reached.
    fn links(&self) -> Result<(String, Links)> {
        let mut links = Links {
            advertise: self.advertise.clone(),
            ..self.links.read()?
        };
        if let Some(leader) = &self.leader {
            return Ok((leader.clone(), links));
        }
        let name = self.command.join(" ");
        links.commands.insert(name.clone(), self.command.clone());
        Ok((name, links))
    }

    /// The settings of what is stored; of a new copy, with as many shards as the leader has. `None`
    /// where a signal came before the leader answered.
    fn options(&self, ending: &mut Ending, leader: &str, links: Links) -> Result<Option<Options>> {
        let root = &self.place.dir;
        let stored = match follower_options(root) {
            // What the open meets and mends; the leader tells the layout.
            Err(_) if self.heal => None,
            options => Some(options?),
        };
        let is_whole = stored.is_some();
        let mut options = Options {
            scrub_rate: self.scrub_rate,
            links,
            ..stored.unwrap_or_default()
        };
        options.node.role = NodeRole::Follower;
        if self.heal {
            options.heal_from = vec![leader.to_owned()];
        }
        if is_whole && is_stored(root, &self.place.dataset)? {
            return Ok(Some(options));
        }
        match ask_router(leader, &self.place.dataset, &options.links, ending) {
            Some(router) => options.router = router?,
            None => return Ok(None),
        }
        Ok(Some(options))
    }
}

/// How the leader's dataset is spread over shards, once it answers; `None` where a signal came before.
pub(super) fn ask_router(
    leader: &str,
    dataset: &str,
    links: &Links,
    ending: &mut Ending,
) -> Option<Result<ShardRouter>> {
    let mut is_told = false;
    loop {
        match remote_status_by(leader, dataset, links) {
            Ok(status) if status.positions.len() > 1 => {
                let shards = u16::try_from(status.positions.len()).unwrap_or(u16::MAX);
                return Some(ShardRouter::hash(shards).map_err(Failure::from));
            }
            Ok(_) => return Some(Ok(ShardRouter::Single)),
            Err(error) if !is_told => {
                is_told = true;
                let text = one_line(&error.to_string());
                tracing::warn!(
                    event = "waiting",
                    peer = leader,
                    "waiting for {leader}: {text}"
                );
            }
            Err(_) => {}
        }
        for _ in 0..5 {
            if ending.has_come() {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }
}

fn is_stored(root: &Path, dataset: &str) -> Result<bool> {
    let env = Env::real_pread();
    if env.disk.stat(root).is_err() {
        return Ok(false);
    }
    let stored = open::datasets(&env, root).unwrap_or_default();
    Ok(stored.iter().any(|(id, _)| id.as_str() == dataset))
}

/// Settings that fit what is stored, for a node that claims nothing.
fn follower_options(root: &Path) -> Result<Options> {
    let mut options = open::stored_options(&Env::real_pread(), root)?;
    options.node.role = NodeRole::Follower;
    Ok(options)
}

/// `strandline promote`
#[derive(Args)]
pub struct Promote {
    #[command(flatten)]
    place: Place,
    /// Address of another running node of the list; may be repeated
    #[arg(long = "peer", value_name = "ADDR")]
    peers: Vec<String>,
    /// Nodes on the list, this one and dead ones included [default: this one and the peers]
    #[arg(long, value_name = "N")]
    nodes: Option<usize>,
    /// Followers that every acknowledged write waited for: the more, the fewer nodes must answer now
    #[arg(long, default_value_t = 1, value_name = "N")]
    confirmed: usize,
    /// Ask nobody: what only other nodes hold is lost
    #[arg(long, conflicts_with_all = ["peers", "nodes"])]
    force: bool,
    /// Go on serving at this address until SIGINT or SIGTERM
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// HOST:PORT at which other nodes reach this one [default: where it listens]
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    #[command(flatten)]
    links: LinkArgs,
    #[command(flatten)]
    log: LogArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Promote {
    pub(super) fn run(self) -> Result<Exit> {
        self.log.start();
        let mut ending = Ending::prepare()?;
        let root = &self.place.dir;
        open::datasets(&Env::real_pread(), root)?;
        let mut options = open::stored_options(&Env::real_pread(), root)?;
        // The others stay what they are.
        options.followed = vec![DatasetId::new(&self.place.dataset).map_err(Failure::usage)?];
        options.links = Links {
            advertise: self.advertise.clone(),
            ..self.links.read()?
        };
        let database = options.open(root)?;
        let dataset = open::dataset(&database, &self.place.dataset)?;
        let listen = self.listen.as_deref().unwrap_or("127.0.0.1:0");
        let server = database.serve(listen)?;
        let promotion = dataset.promote(&How {
            peers: self.peers.clone(),
            node_count: self.nodes.unwrap_or(self.peers.len() + 1),
            follower_count: self.confirmed,
            force: self.force,
        })?;
        let positions = positions_text(&promotion.positions);
        if self.json {
            let document = json!({
                "epoch": promotion.epoch,
                "positions": positions_json(&promotion.positions),
                "may_be_lost": promotion.may_be_lost,
            });
            say(&document.to_string())?;
        } else {
            say(&format!("leads epoch {} from {positions}", promotion.epoch))?;
        }
        if let Some(lost) = &promotion.may_be_lost {
            eprintln!("may be lost: {lost}");
        }
        if self.listen.is_some() {
            say(&format!("listening {}", server.address()))?;
            wait(&mut ending, &database, &server);
        }
        server.stop();
        database.close()?;
        Ok(Exit::Ok)
    }
}

/// `strandline status`
#[derive(Args)]
pub struct Status {
    /// A database directory, the address of a running node, or http://ADDR where it serves its status: that
    /// tells of followers, too
    target: String,
    #[command(flatten)]
    links: LinkArgs,
    /// The dataset [default: of a directory, all; of a node, primary]
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How one dataset stands.
struct Standing {
    dataset: String,
    role: String,
    epoch: u32,
    leader: Option<String>,
    positions: Vec<Position>,
    /// Of a running node: per shard, the last sequences on its disk and before its readers.
    marks: Option<(Vec<u64>, Vec<u64>)>,
}

impl Status {
    pub(super) fn run(self) -> Result<Exit> {
        if let Some(address) = self.target.strip_prefix("http://") {
            return asked::print(address, self.dataset.as_deref(), self.json);
        }
        let path = PathBuf::from(&self.target);
        let is_address = !path.exists() && self.target.contains(':');
        let standings = match is_address {
            true => vec![self.remote()?],
            false => self.stored(&path)?,
        };
        let mut out = std::io::stdout().lock();
        if self.json {
            let list: Vec<Value> = standings.iter().map(Standing::document).collect();
            writeln!(out, "{:#}", json!({ "datasets": list }))?;
            return Ok(Exit::Ok);
        }
        for standing in &standings {
            standing.print(&mut out)?;
        }
        Ok(Exit::Ok)
    }

    fn remote(&self) -> Result<Standing> {
        let dataset = self.dataset.clone().unwrap_or_default();
        let status = remote_status_by(&self.target, &dataset, &self.links.read()?)?;
        let named = DatasetId::new(&dataset).map_err(Failure::usage)?;
        Ok(Standing {
            dataset: named.to_string(),
            role: status.role,
            epoch: status.epoch,
            leader: Some(status.leader).filter(|leader| !leader.is_empty()),
            positions: status.positions,
            marks: Some((status.durable, status.applied)),
        })
    }

    fn stored(&self, root: &Path) -> Result<Vec<Standing>> {
        let env = Env::real_pread();
        let stored = store::datasets(&env, root, self.dataset.as_deref())?;
        let database = open::reader(root)?;
        stored
            .iter()
            .map(|dataset| Standing::of(&env, &database, dataset))
            .collect()
    }
}

impl Standing {
    fn of(env: &Env, database: &Database, dataset: &DatasetFiles) -> Result<Standing> {
        let role = match database.is_follower(dataset.id.as_str())? {
            true => "follower",
            false => "leader",
        };
        let positions = ends(env, dataset)?;
        let epochs = positions.iter().map(|position| position.epoch.0);
        Ok(Standing {
            dataset: dataset.id.to_string(),
            role: role.to_owned(),
            epoch: epochs.max().unwrap_or(0),
            leader: None,
            positions,
            marks: None,
        })
    }

    fn print(&self, out: &mut dyn Write) -> Result<()> {
        let (dataset, role, epoch) = (text::show(self.dataset.as_bytes()), &self.role, self.epoch);
        writeln!(out, "dataset {dataset}: {role}, epoch {epoch}")?;
        if let Some(leader) = self.leader.as_ref().filter(|_| self.role != "leader") {
            writeln!(out, "  leader    {leader}")?;
        }
        writeln!(out, "  positions {}", positions_text(&self.positions))?;
        if let Some(lag) = self.apply_lag().filter(|lag| *lag > 0) {
            writeln!(out, "  behind    {} not shown", text::plural(lag, "record"))?;
        }
        Ok(())
    }

    /// Records in its log that its readers do not see.
    fn apply_lag(&self) -> Option<u64> {
        let (_, applied) = self.marks.as_ref()?;
        let pairs = self.positions.iter().zip(applied);
        Some(pairs.map(|(end, seq)| end.seq.saturating_sub(*seq)).sum())
    }

    fn document(&self) -> Value {
        let marks = self.marks.as_ref();
        json!({
            "name": self.dataset,
            "role": self.role,
            "epoch": self.epoch,
            "leader": self.leader,
            "positions": positions_json(&self.positions),
            "durable": marks.map(|(durable, _)| durable),
            "applied": marks.map(|(_, applied)| applied),
            "apply_lag": self.apply_lag(),
        })
    }
}

fn positions_text(positions: &[Position]) -> String {
    let texts: Vec<String> = positions.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

fn positions_json(positions: &[Position]) -> Value {
    let of = |position: &Position| json!({ "epoch": position.epoch.0, "seq": position.seq });
    positions.iter().map(of).collect()
}
