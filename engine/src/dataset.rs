//! A dataset: the unit of isolation and of replication, with its own logs, clock and failures.

use std::ops::Deref;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use strandline_wal::bug::planted;
use strandline_wal::unless;
use strandline_wal::{Epoch, Hlc};

use crate::database::Database;
use crate::error::{Error, Result};
use crate::keyspace::Keyspace;
use crate::options::Durability;
use crate::replica::Acks;
use crate::router::ShardRouter;
use crate::runtime::flush_all;
use crate::snapshot::Snapshot;
use crate::stats::DatasetStats;
use crate::store::batch::Changes;
use crate::store::read::Moment;
use crate::store::recover::Opening;
use crate::store::view::{Published, View};
use crate::store::write::Written;
use crate::store::{Arrivals, RecoveryReport, Role, Shared, Store};
use crate::ticket::{CommitTicket, Pending};
use crate::verify::{Problem, VerifyReport};

/// An open dataset. Clones are the same dataset.
#[derive(Clone)]
pub struct Dataset {
    inner: Arc<DatasetInner>,
    // Keeps the database open.
    database: Database,
}

pub(crate) struct DatasetInner {
    shared: Shared,
    /// Replaced when the dataset changes its role or its log is cut.
    store: RwLock<Arc<Store>>,
    /// The same, for whoever only writes; none while it is being replaced.
    newest: ArcSwapOption<Store>,
    /// Its view.
    published: Arc<Published>,
    pub acks: Acks,
}

/// How to open a dataset again.
pub(crate) struct Reopen {
    pub role: Role,
    /// Per shard, the last record that stays.
    pub forks: Option<Vec<u64>>,
    /// The epoch that this node was elected for.
    pub elected: Option<Epoch>,
}

impl Reopen {
    pub fn role(role: Role) -> Reopen {
        Reopen {
            role,
            forks: None,
            elected: None,
        }
    }
}

impl DatasetInner {
    pub fn new(store: Store, shared: Shared) -> DatasetInner {
        let acks = Acks::new(store.logs().len());
        let store = Arc::new(store);
        let published = Arc::default();
        store.newest().publish(&published);
        DatasetInner {
            shared,
            published,
            newest: ArcSwapOption::new(Some(Arc::clone(&store))),
            store: RwLock::new(store),
            acks,
        }
    }

    /// The store as it is now.
    pub fn store(&self) -> Arc<Store> {
        Arc::clone(&self.store.read())
    }

    /// As [`DatasetInner::store`]; `None` while it is being replaced or mended, which may take long.
    pub fn try_store(&self) -> Option<Arc<Store>> {
        self.store.try_read().map(|store| Arc::clone(&store))
    }

    /// Calls `work` with the store as it is now: takes no lock and writes to no memory that other
    /// threads look at. So does [`DatasetInner::with_view`].
    fn with_store<T>(&self, work: impl FnOnce(&Arc<Store>) -> T) -> T {
        match &*self.newest.load() {
            Some(store) => work(store),
            None => work(&self.store()),
        }
    }

    /// Calls `work` with the newest view.
    pub fn with_view<T>(&self, work: impl FnOnce(&Arc<View>) -> T) -> T {
        match &*self.published.load() {
            Some(view) => work(view),
            None => work(&self.store().view()),
        }
    }

    /// Calls `work` with a view and the newest committed state in it.
    ///
    /// The view is still the newest when the time is taken. Otherwise a follower of several shards, whose
    /// logs come side by side, might show what came into the old view and lack what is older and came into
    /// the new one.
    pub fn with_moment<T>(&self, work: impl FnOnce(&Arc<View>, Hlc) -> T) -> T {
        loop {
            let published = self.published.load();
            let closed;
            let view = match &*published {
                Some(view) => view,
                None => {
                    closed = self.store().view();
                    &closed
                }
            };
            let at = view.now();
            if !view.is_outdated() || planted("read.outdated") {
                return work(view, at);
            }
            std::thread::yield_now();
        }
    }

