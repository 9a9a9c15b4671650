//! YCSB's workloads A to F over what two threads share.
//!
//! What each thread does is drawn before the clock starts. It follows which value every record has in the
//! end, because all writers of a record within a workload write the same value.

use std::path::Path;

use strandline_benches::random::Random;
use strandline_benches::{Values, keys};

use super::draw::Zipf;
use super::engine::{Engine, Entrant, Level, Result, Setup};
use super::load::bulk_count;
use super::rows::Size;
use super::work::{Key, Part, SEED, VALUE_LEN, at_once, get_fresh, load, touch, verify_entries};

const THREADS: usize = 2;
const SCAN_LEN_MAX: usize = 100;

/// What a workload does beside the reads of keys that everybody wants.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Kind {
    Update,
    /// Inserts, and reads of what was inserted last.
    Latest,
    /// Inserts, and scans in place of the reads.
    Scan,
    ReadAndUpdate,
}

struct Workload {
    kind: Kind,
    /// Parts in a hundred that write.
    writes: usize,
    /// The row that it fills.
    row: usize,
}

const fn workload(row: usize, kind: Kind, writes: usize) -> Workload {
    Workload { kind, writes, row }
}

/// In the order that YCSB recommends: those that insert are last.
const WORKLOADS: [Workload; 6] = [
    workload(0, Kind::Update, 50),
    workload(1, Kind::Update, 5),
    workload(2, Kind::Update, 0),
    workload(5, Kind::ReadAndUpdate, 50),
    workload(3, Kind::Latest, 5),
    workload(4, Kind::Scan, 5),
];

/// One operation; records have numbers.
enum Operation {
    Read(usize),
    /// Where it starts, and how many entries it shows: fewer only where there are no more behind.
    Scan {
        start: usize,
        least: usize,
        most: usize,
    },
    Put(usize),
    ReadAndPut(usize),
}

/// All records, those to be inserted too, and what is known of them.
struct Records {
    keys: Vec<Key>,
    /// What was added to the number of a record to get that of its value; none: it is not there yet.
    changes: Vec<Option<usize>>,
    /// How many were loaded.
    loaded: usize,
    /// The number behind the last one that was inserted.
    end: usize,
    wanted: Vec<u32>,
    zipf: Zipf,
    /// The keys that were loaded, in order.
    sorted: Vec<Key>,
}

impl Records {
    /// What one thread does, and the records that it changes or inserts.
    fn plan(
        &mut self,
        workload: &Workload,
        count: usize,
        change: usize,
        random: &mut Random,
    ) -> Vec<Operation> {
        let first = self.end;
        let operations = (0..count).map(|_| {
            let rank = self.zipf.draw(random);
            let wanted = self.wanted[rank] as usize;
            let writes = random.below(100) < workload.writes;
            match (workload.kind, writes) {
                (Kind::Update | Kind::ReadAndUpdate, false) => Operation::Read(wanted),
                (Kind::Scan, false) => {
                    let most = 1 + random.below(SCAN_LEN_MAX);
                    let before = self.sorted.partition_point(|key| *key < self.keys[wanted]);
                    Operation::Scan {
                        start: wanted,
                        least: most.min(self.loaded - before),
                        most,
                    }
                }
                // Its own inserts, the last one first, and then the last that were loaded.
                (Kind::Latest, false) => {
                    Operation::Read(match rank.checked_sub(self.end - first) {
                        None => self.end - 1 - rank,
                        Some(rank) => self.loaded - 1 - rank,
                    })
                }
                (Kind::Latest | Kind::Scan, true) => {
                    self.changes[self.end] = Some(change);
                    self.end += 1;
                    Operation::Put(self.end - 1)
                }
                (Kind::Update, true) => {
                    self.changes[wanted] = Some(change);
                    Operation::Put(wanted)
                }
                (Kind::ReadAndUpdate, true) => {
                    self.changes[wanted] = Some(change);
                    Operation::ReadAndPut(wanted)
                }
            }
        });
        operations.collect()
    }
}

pub fn workloads(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let mut random = Random::new(SEED + 1);
    let loaded = size.count;
    // Every operation of the two workloads that insert might insert.
    let spare = THREADS * (size.operations() + size.scan_operations());
    let mut wanted: Vec<u32> = (0..u32::try_from(loaded)?).collect();
    random.shuffle(&mut wanted);
    let mut records = Records {
        keys: keys(SEED, loaded + spare),
        changes: vec![None; loaded + spare],
        loaded,
        end: loaded,
        wanted,
        zipf: Zipf::new(loaded),
        sorted: keys(SEED, loaded),
    };
    records.sorted.sort_unstable();
    records.changes[..loaded].fill(Some(0));
    load(
        engine,
        Part::new(&records.keys[..loaded]),
        bulk_count(entrant),
    )?;
    engine.settle()?;

    let values = Values::new(VALUE_LEN);
    let mut figures = vec![0.0; WORKLOADS.len()];
    for (change, workload) in (1..).zip(&WORKLOADS) {
        let count = match workload.kind {
            Kind::Scan => size.scan_operations(),
            _ => size.operations(),
        };
        let plans: Vec<_> = (0..THREADS)
            .map(|_| records.plan(workload, count, change, &mut random))
            .collect();
        let value = |n| values.value(n + change, VALUE_LEN);
        let (_, seconds) = at_once(THREADS, |n| run(engine, &plans[n], &records.keys, value))?;
        figures[workload.row] = (THREADS * count) as f64 / seconds;
    }

    let expected = records.keys.iter().zip(&records.changes).enumerate();
    let expected = expected.filter_map(|(n, (key, change))| {
        let change = (*change)?;
        Some((key, values.value(n + change, VALUE_LEN)))
    });
    verify_entries(engine, expected.collect(), &[])?;
    engine.close()?;
    Ok(figures)
}

/// Every read sees what was written before it began.
fn run<'a>(
    engine: &dyn Engine,
    operations: &[Operation],
    keys: &[Key],
    value: impl Fn(usize) -> &'a [u8],
) -> Result<()> {
    let mut reader = engine.reader()?;
    let put = |record: usize| engine.put_batch(&[(&keys[record], value(record))]);
    for operation in operations {
        match *operation {
            Operation::Read(record) => get_fresh(reader.as_mut(), &keys[record])?,
            Operation::Put(record) => put(record)?,
            Operation::ReadAndPut(record) => {
                get_fresh(reader.as_mut(), &keys[record])?;
                put(record)?;
            }
            Operation::Scan { start, least, most } => {
                reader.refresh()?;
                let found = reader.scan(&keys[start], most, &mut touch)?;
                assert!(
                    (least..=most).contains(&found),
                    "every scan goes on to its end"
                );
            }
        }
    }
    Ok(())
}
