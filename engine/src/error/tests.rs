//! Tests of the errors: who must act on each, and what its message names.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::Path;

use strandline_wal::{
    DatasetId, Epoch, Error as LogError, IoContext, LogId, Position, RegionId, ShardId,
};

use super::*;

fn io_error(kind: io::ErrorKind) -> LogError {
    let failed: io::Result<()> = Err(kind.into());
    failed.during("write", Path::new("/db/1.seg")).unwrap_err()
}

fn corrupt() -> LogError {
    LogError::corrupt(Path::new("/db/1.seg"), 4096, "batch", "a crc", "another")
}

fn log_id() -> Box<LogId> {
    Box::new(LogId {
        dataset: DatasetId::new("orders").unwrap(),
        region: RegionId(0),
        shard: ShardId(3),
    })
}

fn poisoned(cause: LogError) -> LogError {
    let (log, cause) = (log_id(), Arc::new(cause));
    LogError::Poisoned { log, cause }
}

/// Each error with who must act and the words that its message must have.
fn every_error() -> Vec<(Error, ErrorKind, &'static [&'static str])> {
    let (expected, found) = ("version 1".to_owned(), "version 9".to_owned());
    let path = PathBuf::from("/db/x");
    vec![
        (
            corrupt().into(),
            ErrorKind::Restore,
            &["/db/1.seg", "4096", "batch", "a crc", "another", "restore"],
        ),
        (
            io_error(io::ErrorKind::PermissionDenied).into(),
            ErrorKind::Operator,
            &["write", "/db/1.seg", "permission denied"],
        ),
        (
            LogError::Unsupported {
                path: path.clone(),
                expected,
                found,
            }
            .into(),
            ErrorKind::Operator,
            &["/db/x", "version 1", "version 9"],
        ),
        (
            poisoned(io_error(io::ErrorKind::TimedOut)).into(),
            ErrorKind::Unknown,
            &["orders", "/db/1.seg", "timed out", "reopen the database"],
        ),
        (
            LogError::TooLarge {
                what: "batch",
                limit: 7,
                found: 8,
            }
            .into(),
            ErrorKind::Caller,
            &["batch", "7", "8"],
        ),
        (
            LogError::Refused {
                log: log_id(),
                at: Position {
                    epoch: Epoch(2),
                    seq: 77,
                },
                what: "chain",
                expected: "aa".to_owned(),
                found: "bb".to_owned(),
            }
            .into(),
            ErrorKind::Retry,
            &["orders", "77", "chain", "aa", "bb"],
        ),
        (
            Error::NotHealed {
                damage: Box::new(corrupt().into()),
                why: Box::new(Error::Replication("nobody leads".to_owned())),
            },
            ErrorKind::Restore,
            &["/db/1.seg", "4096", "not healed", "nobody leads"],
        ),
        (
            Error::TooLarge {
                what: "value",
                limit: 64,
                found: 65,
            },
            ErrorKind::Caller,
            &["value", "65 bytes", "64"],
        ),
        (
            Error::Argument {
                what: "shard count",
                expected: "1 to 256".to_owned(),
                found: "0".to_owned(),
            },
            ErrorKind::Caller,
            &["shard count", "1 to 256", "0"],
        ),
        (
            Error::Mismatch {
                path: path.clone(),
                what: "router",
                stored: "single".to_owned(),
                given: "hash(2)".to_owned(),
            },
            ErrorKind::Operator,
            &["/db/x", "router", "single", "hash(2)", "as it was created"],
        ),
        (
            Error::ReadOnly {
                what: "dataset orders".to_owned(),
                why: "it follows a leader",
            },
            ErrorKind::Caller,
            &["dataset orders", "no writes", "it follows a leader"],
        ),
        (
            Error::Locked {
                path,
                note: " (process 42)".to_owned(),
            },
            ErrorKind::Operator,
            &["/db/x", "process 42", "close it there", "read-only"],
        ),
        (
            Error::NotFound {
                what: "keyspace",
                name: "users".to_owned(),
                hint: "; the leader creates keyspaces",
            },
            ErrorKind::Caller,
            &["keyspace", "users", "the leader creates"],
        ),
        (
            Error::Unacknowledged {
                wanted: Durability::Durable(2),
                waited_ms: 30,
            },
            ErrorKind::Unknown,
            &["Durable(2)", "30 ms", "durable here"],
        ),
        (
            Error::Log(LogError::Panicked),
            ErrorKind::Unknown,
            &["panicked", "committed for others", "reopen"],
        ),
        (
            Error::Fenced { ours: 3, found: 5 },
            ErrorKind::Retry,
            &["no longer leads", "epoch 5", "in 3"],
        ),
        (
            Error::Replication("no route".to_owned()),
            ErrorKind::Retry,
            &["replication", "no route"],
        ),
        (
            Error::Stopped {
                what: "background work",
                cause: "a panic".into(),
            },
            ErrorKind::Operator,
            &["background work", "a panic", "reopen the database"],
        ),
        (
            Error::Closed("dataset"),
            ErrorKind::Caller,
            &["dataset", "closed"],
        ),
    ]
}

#[test]
fn every_error_tells_who_must_act_and_what_it_is_about() {
    for (error, kind, words) in every_error() {
        let text = error.to_string();
        assert_eq!(error.kind(), kind, "{text}");
        assert_eq!(error.is_corruption(), kind == ErrorKind::Restore, "{text}");
        for word in words {
            assert!(text.contains(word), "{word:?} is not in: {text}");
        }
    }
}

#[test]
fn a_full_disk_is_told_from_other_failures_behind_a_poisoned_log_too() {
    for kind in [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
    ] {
        assert!(Error::from(io_error(kind)).is_no_space(), "{kind}");
        let poisoned = poisoned(io_error(kind));
        assert!(Error::from(poisoned).is_no_space(), "{kind}");
    }
    for (error, ..) in every_error() {
        assert!(!error.is_no_space(), "{error}");
    }
}
