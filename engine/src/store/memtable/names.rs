//! Names by their hash, each with its versions, newest first. Nothing is ever taken out.
//!
//! A table of slots, each 0 or the place of a name under its tag, is probed one slot after the other.
//! Everything else is words of an [`Arena`]. A link is the place of what it leads to, 0 at the end, and
//! whoever follows it finds the words behind it complete.
//!
//! | Name, word | Holds                                                               |
//! |-----------:|---------------------------------------------------------------------|
//! |          0 | Link to the newest version, then the length, then [`ORDERED`].      |
//! |     1 to n | The bytes, 8 per word, big-endian, zeros behind them.               |
//!
//! | Version, word | Holds                                                            |
//! |--------------:|------------------------------------------------------------------|
//! |             0 | The version.                                                     |
//! |             1 | Link to the next older version, then shard and kind.             |
//! |             2 | First sequence of the segment.                                   |
//! |             3 | Offset there, and above it the length.                           |
//!
//! A table that is half full is copied to one four times as large. In the old one every empty slot is
//! closed first, so that who inserts meanwhile waits and goes to the new one; who reads finds in the old
//! one all that was there before.

use std::cmp::Ordering as Order;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, AtomicUsize};

use parking_lot::Mutex;
use smallvec::SmallVec;
use strandline_wal::io::words::{Words, prefetch};
use strandline_wal::{Hlc, ShardId};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::arena::Arena;
use super::{MemEntry, Place};
use crate::table::{EntryKind, LogPlace};

/// All names of a memtable.
pub(super) struct Names {
    tables: [OnceLock<Words>; TABLE_COUNT],
    /// The table that counts.
    newest: AtomicUsize,
    /// Names that were added.
    count: AtomicUsize,
    growing: Mutex<()>,
    /// So that nobody can choose names of one slot.
    seed: u64,
    arena: Arena,
}

/// Where a name stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NameAt(u32);

/// Room for a name: for most without memory of its own.
pub(super) type NameBuf = SmallVec<[u8; NAME_BUF_LEN]>;

const NAME_BUF_LEN: usize = 32;

/// The hash of a name.
#[derive(Clone, Copy)]
pub(super) struct Hash(u64);

const NEWEST: usize = 0;
const NAME: usize = 1;

const VERSION: usize = 0;
const OLDER: usize = 1;
const SEGMENT: usize = 2;
const SPAN: usize = 3;
const VERSION_LEN: usize = 4;

/// The part of a word that is a link.
const LINK: u64 = u32::MAX as u64;

/// Set on a name that is in the order.
const ORDERED: u64 = 1 << 63;

/// An empty slot that nothing goes into any more.
const CLOSED: u64 = LINK;

/// Slots of the first table, unless more are asked for. A power of two.
const SLOT_COUNT_MIN: usize = 1 << 10;

/// How many times longer the next table is.
const GROWTH: usize = 4;

/// So many that the last one has more slots than there are places.
const TABLE_COUNT: usize = 12;

impl Names {
    /// None, and room for about so many.
    pub fn new(count: usize, seed: u64) -> Names {
        let slot_count = (count * 2).next_power_of_two().max(SLOT_COUNT_MIN);
        let tables = [const { OnceLock::new() }; TABLE_COUNT];
        let names = Names {
            tables,
            newest: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            growing: Mutex::default(),
            seed,
            arena: Arena::new(),
        };
        names.tables[0].get_or_init(|| Words::zeros(slot_count));
        names
    }

