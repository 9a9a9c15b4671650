//! A table's file for another history: a restore begins one, and every chunk names its own.

use strandline_wal::bug::planted;
use strandline_wal::io::{Disk, read_exact_at, write_all_at};
use strandline_wal::{IoContext, Result, unless};

use std::path::Path;

use super::chunk;
use super::footer::{FOOTER_LEN, Footer};
use super::header::{self, HEADER_LEN, Identity};
use super::meta::TableMeta;
use super::reader::Table;

/// Writes a table again, synced, in a file that must not exist, as one of `lineage`. Everything else
/// stays where it is. Every byte was checked by the caller, by a digest of the whole file.
pub fn relineage(
    table: &Table,
    disk: &dyn Disk,
    to: &Path,
    lineage: [u8; 16],
) -> Result<TableMeta> {
    let from = table.path();
    let identity = Identity {
        lineage,
        ..*table.identity()
    };
    let file = disk.create(to).during("create", to)?;
    let mut hasher = blake3::Hasher::new();
    let mut at = 0;
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        write_all_at(file.as_ref(), bytes, at).during("write", to)?;
        at += bytes.len() as u64;
        Ok::<u64, strandline_wal::Error>(at)
    };
    let mut end = write(&header::encode(&identity))?;
    assert_eq!(end, HEADER_LEN as u64);
    let read = |from_at: u64, to_at: u64| {
        let mut bytes = vec![0; (to_at - from_at) as usize];
        read_exact_at(table.file.as_ref(), &mut bytes, from_at).during("read", from)?;
        Ok::<Vec<u8>, strandline_wal::Error>(bytes)
    };
    for n in 0..table.chunks.count() {
        let range = table.chunks.range(n).unwrap_or_default();
        let mut bytes = read(range.start, range.end)?;
        let checked = chunk::check(&bytes, range.start, table.identity());
        checked.map_err(|damage| damage.into_error(from))?;
        if !planted("archive.relineage") {
            chunk::set_lineage(&mut bytes, &identity);
        }
        end = write(&bytes)?;
    }
    // Indexes and directory name no history.
    let footer_at = table.meta.len - FOOTER_LEN as u64;
    while end < footer_at {
        let step = footer_at.min(end + STEP_LEN);
        end = write(&read(end, step)?)?;
    }
    let footer = Footer {
        identity,
        digest: hasher.finalize().into(),
        ..table.footer
    };
    write_all_at(file.as_ref(), &footer.encode(), footer_at).during("write", to)?;
    unless!("archive.table_sync", file.sync()).during("sync", to)?;
    Ok(TableMeta {
        identity,
        digest: footer.digest,
        ..table.meta.clone()
    })
}

/// Bytes that are copied at once.
const STEP_LEN: u64 = 1 << 20;
