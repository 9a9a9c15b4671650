//! Names, bytes and paths of archives.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::{DatasetId, Epoch, Hlc, Position, ShardId};

use super::codec::{HEAD_LEN, TAIL_LEN};
use super::*;
use crate::ids::{LeaderId, Lineage};

fn root() -> Root {
    Root::new(&DatasetId::new("d").unwrap(), Lineage([7; 16]))
}

fn piece(epoch: u32, (first_seq, last_seq): (u64, u64), kind: PieceKind) -> Piece {
    Piece {
        epoch: Epoch(epoch),
        shard: ShardId(0),
        first_seq,
        last_seq,
        prev: first_seq as u32 - 1,
        chain: last_seq as u32,
        kind,
    }
}

fn term(epoch: u32, previous: u32, from: u64) -> Term {
    Term {
        epoch: Epoch(epoch),
        previous: Epoch(previous),
        lineage: Lineage([7; 16]),
        leader: LeaderId([epoch as u8; 16]),
        from: vec![Start {
            seq: from,
            chain: from as u32 - 1,
            end: from,
        }],
    }
}

fn base() -> Base {
    Base {
        epoch: Epoch(3),
        timestamp: Hlc(9),
        wall_ms: 8,
        lineage: Lineage([7; 16]),
        ends: vec![BaseEnd {
            position: Position {
                epoch: Epoch(2),
                seq: 5,
            },
            chain: 4,
            complete_seq: 6,
        }],
        files: [FileKind::Table, FileKind::Segment, FileKind::Manifest]
            .map(|kind| BaseFile {
                kind,
                number: 6,
                len: 7,
                digest: [8; 32],
                object: "x/y".to_owned(),
            })
            .to_vec(),
    }
}

#[test]
fn the_byte_tables_are_what_the_code_writes() {
    let mut tables: Vec<Vec<(usize, usize)>> = Vec::new();
    for line in include_str!("codec.rs").lines() {
        let Some(line) = line.strip_prefix("//! | ") else {
            continue;
        };
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        match (cells[0].parse(), cells[1].parse()) {
            (Ok(at), Ok(len)) => tables.last_mut().unwrap().push((at, len)),
            _ => tables.push(Vec::new()),
        }
    }
    let ends: Vec<usize> = tables
        .iter()
        .map(|rows| {
            rows.iter().fold(0, |end, (at, len)| {
                assert_eq!(*at, end, "{rows:?}");
                end + len
            })
        })
        .collect();
    assert_eq!(ends, [HEAD_LEN, TAIL_LEN, HEAD_LEN]);
    let row = 16;
    assert_eq!(term(2, 1, 5).encode().len(), HEAD_LEN + row + 8 + 4);
    let files = 3 * (1 + 7 + 8 + 8 + 32 + 2 + "x/y".len());
    assert_eq!(base().encode().len(), HEAD_LEN + row + 8 + files + 4);
}

#[test]
fn objects_are_read_back_and_every_flipped_bit_is_found() {
    let (term, base) = (term(2, 1, 5), base());
    assert_eq!(Term::decode(&term.encode(), "t").unwrap(), term);
    assert_eq!(Base::decode(&base.encode(), "b").unwrap(), base);
    let header = [1; SEGMENT_HEADER_LEN];
    let tail = Tail {
        shard: ShardId(1),
        epoch: Epoch(2),
        offset: 512,
        header: &header,
        batches: &[3; 24],
    };
    assert_eq!(Tail::decode(&tail.encode(), "p").unwrap(), tail);
    type Decode = (Vec<u8>, fn(&[u8]) -> bool);
    let decodes: [Decode; 3] = [
        (term.encode(), |b| Term::decode(b, "t").is_ok()),
        (base.encode(), |b| Base::decode(b, "b").is_ok()),
        (tail.encode(), |b| Tail::decode(b, "p").is_ok()),
    ];
    for (bytes, is_ok) in decodes {
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!is_ok(&bad), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(!is_ok(&bytes[..len]), "length {len}");
        }
    }
}

