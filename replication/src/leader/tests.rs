//! The serving machine alone: every frame in every state, and what it must never believe.

use strandline_wal::{DatasetId, Position};

use super::*;
use crate::bundle::BundleFile;
use crate::ids::{BundleId, ShardEnd};
use crate::message::codec::FIXED;
use crate::message::tests::Seed;
use crate::message::{Ack, AckEntry, Wants};
use crate::quorum::Policy;

const CONN: ConnId = ConnId(1);
const S0: ShardId = ShardId(0);
const EPOCH: Epoch = Epoch(5);

fn identity(n: u8) -> Identity {
    Identity {
        node: NodeId([n; 16]),
        incarnation: Incarnation([n; 16]),
        name: format!("n{n}"),
        dataset: DatasetId::default(),
        lineage: Lineage([7; 16]),
    }
}

fn hello(n: u8, promised: u32) -> Hello {
    let Identity {
        node,
        incarnation,
        name,
        dataset,
        lineage,
    } = identity(n);
    Hello {
        versions: VERSIONS,
        purpose: Purpose::Follow,
        promised_epoch: Epoch(promised),
        node,
        incarnation,
        lineage,
        name,
        dataset,
        ends: vec![ShardEnd::empty(S0)],
    }
}

fn feed(leader: &mut Leader, now: u64, event: Event) -> Vec<Action> {
    leader.handle(now, 0, event);
    std::iter::from_fn(|| leader.poll_action()).collect()
}

fn frame(leader: &mut Leader, message: Message) -> Vec<Action> {
    feed(leader, 0, Event::Frame(CONN, message))
}

fn fresh() -> Leader {
    let leadership = Leadership {
        epoch: EPOCH,
        leader: LeaderId([1; 16]),
    };
    let serving = Serving {
        identity: identity(1),
        leadership,
        only: None,
    };
    let policy = Policy::Fixed(vec![NodeId([1; 16]), NodeId([2; 16])]);
    let wants = Wants {
        durable: true,
        ..Wants::default()
    };
    let mut leader = Leader::new(
        serving,
        LeaderOptions {
            policy,
            wants,
            ..LeaderOptions::default()
        },
        &[S0],
    );
    marks(&mut leader, 10, 0);
    feed(&mut leader, 0, Event::Started(S0, 1));
    leader
}

fn marks(leader: &mut Leader, written: u64, committed: u64) -> Vec<Action> {
    let marks = Marks {
        written,
        durable: written,
        committed,
    };
    feed(leader, 0, Event::Marks(vec![(S0, marks)], Times::default()))
}

fn agreed() -> Verdict {
    Verdict::Agreed {
        shard: S0,
        position: Position::default(),
        segment: 1,
        at: 0,
    }
}

/// A leader whose one follower is in the state of this name.
fn in_state(name: &str) -> Leader {
    let mut leader = fresh();
    if name == "fenced" {
        feed(&mut leader, 0, Event::Outdated(Epoch(9)));
        return leader;
    }
    if name == "unknown" {
        return leader;
    }
    let actions = frame(&mut leader, Message::Hello(hello(2, 0)));
    assert!(matches!(actions[..], [Action::Judge(CONN, _)]));
    if name == "judging" {
        return leader;
    }
    let shipping = ["shipping", "credited"].contains(&name);
    let verdict = if shipping {
        agreed()
    } else {
        Verdict::Pruned {
            shard: S0,
            first_available: 5,
        }
    };
    feed(&mut leader, 0, Event::Judged(CONN, Ok(vec![verdict])));
    if name == "credited" {
        frame(&mut leader, Message::Credit { granted: 1000 });
    }
    if ["pinning", "listed", "sending"].contains(&name) {
        frame(
            &mut leader,
            Message::BundleAsk {
                again: BundleId::default(),
            },
        );
    }
    if ["listed", "sending"].contains(&name) {
        let file = BundleFile {
            kind: 1,
            number: 1,
            len: 100,
            digest: [0; 32],
        };
        let plan = BundlePlan {
            id: BundleId([1; 16]),
            ends: Vec::new(),
            files: vec![file],
        };
        feed(&mut leader, 0, Event::Pinned(CONN, Ok(plan)));
    }
    if name == "sending" {
        frame(&mut leader, Message::BundleFrom { file: 0, at: 0 });
    }
    leader
}

