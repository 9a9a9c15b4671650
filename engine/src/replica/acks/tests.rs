//! Tests of the wait for followers.

use strandline_wal::io::sim::SimEnv;

use super::*;
use crate::options::{Background, Options};

#[test]
fn a_write_that_no_follower_confirms_is_not_acknowledged() {
    let options = Options {
        background: Background::Manual,
        ack_timeout_ms: 1,
        ..Options::default()
    };
    let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
    let map = db.keyspace("map").unwrap();
    let written = map.put_with("key", "value", Durability::Durable(1));
    assert!(
        matches!(written, Err(Error::Unacknowledged { .. })),
        "{written:?}"
    );
    map.put_with("key", "value", Durability::Disk).unwrap();
}
