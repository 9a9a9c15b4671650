//! The verbs of `strandline`: reading the command line and saying what was done.

mod archive;
mod asked;
mod certs;
mod config;
mod elected;
mod files;
mod keys;
pub(crate) mod links;
mod node;
mod repair;
mod run;
mod salvage;
mod show;
mod slots;
mod stdio;

use std::path::Path;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::failure::{Exit, Result, report};
use crate::open::KEYSPACE;

/// An embedded, log-structured key-value database with built-in replication
#[derive(Parser)]
#[command(
    name = "strandline",
    version,
    after_help = "Keys and values are shown as they are where they are printable text, and as hex:... \
otherwise;\nkeys are taken in both forms.\n\nExit codes: 0 done, 1 problems found, 2 wrong usage, 3 disk, \
network or another process."
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Set the value of a key
    Put(keys::Put),
    /// Print the value of a key, as it is
    Get(keys::Get),
    /// Remove a key
    Delete(keys::Delete),
    /// Print keys and values in order
    Scan(keys::Scan),
    /// Read a directory tree or NDJSON lines into the database
    Import(files::Import),
    /// Write a directory tree or NDJSON lines out of the database
    Export(files::Export),
    /// Print what the database holds, in numbers
    Stats(show::Stats),
    /// Run a node as its configuration file says, until SIGINT or SIGTERM
    Node(run::Node),
    /// Lead: serve the database to followers until SIGINT or SIGTERM
    Serve(node::Serve),
    /// Follow a leader until SIGINT or SIGTERM
    Follow(node::Follow),
    /// Make a follower the leader: its follow process must have ended
    Promote(node::Promote),
    /// Print role, epoch and positions of a directory or of a running node
    Status(node::Status),
    /// Print what followers need of a leader's log, and who keeps it; or forget a follower
    Slots(slots::Slots),
    /// Make certificates for connections beyond loopback
    #[command(subcommand)]
    Certs(certs::Certs),
    /// Check every byte and name what is damaged
    Verify(show::Verify),
    /// Check every byte, no faster than asked
    Scrub(show::Scrub),
    /// Make a checkpoint: an independent database that shares its files
    Checkpoint(repair::Checkpoint),
    /// Look at, check and prune the archive of a dataset
    #[command(subcommand)]
    Archive(archive::Archive),
    /// Make a database of what an archive has, as it was at some point
    Restore(archive::Restore),
    /// Mend a damaged database by another node's copy of it
    Repair(repair::Repair),
    /// Make a new database of everything that is good in a damaged one
    Salvage(salvage::Salvage),
    /// Watch a leader with two followers fail and recover, in under a minute
    Demo(crate::demo::Demo),
    /// One node of the demonstration
    #[command(hide = true)]
    DemoNode(crate::demo::node::DemoNode),
}

/// Which keyspace a command is about.
#[derive(Args, Clone, Debug)]
struct InKeyspace {
    /// The keyspace
    #[arg(long, short, default_value = KEYSPACE, value_name = "NAME")]
    keyspace: String,
}

/// Runs the `strandline` command of this process.
pub fn main() -> ExitCode {
    report("strandline", run(Cli::parse()))
}

fn run(cli: Cli) -> Result<Exit> {
    match cli.verb {
        Verb::Put(verb) => verb.run(),
        Verb::Get(verb) => verb.run(),
        Verb::Delete(verb) => verb.run(),
        Verb::Scan(verb) => verb.run(),
        Verb::Import(verb) => verb.run(),
        Verb::Export(verb) => verb.run(),
        Verb::Stats(verb) => verb.run(),
        Verb::Node(verb) => verb.run(),
        Verb::Serve(verb) => verb.run(),
        Verb::Follow(verb) => verb.run(),
        Verb::Promote(verb) => verb.run(),
        Verb::Status(verb) => verb.run(),
        Verb::Slots(verb) => verb.run(),
        Verb::Certs(verb) => verb.run(),
        Verb::Verify(verb) => verb.run(),
        Verb::Scrub(verb) => verb.run(),
        Verb::Checkpoint(verb) => verb.run(),
        Verb::Archive(verb) => verb.run(),
        Verb::Restore(verb) => verb.run(),
        Verb::Repair(verb) => verb.run(),
        Verb::Salvage(verb) => verb.run(),
        Verb::Demo(verb) => verb.run(),
        Verb::DemoNode(verb) => verb.run(),
    }
}

/// Where NDJSON comes from or goes to: a file, or the standard stream.
fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
