//! Which shard an entity belongs to, and which entity a key belongs to. Pure.

use std::fmt;

use strandline_wal::{EntityId, ShardId};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};

/// Most shards of one dataset.
pub const SHARD_COUNT_MAX: u16 = 256;

/// How entities are spread over shards. Stored with the dataset: another one at open is an error.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum ShardRouter {
    /// Everything belongs to shard 0.
    #[default]
    Single,
    /// `entity % shard_count`.
    Hash(ShardCount),
    /// Each entity belongs to the range that holds it.
    Ranges(ShardRanges),
}

/// A number of shards: 1 to 256.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ShardCount(u16);

/// Ranges of entities that do not overlap and leave none out, in ascending order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ShardRanges(Vec<ShardRange>);

/// Entities `first..=last`, `u64::MAX` included where the last range ends there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ShardRange {
    /// The lowest entity.
    pub first: u64,
    /// The highest entity.
    pub last: u64,
    /// Where they belong.
    pub shard: ShardId,
}

impl ShardRouter {
    /// The version of the routing rules that this build has; stored with the dataset.
    pub const VERSION: u32 = 1;

    /// Spreads entities by `% shard_count`.
    ///
    /// # Errors
    /// Where there are no shards, or more than 256.
    pub fn hash(shard_count: u16) -> Result<ShardRouter> {
        if !(1..=SHARD_COUNT_MAX).contains(&shard_count) {
            return Err(Error::Argument {
                what: "shard count",
                expected: format!("1 to {SHARD_COUNT_MAX}"),
                found: shard_count.to_string(),
            });
        }
        Ok(ShardRouter::Hash(ShardCount(shard_count)))
    }

    /// Spreads entities by explicit ranges, in any order.
    ///
    /// # Errors
    /// Where ranges overlap, are reversed, leave an entity out, or shards are not 0..n.
    pub fn ranges(mut ranges: Vec<ShardRange>) -> Result<ShardRouter> {
        let wrong = |found: String| Error::Argument {
            what: "shard ranges",
            expected: "ranges that cover 0 to 18446744073709551615 once each".to_owned(),
            found,
        };
        ranges.sort_by_key(|range| range.first);
        let mut next = Some(0);
        for range in &ranges {
            let Some(first) = next else {
                return Err(wrong(format!("{range}, behind the last entity")));
            };
            if range.first != first || range.last < range.first {
                return Err(wrong(format!("{range} where {first} is next")));
            }
            next = range.last.checked_add(1);
        }
        if let Some(first) = next {
            return Err(wrong(format!("nothing from {first} on")));
        }
        let last = ranges.iter().map(|range| range.shard.0).max().unwrap_or(0);
        let missing = (0..=last).find(|n| !ranges.iter().any(|range| range.shard.0 == *n));
        if last >= SHARD_COUNT_MAX || missing.is_some() {
            return Err(wrong(format!(
                "shard numbers up to {last} with gaps {missing:?}"
            )));
        }
        Ok(ShardRouter::Ranges(ShardRanges(ranges)))
    }

    /// Number of shards.
    pub fn shard_count(&self) -> u16 {
        match self {
            ShardRouter::Single => 1,
            ShardRouter::Hash(count) => count.0,
            ShardRouter::Ranges(ranges) => ranges
                .0
                .iter()
                .map(|range| range.shard.0)
                .max()
                .map_or(1, |max| max + 1),
        }
    }

    /// The shard that an entity belongs to. Every entity belongs to exactly one.
    pub fn route(&self, entity: EntityId) -> ShardId {
        match self {
            ShardRouter::Single => ShardId(0),
            ShardRouter::Hash(count) => {
                let shard = entity.0 % u64::from(count.0);
                ShardId(u16::try_from(shard).expect("less than a u16 count"))
            }
            ShardRouter::Ranges(ranges) => {
                let after = ranges.0.partition_point(|range| range.first <= entity.0);
                ranges.0[after - 1].shard
            }
        }
    }

    /// The ranges, where it routes by ranges.
    pub fn as_ranges(&self) -> &[ShardRange] {
        match self {
            ShardRouter::Ranges(ranges) => &ranges.0,
            ShardRouter::Single | ShardRouter::Hash(_) => &[],
        }
    }
}

impl fmt::Display for ShardRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={} -> {}", self.first, self.last, self.shard)
    }
}

impl fmt::Display for ShardRouter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShardRouter::Single => f.write_str("single"),
            ShardRouter::Hash(count) => write!(f, "hash({})", count.0),
            ShardRouter::Ranges(ranges) => {
                let texts: Vec<String> = ranges.0.iter().map(ToString::to_string).collect();
                write!(f, "ranges({})", texts.join(", "))
            }
        }
    }
}

