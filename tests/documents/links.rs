//! Every link between documents leads somewhere, and so does every `docs/…` that a comment, a manifest or a unit cites.
//!
//! Documents are all files `*.md`. A link is checked with its `#anchor`. A citation may name a place behind the file, which must be
//! there: `#anchor`, a heading in double quotes, or the number of a section (`docs/… 2.1`, `docs/…, 3.1 to 3.4`, `docs/…, section 2`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The README is read in one sitting.
const README_LINES: usize = 150;
/// Directories without sources: those that tools fill, and random inputs.
const SKIPPED: [&str; 6] = [".git", "target", "node_modules", "corpus", "artifacts", "seeds"];

/// All files of text in the repository, by their path from its top.
type Files = BTreeMap<String, String>;

fn files() -> Files {
    let mut files = Files::new();
    read_below(Path::new(env!("CARGO_MANIFEST_DIR")), "", &mut files);
    files
}

fn read_below(directory: &Path, prefix: &str, files: &mut Files) {
    for entry in fs::read_dir(directory).expect("the directory can be read") {
        let entry = entry.expect("the entry can be read");
        let name = entry.file_name().to_string_lossy().into_owned();
        let kind = entry.file_type().expect("the entry has a type");
        if kind.is_dir() && !SKIPPED.contains(&name.as_str()) {
            read_below(&entry.path(), &format!("{prefix}{name}/"), files);
        } else if kind.is_file()
            // The others are no text.
            && let Ok(text) = fs::read_to_string(entry.path())
        {
            files.insert(format!("{prefix}{name}"), text);
        }
    }
}

fn is_document(path: &str) -> bool {
    path.ends_with(".md")
}

/// The lines of a document that are no code block, code spans blanked.
fn prose(text: &str) -> impl Iterator<Item = String> {
    outside_blocks(text).map(|line| {
        let parts: Vec<&str> = line.split('`').collect();
        // A backtick without its partner begins no code.
        let closed = parts.len() - 1 + parts.len() % 2;
        let keep = |(n, part): (usize, &&str)| if n % 2 == 1 && n < closed { String::new() } else { (*part).to_owned() };
        parts.iter().enumerate().map(keep).collect()
    })
}

fn outside_blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

fn headings(text: &str) -> impl Iterator<Item = &str> {
    outside_blocks(text).filter_map(|line| {
        let rest = line.trim_start_matches('#');
        (1..=6).contains(&(line.len() - rest.len())).then(|| rest.strip_prefix(' ')).flatten().map(str::trim)
    })
}

/// The anchors of a document's headings, as code hosts make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    headings(text)
        .map(|heading| {
            let shown: String = without_targets(heading).to_lowercase();
            let kept = shown.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            let slug: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let count = seen.entry(slug.clone()).or_default();
            *count += 1;
            if *count == 1 { slug } else { format!("{slug}-{}", *count - 1) }
        })
        .collect()
}

/// A heading's text where links are only their words.
fn without_targets(heading: &str) -> String {
    let mut pieces = heading.split("](");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    pieces.for_each(|piece| text.push_str(piece.split_once(')').map_or(piece, |(_, rest)| rest)));
    text
}

/// The targets of a document's links.
fn links(text: &str) -> Vec<String> {
    let mut targets = Vec::new();
    for line in prose(text) {
        let inline = line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next());
        targets.extend(inline.map(str::to_owned));
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]: ")
        {
            targets.extend(target.split_whitespace().next().map(str::to_owned));
        }
    }
    targets.retain(|target| !target.contains("://") && !target.starts_with("mailto:"));
    targets
}

/// The path from the top that a link of a document means. None: it leaves the repository.
fn resolve(document: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.trim_end_matches('/').split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The document that a link leads to, or the reason why it is broken.
fn follow(files: &Files, document: &str, link: &str) -> Result<String, String> {
    let (target, anchor) = link.split_once('#').map_or((link, None), |(target, anchor)| (target, Some(anchor)));
    let path = match target {
        "" => document.to_owned(),
        target => resolve(document, target).ok_or("it leaves the repository")?,
    };
    let is_directory = || files.keys().any(|known| known.strip_prefix(&path).is_some_and(|rest| rest.starts_with('/')));
    match (files.get(&path), anchor) {
        (Some(text), Some(anchor)) if !anchors(text).contains(anchor) => Err(format!("{path} has no heading #{anchor}")),
        (Some(_), _) => Ok(path),
        (None, None) if is_directory() => Ok(path),
        (None, _) => Err(format!("there is no {path}")),
    }
}

fn broken_links(files: &Files) -> Vec<String> {
    let documents = files.iter().filter(|(path, _)| is_document(path));
    let all = documents.flat_map(|(path, text)| links(text).into_iter().map(move |link| (path, link)));
    all.filter_map(|(path, link)| Some(format!("{path}: ({link}): {}", follow(files, path, &link).err()?))).collect()
}

/// Documents that no way of links leads to from the README.
fn lost_documents(files: &Files) -> Vec<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec!["README.md".to_owned()];
    while let Some(path) = next.pop() {
        if let Some(text) = files.get(&path)
            && is_document(&path)
            && reached.insert(path.clone())
        {
            next.extend(links(text).iter().filter_map(|link| follow(files, &path, link).ok()));
        }
    }
    let shown = |path: &&String| is_document(path) && (!path.contains('/') || path.starts_with("docs/"));
    files.keys().filter(shown).filter(|path| !reached.contains(*path)).cloned().collect()
}

