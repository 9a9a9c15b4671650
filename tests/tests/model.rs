//! Random operations on an engine over a simulated disk, held against the model, with crashes.
//!
//! The sequences come from `proptest-state-machine`: a setting (shards, keyspaces, keys) and operations
//! that are drawn for it, flushes, compactions, reopens, checkpoints, crashes among them. Every sequence
//! has a seed of its own, as all random cases here, so that one number runs it again alone; a file of
//! failed seeds is not needed. A failing sequence is made smaller by leaving out operations and then by
//! taking from those that are left.
//!
//! The harness's own driver beside it draws the same operations in one stream per case, and is what long
//! sweeps run: `STRANDLINE_LONG=1`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Once};

use proptest::prelude::*;
use proptest::strategy::{NewTree, ValueTree};
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};
use strandline_tests::model::brief;
use strandline_tests::ops::Op;
use strandline_tests::plan::{Case, Plan};
use strandline_tests::run::{Run, Tally};
use strandline_tests::{check, plan, seed};

const OP_COUNT: usize = 200;
/// Most runs that making a sequence smaller may take.
const SHRINK_RUN_COUNT_MAX: u32 = 2_000;

/// What the operations of a sequence are drawn for. It stays as it is: which commits a crash leaves is
/// the engine's choice within what the model allows, and `CrashAfter` strikes within some later
/// operation. So the maps, commits and snapshots that should be there are known only beside the engine,
/// and the harness takes every operation at any time.
#[derive(Clone)]
struct Setting {
    // Without operations.
    case: Arc<Case>,
    plan: Arc<Plan>,
}

impl Setting {
    fn of(seed: u64, maps: bool) -> Setting {
        let (case, plan) = plan::setting(seed);
        Setting {
            case: Arc::new(Case { maps, ..case }),
            plan: Arc::new(plan),
        }
    }
}

impl std::fmt::Debug for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<String> = self.case.keys.iter().map(|key| brief(key)).collect();
        let Case { maps, options, .. } = &*self.case;
        write!(f, "keys {keys:?}\nmaps {maps}\n{options:?}")
    }
}

struct Machine;

impl ReferenceStateMachine for Machine {
    type State = Setting;
    type Transition = Op;

    fn init_state() -> BoxedStrategy<Setting> {
        // Another seed is another setting and not a smaller one.
        (any::<u64>(), prop::bool::weighted(0.7))
            .prop_map(|(seed, maps)| Setting::of(seed, maps))
            .no_shrink()
            .boxed()
    }

    fn transitions(setting: &Setting) -> BoxedStrategy<Op> {
        Ops(Arc::clone(&setting.plan)).boxed()
    }

    fn apply(setting: Setting, _: &Op) -> Setting {
        setting
    }
}

/// The operations of a plan.
#[derive(Debug)]
struct Ops(Arc<Plan>);

impl Strategy for Ops {
    type Tree = OpTree;
    type Value = Op;

    fn new_tree(&self, runner: &mut TestRunner) -> NewTree<Ops> {
        Ok(OpTree {
            op: self.0.op_of(runner.rng().next_u64()),
            before: None,
            way: 0,
        })
    }
}

/// An operation that shrinks by what is in it, and does not turn into another one.
struct OpTree {
    op: Op,
    before: Option<Op>,
    /// The next way to make it smaller: those below do not fail any more.
    way: usize,
}

impl ValueTree for OpTree {
    type Value = Op;

    fn current(&self) -> Op {
        self.op.clone()
    }

    fn simplify(&mut self) -> bool {
        let Some(smaller) = self.op.smaller(self.way) else {
            return false;
        };
        self.before = Some(std::mem::replace(&mut self.op, smaller));
        true
    }

    fn complicate(&mut self) -> bool {
        let Some(before) = self.before.take() else {
            return false;
        };
        self.op = before;
        self.way += 1;
        true
    }
}

