//! The follower's half of the writer: shipped bytes are checked and appended as they are.

use std::sync::Arc;

use super::{Active, Writer};
use crate::batch::{Batch, BatchHeader, HEADER_LEN};
use crate::bug::planted;
use crate::error::{Error, IoContext, Result};
use crate::ids::Position;
use crate::log::{Sealed, Segment};
use crate::pool::Blocks;
use crate::segment::{Footer, SEGMENT_HEADER_LEN, SegmentHeader, path_of};

/// A shipped piece of so many bytes, or of half a segment, says that there are more: the leader was that
/// far ahead.
const LONG_LEN: u64 = 128 << 10;
/// After so many shorter pieces in a row the follower is no longer behind, and its syncs are short.
const SHORT_COUNT_MAX: u32 = 64;

/// A batch that a leader shipped and that was appended.
pub struct Shipped<'a> {
    /// The segment that it lies in.
    pub segment: &'a Arc<Segment>,
    /// Offset of its header in the segment.
    pub at: u64,
    /// The batch, as it was checked.
    pub batch: Batch<'a>,
}

/// What a call of [`Writer::append_each`] added.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Appended {
    /// The segment.
    pub segment: u64,
    /// Offset of the first new batch.
    pub at: u64,
    /// Offset behind the last one. What was shipped beyond is an incomplete batch: ship it again.
    pub end: u64,
    /// Where the log now ends.
    pub position: Position,
}

impl Writer {
    /// As [`Writer::append_each`], for who does nothing with the batches.
    ///
    /// # Errors
    /// As [`Writer::append_each`].
    pub fn append_verbatim(
        &mut self,
        segment_first_seq: u64,
        at: u64,
        bytes: &[u8],
    ) -> Result<Appended> {
        self.append_each(segment_first_seq, at, bytes, |_| {})
    }

