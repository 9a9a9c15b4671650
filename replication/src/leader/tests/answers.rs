//! The serving machine and its driver: answers about followers that left, and failures of the log.

use super::*;

const GONE: ConnId = ConnId(9);

fn gone() -> Error {
    Error::unreachable("b", "it left")
}

fn refusal(actions: &[Action]) -> Option<Reason> {
    actions.iter().find_map(|action| match action {
        Action::Send(_, Message::Refused(refusal)) => Some(refusal.reason),
        _ => None,
    })
}

#[test]
fn answers_about_a_follower_that_left_change_nothing() {
    let answers = [
        Event::Judged(GONE, Ok(vec![agreed()])),
        Event::Judged(GONE, Err(gone())),
        Event::Shipped(GONE, S0, 100),
        Event::Sealed(GONE, S0, 11),
        Event::AtTail(GONE, S0),
        Event::Pinned(GONE, Ok(BundlePlan::default())),
        Event::Pinned(GONE, Err(gone())),
        Event::PieceShipped(GONE, 100),
        Event::Closed(GONE, gone()),
        Event::Frame(GONE, ack(1, 1, 1)),
    ];
    for answer in answers {
        let what = format!("{answer:?}");
        let actions = feed(&mut in_state("credited"), 0, answer);
        assert!(actions.is_empty(), "{what}: {actions:?}");
    }
    let actions = feed(&mut in_state("credited"), 0, Event::Failed(GONE, gone()));
    assert!(
        matches!(actions[..], [Action::Close(GONE, _)]),
        "{actions:?}"
    );
}

#[test]
fn a_log_that_cannot_judge_ends_the_connection_and_one_that_differs_says_so() {
    let diverged = Error::Diverged {
        shard: S0,
        at: Position::default(),
        ours: 1,
        theirs: 2,
    };
    for (why, told) in [(diverged, Some(Reason::Diverged)), (gone(), None)] {
        let words = why.to_string();
        let actions = feed(&mut in_state("judging"), 0, Event::Judged(CONN, Err(why)));
        assert_eq!(closed(&actions).unwrap().to_string(), words);
        assert_eq!(refusal(&actions), told, "{words}");
    }
}

#[test]
fn no_more_followers_are_taken_than_the_limit() {
    let mut leader = in_state("shipping");
    leader.options.follower_count_max = 1;
    let third = Event::Frame(ConnId(2), Message::Hello(hello(3, 0)));
    let actions = feed(&mut leader, 0, third);
    assert_eq!(refusal(&actions), Some(Reason::Busy));
    let why = closed(&actions).unwrap();
    assert!(why.to_string().contains("too many followers"), "{why}");
    assert!(why.is_transient());
}

#[test]
fn a_leadership_ends_once_and_by_a_later_epoch_alone() {
    let mut leader = in_state("shipping");
    for epoch in [4, 5] {
        let actions = feed(&mut leader, 0, Event::Outdated(Epoch(epoch)));
        assert!(actions.is_empty(), "{epoch}: {actions:?}");
    }
    let actions = feed(&mut leader, 0, Event::Outdated(Epoch(6)));
    assert!(matches!(actions[..], [Action::Fenced(Epoch(6)), ..]));
    assert!(matches!(closed(&actions), Some(Error::Fenced { .. })));
    assert_eq!(leader.leadership().1, Some(Epoch(6)));
    assert_eq!(leader.due_ms(), None);
    for event in [
        Event::Outdated(Epoch(7)),
        Event::Policy(Policy::Fixed(vec![NodeId([2; 16])])),
        Event::Started(S0, 1),
    ] {
        assert!(feed(&mut leader, 0, event).is_empty());
    }
}

