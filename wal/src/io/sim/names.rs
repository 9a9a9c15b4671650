//! The directories of the simulated disk: which names are there, and which would survive a crash.
//!
//! Every change of names is an *operation*: one or two assignments of a file to a (directory, name),
//! taken together or not at all. Operations are pending until their directory is synced. Any of
//! them may survive a crash before, with one rule: an operation needs the earlier pending ones that
//! assigned the same name, as a directory entry cannot be overwritten before it is written. So no
//! order of losses makes a renamed file lose both names.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, ErrorKind};
use std::path::{Component, Path};
use std::sync::Arc;

use super::state::{Node, NodeId, State};

/// A place for a name.
type Slot = (NodeId, OsString);

/// The names of one directory.
pub(super) type Names = BTreeMap<OsString, NodeId>;

/// A directory.
#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) durable: Names,
    pub(super) current: Names,
}

/// One pending change of names. All of `sets` survives, or none.
#[derive(Clone)]
pub(super) struct NameOp {
    /// When it was made, in changes of the whole disk.
    pub(super) stamp: u64,
    pub(super) verb: &'static str,
    pub(super) sets: Vec<(Slot, Option<NodeId>)>,
    /// A sync of its directory failed: later ones pass it over until the directory is listed.
    stuck: bool,
}

impl NameOp {
    fn touches(&self, dir: NodeId) -> bool {
        self.sets.iter().any(|((d, _), _)| *d == dir)
    }

    fn needs_any(&self, slots: &BTreeSet<Slot>) -> bool {
        self.sets.iter().any(|(slot, _)| slots.contains(slot))
    }

    fn slots(&self) -> impl Iterator<Item = Slot> {
        self.sets.iter().map(|(slot, _)| slot.clone())
    }
}

/// Which operations happen where each one that is wanted needs those before it on the same names.
pub(super) fn surviving(
    ops: &[NameOp],
    mut wanted: impl FnMut(usize, &NameOp) -> bool,
) -> Vec<&NameOp> {
    let mut undone = BTreeSet::new();
    let mut happened = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        if wanted(index, op) && !op.needs_any(&undone) {
            happened.push(op);
        } else {
            undone.extend(op.slots());
        }
    }
    happened
}

/// The names in a path. `..` is refused: nothing above this module makes such paths.
fn names_of(path: &Path) -> io::Result<Vec<&OsStr>> {
    if path.as_os_str().is_empty() {
        return Err(ErrorKind::NotFound.into());
    }
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(names)
}

impl State {
    pub(super) fn dir(&self, id: NodeId) -> io::Result<&Dir> {
        match self.node(id) {
            Node::Dir(dir) => Ok(dir),
            _ => Err(ErrorKind::NotADirectory.into()),
        }
    }

    fn dir_mut(&mut self, id: NodeId) -> &mut Dir {
        match self.node_mut(id) {
            Node::Dir(dir) => dir,
            _ => panic!("a node changed its kind"),
        }
    }

    /// What is at a path.
    pub(super) fn resolve(&self, path: &Path) -> io::Result<NodeId> {
        self.walk(&names_of(path)?)
    }

    fn walk(&self, names: &[&OsStr]) -> io::Result<NodeId> {
        let mut at = NodeId::ROOT;
        for name in names {
            at = *self
                .dir(at)?
                .current
                .get(*name)
                .ok_or(ErrorKind::NotFound)?;
        }
        Ok(at)
    }

    /// The directory and the name that a path ends in.
    pub(super) fn slot(&self, path: &Path) -> io::Result<Slot> {
        let names = names_of(path)?;
        let (name, parents) = names.split_last().ok_or(ErrorKind::InvalidInput)?;
        let dir = self.walk(parents)?;
        self.dir(dir)?;
        Ok((dir, (*name).to_owned()))
    }

    /// The file in a slot, if any.
    pub(super) fn find(&self, slot: &Slot) -> io::Result<Option<NodeId>> {
        Ok(self.dir(slot.0)?.current.get(&slot.1).copied())
    }

    /// Does an operation, and remembers it until its directory is synced.
    pub(super) fn assign(&mut self, verb: &'static str, sets: Vec<(Slot, Option<NodeId>)>) {
        for ((dir, name), node) in &sets {
            let names = &mut self.dir_mut(*dir).current;
            let before = match node {
                Some(node) => names.insert(name.clone(), *node),
                None => names.remove(name),
            };
            if let Some(before) = before {
                self.change_link_count(before, -1);
                self.garbage = true;
            }
            if let Some(node) = node {
                self.change_link_count(*node, 1);
            }
        }
        self.stamp += 1;
        let stamp = self.stamp;
        self.pending.push(NameOp {
            stamp,
            verb,
            sets,
            stuck: false,
        });
    }

