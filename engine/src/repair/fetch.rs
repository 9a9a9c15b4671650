//! Fetches the copy that a repair needs, by following the node that leads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use strandline_wal::bug::planted;
use strandline_wal::io::Env;
use strandline_wal::{DatasetId, IoContext, Position, unless};

use crate::config::NodeRole;
use crate::error::{Error, Result};
use crate::files;
use crate::manifest::Manifest;
use crate::options::Options;
use crate::replica::{Links, remote_status_by};
use crate::router::ShardRouter;

/// Longest silence of the peer while its log is fetched.
const PATIENCE_NS: u64 = 60_000_000_000;
/// Time between two looks at how far it has come.
const LOOK: Duration = Duration::from_millis(20);

/// A copy of a leader's datasets beside the damaged database; removed when it is dropped.
pub(crate) struct Fetched {
    env: Env,
    dir: PathBuf,
}

impl Drop for Fetched {
    fn drop(&mut self) {
        // It is nobody's only copy, and the next repair removes what is left of it.
        let _ = unless!("fetch.drop", self.env.disk.remove_dir_all(&self.dir));
    }
}

impl Fetched {
    /// Follows the first of `peers` that leads with a new node, until that has everything of the datasets
    /// `ids` that the peer has now. Ends early where `goes_on` says so.
    ///
    /// # Errors
    /// [`Error::Replication`] where none leads or answers; the disk's.
    pub fn new(
        env: &Env,
        root: &Path,
        peers: &[String],
        links: &Links,
        ids: &[DatasetId],
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Fetched> {
        let mut dir = root.as_os_str().to_owned();
        dir.push(".copy");
        let fetched = Fetched {
            env: env.clone(),
            dir: PathBuf::from(dir),
        };
        let disk = &env.disk;
        disk.remove_dir_all(&fetched.dir)
            .during("remove", &fetched.dir)?;
        for id in ids {
            fetched.fetch(root, peers, links, id, goes_on)?;
        }
        Ok(fetched)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn fetch(
        &self,
        root: &Path,
        peers: &[String],
        links: &Links,
        id: &DatasetId,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<()> {
        let (peer, wanted) = leader_of(peers, links, id)?;
        let mut options = Options {
            links: links.clone(),
            reserve_len_max: 0,
            ..Options::default()
        };
        // The layout is what the damaged manifest says, where it can still be read.
        let path = files::manifest(&files::dataset(root, id));
        if let Ok(Some(manifest)) = Manifest::load(self.env.disk.as_ref(), &path) {
            options.router = manifest.router;
            options.entity_rule = manifest.entity_rule;
            options.node.region = manifest.region;
        }
        if usize::from(options.router.shard_count()) != wanted.len() {
            let shard_count = u16::try_from(wanted.len()).unwrap_or(u16::MAX);
            options.router = ShardRouter::hash(shard_count)?;
        }
        options.node.role = NodeRole::Follower;
        let database = options.open_with(&self.dir, self.env.clone())?;
        let following = database.follow(peer, id.as_str())?;
        let clock = &self.env.clock;
        let (mut moved_ns, mut last) = (clock.mono_ns(), following.status());
        loop {
            let now = following.status();
            let pairs = || now.positions.iter().zip(&wanted);
            if now.positions.len() == wanted.len()
                && pairs().all(|(have, want)| have.seq >= want.seq || planted("fetch.end"))
            {
                break;
            }
            if !goes_on() {
                return Err(Error::Closed("database"));
            }
            if now.positions != last.positions || now.bundle_count != last.bundle_count {
                (moved_ns, last) = (clock.mono_ns(), now);
            } else if clock.mono_ns().saturating_sub(moved_ns) > PATIENCE_NS {
                let why = now.last_error.unwrap_or("no bytes came".to_owned());
                return Err(Error::Replication(format!("{peer}: {why}")));
            }
            std::thread::sleep(LOOK);
        }
        following.stop();
        database.close()
    }
}

/// The first of several nodes that leads a dataset, and where its logs end.
fn leader_of<'a>(
    peers: &'a [String],
    links: &Links,
    id: &DatasetId,
) -> Result<(&'a str, Vec<Position>)> {
    let mut answers = Vec::new();
    for peer in peers {
        match remote_status_by(peer, id.as_str(), links) {
            Ok(status) if status.role == "leader" => return Ok((peer, status.positions)),
            Ok(status) => answers.push(format!("{peer} is a {}", status.role)),
            Err(error) => answers.push(format!("{peer}: {error}")),
        }
    }
    Err(Error::Replication(format!(
        "nobody who leads dataset {id} has a copy to repair it by: {}",
        answers.join("; ")
    )))
}
