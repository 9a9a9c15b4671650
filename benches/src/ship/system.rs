//! What the benchmark wants of a leader with one follower.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Bytes of a value.
pub const VALUE_LEN: usize = 100;
/// The key whose value says when it was written.
pub const STAMP_KEY: [u8; 16] = *b"stamp stamp.....";

/// What a write has survived when it is acknowledged; each is synced on the leader.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Level {
    /// Nothing of the follower.
    Async,
    /// The follower has received it.
    Received,
    /// The follower has synced it.
    Durable,
    /// The follower's readers see it.
    Applied,
}

impl Level {
    pub const ALL: [Level; 4] = [
        Level::Async,
        Level::Received,
        Level::Durable,
        Level::Applied,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Level::Async => "asynchronous",
            Level::Received => "received",
            Level::Durable => "durable",
            Level::Applied => "applied",
        }
    }
}

/// A leader with one follower, both running.
pub trait System: Sync {
    /// A session of one client; `None` where there is no such level.
    fn writer(&self, level: Level) -> Result<Option<Box<dyn Writer>>>;

    /// For so long, what the follower's readers see of [`STAMP_KEY`]: of each value that they see first the
    /// nanoseconds since it was stamped.
    fn watch(&self, time: Duration) -> Result<Vec<u64>>;
}

pub trait Writer: Send {
    /// Returns once the write is acknowledged at the writer's level.
    fn put(&mut self, key: &[u8; 16], value: &[u8; VALUE_LEN]) -> Result<()>;
}

/// Nanoseconds of a clock that all processes of the machine share.
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A value that says when it was made.
pub fn stamp() -> [u8; VALUE_LEN] {
    let mut value = [0x5a; VALUE_LEN];
    value[..8].copy_from_slice(&now_ns().to_le_bytes());
    value
}

/// Reads a stamp over and over; of each that it did not see before, its age.
pub fn ages(time: Duration, mut read: impl FnMut() -> Result<Option<Vec<u8>>>) -> Result<Vec<u64>> {
    let (mut ages, mut last) = (Vec::new(), 0);
    let start = Instant::now();
    while start.elapsed() < time {
        let Some(value) = read()? else { continue };
        let now = now_ns();
        let made = value.first_chunk().copied().map(u64::from_le_bytes);
        let made = made.ok_or("a stamp of eight bytes")?;
        // The first may be of a time when nobody looked.
        if last != 0 && made != last {
            ages.push(now.saturating_sub(made));
        }
        last = made;
    }
    Ok(ages)
}
