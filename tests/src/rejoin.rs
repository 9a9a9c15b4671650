//! A deposed leader that dies at every call of its disk while it cuts what the new leader lacks.
//!
//! It wrote alone, on its own disk, while another node was promoted. Told to follow, it saves its tail,
//! cuts it, and goes on with the new leader's records. After each death, with every damage: it opens,
//! it comes to the leader's log, and the tail is saved.

use std::sync::Arc;

use strandline::replica::{Campaign, Node, Promote};
use strandline::{Background, Database, Dataset, NodeConfig, NodeRole, Options};
use strandline_replication::transport::local::LocalNetwork;
use strandline_replication::{Notifier, Now};
use strandline_wal::io::sim::{Damage, SimEnv};

use crate::plan::small_options;
use crate::run::{ROOT, Tally};

const STEP_COUNT_MAX: usize = 64;
const WAIT_MS_MAX: u64 = 30_000;
/// What only the deposed leader wrote begins with this.
const ALONE: &[u8] = b"written alone";
/// What the new leader writes.
const LATER: &[u8] = b"written by the new leader";

struct Place {
    env: SimEnv,
    db: Database,
    node: Node,
}

impl Place {
    fn open(
        env: SimEnv,
        role: NodeRole,
        network: &LocalNetwork,
        label: &str,
    ) -> Result<Place, String> {
        let options = Options {
            background: Background::Manual,
            node: NodeConfig {
                role,
                ..NodeConfig::default()
            },
            ..small_options()
        };
        let db = options.open_with(ROOT, env.env());
        let db = db.map_err(|error| format!("{label} does not open: {error}"))?;
        db.dataset("")
            .map_err(|error| format!("{label}: {error}"))?;
        let transport = Box::new(network.attach(label));
        let node = Node::new(label, transport, Arc::new(Notifier::default()));
        Ok(Place { env, db, node })
    }

    fn dataset(&self) -> Dataset {
        self.db.dataset("").expect("primary is open")
    }

    fn write(&self, number: u64, value: &[u8]) -> Result<(), String> {
        let put = self
            .dataset()
            .keyspace("map")
            .and_then(|map| map.put(number.to_be_bytes(), value));
        put.map_err(|error| format!("a write: {error}"))
    }
}

/// The deposed leader and the new one.
struct Pair {
    network: LocalNetwork,
    old: Place,
    new: Place,
    ms: u64,
}

impl Pair {
    /// Both up to the moment when the old leader is told to follow.
    fn new(seed: u64) -> Result<Pair, String> {
        let mut pair = Pair::parted(seed, 5 + seed % 5)?;
        pair.promote()?;
        pair.write_on()?;
        pair.network.heal();
        Ok(pair)
    }

    /// Both up to the moment before the promotion; the old leader wrote so many records alone.
    fn parted(seed: u64, alone_count: u64) -> Result<Pair, String> {
        let network = LocalNetwork::new(seed);
        let mut pair = Pair {
            old: Place::open(SimEnv::new(seed), NodeRole::Single, &network, "old")?,
            new: Place::open(SimEnv::new(seed ^ 1), NodeRole::Follower, &network, "new")?,
            network,
            ms: 1_000_000,
        };
        let (now, old, new) = (pair.now(), pair.old.dataset(), pair.new.dataset());
        pair.old.node.lead(now, &old).map_err(|e| e.to_string())?;
        let peers = ["old".to_owned()];
        pair.new
            .node
            .follow(now, &new, &peers)
            .map_err(|e| e.to_string())?;
        for number in 0..6 {
            pair.old.write(number, b"written together")?;
        }
        pair.wait("following", Pair::agrees)?;
        pair.network.part("old", "new");
        for number in 6..6 + alone_count {
            pair.old.write(number, ALONE)?;
        }
        Ok(pair)
    }

    /// The other node is promoted, or its machine dies.
    fn promote(&mut self) -> Result<(), String> {
        let how = Promote {
            node_count: 2,
            follower_count: 1,
            ..Promote::default()
        };
        let (now, new) = (self.now(), self.new.dataset());
        match self.new.node.campaign(now, &new, &how) {
            Err(_) if self.new.env.disk.is_dead() => return Ok(()),
            campaign => campaign.map_err(|e| e.to_string())?,
        };
        self.wait("a promotion", Pair::is_promoted)
    }

    fn is_promoted(&self) -> bool {
        let campaign = self.new.node.campaign_of(&self.new.dataset());
        matches!(campaign, Campaign::Won(_))
    }

    /// What the new leader writes.
    fn write_on(&mut self) -> Result<(), String> {
        (0..3).try_for_each(|number| self.new.write(number, LATER))
    }

    fn now(&self) -> Now {
        Now {
            mono_ms: self.ms,
            wall_ms: self.ms,
        }
    }

    fn agrees(&self) -> bool {
        let (old, new) = (self.old.dataset(), self.new.dataset());
        old.positions() == new.positions()
            && old.snapshot().timestamp() == new.snapshot().timestamp()
    }

