//! Tests of the wire format: it reads back, it refuses what is damaged or hostile, and the tables in
//! the documentation are what is encoded.

use proptest::prelude::*;
use strandline_wal::{DatasetId, Hlc, Position, ShardId};

use super::codec::{self, FIXED};
use super::frame::{DATA_LEN_MAX, payload_len};
use super::*;
use crate::error::Reason;
use crate::ids::{Incarnation, LeaderId, Lineage, NodeId};
use crate::store::Times;

/// A small generator, so that one number names a message.
pub(crate) struct Seed(pub u64);

impl Seed {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> usize {
        (self.next() % n) as usize
    }

    fn id(&mut self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.next().to_le_bytes());
        id[8..].copy_from_slice(&self.next().to_le_bytes());
        id
    }

    fn bytes(&mut self) -> Vec<u8> {
        (0..self.below(300)).map(|_| self.next() as u8).collect()
    }

    fn name(&mut self) -> String {
        "n".repeat(1 + self.below(64))
    }

    fn list<T>(&mut self, mut entry: impl FnMut(&mut Seed) -> T) -> Vec<T> {
        (0..self.below(5)).map(|_| entry(self)).collect()
    }

    fn shard(&mut self) -> ShardId {
        ShardId(self.next() as u16)
    }

    fn epoch(&mut self) -> Epoch {
        Epoch(self.next() as u32 & EPOCH_MAX.0)
    }

    fn position(&mut self) -> Position {
        Position {
            epoch: self.epoch(),
            seq: self.next(),
        }
    }

    fn times(&mut self) -> Times {
        Times {
            closed: Hlc(self.next()),
            committed: Hlc(self.next()),
        }
    }

    fn end(&mut self) -> ShardEnd {
        ShardEnd {
            shard: self.shard(),
            position: self.position(),
            leader: LeaderId(self.id()),
            chain: self.next() as u32,
        }
    }

    fn ack(&mut self) -> AckEntry {
        AckEntry {
            shard: self.shard(),
            received: self.next(),
            durable: self.next(),
            applied: self.next(),
        }
    }

    fn verdict(&mut self) -> Verdict {
        let shard = self.shard();
        match self.below(3) {
            0 => Verdict::Agreed {
                shard,
                position: self.position(),
                segment: self.next(),
                at: self.next(),
            },
            1 => Verdict::Ends {
                shard,
                position: self.position(),
                leader: LeaderId(self.id()),
            },
            _ => Verdict::Pruned {
                shard,
                first_available: self.next(),
            },
        }
    }

    /// A message of the kind number `kind` of [`FIXED`].
    pub(crate) fn message(&mut self, kind: usize) -> Message {
        match FIXED[kind].0 {
            "Hello" => Message::Hello(Hello {
                versions: (self.next() as u16, self.next() as u16),
                purpose: [Purpose::Follow, Purpose::Fetch, Purpose::Control][self.below(3)],
                promised_epoch: self.epoch(),
                node: NodeId(self.id()),
                incarnation: Incarnation(self.id()),
                lineage: Lineage(self.id()),
                name: self.name(),
                dataset: DatasetId::new(&"d".repeat(1 + self.below(48))).unwrap(),
                ends: self.list(Seed::end),
            }),
            "Welcome" => Message::Welcome(Welcome {
                version: self.next() as u16,
                wants: Wants {
                    received: self.below(2) == 1,
                    durable: self.below(2) == 1,
                    applied: self.below(2) == 1,
                },
                epoch: self.epoch(),
                node: NodeId(self.id()),
                incarnation: Incarnation(self.id()),
                leader: LeaderId(self.id()),
                lineage: Lineage(self.id()),
                name: self.name(),
                verdicts: self.list(Seed::verdict),
                sole: self.below(2) == 1,
            }),
            "Refused" => Message::Refused(Refusal {
                reason: Reason::of(1 + self.below(12) as u8).unwrap(),
                text: self.name(),
                have: self.name(),
                want: String::new(),
                epoch: self.epoch(),
            }),
            "Ends" => Message::Ends(self.list(Seed::end)),
            "Verdicts" => Message::Verdicts(self.list(Seed::verdict)),
            "Data" => Message::Data(Data {
                head: DataHead {
                    epoch: self.epoch(),
                    shard: self.shard(),
                    segment: self.next(),
                    at: self.next(),
                    written: self.next(),
                    committed: self.next(),
                    times: self.times(),
                    wall_ms: self.next(),
                },
                bytes: self.bytes().into(),
            }),
            "Seal" => Message::Seal(Seal {
                epoch: self.epoch(),
                shard: self.shard(),
                segment: self.next(),
                at: self.next(),
                footer: self.bytes(),
            }),
            "Tick" => Message::Tick(Tick {
                epoch: self.epoch(),
                wall_ms: self.next(),
                times: self.times(),
                marks: self.list(|s| TickMark {
                    shard: s.shard(),
                    written: s.next(),
                    committed: s.next(),
                }),
            }),
            "Ack" => Message::Ack(Ack {
                epoch: self.epoch(),
                wall_ms: self.next(),
                taken: self.next(),
                acks: self.list(Seed::ack),
            }),
            "Credit" => Message::Credit {
                granted: self.next(),
            },
            "BundleAsk" => Message::BundleAsk {
                again: BundleId(self.id()),
            },
            "BundleBegin" => Message::BundleBegin {
                id: BundleId(self.id()),
                file_count: self.below(1 << 20) as u32,
                ends: self.list(Seed::end),
            },
            "BundleFiles" => Message::BundleFiles(self.list(|s| BundleFile {
                kind: s.next() as u8,
                number: s.next(),
                len: s.next(),
                digest: [s.next() as u8; 32],
            })),
            "BundleFrom" => Message::BundleFrom {
                file: self.next() as u32,
                at: self.next(),
            },
            "BundleData" => Message::BundleData {
                file: self.next() as u32,
                at: self.next(),
                bytes: self.bytes(),
            },
            "BundleEnd" => Message::BundleEnd {
                id: BundleId(self.id()),
            },
            "PromiseRequest" => Message::PromiseRequest {
                epoch: self.epoch(),
            },
            "Promise" => Message::Promise {
                epoch: self.epoch(),
                ends: self.list(Seed::end),
            },
            "PromiseRefused" => {
                let promise = Promise {
                    epoch: self.epoch(),
                    to: NodeId(self.id()),
                };
                Message::PromiseRefused { promise }
            }
            "StatusRequest" => Message::StatusRequest,
            "Status" => Message::Status(Status {
                role: [Role::Leader, Role::Follower, Role::Candidate][self.below(3)],
                promise: Promise {
                    epoch: self.epoch(),
                    to: NodeId(self.id()),
                },
                epoch: self.epoch(),
                leader: LeaderId(self.id()),
                leader_name: self.name(),
                shards: self.list(|s| (s.end(), s.ack())),
            }),
            other => unreachable!("{other} has no generator"),
        }
    }
}

