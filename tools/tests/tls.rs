//! Nodes under TLS, with certificates of `certs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::node::{Node, load};
use common::{Bench, Said, inspect, strandline, walinspect};

/// The options of a node that has a certificate of an authority.
struct Certified(Vec<String>);

impl Certified {
    /// Makes the certificate.
    fn new(ca: &Path, name: &str) -> Certified {
        let dir = ca.to_str().unwrap();
        strandline(&["certs", "new", "--ca", dir, "--node", name]).exits(0);
        let path = |file: &str| ca.join(file).to_str().unwrap().to_owned();
        let (certificate, key) = (path(&format!("{name}.pem")), path(&format!("{name}.key")));
        let options = [
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
            "--tls-ca",
            &path("ca.pem"),
        ];
        Certified(options.map(str::to_owned).into())
    }

    fn with<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        let own = self.0.iter().map(String::as_str);
        arguments.iter().copied().chain(own).collect()
    }

    fn status(&self, target: &str) -> Said {
        strandline(&self.with(&["status", target, "--json"]))
    }

    fn positions(&self, target: &str) -> serde_json::Value {
        let said = self.status(target).exits(0);
        said.json()["datasets"][0]["positions"].clone()
    }
}

fn authority(bench: &Bench, name: &str) -> std::path::PathBuf {
    let ca = bench.path(name);
    strandline(&["certs", "new", "--ca", ca.to_str().unwrap()]).exits(0);
    ca
}

fn wait_equal(asker: &Certified, a: &str, b: &str) {
    let started = Instant::now();
    while asker.positions(a) != asker.positions(b) {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "they stay apart"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_follower_under_tls_catches_up_is_cut_off_and_goes_on() {
    let bench = Bench::new();
    let ca = authority(&bench, "ca");
    let [a_link, b_link] = ["a", "b"].map(|name| Certified::new(&ca, name));
    let (a, b) = (bench.path("a.db"), bench.path("b.db"));
    let [a_dir, b_dir] = [a.to_str().unwrap(), b.to_str().unwrap()];
    load(&a, 0, 20_000, "2");
    // Any address is allowed; this one has to be told what others call it.
    let leader = Node::start(&a_link.with(&["serve", a_dir, "--listen", "0.0.0.0:0"]));
    let port = leader.address.rsplit_once(':').unwrap().1.to_owned();
    let at = format!("a@127.0.0.1:{port}");
    let follower = Node::start(&b_link.with(&["follow", b_dir, "--leader", &at]));
    let follower_at = format!("b@{}", follower.address);
    wait_equal(&a_link, &at, &follower_at);
    // The leader dies, writes more meanwhile, and comes back at its address.
    leader.kill();
    load(&a, 20_000, 40_000, "2");
    let listen = format!("0.0.0.0:{port}");
    let advertise = format!("127.0.0.1:{port}");
    let again = [
        "serve",
        a_dir,
        "--listen",
        &listen,
        "--advertise",
        &advertise,
    ];
    let leader = Node::start(&a_link.with(&again));
    wait_equal(&a_link, &at, &follower_at);
    let said = b_link.status(&follower_at).exits(0);
    assert_eq!(said.json()["datasets"][0]["leader"], at.as_str());
    // Nobody else is let in, and everybody is told why.
    let stranger = Certified::new(&authority(&bench, "other"), "b");
    let said = stranger.status(&at).exits(3);
    assert!(
        said.err.contains("no authority trusted here"),
        "{}",
        said.err
    );
    let said = strandline(&["status", &advertise]).exits(3);
    assert!(said.err.contains("it speaks TLS"), "{}", said.err);
    let said = b_link.status(&format!("c@127.0.0.1:{port}")).exits(3);
    assert!(said.err.contains("another node's"), "{}", said.err);
    follower.stop();
    leader.stop();
    for dir in [&a, &b] {
        inspect("verify", dir, &["--deep"]).exits(0);
    }
    let said = walinspect(&["diff", a_dir, b_dir]).exits(0);
    assert_eq!(
        said.text().matches("byte-identical").count(),
        2,
        "{}",
        said.text()
    );
}

/// What a Hello claims is what the certificate says, or nobody listens.
#[test]
fn a_node_that_claims_the_name_of_another_is_refused() {
    let bench = Bench::new();
    let ca = authority(&bench, "ca");
    let [a_link, b_link] = ["a", "b"].map(|name| Certified::new(&ca, name));
    let (a, b) = (bench.path("a.db"), bench.path("b.db"));
    load(&a, 0, 10, "1");
    let leader = Node::start(&a_link.with(&["serve", a.to_str().unwrap()]));
    let at = format!("a@{}", leader.address);
    // It asks by its right name first, and then follows by another one.
    let arguments = [
        "follow",
        b.to_str().unwrap(),
        "--leader",
        &at,
        "--advertise",
        "c@127.0.0.1:1",
    ];
    let mut follow = common::command("strandline", &b_link.with(&arguments));
    let mut child = follow.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let why = lines.next().unwrap().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(why.contains("refused, another node's name"), "{why}");
    leader.stop();
}

#[test]
fn certificates_are_private_and_never_overwritten() {
    let bench = Bench::new();
    let ca = authority(&bench, "ca");
    let dir = ca.to_str().unwrap();
    let a = Certified::new(&ca, "a");
    let before: Vec<_> = ["ca.pem", "ca.key", "a.pem", "a.key"]
        .map(|file| {
            let path = ca.join(file);
            let mode = path.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
            (std::fs::read(&path).unwrap(), path)
        })
        .into();
    strandline(&["certs", "new", "--ca", dir]).exits(3);
    strandline(&["certs", "new", "--ca", dir, "--node", "a"]).exits(3);
    for (bytes, path) in &before {
        assert!(std::fs::read(path).unwrap() == *bytes, "{}", path.display());
    }
    for name in ["", "../a", "a b", "a/b"] {
        strandline(&["certs", "new", "--ca", dir, "--node", name]).exits(2);
    }
    strandline(&["certs", "new", "--ca", "/nowhere", "--node", "b"]).exits(3);
    // A key that others may read is no key.
    let key = ca.join("a.key");
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o640)).unwrap();
    let said = a.status("a@127.0.0.1:1").exits(3);
    assert!(
        said.err.contains("others may read this key"),
        "{}",
        said.err
    );
    assert!(said.err.contains("chmod 600"), "{}", said.err);
    strandline(&["status", "127.0.0.1:1", "--tls-cert", dir]).exits(2);
}

