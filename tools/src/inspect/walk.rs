//! Walks the batches of one segment file with plain reads, the growing one of a live database too.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

use strandline_wal::batch::{Batch, BatchHeader, Damage, HEADER_LEN, PAYLOAD_LEN_MAX};
use strandline_wal::io::File;
use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::{Error, IoContext};

use super::store::SegmentFile;

/// Bytes that are read at once.
const WINDOW_LEN: usize = 1 << 20;
/// Offset of the nonce in a batch header, where a recycled file's old batches betray themselves.
const NONCE_AT: usize = 40;

/// What stands at the place that a walk has come to.
pub enum Found {
    /// A batch whose checksums hold.
    Batch(StoredBatch),
    /// Nothing, or what a recycled file held before. A growing segment ends here, for now.
    End,
    /// Something that is no intact batch of this segment.
    Damage(Damage),
}

/// A batch out of a file.
pub struct StoredBatch {
    /// Its offset.
    pub at: u64,
    /// Its header.
    pub header: BatchHeader,
    /// The stored `header_crc`.
    pub header_crc: u32,
    bytes: Vec<u8>,
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
}

/// A place in a segment file.
pub struct Walk {
    file: Arc<dyn File>,
    path: PathBuf,
    nonce: u32,
    is_sealed: bool,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl Walk {
    pub(super) fn new(segment: &SegmentFile) -> Walk {
        Walk {
            file: Arc::clone(&segment.file),
            path: segment.name.path.clone(),
            nonce: segment.header.nonce,
            is_sealed: segment.is_sealed(),
            at: SEGMENT_HEADER_LEN as u64,
            end: segment.data_end(),
            window: Vec::new(),
            window_at: 0,
        }
    }

    /// The offset that comes next.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// What comes next. Only a batch moves the walk on.
    ///
    /// # Errors
    /// The disk's.
    pub fn step(&mut self) -> Result<Found, Error> {
        let found = self.look()?;
        if let Found::Damage(_) = found {
            // Between two reads a live writer may have finished what looked broken.
            self.forget();
            return self.look();
        }
        Ok(found)
    }

    /// Forgets what was read, so that the next step sees what was written meanwhile.
    pub fn forget(&mut self) {
        self.window.clear();
    }

    fn look(&mut self) -> Result<Found, Error> {
        if self.at >= self.end {
            return Ok(Found::End);
        }
        let head = self.read(HEADER_LEN)?;
        let header = match BatchHeader::decode(head) {
            Ok((header, _)) => header,
            Err(damage) => return Ok(self.judge(damage)),
        };
        if header.nonce != self.nonce {
            return Ok(self.judge(Damage::Field {
                field: "nonce",
                found: header.nonce.into(),
            }));
        }
        assert!(
            header.payload_len as usize <= PAYLOAD_LEN_MAX,
            "decode checks lengths"
        );
        let (at, len) = (self.at, header.batch_len());
        let bytes = self.read(len)?;
        let outcome = Batch::decode(bytes).map(|batch| (batch.header, batch.header_crc));
        match outcome {
            Ok((header, header_crc)) => {
                let bytes = bytes[..len].to_vec();
                self.at += len as u64;
                Ok(Found::Batch(StoredBatch {
                    at,
                    header,
                    header_crc,
                    bytes,
                }))
            }
            Err(damage) => Ok(self.judge(damage)),
        }
    }

    /// Tells unwritten space from damage. In a sealed segment everything up to the footer is written.
    fn judge(&self, damage: Damage) -> Found {
        if self.is_sealed {
            return Found::Damage(damage);
        }
        let rest = self.at.checked_sub(self.window_at);
        let rest = rest.and_then(|start| self.window.get(usize::try_from(start).ok()?..));
        let claimed = rest.and_then(|rest| rest.get(NONCE_AT..NONCE_AT + 4));
        let is_other = claimed.is_some_and(|claimed| claimed != self.nonce.to_le_bytes());
        match damage {
            Damage::Unwritten => Found::End,
            Damage::Short { .. } if self.end - self.at < HEADER_LEN as u64 => Found::End,
            Damage::Field { field: "nonce", .. } => Found::End,
            Damage::Magic { .. } | Damage::HeaderCrc { .. } | Damage::PayloadCrc { .. }
                if is_other =>
            {
                Found::End
            }
            damage => Found::Damage(damage),
        }
    }

    /// Up to `len` bytes at the current place: fewer only where the file ends before.
    fn read(&mut self, len: usize) -> Result<&[u8], Error> {
        let start = self.at.checked_sub(self.window_at);
        let start = start.and_then(|start| usize::try_from(start).ok());
        let is_there = start.is_some_and(|start| start + len <= self.window.len());
        if !is_there {
            self.fill(len.max(WINDOW_LEN))?;
        }
        let start = usize::try_from(self.at - self.window_at).expect("within the window");
        let end = (start + len).min(self.window.len());
        Ok(&self.window[start..end])
    }

    fn fill(&mut self, len: usize) -> Result<(), Error> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        self.window.resize(len.min(left), 0);
        self.window_at = self.at;
        let mut done = 0;
        while done < self.window.len() {
            let at = self.at + done as u64;
            match self.file.read_at(&mut self.window[done..], at) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).during("read", &self.path),
            }
        }
        self.window.truncate(done);
        Ok(())
    }
}
