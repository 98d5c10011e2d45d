//! `fanfare import`: takes over the subscriptions that an application has kept until now.
//!
//! Every record of the file is judged: it is handed in by `subscribe`, or told in the file of rejects with its line and the reason.
//! Nothing but the daemon's absence stops it, and then it goes on where it was. Lines are written ahead of the answers
//! ([`window`]); reading ([`source`]), checking ([`record`]) and noting ([`journal`]) happen in this thread.

pub mod journal;
pub mod record;
pub mod source;
pub mod window;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::{Value, json};

use self::journal::{Progress, Rejects};
use self::record::Records;
use self::source::{Place, Source};
use self::window::{Counts, Window};
use crate::client::arguments::Import;
use crate::client::connection::{Connection, Reply};
use crate::client::new_file::beside;
use crate::client::output::{self, Output};
use crate::client::send::{is_dash, style};
use crate::clock;
use crate::exit::{Exit, Failure};
use crate::printable;

/// How often it is noted where the import stands.
const NOTE: Duration = Duration::from_secs(1);
/// Records between looks at the time.
const LOOK: u64 = 256;

/// Hands in a file of subscriptions.
pub fn import(socket: &Path, output: &mut Output, arguments: &Import) -> Result<(), Failure> {
    let mut source = Source::open(&arguments.file, arguments.format)?;
    let note = Note::of(arguments);
    let mut progress = if arguments.dry_run { None } else { Progress::of(&arguments.file, arguments.app.as_deref()) };
    let earlier = progress.as_ref().and_then(|progress| progress.resumed(&note.state));
    if arguments.resume && earlier.is_none() {
        let message = format!("{} says of no earlier import of this file where it stopped", printable::path(&note.state));
        return Err(Failure::new(Exit::Usage, message));
    }
    let mut before = (Counts::default(), 0);
    if let Some(earlier) = earlier {
        source.skip_to(&arguments.file, earlier.place())?;
        before = (earlier.counts(), earlier.records);
        output::note(format_args!("going on with line {}", earlier.line));
        progress = Some(earlier);
    }
    let window = if arguments.dry_run { None } else { Some(open(socket, arguments.app.as_deref())?) };

    let bar = match &progress {
        _ if is_dash(&arguments.file) => ProgressBar::no_length().with_style(style("{spinner} {msg}")),
        _ => ProgressBar::new(std::fs::metadata(&arguments.file).map_or(0, |metadata| metadata.len()))
            .with_style(style("{bar:30} {msg}, {eta} left")),
    };
    bar.set_position(source.next().offset);
    bar.reset_eta();
    let mut importing = Importing {
        records: Records::new(arguments.app.clone(), clock::now()),
        rejects: Rejects::open(&note.rejects, source.next().line)?,
        source,
        window,
        before,
        read: before.1,
        progress,
        note,
        bar,
        started: Instant::now(),
        noted: Instant::now(),
    };
    let result = importing.run();
    importing.conclude(output, result, arguments.dry_run)
}

/// A daemon that does not know the app would refuse every line: it is asked first.
fn open(socket: &Path, app: Option<&str>) -> Result<Window, Failure> {
    if let Some(app) = app {
        Connection::open(socket)?.call(&json!({"op": "vapid_public_key", "app": app}))?;
    }
    Window::open(socket)
}

/// Files beside the one that is imported.
struct Note {
    state: PathBuf,
    rejects: PathBuf,
}

impl Note {
    fn of(arguments: &Import) -> Note {
        let base = if is_dash(&arguments.file) { Path::new("import") } else { &arguments.file };
        let rejects = arguments.rejects.clone().unwrap_or_else(|| beside(base, ".rejects"));
        Note { state: beside(base, ".import-state"), rejects }
    }
}

/// An import on its way.
struct Importing {
    source: Source,
    records: Records,
    /// None: nothing is sent.
    window: Option<Window>,
    rejects: Rejects,
    /// None: where there is nothing to go on from.
    progress: Option<Progress>,
    note: Note,
    /// What earlier runs did: counts, and records.
    before: (Counts, u64),
    /// Records so far, those of earlier runs among them.
    read: u64,
    bar: ProgressBar,
    started: Instant,
    noted: Instant,
}

