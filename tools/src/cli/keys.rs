//! `put`, `get`, `delete` and `scan`.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use clap::Args;
use strandline::options::VALUE_LEN_MAX;

use super::{InKeyspace, is_standard};
use crate::failure::{During, Exit, Failure, Result};
use crate::open::{self, Place, Writing};
use crate::text;

/// `strandline put`
#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    place: Place,
    /// The key: text, or hex: and digits
    key: OsString,
    /// The value, taken as it is; without it, --file
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    value: Option<OsString>,
    /// Take the value from a file; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// The value is given as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    keyspace: InKeyspace,
    #[command(flatten)]
    writing: Writing,
}

impl Put {
    pub(super) fn run(self) -> Result<Exit> {
        use std::os::unix::ffi::OsStringExt;
        let key = text::parse(&self.key)?;
        let mut value = match (self.value, &self.file) {
            (Some(value), _) => value.into_vec(),
            (None, Some(path)) => read_value(path)?,
            (None, None) => Vec::new(),
        };
        if self.hex {
            value = text::unhex(value.trim_ascii()).ok_or_else(|| {
                Failure::usage("--hex: VALUE must be pairs of hexadecimal digits")
            })?;
        }
        let (database, dataset) = self.writing.open(&self.place)?;
        dataset.keyspace(&self.keyspace.keyspace)?.put(key, value)?;
        database.close()?;
        Ok(Exit::Ok)
    }
}

/// A value out of a file, one byte more at most than a value may have: its limit is named then.
fn read_value(path: &Path) -> Result<Vec<u8>> {
    let mut value = Vec::new();
    let len_max = VALUE_LEN_MAX as u64 * 2 + 2;
    if is_standard(path) {
        let stdin = std::io::stdin().lock();
        stdin.take(len_max).read_to_end(&mut value)
    } else {
        let file = std::fs::File::open(path).during("open", path)?;
        file.take(len_max).read_to_end(&mut value)
    }
    .during("read", path)?;
    Ok(value)
}

/// `strandline get`
#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    place: Place,
    /// The key: text, or hex: and digits
    key: OsString,
    /// Print the value as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    keyspace: InKeyspace,
}

impl Get {
    pub(super) fn run(self) -> Result<Exit> {
        let key = text::parse(&self.key)?;
        let database = open::reader(&self.place.dir)?;
        let dataset = open::dataset(&database, &self.place.dataset)?;
        let (snapshot, keyspace) = open::read_keyspace(&dataset, &self.keyspace.keyspace)?;
        let Some(value) = snapshot.get(&keyspace, &key)? else {
            let key = text::show(&key);
            let keyspace = keyspace.name();
            return Err(Failure::problems(format!(
                "keyspace {keyspace} has no key {key}"
            )));
        };
        let mut out = std::io::stdout().lock();
        match self.hex {
            true => writeln!(out, "{}", text::hex(&value))?,
            false => out.write_all(&value)?,
        }
        out.flush()?;
        Ok(Exit::Ok)
    }
}

/// `strandline delete`
#[derive(Args)]
pub struct Delete {
    #[command(flatten)]
    place: Place,
    /// The key: text, or hex: and digits. Removing what is not there is no error
    key: OsString,
    #[command(flatten)]
    keyspace: InKeyspace,
    #[command(flatten)]
    writing: Writing,
}

impl Delete {
    pub(super) fn run(self) -> Result<Exit> {
        let key = text::parse(&self.key)?;
        open::datasets(&strandline_wal::io::Env::real_pread(), &self.place.dir)?;
        let (database, dataset) = self.writing.open(&self.place)?;
        if let Some(keyspace) = open::keyspace(&dataset, &self.keyspace.keyspace) {
            keyspace.delete(key)?;
        }
        database.close()?;
        Ok(Exit::Ok)
    }
}

/// `strandline scan`
#[derive(Args)]
pub struct Scan {
    #[command(flatten)]
    place: Place,
    /// Only keys that start with this
    #[arg(long, value_name = "KEY", conflicts_with_all = ["from", "to"])]
    prefix: Option<OsString>,
    /// Only keys at or behind this one
    #[arg(long, value_name = "KEY")]
    from: Option<OsString>,
    /// Only keys before this one
    #[arg(long, value_name = "KEY")]
    to: Option<OsString>,
    /// From the last key to the first
    #[arg(long)]
    reverse: bool,
    /// At most this many keys
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// One JSON object per line, as export writes them
    #[arg(long, conflicts_with_all = ["hex", "keys"])]
    json: bool,
    /// Print keys and values as hexadecimal digits
    #[arg(long)]
    hex: bool,
    /// Print keys only
    #[arg(long)]
    keys: bool,
    #[command(flatten)]
    keyspace: InKeyspace,
}

impl Scan {
    pub(super) fn run(self) -> Result<Exit> {
        let bound = |key: &Option<OsString>| key.as_deref().map(text::parse).transpose();
        let (prefix, from, to) = (bound(&self.prefix)?, bound(&self.from)?, bound(&self.to)?);
        let database = open::reader(&self.place.dir)?;
        let dataset = open::dataset(&database, &self.place.dataset)?;
        let (snapshot, keyspace) = open::read_keyspace(&dataset, &self.keyspace.keyspace)?;
        let is_empty = matches!((&from, &to), (Some(from), Some(to)) if from >= to);
        if is_empty {
            return Ok(Exit::Ok);
        }
        let entries = match prefix {
            Some(prefix) => snapshot.prefix(&keyspace, prefix),
            None => {
                let lower = from.map_or(Bound::Unbounded, Bound::Included);
                let upper = to.map_or(Bound::Unbounded, Bound::Excluded);
                snapshot.range::<Vec<u8>, _>(&keyspace, (lower, upper))
            }
        };
        let limit = self.limit.unwrap_or(u64::MAX);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        match self.reverse {
            true => self.print(&mut entries.rev().take(limit)),
            false => self.print(&mut entries.take(limit)),
        }
    }

    fn print(
        &self,
        entries: &mut dyn Iterator<Item = strandline::Result<(Vec<u8>, strandline::Value)>>,
    ) -> Result<Exit> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        for entry in entries {
            let (key, value) = entry?;
            match (self.json, self.keys, self.hex) {
                (true, ..) => crate::ndjson::encode(&mut out, None, &key, &value)?,
                (_, true, true) => writeln!(out, "{}", text::hex(&key))?,
                (_, true, false) => writeln!(out, "{}", text::show(&key))?,
                (_, _, true) => writeln!(out, "{}\t{}", text::hex(&key), text::hex(&value))?,
                _ => writeln!(out, "{}\t{}", text::show(&key), text::show(&value))?,
            }
        }
        out.flush()?;
        Ok(Exit::Ok)
    }
}
