//! The names of things: shards, regions, datasets, entities, segments, epochs, positions and times.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A partition of a dataset by entity. Each (dataset, shard) has one log.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct ShardId(pub u16);

/// A place with its own leader. A single-region database is region 0.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct RegionId(pub u16);

/// What a key belongs to, for routing: entities never straddle shards.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct EntityId(pub u64);

/// One leadership. Rises with every writable open; 0 is "before any" and never stands in a v2 batch.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Epoch(pub u32);

/// A place in one shard's log: the batch that ends with record `seq`, written in `epoch`.
///
/// Ordered by epoch first: of two logs the one with the later epoch wins, then the longer one.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Position {
    /// The leadership that wrote the batch.
    pub epoch: Epoch,
    /// Sequence of the batch's last record; 0 before the first.
    pub seq: u64,
}

/// A hybrid logical clock value: 48 bits of milliseconds since 1970, 16 bits of counter.
///
/// Packed as `millis << 16 | counter`, so that integer order is time order. It is the version of
/// every record in its batch. Source: Kulkarni et al., "Logical Physical Clocks" (2014).
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct Hlc(pub u64);

impl Hlc {
    /// The largest time there is; reading at it sees everything.
    pub const MAX: Hlc = Hlc(u64::MAX);

    /// The first value of a millisecond.
    pub const fn from_millis(millis: u64) -> Hlc {
        Hlc(millis << 16)
    }

    /// The wall-clock part, in milliseconds since 1970.
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// The next value to hand out: the wall clock where it is ahead, else one more than the last.
    ///
    /// Never goes back and never repeats before [`Hlc::MAX`], whatever the wall clock does.
    #[must_use]
    pub const fn after(self, wall_ms: u64) -> Hlc {
        let wall = Hlc::from_millis(wall_ms);
        if wall.0 > self.0 {
            wall
        } else {
            Hlc(self.0.saturating_add(1))
        }
    }
}

/// Longest dataset name, in bytes.
pub const DATASET_NAME_LEN_MAX: usize = 48;

/// The stable name of a dataset: the unit of isolation and of replication.
///
/// 1 to 48 bytes of `a-z 0-9 - _ .`, starting with a letter or digit. An absent or empty name
/// means `primary`.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
pub struct DatasetId(String);

impl DatasetId {
    /// The dataset that an unnamed one is.
    pub const PRIMARY: &'static str = "primary";

    /// Checks a name. Empty means `primary`.
    ///
    /// # Errors
    /// [`ParseIdError`] where the name is too long or has a character outside the set.
    pub fn new(name: &str) -> Result<DatasetId, ParseIdError> {
        if name.is_empty() {
            return Ok(DatasetId::default());
        }
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b);
        let first = name.as_bytes()[0];
        if name.len() > DATASET_NAME_LEN_MAX
            || !name.bytes().all(legal)
            || !(first.is_ascii_lowercase() || first.is_ascii_digit())
        {
            return Err(ParseIdError {
                what: "dataset name",
                expected: "1 to 48 of a-z 0-9 - _ . starting with a letter or digit",
                found: name.to_owned(),
            });
        }
        Ok(DatasetId(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for DatasetId {
    fn default() -> DatasetId {
        DatasetId(DatasetId::PRIMARY.to_owned())
    }
}

impl fmt::Display for DatasetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for DatasetId {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<DatasetId, D::Error> {
        let name = String::deserialize(input)?;
        DatasetId::new(&name).map_err(serde::de::Error::custom)
    }
}

/// One log: everything that a dataset's shard writes in one region.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct LogId {
    /// The dataset.
    pub dataset: DatasetId,
    /// The region that writes it.
    pub region: RegionId,
    /// The shard.
    pub shard: ShardId,
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:r{}:s{}", self.dataset, self.region.0, self.shard.0)
    }
}

/// One segment of one log, ordered by (region, shard, seqno). Prints as `r0:s0:42`.
#[derive(
    Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize,
)]
pub struct WalSegmentId {
    /// The region that writes it.
    pub region: RegionId,
    /// The shard it belongs to.
    pub shard: ShardId,
    /// Sequence of its first record.
    pub seqno: u64,
}

impl fmt::Display for WalSegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "r{}:s{}:{}", self.region.0, self.shard.0, self.seqno)
    }
}