impl Importing {
    fn run(&mut self) -> Result<(), Failure> {
        while let Some((place, readable)) = self.source.read().map_err(|error| Failure::io("cannot read the file", &error))? {
            self.read += 1;
            self.take(place, readable)?;
            if self.read.is_multiple_of(LOOK) && self.noted.elapsed() >= NOTE {
                self.note_progress()?;
            }
        }
        match &mut self.window {
            Some(window) => window.finish(),
            None => Ok(()),
        }
    }

    /// Hands in one record, or says why not.
    fn take(&mut self, place: Place, readable: Result<(), source::Unreadable>) -> Result<(), Failure> {
        let requests = match readable.and_then(|()| self.source.members()) {
            Err(unreadable) => return self.rejects.add(place.line, unreadable.code, None, &unreadable.message),
            Ok(members) => self.records.requests(&members),
        };
        match (requests, &mut self.window) {
            (Err(problem), _) => self.rejects.add(place.line, problem.code.as_str(), problem.field.as_deref(), &problem.message),
            (Ok(requests), Some(window)) => window.send(place, requests),
            (Ok(_), None) => Ok(()),
        }
    }

    /// Tells the rejects, and notes up to where everything is settled.
    fn note_progress(&mut self) -> Result<Counts, Failure> {
        self.noted = Instant::now();
        let next = self.source.next();
        let (place, counts, refused) =
            self.window.as_ref().map_or_else(|| (next, Counts::default(), Vec::new()), |window| window.settled(next));
        for one in refused {
            let refusal = one.refusal;
            self.rejects.add(one.place.line, &refusal.code, refusal.field.as_deref(), &refusal.message)?;
        }
        self.rejects.flush()?;
        let (before, _) = self.before;
        let counts = Counts {
            created: before.created + counts.created,
            updated: before.updated + counts.updated,
            accounts: before.accounts + counts.accounts,
        };
        if let (Some(progress), Some(_)) = (&mut self.progress, &self.window) {
            // Records are counted again from there on: each has one line at least.
            let ahead = next.line.saturating_sub(place.line).min(self.read);
            progress.write(&self.note.state, place, self.read - ahead, counts)?;
        }
        self.bar.set_position(next.offset);
        let rejected = if self.rejects.count > 0 { format!(", {} not taken", self.rejects.count) } else { String::new() };
        let speed = (self.read - self.before.1) as f64 / self.started.elapsed().as_secs_f64().max(0.001);
        self.bar.set_message(format!("{} records, {speed:.0}/s{rejected}", self.read));
        Ok(counts)
    }

    fn conclude(mut self, output: &mut Output, result: Result<(), Failure>, dry_run: bool) -> Result<(), Failure> {
        let noted = self.note_progress();
        self.bar.finish_and_clear();
        if let Err(failure) = result {
            let again = match &self.progress {
                Some(progress) => format!("\nRun the same command again: it goes on with line {}", progress.line),
                None => String::new(),
            };
            return Err(Failure::new(failure.exit, format!("{failure}{again}")));
        }
        let counts = noted?;
        if self.progress.is_some() {
            // It was written by `note_progress`; an import that is complete has nothing to go on with.
            let _gone = std::fs::remove_file(&self.note.state);
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let rejected = self.rejects.count;
        let mut summary = json!({
            "lines": self.read,
            "rejected": rejected,
            "seconds": (seconds * 1000.0).round() / 1000.0,
            "lines_per_second": ((self.read - self.before.1) as f64 / seconds.max(0.001)).round(),
        });
        let mut add =
            |name: &str, value: Value| drop(summary.as_object_mut().map(|members| members.insert(name.to_owned(), value)));
        if dry_run {
            add("dry_run", true.into());
            add("good", (self.read - rejected).into());
        } else {
            add("created", counts.created.into());
            add("updated", counts.updated.into());
        }
        if counts.accounts > 0 {
            add("accounts", counts.accounts.into());
        }
        if rejected > 0 {
            add("rejects", self.note.rejects.display().to_string().into());
        }
        if !self.records.left_out.is_empty() {
            add("left_out", json!(self.records.left_out));
        }
        output.reply(&Reply::parse(summary.to_string())?, SUMMARY)?;
        if rejected > 0 {
            let file = printable::path(&self.note.rejects);
            output::note(format_args!("{rejected} of {} lines were not taken: {file} says which and why", self.read));
        }
        Ok(())
    }
}

const SUMMARY: &[&str] = &["dry_run", "lines", "good", "created", "updated", "accounts", "rejected", "rejects", "left_out"];
