//! The following machine alone: every frame in every state, and what it must never do.

use strandline_wal::batch::{BatchHeader, Kind, Payload, VERSION};
use strandline_wal::segment::SEGMENT_HEADER_LEN;
use strandline_wal::writer::Appended;
use strandline_wal::{DatasetId, Hlc, Position, RegionId};

use super::*;
use crate::bundle::{BundleFile, BundlePlace};
use crate::ids::{BundleId, Identity, Incarnation, Lineage, NodeId};
use crate::message::codec::FIXED;
use crate::message::tests::Seed;
use crate::message::{Data, DataHead, Piece, Purpose, Seal, Tick, TickMark, Verdict, Welcome};
use crate::store::Floor;

const CONN: ConnId = ConnId(1);
const S0: ShardId = ShardId(0);
const EPOCH: Epoch = Epoch(5);
const LINEAGE: Lineage = Lineage([7; 16]);
const LEADER: NodeId = NodeId([1; 16]);

fn end(epoch: u32, seq: u64) -> ShardEnd {
    let position = Position {
        epoch: Epoch(epoch),
        seq,
    };
    ShardEnd {
        shard: S0,
        position,
        leader: LeaderId([epoch as u8; 16]),
        chain: 9,
    }
}

/// A store with ten records of epoch 4 that has promised epoch 4 to its leader.
fn here() -> Here {
    let identity = Identity {
        node: NodeId([2; 16]),
        incarnation: Incarnation([2; 16]),
        name: "b".to_owned(),
        dataset: DatasetId::default(),
        lineage: LINEAGE,
    };
    let promise = Promise {
        epoch: Epoch(4),
        to: LEADER,
    };
    Here {
        identity,
        promise,
        shards: vec![(end(4, 10), Floor::default())],
    }
}

fn welcome(verdicts: Vec<Verdict>) -> Welcome {
    Welcome {
        version: 1,
        wants: Wants {
            received: true,
            durable: true,
            applied: true,
        },
        epoch: EPOCH,
        node: LEADER,
        incarnation: Incarnation([1; 16]),
        leader: LeaderId([5; 16]),
        lineage: LINEAGE,
        name: "a".to_owned(),
        verdicts,
        sole: false,
    }
}

fn agreed(epoch: u32, seq: u64) -> Verdict {
    let position = Position {
        epoch: Epoch(epoch),
        seq,
    };
    Verdict::Agreed {
        shard: S0,
        position,
        segment: seq + 1,
        at: 0,
    }
}

fn ends(epoch: u32, seq: u64) -> Verdict {
    let position = Position {
        epoch: Epoch(epoch),
        seq,
    };
    Verdict::Ends {
        shard: S0,
        position,
        leader: LeaderId([epoch as u8; 16]),
    }
}

fn feed(follower: &mut Follower, event: Event) -> Vec<Action> {
    follower.handle(1_000, event);
    std::iter::from_fn(|| follower.poll_action()).collect()
}

fn frame(follower: &mut Follower, message: Message) -> Vec<Action> {
    feed(follower, Event::Frame(CONN, message))
}

fn greeting(here: Here) -> Follower {
    let peers = vec!["a".to_owned(), "c".to_owned()];
    let mut follower = Follower::new(FollowerOptions {
        peers,
        ..FollowerOptions::default()
    });
    let actions = feed(&mut follower, Event::Tick);
    assert!(matches!(&actions[..], [Action::Connect(to)] if to == "a"));
    feed(&mut follower, Event::Connecting(CONN));
    let actions = feed(&mut follower, Event::Opened(CONN, here));
    assert!(matches!(
        actions[..],
        [Action::Send(CONN, Message::Hello(_))]
    ));
    follower
}

/// Up to the verdicts of the welcome, the promise made durable.
fn welcomed(here: Here, verdicts: Vec<Verdict>) -> (Follower, Vec<Action>) {
    let mut follower = greeting(here);
    let actions = frame(&mut follower, Message::Welcome(welcome(verdicts)));
    let [Action::Promise(promise)] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        promise,
        Promise {
            epoch: EPOCH,
            to: LEADER
        }
    );
    let actions = feed(&mut follower, Event::Promised(Ok(())));
    (follower, actions)
}

