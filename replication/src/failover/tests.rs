//! Each part of a node's life, one event at a time.

use super::*;
use crate::error::Error;
use crate::ids::{Incarnation, NodeId};

const LEASE_MS: u64 = 1_000;

fn member(n: u8) -> Member {
    (NodeId([n; 16]), Incarnation([n; 16]))
}

fn record(epoch: u32, leader: u8, members: &[u8]) -> Record {
    Record {
        lineage: Lineage([9; 16]),
        epoch: Epoch(epoch),
        leader: member(leader),
        members: members.iter().map(|n| member(*n)).collect(),
        min_in_sync: 1,
    }
}

/// A node 1 with a history.
struct Machine {
    it: Failover,
    now: u64,
}

impl Machine {
    fn new(first: Option<u32>) -> Machine {
        let options = FailoverOptions {
            lease_ms: LEASE_MS,
            in_sync_ms: 3_000,
            first,
        };
        let mut it = Failover::new(0, member(1), options, 7);
        it.adopt(Lineage([9; 16]));
        Machine { it, now: 0 }
    }

    fn tell(&mut self, event: Event) -> Vec<Action> {
        self.it.handle(self.now, event);
        std::iter::from_fn(|| self.it.poll_action()).collect()
    }

    /// Ticks until something is to be done, and tells what and when.
    fn wait(&mut self) -> (u64, Vec<Action>) {
        for _ in 0..20 * LEASE_MS {
            let actions = self.tell(Event::Tick);
            if !actions.is_empty() {
                return (self.now, actions);
            }
            self.now += 1;
        }
        panic!("nothing is done");
    }

    /// The newest call of the coordinator is answered.
    fn answer(&mut self, answer: Answer) -> Vec<Action> {
        let number = self.it.number - 1;
        self.tell(Event::Answered(number, answer))
    }

    fn read(&mut self, version: u64, record: Record) -> Vec<Action> {
        self.answer(Answer::Read(Ok(Some((Version(version), record)))))
    }

    fn fails(&mut self) -> Error {
        Error::Coordinator {
            name: "here".to_owned(),
            what: "no answer".to_owned(),
        }
    }

    /// Leads epoch 5, with these members, after node 2.
    fn leading(members: &[u8]) -> Machine {
        let mut it = Machine::new(None);
        it.wait();
        assert_eq!(it.read(4, record(4, 2, members)), []);
        it.wait();
        assert_eq!(
            it.read(4, record(4, 2, members)),
            [Action::Campaign(Epoch(4))]
        );
        let opens = it.tell(Event::Claimed(Epoch(5)));
        let new = record(5, 1, members);
        assert!(matches!(&opens[..], [Action::Ask(_, Ask::Replace(Version(4), r))] if *r == new));
        let leads = it.answer(Answer::Replaced(Ok(Replaced::Done(Version(5)))));
        assert_eq!(leads, [Action::Lead(Epoch(5))]);
        assert_eq!(it.tell(Event::Opened(Epoch(5))), []);
        it
    }

    fn led(&mut self, follows: &[(u8, u64)]) -> Vec<Action> {
        let follows = follows.iter().map(|(n, durable)| Follows {
            member: member(*n),
            heard_ms: self.now,
            reach: vec![Reach {
                durable: *durable,
                confirmed: 10,
                start: 8,
            }],
        });
        let follows = follows.collect();
        self.tell(Event::Led(vec![20], follows))
    }
}

fn is_read(actions: &[Action]) -> bool {
    matches!(actions, [Action::Ask(_, Ask::Read)])
}

/// The members of the change that is asked for, if one is.
fn proposed(actions: &[Action]) -> Option<Vec<u8>> {
    actions.iter().find_map(|action| match action {
        Action::Ask(_, Ask::Replace(_, record)) => {
            Some(record.members.iter().map(|member| member.0.0[0]).collect())
        }
        _ => None,
    })
}

