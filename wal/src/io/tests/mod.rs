//! The disks against their contract: what all have in common, what only the machine does, what a
//! crash may leave, and what faults do.

mod conformance;
mod crash;
mod fault;
mod real;
mod sim;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::fault::FaultDisk;
use super::sim::SimDisk;
use super::*;

/// A disk under test and an empty directory on it.
struct Place {
    what: &'static str,
    disk: Arc<dyn Disk>,
    root: PathBuf,
    maps: bool,
    /// Keeps the directory while the test runs.
    _dir: Option<tempfile::TempDir>,
}

impl Place {
    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// A new file with these bytes.
    fn file(&self, name: &str, bytes: &[u8]) -> Arc<dyn File> {
        let file = self.disk.create(&self.path(name)).unwrap();
        write_all_at(file.as_ref(), bytes, 0).unwrap();
        file
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_file(self.disk.as_ref(), &self.path(name), u64::MAX)
    }

    fn names(&self) -> Vec<String> {
        self.disk
            .list(&self.root)
            .unwrap()
            .into_iter()
            .map(|entry| entry.name)
            .collect()
    }
}

fn real(what: &'static str, disk: Arc<dyn Disk>, maps: bool) -> Place {
    let dir = tempfile::tempdir().unwrap();
    Place {
        what,
        disk,
        root: dir.path().to_owned(),
        maps,
        _dir: Some(dir),
    }
}

fn simulated(what: &'static str, disk: Arc<dyn Disk>, maps: bool) -> Place {
    let root = PathBuf::from("/db");
    disk.create_dir_all(&root).unwrap();
    disk.sync_dir(Path::new("/")).unwrap();
    Place {
        what,
        disk,
        root,
        maps,
        _dir: None,
    }
}

/// Runs a check on every kind of disk. `SimDisk` has to pass for the real one.
fn on_every_disk(check: impl Fn(&Place)) {
    let real_fault = FaultDisk::new(Env::real().disk);
    let sim_fault = FaultDisk::new(Arc::new(SimDisk::new(1)));
    for place in [
        real("real", Env::real().disk, true),
        real("real, pread", Env::real_pread().disk, false),
        real("faults over real", Arc::new(real_fault), true),
        simulated("simulated", Arc::new(SimDisk::new(1)), true),
        simulated("simulated, pread", Arc::new(SimDisk::pread(1)), false),
        simulated("faults over simulated", Arc::new(sim_fault), true),
    ] {
        println!("on {}", place.what);
        check(&place);
    }
}

/// A simulated disk with the durable directory `/db`.
fn sim(seed: u64) -> SimDisk {
    let disk = SimDisk::new(seed);
    disk.create_dir_all(Path::new("/db")).unwrap();
    disk.settle();
    disk
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|e| e.kind())
}
