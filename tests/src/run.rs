//! Runs operations on an engine over a simulated machine, with the model beside it.
//!
//! A life of the database begins with an open and ends with a close, the death of the process or the
//! loss of power. At the beginning of each life everything is read and held against the model.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use strandline::{Database, Dataset, Durability, Error, ErrorKind, Keyspace, Options, Snapshot};
use strandline_wal::io::fault::FaultDisk;
use strandline_wal::io::sim::{Damage, SimDisk, SimEnv};
use strandline_wal::io::{Disk, Env};

use crate::high;
use crate::model::{Bytes, Change, End, Kept, Model, State};
use crate::ops::{Crash, Op};
use crate::plan::Case;
use crate::reads;

/// Where databases of tests lie on the simulated disk.
pub const ROOT: &str = "/db";

/// What happened, to be asserted and printed: a test that reaches nothing proves nothing.
#[derive(Clone, Debug, Default)]
pub struct Tally(pub BTreeMap<&'static str, u64>);

impl Tally {
    /// Counts.
    pub fn add(&mut self, what: &'static str, n: u64) {
        *self.0.entry(what).or_default() += n;
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Tally) {
        for (what, n) in &other.0 {
            self.add(what, *n);
        }
    }

    /// How often something happened.
    pub fn count(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Everything, on one line.
    pub fn line(&self) -> String {
        let parts: Vec<String> = self
            .0
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        parts.join(", ")
    }
}

/// An engine and its model.
pub struct Run<'a> {
    /// What is run.
    pub case: Cow<'a, Case>,
    /// The simulated machine.
    pub machine: SimEnv,
    /// What may fail on it.
    pub faults: Option<FaultDisk>,
    /// What should be there.
    pub model: Model,
    /// What happened.
    pub tally: Tally,
    open: Option<Opened>,
    snapshots: Vec<(Snapshot, State)>,
    checkpoint: Option<Checkpoint>,
    armed: Option<Crash>,
    next_value: u64,
    /// The highest epoch that was opened: no later life may write in it again.
    epoch: u32,
}

/// A checkpoint and what it must show.
#[derive(Clone)]
struct Checkpoint {
    path: String,
    state: State,
    /// Whether its call has returned: from then on it survives everything.
    is_done: bool,
}

/// An open database.
pub struct Opened {
    /// It.
    pub db: Database,
    /// Its dataset.
    pub dataset: Dataset,
    /// The keyspaces of the case.
    pub keyspaces: Vec<Keyspace>,
}

/// The machine of a case.
pub fn machine(case: &Case) -> SimEnv {
    let machine = SimEnv::new(case.seed);
    let machine = SimEnv {
        disk: match case.maps {
            true => SimDisk::new(case.seed),
            false => SimDisk::pread(case.seed),
        },
        ..machine
    };
    match case.is_high {
        true => high::machine(machine, &case.options),
        false => machine,
    }
}

/// Runs a whole case.
///
/// # Errors
/// What is wrong, and at which operation.
pub fn run(case: &Case) -> Result<Tally, String> {
    let mut run = Run::new(case, machine(case));
    run.start()?;
    run.all()?;
    run.finish()?;
    Ok(run.tally)
}

impl<'a> Run<'a> {
    /// A run that has not opened anything yet.
    pub fn new(case: &'a Case, machine: SimEnv) -> Run<'a> {
        Run::of(Cow::Borrowed(case), machine)
    }

    fn of(case: Cow<'a, Case>, machine: SimEnv) -> Run<'a> {
        Run {
            model: Model::new(case.keyspace_count),
            case,
            machine,
            faults: None,
            tally: Tally::default(),
            open: None,
            snapshots: Vec::new(),
            checkpoint: None,
            armed: None,
            next_value: 0,
            epoch: 0,
        }
    }

    /// A run that goes on where another one ended, on another machine.
    pub fn resume(before: &Run<'a>, machine: SimEnv) -> Run<'a> {
        Run {
            model: before.model.clone(),
            checkpoint: before.checkpoint.clone(),
            // Values stay unique: no life makes this many.
            next_value: 1 << 32,
            epoch: before.epoch,
            ..Run::of(before.case.clone(), machine)
        }
    }

    /// A run that keeps its case, and has not opened anything yet.
    pub fn owned(case: Case) -> Run<'static> {
        let machine = machine(&case);
        Run::of(Cow::Owned(case), machine)
    }

    /// What the engine is given.
    pub fn env(&self) -> Env {
        let env = self.machine.env();
        match &self.faults {
            Some(faults) => Env {
                disk: Arc::new(faults.clone()),
                ..env
            },
            None => env,
        }
    }

    /// Opens for the first time.
    ///
    /// # Errors
    /// What is wrong.
    pub fn start(&mut self) -> Result<(), String> {
        self.open_and_check(End::Close).map_err(|e| e.to_string())
    }

    /// Does every operation.
    ///
    /// # Errors
    /// What is wrong, and at which operation.
    pub fn all(&mut self) -> Result<(), String> {
        let case = self.case.clone();
        for (n, op) in case.ops.iter().enumerate() {
            self.op(op)
                .map_err(|error| format!("operation {n} {op:?}: {error}"))?;
        }
        Ok(())
    }

    /// The end of a case: reads everything, closes, opens, reads everything.
    ///
    /// # Errors
    /// What is wrong.
    pub fn finish(&mut self) -> Result<(), String> {
        self.armed = None;
        if self.machine.disk.is_dead() {
            let last = Crash {
                damage: Some(Damage::Mixed),
                seed: self.case.seed,
                nested: Vec::new(),
            };
            self.crash(&last).map_err(|e| e.to_string())?;
        }
        self.machine.disk.crash_at(u64::MAX);
        let found = self.read_all().map_err(|e| e.to_string())?;
        if found != *self.model.now() {
            return Err(format!(
                "at the end (expected / found):\n{}",
                self.model.now().difference(&found)
            ));
        }
        self.check_snapshots()?;
        self.reopen().map_err(|e| e.to_string())
    }

    /// What is open.
    ///
    /// # Panics
    /// Where nothing is.
    pub fn opened(&self) -> &Opened {
        self.open.as_ref().expect("the database is open")
    }

    /// Whether anything is open: a reopen that failed leaves nothing.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// One operation; a machine that dies in it is started again.
    ///
    /// # Errors
    /// What is wrong.
    pub fn op(&mut self, op: &Op) -> Result<(), String> {
        self.tally.add("operations", 1);
        match self.step(op) {
            Ok(()) => Ok(()),
            Err(_) if self.machine.disk.is_dead() && self.armed.is_some() => {
                let crash = self.armed.take().expect("looked at above");
                self.tally.add("deaths within operations", 1);
                self.crash(&crash).map_err(|failure| failure.to_string())
            }
            Err(failure) => Err(failure.to_string()),
        }
    }

    /// One operation, as the engine takes it.
    ///
    /// # Errors
    /// What the engine said, or what is wrong.
    pub fn step(&mut self, op: &Op) -> Result<(), Failure> {
        match op {
            Op::Put(keyspace, key, len, level) => {
                let change = self.change(*keyspace, *key, Some(*len));
                let opened = self.opened();
                let outcome = opened.keyspaces[*keyspace].put_with(
                    &change.key,
                    change.value.as_ref().expect("it is a put"),
                    *level,
                );
                self.wrote(vec![change], *level, outcome)
            }
            Op::Delete(keyspace, key, level) => {
                let change = self.change(*keyspace, *key, None);
                let outcome = self.opened().keyspaces[*keyspace].delete_with(&change.key, *level);
                self.wrote(vec![change], *level, outcome)
            }
            Op::Batch(changes, level) => {
                let changes: Vec<Change> = changes
                    .iter()
                    .map(|(keyspace, key, len)| self.change(*keyspace, *key, *len))
                    .collect();
                let outcome = self.batch(&changes, *level);
                self.wrote(changes, *level, outcome)
            }
            Op::Get(..) | Op::MultiGet(..) | Op::Range(..) | Op::Prefix(..) | Op::Cursor(..) => {
                self.read(op)
            }
            Op::Snapshot => {
                if self.snapshots.len() == 4 {
                    self.snapshots.remove(0);
                }
                let snapshot = self.opened().dataset.snapshot();
                self.snapshots.push((snapshot, self.model.now().clone()));
                Ok(())
            }
            Op::SnapshotGet(..) | Op::SnapshotRange(..) => self.read_snapshot(op),
            Op::Release(n) => {
                if *n < self.snapshots.len() {
                    self.snapshots.remove(*n);
                }
                Ok(())
            }
            Op::Flush => {
                self.opened().dataset.flush()?;
                self.model.settle();
                Ok(())
            }
            Op::Compact => {
                self.opened().dataset.compact()?;
                self.model.settle();
                Ok(())
            }
            Op::Background(count) => Ok(self.opened().db.run_background(*count).map(|_| ())?),
            Op::Sync => {
                self.opened().dataset.sync()?;
                self.model.settle();
                Ok(())
            }
            Op::Advance(ms) => {
                self.machine.clock.advance_ms(*ms);
                Ok(())
            }
            Op::Reopen => self.reopen(),
            Op::Crash(crash) => self.crash(crash),
            Op::CrashAfter(count, crash) => {
                let at = self.machine.disk.io_count() + count;
                self.machine.disk.crash_at(at);
                self.armed = Some(crash.clone());
                Ok(())
            }
            Op::Reader => self.reader(),
            Op::Checkpoint => self.make_checkpoint(),
        }
    }

    fn change(&mut self, keyspace: usize, key: usize, len: Option<usize>) -> Change {
        self.next_value += 1;
        Change {
            keyspace,
            key: self.case.keys[key].clone(),
            value: len.map(|len| bytes(self.next_value, len)),
        }
    }

    fn batch(&self, changes: &[Change], level: Durability) -> strandline::Result<()> {
        let opened = self.opened();
        let mut batch = opened.dataset.batch();
        for change in changes {
            let keyspace = &opened.keyspaces[change.keyspace];
            match &change.value {
                Some(value) => batch.put(keyspace, &change.key, value)?,
                None => batch.delete(keyspace, &change.key)?,
            };
        }
        batch.commit_with(level)
    }

    /// Tells the model of a write. Whatever failed in another way than into the unknown is not there.
    fn wrote(
        &mut self,
        changes: Vec<Change>,
        level: Durability,
        outcome: strandline::Result<()>,
    ) -> Result<(), Failure> {
        self.tally.add("records", changes.len() as u64);
        match outcome {
            Ok(()) if changes.is_empty() => Ok(()),
            Ok(()) => {
                self.model.commit(changes, kept(level));
                Ok(())
            }
            Err(error) => {
                if error.kind() == ErrorKind::Unknown {
                    self.tally.add("unknown writes", 1);
                    self.model.commit(changes, Kept::Unknown);
                }
                Err(error.into())
            }
        }
    }

    fn read(&mut self, op: &Op) -> Result<(), Failure> {
        let opened = self.open.as_ref().expect("the database is open");
        let (state, keys) = (self.model.now(), &self.case.keys);
        match op {
            Op::Get(keyspace, key) => {
                let found = opened.keyspaces[*keyspace].get(&keys[*key])?;
                let expected = state.get(*keyspace, &keys[*key]);
                reads::value("get", found.as_ref(), expected)?;
            }
            Op::MultiGet(keyspace, ids) => {
                let wanted = ids.iter().map(|id| &keys[*id]);
                let found = opened.keyspaces[*keyspace].multi_get(wanted)?;
                for (id, found) in ids.iter().zip(&found) {
                    let expected = state.get(*keyspace, &keys[*id]);
                    reads::value("multi_get", found.as_ref(), expected)?;
                }
            }
            Op::Range(keyspace, walk) => {
                let bounds = reads::bounds(walk, keys);
                let (opened, map) = (&opened.keyspaces[*keyspace], &state.maps[*keyspace]);
                let iter = opened.range(bounds.clone());
                reads::range("range", iter, map, bounds, &walk.ends)?;
                reads::len("len", (opened.len()?, opened.is_empty()?), map)?;
            }
            Op::Prefix(keyspace, key, len, ends) => {
                let prefix = &keys[*key][..(*len).min(keys[*key].len())];
                let iter = opened.keyspaces[*keyspace].prefix(prefix);
                reads::prefix("prefix", iter, &state.maps[*keyspace], prefix, ends)?;
            }
            Op::Cursor(keyspace, of, moves) => {
                let snapshot = of.and_then(|n| self.snapshots.get(n));
                let keyspace_opened = &opened.keyspaces[*keyspace];
                let (mut cursor, state) = match snapshot {
                    Some((snapshot, state)) => (snapshot.cursor(keyspace_opened), state),
                    None => (keyspace_opened.cursor(), state),
                };
                reads::cursor("cursor", &mut cursor, &state.maps[*keyspace], moves, keys)?;
            }
            _ => unreachable!("not a read: {op:?}"),
        }
        self.tally.add("reads", 1);
        Ok(())
    }

    fn read_snapshot(&mut self, op: &Op) -> Result<(), Failure> {
        let opened = self.open.as_ref().expect("the database is open");
        let keys = &self.case.keys;
        let (Op::SnapshotGet(n, ..) | Op::SnapshotRange(n, ..)) = op else {
            unreachable!("not a read of a snapshot: {op:?}");
        };
        let Some((snapshot, state)) = self.snapshots.get(*n) else {
            return Ok(());
        };
        match op {
            Op::SnapshotGet(_, keyspace, key) => {
                let found = snapshot.get(&opened.keyspaces[*keyspace], &keys[*key])?;
                let expected = state.get(*keyspace, &keys[*key]);
                reads::value("snapshot get", found.as_ref(), expected)?;
            }
            Op::SnapshotRange(_, keyspace, walk) => {
                let bounds = reads::bounds(walk, keys);
                let (opened, map) = (&opened.keyspaces[*keyspace], &state.maps[*keyspace]);
                let iter = snapshot.range(opened, bounds.clone());
                reads::range("snapshot range", iter, map, bounds, &walk.ends)?;
                let found = (snapshot.len(opened)?, snapshot.is_empty(opened)?);
                reads::len("snapshot len", found, map)?;
            }
            _ => {}
        }
        self.tally.add("snapshot reads", 1);
        Ok(())
    }

    /// Every snapshot still shows what it showed.
    fn check_snapshots(&self) -> Result<(), String> {
        for (n, (snapshot, state)) in self.snapshots.iter().enumerate() {
            let found = read_state(&self.opened().keyspaces, |keyspace| snapshot.iter(keyspace));
            let found = found.map_err(|error| format!("snapshot {n}: {error}"))?;
            if found != *state {
                let difference = state.difference(&found);
                return Err(format!("snapshot {n} (expected / found):\n{difference}"));
            }
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Failure> {
        self.snapshots.clear();
        self.note_life();
        let opened = self.open.take().expect("the database is open");
        opened.db.close()?;
        drop(opened);
        self.model.settle();
        self.tally.add("reopens", 1);
        self.open_and_check(End::Close)
    }

    /// The process or the machine dies, and dies again while the database recovers, as long as the
    /// crash says.
    ///
    /// # Errors
    /// What is wrong.
    pub fn crash(&mut self, crash: &Crash) -> Result<(), Failure> {
        self.note_life();
        self.armed = None;
        let mut end = End::Kill;
        let next = self.die(crash.damage, crash.seed, &mut end);
        self.abandon();
        self.machine = next;
        for (n, (at, damage)) in (1..).zip(&crash.nested) {
            self.machine.disk.crash_at(*at);
            drop(self.database());
            if !self.machine.disk.is_dead() {
                // The whole recovery took fewer calls.
                self.machine.disk.crash_at(u64::MAX);
                break;
            }
            self.tally.add("deaths within recoveries", 1);
            self.machine = self.die(*damage, crash.seed.wrapping_add(n), &mut end);
        }
        self.open_and_check(end)?;
        if crash.seed.is_multiple_of(3) {
            self.reopen()?;
        }
        Ok(())
    }

    /// The machine after a death.
    fn die(&mut self, damage: Option<Damage>, seed: u64, end: &mut End) -> SimEnv {
        match damage {
            None => {
                self.tally.add("kills", 1);
                SimEnv {
                    disk: self.machine.disk.fork(),
                    ..self.machine.clone()
                }
            }
            Some(damage) => {
                *end = End::Power;
                self.tally.add("crashes", 1);
                self.machine.crash(seed, damage)
            }
        }
    }

    /// Closes, whatever comes of it.
    pub fn close_quietly(&mut self) {
        self.snapshots.clear();
        if let Some(opened) = self.open.take() {
            // A fault may have stopped it; the next open tells what is there.
            let _ = opened.db.close();
        }
    }

    /// Lets go of everything as the death of the process does: without another call.
    pub fn abandon(&mut self) {
        self.machine.disk.crash_at(0);
        self.snapshots.clear();
        self.open = None;
    }

    fn database(&self) -> strandline::Result<Database> {
        self.case.options.clone().open_with(ROOT, self.env())
    }

    /// Opens, reads everything, and holds it against the model.
    ///
    /// # Errors
    /// What the engine said, or what is wrong.
    pub fn open_and_check(&mut self, end: End) -> Result<(), Failure> {
        let db = self.database()?;
        let dataset = db.dataset("")?;
        self.tally.add("opens", 1);
        self.tally.add("cuts", dataset.recovery().cuts.len() as u64);
        let (commits, count) = (self.model.commit_count(), self.case.keyspace_count);
        let found = read_dataset(&dataset, count)?;
        let kept = self.model.recover(&found, end)?;
        self.check_checkpoint()?;
        let epoch = dataset.stats().epoch;
        if epoch <= self.epoch {
            return Err(format!("epoch {epoch} again, {} was opened", self.epoch).into());
        }
        self.epoch = epoch;
        if end == End::Power {
            self.tally.add("unsynced commits kept", kept as u64);
            self.tally
                .add("unsynced commits lost", (commits - kept) as u64);
        }
        let keyspaces = (0..count)
            .map(|n| dataset.keyspace(&name(n)))
            .collect::<Result<_, _>>()?;
        self.open = Some(Opened {
            db,
            dataset,
            keyspaces,
        });
        Ok(())
    }

    /// Reads everything that is there now.
    ///
    /// # Errors
    /// What the engine said.
    pub fn read_all(&self) -> Result<State, Failure> {
        let keyspaces = &self.opened().keyspaces;
        Ok(read_state(keyspaces, Keyspace::iter)?)
    }

    /// Another process opens for reading and sees everything that was acknowledged.
    fn reader(&mut self) -> Result<(), Failure> {
        let before = self.machine.disk.files();
        let found = read_only(&self.case.options, self.env(), self.case.keyspace_count)?;
        if self.model.is_certain() && found != *self.model.now() {
            let difference = self.model.now().difference(&found);
            return Err(format!("a reader beside (expected / found):\n{difference}").into());
        }
        unchanged(&before, &self.machine.disk)?;
        self.tally.add("readers", 1);
        Ok(())
    }

    fn make_checkpoint(&mut self) -> Result<(), Failure> {
        self.next_value += 1;
        let path = format!("/checkpoint-{}", self.next_value);
        self.checkpoint = Some(Checkpoint {
            path: path.clone(),
            state: self.model.now().clone(),
            is_done: false,
        });
        self.opened().db.checkpoint(&path)?;
        self.model.settle();
        self.checkpoint.as_mut().expect("set above").is_done = true;
        self.tally.add("checkpoints", 1);
        self.check_checkpoint()
    }

    /// A checkpoint is there whole or, before its call has returned, not at all.
    fn check_checkpoint(&self) -> Result<(), Failure> {
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(());
        };
        let is_there = self.env().disk.stat(Path::new(&checkpoint.path)).is_ok();
        if !is_there && !checkpoint.is_done {
            return Ok(());
        }
        let count = self.case.keyspace_count;
        let found = read_only_at(&checkpoint.path, &self.case.options, self.env(), count)?;
        if found != checkpoint.state {
            let difference = checkpoint.state.difference(&found);
            return Err(format!("the checkpoint (expected / found):\n{difference}").into());
        }
        Ok(())
    }

    /// Counts what the database did in this life.
    pub fn note_life(&mut self) {
        let Some(opened) = &self.open else { return };
        let stats = opened.dataset.stats();
        for (what, n) in [
            ("flushes", stats.flush_count),
            ("compactions", stats.compaction_count),
            (
                "merges by pieces",
                u64::from(stats.merge_piece_count > stats.compaction_count),
            ),
            ("values moved", stats.values_moved),
            ("segments recycled", stats.segments_recycled),
            ("segments removed", stats.segments_removed),
            ("segments at the end", stats.segment_count as u64),
            ("syncs", stats.sync_count),
        ] {
            self.tally.add(what, n);
        }
        if self.case.is_high {
            high::note(&self.machine, &mut self.tally);
        }
    }
}

/// What a level survives.
pub fn kept(level: Durability) -> Kept {
    match level {
        Durability::Memory | Durability::Os => Kept::Kill,
        _ => Kept::Power,
    }
}

/// The name of a keyspace of the case.
pub fn name(keyspace: usize) -> String {
    format!("map-{keyspace}")
}

/// Reads a database without writing to it. One that is not there is empty.
///
/// # Errors
/// What the engine said.
pub fn read_only(options: &Options, env: Env, count: usize) -> Result<State, Failure> {
    read_only_at(ROOT, options, env, count)
}

fn read_only_at(path: &str, options: &Options, env: Env, count: usize) -> Result<State, Failure> {
    let absent = |error: &Error| matches!(error, Error::NotFound { .. });
    let db = match options.clone().open_read_only_with(path, env) {
        Err(error) if absent(&error) => return Ok(State::empty(count)),
        db => db?,
    };
    match db.dataset("") {
        Err(error) if absent(&error) => Ok(State::empty(count)),
        dataset => read_dataset(&dataset?, count),
    }
}

/// Reads everything of a dataset.
///
/// # Errors
/// What the engine said.
pub fn read_dataset(dataset: &Dataset, count: usize) -> Result<State, Failure> {
    let mut state = State::empty(count);
    for keyspace in dataset.keyspaces() {
        let number = (0..count).find(|n| name(*n) == keyspace.name());
        let Some(number) = number else {
            return Err(format!("a keyspace out of nowhere: {:?}", keyspace.name()).into());
        };
        for entry in keyspace.iter() {
            let (key, value) = entry?;
            state.put(number, key, value[..].into());
        }
    }
    Ok(state)
}

fn read_state(
    keyspaces: &[Keyspace],
    iter: impl Fn(&Keyspace) -> strandline::Iter,
) -> strandline::Result<State> {
    let mut state = State::empty(keyspaces.len());
    for (number, keyspace) in keyspaces.iter().enumerate() {
        for entry in iter(keyspace) {
            let (key, value) = entry?;
            state.put(number, key, value[..].into());
        }
    }
    Ok(state)
}

/// Fails where a file changed. Lock files hold nothing and do not count.
///
/// # Errors
/// Which one.
pub fn unchanged(
    before: &BTreeMap<std::path::PathBuf, Vec<u8>>,
    disk: &SimDisk,
) -> Result<(), String> {
    let is_lock = |path: &Path| path.ends_with("READERS") || path.ends_with("LOCK");
    let mut after = disk.files();
    for (path, bytes) in before {
        match after.remove(path) {
            Some(found) if found == *bytes => {}
            Some(_) => return Err(format!("{} was changed by a reader", path.display())),
            None => return Err(format!("{} was removed by a reader", path.display())),
        }
    }
    match after.keys().find(|path| !is_lock(path)) {
        Some(path) => Err(format!("{} was made by a reader", path.display())),
        None => Ok(()),
    }
}

/// A value that no other one is equal to, where it has 8 bytes.
pub fn bytes(number: u64, len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    for (n, chunk) in (0u64..).zip(bytes.chunks_mut(8)) {
        let word = match n {
            0 => number.to_be_bytes(),
            _ => (number.wrapping_mul(0x9e37_79b9_7f4a_7c15)
                ^ n.wrapping_mul(0xff51_afd7_ed55_8ccd))
            .to_le_bytes(),
        };
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    bytes.into()
}

/// Why a step did not end as it should.
#[derive(Debug)]
pub enum Failure {
    /// The engine failed.
    Engine(Error),
    /// It did the wrong thing.
    Wrong(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Engine(error)
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Failure {
        Failure::Wrong(text)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Engine(error) => write!(f, "{:?}: {error}", error.kind()),
            Failure::Wrong(text) => f.write_str(text),
        }
    }
}

impl Failure {
    /// The engine's error.
    pub fn engine(&self) -> Option<&Error> {
        match self {
            Failure::Engine(error) => Some(error),
            Failure::Wrong(_) => None,
        }
    }
}

/// The simulated disk behind any number of decorators is the machine's.
pub fn disk_of(machine: &SimEnv) -> Arc<dyn Disk> {
    Arc::new(machine.disk.clone())
}
