//! The memory of a memtable: words that are taken one after another, and given back all at once.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use strandline_wal::io::words::Words;

/// Words, by a place that is never 0.
///
/// Chunks double, so that a small memtable takes little and any place tells its chunk by its highest
/// bit. They begin as zeros that the operating system gives when they are first touched.
pub(super) struct Arena {
    chunks: [OnceLock<Words>; CHUNK_COUNT],
    next: AtomicU64,
}

/// Words of the first chunk.
const CHUNK_LEN_MIN: u64 = 1 << CHUNK_BITS_MIN;
const CHUNK_BITS_MIN: u32 = 13;

/// So many that any place is in one of them: 32 GiB.
const CHUNK_COUNT: usize = (u32::BITS - CHUNK_BITS_MIN + 1) as usize;

impl Arena {
    pub fn new() -> Arena {
        Arena {
            chunks: [const { OnceLock::new() }; CHUNK_COUNT],
            next: AtomicU64::new(1),
        }
    }

    /// Words that were taken.
    pub fn len(&self) -> u64 {
        self.next.load(Relaxed) - 1
    }

    /// Takes `len` words in a row, all zeros.
    ///
    /// # Panics
    /// At 32 GiB: records of a few bytes in memtables of several GiB.
    pub fn take(&self, len: usize) -> (u32, &[AtomicU64]) {
        let len = len as u64;
        loop {
            let at = self.next.fetch_add(len, Relaxed);
            let end = at + len;
            assert!(end <= u64::from(u32::MAX), "a memtable of more than 32 GiB");
            let (chunk, offset) = split(at);
            if split(end - 1).0 == chunk {
                let chunk_len = CHUNK_LEN_MIN << chunk;
                let words = self.chunks[chunk].get_or_init(|| Words::zeros(chunk_len as usize));
                return (at as u32, &words[offset..offset + len as usize]);
            }
            // What is left of this chunk is too short.
        }
    }

    /// The words from a place that was taken on, to the end of its chunk.
    #[inline]
    pub fn words(&self, at: u32) -> &[AtomicU64] {
        let (chunk, offset) = split(at.into());
        let words = self.chunks[chunk].get().expect("the place was taken");
        &words[offset..]
    }
}

/// The chunk of a place, and where it is in there.
#[inline]
fn split(at: u64) -> (usize, usize) {
    let at = at + CHUNK_LEN_MIN;
    let bits = at.ilog2();
    (
        (bits - CHUNK_BITS_MIN) as usize,
        (at - (1 << bits)) as usize,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_zero_and_nobody_elses() {
        let arena = Arena::new();
        let mut taken = Vec::new();
        let lens = [1, 7, 8_190, 3, 8_195, 2, 20_000, 5, 70_000, 1];
        for (mark, len) in (1..).zip(lens) {
            let (at, words) = arena.take(len);
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|word| word.swap(mark, Relaxed) == 0));
            taken.push((at, len, mark));
        }
        for (at, len, mark) in taken {
            let words = &arena.words(at)[..len];
            assert!(words.iter().all(|word| word.load(Relaxed) == mark));
        }
        assert!(arena.len() >= lens.iter().sum::<usize>() as u64);
    }

    #[test]
    fn every_place_is_in_a_chunk() {
        assert_eq!(split(0), (0, 0));
        assert_eq!(split(CHUNK_LEN_MIN - 1), (0, 8_191));
        assert_eq!(split(CHUNK_LEN_MIN), (1, 0));
        assert_eq!(split(u32::MAX.into()).0, CHUNK_COUNT - 1);
    }
}
