//! Appends: the log alone, and a whole put that the operating system holds when it returns.

#[path = "../src/criterion/settings.rs"]
mod settings;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use strandline::{Durability, Options};
use strandline_benches::random::Random;
use strandline_wal::batch::{Kind, Payload, SealedPayload};
use strandline_wal::io::Env;
use strandline_wal::open::{Role, open};
use strandline_wal::pool::Pool;
use strandline_wal::recover::{Known, plan};
use strandline_wal::writer::{Face, Writer, WriterOptions};
use strandline_wal::{DatasetId, Epoch, Hlc, LogId, RegionId, ShardId};
use tempfile::TempDir;

/// Log that is kept before the bench starts over in an empty directory.
const LOG_LEN_MAX: u64 = 256 << 20;

fn payload() -> SealedPayload {
    let mut payload = Payload::new();
    let placed = payload.push(Kind::Put, ShardId(0), &[&[7; 16]], &[9; 100]);
    placed.expect("it fits");
    payload.seal(0)
}

/// A fresh log in a directory of its own, with its first epoch started.
fn writer(face: Face) -> (Writer, TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let env = Env::real();
    let path = dir.path().join("log");
    env.disk.create_dir_all(&path).expect("a directory");
    let known = Known {
        log: LogId {
            dataset: DatasetId::new("").expect("the default name"),
            region: RegionId(0),
            shard: ShardId(0),
        },
        lineage: None,
        durable_seq: 0,
        flushed_seq: 0,
        led: &|_| true,
        fork_seq: None,
    };
    let plan = plan(env.disk.as_ref(), &path, &known).expect("an empty log");
    let options = WriterOptions {
        face,
        capacity_start: 64 << 20,
        capacity_max: 64 << 20,
    };
    let pool = Arc::new(Pool::new(env.clone(), || false));
    let writer = open(&env, &plan, Role::Leader, pool, options, [1; 16]);
    let mut writer = writer.expect("a new log");
    writer.start_epoch(Epoch(1)).expect("a first epoch");
    (writer, dir)
}

fn log(c: &mut Criterion) {
    let payload = payload();
    let mut group = c.benchmark_group("append");
    group.throughput(Throughput::Elements(1));
    for face in [Face::Mapped, Face::Written] {
        let mut fresh = writer(face);
        let mut now = Hlc(1);
        group.bench_function(format!("reserve, fill, publish, {face:?}"), |b| {
            b.iter(|| {
                now = Hlc(now.0 + 1);
                let reserved = fresh.0.reserve(&payload, now, 0).expect("room on the disk");
                reserved.fill(black_box(&payload)).publish();
            });
            if fresh.0.log().file_len() > LOG_LEN_MAX {
                fresh = writer(face);
            }
        });
    }
    group.finish();
}

fn put(c: &mut Criterion) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let database = Options::default().open(dir.path()).expect("a database");
    let map = database.keyspace("map").expect("a keyspace");
    let mut random = Random::new(1);
    let mut group = c.benchmark_group("put");
    group.throughput(Throughput::Elements(1));
    group.bench_function("100 B at Os", |b| {
        b.iter(|| map.put_with(random.key(), [9; 100], Durability::Os));
    });
    group.finish();
}

criterion_group! { name = benches; config = settings::quick(); targets = log, put }
criterion_main!(benches);
