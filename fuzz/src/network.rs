//! Targets of the network: single frames, and whole sessions with a node that follows, leads or wants
//! to lead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use strandline::replica::{Node, Promote};
use strandline::{Database, Dataset, NodeConfig, NodeRole, Options};
use strandline_replication::coordinator::{Record as CoordinatorRecord, codec};
use strandline_replication::message::{Link, Message, PAYLOAD_LEN_MAX};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::transport::{ConnId, Transport, TransportEvent};
use strandline_replication::{Error, Incarnation, Lineage, NodeId, Notifier, Now, Result};
use strandline_wal::Epoch;
use strandline_wal::io::sim::SimEnv;

use crate::{MEND, mend, samples};

/// Length of a frame's header.
const HEADER_LEN: usize = 24;
/// Most events of one input.
const EVENT_COUNT_MAX: usize = 256;
/// A node that has work left after so many steps without anything new runs for ever.
const STEP_COUNT_MAX: usize = 10_000;

/// A frame: what is taken is written as the same bytes.
pub fn message(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let mut frame = bytes.to_vec();
    if control & MEND != 0 {
        mend::frame(&mut frame, 1);
    }
    if let Ok(Some(message)) = Link::default().open("peer", frame.clone()) {
        assert!(!message.name().is_empty());
        let again = Link::default().seal(&message);
        assert_eq!(again, frame, "{message:?} is written as it was read");
    }
}

/// A coordinator's record, or a boundary: what is taken is written as the same bytes.
pub fn coordinator(input: &[u8]) {
    let Some((control, bytes)) = input.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    if let (true, Some((head, rest))) = (control & MEND != 0, bytes.split_first_chunk_mut::<8>()) {
        head[..4].copy_from_slice(match control & 2 {
            0 => &codec::MAGIC,
            _ => &codec::BOUNDARY_MAGIC,
        });
        head[4..].copy_from_slice(&crc32fast::hash(rest).to_le_bytes());
    }
    if let Ok((nonce, record)) = codec::decode(&bytes) {
        let again = codec::encode(&nonce, &record).expect("what was read may be written");
        assert_eq!(again, bytes, "{record:?} is written as it was read");
    }
    if let Ok(first) = codec::decode_boundary(&bytes) {
        assert_eq!(codec::encode_boundary(first), bytes);
    }
}

/// What a node is in a session.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Part {
    Leader,
    Follower,
    Candidate,
}

impl Part {
    fn of(control: u8) -> Part {
        match control % 4 {
            0 | 3 => Part::Leader,
            1 => Part::Follower,
            _ => Part::Candidate,
        }
    }
}

/// What happened at a node's transport, and what it sent.
#[derive(Default)]
struct Wire {
    events: VecDeque<TransportEvent>,
    sent: Vec<(ConnId, Vec<u8>)>,
    conns: Vec<ConnId>,
}

/// A transport whose peer is the input.
#[derive(Clone, Default)]
struct Scripted(Arc<Mutex<Wire>>);

impl Scripted {
    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> ConnId {
        let mut wire = self.wire();
        let conn = ConnId(wire.conns.len() as u64 + 1);
        wire.conns.push(conn);
        conn
    }
}

impl Transport for Scripted {
    fn connect(&mut self, _now: u64, _to: &str) -> Result<ConnId> {
        let conn = self.open();
        self.wire().events.push_back(TransportEvent::Opened(conn));
        Ok(conn)
    }

