//! Runs a serving machine over a log: reads what it ships, looks up what it asks.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use strandline_wal::{Epoch, ShardId};

use super::Now;
use super::wires::Wires;
use crate::bundle::Bundle;
use crate::error::{Error, Result};
use crate::failover::Follows;
use crate::ids::{BundleId, Identity, Leadership, NodeId, ShardEnd};
use crate::lag::{FollowerLag, LagGauges, ShardLag};
use crate::leader::{Action, Event, Leader, LeaderOptions, NO_CLAIM, Serving};
use crate::locate::{self, Next};
use crate::message::frame::FRAME_HEADER_LEN;
use crate::message::{DataHead, Message, Purpose, Seal, codec};
use crate::slot::Heard;
use crate::store::{LeaderStore, LogSource, Marks, Report, Times};
use crate::transport::ConnId;

/// Rounds of shipping in one step, so that one step ends.
const SHIP_ROUNDS_MAX: usize = 64;

/// A serving machine with the log that it serves.
pub(super) struct Server {
    machine: Leader,
    source: Arc<dyn LogSource>,
    // `None` where it lends.
    lead: Option<Arc<dyn LeaderStore>>,
    shards: Vec<ShardId>,
    // Shards whose first record of this epoch is not known yet.
    unstarted: Vec<ShardId>,
    bundles: BTreeMap<ConnId, Box<dyn Bundle>>,
    gauged_ms: u64,
    gauged_count: usize,
}

impl Server {
    pub fn lead(store: Arc<dyn LeaderStore>, options: LeaderOptions) -> Server {
        let serving = Serving {
            identity: store.identity(),
            leadership: store.leadership(),
            only: None,
        };
        let source: Arc<dyn LogSource> = store.clone();
        Server::new(serving, source, Some(store), options)
    }

    /// Serves one candidate, under the epoch that was promised to it.
    pub fn lend(source: Arc<dyn LogSource>, epoch: Epoch, to: NodeId) -> Server {
        let leadership = Leadership {
            epoch,
            leader: NO_CLAIM,
        };
        let serving = Serving {
            identity: source.identity(),
            leadership,
            only: Some(to),
        };
        Server::new(serving, source, None, LeaderOptions::default())
    }

    fn new(
        serving: Serving,
        source: Arc<dyn LogSource>,
        lead: Option<Arc<dyn LeaderStore>>,
        options: LeaderOptions,
    ) -> Server {
        let shards = source.shards();
        let machine = Leader::new(serving, options, &shards);
        Server {
            machine,
            source,
            lead,
            unstarted: shards.clone(),
            shards,
            bundles: BTreeMap::new(),
            gauged_ms: 0,
            gauged_count: 0,
        }
    }

    pub fn leadership(&self) -> (Leadership, Option<Epoch>) {
        self.machine.leadership()
    }

    pub fn due_ms(&self) -> Option<u64> {
        self.machine.due_ms()
    }

    /// The durable ends of the logs, and how the followers stand.
    pub fn follows(&self) -> (Vec<u64>, Vec<Follows>) {
        self.machine.follows()
    }

    /// Reads the marks of the store, so that frames are judged by what is written now.
    pub fn refresh(&mut self, now: Now, wires: &mut Wires) {
        let marks = self
            .shards
            .iter()
            .map(|shard| (*shard, self.marks(*shard)))
            .collect();
        let times = self
            .lead
            .as_ref()
            .map_or(Times::default(), |store| store.times());
        self.feed(now, wires, Event::Marks(marks, times));
        let epoch = self.machine.leadership().0.epoch;
        if let Some(store) = self.lead.clone().filter(|_| !self.unstarted.is_empty()) {
            for shard in std::mem::take(&mut self.unstarted) {
                match store
                    .epochs(shard)
                    .last()
                    .filter(|entry| entry.epoch == epoch)
                {
                    Some(entry) => self.feed(now, wires, Event::Started(shard, entry.first_seq)),
                    None => self.unstarted.push(shard),
                }
            }
        }
    }

    fn marks(&self, shard: ShardId) -> Marks {
        match &self.lead {
            Some(store) => store.marks(shard),
            None => {
                let log = self.source.log(shard);
                let written = log.last_seq().max(self.source.end(shard).position.seq);
                Marks {
                    written,
                    durable: log.synced_seq().min(written),
                    committed: 0,
                }
            }
        }
    }

    /// Ships what there is, one piece per follower and round.
    pub fn ship(&mut self, now: Now, wires: &mut Wires) -> bool {
        for _ in 0..SHIP_ROUNDS_MAX {
            let before = wires.sent_count;
            self.feed(now, wires, Event::Ship);
            if wires.sent_count == before {
                return false;
            }
        }
        true
    }

