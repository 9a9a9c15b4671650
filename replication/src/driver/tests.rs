//! Tests of the loop: commands from other threads, strangers, status calls, and what is told of a store
//! that fails.

use strandline_wal::io::sim::SimClock;
use strandline_wal::{Epoch, ShardId};

use super::*;
use crate::error::Actor;
use crate::ids::{BundleId, Incarnation, Lineage, Promise, ShardEnd};
use crate::message::{Hello, Link, Purpose, Refusal, Role, Status, VERSIONS};
use crate::quorum::Level;
use crate::store::{LogSource, Report};
use crate::testing::cluster::Cluster;
use crate::testing::{LINEAGE, node};
use crate::transport::local::{LocalNetwork, LocalTransport};
use crate::transport::{ConnId, TransportEvent};

const S0: ShardId = ShardId(0);

/// A program that speaks the protocol by hand.
struct Stranger {
    transport: LocalTransport,
    conn: ConnId,
    link: Link,
}

impl Stranger {
    fn connect(c: &mut Cluster, to: &str) -> Stranger {
        let mut transport = c.network.attach("x");
        let conn = transport.connect(c.now_ms, to).unwrap();
        Stranger {
            transport,
            conn,
            link: Link::default(),
        }
    }

    /// Says this, and hears what is answered: messages, and whether the connection ended.
    fn say(&mut self, c: &mut Cluster, message: &Message) -> (Vec<Message>, bool) {
        let frame = self.link.seal(message);
        self.transport.send(c.now_ms, self.conn, frame).unwrap();
        c.run(10);
        let (mut heard, mut ended) = (Vec::new(), false);
        while let Some(event) = self.transport.poll(c.now_ms) {
            match event {
                TransportEvent::Frame(_, frame) => {
                    heard.extend(self.link.open("a", frame).unwrap());
                }
                TransportEvent::Closed(..) => ended = true,
                TransportEvent::Opened(_) | TransportEvent::Accepted(..) => {}
            }
        }
        (heard, ended)
    }
}

fn hello(purpose: Purpose) -> Hello {
    let ends = match purpose {
        Purpose::Control => Vec::new(),
        Purpose::Follow | Purpose::Fetch => vec![ShardEnd::empty(S0)],
    };
    Hello {
        versions: VERSIONS,
        purpose,
        promised_epoch: Epoch(0),
        node: node("x"),
        incarnation: Incarnation([1; 16]),
        lineage: LINEAGE,
        name: "x".to_owned(),
        dataset: DatasetId::default(),
        ends,
    }
}

#[track_caller]
fn turned_away(answer: (Vec<Message>, bool), expected: Reason) -> Refusal {
    let (heard, ended) = answer;
    let [Message::Refused(refusal)] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert!(ended && refusal.reason == expected, "{refusal:?}");
    refusal.clone()
}

fn two(seed: u64) -> Cluster {
    let mut c = Cluster::new(seed, &["a", "b"]);
    c.lead("a", 1);
    c.follow("b");
    c.write("a", 0, b"value").unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c
}

#[test]
fn whoever_does_not_greet_or_greets_for_another_dataset_is_turned_away() {
    let mut c = two(1);
    let mut stranger = Stranger::connect(&mut c, "a");
    let answer = stranger.say(&mut c, &Message::Credit { granted: 1 });
    let refusal = turned_away(answer, Reason::Protocol);
    assert_eq!(refusal.text, "Credit before Hello");
    let other = Hello {
        dataset: DatasetId::new("other").unwrap(),
        ..hello(Purpose::Control)
    };
    let mut stranger = Stranger::connect(&mut c, "a");
    let answer = stranger.say(&mut c, &Message::Hello(other));
    turned_away(answer, Reason::UnknownDataset);
    let mut stranger = Stranger::connect(&mut c, "b");
    let answer = stranger.say(&mut c, &Message::Hello(hello(Purpose::Follow)));
    let refusal = turned_away(answer, Reason::NotLeader);
    assert_eq!(refusal.want, "a", "it says who leads");
    let mut stranger = Stranger::connect(&mut c, "b");
    let answer = stranger.say(&mut c, &Message::Hello(hello(Purpose::Fetch)));
    let refusal = turned_away(answer, Reason::StaleEpoch);
    assert_eq!(refusal.text, "it was promised to another");
}

