//! Who led which part of a log, and where two logs part.
//!
//! Both sides keep a table of (epoch, leader id, first sequence). A follower asks with its end; the
//! serving side answers with the largest leadership that both may share and where it ends there; the
//! follower falls back to the smaller of the two ends and asks again, until both agree (KIP-101,
//! KIP-279). Every round asks strictly lower, so it ends. Agreement on names is then checked by the
//! chain value at that place: a difference there is damage or rewritten history, never a fork to cut.

use strandline_wal::bug::planted;
use strandline_wal::control::EpochStart;
use strandline_wal::log::Log;
use strandline_wal::reader::{Reader, Step};
use strandline_wal::{Epoch, Position, ShardId};

use crate::error::{Error, Result};
use crate::ids::{LeaderId, ShardEnd};

/// Most epochs that one table may have; a leadership of one second each lasts for eleven days.
pub const EPOCH_COUNT_MAX: usize = 1 << 20;

/// One leadership in one log.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EpochEntry {
    /// Its number.
    pub epoch: Epoch,
    /// Whose claim.
    pub leader: LeaderId,
    /// Sequence of its first record.
    pub first_seq: u64,
}

/// The leaderships of one log, oldest first.
///
/// Invariant: epochs and first sequences rise strictly.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EpochTable(Vec<EpochEntry>);

/// What the serving side says of a follower's end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// This log has that leadership up to there too: compare the chain values.
    Same,
    /// The largest leadership that may be shared, and where it ends here.
    Ends(Position, LeaderId),
    /// More of a living leader's own epoch than it wrote, or a place that no honest log can have.
    Impossible,
}

impl EpochTable {
    /// The table of the log's segments, over what is known of the part before them.
    ///
    /// # Errors
    /// The log's; [`Error::Store`] where an epoch does not begin with its start batch.
    pub fn rebuild(base: &EpochTable, log: &std::sync::Arc<Log>) -> Result<EpochTable> {
        let mut table = base.clone();
        table.truncate(log.last_seq());
        for segment in log.segments() {
            let (epoch, first_seq) = (segment.header().epoch, segment.first_seq());
            if segment.last_seq() < first_seq || table.last().is_some_and(|e| e.epoch >= epoch) {
                continue;
            }
            let leader = leader_at(log, first_seq)?;
            table.push(EpochEntry {
                epoch,
                leader,
                first_seq,
            });
        }
        Ok(table)
    }

    /// A table of these entries; `None` where they do not rise or are too many.
    pub fn of(entries: Vec<EpochEntry>) -> Option<EpochTable> {
        let rises = |w: &[EpochEntry]| w[0].epoch < w[1].epoch && w[0].first_seq < w[1].first_seq;
        let rise = entries.windows(2).all(rises) || planted("epochs.rise");
        let legal = entries.len() <= EPOCH_COUNT_MAX && rise;
        legal.then_some(EpochTable(entries))
    }

    /// A leadership begins.
    ///
    /// # Panics
    /// Where epoch or sequence does not rise.
    pub fn push(&mut self, entry: EpochEntry) {
        if let Some(last) = self.last() {
            assert!(last.epoch < entry.epoch, "epochs rise");
            assert!(last.first_seq < entry.first_seq, "every epoch has a record");
        }
        self.0.push(entry);
    }

    /// Forgets leaderships that begin behind `seq`.
    pub fn truncate(&mut self, seq: u64) {
        self.0.retain(|entry| entry.first_seq <= seq);
    }

    /// All leaderships.
    pub fn entries(&self) -> &[EpochEntry] {
        &self.0
    }

    /// The last leadership.
    pub fn last(&self) -> Option<&EpochEntry> {
        self.0.last()
    }

    /// The leadership that wrote record `seq`.
    pub fn at(&self, seq: u64) -> Option<&EpochEntry> {
        let after = self.0.partition_point(|entry| entry.first_seq <= seq);
        after.checked_sub(1).map(|n| &self.0[n])
    }

    /// The last sequence of entry `n` in a log that ends with `log_end`.
    fn end_of(&self, n: usize, log_end: u64) -> u64 {
        self.0.get(n + 1).map_or(log_end, |next| next.first_seq - 1)
    }