/// A lender that hears of a later epoch stops lending; there is no leadership whose end to report.
#[test]
fn a_lender_that_is_outdated_drops_its_candidate_without_a_word_to_the_store() {
    let leadership = Leadership {
        epoch: EPOCH,
        leader: NO_CLAIM,
    };
    let serving = Serving {
        identity: identity(1),
        leadership,
        only: Some(NodeId([2; 16])),
    };
    let mut lender = Leader::new(serving, LeaderOptions::default(), &[S0]);
    let mut wanted = hello(2, EPOCH.0);
    wanted.purpose = Purpose::Fetch;
    frame(&mut lender, Message::Hello(wanted));
    assert!(feed(&mut lender, 0, Event::Started(S0, 1)).is_empty());
    let actions = feed(&mut lender, 0, Event::Outdated(Epoch(6)));
    assert!(closed(&actions).is_some());
    assert!(!actions.iter().any(|a| matches!(a, Action::Fenced(_))));
}

#[test]
fn where_nobody_counts_nothing_is_confirmed() {
    let mut leader = in_state("shipping");
    let actions = feed(&mut leader, 0, Event::Policy(Policy::default()));
    assert!(actions.is_empty(), "{actions:?}");
    let both = Policy::Fixed(vec![NodeId([1; 16]), NodeId([2; 16])]);
    feed(&mut leader, 0, Event::Policy(both));
    frame(&mut leader, Message::Credit { granted: 1000 });
    let actions = frame(&mut leader, ack(10, 10, 0));
    assert!(matches!(&actions[..], [Action::Confirm(c)] if c.durable == [10]));
}

#[test]
fn a_follower_is_told_nothing_before_its_welcome() {
    let mut leader = in_state("judging");
    assert!(feed(&mut leader, 5_000, Event::Tick).is_empty());
    let mut leader = in_state("pinning");
    let actions = feed(&mut leader, 5_000, Event::Tick);
    assert!(matches!(actions[..], [Action::Send(_, Message::Tick(_))]));
}

#[test]
fn acks_that_fall_back_on_disk_or_in_readers_are_false_too() {
    for (durable, applied) in [(4, 5), (5, 4)] {
        let mut leader = in_state("credited");
        assert!(closed(&frame(&mut leader, ack(5, 5, 5))).is_none());
        let actions = frame(&mut leader, ack(6, durable, applied));
        let why = closed(&actions).unwrap().to_string();
        assert!(why.contains("an Ack of less than before"), "{why}");
    }
}

#[test]
fn ends_that_were_not_greeted_with_are_a_breach() {
    let end = |shard| ShardEnd::empty(ShardId(shard));
    for wrong in [vec![], vec![end(7)], vec![end(0), end(0)]] {
        let actions = frame(&mut in_state("agreeing"), Message::Ends(wrong));
        let why = closed(&actions).unwrap().to_string();
        assert!(
            why.contains("ends of shards that it did not greet with"),
            "{why}"
        );
    }
}

/// Bytes under way would be taken for those of the bundle.
#[test]
fn a_bundle_is_asked_for_before_any_byte_or_not_at_all() {
    let again = BundleId::default();
    let actions = frame(&mut in_state("credited"), Message::BundleAsk { again });
    assert!(matches!(actions[..], [Action::Pin(CONN, _)]), "{actions:?}");
    let mut leader = in_state("credited");
    feed(&mut leader, 0, Event::Shipped(CONN, S0, 100));
    let actions = frame(&mut leader, Message::BundleAsk { again });
    let why = closed(&actions).unwrap().to_string();
    assert!(why.contains("BundleAsk while shipping"), "{why}");
}

#[test]
fn a_bundle_begins_at_any_place_up_to_its_end() {
    for (file, at) in [(0, 0), (0, 100), (1, 0)] {
        let mut leader = in_state("listed");
        let actions = frame(&mut leader, Message::BundleFrom { file, at });
        assert!(actions.is_empty(), "{file} {at}: {actions:?}");
        let actions = feed(&mut leader, 0, Event::Ship);
        let ended = |a: &Action| matches!(a, Action::Send(_, Message::BundleEnd { .. }));
        assert_eq!(actions.iter().any(ended), (file, at) != (0, 0));
    }
}
