//! The one writer of a log: reserves space and sequence for batches, rotates and seals segments,
//! and appends shipped bytes as they are.
//!
//! A leader's batch is appended in three steps. [`Writer::reserve`] runs inside a short critical
//! section: it gives the batch its place, its sequence and its header, so that log order is sequence
//! order and the chain is unbroken. [`Reservation::fill`] copies the payload outside of it.
//! [`Filled::publish`] makes it readable, in reservation order ([`crate::publish`]).
//!
//! A follower's writer only takes [`Writer::append_each`]: the layout of the log is the leader's
//! alone, so headers, offsets, seal points and footers come as they were written there. A follower that
//! is far behind is sent long pieces. A segment that begins with one is made of blocks that are not
//! written yet, and every piece goes to its file by one call: no zeros first, and no copy between.

use std::path::Path;
use std::sync::Arc;

use crate::batch::{BatchHeader, HEADER_LEN, PAYLOAD_LEN_MAX, SealedPayload, VERSION};
use crate::error::{IoContext, Result};
use crate::ids::{Epoch, Hlc, Position};
use crate::io::map::Slot;
use crate::io::{File, Image, write_all_at};
use crate::log::{Log, Progress, Sealed, Segment};
use crate::pool::{Blocks, Pool, Prepared};
use crate::segment::{
    CAPACITY_MIN, Footer, INDEX_STEP, SEGMENT_HEADER_LEN, SEGMENT_LEN_MAX, SegmentHeader, path_of,
};

mod shipped;
#[cfg(test)]
pub(crate) mod tests;

pub use shipped::{Appended, Shipped};

/// Which memory face growing segments have.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Face {
    /// Memory of our own, written to the file by whoever syncs.
    #[default]
    Written,
    /// Pages of the file itself: what is published has reached the operating system.
    Mapped,
}

impl Face {
    /// The memory of a segment whose file has at least `capacity` bytes.
    pub(crate) fn image(self, file: &dyn File, capacity: u64, path: &Path) -> Result<Image> {
        let capacity = usize::try_from(capacity).expect("a segment fits in memory");
        if self == Face::Mapped
            && let Some(image) = file.image(capacity).during("map", path)?
        {
            return Ok(image);
        }
        Image::private(capacity).during("allocate an image for", path)
    }
}

/// How segments are laid out.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// Memory face of growing segments.
    pub face: Face,
    /// Capacity of the first segment, in bytes.
    pub capacity_start: u64,
    /// Capacity that a busy log's segments double up to, in bytes.
    pub capacity_max: u64,
}

/// A segment that fills faster than this makes the next one twice as large.
const BUSY_NS: u64 = 1_000_000_000;
/// Whoever hashes behind the appends is called after so many bytes.
const DIGEST_STEP: usize = 1 << 20;
/// Where so many bytes wait to be hashed, the writer does it.
const DIGEST_BEHIND_MAX: usize = 4 << 20;

// Every batch fits a segment.
const _: () =
    assert!((SEGMENT_HEADER_LEN + HEADER_LEN + PAYLOAD_LEN_MAX) as u64 <= SEGMENT_LEN_MAX);

/// Where a log's next batch goes, and what it continues.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tail {
    /// Sequence of the next record.
    pub next_seq: u64,
    /// `header_crc` of the last batch.
    pub chain: u32,
    /// Digest of the last sealed segment.
    pub prev_digest: [u8; 32],
    /// Leadership of the last batch.
    pub epoch: Epoch,
    /// Version of the last batch.
    pub timestamp: Hlc,
}

impl Default for Tail {
    /// The tail of a log that has nothing yet.
    fn default() -> Tail {
        Tail {
            next_seq: 1,
            chain: 0,
            prev_digest: [0; 32],
            epoch: Epoch(0),
            timestamp: Hlc(0),
        }
    }
}

/// The writer of one log.
pub struct Writer {
    log: Arc<Log>,
    pool: Arc<Pool>,
    options: WriterOptions,
    lineage: [u8; 16],
    tail: Tail,
    active: Option<Active>,
    capacity_next: u64,
    /// The batches of the piece that is being appended, kept for its memory.
    found: Vec<(u64, BatchHeader, u32)>,
}

/// The growing segment and what its footer will say.
pub(crate) struct Active {
    pub segment: Arc<Segment>,
    pub image: Arc<Image>,
    pub summary: Summary,
    /// Where someone is called to hash what was appended.
    pub hash_at: usize,
    /// Whether the next segment was ordered.
    pub is_ordered: bool,
    pub opened_ns: u64,
    pub blocks: Blocks,
    /// Short pieces in a row, while the blocks are unwritten.
    pub short_count: u32,
}

