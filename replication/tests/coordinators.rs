//! The coordinators on real engines: three processes of etcd, an S3 emulator, a store that is not safe,
//! a directory. A test says SKIPPED, and why, where its server is not installed; it starts and ends its own.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use strandline_replication::coordinator::attempt::Nonces;
use strandline_replication::coordinator::etcd::{EtcdCoordinator, EtcdOptions};
use strandline_replication::coordinator::object_store::{
    ObjectStoreCoordinator, ObjectStoreOptions,
};
use strandline_replication::coordinator::{Coordinator, Record, Replaced, Version};
use strandline_replication::{Error, Incarnation, Lineage, NodeId, Result};
use strandline_wal::Epoch;

const DEADLINE_MS: u64 = 5_000;
const RACE_COUNT: u32 = 100;
const RACER_COUNT: usize = 4;
/// A server that takes longer to start is broken.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A process of a test, and what ends with it.
struct Server(Child);

impl Server {
    fn start(command: &mut Command) -> Server {
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        Server(quiet.spawn().unwrap())
    }

    /// Stops it where it is, as a machine that hangs; or lets it go on.
    fn signal(&self, signal: &str) {
        let id = self.0.id().to_string();
        let status = Command::new("kill").args([signal, &id]).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program: as an environment variable names it, below the target directory, or on the path.
fn program(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(PathBuf::from(path));
    }
    let exe = std::env::current_exe().unwrap();
    let servers = exe.ancestors().map(|dir| dir.join("servers/bin"));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = servers
        .chain(std::env::split_paths(&paths))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("SKIPPED: {name} is not installed, and {variable} names none");
    }
    found
}

