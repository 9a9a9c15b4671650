//! Three nodes over TCP in one process, with real disks and a coordinator in a directory: whoever leads goes
//! away, and another takes over by itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::time::{Duration, Instant};

use strandline::replica::{ClusterMember, Coordination, Failover, Server};
use strandline::{Database, Durability, Error, Options, Role};
use strandline_replication::coordinator::directory::DirectoryCoordinator;
use strandline_wal::io::Env;

const LEASE_MS: u64 = 600;
const PATIENCE: Duration = Duration::from_secs(60);

struct Node {
    member: ClusterMember,
    // Behind the member: what takes part ends first.
    server: Server,
    database: Database,
}

impl Node {
    fn start(root: &Path, n: usize, listen: &str) -> (Database, Server) {
        let options = Options {
            durability: Durability::Disk,
            ack_timeout_ms: 10_000,
            ..Options::default()
        };
        let database = options.open(root.join(format!("n{n}"))).unwrap();
        let server = database.serve(listen).unwrap();
        (database, server)
    }

    fn join(root: &Path, n: usize, at: (Database, Server), addresses: &[String]) -> Node {
        let (database, server) = at;
        let peers = addresses
            .iter()
            .enumerate()
            .filter(|(m, _)| *m != n)
            .map(|(_, address)| address.clone());
        let how = Failover {
            peers: peers.collect(),
            min_in_sync: 1,
            first: n == 0,
            lease_ms: LEASE_MS,
            in_sync_ms: 3_000,
        };
        let coordinator = DirectoryCoordinator::open(&Env::real(), &root.join("coordinator"));
        let coordination = Coordination::new(Box::new(coordinator.unwrap())).unwrap();
        let member = database.join_cluster("", &how, &coordination).unwrap();
        Node {
            member,
            server,
            database,
        }
    }

    fn leads(&self) -> bool {
        let dataset = self.member.dataset();
        dataset.role() == Role::Leader && dataset.health().is_ok()
    }

    fn put(&self, n: u64) -> Result<(), Error> {
        let dataset = self.member.dataset();
        let map = dataset.keyspace("map")?;
        let mut batch = dataset.batch();
        batch.put(&map, n.to_be_bytes(), format!("value {n}"))?;
        batch.commit_with(Durability::Durable(1))
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            began.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn leader(nodes: &[Option<Node>]) -> usize {
    wait_for("a leader", || {
        let leads = |node: &Option<Node>| node.as_ref().is_some_and(Node::leads);
        nodes.iter().position(leads)
    })
}

fn wait_in_sync(nodes: &[Option<Node>], count: usize) {
    wait_for("everybody in sync", || {
        let node = nodes[leader(nodes)].as_ref().unwrap();
        (node.member.status().members.len() == count).then_some(())
    });
}

#[test]
fn leaders_go_away_and_others_take_over_with_everything_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("coordinator/strandline")).unwrap();
    let started: Vec<_> = (0..3)
        .map(|n| Node::start(dir.path(), n, "127.0.0.1:0"))
        .collect();
    let addresses: Vec<String> = started
        .iter()
        .map(|(_, server)| server.address().to_string())
        .collect();
    let mut nodes: Vec<Option<Node>> = started
        .into_iter()
        .enumerate()
        .map(|(n, at)| Some(Node::join(dir.path(), n, at, &addresses)))
        .collect();
    let mut acked = Vec::new();
    let mut next = 0;
    let mut epochs = Vec::new();
    for round in 0..4 {
        wait_in_sync(&nodes, 3);
        let leads = leader(&nodes);
        let node = nodes[leads].as_ref().unwrap();
        for _ in 0..50 {
            node.put(next).unwrap();
            acked.push(next);
            next += 1;
        }
        epochs.push(node.member.status().epoch);
        let follows = (leads + 1) % 3;
        let refused = nodes[follows].as_ref().unwrap().put(next).unwrap_err();
        assert!(matches!(refused, Error::ReadOnly { .. }), "{refused}");

        // It goes away, and comes back where it was.
        let Node {
            member,
            server,
            database,
        } = nodes[leads].take().unwrap();
        member.stop();
        server.stop();
        database.close().unwrap();
        drop(database);
        let gone = Instant::now();
        let now = leader(&nodes);
        let node = nodes[now].as_ref().unwrap();
        wait_for("a write", || node.put(next).ok());
        println!("round {round}: {:?} until the next write", gone.elapsed());
        acked.push(next);
        next += 1;
        let map = node.member.dataset().keyspace("map").unwrap();
        for n in &acked {
            let found = map.get(n.to_be_bytes()).unwrap();
            assert_eq!(found.as_deref(), Some(format!("value {n}").as_bytes()));
        }
        let at = Node::start(dir.path(), leads, &addresses[leads]);
        nodes[leads] = Some(Node::join(dir.path(), leads, at, &addresses));
    }
    assert!(
        epochs.windows(2).all(|pair| pair[0] < pair[1]),
        "{epochs:?}"
    );
    wait_in_sync(&nodes, 3);
    let all: Vec<_> = nodes.iter().flatten().collect();
    wait_for("equal logs", || {
        let positions = |node: &Node| node.member.dataset().positions();
        let first = positions(all[0]);
        all.iter()
            .all(|node| positions(node) == first)
            .then_some(())
    });
    let copied = all.iter().map(|node| {
        let status = node.member.dataset().follow_status();
        status.map_or(0, |status| status.bundle_count)
    });
    assert_eq!(copied.sum::<u64>(), 0, "nobody took a full copy");
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("coordinator/strandline")).unwrap();
    let database = Database::open(dir.path().join("n0")).unwrap();
    let coordinator = DirectoryCoordinator::open(&Env::real(), &dir.path().join("coordinator"));
    let coordination = Coordination::new(Box::new(coordinator.unwrap())).unwrap();
    let good = Failover {
        peers: vec!["127.0.0.1:1".to_owned()],
        ..Failover::default()
    };
    let wrong = [
        Failover {
            min_in_sync: 2,
            ..good.clone()
        },
        Failover {
            lease_ms: 99,
            ..good.clone()
        },
        Failover {
            in_sync_ms: 0,
            ..good.clone()
        },
        Failover {
            peers: vec!["127.0.0.1:1".to_owned(); 64],
            ..good
        },
    ];
    for how in wrong {
        let Err(error) = database.join_cluster("", &how, &coordination) else {
            panic!("{how:?} is taken");
        };
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}
