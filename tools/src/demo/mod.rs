//! `strandline demo`: a leader and two followers, a crash under load, and the proof that nothing was
//! lost.
//!
//! Three processes of this program hold one dataset each ([`node`]), under TLS, with a coordinator in a
//! directory; this one is their client. It notes what was acknowledged to it, kills the leader with SIGKILL
//! while writers write and readers read, goes on with whoever leads next, brings the old leader back, and
//! compares: every acknowledged batch on every node, the digests of their states, and the bytes of their
//! logs. With `--pause` the leader only stands still meanwhile, and its clients go on when it wakes: nothing
//! that it acknowledges then at `Durable` may be lost, and what its disk alone has must be saved.

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
use self::work::{Checked, DISK_WRITER, State};
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
    /// Stop the leader with SIGSTOP for so many milliseconds in place of killing it: clients of its own go on
    /// when it wakes, though another one leads by then
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(100..=300_000))]
    pause: Option<u64>,
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
    /// From each SIGKILL, or SIGSTOP, to the next acknowledged write.
    failovers: Vec<Duration>,
    /// What leaders that were paused wrote when they woke.
    woken: Option<Woken>,
    lease: Duration,
    /// Full copies that a node took: a follower that comes back needs none.
    bundle_count: u64,
    cut: Option<String>,
    states: Vec<State>,
    logs: Vec<diff::LogDiff>,
    problems: Vec<String>,
    took: Duration,
}

/// What leaders that were paused acknowledged by their own disks.
#[derive(Clone, Debug, Default)]
struct Woken {
    /// Batches that such a leader acknowledged at `Durable` once it woke; they are among those that are
    /// looked for on every node.
    durable_count: u64,
    /// Batches that are in nobody's history, and lie under `divergent/`.
    saved_count: u64,
    /// Batches that are neither there nor there.
    unsaved: Vec<String>,
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
        let pause = self.pause.map(Duration::from_millis);
        if pause.is_some_and(|pause| pause <= lease) {
            return Err(Failure::usage("--pause must be longer than --lease"));
        }
        let mut cluster = Cluster::start(home.path(), live, lease, pause)?;
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
    pause: Option<Duration>,
    woken: Woken,
    ledger: SharedLedger,
    live: Live,
    started: Instant,
    /// The load that was started last.
    phase: u32,
    /// Of nodes that are gone.
    read_count: u64,
    wrong_count: u64,
    bundle_count: u64,
    cut: Option<String>,
}

