//! Every variant of the public errors is met by a test, and says who must act.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use strandline::replica::Promote;
use strandline::{Database, Durability, Error, ErrorKind, Options};
use strandline_replication::Error as ReplicationError;
use strandline_replication::Notifier;
use strandline_replication::transport::Transport;
use strandline_replication::transport::local::{CONN_COUNT_MAX, LocalNetwork};
use strandline_replication::transport::tcp::{TcpOptions, TcpTransport};
use strandline_wal::io::Env;
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::open::{Role, open};
use strandline_wal::pool::Pool;
use strandline_wal::recover::{Known, plan};
use strandline_wal::writer::{Face, WriterOptions};
use strandline_wal::{DatasetId, Error as LogError, LogId, RegionId, ShardId};

type Declared = (
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

/// The public errors: where each is declared, the names that tests give it, and where those are.
const ERRORS: [Declared; 4] = [
    (
        "wal/src/error.rs",
        "Error",
        &["Error", "LogError"],
        &["wal", "engine", "tests"],
    ),
    (
        "replication/src/error.rs",
        "Error",
        &["Error", "ReplicationError"],
        &["replication", "tests"],
    ),
    (
        "engine/src/error.rs",
        "Error",
        &["Error"],
        &["engine", "tests"],
    ),
    (
        "engine/src/error.rs",
        "ErrorKind",
        &["ErrorKind"],
        &["engine", "tests"],
    ),
];

/// The variants of an enum, as its source has them.
fn variants(source: &str, name: &str) -> Vec<String> {
    let head = format!("pub enum {name} {{\n");
    let body = source.split_once(&head).unwrap().1;
    let body = body.split_once("\n}").unwrap().0;
    let variant = |line: &str| {
        let name = line.strip_prefix("    ")?;
        let end = name.find(|c: char| !c.is_alphanumeric())?;
        let is_variant = name.starts_with(|c: char| c.is_uppercase());
        is_variant.then(|| name[..end].to_owned())
    };
    body.lines().filter_map(variant).collect()
}

/// The code of all tests below a directory.
fn test_code(dir: &Path, code: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let text = path.to_string_lossy().into_owned();
        if path.is_dir() && !path.ends_with("target") {
            test_code(&path, code);
        } else if text.ends_with(".rs") {
            let source = std::fs::read_to_string(&path).unwrap();
            let is_test = text.contains("/tests/") || text.ends_with("/tests.rs");
            let from = match is_test {
                true => Some(0),
                false => source.find("#[cfg(test)]\nmod tests {"),
            };
            code.push_str(&source[from.unwrap_or(source.len())..]);
        }
    }
}

/// A floor: what stands in no test was never looked at by one.
#[test]
fn every_variant_of_a_public_error_stands_in_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut missing = Vec::new();
    for (path, name, names, dirs) in ERRORS {
        let mut code = String::new();
        for dir in dirs {
            test_code(&root.join(dir), &mut code);
        }
        let variants = variants(&std::fs::read_to_string(root.join(path)).unwrap(), name);
        assert!(variants.len() > 4, "{path}: {variants:?}");
        for variant in variants {
            let is_met = |name: &&str| code.contains(&format!("{name}::{variant}"));
            if !names.iter().any(is_met) {
                missing.push(format!("{path}: {name}::{variant}"));
            }
        }
    }
    assert!(missing.is_empty(), "in no test: {missing:#?}");
}

/// The check can fail.
#[test]
fn variants_are_found_in_a_source() {
    let source = "enum Other {\n    A,\n}\npub enum Error {\n    /// Text.\n    Io {\n        Op: u8,\n    },\n    Closed(u8),\n    Last,\n}\nfn Rest() {}\n";
    assert_eq!(variants(source, "Error"), ["Io", "Closed", "Last"]);
}

#[test]
fn a_disk_that_refuses_a_call_is_named_and_the_log_stays_poisoned() {
    let machine = Env::real();
    let dir = tempfile::tempdir().unwrap();
    let faults = FaultDisk::new(Arc::clone(&machine.disk));
    let env = Env {
        disk: Arc::new(faults.clone()),
        ..machine
    };
    faults.add(Rule::new(Effect::EACCES).on(Call::Lock).sticky());
    let refused = Options::default()
        .open_with(dir.path(), env.clone())
        .err()
        .unwrap();
    assert!(
        matches!(refused, Error::Log(LogError::Io { op: "lock", .. })),
        "{refused}"
    );
    assert_eq!(refused.kind(), ErrorKind::Operator);
    faults.heal();
    let db = Options::default().open_with(dir.path(), env).unwrap();
    let map = db.keyspace("map").unwrap();
    map.put("before", "kept").unwrap();
    faults.add(Rule::new(Effect::EIO).on(Call::Sync));
    for _ in 0..2 {
        // The second one meets a disk that is well again: the log is not.
        let failed = map.put("after", "unknown").unwrap_err();
        let Error::Log(LogError::Poisoned { cause, .. }) = &failed else {
            panic!("{failed}");
        };
        assert!(
            matches!(**cause, LogError::Io { op: "sync", .. }),
            "{cause}"
        );
        assert_eq!(failed.kind(), ErrorKind::Unknown);
    }
    assert_eq!(map.get("before").unwrap().as_deref(), Some(&b"kept"[..]));
}