fn status(c: &mut Cluster, of: &str) -> Status {
    let mut stranger = Stranger::connect(c, of);
    let greeted = stranger.say(c, &Message::Hello(hello(Purpose::Control)));
    assert!(
        matches!(greeted.0[..], [Message::Welcome(_)]),
        "{greeted:?}"
    );
    let (heard, ended) = stranger.say(c, &Message::StatusRequest);
    let [Message::Status(status)] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert!(!ended);
    status.clone()
}

#[test]
fn a_status_tells_the_role_the_leader_and_how_far_each_shard_is() {
    let mut c = two(2);
    for (name, role) in [("a", Role::Leader), ("b", Role::Follower)] {
        let status = status(&mut c, name);
        assert_eq!((status.role, status.epoch), (role, Epoch(1)));
        assert_eq!(status.leader_name, "a", "{name}");
        let [(end, ack)] = status.shards[..] else {
            panic!("one shard")
        };
        assert_eq!(end, c.store(name).end(S0));
        assert_eq!((ack.received, ack.applied), (2, 2), "{name}");
    }
    c.network.part("a", "b");
    c.campaign("b", 2);
    let asks = status(&mut c, "b");
    assert_eq!((asks.role, asks.epoch), (Role::Candidate, Epoch(0)));
    assert_eq!(
        (asks.leader_name.as_str(), asks.promise.epoch),
        ("", Epoch(2))
    );
    assert!(c.nodes["b"].driver.due_ms().is_some());
    // A promise to somebody else is the end of a leadership, and no name stands for it any more.
    let mut stranger = Stranger::connect(&mut c, "a");
    stranger.say(&mut c, &Message::Hello(hello(Purpose::Control)));
    let epoch = Epoch(9);
    let (heard, _) = stranger.say(&mut c, &Message::PromiseRequest { epoch });
    assert!(matches!(heard[..], [Message::Promise { .. }]), "{heard:?}");
    let fenced = status(&mut c, "a");
    assert_eq!((fenced.role, fenced.epoch), (Role::Leader, Epoch(1)));
    assert_eq!(fenced.leader_name, "");
    let to = node("x");
    assert_eq!(fenced.promise, Promise { epoch, to });
    // It lends its log to whom it promised, and has no bundles to lend.
    let mut fetch = hello(Purpose::Fetch);
    fetch.promised_epoch = epoch;
    let mut stranger = Stranger::connect(&mut c, "b");
    let answer = stranger.say(&mut c, &Message::Hello(fetch.clone()));
    turned_away(answer, Reason::StaleEpoch);
    let mut stranger = Stranger::connect(&mut c, "a");
    let (heard, _) = stranger.say(&mut c, &Message::Hello(fetch));
    assert!(matches!(heard[..], [Message::Welcome(_), ..]), "{heard:?}");
    assert!(c.nodes["a"].driver.due_ms().is_some());
}

#[test]
fn a_follower_that_lends_its_log_has_no_bundle_for_it() {
    let mut c = two(3);
    let mut stranger = Stranger::connect(&mut c, "b");
    stranger.say(&mut c, &Message::Hello(hello(Purpose::Control)));
    let epoch = Epoch(9);
    stranger.say(&mut c, &Message::PromiseRequest { epoch });
    let mut fetch = hello(Purpose::Fetch);
    fetch.promised_epoch = epoch;
    let mut stranger = Stranger::connect(&mut c, "b");
    stranger.say(&mut c, &Message::Hello(fetch));
    let again = BundleId::default();
    let answer = stranger.say(&mut c, &Message::BundleAsk { again });
    turned_away(answer, Reason::Pruned);
}

