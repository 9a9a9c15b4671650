//! The slots of one dataset: what each follower still needs of the leader's log, and whether it is kept.
//!
//! A slot is made when a follower says hello and stays when it leaves, through restarts of the leader. It
//! holds the log from the last record that the follower confirmed as durable: that one's segment too,
//! because the footer that ends it may not have arrived. Three limits are finite, so that a follower that
//! is dead does not fill the disk: bytes, idle time, and what is left of the disk. Nothing else is decided
//! here, and nothing is remembered of a decision: a slot over a limit is kept no longer, and it is *lost*
//! once the log it needs is gone, or for as long as it is over the limit.
//!
//! Idle time is a sum of steps of a monotonic clock. Of the time between two runs the wall clock is asked,
//! and no more than [`AWAY_MS_MAX`] is believed: a clock that jumps loses no slot.
//!
//! A follower that the log no longer reaches takes a bundle. From its hello on everything is kept for it,
//! from the bundle's plan on what lies behind that, whatever the limit of bytes, until it has caught up:
//! otherwise it would find the log gone again, and take bundles for ever. Only a disk that runs full, and
//! silence, end that.

use std::collections::BTreeMap;

use strandline_wal::bug::planted;

use crate::error::{Error, Result};
use crate::ids::{Identity, Incarnation, Lineage, NodeId};

pub mod codec;
#[cfg(test)]
mod tests;

/// Most slots of a dataset. Those that hold nothing make room for new ones.
pub const SLOT_COUNT_MAX: usize = 64;
/// Log that is held for a slot by default, in bytes, or a quarter of the free disk where that is less.
pub const BYTES_MAX: u64 = 10 << 30;
/// How long a slot waits for its follower by default, in milliseconds: a week.
pub const IDLE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Most time that a restart is taken to have lasted, in milliseconds: a day.
pub const AWAY_MS_MAX: u64 = 24 * 3_600_000;
/// A follower that was not heard for so long is away, in milliseconds.
pub const SILENCE_MS_MAX: u64 = 10_000;
/// A bundle's tail is held past the limit of bytes for a follower that is silent for so long at most.
const CATCHING_MS_MAX: u64 = 60_000;
/// The name of what is held because a damaged file of slots does not tell for whom.
pub const UNKNOWN: &str = "unknown";

/// What a follower needs of a log.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Slot {
    /// Who.
    pub node: NodeId,
    /// Which life of it: a wiped node comes as another.
    pub incarnation: Incarnation,
    /// The history that it follows.
    pub lineage: Lineage,
    /// What people call it.
    pub name: String,
    /// When it was made, in milliseconds since 1970. For people.
    pub created_ms: u64,
    /// When its follower was heard last, likewise.
    pub seen_ms: u64,
    /// How long it was not heard, in milliseconds.
    pub idle_ms: u64,
    /// Whether it takes a bundle, or has not caught up since.
    pub catching: bool,
    /// Per shard, the last record that it confirmed as durable; everything behind it is needed.
    pub durable: Vec<u64>,
}

/// How a slot stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SlotState {
    /// Its follower is here, and not far behind.
    Active,
    /// It is away, or more than a quarter of what may be held is held for it.
    Lagging,
    /// More than three quarters of a limit are used.
    AtRisk {
        /// Bytes that may still be written before it is lost.
        bytes_left: u64,
    },
    /// Nothing is held for it: its follower will need a bundle, unless it has more than it confirmed.
    Lost {
        /// The first record that the log still has, of the first shard that lacks something.
        first_available: u64,
    },
}

/// How much may be held.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Bytes for one slot; `None` for the smaller of [`BYTES_MAX`] and a quarter of the free disk.
    pub bytes_max: Option<u64>,
    /// Milliseconds without its follower.
    pub idle_ms_max: u64,
    /// Slots are lost, the one that holds most first, before less of the disk than this is free.
    pub free_len_min: u64,
}

/// A segment as slots see it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Piece {
    /// Its last record.
    pub last_seq: u64,
    /// Its bytes.
    pub len: u64,
    /// Whether it takes no more.
    pub is_sealed: bool,
}

/// What there is of the logs and of the disk.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Room {
    /// Per shard, the first record that can be shipped, and the segments.
    pub logs: Vec<(u64, Vec<Piece>)>,
    /// Free bytes of the disk, where it tells.
    pub free_len: Option<u64>,
}

