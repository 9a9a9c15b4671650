//! Three nodes in network namespaces of their own: partitions, packets dropped one way and at random, and a
//! narrow link, under load. Every cut heals, nothing is lost, nothing is there twice, and the leader grows no
//! memory by a follower that it cannot reach.
//!
//! It needs root, `ip`, `tc` and `nft`, and is skipped with a notice where it has not all of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::{Bench, command, strandline, walinspect};
use serde_json::Value;

const NODE_COUNT: usize = 3;
/// Milliseconds after which a leader that is not heard is replaced.
const LEASE_MS: u64 = 1_000;
/// How long a cut lasts: long enough for others to take over.
const CUT: Duration = Duration::from_secs(3);
/// How long everything may take to be well again after a cut.
const HEAL_MAX: Duration = Duration::from_secs(10);
/// Most bytes that the leader's process may grow by during a cut: three memtables of 64 MiB, which any load
/// fills once, and little more.
const GROWTH_MAX: u64 = 224 << 20;

/// Per writer, the newest batch that was acknowledged; all below it were, too.
type Acked = Arc<Mutex<BTreeMap<u32, u32>>>;

/// Namespaces of this process, one for each node and one with the bridge between them.
struct Net {
    prefix: String,
}

impl Net {
    /// `None` where namespaces cannot be had.
    fn new() -> Option<Net> {
        let net = Net {
            prefix: format!("sl{}", std::process::id()),
        };
        match net.build() {
            true => Some(net),
            false => None,
        }
    }

    fn build(&self) -> bool {
        let hub = self.name(0);
        let made = runs(&format!("ip netns add {hub}"))
            && runs(&format!("ip -n {hub} link add bridge type bridge"))
            && runs(&format!("ip -n {hub} link set bridge up"));
        made && (1..=NODE_COUNT).all(|n| {
            let name = self.name(n);
            let address = address(n);
            runs(&format!("ip netns add {name}"))
                && runs(&format!(
                    "ip link add eth netns {name} type veth peer name port{n} netns {hub}"
                ))
                && runs(&format!("ip -n {hub} link set port{n} master bridge up"))
                && runs(&format!("ip -n {name} addr add {address}/24 dev eth"))
                && runs(&format!("ip -n {name} link set eth up"))
                && runs(&format!("ip -n {name} link set lo up"))
                && runs(&format!("ip netns exec {name} nft add table inet cut"))
                && runs(&format!(
                    "ip netns exec {name} nft add chain inet cut in {{ type filter hook input priority 0; }}"
                ))
        })
    }

    fn name(&self, n: usize) -> String {
        format!("{}-{n}", self.prefix)
    }

    /// Lets node `n` hear nothing of node `from`.
    fn deafen(&self, n: usize, from: usize) {
        let (name, from) = (self.name(n), address(from));
        let rule = format!("ip netns exec {name} nft add rule inet cut in ip saddr {from} drop");
        assert!(runs(&rule));
    }

    /// Lets node `n` lose one of five packets.
    fn lose(&self, n: usize) {
        let name = self.name(n);
        let rule = format!(
            "ip netns exec {name} nft add rule inet cut in numgen random mod 100 < 20 drop"
        );
        assert!(runs(&rule));
    }

    /// Lets node `n` send 256 kbit/s.
    fn narrow(&self, n: usize) {
        let name = self.name(n);
        assert!(runs(&format!(
            "ip netns exec {name} tc qdisc add dev eth root tbf rate 256kbit burst 16kb latency 400ms"
        )));
    }

