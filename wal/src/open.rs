//! Recovery, second half: carries out a plan and opens the log for writing or for following.

use std::path::Path;
use std::sync::Arc;

use crate::bug::planted;
use crate::error::{IoContext, Result};
use crate::io::{Access, Env, Image, read_exact_at, write_all_at};
use crate::log::{Log, Progress, Sealed, Segment};
use crate::pool::{Blocks, Pool};
use crate::recover::{FoundSegment, Plan, execute};
use crate::segment::{Footer, SEGMENT_HEADER_LEN, TRAILER_LEN};
use crate::unless;
use crate::writer::{Active, Tail, Writer, WriterOptions};

/// Who will write the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// This node: the last segment is sealed, and an epoch must be started before the first batch.
    Leader,
    /// Another node: the last segment goes on where it ends, with shipped bytes only.
    Follower,
}

/// Carries out a plan and opens the log.
///
/// # Errors
/// The disk's. Opening again does no harm.
pub fn open(
    env: &Env,
    plan: &Plan,
    role: Role,
    pool: Arc<Pool>,
    options: WriterOptions,
    lineage: [u8; 16],
) -> Result<Writer> {
    env.disk
        .create_dir_all(&plan.dir)
        .during("create directory", &plan.dir)?;
    execute(&env.disk, plan)?;
    let synced_seq = plan.position().seq;
    let log = Log::new(plan.log.clone(), plan.dir.clone(), env.clone(), synced_seq);
    let mut tail = plan.tail.clone();
    tail.next_seq -= u64::from(plan.cut.is_some() && planted("open.seq_reused"));
    let mut active = None;
    for found in &plan.segments {
        match (&found.footer, role) {
            (Some(_), _) => {
                settle(env, found, plan.flushed_seq)?;
                add_sealed(env, &log, found)?;
            }
            (None, Role::Leader) => {
                seal_found(env, found, &mut tail)?;
                add_sealed(env, &log, found)?;
            }
            (None, Role::Follower) => active = Some(go_on(env, found)?),
        }
    }
    if let Some(active) = &active {
        log.add(Arc::clone(&active.segment));
    }
    if !plan.segments.is_empty() || !plan.actions.is_empty() {
        // What was read may still be unsynced from before a crash of the process alone.
        unless!("open.names", env.disk.sync_dir(&plan.dir)).during("sync directory", &plan.dir)?;
    }
    Ok(Writer::new(
        Arc::new(log),
        pool,
        options,
        lineage,
        tail,
        active,
    ))
}

/// Opens the log for reading only, as the plan found it; writes nothing. A growing segment shows what
/// the plan saw of it.
///
/// # Errors
/// The disk's.
pub fn open_read_only(env: &Env, plan: &Plan) -> Result<Arc<Log>> {
    let log = Log::new(
        plan.log.clone(),
        plan.dir.clone(),
        env.clone(),
        plan.position().seq,
    );
    for found in &plan.segments {
        match &found.footer {
            Some(_) => add_sealed(env, &log, found)?,
            None => {
                let file = env
                    .disk
                    .open(&found.path, Access::Read)
                    .during("open", &found.path)?;
                let image = load(file.as_ref(), found, found.data_len)?;
                log.add(Arc::new(Segment::growing(
                    found.header.clone(),
                    found.path.clone(),
                    file,
                    Arc::new(image),
                    Progress {
                        written: found.data_len,
                        synced: found.data_len,
                        name_synced: true,
                        last_seq: found.last_seq,
                    },
                )));
            }
        }
    }
    Ok(Arc::new(log))
}

fn add_sealed(env: &Env, log: &Log, found: &FoundSegment) -> Result<()> {
    let path = &found.path;
    let file = env.disk.open(path, Access::Read).during("open", path)?;
    let len = file.len().during("stat", path)?;
    let trailer_at = len.saturating_sub(TRAILER_LEN as u64);
    let mut trailer = [0; TRAILER_LEN];
    read_exact_at(file.as_ref(), &mut trailer, trailer_at).during("read", path)?;
    let peeked = Footer::peek(&trailer, found.header.nonce, len);
    let data_len = peeked.map_or(trailer_at, |(data_len, _)| data_len);
    let mut bytes = vec![0; usize::try_from(len - data_len).expect("a footer fits in memory")];
    read_exact_at(file.as_ref(), &mut bytes, data_len).during("read", path)?;
    let footer = Footer::decode(&bytes, found.header.nonce, data_len, path)?;
    let sealed = Sealed { footer, bytes };
    let segment = Segment::found(found.header.clone(), path.clone(), file, sealed);
    segment.map();
    log.add(Arc::new(segment));
    Ok(())
}

