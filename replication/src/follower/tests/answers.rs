//! The following machine and its store: answers that come too late, and failures of every kind.

use super::super::following::{BEHIND_COUNT, BEHIND_MS, BESIDE_LEN};
use super::*;

const STATES: [&str; 10] = [
    "idle",
    "connecting",
    "greeting",
    "bowing",
    "agreeing",
    "asking",
    "listing",
    "receiving",
    "following",
    "stopped",
];

fn failed() -> Error {
    Error::Store {
        what: "it has no space".to_owned(),
    }
}

fn damaged() -> Error {
    let path = std::path::Path::new("/log/1.seg");
    Error::Log(strandline_wal::Error::corrupt(
        path,
        512,
        "shipped batch",
        "a",
        "b",
    ))
}

fn misfit() -> Error {
    Error::Log(strandline_wal::Error::Refused {
        log: Default::default(),
        at: Position::default(),
        what: "footer",
        expected: "a".to_owned(),
        found: "b".to_owned(),
    })
}

/// A connection ends between a question to the store and its answer.
#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    type Late = (fn() -> Event, &'static [&'static str]);
    let answers: [Late; 14] = [
        (|| Event::Connecting(ConnId(9)), &["connecting"]),
        (|| Event::Opened(ConnId(9), here()), &["connecting"]),
        (|| Event::Promised(Ok(())), &["bowing"]),
        (|| Event::Adopted(Ok(())), &["bowing"]),
        (|| Event::FellBack(Vec::new()), &["agreeing"]),
        (|| Event::Cut(S0, Ok(())), &["agreeing"]),
        (|| Event::SinkOpened(None), &["asking"]),
        (
            || Event::BundleBegun(Ok(BundlePlace::default())),
            &["receiving"],
        ),
        (|| Event::Installed(Ok(here())), &["receiving"]),
        (|| appended(11), &["following"]),
        (|| Event::Applied(vec![(S0, 10)]), &["following"]),
        (|| Event::SyncEnded(Ok(vec![(S0, 10)])), &[]),
        (|| Event::SyncEnded(Err(failed())), &[]),
        (|| Event::Closed(ConnId(9), failed()), &[]),
    ];
    for state in STATES {
        for (answer, waits) in &answers {
            if !waits.contains(&state) {
                let mut follower = in_state(state);
                let before = follower.state.name();
                let event = answer();
                let what = format!("{event:?} while {state}");
                assert!(feed(&mut follower, event).is_empty(), "{what}");
                assert_eq!(follower.state.name(), before, "{what}");
            }
        }
    }
}

#[test]
fn a_store_that_fails_stops_it_with_its_own_words() {
    let cases: [(&str, Event); 10] = [
        ("bowing", Event::Promised(Err(failed()))),
        ("bowing", Event::Adopted(Err(failed()))),
        ("agreeing", Event::FellBack(vec![Err(failed())])),
        ("agreeing", Event::Cut(S0, Err(failed()))),
        ("receiving", Event::BundleBegun(Err(failed()))),
        ("receiving", Event::Installed(Err(failed()))),
        ("following", Event::Appended(S0, Err(failed()))),
        ("following", Event::Sealed(S0, Err(failed()))),
        ("following", Event::Committed(Err(failed()))),
        ("following", Event::Synced(S0, Err(failed()))),
    ];
    for (state, event) in cases {
        let mut follower = in_state(state);
        let what = format!("{event:?} while {state}");
        let actions = feed(&mut follower, event);
        let why = stopped(&actions).unwrap_or_else(|| panic!("{what}: {actions:?}"));
        assert_eq!(why.to_string(), failed().to_string(), "{what}");
        assert!(closed(&actions).is_some(), "{what}");
        assert_eq!(follower.due_ms(), None, "{what}: it waits for someone");
        let again = feed(&mut follower, Event::Committed(Err(failed())));
        assert!(again.is_empty(), "it is told once: {again:?}");
        assert!(feed(&mut follower, Event::NoWay(failed())).is_empty());
        assert!(feed(&mut follower, Event::Tick).is_empty());
        assert!(feed(&mut follower, Event::Retry).is_empty());
        let actions = feed(&mut follower, Event::Tick);
        assert!(matches!(actions[..], [Action::Connect(_)]), "{what}");
    }
}

