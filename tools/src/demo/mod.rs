//! `strandline demo`: a leader and two followers, a crash under load, and the proof that nothing was
//! lost.
//!
//! Three processes of this program hold one dataset each ([`node`]), under TLS, with a coordinator in a
//! directory; this one is their client. It notes what was acknowledged to it, kills the leader with SIGKILL
//! while writers write and readers read, goes on with whoever leads next, brings the old leader back, and
//! compares: every acknowledged batch on every node, the digests of their states, and the bytes of their
//! logs.

mod live;
pub mod node;
mod process;
mod work;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use strandline::replica::coordinator::directory::PREFIX;
use strandline_wal::io::Env;

use self::live::Live;
use self::node::Status;
use self::process::{Process, SharedLedger, certify, read};
use self::work::{Checked, State};
use crate::failure::{During, Exit, Failure, Result};
use crate::inspect::{diff, store, verify};
use crate::signal::Ending;
use crate::text;

/// Nodes on the list.
const NODE_COUNT: usize = 3;
/// Shards of the dataset.
const SHARD_COUNT: u16 = 2;
/// Threads that write.
const WRITER_COUNT: u32 = 8;
/// Bytes after which a phase writes only small files.
const PHASE_LEN_MAX: u64 = 192 << 20;
/// The part of the free disk that a phase may take.
const PHASE_DISK_PART: u64 = 16;
/// How long nodes may take to find each other, or to become equal.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// How often the demonstration looks at its nodes.
const LOOK: Duration = Duration::from_millis(500);

/// `strandline demo`
#[derive(Args)]
pub struct Demo {
    /// The tree to load [default: the checkout around the current directory]
    #[arg(long, value_name = "DIRECTORY")]
    tree: Option<PathBuf>,
    /// Seconds of load before the crash; half as many after it
    #[arg(long, default_value_t = 6, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=20))]
    seconds: u64,
    /// How often the leader is killed
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=200))]
    rounds: u32,
    /// Milliseconds after which a leader that is not heard is replaced
    #[arg(long, default_value_t = 1_000, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=60_000))]
    lease: u64,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// What the demonstration found.
struct Outcome {
    batch_count: u64,
    file_count: u64,
    len: u64,
    lost: Vec<String>,
    lost_count: u64,
    read_count: u64,
    wrong_count: u64,
    /// From each SIGKILL to the next acknowledged write.
    failovers: Vec<Duration>,
    lease: Duration,
    /// Full copies that a node took: a follower that comes back needs none.
    bundle_count: u64,
    cut: Option<String>,
    states: Vec<State>,
    logs: Vec<diff::LogDiff>,
    problems: Vec<String>,
    took: Duration,
}

impl Demo {
    pub(crate) fn run(self) -> Result<Exit> {
        let ending = Ending::prepare()?;
        let tree = self.tree()?;
        let (file_count, len) = work::measure(&tree);
        if file_count == 0 {
            return Err(Failure::usage(format!(
                "{} has no files to load; name another tree with --tree",
                tree.display()
            )));
        }
        let live = Live::new(ending, self.json);
        live.say(&format!(
            "loading {}: {}, {}, over and over",
            tree.display(),
            text::plural(file_count, "file"),
            text::len(len)
        ));
        let home = tempfile::Builder::new()
            .prefix("strandline-demo-")
            .tempdir()
            .map_err(|error| Failure::io(format!("a temporary directory: {error}")))?;
        let lease = Duration::from_millis(self.lease);
        let mut cluster = Cluster::start(home.path(), live, lease)?;
        let outcome = cluster.play(&tree, Duration::from_secs(self.seconds), self.rounds);
        drop(cluster);
        let cleaned = home.close();
        let outcome = outcome?;
        cleaned.map_err(|error| Failure::io(format!("removing the databases: {error}")))?;
        outcome.print(self.json);
        match outcome.is_good() {
            true => Ok(Exit::Ok),
            false => Ok(Exit::Problems),
        }
    }