fn file() -> BundleFile {
    BundleFile {
        kind: 1,
        number: 1,
        len: 100,
        digest: [0; 32],
    }
}

fn in_state(name: &str) -> Follower {
    if ["idle", "connecting", "stopped"].contains(&name) {
        let peers = vec!["a".to_owned()];
        let mut follower = Follower::new(FollowerOptions {
            peers,
            ..FollowerOptions::default()
        });
        if name != "idle" {
            feed(&mut follower, Event::Tick);
            feed(&mut follower, Event::Connecting(CONN));
        }
        if name == "stopped" {
            follower.stop(
                0,
                Error::Store {
                    what: "test".to_owned(),
                },
            );
            while follower.poll_action().is_some() {}
        }
        return follower;
    }
    if name == "greeting" {
        return greeting(here());
    }
    if name == "bowing" {
        let mut follower = greeting(here());
        frame(
            &mut follower,
            Message::Welcome(welcome(vec![agreed(4, 10)])),
        );
        return follower;
    }
    let pruned = Verdict::Pruned {
        shard: S0,
        first_available: 50,
    };
    let verdict = match name {
        "following" => agreed(4, 10),
        "agreeing" => ends(4, 8),
        _ => pruned,
    };
    let (mut follower, _) = welcomed(here(), vec![verdict]);
    match name {
        "following" => {
            feed(&mut follower, Event::Flush(1 << 20));
            feed(&mut follower, Event::Synced(S0, Ok(10)));
        }
        "agreeing" => {
            feed(&mut follower, Event::FellBack(vec![Ok(end(4, 8))]));
        }
        _ => {
            feed(&mut follower, Event::SinkOpened(Some(None)));
        }
    }
    if ["listing", "receiving"].contains(&name) {
        let begin = Message::BundleBegin {
            id: BundleId([3; 16]),
            file_count: 1,
            ends: vec![end(5, 99)],
        };
        frame(&mut follower, begin);
    }
    if name == "receiving" {
        frame(&mut follower, Message::BundleFiles(vec![file()]));
        feed(
            &mut follower,
            Event::BundleBegun(Ok(BundlePlace {
                file: 0,
                at: 0,
                ..BundlePlace::default()
            })),
        );
        feed(&mut follower, Event::Flush(1 << 20));
    }
    follower
}

fn closed(actions: &[Action]) -> Option<&Error> {
    actions.iter().find_map(|action| match action {
        Action::Close(_, why) => Some(why),
        _ => None,
    })
}

fn stopped(actions: &[Action]) -> Option<&Error> {
    actions.iter().find_map(|action| match action {
        Action::Stopped(why) => Some(why),
        _ => None,
    })
}

#[test]
fn every_frame_in_every_state_is_taken_or_refused() {
    let legal: [(&str, &[&str]); 10] = [
        ("idle", &[]),
        ("connecting", &[]),
        ("greeting", &["Welcome", "Refused"]),
        ("bowing", &["Refused"]),
        ("agreeing", &["Verdicts", "Tick", "Refused"]),
        ("asking", &["BundleBegin", "Tick", "Refused"]),
        ("listing", &["BundleFiles", "Tick", "Refused"]),
        ("receiving", &["BundleData", "BundleEnd", "Tick", "Refused"]),
        ("following", &["Data", "Seal", "Tick", "Refused"]),
        ("stopped", &[]),
    ];
    for (state, legal) in legal {
        for (kind, (name, ..)) in FIXED.iter().enumerate() {
            for seed in 0..20 {
                let mut follower = in_state(state);
                let actions = frame(&mut follower, Seed(seed).message(kind));
                if ["idle", "stopped"].contains(&state) {
                    assert!(actions.is_empty(), "{state} {name}");
                } else if !legal.contains(name) {
                    let why = closed(&actions).unwrap_or_else(|| panic!("{state} takes {name}"));
                    assert!(
                        matches!(why, Error::Protocol { .. }),
                        "{state} {name}: {why}"
                    );
                }
            }
        }
    }
}

