//! The processes of the demonstration, seen from the one that started them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;

use crate::failure::{During, Failure, Result};

/// How long a node may take for an answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// Everything that was acknowledged to this process, by whichever node led.
#[derive(Default)]
pub(super) struct Ledger {
    /// Per writer, the newest batch. A writer's batches are acknowledged in order.
    pub newest: BTreeMap<u32, u32>,
    /// Batches.
    pub batch_count: u64,
    /// Files in them.
    pub file_count: u64,
    /// Bytes of these.
    pub len: u64,
    /// Per phase, when its first batch was acknowledged.
    pub first: BTreeMap<u32, Instant>,
}

impl Ledger {
    /// As the `check` command takes it.
    pub fn list(&self) -> String {
        let parts: Vec<String> = self
            .newest
            .iter()
            .map(|(w, n)| format!("{w}:{n}"))
            .collect();
        parts.join(",")
    }

    /// Takes up `WRITER NUMBER FILES BYTES`.
    fn take(&mut self, line: &str) -> Option<()> {
        let mut parts = line.split(' ').map(|part| part.parse::<u64>().ok());
        let (writer, number) = (parts.next()??, parts.next()??);
        let (file_count, len) = (parts.next()??, parts.next()??);
        let (writer, number) = (u32::try_from(writer).ok()?, u32::try_from(number).ok()?);
        self.newest.insert(writer, number);
        self.batch_count += 1;
        self.file_count += file_count;
        self.len += len;
        self.first.entry(writer / 100).or_insert_with(Instant::now);
        Some(())
    }
}

/// The ledger that all nodes write into.
pub(super) type SharedLedger = Arc<Mutex<Ledger>>;

/// The ledger as it is. A thread that panicked while it held it left whole lines behind.
pub(super) fn read(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

fn program() -> Result<PathBuf> {
    std::env::current_exe()
        .map_err(|error| Failure::io(format!("the path of this program: {error}")))
}

/// Makes an authority, and certificates of the nodes.
pub(super) fn certify(certs: &Path, node_count: usize) -> Result<()> {
    let program = program()?;
    let run = |node: Option<usize>| {
        let mut command = Command::new(&program);
        command.args(["certs", "new", "--ca"]).arg(certs);
        if let Some(number) = node {
            command.arg("--node").arg(format!("node-{number}"));
        }
        let made = command.output().during("run", &program)?;
        match made.status.success() {
            true => Ok(()),
            false => Err(Failure::io(
                String::from_utf8_lossy(&made.stderr).into_owned(),
            )),
        }
    };
    run(None)?;
    (1..=node_count).try_for_each(|number| run(Some(number)))
}

/// A node in a process of its own.
pub(super) struct Process {
    /// 1 to 3.
    pub number: usize,
    /// Its directory.
    pub dir: PathBuf,
    /// What others connect to; empty before it serves.
    pub address: String,
    child: Child,
    stdin: ChildStdin,
    answers: Receiver<Result<String, String>>,
    listener: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts a node that has no role yet.
    pub fn start(
        number: usize,
        dir: &Path,
        certs: &Path,
        ledger: &SharedLedger,
    ) -> Result<Process> {
        let program = program()?;
        let mut child = Command::new(&program)
            .arg("demo-node")
            .arg(dir)
            .arg("--tls-ca")
            .arg(certs.join("ca.pem"))
            .arg("--tls-cert")
            .arg(certs.join(format!("node-{number}.pem")))
            .arg("--tls-key")
            .arg(certs.join(format!("node-{number}.key")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .during("start", &program)?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::io("a node without standard streams"));
        };
        let (sender, answers) = channel();
        let ledger = Arc::clone(ledger);
        let listener = std::thread::Builder::new()
            .name(format!("node-{number}"))
            .spawn(move || listen(stdout, &sender, &ledger))
            .map_err(|error| Failure::io(format!("no thread: {error}")))?;
        Ok(Process {
            number,
            dir: dir.to_owned(),
            address: String::new(),
            child,
            stdin,
            answers,
            listener: Some(listener),
        })
    }

    /// Sends a command.
    pub fn tell(&mut self, command: &str) -> Result<()> {
        let sent = writeln!(self.stdin, "{command}").and_then(|()| self.stdin.flush());
        sent.map_err(|error| self.failure(&format!("takes no commands: {error}")))
    }

    /// Waits for the answer to the last command.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        match self.answers.recv_timeout(ANSWER_MAX) {
            Ok(Ok(text)) => serde_json::from_str(&text)
                .map_err(|error| self.failure(&format!("answered {text:?}: {error}"))),
            Ok(Err(text)) => Err(self.failure(&text)),
            Err(RecvTimeoutError::Timeout) => Err(self.failure("does not answer")),
            Err(RecvTimeoutError::Disconnected) => Err(self.failure("has died")),
        }
    }

    /// Sends a command and waits for its answer.
    pub fn ask<T: DeserializeOwned>(&mut self, command: &str) -> Result<T> {
        self.tell(command)?;
        self.answer()
    }

    /// Lets it listen and learns its address.
    pub fn serve(&mut self, listen: &str) -> Result<()> {
        let answer: BTreeMap<String, String> = self.ask(&format!("serve {listen}"))?;
        self.address = answer.get("address").cloned().unwrap_or_default();
        Ok(())
    }

    /// Kills it with SIGKILL, and returns once it is dead and everything it ever said is heard.
    pub fn kill(mut self) -> Result<PathBuf> {
        let outcome = self.child.kill().and_then(|()| self.child.wait());
        outcome.map_err(|error| self.failure(&format!("cannot be killed: {error}")))?;
        self.hear_out();
        Ok(self.dir.clone())
    }

    /// Lets it close its database and waits for its end.
    pub fn quit(mut self) -> Result<PathBuf> {
        let _: serde_json::Value = self.ask("quit")?;
        let ended = self.child.wait();
        ended.map_err(|error| self.failure(&format!("does not end: {error}")))?;
        self.hear_out();
        Ok(self.dir.clone())
    }

    fn hear_out(&mut self) {
        if let Some(listener) = self.listener.take() {
            // It ends with the stream; a panic was printed.
            let _ = listener.join();
        }
    }

    fn failure(&self, what: &str) -> Failure {
        Failure::problems(format!("node {} {what}", self.number))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Killing what is dead already is no failure that anyone needs.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.hear_out();
    }
}

/// Sorts what a node says: acknowledgements into the ledger, answers to whoever asked.
fn listen(stdout: ChildStdout, answers: &Sender<Result<String, String>>, ledger: &SharedLedger) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else {
            return;
        };
        let (kind, rest) = line.split_once(' ').unwrap_or((line.as_str(), ""));
        let sent = match kind {
            "ack" => {
                // Half a line, cut by the kill, was heard by nobody.
                let _ = read(ledger).take(rest);
                Ok(())
            }
            "ok" => answers.send(Ok(rest.to_owned())),
            _ => answers.send(Err(rest.to_owned())),
        };
        if sent.is_err() {
            return;
        }
    }
}
