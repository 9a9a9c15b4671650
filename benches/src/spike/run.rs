//! A sorted run in memory and the ways to find a key in it.
#![allow(unsafe_code)]

use xorf::{BinaryFuse8, Filter};
use xxhash_rust::xxh3::xxh3_64;

use crate::huge;
use crate::memtable::Key;

/// Records of one length, sorted by key: 4 bytes of header, key, value.
pub struct Run {
    bytes: Vec<u8>,
    pub points: PointIndex,
    pub fences: Fences,
    pub filter: BinaryFuse8,
}

pub const VALUE_LEN: usize = 100;
const KEY_AT: usize = 4;
const VALUE_AT: usize = KEY_AT + 16;
const RECORD_LEN: usize = VALUE_AT + VALUE_LEN;
const BLOCK_RECORDS: usize = 4096 / RECORD_LEN;

const _: () = assert!(RECORD_LEN.is_multiple_of(8));

impl Run {
    /// `keys` are sorted and distinct.
    pub fn build(keys: &[Key]) -> Run {
        let mut bytes = vec![0x5a; keys.len() * RECORD_LEN];
        for (record, key) in bytes.chunks_exact_mut(RECORD_LEN).zip(keys) {
            record[KEY_AT..VALUE_AT].copy_from_slice(key);
        }
        let hashes: Vec<u64> = keys.iter().map(|key| xxh3_64(key)).collect();
        let heads: Vec<u64> = keys.iter().step_by(BLOCK_RECORDS).map(head).collect();
        Run {
            points: PointIndex::build(&hashes),
            fences: Fences::build(&heads),
            filter: BinaryFuse8::try_from(&hashes).expect("the hashes are distinct"),
            bytes,
        }
    }

    pub fn by_point(&self, key: &Key, hash: u64) -> Option<&[u8]> {
        self.points.find(hash, |offset| self.record_at(offset, key))
    }

    pub fn by_filter(&self, key: &Key, hash: u64) -> Option<&[u8]> {
        self.filter.contains(&hash).then(|| self.by_fence(key))?
    }

    pub fn by_fence(&self, key: &Key) -> Option<&[u8]> {
        let wanted = head(key);
        let mut block = self.fences.last_at_most(wanted)?;
        // Fences hold heads only: among equal heads the full first key decides.
        while block > 0 && self.key(block * BLOCK_RECORDS) > key {
            block -= 1;
        }
        let first = block * BLOCK_RECORDS;
        let mut low = first;
        let mut size = BLOCK_RECORDS.min(self.bytes.len() / RECORD_LEN - first);
        // Heads alone steer the search, without a branch to mispredict.
        while size > 1 {
            let half = size / 2;
            low += half * usize::from(head(self.key(low + half)) <= wanted);
            size -= half;
        }
        while low > first && self.key(low) > key {
            low -= 1;
        }
        self.record_at(low * RECORD_LEN, key)
    }

    fn key(&self, at: usize) -> &Key {
        self.bytes[at * RECORD_LEN + KEY_AT..]
            .first_chunk()
            .expect("a record holds its key")
    }

    fn record_at(&self, offset: usize, key: &Key) -> Option<&[u8]> {
        let record = &self.bytes[offset..offset + RECORD_LEN];
        (record[KEY_AT..VALUE_AT] == key[..]).then(|| &record[VALUE_AT..])
    }
}

fn head(key: &Key) -> u64 {
    u64::from_be_bytes(*key.first_chunk().expect("a key holds its head"))
}

/// A hash table of record offsets: one cache line says "not here" or "perhaps at this offset".
pub struct PointIndex {
    buckets: Vec<Bucket>,
}

/// Invariant: slots from `len` on hold tag 0 and are never looked at.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Bucket {
    tags: [u16; SLOTS],
    len: u16,
    /// Whether a key of this bucket went on to the next one.
    overflowed: u16,
    // In units of 8 bytes.
    offsets: [u32; SLOTS],
}

const SLOTS: usize = 10;
const LOAD_PERCENT_MAX: usize = 80;

const _: () = assert!(size_of::<Bucket>() == 64);

impl PointIndex {
    fn build(hashes: &[u64]) -> PointIndex {
        let bucket_count = (hashes.len() * 100).div_ceil(SLOTS * LOAD_PERCENT_MAX);
        let empty = Bucket {
            tags: [0; SLOTS],
            len: 0,
            overflowed: 0,
            offsets: [0; SLOTS],
        };
        let mut index = PointIndex {
            buckets: huge::filled(empty, bucket_count),
        };
        for (at, hash) in hashes.iter().enumerate() {
            index.insert(*hash, (at * RECORD_LEN / 8) as u32);
        }
        index
    }

