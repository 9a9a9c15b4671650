//! The fence section: the order index. A fence stands before every 4 KiB or so of records.
//!
//! | Offset | Size | Field    | Meaning                                                     |
//! |-------:|-----:|----------|-------------------------------------------------------------|
//! |      0 |    4 | count    | How many fences. Never 0.                                   |
//! |      4 |    4 | reserved | Zero. A reader rejects anything else.                       |
//!
//! `count` fences of 24 bytes follow, then their names back to back, then zeros up to a multiple
//! of 8. A fence is:
//!
//! | Offset | Size | Field    | Meaning                                                     |
//! |-------:|-----:|----------|-------------------------------------------------------------|
//! |      0 |    8 | version  | Version of the fence's key.                                 |
//! |      8 |    4 | chunk    | Chunk of the first record behind the fence.                 |
//! |     12 |    4 | ordinal  | Ordinal of that record in its chunk.                        |
//! |     16 |    4 | name_at  | Where its name begins among the names.                      |
//! |     20 |    4 | name_len | Length of its name.                                         |
//!
//! A fence's key is above the record before it and not above the record behind it. Its name is the
//! shortest that says so, with the newest version there is; only where both records have one name it
//! is the key of the record behind. Every chunk begins with a fence.

use super::bytes::TableBytes;
use super::damage::Damage;
use super::entry::InternalKey;
use super::layout::{Field, is_zero};
use strandline_wal::Hlc;

/// Bytes of records between two fences.
pub(super) const STRIDE_LEN: usize = 4 << 10;

const HEADER_LEN: usize = 8;
const FENCE_LEN: usize = 24;

const COUNT: Field = Field::first(4);
const RESERVED: Field = COUNT.then(4);

const VERSION: Field = Field::first(8);
const CHUNK: Field = VERSION.then(4);
const ORDINAL: Field = CHUNK.then(4);
const NAME_AT: Field = ORDINAL.then(4);
const NAME_LEN: Field = NAME_AT.then(4);

const _: () = assert!(RESERVED.end() == HEADER_LEN);
const _: () = assert!(NAME_LEN.end() == FENCE_LEN);

/// Collects the fences of a table that is being written.
#[derive(Default)]
pub(super) struct FencesBuilder {
    fences: Vec<u8>,
    names: Vec<u8>,
    count: u32,
}

impl FencesBuilder {
    /// Sets a fence between two neighbours. There is nothing before the first.
    pub fn push(
        &mut self,
        before: Option<InternalKey<'_>>,
        behind: InternalKey<'_>,
        chunk: u32,
        ordinal: u32,
    ) {
        let key = match before {
            None => InternalKey::first_of(&[]),
            Some(before) if before.name == behind.name => behind,
            Some(before) => {
                let same = before
                    .name
                    .iter()
                    .zip(behind.name)
                    .take_while(|(a, b)| a == b)
                    .count();
                // The names ascend, so the one behind goes on where they part.
                InternalKey::first_of(&behind.name[..same + 1])
            }
        };
        let mut fence = [0; FENCE_LEN];
        VERSION.put(&mut fence, &key.version.0.to_le_bytes());
        CHUNK.put(&mut fence, &chunk.to_le_bytes());
        ORDINAL.put(&mut fence, &ordinal.to_le_bytes());
        NAME_AT.put(&mut fence, &(self.names.len() as u32).to_le_bytes());
        NAME_LEN.put(&mut fence, &(key.name.len() as u32).to_le_bytes());
        self.fences.extend_from_slice(&fence);
        self.names.extend_from_slice(key.name);
        self.count += 1;
    }

    /// Bytes of the names so far, which must stay below 4 GiB.
    pub fn names_len(&self) -> usize {
        self.names.len()
    }

    /// The bytes of the section.
    pub fn encode(&self) -> Vec<u8> {
        let len = HEADER_LEN + self.fences.len() + self.names.len();
        let mut bytes = Vec::with_capacity(len.next_multiple_of(8));
        bytes.extend_from_slice(&self.count.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&self.fences);
        bytes.extend_from_slice(&self.names);
        bytes.resize(len.next_multiple_of(8), 0);
        bytes
    }
}

