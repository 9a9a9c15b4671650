//! The locks of the small concurrent protocols: parking_lot, or loom's when a model runs.

#[cfg(not(loom))]
pub(crate) use parking_lot::{Condvar, Mutex};

#[cfg(loom)]
pub(crate) use model::{Condvar, Mutex};

#[cfg(loom)]
mod model {
    //! loom's locks with parking_lot's signatures.

    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);
    pub(crate) struct Condvar(loom::sync::Condvar);

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

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar(loom::sync::Condvar::new())
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<T>(&self, guard: &mut loom::sync::MutexGuard<'_, T>) {
            take_mut(guard, |guard| self.0.wait(guard).expect("as in lock"));
        }
    }

    /// loom's condition variable takes the guard by value, parking_lot's by reference.
    #[allow(unsafe_code)]
    fn take_mut<T>(place: &mut T, f: impl FnOnce(T) -> T) {
        // SAFETY: the value is moved out and a new one moved in before anyone can look; `f` panics
        // only where the model itself fails, and then the process ends.
        unsafe {
            let new = f(std::ptr::read(place));
            std::ptr::write(place, new);
        }
    }
}
