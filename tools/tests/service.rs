//! Nodes by configuration files, as a service manager runs them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::node::load;
use common::{Bench, command, inspect, strandline, verb, walinspect};
use strandline::event::What;
use strandline::metrics::METRICS;

/// Long enough on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process of `strandline node`, its addresses and the file of its log.
struct Service {
    child: Child,
    address: String,
    http: String,
    log: PathBuf,
}

fn write(path: &Path, text: &str) -> String {
    std::fs::write(path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

impl Service {
    fn start(bench: &Bench, name: &str, config: &str) -> Service {
        Service::start_with(bench, name, config, |_| {})
    }

    fn start_with(
        bench: &Bench,
        name: &str,
        config: &str,
        change: impl FnOnce(&mut Command),
    ) -> Service {
        let config = write(&bench.path(&format!("{name}.toml")), config);
        let log = bench.path(&format!("{name}.log"));
        let mut command = command("strandline", &["node", "--config", &config]);
        command
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log).unwrap());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let (mut address, mut http) = (String::new(), String::new());
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            match line.split_once(' ').unwrap() {
                ("http", at) => http = at.to_owned(),
                ("listening", at) => {
                    address = at.to_owned();
                    break;
                }
                _ => panic!("{line}"),
            }
        }
        let service = Service {
            child,
            address,
            http,
            log,
        };
        assert!(!service.address.is_empty(), "{}", service.said());
        service
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.http).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.http);
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn status(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/status").1).unwrap()
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let mut kill = Command::new("kill");
        assert!(kill.args([name, &id]).status().unwrap().success());
    }

    /// Ends it as a service manager does, and gives its log.
    fn stop(mut self) -> String {
        self.signal("-TERM");
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert_eq!(status.code(), Some(0), "{}", self.said());
                return self.said();
            }
            assert!(started.elapsed() < PATIENCE, "it goes on: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The value of a metric's first line that has all of these parts.
fn value(text: &str, parts: &[&str]) -> Option<f64> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let line = lines.find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn a_leader_and_a_follower_run_by_their_files_under_tls() {
    let bench = Bench::new();
    let ca = bench.path("ca");
    let at = ca.to_str().unwrap();
    strandline(&["certs", "new", "--ca", at]).exits(0);
    for name in ["a", "b"] {
        strandline(&["certs", "new", "--ca", at, "--node", name]).exits(0);
    }
    // Paths are from the file's directory.
    let common = |name: &str, dir: &str| {
        format!(
            "dir = \"{dir}\"\n[tls]\ncertificate = \"ca/{name}.pem\"\nkey = \"ca/{name}.key\"\n\
             authorities = [\"ca/ca.pem\"]\n[http]\nlisten = \"127.0.0.1:0\"\n"
        )
    };
    load(&bench.path("a.db"), 0, 5_000, "2");
    let lead = format!("{}[[dataset]]\nrole = \"leader\"\n", common("a", "a.db"));
    let a = Service::start(&bench, "a", &lead);
    let leader = format!("a@{}", a.address);
    let follow = format!(
        "{}[log]\nformat = \"json\"\n[[dataset]]\nrole = \"follower\"\nleader = \"{leader}\"\n",
        common("b", "b.db")
    );
    let b = Service::start(&bench, "b", &follow);
    wait("the follower is well", || b.get("/health").0 == 200);
    let ends = |of: &Service| of.status()["datasets"][0]["positions"].clone();
    wait("both have the same", || ends(&a) == ends(&b));
    assert_eq!(
        ends(&a).as_array().unwrap().len(),
        2,
        "shards as the leader"
    );

    // Everything that the engine counts is served by both, and says what is so.
    for service in [&a, &b] {
        let (status, text) = service.get("/metrics");
        assert_eq!(status, 200);
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let served: Vec<&str> = types.map(|line| line.split(' ').next().unwrap()).collect();
        let counted: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(served, counted);
    }
    let (ours, theirs) = (a.get("/metrics").1, b.get("/metrics").1);
    assert_eq!(value(&ours, &["strandline_leads{"]), Some(1.0));
    assert_eq!(value(&theirs, &["strandline_leads{"]), Some(0.0));
    let parts = ["strandline_follower_connected{", "follower=\"b@"];
    assert_eq!(value(&ours, &parts), Some(1.0), "{ours}");
    let parts = ["strandline_following_connected{dataset=\"primary\"}"];
    assert_eq!(value(&theirs, &parts), Some(1.0), "{theirs}");

    // The status says who follows whom.
    let lag = |it: &serde_json::Value| it["datasets"][0]["followers"][0]["transport_lag"].clone();
    wait("it is confirmed", || lag(&a.status()) == 0);
    let (ours, theirs) = (a.status(), b.status());
    let (ours, theirs) = (&ours["datasets"][0], &theirs["datasets"][0]);
    assert_eq!(
        (&ours["role"], &theirs["role"]),
        (&"leader".into(), &"follower".into())
    );
    assert_eq!(theirs["leader"], leader.as_str());
    assert_eq!(theirs["epoch"], ours["epoch"]);
    let follower = &ours["followers"][0];
    assert_eq!(follower["name"], format!("b@{}", b.address));
    assert_eq!(b.get("/nowhere").0, 404);
    let said = strandline(&["status", &format!("http://{}", a.http)]).exits(0);
    let line = format!("  follower  b@{}: 0 records behind", b.address);
    assert!(said.text().contains(&line), "{}", said.text());
    let said = strandline(&["status", &format!("http://{}", b.http), "--json"]).exits(0);
    assert_eq!(said.json()["datasets"][0]["connected"], true);
    strandline(&["status", "http://127.0.0.1:1"]).exits(3);
    strandline(&["status", &format!("http://{}", a.http), "--dataset", "none"]).exits(3);

    // The configuration is read at the start alone.
    a.signal("-HUP");
    wait("it says so", || a.said().contains("SIGHUP"));
    assert_eq!(a.get("/health").0, 200);

    // Without its leader the follower is not well, and says why.
    let said = a.stop();
    assert!(
        said.contains("event=\"joined\" dataset=\"primary\" peer=\"b@"),
        "{said}"
    );
    assert!(said.contains("closed event=\"ended\""), "{said}");
    wait("it is not well", || b.get("/health").0 == 503);
    let (_, body) = b.get("/health");
    assert!(body.contains("not connected to a@"), "{body}");
    let said = b.stop();
    let line = |line: &str| -> serde_json::Value { serde_json::from_str(line).unwrap() };
    let events: Vec<_> = said.lines().map(line).collect();
    let names: Vec<&str> = events
        .iter()
        .map(|e| e["event"].as_str().unwrap())
        .collect();
    for name in ["started", "following", "left", "ending", "ended"] {
        assert!(names.contains(&name), "{name} is not in {said}");
    }
    let left = events
        .iter()
        .find(|event| event["event"] == "left")
        .unwrap();
    assert_eq!(
        (&left["level"], &left["dataset"]),
        (&"WARN".into(), &"primary".into())
    );
    for dir in ["a.db", "b.db"] {
        inspect("verify", &bench.path(dir), &["--deep"]).exits(0);
    }
    let dirs = ["a.db", "b.db"].map(|dir| bench.path(dir).to_str().unwrap().to_owned());
    let said = walinspect(&["diff", &dirs[0], &dirs[1]]).exits(0);
    assert_eq!(
        said.text().matches("byte-identical").count(),
        2,
        "{}",
        said.text()
    );
}

#[test]
fn one_process_leads_one_dataset_and_follows_another() {
    let bench = Bench::new();
    let loopback = |dir: &str| format!("dir = \"{dir}\"\n[http]\nlisten = \"127.0.0.1:0\"\n");
    let leads = |name: &str| format!("[[dataset]]\nname = \"{name}\"\nrole = \"leader\"\n");
    let a = Service::start(&bench, "a", &format!("{}{}", loopback("a.db"), leads("x")));
    let follows = |name: &str, leader: &str| {
        format!("[[dataset]]\nname = \"{name}\"\nrole = \"follower\"\nleader = \"{leader}\"\n")
    };
    let both = format!(
        "{}{}{}",
        loopback("b.db"),
        leads("y"),
        follows("x", &a.address)
    );
    let b = Service::start(&bench, "b", &both);
    wait("it is well", || b.get("/health").0 == 200);
    let roles = |of: &Service| -> Vec<String> {
        let status = of.status();
        let all = status["datasets"].as_array().unwrap().clone();
        let role = |it: &serde_json::Value| format!("{} {}", it["name"], it["role"]);
        all.iter().map(role).collect()
    };
    assert_eq!(roles(&b), ["\"x\" \"follower\"", "\"y\" \"leader\""]);
    b.stop();
    // One that followed does not lead by itself.
    let config = format!("dir = \"b.db\"\n{}{}", leads("y"), leads("x"));
    let path = write(&bench.path("wrong.toml"), &config);
    let said = strandline(&["node", "--config", &path]).exits(2);
    assert!(
        said.err.contains("dataset x follows another node"),
        "{}",
        said.err
    );
    assert!(said.err.contains("event=\"failed\""), "{}", said.err);
    // Promoted it does, and who led becomes a follower by its file alone.
    a.stop();
    let (dir, how) = (bench.path("b.db"), ["--dataset", "x", "--force"]);
    verb("promote", &dir, &how).exits(0);
    let b = Service::start(
        &bench,
        "b",
        &format!("{}{}{}", loopback("b.db"), leads("y"), leads("x")),
    );
    let a = format!("{}{}", loopback("a.db"), follows("x", &b.address));
    let a = Service::start(&bench, "a", &a);
    wait("it is well", || a.get("/health").0 == 200);
    assert_eq!(roles(&a), ["\"x\" \"follower\""]);
    assert!(!a.said().contains("divergent"), "{}", a.said());
    b.stop();
    // What the file does not name is served, and that is told.
    let b = Service::start(&bench, "b", &format!("{}{}", loopback("b.db"), leads("y")));
    assert!(
        b.said().contains("event=\"unnamed\" dataset=\"x\""),
        "{}",
        b.said()
    );
    b.stop();
    a.stop();
}

#[test]
fn a_wrong_file_is_one_line_and_nothing_is_started() {
    let bench = Bench::new();
    let check = |text: &str| {
        let path = write(&bench.path("node.toml"), text);
        strandline(&["node", "--check", "--config", &path])
    };
    let example = strandline(&["node", "--example"])
        .exits(0)
        .text()
        .to_owned();
    let in_force = check(&example).exits(0).text().to_owned();
    assert_eq!(check(&in_force).exits(0).text(), in_force);
    assert!(!bench.path("data").exists());

    let lead = "[[dataset]]\nrole = \"leader\"\n";
    let said = check(&format!("dir = \"d\"\nlisten_at = \"127.0.0.1:1\"\n{lead}")).exits(2);
    assert!(said.err.ends_with("did you mean listen?\n"), "{}", said.err);
    assert!(
        said.err.contains("node.toml:2:1: listen_at: no such key"),
        "{}",
        said.err
    );
    assert_eq!(said.err.lines().count(), 1);
    // The files of TLS are read, too.
    let tls = "[tls]\ncertificate = \"c\"\nkey = \"k\"\nauthorities = [\"ca\"]\n";
    let said = check(&format!("dir = \"d\"\n{tls}{lead}")).exits(3);
    assert!(said.err.contains("/c: No such file"), "{}", said.err);
    strandline(&["node", "--config", "/nowhere/node.toml"]).exits(3);
    strandline(&["node"]).exits(2);
    assert!(!bench.path("d").exists());

    // What goes wrong at the start is told in the log's format.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let text =
        format!("dir = \"d\"\n[log]\nformat = \"json\"\n[http]\nlisten = \"{address}\"\n{lead}");
    let path = write(&bench.path("node.toml"), &text);
    let said = strandline(&["node", "--config", &path]).exits(3);
    let line: serde_json::Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(
        (&line["event"], &line["level"]),
        (&"failed".into(), &"ERROR".into())
    );
    assert!(
        line["message"].as_str().unwrap().contains("in use"),
        "{line}"
    );
}

#[test]
fn a_service_manager_is_told_of_the_start_and_of_the_end() {
    let bench = Bench::new();
    let socket = bench.path("notify");
    let manager = UnixDatagram::bind(&socket).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let config = "dir = \"d\"\n[[dataset]]\nrole = \"leader\"\n";
    let service = Service::start_with(&bench, "node", config, |command| {
        command.env("NOTIFY_SOCKET", &socket);
    });
    let told = || {
        let mut buffer = [0; 256];
        let len = manager.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    assert!(told().starts_with("READY=1\n"));
    service.stop();
    assert!(told().starts_with("STOPPING=1\n"));
    verb("verify", &bench.path("d"), &[]).exits(0);
}

/// The words of a text that begin with something.
fn words<'t>(text: &'t str, start: &str) -> BTreeSet<&'t str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = text.split(|c| !is_part(c));
    all.filter(|word| word.starts_with(start)).collect()
}

