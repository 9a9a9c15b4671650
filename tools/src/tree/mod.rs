//! A directory tree as keys and values, and back.
//!
//! | Keyspace | Key | Value |
//! |----------|-----|-------|
//! | the one named | path from the root, `/` between names | content of the file |
//! | the one named | path, a zero byte, number of the part (8 digits) | a part of a file over the value limit |
//! | `NAME.tree` | path | [`Meta`] as JSON: kind, mode, time, parts, link target |
//!
//! Kept: regular files, directories with and without content, symlinks as links, permission bits,
//! modification times. Links are never followed. Devices, pipes and sockets are left out and
//! counted. Owners, hard links and extended attributes are not kept.

mod export;
mod import;

use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::text;

pub use export::{Exported, export};
pub use import::{ImportOptions, Imported, import, measure};

/// Files over [`strandline::options::VALUE_LEN_MAX`] are kept in parts of this many bytes.
pub const PART_LEN: usize = 16 << 20;

/// The keyspace of the metadata of a tree whose files are in `keyspace`.
pub fn meta_keyspace(keyspace: &str) -> String {
    format!("{keyspace}.tree")
}

/// The key of a part of a file. No path has a zero byte in it.
pub fn part_key(path: &[u8], number: usize) -> Vec<u8> {
    let mut key = path.to_vec();
    key.push(0);
    key.extend_from_slice(format!("{number:08}").as_bytes());
    key
}

/// What is kept of a file besides its content.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Meta {
    /// A regular file.
    File {
        /// Permission bits.
        mode: u32,
        /// Modification time.
        #[serde(flatten)]
        mtime: Mtime,
        /// Length in bytes.
        len: u64,
        /// Lengths of the parts, where it is kept in parts.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        parts: Vec<u64>,
    },
    /// A directory.
    Dir {
        /// Permission bits.
        mode: u32,
        /// Modification time.
        #[serde(flatten)]
        mtime: Mtime,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points, where that is UTF-8.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        /// Where it points, as hexadecimal digits, where it is not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target_hex: Option<String>,
    },
}

/// Seconds since 1970 and nanoseconds within the second.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Mtime {
    /// Seconds; negative before 1970.
    pub mtime_s: i64,
    /// Nanoseconds within the second.
    pub mtime_ns: u32,
}

impl Meta {
    /// A link.
    pub fn symlink(target: &[u8]) -> Meta {
        match std::str::from_utf8(target) {
            Ok(text) => Meta::Symlink {
                target: Some(text.to_owned()),
                target_hex: None,
            },
            Err(_) => Meta::Symlink {
                target: None,
                target_hex: Some(text::hex(target)),
            },
        }
    }

    /// The stored bytes.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers always serialize")
    }

    /// Reads stored bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Meta, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }
}

/// The path that a key is, relative and without a way out; why not otherwise.
///
/// # Errors
/// Which rule the key breaks.
pub fn safe_path(key: &[u8]) -> Result<PathBuf, &'static str> {
    use std::os::unix::ffi::OsStrExt;
    if key.is_empty() {
        return Err("it is empty");
    }
    if key.contains(&0) {
        return Err("it has a zero byte");
    }
    if key.starts_with(b"/") {
        return Err("it is an absolute path");
    }
    if key
        .split(|byte| *byte == b'/')
        .any(|name| name.is_empty() || name == b".")
    {
        return Err("it has an empty name or `.` in it");
    }
    let path = Path::new(std::ffi::OsStr::from_bytes(key));
    match path
        .components()
        .all(|part| matches!(part, Component::Normal(_)))
    {
        true => Ok(path.to_owned()),
        false => Err("it leads out of the directory by `..`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_that_stay_inside_are_safe() {
        for good in ["a", "a/b", "a b/ü", "...", "a/..b"] {
            assert_eq!(safe_path(good.as_bytes()).unwrap(), Path::new(good));
        }
        for bad in [
            "", "/", "/a", "a//b", "a/", "..", "../a", "a/../b", "a/..", ".", "./a", "a\0b",
        ] {
            assert!(safe_path(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn metadata_comes_back() {
        let mtime = Mtime {
            mtime_s: -5,
            mtime_ns: 999_999_999,
        };
        for meta in [
            Meta::File {
                mode: 0o644,
                mtime,
                len: 3,
                parts: Vec::new(),
            },
            Meta::File {
                mode: 0o600,
                mtime,
                len: 3,
                parts: vec![1, 2],
            },
            Meta::Dir { mode: 0o755, mtime },
            Meta::symlink(b"../x"),
            Meta::symlink(b"\xff"),
        ] {
            assert_eq!(Meta::decode(&meta.encode()).unwrap(), meta);
        }
    }
}
