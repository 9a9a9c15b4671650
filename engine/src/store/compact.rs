//! Tables become fewer tables, and dead values leave their segments.
//!
//! Runs above the bottom one are merged once there are [`Options::run_count_max`] of them; they go
//! into the bottom run once they are a quarter of it. So a name is looked for in few places, and a
//! byte is rewritten a few times on its way down. Space is bounded too: where live values are less than
//! half of the segments that hold them, everything is merged and the values of mostly dead segments
//! are moved into tables.
//!
//! What goes into the bottom goes there piece by piece, by ranges of names: about a table's length of the
//! bottom is written anew with what the runs above say of its names, installed, and removed, before the
//! next. The runs above stay until the last piece is there, and say nothing that differs from it; so
//! a merge needs room for what they bring and for one piece, not for the bottom a second time, and one
//! that is given up has not worked in vain.
//!
//! Where nothing is written for a while, everything becomes one run, once: see [`Store::settle`].
//!
//! [`Options::run_count_max`]: crate::Options::run_count_max

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use strandline_wal::bug::planted;
use strandline_wal::{Hlc, IoContext, ShardId};

use super::flush::Outputs;
use super::iter::RunCursor;
use super::merge::{CompactionIter, CompactionRules, Merge};
use super::view::{Run, View};
use super::{Counters, Role, Store};
use crate::error::{Error, Result};
use crate::event::What;
use crate::files;
use crate::table::{EntryKind, PointerSource, Table, TableMeta, ValuePointer, ValueSource};

/// Runs above the bottom go into it once they are this share of it.
const BOTTOM_SHARE: u64 = 4;
/// Segments with less than this share of live values give them up when they are met.
const LIVE_SHARE_MIN: f64 = 0.5;
/// A compaction that met a full disk is not tried again by itself for so long.
const NO_SPACE_PAUSE_NS: u64 = 5_000_000_000;
/// Dead values below this are not worth a compaction of their own, in bytes.
const DEAD_LEN_MIN: u64 = 4 << 20;

/// What is new is merged into the bottom at once, when nothing is written, if it is this share of it.
const SETTLE_SHARE: u64 = 16;
/// Less than that is merged, later, only where all tables are below this, in bytes.
const SETTLE_LEN_MAX: u64 = 64 << 20;

/// Tells whether work is to go on: a merge asks it at every entry.
pub(crate) type GoesOn<'a> = &'a dyn Fn() -> bool;

/// A merge into the bottom that was given up between two pieces.
pub(super) struct Begun {
    /// Its runs, the bottom last.
    runs: Vec<Weak<Run>>,
    /// Up to this name the bottom has what those above it have.
    after: Vec<u8>,
}

/// What is merged.
struct Merged {
    /// Newest first.
    runs: Vec<Arc<Run>>,
    /// How many runs lie below.
    below: usize,
    /// Length at which a table is full, in bytes.
    len_max: u64,
    /// The last name that is done already, where a merge is taken up again.
    after: Option<Vec<u8>>,
}

/// A piece that was merged.
struct Installed {
    /// The tables that it replaces.
    gone: Vec<u64>,
    /// The bottom as it is now and the last name that is done; `None` where that was the last piece.
    next: Option<(Arc<Run>, Vec<u8>)>,
}

impl Store {
    fn merged_of(&self, view: &View, runs: Range<usize>) -> Merged {
        let below = view.runs.len() - runs.end;
        let tables: u64 = view.runs.iter().map(|run| run.len()).sum();
        Merged {
            below,
            len_max: match below {
                0 => self.piece_len(tables),
                _ => self.options().table_len_max,
            },
            runs: view.runs[runs].to_vec(),
            after: None,
        }
    }
}

/// How many tables at the front of these are a piece: one, or as many as are at most `len_max` together.
fn piece_count(tables: &[Arc<Table>], len_max: u64) -> usize {
    let mut lens = tables.iter().scan(0, |sum, table| {
        *sum += table.meta().len;
        Some(*sum)
    });
    let first = lens.next().map_or(0, |_| 1);
    first + lens.take_while(|len| *len <= len_max).count()
}

