//! Known histories, and a second checker that tries every order.
use super::*;
use crate::seed::Rng;

fn w(began: u64, ended: u64, value: u64) -> Call {
    Call::write(0, began, Some(ended), 0, Some(value))
}

fn lost(began: u64, value: u64) -> Call {
    Call::write(0, began, None, 0, Some(value))
}

fn r(began: u64, ended: u64, found: u64) -> Call {
    let found = (found != 0).then_some(found);
    Call::read(1, (began, ended), 0, found)
}

#[test]
fn histories_of_one_key_are_judged_as_the_definition_does() {
    let cases: [(&str, Vec<Call>, bool); 16] = [
        ("nothing", vec![], true),
        ("one read of nothing", vec![r(1, 2, 0)], true),
        (
            "a read of a value that nobody wrote",
            vec![r(1, 2, 9)],
            false,
        ),
        ("a read after its write", vec![w(1, 2, 1), r(3, 4, 1)], true),
        (
            "a stale read",
            vec![w(1, 2, 1), w(3, 4, 2), r(5, 6, 1)],
            false,
        ),
        (
            "an acknowledged write that is gone",
            vec![w(1, 2, 1), r(3, 4, 0)],
            false,
        ),
        (
            "a read beside its write, old",
            vec![w(1, 4, 1), r(2, 3, 0)],
            true,
        ),
        (
            "a read beside its write, new",
            vec![w(1, 4, 1), r(2, 3, 1)],
            true,
        ),
        (
            "new and then old, both beside the write",
            vec![w(1, 9, 1), r(2, 3, 1), r(4, 5, 0)],
            false,
        ),
        (
            "two writes beside each other, either order",
            vec![w(1, 4, 1), w(2, 3, 2), r(5, 6, 1), r(7, 8, 1)],
            true,
        ),
        (
            "two writes beside each other, both orders",
            vec![w(1, 4, 1), w(2, 3, 2), r(5, 6, 1), r(7, 8, 2)],
            false,
        ),
        (
            "an unknown write that never happened",
            vec![lost(1, 1), r(5, 6, 0)],
            true,
        ),
        (
            "an unknown write that happened late",
            vec![lost(1, 1), w(2, 3, 2), r(4, 5, 2), r(6, 7, 1)],
            true,
        ),
        (
            "an unknown write that happened and was undone",
            vec![lost(1, 1), r(2, 3, 1), r(4, 5, 0)],
            false,
        ),
        (
            "an unknown write that was read before it began",
            vec![r(1, 2, 1), lost(3, 1)],
            false,
        ),
        (
            "two unknown writes that came one after the other",
            vec![lost(1, 1), lost(2, 2), r(5, 6, 2), r(7, 8, 1)],
            true,
        ),
    ];
    for (name, history, expected) in cases {
        assert_eq!(check(&history).is_ok(), expected, "{name}");
        assert_eq!(
            every_order(&history),
            expected,
            "{name}, by trying every order"
        );
    }
}

#[test]
fn a_batch_is_seen_whole_by_a_snapshot() {
    let batch = Call {
        writes: vec![(0, Some(1)), (1, Some(2))],
        ..w(1, 2, 0)
    };
    let both = |a: Content, b: Content| Call {
        reads: vec![(0, a), (1, b)],
        ..r(3, 4, 0)
    };
    assert!(check(&[batch.clone(), both(Some(1), Some(2))]).is_ok());
    assert!(check(&[batch.clone(), both(Some(1), None)]).is_err());
    let unknown = Call {
        ended: None,
        ..batch
    };
    assert!(check(&[unknown.clone(), both(None, None)]).is_ok());
    assert!(check(&[unknown, both(None, Some(2))]).is_err());
}

#[test]
fn the_message_shows_every_call_and_what_fits() {
    let history = [w(1, 2, 1), w(3, 4, 2), r(5, 6, 1)];
    let text = check(&history).unwrap_err().to_string();
    assert!(
        text.contains("#0        1 to      2 client 0 wrote k0 = 1"),
        "{text}"
    );
    assert!(
        text.contains("-         5 to      6 client 1 read k0 = 1"),
        "{text}"
    );
}

/// Tries every order of every choice of the unknown calls: right by its shape, and of no use for more
/// than a handful of calls.
fn every_order(history: &[Call]) -> bool {
    fn extend(history: &[Call], order: &mut Vec<usize>) -> bool {
        let is_complete =
            (0..history.len()).all(|n| history[n].ended.is_none() || order.contains(&n));
        if is_complete && makes_sense(history, order) {
            return true;
        }
        for n in 0..history.len() {
            if !order.contains(&n) {
                order.push(n);
                if extend(history, order) {
                    return true;
                }
                order.pop();
            }
        }
        false
    }
    extend(history, &mut Vec::new())
}

