//! Rows of unsynced writes: loads, overwrites, removals.

use std::path::Path;

use strandline_benches::random::Random;
use strandline_benches::{Values, keys};

use super::engine::{Engine, Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{
    Key, LARGE_LEN, Part, SEED, VALUE_LEN, load, rate, read, verify, verify_entries,
};

pub fn single(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    load_single(entrant, dir, &keys(SEED, size.count))
}

pub fn sorted(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let mut keys = keys(SEED, size.count);
    keys.sort_unstable();
    load_single(entrant, dir, &keys)
}

fn load_single(entrant: &Entrant, dir: &Path, keys: &[Key]) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let rate = load(engine.as_ref(), Part::new(keys), 1)?;
    verify(engine.as_ref(), &[Part::new(keys)], &[])?;
    engine.close()?;
    Ok(vec![rate])
}

/// Entries in the largest batch that an engine takes.
pub fn bulk_count(entrant: &Entrant) -> usize {
    entrant.batch_len_max / (size_of::<Key>() + VALUE_LEN)
}

pub fn bulk(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let mut order = keys(SEED, size.count);
    let bulk = load(engine, Part::new(&order), bulk_count(entrant))?;

    let mut random = Random::new(SEED + 1);
    random.shuffle(&mut order);
    let changed = Part::new(&order).changed();
    let overwrite = load(engine, changed, 100)?;

    let mut asked = order.clone();
    random.shuffle(&mut asked);
    let get = read(engine, &asked, VALUE_LEN, 1)?;
    drop(asked);

    let (gone, left) = order.split_at(order.len() / 2);
    let mut gone = gone.to_vec();
    random.shuffle(&mut gone);
    let delete = rate(gone.len(), || {
        gone.iter().try_for_each(|key| engine.remove(key))
    })?;
    let left = Part {
        keys: left,
        first: changed.first + gone.len(),
        len: VALUE_LEN,
    };
    verify(engine, &[left], &gone)?;
    engine.close()?;
    Ok(vec![bulk, overwrite, get, delete])
}

/// One of so many values is large.
const LARGE_EVERY: usize = 10;

pub fn mixed(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine: &dyn Engine = engine.as_ref();
    let keys = keys(SEED, size.mixed());
    let values = Values::new(LARGE_LEN);
    let value = |n: usize| match n.is_multiple_of(LARGE_EVERY) {
        true => values.value(n, LARGE_LEN),
        false => values.value(n, VALUE_LEN),
    };
    let entries = || keys.iter().enumerate().map(|(n, key)| (key, value(n)));
    let rate = rate(keys.len(), || {
        entries().try_for_each(|(key, value)| engine.put_batch(&[(key, value)]))
    })?;
    verify_entries(engine, entries().collect(), &[])?;
    engine.close()?;
    Ok(vec![rate])
}