impl Store {
    /// Compacts if it is worth it. Returns whether something was done.
    ///
    /// # Errors
    /// The disk's, or damage in an input: the piece that met it changes nothing then, and damaged bytes
    /// are never given a new checksum. [`Error::Closed`] where it was not to go on.
    pub fn compact_step(&self, goes_on: GoesOn<'_>) -> Result<bool> {
        if self.role == Role::Reader {
            return Ok(false);
        }
        let after_ns = self.counters.compact_after_ns.load(Ordering::Relaxed);
        if self.shared.env.clock.mono_ns() < after_ns {
            return Ok(false);
        }
        let mut begun = self.compacting.lock();
        self.check()?;
        let view = self.view();
        let Some(runs) = self.choose(&view) else {
            return Ok(false);
        };
        let rest = match runs.end == view.runs.len() {
            true => self.rest_of(&view, &begun),
            false => None,
        };
        let merged = rest.unwrap_or_else(|| self.merged_of(&view, runs));
        drop(view);
        self.merge(merged, &mut begun, goes_on).map(|()| true)
    }

    /// What is left of a merge that was begun, where it can go on: its runs are the lowest still.
    fn rest_of(&self, view: &View, begun: &Option<Begun>) -> Option<Merged> {
        let Begun { runs, after } = begun.as_ref()?;
        let at = view.runs.len().checked_sub(runs.len())?;
        let is_same = |(now, then): (&Arc<Run>, &Weak<Run>)| then.as_ptr() == Arc::as_ptr(now);
        let are_same = view.runs[at..].iter().zip(runs).all(is_same);
        are_same.then(|| Merged {
            after: Some(after.clone()),
            ..self.merged_of(view, at..view.runs.len())
        })
    }

    /// Merges everything into one run where nothing was written for long enough and it is worth it, once
    /// after a write; an open counts as one. Returns whether something was done.
    ///
    /// What some follower lacks stays out of tables: should another node lead on without it, it can be
    /// cut off the log.
    ///
    /// # Errors
    /// As [`Store::compact_step`].
    pub fn settle(&self, goes_on: GoesOn<'_>) -> Result<bool> {
        let Some(after) = self.options().settle_after else {
            return Ok(false);
        };
        if self.role == Role::Reader {
            return Ok(false);
        }
        let now_ns = self.shared.env.clock.mono_ns();
        let counters = &self.counters;
        let written_ns = counters.last_write_ns.load(Ordering::Relaxed);
        let is_due = |pauses: u64| {
            let pause_ns = after.as_nanos().saturating_mul(pauses.into());
            u128::from(now_ns.saturating_sub(written_ns)) >= pause_ns
        };
        if counters.settled_write_ns.load(Ordering::Relaxed) == written_ns
            || now_ns < counters.compact_after_ns.load(Ordering::Relaxed)
            || !is_due(1)
            || !Self::settle_pauses(&self.view()).is_some_and(is_due)
            || !self.is_everywhere()
            || !self.has_room_to_settle()?
        {
            return Ok(false);
        }
        counters
            .settled_write_ns
            .store(written_ns, Ordering::Relaxed);
        // A write is more urgent, and what it brings is merged as well, later.
        let is_idle = || counters.last_write_ns.load(Ordering::Relaxed) == written_ns;
        match self.merge_idle(&|| goes_on() && is_idle()) {
            Err(Error::Closed(_)) if !is_idle() => return Ok(false),
            merged => merged?,
        }
        self.give_back()?;
        Ok(true)
    }

    /// Flushes, goes on with a merge that was begun, or merges everything where there is more than one run.
    fn merge_idle(&self, goes_on: GoesOn<'_>) -> Result<()> {
        self.flush()?;
        let mut begun = self.compacting.lock();
        self.check()?;
        let view = self.view();
        let rest = self.rest_of(&view, &begun);
        if rest.is_none() && view.runs.len() < 2 {
            return Ok(());
        }
        let merged = rest.unwrap_or_else(|| self.merged_of(&view, 0..view.runs.len()));
        drop(view);
        self.merge(merged, &mut begun, goes_on)
    }

    /// Whether what is new and a piece of the bottom fit on the disk a second time, beside what is kept
    /// aside.
    fn has_room_to_settle(&self) -> Result<bool> {
        let free_len = self.shared.env.disk.free_len(&self.dir);
        let free_len = free_len.during("stat", &self.dir)?;
        let view = self.view();
        let tables = view.runs.split_last().map_or(0, |(bottom, newer)| {
            let lens = bottom.tables.iter().map(|table| table.meta().len);
            let newer: u64 = newer.iter().map(|run| run.len()).sum();
            let piece = lens.max().max(Some(self.piece_len(newer + bottom.len())));
            newer + piece.map_or(0, |len| len.min(bottom.len()))
        });
        let logs: u64 = self.logs.iter().map(|log| log.file_len()).sum();
        let needed = tables + logs + self.options().reserve_len_max;
        Ok(free_len.is_none_or(|free_len| free_len >= needed))
    }

