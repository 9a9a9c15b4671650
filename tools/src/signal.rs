//! Waits for SIGINT or SIGTERM.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Failure, Result};

/// The signals that end a node. Take this before there is something to end cleanly.
pub(crate) struct Ending(Signals);

impl Ending {
    /// From here on the signals no longer kill the process.
    pub fn prepare() -> Result<Ending> {
        let signals = Signals::new([SIGINT, SIGTERM])
            .map_err(|error| Failure::io(format!("signal handlers: {error}")))?;
        Ok(Ending(signals))
    }

    /// Whether a signal has come.
    pub fn has_come(&mut self) -> bool {
        self.0.pending().next().is_some()
    }
}