    fn insert(&mut self, hash: u64, offset: u32) {
        let mut home = self.home(hash);
        while usize::from(self.buckets[home].len) == SLOTS {
            self.buckets[home].overflowed = 1;
            home = (home + 1) % self.buckets.len();
        }
        let bucket = &mut self.buckets[home];
        let slot = usize::from(bucket.len);
        bucket.tags[slot] = hash as u16;
        bucket.offsets[slot] = offset;
        bucket.len += 1;
    }

    pub fn bytes(&self) -> usize {
        self.buckets.len() * size_of::<Bucket>()
    }

    pub fn prefetch(&self, hash: u64) {
        prefetch(&self.buckets[self.home(hash)]);
    }

    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    fn find<'r>(
        &self,
        hash: u64,
        record_at: impl Fn(usize) -> Option<&'r [u8]>,
    ) -> Option<&'r [u8]> {
        let mut home = self.home(hash);
        loop {
            let bucket = &self.buckets[home];
            let mut hits = bucket.matches(hash as u16);
            while hits != 0 {
                let slot = hits.trailing_zeros() as usize;
                if let Some(found) = record_at(bucket.offsets[slot] as usize * 8) {
                    return Some(found);
                }
                hits &= hits - 1;
            }
            if bucket.overflowed == 0 {
                return None;
            }
            home = (home + 1) % self.buckets.len();
        }
    }
}

impl Bucket {
    /// One bit for each used slot that holds `tag`.
    #[cfg(target_arch = "x86_64")]
    fn matches(&self, tag: u16) -> u32 {
        use std::arch::x86_64::{
            _mm_cmpeq_epi16, _mm_loadu_si128, _mm_movemask_epi8, _mm_packs_epi16, _mm_set1_epi16,
        };
        // SAFETY: SSE2 is part of x86-64. Both loads of 16 bytes lie within the 20 bytes of
        // `tags`: the second starts at tag 2.
        let bits = unsafe {
            let wanted = _mm_set1_epi16(tag as i16);
            let low = _mm_loadu_si128(self.tags.as_ptr().cast());
            let high = _mm_loadu_si128(self.tags.as_ptr().add(2).cast());
            let low = _mm_cmpeq_epi16(low, wanted);
            let high = _mm_cmpeq_epi16(high, wanted);
            _mm_movemask_epi8(_mm_packs_epi16(low, high)) as u32
        };
        (bits & 0xff | bits >> 8 << 2) & self.used()
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn matches(&self, tag: u16) -> u32 {
        let bits = self
            .tags
            .iter()
            .rev()
            .fold(0, |bits, own| bits << 1 | u32::from(*own == tag));
        bits & self.used()
    }

    fn used(&self) -> u32 {
        (1 << self.len) - 1
    }
}

fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch changes no state the program can see, and the address is valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = item;
}

/// The heads of the first keys of all blocks, as a static tree of one-line nodes.
pub struct Fences {
    // From the root down. Level 0 has one node; the last level holds every head.
    levels: Vec<Vec<Node>>,
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Node([u64; FANOUT]);

const FANOUT: usize = 8;

impl Fences {
    fn build(heads: &[u64]) -> Fences {
        let mut levels = Vec::new();
        let mut heads = heads.to_vec();
        loop {
            let mut nodes = huge::filled(Node([u64::MAX; FANOUT]), heads.len().div_ceil(FANOUT));
            for (node, heads) in nodes.iter_mut().zip(heads.chunks(FANOUT)) {
                node.0[..heads.len()].copy_from_slice(heads);
            }
            heads = nodes.iter().map(|node| node.0[0]).collect();
            let is_root = nodes.len() == 1;
            levels.push(nodes);
            if is_root {
                levels.reverse();
                return Fences { levels };
            }
        }
    }

    pub fn bytes(&self) -> usize {
        self.levels
            .iter()
            .map(|nodes| nodes.len() * size_of::<Node>())
            .sum()
    }

    /// The last block whose head is at most `wanted`, or nothing where all heads are greater.
    ///
    /// A key whose head is `u64::MAX` would meet the padding; the random keys here have none.
    fn last_at_most(&self, wanted: u64) -> Option<usize> {
        let mut at = 0;
        for nodes in &self.levels {
            let smaller = nodes[at]
                .0
                .iter()
                .map(|head| usize::from(*head <= wanted))
                .sum::<usize>();
            at = at * FANOUT + smaller.checked_sub(1)?;
        }
        Some(at)
    }
}
