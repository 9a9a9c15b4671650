//! The candidate alone: which promises count, and what ends a candidacy.

use strandline_wal::{DatasetId, Position, ShardId};

use super::*;
use crate::ids::{Incarnation, LeaderId};
use crate::message::{Wants, Welcome};

const LINEAGE: Lineage = Lineage([7; 16]);

fn identity() -> Identity {
    Identity {
        node: NodeId([1; 16]),
        incarnation: Incarnation([1; 16]),
        name: "a".to_owned(),
        dataset: DatasetId::default(),
        lineage: LINEAGE,
    }
}

fn ends(seq: u64) -> Vec<ShardEnd> {
    let position = Position {
        epoch: Epoch(3),
        seq,
    };
    vec![ShardEnd {
        position,
        leader: LeaderId([3; 16]),
        ..ShardEnd::empty(ShardId(0))
    }]
}

fn feed(candidate: &mut Candidate, event: Event) -> Vec<Action> {
    candidate.handle(0, event);
    std::iter::from_fn(|| candidate.poll_action()).collect()
}

/// Asks for epoch 5 and has its own promise; `n` others were greeted and asked.
fn asking(n: u8, needed: usize) -> Candidate {
    let promised = Promise {
        epoch: Epoch(4),
        ..Promise::default()
    };
    let options = CandidateOptions {
        peers: (0..n).map(|n| format!("peer {n}")).collect(),
        needed,
        ..CandidateOptions::default()
    };
    let mut candidate = Candidate::new(0, identity(), promised, options);
    let actions: Vec<Action> = std::iter::from_fn(|| candidate.poll_action()).collect();
    assert!(matches!(actions[..], [Action::Promise(own)] if own.epoch == Epoch(5)));
    feed(&mut candidate, Event::Promised(Ok(ends(10))));
    for n in 0..n {
        let (name, conn) = (format!("peer {n}"), ConnId(n.into()));
        feed(&mut candidate, Event::Connecting(name.clone(), Ok(conn)));
        feed(&mut candidate, Event::Opened(conn));
        let welcome = Welcome {
            version: 1,
            wants: Wants::default(),
            epoch: Epoch(3),
            node: NodeId([10 + n; 16]),
            incarnation: Incarnation([n; 16]),
            leader: LeaderId::default(),
            lineage: LINEAGE,
            name,
            verdicts: Vec::new(),
            sole: false,
        };
        let actions = feed(
            &mut candidate,
            Event::Frame(conn, Message::Welcome(welcome)),
        );
        assert!(
            matches!(
                actions[..],
                [Action::Send(_, Message::PromiseRequest { epoch: Epoch(5) })]
            ),
            "{actions:?}"
        );
    }
    candidate
}

fn promise(candidate: &mut Candidate, n: u64, epoch: u32) -> Vec<Action> {
    let promise = Message::Promise {
        epoch: Epoch(epoch),
        ends: ends(9),
    };
    feed(candidate, Event::Frame(ConnId(n), promise))
}

#[test]
fn enough_promises_elect() {
    let mut candidate = asking(2, 3);
    assert!(promise(&mut candidate, 0, 5).is_empty());
    let actions = promise(&mut candidate, 1, 5);
    assert!(
        matches!(actions[..], [Action::Elected(Epoch(5)), ..]),
        "{actions:?}"
    );
}

#[test]
fn a_node_that_promises_twice_counts_once() {
    let mut candidate = asking(2, 3);
    for _ in 0..2 {
        assert!(promise(&mut candidate, 0, 5).is_empty());
    }
}

#[test]
fn a_promise_of_another_epoch_does_not_count() {
    let mut candidate = asking(2, 2);
    assert!(promise(&mut candidate, 0, 4).is_empty());
    let actions = promise(&mut candidate, 0, 5);
    assert!(
        matches!(actions[..], [Action::Elected(Epoch(5)), ..]),
        "{actions:?}"
    );
}

#[test]
fn a_later_promise_of_its_own_ends_it() {
    let mut candidate = asking(2, 2);
    let later = |epoch| {
        Event::Outdated(Promise {
            epoch: Epoch(epoch),
            to: NodeId([9; 16]),
        })
    };
    assert!(feed(&mut candidate, later(5)).is_empty());
    let actions = feed(&mut candidate, later(6));
    assert!(
        matches!(actions[..], [Action::NotElected(Error::Fenced { .. }), ..]),
        "{actions:?}"
    );
    assert!(promise(&mut candidate, 0, 5).is_empty());
}
