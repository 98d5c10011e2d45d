//! The event log. Each app's events lie in rows of their own, so that they are read, counted and dropped without touching another
//! app's: who has much told loses its own oldest events first, and who reads never reads what is another's.
//!
//! A row holds events that one checkpoint has of one app, a line of JSON each. Numbers are one sequence for all apps, so that a
//! cursor means the same to every reader. A key names the app, the number of the row's first event, and how many bytes the app had
//! written before: how much of the log is an app's is told by its first and its last row. The newest rows are kept in memory, so that
//! those who follow do not each read and take apart what came last.
//!
//! Rows of 0.1 hold the events of all apps, and their keys only a number. They are read on, and go by their age or as if they were
//! another app's.

mod filter;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use memchr::memmem::Finder;
use rocksdb::DBRawIteratorWithThreadMode;

pub use self::filter::EventFilter;
use self::filter::written;
use crate::store::database::Db;
use crate::store::live::lock;
use crate::store::record::{Corrupt, VERSION};
use crate::store::rows::number;
use crate::store::{ReadError, Reader, Rows, Store, family};

/// Begins the keys of rows of one app. Numbers of events are below 2^56: the keys of 0.1 begin with 0.
const OF_APP: u8 = 1;
/// Stands for the rows of 0.1, which are of all apps.
const MIXED: &str = "";
/// Bytes of the newest rows that are kept in memory.
const TAIL_BYTES: usize = if cfg!(test) { 4_096 } else { 4 << 20 };
/// Events of one page at most, and their bytes.
pub const PAGE: usize = 1_000;
const PAGE_BYTES: usize = 64 * 1024;
/// Bytes of rows that one page looks at, and how long it takes at most: others wait meanwhile. What is begun is finished, so a row
/// and some milliseconds may be added.
const LOOKED_AT_BYTES: usize = if cfg!(test) { 8_192 } else { 8 << 20 };
const PAGE_TIME: Duration = Duration::from_millis(10);
/// Bytes of rows of 0.1 that are looked through in one step of what drops them.
const MIXED_BYTES: usize = 256 << 20;
/// Of `events.max_mb` this part is made free where the log is too large, so that there is not something to drop each time.
const SLACK: u64 = 32;

/// What is known of the log without reading it.
#[derive(Default)]
pub struct Log(Mutex<State>);

#[derive(Default)]
struct State {
    apps: BTreeMap<Arc<str>, Held>,
    tail: VecDeque<Row>,
    tail_bytes: usize,
    /// All events from this number on are in the tail.
    tail_from: u64,
    /// Apps of which rows were to be written, and nobody knows yet whether they were.
    unsure: BTreeSet<Arc<str>>,
}

/// The part of the log that is one app's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Held {
    /// Bytes of it that are gone, and that there ever were.
    start: u64,
    end: u64,
    /// No row begins before this number.
    first: u64,
    /// The newest event; 0: there was none.
    last: u64,
    /// The newest event that was dropped. For [`MIXED`]: that 0.1 has dropped, of whatever app.
    dropped: u64,
}

impl Held {
    fn bytes(&self) -> u64 {
        self.end - self.start
    }
}

/// Events that a checkpoint has of one app.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) app: Arc<str>,
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) position: u64,
    pub(super) value: Bytes,
}

impl Row {
    fn last(&self) -> u64 {
        self.first + u64::from(self.count) - 1
    }
}

/// What becomes of the oldest rows of an app: those from the second field on stay.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Excess {
    pub(super) app: Arc<str>,
    /// Where in its bytes.
    pub(super) keep_from: u64,
}

