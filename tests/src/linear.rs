//! Whether what clients saw could have come from one copy of the data, used by one client at a time.
//!
//! A history is a set of calls on a few keys, each with the moments of its begin and its end. It is
//! *linearizable* where every call can be given one moment between the two so that, done in this
//! order, each read returns what was written last. A call may write or read several keys at once, as
//! batches and snapshots do; for those the same word means strict serializability. A write that ended
//! in an error or never ended is *unknown*: it happens at any moment after its begin, or never.
//!
//! The search is the one of Wing and Gong ("Testing and verifying concurrent objects", 1993): take a
//! call that no waiting call must precede, do it, go on, step back where nothing fits. Where the same
//! calls led to the same state before, it steps back at once (Lowe, "Testing for linearizability",
//! 2017). A second checker that shares nothing with it and tries every order is in the tests.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;

pub mod threads;

/// The content of one key; `None` where it is absent. Writes of one history have different values.
pub type Content = Option<u64>;

/// One call of a client.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Call {
    /// Who made it; only for messages.
    pub client: usize,
    /// When it began.
    pub began: u64,
    /// When it ended; `None` where what became of it is unknown.
    pub ended: Option<u64>,
    /// What it read of which key, all at one moment, before it wrote.
    pub reads: Vec<(usize, Content)>,
    /// What it wrote to which key, all at one moment.
    pub writes: Vec<(usize, Content)>,
}

impl Call {
    /// A read of one key.
    pub fn read(client: usize, (began, ended): (u64, u64), key: usize, found: Content) -> Call {
        Call {
            client,
            began,
            ended: Some(ended),
            reads: vec![(key, found)],
            writes: Vec::new(),
        }
    }

    /// A write of one key.
    pub fn write(client: usize, began: u64, ended: Option<u64>, key: usize, to: Content) -> Call {
        Call {
            client,
            began,
            ended,
            reads: Vec::new(),
            writes: vec![(key, to)],
        }
    }

    /// Whether it wrote that a key is absent.
    pub fn removes(&self) -> bool {
        self.writes.iter().any(|(_, to)| to.is_none())
    }

    fn keys(&self) -> impl Iterator<Item = usize> {
        self.reads.iter().chain(&self.writes).map(|(key, _)| *key)
    }

    /// Does the call, unless its reads found something else than `state` has.
    fn apply(&self, state: &BTreeMap<usize, u64>) -> Option<BTreeMap<usize, u64>> {
        let fits = |(key, found): &(usize, Content)| state.get(key).copied() == *found;
        if !self.reads.iter().all(fits) {
            return None;
        }
        let mut state = state.clone();
        for (key, to) in &self.writes {
            match to {
                Some(value) => state.insert(*key, *value),
                None => state.remove(key),
            };
        }
        Some(state)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.ended.map_or("?".to_owned(), |at| at.to_string());
        write!(f, "{:>6} to {ended:>6} client {}", self.began, self.client)?;
        for (verb, of) in [("read", &self.reads), ("wrote", &self.writes)] {
            for (key, content) in of {
                match content {
                    Some(value) => write!(f, " {verb} k{key} = {value}")?,
                    None => write!(f, " {verb} k{key} absent")?,
                }
            }
        }
        Ok(())
    }
}

/// A history that no single copy could have given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// All calls that were looked at.
    pub calls: Vec<Call>,
    /// The longest order that was found.
    pub order: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "no order of these calls explains what they returned:")?;
        let order: BTreeMap<usize, usize> = self
            .order
            .iter()
            .enumerate()
            .map(|(n, c)| (*c, n))
            .collect();
        for (n, call) in self.calls.iter().enumerate() {
            match order.get(&n) {
                Some(at) => writeln!(f, "  #{at:<3} {call}")?,
                None => writeln!(f, "  -    {call}")?,
            }
        }
        write!(f, "(# is the place in the longest order that was found)")
    }
}

/// Most states that one search may visit: beyond it a history is too tangled to be judged, which is a
/// fault of the test that made it.
pub const STATE_COUNT_MAX: usize = 4_000_000;

/// Judges a history that began with every key absent. Returns how many states were visited.
///
/// # Errors
/// The history and the longest order of it that makes sense.
///
/// # Panics
/// Where a call ended before it began, and after [`STATE_COUNT_MAX`] states.
pub fn check(history: &[Call]) -> Result<usize, Violation> {
    let mut calls = relevant(history);
    calls.sort_by_key(|call| (call.began, call.ended.unwrap_or(u64::MAX)));
    let mut state_count = 0;
    for part in apart(&calls) {
        state_count += Search::new(&part).run()?;
    }
    Ok(state_count)
}

/// Calls on keys that no call joins are histories of their own: where each has an order, all have one
/// together (Herlihy and Wing, "Linearizability: a correctness condition for concurrent objects", 1990).
fn apart(calls: &[Call]) -> Vec<Vec<Call>> {
    // Per key, the least one that it is joined to.
    let mut roots: BTreeMap<usize, usize> = BTreeMap::new();
    for call in calls {
        let keys: BTreeSet<usize> = call.keys().collect();
        let joined: BTreeSet<usize> = keys
            .iter()
            .map(|key| roots.get(key).copied().unwrap_or(*key))
            .collect();
        let Some(root) = joined.first().copied() else {
            continue;
        };
        roots.extend(keys.into_iter().map(|key| (key, root)));
        for of in roots.values_mut().filter(|of| joined.contains(of)) {
            *of = root;
        }
    }
    let mut parts: BTreeMap<usize, Vec<Call>> = BTreeMap::new();
    for call in calls {
        if let Some(key) = call.keys().next() {
            parts.entry(roots[&key]).or_default().push(call.clone());
        }
    }
    parts.into_values().collect()
}

