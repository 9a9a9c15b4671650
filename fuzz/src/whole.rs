//! Targets of whole databases: damaged directories that are opened, checked and salvaged, and
//! operations with faults of the disk that are held against the model.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use strandline::salvage::salvage as salvage_into;
use strandline::verify::{recovery_plans, verify};
use strandline::{Background, Database, DatasetId, Durability, Error, ErrorKind, Options, Role};
use strandline_tests::model::End;
use strandline_tests::ops::{Crash, Op};
use strandline_tests::plan::{Case, Plan, setting};
use strandline_tests::run::{Failure, Run, disk_of, machine as machine_of, unchanged};
use strandline_wal::io::fault::{Call, Effect, FaultDisk, Rule};
use strandline_wal::io::sim::{Damage, SimDisk, SimEnv};

use crate::{CHAIN, MEND, mend, samples};

/// Control bit: the disk has no maps.
const UNMAPPED: u8 = 4;
/// Control bit: both slots of the manifest say the same, so that no intact one is left.
const BOTH_SLOTS: u8 = 8;
/// Most edits of one input, and most operations.
const STEP_COUNT_MAX: usize = 64;
/// Lengths that are set by an edit.
const LENGTHS: [u64; 6] = [1 << 31, u32::MAX as u64, 1 << 63, u64::MAX, 1 << 20, 0];

/// Everything that is in a database, or where reading stopped.
type Content = BTreeMap<(String, Vec<u8>), Vec<u8>>;

/// Bytes that are read one after the other; behind the end they are none.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<usize> {
        Some(usize::from(self.byte()?) | usize::from(self.byte()?) << 8)
    }

    fn take(&mut self, len: usize) -> &[u8] {
        let (part, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        part
    }
}

/// The sample database after the edits of a script.
fn edited(control: u8, script: &mut Script<'_>) -> BTreeMap<String, Vec<u8>> {
    let good = samples::database();
    let mut files: BTreeMap<String, Vec<u8>> = good.iter().cloned().collect();
    for _ in 0..STEP_COUNT_MAX {
        let Some(done) = edit(good, &mut files, script) else {
            break;
        };
        debug_assert!(done < good.len());
    }
    if control & BOTH_SLOTS != 0 {
        let name = format!("{}/primary/manifest", samples::ROOT);
        if let Some(bytes) = files.get(&name).cloned() {
            files.insert(format!("{name}.copy"), bytes);
        }
    }
    if control & MEND != 0 {
        for (name, bytes) in &mut files {
            mend::file(name, bytes, control & CHAIN != 0);
        }
    }
    files
}

