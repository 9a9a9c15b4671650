//! How the bytes of an open table come into memory: through a map, or by reads and a cache.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use strandline_wal::bug::planted;
use strandline_wal::io::{File, Map, read_exact_at};
use strandline_wal::{IoContext, Result};

use super::bytes::TableBytes;
use super::cache::{BlockCache, ChunkKey};
use super::damage::Damage;

/// The bytes of an open table.
pub(super) enum Source {
    /// The file is mapped. Chunks are used where they stand.
    Mapped {
        map: Map,
        /// A bit per chunk that has passed its check since the table was opened. The bytes never
        /// change, so a bit that is seen late costs a second check and nothing else.
        checked: Box<[AtomicU64]>,
    },
    /// Chunks are read, checked, and kept in the cache that all tables share.
    Read {
        file: Arc<dyn File>,
        cache: Arc<BlockCache>,
        user: u64,
        chunk_count: u32,
    },
}

/// A checked chunk in memory. Its bytes are with the [`Source`] that it came from.
#[derive(Clone, Debug)]
pub(super) enum Hold {
    Mapped(Range<usize>),
    Read(Arc<[u8]>),
}

/// Whether a chunk that was read goes into the cache, and whether a look at it from before counts. Whoever
/// reads every chunk once gets a copy that was checked: a compaction must not take what has rotted since.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Keep {
    Cached,
    Once,
}

impl Source {
    pub fn mapped(map: Map, chunk_count: u32) -> Source {
        let words = (chunk_count as usize).div_ceil(64);
        Source::Mapped {
            map,
            checked: (0..words).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn read(file: Arc<dyn File>, cache: Arc<BlockCache>, chunk_count: u32) -> Source {
        let user = cache.join();
        Source::Read {
            file,
            cache,
            user,
            chunk_count,
        }
    }

    /// The chunk that lies at `range` of the file, after `check` has seen its bytes once.
    pub fn chunk(
        &self,
        path: &Path,
        chunk: u32,
        range: Range<u64>,
        keep: Keep,
        check: impl FnOnce(&[u8]) -> Result<(), Damage>,
    ) -> Result<Hold> {
        let wrong = |damage: Damage| damage.into_error(path);
        match self {
            Source::Mapped { map, checked } => {
                let place = range.start as usize..range.end as usize;
                let (word, bit) = (checked.get(chunk as usize / 64), 1 << (chunk % 64));
                let is_checked = |word: &AtomicU64| word.load(Ordering::Relaxed) & bit != 0;
                let is_copied = keep == Keep::Once && !planted("source.once");
                if !is_copied && word.is_some_and(is_checked) {
                    return Ok(Hold::Mapped(place));
                }
                let bytes = map.get(place.clone()).ok_or_else(|| {
                    wrong(Damage::new(
                        range.start,
                        "end of a chunk",
                        range.end,
                        map.len(),
                    ))
                })?;
                let hold = match is_copied {
                    true => Hold::Read(bytes.into()),
                    false => Hold::Mapped(place),
                };
                check(self.bytes(&hold)).map_err(|damage| {
                    self.distrust();
                    wrong(damage)
                })?;
                if let Some(word) = word {
                    word.fetch_or(bit, Ordering::Relaxed);
                }
                Ok(hold)
            }
            Source::Read {
                file, cache, user, ..
            } => {
                let load = || {
                    let mut bytes = vec![0; (range.end - range.start) as usize];
                    read_exact_at(file.as_ref(), &mut bytes, range.start).during("read", path)?;
                    check(&bytes).map_err(wrong)?;
                    Ok(bytes.into())
                };
                match keep {
                    Keep::Once => load(),
                    Keep::Cached => cache.chunk_or(ChunkKey { user: *user, chunk }, load),
                }
                .map(Hold::Read)
            }
        }
    }

    /// From now on every chunk is checked again: some of the bytes are no longer what they were.
    pub fn distrust(&self) {
        if let Source::Mapped { checked, .. } = self
            && !planted("source.distrust")
        {
            checked
                .iter()
                .for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// The bytes of a chunk that came from here.
    #[inline]
    pub fn bytes<'a>(&'a self, hold: &'a Hold) -> &'a [u8] {
        match (self, hold) {
            (Source::Mapped { map, .. }, Hold::Mapped(range)) => &map[range.clone()],
            (_, Hold::Read(bytes)) => bytes,
            (Source::Read { .. }, Hold::Mapped(_)) => unreachable!("held by another source"),
        }
    }

    /// Bytes of a chunk that came from here, to keep.
    #[inline]
    pub fn part(&self, hold: &Hold, part: Range<usize>) -> TableBytes {
        match (self, hold) {
            (Source::Mapped { map, .. }, Hold::Mapped(range)) => {
                TableBytes::mapped(map, range.start + part.start..range.start + part.end)
            }
            (_, Hold::Read(bytes)) => TableBytes::read(bytes, part),
            (Source::Read { .. }, Hold::Mapped(_)) => unreachable!("held by another source"),
        }
        .expect("a part of a chunk lies within it")
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Source::Read {
            cache,
            user,
            chunk_count,
            ..
        } = self
        {
            cache.leave(*user, *chunk_count);
        }
    }
}
