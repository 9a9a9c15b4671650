//! A decorator that makes chosen calls of the disk below it fail.
//!
//! [`FaultDisk`] passes every call on until a [`Rule`] says otherwise, and counts the calls, so that
//! a test can run a workload once and then once more for each call of it and each way to fail. A
//! failed call does not reach the disk below, with one exception: where that is a simulated disk, it
//! is told of a failed sync, because a sync that fails changes what later ones are worth (crash model,
//! item 4).

use std::any::Any;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::sim::{SimDisk, SimFile};
use super::{Access, DirEntry, Disk, File, Image, Lock, LockMode, Map, Stat};

/// The methods of [`Disk`] and [`File`].
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[allow(missing_docs, reason = "each is the method of its name")]
pub enum Call {
    Create,
    Open,
    Rename,
    Link,
    Remove,
    RemoveDirAll,
    CreateDirAll,
    List,
    Stat,
    SyncDir,
    Lock,
    FreeLen,
    Read,
    Write,
    Sync,
    Len,
    SetLen,
    Map,
    Image,
    View,
}

impl Call {
    /// Every method.
    pub const ALL: [Call; 20] = [
        Call::Create,
        Call::Open,
        Call::Rename,
        Call::Link,
        Call::Remove,
        Call::RemoveDirAll,
        Call::CreateDirAll,
        Call::List,
        Call::Stat,
        Call::SyncDir,
        Call::Lock,
        Call::FreeLen,
        Call::Read,
        Call::Write,
        Call::Sync,
        Call::Len,
        Call::SetLen,
        Call::Map,
        Call::Image,
        Call::View,
    ];
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Effect {
    /// It fails with this kind, `Interrupted` for example, and does nothing.
    Error(io::ErrorKind),
    /// It fails with this error number of the operating system and does nothing.
    Os(i32),
    /// A read or write handles at most so many bytes; other calls pass.
    Short(usize),
    /// It passes, and [`FaultDisk::fired_count`] tells that it would have been slow. No test waits.
    Slow,
    /// The caller's thread panics, as one does that meets a bug.
    Panic,
}

/// Numbers of the operating system's errors, for [`Effect::Os`].
#[cfg(unix)]
impl Effect {
    /// A device failed.
    pub const EIO: Effect = Effect::Os(rustix::io::Errno::IO.raw_os_error());
    /// No space.
    pub const ENOSPC: Effect = Effect::Os(rustix::io::Errno::NOSPC.raw_os_error());
    /// No quota.
    pub const EDQUOT: Effect = Effect::Os(rustix::io::Errno::DQUOT.raw_os_error());
    /// Larger than a file may be.
    pub const EFBIG: Effect = Effect::Os(rustix::io::Errno::FBIG.raw_os_error());
    /// Too many open files in the process.
    pub const EMFILE: Effect = Effect::Os(rustix::io::Errno::MFILE.raw_os_error());
    /// Too many open files in the system.
    pub const ENFILE: Effect = Effect::Os(rustix::io::Errno::NFILE.raw_os_error());
    /// A file system that was remounted read-only.
    pub const EROFS: Effect = Effect::Os(rustix::io::Errno::ROFS.raw_os_error());
    /// No permission.
    pub const EACCES: Effect = Effect::Os(rustix::io::Errno::ACCESS.raw_os_error());
}

/// Which calls an [`Effect`] falls on: by default the first one of all.
#[derive(Clone, Debug)]
pub struct Rule {
    effect: Effect,
    call: Option<Call>,
    path_part: String,
    /// Calls that match, or calls of any kind, that pass before.
    skip_count: u64,
    of_all: bool,
    sticky: bool,
}

impl Rule {
    /// `effect` on the first call.
    pub fn new(effect: Effect) -> Rule {
        let path_part = String::new();
        Rule {
            effect,
            call: None,
            path_part,
            skip_count: 0,
            of_all: false,
            sticky: false,
        }
    }

    /// Only on this method.
    #[must_use]
    pub fn on(self, call: Call) -> Rule {
        Rule {
            call: Some(call),
            ..self
        }
    }

    /// Only where the path contains `part`; of a rename or link, one of the two. A file has the path
    /// that it was opened by.
    #[must_use]
    pub fn path(self, part: &str) -> Rule {
        Rule {
            path_part: part.to_owned(),
            ..self
        }
    }

    /// Not before `count` calls that match have passed.
    #[must_use]
    pub fn after(self, count: u64) -> Rule {
        Rule {
            skip_count: count,
            of_all: false,
            ..self
        }
    }

