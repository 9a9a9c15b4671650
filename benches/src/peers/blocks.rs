//! Loads and reads with keys that nobody keeps: memory is the engine's own.

use strandline_benches::Values;
use strandline_benches::random::Random;

use super::engine::{Engine, Result};
use super::work::{Key, Part, SEED, VALUE_LEN, load, touch, verify_get};

const BLOCK_COUNT: usize = 10_000;

/// Key `n` of a row of random keys, without those before it.
fn key_at(n: usize) -> Key {
    // A key is two numbers of the generator, whose state grows by a constant with each.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    Random::new(SEED.wrapping_add(STEP.wrapping_mul(2 * n as u64))).key()
}

/// Puts all keys, 100 per batch, in their random order. The values differ from those of another `change`.
pub fn load_blocks(engine: &dyn Engine, count: usize, change: usize) -> Result<()> {
    let mut keys = Vec::with_capacity(BLOCK_COUNT);
    for first in (0..count).step_by(BLOCK_COUNT) {
        keys.clear();
        keys.extend((first..count).take(BLOCK_COUNT).map(key_at));
        let part = Part {
            keys: &keys,
            first: first + change,
            len: VALUE_LEN,
        };
        load(engine, part, 100)?;
    }
    Ok(())
}

/// Gets keys at random.
pub fn read_any(engine: &dyn Engine, count: usize, reads: usize) -> Result<()> {
    let reader = engine.reader()?;
    let mut random = Random::new(SEED + 1);
    for _ in 0..reads {
        let is_there = reader.get(&key_at(random.below(count)), &mut touch)?;
        assert!(is_there, "every key is there");
    }
    Ok(())
}

/// Scans from keys at random on. Only a few start near the end and are shorter.
pub fn scan_any(engine: &dyn Engine, count: usize, scans: usize, len: usize) -> Result<()> {
    let reader = engine.reader()?;
    let mut random = Random::new(SEED + 2);
    let mut full = 0;
    for _ in 0..scans {
        let start = key_at(random.below(count));
        let found = reader.scan(&start, len, &mut touch)?;
        assert!((1..=len).contains(&found), "a scan shows its start");
        full += usize::from(found == len);
    }
    assert!(full * 2 > scans, "scans go on to their ends");
    Ok(())
}

/// Reads everything back.
pub fn verify_blocks(engine: &dyn Engine, count: usize, change: usize) -> Result<()> {
    let values = Values::new(VALUE_LEN);
    let reader = engine.reader()?;
    for n in 0..count {
        let value = values.value(n + change, VALUE_LEN);
        verify_get(reader.as_ref(), &key_at(n), value)?;
    }
    let found = reader.scan(&[0; 16], count + 1, &mut touch)?;
    assert_eq!(found, count, "a scan shows all");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_alone_is_the_key_in_its_row() {
        let row = strandline_benches::keys(SEED, 100);
        let alone: Vec<_> = (0..100).map(key_at).collect();
        assert_eq!(row, alone);
    }
}
