//! Random cases: settings that make small databases roll, flush, compact and collect, keys that
//! stand close together, and operations on them.

use std::ops::Bound;

use strandline::{Background, Durability, EntityRule, Options, ShardId, ShardRange, ShardRouter};
use strandline_wal::io::sim::Damage;

use crate::ops::{Crash, Ends, KeyId, Move, Op, Walk};
use crate::seed::Rng;

/// A test case: everything that it does follows from these.
#[derive(Clone, Debug)]
pub struct Case {
    /// For the simulated machine.
    pub seed: u64,
    /// Whether the disk has maps and images.
    pub maps: bool,
    /// Whether its numbers begin just below 2^32.
    pub is_high: bool,
    /// The database's settings.
    pub options: Options,
    /// Number of keyspaces.
    pub keyspace_count: usize,
    /// The keys that operations name.
    pub keys: Vec<Vec<u8>>,
    /// What is done.
    pub ops: Vec<Op>,
}

/// Settings under which little data does much.
pub fn small_options() -> Options {
    Options {
        memtable_len_max: 64 << 10,
        segment_len_start: 64 << 10,
        segment_len_max: 64 << 10,
        table_len_max: 64 << 10,
        large_value_len_min: 1 << 10,
        // The cache reserves its table of entries at every open.
        cache_len_max: 256 << 10,
        run_count_max: 2,
        reserve_len_max: 8 << 10,
        background: Background::Manual,
        ..Options::default()
    }
}

/// The case of a seed, with so many operations.
pub fn case(seed: u64, op_count: usize) -> Case {
    let (mut case, mut plan) = setting(seed);
    case.ops = (0..op_count).map(|_| plan.op()).collect();
    case.maps = plan.rng.percent(70);
    case
}

/// The case of a seed without operations, and from where operations that fit it are drawn.
pub fn setting(seed: u64) -> (Case, Plan) {
    let mut rng = Rng::new(seed);
    let options = options(&mut rng);
    let keyspace_count = rng.within(1, 3);
    let keys = keys(&mut rng);
    let plan = Plan {
        key_count: keys.len(),
        keyspace_count,
        // A few cases without any crash reach states that others never grow to.
        crashes: rng.percent(85),
        heavy: rng.percent(25),
        rng,
    };
    let case = Case {
        seed,
        maps: true,
        is_high: false,
        options,
        keyspace_count,
        keys,
        ops: Vec::new(),
    };
    (case, plan)
}

/// A case of given operations on the keys `k0` to `k9` in two keyspaces.
pub fn script(options: Options, ops: Vec<Op>) -> Case {
    Case {
        seed: 1,
        maps: true,
        is_high: false,
        options,
        keyspace_count: 2,
        keys: (0..10).map(|n| format!("k{n}").into_bytes()).collect(),
        ops,
    }
}

fn options(rng: &mut Rng) -> Options {
    Options {
        durability: *rng.pick(&[Durability::Disk, Durability::Disk, Durability::Os]),
        router: router(rng),
        entity_rule: *rng.pick(&[
            EntityRule::KeyHash,
            EntityRule::PrefixHash(b'a'),
            EntityRule::FirstEight,
        ]),
        memtable_count_max: rng.within(1, 2),
        segment_len_max: *rng.pick(&[64 << 10, 128 << 10, 256 << 10]),
        large_value_len_min: *rng.pick(&[64, 512, 4 << 10]),
        run_count_max: rng.within(1, 4),
        ..small_options()
    }
}

fn router(rng: &mut Rng) -> ShardRouter {
    let shard_count = rng.within(1, 4) as u16;
    match rng.below(3) {
        0 => ShardRouter::Single,
        1 => ShardRouter::hash(shard_count).unwrap(),
        _ => ranges(shard_count),
    }
}

/// Ranges of entities of equal size, so that hashed keys spread.
pub fn ranges(shard_count: u16) -> ShardRouter {
    let step = u64::MAX / u64::from(shard_count);
    let range = |n: u16| ShardRange {
        first: u64::from(n) * step + u64::from(n > 0),
        last: if n + 1 == shard_count {
            u64::MAX
        } else {
            u64::from(n + 1) * step
        },
        shard: ShardId(shard_count - 1 - n),
    };
    ShardRouter::ranges((0..shard_count).map(range).collect()).unwrap()
}

