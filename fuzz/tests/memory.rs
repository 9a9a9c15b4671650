//! No file, no peer's message and no line of an import makes the process allocate more than is stated
//! here: the peak of every input of every target, counted by the allocator itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    unsafe_code,
    reason = "only an allocator sees every allocation, and its trait is unsafe to implement"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::Path;

use strandline::Options;
use strandline::verify::verify;
use strandline_fuzz::{TARGETS, Target, damage, samples, seeds, whole};
use strandline_wal::io::Env;

/// The system's allocator, with a count of what each thread holds: tests run beside each other.
struct Counting;

thread_local! {
    /// Bytes that this thread allocated and did not free. What another thread frees stays counted
    /// there: the sums are only compared within one call on one thread.
    static HELD: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

fn count(len: i64) {
    // A thread that ends still frees: its counters are gone by then, and nobody reads them.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + len);
        PEAK.try_with(|peak| peak.set(peak.get().max(held.get())))
    });
}

// SAFETY: every call goes to the system's allocator with the arguments that came, and its answer goes
// back as it is; the counters are plain numbers of the thread, made without an allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promise for this call is the promise that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: `at` came from `System` by way of this allocator, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, new_len: usize) -> *mut u8 {
        // Old and new are held at once while the bytes move.
        count(new_len as i64);
        count(-(layout.size() as i64));
        // SAFETY: as in `dealloc`, and the caller's promise on the new length is the one asked for.
        unsafe { System.realloc(at, layout, new_len) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that was held at once during a call, above what was held before.
fn peak_of(call: impl FnOnce()) -> u64 {
    let before = HELD.get();
    PEAK.set(before);
    call();
    (PEAK.get() - before).max(0) as u64
}

const MIB: u64 = 1 << 20;

/// What one input of a target may take, beside a multiple of its own length: copies, the files on the
/// simulated disk, and the database that is open over them.
fn bound(target: &str, len: usize) -> u64 {
    let fixed = match target {
        // A simulated disk holds every file in memory, some of them twice, and a database maps the
        // whole capacity of the segments that it writes.
        "open" | "salvage" | "session" | "ndjson" | "ops" => 16 * MIB,
        "segment" | "plan" | "table" | "chunk" | "index" | "ending" => MIB,
        _ => 256 << 10,
    };
    fixed + 16 * len as u64
}

#[test]
fn the_allocator_counts_what_is_held() {
    let bytes = peak_of(|| drop(vec![1u8; 3 * MIB as usize]));
    assert!((3 * MIB..4 * MIB).contains(&bytes), "{bytes}");
    let twice = peak_of(|| {
        drop(vec![1u8; MIB as usize]);
        drop(vec![1u8; MIB as usize]);
    });
    assert!((MIB..2 * MIB).contains(&twice), "{twice}");
}

/// Inputs of each target, about.
const COUNT: usize = 1_200;
const COUNT_SLOW: usize = 100;

#[test]
fn no_input_takes_more_memory_than_its_target_may() {
    let seeds = seeds();
    for (name, target) in TARGETS {
        let is_slow = ["open", "salvage", "ops", "session"].contains(&name);
        let own: Vec<&Vec<u8>> = seeds
            .iter()
            .filter(|(n, _)| *n == name)
            .map(|(_, b)| b)
            .collect();
        let count = if is_slow { COUNT_SLOW } else { COUNT };
        let mut highest = 0;
        for seed in &own {
            // What is made once and kept is not the input's.
            target(seed);
            let inputs = std::iter::once((*seed).clone());
            for input in inputs.chain(damage::of(seed, count / own.len())) {
                highest = highest.max(judge(name, target, &input));
            }
        }
        println!("{name}: at most {} KiB", highest >> 10);
    }
}

fn judge(name: &str, target: Target, input: &[u8]) -> u64 {
    let peak = peak_of(|| target(input));
    let bound = bound(name, input.len());
    assert!(
        peak <= bound,
        "{name}: {peak} bytes for an input of {}, at most {bound}: {:?}",
        input.len(),
        &input[..input.len().min(32)]
    );
    peak
}

/// The budget of a database, by its settings: the cache, the memtables that may be there at once, the
/// segment that each of its logs writes, and the one that stands ready.
fn budget(options: &Options) -> u64 {
    let memtables = options.memtable_len_max * (options.memtable_count_max as u64 + 1);
    options.cache_len_max + memtables + 2 * options.segment_len_max
}

/// Damaged and crafted databases are opened, checked, read, written and flushed within the budget of
/// small settings and a quarter more. The disk is the machine's, without maps: all memory is counted.
#[test]
fn a_damaged_database_stays_within_its_budget() {
    let options = samples::small_options();
    let budget = budget(&options);
    let mut highest = 0;
    let seeds = seeds();
    let own = seeds.iter().filter(|(name, _)| *name == "open");
    for (n, (_, seed)) in own.enumerate().step_by(3) {
        for input in std::iter::once(seed.clone()).chain(damage::of(seed, n % 2)) {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in whole::edited_by(&input) {
                let path = dir.path().join(name.trim_start_matches('/'));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, bytes).unwrap();
            }
            let root = dir.path().join(samples::ROOT.trim_start_matches('/'));
            let peak = peak_of(|| use_database(&options, &root));
            assert!(peak <= budget + budget / 4, "{peak} of {budget}: {input:?}");
            highest = highest.max(peak);
        }
    }
    println!("at most {} of {} KiB", highest >> 10, budget >> 10);
    assert!(highest > 64 << 10, "nothing was opened");
}

/// What a database that opens is used for; what it refuses, it refuses without much memory.
fn use_database(options: &Options, root: &Path) {
    let env = Env::real_pread();
    let _ = verify(root, &env);
    let opened = options.clone().open_with(root, env);
    let worked = opened.and_then(|db| {
        for keyspace in db.dataset("")?.keyspaces() {
            for entry in keyspace.iter() {
                entry?;
            }
        }
        db.keyspace("map")?.put(b"key", vec![1; 4_000])?;
        db.flush()?;
        db.close()
    });
    // An error is as good as an answer here: only the memory counts.
    drop(worked);
}