/// A text that does not name what it should.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("not a {what}: expected {expected}, found {found:?}")]
pub struct ParseIdError {
    /// The kind of name.
    pub what: &'static str,
    /// Its shape.
    pub expected: &'static str,
    /// The text given.
    pub found: String,
}

impl FromStr for WalSegmentId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<WalSegmentId, ParseIdError> {
        let wrong = || ParseIdError {
            what: "segment id",
            expected: "r<region>:s<shard>:<seqno>, as r0:s0:42",
            found: text.to_owned(),
        };
        let mut parts = text.split(':');
        let (Some(region), Some(shard), Some(seqno), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let id = WalSegmentId {
            region: RegionId(canonical(region.strip_prefix('r')).ok_or_else(wrong)?),
            shard: ShardId(canonical(shard.strip_prefix('s')).ok_or_else(wrong)?),
            seqno: canonical(Some(seqno)).ok_or_else(wrong)?,
        };
        Ok(id)
    }
}

/// Parses a number written the one way we write it: no sign, no leading zero.
fn canonical<T: FromStr + fmt::Display>(digits: Option<&str>) -> Option<T> {
    let digits = digits?;
    let number: T = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
display_number!(ShardId, RegionId, EntityId, Epoch, Hlc);

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.epoch, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Debug;
    use std::hash::Hash;

    #[test]
    fn shard_and_region_ids_carry_every_promised_trait() {
        fn check<T>()
        where
            T: Copy + Debug + Eq + Hash + Ord + Serialize + for<'de> Deserialize<'de>,
        {
        }
        check::<ShardId>();
        check::<RegionId>();
        check::<WalSegmentId>();
        assert_eq!(serde_json::to_string(&ShardId(7)).unwrap(), "7");
        assert_eq!(
            serde_json::from_str::<RegionId>("65535").unwrap(),
            RegionId(65_535)
        );
    }

    #[test]
    fn a_time_has_its_milliseconds_and_never_goes_back() {
        let time = Hlc::from_millis(7);
        assert_eq!(
            (time.millis(), time.after(7), time.after(6)),
            (7, Hlc(time.0 + 1), Hlc(time.0 + 1))
        );
        assert_eq!(time.after(8), Hlc::from_millis(8));
    }

    #[test]
    fn an_empty_dataset_name_is_primary() {
        assert_eq!(DatasetId::new("").unwrap().as_str(), "primary");
        assert_eq!(
            serde_json::from_str::<DatasetId>("\"\"").unwrap(),
            DatasetId::default()
        );
    }

    #[test]
    fn dataset_names_are_fit_for_file_names() {
        for bad in [
            "../x",
            "a/b",
            "A",
            ".hidden",
            "-x",
            "a b",
            "é",
            &"x".repeat(49),
        ] {
            assert!(DatasetId::new(bad).is_err(), "{bad:?}");
        }
        assert!(DatasetId::new(&"x".repeat(48)).is_ok());
    }

    #[test]
    fn the_hybrid_clock_never_goes_back() {
        let last = Hlc::from_millis(1_000);
        assert_eq!(last.after(999), Hlc(last.0 + 1));
        assert_eq!(last.after(1_000), Hlc(last.0 + 1));
        assert_eq!(last.after(1_001), Hlc::from_millis(1_001));
        assert_eq!(Hlc::MAX.after(1_001), Hlc::MAX);
    }

    #[test]
    fn foreign_segment_ids_are_refused() {
        for bad in [
            "",
            "r0:s0",
            "r0:s0:1:2",
            "r00:s0:1",
            "r0:s70000:1",
            "r0:s0:+1",
            "s0:r0:1",
        ] {
            assert!(bad.parse::<WalSegmentId>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn segment_ids_parse_back(region: u16, shard: u16, seqno: u64) {
            let id = WalSegmentId { region: RegionId(region), shard: ShardId(shard), seqno };
            prop_assert_eq!(id.to_string().parse::<WalSegmentId>().unwrap(), id);
        }

        #[test]
        fn segment_ids_order_by_region_then_shard_then_seqno(
            a: (u16, u16, u64), b: (u16, u16, u64),
        ) {
            let id = |(region, shard, seqno)| WalSegmentId {
                region: RegionId(region), shard: ShardId(shard), seqno,
            };
            prop_assert_eq!(id(a).cmp(&id(b)), a.cmp(&b));
        }
    }
}