impl Room {
    /// Bytes that are there for whoever has everything up to `durable`.
    pub fn held(&self, durable: &[u64]) -> u64 {
        let logs = self.logs.iter().zip(durable);
        let pieces =
            logs.flat_map(|((_, pieces), durable)| pieces.iter().map(move |p| (p, durable)));
        pieces
            .filter(|(piece, durable)| needs(**durable, piece))
            .map(|(piece, _)| piece.len)
            .sum()
    }

    /// The first record of the first shard whose log no longer reaches back to `durable`.
    fn gone(&self, durable: &[u64]) -> Option<u64> {
        let mut logs = self.logs.iter().zip(durable);
        let is_gone = |first: u64, durable: u64| durable < first && first > 1;
        logs.find(|((first, _), durable)| is_gone(*first, **durable))
            .map(|((first, _), _)| *first)
    }
}

/// Whether a segment is needed by whoever has everything up to `durable`: its end too, where it is just
/// there that the follower stands.
fn needs(durable: u64, piece: &Piece) -> bool {
    piece.last_seq > durable || piece.is_sealed && piece.last_seq == durable
}

/// The time of an event.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct At {
    /// Milliseconds that never go back.
    pub mono_ms: u64,
    /// Milliseconds since 1970.
    pub wall_ms: u64,
}

/// What a connected follower confirmed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Heard {
    /// Who.
    pub node: NodeId,
    /// Which life of it.
    pub incarnation: Incarnation,
    /// Per shard, the last record that it confirmed as durable on this connection; 0 before it did.
    pub durable: Vec<u64>,
}

/// What happens to slots.
#[derive(Clone, Debug)]
pub enum Event {
    /// A follower says where its logs end: its slot is made, or lowered to that. Per shard, the end and
    /// the first record that can be shipped. Nothing of it may be answered before the table is durable.
    Greeted(Identity, Vec<(u64, u64)>),
    /// A bundle for a follower ends here, per shard.
    Pinned(NodeId, Vec<u64>),
    /// The followers that are connected, all of them.
    Heard(Vec<Heard>),
    /// The logs were cut: per shard, the last record that stays.
    Cut(Vec<u64>),
    /// Someone decided that a follower does not come back.
    Dropped(NodeId),
    /// Time passed.
    Tick,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct SlotTable {
    slots: BTreeMap<NodeId, Slot>,
    mono_ms: u64,
    // Whether there is something that a restart must not forget; progress is no such thing.
    is_new: bool,
}

impl SlotTable {
    /// No slots.
    pub fn new(at: At) -> SlotTable {
        SlotTable {
            slots: BTreeMap::new(),
            mono_ms: at.mono_ms,
            is_new: false,
        }
    }

    /// The slots that were stored at `saved_ms` of the wall clock.
    pub fn stored(at: At, saved_ms: u64, slots: Vec<Slot>) -> SlotTable {
        let mut table = SlotTable::new(at);
        let away = at.wall_ms.saturating_sub(saved_ms);
        let away = if planted("slot.away") {
            away
        } else {
            away.min(AWAY_MS_MAX)
        };
        for mut slot in slots {
            slot.idle_ms = slot.idle_ms.saturating_add(away);
            table.slots.insert(slot.node, slot);
        }
        table
    }

    /// One slot that holds everything there is, for followers that nobody knows. It has limits like any.
    pub fn unknown(at: At, firsts: &[u64]) -> SlotTable {
        let mut table = SlotTable::new(at);
        let slot = Slot {
            node: NodeId::default(),
            incarnation: Incarnation::default(),
            lineage: Lineage::default(),
            name: UNKNOWN.to_owned(),
            created_ms: at.wall_ms,
            seen_ms: at.wall_ms,
            idle_ms: 0,
            catching: false,
            durable: firsts.iter().map(|first| everything(*first)).collect(),
        };
        table.slots.insert(slot.node, slot);
        table.is_new = true;
        table
    }

    /// All slots.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// Whether a restart would forget something that it must not, unless the table is stored now.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// The table is durable as it is.
    pub fn stored_now(&mut self) {
        self.is_new = false;
    }

