//! The wake-up of the driver: cheap for the many who notify, for the one who waits; and a pause that only
//! what is urgent ends.

use std::time::Duration;

use crate::sync::{AtomicBool, Condvar, Mutex, Ordering, fence};

/// Tells the driver that there is something to do: new data, a mark that rose, a frame that arrived.
#[derive(Default)]
pub struct Notifier {
    // Set: the driver will look again before it sleeps.
    pending: AtomicBool,
    // Set: the driver will look again before it sleeps or pauses.
    urgent: AtomicBool,
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

    /// As [`Notifier::notify`], of what must not wait: ends [`Notifier::linger`], too.
    pub fn urge(&self) {
        fence(Ordering::SeqCst);
        if self.urgent.load(Ordering::Relaxed) || self.urgent.swap(true, Ordering::SeqCst) {
            return;
        }
        self.pending.swap(true, Ordering::SeqCst);
        let _guard = self.lock.lock();
        self.changed.notify_all();
    }

    /// Called before a look: notifications from now on end the next wait.
    pub fn rearm(&self) {
        self.pending.swap(false, Ordering::SeqCst);
        self.urgent.swap(false, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Sleeps for `time`, or until [`Notifier::urge`]; other notifications cost nothing meanwhile. To be called
    /// before the next [`Notifier::rearm`], and followed by a look.
    pub fn linger(&self, time: Duration) {
        self.pending.swap(true, Ordering::SeqCst);
        let mut guard = self.lock.lock();
        if !self.urgent.load(Ordering::SeqCst) {
            self.changed.wait_for(&mut guard, time);
        }
    }

    /// Sleeps until a notification that came after [`Notifier::rearm`], or for `timeout`.
    pub fn wait(&self, timeout: Duration) {
        let mut guard = self.lock.lock();
        if !self.pending.load(Ordering::SeqCst) {
            self.changed.wait_for(&mut guard, timeout);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_notification_before_the_wait_ends_it() {
        let notifier = Notifier::default();
        notifier.rearm();
        notifier.notify();
        notifier.notify();
        notifier.wait(Duration::MAX);
        notifier.rearm();
        notifier.wait(Duration::ZERO);
    }

    #[test]
    fn only_the_urgent_end_a_pause() {
        let (notifier, has_ended) = (Notifier::default(), AtomicBool::new(false));
        notifier.rearm();
        notifier.notify();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                notifier.linger(Duration::MAX);
                has_ended.store(true, Ordering::SeqCst);
            });
            for _ in 0..20 {
                notifier.notify();
                std::thread::sleep(Duration::from_millis(1));
            }
            assert!(!has_ended.load(Ordering::SeqCst));
            notifier.urge();
        });
        // One that came before it ends it, too.
        notifier.linger(Duration::MAX);
        notifier.rearm();
        notifier.linger(Duration::ZERO);
    }
}

#[cfg(all(test, loom))]
mod loom_models {
    use super::*;
    use crate::sync::AtomicU64;
    use std::sync::Arc;

    /// A thread publishes and notifies twice; the driver looks, and sleeps without a timeout where
    /// it sees nothing new. It never sleeps through a publication.
    #[test]
    fn no_notification_is_lost() {
        loom::model(|| {
            let notifier = Arc::new(Notifier::default());
            let published = Arc::new(AtomicU64::new(0));
            let thread = {
                let (notifier, published) = (Arc::clone(&notifier), Arc::clone(&published));
                loom::thread::spawn(move || {
                    for _ in 0..2 {
                        published.fetch_add(1, Ordering::Release);
                        notifier.notify();
                    }
                })
            };
            loop {
                notifier.rearm();
                if published.load(Ordering::Acquire) == 2 {
                    break;
                }
                notifier.wait(Duration::MAX);
            }
            thread.join().expect("it does not panic");
        });
    }

    /// A thread notifies, then publishes and urges; the driver pauses without a timeout where it sees nothing
    /// new. It never pauses through what is urgent.
    #[test]
    fn no_urge_is_lost() {
        loom::model(|| {
            let notifier = Arc::new(Notifier::default());
            let published = Arc::new(AtomicU64::new(0));
            let thread = {
                let (notifier, published) = (Arc::clone(&notifier), Arc::clone(&published));
                loom::thread::spawn(move || {
                    notifier.notify();
                    published.store(1, Ordering::Release);
                    notifier.urge();
                })
            };
            loop {
                notifier.rearm();
                if published.load(Ordering::Acquire) == 1 {
                    break;
                }
                notifier.linger(Duration::MAX);
            }
            thread.join().expect("it does not panic");
        });
    }
}
