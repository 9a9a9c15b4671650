//! What every disk promises, checked on all of them.

use std::io::ErrorKind;

use super::*;

#[test]
fn a_new_file_is_empty_and_reads_back_what_was_written() {
    on_every_disk(|place| {
        let file = place.disk.create(&place.path("a")).unwrap();
        assert!(file.is_empty().unwrap());
        write_all_at(file.as_ref(), b"hello", 3).unwrap();
        assert_eq!(file.len().unwrap(), 8);
        assert_eq!(place.read("a").unwrap(), b"\0\0\0hello");
        write_all_at(file.as_ref(), b"J", 3).unwrap();
        file.sync().unwrap();
        let again = place.disk.open(&place.path("a"), Access::Read).unwrap();
        let mut buf = [0; 5];
        read_exact_at(again.as_ref(), &mut buf, 3).unwrap();
        assert_eq!(&buf, b"Jello");
    });
}

#[test]
fn a_read_behind_the_end_is_empty_and_an_exact_one_fails() {
    on_every_disk(|place| {
        let file = place.file("a", b"abc");
        let mut buf = [0; 4];
        assert_eq!(file.read_at(&mut buf, 3).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, 1 << 40).unwrap(), 0);
        assert_eq!(file.read_at(&mut buf, 1).unwrap(), 2);
        assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
        assert_eq!(file.write_at(&[], 100).unwrap(), 0);
        assert_eq!(
            file.len().unwrap(),
            3,
            "an empty write does not grow a file"
        );
        let short = read_exact_at(file.as_ref(), &mut buf, 0);
        assert_eq!(kind(short), Some(ErrorKind::UnexpectedEof));
    });
}

#[test]
fn a_file_is_created_once() {
    on_every_disk(|place| {
        place.file("a", b"");
        let again = place.disk.create(&place.path("a"));
        assert_eq!(kind(again), Some(ErrorKind::AlreadyExists));
        let nowhere = place.disk.create(&place.path("absent/a"));
        assert_eq!(kind(nowhere), Some(ErrorKind::NotFound));
        let below_file = place.disk.create(&place.path("a/b"));
        assert_eq!(kind(below_file), Some(ErrorKind::NotADirectory));
    });
}

#[test]
fn an_absent_file_is_not_found() {
    on_every_disk(|place| {
        let path = place.path("absent");
        let disk = &place.disk;
        assert_eq!(
            kind(disk.open(&path, Access::Read)),
            Some(ErrorKind::NotFound)
        );
        assert_eq!(
            kind(disk.open(&path, Access::Write)),
            Some(ErrorKind::NotFound)
        );
        assert_eq!(kind(disk.stat(&path)), Some(ErrorKind::NotFound));
        assert_eq!(kind(disk.remove(&path)), Some(ErrorKind::NotFound));
        assert_eq!(
            kind(disk.rename(&path, &place.path("b"))),
            Some(ErrorKind::NotFound)
        );
        assert_eq!(
            kind(disk.link(&path, &place.path("b"))),
            Some(ErrorKind::NotFound)
        );
        assert_eq!(kind(disk.list(&path)), Some(ErrorKind::NotFound));
        assert_eq!(kind(disk.sync_dir(&path)), Some(ErrorKind::NotFound));
        assert_eq!(kind(disk.free_len(&path)), Some(ErrorKind::NotFound));
    });
}

#[test]
fn a_directory_is_refused_as_a_file_by_name() {
    on_every_disk(|place| {
        place.disk.create_dir_all(&place.path("dir")).unwrap();
        for access in [Access::Read, Access::Write] {
            let error = place.disk.open(&place.path("dir"), access).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains("directory"), "{error}");
        }
        let locked = place.disk.lock(&place.path("dir"), LockMode::Shared);
        assert_eq!(kind(locked), Some(ErrorKind::InvalidInput));
        assert_eq!(
            kind(place.disk.remove(&place.path("dir"))),
            Some(ErrorKind::IsADirectory)
        );
    });
}

