//! A segment on its way out of an archive: checked batch by batch, cut where the target is, and written
//! as one of a new history.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use strandline_replication::archive::{Error, Result};
use strandline_wal::batch::Batch;
use strandline_wal::bug::planted;
use strandline_wal::segment::{Footer, INDEX_STEP, SEGMENT_HEADER_LEN, SegmentHeader, TRAILER_LEN};
use strandline_wal::{Epoch, Hlc};

/// Where a log is cut: behind its last batch that is neither.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Last sequence that stays.
    pub seq: u64,
    /// Newest version that stays.
    pub timestamp: Hlc,
    /// The first record that is not the history's: where a later epoch began.
    pub end: u64,
}

/// What a segment holds up to a cut.
pub(super) struct Walk {
    pub header: SegmentHeader,
    /// Of the bytes that stay; its digest is that of the bytes as they were.
    pub footer: Footer,
    /// Whether batches of the history stay out.
    pub is_cut: bool,
    /// Version of the last batch that stays.
    pub timestamp: Hlc,
    /// The chain values behind those of the records `at` where a batch ends.
    pub chains: BTreeMap<u64, u32>,
}

fn wrong(name: &str, at: usize, what: impl std::fmt::Display) -> Error {
    Error::Damaged {
        object: name.to_owned(),
        what: format!("{what} at byte {at}"),
    }
}

/// Reads a sealed segment's file (`is_sealed`), or what is there of a growing one.
///
/// # Errors
/// [`Error::Damaged`], naming the object and the place.
pub(super) fn walk(
    bytes: &[u8],
    is_sealed: bool,
    name: &str,
    cut: Cut,
    at: &BTreeSet<u64>,
) -> Result<Walk> {
    let path = Path::new(name);
    let header = SegmentHeader::decode(bytes, path).map_err(|e| wrong(name, 0, e))?;
    let data_len = match is_sealed {
        true => sealed_len(bytes, &header, name)?,
        false => bytes.len(),
    };
    let data = &bytes[..data_len];
    let mut footer = Footer {
        first_seq: header.first_seq,
        last_seq: header.first_seq - 1,
        batch_count: 0,
        data_len: SEGMENT_HEADER_LEN as u64,
        first_timestamp: Hlc(0),
        last_timestamp: Hlc(0),
        last_epoch: Epoch(0),
        chain: header.prev_crc,
        digest: *blake3::hash(data).as_bytes(),
        index: Vec::new(),
    };
    let mut is_cut = false;
    let mut chains = BTreeMap::new();
    if at.contains(&footer.last_seq) {
        chains.insert(footer.last_seq, footer.chain);
    }
    let mut from = SEGMENT_HEADER_LEN;
    while from < data_len {
        let batch = Batch::decode(&data[from..]).map_err(|damage| wrong(name, from, damage))?;
        let it = batch.header;
        let continues = it.first_seq == footer.last_seq + 1
            && it.nonce == header.nonce
            && it.shard == header.log.shard
            && (it.prev_crc == footer.chain || planted("archive.chain"));
        if !continues {
            return Err(wrong(name, from, "a batch that does not continue the log"));
        }
        if it.last_seq() >= cut.end {
            if it.first_seq < cut.end && !planted("archive.batch_across") {
                return Err(wrong(
                    name,
                    from,
                    "a batch lies across the end of its epoch",
                ));
            }
            break;
        }
        if it.last_seq() > cut.seq || it.timestamp > cut.timestamp {
            is_cut = true;
            break;
        }
        let place = from as u64;
        let is_new = |(_, last): &(u64, u64)| last / INDEX_STEP < place / INDEX_STEP;
        if footer.index.last().is_none_or(is_new) {
            footer.index.push((it.first_seq, place));
        }
        if footer.batch_count == 0 {
            footer.first_timestamp = it.timestamp;
        }
        footer.batch_count += 1;
        footer.last_seq = it.last_seq();
        footer.last_timestamp = it.timestamp;
        footer.last_epoch = it.epoch;
        footer.chain = batch.header_crc;
        from += it.batch_len();
        footer.data_len = from as u64;
        if at.contains(&footer.last_seq) {
            chains.insert(footer.last_seq, footer.chain);
        }
    }
    Ok(Walk {
        timestamp: footer.last_timestamp,
        header,
        footer,
        is_cut,
        chains,
    })
}