/// Rows to drop, and what is to be written with that.
#[derive(Default)]
pub(super) struct Dropped {
    pub(super) ranges: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
    pub(super) put: Vec<(&'static str, Vec<u8>, Vec<u8>)>,
}

fn prefix(app: &str) -> Vec<u8> {
    if app == MIXED {
        return Vec::new();
    }
    let mut prefix = vec![OF_APP, u8::try_from(app.len()).expect("the configuration has names of 64 bytes at most")];
    prefix.extend_from_slice(app.as_bytes());
    prefix
}

fn key(app: &str, first: u64, position: u64) -> Vec<u8> {
    let mut key = from_number(app, first);
    if app != MIXED {
        key.extend(position.to_be_bytes());
    }
    key
}

/// Where rows of an app begin that begin with this number or a later one.
fn from_number(app: &str, first: u64) -> Vec<u8> {
    let mut key = prefix(app);
    key.extend(first.to_be_bytes());
    key
}

/// Behind all rows of an app.
fn end_of(app: &str) -> Vec<u8> {
    if app == MIXED { vec![OF_APP] } else { from_number(app, u64::MAX) }
}

/// The first number of a row of this app, and its place in the app's bytes.
fn place(app: &str, key: &[u8]) -> Option<(u64, u64)> {
    let mut rest = key.strip_prefix(prefix(app).as_slice())?;
    let mut field = || {
        let (field, left) = rest.split_first_chunk::<8>()?;
        rest = left;
        Some(u64::from_be_bytes(*field))
    };
    Some((field()?, if app == MIXED { 0 } else { field()? }))
}

fn app_of(key: &[u8]) -> Option<&str> {
    let (len, rest) = key.strip_prefix(&[OF_APP])?.split_first()?;
    std::str::from_utf8(rest.get(..usize::from(*len))?).ok()
}

/// Count and lines of a row.
fn parts(row: &[u8]) -> Result<(u32, &[u8]), Corrupt> {
    let (count, lines) = row.strip_prefix(&[VERSION]).and_then(|row| row.split_first_chunk::<4>()).ok_or(Corrupt)?;
    Ok((u32::from_be_bytes(*count), lines))
}

fn dropped_row(app: &str) -> Vec<u8> {
    [b"events/dropped/", app.as_bytes()].concat()
}

impl Log {
    /// Puts the rows of a checkpoint: app, count and value of each. The first of their events gets the number `first`.
    pub(super) fn put(
        &self,
        mut first: u64,
        values: Vec<(Arc<str>, u32, Vec<u8>)>,
        reader: &Reader<'_>,
        rows: &mut Rows,
    ) -> Vec<Row> {
        let mut state = lock(&self.0);
        // A write that failed may be there all the same: what it had of an app may be more, or of other numbers, than what comes now.
        for app in &state.unsure {
            rows.delete_range(reader, family::EVENTS, &from_number(app, first), &end_of(app));
        }
        let mut put: Vec<Row> = Vec::with_capacity(values.len());
        let mut ends: BTreeMap<Arc<str>, u64> = BTreeMap::new();
        for (app, count, value) in values {
            let end = ends.entry(app.clone()).or_insert_with(|| state.apps.get(&app).map_or(0, |held| held.end));
            let position = *end;
            *end += value.len() as u64;
            rows.put(reader, family::EVENTS, key(&app, first, position), &value);
            state.unsure.insert(app.clone());
            put.push(Row { app, first, count, position, value: value.into() });
            first += u64::from(count);
        }
        put
    }

    /// These rows are on disk, in this order.
    pub(super) fn append(&self, rows: Vec<Row>) {
        let mut state = lock(&self.0);
        state.unsure.clear();
        for row in rows {
            let held = state.apps.entry(row.app.clone()).or_default();
            (held.end, held.last) = (row.position + row.value.len() as u64, row.last());
            state.tail_bytes += row.value.len();
            state.tail.push_back(row);
        }
        while state.tail_bytes > TAIL_BYTES
            && let Some(row) = state.tail.pop_front()
        {
            state.tail_bytes -= row.value.len();
            state.tail_from = row.last() + 1;
        }
    }

    /// Rows were written anew: what is in memory is as they were.
    pub(super) fn forget_tail(&self, end: u64) {
        let mut state = lock(&self.0);
        (state.tail_from, state.tail_bytes) = (end, 0);
        state.tail.clear();
    }

