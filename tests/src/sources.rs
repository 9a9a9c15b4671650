//! The sources of the workspace as text, for tests that hold rules about them.

use std::path::{Path, PathBuf};

/// One file.
pub struct Source {
    /// From the root of the repository, with `/`.
    pub path: String,
    /// All of it.
    pub text: String,
    /// Without comments and modules of tests.
    pub code: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap().to_owned()
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            files(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// All sources below some directories.
///
/// # Panics
/// Where there are none.
pub fn sources(dirs: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for dir in dirs {
        files(&root().join(dir), &mut paths);
    }
    paths.sort();
    assert!(!paths.is_empty(), "the sources are beside the tests");
    let source = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let path = path.strip_prefix(root()).unwrap();
        Source {
            path: path.to_string_lossy().replace('\\', "/"),
            code: code_of(&text),
            text,
        }
    };
    paths.into_iter().map(source).collect()
}

/// The sources that are shipped: no tests.
pub fn shipped(dirs: &[&str]) -> Vec<Source> {
    let dirs: Vec<String> = dirs.iter().map(|dir| format!("{dir}/src")).collect();
    let dirs: Vec<&str> = dirs.iter().map(String::as_str).collect();
    let is_test = |path: &str| {
        path.contains("/tests/")
            || path.contains("/testing/")
            || ["/tests.rs", "/testing.rs", "/models.rs"]
                .iter()
                .any(|end| path.ends_with(end))
    };
    let mut sources = sources(&dirs);
    sources.retain(|source| !is_test(&source.path));
    sources
}

/// Lines without comments, up to the first module of tests.
pub fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_tests = line.trim() == "#[cfg(test)]"
            && lines
                .peek()
                .is_some_and(|next| next.starts_with("mod ") && next.ends_with('{'));
        if is_tests {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}