#[test]
fn one_step_handles_a_bounded_number_of_frames() {
    let mut c = Cluster::new(4, &["a"]);
    c.lead("a", 1);
    let mut stranger = Stranger::connect(&mut c, "a");
    stranger.say(&mut c, &Message::Hello(hello(Purpose::Follow)));
    for granted in 0..2 * FRAMES_PER_STEP_MAX as u64 {
        let frame = stranger.link.seal(&Message::Credit { granted });
        let now = c.now_ms;
        stranger.transport.send(now, stranger.conn, frame).unwrap();
    }
    c.now_ms += 10;
    let now = c.now();
    let driver = &mut c.nodes.get_mut("a").unwrap().driver;
    assert!(driver.step(now), "more is left");
    let rounds = (0..10).take_while(|_| driver.step(now)).count();
    assert!(rounds <= 2, "and then nothing: {rounds}");
}

fn driver() -> Driver {
    Driver::new(Box::new(LocalNetwork::new(1).attach("a")), Arc::default())
}

#[test]
fn commands_past_the_limit_and_after_the_end_are_errors() {
    let mut driver = driver();
    let handle = driver.handle();
    let other = || Command::Retire(DatasetId::default());
    let queue = |count| {
        let mut commands = handle.0.commands.lock();
        commands.queue.extend((0..count).map(|_| other()));
        commands.queued += count as u64;
    };
    queue(COMMAND_COUNT_MAX);
    let full = handle.call(other()).unwrap_err();
    assert_eq!(
        full.to_string(),
        "command queue is full at 1024; it is tried again"
    );
    driver.step(Now::default());
    assert!(handle.0.commands.lock().queue.is_empty());
    handle.stop();
    driver.run(&SimClock::default());
    let ended = handle.call(other()).unwrap_err();
    assert_eq!(ended.to_string(), "the store failed: the driver has ended");
}

#[test]
fn commands_for_a_dataset_of_another_role_or_of_none_change_nothing() {
    let mut c = two(5);
    let (now, none) = (c.now(), DatasetId::new("none").unwrap());
    for name in ["a", "b"] {
        let driver = &mut c.nodes.get_mut(name).unwrap().driver;
        let wrong = match name {
            "a" => Command::Retry(DatasetId::default()),
            _ => Command::Policy(DatasetId::default(), Policy::default()),
        };
        driver.command(now, wrong);
        driver.command(now, Command::Retry(none.clone()));
        driver.command(now, Command::Policy(none.clone(), Policy::default()));
        driver.command(now, Command::Retire(none.clone()));
    }
    c.write("a", 0, b"more").unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    let state = |name: &str, id: &DatasetId| c.nodes[name].driver.state(id);
    let mark = state("b", &DatasetId::default()).unwrap().mark(S0);
    assert_eq!(mark, c.store("a").log(S0).last_seq());
    assert!(state("a", &DatasetId::default()).is_none() && state("b", &none).is_none());
}

#[test]
fn a_policy_counts_from_the_moment_that_it_is_given() {
    let mut c = Cluster::new(6, &["a", "b"]);
    let members = std::mem::take(&mut c.policy);
    c.lead("a", 1);
    c.follow("b");
    let seq = c.write("a", 0, b"value").unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.run(100);
    assert!(
        !c.is_confirmed("a", 0, Level::Received(1), 1),
        "nobody counts"
    );
    let now = c.now();
    let driver = &mut c.nodes.get_mut("a").unwrap().driver;
    driver.command(now, Command::Policy(DatasetId::default(), members));
    c.run_until(100, |c| c.is_confirmed("a", 0, Level::Durable(1), seq));
}