    /// Bytes of the log by app. Those of all apps together, from 0.1, have no name.
    pub fn bytes(&self) -> Vec<(Arc<str>, u64)> {
        lock(&self.0).apps.iter().map(|(app, held)| (app.clone(), held.bytes())).collect()
    }

    /// Apps with something in it.
    fn apps(&self) -> Vec<Arc<str>> {
        lock(&self.0).apps.iter().filter(|(_, held)| held.bytes() > 0).map(|(app, _)| app.clone()).collect()
    }

    /// The newest event of any of these apps, as far as that is known.
    pub fn newest(&self, filter: &EventFilter) -> u64 {
        lock(&self.0).apps.iter().filter(|(app, _)| filter.reads(app)).map(|(_, held)| held.last).max().unwrap_or(0)
    }

    /// Up to which number events of these apps were dropped, app by app.
    pub fn dropped(&self, filter: &EventFilter) -> BTreeMap<Arc<str>, u64> {
        let state = lock(&self.0);
        state.apps.iter().filter(|(app, _)| filter.reads(app)).map(|(app, held)| (app.clone(), held.dropped)).collect()
    }

    /// Which apps have more than they may, where the log is larger than `most` bytes. Each of the configured apps, and of others
    /// that are in it, may have its part in any case; what they leave goes to those who have more.
    pub(super) fn excess(&self, configured: &[Arc<str>], most: u64) -> Vec<Excess> {
        let state = lock(&self.0);
        if state.apps.values().map(Held::bytes).sum::<u64>() <= most {
            return Vec::new();
        }
        let mut sizes: BTreeMap<&str, u64> = configured.iter().map(|app| (&**app, 0)).collect();
        let held = state.apps.iter().filter(|(_, held)| held.bytes() > 0);
        sizes.extend(held.map(|(app, held)| (&**app, held.bytes())));
        let level = level(sizes.into_values().collect(), most);
        let over = state.apps.iter().filter(|(_, held)| held.bytes() > level);
        over.map(|(app, held)| Excess { app: app.clone(), keep_from: held.end - level }).collect()
    }

    fn held(&self, app: &str) -> Held {
        lock(&self.0).apps.get(app).copied().unwrap_or_default()
    }

    fn change(&self, app: &Arc<str>, change: impl FnOnce(&mut Held)) {
        change(lock(&self.0).apps.entry(app.clone()).or_default());
    }

    /// The rows of the tail that a reader who has read up to `after` has still to look at; None: more is on disk.
    fn tail(&self, filter: &EventFilter, after: u64) -> Option<Vec<Row>> {
        let state = lock(&self.0);
        (after + 1 >= state.tail_from).then(|| {
            let from = state.tail.partition_point(|row| row.last() <= after);
            // What an app has lost is still here when the log is bounded to less than the tail.
            let kept = |row: &&Row| state.apps.get(&row.app).is_none_or(|held| row.last() > held.dropped);
            state.tail.range(from..).filter(|row| filter.reads(&row.app)).filter(kept).cloned().collect()
        })
    }
}

/// To how many bytes an app is cut so that all together have at most `most`, less some slack: never below its share.
fn level(mut sizes: Vec<u64>, most: u64) -> u64 {
    sizes.sort_unstable();
    let share = most / sizes.len().max(1) as u64;
    let mut left = most - most / SLACK;
    for (index, size) in sizes.iter().enumerate() {
        let each = left / (sizes.len() - index) as u64;
        if *size > each {
            return each.max(share);
        }
        left -= size;
    }
    u64::MAX
}

/// An event as it is kept: its number and its JSON, without the cursor.
pub struct StoredEvent {
    pub number: u64,
    pub json: Bytes,
}

/// A part of the log, as far as it concerns one reader.
pub struct Page {
    pub events: Vec<StoredEvent>,
    /// All up to this number was looked at.
    pub reached: u64,
    /// There was no more when it was read.
    pub ended: bool,
    bytes: usize,
    most: usize,
}

impl Page {
    /// Takes what is wanted of a row; false: the page is full. `held`: the row is in memory, and what is taken is a part of it.
    fn take(&mut self, filter: &EventFilter, mixed: bool, first: u64, row: &[u8], held: Option<&Bytes>) -> Result<bool, Corrupt> {
        let full = |page: &Page| page.events.len() >= page.most || page.bytes >= PAGE_BYTES;
        if full(self) {
            return Ok(false);
        }
        let (count, lines) = parts(row)?;
        if filter.may_be_in(lines, mixed) {
            for (number, line) in (first..).zip(lines.split(|byte| *byte == b'\n')) {
                if number <= self.reached {
                    continue;
                }
                if full(self) {
                    self.reached = number - 1;
                    return Ok(false);
                }
                if filter.takes(line, mixed) {
                    let json = held.map_or_else(|| Bytes::copy_from_slice(line), |row| row.slice_ref(line));
                    self.bytes += json.len();
                    self.events.push(StoredEvent { number, json });
                }
            }
        }
        self.reached = self.reached.max((first + u64::from(count)).saturating_sub(1));
        Ok(true)
    }
}

/// The rows of one app, in order.
struct Source<'a> {
    app: Arc<str>,
    rows: DBRawIteratorWithThreadMode<'a, Db>,
}

