//! One simulated file: what is durable, what is not yet, and which states may follow a crash.
//!
//! `current = durable + lost + dirty`, in this order. `dirty` are the changes since the last sync;
//! `lost` are those that a failed sync dropped on the floor: the kernel shows them to readers and
//! takes them for clean, so that no later sync writes them out. At a crash each sector of both may
//! or may not have reached the disk. Opening the file anew settles which of `lost` did.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::content::{Content, is_zero};
use super::env::Rng;
use crate::io::SECTOR_LEN;
use crate::io::map::HeapMemory;

const SECTOR: u64 = SECTOR_LEN as u64;

/// A change of a file.
#[derive(Clone)]
pub(super) struct Change {
    /// When it was made, in changes of the whole disk.
    pub(super) stamp: u64,
    edit: Edit,
    /// The length of the file after it.
    len_after: u64,
}

#[derive(Clone)]
enum Edit {
    Bytes {
        at: u64,
        bytes: Arc<[u8]>,
    },
    /// Zeros that were written.
    Zeros {
        at: u64,
        len: u64,
    },
    /// Zeros that a cut left behind: they appear only where the cut survives.
    Cut {
        at: u64,
        len: u64,
    },
    /// Only the length.
    Len,
}

impl Edit {
    fn range(&self) -> (u64, u64) {
        match self {
            Edit::Bytes { at, bytes } => (*at, *at + bytes.len() as u64),
            Edit::Zeros { at, len } | Edit::Cut { at, len } => (*at, *at + *len),
            Edit::Len => (0, 0),
        }
    }
}

impl Change {
    /// The sectors that it touches.
    pub(super) fn sectors(&self) -> std::ops::Range<u64> {
        let (at, end) = self.edit.range();
        at / SECTOR..end.div_ceil(SECTOR)
    }

    /// Puts the part of it that lies in `at..end` in place.
    fn store(&self, content: &mut Content, at: u64, end: u64) {
        let (from, to) = self.edit.range();
        let (at, end) = (at.max(from), end.min(to));
        if at >= end {
            return;
        }
        match &self.edit {
            Edit::Bytes { bytes, .. } => {
                content.store(&bytes[(at - from) as usize..(end - from) as usize], at);
            }
            Edit::Zeros { .. } | Edit::Cut { .. } => content.zero(at, end - at),
            Edit::Len => {}
        }
    }

    /// The parts of it in the sectors that `of` chooses.
    fn parts(&self, of: impl Fn(u64) -> bool) -> Vec<Change> {
        let (from, to) = self.edit.range();
        let mut kept = Vec::new();
        for sector in self.sectors().filter(|sector| of(*sector)) {
            let (at, end) = (from.max(sector * SECTOR), to.min((sector + 1) * SECTOR));
            let edit = match &self.edit {
                Edit::Bytes { bytes, .. } => {
                    let part = &bytes[(at - from) as usize..(end - from) as usize];
                    Edit::Bytes {
                        at,
                        bytes: part.into(),
                    }
                }
                Edit::Zeros { .. } => Edit::Zeros { at, len: end - at },
                Edit::Cut { .. } => Edit::Cut { at, len: end - at },
                Edit::Len => Edit::Len,
            };
            kept.push(Change {
                edit,
                ..self.clone()
            });
        }
        kept
    }
}

/// The contents of one file and its names' count.
#[derive(Clone, Default)]
pub(super) struct FileState {
    durable: Content,
    current: Content,
    lost: Arc<Vec<Change>>,
    dirty: Arc<Vec<Change>>,
    pub(super) link_count: u64,
}

impl FileState {
    /// A file whose content is durable.
    pub(super) fn durable(content: Content, link_count: u64) -> FileState {
        FileState {
            durable: content.clone(),
            current: content,
            link_count,
            ..FileState::default()
        }
    }

    pub(super) fn current(&self) -> &Content {
        &self.current
    }

    pub(super) fn durable_len(&self) -> u64 {
        self.durable.len()
    }

