//! Flow control by byte credits: the receiver says how much it takes in all, the sender never sends
//! more. Both sides count from the start of the connection, so a repeated grant does no harm.

/// Default window, in bytes.
pub const WINDOW_DEFAULT: u64 = 16 << 20;

/// The sender's side. Invariant: `spent <= granted`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Purse {
    granted: u64,
    spent: u64,
}

impl Purse {
    /// A grant came; grants never fall, so an older one says nothing.
    pub fn grant(&mut self, granted: u64) {
        self.granted = self.granted.max(granted);
    }

    /// Bytes that may still be sent.
    pub fn left(&self) -> u64 {
        self.granted - self.spent
    }

    /// Bytes that were sent.
    pub fn spent(&self) -> u64 {
        self.spent
    }

    /// Bytes are sent.
    ///
    /// # Panics
    /// Where they are more than is left: the caller asks first.
    pub fn spend(&mut self, len: u64) {
        assert!(
            len <= self.left(),
            "{len} bytes sent on {} of credit",
            self.left()
        );
        self.spent += len;
    }
}

/// The receiver's side. Invariant: `taken <= granted`.
#[derive(Clone, Copy, Debug)]
pub struct Grantor {
    window: u64,
    taken: u64,
    granted: u64,
}

impl Grantor {
    /// A receiver that never has more than `window` bytes under way.
    pub fn new(window: u64) -> Grantor {
        Grantor {
            window: window.max(1),
            taken: 0,
            granted: 0,
        }
    }

    /// Bytes came. `false` where the sender sent more than it was granted.
    #[must_use]
    pub fn take(&mut self, len: u64) -> bool {
        self.taken = self.taken.saturating_add(len);
        self.taken <= self.granted
    }

    /// Bytes that came.
    pub fn taken(&self) -> u64 {
        self.taken
    }

    /// What was granted last.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// The next grant worth a frame, given that the store takes `room` bytes.
    pub fn grant(&mut self, room: u64) -> Option<u64> {
        let target = self.taken.saturating_add(self.window.min(room));
        // A grant for every frame would double the frames; a quarter of the window keeps it flowing.
        let worth = self.window.div_ceil(4);
        let dry = self.granted == self.taken && target > self.granted;
        if dry || target >= self.granted.saturating_add(worth) {
            self.granted = target;
            return Some(target);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_bounds_what_is_under_way() {
        let (mut purse, mut grantor) = (Purse::default(), Grantor::new(100));
        purse.grant(grantor.grant(1000).unwrap());
        assert_eq!(purse.left(), 100);
        assert_eq!(
            grantor.grant(1000),
            None,
            "nothing came, nothing is granted"
        );
        purse.spend(60);
        assert!(grantor.take(60));
        purse.grant(grantor.grant(1000).unwrap());
        assert_eq!(purse.left(), 100);
    }

    #[test]
    fn a_full_store_stops_the_sender_and_a_little_room_starts_it_again() {
        let mut grantor = Grantor::new(100);
        assert_eq!(grantor.grant(0), None);
        assert_eq!(grantor.grant(1), Some(1));
        assert!(grantor.take(1));
        assert!(!grantor.take(1), "more than was granted");
    }

    #[test]
    fn an_old_grant_changes_nothing() {
        let mut purse = Purse::default();
        purse.grant(10);
        purse.grant(5);
        assert_eq!(purse.left(), 10);
    }

    #[test]
    #[should_panic(expected = "11 bytes sent on 10 of credit")]
    fn nobody_spends_more_than_was_granted() {
        let mut purse = Purse::default();
        purse.grant(10);
        purse.spend(11);
    }
}
