//! `walinspect stats`: records by kind, keyspace and size.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use serde_json::{Value, json};
use strandline_wal::batch::Kind;
use strandline_wal::io::Env;

use super::Where;
use super::ls::columns;
use super::record;
use super::store::{DatasetFiles, SegmentFile};
use super::walk::Found;
use crate::failure::{Exit, Result};
use crate::text;

/// `walinspect stats`
#[derive(Args)]
pub struct Stats {
    #[command(flatten)]
    place: Where,
}

/// Records and the bytes of their keys and values.
#[derive(Clone, Copy, Default)]
struct Sum {
    count: u64,
    key_len: u64,
    value_len: u64,
}

impl Sum {
    fn add(&mut self, key_len: usize, value_len: usize) {
        self.count += 1;
        self.key_len += key_len as u64;
        self.value_len += value_len as u64;
    }
}

/// Upper bounds of the sizes that values are counted by, in bytes.
const SIZES: [(u64, &str); 6] = [
    (16, "up to 16 B"),
    (128, "up to 128 B"),
    (1 << 10, "up to 1 KiB"),
    (16 << 10, "up to 16 KiB"),
    (1 << 20, "up to 1 MiB"),
    (u64::MAX, "over 1 MiB"),
];

#[derive(Default)]
struct Sums {
    batch_count: u64,
    by_kind: BTreeMap<&'static str, Sum>,
    by_keyspace: BTreeMap<String, Sum>,
    by_size: [Sum; SIZES.len()],
    problems: Vec<String>,
}

impl Stats {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        let mut out = std::io::BufWriter::new(std::io::stdout().lock());
        let mut exit = Exit::Ok;
        let mut documents = Vec::new();
        for dataset in self.place.datasets(env)? {
            let sums = Sums::of(env, &dataset)?;
            if !sums.problems.is_empty() {
                exit = Exit::Problems;
            }
            match self.place.json {
                true => documents.push(sums.document(&dataset)),
                false => sums.print(&mut out, &dataset)?,
            }
        }
        if self.place.json {
            writeln!(out, "{:#}", json!({ "datasets": documents }))?;
        }
        out.flush()?;
        Ok(exit)
    }
}

impl Sums {
    fn of(env: &Env, dataset: &DatasetFiles) -> Result<Sums> {
        let disk = env.disk.as_ref();
        let names = dataset.keyspaces(disk);
        let mut sums = Sums::default();
        for name in &dataset.segments {
            let segment = match SegmentFile::open(disk, name) {
                Ok(segment) => segment,
                Err(error) if error.is_not_found() => continue,
                Err(error) => {
                    sums.problems.push(error.to_string());
                    continue;
                }
            };
            let mut walk = segment.walk();
            loop {
                let stored = match walk.step()? {
                    Found::Batch(stored) => stored,
                    Found::End => break,
                    Found::Damage(damage) => {
                        let (path, at) = (name.path.display(), walk.at());
                        sums.problems.push(format!("{path} @{at}: {damage}"));
                        break;
                    }
                };
                sums.batch_count += 1;
                for record in stored.batch().records() {
                    match record {
                        Ok(record) => sums.record(&record, &names),
                        Err(damage) => {
                            let (path, at) = (name.path.display(), stored.at);
                            sums.problems.push(format!("{path} @{at}: {damage}"));
                        }
                    }
                }
            }
        }
        Ok(sums)
    }

    fn record(&mut self, record: &strandline_wal::batch::Record<'_>, names: &record::Names) {
        let (head_len, value_len) = (record.head.len(), record.body.len());
        let kind = self.by_kind.entry(record::kind_name(record.kind));
        kind.or_default().add(head_len, value_len);
        if record.kind == Kind::Control {
            return;
        }
        let Some((number, key)) = record::split(record.head) else {
            return;
        };
        let keyspace = record::keyspace_name(names, number);
        let keyspace = self.by_keyspace.entry(keyspace);
        keyspace.or_default().add(key.len(), value_len);
        if record.kind == Kind::Put {
            let size = SIZES.iter().position(|(max, _)| value_len as u64 <= *max);
            self.by_size[size.expect("the last bound holds everything")].add(key.len(), value_len);
        }
    }

    fn print(&self, out: &mut dyn Write, dataset: &DatasetFiles) -> Result<()> {
        let batches = text::count(self.batch_count);
        writeln!(out, "dataset {}: batches in the log: {batches}", dataset.id)?;
        let line = |name: &str, sum: &Sum| {
            [
                name.to_owned(),
                text::count(sum.count),
                text::len(sum.key_len),
                text::len(sum.value_len),
            ]
        };
        let kinds: Vec<_> = self.by_kind.iter().map(|(k, s)| line(k, s)).collect();
        columns(out, ["kind", "records", "keys", "values"], &kinds)?;
        let keyspaces: Vec<_> = self.by_keyspace.iter().map(|(k, s)| line(k, s)).collect();
        columns(out, ["keyspace", "records", "keys", "values"], &keyspaces)?;
        let sizes: Vec<_> = SIZES
            .iter()
            .zip(&self.by_size)
            .filter(|(_, sum)| sum.count > 0)
            .map(|((_, name), sum)| line(name, sum))
            .collect();
        columns(out, ["size of value", "records", "keys", "values"], &sizes)?;
        for problem in &self.problems {
            writeln!(out, "  {problem}")?;
        }
        Ok(())
    }

    fn document(&self, dataset: &DatasetFiles) -> Value {
        let sum = |sum: &Sum| {
            json!({
                "record_count": sum.count, "key_len": sum.key_len, "value_len": sum.value_len,
            })
        };
        let kinds: BTreeMap<_, _> = self.by_kind.iter().map(|(k, s)| (k, sum(s))).collect();
        let keyspaces: BTreeMap<_, _> = self.by_keyspace.iter().map(|(k, s)| (k, sum(s))).collect();
        let sizes: Vec<Value> = SIZES
            .iter()
            .zip(&self.by_size)
            .map(|((max, _), s)| json!({ "value_len_max": max, "sum": sum(s) }))
            .collect();
        json!({
            "name": dataset.id.as_str(),
            "batch_count": self.batch_count,
            "by_kind": kinds,
            "by_keyspace": keyspaces,
            "by_size": sizes,
            "problems": self.problems,
        })
    }
}
