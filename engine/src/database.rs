//! A database: a directory, its lock, its datasets and their background work.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use strandline_wal::bug::planted;
use strandline_wal::io::{Env, FileKind, Lock, LockMode};
use strandline_wal::pool::Pool;
use strandline_wal::reserve::Reserve;
use strandline_wal::unless;
use strandline_wal::{DatasetId, IoContext};

use crate::dataset::{Dataset, DatasetInner, Reopen};
use crate::error::{Error, Result};
use crate::event::What;
use crate::files;
use crate::keyspace::Keyspace;
use crate::node::NodeIdentity;
use crate::options::{Background, Options};
use crate::repair::{self, Fetched, RepairReport, repair_from_by};
use crate::replica::Hub;
use crate::replica::bundle::finish_installs;
use crate::runtime::{Runtime, Signal, Stores, compact_step, flush_step};
use crate::scrub::Scrubber;
use crate::stats::DatabaseStats;
use crate::store::recover::Opening;
use crate::store::{Role, Shared};
use crate::table::BlockCache;
use crate::ticket::Tickets;

/// An open database. Clones are the same database; the last one dropped closes it.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    root: PathBuf,
    shared: Shared,
    read_only: bool,
    datasets: Arc<Mutex<BTreeMap<DatasetId, Arc<DatasetInner>>>>,
    runtime: Runtime,
    scrubber: Mutex<Option<Scrubber>>,
    heals: Mutex<Heals>,
    hub: Mutex<Option<Arc<Hub>>>,
    tickets: Arc<Tickets>,
    closed: AtomicBool,
    // Released last.
    lock: Mutex<Option<Box<dyn Lock>>>,
}

/// What the database mended by itself.
#[derive(Default)]
struct Heals {
    count: u64,
    last: Option<Result<RepairReport>>,
}

impl Options {
    /// Opens a database with these settings.
    ///
    /// # Errors
    /// As [`Database::open`]; [`Error::Argument`] for a setting out of its range.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Database> {
        self.open_with(path, Env::real())
    }

    /// Opens a database on another disk, clock and randomness than the machine's.
    ///
    /// # Errors
    /// As [`Options::open`].
    pub fn open_with(self, path: impl AsRef<Path>, env: Env) -> Result<Database> {
        Database::open_env(path.as_ref(), self, env, false)
    }

    /// Opens a database for reading beside the process that writes it. It shows what was written when
    /// it was opened.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_read_only(self, path: impl AsRef<Path>) -> Result<Database> {
        // Maps of files that another process cuts would be no files any more; reads are.
        Database::open_env(path.as_ref(), self, Env::real_pread(), true)
    }

    /// As [`Options::open_read_only`], on another disk.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_read_only_with(self, path: impl AsRef<Path>, env: Env) -> Result<Database> {
        Database::open_env(path.as_ref(), self, env, true)
    }
}

