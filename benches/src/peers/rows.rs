//! What is measured: groups of rows that one directory of one engine goes through.

use std::path::Path;

use super::engine::{Entrant, Result};
use super::{beside, durable, files, floor, large, limited, load, reads, shapes, ycsb};

/// How much each row does. Every count is derived from one number.
#[derive(Clone, Copy)]
pub struct Size {
    pub count: usize,
}

impl Size {
    pub fn scans(&self) -> usize {
        (self.count / 100).max(10)
    }

    /// Writes of each thread: a sync each, so they are few.
    pub fn durable(&self) -> usize {
        (self.count / 400).clamp(25, 1_000)
    }

    pub fn large(&self) -> usize {
        (self.count / 20).clamp(100, 20_000)
    }

    pub fn mixed(&self) -> usize {
        (self.count / 5).clamp(1_000, 200_000)
    }

    /// Operations of each thread of a mixed load.
    pub fn operations(&self) -> usize {
        self.count / 4
    }

    /// As [`Size::operations`], where most of them scan.
    pub fn scan_operations(&self) -> usize {
        self.count / 40
    }

    /// Reads that may each wait for the disk.
    pub fn cold_reads(&self) -> usize {
        (self.count / 50).clamp(100, 100_000)
    }
}

/// What a figure counts.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Unit {
    /// Operations per second: the only one where more is better.
    Rate,
    Micros,
    Millis,
    Mib,
    /// How many times as much as there need be.
    Factor,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Rate => "per s",
            Unit::Micros => "µs",
            Unit::Millis => "ms",
            Unit::Mib => "MiB",
            Unit::Factor => "times",
        }
    }
}

/// Which process measures.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Place {
    /// The one that all share.
    Here,
    /// One of its own, where memory and bytes written are the engine's alone.
    Child,
    /// One of its own, with a limit of memory.
    Limited,
}

/// Rows that share a directory, in the order in which they run.
pub struct Group {
    pub place: Place,
    /// Whether they are left out unless they are asked for by name.
    is_extra: bool,
    pub rows: &'static [(&'static str, Unit)],
    run: fn(&Entrant, &Path, &Size) -> Result<Vec<f64>>,
    /// What the machine does alone, for as many of the first rows as there is such a thing.
    floor: Option<FloorRun>,
}

type FloorRun = fn(&Path, &Size) -> Result<Vec<f64>>;

impl Group {
    /// One figure per row.
    pub fn run(&self, entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
        let figures = (self.run)(entrant, dir, size)?;
        assert_eq!(figures.len(), self.rows.len());
        Ok(figures)
    }

    /// As [`Group::run`], of the machine alone; what is no number where there is nothing to compare.
    pub fn floor(&self, dir: &Path, size: &Size) -> Result<Vec<f64>> {
        let mut figures = match self.floor {
            Some(floor) => floor(dir, size)?,
            None => Vec::new(),
        };
        figures.resize(self.rows.len(), f64::NAN);
        Ok(figures)
    }

    /// Whether a row has `part` in its name, or, where that is empty, whether they are no extra ones.
    pub fn has(&self, part: &str) -> bool {
        match part {
            "" => !self.is_extra,
            part => self.rows.iter().any(|row| row.0.contains(part)),
        }
    }
}

