//! Runs the real binaries.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(
    clippy::unwrap_used,
    reason = "a failure here is a failure of the test"
)]

pub mod node;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A temporary directory and the databases in it.
pub struct Bench {
    pub dir: tempfile::TempDir,
}

/// What a command said.
pub struct Said {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Bench {
    pub fn new() -> Bench {
        Bench {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Said {
    fn of(output: Output) -> Said {
        Said {
            code: output.status.code().expect("an exit code"),
            out: output.stdout,
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.out).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// Asserts the exit code and returns what was said.
    #[track_caller]
    pub fn exits(self, code: i32) -> Said {
        let (out, err) = (String::from_utf8_lossy(&self.out), &self.err);
        assert_eq!(self.code, code, "stdout: {out}\nstderr: {err}");
        self
    }
}

pub fn command<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> Command {
    let path = match program {
        "strandline" => env!("CARGO_BIN_EXE_strandline"),
        _ => env!("CARGO_BIN_EXE_walinspect"),
    };
    let mut command = Command::new(path);
    command.args(arguments).stdin(Stdio::null());
    command
}

pub fn strandline<S: AsRef<OsStr>>(arguments: &[S]) -> Said {
    Said::of(command("strandline", arguments).output().unwrap())
}

pub fn walinspect<S: AsRef<OsStr>>(arguments: &[S]) -> Said {
    Said::of(command("walinspect", arguments).output().unwrap())
}

/// As [`strandline`], with something on standard input.
pub fn strandline_fed<S: AsRef<OsStr>>(arguments: &[S], input: &[u8]) -> Said {
    use std::io::Write;
    let mut command = command("strandline", arguments);
    command.stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        // A command that refuses its input early closes it.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    Said::of(output)
}

/// `strandline VERB DIR REST...`
pub fn verb(verb: &str, dir: &Path, rest: &[&str]) -> Said {
    let mut arguments = vec![OsStr::new(verb), dir.as_os_str()];
    arguments.extend(rest.iter().map(OsStr::new));
    strandline(&arguments)
}

/// `walinspect VERB DIR REST...`
pub fn inspect(verb: &str, dir: &Path, rest: &[&str]) -> Said {
    let mut arguments = vec![OsStr::new(verb), dir.as_os_str()];
    arguments.extend(rest.iter().map(OsStr::new));
    walinspect(&arguments)
}

/// The segment files of a database's dataset `primary`, oldest first.
pub fn segments(dir: &Path) -> Vec<PathBuf> {
    let region = dir.join("primary/r00000");
    let mut files: Vec<PathBuf> = std::fs::read_dir(region)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension() == Some(OsStr::new("seg")))
        .collect();
    files.sort();
    files
}
