//! The verbs of `walinspect`: the files of a database, read as they are, without opening it.
//!
//! Nothing here writes, and nothing maps a file, so all of it works beside a running database. What
//! a file says is checked before it is shown; what is damaged is named with file and offset, and the
//! verb goes on behind it.

pub mod diff;
mod dump;
mod find;
mod header;
mod layout;
mod ls;
mod record;
mod recover;
mod stats;
pub mod store;
pub mod verify;
pub mod walk;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use strandline_wal::io::Env;

use crate::failure::{Exit, Result, report};

/// Look into the log and the tables of a Strandline database
#[derive(Parser)]
#[command(
    name = "walinspect",
    version,
    after_help = "Positions are sequences of records, counted in each shard from 1.\n\n\
Exit codes: 0 fine, 1 problems found, 2 wrong usage, 3 disk."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List segments and tables
    Ls(ls::Ls),
    /// Print batches and records of the log
    Dump(dump::Dump),
    /// Explain the bytes at the head and the end of a file
    Header(header::Header),
    /// Count records by kind, keyspace and size
    Stats(stats::Stats),
    /// Check every byte and name what is damaged
    Verify(Verify),
    /// Find every place that a key lives in
    Find(find::Find),
    /// Compare the logs of two databases up to where both have come
    Diff(diff::Diff),
    /// Print what opening the database would do to its logs
    Recover(recover::Recover),
}

/// Which database and which part of it.
#[derive(Args, Clone, Debug)]
pub(crate) struct Where {
    /// The database directory
    dir: PathBuf,
    /// Only this dataset
    #[arg(long, value_name = "NAME")]
    dataset: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Where {
    /// The stored datasets that are asked for.
    fn datasets(&self, env: &Env) -> Result<Vec<store::DatasetFiles>> {
        store::datasets(env, &self.dir, self.dataset.as_deref())
    }
}

/// `walinspect verify`
#[derive(Args)]
struct Verify {
    /// The database directory
    dir: PathBuf,
    /// Also check that batches and segments continue each other, and read every key
    #[arg(long)]
    deep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the `walinspect` command of this process.
pub fn main() -> ExitCode {
    report("walinspect", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<Exit> {
    let env = Env::real_pread();
    match cli.verb {
        Verb::Ls(verb) => verb.run(&env),
        Verb::Dump(verb) => verb.run(&env),
        Verb::Header(verb) => verb.run(&env),
        Verb::Stats(verb) => verb.run(&env),
        Verb::Verify(verb) => verify::run(&env, &verb.dir, verb.deep, verb.json, &mut |_| {}),
        Verb::Find(verb) => verb.run(&env),
        Verb::Diff(verb) => verb.run(&env),
        Verb::Recover(verb) => verb.run(&env),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