    /// What is committed now.
    pub fn now(&self) -> Moment {
        self.with_moment(|view, at| Moment {
            view: Arc::clone(view),
            at,
        })
    }

    /// Who is told of what a leader ships.
    pub fn arrivals(&self) -> &Arrivals {
        &self.shared.arrivals
    }

    /// Closes the store and opens it again in another role, or with its logs cut; `between` runs
    /// while nothing is open. Readers that hold the old one keep it.
    pub fn reopen(&self, how: Reopen, between: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut current = self.store.write();
        self.newest.store(None);
        current.newest().retract();
        let opened = self.open_again(&current, how, between);
        // Before anybody writes: what was confirmed of the old logs is not confirmed of these.
        let over = opened
            .as_ref()
            .ok()
            .map(|store| self.acks.reset(store.logs().len()));
        let opened = opened.map(|store| *current = Arc::new(store));
        self.newest.store(Some(Arc::clone(&current)));
        current.newest().publish(&self.published);
        drop(current);
        if let Some(over) = over {
            over.tell();
        }
        self.shared.arrived();
        opened
    }

    fn open_again(
        &self,
        current: &Store,
        how: Reopen,
        between: impl FnOnce() -> Result<()>,
    ) -> Result<Store> {
        current.close(false)?;
        between()?;
        let (id, dir) = (current.id().clone(), current.dir().to_owned());
        let Reopen {
            role,
            forks,
            elected,
        } = how;
        let opening = Opening {
            shared: self.shared.clone(),
            id,
            dir: &dir,
            role,
            forks,
            elected,
        };
        self.shared.with_reserve(|| opening.clone().run())
    }

    /// Does something while nothing is open, and opens again in the same role.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> Result<T> {
        let role = self.store().role();
        let mut done = None;
        self.reopen(Reopen::role(role), || {
            done = Some(work());
            Ok(())
        })?;
        Ok(done.expect("it was done"))
    }

    pub fn close(&self) -> Result<()> {
        self.store.read().close(true)
    }

    /// Makes the next open quick, before a close: takes no more writes, and flushes where it is worth it.
    /// What cannot be flushed is in the log.
    ///
    /// # Errors
    /// What the store met that ended all writing, now or before.
    pub fn flush_for_open(&self) -> Result<()> {
        let store = self.store();
        let len: u64 = store.view().memtables().map(|level| level.log_len()).sum();
        if store.role() == Role::Reader {
            return Ok(());
        }
        store.refuse_writes();
        store.check_health()?;
        if len >= FLUSH_LEN_MIN {
            flush_all(&store);
        }
        store.check_health()
    }

    /// Writes a batch and waits for its level.
    pub fn write(&self, changes: Changes, level: Durability) -> Result<Written> {
        self.with_store(|store| {
            let written = store.write(changes, level)?;
            if level.follower_count() > 0 {
                self.acks.wait(&Pending::new(store, &written, level))?;
            }
            Ok(written)
        })
    }

    /// Writes a batch, and says what it waits for.
    pub fn submit(&self, changes: Changes, level: Durability) -> Result<Pending> {
        self.with_store(|store| {
            let written = store.submit(changes, level)?;
            store.wait_published(written.timestamp);
            Ok(Pending::new(store, &written, level))
        })
    }
}

impl Dataset {
    pub(crate) fn new(inner: Arc<DatasetInner>, database: Database) -> Dataset {
        Dataset { inner, database }
    }

    pub(crate) fn inner(&self) -> &Arc<DatasetInner> {
        &self.inner
    }

