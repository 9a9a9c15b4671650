//! The point index section: from the hash of a name to the record of its newest version.
//!
//! The section is a sequence of buckets of 64 bytes, one cache line each:
//!
//! | Offset | Size | Field    | Meaning                                                         |
//! |-------:|-----:|----------|-----------------------------------------------------------------|
//! |      0 |   48 | places   | Per slot p bits: where the record begins in the file; 0 = free slot. |
//! |     48 |   15 | tags     | Per slot 1 byte: the low 8 bits of the hash.                    |
//! |     63 |    1 | overflow | 1 where a name of this bucket had to go to the next one, else 0. |
//!
//! As many bits p are taken as the end of the last chunk has, and 24 at least; a bucket has as many slots
//! as fit, and 15 at most. What is left of places and tags is zero. Tables of 64 MiB have 14 slots.
//!
//! The hash is XXH3-64 of the name without a seed; the bucket is the high half of hash times number
//! of buckets. A name that finds its bucket full goes to the next with a free slot, and round to the
//! first behind the last. At most 4 of 5 slots are taken, so chains are short, and a search ends at
//! the first bucket that has not overflowed. An absent name is so told from one line of memory; one of
//! twenty has the tag of another name, whose record is then looked at.

use std::ops::ControlFlow;

use xxhash_rust::xxh3::xxh3_64;

use super::bytes::TableBytes;
use super::damage::Damage;
use super::layout::{Field, is_zero};

const BUCKET_LEN: usize = 64;

const PLACES: Field = Field::first(48);
const TAGS: Field = PLACES.then(15);
const OVERFLOW: Field = TAGS.then(1);

const PLACE_BITS_MIN: usize = 24;

const _: () = assert!(OVERFLOW.end() == BUCKET_LEN);
const _: () = assert!(PLACES.at == 0);
// Tags and overflow are compared as one number.
const _: () = assert!(BUCKET_LEN - TAGS.at == size_of::<u128>());

/// How a bucket is divided.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Division {
    place_bits: usize,
    /// The `place_bits` low bits.
    place_mask: u64,
    slot_count: usize,
}

impl Division {
    /// Of the index of a table whose last chunk ends there.
    fn of(data_end: u64) -> Division {
        let place_bits = (u64::BITS - data_end.leading_zeros()) as usize;
        let place_bits = place_bits.max(PLACE_BITS_MIN);
        Division {
            place_bits,
            place_mask: (1 << place_bits) - 1,
            slot_count: (8 * PLACES.len / place_bits).min(TAGS.len),
        }
    }

    /// Where the place of a slot begins among the bits of the bucket.
    fn place_at(&self, slot: usize) -> usize {
        slot * self.place_bits
    }
}

/// The bits of a bucket from `at` on: 56 at least. Requires: `at` is not behind the places.
#[inline]
fn bits(bucket: &[u8; BUCKET_LEN], at: usize) -> u64 {
    let word = bucket[at / 8..]
        .first_chunk()
        .expect("the tags are behind it");
    u64::from_le_bytes(*word) >> (at % 8)
}

/// The hash of a name, as the point index has it.
pub(super) fn hash_of(name: &[u8]) -> u64 {
    xxh3_64(name)
}

/// Collects the names of a table that is being written: 16 bytes each.
#[derive(Default)]
pub(super) struct PointIndexBuilder {
    names: Vec<(u64, u64)>,
}

impl PointIndexBuilder {
    /// Adds a name by its hash, with the place of its newest version.
    pub fn push(&mut self, hash: u64, place: u64) {
        assert!(place != 0, "a record stands behind the header of the file");
        self.names.push((hash, place));
    }

    /// The bytes of the section in a table whose last chunk ends there.
    pub fn encode(&self, data_end: u64) -> Vec<u8> {
        let division = Division::of(data_end);
        let bucket_count = (self.names.len() * 5)
            .div_ceil(division.slot_count * 4)
            .max(1);
        let mut buckets = vec![[0u8; BUCKET_LEN]; bucket_count];
        let mut used = vec![0u8; bucket_count];
        for (hash, place) in &self.names {
            let mut at = bucket_of(*hash, bucket_count);
            while usize::from(used[at]) == division.slot_count {
                buckets[at][OVERFLOW.at] = 1;
                at = (at + 1) % bucket_count;
            }
            let slot = usize::from(used[at]);
            used[at] += 1;
            let bucket = &mut buckets[at];
            bucket[TAGS.at + slot] = tag_of(*hash);
            let place_at = division.place_at(slot);
            let word: &mut [u8; 8] = bucket[place_at / 8..]
                .first_chunk_mut()
                .expect("the tags are behind it");
            let bits = u64::from_le_bytes(*word) | place << (place_at % 8);
            *word = bits.to_le_bytes();
        }
        buckets.into_flattened()
    }
}