/// One edit; the number of the file that it fell on, `None` behind the end of the script.
fn edit(
    good: &[(String, Vec<u8>)],
    files: &mut BTreeMap<String, Vec<u8>>,
    script: &mut Script<'_>,
) -> Option<usize> {
    let number = usize::from(script.byte()?) % good.len();
    let way = script.byte()?;
    let (name, _) = &good[number];
    let bytes = files.entry(name.clone()).or_default();
    let at = script.word()?;
    // Nine of ten bytes of a segment are zeros: offsets beyond the end come round again.
    let at = at % (bytes.len() + 1);
    match way % 8 {
        0..3 => {
            let len = usize::from(way >> 4).max(1);
            for (to, from) in bytes[at..].iter_mut().zip(script.take(len)) {
                *to = *from;
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let len = bytes.len() + at.min(4096);
            bytes.resize(len, script.byte()?);
        }
        5 => {
            files.remove(name);
        }
        6 => {
            let other = usize::from(script.byte()?) % good.len();
            *bytes = good[other].1.clone();
        }
        _ => {
            let length = LENGTHS[usize::from(way >> 3) % LENGTHS.len()].to_le_bytes();
            let len = if way & 128 == 0 { 4 } else { 8 };
            for (to, from) in bytes[at..].iter_mut().zip(&length[..len]) {
                *to = *from;
            }
        }
    }
    Some(number)
}

/// A machine with these files on its disk.
fn machine(control: u8, files: &BTreeMap<String, Vec<u8>>) -> SimEnv {
    let machine = SimEnv {
        disk: match control & UNMAPPED {
            0 => SimDisk::new(3),
            _ => SimDisk::pread(3),
        },
        ..SimEnv::new(3)
    };
    for (name, bytes) in files {
        samples::put(&machine.disk, Path::new(name), bytes);
    }
    machine.disk.settle();
    machine
}

/// A small database whose files were changed: opened for reading, checked, opened for writing, written
/// to, and opened again.
pub fn open(input: &[u8]) {
    open_with(&samples::small_options(), input);
}

/// The files that [`open`] makes of an input.
pub fn edited_by(input: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (control, rest) = input.split_first().unwrap_or((&0, &[]));
    edited(*control, &mut Script(rest))
}

fn open_with(options: &Options, input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let files = edited(*control, &mut Script(rest));
    let machine = machine(*control, &files);
    let before = machine.disk.files();
    let shown = options
        .clone()
        .open_read_only_with(samples::ROOT, machine.env())
        .and_then(|db| read(&db));
    // What is wrong is in the report, or in the error; both are given a word for it.
    if let Ok(report) = verify(Path::new(samples::ROOT), &machine.env()) {
        assert!(
            report
                .problems
                .iter()
                .all(|problem| !problem.what.is_empty())
        );
    }
    let primary = DatasetId::new("primary").expect("a legal name");
    let plans = recovery_plans(Path::new(samples::ROOT), &primary, &machine.env());
    let unplanned = plans.is_ok_and(|plans| plans.iter().any(Result::is_err));
    unchanged(&before, &machine.disk).expect("a reader writes nothing");
    let db = match options.clone().open_with(samples::ROOT, machine.env()) {
        Ok(db) => db,
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
            return;
        }
    };
    let Ok(content) = read(&db) else { return };
    // A follower shows what it was told is committed, and a crafted file may make it one.
    let leads = db
        .datasets()
        .iter()
        .all(|dataset| dataset.role() == Role::Leader);
    if leads
        && !unplanned
        && let Ok(shown) = &shown
    {
        assert!(*shown == content, "a reader and the writer see the same");
    }
    write_on(db, &machine, options, content);
}

/// Writes to a database that opened, works on its tables, and opens it again twice.
fn write_on(db: Database, machine: &SimEnv, options: &Options, mut content: Content) {
    let written = db.keyspace("map").and_then(|map| {
        map.put(b"new", b"after the damage")?;
        Ok(map.name().to_owned())
    });
    match written {
        Ok(name) => content.insert((name, b"new".to_vec()), b"after the damage".to_vec()),
        Err(error) => {
            assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
            return;
        }
    };
    for worked in [db.flush(), db.run_background(4).map(|_| ())] {
        if let Err(error) = worked {
            assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
        }
    }
    if let Ok(found) = read(&db) {
        assert!(found == content, "what was read and written stays");
    }
    // A database that met damage may refuse; the next open tells what is there.
    let _ = db.close();
    drop(db);
    for _ in 0..2 {
        let again = options.clone().open_with(samples::ROOT, machine.env());
        match again.and_then(|db| read(&db)) {
            Ok(found) => assert!(found == content, "a write is kept, and all before it"),
            Err(error) => assert_ne!(error.kind(), ErrorKind::Bug, "{error}"),
        }
    }
}

/// Everything in a database.
fn read(db: &Database) -> strandline::Result<Content> {
    let mut content = Content::new();
    for dataset in db.datasets() {
        for keyspace in dataset.keyspaces() {
            let name = match dataset.name().as_str() {
                "primary" => keyspace.name().to_owned(),
                other => format!("{other}/{}", keyspace.name()),
            };
            for entry in keyspace.iter() {
                let (key, value) = entry?;
                content.insert((name.clone(), key), value.to_vec());
            }
        }
    }
    Ok(content)
}

