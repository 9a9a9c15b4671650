//! Each rule of the record, at a leader and at a candidate.

use super::*;
use crate::ids::{Incarnation, NodeId};

const LINEAGE: Lineage = Lineage([7; 16]);

fn member(n: u8) -> Member {
    (NodeId([n; 16]), Incarnation([n; 16]))
}

fn record(epoch: u32, leader: u8, members: &[u8]) -> Record {
    Record {
        lineage: LINEAGE,
        epoch: Epoch(epoch),
        leader: member(leader),
        members: members.iter().copied().map(member).collect(),
        min_in_sync: 1,
    }
}

/// Node 1 leads epoch 3 by version 5.
fn leader(members: &[u8]) -> Membership {
    Membership::new(member(1), Version(5), record(3, 1, members))
}

fn policy(members: &[u8], next: Option<&[u8]>) -> Action {
    let set = |set: &[u8]| set.iter().copied().map(member).collect();
    Action::Policy(Policy::InSync {
        members: set(members),
        next: next.map(set),
        min_in_sync: 1,
    })
}

fn replace(version: u64, record: Record) -> Action {
    Action::Replace(Version(version), record)
}

fn reach(durable: u64) -> Vec<Reach> {
    vec![Reach {
        durable,
        confirmed: 20,
        start: 11,
    }]
}

#[test]
fn a_slow_member_is_waited_for_until_the_record_has_dropped_it() {
    let mut leader = leader(&[1, 2, 3]);
    let after = record(3, 1, &[1, 2]);
    assert_eq!(
        leader.handle(Event::Slow(vec![member(3)])),
        [policy(&[1, 2, 3], Some(&[1, 2])), replace(5, after.clone())]
    );
    assert!(leader.is_changing());
    assert!(
        leader.handle(Event::Slow(vec![member(2)])).is_empty(),
        "one at a time"
    );
    let done = Event::Replaced(Replaced::Done(Version(9)));
    assert_eq!(leader.handle(done), [policy(&[1, 2], None)]);
    assert_eq!(*leader.record(), after);
    assert!(
        leader
            .handle(Event::Slow(vec![member(2), member(1)]))
            .is_empty(),
        "the minimum stays, and so does the leader"
    );
}

#[test]
fn the_slowest_goes_first_and_the_minimum_stays() {
    let mut leader = leader(&[1, 2, 3, 4]);
    let slow = vec![member(3), member(1), member(2), member(4)];
    let asked = leader.handle(Event::Slow(slow));
    assert_eq!(asked[1], replace(5, record(3, 1, &[1, 4])));
}

#[test]
fn who_joins_has_everything_that_was_confirmed() {
    let start = |durable, start| {
        vec![Reach {
            durable,
            confirmed: 0,
            start,
        }]
    };
    for (reach, may) in [
        (reach(19), false),
        (reach(20), true),
        (start(10, 11), false),
        (start(11, 11), true),
        (start(11, u64::MAX), false),
        (Vec::new(), false),
        ([reach(20), reach(19)].concat(), false),
    ] {
        assert_eq!(has_caught_up(&reach), may, "{reach:?}");
        let mut leader = leader(&[1, 2]);
        let actions = leader.handle(Event::Joins(member(3), reach));
        assert_eq!(actions.is_empty(), !may);
    }
    let mut leader = leader(&[1, 2]);
    assert_eq!(
        leader.handle(Event::Joins(member(3), reach(20))),
        [
            policy(&[1, 2], Some(&[1, 2, 3])),
            replace(5, record(3, 1, &[1, 2, 3]))
        ]
    );
}

#[test]
fn a_node_that_joins_takes_the_place_of_its_earlier_life() {
    let mut leader = leader(&[1, 2, 3]);
    let wiped = (NodeId([3; 16]), Incarnation([9; 16]));
    let actions = leader.handle(Event::Joins(wiped, reach(20)));
    let Some(Action::Replace(_, record)) = actions.get(1) else {
        panic!("{actions:?}");
    };
    assert_eq!(record.members, [member(1), member(2), wiped]);
    record.check().unwrap();
}

