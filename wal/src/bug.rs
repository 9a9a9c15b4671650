//! Bugs that are planted on request, so that the tests can show that they would notice them.
//!
//! Only a build with `--cfg strandline_bugs` has them: `STRANDLINE_BUG` names the one that a process
//! has. In every other build [`planted`] is the constant `false`, and nothing is left of a switch.
//! The list of them, with their stories, is `tests/bugs.txt`.

/// Whether this process has the bug of that name.
#[cfg(strandline_bugs)]
pub fn planted(name: &str) -> bool {
    static BUG: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let bug = BUG.get_or_init(|| std::env::var("STRANDLINE_BUG").ok());
    bug.as_deref() == Some(name)
}

/// Whether this process has the bug of that name: it has none.
#[cfg(not(strandline_bugs))]
#[inline(always)]
pub const fn planted(_name: &str) -> bool {
    false
}

/// A call that the bug of that name leaves out, as if it had succeeded.
#[doc(hidden)]
#[macro_export]
macro_rules! unless {
    ($bug:literal, $call:expr) => {
        if $crate::bug::planted($bug) {
            Ok(Default::default())
        } else {
            $call
        }
    };
}