    fn heal(&self) {
        for n in 1..=NODE_COUNT {
            let name = self.name(n);
            assert!(runs(&format!(
                "ip netns exec {name} nft flush chain inet cut in"
            )));
            // Only a narrowed one has it.
            runs(&format!("ip netns exec {name} tc qdisc del dev eth root"));
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for n in 0..=NODE_COUNT {
            runs(&format!("ip netns del {}", self.name(n)));
        }
    }
}

fn address(n: usize) -> String {
    format!("10.213.77.{n}")
}

fn runs(line: &str) -> bool {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    let command = command
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A process of `strandline demo-node` in its namespace.
struct Node {
    number: usize,
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<Result<Value, String>>,
    address: String,
}

impl Node {
    fn start(net: &Net, bench: &Bench, number: usize, acked: &Acked) -> Node {
        let certs = bench.path("certs");
        let file = |name: String| certs.join(name).to_str().unwrap().to_owned();
        let dir = bench.path(&format!("node-{number}"));
        let mut child = Command::new("ip")
            .args(["netns", "exec", &net.name(number)])
            .arg(command::<&str>("strandline", &[]).get_program())
            .arg("demo-node")
            .arg(dir)
            .args(["--tls-ca", &file("ca.pem".to_owned())])
            .args(["--tls-cert", &file(format!("node-{number}.pem"))])
            .args(["--tls-key", &file(format!("node-{number}.key"))])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, answers) = channel();
        let (out, acked) = (child.stdout.take().unwrap(), Arc::clone(acked));
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                let (kind, rest) = line.split_once(' ').unwrap();
                let words: Vec<u32> = rest
                    .split(' ')
                    .map_while(|word| word.parse().ok())
                    .collect();
                let sent = match kind {
                    "ack" => {
                        acked.lock().unwrap().insert(words[0], words[1]);
                        Ok(())
                    }
                    "disk" => Ok(()),
                    "ok" => sender.send(Ok(serde_json::from_str(rest).unwrap())),
                    _ => sender.send(Err(rest.to_owned())),
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take().unwrap();
        let mut node = Node {
            number,
            child,
            stdin,
            answers,
            address: String::new(),
        };
        let served = node.ask(&format!("serve {}:4000", address(number)));
        node.address = served["address"].as_str().unwrap().to_owned();
        node
    }

    fn ask(&mut self, command: &str) -> Value {
        writeln!(self.stdin, "{command}").unwrap();
        let answer = self.answers.recv_timeout(Duration::from_secs(60));
        answer
            .unwrap_or_else(|error| panic!("node {}: {command}: {error}", self.number))
            .unwrap_or_else(|why| panic!("node {}: {command}: {why}", self.number))
    }

    /// Bytes of memory of its own that the process has, mapped files left out. It is the one that `ip` became.
    fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text
            .lines()
            .find(|line| line.starts_with("RssAnon:"))
            .unwrap();
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            << 10
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Cluster {
    nodes: Vec<Node>,
    net: Net,
    acked: Acked,
    tree: String,
    phase: u32,
}

impl Cluster {
    fn start(net: Net, bench: &Bench) -> Cluster {
        let certs = bench.path("certs");
        let certs = certs.to_str().unwrap();
        strandline(&["certs", "new", "--ca", certs]).exits(0);
        for n in 1..=NODE_COUNT {
            let name = format!("node-{n}");
            strandline(&["certs", "new", "--ca", certs, "--node", &name]).exits(0);
        }
        let coordinator = bench.path("coordinator");
        std::fs::create_dir_all(coordinator.join("strandline")).unwrap();
        let acked = Acked::default();
        let start = |n| Node::start(&net, bench, n, &acked);
        let mut nodes: Vec<Node> = (1..=NODE_COUNT).map(start).collect();
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.clone()).collect();
        for (n, node) in nodes.iter_mut().enumerate() {
            let others: Vec<String> = addresses
                .iter()
                .filter(|address| **address != node.address)
                .cloned()
                .collect();
            let first = if n == 0 { "first" } else { "later" };
            let (dir, others) = (coordinator.display(), others.join(","));
            node.ask(&format!("join {LEASE_MS} {first} {dir} {others}"));
        }
        let tree = tree(&bench.path("tree"));
        Cluster {
            nodes,
            net,
            acked,
            tree,
            phase: 0,
        }
    }

    fn statuses(&mut self) -> Vec<Value> {
        self.nodes
            .iter_mut()
            .map(|node| node.ask("status"))
            .collect()
    }

    /// Waits until one node leads and all are in sync.
    fn wait_whole(&mut self, limit: Duration, what: &str) -> (usize, Duration) {
        let started = Instant::now();
        loop {
            let statuses = self.statuses();
            let leads = |n: &usize| statuses[*n]["leads"] == true;
            let leaders: Vec<usize> = (0..NODE_COUNT).filter(leads).collect();
            if let [leader] = leaders[..]
                && statuses[leader]["in_sync"] == NODE_COUNT
            {
                return (leader, started.elapsed());
            }
            assert!(started.elapsed() < limit, "{what}: {statuses:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Writers on a leader that was not told to write yet. They try again what fails.
    fn load(&mut self, leader: usize) {
        self.phase += 1;
        let (phase, tree) = (self.phase, self.tree.clone());
        for node in &mut self.nodes {
            node.ask("stop");
        }
        self.nodes[leader].ask(&format!("persist {phase} 20000000 {tree}"));
    }

    fn acked_count(&self) -> u64 {
        let acked = self.acked.lock().unwrap();
        acked.values().map(|number| u64::from(*number)).sum()
    }

    /// A cut under load, and what comes after it. `away` is a follower that the cut leaves its leader.
    fn cut(&mut self, what: &str, cut: impl FnOnce(&Net, usize, usize)) {
        let (leader, _) = self.wait_whole(Duration::from_secs(30), what);
        self.load(leader);
        std::thread::sleep(Duration::from_millis(500));
        let (memory, acked) = (self.nodes[leader].memory(), self.acked_count());
        let follower = (leader + 1) % NODE_COUNT;
        cut(&self.net, leader + 1, follower + 1);
        std::thread::sleep(CUT);
        let grown = self.nodes[leader].memory().saturating_sub(memory);
        let during = self.acked_count() - acked;
        self.net.heal();
        let (now, took) = self.wait_whole(HEAL_MAX, what);
        println!(
            "{what}: {during} batches meanwhile, {} KiB more memory at the leader, node {} led and node {} leads, whole after {:.2} s",
            grown >> 10,
            leader + 1,
            now + 1,
            took.as_secs_f64()
        );
        assert!(
            grown < GROWTH_MAX,
            "{what}: the leader grew by {grown} bytes"
        );
    }

    /// Everything acknowledged is on every node, once, and all nodes have the same bytes.
    fn check(mut self, bench: &Bench) {
        let (leader, _) = self.wait_whole(Duration::from_secs(30), "the end");
        // Who was told to stop stops where it leads; elsewhere its writers end with what they try.
        self.load(leader);
        std::thread::sleep(Duration::from_millis(300));
        self.nodes[leader].ask("stop");
        let started = Instant::now();
        loop {
            let statuses = self.statuses();
            let same = |status: &Value| status["positions"] == statuses[0]["positions"];
            let shown = |status: &Value| status["unapplied"] == 0;
            if statuses.iter().all(|status| same(status) && shown(status)) {
                break;
            }
            assert!(started.elapsed() < HEAL_MAX, "{statuses:#?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        let acked: Vec<String> = {
            let acked = self.acked.lock().unwrap();
            acked.iter().map(|(w, n)| format!("{w}:{n}")).collect()
        };
        assert!(!acked.is_empty());
        let list = acked.join(",");
        let mut digests = Vec::new();
        for node in &mut self.nodes {
            let checked = node.ask(&format!("check {list}"));
            assert_eq!(checked["lost_count"], 0, "node {}: {checked}", node.number);
            digests.push(node.ask("digest"));
            let status = node.ask("status");
            assert_eq!(status["wrong_count"], 0, "{status}");
        }
        assert!(
            digests.iter().all(|digest| *digest == digests[0]),
            "{digests:?}"
        );
        for node in &mut self.nodes {
            node.ask("quit");
        }
        let dir = |n: usize| {
            bench
                .path(&format!("node-{n}"))
                .to_str()
                .unwrap()
                .to_owned()
        };
        for n in 2..=NODE_COUNT {
            walinspect(&["diff", &dir(1), &dir(n)]).exits(0);
        }
    }
}

/// Small files, so that a narrow link has something to do for long and a batch still gets through.
fn tree(dir: &Path) -> String {
    std::fs::create_dir_all(dir).unwrap();
    for n in 0..100 {
        std::fs::write(dir.join(format!("file {n}")), vec![n as u8; 50 + n]).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

#[test]
fn every_cut_of_the_network_heals_and_nothing_is_lost() {
    let Some(net) = Net::new() else {
        println!("NOTICE: no network namespaces (root, ip and nft are needed), skipped");
        return;
    };
    let bench = Bench::new();
    let mut cluster = Cluster::start(net, &bench);
    cluster.cut("a leader cut off", |net, leader, _| {
        for n in (1..=NODE_COUNT).filter(|n| *n != leader) {
            net.deafen(leader, n);
            net.deafen(n, leader);
        }
    });
    cluster.cut("a follower cut off", |net, leader, follower| {
        for n in (1..=NODE_COUNT).filter(|n| *n != follower) {
            net.deafen(follower, n);
            net.deafen(n, follower);
        }
        let _ = leader;
    });
    cluster.cut("a follower that is not heard", |net, leader, follower| {
        net.deafen(leader, follower);
    });
    cluster.cut("a follower that hears nothing", |net, leader, follower| {
        net.deafen(follower, leader);
    });
    cluster.cut("a leader that hears nobody", |net, leader, _| {
        for n in (1..=NODE_COUNT).filter(|n| *n != leader) {
            net.deafen(leader, n);
        }
    });
    cluster.cut(
        "one of five packets lost at the leader",
        |net, leader, _| {
            net.lose(leader);
        },
    );
    cluster.cut(
        "one of five packets lost at a follower",
        |net, _, follower| {
            net.lose(follower);
        },
    );
    cluster.cut("256 kbit/s from the leader", |net, leader, _| {
        net.narrow(leader)
    });
    cluster.check(&bench);
}
