//! What only the machine's own disk can show: special files, and its clock and randomness.

use std::ffi::CString;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;

fn on_both(check: impl Fn(&Place)) {
    check(&real("real", Env::real().disk, true));
    check(&real("real, pread", Env::real_pread().disk, false));
}

/// That every way to open the file is refused with a message that says what it is.
fn refused(place: &Place, name: &str, what: &str) {
    let path = place.path(name);
    let results = [
        place.disk.open(&path, Access::Read).map(drop),
        place.disk.open(&path, Access::Write).map(drop),
        place.disk.lock(&path, LockMode::Exclusive).map(drop),
    ];
    for result in results {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        assert!(error.to_string().contains(what), "{name}: {error}");
    }
    assert_eq!(
        kind(place.disk.create(&path)),
        Some(ErrorKind::AlreadyExists)
    );
    assert_eq!(place.disk.stat(&path).unwrap().kind, FileKind::Other);
}

#[test]
fn a_symlink_is_refused_wherever_it_points() {
    on_both(|place| {
        place.file("target", b"precious");
        symlink(place.path("target"), place.path("link")).unwrap();
        symlink(place.path("absent"), place.path("dangling")).unwrap();
        refused(place, "link", "symlink");
        refused(place, "dangling", "symlink");
        assert_eq!(
            place.names(),
            ["dangling", "link", "target"],
            "nothing was made through one"
        );
        let kinds: Vec<_> = place.disk.list(&place.root).unwrap();
        assert_eq!(kinds[0].kind, FileKind::Other);
        place.disk.remove(&place.path("link")).unwrap();
        assert_eq!(place.read("target").unwrap(), b"precious");
    });
}

#[test]
fn a_pipe_is_refused_without_waiting_for_its_other_end() {
    on_both(|place| {
        rustix::fs::mkfifoat(rustix::fs::CWD, place.path("pipe"), 0o600.into()).unwrap();
        refused(place, "pipe", "pipe");
    });
}

#[test]
fn a_socket_is_refused() {
    on_both(|place| {
        let _socket = UnixListener::bind(place.path("socket")).unwrap();
        refused(place, "socket", "socket");
    });
}

#[test]
fn a_device_is_refused() {
    let disk = Env::real().disk;
    let error = disk
        .open(Path::new("/dev/null"), Access::Write)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("character device"), "{error}");
}

#[test]
fn a_symlink_to_a_directory_is_not_synced_through() {
    on_both(|place| {
        place.disk.create_dir_all(&place.path("dir")).unwrap();
        symlink(place.path("dir"), place.path("link")).unwrap();
        assert!(place.disk.sync_dir(&place.path("link")).is_err());
    });
}

#[test]
fn removing_a_directory_leaves_what_its_symlinks_point_to() {
    on_both(|place| {
        place.disk.create_dir_all(&place.path("dir")).unwrap();
        place.file("target", b"precious");
        symlink(&place.root, place.path("dir/up")).unwrap();
        place.disk.remove_dir_all(&place.path("dir")).unwrap();
        assert_eq!(place.names(), ["target"]);
    });
}

#[test]
fn names_that_are_not_utf_8_are_listed_lossily() {
    on_both(|place| {
        let name = std::ffi::OsStr::from_bytes(b"x\xff");
        place.disk.create(&place.root.join(name)).unwrap();
        assert_eq!(place.names(), ["x\u{fffd}"]);
    });
}

#[test]
fn free_space_is_known() {
    on_both(|place| {
        let free_len = place.disk.free_len(&place.root).unwrap();
        assert!(free_len.is_some_and(|len| len > 0));
    });
}

#[test]
fn files_are_closed_on_exec() {
    let place = real("real", Env::real().disk, true);
    let _file = place.file("a", b"");
    let _lock = place
        .disk
        .lock(&place.path("LOCK"), LockMode::Exclusive)
        .unwrap();
    // The children of a program that embeds the engine must not hold its files or its lock.
    let listed = std::process::Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .output();
    let Ok(listed) = listed else {
        println!("skipped: no ls here");
        return;
    };
    let root = CString::new(place.root.as_os_str().as_bytes()).unwrap();
    let root = root.to_str().unwrap();
    assert!(!String::from_utf8_lossy(&listed.stdout).contains(root));
}

#[test]
fn a_lock_holds_against_other_processes() {
    let place = real("real", Env::real().disk, true);
    let path = place.path("LOCK");
    let take = || {
        let taken = std::process::Command::new("flock")
            .arg("-n")
            .arg(&path)
            .arg("true")
            .status();
        taken.ok().map(|status| status.success())
    };
    let held = place.disk.lock(&path, LockMode::Exclusive).unwrap();
    let Some(while_held) = take() else {
        println!("skipped: no flock here");
        return;
    };
    assert!(!while_held);
    drop(held);
    assert_eq!(take(), Some(true));
}

#[test]
fn time_passes_and_never_goes_back() {
    let clock = Env::real().clock;
    let (wall, mono) = (clock.wall_ms(), clock.mono_ns());
    assert!(wall > 1_700_000_000_000, "milliseconds since 1970");
    assert!(clock.mono_ns() >= mono);
}

#[test]
fn random_identities_differ() {
    let random = Env::real().random;
    let mut ids: Vec<[u8; 16]> = (0..100).map(|_| random.next_id()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 100);
}

#[test]
fn a_path_through_a_file_is_no_path() {
    on_both(|place| {
        place.file("a", b"");
        let below = place.path("a/b");
        let kinds = [
            kind(place.disk.open(&below, Access::Read)),
            kind(place.disk.stat(&below)),
            kind(place.disk.list(&place.path("a"))),
            kind(place.disk.lock(&below, LockMode::Shared)),
        ];
        assert_eq!(kinds, [Some(ErrorKind::NotADirectory); 4]);
    });
}

#[test]
fn space_is_taken_without_a_byte_changed_and_too_much_is_refused() {
    on_both(|place| {
        let file = place.file("a", b"abc");
        file.allocate(0, 4096).unwrap();
        let mut expected = b"abc".to_vec();
        expected.resize(4096, 0);
        assert_eq!(place.read("a").unwrap(), expected);
        assert!(file.allocate(0, 1 << 62).is_err());
        file.keep_in_place();
        assert_eq!(place.read("a").unwrap(), expected);
    });
}