    /// What a log with this table, which ends with `log_end`, says of a follower that ends at `ask`.
    /// `live` is the leadership that writes right now, if this side holds it.
    pub fn answer(&self, ask: &ShardEnd, log_end: u64, live: Option<LeaderId>) -> Answer {
        if ask.position == Position::default() {
            return Answer::Same;
        }
        if ask.position.seq == 0 || ask.position.epoch == Epoch(0) {
            return Answer::Impossible;
        }
        let after = self
            .0
            .partition_point(|entry| entry.epoch <= ask.position.epoch);
        let Some(n) = after.checked_sub(1) else {
            return Answer::Ends(Position::default(), LeaderId::default());
        };
        let entry = &self.0[n];
        let is_same = entry.leader == ask.leader || planted("epochs.leader");
        if entry.epoch == ask.position.epoch && is_same {
            let end = self.end_of(n, log_end);
            return match () {
                () if ask.position.seq < entry.first_seq => Answer::Impossible,
                () if ask.position.seq <= end => Answer::Same,
                () if live == Some(entry.leader) => Answer::Impossible,
                () => Answer::Ends(
                    Position {
                        epoch: entry.epoch,
                        seq: end,
                    },
                    entry.leader,
                ),
            };
        }
        // The same number claimed by another leader: the histories parted before it.
        let n = if entry.epoch == ask.position.epoch {
            n.checked_sub(1)
        } else {
            Some(n)
        };
        match n {
            None => Answer::Ends(Position::default(), LeaderId::default()),
            Some(n) => {
                let seq = self.end_of(n, log_end);
                Answer::Ends(
                    Position {
                        epoch: self.0[n].epoch,
                        seq,
                    },
                    self.0[n].leader,
                )
            }
        }
    }

    /// Where a follower with this table, whose log ends with `log_end`, falls back to after it was
    /// told that leadership (`told.epoch`, `leader`) ends at `told.seq` at the serving side.
    pub fn fall_back(
        &self,
        told: Position,
        leader: LeaderId,
        log_end: u64,
    ) -> (Position, LeaderId) {
        let after = self.0.partition_point(|entry| entry.epoch <= told.epoch);
        let Some(n) = after.checked_sub(1) else {
            return Default::default();
        };
        let entry = &self.0[n];
        let is_same = entry.leader == leader || planted("epochs.fall_back");
        if entry.epoch == told.epoch && is_same {
            let seq = self.end_of(n, log_end).min(told.seq);
            return match seq >= entry.first_seq {
                true => (
                    Position {
                        epoch: entry.epoch,
                        seq,
                    },
                    entry.leader,
                ),
                false => self.end_before(n, log_end),
            };
        }
        if entry.epoch < told.epoch {
            let seq = self.end_of(n, log_end);
            return (
                Position {
                    epoch: entry.epoch,
                    seq,
                },
                entry.leader,
            );
        }
        self.end_before(n, log_end)
    }

    fn end_before(&self, n: usize, log_end: u64) -> (Position, LeaderId) {
        n.checked_sub(1).map_or_else(Default::default, |n| {
            let seq = self.end_of(n, log_end);
            (
                Position {
                    epoch: self.0[n].epoch,
                    seq,
                },
                self.0[n].leader,
            )
        })
    }
}

/// The leader id in the epoch-start batch that record `seq` is.
fn leader_at(log: &std::sync::Arc<Log>, seq: u64) -> Result<LeaderId> {
    let mut reader = Reader::new(std::sync::Arc::clone(log), seq);
    if let Step::Batch(stored) = reader.next()? {
        let first = stored.batch().records().next();
        if let Some(start) = first
            .and_then(|record| record.ok())
            .and_then(|r| EpochStart::of(&r))
        {
            return Ok(LeaderId(start.leader));
        }
    }
    let what = format!(
        "record {seq} of {} begins an epoch and is not its start batch",
        log.id()
    );
    Err(Error::Store { what })
}