/// A damaged database that is salvaged: the source stays as it is, the new one is whole, and the same
/// bytes give the same database.
pub fn salvage(input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let files = edited(*control, &mut Script(rest));
    let machine = machine(*control, &files);
    let from = Path::new(samples::ROOT);
    let inside = |path: &PathBuf| path.starts_with(from);
    let source = |disk: &SimDisk| -> BTreeMap<PathBuf, Vec<u8>> {
        let is_lock = |path: &Path| path.ends_with("READERS") || path.ends_with("LOCK");
        let files = disk.files().into_iter();
        files
            .filter(|(path, _)| inside(path) && !is_lock(path))
            .collect()
    };
    let before = source(&machine.disk);
    let mut outcomes = Vec::new();
    for to in ["/first", "/second"] {
        let report = match salvage_into(from, Path::new(to), &machine.env()) {
            Ok(report) => report,
            Err(error) => {
                assert_ne!(error.kind(), ErrorKind::Bug, "{error}");
                return;
            }
        };
        assert!(source(&machine.disk) == before, "the source is only read");
        let db = match samples::small_options().open_with(to, machine.env()) {
            // A crafted manifest may name another region, and the new database is of that one.
            Err(Error::Mismatch { .. }) => return,
            db => db.expect("it is new"),
        };
        let content = read(&db).expect("what was salvaged is readable");
        let checked = verify(Path::new(to), &machine.env()).expect("it is new");
        assert!(checked.problems.is_empty(), "{:?}", checked.problems);
        let counts: Vec<(u64, usize)> = report
            .datasets
            .iter()
            .map(|dataset| (dataset.key_count, dataset.lost.len()))
            .collect();
        outcomes.push((content, counts));
    }
    assert!(outcomes[0] == outcomes[1], "salvaged twice is the same");
}

/// Operations and one fault of the disk, held against the model.
pub fn ops(input: &[u8]) {
    let Some((control, rest)) = input.split_first() else {
        return;
    };
    let mut script = Script(rest);
    let Some(seed) = script.byte() else { return };
    let (mut case, plan) = setting(u64::from(seed % 16));
    case.maps = control & UNMAPPED == 0;
    case.options.background = Background::Manual;
    // Keys beyond a page make single inputs slow and reach nothing that others do not.
    case.keys.iter_mut().for_each(|key| key.truncate(400));
    case.keys.sort();
    case.keys.dedup();
    let rule = (control & 1 != 0).then(|| rule(&mut script)).flatten();
    for _ in 0..STEP_COUNT_MAX {
        let Some(op) = op(&mut script, &case, &plan, rule.is_some()) else {
            break;
        };
        case.ops.extend(op);
    }
    let outcome = match rule {
        None => strandline_tests::run::run(&case).map(|_| ()),
        Some((rule, is_masked)) => with_fault(&case, rule, is_masked),
    };
    outcome.unwrap_or_else(|wrong| panic!("{wrong}\n{:?}", case.ops));
}

/// A fault, and whether nobody may notice it.
fn rule(script: &mut Script<'_>) -> Option<(Rule, bool)> {
    let (effect, call, after) = (script.byte()?, script.byte()?, script.byte()?);
    let (what, is_masked) = match effect % 8 {
        0 => (Effect::EIO, false),
        1 => (Effect::ENOSPC, false),
        2 => (Effect::EMFILE, false),
        3 => (Effect::EROFS, false),
        4 => (Effect::Error(std::io::ErrorKind::Interrupted), false),
        5 => (Effect::Short(100), true),
        6 => (Effect::Short(1_000), true),
        _ => (Effect::EACCES, false),
    };
    let rule = Rule::new(what);
    let rule = match call {
        0..128 => rule.at_call(u64::from(call) * 256 + u64::from(after)),
        _ => rule
            .on(Call::ALL[usize::from(call) % Call::ALL.len()])
            .after(after.into()),
    };
    Some(match effect & 128 {
        0 => (rule, is_masked),
        _ => (rule.sticky(), is_masked),
    })
}

