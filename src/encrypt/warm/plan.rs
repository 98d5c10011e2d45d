//! Whose secrets are made next: of the lists and campaigns that wait for their `at` those with the nearest first, then those that are
//! paused, and of each its first recipients, in the order in which it is going to walk, its services in turn.
//!
//! It reads a few recipients at a time, and judges them as the worker does that is going to send; whoever has changed by then is
//! judged anew, and costs what he would have cost anyway.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;

use crate::encrypt::warm::{Browser, Stock, Warm};
use crate::message::{Delivery, Service, UnixMillis};
use crate::store::key::{self, ChunkKey};
use crate::store::live::{List, ListKey, ListState};
use crate::store::registry::walk::{Path, Shape};
use crate::store::{ReadError, Store, family, list_state, record};

/// Recipients that are read in one step: of rows that lie side by side, and of those that have to be looked up singly.
const READ: usize = 64;
const READ_SINGLY: usize = 8;
/// Secrets of a later list that are wiped in one step, to make room for those of an earlier one.
const WIPE: usize = 256;

/// The nearest first; behind them, as 1, what is paused and may be resumed at any time or never.
type Place = (u8, UnixMillis, ListKey);

/// The lists that wait, and what was made for them.
#[derive(Default)]
pub(super) struct Plan {
    aims: BTreeMap<Place, Aim>,
    next: Option<Next>,
}

/// Who is next.
struct Next {
    of: Place,
    browsers: Vec<Browser>,
}

/// What a worker is to do.
pub(super) enum Turn {
    Nothing,
    /// A step was done, and there is more.
    Again,
    /// Agree with these. The memory is reserved.
    Make(Arc<Stock>, Vec<Browser>),
}

/// A list that waits, or has waited and has secrets left.
struct Aim {
    list: Arc<List>,
    /// It waits. What is being sent uses its secrets, and gets no new ones.
    waits: bool,
    /// All ways are read to their end.
    done: bool,
    /// Some who were passed have no secret, because an earlier list needed the room.
    trimmed: bool,
    /// Its message has a body, and so needs secrets; None: not read yet.
    has_body: Option<bool>,
    ways: VecDeque<Way>,
    /// Of a campaign: where its candidates come from.
    path: Option<Path>,
}

/// A service's recipients of a list.
struct Way {
    service: Service,
    /// The next serial of a campaign, or chunk of a list; and the first that there is not yet.
    next: u64,
    until: u64,
    /// Of a campaign that has begun: stretches before `next` that are still open.
    open: VecDeque<Arc<Shape>>,
    /// Of a campaign: the stretch in work, and its places that were not read yet.
    shape: Option<Arc<Shape>>,
    places: VecDeque<u16>,
    /// Of a list: the deliveries of the chunk in work.
    chunk: VecDeque<Box<Delivery>>,
}

impl Plan {
    /// What is to be done next, `together` being how many agreements are made in one pass.
    pub(super) fn turn(&mut self, warm: &Warm, store: &Store, together: usize) -> Turn {
        let Some(next) = self.next.as_mut().filter(|next| !next.browsers.is_empty()) else {
            return match self.read(warm, store) {
                Ok(true) => Turn::Again,
                // While the store is being reopened there is nothing to be read.
                Ok(false) | Err(ReadError) => Turn::Nothing,
            };
        };
        let count = together.min(next.browsers.len());
        let of = next.of;
        match warm.reserve(of.2, count) {
            Some(stock) => Turn::Make(stock, next.browsers.drain(..count).collect()),
            None if self.make_room(warm, of) => Turn::Again,
            None => Turn::Nothing,
        }
    }

    /// Reads the next recipients of the first list that has any; false: nothing is left to be read.
    fn read(&mut self, warm: &Warm, store: &Store) -> Result<bool, ReadError> {
        let Some((of, aim)) = self.aims.iter_mut().find(|(_, aim)| aim.waits && !aim.done) else { return Ok(false) };
        let Some(mut browsers) = aim.read(warm, store)? else {
            aim.done = true;
            return Ok(true);
        };
        if let Some(stock) = warm.stock(of.2) {
            browsers.retain(|browser| !stock.has(browser));
        }
        self.next = Some(Next { of: *of, browsers });
        Ok(true)
    }

    /// Wipes some secrets of the last list behind this one, and when they are gone its maps; false: there is nothing.
    fn make_room(&mut self, warm: &Warm, of: Place) -> bool {
        self.aims.iter_mut().rev().take_while(|(place, _)| **place > of).any(|(place, aim)| {
            let Some(stock) = warm.stock(place.2) else { return false };
            aim.trimmed = true;
            stock.wipe(WIPE) || warm.forget(place.2).is_some()
        })
    }

