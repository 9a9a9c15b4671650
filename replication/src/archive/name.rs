//! The names of the objects, made and parsed here alone.

use strandline_wal::{DatasetId, Epoch, Hlc, ShardId};

use crate::ids::Lineage;

/// Where all objects of one history of a dataset are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Root(String);

/// What a piece of a log is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PieceKind {
    /// A sealed segment's file.
    Segment,
    /// A part of the segment that starts with this record, while it grew.
    Tail(u64),
}

/// Some batches of a log. Everything that a plan needs is in the name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Who uploaded it.
    pub epoch: Epoch,
    /// Which log.
    pub shard: ShardId,
    /// Sequence of the first record.
    pub first_seq: u64,
    /// Sequence of the last record.
    pub last_seq: u64,
    /// Chain value before the first batch.
    pub prev: u32,
    /// Chain value of the last batch.
    pub chain: u32,
    /// A whole segment, or a part.
    pub kind: PieceKind,
}

impl Piece {
    /// The first record of the segment that it belongs to.
    pub fn segment(&self) -> u64 {
        match self.kind {
            PieceKind::Segment => self.first_seq,
            PieceKind::Tail(segment) => segment,
        }
    }
}

/// The place of a base.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct BaseName {
    /// Version of the newest batch that it stands for.
    pub timestamp: Hlc,
    /// Who made it.
    pub epoch: Epoch,
}

/// Records before this one were lost to the archive: its disk limit was reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Break {
    /// Who uploads.
    pub epoch: Epoch,
    /// Which log.
    pub shard: ShardId,
    /// The record that the archive goes on with.
    pub first_seq: u64,
}

impl Root {
    /// Of a history.
    pub fn new(dataset: &DatasetId, lineage: Lineage) -> Root {
        Root(format!("{dataset}/{lineage}/"))
    }

    /// Where all histories of a dataset are.
    pub fn of_dataset(dataset: &DatasetId) -> String {
        format!("{dataset}/")
    }

    /// The lineage in the name of an object of a dataset.
    pub fn parse_lineage(dataset: &DatasetId, name: &str) -> Option<Lineage> {
        let rest = name.strip_prefix(&Root::of_dataset(dataset))?;
        let hex = rest.split_once('/')?.0;
        let number = u128::from_str_radix(hex, 16).ok()?;
        let lineage = Lineage(number.to_be_bytes());
        (lineage.to_string() == hex).then_some(lineage)
    }

    /// What the names of all its objects begin with.
    pub fn prefix(&self) -> &str {
        &self.0
    }

    /// What a leadership begins with.
    pub fn term(&self, epoch: Epoch) -> String {
        format!("{}term/{:010}", self.0, epoch.0)
    }

    /// A part of a log.
    pub fn piece(&self, piece: &Piece) -> String {
        let Piece {
            epoch,
            shard,
            first_seq,
            last_seq,
            prev,
            chain,
            kind,
        } = piece;
        let end = match kind {
            PieceKind::Segment => ".seg".to_owned(),
            PieceKind::Tail(segment) => format!("-{segment:020}.tail"),
        };
        format!(
            "{}log/{:010}/{:05}/{first_seq:020}-{last_seq:020}-{prev:08x}-{chain:08x}{end}",
            self.0, epoch.0, shard.0
        )
    }

    /// A gap that is known.
    pub fn broken(&self, it: &Break) -> String {
        let (epoch, shard, first_seq) = (it.epoch.0, it.shard.0, it.first_seq);
        format!("{}break/{epoch:010}/{shard:05}/{first_seq:020}", self.0)
    }

    /// A file of a base.
    pub fn file(&self, epoch: Epoch, digest: &[u8; 32]) -> String {
        let digest = blake3::Hash::from_bytes(*digest).to_hex();
        format!("{}file/{:010}/{digest}", self.0, epoch.0)
    }

    /// A checkpoint.
    pub fn base(&self, base: &BaseName) -> String {
        format!(
            "{}base/{:010}/{:016x}",
            self.0, base.epoch.0, base.timestamp.0
        )
    }

    /// The parts of an object's name; `None` for one that is not of this history.
    pub(super) fn parse(&self, name: &str) -> Option<Parsed> {
        let rest = name.strip_prefix(&self.0)?;
        let mut parts = rest.split('/');
        let (kind, epoch) = (parts.next()?, Epoch(parts.next()?.parse().ok()?));
        let parsed = match kind {
            "term" => Parsed::Term(epoch),
            "log" => Parsed::Piece(piece_of(epoch, parts.next()?, parts.next()?)?),
            "break" => Parsed::Break(Break {
                epoch,
                shard: ShardId(parts.next()?.parse().ok()?),
                first_seq: parts.next()?.parse().ok()?,
            }),
            "file" => {
                let digest = blake3::Hash::from_hex(parts.next()?).ok()?;
                Parsed::File(epoch, *digest.as_bytes())
            }
            "base" => Parsed::Base(BaseName {
                epoch,
                timestamp: Hlc(u64::from_str_radix(parts.next()?, 16).ok()?),
            }),
            _ => return None,
        };
        let again = match &parsed {
            Parsed::Term(epoch) => self.term(*epoch),
            Parsed::Piece(piece) => self.piece(piece),
            Parsed::Break(it) => self.broken(it),
            Parsed::File(epoch, digest) => self.file(*epoch, digest),
            Parsed::Base(base) => self.base(base),
        };
        (again == name).then_some(parsed)
    }
}

/// What an object is, by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Parsed {
    Term(Epoch),
    Piece(Piece),
    Break(Break),
    File(Epoch, [u8; 32]),
    Base(BaseName),
}

fn piece_of(epoch: Epoch, shard: &str, name: &str) -> Option<Piece> {
    let (body, is_tail) = match name.strip_suffix(".seg") {
        Some(body) => (body, false),
        None => (name.strip_suffix(".tail")?, true),
    };
    let mut parts = body.split('-');
    let (first_seq, last_seq) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
    let (prev, chain) = (hex()?, hex()?);
    let kind = match is_tail {
        true => PieceKind::Tail(parts.next()?.parse().ok()?),
        false => PieceKind::Segment,
    };
    let shard = ShardId(shard.parse().ok()?);
    let piece = Piece {
        epoch,
        shard,
        first_seq,
        last_seq,
        prev,
        chain,
        kind,
    };
    let is_sound = first_seq >= 1 && first_seq <= last_seq && piece.segment() <= first_seq;
    (is_sound && last_seq < u64::MAX).then_some(piece)
}