impl Cluster {
    fn start(home: &Path, live: Live, lease: Duration, pause: Option<Duration>) -> Result<Cluster> {
        let mut cluster = Cluster {
            nodes: Vec::new(),
            home: home.to_owned(),
            lease,
            pause,
            woken: Woken::default(),
            ledger: SharedLedger::default(),
            live,
            started: Instant::now(),
            phase: 0,
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
        self.load(tree)?;
        for _ in 0..rounds {
            self.watch(load / rounds)?;
            failovers.push(match self.pause {
                Some(pause) => self.pause_round(pause, tree)?,
                None => self.round(tree)?,
            });
            self.watch(load / 4 / rounds)?;
        }
        let _: Vec<Value> = self.ask_all("stop")?;
        self.live.say("load stopped; waiting for the copies");
        let statuses = self.settle("copies to become equal", |statuses| {
            let ends = &statuses[0].positions;
            let is_there = |status: &Status| status.positions == *ends && status.unapplied == 0;
            statuses.iter().all(is_there) && are_in_sync(statuses)
        })?;
        self.prove(&statuses, failovers)
    }

    /// The leader is killed, another one takes over, and the old one comes back.
    fn round(&mut self, tree: &Path) -> Result<Duration> {
        let statuses = self.statuses()?;
        let old = self.nodes.remove(0);
        self.note(&statuses[0]);
        let (number, address) = (old.number, old.address.clone());
        let killed = Instant::now();
        let old_dir = old.kill()?;
        self.live.say(&format!(
            "node {number} killed with SIGKILL, in the middle of its writes"
        ));
        let failover = self.go_on(killed, tree)?;
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

    /// The leader stands still, another one takes over, and the old one wakes with its clients.
    fn pause_round(&mut self, pause: Duration, tree: &Path) -> Result<Duration> {
        self.follow_leader(tree)?;
        let (old, phase) = (self.nodes.remove(0), self.phase);
        let number = old.number;
        let paused = Instant::now();
        old.pause(true)?;
        self.live.say(&format!(
            "node {number} paused with SIGSTOP, in the middle of its writes"
        ));
        let failover = self.go_on(paused, tree)?;
        self.watch(pause.saturating_sub(paused.elapsed()))?;
        let durable_count = read(&self.ledger).count_of(phase);
        old.pause(false)?;
        self.nodes.push(old);
        self.settle("the old leader to be in sync", |statuses| {
            statuses.iter().filter(|status| status.leads).count() == 1 && are_in_sync(statuses)
        })?;
        let writer = phase * 100 + DISK_WRITER;
        let back = NODE_COUNT - 1;
        let _: Value = self.nodes[back].ask("stop")?;
        let (durable, newest) = {
            let ledger = read(&self.ledger);
            let newest = ledger.on_disk.get(&writer).copied().unwrap_or_default();
            (ledger.count_of(phase) - durable_count, newest)
        };
        let missing: Vec<String> = self.nodes[back].ask(&format!("missing {writer}:{newest}"))?;
        let saved = divergent(&self.nodes[back].dir)?;
        let (there, gone): (Vec<String>, Vec<String>) = missing
            .into_iter()
            .partition(|key| saved.windows(key.len()).any(|part| part == key.as_bytes()));
        self.live.say(&format!(
            "node {number} woke and is back, as a follower; it acknowledged {durable} batches at Durable then; {} that its disk alone had are saved under divergent/",
            there.len()
        ));
        self.woken.durable_count += durable;
        self.woken.saved_count += there.len() as u64;
        self.woken.unsaved.extend(gone);
        Ok(failover)
    }

    /// Writes with whoever takes over.
    fn go_on(&mut self, ended: Instant, tree: &Path) -> Result<Duration> {
        self.find_leader(ended)?;
        self.load(tree)?;
        let failover = self.first_ack(tree)?.duration_since(ended);
        self.live.say(&format!(
            "writing goes on after {:.2} s",
            failover.as_secs_f64()
        ));
        Ok(failover)
    }

    /// Where another node leads by now than the one that was told to write, it is told instead.
    fn follow_leader(&mut self, tree: &Path) -> Result<()> {
        let statuses = self.statuses()?;
        let mut leaders = (0..statuses.len()).filter(|n| statuses[*n].leads);
        let (Some(leader), None) = (leaders.next(), leaders.next()) else {
            return Ok(());
        };
        if leader != 0 {
            let _: Value = self.nodes[0].ask("stop")?;
            self.nodes.swap(0, leader);
            self.live
                .say(&format!("node {} leads now", self.nodes[0].number));
            self.load(tree)?;
        }
        Ok(())
    }

    /// Takes up what is asked for in the end, of a node that goes.
    fn note(&mut self, status: &Status) {
        self.read_count += status.read_count;
        self.wrong_count += status.wrong_count;
        self.bundle_count += status.bundle_count;
        self.cut = self.cut.take().or(status.cut.clone());
    }

    /// Starts the writers of the next phase on the leader.
    fn load(&mut self, tree: &Path) -> Result<()> {
        self.phase += 1;
        let phase = self.phase;
        let tree = tree.display();
        let free = Env::real_pread().disk.free_len(&self.nodes[0].dir);
        let free = free.ok().flatten().unwrap_or(u64::MAX);
        let len_max = PHASE_LEN_MAX.min(free / PHASE_DISK_PART);
        let verb = if self.pause.is_some() {
            "persist"
        } else {
            "load"
        };
        let _: Value = self.nodes[0].ask(&format!("{verb} {phase} {len_max} {tree}"))?;
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

    /// When the first batch of this phase was acknowledged, or of a later one, if leaders change.
    fn first_ack(&mut self, tree: &Path) -> Result<Instant> {
        let started = Instant::now();
        loop {
            if let Some(first) = read(&self.ledger).first.get(&self.phase) {
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
            if self.pause.is_some() {
                self.follow_leader(tree)?;
            }
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
            // Whoever was paused has that much to catch up with.
            let limit = SETTLE_MAX + self.pause.unwrap_or_default();
            if started.elapsed() > limit {
                let states: Vec<String> = statuses.iter().map(|s| format!("{s:?}")).collect();
                let (limit, states) = (limit.as_secs(), states.join("\n"));
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
                woken: self.pause.map(|_| std::mem::take(&mut self.woken)),
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

/// The bytes of all tails that a node saved.
fn divergent(dir: &Path) -> Result<Vec<u8>> {
    let (mut bytes, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).during("list", &dir)?.flatten() {
            let path = entry.path();
            let is_saved = path
                .components()
                .any(|part| part.as_os_str() == "divergent");
            if path.is_dir() {
                dirs.push(path);
            } else if is_saved {
                bytes.extend(std::fs::read(&path).during("read", &path)?);
            }
        }
    }
    Ok(bytes)
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
        let are_saved = match &self.woken {
            // Whoever was only paused has everything up to the fork, and needs no copy.
            Some(woken) => woken.unsaved.is_empty() && self.bundle_count == 0,
            None => true,
        };
        self.lost_count == 0 && self.batch_count > 0 && self.are_equal() && is_intact && are_saved
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
        let signal = match self.woken {
            Some(_) => "SIGSTOP",
            None => "SIGKILL",
        };
        println!(
            "acknowledged  {files} in {batches} batches, {len}, each durable on every node in sync, 2 or 3"
        );
        println!("lost          {}", self.lost_count);
        let (reads, wrong) = (text::count(self.read_count), self.wrong_count);
        println!("read          {reads} values on 3 nodes meanwhile, {wrong} of them wrong");
        println!(
            "failover      {seconds:.2} s from {signal} to the next acknowledged write, at most, in {} with a lease of {lease:.2} s; full copies taken: {copies}",
            text::plural(count, "round")
        );
        if let Some(woken) = &self.woken {
            println!(
                "woken         {} batches acknowledged at Durable by old leaders when they woke; of what their disks alone had, {} batches are saved under divergent/, {} are gone",
                woken.durable_count,
                woken.saved_count,
                woken.unsaved.len()
            );
        }
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
        let unsaved = self.woken.iter().flat_map(|woken| &woken.unsaved);
        for problem in self.lost.iter().chain(&self.problems).chain(unsaved) {
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
            "woken_durable": self.woken.as_ref().map(|woken| woken.durable_count),
            "woken_saved": self.woken.as_ref().map(|woken| woken.saved_count),
            "woken_unsaved": self.woken.as_ref().map(|woken| woken.unsaved.len()),
            "cut": self.cut,
            "equal": self.are_equal(),
            "states": self.states,
            "logs": self.logs.iter().map(diff::line).collect::<Vec<String>>(),
            "problems": self.problems,
            "took_ms": self.took.as_millis() as u64,
        })
    }
}
