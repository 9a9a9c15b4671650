//! The shapes of two benchmarks that others run, as our own code: what they do, in their proportions, at
//! the levels that they ask for. Their figures are not ours: machines, settings and versions differ.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use strandline_benches::Values;
use strandline_benches::random::Random;

use super::draw::Zipf;
use super::engine::{Engine, Entrant, Entry, Level, Reader, Result, Setup};
use super::rows::Size;
use super::work::{Ended, SEED, at_once, rate, touch};

type LongKey = [u8; 24];

const LONG_VALUE_LEN: usize = 150;

/// redb's own comparison: keys of 24 B and values of 150 B in random order, n where it has 5 million.
pub fn redb(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let (unsorted_dir, sorted_dir) = (dir.join("unsorted"), dir.join("sorted"));
    for dir in [&unsorted_dir, &sorted_dir] {
        std::fs::create_dir(dir)?;
    }
    let share = |one_in: usize, least: usize| (size.count / one_in).max(least);
    let counts = [
        size.count,
        share(5_000, 40),
        share(50_000, 4) * BATCH_COUNT,
        share(100, 100),
    ];
    let mut random = Random::new(SEED);
    let mut keys = vec![[0; 24]; counts.iter().sum()];
    keys.iter_mut().for_each(|key| random.fill(key));
    let mut rest = &keys[..];
    let parts = counts.map(|count| rest.split_off(..count).expect("they were summed up"));
    let bulk_count = entrant.batch_len_max / (size_of::<LongKey>() + LONG_VALUE_LEN);

    let mut figures = Vec::new();
    let engine = (entrant.open)(&unsorted_dir, &Setup::new(Level::Disk))?;
    for (part, batch_count) in parts.into_iter().zip([bulk_count, 1, BATCH_COUNT]) {
        figures.push(put_all(engine.as_ref(), part, batch_count)?);
    }
    engine.close()?;
    drop(engine);
    let engine = (entrant.open)(&unsorted_dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    figures.push(put_all(engine, parts[3], 1)?);

    random.shuffle(&mut keys);
    let asked = &keys[..share(5, 1).min(keys.len())];
    figures.push(get_all(engine, &[asked])?);
    let starts = &asked[..asked.len() / 2];
    figures.push(rate(starts.len(), || {
        let reader = engine.reader()?;
        starts.iter().try_for_each(|start| {
            let found = reader.scan(start, 10, &mut touch)?;
            assert!(found > 0, "a scan shows the key that it begins with");
            Ok(())
        })
    })?);
    let shares: Vec<_> = keys.chunks(keys.len().div_ceil(4)).collect();
    figures.push(get_all(engine, &shares)?);
    let (gone, left) = keys.split_at(keys.len() / 2);
    figures.push(rate(gone.len(), || {
        gone.iter().try_for_each(|key| engine.remove(key))
    })?);
    is_all(engine, left, gone)?;
    engine.close()?;

    let engine = (entrant.open)(&sorted_dir, &Setup::new(Level::Disk))?;
    let mut sorted = keys[..share(5, 1)].to_vec();
    sorted.sort_unstable();
    figures.push(put_all(engine.as_ref(), &sorted, bulk_count)?);
    is_all(engine.as_ref(), &sorted, &[])?;
    engine.close()?;
    Ok(figures)
}

const BATCH_COUNT: usize = 1_000;

/// Entries per second.
fn put_all(engine: &dyn Engine, keys: &[LongKey], batch_count: usize) -> Result<f64> {
    let values = Values::new(LONG_VALUE_LEN);
    let mut batch: Vec<Entry<'_>> = Vec::with_capacity(batch_count.min(keys.len()));
    rate(keys.len(), || {
        keys.chunks(batch_count).try_for_each(|keys| {
            batch.clear();
            batch.extend(keys.iter().map(|key| (&key[..], value_of(&values, key))));
            engine.put_batch(&batch)
        })
    })
}

fn value_of<'v>(values: &'v Values, key: &LongKey) -> &'v [u8] {
    values.value(usize::from(key[0]), LONG_VALUE_LEN)
}

/// Gets per second, a thread for each share.
fn get_all(engine: &dyn Engine, shares: &[&[LongKey]]) -> Result<f64> {
    let (_, seconds) = at_once(shares.len(), |n| {
        let reader = engine.reader()?;
        shares[n].iter().try_for_each(|key| {
            let is_there = reader.get(key, &mut touch)?;
            assert!(is_there, "every key is there");
            Ok(())
        })
    })?;
    let count: usize = shares.iter().map(|share| share.len()).sum();
    Ok(count as f64 / seconds)
}

/// Reads back what was written, outside of any clock.
fn is_all(engine: &dyn Engine, there: &[LongKey], gone: &[LongKey]) -> Result<()> {
    let (values, reader) = (Values::new(LONG_VALUE_LEN), engine.reader()?);
    for key in there {
        let mut is_right = false;
        let see = &mut |found: &[u8]| is_right = found == value_of(&values, key);
        assert!(
            reader.get(key, see)? && is_right,
            "a get shows what was put"
        );
    }
    for key in gone {
        assert!(!reader.get(key, &mut |_| {})?, "what was removed is gone");
    }
    drop(reader);
    assert_eq!(engine.len()?, there.len(), "the count is right");
    Ok(())
}

/// Users of a feed, for as many posts.
const POSTS_PER_USER: usize = 100;
const SHOWN_COUNT: usize = 10;