    fn wait(&mut self, what: &str, until: impl Fn(&Pair) -> bool) -> Result<(), String> {
        let end = self.ms + WAIT_MS_MAX;
        let dies = |place: &Place| place.env.disk.is_dead();
        while !until(self) && !dies(&self.old) && !dies(&self.new) {
            if self.ms > end {
                let status = self.old.node.follow_status(&self.old.dataset());
                return Err(format!("{what} does not end: {status:?}"));
            }
            self.ms += 1;
            let now = self.now();
            for place in [&mut self.old, &mut self.new] {
                place.env.clock.advance_ms(1);
                for _ in 0..STEP_COUNT_MAX {
                    if !place.node.step(now) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// The old leader follows, until it agrees or its machine dies.
    fn rejoin(&mut self) -> Result<(), String> {
        let (now, dataset) = (self.now(), self.old.dataset());
        let followed = self.old.node.follow(now, &dataset, &["new".to_owned()]);
        match followed {
            Err(_) if self.old.env.disk.is_dead() => Ok(()),
            Err(error) => Err(format!("following: {error}")),
            Ok(()) => self.wait("following the new leader", Pair::agrees),
        }
    }

    /// The machine that died comes back with this on its disk.
    fn come_back(&mut self, env: SimEnv) -> Result<(), String> {
        self.network.detach("old");
        self.old = Place::open(env, NodeRole::Follower, &self.network, "old")?;
        self.rejoin()?;
        let files = self.old.env.disk.files();
        let is_saved = files.iter().any(|(path, bytes)| {
            let in_saved = path.components().any(|c| c.as_os_str() == "divergent");
            in_saved && bytes.windows(ALONE.len()).any(|window| window == ALONE)
        });
        match is_saved {
            true => Ok(()),
            false => Err("what was cut is not saved".to_owned()),
        }
    }
}

/// Sweeps the calls of the old leader's disk while it rejoins.
///
/// # Errors
/// The first call and damage at which something is wrong, and what.
pub fn sweep(seed: u64) -> Result<Tally, String> {
    let mut whole = Pair::new(seed)?;
    let before = whole.old.env.disk.io_count();
    whole.rejoin()?;
    let call_count = whole.old.env.disk.io_count() - before;
    drop(whole);
    let mut tally = Tally::default();
    tally.add("calls", call_count);
    for at in 0..call_count {
        let damages = Damage::ALL.into_iter().map(Some).chain([None]);
        for (n, damage) in damages.enumerate() {
            let mut pair = Pair::new(seed)?;
            let first = pair.old.env.disk.io_count();
            pair.old.env.disk.crash_at(first + at);
            let failed = |error: String| {
                format!("death at call {at} of {call_count}, {damage:?}, seed {seed}: {error}")
            };
            pair.rejoin().map_err(failed)?;
            pair.old.env.disk.crash_at(0);
            let machine = &pair.old.env;
            let after = match damage {
                Some(damage) => machine.crash(seed ^ (at << 16) ^ n as u64, damage),
                None => SimEnv {
                    disk: machine.disk.fork(),
                    ..machine.clone()
                },
            };
            pair.come_back(after).map_err(failed)?;
            tally.add("recoveries", 1);
        }
    }
    Ok(tally)
}

/// A node that dies at every call of its disk while it is promoted, and while it writes as the leader.
/// Of even seeds the old leader has a tail to be cut, of odd ones it has none. After each death, with
/// every damage: it opens, shows what it acknowledged, and is promoted to an epoch that it never led;
/// the old leader comes to its log.
///
/// # Errors
/// The first call and damage at which something is wrong, and what.
pub fn promotions(seed: u64) -> Result<Tally, String> {
    let alone_count = if seed.is_multiple_of(2) { 5 } else { 0 };
    let mut whole = Pair::parted(seed, alone_count)?;
    let before = whole.new.env.disk.io_count();
    whole.promote()?;
    whole.write_on()?;
    let call_count = whole.new.env.disk.io_count() - before;
    drop(whole);
    let mut tally = Tally::default();
    tally.add("calls", call_count);
    for at in 0..call_count {
        for (n, damage) in Damage::ALL.into_iter().map(Some).chain([None]).enumerate() {
            let failed = |error: String| {
                format!("death at call {at} of {call_count}, {damage:?}, seed {seed}: {error}")
            };
            let mut pair = Pair::parted(seed, alone_count)?;
            let first = pair.new.env.disk.io_count();
            pair.new.env.disk.crash_at(first + at);
            pair.promote().map_err(failed)?;
            let mut epoch = 0;
            let mut acked = 0;
            if !pair.new.env.disk.is_dead() && pair.is_promoted() {
                epoch = pair.new.dataset().stats().epoch;
                while acked < 3 && pair.new.write(acked, LATER).is_ok() {
                    acked += 1;
                }
                tally.add("deaths as the leader", 1);
            }
            pair.new.env.disk.crash_at(0);
            let seed = seed ^ (at << 16) ^ n as u64;
            let machine = &pair.new.env;
            let after = match damage {
                Some(damage) => machine.crash(seed, damage),
                None => SimEnv {
                    disk: machine.disk.fork(),
                    ..machine.clone()
                },
            };
            pair.promote_again(after, epoch, acked).map_err(failed)?;
            tally.add("recoveries", 1);
        }
    }
    Ok(tally)
}

impl Pair {
    /// The candidate's machine comes back with this on its disk; it led an epoch, where that is not 0,
    /// and acknowledged so many writes there.
    fn promote_again(&mut self, env: SimEnv, epoch: u32, acked: u64) -> Result<(), String> {
        self.network.detach("new");
        self.new = Place::open(env, NodeRole::Follower, &self.network, "new")?;
        self.promote()?;
        let dataset = self.new.dataset();
        let again = dataset.stats().epoch;
        if again <= epoch {
            return Err(format!("it leads epoch {again} after {epoch}"));
        }
        let map = dataset.keyspace("map").map_err(|e| e.to_string())?;
        for number in 0..6_u64 {
            let found = map.get(number.to_be_bytes()).map_err(|e| e.to_string())?;
            let found = found.as_deref();
            let is_later = found == Some(LATER);
            let was_lost = number < acked && !is_later;
            if was_lost || !is_later && found != Some(b"written together") {
                return Err(format!("record {number} of {acked} is {found:?}"));
            }
        }
        self.write_on()?;
        self.network.heal();
        self.rejoin()
    }
}