#[test]
fn a_file_is_refused_as_a_directory() {
    on_every_disk(|place| {
        place.file("a", b"");
        let path = place.path("a");
        assert_eq!(kind(place.disk.list(&path)), Some(ErrorKind::NotADirectory));
        assert_eq!(
            kind(place.disk.sync_dir(&path)),
            Some(ErrorKind::NotADirectory)
        );
        assert_eq!(
            kind(place.disk.create_dir_all(&path)),
            Some(ErrorKind::AlreadyExists)
        );
        assert_eq!(
            kind(place.disk.create_dir_all(&path.join("b"))),
            Some(ErrorKind::NotADirectory)
        );
        assert_eq!(
            kind(place.disk.remove_dir_all(&path)),
            Some(ErrorKind::NotADirectory)
        );
    });
}

#[test]
fn a_file_opened_for_reading_is_not_written() {
    on_every_disk(|place| {
        place.file("a", b"abc");
        let file = place.disk.open(&place.path("a"), Access::Read).unwrap();
        assert!(file.write_at(b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert_eq!(place.read("a").unwrap(), b"abc");
    });
}

#[test]
fn a_file_is_cut_and_extended_with_zeros() {
    on_every_disk(|place| {
        let file = place.file("a", &[7; 10_000]);
        file.set_len(5_001).unwrap();
        file.set_len(9_000).unwrap();
        let bytes = place.read("a").unwrap();
        assert_eq!(bytes.len(), 9_000);
        assert!(bytes[..5_001].iter().all(|b| *b == 7));
        assert!(bytes[5_001..].iter().all(|b| *b == 0));
        assert_eq!(place.disk.stat(&place.path("a")).unwrap().len, 9_000);
    });
}

#[test]
fn a_rename_replaces_its_target() {
    on_every_disk(|place| {
        let old = place.file("old", b"old");
        place.file("new", b"new");
        place
            .disk
            .rename(&place.path("new"), &place.path("old"))
            .unwrap();
        assert_eq!(place.names(), ["old"]);
        assert_eq!(place.read("old").unwrap(), b"new");
        let mut buf = [0; 3];
        read_exact_at(old.as_ref(), &mut buf, 0).unwrap();
        assert_eq!(&buf, b"old", "a handle outlives the name");
        place
            .disk
            .rename(&place.path("old"), &place.path("old"))
            .unwrap();
        assert_eq!(place.names(), ["old"]);
    });
}

#[test]
fn a_rename_moves_a_file_between_directories() {
    on_every_disk(|place| {
        place.disk.create_dir_all(&place.path("b")).unwrap();
        place.file("a", b"a");
        place
            .disk
            .rename(&place.path("a"), &place.path("b/a"))
            .unwrap();
        assert_eq!(place.names(), ["b"]);
        assert_eq!(place.read("b/a").unwrap(), b"a");
    });
}

#[test]
fn a_directory_is_renamed_with_all_below_it() {
    on_every_disk(|place| {
        let disk = &place.disk;
        disk.create_dir_all(&place.path("a/deep")).unwrap();
        disk.create_dir_all(&place.path("full/x")).unwrap();
        disk.create_dir_all(&place.path("empty")).unwrap();
        place.file("a/deep/f", b"f");
        place.file("file", b"");
        let rename = |from, to| kind(disk.rename(&place.path(from), &place.path(to)));
        assert_eq!(rename("a", "full"), Some(ErrorKind::DirectoryNotEmpty));
        assert_eq!(rename("a", "file"), Some(ErrorKind::NotADirectory));
        assert_eq!(rename("file", "empty"), Some(ErrorKind::IsADirectory));
        assert_eq!(rename("a", "a/deep/a"), Some(ErrorKind::InvalidInput));
        assert_eq!(rename("a", "empty"), None);
        assert_eq!(place.read("empty/deep/f").unwrap(), b"f");
    });
}

#[test]
fn a_link_is_a_second_name_of_the_same_file() {
    on_every_disk(|place| {
        let file = place.file("a", b"abc");
        place.disk.link(&place.path("a"), &place.path("b")).unwrap();
        assert_eq!(place.disk.stat(&place.path("b")).unwrap().link_count, 2);
        write_all_at(file.as_ref(), b"X", 0).unwrap();
        assert_eq!(place.read("b").unwrap(), b"Xbc");
        let taken = place.disk.link(&place.path("a"), &place.path("b"));
        assert_eq!(kind(taken), Some(ErrorKind::AlreadyExists));
        // POSIX keeps both names here, which a caller who replaces a file by itself relies on.
        place
            .disk
            .rename(&place.path("a"), &place.path("b"))
            .unwrap();
        assert_eq!(place.names(), ["a", "b"]);
        place.disk.remove(&place.path("a")).unwrap();
        let stat = place.disk.stat(&place.path("b")).unwrap();
        assert_eq!(
            stat,
            Stat {
                kind: FileKind::File,
                len: 3,
                link_count: 1
            }
        );
    });
}

#[test]
fn a_removed_file_lives_while_it_is_open() {
    on_every_disk(|place| {
        let file = place.file("a", b"abc");
        place.disk.remove(&place.path("a")).unwrap();
        place.disk.sync_dir(&place.root).unwrap();
        place.file("a", b"other");
        write_all_at(file.as_ref(), b"d", 3).unwrap();
        let mut buf = [0; 4];
        read_exact_at(file.as_ref(), &mut buf, 0).unwrap();
        assert_eq!(&buf, b"abcd");
        assert_eq!(place.read("a").unwrap(), b"other");
    });
}

#[test]
fn directories_are_made_and_removed_whole() {
    on_every_disk(|place| {
        let deep = place.path("a/b/c");
        place.disk.create_dir_all(&deep).unwrap();
        place.disk.create_dir_all(&deep).unwrap();
        place.file("a/b/c/f", b"f");
        place.disk.sync_dir(&deep).unwrap();
        let stat = place.disk.stat(&deep).unwrap();
        assert_eq!(stat.kind, FileKind::Dir);
        place.disk.remove_dir_all(&place.path("a")).unwrap();
        place.disk.remove_dir_all(&place.path("a")).unwrap();
        place.disk.remove_dir_all(&deep).unwrap();
        assert!(place.names().is_empty());
    });
}

#[test]
fn a_list_is_sorted_and_tells_kinds_and_lengths() {
    on_every_disk(|place| {
        place.file("b", b"12345");
        place.file("a.log", b"");
        place.disk.create_dir_all(&place.path("c")).unwrap();
        let list = place.disk.list(&place.root).unwrap();
        let names: Vec<&str> = list.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["a.log", "b", "c"]);
        assert_eq!((list[1].kind, list[1].len), (FileKind::File, 5));
        assert_eq!(list[2].kind, FileKind::Dir);
    });
}

#[test]
fn an_exclusive_lock_stands_alone_and_shared_ones_stand_together() {
    on_every_disk(|place| {
        let path = place.path("LOCK");
        let lock = |mode| place.disk.lock(&path, mode);
        let alone = lock(LockMode::Exclusive).unwrap();
        assert_eq!(place.names(), ["LOCK"], "a lock makes its file");
        assert_eq!(kind(lock(LockMode::Exclusive)), Some(ErrorKind::WouldBlock));
        assert_eq!(kind(lock(LockMode::Shared)), Some(ErrorKind::WouldBlock));
        drop(alone);
        let first = lock(LockMode::Shared).unwrap();
        let second = lock(LockMode::Shared).unwrap();
        assert_eq!(kind(lock(LockMode::Exclusive)), Some(ErrorKind::WouldBlock));
        drop(first);
        assert_eq!(kind(lock(LockMode::Exclusive)), Some(ErrorKind::WouldBlock));
        drop(second);
        let file = place.disk.open(&path, Access::Write).unwrap();
        write_all_at(file.as_ref(), b"pid 1", 0).unwrap();
        let _alone = lock(LockMode::Exclusive).unwrap();
        assert_eq!(
            place.read("LOCK").unwrap(),
            b"pid 1",
            "a lock writes nothing"
        );
    });
}

#[test]
fn a_map_shows_the_first_bytes() {
    on_every_disk(|place| {
        let file = place.file("a", b"0123456789");
        assert!(file.map(0).unwrap().is_none());
        let map = file.map(4).unwrap();
        assert_eq!(map.is_some(), place.maps);
        if let Some(map) = map {
            let clone = map.clone();
            drop((map, file));
            place.disk.remove(&place.path("a")).unwrap();
            assert_eq!(&clone[..], b"0123");
        }
    });
}

#[test]
fn neither_map_nor_image_goes_behind_the_end() {
    on_every_disk(|place| {
        let file = place.file("a", b"0123456789");
        let refused = place.maps.then_some(ErrorKind::InvalidInput);
        assert_eq!(kind(file.map(11)), refused);
        assert_eq!(kind(file.image(11)), refused);
    });
}

#[test]
fn what_is_published_to_an_image_is_written_to_the_file() {
    on_every_disk(|place| {
        let file = place.file("a", &[b'-'; 8_192]);
        assert!(file.image(0).unwrap().is_none());
        let image = file.image(8_192).unwrap();
        assert_eq!(image.is_some(), place.maps);
        let Some(image) = image.map(Arc::new) else {
            return;
        };
        assert!(image.is_shared());
        for text in ["first", "second"] {
            let mut slot = image.reserve(text.len()).unwrap();
            slot.bytes_mut().copy_from_slice(text.as_bytes());
            let end = slot.end();
            drop(slot);
            image.publish(end);
        }
        let mut buf = [0; 13];
        read_exact_at(file.as_ref(), &mut buf, 0).unwrap();
        assert_eq!(&buf, b"firstsecond--");
        assert_eq!(&place.read("a").unwrap()[..13], b"firstsecond--");
        file.sync().unwrap();
        drop(image);
        let again = Arc::new(file.image(8_192).unwrap().unwrap());
        again.reserve(11).unwrap();
        again.publish(11);
        assert_eq!(
            again.read(0, 11).unwrap(),
            b"firstsecond",
            "an image starts as the file is"
        );
        assert_eq!(&place.read("a").unwrap()[..13], b"firstsecond--");
    });
}

#[test]
fn a_view_shows_what_is_written_to_the_file() {
    on_every_disk(|place| {
        let file = place.file("a", b"");
        file.allocate(0, 8_192).unwrap();
        let view = file.view(8_192).unwrap();
        assert_eq!(view.is_some(), place.maps);
        assert_eq!(file.view(8_193).is_err(), place.maps);
        let Some(view) = view.map(Arc::new) else {
            return;
        };
        let mut at = 0;
        for text in ["first", "second"] {
            write_all_at(file.as_ref(), text.as_bytes(), at as u64).unwrap();
            at = view.take_up(text.as_bytes()).unwrap();
            view.publish(at);
        }
        assert_eq!(view.read(0, at).unwrap(), b"firstsecond");
        assert!(view.read(0, at + 1).is_none() && view.take_up(&[0; 8_192]).is_none());
        assert_eq!(&place.read("a").unwrap()[..13], b"firstsecond\0\0");
    });
}

#[test]
fn an_image_needs_a_file_opened_for_writing() {
    on_every_disk(|place| {
        place.file("a", b"0123456789");
        let file = place.disk.open(&place.path("a"), Access::Read).unwrap();
        assert_eq!(file.image(10).is_err(), place.maps);
        assert_eq!(file.map(10).unwrap().is_some(), place.maps);
    });
}

#[test]
fn a_file_is_replaced_whole() {
    on_every_disk(|place| {
        let replace = |bytes| replace_file(place.disk.as_ref(), &place.path("a"), bytes);
        replace(b"one").unwrap();
        // What an earlier attempt left behind is in nobody's way.
        place.file("a.tmp", b"half of");
        replace(b"two").unwrap();
        assert_eq!(place.names(), ["a"]);
        assert_eq!(place.read("a").unwrap(), b"two");
        let long = read_file(place.disk.as_ref(), &place.path("a"), 2);
        assert_eq!(kind(long), Some(ErrorKind::InvalidData));
    });
}

#[test]
fn files_are_used_from_many_threads_at_once() {
    on_every_disk(|place| {
        let file = place.file("a", b"");
        std::thread::scope(|scope| {
            for n in 0..4u8 {
                let file = &file;
                scope.spawn(move || {
                    for i in 0..50u64 {
                        let at = (i * 4 + u64::from(n)) * 100;
                        write_all_at(file.as_ref(), &[n + 1; 100], at).unwrap();
                        if i % 10 == 0 {
                            file.sync().unwrap();
                        }
                    }
                });
            }
        });
        let bytes = place.read("a").unwrap();
        assert_eq!(bytes.len(), 20_000);
        for (n, part) in bytes.chunks(100).enumerate() {
            assert!(part.iter().all(|b| usize::from(*b) == n % 4 + 1));
        }
    });
}