thread_local! {
    /// What happened in all sequences of this thread's test.
    static TALLY: RefCell<Tally> = RefCell::default();
    /// Whether a sequence has failed and is being made smaller, which fails many times more.
    static IS_SHRINKING: Cell<bool> = const { Cell::new(false) };
}

/// The engine and its model, side by side.
struct Beside;

impl StateMachineTest for Beside {
    type SystemUnderTest = Run<'static>;
    type Reference = Machine;

    fn init_test(setting: &Setting) -> Run<'static> {
        let mut run = Run::owned((*setting.case).clone());
        run.start().unwrap_or_else(|error| panic!("open: {error}"));
        run
    }

    fn apply(mut run: Run<'static>, _: &Setting, op: Op) -> Run<'static> {
        run.op(&op)
            .unwrap_or_else(|error| panic!("{op:?}: {error}"));
        run
    }

    fn teardown(mut run: Run<'static>, _: Setting) {
        run.finish().unwrap_or_else(|error| panic!("{error}"));
        TALLY.with_borrow_mut(|tally| {
            tally.merge(&run.tally);
            tally.add("sequences", 1);
        });
    }
}

/// Runs the sequence of a seed.
fn sequence(seed: u64) {
    let config = Config {
        cases: 1,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: SHRINK_RUN_COUNT_MAX,
        ..Config::default()
    };
    let sequences = Machine::sequential_strategy(OP_COUNT);
    let outcome = TestRunner::new(config.clone()).run(&sequences, |(setting, ops, seen)| {
        let run = || Beside::test_sequential(config.clone(), setting, ops, seen);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
            IS_SHRINKING.set(true);
            resume_unwind(panic);
        }
        Ok(())
    });
    IS_SHRINKING.set(false);
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(error, (setting, ops, _))) => {
            let ops: Vec<String> = ops.iter().map(|op| format!("  {op:?}")).collect();
            panic!(
                "{}\nsmallest sequence:\n{}\n{setting:?}\nfails with: {error}",
                seed::replay(seed),
                ops.join("\n"),
            );
        }
        Err(error) => panic!("{}\n{error}", seed::replay(seed)),
    }
}

/// The first failure is told as any other; those on the way to a smaller sequence are not.
fn tell_first_failure_only() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let tell = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_SHRINKING.get() {
                tell(panic);
            }
        }));
    });
}

fn judge_sequences(name: &str, base: u64) {
    tell_first_failure_only();
    let (base, count) = (seed::base(base), seed::count(2_500, 2_500));
    for n in 0..count {
        sequence(base.wrapping_add(n));
    }
    finish(name, base, count, &TALLY.take());
}

fn finish(name: &str, base: u64, count: u64, tally: &Tally) {
    println!("{name}: base seed {base}, {}", tally.line());
    if count >= 500 {
        covers(tally);
    }
}

/// A run that never reached these proves little.
fn covers(tally: &Tally) {
    for what in [
        "checkpoints",
        "crashes",
        "deaths within operations",
        "deaths within recoveries",
        "compactions",
        "cuts",
        "flushes",
        "kills",
        "readers",
        "reopens",
        "segments recycled",
        "segments removed",
        "snapshot reads",
        "unknown writes",
        "unsynced commits kept",
        "unsynced commits lost",
        "values moved",
    ] {
        assert!(tally.count(what) > 0, "no {what} in all of the run");
    }
}

#[test]
fn the_engine_shows_what_the_model_shows_first_half() {
    judge_sequences("state machine, first half", 0);
}

#[test]
fn the_engine_shows_what_the_model_shows_second_half() {
    if std::env::var_os("STRANDLINE_SEED").is_none() {
        judge_sequences("state machine, second half", 1 << 32);
    }
}

#[test]
fn the_engine_shows_what_the_model_shows_in_sweeps() {
    let (base, count) = (seed::base(2 << 32), seed::count(500, 200_000));
    let tally = check::cases(base, count, |seed| plan::case(seed, OP_COUNT));
    finish("model sweep", base, count, &tally);
}