fn reopen(frame: Vec<u8>) -> Result<Option<Message>, crate::Error> {
    Link::default().open("peer", frame)
}

proptest! {
    #[test]
    fn every_message_reads_back(seed: u64, kind in 0..FIXED.len()) {
        let message = Seed(seed).message(kind);
        let frame = Link::default().seal(&message);
        prop_assert_eq!(payload_len(&frame).unwrap() + FRAME_HEADER_LEN, frame.len());
        prop_assert_eq!(reopen(frame).unwrap(), Some(message));
    }

    #[test]
    fn one_flipped_bit_is_always_found(seed: u64, kind in 0..FIXED.len(), at: prop::sample::Index, bit in 0..8) {
        let mut frame = Link::default().seal(&Seed(seed).message(kind));
        let at = at.index(frame.len());
        frame[at] ^= 1u8 << bit;
        prop_assert!(reopen(frame).is_err());
    }

    /// A sender that computes its checksums right may still send anything.
    #[test]
    fn forged_payloads_never_panic_and_never_allocate_past_their_length(
        seed: u64, kind in 0u8..40, flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut: prop::sample::Index,
    ) {
        let mut frame = vec![0; FRAME_HEADER_LEN];
        codec::encode(&Seed(seed).message(usize::from(kind) % FIXED.len()), &mut frame);
        for (at, byte) in flips {
            let at = at.index(frame.len());
            if at >= FRAME_HEADER_LEN {
                frame[at] = byte;
            }
        }
        frame.truncate(FRAME_HEADER_LEN + cut.index(frame.len() - FRAME_HEADER_LEN + 1));
        let _ = codec::decode(kind, frame, FRAME_HEADER_LEN);
    }

    #[test]
    fn noise_is_never_a_frame(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(reopen(bytes).is_err());
    }
}

