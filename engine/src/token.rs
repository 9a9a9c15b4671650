//! Read what you wrote, on any node: a token names one write, and a follower can be asked whether it has
//! it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use strandline_wal::bug::planted;
use strandline_wal::unless;
use strandline_wal::{Epoch, Hlc, ShardId};

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::manifest::EpochEntry;
use crate::store::{Role, Store};

/// Names one write: of which history, where in it, and by whose leadership. Handed to a reader of another
/// node, it lets that wait until it sees the write, or learn that it never will.
///
/// Its text is 136 hexadecimal digits; its bytes are fields in order, little-endian:
///
/// | Offset | Size | Field | Meaning |
/// |-------:|-----:|-------|---------|
/// | 0 | 4 | magic | `SDLT` |
/// | 4 | 2 | version | 1 |
/// | 6 | 2 | shard | whose log has it |
/// | 8 | 16 | lineage | the history |
/// | 24 | 16 | leader | random identity of the leadership |
/// | 40 | 4 | epoch | its number |
/// | 44 | 4 | reserved | 0 |
/// | 48 | 8 | seq | the write's last record |
/// | 56 | 8 | timestamp | its version |
/// | 64 | 4 | crc | CRC-32 (IEEE) of the 64 bytes before |
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WriteToken {
    lineage: [u8; 16],
    leader: [u8; 16],
    epoch: Epoch,
    shard: ShardId,
    seq: u64,
    timestamp: Hlc,
}

/// Length of a token, in bytes.
pub const TOKEN_LEN: usize = 68;
const MAGIC: [u8; 4] = *b"SDLT";
const VERSION: u16 = 1;

impl WriteToken {
    pub(crate) fn new(store: &Store, shard: ShardId, seq: u64, timestamp: Hlc) -> WriteToken {
        let leadership = store.last_epoch_of(shard).unwrap_or_default();
        WriteToken {
            lineage: store.lineage(),
            leader: leadership.leader,
            epoch: leadership.epoch,
            shard,
            seq,
            timestamp,
        }
    }

    pub(crate) fn timestamp(&self) -> Hlc {
        self.timestamp
    }

    /// The later of two writes of one dataset: who has it has both. A session keeps this one.
    #[must_use]
    pub fn later(self, other: WriteToken) -> WriteToken {
        match self.timestamp < other.timestamp {
            true => other,
            false => self,
        }
    }