    fn send(&mut self, _now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()> {
        self.wire().sent.push((conn, frame));
        Ok(())
    }

    fn room(&self, _conn: ConnId) -> usize {
        2 * PAYLOAD_LEN_MAX
    }

    fn poll(&mut self, _now: u64) -> Option<TransportEvent> {
        self.wire().events.pop_front()
    }

    fn close(&mut self, _now: u64, _conn: ConnId) {}

    fn due_ms(&self) -> Option<u64> {
        None
    }
}

/// A node on a machine of its own.
struct Place {
    machine: SimEnv,
    db: Database,
    dataset: Dataset,
    node: Node,
    now: Now,
}

fn options(part: Part) -> Options {
    Options {
        node: NodeConfig {
            role: match part {
                Part::Leader => NodeRole::Single,
                _ => NodeRole::Follower,
            },
            ..NodeConfig::default()
        },
        ..samples::small_options()
    }
}

impl Place {
    fn new(part: Part, transport: Box<dyn Transport>) -> strandline::Result<Place> {
        // Equal parts have equal identities every time: what was recorded fits what is run.
        let machine = SimEnv {
            disk: first_disk(part).fork(),
            ..SimEnv::new(100 + part as u64)
        };
        let db = options(part).open_with(samples::ROOT, machine.env())?;
        let dataset = db.dataset("")?;
        let name = if part == Part::Leader {
            "leader"
        } else {
            "follower"
        };
        let mut place = Place {
            node: Node::new(name, transport, Arc::new(Notifier::default())),
            now: Now {
                mono_ms: 1_000_000,
                wall_ms: 1_000_000,
            },
            machine,
            db,
            dataset,
        };
        let peers = ["leader".to_owned(), "other".to_owned()];
        match part {
            Part::Leader => place.node.lead(place.now, &place.dataset)?,
            Part::Follower => place.node.follow(place.now, &place.dataset, &peers)?,
            Part::Candidate => {
                let how = Promote {
                    peers: peers.to_vec(),
                    node_count: 3,
                    follower_count: 1,
                    ..Promote::default()
                };
                place.node.follow(place.now, &place.dataset, &peers)?;
                place.node.campaign(place.now, &place.dataset, &how)?;
            }
        }
        Ok(place)
    }

    fn pass(&mut self, ms: u64) {
        self.machine.clock.advance_ms(ms);
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
        self.step();
    }

    fn step(&mut self) {
        let mut count = 0;
        while self.node.step(self.now) {
            count += 1;
            assert!(count < STEP_COUNT_MAX, "the node never comes to rest");
        }
    }

    /// One more write, where this node takes writes.
    fn write(&mut self, number: u8) {
        let written = self.db.keyspace("map").and_then(|map| {
            map.put_with(
                [number],
                vec![number; usize::from(number) * 4],
                strandline::Durability::Os,
            )
        });
        // A follower refuses, and so does a leader that was fenced.
        if let Err(error) = written {
            assert_ne!(error.kind(), strandline::ErrorKind::Bug, "{error}");
        }
    }
}

/// The disk of a part before its sessions: a leader has a log already.
fn first_disk(part: Part) -> &'static strandline_wal::io::sim::SimDisk {
    static DISKS: [OnceLock<strandline_wal::io::sim::SimDisk>; 3] = [const { OnceLock::new() }; 3];
    DISKS[part as usize].get_or_init(|| {
        let machine = SimEnv::new(10 + part as u64);
        make_first(part, &machine).expect("a new database in memory");
        machine.disk.settle();
        machine.disk.clone()
    })
}

fn make_first(part: Part, machine: &SimEnv) -> strandline::Result<()> {
    let db = options(part).open_with(samples::ROOT, machine.env())?;
    match part {
        Part::Leader => {
            let map = db.keyspace("map")?;
            for n in 0..6u8 {
                map.put([n], vec![n; 40])?;
            }
            db.flush()?;
            map.put(b"large", vec![1; 300])?;
        }
        Part::Follower => {
            db.dataset("")?;
        }
        // Only who met a leader may want to lead.
        Part::Candidate => {
            let dataset = db.dataset("")?;
            let network = LocalNetwork::new(4);
            let mut leader = Place::new(Part::Leader, Box::new(network.attach("leader")))?;
            let transport = Box::new(network.attach("follower"));
            let mut node = Node::new("follower", transport, Arc::new(Notifier::default()));
            node.follow(leader.now, &dataset, &["leader".to_owned()])?;
            for _ in 0..400 {
                leader.pass(1);
                machine.clock.advance_ms(1);
                while node.step(leader.now) {}
            }
            assert!(dataset.positions().iter().any(|end| end.seq > 0));
        }
    }
    db.close()
}

