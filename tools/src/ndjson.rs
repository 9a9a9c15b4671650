//! One JSON object per line and key: `{"key":"a","value":"b"}`.
//!
//! | Field | Meaning |
//! |-------|---------|
//! | `key` or `key_hex` | the key, as text or as hexadecimal digits |
//! | `value` or `value_hex` | the value, likewise |
//! | `keyspace` | its keyspace; optional |
//!
//! Bytes that are UTF-8 are written as text, all others as digits, so every key and value comes back
//! as it was.

use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};
use strandline::Dataset;

use crate::failure::{Exit, Failure, Result};
use crate::load::Loader;
use crate::open::KEYSPACE;
use crate::text;

/// Longest line that is read. The longest value, every byte of it escaped, fits.
const LINE_LEN_MAX: u64 = 512 << 20;
/// Broken lines that are told of one by one; the others are only counted.
const BAD_LINE_COUNT_SHOWN: u64 = 20;

#[derive(Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    #[serde(skip_serializing_if = "Option::is_none")]
    keyspace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_hex: Option<String>,
}

/// A line's content.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pair {
    /// Where the line names one.
    pub keyspace: Option<String>,
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// Writes one line, with its end.
///
/// # Errors
/// The output's.
pub fn encode(
    out: &mut dyn Write,
    keyspace: Option<&str>,
    key: &[u8],
    value: &[u8],
) -> std::io::Result<()> {
    let (key, key_hex) = field(key);
    let (value, value_hex) = field(value);
    let keyspace = keyspace.map(str::to_owned);
    let line = Line {
        keyspace,
        key,
        key_hex,
        value,
        value_hex,
    };
    serde_json::to_writer(&mut *out, &line)?;
    out.write_all(b"\n")
}

fn field(bytes: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_) => (None, Some(text::hex(bytes))),
    }
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it.
pub fn decode(line: &[u8]) -> Result<Pair, String> {
    // An array of the right texts would do for the parser.
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err("not a JSON object".to_owned());
    }
    let line: Line = serde_json::from_slice(line).map_err(|error| {
        let text = error.to_string();
        // The line is counted by the caller; only the column is news.
        match text.rsplit_once(" at line 1 column ") {
            Some((what, column)) => format!("{what} (column {column})"),
            None => text,
        }
    })?;
    Ok(Pair {
        key: either("key", line.key, line.key_hex)?,
        value: either("value", line.value, line.value_hex)?,
        keyspace: line.keyspace,
    })
}

fn either(name: &str, text: Option<String>, digits: Option<String>) -> Result<Vec<u8>, String> {
    match (text, digits) {
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(digits)) => text::unhex(digits.as_bytes())
            .ok_or_else(|| format!("{name}_hex is not pairs of hexadecimal digits")),
        (None, None) => Err(format!("no {name} and no {name}_hex")),
        (Some(_), Some(_)) => Err(format!("both {name} and {name}_hex")),
    }
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Imported {
    /// Lines that were put.
    pub line_count: u64,
    /// Broken lines that were left out.
    pub bad_count: u64,
}

/// Puts every line of `input`, whose name is `source`, into a dataset.
///
/// # Errors
/// Problems at the first broken line, naming `source:line`, unless `skip_bad`; the lines before it
/// are put. The engine's.
pub fn import(
    dataset: &Dataset,
    mut loader: Loader,
    source: &str,
    input: &mut dyn BufRead,
    options: &ImportOptions<'_>,
) -> Result<Imported> {
    let mut imported = Imported::default();
    let mut keyspaces = Vec::new();
    let mut line = Vec::new();
    let mut number = 0u64;
    let outcome = loop {
        line.clear();
        let mut bounded = std::io::Read::take(&mut *input, LINE_LEN_MAX);
        let read = bounded.read_until(b'\n', &mut line);
        let len = read.map_err(|error| Failure::io(format!("read {source}: {error}")))?;
        if len == 0 {
            break Ok(());
        }
        number += 1;
        (options.progress)(len as u64);
        let is_cut = len as u64 == LINE_LEN_MAX && line.last() != Some(&b'\n');
        if is_cut {
            let limit = LINE_LEN_MAX >> 20;
            let text = format!("{source}:{number}: the line is over the limit of {limit} MiB");
            break Err(Failure::problems(text));
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let put = put(dataset, &mut loader, &mut keyspaces, options, &line);
        match put {
            Ok(()) => imported.line_count += 1,
            // Not the line's fault.
            Err(failure) if failure.exit == Exit::Io => break Err(failure),
            Err(failure) => {
                let failure = Failure::problems(format!("{source}:{number}: {failure}"));
                if !options.skip_bad {
                    break Err(failure);
                }
                imported.bad_count += 1;
                if imported.bad_count <= BAD_LINE_COUNT_SHOWN {
                    eprintln!("{failure}; skipped");
                }
            }
        }
    };
    // What came before a broken line stays, at the level that was asked for.
    loader.finish()?;
    let put_before = text::plural(imported.line_count, "line");
    outcome.map_err(|failure: Failure| Failure {
        message: format!("{failure}; the {put_before} before it are imported (--skip-bad goes on)"),
        ..failure
    })?;
    Ok(imported)
}

/// How to import.
pub struct ImportOptions<'a> {
    /// The keyspace of lines that name none.
    pub keyspace: &'a str,
    /// Whether broken lines are counted and left out.
    pub skip_bad: bool,
    /// Told the bytes of every line.
    pub progress: &'a dyn Fn(u64),
}

