//! The point index section: from the hash of a name to the record of its newest version.
//!
//! The section is a sequence of buckets of 64 bytes, one cache line each:
//!
//! | Offset | Size | Field    | Meaning                                                         |
//! |-------:|-----:|----------|-----------------------------------------------------------------|
//! |      0 |   20 | tags     | Per slot 2 bytes: the low 16 bits of the hash.                  |
//! |     20 |   40 | records  | Per slot 4 bytes: place of the record, over 8; 0 = free slot.   |
//! |     60 |    1 | overflow | 1 where a name of this bucket had to go to the next one, else 0. |
//! |     61 |    3 | reserved | Zero. A reader rejects anything else.                           |
//!
//! The hash is XXH3-64 of the name without a seed; the bucket is the high half of hash times number
//! of buckets. A name that finds its bucket full goes to the next with a free slot, and round to the
//! first behind the last. At most 8 of 10 slots are taken, so chains are short, and a search ends at
//! the first bucket that has not overflowed. An absent name is so told from one line of memory.

use std::ops::ControlFlow;

use xxhash_rust::xxh3::xxh3_64;

use super::bytes::TableBytes;
use super::damage::Damage;
use super::layout::Field;

const BUCKET_LEN: usize = 64;

/// Slots of a bucket.
const SLOT_COUNT: usize = 10;

/// Slots of a bucket that are taken on average, at most.
const SLOT_COUNT_USED: usize = 8;

const TAGS: Field = Field::first(2 * SLOT_COUNT);
const RECORDS: Field = TAGS.then(4 * SLOT_COUNT);
const OVERFLOW: Field = RECORDS.then(1);
const RESERVED: Field = OVERFLOW.then(3);

const _: () = assert!(RESERVED.end() == BUCKET_LEN);
const _: () = assert!(TAGS.at == 0);
const _: () = assert!(SLOT_COUNT_USED < SLOT_COUNT);

/// The hash of a name, as the point index has it.
pub(super) fn hash_of(name: &[u8]) -> u64 {
    xxh3_64(name)
}

/// Collects the names of a table that is being written: 16 bytes each.
#[derive(Default)]
pub(super) struct PointIndexBuilder {
    names: Vec<(u64, u32)>,
}

impl PointIndexBuilder {
    /// Adds a name by its hash, with the place over 8 of its newest version.
    pub fn push(&mut self, hash: u64, place: u32) {
        assert!(place != 0, "a record stands behind the header of the file");
        self.names.push((hash, place));
    }

    /// The bytes of the section.
    pub fn encode(&self) -> Vec<u8> {
        let bucket_count = self.names.len().div_ceil(SLOT_COUNT_USED).max(1);
        let mut buckets = vec![[0u8; BUCKET_LEN]; bucket_count];
        let mut used = vec![0u8; bucket_count];
        for (hash, place) in &self.names {
            let mut at = bucket_of(*hash, bucket_count);
            while usize::from(used[at]) == SLOT_COUNT {
                buckets[at][OVERFLOW.at] = 1;
                at = (at + 1) % bucket_count;
            }
            let slot = usize::from(used[at]);
            used[at] += 1;
            let tag_at = TAGS.at + 2 * slot;
            buckets[at][tag_at..tag_at + 2].copy_from_slice(&tag_of(*hash).to_le_bytes());
            let record_at = RECORDS.at + 4 * slot;
            buckets[at][record_at..record_at + 4].copy_from_slice(&place.to_le_bytes());
        }
        buckets.into_flattened()
    }
}

fn bucket_of(hash: u64, bucket_count: usize) -> usize {
    ((u128::from(hash) * bucket_count as u128) >> 64) as usize
}

fn tag_of(hash: u64) -> u16 {
    hash as u16
}

/// The point index of an open table.
#[derive(Debug)]
pub(super) struct PointIndex {
    buckets: Buckets,
    bucket_count: usize,
}

#[derive(Debug)]
enum Buckets {
    /// Where the section stands on a boundary of cache lines, as in a map.
    InPlace(TableBytes),
    Copied(Box<[Line]>),
}

/// A bucket that does not straddle cache lines.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line([u8; BUCKET_LEN]);

impl PointIndex {
    /// Reads the section, which stands at `at`. Its checksum has been compared.
    pub fn decode(bytes: TableBytes, at: u64) -> Result<PointIndex, Damage> {
        let (buckets, rest) = bytes.as_chunks::<BUCKET_LEN>();
        if buckets.is_empty() || !rest.is_empty() {
            let expected = "a multiple of 64";
            return Err(Damage::new(
                at,
                "length of the point index",
                expected,
                bytes.len(),
            ));
        }
        for (index, bucket) in buckets.iter().enumerate() {
            if OVERFLOW.u8(bucket) > 1 || !RESERVED.is_zero(bucket) {
                let at = at + (index * BUCKET_LEN + OVERFLOW.at) as u64;
                return Err(Damage::new(
                    at,
                    "end of a bucket",
                    "0 or 1, zeros",
                    "other bytes",
                ));
            }
        }
        let bucket_count = buckets.len();
        let is_aligned = bytes.as_ptr().addr().is_multiple_of(BUCKET_LEN);
        let buckets = if is_aligned {
            Buckets::InPlace(bytes)
        } else {
            Buckets::Copied(buckets.iter().map(|bucket| Line(*bucket)).collect())
        };
        Ok(PointIndex {
            buckets,
            bucket_count,
        })
    }

    fn bucket(&self, at: usize) -> Option<&[u8; BUCKET_LEN]> {
        match &self.buckets {
            Buckets::InPlace(bytes) => bytes.get(at * BUCKET_LEN..)?.first_chunk(),
            Buckets::Copied(lines) => lines.get(at).map(|line| &line.0),
        }
    }

