//! Shared mappings of segment files.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{MmapMut, MmapOptions};

/// Maps the first `len` bytes of a temporary file `MAP_SHARED` and writable.
pub fn shared(file: &File, len: usize) -> io::Result<MmapMut> {
    // SAFETY: the file lies in this process's own temporary directory, nobody else opens it, and
    // no caller truncates it while the mapping lives.
    unsafe { MmapOptions::new().len(len).map_mut(file) }
}
