//! How far a dataset is archived, on its own disk: so a database that is opened again keeps the log that the
//! archive lacks from the first moment on. What is stored may be lower than what is true: it keeps too much.
//!
//! Little-endian, replaced whole:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | magic | `SDAH` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | shard_count | |
//! | 8 | 8 | len_max | most bytes that are kept of one log |
//! | 16 | 8 each | from_seqs | per shard, the first record that the archive lacks |
//! | | 4 | crc | CRC-32 of all before |

use std::path::Path;

use strandline_wal::IoContext;
use strandline_wal::bug::planted;
use strandline_wal::io::{Env, read_file, replace_file};

use crate::error::Result;
use crate::files;
use crate::retention::Hold;

const HEAD: [u8; 6] = *b"SDAH\x01\x00";
const HEAD_LEN: usize = 16;

fn encode(hold: &Hold) -> Vec<u8> {
    let mut out = HEAD.to_vec();
    let count = u16::try_from(hold.from_seqs.len()).expect("at most 256 shards");
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&hold.len_max.to_le_bytes());
    for seq in &hold.from_seqs {
        out.extend_from_slice(&seq.to_le_bytes());
    }
    out.extend_from_slice(&crc32fast::hash(&out).to_le_bytes());
    out
}

fn decode(bytes: &[u8], shard_count: usize) -> Option<Hold> {
    let (rest, crc) = bytes.split_last_chunk::<4>()?;
    let is_intact = crc32fast::hash(rest).to_le_bytes() == *crc || planted("archive.floor_crc");
    let body = rest.strip_prefix(&HEAD)?;
    if !is_intact || rest.len() != HEAD_LEN + 8 * shard_count {
        return None;
    }
    let (count, numbers) = body.split_first_chunk::<2>()?;
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(*bytes.first_chunk()?));
    let numbers: Option<Vec<u64>> = numbers.chunks(8).map(number).collect();
    let (len_max, from_seqs) = numbers?.split_first().map(|(a, b)| (*a, b.to_vec()))?;
    let is_its = usize::from(u16::from_le_bytes(*count)) == shard_count;
    is_its.then_some(Hold { from_seqs, len_max })
}

/// What is stored, if anything: one that is damaged keeps the whole log, within the default limit.
///
/// # Errors
/// The disk's.
pub(crate) fn load(env: &Env, dataset: &Path, shard_count: usize) -> Result<Option<Hold>> {
    let path = files::archive(dataset);
    if env.disk.stat(&path).is_err() {
        return Ok(None);
    }
    let bytes = read_file(env.disk.as_ref(), &path, 1 << 20).during("read", &path)?;
    let everything = || Hold {
        from_seqs: vec![1; shard_count],
        len_max: super::ArchiveOptions::default().log_len_max,
    };
    Ok(Some(decode(&bytes, shard_count).unwrap_or_else(everything)))
}

/// Stores how far it is archived, durably.
pub(super) fn store(env: &Env, dataset: &Path, hold: &Hold) -> Result<()> {
    let path = files::archive(dataset);
    replace_file(env.disk.as_ref(), &path, &encode(hold)).during("replace", &path)?;
    Ok(())
}

/// Nothing is archived from here any more.
pub(super) fn remove(env: &Env, dataset: &Path) -> Result<()> {
    let path = files::archive(dataset);
    if env.disk.stat(&path).is_ok() {
        env.disk.remove(&path).during("remove", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_read_back_and_every_flipped_bit_is_found() {
        let hold = Hold {
            from_seqs: vec![5, u64::MAX],
            len_max: 7,
        };
        let bytes = encode(&hold);
        let read = decode(&bytes, 2).unwrap();
        assert_eq!((read.from_seqs, read.len_max), (hold.from_seqs, 7));
        assert!(decode(&bytes, 1).is_none() && decode(&bytes, 3).is_none());
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, 2).is_none(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len], 2).is_none());
        }
    }
}