fn stops(c: &Cluster, name: &str) -> Vec<Error> {
    let reports = c.store(name).reports.lock();
    let stopped = reports.iter().filter_map(|report| match report {
        Report::Stopped { why } => Some(why.clone()),
        _ => None,
    });
    stopped.collect()
}

#[test]
fn a_follower_that_stopped_tries_again_when_it_is_told_to() {
    let mut c = Cluster::new(7, &["a", "b"]);
    c.setups.get_mut("b").unwrap().lineage = Lineage([8; 16]);
    c.lead("a", 1);
    c.follow("b");
    c.run_until(5_000, |c| !stops(c, "b").is_empty());
    c.run(5_000);
    assert_eq!(stops(&c, "b").len(), 1, "it waits for someone");
    let why = stops(&c, "b").remove(0);
    assert_eq!(why.actor(), Actor::Operator, "{why}");
    let now = c.now();
    let driver = &mut c.nodes.get_mut("b").unwrap().driver;
    driver.command(now, Command::Retry(DatasetId::default()));
    c.run_until(5_000, |c| stops(c, "b").len() == 2);
}

#[test]
fn a_peer_that_nobody_knows_is_told_and_passed_over() {
    let mut c = two(8);
    let options = FollowerOptions {
        peers: vec!["nobody".to_owned(), "a".to_owned()],
        ..c.follower_options("b")
    };
    let (now, store) = (c.now(), Arc::clone(c.store("b")));
    let driver = &mut c.nodes.get_mut("b").unwrap().driver;
    driver.command(now, Command::Follow(store, options));
    c.write("a", 0, b"more").unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    let unknown = |report: &Report| matches!(report, Report::Left { name, why: Error::UnknownPeer { .. } } if name == "nobody");
    assert!(c.store("b").said(unknown));
}

/// The disk of a follower dies: before its promise, at a sync, and at the next segment.
#[test]
fn a_follower_whose_disk_dies_stops_and_confirms_nothing_more() {
    for records in [None, Some(1), Some(40)] {
        let mut c = Cluster::new(9, &["a", "b"]);
        c.lead("a", 1);
        c.follow("b");
        if records.is_some() {
            c.run_until(5_000, |c| c.is_caught_up("a", "b"));
        }
        c.nodes["b"].sim.disk.crash_at(0);
        for n in 0..records.unwrap_or(0) {
            c.write("a", 0, &[n; 4_000]).unwrap();
        }
        let seq = c.store("a").log(S0).last_seq();
        c.run_until(5_000, |c| !stops(c, "b").is_empty());
        let why = stops(&c, "b").remove(0).to_string();
        assert!(why.contains("the simulated machine is dead"), "{why}");
        assert!(!c.is_confirmed("a", 0, Level::Durable(1), seq));
    }
}

/// More is under way than a connection may hold: it waits, and goes on when there is room.
#[test]
fn what_does_not_fit_the_queue_is_shipped_later() {
    let mut c = two(10);
    let options = FollowerOptions {
        window: 64 << 20,
        ..c.follower_options("b")
    };
    let (now, store) = (c.now(), Arc::clone(c.store("b")));
    let driver = &mut c.nodes.get_mut("b").unwrap().driver;
    driver.command(now, Command::Follow(store, options));
    c.write("a", 0, b"more").unwrap();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    c.network.cut("a", "b");
    for n in 0..9u8 {
        c.write("a", 0, &vec![n; 4 << 20]).unwrap();
    }
    c.run(500);
    c.network.heal();
    c.run_until(5_000, |c| c.is_caught_up("a", "b"));
    let left = |report: &Report| {
        matches!(
            report,
            Report::Left {
                why: Error::Full { .. },
                ..
            }
        )
    };
    assert!(!c.store("a").said(left), "no connection ended for it");
}

