//! Walking over the subscriptions of a segment: which rows are candidates, in which order, and whether one belongs.
//!
//! Candidates come from the registry itself or, where a tag or a scope is asked for, from its posting lists, in either case by
//! service and serial. A campaign takes them in *stretches*: a range of serials, and in it either every serial (the registry) or
//! those that the lists named when it was opened. Whether one belongs is judged when its turn comes.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use crate::limits::CHUNK_RECIPIENTS_MAX;
use crate::message::{Name, Recipient, Segment, Service, SubscriptionKey};
use crate::store::live::{List, Open};
use crate::store::record::{Corrupt, Put, Take};
use crate::store::registry::row::{self, App, Kind, Posting, View};
use crate::store::{ReadError, Reader, Store, family, list_state};

/// Whom a campaign, a count or a list wants.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub app: App,
    pub scope: Option<Name>,
    pub segment: Segment,
}

/// Where candidates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Path {
    /// Every subscription.
    Registry,
    /// Those of any of these lists.
    Lists(Vec<Posting>),
}

impl Wanted {
    /// Whether a subscription belongs; not whether it can be reached.
    pub fn matches(&self, view: &View<'_>) -> bool {
        let Segment { tags_any, tags_all, tags_none, attributes } = &self.segment;
        view.app() == self.app
            && self.scope.as_ref().is_none_or(|scope| view.accepts(scope))
            && (tags_any.is_empty() || tags_any.iter().any(|tag| view.has_tag(tag)))
            && tags_all.iter().all(|tag| view.has_tag(tag))
            && !tags_none.iter().any(|tag| view.has_tag(tag))
            && attributes.iter().all(|(name, value)| view.attribute(name) == Some(value.as_bytes()))
    }

    fn posting(&self, kind: Kind, name: &Name) -> Posting {
        Posting { app: self.app, kind, name: name.clone() }
    }

    fn scope_lists(&self) -> Option<Vec<Posting>> {
        let scope = self.scope.as_ref()?;
        Some(vec![self.posting(Kind::Scope, scope), self.posting(Kind::AnyScope, &Arc::from(""))])
    }

    /// The kept counts whose sum is the answer, if there are such: of all, of one tag, of one scope.
    pub fn kept_counts(&self) -> Option<Vec<Posting>> {
        let Segment { tags_any, tags_all, tags_none, attributes } = &self.segment;
        if !tags_none.is_empty() || !attributes.is_empty() {
            return None;
        }
        match (&tags_any[..], &tags_all[..], &self.scope) {
            ([], [], None) => Some(vec![Store::app_posting(self.app)]),
            ([], [], Some(_)) => self.scope_lists(),
            ([tag], [], None) | ([], [tag], None) => Some(vec![self.posting(Kind::Tag, tag)]),
            _ => None,
        }
    }

    /// The choices of lists, each of which holds every candidate.
    fn choices(&self) -> Vec<Vec<Posting>> {
        let mut choices: Vec<Vec<Posting>> = self.segment.tags_all.iter().map(|tag| vec![self.posting(Kind::Tag, tag)]).collect();
        if !self.segment.tags_any.is_empty() {
            choices.push(self.segment.tags_any.iter().map(|tag| self.posting(Kind::Tag, tag)).collect());
        }
        choices.extend(self.scope_lists());
        choices
    }
}

/// The candidates of a stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub first: u64,
    /// The first serial behind it.
    pub end: u64,
    /// Distances from `first`, ascending; None: every serial.
    pub members: Option<Box<[u32]>>,
}

impl Shape {
    /// Number of places.
    pub fn len(&self) -> usize {
        match &self.members {
            None => (self.end - self.first) as usize,
            Some(members) => members.len(),
        }
    }

    /// Whether it has no place.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The serial at a place.
    pub fn serial(&self, place: u16) -> u64 {
        match &self.members {
            None => self.first + u64::from(place),
            Some(members) => self.first + u64::from(members.get(usize::from(place)).copied().unwrap_or(u32::MAX)),
        }
    }

    /// The outcome row of a stretch: where it ends, who is in it, and their bytes.
    pub fn encode(&self, bytes: &[u8]) -> Vec<u8> {
        let mut put = Put::versioned();
        put.u64(self.first).u64(self.end);
        match &self.members {
            None => {
                put.u8(0);
            }
            Some(members) => {
                put.u8(1).u16(u16::try_from(members.len()).expect("a stretch has at most 512 places"));
                for member in members {
                    put.u32(*member);
                }
            }
        }
        put.bytes(bytes);
        put.0
    }