impl Source<'_> {
    /// The number with which the row at hand begins; None: there is no more.
    fn first(&self) -> Option<u64> {
        place(&self.app, self.rows.key()?).map(|(first, _)| first)
    }
}

impl Reader<'_> {
    /// The rows of an app from the one that holds the next event behind `after` on, below number `end`.
    fn event_rows(&self, app: Arc<str>, first: u64, after: u64, end: u64) -> Source<'_> {
        let mut options = rocksdb::ReadOptions::default();
        // Who reads the log from its beginning must not push everything else out of the cache.
        options.fill_cache(false);
        options.set_iterate_lower_bound(from_number(&app, first));
        options.set_iterate_upper_bound(from_number(&app, end));
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family::EVENTS), options);
        // It begins at or before it.
        rows.seek_for_prev(key(&app, after + 1, u64::MAX));
        match (rows.key().and_then(|key| place(&app, key)), rows.value().map(parts)) {
            (Some((first, _)), Some(Ok((count, _)))) if first + u64::from(count) <= after + 1 => rows.next(),
            (Some(_), _) => {}
            (None, _) => rows.seek_to_first(),
        }
        Source { app, rows }
    }

    /// The rows of an app below number `end`, the newest at hand; the way is back.
    fn event_rows_from_the_end(&self, app: Arc<str>, first: u64, end: u64) -> Source<'_> {
        let mut options = rocksdb::ReadOptions::default();
        options.fill_cache(false);
        options.set_iterate_lower_bound(from_number(&app, first));
        options.set_iterate_upper_bound(from_number(&app, end));
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family::EVENTS), options);
        rows.seek_to_last();
        Source { app, rows }
    }

    /// The first row of an app, from this number on, of which `keep` says that it stays; those before it do not. None: none stays.
    /// `keep` is given the number of the row's first event, its place in the app's bytes, and the row.
    fn first_kept(&self, app: &str, from: u64, keep: impl Fn(u64, u64, &[u8]) -> bool) -> Result<Option<(u64, u64)>, ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_lower_bound(from_number(app, from));
        options.set_iterate_upper_bound(end_of(app));
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family::EVENTS), options);
        rows.seek_to_first();
        if let (Some((first, position)), Some(value)) = (rows.key().and_then(|key| place(app, key)), rows.value())
            && keep(first, position, value)
        {
            return Ok(Some((first, position)));
        }
        rows.seek_to_last();
        // By halves: the rows between need not be read.
        let (mut low, mut high) = (from, rows.key().and_then(|key| place(app, key)).map_or(from, |(first, _)| first + 1));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            rows.seek(from_number(app, middle));
            match (rows.key().and_then(|key| place(app, key)), rows.value()) {
                (Some((first, position)), Some(value)) if first < high && !keep(first, position, value) => low = first + 1,
                (Some((first, position)), Some(_)) if first < high => (found, high) = (Some((first, position)), middle),
                _ => high = middle,
            }
        }
        rows.status().map_err(|_| ReadError)?;
        Ok(found)
    }
}

