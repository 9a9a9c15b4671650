//! Runs a following machine over a store.

use std::collections::VecDeque;
use std::sync::Arc;

use strandline_wal::ShardId;
use strandline_wal::bug::planted;

use super::Now;
use super::wires::{Part, Wires};
use crate::bundle::BundleSink;
use crate::error::{Error, Result};
use crate::follower::{Action, Event, Follower, FollowerOptions, Here};
use crate::ids::{Promise, ShardEnd};
use crate::locate;
use crate::state::ReplicationState;
use crate::store::{FollowerStore, Report};
use crate::transport::ConnId;

/// A following machine with the store that it fills.
pub(super) struct Pursuer {
    machine: Follower,
    store: Arc<dyn FollowerStore>,
    part: Part,
    shards: Vec<ShardId>,
    sink: Option<Box<dyn BundleSink>>,
    state: Arc<ReplicationState>,
    // What stopped it, for whoever waits for its end.
    stopped: Option<Error>,
    // A promise that was made on the way, for the voter.
    promised: Option<Promise>,
}

impl Pursuer {
    pub fn new(store: Arc<dyn FollowerStore>, options: FollowerOptions, part: Part) -> Pursuer {
        let shards = store.shards();
        let mark = |shard: &ShardId| (*shard, store.end(*shard).position.seq);
        let state = Arc::new(ReplicationState::new(shards.iter().map(mark)));
        let machine = Follower::new(options);
        Pursuer {
            machine,
            store,
            part,
            shards,
            sink: None,
            state,
            stopped: None,
            promised: None,
        }
    }

    pub fn machine(&self) -> &Follower {
        &self.machine
    }

    pub fn state(&self) -> &Arc<ReplicationState> {
        &self.state
    }

    pub fn stopped(&self) -> Option<&Error> {
        self.stopped.as_ref()
    }

    pub fn take_promise(&mut self) -> Option<Promise> {
        self.promised.take()
    }

    pub fn due_ms(&self) -> Option<u64> {
        self.machine.due_ms()
    }

    /// Whether these ends are reached and durable.
    pub fn has(&self, ends: &[ShardEnd]) -> bool {
        ends.iter().all(|end| {
            self.machine
                .standing(end.shard)
                .is_some_and(|(ack, ..)| ack.durable >= end.position.seq)
        })
    }

    pub fn opened(&mut self, now: Now, wires: &mut Wires, conn: ConnId) {
        let here = here(self.store.as_ref());
        self.feed(now, wires, Event::Opened(conn, here));
    }

    /// All frames at hand are handled: sync, ack, apply, grant.
    pub fn flush(&mut self, now: Now, wires: &mut Wires) {
        let is_forged = planted("pursue.beside");
        let polled = || match is_forged {
            true => Some(Ok(())),
            false => self.store.poll_persist(),
        };
        if self.machine.is_syncing_beside()
            && let Some(done) = polled()
        {
            let seq = |shard: &ShardId| match is_forged {
                true => (*shard, u64::MAX),
                false => (*shard, self.store.log(*shard).synced_seq()),
            };
            let done = done.map(|()| self.shards.iter().map(seq).collect());
            self.feed(now, wires, Event::SyncEnded(done));
        }
        let room = self.store.room();
        self.feed(now, wires, Event::Flush(room));
        let applied = self.applied();
        self.feed(now, wires, Event::Applied(applied));
    }

    fn applied(&self) -> Vec<(ShardId, u64)> {
        self.shards
            .iter()
            .map(|shard| (*shard, self.store.applied(*shard)))
            .collect()
    }