#[test]
fn nothing_is_answered_before_the_promise_is_durable() {
    let mut follower = greeting(here());
    let actions = frame(
        &mut follower,
        Message::Welcome(welcome(vec![agreed(4, 10)])),
    );
    assert!(matches!(actions[..], [Action::Promise(_)]));
    let failed = feed(
        &mut follower,
        Event::Promised(Err(Error::Store {
            what: "disk".to_owned(),
        })),
    );
    assert!(stopped(&failed).is_some());
    assert!(!failed.iter().any(|a| matches!(a, Action::Send(..))));
}

#[test]
fn a_leader_below_the_promise_or_of_another_claim_is_refused() {
    for (epoch, to) in [(Epoch(6), LEADER), (EPOCH, NodeId([8; 16]))] {
        let mut here = here();
        here.promise = Promise { epoch, to };
        let mut follower = greeting(here);
        let actions = frame(
            &mut follower,
            Message::Welcome(welcome(vec![agreed(4, 10)])),
        );
        let refused = actions.iter().find_map(|action| match action {
            Action::Send(_, Message::Refused(refusal)) => Some(refusal.clone()),
            _ => None,
        });
        let refused = refused.expect("it is told");
        assert_eq!((refused.reason, refused.epoch), (Reason::StaleEpoch, epoch));
        assert!(!actions.iter().any(|a| matches!(a, Action::Promise(_))));
    }
}

/// A node led epoch 6, with followers that confirmed; it came back, and met the leader of epoch 5, which had
/// stood still meanwhile. It followed that one and cut what was confirmed.
#[test]
fn a_leader_of_an_epoch_before_the_least_is_refused_and_told() {
    let options = FollowerOptions {
        peers: vec!["leader".to_owned()],
        least_epoch: Epoch(6),
        ..FollowerOptions::default()
    };
    let mut follower = Follower::new(options);
    feed(&mut follower, Event::Tick);
    feed(&mut follower, Event::Connecting(ConnId(1)));
    let actions = feed(&mut follower, Event::Opened(ConnId(1), here()));
    let hello = actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Hello(hello)) => Some(hello.promised_epoch),
        _ => None,
    });
    assert_eq!(hello, Some(Epoch(6)), "it ends that leadership");
    let welcome = Message::Welcome(welcome(vec![agreed(4, 10)]));
    let actions = feed(&mut follower, Event::Frame(ConnId(1), welcome));
    let is_refused = |action: &Action| matches!(action, Action::Send(_, Message::Refused(r)) if r.epoch == Epoch(6));
    assert!(actions.iter().any(is_refused), "{actions:?}");
    assert!(!actions.iter().any(|a| matches!(a, Action::Promise(_))));
}

#[test]
fn a_promise_to_a_candidate_ends_the_connection_to_the_leader_before() {
    let mut follower = in_state("following");
    let promise = Promise {
        epoch: Epoch(6),
        to: NodeId([8; 16]),
    };
    let actions = feed(&mut follower, Event::PromisedElsewhere(promise));
    let told = actions
        .iter()
        .any(|a| matches!(a, Action::Send(_, Message::Refused(r)) if r.epoch == Epoch(6)));
    assert!(told && closed(&actions).is_some());
}

#[test]
fn every_round_must_ask_lower() {
    for verdict in [ends(4, 10), ends(5, 3), agreed(4, 9), agreed(5, 10)] {
        let (_, actions) = welcomed(here(), vec![verdict]);
        assert!(
            matches!(closed(&actions), Some(Error::Protocol { .. })),
            "{verdict:?}"
        );
    }
    let (_, actions) = welcomed(here(), Vec::new());
    assert!(closed(&actions).is_some(), "a verdict on every shard");
}

