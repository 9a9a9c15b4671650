//! Remembers that a directory follows a leader, so that no other verb writes into it by mistake.
//!
//! A file named `FOLLOWS` beside the datasets, one line: the leader's address. `follow` makes it,
//! `promote` removes it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::failure::{During, Failure, Result};

/// The name of the file.
pub(crate) const FILE_NAME: &str = "FOLLOWS";

fn path(root: &Path) -> PathBuf {
    root.join(FILE_NAME)
}

/// Whom the directory follows, if anyone.
pub(crate) fn leader(root: &Path) -> Result<Option<String>> {
    let path = path(root);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).during("read", &path),
    }
}

/// The directory follows `leader` from now on.
pub(crate) fn follow(root: &Path, leader: &str) -> Result<()> {
    fs::create_dir_all(root).during("create directory", root)?;
    let path = path(root);
    fs::write(&path, format!("{leader}\n")).during("write", &path)
}

/// The directory follows no one.
pub(crate) fn lead(root: &Path) -> Result<()> {
    let path = path(root);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).during("remove", &path),
        _ => Ok(()),
    }
}

/// Usage help where the directory follows someone.
pub(crate) fn refuse_follower(root: &Path) -> Result<()> {
    match leader(root)? {
        None => Ok(()),
        Some(leader) => {
            let root = root.display();
            Err(Failure::usage(format!(
                "{root} follows {leader}: write there, or make this directory the leader with: \
                 strandline promote {root}"
            )))
        }
    }
}