    /// Shape and outcome bytes of a row.
    pub fn decode(row: Bytes) -> Result<(Shape, Vec<u8>), Corrupt> {
        let len = row.len();
        let mut take = Take::versioned(row)?;
        let (first, end) = (take.u64()?, take.u64()?);
        let mut header = 1 + 8 + 8 + 1;
        let members = match take.u8()? {
            0 => None,
            1 => {
                let count = take.u16()?;
                header += 2 + 4 * usize::from(count);
                Some((0..count).map(|_| take.u32()).collect::<Result<Box<[u32]>, Corrupt>>()?)
            }
            _ => return Err(Corrupt),
        };
        let bytes = take.take(len.saturating_sub(header))?.to_vec();
        if first >= end || end - first > u64::from(u32::MAX) {
            return Err(Corrupt);
        }
        let shape = Shape { first, end, members };
        if shape.len() == bytes.len() { Ok((shape, bytes)) } else { Err(Corrupt) }
    }
}

/// Places of a stretch: few where a test plays with few subscriptions.
const STRETCH: usize = if cfg!(test) { 3 } else { CHUNK_RECIPIENTS_MAX };

impl Store {
    /// The cheapest way to all candidates.
    pub fn path(&self, wanted: &Wanted) -> Result<Path, ReadError> {
        let mut best: Option<(u64, Vec<Posting>)> = None;
        for lists in wanted.choices() {
            let mut sum = 0;
            for posting in &lists {
                sum += self.kept_count(posting)?;
            }
            if best.as_ref().is_none_or(|(least, _)| sum < *least) {
                best = Some((sum, lists));
            }
        }
        let Some((sum, lists)) = best else { return Ok(Path::Registry) };
        // Reading every row in order costs less than looking up every other one. Disabled ones are in lists and not in counts.
        let all: u64 = self.last_serials()?.iter().map(|(_, last)| last).sum();
        Ok(if sum > all / 2 && self.nobody_is_disabled() { Path::Registry } else { Path::Lists(lists) })
    }

    /// The next stretch of a walk over a service: candidates from serial `next` on, none behind `last` and none at or behind
    /// `before`. None: there are no more.
    pub fn next_stretch(
        &self,
        path: &Path,
        service: Service,
        next: u64,
        last: u64,
        before: u64,
    ) -> Result<Option<Shape>, ReadError> {
        let until = (last + 1).min(before);
        if next >= until {
            return Ok(None);
        }
        let reader = self.reader()?;
        let serial = |serial| SubscriptionKey { service, serial };
        match path {
            Path::Registry => {
                let mut first = None;
                let (from, to) = (row::subscription_key(serial(next)), row::subscription_key(serial(until)));
                reader.scan(family::SUBSCRIPTION, &from, &to, |row, _| {
                    first = row::take_key(row).ok().map(|key| key.serial);
                    false
                })?;
                Ok(first.map(|first| Shape { first, end: until.min(first + STRETCH as u64), members: None }))
            }
            Path::Lists(lists) => {
                let mut serials = Vec::new();
                for posting in lists {
                    take_members(&reader, posting, serial(next), serial(until), &mut serials)?;
                }
                serials.sort_unstable();
                serials.dedup();
                serials.truncate(STRETCH);
                let Some(first) = serials.first().copied() else { return Ok(None) };
                // Distances have 32 bits.
                let near = serials.partition_point(|serial| serial - first < u64::from(u32::MAX));
                serials.truncate(near);
                let end = serials.last().copied().unwrap_or(first) + 1;
                let members = serials.iter().map(|serial| (serial - first) as u32).collect();
                Ok(Some(Shape { first, end, members: Some(members) }))
            }
        }
    }

    /// Opens the next stretch of a campaign's walk over a service. None: there is none left, or the campaign is over.
    pub fn open_stretch(&self, list: &List, path: &Path, service: Service) -> Result<Option<Arc<Shape>>, ReadError> {
        let (next, last, before) = {
            let mut state = list_state(list);
            let Some(walk) = state.walks.as_mut().and_then(|walks| walks.get_mut(&service)) else { return Ok(None) };
            let before = walk.gap();
            (walk.next, walk.last, before)
        };
        // Read without the lock: only who opens stretches moves `next`, the scheduler first and the sweep when it is over.
        let shape = self.next_stretch(path, service, next, last, before)?.map(Arc::new);
        let mut state = list_state(list);
        let Some(walk) = state.walks.as_mut().and_then(|walks| walks.get_mut(&service)) else { return Ok(None) };
        if walk.next != next {
            return Ok(None);
        }
        match &shape {
            Some(shape) => {
                walk.next = shape.end;
                walk.open.insert(shape.first, Open { shape: shape.clone(), done: false, ended: false, settled: 0 });
            }
            // Nobody is left before `before`: behind it, what was opened before the start is handed out by itself.
            None => walk.next = before.min(walk.last + 1).max(next),
        }
        if shape.is_none() && before <= last {
            drop(state);
            return self.open_stretch(list, path, service);
        }
        Ok(shape)
    }

