//! Work that needs a process of its own: this program starts itself again.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Signal, getpid, kill_process};
use strandline_benches::keys;

use super::engine::{Entrant, Level, Result, Setup};
use super::rows::{GROUPS, Size};
use super::work::{Part, SEED, load};
use super::{all, limited};

/// The word that makes this program a child, before what it shall do.
pub const WORD: &str = "child";

/// Starts a child and waits for its end.
fn start(words: &[&str], dir: &Path, limit: Option<&Path>) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(WORD).args(words).arg(dir).args(limit);
    let command = command.stdin(Stdio::null()).stderr(Stdio::inherit());
    Ok(command.output()?)
}

/// The figures of a group, measured by a child. None where its limit of memory killed it.
pub fn figures(
    group: usize,
    entrant: &Entrant,
    dir: &Path,
    size: &Size,
    limit: Option<&Path>,
) -> Result<Option<Vec<f64>>> {
    let (group, count) = (group.to_string(), size.count.to_string());
    let output = start(&["measure", entrant.name, &count, &group], dir, limit)?;
    if limit.is_some() && output.status.signal() == Some(Signal::KILL.as_raw()) {
        return Ok(None);
    }
    if !output.status.success() {
        return Err(format!("a process of its own ended with {}", output.status).into());
    }
    let text = String::from_utf8(output.stdout)?;
    let figures: std::result::Result<_, _> = text.split_whitespace().map(str::parse).collect();
    Ok(Some(figures?))
}

/// Leaves in `dir` what a process that loaded everything and was killed has left.
pub fn load_and_die(entrant: &Entrant, dir: &Path, size: &Size) -> Result<()> {
    let count = size.count.to_string();
    let output = start(&["die", entrant.name, &count], dir, None)?;
    match output.status.signal() == Some(Signal::KILL.as_raw()) {
        true => Ok(()),
        false => Err(format!("a process was to be killed, and {}", output.status).into()),
    }
}

/// What the child does.
pub fn run(words: &[String]) -> Result<()> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let [task, name, count, rest @ ..] = &words[..] else {
        return Err("a child needs to be told what to do".into());
    };
    let entrants = all();
    let entrant = entrants.iter().find(|entrant| entrant.name == *name);
    let entrant = entrant.ok_or("a child was given the name of no engine")?;
    let size = Size {
        count: count.parse()?,
    };
    match (*task, rest) {
        ("measure", [group, dir, limit @ ..]) => {
            if let [limit] = limit {
                // Before anything is allocated that shall count.
                limited::enter(Path::new(limit))?;
            }
            let group = &GROUPS[group.parse::<usize>()?];
            for figure in group.run(entrant, Path::new(dir), &size)? {
                print!("{figure} ");
            }
            Ok(())
        }
        ("die", [dir]) => {
            let engine = (entrant.open)(Path::new(dir), &Setup::new(Level::Os))?;
            load(engine.as_ref(), Part::new(&keys(SEED, size.count)), 100)?;
            engine.hand_over()?;
            Ok(kill_process(getpid(), Signal::KILL)?)
        }
        _ => Err("a child was told what nobody can do".into()),
    }
}
