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
use std::time::Duration;

use parking_lot::Mutex;

use super::tcp::channel::{READ_STEP, WRITE_STEP};

/// How often a command whose streams have ended is asked whether it has.
const END_STEP: Duration = Duration::from_millis(10);
/// How many times.
const END_STEP_COUNT: u32 = 20;

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

    /// How the command ended by itself: once its streams have, it is given a moment to.
    pub fn ended(&self) -> Option<String> {
        let mut child = self.child.lock();
        for _ in 0..END_STEP_COUNT {
            if let Ok(Some(status)) = child.as_mut()?.try_wait() {
                let program = &self.program;
                return Some(format!("the command {program:?} ended with {status}"));
            }
            std::thread::sleep(END_STEP);
        }
        None
    }

    /// Kills the command where it has not ended, and waits for it.
    pub fn reap(&self) {
        if let Some(mut child) = self.child.lock().take() {
            // One that ended by itself cannot be killed and needs not be.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Command {
    fn drop(&mut self) {
        self.reap();
    }
}