/// Where the records behind a fence begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Fence {
    pub chunk: u32,
    pub ordinal: u32,
}

/// The order index of an open table.
#[derive(Debug)]
pub(super) struct Fences {
    bytes: TableBytes,
    count: usize,
    /// What all names but the first fence's, which is empty, begin with.
    prefix: Box<[u8]>,
    /// Per fence the 8 bytes of its name behind the prefix as a big-endian number, zeros beyond its
    /// end. Their order agrees with that of the names; equal heads say nothing.
    heads: Vec<u64>,
    /// Per chunk its first fence, then the number of fences.
    of_chunk: Vec<u32>,
}

impl Fences {
    /// Reads the section, which stands at `at`. Its checksum has been compared.
    pub fn decode(bytes: TableBytes, at: u64, chunk_count: u32) -> Result<Fences, Damage> {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(Damage::new(
                at,
                "length of the fence section",
                "8 or more",
                bytes.len(),
            ));
        };
        let count = COUNT.u32(header) as usize;
        if !RESERVED.is_zero(header) {
            let at = at + RESERVED.at as u64;
            return Err(Damage::new(
                at,
                "reserved bytes of the fences",
                "zeros",
                "other bytes",
            ));
        }
        if count == 0 || count > (bytes.len() - HEADER_LEN) / FENCE_LEN {
            let expected = format!("1 to {}", (bytes.len() - HEADER_LEN) / FENCE_LEN);
            return Err(Damage::new(at, "number of fences", expected, count));
        }
        let mut fences = Fences {
            bytes,
            count,
            prefix: Box::default(),
            heads: Vec::new(),
            of_chunk: Vec::new(),
        };
        fences.check_names(at)?;
        fences.of_chunk = fences.check_places(at, chunk_count)?;
        let (first, last) = (fences.name(1.min(count - 1)), fences.name(count - 1));
        let same = first.iter().zip(last).take_while(|(a, b)| a == b).count();
        fences.prefix = first[..same].into();
        let prefix_len = fences.prefix.len();
        fences.heads = (0..count)
            .map(|fence| head_of(fences.name(fence).get(prefix_len..).unwrap_or_default()))
            .collect();
        Ok(fences)
    }

    /// The names tile their part of the section, and the keys ascend.
    fn check_names(&self, at: u64) -> Result<(), Damage> {
        let names_at = HEADER_LEN + self.count * FENCE_LEN;
        let mut end = 0usize;
        for fence in 0..self.count {
            let row = self.row(fence);
            let at = at + (HEADER_LEN + fence * FENCE_LEN) as u64;
            let (name_at, name_len) = (NAME_AT.u32(row) as usize, NAME_LEN.u32(row) as usize);
            if name_at != end || name_len > self.bytes.len() - names_at - end {
                let found = format!("{name_at} with {name_len} bytes");
                return Err(Damage::new(
                    at,
                    "name of a fence",
                    format!("at {end}"),
                    found,
                ));
            }
            end += name_len;
            if fence > 0 && self.key(fence - 1) >= self.key(fence) {
                return Err(Damage::new(at, "order of fences", "ascending", "not so"));
            }
        }
        if !self.name(0).is_empty() {
            return Err(Damage::new(at, "name of the first fence", "none", "some"));
        }
        let padding = &self.bytes[names_at + end..];
        if padding.len() >= 8 || !self.bytes.len().is_multiple_of(8) || !is_zero(padding) {
            let at = at + (names_at + end) as u64;
            return Err(Damage::new(
                at,
                "padding of the fences",
                "zeros",
                "other bytes",
            ));
        }
        Ok(())
    }

    /// The places ascend, and every chunk begins with a fence. Returns the first fence per chunk.
    fn check_places(&self, at: u64, chunk_count: u32) -> Result<Vec<u32>, Damage> {
        let mut of_chunk = Vec::with_capacity(chunk_count as usize + 1);
        let mut before = Fence {
            chunk: 0,
            ordinal: 0,
        };
        for index in 0..self.count {
            let fence = self.fence(index);
            let is_next_chunk = fence.chunk as usize == of_chunk.len() && fence.ordinal == 0;
            let is_same_chunk = !of_chunk.is_empty()
                && fence.chunk == before.chunk
                && fence.ordinal > before.ordinal;
            if is_next_chunk {
                of_chunk.push(index as u32);
            } else if !is_same_chunk {
                let at = at + (HEADER_LEN + index * FENCE_LEN + CHUNK.at) as u64;
                let expected = format!("behind {}:{}", before.chunk, before.ordinal);
                let found = format!("{}:{}", fence.chunk, fence.ordinal);
                return Err(Damage::new(at, "place of a fence", expected, found));
            }
            before = fence;
        }
        if of_chunk.len() != chunk_count as usize {
            return Err(Damage::new(
                at,
                "chunks with fences",
                chunk_count,
                of_chunk.len(),
            ));
        }
        of_chunk.push(self.count as u32);
        Ok(of_chunk)
    }

    /// How many fences there are. Never 0.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Requires: `fence < count`, whose rows were seen to lie within the section.
    fn row(&self, fence: usize) -> &[u8; FENCE_LEN] {
        let at = HEADER_LEN + fence * FENCE_LEN;
        self.bytes[at..]
            .first_chunk()
            .expect("the section holds `count` rows")
    }

    fn name(&self, fence: usize) -> &[u8] {
        let row = self.row(fence);
        let at = HEADER_LEN + self.count * FENCE_LEN + NAME_AT.u32(row) as usize;
        &self.bytes[at..at + NAME_LEN.u32(row) as usize]
    }

    /// The key of a fence.
    pub fn key(&self, fence: usize) -> InternalKey<'_> {
        InternalKey {
            name: self.name(fence),
            version: Hlc(VERSION.u64(self.row(fence))),
        }
    }

    /// Where the records behind a fence begin.
    pub fn fence(&self, fence: usize) -> Fence {
        let row = self.row(fence);
        Fence {
            chunk: CHUNK.u32(row),
            ordinal: ORDINAL.u32(row),
        }
    }

    /// The fences within a chunk.
    pub fn of_chunk(&self, chunk: u32) -> std::ops::Range<usize> {
        let at = |index: usize| {
            self.of_chunk
                .get(index)
                .map_or(self.count, |at| *at as usize)
        };
        at(chunk as usize)..at(chunk as usize + 1)
    }

    /// The last fence whose key is not above `key`. The first fence is below everything.
    pub fn find(&self, key: InternalKey<'_>) -> usize {
        let prefix_len = self.prefix.len();
        let begin = key.name.get(..prefix_len).unwrap_or(key.name);
        match begin.cmp(&self.prefix) {
            std::cmp::Ordering::Less => return 0,
            std::cmp::Ordering::Greater => return self.count - 1,
            std::cmp::Ordering::Equal => {}
        }
        // The first fence is left out: its name does not have the prefix.
        let head = head_of(key.name.get(prefix_len..).unwrap_or_default());
        let rest = &self.heads[1..];
        let low = 1 + rest.partition_point(|other| *other < head);
        let mut high = low;
        while self.heads.get(high) == Some(&head) {
            high += 1;
            // A long run of equal heads is searched, not walked.
            if high - low == WALK_COUNT_MAX {
                high = 1 + rest.partition_point(|other| *other <= head);
                break;
            }
        }
        let (mut low, mut high) = (low, high);
        while low < high {
            let middle = low.midpoint(high);
            if self.key(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low - 1
    }
}

/// Equal heads that are counted one by one before they are searched for.
const WALK_COUNT_MAX: usize = 8;

/// The first 8 bytes as a big-endian number, zeros where there are none. Names with different heads are in
/// the order of these.
#[inline]
pub fn head_of(name: &[u8]) -> u64 {
    match name.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..name.len()].copy_from_slice(name);
            u64::from_be_bytes(head)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_byte_tables_are_what_the_code_does() {
        let source = include_str!("fences.rs");
        let header = [("count", COUNT), ("reserved", RESERVED)];
        super::super::layout::check_byte_table(source, 0, &header);
        let fence = [
            ("version", VERSION),
            ("chunk", CHUNK),
            ("ordinal", ORDINAL),
            ("name_at", NAME_AT),
            ("name_len", NAME_LEN),
        ];
        super::super::layout::check_byte_table(source, 1, &fence);
    }

    fn built(keys: &[(Vec<u8>, u64)]) -> Vec<u8> {
        let key = |n: usize| InternalKey {
            name: &keys[n].0,
            version: Hlc(keys[n].1),
        };
        let mut builder = FencesBuilder::default();
        for n in 0..keys.len() {
            // Three fences per chunk.
            let before = n.checked_sub(1).map(key);
            builder.push(before, key(n), n as u32 / 3, n as u32 % 3);
        }
        builder.encode()
    }

    fn decoded(bytes: Vec<u8>, fence_count: usize) -> Result<Fences, Damage> {
        Fences::decode(TableBytes::owned(bytes), 0, fence_count.div_ceil(3) as u32)
    }

    fn key() -> impl Strategy<Value = (Vec<u8>, u64)> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(b'a'), Just(0xff)];
        let name = proptest::collection::vec(byte, 0..14);
        (
            prop_oneof![
                name.clone(),
                name.prop_map(|n| [b"common/prefix/", &n[..]].concat())
            ],
            0..4u64,
        )
    }

    proptest! {
        #[test]
        fn the_fence_found_is_the_last_not_above(
            mut keys in proptest::collection::vec(key(), 1..60),
            wanted in proptest::collection::vec(key(), 1..60),
        ) {
            keys.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
            keys.dedup();
            let fences = decoded(built(&keys), keys.len()).unwrap();
            for (name, version) in wanted.iter().chain(&keys) {
                let key = InternalKey { name, version: Hlc(*version) };
                let expected = (0..keys.len()).rev().find(|n| fences.key(*n) <= key).unwrap();
                prop_assert_eq!(fences.find(key), expected);
            }
            for (n, (name, version)) in keys.iter().enumerate() {
                let behind = InternalKey { name, version: Hlc(*version) };
                prop_assert!(fences.key(n) <= behind);
                prop_assert_eq!(fences.fence(n).chunk as usize, n / 3);
                if let Some((name, version)) = n.checked_sub(1).and_then(|n| keys.get(n)) {
                    let before = InternalKey { name, version: Hlc(*version) };
                    prop_assert!(before < fences.key(n));
                }
            }
        }
    }

    #[test]
    fn a_first_fence_with_a_name_is_refused() {
        let mut fence = [0; FENCE_LEN];
        NAME_LEN.put(&mut fence, &1u32.to_le_bytes());
        let bytes = [&[1, 0, 0, 0, 0, 0, 0, 0][..], &fence, b"x\0\0\0\0\0\0\0"].concat();
        let damage = decoded(bytes, 1).unwrap_err();
        assert_eq!(damage.what, "name of the first fence");
    }

    #[test]
    fn crafted_sections_never_panic() {
        let keys: Vec<_> = (0..7u8).map(|n| (vec![b'k', n, n], 5)).collect();
        let good = built(&keys);
        decoded(good.clone(), 7).unwrap();
        for at in 0..good.len() {
            for byte in [0, 1, 2, 3, 7, 8, 0x7f, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] = byte;
                if let Ok(fences) = decoded(bad, 7) {
                    fences.find(InternalKey::first_of(b"k\x03"));
                }
            }
        }
        for len in 0..good.len() {
            assert!(decoded(good[..len].to_vec(), 7).is_err(), "length {len}");
        }
        assert!(decoded(good.clone(), 10).is_err());
        assert!(decoded(good, 4).is_err());
    }
}