#[test]
fn a_log_refuses_shipped_bytes_that_do_not_continue_it() {
    let dir = tempfile::tempdir().unwrap();
    let env = Env::real();
    let known = Known {
        log: LogId {
            dataset: DatasetId::new("").unwrap(),
            region: RegionId(0),
            shard: ShardId(0),
        },
        lineage: None,
        durable_seq: 0,
        flushed_seq: 0,
        led: &|_| false,
        fork_seq: None,
    };
    let plan = plan(env.disk.as_ref(), dir.path(), &known).unwrap();
    let options = WriterOptions {
        face: Face::Written,
        capacity_start: 64 << 10,
        capacity_max: 64 << 10,
    };
    let pool = Arc::new(Pool::new(env.clone(), || false));
    let mut writer = open(&env, &plan, Role::Follower, pool, options, [1; 16]).unwrap();
    let refused = writer.append_verbatim(1, 0, &[0; 10]).unwrap_err();
    let LogError::Refused { what, found, .. } = &refused else {
        panic!("{refused}");
    };
    assert_eq!((*what, found.as_str()), ("segment header", "10 bytes"));
    assert_eq!(Error::from(refused).kind(), ErrorKind::Retry);
}

#[test]
fn the_caller_a_missing_follower_and_a_silent_node_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        ack_timeout_ms: 1,
        ..Options::default()
    };
    let db: Database = options.open(dir.path()).unwrap();
    let map = db.keyspace("map").unwrap();
    let wrong = map.put(vec![0; 65_536], "too long").unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::Caller, "{wrong}");
    let server = db.serve("127.0.0.1:0").unwrap();
    let alone = map
        .put_with("key", "value", Durability::Received(1))
        .unwrap_err();
    assert!(
        matches!(alone, Error::Unacknowledged { waited_ms: 1, .. }),
        "{alone}"
    );
    assert_eq!(alone.kind(), ErrorKind::Unknown);
    // It is durable here all the same.
    assert_eq!(map.get("key").unwrap().as_deref(), Some(&b"value"[..]));
    server.stop();
    let address = unused_address().to_string();
    let silent = strandline::replica::remote_status(&address, "").unwrap_err();
    assert!(matches!(silent, Error::Replication(_)), "{silent}");
    assert_eq!(silent.kind(), ErrorKind::Retry);
    assert!(silent.to_string().contains(&address), "{silent}");
}

#[test]
fn a_leader_that_promised_another_one_says_that_it_no_longer_leads() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| Options::default().open(dir.path().join(name)).unwrap();
    let (first, second) = (open("first"), open("second"));
    let map = first.keyspace("map").unwrap();
    let server = first.serve("127.0.0.1:0").unwrap();
    let address = server.address().to_string();
    let following = second.follow(&address, "").unwrap();
    map.put_with("before", "kept", Durability::Durable(1))
        .unwrap();
    let how = Promote {
        peers: vec![address],
        node_count: 2,
        // Both must promise: the leader has heard of it when this returns.
        follower_count: 0,
        force: false,
    };
    let promotion = second.dataset("").unwrap().promote(&how).unwrap();
    let fenced = map.put("after", "refused").unwrap_err();
    let is_fenced = matches!(fenced, Error::Fenced { found, .. } if found >= promotion.epoch);
    assert!(is_fenced, "{fenced}");
    assert_eq!(fenced.kind(), ErrorKind::Retry);
    let map = second.keyspace("map").unwrap();
    assert_eq!(map.get("before").unwrap().as_deref(), Some(&b"kept"[..]));
    map.put("after", "taken").unwrap();
    drop((server, following));
}

fn unused_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

#[test]
fn an_address_in_use_and_a_full_table_of_connections_are_named() {
    let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let options = TcpOptions {
        listen: Some(holder.local_addr().unwrap()),
        ..TcpOptions::default()
    };
    let refused = TcpTransport::new(options, Env::real().clock, Arc::new(Notifier::default()));
    let refused = refused.err().unwrap();
    assert!(
        matches!(
            refused,
            ReplicationError::Io {
                op: "listen on",
                ..
            }
        ),
        "{refused}"
    );
    let network = LocalNetwork::new(1);
    let (mut here, _there) = (network.attach("here"), network.attach("there"));
    for _ in 0..CONN_COUNT_MAX {
        here.connect(0, "there").unwrap();
    }
    let full = here.connect(0, "there").unwrap_err();
    let is_full = matches!(
        full,
        ReplicationError::Full {
            limit: CONN_COUNT_MAX,
            ..
        }
    );
    assert!(is_full, "{full}");
}
