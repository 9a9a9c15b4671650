//! Nodes as processes of their own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{command, strandline, strandline_fed};

/// A node that runs until it is stopped, and its address.
pub struct Node {
    pub child: Child,
    pub address: String,
}

impl Node {
    /// Starts one and waits until it listens.
    pub fn start(arguments: &[&str]) -> Node {
        let mut child = command("strandline", arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut address = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            if let Some(found) = line.unwrap().strip_prefix("listening ") {
                address = Some(found.to_owned());
                break;
            }
        }
        let address = address.expect("it listens");
        Node { child, address }
    }

    /// Ends it with SIGTERM and asserts that it ended well.
    pub fn stop(mut self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .unwrap()
                .success()
        );
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
    }

    /// Ends it with SIGKILL.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A leader.
pub fn serve(dir: &Path) -> Node {
    Node::start(&["serve", dir.to_str().unwrap(), "--listen", "127.0.0.1:0"])
}

/// A follower.
pub fn follow(dir: &Path, leader: &str) -> Node {
    Node::start(&["follow", dir.to_str().unwrap(), "--leader", leader])
}

/// How a node or a directory stands.
pub fn status(target: &str) -> serde_json::Value {
    let said = strandline(&["status", target, "--json"]).exits(0);
    said.json()["datasets"][0].clone()
}

/// Waits until two running nodes have logs that end at the same place.
pub fn wait_equal(a: &str, b: &str) {
    let started = Instant::now();
    loop {
        let (a, b) = (status(a), status(b));
        if a["positions"] == b["positions"] {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(60), "{a}\n{b}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes keys from `from` to below `to`.
pub fn load(dir: &Path, from: u32, to: u32, shards: &str) {
    let lines: String = (from..to)
        .map(|n| {
            format!(
                "{{\"key\":\"k{n:05}\",\"value\":\"{}\"}}\n",
                "v".repeat(100)
            )
        })
        .collect();
    let dir = dir.to_str().unwrap();
    let arguments = ["import", dir, "--ndjson", "-", "--shards", shards];
    strandline_fed(&arguments, lines.as_bytes()).exits(0);
}
