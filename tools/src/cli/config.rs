//! The configuration file of `strandline node`, in TOML.
//!
//! | Part | File |
//! |------|------|
//! | every key, its range, default and meaning; the example | `keys` |
//! | from text to checked values, with errors that name line and column | `parse` |
//! | what the values mean together | here |

mod keys;
mod parse;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use strandline::replica::Links;
use strandline::{DatasetId, Options, ShardRouter};

use self::parse::{Source, Table, Tables};
use super::links::LinkArgs;
use crate::failure::{During, Result};
use crate::log::{Format, Level};

pub(super) use keys::example;

/// What a node does.
#[derive(Clone, Debug)]
pub(super) struct Config {
    /// The database directory.
    pub dir: PathBuf,
    /// Number of shards; `None`: as stored, or as the leader has.
    pub shards: Option<u16>,
    /// Where it listens for other nodes.
    pub listen: String,
    /// Where it serves metrics.
    pub http: Option<SocketAddr>,
    /// How it writes its log.
    pub log_format: Format,
    /// The least urgent that it tells.
    pub log_level: Level,
    /// What it does with each dataset.
    pub datasets: Vec<DatasetConfig>,
    advertise: Option<String>,
    tls: LinkArgs,
    heal: bool,
    options: Options,
    toml: String,
}

/// A dataset, and what the node does with it.
#[derive(Clone, Debug)]
pub(super) struct DatasetConfig {
    /// Its name.
    pub name: DatasetId,
    /// What the node does with it.
    pub role: RoleConfig,
}

/// What a node does with a dataset.
#[derive(Clone, Debug)]
pub(super) enum RoleConfig {
    /// It takes the writes, and ships them.
    Leader,
    /// It takes what a leader ships.
    Follower {
        /// The leader's address, or what its command is known as.
        leader: String,
        /// The command that reaches it; none where there is an address.
        command: Vec<String>,
    },
    /// It takes part in automatic failover.
    Elected(ElectedConfig),
}

/// How a node takes part in automatic failover.
#[derive(Clone, Debug)]
pub(super) struct ElectedConfig {
    /// The other nodes.
    pub peers: Vec<String>,
    /// Followers in sync without which no write that waits for followers is acknowledged.
    pub min_in_sync: u8,
    /// How long a leader that is not heard of is waited for.
    pub lease: Duration,
    /// How long a follower may lag behind before it is no longer waited for.
    pub in_sync: Duration,
    /// Where the record of who leads is kept.
    pub coordinator: String,
    /// Whether this node leads where there is no record yet.
    pub first: bool,
}

