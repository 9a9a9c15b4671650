//! An in-process network under an explicit clock: seeded delays, loss, repetition, partitions and
//! bounded queues, the same for the same seed.
//!
//! A connection delivers in order, as a real one does; a *lost* frame leaves a hole and a *repeated*
//! one comes twice, which only a faulty wire does: the frame numbers must find both. A partition
//! holds everything back without a word, as a pulled cable does, until it heals or someone gives up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{ConnId, Transport, TransportEvent};
use crate::error::{Error, Result};

/// Bytes that one direction of a connection may hold.
pub const QUEUE_LEN_MAX: usize = 32 << 20;
/// Connections that one node may have.
pub const CONN_COUNT_MAX: usize = 1024;

/// What may go wrong, per frame.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Least and most delay, in milliseconds.
    pub delay_ms: (u64, u64),
    /// Frames lost, of 1,000.
    pub loss_permille: u64,
    /// Frames that come twice, of 1,000.
    pub repeat_permille: u64,
}

impl Default for Faults {
    fn default() -> Faults {
        Faults {
            delay_ms: (1, 1),
            loss_permille: 0,
            repeat_permille: 0,
        }
    }
}

/// The network that nodes are attached to.
#[derive(Clone)]
pub struct LocalNetwork(Arc<Mutex<Network>>);

struct Network {
    random: u64,
    faults: Faults,
    nodes: BTreeMap<String, Node>,
    // Directions that deliver nothing: (from, to).
    cuts: BTreeSet<(String, String)>,
    pipes: BTreeMap<ConnId, Pipe>,
    conn_next: u64,
    trace: blake3::Hasher,
    delivered: u64,
}

#[derive(Default)]
struct Node {
    // A new life of a node takes nothing that was sent to the old one.
    life: u64,
    up: bool,
    events: VecDeque<(u64, TransportEvent)>,
}

/// One end of a connection: what is on its way to it.
struct Pipe {
    from: String,
    to: String,
    other: ConnId,
    // In order; the time is when it arrives at the earliest.
    queue: VecDeque<(u64, Item)>,
    queued_len: usize,
}

enum Item {
    Opened,
    Accepted,
    Frame(Vec<u8>),
    Closed,
}

impl LocalNetwork {
    /// A network without faults.
    pub fn new(seed: u64) -> LocalNetwork {
        LocalNetwork(Arc::new(Mutex::new(Network {
            random: seed,
            faults: Faults::default(),
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            pipes: BTreeMap::new(),
            conn_next: 1,
            trace: blake3::Hasher::new(),
            delivered: 0,
        })))
    }

