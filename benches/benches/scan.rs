//! Scans of a settled database: a hundred entries from a random start, and from the other end.

#[path = "../src/criterion/settings.rs"]
mod settings;
#[path = "../src/criterion/settled.rs"]
mod settled;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use settled::{COUNT, Settled, VALUE_LEN};
use strandline::Iter;
use strandline_benches::random::Random;

const SCAN_LEN: usize = 100;

fn walk(entries: impl Iterator<Item = <Iter as Iterator>::Item>) {
    for entry in entries.take(SCAN_LEN) {
        let (key, value) = entry.expect("a read");
        assert_eq!(value.len(), VALUE_LEN);
        black_box((key, value));
    }
}

fn scan(c: &mut Criterion) {
    let settled = Settled::load().expect("a loaded database");
    let mut random = Random::new(3);
    let mut group = c.benchmark_group("scan of 100");
    group.throughput(Throughput::Elements(SCAN_LEN as u64));
    group.bench_function("forward", |b| {
        b.iter(|| walk(settled.map.range(settled.keys[random.below(COUNT)]..)));
    });
    group.bench_function("backward", |b| {
        b.iter(|| walk(settled.map.range(..settled.keys[random.below(COUNT)]).rev()));
    });
    group.finish();
}

criterion_group! { name = benches; config = settings::quick(); targets = scan }
criterion_main!(benches);