fn closed(actions: &[Action]) -> Option<&Error> {
    actions.iter().find_map(|action| match action {
        Action::Close(_, why) => Some(why),
        _ => None,
    })
}

#[test]
fn every_frame_in_every_state_is_taken_or_refused() {
    let legal: [(&str, &[&str]); 7] = [
        ("unknown", &["Hello"]),
        ("judging", &[]),
        ("agreeing", &["Ends", "BundleAsk", "Credit"]),
        ("shipping", &["Ack", "Credit", "BundleAsk"]),
        ("pinning", &[]),
        ("listed", &["BundleFrom"]),
        ("sending", &["Credit"]),
    ];
    for (state, legal) in legal {
        for (kind, (name, ..)) in FIXED.iter().enumerate() {
            for seed in 0..20 {
                let mut leader = in_state(state);
                let actions = frame(&mut leader, Seed(seed).message(kind));
                if *name == "Refused" || state == "unknown" {
                    let answered = closed(&actions).is_some() || actions.is_empty();
                    assert!(answered, "{state} {name}");
                } else if !legal.contains(name) {
                    let why = closed(&actions).unwrap_or_else(|| panic!("{state} takes {name}"));
                    assert!(
                        matches!(why, Error::Protocol { .. }),
                        "{state} {name}: {why}"
                    );
                    let told = |a: &Action| matches!(a, Action::Send(_, Message::Refused(_)));
                    assert!(actions.iter().any(told), "{state} {name} is told why");
                }
            }
        }
    }
}

#[test]
fn a_second_hello_ends_the_connection() {
    for state in ["judging", "agreeing", "shipping", "listed", "sending"] {
        let mut leader = in_state(state);
        let actions = frame(&mut leader, Message::Hello(hello(2, 0)));
        assert!(
            matches!(closed(&actions), Some(Error::Protocol { .. })),
            "{state}"
        );
    }
}

fn ack(received: u64, durable: u64, applied: u64) -> Message {
    let entry = AckEntry {
        shard: S0,
        received,
        durable,
        applied,
    };
    Message::Ack(Ack {
        epoch: EPOCH,
        wall_ms: 0,
        taken: 0,
        acks: vec![entry],
    })
}

#[test]
fn acks_that_cannot_be_true_end_the_connection() {
    let entry = |shard| AckEntry {
        shard,
        ..AckEntry::default()
    };
    let lies = [
        ack(3, 4, 2),
        ack(3, 2, 4),
        ack(1, 1, 1),
        Message::Ack(Ack {
            epoch: Epoch(4),
            ..Ack::default()
        }),
        Message::Ack(Ack {
            epoch: EPOCH,
            taken: 1,
            ..Ack::default()
        }),
        Message::Ack(Ack {
            epoch: EPOCH,
            acks: vec![entry(ShardId(3))],
            ..Ack::default()
        }),
    ];
    for lie in lies {
        let mut leader = in_state("shipping");
        assert!(closed(&frame(&mut leader, ack(2, 2, 2))).is_none());
        let actions = frame(&mut leader, lie.clone());
        assert!(
            matches!(closed(&actions), Some(Error::Protocol { .. })),
            "{lie:?}"
        );
    }
}

#[test]
fn an_ack_ahead_of_the_marks_waits_for_them_and_not_for_ever() {
    let mut leader = in_state("shipping");
    assert!(
        frame(&mut leader, ack(11, 11, 0)).is_empty(),
        "11 may just be written"
    );
    let actions = marks(&mut leader, 11, 0);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Confirm(c) if c.durable == [11]))
    );
    assert!(frame(&mut leader, ack(99, 11, 0)).is_empty());
    let marks = Marks {
        written: 12,
        durable: 12,
        committed: 0,
    };
    let later = Event::Marks(vec![(S0, marks)], Times::default());
    assert!(matches!(
        closed(&feed(&mut leader, 5_000, later)),
        Some(Error::Protocol { .. })
    ));
}

