//! Tests of slots: each limit, what a bundle keeps, the stored bytes, and a naive model beside it all.

use proptest::prelude::*;
use strandline_wal::DatasetId;

use super::codec::{self, Stored};
use super::*;

const MIB: u64 = 1 << 20;

const LIMITS: Limits = Limits {
    bytes_max: Some(10 * MIB),
    idle_ms_max: IDLE_MS_MAX,
    free_len_min: 4 * MIB,
};

fn at(ms: u64) -> At {
    At {
        mono_ms: ms,
        wall_ms: 1_000_000 + ms,
    }
}

fn peer(node: u8, incarnation: u8) -> Identity {
    Identity {
        node: NodeId([node; 16]),
        incarnation: Incarnation([incarnation; 16]),
        name: format!("node-{node}"),
        dataset: DatasetId::new("primary").unwrap(),
        lineage: Lineage([9; 16]),
    }
}

/// A log of one shard: segments of 1 MiB and ten records each, the last one growing.
fn room(first: u64, last: u64, free_len: Option<u64>) -> Room {
    let mut pieces = Vec::new();
    let mut end = first + 9;
    while end < last {
        pieces.push(Piece {
            last_seq: end,
            len: MIB,
            is_sealed: true,
        });
        end += 10;
    }
    pieces.push(Piece {
        last_seq: last,
        len: MIB,
        is_sealed: false,
    });
    Room {
        logs: vec![(first, pieces)],
        free_len,
    }
}

struct World {
    table: SlotTable,
    room: Room,
    limits: Limits,
    ms: u64,
}

impl World {
    fn new(room: Room) -> World {
        World {
            table: SlotTable::new(at(0)),
            room,
            limits: LIMITS,
            ms: 0,
        }
    }

    fn first(&self) -> u64 {
        self.room.logs[0].0
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        self.table
            .handle(at(self.ms), &self.room, &self.limits, event)
    }

    fn greet(&mut self, node: u8, incarnation: u8, end: u64) {
        let ends = vec![(end, self.first())];
        self.handle(Event::Greeted(peer(node, incarnation), ends))
            .unwrap();
    }

    fn hear(&mut self, node: u8, durable: u64) {
        let heard = Heard {
            node: NodeId([node; 16]),
            incarnation: Incarnation([1; 16]),
            durable: vec![durable],
        };
        self.handle(Event::Heard(vec![heard])).unwrap();
    }

    fn pass(&mut self, ms: u64) {
        self.ms += ms;
        self.handle(Event::Tick).unwrap();
    }

    fn state(&self, node: u8) -> SlotState {
        let judged = self.table.judge(&self.room, &self.limits);
        let is_it = |judged: &&Judged| judged.node == NodeId([node; 16]);
        judged.iter().find(is_it).unwrap().state
    }

    fn floor(&self) -> u64 {
        self.table.floors(&self.room, &self.limits)[0]
    }
}

#[test]
fn a_slot_holds_what_its_follower_did_not_confirm() {
    let mut world = World::new(room(1, 35, None));
    assert_eq!(world.floor(), u64::MAX);
    world.greet(1, 1, 20);
    assert!(world.table.is_new(), "it is to be stored before the answer");
    assert_eq!(world.floor(), 0, "what it has may not be durable there");
    world.table.stored_now();
    world.hear(1, 20);
    assert_eq!(world.floor(), 20);
    assert!(!world.table.is_new(), "progress need not be");
    world.hear(1, 0);
    assert_eq!(
        world.floor(),
        20,
        "a new connection has confirmed nothing yet"
    );
    world.greet(1, 1, 30);
    assert_eq!(world.floor(), 20);
    assert!(!world.table.is_new());
    world.greet(1, 1, 15);
    assert_eq!(world.floor(), 15, "its tail was cut");
    assert!(world.table.is_new());
    // Two followers: the one that is further behind counts.
    world.greet(2, 1, 35);
    world.hear(2, 35);
    assert_eq!(world.floor(), 15);
    world.handle(Event::Dropped(NodeId([1; 16]))).unwrap();
    assert_eq!(world.floor(), 35);
}

/// The footer of a segment may not have arrived with its last record.
#[test]
fn the_segment_that_a_follower_has_whole_is_held_until_it_is_past_it() {
    let room = room(1, 35, None);
    assert_eq!(room.held(&[9]), 4 * MIB);
    assert_eq!(room.held(&[10]), 4 * MIB);
    assert_eq!(room.held(&[11]), 3 * MIB);
    assert_eq!(room.held(&[34]), MIB);
    assert_eq!(room.held(&[35]), 0);
}