    /// Bytes that they take, the slots left out.
    pub fn len(&self) -> u64 {
        self.arena.len() * 8
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Relaxed)
    }

    fn table(&self) -> (usize, &[AtomicU64]) {
        let newest = self.newest.load(Acquire);
        let table = self.tables[newest].get();
        (newest, table.expect("made before it counts"))
    }

    #[inline]
    pub fn hash(&self, name: &[u8]) -> Hash {
        Hash(xxh3_64_with_seed(name, self.seed))
    }

    /// Begins to fetch what an insert or a lookup looks at first.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        let (_, table) = self.table();
        prefetch(&table[hash.first_of(table)]);
    }

    /// Looks for a name: `Ok` where it stands, `Err` with the slot that it would go into, and what that
    /// holds, 0 or [`CLOSED`].
    #[inline]
    fn probe<'t>(
        &self,
        table: &'t [AtomicU64],
        hash: Hash,
        name: &[u8],
    ) -> Result<NameAt, (&'t AtomicU64, u64)> {
        let mut at = hash.first_of(table);
        loop {
            let slot = table[at].load(SeqCst);
            if slot == 0 || slot == CLOSED {
                return Err((&table[at], slot));
            }
            let found = NameAt(slot as u32);
            if slot & !LINK == hash.tag() && is_name(self.arena.words(found.0), name) {
                return Ok(found);
            }
            at = (at + 1) & (table.len() - 1);
        }
    }

    /// Adds a version to a name, and the name where it is new. Of equal versions the last one counts.
    pub fn insert(&self, hash: Hash, name: &[u8], version: Hlc, entry: MemEntry) -> NameAt {
        let mut new: Option<(u32, &[AtomicU64])> = None;
        loop {
            let (number, table) = self.table();
            let (slot, seen) = match self.probe(table, hash, name) {
                Ok(found) => {
                    // Where somebody else was faster with the name, its words are left unused.
                    let (at, words) = new.unwrap_or_else(|| self.put(version, entry, VERSION_LEN));
                    self.add(found, at, words, version);
                    return found;
                }
                Err(place) => place,
            };
            if seen == CLOSED {
                self.grow(number);
                continue;
            }
            let &mut (at, _) = new.get_or_insert_with(|| self.put_name(name, version, entry));
            let name_at = NameAt(at + VERSION_LEN as u32);
            let link = hash.tag() | u64::from(name_at.0);
            if slot.compare_exchange(0, link, SeqCst, Relaxed).is_ok() {
                if self.count.fetch_add(1, Relaxed) >= table.len() / 2 {
                    self.grow(number);
                }
                return name_at;
            }
        }
    }

    /// A version in the first words of so many that are taken.
    fn put(&self, version: Hlc, entry: MemEntry, len: usize) -> (u32, &[AtomicU64]) {
        let (at, words) = self.arena.take(len);
        put_version(words, version, entry);
        (at, words)
    }

    /// A version and its name behind it.
    fn put_name(&self, name: &[u8], version: Hlc, entry: MemEntry) -> (u32, &[AtomicU64]) {
        let name_len = NAME + name.len().div_ceil(8);
        let (at, words) = self.put(version, entry, VERSION_LEN + name_len);
        let name_words = &words[VERSION_LEN..];
        name_words[NEWEST].store(u64::from(at) | (name.len() as u64) << 32, Relaxed);
        for (word, bytes) in name_words[NAME..].iter().zip(name.chunks(8)) {
            word.store(word_of(bytes), Relaxed);
        }
        (at, words)
    }

    /// Puts a longer table in the place of table `number`, unless somebody did.
    fn grow(&self, number: usize) {
        let _growing = self.growing.lock();
        let (newest, old) = self.table();
        if newest != number {
            return;
        }
        let table = self.tables[number + 1].get_or_init(|| Words::zeros(old.len() * GROWTH));
        for slot in old {
            let closed = slot.compare_exchange(0, CLOSED, SeqCst, SeqCst);
            if let Err(link) = closed {
                let mut at = Hash(link).first_of(table);
                while table[at].load(Relaxed) != 0 {
                    at = (at + 1) & (table.len() - 1);
                }
                table[at].store(link, Relaxed);
            }
        }
        self.newest.store(number + 1, SeqCst);
    }

    /// Puts a version where it belongs among those of its name.
    fn add(&self, name: NameAt, at: u32, words: &[AtomicU64], version: Hlc) {
        let mut link = &self.arena.words(name.0)[NEWEST];
        loop {
            let now = link.load(Acquire);
            let next = now & LINK;
            if next != 0 {
                let next = self.arena.words(next as u32);
                if next[VERSION].load(Relaxed) > version.0 {
                    link = &next[OLDER];
                    continue;
                }
            }
            let own = words[OLDER].load(Relaxed) & !LINK;
            words[OLDER].store(own | next, Relaxed);
            let changed = now & !LINK | u64::from(at);
            if link
                .compare_exchange(now, changed, Release, Relaxed)
                .is_ok()
            {
                return;
            }
        }
    }

    /// Where a name stands.
    pub fn find(&self, name: &[u8]) -> Option<NameAt> {
        self.probe(self.table().1, self.hash(name), name).ok()
    }

    /// The newest version of a name that is not newer than `at`.
    #[inline]
    pub fn newest(&self, name: NameAt, at: Hlc) -> Option<(Hlc, MemEntry)> {
        self.versions_from(name).find(|(version, _)| *version <= at)
    }

    /// The versions of a name, newest first.
    pub fn versions(&self, name: NameAt) -> impl Iterator<Item = (Hlc, MemEntry)> {
        let mut before = None;
        self.versions_from(name)
            .filter(move |(version, _)| before.replace(*version) != Some(*version))
    }

    /// As [`Self::versions`], but of equal ones all.
    #[inline]
    fn versions_from(&self, name: NameAt) -> impl Iterator<Item = (Hlc, MemEntry)> {
        let mut link = self.arena.words(name.0)[NEWEST].load(Acquire) & LINK;
        std::iter::from_fn(move || {
            if link == 0 {
                return None;
            }
            let words = self.arena.words(link as u32);
            let older = words[OLDER].load(Acquire);
            link = older & LINK;
            Some(version_of(words, older))
        })
    }

    /// Begins to fetch a name, for [`Self::prefetch_newest`] and whoever reads it.
    #[inline]
    pub fn prefetch_name(&self, name: NameAt) {
        let words = self.arena.words(name.0);
        prefetch(&words[NEWEST]);
        // Where a name ends is not known yet. Most are short.
        if let Some(word) = words.get(NAME + 2) {
            prefetch(word);
        }
    }

    /// Begins to fetch the newest version of a name.
    #[inline]
    pub fn prefetch_newest(&self, name: NameAt) {
        let link = self.arena.words(name.0)[NEWEST].load(Acquire) & LINK;
        let words = self.arena.words(link as u32);
        prefetch(&words[VERSION]);
        prefetch(&words[SPAN]);
    }

    /// Puts the bytes of a name in the place of others.
    #[inline]
    pub fn copy_name(&self, name: NameAt, bytes: &mut NameBuf) {
        let words = self.arena.words(name.0);
        let len = len_of(words);
        let words = &words[NAME..NAME + len.div_ceil(8)];
        bytes.clear();
        let mut short = [[0; 8]; NAME_BUF_LEN / 8];
        if words.len() <= short.len() {
            for (bytes, word) in short.iter_mut().zip(words) {
                *bytes = word.load(Relaxed).to_be_bytes();
            }
            bytes.extend_from_slice(&short.as_flattened()[..len]);
            return;
        }
        for word in words {
            bytes.extend_from_slice(&word.load(Relaxed).to_be_bytes());
        }
        bytes.truncate(len);
    }

    /// The first two words of a name: they order most names.
    pub fn head(&self, name: NameAt) -> [u64; 2] {
        let words = self.arena.words(name.0);
        let count = len_of(words).div_ceil(8);
        [0, 1].map(|n| {
            if n < count {
                words[NAME + n].load(Relaxed)
            } else {
                0
            }
        })
    }

    /// The order of two names with their first words.
    #[inline]
    pub fn order(&self, (head, name): &Place, (other_head, other): &Place) -> Order {
        let order = head.cmp(other_head);
        order.then_with(|| self.compare(*name, *other))
    }

    /// The order of two names.
    pub fn compare(&self, name: NameAt, other: NameAt) -> Order {
        let [name, other] = [name, other].map(|name| self.arena.words(name.0));
        let bytes = |words| {
            let words: &[AtomicU64] = words;
            let words = &words[NAME..NAME + len_of(words).div_ceil(8)];
            words.iter().map(|word| word.load(Relaxed))
        };
        // Zeros behind the shorter one make them equal so far; its length tells.
        let count = len_of(name).min(len_of(other)).div_ceil(8);
        let order = bytes(name).take(count).cmp(bytes(other).take(count));
        order.then(len_of(name).cmp(&len_of(other)))
    }

    /// The order of a name and some bytes.
    pub fn compare_to(&self, name: NameAt, other: &[u8]) -> Order {
        let words = self.arena.words(name.0);
        let count = len_of(words).min(other.len()).div_ceil(8);
        let bytes = words[NAME..NAME + count]
            .iter()
            .map(|word| word.load(Relaxed));
        let order = bytes.cmp(other.chunks(8).take(count).map(word_of));
        order.then(len_of(words).cmp(&other.len()))
    }

    /// All names, in no order. What is inserted meanwhile may be missing.
    pub fn all(&self) -> impl Iterator<Item = NameAt> {
        let newest = self.newest.load(SeqCst);
        let table = self.tables[newest].get().expect("made before it counts");
        let slots = table.iter().map(|slot| slot.load(SeqCst));
        let taken = slots.filter(|slot| *slot != 0 && *slot != CLOSED);
        taken.map(|slot| NameAt(slot as u32))
    }

    /// Whether a name is in the order.
    pub fn is_ordered(&self, name: NameAt) -> bool {
        self.arena.words(name.0)[NEWEST].load(Acquire) & ORDERED != 0
    }

    /// From now on a name is in the order.
    pub fn set_ordered(&self, name: NameAt) {
        self.arena.words(name.0)[NEWEST].fetch_or(ORDERED, Release);
    }
}

