//! Writes the checksums that crafted bytes should have, as an attacker would: what lies behind them is
//! what has to hold then.

use strandline_wal::batch::HEADER_LEN;
use strandline_wal::segment::{SEGMENT_HEADER_LEN, TRAILER_LEN};

/// Most batches of a segment, and sections of a table, that are mended.
const PART_COUNT_MAX: usize = 64;

/// Writes magic and both checksums of the batch at `at`; returns where it ends.
pub fn batch(bytes: &mut [u8], at: usize) -> Option<usize> {
    let batch = bytes.get_mut(at..).filter(|b| b.len() >= HEADER_LEN)?;
    batch[..4].copy_from_slice(b"SDLB");
    let len = u32_at(batch, 20)? as usize;
    let payload = batch.get(HEADER_LEN..).and_then(|rest| rest.get(..len));
    if let Some(payload) = payload {
        let crc = crc32fast::hash(payload);
        put(batch, 48, &crc.to_le_bytes());
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&batch[..52]);
    hasher.update(&batch[56..64]);
    let crc = hasher.finalize();
    put(batch, 52, &crc.to_le_bytes());
    at.checked_add(HEADER_LEN)?.checked_add(len)
}

/// Writes the checksums of a segment's header, its batches and its footer. With `chain` every batch
/// also continues the one before, by nonce and by chain value.
pub fn segment(bytes: &mut [u8], chain: bool) {
    if bytes.len() < SEGMENT_HEADER_LEN {
        return;
    }
    bytes[..4].copy_from_slice(b"SDLS");
    let crc = crc32fast::hash(&bytes[..508]);
    put(bytes, 508, &crc.to_le_bytes());
    let nonce: [u8; 4] = [bytes[24], bytes[25], bytes[26], bytes[27]];
    let mut prev: [u8; 4] = [bytes[48], bytes[49], bytes[50], bytes[51]];
    let trailer = bytes.len() - TRAILER_LEN;
    let is_sealed = bytes[trailer + 24..].starts_with(b"SDLF");
    let data_len = u64_at(bytes, trailer)
        .and_then(|len| usize::try_from(len).ok())
        .filter(|len| is_sealed && (SEGMENT_HEADER_LEN..=trailer).contains(len));
    let end = data_len.unwrap_or(bytes.len());
    let mut at = SEGMENT_HEADER_LEN;
    for _ in 0..PART_COUNT_MAX {
        let is_batch = bytes[at..end].starts_with(b"SDLB");
        if !is_batch {
            break;
        }
        if chain && bytes.len() - at >= HEADER_LEN {
            put(bytes, at + 40, &nonce);
            put(bytes, at + 44, &prev);
        }
        let Some(next) = batch(&mut bytes[..end], at) else {
            break;
        };
        prev.copy_from_slice(&bytes[at + 52..at + 56]);
        if next >= end {
            break;
        }
        at = next;
    }
    if let Some(data_len) = data_len {
        let digest = *blake3::hash(&bytes[..data_len]).as_bytes();
        let chain = chain.then_some(prev);
        segment_footer(&mut bytes[data_len..], nonce, digest, chain);
    }
}

/// Writes the checksums of a segment's footer, which stands at the end of `bytes`.
pub fn segment_footer(bytes: &mut [u8], nonce: [u8; 4], digest: [u8; 32], chain: Option<[u8; 4]>) {
    let Some(sections_len) = bytes.len().checked_sub(TRAILER_LEN) else {
        return;
    };
    let mut at = 0;
    for _ in 0..PART_COUNT_MAX {
        let Some(len) = u32_at(&bytes[..sections_len], at + 4) else {
            break;
        };
        let body = at + 8;
        let end = body.saturating_add(len as usize);
        if end > sections_len {
            break;
        }
        match (bytes[at], len) {
            (1, 56) => {
                if let Some(chain) = chain {
                    put(bytes, body + 52, &chain);
                }
            }
            (2, 32) => put(bytes, body, &digest),
            _ => {}
        }
        at = end;
    }
    let crc = crc32fast::hash(&bytes[..sections_len]);
    let trailer = &mut bytes[sections_len..];
    put(trailer, 8, &(sections_len as u32).to_le_bytes());
    put(trailer, 12, &crc.to_le_bytes());
    put(trailer, 16, &nonce);
    put(trailer, 20, &2u32.to_le_bytes());
    put(trailer, 24, b"SDLF");
    let crc = crc32fast::hash(&trailer[..28]);
    put(trailer, 28, &crc.to_le_bytes());
}

