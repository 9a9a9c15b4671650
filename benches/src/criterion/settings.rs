//! How long a bench measures.

use std::time::Duration;

use criterion::Criterion;

/// Few samples and little time: each bench takes seconds, and the trend is what counts.
pub fn quick() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
}
