//! Targets of the files that everything else is found through: the manifest and the two-slot files.

use std::path::Path;

use strandline::manifest::Manifest;
use strandline_wal::io::Disk;
use strandline_wal::marks::Marks;
use strandline_wal::slots::SlotFile;

use crate::{MEND, mend, samples};

/// A manifest: what decodes is written as bytes that decode to the same.
pub fn manifest(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let path = Path::new("manifest");
    let mut bytes = bytes.to_vec();
    if control & MEND != 0 {
        mend::manifest(&mut bytes);
    }
    let Ok(manifest) = Manifest::decode(&bytes, path) else {
        return;
    };
    let stored = manifest.encode();
    let again = Manifest::decode(&stored, path).expect("what was written is read");
    assert_eq!(again, manifest, "what was read is written alike");
    assert_eq!(again.encode(), stored);
}

/// A two-slot file of each kind: opened, written, and read again, as it is and as marks.
pub fn slots(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let (magic, slot_len) = match control & 6 {
        0 => (*b"SDLD", 4096),
        2 => (*b"SDLE", 512),
        _ => (*b"SDLN", 512),
    };
    let mut bytes = bytes.to_vec();
    if control & 8 != 0 {
        bytes.resize(2 * slot_len, 0);
    }
    if control & MEND != 0 {
        mend::slots(&mut bytes, magic, slot_len);
    }
    let (_, disk) = samples::memory();
    let disk = disk.as_ref() as &dyn Disk;
    let dir = Path::new(samples::ROOT);
    let path = dir.join(strandline_wal::marks::FILE_NAME);
    samples::put(disk, &path, &bytes);
    let read = SlotFile::read(disk, &path, magic, slot_len);
    if magic == *b"SDLD" {
        marks(disk, dir);
        samples::put(disk, &path, &bytes);
    }
    let opened = SlotFile::open(disk, &path, magic, slot_len);
    let Ok((mut file, loaded)) = opened else {
        assert!(read.is_err(), "opening refuses what reading takes");
        return;
    };
    let read = read.expect("what opens is read").expect("it is there");
    assert_eq!(read, loaded, "two readers see the same");
    let payload = loaded.payload.unwrap_or_default();
    assert!(payload.len() <= file.payload_len_max());
    file.write(&payload, true).expect("memory");
    let again = SlotFile::read(disk, &path, magic, slot_len)
        .expect("what was written is read")
        .expect("it is there");
    assert_eq!(again.payload, Some(payload), "the newest payload is shown");
}

/// The same bytes as marks: a new file has none, and what is written is read.
fn marks(disk: &dyn Disk, dir: &Path) {
    let inspected = Marks::inspect(disk, dir);
    let Ok((mut file, found, damaged)) = Marks::open(disk, dir) else {
        assert!(inspected.is_err(), "reading refuses what opening refuses");
        return;
    };
    let (inspected, _) = inspected.expect("what opens is read");
    assert_eq!(inspected, found);
    assert!(!damaged || found.is_empty(), "a new file has no marks");
    file.write(&found, true).expect("memory");
    let again = Marks::read(disk, dir).expect("what was written is read");
    assert_eq!(again, found);
}