/// The next operation. `Some(None)`: one that has no place beside a fault.
fn op(script: &mut Script<'_>, case: &Case, plan: &Plan, is_faulty: bool) -> Option<Option<Op>> {
    let code = script.byte()?;
    let what = script.byte()?;
    let keyspace = usize::from(what) % case.keyspace_count;
    let key = usize::from(what >> 2) % case.keys.len();
    let level = [Durability::Disk, Durability::Os, Durability::Memory][usize::from(code >> 4) % 3];
    let op = match code % 16 {
        0..4 => {
            let len = script.byte()?;
            let len = usize::from(len & 63) << (usize::from(len >> 6) * 3);
            Op::Put(keyspace, key, len, level)
        }
        4 => Op::Delete(keyspace, key, level),
        5 => Op::Get(keyspace, key),
        6 => Op::Flush,
        7 => Op::Background(usize::from(what % 3) + 1),
        8 if !is_faulty => Op::Reopen,
        9 if !is_faulty => {
            let crash = Crash {
                damage: Some(Damage::ALL[usize::from(what) % Damage::ALL.len()]),
                seed: script.byte()?.into(),
                nested: Vec::new(),
            };
            match code & 128 {
                0 => Op::Crash(crash),
                _ => Op::CrashAfter(script.byte()?.into(), crash),
            }
        }
        // Whatever else there is: batches, walks, snapshots, checkpoints.
        _ => plan.op_of(u64::from(what) << 8 | u64::from(code)),
    };
    // Keys were left out above.
    let op = within(op, case.keys.len());
    let has_place = !matches!(
        op,
        Op::Reopen | Op::Crash(_) | Op::CrashAfter(..) | Op::Reader | Op::Checkpoint
    );
    Some((has_place || !is_faulty).then_some(op))
}

/// The operation with keys that there are.
fn within(mut op: Op, key_count: usize) -> Op {
    use std::ops::Bound::{Excluded, Included};
    use strandline_tests::ops::Move;
    let fit = |key: &mut usize| *key %= key_count;
    match &mut op {
        Op::Put(_, key, ..) | Op::Delete(_, key, _) | Op::Get(_, key) => fit(key),
        Op::Prefix(_, key, ..) | Op::SnapshotGet(_, _, key) => fit(key),
        Op::Batch(changes, _) => changes.iter_mut().for_each(|(_, key, _)| fit(key)),
        Op::MultiGet(_, keys) => keys.iter_mut().for_each(fit),
        Op::Cursor(_, _, moves) => {
            for step in moves {
                if let Move::Seek(key) | Move::SeekBack(key) = step {
                    fit(key);
                }
            }
        }
        Op::Range(_, walk) | Op::SnapshotRange(_, _, walk) => {
            for bound in [&mut walk.lower, &mut walk.upper] {
                if let Included(key) | Excluded(key) = bound {
                    fit(key);
                }
            }
        }
        _ => {}
    }
    op
}