/// rust-storage-bench's feed: of ten operations nine show a user's profile and newest ten posts, and one
/// posts. Users are zipfian.
pub fn feed(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let values = Values::new(LONG_VALUE_LEN);
    let value = values.value(0, LONG_VALUE_LEN);
    let users = (size.count / POSTS_PER_USER).max(10);
    let post = |user: usize, number: usize| format!("u{user:0>7}#f#{number:0>20}").into_bytes();
    let profile = |user: usize| format!("u{user:0>7}#p").into_bytes();
    for user in 0..users {
        let posts = (0..POSTS_PER_USER).map(|number| post(user, number));
        let keys: Vec<_> = posts.chain([profile(user)]).collect();
        let entries: Vec<Entry<'_>> = keys.iter().map(|key| (&key[..], value)).collect();
        engine.put_batch(&entries)?;
    }
    let mut posts = vec![POSTS_PER_USER; users];
    let (mut random, zipf) = (Random::new(SEED), Zipf::new(users));
    let count = size.operations();
    let mut reader = engine.reader()?;
    let figure = rate(count, || {
        for _ in 0..count {
            let user = zipf.draw(&mut random);
            if random.below(10) == 0 {
                engine.put_batch(&[(&post(user, posts[user]), value)])?;
                posts[user] += 1;
                continue;
            }
            reader.refresh()?;
            let is_there = reader.get(&profile(user), &mut touch)?;
            let last = post(user, usize::MAX >> 1);
            let shown = reader.scan_back(&last, SHOWN_COUNT, &mut touch)?;
            assert!(is_there && shown == SHOWN_COUNT, "all is there");
        }
        Ok(())
    })?;
    drop(reader);
    assert_eq!(engine.len()?, users + posts.iter().sum::<usize>());
    engine.close()?;
    Ok(vec![figure])
}

/// Elements of a queue that may wait.
const PENDING_MAX: usize = 1_000;

/// rust-storage-bench's queue: one thread appends, another looks for the first element behind the last one
/// that it took, and removes it.
pub fn queue(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let values = Values::new(LONG_VALUE_LEN);
    let count = size.count / 2;
    let key = |number: usize| (number as u128).to_be_bytes();
    let (written, taken, has_ended) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    let is_ended = || has_ended.load(Ordering::Acquire);
    let write = || {
        for number in 1..=count {
            while number > taken.load(Ordering::Acquire) + PENDING_MAX && !is_ended() {
                std::thread::yield_now();
            }
            engine.put_batch(&[(&key(number), values.value(number, LONG_VALUE_LEN))])?;
            written.store(number, Ordering::Release);
        }
        Ok(())
    };
    let take = || {
        let mut reader = engine.reader()?;
        for number in 1..=count {
            while written.load(Ordering::Acquire) < number && !is_ended() {
                std::thread::yield_now();
            }
            reader.refresh()?;
            let wanted = values.value(number, LONG_VALUE_LEN);
            let mut is_right = false;
            let see = &mut |found: &[u8]| is_right = found == wanted;
            let found = reader.scan(&key(number), 1, see)?;
            assert!(found == 1 && is_right, "the oldest one is first");
            engine.remove(&key(number))?;
            taken.store(number, Ordering::Release);
        }
        Ok(())
    };
    let (_, seconds) = at_once(2, |n| {
        // One that fails lets the other one go.
        let mut ended = Some(Ended(&has_ended));
        let done: Result<()> = if n == 0 { write() } else { take() };
        if done.is_ok() {
            std::mem::forget(ended.take());
        }
        done
    })?;
    assert_eq!(engine.len()?, 0, "everything was taken");
    engine.close()?;
    Ok(vec![count as f64 / seconds])
}

/// rust-storage-bench's monotonic: one thread appends rising keys to n that are there, another gets
/// zipfian ones among all.
pub fn monotonic(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let values = Values::new(LONG_VALUE_LEN);
    let key = |number: usize| (number as u128).to_be_bytes();
    let put = |number: usize| {
        let value = values.value(number, LONG_VALUE_LEN);
        engine.put_batch(&[(&key(number), value)])
    };
    (0..size.count).try_for_each(put)?;
    let count = size.count / 2;
    let zipf = Zipf::new(size.count);
    let has_ended = AtomicBool::new(false);
    let get = |reader: &mut dyn Reader, random: &mut Random| -> Result<()> {
        reader.refresh()?;
        let is_there = reader.get(&key(zipf.draw(random)), &mut touch)?;
        assert!(is_there, "every key is there");
        Ok(())
    };
    let (found, _) = at_once(2, |n| match n {
        0 => {
            let _ended = Ended(&has_ended);
            rate(count, || (size.count..size.count + count).try_for_each(put))
        }
        _ => {
            let (mut reader, mut random) = (engine.reader()?, Random::new(SEED));
            let (mut gets, start) = (0u32, std::time::Instant::now());
            while !has_ended.load(Ordering::Acquire) || gets == 0 {
                get(reader.as_mut(), &mut random)?;
                gets += 1;
            }
            Ok(f64::from(gets) / start.elapsed().as_secs_f64())
        }
    })?;
    assert_eq!(engine.len()?, size.count + count);
    engine.close()?;
    Ok(found)
}

/// rust-storage-bench's time series: points of 8 B under one of many series, in no order.
pub fn series(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let mut random = Random::new(SEED);
    let series: Vec<_> = (0..(size.count / 50).max(10))
        .map(|_| random.key())
        .collect();
    let figure = rate(size.count, || {
        for number in 0..size.count {
            let mut key = [0; 32];
            key[..16].copy_from_slice(&series[random.below(series.len())]);
            key[16..].copy_from_slice(&(number as u128).to_be_bytes());
            engine.put_batch(&[(&key, &number.to_le_bytes())])?;
        }
        Ok(())
    })?;
    assert_eq!(engine.len()?, size.count);
    engine.close()?;
    Ok(vec![figure])
}
