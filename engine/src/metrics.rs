//! Every metric of a database, in one table, and their text for Prometheus.
//!
//! The text is that of [Prometheus' exposition format 0.0.4][format]: per metric its help, its kind and
//! one line per dataset, shard or follower. Counters are since the dataset was opened.
//!
//! [format]: https://prometheus.io/docs/instrumenting/exposition_formats/

use std::fmt::Write;

use crate::database::Database;
use crate::dataset::Dataset;
use crate::replica::{FollowStatus, FollowerStatus};
use crate::retention::{Holder, SlotState, SlotStatus};
use crate::stats::DatasetStats;
use crate::store::Role;

/// Whether a metric goes up and down.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// It only rises, until the dataset is opened again.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// Whom a metric is about, and where its value comes from.
#[derive(Clone, Copy)]
enum Source {
    /// One value per dataset.
    Dataset(fn(&DatasetStats) -> f64),
    /// One value per shard of a dataset.
    Shard(fn(&DatasetStats) -> &[u64]),
    /// One value per follower that a dataset's leader knows.
    Follower(fn(&FollowerStatus) -> f64),
    /// One value per dataset that follows.
    Following(fn(&FollowStatus) -> f64),
    /// One value per slot of a dataset.
    Slot(fn(&SlotStatus) -> f64),
    /// One value per holder of a shard's log.
    Holder(fn(&Holder) -> f64),
}

/// A metric.
pub struct Metric {
    /// Its name, with its unit.
    pub name: &'static str,
    /// Whether it goes up and down.
    pub kind: Kind,
    /// What it counts.
    pub help: &'static str,
    source: Source,
}

const fn metric(name: &'static str, kind: Kind, source: Source, help: &'static str) -> Metric {
    Metric {
        name,
        kind,
        help,
        source,
    }
}

use Kind::{Counter, Gauge};
use Source::{Dataset as D, Follower as F, Following as G, Holder as H, Shard as S, Slot as L};

