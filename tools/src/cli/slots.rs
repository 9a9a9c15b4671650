//! `slots`: what followers need of a leader's log, and who keeps it from being given back.

use std::io::Write;

use clap::Args;
use serde_json::json;
use strandline::replica::Links;
use strandline::retention::{Holder, SlotState, SlotStatus};
use strandline::{Dataset, Durability, Error};

use crate::failure::{Exit, Failure, Result};
use crate::open::{self, Place, Writing};
use crate::text;

/// `strandline slots`
#[derive(Args)]
pub struct Slots {
    #[command(flatten)]
    place: Place,
    /// Forget a follower, by its name or the digits of its node: no process may have the directory open
    #[arg(long, value_name = "FOLLOWER")]
    drop: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Slots {
    pub(super) fn run(self) -> Result<Exit> {
        if let Some(name) = &self.drop {
            let writing = Writing {
                durability: Durability::Disk,
                shards: None,
                scrub_rate: 0,
                links: Links::default(),
            };
            // Nothing is made where there is nothing.
            drop(open::reader(&self.place.dir)?);
            let (database, dataset) = writing.open(&self.place)?;
            dataset.drop_slot(name).map_err(|error| match error {
                Error::NotFound { .. } => Failure::usage(error.to_string()),
                error => error.into(),
            })?;
            drop(dataset);
            database.close()?;
        }
        let database = open::reader(&self.place.dir)?;
        let dataset = open::dataset(&database, &self.place.dataset)?;
        let mut out = std::io::stdout().lock();
        match self.json {
            true => writeln!(out, "{:#}", as_json(&dataset))?,
            false => as_text(&mut out, &dataset)?,
        }
        Ok(Exit::Ok)
    }
}

fn state(slot: &SlotStatus) -> String {
    match slot.state {
        SlotState::Active => "active".to_owned(),
        SlotState::Lagging => "lagging".to_owned(),
        SlotState::AtRisk { bytes_left } => format!("at risk, {} left", text::len(bytes_left)),
        SlotState::Lost { first_available } => {
            format!("lost, the log begins at record {first_available}")
        }
    }
}

fn node(slot: &SlotStatus) -> String {
    text::hex(&slot.node)
}

fn as_text(out: &mut dyn Write, dataset: &Dataset) -> Result<()> {
    for slot in dataset.slots() {
        let name = text::show(slot.name.as_bytes());
        writeln!(out, "slot {name}  {}", state(&slot))?;
        writeln!(out, "  node     {}", node(&slot))?;
        let durable: Vec<String> = slot.durable.iter().map(|n| text::count(*n)).collect();
        writeln!(out, "  has      {}", durable.join(" + "))?;
        writeln!(out, "  keeps    {}", text::len(slot.bytes))?;
        writeln!(out, "  away     {} s", slot.idle_ms / 1_000)?;
    }
    for Holder {
        what,
        name,
        shard,
        from_seq,
        bytes,
        ..
    } in dataset.who_blocks()
    {
        let name = text::show(name.as_bytes());
        let bytes = text::len(bytes);
        writeln!(
            out,
            "{what} {name}  keeps {bytes} of shard {shard} from record {from_seq}"
        )?;
    }
    Ok(())
}

fn as_json(dataset: &Dataset) -> serde_json::Value {
    let slot = |slot: &SlotStatus| {
        json!({
            "name": slot.name,
            "node": node(slot),
            "state": state(slot),
            "durable": slot.durable,
            "bytes": slot.bytes,
            "idle_ms": slot.idle_ms,
            "created_ms": slot.created_ms,
            "seen_ms": slot.seen_ms,
        })
    };
    let holder = |holder: &Holder| {
        json!({
            "what": holder.what,
            "name": holder.name,
            "shard": holder.shard,
            "from_seq": holder.from_seq,
            "bytes": holder.bytes,
        })
    };
    json!({
        "slots": dataset.slots().iter().map(slot).collect::<Vec<_>>(),
        "holders": dataset.who_blocks().iter().map(holder).collect::<Vec<_>>(),
    })
}