    /// The only way in.
    ///
    /// # Errors
    /// [`Error::Full`] for a follower that there is no place for. Nothing has changed then.
    pub fn handle(&mut self, at: At, room: &Room, limits: &Limits, event: Event) -> Result<()> {
        let passed = at.mono_ms.saturating_sub(self.mono_ms);
        self.mono_ms = self.mono_ms.max(at.mono_ms);
        for slot in self.slots.values_mut() {
            slot.idle_ms = slot.idle_ms.saturating_add(passed);
        }
        match event {
            Event::Greeted(peer, ends) => self.greeted(at, room, limits, peer, &ends)?,
            Event::Pinned(node, ends) => {
                if let Some(slot) = self.slots.get_mut(&node) {
                    slot.catching = true;
                    slot.durable = ends;
                }
            }
            Event::Heard(heard) => heard.iter().for_each(|h| self.heard(at, room, limits, h)),
            Event::Cut(ends) => {
                for slot in self.slots.values_mut() {
                    self.is_new |= lower(&mut slot.durable, &ends);
                }
            }
            Event::Dropped(node) => self.is_new |= self.slots.remove(&node).is_some(),
            Event::Tick => {}
        }
        Ok(())
    }

    fn greeted(
        &mut self,
        at: At,
        room: &Room,
        limits: &Limits,
        peer: Identity,
        ends: &[(u64, u64)],
    ) -> Result<()> {
        let same =
            |slot: &&mut Slot| slot.incarnation == peer.incarnation || planted("slot.incarnation");
        if let Some(slot) = self.slots.get_mut(&peer.node).filter(same) {
            slot.name = peer.name;
            (slot.seen_ms, slot.idle_ms) = (at.wall_ms, 0);
            let ends_of: Vec<u64> = ends.iter().map(|(end, _)| *end).collect();
            self.is_new |= lower(&mut slot.durable, &ends_of) && !planted("slot.lowered");
            // What it needs may be gone. Then all that is left is kept, for the bundle that it will ask for.
            for (durable, (_, first)) in slot.durable.iter_mut().zip(ends) {
                if *durable < *first && *first > 1 {
                    *durable = everything(*first);
                    slot.catching = true;
                }
            }
            return Ok(());
        }
        if !self.slots.contains_key(&peer.node) && self.slots.len() >= SLOT_COUNT_MAX {
            let lost = self.judge(room, limits).into_iter().find_map(|judged| {
                matches!(judged.state, SlotState::Lost { .. }).then_some(judged.node)
            });
            let Some(lost) = lost else {
                return Err(Error::Full {
                    what: "table of slots: drop one",
                    limit: SLOT_COUNT_MAX,
                });
            };
            self.slots.remove(&lost);
        }
        let is_gone = |(end, first): &(u64, u64)| *end < *first && *first > 1;
        // What it has may not be durable there: until it confirms, everything is kept.
        let slot = Slot {
            node: peer.node,
            incarnation: peer.incarnation,
            lineage: peer.lineage,
            name: peer.name,
            created_ms: at.wall_ms,
            seen_ms: at.wall_ms,
            idle_ms: 0,
            catching: ends.iter().any(is_gone),
            durable: ends.iter().map(|(_, first)| everything(*first)).collect(),
        };
        self.slots.insert(slot.node, slot);
        self.is_new = true;
        Ok(())
    }

    fn heard(&mut self, at: At, room: &Room, limits: &Limits, heard: &Heard) {
        let Some(slot) = self.slots.get_mut(&heard.node) else {
            return;
        };
        if slot.incarnation != heard.incarnation {
            return;
        }
        (slot.seen_ms, slot.idle_ms) = (at.wall_ms, 0);
        for (durable, confirmed) in slot.durable.iter_mut().zip(&heard.durable) {
            *durable = (*durable).max(*confirmed);
        }
        // It has caught up once it confirmed something behind the bundle, and is near the end.
        let confirms = heard.durable.iter().all(|confirmed| *confirmed > 0);
        if slot.catching && confirms && slot.durable == heard.durable {
            let held = room.held(&slot.durable);
            slot.catching = held > bytes_max(limits, room) / 2;
        }
    }

