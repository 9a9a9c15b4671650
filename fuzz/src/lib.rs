//! What the fuzz targets do, as plain functions, and the seeds that they start from.
//!
//! Each function takes foreign bytes and must come back: with what they hold or an error, never with a
//! panic, and with what it reads agreeing with itself. Where a checksum would stop every mutation at
//! the door, bit 0 of the first byte asks to mend it first, as an attacker would. `fuzz/run` builds and
//! runs the targets; `cargo test` runs the seeds.

pub mod damage;
pub mod formats;
pub mod logs;
pub mod mend;
pub mod network;
pub mod roots;
pub mod samples;
mod seeds;
pub mod tables;
pub mod whole;

pub use seeds::seeds;

/// Bit of the first byte: checksums are written anew before anything is read.
pub const MEND: u8 = 1;
/// Bit of the first byte: batches continue each other by nonce and chain value, too.
pub const CHAIN: u8 = 2;

/// A target.
pub type Target = fn(&[u8]);

/// Every target by its name. `fuzz/run` takes its list from here.
pub const TARGETS: [(&str, Target); 20] = [
    ("batch", logs::batch),
    ("record", logs::record),
    ("segment", logs::segment),
    ("footer", logs::footer),
    ("plan", logs::plan),
    ("merge", logs::merge),
    ("table", tables::table),
    ("chunk", tables::chunk),
    ("index", tables::index),
    ("ending", tables::ending),
    ("manifest", roots::manifest),
    ("slots", roots::slots),
    ("open", whole::open),
    ("salvage", whole::salvage),
    ("ops", whole::ops),
    ("message", network::message),
    ("session", network::session),
    ("coordinator", network::coordinator),
    ("ndjson", formats::ndjson),
    ("tree", formats::tree),
];

/// Runs a target by its name.
///
/// # Panics
/// Where there is no such target, and with what the target finds.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of the list").1(bytes);
}

/// Splits bytes into parts, each behind its length of four bytes; the last one takes what there is.
fn parts(mut rest: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, behind) = rest.split_first_chunk()?;
        let len = (u32::from_le_bytes(*len) as usize).min(behind.len());
        let (part, behind) = behind.split_at(len);
        rest = behind;
        Some(part)
    })
}

/// The bytes that [`parts`] splits again.
fn join<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u32).to_le_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}
