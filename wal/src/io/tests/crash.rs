//! Random histories, judged by a second description of the crash model that shares no code with the
//! simulated disk.
//!
//! The model writes down, for every sector, length and name, all values since the last sync. An image
//! is legal where each has one of them. Every file carries its number in its first sector, synced
//! before anything else happens, so that it is known under whatever name it survives.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::io::sim::Damage;

const NAMES: [&str; 5] = ["a", "b", "c", "d/a", "d/b"];

/// A part of a history.
#[derive(Clone, Debug)]
enum Step {
    Create {
        name: usize,
    },
    Write {
        file: usize,
        at: u64,
        len: usize,
        byte: u8,
    },
    Publish {
        file: usize,
        len: usize,
        byte: u8,
    },
    SetLen {
        file: usize,
        len: u64,
    },
    Sync {
        file: usize,
    },
    FailSync {
        file: usize,
    },
    Rename {
        from: usize,
        to: usize,
    },
    Link {
        from: usize,
        to: usize,
    },
    Remove {
        name: usize,
    },
    SyncDirs,
    Open {
        name: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let name = 0..NAMES.len();
    let file = 0..4usize;
    // Unaligned, within a sector, across several, and far enough to leave holes.
    let at = prop_oneof![512..3_000u64, 512..20_000u64];
    let len = prop_oneof![1..200usize, 1..6_000usize];
    prop_oneof![
        2 => name.clone().prop_map(|name| Step::Create { name }),
        6 => (file.clone(), at, len.clone(), 0..4u8)
            .prop_map(|(file, at, len, byte)| Step::Write { file, at, len, byte }),
        4 => (file.clone(), len, 1..4u8)
            .prop_map(|(file, len, byte)| Step::Publish { file, len, byte }),
        2 => (file.clone(), 512..20_000u64).prop_map(|(file, len)| Step::SetLen { file, len }),
        2 => file.clone().prop_map(|file| Step::Sync { file }),
        1 => file.prop_map(|file| Step::FailSync { file }),
        1 => name.clone().prop_map(|name| Step::Open { name }),
        2 => (name.clone(), name.clone()).prop_map(|(from, to)| Step::Rename { from, to }),
        1 => (name.clone(), name.clone()).prop_map(|(from, to)| Step::Link { from, to }),
        1 => name.prop_map(|name| Step::Remove { name }),
        1 => Just(Step::SyncDirs),
    ]
}

/// One file: its bytes, and every value that its sectors and its length had since the last sync.
struct FileModel {
    handle: Arc<dyn File>,
    image: Option<Arc<Image>>,
    bytes: Vec<u8>,
    sectors: BTreeMap<usize, Vec<[u8; SECTOR_LEN]>>,
    lens: Vec<usize>,
    /// A sync failed: no later one makes the past certain, only opening the file does.
    suspect: bool,
    /// Something changed since the last sync, good or failed.
    dirty: bool,
    linked: bool,
}

impl FileModel {
    fn sector(&self, index: usize) -> [u8; SECTOR_LEN] {
        let mut sector = [0; SECTOR_LEN];
        let from = (index * SECTOR_LEN).min(self.bytes.len());
        let part = &self.bytes[from..self.bytes.len().min(from + SECTOR_LEN)];
        sector[..part.len()].copy_from_slice(part);
        sector
    }

    /// Changes the bytes, and remembers the values that the change put an end to.
    fn change(&mut self, at: usize, end: usize, change: impl FnOnce(&mut Vec<u8>)) {
        let touched = at / SECTOR_LEN..end.div_ceil(SECTOR_LEN);
        for index in touched {
            let before = self.sector(index);
            self.sectors.entry(index).or_default().push(before);
        }
        self.lens.push(self.bytes.len());
        self.dirty = true;
        change(&mut self.bytes);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        self.change(at, end, |content| {
            content.resize(content.len().max(end), 0);
            content[at..end].copy_from_slice(bytes);
        });
    }

