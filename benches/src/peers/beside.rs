//! Rows of reads while somebody writes, and of the slowest writes of a load.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use strandline_benches::keys;
use strandline_benches::random::Random;

use super::draw::Zipf;
use super::engine::{Engine, Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{Ended, Key, Latencies, Part, SEED, at_once, get_fresh, load, put_timed, verify};

pub fn reads_and_writes(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let loaded = keys(SEED, size.count);
    let puts = put_timed(engine, Part::new(&loaded))?.percentiles();
    engine.settle()?;

    let mut random = Random::new(SEED + 1);
    let mut asked = loaded.clone();
    random.shuffle(&mut asked);
    let wanted = Zipf::new(size.count).keys(&asked, size.count, &mut random);
    drop(asked);
    let half = loaded.len() / 2;
    let changed = Part::new(&loaded[..half]).changed();
    let has_ended = AtomicBool::new(false);
    let (found, _) = at_once(2, |n| match n {
        0 => {
            let _ended = Ended(&has_ended);
            Ok((load(engine, changed, 1)?, Latencies::default()))
        }
        _ => read_until(engine, &wanted, &has_ended),
    })?;
    let mut figures = Vec::from(puts);
    let mut gets = Latencies::default();
    for (rate, latencies) in found {
        figures.push(rate);
        gets = latencies;
    }
    figures.extend(gets.percentiles());

    let same = Part {
        first: half,
        ..Part::new(&loaded[half..])
    };
    verify(engine, &[changed, same], &[])?;
    engine.close()?;
    Ok(figures)
}

/// Gets per second, and how long some of them took. Each sees what was written before it began.
fn read_until(
    engine: &dyn Engine,
    wanted: &[Key],
    has_ended: &AtomicBool,
) -> Result<(f64, Latencies)> {
    let mut reader = engine.reader()?;
    let mut get = |key| get_fresh(reader.as_mut(), key);
    let mut latencies = Latencies::default();
    let (mut count, start) = (0u32, Instant::now());
    for (n, key) in wanted.iter().cycle().enumerate() {
        match n.is_multiple_of(TIMED_EVERY) {
            true => latencies.timed(|| get(key))?,
            false => get(key)?,
        }
        count += 1;
        if has_ended.load(Ordering::Acquire) {
            break;
        }
    }
    Ok((f64::from(count) / start.elapsed().as_secs_f64(), latencies))
}

/// To ask for the time takes as long as a tenth of a get.
const TIMED_EVERY: usize = 16;