impl Config {
    /// Reads and checks a file. Nothing else is touched.
    pub fn read(path: &Path) -> Result<Config> {
        let text = std::fs::read_to_string(path).during("read", path)?;
        Config::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Config> {
        let mut tables = parse::parse(path, text)?;
        resolve(&mut tables);
        let source = tables.source;
        let root = tables.or_default("");
        let datasets = datasets(&tables)?;
        let tls = links(&tables)?;
        let listen = root.text("listen").unwrap_or_default();
        if !is_loopback(&listen) && tables.get("tls").is_none() {
            let text = format!("listen: found {listen}, expected a loopback address, or [tls]");
            return Err(source.error(root.at("listen"), text));
        }
        let log = tables.or_default("log");
        let config = Config {
            dir: root.text("dir").unwrap_or_default().into(),
            shards: root.number("shards").and_then(|n| u16::try_from(n).ok()),
            listen,
            http: http(&tables)?,
            log_format: match log.text("format").as_deref() {
                Some("json") => Format::Json,
                _ => Format::Text,
            },
            log_level: log.text("level").map_or(Level::INFO, |level| {
                level.parse().expect("the table has levels alone")
            }),
            advertise: root.text("advertise"),
            tls,
            heal: root.flag("heal"),
            options: limits(&source, &root, &tables.or_default("limits"))?,
            toml: tables.toml(),
            datasets,
        };
        if config.heal && config.leaders().is_empty() {
            let text = "heal: found true, expected a dataset that follows, whose leader has a copy";
            return Err(source.error(root.at("heal"), text));
        }
        Ok(config)
    }

    /// Everything that is in force, as TOML.
    pub fn toml(&self) -> &str {
        &self.toml
    }

    /// How connections to other nodes are made. Reads the files of TLS.
    pub fn links(&self) -> Result<Links> {
        let mut links = Links {
            advertise: self.advertise.clone(),
            ..self.tls.read()?
        };
        for dataset in &self.datasets {
            if let RoleConfig::Follower { leader, command } = &dataset.role
                && !command.is_empty()
            {
                links.commands.insert(leader.clone(), command.clone());
            }
        }
        Ok(links)
    }

    /// Whether damage is mended by what leaders have.
    pub fn heals(&self) -> bool {
        self.heal
    }

    /// The leaders of datasets that follow, and those datasets.
    pub fn leaders(&self) -> Vec<(String, DatasetId)> {
        let leader = |dataset: &DatasetConfig| match &dataset.role {
            RoleConfig::Follower { leader, .. } => Some((leader.clone(), dataset.name.clone())),
            RoleConfig::Leader | RoleConfig::Elected(_) => None,
        };
        self.datasets.iter().filter_map(leader).collect()
    }

    /// The engine's settings; `router` is that of what is stored or of the leader.
    pub fn options(&self, links: Links, router: ShardRouter) -> Options {
        let is_leading = |dataset: &DatasetConfig| matches!(dataset.role, RoleConfig::Leader);
        let mut options = self.options.clone();
        options.links = links;
        options.router = router;
        let followed = self.datasets.iter().filter(|dataset| !is_leading(dataset));
        options.followed = followed.map(|dataset| dataset.name.clone()).collect();
        if self.heal {
            options.heal_from = self
                .leaders()
                .into_iter()
                .map(|(leader, _)| leader)
                .collect();
            options.heal_from.dedup();
        }
        options
    }
}

fn is_loopback(address: &str) -> bool {
    let parsed: Result<SocketAddr, _> = address.parse();
    parsed.is_ok_and(|address| address.ip().is_loopback())
}

/// Paths of the file are from its own directory.
fn resolve(tables: &mut Tables<'_>) {
    let base = tables.source.path.parent().unwrap_or(Path::new(""));
    let base = base.to_owned();
    tables.each_path(|path| base.join(path).display().to_string());
}

fn links(tables: &Tables<'_>) -> Result<LinkArgs> {
    let Some(tls) = tables.get("tls") else {
        return Ok(LinkArgs::default());
    };
    let (authorities, pins) = (tls.list("authorities"), tls.list("pins"));
    if authorities.is_empty() && pins.is_empty() {
        let text = "tls: found neither authorities nor pins, expected some node to be trusted";
        return Err(tables.source.error(tls.at, text));
    }
    Ok(LinkArgs {
        tls_cert: tls.text("certificate").map(PathBuf::from),
        tls_key: tls.text("key").map(PathBuf::from),
        tls_authorities: authorities.into_iter().map(PathBuf::from).collect(),
        tls_pins: pins.iter().filter_map(|pin| pin.parse().ok()).collect(),
    })
}

fn http(tables: &Tables<'_>) -> Result<Option<SocketAddr>> {
    let http = tables.or_default("http");
    let Some(listen) = http.text("listen") else {
        return Ok(None);
    };
    if !is_loopback(&listen) && !http.flag("beyond_loopback") {
        let text = format!(
            "http.listen: found {listen}, expected a loopback address, or beyond_loopback = true: \
             nobody has to authenticate there"
        );
        return Err(tables.source.error(http.at("listen"), text));
    }
    Ok(listen.parse().ok())
}

fn limits(source: &Source<'_>, root: &Table, limits: &Table) -> Result<Options> {
    let number = |name| limits.number(name).unwrap_or_default();
    let count = |name| usize::try_from(number(name)).unwrap_or(usize::MAX);
    let settle_ms = number("settle_after_ms");
    let options = Options {
        memtable_len_max: number("memtable_len_max"),
        memtable_count_max: count("memtable_count_max"),
        segment_len_start: number("segment_len_start"),
        segment_len_max: number("segment_len_max"),
        large_value_len_min: count("large_value_len_min"),
        table_len_max: number("table_len_max"),
        run_count_max: count("run_count_max"),
        settle_after: (settle_ms > 0).then_some(Duration::from_millis(settle_ms)),
        cache_len_max: number("cache_len_max"),
        reserve_len_max: number("reserve_len_max"),
        slot_bytes_max: Some(number("slot_bytes_max")).filter(|len| *len > 0),
        slot_idle_max_ms: number("slot_idle_max_ms"),
        scrub_rate: root.number("scrub_rate").unwrap_or_default(),
        ..Options::default()
    };
    match options.check() {
        Err(strandline::Error::Argument {
            what,
            expected,
            found,
        }) => {
            let text = format!("limits.{what}: found {found}, expected {expected}");
            Err(source.error(limits.at(what), text))
        }
        checked => Ok(checked.map(|()| options)?),
    }
}

fn datasets(tables: &Tables<'_>) -> Result<Vec<DatasetConfig>> {
    let source = &tables.source;
    if tables.datasets.is_empty() {
        return Err(source.error(0, "found no [[dataset]], expected at least one"));
    }
    let mut datasets: Vec<DatasetConfig> = Vec::new();
    for table in &tables.datasets {
        let name = table.text("name").unwrap_or_default();
        let wrong = |why: String| source.error(table.at("name"), format!("dataset.name: {why}"));
        let name = DatasetId::new(&name).map_err(|error| {
            wrong(format!(
                "found {:?}, expected {}",
                error.found, error.expected
            ))
        })?;
        if datasets.iter().any(|other| other.name == name) {
            return Err(wrong(format!(
                "found \"{name}\" twice, expected each dataset once"
            )));
        }
        let role = role(source, table)?;
        datasets.push(DatasetConfig { name, role });
    }
    Ok(datasets)
}

fn role(source: &Source<'_>, table: &Table) -> Result<RoleConfig> {
    match table.text("role").as_deref() {
        Some("follower") => {
            let (leader, command) = (table.text("leader"), table.list("leader_command"));
            match (leader, command.is_empty()) {
                (Some(leader), true) => Ok(RoleConfig::Follower { leader, command }),
                (None, false) => {
                    let leader = command.join(" ");
                    Ok(RoleConfig::Follower { leader, command })
                }
                (leader, _) => {
                    let found = match leader {
                        Some(_) => "both leader and",
                        None => "neither leader nor",
                    };
                    let text = format!(
                        "dataset.leader: found {found} leader_command, expected one of them"
                    );
                    Err(source.error(table.at("leader"), text))
                }
            }
        }
        Some("elected") => elected(source, table).map(RoleConfig::Elected),
        _ => Ok(RoleConfig::Leader),
    }
}

fn elected(source: &Source<'_>, table: &Table) -> Result<ElectedConfig> {
    let peers = table.list("peers");
    let min_in_sync = table.number("min_in_sync").unwrap_or_default();
    let peer_count = peers.len() as u64;
    if min_in_sync > peer_count {
        let text = format!(
            "dataset.min_in_sync: found {min_in_sync}, expected no more followers than peers, {peer_count}"
        );
        return Err(source.error(table.at("min_in_sync"), text));
    }
    let time = |name| Duration::from_millis(table.number(name).unwrap_or_default());
    Ok(ElectedConfig {
        peers,
        min_in_sync: u8::try_from(min_in_sync).unwrap_or(u8::MAX),
        lease: time("lease_ms"),
        in_sync: time("in_sync_ms"),
        coordinator: table.text("coordinator").unwrap_or_default(),
        first: table.flag("first"),
    })
}

#[cfg(test)]
mod tests;