/// Writes the checksums of a table's header, chunks, sections, directory and footer. Lengths and
/// places stay what they are.
pub fn table(bytes: &mut [u8]) {
    const FOOTER_LEN: usize = 96;
    let Some(footer_at) = bytes.len().checked_sub(FOOTER_LEN).filter(|at| *at >= 64) else {
        return;
    };
    let crc = crc32fast::hash(&bytes[..60]);
    put(bytes, 60, &crc.to_le_bytes());
    let identity: [u8; 24] = bytes[16..40].try_into().expect("24 bytes");
    let directory = usize_at(bytes, footer_at).unwrap_or(usize::MAX);
    if let Some(entries) = bytes.get(directory..footer_at) {
        let count = entries.len() / 32;
        for entry in (0..count.min(PART_COUNT_MAX)).map(|n| directory + n * 32) {
            let place = usize_at(bytes, entry + 8).zip(usize_at(bytes, entry + 16));
            let Some((at, len)) = place else { continue };
            let range = at..at.saturating_add(len);
            if bytes[entry..entry + 4] == 1u32.to_le_bytes() {
                chunks(bytes, range.clone(), &identity);
            }
            if let Some(section) = bytes.get(range) {
                let crc = crc32fast::hash(section);
                put(bytes, entry + 24, &crc.to_le_bytes());
            }
        }
        let crc = crc32fast::hash(&bytes[directory..footer_at]);
        put(bytes, footer_at + 12, &crc.to_le_bytes());
    }
    let digest = *blake3::hash(&bytes[..footer_at]).as_bytes();
    let file_len = bytes.len() as u64;
    let footer = &mut bytes[footer_at..];
    put(footer, 16, &file_len.to_le_bytes());
    put(footer, 24, &identity);
    put(footer, 48, &digest);
    let crc = crc32fast::hash(&footer[..88]);
    put(footer, 88, &crc.to_le_bytes());
    put(footer, 92, b"SLt\x8e");
}

/// Writes what every chunk that the section lists says of its place, and its checksum.
fn chunks(bytes: &mut [u8], section: std::ops::Range<usize>, identity: &[u8; 24]) {
    let Some(starts) = bytes.get(section) else {
        return;
    };
    // Per chunk its place in 7 bytes and its versions in 9, then where the last one ends.
    let starts: Vec<usize> = starts
        .chunks(16)
        .filter_map(|row| usize_at(row, 0))
        .map(|start| start & (usize::MAX >> 8))
        .take(PART_COUNT_MAX)
        .collect();
    for pair in starts.windows(2) {
        let Some(chunk) = bytes.get_mut(pair[0]..pair[1]).filter(|c| c.len() >= 48) else {
            continue;
        };
        put(chunk, 16, &identity[..8]);
        put(chunk, 24, &(pair[0] as u64).to_le_bytes());
        let mut crc = crc32fast::Hasher::new();
        crc.update(&identity[8..]);
        crc.update(&chunk[4..]);
        put(chunk, 0, &crc.finalize().to_le_bytes());
    }
}

/// Writes magic, length and checksums of a manifest.
pub fn manifest(bytes: &mut [u8]) {
    if bytes.len() < 64 {
        return;
    }
    bytes[..8].copy_from_slice(b"SDLM\x01\0\0\0");
    let len = (bytes.len() - 64) as u64;
    put(bytes, 16, &len.to_le_bytes());
    let digest = *blake3::hash(&bytes[64..]).as_bytes();
    put(bytes, 24, &digest);
    bytes[56..60].fill(0);
    let crc = crc32fast::hash(&bytes[..60]);
    put(bytes, 60, &crc.to_le_bytes());
}

/// Writes magic and checksum of both slots of a two-slot file.
pub fn slots(bytes: &mut [u8], magic: [u8; 4], slot_len: usize) {
    for slot in bytes.chunks_exact_mut(slot_len) {
        put(slot, 0, &magic);
        let crc = crc32fast::hash(&slot[..slot_len - 4]);
        put(slot, slot_len - 4, &crc.to_le_bytes());
    }
}

/// Writes length, number and checksum of a frame.
pub fn frame(bytes: &mut [u8], number: u64) {
    let Some(len) = bytes.len().checked_sub(24) else {
        return;
    };
    put(bytes, 4, &(len as u32).to_le_bytes());
    put(bytes, 8, &number.to_le_bytes());
    bytes[17..24].fill(0);
    let crc = crc32fast::hash(&bytes[4..]);
    put(bytes, 0, &crc.to_le_bytes());
}

/// Mends a file of a database by its name.
pub fn file(name: &str, bytes: &mut [u8], chain: bool) {
    if name.ends_with(".seg") {
        segment(bytes, chain);
    } else if name.ends_with(".tbl") {
        table(bytes);
    } else if name.contains("manifest") {
        manifest(bytes);
    } else if name.ends_with("NODE") {
        slots(bytes, *b"SDLN", 512);
    } else if name.ends_with("epoch") {
        slots(bytes, *b"SDLE", 512);
    } else if name.ends_with("durable") {
        slots(bytes, *b"SDLD", 4096);
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*word))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let word = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*word))
}

fn usize_at(bytes: &[u8], at: usize) -> Option<usize> {
    u64_at(bytes, at).and_then(|value| usize::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn a_section_that_does_not_fit_its_footer_is_left_as_it_is() {
        for (kind, len) in [(1, 56), (2, 32)] {
            let mut bytes = vec![0; 38 + TRAILER_LEN];
            bytes[0] = kind;
            bytes[4] = len;
            segment_footer(&mut bytes, [1; 4], [9; 32], Some([7; 4]));
            assert_eq!(bytes[8..38], [0; 30]);
        }
    }

    #[test]
    fn what_is_intact_stays_as_it_is() {
        let mut kinds = std::collections::BTreeSet::new();
        for (name, bytes) in samples::database() {
            for chain in [false, true] {
                let mut mended = bytes.clone();
                file(name, &mut mended, chain);
                assert!(mended == *bytes, "{name}, chain {chain}");
            }
            kinds.insert(
                name.rsplit(['.', '/'])
                    .next()
                    .unwrap_or_default()
                    .to_owned(),
            );
        }
        assert!(kinds.len() >= 7, "{kinds:?}");
    }
}
