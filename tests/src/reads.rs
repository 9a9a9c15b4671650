//! Reads held against the model.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeBounds};

use strandline::{Cursor, Iter, Value};

use crate::model::{Bytes, brief};
use crate::ops::{Ends, Move, Walk};

type Map = BTreeMap<Vec<u8>, Bytes>;

/// The bounds of a walk, as keys.
pub fn bounds(walk: &Walk, keys: &[Vec<u8>]) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    let key = |bound: &Bound<usize>| bound.map(|id| keys[id].clone());
    (key(&walk.lower), key(&walk.upper))
}

/// One value.
///
/// # Errors
/// Where they differ.
pub fn value(what: &str, found: Option<&Value>, expected: Option<&Bytes>) -> Result<(), String> {
    if found.map(|v| &v[..]) == expected.map(|v| &v[..]) {
        return Ok(());
    }
    let show = |bytes: Option<&[u8]>| bytes.map_or("nothing".to_owned(), brief);
    let (expected, found) = (show(expected.map(|v| &v[..])), show(found.map(|v| &v[..])));
    Err(format!("{what}: expected {expected}, found {found}"))
}

/// The number of keys.
///
/// # Errors
/// Where they differ.
pub fn len(what: &str, (len, is_empty): (u64, bool), map: &Map) -> Result<(), String> {
    let expected = (map.len() as u64, map.is_empty());
    if (len, is_empty) == expected {
        return Ok(());
    }
    let found = (len, is_empty);
    Err(format!("{what}: expected {expected:?}, found {found:?}"))
}

/// A walk over a range of a map.
///
/// # Errors
/// Where they differ, and what the engine failed with.
pub fn range(
    what: &str,
    iter: Iter,
    map: &Map,
    range: (Bound<Vec<u8>>, Bound<Vec<u8>>),
    ends: &Ends,
) -> Result<(), String> {
    let expected = map.iter().filter(|(key, _)| range.contains(*key));
    compare(what, iter, expected, ends)
}

/// A walk over all keys with a prefix.
///
/// # Errors
/// As [`range()`].
pub fn prefix(what: &str, iter: Iter, map: &Map, prefix: &[u8], ends: &Ends) -> Result<(), String> {
    let expected = map.iter().filter(|(key, _)| key.starts_with(prefix));
    compare(what, iter, expected, ends)
}

fn compare<'a>(
    what: &str,
    mut iter: Iter,
    mut expected: impl DoubleEndedIterator<Item = (&'a Vec<u8>, &'a Bytes)>,
    ends: &Ends,
) -> Result<(), String> {
    for step in 0_u32.. {
        let back = match ends {
            Ends::Forward => false,
            Ends::Backward => true,
            Ends::Both(bits) => bits >> (step % 16) & 1 == 1,
        };
        let (found, expected) = match back {
            true => (iter.next_back(), expected.next_back()),
            false => (iter.next(), expected.next()),
        };
        let found = found
            .transpose()
            .map_err(|error| format!("{what}: step {step}: {error}"))?;
        let show = |entry: Option<(&[u8], &[u8])>| {
            entry.map_or("the end".to_owned(), |(key, value)| {
                format!("{} = {}", brief(key), brief(value))
            })
        };
        let found = found.as_ref().map(|(key, value)| (&key[..], &value[..]));
        let expected = expected.map(|(key, value)| (&key[..], &value[..]));
        if found != expected {
            let (expected, found) = (show(expected), show(found));
            return Err(format!(
                "{what}: step {step}: expected {expected}, found {found}"
            ));
        }
        if expected.is_none() {
            break;
        }
    }
    // At its end it stays at its end.
    match iter.next().is_none() && iter.next_back().is_none() {
        true => Ok(()),
        false => Err(format!("{what}: it goes on behind its end")),
    }
}

/// A cursor's moves.
///
/// # Errors
/// Where it stands elsewhere than it should, and what the engine failed with.
pub fn cursor(
    what: &str,
    cursor: &mut Cursor,
    map: &Map,
    moves: &[Move],
    keys: &[Vec<u8>],
) -> Result<(), String> {
    let mut at: Option<Vec<u8>> = None;
    for (n, step) in moves.iter().enumerate() {
        let failed = |error: strandline::Error| format!("{what}: move {n} {step:?}: {error}");
        let first = |range: (Bound<&[u8]>, Bound<&[u8]>)| {
            map.range::<[u8], _>(range)
                .next()
                .map(|(key, _)| key.clone())
        };
        let last = |range: (Bound<&[u8]>, Bound<&[u8]>)| {
            map.range::<[u8], _>(range)
                .next_back()
                .map(|(key, _)| key.clone())
        };
        let (moved, expected) = match step {
            Move::First => (cursor.first(), map.keys().next().cloned()),
            Move::Last => (cursor.last(), map.keys().next_back().cloned()),
            Move::Next => (
                cursor.next(),
                at.as_deref()
                    .and_then(|at| first((Bound::Excluded(at), Bound::Unbounded))),
            ),
            Move::Prev => (
                cursor.prev(),
                at.as_deref()
                    .and_then(|at| last((Bound::Unbounded, Bound::Excluded(at)))),
            ),
            Move::Seek(id) => {
                let range = (Bound::Included(&keys[*id][..]), Bound::Unbounded);
                (cursor.seek(&keys[*id]), first(range))
            }
            Move::SeekBack(id) => {
                let range = (Bound::Unbounded, Bound::Included(&keys[*id][..]));
                (cursor.seek_back(&keys[*id]), last(range))
            }
        };
        let moved = moved.map_err(failed)?;
        if moved != expected.is_some() || cursor.key() != expected.as_deref() {
            let show = |key: Option<&[u8]>| key.map_or("nowhere".to_owned(), brief);
            let (expected, found) = (show(expected.as_deref()), show(cursor.key()));
            return Err(format!(
                "{what}: move {n} {step:?}: expected {expected}, found {found}"
            ));
        }
        let found = cursor.value().map_err(failed)?;
        let expected_value = expected.as_ref().and_then(|key| map.get(key));
        value(
            &format!("{what}: move {n} {step:?}"),
            found.as_ref(),
            expected_value,
        )?;
        at = expected;
    }
    Ok(())
}