/// Keys that share prefixes, touch the ends of every range, and now and then are long.
fn keys(rng: &mut Rng) -> Vec<Vec<u8>> {
    const LETTERS: [u8; 5] = [0, b'a', b'b', 0xfe, 0xff];
    let count = rng.within(4, 48);
    let mut keys: Vec<Vec<u8>> = vec![Vec::new(), vec![0xff; 3]];
    while keys.len() < count {
        let key = match rng.below(20) {
            0..8 => (0..rng.within(0, 5)).map(|_| *rng.pick(&LETTERS)).collect(),
            8..15 => (rng.below(64) as u64).to_be_bytes().to_vec(),
            15..18 => {
                let mut key = rng.pick(&keys).clone();
                key.push(*rng.pick(&LETTERS));
                key
            }
            18 => vec![*rng.pick(&LETTERS); rng.within(100, 400)],
            _ => vec![*rng.pick(&LETTERS); rng.within(1_000, 9_000)],
        };
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys
}

/// Where the operations of a case are drawn from.
#[derive(Clone, Debug)]
pub struct Plan {
    rng: Rng,
    key_count: usize,
    keyspace_count: usize,
    crashes: bool,
    heavy: bool,
}

impl Plan {
    /// The operation of a seed, whatever was drawn before.
    pub fn op_of(&self, seed: u64) -> Op {
        let rng = Rng::new(seed);
        Plan {
            rng,
            ..self.clone()
        }
        .op()
    }

    fn op(&mut self) -> Op {
        let keyspace = self.rng.below(self.keyspace_count);
        match self.rng.below(1_000) {
            0..330 => Op::Put(keyspace, self.key(), self.len(), self.level()),
            330..400 => Op::Delete(keyspace, self.key(), self.level()),
            400..520 => {
                let count = self.rng.within(0, 12);
                Op::Batch((0..count).map(|_| self.change()).collect(), self.level())
            }
            520..640 => Op::Get(keyspace, self.key()),
            640..660 => {
                let count = self.rng.below(8);
                Op::MultiGet(keyspace, (0..count).map(|_| self.key()).collect())
            }
            660..710 => Op::Range(keyspace, self.walk()),
            710..740 => {
                let len = self.rng.below(5);
                Op::Prefix(keyspace, self.key(), len, self.ends())
            }
            740..780 => {
                let of = self.rng.percent(50).then(|| self.rng.below(4));
                let count = self.rng.within(1, 8);
                Op::Cursor(
                    keyspace,
                    of,
                    (0..count).map(|_| self.cursor_move()).collect(),
                )
            }
            780..800 => Op::Snapshot,
            800..830 => Op::SnapshotGet(self.rng.below(4), keyspace, self.key()),
            830..850 => Op::SnapshotRange(self.rng.below(4), keyspace, self.walk()),
            850..862 => Op::Release(self.rng.below(4)),
            862..877 => Op::Flush,
            877..884 => Op::Compact,
            884..915 => Op::Background(self.rng.within(1, 3)),
            915..925 => Op::Sync,
            925..955 => Op::Advance(*self.rng.pick(&[1, 50, 200, 2_000])),
            955..965 => Op::Reopen,
            965..968 => Op::Reader,
            968..970 => Op::Checkpoint,
            970..984 => self.crash(Op::Crash),
            _ => {
                let after = self.rng.within(0, 60) as u64;
                self.crash(|crash| Op::CrashAfter(after, crash))
            }
        }
    }

    fn crash(&mut self, op: impl Fn(Crash) -> Op) -> Op {
        if !self.crashes {
            return Op::Background(1);
        }
        let nested_count = match self.rng.below(8) {
            0 => 2,
            1 | 2 => 1,
            _ => 0,
        };
        let nested = (0..nested_count).map(|_| (self.rng.below(60) as u64, self.damage()));
        op(Crash {
            nested: nested.collect(),
            damage: self.damage(),
            seed: self.rng.next_u64(),
        })
    }

    fn damage(&mut self) -> Option<Damage> {
        (!self.rng.percent(30)).then(|| *self.rng.pick(&Damage::ALL))
    }

    fn key(&mut self) -> KeyId {
        self.rng.below(self.key_count)
    }

    fn level(&mut self) -> Durability {
        *self.rng.pick(&[
            Durability::Disk,
            Durability::Disk,
            Durability::Os,
            Durability::Os,
            Durability::Memory,
        ])
    }

    fn len(&mut self) -> usize {
        let large = if self.heavy { 8 } else { 1 };
        match self.rng.below(100) {
            n if n < large => self.rng.within(16 << 10, 64 << 10),
            n if n < 10 => self.rng.within(2_000, 8_000),
            n if n < 40 => self.rng.within(200, 2_000),
            n if n < 45 => 0,
            _ => self.rng.within(1, 200),
        }
    }

    fn change(&mut self) -> (usize, KeyId, Option<usize>) {
        let len = self.rng.percent(80).then(|| self.len().min(16 << 10));
        (self.rng.below(self.keyspace_count), self.key(), len)
    }

    fn bound(&mut self) -> Bound<KeyId> {
        match self.rng.below(4) {
            0 => Bound::Unbounded,
            1 => Bound::Excluded(self.key()),
            _ => Bound::Included(self.key()),
        }
    }

    fn walk(&mut self) -> Walk {
        Walk {
            lower: self.bound(),
            upper: self.bound(),
            ends: self.ends(),
        }
    }

    fn ends(&mut self) -> Ends {
        match self.rng.below(4) {
            0 => Ends::Both(self.rng.next_u64() as u16),
            1 => Ends::Backward,
            _ => Ends::Forward,
        }
    }

    fn cursor_move(&mut self) -> Move {
        match self.rng.below(8) {
            0 => Move::First,
            1 => Move::Last,
            2 | 3 => Move::Next,
            4 | 5 => Move::Prev,
            6 => Move::Seek(self.key()),
            _ => Move::SeekBack(self.key()),
        }
    }
}