/// All metrics, in the order of the text.
pub const METRICS: &[Metric] = &[
    metric(
        "strandline_leads",
        Gauge,
        D(|s| is(s.role == Role::Leader)),
        "1 where this node takes the dataset's writes.",
    ),
    metric(
        "strandline_epoch",
        Gauge,
        D(|s| s.epoch.into()),
        "Leadership that this node writes in; 0 where it does not.",
    ),
    metric(
        "strandline_keyspaces",
        Gauge,
        D(|s| s.keyspace_count as f64),
        "Keyspaces.",
    ),
    metric(
        "strandline_log_last_seq",
        Gauge,
        S(|s| &s.last_seqs),
        "Last record in the log of a shard.",
    ),
    metric(
        "strandline_log_synced_seq",
        Gauge,
        S(|s| &s.synced_seqs),
        "Last record known to survive a crash.",
    ),
    metric(
        "strandline_log_segments",
        Gauge,
        D(|s| s.segment_count as f64),
        "Log segments.",
    ),
    metric(
        "strandline_log_bytes",
        Gauge,
        D(|s| s.segment_len as f64),
        "Bytes of log files.",
    ),
    metric(
        "strandline_unflushed_bytes",
        Gauge,
        D(|s| s.unflushed_len as f64),
        "Bytes of log that only memtables cover.",
    ),
    metric(
        "strandline_sealed_memtables",
        Gauge,
        D(|s| s.sealed_memtable_count as f64),
        "Memtables that wait for their flush.",
    ),
    metric(
        "strandline_tables",
        Gauge,
        D(|s| s.table_count as f64),
        "Tables.",
    ),
    metric(
        "strandline_table_runs",
        Gauge,
        D(|s| s.run_count as f64),
        "Sorted runs that the tables make up.",
    ),
    metric(
        "strandline_table_bytes",
        Gauge,
        D(|s| s.table_len as f64),
        "Bytes of tables.",
    ),
    metric(
        "strandline_table_entries",
        Gauge,
        D(|s| s.table_entry_count as f64),
        "Entries in tables, old versions and tombstones included.",
    ),
    metric(
        "strandline_live_value_bytes",
        Gauge,
        D(|s| s.live_value_len as f64),
        "Bytes of values that tables point to in segments.",
    ),
    metric(
        "strandline_batches_total",
        Counter,
        D(|s| s.batch_count as f64),
        "Batches written.",
    ),
    metric(
        "strandline_records_total",
        Counter,
        D(|s| s.record_count as f64),
        "Records written.",
    ),
    metric(
        "strandline_payload_bytes_total",
        Counter,
        D(|s| s.payload_len as f64),
        "Bytes of records written.",
    ),
    metric(
        "strandline_log_syncs_total",
        Counter,
        D(|s| s.sync_count as f64),
        "Syncs of the logs.",
    ),
    metric(
        "strandline_degraded_acks_total",
        Counter,
        D(|s| s.degraded_acks as f64),
        "Writes that were acknowledged with too few followers.",
    ),
    metric(
        "strandline_flushes_total",
        Counter,
        D(|s| s.flush_count as f64),
        "Memtables written into tables.",
    ),
    metric(
        "strandline_compactions_total",
        Counter,
        D(|s| s.compaction_count as f64),
        "Compactions.",
    ),
    metric(
        "strandline_table_written_bytes_total",
        Counter,
        D(|s| s.table_len_written as f64),
        "Bytes written to tables.",
    ),
    metric(
        "strandline_values_moved_total",
        Counter,
        D(|s| s.values_moved as f64),
        "Large values that were moved out of mostly dead segments.",
    ),
    metric(
        "strandline_segments_recycled_total",
        Counter,
        D(|s| s.segments_recycled as f64),
        "Segment files that were used again.",
    ),
    metric(
        "strandline_segments_removed_total",
        Counter,
        D(|s| s.segments_removed as f64),
        "Segment files that were removed.",
    ),
    metric(
        "strandline_scrubbed_bytes_total",
        Counter,
        D(|s| s.scrubbed_len as f64),
        "Bytes that scrubs read.",
    ),
    metric(
        "strandline_scrub_passes_total",
        Counter,
        D(|s| s.scrub_pass_count as f64),
        "Whole passes of scrubs.",
    ),
    metric(
        "strandline_damaged_places",
        Gauge,
        D(|s| s.damage_count as f64),
        "Damaged places that the last scrub found.",
    ),
    metric(
        "strandline_follower_connected",
        Gauge,
        F(|f| is(f.connected)),
        "1 where a follower is connected.",
    ),
    metric(
        "strandline_follower_transport_lag_records",
        Gauge,
        F(|f| f.transport_lag as f64),
        "Records written here that a follower does not have.",
    ),
    metric(
        "strandline_follower_apply_lag_records",
        Gauge,
        F(|f| f.apply_lag as f64),
        "Records that a follower has and does not show.",
    ),
    metric(
        "strandline_follower_lag_seconds",
        Gauge,
        F(|f| f.lag_ms as f64 / 1e3),
        "Age of what a follower's readers see; 0 where they see everything.",
    ),
    metric(
        "strandline_following_connected",
        Gauge,
        G(|f| is(f.connected)),
        "1 where this node is connected to its leader.",
    ),
    metric(
        "strandline_following_apply_lag_records",
        Gauge,
        G(|f| f.apply_lag as f64),
        "Records that this node has and does not show.",
    ),
    metric(
        "strandline_following_joins",
        Gauge,
        G(|f| is(f.joins)),
        "1 where this node may lack what its leader had when it came: it neither votes nor leads.",
    ),
    metric(
        "strandline_following_stopped",
        Gauge,
        G(|f| is(f.last_error.is_some() && !f.connected)),
        "1 where this node is not connected, for a reason that its status tells.",
    ),
    metric(
        "strandline_following_bundles_total",
        Counter,
        G(|f| f.bundle_count as f64),
        "Checkpoints of the leader that replaced this node's data.",
    ),
    metric(
        "strandline_slot_state",
        Gauge,
        L(|s| state_of(&s.state)),
        "How a follower's slot stands: 0 active, 1 lagging, 2 at risk, 3 lost.",
    ),
    metric(
        "strandline_slot_held_bytes",
        Gauge,
        L(|s| s.bytes as f64),
        "Bytes of log that are kept for a follower.",
    ),
    metric(
        "strandline_slot_idle_seconds",
        Gauge,
        L(|s| s.idle_ms as f64 / 1e3),
        "How long a follower with a slot was not heard.",
    ),
    metric(
        "strandline_log_held_bytes",
        Gauge,
        H(|h| h.bytes as f64),
        "Bytes of log that one holder keeps, whoever else does.",
    ),
];

fn state_of(state: &SlotState) -> f64 {
    match state {
        SlotState::Active => 0.0,
        SlotState::Lagging => 1.0,
        SlotState::AtRisk { .. } => 2.0,
        SlotState::Lost { .. } => 3.0,
    }
}

fn is(is: bool) -> f64 {
    f64::from(u8::from(is))
}

/// What is told of one dataset.
struct Sample {
    stats: DatasetStats,
    followers: Vec<FollowerStatus>,
    following: Option<FollowStatus>,
    slots: Vec<SlotStatus>,
    holders: Vec<Holder>,
}