#[test]
fn the_runbook_names_metrics_and_events_that_there_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../replication/RUNBOOK.md");
    let runbook = std::fs::read_to_string(path).unwrap();
    let known: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let named = words(&runbook, "strandline_");
    assert!(named.len() >= 6, "{named:?}");
    assert!(named.is_subset(&known), "{:?}", named.difference(&known));
    // Every event has its row, and every row its event.
    let (_, events) = runbook.split_once("## What each log event means").unwrap();
    let events = events.split("\n## ").next().unwrap();
    let rows = events.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows: BTreeSet<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
    let mut known: BTreeSet<&str> = What::NAMES.into();
    let own = [
        "started", "ending", "ended", "failed", "waiting", "refused", "unnamed", "hangup", "notify",
    ];
    known.extend(own);
    assert_eq!(rows, known);
}

#[test]
fn the_unit_is_one_that_systemd_takes() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/strandline.service");
    let unit = std::fs::read_to_string(path).unwrap();
    for line in [
        "Type=notify",
        "NoNewPrivileges=true",
        "ProtectSystem=strict",
        "Restart=on-failure",
    ] {
        assert!(unit.lines().any(|it| it == line), "{line}");
    }
    let bench = Bench::new();
    let binary = env!("CARGO_BIN_EXE_strandline");
    let unit = unit.replace("/usr/local/bin/strandline", binary);
    let file = write(&bench.path("strandline.service"), &unit);
    let mut analyze = Command::new("systemd-analyze");
    let Ok(output) = analyze.args(["verify", &file]).output() else {
        eprintln!("SKIPPED: no systemd-analyze");
        return;
    };
    let said = String::from_utf8_lossy(&output.stderr);
    // The user is made by whoever installs it; other units of the machine are not ours.
    let ours = said
        .lines()
        .filter(|line| line.contains("strandline.service"));
    let wrong: Vec<&str> = ours.filter(|line| !line.contains("User=")).collect();
    assert!(wrong.is_empty(), "{said}");
}
