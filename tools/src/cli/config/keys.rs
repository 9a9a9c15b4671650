//! Every key of a configuration file: its type, range, default and what it does.
//!
//! This table is the only description: files are read by it, the example is written from it, and the
//! settings in force are printed by it.

use std::fmt::Write;

/// A key.
pub(super) struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub default: Absence,
    pub help: &'static str,
    /// In `[[dataset]]`: the roles that have it; none for all of them.
    pub roles: &'static [&'static str],
}

/// What a value may be.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    /// A name that the code checks where it reads it.
    Text(&'static str),
    /// A file or directory, from the configuration file's directory where it is relative.
    Path,
    /// As [`Kind::Path`], several.
    Paths,
    /// `IP:PORT` to listen on.
    Listen,
    /// `HOST:PORT` or `NODE@HOST:PORT`.
    Peer,
    /// As [`Kind::Peer`], several.
    Peers,
    /// A program and its arguments.
    Command,
    /// Pins of keys.
    Pins,
    /// One of these.
    Choice(&'static [&'static str]),
    /// A URL with one of these schemes.
    Url(&'static [&'static str]),
    /// `true` or `false`.
    Flag,
    /// A number in a range, and its unit.
    Number(u64, u64, &'static str),
}

/// What a key is where the file does not have it.
#[derive(Clone, Copy)]
pub(super) enum Absence {
    /// The file must have it; the example says this.
    Required(&'static str),
    /// Nothing; the example says this, and the words what nothing means.
    Absent(&'static str, &'static str),
    /// This text.
    Text(&'static str),
    /// This number.
    Number(u64),
    /// This flag.
    Flag(bool),
}

/// The keys of a table of the file.
pub(super) struct Section {
    /// Its name; empty for the keys before all tables.
    pub name: &'static str,
    pub help: &'static str,
    pub keys: &'static [Key],
}

const fn key(name: &'static str, kind: Kind, default: Absence, help: &'static str) -> Key {
    Key {
        name,
        kind,
        default,
        help,
        roles: &[],
    }
}

const fn of(roles: &'static [&'static str], key: Key) -> Key {
    Key { roles, ..key }
}

const MAX: u64 = i64::MAX as u64;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DAY_MS: u64 = 86_400_000;

use Absence::{
    Absent, Flag as DefaultFlag, Number as DefaultNumber, Required, Text as DefaultText,
};
use Kind::{Choice, Command, Flag, Listen, Number, Path, Paths, Peer, Peers, Pins, Text, Url};

/// The name of the tables that there may be several of.
pub(super) const DATASET: &str = "dataset";
/// Roles of a dataset.
pub(super) const ROLES: &[&str] = &["leader", "follower", "elected"];
const FOLLOWER: &[&str] = &["follower"];
const ELECTED: &[&str] = &["elected"];

/// All keys, in the order of the example.
pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "",
        help: "A node: one process, one database, any number of datasets.",
        keys: &[
            key(
                "dir",
                Path,
                Required("/var/lib/strandline/data"),
                "The database directory. It is created where it is absent.",
            ),
            key(
                "shards",
                Number(1, 256, "shards"),
                Absent(
                    "1",
                    "as stored; in a new database as many as the first leader has, else 1",
                ),
                "Number of shards of every dataset, fixed when the database is created.",
            ),
            key(
                "listen",
                Listen,
                DefaultText("127.0.0.1:0"),
                "Address for other nodes: loopback, or any with [tls]. Port 0 takes a free one.",
            ),
            key(
                "advertise",
                Peer,
                Absent("a@a.example:4000", "where it listens"),
                "HOST:PORT at which other nodes reach this one.",
            ),
            key(
                "scrub_rate",
                Number(0, MAX, "bytes per second"),
                DefaultNumber(0),
                "How fast what is stored is read to find damage before it is asked for; 0: not at all.",
            ),
            key(
                "heal",
                Flag,
                DefaultFlag(false),
                "Whether damage of datasets that follow is mended by what their leader has.",
            ),
        ],
    },
    Section {
        name: "tls",
        help: "TLS 1.3 with both ends authenticated, from `strandline certs new`. Files are read at the start.",
        keys: &[
            key(
                "certificate",
                Path,
                Required("/etc/strandline/a.pem"),
                "This node's certificate, in PEM.",
            ),
            key(
                "key",
                Path,
                Required("/etc/strandline/a.key"),
                "Its private key, which nobody else may read (mode 600).",
            ),
            key(
                "authorities",
                Paths,
                Absent("/etc/strandline/ca.pem", "none"),
                "Certificates of authorities whose nodes are trusted.",
            ),
            key(
                "pins",
                Pins,
                Absent(
                    "b=0000000000000000000000000000000000000000000000000000000000000000",
                    "none",
                ),
                "NODE=DIGEST: keys of nodes that are trusted by themselves, as `certs new` prints them.",
            ),
        ],
    },
    Section {
        name: "http",
        help: "Metrics for Prometheus at /metrics, and /health and /status. Nobody has to authenticate.",
        keys: &[
            key(
                "listen",
                Listen,
                Absent("127.0.0.1:9464", "no HTTP"),
                "Address of the HTTP listener.",
            ),
            key(
                "beyond_loopback",
                Flag,
                DefaultFlag(false),
                "Whether that address may be another than a loopback one.",
            ),
        ],
    },
    Section {
        name: "log",
        help: "What is told on standard error, one line each.",
        keys: &[
            key(
                "format",
                Choice(&["text", "json"]),
                DefaultText("text"),
                "How a line is written.",
            ),
            key(
                "level",
                Choice(&["error", "warn", "info", "debug"]),
                DefaultText("info"),
                "The least urgent that is told.",
            ),
        ],
    },
    Section {
        name: "limits",
        help: "Limits of the engine. The defaults are good for most.",
        keys: &[
            key(
                "memtable_len_max",
                Number(64 * KIB, 4 * GIB, "bytes"),
                DefaultNumber(64 * MIB),
                "Log that a memtable may cover before it is flushed. Recovery reads up to this much.",
            ),
            key(
                "memtable_count_max",
                Number(1, 16, "memtables"),
                DefaultNumber(2),
                "Sealed memtables that may wait for their flush before writers wait too.",
            ),
            key(
                "segment_len_start",
                Number(64 * KIB, GIB, "bytes"),
                DefaultNumber(MIB),
                "Capacity of a log's first segment, at most segment_len_max.",
            ),
            key(
                "segment_len_max",
                Number(64 * KIB, GIB, "bytes"),
                DefaultNumber(64 * MIB),
                "Capacity that busy segments double up to.",
            ),
            key(
                "large_value_len_min",
                Number(64, 64 * MIB, "bytes"),
                DefaultNumber(4 * KIB),
                "Values of at least this length stay in their log segment.",
            ),
            key(
                "table_len_max",
                Number(64 * KIB, 2 * GIB, "bytes"),
                DefaultNumber(64 * MIB),
                "Most bytes at which a compaction starts a new table.",
            ),
            key(
                "run_count_max",
                Number(1, 16, "runs"),
                DefaultNumber(4),
                "Sorted runs above the bottom one before they are merged.",
            ),
            key(
                "settle_after_ms",
                Number(0, DAY_MS, "milliseconds"),
                DefaultNumber(200),
                "Pause in writing after which everything becomes one run; 0: never.",
            ),
            key(
                "cache_len_max",
                Number(0, MAX, "bytes"),
                DefaultNumber(64 * MIB),
                "Memory for table blocks where files are not mapped.",
            ),
            key(
                "reserve_len_max",
                Number(0, MAX, "bytes"),
                DefaultNumber(64 * MIB),
                "Disk space kept aside, so that a full disk can be emptied; 0: none.",
            ),
            key(
                "slot_bytes_max",
                Number(0, MAX, "bytes"),
                DefaultNumber(0),
                "Log kept for a follower, which gets a checkpoint if it falls behind further; 0: 10 GiB, or a quarter of the free disk.",
            ),
            key(
                "slot_idle_max_ms",
                Number(60_000, 10 * 366 * DAY_MS, "milliseconds"),
                DefaultNumber(7 * DAY_MS),
                "How long log is kept for a follower that is away.",
            ),
        ],
    },
    Section {
        name: DATASET,
        help: "One dataset. The table may be there several times, at least once.",
        keys: &[
            key(
                "name",
                Text("a dataset name"),
                DefaultText("primary"),
                "The dataset.",
            ),
            key(
                "role",
                Choice(ROLES),
                Required("leader"),
                "What this node does with it: leader, follower, or elected for automatic failover.",
            ),
            of(
                FOLLOWER,
                key(
                    "leader",
                    Peer,
                    Absent(
                        "a@a.example:4000",
                        "none; this or leader_command must be there",
                    ),
                    "The leader's address.",
                ),
            ),
            of(
                FOLLOWER,
                key(
                    "leader_command",
                    Command,
                    Absent(
                        "ssh a strandline serve --stdio --to 127.0.0.1:4000 /data",
                        "none",
                    ),
                    "A command whose standard input and output are the connection to the leader.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "peers",
                    Peers,
                    Required("b@b.example:4000 c@c.example:4000"),
                    "The other nodes that may lead it.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "min_in_sync",
                    Number(0, 63, "followers"),
                    Required("1"),
                    "Followers in sync without which no write that waits for followers is acknowledged.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "lease_ms",
                    Number(500, 600_000, "milliseconds"),
                    DefaultNumber(3_000),
                    "How long a leader that is not heard of is waited for.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "in_sync_ms",
                    Number(100, 600_000, "milliseconds"),
                    DefaultNumber(10_000),
                    "How long a follower may lag behind before it is no longer waited for.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "coordinator",
                    Url(&["file", "s3", "http", "https"]),
                    Required("s3://bucket/prefix"),
                    "Where the record of who leads is kept: file:///DIR, which all nodes see, with an empty directory strandline in it; s3://BUCKET/PREFIX; or etcd's address.",
                ),
            ),
            of(
                ELECTED,
                key(
                    "first",
                    Flag,
                    DefaultFlag(false),
                    "Whether this node leads where there is no record yet. At most one node of a list says so.",
                ),
            ),
        ],
    },
];

