//! Good inputs of every target, for mutation to start from.

use crate::{CHAIN, MEND, formats, join, logs, network, samples, tables, whole};

/// All seeds: (target, bytes).
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    let batch = logs::sample_batch();
    seeds.push(("record", [&[3], &batch[64..]].concat()));
    add(&mut seeds, "batch", &[0, MEND], &batch);
    log_seeds(&mut seeds);
    for (target, bytes) in tables::seeds() {
        add(&mut seeds, target, &[0, MEND, MEND | 8, MEND | 16], &bytes);
    }
    for (name, bytes) in samples::database() {
        let name = name.as_str();
        if name.ends_with("manifest") {
            add(&mut seeds, "manifest", &[0, MEND], bytes);
        } else if name.ends_with(".tbl") {
            add(&mut seeds, "table", &[0, MEND], bytes);
        }
        let slots = [("durable", 0), ("epoch", 2), ("NODE", 4)];
        for (_, control) in slots.iter().filter(|(end, _)| name.ends_with(end)) {
            add(&mut seeds, "slots", &[*control, control | MEND | 8], bytes);
        }
    }
    seeds.extend(whole::seeds());
    seeds.extend(network::seeds());
    seeds.extend(formats::seeds());
    seeds
}

fn add(
    seeds: &mut Vec<(&'static str, Vec<u8>)>,
    target: &'static str,
    controls: &[u8],
    bytes: &[u8],
) {
    for control in controls {
        seeds.push((target, [&[*control], bytes].concat()));
    }
}

/// Segments alone, all segments of a log, copies of one that miss different parts, and footers.
fn log_seeds(seeds: &mut Vec<(&'static str, Vec<u8>)>) {
    let is_segment = |file: &&(String, Vec<u8>)| file.0.ends_with(".seg");
    let segments: Vec<&[u8]> = samples::database()
        .iter()
        .filter(is_segment)
        .map(|(_, bytes)| &bytes[..])
        .collect();
    for bytes in &segments {
        add(seeds, "segment", &[0, MEND, MEND | CHAIN], bytes);
        let mut damaged = bytes.to_vec();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let copies = [
            join([*bytes, &damaged]),
            join([&damaged[..], *bytes]),
            join([&bytes[..middle], *bytes]),
            join([*bytes, &[]]),
        ];
        for copies in &copies {
            add(seeds, "merge", &[0, MEND | CHAIN], copies);
        }
    }
    for marks in [[0, 0, 255, 0], [255, 0, 0, 0], [9, 4, 1, 12]] {
        let log = [&marks[..], &join(segments.iter().copied())].concat();
        add(seeds, "plan", &[0, MEND, MEND | CHAIN, 4], &log);
    }
    let footer = strandline_wal::segment::Footer {
        first_seq: 1,
        last_seq: 9,
        batch_count: 4,
        data_len: 900,
        first_timestamp: strandline_wal::Hlc(5),
        last_timestamp: strandline_wal::Hlc(8),
        last_epoch: strandline_wal::Epoch(1),
        chain: 3,
        digest: [9; 32],
        index: vec![(1, 512), (7, 800)],
    };
    add(seeds, "footer", &[0, MEND], &footer.encode(7));
}