/// Ports that are free now.
fn ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners: [TcpListener; COUNT] =
        std::array::from_fn(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn wait_for(port: u16) {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(start.elapsed() < START_LIMIT, "nothing listens on {port}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// No two of one run are equal, nor of two processes.
fn nonces() -> Nonces {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    Box::new(|| {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&n.to_le_bytes());
        nonce[8..].copy_from_slice(&u64::from(std::process::id()).to_le_bytes());
        nonce
    })
}

fn record(epoch: u32, node: u8) -> Record {
    let leader = (NodeId([node; 16]), Incarnation([node; 16]));
    Record {
        lineage: Lineage([9; 16]),
        epoch: Epoch(epoch),
        leader,
        members: vec![leader],
        min_in_sync: 0,
    }
}

/// Threads change one record at once, again and again: each time one of them wins, and all see it.
fn race<C: Coordinator>(open: impl Fn() -> C + Sync) {
    let start = Barrier::new(RACER_COUNT);
    let racer = |n: usize| {
        let mut coordinator = open();
        let mut won = Vec::new();
        let mut version = Version(0);
        for epoch in 1..=RACE_COUNT {
            start.wait();
            let record = record(epoch, n as u8);
            match coordinator.replace("races", version, &record) {
                Ok(Replaced::Done(_)) => won.push(record),
                Ok(Replaced::Conflict) => {}
                Err(error) => panic!("race {epoch}: {error}"),
            }
            start.wait();
            let (newest, found) = coordinator.read("races").unwrap().unwrap();
            assert!(newest > version && found.epoch == Epoch(epoch));
            version = newest;
        }
        won
    };
    let won = thread::scope(|scope| {
        let racer = &racer;
        let racers: Vec<_> = (0..RACER_COUNT)
            .map(|n| scope.spawn(move || racer(n)))
            .collect();
        let won = racers.into_iter().map(|racer| racer.join().unwrap());
        won.collect::<Vec<_>>().concat()
    });
    let mut epochs: Vec<_> = won.iter().map(|record| record.epoch.0).collect();
    epochs.sort_unstable();
    let all: Vec<_> = (1..=RACE_COUNT).collect();
    assert_eq!(epochs, all, "one winner each");
    let (_, last) = open().read("races").unwrap().unwrap();
    assert!(won.contains(&last));
}

/// Three members of one cluster.
struct Cluster {
    program: PathBuf,
    dir: tempfile::TempDir,
    ports: [u16; 6],
    members: [Option<Server>; 3],
}

impl Cluster {
    fn start() -> Option<Cluster> {
        let program = program("etcd", "STRANDLINE_ETCD")?;
        let mut cluster = Cluster {
            program,
            dir: tempfile::tempdir().unwrap(),
            ports: ports(),
            members: [None, None, None],
        };
        (0..3).for_each(|n| cluster.start_member(n));
        cluster.ports[..3].iter().for_each(|port| wait_for(*port));
        Some(cluster)
    }

    fn start_member(&mut self, n: usize) {
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let (client, peer) = (url(self.ports[n]), url(self.ports[n + 3]));
        let all = (0..3).map(|n| format!("n{n}={}", url(self.ports[n + 3])));
        let all = all.collect::<Vec<_>>().join(",");
        let mut command = Command::new(&self.program);
        command
            .arg(format!("--name=n{n}"))
            .arg("--data-dir")
            .arg(self.dir.path().join(format!("n{n}")))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster={all}"))
            .args(["--heartbeat-interval=50", "--election-timeout=500"]);
        self.members[n] = Some(Server::start(&mut command));
    }

    fn coordinator(&self) -> EtcdCoordinator {
        let endpoints = self.ports[..3]
            .iter()
            .map(|port| format!("http://127.0.0.1:{port}"));
        let options = EtcdOptions {
            endpoints: endpoints.collect(),
            deadline_ms: DEADLINE_MS,
            ..EtcdOptions::default()
        };
        EtcdCoordinator::open(options, nonces()).unwrap()
    }

    fn member(&self, n: usize) -> &Server {
        self.members[n].as_ref().unwrap()
    }
}

/// A call until it succeeds: elections take their time. Every one keeps its deadline.
fn at_last<T>(mut call: impl FnMut() -> Result<T>) -> T {
    let start = Instant::now();
    loop {
        match within_deadline(&mut call) {
            Ok(answer) => return answer,
            Err(error) => assert!(start.elapsed() < START_LIMIT, "{error}"),
        }
    }
}

fn within_deadline<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let answer = call();
    let limit = Duration::from_millis(DEADLINE_MS + 2_000);
    assert!(start.elapsed() < limit, "{:?}", start.elapsed());
    if let Err(error) = &answer {
        assert!(matches!(error, Error::Coordinator { .. }), "{error}");
    }
    answer
}

/// Puts a record behind the newest one, whatever it takes: a lost answer is looked up.
fn put(coordinator: &mut EtcdCoordinator, record: &Record) {
    let put = at_last(|| {
        let newest = coordinator.read("d")?;
        if newest.as_ref().is_some_and(|newest| newest.1 == *record) {
            return Ok(Replaced::Done(newest.unwrap().0));
        }
        let version = newest.map_or(Version(0), |newest| newest.0);
        coordinator.replace("d", version, record)
    });
    assert_ne!(put, Replaced::Conflict, "nobody else writes");
}

#[test]
fn etcd_is_asked_as_long_as_a_majority_of_it_lives() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    let mut coordinator = cluster.coordinator();
    assert_eq!(at_last(|| coordinator.read("d")), None);
    put(&mut coordinator, &record(1, 1));
    let mut other = cluster.coordinator();
    let late = at_last(|| other.replace("d", Version(0), &record(1, 2)));
    assert_eq!(late, Replaced::Conflict);

    // A member that hangs, the one that is asked first, is passed over.
    cluster.member(0).signal("-STOP");
    put(&mut coordinator, &record(2, 1));
    assert_eq!(at_last(|| other.read("d")).unwrap().1, record(2, 1));
    cluster.member(0).signal("-CONT");

    // Each member in turn dies and comes back, the leader among them.
    for n in 0..3 {
        cluster.members[n] = None;
        put(&mut coordinator, &record(3 + n as u32, 1));
        cluster.start_member(n);
        wait_for(cluster.ports[n]);
    }
    let before = at_last(|| other.read("d")).unwrap();
    assert_eq!(before.1, record(5, 1));

    // Without a majority there is no answer, and no wait beyond the deadline.
    cluster.members[0] = None;
    cluster.members[1] = None;
    assert!(within_deadline(|| other.read("d")).is_err());
    let lost = within_deadline(|| coordinator.replace("d", before.0, &record(6, 1)));
    assert!(lost.is_err());

    // What was kept is there again; a read says what became of the change, and it stays so.
    cluster.start_member(0);
    cluster.start_member(1);
    let settled = at_last(|| coordinator.read("d")).unwrap();
    assert!(settled == before || settled.1 == record(6, 1));
    assert_eq!(at_last(|| other.read("d")).unwrap(), settled);
    put(&mut coordinator, &record(7, 1));
    assert_eq!(at_last(|| other.read("d")).unwrap().1, record(7, 1));
}

