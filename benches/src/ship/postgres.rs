//! PostgreSQL: a primary and one standby by streaming replication, over a socket in the file system.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use postgres::{Client, NoTls, Statement};

use super::server::{Server, find, run, wait_until};
use super::system::{Level, Result, STAMP_KEY, System, VALUE_LEN, Writer, ages, stamp};

pub const SETTINGS: &str = "synchronous_standby_names '*'; synchronous_commit local, remote_write, on, \
     remote_apply; shared_buffers 256 MB, max_wal_size 4 GB; prepared upserts of one row over a Unix socket";

const PORT: u16 = 5432;

pub struct Postgres {
    dir: PathBuf,
    standby: Option<Server>,
    primary: Option<Server>,
}

/// Who runs it: it refuses to run as root.
fn program(name: &str) -> Result<Command> {
    let mut dirs: Vec<PathBuf> = match std::fs::read_dir("/usr/lib/postgresql") {
        Ok(versions) => versions
            .map(|version| Ok(version?.path().join("bin")))
            .collect::<Result<_>>()?,
        Err(_) => Vec::new(),
    };
    dirs.sort();
    dirs.reverse();
    let program = find(name, &dirs).ok_or_else(|| format!("{name} is not installed"))?;
    if !rustix::process::geteuid().is_root() {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.arg(program);
    Ok(command)
}

impl Postgres {
    pub fn start(dir: &Path) -> Result<Postgres> {
        let dir = dir.to_owned();
        if rustix::process::geteuid().is_root() {
            let owner = std::fs::read_to_string("/etc/passwd")?;
            let owner = owner
                .lines()
                .find_map(|line| line.strip_prefix("postgres:x:"));
            let mut ids = owner.ok_or("a user postgres")?.split(':');
            let mut id = || ids.next().map(str::parse::<u32>);
            let (user, group) = (id().ok_or("a user")??, id().ok_or("a group")??);
            chown(&dir, Some(user), Some(group))?;
            let above = dir.parent().ok_or("a directory above")?;
            std::fs::set_permissions(above, PermissionsExt::from_mode(0o755))?;
        }
        let (first, second) = (dir.join("primary"), dir.join("standby"));
        run(program("initdb")?
            .args(["-A", "trust", "-U", "postgres", "-D"])
            .arg(&first))?;
        let mut postgres = Postgres {
            primary: Some(server(&dir, &first, PORT)?),
            standby: None,
            dir,
        };
        wait_until(|| postgres.connect(PORT).map(|_| true))?;
        let mut client = postgres.connect(PORT)?;
        client.batch_execute(
            "SET synchronous_commit = local; \
             CREATE TABLE map (k bytea PRIMARY KEY, v bytea NOT NULL)",
        )?;
        run(program("pg_basebackup")?
            .args(["-U", "postgres", "-R", "-X", "stream", "-c", "fast", "-p"])
            .arg(PORT.to_string())
            .arg("-h")
            .arg(&postgres.dir)
            .arg("-D")
            .arg(&second))?;
        postgres.standby = Some(server(&postgres.dir, &second, PORT + 1)?);
        wait_until(|| {
            let row = client.query_one(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'",
                &[],
            )?;
            Ok(row.get::<_, i64>(0) == 1)
        })?;
        let mut writer = postgres.writer(Level::Applied)?.ok_or("a writer")?;
        writer.put(&STAMP_KEY, &stamp())?;
        Ok(postgres)
    }

    fn connect(&self, port: u16) -> Result<Client> {
        let dir = self.dir.display();
        let how = format!("host={dir} port={port} user=postgres dbname=postgres");
        Ok(Client::connect(&how, NoTls)?)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A primary that ends first waits for its standby.
        self.standby = None;
        self.primary = None;
    }
}

fn server(dir: &Path, data: &Path, port: u16) -> Result<Server> {
    let settings = [
        "listen_addresses=".to_owned(),
        format!("unix_socket_directories={}", dir.display()),
        format!("port={port}"),
        "wal_level=replica".to_owned(),
        "synchronous_standby_names=*".to_owned(),
        "shared_buffers=256MB".to_owned(),
        "max_wal_size=4GB".to_owned(),
    ];
    let mut command = program("postgres")?;
    command.arg("-D").arg(data);
    for setting in settings {
        command.args(["-c", &setting]);
    }
    Server::start(&mut command, &data.with_extension("log"))
}

impl System for Postgres {
    fn writer(&self, level: Level) -> Result<Option<Box<dyn Writer>>> {
        let level = match level {
            Level::Async => "local",
            Level::Received => "remote_write",
            Level::Durable => "on",
            Level::Applied => "remote_apply",
        };
        let mut client = self.connect(PORT)?;
        client.batch_execute(&format!("SET synchronous_commit = {level}"))?;
        let put = client.prepare(
            "INSERT INTO map VALUES ($1, $2) ON CONFLICT (k) DO UPDATE SET v = excluded.v",
        )?;
        Ok(Some(Box::new(PostgresWriter { client, put })))
    }

    fn watch(&self, time: Duration) -> Result<Vec<u64>> {
        let mut client = self.connect(PORT + 1)?;
        let get = client.prepare("SELECT v FROM map WHERE k = $1")?;
        ages(time, || {
            let row = client.query_opt(&get, &[&&STAMP_KEY[..]])?;
            Ok(row.map(|row| row.get(0)))
        })
    }
}

struct PostgresWriter {
    client: Client,
    put: Statement,
}

impl Writer for PostgresWriter {
    fn put(&mut self, key: &[u8; 16], value: &[u8; VALUE_LEN]) -> Result<()> {
        self.client.execute(&self.put, &[&&key[..], &&value[..]])?;
        Ok(())
    }
}
