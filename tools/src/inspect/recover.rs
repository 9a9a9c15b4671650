//! `walinspect recover --dry-run`: the plan that opening the database would carry out.

use std::io::Write;

use clap::Args;
use serde_json::{Value, json};
use strandline::verify::recovery_plans;
use strandline_wal::io::Env;
use strandline_wal::recover::{Action, Plan};

use super::Where;
use crate::failure::{Exit, Failure, Result};

/// `walinspect recover`
#[derive(Args)]
pub struct Recover {
    #[command(flatten)]
    place: Where,
    /// Only print the plan. Required: opening the database is what carries it out
    #[arg(long)]
    dry_run: bool,
}

impl Recover {
    pub(super) fn run(self, env: &Env) -> Result<Exit> {
        if !self.dry_run {
            return Err(Failure::usage(
                "recover only prints the plan: add --dry-run; opening the database carries it out",
            ));
        }
        let mut out = std::io::stdout().lock();
        let mut exit = Exit::Ok;
        let mut documents = Vec::new();
        for dataset in self.place.datasets(env)? {
            for plan in recovery_plans(&self.place.dir, &dataset.id, env)? {
                let is_clean = matches!(&plan, Ok(plan) if plan.cut.is_none());
                if !is_clean {
                    exit = Exit::Problems;
                }
                match (self.place.json, plan) {
                    (true, plan) => documents.push(document(plan.as_ref())),
                    (false, Ok(plan)) => write!(out, "{plan}")?,
                    (false, Err(error)) => {
                        writeln!(out, "dataset {} would not open: {error}", dataset.id)?;
                    }
                }
            }
        }
        if self.place.json {
            writeln!(out, "{:#}", json!({ "plans": documents }))?;
        }
        Ok(exit)
    }
}

fn document(plan: Result<&Plan, &strandline_wal::Error>) -> Value {
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return json!({ "error": error.to_string() }),
    };
    let actions: Vec<Value> = plan
        .actions
        .iter()
        .map(|action| match action {
            Action::Remove(path) => json!({ "remove": path }),
            Action::Truncate { path, len } => json!({ "truncate": path, "len": len }),
        })
        .collect();
    let cut = plan.cut.as_ref().map(|cut| {
        json!({
            "path": cut.path,
            "at": cut.at,
            "first_seq": cut.first_seq,
            "last_seq": cut.last_seq,
            "reason": cut.reason,
        })
    });
    json!({
        "log": plan.log.to_string(),
        "epoch": plan.position().epoch.0,
        "seq": plan.position().seq,
        "durable_seq": plan.durable_seq,
        "segment_count": plan.segments.len(),
        "actions": actions,
        "cut": cut,
    })
}
