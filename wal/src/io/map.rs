//! Memory that is shared between one writer and many readers: segment images and read-only maps.
//!
//! An [`Image`] is the memory face of one active segment. Space in it is handed out once, as a
//! [`Slot`], and read only below the published mark, so that no byte is ever read while it changes:
//!
//! - every byte belongs to at most one live [`Slot`], because `Image::reserve` only moves forward;
//! - readers see bytes below `published`, and `Image::publish` asserts that they are filled;
//! - `published` is stored with Release and loaded with Acquire.
#![allow(unsafe_code)]

use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// A read-only map of a file that no longer changes, or a private copy of its bytes.
///
/// Cheap to clone; the memory lives until the last clone is dropped.
#[derive(Clone)]
pub struct Map(Arc<MapOwner>);

enum MapOwner {
    Mapped(memmap2::Mmap),
    Owned(Box<[u8]>),
}

impl Map {
    /// Wraps a file mapping. `real.rs` alone makes these.
    pub(crate) fn mapped(map: memmap2::Mmap) -> Map {
        Map(Arc::new(MapOwner::Mapped(map)))
    }

    /// A copy in memory that is used like a map, where a disk has no maps.
    pub fn owned(bytes: Vec<u8>) -> Map {
        Map(Arc::new(MapOwner::Owned(bytes.into_boxed_slice())))
    }

    /// Gives up this clone, and tells whether it was the last one.
    pub(crate) fn into_unshared(self) -> bool {
        Arc::into_inner(self.0).is_some()
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self.0.as_ref() {
            MapOwner::Mapped(map) => map,
            MapOwner::Owned(bytes) => bytes,
        }
    }
}

enum ImageOwner {
    /// Pages of the file itself: a store here is a write to the file.
    Shared(#[allow(dead_code, reason = "keeps the mapping alive")] memmap2::MmapRaw),
    /// Anonymous memory that someone writes out.
    Private(#[allow(dead_code, reason = "keeps the mapping alive")] memmap2::MmapRaw),
    /// Heap memory shared with a simulated file.
    Heap(Arc<HeapMemory>),
}

/// Heap memory with a stable address, for images of the simulated disk.
///
/// It remembers where each publication ended, so that the disk can tell the writes of one image
/// apart and lose the later of two that share a sector.
pub struct HeapMemory {
    start: NonNull<u8>,
    len: usize,
    /// Whether an image was made of it. Two would hand out the same bytes twice.
    taken: AtomicBool,
    marks: Mutex<Marks>,
}

#[derive(Default)]
struct Marks {
    /// The end of everything published.
    published: usize,
    /// The ends of the publications that nobody took yet, at most [`MARK_COUNT_MAX`].
    ends: Vec<usize>,
}

/// Publications told apart between two looks of the disk; later ones count as one with the last.
const MARK_COUNT_MAX: usize = 1 << 16;

// SAFETY: it is plain memory; who may touch which part of it is `Image`'s contract.
unsafe impl Send for HeapMemory {}
// SAFETY: as above.
unsafe impl Sync for HeapMemory {}

impl HeapMemory {
    /// Memory that holds `bytes`.
    pub fn of(bytes: Vec<u8>) -> HeapMemory {
        let memory = bytes.into_boxed_slice();
        let len = memory.len();
        let start = Box::into_raw(memory).cast::<u8>();
        HeapMemory {
            start: NonNull::new(start).expect("a box is never null"),
            len,
            taken: AtomicBool::new(false),
            marks: Mutex::default(),
        }
    }

    /// Takes the ends of the publications since the last call, in order.
    pub(crate) fn take_marks(&self) -> Vec<usize> {
        std::mem::take(&mut self.marks.lock().ends)
    }

    /// The bytes `at..end`.
    ///
    /// # Panics
    /// Where they are not all published.
    pub(crate) fn published(&self, at: usize, end: usize) -> &[u8] {
        assert!(
            at <= end && end <= self.marks.lock().published,
            "read beyond the published bytes"
        );
        // SAFETY: the range lies within the memory, because publications do. All of it was written
        // before the publication that the lock above made visible, and published bytes are never
        // written again.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), end - at) }
    }

    fn mark(&self, end: usize) {
        let mut marks = self.marks.lock();
        marks.published = marks.published.max(end);
        if marks.ends.len() == MARK_COUNT_MAX {
            marks.ends.pop();
        }
        marks.ends.push(end);
    }
}

impl Drop for HeapMemory {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.start.as_ptr(), self.len);
        // SAFETY: `start` and `len` came from `Box::into_raw` in `of`, and this is the last use.
        drop(unsafe { Box::from_raw(slice) });
    }
}