/// What was shipped may have been harmed on the way: the connection is made anew.
#[test]
fn shipped_bytes_and_footers_that_are_damaged_are_asked_for_again() {
    for event in [
        Event::Appended(S0, Err(damaged())),
        Event::Sealed(S0, Err(damaged())),
        Event::Sealed(S0, Err(misfit())),
    ] {
        let mut follower = in_state("following");
        let what = format!("{event:?}");
        let actions = feed(&mut follower, event);
        assert!(
            closed(&actions).is_some() && stopped(&actions).is_none(),
            "{what}"
        );
        assert!(follower.due_ms().is_some());
    }
    let mut follower = in_state("following");
    assert!(feed(&mut follower, Event::Sealed(S0, Ok(()))).is_empty());
    assert!(feed(&mut follower, Event::Sealed(ShardId(7), Ok(()))).is_empty());
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    let syncs = |a: &Action| matches!(a, Action::Sync(S0));
    assert!(actions.iter().any(syncs), "a footer is synced: {actions:?}");
}

#[test]
fn a_peer_that_cannot_even_be_tried_is_passed_over() {
    let mut follower = Follower::new(FollowerOptions {
        peers: vec!["a".to_owned(), "b".to_owned()],
        ..FollowerOptions::default()
    });
    assert_eq!(follower.due_ms(), Some(0));
    feed(&mut follower, Event::Tick);
    let actions = feed(&mut follower, Event::NoWay(failed()));
    assert!(matches!(&actions[..], [Action::Left(name, _)] if name == "a"));
    let due = follower.due_ms().unwrap();
    assert!(due > 1_000, "{due}");
    follower.handle(due, Event::Tick);
    let next = follower.poll_action();
    assert!(matches!(next, Some(Action::Connect(to)) if to == "b"));
}

#[test]
fn without_peers_it_stays_where_it_is() {
    let mut follower = Follower::new(FollowerOptions::default());
    assert_eq!(follower.due_ms(), None);
    assert!(feed(&mut follower, Event::Tick).is_empty());
    assert_eq!(follower.following(), (Epoch(0), LeaderId::default(), ""));
}

#[test]
fn it_is_due_when_a_sync_or_an_ack_is() {
    let mut follower = in_state("following");
    let options = follower.options.clone();
    follower.wants = Wants::default();
    follower.streams.get_mut(&S0).unwrap().untold = false;
    assert_eq!(
        follower.due_ms(),
        Some(follower.told_ms + options.heartbeat_ms)
    );
    follower.streams.get_mut(&S0).unwrap().unsynced = true;
    assert_eq!(
        follower.due_ms(),
        Some(follower.synced_ms + options.sync_ms)
    );
    follower.streams.get_mut(&S0).unwrap().untold = true;
    assert_eq!(follower.due_ms(), Some(follower.told_ms + options.ack_ms));
    let waits = in_state("asking");
    assert_eq!(waits.due_ms(), Some(waits.told_ms + options.heartbeat_ms));
}

/// A follower at which so many bytes were appended since its last sync, with so many records still to come.
fn behind(len: u64, count: u64) -> Follower {
    let mut follower = in_state("following");
    follower.wants.durable = true;
    feed(&mut follower, Event::Flush(1 << 20));
    feed(&mut follower, Event::Synced(S0, Ok(10)));
    take(&mut follower, len);
    follower.streams.get_mut(&S0).unwrap().written = 11 + count;
    follower
}

/// Record 11 comes, in so many bytes.
fn take(follower: &mut Follower, len: u64) {
    let position = Position {
        seq: 11,
        ..Position::default()
    };
    let appended = Appended {
        segment: 1,
        at: 600,
        end: 600 + len,
        position,
    };
    feed(follower, Event::Appended(S0, Ok(appended)));
}