impl Store {
    /// Reads what must be known of the log: two rows an app. The first event that is written from now on gets the number `end`.
    pub(super) fn load_log(&self, end: u64) -> Result<(), ReadError> {
        let reader = self.reader()?;
        let mut apps: BTreeMap<Arc<str>, Held> = BTreeMap::new();
        reader.scan(family::META, &dropped_row(""), b"events/dropped0", |row, value| {
            let app = row.get(dropped_row("").len()..).and_then(|app| std::str::from_utf8(app).ok());
            if let (Some(app), Some(number)) = (app, value.first_chunk()) {
                let dropped = u64::from_be_bytes(*number);
                apps.insert(app.into(), Held { first: dropped + 1, dropped, ..Held::default() });
            }
            true
        })?;
        let old = reader.value(family::META, "events_first")?;
        let from = old.as_ref().and_then(|row| row.first_chunk()).map_or(0, |first| u64::from_be_bytes(*first) + 1);
        let mixed = apps.entry(MIXED.into()).or_default();
        let first = reader.first_kept(MIXED, from, |_, _, _| true)?.map(|(first, _)| first);
        mixed.first = first.unwrap_or(end);
        // 0.1 dropped what was before that; it is noted, for this row goes some day.
        if reader.value(family::META, dropped_row(MIXED))?.is_none() && old.is_some() {
            mixed.dropped = mixed.first - 1;
        }
        if let Some((key, value)) =
            reader.last_at_most(family::EVENTS, &number((1 << 56) - 1), &from_number(MIXED, mixed.first))?
            && let (Some((last, _)), Ok((count, _))) = (place(MIXED, &key), parts(&value))
        {
            mixed.last = last + u64::from(count) - 1;
            // Of these only the space on disk is known.
            let range = rocksdb::Range::new(&key[..0], &[OF_APP]);
            mixed.end = reader.db().get_approximate_sizes_cf(&reader.family(family::EVENTS), &[range]).iter().sum::<u64>().max(1);
        }
        let mut from = vec![OF_APP];
        loop {
            let mut app = None;
            reader.scan(family::EVENTS, &from, &[OF_APP + 1], |key, _| {
                app = app_of(key).map(Arc::<str>::from);
                false
            })?;
            let Some(app) = app else { break };
            from = end_of(&app);
            let held = apps.entry(app.clone()).or_default();
            let floor = from_number(&app, held.first);
            if let Some((_, start)) = reader.first_kept(&app, held.first, |_, _, _| true)?
                && let Some((key, value)) = reader.last_at_most(family::EVENTS, &from, &floor)?
                && let (Some((first, position)), Ok((count, _))) = (place(&app, &key), parts(&value))
            {
                (held.start, held.end) = (start, position + value.len() as u64);
                held.last = first + u64::from(count) - 1;
            }
        }
        let dropped = apps[MIXED].dropped;
        *lock(&self.log.0) = State { apps, tail_from: end, ..State::default() };
        if dropped > 0 && reader.value(family::META, dropped_row(MIXED))?.is_none() {
            let mut rows = Rows::new();
            rows.put(&reader, family::META, dropped_row(MIXED), number(dropped));
            self.write(rows).map_err(|_| ReadError)?;
        }
        Ok(())
    }