/// Leaves out unknown writes of what nobody ever read: they may as well never have happened, because
/// between such a write and the next one of its keys no read has a place.
fn relevant(history: &[Call]) -> Vec<Call> {
    let read: BTreeSet<(usize, Content)> = history
        .iter()
        .flat_map(|call| call.reads.iter().copied())
        .collect();
    let matters =
        |call: &&Call| call.ended.is_some() || call.writes.iter().any(|write| read.contains(write));
    history.iter().filter(matters).cloned().collect()
}

/// A begin or an end, in the order of time; a linked list, so that calls are taken out and put back
/// in no time.
struct Moment {
    call: usize,
    is_end: bool,
    previous: usize,
    next: usize,
}

struct Search<'a> {
    calls: &'a [Call],
    /// The first one stands before all moments, the last one behind them.
    moments: Vec<Moment>,
    /// Per call, where its begin and its end stand.
    places: Vec<(usize, Option<usize>)>,
    /// Ended calls that have no place in the order yet.
    missing_count: usize,
    /// A bit for each call in the order.
    done: Vec<u64>,
    seen: HashSet<(Vec<u64>, BTreeMap<usize, u64>)>,
    order: Vec<usize>,
    longest: Vec<usize>,
}

const HEAD: usize = 0;

impl<'a> Search<'a> {
    fn new(calls: &'a [Call]) -> Search<'a> {
        let mut times = Vec::new();
        for (n, call) in calls.iter().enumerate() {
            // Begins stand before ends of the same moment: such calls overlap.
            times.push((call.began, false, n));
            if let Some(ended) = call.ended {
                assert!(ended >= call.began, "a call ended before it began: {call}");
                times.push((ended, true, n));
            }
        }
        times.sort_unstable();
        let moment = |call, is_end, at: usize| Moment {
            call,
            is_end,
            previous: at.saturating_sub(1),
            next: at + 1,
        };
        let mut moments = vec![moment(usize::MAX, false, HEAD)];
        let mut places = vec![(0, None); calls.len()];
        for (_, is_end, call) in times {
            let at = moments.len();
            match is_end {
                true => places[call].1 = Some(at),
                false => places[call].0 = at,
            }
            moments.push(moment(call, is_end, at));
        }
        let last = moments.len();
        moments.push(moment(usize::MAX, true, last));
        Search {
            calls,
            moments,
            places,
            missing_count: calls.iter().filter(|call| call.ended.is_some()).count(),
            done: vec![0; calls.len().div_ceil(64)],
            seen: HashSet::new(),
            order: Vec::new(),
            longest: Vec::new(),
        }
    }

    fn run(mut self) -> Result<usize, Violation> {
        let mut states = vec![BTreeMap::new()];
        let mut at = self.moments[HEAD].next;
        while self.missing_count > 0 {
            let Moment {
                call, is_end, next, ..
            } = self.moments[at];
            if is_end {
                // This call is over and has no place yet, and nothing before it fits: step back.
                let Some(last) = self.order.pop() else {
                    return Err(Violation {
                        calls: self.calls.to_vec(),
                        order: self.longest,
                    });
                };
                states.pop();
                self.put_back(last);
                at = self.moments[self.places[last].0].next;
                continue;
            }
            let state = states.last().expect("the first one stays");
            match self.calls[call]
                .apply(state)
                .filter(|state| self.is_new(call, state))
            {
                Some(state) => {
                    self.take_out(call);
                    self.order.push(call);
                    if self.order.len() > self.longest.len() {
                        self.longest.clone_from(&self.order);
                    }
                    states.push(state);
                    at = self.moments[HEAD].next;
                }
                None => at = next,
            }
        }
        Ok(self.seen.len())
    }

    /// Whether these calls have not led to this state before.
    fn is_new(&mut self, call: usize, state: &BTreeMap<usize, u64>) -> bool {
        assert!(
            self.seen.len() < STATE_COUNT_MAX,
            "a history is too tangled to be judged: {}",
            Violation {
                calls: self.calls.to_vec(),
                order: self.longest.clone()
            }
        );
        let mut done = self.done.clone();
        done[call / 64] |= 1 << (call % 64);
        self.seen.insert((done, state.clone()))
    }

    fn take_out(&mut self, call: usize) {
        self.done[call / 64] |= 1 << (call % 64);
        let (begin, end) = self.places[call];
        self.missing_count -= usize::from(end.is_some());
        for at in [Some(begin), end].into_iter().flatten() {
            let Moment { previous, next, .. } = self.moments[at];
            self.moments[previous].next = next;
            self.moments[next].previous = previous;
        }
    }

    /// The last call that was taken out comes back first, so its neighbours are the ones it had.
    fn put_back(&mut self, call: usize) {
        self.done[call / 64] &= !(1 << (call % 64));
        let (begin, end) = self.places[call];
        self.missing_count += usize::from(end.is_some());
        for at in [end, Some(begin)].into_iter().flatten() {
            let Moment { previous, next, .. } = self.moments[at];
            self.moments[previous].next = at;
            self.moments[next].previous = at;
        }
    }
}

#[cfg(test)]
mod tests;