#[test]
fn names_parse_back() {
    let root = root();
    let lost = Break {
        epoch: Epoch(2),
        shard: ShardId(3),
        first_seq: 4,
    };
    let base = BaseName {
        epoch: Epoch(2),
        timestamp: Hlc(0xabc),
    };
    for name in [
        root.term(Epoch(1)),
        root.piece(&piece(1, (5, 9), PieceKind::Segment)),
        root.piece(&piece(1, (5, 9), PieceKind::Tail(3))),
        root.broken(&lost),
        root.file(Epoch(1), &[9; 32]),
        root.base(&base),
    ] {
        assert!(root.parse(&name).is_some(), "{name}");
        assert_eq!(root.parse(&name.replace('0', "+")), None, "{name}");
        assert_eq!(root.parse(&format!("{name}x")), None, "{name}");
        let lineage = Root::parse_lineage(&DatasetId::new("d").unwrap(), &name);
        assert_eq!(lineage, Some(Lineage([7; 16])));
    }
    let backwards = root.piece(&piece(1, (9, 5), PieceKind::Segment));
    assert_eq!(root.parse(&backwards), None);
}

fn index(terms: &[Term], pieces: &[Piece]) -> Index {
    let by_epoch = terms.iter().map(|term| (term.epoch, term.clone()));
    Index {
        terms: by_epoch.collect(),
        pieces: pieces.to_vec(),
        ..Index::default()
    }
}

fn seqs(runs: &[Run]) -> Vec<(u32, u64, u64)> {
    let seqs = |run: &Run| (run.pieces[0].epoch.0, run.first_seq(), run.last_seq());
    runs.iter().map(seqs).collect()
}

/// A term whose epoch begins in the log behind the segment that it uploads first.
fn begins(epoch: u32, previous: u32, from: u64, end: u64) -> Term {
    let mut term = term(epoch, previous, from);
    term.from[0].end = end;
    term
}

#[test]
fn what_a_deposed_leader_uploads_is_no_part_of_a_restore() {
    use PieceKind::{Segment, Tail};
    let terms = [term(1, 0, 1), term(2, 1, 50), term(4, 1, 50)];
    let pieces = [
        piece(1, (1, 49), Segment),
        piece(1, (50, 80), Tail(50)),
        // After its successor had begun.
        piece(1, (50, 120), Segment),
        // Beside the path: the last leader never heard of it.
        piece(2, (50, 70), Segment),
        piece(2, (71, 75), Tail(71)),
        piece(4, (50, 80), Segment),
        piece(4, (81, 85), Tail(81)),
        piece(4, (81, 90), Tail(81)),
        // Without a term.
        piece(3, (81, 90), Segment),
    ];
    let index = index(&terms, &pieces);
    let expected = [(1, 1, 49), (4, 50, 80), (4, 81, 90)];
    assert_eq!(seqs(&index.runs(ShardId(0))), expected);
    assert!(index.is_on_path(Epoch(1)) && !index.is_on_path(Epoch(2)));
}

#[test]
fn an_epoch_ends_where_its_successor_starts_inside_a_piece_too() {
    use PieceKind::{Segment, Tail};
    let terms = [term(1, 0, 1), begins(2, 1, 50, 70)];
    let tails = [
        piece(1, (1, 49), Segment),
        piece(1, (50, 60), Tail(50)),
        piece(1, (61, 90), Tail(50)),
    ];
    // Nothing vanishes at a takeover, before its leader has uploaded the segment again.
    let seen = |more: &[Piece]| {
        let all = [&tails[..], more].concat();
        seqs(&index(&terms, &all).runs(ShardId(0)))
    };
    assert_eq!(seen(&[]), [(1, 1, 49), (1, 50, 69)]);
    let deposed = piece(1, (50, 120), Segment);
    assert_eq!(
        seen(std::slice::from_ref(&deposed)),
        [(1, 1, 49), (1, 50, 69)]
    );
    let part = piece(2, (50, 65), Tail(50));
    assert_eq!(seen(&[part]), [(1, 1, 49), (1, 50, 69)]);
    let part = piece(2, (50, 69), Tail(50));
    assert_eq!(seen(&[part, deposed]), [(1, 1, 49), (2, 50, 69)]);
    // One that cuts its segments elsewhere.
    let terms = [term(1, 0, 1), begins(2, 1, 40, 70)];
    let other = piece(2, (40, 100), Segment);
    let all = [&tails[..], &[other]].concat();
    let runs = index(&terms, &all).runs(ShardId(0));
    assert_eq!(seqs(&runs), [(1, 1, 39), (2, 40, 100)]);
}