#[test]
fn huge_counts_are_refused_before_anything_is_allocated() {
    for (name, kind, fixed_len) in FIXED {
        for count in [u32::MAX, 1 << 31, 1 << 20] {
            let counted = ["Ends", "Verdicts", "BundleFiles"]
                .contains(&name)
                .then_some(0);
            let counted = counted.or(["Tick", "Ack", "Promise"].contains(&name).then_some(4));
            let Some(at) = counted else { continue };
            let mut frame = vec![0; FRAME_HEADER_LEN + fixed_len];
            frame[FRAME_HEADER_LEN + at..][..4].copy_from_slice(&count.to_le_bytes());
            assert!(
                codec::decode(kind, frame, FRAME_HEADER_LEN).is_err(),
                "{name} {count}"
            );
        }
    }
}

/// Found by fuzzing: a node durably promised the last epoch that there is to whoever asked for it, and
/// panicked when it was to lead again.
#[test]
fn an_epoch_with_none_above_it_is_refused() {
    for (epoch, is_taken) in [
        (EPOCH_MAX.0, true),
        (EPOCH_MAX.0 + 1, false),
        (u32::MAX, false),
    ] {
        let mut frame = vec![0; FRAME_HEADER_LEN];
        frame.extend_from_slice(&epoch.to_le_bytes());
        let decoded = codec::decode(17, frame, FRAME_HEADER_LEN);
        assert_eq!(decoded.is_ok(), is_taken, "{epoch}");
    }
}

/// Found by fuzzing: a verdict was taken with bytes in fields that its kind does not have, so that two
/// different frames meant the same, and no later release could have used those fields.
#[test]
fn a_verdict_with_fields_of_another_kind_is_refused() {
    let (epoch, seq, leader, segment, at) = (4, 8, 16, 32, 40);
    for (kind, foreign) in [
        (1, &[leader][..]),
        (2, &[segment, at]),
        (3, &[epoch, leader, segment, at]),
    ] {
        for field in [epoch, seq, leader, segment, at] {
            let mut frame = vec![0; FRAME_HEADER_LEN + 8 + 48];
            frame[FRAME_HEADER_LEN] = 1;
            let verdict = FRAME_HEADER_LEN + 8;
            frame[verdict + 2] = kind;
            frame[verdict + field] = 1;
            let decoded = codec::decode(5, frame, FRAME_HEADER_LEN);
            assert_eq!(decoded.is_err(), foreign.contains(&field), "{kind} {field}");
        }
    }
}

#[test]
fn a_stated_length_past_the_limit_is_refused() {
    let mut header = [0; FRAME_HEADER_LEN];
    for len in [PAYLOAD_LEN_MAX as u32 + 1, 1 << 31, u32::MAX] {
        header[4..8].copy_from_slice(&len.to_le_bytes());
        assert!(payload_len(&header).is_err());
    }
}