/// A table of the file by its name.
pub(super) fn section(name: &str) -> Option<&'static Section> {
    SECTIONS.iter().find(|section| section.name == name)
}

impl Section {
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// Its first line in a file.
    pub fn header(&self) -> String {
        match self.name {
            "" => String::new(),
            DATASET => format!("[[{DATASET}]]\n"),
            name => format!("[{name}]\n"),
        }
    }
}

impl Kind {
    /// What a value must be.
    pub fn expected(&self) -> String {
        match self {
            Kind::Text(what) => (*what).to_owned(),
            Kind::Path => "the path of a file or directory".to_owned(),
            Kind::Paths => "an array of paths".to_owned(),
            Kind::Listen => "an address and a port, as \"127.0.0.1:4000\"".to_owned(),
            Kind::Peer => "HOST:PORT or NODE@HOST:PORT".to_owned(),
            Kind::Peers => "an array of HOST:PORT or NODE@HOST:PORT".to_owned(),
            Kind::Command => "an array of a program and its arguments".to_owned(),
            Kind::Pins => "an array of NODE=DIGEST".to_owned(),
            Kind::Choice(all) => {
                let quoted: Vec<String> = all.iter().map(|one| format!("{one:?}")).collect();
                format!("one of {}", quoted.join(", "))
            }
            Kind::Url(schemes) => {
                let all: Vec<String> = schemes.iter().map(|one| format!("{one}://")).collect();
                format!("a URL that begins with {}", all.join(", "))
            }
            Kind::Flag => "true or false".to_owned(),
            Kind::Number(min, MAX, unit) => format!("a number of {unit}, at least {min}"),
            Kind::Number(min, max, unit) => format!("a number of {unit}, from {min} to {max}"),
        }
    }