#[test]
fn a_base_is_usable_where_its_maker_s_epoch_reaches() {
    let terms = [term(1, 0, 1), term(2, 1, 40), begins(3, 1, 50, 70)];
    let index = index(&terms, &[]);
    let base = |epoch, last| {
        let mut base = base();
        (base.epoch, base.ends[0].complete_seq) = (Epoch(epoch), last);
        base
    };
    assert!(index.is_usable(&base(1, 69)) && !index.is_usable(&base(1, 70)));
    assert!(!index.is_usable(&base(2, 6)), "beside the path");
    assert!(index.is_usable(&base(3, 1_000)));
    let mut other = base(3, 9);
    other.ends.push(BaseEnd::default());
    assert!(!index.is_usable(&other), "of other shards");
}

#[test]
fn a_gap_is_named() {
    use PieceKind::{Segment, Tail};
    let pieces = [
        piece(1, (1, 9), Segment),
        piece(1, (10, 19), Segment),
        piece(1, (20, 24), Tail(20)),
        piece(1, (22, 29), Tail(20)),
    ];
    let span =
        |pieces: &[Piece], from| index(&[term(1, 0, 1)], pieces).span(&root(), ShardId(0), from);
    let all = [(1, 1, 9), (1, 10, 19), (1, 20, 29)];
    assert_eq!(seqs(&span(&pieces, 1).0), all);
    assert_eq!(seqs(&span(&pieces, 22).0), all[2..]);
    assert_eq!(span(&pieces, 10).1, None);
    let (before, gap) = span(&[&pieces[..1], &pieces[2..]].concat(), 1);
    let gap = gap.unwrap();
    assert_eq!(seqs(&before), all[..1]);
    assert_eq!((gap.from, gap.to), (10, 19));
    assert!(gap.object.ends_with(".tail"), "{gap}");
    let apart = [&pieces[..3], &[piece(1, (27, 29), Tail(20))]].concat();
    let gap = span(&apart, 1).1.unwrap();
    assert_eq!((gap.from, gap.to), (25, 26));
    let mut forked = pieces.clone();
    forked[1].prev = 77;
    let gap = span(&forked, 1).1.unwrap().to_string();
    assert!(gap.contains("does not continue record 9"), "{gap}");
}

#[test]
fn a_create_whose_answer_is_lost_is_known_again() {
    let faults = Faults {
        unavailable: 150,
        lost_answer: 250,
        late: 0,
    };
    let store = MemoryArchive::new(5, faults);
    for n in 0..200 {
        let name = format!("o/{n}");
        while create(&store, &name, &[n as u8]).is_err() {}
        assert_eq!(store.objects()[&name], [n as u8]);
    }
    store.set_faults(Faults::default());
    let taken = create(&store, "o/1", b"other").unwrap_err();
    assert!(matches!(taken, Error::Taken { .. }), "{taken}");
    assert_eq!(store.objects()["o/1"], [1]);
    let store: Arc<dyn ArchiveStore> = Arc::new(store);
    assert!(matches!(
        read(store.as_ref(), "o/x"),
        Err(Error::Missing { .. })
    ));
    assert_eq!(store.list("o/").unwrap().len(), 200);
}

#[test]
fn a_term_of_another_place_is_refused() {
    let (store, root) = (MemoryArchive::default(), root());
    let late = term(3, 3, 1).encode();
    assert!(Term::decode(&late, "t").is_err(), "it goes on from itself");
    create(&store, &root.term(Epoch(4)), &term(3, 2, 1).encode()).unwrap();
    let error = Index::read(&store, &root).unwrap_err();
    assert!(error.to_string().contains("another epoch"), "{error}");
}