#[test]
fn a_cut_waits_until_both_agree_and_is_reported_by_its_ends() {
    let (mut follower, actions) = welcomed(here(), vec![ends(3, 7)]);
    let [Action::FallBack(told)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(
        told[0].1,
        Position {
            epoch: Epoch(3),
            seq: 7
        }
    );
    let actions = feed(&mut follower, Event::FellBack(vec![Ok(end(3, 6))]));
    assert!(
        matches!(&actions[..], [Action::Send(_, Message::Ends(asked))] if *asked == [end(3, 6)])
    );
    let actions = frame(&mut follower, Message::Verdicts(vec![agreed(3, 6)]));
    assert!(
        matches!(actions[..], [Action::Cut(from, to)] if from == end(4, 10) && to == end(3, 6))
    );
    let actions = feed(&mut follower, Event::Cut(S0, Ok(())));
    assert!(matches!(actions[..], [Action::Joined(..)]));
    assert_eq!(follower.following().0, EPOCH);
}

#[test]
fn a_strict_dataset_is_not_cut_below_its_committed_mark() {
    let mut here = here();
    here.shards[0].1 = Floor {
        committed: 9,
        flushed: 0,
        strict: true,
    };
    let (mut follower, _) = welcomed(here.clone(), vec![ends(4, 8)]);
    feed(&mut follower, Event::FellBack(vec![Ok(end(4, 8))]));
    let actions = frame(&mut follower, Message::Verdicts(vec![agreed(4, 8)]));
    assert!(matches!(
        stopped(&actions),
        Some(Error::BelowCommitted {
            committed: 9,
            to: 8,
            ..
        })
    ));
    assert!(!actions.iter().any(|a| matches!(a, Action::Cut(..))));
    // The same by a bundle that ends before.
    let pruned = Verdict::Pruned {
        shard: S0,
        first_available: 50,
    };
    let (mut follower, _) = welcomed(here, vec![pruned]);
    feed(&mut follower, Event::SinkOpened(Some(None)));
    let begin = Message::BundleBegin {
        id: BundleId([3; 16]),
        file_count: 0,
        ends: vec![end(4, 8)],
    };
    assert!(stopped(&frame(&mut follower, begin)).is_some());
}

#[test]
fn a_cut_below_what_is_flushed_becomes_a_bundle() {
    let mut here = here();
    here.shards[0].1 = Floor {
        committed: 9,
        flushed: 9,
        strict: false,
    };
    let (mut follower, _) = welcomed(here, vec![ends(4, 8)]);
    feed(&mut follower, Event::FellBack(vec![Ok(end(4, 8))]));
    let actions = frame(&mut follower, Message::Verdicts(vec![agreed(4, 8)]));
    assert!(matches!(actions[..], [Action::OpenSink]));
}

#[test]
fn divergence_stops_it_and_cuts_nothing() {
    let mut follower = in_state("agreeing");
    let why = Error::Diverged {
        shard: S0,
        at: Position::default(),
        ours: 1,
        theirs: 2,
    };
    feed(&mut follower, Event::Tick);
    let mut follower_2 = in_state("greeting");
    let refusal = Refusal {
        reason: Reason::Diverged,
        text: why.to_string(),
        have: String::new(),
        want: String::new(),
        epoch: EPOCH,
    };
    for actions in [
        feed(&mut follower, Event::FellBack(vec![Err(why)])),
        frame(&mut follower_2, Message::Refused(refusal)),
    ] {
        assert!(stopped(&actions).is_some());
        assert!(!actions.iter().any(|a| matches!(a, Action::Cut(..))));
    }
}

fn batch(first_seq: u64) -> Vec<u8> {
    let mut payload = Payload::new();
    payload.push(Kind::Put, S0, &[b"k"], b"value").unwrap();
    let payload = payload.seal(0);
    let header = BatchHeader {
        version: VERSION,
        flags: 0,
        first_seq,
        record_count: 1,
        payload_len: payload.bytes().len() as u32,
        unsynced: 0,
        epoch: EPOCH,
        timestamp: Hlc(first_seq),
        nonce: 1,
        prev_crc: 0,
        payload_crc: payload.crc(),
        ordinal: 0,
        shard: S0,
        region: RegionId(0),
    };
    let mut bytes = vec![0; SEGMENT_HEADER_LEN];
    bytes.extend_from_slice(&header.encode().0);
    bytes.extend_from_slice(payload.bytes());
    bytes
}

fn data(at: u64, bytes: Vec<u8>, written: u64, committed: u64) -> Message {
    let head = DataHead {
        epoch: EPOCH,
        shard: S0,
        segment: 11,
        at,
        written,
        committed,
        ..DataHead::default()
    };
    Message::Data(Data {
        head,
        bytes: bytes.into(),
    })
}

fn appended(seq: u64) -> Event {
    let position = Position { epoch: EPOCH, seq };
    Event::Appended(
        S0,
        Ok(Appended {
            segment: 11,
            at: 0,
            end: 0,
            position,
        }),
    )
}

fn acked(actions: &[Action]) -> Option<AckEntry> {
    actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Ack(ack)) => ack.acks.first().copied(),
        _ => None,
    })
}