    /// One event in, all its consequences out.
    pub fn feed(&mut self, now: Now, wires: &mut Wires, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.machine.handle(now.mono_ms, event);
            while let Some(action) = self.machine.poll_action() {
                self.act(now, wires, action, &mut events);
            }
        }
    }

    fn act(&mut self, now: Now, wires: &mut Wires, action: Action, events: &mut VecDeque<Event>) {
        let store = &self.store;
        match action {
            Action::Connect(name) => {
                let dataset = store.identity().dataset;
                let event = match wires.connect(now.mono_ms, &name, &dataset, self.part) {
                    Ok(conn) => Event::Connecting(conn),
                    Err(why) => Event::NoWay(why),
                };
                events.push_back(event);
            }
            Action::Send(conn, message) => {
                if let Err(why) = wires.send(now.mono_ms, conn, &message) {
                    events.push_back(Event::Closed(conn, why));
                }
            }
            Action::Close(conn, _) => wires.close(now.mono_ms, conn),
            Action::Promise(promise) => {
                let done = store.promise(promise);
                if done.is_ok() {
                    self.promised = Some(promise);
                }
                events.push_back(Event::Promised(done));
            }
            Action::Adopt(lineage) => events.push_back(Event::Adopted(store.adopt(lineage))),
            Action::FallBack(told) => {
                let source = store.as_ref();
                let ends = told
                    .into_iter()
                    .map(|(shard, position, leader)| {
                        locate::fall_back(source, shard, position, leader)
                    })
                    .collect();
                events.push_back(Event::FellBack(ends));
            }
            Action::Cut(from, to) => {
                let done = store.cut(to.shard, to);
                if done.is_ok() {
                    store.report(Report::Cut { from, to });
                }
                events.push_back(Event::Cut(to.shard, done));
            }
            Action::Append(shard, whole) => {
                let before = store.log(shard).last_seq();
                let done = store.append(shard, whole.segment, whole.at, &whole.bytes);
                if let Ok(appended) = &done {
                    self.note(shard, before, appended.position.seq);
                }
                wires.give_back(whole.bytes.into_buffer());
                events.push_back(Event::Appended(shard, done));
            }
            Action::Seal(shard, segment, footer) => {
                events.push_back(Event::Sealed(shard, store.seal(shard, segment, &footer)));
            }
            Action::Sync(shard) => {
                let done = match planted("pursue.sync") {
                    true => Ok(u64::MAX),
                    false => store.sync(shard),
                };
                events.push_back(Event::Synced(shard, done));
            }
            Action::Persist => store.begin_persist(),
            Action::Commit(marks, times) => {
                events.push_back(Event::Committed(store.commit(&marks, times)));
                events.push_back(Event::Applied(self.applied()));
            }
            Action::OpenSink => {
                self.sink = store.sink();
                let staged = self.sink.as_ref().map(|sink| sink.staged());
                events.push_back(Event::SinkOpened(staged));
            }
            Action::BeginBundle(plan) => {
                let len = plan.files.iter().map(|file| file.len).sum();
                store.report(Report::BundleBegun { len });
                let begun = self.with_sink(|sink| sink.begin(&plan));
                events.push_back(Event::BundleBegun(begun));
            }
            Action::WriteBundle(file, at, bytes) => {
                let done = self.with_sink(|sink| sink.write(file, at, &bytes));
                events.push_back(Event::BundleWritten(done));
            }
            Action::Install => {
                let done = self.with_sink(|sink| sink.install());
                self.sink = None;
                let installed = done.map(|ends| {
                    self.store.report(Report::BundleInstalled { ends });
                    here(self.store.as_ref())
                });
                events.push_back(Event::Installed(installed));
            }
            Action::Joined(node, name) => {
                // Cuts and bundles moved the ends: the marks start anew where the logs now are.
                let mark = |shard: &ShardId| (*shard, store.end(*shard).position.seq);
                self.state = Arc::new(ReplicationState::new(self.shards.iter().map(mark)));
                store.report(Report::Joined { node, name });
            }
            Action::Left(name, why) => store.report(Report::Left { name, why }),
            Action::Stopped(why) => {
                self.stopped = Some(why.clone());
                store.report(Report::Stopped { why });
            }
        }
    }

    fn note(&self, shard: ShardId, before: u64, last: u64) {
        if last > before {
            let noted = self.state.note(shard, before + 1, last);
            noted.expect("appended records are contiguous: no range ever waits");
        }
    }

    fn with_sink<T>(&mut self, f: impl FnOnce(&mut dyn BundleSink) -> Result<T>) -> Result<T> {
        match &mut self.sink {
            Some(sink) => f(sink.as_mut()),
            None => Err(Error::Store {
                what: "no bundle is open".to_owned(),
            }),
        }
    }
}

/// How a store stands.
fn here(store: &dyn FollowerStore) -> Here {
    let shards = store.shards();
    Here {
        identity: store.identity(),
        promise: store.promised(),
        shards: shards
            .into_iter()
            .map(|shard| (store.end(shard), store.floor(shard)))
            .collect(),
    }
}