/// The running part of a footer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Summary {
    pub batch_count: u64,
    pub first_timestamp: Hlc,
    pub index: Vec<(u64, u64)>,
}

impl Summary {
    pub(crate) fn note(&mut self, header: &BatchHeader, at: u64) {
        if self.batch_count == 0 {
            self.first_timestamp = header.timestamp;
        }
        self.batch_count += 1;
        let step = at / INDEX_STEP;
        if self
            .index
            .last()
            .is_none_or(|(_, last)| last / INDEX_STEP < step)
        {
            self.index.push((header.first_seq, at));
        }
    }
}

/// A batch's place in the log, header written, payload not yet.
#[must_use = "a reserved batch must be filled and published"]
pub struct Reservation {
    segment: Arc<Segment>,
    slot: Slot,
    header: [u8; HEADER_LEN],
    first_seq: u64,
    last_seq: u64,
}

/// A batch whose bytes are in place.
#[must_use = "a filled batch must be published"]
pub struct Filled {
    segment: Arc<Segment>,
    end: usize,
    last_seq: u64,
}

impl Reservation {
    /// Sequence of the first record.
    pub fn first_seq(&self) -> u64 {
        self.first_seq
    }

    /// Sequence of the last record.
    pub fn last_seq(&self) -> u64 {
        self.last_seq
    }

    /// The segment it lies in.
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }

    /// Offset of the payload in the segment.
    pub fn payload_at(&self) -> u32 {
        let at = self.slot.at() + HEADER_LEN;
        u32::try_from(at).expect("a segment is shorter than 4 GiB")
    }

    /// Copies the payload in.
    pub fn fill(mut self, payload: &SealedPayload) -> Filled {
        let end = self.slot.end();
        let bytes = self.slot.bytes_mut();
        bytes[HEADER_LEN..].copy_from_slice(payload.bytes());
        bytes[..HEADER_LEN].copy_from_slice(&self.header);
        Filled {
            segment: self.segment,
            end,
            last_seq: self.last_seq,
        }
    }
}

impl Filled {
    /// Makes the batch readable. Call it in reservation order.
    pub fn publish(self) {
        self.segment.publish(self.end, self.last_seq);
    }
}

impl Writer {
    pub(crate) fn new(
        log: Arc<Log>,
        pool: Arc<Pool>,
        options: WriterOptions,
        lineage: [u8; 16],
        tail: Tail,
        active: Option<Active>,
    ) -> Writer {
        let capacity_next = options.capacity_start.max(CAPACITY_MIN);
        Writer {
            log,
            pool,
            options,
            lineage,
            tail,
            active,
            capacity_next,
            found: Vec::new(),
        }
    }

    /// The log it writes.
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// What the next batch continues.
    pub fn tail(&self) -> &Tail {
        &self.tail
    }

    /// Where the log ends, for whoever ships to it or from it.
    pub fn position(&self) -> Position {
        Position {
            epoch: self.tail.epoch,
            seq: self.tail.next_seq - 1,
        }
    }

    /// Starts an epoch: seals the growing segment, so that the epoch starts a new one. The caller
    /// appends the epoch-start batch next.
    ///
    /// # Errors
    /// The disk's.
    ///
    /// # Panics
    /// Where the epoch does not rise.
    pub fn start_epoch(&mut self, epoch: Epoch) -> Result<()> {
        assert!(
            epoch > self.tail.epoch,
            "epoch {epoch} does not follow {}",
            self.tail.epoch
        );
        self.log.check()?;
        self.seal()?;
        self.tail.epoch = epoch;
        Ok(())
    }

    /// Seals the growing segment where it is far longer than what a log begins with, and returns whether it
    /// did: the next batch begins such a short one. Only for a leader.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it.
    pub fn begin_small(&mut self) -> Result<bool> {
        let start = self.options.capacity_start.max(CAPACITY_MIN);
        let is_long = |active: &Active| active.image.len() as u64 > 2 * start;
        if !self.active.as_ref().is_some_and(is_long) {
            return Ok(false);
        }
        self.log.check()?;
        self.seal()?;
        self.capacity_next = start;
        Ok(true)
    }

