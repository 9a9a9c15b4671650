//! Accepted connections that have not said hello, and what became of those that never did.
//!
//! They are anybody's, so they are few: where they are too many the oldest of those addresses that have
//! the most makes room. A node that connects while others flood the listener so needs no luck, just to be
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
        let staying: Vec<_> = list.iter().filter(|(conn, _)| !conn.is_aborted()).collect();
        if staying.len() > count_max && !planted("strangers.count") {
            let sources: Vec<IpAddr> = staying.iter().map(|(_, from)| *from).collect();
            staying[who_goes(&sources)].0.abort();
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

/// Which of these has to go, the oldest first: the oldest of all whose source has as many as any. Where all
/// have one, the newest stays.
fn who_goes(sources: &[IpAddr]) -> usize {
    // Whoever has one address of the newer kind has 2^64.
    let net = |from: &IpAddr| match from {
        IpAddr::V4(_) => *from,
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
    };
    let count = |from: &IpAddr| {
        sources
            .iter()
            .filter(|other| net(other) == net(from))
            .count()
    };
    let most = sources.iter().map(count).max();
    let goes = sources.iter().position(|from| Some(count(from)) == most);
    goes.unwrap_or(0)
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
    fn whoever_comes_last_stays_unless_its_source_has_more_than_others() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut sources: Vec<_> = (0..32).map(|n| IpAddr::from([10, 0, 0, n])).collect();
        for node in ["192.0.2.1", "10.0.0.99", "2001:db8::1"] {
            sources.push(ip(node));
            assert_eq!(who_goes(&sources), 0, "{node}");
            sources.pop();
        }
        sources[20] = sources[5];
        assert_eq!(
            who_goes(&sources),
            5,
            "the oldest of those that have the most"
        );
        let net = [
            "192.0.2.1",
            "2001:db8::1",
            "2001:db8::2:1",
            "2001:db8:0:1::1",
        ];
        assert_eq!(who_goes(&net.map(ip)), 1, "one net");
    }

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
