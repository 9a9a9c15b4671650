//! The wake-up of the driver: cheap for the many who notify, for the one who waits.

use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Tells the driver that there is something to do: new data, a mark that rose, a frame that arrived.
#[derive(Default)]
pub struct Notifier {
    // Set: the driver will look again before it sleeps.
    pending: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Notifier {
    /// Whatever the caller did before is seen by the driver's next look. Costs one fence where the
    /// driver is awake.
    pub fn notify(&self) {
        // Orders the caller's stores before the load: either the driver's swap comes later and its
        // look sees them, or the load sees the swap and wakes it.
        fence(Ordering::SeqCst);
        if self.pending.load(Ordering::Relaxed) || self.pending.swap(true, Ordering::SeqCst) {
            return;
        }
        let _guard = self.lock.lock();
        self.changed.notify_all();
    }

    /// Called before a look: notifications from now on end the next wait.
    pub fn rearm(&self) {
        self.pending.swap(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Sleeps until a notification that came after [`Notifier::rearm`], or for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let mut guard = self.lock.lock();
        if !self.pending.load(Ordering::SeqCst) {
            self.changed.wait_for(&mut guard, timeout);
        }
    }
}
