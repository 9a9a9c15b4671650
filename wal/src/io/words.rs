//! Words of anonymous memory: zeros that cost nothing until they are touched.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Atomic words, zeros at first. Many of them lie in huge pages, where the system has those.
pub struct Words {
    start: NonNull<AtomicU64>,
    len: usize,
    #[allow(dead_code, reason = "keeps the memory alive")]
    map: memmap2::MmapMut,
}

// SAFETY: the memory is the map's, which lives as long and moves with it; it is only ever used as
// atomics, through shared references.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

/// Bytes from which on huge pages are asked for.
const HUGE_LEN: usize = 2 << 20;

impl Words {
    /// So many zeros. Where the system has no memory for them, the process ends as it does at any
    /// allocation that fails.
    pub fn zeros(len: usize) -> Words {
        let layout = std::alloc::Layout::array::<AtomicU64>(len).expect("as much as memory can be");
        let Ok(mut map) = memmap2::MmapMut::map_anon(layout.size().max(1)) else {
            std::alloc::handle_alloc_error(layout)
        };
        #[cfg(target_os = "linux")]
        if layout.size() >= HUGE_LEN {
            // A wish: without them it is slower and right.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let start = NonNull::from(&mut map[..]).cast();
        Words { start, len, map }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: the map has at least `len` words, begins on a page and lives as long as `self`; all
        // bytes are initialised; nothing else refers to them.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl std::fmt::Debug for Words {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Words({})", self.len)
    }
}

/// Begins to fetch the line of a word that will be read soon; does nothing where there is no such
/// instruction.
#[inline]
pub fn prefetch(word: &AtomicU64) {
    prefetch_line(word);
}

/// As [`prefetch`], the first lines of some bytes: of more the processor fetches the rest itself.
#[inline]
pub fn prefetch_bytes(bytes: &[u8]) {
    for line in bytes.chunks(LINE_LEN).take(LINE_COUNT_MAX) {
        prefetch_line(line);
    }
    // They begin anywhere in a line.
    if bytes.len() <= LINE_LEN * LINE_COUNT_MAX
        && let Some(last) = bytes.last()
    {
        prefetch_line(last);
    }
}

#[inline]
fn prefetch_line<T: ?Sized>(at: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction is of every x86-64, and reads nothing.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Bytes that come from memory at once.
const LINE_LEN: usize = 64;

/// Lines that are asked for, one by one.
const LINE_COUNT_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn words_are_zeros_that_stay_what_they_are_made() {
        for len in [0, 1, 513, HUGE_LEN / 8 + 3] {
            let words = Words::zeros(len);
            assert_eq!(words.len(), len);
            assert!(words.iter().all(|word| word.swap(7, Relaxed) == 0));
            if let Some(word) = words.last() {
                prefetch(word);
            }
            prefetch_bytes(&vec![1; len]);
            assert!(words.iter().all(|word| word.load(Relaxed) == 7));
        }
    }
}
