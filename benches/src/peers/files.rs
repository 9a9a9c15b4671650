//! Rows of what is on the disk and in memory: opens, sizes, bytes written.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use strandline_benches::{Values, keys};

use super::blocks::{load_blocks, read_any, verify_blocks};
use super::child;
use super::engine::{Entrant, Level, Result, Setup};
use super::rows::Size;
use super::work::{Ended, Key, Part, SEED, VALUE_LEN, load, verify, verify_get};

/// Milliseconds until an open and the first get have succeeded, the files in the page cache.
pub fn opens(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let keys = keys(SEED, size.count);
    let dirs = [dir.join("closed"), dir.join("killed")];
    for dir in &dirs {
        std::fs::create_dir(dir)?;
    }
    let setup = Setup::new(Level::Os);
    let engine = (entrant.open)(&dirs[0], &setup)?;
    load(engine.as_ref(), Part::new(&keys), 100)?;
    engine.close()?;
    drop(engine);
    child::load_and_die(entrant, &dirs[1], size)?;
    rustix::fs::sync();

    let values = Values::new(VALUE_LEN);
    let value = values.value(0, VALUE_LEN);
    let mut figures = Vec::new();
    for dir in &dirs {
        let start = Instant::now();
        let engine = (entrant.open)(dir, &setup)?;
        verify_get(engine.reader()?.as_ref(), &keys[0], value)?;
        figures.push(start.elapsed().as_secs_f64() * 1e3);
        verify(engine.as_ref(), &[Part::new(&keys)], &[])?;
        engine.close()?;
    }
    Ok(figures)
}

/// How long after a load the size is looked at again.
const PAUSE: Duration = Duration::from_secs(5);

/// A process of its own: what a load, an overwrite of everything and gets take up and write.
pub fn footprint(entrant: &Entrant, dir: &Path, size: &Size) -> Result<Vec<f64>> {
    let count = size.count;
    let user_len = (count * (size_of::<Key>() + VALUE_LEN)) as f64;
    let (has_ended, peak) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sampler = scope.spawn(|| sample_memory(&has_ended, &peak));
        let work = || {
            let _ended = Ended(&has_ended);
            let before = (written_by_process()?, written_to_device(dir)?);
            let engine = (entrant.open)(dir, &Setup::new(Level::Os))?;
            let engine = engine.as_ref();
            let space = || len_on_disk(dir).map(|len| len as f64 / user_len);
            load_blocks(engine, count, 0)?;
            engine.hand_over()?;
            let after_load = space()?;
            std::thread::sleep(PAUSE);
            let later = space()?;
            wait_until_idle()?;
            let by_process = (written_by_process()? - before.0) as f64 / user_len;
            rustix::fs::sync();
            let to_device = match (before.1, written_to_device(dir)?) {
                (Some(before), Some(after)) => (after - before) as f64 / user_len,
                _ => f64::NAN,
            };
            load_blocks(engine, count, 1)?;
            engine.hand_over()?;
            std::thread::sleep(PAUSE);
            let after_overwrite = space()?;
            read_any(engine, count, count)?;
            let peak_mib = peak.load(Ordering::Relaxed) as f64 / 1024.0;
            verify_blocks(engine, count, 1)?;
            engine.close()?;
            Ok(vec![
                after_load,
                later,
                after_overwrite,
                by_process,
                to_device,
                peak_mib,
            ])
        };
        let figures = work();
        sampler.join().expect("a sampler does not panic")?;
        figures
    })
}

/// Keeps the greatest amount of anonymous memory, in KiB.
fn sample_memory(has_ended: &AtomicBool, peak: &AtomicU64) -> Result<()> {
    while !has_ended.load(Ordering::Acquire) {
        let len = number_of("/proc/self/status", "RssAnon:")?;
        peak.fetch_max(len, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Bytes that this process has dirtied or written past the page cache, whether or not they were removed
/// before they were written back.
fn written_by_process() -> Result<u64> {
    number_of("/proc/self/io", "write_bytes:")
}

/// Returns when this process has written nothing for two seconds.
fn wait_until_idle() -> Result<()> {
    let mut written = written_by_process()?;
    for _ in 0..300 {
        std::thread::sleep(Duration::from_secs(2));
        let now = written_by_process()?;
        if now == written {
            return Ok(());
        }
        written = now;
    }
    Err("ten minutes after a load an engine still writes".into())
}

/// Bytes written to the disk that a folder is on, by everybody; none where it is on no disk of its own.
fn written_to_device(dir: &Path) -> Result<Option<u64>> {
    let device = std::fs::metadata(dir)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/dev/block/{major}:{minor}/stat");
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let sectors = text.split_whitespace().nth(6);
    let sectors: u64 = sectors.ok_or_else(|| format!("{path} is short"))?.parse()?;
    Ok(Some(sectors * BLOCK_LEN))
}

/// The number behind a name in a file of lines.
fn number_of(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path)?;
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    let number = number.ok_or_else(|| format!("{path} has no {name}"))?;
    Ok(number.parse()?)
}

/// Bytes that the files of a folder take up, holes left out.
pub fn len_on_disk(dir: &Path) -> Result<u64> {
    let mut len = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = match entry.metadata() {
            Ok(metadata) => metadata,
            // A compaction removes files while this looks.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error.into()),
        };
        len += match metadata.is_dir() {
            true => len_on_disk(&entry.path())?,
            false => metadata.blocks() * BLOCK_LEN,
        };
    }
    Ok(len)
}

/// What `st_blocks` and the statistics of a disk count.
const BLOCK_LEN: u64 = 512;
