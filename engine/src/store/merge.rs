//! Many sorted sources as one: the merge, what a reader sees of it, and what a compaction keeps.

mod compaction;
mod visible;

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::ops::ControlFlow;

use smallvec::{SmallVec, smallvec};
use strandline_wal::{Error, Result};

use crate::table::{Cursor, EntryKind, Found, InternalKey, Step, ValueSource, head_of};

pub use compaction::{CompactionIter, CompactionRules, Dropped};
pub use visible::{See, VisibleIter};

/// The entries of several cursors in one order.
///
/// The order is that of the keys; entries with one key, which are copies of one record, come in the
/// order of their sources. So sources are given newest first, and the first copy is the one to
/// take. An error of any source stops the merge at once: without that source nothing that follows
/// is known to be right.
///
/// The sources play a tournament whose losers are kept in a tree: a step replays the path of one
/// source, which is one comparison per level, none for one source and one for two.
pub struct Merge<C> {
    sources: Vec<C>,
    /// Per inner node of the tree the source that lost there. Node 0 is not used.
    losers: Nodes,
    /// The source that the merge stands on, where that one is valid.
    winner: usize,
    is_backward: bool,
    /// Invariant: while this is set, the merge stands nowhere.
    error: Option<Error>,
}

/// Sources by the nodes of the tree: most trees are small.
type Nodes = SmallVec<[usize; 8]>;

impl<C: Cursor> Merge<C> {
    /// Merges cursors, the newest source first. It stands nowhere yet.
    pub fn new(sources: Vec<C>) -> Merge<C> {
        let losers = smallvec![0; sources.len()];
        Merge {
            sources,
            losers,
            winner: 0,
            is_backward: false,
            error: None,
        }
    }

    /// Moves to the first entry at or behind `key`.
    pub fn seek(&mut self, key: InternalKey<'_>) {
        self.position(false, |source| source.seek(key));
    }

    /// Moves to the last entry at or before `key`.
    pub fn seek_for_prev(&mut self, key: InternalKey<'_>) {
        self.position(true, |source| source.seek_for_prev(key));
    }

    /// Moves to the first entry.
    pub fn first(&mut self) {
        self.position(false, Cursor::first);
    }

    /// Moves to the last entry.
    pub fn last(&mut self) {
        self.position(true, Cursor::last);
    }

    /// Moves to the next entry. Does nothing where the merge stands nowhere.
    #[inline]
    pub fn next(&mut self) {
        self.step(false);
    }

    /// Moves to the entry before. Does nothing where the merge stands nowhere.
    pub fn prev(&mut self) {
        self.step(true);
    }

    /// Whether the merge stands on an entry.
    #[inline]
    pub fn is_valid(&self) -> bool {
        self.error.is_none() && self.sources.get(self.winner).is_some_and(Cursor::is_valid)
    }

