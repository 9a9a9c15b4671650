//! The configuration: what is good, what is not and how that is said.

use std::collections::BTreeSet;

use super::keys::{DATASET, SECTIONS};
use super::*;

fn parse(text: &str) -> Result<Config> {
    Config::parse(Path::new("/etc/node.toml"), text)
}

const LEAD: &str = "[[dataset]]\nrole = \"leader\"\n";

/// The example with its comments of keys and tables made keys and tables.
fn uncommented() -> String {
    let is_toml = |line: &str| {
        let name = line.split(' ').next().unwrap_or_default();
        let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
        line.starts_with('[') || is_name && line[name.len()..].starts_with(" = ")
    };
    let line = |line: &str| match line.strip_prefix("# ") {
        // A follower has one of the two.
        Some(rest) if is_toml(rest) && !rest.starts_with("leader_command") => format!("{rest}\n"),
        _ => format!("{line}\n"),
    };
    example().lines().map(line).collect()
}

#[test]
fn the_example_is_good_and_so_is_all_that_it_comments() {
    let config = parse(&example()).unwrap();
    assert_eq!(config.datasets.len(), 1);
    let config = parse(&uncommented()).unwrap();
    assert_eq!(config.datasets.len(), 3);
    assert!(config.http.is_some() && !config.heals());
}

/// `heal` is off in the example, where the one dataset leads.
fn uncommented_healing() -> String {
    uncommented().replace("heal = false", "heal = true")
}

#[test]
fn every_key_stands_in_the_example_with_its_range_and_is_read() {
    let example = example();
    let lines: BTreeSet<&str> = example
        .lines()
        .map(|line| line.trim_start_matches("# "))
        .collect();
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        let start = format!("{} = ", key.name);
        assert!(
            lines.iter().any(|line| line.starts_with(&start)),
            "{}",
            key.name
        );
        assert!(lines.contains(key.help), "{}", key.name);
    }
    // What is in force has them all, too.
    let config = parse(&uncommented_healing()).unwrap();
    for key in SECTIONS.iter().flat_map(|section| section.keys) {
        let start = format!("\n{} = ", key.name);
        let is_there = format!("\n{}", config.toml()).contains(&start);
        assert_eq!(is_there, key.name != "leader_command", "{}", key.name);
    }
}

#[test]
fn what_is_in_force_means_the_same_when_it_is_read() {
    for text in [
        format!("dir = 'a \"b\"\\c'\n{LEAD}"),
        uncommented_healing(),
        format!("dir = \"d\"\n[log]\nformat = \"json\"\n{LEAD}"),
        "dir = \"d\"\n[[dataset]]\nrole = \"follower\"\nleader_command = [\"ssh\", \"a b\"]\n"
            .to_owned(),
    ] {
        let first = parse(&text).unwrap();
        let second = parse(first.toml()).unwrap();
        assert_eq!(first.toml(), second.toml());
        assert_eq!(format!("{first:?}"), format!("{second:?}"));
    }
}

#[test]
fn the_limits_are_those_of_the_engine() {
    let config = parse(&format!("dir = \"d\"\n{LEAD}")).unwrap();
    let options = config.options(Links::default(), ShardRouter::Single);
    assert_eq!(
        format!("{options:?}"),
        format!("{:?}", Options::default()),
        "the defaults"
    );
    // The table refuses what the engine refuses, and nothing else.
    for key in keys::section("limits").unwrap().keys {
        let keys::Kind::Number(min, max, _) = key.kind else {
            panic!("{}", key.name);
        };
        let at = |value: u64| {
            let start = match key.name {
                "segment_len_max" => "segment_len_start = 65536\n",
                "segment_len_start" => "segment_len_max = 1073741824\n",
                _ => "",
            };
            let text = format!(
                "dir = \"d\"\n[limits]\n{start}{} = {value}\n{LEAD}",
                key.name
            );
            parse(&text)
        };
        at(min).unwrap();
        at(max).unwrap();
        let checks = |value: u64| {
            let mut options = Options::default();
            options.segment_len_start = options.segment_len_start.min(64 << 10);
            let count = usize::try_from(value).unwrap();
            match key.name {
                "memtable_len_max" => options.memtable_len_max = value,
                "memtable_count_max" => options.memtable_count_max = count,
                "segment_len_start" => {
                    options.segment_len_start = value;
                    options.segment_len_max = 1 << 30;
                }
                "segment_len_max" => options.segment_len_max = value,
                "large_value_len_min" => options.large_value_len_min = count,
                "table_len_max" => options.table_len_max = value,
                "run_count_max" => options.run_count_max = count,
                // The engine takes any.
                _ => return None,
            }
            Some(options.check().is_ok())
        };
        for (value, is_good) in [
            (min, true),
            (max, true),
            (min.wrapping_sub(1), false),
            (max + 1, false),
        ] {
            if value <= max + 1 && max < i64::MAX as u64 {
                assert_eq!(
                    checks(value).unwrap_or(is_good),
                    is_good,
                    "{} {value}",
                    key.name
                );
                assert_eq!(at(value).is_ok(), is_good, "{} {value}", key.name);
            }
        }
    }
}