/// The memory face of one active segment: filled front to back, read below the published mark.
pub struct Image {
    start: NonNull<u8>,
    len: usize,
    /// Bytes handed out as slots. Invariant: `published <= reserved <= len`.
    reserved: AtomicUsize,
    published: AtomicUsize,
    owner: ImageOwner,
}

// SAFETY: bytes below `published` are never written again, bytes above are written only through the
// one `Slot` that owns them, and `published` orders the two.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    /// Zeroed anonymous memory of `len` bytes, to be written out by the segment's writer.
    ///
    /// # Errors
    /// The operating system's, where it has no memory to give.
    pub fn private(len: usize) -> std::io::Result<Image> {
        let map = memmap2::MmapOptions::new().len(len).map_anon()?;
        let raw = memmap2::MmapRaw::from(map);
        let start = NonNull::new(raw.as_mut_ptr()).expect("a mapping is never null");
        Ok(Image::of(start, len, ImageOwner::Private(raw)))
    }

    /// Wraps a shared file mapping, which may be for reading only: then its slots are never filled, see
    /// [`Image::take_up`]. `real.rs` alone makes these.
    pub(crate) fn shared(raw: memmap2::MmapRaw) -> Image {
        let start = NonNull::new(raw.as_mut_ptr()).expect("a mapping is never null");
        let len = raw.len();
        Image::of(start, len, ImageOwner::Shared(raw))
    }

    /// An image over heap memory that a simulated file watches.
    ///
    /// # Panics
    /// Where an image of this memory was made before.
    pub fn heap(memory: Arc<HeapMemory>) -> Image {
        assert!(
            !memory.taken.swap(true, Ordering::AcqRel),
            "one memory has one image"
        );
        Image::of(memory.start, memory.len, ImageOwner::Heap(memory))
    }

    fn of(start: NonNull<u8>, len: usize, owner: ImageOwner) -> Image {
        Image {
            start,
            len,
            reserved: AtomicUsize::new(0),
            published: AtomicUsize::new(0),
            owner,
        }
    }

    /// Whether a store here is already a write to the file.
    pub fn is_shared(&self) -> bool {
        !matches!(self.owner, ImageOwner::Private(_))
    }

    /// Whether it is the file's own pages, which show whatever becomes of the file.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.owner, ImageOwner::Shared(_))
    }

    /// Capacity in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no capacity.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hands out the next `len` bytes, or `None` where they do not fit.
    pub(crate) fn reserve(self: &Arc<Image>, len: usize) -> Option<Slot> {
        let at = self
            .reserved
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| {
                at.checked_add(len).filter(|end| *end <= self.len)
            })
            .ok()?;
        Some(Slot {
            image: Arc::clone(self),
            at,
            len,
        })
    }

    /// Copies bytes behind everything that was handed out. Returns where they end: the caller publishes
    /// them. `None` where they do not fit.
    pub(crate) fn append(self: &Arc<Image>, bytes: &[u8]) -> Option<usize> {
        let mut slot = self.reserve(bytes.len())?;
        slot.bytes_mut().copy_from_slice(bytes);
        Some(slot.end())
    }

    /// As [`Image::append`], of bytes that were written to the file by a call: its pages have them.
    pub(crate) fn take_up(self: &Arc<Image>, bytes: &[u8]) -> Option<usize> {
        match self.is_file() {
            true => Some(self.reserve(bytes.len())?.end()),
            false => self.append(bytes),
        }
    }

    /// Bytes handed out so far.
    pub fn reserved_len(&self) -> usize {
        self.reserved.load(Ordering::Acquire)
    }

    /// Bytes that may be read.
    pub fn published_len(&self) -> usize {
        self.published.load(Ordering::Acquire)
    }

    /// Moves the published mark to `end`. Every slot below `end` must have been filled and dropped
    /// or forgotten by its owner: the caller orders that.
    ///
    /// # Panics
    /// Where `end` goes back or beyond what was handed out.
    pub(crate) fn publish(&self, end: usize) {
        assert!(
            end <= self.reserved.load(Ordering::Acquire),
            "published beyond the reserved bytes"
        );
        let before = self.published.swap(end, Ordering::AcqRel);
        assert!(before <= end, "the published mark went back");
        if let ImageOwner::Heap(memory) = &self.owner {
            memory.mark(end);
        }
    }

    /// The published bytes `at..at + len`, or `None` where they are not all published.
    pub fn read(&self, at: usize, len: usize) -> Option<&[u8]> {
        let end = at.checked_add(len)?;
        if end > self.published_len() {
            return None;
        }
        // SAFETY: the range lies within the mapping and below `published`, so it is initialised and
        // nobody writes to it while `self` lives.
        Some(unsafe { std::slice::from_raw_parts(self.start.as_ptr().add(at), len) })
    }
}

