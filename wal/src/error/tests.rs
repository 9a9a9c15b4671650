//! Tests of what errors say to people and to programs.

use super::*;
use crate::ids::{DatasetId, Epoch, RegionId, ShardId};

fn io_error(kind: io::ErrorKind) -> Error {
    Err::<(), _>(io::Error::from(kind))
        .during("write", Path::new("/log/a.seg"))
        .unwrap_err()
}

fn log() -> Box<LogId> {
    Box::new(LogId {
        dataset: DatasetId::new("orders").unwrap(),
        region: RegionId(1),
        shard: ShardId(2),
    })
}

fn poisoned(cause: Error) -> Error {
    Error::Poisoned {
        log: log(),
        cause: Arc::new(cause),
    }
}

/// The error says each of these words; the rest is what it answers to the three questions: is it
/// damage, is the disk full, is a file absent?
#[track_caller]
fn check(error: Error, words: &[&str], answers: [bool; 3]) {
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{word:?} is not in {text:?}");
    }
    let found = [
        error.is_corruption(),
        error.is_no_space(),
        error.is_not_found(),
    ];
    assert_eq!(found, answers, "{text}");
}

#[test]
fn every_error_names_its_file_place_and_values_and_what_to_do() {
    let path = Path::new("/log/a.seg");
    let none = [false; 3];
    check(
        Error::corrupt(path, 512, "batch", "record 7", "zeros"),
        &[
            "/log/a.seg is damaged at byte 512: batch",
            "expected record 7, found zeros",
            "restore it from a follower or a checkpoint",
        ],
        [true, false, false],
    );
    check(
        Error::Unsupported {
            path: path.to_owned(),
            expected: "segment version 2".to_owned(),
            found: "segment version 3".to_owned(),
        },
        &["/log/a.seg is segment version 3; this build reads segment version 2"],
        none,
    );
    check(
        Error::TooLarge {
            what: "table",
            limit: 10,
            found: 11,
        },
        &["table is 11, the limit is 10"],
        none,
    );
    check(
        Error::Refused {
            log: log(),
            at: Position {
                epoch: Epoch(3),
                seq: 9,
            },
            what: "nonce",
            expected: "5".to_owned(),
            found: "6".to_owned(),
        },
        &["orders", "9", "nonce: expected 5, found 6"],
        none,
    );
    check(
        poisoned(Error::corrupt(path, 0, "batch", "a", "b")),
        &["orders", "no more writes since /log/a.seg", "reopen"],
        none,
    );
}

#[test]
fn a_disk_error_is_told_by_its_kind_through_the_log_that_it_poisoned() {
    let words = ["write /log/a.seg: "];
    for kind in [
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::FileTooLarge,
    ] {
        check(io_error(kind), &words, [false, true, false]);
        check(poisoned(io_error(kind)), &words, [false, true, false]);
    }
    check(
        io_error(io::ErrorKind::NotFound),
        &words,
        [false, false, true],
    );
    check(
        io_error(io::ErrorKind::PermissionDenied),
        &words,
        [false; 3],
    );
}
