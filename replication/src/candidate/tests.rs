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

fn conns_closed(actions: &[Action]) -> usize {
    let closes = |action: &&Action| matches!(action, Action::Close(_));
    actions.iter().filter(closes).count()
}

fn begun(identity: Identity, epoch: u32, options: CandidateOptions) -> (Candidate, Vec<Action>) {
    let promised = Promise {
        epoch: Epoch(epoch),
        ..Promise::default()
    };
    let mut candidate = Candidate::new(0, identity, promised, options);
    let actions = std::iter::from_fn(|| candidate.poll_action()).collect();
    (candidate, actions)
}

#[test]
fn a_node_without_a_history_cannot_lead() {
    let mut fresh = identity();
    fresh.lineage = Lineage::default();
    let (candidate, actions) = begun(fresh, 4, CandidateOptions::default());
    let [Action::NotElected(why)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert!(why.to_string().contains("never followed"), "{why}");
    assert_eq!(candidate.due_ms(), None);
}

#[test]
fn there_is_no_epoch_above_the_last_one() {
    let (_, actions) = begun(identity(), u32::MAX, CandidateOptions::default());
    let few = |action: &Action| matches!(action, Action::NotElected(Error::TooFewPromises { .. }));
    assert!(actions.len() == 1 && few(&actions[0]), "{actions:?}");
}

#[test]
fn its_own_promise_must_be_durable() {
    let (mut candidate, _) = begun(identity(), 4, CandidateOptions::default());
    assert_eq!(candidate.due_ms(), Some(10_001));
    let failed = Error::Store {
        what: "disk".to_owned(),
    };
    let actions = feed(&mut candidate, Event::Promised(Err(failed)));
    assert!(matches!(&actions[..], [Action::NotElected(why)] if why.to_string().contains("disk")));
    assert_eq!(candidate.due_ms(), None);
    for late in [
        Event::Promised(Ok(ends(10))),
        Event::Fetched(Ok(())),
        Event::Connecting("b".to_owned(), Ok(ConnId(0))),
        Event::Opened(ConnId(0)),
        Event::Opened(ConnId(1)),
    ] {
        let actions = feed(&mut candidate, late);
        assert!(actions.is_empty(), "it is over: {actions:?}");
    }
    candidate.handle(60_000, Event::Tick);
    assert!(candidate.poll_action().is_none(), "it is told once");
}

#[test]
fn a_peer_that_is_not_there_is_no_vote_and_time_ends_the_wait() {
    let mut candidate = asking(1, 3);
    let away = Err(Error::unreachable("c", "no route"));
    assert!(feed(&mut candidate, Event::Connecting("c".to_owned(), away)).is_empty());
    assert!(feed(&mut candidate, Event::Opened(ConnId(77))).is_empty());
    candidate.handle(10_000, Event::Tick);
    assert!(candidate.poll_action().is_none());
    candidate.handle(10_001, Event::Tick);
    let why = candidate.poll_action();
    let Some(Action::NotElected(Error::TooFewPromises { needed, found })) = why else {
        panic!("{why:?}")
    };
    assert_eq!((needed, found), (3, 1));
    let rest: Vec<_> = std::iter::from_fn(|| candidate.poll_action()).collect();
    assert_eq!(conns_closed(&rest), 1);
}

#[test]
fn a_later_promise_elsewhere_makes_it_ask_higher_until_it_gives_up() {
    let mut candidate = asking(1, 2);
    let refuse = |candidate: &mut Candidate, epoch| {
        let promise = Promise {
            epoch: Epoch(epoch),
            to: NodeId([9; 16]),
        };
        feed(
            candidate,
            Event::Frame(ConnId(0), Message::PromiseRefused { promise }),
        )
    };
    assert!(refuse(&mut candidate, 4).is_empty(), "of an older request");
    let actions = refuse(&mut candidate, 7);
    assert!(matches!(actions[..], [Action::Promise(own)] if own.epoch == Epoch(8)));
    assert!(
        refuse(&mut candidate, 9).is_empty(),
        "its own promise comes first"
    );
    assert!(
        promise(&mut candidate, 0, 8).is_empty(),
        "so does the request"
    );
    let actions = feed(&mut candidate, Event::Promised(Ok(ends(10))));
    let asks = |a: &Action| {
        matches!(
            a,
            Action::Send(_, Message::PromiseRequest { epoch: Epoch(8) })
        )
    };
    assert!(actions.len() == 1 && asks(&actions[0]), "{actions:?}");
    for epoch in (8..).take(CandidateOptions::default().epoch_count_max as usize - 2) {
        refuse(&mut candidate, epoch);
        feed(&mut candidate, Event::Promised(Ok(ends(10))));
    }
    let actions = refuse(&mut candidate, 100);
    let few = |a: &Action| matches!(a, Action::NotElected(Error::TooFewPromises { .. }));
    assert!(actions.iter().any(few), "{actions:?}");
}

#[test]
fn a_voter_of_another_history_or_without_a_word_is_left() {
    let closes = |message| {
        let mut candidate = asking(1, 3);
        feed(
            &mut candidate,
            Event::Connecting("c".to_owned(), Ok(ConnId(5))),
        );
        conns_closed(&feed(&mut candidate, Event::Frame(ConnId(5), message)))
    };
    let welcome = |lineage| {
        Message::Welcome(Welcome {
            version: 1,
            wants: Wants::default(),
            epoch: Epoch(3),
            node: NodeId([30; 16]),
            incarnation: Incarnation([3; 16]),
            leader: LeaderId::default(),
            lineage,
            name: "c".to_owned(),
            verdicts: Vec::new(),
            sole: false,
        })
    };
    assert_eq!(closes(welcome(LINEAGE)), 0);
    assert_eq!(closes(welcome(Lineage([8; 16]))), 1);
    assert_eq!(closes(Message::StatusRequest), 1);
    let refused = Message::Refused(Refusal {
        reason: crate::error::Reason::Busy,
        text: String::new(),
        have: String::new(),
        want: String::new(),
        epoch: Epoch(0),
    });
    assert_eq!(closes(refused), 1);
    let mut candidate = asking(1, 3);
    let stranger = Event::Frame(ConnId(6), Message::StatusRequest);
    assert!(feed(&mut candidate, stranger).is_empty());
}

/// A node that greets while the own promise is on its way is asked with all others.
#[test]
fn who_greets_during_the_own_promise_is_asked_after_it() {
    let options = CandidateOptions {
        peers: vec!["b".to_owned()],
        needed: 2,
        ..CandidateOptions::default()
    };
    let (mut candidate, _) = begun(identity(), 4, options);
    feed(
        &mut candidate,
        Event::Connecting("b".to_owned(), Ok(ConnId(0))),
    );
    let actions = feed(&mut candidate, Event::Opened(ConnId(0)));
    assert!(matches!(actions[..], [Action::Send(_, Message::Hello(_))]));
    let welcome = Welcome {
        version: 1,
        wants: Wants::default(),
        epoch: Epoch(3),
        node: NodeId([10; 16]),
        incarnation: Incarnation([0; 16]),
        leader: LeaderId::default(),
        lineage: LINEAGE,
        name: "b".to_owned(),
        verdicts: Vec::new(),
        sole: false,
    };
    let welcomed = Event::Frame(ConnId(0), Message::Welcome(welcome));
    assert!(feed(&mut candidate, welcomed).is_empty());
    let actions = feed(&mut candidate, Event::Promised(Ok(ends(10))));
    assert!(matches!(
        actions[..],
        [Action::Send(_, Message::PromiseRequest { epoch: Epoch(5) })]
    ));
}

/// A log that is longer elsewhere is fetched before the epoch is opened, or not opened at all.
#[test]
fn the_longest_log_is_fetched_first() {
    let longer = |candidate: &mut Candidate| {
        let ends = ends(20);
        let promise = Message::Promise {
            epoch: Epoch(5),
            ends,
        };
        feed(candidate, Event::Frame(ConnId(0), promise))
    };
    for fetched in [true, false] {
        let mut candidate = asking(1, 2);
        assert!(feed(&mut candidate, Event::Fetched(Ok(()))).is_empty());
        let actions = longer(&mut candidate);
        let [Action::Fetch(from, wanted)] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!((from.as_str(), wanted[0].position.seq), ("peer 0", 20));
        assert!(longer(&mut candidate).is_empty(), "it has enough");
        let away = Error::unreachable("peer 0", "it left");
        let done = if fetched { Ok(()) } else { Err(away) };
        let actions = feed(&mut candidate, Event::Fetched(done));
        match fetched {
            true => assert!(matches!(
                actions[..],
                [Action::Elected(Epoch(5)), Action::Close(_)]
            )),
            false => assert!(matches!(
                actions[..],
                [Action::NotElected(_), Action::Close(_)]
            )),
        }
    }
}
