//! Finds places in logs: where a follower's end lies in ours, and which bytes come next.

use std::sync::Arc;

use strandline_wal::bug::planted;
use strandline_wal::log::{Log, Segment, SegmentBytes};
use strandline_wal::reader::{Reader, Step};
use strandline_wal::segment::{Footer, SEGMENT_HEADER_LEN};
use strandline_wal::{Position, ShardId};

use crate::epoch::{Answer, end_of_log};
use crate::error::{Error, Result};
use crate::ids::{LeaderId, ShardEnd};
use crate::message::Verdict;
use crate::store::LogSource;

/// What stands behind a record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// The record ends a batch: the next one starts at byte `at` of `segment`.
    End { segment: u64, at: u64, chain: u32 },
    /// The record lies within a batch, or behind the log's end.
    Nowhere,
    /// The record is pruned.
    Pruned { first_available: u64 },
}

/// Finds the end of record `seq`; 0 is the start of the log.
fn end_of(log: &Arc<Log>, base: &ShardEnd, seq: u64) -> Result<Place> {
    let Some(first) = log.segments().into_iter().next() else {
        return Ok(match seq == base.position.seq {
            true => Place::End {
                segment: seq + 1,
                at: 0,
                chain: base.chain,
            },
            false if seq < base.position.seq => Place::Pruned {
                first_available: base.position.seq + 1,
            },
            false => Place::Nowhere,
        });
    };
    // Older segments may still be there for the values in them, with gaps between: the log that can be
    // shipped starts behind the base, whose footer went with it.
    if seq <= base.position.seq && base.position.seq > 0 {
        return Ok(Place::Pruned {
            first_available: base.position.seq + 1,
        });
    }
    if seq < first.first_seq() {
        return Ok(match seq == 0 && first.first_seq() == 1 {
            true => Place::End {
                segment: 1,
                at: 0,
                chain: first.header().prev_crc,
            },
            // Bytes before the first segment are gone: its predecessor's footer among them.
            false => Place::Pruned {
                first_available: first.first_seq(),
            },
        });
    }
    let Some(segment) = log.segment_of(seq) else {
        return Ok(Place::Nowhere);
    };
    if let Some(sealed) = segment.sealed() {
        if sealed.footer.last_seq == seq {
            let (at, chain) = (sealed.footer.data_len, sealed.footer.chain);
            return Ok(Place::End {
                segment: segment.first_seq(),
                at,
                chain,
            });
        }
        if sealed.footer.last_seq < seq {
            // A hole behind a segment: what lay there was flushed and dropped.
            return Ok(match log.segment_after(segment.first_seq()) {
                Some(after) => Place::Pruned {
                    first_available: after.first_seq(),
                },
                None => Place::Nowhere,
            });
        }
    }
    match Reader::new(Arc::clone(log), seq).next()? {
        Step::Batch(stored) if stored.header.last_seq() == seq => Ok(Place::End {
            segment: stored.segment.first_seq(),
            at: stored.at + stored.header.batch_len() as u64,
            chain: stored.header_crc,
        }),
        Step::Truncated { first_available } => Ok(Place::Pruned { first_available }),
        Step::Batch(_) | Step::AtTail | Step::Forked { .. } => Ok(Place::Nowhere),
    }
}

/// What the serving side says of a follower's end. `live` is the leadership it holds, if it does.
///
/// # Errors
/// [`Error::Diverged`] for a place that both should have and that differs; the log's.
pub fn verdict(source: &dyn LogSource, live: Option<LeaderId>, ask: &ShardEnd) -> Result<Verdict> {
    let shard = ask.shard;
    let (log, table) = (source.log(shard), source.epochs(shard));
    match table.answer(ask, source.end(shard).position.seq, live) {
        Answer::Ends(position, leader) => Ok(Verdict::Ends {
            shard,
            position,
            leader,
        }),
        Answer::Impossible => Err(diverged(ask, 0)),
        Answer::Same => match end_of(&log, &source.base(shard), ask.position.seq)? {
            Place::End { segment, at, chain } if chain == ask.chain || planted("locate.chain") => {
                Ok(Verdict::Agreed {
                    shard,
                    position: ask.position,
                    segment,
                    at,
                })
            }
            Place::End { chain, .. } => Err(diverged(ask, chain)),
            Place::Nowhere => Err(diverged(ask, 0)),
            Place::Pruned { first_available } => Ok(Verdict::Pruned {
                shard,
                first_available,
            }),
        },
    }
}

