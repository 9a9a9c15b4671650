//! Recovery: opening what a killed process left, by the number of records that only the log holds.

#[path = "../src/criterion/settings.rs"]
mod settings;

use std::fs;
use std::io;
use std::path::Path;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use strandline::{Durability, Options};
use strandline_benches::{Values, keys};
use tempfile::TempDir;

const VALUE_LEN: usize = 100;

/// The files of a database that is still open: what is there when the process is killed.
fn killed(count: usize) -> strandline::Result<TempDir> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Options::default().open(dir.path())?;
    let map = database.keyspace("map")?;
    let values = Values::new(VALUE_LEN);
    for (n, key) in keys(1, count).iter().enumerate() {
        map.put_with(key, values.value(n, VALUE_LEN), Durability::Os)?;
    }
    Ok(copied(dir.path()))
}

fn copied(from: &Path) -> TempDir {
    let to = tempfile::tempdir().expect("a temporary directory");
    copy(from, to.path()).expect("a copy");
    to
}

fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn recover(c: &mut Criterion) {
    let mut group = c.benchmark_group("recover");
    group.sample_size(10);
    for count in [1_000, 50_000] {
        let left = killed(count).expect("a database");
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::from_parameter(count), |b| {
            b.iter_batched(
                || copied(left.path()),
                |dir| {
                    let database = Options::default().open(dir.path()).expect("a recovery");
                    // Closing and removing are the caller's, and not timed.
                    (database, dir)
                },
                BatchSize::PerIteration,
            );
        });
        let again = copied(left.path());
        let database = Options::default().open(again.path()).expect("a recovery");
        let map = database.keyspace("map").expect("a keyspace");
        assert_eq!(map.iter().count(), count, "nothing is lost");
    }
    group.finish();
}

criterion_group! { name = benches; config = settings::quick(); targets = recover }
criterion_main!(benches);