/// Bytes of an [`Image`] that one writer owns until they are published.
pub struct Slot {
    image: Arc<Image>,
    at: usize,
    len: usize,
}

impl Slot {
    /// Where the slot starts in the image.
    pub fn at(&self) -> usize {
        self.at
    }

    /// Where it ends.
    pub fn end(&self) -> usize {
        self.at + self.len
    }

    /// The bytes, to be filled.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `reserve` gave this range to this slot alone, `publish` has not passed it while the
        // slot lives (the writer publishes only after the slot is done), and `&mut self` is unique.
        unsafe { std::slice::from_raw_parts_mut(self.image.start.as_ptr().add(self.at), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(len: usize) -> Arc<Image> {
        Arc::new(Image::heap(Arc::new(HeapMemory::of(vec![0; len]))))
    }

    #[test]
    fn only_published_bytes_can_be_read() {
        let image = image(8);
        let mut slot = image.reserve(4).unwrap();
        slot.bytes_mut().copy_from_slice(b"abcd");
        assert!(image.read(0, 4).is_none());
        let end = slot.end();
        drop(slot);
        image.publish(end);
        assert_eq!(image.read(0, 4).unwrap(), b"abcd");
        assert!(image.read(0, 5).is_none());
        assert!(image.read(usize::MAX, 2).is_none());
    }

    #[test]
    fn the_memory_tells_publications_apart() {
        let memory = Arc::new(HeapMemory::of(b"........".to_vec()));
        let image = Arc::new(Image::heap(Arc::clone(&memory)));
        for text in [b"abc", b"def"] {
            let mut slot = image.reserve(3).unwrap();
            slot.bytes_mut().copy_from_slice(text);
            let end = slot.end();
            drop(slot);
            image.publish(end);
        }
        assert_eq!(memory.take_marks(), [3, 6]);
        assert!(memory.take_marks().is_empty());
        assert_eq!(memory.published(2, 6), b"cdef");
    }

    #[test]
    #[should_panic(expected = "read beyond the published bytes")]
    fn the_memory_keeps_unpublished_bytes_to_itself() {
        HeapMemory::of(vec![0; 8]).published(0, 1);
    }

    #[test]
    #[should_panic(expected = "one memory has one image")]
    fn one_memory_has_one_image() {
        let memory = Arc::new(HeapMemory::of(vec![0; 8]));
        let _first = Image::heap(Arc::clone(&memory));
        let _second = Image::heap(memory);
    }

    #[test]
    fn slots_never_overlap_and_end_at_the_capacity() {
        let image = image(8);
        let (a, b) = (image.reserve(5).unwrap(), image.reserve(3).unwrap());
        assert_eq!((a.at(), a.end(), b.at(), b.end()), (0, 5, 5, 8));
        assert!(image.reserve(1).is_none());
        assert!(image.reserve(usize::MAX).is_none());
    }

    #[test]
    fn readers_on_other_threads_see_whole_bytes() {
        let image = image(4096);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 0..64u8 {
                    let mut slot = image.reserve(64).unwrap();
                    slot.bytes_mut().fill(n);
                    let end = slot.end();
                    drop(slot);
                    image.publish(end);
                }
            });
            scope.spawn(|| {
                let mut seen = 0;
                while seen < 4096 {
                    seen = image.published_len();
                    for (n, part) in image.read(0, seen).unwrap().chunks(64).enumerate() {
                        assert!(part.iter().all(|b| usize::from(*b) == n));
                    }
                }
            });
        });
    }
}
