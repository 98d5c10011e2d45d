//! What an import leaves beside its file: where it stands, while it runs, and which lines were not taken.
//!
//! The state names a place up to which everything is settled, and what came of it; the rejects behind that place are dropped when
//! an import goes on there, because they are found again. Neither is synced: after a power loss a little more is done twice.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::import::source::Place;
use crate::client::import::window::Counts;
use crate::client::new_file::{NewFile, open_own};
use crate::exit::Failure;
use crate::printable;

/// A state has some 200 bytes, with the longest name of an app.
const STATE_MAX: u64 = 16 * 1024;

/// What an import has done of which file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The file as it was: another one is begun anew.
    pub bytes: u64,
    pub modified: i64,
    /// For whom.
    pub app: Option<String>,
    /// Up to here.
    pub offset: u64,
    pub line: u64,
    pub records: u64,
    pub created: u64,
    pub updated: u64,
    pub accounts: u64,
}

impl Progress {
    /// None yet. None: what has no place to go on from, such as a pipe.
    pub fn of(file: &Path, app: Option<&str>) -> Option<Progress> {
        let metadata = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
        let app = app.map(str::to_owned);
        Some(Progress {
            bytes: metadata.len(),
            modified: metadata.mtime(),
            app,
            offset: 0,
            line: 1,
            records: 0,
            created: 0,
            updated: 0,
            accounts: 0,
        })
    }

    /// What an earlier run noted about the same file, for the same app.
    pub fn resumed(&self, state: &Path) -> Option<Progress> {
        let mut text = Vec::new();
        open_own(state).ok()??.take(STATE_MAX).read_to_end(&mut text).ok()?;
        let noted: Progress = serde_json::from_slice(&text).ok()?;
        let same = (noted.bytes, noted.modified, &noted.app) == (self.bytes, self.modified, &self.app);
        (same && noted.offset <= self.bytes).then_some(noted)
    }

    pub fn place(&self) -> Place {
        Place { offset: self.offset, line: self.line }
    }

    pub fn counts(&self) -> Counts {
        Counts { created: self.created, updated: self.updated, accounts: self.accounts }
    }

    /// Notes how far it has come.
    pub fn write(&mut self, state: &Path, place: Place, records: u64, counts: Counts) -> Result<(), Failure> {
        (self.offset, self.line, self.records) = (place.offset, place.line, records);
        (self.created, self.updated, self.accounts) = (counts.created, counts.updated, counts.accounts);
        let text = json!(self).to_string();
        NewFile::make(state)
            .and_then(|mut new| new.file.write_all(text.as_bytes()).and_then(|()| new.rename()))
            .map_err(|error| Failure::io(format_args!("cannot write {}", printable::path(state)), &error))
    }
}

/// The file of lines that were not taken; it is made when there is one.
pub struct Rejects {
    path: PathBuf,
    file: Option<BufWriter<File>>,
    pub count: u64,
}

impl Rejects {
    /// Those of an earlier run are dropped from line `from` on.
    pub fn open(path: &Path, from: u64) -> Result<Rejects, Failure> {
        let mut rejects = Rejects { path: path.to_owned(), file: None, count: 0 };
        rejects.keep_before(from).map_err(|error| rejects.failed(&error))?;
        Ok(rejects)
    }

    /// Writes one.
    pub fn add(&mut self, line: u64, code: &str, field: Option<&str>, message: &str) -> Result<(), Failure> {
        self.count += 1;
        let text = json!({"line": line, "code": code, "field": field, "message": message});
        let written = match &mut self.file {
            Some(file) => writeln!(file, "{text}"),
            None => create(&self.path).and_then(|file| writeln!(self.file.insert(BufWriter::new(file)), "{text}")),
        };
        written.map_err(|error| self.failed(&error))
    }

    /// What was added is in the file.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.file.as_mut().map_or(Ok(()), Write::flush);
        flushed.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Failure {
        Failure::io(format_args!("cannot write {}", printable::path(&self.path)), error)
    }

    fn keep_before(&mut self, from: u64) -> io::Result<()> {
        if from <= 1 {
            // A device such as /dev/null stays; of a link only the link goes.
            return match fs::symlink_metadata(&self.path) {
                Ok(old) if old.is_file() || old.is_symlink() => fs::remove_file(&self.path),
                _ => Ok(()),
            };
        }
        let Some(old) = open_own(&self.path)? else { return Ok(()) };
        #[derive(Deserialize)]
        struct Numbered {
            line: u64,
        }
        let mut new = NewFile::make(&self.path)?;
        let mut kept = BufWriter::new(new.file.try_clone()?);
        for line in BufReader::new(old).lines() {
            let line = line?;
            // A line that was cut off belongs to what comes again.
            if serde_json::from_str(&line).is_ok_and(|numbered: Numbered| numbered.line < from) {
                writeln!(kept, "{line}")?;
                self.count += 1;
            }
        }
        kept.flush()?;
        new.rename()?;
        self.file = Some(kept);
        Ok(())
    }
}

