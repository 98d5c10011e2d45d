//! Deadlines of what waits unread.
//!
//! A delivery that is sent in time is never met here. What has waited in its row for 20 s (its lane is closed, or far behind)
//! gets a row in `expiry` at its earliest deadline; when that time has come the row is looked at, so an expiry is told within
//! 60 s of the deadline without anything being scanned whole, and the happy path writes nothing for it.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::message::{BatchId, Delivery, Ending, Lane, UnixMillis};
use crate::protocol::reason;
use crate::store::key::{self, DueKey, Waiting, WorkKey};
use crate::store::load::DueClaim;
use crate::store::record;
use crate::store::sweep::{EVERY, SLICE, Sweep};
use crate::store::writer::{Settle, Settled, Settlement, first_row_key};
use crate::store::{ReadError, family};

/// What waits unread is aged after this long, in milliseconds.
const AGED: u64 = 20_000;

impl Sweep {
    /// Gives what has waited unread for a while its row in `expiry`.
    pub(super) fn age(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        let until = UnixMillis(now.0.saturating_sub(AGED));
        for lane in self.lanes() {
            for family in [family::WORK, family::DUE] {
                loop {
                    let (hints, more) = self.age_some(family, lane, until)?;
                    if !hints.is_empty() {
                        self.send(Settle::Expiry { put: hints, drop: Vec::new() });
                    }
                    if !more || self.stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn age_some(
        &mut self,
        family: &'static str,
        lane: Lane,
        until: UnixMillis,
    ) -> Result<(Vec<(UnixMillis, Waiting)>, bool), ReadError> {
        let prefix = key::lane_prefix(lane);
        let mut start = match self.aged.get(&(family, lane)) {
            Some(start) => start.clone(),
            None => {
                let kept = self.store.reader()?.value(family::META, first_row_key(family, lane))?;
                kept.map_or_else(|| prefix.clone(), |kept| kept.to_vec())
            }
        };
        let mut hints = Vec::new();
        let (mut seen, mut more) = (0, false);
        let store = &self.store;
        store.reader()?.scan(family, &start.clone(), &key::after_prefix(&prefix), |row, value| {
            let hint = match family {
                family::WORK => work_hint(row, value, until),
                _ => due_hint(row, value, until),
            };
            match hint {
                Ok(Hint::Later) => return false,
                Ok(Hint::At(time, waiting)) => hints.push((time, waiting)),
                Ok(Hint::None) => {}
                Err(record::Corrupt) => store.corrupt(family),
            }
            start = key::just_behind(row);
            seen += 1;
            more = seen == SLICE;
            !more
        })?;
        // Rows of `due` may still be made at any time after now: behind `until` nothing new comes.
        self.aged.insert((family, lane), start);
        Ok((hints, more))
    }

    /// Ends what has passed its deadline, of all that has a row in `expiry`.
    pub(super) fn expire(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut start = Vec::new();
        loop {
            let mut rows = Vec::new();
            let end = now.plus(1).0.to_be_bytes();
            self.store.reader()?.scan(family::EXPIRY, &start, &end, |row, _| {
                rows.push(row.to_vec());
                rows.len() < SLICE
            })?;
            let Some(last) = rows.last() else { return Ok(()) };
            start = key::just_behind(last);
            let mut put = Vec::new();
            let mut settled = Vec::new();
            let looked = rows.iter().try_for_each(|row| self.expire_hint(row, now, &mut put, &mut settled));
            // What is claimed is settled, also if the store was closed in the middle.
            self.send(Settle::Slice(settled));
            looked?;
            self.send(Settle::Expiry { put, drop: rows });
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
        }
    }

    /// Looks at one row of `expiry`.
    fn expire_hint(
        &self,
        row: &[u8],
        now: UnixMillis,
        put: &mut Vec<(UnixMillis, Waiting)>,
        settled: &mut Vec<Settled>,
    ) -> Result<(), ReadError> {
        let soon = now.plus(EVERY.as_millis() as u64);
        match key::expiry_decode(row) {
            Ok((_, Waiting::Work(key))) => {
                if let Some(next) = self.expire_row(&key, now, settled)? {
                    // Deadlines that lie close together are met in one look.
                    put.push((next.max(soon), Waiting::Work(key)));
                }
            }
            Ok((_, Waiting::Due(due))) => match self.store.claim_due(&due)? {
                DueClaim::Claimed(delivery) if delivery.message.expires <= now => settled.push(expired(delivery)),
                DueClaim::Claimed(delivery) => {
                    put.push((delivery.message.expires, Waiting::Due(due)));
                    settled.push(Settled { delivery, what: Settlement::Back });
                }
                // In flight, it may yet come back to this row.
                DueClaim::Elsewhere if self.store.due_exists(&due)? => put.push((soon, Waiting::Due(due))),
                DueClaim::Elsewhere | DueClaim::Stale => {}
            },
            Err(record::Corrupt) => self.store.corrupt(family::EXPIRY),
        }
        Ok(())
    }

    /// Ends what of a row of singles has passed its deadline; gives the time of the next look at it.
    fn expire_row(&self, key: &WorkKey, now: UnixMillis, settled: &mut Vec<Settled>) -> Result<Option<UnixMillis>, ReadError> {
        let Some(row) = self.store.reader()?.value(family::WORK, key.encode())? else { return Ok(None) };
        let mut next: Option<UnixMillis> = None;
        let before = settled.len();
        for delivery in self.waiting(key, &row)? {
            if delivery.message.expires > now {
                next = Some(next.map_or(delivery.message.expires, |next| next.min(delivery.message.expires)));
            } else if self.store.batch(key.batch(), key.count)?.claim_one(delivery.id.index) {
                settled.push(expired(delivery));
            }
        }
        // What is in flight may come back to this row.
        let ours = (settled.len() - before) as u64;
        let busy = self.store.batch(key.batch(), key.count)?.busy_in(0, key.count) > ours;
        Ok(if busy { Some(now) } else { next })
    }
}

enum Hint {
    /// This row and all behind it are too young.
    Later,
    /// To be looked at then.
    At(UnixMillis, Waiting),
    None,
}

fn work_hint(row: &[u8], value: &[u8], until: UnixMillis) -> Result<Hint, record::Corrupt> {
    let key = WorkKey::decode(row)?;
    let earliest = record::work_row_earliest(value)?;
    if record::work_row_created(value)? > until {
        return Ok(Hint::Later);
    }
    Ok(Hint::At(earliest, Waiting::Work(key)))
}

fn due_hint(row: &[u8], value: &[u8], until: UnixMillis) -> Result<Hint, record::Corrupt> {
    let due = DueKey::decode(row)?;
    if due.time > until {
        return Ok(Hint::Later);
    }
    // A list ends as a whole at its deadline.
    let BatchId::Commit { .. } = due.delivery.batch else { return Ok(Hint::None) };
    let delivery = record::read_due_row(Bytes::copy_from_slice(value), due.delivery, due.time, || None)?;
    Ok(delivery.map_or(Hint::None, |delivery| Hint::At(delivery.message.expires, Waiting::Due(due))))
}

fn expired(delivery: Box<Delivery>) -> Settled {
    let reason = if delivery.message.ttl_zero { reason::TTL_ZERO_PATIENCE } else { reason::DEADLINE };
    Settled { delivery, what: Settlement::Ended { ending: Ending::Expired, reason, status: None, key: None } }
}
