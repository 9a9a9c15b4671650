//! The following machine and a bundle: taken in order, within its lengths, and asked for again.

use super::*;

#[test]
fn a_bundle_is_taken_in_order_within_its_lengths() {
    let piece = |at, len| Message::BundleData {
        file: 0,
        at,
        bytes: vec![0; len],
    };
    for wrong in [piece(1, 10), piece(0, 101), piece(0, 0)] {
        assert!(closed(&frame(&mut in_state("receiving"), wrong)).is_some());
    }
    let mut follower = in_state("receiving");
    let id = BundleId([3; 16]);
    assert!(matches!(
        frame(&mut follower, piece(0, 60))[..],
        [Action::WriteBundle(0, 0, _)]
    ));
    assert!(
        closed(&frame(
            &mut in_state("receiving"),
            Message::BundleEnd { id }
        ))
        .is_some()
    );
    assert!(matches!(
        frame(&mut follower, piece(60, 40))[..],
        [Action::WriteBundle(0, 60, _)]
    ));
    let actions = frame(&mut follower, Message::BundleEnd { id });
    assert!(matches!(actions[..], [Action::Install]));
    let mut after = here();
    after.shards[0].0 = end(5, 99);
    let actions = feed(&mut follower, Event::Installed(Ok(after)));
    assert!(
        matches!(&actions[..], [Action::Send(_, Message::Ends(asked))] if *asked == [end(5, 99)])
    );
}

/// A follower whose memtables wait for records that it will get by bundle only never had room for it.
#[test]
fn a_bundle_needs_no_room_in_the_store_that_it_replaces() {
    let mut follower = in_state("receiving");
    // As if no credit had been given yet.
    follower.grantor = Grantor::new(follower.options.window);
    let actions = feed(&mut follower, Event::Flush(0));
    let [Action::Send(CONN, Message::Credit { granted })] = actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(granted, follower.options.window);
    let mut follower = in_state("following");
    follower.grantor = Grantor::new(follower.options.window);
    assert!(
        feed(&mut follower, Event::Flush(0)).is_empty(),
        "a log does"
    );
}

/// A node that led had ended a segment where its first batch was cut: the logs agreed, the files did
/// not, and every connection began with the same refusal.
#[test]
fn bytes_that_are_refused_at_the_same_place_again_are_replaced_by_a_bundle() {
    let mut follower = in_state("following");
    for is_again in [false, true] {
        let (log, at) = (Default::default(), Position::default());
        let (what, expected, found) = ("segment", String::new(), String::new());
        let refused = strandline_wal::Error::Refused {
            log,
            at,
            what,
            expected,
            found,
        };
        let actions = feed(&mut follower, Event::Appended(S0, Err(Error::Log(refused))));
        assert!(closed(&actions).is_some());
        follower.handle(1_000_000, Event::Tick);
        assert!(matches!(follower.poll_action(), Some(Action::Connect(_))));
        feed(&mut follower, Event::Connecting(CONN));
        let promise = Promise {
            epoch: EPOCH,
            to: LEADER,
        };
        let here = Here { promise, ..here() };
        feed(&mut follower, Event::Opened(CONN, here));
        let welcome = Message::Welcome(welcome(vec![agreed(4, 10)]));
        let actions = frame(&mut follower, welcome);
        let asks = matches!(actions[..], [Action::OpenSink]);
        assert_eq!(asks, is_again, "{actions:?}");
    }
}

#[test]
fn a_damaged_bundle_file_is_asked_for_again_and_a_full_disk_stops() {
    let damaged = || Error::Damaged {
        what: "file",
        expected: String::new(),
        found: String::new(),
    };
    let actions = feed(
        &mut in_state("receiving"),
        Event::BundleWritten(Err(damaged())),
    );
    assert!(closed(&actions).is_some() && stopped(&actions).is_none());
    let full = Error::Store {
        what: "no space".to_owned(),
    };
    assert!(
        stopped(&feed(
            &mut in_state("receiving"),
            Event::BundleWritten(Err(full))
        ))
        .is_some()
    );
}

#[test]
fn a_list_that_does_not_fit_its_head_or_this_store_is_a_breach() {
    let breach = |follower: &mut Follower, files| {
        let actions = frame(follower, Message::BundleFiles(files));
        match closed(&actions) {
            Some(Error::Protocol { what, .. }) => what.clone(),
            other => panic!("{other:?}"),
        }
    };
    let what = breach(&mut in_state("listing"), vec![file(), file()]);
    assert_eq!(what, "more files than the bundle has");
    let mut follower = in_state("asking");
    let without = Message::BundleBegin {
        id: BundleId([3; 16]),
        file_count: 1,
        ends: Vec::new(),
    };
    frame(&mut follower, without);
    let what = breach(&mut follower, vec![file()]);
    assert_eq!(what, "a bundle without shard 0");
}

#[test]
fn nothing_of_a_bundle_comes_before_the_sink_is_ready_or_beyond_the_credit() {
    let mut begun = in_state("listing");
    let actions = frame(&mut begun, Message::BundleFiles(vec![file()]));
    assert!(matches!(actions[..], [Action::BeginBundle(_)]));
    let data = |len| Message::BundleData {
        file: 0,
        at: 0,
        bytes: vec![0; len],
    };
    let id = BundleId([3; 16]);
    let what = |actions: Vec<Action>| closed(&actions).unwrap().to_string();
    let early = what(frame(&mut begun, data(10)));
    assert!(early.contains("BundleData of file 0 at 0"), "{early}");
    let mut begun = in_state("listing");
    frame(&mut begun, Message::BundleFiles(vec![file()]));
    let early = what(frame(&mut begun, Message::BundleEnd { id }));
    assert!(early.contains("BundleEnd before the last byte"), "{early}");
    let mut follower = in_state("receiving");
    follower.grantor = Grantor::new(5);
    let more = what(frame(&mut follower, data(10)));
    assert!(more.contains("more BundleData than was granted"), "{more}");
    let mut whole = in_state("receiving");
    frame(&mut whole, data(100));
    let id = BundleId([4; 16]);
    let other = what(frame(&mut whole, Message::BundleEnd { id }));
    assert!(other.contains("BundleEnd"), "of another bundle: {other}");
}

#[test]
fn a_strict_store_takes_a_bundle_that_reaches_its_committed_mark() {
    for (committed, takes) in [(99, true), (100, false)] {
        let mut strict = here();
        strict.shards[0].1 = Floor {
            committed,
            flushed: 0,
            strict: true,
        };
        let pruned = Verdict::Pruned {
            shard: S0,
            first_available: 50,
        };
        let (mut follower, _) = welcomed(strict, vec![pruned]);
        feed(&mut follower, Event::SinkOpened(Some(None)));
        let begin = Message::BundleBegin {
            id: BundleId([3; 16]),
            file_count: 0,
            ends: vec![end(5, 99)],
        };
        let actions = frame(&mut follower, begin);
        assert_eq!(matches!(actions[..], [Action::BeginBundle(_)]), takes);
        let below = matches!(
            stopped(&actions),
            Some(Error::BelowCommitted { to: 99, .. })
        );
        assert_eq!(below, !takes, "{actions:?}");
    }
}
