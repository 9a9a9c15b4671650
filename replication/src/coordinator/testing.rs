//! A simulated world for the engines: a store and an etcd at the end of one slow, lossy way, and clients
//! that race for one record, one step at a time, as a seed decides.
//!
//! A request waits in a queue until it lands. Who waits for it may give it up, or die, and it lands all the
//! same, sooner or very much later; or it never does, or its answer is lost.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use strandline_wal::Epoch;

use super::attempt::{Failure, Nonces};
use super::etcd::{Found, KeyValues, Keys, Swapped};
use super::object_store::{Created, Objects, StateObjects};
use super::{Record, Replaced, Version, codec};
use crate::error::Result;
use crate::ids::{Incarnation, Lineage, NodeId};

/// How often each fault happens, of 1,000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A request never lands.
    pub lost_request: u64,
    /// It lands, and who asked is told of a failure.
    pub lost_answer: u64,
    /// Who asked gives up at a step of waiting; the request goes on.
    pub given_up: u64,
    /// A create is answered as a conflict although nobody won.
    pub conflict: u64,
    /// A client dies at a step.
    pub death: u64,
    /// States are pruned as soon as there are some.
    pub prunes: bool,
    /// What is wrong with the store.
    pub flaw: Option<Flaw>,
}

/// What a store that is not safe does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flaw {
    /// A create looks for the object, and writes later.
    LooksThenWrites,
    /// A create overwrites.
    Overwrites,
    /// A get sees nothing of what was created.
    Forgets,
    /// It knows no create.
    Refuses,
}

impl Faults {
    /// All that a good store may do.
    pub const ALL: Faults = Faults {
        lost_request: 30,
        lost_answer: 60,
        given_up: 10,
        conflict: 60,
        death: 2,
        prunes: true,
        flaw: None,
    };
}

#[derive(Clone, Debug)]
enum Op {
    Get(String),
    Create(String, Vec<u8>),
    /// Of a store that has looked.
    Write(String, Vec<u8>),
    Delete(String),
    GetKey(String),
    Swap(String, u64, Vec<u8>),
}

enum Answer {
    Bytes(Option<Vec<u8>>),
    Created(Created),
    Deleted,
    Key(Option<Found>),
    Swapped(Swapped),
}

struct Request {
    id: u64,
    op: Op,
    is_late: bool,
}

/// The engine, the way to it, and what really happened.
#[derive(Default)]
pub struct World {
    random: u64,
    faults: Faults,
    queue: Vec<Request>,
    answers: BTreeMap<u64, Answer>,
    id: u64,
    objects: BTreeMap<String, Vec<u8>>,
    keys: BTreeMap<String, Found>,
    revision: u64,
    /// Every record that was ever in place, by version: the one history.
    pub history: BTreeMap<u64, Record>,
    /// States that were created again after they were deleted.
    pub revived_count: u64,
    /// States that were deleted.
    pub deleted_count: u64,
    epoch: u32,
    nonce: u64,
    /// How soon late requests land.
    late: u64,
}

/// The way to the engine.
#[derive(Clone)]
pub struct Way(pub Rc<RefCell<World>>);

impl World {
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn happens(&mut self, per_mille: u64) -> bool {
        self.next() % 1_000 < per_mille
    }

    /// Whether a late request lands now.
    fn is_time(&mut self) -> bool {
        let late = self.late;
        self.happens(late)
    }

    /// One request of the queue arrives, or takes longer.
    fn land_one(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let n = self.below(self.queue.len());
        if self.queue[n].is_late && !self.is_time() {
            return;
        }
        let request = self.queue.swap_remove(n);
        if let Some(answer) = self.land(request.id, request.op) {
            self.answers.insert(request.id, answer);
        }
    }

