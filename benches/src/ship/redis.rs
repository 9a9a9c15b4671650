//! Redis: a primary and one replica by PSYNC, every write synced on both.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use redis::{Connection, cmd, pipe};

use super::server::{Server, find, free_port, wait_until};
use super::system::{Level, Result, STAMP_KEY, System, VALUE_LEN, Writer, ages, stamp};

pub const SETTINGS: &str = "appendonly, appendfsync always, no snapshots; SET, at `received` with WAIT 1 in one \
     round trip: it has nothing for `durable` and `applied`; over loopback TCP";

pub struct Redis {
    port: u16,
    replica_port: u16,
    _replica: Server,
    _primary: Server,
}

impl Redis {
    pub fn start(dir: &Path) -> Result<Redis> {
        let (port, replica_port) = (free_port()?, free_port()?);
        let primary = server(dir, "primary", port, &[])?;
        let of = [
            "--replicaof".to_owned(),
            "127.0.0.1".to_owned(),
            port.to_string(),
        ];
        let redis = Redis {
            port,
            replica_port,
            _replica: server(dir, "replica", replica_port, &of)?,
            _primary: primary,
        };
        wait_until(|| {
            let mut writer = redis.writer(Level::Received)?.ok_or("a writer")?;
            Ok(writer.put(&STAMP_KEY, &stamp()).is_ok())
        })?;
        Ok(redis)
    }
}

fn server(dir: &Path, name: &str, port: u16, more: &[String]) -> Result<Server> {
    let program = find("redis-server", &[]).ok_or("redis-server is not installed")?;
    let dir = dir.join(name);
    std::fs::create_dir(&dir)?;
    let mut command = Command::new(program);
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]);
    command.args(["--appendfsync", "always", "--repl-diskless-sync-delay", "0"]);
    command
        .args(["--port", &port.to_string(), "--dir"])
        .arg(&dir)
        .args(more);
    Server::start(&mut command, &dir.with_extension("log"))
}

fn connect(port: u16) -> Result<Connection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}/"))?;
    Ok(client.get_connection()?)
}

impl System for Redis {
    fn writer(&self, level: Level) -> Result<Option<Box<dyn Writer>>> {
        let waits = match level {
            Level::Async => false,
            Level::Received => true,
            Level::Durable | Level::Applied => return Ok(None),
        };
        let connection = connect(self.port)?;
        Ok(Some(Box::new(RedisWriter { connection, waits })))
    }

    fn watch(&self, time: Duration) -> Result<Vec<u64>> {
        let mut connection = connect(self.replica_port)?;
        ages(time, || {
            Ok(cmd("GET").arg(&STAMP_KEY).query(&mut connection)?)
        })
    }
}

struct RedisWriter {
    connection: Connection,
    waits: bool,
}

impl Writer for RedisWriter {
    fn put(&mut self, key: &[u8; 16], value: &[u8; VALUE_LEN]) -> Result<()> {
        let mut set = cmd("SET");
        set.arg(key).arg(value);
        if !self.waits {
            return Ok(set.exec(&mut self.connection)?);
        }
        let mut both = pipe();
        both.add_command(set)
            .ignore()
            .cmd("WAIT")
            .arg(1)
            .arg(10_000);
        let (count,): (usize,) = both.query(&mut self.connection)?;
        match count {
            0 => Err("the replica did not confirm".into()),
            _ => Ok(()),
        }
    }
}