#[test]
fn there_are_never_more_members_than_there_may_be() {
    let all: Vec<u8> = (1..=MEMBER_COUNT_MAX as u8).collect();
    let mut leader = leader(&all);
    assert!(
        leader
            .handle(Event::Joins(member(200), reach(20)))
            .is_empty()
    );
}

#[test]
fn a_change_without_an_answer_counts_until_a_newer_version_tells() {
    for (found, expected) in [
        (record(3, 1, &[1, 2]), policy(&[1, 2], None)),
        (record(3, 1, &[1, 2, 3]), policy(&[1, 2, 3], None)),
    ] {
        let mut leader = leader(&[1, 2, 3]);
        leader.handle(Event::Slow(vec![member(3)]));
        assert_eq!(leader.handle(Event::Unknown), [Action::Read]);
        assert!(leader.is_changing());
        let before = Event::Read(Some((Version(5), record(3, 1, &[1, 2, 3]))));
        let again = leader.handle(before);
        assert_eq!(
            again,
            [replace(5, record(3, 1, &[1, 2]))],
            "it may come yet"
        );
        assert!(leader.is_changing());
        let looked = leader.handle(Event::Replaced(Replaced::Conflict));
        assert_eq!(looked, [Action::Read]);
        assert!(leader.is_changing());
        let newer = Event::Read(Some((Version(6), found)));
        assert_eq!(leader.handle(newer), [expected]);
        assert!(!leader.is_changing());
    }
}

#[test]
fn a_look_at_the_record_does_not_answer_a_change() {
    let mut leader = leader(&[1, 2, 3]);
    leader.handle(Event::Slow(vec![member(3)]));
    let newer = Some((Version(6), record(3, 1, &[1, 2])));
    assert!(leader.handle(Event::Read(newer)).is_empty());
    assert!(leader.is_changing());
    assert!(
        leader
            .handle(Event::Replaced(Replaced::Done(Version(6))))
            .len()
            == 1
    );
    // Nor does an answer that nobody waits for.
    assert!(leader.handle(Event::Unknown).is_empty());
    assert!(
        leader
            .handle(Event::Replaced(Replaced::Conflict))
            .is_empty()
    );
    assert!(
        leader
            .handle(Event::Replaced(Replaced::Done(Version(7))))
            .is_empty()
    );
}

#[test]
fn a_record_of_another_leader_or_none_ends_a_leadership() {
    let other_history = Record {
        lineage: Lineage([8; 16]),
        ..record(3, 1, &[1, 2])
    };
    let wiped = Record {
        leader: (NodeId([1; 16]), Incarnation([9; 16])),
        ..record(3, 1, &[1, 2])
    };
    for (found, epoch) in [
        (Some(record(4, 2, &[1, 2])), 4),
        (Some(record(3, 2, &[1, 2])), 4),
        (Some(wiped), 4),
        (Some(other_history), 4),
        (Some(record(9, 1, &[1, 2])), 9),
        (None, 4),
    ] {
        let mut leader = leader(&[1, 2]);
        let found = found.map(|record| (Version(6), record));
        let fenced = [Action::Fenced(Epoch(epoch))];
        assert_eq!(leader.handle(Event::Read(found)), fenced);
        assert!(leader.is_fenced());
        assert!(leader.handle(Event::Slow(vec![member(2)])).is_empty());
    }
}

#[test]
fn a_later_epoch_ends_a_leadership_and_an_earlier_one_does_not() {
    let mut leader = leader(&[1, 2]);
    assert!(leader.handle(Event::Outdated(Epoch(3))).is_empty());
    assert_eq!(
        leader.handle(Event::Outdated(Epoch(4))),
        [Action::Fenced(Epoch(4))]
    );
}

fn candidate(n: u8) -> Election {
    Election::new(member(n), LINEAGE, None).0
}

fn found(version: u64, record: Record) -> ElectionEvent {
    ElectionEvent::Read(Some((Version(version), record)))
}

fn open(version: u64, record: Record) -> Option<ElectionAction> {
    Some(ElectionAction::Replace(Version(version), record))
}