    /// Gives a batch its place, its sequence and its header. `timestamp` must rise; `ordinal` is the
    /// low end of the dataset's commit count.
    ///
    /// # Errors
    /// The disk's where a new segment is needed and cannot be made: nothing changed then, and a later
    /// call may succeed.
    ///
    /// # Panics
    /// Before [`Writer::start_epoch`], and where `timestamp` does not rise.
    pub fn reserve(
        &mut self,
        payload: &SealedPayload,
        timestamp: Hlc,
        ordinal: u16,
    ) -> Result<Reservation> {
        assert!(self.tail.epoch > Epoch(0), "an epoch is open");
        assert!(timestamp > self.tail.timestamp, "timestamps rise");
        self.log.check()?;
        let batch_len = HEADER_LEN + payload.bytes().len();
        self.make_room(batch_len, timestamp)?;
        let synced_seq = self.log.synced_seq();
        let log_id = self.log.id();
        let (shard, region) = (log_id.shard, log_id.region);
        let active = self.active.as_mut().expect("room was made");
        let first_seq = self.tail.next_seq;
        let header = BatchHeader {
            version: VERSION,
            flags: payload.flags(),
            first_seq,
            record_count: payload.record_count(),
            payload_len: payload.bytes().len() as u32,
            unsynced: u32::try_from(first_seq - synced_seq.min(first_seq)).unwrap_or(u32::MAX),
            epoch: self.tail.epoch,
            timestamp,
            nonce: active.segment.header().nonce,
            prev_crc: self.tail.chain,
            payload_crc: payload.crc(),
            ordinal,
            shard,
            region,
        };
        let (bytes, crc) = header.encode();
        let slot = active.image.reserve(batch_len).expect("room was made");
        active.summary.note(&header, slot.at() as u64);
        self.tail.next_seq = header.last_seq() + 1;
        self.tail.chain = crc;
        self.tail.timestamp = timestamp;
        let segment = Arc::clone(&active.segment);
        self.look_ahead(slot.end());
        Ok(Reservation {
            segment,
            slot,
            header: bytes,
            first_seq,
            last_seq: header.last_seq(),
        })
    }

    /// Has the next segment made while the growing one, filled up to `end`, still takes batches.
    fn look_ahead(&mut self, end: usize) {
        let active = self.active.as_mut().expect("something was reserved in it");
        active.hash_step(&self.pool);
        if active.is_ordered || end < active.image.len() / 2 {
            return;
        }
        active.is_ordered = true;
        let now_ns = self.log.env().clock.mono_ns();
        if now_ns.saturating_sub(active.opened_ns) < BUSY_NS / 2 {
            let capacity = self.doubled();
            self.pool.order(self.log.dir(), capacity, self.options.face);
        }
    }

    /// The capacity of the segment after the growing one, if that fills quickly.
    fn doubled(&self) -> u64 {
        let max = self.options.capacity_max.max(CAPACITY_MIN);
        (self.capacity_next * 2).min(max)
    }

    /// Makes sure that the growing segment takes `batch_len` more bytes.
    fn make_room(&mut self, batch_len: usize, now: Hlc) -> Result<()> {
        if let Some(active) = &self.active
            && active.image.len() - active.image.reserved_len() >= batch_len
        {
            return Ok(());
        }
        let needed = (SEGMENT_HEADER_LEN + batch_len) as u64;
        let now_ns = self.log.env().clock.mono_ns();
        if let Some(active) = &self.active
            && now_ns.saturating_sub(active.opened_ns) < BUSY_NS
        {
            self.capacity_next = self.doubled();
        }
        // The file is made before the old segment is sealed: a full disk leaves the log as it was.
        let capacity = self.capacity_next.max(needed.next_multiple_of(4096));
        let prepared = self.prepare(capacity, needed)?;
        self.seal()?;
        let header = SegmentHeader {
            log: self.log.id().clone(),
            first_seq: self.tail.next_seq,
            created: now,
            nonce: nonzero(self.log.env().random.next_u64() as u32),
            epoch: self.tail.epoch,
            lineage: self.lineage,
            prev_crc: self.tail.chain,
            capacity: prepared.capacity,
            prev_digest: self.tail.prev_digest,
        };
        self.open_segment(header, prepared)
    }