#[test]
fn the_first_leader_begins_at_once_and_only_where_it_was_told_to() {
    let mut it = Machine::new(Some(1));
    let (at_ms, actions) = it.wait();
    assert!(at_ms == 0 && is_read(&actions));
    let actions = it.answer(Answer::Read(Ok(None)));
    assert_eq!(actions, [Action::Campaign(Epoch(0))]);

    // It needs a history, and makes one where nobody else has.
    let mut it = Machine::new(Some(1));
    it.it.adopt(Lineage::default());
    it.wait();
    assert_eq!(it.answer(Answer::Read(Ok(None))), [Action::Begin]);
    it.it.adopt(Lineage([9; 16]));
    let (_, actions) = it.wait();
    assert!(is_read(&actions));
    let actions = it.answer(Answer::Read(Ok(None)));
    assert_eq!(actions, [Action::Campaign(Epoch(0))]);

    let mut it = Machine::new(None);
    it.wait();
    assert_eq!(it.answer(Answer::Read(Ok(None))), []);
    let (at_ms, actions) = it.wait();
    assert!(at_ms >= LEASE_MS && is_read(&actions), "it looks again");
}

#[test]
fn the_records_leader_comes_back_at_once_and_others_wait_for_the_lease() {
    let mut it = Machine::new(None);
    it.wait();
    let actions = it.read(3, record(7, 1, &[1, 2]));
    assert_eq!(actions, [Action::Campaign(Epoch(7))]);

    let mut it = Machine::new(None);
    it.wait();
    assert_eq!(it.read(3, record(7, 2, &[1, 2])), []);
    let (at_ms, _) = it.wait();
    assert!((LEASE_MS..=LEASE_MS * 5 / 4).contains(&at_ms), "{at_ms}");
    assert_eq!(
        it.read(3, record(7, 2, &[1, 2])),
        [Action::Campaign(Epoch(7))]
    );
}

#[test]
fn whoever_hears_its_leader_does_not_campaign_and_a_new_leader_gets_its_time() {
    let mut it = Machine::new(None);
    it.wait();
    it.read(3, record(7, 2, &[1, 2, 3]));
    for _ in 0..100 {
        it.now += LEASE_MS / 4;
        assert_eq!(it.tell(Event::Heard(it.now, Epoch(7))), []);
        assert_eq!(it.tell(Event::Tick), []);
    }
    let heard_ms = it.now;
    let (at_ms, actions) = it.wait();
    assert!(is_read(&actions) && at_ms >= heard_ms + LEASE_MS);
    assert_eq!(
        it.read(5, record(8, 3, &[1, 2, 3])),
        [],
        "somebody was first"
    );
    let (again_ms, _) = it.wait();
    assert!(again_ms >= at_ms + LEASE_MS);
    assert_eq!(
        it.read(5, record(8, 3, &[1, 2, 3])),
        [Action::Campaign(Epoch(8))]
    );
}

#[test]
fn who_is_heard_while_the_record_is_read_goes_on() {
    let mut it = Machine::new(None);
    it.wait();
    it.read(3, record(7, 2, &[1, 2]));
    it.wait();
    assert_eq!(it.tell(Event::Heard(it.now, Epoch(7))), []);
    assert_eq!(it.read(3, record(7, 2, &[1, 2])), []);
    assert_eq!(it.it.standing(), Standing::Following);
}

#[test]
fn who_is_no_member_goes_on_following() {
    let mut it = Machine::new(None);
    it.wait();
    it.read(3, record(7, 2, &[2, 3]));
    it.wait();
    assert_eq!(it.read(3, record(7, 2, &[2, 3])), []);
    assert_eq!(it.it.refused(), Some(Refused::NotMember));
    assert_eq!(it.it.standing(), Standing::Following);
}

#[test]
fn an_election_without_a_coordinator_is_given_up_and_the_next_one_waits_longer() {
    let mut it = Machine::new(None);
    it.wait();
    it.read(4, record(4, 2, &[1, 2]));
    it.wait();
    it.read(4, record(4, 2, &[1, 2]));
    it.tell(Event::Claimed(Epoch(5)));
    let error = it.fails();
    let mut actions = it.answer(Answer::Replaced(Err(error.clone())));
    for _ in 0..FAILURE_COUNT_MAX {
        assert!(is_read(&actions), "{actions:?}");
        actions = it.answer(Answer::Read(Err(error.clone())));
        if actions.is_empty() {
            actions = it.wait().1;
        }
    }
    assert_eq!(actions, [Action::Follow]);
    let gave_up_ms = it.now;
    let (at_ms, actions) = it.wait();
    assert!(is_read(&actions) && at_ms >= gave_up_ms + 2 * LEASE_MS);
}

