//! The epochs that a node knows of: the highest it opened itself and the highest it promised.
//!
//! Two slots ([`strandline_wal::slots`]) in a file named `epoch`, synced with every change.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | opened | highest epoch that this node opened as the writer |
//! | 4 | 4 | promised | messages of lower epochs are refused |
//! | 8 | 16 | promised_to | the node whose claim to that epoch was promised |
//! | 24 | 4 | claimed | the epoch that this node last wanted for itself; 0 once it gave that up |
//! | 28 | 1 | follows | 1 where the dataset follows another node's; it opens as a follower then. 2 where it also joins: it may lack what its leader had when it came, and does not vote |
//! | 29 | 1 | version | 1; 0 in files without `won`, which are read |
//! | 30 | 2 | led_count | number of epochs at the end, newest last |
//! | 32 | 4 | won | the last epoch that this node was promoted to, by promises, by a coordinator or by force; 0 for none |
//! | 36 | 4 | led | epochs that this node led itself, 4 bytes each, at most 100 |
//!
//! A claim that was won is not given up: others may have confirmed what was written under it, and a leader
//! of an earlier epoch has none of that. It ends with the promise of a later epoch, or by
//! [`EpochFile::yield_won`].

use std::path::{Path, PathBuf};

use strandline_wal::bug::planted;
use strandline_wal::io::Disk;
use strandline_wal::slots::{Loaded, SlotFile};
use strandline_wal::{Epoch, Error, Result};

pub(crate) const MAGIC: [u8; 4] = *b"SDLE";
pub(crate) const SLOT_LEN: usize = 512;
const LED_COUNT_MAX: usize = 100;
const VERSION: u8 = 1;

const _: () = assert!(36 + 4 * LED_COUNT_MAX + 20 <= SLOT_LEN);

/// The open file and what it says.
pub(crate) struct EpochFile {
    path: PathBuf,
    slots: Option<SlotFile>,
    state: Epochs,
}

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Epochs {
    pub opened: Epoch,
    pub promised: Epoch,
    /// Whose claim to it was promised.
    pub promised_to: [u8; 16],
    /// What this node wanted for itself.
    pub claimed: Epoch,
    /// What it was promoted to last.
    pub won: Epoch,
    /// Whether the dataset follows another node's.
    pub follows: bool,
    /// Whether it may lack what its leader had when it came.
    pub joins: bool,
    /// Newest last. Only the newest matter: older segments are flushed and gone.
    pub led: Vec<Epoch>,
}

impl EpochFile {
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<EpochFile> {
        let (slots, loaded) = SlotFile::open(disk, path, MAGIC, SLOT_LEN)?;
        Ok(EpochFile {
            path: path.to_owned(),
            slots: Some(slots),
            state: decode(Some(loaded), path)?,
        })
    }

    /// A new file in the place of one that is lost: a follower that takes nothing of an epoch below
    /// `seen`, and joins, because it may have promised more than it knows.
    pub fn renew(disk: &dyn Disk, path: &Path, seen: Epoch) -> Result<()> {
        let mut file = EpochFile::open(disk, path)?;
        file.store(Epochs {
            opened: seen,
            promised: seen,
            follows: true,
            joins: true,
            ..Epochs::default()
        })
    }

    /// What the file says, without opening it for writing.
    pub fn read(disk: &dyn Disk, path: &Path) -> Result<EpochFile> {
        let loaded = SlotFile::read(disk, path, MAGIC, SLOT_LEN)?;
        Ok(EpochFile {
            path: path.to_owned(),
            slots: None,
            state: decode(loaded, path)?,
        })
    }

    pub fn epochs(&self) -> &Epochs {
        &self.state
    }

    /// Opens an epoch as the writer: the one that this node was elected for, or the next one, higher
    /// than `seen` and than anything promised. Durable on return.
    pub fn open_next(&mut self, seen: Epoch, elected: Option<Epoch>) -> Result<Epoch> {
        let mut next = self.state.clone();
        let highest = match planted("epoch.same") {
            true => seen.max(Epoch(1)),
            false => next.opened.max(next.promised).max(next.claimed).max(seen),
        };
        next.opened = match elected {
            Some(epoch) if planted("epoch.elected") => epoch,
            Some(epoch) if epoch > seen && epoch > next.opened && epoch >= next.promised => epoch,
            _ => Epoch(highest.0.checked_add(1).ok_or_else(|| {
                // No log reaches it; a crafted file or a peer may have said so.
                let (expected, found) = ("an epoch with one above it", highest.to_string());
                Error::corrupt(&self.path, 16, "highest epoch", expected, found)
            })?),
        };
        next.claimed = next.claimed.max(next.opened);
        if elected.is_some() {
            next.won = next.opened;
        }
        (next.follows, next.joins) = (false, false);
        next.led.push(next.opened);
        if next.led.len() > LED_COUNT_MAX {
            next.led.remove(0);
        }
        let opened = next.opened;
        self.store(next)?;
        Ok(opened)
    }

