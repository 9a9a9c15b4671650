//! Records in etcd: one key for each dataset, changed by a transaction that compares its revision.
//!
//! The version of a record is its `mod_revision`. It grows with every write of the whole cluster, and
//! goes on growing over a key that was deleted: nothing is ever a version twice. 0 is no key.
//!
//! *What is unknown.* An answer that is lost says nothing, and the transaction may still be on its way
//! into the log of etcd. It is sent again with the same bytes: then the nonce in them tells whether
//! it was the first one that won. If meanwhile somebody else's record is in place, ours may have been
//! there in between, and the outcome stays an error. A later read sends an unsettled transaction once
//! more before it answers, so that what it tells stays true.
//!
//! *No lease.* A lease would have to be kept alive by writes all the time, also of idle datasets, and its
//! end would say what the ticks between the nodes say sooner: nobody waits for a lease, so there is none to
//! lose. What remains of etcd is the compare-and-set.

use std::collections::BTreeMap;

use strandline_wal::bug::planted;

use super::attempt::{Attempt, Failure, Nonces, SEND_COUNT_MAX, pause_ms};
use super::{Record, Replaced, Version, codec};
use crate::error::Result;

#[cfg(feature = "etcd")]
mod client;
#[cfg(test)]
mod tests;

#[cfg(feature = "etcd")]
pub use client::{EtcdCoordinator, EtcdOptions};

/// A value and its revision.
pub type Found = (u64, Vec<u8>);

/// How a transaction ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Swapped {
    /// The value is in place, with this revision.
    Yes(u64),
    /// The key has another revision, or there is none.
    No(Option<Found>),
}

/// What is asked of etcd. All of it is linearizable.
pub trait KeyValues {
    /// The value of a key.
    fn get(&self, key: &str) -> impl Future<Output = Result<Option<Found>, Failure>>;
    /// Sets a key if its revision is `expected`, 0 for a key that is not there.
    fn swap(
        &self,
        key: &str,
        expected: u64,
        bytes: &[u8],
    ) -> impl Future<Output = Result<Swapped, Failure>>;
    /// Waits until a key has a revision above `seen`, or for some time.
    fn wait(&self, key: &str, seen: u64, ms: u64) -> impl Future<Output = Result<(), Failure>>;
    /// Waits.
    fn pause(&self, ms: u64) -> impl Future<Output = ()>;
}

/// The records of all datasets below one prefix of a cluster.
pub struct Keys<E> {
    etcd: E,
    name: String,
    prefix: String,
    nonces: Nonces,
    /// What was sent without an answer that tells, by dataset.
    unsettled: BTreeMap<String, Attempt>,
}

impl<E: KeyValues> Keys<E> {
    /// Records below `prefix`, which ends without a slash. `name` is told in errors.
    pub fn new(etcd: E, name: &str, prefix: &str, nonces: Nonces) -> Keys<E> {
        Keys {
            etcd,
            name: name.to_owned(),
            prefix: prefix.to_owned(),
            nonces,
            unsettled: BTreeMap::new(),
        }
    }

    /// As [`super::Coordinator::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&mut self, dataset: &str) -> Result<Option<(Version, Record)>> {
        let mut found = self.get(dataset).await?;
        if let Some(attempt) = self.unsettled.get(dataset).cloned() {
            let revision = found.as_ref().map_or(0, |found| found.0);
            if attempt.expected.0 == revision && !planted("etcd.unsettled") {
                // Whichever record is in place afterwards, this one comes no more.
                self.send(dataset, &attempt).await?;
                found = self.get(dataset).await?;
            }
            self.unsettled.remove(dataset);
        }
        let Some((revision, bytes)) = found else {
            return Ok(None);
        };
        let (_, record) = codec::decode(&bytes)?;
        Ok(Some((Version(revision), record)))
    }

    /// As [`super::Coordinator::replace`].
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
        // Before anything is sent: who drops this future at its deadline knows the outcome no better.
        self.unsettled.insert(dataset.to_owned(), attempt.clone());
        let replaced = self.send(dataset, &attempt).await?;
        self.unsettled.remove(dataset);
        Ok(replaced)
    }

    /// As [`super::Coordinator::watch`].
    ///
    /// # Errors
    /// As there.
    pub async fn watch(&mut self, dataset: &str, seen: Version, wait_ms: u64) -> Result<()> {
        let waited = self.etcd.wait(&self.key(dataset), seen.0, wait_ms).await;
        waited.map_err(|failure| failure.error(&self.name))
    }

    /// Sends an attempt until its outcome is known.
    async fn send(&self, dataset: &str, attempt: &Attempt) -> Result<Replaced> {
        let key = self.key(dataset);
        let mut failure = None;
        for n in 0..SEND_COUNT_MAX {
            if n > 0 {
                self.etcd.pause(pause_ms(n)).await;
            }
            let swapped = self.etcd.swap(&key, attempt.expected.0, &attempt.bytes);
            match swapped.await {
                Ok(Swapped::Yes(revision)) => return Ok(Replaced::Done(Version(revision))),
                Ok(Swapped::No(Some((revision, bytes)))) if is_of(attempt, &bytes) => {
                    return Ok(Replaced::Done(Version(revision)));
                }
                // The first answer there is: nothing was sent that could have been in between.
                Ok(Swapped::No(_)) if failure.is_none() || planted("etcd.between") => {
                    return Ok(Replaced::Conflict);
                }
                Ok(Swapped::No(_)) => break,
                Err(error) => failure = Some(error),
            }
        }
        let failure = failure.unwrap_or(Failure::new("it did not answer"));
        Err(failure.error(&self.name))
    }

    async fn get(&self, dataset: &str) -> Result<Option<Found>> {
        let found = self.etcd.get(&self.key(dataset)).await;
        found.map_err(|failure| failure.error(&self.name))
    }

    fn key(&self, dataset: &str) -> String {
        format!("{}/{dataset}", self.prefix)
    }
}

/// Whether bytes are those of an attempt. Bytes that are none are somebody else's.
fn is_of(attempt: &Attempt, bytes: &[u8]) -> bool {
    let nonce = codec::decode(bytes).map(|(nonce, _)| nonce);
    nonce.is_ok_and(|nonce| nonce == attempt.nonce) || planted("etcd.nonce")
}
