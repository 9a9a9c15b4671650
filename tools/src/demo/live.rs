//! What the demonstration shows while it runs: on a terminal one line that changes, elsewhere lines.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::failure::{Failure, Result};
use crate::signal::Ending;

/// Longest sleep between two looks for signals.
const STEP: Duration = Duration::from_millis(50);

/// The screen, and the signals that end the show.
pub(super) struct Live {
    ending: RefCell<Ending>,
    is_terminal: bool,
    is_quiet: bool,
}

impl Live {
    /// `is_quiet` where standard output is for a document.
    pub fn new(ending: Ending, is_quiet: bool) -> Live {
        Live {
            ending: RefCell::new(ending),
            is_terminal: std::io::stdout().is_terminal(),
            is_quiet,
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        self.print(&format!("{}{line}\n", self.clear()));
    }

    /// A line that the next one replaces, where that can be done.
    pub fn update(&self, line: &str) {
        match self.is_terminal {
            true => self.print(&format!("{}{line}", self.clear())),
            false => self.print(&format!("{line}\n")),
        }
    }

    /// Removes the line that changes.
    pub fn end(&self) {
        self.print(self.clear());
    }

    fn clear(&self) -> &'static str {
        match self.is_terminal {
            true => "\r\x1b[2K",
            false => "",
        }
    }

    fn print(&self, text: &str) {
        if self.is_quiet {
            return;
        }
        let mut out = std::io::stdout().lock();
        // Whoever stopped looking still gets the exit code.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Fails once a signal has come.
    pub fn check(&self) -> Result<()> {
        match self.ending.borrow_mut().has_come() {
            true => Err(Failure::io(
                "interrupted; the nodes are stopped and removed",
            )),
            false => Ok(()),
        }
    }

    /// Waits, and fails at once when a signal comes.
    pub fn pause(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(STEP));
        }
    }
}
