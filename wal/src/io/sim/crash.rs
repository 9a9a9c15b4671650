//! What a crash may leave: the kinds of damage, and the disk that one of them makes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::content::Content;
use super::env::Rng;
use super::file::{Change, FileState};
use super::names::{Dir, NameOp, Names, surviving};
use super::state::{Node, NodeId, State};

/// Which of the unsynced changes a crash undoes. All leave what was synced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Damage {
    /// All of them, names included.
    LoseAll,
    /// None of them.
    KeepAll,
    /// Each sector, length and name has any of the states it had: torn and reordered.
    Sectors,
    /// The disk is as it was at one moment: everything before survives, nothing after.
    Ordered,
    /// Each file is as it was at one moment of its own.
    FilePrefix,
    /// As [`Damage::FilePrefix`], and of the next change of each file a part survives.
    TornPrefix,
    /// Of each file everything survives but a part of its last change.
    TornLast,
    /// Of each file only the last changes survive.
    Suffix,
    /// Names are lost, contents survive.
    LoseNames,
    /// Names survive, contents and lengths are lost.
    OnlyNames,
    /// Names and lengths survive, bytes are lost.
    LoseData,
    /// Names and bytes survive, lengths are lost.
    LoseLengths,
    /// Everything survives but the content of one file.
    LoseOneFile,
    /// Only names and the content of one file survive.
    OnlyOneFile,
    /// Everything survives but one sector.
    LoseOneSector,
    /// Everything survives but one change of names and what needs it.
    LoseOneName,
    /// Each file suffers a damage of its own, and names survive at random.
    Mixed,
}

impl Damage {
    /// Every kind.
    pub const ALL: [Damage; 17] = [
        Damage::LoseAll,
        Damage::KeepAll,
        Damage::Sectors,
        Damage::Ordered,
        Damage::FilePrefix,
        Damage::TornPrefix,
        Damage::TornLast,
        Damage::Suffix,
        Damage::LoseNames,
        Damage::OnlyNames,
        Damage::LoseData,
        Damage::LoseLengths,
        Damage::LoseOneFile,
        Damage::OnlyOneFile,
        Damage::LoseOneSector,
        Damage::LoseOneName,
        Damage::Mixed,
    ];
}

/// The kinds that [`Damage::Mixed`] deals out.
const OF_ONE_FILE: [Damage; 9] = [
    Damage::LoseAll,
    Damage::KeepAll,
    Damage::Sectors,
    Damage::FilePrefix,
    Damage::TornPrefix,
    Damage::TornLast,
    Damage::Suffix,
    Damage::LoseData,
    Damage::LoseLengths,
];

/// Parts of a seed that have random numbers of their own. Files use their node id, which is far
/// below these.
const PART_VICTIM: u64 = u64::MAX;
const PART_NAMES: u64 = u64::MAX - 1;
const PART_DISK: u64 = u64::MAX - 2;

/// The disk after a crash of `state`.
pub(super) fn crash(state: &mut State, seed: u64, damage: Damage) -> State {
    state.absorb_all();
    let crash = Crash::new(state, seed, damage);
    let nodes = crash.nodes();
    let mut after = State::new(Rng::part(seed, PART_DISK).next());
    after.nodes = nodes;
    after.continue_from(state);
    after
}

struct Crash<'a> {
    state: &'a State,
    seed: u64,
    damage: Damage,
    /// The one file that [`Damage::LoseOneFile`] and its like are about.
    victim: Option<NodeId>,
    /// Changes up to this stamp survive [`Damage::Ordered`].
    last_stamp: u64,
}