    /// Appends what a leader shipped: bytes of the segment that starts with `segment_first_seq`,
    /// from offset `at` on. A segment's first bytes are its header. Stops at the last whole batch.
    /// What lies before this log's end is skipped: frames may come twice. Calls `each` for every batch
    /// that was appended, once all of them are readable.
    ///
    /// # Errors
    /// [`Error::Refused`] where the bytes do not continue this log, [`Error::Corrupt`] where they are
    /// damaged: nothing of the bad batch was kept in both cases. The disk's otherwise.
    pub fn append_each(
        &mut self,
        segment_first_seq: u64,
        at: u64,
        bytes: &[u8],
        mut each: impl FnMut(Shipped<'_>),
    ) -> Result<Appended> {
        self.log.check()?;
        if at == 0 && self.is_new(segment_first_seq) {
            let header = bytes.get(..SEGMENT_HEADER_LEN).ok_or_else(|| {
                self.refused(
                    "segment header",
                    "512 bytes",
                    format!("{} bytes", bytes.len()),
                )
            })?;
            self.open_shipped(header, segment_first_seq, bytes.len())?;
        }
        let Some(active) = &self.active else {
            let found = format!("bytes of segment {segment_first_seq}");
            return Err(self.refused("segment", "the header of the next one", found));
        };
        let start = active.image.reserved_len() as u64;
        if active.segment.first_seq() != segment_first_seq || at > start {
            let expected = format!("segment {} from byte {start}", active.segment.first_seq());
            let found = format!("segment {segment_first_seq} from byte {at}");
            return Err(self.refused("place", expected, found));
        }
        let known = usize::try_from(start - at)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let bytes = &bytes[known..];
        let start = at + known as u64;
        let segment = Arc::clone(&active.segment);
        let before = self.tail.clone();
        let mut found = std::mem::take(&mut self.found);
        let (len, checked) = self.check_piece(bytes, start, &mut found);
        if len > 0 {
            let written = self.append_checked(&bytes[..len], start, &found);
            if written.is_err() {
                self.tail = before;
            }
            written?;
        }
        for (at, header, header_crc) in found.drain(..) {
            let from = (at - start) as usize;
            let payload = &bytes[from + HEADER_LEN..from + header.batch_len()];
            each(Shipped {
                segment: &segment,
                at,
                batch: Batch {
                    header,
                    header_crc,
                    payload,
                },
            });
        }
        self.found = found;
        checked?;
        Ok(Appended {
            segment: segment_first_seq,
            at: start,
            end: start + len as u64,
            position: self.position(),
        })
    }

    /// Finds the batches at the head of a piece that continue the log, and moves the tail behind them.
    /// Returns how long they are, and what is wrong with the one behind.
    fn check_piece(
        &mut self,
        bytes: &[u8],
        start: u64,
        found: &mut Vec<(u64, BatchHeader, u32)>,
    ) -> (usize, Result<()>) {
        let mut len = 0;
        while let Some(header) = bytes[len..].first_chunk::<HEADER_LEN>() {
            let at = start + len as u64;
            let batch = match self.check_batch(header, &bytes[len..], at) {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(error) => return (len, Err(error)),
            };
            self.tail.next_seq = batch.header.last_seq() + 1;
            self.tail.chain = batch.header_crc;
            self.tail.epoch = batch.header.epoch;
            self.tail.timestamp = batch.header.timestamp;
            found.push((at, batch.header, batch.header_crc));
            len += batch.header.batch_len();
        }
        (len, Ok(()))
    }

    /// The batch at the head of `bytes`, which stand at `at`; `None` where its end is not there.
    fn check_batch<'a>(
        &self,
        header: &[u8; HEADER_LEN],
        bytes: &'a [u8],
        at: u64,
    ) -> Result<Option<Batch<'a>>> {
        let damaged = |damage| {
            let active = self.active.as_ref().expect("a segment is open");
            let path = active.segment.path();
            Error::corrupt(path, at, "shipped batch", "an intact batch", damage)
        };
        let (header, header_crc) = BatchHeader::decode(header).map_err(damaged)?;
        self.check_continues(&header, at)?;
        if bytes.len() < header.batch_len() {
            return Ok(None);
        }
        let batch = Batch::behind(header, header_crc, bytes);
        batch.map(Some).map_err(damaged)
    }

    fn is_new(&self, first_seq: u64) -> bool {
        self.active
            .as_ref()
            .is_none_or(|active| active.segment.first_seq() != first_seq)
    }

    /// Starts the segment whose header was shipped.
    fn open_shipped(&mut self, header: &[u8], first_seq: u64, piece_len: usize) -> Result<()> {
        if let Some(active) = &self.active {
            let expected = format!("the footer of segment {}", active.segment.first_seq());
            return Err(self.refused("segment", expected, format!("segment {first_seq}")));
        }
        let path = path_of(self.log.dir(), self.log.id().shard, first_seq);
        let header = SegmentHeader::decode(header, &path)?;
        let rules = [
            (
                "log",
                header.log == *self.log.id(),
                self.log.id().to_string(),
                header.log.to_string(),
            ),
            (
                "lineage",
                header.lineage == self.lineage,
                hex(&self.lineage),
                hex(&header.lineage),
            ),
            (
                "first sequence",
                header.first_seq == self.tail.next_seq && header.first_seq == first_seq,
                self.tail.next_seq.to_string(),
                header.first_seq.to_string(),
            ),
            (
                "chain value",
                header.prev_crc == self.tail.chain || planted("shipped.prev_crc"),
                format!("{:#010x}", self.tail.chain),
                format!("{:#010x}", header.prev_crc),
            ),
            (
                "digest of the segment before",
                header.prev_digest == self.tail.prev_digest || planted("shipped.prev_digest"),
                hex(&self.tail.prev_digest),
                hex(&header.prev_digest),
            ),
            (
                "epoch",
                header.epoch >= self.tail.epoch || planted("shipped.older_epoch"),
                format!("{} or later", self.tail.epoch),
                header.epoch.to_string(),
            ),
        ];
        if let Some((what, _, expected, found)) = rules.into_iter().find(|(_, holds, ..)| !holds) {
            return Err(self.refused(what, expected, found));
        }
        let (dir, capacity) = (self.log.dir(), header.capacity);
        let unwritten = match is_long(piece_len, capacity) {
            true => self.pool.take_unwritten(dir, capacity)?,
            false => None,
        };
        let prepared = match unwritten {
            Some(prepared) => prepared,
            None => self.pool.take_exact(dir, capacity)?,
        };
        self.open_segment(header, prepared)?;
        // A leader that fills it quickly doubles it, as one here would.
        self.capacity_next = capacity;
        Ok(())
    }

    /// Whether a shipped batch is the next one of this log.
    fn check_continues(&self, header: &BatchHeader, at: u64) -> Result<()> {
        let active = self.active.as_ref().expect("a segment is open");
        let segment = active.segment.header();
        let room = active.image.len() - at as usize;
        let (log, place) = (self.log.id(), (header.region, header.shard));
        let rules = [
            (
                "sequence",
                header.first_seq == self.tail.next_seq,
                self.tail.next_seq,
                header.first_seq,
            ),
            (
                "nonce",
                header.nonce == segment.nonce || planted("shipped.nonce"),
                segment.nonce.into(),
                header.nonce.into(),
            ),
            (
                "chain value",
                header.prev_crc == self.tail.chain || planted("shipped.chain"),
                self.tail.chain.into(),
                header.prev_crc.into(),
            ),
            (
                "epoch",
                header.epoch == segment.epoch || planted("shipped.epoch"),
                segment.epoch.0.into(),
                header.epoch.0.into(),
            ),
            (
                "shard",
                place == (log.region, log.shard),
                log.shard.0.into(),
                header.shard.0.into(),
            ),
            (
                "timestamp",
                header.timestamp > self.tail.timestamp,
                self.tail.timestamp.0.saturating_add(1),
                header.timestamp.0,
            ),
            (
                "length",
                header.batch_len() <= room,
                room as u64,
                header.batch_len() as u64,
            ),
        ];
        match rules.into_iter().find(|(_, holds, ..)| !holds) {
            None => Ok(()),
            Some((what, _, expected, found)) => {
                Err(self.refused(what, expected.to_string(), found.to_string()))
            }
        }
    }

    /// Appends whole batches that were checked, and makes them readable.
    fn append_checked(
        &mut self,
        bytes: &[u8],
        start: u64,
        found: &[(u64, BatchHeader, u32)],
    ) -> Result<()> {
        let active = self.active.as_mut().expect("a segment is open");
        let end = match active.blocks {
            Blocks::Zeros => active.image.append(bytes),
            Blocks::Unwritten => {
                let written = active.segment.write_behind(bytes, start);
                let written = written.during("write", active.segment.path());
                // Whatever of it is there stands behind the log's end, where it is written again.
                written.map_err(|error| match error.is_no_space() {
                    true => error,
                    false => self.log.poison(error),
                })?;
                active.image.take_up(bytes)
            }
        };
        let end = end.expect("room was checked");
        for (at, header, _) in found {
            active.summary.note(header, *at);
        }
        active.segment.publish(end, self.tail.next_seq - 1);
        match active.blocks {
            Blocks::Zeros => self.look_ahead(end),
            Blocks::Unwritten => active.note_piece(bytes.len()),
        }
        Ok(())
    }

    /// Seals the growing segment with the footer that the leader wrote.
    ///
    /// # Errors
    /// [`Error::Refused`] where it is not the footer of exactly these bytes; the disk's otherwise.
    pub fn seal_verbatim(&mut self, segment_first_seq: u64, bytes: &[u8]) -> Result<()> {
        self.log.check()?;
        if self.is_new(segment_first_seq) {
            let already = self
                .log
                .segment(segment_first_seq)
                .is_some_and(|s| s.sealed().is_some());
            return match already {
                true => Ok(()),
                false => {
                    let found = format!("the footer of segment {segment_first_seq}");
                    Err(self.refused("segment", "the growing one", found))
                }
            };
        }
        let active = self.active.as_mut().expect("it is not new");
        let ours = active.footer(&self.tail);
        let nonce = active.segment.header().nonce;
        let theirs = Footer::decode(bytes, nonce, ours.data_len, active.segment.path())?;
        if theirs != ours && !planted("shipped.footer") {
            let (expected, found) = (describe(&ours), describe(&theirs));
            return Err(self.refused("footer", expected, found));
        }
        let active = self.active.take().expect("it is not new");
        self.finish(
            active,
            Sealed {
                footer: theirs,
                bytes: bytes.to_vec(),
            },
        )
    }

    /// Whether shipped bytes go to the growing segment's file by calls, as long pieces do.
    pub fn is_by_call(&self) -> bool {
        self.active
            .as_ref()
            .is_some_and(|active| active.blocks == Blocks::Unwritten)
    }

    /// Where the next shipped bytes must start: (segment, offset), or `None` where a new segment
    /// must come first.
    pub fn growing(&self) -> Option<(u64, u64)> {
        self.active.as_ref().map(|active| {
            (
                active.segment.first_seq(),
                active.image.reserved_len() as u64,
            )
        })
    }

    fn refused(
        &self,
        what: &'static str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Error {
        Error::Refused {
            log: Box::new(self.log.id().clone()),
            at: self.position(),
            what,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

impl Active {
    /// Has the rest of unwritten blocks written once pieces are short: each sync of one would have the
    /// file system note which blocks were written, and so take longer.
    fn note_piece(&mut self, len: usize) {
        // Once is enough.
        if self.short_count == SHORT_COUNT_MAX {
            return;
        }
        self.short_count = match is_long(len, self.segment.header().capacity) {
            true => 0,
            false => self.short_count + 1,
        };
        if self.short_count == SHORT_COUNT_MAX {
            // Where that fails nothing is lost but time: the blocks are the file's either way.
            let _ = self.segment.write_zeros(self.image.reserved_len() as u64);
        }
    }
}

fn is_long(piece_len: usize, capacity: u64) -> bool {
    piece_len as u64 >= LONG_LEN.min(capacity / 2)
}

fn describe(footer: &Footer) -> String {
    format!(
        "records to {} with digest {}",
        footer.last_seq,
        hex(&footer.digest)
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests;