/// A stream of events for one node: frames in any order on any connection, connections that begin and
/// end, time, and writes of its own.
pub fn session(input: &[u8]) {
    let Some((control, mut rest)) = input.split_first() else {
        return;
    };
    let part = Part::of(*control);
    let wire = Scripted::default();
    let mut place = Place::new(part, Box::new(wire.clone())).expect("a database in memory");
    place.step();
    let mut peer = Peer::default();
    for _ in 0..EVENT_COUNT_MAX {
        let Some(behind) = peer.event(rest, &wire, &mut place) else {
            break;
        };
        rest = behind;
        place.step();
        peer.judge(&wire);
    }
    place.pass(1_000);
    peer.judge(&wire);
    for keyspace in place.dataset.keyspaces() {
        for entry in keyspace.iter() {
            if let Err(error) = entry {
                assert_ne!(error.kind(), strandline::ErrorKind::Bug, "{error}");
                break;
            }
        }
    }
    // The process dies: no peer can leave files behind that do not open.
    let machine = SimEnv {
        disk: place.machine.disk.fork(),
        ..place.machine.clone()
    };
    place.machine.disk.crash_at(0);
    drop(place);
    let again = options(part).open_with(samples::ROOT, machine.env());
    again
        .and_then(|db| db.dataset("").map(|_| ()))
        .expect("what a peer sent leaves a database that opens");
}

/// The other end of all connections, and what it was told.
#[derive(Default)]
struct Peer {
    /// Frames that were sent to the node, by connection.
    numbers: BTreeMap<ConnId, u64>,
    /// Who said hello on a connection.
    hellos: BTreeMap<ConnId, NodeId>,
    links: BTreeMap<ConnId, Link>,
    promises: BTreeMap<Epoch, NodeId>,
}

impl Peer {
    /// Lets the next event of the input happen; what is left of it.
    fn event<'a>(
        &mut self,
        bytes: &'a [u8],
        wire: &Scripted,
        place: &mut Place,
    ) -> Option<&'a [u8]> {
        let ([op, what], rest) = bytes.split_first_chunk()?;
        let conns = wire.wire().conns.clone();
        let conn = conns.get(usize::from(*what) % conns.len().max(1)).copied();
        match op % 8 {
            0..3 => {
                let ([kind, low, high], rest) = rest.split_first_chunk()?;
                let len = usize::from(*low) | usize::from(*high) << 8;
                let (payload, rest) = rest.split_at(len.min(rest.len()));
                if let Some(conn) = conn {
                    self.frame(conn, *kind, payload, wire);
                }
                return Some(rest);
            }
            3 => {
                let conn = wire.open();
                let event = TransportEvent::Accepted(conn, "peer".to_owned());
                wire.wire().events.push_back(event);
            }
            4 | 5 => place.pass(u64::from(*what) * if op % 8 == 4 { 1 } else { 100 }),
            6 => {
                if let Some(conn) = conn {
                    let why = Error::Damaged {
                        what: "connection",
                        expected: "one".to_owned(),
                        found: "none".to_owned(),
                    };
                    let event = TransportEvent::Closed(conn, why);
                    wire.wire().events.push_back(event);
                }
            }
            _ if *what % 8 == 7 => {
                if let Err(error) = place.db.flush() {
                    assert_ne!(error.kind(), strandline::ErrorKind::Bug, "{error}");
                }
            }
            _ => place.write(*what),
        }
        Some(rest)
    }

    fn frame(&mut self, conn: ConnId, kind: u8, payload: &[u8], wire: &Scripted) {
        let number = self.numbers.entry(conn).or_default();
        *number += 1;
        let mut frame = vec![0; HEADER_LEN];
        frame[16] = kind;
        frame.extend_from_slice(payload);
        mend::frame(&mut frame, *number);
        if *number == 1 {
            let mut alone = frame.clone();
            mend::frame(&mut alone, 1);
            if let Ok(Some(Message::Hello(hello))) = Link::default().open("peer", alone) {
                self.hellos.insert(conn, hello.node);
            }
        }
        let event = TransportEvent::Frame(conn, frame);
        wire.wire().events.push_back(event);
    }

    /// Everything that the node sent is a frame in order; it acks no more than it received; and one
    /// epoch is promised to one node.
    fn judge(&mut self, wire: &Scripted) {
        let sent = std::mem::take(&mut wire.wire().sent);
        for (conn, frame) in sent {
            let link = self.links.entry(conn).or_default();
            let message = link.open("node", frame).expect("a node sends good frames");
            match message.expect("and each of them once") {
                Message::Ack(ack) => {
                    for entry in ack.acks {
                        assert!(entry.durable <= entry.received, "{entry:?}");
                        assert!(entry.applied <= entry.received, "{entry:?}");
                    }
                }
                Message::Promise { epoch, .. } => {
                    let to = self.hellos.get(&conn).copied().unwrap_or_default();
                    let before = *self.promises.entry(epoch).or_insert(to);
                    assert_eq!(before, to, "epoch {epoch} is promised twice");
                }
                _ => {}
            }
        }
    }
}

