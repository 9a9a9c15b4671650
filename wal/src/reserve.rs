//! Disk space kept aside, so that a full disk can be emptied.
//!
//! Removing keys writes first: the removal to the log, later a table in the place of larger ones. A file
//! of zeros holds the room for that. When the disk is full it is removed for whoever frees space, and
//! it comes back once there is twice its length.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::bug::planted;
use crate::error::{IoContext, Result};
use crate::io::{Access, Env};
use crate::unless;

/// Length that a reserve begins with, in bytes, where it may be as long.
pub const LEN_START: u64 = 4 << 20;

/// The reserve of one database.
pub struct Reserve {
    env: Env,
    path: PathBuf,
    len_max: u64,
    lens: Mutex<Lens>,
    released: AtomicBool,
}

struct Lens {
    /// As it should be.
    wanted: u64,
    /// As it is; 0 while it is released.
    held: u64,
}

impl Reserve {
    /// Takes the reserve at `path` as it is, or makes one; `len_max` is the most bytes that it may have,
    /// 0 for none. On a full disk it begins released.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(env: Env, path: PathBuf, len_max: u64) -> Result<Reserve> {
        let wanted = LEN_START.min(len_max);
        let held = match env.disk.open(&path, Access::Read) {
            Ok(file) => Some(file.len().during("measure", &path)?),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e).during("open", &path),
        };
        // A crash cut it short, or it was made with other settings.
        let is_short = |len: &u64| *len < wanted && !planted("reserve.short");
        let is_unfit = |len: &u64| is_short(len) || *len > len_max;
        if held.as_ref().is_some_and(is_unfit) {
            env.disk.remove(&path).during("remove", &path)?;
        }
        let held = held.filter(|len| !is_unfit(len)).unwrap_or(0);
        let reserve = Reserve {
            env,
            path,
            len_max,
            lens: Mutex::new(Lens {
                wanted: wanted.max(held),
                held,
            }),
            released: AtomicBool::new(held == 0),
        };
        match reserve.restore() {
            Err(error) if !error.is_no_space() || planted("reserve.open") => Err(error),
            _ => Ok(reserve),
        }
    }

    /// No reserve, for whoever only reads.
    pub fn none(env: Env) -> Reserve {
        Reserve {
            env,
            path: PathBuf::new(),
            len_max: 0,
            lens: Mutex::new(Lens { wanted: 0, held: 0 }),
            released: AtomicBool::new(true),
        }
    }

    /// Whether it was given up, and what takes space must wait until it is back.
    pub fn is_released(&self) -> bool {
        self.len_max > 0 && self.released.load(Ordering::Acquire)
    }

    /// Gives its space back to the disk, for whoever frees more by it. Returns whether it may be tried
    /// again now: there is a reserve, and it is gone.
    pub fn release(&self) -> bool {
        let mut lens = self.lens.lock();
        if lens.held > 0 {
            if unless!("reserve.release", self.env.disk.remove(&self.path)).is_err() {
                // What met the full disk tells of it.
                return false;
            }
            lens.held = 0;
            self.released.store(true, Ordering::Release);
        }
        self.len_max > 0
    }

    /// Takes the space again, where the disk has twice as much.
    ///
    /// # Errors
    /// The disk's: where there is too little space, [`is_no_space`](crate::Error::is_no_space).
    pub fn restore(&self) -> Result<()> {
        let mut lens = self.lens.lock();
        if lens.held > 0 || self.len_max == 0 {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let free = self.env.disk.free_len(dir).during("ask for space", dir)?;
        let is_little = |free| free < 2 * lens.wanted && !planted("reserve.room");
        if free.is_some_and(is_little) {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            return Err(full).during("make a reserve for removals", &self.path);
        }
        let file = self.env.disk.create(&self.path);
        let file = file.during("create", &self.path)?;
        if let Err(error) = file.allocate(0, lens.wanted) {
            drop(file);
            // The first failure is the one to report; a short file is made anew at the next open.
            let _ = self.env.disk.remove(&self.path);
            return Err(error).during("allocate", &self.path);
        }
        lens.held = lens.wanted;
        self.released.store(false, Ordering::Release);
        Ok(())
    }

    /// Makes it longer, up to what it may be, where space is plenty: it must hold what a flush writes.
    ///
    /// # Errors
    /// The disk's; it stays as it was.
    pub fn grow(&self, len: u64) -> Result<()> {
        let mut lens = self.lens.lock();
        lens.wanted = lens.wanted.max(len.min(self.len_max));
        if lens.held == 0 || lens.held >= lens.wanted || planted("reserve.grow") {
            return Ok(());
        }
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let free = self.env.disk.free_len(dir).during("ask for space", dir)?;
        if free.is_some_and(|free| free < 2 * lens.wanted) {
            return Ok(());
        }
        let file = self.env.disk.open(&self.path, Access::Write);
        let file = file.during("open", &self.path)?;
        file.allocate(lens.held, lens.wanted)
            .during("allocate", &self.path)?;
        lens.held = lens.wanted;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Disk;
    use crate::io::fault::{Call, Effect, Rule};
    use crate::io::sim::SimEnv;
    use crate::writer::tests::with_faults;

    const KIB: u64 = 1 << 10;

    fn open(machine: &SimEnv, len_max: u64) -> Reserve {
        Reserve::open(machine.env(), "/reserve".into(), len_max).unwrap()
    }

    #[test]
    fn it_is_given_up_and_comes_back_when_there_is_twice_its_length() {
        let machine = SimEnv::new(1);
        let reserve = open(&machine, 64 * KIB);
        assert_eq!(machine.disk.used_len(), 64 * KIB);
        machine.disk.limit(Some(64 * KIB));
        assert!(!reserve.is_released());
        assert!(reserve.release());
        assert!(reserve.is_released());
        assert_eq!(machine.disk.used_len(), 0);
        assert!(reserve.restore().unwrap_err().is_no_space());
        machine.disk.limit(Some(128 * KIB));
        reserve.restore().unwrap();
        assert!(!reserve.is_released());
        assert_eq!(machine.disk.used_len(), 64 * KIB);
    }

    #[test]
    fn it_begins_released_on_a_full_disk_and_is_made_by_a_later_open() {
        let machine = SimEnv::new(1);
        machine.disk.limit(Some(20 * KIB));
        assert!(open(&machine, 64 * KIB).is_released());
        assert_eq!(machine.disk.used_len(), 0);
        machine.disk.limit(None);
        assert!(!open(&machine, 64 * KIB).is_released());
        assert!(!open(&machine, 64 * KIB).is_released());
    }

    #[test]
    fn it_grows_to_its_limit_and_keeps_its_length() {
        let machine = SimEnv::new(1);
        let reserve = open(&machine, LEN_START + 8 * KIB);
        reserve.grow(LEN_START + 4 * KIB).unwrap();
        assert_eq!(machine.disk.used_len(), LEN_START + 4 * KIB);
        reserve.grow(u64::MAX).unwrap();
        assert_eq!(machine.disk.used_len(), LEN_START + 8 * KIB);
        let reserve = open(&machine, LEN_START + 8 * KIB);
        assert!(reserve.release());
        reserve.restore().unwrap();
        assert_eq!(machine.disk.used_len(), LEN_START + 8 * KIB);
    }

    #[test]
    fn one_that_a_crash_cut_short_is_made_anew() {
        let machine = SimEnv::new(1);
        for len in [0, 1, 64 * KIB - 1] {
            let file = machine.disk.create("/reserve".as_ref()).unwrap();
            file.set_len(len).unwrap();
            drop(file);
            let reserve = open(&machine, 64 * KIB);
            assert!(!reserve.is_released());
            assert_eq!(machine.disk.used_len(), 64 * KIB);
            assert!(reserve.release());
        }
    }

    #[test]
    fn without_a_length_there_is_none() {
        let machine = SimEnv::new(1);
        open(&machine, 64 * KIB);
        let reserve = open(&machine, 0);
        assert_eq!(machine.disk.used_len(), 0);
        assert!(!reserve.is_released() && !reserve.release());
        reserve.restore().unwrap();
        assert_eq!(machine.disk.used_len(), 0);
    }

    #[test]
    fn whoever_only_reads_has_none() {
        let machine = SimEnv::new(1);
        let reserve = Reserve::none(machine.env());
        reserve.restore().unwrap();
        assert!(!reserve.is_released() && !reserve.release());
        assert_eq!(machine.disk.used_len(), 0);
    }

    #[test]
    fn a_disk_that_fails_otherwise_than_by_being_full_is_an_error_of_the_open() {
        for (call, op) in [
            (Call::Open, "open"),
            (Call::Len, "measure"),
            (Call::Remove, "remove"),
            (Call::FreeLen, "ask for space"),
            (Call::Create, "create"),
            (Call::Write, "allocate"),
        ] {
            let machine = SimEnv::new(1);
            let file = machine.disk.create("/reserve".as_ref()).unwrap();
            file.set_len(1).unwrap();
            drop(file);
            let (env, faults) = with_faults(&machine);
            faults.add(Rule::new(Effect::EIO).on(call));
            let error = Reserve::open(env, "/reserve".into(), 64 * KIB)
                .err()
                .unwrap();
            assert!(error.to_string().starts_with(op), "{call:?}: {error}");
        }
    }

    #[test]
    fn one_that_is_not_made_or_not_removed_is_as_it_was() {
        let machine = SimEnv::new(1);
        let (env, faults) = with_faults(&machine);
        faults.add(Rule::new(Effect::ENOSPC).on(Call::Write));
        let reserve = Reserve::open(env, "/reserve".into(), 64 * KIB).unwrap();
        assert!(reserve.is_released());
        assert_eq!(machine.disk.used_len(), 0, "what was half made is gone");
        reserve.grow(u64::MAX).unwrap();
        assert_eq!(machine.disk.used_len(), 0, "there is none to make longer");
        reserve.restore().unwrap();
        faults.add(Rule::new(Effect::EIO).on(Call::Remove));
        assert!(!reserve.release());
        assert!(!reserve.is_released() && reserve.release());
    }

    #[test]
    fn it_stays_as_long_as_it_is_where_space_is_scarce() {
        let machine = SimEnv::new(1);
        let reserve = open(&machine, 2 * LEN_START);
        reserve.grow(LEN_START).unwrap();
        machine.disk.limit(Some(2 * LEN_START));
        reserve.grow(LEN_START + KIB).unwrap();
        assert_eq!(machine.disk.used_len(), LEN_START);
        machine.disk.limit(None);
        reserve.grow(0).unwrap();
        assert_eq!(machine.disk.used_len(), LEN_START + KIB, "it was asked for");
    }
}
