//! The locks and atomics of the small concurrent protocols: parking_lot, or loom's when a model runs.

#[cfg(not(loom))]
pub(crate) use parking_lot::Mutex;
#[cfg(not(loom))]
pub(crate) use std::sync::atomic;
#[cfg(not(loom))]
pub(crate) use std::thread::{Thread, current, park, yield_now};

#[cfg(loom)]
pub(crate) use loom::sync::atomic;
#[cfg(loom)]
pub(crate) use loom::thread::{Thread, current, park, yield_now};
#[cfg(loom)]
pub(crate) use model::Mutex;

#[cfg(loom)]
mod model {
    //! loom's locks with parking_lot's signatures.

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);
    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0
                .lock()
                .expect("no thread of a model panics while holding it")
        }
    }
}
