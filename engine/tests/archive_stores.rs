//! Archives in a directory and in an S3 emulator; without the emulator that test says so and passes.
//! No part of CI: `CONTRIBUTING.md` has the command.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strandline::archive::{ArchiveOptions, ArchiveStore, ObjectArchive, Target, check, restore};
use strandline::{Database, DatasetId, Options};
use strandline_wal::io::Env;

const LIMIT: Duration = Duration::from_secs(60);

/// Archives while a thread writes, ends, goes on, and restores the middle and the end.
fn round(open: impl Fn() -> Arc<dyn ArchiveStore>) {
    let dir = tempfile::tempdir().unwrap();
    let options = || ArchiveOptions {
        interval_ms: 20,
        checkpoint_len: 1 << 20,
        ..ArchiveOptions::default()
    };
    let small = Options {
        segment_len_start: 64 << 10,
        segment_len_max: 256 << 10,
        memtable_len_max: 256 << 10,
        ..Options::default()
    };
    let mut middle = Vec::new();
    for life in 0..2u64 {
        let db = small.clone().open(dir.path().join("db")).unwrap();
        let dataset = db.dataset("").unwrap();
        let mut archiving = dataset.archive(open(), options()).unwrap();
        let map = db.keyspace("map").unwrap();
        for n in 0..1_000u64 {
            map.put((life * 1_000 + n).to_be_bytes(), vec![n as u8; 1_000])
                .unwrap();
            if (life, n) == (0, 700) {
                middle = dataset.positions().iter().map(|end| end.seq).collect();
            }
        }
        let end: Vec<u64> = dataset.positions().iter().map(|end| end.seq).collect();
        let start = Instant::now();
        while archiving.status().seqs != end || archiving.status().base_count == 0 {
            assert!(start.elapsed() < LIMIT, "{:?}", archiving.status());
            std::thread::sleep(Duration::from_millis(10));
        }
        // Nothing new, nothing asked.
        let before = archiving.status().request_count;
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(archiving.status().request_count, before);
        archiving.stop();
        db.close().unwrap();
    }
    let (store, id, env) = (open(), DatasetId::new("").unwrap(), Env::real());
    check(&env, store.as_ref(), &id, None).unwrap();
    for (name, target, count) in [
        ("middle", Target::Position(middle), 701),
        ("latest", Target::Latest, 2_000),
    ] {
        let into = dir.path().join(name);
        restore(&env, store.as_ref(), &id, None, &target, &into).unwrap();
        let db = Database::open(&into).unwrap();
        assert_eq!(db.keyspace("map").unwrap().iter().count(), count);
        assert!(db.dataset("").unwrap().scrub().problems.is_empty());
    }
}

#[test]
fn a_directory_keeps_an_archive() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("file://{}/archive", dir.path().display());
    round(|| Arc::new(ObjectArchive::open(&address, []).unwrap()));
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The emulator: as an environment variable names it, below the target directory, or on the path.
fn emulator() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("STRANDLINE_MOTO_SERVER") {
        return Some(PathBuf::from(path));
    }
    let exe = std::env::current_exe().unwrap();
    let servers = exe.ancestors().map(|dir| dir.join("servers/bin"));
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut found = servers
        .chain(std::env::split_paths(&paths))
        .map(|dir| dir.join("moto_server"));
    found.find(|path| path.is_file())
}

#[test]
fn an_s3_emulator_keeps_an_archive() {
    let Some(program) = emulator() else {
        println!("SKIPPED: moto_server is not installed, and STRANDLINE_MOTO_SERVER names none");
        return;
    };
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut command = Command::new(program);
    let command = command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
    let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
    let _server = Server(quiet.spawn().unwrap());
    let start = Instant::now();
    let mut stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(_) => assert!(start.elapsed() < LIMIT, "nothing listens on {port}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let head = "Host: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    write!(stream, "PUT /bucket HTTP/1.1\r\n{head}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    let settings = [
        ("AWS_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("AWS_ACCESS_KEY_ID", "strandline".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "strandline".to_owned()),
    ];
    round(|| {
        let settings = settings
            .clone()
            .map(|(name, value)| (name.to_owned(), value));
        Arc::new(ObjectArchive::open("s3://bucket/some/where", settings).unwrap())
    });
}
