//! `node`: a node as its configuration file describes it, until SIGINT or SIGTERM.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use strandline::files;
use strandline::replica::{ClusterMember, Following, Server};
use strandline::{Database, Options, ShardRouter};
use strandline_wal::io::Env;

use super::config::{Config, RoleConfig, example};
use super::elected::elected;
use super::node::{POLL, ask_router, say};
use crate::failure::{Exit, Failure, Result};
use crate::http::Http;
use crate::http::pages::page;
use crate::log::{self, Teller, one_line};
use crate::notify::{READY, STOPPING, notify};
use crate::open;
use crate::signal::Ending;

/// `strandline node`
#[derive(Args)]
pub struct Node {
    /// The configuration, in TOML
    #[arg(long, value_name = "FILE", required_unless_present = "example")]
    config: Option<PathBuf>,
    /// Check the configuration and print what is in force, as TOML; nothing is started
    #[arg(long, requires = "config")]
    check: bool,
    /// Print a configuration with every key, its range, default and meaning
    #[arg(long, conflicts_with = "config")]
    example: bool,
}

impl Node {
    pub(super) fn run(self) -> Result<Exit> {
        let mut out = std::io::stdout().lock();
        let Some(path) = self.config else {
            out.write_all(example().as_bytes())?;
            return Ok(Exit::Ok);
        };
        let config = Config::read(&path)?;
        if self.check {
            let links = config.links()?;
            config.options(links, ShardRouter::Single).check()?;
            out.write_all(config.toml().as_bytes())?;
            return Ok(Exit::Ok);
        }
        drop(out);
        log::start(config.log_format, config.log_level);
        run(&config).map_err(|failure| {
            // Told as everything else is; the exit code stays.
            let text = one_line(&failure.message);
            tracing::error!(event = "failed", "{text}");
            Failure {
                message: String::new(),
                ..failure
            }
        })
    }
}

fn run(config: &Config) -> Result<Exit> {
    let mut ending = Ending::of_service()?;
    let Some(options) = options(config, &mut ending)? else {
        return Ok(Exit::Ok);
    };
    let database = options.open(&config.dir)?;
    let running = Running::start(config, &database)?;
    let mut teller = Teller::default();
    if let Some(http) = &running.http {
        say(&format!("http {}", http.address()))?;
    }
    let address = running.server.address();
    say(&format!("listening {address}"))?;
    let dir = config.dir.display().to_string();
    tracing::info!(event = "started", dir, "listening {address}");
    notify(READY);
    while !ending.has_come() {
        teller.tell(&database, &running.server);
        std::thread::sleep(POLL);
    }
    teller.tell(&database, &running.server);
    notify(STOPPING);
    tracing::info!(event = "ending", "ends as it was told to");
    running.stop();
    database.close()?;
    tracing::info!(event = "ended", "closed");
    Ok(Exit::Ok)
}

/// What runs beside the database, in the order in which it ends.
struct Running {
    http: Option<Http>,
    elected: Vec<ClusterMember>,
    followings: Vec<Following>,
    server: Server,
}

impl Running {
    fn start(config: &Config, database: &Database) -> Result<Running> {
        for dataset in &config.datasets {
            let name = dataset.name.as_str();
            match &dataset.role {
                RoleConfig::Leader => open::refuse_follower(&database.dataset(name)?)?,
                RoleConfig::Follower { .. } | RoleConfig::Elected(_) => {
                    database.follower(name)?;
                }
            }
        }
        for stored in database.datasets().iter().map(strandline::Dataset::name) {
            if !config.datasets.iter().any(|it| it.name.as_str() == stored) {
                tracing::warn!(
                    event = "unnamed",
                    dataset = stored,
                    "it is stored and not in the configuration: it is served and follows nobody"
                );
            }
        }
        let server = database.serve(&config.listen)?;
        let (mut followings, mut takes_part) = (Vec::new(), Vec::new());
        for dataset in &config.datasets {
            let name = dataset.name.as_str();
            match &dataset.role {
                RoleConfig::Leader => {}
                RoleConfig::Follower { leader, .. } => {
                    followings.push(database.follow(leader, name)?);
                }
                RoleConfig::Elected(how) => takes_part.push(elected(database, name, how)?),
            }
        }
        let shown = database.clone();
        let http = config
            .http
            .map(|listen| Http::start(listen, move |path| page(&shown, path)))
            .transpose()?;
        Ok(Running {
            http,
            elected: takes_part,
            followings,
            server,
        })
    }

    fn stop(self) {
        drop(self.http);
        drop(self.elected);
        self.followings.into_iter().for_each(Following::stop);
        self.server.stop();
    }
}

/// The engine's settings. `None` where a signal came before the leader told its layout.
fn options(config: &Config, ending: &mut Ending) -> Result<Option<Options>> {
    let links = config.links()?;
    let router = |count: u16| match count {
        1 => Ok(ShardRouter::Single),
        _ => ShardRouter::hash(count),
    };
    let configured = config.shards.map(router).transpose()?;
    let leaders = config.leaders();
    let stored = match open::stored_options(&Env::real_pread(), &config.dir) {
        // What the open meets and mends; the leader tells the layout.
        Err(_) if config.heals() => None,
        stored => Some(stored?),
    };
    let is_stored = stored.is_some() && has_manifest(config);
    let stored = stored.unwrap_or_default();
    let router = match (configured, leaders.first()) {
        (Some(router), _) => router,
        (None, Some((leader, dataset))) if !is_stored => {
            match ask_router(leader, dataset.as_str(), &links, ending) {
                Some(router) => router?,
                None => return Ok(None),
            }
        }
        (None, _) => stored.router.clone(),
    };
    let mut options = config.options(links, router);
    options.entity_rule = stored.entity_rule;
    options.node.region = stored.node.region;
    Ok(Some(options))
}

fn has_manifest(config: &Config) -> bool {
    let env = Env::real_pread();
    let stored = open::datasets(&env, &config.dir).unwrap_or_default();
    let has = |dir: &PathBuf| env.disk.stat(&files::manifest(dir)).is_ok();
    stored.iter().any(|(_, dir)| has(dir))
}
