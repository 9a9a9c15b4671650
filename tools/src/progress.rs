//! Progress bars: on standard error, and only where that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Whether someone sees a progress bar.
pub fn is_shown() -> bool {
    std::io::stderr().is_terminal()
}

/// A bar that counts bytes up to a total.
pub fn bytes(what: &str, total: u64) -> ProgressBar {
    let template = "{prefix} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
    bar(what, Some(total), template)
}

/// A line that counts bytes without a total.
pub fn stream(what: &str) -> ProgressBar {
    bar(
        what,
        None,
        "{prefix} {spinner} {bytes} {bytes_per_sec} {msg}",
    )
}

fn bar(what: &str, total: Option<u64>, template: &str) -> ProgressBar {
    if !is_shown() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