    /// Whether a crash can change nothing.
    pub(super) fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.dirty.is_empty()
    }

    /// How many changes a failed sync lost, and how many came since the last sync.
    pub(super) fn unsynced_count(&self) -> (usize, usize) {
        (self.lost.len(), self.dirty.len())
    }

    /// The changes that a crash may undo, oldest first.
    pub(super) fn changes(&self) -> impl Iterator<Item = &Change> + Clone {
        self.lost.iter().chain(self.dirty.iter())
    }

    pub(super) fn write(&mut self, stamp: u64, bytes: &[u8], at: u64) {
        let end = at + bytes.len() as u64;
        let len_after = self.current.len().max(end);
        if is_zero(bytes) {
            // Zeros over a hole change no sector, only the length.
            for (from, to) in self.current.occupied(at, end) {
                self.log(
                    stamp,
                    Edit::Zeros {
                        at: from,
                        len: to - from,
                    },
                    len_after,
                );
            }
            if len_after != self.current.len() {
                self.log(stamp, Edit::Len, len_after);
            }
        } else {
            self.log(
                stamp,
                Edit::Bytes {
                    at,
                    bytes: bytes.into(),
                },
                len_after,
            );
        }
        self.current.write(bytes, at);
    }

    /// Takes up what was stored to an image of the file: like a write, but sectors that hold the
    /// same bytes already were not written, and nothing is behind the end.
    pub(super) fn absorb(&mut self, stamp: u64, bytes: &[u8], at: u64) {
        let len = self
            .current
            .len()
            .saturating_sub(at)
            .min(bytes.len() as u64);
        let end = at + len;
        let mut old = vec![0; len as usize];
        self.current.peek(&mut old, at);
        let part = |from: u64, to: u64| (from - at) as usize..(to - at) as usize;
        // The run of changed sectors that ends at `from`.
        let mut run_at = None;
        let mut from = at;
        while from < end {
            let to = end.min((from / SECTOR + 1) * SECTOR);
            if old[part(from, to)] == bytes[part(from, to)] {
                if let Some(run_at) = run_at.take() {
                    self.write(stamp, &bytes[part(run_at, from)], run_at);
                }
            } else {
                run_at.get_or_insert(from);
            }
            from = to;
        }
        if let Some(run_at) = run_at {
            self.write(stamp, &bytes[part(run_at, end)], run_at);
        }
    }

    pub(super) fn set_len(&mut self, stamp: u64, len: u64) {
        for (from, to) in self.current.occupied(len, self.current.len()) {
            self.log(
                stamp,
                Edit::Cut {
                    at: from,
                    len: to - from,
                },
                len,
            );
        }
        if len != self.current.len() {
            self.log(stamp, Edit::Len, len);
        }
        self.current.set_len(len);
    }

    fn log(&mut self, stamp: u64, edit: Edit, len_after: u64) {
        Arc::make_mut(&mut self.dirty).push(Change {
            stamp,
            edit,
            len_after,
        });
    }

    /// A sync that succeeds. What an earlier one lost stays lost, unless a sector of it was changed
    /// since and so written out again; the length is the file system's own and is durable now.
    pub(super) fn sync(&mut self) {
        if self.lost.is_empty() {
            // As if it were a copy of the current content, at the cost of what changed.
            for change in self.dirty.iter() {
                let (at, end) = change.edit.range();
                self.durable.adopt(&self.current, at, end);
            }
            self.durable.set_len(self.current.len());
        } else {
            let rewritten: BTreeSet<u64> = self.dirty.iter().flat_map(Change::sectors).collect();
            let mut bytes = [0; SECTOR_LEN];
            for sector in &rewritten {
                self.current.peek(&mut bytes, sector * SECTOR);
                self.durable.store(&bytes, sector * SECTOR);
            }
            self.durable.set_len(self.current.len());
            let is_old = |sector| !rewritten.contains(&sector);
            let mut lost: Vec<Change> = self.lost.iter().flat_map(|c| c.parts(is_old)).collect();
            lost.iter_mut()
                .for_each(|change| change.len_after = self.current.len());
            self.lost = Arc::new(lost);
        }
        self.dirty = Arc::default();
    }

    /// A sync that fails: nobody will write out again what it was to write.
    pub(super) fn fail_sync(&mut self) {
        let dirty = std::mem::take(&mut self.dirty);
        Arc::make_mut(&mut self.lost).extend(dirty.iter().cloned());
    }

    /// Settles which lost sectors are on the disk after all, as reading them again does. A sector
    /// that was changed since stays as it is in memory, and waits for a sync with all its changes.
    pub(super) fn settle_lost(&mut self, rng: &mut Rng) {
        if self.lost.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let rewritten: BTreeSet<u64> = dirty.iter().flat_map(Change::sectors).collect();
        let is_new = |sector| rewritten.contains(&sector);
        // The length of a file that was changed since stays as it is in memory, too: cutting at an
        // old one would zero a part of a sector, which is not lost but invented.
        let (len_index, len) = if dirty.is_empty() {
            let len_index = rng.below(self.lost.len() as u64 + 1) as usize;
            (len_index, self.len_after(len_index))
        } else {
            (self.lost.len(), self.current.len())
        };
        // None of it where the sector's changes wait: they would be made again on top of later ones.
        let keep = &mut |_, sector| !is_new(sector) && rng.chance(128);
        self.durable = self.mixed(len_index, keep);
        self.durable.set_len(len);
        let mut current = self.durable.clone();
        let mut bytes = [0; SECTOR_LEN];
        for sector in &rewritten {
            self.current.peek(&mut bytes, sector * SECTOR);
            current.store(&bytes, sector * SECTOR);
        }
        self.current = current;
        let again = self.lost.iter().flat_map(|change| change.parts(is_new));
        self.dirty = Arc::new(again.chain(dirty.iter().cloned()).collect());
        self.lost = Arc::default();
    }

    /// Everything that reached the file at any time is durable now.
    pub(super) fn settle(&mut self) {
        *self = FileState::durable(self.current.clone(), self.link_count);
    }

    /// Flips bits of a byte, whatever is durable and whatever is not.
    pub(super) fn rot(&mut self, at: u64, mask: u8) -> io::Result<()> {
        if at >= self.current.len() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        for content in [&mut self.durable, &mut self.current] {
            let mut byte = [0];
            content.peek(&mut byte, at);
            if at < content.len() {
                content.store(&[byte[0] ^ mask], at);
            }
        }
        Ok(())
    }

    /// One content that the crash model allows: the length after the first `len_index` changes, and
    /// the bytes of [`Self::mixed`].
    pub(super) fn survivor(
        &self,
        len_index: usize,
        keep: &mut dyn FnMut(usize, u64) -> bool,
    ) -> Content {
        let mut content = self.mixed(len_index, keep);
        content.set_len(self.len_after(len_index));
        content
    }

    /// The bytes where each sector has the value after the last change for which
    /// `keep(index of the change, sector)`: the system writes out sectors as they are in memory, so
    /// one that holds a change holds those before it as well.
    fn mixed(&self, len_index: usize, keep: &mut dyn FnMut(usize, u64) -> bool) -> Content {
        // How many changes each sector has seen.
        let mut seen: HashMap<u64, usize> = HashMap::new();
        for (index, change) in self.changes().enumerate() {
            let undone_cut = matches!(change.edit, Edit::Cut { .. }) && index >= len_index;
            for sector in change.sectors() {
                if keep(index, sector) && !undone_cut {
                    seen.insert(sector, index + 1);
                }
            }
        }
        let mut content = self.durable.clone();
        for (index, change) in self.changes().enumerate() {
            let mut run = 0..0;
            for sector in change.sectors() {
                if seen.get(&sector).is_none_or(|count| index >= *count) {
                    continue;
                }
                if run.end != sector {
                    change.store(&mut content, run.start * SECTOR, run.end * SECTOR);
                    run.start = sector;
                }
                run.end = sector + 1;
            }
            change.store(&mut content, run.start * SECTOR, run.end * SECTOR);
        }
        content
    }

    /// The length after the first `count` changes since the last sync.
    fn len_after(&self, count: usize) -> u64 {
        match count.checked_sub(1) {
            None => self.durable.len(),
            Some(last) => self
                .changes()
                .nth(last)
                .map_or(self.current.len(), |c| c.len_after),
        }
    }
}

/// The memory of an image, which the disk looks at before it answers for the file.
pub(super) struct Watch {
    memory: Arc<HeapMemory>,
    /// Bytes of it that the file has taken up.
    absorbed: usize,
}

impl Watch {
    pub(super) fn new(memory: Arc<HeapMemory>) -> Watch {
        Watch {
            memory,
            absorbed: 0,
        }
    }

    /// Takes up what was published since the last call; `false` once the image is gone.
    pub(super) fn absorb(&mut self, file: &mut FileState, stamp: &mut u64) -> bool {
        // Asked first: an image that is gone now has published everything it ever will.
        let alive = Arc::strong_count(&self.memory) > 1;
        for end in self.memory.take_marks() {
            if end > self.absorbed {
                *stamp += 1;
                let bytes = self.memory.published(self.absorbed, end);
                file.absorb(*stamp, bytes, self.absorbed as u64);
                self.absorbed = end;
            }
        }
        alive
    }
}
