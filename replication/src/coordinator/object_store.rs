//! Records in an object store, as objects that are only ever created: the next number belongs to whoever
//! creates it.
//!
//! Of each dataset there are `state/{n:020}`, the record of version n, and `boundary/{k:020}`, which names
//! the first state that stays. Numbers have no gaps: n + 1 is created only by who saw n.
//!
//! *Who won.* A create that is answered with "exists" or with any error may have been ours: a retry in
//! the network, a lost answer, a conflict of two creates of which none was (S3's 409). Only the object
//! tells, by the nonce in it. If there is none yet, the same bytes are sent again. What is still unknown
//! after that is an error, and the next read sends it once more before it answers: until then the
//! first request may still arrive, however long ago it was given up.
//!
//! *What is deleted.* States below a boundary, after its object exists; boundaries never, they are few.
//! A late create may bring a deleted number back. So nothing that was seen of states counts before
//! the next boundary was looked for and not found: whoever deletes a state creates that first. The
//! revived state is recognised by everybody, its creator too, as it is below the boundary.
//!
//! *What is trusted.* A get that begins after a create or delete was answered sees it; of two creates of
//! one name one wins. [`StateObjects::probe`] tries both. Lists, time stamps, tags and overwrites are
//! not used: the newest number is found by gets, in steps that double and halve.

use std::collections::BTreeMap;

use strandline_wal::bug::planted;

use super::attempt::{Attempt, Failure, Nonces, SEND_COUNT_MAX, all, pause_ms};
use super::codec::{self, Nonce};
use super::{Record, Replaced, Version};
use crate::error::{Error, Result};

#[cfg(feature = "object-store")]
mod client;
#[cfg(test)]
mod tests;

#[cfg(feature = "object-store")]
pub use client::{ObjectStoreCoordinator, ObjectStoreOptions};

/// States that stay behind a boundary, the newest one not counted.
pub const KEPT_COUNT: u64 = 16;
/// States that there are when a boundary is made.
pub const STATE_COUNT_MAX: u64 = 64;
/// How often a watch looks.
pub const WATCH_EVERY_MS: u64 = 1_000;
/// Creates of one name at once when a store is probed.
pub const RACER_COUNT: usize = 8;
/// Races of a probe.
pub const RACE_COUNT: usize = 4;
/// Length of the objects that race: long enough that their bodies are on the way together.
pub const RACER_LEN: usize = 64 << 10;
/// Boundaries that may appear while one read goes on.
const ROUND_COUNT_MAX: u32 = 8;

/// How a create ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Created {
    /// The object is there with these bytes.
    Yes,
    /// The store says that there was one already. It may be wrong.
    Exists,
}

/// What is asked of a store.
pub trait Objects {
    /// The object of that name.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Vec<u8>>, Failure>>;
    /// Makes an object where there is none of that name.
    fn create(&self, key: &str, bytes: &[u8]) -> impl Future<Output = Result<Created, Failure>>;
    /// Removes an object; that there is none is no failure.
    fn delete(&self, key: &str) -> impl Future<Output = Result<(), Failure>>;
    /// Waits.
    fn pause(&self, ms: u64) -> impl Future<Output = ()>;
}

/// The records of all datasets below one prefix of a store.
pub struct StateObjects<S> {
    store: S,
    name: String,
    prefix: String,
    nonces: Nonces,
    known: BTreeMap<String, Known>,
    kept_count: u64,
    state_count_max: u64,
}

/// What one handle knows of a dataset. All of it was true once, and numbers only rise.
#[derive(Clone, Debug)]
struct Known {
    // Invariant: `first` is what boundary number `boundary` names; 1 where there is none, number 0.
    boundary: u64,
    first: u64,
    // Invariant: `record` is the state `newest`; there is none where that is 0.
    newest: u64,
    record: Option<Record>,
    /// What was sent without an answer that tells.
    unsettled: Option<Attempt>,
}

impl Default for Known {
    fn default() -> Known {
        Known {
            boundary: 0,
            first: 1,
            newest: 0,
            record: None,
            unsettled: None,
        }
    }
}

#[derive(Clone, Copy)]
enum Kind {
    State,
    Boundary,
}