    /// From now on this may go wrong.
    pub fn set_faults(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// Attaches a node; one of the same name that was attached before is gone, as after a crash.
    pub fn attach(&self, name: &str) -> LocalTransport {
        let mut network = self.0.lock();
        network.detach(name);
        let node = network.nodes.entry(name.to_owned()).or_default();
        node.life += 1;
        node.up = true;
        LocalTransport {
            network: self.clone(),
            name: name.to_owned(),
            life: node.life,
        }
    }

    /// The node is gone without a word.
    pub fn detach(&self, name: &str) {
        self.0.lock().detach(name);
    }

    /// Nothing goes from `from` to `to`; the other direction is not touched.
    pub fn cut(&self, from: &str, to: &str) {
        self.0.lock().cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Separates two nodes in both directions.
    pub fn part(&self, a: &str, b: &str) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Takes all cuts away.
    pub fn heal(&self) {
        self.0.lock().cuts.clear();
    }

    /// A digest of everything that was delivered, and when: two runs of one seed have the same.
    pub fn trace(&self) -> [u8; 32] {
        *self.0.lock().trace.finalize().as_bytes()
    }

    /// Frames delivered.
    pub fn delivered(&self) -> u64 {
        self.0.lock().delivered
    }
}

impl Network {
    fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn happens(&mut self, permille: u64) -> bool {
        permille > 0 && self.random() % 1000 < permille
    }

    fn delay(&mut self) -> u64 {
        let (least, most) = self.faults.delay_ms;
        least + self.random() % (most.saturating_sub(least) + 1)
    }

    fn detach(&mut self, name: &str) {
        let Some(node) = self.nodes.get_mut(name) else {
            return;
        };
        node.up = false;
        node.events.clear();
        let own: Vec<_> = self
            .pipes
            .iter()
            .filter(|(_, p)| p.to == name)
            .map(|(c, _)| *c)
            .collect();
        for conn in own {
            // The other end learns by its silence, or when it sends.
            self.pipes.remove(&conn);
        }
    }

    fn conn(&mut self) -> ConnId {
        self.conn_next += 1;
        ConnId(self.conn_next)
    }

    /// Puts something on the way to `conn`, behind what is there.
    fn put(&mut self, now: u64, conn: ConnId, item: Item) {
        let at = now + self.delay();
        if let Some(pipe) = self.pipes.get_mut(&conn) {
            let at = pipe.queue.back().map_or(at, |(last, _)| at.max(*last));
            if let Item::Frame(frame) = &item {
                pipe.queued_len += frame.len();
            }
            pipe.queue.push_back((at, item));
        }
    }

    /// Moves what has arrived at a node to its events, connection by connection in order.
    fn arrive(&mut self, now: u64, name: &str) {
        let conns: Vec<_> = self
            .pipes
            .iter()
            .filter(|(_, p)| p.to == name)
            .map(|(c, _)| *c)
            .collect();
        for conn in conns {
            while let Some(pipe) = self.pipes.get_mut(&conn) {
                if self.cuts.contains(&(pipe.from.clone(), pipe.to.clone())) {
                    break;
                }
                if pipe.queue.front().is_none_or(|(at, _)| *at > now) {
                    break;
                }
                let (at, item) = pipe.queue.pop_front().expect("looked at above");
                let peer = pipe.from.clone();
                let event = match item {
                    Item::Opened => TransportEvent::Opened(conn),
                    Item::Accepted => TransportEvent::Accepted(conn, peer.clone()),
                    Item::Closed => {
                        self.pipes.remove(&conn);
                        TransportEvent::Closed(
                            conn,
                            Error::unreachable(&peer, "it closed the connection"),
                        )
                    }
                    Item::Frame(frame) => {
                        pipe.queued_len -= frame.len();
                        self.trace.update(&now.to_le_bytes());
                        self.trace.update(&conn.0.to_le_bytes());
                        self.trace.update(&frame);
                        self.delivered += 1;
                        TransportEvent::Frame(conn, frame)
                    }
                };
                let node = self.nodes.get_mut(name).expect("it is attached");
                node.events.push_back((at, event));
            }
        }
    }
}

/// One node's end of the network.
pub struct LocalTransport {
    network: LocalNetwork,
    name: String,
    life: u64,
}

impl LocalTransport {
    fn is_live(&self, network: &Network) -> bool {
        network
            .nodes
            .get(&self.name)
            .is_some_and(|node| node.up && node.life == self.life)
    }
}

impl Transport for LocalTransport {
    fn connect(&mut self, now: u64, to: &str) -> Result<ConnId> {
        let mut network = self.network.0.lock();
        let own = network
            .pipes
            .values()
            .filter(|pipe| pipe.to == self.name)
            .count();
        if own >= CONN_COUNT_MAX {
            return Err(Error::Full {
                what: "connection table",
                limit: CONN_COUNT_MAX,
            });
        }
        if !network.nodes.contains_key(to) {
            return Err(Error::UnknownPeer {
                name: to.to_owned(),
            });
        }
        let (mine, theirs) = (network.conn(), network.conn());
        let pipe = |from: &str, to: &str, other| Pipe {
            from: from.to_owned(),
            to: to.to_owned(),
            other,
            queue: VecDeque::new(),
            queued_len: 0,
        };
        let (own_end, their_end) = (pipe(to, &self.name, theirs), pipe(&self.name, to, mine));
        network.pipes.insert(mine, own_end);
        if network.nodes[to].up {
            network.pipes.insert(theirs, their_end);
            network.put(now, theirs, Item::Accepted);
            network.put(now, mine, Item::Opened);
        } else {
            network.put(now, mine, Item::Closed);
        }
        Ok(mine)
    }

    fn send(&mut self, now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()> {
        let mut network = self.network.0.lock();
        if !self.is_live(&network) {
            return Err(Error::unreachable(&self.name, "this node was detached"));
        }
        let Some(pipe) = network.pipes.get(&conn) else {
            return Err(Error::unreachable("the peer", "the connection ended"));
        };
        let other = pipe.other;
        let Some(there) = network.pipes.get(&other) else {
            let peer = pipe.from.clone();
            network.pipes.remove(&conn);
            return Err(Error::unreachable(&peer, "it is gone"));
        };
        if there.queued_len + frame.len() > QUEUE_LEN_MAX {
            return Err(Error::Full {
                what: "connection queue",
                limit: QUEUE_LEN_MAX,
            });
        }
        let faults = network.faults;
        if network.happens(faults.loss_permille) {
            return Ok(());
        }
        if network.happens(faults.repeat_permille) {
            network.put(now, other, Item::Frame(frame.clone()));
        }
        network.put(now, other, Item::Frame(frame));
        Ok(())
    }

    fn room(&self, conn: ConnId) -> usize {
        let network = self.network.0.lock();
        let there = network
            .pipes
            .get(&conn)
            .and_then(|pipe| network.pipes.get(&pipe.other));
        there.map_or(0, |pipe| QUEUE_LEN_MAX.saturating_sub(pipe.queued_len))
    }

    fn poll(&mut self, now: u64) -> Option<TransportEvent> {
        let mut network = self.network.0.lock();
        if !self.is_live(&network) {
            return None;
        }
        if network.nodes[&self.name].events.is_empty() {
            network.arrive(now, &self.name);
        }
        let node = network.nodes.get_mut(&self.name).expect("it is live");
        node.events.pop_front().map(|(_, event)| event)
    }

    fn close(&mut self, now: u64, conn: ConnId) {
        let mut network = self.network.0.lock();
        if let Some(pipe) = network.pipes.remove(&conn) {
            network.put(now, pipe.other, Item::Closed);
        }
    }

    fn due_ms(&self) -> Option<u64> {
        let network = self.network.0.lock();
        let own = network.pipes.values().filter(|pipe| pipe.to == self.name);
        let open = own.filter(|p| !network.cuts.contains(&(p.from.clone(), p.to.clone())));
        open.filter_map(|pipe| pipe.queue.front().map(|(at, _)| *at))
            .min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_its_limits_and_names_what_is_not_on_it() {
        let network = LocalNetwork::new(1);
        let (mut a, mut b) = (network.attach("a"), network.attach("b"));
        assert_eq!(a.due_ms(), None);
        let unknown = a.connect(0, "nobody").unwrap_err();
        assert!(unknown.to_string().contains("\"nobody\""), "{unknown}");
        let conn = a.connect(0, "b").unwrap();
        assert_eq!((a.due_ms(), b.due_ms()), (Some(1), Some(1)));
        network.cut("a", "b");
        assert_eq!(b.due_ms(), None, "nothing comes through a cut");
        assert!(b.poll(1).is_none());
        assert_eq!(a.room(conn), QUEUE_LEN_MAX);
        a.send(0, conn, vec![0; QUEUE_LEN_MAX]).unwrap();
        assert_eq!(a.room(conn), 0);
        let full = a.send(0, conn, vec![0]).unwrap_err();
        assert!(
            full.to_string().starts_with("connection queue is full"),
            "{full}"
        );
        network.heal();
        let TransportEvent::Accepted(_, from) = b.poll(1).unwrap() else {
            panic!("it was connected")
        };
        assert_eq!(from, "a");
        while a.connect(0, "b").is_ok() {}
        let full = a.connect(0, "b").unwrap_err();
        assert!(
            full.to_string()
                .contains("connection table is full at 1024"),
            "{full}"
        );
    }

    #[test]
    fn a_node_that_was_detached_neither_sends_nor_hears() {
        let network = LocalNetwork::new(1);
        let (mut a, mut b) = (network.attach("a"), network.attach("b"));
        let conn = a.connect(0, "b").unwrap();
        network.detach("nobody");
        network.detach("b");
        assert!(b.poll(9).is_none());
        let gone = b.send(0, ConnId(1), Vec::new()).unwrap_err();
        assert!(
            gone.to_string().contains("this node was detached"),
            "{gone}"
        );
        let gone = a.send(0, conn, Vec::new()).unwrap_err();
        assert!(
            gone.to_string().contains("b is not reachable: it is gone"),
            "{gone}"
        );
        assert_eq!(a.room(conn), 0);
        let ended = a.send(0, conn, Vec::new()).unwrap_err();
        assert!(
            ended.to_string().contains("the connection ended"),
            "{ended}"
        );
        let late = a.connect(0, "b").unwrap();
        let Some(TransportEvent::Closed(closed, _)) = (0..9).find_map(|now| a.poll(now)) else {
            panic!("nobody is there")
        };
        assert_eq!(closed, late);
        assert_eq!(late.to_string(), format!("#{}", late.0));
        let mut again = network.attach("b");
        assert!(
            again.poll(9).is_none(),
            "a new life hears nothing of the old one"
        );
        assert!(b.poll(9).is_none());
    }
}
