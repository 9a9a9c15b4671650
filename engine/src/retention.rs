//! Which segments of the logs may go: what each holder still needs, in one place, by name.
//!
//! A segment goes once every holder is done with it. Followers hold by their slots
//! ([`strandline_replication::slot`]), kept in the file `slots` of the dataset, which is replaced whole and
//! synced before a follower's hello is answered. What followers confirm is stored lazily: a slot that is
//! stored lower than it stands keeps too much, never too little. Whoever prunes reads the table under the
//! same lock that a hello takes.
//!
//! A damaged file of slots does not tell who needs what. It is replaced by one slot named `unknown` that
//! holds everything, under the limits of any slot, until it is dropped.

use std::collections::BTreeMap;
use std::path::PathBuf;

use parking_lot::Mutex;
use strandline_replication::slot::codec::{self, Stored};
use strandline_replication::slot::{At, Event, Limits, Piece, Room, SlotTable};
use strandline_replication::{Error as ReplicationError, NodeId};
use strandline_wal::bug::planted;
use strandline_wal::io::{Env, read_file, replace_file};
use strandline_wal::{Error as LogError, IoContext, ShardId, unless};

use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::files;
use crate::options::Options;
use crate::store::{Role, Store};
use crate::table::PointerSource;

pub use strandline_replication::slot::SlotState;

/// Progress is stored this long after something was stored last, in milliseconds.
const STORE_MS: u64 = 10_000;
/// The time that a follower is away is stored this often, in milliseconds; so is the time of the store.
const IDLE_STORE_MS: u64 = 600_000;

/// What a follower needs of a dataset's logs, and whether it is kept.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct SlotStatus {
    /// What the follower calls itself: its address.
    pub name: String,
    /// Who it is.
    pub node: [u8; 16],
    /// How the slot stands.
    pub state: SlotState,
    /// Per shard, the last record that it is known to have on its disk.
    pub durable: Vec<u64>,
    /// Bytes of log that are kept for it. What several need is counted for each.
    pub bytes: u64,
    /// How long the follower was not heard, in milliseconds.
    pub idle_ms: u64,
    /// When it came first, in milliseconds since 1970.
    pub created_ms: u64,
    /// When it was heard last, in milliseconds since 1970.
    pub seen_ms: u64,
}

/// Something that keeps segments of one shard's log.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Holder {
    /// What kind of thing: `flush`, `slot`, `values`, `sync`, `bundle`, or what it called itself.
    pub what: &'static str,
    /// Which one, where there are several.
    pub name: String,
    /// Which shard.
    pub shard: u16,
    /// The first record that it needs.
    pub from_seq: u64,
    /// Bytes of sealed segments that it keeps. Those that several keep are counted for each.
    pub bytes: u64,
}

/// Holders outside of this module, by kind and name.
type Others = BTreeMap<(&'static str, String), Hold>;

/// What a holder outside of this module needs.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    /// The first record needed of each shard.
    pub from_seqs: Vec<u64>,
    /// The longest log of a shard, in bytes from there on, that is kept for it; of a longer one nothing is.
    pub len_max: u64,
}

/// The kind of holder that an archive is: a leader's alone.
pub(crate) const ARCHIVE: &str = "archive";

/// The holders of one open dataset.
pub(crate) struct Retention(Mutex<State>);

/// The table of slots, locked.
pub(crate) struct State {
    table: SlotTable,
    others: Others,
    /// When it was stored, and what of each slot.
    stored_ms: u64,
    stored: Vec<Vec<u64>>,
    env: Env,
    path: PathBuf,
    shard_count: usize,
    limits: Limits,
}

fn at(env: &Env) -> At {
    At {
        mono_ms: env.clock.mono_ns() / 1_000_000,
        wall_ms: env.clock.wall_ms(),
    }
}

fn limits(options: &Options) -> Limits {
    // A flush and the segments that are made ahead must find room.
    let memtables = options.memtable_len_max * (options.memtable_count_max as u64 + 1);
    Limits {
        bytes_max: options.slot_bytes_max,
        idle_ms_max: options.slot_idle_max_ms,
        free_len_min: memtables + 2 * options.segment_len_max,
    }
}