/// A transport that writes down what comes over another one, as the input of a session.
struct Recorder {
    below: Box<dyn Transport>,
    record: Arc<Mutex<Record>>,
}

#[derive(Default)]
struct Record {
    bytes: Vec<u8>,
    conns: Vec<ConnId>,
    now: u64,
}

impl Transport for Recorder {
    fn connect(&mut self, now: u64, to: &str) -> Result<ConnId> {
        let conn = self.below.connect(now, to)?;
        self.record.lock().expect("one thread").conns.push(conn);
        Ok(conn)
    }

    fn send(&mut self, now: u64, conn: ConnId, frame: Vec<u8>) -> Result<()> {
        self.below.send(now, conn, frame)
    }

    fn room(&self, conn: ConnId) -> usize {
        self.below.room(conn)
    }

    fn poll(&mut self, now: u64) -> Option<TransportEvent> {
        let event = self.below.poll(now)?;
        let mut record = self.record.lock().expect("one thread");
        let passed = now - record.now.max(1_000_000);
        if passed > 0 {
            record.now = now;
            let ms = passed.min(255) as u8;
            record.bytes.extend_from_slice(&[4, ms]);
        }
        match &event {
            TransportEvent::Accepted(conn, _) => {
                record.conns.push(*conn);
                record.bytes.extend_from_slice(&[3, 0]);
            }
            TransportEvent::Frame(conn, frame) if frame.len() < 60_000 => {
                let at = record.conns.iter().position(|known| known == conn);
                let at = at.expect("it was opened") as u8;
                let [low, high, ..] = (frame.len() - HEADER_LEN).to_le_bytes();
                record
                    .bytes
                    .extend_from_slice(&[0, at, frame[16], low, high]);
                record.bytes.extend_from_slice(&frame[HEADER_LEN..]);
            }
            _ => {}
        }
        Some(event)
    }

    fn close(&mut self, now: u64, conn: ConnId) {
        self.below.close(now, conn);
    }

    fn due_ms(&self) -> Option<u64> {
        self.below.due_ms()
    }
}

/// What the nodes of a real session heard: a leader, a follower that comes up to it, and a candidate.
fn recorded() -> Vec<Vec<u8>> {
    let network = LocalNetwork::new(5);
    let mut places = Vec::new();
    let mut records = Vec::new();
    for part in [Part::Leader, Part::Follower, Part::Candidate] {
        // The candidate comes later, under the follower's name.
        let name = if part == Part::Leader {
            "leader"
        } else {
            "follower"
        };
        if part == Part::Candidate {
            run_all(&mut places, 400);
            network.detach("follower");
            places.pop();
        }
        let record = Arc::new(Mutex::new(Record::default()));
        let transport = Recorder {
            below: Box::new(network.attach(name)),
            record: Arc::clone(&record),
        };
        let place = Place::new(part, Box::new(transport)).expect("a database in memory");
        places.push(place);
        if let [first, .., last] = &mut places[..] {
            last.now = first.now;
        }
        records.push((part, record));
    }
    run_all(&mut places, 200);
    let bytes = |(part, record): (Part, Arc<Mutex<Record>>)| {
        let record = record.lock().expect("one thread");
        [&[part as u8][..], &record.bytes].concat()
    };
    records.into_iter().map(bytes).collect()
}

