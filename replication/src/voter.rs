//! What any node answers on a control connection: promises and status. Holds no file and no socket.
//!
//! | State of the connection | frames that may come |
//! |-------------------------|----------------------|
//! | new | Hello |
//! | greeted | PromiseRequest, StatusRequest, Refused |
//! | busy with an answer | Refused |

use std::collections::{BTreeMap, VecDeque};

use strandline_wal::Epoch;
use strandline_wal::bug::planted;

use crate::error::{Error, Reason, Result};
use crate::ids::{Identity, Lineage, NodeId, Promise, ShardEnd};
use crate::leader::{NO_CLAIM, common_version};
use crate::message::{Hello, Message, Refusal, Status, VERSIONS, Wants, Welcome};
use crate::transport::ConnId;

/// Most control connections of one dataset.
pub const CONTROL_COUNT_MAX: usize = 32;

/// What happened.
#[derive(Debug)]
pub enum Event {
    /// A frame came; the first one of a connection is its Hello.
    Frame(ConnId, Message),
    /// A connection ended.
    Closed(ConnId),
    /// The answer to [`Action::Promise`]: the durable ends of all shards behind it.
    Promised(ConnId, Promise, Result<Vec<ShardEnd>>),
    /// The answer to [`Action::LookUp`].
    LookedUp(ConnId, Status),
    /// A promise was made by other means: by following a leader, or to itself.
    Learned(Promise),
    /// The dataset took over a lineage.
    Adopted(Lineage),
}

/// What to do, in order.
#[derive(Debug)]
pub enum Action {
    /// Queue a frame.
    Send(ConnId, Message),
    /// End a connection once what is queued is sent.
    Close(ConnId, Error),
    /// Make the promise durable, stop appends of lower epochs, sync, then tell the ends.
    Promise(ConnId, Promise),
    /// Look up the status.
    LookUp(ConnId),
}

#[derive(Debug)]
struct Peer {
    node: NodeId,
    name: String,
    // Only a node of the same history may ask for promises.
    kin: bool,
    busy: bool,
}

/// See the module.
pub struct Voter {
    identity: Identity,
    // Invariant: never falls.
    promise: Promise,
    // Requests for epochs up to it are refused.
    highest: Epoch,
    peers: BTreeMap<ConnId, Peer>,
    actions: VecDeque<Action>,
}

impl Voter {
    /// A voter that has promised this before, and led or followed epochs up to `highest`.
    pub fn new(identity: Identity, promise: Promise, highest: Epoch) -> Voter {
        Voter {
            identity,
            promise,
            highest,
            peers: BTreeMap::new(),
            actions: VecDeque::new(),
        }
    }

    /// The only way in. Drain [`Voter::poll_action`] before the next call.
    pub fn handle(&mut self, event: Event) {
        assert!(
            self.actions.is_empty(),
            "drain poll_action before the next event"
        );
        match event {
            Event::Frame(conn, message) => self.frame(conn, message),
            Event::Closed(conn) => {
                self.peers.remove(&conn);
            }
            Event::Promised(conn, promise, ends) => self.promised(conn, promise, ends),
            Event::LookedUp(conn, status) => {
                if let Some(peer) = self.peers.get_mut(&conn) {
                    peer.busy = false;
                    self.actions
                        .push_back(Action::Send(conn, Message::Status(status)));
                }
            }
            Event::Learned(promise) => self.learn(promise),
            Event::Adopted(lineage) => self.identity.lineage = lineage,
        }
    }

