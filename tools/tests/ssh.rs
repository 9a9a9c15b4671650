//! A follower behind ssh: a real sshd on loopback, connections that are killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::node::{Node, load, serve, wait_equal};
use common::{Bench, inspect, walinspect};

/// An sshd of the test's own: its configuration, keys and port.
struct Sshd {
    child: Child,
    dir: PathBuf,
    port: u16,
}

impl Sshd {
    /// Starts one; what is missing where there is none to be had.
    fn start(dir: &Path) -> Result<Sshd, String> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            return Err("there is no /usr/sbin/sshd".to_owned());
        }
        std::fs::create_dir(dir).unwrap();
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        for key in ["host", "user"] {
            let mut keygen = Command::new("ssh-keygen");
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &path(key)]);
            if !keygen.status().is_ok_and(|status| status.success()) {
                return Err("there is no ssh-keygen".to_owned());
            }
        }
        std::fs::copy(path("user.pub"), path("authorized")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let host = std::fs::read_to_string(path("host.pub")).unwrap();
        std::fs::write(path("known"), format!("[127.0.0.1]:{port} {host}")).unwrap();
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\n\
             StrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
             PermitRootLogin prohibit-password\nMaxStartups 100\n",
            path("host"),
            path("authorized"),
        );
        std::fs::write(path("config"), config).unwrap();
        // Where it parts with its privileges; it does not start without.
        let _ = std::fs::create_dir("/run/sshd");
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new(program)
            .args(["-D", "-e", "-f", &path("config")])
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("sshd: {error}"))?;
        let sshd = Sshd {
            child,
            dir: dir.to_owned(),
            port,
        };
        let started = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if started.elapsed() > Duration::from_secs(10) {
                return Err(format!("sshd does not listen: {}", sshd.log()));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let tried = Command::new("ssh")
            .args(&sshd.arguments()[1..])
            .arg("true")
            .output();
        match tried {
            Ok(output) if output.status.success() => Ok(sshd),
            Ok(_) => Err(format!("nobody may log in: {}", sshd.log())),
            Err(error) => Err(format!("ssh: {error}")),
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The ssh command up to the host.
    fn arguments(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).to_str().unwrap().to_owned();
        let known = format!("UserKnownHostsFile={}", path("known"));
        let (port, key) = (self.port.to_string(), path("user"));
        let options = [
            "ssh",
            "-q",
            "-F",
            "/dev/null",
            "-p",
            &port,
            "-i",
            &key,
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            &known,
            "127.0.0.1",
        ];
        options.map(str::to_owned).into()
    }

    /// Arguments of a follower that goes through it.
    fn follow(&self, dir: &Path, remote: &[&str]) -> Vec<String> {
        let mut arguments = vec![
            "follow".to_owned(),
            dir.to_str().unwrap().to_owned(),
            "--".to_owned(),
        ];
        arguments.extend(self.arguments());
        arguments.push(env!("CARGO_BIN_EXE_strandline").to_owned());
        arguments.extend(remote.iter().map(ToString::to_string));
        arguments
    }

    /// The processes of its sessions.
    fn sessions(&self) -> Vec<u32> {
        children(self.child.id())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // Behind the name, which may hold anything: state, then the parent.
        let parent = stat
            .rsplit_once(')')
            .and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if parent.is_some_and(|parent| parent == of.to_string()) {
            found.extend(entry.file_name().to_str().unwrap().parse::<u32>());
        }
    }
    found
}

fn kill(processes: &[u32]) -> usize {
    let killed = processes.iter().filter(|id| {
        let mut kill = Command::new("kill");
        kill.args(["-KILL", &id.to_string()]).stderr(Stdio::null());
        kill.status().unwrap().success()
    });
    killed.count()
}

fn identical(a: &Path, b: &Path, shards: usize) {
    for dir in [a, b] {
        inspect("verify", dir, &["--deep"]).exits(0);
    }
    let said = walinspect(&["diff", a.to_str().unwrap(), b.to_str().unwrap()]).exits(0);
    assert_eq!(
        said.text().matches("byte-identical").count(),
        shards,
        "{}",
        said.text()
    );
}

#[test]
fn a_follower_behind_ssh_is_killed_at_both_ends_and_goes_on() {
    let bench = Bench::new();
    let sshd = match Sshd::start(&bench.path("sshd")) {
        Ok(sshd) => sshd,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let (a, b, c) = (bench.path("a"), bench.path("b"), bench.path("c"));
    load(&a, 0, 200_000, "2");
    let leader = serve(&a);
    let dir = a.to_str().unwrap();
    let arguments = sshd.follow(&b, &["serve", "--stdio", dir, "--to", &leader.address]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let follower = Node::start(&arguments);
    // Killed in turns at this end and at the other, while it catches up and afterwards.
    let mut killed = [0, 0];
    let started = Instant::now();
    while killed[0] < 3 || killed[1] < 3 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{killed:?}: {}",
            sshd.log()
        );
        std::thread::sleep(Duration::from_millis(120));
        let end = usize::from(killed[0] > killed[1]);
        let processes = match end {
            0 => children(follower.child.id()),
            _ => sshd.sessions(),
        };
        killed[end] += kill(&processes).min(1);
    }
    wait_equal(&leader.address, &follower.address);
    // Written while nobody was connected, and while ssh is.
    leader.stop();
    load(&a, 200_000, 201_000, "2");
    let ended = children(follower.child.id());
    assert!(ended.len() <= 1, "one connection at a time: {ended:?}");
    follower.stop();
    // Without a running node the far end opens the database itself.
    let arguments = sshd.follow(&c, &["serve", "--stdio", dir]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let follower = Node::start(&arguments);
    let started = Instant::now();
    let count = |dir: &Path| {
        let said = common::verb("scan", dir, &["--keys"]);
        said.text().lines().count()
    };
    while count(&c) < 201_000 {
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "{}",
            sshd.log()
        );
        std::thread::sleep(Duration::from_millis(200));
    }
    follower.stop();
    let started = Instant::now();
    // The far end ends by itself when its connection has.
    while common::verb("put", &a, &["k", "v"]).code != 0 {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "the far end stays"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(count(&b), 200_000);
    for dir in [&a, &b, &c] {
        inspect("verify", dir, &["--deep"]).exits(0);
    }
    // The first follower goes on where it was, by the far end's own opening of the database.
    let leader = serve(&a);
    let arguments = sshd.follow(&b, &["serve", "--stdio", dir, "--to", &leader.address]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let follower = Node::start(&arguments);
    wait_equal(&leader.address, &follower.address);
    follower.stop();
    leader.stop();
    identical(&a, &b, 2);
}

#[test]
fn a_command_that_cannot_be_or_fails_is_named() {
    let bench = Bench::new();
    let b = bench.path("b");
    for (program, why) in [
        ("/nowhere/ssh", "No such file"),
        ("false", "\"false\" ended with exit status: 1"),
    ] {
        let arguments = ["follow", b.to_str().unwrap(), "--", program, "argument"];
        let mut follow = common::command("strandline", &arguments);
        let mut child = follow.stderr(Stdio::piped()).spawn().unwrap();
        let errors = std::io::BufReader::new(child.stderr.take().unwrap());
        let line = std::io::BufRead::lines(errors).next().unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(line.contains(program) && line.contains(why), "{line}");
    }
    let refused = [
        "serve",
        b.to_str().unwrap(),
        "--stdio",
        "--to",
        "192.0.2.1:1",
    ];
    let said = common::strandline(&refused).exits(2);
    assert!(said.err.contains("loopback"), "{}", said.err);
}
