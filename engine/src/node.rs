//! Who this node is: a random identity, and an incarnation that a wiped store does not share.
//!
//! Two slots ([`strandline_wal::slots`]) in a file named `NODE`.
//!
//! | Offset | Size | Field | Meaning |
//! |-------:|-----:|-------|---------|
//! | 0 | 16 | node | identity of the node |
//! | 16 | 16 | incarnation | of this store |

use std::path::Path;

use strandline_wal::io::Env;
use strandline_wal::slots::SlotFile;
use strandline_wal::{Error, Result};

use crate::files;

pub(crate) const MAGIC: [u8; 4] = *b"SDLN";
pub(crate) const SLOT_LEN: usize = 512;

/// Who a node is.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct NodeIdentity {
    /// Random, made when the database was created.
    pub node: [u8; 16],
    /// Random, made when this store was created: a wiped disk comes back as another.
    pub incarnation: [u8; 16],
}

impl NodeIdentity {
    /// Reads the identity, or makes one where there is none.
    ///
    /// # Errors
    /// The disk's; [`Error::Corrupt`] where both slots are damaged.
    pub fn open(env: &Env, root: &Path) -> Result<NodeIdentity> {
        let path = files::node(root);
        let (mut slots, loaded) = SlotFile::open(env.disk.as_ref(), &path, MAGIC, SLOT_LEN)?;
        if let Some(payload) = loaded.payload {
            return decode(&payload, &path);
        }
        let identity = NodeIdentity {
            node: env.random.next_id(),
            incarnation: env.random.next_id(),
        };
        slots.write(&[identity.node, identity.incarnation].concat(), true)?;
        Ok(identity)
    }

    /// Makes the node another incarnation of itself: what it promised or confirmed before is void.
    ///
    /// # Errors
    /// As [`NodeIdentity::open`].
    pub fn renew(env: &Env, root: &Path) -> Result<NodeIdentity> {
        let path = files::node(root);
        let identity = NodeIdentity {
            incarnation: env.random.next_id(),
            ..NodeIdentity::open(env, root)?
        };
        let (mut slots, _) = SlotFile::open(env.disk.as_ref(), &path, MAGIC, SLOT_LEN)?;
        slots.write(&[identity.node, identity.incarnation].concat(), true)?;
        Ok(identity)
    }

    /// Reads the identity without writing; all zeros where there is none.
    ///
    /// # Errors
    /// As [`NodeIdentity::open`].
    pub fn read(env: &Env, root: &Path) -> Result<NodeIdentity> {
        let path = files::node(root);
        let loaded = SlotFile::read(env.disk.as_ref(), &path, MAGIC, SLOT_LEN)?;
        match loaded.and_then(|loaded| loaded.payload) {
            Some(payload) => decode(&payload, &path),
            None => Ok(NodeIdentity::default()),
        }
    }
}

fn decode(payload: &[u8], path: &Path) -> Result<NodeIdentity> {
    let parts = payload.split_first_chunk::<16>();
    match parts.and_then(|(node, rest)| Some((*node, *rest.first_chunk::<16>()?, rest.len()))) {
        Some((node, incarnation, 16)) => Ok(NodeIdentity { node, incarnation }),
        _ => {
            let found = format!("{} bytes", payload.len());
            Err(Error::corrupt(path, 16, "node identity", "32 bytes", found))
        }
    }
}
