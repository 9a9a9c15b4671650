//! Rows of synced writes.

use std::path::Path;

use strandline_benches::keys;

use super::engine::{Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{Latencies, Part, SEED, at_once, put_timed, verify};

/// Threads, and by how much each one writes less than one alone would.
const THREADS: [(usize, usize); 3] = [(1, 1), (8, 1), (64, 4)];

pub fn puts(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let engine = (entrant.open)(dir, &Setup::new(Level::Disk))?;
    let mut figures = Vec::new();
    let mut written = Vec::new();
    for (n, (threads, less)) in (0..).zip(THREADS) {
        let count = (size.durable() / less).max(10);
        let keys = keys(SEED + 10 + n, threads * count);
        let shares: Vec<_> = keys.chunks(count).collect();
        let (latencies, seconds) = at_once(threads, |n| {
            put_timed(engine.as_ref(), Part::new(shares[n]))
        })?;
        figures.push(keys.len() as f64 / seconds);
        figures.extend(Latencies::merge(latencies).percentiles());
        written.push((keys, count));
    }
    let shares = written.iter().flat_map(|(keys, count)| keys.chunks(*count));
    let parts: Vec<_> = shares.map(Part::new).collect();
    verify(engine.as_ref(), &parts, &[])?;
    engine.close()?;
    Ok(figures)
}
