//! Turns records into state. Live writes, recovery and followers all pass through here.

use strandline_wal::batch::{Damage, Kind, Record, Records};
use strandline_wal::{Hlc, ShardId};

use super::catalog::Catalog;
use super::memtable::{MemEntry, Memtable};
use crate::table::{EntryKind, LogPlace};

/// Where a batch's payload lies in the log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PayloadPlace {
    pub shard: ShardId,
    pub segment: u64,
    pub at: u32,
}

/// Applies the records of one batch. Applying one again changes nothing: a version that is already
/// there is the same version. `is_expected` tells whether the memtable was told of the first
/// [`EXPECT_COUNT`] records, see [`expect`].
pub(crate) fn apply(
    records: Records<'_>,
    is_expected: bool,
    version: Hlc,
    place: PayloadPlace,
    memtable: &Memtable,
    catalog: &Catalog,
) -> Result<(), Damage> {
    let mut ahead = records.clone();
    if !is_expected {
        expect(&mut ahead, EXPECT_COUNT, memtable);
    } else if ahead.left() > EXPECT_COUNT {
        ahead.by_ref().take(EXPECT_COUNT).for_each(drop);
    }
    let has_more = records.left() > EXPECT_COUNT;
    for record in records {
        if has_more {
            expect(&mut ahead, 1, memtable);
        }
        let record = record?;
        match record.kind {
            Kind::Put | Kind::Delete => {
                let kind = match record.kind {
                    Kind::Put => EntryKind::Value,
                    _ => EntryKind::Tombstone,
                };
                let value = LogPlace {
                    shard: place.shard,
                    first_seq: place.segment,
                    offset: place.at + record.body_at as u32,
                    len: record.body.len() as u32,
                };
                memtable.insert(record.head, version, MemEntry { kind, place: value });
            }
            Kind::Control => control(&record, catalog)?,
        }
    }
    Ok(())
}

/// Tells a memtable of the next few records of a batch, so that it has their names at hand.
pub(crate) fn expect(records: &mut Records<'_>, count: usize, memtable: &Memtable) {
    // One that is damaged is told of when its turn comes.
    for record in records.take(count).flatten() {
        if record.kind != Kind::Control {
            memtable.prefetch(record.head);
        }
    }
}

/// Records that are told of ahead of their turn.
pub(crate) const EXPECT_COUNT: usize = 8;

fn control(record: &Record<'_>, catalog: &Catalog) -> Result<(), Damage> {
    let wrong = |what, found| {
        Err(Damage::Record {
            at: record.body_at,
            what,
            found,
        })
    };
    match record.head {
        [strandline_wal::control::EPOCH_START] => Ok(()),
        [super::catalog::KEYSPACE_CREATED] => match super::catalog::decode(record.body) {
            Some((number, name)) => {
                catalog.learn(number, name);
                Ok(())
            }
            None => wrong("keyspace record", record.body.len() as u64),
        },
        _ => wrong(
            "control code",
            record.head.first().copied().unwrap_or_default().into(),
        ),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use strandline_wal::batch::Payload;

    /// A batch whose checksum holds may still say what no writer of this version says.
    #[test]
    fn control_records_that_mean_nothing_are_refused() {
        let place = PayloadPlace {
            shard: ShardId(0),
            segment: 1,
            at: 64,
        };
        for (head, body, what) in [
            (&[128][..], &[0, 0, 0, 0, b'x'][..], "keyspace record"),
            (&[129], b"", "control code"),
            (&[], b"", "control code"),
            (&[1, 1], b"", "control code"),
        ] {
            let mut payload = Payload::new();
            payload
                .push(Kind::Control, ShardId(0), &[head], body)
                .unwrap();
            let payload = payload.seal(0);
            let (memtable, catalog) = (Memtable::default(), Catalog::default());
            let damage =
                apply(payload.records(), false, Hlc(1), place, &memtable, &catalog).unwrap_err();
            assert!(damage.to_string().contains(what), "{head:?}: {damage}");
            assert_eq!(catalog.list(), []);
        }
    }
}