/// The log is pruned past a follower that had no room: it comes again and gets a bundle.
#[test]
fn a_follower_whose_next_segment_is_gone_gets_a_bundle() {
    let mut c = two(11);
    *c.store("b").room.lock() = 0;
    c.run(1_000);
    for n in 0..600u32 {
        c.write("a", 0, &n.to_le_bytes().repeat(250)).unwrap();
    }
    c.run(100);
    c.store("a").sync(S0).unwrap();
    c.store("a").prune(S0, 1);
    *c.store("b").room.lock() = u64::MAX;
    c.run_until(10_000, |c| c.is_caught_up("a", "b"));
    let pruned = |report: &Report| {
        matches!(
            report,
            Report::Left {
                why: Error::Pruned { .. },
                ..
            }
        )
    };
    assert!(c.store("a").said(pruned));
    let installed = |report: &Report| matches!(report, Report::BundleInstalled { .. });
    assert!(c.store("b").said(installed));
}

/// Node `a` leads, and its log no longer begins with its first record.
fn lead_and_prune(c: &mut Cluster) {
    c.lead("a", 1);
    for n in 0..600u32 {
        c.write("a", 0, &n.to_le_bytes().repeat(250)).unwrap();
    }
    c.store("a").sync(S0).unwrap();
    c.store("a").prune(S0, 1);
}

/// A bundle that gives other lengths than were asked would shift all that follows.
#[test]
fn a_bundle_that_gives_nothing_or_too_much_ends_the_connection() {
    let mut c = Cluster::new(15, &["a", "b"]);
    lead_and_prune(&mut c);
    c.follow("b");
    for len in [0, 1 << 20] {
        *c.store("a").reads.lock() = Some(len);
        let given = format!("{len} bytes of bundle file 0 at 0, ");
        c.run_until(5_000, |c| {
            c.store("a").said(|report| {
                matches!(report, Report::Left { why: Error::Store { what }, .. }
                    if what.starts_with(&given))
            })
        });
    }
    *c.store("a").reads.lock() = None;
    c.run_until(10_000, |c| c.is_caught_up("a", "b"));
}

#[test]
fn a_node_that_joins_promises_nothing() {
    let mut c = Cluster::new(12, &["a", "b", "c"]);
    c.setups.get_mut("b").unwrap().joins = true;
    c.follow("b");
    c.follow("c");
    c.run(100);
    c.campaign("c", 2);
    c.run_until(20_000, |c| c.outcome("c").is_some());
    let why = c.outcome("c").unwrap().unwrap_err();
    assert!(
        matches!(
            why,
            Error::TooFewPromises {
                needed: 2,
                found: 1
            }
        ),
        "{why}"
    );
    assert_eq!(c.store("b").promised(), Promise::default());
}

#[test]
fn a_candidate_that_promises_a_later_epoch_gives_up() {
    let mut c = Cluster::new(13, &["a", "b", "c"]);
    c.follow("b");
    c.follow("c");
    // It asks nobody, and waits.
    let options = CandidateOptions {
        needed: 2,
        ..CandidateOptions::default()
    };
    let (now, store) = (c.now(), Arc::clone(c.store("b")));
    let driver = &mut c.nodes.get_mut("b").unwrap().driver;
    driver.command(now, Command::Campaign(store, options));
    c.run(100);
    let epoch = c.promote("c", 2).unwrap();
    let why = c.outcome("b").unwrap().unwrap_err();
    let Error::Fenced { epoch: later, ours } = why else {
        panic!("{why}")
    };
    assert_eq!((later, ours), (epoch, Epoch(1)));
}

#[test]
fn a_candidate_that_cannot_fetch_the_longest_log_is_not_elected() {
    let mut c = Cluster::new(14, &["a", "b"]);
    lead_and_prune(&mut c);
    c.stop("a");
    c.follow("a");
    c.follow("b");
    c.run(10);
    c.campaign("b", 2);
    c.run_until(20_000, |c| c.outcome("b").is_some());
    let why = c.outcome("b").unwrap().unwrap_err();
    assert!(matches!(why, Error::Pruned { needed: 1, .. }), "{why}");
}