    /// How many pauses long nothing must have been written before everything is merged; `None` where that
    /// is not worth it.
    fn settle_pauses(view: &View) -> Option<u64> {
        // An epoch's start is logged, and in no memtable.
        let memtables = view.memtables();
        let levels = memtables.filter(|level| !level.index.is_empty());
        let logged: u64 = levels.map(|level| level.log_len()).sum();
        let (bottom, tiers) = match view.runs.split_last() {
            Some((bottom, tiers)) => (bottom.len(), tiers),
            None => (0, &[][..]),
        };
        let newer = logged + tiers.iter().map(|run| run.len()).sum::<u64>();
        if newer == 0 {
            return None;
        }
        let pauses = bottom.div_ceil(newer.saturating_mul(SETTLE_SHARE)).max(1);
        (pauses == 1 || bottom + newer < SETTLE_LEN_MAX).then_some(pauses)
    }

    /// Whether everything in the logs is committed, and every follower has it.
    fn is_everywhere(&self) -> bool {
        let committed = self.watermarks.committed();
        let is_shipped = self.role == Role::Leader && self.is_shipped.load(Ordering::Acquire);
        self.logs.iter().zip(committed.seqs).all(|(log, seq)| {
            let floor = self.floors[usize::from(log.id().shard.0)].load(Ordering::Acquire);
            let is_unheard = floor == u64::MAX && is_shipped;
            log.last_seq() <= seq && log.last_seq() < floor && !is_unheard
        })
    }

    /// Merges everything into one run.
    ///
    /// # Errors
    /// As [`Store::compact_step`].
    pub fn compact(&self) -> Result<()> {
        self.flush()?;
        let mut begun = self.compacting.lock();
        self.check()?;
        let view = self.view();
        if view.runs.is_empty() {
            return Ok(());
        }
        let all = self.merged_of(&view, 0..view.runs.len());
        drop(view);
        self.merge(all, &mut begun, &|| true)
    }

    /// Merges runs that lie side by side into one, and removes what nobody needs then. What is left of it
    /// where that fails is kept in `begun`.
    fn merge(&self, merged: Merged, begun: &mut Option<Begun>, goes_on: GoesOn<'_>) -> Result<()> {
        let done = self.merge_runs(merged, begun, goes_on);
        if done.as_ref().is_err_and(Error::is_no_space) {
            let until_ns = self.shared.env.clock.mono_ns() + NO_SPACE_PAUSE_NS;
            self.counters
                .compact_after_ns
                .store(until_ns, Ordering::Relaxed);
        }
        done?;
        self.drop_segments()?;
        self.shared.refill_reserve();
        Ok(())
    }

    /// The runs to merge, newest first, or `None`.
    fn choose(&self, view: &View) -> Option<Range<usize>> {
        if self.is_wasteful(view) {
            return Some(0..view.runs.len());
        }
        let (bottom, tiers) = view.runs.split_last()?;
        if tiers.len() < self.options().run_count_max {
            return None;
        }
        let tiers_len: u64 = tiers.iter().map(|run| run.len()).sum();
        if tiers_len * BOTTOM_SHARE >= bottom.len() {
            return Some(0..view.runs.len());
        }
        // An old tier that outweighs all newer ones together is left out, so that a byte is rewritten
        // a logarithmic number of times.
        let mut newer_len = 0;
        let mut end = 0;
        for run in tiers {
            if end >= 2 && run.len() > newer_len {
                break;
            }
            newer_len += run.len();
            end += 1;
        }
        Some(0..end)
    }

    /// Live bytes of each segment that tables point into.
    fn live_lens(view: &View) -> HashMap<(ShardId, u64), u64> {
        let mut live = HashMap::new();
        for table in view.runs.iter().flat_map(|run| &run.tables) {
            for file in table
                .meta()
                .files
                .iter()
                .filter(|f| f.source == PointerSource::Segment)
            {
                *live.entry((file.shard, file.file)).or_default() += file.live_len;
            }
        }
        live
    }