fn run_all(places: &mut [Place], ms: u64) {
    for n in 0..ms {
        for place in &mut *places {
            place.pass(1);
        }
        if n % 50 == 10 {
            places[0].write(n as u8);
        }
    }
}

/// Seeds of the targets above.
pub fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let mut seeds = Vec::new();
    for session in recorded() {
        for frame in frames_of(&session) {
            let mut input = vec![MEND];
            input.extend_from_slice(&frame);
            seeds.push(("message", input));
        }
        // As it was, and cut into the first part and what other nodes would hear.
        for control in 0..3 {
            let mut other = session.clone();
            other[0] = control;
            seeds.push(("session", other));
        }
    }
    for kind in 1..=24u8 {
        let mut frame = vec![0; 1 + HEADER_LEN + usize::from(kind) * 7];
        frame[0] = MEND;
        frame[1 + 16] = kind;
        seeds.push(("message", frame));
    }
    for count in [1, 3, 64] {
        let member = |n| (NodeId([n; 16]), Incarnation([n; 16]));
        let record = CoordinatorRecord {
            lineage: Lineage([9; 16]),
            epoch: Epoch(7),
            leader: member(0),
            members: (0..count).map(member).collect(),
            min_in_sync: 1,
        };
        let bytes = codec::encode(&[5; 16], &record).expect("it names its leader");
        seeds.push(("coordinator", [&[MEND][..], &bytes].concat()));
    }
    let boundary = codec::encode_boundary(65);
    seeds.push(("coordinator", [&[MEND | 2][..], &boundary].concat()));
    seeds
}

/// One frame of each kind in a recorded session.
fn frames_of(session: &[u8]) -> Vec<Vec<u8>> {
    let mut frames = BTreeMap::new();
    let mut rest = &session[1..];
    while let Some(([op, _], behind)) = rest.split_first_chunk::<2>() {
        rest = behind;
        let 0 = op else { continue };
        let Some(([kind, low, high], behind)) = rest.split_first_chunk::<3>() else {
            break;
        };
        let (payload, behind) = behind.split_at(usize::from(*low) | usize::from(*high) << 8);
        rest = behind;
        let mut frame = vec![0; HEADER_LEN];
        frame[16] = *kind;
        frame.extend_from_slice(payload);
        mend::frame(&mut frame, 1);
        frames.entry(*kind).or_insert(frame);
    }
    frames.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recording that no node understands would teach the fuzzer nothing.
    #[test]
    fn a_recorded_session_is_followed() {
        let sessions = recorded();
        let kinds = |n: usize| -> Vec<u8> {
            let frames = frames_of(&sessions[n]);
            frames.iter().map(|frame| frame[16]).collect()
        };
        assert!(kinds(0).len() >= 3, "the leader heard {:?}", kinds(0));
        assert!(kinds(1).len() >= 3, "the follower heard {:?}", kinds(1));
        assert!(!kinds(2).is_empty(), "the candidate heard nothing");
        let wire = Scripted::default();
        let mut place = Place::new(Part::Follower, Box::new(wire.clone())).expect("memory");
        place.step();
        let mut peer = Peer::default();
        let mut rest = &sessions[1][1..];
        while let Some(behind) = peer.event(rest, &wire, &mut place) {
            rest = behind;
            place.step();
        }
        let positions = place.dataset.positions();
        assert!(positions.iter().any(|end| end.seq > 0), "{positions:?}");
    }
}