impl Hash {
    /// What tells most names of neighbouring slots apart. With it a name finds its slot in any table.
    fn tag(self) -> u64 {
        self.0 & !LINK
    }

    /// The slot that is looked at first.
    #[inline]
    fn first_of(self, table: &[AtomicU64]) -> usize {
        (self.0 >> 32) as usize & (table.len() - 1)
    }
}

fn put_version(words: &[AtomicU64], version: Hlc, entry: MemEntry) {
    let LogPlace {
        shard,
        first_seq,
        offset,
        len,
    } = entry.place;
    let kind = u64::from(entry.kind as u8) << 48;
    words[VERSION].store(version.0, Relaxed);
    words[OLDER].store(u64::from(shard.0) << 32 | kind, Relaxed);
    words[SEGMENT].store(first_seq, Relaxed);
    words[SPAN].store(u64::from(offset) | u64::from(len) << 32, Relaxed);
}

fn version_of(words: &[AtomicU64], older: u64) -> (Hlc, MemEntry) {
    let kind = EntryKind::from_number((older >> 48) as u8);
    let span = words[SPAN].load(Relaxed);
    let place = LogPlace {
        shard: ShardId((older >> 32) as u16),
        first_seq: words[SEGMENT].load(Relaxed),
        offset: span as u32,
        len: (span >> 32) as u32,
    };
    let kind = kind.expect("a kind was put there");
    (Hlc(words[VERSION].load(Relaxed)), MemEntry { kind, place })
}

/// Length of a name.
fn len_of(words: &[AtomicU64]) -> usize {
    ((words[NEWEST].load(Relaxed) & !ORDERED) >> 32) as usize
}

fn is_name(words: &[AtomicU64], name: &[u8]) -> bool {
    let words_of = || words[NAME..].iter().zip(name.chunks(8));
    len_of(words) == name.len()
        && words_of().all(|(word, bytes)| word.load(Relaxed) == word_of(bytes))
}

/// As [`Names::head`], of bytes.
pub(super) fn head_of(name: &[u8]) -> [u64; 2] {
    let mut words = name.chunks(8).map(word_of);
    [(); 2].map(|()| words.next().unwrap_or_default())
}

/// Up to 8 bytes of a name as a word: words are in the order of their bytes.
fn word_of(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(word)
}