pub const GROUPS: &[Group] = &[
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[("load, 1 per batch, Os", Unit::Rate)],
        run: load::single,
        floor: Some(floor::small_entries),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("load, 100 per batch, Os", Unit::Rate),
            ("get, hit, settled", Unit::Rate),
            ("get, hit, settled, 2 threads", Unit::Rate),
            ("get, zipfian, settled", Unit::Rate),
            ("get, zipfian, settled, 2 threads", Unit::Rate),
            ("get, miss, settled", Unit::Rate),
            ("get, miss, settled, 2 threads", Unit::Rate),
            ("scan of 10, settled", Unit::Rate),
            ("scan of 10, reverse, settled", Unit::Rate),
            ("scan of 100, settled", Unit::Rate),
            ("scan of 100, reverse, settled", Unit::Rate),
            ("full scan, settled, entries", Unit::Rate),
            ("len, settled", Unit::Rate),
        ],
        run: reads::settled,
        floor: Some(floor::small_entries),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("durable put, 1 thread", Unit::Rate),
            ("durable put, 1 thread, p50", Unit::Micros),
            ("durable put, 1 thread, p99", Unit::Micros),
            ("durable put, 1 thread, p99.9", Unit::Micros),
            ("durable put, 8 threads", Unit::Rate),
            ("durable put, 8 threads, p50", Unit::Micros),
            ("durable put, 8 threads, p99", Unit::Micros),
            ("durable put, 8 threads, p99.9", Unit::Micros),
            ("durable put, 64 threads", Unit::Rate),
            ("durable put, 64 threads, p50", Unit::Micros),
            ("durable put, 64 threads, p99", Unit::Micros),
            ("durable put, 64 threads, p99.9", Unit::Micros),
        ],
        run: durable::puts,
        floor: Some(floor::synced_appends),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[("load sorted, 1 per batch, Os", Unit::Rate)],
        run: load::sorted,
        floor: Some(floor::small_entries),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("load, largest batches, Os", Unit::Rate),
            ("overwrite all, 100 per batch, Os", Unit::Rate),
            ("get, hit, overwritten", Unit::Rate),
            ("delete half, 1 per batch, Os", Unit::Rate),
        ],
        run: load::bulk,
        floor: Some(floor::small_entries),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("YCSB A, 2 threads", Unit::Rate),
            ("YCSB B, 2 threads", Unit::Rate),
            ("YCSB C, 2 threads", Unit::Rate),
            ("YCSB D, 2 threads", Unit::Rate),
            ("YCSB E, 2 threads", Unit::Rate),
            ("YCSB F, 2 threads", Unit::Rate),
        ],
        run: ycsb::workloads,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("put in a load, Os, p50", Unit::Micros),
            ("put in a load, Os, p99", Unit::Micros),
            ("put in a load, Os, p99.9", Unit::Micros),
            ("put beside gets, Os", Unit::Rate),
            ("get beside puts", Unit::Rate),
            ("get beside puts, p50", Unit::Micros),
            ("get beside puts, p99", Unit::Micros),
            ("get beside puts, p99.9", Unit::Micros),
        ],
        run: beside::reads_and_writes,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("load of 16 KiB, 1 per batch, Os", Unit::Rate),
            ("get of 16 KiB, settled", Unit::Rate),
            ("overwrite of 16 KiB, twice, collected, Os", Unit::Rate),
            ("size over live bytes of 16 KiB, collected", Unit::Factor),
        ],
        run: large::large,
        floor: Some(floor::large_entries),
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[("load of 100 B and 16 KiB, 1 per batch, Os", Unit::Rate)],
        run: load::mixed,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: false,
        rows: &[
            ("open after a close, first get", Unit::Millis),
            ("open after kill -9, first get", Unit::Millis),
        ],
        run: files::opens,
        floor: None,
    },
    Group {
        place: Place::Child,
        is_extra: false,
        rows: &[
            ("size over live bytes, loaded", Unit::Factor),
            ("size over live bytes, loaded, 5 s later", Unit::Factor),
            ("size over live bytes, overwritten, 5 s later", Unit::Factor),
            ("bytes written per byte loaded, process", Unit::Factor),
            ("bytes written per byte loaded, device", Unit::Factor),
            ("peak anonymous memory", Unit::Mib),
        ],
        run: files::footprint,
        floor: None,
    },
    Group {
        place: Place::Limited,
        is_extra: false,
        rows: &[
            ("4 x memory, load, 100 per batch, Os", Unit::Rate),
            ("4 x memory, get, hit, settled", Unit::Rate),
            ("4 x memory, scan of 100, settled", Unit::Rate),
        ],
        run: limited::larger_than_memory,
        floor: Some(floor::small_entries),
    },
    Group {
        place: Place::Here,
        is_extra: true,
        rows: &[
            ("redb's: bulk load, synced", Unit::Rate),
            ("redb's: single writes, synced", Unit::Rate),
            ("redb's: batches of 1,000, synced", Unit::Rate),
            ("redb's: single writes, Os", Unit::Rate),
            ("redb's: random reads", Unit::Rate),
            ("redb's: range reads of 10", Unit::Rate),
            ("redb's: random reads, 4 threads", Unit::Rate),
            ("redb's: removals", Unit::Rate),
            ("redb's: load sorted, synced", Unit::Rate),
        ],
        run: shapes::redb,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: true,
        rows: &[("storage-bench's: feed", Unit::Rate)],
        run: shapes::feed,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: true,
        rows: &[("storage-bench's: queue", Unit::Rate)],
        run: shapes::queue,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: true,
        rows: &[
            ("storage-bench's: monotonic, writes", Unit::Rate),
            ("storage-bench's: monotonic, reads", Unit::Rate),
        ],
        run: shapes::monotonic,
        floor: None,
    },
    Group {
        place: Place::Here,
        is_extra: true,
        rows: &[("storage-bench's: time series", Unit::Rate)],
        run: shapes::series,
        floor: None,
    },
];