fn bucket_of(hash: u64, bucket_count: usize) -> usize {
    ((u128::from(hash) * bucket_count as u128) >> 64) as usize
}

fn tag_of(hash: u64) -> u8 {
    hash as u8
}

/// The point index of an open table.
#[derive(Debug)]
pub(super) struct PointIndex {
    buckets: Buckets,
    bucket_count: usize,
    division: Division,
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
    /// Reads the section, which stands at `at` in a table whose last chunk ends at `data_end`. Its checksum
    /// has been compared.
    pub fn decode(bytes: TableBytes, at: u64, data_end: u64) -> Result<PointIndex, Damage> {
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
        let division = Division::of(data_end);
        let places_end = division.place_at(division.slot_count);
        let rest_len = 8 * PLACES.len - places_end;
        for (bucket, at) in buckets.iter().zip((at..).step_by(BUCKET_LEN)) {
            let is_rest_zero = bits(bucket, places_end) & ((1 << rest_len) - 1) == 0
                && is_zero(&TAGS.of(bucket)[division.slot_count..]);
            if OVERFLOW.u8(bucket) > 1 || !is_rest_zero {
                let (expected, found) = ("slots, zeros, 0 or 1", "other bytes");
                return Err(Damage::new(at, "form of a bucket", expected, found));
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
            division,
        })
    }

    /// Calls `visit` with the place of every record that may be the name's, until it breaks.
    pub fn probe<B>(&self, hash: u64, visit: impl FnMut(u64) -> ControlFlow<B>) -> ControlFlow<B> {
        match &self.buckets {
            Buckets::InPlace(bytes) => {
                let (buckets, _) = bytes.as_chunks();
                self.probe_in(|at| buckets.get(at), hash, visit)
            }
            Buckets::Copied(lines) => {
                self.probe_in(|at| lines.get(at).map(|line| &line.0), hash, visit)
            }
        }
    }

    #[inline]
    fn probe_in<'a, B>(
        &self,
        bucket: impl Fn(usize) -> Option<&'a [u8; BUCKET_LEN]>,
        hash: u64,
        mut visit: impl FnMut(u64) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let mut at = bucket_of(hash, self.bucket_count);
        // Bounded: a crafted index may have overflowed everywhere.
        for _ in 0..self.bucket_count {
            let Some(bucket) = bucket(at) else { break };
            let mut matching = matching_slots(bucket, tag_of(hash));
            while matching != 0 {
                let slot = matching.trailing_zeros() as usize / 8;
                matching &= matching - 1;
                if slot >= self.division.slot_count {
                    break;
                }
                let place = bits(bucket, self.division.place_at(slot)) & self.division.place_mask;
                if place != 0 {
                    visit(place)?;
                }
            }
            if OVERFLOW.u8(bucket) == 0 {
                break;
            }
            at += 1;
            if at == self.bucket_count {
                at = 0;
            }
        }
        ControlFlow::Continue(())
    }
}