    /// On the call that finds [`FaultDisk::call_count`] at `index`, where it matches.
    #[must_use]
    pub fn at_call(self, index: u64) -> Rule {
        Rule {
            skip_count: index,
            of_all: true,
            ..self
        }
    }

    /// And on every later call that matches.
    #[must_use]
    pub fn sticky(self) -> Rule {
        Rule {
            sticky: true,
            ..self
        }
    }

    fn matches(&self, call: Call, paths: &[&Path]) -> bool {
        let names = |path: &&Path| path.to_string_lossy().contains(&self.path_part);
        self.call.is_none_or(|only| only == call) && paths.iter().any(names)
    }
}

/// A rule that was added, for [`FaultDisk::fired_count`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RuleId(usize);

struct Active {
    rule: Rule,
    match_count: u64,
    fired_count: u64,
}

impl Active {
    /// Whether the rule falls on the call of this index, which matches it.
    fn fires(&mut self, index: u64) -> bool {
        let at = if self.rule.of_all {
            index
        } else {
            self.match_count
        };
        self.match_count += 1;
        let fires = match self.rule.sticky {
            true => at >= self.rule.skip_count,
            false => at == self.rule.skip_count,
        };
        self.fired_count += u64::from(fires);
        fires
    }
}

#[derive(Default)]
struct Faults {
    rules: Vec<Active>,
    counts: [u64; Call::ALL.len()],
    trace: Option<Vec<String>>,
}

/// Calls that a trace holds; later ones are counted but not written down.
const TRACE_COUNT_MAX: usize = 1 << 20;

/// A disk whose calls fail by rules. Clones are the same disk.
#[derive(Clone)]
pub struct FaultDisk {
    below: Arc<dyn Disk>,
    faults: Arc<Mutex<Faults>>,
}

impl FaultDisk {
    /// A decorator without rules.
    pub fn new(below: Arc<dyn Disk>) -> FaultDisk {
        FaultDisk {
            below,
            faults: Arc::default(),
        }
    }

    /// Adds a rule. Where several fall on one call, the first added decides.
    pub fn add(&self, rule: Rule) -> RuleId {
        let mut faults = self.faults.lock();
        faults.rules.push(Active {
            rule,
            match_count: 0,
            fired_count: 0,
        });
        RuleId(faults.rules.len() - 1)
    }

    /// Ends all rules, as when space returns. What they fired is still told.
    pub fn heal(&self) {
        for active in &mut self.faults.lock().rules {
            active.rule.skip_count = u64::MAX;
            active.rule.sticky = false;
        }
    }

    /// On how many calls a rule has fallen: a test asserts that its fault happened at all.
    pub fn fired_count(&self, id: RuleId) -> u64 {
        self.faults.lock().rules[id.0].fired_count
    }

    /// How many calls were made.
    pub fn call_count(&self) -> u64 {
        self.faults.lock().counts.iter().sum()
    }

    /// How many calls of one method were made.
    pub fn count(&self, call: Call) -> u64 {
        self.faults.lock().counts[call as usize]
    }

    /// Starts writing down the calls, or starts anew.
    pub fn trace(&self) {
        self.faults.lock().trace = Some(Vec::new());
    }

