//! An archive in memory that fails as told: for simulations and tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{ArchiveStore, Error, Listed, Put, Result};

/// How often each fault happens, of 1,000 requests.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Faults {
    /// A request fails and does nothing.
    pub unavailable: u32,
    /// A put or a removal fails and was done.
    pub lost_answer: u32,
    /// A put fails and is done later, at some other request.
    pub late: u32,
}

/// The store. Its clones are the same one.
#[derive(Clone, Default)]
pub struct MemoryArchive(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Vec<u8>>,
    late: Vec<(String, Vec<u8>)>,
    faults: Faults,
    random: u64,
    request_count: u64,
    // After so many requests every one fails.
    dead_from: Option<u64>,
}

impl MemoryArchive {
    /// An empty store, whose faults come from a seed.
    pub fn new(seed: u64, faults: Faults) -> MemoryArchive {
        let store = MemoryArchive::default();
        store.set_faults(faults);
        store.0.lock().random = seed | 1;
        store
    }

    /// Fails otherwise from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// Lets all requests from the `n`th on fail; those before are done.
    pub fn dies_at(&self, n: Option<u64>) {
        self.0.lock().dead_from = n;
    }

    /// All objects.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.lock().objects.clone()
    }

    /// Removes an object behind everybody's back.
    pub fn lose(&self, name: &str) -> bool {
        self.0.lock().objects.remove(name).is_some()
    }

    /// Changes a byte of an object behind everybody's back.
    pub fn flip(&self, name: &str, at: usize) {
        if let Some(byte) = self
            .0
            .lock()
            .objects
            .get_mut(name)
            .and_then(|b| b.get_mut(at))
        {
            *byte ^= 1;
        }
    }
}

impl State {
    fn chance(&mut self, per_mille: u32) -> bool {
        // xorshift64*, Vigna 2016.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let roll = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        roll % 1_000 < u64::from(per_mille)
    }

    fn request(&mut self, object: &str) -> Result<()> {
        self.request_count += 1;
        if !self.late.is_empty() && self.chance(300) {
            let (name, bytes) = self.late.remove(0);
            self.objects.entry(name).or_insert(bytes);
        }
        let is_dead = self.dead_from.is_some_and(|n| self.request_count >= n);
        let unavailable = self.faults.unavailable;
        match is_dead || self.chance(unavailable) {
            true => Err(failed(object, "503, try again")),
            false => Ok(()),
        }
    }
}

fn failed(object: &str, what: &str) -> Error {
    Error::Store {
        object: object.to_owned(),
        what: what.to_owned(),
    }
}

impl ArchiveStore for MemoryArchive {
    fn put(&self, name: &str, bytes: &[u8]) -> Result<Put> {
        let state = &mut *self.0.lock();
        state.request(name)?;
        let faults = state.faults;
        if state.chance(faults.late) {
            state.late.push((name.to_owned(), bytes.to_vec()));
            return Err(failed(name, "no answer"));
        }
        let put = match state.objects.contains_key(name) {
            true => Put::Exists,
            false => {
                state.objects.insert(name.to_owned(), bytes.to_vec());
                Put::Created
            }
        };
        match state.chance(faults.lost_answer) {
            true => Err(failed(name, "no answer")),
            false => Ok(put),
        }
    }

    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut state = self.0.lock();
        state.request(name)?;
        Ok(state.objects.get(name).cloned())
    }

    fn list(&self, prefix: &str) -> Result<Vec<Listed>> {
        let mut state = self.0.lock();
        state.request(prefix)?;
        let objects = state.objects.range(prefix.to_owned()..);
        let listed = |(name, bytes): (&String, &Vec<u8>)| Listed {
            name: name.clone(),
            len: bytes.len() as u64,
        };
        Ok(objects
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(listed)
            .collect())
    }

    fn delete(&self, name: &str) -> Result<()> {
        let mut state = self.0.lock();
        state.request(name)?;
        state.objects.remove(name);
        let lost_answer = state.faults.lost_answer;
        match state.chance(lost_answer) {
            true => Err(failed(name, "no answer")),
            false => Ok(()),
        }
    }

    fn request_count(&self) -> u64 {
        self.0.lock().request_count
    }
}