#[test]
fn few_bytes_are_synced_at_once_and_many_beside_everything_else() {
    let is_beside = |a: &Action| matches!(a, Action::Persist);
    let is_sync = |a: &Action| matches!(a, Action::Sync(_));
    let is_commit = |a: &Action| matches!(a, Action::Commit(..));
    let actions = feed(&mut behind(BESIDE_LEN - 1, 0), Event::Flush(1 << 20));
    assert!(actions.iter().any(is_sync) && !actions.iter().any(is_beside));
    assert!(!actions.iter().any(is_commit), "it comes after the ack");
    let mut follower = behind(BESIDE_LEN, 0);
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert!(actions.iter().any(is_beside) && !actions.iter().any(is_sync));
    assert!(actions.iter().any(is_commit), "readers do not wait for it");
    assert!(follower.is_syncing_beside());
    // One at a time, and nothing else is synced meanwhile.
    take(&mut follower, 8);
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert!(!actions.iter().any(|a| is_sync(a) || is_beside(a)));
    assert_eq!(follower.standing(S0).unwrap().0.durable, 10);
    // What is synced beyond what was received is of another time.
    let actions = feed(&mut follower, Event::SyncEnded(Ok(vec![(S0, 99)])));
    assert_eq!(follower.standing(S0).unwrap().0.durable, 11);
    let is_ack = |a: &Action| matches!(a, Action::Send(_, Message::Ack(_)));
    assert!(actions.iter().any(is_ack), "{actions:?}");
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert!(actions.iter().any(is_sync), "what came meanwhile");
}

#[test]
fn a_sync_beside_everything_else_that_fails_stops_it() {
    let mut follower = behind(BESIDE_LEN, 0);
    feed(&mut follower, Event::Flush(1 << 20));
    let actions = feed(&mut follower, Event::SyncEnded(Err(failed())));
    let why = stopped(&actions).expect("it stops");
    assert_eq!(why.to_string(), failed().to_string());
    assert_eq!(follower.standing(S0), None);
}

#[test]
fn a_follower_far_behind_syncs_now_and_then() {
    for (count, pause_ms) in [(BEHIND_COUNT, 0), (BEHIND_COUNT + 1, BEHIND_MS)] {
        let mut follower = behind(8, count);
        assert_eq!(follower.pause_ms(), pause_ms, "{count} records");
        let (now, due_ms) = (follower.synced_ms, follower.due_ms());
        assert!(due_ms.is_some_and(|due_ms| due_ms <= now + pause_ms.max(1)));
        let mut syncs = |now| {
            follower.handle(now, Event::Flush(1 << 20));
            let actions = std::iter::from_fn(|| follower.poll_action());
            actions.filter(|a| matches!(a, Action::Sync(_))).count()
        };
        if pause_ms > 0 {
            assert_eq!(syncs(now + pause_ms - 1), 0);
        }
        assert_eq!(syncs(now + pause_ms), 1, "{count} records");
    }
}

#[test]
fn a_promise_to_a_candidate_of_an_older_epoch_keeps_the_leader() {
    for (epoch, ends) in [(5, false), (6, true)] {
        let promise = Promise {
            epoch: Epoch(epoch),
            to: NodeId([8; 16]),
        };
        let mut follower = in_state("following");
        let actions = feed(&mut follower, Event::PromisedElsewhere(promise));
        assert_eq!(closed(&actions).is_some(), ends, "{actions:?}");
        for state in ["idle", "connecting", "greeting", "stopped"] {
            let mut follower = in_state(state);
            let actions = feed(&mut follower, Event::PromisedElsewhere(promise));
            assert!(actions.is_empty(), "{state}: {actions:?}");
        }
    }
}

#[test]
fn a_welcome_that_no_leader_sends_is_a_breach() {
    let breaches: [fn(&mut Welcome); 3] = [
        |welcome| welcome.lineage = Lineage::default(),
        |welcome| welcome.node = NodeId::default(),
        |welcome| welcome.version = 99,
    ];
    for breach in breaches {
        let mut wrong = welcome(vec![agreed(4, 10)]);
        breach(&mut wrong);
        let actions = frame(&mut greeting(here()), Message::Welcome(wrong));
        let why = closed(&actions).unwrap();
        assert!(matches!(why, Error::Protocol { .. }), "{why}");
        assert!(stopped(&actions).is_none());
    }
}