/// What slots are judged by.
fn room(store: &Store) -> Room {
    let log = |log: &std::sync::Arc<strandline_wal::log::Log>| {
        let (base, _) = store.base_of(log.id().shard);
        let segments = log.segments();
        // What lies before the base is there for values, and cannot be shipped.
        let shipped = segments.iter().filter(|segment| segment.first_seq() > base);
        let pieces = shipped.map(|segment| Piece {
            last_seq: segment.last_seq(),
            len: segment.data_len(),
            is_sealed: segment.sealed().is_some(),
        });
        (base + 1, pieces.collect())
    };
    Room {
        logs: store.logs().iter().map(log).collect(),
        // A disk that does not tell is taken to have room: writes say when it has none.
        free_len: store.env().disk.free_len(store.dir()).ok().flatten(),
    }
}

impl Retention {
    /// The stored slots of a dataset that is being opened; what is wrong with them is told.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(store: &Store, warnings: &mut Vec<String>) -> Result<Retention> {
        let env = store.env().clone();
        let path = files::slots(store.dir());
        let shard_count = store.logs().len();
        let is_writer = store.role() != Role::Reader;
        let now = at(&env);
        let table = match read(&env, &path, shard_count) {
            Ok(None) => SlotTable::new(now),
            Ok(Some(stored)) => SlotTable::stored(now, stored.saved_ms, stored.slots),
            Err(error) if error.is_corruption() => {
                warnings.push(format!(
                    "{error}; the log is kept as for a follower named unknown, until its slot is dropped"
                ));
                let firsts: Vec<u64> = room(store).logs.iter().map(|(first, _)| *first).collect();
                match planted("slots.damaged") {
                    true => SlotTable::new(now),
                    false => SlotTable::unknown(now, &firsts),
                }
            }
            Err(error) => return Err(error.into()),
        };
        let mut others = Others::new();
        if let Some(hold) = crate::archive::floor::load(&env, store.dir(), shard_count)?
            && is_writer
            && !planted("archive.reopen")
        {
            others.insert((ARCHIVE, String::new()), hold);
        }
        let mut state = State {
            table,
            others,
            stored_ms: now.mono_ms,
            stored: Vec::new(),
            env,
            path,
            shard_count,
            limits: limits(store.options()),
        };
        // Nobody stands behind the end of the log: what was confirmed there was cut.
        let ends = store.logs().iter().map(|log| log.last_seq()).collect();
        if !planted("slot.cut") {
            state.handle(store, Event::Cut(ends)).map_err(failed)?;
        }
        if is_writer && state.table.is_new() {
            state.write()?;
        }
        Ok(Retention(Mutex::new(state)))
    }

    /// Locks the table: nobody comes by a lower floor meanwhile.
    pub fn lock(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    /// A follower says where its logs end. Its slot is durable on return, and the log is kept for it.
    ///
    /// # Errors
    /// Where there is no place for it; the disk's. It must not be answered then.
    pub fn greeted(
        &self,
        store: &Store,
        peer: strandline_replication::Identity,
        ends: &[u64],
    ) -> Result<(), ReplicationError> {
        let mut state = self.lock();
        let bases = store
            .logs()
            .iter()
            .map(|log| store.base_of(log.id().shard).0 + 1);
        let ends = ends.iter().copied().zip(bases).collect();
        let before = state.table.clone();
        state.handle(store, Event::Greeted(peer, ends))?;
        if state.table.is_new() {
            let state = &mut *state;
            let written = unless!("slot.greeted", state.write_at_any_rate(store));
            if let Err(error) = written {
                // Others are not turned away for the sake of one that has no place.
                state.table = before;
                return Err(match error {
                    Error::Log(error) => ReplicationError::Log(error),
                    error => ReplicationError::Store {
                        what: error.to_string(),
                    },
                });
            }
        }
        drop(state);
        self.publish(store);
        Ok(())
    }

    /// Takes in what happened, where nothing of it must be durable.
    pub fn take(&self, store: &Store, event: Event) {
        let mut state = self.lock();
        if state.table.slots().next().is_none() {
            return;
        }
        let now_ms = at(&state.env).mono_ms;
        // Only hellos are refused.
        let _ = state.handle(store, event);
        let passed_ms = now_ms.saturating_sub(state.stored_ms);
        if passed_ms >= STORE_MS && state.has_moved() || passed_ms >= IDLE_STORE_MS {
            // A stale one is safe; the next one is tried a while later.
            let _ = state.write();
        }
        drop(state);
        self.publish(store);
    }

    /// Tells who waits until followers have everything what they lack.
    fn publish(&self, store: &Store) {
        if store.role() != Role::Leader {
            return;
        }
        let state = self.lock();
        let has_slots = state.table.slots().next().is_some();
        let floors = state.table.floors(&room(store), &state.limits);
        for (shard, durable) in (0..).map(ShardId).zip(floors) {
            // Those that were given up are not waited for.
            let floor = match durable {
                u64::MAX if has_slots => u64::MAX - 1,
                durable => durable.saturating_add(1),
            };
            store.set_floor(shard, floor);
        }
    }

    /// Keeps the log from a record on in the name of something else, or lets go of it: `None`. This is
    /// memory; an archive stores how far it is by itself.
    pub fn hold(&self, what: &'static str, name: &str, hold: Option<Hold>) {
        let mut state = self.lock();
        let holder = (what, name.to_owned());
        match hold {
            Some(hold) => state.others.insert(holder, hold),
            None => state.others.remove(&holder),
        };
    }

    /// Whether something else keeps the log in that name.
    pub fn is_held(&self, what: &'static str) -> bool {
        self.lock().others.keys().any(|(it, _)| *it == what)
    }

    /// The slots, as they stand.
    pub fn slots(&self, store: &Store) -> Vec<SlotStatus> {
        let mut state = self.lock();
        let _ = state.handle(store, Event::Tick);
        let judged = state.table.judge(&room(store), &state.limits);
        let status = |(slot, judged): (
            &strandline_replication::slot::Slot,
            strandline_replication::slot::Judged,
        )| SlotStatus {
            name: slot.name.clone(),
            node: slot.node.0,
            state: judged.state,
            durable: slot.durable.clone(),
            bytes: judged.held,
            idle_ms: slot.idle_ms,
            created_ms: slot.created_ms,
            seen_ms: slot.seen_ms,
        };
        state.table.slots().zip(judged).map(status).collect()
    }

    /// Forgets a follower, by its name or by the digits of its node. Durable on return.
    fn drop_slot(&self, store: &Store, name: &str) -> Result<()> {
        let mut state = self.lock();
        let is_it = |node: &NodeId, of: &str| of == name || node.to_string() == name;
        let found: Vec<(NodeId, String)> = state
            .table
            .slots()
            .filter(|slot| is_it(&slot.node, &slot.name))
            .map(|slot| (slot.node, slot.name.clone()))
            .collect();
        match found.as_slice() {
            [] => Err(Error::NotFound {
                what: "slot",
                name: name.to_owned(),
                hint: "",
            }),
            [(node, _)] => {
                let before = state.table.clone();
                state.handle(store, Event::Dropped(*node)).map_err(failed)?;
                if let Err(error) = state.write_at_any_rate(store) {
                    state.table = before;
                    return Err(error);
                }
                drop(state);
                self.publish(store);
                store.drop_segments()
            }
            [_, _, ..] => {
                let nodes: Vec<String> = found.iter().map(|(node, _)| node.to_string()).collect();
                Err(Error::Argument {
                    what: "slot",
                    expected: format!("one of the nodes {}", nodes.join(", ")),
                    found: format!("{name}, which all of them are called"),
                })
            }
        }
    }
}

