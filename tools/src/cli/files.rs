//! `import` and `export`: directory trees and NDJSON.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::is_standard;
use crate::failure::{During, Exit, Failure, Result};
use crate::load::Loader;
use crate::open::{self, KEYSPACE, Place, Writing};
use crate::{ndjson, progress, text, tree};

/// What is read or written.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A directory tree: keys are paths, values are contents
    #[arg(long, value_name = "DIRECTORY")]
    tree: Option<PathBuf>,
    /// Lines of {"key":..,"value":..}; - is the standard stream
    #[arg(long, value_name = "FILE")]
    ndjson: Option<PathBuf>,
}

/// `strandline import`
#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    source: Source,
    /// Count broken lines and go on
    #[arg(long, conflicts_with = "tree")]
    skip_bad: bool,
    /// Leave out files and directories of this name; may be repeated
    #[arg(long, value_name = "NAME", conflicts_with = "ndjson")]
    exclude: Vec<OsString>,
    /// The keyspace; of lines, only those that name none
    #[arg(long, short, default_value = KEYSPACE, value_name = "NAME")]
    keyspace: String,
    #[command(flatten)]
    writing: Writing,
}

impl Import {
    pub(super) fn run(self) -> Result<Exit> {
        match (&self.source.tree, &self.source.ndjson) {
            (Some(root), _) => self.tree(root),
            (None, Some(path)) => self.ndjson(path),
            (None, None) => Err(Failure::usage("name --tree DIRECTORY or --ndjson FILE")),
        }
    }

    fn tree(&self, root: &Path) -> Result<Exit> {
        let is_dir = std::fs::metadata(root).during("read", root)?.is_dir();
        if !is_dir {
            let shown = root.display();
            return Err(Failure::usage(format!("{shown} is not a directory")));
        }
        let (database, dataset) = self.writing.open(&self.place)?;
        let total = match progress::is_shown() {
            true => tree::measure(root, &self.exclude).1,
            false => 0,
        };
        let bar = progress::bytes("import", total);
        let options = tree::ImportOptions {
            keyspace: &self.keyspace,
            exclude: &self.exclude,
            avoid: Some(&self.place.dir),
            progress: &|_, len| bar.inc(len),
        };
        let loader = Loader::new(&dataset, self.writing.durability);
        let imported = tree::import(&dataset, loader, root, &options)?;
        database.close()?;
        bar.finish_and_clear();
        for path in &imported.skipped {
            eprintln!("{}: not a file, directory or link; skipped", path.display());
        }
        println!(
            "imported {}, {}, {}, {}",
            text::plural(imported.file_count, "file"),
            match imported.dir_count {
                1 => "1 directory".to_owned(),
                n => format!("{} directories", text::count(n)),
            },
            text::plural(imported.link_count, "link"),
            text::len(imported.len),
        );
        Ok(Exit::Ok)
    }

    fn ndjson(&self, path: &Path) -> Result<Exit> {
        let (input, total): (Box<dyn Read>, u64) = match is_standard(path) {
            true => (Box::new(std::io::stdin()), 0),
            false => {
                let file = File::open(path).during("open", path)?;
                let total = file.metadata().during("read", path)?.len();
                (Box::new(file), total)
            }
        };
        let (database, dataset) = self.writing.open(&self.place)?;
        let bar = match total {
            0 => progress::stream("import"),
            _ => progress::bytes("import", total),
        };
        let options = ndjson::ImportOptions {
            keyspace: &self.keyspace,
            skip_bad: self.skip_bad,
            progress: &|len| bar.inc(len),
        };
        let name = match is_standard(path) {
            true => "stdin".to_owned(),
            false => path.display().to_string(),
        };
        let loader = Loader::new(&dataset, self.writing.durability);
        let mut input = BufReader::with_capacity(1 << 20, input);
        let imported = ndjson::import(&dataset, loader, &name, &mut input, &options)?;
        database.close()?;
        bar.finish_and_clear();
        let lines = text::plural(imported.line_count, "line");
        match imported.bad_count {
            0 => println!("imported {lines}"),
            bad => println!(
                "imported {lines}, skipped {}",
                text::plural(bad, "broken line")
            ),
        }
        Ok(Exit::Ok)
    }
}

/// `strandline export`
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    source: Source,
    /// The keyspace; without it, --tree takes the default one and --ndjson all
    #[arg(long, short, value_name = "NAME")]
    keyspace: Option<String>,
}

impl Export {
    pub(super) fn run(self) -> Result<Exit> {
        let database = open::reader(&self.place.dir)?;
        let dataset = open::dataset(&database, &self.place.dataset)?;
        match (&self.source.tree, &self.source.ndjson) {
            (Some(out), _) => self.tree(&dataset, out),
            (None, Some(path)) => self.ndjson(&dataset, path),
            (None, None) => Err(Failure::usage("name --tree DIRECTORY or --ndjson FILE")),
        }
    }

    fn tree(&self, dataset: &strandline::Dataset, out: &Path) -> Result<Exit> {
        let bar = progress::stream("export");
        let keyspace = self.keyspace.as_deref().unwrap_or(KEYSPACE);
        let exported = tree::export(dataset, keyspace, out, &|_, len| bar.inc(len))?;
        bar.finish_and_clear();
        for problem in &exported.problems {
            eprintln!("{problem}");
        }
        println!(
            "exported {}, {}, {}, {}",
            text::plural(exported.file_count, "file"),
            match exported.dir_count {
                1 => "1 directory".to_owned(),
                n => format!("{} directories", text::count(n)),
            },
            text::plural(exported.link_count, "link"),
            text::len(exported.len),
        );
        match exported.problems.len() {
            0 => Ok(Exit::Ok),
            _ => Ok(Exit::Problems),
        }
    }

    fn ndjson(&self, dataset: &strandline::Dataset, path: &Path) -> Result<Exit> {
        let bar = progress::stream("export");
        let only = self.keyspace.as_deref();
        let name = path.display().to_string();
        let write =
            |out: &mut dyn Write| ndjson::export(dataset, only, out, &name, &|len| bar.inc(len));
        if is_standard(path) {
            write(&mut BufWriter::new(std::io::stdout().lock()))?;
            return Ok(Exit::Ok);
        }
        let file = File::create(path).during("create", path)?;
        let line_count = write(&mut BufWriter::with_capacity(1 << 20, &file))?;
        file.sync_all().during("sync", path)?;
        bar.finish_and_clear();
        println!("exported {}", text::plural(line_count, "line"));
        Ok(Exit::Ok)
    }
}
