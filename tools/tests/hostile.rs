//! Ten thousand hostile connections, and a follower that notices nothing of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use strandline::replica::{Links, Pem, TlsConfig};
use strandline::{Database, NodeRole, Options};

/// Hostile connections per transport.
const CONN_COUNT: u32 = 10_000;
/// Those that are open at a time.
const OPEN_COUNT: usize = 400;
/// Pause after so many, so that the listener's backlog is what is tested and not the kernel's timers.
const BURST: u32 = 16;

/// Bytes of anonymous memory.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .unwrap();
    line.trim()
        .trim_end_matches("kB")
        .trim()
        .parse::<u64>()
        .unwrap()
        << 10
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The first half of a TLS greeting.
fn half_greeting() -> Vec<u8> {
    let mut bytes = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    bytes.extend([7; 150]);
    bytes
}

/// Connects as often as it is told, each time with other manners, and keeps the last ones open: those that
/// say a byte now and then say it.
fn attack(to: SocketAddr) {
    let mut open: VecDeque<(TcpStream, bool)> = VecDeque::new();
    let mut random = 1u64;
    let mut said_at = Instant::now();
    for n in 0..CONN_COUNT {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_secs(5)) else {
            continue;
        };
        let mut garbage = vec![0; 2_000];
        garbage.fill_with(|| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 56) as u8
        });
        let mut huge = vec![0; 24];
        huge[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let (bytes, drips) = match n % 6 {
            0 => (vec![], false),
            1 => (garbage, false),
            2 => (vec![1], true),
            3 => (half_greeting(), false),
            4 => (huge, false),
            // One of a frame that is as long as a hello may be, and never comes.
            _ => ([&[0; 4][..], &(60u32 << 10).to_le_bytes()].concat(), true),
        };
        // It may have been shown the door already.
        let _ = stream.write_all(&bytes);
        open.push_back((stream, drips));
        if open.len() > OPEN_COUNT {
            open.pop_front();
        }
        if said_at.elapsed() > Duration::from_secs(1) {
            said_at = Instant::now();
            for (stream, _) in open.iter_mut().filter(|(_, drips)| *drips) {
                let _ = stream.write_all(&[1]);
            }
        }
        if n % BURST == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

fn open(dir: &Path, role: NodeRole, links: &Links) -> Database {
    let mut options = Options {
        links: links.clone(),
        ..Options::default()
    };
    options.node.role = role;
    options.open(dir).unwrap()
}

fn survives(leader_links: &Links, follower_links: &Links, called: impl Fn(SocketAddr) -> String) {
    let dir = tempfile::tempdir().unwrap();
    let leader = open(&dir.path().join("a"), NodeRole::default(), leader_links);
    let keys = leader.keyspace("default").unwrap();
    keys.put(b"0", b"0").unwrap();
    let server = leader.serve("127.0.0.1:0").unwrap();
    let follower = open(&dir.path().join("b"), NodeRole::Follower, follower_links);
    let following = follower
        .follow(&called(server.address()), "primary")
        .unwrap();
    let mut count = 0u64;
    // How long a record takes from the call that writes it to the follower's readers.
    let mut lag = || {
        count += 1;
        let key = count.to_le_bytes();
        let began = Instant::now();
        keys.put(key, [7; 1_000]).unwrap();
        let shows = || {
            let keys = follower.keyspace("default").ok();
            keys.and_then(|keys| keys.get(key).ok().flatten()).is_some()
        };
        while !shows() {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{:?}",
                following.status()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        began.elapsed()
    };
    (0..50).for_each(|_| {
        lag();
    });
    let (base_memory, base_descriptors) = (memory(), descriptors());
    let over = AtomicBool::new(false);
    let began = Instant::now();
    let (mut worst, mut most_memory, mut probes) = (Duration::ZERO, 0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            attack(server.address());
            over.store(true, Ordering::Release);
        });
        while !over.load(Ordering::Acquire) {
            worst = worst.max(lag());
            most_memory = most_memory.max(memory());
            probes += 1;
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let took = began.elapsed();
    let growth = most_memory.saturating_sub(base_memory);
    while descriptors() > base_descriptors {
        let (now, base) = (descriptors(), base_descriptors);
        assert!(
            began.elapsed() < took + Duration::from_secs(15),
            "{now} descriptors, {base} before"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    let lines = server.refusals();
    println!(
        "{CONN_COUNT} connections in {took:?}: worst of {probes} lags {worst:?}, {} KiB more memory, {} \
         descriptors again, told: {lines:?}",
        growth >> 10,
        descriptors(),
    );
    assert!(following.status().connected, "{:?}", following.status());
    assert!(
        following.status().last_error.is_none(),
        "{:?}",
        following.status()
    );
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    assert!(growth < 128 << 20, "{growth} bytes");
    assert_eq!(
        lines.len(),
        1,
        "an address has one line a minute: {lines:?}"
    );
    assert!(probes >= 5, "it was looked at while it went on");
    following.stop();
    server.stop();
}

/// Links of two nodes of one authority.
fn certified() -> [Links; 2] {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().to_str().unwrap();
    let certs = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_strandline"));
        command.args(["certs", "new", "--ca", ca]).args(more);
        assert!(command.output().unwrap().status.success());
    };
    certs(&[]);
    let pem = |name: &str| Pem {
        name: name.to_owned(),
        bytes: std::fs::read(dir.path().join(name)).unwrap(),
    };
    ["a", "b"].map(|name| {
        certs(&["--node", name]);
        Links {
            tls: Some(TlsConfig {
                certificate: pem(&format!("{name}.pem")),
                key: pem(&format!("{name}.key")),
                authorities: vec![pem("ca.pem")],
                pins: Vec::new(),
            }),
            ..Links::default()
        }
    })
}

/// One after the other: they look at the whole process.
#[test]
fn ten_thousand_hostile_connections_cost_a_follower_nothing() {
    let plain = Links::default();
    survives(&plain, &plain, |address| address.to_string());
    let [a, b] = certified();
    survives(&a, &b, |address| format!("a@{address}"));
}