    /// The events behind number `after` that are wanted, oldest first: `most` of them at most, and as far as one page goes.
    pub fn events_page(&self, filter: &EventFilter, after: u64, most: usize) -> Result<Page, ReadError> {
        let end = *self.events_end.borrow();
        let mut page = Page { events: Vec::new(), reached: after, ended: false, bytes: 0, most: most.min(PAGE) };
        if let Some(rows) = self.log.tail(filter, after) {
            for row in rows.iter().filter(|row| row.first < end) {
                if !page.take(filter, false, row.first, &row.value, Some(&row.value)).unwrap_or(true) {
                    return Ok(page);
                }
            }
        } else {
            let began = Instant::now();
            let held: Vec<_> = {
                let state = lock(&self.log.0);
                let read = state.apps.iter().filter(|(app, held)| filter.reads(app) && held.last > after);
                read.map(|(app, held)| (app.clone(), held.first)).collect()
            };
            let reader = self.reader()?;
            let mut sources: Vec<_> = held.into_iter().map(|(app, first)| reader.event_rows(app, first, after, end)).collect();
            let mut looked_at = 0;
            // The source whose next row comes first.
            while let Some((_, next)) =
                sources.iter().enumerate().filter_map(|(index, source)| Some((source.first()?, index))).min()
            {
                if looked_at >= LOOKED_AT_BYTES || looked_at > 0 && began.elapsed() >= PAGE_TIME {
                    return Ok(page);
                }
                let source = &mut sources[next];
                let (Some(first), Some(row)) = (source.first(), source.rows.value()) else { break };
                looked_at += row.len();
                match page.take(filter, &*source.app == MIXED, first, row, None) {
                    Ok(true) => {}
                    Ok(false) => return Ok(page),
                    Err(Corrupt) => self.corrupt(family::EVENTS),
                }
                source.rows.next();
            }
            for source in &sources {
                source.rows.status().map_err(|_| ReadError)?;
            }
        }
        page.reached = page.reached.max(end - 1);
        page.ended = true;
        Ok(page)
    }

    /// The number behind which the newest wanted events are, `most` of them. Where they lie far apart it may be fewer: no more is looked
    /// through than for one page.
    pub fn before_last_events(&self, filter: &EventFilter, most: usize) -> Result<u64, ReadError> {
        let end = *self.events_end.borrow();
        let held: Vec<_> = {
            let state = lock(&self.log.0);
            state.apps.iter().filter(|(app, _)| filter.reads(app)).map(|(app, held)| (app.clone(), held.first)).collect()
        };
        let reader = self.reader()?;
        let mut sources: Vec<_> = held.into_iter().map(|(app, first)| reader.event_rows_from_the_end(app, first, end)).collect();
        let (mut left, mut looked_at) = (most, 0);
        // The source whose row at hand is the newest: rows of different apps have no numbers in common.
        while let Some((first, newest)) =
            sources.iter().enumerate().filter_map(|(index, source)| Some((source.first()?, index))).max()
        {
            let source = &mut sources[newest];
            let Some(row) = source.rows.value() else { break };
            if looked_at >= LOOKED_AT_BYTES {
                let count = parts(row).map_or(0, |(count, _)| u64::from(count));
                return Ok((first + count).saturating_sub(1));
            }
            looked_at += row.len();
            let mixed = &*source.app == MIXED;
            match parts(row) {
                Ok((_, lines)) if filter.may_be_in(lines, mixed) => {
                    let wanted: Vec<u64> = (first..)
                        .zip(lines.split(|byte| *byte == b'\n'))
                        .filter(|(number, line)| *number < end && filter.takes(line, mixed))
                        .map(|(number, _)| number)
                        .collect();
                    match wanted.len().checked_sub(left) {
                        Some(before) => return Ok(wanted[before] - 1),
                        None => left -= wanted.len(),
                    }
                }
                Ok(_) => {}
                Err(Corrupt) => self.corrupt(family::EVENTS),
            }
            source.rows.prev();
        }
        for source in &sources {
            source.rows.status().map_err(|_| ReadError)?;
        }
        Ok(0)
    }

    /// Events of all apps after number `after`, oldest first, `most` of them at most.
    pub fn events_after(&self, after: u64, most: usize) -> Result<Vec<StoredEvent>, ReadError> {
        let filter = EventFilter::all();
        let mut page = self.events_page(&filter, after, most)?;
        while page.events.is_empty() && !page.ended {
            page = self.events_page(&filter, page.reached, most)?;
        }
        Ok(page.events)
    }

