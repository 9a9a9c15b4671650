//! Payload bytes of every message, out and in. The tables stand in [`super`].

use std::fmt;

mod decode;
mod encode;

pub(super) use decode::decode;
pub(super) use encode::{encode, encode_data};

const MAGIC: [u8; 4] = *b"SDLR";

/// Name, kind byte and length of the fixed part, per message. Held against the tables by a test.
pub(crate) const FIXED: [(&str, u8, usize); 21] = [
    ("Hello", 1, 72),
    ("Welcome", 2, 80),
    ("Refused", 3, 16),
    ("Ends", 4, 8),
    ("Verdicts", 5, 8),
    ("Data", 6, DATA_FIXED_LEN),
    ("Seal", 7, 24),
    ("Tick", 8, 32),
    ("Ack", 9, 24),
    ("Credit", 10, 8),
    ("BundleAsk", 11, 16),
    ("BundleBegin", 12, 24),
    ("BundleFiles", 13, 8),
    ("BundleFrom", 14, 16),
    ("BundleData", 15, 16),
    ("BundleEnd", 16, 16),
    ("PromiseRequest", 17, 4),
    ("Promise", 18, 8),
    ("PromiseRefused", 19, 20),
    ("StatusRequest", 20, 0),
    ("Status", 21, 48),
];

/// Length of Data before its bytes.
pub const DATA_FIXED_LEN: usize = 64;
pub(super) const END_LEN: usize = 40;
pub(super) const VERDICT_LEN: usize = 48;
pub(super) const MARK_LEN: usize = 24;
pub(super) const ACK_LEN: usize = 32;
pub(super) const FILE_LEN: usize = 56;

/// Why a payload is not a message.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Wrong {
    what: &'static str,
    found: u64,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {}", self.what, self.found)
    }
}

fn wrong(what: &'static str, found: impl TryInto<u64>) -> Wrong {
    Wrong {
        what,
        found: found.try_into().unwrap_or(u64::MAX),
    }
}

pub(super) fn u32_in(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(super) fn u64_in(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