    /// The calls since [`FaultDisk::trace`], one line each, as `write /db/1.seg 4096 at 0` or
    /// `sync /db/1.seg: failed`; and forgets them.
    pub fn take_trace(&self) -> Vec<String> {
        self.faults
            .lock()
            .trace
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    /// Counts a call and does what the rules say: an error, or how many bytes it may handle.
    fn begin(&self, call: Call, paths: &[&Path], span: Option<(usize, u64)>) -> io::Result<usize> {
        let mut faults = self.faults.lock();
        let index = faults.counts.iter().sum();
        faults.counts[call as usize] += 1;
        let mut effect = None;
        for active in &mut faults.rules {
            if active.rule.matches(call, paths) && active.fires(index) {
                effect = effect.or(Some(active.rule.effect));
            }
        }
        let outcome = match effect {
            Some(Effect::Error(kind)) => Err(kind.into()),
            Some(Effect::Os(number)) => Err(io::Error::from_raw_os_error(number)),
            Some(Effect::Short(len)) => Ok(len),
            Some(Effect::Slow) | None => Ok(usize::MAX),
            Some(Effect::Panic) => {
                drop(faults);
                panic!("a panic that a rule asked for");
            }
        };
        if let Some(trace) = &mut faults.trace
            && trace.len() < TRACE_COUNT_MAX
        {
            trace.push(line(call, paths, span, outcome.is_err()));
        }
        outcome
    }

    fn file(&self, below: Arc<dyn File>, path: &Path) -> Arc<dyn File> {
        Arc::new(FaultFile {
            below,
            disk: self.clone(),
            path: path.to_owned(),
        })
    }

    fn fail_sync_dir(&self, dir: &Path) -> io::Result<()> {
        let below: &dyn Any = self.below.as_ref();
        if let Some(sim) = below.downcast_ref::<SimDisk>() {
            return sim.fail_sync_dir(dir);
        }
        match below.downcast_ref::<FaultDisk>() {
            Some(fault) => fault.fail_sync_dir(dir),
            None => Ok(()),
        }
    }
}

fn line(call: Call, paths: &[&Path], span: Option<(usize, u64)>, failed: bool) -> String {
    let mut line = format!("{call:?}").to_lowercase();
    let written = (|| {
        for path in paths {
            write!(line, " {}", path.display())?;
        }
        if let Some((len, at)) = span {
            write!(line, " {len} at {at}")?;
        }
        if failed {
            line.write_str(": failed")
        } else {
            Ok(())
        }
    })();
    written.expect("writing to a string does not fail");
    line
}

impl Disk for FaultDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.begin(Call::Create, &[path], None)?;
        Ok(self.file(self.below.create(path)?, path))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn File>> {
        self.begin(Call::Open, &[path], None)?;
        Ok(self.file(self.below.open(path, access)?, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(Call::Rename, &[from, to], None)?;
        self.below.rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.begin(Call::Link, &[from, to], None)?;
        self.below.link(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::Remove, &[path], None)?;
        self.below.remove(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::RemoveDirAll, &[path], None)?;
        self.below.remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.begin(Call::CreateDirAll, &[path], None)?;
        self.below.create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.begin(Call::List, &[dir], None)?;
        self.below.list(dir)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.begin(Call::Stat, &[path], None)?;
        self.below.stat(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if let Err(e) = self.begin(Call::SyncDir, &[dir], None) {
            self.fail_sync_dir(dir)?;
            return Err(e);
        }
        self.below.sync_dir(dir)
    }

    fn lock(&self, path: &Path, mode: LockMode) -> io::Result<Box<dyn Lock>> {
        self.begin(Call::Lock, &[path], None)?;
        self.below.lock(path, mode)
    }

    fn free_len(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.begin(Call::FreeLen, &[dir], None)?;
        self.below.free_len(dir)
    }
}

struct FaultFile {
    below: Arc<dyn File>,
    disk: FaultDisk,
    path: PathBuf,
}

impl FaultFile {
    fn begin(&self, call: Call, span: Option<(usize, u64)>) -> io::Result<usize> {
        self.disk.begin(call, &[&self.path], span)
    }

    fn fail_sync(&self) {
        let below: &dyn Any = self.below.as_ref();
        if let Some(sim) = below.downcast_ref::<SimFile>() {
            sim.fail_sync();
        } else if let Some(fault) = below.downcast_ref::<FaultFile>() {
            fault.fail_sync();
        }
    }
}

impl File for FaultFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let len_max = self.begin(Call::Read, Some((buf.len(), at)))?;
        let len = buf.len().min(len_max);
        self.below.read_at(&mut buf[..len], at)
    }

    fn write_at(&self, buf: &[u8], at: u64) -> io::Result<usize> {
        let len_max = self.begin(Call::Write, Some((buf.len(), at)))?;
        self.below.write_at(&buf[..buf.len().min(len_max)], at)
    }

    fn sync(&self) -> io::Result<()> {
        if let Err(e) = self.begin(Call::Sync, None) {
            self.fail_sync();
            return Err(e);
        }
        self.below.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.begin(Call::Len, None)?;
        self.below.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.begin(Call::SetLen, None)?;
        self.below.set_len(len)
    }

    fn keep_in_place(&self) {
        self.below.keep_in_place();
    }

    fn map(&self, len: usize) -> io::Result<Option<Map>> {
        self.begin(Call::Map, None)?;
        self.below.map(len)
    }

    fn image(&self, len: usize) -> io::Result<Option<Image>> {
        self.begin(Call::Image, None)?;
        self.below.image(len)
    }

    fn view(&self, len: usize) -> io::Result<Option<Image>> {
        self.begin(Call::View, None)?;
        self.below.view(len)
    }
}
