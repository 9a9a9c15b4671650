//! How far each shard has come without a gap, read by any thread at any time.
//!
//! Ranges may be noted in any order; the mark only passes what is contiguous from the start, so a
//! later segment never hides an earlier one that is missing.

use std::collections::BTreeMap;

use strandline_wal::ShardId;

use crate::sync::{AtomicU64, Mutex, Ordering};

/// Most separate ranges that may wait behind a gap.
pub const RANGE_COUNT_MAX: usize = 1024;

/// The marks of a dataset's shards.
#[derive(Debug)]
pub struct ReplicationState {
    shards: BTreeMap<ShardId, Shard>,
}

#[derive(Debug)]
struct Shard {
    // Invariant: everything up to it was noted. Changes only under the lock, and only rises.
    mark: AtomicU64,
    // Noted ranges behind a gap, first to last. Invariant: disjoint, not adjacent, all above the mark.
    waiting: Mutex<BTreeMap<u64, u64>>,
}

/// Too many ranges wait behind a gap: fetch what is missing first.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("shard {shard} misses {missing} and {RANGE_COUNT_MAX} ranges wait behind it")]
pub struct TooManyGaps {
    /// Which shard.
    pub shard: ShardId,
    /// The first sequence that is missing.
    pub missing: u64,
}

impl ReplicationState {
    /// Marks that start where each shard stands.
    pub fn new(shards: impl IntoIterator<Item = (ShardId, u64)>) -> ReplicationState {
        let shard = |mark| Shard {
            mark: AtomicU64::new(mark),
            waiting: Mutex::new(BTreeMap::new()),
        };
        ReplicationState {
            shards: shards
                .into_iter()
                .map(|(id, mark)| (id, shard(mark)))
                .collect(),
        }
    }

    /// The high-water mark of a shard: everything up to it is here. 0 for a shard that is not.
    pub fn mark(&self, shard: ShardId) -> u64 {
        self.shards
            .get(&shard)
            .map_or(0, |shard| shard.mark.load(Ordering::Acquire))
    }

    /// All marks.
    pub fn marks(&self) -> Vec<(ShardId, u64)> {
        self.shards
            .keys()
            .map(|shard| (*shard, self.mark(*shard)))
            .collect()
    }

    /// Records `first..=last` are here; returns the mark. Noting them again does no harm.
    ///
    /// # Errors
    /// [`TooManyGaps`]; nothing was noted then.
    ///
    /// # Panics
    /// For a shard that is not there, and for an empty range.
    pub fn note(&self, shard: ShardId, first: u64, last: u64) -> Result<u64, TooManyGaps> {
        assert!(first >= 1 && first <= last, "records {first}..={last}");
        let state = self.shards.get(&shard).expect("shards are fixed");
        let mut waiting = state.waiting.lock();
        let mark = state.mark.load(Ordering::Relaxed);
        if last <= mark {
            return Ok(mark);
        }
        if first > mark + 1 {
            insert(&mut waiting, first, last);
            if waiting.len() > RANGE_COUNT_MAX {
                // The farthest range goes: it is the last one that will be of use.
                waiting.pop_last();
                return Err(TooManyGaps {
                    shard,
                    missing: mark + 1,
                });
            }
            return Ok(mark);
        }
        let mut mark = last;
        while let Some(entry) = waiting
            .first_entry()
            .filter(|entry| *entry.key() <= mark + 1)
        {
            mark = mark.max(entry.remove());
        }
        state.mark.store(mark, Ordering::Release);
        Ok(mark)
    }
}

/// Adds a range and joins it with those that it meets.
fn insert(ranges: &mut BTreeMap<u64, u64>, mut first: u64, mut last: u64) {
    while let Some((&start, &end)) = ranges.range(..=last.saturating_add(1)).next_back() {
        if end.saturating_add(1) < first {
            break;
        }
        ranges.remove(&start);
        (first, last) = (first.min(start), last.max(end));
    }
    ranges.insert(first, last);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const S: ShardId = ShardId(3);

    #[test]
    fn a_later_segment_never_hides_an_earlier_missing_one() {
        let state = ReplicationState::new([(S, 0)]);
        assert_eq!(state.note(S, 11, 20), Ok(0));
        assert_eq!(state.note(S, 31, 40), Ok(0));
        assert_eq!(state.note(S, 1, 10), Ok(20));
        assert_eq!(state.note(S, 21, 30), Ok(40));
        assert_eq!(state.marks(), [(S, 40)]);
    }

    #[test]
    fn gaps_have_a_limit_and_the_nearest_ranges_are_kept() {
        let state = ReplicationState::new([(S, 0)]);
        for n in 1..=RANGE_COUNT_MAX as u64 {
            assert_eq!(state.note(S, n * 2 + 1, n * 2 + 1), Ok(0));
        }
        let far = RANGE_COUNT_MAX as u64 * 2 + 3;
        assert_eq!(
            state.note(S, far, far),
            Err(TooManyGaps {
                shard: S,
                missing: 1
            })
        );
        assert_eq!(state.note(S, 1, 2), Ok(3));
    }

    #[test]
    fn what_is_known_and_what_is_not_there_changes_no_mark() {
        let state = ReplicationState::new([(S, 10)]);
        assert_eq!(state.note(S, 3, 10), Ok(10));
        assert_eq!((state.mark(S), state.mark(ShardId(4))), (10, 0));
        let gaps = TooManyGaps {
            shard: S,
            missing: 11,
        };
        let text = gaps.to_string();
        assert_eq!(text, "shard 3 misses 11 and 1024 ranges wait behind it");
    }

    proptest! {
        #[test]
        fn the_mark_is_the_end_of_the_contiguous_prefix(
            ranges in prop::collection::vec((1u64..60, 0u64..8), 0..40),
        ) {
            let state = ReplicationState::new([(S, 0)]);
            let mut noted = BTreeSet::new();
            let mut before = 0;
            for (first, more) in ranges {
                let mark = state.note(S, first, first + more).unwrap();
                noted.extend(first..=first + more);
                let prefix = (1..).take_while(|seq| noted.contains(seq)).last().unwrap_or(0);
                prop_assert_eq!(mark, prefix);
                prop_assert!(mark >= before);
                prop_assert_eq!(state.mark(S), mark);
                before = mark;
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use std::sync::Arc;

    /// Two threads note a gap's two sides while a third reads: it never sees the far side alone, and
    /// never a step back.
    #[test]
    fn readers_never_see_past_a_gap() {
        loom::model(|| {
            let shard = ShardId(0);
            let state = Arc::new(ReplicationState::new([(shard, 0)]));
            let noted = [(1, 5), (6, 9)].map(|(first, last)| {
                let state = Arc::clone(&state);
                loom::thread::spawn(move || {
                    state.note(shard, first, last).expect("one gap at most")
                })
            });
            let (one, two) = (state.mark(shard), state.mark(shard));
            assert!([0, 5, 9].contains(&one) && one <= two);
            for thread in noted {
                thread.join().expect("it does not panic");
            }
            assert_eq!(state.mark(shard), 9);
        });
    }
}
