//! What a node shows over HTTP: `/metrics` for Prometheus, `/health` and `/status` as JSON.

use serde_json::{Value, json};
use strandline::replica::FollowerStatus;
use strandline::{Database, Dataset, Position, Role};

use super::Answer;
use crate::text::hex;

const JSON: &str = "application/json";

/// The page of a path.
pub(crate) fn page(database: &Database, path: &str) -> Option<Answer> {
    match path {
        "/metrics" => Some(Answer {
            status: "200 OK",
            kind: "text/plain; version=0.0.4; charset=utf-8",
            body: database.metrics(),
        }),
        "/health" => Some(health(database)),
        "/status" => Some(document("200 OK", &status(database))),
        _ => None,
    }
}

fn document(status: &'static str, document: &Value) -> Answer {
    Answer {
        status,
        kind: JSON,
        body: format!("{document:#}\n"),
    }
}

/// 200 where every dataset does what it should, 503 and the reasons where one does not.
fn health(database: &Database) -> Answer {
    let reasons: Vec<Value> = database
        .datasets()
        .iter()
        .flat_map(|dataset| {
            let name = dataset.name();
            let reason = move |why: String| json!({ "dataset": name, "why": why });
            ailments(dataset).into_iter().map(reason)
        })
        .collect();
    let status = match reasons.is_empty() {
        true => "200 OK",
        false => "503 Service Unavailable",
    };
    document(
        status,
        &json!({ "ok": reasons.is_empty(), "reasons": reasons }),
    )
}

/// Why a dataset does not do what it should.
fn ailments(dataset: &Dataset) -> Vec<String> {
    let mut all = Vec::new();
    if let Err(error) = dataset.health() {
        all.push(error.to_string());
    }
    if let Some(following) = dataset.follow_status() {
        if !following.connected {
            let why = following.last_error.unwrap_or_else(|| "not yet".to_owned());
            all.push(format!("not connected to {}: {why}", following.leader));
        }
        if following.joins {
            all.push("it does not have all that its leader had when it came".to_owned());
        }
    }
    match dataset.stats().damage_count {
        0 => {}
        count => all.push(format!("damaged places: {count}")),
    }
    all
}

/// How every dataset stands.
fn status(database: &Database) -> Value {
    let datasets: Vec<Value> = database.datasets().iter().map(standing).collect();
    json!({
        "node": hex(&database.node()),
        "version": env!("CARGO_PKG_VERSION"),
        "directory": database.path().display().to_string(),
        "datasets": datasets,
    })
}

fn standing(dataset: &Dataset) -> Value {
    let positions = dataset.positions();
    let epoch = positions.iter().map(|position| position.epoch.0).max();
    let role = dataset.role();
    let mut standing = json!({
        "name": dataset.name(),
        "role": match role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Reader => "reader",
        },
        "epoch": match role {
            Role::Leader => dataset.stats().epoch,
            Role::Follower | Role::Reader => epoch.unwrap_or(0),
        },
        "positions": positions_of(&positions),
        "ailments": ailments(dataset),
    });
    if role == Role::Leader {
        standing["followers"] = dataset.followers().iter().map(follower).collect();
    }
    if let Some(following) = dataset.follow_status() {
        standing["leader"] = following.leader.into();
        standing["connected"] = following.connected.into();
        standing["joins"] = following.joins.into();
        standing["apply_lag"] = following.apply_lag.into();
        standing["last_error"] = following.last_error.into();
        standing["last_cut"] = following.last_cut.into();
    }
    standing
}

fn follower(follower: &FollowerStatus) -> Value {
    json!({
        "name": follower.name,
        "node": hex(&follower.node),
        "connected": follower.connected,
        "received": follower.received,
        "durable": follower.durable,
        "applied": follower.applied,
        "transport_lag": follower.transport_lag,
        "apply_lag": follower.apply_lag,
        "lag_ms": follower.lag_ms,
    })
}

fn positions_of(positions: &[Position]) -> Value {
    let of = |position: &Position| json!({ "epoch": position.epoch.0, "seq": position.seq });
    positions.iter().map(of).collect()
}
