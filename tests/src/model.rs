//! What a database must show: a map per keyspace, and the commits that made it.
//!
//! The model keeps the state that is certain, the commits behind it in their order, and up to which
//! of them the death of the process and the loss of power may not reach. After either, the database
//! must show the certain state with a prefix of the commits: every kept one, and none by half. What
//! was found then is the certain state of the next life.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The bytes of a value.
pub type Bytes = Arc<[u8]>;

/// Keys and values of every keyspace at one moment.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// By number of the keyspace in the test's list.
    pub maps: Vec<BTreeMap<Vec<u8>, Bytes>>,
    /// Equal for equal states, whatever their history: a sum over their entries.
    print: u64,
}

/// A change of one key.
#[derive(Clone, Debug)]
pub struct Change {
    /// Number of the keyspace in the test's list.
    pub keyspace: usize,
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; `None` removes it.
    pub value: Option<Bytes>,
}

impl State {
    /// No keys in so many keyspaces.
    pub fn empty(keyspace_count: usize) -> State {
        State {
            maps: vec![BTreeMap::new(); keyspace_count],
            print: 0,
        }
    }

    /// Makes one change.
    pub fn apply(&mut self, change: &Change) {
        let map = &mut self.maps[change.keyspace];
        let before = match &change.value {
            Some(value) => map.insert(change.key.clone(), Arc::clone(value)),
            None => map.remove(&change.key),
        };
        let print = |value: &Bytes| entry_print(change.keyspace, &change.key, value);
        let (old, new) = (before.as_ref().map(print), change.value.as_ref().map(print));
        self.print = self
            .print
            .wrapping_sub(old.unwrap_or(0))
            .wrapping_add(new.unwrap_or(0));
    }

    /// Adds what a scan found.
    pub fn put(&mut self, keyspace: usize, key: Vec<u8>, value: Bytes) {
        self.apply(&Change {
            keyspace,
            key,
            value: Some(value),
        });
    }

    /// The value of a key.
    pub fn get(&self, keyspace: usize, key: &[u8]) -> Option<&Bytes> {
        self.maps[keyspace].get(key)
    }

    /// Number of keys in all keyspaces.
    pub fn len(&self) -> usize {
        self.maps.iter().map(BTreeMap::len).sum()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In which keys two states differ, for the message of a failure.
    pub fn difference(&self, other: &State) -> String {
        let mut text = String::new();
        let mut line = |keyspace, key: &[u8], ours: Option<&Bytes>, theirs: Option<&Bytes>| {
            if ours != theirs && text.len() < 2_000 {
                let show = |value: Option<&Bytes>| value.map_or("nothing".to_owned(), |v| brief(v));
                let (ours, theirs) = (show(ours), show(theirs));
                let key = brief(key);
                writeln!(text, "  keyspace {keyspace} key {key}: {ours} / {theirs}")
                    .expect("writing to a string does not fail");
            }
        };
        for (n, (ours, theirs)) in self.maps.iter().zip(&other.maps).enumerate() {
            for (key, value) in ours {
                line(n, key, Some(value), theirs.get(key));
            }
            for (key, value) in theirs {
                if !ours.contains_key(key) {
                    line(n, key, None, Some(value));
                }
            }
        }
        text
    }
}

fn entry_print(keyspace: usize, key: &[u8], value: &[u8]) -> u64 {
    let key = xxh3_64_with_seed(key, keyspace as u64);
    xxh3_64_with_seed(value, key) | 1
}

/// The length and the first bytes, which tell values of this harness apart.
pub fn brief(bytes: &[u8]) -> String {
    let head: String = bytes.iter().take(10).map(|b| format!("{b:02x}")).collect();
    format!("[{}] {head}", bytes.len())
}

/// How a life of the database ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// It was closed: everything acknowledged stays.
    Close,
    /// The process died: everything acknowledged stays.
    Kill,
    /// The machine died: what was acknowledged as durable stays.
    Power,
}

/// What a write has survived when it was acknowledged.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kept {
    /// It was not acknowledged: it may be there or not after the next open.
    Unknown,
    /// The death of the process.
    Kill,
    /// The loss of power.
    Power,
}

/// The reference.
#[derive(Clone, Debug)]
pub struct Model {
    /// The state at the last open.
    base: State,
    /// All commits since, unknown ones included.
    commits: Vec<Commit>,
    /// The state with all of them.
    tip: State,
    /// Number of commits that survive the death of the process.
    kept_kill: usize,
    /// Number of commits that survive the loss of power.
    kept_power: usize,
}

#[derive(Clone, Debug)]
struct Commit {
    changes: Vec<Change>,
    print: u64,
}

impl Model {
    /// An empty database.
    pub fn new(keyspace_count: usize) -> Model {
        Model::of(State::empty(keyspace_count))
    }

    fn of(base: State) -> Model {
        Model {
            tip: base.clone(),
            base,
            commits: Vec::new(),
            kept_kill: 0,
            kept_power: 0,
        }
    }

    /// What readers see, as long as no write was left unknown.
    pub fn now(&self) -> &State {
        &self.tip
    }