    /// How every slot stands, and which are kept.
    pub fn judge(&self, room: &Room, limits: &Limits) -> Vec<Judged> {
        let mut all: Vec<Judged> = self
            .slots
            .values()
            .map(|slot| {
                let held = room.held(&slot.durable);
                let state = state_of(slot, held, room, limits);
                Judged {
                    node: slot.node,
                    held,
                    state,
                }
            })
            .collect();
        self.make_room(&mut all, room, limits);
        for judged in &mut all {
            if matches!(judged.state, SlotState::Lost { .. }) {
                judged.held = 0;
            }
        }
        all
    }

    /// A disk that runs full takes the slots that hold most, until enough would be free.
    fn make_room(&self, all: &mut [Judged], room: &Room, limits: &Limits) {
        let Some(free_len) = room.free_len.filter(|_| !planted("slot.free")) else {
            return;
        };
        let before = room.held(&self.floors_of(room, all));
        loop {
            let freed = match all.iter().any(Judged::is_kept) {
                true => before - room.held(&self.floors_of(room, all)),
                false => return,
            };
            if free_len.saturating_add(freed) >= limits.free_len_min {
                return;
            }
            let kept = all.iter_mut().filter(|judged| judged.is_kept());
            let Some(most) = kept.max_by_key(|judged| judged.held).filter(|j| j.held > 0) else {
                return;
            };
            most.state = lost(room);
        }
    }

    /// Per shard, the last record that every slot that is kept has: what lies before its segment may go.
    /// `u64::MAX` where there is none.
    pub fn floors(&self, room: &Room, limits: &Limits) -> Vec<u64> {
        self.floors_of(room, &self.judge(room, limits))
    }

    fn floors_of(&self, room: &Room, judged: &[Judged]) -> Vec<u64> {
        let mut floors = vec![u64::MAX; room.logs.len()];
        for judged in judged.iter().filter(|judged| judged.is_kept()) {
            lower(&mut floors, &self.slots[&judged.node].durable);
        }
        floors
    }
}

/// What is decided of a slot, as long as nothing changes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Judged {
    /// Whose.
    pub node: NodeId,
    /// Bytes of log that are kept for it, each counted for every slot that needs it.
    pub held: u64,
    /// How it stands.
    pub state: SlotState,
}

impl Judged {
    fn is_kept(&self) -> bool {
        !matches!(self.state, SlotState::Lost { .. })
    }
}

/// Stands just behind what is gone: holds everything that is left.
fn everything(first: u64) -> u64 {
    if first > 1 { first } else { 0 }
}

/// Lowers each to the other's; whether one was higher.
fn lower(seqs: &mut [u64], to: &[u64]) -> bool {
    let mut any = false;
    for (seq, to) in seqs.iter_mut().zip(to) {
        any |= *to < *seq;
        *seq = (*seq).min(*to);
    }
    any
}

fn bytes_max(limits: &Limits, room: &Room) -> u64 {
    let share = room.free_len.map_or(u64::MAX, |free_len| free_len / 4);
    limits.bytes_max.unwrap_or(BYTES_MAX.min(share))
}

fn lost(room: &Room) -> SlotState {
    let first_available = room.logs.first().map_or(1, |(first, _)| *first);
    SlotState::Lost { first_available }
}

fn state_of(slot: &Slot, held: u64, room: &Room, limits: &Limits) -> SlotState {
    if let Some(first_available) = room.gone(&slot.durable) {
        return SlotState::Lost { first_available };
    }
    let bytes_max = bytes_max(limits, room);
    let is_late = slot.idle_ms > limits.idle_ms_max && !planted("slot.idle");
    let is_exempt = slot.catching && slot.idle_ms <= CATCHING_MS_MAX && !planted("slot.catching");
    let is_over = held > bytes_max && !is_exempt && !planted("slot.bytes");
    if is_late || is_over {
        return lost(room);
    }
    let bytes_left = bytes_max.saturating_sub(held);
    let is_old = slot.idle_ms > limits.idle_ms_max / 4 * 3;
    if is_old || !is_exempt && bytes_left < bytes_max / 4 {
        return SlotState::AtRisk { bytes_left };
    }
    let is_away = slot.idle_ms > SILENCE_MS_MAX;
    match is_away || held > bytes_max / 4 {
        true => SlotState::Lagging,
        false => SlotState::Active,
    }
}
