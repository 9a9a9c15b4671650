//! The bytes of one simulated file: sparse, and cheap to copy because copies share their pages.

use std::collections::BTreeMap;
use std::sync::Arc;

/// The unit of sharing. Larger than a sector, so that a file has few of them.
pub(super) const PAGE_LEN: u64 = 4096;

type Page = [u8; PAGE_LEN as usize];

/// Bytes with holes that read as zeros.
#[derive(Clone, Default)]
pub(super) struct Content {
    pages: Arc<BTreeMap<u64, Arc<Page>>>,
    len: u64,
}

impl Content {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Reads what there is at `at`; returns how many bytes that was.
    pub(super) fn read(&self, buf: &mut [u8], at: u64) -> usize {
        let len = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        self.peek(&mut buf[..len], at);
        len
    }

    /// Reads without regard to the length: behind it there are zeros.
    pub(super) fn peek(&self, buf: &mut [u8], at: u64) {
        for (index, start, part) in parts(at, buf.len()) {
            match self.pages.get(&index) {
                Some(page) => buf[part.clone()].copy_from_slice(&page[start..start + part.len()]),
                None => buf[part].fill(0),
            }
        }
    }

    /// The first `len` bytes.
    pub(super) fn to_vec(&self, len: usize) -> Vec<u8> {
        // Holes are left to the allocator, which has zeroed pages at no cost.
        let mut bytes = vec![0; len];
        for (at, _) in self.occupied(0, len as u64) {
            let start = at as usize;
            let end = len.min(start + PAGE_LEN as usize);
            self.peek(&mut bytes[start..end], at);
        }
        bytes
    }

    /// Writes, growing the length where needed.
    pub(super) fn write(&mut self, bytes: &[u8], at: u64) {
        self.store(bytes, at);
        self.len = self.len.max(at + bytes.len() as u64);
    }

    /// Puts bytes in place without regard to the length. [`Self::set_len`] ends such a time.
    pub(super) fn store(&mut self, bytes: &[u8], at: u64) {
        let pages = Arc::make_mut(&mut self.pages);
        for (index, start, part) in parts(at, bytes.len()) {
            let part = &bytes[part];
            // A hole that receives zeros stays a hole: files are prepared with megabytes of them.
            if !pages.contains_key(&index) && is_zero(part) {
                continue;
            }
            let page = pages
                .entry(index)
                .or_insert_with(|| Arc::new([0; PAGE_LEN as usize]));
            Arc::make_mut(page)[start..start + part.len()].copy_from_slice(part);
        }
    }

    /// Takes the pages that `at..end` touches from `other`, sharing them.
    pub(super) fn adopt(&mut self, other: &Content, at: u64, end: u64) {
        let pages = Arc::make_mut(&mut self.pages);
        for index in at / PAGE_LEN..end.div_ceil(PAGE_LEN) {
            match other.pages.get(&index) {
                Some(page) => pages.insert(index, Arc::clone(page)),
                None => pages.remove(&index),
            };
        }
    }

    /// Puts zeros in place.
    pub(super) fn zero(&mut self, at: u64, len: u64) {
        const ZEROS: Page = [0; PAGE_LEN as usize];
        for (from, to) in self.occupied(at, at.saturating_add(len)) {
            if to - from == PAGE_LEN {
                Arc::make_mut(&mut self.pages).remove(&(from / PAGE_LEN));
            } else {
                self.store(&ZEROS[..(to - from) as usize], from);
            }
        }
    }

    /// Cuts, or extends with zeros.
    pub(super) fn set_len(&mut self, len: u64) {
        self.zero(len, u64::MAX - len);
        self.len = len;
    }

    /// The parts of `at..end` that are not holes, one for each page.
    pub(super) fn occupied(&self, at: u64, end: u64) -> Vec<(u64, u64)> {
        if at >= end {
            return Vec::new();
        }
        let indexes = at / PAGE_LEN..=(end - 1) / PAGE_LEN;
        let clip = |index: u64| (at.max(index * PAGE_LEN), end.min((index + 1) * PAGE_LEN));
        self.pages
            .range(indexes)
            .map(|(index, _)| clip(*index))
            .collect()
    }
}

/// Splits a range at page boundaries: page index, start in the page, range in the buffer.
fn parts(at: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = at + done as u64;
        let start = (at % PAGE_LEN) as usize;
        let take = (PAGE_LEN as usize - start).min(len - done);
        done += take;
        Some((at / PAGE_LEN, start, done - take..done))
    })
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_do_not_see_each_others_writes() {
        let mut first = Content::default();
        first.write(b"first", 4094);
        let mut second = first.clone();
        second.write(b"SEC", 4095);
        second.set_len(4097);
        assert_eq!(first.to_vec(4099)[4094..], *b"first");
        assert_eq!(second.to_vec(4100)[4094..], *b"fSE\0\0\0");
        assert_eq!((first.len(), second.len()), (4099, 4097));
    }

    #[test]
    fn zeros_take_no_pages() {
        let mut content = Content::default();
        content.write(&vec![0; 1 << 20], 0);
        assert_eq!(content.len(), 1 << 20);
        assert!(content.occupied(0, u64::MAX).is_empty());
        content.write(b"x", 70_000);
        assert_eq!(content.occupied(0, u64::MAX), [(69_632, 73_728)]);
        content.zero(69_632, PAGE_LEN);
        assert!(content.occupied(0, u64::MAX).is_empty());
    }

    #[test]
    fn a_read_stops_at_the_end() {
        let mut content = Content::default();
        content.write(b"abc", 0);
        let mut buf = [b'-'; 4];
        assert_eq!(content.read(&mut buf, 1), 2);
        assert_eq!(&buf, b"bc--");
        assert_eq!(content.read(&mut buf, 3), 0);
        assert_eq!(content.read(&mut buf, u64::MAX), 0);
    }

    #[test]
    fn bytes_behind_a_cut_never_come_back() {
        let mut content = Content::default();
        content.write(&[7; 10_000], 0);
        content.set_len(5_000);
        content.set_len(10_000);
        let bytes = content.to_vec(10_000);
        assert!(bytes[..5_000].iter().all(|b| *b == 7) && is_zero(&bytes[5_000..]));
    }
}