#[test]
fn paths_are_from_the_files_directory() {
    let text = format!(
        "dir = \"data\"\n[tls]\ncertificate = \"a.pem\"\nkey = \"/abs/a.key\"\nauthorities = [\"ca.pem\"]\n{LEAD}"
    );
    let config = parse(&text).unwrap();
    assert_eq!(config.dir, Path::new("/etc/data"));
    assert!(
        config.toml().contains("certificate = \"/etc/a.pem\""),
        "{}",
        config.toml()
    );
    assert!(config.toml().contains("key = \"/abs/a.key\""));
    assert!(config.toml().contains("authorities = [\"/etc/ca.pem\"]"));
}

#[test]
fn what_a_node_does_is_what_the_engine_is_told() {
    let text = "dir = \"d\"\nheal = true\n[[dataset]]\nname = \"a\"\nrole = \"leader\"\n\
                [[dataset]]\nname = \"b\"\nrole = \"follower\"\nleader = \"n@h:1\"\n";
    let config = parse(text).unwrap();
    let options = config.options(config.links().unwrap(), ShardRouter::Single);
    let followed: Vec<&str> = options.followed.iter().map(DatasetId::as_str).collect();
    assert_eq!(
        (followed, options.node.role),
        (vec!["b"], strandline::NodeRole::Single)
    );
    assert_eq!(options.heal_from, ["n@h:1"]);
    let text = text.replace(
        "role = \"leader\"",
        "role = \"follower\"\nleader_command = [\"ssh\", \"x\"]",
    );
    let config = parse(&text).unwrap();
    let links = config.links().unwrap();
    assert_eq!(links.commands["ssh x"], ["ssh", "x"]);
    let options = config.options(links, ShardRouter::Single);
    let followed: Vec<&str> = options.followed.iter().map(DatasetId::as_str).collect();
    assert_eq!(followed, ["a", "b"], "and nothing else that is stored");
    assert_eq!(options.heal_from, ["ssh x", "n@h:1"]);
}