#[test]
fn a_wiped_follower_in_the_place_of_its_old_slot_needs_everything() {
    let mut world = World::new(room(1, 35, None));
    world.greet(1, 1, 35);
    world.hear(1, 35);
    world.greet(1, 2, 0);
    assert_eq!(world.floor(), 0);
    assert_eq!(world.table.slots().count(), 1);
    // An ack of its old life says nothing.
    world.hear(1, 35);
    assert_eq!(world.floor(), 0);
}

#[test]
fn slots_are_lost_by_bytes_and_come_back() {
    let mut world = World::new(room(1, 35, None));
    world.greet(1, 1, 5);
    world.hear(1, 5);
    assert_eq!(world.state(1), SlotState::Lagging, "more than a quarter");
    world.hear(1, 35);
    assert_eq!(world.state(1), SlotState::Active);
    world.pass(SILENCE_MS_MAX + 1);
    assert_eq!(world.state(1), SlotState::Lagging);
    world.room = room(1, 35 + 80, None);
    assert_eq!(world.state(1), SlotState::AtRisk { bytes_left: MIB });
    world.room = room(1, 35 + 100, None);
    assert_eq!(world.state(1), SlotState::Lost { first_available: 1 });
    assert_eq!(world.floor(), u64::MAX);
    // Nothing was pruned yet: it comes back, catches up, and nothing was lost.
    world.greet(1, 1, 35);
    world.hear(1, 100);
    assert_eq!(world.state(1), SlotState::Lagging);
    assert_eq!(world.floor(), 100);
    // Now the log it needs is gone.
    world.room = room(111, 235, None);
    assert_eq!(
        world.state(1),
        SlotState::Lost {
            first_available: 111
        }
    );
    world.greet(1, 1, 100);
    assert_eq!(
        world.floor(),
        111,
        "from here on, for the bundle that it will ask for"
    );
}

#[test]
fn slots_are_lost_by_idle_time_and_not_by_a_clock_that_jumps() {
    let mut world = World::new(room(1, 35, None));
    world.greet(1, 1, 35);
    world.hear(1, 35);
    for jump in [3_600_000, -3_600_000, 400 * 24 * 3_600_000] {
        let wall = At {
            mono_ms: world.ms,
            wall_ms: 1_000_000_000_000u64.saturating_add_signed(jump),
        };
        world
            .table
            .handle(wall, &world.room, &LIMITS, Event::Tick)
            .unwrap();
        assert_eq!(world.state(1), SlotState::Active, "{jump}");
    }
    world.pass(IDLE_MS_MAX / 4 * 3 + 2);
    assert!(matches!(world.state(1), SlotState::AtRisk { .. }));
    world.pass(IDLE_MS_MAX / 4);
    assert_eq!(world.state(1), SlotState::Lost { first_available: 1 });
    world.greet(1, 1, 35);
    assert_eq!(world.state(1), SlotState::Active);
    // A restart takes what the wall clock says, within a day.
    for (away_ms, idle_ms) in [
        (-3_600_000, 0),
        (3_600_000, 3_600_000),
        (i64::MAX, AWAY_MS_MAX),
    ] {
        let saved_ms = 1_000_000_000u64;
        let now = At {
            mono_ms: 0,
            wall_ms: saved_ms.saturating_add_signed(away_ms),
        };
        let slots = world.table.slots().cloned().collect();
        let table = SlotTable::stored(now, saved_ms, slots);
        assert_eq!(table.slots().next().unwrap().idle_ms, idle_ms, "{away_ms}");
    }
}

#[test]
fn a_disk_that_runs_full_takes_the_slot_that_holds_most() {
    let mut world = World::new(room(1, 95, Some(100 * MIB)));
    world.limits.bytes_max = None;
    for (node, durable) in [(1, 5), (2, 55), (3, 95)] {
        world.greet(node, 1, durable);
        world.hear(node, durable);
    }
    assert_eq!(world.floor(), 5);
    // A quarter of what is free is the limit where none is given.
    world.room = room(1, 95, Some(36 * MIB));
    assert_eq!(world.state(1), SlotState::Lost { first_available: 1 });
    assert_eq!(world.floor(), 55);
    // With a limit of one's own the disk still has the last word.
    world.limits.bytes_max = Some(u64::MAX);
    assert_eq!(world.floor(), 5);
    world.room = room(1, 95, Some(3 * MIB));
    assert_eq!(world.floor(), 55, "the first one makes enough room");
    world.limits.free_len_min = 100 * MIB;
    assert_eq!(
        world.floor(),
        95,
        "whoever holds nothing is in nobody's way"
    );
}