impl Database {
    /// All metrics of the open datasets, as text for Prometheus: serve it as
    /// `text/plain; version=0.0.4`.
    pub fn metrics(&self) -> String {
        let sample = |dataset: &Dataset| Sample {
            stats: dataset.stats(),
            followers: dataset.followers(),
            following: dataset.follow_status(),
            slots: dataset.slots(),
            holders: dataset.who_blocks(),
        };
        let samples: Vec<Sample> = self.datasets().iter().map(sample).collect();
        let mut text = String::new();
        for metric in METRICS {
            let kind = match metric.kind {
                Counter => "counter",
                Gauge => "gauge",
            };
            let Metric { name, help, .. } = metric;
            let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            text.push_str(&head);
            for sample in &samples {
                metric.show(sample, &mut text);
            }
        }
        text
    }
}

impl Metric {
    fn show(&self, sample: &Sample, text: &mut String) {
        let (name, dataset) = (self.name, &sample.stats.name);
        let mut line = |labels: &str, value: f64| {
            let line = writeln!(text, "{name}{{dataset=\"{dataset}\"{labels}}} {value}");
            line.expect("a String takes everything");
        };
        match self.source {
            D(value) => line("", value(&sample.stats)),
            S(values) => {
                for (shard, value) in values(&sample.stats).iter().enumerate() {
                    line(&format!(",shard=\"{shard}\""), *value as f64);
                }
            }
            F(value) => {
                for follower in &sample.followers {
                    let node = u128::from_be_bytes(follower.node);
                    let label = escaped(&follower.name);
                    let labels = format!(",follower=\"{label}\",node=\"{node:032x}\"");
                    line(&labels, value(follower));
                }
            }
            L(value) => {
                for slot in &sample.slots {
                    let (label, node) = (escaped(&slot.name), u128::from_be_bytes(slot.node));
                    let labels = format!(",slot=\"{label}\",node=\"{node:032x}\"");
                    line(&labels, value(slot));
                }
            }
            H(value) => {
                for holder in &sample.holders {
                    let (what, shard) = (holder.what, holder.shard);
                    let label = escaped(&holder.name);
                    let labels = format!(",holder=\"{what}\",name=\"{label}\",shard=\"{shard}\"");
                    line(&labels, value(holder));
                }
            }
            G(value) => {
                if let Some(following) = &sample.following {
                    line("", value(following));
                }
            }
        }
    }
}

/// A label's value: a follower says itself what it is called.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', r"\\").replace('"', "\\\"");
    text.replace('\n', r"\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use strandline_wal::io::sim::SimEnv;

    use super::*;
    use crate::options::{Background, Options};

    #[test]
    fn names_are_prometheus_names_with_their_unit_and_each_once() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for metric in METRICS {
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(metric.name.chars().all(is_plain), "{}", metric.name);
            assert!(metric.name.starts_with("strandline_"), "{}", metric.name);
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == Counter, "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn the_text_has_every_metric_of_every_dataset_and_shard() {
        let options = Options {
            background: Background::Manual,
            router: crate::ShardRouter::hash(2).unwrap(),
            ..Options::default()
        };
        let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
        db.dataset("logs").unwrap();
        db.keyspace("map").unwrap().put("key", "value").unwrap();
        let text = db.metrics();
        for line in [
            "# HELP strandline_batches_total Batches written.",
            "# TYPE strandline_batches_total counter",
            "strandline_leads{dataset=\"logs\"} 1",
            "strandline_keyspaces{dataset=\"primary\"} 1",
            "strandline_log_synced_seq{dataset=\"primary\",shard=\"1\"} ",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
        for metric in METRICS {
            let count = text
                .lines()
                .filter(|line| line.starts_with(&format!("{}{{", metric.name)));
            let wanted = match metric.source {
                D(_) => 2,
                S(_) => 4,
                F(_) | G(_) | L(_) => 0,
                // Whoever keeps something.
                H(_) => continue,
            };
            assert_eq!(count.count(), wanted, "{}", metric.name);
        }
    }

    #[test]
    fn what_a_follower_calls_itself_stays_within_its_label() {
        let follower = FollowerStatus {
            name: "a\"} 1\nb\\".to_owned(),
            connected: true,
            ..FollowerStatus::default()
        };
        let options = Options {
            background: Background::Manual,
            ..Options::default()
        };
        let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
        let sample = Sample {
            stats: db.dataset("").unwrap().stats(),
            followers: vec![follower],
            following: None,
            slots: Vec::new(),
            holders: Vec::new(),
        };
        let metric = METRICS
            .iter()
            .find(|it| it.name == "strandline_follower_connected");
        let mut text = String::new();
        metric.unwrap().show(&sample, &mut text);
        let node = "0".repeat(32);
        let wanted = format!(
            "strandline_follower_connected{{dataset=\"primary\",follower=\"a\\\"}} 1\\nb\\\\\",node=\"{node}\"}} 1\n"
        );
        assert_eq!(text, wanted);
    }
}