#[test]
fn a_missing_frame_is_found_and_a_repeated_one_is_dropped() {
    let (mut out, mut into) = (Link::default(), Link::default());
    let frames: Vec<_> = (0..4)
        .map(|n| out.seal(&Message::Credit { granted: n }))
        .collect();
    assert_eq!(
        into.open("peer", frames[0].clone()).unwrap(),
        Some(Message::Credit { granted: 0 })
    );
    assert_eq!(into.open("peer", frames[0].clone()).unwrap(), None);
    assert_eq!(
        into.open("peer", frames[1].clone()).unwrap(),
        Some(Message::Credit { granted: 1 })
    );
    let missing = into.open("peer", frames[3].clone()).unwrap_err();
    assert!(matches!(
        missing,
        crate::Error::Damaged {
            what: "frame number",
            ..
        }
    ));
}

#[test]
fn the_longest_data_fits_a_frame() {
    let head = DataHead::default();
    let frame = Link::default().seal_data(&head, &vec![7; DATA_LEN_MAX]);
    assert_eq!(frame.len(), FRAME_HEADER_LEN + PAYLOAD_LEN_MAX);
    let same = Link::default().seal(&Message::Data(Data {
        head,
        bytes: vec![7; DATA_LEN_MAX].into(),
    }));
    assert!(
        frame == same,
        "both ways of encoding Data give the same bytes"
    );
}