    /// The only way out.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// What was promised last.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    fn learn(&mut self, promise: Promise) {
        // The same epoch and another node: it was promised to one who can no longer win it.
        if promise.epoch >= self.promise.epoch || planted("voter.learn") {
            self.promise = promise;
        }
    }

    fn frame(&mut self, conn: ConnId, message: Message) {
        match (self.peers.get_mut(&conn), message) {
            (None, Message::Hello(hello)) => self.hello(conn, hello),
            (None, _) => {}
            (Some(_), Message::Refused(refusal)) => {
                let Refusal {
                    reason,
                    text,
                    have,
                    want,
                    ..
                } = refusal;
                self.end(
                    conn,
                    Error::Refused {
                        reason,
                        text,
                        have,
                        want,
                    },
                );
            }
            (Some(peer), Message::PromiseRequest { epoch }) if !peer.busy && peer.kin => {
                let promise = Promise {
                    epoch,
                    to: peer.node,
                };
                let is_taken = epoch == self.promise.epoch && planted("voter.twice");
                let again = promise == self.promise || is_taken;
                let is_new = epoch > self.promise.epoch.max(self.highest);
                if again || is_new || planted("voter.stale") {
                    peer.busy = true;
                    self.actions.push_back(Action::Promise(conn, promise));
                } else {
                    let promise =
                        match self.highest > self.promise.epoch && !planted("voter.refusal") {
                            true => Promise {
                                epoch: self.highest,
                                to: self.identity.node,
                            },
                            false => self.promise,
                        };
                    let refused = Message::PromiseRefused { promise };
                    self.actions.push_back(Action::Send(conn, refused));
                }
            }
            (Some(peer), Message::StatusRequest) if !peer.busy => {
                peer.busy = true;
                self.actions.push_back(Action::LookUp(conn));
            }
            (Some(peer), message) => {
                let what = format!("{} on a control connection", message.name());
                let why = Error::protocol(&peer.name, what);
                self.refuse(conn, Reason::Protocol, why);
            }
        }
    }

    fn hello(&mut self, conn: ConnId, hello: Hello) {
        let refused = |reason, text: &str, have: String, want: String| {
            Some(Error::Refused {
                reason,
                text: text.to_owned(),
                have,
                want,
            })
        };
        // A node without a history has nothing to tell, and no epoch that it must not repeat.
        let kin = hello.lineage == self.identity.lineage && hello.lineage != Lineage::default();
        let refusal = if common_version(hello.versions).is_none() {
            let range = |(min, max): (u16, u16)| format!("versions {min} to {max}");
            refused(
                Reason::Version,
                "upgrade the older side",
                range(VERSIONS),
                range(hello.versions),
            )
        } else if !kin && hello.lineage != Lineage::default() {
            let (have, want) = (self.identity.lineage.to_string(), hello.lineage.to_string());
            refused(
                Reason::Lineage,
                "clone the dataset, or ask its own nodes",
                have,
                want,
            )
        } else if self.peers.len() >= CONTROL_COUNT_MAX {
            refused(
                Reason::Busy,
                "too many control connections",
                CONTROL_COUNT_MAX.to_string(),
                String::new(),
            )
        } else {
            None
        };
        if let Some(why) = refusal {
            let Error::Refused { reason, .. } = why else {
                unreachable!("it was made above")
            };
            return self.refuse(conn, reason, why);
        }
        self.peers.insert(
            conn,
            Peer {
                node: hello.node,
                name: hello.name,
                kin,
                busy: false,
            },
        );
        let welcome = Welcome {
            version: VERSIONS.1,
            wants: Wants::default(),
            epoch: self.promise.epoch,
            node: self.identity.node,
            incarnation: self.identity.incarnation,
            leader: NO_CLAIM,
            lineage: self.identity.lineage,
            name: self.identity.name.clone(),
            verdicts: Vec::new(),
            sole: false,
        };
        self.actions
            .push_back(Action::Send(conn, Message::Welcome(welcome)));
    }

    fn promised(&mut self, conn: ConnId, promise: Promise, ends: Result<Vec<ShardEnd>>) {
        if ends.is_ok() {
            assert!(promise.epoch >= self.promise.epoch, "promises never fall");
            self.promise = promise;
        }
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        peer.busy = false;
        match ends {
            Ok(ends) => {
                let promised = Message::Promise {
                    epoch: promise.epoch,
                    ends,
                };
                self.actions.push_back(Action::Send(conn, promised));
            }
            // Nothing is promised that is not durable; the candidate counts on others.
            Err(why) => self.end(conn, why),
        }
    }

    fn refuse(&mut self, conn: ConnId, reason: Reason, why: Error) {
        let (text, have, want) = match &why {
            Error::Refused {
                text, have, want, ..
            } => (text.clone(), have.clone(), want.clone()),
            why => (why.to_string(), String::new(), String::new()),
        };
        let epoch: Epoch = self.promise.epoch;
        let refusal = Message::Refused(Refusal {
            reason,
            text,
            have,
            want,
            epoch,
        });
        self.actions.push_back(Action::Send(conn, refusal));
        self.end(conn, why);
    }

    fn end(&mut self, conn: ConnId, why: Error) {
        self.peers.remove(&conn);
        self.actions.push_back(Action::Close(conn, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use crate::message::Purpose;
    use crate::message::codec::FIXED;
    use crate::message::tests::Seed;
    use strandline_wal::DatasetId;

    const CONN: ConnId = ConnId(1);

    fn identity(n: u8) -> Identity {
        Identity {
            node: NodeId([n; 16]),
            incarnation: Incarnation([n; 16]),
            name: format!("n{n}"),
            dataset: DatasetId::default(),
            lineage: Lineage([7; 16]),
        }
    }

    fn hello(n: u8) -> Message {
        let Identity {
            node,
            incarnation,
            name,
            dataset,
            lineage,
        } = identity(n);
        let (versions, purpose, ends) = (VERSIONS, Purpose::Control, Vec::new());
        let promised_epoch = Epoch(0);
        let hello = Hello {
            versions,
            purpose,
            promised_epoch,
            node,
            incarnation,
            lineage,
            name,
            dataset,
            ends,
        };
        Message::Hello(hello)
    }

    fn feed(voter: &mut Voter, event: Event) -> Vec<Action> {
        voter.handle(event);
        std::iter::from_fn(|| voter.poll_action()).collect()
    }

    fn greeted() -> Voter {
        let mut voter = Voter::new(
            identity(1),
            Promise {
                epoch: Epoch(3),
                to: NodeId([9; 16]),
            },
            Epoch(0),
        );
        let actions = feed(&mut voter, Event::Frame(CONN, hello(2)));
        assert!(matches!(
            actions[..],
            [Action::Send(_, Message::Welcome(_))]
        ));
        voter
    }

    fn ask(voter: &mut Voter, epoch: u32) -> Vec<Action> {
        feed(
            voter,
            Event::Frame(
                CONN,
                Message::PromiseRequest {
                    epoch: Epoch(epoch),
                },
            ),
        )
    }

    #[test]
    fn a_promise_is_answered_only_after_it_is_durable() {
        let mut voter = greeted();
        let actions = ask(&mut voter, 4);
        let [Action::Promise(CONN, promise)] = actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(
            voter.promise().epoch,
            Epoch(3),
            "not before the store says so"
        );
        let actions = feed(&mut voter, Event::Promised(CONN, promise, Ok(Vec::new())));
        assert!(matches!(
            actions[..],
            [Action::Send(
                _,
                Message::Promise {
                    epoch: Epoch(4),
                    ..
                }
            )]
        ));
        assert_eq!(
            voter.promise(),
            Promise {
                epoch: Epoch(4),
                to: NodeId([2; 16])
            }
        );
    }

    #[test]
    fn one_epoch_is_promised_to_one_node_and_to_it_again() {
        let mut voter = greeted();
        let refused = ask(&mut voter, 3);
        assert!(matches!(
            refused[..],
            [Action::Send(_, Message::PromiseRefused { .. })]
        ));
        feed(
            &mut voter,
            Event::Learned(Promise {
                epoch: Epoch(4),
                to: NodeId([2; 16]),
            }),
        );
        assert!(matches!(ask(&mut voter, 4)[..], [Action::Promise(..)]));
    }

    #[test]
    fn an_older_promise_does_not_replace_a_later_one() {
        let mut voter = greeted();
        let older = Promise {
            epoch: Epoch(2),
            to: NodeId([2; 16]),
        };
        feed(&mut voter, Event::Learned(older));
        assert_eq!(voter.promise().epoch, Epoch(3));
    }

    #[test]
    fn a_refusal_tells_the_highest_epoch_that_is_known_here() {
        let mut voter = Voter::new(identity(1), Promise::default(), Epoch(7));
        feed(&mut voter, Event::Frame(CONN, hello(2)));
        let refused = ask(&mut voter, 5);
        assert!(
            matches!(
                refused[..],
                [Action::Send(_, Message::PromiseRefused { promise })] if promise.epoch == Epoch(7)
            ),
            "{refused:?}"
        );
    }

    #[test]
    fn a_candidate_that_lost_an_epoch_is_not_promised_it_again() {
        let mut voter = greeted();
        let [Action::Promise(CONN, promise)] = ask(&mut voter, 4)[..] else {
            panic!("it is free")
        };
        feed(&mut voter, Event::Promised(CONN, promise, Ok(Vec::new())));
        // This node follows the one that won the same epoch.
        let to = NodeId([5; 16]);
        let winner = Promise { to, ..promise };
        feed(&mut voter, Event::Learned(winner));
        assert!(matches!(
            ask(&mut voter, 4)[..],
            [Action::Send(_, Message::PromiseRefused { promise })] if promise == winner
        ));
    }

    #[test]
    fn a_node_without_a_history_does_not_vote_until_it_has_one() {
        let mut fresh = identity(1);
        fresh.lineage = Lineage::default();
        let mut voter = Voter::new(fresh, Promise::default(), Epoch(0));
        let Message::Hello(mut asks) = hello(2) else {
            unreachable!("it is a hello")
        };
        asks.lineage = Lineage::default();
        feed(&mut voter, Event::Frame(CONN, Message::Hello(asks)));
        let actions = ask(&mut voter, 4);
        assert!(
            actions
                .iter()
                .any(|action| matches!(action, Action::Close(..)))
        );
        feed(&mut voter, Event::Adopted(Lineage([7; 16])));
        feed(&mut voter, Event::Frame(CONN, hello(2)));
        assert!(matches!(ask(&mut voter, 4)[..], [Action::Promise(..)]));
    }

    #[test]
    fn a_promise_that_could_not_be_stored_is_not_given() {
        let mut voter = greeted();
        ask(&mut voter, 4);
        let promise = Promise {
            epoch: Epoch(4),
            to: NodeId([2; 16]),
        };
        let failed = Err(Error::Store {
            what: "disk".to_owned(),
        });
        let actions = feed(&mut voter, Event::Promised(CONN, promise, failed));
        assert!(matches!(actions[..], [Action::Close(..)]));
        assert_eq!(voter.promise().epoch, Epoch(3));
    }

    #[test]
    fn every_other_frame_in_every_state_ends_the_connection() {
        for (kind, (name, ..)) in FIXED.iter().enumerate() {
            for busy in [false, true] {
                let mut voter = greeted();
                if busy {
                    ask(&mut voter, 4);
                }
                let legal = !busy && ["PromiseRequest", "StatusRequest"].contains(name);
                let actions = feed(&mut voter, Event::Frame(CONN, Seed(1).message(kind)));
                let closed = actions
                    .iter()
                    .any(|action| matches!(action, Action::Close(..)));
                assert_eq!(closed, !legal, "{name} busy {busy}");
                assert!(
                    feed(&mut voter, Event::Frame(ConnId(8), Seed(1).message(kind))).is_empty()
                        || *name == "Hello"
                );
            }
        }
    }

    fn hello_of(n: u8, change: impl FnOnce(&mut Hello)) -> Message {
        let Message::Hello(mut hello) = hello(n) else {
            unreachable!("it is a hello")
        };
        change(&mut hello);
        Message::Hello(hello)
    }

    fn refused_for(actions: &[Action]) -> (Reason, String) {
        let [
            Action::Send(_, Message::Refused(refusal)),
            Action::Close(_, Error::Refused { reason, .. }),
        ] = actions
        else {
            panic!("{actions:?}")
        };
        assert_eq!(refusal.reason, *reason);
        (*reason, format!("{} {}", refusal.have, refusal.want))
    }

    #[test]
    fn hellos_that_do_not_fit_are_refused_with_both_sides() {
        let mut voter = greeted();
        let other = hello_of(3, |hello| hello.lineage = Lineage([8; 16]));
        let refused = refused_for(&feed(&mut voter, Event::Frame(ConnId(2), other)));
        let both = format!("{} {}", Lineage([7; 16]), Lineage([8; 16]));
        assert_eq!(refused, (Reason::Lineage, both));
        let newer = hello_of(3, |hello| hello.versions = (90, 99));
        let (reason, both) = refused_for(&feed(&mut voter, Event::Frame(ConnId(2), newer)));
        assert_eq!(reason, Reason::Version);
        assert!(both.ends_with("versions 90 to 99"), "{both}");
    }

    #[test]
    fn no_more_connections_are_taken_than_the_limit_and_places_come_back() {
        let mut voter = greeted();
        let next = |voter: &mut Voter, n: u64| feed(voter, Event::Frame(ConnId(100 + n), hello(2)));
        for n in 1..CONTROL_COUNT_MAX as u64 {
            let actions = next(&mut voter, n);
            assert!(matches!(actions[..], [Action::Send(..)]), "{n}");
        }
        let (reason, limit) = refused_for(&next(&mut voter, 99));
        assert_eq!((reason, limit.trim()), (Reason::Busy, "32"));
        feed(&mut voter, Event::Closed(CONN));
        assert!(matches!(next(&mut voter, 99)[..], [Action::Send(..)]));
    }

    #[test]
    fn a_status_is_looked_up_and_sent_to_whoever_is_still_there() {
        let status = || match Seed(1).message(
            FIXED
                .iter()
                .position(|(name, ..)| *name == "Status")
                .expect("there is one"),
        ) {
            Message::Status(status) => status,
            other => panic!("{other:?}"),
        };
        let mut voter = greeted();
        let actions = feed(&mut voter, Event::Frame(CONN, Message::StatusRequest));
        assert!(matches!(actions[..], [Action::LookUp(CONN)]));
        assert!(feed(&mut voter, Event::LookedUp(ConnId(9), status())).is_empty());
        let actions = feed(&mut voter, Event::LookedUp(CONN, status()));
        let [Action::Send(CONN, Message::Status(sent))] = &actions[..] else {
            panic!("{actions:?}")
        };
        assert_eq!(*sent, status());
        let again = feed(&mut voter, Event::Frame(CONN, Message::StatusRequest));
        assert!(
            matches!(again[..], [Action::LookUp(CONN)]),
            "it is free again"
        );
    }

    /// It is durable, and told to nobody: the candidate asks again on a new connection.
    #[test]
    fn a_promise_to_one_who_left_is_kept() {
        let mut voter = greeted();
        ask(&mut voter, 4);
        feed(&mut voter, Event::Closed(CONN));
        let promise = Promise {
            epoch: Epoch(4),
            to: NodeId([2; 16]),
        };
        let actions = feed(&mut voter, Event::Promised(CONN, promise, Ok(Vec::new())));
        assert!(actions.is_empty());
        assert_eq!(voter.promise(), promise);
        let older = Promise {
            epoch: Epoch(3),
            to: NodeId([9; 16]),
        };
        feed(&mut voter, Event::Learned(older));
        assert_eq!(voter.promise(), promise, "it never falls");
    }
}