/// Whether calls done in this order return what they returned, and none comes before one that had
/// ended when it began.
fn makes_sense(history: &[Call], order: &[usize]) -> bool {
    for (place, n) in order.iter().enumerate() {
        for later in &order[place + 1..] {
            if history[*later]
                .ended
                .is_some_and(|ended| ended < history[*n].began)
            {
                return false;
            }
        }
        for (key, found) in &history[*n].reads {
            let before = order[..place].iter().rev();
            let last = before
                .flat_map(|m| history[*m].writes.iter().rev())
                .find(|(written, _)| written == key);
            if last.and_then(|(_, value)| *value) != *found {
                return false;
            }
        }
    }
    true
}

/// A few clients and calls, with values that often fit and often do not.
fn tiny(rng: &mut Rng) -> Vec<Call> {
    let key_count = 1 + rng.below(2);
    let mut calls = Vec::new();
    let mut value = 0;
    for client in 0..1 + rng.below(3) {
        let mut now = rng.below(4) as u64;
        for _ in 0..1 + rng.below(2) {
            let began = now + rng.below(4) as u64;
            let ended = began + rng.below(5) as u64;
            now = ended + 1;
            let key = rng.below(key_count);
            let mut call = match rng.below(5) {
                0..=1 => {
                    let found = rng.below(4) as u64;
                    Call::read(client, (began, ended), key, (found != 0).then_some(found))
                }
                2 => Call::write(client, began, Some(ended), key, None),
                _ => {
                    value += 1;
                    Call::write(client, began, Some(ended), key, Some(value))
                }
            };
            if key_count == 2 && rng.below(4) == 0 {
                let other = 1 - key;
                match call.writes.is_empty() {
                    true => call.reads.push((other, None)),
                    false => call.writes.push((other, Some(value + 10))),
                }
            }
            if !call.writes.is_empty() && rng.below(4) == 0 {
                call.ended = None;
            }
            calls.push(call);
        }
    }
    calls
}

#[test]
fn both_checkers_agree_on_thousands_of_tiny_histories() {
    let mut counts = [0; 2];
    for n in 0..20_000 {
        let history = tiny(&mut Rng::new(n));
        let expected = every_order(&history);
        assert_eq!(
            check(&history).is_ok(),
            expected,
            "history {n}: {history:#?}"
        );
        counts[usize::from(expected)] += 1;
    }
    println!(
        "tiny histories: {} linearizable, {} not",
        counts[1], counts[0]
    );
    assert!(counts.iter().all(|n| *n > 3_000), "one-sided: {counts:?}");
}

/// One copy of a few keys that clients use at random: linearizable by its making. Then one read is
/// made stale, and that is found.
#[test]
fn a_planted_stale_read_is_found() {
    let mut found_count = 0;
    for n in 0..300 {
        let mut rng = Rng::new(n);
        let mut history = honest(&mut rng);
        check(&history).unwrap_or_else(|violation| panic!("{n}: {violation}"));
        if plant_stale_read(&mut history) {
            assert!(
                check(&history).is_err(),
                "{n}: a stale read passed: {history:#?}"
            );
            found_count += 1;
        }
    }
    assert!(found_count > 200, "{found_count}");
}

fn honest(rng: &mut Rng) -> Vec<Call> {
    let mut state = BTreeMap::new();
    let mut ends = [0; 4];
    let mut history = Vec::new();
    for n in 1..60u64 {
        // Each call takes effect at 10 n; clients begin before and end after that.
        let client = rng.below(4);
        let at = 10 * n;
        if ends[client] >= at {
            continue;
        }
        let began = (at - rng.below(30).min(at as usize) as u64).max(ends[client] + 1);
        let ended = at + rng.below(30) as u64;
        ends[client] = ended;
        let key = rng.below(2);
        let call = match rng.percent(50) {
            true => Call::read(client, (began, ended), key, state.get(&key).copied()),
            false => {
                let is_unknown = rng.percent(10);
                let happens = !is_unknown || rng.percent(50);
                if happens {
                    state.insert(key, n);
                }
                Call::write(client, began, (!is_unknown).then_some(ended), key, Some(n))
            }
        };
        history.push(call);
    }
    history
}

/// Lets the last read that can return a value which was overwritten for certain before it began.
fn plant_stale_read(history: &mut [Call]) -> bool {
    for n in (0..history.len()).rev() {
        let [(key, _)] = history[n].reads[..] else {
            continue;
        };
        let began = history[n].began;
        let mut known: Vec<(u64, u64, Content)> = history
            .iter()
            .filter(|call| call.ended.is_some_and(|ended| ended < began))
            .filter_map(|call| match call.writes[..] {
                [(k, value)] if k == key => Some((call.began, call.ended?, value)),
                _ => None,
            })
            .collect();
        known.sort_unstable();
        let stale = known
            .iter()
            .find(|(_, ended, _)| known.iter().any(|(b, ..)| b > ended));
        if let Some((.., value)) = stale {
            history[n].reads = vec![(key, *value)];
            return true;
        }
    }
    false
}