    fn land(&mut self, id: u64, op: Op) -> Option<Answer> {
        Some(match op {
            Op::Get(_) if self.faults.flaw == Some(Flaw::Forgets) => Answer::Bytes(None),
            Op::Get(key) => Answer::Bytes(self.objects.get(&key).cloned()),
            Op::Create(key, _)
                if self.objects.contains_key(&key)
                    && self.faults.flaw != Some(Flaw::Overwrites) =>
            {
                Answer::Created(Created::Exists)
            }
            Op::Create(key, bytes) if self.faults.flaw == Some(Flaw::LooksThenWrites) => {
                let op = Op::Write(key, bytes);
                let is_late = false;
                self.queue.push(Request { id, op, is_late });
                return None;
            }
            Op::Create(..) if self.happens(self.faults.conflict) => {
                Answer::Created(Created::Exists)
            }
            Op::Create(key, bytes) | Op::Write(key, bytes) => {
                self.created(&key, &bytes);
                self.objects.insert(key, bytes);
                Answer::Created(Created::Yes)
            }
            Op::Delete(key) => {
                let was_there = self.objects.remove(&key).is_some();
                self.deleted_count += u64::from(was_there && key.contains("/state/"));
                Answer::Deleted
            }
            Op::GetKey(key) => Answer::Key(self.keys.get(&key).cloned()),
            Op::Swap(key, expected, bytes) => {
                let found = self.keys.get(&key).cloned();
                // Other writers of the cluster make its revisions grow, too.
                self.revision += 1 + self.next() % 3;
                if found.as_ref().map_or(0, |found| found.0) != expected {
                    return Some(Answer::Swapped(Swapped::No(found)));
                }
                let (_, record) = codec::decode(&bytes).unwrap();
                self.history.insert(self.revision, record);
                self.keys.insert(key, (self.revision, bytes));
                Answer::Swapped(Swapped::Yes(self.revision))
            }
        })
    }

    fn created(&mut self, key: &str, bytes: &[u8]) {
        let Some((_, number)) = key.split_once("/state/") else {
            return;
        };
        let number = number.parse().unwrap();
        let (_, record) = codec::decode(bytes).unwrap();
        if self.history.contains_key(&number) {
            self.revived_count += 1;
            return;
        }
        let before = self.newest();
        assert_eq!(number, before + 1, "a number is left out");
        self.history.insert(number, record);
    }

    pub fn set_faults(&mut self, faults: Faults) {
        self.faults = faults;
    }

    pub fn request_count(&self) -> u64 {
        self.id
    }

    pub fn object_count(&self) -> usize {
        self.objects.len()
    }

    fn newest(&self) -> u64 {
        self.history.last_key_value().map_or(0, |last| *last.0)
    }

    fn has(&self, record: &Record) -> bool {
        self.history.values().any(|found| found == record)
    }

    /// A record that nobody else writes.
    pub fn record(&mut self) -> Record {
        self.epoch += 1;
        let leader = (NodeId([1; 16]), Incarnation([1; 16]));
        Record {
            lineage: Lineage([9; 16]),
            epoch: Epoch(self.epoch),
            leader,
            members: vec![leader],
            min_in_sync: 0,
        }
    }
}

impl Way {
    pub fn new(seed: u64, faults: Faults) -> Way {
        let world = World {
            random: seed,
            late: [20, 100, 400][(seed % 3) as usize],
            faults,
            ..World::default()
        };
        Way(Rc::new(RefCell::new(world)))
    }

    async fn ask(&self, op: Op) -> Result<Answer, Failure> {
        let id = {
            let mut world = self.0.borrow_mut();
            world.id += 1;
            let id = world.id;
            let is_late = false;
            let lost_request = world.faults.lost_request;
            if !world.happens(lost_request) {
                world.queue.push(Request { id, op, is_late });
            }
            id
        };
        for _ in 0..200 {
            step().await;
            let mut world = self.0.borrow_mut();
            let failure = Err(Failure::new("injected"));
            let Faults {
                lost_answer,
                given_up,
                ..
            } = world.faults;
            if let Some(answer) = world.answers.remove(&id) {
                let is_lost = world.happens(lost_answer);
                return if is_lost { failure } else { Ok(answer) };
            }
            if world.happens(given_up) {
                let late = world.queue.iter_mut().filter(|request| request.id == id);
                late.for_each(|request| request.is_late = true);
                return failure;
            }
        }
        Err(Failure::new("no answer"))
    }

