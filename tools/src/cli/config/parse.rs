//! A configuration file as checked values: every key known, of its type and in its range.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use strandline::replica::Pin;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Absence, DATASET, Key, Kind, SECTIONS, Section, quoted};
use crate::failure::{Failure, Result};

/// A value that is of its key's type and in its range.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    Number(u64),
    Flag(bool),
}

/// The values of one table, defaults included, and where they stand.
pub(super) struct Table {
    section: &'static Section,
    values: BTreeMap<&'static str, (Value, usize)>,
    /// Where it begins.
    pub at: usize,
}

/// A file's tables.
pub(super) struct Tables<'t> {
    pub source: Source<'t>,
    sections: BTreeMap<&'static str, Table>,
    pub datasets: Vec<Table>,
}

/// A file's name and text, for errors that name line and column.
#[derive(Clone, Copy)]
pub(super) struct Source<'t> {
    pub path: &'t Path,
    text: &'t str,
}

impl Source<'_> {
    /// An error at an offset of the file.
    pub fn error(&self, at: usize, why: impl Display) -> Failure {
        let at = at.min(self.text.len());
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Failure::usage(format!("{}:{line}:{column}: {why}", self.path.display()))
    }

    fn wrong(&self, at: usize, section: &Section, key: &Key, found: impl Display) -> Failure {
        let (name, expected) = (full_name(section, key.name), key.kind.expected());
        self.error(at, format!("{name}: found {found}, expected {expected}"))
    }
}

fn full_name(section: &Section, key: &str) -> String {
    match section.name {
        "" => key.to_owned(),
        name => format!("{name}.{key}"),
    }
}