#[test]
fn whoever_takes_a_bundle_keeps_its_tail_past_the_limit_until_it_caught_up() {
    let mut world = World::new(room(101, 195, None));
    world.greet(1, 1, 0);
    assert_eq!(world.floor(), 101);
    world
        .handle(Event::Pinned(NodeId([1; 16]), vec![195]))
        .unwrap();
    assert_eq!(world.floor(), 195);
    // Much is written while it takes the bundle.
    world.room = room(101, 995, None);
    world.hear(1, 0);
    assert_eq!(world.floor(), 195);
    world.greet(1, 1, 195);
    world.hear(1, 400);
    assert_eq!(world.floor(), 400, "it has not caught up");
    world.hear(1, 985);
    assert_eq!(world.state(1), SlotState::Active);
    world.room = room(101, 1_995, None);
    assert!(
        matches!(world.state(1), SlotState::Lost { .. }),
        "now the limit counts"
    );
    // One that dies on the way is not waited for without end.
    world.greet(1, 1, 0);
    world
        .handle(Event::Pinned(NodeId([1; 16]), vec![1_995]))
        .unwrap();
    world.room = room(101, 2_995, None);
    assert_eq!(world.floor(), 1_995);
    world.pass(CATCHING_MS_MAX + 1);
    assert_eq!(world.floor(), u64::MAX);
}

#[test]
fn slots_that_hold_nothing_make_room_and_others_do_not() {
    let mut world = World::new(room(1, 35, None));
    for node in 1..=SLOT_COUNT_MAX as u8 {
        world.greet(node, 1, 35);
    }
    let one_more = Event::Greeted(peer(200, 1), vec![(35, 1)]);
    let error = world.handle(one_more.clone()).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Full {
                limit: SLOT_COUNT_MAX,
                ..
            }
        ),
        "{error}"
    );
    world.greet(3, 1, 35);
    world.pass(IDLE_MS_MAX + 1);
    world.hear(3, 35);
    world.handle(one_more).unwrap();
    assert_eq!(world.table.slots().count(), SLOT_COUNT_MAX);
    assert!(world.table.slots().any(|slot| slot.node == NodeId([3; 16])));
}

#[test]
fn two_followers_with_one_name_have_two_slots() {
    let mut world = World::new(room(1, 35, None));
    for node in [1, 2] {
        let mut peer = peer(node, 1);
        peer.name = "same".to_owned();
        world.handle(Event::Greeted(peer, vec![(35, 1)])).unwrap();
    }
    world.hear(1, 35);
    assert_eq!(world.floor(), 0);
    world.hear(2, 12);
    assert_eq!(world.floor(), 12);
}

#[test]
fn nobody_stands_behind_a_cut() {
    let mut world = World::new(room(1, 35, None));
    world.greet(1, 1, 35);
    world.hear(1, 35);
    world.table.stored_now();
    world.handle(Event::Cut(vec![30])).unwrap();
    assert_eq!(world.floor(), 30);
    assert!(world.table.is_new(), "later the log is longer again");
}

fn example() -> Stored {
    let slot = |node: u8| Slot {
        node: NodeId([node; 16]),
        incarnation: Incarnation([2; 16]),
        lineage: Lineage([3; 16]),
        name: "ab".to_owned(),
        created_ms: 4,
        seen_ms: 5,
        idle_ms: 6,
        catching: node == 1,
        durable: vec![7, 8],
    };
    Stored {
        shard_count: 2,
        saved_ms: 9,
        slots: vec![slot(1), slot(2)],
    }
}

#[test]
fn the_bytes_of_a_table_are_those_of_the_module_s_table() {
    let mut small = example();
    small.slots.truncate(1);
    let mut golden = b"SDSL\0\0\0\0\x01\0\x02\0\x01\0\0\0\x09\0\0\0\0\0\0\0".to_vec();
    for byte in [1u8, 2, 3] {
        golden.extend([byte; 16]);
    }
    for number in [4u64, 5, 6] {
        golden.extend(number.to_le_bytes());
    }
    golden.extend(b"\x01\0\x02\0ab");
    golden.extend([7u64.to_le_bytes(), 8u64.to_le_bytes()].concat());
    let crc = crc32fast::hash(&golden[8..]);
    golden[4..8].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(codec::encode(&small), golden);
    assert_eq!(codec::decode(&golden).unwrap(), small);
    assert_eq!(
        golden.len(),
        codec::FIXED_LEN + codec::SLOT_FIXED_LEN + 2 + 16
    );
}

