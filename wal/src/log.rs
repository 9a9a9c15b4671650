//! One log: a directory's segments of one shard, with what of them is written, synced and readable.
//!
//! The [`Writer`](crate::writer::Writer) alone adds to it; everyone else reads. A segment's bytes are
//! read from its image while it grows and from the file once it is sealed.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::bug::planted;
use crate::error::{Error, IoContext, Result};
use crate::ids::LogId;
use crate::io::{Env, File, Image, Map, read_exact_at, write_all_at};
use crate::segment::{Footer, SegmentHeader};
use crate::unless;

/// Values at least so long begin in units of their own.
const CHECKED_UNIT: usize = 512;
/// Bytes that are hashed at once behind the appends.
const HASH_STEP: usize = 256 << 10;

/// Bytes of a segment that stay valid as long as this value lives.
#[derive(Clone)]
pub struct SegmentBytes {
    owner: Owner,
    at: usize,
    len: usize,
}

#[derive(Clone)]
enum Owner {
    Image(Arc<Image>),
    Map(Map),
    Copy(Arc<[u8]>),
}

impl SegmentBytes {
    /// A part of these bytes; `None` where it does not lie within.
    pub fn slice(&self, at: usize, len: usize) -> Option<SegmentBytes> {
        let end = at.checked_add(len)?;
        (end <= self.len).then(|| SegmentBytes {
            owner: self.owner.clone(),
            at: self.at + at,
            len,
        })
    }
}

impl Deref for SegmentBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.owner {
            Owner::Image(image) => image
                .read(self.at, self.len)
                .expect("published when the bytes were taken"),
            Owner::Map(map) => &map[self.at..self.at + self.len],
            Owner::Copy(bytes) => &bytes[self.at..self.at + self.len],
        }
    }
}

/// One segment of an open log.
pub struct Segment {
    header: SegmentHeader,
    path: PathBuf,
    file: Arc<dyn File>,
    body: RwLock<Body>,
    /// Bytes handed to the file. Held while writing, so that bytes go out once and in order.
    written: Mutex<u64>,
    synced: AtomicU64,
    name_synced: AtomicBool,
    /// Sequence of the last published record, `first_seq - 1` before the first.
    last_seq: AtomicU64,
    sealed: OnceLock<Sealed>,
    digest: Mutex<Digest>,
    /// Values whose checksums were right in the image, and in the file.
    checked: [Checked; 2],
}

/// Which values of a segment were checked, by the [`CHECKED_UNIT`] that they begin in.
#[derive(Default)]
struct Checked(OnceLock<Box<[AtomicU64]>>);

impl Checked {
    /// The word and the bit of a value. None of a small one: two might begin in one unit.
    fn place(at: usize, len: usize) -> Option<(usize, u64)> {
        let unit = at / CHECKED_UNIT;
        (len >= CHECKED_UNIT).then_some((unit / 64, 1 << (unit % 64)))
    }

    fn has(&self, at: usize, len: usize) -> bool {
        let found = Checked::place(at, len).zip(self.0.get());
        found.is_some_and(|((word, bit), words)| {
            let word = words.get(word);
            word.is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        })
    }

