//! Finds and opens a database the way it was created.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use strandline::files;
use strandline::manifest::Manifest;
use strandline::replica::Links;
use strandline::{Database, Dataset, DatasetId, Durability, Keyspace, Options};
use strandline::{Role, ShardRouter, Snapshot};
use strandline_wal::io::{Env, FileKind};

use crate::failure::{Failure, Result};

/// The keyspace of keys whose keyspace is not named.
pub const KEYSPACE: &str = "default";

/// Which part of a database a command is about.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// The database directory
    pub dir: PathBuf,
    /// The dataset
    #[arg(long, default_value = DatasetId::PRIMARY, value_name = "NAME")]
    pub dataset: String,
}

/// How a command writes.
#[derive(Args, Clone, Debug)]
pub struct Writing {
    /// What an acknowledged write survives: os (the process dies) or disk (the machine dies)
    #[arg(long, default_value = "disk", value_name = "LEVEL", value_parser = level)]
    pub durability: Durability,
    /// Number of shards, fixed when the database is created
    #[arg(long, value_name = "N")]
    pub shards: Option<u16>,
    /// Bytes per second that the database reads to find damage.
    #[arg(skip)]
    pub scrub_rate: u64,
    /// How connections to other nodes are made.
    #[arg(skip)]
    pub links: Links,
}

fn level(text: &str) -> Result<Durability, String> {
    match text {
        "os" => Ok(Durability::Os),
        "disk" => Ok(Durability::Disk),
        _ => Err(
            "os or disk; levels that wait for followers belong to a process that serves them"
                .to_owned(),
        ),
    }
}

/// The datasets that a directory holds, with their directories; usage help where it is no database.
///
/// # Errors
/// I/O, where there is no such directory or no database in it.
pub fn datasets(env: &Env, root: &Path) -> Result<Vec<(DatasetId, PathBuf)>> {
    let entries = env
        .disk
        .list(root)
        .map_err(|error| Failure::io(format!("{}: {error}", root.display())))?;
    let mut found = Vec::new();
    for entry in entries.iter().filter(|entry| entry.kind == FileKind::Dir) {
        let Ok(id) = DatasetId::new(&entry.name) else {
            continue;
        };
        let dir = files::dataset(root, &id);
        let inside = env.disk.list(&dir).unwrap_or_default();
        if inside
            .iter()
            .any(|entry| entry.name == "manifest" || entry.name == "r00000")
        {
            found.push((id, dir));
        }
    }
    if found.is_empty() && env.disk.stat(&files::node(root)).is_err() {
        let shown = root.display();
        return Err(Failure::io(format!(
            "{shown} holds no database; create one by writing: strandline put {shown} KEY VALUE"
        )));
    }
    Ok(found)
}

/// Settings that fit what is stored in a directory; defaults where nothing is.
///
/// # Errors
/// Damage in the manifest, where it is looked at.
pub fn stored_options(env: &Env, root: &Path) -> Result<Options> {
    let mut options = Options::default();
    if env.disk.stat(root).is_err() {
        return Ok(options);
    }
    for (_, dir) in datasets(env, root).unwrap_or_default() {
        if let Some(manifest) = Manifest::load(env.disk.as_ref(), &files::manifest(&dir))? {
            options.router = manifest.router;
            options.entity_rule = manifest.entity_rule;
            options.node.region = manifest.region;
            break;
        }
    }
    Ok(options)
}

impl Writing {
    /// The settings that this asks for.
    ///
    /// # Errors
    /// Usage, for a number of shards that there cannot be.
    pub fn options(&self, root: &Path) -> Result<Options> {
        let mut options = stored_options(&Env::real_pread(), root)?;
        options.durability = self.durability;
        options.scrub_rate = self.scrub_rate;
        options.links = self.links.clone();
        if let Some(shards) = self.shards.filter(|n| *n != options.router.shard_count()) {
            options.router = ShardRouter::hash(shards)?;
        }
        Ok(options)
    }