#[test]
fn acks_follow_what_the_store_reports_step_by_step() {
    let mut follower = in_state("following");
    let actions = frame(&mut follower, data(0, batch(11), 11, 11));
    assert!(matches!(&actions[..], [Action::Append(S0, whole)] if whole.at == 0));
    assert!(
        acked(&feed(&mut follower, appended(11))).is_none(),
        "acks wait for the end of the frames"
    );
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    let ack = acked(&actions).expect("received is waited for");
    assert_eq!((ack.received, ack.durable, ack.applied), (11, 10, 0));
    assert!(actions.iter().any(|a| matches!(a, Action::Sync(S0))));
    assert!(
        !actions.iter().any(|a| matches!(a, Action::Commit(..))),
        "the disk first"
    );
    let actions = feed(&mut follower, Event::Synced(S0, Ok(11)));
    let ack = acked(&actions).expect("durable is waited for");
    assert_eq!((ack.received, ack.durable, ack.applied), (11, 11, 0));
    assert!(matches!(actions.last(), Some(Action::Commit(marks, _)) if marks[0].seq == 11));
    feed(&mut follower, Event::Committed(Ok(())));
    let ack = acked(&feed(&mut follower, Event::Applied(vec![(S0, 11)]))).expect("applied too");
    assert_eq!((ack.received, ack.durable, ack.applied), (11, 11, 11));
}

#[test]
fn nothing_is_acked_beyond_what_was_received() {
    let mut follower = in_state("following");
    let ack = acked(&feed(&mut follower, Event::Applied(vec![(S0, 99)]))).expect("it rose");
    assert_eq!((ack.received, ack.applied), (10, 10));
    frame(&mut follower, data(0, batch(11), 11, 11));
    feed(&mut follower, appended(11));
    feed(&mut follower, Event::Flush(1 << 20));
    let ack = acked(&feed(&mut follower, Event::Synced(S0, Ok(99)))).expect("it rose");
    assert_eq!((ack.received, ack.durable), (11, 11));
}

#[test]
fn a_failed_sync_is_never_acked() {
    let mut follower = in_state("following");
    frame(&mut follower, data(0, batch(11), 11, 11));
    feed(&mut follower, appended(11));
    feed(&mut follower, Event::Flush(1 << 20));
    let actions = feed(
        &mut follower,
        Event::Synced(
            S0,
            Err(Error::Store {
                what: "EIO".to_owned(),
            }),
        ),
    );
    assert!(stopped(&actions).is_some() && acked(&actions).is_none());
    assert!(feed(&mut follower, Event::Flush(1 << 20)).is_empty());
    assert!(feed(&mut follower, Event::Tick).is_empty());
    feed(&mut follower, Event::Retry);
    assert!(
        matches!(feed(&mut follower, Event::Tick)[..], [Action::Connect(_)]),
        "until someone acts"
    );
}

#[test]
fn data_that_breaks_a_rule_ends_the_connection() {
    let stale = |message| match message {
        Message::Data(mut data) => {
            data.head.epoch = Epoch(4);
            Message::Data(data)
        }
        other => other,
    };
    let other_shard = Message::Data(Data {
        head: DataHead {
            epoch: EPOCH,
            shard: ShardId(3),
            ..DataHead::default()
        },
        bytes: Piece::default(),
    });
    let early_seal = Seal {
        epoch: EPOCH,
        shard: S0,
        segment: 11,
        at: 700,
        footer: Vec::new(),
    };
    let marks = vec![TickMark {
        shard: S0,
        written: 3,
        committed: 4,
    }];
    let lying_tick = Tick {
        epoch: EPOCH,
        marks,
        ..Tick::default()
    };
    for message in [
        stale(data(0, batch(11), 11, 0)),
        data(8, batch(11), 11, 0),
        data(0, batch(11), 11, 12),
        data(0, vec![1; 2 << 20], 11, 0),
        other_shard,
        Message::Seal(early_seal),
        Message::Tick(Tick {
            epoch: Epoch(9),
            ..Tick::default()
        }),
        Message::Tick(lying_tick),
    ] {
        let mut follower = in_state("following");
        let actions = frame(&mut follower, message.clone());
        assert!(closed(&actions).is_some(), "{}", message.name());
        assert!(!actions.iter().any(|a| matches!(a, Action::Append(..))));
    }
}

