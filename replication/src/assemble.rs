//! Puts shipped bytes of one log together to whole batches: a batch may be longer than a frame, and
//! frames end anywhere.

use strandline_wal::batch::{BatchHeader, HEADER_LEN, PAYLOAD_LEN_MAX};
use strandline_wal::segment::SEGMENT_HEADER_LEN;

use crate::error::{Error, Result};

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
    pub bytes: Vec<u8>,
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

    /// Bytes came; `None` where they do not complete a batch.
    ///
    /// # Errors
    /// [`Error::Damaged`] where they are not at the place where the last ones ended, or are no batch.
    pub fn push(&mut self, segment: u64, at: u64, bytes: Vec<u8>) -> Result<Option<Whole>> {
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
        if self.pending.is_empty() {
            self.pending = bytes;
        } else {
            self.pending.extend_from_slice(&bytes);
        }
        let len = self.whole_len()?;
        if len == 0 {
            return Ok(None);
        }
        let rest = self.pending.split_off(len);
        let bytes = std::mem::replace(&mut self.pending, rest);
        let whole = Whole {
            segment,
            at: self.at,
            bytes,
        };
        self.at += len as u64;
        Ok(Some(whole))
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

    /// Length of the whole batches at the head of `pending`. A segment's header is whole with the
    /// first batch behind it: no segment is made that may stay without one.
    fn whole_len(&self) -> Result<usize> {
        let header_len = if self.at == 0 { SEGMENT_HEADER_LEN } else { 0 };
        let mut len = header_len;
        while let Some(head) = self
            .pending
            .get(len..)
            .filter(|rest| rest.len() >= HEADER_LEN)
        {
            let (header, _) = BatchHeader::decode(head).map_err(|damage| Error::Damaged {
                what: "shipped batch",
                expected: "an intact header".to_owned(),
                found: damage.to_string(),
            })?;
            assert!(
                header.payload_len as usize <= PAYLOAD_LEN_MAX,
                "the decoder checks it"
            );
            if head.len() < header.batch_len() {
                break;
            }
            len += header.batch_len();
        }
        Ok(if len > header_len { len } else { 0 })
    }
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
                if let Some(whole) = pushed {
                    assert_eq!(whole.at, out.len() as u64);
                    out.extend(whole.bytes);
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
