//! The floors of the house: a module uses modules of lower floors only, as the table in the head of `src/lib.rs` says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The sources, without tests.
struct Source {
    /// Below `src/`.
    path: PathBuf,
    /// Without comments, texts and test code.
    code: String,
}

#[test]
fn every_module_uses_modules_of_lower_floors_only() {
    let floors = floors();
    let mut wrong = Vec::new();
    let (mut arrows, mut sources) = (0, 0);
    for Source { path, code } in sources_of_library() {
        sources += 1;
        let own = module_of(&path);
        let floor = floors.get(&own).unwrap_or_else(|| panic!("{own} has no floor in src/lib.rs"));
        for used in used_modules(&path, &code) {
            let other = floors.get(&used).unwrap_or_else(|| panic!("{} uses {used}, which has no floor", path.display()));
            arrows += usize::from(used != own);
            if used != own && other >= floor {
                wrong.push(format!("{} is on floor {floor} and uses `{used}` of floor {other}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(sources > 100 && arrows > 300, "too little was read: {sources} files with {arrows} arrows");
}

#[test]
fn the_table_of_floors_names_each_module_of_the_library() {
    let library = library();
    let declared: BTreeSet<String> = library
        .lines()
        .filter_map(|line| Some(line.strip_prefix("pub mod ").or(line.strip_prefix("mod "))?.trim_end_matches(';').to_owned()))
        .collect();
    let named: BTreeSet<String> = floors().into_keys().collect();
    assert_eq!(named, declared);
}

#[test]
fn the_front_page_names_files_that_exist() {
    let library = library();
    let page: String = library.lines().filter(|line| line.starts_with("//!")).collect();
    let named: BTreeSet<&str> = page.split('`').filter(|text| text.ends_with(".rs") || text.ends_with('/')).collect();
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let below_src = root().join("src").join(name).exists();
        assert!(below_src || root().join(name).exists(), "src/lib.rs names {name}");
    }
}

#[test]
fn arrows_are_found_in_code_and_not_in_texts_comments_or_tests() {
    let code = code_of(
        r##"
        use crate::store::{self, live::lock}; // crate::comment
        /* crate::block /* crate::nested */ */
        const TEXT: &str = "crate::text \" crate::text"; const RAW: &str = r#"crate::raw " crate::raw"#;
        fn quoted<'a>(c: char) -> bool { c == '"' || c == '\'' || crate::clock::now().0 == 0 }
        #[cfg(test)]
        use crate::of_a_test;
        struct Held { #[cfg(test)] seen: crate::of_a_test::Seen }
        #[cfg(test)]
        mod tests { use crate::of_tests; fn inner() { crate::of_tests::call() } }
        fn last() { crate::metrics::count(super::super::message::Name) }
        "##,
    );
    let used = |path: &str| used_modules(Path::new(path), &code).into_iter().collect::<Vec<_>>();
    assert_eq!(used("deliver/tls/mod.rs"), ["clock", "message", "metrics", "store"]);
    assert_eq!(
        used("deliver/tls/more.rs"),
        ["clock", "metrics", "store"],
        "from there `super::super` is no way out of `deliver`"
    );
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn library() -> String {
    fs::read_to_string(root().join("src/lib.rs")).expect("readable")
}

/// The floor of each module: rows such as ``| 3 | [`protocol`], … | … |``.
fn floors() -> BTreeMap<String, u32> {
    let mut floors = BTreeMap::new();
    for line in library().lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["//!", floor, modules, ..] = cells[..] else { continue };
        let Ok(floor) = floor.parse() else { continue };
        for module in modules.split(',') {
            let name = module.trim().trim_start_matches("[`").trim_end_matches("`]");
            assert!(floors.insert(name.to_owned(), floor).is_none(), "{name} has two floors");
        }
    }
    floors
}

/// Every file of the library that is no test: test modules are left out with their files.
fn sources_of_library() -> Vec<Source> {
    let src = root().join("src");
    let mut files = Vec::new();
    let mut directories = vec![src.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).expect("readable") {
            let path = entry.expect("readable").path();
            match path.extension() {
                _ if path.is_dir() => directories.push(path),
                Some(extension) if extension == "rs" => files.push(path),
                _ => {}
            }
        }
    }
    let read = |path: &PathBuf| fs::read_to_string(path).expect("readable");
    let tests: Vec<PathBuf> = files.iter().flat_map(|path| test_modules(path, &read(path))).collect();
    files
        .iter()
        .filter(|path| !tests.iter().any(|test| path.starts_with(test) || path.with_extension("") == *test))
        .map(|path| Source { path: path.strip_prefix(&src).expect("below src").to_owned(), code: code_of(&read(path)) })
        .filter(|source| !matches!(source.path.to_str(), Some("lib.rs" | "main.rs")))
        .collect()
}

/// Where the files of a file's test modules lie, without extension: those of `#[cfg(test)] mod name;`.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let directory = match path.file_name().and_then(|name| name.to_str()) {
        Some("mod.rs" | "lib.rs") => path.parent().expect("a file lies somewhere").to_owned(),
        _ => path.with_extension(""),
    };
    let code = blanked(text);
    let after = code.split("#[cfg(test)]").skip(1).filter_map(|rest| {
        let rest = rest.trim_start();
        let rest = rest.split_once("mod ").filter(|(before, _)| before.is_empty() || before.starts_with("pub"))?.1;
        rest.split_once(';').map(|(name, _)| name).filter(|name| name.chars().all(is_name))
    });
    after.map(|name| directory.join(name)).collect()
}

/// The module of the library that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path.components().next().expect("a file has a name");
    Path::new(first.as_os_str()).with_extension("").display().to_string()
}

/// The modules of the library that code names, by `crate::` or by so many `super::` that they lead to the library's root.
fn used_modules(path: &Path, code: &str) -> BTreeSet<String> {
    let mut depth = path.components().count();
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        depth -= 1;
    }
    let to_root = "super::".repeat(depth);
    let mut used = BTreeSet::new();
    for way in ["crate::", to_root.as_str()] {
        for (at, _) in code.match_indices(way) {
            if code[..at].ends_with(|c| is_name(c) || c == ':') {
                continue;
            }
            let name: String = code[at + way.len()..].chars().take_while(|c| is_name(*c)).collect();
            assert!(!name.is_empty(), "{}: spell out the module after `{way}`", path.display());
            used.insert(name);
        }
    }
    used
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Code without comments, texts and test code.
fn code_of(text: &str) -> String {
    let blanked = blanked(text);
    let mut code = String::new();
    let mut rest = blanked.as_str();
    while let Some(at) = ["#[cfg(test)]", "#[cfg(all(test,"].iter().filter_map(|attribute| rest.find(attribute)).min() {
        code.push_str(&rest[..at]);
        rest = after_item(&rest[at + 2..]);
    }
    code + rest
}

/// What follows the item that `code` begins with: it ends with a semicolon, its braces, or those around it.
fn after_item(code: &str) -> &str {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return &code[at..],
            '}' if depth == 1 => return &code[at + 1..],
            '}' => depth -= 1,
            ';' if depth == 0 => return &code[at + 1..],
            _ => {}
        }
    }
    ""
}

/// A text of Rust with blanks in place of comments, texts and characters.
fn blanked(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let in_name = out.ends_with(is_name);
        let length = match c {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest, '"'),
            'r' | 'b' | 'c' if !in_name => raw_text(rest).unwrap_or(0),
            // A character, not a lifetime.
            '\'' if rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'') => quoted(rest, '\''),
            _ => 0,
        };
        if length > 0 {
            out.push(' ');
            rest = &rest[length..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// The length of a text or character with its quotes.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The length of `r"…"`, `r#"…"#` and the like.
fn raw_text(text: &str) -> Option<usize> {
    let inner = text.strip_prefix(['b', 'c']).unwrap_or(text).strip_prefix('r')?;
    let hashes = inner.len() - inner.trim_start_matches('#').len();
    let inner = inner[hashes..].strip_prefix('"')?;
    let end = format!("\"{}", &"#".repeat(hashes));
    let length = inner.find(&end).map_or(inner.len(), |at| at + end.len());
    Some(text.len() - inner.len() + length)
}

/// The length of a comment between `/*` and `*/`, which may hold others.
fn block_comment(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}