    /// The database that it belongs to.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.inner.store().id().to_string()
    }

    /// Whether it leads, follows, or reads what another process writes.
    pub fn role(&self) -> Role {
        self.inner.store().role()
    }

    /// A keyspace, opened or created.
    ///
    /// # Errors
    /// [`Error::Argument`] for a name that is empty or too long; [`Error::NotFound`] where this node
    /// does not write and the keyspace is not there yet.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        let number = self.inner.store().keyspace(name)?;
        Ok(Keyspace::new(self.clone(), number, name))
    }

    /// The keyspaces that are there, by name.
    pub fn keyspaces(&self) -> Vec<Keyspace> {
        let list = self.inner.store().catalog().list();
        list.iter()
            .map(|(number, name)| Keyspace::new(self.clone(), *number, name))
            .collect()
    }

    /// An empty write batch.
    pub fn batch(&self) -> WriteBatch {
        let store = self.inner.store();
        let router = store.options().router.clone();
        WriteBatch {
            dataset: self.clone(),
            router,
            changes: Changes::default(),
        }
    }

    /// The dataset as it is now: all reads through it see the same committed state, across keyspaces
    /// and shards. It holds the files of that state until it is dropped.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.clone(), self.inner.now())
    }

    /// Writes everything that is only in memory and the log into tables.
    ///
    /// # Errors
    /// The disk's; nothing is lost by a failed flush.
    pub fn flush(&self) -> Result<()> {
        self.inner.store().flush()
    }

    /// Merges all tables into one sorted run, and moves live values out of mostly dead segments.
    ///
    /// # Errors
    /// The disk's, or damage in a table.
    pub fn compact(&self) -> Result<()> {
        self.inner.store().compact()
    }

    /// Makes everything written so far durable, whatever level it was written at.
    ///
    /// # Errors
    /// The disk's; after a failed sync the dataset takes no more writes until it is reopened.
    pub fn sync(&self) -> Result<()> {
        unless!("dataset.sync", self.inner.store().sync())
    }

    /// Identity of its history, shared by all copies; zeros on a follower that never met its leader.
    pub fn lineage(&self) -> [u8; 16] {
        self.inner.store().lineage()
    }

    /// Whether it still takes work.
    ///
    /// # Errors
    /// Why not: a failure that only a reopen mends, another leader, or that it was closed.
    pub fn health(&self) -> Result<()> {
        self.inner.store().check_health()
    }

    /// Reads everything that is stored of it once, in this thread, and tells what is damaged. A growing
    /// segment is left out: recovery judges that.
    pub fn scrub(&self) -> VerifyReport {
        self.inner.store().scrub(&mut |_| {}, &|| true)
    }

    /// What the last scrub found, this process's or the background's.
    pub fn damage(&self) -> Vec<Problem> {
        self.inner.store().damage().lock().clone()
    }

    /// What it holds and has done.
    pub fn stats(&self) -> DatasetStats {
        DatasetStats::of(&self.inner.store())
    }

    /// What opening it found and did.
    pub fn recovery(&self) -> RecoveryReport {
        self.inner.store().report().clone()
    }
}

/// Changes that happen all or not at all, across keyspaces and shards of one dataset.
///
/// Of several changes of one key in a batch the last one counts.
pub struct WriteBatch {
    dataset: Dataset,
    router: ShardRouter,
    changes: Changes,
}

