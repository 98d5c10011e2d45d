//! The README's tables say what is true: each dependency is named once with a reason, and no other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

fn file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The names in the dependency tables of a `Cargo.toml`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut section = "";
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            section = header.trim_end_matches(']');
        } else if matches!(section, "dependencies" | "dev-dependencies" | "build-dependencies")
            && let Some((name, _)) = line.split_once('=')
            && !line.starts_with('#')
        {
            let name = name.trim();
            names.insert(name.strip_suffix(".workspace").unwrap_or(name).to_owned());
        }
    }
    names
}

/// The rows of the table under the README's heading "Dependencies": crate names and reason.
fn table() -> Vec<(Vec<String>, String)> {
    let readme = file("README.md");
    let (_, section) = readme.split_once("\n## Dependencies\n").expect("the README has the section");
    let section = section.split("\n## ").next().expect("the first part");
    let rows: Vec<_> = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let names =
                cells.next().expect("a first cell").split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect();
            (names, cells.next_back().unwrap_or_default().to_owned())
        })
        .collect();
    assert!(!rows.is_empty(), "the table has rows");
    rows
}

#[test]
fn every_dependency_is_named_once_with_a_reason() {
    let mut told = BTreeSet::new();
    for (names, reason) in table() {
        assert!(reason.len() > 10, "{names:?} has no reason");
        for name in names {
            assert!(told.insert(name.clone()), "{name} is named twice");
        }
    }
    let mut used = dependencies(&file("Cargo.toml"));
    used.extend(dependencies(&file("loadtest/Cargo.toml")));
    used.extend(dependencies(&file("p256-batch/Cargo.toml")));
    used.retain(|name| !["fanfare-loadtest", "p256-batch"].contains(&name.as_str()));
    let unnamed: Vec<_> = used.difference(&told).collect();
    let unused: Vec<_> = told.difference(&used).collect();
    assert!(unnamed.is_empty(), "add to the README's table: {unnamed:?}");
    assert!(unused.is_empty(), "remove from the README's table: {unused:?}");
}

#[test]
fn what_the_readme_points_at_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = file("README.md");
    let words = readme.split(|c: char| c.is_whitespace() || "()[]`|,;:".contains(c)).map(|word| word.trim_end_matches('.'));
    let own = |word: &&str| {
        word.contains('.')
            && ["src/", "tests/", "systemd/", "loadtest/", "LICENSE", "CHANGELOG"].iter().any(|start| word.starts_with(start))
            || word.starts_with("LICENSE-")
    };
    let named: BTreeSet<&str> = words.filter(own).collect();
    assert!(named.len() >= 5, "the README names files: {named:?}");
    for path in named {
        assert!(root.join(path).exists(), "the README names {path}, which is not there");
    }
}

/// The names of metrics in a text.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    words.filter(|word| word.starts_with("fanfare_") && *word != "fanfare_").map(str::to_owned).collect()
}

#[test]
fn every_metric_is_named() {
    let source = file("src/metrics.rs");
    let (_, describe) = source.split_once("fn describe()").expect("they are described in one place");
    let described = metrics(describe);
    assert!(described.len() > 20, "{described:?}");
    let readme = file("README.md");
    let (_, section) = readme.split_once("\n### Metrics\n").expect("the README has the section");
    let named = metrics(section.split("\n## ").next().expect("the first part"));
    let unnamed: Vec<_> = described.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&described).collect();
    assert!(unnamed.is_empty() && unknown.is_empty(), "the README lacks {unnamed:?} and has {unknown:?}, which there are not");
}