    /// Looks which lists wait by now. Gives the stocks that nobody needs.
    pub(super) fn look(&mut self, warm: &Warm, store: &Store, now: UnixMillis) -> Vec<Arc<Stock>> {
        let mut unneeded = Vec::new();
        let off = warm.held.bound() == 0;
        self.aims.retain(|(.., key), _| {
            let stays = !off && store.lists.get(*key).is_some_and(|list| list_state(&list).over.is_none());
            if !stays {
                unneeded.extend(warm.forget(*key));
            }
            stays
        });
        // The bound was lowered.
        let mut beyond = warm.usage().bytes.saturating_sub(warm.held.bound());
        for ((.., key), aim) in self.aims.iter_mut().rev() {
            if beyond == 0 {
                break;
            }
            if let Some(stock) = warm.forget(*key) {
                beyond = beyond.saturating_sub(stock.bytes());
                aim.trimmed = true;
                unneeded.push(stock);
            }
        }
        let room = !unneeded.is_empty();
        // While the store is being reopened nobody is found: the next look does.
        if !off && let Ok(last) = store.last_serials() {
            let last: Vec<(Service, u64)> = last.into_iter().map(|(service, serial)| (service, serial + 1)).collect();
            for (key, list) in store.lists.all() {
                self.look_at(key, list, &last, room, store, now);
            }
        }
        for ((.., key), aim) in &self.aims {
            // It is being sent, and has used them up: what is left of it may take long.
            if !aim.waits && warm.stock(*key).is_some_and(|stock| stock.is_empty()) {
                unneeded.extend(warm.forget(*key));
            }
        }
        let first = self.aims.iter().find(|(_, aim)| aim.waits && !aim.done).map(|(place, _)| *place);
        // Only one list at a time has recipients in memory.
        for (_, aim) in self.aims.iter_mut().filter(|(place, _)| Some(**place) != first) {
            aim.ways.iter_mut().for_each(Way::put_back);
        }
        if let Some(next) = &self.next {
            let earlier = first.is_some_and(|first| first < next.of);
            match self.aims.get_mut(&next.of) {
                Some(aim) if earlier && !next.browsers.is_empty() => aim.trimmed = true,
                Some(aim) if aim.waits => return unneeded,
                _ => {}
            }
            self.next = None;
        }
        unneeded
    }

    fn look_at(&mut self, key: ListKey, list: Arc<List>, last: &[(Service, u64)], room: bool, store: &Store, now: UnixMillis) {
        let message = &list.message;
        let held = store.rules.load().pauses(message.id, &message.app, message.label.as_ref());
        let state = list_state(&list);
        let waits = state.over.is_none() && (held || state.paused || message.at > now);
        let behind = waits && message.at <= now;
        let place = (u8::from(behind), message.at, key);
        if let Some(aim) = self.aims.remove(&(u8::from(!behind), message.at, key)) {
            self.aims.insert(place, aim);
        }
        if !waits && !self.aims.contains_key(&place) {
            return;
        }
        let aim = self.aims.entry(place).or_insert_with(|| Aim::new(list.clone()));
        if waits && (!aim.waits || aim.trimmed && room) {
            // From the start: where it stands by now, who has a secret is passed over.
            *aim = Aim::new(list.clone());
        }
        aim.waits = waits;
        if waits {
            aim.extend(&state, last);
        } else {
            // What it has read is of no more use.
            aim.ways.clear();
            aim.path = None;
        }
    }
}

impl Aim {
    fn new(list: Arc<List>) -> Aim {
        Aim { list, waits: false, done: false, trimmed: false, has_body: None, ways: VecDeque::new(), path: None }
    }

    /// Learns of recipients that have come. `last` says of each service which serial comes next.
    fn extend(&mut self, state: &ListState, last: &[(Service, u64)]) {
        match (&self.list.wanted, &state.walks) {
            // Who comes before it begins is in it.
            (Some(_), None) => {
                last.iter().for_each(|(service, until)| self.extend_way(*service, *until, || Way::new(*service, 1)))
            }
            (Some(_), Some(walks)) => {
                for (service, walk) in walks {
                    let open = walk.open.values().filter(|open| !open.done).map(|open| open.shape.clone());
                    let begin = || Way { open: open.collect(), ..Way::new(*service, walk.next) };
                    self.extend_way(*service, walk.last + 1, begin);
                }
            }
            (None, _) => state
                .written
                .iter()
                .for_each(|(service, chunks)| self.extend_way(*service, u64::from(*chunks), || Way::new(*service, 0))),
        }
    }