#[test]
fn what_is_confirmed_is_reported_when_it_changes() {
    let mut leader = in_state("shipping");
    let confirmed = |actions: Vec<Action>| {
        actions.into_iter().find_map(|action| match action {
            Action::Confirm(confirmed) => {
                Some((confirmed.received, confirmed.durable, confirmed.applied))
            }
            _ => None,
        })
    };
    assert_eq!(
        confirmed(frame(&mut leader, ack(5, 0, 0))),
        Some((vec![5], vec![0], vec![0]))
    );
    assert_eq!(confirmed(frame(&mut leader, ack(5, 0, 0))), None);
    assert_eq!(
        confirmed(frame(&mut leader, ack(5, 4, 3))),
        Some((vec![5], vec![4], vec![3]))
    );
    let policy = Policy::Fixed(vec![NodeId([1; 16]), NodeId([9; 16])]);
    assert_eq!(
        confirmed(feed(&mut leader, 0, Event::Policy(policy))),
        Some((vec![0], vec![0], vec![0]))
    );
}

#[test]
fn records_of_earlier_epochs_count_only_with_one_of_this_epoch() {
    let mut leader = in_state("shipping");
    feed(&mut leader, 0, Event::Started(S0, 8));
    let actions = frame(&mut leader, ack(9, 7, 0));
    let counted =
        |a: &Action| matches!(a, Action::Confirm(c) if c.received == [9] && c.durable == [0]);
    assert!(
        actions.iter().any(counted),
        "durable up to 7 is not enough: {actions:?}"
    );
    let actions = frame(&mut leader, ack(9, 8, 0));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Confirm(c) if c.durable == [8]))
    );
}

/// It could come back without that record, and lose the others to a log of an epoch between.
#[test]
fn nobody_counts_until_the_leaders_own_disk_has_its_first_record() {
    let mut leader = in_state("shipping");
    let marks = |durable| {
        let marks = Marks {
            written: 10,
            durable,
            committed: 0,
        };
        Event::Marks(vec![(S0, marks)], Times::default())
    };
    feed(&mut leader, 0, marks(0));
    feed(&mut leader, 0, Event::Started(S0, 8));
    let confirms = |actions: &[Action]| {
        let durable = |a: &Action| match a {
            Action::Confirm(c) => Some(c.durable.clone()),
            _ => None,
        };
        actions.iter().find_map(durable)
    };
    assert_eq!(confirms(&frame(&mut leader, ack(9, 9, 0))), None);
    assert_eq!(confirms(&feed(&mut leader, 0, marks(7))), None);
    assert_eq!(confirms(&feed(&mut leader, 0, marks(8))), Some(vec![9]));
}

#[test]
fn what_a_follower_confirmed_before_it_came_again_counts_no_more() {
    let mut leader = in_state("shipping");
    frame(&mut leader, ack(8, 8, 8));
    feed(
        &mut leader,
        0,
        Event::Frame(ConnId(2), Message::Hello(hello(2, 0))),
    );
    let policy = Policy::Fixed(vec![NodeId([1; 16]), NodeId([2; 16])]);
    let actions = feed(&mut leader, 0, Event::Policy(policy));
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Confirm(c) if c.received == [0])),
        "its machine may have crashed: it confirms anew"
    );
}

#[test]
fn nothing_is_shipped_without_credit_and_never_more_than_it() {
    let mut leader = in_state("shipping");
    let ships = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Ship { len_max, .. } => Some(*len_max),
            _ => None,
        })
    };
    assert_eq!(ships(&feed(&mut leader, 0, Event::Ship)), None);
    frame(&mut leader, Message::Credit { granted: 1000 });
    assert_eq!(ships(&feed(&mut leader, 0, Event::Ship)), Some(1000));
    feed(&mut leader, 0, Event::Shipped(CONN, S0, 600));
    assert_eq!(ships(&feed(&mut leader, 0, Event::Ship)), Some(400));
    feed(&mut leader, 0, Event::AtTail(CONN, S0));
    assert_eq!(
        ships(&feed(&mut leader, 0, Event::Ship)),
        None,
        "nothing new was written"
    );
    marks(&mut leader, 11, 0);
    assert_eq!(ships(&feed(&mut leader, 0, Event::Ship)), Some(400));
}