    /// Gives each candidate at these places of a stretch that is there to `each`.
    pub fn read_stretch(
        &self,
        service: Service,
        shape: &Shape,
        places: &[u16],
        mut each: impl FnMut(u16, SubscriptionKey, &[u8]),
    ) -> Result<(), ReadError> {
        let reader = self.reader()?;
        let key = |place: u16| SubscriptionKey { service, serial: shape.serial(place) };
        match (&shape.members, places) {
            (_, []) => Ok(()),
            (None, [from, .., to]) => {
                let mut wanted = places.iter().copied().peekable();
                let end = SubscriptionKey { service, serial: shape.serial(*to) + 1 };
                let range = (row::subscription_key(key(*from)), row::subscription_key(end));
                reader.pass_over(family::SUBSCRIPTION, &range.0, &range.1, |row, value| {
                    let Ok(found) = row::take_key(row) else { return true };
                    while wanted.next_if(|place| shape.serial(*place) < found.serial).is_some() {}
                    if let Some(place) = wanted.next_if(|place| shape.serial(*place) == found.serial) {
                        each(place, found, value);
                    }
                    wanted.peek().is_some()
                })
            }
            _ => {
                for &place in places {
                    if let Some(value) = reader.value(family::SUBSCRIPTION, row::subscription_key(key(place)))? {
                        each(place, key(place), &value);
                    }
                }
                Ok(())
            }
        }
    }

    /// Gives those at these places of a stretch to `each` whom a message would go to, as things are now.
    pub fn each_recipient(
        &self,
        wanted: &Wanted,
        service: Service,
        shape: &Shape,
        places: &[u16],
        mut each: impl FnMut(Recipient),
    ) -> Result<(), ReadError> {
        self.read_stretch(service, shape, places, |_, _, row| {
            let judged = View::of(row).and_then(|view| {
                if self.reachable(&view) && wanted.matches(&view) {
                    each(view.recipient(&Bytes::copy_from_slice(row))?);
                }
                Ok(())
            });
            if judged.is_err() {
                self.corrupt(family::SUBSCRIPTION);
            }
        })
    }

    /// Gives each subscription that matches to `each`, by service and serial, from behind `after` on, until it says false, or `until`
    /// has come: then it gives behind which one to go on.
    pub fn each_candidate(
        &self,
        wanted: &Wanted,
        after: Option<SubscriptionKey>,
        until: Instant,
        mut each: impl FnMut(SubscriptionKey, &View<'_>, &[u8]) -> bool,
    ) -> Result<Option<SubscriptionKey>, ReadError> {
        let path = self.path(wanted)?;
        let mut on = true;
        for (service, last) in self.last_serials()? {
            let mut next = match after {
                Some(after) if after.service > service => continue,
                Some(after) if after.service == service => after.serial + 1,
                _ => 1,
            };
            while on && let Some(shape) = self.next_stretch(&path, service, next, last, u64::MAX)? {
                next = shape.end;
                let places: Vec<u16> = (0..shape.len() as u16).collect();
                self.read_stretch(service, &shape, &places, |_, key, row| match View::of(row) {
                    Ok(view) if on && wanted.matches(&view) => on = each(key, &view, row),
                    Ok(_) => {}
                    Err(Corrupt) => self.corrupt(family::SUBSCRIPTION),
                })?;
                if on && Instant::now() >= until {
                    return Ok(Some(SubscriptionKey { service, serial: shape.end - 1 }));
                }
            }
        }
        Ok(None)
    }
}

fn take_members(
    reader: &Reader<'_>,
    posting: &Posting,
    from: SubscriptionKey,
    to: SubscriptionKey,
    serials: &mut Vec<u64>,
) -> Result<(), ReadError> {
    let mut taken = 0;
    reader.scan(family::POSTING, &posting.key(from), &posting.key(to), |row, _| {
        serials.extend(row::take_key(row).map(|key| key.serial));
        taken += 1;
        taken < STRETCH
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_come_back() {
        for shape in [
            Shape { first: 5, end: 9, members: None },
            Shape { first: 1 << 40, end: (1 << 40) + 1_000, members: Some(Box::new([0, 7, 999])) },
        ] {
            let bytes = vec![3; shape.len()];
            let row = Bytes::from(shape.encode(&bytes));
            assert_eq!(Shape::decode(row.clone()), Ok((shape.clone(), bytes)));
            for cut in 0..row.len() {
                assert!(Shape::decode(row.slice(..cut)).is_err(), "{cut}");
            }
        }
        let sparse = Shape { first: 10, end: 20, members: Some(Box::new([0, 9])) };
        assert_eq!((sparse.len(), sparse.serial(0), sparse.serial(1)), (2, 10, 19));
    }
}
