//! The machine: files of the operating system, its clocks and its randomness.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::{Access, Clock, DirEntry, Disk, File, Lock, LockMode, Random, Stat};

pub(super) struct RealDisk;
pub(super) struct RealClock;
pub(super) struct RealRandom;