#[test]
fn an_answer_to_an_earlier_state_counts_for_nothing() {
    let mut it = Machine::leading(&[1, 2]);
    let old = it.it.first_number - 1;
    let late = Answer::Read(Ok(Some((Version(9), record(9, 2, &[1, 2])))));
    assert_eq!(it.tell(Event::Answered(old, late)), []);
    assert_eq!(it.it.standing(), Standing::Leading);
}

#[test]
fn another_epoch_than_the_records_is_not_led() {
    let mut it = Machine::new(None);
    it.wait();
    it.read(4, record(4, 1, &[1, 2]));
    it.tell(Event::Claimed(Epoch(5)));
    let leads = it.answer(Answer::Replaced(Ok(Replaced::Done(Version(5)))));
    assert_eq!(leads, [Action::Lead(Epoch(5))]);
    let actions = it.tell(Event::Opened(Epoch(6)));
    assert!(
        matches!(&actions[..], [Action::Follow, Action::Ask(_, Ask::Read)]),
        "{actions:?}"
    );
}

#[test]
fn the_leader_that_was_lost_is_dropped_at_once_and_others_get_their_time() {
    let mut it = Machine::leading(&[1, 2, 3]);
    let began_ms = it.now;
    let actions = it.led(&[(3, 20)]);
    assert_eq!(proposed(&actions), Some(vec![1, 3]));
    assert!(
        matches!(actions[0], Action::Policy(_)),
        "before anything is confirmed"
    );
    it.answer(Answer::Replaced(Ok(Replaced::Done(Version(6)))));

    // One is heard no more: the set keeps its minimum.
    it.now = began_ms + 10 * LEASE_MS;
    let actions = it.led(&[]);
    assert_eq!(proposed(&actions), None);
    assert!(is_read(&actions), "somebody else may lead by now");
}

#[test]
fn a_member_that_is_heard_and_does_not_catch_up_is_dropped() {
    let mut it = Machine::leading(&[1, 2, 3]);
    let drops = it.led(&[(3, 20)]);
    assert_eq!(proposed(&drops), Some(vec![1, 3]));
    it.answer(Answer::Replaced(Ok(Replaced::Done(Version(6)))));
    let joins = it.led(&[(2, 20), (3, 20)]);
    assert_eq!(proposed(&joins), Some(vec![1, 3, 2]));
    it.answer(Answer::Replaced(Ok(Replaced::Done(Version(7)))));
    let began_ms = it.now;
    loop {
        it.now += 100;
        let actions = it.led(&[(2, 19), (3, 20)]);
        if let Some(members) = proposed(&actions) {
            assert_eq!(members, [1, 3]);
            break;
        }
        assert!(it.now < began_ms + 4_000);
    }
    assert!(it.now >= began_ms + 3_000);
    // It lacks what was confirmed: it does not come back.
    it.answer(Answer::Replaced(Ok(Replaced::Done(Version(8)))));
    assert_eq!(proposed(&it.led(&[(2, 9), (3, 20)])), None);
}

#[test]
fn a_deposed_leader_looks_who_leads_and_comes_back_where_nobody_does() {
    let mut it = Machine::leading(&[1, 2]);
    let actions = it.tell(Event::Outdated(Epoch(6)));
    assert!(matches!(
        &actions[..],
        [Action::Follow, Action::Ask(_, Ask::Read)]
    ));
    assert_eq!(
        it.read(5, record(5, 1, &[1, 2])),
        [Action::Campaign(Epoch(5))]
    );

    let mut it = Machine::leading(&[1, 2]);
    it.tell(Event::Outdated(Epoch(6)));
    assert_eq!(it.read(6, record(6, 2, &[1, 2])), []);
    assert_eq!(it.it.standing(), Standing::Following);
}

#[test]
fn a_conflict_shows_who_leads() {
    let mut it = Machine::leading(&[1, 2, 3]);
    it.led(&[(3, 20)]);
    let actions = it.answer(Answer::Replaced(Ok(Replaced::Conflict)));
    assert!(is_read(&actions));
    let actions = it.read(6, record(6, 3, &[1, 2, 3]));
    assert!(matches!(
        &actions[..],
        [Action::Follow, Action::Ask(_, Ask::Read)]
    ));
}
