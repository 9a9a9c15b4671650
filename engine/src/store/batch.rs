//! Changes on their way into the log: a write batch holds them in the form they are stored in.

use std::borrow::Cow;
use std::ops::Bound;

use smallvec::SmallVec;
use strandline_wal::ShardId;
use strandline_wal::batch::{Kind, Payload, flags};

use crate::error::{Error, Result};
use crate::options::{KEY_LEN_MAX, VALUE_LEN_MAX};
use crate::router::{EntityRule, ShardRouter};

/// Bytes of the keyspace number in a record's head and a table's name.
pub const KEYSPACE_LEN: usize = 4;

/// A name, in place where it is not longer than most are.
pub(crate) type Name = SmallVec<[u8; NAME_SHORT_LEN]>;

const NAME_SHORT_LEN: usize = 32;

/// Names from and to.
pub(crate) type NameBounds = (Bound<Name>, Bound<Name>);

/// The internal name of a key: keyspace number, big-endian, then the key.
pub(crate) fn name_of(keyspace: u32, key: &[u8]) -> Name {
    let (mut short, len) = ([0; NAME_SHORT_LEN], KEYSPACE_LEN + key.len());
    if let Some(name) = short.get_mut(..len) {
        name[..KEYSPACE_LEN].copy_from_slice(&keyspace.to_be_bytes());
        name[KEYSPACE_LEN..].copy_from_slice(key);
        return Name::from_buf_and_len(short, len);
    }
    [&keyspace.to_be_bytes(), key].concat().into()
}

/// As [`name_of`], in `room` where it fits: a lookup takes no memory.
pub(crate) fn name_in<'a>(
    room: &'a mut [u8; NAME_ROOM_LEN],
    keyspace: u32,
    key: &[u8],
) -> Cow<'a, [u8]> {
    let Some(name) = room.get_mut(..KEYSPACE_LEN + key.len()) else {
        return Cow::Owned(name_of(keyspace, key).into_vec());
    };
    name[..KEYSPACE_LEN].copy_from_slice(&keyspace.to_be_bytes());
    name[KEYSPACE_LEN..].copy_from_slice(key);
    Cow::Borrowed(name)
}

/// Names of this length are looked up without memory of their own.
pub(crate) const NAME_ROOM_LEN: usize = 64;

/// Checked changes, encoded, with the shards that they touch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Changes {
    payload: Payload,
    /// The lowest shard: the one whose log holds the batch.
    home: Option<ShardId>,
    crosses: bool,
}

impl Changes {
    pub fn put(
        &mut self,
        route: (&ShardRouter, EntityRule),
        keyspace: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        limit("value", VALUE_LEN_MAX, value.len())?;
        self.push(route, Kind::Put, keyspace, key, value)
    }

    pub fn delete(
        &mut self,
        route: (&ShardRouter, EntityRule),
        keyspace: u32,
        key: &[u8],
    ) -> Result<()> {
        self.push(route, Kind::Delete, keyspace, key, &[])
    }

    fn push(
        &mut self,
        (router, rule): (&ShardRouter, EntityRule),
        kind: Kind,
        keyspace: u32,
        key: &[u8],
        value: &[u8],
    ) -> Result<()> {
        limit("key", KEY_LEN_MAX, key.len())?;
        let shard = router.route(rule.entity_of(key));
        let head = [&keyspace.to_be_bytes()[..], key];
        if self.payload.push(kind, shard, &head, value).is_none() {
            return Err(Error::TooLarge {
                what: "batch",
                limit: strandline_wal::batch::PAYLOAD_LEN_MAX as u64,
                found: (self.payload.len() + key.len() + value.len()) as u64,
            });
        }
        self.crosses |= self.home.is_some_and(|home| home != shard);
        self.home = Some(self.home.map_or(shard, |home| home.min(shard)));
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    pub fn record_count(&self) -> u32 {
        self.payload.record_count()
    }

    pub fn len(&self) -> usize {
        self.payload.len()
    }

    /// The stored form and the shard whose log takes it.
    pub fn seal(self) -> (ShardId, strandline_wal::batch::SealedPayload) {
        let flags = if self.crosses { flags::CROSS_SHARD } else { 0 };
        (
            self.home.expect("a batch has a record"),
            self.payload.seal(flags),
        )
    }
}

fn limit(what: &'static str, limit: usize, found: usize) -> Result<()> {
    if found > limit {
        return Err(Error::TooLarge {
            what,
            limit: limit as u64,
            found: found as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_with_and_without_memory_of_its_own() {
        for len in [0, 1, NAME_ROOM_LEN - KEYSPACE_LEN, NAME_ROOM_LEN] {
            let key = vec![7; len];
            let mut room = [0; NAME_ROOM_LEN];
            let name = name_in(&mut room, 0x0102_0304, &key);
            assert_eq!(*name, *name_of(0x0102_0304, &key));
            let fits = KEYSPACE_LEN + len <= NAME_ROOM_LEN;
            assert_eq!(matches!(name, Cow::Borrowed(_)), fits);
        }
    }
}