    /// Nonces of one client.
    pub fn nonces(&self) -> Nonces {
        let mut world = self.0.borrow_mut();
        world.nonce += 1;
        let client = world.nonce;
        let mut n = 0_u64;
        Box::new(move || {
            n += 1;
            let mut nonce = [0; 16];
            nonce[..8].copy_from_slice(&client.to_le_bytes());
            nonce[8..].copy_from_slice(&n.to_le_bytes());
            nonce
        })
    }
}

impl Objects for Way {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        match self.ask(Op::Get(key.to_owned())).await? {
            Answer::Bytes(bytes) => Ok(bytes),
            _ => unreachable!("a get is answered as one"),
        }
    }

    async fn create(&self, key: &str, bytes: &[u8]) -> Result<Created, Failure> {
        if self.0.borrow().faults.flaw == Some(Flaw::Refuses) {
            return Err(Failure {
                what: "not implemented".to_owned(),
                is_unsupported: true,
            });
        }
        match self.ask(Op::Create(key.to_owned(), bytes.to_vec())).await? {
            Answer::Created(created) => Ok(created),
            _ => unreachable!("a create is answered as one"),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), Failure> {
        self.ask(Op::Delete(key.to_owned())).await.map(drop)
    }

    async fn pause(&self, _ms: u64) {
        step().await;
    }
}

impl KeyValues for Way {
    async fn get(&self, key: &str) -> Result<Option<Found>, Failure> {
        match self.ask(Op::GetKey(key.to_owned())).await? {
            Answer::Key(found) => Ok(found),
            _ => unreachable!("a get is answered as one"),
        }
    }

    async fn swap(&self, key: &str, expected: u64, bytes: &[u8]) -> Result<Swapped, Failure> {
        let op = Op::Swap(key.to_owned(), expected, bytes.to_vec());
        match self.ask(op).await? {
            Answer::Swapped(swapped) => Ok(swapped),
            _ => unreachable!("a swap is answered as one"),
        }
    }

    async fn wait(&self, _key: &str, _seen: u64, _ms: u64) -> Result<(), Failure> {
        Ok(())
    }

    async fn pause(&self, _ms: u64) {
        step().await;
    }
}

/// What the engines have in common.
pub trait Engine {
    fn begin(way: &Way) -> Self;
    async fn read(&mut self) -> Result<Option<(Version, Record)>>;
    async fn replace(&mut self, expected: Version, record: &Record) -> Result<Replaced>;
    async fn prune(&mut self);
}

impl Engine for StateObjects<Way> {
    fn begin(way: &Way) -> Self {
        let states = StateObjects::new(way.clone(), "sim", "p", way.nonces());
        match way.0.borrow().faults.prunes {
            true => states.with_counts(1, 3),
            false => states,
        }
    }

    async fn read(&mut self) -> Result<Option<(Version, Record)>> {
        self.read("d").await
    }

    async fn replace(&mut self, expected: Version, record: &Record) -> Result<Replaced> {
        self.replace("d", expected, record).await
    }

    async fn prune(&mut self) {
        self.prune("d").await;
    }
}

impl Engine for Keys<Way> {
    fn begin(way: &Way) -> Self {
        Keys::new(way.clone(), "sim", "p", way.nonces())
    }

    async fn read(&mut self) -> Result<Option<(Version, Record)>> {
        self.read("d").await
    }

    async fn replace(&mut self, expected: Version, record: &Record) -> Result<Replaced> {
        self.replace("d", expected, record).await
    }

    async fn prune(&mut self) {}
}

/// What clients were told, to be held against the history.
#[derive(Debug, Default)]
pub struct Told {
    pub done: Vec<(u64, Record)>,
    pub conflicts: Vec<Record>,
    /// What a read settled, and whether it was in the history then.
    pub settled: Vec<(Record, bool)>,
    pub read_count: u64,
    pub error_count: u64,
}