/// It has its name at once: what is in it can be looked at while the import runs.
fn create(path: &Path) -> io::Result<File> {
    let mut new = NewFile::make(path)?;
    new.rename()?;
    new.file.try_clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_behind_the_place_are_found_again() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let path = directory.path().join("x.rejects");
        let mut rejects = Rejects::open(&path, 1).expect("none yet");
        rejects.flush().expect("nothing to write");
        assert!(!path.exists(), "no rejects, no file");
        for line in [2, 9, 5] {
            rejects.add(line, "invalid_field", Some("account"), "is too long").expect("writable");
        }
        drop(rejects);
        fs::OpenOptions::new().append(true).open(&path).and_then(|mut file| file.write_all(b"{\"line\":3")).expect("writable");

        let mut resumed = Rejects::open(&path, 6).expect("readable");
        assert_eq!(resumed.count, 2);
        resumed.add(7, "bad_json", None, "no JSON").expect("writable");
        resumed.flush().expect("writable");
        let text = fs::read_to_string(&path).expect("it is there");
        let lines: Vec<u64> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["line"].as_u64().expect("a number"))
            .collect();
        assert_eq!(lines, [2, 5, 7]);
        Rejects::open(&path, 1).expect("it can begin anew");
        assert!(!path.exists());
    }

    #[test]
    fn no_link_is_followed() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let file = |name: &str| directory.path().join(name);
        let link = |name: &str| std::os::unix::fs::symlink(file("victim"), file(name)).expect("writable");
        let state = r#"{"bytes":5,"modified":0,"app":null,"offset":5,"line":2,"records":1,"created":1,"updated":0,"accounts":0}"#;
        fs::write(file("victim"), format!("{state}\n")).expect("writable");
        fs::write(file("x"), "hello").expect("writable");
        let mut progress = Progress { modified: 0, ..Progress::of(&file("x"), None).expect("a file") };
        for (name, also) in [("x.import-state", "x.import-state.new"), ("x.rejects", "x.rejects.new")] {
            link(name);
            link(also);
        }
        assert_eq!(progress.resumed(&file("x.import-state")), None, "what a stranger put there says nothing of this file");
        progress.write(&file("x.import-state"), Place { offset: 3, line: 2 }, 1, Counts::default()).expect("writable");
        for from in [1, 3] {
            let mut rejects = Rejects::open(&file("x.rejects"), from).expect("readable");
            assert_eq!(rejects.count, 0);
            rejects.add(4, "bad_json", None, "no JSON").expect("writable");
            rejects.flush().expect("writable");
            assert!(file("x.rejects").symlink_metadata().expect("made").is_file());
            assert_eq!(fs::read_to_string(file("x.rejects")).expect("made").lines().count(), 1);
            fs::remove_file(file("x.rejects")).expect("made");
            link("x.rejects");
        }
        assert_eq!(fs::read_to_string(file("victim")).expect("there"), format!("{state}\n"), "it is as it was");
        assert_eq!(progress.resumed(&file("x.import-state")).expect("ours").offset, 3);
    }

    #[test]
    fn another_file_is_begun_anew() {
        let directory = tempfile::TempDir::new().expect("a temporary directory");
        let (file, state) = (directory.path().join("x"), directory.path().join("x.import-state"));
        fs::write(&file, "hello").expect("writable");
        let mut progress = Progress::of(&file, None).expect("a file");
        assert_eq!(progress.resumed(&state), None);
        progress.write(&state, Place { offset: 3, line: 2 }, 1, Counts::default()).expect("writable");
        assert_eq!(progress.resumed(&state).expect("the same").place(), Place { offset: 3, line: 2 });
        assert_eq!(Progress::of(&file, Some("shop")).expect("a file").resumed(&state), None);
        fs::write(&file, "hello, world").expect("writable");
        assert_eq!(Progress::of(&file, None).expect("a file").resumed(&state), None);
        fs::write(&state, "{").expect("writable");
        assert_eq!(progress.resumed(&state), None);
        assert_eq!(Progress::of(directory.path(), None), None);
    }
}