    /// Whether a value is a TOML array.
    pub fn is_list(&self) -> bool {
        matches!(self, Kind::Paths | Kind::Peers | Kind::Command | Kind::Pins)
    }

    /// The TOML of words of the table above.
    fn toml(&self, words: &str) -> String {
        match self {
            Kind::Number(..) | Kind::Flag => words.to_owned(),
            _ if self.is_list() => {
                let all: Vec<String> = words.split(' ').map(quoted).collect();
                format!("[{}]", all.join(", "))
            }
            _ => quoted(words),
        }
    }
}

impl Key {
    /// What the example says of it.
    fn shown(&self) -> (String, bool) {
        match self.default {
            Absence::Required(words) => (self.kind.toml(words), true),
            Absence::Absent(words, _) => (self.kind.toml(words), false),
            Absence::Text(words) => (self.kind.toml(words), false),
            Absence::Number(number) => (number.to_string(), false),
            Absence::Flag(is) => (is.to_string(), false),
        }
    }

    fn default_text(&self) -> String {
        match self.default {
            Absence::Required(_) => "It must be there.".to_owned(),
            Absence::Absent(_, meaning) => format!("Default: {meaning}."),
            _ => format!("Default: {}.", self.shown().0),
        }
    }
}

/// A string in TOML.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                write!(quoted, "\\u{:04x}", u32::from(c)).expect("a String takes everything");
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A configuration with every key: what it does, its range and its default. Keys with a default are
/// comments.
pub(in crate::cli) fn example() -> String {
    let mut text = String::from(
        "# Configuration of `strandline node --config FILE`; --check says whether it is good.\n\
         # What stands as a comment is the default or an example.\n",
    );
    for section in SECTIONS {
        let roles: &[Option<&str>] = match section.name {
            DATASET => &[Some("leader"), Some("follower"), Some("elected")],
            _ => &[None],
        };
        for role in roles {
            text.push_str(&example_of(section, *role));
        }
    }
    text
}

