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