/// Runs a case whose disk fails by a rule: errors are told, nothing acknowledged is lost, and nothing
/// is acknowledged after a write with an unknown outcome.
fn with_fault(case: &Case, rule: Rule, is_masked: bool) -> Result<(), String> {
    let mut run = Run::new(case, machine_of(case));
    let faults = FaultDisk::new(disk_of(&run.machine));
    run.faults = Some(faults.clone());
    faults.add(rule);
    faults.trace();
    let mut is_unknown = false;
    if let Err(error) = run.start() {
        if is_masked {
            return Err(format!("a short call is no error: {error}"));
        }
        faults.heal();
        run.start()
            .map_err(|e| format!("open after {error}: {e}"))?;
    }
    for op in &case.ops {
        let is_write = matches!(op, Op::Put(..) | Op::Delete(..) | Op::Batch(..));
        // The model has an unknown write, a reader has it or not: the next open tells.
        if is_unknown && !is_write {
            continue;
        }
        let before = run.model.commit_count();
        match run.step(op) {
            Ok(()) if is_unknown && run.model.commit_count() > before => {
                return Err(format!("{op:?} is acknowledged after an unknown write"));
            }
            Ok(()) => {}
            Err(failure) if is_masked => {
                return Err(format!("a short call is no error: {op:?}: {failure}"));
            }
            Err(failure) => is_unknown |= clear(&failure)? == ErrorKind::Unknown,
        }
    }
    faults.heal();
    let is_lost = |line: &String| line.starts_with("sync") && line.ends_with("failed");
    let lost_sync = faults.take_trace().iter().any(is_lost);
    let found = run.read_all().map_err(|e| format!("reading on: {e}"))?;
    run.model
        .clone()
        .recover(&found, End::Kill)
        .map_err(|e| format!("reading on: {e}"))?;
    run.close_quietly();
    run.faults = None;
    let end = if lost_sync { End::Power } else { End::Kill };
    run.open_and_check(end)
        .map_err(|e| format!("the next open: {e}"))?;
    run.step(&Op::Put(0, 0, 500, Durability::Disk))
        .map_err(|e| format!("writing after the next open: {e}"))?;
    run.step(&Op::Reopen)
        .map_err(|e| format!("second open: {e}"))
}

/// An error that somebody can act on.
fn clear(failure: &Failure) -> Result<ErrorKind, String> {
    let Some(error) = failure.engine() else {
        return Err(failure.to_string());
    };
    match error.kind() {
        ErrorKind::Bug | ErrorKind::Restore => Err(format!("an unclear error: {error}")),
        kind => Ok(kind),
    }
}

/// Inputs of [`open`] and [`salvage`] that set one field of one file to what no field can mean, with
/// all checksums right: of every file, every `step`th multiple of four.
pub fn lies(step: usize) -> impl Iterator<Item = Vec<u8>> {
    let files = samples::database().iter().enumerate();
    files.flat_map(move |(number, (_, bytes))| {
        // What is zero in all of a slot or behind all batches is no field.
        let is_field = |at: &usize| bytes[*at..].iter().take(16).any(|b| *b != 0);
        let fields: Vec<usize> = (0..bytes.len()).step_by(4).filter(is_field).collect();
        let fields = fields
            .into_iter()
            .enumerate()
            .filter(move |(n, _)| n % step == 0);
        fields.map(move |(n, at)| {
            // Ways of an edit: 2^31 and 2^32 - 1 in four bytes, 2^63 and 2^64 - 1 in eight.
            let way = [7, 15, 128 + 23, 128 + 31][n / step % 4];
            let [low, high, ..] = at.to_le_bytes();
            let control = MEND | CHAIN | BOTH_SLOTS;
            vec![control, number as u8, way, low, high]
        })
    })
}

/// Seeds of the targets above.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let count = samples::database().len() as u8;
    for target in ["open", "salvage"] {
        for control in 0..8 {
            seeds.push((target, vec![control]));
        }
        // Every way to change every file once, in its first part.
        for file in 0..count {
            for (n, way) in [0, 3, 4, 5, 6, 7, 15, 23, 135, 151].into_iter().enumerate() {
                let control = [MEND, 0, MEND | CHAIN][n % 3];
                let at = 16 + 8 * file;
                seeds.push((target, vec![control, file, way, at, 0, way ^ file, 9]));
            }
        }
    }
    for seed in 0..8u8 {
        let mut plain = vec![seed & 4, seed];
        for n in 0..40u8 {
            plain.extend_from_slice(&[n.wrapping_mul(37) ^ seed, n.wrapping_mul(11), n << 2]);
        }
        let mut faulty = vec![1 | seed & 4, seed];
        faulty.extend_from_slice(&[seed, 128 + seed * 3, seed * 5]);
        faulty.extend_from_slice(&plain[2..]);
        seeds.extend([("ops", plain), ("ops", faulty)]);
    }
    seeds
}
