//! Waits for SIGINT or SIGTERM.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::failure::{Failure, Result};

/// The signals that end a node. Take this before there is something to end cleanly.
pub(crate) struct Ending(Signals);

impl Ending {
    /// From here on the signals no longer kill the process.
    pub fn prepare() -> Result<Ending> {
        Ending::of(&[SIGINT, SIGTERM])
    }

    /// As [`Ending::prepare`], and SIGHUP neither kills nor ends the process.
    pub fn of_service() -> Result<Ending> {
        Ending::of(&[SIGINT, SIGTERM, SIGHUP])
    }

    fn of(signals: &[i32]) -> Result<Ending> {
        let signals = Signals::new(signals)
            .map_err(|error| Failure::io(format!("signal handlers: {error}")))?;
        Ok(Ending(signals))
    }

    /// Whether a signal has come.
    pub fn has_come(&mut self) -> bool {
        let mut has_come = false;
        for signal in self.0.pending() {
            match signal {
                SIGHUP => tracing::warn!(
                    event = "hangup",
                    "SIGHUP changes nothing: the configuration is read at the start; restart to change it"
                ),
                _ => has_come = true,
            }
        }
        has_come
    }
}