/// Which entity a key belongs to. Stored with the dataset: another one at open is an error.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum EntityRule {
    /// XXH3 of the whole key.
    #[default]
    KeyHash,
    /// XXH3 of the key up to the first such byte, or of the whole key where there is none.
    PrefixHash(u8),
    /// The first 8 bytes, big-endian; shorter keys count as if followed by zeros.
    FirstEight,
}

impl EntityRule {
    /// The entity that a key belongs to. An entity's keys stay together.
    pub fn entity_of(self, key: &[u8]) -> EntityId {
        match self {
            EntityRule::KeyHash => EntityId(xxh3_64(key)),
            EntityRule::PrefixHash(delimiter) => {
                let end = key
                    .iter()
                    .position(|byte| *byte == delimiter)
                    .unwrap_or(key.len());
                EntityId(xxh3_64(&key[..end]))
            }
            EntityRule::FirstEight => {
                let mut first = [0; 8];
                let len = key.len().min(8);
                first[..len].copy_from_slice(&key[..len]);
                EntityId(u64::from_be_bytes(first))
            }
        }
    }
}

impl fmt::Display for EntityRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntityRule::KeyHash => f.write_str("key hash"),
            EntityRule::PrefixHash(delimiter) => {
                write!(f, "hash of the prefix up to {:?}", char::from(*delimiter))
            }
            EntityRule::FirstEight => f.write_str("first eight bytes"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(list: &[(u64, u64, u16)]) -> Result<ShardRouter> {
        let range = |(first, last, shard): &(u64, u64, u16)| ShardRange {
            first: *first,
            last: *last,
            shard: ShardId(*shard),
        };
        ShardRouter::ranges(list.iter().map(range).collect())
    }

    #[test]
    fn no_shards_is_an_error() {
        assert!(ShardRouter::hash(0).is_err());
        assert!(ShardRouter::hash(257).is_err());
        assert_eq!(ShardRouter::hash(5).unwrap().shard_count(), 5);
    }

    #[test]
    fn ranges_must_cover_every_entity_once() {
        assert!(ranges(&[]).is_err());
        assert!(
            ranges(&[(0, u64::MAX - 1, 0)]).is_err(),
            "u64::MAX is left out"
        );
        assert!(ranges(&[(1, u64::MAX, 0)]).is_err(), "0 is left out");
        assert!(
            ranges(&[(0, 9, 0), (9, u64::MAX, 1)]).is_err(),
            "9 stands twice"
        );
        assert!(
            ranges(&[(0, 9, 0), (11, u64::MAX, 1)]).is_err(),
            "10 is left out"
        );
        assert!(ranges(&[(0, u64::MAX, 0), (0, u64::MAX, 1)]).is_err());
        assert!(ranges(&[(0, 9, 0), (10, 3, 1)]).is_err(), "it is reversed");
        assert!(
            ranges(&[(0, 9, 0), (10, u64::MAX, 2)]).is_err(),
            "shard 1 has nothing"
        );
        // A stored manifest may name any number.
        assert!(ranges(&[(0, u64::MAX, u16::MAX)]).is_err());
        let router = ranges(&[(10, u64::MAX, 1), (0, 9, 0)]).unwrap();
        assert_eq!(router.route(EntityId(9)), ShardId(0));
        assert_eq!(router.route(EntityId(10)), ShardId(1));
        assert_eq!(router.route(EntityId(u64::MAX)), ShardId(1));
    }

    #[test]
    fn an_entitys_keys_stay_together() {
        let rule = EntityRule::PrefixHash(b'/');
        assert_eq!(rule.entity_of(b"user1/name"), rule.entity_of(b"user1/mail"));
        assert_ne!(rule.entity_of(b"user1/name"), rule.entity_of(b"user2/name"));
        assert_eq!(
            EntityRule::FirstEight.entity_of(b"\0\0\0\0\0\0\x01\x02rest"),
            EntityId(258)
        );
        assert_eq!(EntityRule::FirstEight.entity_of(b"\x01"), EntityId(1 << 56));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn every_entity_routes_to_exactly_one_shard(
            entity in prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)],
            cuts in proptest::collection::btree_set(1u64.., 0..8),
            count in 1u16..=256,
        ) {
            let mut list = Vec::new();
            let mut first = 0;
            for (shard, cut) in cuts.iter().enumerate() {
                list.push((first, cut - 1, shard as u16));
                first = *cut;
            }
            list.push((first, u64::MAX, cuts.len() as u16));
            let router = ranges(&list).unwrap();
            let holders: Vec<u16> = list.iter()
                .filter(|(first, last, _)| (*first..=*last).contains(&entity))
                .map(|(_, _, shard)| *shard)
                .collect();
            prop_assert_eq!(holders, vec![router.route(EntityId(entity)).0]);
            prop_assert!(ShardRouter::hash(count).unwrap().route(EntityId(entity)).0 < count);
            prop_assert_eq!(ShardRouter::Single.route(EntityId(entity)), ShardId(0));
        }
    }
}
