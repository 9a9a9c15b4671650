//! Shipping: an empty follower catches up over loopback TCP, until it shows the last record.

#[path = "../src/criterion/settings.rs"]
mod settings;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use strandline::{Durability, Options};
use strandline_benches::{Values, keys};

const COUNT: usize = 50_000;
const VALUE_LEN: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);

/// From the call to follow until the follower shows the last record.
fn catch_up(leader: &str, last_key: &[u8]) -> strandline::Result<Duration> {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Options::default().open(dir.path())?;
    let start = Instant::now();
    let following = database.follow(leader, "")?;
    let shown = || match database.keyspace("map") {
        Ok(map) => map.get(last_key).map(|value| value.is_some()),
        // The keyspace arrives with the log.
        Err(_) => Ok(false),
    };
    while !shown()? {
        assert!(start.elapsed() < PATIENCE, "{:?}", following.status());
        std::thread::sleep(Duration::from_micros(200));
    }
    let elapsed = start.elapsed();
    following.stop();
    database.close()?;
    Ok(elapsed)
}

fn ship(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Options::default().open(dir.path()).expect("a leader");
    let map = database.keyspace("map").expect("a keyspace");
    let (keys, values) = (keys(1, COUNT), Values::new(VALUE_LEN));
    for (n, key) in keys.iter().enumerate() {
        let put = map.put_with(key, values.value(n, VALUE_LEN), Durability::Os);
        put.expect("a write");
    }
    map.dataset().sync().expect("a sync");
    let server = database.serve("127.0.0.1:0").expect("a server");
    let address = server.address().to_string();
    let mut group = c.benchmark_group("ship");
    group.sample_size(10);
    group.throughput(Throughput::Elements(COUNT as u64));
    group.bench_function("catch up over loopback", |b| {
        b.iter_custom(|rounds| {
            (0..rounds)
                .map(|_| catch_up(&address, &keys[COUNT - 1]).expect("a follower"))
                .sum()
        });
    });
    group.finish();
}

criterion_group! { name = benches; config = settings::quick(); targets = ship }
criterion_main!(benches);