    /// A file with `capacity` allocated bytes, or less on a nearly full disk, but at least `needed`.
    fn prepare(&self, capacity: u64, needed: u64) -> Result<Prepared> {
        let mut capacity = capacity;
        loop {
            match self.pool.take(self.log.dir(), capacity, needed) {
                Ok(prepared) => return Ok(prepared),
                Err(error) if error.is_no_space() && capacity / 2 >= needed.max(CAPACITY_MIN) => {
                    capacity /= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives a prepared file its name and its header, and goes on in it.
    fn open_segment(&mut self, header: SegmentHeader, prepared: Prepared) -> Result<()> {
        let env = self.log.env();
        let path = path_of(self.log.dir(), header.log.shard, header.first_seq);
        let (file, blocks) = (prepared.file, prepared.blocks);
        let poison = |error| self.log.poison(error);
        let bytes = header.encode();
        if blocks == Blocks::Unwritten
            && let Err(error) = write_all_at(file.as_ref(), &bytes, 0)
        {
            // The first failure is the one to report; the file is removed at the next open anyway.
            let _ = env.disk.remove(&prepared.path);
            return Err(error).during("write", &prepared.path);
        }
        env.disk
            .rename(&prepared.path, &path)
            .during("rename", &prepared.path)
            .map_err(poison)?;
        let image = match prepared.image {
            Some(image) => Ok(image),
            None => self
                .options
                .face
                .image(file.as_ref(), prepared.capacity, &path),
        };
        let image = Arc::new(image.map_err(poison)?);
        let end = match blocks {
            Blocks::Zeros => image.append(&bytes),
            Blocks::Unwritten => image.take_up(&bytes),
        };
        image.publish(end.expect("a segment has room for its header"));
        let progress = Progress {
            written: 0,
            synced: 0,
            name_synced: false,
            last_seq: header.first_seq - 1,
        };
        let segment = Segment::growing(header, path, file, Arc::clone(&image), progress);
        let segment = Arc::new(segment);
        segment.hash_known(&bytes, 0);
        self.log.add(Arc::clone(&segment));
        self.active = Some(Active {
            segment,
            image,
            summary: Summary::default(),
            hash_at: DIGEST_STEP,
            is_ordered: false,
            opened_ns: env.clock.mono_ns(),
            blocks,
            short_count: 0,
        });
        Ok(())
    }

    /// Seals the growing segment, if there is one. All its reservations must be on their way to being
    /// published: the call waits for them.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it.
    pub fn seal(&mut self) -> Result<()> {
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        while active.image.published_len() < active.image.reserved_len() {
            std::thread::yield_now();
        }
        if active.summary.batch_count == 0 {
            return self.forget_empty(&active);
        }
        let footer = active.footer(&self.tail);
        let bytes = footer.encode(active.segment.header().nonce);
        self.finish(active, Sealed { footer, bytes })
    }

    fn finish(&mut self, active: Active, sealed: Sealed) -> Result<()> {
        let digest = sealed.footer.digest;
        active
            .segment
            .seal(sealed)
            .map_err(|error| self.log.poison(error))?;
        self.tail.prev_digest = digest;
        active.segment.leave_image();
        Ok(())
    }

    /// Removes a segment that has no batch, name and all: nothing was ever written to it. Where it
    /// alone tells where the log goes on, the next one takes its name.
    fn forget_empty(&self, active: &Active) -> Result<()> {
        self.log.forget(&active.segment);
        let path = active.segment.path();
        if self.log.last_seq() + 1 != active.segment.first_seq() {
            return Ok(());
        }
        self.log.env().disk.remove(path).during("remove", path)
    }
}

impl Active {
    /// Calls someone to hash what was appended, or does it where nobody keeps up.
    fn hash_step(&mut self, pool: &Pool) {
        let end = self.image.published_len();
        if end < self.hash_at {
            return;
        }
        self.hash_at = end + DIGEST_STEP;
        // Others publish and hash meanwhile, beyond what was published a moment ago.
        if end.saturating_sub(self.segment.hashed_len()) >= DIGEST_BEHIND_MAX {
            self.segment.hash_to(end);
        } else {
            pool.wake();
        }
    }

    /// The footer of the segment as it stands; everything reserved is published.
    fn footer(&self, tail: &Tail) -> Footer {
        let data_len = self.image.published_len();
        Footer {
            first_seq: self.segment.first_seq(),
            last_seq: tail.next_seq - 1,
            batch_count: self.summary.batch_count,
            data_len: data_len as u64,
            first_timestamp: self.summary.first_timestamp,
            last_timestamp: tail.timestamp,
            last_epoch: tail.epoch,
            chain: tail.chain,
            digest: self.segment.digest_of(data_len),
            index: self.summary.index.clone(),
        }
    }
}

fn nonzero(nonce: u32) -> u32 {
    nonce.max(1)
}