impl State {
    fn handle(&mut self, store: &Store, event: Event) -> Result<(), ReplicationError> {
        let now = at(&self.env);
        self.table.handle(now, &room(store), &self.limits, event)
    }

    /// Per shard, the first record that somebody needs: segments that end before it may go, as far as
    /// followers and holders of other kinds are concerned. `u64::MAX` where there is none.
    pub fn floors(&mut self, store: &Store) -> Vec<u64> {
        let _ = self.handle(store, Event::Tick);
        let mut floors = match store.role() {
            Role::Leader => self.table.floors(&room(store), &self.limits),
            Role::Follower | Role::Reader => vec![u64::MAX; self.shard_count],
        };
        for (_, from_seqs) in self.others(store) {
            for (floor, from_seq) in floors.iter_mut().zip(from_seqs) {
                *floor = (*floor).min(from_seq);
            }
        }
        floors
    }

    /// The other holders: per shard, the first record that is kept for each; `u64::MAX` where it is none.
    fn others(&self, store: &Store) -> Vec<((&'static str, String), Vec<u64>)> {
        if self.others.is_empty() {
            return Vec::new();
        }
        let logs = room(store).logs;
        let kept = |hold: &Hold| {
            let shards = hold.from_seqs.iter().zip(&logs);
            let kept = shards.map(|(from_seq, (_, pieces))| {
                let needed = pieces.iter().filter(|it| it.last_seq >= *from_seq);
                let len: u64 = needed.map(|it| it.len).sum();
                if len > hold.len_max {
                    u64::MAX
                } else {
                    *from_seq
                }
            });
            kept.collect()
        };
        let is_leader = store.role() == Role::Leader;
        let others = self.others.iter();
        let others = others.filter(|((what, _), _)| is_leader || *what != ARCHIVE);
        others.map(|(it, hold)| (it.clone(), kept(hold))).collect()
    }

    /// Segments are about to go: what is stored must not say that they are needed still. A failure is no
    /// reason to keep them: it is a disk without room, perhaps.
    pub fn pruning(&mut self) {
        if self.has_moved() {
            let _ = self.write();
        }
    }

    fn durable(&self) -> Vec<Vec<u64>> {
        self.table
            .slots()
            .map(|slot| slot.durable.clone())
            .collect()
    }

    /// Whether slots stand elsewhere than is stored.
    fn has_moved(&self) -> bool {
        self.durable() != self.stored
    }

    /// As [`State::write`], with the room that is kept aside where there is no other.
    fn write_at_any_rate(&mut self, store: &Store) -> Result<()> {
        store.with_reserve(|| Ok(self.write()?))
    }

    fn write(&mut self) -> Result<(), LogError> {
        let now = at(&self.env);
        // One that fails is not tried again at once.
        self.stored_ms = now.mono_ms;
        let bytes = codec::encode(&Stored {
            shard_count: self.shard_count,
            saved_ms: now.wall_ms,
            slots: self.table.slots().cloned().collect(),
        });
        replace_file(self.env.disk.as_ref(), &self.path, &bytes).during("replace", &self.path)?;
        self.table.stored_now();
        self.stored = self.durable();
        Ok(())
    }
}

fn failed(error: ReplicationError) -> Error {
    match error {
        ReplicationError::Log(error) => Error::Log(error),
        error => Error::Replication(error.to_string()),
    }
}

fn read(env: &Env, path: &std::path::Path, shard_count: usize) -> Result<Option<Stored>, LogError> {
    let bytes = match read_file(env.disk.as_ref(), path, codec::TABLE_LEN_MAX as u64) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
            let expected = format!("at most {} bytes", codec::TABLE_LEN_MAX);
            return Err(LogError::corrupt(
                path,
                0,
                "length",
                expected,
                e.to_string(),
            ));
        }
        Err(e) => return Err(e).during("read", path),
    };
    match codec::decode(&bytes) {
        Ok(stored) if stored.shard_count == shard_count => Ok(Some(stored)),
        Ok(stored) => {
            let (expected, found) = (format!("{shard_count}"), stored.shard_count.to_string());
            Err(LogError::corrupt(path, 10, "shard count", expected, found))
        }
        Err(ReplicationError::Damaged {
            what,
            expected,
            found,
        }) => Err(LogError::corrupt(path, 0, what, expected, found)),
        Err(error) => {
            let found = error.to_string();
            Err(LogError::corrupt(path, 0, "table of slots", "one", found))
        }
    }
}

