//! Point reads of a settled database: keys that are there, and keys that are not.

#[path = "../src/criterion/settings.rs"]
mod settings;
#[path = "../src/criterion/settled.rs"]
mod settled;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use settled::{COUNT, Settled, VALUE_LEN};
use strandline_benches::random::Random;

fn get(c: &mut Criterion) {
    let settled = Settled::load().expect("a loaded database");
    let mut random = Random::new(3);
    let mut group = c.benchmark_group("get");
    group.throughput(Throughput::Elements(1));
    group.bench_function("hit", |b| {
        b.iter(|| {
            let key = settled.keys[random.below(COUNT)];
            let value = settled.map.get(key).expect("a read").expect("a hit");
            assert_eq!(black_box(value).len(), VALUE_LEN);
        });
    });
    group.bench_function("miss", |b| {
        b.iter(|| {
            let found = settled.map.get(random.key()).expect("a read");
            assert!(black_box(found).is_none());
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = settings::quick(); targets = get }
criterion_main!(benches);