    /// Where the entry stands.
    ///
    /// # Panics
    /// This and the methods below, where the merge stands nowhere.
    #[inline]
    pub fn key(&self) -> InternalKey<'_> {
        self.standing().key()
    }

    /// The entry's value.
    pub fn value(&self) -> ValueSource<'_> {
        self.standing().value()
    }

    /// What the entry says.
    #[inline]
    pub fn kind(&self) -> EntryKind {
        self.standing().kind()
    }

    /// The entry's version and value, to keep.
    #[inline]
    pub fn found(&self) -> Found {
        self.standing().found()
    }

    /// What stopped the merge, where that was not an end.
    ///
    /// # Errors
    /// That of the source that failed.
    pub fn status(&self) -> Result<()> {
        self.error.clone().map_or(Ok(()), Err)
    }

    /// The source that the merge stands on, where all others are at their end: going on, they stay there.
    pub fn alone(&mut self) -> Option<&mut C> {
        let is_alone = self.is_valid() && self.sources.iter().filter(|s| s.is_valid()).count() == 1;
        is_alone.then(|| &mut self.sources[self.winner])
    }

    /// Ends the merge with what became of the source that was alone.
    pub fn end_alone(&mut self) {
        self.error = stopped(&self.sources[self.winner]).err();
    }

    /// Shows the entries from where the merge stands to `see`, ascending, until that breaks. Where the merge
    /// stands afterwards is not said; [`Self::status`] is.
    ///
    /// Each source in its turn shows all that comes before the first entry of the others, on its own.
    pub fn visit(&mut self, see: &mut impl FnMut(Step<'_>) -> ControlFlow<()>) {
        // Whether the entry that was shown last has the name of the one that comes next.
        let mut repeats = false;
        while self.is_valid() {
            let (winner, runner_up) = (self.winner, self.runner_up());
            let Some(other) = runner_up else {
                let flow = self.sources[winner].visit(&mut |mut step| {
                    step.repeats |= std::mem::take(&mut repeats);
                    see(step)
                });
                if flow.is_continue() {
                    self.error = stopped(&self.sources[winner]).err();
                }
                return;
            };
            let sources = self.sources.get_disjoint_mut([winner, other]);
            let [source, other_source] = sources.expect("two sources");
            let end = other_source.key();
            let end_head = head_of(end.name);
            let mut is_first = repeats;
            let mut is_past = false;
            repeats = false;
            let flow = source.visit(&mut |mut step| {
                if head_of(step.key.name) >= end_head {
                    let order = step.key.cmp(&end).then(winner.cmp(&other));
                    if order.is_gt() {
                        is_past = true;
                        return ControlFlow::Break(());
                    }
                    repeats = step.key.name == end.name;
                }
                step.repeats |= std::mem::take(&mut is_first);
                see(step)
            });
            match (flow, is_past) {
                (ControlFlow::Break(()), false) => return,
                (ControlFlow::Break(()), true) if self.losers.len() == 2 => {
                    self.losers[1] = winner;
                    self.winner = other;
                    continue;
                }
                (ControlFlow::Break(()), true) => {}
                (ControlFlow::Continue(()), _) => {
                    if let Err(error) = stopped(source) {
                        self.error = Some(error);
                        return;
                    }
                }
            }
            self.replay();
        }
    }

    /// The source that comes next, if any is left but the one that the merge stands on.
    fn runner_up(&self) -> Option<usize> {
        let mut node = (self.winner + self.sources.len()) / 2;
        let mut best = None;
        while node > 0 {
            let loser = self.losers[node];
            if best.is_none_or(|best| self.beats(loser, best)) {
                best = Some(loser);
            }
            node /= 2;
        }
        best.filter(|best| self.sources[*best].is_valid())
    }

    fn standing(&self) -> &C {
        assert!(self.error.is_none(), "the merge stands on an entry");
        self.sources
            .get(self.winner)
            .expect("the merge stands on an entry")
    }

    /// Positions every source and lets all of them play.
    fn position(&mut self, is_backward: bool, mut go: impl FnMut(&mut C)) {
        self.is_backward = is_backward;
        self.error = None;
        for source in &mut self.sources {
            go(source);
            if let Err(error) = stopped(source) {
                self.error = Some(error);
                return;
            }
        }
        self.play_all();
    }

    #[inline]
    fn step(&mut self, is_back: bool) {
        if !self.is_valid() {
            return;
        }
        if self.is_backward != is_back {
            self.turn(is_back);
            return;
        }
        let source = &mut self.sources[self.winner];
        if is_back {
            source.prev()
        } else {
            source.next()
        }
        match stopped(source) {
            Ok(()) => self.replay(),
            Err(error) => self.error = Some(error),
        }
    }

    /// Takes a step in the other direction: every source goes to its neighbour of where the merge
    /// stands, on the other side.
    fn turn(&mut self, is_back: bool) {
        let standing = self.standing().key();
        let name = standing.name.to_vec();
        let standing = InternalKey {
            name: &name,
            version: standing.version,
        };
        self.is_backward = is_back;
        for index in 0..self.sources.len() {
            let source = &mut self.sources[index];
            // A source that stands nowhere is at its end in the old direction.
            if !source.is_valid() {
                if is_back {
                    source.last()
                } else {
                    source.first()
                }
            }
            // One step is enough, but for entries that were inserted meanwhile.
            while source.is_valid() {
                let side = source.key().cmp(&standing).then(index.cmp(&self.winner));
                if side
                    == if is_back {
                        Ordering::Less
                    } else {
                        Ordering::Greater
                    }
                {
                    break;
                }
                if is_back {
                    source.prev()
                } else {
                    source.next()
                }
            }
            if let Err(error) = stopped(source) {
                self.error = Some(error);
                return;
            }
        }
        self.play_all();
    }

    /// Whether source `a` comes before source `b`.
    #[inline]
    fn beats(&self, a: usize, b: usize) -> bool {
        let (one, other) = (&self.sources[a], &self.sources[b]);
        match (one.is_valid(), other.is_valid()) {
            (true, true) => {
                let order = one.key().cmp(&other.key()).then(a.cmp(&b));
                order
                    == if self.is_backward {
                        Ordering::Greater
                    } else {
                        Ordering::Less
                    }
            }
            (is_valid, _) => is_valid,
        }
    }

    /// Plays the whole tournament. The leaves are nodes `count..2 * count`, the root is node 1.
    fn play_all(&mut self) {
        let count = self.sources.len();
        if count < 2 {
            self.winner = 0;
            return;
        }
        let mut winners: Nodes = (0..2 * count).map(|n| n.saturating_sub(count)).collect();
        for node in (1..count).rev() {
            let (a, b) = (winners[2 * node], winners[2 * node + 1]);
            let (winner, loser) = if self.beats(b, a) { (b, a) } else { (a, b) };
            winners[node] = winner;
            self.losers[node] = loser;
        }
        self.winner = winners[1];
    }

    /// Plays the path of the source that won last time and has moved since.
    #[inline]
    fn replay(&mut self) {
        let mut node = (self.winner + self.sources.len()) / 2;
        while node > 0 {
            if self.beats(self.losers[node], self.winner) {
                std::mem::swap(&mut self.losers[node], &mut self.winner);
            }
            node /= 2;
        }
    }
}

/// The error that a source stopped for, if it did.
fn stopped<C: Cursor>(source: &C) -> Result<()> {
    if source.is_valid() {
        Ok(())
    } else {
        source.status()
    }
}