/// Two nodes that know each other's keys need no common authority.
#[test]
fn nodes_that_pin_each_others_keys_need_no_authority() {
    let bench = Bench::new();
    let pinned = ["a", "b"].map(|name| {
        let ca = authority(&bench, &format!("ca-{name}"));
        let dir = ca.to_str().unwrap();
        let said = strandline(&["certs", "new", "--ca", dir, "--node", name]).exits(0);
        let pin = said
            .text()
            .lines()
            .find_map(|line| line.strip_prefix("pin "))
            .unwrap();
        (
            ca.join(format!("{name}.pem")),
            ca.join(format!("{name}.key")),
            pin.to_owned(),
        )
    });
    let link = |own: usize| {
        let (certificate, key, _) = &pinned[own];
        let files = [
            "--tls-cert",
            certificate.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
        ];
        let mut options = files.map(str::to_owned).to_vec();
        for (_, _, pin) in &pinned {
            options.extend(["--tls-pin".to_owned(), pin.clone()]);
        }
        Certified(options)
    };
    let (a_link, b_link) = (link(0), link(1));
    let a = bench.path("a.db");
    load(&a, 0, 10, "1");
    let leader = Node::start(&a_link.with(&["serve", a.to_str().unwrap()]));
    b_link.status(&format!("a@{}", leader.address)).exits(0);
    let said = b_link.status(&format!("b@{}", leader.address)).exits(3);
    assert!(said.err.contains("pinned for this name"), "{}", said.err);
    leader.stop();
}