fn fetching(here: Here, only: Vec<ShardId>) -> Follower {
    let mut follower = Follower::new(FollowerOptions {
        peers: vec!["a".to_owned()],
        purpose: Purpose::Fetch,
        only,
        ..FollowerOptions::default()
    });
    feed(&mut follower, Event::Tick);
    feed(&mut follower, Event::Connecting(CONN));
    feed(&mut follower, Event::Opened(CONN, here));
    follower
}

/// Who follows needs a leader, who fetches one who lends; neither takes the other for it.
#[test]
fn a_leader_does_not_lend_and_a_lender_does_not_lead() {
    let lent = || Welcome {
        epoch: Epoch(4),
        leader: LeaderId::default(),
        ..welcome(vec![agreed(4, 10)])
    };
    let led = || Welcome {
        leader: LeaderId([5; 16]),
        ..lent()
    };
    let refused = |mut follower: Follower, welcome| {
        let actions = frame(&mut follower, Message::Welcome(welcome));
        let stale = Reason::StaleEpoch;
        matches!(closed(&actions), Some(Error::Refused { reason, .. }) if *reason == stale)
    };
    assert!(refused(fetching(here(), Vec::new()), led()));
    assert!(!refused(fetching(here(), Vec::new()), lent()));
    assert!(refused(greeting(here()), lent()));
    assert!(!refused(greeting(here()), led()));
}

#[test]
fn a_candidate_fetches_what_it_lacks_and_no_bundle() {
    let mut two = here();
    let other = ShardEnd {
        shard: ShardId(1),
        ..end(4, 3)
    };
    two.shards.push((other, Floor::default()));
    let lent = |verdict| {
        Message::Welcome(Welcome {
            epoch: Epoch(4),
            leader: LeaderId::default(),
            ..welcome(vec![verdict])
        })
    };
    let mut follower = fetching(two.clone(), vec![S0]);
    let actions = frame(&mut follower, lent(agreed(4, 10)));
    assert!(matches!(actions[..], [Action::Joined(..)]), "{actions:?}");
    assert!(follower.standing(S0).is_some() && follower.standing(ShardId(1)).is_none());
    // The lender's ticks and the store's answers speak of all shards.
    let mark = |shard, seq| TickMark {
        shard,
        written: seq,
        committed: seq,
    };
    let tick = Message::Tick(Tick {
        epoch: Epoch(4),
        marks: vec![mark(S0, 12), mark(ShardId(1), 40)],
        ..Tick::default()
    });
    assert!(closed(&frame(&mut follower, tick)).is_none());
    feed(
        &mut follower,
        Event::Applied(vec![(S0, 10), (ShardId(1), 3)]),
    );
    let (ack, written, committed) = follower.standing(S0).unwrap();
    assert_eq!((ack.applied, written, committed), (10, 12, 12));
    let pruned = Verdict::Pruned {
        shard: S0,
        first_available: 50,
    };
    let actions = frame(&mut fetching(two, vec![S0]), lent(pruned));
    let Some(Error::Pruned {
        needed,
        first_available,
        ..
    }) = stopped(&actions)
    else {
        panic!("{actions:?}")
    };
    assert_eq!((*needed, *first_available), (11, 50));
}

#[test]
fn a_strict_dataset_may_be_cut_above_its_committed_mark() {
    let mut strict = here();
    strict.shards[0].1 = Floor {
        committed: 8,
        flushed: 0,
        strict: true,
    };
    let (mut follower, actions) = welcomed(strict, vec![ends(4, 8)]);
    assert!(matches!(actions[..], [Action::FallBack(_)]));
    feed(&mut follower, Event::FellBack(vec![Ok(end(4, 8))]));
    let actions = frame(&mut follower, Message::Verdicts(vec![agreed(4, 8)]));
    assert!(matches!(&actions[..], [Action::Cut(_, to)] if *to == end(4, 8)));
}

#[test]
fn where_the_own_log_does_not_reach_back_a_bundle_is_asked_for() {
    let (mut follower, _) = welcomed(here(), vec![ends(4, 8)]);
    let pruned = Error::Pruned {
        shard: S0,
        needed: 8,
        first_available: 9,
    };
    let actions = feed(&mut follower, Event::FellBack(vec![Err(pruned)]));
    assert!(matches!(actions[..], [Action::OpenSink]), "{actions:?}");
    let actions = feed(&mut follower, Event::SinkOpened(None));
    let Some(Error::Pruned { needed, .. }) = stopped(&actions) else {
        panic!("a store without bundles stops: {actions:?}")
    };
    assert_eq!(*needed, 11);
}