type Entry<'e, 'i> = (&'e str, Range<usize>, &'e Spanned<DeValue<'i>>);

/// The entries of a table in the order of the file.
fn entries<'e, 'i>(table: &'e DeTable<'i>) -> Vec<Entry<'e, 'i>> {
    let entry = |(key, value): (&'e Spanned<_>, &'e Spanned<_>)| -> Entry<'e, 'i> {
        let name: &std::borrow::Cow<'_, str> = key.get_ref();
        (name.as_ref(), key.span(), value)
    };
    let mut entries: Vec<_> = table.iter().map(entry).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// Reads a file's text.
pub(super) fn parse<'t>(path: &'t Path, text: &'t str) -> Result<Tables<'t>> {
    let source = Source { path, text };
    let (document, errors) = DeTable::parse_recoverable(text);
    let place = |error: &toml::de::Error| error.span().map_or(0, |span| span.start);
    // Where several are wrong, the later ones may follow from the first.
    if let Some(error) = errors.iter().min_by_key(|error| place(error)) {
        let why = error.message().lines().collect::<Vec<_>>().join(" ");
        return Err(source.error(place(error), why));
    }
    let mut tables = Tables {
        source,
        sections: BTreeMap::new(),
        datasets: Vec::new(),
    };
    let mut own = Vec::new();
    for (name, span, value) in entries(document.get_ref()) {
        let section = keys::section(name).filter(|section| !section.name.is_empty());
        match (section, value.get_ref()) {
            (None, _) => own.push((name, span, value)),
            (Some(section), DeValue::Array(array)) if section.name == DATASET => {
                for one in array {
                    let DeValue::Table(table) = one.get_ref() else {
                        return Err(not_a_table(source, name, one, "[[dataset]]"));
                    };
                    let at = one.span().start;
                    let table = source.table(section, at, entries(table))?;
                    tables.datasets.push(table);
                }
            }
            (Some(section), DeValue::Table(table)) if section.name != DATASET => {
                let table = source.table(section, span.start, entries(table))?;
                tables.sections.insert(section.name, table);
            }
            (Some(section), _) => {
                let wanted = section.header();
                return Err(not_a_table(source, name, value, wanted.trim()));
            }
        }
    }
    let root = source.table(&SECTIONS[0], 0, own)?;
    tables.sections.insert("", root);
    Ok(tables)
}

fn not_a_table(
    source: Source<'_>,
    name: &str,
    value: &Spanned<DeValue<'_>>,
    wanted: &str,
) -> Failure {
    let found = shown(value.get_ref());
    let text = format!("{name}: found {found}, expected a table {wanted}");
    source.error(value.span().start, text)
}

impl Source<'_> {
    /// Checks the entries of a table and puts in the defaults.
    fn table(
        &self,
        section: &'static Section,
        at: usize,
        entries: Vec<Entry<'_, '_>>,
    ) -> Result<Table> {
        let mut values = BTreeMap::new();
        for (name, span, value) in entries {
            let Some(key) = section.key(name) else {
                return Err(self.error(span.start, unknown(section, name)));
            };
            let at = value.span().start;
            let value = checked(key, value.get_ref())
                .map_err(|found| self.wrong(at, section, key, found))?;
            values.insert(key.name, (value, span.start));
        }
        let table = Table {
            section,
            values,
            at,
        };
        self.check_roles(&table)?;
        Ok(table.with_defaults())
    }

    /// A dataset has the keys of its role, and no others.
    fn check_roles(&self, table: &Table) -> Result<()> {
        let section = table.section;
        let role = table.values.get("role").map(|(role, _)| role.clone());
        let role = match role {
            Some(Value::Text(role)) => role,
            _ => String::new(),
        };
        for key in section.keys {
            let has = key.roles.is_empty() || key.roles.contains(&role.as_str());
            let found = table.values.get(key.name);
            let name = full_name(section, key.name);
            match found {
                Some((_, at)) if !has && !role.is_empty() => {
                    let roles = key.roles.join(" or ");
                    let text = format!(
                        "{name}: found with role {role:?}, expected with role {roles:?} alone"
                    );
                    return Err(self.error(*at, text));
                }
                None if has && matches!(key.default, Absence::Required(_)) => {
                    let expected = key.kind.expected();
                    let text = format!("{name}: found nothing, expected {expected}");
                    return Err(self.error(table.at, text));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A key that there is not: where it belongs, or the nearest one.
fn unknown(section: &Section, name: &str) -> String {
    let full = full_name(section, name);
    let place = match section.name {
        "" => "before the tables",
        _ => "here",
    };
    let text = format!("{full}: no such key {place}");
    let elsewhere = SECTIONS.iter().find(|other| other.key(name).is_some());
    if let Some(other) = elsewhere {
        return match other.name {
            "" => format!("{text}; it stands before the tables"),
            _ => format!("{text}; it belongs to {}", other.header().trim()),
        };
    }
    let own = section.keys.iter().map(|key| key.name);
    let tables = SECTIONS.iter().map(|section| section.name);
    let all = own.chain(tables.filter(|_| section.name.is_empty()));
    match nearest(name, all.filter(|name| !name.is_empty())) {
        Some(near) => format!("{text}; did you mean {near}?"),
        None => text,
    }
}

/// The name that this begins, or else the one that takes the fewest edits, where those are few.
fn nearest<'n>(name: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let few = (name.len() / 3).clamp(2, 6);
    let is_begun = |other: &str| name.len() >= 3 && other.starts_with(name);
    let edits = |other: &str| match is_begun(other) {
        true => 0,
        false => distance(name, other),
    };
    let (count, near) = names.map(|other| (edits(other), other)).min()?;
    (count <= few).then_some(near)
}

/// Number of characters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (n, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = n + 1;
        for (m, y) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[m + 1];
            row[m + 1] = replaced.min(row[m] + 1).min(diagonal + 1);
        }
    }
    row[row.len() - 1]
}

/// The value of a key, or what was found in its place.
fn checked(key: &Key, value: &DeValue<'_>) -> Result<Value, String> {
    let found = || shown(value);
    match (key.kind, value) {
        (Kind::Number(min, max, _), DeValue::Integer(digits)) => {
            let number = u64::from_str_radix(digits.as_str(), digits.radix());
            let number = number.ok().filter(|n| (min..=max).contains(n));
            number.map(Value::Number).ok_or_else(found)
        }
        (Kind::Flag, DeValue::Boolean(is)) => Ok(Value::Flag(*is)),
        (kind, DeValue::Array(array)) if kind.is_list() => {
            let text = |one: &Spanned<DeValue<'_>>| match one.get_ref() {
                DeValue::String(text) if fits(kind, text) => Ok(text.clone().into_owned()),
                other => Err(format!("{} in it", shown(other))),
            };
            let all = array.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            match all.is_empty() {
                true => Err("an empty array".to_owned()),
                false => Ok(Value::List(all)),
            }
        }
        (kind, DeValue::String(text)) if !kind.is_list() && fits(kind, text) => {
            Ok(Value::Text(text.clone().into_owned()))
        }
        _ => Err(found()),
    }
}

/// Whether a text may be a value, or a part of one.
fn fits(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Number(..) | Kind::Flag => false,
        Kind::Listen => text.parse::<SocketAddr>().is_ok(),
        Kind::Peer | Kind::Peers => is_peer(text),
        Kind::Pins => text.parse::<Pin>().is_ok(),
        Kind::Choice(all) => all.contains(&text),
        Kind::Url(schemes) => text.split_once("://").is_some_and(|(scheme, rest)| {
            schemes.contains(&scheme) && !rest.is_empty() && !rest.contains(char::is_whitespace)
        }),
        Kind::Text(_) | Kind::Path | Kind::Paths | Kind::Command => {
            !text.is_empty() && !text.contains('\0')
        }
    }
}

