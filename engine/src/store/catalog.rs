//! The keyspaces of a dataset: names and numbers. Creation is a control record in shard 0's log. It may be
//! said again in any log, which changes nothing.
//!
//! Body of control code 128, keyspace created:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | number | from 1, never used again |
//! | 4 | n | name | UTF-8, to the end of the body |

use std::collections::BTreeMap;

use parking_lot::RwLock;
use strandline_wal::ShardId;
use strandline_wal::batch::{Kind, Payload, Record, SealedPayload, flags};

/// Code of the control record.
pub(crate) const KEYSPACE_CREATED: u8 = 128;

/// Names and numbers, and the next number.
#[derive(Debug, Default)]
pub(crate) struct Catalog {
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    by_name: BTreeMap<String, u32>,
    next: u32,
}

impl Catalog {
    pub fn new(next: u32, keyspaces: &[(u32, String)]) -> Catalog {
        let by_name = keyspaces
            .iter()
            .map(|(number, name)| (name.clone(), *number))
            .collect();
        Catalog {
            state: RwLock::new(State { by_name, next }),
        }
    }

    pub fn number_of(&self, name: &str) -> Option<u32> {
        self.state.read().by_name.get(name).copied()
    }

    /// Takes up a keyspace that the log tells of.
    pub fn learn(&self, number: u32, name: &str) {
        let mut state = self.state.write();
        state.by_name.insert(name.to_owned(), number);
        state.next = state.next.max(number + 1);
    }

    pub fn next(&self) -> u32 {
        self.state.read().next
    }

    /// All keyspaces, by name.
    pub fn list(&self) -> Vec<(u32, String)> {
        let state = self.state.read();
        state
            .by_name
            .iter()
            .map(|(name, number)| (*number, name.clone()))
            .collect()
    }
}

/// The batch that creates a keyspace, for the log of a shard.
pub(crate) fn payload(shard: ShardId, number: u32, name: &str) -> SealedPayload {
    let body = [&number.to_le_bytes()[..], name.as_bytes()].concat();
    let mut payload = Payload::new();
    payload
        .push(Kind::Control, shard, &[&[KEYSPACE_CREATED]], &body)
        .expect("one small record fits");
    payload.seal(flags::CONTROL)
}

/// The keyspace that a control record creates: its number and its name. `None` for other records.
pub fn keyspace_created<'a>(record: &Record<'a>) -> Option<(u32, &'a str)> {
    let is_ours = record.kind == Kind::Control && record.head == [KEYSPACE_CREATED];
    is_ours.then(|| decode(record.body)).flatten()
}

/// Number and name out of a record's body.
pub(crate) fn decode(body: &[u8]) -> Option<(u32, &str)> {
    let (number, name) = body.split_first_chunk()?;
    let number = u32::from_le_bytes(*number);
    (number != 0 && number != u32::MAX)
        .then_some(())
        .and_then(|()| std::str::from_utf8(name).ok())
        .map(|name| (number, name))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn a_record_tells_the_keyspace_that_it_creates() {
        let payload = payload(ShardId(0), 7, "users");
        let record = payload.records().next().unwrap().unwrap();
        assert_eq!(keyspace_created(&record), Some((7, "users")));
        let mut other = Payload::new();
        other.push(Kind::Put, ShardId(0), &[&[KEYSPACE_CREATED]], record.body);
        other.push(Kind::Control, ShardId(0), &[&[1]], record.body);
        let other = other.seal(0);
        assert!(
            other
                .records()
                .all(|r| keyspace_created(&r.unwrap()).is_none())
        );
    }

    #[test]
    fn numbers_that_no_keyspace_has_are_refused() {
        let body = |number: u32, name: &[u8]| [&number.to_le_bytes()[..], name].concat();
        assert_eq!(decode(&body(1, b"")), Some((1, "")));
        for bad in [
            body(0, b"x"),
            body(u32::MAX, b"x"),
            body(1, &[0xff]),
            vec![1, 0, 0],
        ] {
            assert_eq!(decode(&bad), None, "{bad:?}");
        }
    }
}