#[test]
fn only_an_incarnation_that_the_record_names_may_campaign() {
    let refused = |mut election: Election, event, why| {
        let outcome = election.handle(event);
        assert_eq!(outcome, Some(ElectionAction::NotElected(why)));
        assert!(election.is_over());
    };
    let in_sync = || found(5, record(3, 1, &[1, 2]));
    refused(candidate(3), in_sync(), Refused::NotMember);
    let wiped = (NodeId([2; 16]), Incarnation([9; 16]));
    let wiped = Election::new(wiped, LINEAGE, None).0;
    refused(wiped, in_sync(), Refused::NotMember);
    let (cloned, ours) = (Lineage([8; 16]), LINEAGE);
    let clone = Election::new(member(2), cloned, None).0;
    refused(clone, in_sync(), Refused::Lineage(ours));
    refused(candidate(2), ElectionEvent::Read(None), Refused::NoRecord);
}

#[test]
fn a_candidate_opens_an_epoch_above_the_records_and_keeps_the_members() {
    let mut election = candidate(2);
    let claim = election.handle(found(5, record(3, 1, &[1, 2, 3])));
    assert_eq!(claim, Some(ElectionAction::Claim(Epoch(3))));
    let after = record(8, 2, &[1, 2, 3]);
    let ready = election.handle(ElectionEvent::Ready(Epoch(8)));
    assert_eq!(ready, open(5, after.clone()));
    let done = election.handle(ElectionEvent::Replaced(Replaced::Done(Version(6))));
    assert_eq!(done, Some(ElectionAction::Elected(Version(6), after)));
    assert!(election.is_over());
}

#[test]
fn the_first_record_is_made_on_request_alone() {
    let (mut election, _) = Election::new(member(2), LINEAGE, Some(1));
    let claim = election.handle(ElectionEvent::Read(None));
    assert_eq!(claim, Some(ElectionAction::Claim(Epoch(0))));
    let opened = election.handle(ElectionEvent::Ready(Epoch(4)));
    assert_eq!(opened, open(0, record(4, 2, &[2])));
}

#[test]
fn an_election_without_an_answer_is_decided_by_the_record() {
    let opening = || {
        let mut election = candidate(2);
        election.handle(found(5, record(3, 1, &[1, 2, 3])));
        election.handle(ElectionEvent::Ready(Epoch(4)));
        election
    };
    for lost in [
        ElectionEvent::Unknown,
        ElectionEvent::Replaced(Replaced::Conflict),
    ] {
        let check = |version, record: Record, expected: Option<ElectionAction>| {
            let mut election = opening();
            let read = election.handle(lost.clone());
            assert_eq!(read, Some(ElectionAction::Read));
            assert_eq!(election.handle(found(version, record)), expected);
        };
        let not_elected = |why| Some(ElectionAction::NotElected(why));
        let ours = record(4, 2, &[1, 2, 3]);
        let elected = ElectionAction::Elected(Version(6), ours.clone());
        check(6, ours.clone(), Some(elected));
        check(5, record(3, 1, &[1, 2, 3]), open(5, ours));
        check(6, record(3, 1, &[1, 2]), open(6, record(4, 2, &[1, 2])));
        check(6, record(3, 1, &[1, 3]), not_elected(Refused::NotMember));
        let lost_to = |epoch| not_elected(Refused::Lost(Epoch(epoch)));
        check(6, record(4, 3, &[1, 2, 3]), lost_to(4));
        check(6, record(5, 3, &[1, 2, 3]), lost_to(5));
    }
}

#[test]
fn a_look_from_before_a_leadership_ends_nothing_and_a_leader_never_joins() {
    let mut leader = leader(&[1, 2]);
    let before = Event::Read(Some((Version(4), record(2, 2, &[1, 2]))));
    assert!(leader.handle(before).is_empty());
    assert!(!leader.is_fenced());
    let mut own = member(1);
    own.1 = member(9).1;
    assert!(leader.handle(Event::Joins(own, reach(200))).is_empty());
    assert!(!leader.is_changing());
}