    fn forget(&self) {
        for word in self.0.get().into_iter().flatten() {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Notes a value of a segment of `file_len` bytes.
    fn note(&self, at: usize, len: usize, file_len: u64) {
        if let Some((word, bit)) = Checked::place(at, len) {
            let unit_count = file_len as usize / CHECKED_UNIT + 1;
            let new = || {
                (0..unit_count.div_ceil(64))
                    .map(|_| AtomicU64::new(0))
                    .collect()
            };
            // A crafted header may say that the file is shorter than it is.
            if let Some(word) = self.0.get_or_init(new).get(word) {
                word.fetch_or(bit, Ordering::Relaxed);
            }
        }
    }
}

/// The digest of what was appended so far, computed behind the appends.
#[derive(Default)]
struct Digest {
    hasher: blake3::Hasher,
    len: usize,
}

/// A segment's end.
pub struct Sealed {
    /// What the footer says.
    pub footer: Footer,
    /// Its stored bytes, shipped as they are.
    pub bytes: Vec<u8>,
}

enum Body {
    Image(Arc<Image>),
    Map(Map),
    /// Read call by call: the disk has no maps, or the file is not mapped yet.
    File,
}

impl Segment {
    /// A growing segment over its image. `written` and `synced` tell what the file already has.
    pub(crate) fn growing(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn File>,
        image: Arc<Image>,
        end: Progress,
    ) -> Segment {
        Segment {
            header,
            path,
            file,
            body: RwLock::new(Body::Image(image)),
            written: Mutex::new(end.written),
            synced: AtomicU64::new(end.synced),
            name_synced: AtomicBool::new(end.name_synced),
            last_seq: AtomicU64::new(end.last_seq),
            sealed: OnceLock::new(),
            digest: Mutex::default(),
            checked: Default::default(),
        }
    }

    /// A sealed, synced segment found at open.
    pub(crate) fn found(
        header: SegmentHeader,
        path: PathBuf,
        file: Arc<dyn File>,
        sealed: Sealed,
    ) -> Segment {
        let len = sealed.footer.data_len + sealed.bytes.len() as u64;
        Segment {
            header,
            path,
            file,
            body: RwLock::new(Body::File),
            written: Mutex::new(len),
            synced: AtomicU64::new(len),
            name_synced: AtomicBool::new(true),
            last_seq: AtomicU64::new(sealed.footer.last_seq),
            sealed: OnceLock::from(sealed),
            digest: Mutex::default(),
            checked: Default::default(),
        }
    }

    /// What stands at its head.
    pub fn header(&self) -> &SegmentHeader {
        &self.header
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sequence of its first record.
    pub fn first_seq(&self) -> u64 {
        self.header.first_seq
    }

    /// Sequence of its last published record; `first_seq - 1` before the first.
    pub fn last_seq(&self) -> u64 {
        self.last_seq.load(Ordering::Acquire)
    }

    /// Its footer, once it is sealed.
    pub fn sealed(&self) -> Option<&Sealed> {
        self.sealed.get()
    }

    /// Bytes of header and published batches.
    pub fn data_len(&self) -> u64 {
        match self.sealed() {
            Some(sealed) => sealed.footer.data_len,
            None => match &*self.body.read() {
                Body::Image(image) => image.published_len() as u64,
                Body::Map(_) | Body::File => {
                    // It was sealed since that was looked at.
                    let sealed = self.sealed();
                    sealed
                        .expect("only a sealed segment leaves its image")
                        .footer
                        .data_len
                }
            },
        }
    }

    /// Bytes that its file takes.
    pub fn file_len(&self) -> u64 {
        match self.sealed() {
            Some(sealed) => sealed.footer.data_len + sealed.bytes.len() as u64,
            None => self.header.capacity,
        }
    }

    /// Published bytes `at..at + len`. Not checked against any checksum.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the segment does not have them, [`Error::Io`] where the disk fails.
    pub fn read(&self, at: u64, len: usize) -> Result<SegmentBytes> {
        let short = |found: u64| {
            let expected = format!("{len} bytes");
            Error::corrupt(
                &self.path,
                at,
                "range in segment",
                expected,
                format!("{found} in all"),
            )
        };
        let start = usize::try_from(at).map_err(|_| short(self.data_len()))?;
        let end = start
            .checked_add(len)
            .ok_or_else(|| short(self.data_len()))?;
        let owner = match &*self.body.read() {
            Body::Image(image) => {
                if image.read(start, len).is_none() {
                    return Err(short(image.published_len() as u64));
                }
                Owner::Image(Arc::clone(image))
            }
            Body::Map(map) if end <= map.len() => Owner::Map(map.clone()),
            Body::Map(map) => return Err(short(map.len() as u64)),
            Body::File => {
                if end as u64 > self.data_len() {
                    return Err(short(self.data_len()));
                }
                let mut bytes = vec![0; len];
                read_exact_at(self.file.as_ref(), &mut bytes, at).during("read", &self.path)?;
                return Ok(SegmentBytes {
                    owner: Owner::Copy(bytes.into()),
                    at: 0,
                    len,
                });
            }
        };
        Ok(SegmentBytes {
            owner,
            at: start,
            len,
        })
    }

    /// Everything that is published, where that takes no copy.
    pub fn whole(&self) -> Option<SegmentBytes> {
        let (owner, len) = match &*self.body.read() {
            Body::Image(image) => (Owner::Image(Arc::clone(image)), image.published_len()),
            Body::Map(map) => (Owner::Map(map.clone()), map.len()),
            Body::File => return None,
        };
        Some(SegmentBytes { owner, at: 0, len })
    }

    /// As [`Segment::read`], held against the CRC-32 of the bytes. Where they stay in memory that is done
    /// once.
    ///
    /// # Errors
    /// As [`Segment::read`], and [`Error::Corrupt`] where it is another one.
    pub fn read_checked(&self, at: u64, len: usize, crc: u32) -> Result<SegmentBytes> {
        let bytes = self.read(at, len)?;
        let checked = self.checked_of(&bytes);
        match checked.is_some_and(|checked| checked.has(bytes.at, len)) {
            true => Ok(bytes),
            false => self.compared(bytes, at, crc),
        }
    }

    /// As [`Segment::read_checked`], whatever was checked before, and a copy: for whoever stores the bytes
    /// under another checksum, which must be those that were checked.
    ///
    /// # Errors
    /// As [`Segment::read_checked`].
    pub fn read_compared(&self, at: u64, len: usize, crc: u32) -> Result<SegmentBytes> {
        let copy = SegmentBytes {
            owner: Owner::Copy(self.read(at, len)?.to_vec().into()),
            at: 0,
            len,
        };
        self.compared(copy, at, crc)
    }

    fn compared(&self, bytes: SegmentBytes, at: u64, crc: u32) -> Result<SegmentBytes> {
        let found = crc32fast::hash(&bytes);
        if found != crc && !planted("value.crc") {
            self.distrust();
            let (expected, found) = (format!("{crc:#010x}"), format!("{found:#010x}"));
            let what = "value checksum";
            return Err(Error::corrupt(&self.path, at, what, expected, found));
        }
        self.note_checked(&bytes);
        Ok(bytes)
    }

    /// From now on every value is checked again: some of the bytes are no longer what they were.
    pub fn distrust(&self) {
        if !planted("segment.distrust") {
            self.checked.iter().for_each(Checked::forget);
        }
    }

    fn note_checked(&self, bytes: &SegmentBytes) {
        if let Some(checked) = self.checked_of(bytes) {
            checked.note(bytes.at, bytes.len, self.file_len());
        }
    }

    /// As [`Segment::read`], with the CRC-32 of the bytes. Where they stay in memory, nobody need hold them
    /// against it again.
    ///
    /// # Errors
    /// As [`Segment::read`].
    pub fn read_hashed(&self, at: u64, len: usize) -> Result<(SegmentBytes, u32)> {
        let bytes = self.read(at, len)?;
        let crc = crc32fast::hash(&bytes);
        self.note_checked(&bytes);
        Ok((bytes, crc))
    }

    /// Where it is noted which of such bytes were checked; nowhere for a copy.
    fn checked_of(&self, bytes: &SegmentBytes) -> Option<&Checked> {
        match &bytes.owner {
            Owner::Image(_) => Some(&self.checked[0]),
            Owner::Map(_) => Some(&self.checked[1]),
            Owner::Copy(_) => None,
        }
    }

    pub(crate) fn image(&self) -> Option<Arc<Image>> {
        match &*self.body.read() {
            Body::Image(image) => Some(Arc::clone(image)),
            Body::Map(_) | Body::File => None,
        }
    }

    /// Makes batches up to `end` readable. Called in log order.
    pub(crate) fn publish(&self, end: usize, last_seq: u64) {
        let image = self.image().expect("a growing segment has an image");
        image.publish(end);
        let before = self.last_seq.swap(last_seq, Ordering::AcqRel);
        assert!(before < last_seq, "sequences rise");
    }

    /// Writes bytes behind all others to the file, and hashes them while they are at hand. They are not
    /// published.
    pub(crate) fn write_behind(&self, bytes: &[u8], at: u64) -> std::io::Result<()> {
        write_all_at(self.file.as_ref(), bytes, at)?;
        self.hash_known(bytes, at);
        Ok(())
    }

    /// Hashes bytes that are in the file at `at`, where they are the next ones to hash.
    pub(crate) fn hash_known(&self, bytes: &[u8], at: u64) {
        let mut digest = self.digest.lock();
        if digest.len as u64 == at {
            digest.hasher.update(bytes);
            digest.len += bytes.len();
        }
    }

    /// Makes its blocks behind the first `end` bytes zeros that were written.
    pub(crate) fn write_zeros(&self, end: u64) -> std::io::Result<()> {
        crate::pool::write_zeros(self.file.as_ref(), end, self.header.capacity)
    }

    /// How many of its bytes are hashed.
    pub(crate) fn hashed_len(&self) -> usize {
        self.digest.lock().len
    }

    /// Hashes the published bytes up to `end`.
    pub(crate) fn hash_to(&self, end: usize) {
        self.hash(&mut self.digest.lock(), end);
    }

    fn hash(&self, digest: &mut Digest, end: usize) {
        let Some(image) = self.image() else { return };
        let Some(rest) = end.checked_sub(digest.len) else {
            return;
        };
        let bytes = image.read(digest.len, rest).expect("published");
        digest.hasher.update(bytes);
        digest.len = end;
    }

    /// The digest of the first `len` bytes, all that are published.
    pub(crate) fn digest_of(&self, len: usize) -> [u8; 32] {
        let mut digest = self.digest.lock();
        self.hash(&mut digest, len);
        assert_eq!(digest.len, len, "nothing was hashed beyond the end");
        *digest.hasher.finalize().as_bytes()
    }

    /// Hands what is published and not yet written to the file.
    pub(crate) fn write_out(&self) -> Result<()> {
        let Some(image) = self.image() else {
            return Ok(());
        };
        let mut written = self.written.lock();
        let end = image.published_len();
        let start = usize::try_from(*written).expect("an image fits in memory");
        if start >= end {
            return Ok(());
        }
        if !image.is_shared() {
            let bytes = image.read(start, end - start).expect("published");
            write_all_at(self.file.as_ref(), bytes, *written).during("write", &self.path)?;
        }
        *written = end as u64;
        Ok(())
    }

    /// Writes out and syncs what is published; the directory too where the name is new.
    pub(crate) fn sync(&self, env: &Env) -> Result<()> {
        let end = self
            .sealed()
            .map_or_else(|| self.data_len(), |_| self.file_len());
        self.write_out()?;
        if self.synced.load(Ordering::Acquire) < end {
            unless!("segment.sync", self.file.sync()).during("sync", &self.path)?;
            self.synced.fetch_max(end, Ordering::AcqRel);
        }
        if !self.name_synced.load(Ordering::Acquire) {
            let dir = self.path.parent().expect("a segment lies in a directory");
            unless!("segment.name", env.disk.sync_dir(dir)).during("sync directory", dir)?;
            self.name_synced.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Whether it is sealed and everything in it is synced, its name included.
    pub fn is_settled(&self) -> bool {
        self.sealed().is_some()
            && self.synced.load(Ordering::Acquire) >= self.file_len()
            && self.name_synced.load(Ordering::Acquire)
    }

    /// Ends the segment: writes out the rest and the footer, and cuts the file behind it.
    pub(crate) fn seal(&self, sealed: Sealed) -> Result<()> {
        self.write_out()?;
        let at = sealed.footer.data_len;
        let end = at + sealed.bytes.len() as u64;
        assert!(
            end <= at + Footer::len_max(at),
            "the file was made with room for its footer"
        );
        write_all_at(self.file.as_ref(), &sealed.bytes, at).during("write", &self.path)?;
        unless!("segment.cut", self.file.set_len(end)).during("set length of", &self.path)?;
        *self.written.lock() = end;
        assert!(self.sealed.set(sealed).is_ok(), "a segment is sealed once");
        Ok(())
    }

    /// Gives up the image of a sealed segment: from now on the file is read. An image in pages of the file
    /// is that already, with every page at hand.
    pub(crate) fn leave_image(&self) {
        let Some(sealed) = self.sealed() else { return };
        if self.image().is_some_and(|image| image.is_file()) {
            return;
        }
        let data_len = usize::try_from(sealed.footer.data_len).expect("an image fits in memory");
        // No map is no failure: the file is then read call by call.
        let body = match self.file.map(data_len) {
            Ok(Some(map)) => Body::Map(map),
            Ok(None) | Err(_) => Body::File,
        };
        *self.body.write() = body;
    }

    /// Maps a sealed segment that was found at open, where the disk has maps.
    pub(crate) fn map(&self) {
        self.leave_image();
    }

    /// Takes apart a segment that was taken off its list, and tells whether nobody else holds it or
    /// bytes of it. The segment is looked at first: once it is ours alone, nobody can take bytes any
    /// more, and those that are out are seen.
    pub(crate) fn into_unpinned(self: Arc<Segment>) -> bool {
        let Some(segment) = Arc::into_inner(self) else {
            return false;
        };
        match segment.body.into_inner() {
            Body::Image(image) => Arc::into_inner(image).is_some(),
            Body::Map(map) => map.into_unshared(),
            Body::File => true,
        }
    }
}

/// How far a segment that goes on growing has come.
pub(crate) struct Progress {
    pub written: u64,
    pub synced: u64,
    pub name_synced: bool,
    pub last_seq: u64,
}

/// The segments of one shard, open.
pub struct Log {
    id: LogId,
    dir: PathBuf,
    env: Env,
    segments: RwLock<BTreeMap<u64, Arc<Segment>>>,
    /// Segments with something unsynced, oldest first.
    unsettled: Mutex<Vec<Arc<Segment>>>,
    /// Whether a segment was added whose published bytes must be written out.
    writes_out: AtomicBool,
    synced_seq: AtomicU64,
    failed: OnceLock<Arc<Error>>,
}

impl Log {
    pub(crate) fn new(id: LogId, dir: PathBuf, env: Env, synced_seq: u64) -> Log {
        Log {
            id,
            dir,
            env,
            segments: RwLock::default(),
            unsettled: Mutex::default(),
            writes_out: AtomicBool::new(false),
            synced_seq: AtomicU64::new(synced_seq),
            failed: OnceLock::new(),
        }
    }

    /// Which log it is.
    pub fn id(&self) -> &LogId {
        &self.id
    }

    /// The directory of its segments.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    /// All segments, oldest first.
    pub fn segments(&self) -> Vec<Arc<Segment>> {
        self.segments.read().values().cloned().collect()
    }

    /// The segment that starts with `first_seq`.
    pub fn segment(&self, first_seq: u64) -> Option<Arc<Segment>> {
        self.segments.read().get(&first_seq).cloned()
    }

    /// The segment that `seq` lies in or will lie in: the last one that starts at or before it.
    pub fn segment_of(&self, seq: u64) -> Option<Arc<Segment>> {
        self.segments
            .read()
            .range(..=seq)
            .next_back()
            .map(|(_, segment)| Arc::clone(segment))
    }

    /// The segment after the one that starts with `first_seq`.
    pub fn segment_after(&self, first_seq: u64) -> Option<Arc<Segment>> {
        self.segments
            .read()
            .range(first_seq + 1..)
            .next()
            .map(|(_, segment)| Arc::clone(segment))
    }

    /// Sequence of the last published record; 0 where there is none.
    pub fn last_seq(&self) -> u64 {
        self.segments
            .read()
            .values()
            .next_back()
            .map_or(0, |segment| segment.last_seq())
    }

    /// The highest sequence known to survive a crash.
    pub fn synced_seq(&self) -> u64 {
        self.synced_seq.load(Ordering::Acquire)
    }

    /// First sequence of the oldest segment.
    pub fn first_seq(&self) -> u64 {
        self.segments.read().keys().next().copied().unwrap_or(1)
    }

    /// Bytes that the log's files take.
    pub fn file_len(&self) -> u64 {
        self.segments
            .read()
            .values()
            .map(|segment| segment.file_len())
            .sum()
    }

    pub(crate) fn add(&self, segment: Arc<Segment>) {
        if segment.image().is_some_and(|image| !image.is_shared()) {
            self.writes_out.store(true, Ordering::Release);
        }
        if !segment.is_settled() {
            self.unsettled.lock().push(Arc::clone(&segment));
        }
        let before = self.segments.write().insert(segment.first_seq(), segment);
        assert!(before.is_none(), "segments do not overlap");
    }

    /// Takes a segment that never had a batch off the list.
    pub(crate) fn forget(&self, segment: &Arc<Segment>) {
        self.unsettled
            .lock()
            .retain(|other| !Arc::ptr_eq(other, segment));
        self.segments.write().remove(&segment.first_seq());
    }

    /// Hashes some of what was appended to the growing segment, so that sealing it does not have to.
    /// Returns whether there was enough for it to be worth a call.
    pub fn hash_step(&self) -> bool {
        let last = self.segments.read().values().next_back().cloned();
        let Some(segment) = last.filter(|segment| segment.sealed().is_none()) else {
            return false;
        };
        let Some(image) = segment.image() else {
            return false;
        };
        let start = segment.hashed_len();
        let end = image.published_len().min(start + HASH_STEP);
        if end < start + HASH_STEP {
            return false;
        }
        segment.hash_to(end);
        true
    }

    /// Whether what is published is with the operating system already: every image is the file itself.
    pub fn is_in_place(&self) -> bool {
        !self.writes_out.load(Ordering::Acquire)
    }

    /// Hands everything published to the operating system.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it.
    pub fn write_out(&self) -> Result<()> {
        self.check()?;
        let unsettled = self.unsettled.lock();
        let mut each = unsettled.iter();
        each.try_for_each(|segment| segment.write_out())
            .map_err(|error| self.poison(error))
    }

    /// Makes everything published durable and returns the last sequence it covers.
    ///
    /// # Errors
    /// The disk's; the log is poisoned by it and never synced again.
    pub fn sync(&self) -> Result<u64> {
        self.check()?;
        let target = self.last_seq();
        if target > self.synced_seq() || self.has_unsettled() {
            let unsettled = self.unsettled.lock().clone();
            for segment in &unsettled {
                unless!("log.sync", segment.sync(&self.env)).map_err(|error| self.poison(error))?;
            }
            self.unsettled
                .lock()
                .retain(|segment| !segment.is_settled());
            self.synced_seq.fetch_max(target, Ordering::AcqRel);
        }
        Ok(self.synced_seq())
    }

    /// Whether a sync has something to do.
    pub fn is_dirty(&self) -> bool {
        self.last_seq() > self.synced_seq()
    }

    /// Whether sealed segments or new names wait for a sync.
    fn has_unsettled(&self) -> bool {
        self.unsettled
            .lock()
            .iter()
            .any(|segment| segment.sealed().is_some())
    }

    /// Fails where an earlier write or sync did.
    ///
    /// # Errors
    /// [`Error::Poisoned`], with the first failure as its cause.
    pub fn check(&self) -> Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(cause) => Err(self.poisoned(Arc::clone(cause))),
        }
    }

    /// Ends all writing: nothing after a failed write or sync can be trusted until it is read again.
    pub(crate) fn poison(&self, error: Error) -> Error {
        if planted("log.poison") {
            return error;
        }
        let cause = self.failed.get_or_init(|| Arc::new(error));
        self.poisoned(Arc::clone(cause))
    }

    fn poisoned(&self, cause: Arc<Error>) -> Error {
        Error::Poisoned {
            log: Box::new(self.id.clone()),
            cause,
        }
    }

    /// Takes segments that nobody needs out of the list: those named by their first sequence, never
    /// the last one. The caller removes or recycles the files.
    pub fn detach(&self, first_seqs: &[u64]) -> Vec<Arc<Segment>> {
        let mut segments = self.segments.write();
        let last = segments.keys().next_back().copied();
        first_seqs
            .iter()
            .filter(|first_seq| Some(**first_seq) != last)
            .filter_map(|first_seq| segments.remove(first_seq))
            .collect()
    }
}

#[cfg(test)]
mod tests;