    fn set_len(&mut self, len: usize) {
        let at = len.min(self.bytes.len());
        self.change(at, self.bytes.len(), |content| content.resize(len, 0));
    }

    fn synced(&mut self) {
        if !self.suspect {
            self.sectors.clear();
            self.lens.clear();
        }
        self.dirty = false;
    }

    /// Takes what an open handle shows. After a failed sync that is what the disk has, and certain
    /// unless more was changed since.
    fn opened(&mut self, handle: Arc<dyn File>) {
        let mut bytes = vec![0; handle.len().unwrap() as usize];
        read_exact_at(handle.as_ref(), &mut bytes, 0).unwrap();
        assert_eq!(self.fault(&bytes), None);
        self.handle = handle;
        if !self.suspect {
            assert!(self.bytes == bytes, "without a failed sync nothing is lost");
            return;
        }
        self.image = None;
        if self.dirty {
            let end = self.bytes.len().max(bytes.len());
            self.change(0, end, |content| *content = bytes);
        } else {
            self.bytes = bytes;
            self.suspect = false;
            self.synced();
        }
    }

    /// Why `found` is not what a crash may leave.
    fn fault(&self, found: &[u8]) -> Option<String> {
        if found.len() != self.bytes.len() && !self.lens.contains(&found.len()) {
            return Some(format!("length {} of {:?}", found.len(), self.lens));
        }
        for (index, part) in found.chunks(SECTOR_LEN).enumerate() {
            let old = self.sectors.get(&index).into_iter().flatten();
            let mut legal = old.copied().chain([self.sector(index)]);
            if !legal.any(|value| value[..part.len()] == *part) {
                return Some(format!("sector {index} has a value that it never had"));
            }
        }
        None
    }
}

struct Model {
    disk: SimDisk,
    files: Vec<FileModel>,
    /// What each name was since the last sync of the directories; the last is what it is.
    names: Vec<Vec<Option<usize>>>,
    /// Files that lost a name by removal or replacement since then.
    unnamed: BTreeSet<usize>,
}

fn path(name: usize) -> PathBuf {
    Path::new("/db").join(NAMES[name])
}

impl Model {
    fn new(seed: u64) -> Model {
        let disk = sim(seed);
        disk.create_dir_all(Path::new("/db/d")).unwrap();
        disk.settle();
        let names = vec![vec![None]; NAMES.len()];
        Model {
            disk,
            files: Vec::new(),
            names,
            unnamed: BTreeSet::new(),
        }
    }

    fn named(&self, name: usize) -> Option<usize> {
        *self.names[name].last().unwrap()
    }

    fn assign(&mut self, name: usize, file: Option<usize>) {
        if let Some(before) = self.named(name) {
            self.unnamed.insert(before);
        }
        self.names[name].push(file);
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Create { name } => self.create(name),
            Step::Rename { from, to } => self.rename(from, to),
            Step::Link { from, to } => self.link(from, to),
            Step::Remove { name } => {
                let removed = self.disk.remove(&path(name));
                assert_eq!(removed.is_ok(), self.named(name).is_some());
                if removed.is_ok() {
                    self.assign(name, None);
                }
            }
            Step::Open { name } => {
                if let Some(file) = self.named(name) {
                    let handle = self.disk.open(&path(name), Access::Write).unwrap();
                    self.files[file].opened(handle);
                }
            }
            Step::SyncDirs => {
                self.disk.sync_dir(Path::new("/db")).unwrap();
                self.disk.sync_dir(Path::new("/db/d")).unwrap();
                for name in &mut self.names {
                    name.drain(..name.len() - 1);
                }
                self.unnamed.clear();
            }
            Step::Write { file, .. }
            | Step::Publish { file, .. }
            | Step::SetLen { file, .. }
            | Step::Sync { file }
            | Step::FailSync { file } => {
                if let Some(file) = self.files.get_mut(file) {
                    file.take(step);
                }
            }
        }
    }

