//! Strandline: the leader in this process, as an application has it, the follower in one of its own.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};
use strandline::replica::Server;
use strandline::{Arrival, Arrived, Dataset, Durability, Keyspace, Options, WriteToken};

use super::system::{Level, Result, STAMP_KEY, System, VALUE_LEN, Writer, ages, now_ns};

/// The word that makes this program a follower.
pub const WORD: &str = "follow";
/// Longer than that nobody waits for a follower.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Ours {
    pub dataset: Dataset,
    pub map: Keyspace,
    follower: Mutex<Option<Follower>>,
    server: Server,
}

fn options() -> Options {
    Options {
        memtable_len_max: 4 << 30,
        settle_after: None,
        ..Options::default()
    }
}

/// Holds the thread that calls it to a core, and those that it starts.
pub fn pin(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    Ok(sched_setaffinity(None, &cores)?)
}

impl Ours {
    /// A leader whom nobody follows yet.
    pub fn lead(dir: &Path) -> Result<Ours> {
        let database = options().open(dir)?;
        Ok(Ours {
            dataset: database.dataset("")?,
            map: database.keyspace("map")?,
            server: database.serve("127.0.0.1:0")?,
            follower: Mutex::default(),
        })
    }

    /// A leader and its follower.
    pub fn start(dir: &Path) -> Result<Ours> {
        let ours = Ours::lead(&dir.join("leader"))?;
        let address = ours.address();
        ours.follow(&address, &dir.join("follower"), None)?;
        Ok(ours)
    }

    pub fn address(&self) -> String {
        self.server.address().to_string()
    }

    /// Starts a follower, which goes to `address`, and waits until it has everything.
    pub fn follow(&self, address: &str, dir: &Path, core: Option<usize>) -> Result<()> {
        *self.lock() = Some(Follower::start(address, dir, core)?);
        self.map
            .put_with(STAMP_KEY, super::system::stamp(), Durability::Applied(1))?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Follower>> {
        self.follower
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Puts so many stamps, one in each `pause`, and lets the follower wait for each of them: nanoseconds
    /// that it waited.
    pub fn waits(&self, count: usize, pause: Duration) -> Result<Vec<u64>> {
        let mut follower = self.lock();
        let follower = follower.as_mut().ok_or("a follower")?;
        let start = Instant::now();
        for n in 0..count {
            let mut batch = self.dataset.batch();
            batch.put(&self.map, STAMP_KEY, super::system::stamp())?;
            let ticket = batch.submit_with(Durability::Disk)?;
            let token = ticket.token();
            ticket.wait()?;
            follower.say(&format!("wait {token} {}", now_ns()))?;
            let due = pause * u32::try_from(n + 1)?;
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        (0..count).map(|_| Ok(follower.hear()?.parse()?)).collect()
    }
}

impl System for Ours {
    fn writer(&self, level: Level) -> Result<Option<Box<dyn Writer>>> {
        let level = match level {
            Level::Async => Durability::Disk,
            Level::Received => Durability::Received(1),
            Level::Durable => Durability::Durable(1),
            Level::Applied => Durability::Applied(1),
        };
        Ok(Some(Box::new(OurWriter {
            map: self.map.clone(),
            level,
        })))
    }

    fn watch(&self, time: Duration) -> Result<Vec<u64>> {
        let mut follower = self.lock();
        let follower = follower.as_mut().ok_or("a follower")?;
        follower.say(&format!("watch {}", time.as_millis()))?;
        let line = follower.hear()?;
        line.split_whitespace()
            .map(|age| Ok(age.parse()?))
            .collect()
    }
}

struct OurWriter {
    map: Keyspace,
    level: Durability,
}

impl Writer for OurWriter {
    fn put(&mut self, key: &[u8; 16], value: &[u8; VALUE_LEN]) -> Result<()> {
        Ok(self.map.put_with(key, value, self.level)?)
    }
}

/// This program, started again as a follower; killed when it is dropped.
struct Follower {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Follower {
    fn start(address: &str, dir: &Path, core: Option<usize>) -> Result<Follower> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([WORD, address])
            .arg(dir)
            .args(core.map(|core| core.to_string()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        Ok(Follower {
            input: child.stdin.take().ok_or("a pipe")?,
            output: BufReader::new(child.stdout.take().ok_or("a pipe")?),
            child,
        })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        Ok(self.input.write_all(format!("{line}\n").as_bytes())?)
    }

    fn hear(&mut self) -> Result<String> {
        let line = (&mut self.output).lines().next();
        Ok(line.ok_or("the follower ended before its time")??)
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended by itself; its directory is removed either way.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the follower's process does: `watch MS` and `wait TOKEN NS`, a line each.
pub fn follower(words: &[&str]) -> Result<()> {
    let [address, dir, core @ ..] = words else {
        return Err("an address and a directory".into());
    };
    if let [core] = core {
        pin(core.parse()?)?;
    }
    let database = options().open(Path::new(dir))?;
    let following = database.follow(address, "")?;
    let dataset = database.dataset("")?;
    let start = Instant::now();
    let map = loop {
        match database.keyspace("map") {
            Ok(map) => break map,
            Err(_) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return Err(format!("nothing came: {:?}", following.status()).into()),
        }
    };
    for line in std::io::stdin().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["watch", millis] => {
                let time = Duration::from_millis(millis.parse()?);
                let ages = ages(time, || Ok(map.show(STAMP_KEY, <[u8]>::to_vec)?))?;
                let ages: Vec<String> = ages.iter().map(u64::to_string).collect();
                println!("{}", ages.join(" "));
            }
            ["wait", token, since] => {
                let token: WriteToken = token.parse()?;
                let arrived = dataset.wait_for(&token, Arrival::Applied, PATIENCE)?;
                if arrived != Arrived::Yes {
                    return Err(format!("a write did not come: {arrived:?}").into());
                }
                println!("{}", now_ns().saturating_sub(since.parse()?));
            }
            _ => return Err(format!("what is {line}?").into()),
        }
    }
    Ok(())
}
