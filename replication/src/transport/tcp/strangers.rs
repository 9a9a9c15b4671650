//! Accepted connections that have not said hello, and what became of those that never did.
//!
//! They are anybody's, so they are few: where they are too many the oldest of the address that has the
//! most makes room. A node that connects while others flood the listener so needs no luck, just to be
//! quicker than they are.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use strandline_wal::bug::planted;

use super::conn::Conn;

/// Most addresses whose refusals are remembered.
const SOURCE_COUNT_MAX: usize = 64;
/// Most lines that wait to be taken.
const LINE_COUNT_MAX: usize = 64;
/// One line of an address in this time, in milliseconds.
const LINE_EVERY_MS: u64 = 60_000;

/// Those that are here now, the oldest first.
#[derive(Default)]
pub(super) struct Strangers(Mutex<Vec<(Arc<Conn>, IpAddr)>>);

impl Strangers {
    /// Takes one more in. Where there are more than `count_max`, another one has to go.
    pub fn take_in(&self, conn: &Arc<Conn>, from: IpAddr, count_max: usize) {
        let mut list = self.0.lock();
        list.retain(|(conn, _)| conn.is_stranger() && !conn.join_if_over());
        // Those that have to go are gone in no time; where they are many, they are waited for.
        while list.len() >= 2 * count_max
            && let Some(at) = list.iter().position(|(conn, _)| conn.is_aborted())
        {
            list.remove(at).0.join();
        }
        if !conn.start() {
            return;
        }
        list.push((Arc::clone(conn), from));
        let staying = list.iter().filter(|(conn, _)| !conn.is_aborted());
        let mut counts = BTreeMap::new();
        staying.for_each(|(_, from)| *counts.entry(*from).or_insert(0) += 1);
        if counts.values().sum::<usize>() > count_max && !planted("strangers.count") {
            let most = counts.into_iter().max_by_key(|(_, count)| *count);
            let goes = |(conn, from): &&(Arc<Conn>, IpAddr)| {
                !conn.is_aborted() && most.is_some_and(|(most, _)| most == *from)
            };
            if let Some((oldest, _)) = list.iter().find(goes) {
                oldest.abort();
            }
        }
    }

    /// Joins the threads of those that have gone.
    pub fn reap(&self) {
        // Whoever takes one in reaps as well.
        if let Some(mut list) = self.0.try_lock() {
            list.retain(|(conn, _)| conn.is_stranger() && !conn.join_if_over());
        }
    }

    /// All of them, to be ended.
    pub fn leave(&self) -> Vec<Arc<Conn>> {
        let list = std::mem::take(&mut *self.0.lock());
        list.into_iter().map(|(conn, _)| conn).collect()
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.reap();
        self.0.lock().is_empty()
    }
}

/// Why connections were refused before they belonged to anybody: a line per address and minute.
#[derive(Default)]
pub struct Refusals(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    lines: Vec<String>,
    // When the address had its line, and how many since had none.
    sources: BTreeMap<IpAddr, (u64, u64)>,
    count: u64,
}

impl Refusals {
    pub(super) fn note(&self, now_ms: u64, from: IpAddr, why: &str) {
        let mut noted = self.0.lock();
        noted.count += 1;
        let is_old = |since: &u64| now_ms >= since + LINE_EVERY_MS;
        let mut left_out = 0;
        if let Some((since, silent)) = noted.sources.get_mut(&from) {
            if !is_old(since) {
                *silent += 1;
                return;
            }
            left_out = *silent;
        } else if noted.sources.len() >= SOURCE_COUNT_MAX {
            noted.sources.retain(|_, (since, _)| !is_old(since));
        }
        if noted.sources.len() >= SOURCE_COUNT_MAX || noted.lines.len() >= LINE_COUNT_MAX {
            return;
        }
        noted.sources.insert(from, (now_ms, 0));
        let more = match left_out {
            0 => String::new(),
            n => format!("; {n} more from there since the last line"),
        };
        noted.lines.push(format!("refused {from}: {why}{more}"));
    }

    /// The lines since the last call.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().lines)
    }

    /// How many connections were refused in all.
    pub fn count(&self) -> u64 {
        self.0.lock().count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_one_line_a_minute_and_the_rest_is_counted() {
        let refusals = Refusals::default();
        let from = |n: u8| IpAddr::from([127, 0, 0, n]);
        for n in 0..10 {
            refusals.note(n, from(1), "it said nothing");
        }
        refusals.note(10, from(2), "it said nothing");
        assert_eq!(
            refusals.take(),
            [
                "refused 127.0.0.1: it said nothing",
                "refused 127.0.0.2: it said nothing"
            ]
        );
        refusals.note(LINE_EVERY_MS, from(1), "it said nothing");
        let again = "refused 127.0.0.1: it said nothing; 9 more from there since the last line";
        assert_eq!(refusals.take(), [again]);
        // However many addresses there are, the lines of a minute are few.
        for n in 0..=255 {
            refusals.note(LINE_EVERY_MS, from(n), "it said nothing");
        }
        assert_eq!(refusals.take().len(), SOURCE_COUNT_MAX - 2);
        assert_eq!(refusals.count(), 12 + 256);
    }
}
