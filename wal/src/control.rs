//! Control records: what a log says of itself. They lie in batches with the control flag.
//!
//! The head of a control record is one byte, its code. Codes below 128 are the log's, the others
//! belong to whoever owns the state.
//!
//! Body of code 1, epoch start:
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | node | who leads |
//! | 16 | 16 | incarnation | of that node's store |
//! | 32 | 16 | leader | random; tells two claims to one epoch number apart |

use crate::batch::{Kind, Payload, Record, SealedPayload, flags};
use crate::bytes::array_at;
use crate::ids::ShardId;

/// Code of [`EpochStart`].
pub const EPOCH_START: u8 = 1;
/// The first code that is not the log's.
pub const OWNER_CODE_MIN: u8 = 128;

const EPOCH_START_LEN: usize = 48;

/// The first batch of every epoch.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EpochStart {
    /// Who leads.
    pub node: [u8; 16],
    /// Of that node's store.
    pub incarnation: [u8; 16],
    /// Random identity of this claim to the epoch.
    pub leader: [u8; 16],
}

impl EpochStart {
    /// The batch payload that starts an epoch.
    pub fn payload(&self, shard: ShardId) -> SealedPayload {
        let mut body = Vec::with_capacity(EPOCH_START_LEN);
        for part in [&self.node, &self.incarnation, &self.leader] {
            body.extend_from_slice(part);
        }
        let mut payload = Payload::new();
        payload
            .push(Kind::Control, shard, &[&[EPOCH_START]], &body)
            .expect("one small record fits");
        payload.seal(flags::CONTROL)
    }

    /// The epoch start that a record is, if it is one.
    pub fn of(record: &Record<'_>) -> Option<EpochStart> {
        let is_start = record.kind == Kind::Control && record.head == [EPOCH_START];
        (is_start && record.body.len() == EPOCH_START_LEN).then(|| EpochStart {
            node: array_at(record.body, 0),
            incarnation: array_at(record.body, 16),
            leader: array_at(record.body, 32),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_start_comes_back_and_nothing_else_is_one() {
        let start = EpochStart {
            node: [1; 16],
            incarnation: [2; 16],
            leader: [3; 16],
        };
        let payload = start.payload(ShardId(4));
        assert_eq!(payload.flags(), flags::CONTROL);
        let record = payload.records().next().unwrap().unwrap();
        assert_eq!(record.shard, ShardId(4));
        assert_eq!(EpochStart::of(&record), Some(start));
        let (head, body) = ([OWNER_CODE_MIN], &record.body[1..]);
        for other in [
            Record {
                kind: Kind::Put,
                ..record
            },
            Record {
                head: &head,
                ..record
            },
            Record { body, ..record },
        ] {
            assert_eq!(EpochStart::of(&other), None, "{other:?}");
        }
    }
}