    /// The tree that was named, or the checkout that the current directory is in.
    fn tree(&self) -> Result<PathBuf> {
        let named = |path: &PathBuf| {
            path.canonicalize()
                .map_err(|error| Failure::io(format!("{}: {error}", path.display())))
        };
        if let Some(tree) = &self.tree {
            return named(tree);
        }
        let here = named(&PathBuf::from("."))?;
        let checkout = here.ancestors().find(|dir| dir.join(".git").exists());
        Ok(checkout.unwrap_or(&here).to_owned())
    }
}

/// The three nodes. The first one leads.
struct Cluster {
    nodes: Vec<Process>,
    home: PathBuf,
    lease: Duration,
    ledger: SharedLedger,
    live: Live,
    started: Instant,
    /// Of nodes that are gone.
    read_count: u64,
    wrong_count: u64,
    bundle_count: u64,
    cut: Option<String>,
}

impl Cluster {
    fn start(home: &Path, live: Live, lease: Duration) -> Result<Cluster> {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            home: home.to_owned(),
            lease,
            ledger: SharedLedger::default(),
            live,
            started: Instant::now(),
            read_count: 0,
            wrong_count: 0,
            bundle_count: 0,
            cut: None,
        };
        certify(&cluster.certs(), NODE_COUNT)?;
        let coordinator = cluster.coordinator().join(PREFIX);
        std::fs::create_dir_all(&coordinator).during("create", &coordinator)?;
        for number in 1..=NODE_COUNT {
            let dir = home.join(format!("node-{number}"));
            let mut node = Process::start(number, &dir, &cluster.certs(), &cluster.ledger)?;
            node.serve("127.0.0.1:0")?;
            cluster.nodes.push(node);
        }
        for n in 0..NODE_COUNT {
            cluster.join(n, n == 0)?;
        }
        cluster.settle("everybody to be in sync", are_in_sync)?;
        let leader = &cluster.nodes[0].address;
        let live = &cluster.live;
        live.say(&format!("node 1 leads at {leader}; nodes 2 and 3 follow"));
        Ok(cluster)
    }

    fn certs(&self) -> PathBuf {
        self.home.join("certs")
    }

    fn coordinator(&self) -> PathBuf {
        self.home.join("coordinator")
    }

    /// Lets a node that serves take part.
    fn join(&mut self, n: usize, is_first: bool) -> Result<()> {
        let addresses = self.nodes.iter().map(|node| &node.address);
        let others = addresses.enumerate().filter(|(m, _)| *m != n);
        let others: Vec<String> = others.map(|(_, address)| address.clone()).collect();
        let lease_ms = self.lease.as_millis();
        let first = if is_first { "first" } else { "later" };
        let coordinator = self.coordinator();
        let (coordinator, others) = (coordinator.display(), others.join(","));
        let command = format!("join {lease_ms} {first} {coordinator} {others}");
        let _: Value = self.nodes[n].ask(&command)?;
        Ok(())
    }

    fn play(&mut self, tree: &Path, load: Duration, rounds: u32) -> Result<Outcome> {
        let mut failovers = Vec::new();
        self.load(1, tree)?;
        for round in 1..=rounds {
            self.watch(load / rounds)?;
            failovers.push(self.round(round, tree)?);
            self.watch(load / 4 / rounds)?;
        }
        let _: Value = self.nodes[0].ask("stop")?;
        self.live.say("load stopped; waiting for the copies");
        let statuses = self.settle("copies to become equal", |statuses| {
            let ends = &statuses[0].positions;
            let is_there = |status: &Status| status.positions == *ends && status.unapplied == 0;
            statuses.iter().all(is_there) && are_in_sync(statuses)
        })?;
        self.prove(&statuses, failovers)
    }

    /// The leader is killed, another one takes over, and the old one comes back.
    fn round(&mut self, round: u32, tree: &Path) -> Result<Duration> {
        let statuses = self.statuses()?;
        let old = self.nodes.remove(0);
        self.note(&statuses[0]);
        let (number, address) = (old.number, old.address.clone());
        let killed = Instant::now();
        let old_dir = old.kill()?;
        self.live.say(&format!(
            "node {number} killed with SIGKILL, in the middle of its writes"
        ));
        self.find_leader(killed)?;
        self.load(round + 1, tree)?;
        let failover = self.first_ack(round + 1)?.duration_since(killed);
        self.live.say(&format!(
            "writing goes on after {:.2} s",
            failover.as_secs_f64()
        ));
        let mut back = Process::start(number, &old_dir, &self.certs(), &self.ledger)?;
        let listen = address
            .rsplit_once('@')
            .map_or(address.as_str(), |(_, at)| at);
        back.serve(listen)?;
        self.nodes.push(back);
        self.join(NODE_COUNT - 1, false)?;
        self.settle("the old leader to be in sync", are_in_sync)?;
        self.live
            .say(&format!("node {number} is back, as a follower"));
        Ok(failover)
    }

    /// Takes up what is asked for in the end, of a node that goes.
    fn note(&mut self, status: &Status) {
        self.read_count += status.read_count;
        self.wrong_count += status.wrong_count;
        self.bundle_count += status.bundle_count;
        self.cut = self.cut.take().or(status.cut.clone());
    }

    /// Starts the writers of a phase on the leader.
    fn load(&mut self, phase: u32, tree: &Path) -> Result<()> {
        let tree = tree.display();
        let free = Env::real_pread().disk.free_len(&self.nodes[0].dir);
        let free = free.ok().flatten().unwrap_or(u64::MAX);
        let len_max = PHASE_LEN_MAX.min(free / PHASE_DISK_PART);
        let _: Value = self.nodes[0].ask(&format!("load {phase} {len_max} {tree}"))?;
        Ok(())
    }

    /// Waits until one of the others leads. It is the first then.
    fn find_leader(&mut self, killed: Instant) -> Result<()> {
        let statuses = self.settle("another leader", |statuses| {
            statuses.iter().any(|status| status.leads)
        })?;
        let leader = statuses.iter().position(|status| status.leads);
        self.nodes.swap(0, leader.unwrap_or_default());
        self.live.say(&format!(
            "node {} leads now, after {:.2} s of which {:.2} s are the lease",
            self.nodes[0].number,
            killed.elapsed().as_secs_f64(),
            self.lease.as_secs_f64()
        ));
        Ok(())
    }

    /// When the first batch of a phase was acknowledged.
    fn first_ack(&mut self, phase: u32) -> Result<Instant> {
        let started = Instant::now();
        loop {
            if let Some(first) = read(&self.ledger).first.get(&phase) {
                return Ok(*first);
            }
            if started.elapsed() > SETTLE_MAX {
                let states: Vec<String> =
                    self.statuses()?.iter().map(|s| format!("{s:?}")).collect();
                let states = states.join("\n");
                return Err(Failure::problems(format!(
                    "the new leader acknowledges nothing:\n{states}"
                )));
            }
            self.live.check()?;
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks all nodes at once.
    fn ask_all<T: serde::de::DeserializeOwned>(&mut self, command: &str) -> Result<Vec<T>> {
        for node in &mut self.nodes {
            node.tell(command)?;
        }
        self.nodes.iter_mut().map(Process::answer).collect()
    }

    fn statuses(&mut self) -> Result<Vec<Status>> {
        self.ask_all("status")
    }

    /// Shows throughput and lag for a while.
    fn watch(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        let reads = self.reads()?;
        let mut before = (Instant::now(), read(&self.ledger).len, reads);
        while Instant::now() < end {
            self.live.pause(LOOK.min(end - Instant::now()))?;
            let statuses = self.statuses()?;
            let reads = statuses.iter().map(|status| status.read_count).sum();
            let len = read(&self.ledger).len;
            let now = (Instant::now(), len, reads);
            let line = self.line(&statuses, before, now);
            self.live.update(&line);
            before = now;
        }
        Ok(())
    }

    fn reads(&mut self) -> Result<u64> {
        Ok(self
            .statuses()?
            .iter()
            .map(|status| status.read_count)
            .sum())
    }

    fn line(
        &self,
        statuses: &[Status],
        before: (Instant, u64, u64),
        now: (Instant, u64, u64),
    ) -> String {
        let seconds = (now.0 - before.0).as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
        let followers = self.nodes.iter().skip(1).map(|node| {
            let mut known = statuses[0].followers.iter();
            let number = node.number;
            match known.find(|follower| follower.name == node.address) {
                Some(follower) if follower.connected && follower.behind == 0 => {
                    format!("node {number} none")
                }
                Some(follower) if follower.connected => {
                    let (behind, ms) = (text::count(follower.behind), follower.lag_ms);
                    format!("node {number} {behind} records, {ms} ms")
                }
                _ => format!("node {number} away"),
            }
        });
        format!(
            "{:4.1} s  {} acked/s  {} reads/s  lag: {}",
            self.started.elapsed().as_secs_f64(),
            text::len(rate(now.1, before.1)),
            text::count(rate(now.2, before.2)),
            followers.collect::<Vec<String>>().join("; ")
        )
    }

    /// Waits until all nodes stand as they should.
    fn settle(&mut self, what: &str, is_done: impl Fn(&[Status]) -> bool) -> Result<Vec<Status>> {
        let started = Instant::now();
        loop {
            let statuses = self.statuses()?;
            if is_done(&statuses) {
                return Ok(statuses);
            }
            if started.elapsed() > SETTLE_MAX {
                let states: Vec<String> = statuses.iter().map(|s| format!("{s:?}")).collect();
                let (limit, states) = (SETTLE_MAX.as_secs(), states.join("\n"));
                return Err(Failure::problems(format!(
                    "waited {limit} s in vain for {what}:\n{states}"
                )));
            }
            self.live.pause(Duration::from_millis(5))?;
        }
    }

    /// Compares everything that can be compared.
    fn prove(&mut self, statuses: &[Status], failovers: Vec<Duration>) -> Result<Outcome> {
        let bundles = statuses.iter().map(|status| status.bundle_count);
        let bundle_count = self.bundle_count + bundles.sum::<u64>();
        let cut = statuses.iter().find_map(|status| status.cut.clone());
        let states: Vec<State> = self.ask_all("digest")?;
        let list = read(&self.ledger).list();
        let checked: Vec<Checked> = self.ask_all(&format!("check {list}"))?;
        let reads = |count: fn(&Status) -> u64| statuses.iter().map(count).sum::<u64>();
        let mut outcome = {
            let ledger = read(&self.ledger);
            Outcome {
                batch_count: ledger.batch_count,
                file_count: ledger.file_count,
                len: ledger.len,
                lost: checked
                    .iter()
                    .filter_map(|node| node.lost.clone())
                    .collect(),
                lost_count: checked
                    .iter()
                    .map(|node| node.lost_count)
                    .max()
                    .unwrap_or(0),
                read_count: self.read_count + reads(|status| status.read_count),
                wrong_count: self.wrong_count + reads(|status| status.wrong_count),
                failovers,
                lease: self.lease,
                bundle_count,
                cut: self.cut.take().or(cut),
                states,
                logs: Vec::new(),
                problems: Vec::new(),
                took: Duration::ZERO,
            }
        };
        outcome
            .lost
            .extend(statuses.iter().filter_map(|status| status.wrong.clone()));
        let dirs: Vec<PathBuf> = std::mem::take(&mut self.nodes)
            .into_iter()
            .map(Process::quit)
            .collect::<Result<_>>()?;
        self.compare_files(&dirs, &mut outcome)?;
        outcome.took = self.started.elapsed();
        self.live.end();
        Ok(outcome)
    }

    /// Compares the logs byte by byte and checks every file.
    fn compare_files(&self, dirs: &[PathBuf], outcome: &mut Outcome) -> Result<()> {
        self.live.say("nodes closed; comparing their logs");
        let env = Env::real_pread();
        let datasets = |dir: &PathBuf| store::datasets(&env, dir, None);
        let first = datasets(&dirs[0])?;
        for dir in dirs {
            self.live.check()?;
            if dir != &dirs[0] {
                outcome
                    .logs
                    .extend(diff::diff(&env, &first, &datasets(dir)?)?);
            }
            for problem in verify::check(&env, dir, &mut |_| {})?.problems {
                let (path, what) = (problem.path.display(), &problem.what);
                outcome
                    .problems
                    .push(format!("{path} @{:?}: {what}", problem.at));
            }
        }
        Ok(())
    }
}

/// Whether there is a leader, and all nodes have everything that it acknowledged.
fn are_in_sync(statuses: &[Status]) -> bool {
    let leader = statuses.iter().find(|status| status.leads);
    leader.is_some_and(|status| status.in_sync == NODE_COUNT)
}

impl Outcome {
    fn are_equal(&self) -> bool {
        let same_state = self.states.iter().all(|state| *state == self.states[0]);
        let same_end = |log: &diff::LogDiff| log.is_identical() && log.a_end == log.b_end;
        same_state && self.states.len() == NODE_COUNT && self.logs.iter().all(same_end)
    }

    fn is_good(&self) -> bool {
        let is_intact = self.problems.is_empty() && self.wrong_count == 0;
        self.lost_count == 0 && self.batch_count > 0 && self.are_equal() && is_intact
    }

    fn print(&self, as_json: bool) {
        if as_json {
            println!("{:#}", self.document());
            return;
        }
        let files = text::plural(self.file_count, "file");
        let (batches, len) = (text::count(self.batch_count), text::len(self.len));
        let keys = self.states.first().map_or(0, |state| state.key_count);
        let digest = self
            .states
            .first()
            .map_or("", |state| state.digest.as_str());
        let digest = digest.get(..16).unwrap_or_default();
        let ends: Vec<String> = self
            .logs
            .iter()
            .take(usize::from(SHARD_COUNT))
            .map(|log| log.a_end.to_string())
            .collect();
        let longest = self.failovers.iter().max().copied().unwrap_or_default();
        let (seconds, lease) = (longest.as_secs_f64(), self.lease.as_secs_f64());
        let (count, copies) = (self.failovers.len() as u64, self.bundle_count);
        println!(
            "acknowledged  {files} in {batches} batches, {len}, each durable on every node in sync, 2 or 3"
        );
        println!("lost          {}", self.lost_count);
        let (reads, wrong) = (text::count(self.read_count), self.wrong_count);
        println!("read          {reads} values on 3 nodes meanwhile, {wrong} of them wrong");
        println!(
            "failover      {seconds:.2} s from SIGKILL to the next acknowledged write, at most, in {} with a lease of {lease:.2} s; {} taken",
            text::plural(count, "round"),
            text::plural(copies, "full copy").replace("copys", "copies")
        );
        match &self.cut {
            Some(cut) => println!("old leader    came back with writes nobody acknowledged: {cut}"),
            None => println!("old leader    came back with nothing that the others lacked"),
        }
        match self.are_equal() {
            true => println!(
                "copies        all 3 equal: {} keys, state {digest}…, logs byte-identical up to {}",
                text::count(keys),
                ends.join(" and ")
            ),
            false => println!("copies        DIFFER"),
        }
        println!(
            "took          {:.1} s; nothing is left behind",
            self.took.as_secs_f64()
        );
        self.complain();
    }

    /// What is not as it should be, on standard error.
    fn complain(&self) {
        for problem in self.lost.iter().chain(&self.problems) {
            eprintln!("{problem}");
        }
        for log in self
            .logs
            .iter()
            .filter(|log| !log.is_identical() || log.a_end != log.b_end)
        {
            eprintln!("{}", diff::line(log));
        }
        if self.states.iter().any(|state| *state != self.states[0]) {
            eprintln!("states: {:?}", self.states);
        }
    }

    fn document(&self) -> Value {
        json!({
            "acknowledged_batches": self.batch_count,
            "acknowledged_files": self.file_count,
            "acknowledged_len": self.len,
            "lost": self.lost_count,
            "reads": self.read_count,
            "wrong_reads": self.wrong_count,
            "failover_ms": self.failovers.iter().map(|time| time.as_millis() as u64).collect::<Vec<_>>(),
            "full_copies": self.bundle_count,
            "cut": self.cut,
            "equal": self.are_equal(),
            "states": self.states,
            "logs": self.logs.iter().map(diff::line).collect::<Vec<String>>(),
            "problems": self.problems,
            "took_ms": self.took.as_millis() as u64,
        })
    }
}