fn example_of(section: &Section, role: Option<&str>) -> String {
    // The first role stands; a table that may be absent is a comment, as are the other roles.
    let is_comment = !matches!(section.name, "" | DATASET) || role.is_some_and(|r| r != "leader");
    let mark = if is_comment { "# " } else { "" };
    let head = match role {
        None | Some("leader") => section.help.to_owned(),
        Some(role) => format!("A dataset with the role {role}."),
    };
    let mut text = format!("\n# {head}\n");
    if !section.name.is_empty() {
        text.push_str(&format!("{mark}{}", section.header()));
    }
    for key in section.keys {
        let is_common = key.roles.is_empty();
        if role.is_some_and(|role| !is_common && !key.roles.contains(&role)) {
            continue;
        }
        let (shown, is_required) = key.shown();
        // Said once.
        if role.is_none_or(|role| role == "leader" || !is_common) {
            text.push_str(&format!("# {}\n", key.help));
            text.push_str(&format!(
                "# {}. {}\n",
                sentence(&key.kind),
                key.default_text()
            ));
        }
        let shown = match (key.name, role) {
            ("role", Some(role)) => quoted(role),
            ("name", Some(role)) if role != "leader" => quoted(&format!("{role}-one")),
            _ => shown,
        };
        // A follower has one of two ways to its leader.
        let stands = is_required || key.name == "leader" || (role.is_some() && key.name == "name");
        let mark = if stands { mark } else { "# " };
        text.push_str(&format!("{mark}{} = {shown}\n", key.name));
    }
    text
}

fn sentence(kind: &Kind) -> String {
    let text = kind.expected();
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| {
        first.to_uppercase().collect::<String>() + letters.as_str()
    })
}