impl<S: Objects> StateObjects<S> {
    /// Records below `prefix`, which ends without a slash. `name` is told in errors.
    pub fn new(store: S, name: &str, prefix: &str, nonces: Nonces) -> StateObjects<S> {
        StateObjects {
            store,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            nonces,
            known: BTreeMap::new(),
            kept_count: KEPT_COUNT,
            state_count_max: STATE_COUNT_MAX,
        }
    }

    /// As [`super::Coordinator::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        self.refresh(dataset).await?;
        let known = self.known(dataset);
        if let Some(attempt) = known.unsettled.clone() {
            if attempt.expected.0 == known.newest && !planted("objects.unsettled") {
                self.send(dataset, &attempt).await?;
                self.refresh(dataset).await?;
            }
            self.known(dataset).unsettled = None;
        }
        let known = self.known(dataset);
        let record = known.record.clone();
        Ok(record.map(|record| (Version(known.newest), record)))
    }

    /// As [`super::Coordinator::replace`]. Call [`Self::prune`] when it was done.
    ///
    /// # Errors
    /// As there.
    pub async fn replace(
        &mut self,
        dataset: &str,
        expected: Version,
        record: &Record,
    ) -> Result<Replaced> {
        let attempt = Attempt::new(expected, (self.nonces)(), record)?;
        let is_known = self.known.contains_key(dataset);
        if !is_known || self.known(dataset).newest < expected.0 {
            self.refresh(dataset).await?;
        }
        if self.known(dataset).newest != expected.0 && !planted("objects.expected") {
            return Ok(Replaced::Conflict);
        }
        // Before anything is sent: who drops this future at its deadline knows the outcome no better.
        self.known(dataset).unsettled = Some(attempt.clone());
        let replaced = self.send(dataset, &attempt).await?;
        let known = self.known(dataset);
        known.unsettled = None;
        if let Replaced::Done(version) = replaced {
            known.newest = version.0;
            known.record = Some(record.clone());
        }
        Ok(replaced)
    }

    /// Waits until there is a state above `seen`.
    ///
    /// # Errors
    /// As [`super::Coordinator::watch`].
    pub async fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        let key = self.key(dataset, Kind::State, seen.0 + 1);
        let mut left_ms = wait_ms;
        while self.get(&key).await?.is_none() && left_ms > 0 {
            let pause_ms = left_ms.min(WATCH_EVERY_MS);
            self.store.pause(pause_ms).await;
            left_ms -= pause_ms;
        }
        Ok(())
    }

    /// Deletes old states once there are many. What fails, or is given up, is left for ever below the
    /// boundary: some objects of a few hundred bytes.
    pub async fn prune(&mut self, dataset: &str) {
        let kept_count = self.kept_count;
        let known = self.known(dataset).clone();
        if known.newest < known.first + self.state_count_max {
            return;
        }
        let first = known.newest - kept_count;
        let key = self.key(dataset, Kind::Boundary, known.boundary + 1);
        let is_skipped = planted("objects.boundary");
        if !is_skipped {
            // Whoever created it: what it names is what may go.
            let _ = self
                .store
                .create(&key, &codec::encode_boundary(first))
                .await;
        }
        let first = match self.store.get(&key).await {
            Ok(Some(bytes)) => codec::decode_boundary(&bytes).unwrap_or(known.first),
            _ if is_skipped => first,
            _ => return,
        };
        let keys: Vec<_> = (known.first..first)
            .map(|number| self.key(dataset, Kind::State, number))
            .collect();
        all(keys.iter().map(|key| self.store.delete(key))).await;
    }

    /// Whether the store does what this needs, tried with objects of names that nobody else has.
    ///
    /// A store that looks for the object and then writes is caught by a race: its creates of one name are
    /// on the way at once, with bodies that take longer than the look. One with a window of a few
    /// instructions is not: s3s-fs is refused every time, the threaded server of moto, of whose races one in
    /// some hundreds has two winners, is not. A probe finds a store unsafe; it never proves it safe.
    ///
    /// # Errors
    /// [`Error::CoordinatorUnsafe`] with what it did, [`Error::Coordinator`] where it could not be asked.
    pub async fn probe(&mut self) -> Result<()> {
        let nonce = (self.nonces)();
        let name: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        let keys: Vec<_> = (0..=RACE_COUNT)
            .map(|n| format!("{}/probe/{name}-{n}", self.prefix))
            .collect();
        let probed = self.probe_at(&keys).await;
        for key in &keys {
            let _ = self.store.delete(key).await;
        }
        probed
    }

    async fn probe_at(&self, keys: &[String]) -> Result<()> {
        let (key, races) = keys.split_first().expect("there is one more than races");
        if self.get(key).await?.is_some() {
            return Err(self.is_unsafe("it has an object of a random name"));
        }
        let create = async |bytes: &[u8]| {
            let created = self.store.create(key, bytes).await;
            created.map_err(|failure| self.failed(failure))
        };
        let first = create(b"first").await?;
        let found = self.get(key).await?;
        if found.is_none() && first == Created::Exists {
            return Err(Failure::new("it told of a conflict that nobody won").error(&self.name));
        }
        if found.as_deref() != Some(b"first") {
            return Err(self.is_unsafe("a get does not see what was created before it"));
        }
        let second = create(b"second").await?;
        let is_first = self.get(key).await?.as_deref() == Some(b"first");
        if (second == Created::Yes || !is_first) && !planted("objects.probe") {
            return Err(self.is_unsafe("it creates an object that exists"));
        }
        for key in races {
            self.race(key).await?;
        }
        Ok(())
    }

    /// Creates one object several times at once: one is the first, and stays.
    async fn race(&self, key: &str) -> Result<()> {
        let bodies: Vec<_> = (0..RACER_COUNT as u8).map(|n| vec![n; RACER_LEN]).collect();
        let creates = bodies.iter().map(|body| self.store.create(key, body));
        let created = all(creates).await;
        let is_winner = |n: &usize| created[*n] == Ok(Created::Yes);
        let winners: Vec<_> = (0..RACER_COUNT).filter(is_winner).collect();
        if winners.len() > 1 && !planted("objects.race") {
            let what = format!(
                "{} of {RACER_COUNT} creates of one object won",
                winners.len()
            );
            return Err(self.is_unsafe(&what));
        }
        let found = self.get(key).await?;
        let place = bodies.iter().position(|body| found.as_ref() == Some(body));
        match (place, winners.first()) {
            (Some(place), Some(winner)) if place != *winner => {
                Err(self.is_unsafe("the object of a create that won was replaced"))
            }
            // Without a winner an answer was lost, or each was told of a conflict.
            (Some(_), _) | (None, None) => Ok(()),
            (None, Some(_)) => Err(self.is_unsafe("an object that was created is not there")),
        }
    }

    /// Sends an attempt until it is known which record has its number.
    async fn send(&mut self, dataset: &str, attempt: &Attempt) -> Result<Replaced> {
        let number = attempt.expected.0 + 1;
        let key = self.key(dataset, Kind::State, number);
        let mut failure = Failure::new("");
        for n in 0..SEND_COUNT_MAX {
            if n > 0 {
                self.store.pause(pause_ms(n)).await;
            }
            let is_ours = match self.store.create(&key, &attempt.bytes).await {
                Ok(Created::Yes) => true,
                Ok(Created::Exists) if planted("objects.exists") => false,
                // Only the object tells.
                created => match self.owner(&key, number).await {
                    Ok(Some(nonce)) => nonce == attempt.nonce || planted("objects.nonce"),
                    Ok(None) => {
                        let told = Failure::new("it told of a conflict that nobody won");
                        failure = created.err().unwrap_or(told);
                        continue;
                    }
                    Err(error) => {
                        failure = error;
                        continue;
                    }
                },
            };
            self.refresh_boundary(dataset).await?;
            if self.known(dataset).first > number && !planted("objects.revived") {
                // Nothing may be done about it but this: it is below the boundary.
                let _ = self.store.delete(&key).await;
                failure = Failure::new("other records came after it");
                break;
            }
            return Ok(match is_ours {
                true => Replaced::Done(Version(number)),
                false => Replaced::Conflict,
            });
        }
        Err(failure.error(&self.name))
    }

    /// Who wrote a state.
    async fn owner(&self, key: &str, number: u64) -> Result<Option<Nonce>, Failure> {
        let Some(bytes) = self.store.get(key).await? else {
            return Ok(None);
        };
        match codec::decode(&bytes) {
            Ok((nonce, _)) => Ok(Some(nonce)),
            Err(error) => Err(Failure::new(format!("state {number}: {error}"))),
        }
    }

    /// Finds the newest state.
    async fn refresh(&mut self, dataset: &str) -> Result<()> {
        for _ in 0..ROUND_COUNT_MAX {
            let known = self.known(dataset).clone();
            let below = known.newest.max(known.first - 1);
            let newest = self.newest(dataset, Kind::State, below).await?;
            // What was seen counts only if nothing at or above `first` was deleted meanwhile.
            let is_settled = !self.refresh_boundary(dataset).await?;
            if !is_settled && !planted("objects.deleted") {
                continue;
            }
            match newest {
                Some((number, bytes)) => {
                    let (_, record) = codec::decode(&bytes)?;
                    let known = self.known(dataset);
                    known.newest = number;
                    known.record = Some(record);
                }
                None if known.newest < known.first && known.boundary > 0 => {
                    return Err(Error::BadRecord {
                        what: format!("state {} of {dataset} is gone", known.first),
                    });
                }
                None => {}
            }
            return Ok(());
        }
        Err(Failure::new("it changes too fast to be read").error(&self.name))
    }

    /// Finds the newest boundary; whether there is a newer one than was known.
    async fn refresh_boundary(&mut self, dataset: &str) -> Result<bool> {
        let below = self.known(dataset).boundary;
        let Some((number, bytes)) = self.newest(dataset, Kind::Boundary, below).await? else {
            return Ok(false);
        };
        let first = codec::decode_boundary(&bytes)?;
        let known = self.known(dataset);
        known.boundary = number;
        known.first = known.first.max(first);
        Ok(true)
    }

    /// The highest number above `below`, which is there, and its bytes. Steps that double find one that
    /// is not there, halves lead back.
    async fn newest(
        &self,
        dataset: &str,
        kind: Kind,
        below: u64,
    ) -> Result<Option<(u64, Vec<u8>)>> {
        let (mut there, mut missing) = (below, None);
        let mut newest = None;
        let mut step = 1;
        while missing != Some(there + 1) {
            let number = match missing {
                None => there + step,
                Some(missing) => there + (missing - there) / 2,
            };
            match self.get(&self.key(dataset, kind, number)).await? {
                Some(bytes) => {
                    newest = Some((number, bytes));
                    there = number;
                    step *= 2;
                }
                None => missing = Some(number),
            }
        }
        Ok(newest)
    }

    fn known(&mut self, dataset: &str) -> &mut Known {
        if !self.known.contains_key(dataset) {
            self.known.insert(dataset.to_owned(), Known::default());
        }
        self.known.get_mut(dataset).expect("it was just put there")
    }

    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let found = self.store.get(key).await;
        found.map_err(|failure| self.failed(failure))
    }

    fn key(&self, dataset: &str, kind: Kind, number: u64) -> String {
        let kind = match kind {
            Kind::State => "state",
            Kind::Boundary => "boundary",
        };
        format!("{}/{}/{kind}/{number:020}", self.prefix, part(dataset))
    }

    fn failed(&self, failure: Failure) -> Error {
        match failure.is_unsupported {
            true => self.is_unsafe(&failure.what),
            false => failure.error(&self.name),
        }
    }

    fn is_unsafe(&self, what: &str) -> Error {
        Error::CoordinatorUnsafe {
            name: self.name.clone(),
            what: what.to_owned(),
        }
    }
}

/// A dataset's name as one part of a path, and no other's: what some store gives a meaning is written as
/// `=` and two hex digits.
fn part(dataset: &str) -> String {
    let mut part = String::with_capacity(dataset.len());
    for byte in dataset.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => part.push(char::from(byte)),
            _ => part.push_str(&format!("={byte:02x}")),
        }
    }
    part
}