    /// Calls `visit` with the place over 8 of every record that may be the name's, until it breaks.
    pub fn probe<B>(
        &self,
        hash: u64,
        mut visit: impl FnMut(u32) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let tag = tag_of(hash);
        let mut at = bucket_of(hash, self.bucket_count);
        // Bounded: a crafted index may have overflowed everywhere.
        for _ in 0..self.bucket_count {
            let Some(bucket) = self.bucket(at) else { break };
            let mut matching = matching_slots(bucket, tag);
            while matching != 0 {
                let slot = matching.trailing_zeros() as usize;
                matching &= matching - 1;
                let place = Field {
                    at: RECORDS.at + 4 * slot,
                    len: 4,
                }
                .u32(bucket);
                if place != 0 {
                    visit(place)?;
                }
            }
            if OVERFLOW.u8(bucket) == 0 {
                break;
            }
            at = (at + 1) % self.bucket_count;
        }
        ControlFlow::Continue(())
    }
}

/// The slots whose tag is that, as bits. Written so that the first 8 are compared as one vector.
#[inline]
fn matching_slots(bucket: &[u8; BUCKET_LEN], tag: u16) -> u32 {
    let tag_at = |slot: usize| u16::from_le_bytes([bucket[2 * slot], bucket[2 * slot + 1]]);
    let lanes: [u16; 8] = std::array::from_fn(|slot| {
        let is_tag = if tag_at(slot) == tag { u16::MAX } else { 0 };
        is_tag & 1 << slot
    });
    let first = lanes.iter().fold(0, |bits, lane| bits | lane);
    let last = (8..SLOT_COUNT).map(|slot| u32::from(tag_at(slot) == tag) << slot);
    last.fold(u32::from(first), |bits, bit| bits | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("point_index.rs"),
            0,
            &[
                ("tags", TAGS),
                ("records", RECORDS),
                ("overflow", OVERFLOW),
                ("reserved", RESERVED),
            ],
        );
    }

    #[test]
    fn the_slots_with_a_tag_are_those_that_have_it() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            // Few values, so that neighbours are equal, one more, and one less.
            let mut bucket = [0; BUCKET_LEN];
            for tag in bucket[..TAGS.end()].as_chunks_mut::<2>().0 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *tag = [0_u16, 1, 0x7fff, 0x8000, 0xffff][(state >> 33) as usize % 5].to_le_bytes();
            }
            for tag in [0, 1, 2, 0x7fff, 0x8000, 0x8001, 0xffff_u16] {
                let tags = bucket[..TAGS.end()].as_chunks::<2>().0.iter();
                let expected = tags.enumerate().fold(0, |bits, (slot, other)| {
                    bits | u32::from(*other == tag.to_le_bytes()) << slot
                });
                assert_eq!(
                    matching_slots(&bucket, tag),
                    expected,
                    "{tag} in {bucket:?}"
                );
            }
        }
    }

    fn places(index: &PointIndex, hash: u64) -> Vec<u32> {
        let mut found = Vec::new();
        let flow: ControlFlow<()> = index.probe(hash, |place| {
            found.push(place);
            ControlFlow::Continue(())
        });
        assert!(flow.is_continue());
        found
    }

    fn built(hashes: impl Iterator<Item = u64>) -> PointIndex {
        let mut builder = PointIndexBuilder::default();
        for (n, hash) in hashes.enumerate() {
            builder.push(hash, n as u32 + 1);
        }
        PointIndex::decode(TableBytes::owned(builder.encode()), 0).unwrap()
    }

    #[test]
    fn a_section_that_is_no_row_of_buckets_is_refused() {
        for len in [0, BUCKET_LEN - 1, BUCKET_LEN + 1] {
            let damage = PointIndex::decode(TableBytes::owned(vec![0; len]), 64).unwrap_err();
            assert_eq!((damage.at, damage.what), (64, "length of the point index"));
            assert_eq!(damage.found, len.to_string());
        }
    }

    #[test]
    fn every_name_is_found_and_few_others() {
        let hash = |n: u32| hash_of(format!("name {n}").as_bytes());
        for count in [0, 1, 7, 8, 9, 100, 10_000] {
            let index = built((0..count).map(hash));
            for n in 0..count {
                assert!(places(&index, hash(n)).contains(&(n + 1)), "{n} of {count}");
            }
            let strays: usize = (count..2 * count)
                .map(|n| places(&index, hash(n)).len())
                .sum();
            assert!(strays <= 1 + count as usize / 1_000, "{strays} of {count}");
        }
    }

    #[test]
    fn names_of_one_bucket_overflow_round_the_end() {
        let index = built((0..60).map(|n| u64::MAX - n));
        for n in 0..60 {
            assert!(places(&index, u64::MAX - n).contains(&(n as u32 + 1)));
        }
    }

    #[test]
    fn an_index_that_overflows_everywhere_ends_its_search() {
        let mut bytes = vec![0; 4 * BUCKET_LEN];
        for bucket in bytes.chunks_mut(BUCKET_LEN) {
            bucket[OVERFLOW.at] = 1;
        }
        let index = PointIndex::decode(TableBytes::owned(bytes.clone()), 0).unwrap();
        assert_eq!(places(&index, 7), []);
        bytes[OVERFLOW.at] = 2;
        assert!(PointIndex::decode(TableBytes::owned(bytes.clone()), 0).is_err());
        assert!(PointIndex::decode(TableBytes::owned(bytes[..63].to_vec()), 0).is_err());
    }
}