    /// Whether dead values take more room than live ones.
    fn is_wasteful(&self, view: &View) -> bool {
        let live: u64 = Self::live_lens(view).values().sum();
        let all: u64 = view.values.values().map(|segment| segment.data_len()).sum();
        all.saturating_sub(live) > live.max(DEAD_LEN_MIN.min(self.options().segment_len_max))
            && view.runs.len() > 1
    }

    /// What is visible, and below every version in a newer level than the inputs: a tombstone that hides
    /// one of those must stay. A leader has none. A follower gets the logs of the shards side by side,
    /// so an older version of a name may come after a newer one, and into a newer level.
    fn horizon_above(&self, inputs: &[Arc<Run>]) -> Hlc {
        // Read first: all that is no newer than what is visible has come.
        let visible = self.watermarks.visible();
        let view = self.view();
        let is_input = |run: &&Arc<Run>| Arc::ptr_eq(run, &inputs[0]);
        let newer = view.runs.iter().take_while(|run| !is_input(run));
        let memtables = view.memtables().map(|level| level.version_min());
        let oldest = memtables.chain(newer.map(|run| run.version_min())).min();
        oldest.map_or(visible, |oldest| {
            visible.min(Hlc(oldest.0.saturating_sub(1)))
        })
    }

    /// Puts one run in the place of several: at the bottom piece by piece, otherwise at once.
    fn merge_runs(
        &self,
        mut merged: Merged,
        begun: &mut Option<Begun>,
        goes_on: GoesOn<'_>,
    ) -> Result<()> {
        let live = Self::live_lens(&self.view());
        loop {
            let piece = || self.merge_piece(&merged, &live, goes_on);
            // Not what follows it: once it is installed it must not be done again.
            let Installed { gone, next } = self.shared.with_reserve(piece)?;
            let is_last = next.is_none();
            if let Some((bottom, after)) = next {
                *merged.runs.last_mut().expect("it has a bottom") = bottom;
                *begun = Some(Begun {
                    runs: merged.runs.iter().map(Arc::downgrade).collect(),
                    after: after.clone(),
                });
                merged.after = Some(after);
            }
            self.remove_tables(&gone)?;
            if is_last {
                break;
            }
        }
        if merged.below == 0 {
            *begun = None;
        }
        Counters::add(&self.counters.compactions, 1);
        Ok(())
    }

    /// Merges and installs the next piece.
    fn merge_piece(
        &self,
        merged: &Merged,
        live: &HashMap<(ShardId, u64), u64>,
        goes_on: GoesOn<'_>,
    ) -> Result<Installed> {
        let Merged {
            runs, below, after, ..
        } = merged;
        let (bottom, newer) = runs.split_last().expect("something is merged");
        let tables = &bottom.tables[..];
        let is_done = |table: &Arc<Table>| {
            let after = after.as_deref();
            after.is_some_and(|after| *table.meta().name_max <= *after)
        };
        let start = tables.partition_point(is_done);
        let rest = &tables[start..];
        let count = match *below {
            0 => piece_count(rest, merged.len_max),
            _ => rest.len(),
        };
        let (piece, rest) = rest.split_at(count);
        let is_last = rest.is_empty() || planted("compact.pieces");
        let end = (!rest.is_empty()).then(|| &piece[count - 1].meta().name_max[..]);

        let outputs = self.copy_piece(merged, piece, end, live, goes_on)?;
        let new = self.open_tables(&outputs)?;
        let whole = [&tables[..start], &new, rest].concat();
        let run = Arc::new(Run::new(whole));
        let replaced = if is_last { runs.len() } else { 1 };
        let below = *below;
        // Flushes only add in front, so the distance from the end stays.
        self.install(
            |manifest| {
                let metas = run.tables.iter().map(|table| table.meta().clone());
                let metas: Vec<TableMeta> = metas.collect();
                let end = manifest.runs.len() - below;
                let new = (!metas.is_empty()).then_some(metas);
                manifest.runs.splice(end - replaced..end, new);
            },
            |view| {
                let end = view.runs.len() - below;
                let new = (!run.tables.is_empty()).then(|| Arc::clone(&run));
                view.runs.splice(end - replaced..end, new);
            },
        )?;
        Counters::add(&self.counters.merge_pieces, 1);
        let newer = newer.iter().filter(|_| is_last);
        let gone = newer.flat_map(|run| &run.tables).chain(piece);
        Ok(Installed {
            gone: gone.map(|table| table.identity().number).collect(),
            next: end.filter(|_| !is_last).map(|end| (run, end.to_vec())),
        })
    }

