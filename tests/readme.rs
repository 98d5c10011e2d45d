//! The tables of the documents are true: each dependency is named once with a reason, each metric has its row, and each file that a
//! document names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents at the top of the repository and in `docs/`, by their path from the top.
fn documents() -> Vec<String> {
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in ["", "docs"] {
        let entries = fs::read_dir(root().join(directory)).expect("the directory is there");
        found.extend(entries.map(|entry| Path::new(directory).join(entry.expect("it can be read").file_name())));
    }
    let documents = found.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.map(|path| path.to_str().expect("its name is text").to_owned()).collect()
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

/// The rows of the tables in `docs/dependencies.md`: crate names and reason.
fn table() -> Vec<(Vec<String>, String)> {
    let document = file("docs/dependencies.md");
    let rows: Vec<_> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split('|').map(str::trim);
            let names =
                cells.next().expect("a first cell").split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect();
            (names, cells.next_back().unwrap_or_default().to_owned())
        })
        .collect();
    assert!(!rows.is_empty(), "the document has rows");
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
    assert!(unnamed.is_empty(), "add to docs/dependencies.md: {unnamed:?}");
    assert!(unused.is_empty(), "remove from docs/dependencies.md: {unused:?}");
}

/// The files of the repository that a text names, those in `docs/` apart: `documents/links.rs` looks at them.
fn files_named(text: &str) -> BTreeSet<&str> {
    const TOPS: [&str; 9] = ["src/", "tests/", "systemd/", "loadtest/", "benches/", "config/", ".ci/", ".cargo/", "CHANGELOG"];
    let words = text.split(|c: char| c.is_whitespace() || "()[]`|,;:".contains(c)).map(|word| word.trim_end_matches('.'));
    let own =
        |word: &&str| word.contains('.') && TOPS.iter().any(|start| word.starts_with(start)) || word.starts_with("LICENSE-");
    words.filter(own).collect()
}

#[test]
fn every_file_that_a_document_names_is_there() {
    let mut all = BTreeSet::new();
    for document in documents() {
        let text = file(&document);
        for path in files_named(&text) {
            assert!(root().join(path).exists(), "{document} names {path}, which is not there");
            all.insert(path.to_owned());
        }
    }
    assert!(all.len() >= 15, "the documents name files: {all:?}");
}

/// The names of metrics in a text. A histogram's buckets are the histogram.
fn metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
    // The crate of the mock push service has such a name, too.
    let names = words.filter(|word| word.starts_with("fanfare_") && !matches!(*word, "fanfare_" | "fanfare_loadtest"));
    names.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

fn described() -> BTreeSet<String> {
    let source = file("src/metrics.rs");
    let (_, describe) = source.split_once("fn describe()").expect("they are described in one place");
    let described = metrics(describe);
    assert!(described.len() > 20, "{described:?}");
    described
}

#[test]
fn every_metric_has_its_row() {
    let document = file("docs/operating.md");
    let (_, section) = document.split_once("\n## Metrics\n").expect("the document has the section");
    let section = section.split("\n## ").next().expect("the first part");
    let rows: Vec<String> = section
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .map(|row| row.split('`').next().expect("the first part").to_owned())
        .collect();
    let named: BTreeSet<String> = rows.iter().cloned().collect();
    assert_eq!(rows.len(), named.len(), "each has one row: {rows:?}");
    let described = described();
    let unnamed: Vec<_> = described.difference(&named).collect();
    let unknown: Vec<_> = named.difference(&described).collect();
    assert!(
        unnamed.is_empty() && unknown.is_empty(),
        "docs/operating.md lacks {unnamed:?} and has {unknown:?}, which there are not"
    );
}

#[test]
fn no_document_names_a_metric_that_there_is_not() {
    let described = described();
    for document in documents() {
        let unknown: Vec<String> = metrics(&file(&document)).difference(&described).cloned().collect();
        assert!(unknown.is_empty(), "{document} names {unknown:?}");
    }
}