#[test]
fn a_seal_of_another_epoch_seals_nothing() {
    let seal = |epoch| {
        Message::Seal(Seal {
            epoch,
            shard: S0,
            segment: 11,
            at: 0,
            footer: Vec::new(),
        })
    };
    let actions = frame(&mut in_state("following"), seal(EPOCH));
    assert!(
        matches!(actions[..], [Action::Seal(S0, 11, _)]),
        "{actions:?}"
    );
    let actions = frame(&mut in_state("following"), seal(Epoch(9)));
    assert!(closed(&actions).is_some(), "{actions:?}");
}

#[test]
fn before_the_logs_agree_only_the_leaders_own_ticks_are_signs_of_life() {
    let tick = |epoch| {
        Message::Tick(Tick {
            epoch,
            ..Tick::default()
        })
    };
    for state in ["agreeing", "receiving"] {
        let actions = frame(&mut in_state(state), tick(EPOCH));
        assert!(closed(&actions).is_none(), "{state}");
        let actions = frame(&mut in_state(state), tick(Epoch(4)));
        assert!(closed(&actions).is_some(), "{state}");
    }
}

#[test]
fn a_candidate_fetches_under_the_epoch_that_it_was_promised() {
    for epoch in [4, 5] {
        let mut follower = Follower::new(FollowerOptions {
            peers: vec!["a".to_owned()],
            purpose: Purpose::Fetch,
            ..FollowerOptions::default()
        });
        feed(&mut follower, Event::Tick);
        feed(&mut follower, Event::Connecting(CONN));
        feed(&mut follower, Event::Opened(CONN, here()));
        let lent = Welcome {
            epoch: Epoch(epoch),
            leader: LeaderId::default(),
            ..welcome(vec![agreed(4, 10)])
        };
        let actions = frame(&mut follower, Message::Welcome(lent));
        assert_eq!(closed(&actions).is_some(), epoch != 4, "{actions:?}");
    }
}

#[test]
fn a_sole_winner_of_an_older_epoch_is_no_leader_any_more() {
    let mut later = here();
    later.promise.epoch = Epoch(6);
    let mut follower = greeting(later);
    let sole = Welcome {
        sole: true,
        ..welcome(vec![agreed(4, 10)])
    };
    let actions = frame(&mut follower, Message::Welcome(sole));
    assert!(closed(&actions).is_some(), "{actions:?}");
}

/// It promised the epoch to a candidate that gave up, and another one won it by the promises of the
/// rest. It refused the winner until there was a later epoch, though the first could not win any more.
#[test]
fn a_promise_to_a_candidate_that_lost_does_not_keep_the_winner_away() {
    let bound = || {
        let to = NodeId([8; 16]);
        let promise = Promise { epoch: EPOCH, to };
        Here { promise, ..here() }
    };
    for sole in [false, true] {
        let mut follower = greeting(bound());
        let welcome = Welcome {
            sole,
            ..welcome(vec![agreed(4, 10)])
        };
        let actions = frame(&mut follower, Message::Welcome(welcome));
        if !sole {
            assert!(matches!(
                closed(&actions),
                Some(Error::Refused {
                    reason: Reason::StaleEpoch,
                    ..
                })
            ));
            continue;
        }
        // From now on the promise is the winner's: the loser gets none again.
        let [Action::Promise(promise)] = actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!((promise.epoch, promise.to), (EPOCH, LEADER));
        feed(&mut follower, Event::Promised(Ok(())));
        assert!(matches!(follower.state, State::Following));
    }
}