/// Each is one line that begins with the place.
#[test]
fn bad_configurations_are_named_by_place_key_found_and_expected() {
    let elected = "[[dataset]]\nrole = \"elected\"\npeers = [\"b:1\"]\nmin_in_sync = 1\ncoordinator = \"file:///x\"\n";
    let with = |line: &str| format!("dir = \"d\"\n{line}\n{LEAD}");
    let dataset = |lines: &str| format!("dir = \"d\"\n[[dataset]]\n{lines}\n");
    let cases: Vec<(String, &str, &str)> = vec![
        // Not TOML.
        ("dir = ".into(), "1:", ""),
        ("dir = \"d\ndir".into(), "1:", ""),
        (with("dir = \"e\""), "2:1", "duplicate key"),
        (with("listen = 127.0.0.1:1"), "2:", ""),
        ("\u{0}".into(), "1:1", ""),
        // Unknown keys and tables.
        (
            with("lisen = \"127.0.0.1:1\""),
            "2:1",
            "lisen: no such key before the tables; did you mean listen?",
        ),
        (with("lmits = 1"), "2:1", "did you mean limits?"),
        (with("cache_len_max = 1"), "2:1", "it belongs to [limits]"),
        (
            with("[http]\ndir = \"d\""),
            "3:1",
            "http.dir: no such key here; it stands before the tables",
        ),
        (
            with("[limit]\ncache_len_max = 1"),
            "2:",
            "did you mean limits?",
        ),
        (
            with("[limits]\ncache_len = 1"),
            "3:1",
            "limits.cache_len: no such key here; did you mean cache_len_max?",
        ),
        (
            with("[tls]\ncert = \"a\""),
            "3:1",
            "did you mean certificate?",
        ),
        (
            with("[log]\nxyzzy = 1"),
            "3:1",
            "log.xyzzy: no such key here",
        ),
        (
            dataset("role = \"leader\"\nminimum_in_sync = 1"),
            "4:1",
            "did you mean min_in_sync?",
        ),
        // Tables that are none.
        (
            with("tls = 1"),
            "2:7",
            "tls: found 1, expected a table [tls]",
        ),
        (
            "dir = \"d\"\n[dataset]\nrole = \"leader\"\n".into(),
            "2:",
            "expected a table [[dataset]]",
        ),
        (
            "dir = \"d\"\ndataset = [1]\n".into(),
            "2:12",
            "found 1, expected a table [[dataset]]",
        ),
        (
            format!("dir = \"d\"\n[[tls]]\nkey = \"k\"\n{LEAD}"),
            "2:",
            "expected a table [tls]",
        ),
        // Types.
        (
            format!("dir = 7\n{LEAD}"),
            "1:7",
            "dir: found 7, expected the path of a file or directory",
        ),
        (format!("dir = \"\"\n{LEAD}"), "1:7", "dir: found \"\""),
        (
            with("heal = \"yes\""),
            "2:8",
            "heal: found \"yes\", expected true or false",
        ),
        (
            with("shards = \"2\""),
            "2:10",
            "shards: found \"2\", expected a number of shards, from 1 to 256",
        ),
        (with("shards = 1.5"), "2:10", "found 1.5"),
        (with("shards = [1]"), "2:10", "found an array"),
        (with("shards = {}"), "2:10", "found a table"),
        (with("scrub_rate = 1979-05-27"), "2:14", "found 1979-05-27"),
        (
            with("[log]\nlevel = \"trace\""),
            "3:9",
            "log.level: found \"trace\", expected one of \"error\"",
        ),
        (
            with("[log]\nformat = 1"),
            "3:10",
            "expected one of \"text\", \"json\"",
        ),
        // Ranges.
        (with("shards = 0"), "2:10", "shards: found 0, expected"),
        (with("shards = 257"), "2:10", "found 257"),
        (with("shards = -1"), "2:10", "found -1"),
        (with("shards = 99999999999999999999999"), "2:", ""),
        (
            with("[limits]\nmemtable_len_max = 1"),
            "3:20",
            "from 65536 to 4294967296",
        ),
        (
            with("[limits]\nsegment_len_max = 65536"),
            "2:",
            "limits.segment_len_start: found 1048576, expected from 0 to 65536",
        ),
        // Addresses.
        (
            with("listen = \"localhost:1\""),
            "2:10",
            "expected an address and a port",
        ),
        (
            with("listen = \"127.0.0.1\""),
            "2:10",
            "found \"127.0.0.1\"",
        ),
        (
            with("listen = \"0.0.0.0:1\""),
            "2:1",
            "listen: found 0.0.0.0:1, expected a loopback address, or [tls]",
        ),
        (
            with("advertise = \"a\""),
            "2:13",
            "expected HOST:PORT or NODE@HOST:PORT",
        ),
        (
            with("[http]\nlisten = \"0.0.0.0:1\""),
            "3:1",
            "or beyond_loopback = true",
        ),
        // TLS.
        (
            with("[tls]\nkey = \"k\""),
            "2:2",
            "tls.certificate: found nothing, expected",
        ),
        (
            with("[tls]\ncertificate = \"c\""),
            "2:2",
            "tls.key: found nothing",
        ),
        (
            with("[tls]\ncertificate = \"c\"\nkey = \"k\""),
            "2:2",
            "found neither authorities nor pins",
        ),
        (
            with("[tls]\nauthorities = \"ca\""),
            "3:15",
            "found \"ca\", expected an array of paths",
        ),
        (
            with("[tls]\nauthorities = []"),
            "3:15",
            "found an empty array",
        ),
        (with("[tls]\nauthorities = [1]"), "3:15", "found 1 in it"),
        (
            with("[tls]\npins = [\"b=12\"]"),
            "3:8",
            "expected an array of NODE=DIGEST",
        ),
        // Datasets.
        ("dir = \"d\"\n".into(), "1:1", "found no [[dataset]]"),
        (LEAD.into(), "1:1", "dir: found nothing, expected the path"),
        (
            dataset("name = \"a\""),
            "2:1",
            "dataset.role: found nothing, expected one of",
        ),
        (
            dataset("role = \"master\""),
            "3:8",
            "found \"master\", expected one of \"leader\", \"follower\", \"elected\"",
        ),
        (
            dataset("role = \"leader\"\nname = \"a/b\""),
            "4:1",
            "dataset.name: found \"a/b\", expected",
        ),
        (
            format!("dir = \"d\"\n{LEAD}{LEAD}"),
            "4:1",
            "dataset.name: found \"primary\" twice",
        ),
        (
            dataset("role = \"leader\"\nleader = \"a:1\""),
            "4:1",
            "dataset.leader: found with role \"leader\", expected with role \"follower\" alone",
        ),
        (
            dataset("role = \"follower\""),
            "2:1",
            "found neither leader nor leader_command",
        ),
        (
            dataset("role = \"follower\"\nleader = \"a:1\"\nleader_command = [\"x\"]"),
            "4:1",
            "found both leader and leader_command",
        ),
        (
            dataset("role = \"follower\"\nleader = \"a:1\"\nlease_ms = 1000"),
            "5:1",
            "expected with role \"elected\" alone",
        ),
        (
            with("heal = true"),
            "2:1",
            "heal: found true, expected a dataset that follows",
        ),
        // Automatic failover.
        (
            format!("dir = \"d\"\n{}", elected.replace("min_in_sync = 1\n", "")),
            "2:1",
            "dataset.min_in_sync: found nothing",
        ),
        (
            format!("dir = \"d\"\n{}", elected.replace("sync = 1", "sync = 2")),
            "5:1",
            "found 2, expected no more followers than peers, 1",
        ),
        (
            format!(
                "dir = \"d\"\n{}",
                elected.replace("peers = [\"b:1\"]\n", "")
            ),
            "2:1",
            "dataset.peers: found nothing",
        ),
        (
            format!("dir = \"d\"\n{}", elected.replace("file:///x", "ftp://x")),
            "6:15",
            "expected a URL that begins with file://",
        ),
        (
            format!("dir = \"d\"\n{}", elected.replace("file:///x", "s3://")),
            "6:15",
            "found \"s3://\"",
        ),
        (
            format!("dir = \"d\"\n{elected}lease_ms = 1\n"),
            "7:12",
            "from 500 to 600000",
        ),
    ];
    let mut unlike = Vec::new();
    for (text, place, said) in &cases {
        let error = parse(text)
            .err()
            .unwrap_or_else(|| panic!("it is good:\n{text}"));
        let line = error.to_string();
        let start = format!("/etc/node.toml:{place}");
        if !line.starts_with(&start) || !line.contains(said) || line.contains('\n') {
            unlike.push(format!("{text}\n-> {line:?}\nnot {start:?} and {said:?}"));
        }
    }
    assert!(unlike.is_empty(), "{}", unlike.join("\n\n"));
    assert!(cases.len() > 50);
    parse(&format!("dir = \"d\"\n{elected}")).unwrap();
    assert_eq!(
        SECTIONS.last().unwrap().name,
        DATASET,
        "no key can stand behind it"
    );
}

#[test]
fn no_text_makes_it_panic() {
    let example = uncommented();
    let bytes = example.as_bytes();
    // Any cut, and any byte made another.
    for n in (0..bytes.len()).step_by(7) {
        let _ = parse(&String::from_utf8_lossy(&bytes[..n]));
        let mut changed = bytes.to_vec();
        changed[n] = [b'"', b'[', b'\n', 0xff, b'='][n % 5];
        let _ = parse(&String::from_utf8_lossy(&changed));
    }
}
