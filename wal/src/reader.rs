//! Reads batches of a log from a position on, the growing tail included.

use std::sync::Arc;

use crate::batch::{Batch, BatchHeader, HEADER_LEN};
use crate::error::{Error, Result};
use crate::ids::{Epoch, Hlc, Position};
use crate::log::{Log, Segment, SegmentBytes};
use crate::recover::next_batch;
use crate::segment::SEGMENT_HEADER_LEN;
use crate::writer::Tail;

/// What the next step of a [`Reader`] found.
pub enum Step {
    /// The next batch.
    Batch(StoredBatch),
    /// The end of what is published: more may come.
    AtTail,
    /// The position was dropped from the log.
    Truncated {
        /// The first sequence that is still there.
        first_available: u64,
    },
    /// The log was cut and written anew behind this reader's back.
    Forked {
        /// Where the histories part.
        at: Position,
    },
}

/// A batch and where it lies.
pub struct StoredBatch {
    /// The segment.
    pub segment: Arc<Segment>,
    /// Offset of its header in the segment.
    pub at: u64,
    /// The checked header.
    pub header: BatchHeader,
    /// The stored `header_crc`.
    pub header_crc: u32,
    bytes: SegmentBytes,
}

impl StoredBatch {
    /// The batch itself.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            header: self.header,
            header_crc: self.header_crc,
            payload: &self.bytes[HEADER_LEN..],
        }
    }

    /// Its stored bytes, header first.
    pub fn bytes(&self) -> &SegmentBytes {
        &self.bytes
    }
}

/// A place in a log.
pub struct Reader {
    log: Arc<Log>,
    next_seq: u64,
    last: Option<Position>,
    place: Option<Place>,
}

struct Place {
    segment: Arc<Segment>,
    at: u64,
    tail: Tail,
}

impl Reader {
    /// Starts with the batch that holds record `from_seq`, or at the end where that is the next one.
    pub fn new(log: Arc<Log>, from_seq: u64) -> Reader {
        Reader {
            log,
            next_seq: from_seq.max(1),
            last: None,
            place: None,
        }
    }

    /// The sequence that comes next.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The next batch, or why there is none.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for published bytes that are not the batch that was written there.
    #[allow(
        clippy::should_implement_trait,
        reason = "it does not end, and it fails"
    )]
    pub fn next(&mut self) -> Result<Step> {
        loop {
            let Some(place) = &mut self.place else {
                match self.find()? {
                    None => continue,
                    Some(step) => return Ok(step),
                }
            };
            if place.at < place.segment.data_len() {
                let stored = read_at(&place.segment, place.at, &place.tail)?;
                place.at += stored.header.batch_len() as u64;
                place.tail = follow(&place.tail, &stored);
                if stored.header.last_seq() < self.next_seq {
                    continue;
                }
                self.next_seq = stored.header.last_seq() + 1;
                self.last = Some(Position {
                    epoch: stored.header.epoch,
                    seq: self.next_seq - 1,
                });
                return Ok(Step::Batch(stored));
            }
            if place.segment.sealed().is_none() || place.at < place.segment.data_len() {
                return Ok(Step::AtTail);
            }
            let first_seq = place.segment.first_seq();
            let Some(after) = self.log.segment_after(first_seq) else {
                return Ok(Step::AtTail);
            };
            if after.first_seq() != self.next_seq {
                let first_available = after.first_seq();
                return Ok(Step::Truncated { first_available });
            }
            self.place = Some(start_of(after));
        }
    }

    /// Finds the segment that the next record lies in. `None`: found, look again.
    fn find(&mut self) -> Result<Option<Step>> {
        let end_seq = self.log.last_seq();
        if self.next_seq > end_seq + 1 {
            let epoch = self.last.map_or(Epoch(0), |last| last.epoch);
            return Ok(Some(Step::Forked {
                at: Position {
                    epoch,
                    seq: end_seq,
                },
            }));
        }
        match self.log.segment_of(self.next_seq) {
            Some(segment) if segment.last_seq() >= self.next_seq || segment.sealed().is_none() => {
                let mut place = start_of(segment);
                place.skip_to(self.next_seq);
                self.place = Some(place);
                Ok(None)
            }
            _ if self.next_seq > end_seq => Ok(Some(Step::AtTail)),
            _ => Ok(Some(Step::Truncated {
                first_available: self.first_after(),
            })),
        }
    }

    fn first_after(&self) -> u64 {
        let later = self.log.segments().into_iter().map(|s| s.first_seq());
        later
            .filter(|first| *first >= self.next_seq)
            .min()
            .unwrap_or(self.next_seq)
    }
}

impl Place {
    /// Jumps to the last indexed batch at or before `seq`.
    fn skip_to(&mut self, seq: u64) {
        let Some(sealed) = self.segment.sealed() else {
            return;
        };
        let index = &sealed.footer.index;
        let after = index.partition_point(|(first_seq, _)| *first_seq <= seq);
        let Some((first_seq, at)) = after.checked_sub(1).map(|n| index[n]) else {
            return;
        };
        if first_seq > self.tail.next_seq {
            // The chain value there is the batch's own claim; the footer's digest vouches for it.
            let Ok(bytes) = self.segment.read(at, HEADER_LEN) else {
                return;
            };
            let Ok((header, _)) = BatchHeader::decode(&bytes) else {
                return;
            };
            if header.first_seq == first_seq {
                self.at = at;
                self.tail.next_seq = first_seq;
                self.tail.chain = header.prev_crc;
                self.tail.timestamp = Hlc(header.timestamp.0.saturating_sub(1));
            }
        }
    }
}

fn start_of(segment: Arc<Segment>) -> Place {
    let header = segment.header();
    let tail = Tail {
        next_seq: header.first_seq,
        chain: header.prev_crc,
        prev_digest: header.prev_digest,
        epoch: header.epoch,
        timestamp: Hlc(0),
    };
    Place {
        segment,
        at: SEGMENT_HEADER_LEN as u64,
        tail,
    }
}

fn follow(tail: &Tail, stored: &StoredBatch) -> Tail {
    Tail {
        next_seq: stored.header.last_seq() + 1,
        chain: stored.header_crc,
        prev_digest: tail.prev_digest,
        epoch: stored.header.epoch,
        timestamp: stored.header.timestamp,
    }
}

/// The published batch at `at`, checked to continue `tail`.
fn read_at(segment: &Arc<Segment>, at: u64, tail: &Tail) -> Result<StoredBatch> {
    let damaged = |damage: &dyn std::fmt::Display| {
        Error::corrupt(
            segment.path(),
            at,
            "batch",
            format!("record {}", tail.next_seq),
            damage,
        )
    };
    let head = segment.read(at, HEADER_LEN)?;
    let (header, _) = BatchHeader::decode(&head).map_err(|damage| damaged(&damage))?;
    if at + header.batch_len() as u64 > segment.data_len() {
        return Err(damaged(&format!("a batch of {} bytes", header.batch_len())));
    }
    let bytes = segment.read(at, header.batch_len())?;
    let batch = next_batch(&bytes, segment.header(), tail).map_err(|damage| damaged(&damage))?;
    let (header, header_crc) = (batch.header, batch.header_crc);
    Ok(StoredBatch {
        segment: Arc::clone(segment),
        at,
        header,
        header_crc,
        bytes,
    })
}

#[cfg(test)]
mod tests;