/// A text on one line, without the marks of comments: a citation may go on behind a line's end.
fn on_one_line(text: &str) -> String {
    let mut joined = String::with_capacity(text.len());
    for line in text.lines().map(str::trim_start) {
        let bare = ["//!", "///", "//", "#"].iter().find_map(|mark| line.strip_prefix(mark)).unwrap_or(line);
        joined.push_str(bare.trim());
        joined.push(' ');
    }
    joined
}

/// A file in `docs/` that a text cites, and the places in it.
#[derive(Debug, PartialEq, Eq)]
struct Citation {
    path: String,
    places: Vec<Place>,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    Anchor(String),
    Heading(String),
    Section(String),
}

fn citations(text: &str) -> Vec<Citation> {
    let text = on_one_line(text);
    let mut found = Vec::new();
    for (at, start) in text.match_indices(DOCS) {
        let (before, name) = (&text[..at], &text[at + start.len()..]);
        let of_other = before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'));
        let ours = !of_other || before.ends_with("../") || before.ends_with("share/doc/fanfare/");
        let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/'))).unwrap_or(name.len());
        let name = name[..end].trim_end_matches('.');
        if ours && !name.is_empty() {
            let places = places(&text[at + start.len() + name.len()..]);
            found.push(Citation { path: format!("{DOCS}{name}"), places });
        }
    }
    found
}

/// Where documents lie. In two parts, or this file would cite one without a name.
const DOCS: &str = concat!("docs", "/");

/// The places that are named right behind a file.
fn places(rest: &str) -> Vec<Place> {
    if let Some(anchor) = rest.strip_prefix('#') {
        let end = anchor.find(|c: char| !(c.is_alphanumeric() || matches!(c, '-' | '_'))).unwrap_or(anchor.len());
        return vec![Place::Anchor(anchor[..end].to_owned())];
    }
    let rest = rest.strip_prefix('`').unwrap_or(rest);
    let apart = rest.trim_start_matches([',', ' ', '(']);
    if apart.len() == rest.len() {
        return Vec::new();
    }
    if let Some((heading, _)) = apart.strip_prefix('"').and_then(|quoted| quoted.split_once('"')) {
        return vec![Place::Heading(heading.to_owned())];
    }
    let said = ["sections ", "section ", "§ ", "§"].iter().find_map(|word| apart.strip_prefix(word));
    said.or_else(|| rest.strip_prefix(' ')).or_else(|| listed(rest)).map_or_else(Vec::new, sections)
}

/// One number or several: `2.1`, `3.1 to 3.4`, `1 and 2`, `2.1, 3.3`.
fn sections(text: &str) -> Vec<Place> {
    let mut places = Vec::new();
    let mut rest = Some(text);
    while let Some(numbers) = rest {
        let end = numbers.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(numbers.len());
        let number = numbers[..end].trim_end_matches('.');
        if number.is_empty() || numbers[end..].starts_with(char::is_alphanumeric) {
            break;
        }
        places.push(Place::Section(number.to_owned()));
        let behind = &numbers[number.len()..];
        rest = [" and ", " to ", "-"].iter().find_map(|word| behind.strip_prefix(word)).or_else(|| listed(behind));
    }
    places
}

/// The text behind a comma, if a number with a dot is next: without a dot the number counts something else.
fn listed(text: &str) -> Option<&str> {
    let next = text.strip_prefix(", ")?;
    let dotted = |word: &str| word.split_once('.').is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()));
    next.split(' ').next().is_some_and(dotted).then_some(next)
}

