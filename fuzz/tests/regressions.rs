//! Every input that was once a finding: `regressions/TARGET/STORY`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

#[test]
fn what_was_found_once_is_not_found_again() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions");
    let mut count = 0;
    for target in dir.read_dir().unwrap().map(|entry| entry.unwrap()) {
        let name = target.file_name().into_string().unwrap();
        for input in target.path().read_dir().unwrap() {
            let path = input.unwrap().path();
            println!("{}", path.display());
            strandline_fuzz::run(&name, &std::fs::read(&path).unwrap());
            count += 1;
        }
    }
    assert!(count >= 2, "{count} inputs");
}
