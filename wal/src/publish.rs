//! Ordered publication: writers finish in any order, what they wrote becomes visible in theirs.
//!
//! A writer takes a ticket inside the reserve section, fills its bytes and its index entries outside
//! of it, and completes the ticket. Whoever completes the lowest outstanding ticket publishes it and
//! all complete ones behind it. A short lock beats a ring of atomics on few cores and is checked
//! whole by loom.

use std::collections::VecDeque;

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// The tickets that are out, in order.
pub struct Publisher<T> {
    /// The next ticket.
    next: AtomicU64,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// The first ticket that is not published.
    first: u64,
    /// What was handed in from that one on, up to the last one: `None` until its writer is done.
    early: VecDeque<Option<T>>,
}

/// The right and the duty to complete one ticket.
#[derive(Debug)]
#[must_use = "an incomplete ticket stops everything behind it"]
pub struct Ticket(u64);

impl<T> Default for Publisher<T> {
    fn default() -> Publisher<T> {
        Publisher {
            next: AtomicU64::new(0),
            state: Mutex::new(State {
                first: 0,
                early: VecDeque::new(),
            }),
        }
    }
}

impl<T> Publisher<T> {
    /// Takes the next ticket. Call it inside the reserve section, so that ticket order is log order.
    pub fn take(&self) -> Ticket {
        Ticket(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands in a ticket. `publish` is called, in ticket order and under the lock, for this one and
    /// its complete successors once all before it are complete; it must be short.
    pub fn complete(&self, ticket: Ticket, done: T, mut publish: impl FnMut(T)) {
        let mut state = self.state.lock();
        let place = usize::try_from(ticket.0 - state.first).expect("open tickets fit in memory");
        if place > 0 {
            if state.early.len() <= place {
                state.early.resize_with(place + 1, || None);
            }
            let before = state.early[place].replace(done);
            assert!(before.is_none(), "a ticket is completed once");
            return;
        }
        state.first += 1;
        // Its own place, if somebody behind it was faster.
        state.early.pop_front();
        publish(done);
        while let Some(Some(_)) = state.early.front() {
            let done = state.early.pop_front().flatten().expect("looked at above");
            state.first += 1;
            publish(done);
        }
    }

    /// Number of tickets that are not published.
    pub fn open_count(&self) -> usize {
        let first = self.state.lock().first;
        let count = self.next.load(Ordering::Relaxed) - first;
        usize::try_from(count).expect("open tickets fit in memory")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_complete_is_published_in_the_order_of_the_tickets() {
        let publisher = Publisher::default();
        let mut published = Vec::new();
        let [a, b, c] = [publisher.take(), publisher.take(), publisher.take()];
        publisher.complete(b, 2, |n| published.push(n));
        assert_eq!(publisher.open_count(), 3);
        publisher.complete(a, 1, |n| published.push(n));
        assert_eq!(publisher.open_count(), 1);
        publisher.complete(c, 3, |n| published.push(n));
        assert_eq!(publisher.open_count(), 0);
        assert_eq!(published, [1, 2, 3]);
        let d = publisher.take();
        publisher.complete(d, 4, |n| published.push(n));
        assert_eq!(published, [1, 2, 3, 4]);
    }
}