    fn create(&mut self, name: usize) {
        let created = self.disk.create(&path(name));
        assert_eq!(created.is_err(), self.named(name).is_some());
        let Ok(handle) = created else { return };
        let number = self.files.len();
        let mut bytes = vec![0; SECTOR_LEN];
        bytes[0] = u8::try_from(number + 1).unwrap();
        write_all_at(handle.as_ref(), &bytes, 0).unwrap();
        handle.sync().unwrap();
        self.files.push(FileModel {
            handle,
            image: None,
            bytes,
            sectors: BTreeMap::new(),
            lens: Vec::new(),
            suspect: false,
            dirty: false,
            linked: false,
        });
        self.assign(name, Some(number));
    }

    fn rename(&mut self, from: usize, to: usize) {
        let renamed = self.disk.rename(&path(from), &path(to));
        assert_eq!(renamed.is_ok(), self.named(from).is_some());
        let file = self.named(from);
        if file.is_none() || file == self.named(to) {
            return;
        }
        self.names[from].push(None);
        self.assign(to, file);
    }

    fn link(&mut self, from: usize, to: usize) {
        let linked = self.disk.link(&path(from), &path(to));
        assert_eq!(
            linked.is_ok(),
            self.named(from).is_some() && self.named(to).is_none()
        );
        if linked.is_ok() {
            let file = self.named(from);
            self.files[file.unwrap()].linked = true;
            self.assign(to, file);
        }
    }

    /// Why an image is not what a crash may leave.
    fn fault(&self, image: &Files) -> Option<String> {
        let mut found = BTreeMap::new();
        for (name, legal) in self.names.iter().enumerate() {
            let bytes = image.get(&path(name));
            let file = bytes.map(|bytes| usize::from(bytes[0]) - 1);
            if !legal.contains(&file) {
                return Some(format!("{} is {file:?} of {legal:?}", NAMES[name]));
            }
            if let (Some(file), Some(bytes)) = (file, bytes) {
                *found.entry(file).or_insert(0) += 1;
                if let Some(fault) = self.files[file].fault(bytes) {
                    return Some(format!("{}, file {file}: {fault}", NAMES[name]));
                }
            }
        }
        for (number, file) in self.files.iter().enumerate() {
            let count = found.get(&number).copied().unwrap_or(0);
            if count > 1 && !file.linked {
                return Some(format!("file {number} has both names of a rename"));
            }
            let durable = self.names.iter().any(|name| name[0] == Some(number));
            if count == 0 && durable && !self.unnamed.contains(&number) {
                return Some(format!("file {number} has lost its name"));
            }
        }
        None
    }

    /// The files as they are without a crash.
    fn current(&self) -> Files {
        let file = |name| Some((path(name), self.files[self.named(name)?].bytes.clone()));
        (0..NAMES.len()).filter_map(file).collect()
    }
}

impl FileModel {
    fn take(&mut self, step: &Step) {
        match *step {
            Step::Write { at, len, byte, .. } => {
                // The part below an image belongs to the image.
                let image_len = self.image.as_ref().map_or(0, |image| image.len() as u64);
                let at = at.max(image_len);
                let bytes: Vec<u8> = (0..len).map(|i| byte.wrapping_mul(i as u8 | 1)).collect();
                write_all_at(self.handle.as_ref(), &bytes, at).unwrap();
                self.write(at as usize, &bytes);
            }
            Step::Publish { len, byte, .. } => self.publish(len, byte),
            Step::SetLen { len, .. } => {
                let image_len = self.image.as_ref().map_or(0, |image| image.len() as u64);
                let len = len.max(image_len);
                self.handle.set_len(len).unwrap();
                self.set_len(len as usize);
            }
            Step::Sync { .. } => {
                self.handle.sync().unwrap();
                self.synced();
            }
            _ => {
                let handle: &dyn std::any::Any = self.handle.as_ref();
                handle
                    .downcast_ref::<crate::io::sim::SimFile>()
                    .unwrap()
                    .fail_sync();
                self.suspect = true;
                self.dirty = false;
            }
        }
    }

