//! A connection through a command's standard input and output, as `ssh host strandline serve --stdio
//! /data` gives it.
//!
//! The command is a list of arguments and never goes through a shell. Both of its streams are one end
//! of a pair of sockets, so that reads and writes have time limits as those of TCP have. Who may
//! connect is the command's affair; its standard error is this process's own, where ssh asks and
//! complains. It is killed and waited for when the connection ends: no process stays behind.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

use parking_lot::Mutex;

use super::tcp::channel::{READ_STEP, WRITE_STEP};

/// See the module.
pub(super) struct Command {
    stream: UnixStream,
    // `None` once it was waited for.
    child: Mutex<Option<Child>>,
    program: String,
}

impl Command {
    /// Starts a command: a program and its arguments.
    pub fn start(arguments: &[String]) -> io::Result<Command> {
        let (program, rest) = arguments
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "an empty command"))?;
        let (stream, theirs) = UnixStream::pair()?;
        stream.set_read_timeout(Some(READ_STEP))?;
        stream.set_write_timeout(Some(WRITE_STEP))?;
        let their_output = theirs.try_clone()?;
        let child = std::process::Command::new(program)
            .args(rest)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(OwnedFd::from(their_output)))
            .spawn()?;
        Ok(Command {
            stream,
            child: Mutex::new(Some(child)),
            program: program.clone(),
        })
    }

    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.stream).read(buffer)
    }

    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        (&self.stream).write(bytes)
    }

    pub fn end_writes(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    pub fn end(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Both)
    }

    /// Kills the command where it has not ended, and waits for it. How it ended by itself, if it did.
    pub fn reap(&self) -> Option<String> {
        let mut child = self.child.lock().take()?;
        let ended = child.try_wait().ok().flatten();
        if ended.is_none() {
            // One that ended in between cannot be killed and needs not be.
            let _ = child.kill();
            let _ = child.wait();
        }
        let ended = ended.filter(|status| !status.success())?;
        Some(format!("the command {:?} ended with {ended}", self.program))
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.reap();
    }
}