    /// Opens a dataset for writing, creating it and its database where they are absent.
    ///
    /// # Errors
    /// The engine's; usage where the dataset follows another node's.
    pub fn open(&self, place: &Place) -> Result<(Database, Dataset)> {
        let root = &place.dir;
        refuse_foreign(root)?;
        let database = self.options(root)?.open(root)?;
        let dataset = database.dataset(&place.dataset)?;
        refuse_follower(&dataset)?;
        Ok((database, dataset))
    }
}

/// Usage help where a dataset follows another node's.
///
/// # Errors
/// Usage, in that case.
pub fn refuse_follower(dataset: &Dataset) -> Result<()> {
    if dataset.role() != Role::Follower {
        return Ok(());
    }
    let (root, name) = (dataset.database().path().display(), dataset.name());
    Err(Failure::usage(format!(
        "{root}: dataset {name} follows another node: write there, or make this directory the \
         leader with: strandline promote {root}"
    )))
}

/// A directory that holds something else is no place for a new database.
fn refuse_foreign(root: &Path) -> Result<()> {
    let env = Env::real_pread();
    let Ok(entries) = env.disk.list(root) else {
        return Ok(());
    };
    if entries.is_empty() || datasets(&env, root).is_ok() {
        return Ok(());
    }
    let only_ours = entries
        .iter()
        .all(|entry| ["LOCK", "READERS", "NODE", "RESERVE"].contains(&entry.name.as_str()));
    match only_ours {
        true => Ok(()),
        false => Err(Failure::usage(format!(
            "{} holds other files and no database; name a new or an empty directory",
            root.display()
        ))),
    }
}

/// How often a read-only open is tried beside a process that writes and removes files meanwhile.
const READ_TRY_COUNT_MAX: u32 = 5;

/// Opens the database for reading, also beside a process that writes it.
///
/// # Errors
/// I/O, where there is none; the engine's.
pub fn reader(root: &Path) -> Result<Database> {
    let env = Env::real_pread();
    let mut tries = 0;
    loop {
        datasets(&env, root)?;
        let outcome = stored_options(&env, root)
            .and_then(|options| options.open_read_only(root).map_err(Failure::from));
        tries += 1;
        match outcome {
            Ok(database) => return Ok(database),
            Err(failure) if tries == READ_TRY_COUNT_MAX => return Err(failure),
            // The writer may have replaced a file between two reads.
            Err(_) => std::thread::sleep(Duration::from_millis(50) * tries),
        }
    }
}

/// A dataset that was opened for reading.
///
/// # Errors
/// I/O, where there is none of that name.
pub fn dataset(database: &Database, name: &str) -> Result<Dataset> {
    let known = database.datasets();
    let wanted = DatasetId::new(name).map_err(Failure::usage)?;
    match known.iter().find(|open| open.name() == wanted.as_str()) {
        Some(open) => Ok(open.clone()),
        None => {
            let names: Vec<String> = known.iter().map(Dataset::name).collect();
            let (root, names) = (database.path().display(), names.join(", "));
            Err(Failure::io(format!(
                "{root} has no dataset {wanted}; it has: {names}"
            )))
        }
    }
}

/// A keyspace by name, where it is there; nothing is created.
pub fn keyspace(dataset: &Dataset, name: &str) -> Option<Keyspace> {
    let mut keyspaces = dataset.keyspaces().into_iter();
    keyspaces.find(|keyspace| keyspace.name() == name)
}

/// A snapshot and a keyspace of it, for commands that cannot go on without.
///
/// # Errors
/// Problems, naming the keyspaces that are there.
pub fn read_keyspace(dataset: &Dataset, name: &str) -> Result<(Snapshot, Keyspace)> {
    match keyspace(dataset, name) {
        Some(keyspace) => Ok((dataset.snapshot(), keyspace)),
        None => {
            let names: Vec<String> = dataset
                .keyspaces()
                .iter()
                .map(|keyspace| keyspace.name().to_owned())
                .collect();
            Err(Failure::problems(format!(
                "dataset {} has no keyspace {name:?}; it has: {}",
                dataset.name(),
                names.join(", ")
            )))
        }
    }
}