#[test]
fn a_higher_promise_in_a_hello_is_the_end_of_a_leadership() {
    let mut leader = in_state("shipping");
    let actions = feed(
        &mut leader,
        0,
        Event::Frame(ConnId(2), Message::Hello(hello(3, 6))),
    );
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Fenced(Epoch(6))))
    );
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Close(CONN, Error::Fenced { .. })))
    );
    let mut other = hello(3, 6);
    other.lineage = Lineage([9; 16]);
    let mut leader = in_state("shipping");
    let actions = feed(
        &mut leader,
        0,
        Event::Frame(ConnId(2), Message::Hello(other)),
    );
    assert!(
        !actions.iter().any(|a| matches!(a, Action::Fenced(_))),
        "not one of our history"
    );
}

#[test]
fn a_refusal_with_a_higher_epoch_is_the_end_of_a_leadership() {
    for (epoch, fenced) in [(5, false), (6, true)] {
        let mut leader = in_state("shipping");
        let refusal = Refusal {
            reason: Reason::StaleEpoch,
            text: String::new(),
            have: String::new(),
            want: String::new(),
            epoch: Epoch(epoch),
        };
        let actions = frame(&mut leader, Message::Refused(refusal));
        assert_eq!(
            actions.iter().any(|a| matches!(a, Action::Fenced(_))),
            fenced
        );
        assert_eq!(leader.leadership().1.is_some(), fenced);
    }
}

#[test]
fn a_fenced_leader_welcomes_nobody() {
    let mut leader = in_state("fenced");
    let actions = frame(&mut leader, Message::Hello(hello(2, 0)));
    assert!(matches!(
        closed(&actions),
        Some(Error::Refused {
            reason: Reason::NotLeader,
            ..
        })
    ));
    assert!(feed(&mut leader, 0, Event::Ship).is_empty());
}

#[test]
fn hellos_that_do_not_fit_are_refused_with_the_reason() {
    let check = |change: &dyn Fn(&mut Hello), expected| {
        let (mut leader, mut hello) = (fresh(), hello(2, 0));
        change(&mut hello);
        let actions = frame(&mut leader, Message::Hello(hello));
        let Some(Error::Refused { reason, .. }) = closed(&actions) else {
            panic!("{actions:?}")
        };
        assert_eq!(*reason, expected);
    };
    check(&|h| h.versions = (7, 9), Reason::Version);
    check(&|h| h.versions = (3, 2), Reason::Version);
    check(&|h| h.lineage = Lineage([9; 16]), Reason::Lineage);
    check(&|h| h.node = NodeId([1; 16]), Reason::Loop);
    check(
        &|h| h.dataset = DatasetId::new("other").unwrap(),
        Reason::UnknownDataset,
    );
    check(
        &|h| h.ends.push(ShardEnd::empty(ShardId(1))),
        Reason::Shards,
    );
    check(&|h| h.ends.push(ShardEnd::empty(S0)), Reason::Shards);
    check(&|h| h.ends.clear(), Reason::Shards);
}

#[test]
fn a_follower_that_connects_anew_replaces_itself() {
    let mut leader = in_state("shipping");
    frame(&mut leader, ack(5, 5, 5));
    let actions = feed(
        &mut leader,
        0,
        Event::Frame(ConnId(2), Message::Hello(hello(2, 0))),
    );
    assert!(closed(&actions).is_some());
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::Judge(ConnId(2), _)))
    );
    assert_eq!(leader.followers().count(), 1);
}