fn diverged(ask: &ShardEnd, ours: u32) -> Error {
    Error::Diverged {
        shard: ask.shard,
        at: ask.position,
        ours,
        theirs: ask.chain,
    }
}

/// The follower's end to ask with next, after it was told where a leadership ends at the leader.
///
/// # Errors
/// [`Error::Pruned`] where this log does not reach back that far; the log's.
pub fn fall_back(
    source: &dyn LogSource,
    shard: ShardId,
    told: Position,
    leader: LeaderId,
) -> Result<ShardEnd> {
    let (log, table) = (source.log(shard), source.epochs(shard));
    let (position, leader) = table.fall_back(told, leader, source.end(shard).position.seq);
    if position.seq == 0 {
        return Ok(ShardEnd::empty(shard));
    }
    let base = source.base(shard);
    match end_of(&log, &base, position.seq)? {
        Place::End { chain, .. } => Ok(ShardEnd {
            shard,
            position,
            leader,
            chain,
        }),
        Place::Pruned { first_available } => Err(Error::Pruned {
            shard,
            needed: position.seq,
            first_available,
        }),
        // The leader ends that epoch where this log has no batch end: not a prefix of each other.
        Place::Nowhere => Err(Error::Diverged {
            shard,
            at: position,
            ours: 0,
            theirs: base.chain,
        }),
    }
}

/// The end of a log, for stores: the newest batch's position, leader and chain value.
///
/// # Errors
/// The log's.
pub fn end(
    shard: ShardId,
    log: &Arc<Log>,
    table: &crate::epoch::EpochTable,
    base: &ShardEnd,
) -> Result<ShardEnd> {
    let seq = log.last_seq().max(base.position.seq);
    match end_of(log, base, seq)? {
        Place::End { chain, .. } => Ok(end_of_log(shard, table, seq, chain)),
        Place::Pruned { .. } | Place::Nowhere => Ok(*base),
    }
}

/// The next thing to ship from a place in a log.
pub enum Next {
    /// Stored bytes.
    Bytes(SegmentBytes),
    /// All bytes of the segment were shipped, and it is sealed: its footer comes next.
    Footer(Arc<Segment>),
    /// Nothing yet.
    AtTail,
    /// The segment is gone.
    Pruned,
}

/// Looks at byte `at` of the segment that starts with `first_seq`.
///
/// # Errors
/// The log's.
pub fn next(log: &Log, first_seq: u64, at: u64, len_max: usize) -> Result<Next> {
    let Some(segment) = log.segment(first_seq) else {
        // The segment that is not made yet, or one that was dropped.
        return Ok(if first_seq > log.last_seq() {
            Next::AtTail
        } else {
            Next::Pruned
        });
    };
    // The seal is looked at first: a segment never grows behind it.
    let sealed = segment.sealed().is_some();
    let data_len = segment.data_len();
    if data_len <= SEGMENT_HEADER_LEN as u64 {
        // A header travels with its first batch: a leader that dies in between leaves no trace of a
        // segment that its successor will write otherwise.
        return Ok(Next::AtTail);
    }
    if at < data_len {
        let len = usize::try_from(data_len - at)
            .unwrap_or(usize::MAX)
            .min(len_max);
        let len = segment
            .sealed()
            .and_then(|sealed| whole_len(&sealed.footer, at, len))
            .unwrap_or(len);
        return Ok(Next::Bytes(segment.read(at, len)?));
    }
    if !sealed || at > data_len {
        return Ok(Next::AtTail);
    }
    Ok(Next::Footer(segment))
}

/// The length of a piece of at most `len` bytes that ends where a batch does, so that its receiver need not
/// put two halves together. `None` where the footer knows of no such end.
fn whole_len(footer: &Footer, at: u64, len: usize) -> Option<usize> {
    let end = at + len as u64;
    if end >= footer.data_len {
        return None;
    }
    let known = footer.index.partition_point(|(_, start)| *start <= end);
    let (_, start) = footer.index[..known].last()?;
    start
        .checked_sub(at)
        .filter(|len| *len > 0)
        .map(|len| len as usize)
}

#[cfg(test)]
mod tests;
