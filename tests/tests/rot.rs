//! One flipped bit in every byte of every file, every length, missing files and misplaced sectors:
//! the right values or an error that names the file, never a wrong read, a panic, or endless work.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use strandline_tests::rot::{Look, Subject, flips, is_lock};
use strandline_tests::run::Tally;
use strandline_tests::seed::{self, Rng};
use strandline_wal::io::sim::SimEnv;
use strandline_wal::io::{Access, Disk};

#[test]
fn a_flipped_bit_in_any_byte_is_told_or_harmless_to_readers() {
    let tally = flips(true, Look::Read, 0, 1).unwrap();
    println!("flips, maps, readers: {}", tally.line());
    assert!(tally.count("refused") > 1_000 && tally.count("errors where it was read") > 1_000);
}

#[test]
fn a_flipped_bit_is_told_or_harmless_to_writers() {
    let step = if seed::is_long() { 1 } else { 5 };
    let tally = flips(true, Look::Write, 0, step).unwrap();
    println!("flips, maps, writers: {}", tally.line());
}

#[test]
fn a_flipped_bit_is_told_or_harmless_without_maps() {
    let step = if seed::is_long() { 1 } else { 7 };
    let tally = flips(false, Look::Write, 0, step).unwrap();
    println!("flips, no maps: {}", tally.line());
}

/// Lengths to cut a file to: all of a small one, of a large one those around sectors and others.
fn lengths(len: usize, rng: &mut Rng) -> Vec<usize> {
    let is_small = len <= 4_096 || seed::is_long();
    let keep = |at: &usize| is_small || at % 512 < 2 || at % 512 == 511 || rng.below(40) == 0;
    (0..len).filter(keep).collect()
}

#[test]
fn a_file_of_any_other_length_is_told_or_harmless() {
    let mut tally = Tally::default();
    let mut rng = Rng::new(seed::base(5));
    for maps in [true, false] {
        let subject = Subject::new(maps);
        for (path, bytes) in subject.files.iter().filter(|(path, _)| !is_lock(path)) {
            let set_len = |machine: &SimEnv, len: usize, junk: &[u8]| {
                let file = machine.disk.open(path, Access::Write).unwrap();
                file.set_len(len as u64).unwrap();
                if !junk.is_empty() {
                    file.write_at(junk, len as u64).unwrap();
                }
                machine.disk.settle();
            };
            for len in lengths(bytes.len(), &mut rng) {
                let machine = subject.copy();
                set_len(&machine, len, &[]);
                subject
                    .judge(&machine, path, len % 3 == 0, &mut tally)
                    .unwrap_or_else(|e| panic!("{} cut to {len}: {e}", path.display()));
                tally.add("cuts", 1);
            }
            for n in 0..24 {
                let machine = subject.copy();
                let len = bytes.len() + if n % 2 == 0 { 0 } else { rng.below(9_000) };
                let junk: Vec<u8> = (0..rng.below(600)).map(|_| rng.next_u64() as u8).collect();
                set_len(&machine, len, &junk);
                subject
                    .judge(&machine, path, n % 3 == 0, &mut tally)
                    .unwrap_or_else(|e| panic!("{} extended: {e}", path.display()));
                tally.add("extensions", 1);
            }
        }
    }
    println!("lengths: {}", tally.line());
}

#[test]
fn a_sector_in_the_wrong_place_is_told_or_harmless() {
    let mut tally = Tally::default();
    let base = seed::base(6);
    let mut rng = Rng::new(base);
    let subject = Subject::new(true);
    let files: Vec<(&PathBuf, &Vec<u8>)> = subject
        .files
        .iter()
        .filter(|(_, bytes)| !bytes.is_empty())
        .collect();
    for _ in 0..seed::count(5_000, 200_000) {
        let (path, bytes) = *rng.pick(&files);
        let (from_path, from_bytes) = *rng.pick(&files);
        // Mostly the places where something stands.
        let within =
            |bytes: &[u8], rng: &mut Rng| rng.below(bytes.len().div_ceil(512).min(24)) * 512;
        let (at, from) = (within(bytes, &mut rng), within(from_bytes, &mut rng));
        let len = 512.min(bytes.len() - at).min(from_bytes.len() - from);
        let sector = &from_bytes[from..from + len];
        if sector == &bytes[at..at + len] {
            continue;
        }
        let machine = subject.copy();
        let file = machine.disk.open(path, Access::Write).unwrap();
        file.write_at(sector, at as u64).unwrap();
        drop(file);
        machine.disk.settle();
        subject
            .judge(&machine, path, rng.below(3) == 0, &mut tally)
            .unwrap_or_else(|e| {
                panic!(
                    "STRANDLINE_SEED={base}: sector {from} of {} at {at} of {}: {e}",
                    from_path.display(),
                    path.display()
                )
            });
        tally.add("misplaced sectors", 1);
    }
    println!("sectors: seed {base}, {}", tally.line());
}

#[test]
fn a_missing_file_is_told_or_harmless() {
    let mut tally = Tally::default();
    let subject = Subject::new(true);
    for path in subject.files.keys() {
        for writable in [false, true] {
            let machine = subject.copy();
            machine.disk.remove(path).unwrap();
            machine.disk.settle();
            // Of a log that lost its end nobody knows how the file was called.
            let is_segment = path.extension().is_some_and(|e| e == "seg");
            let named = path.parent().filter(|_| is_segment).unwrap_or(path);
            subject
                .judge(&machine, named, writable, &mut tally)
                .unwrap_or_else(|e| panic!("{} is missing: {e}", path.display()));
        }
    }
    println!("missing files: {}", tally.line());
}

/// All but unwritten space at the end of a growing segment, which nobody reads: that is padding.
#[test]
fn an_offline_check_names_every_flipped_bit() {
    let step = if seed::is_long() { 1 } else { 3 };
    let tally = flips(true, Look::Verify, 0, step).unwrap();
    println!("flips, verify: {}", tally.line());
    assert!(tally.count("named") > 3_000 && tally.count("noted") > 2_000);
}