impl Database {
    /// Opens the database in a directory, or creates it, with default settings: every acknowledged
    /// write is synced to the disk.
    ///
    /// # Errors
    /// [`Error::Locked`] where another process has it open; [`Error::Mismatch`] where it was created
    /// with other settings; the log's where files are damaged or missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Database> {
        Options::default().open(path)
    }

    /// Opens a database for reading beside the process that writes it.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Database> {
        Options::default().open_read_only(path)
    }

    /// A database in memory: nothing survives it.
    ///
    /// # Errors
    /// [`Error::Argument`] for a setting out of its range.
    pub fn in_memory(options: Options) -> Result<Database> {
        let machine = Env::real();
        let disk = strandline_wal::io::sim::SimDisk::new(machine.random.next_u64());
        // There is no disk that could be full.
        let options = Options {
            reserve_len_max: 0,
            ..options
        };
        options.open_with(
            "/memory",
            Env {
                disk: Arc::new(disk),
                ..machine
            },
        )
    }

    fn open_env(root: &Path, options: Options, env: Env, read_only: bool) -> Result<Database> {
        options.check()?;
        let peers = options.heal_from.clone();
        match Database::open_once(root, options.clone(), env.clone(), read_only) {
            Err(error) if error.is_corruption() && !read_only && !peers.is_empty() => {
                let unhealed = |why| Error::NotHealed {
                    damage: Box::new(error),
                    why: Box::new(why),
                };
                let report =
                    repair_from_by(root, &peers, &options.links, &env).map_err(unhealed)?;
                let database = Database::open_once(root, options, env, read_only)?;
                database.note_heal("", Ok(report));
                Ok(database)
            }
            opened => opened,
        }
    }

    fn open_once(root: &Path, options: Options, env: Env, read_only: bool) -> Result<Database> {
        if !read_only && options.create {
            create_root(&env, root)?;
        }
        let lock = lock(&env, root, read_only)?;
        if !read_only {
            // Readers share a lock on this file and cannot make it where they may not write: on a
            // read-only mount, or in a backup.
            let path = files::readers(root);
            env.disk
                .lock(&path, LockMode::Shared)
                .during("lock", &path)?;
        }
        let node = match read_only {
            true => NodeIdentity::read(&env, root)?,
            false => NodeIdentity::open(&env, root)?,
        };
        if !read_only {
            finish_installs(&env, root)?;
        }
        let reserve = match read_only {
            true => Reserve::none(env.clone()),
            false => Reserve::open(env.clone(), files::reserve(root), options.reserve_len_max)?,
        };
        let signal = Arc::new(Signal::default());
        let (ring, ring_too) = (Arc::clone(&signal), Arc::clone(&signal));
        let pool = Pool::new(env.clone(), has_readers(&env, root)).waking(move || ring_too.ring());
        let shared = Shared {
            pool: Arc::new(pool),
            cache: Arc::new(BlockCache::new(options.cache_len_max)),
            reserve: Arc::new(reserve),
            options: Arc::new(options),
            wake: Arc::new(move || ring.ring()),
            node,
            hook: Arc::default(),
            arrivals: Arc::default(),
            events: Arc::default(),
            env,
        };
        let datasets: Arc<Mutex<BTreeMap<DatasetId, Arc<DatasetInner>>>> = Arc::default();
        let open = Arc::clone(&datasets);
        let stores: Stores = Arc::new(move || {
            open.lock()
                .values()
                .map(|dataset| dataset.store())
                .collect()
        });
        let runtime = match shared.options.background {
            Background::Thread if !read_only => {
                Runtime::start(signal, &stores).during("start threads for", root)?
            }
            Background::Thread | Background::Manual => Runtime::manual(signal),
        };
        let inner = Inner {
            root: root.to_owned(),
            shared,
            read_only,
            datasets,
            runtime,
            scrubber: Mutex::default(),
            heals: Mutex::default(),
            hub: Mutex::default(),
            tickets: Arc::default(),
            closed: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
        };
        let database = Database {
            inner: Arc::new(inner),
        };
        // Every dataset that is there is opened: damage shows now, not at its first use.
        for name in database.stored_datasets()? {
            database.open_dataset(name, None)?;
        }
        let inner = &database.inner;
        let options = database.options();
        if options.scrub_rate > 0 && options.background == Background::Thread && !read_only {
            let scrubber = Scrubber::start(Arc::downgrade(inner), options.scrub_rate);
            *inner.scrubber.lock() = Some(scrubber.during("start threads for", root)?);
        }
        Ok(database)
    }

    /// The datasets that the directory holds.
    fn stored_datasets(&self) -> Result<Vec<DatasetId>> {
        let disk = &self.inner.shared.env.disk;
        let entries = disk
            .list(&self.inner.root)
            .during("list", &self.inner.root)?;
        let mut names = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == FileKind::Dir) {
            let Ok(id) = DatasetId::new(&entry.name) else {
                continue;
            };
            let dir = files::dataset(&self.inner.root, &id);
            match disk.stat(&files::manifest(&dir)) {
                Ok(_) => names.push(id),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    // Opening decides whether it is a dataset that lost its manifest.
                    if disk
                        .list(&dir)
                        .during("list", &dir)?
                        .iter()
                        .any(|e| e.name.starts_with('r'))
                    {
                        names.push(id);
                    }
                }
                Err(e) => return Err(e).during("stat", &dir).map_err(Error::from),
            }
        }
        Ok(names)
    }

    /// A dataset, opened or created. An empty name means `primary`.
    ///
    /// # Errors
    /// As [`Database::open`]; [`Error::Argument`] for a name that is not one.
    pub fn dataset(&self, name: &str) -> Result<Dataset> {
        let id = DatasetId::new(name).map_err(|error| Error::Argument {
            what: "dataset name",
            expected: error.expected.to_owned(),
            found: error.found,
        })?;
        self.open_dataset(id, None)
    }

    /// A dataset that takes what a leader ships, opened or created as one.
    ///
    /// # Errors
    /// As [`Database::dataset`].
    pub fn follower(&self, name: &str) -> Result<Dataset> {
        let dataset = self.dataset_with_role(name, Role::Follower)?;
        Ok(dataset)
    }

    fn dataset_with_role(&self, name: &str, role: Role) -> Result<Dataset> {
        let id = DatasetId::new(name).map_err(|error| Error::Argument {
            what: "dataset name",
            expected: error.expected.to_owned(),
            found: error.found,
        })?;
        self.open_dataset(id, Some(role))
    }

    fn open_dataset(&self, id: DatasetId, role: Option<Role>) -> Result<Dataset> {
        let inner = &self.inner;
        if inner.closed.load(Ordering::Acquire) {
            return Err(Error::Closed("database"));
        }
        let mut datasets = inner.datasets.lock();
        if let Some(open) = datasets.get(&id) {
            let dataset = Dataset::new(Arc::clone(open), self.clone());
            if let Some(role) = role.filter(|role| *role != dataset.inner().store().role()) {
                dataset.inner().reopen(Reopen::role(role), || Ok(()))?;
            }
            return Ok(dataset);
        }
        let dir = files::dataset(&inner.root, &id);
        let role = match (inner.read_only, role, inner.shared.options.node.role) {
            (true, ..) => Role::Reader,
            (false, Some(role), _) => role,
            (false, None, crate::config::NodeRole::Follower) => Role::Follower,
            // A dataset that follows goes on following until it is promoted.
            (false, None, _) if self.follows(&dir)? => Role::Follower,
            (false, None, _) if inner.shared.options.followed.contains(&id) => Role::Follower,
            (false, None, _) => Role::Leader,
        };
        let (shared, forks, elected) = (inner.shared.clone(), None, None);
        let opening = Opening {
            shared,
            id: id.clone(),
            dir: &dir,
            role,
            forks,
            elected,
        };
        let store = inner.shared.with_reserve(|| opening.clone().run())?;
        let opened = Arc::new(DatasetInner::new(store, inner.shared.clone()));
        datasets.insert(id, Arc::clone(&opened));
        Ok(Dataset::new(opened, self.clone()))
    }

    /// Whether a dataset follows another node's, whatever it was opened for here.
    ///
    /// # Errors
    /// The disk's; [`Error::Argument`] for a name that is not one.
    pub fn is_follower(&self, name: &str) -> Result<bool> {
        let id = DatasetId::new(name).map_err(|error| Error::Argument {
            what: "dataset name",
            expected: error.expected.to_owned(),
            found: error.found,
        })?;
        self.follows(&files::dataset(&self.inner.root, &id))
    }

    /// Whether a stored dataset was following another node's when it was closed.
    fn follows(&self, dir: &Path) -> Result<bool> {
        let path = files::epoch(dir);
        let file = crate::store::epoch::EpochFile::read(self.env().disk.as_ref(), &path)?;
        Ok(file.epochs().follows)
    }

    /// A keyspace of the dataset `primary`, opened or created.
    ///
    /// # Errors
    /// As [`Dataset::keyspace`].
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        self.dataset(DatasetId::PRIMARY)?.keyspace(name)
    }

    /// The open datasets, by name.
    pub fn datasets(&self) -> Vec<Dataset> {
        let datasets = self.inner.datasets.lock();
        datasets
            .values()
            .map(|open| Dataset::new(Arc::clone(open), self.clone()))
            .collect()
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn of(inner: Arc<Inner>) -> Database {
        Database { inner }
    }

    /// The last repair that the database did by itself, and whether it could; `None` where none was
    /// needed.
    pub fn last_heal(&self) -> Option<Result<RepairReport>> {
        self.inner.heals.lock().last.clone()
    }

    fn note_heal(&self, dataset: &str, outcome: Result<RepairReport>) {
        let what = match &outcome {
            Ok(report) => What::Healed {
                place_count: report.repair_count(),
            },
            Err(why) => What::NotHealed {
                why: why.to_string(),
            },
        };
        let at_ms = self.env().clock.wall_ms();
        self.shared().events.push(at_ms, dataset, what);
        let mut heals = self.inner.heals.lock();
        heals.count += u64::from(outcome.is_ok());
        heals.last = Some(outcome);
    }

    /// Mends a dataset that follows by what its leader has. It is closed meanwhile, for as long as it
    /// takes to read it and the copy; the copy is fetched before.
    pub(crate) fn heal(&self, dataset: &Dataset, goes_on: &dyn Fn() -> bool) -> Result<(), ()> {
        let outcome = self.mend(dataset, goes_on);
        let is_healed = outcome.is_ok();
        self.note_heal(&dataset.name(), outcome);
        is_healed.then_some(()).ok_or(())
    }

    fn mend(&self, dataset: &Dataset, goes_on: &dyn Fn() -> bool) -> Result<RepairReport> {
        let (env, root) = (self.env().clone(), self.path().to_owned());
        let id = dataset.inner().store().id().clone();
        let peers = &self.options().heal_from;
        let links = &self.options().links;
        let copy = Fetched::new(
            &env,
            &root,
            peers,
            links,
            std::slice::from_ref(&id),
            goes_on,
        )?;
        let copy_dir = copy.dir().to_owned();
        let work = move || repair::mend(&root, &copy_dir, &id, &env);
        match self.hub() {
            Some(hub) => hub.closed(dataset, work)?,
            None => dataset.inner().closed(work)?,
        }
    }

    /// The running node, where this database serves or follows.
    pub(crate) fn hub(&self) -> Option<Arc<Hub>> {
        self.inner.hub.lock().clone()
    }

    /// The running node, started where there is none. One that listens elsewhere than at `listen` is an
    /// error; with port 0 any address is as good.
    pub(crate) fn start_hub(&self, listen: &str) -> Result<Arc<Hub>> {
        let mut hub = self.inner.hub.lock();
        if let Some(hub) = &*hub {
            hub.check_address(listen)?;
            return Ok(Arc::clone(hub));
        }
        let shared = &self.inner.shared;
        let links = &shared.options.links;
        let hook = Arc::clone(&shared.hook);
        let started = Arc::new(Hub::start(&shared.env, listen, links, hook)?);
        *hub = Some(Arc::clone(&started));
        Ok(started)
    }

    /// Stops the running node.
    pub(crate) fn stop_hub(&self) {
        if let Some(hub) = self.inner.hub.lock().take() {
            hub.stop();
        }
    }

    /// Its settings.
    pub fn options(&self) -> &Options {
        &self.inner.shared.options
    }

    /// Who this node is.
    pub fn node(&self) -> [u8; 16] {
        self.inner.shared.node.node
    }

    /// Commits that nobody waits for.
    pub(crate) fn tickets(&self) -> &Arc<Tickets> {
        &self.inner.tickets
    }

    pub(crate) fn env(&self) -> &Env {
        &self.inner.shared.env
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// What it holds and has done, dataset by dataset.
    pub fn stats(&self) -> DatabaseStats {
        DatabaseStats {
            datasets: self.datasets().iter().map(Dataset::stats).collect(),
            heal_count: self.inner.heals.lock().count,
        }
    }

    /// Flushes every dataset.
    ///
    /// # Errors
    /// The disk's.
    pub fn flush(&self) -> Result<()> {
        self.datasets().iter().try_for_each(Dataset::flush)
    }

    /// Does background work in this thread, at most `step_count_max` flushes and merges; returns how many it
    /// did. What the logs need comes first and does not count. Only with [`Background::Manual`] is there no other thread that does it.
    ///
    /// # Errors
    /// The first failure.
    pub fn run_background(&self, step_count_max: usize) -> Result<usize> {
        self.inner.tickets.step();
        let mut count = 0;
        for dataset in self.datasets() {
            let store = dataset.inner().store();
            let mut log_steps = 0;
            while log_steps < step_count_max && store.log_step() {
                log_steps += 1;
            }
            for work in [flush_step, compact_step] {
                while count < step_count_max && work(&store, &|| true)? {
                    count += 1;
                }
            }
        }
        Ok(count)
    }

    /// Syncs and closes everything. Further calls on anything of this database fail. Dropping the
    /// last clone does the same, without telling of errors.
    ///
    /// What only memtables cover is written into tables first where that is more than a little, so that
    /// the next open need not apply it again: up to a second behind a load. Not with
    /// [`Background::Manual`].
    ///
    /// # Errors
    /// The disk's.
    pub fn close(&self) -> Result<()> {
        self.inner.close()
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Database({})", self.inner.root.display())
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let hub = self.hub.lock().take();
        if let Some(hub) = hub {
            hub.stop();
        }
        if let Some(scrubber) = self.scrubber.lock().take() {
            scrubber.stop();
        }
        self.tickets.stop();
        self.runtime.stop();
        let mut outcome = Ok(());
        for dataset in self.datasets.lock().values() {
            // Who unwinds has no time, and may have left a batch unfinished.
            if self.shared.options.background == Background::Thread && !std::thread::panicking() {
                outcome = outcome.and(dataset.flush_for_open());
            }
            outcome = outcome.and(dataset.close());
        }
        if !self.read_only {
            self.shared.pool.clear();
        }
        *self.lock.lock() = None;
        outcome
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Nobody is left to tell; a sync that failed shows at the next open.
        let _ = self.close();
    }
}

/// Creates the directory of a new database, and makes its name durable: what is acknowledged later
/// must not vanish with the directory that it is in.
fn create_root(env: &Env, root: &Path) -> Result<()> {
    let is_absent = |path: &Path| match env.disk.stat(path) {
        Ok(_) => Ok(false),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e).during("stat", path),
    };
    // The identity is written once the name is durable, by this process or an earlier one.
    if !is_absent(&files::node(root))? {
        return Ok(());
    }
    let mut missing = Vec::new();
    for dir in root.ancestors() {
        if dir.as_os_str().is_empty() || !is_absent(dir)? {
            break;
        }
        missing.push(dir);
    }
    let is_ours = !missing.is_empty();
    if !is_ours {
        missing.push(root);
    }
    for dir in missing.into_iter().rev() {
        env.disk
            .create_dir_all(dir)
            .during("create directory", dir)?;
        let parent = match dir.parent() {
            None => continue,
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
        };
        match unless!("database.root", env.disk.sync_dir(parent)) {
            // Whoever made a directory below one that we may not read has to see to its name.
            Err(e) if !is_ours && e.kind() == std::io::ErrorKind::PermissionDenied => {}
            synced => synced.during("sync directory", parent)?,
        }
    }
    Ok(())
}

/// Takes the lock that a writer or a reader holds.
fn lock(env: &Env, root: &Path, read_only: bool) -> Result<Box<dyn Lock>> {
    let (path, mode) = match read_only {
        true => (files::readers(root), LockMode::Shared),
        false => (files::lock(root), LockMode::Exclusive),
    };
    match env.disk.lock(&path, mode) {
        Ok(lock) => Ok(lock),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(Error::Locked {
            path: root.to_owned(),
            note: String::new(),
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let hint = "; it is created by opening it for writing";
            Err(Error::NotFound {
                what: "database",
                name: root.display().to_string(),
                hint,
            })
        }
        Err(e) => Err(e).during("lock", &path).map_err(Error::from),
    }
}

/// Tells whether another process reads the database: the lock that readers share cannot be had.
fn has_readers(env: &Env, root: &Path) -> impl Fn() -> bool + Send + Sync + 'static {
    let (env, path) = (env.clone(), files::readers(root));
    // Where it cannot be told, somebody might.
    move || env.disk.lock(&path, LockMode::Exclusive).is_err() && !planted("pool.readers")
}
