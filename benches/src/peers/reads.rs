//! Rows of reads of what has been settled.

use std::path::Path;

use strandline_benches::keys;
use strandline_benches::random::Random;

use super::draw::Zipf;
use super::engine::{Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{
    Part, SEED, VALUE_LEN, Way, count, load, read, read_absent, scan, scan_all, verify,
};

pub fn settled(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
    let engine = engine.as_ref();
    let loaded = keys(SEED, size.count);
    let mut figures = vec![load(engine, Part::new(&loaded), 100)?];
    engine.settle()?;

    let mut random = Random::new(SEED + 1);
    let mut asked = loaded.clone();
    random.shuffle(&mut asked);
    let wanted = Zipf::new(size.count).keys(&asked, size.count, &mut random);
    for asked in [&asked, &wanted] {
        for threads in [1, 2] {
            figures.push(read(engine, asked, VALUE_LEN, threads)?);
        }
    }
    drop(wanted);
    let absent = keys(SEED + 2, size.count);
    for threads in [1, 2] {
        figures.push(read_absent(engine, &absent, threads)?);
    }
    drop(absent);

    let mut sorted = loaded.clone();
    sorted.sort_unstable();
    let starts = &asked[..size.scans().min(asked.len())];
    for len in [10, 100] {
        for way in [Way::Forward, Way::Back] {
            figures.push(scan(engine, &sorted, starts, len, way)?);
        }
    }
    figures.push(scan_all(engine, size.count)?);
    figures.push(count(engine, size.count)?);
    verify(engine, &[Part::new(&loaded)], &[])?;
    engine.close()?;
    Ok(figures)
}
