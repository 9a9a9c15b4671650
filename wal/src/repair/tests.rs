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
