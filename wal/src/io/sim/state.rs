//! All of a simulated disk at one moment: its nodes, what is pending, and what limits it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::env::Rng;
use super::file::{FileState, Watch};
use super::names::{Dir, NameOp};
use crate::io::LockMode;

/// A file or directory, whatever its names.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct NodeId(pub(super) u64);

impl NodeId {
    pub(super) const ROOT: NodeId = NodeId(0);
}

#[derive(Clone)]
pub(super) enum Node {
    File(FileState),
    Dir(Dir),
    /// Stands for a symlink, pipe or device.
    Other,
}

/// Longest file, as on Linux.
const FILE_LEN_MAX: u64 = i64::MAX as u64;

pub(super) struct State {
    pub(super) nodes: BTreeMap<NodeId, Arc<Node>>,
    /// Changes of names that no sync has made durable, oldest first.
    pub(super) pending: Vec<NameOp>,
    /// Counts the changes of the disk, so that they have one order.
    pub(super) stamp: u64,
    next_node: u64,
    /// Whether there may be nodes that nothing refers to.
    pub(super) garbage: bool,
    /// Handles that are open, by node.
    opened: BTreeMap<NodeId, u64>,
    locks: BTreeMap<NodeId, Vec<LockMode>>,
    watches: BTreeMap<NodeId, Vec<Watch>>,
    pub(super) rng: Rng,
    /// Whether files offer maps and images.
    pub(super) maps: bool,
    /// The bytes that all files together may hold.
    pub(super) capacity_len: Option<u64>,
    pub(super) io_count: u64,
    /// The call that finds the machine dead.
    pub(super) crash_at: Option<u64>,
    pub(super) dead: bool,
}

impl State {
    pub(super) fn new(seed: u64) -> State {
        let root = Arc::new(Node::Dir(Dir::default()));
        State {
            nodes: BTreeMap::from([(NodeId::ROOT, root)]),
            pending: Vec::new(),
            stamp: 0,
            next_node: 1,
            garbage: false,
            opened: BTreeMap::new(),
            locks: BTreeMap::new(),
            watches: BTreeMap::new(),
            rng: Rng::new(seed),
            maps: true,
            capacity_len: None,
            io_count: 0,
            crash_at: None,
            dead: false,
        }
    }

    /// The same disk under a machine that has just started: no handle, no lock, no image.
    pub(super) fn restarted(&mut self) -> State {
        self.absorb_all();
        let mut state = State {
            nodes: self.nodes.clone(),
            pending: self.pending.clone(),
            rng: self.rng.clone(),
            garbage: true,
            ..State::new(0)
        };
        state.continue_from(self);
        state.collect();
        state
    }

    /// Takes over what belongs to the disk and not to one moment of it.
    pub(super) fn continue_from(&mut self, before: &State) {
        self.stamp = before.stamp;
        self.next_node = before.next_node;
        self.maps = before.maps;
        self.capacity_len = before.capacity_len;
    }

    pub(super) fn node(&self, id: NodeId) -> &Node {
        self.nodes
            .get(&id)
            .expect("what is named or open is never collected")
    }