/// Makes a sealed segment durable that an earlier process may have left in the page cache alone. Every
/// flush syncs the logs, so only segments that end before the flushed mark are known to be.
fn settle(env: &Env, found: &FoundSegment, flushed_seq: u64) -> Result<()> {
    if found.last_seq < flushed_seq {
        return Ok(());
    }
    let path = &found.path;
    let file = env.disk.open(path, Access::Write).during("open", path)?;
    unless!("open.settle", file.sync()).during("sync", path)
}

/// Seals the segment that an earlier process left growing.
fn seal_found(env: &Env, found: &FoundSegment, tail: &mut Tail) -> Result<()> {
    let path = &found.path;
    let file = env.disk.open(path, Access::Write).during("open", path)?;
    let data = read_data(file.as_ref(), found.data_len, path)?;
    let footer = Footer {
        first_seq: found.header.first_seq,
        last_seq: found.last_seq,
        batch_count: found.summary.batch_count,
        data_len: found.data_len,
        first_timestamp: found.summary.first_timestamp,
        last_timestamp: tail.timestamp,
        last_epoch: tail.epoch,
        chain: tail.chain,
        digest: *blake3::hash(&data).as_bytes(),
        index: found.summary.index.clone(),
    };
    let bytes = footer.encode(found.header.nonce);
    // Cut first: the trailer must be the file's end, and nothing stale may lie behind the data.
    unless!("open.seal_cut", file.set_len(found.data_len)).during("set length of", path)?;
    write_all_at(file.as_ref(), &bytes, found.data_len).during("write", path)?;
    unless!("open.seal", file.sync()).during("sync", path)?;
    tail.prev_digest = footer.digest;
    Ok(())
}

/// Continues a growing segment where it ends.
fn go_on(env: &Env, found: &FoundSegment) -> Result<Active> {
    let path = &found.path;
    let file = env.disk.open(path, Access::Write).during("open", path)?;
    // Nothing stale may lie behind the data: cut, then extend with zeros to the full capacity.
    file.set_len(found.data_len).during("set length of", path)?;
    file.set_len(found.header.capacity)
        .during("set length of", path)?;
    // Bytes that were read may not be durable yet; a later ack covers them, so they must be.
    unless!("open.go_on", file.sync()).during("sync", path)?;
    let image = Arc::new(load(file.as_ref(), found, found.header.capacity)?);
    let progress = Progress {
        written: found.data_len,
        synced: found.data_len,
        name_synced: true,
        last_seq: found.last_seq,
    };
    let header = found.header.clone();
    let segment = Segment::growing(header, path.clone(), file, Arc::clone(&image), progress);
    Ok(Active {
        segment: Arc::new(segment),
        image,
        summary: found.summary.clone(),
        hash_at: 0,
        is_ordered: false,
        opened_ns: env.clock.mono_ns(),
        blocks: Blocks::Zeros,
        short_count: 0,
    })
}

/// An image of `capacity` bytes that holds the good bytes of a found segment.
fn load(file: &dyn crate::io::File, found: &FoundSegment, capacity: u64) -> Result<Image> {
    let data = read_data(file, found.data_len, &found.path)?;
    let capacity = usize::try_from(capacity).expect("a segment fits in memory");
    let image = Arc::new(
        Image::private(capacity.max(SEGMENT_HEADER_LEN))
            .during("allocate an image for", &found.path)?,
    );
    let mut slot = image.reserve(data.len()).expect("data fits the capacity");
    slot.bytes_mut().copy_from_slice(&data);
    let end = slot.end();
    drop(slot);
    image.publish(end);
    Ok(Arc::into_inner(image).expect("the slot is gone"))
}

fn read_data(file: &dyn crate::io::File, len: u64, path: &Path) -> Result<Vec<u8>> {
    let mut data = vec![0; usize::try_from(len).expect("a segment fits in memory")];
    read_exact_at(file, &mut data, 0).during("read", path)?;
    Ok(data)
}

#[cfg(test)]
mod tests;
