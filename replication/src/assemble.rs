//! Puts shipped bytes of one log together to whole batches: a batch may be longer than a frame, and
//! frames end anywhere.

use strandline_wal::batch::{BatchHeader, HEADER_LEN, PAYLOAD_LEN_MAX};
use strandline_wal::segment::SEGMENT_HEADER_LEN;

use crate::error::{Error, Result};
use crate::message::Piece;

/// Where the next bytes of a log must come from, and what came of an incomplete batch.
///
/// Invariant: `pending` is shorter than the batch that it begins, and the segment's header before it.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    segment: u64,
    // Offset of `pending` in the segment.
    at: u64,
    pending: Vec<u8>,
}

/// Whole batches, to be appended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Whole {
    /// First sequence of the segment.
    pub segment: u64,
    /// Offset in it.
    pub at: u64,
    /// A segment's header or batches, nothing partial.
    pub bytes: Piece,
}

impl Assembler {
    /// Starts at a place that both sides agreed on.
    pub fn new(segment: u64, at: u64) -> Assembler {
        Assembler {
            segment,
            at,
            pending: Vec::new(),
        }
    }

    /// Where the next bytes must come from.
    pub fn place(&self) -> (u64, u64) {
        (self.segment, self.at + self.pending.len() as u64)
    }

    /// Bytes came. Returns the batches that are whole now: the one that had begun before, if it is, and
    /// those behind it as they lie in the piece.
    ///
    /// # Errors
    /// [`Error::Damaged`] where they are not at the place where the last ones ended, or are no batch.
    pub fn push(&mut self, segment: u64, at: u64, bytes: impl Into<Piece>) -> Result<Vec<Whole>> {
        let place = self.place();
        if (segment, at) != place {
            let expected = format!("segment {} byte {}", place.0, place.1);
            let found = format!("segment {segment} byte {at}");
            return Err(Error::Damaged {
                what: "place of shipped bytes",
                expected,
                found,
            });
        }
        let mut bytes = bytes.into();
        let mut wholes = Vec::new();
        while !self.pending.is_empty() && !bytes.is_empty() {
            let len = self.missing_len()?.min(bytes.len());
            self.pending.extend_from_slice(&bytes[..len]);
            bytes.advance(len);
            if self.missing_len()? == 0 {
                let pending = std::mem::take(&mut self.pending);
                wholes.push(self.pass(pending.into()));
            }
        }
        let len = self.whole_len(&bytes)?;
        // It has none where a batch that began before is not whole yet.
        self.pending.extend_from_slice(&bytes[len..]);
        if len > 0 {
            bytes.truncate(len);
            wholes.push(self.pass(bytes));
        }
        Ok(wholes)
    }

    /// Passes whole batches on.
    fn pass(&mut self, bytes: Piece) -> Whole {
        let at = self.at;
        self.at += bytes.len() as u64;
        Whole {
            segment: self.segment,
            at,
            bytes,
        }
    }

    /// Length of what stands before the batch that is next: a segment's header travels with its first
    /// batch, because no segment is made that may stay without one.
    fn header_len(&self) -> usize {
        if self.at == 0 { SEGMENT_HEADER_LEN } else { 0 }
    }

    /// What `pending` lacks for its batch, or first for the batch's header.
    fn missing_len(&self) -> Result<usize> {
        let head_at = self.header_len();
        let len = match self.pending.get(head_at..head_at + HEADER_LEN) {
            Some(head) => head_at + batch_len(head)?,
            None => head_at + HEADER_LEN,
        };
        Ok(len - self.pending.len())
    }

    /// The segment's footer came: `true` where all bytes before it did too. What follows is the
    /// segment that starts with `next_segment`.
    #[must_use]
    pub fn sealed(&mut self, segment: u64, at: u64, next_segment: u64) -> bool {
        if self.place() != (segment, at) || !self.pending.is_empty() {
            return false;
        }
        (self.segment, self.at) = (next_segment, 0);
        true
    }

    /// Length of the whole batches at the head of a piece, the segment's header among them.
    fn whole_len(&self, bytes: &[u8]) -> Result<usize> {
        let header_len = self.header_len();
        let mut len = header_len;
        while let Some(head) = bytes.get(len..).filter(|rest| rest.len() >= HEADER_LEN) {
            let batch_len = batch_len(head)?;
            if head.len() < batch_len {
                break;
            }
            len += batch_len;
        }
        Ok(if len > header_len { len } else { 0 })
    }
}

/// The length that the header at the head of `bytes` gives its batch.
fn batch_len(bytes: &[u8]) -> Result<usize> {
    let (header, _) = BatchHeader::decode(bytes).map_err(|damage| Error::Damaged {
        what: "shipped batch",
        expected: "an intact header".to_owned(),
        found: damage.to_string(),
    })?;
    assert!(
        header.payload_len as usize <= PAYLOAD_LEN_MAX,
        "the decoder checks it"
    );
    Ok(header.batch_len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use strandline_wal::batch::{Kind, Payload, VERSION};
    use strandline_wal::{Epoch, Hlc, RegionId, ShardId};

    fn batch(first_seq: u64, body: usize) -> Vec<u8> {
        let mut payload = Payload::new();
        payload
            .push(Kind::Put, ShardId(0), &[b"k"], &vec![7; body])
            .unwrap();
        let payload = payload.seal(0);
        let header = BatchHeader {
            version: VERSION,
            flags: 0,
            first_seq,
            record_count: 1,
            payload_len: payload.bytes().len() as u32,
            unsynced: 0,
            epoch: Epoch(1),
            timestamp: Hlc(first_seq),
            nonce: 1,
            prev_crc: 0,
            payload_crc: payload.crc(),
            ordinal: 0,
            shard: ShardId(0),
            region: RegionId(0),
        };
        let mut bytes = header.encode().0.to_vec();
        bytes.extend_from_slice(payload.bytes());
        bytes
    }

    /// Cut into pieces of any size, the same whole batches come out.
    #[test]
    fn pieces_of_every_size_give_the_same_bytes() {
        let mut stored = vec![9; SEGMENT_HEADER_LEN];
        (1..6).for_each(|n| stored.extend(batch(n, 40 * n as usize)));
        for piece in [1, 7, 63, 64, 65, 511, 512, 600, stored.len()] {
            let mut assembler = Assembler::new(1, 0);
            let mut out = Vec::new();
            for (n, bytes) in stored.chunks(piece).enumerate() {
                let pushed = assembler
                    .push(1, (n * piece) as u64, bytes.to_vec())
                    .unwrap();
                for whole in pushed {
                    assert_eq!(whole.at, out.len() as u64);
                    out.extend_from_slice(&whole.bytes);
                }
            }
            assert!(out == stored, "pieces of {piece}");
            assert!(assembler.sealed(1, stored.len() as u64, 6));
            assert_eq!(assembler.place(), (6, 0));
        }
    }

    #[test]
    fn a_gap_is_refused() {
        let mut assembler = Assembler::new(1, 0);
        assert!(assembler.push(1, 1, vec![0]).is_err());
        assert!(assembler.push(2, 0, vec![0]).is_err());
    }

    #[test]
    fn noise_is_refused_and_a_footer_waits_for_every_byte() {
        let mut assembler = Assembler::new(1, 512);
        assert!(assembler.push(1, 512, vec![3; 100]).is_err());
        let mut assembler = Assembler::new(1, 512);
        let whole = batch(1, 100);
        assembler.push(1, 512, whole[..80].to_vec()).unwrap();
        assert!(!assembler.sealed(1, 592, 2), "half a batch is pending");
    }
}