/// Everything that keeps segments now, the one that keeps most first.
fn holders(store: &Store) -> Vec<Holder> {
    let mut holders = Vec::new();
    let manifest = store.manifest();
    // A follower's slots hold nothing, whoever reads them.
    let follows = store.epoch_file().lock().epochs().follows;
    let slots = match follows {
        false => store.retention().slots(store),
        true => Vec::new(),
    };
    let others = store.retention().lock().others(store);
    for (log, flushed) in store.logs().iter().zip(&manifest.logs) {
        let shard = log.id().shard;
        let n = usize::from(shard.0);
        let segments = log.segments();
        let sealed = || segments.iter().filter(|segment| segment.sealed().is_some());
        let held = |from_seq: u64| -> u64 {
            let needed = sealed().filter(|segment| segment.last_seq() >= from_seq);
            needed.map(|segment| segment.data_len()).sum()
        };
        let mut add = |what, name: &str, from_seq: u64, bytes: u64| {
            if bytes > 0 {
                holders.push(Holder {
                    what,
                    name: name.to_owned(),
                    shard: shard.0,
                    from_seq,
                    bytes,
                });
            }
        };
        let done = flushed.position.seq.min(flushed.complete_seq);
        add("flush", "", done + 1, held(done + 1));
        add("sync", "", log.synced_seq(), held(log.synced_seq()));
        for slot in &slots {
            if !matches!(slot.state, SlotState::Lost { .. }) {
                add("slot", &slot.name, slot.durable[n], held(slot.durable[n]));
            }
        }
        for ((what, name), from_seqs) in &others {
            add(what, name, from_seqs[n], held(from_seqs[n]));
        }
        let pointed: Vec<u64> = manifest
            .tables()
            .flat_map(|table| &table.files)
            .filter(|file| file.source == PointerSource::Segment && file.shard == shard)
            .map(|file| file.file)
            .collect();
        let valued = || segments.iter().filter(|s| pointed.contains(&s.first_seq()));
        let first = valued().map(|segment| segment.first_seq()).min();
        let bytes = valued().map(|segment| segment.data_len()).sum();
        add("values", "", first.unwrap_or(0), bytes);
    }
    holders.extend(bundles(store));
    holders.sort_by_key(|holder| std::cmp::Reverse(holder.bytes));
    holders
}

