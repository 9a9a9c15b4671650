//! Runs many cases, and makes a failing one small before it tells of it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::plan::Case;
use crate::run::{Tally, run};
use crate::seed;

/// Most runs that making a case smaller may take.
const SHRINK_RUN_COUNT_MAX: usize = 600;

/// Runs the cases of so many seeds and returns what happened in all of them.
///
/// # Panics
/// With the smallest failing case that was found.
pub fn cases(base: u64, count: u64, case: impl Fn(u64) -> Case) -> Tally {
    let mut tally = Tally::default();
    for n in 0..count {
        let case = case(base.wrapping_add(n));
        match guarded(&case) {
            Ok(one) => tally.merge(&one),
            Err(error) => fail(case, &error),
        }
    }
    tally.add("sequences", count);
    tally
}

fn fail(case: Case, error: &str) -> ! {
    let seed = case.seed;
    eprintln!("seed {seed} fails, looking for a smaller case: {error}");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let small = shrink(case);
    std::panic::set_hook(hook);
    let last = guarded(&small).err().unwrap_or_default();
    let lines: Vec<String> = small.ops.iter().map(|op| format!("  {op:?}")).collect();
    panic!(
        "{}\nfirst: {error}\nsmallest case:\n{}\nkeys {:?}\nmaps {}\n{:?}\nfails with: {last}",
        seed::replay(seed),
        lines.join("\n"),
        small
            .keys
            .iter()
            .map(|k| crate::model::brief(k))
            .collect::<Vec<_>>(),
        small.maps,
        small.options,
    );
}

/// Runs a case; a panic is a failure like any other.
fn guarded(case: &Case) -> Result<Tally, String> {
    catch_unwind(AssertUnwindSafe(|| run(case))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        Err(format!("panic: {}", text.unwrap_or_default()))
    })
}

/// Leaves out operations as long as the case still fails.
fn shrink(mut case: Case) -> Case {
    let mut runs = 0;
    let mut step = case.ops.len() / 2;
    while step > 0 && runs < SHRINK_RUN_COUNT_MAX {
        let mut at = 0;
        let before = case.ops.len();
        while at < case.ops.len() && runs < SHRINK_RUN_COUNT_MAX {
            let mut smaller = case.clone();
            let end = (at + step).min(smaller.ops.len());
            smaller.ops.drain(at..end);
            runs += 1;
            match guarded(&smaller) {
                Err(_) => case = smaller,
                Ok(_) => at += step,
            }
        }
        if case.ops.len() == before || step > 1 {
            step /= 2;
        }
    }
    smaller_ops(case)
}

/// Takes from the operations what they need not have for the case to fail.
fn smaller_ops(mut case: Case) -> Case {
    for n in 0..case.ops.len() {
        let mut way = 0;
        while let Some(op) = case.ops[n].smaller(way) {
            let mut smaller = case.clone();
            smaller.ops[n] = op;
            match guarded(&smaller) {
                Err(_) => case = smaller,
                Ok(_) => way += 1,
            }
        }
    }
    case
}