impl<'a> Crash<'a> {
    fn new(state: &'a State, seed: u64, damage: Damage) -> Crash<'a> {
        let mut rng = Rng::part(seed, PART_VICTIM);
        let mut stamps: Vec<u64> = state.pending.iter().map(|op| op.stamp).collect();
        let mut unsynced = Vec::new();
        for id in may_be_named(state) {
            if let Node::File(file) = state.node(id)
                && !file.is_clean()
            {
                unsynced.push(id);
                stamps.extend(file.changes().map(|change| change.stamp));
            }
        }
        stamps.push(0);
        stamps.sort_unstable();
        stamps.dedup();
        Crash {
            state,
            seed,
            damage,
            victim: pick(&unsynced, &mut rng),
            last_stamp: pick(&stamps, &mut rng).expect("0 is always there"),
        }
    }

    /// The nodes that have a name after the crash.
    fn nodes(&self) -> BTreeMap<NodeId, Arc<Node>> {
        let mut changed: BTreeMap<NodeId, Names> = BTreeMap::new();
        for op in &self.state.pending {
            for ((dir, _), _) in &op.sets {
                if let Node::Dir(names) = self.state.node(*dir) {
                    changed.entry(*dir).or_insert_with(|| names.durable.clone());
                }
            }
        }
        for ((dir, name), node) in self.happened().iter().flat_map(|op| &op.sets) {
            let names = changed
                .get_mut(dir)
                .expect("every directory of an operation is there");
            match node {
                Some(node) => names.insert(name.clone(), *node),
                None => names.remove(name),
            };
        }
        let mut link_counts: BTreeMap<NodeId, u64> = BTreeMap::from([(NodeId::ROOT, 1)]);
        let mut nodes = BTreeMap::new();
        let mut next = vec![NodeId::ROOT];
        while let Some(id) = next.pop() {
            let Node::Dir(dir) = self.state.node(id) else {
                continue;
            };
            for child in changed.get(&id).unwrap_or(&dir.durable).values() {
                let count = link_counts.entry(*child).or_default();
                *count += 1;
                if *count == 1 {
                    next.push(*child);
                }
            }
        }
        for (id, link_count) in link_counts {
            nodes.insert(id, self.after(id, link_count, changed.remove(&id)));
        }
        nodes
    }

    fn after(&self, id: NodeId, link_count: u64, names: Option<Names>) -> Arc<Node> {
        let node = &self.state.nodes[&id];
        match (node.as_ref(), names) {
            (Node::Dir(_), Some(names)) => Arc::new(Node::Dir(Dir {
                durable: names.clone(),
                current: names,
            })),
            (Node::File(file), _) if !file.is_clean() || file.link_count != link_count => {
                let content = self.content(self.damage, id, file);
                Arc::new(Node::File(FileState::durable(content, link_count)))
            }
            // Without unsynced changes it is what it was.
            _ => Arc::clone(node),
        }
    }

    /// The operations on names that survive.
    fn happened(&self) -> Vec<&'a NameOp> {
        let mut rng = Rng::part(self.seed, PART_NAMES);
        let ops = &self.state.pending;
        match self.damage {
            Damage::LoseAll | Damage::LoseNames => Vec::new(),
            Damage::KeepAll
            | Damage::TornLast
            | Damage::OnlyNames
            | Damage::LoseData
            | Damage::LoseLengths
            | Damage::LoseOneFile
            | Damage::OnlyOneFile
            | Damage::LoseOneSector => ops.iter().collect(),
            Damage::Ordered => surviving(ops, |_, op| op.stamp <= self.last_stamp),
            Damage::LoseOneName => {
                let lost = rng.below(ops.len().max(1) as u64) as usize;
                surviving(ops, |index, _| index != lost)
            }
            Damage::Sectors
            | Damage::FilePrefix
            | Damage::TornPrefix
            | Damage::Suffix
            | Damage::Mixed => {
                let of_256 = some_chance(&mut rng);
                surviving(ops, |_, _| rng.chance(of_256))
            }
        }
    }