const CLIENT_COUNT: usize = 4;
const CHANGE_COUNT: usize = 12;

/// Clients race for one record; what they were told is held against what happened.
pub fn race<E: Engine>(seed: u64, faults: Faults) -> (Told, World) {
    let way = Way::new(seed, faults);
    let told = Rc::new(RefCell::new(Told::default()));
    let begin = || -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(client(E::begin(&way), way.clone(), told.clone(), seed))
    };
    let mut clients: Vec<_> = (0..CLIENT_COUNT).map(|_| Some(begin())).collect();
    let mut context = Context::from_waker(Waker::noop());
    while clients.iter().any(Option::is_some) {
        let (n, lands, dies) = {
            let mut world = way.0.borrow_mut();
            let death = world.faults.death;
            (
                world.below(CLIENT_COUNT),
                world.happens(400),
                world.happens(death),
            )
        };
        if lands {
            way.0.borrow_mut().land_one();
        }
        let Some(client) = &mut clients[n] else {
            continue;
        };
        if dies {
            clients[n] = Some(begin());
        } else if client.as_mut().poll(&mut context).is_ready() {
            clients[n] = None;
        }
    }
    drop(clients);
    // What is still under way lands in the end.
    while !way.0.borrow().queue.is_empty() {
        way.0.borrow_mut().land_one();
    }
    let told = told.take();
    let world = way.0.take();
    for (version, record) in &told.done {
        assert_eq!(
            world.history.get(version),
            Some(record),
            "seed {seed}: done"
        );
    }
    for record in &told.conflicts {
        assert!(!world.has(record), "seed {seed}: a conflict landed");
    }
    for (record, was_there) in &told.settled {
        assert_eq!(world.has(record), *was_there, "seed {seed}: told by a read");
    }
    (told, world)
}

async fn client<E: Engine>(mut engine: E, way: Way, told: Rc<RefCell<Told>>, seed: u64) {
    let mut version = None;
    let mut unknown = Vec::new();
    for _ in 0..CHANGE_COUNT {
        let reads = version.is_none() || way.0.borrow_mut().happens(800);
        if reads {
            let floor = way.0.borrow().newest();
            let Ok(found) = engine.read().await else {
                told.borrow_mut().error_count += 1;
                continue;
            };
            let world = way.0.borrow();
            let mut told = told.borrow_mut();
            let number = found.as_ref().map_or(0, |found| found.0.0);
            assert!(number >= floor, "seed {seed}: read {number} after {floor}");
            if let Some((_, record)) = &found {
                let real = world.history.get(&number);
                assert_eq!(real, Some(record), "seed {seed}: version {number}");
            }
            let settled = unknown.drain(..).map(|record| {
                let was_there = world.has(&record);
                (record, was_there)
            });
            told.settled.extend(settled);
            told.read_count += 1;
            version = Some(Version(number));
        }
        if reads && way.0.borrow_mut().happens(300) {
            // Quiet enough for what is late to come after all.
            for _ in 0..100 {
                step().await;
            }
            continue;
        }
        let record = way.0.borrow_mut().record();
        let expected = version.expect("it was read once");
        match engine.replace(expected, &record).await {
            Ok(Replaced::Done(done)) => {
                told.borrow_mut().done.push((done.0, record));
                version = Some(done);
                engine.prune().await;
            }
            Ok(Replaced::Conflict) => told.borrow_mut().conflicts.push(record),
            Err(_) => {
                told.borrow_mut().error_count += 1;
                unknown.push(record);
            }
        }
    }
}

/// Lets everything else go on.
pub async fn step() {
    let mut is_first = true;
    std::future::poll_fn(move |_| match std::mem::take(&mut is_first) {
        true => Poll::Pending,
        false => Poll::Ready(()),
    })
    .await;
}

/// Runs one future while requests land.
pub fn run<F: Future>(way: &Way, future: F) -> F::Output {
    let mut future = std::pin::pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        way.0.borrow_mut().land_one();
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return output;
        }
    }
}