    /// Drops the oldest rows of an app, as far as `keep` does not want them: it is given a row's place in the app's bytes, and the
    /// row. From now on nobody is told any more that nothing is missing before what stays; the rows go with what is to be written.
    pub(super) fn drop_events(
        &self,
        app: &Arc<str>,
        keep: impl Fn(u64, &[u8]) -> bool,
        configured: &[Arc<str>],
        dropped: &mut Dropped,
    ) -> Result<(), ReadError> {
        let held = self.log.held(app);
        if held.bytes() == 0 {
            return Ok(());
        }
        let reader = self.reader()?;
        // Where a row of 0.1 lies in their bytes is not known: they are taken to be spread evenly.
        let spread = |first: u64| {
            let part = u128::from(held.bytes()) * u128::from(first - held.first) / u128::from(held.last + 1 - held.first);
            held.start + u64::try_from(part).expect("a part of it")
        };
        let kept = reader.first_kept(app, held.first, |first, position, row| {
            keep(if &**app == MIXED { spread(first) } else { position }, row)
        })?;
        let (first, start) = kept.unwrap_or((held.last + 1, held.end));
        if first <= held.first {
            return Ok(());
        }
        if &**app == MIXED {
            let first = self.note_mixed(&reader, held.first, first, configured, dropped)?;
            self.log.change(app, |of| (of.start, of.first) = (spread(first), first));
            dropped.ranges.push((family::EVENTS, number(0), number(first)));
            dropped.put.push((family::META, b"events_first".to_vec(), [number(first - 1), vec![0]].concat()));
            // Else the next start would take it that 0.1 has dropped these.
            dropped.put.push((family::META, dropped_row(app), number(held.dropped)));
            return Ok(());
        }
        // The last row before it.
        let before = key(app, first - 1, u64::MAX);
        let Some((row, value)) = reader.last_at_most(family::EVENTS, &before, &from_number(app, held.first))? else {
            return Ok(());
        };
        let last = match (place(app, &row), parts(&value)) {
            (Some((first, _)), Ok((count, _))) => first + u64::from(count) - 1,
            _ => first - 1,
        };
        self.log.change(app, |held| (held.start, held.first, held.dropped) = (start, first, last));
        dropped.ranges.push((family::EVENTS, from_number(app, 0), from_number(app, first)));
        dropped.put.push((family::META, dropped_row(app), number(last)));
        Ok(())
    }

    /// Rows of 0.1 go, from number `from` to `first`: notes whose events were in them. Gives up to where that is known, where they
    /// are many.
    fn note_mixed(
        &self,
        reader: &Reader<'_>,
        from: u64,
        first: u64,
        configured: &[Arc<str>],
        dropped: &mut Dropped,
    ) -> Result<u64, ReadError> {
        let mut apps: BTreeMap<Arc<str>, (Finder<'static>, u64)> = BTreeMap::new();
        for app in self.log.apps().iter().chain(configured).filter(|app| &***app != MIXED) {
            apps.entry(app.clone()).or_insert_with(|| (written("app", app), 0));
        }
        let (mut gone_to, mut looked_at) = (from, 0);
        reader.pass_over(family::EVENTS, &number(from), &number(first), |row, value| {
            if let (Some((begins, _)), Ok((count, lines))) = (place(MIXED, row), parts(value)) {
                gone_to = begins + u64::from(count);
                let met = apps.values_mut().filter(|(needle, _)| needle.find(lines).is_some());
                met.for_each(|(_, last)| *last = gone_to - 1);
            }
            looked_at += value.len();
            looked_at < MIXED_BYTES
        })?;
        for (app, (_, last)) in apps.into_iter().filter(|(_, (_, last))| *last > 0) {
            self.log.change(&app, |held| held.dropped = held.dropped.max(last));
            dropped.put.push((family::META, dropped_row(&app), number(self.log.held(&app).dropped)));
        }
        Ok(gone_to)
    }
}

#[cfg(test)]
mod tests;
