//! Why a command ends, and with which exit code.
//!
//! | Code | Meaning |
//! |-----:|---------|
//! | 0 | done |
//! | 1 | problems found: damage, a difference, a broken line, a key that is not there |
//! | 2 | the command itself is wrong |
//! | 3 | the disk, the network or another process refused |

use std::fmt;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use strandline::ErrorKind;

/// The class of an end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Exit {
    /// Done. As a failure: whoever read the output has closed it, which is no one's fault.
    Ok = 0,
    /// Something is not as it should be.
    Problems = 1,
    /// The command is wrong.
    Usage = 2,
    /// Files, network, or another process.
    Io = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended before it was done. Its text says what to do.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For standard error; empty where there is nothing left to say.
    pub message: String,
}

/// The result of everything here.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    /// Something is not as it should be.
    pub fn problems(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Problems, message)
    }

    /// The command is wrong.
    pub fn usage(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    /// Files, network, or another process.
    pub fn io(message: impl fmt::Display) -> Failure {
        Failure::new(Exit::Io, message)
    }

    fn new(exit: Exit, message: impl fmt::Display) -> Failure {
        Failure {
            exit,
            message: message.to_string(),
        }
    }

    /// The same, said of something: `place: message`.
    #[must_use]
    pub fn at(self, place: impl fmt::Display) -> Failure {
        Failure {
            message: format!("{place}: {}", self.message),
            ..self
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<strandline::Error> for Failure {
    fn from(error: strandline::Error) -> Failure {
        let exit = match (&error, error.kind()) {
            (strandline::Error::NotFound { .. } | strandline::Error::Locked { .. }, _) => Exit::Io,
            (_, ErrorKind::Restore) => Exit::Problems,
            (_, ErrorKind::Caller) => Exit::Usage,
            (strandline::Error::Mismatch { .. }, _) => Exit::Usage,
            _ => Exit::Io,
        };
        Failure::new(exit, error)
    }
}

impl From<strandline_wal::Error> for Failure {
    fn from(error: strandline_wal::Error) -> Failure {
        strandline::Error::from(error).into()
    }
}

/// An error of standard input or output. Everything else names its path with [`During`].
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::new(Exit::Ok, ""),
            _ => Failure::io(format!("standard output: {error}")),
        }
    }
}

/// Adds what was done to which file.
pub trait During<T> {
    /// Names the operation and the path.
    fn during(self, op: &str, path: &Path) -> Result<T>;
}

impl<T> During<T> for io::Result<T> {
    fn during(self, op: &str, path: &Path) -> Result<T> {
        self.map_err(|error| Failure::io(format!("{op} {}: {error}", path.display())))
    }
}

/// Says why on standard error and gives the exit code.
pub fn report(program: &str, outcome: Result<Exit>) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.message.is_empty() {
                eprintln!("{program}: {failure}");
            }
            failure.exit.into()
        }
    }
}