#[test]
fn a_seal_of_a_shard_that_is_not_followed_is_a_breach() {
    let seal = |shard, at| {
        Message::Seal(Seal {
            epoch: EPOCH,
            shard,
            segment: 11,
            at,
            footer: Vec::new(),
        })
    };
    for (wrong, what) in [
        (seal(ShardId(9), 0), "Seal of shard"),
        (seal(S0, 8), "Seal before the segment's last byte"),
    ] {
        let actions = frame(&mut in_state("following"), wrong);
        let why = closed(&actions).unwrap().to_string();
        assert!(why.contains(what), "{why}");
    }
}

/// One sync at a time: what comes meanwhile is covered by the next one.
#[test]
fn while_it_syncs_it_only_grants() {
    let mut follower = in_state("following");
    feed(&mut follower, Event::Sealed(S0, Ok(())));
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert!(actions.iter().any(|a| matches!(a, Action::Sync(S0))));
    feed(&mut follower, Event::Sealed(S0, Ok(())));
    assert!(feed(&mut follower, Event::Flush(1 << 20)).is_empty());
    feed(&mut follower, Event::Synced(S0, Ok(10)));
    let actions = feed(&mut follower, Event::Flush(1 << 20));
    assert!(actions.iter().any(|a| matches!(a, Action::Sync(S0))));
}

/// It has no connection, and nobody to tell.
#[test]
fn divergence_that_is_found_without_a_leader_stops_it_all_the_same() {
    let diverged = Error::Diverged {
        shard: S0,
        at: Position::default(),
        ours: 1,
        theirs: 2,
    };
    let actions = feed(&mut in_state("idle"), Event::Committed(Err(diverged)));
    assert!(matches!(
        actions[..],
        [Action::Left(..), Action::Stopped(_)]
    ));
}

/// The system takes connections for a process that stands still, and a leader that did was waited for as long
/// as one that was followed: whoever had taken over waited for its follower meanwhile.
#[test]
fn a_peer_that_does_not_greet_is_given_up_before_a_leader_that_falls_silent() {
    let options = FollowerOptions {
        peers: vec!["still".to_owned(), "leader".to_owned()],
        greeting_ms: 700,
        ..FollowerOptions::default()
    };
    let mut follower = Follower::new(options);
    feed(&mut follower, Event::Tick);
    feed(&mut follower, Event::Connecting(CONN));
    feed(&mut follower, Event::Opened(CONN, here()));
    let start_ms = follower.heard_ms;
    assert_eq!(follower.due_ms(), Some(start_ms + 701));
    let actions = |follower: &mut Follower| -> Vec<Action> {
        std::iter::from_fn(|| follower.poll_action()).collect()
    };
    follower.handle(start_ms + 700, Event::Tick);
    assert!(actions(&mut follower).is_empty());
    follower.handle(start_ms + 701, Event::Tick);
    assert!(
        actions(&mut follower)
            .iter()
            .any(|a| matches!(a, Action::Close(..)))
    );
    follower.handle(start_ms + 1_000, Event::Tick);
    let next = actions(&mut follower);
    assert!(
        matches!(&next[..], [Action::Connect(peer)] if peer == "leader"),
        "{next:?}"
    );
    // Where nobody greets in that time they may be far away: each has twice as long then.
    follower.handle(start_ms + 1_701, Event::Tick);
    actions(&mut follower);
    follower.handle(start_ms + 3_000, Event::Tick);
    assert!(matches!(&actions(&mut follower)[..], [.., Action::Connect(peer)] if peer == "still"));
    follower.handle(start_ms + 3_000 + 1_400, Event::Tick);
    let has_left = |actions: &[Action]| actions.iter().any(|a| matches!(a, Action::Left(..)));
    assert!(!has_left(&actions(&mut follower)));
    follower.handle(start_ms + 3_000 + 1_401, Event::Tick);
    assert!(has_left(&actions(&mut follower)));
}