/// Segments that are in no log any more and that a bundle still has.
fn bundles(store: &Store) -> Vec<Holder> {
    let (disk, staging) = (store.env().disk.as_ref(), files::staging(store.dir()));
    let region = store.manifest().region;
    let mut held: BTreeMap<(String, u16), (u64, u64)> = BTreeMap::new();
    // There is no such directory before the first bundle.
    for bundle in disk.list(&staging).unwrap_or_default() {
        let dir = files::region(&staging.join(&bundle.name), region);
        for entry in disk.list(&dir).unwrap_or_default() {
            let Some((shard, first_seq)) = strandline_wal::segment::parse_file_name(&entry.name)
            else {
                continue;
            };
            let log = store.logs().get(usize::from(shard.0));
            if log.is_some_and(|log| log.segment(first_seq).is_none()) {
                let place = held
                    .entry((bundle.name.clone(), shard.0))
                    .or_insert((u64::MAX, 0));
                *place = (place.0.min(first_seq), place.1 + entry.len);
            }
        }
    }
    let holder = |((name, shard), (from_seq, bytes))| Holder {
        what: "bundle",
        name,
        shard,
        from_seq,
        bytes,
    };
    held.into_iter().map(holder).collect()
}

impl Dataset {
    /// Everything that keeps segments of the log, the one that keeps most first. A segment that several
    /// keep is counted for each: it goes once none does.
    pub fn who_blocks(&self) -> Vec<Holder> {
        holders(&self.inner().store())
    }

    /// What followers need of the log, those that are away included. For a dataset that follows, what was
    /// needed when it led last: nothing is held for it now.
    pub fn slots(&self) -> Vec<SlotStatus> {
        let store = self.inner().store();
        store.retention().slots(&store)
    }

    /// Forgets a follower, by its name or by the 32 hexadecimal digits of its node, and no longer keeps
    /// log for it. One that comes back has a new slot. Durable on return.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Argument`] where several have the name; the disk's.
    pub fn drop_slot(&self, name: &str) -> Result<()> {
        let store = self.inner().store();
        store.check()?;
        store.retention().drop_slot(&store, name)
    }
}