    /// Its bytes, as the table of [`WriteToken`] has them.
    pub fn to_bytes(&self) -> [u8; TOKEN_LEN] {
        let mut bytes = [0; TOKEN_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&VERSION.to_le_bytes());
        put(&self.shard.0.to_le_bytes());
        put(&self.lineage);
        put(&self.leader);
        put(&self.epoch.0.to_le_bytes());
        put(&[0; 4]);
        put(&self.seq.to_le_bytes());
        put(&self.timestamp.0.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..TOKEN_LEN - 4]);
        bytes[TOKEN_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads what [`WriteToken::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`Error::Argument`] for anything else.
    pub fn from_bytes(bytes: &[u8]) -> Result<WriteToken> {
        let wrong = |expected: &str, found: String| {
            Err(Error::Argument {
                what: "write token",
                expected: expected.to_owned(),
                found,
            })
        };
        let Ok(bytes) = <&[u8; TOKEN_LEN]>::try_from(bytes) else {
            let expected = format!("{TOKEN_LEN} bytes");
            return wrong(&expected, format!("{} bytes", bytes.len()));
        };
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at| u32::from_le_bytes(array_at(bytes, at));
        let u64_at = |at| u64::from_le_bytes(array_at(bytes, at));
        let magic: [u8; 4] = array_at(bytes, 0);
        if magic != MAGIC {
            return wrong("one that begins with SDLT", format!("{magic:02x?}"));
        }
        let crc = crc32fast::hash(&bytes[..TOKEN_LEN - 4]);
        if crc != u32_at(64) && !planted("token.crc") {
            let expected = format!("one with checksum {crc:#010x}");
            return wrong(&expected, format!("{:#010x}", u32_at(64)));
        }
        if u16_at(4) != VERSION || u32_at(44) != 0 {
            return wrong("one of version 1", format!("version {}", u16_at(4)));
        }
        Ok(WriteToken {
            shard: ShardId(u16_at(6)),
            lineage: array_at(bytes, 8),
            leader: array_at(bytes, 24),
            epoch: Epoch(u32_at(40)),
            seq: u64_at(48),
            timestamp: Hlc(u64_at(56)),
        })
    }
}

fn array_at<const N: usize>(bytes: &[u8; TOKEN_LEN], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("N bytes")
}

impl fmt::Display for WriteToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.to_bytes();
        bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for WriteToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<WriteToken> {
        let digit = |digit: u8| (digit as char).to_digit(16).map(|digit| digit as u8);
        let byte = |pair: &[u8]| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?);
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        match bytes {
            Some(bytes) => WriteToken::from_bytes(&bytes),
            None => Err(Error::Argument {
                what: "write token",
                expected: "hexadecimal digits".to_owned(),
                found: text.chars().take(160).collect(),
            }),
        }
    }
}

/// How far a write is to have come on the node that is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrival {
    /// It is in the log.
    Received,
    /// It is on the disk.
    Durable,
    /// Readers see it, and everything written before it.
    Applied,
}

/// How a wait for a write ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Arrived {
    /// It has come so far.
    Yes,
    /// It may still come.
    Timeout,
    /// The history that this node has went on without it. Where that history is cut in its turn, because
    /// another node leads, the write may come after all.
    LostInFork {
        /// Up to this record of its shard, at most, both histories are one.
        common_seq: u64,
    },
}

impl Dataset {
    /// Waits until a write of this or another node has come so far here, `timeout` at most.
    ///
    /// It is woken by what arrives; nothing is asked of the leader.
    ///
    /// # Errors
    /// [`Error::Argument`] for a token of another dataset's history; [`Error::Closed`]; a leader's own
    /// failure to sync, where the write is its own and was not synced yet.
    pub fn wait_for(
        &self,
        token: &WriteToken,
        arrival: Arrival,
        timeout: Duration,
    ) -> Result<Arrived> {
        let inner = self.inner();
        let clock = &self.database().env().clock;
        let start_ns = clock.mono_ns();
        let arrivals = inner.arrivals();
        arrivals.wait_until(|| {
            let store = inner.store();
            match store.check().and_then(|()| check(&store, token, arrival)) {
                Ok(None) => {}
                // It was replaced meanwhile, by a change of roles or a cut.
                Err(_) if !Arc::ptr_eq(&store, &inner.store()) => {}
                told => return told,
            }
            let waited = Duration::from_nanos(clock.mono_ns() - start_ns);
            Ok((waited >= timeout).then_some(Arrived::Timeout))
        })
    }
}

/// How a write stands; `None` where it may still come.
fn check(store: &Store, token: &WriteToken, arrival: Arrival) -> Result<Option<Arrived>> {
    let (ours, theirs) = (store.lineage(), token.lineage);
    // A new follower has no history yet.
    let is_new = store.role() == Role::Follower && ours == [0; 16];
    if is_new {
        return Ok(None);
    }
    let wrong = |expected: String, found: String| Error::Argument {
        what: "write token",
        expected,
        found,
    };
    if ours != theirs && !planted("token.lineage") {
        let text =
            |lineage: [u8; 16]| format!("one of lineage {:032x}", u128::from_be_bytes(lineage));
        return Err(wrong(text(ours), text(theirs)));
    }
    let shard_count = store.logs().len();
    if usize::from(token.shard.0) >= shard_count {
        let expected = format!("one of {shard_count} shards");
        return Err(wrong(expected, format!("one of shard {}", token.shard)));
    }
    let log = store.log(token.shard);
    // Before the epochs: what comes between the two looks is of a leadership that the second one shows.
    let last_seq = log.last_seq();
    match standing(&store.epochs_of(token.shard), token) {
        Standing::Lost { common_seq } => return Ok(Some(Arrived::LostInFork { common_seq })),
        Standing::Here if last_seq >= token.seq => {}
        Standing::Here | Standing::Elsewhere => return Ok(None),
    }
    let is_hidden = store.watermarks().visible() < token.timestamp;
    let is_unsynced = arrival == Arrival::Durable && log.synced_seq() < token.seq;
    if store.role() == Role::Leader && (is_hidden && arrival == Arrival::Applied || is_unsynced) {
        // Its own, of a ticket that is under way.
        unless!("token.sync", store.sync())?;
    }
    let here = match arrival {
        Arrival::Received => log.last_seq(),
        Arrival::Durable => log.synced_seq(),
        Arrival::Applied => store.watermarks().committed().seqs[usize::from(token.shard.0)],
    };
    Ok((here >= token.seq).then_some(Arrived::Yes))
}

/// What a log's leaderships say of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// The record of that number is of its leadership, or will be where there is none yet.
    Here,
    /// The record of that number is, or may be, of an earlier leadership.
    Elsewhere,
    /// A later leadership began before it, or another claim to the same epoch.
    Lost { common_seq: u64 },
}

fn standing(epochs: &[EpochEntry], token: &WriteToken) -> Standing {
    let is_other = |entry: &&EpochEntry| {
        let is_later = entry.epoch > token.epoch && !planted("token.fork");
        let is_claim = entry.epoch == token.epoch && entry.leader != token.leader;
        is_later || (is_claim && !planted("token.claim"))
    };
    if let Some(other) = epochs.iter().find(is_other)
        && other.first_seq <= token.seq
    {
        let common_seq = other.first_seq.saturating_sub(1);
        return Standing::Lost { common_seq };
    }
    let covers = |entry: &&EpochEntry| entry.first_seq <= token.seq;
    let of = epochs
        .iter()
        .rev()
        .find(covers)
        .copied()
        .unwrap_or_default();
    match of.epoch == token.epoch || planted("token.elsewhere") {
        true => Standing::Here,
        false => Standing::Elsewhere,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