/// The end of a log out of its parts: what [`crate::LogSource::end`] returns.
pub fn end_of_log(shard: ShardId, table: &EpochTable, seq: u64, chain: u32) -> ShardEnd {
    match table.at(seq) {
        Some(entry) if seq > 0 => ShardEnd {
            shard,
            position: Position {
                epoch: entry.epoch,
                seq,
            },
            leader: entry.leader,
            chain,
        },
        _ => ShardEnd::empty(shard),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> LeaderId {
        LeaderId([n; 16])
    }

    fn table(entries: &[(u32, u8, u64)]) -> EpochTable {
        let entry = |&(epoch, leader, first_seq)| EpochEntry {
            epoch: Epoch(epoch),
            leader: id(leader),
            first_seq,
        };
        EpochTable::of(entries.iter().map(entry).collect()).unwrap()
    }

    fn ask(epoch: u32, leader: u8, seq: u64) -> ShardEnd {
        let position = Position {
            epoch: Epoch(epoch),
            seq,
        };
        ShardEnd {
            shard: ShardId(0),
            position,
            leader: id(leader),
            chain: 0,
        }
    }

    fn ends(epoch: u32, leader: u8, seq: u64) -> Answer {
        Answer::Ends(
            Position {
                epoch: Epoch(epoch),
                seq,
            },
            id(leader),
        )
    }

    #[test]
    fn the_serving_side_answers_every_kind_of_end() {
        let leader = table(&[(1, 1, 1), (3, 3, 11), (5, 5, 21)]);
        let check = |asked: ShardEnd, expected| {
            assert_eq!(
                leader.answer(&asked, 30, Some(id(5))),
                expected,
                "{asked:?}"
            )
        };
        check(ShardEnd::empty(ShardId(0)), Answer::Same);
        check(ask(1, 1, 10), Answer::Same);
        check(ask(1, 1, 15), ends(1, 1, 10));
        check(ask(2, 2, 15), ends(1, 1, 10));
        check(ask(3, 3, 20), Answer::Same);
        check(ask(3, 9, 20), ends(1, 1, 10));
        check(
            ask(1, 9, 5),
            Answer::Ends(Position::default(), LeaderId::default()),
        );
        check(ask(4, 4, 40), ends(3, 3, 20));
        check(ask(5, 5, 30), Answer::Same);
        check(ask(5, 5, 31), Answer::Impossible);
        check(ask(3, 3, 5), Answer::Impossible);
        check(ask(0, 0, 5), Answer::Impossible);
        check(ask(7, 7, 0), Answer::Impossible);
        assert_eq!(leader.answer(&ask(5, 5, 31), 30, None), ends(5, 5, 30));
    }

    #[test]
    fn a_follower_falls_back_to_the_smaller_end() {
        let mine = table(&[(1, 1, 1), (2, 2, 13)]);
        let told = |epoch, leader, seq| {
            mine.fall_back(
                Position {
                    epoch: Epoch(epoch),
                    seq,
                },
                id(leader),
                20,
            )
        };
        assert_eq!(
            told(1, 1, 10),
            (
                Position {
                    epoch: Epoch(1),
                    seq: 10
                },
                id(1)
            )
        );
        assert_eq!(
            told(1, 1, 15),
            (
                Position {
                    epoch: Epoch(1),
                    seq: 12
                },
                id(1)
            )
        );
        assert_eq!(
            told(2, 9, 15),
            (
                Position {
                    epoch: Epoch(1),
                    seq: 12
                },
                id(1)
            )
        );
        assert_eq!(
            told(3, 3, 15),
            (
                Position {
                    epoch: Epoch(2),
                    seq: 20
                },
                id(2)
            )
        );
        assert_eq!(told(0, 0, 0), Default::default());
        assert_eq!(told(1, 9, 4), Default::default());
    }

    #[test]
    fn tables_that_do_not_rise_are_refused() {
        let entry = |epoch, first_seq| EpochEntry {
            epoch: Epoch(epoch),
            leader: id(1),
            first_seq,
        };
        assert!(EpochTable::of(vec![entry(1, 1), entry(1, 2)]).is_none());
        assert!(EpochTable::of(vec![entry(1, 2), entry(2, 2)]).is_none());
        assert!(EpochTable::of(vec![entry(1, 1), entry(2, 2)]).is_some());
    }

    /// A history as (epoch, leader) per record; two histories share a prefix and then go their ways.
    fn table_of(history: &[(u32, u8)]) -> EpochTable {
        let mut table = EpochTable::default();
        for (n, (epoch, leader)) in history.iter().enumerate() {
            if table.last().is_none_or(|last| last.epoch < Epoch(*epoch)) {
                table.push(EpochEntry {
                    epoch: Epoch(*epoch),
                    leader: id(*leader),
                    first_seq: n as u64 + 1,
                });
            }
        }
        table
    }

    fn history(prefix: &[(u32, u8)], steps: &[u8], side: u8) -> Vec<(u32, u8)> {
        let mut history = prefix.to_vec();
        let (mut epoch, mut leader) = history.last().copied().unwrap_or((0, 0));
        for (n, step) in steps.iter().enumerate() {
            if n == 0 || *step > 0 {
                epoch += 1 + u32::from(*step);
                leader = 10 * side + (epoch % 10) as u8;
            }
            history.push((epoch, leader));
        }
        history
    }

    proptest! {
        /// Two histories that part after a common prefix agree on exactly that prefix.
        #[test]
        fn agreement_is_the_common_prefix(
            common in prop::collection::vec(0u8..3, 0..12),
            left in prop::collection::vec(0u8..3, 0..8),
            right in prop::collection::vec(0u8..3, 0..8),
        ) {
            let common = history(&[], &common, 1);
            let serving = history(&common, &left, 2);
            let asking = history(&common, &right, 3);
            let (theirs, mine) = (table_of(&serving), table_of(&asking));
            let shared = serving.iter().zip(&asking).take_while(|(a, b)| a == b).count() as u64;
            let (log_end, my_end) = (serving.len() as u64, asking.len() as u64);
            let mut end = end_of_log(ShardId(0), &mine, my_end, 0);
            let mut rounds = 0;
            loop {
                match theirs.answer(&end, log_end, None) {
                    Answer::Same => break,
                    Answer::Impossible => prop_assert!(false, "honest logs"),
                    Answer::Ends(told, leader) => {
                        let (position, leader) = mine.fall_back(told, leader, my_end);
                        prop_assert!(position < end.position, "every round asks lower");
                        end = ShardEnd { position, leader, ..end };
                    }
                }
                rounds += 1;
                prop_assert!(rounds < 40);
            }
            prop_assert_eq!(end.position.seq, shared);
        }
    }

    #[test]
    fn entries_that_do_not_rise_are_no_table() {
        let of = |entries: &[(u32, u64)]| {
            let entry = |&(epoch, first_seq)| EpochEntry {
                epoch: Epoch(epoch),
                leader: id(1),
                first_seq,
            };
            EpochTable::of(entries.iter().map(entry).collect()).is_some()
        };
        assert!(of(&[]) && of(&[(1, 1), (2, 5)]));
        assert!(!of(&[(2, 1), (2, 5)]) && !of(&[(1, 5), (2, 5)]));
    }

    /// Told an end that lies before the first record of its own entry, a follower falls back further.
    #[test]
    fn an_end_before_the_own_entry_falls_back_to_the_entry_before() {
        let own = table(&[(1, 1, 1), (3, 3, 10)]);
        let told = |epoch, seq| Position {
            epoch: Epoch(epoch),
            seq,
        };
        assert_eq!(own.fall_back(told(3, 9), id(3), 20), (told(1, 9), id(1)));
        assert_eq!(own.fall_back(told(3, 12), id(3), 20), (told(3, 12), id(3)));
        let first = table(&[(3, 3, 10)]);
        assert_eq!(first.fall_back(told(3, 9), id(3), 20), Default::default());
    }

    /// A segment of a new epoch that does not begin with its start batch has no leader.
    #[test]
    fn an_epoch_without_its_start_batch_is_an_error() {
        let env = strandline_wal::io::sim::SimEnv::new(1);
        let writer = crate::testing::writer(&env, &[2], 1);
        let error = EpochTable::rebuild(&EpochTable::default(), writer.log()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("record 1 of "), "{text}");
        assert!(
            text.contains("begins an epoch and is not its start batch"),
            "{text}"
        );
    }
}