    /// Writes a piece: the names behind those that are done, up to `end`.
    fn copy_piece(
        &self,
        merged: &Merged,
        piece: &[Arc<Table>],
        end: Option<&[u8]>,
        live: &HashMap<(ShardId, u64), u64>,
        goes_on: GoesOn<'_>,
    ) -> Result<Vec<TableMeta>> {
        let view = self.view();
        let leaves = |pointer: &ValuePointer| {
            let place = (pointer.shard, pointer.file);
            let all = view
                .values
                .get(&place)
                .map_or(0, |segment| segment.data_len());
            let live = live.get(&place).copied().unwrap_or_default();
            (live as f64) < all as f64 * LIVE_SHARE_MIN
        };
        let rules = CompactionRules {
            snapshots: Vec::new(),
            horizon: self.horizon_above(&merged.runs),
            is_bottom: merged.below == 0 || planted("compact.tombstones"),
        };
        let (_, newer) = merged.runs.split_last().expect("something is merged");
        let piece = Arc::new(Run::new(piece.to_vec()));
        let inputs = newer.iter().chain([&piece]);
        let cursors = inputs.map(|run| RunCursor::new(Arc::clone(run), true));
        let mut entries = CompactionIter::new(Merge::new(cursors.collect()), rules, |_| {});
        match &merged.after {
            Some(after) => entries.seek_behind(after),
            None => entries.first(),
        }
        let mut outputs = Outputs::new(self, merged.len_max);
        let copied = self.copy_entries(&view, &mut entries, end, &leaves, goes_on, &mut outputs);
        if let Err(error) = copied
            && !planted("compact.swallow")
        {
            outputs.discard();
            return Err(error);
        }
        outputs.finish()
    }

    fn copy_entries<F: FnMut(super::merge::Dropped<'_>)>(
        &self,
        view: &View,
        entries: &mut CompactionIter<RunCursor, F>,
        end: Option<&[u8]>,
        leaves: &dyn Fn(&ValuePointer) -> bool,
        goes_on: GoesOn<'_>,
        outputs: &mut Outputs,
    ) -> Result<()> {
        while entries.is_valid() {
            let key = entries.key();
            if end.is_some_and(|end| end < key.name) {
                break;
            }
            match entries.value() {
                ValueSource::Absent => {
                    outputs.add(key.name, key.version, EntryKind::Tombstone, &[])?;
                }
                ValueSource::Bytes(bytes) => {
                    outputs.add(key.name, key.version, EntryKind::Value, bytes)?;
                }
                ValueSource::Pointer(pointer) if leaves(&pointer) => {
                    let value = view.moved(&pointer)?;
                    outputs.add(key.name, key.version, EntryKind::Value, &value)?;
                    Counters::add(&self.counters.values_moved, 1);
                }
                ValueSource::Pointer(pointer) => {
                    outputs.add(key.name, key.version, EntryKind::Pointer, &pointer.encode())?;
                }
                ValueSource::Log(_) => unreachable!("a table does not point into a memtable's log"),
            }
            entries.next();
            self.check()?;
            if !goes_on() {
                return Err(Error::Closed("database"));
            }
        }
        entries.status()?;
        Ok(())
    }

    /// Removes tables that the manifest no longer names. Readers that hold them keep them.
    fn remove_tables(&self, numbers: &[u64]) -> Result<()> {
        let disk = self.shared.env.disk.as_ref();
        for number in numbers {
            let path = files::table(&self.dir, *number);
            strandline_wal::IoContext::during(disk.remove(&path), "remove", &path)?;
        }
        Ok(())
    }

    /// Keeps a background failure for writers to see; a full disk is tried again later.
    pub fn note_background_failure(&self, error: Error) {
        if error.is_no_space() || error.is_corruption() {
            let text = error.to_string();
            self.tell(match error.is_no_space() {
                true => What::DiskFull { why: text },
                false => What::Damaged {
                    path: PathBuf::new(),
                    what: text,
                },
            });
            *self.pressure.failed.lock() = Some(error);
            self.pressure.changed.notify_all();
        } else if self.check().is_ok() {
            self.stop(error);
        }
    }
}
