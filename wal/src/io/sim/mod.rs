//! A disk in memory that crashes: it makes every image that the crash model allows, from a seed.
//!
//! A [`SimDisk`] keeps for every file and name what is durable beside what is current. A test runs
//! an engine on it, optionally until the machine dies at the n-th call ([`SimDisk::crash_at`]), and
//! then asks for what a power loss would leave ([`SimDisk::crash`]): a new disk, on which recovery
//! must succeed. The old disk stays, so that one run is judged under many damages. Copies share
//! their pages; an image costs what was unsynced.
//!
//! It also simulates what happens to a file when its sync fails (see [`SimFile::fail_sync`]), and
//! disks that fill up. Equal calls and seeds give equal disks, as long as one thread makes them.

mod content;
mod crash;
mod disk;
mod env;
mod file;
mod names;
mod state;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

pub use crash::Damage;
pub use disk::SimFile;
pub use env::{SimClock, SimEnv, SimRandom};
use state::{Node, State};

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl SimDisk {
    /// An empty disk with maps and images and no limit. `seed` decides what happens on it without
    /// a crash: which sectors a failed sync loses.
    pub fn new(seed: u64) -> SimDisk {
        SimDisk::of(State::new(seed))
    }

    /// An empty disk whose files have neither maps nor images.
    pub fn pread(seed: u64) -> SimDisk {
        let mut state = State::new(seed);
        state.maps = false;
        SimDisk::of(state)
    }

    fn of(state: State) -> SimDisk {
        SimDisk(Arc::new(Mutex::new(state)))
    }

    /// What a crash of the machine at this moment leaves: an independent disk, alive, with no handle,
    /// lock or count. Equal seeds give equal disks.
    #[must_use]
    pub fn crash(&self, seed: u64, damage: Damage) -> SimDisk {
        SimDisk::of(crash::crash(&mut self.0.lock(), seed, damage))
    }

    /// An independent copy, alive, with no handle, lock or count, on which what is unsynced still is:
    /// what the death of the process alone leaves, or a branch of a test.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        SimDisk::of(self.0.lock().restarted())
    }

    /// How many calls were made. Every method of [`Disk`](crate::io::Disk) and
    /// [`File`](crate::io::File) is one; a dead machine does not count.
    pub fn io_count(&self) -> u64 {
        self.0.lock().io_count
    }

    /// Lets the machine die at the call that finds [`SimDisk::io_count`] at `io_count`: this one and
    /// all later ones do nothing and fail with [`SimDisk::DEAD`].
    pub fn crash_at(&self, io_count: u64) {
        self.0.lock().crash_at = Some(io_count);
    }

    /// Whether a call has found the machine dead.
    pub fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    /// The kind of the error of every call on a dead machine. Nothing else here has it.
    pub const DEAD: ErrorKind = ErrorKind::BrokenPipe;

    /// Limits the bytes of all files together, holes included. A file that no name and no handle has
    /// any more does not count.
    pub fn limit(&self, capacity_len: Option<u64>) {
        self.0.lock().capacity_len = capacity_len;
    }

    /// The bytes of all files together, as [`SimDisk::limit`] counts them.
    pub fn used_len(&self) -> u64 {
        let mut state = self.0.lock();
        state.absorb_all();
        state.used_len()
    }

    /// Makes everything durable, without a call: the start of a test.
    pub fn settle(&self) {
        self.0.lock().settle();
    }

    /// Lets bits rot: flips those of `mask` in the byte at `at`, durably and without a call.
    ///
    /// # Errors
    /// Where there is no such ordinary file, or the byte lies behind its end.
    pub fn rot(&self, path: &Path, at: u64, mask: u8) -> io::Result<()> {
        let mut state = self.0.lock();
        let id = state.resolve_file(path)?;
        state.file_mut(id).rot(at, mask)
    }

    /// Puts something at a path that is no ordinary file, as a symlink or a pipe.
    ///
    /// # Errors
    /// Where the path is taken or its directory absent.
    pub fn place_special(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let slot = state.slot(path)?;
        if state.find(&slot)?.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let node = state.add(Node::Other);
        state.assign("special", vec![(slot, Some(node))]);
        Ok(())
    }

    /// Lets the sync of a directory fail: the pending names stay pending, and later syncs pass them
    /// over until the directory is listed. The next sync says `Ok` and proves nothing.
    ///
    /// # Errors
    /// Where there is no such directory.
    pub fn fail_sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let dir = state.resolve(dir)?;
        state.dir(dir)?;
        state.fail_sync_dir(dir);
        Ok(())
    }

    /// Every file as a reader sees it now.
    pub fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let mut state = self.0.lock();
        state.absorb_all();
        let bytes = |(path, id)| match state.node(id) {
            Node::File(file) => Some((path, file.current().to_vec(file.current().len() as usize))),
            _ => None,
        };
        state.paths().into_iter().filter_map(bytes).collect()
    }

    /// A text of what is on the disk, for the message of a failing seed.
    pub fn dump(&self) -> String {
        let mut state = self.0.lock();
        state.absorb_all();
        let mut text = String::new();
        let written = dump(&state, &mut text);
        written.expect("writing to a string does not fail");
        text
    }

    /// Starts a call: counts it, or fails where the machine is dead.
    fn call(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.0.lock();
        if state.dead || state.crash_at.is_some_and(|at| state.io_count >= at) {
            state.dead = true;
            return Err(io::Error::new(
                SimDisk::DEAD,
                "the simulated machine is dead",
            ));
        }
        state.io_count += 1;
        Ok(state)
    }
}

fn dump(state: &State, text: &mut String) -> fmt::Result {
    for (path, id) in state.paths() {
        let path = path.display();
        match state.node(id) {
            Node::Dir(dir) => writeln!(
                text,
                "{path}: directory, {} names, {} durable",
                dir.current.len(),
                dir.durable.len()
            )?,
            Node::Other => writeln!(text, "{path}: special")?,
            Node::File(file) => {
                let (lost, dirty) = file.unsynced_count();
                writeln!(
                    text,
                    "{path}: node {}, len {}, durable len {}, {dirty} changes unsynced, {lost} lost, {} names",
                    id.0,
                    file.current().len(),
                    file.durable_len(),
                    file.link_count
                )?;
            }
        }
    }
    for op in &state.pending {
        write!(text, "pending {}:", op.verb)?;
        for ((dir, name), node) in &op.sets {
            let node = node.map_or("nothing".to_owned(), |node| format!("node {}", node.0));
            write!(text, " {} in {} is {node};", name.display(), dir.0)?;
        }
        writeln!(text)?;
    }
    Ok(())
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.dump())
    }
}