fn put(
    dataset: &Dataset,
    loader: &mut Loader,
    keyspaces: &mut Vec<strandline::Keyspace>,
    options: &ImportOptions<'_>,
    line: &[u8],
) -> Result<()> {
    let pair = decode(line).map_err(Failure::problems)?;
    let name = pair.keyspace.as_deref().unwrap_or(options.keyspace);
    let known = keyspaces
        .iter()
        .position(|keyspace| keyspace.name() == name);
    let at = match known {
        Some(at) => at,
        None => {
            keyspaces.push(dataset.keyspace(name)?);
            keyspaces.len() - 1
        }
    };
    loader.put(&keyspaces[at], &pair.key, &pair.value)
}

/// Writes a keyspace, or all of them, as it is at this moment. Returns the number of lines.
///
/// Lines carry their keyspace where all are written and it is not the default one.
///
/// # Errors
/// The engine's, the output's; problems where there is no such keyspace.
pub fn export(
    dataset: &Dataset,
    only: Option<&str>,
    out: &mut dyn Write,
    out_name: &str,
    progress: &dyn Fn(u64),
) -> Result<u64> {
    let keyspaces = match only {
        Some(name) => vec![crate::open::read_keyspace(dataset, name)?.1],
        None => dataset.keyspaces(),
    };
    let snapshot = dataset.snapshot();
    let mut line_count = 0;
    for keyspace in &keyspaces {
        let named = (only.is_none() && keyspace.name() != KEYSPACE).then_some(keyspace.name());
        for entry in snapshot.iter(keyspace) {
            let (key, value) = entry?;
            encode(out, named, &key, &value).map_err(|error| match error.kind() {
                std::io::ErrorKind::BrokenPipe => Failure::from(error),
                _ => Failure::io(format!("write {out_name}: {error}")),
            })?;
            progress((key.len() + value.len()) as u64);
            line_count += 1;
        }
    }
    out.flush()?;
    Ok(line_count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(key: &[u8], value: &[u8]) -> (String, Pair) {
        let mut line = Vec::new();
        encode(&mut line, None, key, value).unwrap();
        let pair = decode(&line).unwrap();
        (String::from_utf8(line).unwrap(), pair)
    }

    #[test]
    fn every_pair_of_byte_strings_comes_back() {
        let samples: [&[u8]; 6] = [
            b"",
            b"a",
            b"\xff",
            "é\u{0}\u{7f}".as_bytes(),
            b"\n\"\\",
            b"hex:",
        ];
        for key in samples {
            for value in samples {
                let (line, pair) = round(key, value);
                assert_eq!((&pair.key[..], &pair.value[..]), (key, value), "{line}");
                assert_eq!(line.lines().count(), 1);
            }
        }
    }

    #[test]
    fn text_stays_text_and_bytes_become_digits() {
        assert_eq!(round(b"k", b"v").0, "{\"key\":\"k\",\"value\":\"v\"}\n");
        let (line, _) = round(b"k", b"\xff");
        assert_eq!(line, "{\"key\":\"k\",\"value_hex\":\"ff\"}\n");
    }

    #[test]
    fn a_broken_line_says_what_is_broken() {
        for (line, expected) in [
            ("{\"key\":\"a\"}", "no value and no value_hex"),
            ("{\"value\":\"a\"}", "no key and no key_hex"),
            (
                "{\"key\":\"a\",\"key_hex\":\"61\",\"value\":\"\"}",
                "both key and key_hex",
            ),
            (
                "{\"key\":\"a\",\"value_hex\":\"6\"}",
                "value_hex is not pairs",
            ),
            ("{\"key\":\"a\",\"valu\":\"\"}", "unknown field `valu`"),
            ("{\"key\":1,\"value\":\"\"}", "invalid type"),
            ("{\"key\":\"a\"", "EOF while parsing"),
            ("[null,\"k\",null,\"v\",null]", "not a JSON object"),
        ] {
            let error = decode(line.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