/// The highest bit of each byte behind the places that is that tag.
#[inline]
fn matching_slots(bucket: &[u8; BUCKET_LEN], tag: u8) -> u128 {
    const LOW: u128 = u128::from_le_bytes([0x7f; 16]);
    let tags = bucket.last_chunk().expect("a bucket is longer");
    let differing = u128::from_le_bytes(*tags) ^ u128::from_le_bytes([tag; 16]);
    // A byte that is not zero has its highest bit, or carries into it.
    !(((differing & LOW) + LOW) | differing | LOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("point_index.rs"),
            0,
            &[("places", PLACES), ("tags", TAGS), ("overflow", OVERFLOW)],
        );
    }

    #[test]
    fn the_slots_with_a_tag_are_those_that_have_it() {
        let mut state = 1_u64;
        for _ in 0..20_000 {
            // Few values, so that neighbours are equal, one more, and one less.
            let mut bucket = [0; BUCKET_LEN];
            for tag in &mut bucket[TAGS.at..] {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                *tag = [0_u8, 1, 0x7f, 0x80, 0xff][(state >> 33) as usize % 5];
            }
            for tag in [0, 1, 2, 0x7f, 0x80, 0x81, 0xff_u8] {
                let tags = bucket[TAGS.at..].iter();
                let expected = tags.enumerate().fold(0, |bits, (slot, other)| {
                    bits | u128::from(*other == tag) << (8 * slot + 7)
                });
                assert_eq!(
                    matching_slots(&bucket, tag),
                    expected,
                    "{tag} in {bucket:?}"
                );
            }
        }
    }

    #[test]
    fn a_bucket_has_as_many_slots_as_places_fit() {
        for (data_end, place_bits, slot_count) in [
            (640, 24, 15),
            ((1 << 24) - 1, 24, 15),
            (1 << 24, 25, 15),
            (64 << 20, 27, 14),
            (4 << 30, 33, 11),
            (1 << 55, 56, 6),
        ] {
            let division = Division::of(data_end);
            assert_eq!(
                (division.place_bits, division.slot_count),
                (place_bits, slot_count)
            );
            // Every slot keeps the highest place.
            let mut builder = PointIndexBuilder::default();
            for n in 0..slot_count as u64 {
                builder.push(n, data_end - n);
            }
            let bytes = TableBytes::owned(builder.encode(data_end));
            let index = PointIndex::decode(bytes, 0, data_end).unwrap();
            for n in 0..slot_count as u64 {
                assert!(places(&index, n).contains(&(data_end - n)));
            }
        }
    }

    #[test]
    fn what_is_left_of_a_bucket_is_zero() {
        // 25 bits per place: 15 places leave 9 bits; 27: 14 places and 6 bits, and a tag.
        for (data_end, rest) in [
            (1 << 24, &[(46, 0x80), (47, 1)][..]),
            (64 << 20, &[(47, 4), (47, 0x80), (62, 1)]),
        ] {
            let decoded = |bytes| PointIndex::decode(TableBytes::owned(bytes), 64, data_end);
            decoded(vec![0; 2 * BUCKET_LEN]).unwrap();
            for (at, bit) in rest {
                let mut bytes = vec![0; 2 * BUCKET_LEN];
                bytes[BUCKET_LEN + at] = *bit;
                let damage = decoded(bytes).unwrap_err();
                assert_eq!((damage.at, damage.what), (128, "form of a bucket"));
            }
        }
    }

    fn places(index: &PointIndex, hash: u64) -> Vec<u64> {
        let mut found = Vec::new();
        let flow: ControlFlow<()> = index.probe(hash, |place| {
            found.push(place);
            ControlFlow::Continue(())
        });
        assert!(flow.is_continue());
        found
    }

    const DATA_END: u64 = 64 << 20;

    fn built(hashes: impl Iterator<Item = u64>) -> PointIndex {
        let mut builder = PointIndexBuilder::default();
        for (n, hash) in hashes.enumerate() {
            builder.push(hash, n as u64 + 1);
        }
        PointIndex::decode(TableBytes::owned(builder.encode(DATA_END)), 0, DATA_END).unwrap()
    }

    #[test]
    fn a_section_that_is_no_row_of_buckets_is_refused() {
        for len in [0, BUCKET_LEN - 1, BUCKET_LEN + 1] {
            let damage =
                PointIndex::decode(TableBytes::owned(vec![0; len]), 64, DATA_END).unwrap_err();
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
                assert!(
                    places(&index, hash(n)).contains(&(u64::from(n) + 1)),
                    "{n} of {count}"
                );
            }
            let strays: usize = (count..2 * count)
                .map(|n| places(&index, hash(n)).len())
                .sum();
            assert!(strays <= 3 + count as usize / 15, "{strays} of {count}");
        }
    }

    #[test]
    fn names_of_one_bucket_overflow_round_the_end() {
        let index = built((0..60).map(|n| u64::MAX - n));
        for n in 0..60 {
            assert!(places(&index, u64::MAX - n).contains(&(n + 1)));
        }
    }

    #[test]
    fn an_index_that_overflows_everywhere_ends_its_search() {
        let mut bytes = vec![0; 4 * BUCKET_LEN];
        for bucket in bytes.chunks_mut(BUCKET_LEN) {
            bucket[OVERFLOW.at] = 1;
        }
        let index = PointIndex::decode(TableBytes::owned(bytes.clone()), 0, DATA_END).unwrap();
        assert_eq!(places(&index, 7), []);
        bytes[OVERFLOW.at] = 2;
        assert!(PointIndex::decode(TableBytes::owned(bytes.clone()), 0, DATA_END).is_err());
        assert!(PointIndex::decode(TableBytes::owned(bytes[..63].to_vec()), 0, DATA_END).is_err());
    }
}