    fn publish(&mut self, len: usize, byte: u8) {
        if self.image.is_none() {
            let image = Arc::new(self.handle.image(self.bytes.len()).unwrap().unwrap());
            image.reserve(SECTOR_LEN).unwrap();
            image.publish(SECTOR_LEN);
            self.image = Some(image);
        }
        let image = self.image.as_ref().unwrap();
        let Some(mut slot) = image.reserve(len) else {
            // Full: the next one starts anew.
            self.image = None;
            return;
        };
        slot.bytes_mut().fill(byte);
        let (at, end) = (slot.at(), slot.end());
        drop(slot);
        image.publish(end);
        self.write(at, &vec![byte; len]);
    }
}

/// The first difference of two images, in few words.
fn difference(a: &Files, b: &Files) -> Option<String> {
    for path in a.keys().chain(b.keys()) {
        match (a.get(path), b.get(path)) {
            (Some(x), Some(y)) if x == y => {}
            (Some(x), Some(y)) => {
                let at = x.iter().zip(y).position(|(x, y)| x != y);
                return Some(format!(
                    "{path:?}: {} and {} long, {at:?}",
                    x.len(),
                    y.len()
                ));
            }
            (x, y) => return Some(format!("{path:?}: {} and {}", x.is_some(), y.is_some())),
        }
    }
    None
}