#[test]
fn silent_followers_are_dropped_and_ticks_go_out() {
    let mut leader = in_state("shipping");
    let ticks = |actions: &[Action]| {
        actions
            .iter()
            .any(|a| matches!(a, Action::Send(_, Message::Tick(_))))
    };
    assert!(!ticks(&feed(&mut leader, 999, Event::Tick)));
    assert!(ticks(&feed(&mut leader, 1_000, Event::Tick)));
    assert!(closed(&feed(&mut leader, 10_000, Event::Tick)).is_none());
    assert!(matches!(
        closed(&feed(&mut leader, 10_001, Event::Tick)),
        Some(Error::Unreachable { .. })
    ));
}

#[test]
fn a_committed_mark_goes_out_at_once_where_no_data_carries_it() {
    let mut leader = in_state("shipping");
    feed(&mut leader, 0, Event::Ship);
    let ticks = |actions: &[Action]| {
        actions.iter().find_map(|action| match action {
            Action::Send(_, Message::Tick(tick)) => Some(tick.marks[0].committed),
            _ => None,
        })
    };
    assert_eq!(ticks(&feed(&mut leader, 0, Event::Ship)), None);
    marks(&mut leader, 10, 8);
    assert_eq!(ticks(&feed(&mut leader, 0, Event::Ship)), Some(8));
    assert_eq!(ticks(&feed(&mut leader, 0, Event::Ship)), None);
}

/// A frame of Data has the mark of one shard, and a committed time is a cut through all of them: told
/// with the first frame, it made a follower show a cut without what the second one brought.
#[test]
fn a_committed_time_waits_for_the_marks_of_all_shards() {
    let s1 = ShardId(1);
    let (serving, options) = (fresh().serving, LeaderOptions::default());
    let mut leader = Leader::new(serving, options, &[S0, s1]);
    let marks = |leader: &mut Leader, committed: u64| {
        let marks = Marks {
            written: committed,
            durable: committed,
            committed,
        };
        let times = Times {
            closed: strandline_wal::Hlc(committed),
            committed: strandline_wal::Hlc(committed),
        };
        feed(
            leader,
            0,
            Event::Marks(vec![(S0, marks), (s1, marks)], times),
        );
    };
    let told = |actions: Vec<Action>| {
        let times = actions.iter().filter_map(|action| match action {
            Action::Ship { shard, times, .. } => Some((Some(*shard), times.committed.0)),
            Action::Send(_, Message::Tick(tick)) => Some((None, tick.times.committed.0)),
            _ => None,
        });
        times.collect::<Vec<_>>()
    };
    marks(&mut leader, 10);
    let mut hello = hello(2, 0);
    hello.ends.push(ShardEnd::empty(s1));
    frame(&mut leader, Message::Hello(hello));
    let both = [S0, s1].map(|shard| Verdict::Agreed {
        shard,
        position: Position::default(),
        segment: 1,
        at: 0,
    });
    feed(&mut leader, 0, Event::Judged(CONN, Ok(both.to_vec())));
    frame(&mut leader, Message::Credit { granted: 1_000 });
    assert_eq!(
        told(feed(&mut leader, 0, Event::Ship)),
        [(Some(S0), 0)],
        "no mark of the other shard was told yet"
    );
    feed(&mut leader, 0, Event::Shipped(CONN, S0, 100));
    assert_eq!(told(feed(&mut leader, 0, Event::Ship)), [(Some(s1), 10)]);
    feed(&mut leader, 0, Event::Shipped(CONN, s1, 100));
    feed(&mut leader, 0, Event::AtTail(CONN, s1));
    marks(&mut leader, 20);
    assert_eq!(told(feed(&mut leader, 0, Event::Ship)), [(Some(S0), 10)]);
    feed(&mut leader, 0, Event::Shipped(CONN, S0, 100));
    // Where no Data of the other shard follows, a tick tells the rest.
    feed(&mut leader, 0, Event::AtTail(CONN, S0));
    feed(&mut leader, 0, Event::AtTail(CONN, s1));
    assert_eq!(told(feed(&mut leader, 0, Event::Ship)), [(None, 20)]);
}