    /// What survives of one file.
    fn content(&self, damage: Damage, id: NodeId, file: &FileState) -> Content {
        let mut rng = Rng::part(self.seed, id.0);
        let count = file.changes().count();
        let some_count = |rng: &mut Rng| rng.below(count as u64 + 1) as usize;
        match damage {
            Damage::LoseAll | Damage::OnlyNames => lose(file),
            Damage::KeepAll | Damage::LoseNames | Damage::LoseOneName => file.current().clone(),
            Damage::Sectors => {
                let of_256 = some_chance(&mut rng);
                file.survivor(some_count(&mut rng), &mut |_, _| rng.chance(of_256))
            }
            Damage::Ordered => {
                let before = |change: &&Change| change.stamp <= self.last_stamp;
                let kept = file.changes().filter(before).count();
                file.survivor(kept, &mut |index, _| index < kept)
            }
            Damage::FilePrefix => {
                let kept = some_count(&mut rng);
                file.survivor(kept, &mut |index, _| index < kept)
            }
            Damage::TornPrefix => tear(file, some_count(&mut rng), &mut rng),
            Damage::TornLast => {
                let touches = |(index, change): (usize, &Change)| {
                    (!change.sectors().is_empty()).then_some(index)
                };
                let last = file.changes().enumerate().filter_map(touches).last();
                tear(file, last.unwrap_or(count), &mut rng)
            }
            Damage::Suffix => {
                let lost = some_count(&mut rng);
                file.survivor(count, &mut |index, _| index >= lost)
            }
            Damage::LoseData => file.survivor(count, &mut |_, _| false),
            Damage::LoseLengths => file.survivor(0, &mut |_, _| true),
            Damage::LoseOneFile if self.victim == Some(id) => lose(file),
            Damage::LoseOneFile => file.current().clone(),
            Damage::OnlyOneFile if self.victim == Some(id) => file.current().clone(),
            Damage::OnlyOneFile => lose(file),
            Damage::LoseOneSector if self.victim == Some(id) => {
                let sectors: BTreeSet<u64> = file.changes().flat_map(Change::sectors).collect();
                let sectors: Vec<u64> = sectors.into_iter().collect();
                let lost = pick(&sectors, &mut rng);
                file.survivor(count, &mut |_, sector| Some(sector) != lost)
            }
            Damage::LoseOneSector => file.current().clone(),
            Damage::Mixed => {
                let damage = pick(&OF_ONE_FILE, &mut rng).expect("the list is not empty");
                self.content(damage, id, file)
            }
        }
    }
}

/// The nodes that may have a name after a crash: those that handles alone keep have not.
fn may_be_named(state: &State) -> BTreeSet<NodeId> {
    let assigned = |op: &NameOp| {
        op.sets
            .iter()
            .filter_map(|(_, node)| *node)
            .collect::<Vec<_>>()
    };
    let mut named: BTreeSet<NodeId> = state.pending.iter().flat_map(assigned).collect();
    for node in state.nodes.values() {
        if let Node::Dir(dir) = node.as_ref() {
            named.extend(dir.durable.values());
        }
    }
    named
}

fn lose(file: &FileState) -> Content {
    file.survivor(0, &mut |_, _| false)
}

/// The first `whole` changes survive, and of the next one the sectors before or after a tear.
fn tear(file: &FileState, whole: usize, rng: &mut Rng) -> Content {
    let Some(torn) = file.changes().nth(whole) else {
        return file.current().clone();
    };
    let sectors = torn.sectors();
    let tear = sectors.start + rng.below(sectors.end - sectors.start + 1);
    let head = rng.chance(128);
    let len_index = whole + usize::from(rng.chance(128));
    file.survivor(len_index, &mut |index, sector| {
        index < whole || index == whole && (sector < tear) == head
    })
}

/// Mostly lost, half, or mostly kept: halves alone would hardly ever lose one change of many.
fn some_chance(rng: &mut Rng) -> u64 {
    [16, 128, 240][rng.below(3) as usize]
}

fn pick<T: Copy>(from: &[T], rng: &mut Rng) -> Option<T> {
    if from.is_empty() {
        return None;
    }
    Some(from[rng.below(from.len() as u64) as usize])
}
