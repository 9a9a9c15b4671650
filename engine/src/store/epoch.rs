//! The epochs that a node knows of: the highest it opened itself and the highest it promised.
//!
//! Two slots ([`strandline_wal::slots`]) in a file named `epoch`, synced with every change.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 4 | opened | highest epoch that this node opened as the writer |
//! | 4 | 4 | promised | messages of lower epochs are refused |
//! | 8 | 2 | led_count | number of epochs that follow, newest last |
//! | 10 | 2 | reserved | 0 |
//! | 12 | 4 | led | epochs that this node led itself, 4 bytes each, at most 100 |

use std::path::Path;

use strandline_wal::io::Disk;
use strandline_wal::slots::{Loaded, SlotFile};
use strandline_wal::{Epoch, Error, Result};

const MAGIC: [u8; 4] = *b"SDLE";
const SLOT_LEN: usize = 512;
const LED_COUNT_MAX: usize = 100;

const _: () = assert!(12 + 4 * LED_COUNT_MAX + 20 <= SLOT_LEN);

/// The open file and what it says.
pub(crate) struct EpochFile {
    slots: Option<SlotFile>,
    state: Epochs,
}

/// What the file says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Epochs {
    pub opened: Epoch,
    pub promised: Epoch,
    /// Newest last. Only the newest matter: older segments are flushed and gone.
    pub led: Vec<Epoch>,
}

impl EpochFile {
    pub fn open(disk: &dyn Disk, path: &Path) -> Result<EpochFile> {
        let (slots, loaded) = SlotFile::open(disk, path, MAGIC, SLOT_LEN)?;
        Ok(EpochFile {
            slots: Some(slots),
            state: decode(Some(loaded), path)?,
        })
    }

    /// What the file says, without opening it for writing.
    pub fn read(disk: &dyn Disk, path: &Path) -> Result<EpochFile> {
        let loaded = SlotFile::read(disk, path, MAGIC, SLOT_LEN)?;
        Ok(EpochFile {
            slots: None,
            state: decode(loaded, path)?,
        })
    }

    pub fn epochs(&self) -> &Epochs {
        &self.state
    }

    /// Opens the next epoch, higher than `seen` and than anything promised; durable on return.
    pub fn open_next(&mut self, seen: Epoch) -> Result<Epoch> {
        let highest = self.state.opened.max(self.state.promised).max(seen);
        let mut next = self.state.clone();
        next.opened = Epoch(
            highest
                .0
                .checked_add(1)
                .expect("epochs outlast the machine"),
        );
        next.promised = next.promised.max(next.opened);
        next.led.push(next.opened);
        if next.led.len() > LED_COUNT_MAX {
            next.led.remove(0);
        }
        let opened = next.opened;
        self.store(next)?;
        Ok(opened)
    }

    /// Promises to take nothing of an epoch below this one; durable on return.
    pub fn promise(&mut self, epoch: Epoch) -> Result<()> {
        if epoch <= self.state.promised {
            return Ok(());
        }
        self.store(Epochs {
            promised: epoch,
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
        payload.extend_from_slice(&(next.led.len() as u16).to_le_bytes());
        payload.extend_from_slice(&[0; 2]);
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
    let mut fields = payload
        .chunks(4)
        .map(|c| c.first_chunk().map(|c| u32::from_le_bytes(*c)));
    let mut next = || fields.next().flatten();
    let (opened, promised, count) = (next(), next(), next());
    let led: Vec<Epoch> = std::iter::from_fn(next).map(Epoch).collect();
    match (opened, promised, count) {
        (Some(opened), Some(promised), Some(count)) if count as usize == led.len() => Ok(Epochs {
            opened: Epoch(opened),
            promised: Epoch(promised),
            led,
        }),
        _ => {
            let found = format!("{} bytes", payload.len());
            Err(Error::corrupt(
                path,
                16,
                "epochs",
                "12 bytes and 4 for each epoch led",
                found,
            ))
        }
    }
}
