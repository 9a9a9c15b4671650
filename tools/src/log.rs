//! What a node tells on standard error: one line each, as text or as JSON.
//!
//! Events of the engine keep their name in the field `event`, so that alarms need not read sentences.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use strandline::Database;
use strandline::event::{Event, Severity, What};
use strandline::replica::Server;
pub(crate) use tracing::Level;

/// An event that repeats the one before it of the same peer is told again after this time.
const REPEAT_AFTER: Duration = Duration::from_secs(60);
/// Most peers whose last event is remembered.
const PEER_COUNT_MAX: usize = 1024;

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one object per line.
    Json,
}

/// The options of the log.
#[derive(Args, Clone, Debug)]
pub(crate) struct LogArgs {
    /// How what happens is told on standard error
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

impl LogArgs {
    /// Starts the log of this process.
    pub fn start(&self) {
        start(self.log_format, Level::INFO);
    }
}

/// Starts the log of this process.
pub(crate) fn start(format: Format, level: Level) {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(level)
        .with_target(false)
        // Nobody is left to tell where standard error is closed.
        .log_internal_errors(false);
    let started = match format {
        Format::Text => tracing::subscriber::set_global_default(lines.finish()),
        Format::Json => {
            let lines = lines.json().flatten_event(true);
            let lines = lines.with_current_span(false).with_span_list(false);
            tracing::subscriber::set_global_default(lines.finish())
        }
    };
    // A second log of the process would be the first one.
    let _ = started;
}

/// Text of others on one line.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Tells what happens to a database.
#[derive(Default)]
pub(crate) struct Teller {
    last: HashMap<(String, String), Told>,
}

struct Told {
    what: What,
    at: Instant,
    /// Repetitions since then.
    kept_back: u64,
}

impl Teller {
    /// Tells what has happened since the last call.
    pub fn tell(&mut self, database: &Database, server: &Server) {
        for event in database.events() {
            if let Some(count) = self.due(&event, Instant::now()) {
                write(&event, count);
            }
        }
        for line in server.refusals() {
            tracing::warn!(event = "refused", "{}", one_line(&line));
        }
    }

    /// How often an event has happened since it was told; `None` where it is not to be told now.
    fn due(&mut self, event: &Event, now: Instant) -> Option<u64> {
        let peer = event.what.peer().unwrap_or_default();
        let key = (event.dataset.clone(), peer.to_owned());
        let mut count = event.count;
        if let Some(told) = self.last.get_mut(&key)
            && told.what == event.what
        {
            if now.duration_since(told.at) < REPEAT_AFTER {
                told.kept_back += count;
                return None;
            }
            count += told.kept_back;
        }
        if self.last.len() >= PEER_COUNT_MAX {
            self.last.clear();
        }
        let told = Told {
            what: event.what.clone(),
            at: now,
            kept_back: 0,
        };
        self.last.insert(key, told);
        Some(count)
    }
}

fn write(event: &Event, count: u64) {
    let (name, text) = (event.what.name(), one_line(&event.what.to_string()));
    let dataset = Some(event.dataset.as_str()).filter(|name| !name.is_empty());
    let peer = event.what.peer();
    let count = Some(count).filter(|count| *count > 1);
    macro_rules! line {
        ($tell:ident) => {
            tracing::$tell!(event = name, dataset, peer, count, "{text}")
        };
    }
    match event.what.severity() {
        Severity::Info => line!(info),
        Severity::Warning => line!(warn),
        Severity::Error => line!(error),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn left(peer: &str, why: &str) -> Event {
        let what = What::Left {
            peer: peer.into(),
            why: why.into(),
        };
        Event::new(0, "primary", what)
    }

    #[test]
    fn what_repeats_is_told_once_a_minute_with_its_count() {
        let mut teller = Teller::default();
        let start = Instant::now();
        let mut at =
            |seconds, event: &Event| teller.due(event, start + Duration::from_secs(seconds));
        let (a, b) = (left("a", "refused"), left("b", "refused"));
        assert_eq!(at(0, &a), Some(1));
        assert_eq!(at(1, &a), None);
        assert_eq!(at(1, &b), Some(1), "another peer");
        assert_eq!(at(2, &a), None);
        assert_eq!(at(61, &a), Some(3));
        assert_eq!(at(62, &left("a", "reset")), Some(1), "another reason");
        assert_eq!(at(63, &a), Some(1), "it is news again");
    }

    #[test]
    fn what_is_remembered_has_a_limit() {
        let mut teller = Teller::default();
        for n in 0..3 * PEER_COUNT_MAX {
            teller.due(&left(&n.to_string(), "x"), Instant::now());
            assert!(teller.last.len() <= PEER_COUNT_MAX);
        }
    }

    #[test]
    fn text_of_others_stays_on_its_line() {
        assert_eq!(one_line("a\nb\u{1b}[31mü"), "a\\nb\\u{1b}[31mü");
    }
}