fn is_peer(text: &str) -> bool {
    let host = text.split_once('@').map_or(Some(text), |(node, host)| {
        (!node.is_empty()).then_some(host)
    });
    let parts = host.and_then(|host| host.rsplit_once(':'));
    parts.is_some_and(|(host, port)| {
        let is_plain = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c == '/');
        is_plain && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// A value as it was found, short.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => {
            let short: String = text.chars().take(64).collect();
            let rest = if short.len() < text.len() { "…" } else { "" };
            format!("{}{rest}", quoted(&short))
        }
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(is) => is.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

impl Table {
    fn with_defaults(mut self) -> Table {
        let role = match self.values.get("role") {
            Some((Value::Text(role), _)) => role.clone(),
            _ => String::new(),
        };
        for key in self.section.keys {
            let default = match key.default {
                Absence::Required(_) | Absence::Absent(..) => continue,
                Absence::Text(text) => Value::Text(text.to_owned()),
                Absence::Number(number) => Value::Number(number),
                Absence::Flag(is) => Value::Flag(is),
            };
            if key.roles.is_empty() || key.roles.contains(&role.as_str()) {
                self.values.entry(key.name).or_insert((default, self.at));
            }
        }
        self
    }

    fn value(&self, name: &str) -> Option<&Value> {
        assert!(self.section.key(name).is_some(), "{name} is in the table");
        self.values.get(name).map(|(value, _)| value)
    }

    /// Where a key stands, or its table.
    pub fn at(&self, name: &str) -> usize {
        self.values.get(name).map_or(self.at, |(_, at)| *at)
    }

    pub fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    pub fn list(&self, name: &str) -> Vec<String> {
        match self.value(name) {
            Some(Value::List(all)) => all.clone(),
            _ => Vec::new(),
        }
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.value(name)? {
            Value::Number(number) => Some(*number),
            _ => None,
        }
    }

    pub fn flag(&self, name: &str) -> bool {
        self.value(name) == Some(&Value::Flag(true))
    }

    /// As TOML, in the order of the example.
    fn toml(&self) -> String {
        let mut text = self.section.header();
        for key in self.section.keys {
            if let Some((value, _)) = self.values.get(key.name) {
                text.push_str(&format!("{} = {}\n", key.name, value.toml()));
            }
        }
        text
    }
}

impl Value {
    fn toml(&self) -> String {
        match self {
            Value::Text(text) => quoted(text),
            Value::Number(number) => number.to_string(),
            Value::Flag(is) => is.to_string(),
            Value::List(all) => {
                let all: Vec<String> = all.iter().map(|one| quoted(one)).collect();
                format!("[{}]", all.join(", "))
            }
        }
    }
}

impl Tables<'_> {
    /// A table that is there.
    pub fn get(&self, section: &str) -> Option<&Table> {
        self.sections.get(section)
    }

    /// A table, or its defaults.
    pub fn or_default(&self, section: &str) -> Table {
        let known = keys::section(section).expect("the section is in the table");
        let at = self.sections.get(section).map_or(0, |table| table.at);
        let values = self.sections.get(section).map(|table| table.values.clone());
        let table = Table {
            section: known,
            values: values.unwrap_or_default(),
            at,
        };
        table.with_defaults()
    }

    /// Changes every path.
    pub fn each_path(&mut self, change: impl Fn(&str) -> String) {
        for table in self.sections.values_mut().chain(&mut self.datasets) {
            for (name, (value, _)) in &mut table.values {
                let kind = table.section.key(name).map(|key| key.kind);
                if !matches!(kind, Some(Kind::Path | Kind::Paths)) {
                    continue;
                }
                *value = match value {
                    Value::Text(text) => Value::Text(change(text)),
                    Value::List(all) => Value::List(all.iter().map(|one| change(one)).collect()),
                    Value::Number(_) | Value::Flag(_) => continue,
                };
            }
        }
    }

    /// Everything that is in force, as TOML.
    pub fn toml(&self) -> String {
        let mut parts = Vec::new();
        for section in SECTIONS {
            let is_there = self.sections.contains_key(section.name);
            match section.name {
                DATASET => parts.extend(self.datasets.iter().map(Table::toml)),
                // Without them there is no TLS, and no HTTP.
                "tls" | "http" if !is_there => {}
                name => parts.push(self.or_default(name).toml()),
            }
        }
        parts.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_a_near_one() {
        let names = ["listen", "advertise", "shards", "leader", "leader_command"];
        for (name, near) in [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("advertize", Some("advertise")),
            ("shard", Some("shards")),
            ("adv", Some("advertise")),
            ("xyzzy", None),
        ] {
            assert_eq!(nearest(name, names.into_iter()), near, "{name}");
        }
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
    }

    #[test]
    fn a_peer_has_a_host_and_a_port() {
        for good in ["a:1", "a@b:1", "10.0.0.1:65535", "n@[::1]:4000"] {
            assert!(is_peer(good), "{good}");
        }
        for bad in [
            "",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "@a:1",
            "a b:1",
            "http://a:1",
        ] {
            assert!(!is_peer(bad), "{bad}");
        }
    }
}