fn broken_citations(files: &Files) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in files {
        for citation in citations(text) {
            match files.get(&citation.path) {
                None => broken.push(format!("{path} cites {}, which is not there", citation.path)),
                Some(cited) => {
                    let missing = citation.places.iter().filter(|place| !has_place(cited, place));
                    broken.extend(missing.map(|place| format!("{path} cites {}: there is no {place:?}", citation.path)));
                }
            }
        }
    }
    broken
}

fn has_place(document: &str, place: &Place) -> bool {
    match place {
        Place::Anchor(anchor) => anchors(document).contains(anchor),
        Place::Heading(heading) => headings(document).any(|known| known == heading),
        Place::Section(number) => headings(document)
            .any(|known| known.split_whitespace().next().is_some_and(|first| first.trim_end_matches('.') == number)),
    }
}

#[test]
fn every_link_between_documents_leads_somewhere() {
    let files = files();
    let count: usize = files.iter().filter(|(path, _)| is_document(path)).map(|(_, text)| links(text).len()).sum();
    assert!(count >= 40, "the documents have links: {count}");
    let broken = broken_links(&files);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_document_can_be_reached_from_the_readme() {
    let lost = lost_documents(&files());
    assert!(lost.is_empty(), "no link leads to {lost:?}");
}

#[test]
fn every_citation_of_a_document_names_a_place_that_is_there() {
    let files = files();
    let count: usize = files.values().map(|text| citations(text).len()).sum();
    assert!(count >= 10, "comments cite documents: {count}");
    let broken = broken_citations(&files);
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn the_readme_is_short() {
    let lines = files()["README.md"].lines().count();
    assert!(lines <= README_LINES, "the README has {lines} lines: move some of them to a document in docs");
}

/// A repository of two documents and a source.
fn small(readme: &str, guide: &str, source: &str) -> Files {
    let guide_path = format!("{DOCS}guide.md");
    [("README.md", readme), (guide_path.as_str(), guide), ("src/lib.rs", source)]
        .into_iter()
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .collect()
}

#[test]
fn a_link_is_followed_to_its_heading_and_code_is_no_link() {
    let guide =
        "# Guide\n\n## `make` it, twice\n\n## Twice\n\n```\n## No heading\n[x](nowhere.md)\n```\n\n## Twice\n`[y](nowhere.md)`\n";
    let good = format!("[a]({DOCS}guide.md#make-it-twice) [b]({DOCS}guide.md#twice-1) [`c`](src/) [d](https://example.com/#e)\n");
    assert_eq!(broken_links(&small(&good, guide, "")).len(), 0);
    let up = format!("{guide}[up](../README.md) [out](../../README.md)\n");
    assert_eq!(broken_links(&small("", &up, "")).len(), 1);
    for link in ["guide.md", &format!("{DOCS}guide.md#no-heading"), "#top", "src/main.rs", "lib.rs"] {
        assert_eq!(broken_links(&small(&format!("[a]({link})"), guide, "")).len(), 1, "{link}");
    }
    assert_eq!(lost_documents(&small("no link", guide, "")).len(), 1);
    assert!(lost_documents(&small(&good, guide, "")).is_empty());
}

#[test]
fn a_citation_is_followed_to_its_section() {
    let guide = "# Guide\n## 1 One\n### 1.1. First\n## 2 Two\n## Making it\n";
    let file = format!("{DOCS}guide.md");
    let broken = |cited: String| broken_citations(&small("", guide, &cited)).len();
    for good in [
        format!("//! See {file}."),
        format!("//! See {file} 1.1, 250 ms later."),
        format!("//! See {file}, 3 of which are long, and {file}, 1.1."),
        format!("//! As {file}\n    //! 1 and 2 say."),
        format!("# ({file}, \"Making it\")"),
        format!("/// (`{file}`, section 2)"),
        format!("// {file}#making-it."),
        format!("read(\"{file}\", \"Nothing\")"),
        format!("https://example.com/{DOCS}none.md"),
    ] {
        assert_eq!(broken(good.clone()), 0, "{good}");
    }
    for bad in [
        format!("//! See {DOCS}none.md."),
        format!("//! See {DOCS}guide 1."),
        format!("//! As {file}\n    //! 1.2 says."),
        format!("//! {file} 1.1 to 1.4"),
        format!("//! {file} 1.1, 3.3"),
        format!("//! ({file}, 3.3)"),
        format!("# ({file}, \"Making\")"),
        format!("/// (`{file}`, section 3)"),
        format!("// {file}#making"),
        format!("file:///usr/share/doc/fanfare/{DOCS}none.md"),
    ] {
        assert_eq!(broken(bad.clone()), 1, "{bad}");
    }
}