    /// Whether all writes since the last open were acknowledged.
    pub fn is_certain(&self) -> bool {
        self.kept_kill == self.commits.len()
    }

    /// Number of commits since the last open.
    pub fn commit_count(&self) -> usize {
        self.commits.len()
    }

    /// Adds a batch.
    pub fn commit(&mut self, changes: Vec<Change>, kept: Kept) {
        for change in &changes {
            self.tip.apply(change);
        }
        let print = self.tip.print;
        self.commits.push(Commit { changes, print });
        if kept != Kept::Unknown {
            self.kept_kill = self.commits.len();
        }
        if kept == Kept::Power {
            self.kept_power = self.commits.len();
        }
    }

    /// Everything that was acknowledged at any level is durable now.
    pub fn settle(&mut self) {
        self.kept_power = self.kept_kill;
    }

    /// Judges the state that an open found after the end of a life, and makes it the certain one.
    /// Returns how many of the commits it has.
    ///
    /// # Errors
    /// A text that tells what is lost, half there, or out of nowhere.
    pub fn recover(&mut self, found: &State, end: End) -> Result<usize, String> {
        let kept = match end {
            End::Close | End::Kill => self.kept_kill,
            End::Power => self.kept_power,
        };
        let prefix = (kept..=self.commits.len()).find(|n| self.print_at(*n) == found.print);
        let Some(prefix) = prefix.filter(|n| self.state_at(*n) == *found) else {
            return Err(self.judge(found, kept, end));
        };
        *self = Model::of(found.clone());
        Ok(prefix)
    }

    fn print_at(&self, count: usize) -> u64 {
        count
            .checked_sub(1)
            .map_or(self.base.print, |last| self.commits[last].print)
    }

    /// The state with the first `count` commits.
    pub fn state_at(&self, count: usize) -> State {
        let mut state = self.base.clone();
        for change in self.commits[..count].iter().flat_map(|c| &c.changes) {
            state.apply(change);
        }
        state
    }

    fn judge(&self, found: &State, kept: usize, end: End) -> String {
        let all = self.commits.len();
        if let Some(n) = (0..kept).find(|n| self.state_at(*n) == *found) {
            return format!(
                "after {end:?}: acknowledged writes are lost: the state has {n} of {all} commits, {kept} were acknowledged"
            );
        }
        let nearest = (0..=all)
            .min_by_key(|n| distance(&self.state_at(*n), found))
            .expect("there is at least the base");
        let difference = self.state_at(nearest).difference(found);
        format!(
            "after {end:?}: the state is no prefix of the {all} commits, {kept} of which were acknowledged; the nearest is that of {nearest} (expected / found):\n{difference}"
        )
    }
}

/// In how many keys two states differ.
fn distance(a: &State, b: &State) -> usize {
    let mut count = 0;
    for (ours, theirs) in a.maps.iter().zip(&b.maps) {
        count += ours
            .iter()
            .filter(|(key, v)| theirs.get(*key) != Some(v))
            .count();
        count += theirs.keys().filter(|key| !ours.contains_key(*key)).count();
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, value: &str) -> Vec<Change> {
        vec![Change {
            keyspace: 0,
            key: key.into(),
            value: Some(value.as_bytes().into()),
        }]
    }

    fn state(entries: &[(&str, &str)]) -> State {
        let mut state = State::empty(1);
        for (key, value) in entries {
            state.put(0, (*key).into(), value.as_bytes().into());
        }
        state
    }

    #[test]
    fn only_prefixes_that_hold_what_was_acknowledged_pass() {
        let mut model = Model::new(1);
        model.commit(put("a", "1"), Kept::Power);
        model.commit(put("b", "2"), Kept::Kill);
        model.commit(put("a", "3"), Kept::Unknown);
        let check = |entries: &[(&str, &str)], end| model.clone().recover(&state(entries), end);
        assert_eq!(check(&[("a", "1")], End::Power), Ok(1));
        assert_eq!(check(&[("a", "1"), ("b", "2")], End::Power), Ok(2));
        assert_eq!(check(&[("a", "3"), ("b", "2")], End::Power), Ok(3));
        assert!(check(&[], End::Power).unwrap_err().contains("lost"));
        assert!(
            check(&[("a", "1")], End::Kill)
                .unwrap_err()
                .contains("lost")
        );
        let hole = check(&[("a", "3")], End::Power).unwrap_err();
        assert!(hole.contains("no prefix"), "{hole}");
        assert!(check(&[("a", "9"), ("b", "2")], End::Power).is_err());
    }

    #[test]
    fn the_print_tells_states_and_not_histories() {
        let mut a = state(&[("x", "1"), ("y", "2")]);
        let b = state(&[("y", "2"), ("x", "1")]);
        assert_eq!(a.print, b.print);
        a.apply(&Change {
            keyspace: 0,
            key: "x".into(),
            value: None,
        });
        assert_eq!(a.print, state(&[("y", "2")]).print);
        assert_ne!(a.print, b.print);
    }
}
