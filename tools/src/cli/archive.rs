//! `archive` and `restore`: a dataset's copy in an object store.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand};
use strandline::archive::{
    ArchiveOptions, ArchiveStore, Archiving, Target, check, prune, restore, stored,
};
use strandline::{Database, DatasetId};
use strandline_wal::io::Env;

use crate::failure::{Exit, Failure, Result};
use crate::text;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

/// `strandline archive`
#[derive(Subcommand)]
pub(super) enum Archive {
    /// Print what is there
    Status(Place),
    /// Read all that a restore of any point would, and name the first thing that is missing or damaged
    Check(Place),
    /// Remove what no point needs that is to be kept
    Prune(Prune),
}

/// Which archive.
#[derive(Args)]
pub(super) struct Place {
    /// Where it is: file:///DIR, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX or az://CONTAINER/PREFIX. Keys and
    /// settings come from AWS_*, GOOGLE_* and AZURE_* in the environment
    #[arg(value_name = "URL")]
    store: String,
    /// The dataset
    #[arg(long, default_value = "primary", value_name = "NAME")]
    dataset: String,
    /// Which history of it, where there are several
    #[arg(long, value_name = "HEX")]
    lineage: Option<String>,
}

/// `strandline archive prune`
#[derive(Args)]
pub(super) struct Prune {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    keep: Keep,
}

/// What is kept.
#[derive(Args)]
struct Keep {
    /// Days of which every point can be restored
    #[arg(long, default_value_t = 7, value_name = "DAYS")]
    pitr_days: u64,
    /// Days for which bases are kept as points
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    keep_days: u64,
}

/// `strandline restore`
#[derive(Args)]
pub(super) struct Restore {
    #[command(flatten)]
    place: Place,
    /// The database directory to make
    dir: PathBuf,
    /// As it was at this time, in milliseconds since 1970
    #[arg(long, value_name = "MS")]
    time: Option<u64>,
    /// As it was behind these records, one number for each shard
    #[arg(
        long,
        value_name = "SEQ",
        value_delimiter = ',',
        conflicts_with = "time"
    )]
    position: Vec<u64>,
}

/// Flags of a command that leads.
#[derive(Args)]
pub(super) struct Into {
    /// Archive every dataset there, as `strandline archive` names it
    #[arg(long, value_name = "URL")]
    archive: Option<String>,
}

#[cfg(feature = "object-store")]
fn store_of(address: &str) -> Result<Arc<dyn ArchiveStore>> {
    let is_ours = |(name, _): &(String, String)| {
        let name = name.to_lowercase();
        ["aws_", "azure_", "google_"]
            .iter()
            .any(|it| name.starts_with(it))
    };
    let settings = std::env::vars().filter(is_ours);
    let opened = strandline::archive::ObjectArchive::open(address, settings);
    Ok(Arc::new(opened.map_err(strandline::Error::from)?))
}

#[cfg(not(feature = "object-store"))]
fn store_of(address: &str) -> Result<Arc<dyn ArchiveStore>> {
    let text = "this program was built without archives; build it with --features object-store";
    Err(Failure::usage(format!("{address}: {text}")))
}

/// A store, a dataset, and the history that was asked for.
type Opened = (Arc<dyn ArchiveStore>, DatasetId, Option<[u8; 16]>);

impl Place {
    fn open(&self) -> Result<Opened> {
        let id = DatasetId::new(&self.dataset);
        let id = id.map_err(|error| Failure::usage(format!("{error}")))?;
        let lineage = self.lineage.as_deref().map(|hex| {
            let number = u128::from_str_radix(hex, 16);
            let number =
                number.map_err(|error| Failure::usage(format!("--lineage {hex}: {error}")));
            number.map(u128::to_be_bytes)
        });
        Ok((store_of(&self.store)?, id, lineage.transpose()?))
    }
}

impl Archive {
    pub(super) fn run(self) -> Result<Exit> {
        let mut out = std::io::stdout().lock();
        match self {
            Archive::Status(place) => {
                let (store, id, lineage) = place.open()?;
                let found = stored(store.as_ref(), &id, lineage)?;
                writeln!(out, "dataset {id}, lineage {}", text::hex(&found.lineage))?;
                writeln!(out, "  uploaded in epoch {}", found.epoch)?;
                writeln!(out, "  records      {:?}", found.seqs)?;
                let (objects, len) = (
                    text::plural(found.object_count, "object"),
                    text::len(found.len),
                );
                writeln!(out, "  size         {objects}, {len}")?;
                for base in found.bases {
                    writeln!(out, "  base         {} ms since 1970", base.millis())?;
                }
            }
            Archive::Check(place) => {
                let (store, id, lineage) = place.open()?;
                let found = check(&Env::real(), store.as_ref(), &id, lineage)?;
                let bases = text::plural(found.base_count, "base");
                let pieces = text::plural(found.piece_count, "piece");
                let len = text::len(found.len);
                writeln!(
                    out,
                    "{bases} and {pieces} of logs are whole, {len} were read"
                )?;
                if found.break_count > 0 {
                    let places = text::plural(found.break_count, "place");
                    writeln!(
                        out,
                        "records are missing at {places}, by the limit of the log"
                    )?;
                }
            }
            Archive::Prune(verb) => {
                let (store, id, lineage) = verb.place.open()?;
                let options = ArchiveOptions {
                    pitr_window_ms: verb.keep.pitr_days.saturating_mul(DAY_MS),
                    retention_ms: verb.keep.keep_days.saturating_mul(DAY_MS),
                    ..ArchiveOptions::default()
                };
                let done = prune(&Env::real(), store.as_ref(), &id, lineage, &options)?;
                let count = text::plural(done.removed_count, "object");
                writeln!(out, "removed {count}")?;
            }
        }
        Ok(Exit::Ok)
    }
}

impl Restore {
    pub(super) fn run(self) -> Result<Exit> {
        let (store, id, lineage) = self.place.open()?;
        let target = match (self.time, &self.position[..]) {
            (Some(ms), _) => Target::Time(ms),
            (None, []) => Target::Latest,
            (None, seqs) => Target::Position(seqs.to_vec()),
        };
        let done = restore(
            &Env::real(),
            store.as_ref(),
            &id,
            lineage,
            &target,
            &self.dir,
        )?;
        let mut out = std::io::stdout().lock();
        let (len, ms) = (text::len(done.len), done.timestamp.millis());
        let dir = self.dir.display();
        writeln!(
            out,
            "restored {dir} up to records {:?}, {ms} ms since 1970, from {len}",
            done.seqs
        )?;
        writeln!(
            out,
            "its history is a new one: {}",
            text::hex(&done.lineage)
        )?;
        Ok(Exit::Ok)
    }
}

impl Into {
    /// Begins to archive; ends with what it returns.
    pub(super) fn start(&self, database: &Database) -> Result<Vec<Archiving>> {
        let Some(address) = &self.archive else {
            return Ok(Vec::new());
        };
        let each = database
            .datasets()
            .into_iter()
            .map(|dataset| Ok(dataset.archive(store_of(address)?, ArchiveOptions::default())?));
        each.collect()
    }
}
