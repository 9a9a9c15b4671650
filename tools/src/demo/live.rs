//! What the demonstration shows while it runs: on a terminal one line that changes, elsewhere lines.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::{Failure, Result};
use crate::signal::Ending;

/// Longest sleep between two looks for signals.
const STEP: Duration = Duration::from_millis(50);

/// The screen, and the signals that end the show.
pub(super) struct Live {
    ending: RefCell<Ending>,
    /// The line that changes, on a terminal.
    bar: Option<ProgressBar>,
    is_quiet: bool,
}

impl Live {
    /// `is_quiet` where standard output is for a document.
    pub fn new(ending: Ending, is_quiet: bool) -> Live {
        let is_terminal = std::io::stdout().is_terminal() && !is_quiet;
        Live {
            ending: RefCell::new(ending),
            bar: is_terminal.then(bar),
            is_quiet,
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.print(line)),
            None => self.print(line),
        }
    }

    /// A line that the next one replaces, where that can be done.
    pub fn update(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(line.to_owned()),
            None => self.print(line),
        }
    }

    /// Removes the line that changes.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn print(&self, line: &str) {
        if !self.is_quiet {
            let mut out = std::io::stdout().lock();
            // Whoever stopped looking still gets the exit code.
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
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

/// A line as wide as the terminal at most.
fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
    if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
        bar.set_style(style);
    }
    bar
}