    fn extend_way(&mut self, service: Service, until: u64, begin: impl FnOnce() -> Way) {
        let known = self.ways.iter().position(|way| way.service == service).unwrap_or_else(|| {
            self.ways.push_back(begin());
            self.done = false;
            self.ways.len() - 1
        });
        let way = &mut self.ways[known];
        self.done &= way.until >= until;
        way.until = until;
    }

    /// The next recipients of the service whose turn it is; possibly none of those that were read. None: all ways are at their end.
    fn read(&mut self, warm: &Warm, store: &Store) -> Result<Option<Vec<Browser>>, ReadError> {
        let has_body = match self.has_body {
            Some(has_body) => has_body,
            None => *self.has_body.insert(!store.whole_message(&self.list)?.body.is_empty()),
        };
        if !has_body {
            return Ok(None);
        }
        for _ in 0..self.ways.len() {
            self.ways.rotate_left(1);
            let Some(way) = self.ways.back_mut() else { return Ok(None) };
            let read = match &self.list.wanted {
                None => way.read_chunk(&self.list, warm, store)?,
                Some(wanted) => {
                    let path = match &mut self.path {
                        Some(path) => path,
                        None => self.path.insert(store.path(wanted)?),
                    };
                    way.read_stretch(&self.list, path, warm, store)?
                }
            };
            if read.is_some() {
                return Ok(read);
            }
        }
        Ok(None)
    }
}

impl Way {
    fn new(service: Service, next: u64) -> Way {
        let (open, places, chunk) = Default::default();
        Way { service, next, until: 0, open, shape: None, places, chunk }
    }

    /// Of a list: reads the chunk in work again when its turn comes back. Who has a secret by then is passed over.
    fn put_back(&mut self) {
        if !self.chunk.is_empty() {
            self.chunk = VecDeque::new();
            self.next -= 1;
        }
    }

    /// The next recipients of a campaign. None: there are no more.
    fn read_stretch(&mut self, list: &List, path: &Path, warm: &Warm, store: &Store) -> Result<Option<Vec<Browser>>, ReadError> {
        let Some(wanted) = &list.wanted else { return Ok(None) };
        if self.places.is_empty() {
            let shape = if let Some(shape) = self.open.pop_front() {
                self.places = store.waiting(list.stretch(self.service, shape.first), shape.len(), Some(&shape))?.into();
                shape
            } else {
                let last = self.until.saturating_sub(1);
                let Some(shape) = store.next_stretch(path, self.service, self.next, last, u64::MAX)? else {
                    self.next = self.next.max(self.until);
                    return Ok(None);
                };
                self.next = shape.end;
                self.places = (0..shape.len()).map(|place| place as u16).collect();
                Arc::new(shape)
            };
            self.shape = Some(shape);
        }
        let Some(shape) = &self.shape else { return Ok(None) };
        let most = if shape.members.is_some() { READ_SINGLY } else { READ };
        let places: Vec<u16> = self.places.drain(..most.min(self.places.len())).collect();
        let mut browsers = Vec::with_capacity(places.len());
        store.each_recipient(wanted, self.service, shape, &places, |recipient| browsers.push(warm.browser(&recipient)))?;
        Ok(Some(browsers))
    }

    /// The next recipients of a list. None: there are no more.
    fn read_chunk(&mut self, list: &List, warm: &Warm, store: &Store) -> Result<Option<Vec<Browser>>, ReadError> {
        let id = list.message.id;
        if self.chunk.is_empty() {
            if self.next >= self.until {
                return Ok(None);
            }
            let from = u32::try_from(self.next).expect("chunks are numbered by u32");
            let start = ChunkKey { commit: id.commit(), place: id.place(), service: self.service, chunk: from, count: 0 };
            let end = key::after_prefix(&key::list_service_prefix(id.commit(), id.place(), self.service));
            let mut found = None;
            store.reader()?.scan(family::LIST, &start.encode(), &end, |row, value| {
                found = ChunkKey::decode(row).ok().map(|key| (key, Bytes::copy_from_slice(value)));
                false
            })?;
            let Some((key, row)) = found else {
                self.next = self.until;
                return Ok(None);
            };
            self.next = u64::from(key.chunk) + 1;
            let batch = key.batch(list.message.urgency);
            let waiting = store.waiting(batch, usize::from(key.count), None)?;
            let chunk = &mut self.chunk;
            let read = record::read_chunk_row(&row, batch, &list.message, &waiting, |delivery| chunk.push_back(delivery));
            if read.is_err() {
                store.corrupt(family::LIST);
            }
        }
        let mut browsers = Vec::with_capacity(READ);
        for mut delivery in self.chunk.drain(..READ.min(self.chunk.len())) {
            store.resolve(&mut delivery)?;
            if delivery.lost.is_none() {
                browsers.push(warm.browser(&delivery.recipient));
            }
        }
        Ok(Some(browsers))
    }
}
