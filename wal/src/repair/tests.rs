//! Tests of what is taken from the other copy of a segment.

use super::*;
use crate::writer::tests::{as_it_is, segment, two_epochs};

const PATH: &str = "segment";

#[test]
fn a_footer_is_taken_where_it_is_that_of_these_bytes() {
    let theirs = segment(&two_epochs(), 1);
    let ours = as_it_is(&theirs);
    let repaired = merge(&ours, &theirs, Path::new(PATH)).unwrap();
    assert!(repaired.is_sealed && repaired.bytes == theirs);
    let nonce = repaired.header.nonce;
    let (at, len) = (ours.len(), ours.len() as u64);
    let mut footer = Footer::decode(&theirs[at..], nonce, len, Path::new(PATH)).unwrap();
    footer.digest[0] ^= 1;
    let other = [&ours[..], &footer.encode(nonce)].concat();
    let repaired = merge(&ours, &other, Path::new(PATH)).unwrap();
    assert!(
        !repaired.is_sealed && repaired.taken.is_empty(),
        "{repaired:?}"
    );
}

/// Where the batches of a segment start, and where the last one ends.
fn places(bytes: &[u8]) -> Vec<usize> {
    let mut places = vec![SEGMENT_HEADER_LEN];
    while let Ok(batch) = crate::batch::Batch::decode(&bytes[*places.last().unwrap()..]) {
        places.push(places.last().unwrap() + batch.header.batch_len());
    }
    places
}

fn flipped(bytes: &[u8], places: &[usize]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    places.iter().for_each(|at| bytes[*at] ^= 1);
    bytes
}

#[test]
fn what_is_damaged_here_is_taken_from_there_and_nothing_else() {
    let whole = segment(&two_epochs(), 1);
    let at = places(&whole);
    let range = |from: usize, to: usize| from as u64..to as u64;
    let footer = range(at[3], whole.len());
    let cases = [
        (whole.clone(), whole.clone(), vec![]),
        (whole.clone(), Vec::new(), vec![]),
        (Vec::new(), whole.clone(), vec![range(0, whole.len())]),
        (flipped(&whole, &[8]), whole.clone(), vec![range(0, 512)]),
        (
            flipped(&whole, &[at[1] + 70]),
            whole.clone(),
            vec![range(at[1], at[2])],
        ),
        (
            flipped(&whole, &[at[0], at[2]]),
            flipped(&whole, &[at[1]]),
            vec![range(at[0], at[1]), range(at[2], at[3])],
        ),
        (
            flipped(&whole, &[at[0], at[1]]),
            whole.clone(),
            vec![range(at[0], at[2])],
        ),
        (
            whole[..at[2]].to_vec(),
            whole.clone(),
            vec![range(at[2], whole.len())],
        ),
        (flipped(&whole, &[at[3] + 9]), whole.clone(), vec![footer]),
    ];
    for (ours, theirs, taken) in cases {
        let repaired = merge(&ours, &theirs, Path::new(PATH)).unwrap();
        assert!(repaired.is_sealed && repaired.bytes == whole, "{taken:?}");
        assert_eq!((repaired.taken, repaired.last_seq), (taken, 3));
        assert_eq!(repaired.data_len, at[3] as u64);
    }
}

#[test]
fn what_is_damaged_in_both_copies_ends_the_batches() {
    let whole = segment(&two_epochs(), 1);
    let at = places(&whole);
    let bad = flipped(&whole, &[at[1] + 70]);
    let repaired = merge(&bad, &bad, Path::new(PATH)).unwrap();
    assert_eq!((repaired.last_seq, repaired.data_len), (1, at[1] as u64));
    assert!(!repaired.is_sealed && repaired.taken.is_empty());
    assert_eq!(repaired.bytes, bad, "what lies behind stays as it is");
}

#[test]
fn copies_of_two_histories_are_not_mixed() {
    let whole = segment(&two_epochs(), 1);
    let other = crate::writer::tests::forge(&whole, |header| header.nonce ^= 1, |_, _| {});
    let error = merge(&whole, &other, Path::new(PATH)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("segment is damaged at byte 0: other copy"),
        "{text}"
    );
    assert!(text.contains("as in this copy, found nonce 0x"), "{text}");
    let error = merge(&flipped(&whole, &[0]), &[], Path::new(PATH)).unwrap_err();
    assert!(error.to_string().contains("segment magic"), "{error}");
}