    fn change_link_count(&mut self, id: NodeId, by: i64) {
        if let Node::File(file) = self.node_mut(id) {
            let count = file.link_count.checked_add_signed(by);
            file.link_count = count.expect("every name was counted when it was made");
        }
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (self.slot(from)?, self.slot(to)?);
        let node = self.find(&from)?.ok_or(ErrorKind::NotFound)?;
        if let Some(target) = self.find(&to)? {
            match (self.node(node), self.node(target)) {
                // POSIX: two names of one file stay both.
                _ if node == target => return Ok(()),
                (Node::Dir(_), Node::Dir(dir)) if !dir.current.is_empty() => {
                    return Err(ErrorKind::DirectoryNotEmpty.into());
                }
                (Node::Dir(_), Node::Dir(_)) => {}
                (Node::Dir(_), _) => return Err(ErrorKind::NotADirectory.into()),
                (_, Node::Dir(_)) => return Err(ErrorKind::IsADirectory.into()),
                _ => {}
            }
        }
        if self.is_below(to.0, node) {
            return Err(ErrorKind::InvalidInput.into());
        }
        self.assign("rename", vec![(from, None), (to, Some(node))]);
        Ok(())
    }

    /// Whether `dir` is `top` or lies below it.
    fn is_below(&self, dir: NodeId, top: NodeId) -> bool {
        let Node::Dir(names) = self.node(top) else {
            return false;
        };
        dir == top
            || names
                .current
                .values()
                .any(|child| self.is_below(dir, *child))
    }

    pub(super) fn link(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = self.resolve(from)?;
        let to = self.slot(to)?;
        if self.find(&to)?.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if matches!(self.node(node), Node::Dir(_)) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        self.assign("link", vec![(to, Some(node))]);
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let slot = self.slot(path)?;
        let node = self.find(&slot)?.ok_or(ErrorKind::NotFound)?;
        if matches!(self.node(node), Node::Dir(_)) {
            return Err(ErrorKind::IsADirectory.into());
        }
        self.assign("remove", vec![(slot, None)]);
        Ok(())
    }

    pub(super) fn remove_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let slot = match self.slot(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            slot => slot?,
        };
        let Some(node) = self.find(&slot)? else {
            return Ok(());
        };
        self.dir(node)?;
        self.remove_below(node);
        self.assign("rmdir", vec![(slot, None)]);
        Ok(())
    }

    fn remove_below(&mut self, id: NodeId) {
        let Node::Dir(dir) = self.node(id) else {
            return;
        };
        for (name, child) in dir.current.clone() {
            self.remove_below(child);
            self.assign("remove", vec![((id, name), None)]);
        }
    }

    pub(super) fn create_dir_all(&mut self, path: &Path) -> io::Result<()> {
        let mut at = NodeId::ROOT;
        let names = names_of(path)?;
        for (index, name) in names.iter().enumerate() {
            let slot = (at, (*name).to_owned());
            at = match self.find(&slot)? {
                Some(node) if matches!(self.node(node), Node::Dir(_)) => node,
                Some(_) if index + 1 == names.len() => return Err(ErrorKind::AlreadyExists.into()),
                Some(_) => return Err(ErrorKind::NotADirectory.into()),
                None => {
                    let node = self.add(Node::Dir(Dir::default()));
                    self.assign("mkdir", vec![(slot, Some(node))]);
                    node
                }
            };
        }
        Ok(())
    }

    /// Makes the operations on a directory durable, with what they need.
    pub(super) fn sync_dir(&mut self, dir: NodeId) {
        let mut needed = BTreeSet::new();
        let able: BTreeSet<u64> = surviving(&self.pending, |_, op| !op.stuck)
            .iter()
            .map(|op| op.stamp)
            .collect();
        let mut done = BTreeSet::new();
        for op in self
            .pending
            .iter()
            .rev()
            .filter(|op| able.contains(&op.stamp))
        {
            if op.touches(dir) || op.needs_any(&needed) {
                needed.extend(op.slots());
                done.insert(op.stamp);
            }
        }
        for op in std::mem::take(&mut self.pending) {
            if !done.contains(&op.stamp) {
                self.pending.push(op);
                continue;
            }
            for ((dir, name), node) in op.sets {
                let names = &mut self.dir_mut(dir).durable;
                match node {
                    Some(node) => names.insert(name, node),
                    None => names.remove(&name),
                };
            }
        }
        self.collect();
    }

    /// A directory sync that fails: later ones pass over what it was to make durable.
    pub(super) fn fail_sync_dir(&mut self, dir: NodeId) {
        self.pending
            .iter_mut()
            .filter(|op| op.touches(dir))
            .for_each(|op| op.stuck = true);
    }

    /// Reading a directory again shows what a failed sync left, so that it can be relied on.
    pub(super) fn unstick(&mut self, dir: NodeId) {
        self.pending
            .iter_mut()
            .filter(|op| op.touches(dir))
            .for_each(|op| op.stuck = false);
    }

    /// Makes every name durable.
    pub(super) fn settle_names(&mut self) {
        self.pending.clear();
        for node in self.nodes.values_mut() {
            if let Node::Dir(_) = node.as_ref()
                && let Node::Dir(dir) = Arc::make_mut(node)
            {
                dir.durable = dir.current.clone();
            }
        }
        self.collect();
    }
}
