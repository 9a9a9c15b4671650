//! Rows of values of 16 KiB.

use std::path::Path;

use strandline_benches::keys;
use strandline_benches::random::Random;

use super::engine::{Entrant, Level, Result, Setup};
use super::files;
use super::rows::Size;
use super::work::{Key, LARGE_LEN, Part, SEED, load, rate, read, verify};

const OVERWRITES: usize = 2;

pub fn large(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let mut order = keys(SEED, size.large());
    let loaded = load(engine, part(&order, 0), 1)?;
    engine.settle()?;
    let mut random = Random::new(SEED + 1);
    let mut asked = order.clone();
    random.shuffle(&mut asked);
    let get = read(engine, &asked, LARGE_LEN, 1)?;

    let orders: Vec<_> = (0..OVERWRITES)
        .map(|_| {
            random.shuffle(&mut order);
            order.clone()
        })
        .collect();
    let overwrite = rate(order.len() * OVERWRITES, || {
        for (first, keys) in (1..).zip(&orders) {
            load(engine, part(keys, first), 1)?;
        }
        engine.collect()
    })?;
    engine.hand_over()?;
    let live = order.len() * (size_of::<Key>() + LARGE_LEN);
    let space = files::len_on_disk(dir)? as f64 / live as f64;
    verify(engine, &[part(&order, OVERWRITES)], &[])?;
    engine.close()?;
    Ok(vec![loaded, get, overwrite, space])
}

fn part(keys: &[Key], first: usize) -> Part<'_> {
    Part {
        keys,
        first,
        len: LARGE_LEN,
    }
}
