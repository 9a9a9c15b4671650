//! Servers of others, started for a while in a directory of their own.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::system::Result;

/// How long a server may take to answer, or to end.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// A process that is ended when it is dropped.
pub struct Server(Child);

impl Server {
    /// Starts it; what it says goes into a file, for whoever looks after a failure.
    pub fn start(command: &mut Command, log: &Path) -> Result<Server> {
        let log = std::fs::File::create(log)?;
        let command = command.stdin(Stdio::null()).stderr(log.try_clone()?);
        Ok(Server(command.stdout(log).spawn()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An orderly end first: PostgreSQL's helpers end with it.
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            let _ = kill_process(pid, Signal::INT);
        }
        let ended = wait_until(|| Ok(matches!(self.0.try_wait(), Ok(Some(_)))));
        if ended.is_err() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(format!("{command:?}: {}: {said}", output.status).into())
        }
    }
}

/// Asks until the answer is yes.
pub fn wait_until(mut ask: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    loop {
        let answer = ask();
        match answer {
            Ok(true) => return Ok(()),
            Ok(false) | Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
            Ok(false) => return Err("it did not come about in 30 seconds".into()),
            Err(error) => return Err(error),
        }
    }
}

/// A port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Where a program is: on the path, or in one of some directories.
pub fn find(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut all = dirs.iter().cloned().chain(std::env::split_paths(&path));
    all.find_map(|dir| Some(dir.join(name)).filter(|program| program.is_file()))
}