impl WriteBatch {
    /// Sets the value of a key.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a key over 65,535 bytes, a value over 64 MiB or a batch over 256 MiB;
    /// [`Error::Argument`] for a keyspace of another dataset. The batch is unchanged then.
    pub fn put(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<&mut WriteBatch> {
        self.check(keyspace)?;
        let rule = self.dataset.database.options().entity_rule;
        let (key, value) = (key.as_ref(), value.as_ref());
        self.changes
            .put((&self.router, rule), keyspace.number(), key, value)?;
        Ok(self)
    }

    /// Removes a key, whether it is there or not.
    ///
    /// # Errors
    /// As [`WriteBatch::put`].
    pub fn delete(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
    ) -> Result<&mut WriteBatch> {
        self.check(keyspace)?;
        let rule = self.dataset.database.options().entity_rule;
        self.changes
            .delete((&self.router, rule), keyspace.number(), key.as_ref())?;
        Ok(self)
    }

    fn check(&self, keyspace: &Keyspace) -> Result<()> {
        if Arc::ptr_eq(keyspace.dataset().inner(), &self.dataset.inner) {
            return Ok(());
        }
        Err(Error::Argument {
            what: "keyspace",
            expected: format!("one of dataset {}", self.dataset.name()),
            found: format!(
                "{} of dataset {}",
                keyspace.name(),
                keyspace.dataset().name()
            ),
        })
    }

    /// Number of changes.
    pub fn len(&self) -> usize {
        self.changes.record_count() as usize
    }

    /// Whether there is no change.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Bytes that the batch will take in the log, about.
    pub fn log_len(&self) -> usize {
        self.changes.len()
    }

    /// Writes the batch at the database's level. An empty one does nothing.
    ///
    /// # Errors
    /// As [`WriteBatch::commit_with`].
    pub fn commit(self) -> Result<()> {
        let level = self.dataset.database.options().durability;
        self.commit_with(level)
    }

    /// Writes the batch and returns once it has reached `level`.
    ///
    /// # Errors
    /// [`Error::ReadOnly`] on a follower; the log's: where the kind is
    /// [`Unknown`](crate::ErrorKind::Unknown), only the next open tells whether the batch is there.
    pub fn commit_with(self, level: Durability) -> Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        self.dataset.inner.write(self.changes, level).map(|_| ())
    }

    /// Writes the batch and does not wait: the ticket is a future that ends once it has reached `level`, so
    /// one thread may have many under way. Batches take effect in the order of these calls; none is
    /// seen before it has reached the part of its level that concerns this node.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty batch; as [`WriteBatch::commit_with`], where nothing was written.
    pub fn submit_with(self, level: Durability) -> Result<CommitTicket> {
        if self.changes.is_empty() {
            return Err(Error::Argument {
                what: "batch",
                expected: "one with a change".to_owned(),
                found: "an empty one".to_owned(),
            });
        }
        let (inner, tickets) = (&self.dataset.inner, self.dataset.database.tickets());
        let pending = inner.submit(self.changes, level)?;
        Ok(CommitTicket::submit(tickets, inner, pending))
    }

    /// As [`WriteBatch::submit_with`], at the database's level.
    ///
    /// # Errors
    /// As [`WriteBatch::submit_with`].
    pub fn submit(self) -> Result<CommitTicket> {
        let level = self.dataset.database.options().durability;
        self.submit_with(level)
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dataset({})", self.inner.store.read().deref().id())
    }
}

/// Bytes of log that an open applies in a few milliseconds.
const FLUSH_LEN_MIN: u64 = 1 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use strandline_wal::io::sim::SimEnv;

    use super::*;
    use crate::options::{Background, Options};

    /// A follower of several shards seals a memtable, and then an older batch comes and is committed, while
    /// a reader has the view and not yet the time.
    #[test]
    fn a_moment_is_of_the_newest_view() {
        let options = Options {
            background: Background::Manual,
            ..Options::default()
        };
        let db = options.open_with("/db", SimEnv::new(1).env()).unwrap();
        let map = db.keyspace("map").unwrap();
        map.put("key", "value").unwrap();
        let dataset = db.dataset("").unwrap();
        let inner = dataset.inner();
        let old = inner.store().view();
        db.flush().unwrap();
        let new = inner.store().view();
        assert!(old.is_outdated() && !new.is_outdated());
        // As a reader finds it between the seal and its end.
        inner.published.store(Some(old));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| inner.now());
            std::thread::sleep(std::time::Duration::from_millis(50));
            inner.published.store(Some(Arc::clone(&new)));
            assert!(Arc::ptr_eq(&reader.join().unwrap().view, &new));
        });
    }
}