#[test]
fn a_bundle_is_sent_in_pieces_within_the_credit_and_ended() {
    let mut leader = in_state("sending");
    assert!(feed(&mut leader, 0, Event::Ship).is_empty(), "no credit");
    frame(&mut leader, Message::Credit { granted: 60 });
    let actions = feed(&mut leader, 0, Event::Ship);
    assert!(
        matches!(
            actions[..],
            [Action::ShipPiece {
                file: 0,
                at: 0,
                len: 60,
                ..
            }]
        ),
        "{actions:?}"
    );
    feed(&mut leader, 0, Event::PieceShipped(CONN, 60));
    frame(&mut leader, Message::Credit { granted: 160 });
    let actions = feed(&mut leader, 0, Event::Ship);
    assert!(
        matches!(
            actions[..],
            [Action::ShipPiece {
                file: 0,
                at: 60,
                len: 40,
                ..
            }]
        ),
        "{actions:?}"
    );
    feed(&mut leader, 0, Event::PieceShipped(CONN, 40));
    let actions = feed(&mut leader, 0, Event::Ship);
    let ended = |a: &Action| matches!(a, Action::Send(_, Message::BundleEnd { .. }));
    assert!(actions.iter().any(ended));
    assert!(actions.iter().any(|a| matches!(a, Action::Unpin(CONN))));
    let actions = frame(&mut leader, Message::Ends(vec![ShardEnd::empty(S0)]));
    assert!(matches!(actions[..], [Action::Judge(..)]));
}

#[test]
fn a_place_behind_the_end_of_a_bundle_is_refused() {
    for (file, at) in [(0, 101), (1, 1), (2, 0), (u32::MAX, u64::MAX)] {
        let mut leader = in_state("listed");
        let actions = frame(&mut leader, Message::BundleFrom { file, at });
        assert!(
            matches!(closed(&actions), Some(Error::Protocol { .. })),
            "{file} {at}"
        );
    }
}

/// A leader whose disk was full answered that the log is pruned, which stops a follower until somebody
/// acts on it: it stayed stopped when the leader had room again.
#[test]
fn a_bundle_that_cannot_be_made_now_is_asked_for_again() {
    let full = Error::Store {
        what: "no storage space".to_owned(),
    };
    let none = Error::Pruned {
        shard: S0,
        needed: 1,
        first_available: 9,
    };
    for (why, expected) in [(full, Reason::Busy), (none, Reason::Pruned)] {
        let mut leader = in_state("pinning");
        let actions = feed(&mut leader, 0, Event::Pinned(CONN, Err(why)));
        let refused = actions.iter().find_map(|action| match action {
            Action::Send(_, Message::Refused(refusal)) => Some(refusal.reason),
            _ => None,
        });
        assert_eq!(refused, Some(expected));
    }
}

#[test]
fn a_lender_serves_its_candidate_alone_and_confirms_nothing() {
    let leadership = Leadership {
        epoch: EPOCH,
        leader: NO_CLAIM,
    };
    let only = Some(NodeId([2; 16]));
    let serving = Serving {
        identity: identity(1),
        leadership,
        only,
    };
    let mut lender = Leader::new(serving, LeaderOptions::default(), &[S0, ShardId(1)]);
    let mut wanted = hello(2, EPOCH.0);
    wanted.purpose = Purpose::Fetch;
    let actions = frame(&mut lender, Message::Hello(wanted.clone()));
    assert!(
        matches!(actions[..], [Action::Judge(..)]),
        "one of two shards is enough"
    );
    feed(&mut lender, 0, Event::Judged(CONN, Ok(vec![agreed()])));
    assert!(frame(&mut lender, ack(0, 0, 0)).is_empty());
    wanted.node = NodeId([3; 16]);
    let actions = feed(
        &mut lender,
        0,
        Event::Frame(ConnId(2), Message::Hello(wanted)),
    );
    assert!(matches!(closed(&actions), Some(Error::Refused { .. })));
}

mod answers;
