//! Ordered publication: writers finish in any order, what they wrote becomes visible in theirs.
//!
//! A writer takes a ticket inside the reserve section, fills its bytes and its index entries outside
//! of it, and completes the ticket. Whoever completes the lowest outstanding ticket publishes it and
//! all complete ones behind it. A short lock beats a ring of atomics on few cores and is checked
//! whole by loom.

use std::collections::VecDeque;

use crate::sync::Mutex;

/// The tickets that are out, in order.
pub struct Publisher<T> {
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Ticket of the front of `open`. Everything before it is published.
    first: u64,
    /// `None` until the ticket's writer is done.
    open: VecDeque<Option<T>>,
}

/// The right and the duty to complete one ticket.
#[derive(Debug)]
#[must_use = "an incomplete ticket stops everything behind it"]
pub struct Ticket(u64);

impl<T> Default for Publisher<T> {
    fn default() -> Publisher<T> {
        Publisher {
            state: Mutex::new(State {
                first: 0,
                open: VecDeque::new(),
            }),
        }
    }
}

impl<T> Publisher<T> {
    /// Takes the next ticket. Call it inside the reserve section, so that ticket order is log order.
    pub fn take(&self) -> Ticket {
        let mut state = self.state.lock();
        let ticket = Ticket(state.first + state.open.len() as u64);
        state.open.push_back(None);
        ticket
    }

    /// Hands in a ticket. `publish` is called, in ticket order and under the lock, for this one and
    /// its complete successors once all before it are complete; it must be short.
    pub fn complete(&self, ticket: Ticket, done: T, mut publish: impl FnMut(T)) {
        let mut state = self.state.lock();
        let place = usize::try_from(ticket.0 - state.first).expect("open tickets fit in memory");
        let before = state.open[place].replace(done);
        assert!(before.is_none(), "a ticket is completed once");
        while let Some(Some(_)) = state.open.front() {
            let done = state.open.pop_front().flatten().expect("looked at above");
            state.first += 1;
            publish(done);
        }
    }

    /// Number of tickets that are not published.
    pub fn open_count(&self) -> usize {
        self.state.lock().open.len()
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