#[test]
fn reserved_bytes_of_a_frame_are_zero() {
    for at in 17..FRAME_HEADER_LEN {
        let mut frame = Link::default().seal(&Message::Credit { granted: 1 });
        frame[at] = 1;
        let crc = crc32fast::hash(&frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        let error = reopen(frame).unwrap_err().to_string();
        assert!(
            error.contains("peer broke the protocol: reserved bytes"),
            "{error}"
        );
    }
}

#[test]
fn kinds_and_lengths_that_nobody_sends_are_refused_by_name() {
    // What stands at an offset of the payload of that message, and what is said of it.
    let cases: [(&str, usize, u8, &str); 6] = [
        ("Welcome", 2, 16, "wanted acks"),
        ("Hello", 8, 9, "purpose"),
        ("Hello", 9, 0, "name length"),
        ("Hello", 9, 65, "text length"),
        ("Verdicts", 8 + 2, 9, "verdict kind"),
        ("Status", 0, 9, "role"),
    ];
    for (name, at, byte, what) in cases {
        let place = FIXED.iter().position(|(other, ..)| *other == name).unwrap();
        let message = match Seed(1).message(place) {
            Message::Verdicts(_) => Message::Verdicts(vec![Verdict::Pruned {
                shard: ShardId(1),
                first_available: 2,
            }]),
            message => message,
        };
        let mut frame = Link::default().seal(&message);
        frame[FRAME_HEADER_LEN + at] = byte;
        let crc = crc32fast::hash(&frame[4..]);
        frame[..4].copy_from_slice(&crc.to_le_bytes());
        let error = reopen(frame).unwrap_err().to_string();
        assert!(error.contains(what), "{name} {at}: {error}");
    }
}

#[test]
fn a_long_text_is_cut_between_two_characters() {
    for head in ["", "a", "ab", "abc"] {
        let refusal = Refusal {
            reason: Reason::Busy,
            text: format!("{head}{}", "\u{1f980}".repeat(TEXT_LEN_MAX)),
            have: String::new(),
            want: String::new(),
            epoch: Epoch(0),
        };
        let frame = Link::default().seal(&Message::Refused(refusal.clone()));
        let Some(Message::Refused(read)) = reopen(frame).unwrap() else {
            panic!("it reads back")
        };
        assert!(refusal.text.starts_with(&read.text));
        assert!(TEXT_LEN_MAX - read.text.len() < 4, "{}", read.text.len());
    }
}

#[test]
fn names_that_would_steer_a_terminal_are_refused() {
    let Message::Hello(mut hello) = Seed(1).message(0) else {
        unreachable!("kind 0 is Hello")
    };
    hello.name = "a\x1b[2Jb".to_owned();
    assert!(reopen(Link::default().seal(&Message::Hello(hello))).is_err());
    let refusal = Refusal {
        reason: Reason::Busy,
        text: "a\x1b[2Jb".repeat(200),
        have: String::new(),
        want: String::new(),
        epoch: Epoch(0),
    };
    let read = reopen(Link::default().seal(&Message::Refused(refusal))).unwrap();
    let Some(Message::Refused(read)) = read else {
        unreachable!("it reads back")
    };
    assert!(read.text.len() <= TEXT_LEN_MAX && read.text.starts_with("a?[2Jb"));
}

/// A row of a table: offset, size unless it is a list, field.
type Row = (usize, Option<usize>, String);

/// The tables of a module's head: name of the thing above the table, its rows.
fn tables(source: &str) -> Vec<(String, Vec<Row>)> {
    let mut tables: Vec<(String, Vec<_>)> = Vec::new();
    let mut said = String::new();
    let mut in_table = false;
    for line in source.lines().map_while(|line| line.strip_prefix("//!")) {
        let line = line.trim();
        if !line.starts_with('|') {
            in_table = false;
            if !line.is_empty() {
                said = line.to_owned();
            }
            continue;
        }
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        if cells[0] == "Offset" {
            // "Entries of lists. End:" and "StatusRequest has no payload. Status:" end with the name.
            let head = said.split(':').next().unwrap_or_default();
            tables.push((
                head.rsplit(' ').next().unwrap_or_default().to_owned(),
                Vec::new(),
            ));
            in_table = true;
        } else if in_table && !cells[0].starts_with('-') {
            let row = (
                cells[0].parse().unwrap(),
                cells[1].parse().ok(),
                cells[2].to_owned(),
            );
            tables.last_mut().unwrap().1.push(row);
        }
    }
    tables
}

#[test]
fn the_tables_are_what_is_encoded() {
    let tables = tables(include_str!("../message.rs"));
    let entries = [
        ("End", codec::END_LEN),
        ("Verdict", codec::VERDICT_LEN),
        ("Mark", codec::MARK_LEN),
        ("AckEntry", codec::ACK_LEN),
        ("File", codec::FILE_LEN),
    ];
    let fixed = FIXED
        .iter()
        .map(|(name, _, len)| (*name, *len))
        .filter(|(name, _)| *name != "StatusRequest");
    for (name, len) in fixed.chain(entries) {
        let (_, rows) = tables
            .iter()
            .find(|(n, _)| n == name)
            .unwrap_or_else(|| panic!("no table of {name}"));
        let mut at = 0;
        for (offset, size, field) in rows {
            assert_eq!(
                *offset, at,
                "{name}.{field} does not follow the field before"
            );
            at += size.unwrap_or(0);
        }
        assert_eq!(at, len, "fixed part of {name}");
    }
    let kinds: Vec<_> = FIXED.iter().map(|fixed| fixed.1).collect();
    assert_eq!(
        kinds,
        (1..=21).collect::<Vec<u8>>(),
        "kinds are never renumbered"
    );
    for (name, _, len) in FIXED {
        let message = Seed(3).message(FIXED.iter().position(|f| f.0 == name).unwrap());
        assert!(Link::default().seal(&message).len() >= FRAME_HEADER_LEN + len);
    }
}

/// Byte for byte, by hand: what other releases send.
#[test]
fn golden_frames_do_not_change() {
    let credit = Link::default().seal(&Message::Credit {
        granted: 0x0102_0304_0506_0708,
    });
    let header = concat!("08000000", "0100000000000000", "0a", "00000000000000");
    assert_eq!(hex(&credit[4..]), format!("{header}{}", "0807060504030201"));
    let head = DataHead {
        epoch: Epoch(1),
        shard: ShardId(2),
        segment: 3,
        at: 4,
        written: 5,
        committed: 6,
        times: Times {
            closed: Hlc(7),
            committed: Hlc(8),
        },
        wall_ms: 9,
    };
    let data = Link::default().seal_data(&head, &[0xaa, 0xbb]);
    let fields: String = (3..10).map(|n: u64| hex(&n.to_le_bytes())).collect();
    let header = concat!("42000000", "0100000000000000", "06", "00000000000000");
    assert_eq!(
        hex(&data[4..]),
        format!("{header}01000000{}{fields}aabb", "02000000")
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