type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Runs a history and judges what each damage leaves of it.
fn check(steps: &[Step], seed: u64) -> Result<(), TestCaseError> {
    let mut model = Model::new(seed);
    for step in steps {
        model.take(step);
    }
    prop_assert_eq!(difference(&model.disk.files(), &model.current()), None);
    for (index, damage) in Damage::ALL.into_iter().enumerate() {
        let seed = seed.wrapping_add(index as u64);
        let after = model.disk.crash(seed, damage);
        let image = after.files();
        if let Some(fault) = model.fault(&image) {
            let message = format!(
                "{damage:?} {seed}: {fault}\n{}\n{after:?}",
                model.disk.dump()
            );
            return Err(TestCaseError::fail(message));
        }
        let again = model.disk.crash(seed, damage);
        prop_assert_eq!(again.dump(), after.dump());
        prop_assert_eq!(difference(&again.files(), &image), None);
        let forked = model.disk.fork().crash(seed, damage).files();
        prop_assert_eq!(difference(&forked, &image), None);
        // What a crash left is durable: the next one changes nothing.
        for again in Damage::ALL {
            prop_assert_eq!(difference(&after.crash(seed, again).files(), &image), None);
        }
        if damage == Damage::KeepAll {
            prop_assert_eq!(difference(&image, &model.current()), None);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_crash_leaves_only_what_the_model_allows(
        steps in prop::collection::vec(step(), 1..60), seed: u64,
    ) {
        check(&steps, seed)?;
    }

    #[test]
    fn equal_histories_make_equal_disks(steps in prop::collection::vec(step(), 1..40), seed: u64) {
        let run = || {
            let mut model = Model::new(seed);
            steps.iter().for_each(|step| model.take(step));
            (model.disk.dump(), model.disk.crash(seed, Damage::Mixed).files())
        };
        prop_assert_eq!(run(), run());
    }
}

/// A history with something unsynced of every kind.
fn history() -> Model {
    let mut model = Model::new(1);
    for name in [0, 1, 3] {
        model.take(&Step::Create { name });
    }
    model.take(&Step::SyncDirs);
    for file in 0..3 {
        model.take(&Step::SetLen { file, len: 2_000 });
        model.take(&Step::Sync { file });
        for n in 1..=3 {
            let at = 300 + u64::from(n) * 700;
            model.take(&Step::Write {
                file,
                at,
                len: 1_500,
                byte: n,
            });
        }
    }
    model.take(&Step::Rename { from: 0, to: 2 });
    model.take(&Step::Create { name: 0 });
    model.take(&Step::Remove { name: 1 });
    model
}

#[test]
fn every_damage_leaves_images_of_its_own() {
    let model = history();
    let mut by_damage = Vec::new();
    for damage in Damage::ALL {
        let images: BTreeSet<_> = (0..200)
            .map(|seed| model.disk.crash(seed, damage).files())
            .collect();
        println!("{damage:?}: {} images", images.len());
        let one = [
            Damage::LoseAll,
            Damage::KeepAll,
            Damage::LoseNames,
            Damage::OnlyNames,
            Damage::LoseData,
            Damage::LoseLengths,
        ];
        assert_eq!(images.len() == 1, one.contains(&damage), "{damage:?}");
        by_damage.push(images);
    }
    let fixed: BTreeSet<_> = by_damage
        .iter()
        .filter(|images| images.len() == 1)
        .collect();
    assert_eq!(
        fixed.len(),
        6,
        "damages without chance differ from each other"
    );
}

#[test]
fn random_damage_loses_and_keeps_every_sector_length_and_name() {
    let model = history();
    let mut seen: BTreeMap<(PathBuf, usize), BTreeSet<Vec<u8>>> = BTreeMap::new();
    let mut lens = BTreeSet::new();
    for seed in 0..500 {
        let image = model.disk.crash(seed, Damage::Sectors).files();
        for (path, bytes) in image {
            lens.insert((path.clone(), bytes.len()));
            for (index, part) in bytes.chunks(SECTOR_LEN).enumerate() {
                seen.entry((path.clone(), index))
                    .or_default()
                    .insert(part.to_vec());
            }
        }
    }
    let moved = path(2);
    // 1,000 to 2,500, 1,700 to 3,200 and 2,400 to 3,900 were written: sector 4 had four values.
    let whole =
        |values: &BTreeSet<Vec<u8>>| values.iter().filter(|v| v.len() == SECTOR_LEN).count();
    assert_eq!(whole(&seen[&(moved.clone(), 2)]), 2);
    assert_eq!(whole(&seen[&(moved.clone(), 4)]), 4);
    let lens: Vec<usize> = lens
        .into_iter()
        .filter(|(p, _)| *p == moved)
        .map(|(_, l)| l)
        .collect();
    assert_eq!(lens, [2_000, 2_500, 3_200, 3_900]);
}
/// A sector that a failed sync lost and that was changed again keeps all its changes waiting when
/// the file is opened. Once, some of the lost ones were settled as durable and then made a second
/// time on top of later ones, which made a value that the sector never had.
#[test]
fn a_lost_sector_that_was_changed_again_is_not_settled() {
    let steps = [
        Step::Create { name: 1 },
        Step::Write {
            file: 0,
            at: 588,
            len: 1,
            byte: 0,
        },
        Step::Write {
            file: 0,
            at: 512,
            len: 2_694,
            byte: 1,
        },
        Step::FailSync { file: 0 },
        Step::Publish {
            file: 0,
            len: 3,
            byte: 1,
        },
        Step::Open { name: 1 },
    ];
    for seed in 0..200 {
        check(&steps, seed).unwrap();
    }
}

/// A length that was changed after a failed sync stays in memory when the file is opened. Once, the
/// file was cut to an older length and extended again, which zeroed a part of a sector.
#[test]
fn a_lost_length_that_was_changed_again_cuts_nothing() {
    let steps = [
        Step::Create { name: 1 },
        Step::Write {
            file: 0,
            at: 1_332,
            len: 3_230,
            byte: 2,
        },
        Step::SetLen {
            file: 0,
            len: 2_951,
        },
        Step::Write {
            file: 0,
            at: 2_784,
            len: 183,
            byte: 3,
        },
        Step::FailSync { file: 0 },
        Step::Write {
            file: 0,
            at: 15_324,
            len: 2_632,
            byte: 2,
        },
        Step::Open { name: 1 },
    ];
    for seed in 0..200 {
        check(&steps, seed).unwrap();
    }
}
