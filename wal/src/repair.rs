//! One segment out of two copies of it, where each may be damaged.
//!
//! A log's layout is its leader's alone, so a segment is the same bytes at the same offsets on every
//! node, as far as both go. Batch by batch the intact copy is taken; each must continue the one before
//! by sequence and chain, so that nothing of another history gets in.

use std::ops::Range;
use std::path::Path;

use crate::bug::planted;
use crate::error::{Error, Result};
use crate::ids::Hlc;
use crate::recover::next_batch;
use crate::segment::{Footer, SEGMENT_HEADER_LEN, SegmentHeader, TRAILER_LEN};
use crate::writer::Tail;

/// A segment as far as either copy has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Repaired {
    /// The file.
    pub bytes: Vec<u8>,
    /// What came from the other copy, ascending: damage that is mended, or records beyond the end.
    pub taken: Vec<Range<u64>>,
    /// Its header.
    pub header: SegmentHeader,
    /// Its last record; `first_seq - 1` where there is none.
    pub last_seq: u64,
    /// Where its batches end.
    pub data_len: u64,
    /// Whether it has its footer.
    pub is_sealed: bool,
}

/// Puts one segment together: `ours`, and `theirs` where that is damaged or ends. Empty slices stand
/// for files that are not there. What lies behind the last intact batch of `ours` stays as it is where
/// no footer follows: recovery decides what it was.
///
/// # Errors
/// [`Error::Corrupt`] where neither header is intact, or where the copies are of two histories.
pub fn merge(ours: &[u8], theirs: &[u8], path: &Path) -> Result<Repaired> {
    let own = SegmentHeader::decode(ours, path);
    let other = SegmentHeader::decode(theirs, path);
    let mut taken: Vec<Range<u64>> = Vec::new();
    let header = match (own, other) {
        (Ok(own), Ok(other)) if own != other => {
            let expected = format!("nonce {:#010x}, as in this copy", own.nonce);
            let found = format!("nonce {:#010x}", other.nonce);
            return Err(Error::corrupt(path, 0, "other copy", expected, found));
        }
        (Ok(own), _) => own,
        (Err(_), Ok(other)) => {
            taken.push(0..SEGMENT_HEADER_LEN as u64);
            other
        }
        (Err(error), Err(_)) => return Err(error),
    };
    let mut bytes = header.encode().to_vec();
    let mut tail = Tail {
        next_seq: header.first_seq,
        chain: header.prev_crc,
        epoch: header.epoch,
        timestamp: Hlc(0),
        prev_digest: header.prev_digest,
    };
    loop {
        let at = bytes.len();
        let batch = |copy: &[u8]| {
            let batch = next_batch(copy.get(at..)?, &header, &tail).ok()?;
            Some((batch.header, batch.header_crc))
        };
        let (copy, (found, crc)) = match (batch(ours), batch(theirs)) {
            (Some(own), _) => (ours, own),
            (None, Some(other)) => {
                note(&mut taken, at, other.0.batch_len());
                (theirs, other)
            }
            (None, None) => break,
        };
        bytes.extend_from_slice(&copy[at..at + found.batch_len()]);
        tail.next_seq = found.last_seq() + 1;
        tail.chain = crc;
        tail.timestamp = found.timestamp;
    }
    let at = bytes.len();
    let footer = |copy: &[u8]| footer_at(copy, at, &bytes, header.nonce, path);
    let is_sealed = match (footer(ours), footer(theirs)) {
        (Some(footer), _) => {
            bytes.extend_from_slice(&footer);
            true
        }
        (None, Some(footer)) => {
            note(&mut taken, at, footer.len());
            bytes.extend_from_slice(&footer);
            true
        }
        (None, None) => {
            bytes.extend_from_slice(ours.get(at..).unwrap_or_default());
            false
        }
    };
    Ok(Repaired {
        bytes,
        taken,
        last_seq: tail.next_seq - 1,
        data_len: at as u64,
        header,
        is_sealed,
    })
}

/// Adds a range that came from the other copy, joined to the one before where they touch.
fn note(taken: &mut Vec<Range<u64>>, at: usize, len: usize) {
    let (at, end) = (at as u64, (at + len) as u64);
    match taken.last_mut() {
        Some(last) if last.end == at => last.end = end,
        _ => taken.push(at..end),
    }
}

/// The footer of a copy, if it is intact and seals exactly these bytes.
fn footer_at(copy: &[u8], at: usize, data: &[u8], nonce: u32, path: &Path) -> Option<Vec<u8>> {
    let trailer = copy.len().checked_sub(TRAILER_LEN)?;
    let (data_len, _) = Footer::peek(&copy[trailer..], nonce, copy.len() as u64)?;
    let bytes = copy.get(at..).filter(|_| data_len == at as u64)?;
    let footer = Footer::decode(bytes, nonce, data_len, path).ok()?;
    let is_its = footer.digest == *blake3::hash(data).as_bytes() || planted("repair.digest");
    is_its.then(|| bytes.to_vec())
}

#[cfg(test)]
mod tests;