#[test]
fn every_flip_and_every_cut_of_a_table_is_told() {
    let bytes = codec::encode(&example());
    assert_eq!(codec::decode(&bytes).unwrap(), example());
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << bit;
            assert!(codec::decode(&damaged).is_err(), "bit {bit} of byte {at}");
        }
        assert!(codec::decode(&bytes[..at]).is_err(), "{at} bytes");
    }
    let mut longer = bytes;
    longer.push(0);
    let crc = crc32fast::hash(&longer[8..]);
    longer[4..8].copy_from_slice(&crc.to_le_bytes());
    assert!(codec::decode(&longer).is_err());
}

/// What a follower is known to have, told without any cleverness.
#[derive(Clone, Debug, Default)]
struct Naive {
    durable: u64,
    idle_ms: u64,
}

#[derive(Clone, Debug)]
enum Act {
    Greet(u8, u64),
    Hear(u8, u64),
    Write(u64),
    Prune,
    Pass(u64),
    Drop(u8),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (1..4u8, 0..40u64).prop_map(|(node, back)| Act::Greet(node, back)),
        (1..4u8, 0..40u64).prop_map(|(node, back)| Act::Hear(node, back)),
        (1..60u64).prop_map(Act::Write),
        Just(Act::Prune),
        (1..IDLE_MS_MAX / 2).prop_map(Act::Pass),
        (1..4u8).prop_map(Act::Drop),
        Just(Act::Restart),
    ]
}

proptest! {
    /// Whatever happens: what is pruned was confirmed by every follower, or its slot was over a limit.
    #[test]
    fn nothing_is_pruned_that_a_slot_within_its_limits_needs(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new(room(1, 5, None));
        let mut naive: BTreeMap<u8, Naive> = BTreeMap::new();
        let (mut first, mut last) = (1u64, 5u64);
        for act in acts {
            match act {
                Act::Greet(node, back) => {
                    let end = last.saturating_sub(back);
                    world.greet(node, 1, end);
                    let slot = naive.entry(node).or_default();
                    slot.idle_ms = 0;
                    let mut durable = slot.durable.min(end);
                    if durable < first && first > 1 {
                        durable = first;
                    }
                    slot.durable = durable;
                }
                Act::Hear(node, back) => {
                    let durable = last.saturating_sub(back);
                    world.hear(node, durable);
                    if let Some(slot) = naive.get_mut(&node) {
                        slot.durable = slot.durable.max(durable);
                        slot.idle_ms = 0;
                    }
                }
                Act::Write(count) => last += count,
                Act::Prune => {
                    let floor = world.floor();
                    while first + 9 < last && first + 9 < floor {
                        first += 10;
                    }
                }
                Act::Pass(ms) => {
                    world.pass(ms);
                    naive.values_mut().for_each(|slot| slot.idle_ms += ms);
                }
                Act::Drop(node) => {
                    world.handle(Event::Dropped(NodeId([node; 16]))).unwrap();
                    naive.remove(&node);
                }
                Act::Restart => {
                    let stored = Stored {
                        shard_count: 1,
                        saved_ms: at(world.ms).wall_ms,
                        slots: world.table.slots().cloned().collect(),
                    };
                    let stored = codec::decode(&codec::encode(&stored)).unwrap();
                    let (now, saved_ms) = (at(world.ms), stored.saved_ms);
                    world.table = SlotTable::stored(now, saved_ms, stored.slots);
                }
            }
            world.room = room(first, last, None);
            for slot in world.table.slots() {
                let naive = &naive[&slot.node.0[0]];
                prop_assert_eq!(slot.durable[0], naive.durable);
                prop_assert_eq!(slot.idle_ms, naive.idle_ms);
                let held = world.room.held(&slot.durable);
                let is_within = held <= 10 * MIB && naive.idle_ms <= IDLE_MS_MAX;
                let is_gone = naive.durable < first && first > 1;
                let is_lost = matches!(world.state(slot.node.0[0]), SlotState::Lost { .. });
                prop_assert!(is_lost || !is_gone);
                prop_assert!(!is_lost || is_gone || !is_within);
            }
            prop_assert_eq!(world.table.slots().count(), naive.len());
        }
    }
}