/// The time of a cut that an earlier leader told says nothing of the marks of the next one.
#[test]
fn what_was_committed_on_another_connection_is_not_committed_by_joining() {
    let mut follower = in_state("following");
    let tick = Tick {
        epoch: EPOCH,
        wall_ms: 1,
        times: Times {
            closed: Hlc(9),
            committed: Hlc(9),
        },
        marks: vec![TickMark {
            shard: S0,
            written: 20,
            committed: 20,
        }],
    };
    let commits = |actions: &[Action]| {
        let told = actions.iter().filter_map(|action| match action {
            Action::Commit(marks, times) => Some((marks[0].seq, times.committed)),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    frame(&mut follower, Message::Tick(tick));
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert_eq!(commits(&actions), [(20, Hlc(9))]);
    let gone = Error::unreachable("a", "test");
    feed(&mut follower, Event::Closed(CONN, gone));
    follower.handle(60_000, Event::Tick);
    assert!(matches!(follower.poll_action(), Some(Action::Connect(_))));
    feed(&mut follower, Event::Connecting(CONN));
    let mut here = here();
    here.promise = Promise {
        epoch: EPOCH,
        to: LEADER,
    };
    feed(&mut follower, Event::Opened(CONN, here));
    frame(
        &mut follower,
        Message::Welcome(welcome(vec![agreed(4, 10)])),
    );
    assert!(matches!(follower.state, State::Following));
    follower.handle(60_000, Event::Flush(1 << 20));
    let mut actions: Vec<Action> = std::iter::from_fn(|| follower.poll_action()).collect();
    actions.extend(feed(&mut follower, Event::Synced(S0, Ok(10))));
    assert_eq!(commits(&actions), []);
}

#[test]
fn refused_followers_try_the_next_peer_and_take_hints() {
    let refuse = |want: &str, reason| {
        Message::Refused(Refusal {
            reason,
            text: String::new(),
            have: String::new(),
            want: want.to_owned(),
            epoch: Epoch(0),
        })
    };
    for (want, reason, next) in [
        ("", Reason::NotLeader, "c"),
        ("a", Reason::NotLeader, "a"),
        ("zz", Reason::NotLeader, "c"),
        ("", Reason::Busy, "c"),
    ] {
        let mut follower = in_state("greeting");
        frame(&mut follower, refuse(want, reason));
        follower.handle(9_000, Event::Tick);
        let Some(Action::Connect(to)) = follower.poll_action() else {
            panic!("it tries again")
        };
        assert_eq!(
            to,
            if reason == Reason::NotLeader && want == "a" {
                "a"
            } else {
                next
            }
        );
    }
}

#[test]
fn a_new_store_takes_over_the_lineage_and_any_other_refuses() {
    let mut fresh = here();
    fresh.identity.lineage = Lineage::default();
    let (mut follower, actions) = welcomed(fresh, vec![agreed(4, 10)]);
    assert!(matches!(actions[..], [Action::Adopt(LINEAGE)]));
    assert!(
        feed(&mut follower, Event::Adopted(Ok(())))
            .iter()
            .any(|a| matches!(a, Action::Joined(..)))
    );
    let mut foreign = here();
    foreign.identity.lineage = Lineage([8; 16]);
    let mut follower = greeting(foreign);
    let actions = frame(
        &mut follower,
        Message::Welcome(welcome(vec![agreed(4, 10)])),
    );
    assert!(matches!(
        stopped(&actions),
        Some(Error::OtherLineage { .. })
    ));
}

#[test]
fn it_shows_signs_of_life_in_every_state_that_waits() {
    for state in ["agreeing", "asking", "listing", "receiving", "following"] {
        let mut follower = in_state(state);
        follower.handle(2_500, Event::Tick);
        let action = follower.poll_action();
        let alive = |message: &Message| matches!(message, Message::Credit { .. } | Message::Ack(_));
        assert!(
            matches!(&action, Some(Action::Send(_, message)) if alive(message)),
            "{state}"
        );
    }
}

#[test]
fn a_silent_leader_is_given_up_and_tried_again() {
    let mut follower = in_state("following");
    follower.handle(11_001, Event::Tick);
    let actions: Vec<_> = std::iter::from_fn(|| follower.poll_action()).collect();
    assert!(matches!(closed(&actions), Some(Error::Unreachable { .. })));
    follower.handle(20_000, Event::Tick);
    assert!(matches!(follower.poll_action(), Some(Action::Connect(_))));
}

mod answers;
mod bundles;