#[test]
fn one_of_many_transactions_on_one_revision_wins() {
    if let Some(cluster) = Cluster::start() {
        at_last(|| cluster.coordinator().read("races"));
        race(|| cluster.coordinator());
    }
}

#[test]
fn a_watch_on_etcd_returns_with_the_change_or_when_its_time_is_over() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let mut coordinator = cluster.coordinator();
    at_last(|| coordinator.read("d"));
    let start = Instant::now();
    coordinator.watch("d", Version(0), 300).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(300));
    let mut other = cluster.coordinator();
    let waiting = thread::spawn(move || {
        let start = Instant::now();
        while other.read("d").unwrap().is_none() {
            other.watch("d", Version(0), 60_000).unwrap();
        }
        start.elapsed()
    });
    thread::sleep(Duration::from_millis(200));
    put(&mut coordinator, &record(1, 1));
    assert!(waiting.join().unwrap() < Duration::from_secs(30));
    // What is newer already is not waited for.
    coordinator.watch("d", Version(0), 60_000).unwrap();
}

const BUCKET: &str = "bucket";

fn s3(port: u16) -> Arc<dyn ObjectStore> {
    let store = AmazonS3Builder::new()
        .with_endpoint(format!("http://127.0.0.1:{port}"))
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(BUCKET)
        .with_access_key_id("strandline")
        .with_secret_access_key("strandline");
    Arc::new(store.build().unwrap())
}

fn open(store: &Arc<dyn ObjectStore>) -> Result<ObjectStoreCoordinator> {
    let options = ObjectStoreOptions {
        deadline_ms: 60_000,
        ..ObjectStoreOptions::default()
    };
    ObjectStoreCoordinator::open(store.clone(), options, nonces())
}

/// The emulator, one request at a time. Its own server has a thread for each request, which looks for the
/// object and then writes it: of 1,500 races of four plain HTTP clients, two had two winners.
const ONE_AT_A_TIME: &str = "
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
app = DomainDispatcherApplication(create_backend_app)
run_simple('127.0.0.1', int(sys.argv[1]), app, threaded=False)
";

#[test]
fn one_of_many_creates_in_an_s3_emulator_wins() {
    let Some(program) = program("moto_server", "STRANDLINE_MOTO_SERVER") else {
        return;
    };
    let python = program.with_file_name("python3");
    if !python.is_file() {
        println!("SKIPPED: moto_server is not in a virtual environment");
        return;
    }
    let [port] = ports();
    let mut command = Command::new(python);
    let command = command.args(["-c", ONE_AT_A_TIME, &port.to_string()]);
    let server = Server::start(command);
    wait_for(port);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let head = "Host: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    write!(stream, "PUT /{BUCKET} HTTP/1.1\r\n{head}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    let store = s3(port);
    race(|| open(&store).unwrap());
    // Nobody who asks a server that is gone waits for ever.
    let mut coordinator = open(&store).unwrap();
    drop(server);
    let error = coordinator.read("races").unwrap_err();
    assert!(matches!(error, Error::Coordinator { .. }), "{error}");
}

#[test]
fn a_store_that_looks_and_then_writes_is_refused_every_time() {
    let Some(program) = program("s3s-fs", "STRANDLINE_S3S_FS") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join(BUCKET)).unwrap();
    let [port] = ports();
    let mut command = Command::new(program);
    let command = command
        .args(["--host", "127.0.0.1", "--port", &port.to_string()])
        .args(["--access-key", "strandline", "--secret-key", "strandline"])
        .arg(dir.path());
    let _server = Server::start(command);
    wait_for(port);
    let store = s3(port);
    for n in 0..50 {
        let error = open(&store).err();
        let is_refused = matches!(error, Some(Error::CoordinatorUnsafe { .. }));
        assert!(is_refused, "{n}: {error:?}");
    }
}

#[test]
fn one_of_many_creates_in_a_directory_and_in_memory_wins() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalFileSystem::new_with_prefix(dir.path()).unwrap();
    let store: Arc<dyn ObjectStore> = Arc::new(store.with_fsync(true));
    race(|| open(&store).unwrap());
    assert!(
        count_below(&dir.path().join("strandline/races/state")) < 70,
        "old states are deleted"
    );
    assert_eq!(
        count_below(&dir.path().join("strandline/races/boundary")),
        1
    );
    let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    race(|| open(&memory).unwrap());
}

fn count_below(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}