    pub(super) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        let node = self
            .nodes
            .get_mut(&id)
            .expect("what is named or open is never collected");
        Arc::make_mut(node)
    }

    pub(super) fn add(&mut self, node: Node) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, Arc::new(node));
        id
    }

    /// A file, with everything that was stored to its images taken up.
    pub(super) fn file(&mut self, id: NodeId) -> &FileState {
        self.absorb(id);
        match self.node(id) {
            Node::File(file) => file,
            _ => panic!("a node changed its kind"),
        }
    }

    pub(super) fn file_mut(&mut self, id: NodeId) -> &mut FileState {
        self.absorb(id);
        match self.node_mut(id) {
            Node::File(file) => file,
            _ => panic!("a node changed its kind"),
        }
    }

    pub(super) fn create(&mut self, path: &Path) -> io::Result<NodeId> {
        let slot = self.slot(path)?;
        if self.find(&slot)?.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let node = self.add(Node::File(FileState::default()));
        self.assign("create", vec![(slot, Some(node))]);
        Ok(node)
    }

    /// The ordinary file at a path.
    pub(super) fn resolve_file(&self, path: &Path) -> io::Result<NodeId> {
        let node = self.resolve(path)?;
        let what = match self.node(node) {
            Node::File(_) => return Ok(node),
            Node::Dir(_) => "a directory",
            Node::Other => "a special file",
        };
        Err(io::Error::new(
            ErrorKind::InvalidInput,
            format!("not an ordinary file but {what}"),
        ))
    }

    /// Opens a file. What a failed sync left uncertain is read from the disk now.
    pub(super) fn open(&mut self, id: NodeId) {
        self.absorb(id);
        let mut rng = self.rng.clone();
        let State { nodes, watches, .. } = self;
        if let Some(node) = nodes.get_mut(&id)
            && let Node::File(file) = node.as_ref()
            && file.unsynced_count().0 > 0
            && let Node::File(file) = Arc::make_mut(node)
        {
            file.settle_lost(&mut rng);
            // An image from before still shows what was lost; it is not the file's any more.
            watches.remove(&id);
        }
        self.rng = rng;
        *self.opened.entry(id).or_default() += 1;
    }

    pub(super) fn close(&mut self, id: NodeId) {
        let count = self
            .opened
            .get_mut(&id)
            .expect("a handle is counted while it is open");
        *count -= 1;
        if *count == 0 {
            self.opened.remove(&id);
            if matches!(self.node(id), Node::File(file) if file.link_count == 0) {
                self.garbage = true;
                self.collect();
            }
        }
    }

    pub(super) fn write(&mut self, id: NodeId, buf: &[u8], at: u64) -> io::Result<usize> {
        let end = at
            .checked_add(buf.len() as u64)
            .filter(|end| *end <= FILE_LEN_MAX);
        let end = end.ok_or(ErrorKind::FileTooLarge)?;
        let len = self.file(id).current().len();
        let end = end.min(len.saturating_add(self.free_len()));
        if at >= end && !buf.is_empty() {
            return Err(ErrorKind::StorageFull.into());
        }
        let buf = &buf[..end.saturating_sub(at) as usize];
        self.stamp += 1;
        let stamp = self.stamp;
        if !buf.is_empty() {
            self.file_mut(id).write(stamp, buf, at);
        }
        Ok(buf.len())
    }

    pub(super) fn set_len(&mut self, id: NodeId, len: u64) -> io::Result<()> {
        if len > FILE_LEN_MAX {
            return Err(ErrorKind::FileTooLarge.into());
        }
        let before = self.file(id).current().len();
        if len.saturating_sub(before) > self.free_len() {
            return Err(ErrorKind::StorageFull.into());
        }
        self.stamp += 1;
        let stamp = self.stamp;
        self.file_mut(id).set_len(stamp, len);
        Ok(())
    }

    /// The bytes that the files hold, holes included: a file that is named or open counts whole.
    pub(super) fn used_len(&self) -> u64 {
        let held =
            |id: &NodeId, file: &FileState| file.link_count > 0 || self.opened.contains_key(id);
        let lens = self.nodes.iter().map(|(id, node)| match node.as_ref() {
            Node::File(file) if held(id, file) => file.current().len(),
            _ => 0,
        });
        lens.sum()
    }

    pub(super) fn free_len(&self) -> u64 {
        match self.capacity_len {
            Some(capacity_len) => capacity_len.saturating_sub(self.used_len()),
            None => u64::MAX,
        }
    }

    pub(super) fn lock(&mut self, id: NodeId, mode: LockMode) -> io::Result<()> {
        let holders = self.locks.entry(id).or_default();
        let against = match mode {
            LockMode::Exclusive => !holders.is_empty(),
            LockMode::Shared => holders.contains(&LockMode::Exclusive),
        };
        if against {
            return Err(ErrorKind::WouldBlock.into());
        }
        holders.push(mode);
        *self.opened.entry(id).or_default() += 1;
        Ok(())
    }

    pub(super) fn unlock(&mut self, id: NodeId, mode: LockMode) {
        let holders = self.locks.get_mut(&id).expect("a held lock has a holder");
        let index = holders.iter().position(|held| *held == mode);
        holders.remove(index.expect("a held lock has a holder"));
        if holders.is_empty() {
            self.locks.remove(&id);
        }
        self.close(id);
    }

    pub(super) fn watch(&mut self, id: NodeId, watch: Watch) {
        self.watches.entry(id).or_default().push(watch);
    }

    /// Takes up what was stored to the images of a file.
    fn absorb(&mut self, id: NodeId) {
        let State {
            nodes,
            watches,
            stamp,
            ..
        } = self;
        let Some(watching) = watches.get_mut(&id) else {
            return;
        };
        let node = nodes
            .get_mut(&id)
            .expect("a watched file is never collected");
        let Node::File(file) = Arc::make_mut(node) else {
            panic!("a node changed its kind")
        };
        watching.retain_mut(|watch| watch.absorb(file, stamp));
        if watching.is_empty() {
            watches.remove(&id);
        }
    }

    pub(super) fn absorb_all(&mut self) {
        let watched: Vec<NodeId> = self.watches.keys().copied().collect();
        watched.into_iter().for_each(|id| self.absorb(id));
    }

    /// Makes everything durable.
    pub(super) fn settle(&mut self) {
        self.absorb_all();
        for node in self.nodes.values_mut() {
            if matches!(node.as_ref(), Node::File(file) if !file.is_clean())
                && let Node::File(file) = Arc::make_mut(node)
            {
                file.settle();
            }
        }
        self.settle_names();
    }

    /// Drops the nodes that no name, durable or not, no pending operation and no handle refers to,
    /// and the operations on directories that are gone.
    pub(super) fn collect(&mut self) {
        if !std::mem::take(&mut self.garbage) {
            return;
        }
        let mut ops_on: BTreeMap<NodeId, Vec<&NameOp>> = BTreeMap::new();
        for op in &self.pending {
            op.sets
                .iter()
                .for_each(|((dir, _), _)| ops_on.entry(*dir).or_default().push(op));
        }
        let mut found = BTreeSet::new();
        let mut next = vec![NodeId::ROOT];
        next.extend(self.opened.keys().chain(self.watches.keys()));
        while let Some(id) = next.pop() {
            if !found.insert(id) {
                continue;
            }
            if let Node::Dir(dir) = self.node(id) {
                next.extend(dir.durable.values().chain(dir.current.values()));
            }
            for op in ops_on.get(&id).into_iter().flatten() {
                next.extend(op.sets.iter().map(|((dir, _), _)| *dir));
                next.extend(op.sets.iter().filter_map(|(_, node)| *node));
            }
        }
        self.nodes.retain(|id, _| found.contains(id));
        let is_found = |op: &NameOp| op.sets.iter().any(|((dir, _), _)| found.contains(dir));
        self.pending.retain(is_found);
    }

    /// Every node that has a name now, with its path, in the order of paths.
    pub(super) fn paths(&self) -> Vec<(PathBuf, NodeId)> {
        let mut paths = Vec::new();
        let mut next = vec![(PathBuf::from("/"), NodeId::ROOT)];
        while let Some((path, id)) = next.pop() {
            if let Node::Dir(dir) = self.node(id) {
                next.extend(dir.current.iter().map(|(name, id)| (path.join(name), *id)));
            }
            paths.push((path, id));
        }
        paths.sort();
        paths
    }
}