/// Bytes before the footer of a segment's file, held against its digest.
fn sealed_len(bytes: &[u8], header: &SegmentHeader, name: &str) -> Result<usize> {
    let trailer = bytes.last_chunk::<TRAILER_LEN>();
    let peeked = trailer.and_then(|t| Footer::peek(t, header.nonce, bytes.len() as u64));
    let (data_len, _) = peeked.ok_or_else(|| wrong(name, bytes.len(), "no footer"))?;
    let len = usize::try_from(data_len).expect("it is within the bytes");
    let footer = Footer::decode(&bytes[len..], header.nonce, data_len, Path::new(name));
    let footer = footer.map_err(|error| wrong(name, len, error))?;
    let is_intact = *blake3::hash(&bytes[..len]).as_bytes() == footer.digest;
    match is_intact || planted("archive.segment_digest") {
        true => Ok(len),
        false => Err(wrong(name, 0, "another digest than its footer's")),
    }
}

/// The bytes of the segment's file in a new history, and its digest there. One with another behind it is
/// sealed.
pub(super) fn rewritten(
    bytes: &[u8],
    walk: &Walk,
    lineage: [u8; 16],
    prev_digest: Option<[u8; 32]>,
    is_sealed: bool,
) -> (Vec<u8>, [u8; 32]) {
    let header = SegmentHeader {
        lineage,
        prev_digest: prev_digest.unwrap_or(walk.header.prev_digest),
        ..walk.header.clone()
    };
    let end = usize::try_from(walk.footer.data_len).expect("it is within the bytes");
    let mut out = header.encode().to_vec();
    out.extend_from_slice(&bytes[SEGMENT_HEADER_LEN..end]);
    let digest = *blake3::hash(&out).as_bytes();
    if is_sealed {
        let footer = Footer {
            digest,
            ..walk.footer.clone()
        };
        out.extend_from_slice(&footer.encode(header.nonce));
    }
    (out, digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use strandline_wal::batch::{BatchHeader, Kind, Payload, SealedPayload, VERSION};
    use strandline_wal::{DatasetId, LogId, RegionId, ShardId};

    const ALL: Cut = Cut {
        seq: u64::MAX,
        timestamp: Hlc::MAX,
        end: u64::MAX,
    };

    fn header() -> SegmentHeader {
        SegmentHeader {
            log: LogId {
                dataset: DatasetId::new("d").unwrap(),
                region: RegionId(0),
                shard: ShardId(0),
            },
            first_seq: 5,
            created: Hlc(1),
            nonce: 3,
            epoch: Epoch(2),
            lineage: [4; 16],
            prev_crc: 77,
            capacity: 1 << 20,
            prev_digest: [6; 32],
        }
    }

    fn batch(first_seq: u64, payload: &SealedPayload, prev_crc: u32) -> BatchHeader {
        BatchHeader {
            version: VERSION,
            flags: 0,
            first_seq,
            record_count: 1,
            payload_len: payload.bytes().len() as u32,
            unsynced: 0,
            epoch: Epoch(2),
            timestamp: Hlc(95 + first_seq),
            nonce: 3,
            prev_crc,
            payload_crc: payload.crc(),
            ordinal: (first_seq - 5) as u16,
            shard: ShardId(0),
            region: RegionId(0),
        }
    }

    /// Three batches of one record, the `n`th with another payload or another chain value where told.
    fn segment(other_payload: Option<u64>, other_chain: Option<u64>) -> Vec<u8> {
        let mut bytes = header().encode().to_vec();
        let mut chain = 77;
        for n in 0..3 {
            let mut payload = Payload::new();
            let body = [(n + 10 * u64::from(other_payload == Some(n))) as u8; 9];
            payload.push(Kind::Put, ShardId(0), &[b"head"], &body);
            let payload = payload.seal(0);
            let prev_crc = if other_chain == Some(n) { 1 } else { chain };
            let (header, crc) = batch(5 + n, &payload, prev_crc).encode();
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(payload.bytes());
            chain = crc;
        }
        bytes
    }

    #[test]
    fn a_segment_is_cut_behind_the_last_batch_before_the_target() {
        let bytes = segment(None, None);
        for (seq, timestamp, last) in [
            (9, 999, 7),
            (7, 102, 7),
            (6, 999, 6),
            (9, 101, 6),
            (4, 1, 4),
        ] {
            let (timestamp, cut) = (Hlc(timestamp), seq);
            let walked = walk(
                &bytes,
                false,
                "s",
                Cut {
                    seq: cut,
                    timestamp,
                    end: u64::MAX,
                },
                &BTreeSet::from([6]),
            )
            .unwrap();
            assert_eq!((walked.footer.last_seq, walked.is_cut), (last, last < 7));
            assert_eq!(walked.chains.contains_key(&6), last >= 6);
            if last < 5 {
                continue;
            }
            let (out, digest) = rewritten(&bytes, &walked, [9; 16], Some([8; 32]), true);
            let again = walk(&out, true, "s", ALL, &BTreeSet::new()).unwrap();
            assert_eq!((again.footer.digest, again.footer.last_seq), (digest, last));
            assert_eq!(
                (again.header.lineage, again.header.prev_digest),
                ([9; 16], [8; 32])
            );
        }
    }

    #[test]
    fn an_epoch_s_end_lies_between_batches() {
        let until = |bytes: &[u8], end| {
            let cut = Cut { end, ..ALL };
            walk(bytes, false, "s", cut, &BTreeSet::new())
        };
        let bytes = segment(None, None);
        for end in 6..=8 {
            let walked = until(&bytes, end).unwrap();
            assert_eq!((walked.footer.last_seq, walked.is_cut), (end - 1, false));
        }
        let mut bytes = header().encode().to_vec();
        let mut payload = Payload::new();
        for body in [b"one", b"two"] {
            payload.push(Kind::Put, ShardId(0), &[b"head"], body);
        }
        let payload = payload.seal(0);
        let (batch, _) = BatchHeader {
            record_count: 2,
            ..batch(5, &payload, 77)
        }
        .encode();
        bytes.extend_from_slice(&batch);
        bytes.extend_from_slice(payload.bytes());
        assert_eq!(until(&bytes, 7).unwrap().footer.last_seq, 6);
        let error = until(&bytes, 6).err().unwrap().to_string();
        assert!(error.contains("across the end of its epoch"), "{error}");
    }

    #[test]
    fn a_batch_that_does_not_continue_the_log_is_damage() {
        for n in 0..3 {
            let error = walk(&segment(None, Some(n)), false, "s", ALL, &BTreeSet::new())
                .err()
                .unwrap();
            assert!(error.to_string().contains("does not continue"), "{error}");
        }
    }

    #[test]
    fn a_last_batch_that_was_replaced_is_found_by_the_digest() {
        let good = segment(None, None);
        let walked = walk(&good, false, "s", ALL, &BTreeSet::new()).unwrap();
        let (sealed, _) = rewritten(&good, &walked, [4; 16], None, true);
        assert!(walk(&sealed, true, "s", ALL, &BTreeSet::new()).is_ok());
        let other = segment(Some(2), None);
        let mixed = [&other[..], &sealed[good.len()..]].concat();
        let error = walk(&mixed, true, "s", ALL, &BTreeSet::new())
            .err()
            .unwrap();
        assert!(error.to_string().contains("digest"), "{error}");
    }
}