    /// Promises to take nothing of an epoch below this one, nor of this one from another node;
    /// durable on return. A promise to `node`, which is this one, is a claim.
    pub fn promise(&mut self, epoch: Epoch, to: [u8; 16], node: [u8; 16]) -> Result<()> {
        let mut next = self.state.clone();
        if to == node {
            next.claimed = next.claimed.max(epoch);
        } else if epoch >= next.promised || planted("epoch.promise") {
            (next.promised, next.promised_to) = (epoch, to);
        }
        self.store(next)
    }

    /// The promise that binds this node: to another, or its own claim where that is higher.
    pub fn binding(&self, node: [u8; 16]) -> (Epoch, [u8; 16]) {
        match self.state.claimed > self.state.promised && !planted("epoch.binding") {
            true => (self.state.claimed, node),
            false => (self.state.promised, self.state.promised_to),
        }
    }

    /// Notes that the dataset follows another node's; durable on return. A claim of this node's own
    /// is given up by it, down to what it won: only that and promises to others bind.
    pub fn follow(&mut self) -> Result<()> {
        let won = match planted("epoch.won") {
            true => Epoch(0),
            false => self.state.won,
        };
        self.store_new(Epochs {
            follows: true,
            claimed: won,
            ..self.state.clone()
        })
    }

    /// The epoch that this node won and that no later promise has ended.
    pub fn unyielded(&self) -> Option<Epoch> {
        let won = self.state.won;
        (won > self.state.promised).then_some(won)
    }

    /// Gives up the epoch that this node won, if it is `epoch`; `false` where it is not. Durable on return.
    pub fn yield_won(&mut self, epoch: Epoch) -> Result<bool> {
        if self.unyielded() != Some(epoch) && !planted("epoch.yield") {
            return Ok(false);
        }
        self.store(Epochs {
            won: Epoch(0),
            claimed: Epoch(0),
            ..self.state.clone()
        })?;
        Ok(true)
    }

    /// Forgets that this node led epochs that are in no log of it any more; durable on return. The
    /// number of one that was cut comes again, shipped by the node that led it, and what its batches
    /// say of a disk is said of that node's.
    pub fn forget_cut(&mut self, is_here: impl Fn(Epoch) -> bool) -> Result<()> {
        let mut next = self.state.clone();
        next.led.retain(|epoch| is_here(*epoch));
        self.store_new(next)
    }

    fn store_new(&mut self, next: Epochs) -> Result<()> {
        match next == self.state {
            true => Ok(()),
            false => self.store(next),
        }
    }

    /// Notes that the dataset begins to copy a history, or that it has all of it that its leader had when
    /// it came; durable on return.
    pub fn join(&mut self, joins: bool) -> Result<()> {
        if self.state.joins == joins {
            return Ok(());
        }
        self.store(Epochs {
            joins,
            follows: true,
            ..self.state.clone()
        })
    }

    fn store(&mut self, next: Epochs) -> Result<()> {
        let slots = self
            .slots
            .as_mut()
            .expect("a read-only store opens and promises nothing");
        let mut payload = Vec::new();
        payload.extend_from_slice(&next.opened.0.to_le_bytes());
        payload.extend_from_slice(&next.promised.0.to_le_bytes());
        payload.extend_from_slice(&next.promised_to);
        payload.extend_from_slice(&next.claimed.0.to_le_bytes());
        let follows = u8::from(next.follows || next.joins) + u8::from(next.joins);
        payload.extend_from_slice(&[follows, VERSION]);
        payload.extend_from_slice(&(next.led.len() as u16).to_le_bytes());
        payload.extend_from_slice(&next.won.0.to_le_bytes());
        for epoch in &next.led {
            payload.extend_from_slice(&epoch.0.to_le_bytes());
        }
        slots.write(&payload, true)?;
        self.state = next;
        Ok(())
    }
}

fn decode(loaded: Option<Loaded>, path: &Path) -> Result<Epochs> {
    let Some(payload) = loaded.and_then(|loaded| loaded.payload) else {
        return Ok(Epochs::default());
    };
    parse(&payload).ok_or_else(|| {
        let found = format!("{} bytes", payload.len());
        Error::corrupt(
            path,
            16,
            "epochs",
            "36 bytes and 4 for each epoch led",
            found,
        )
    })
}

fn parse(payload: &[u8]) -> Option<Epochs> {
    let (opened, rest) = payload.split_first_chunk()?;
    let (promised, rest) = rest.split_first_chunk()?;
    let (promised_to, rest) = rest.split_first_chunk()?;
    let (claimed, rest) = rest.split_first_chunk()?;
    let ([follows, version], rest) = rest.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let (won, rest) = match *version {
        0 => (&[0; 4], rest),
        VERSION => rest.split_first_chunk()?,
        _ => return None,
    };
    if rest.len() != 4 * usize::from(u16::from_le_bytes(*count)) {
        return None;
    }
    let led = rest.chunks_exact(4).filter_map(|c| c.first_chunk());
    Some(Epochs {
        opened: Epoch(u32::from_le_bytes(*opened)),
        promised: Epoch(u32::from_le_bytes(*promised)),
        promised_to: *promised_to,
        claimed: Epoch(u32::from_le_bytes(*claimed)),
        won: Epoch(u32::from_le_bytes(*won)),
        follows: *follows != 0,
        joins: *follows == 2,
        led: led.map(|c| Epoch(u32::from_le_bytes(*c))).collect(),
    })
}

#[cfg(test)]
mod tests;
