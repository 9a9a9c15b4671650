//! One record of the log, ready to be filtered and shown.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use strandline::keyspace_created;
use strandline_wal::batch::{Kind, Record};
use strandline_wal::control::EpochStart;

use crate::text;

/// Bytes of the keyspace number at the head of a data record and of a name in a table.
pub(super) const KEYSPACE_LEN: usize = 4;

/// Names of keyspaces by number.
pub(super) type Names = BTreeMap<u32, String>;

/// Splits the head of a data record, or a name in a table, into keyspace number and key.
pub(super) fn split(name: &[u8]) -> Option<(u32, &[u8])> {
    let (number, key) = name.split_first_chunk::<KEYSPACE_LEN>()?;
    Some((u32::from_be_bytes(*number), key))
}

/// The name of a keyspace, or its number where the name is not known.
pub(super) fn keyspace_name(names: &Names, number: u32) -> String {
    match names.get(&number) {
        Some(name) => text::show(name.as_bytes()),
        None => format!("#{number}"),
    }
}

/// `put`, `delete` or `control`.
pub(super) fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Put => "put",
        Kind::Delete => "delete",
        Kind::Control => "control",
    }
}

/// What a control record says.
pub(super) fn control_text(record: &Record<'_>) -> String {
    if let Some(start) = EpochStart::of(record) {
        let (node, leader) = (text::hex(&start.node), text::hex(&start.leader));
        return format!("epoch start node {node} leader {leader}");
    }
    if let Some((number, name)) = keyspace_created(record) {
        return format!("keyspace {number} is {}", text::show(name.as_bytes()));
    }
    let (head, len) = (text::hex(record.head), record.body.len());
    format!("code {head}, {len} bytes")
}

/// A record as text, without its place.
pub(super) fn line(record: &Record<'_>, names: &Names, value_len_max: usize) -> String {
    let kind = kind_name(record.kind);
    let Some((number, key)) = split(record.head).filter(|_| record.kind != Kind::Control) else {
        return format!("{kind} {}", control_text(record));
    };
    let keyspace = keyspace_name(names, number);
    let key = text::show(key);
    match record.kind {
        Kind::Put => {
            let value = text::preview(record.body, value_len_max);
            format!("{kind} {keyspace} {key} = {value}")
        }
        Kind::Delete | Kind::Control => format!("{kind} {keyspace} {key}"),
    }
}

/// A record as JSON, without its place. Values are whole where `with_value`.
pub(super) fn object(record: &Record<'_>, names: &Names, with_value: bool) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("kind".to_owned(), kind_name(record.kind).into());
    object.insert("shard".to_owned(), record.shard.0.into());
    let Some((number, key)) = split(record.head).filter(|_| record.kind != Kind::Control) else {
        object.insert("control".to_owned(), control_text(record).into());
        return object;
    };
    let keyspace = keyspace_name(names, number);
    object.insert("keyspace".to_owned(), keyspace.into());
    text::put_json(&mut object, "key", key);
    if record.kind == Kind::Put {
        object.insert("value_len".to_owned(), record.body.len().into());
        if with_value {
            text::put_json(&mut object, "value", record.body);
        }
    }
    object
}