    /// One event in, all its consequences out.
    pub fn feed(&mut self, now: Now, wires: &mut Wires, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.machine.handle(now.mono_ms, now.wall_ms, event);
            while let Some(action) = self.machine.poll_action() {
                self.act(now, wires, action, &mut events);
            }
        }
    }

    fn act(&mut self, now: Now, wires: &mut Wires, action: Action, events: &mut VecDeque<Event>) {
        match action {
            Action::Send(conn, message) => {
                if let Err(why) = wires.send(now.mono_ms, conn, &message) {
                    events.push_back(Event::Closed(conn, why));
                }
            }
            Action::Close(conn, _) => wires.close(now.mono_ms, conn),
            Action::Judge(conn, ends) => {
                let (leadership, _) = self.machine.leadership();
                let live = self.lead.as_ref().map(|_| leadership.leader);
                let source = self.source.as_ref();
                let verdict = |end| locate::verdict(source, live, end);
                // What is told to be there must not go.
                let kept = self.keep_for(conn, &ends);
                let judged = kept.and_then(|()| ends.iter().map(verdict).collect());
                events.push_back(Event::Judged(conn, judged));
            }
            Action::Ship {
                conn,
                shard,
                segment,
                at,
                len_max,
                marks,
                times,
            } => {
                let head = DataHead {
                    epoch: self.machine.leadership().0.epoch,
                    shard,
                    segment,
                    at,
                    written: marks.written,
                    committed: marks.committed,
                    times,
                    wall_ms: now.wall_ms,
                };
                match self.ship_next(now, wires, conn, &head, len_max) {
                    Ok(Some(event)) => events.push_back(event),
                    // The queue is full: asked again with the next round.
                    Ok(None) => {}
                    Err(why) => events.push_back(Event::Failed(conn, why)),
                }
            }
            Action::Pin(conn, again) => {
                let pinned = self.pin(conn, again);
                events.push_back(Event::Pinned(conn, pinned));
            }
            Action::ShipPiece {
                conn,
                file,
                at,
                len,
            } => match self.ship_piece(now, wires, conn, file, at, len) {
                Ok(Some(event)) => events.push_back(event),
                Ok(None) => {}
                Err(why) => events.push_back(Event::Failed(conn, why)),
            },
            Action::Unpin(conn) => {
                self.bundles.remove(&conn);
            }
            Action::Confirm(confirmed) => {
                if let Some(store) = &self.lead {
                    store.confirmed(&confirmed);
                }
            }
            Action::Fenced(epoch) => {
                if let Some(store) = &self.lead {
                    store.fenced(epoch);
                    store.report(Report::Fenced { epoch });
                }
            }
            Action::Joined(node, name) => self.source.report(Report::Joined { node, name }),
            Action::Left(name, why) => self.source.report(Report::Left { name, why }),
        }
    }

    fn ship_next(
        &mut self,
        now: Now,
        wires: &mut Wires,
        conn: ConnId,
        head: &DataHead,
        len_max: usize,
    ) -> Result<Option<Event>> {
        let overhead = FRAME_HEADER_LEN + codec::DATA_FIXED_LEN;
        let room = wires.room(conn).saturating_sub(overhead);
        let log = self.source.log(head.shard);
        match locate::next(&log, head.segment, head.at, len_max)? {
            // A small piece now would be followed by another soon; wait until the whole one fits.
            Next::Bytes(bytes) if bytes.len() > room => Ok(None),
            Next::Bytes(bytes) => {
                wires.send_data(now.mono_ms, conn, head, &bytes)?;
                Ok(Some(Event::Shipped(conn, head.shard, bytes.len() as u64)))
            }
            Next::Footer(segment) => {
                let sealed = segment.sealed().expect("that is why its footer comes");
                if sealed.bytes.len() > room {
                    return Ok(None);
                }
                let seal = Seal {
                    epoch: head.epoch,
                    shard: head.shard,
                    segment: head.segment,
                    at: head.at,
                    footer: sealed.bytes.clone(),
                };
                wires.send(now.mono_ms, conn, &Message::Seal(seal))?;
                Ok(Some(Event::Sealed(
                    conn,
                    head.shard,
                    sealed.footer.last_seq + 1,
                )))
            }
            Next::AtTail => Ok(Some(Event::AtTail(conn, head.shard))),
            Next::Pruned => {
                let (shard, needed) = (head.shard, head.segment);
                Err(Error::Pruned {
                    shard,
                    needed,
                    first_available: log.first_seq(),
                })
            }
        }
    }

    /// Has the store keep what a follower needs that ends here.
    fn keep_for(&self, conn: ConnId, ends: &[ShardEnd]) -> Result<()> {
        let follower = self.machine.follower(conn);
        match (
            &self.lead,
            follower.filter(|f| f.purpose == Purpose::Follow),
        ) {
            (Some(store), Some(follower)) => store.greeted(&follower.peer, ends),
            _ => Ok(()),
        }
    }

    fn pin(&mut self, conn: ConnId, again: BundleId) -> Result<crate::bundle::BundlePlan> {
        let Some(source) = self.source.bundles() else {
            let shard = self.shards.first().copied().unwrap_or_default();
            let first_available = self.source.log(shard).first_seq();
            return Err(Error::Pruned {
                shard,
                needed: 1,
                first_available,
            });
        };
        let bundle = source.open((again != BundleId::default()).then_some(again))?;
        let plan = bundle.plan().clone();
        assert!(
            plan.files.len() <= crate::bundle::FILE_COUNT_MAX as usize,
            "a bundle of too many files"
        );
        self.bundles.insert(conn, bundle);
        let follower = self.machine.follower(conn);
        if let (Some(store), Some(follower)) = (&self.lead, follower)
            && follower.purpose == Purpose::Follow
        {
            store.pinned(follower.peer.node, &plan.ends);
        }
        Ok(plan)
    }

    fn ship_piece(
        &mut self,
        now: Now,
        wires: &mut Wires,
        conn: ConnId,
        file: u32,
        at: u64,
        len: usize,
    ) -> Result<Option<Event>> {
        let Some(bundle) = self.bundles.get_mut(&conn) else {
            return Ok(None);
        };
        if wires.room(conn) < len + FRAME_HEADER_LEN + 16 {
            return Ok(None);
        }
        let bytes = bundle.read(file, at, len)?;
        if bytes.is_empty() || bytes.len() > len {
            let what = format!(
                "{} bytes of bundle file {file} at {at}, {len} asked",
                bytes.len()
            );
            return Err(Error::Store { what });
        }
        let len = bytes.len() as u64;
        wires.send(now.mono_ms, conn, &Message::BundleData { file, at, bytes })?;
        Ok(Some(Event::PieceShipped(conn, len)))
    }

    /// Writes the lag gauges: at once where a follower came or left, and not more often than is
    /// worth it otherwise.
    pub fn gauge(&mut self, now: Now, identity: &Identity, gauges: &LagGauges) {
        const EVERY_MS: u64 = 100;
        let count = self.machine.followers().count();
        let is_due = count != self.gauged_count || now.mono_ms >= self.gauged_ms + EVERY_MS;
        if !is_due {
            return;
        }
        (self.gauged_ms, self.gauged_count) = (now.mono_ms, count);
        let mut here = Vec::new();
        let mut heard = Vec::new();
        for follower in self
            .machine
            .followers()
            .filter(|f| f.purpose == Purpose::Follow)
        {
            here.push(follower.peer.node);
            heard.push(Heard {
                node: follower.peer.node,
                incarnation: follower.peer.incarnation,
                durable: follower.streams.values().map(|s| s.ack.durable).collect(),
            });
            let mut lag = FollowerLag {
                name: follower.peer.name.clone(),
                connected: true,
                transport_bytes: follower.purse.spent() - follower.taken,
                apply_ms: 0,
                shards: BTreeMap::new(),
            };
            let mut behind = false;
            for (shard, stream) in &follower.streams {
                let log = self.source.log(*shard);
                let ack = stream.ack;
                let written = log.last_seq();
                behind |= ack.applied < written;
                if let Some((segment, at)) = stream.place {
                    lag.transport_bytes += unsent(&log, segment, at);
                }
                let shard_lag = ShardLag {
                    transport_seqs: written.saturating_sub(ack.received),
                    apply_seqs: ack.received - ack.applied,
                    received: ack.received,
                    durable: ack.durable,
                    applied: ack.applied,
                };
                lag.shards.insert(*shard, shard_lag);
            }
            if behind && follower.applied_wall_ms > 0 {
                lag.apply_ms = now.wall_ms.saturating_sub(follower.applied_wall_ms);
            }
            gauges.set(&identity.dataset, follower.peer.node, lag);
        }
        gauges.mark_left(&identity.dataset, &here);
        if let Some(store) = &self.lead {
            store.heard(heard);
        }
    }
}

/// Bytes of a log from a place to its end.
fn unsent(log: &strandline_wal::log::Log, first_seq: u64, at: u64) -> u64 {
    let segments = log.segments();
    let from = segments
        .iter()
        .filter(|segment| segment.first_seq() >= first_seq);
    from.map(|s| {
        if s.first_seq() == first_seq {
            s.data_len().saturating_sub(at)
        } else {
            s.data_len()
        }
    })
    .sum()
}
