//! Fallbacks whose time has come: was somebody reached? Where that is not known any more, nothing is told.

use bytes::Bytes;

use crate::message::{BatchId, Ending, UnixMillis};
use crate::store::live::{Holder, ListKey, ending, lock};
use crate::store::registry::account_hash;
use crate::store::registry::row::{self, Fallback};
use crate::store::sweep::{SLICE, Sweep};
use crate::store::writer::{Decided, Settle};
use crate::store::{ReadError, family, key, list_state};

impl Sweep {
    /// Decides fallbacks whose time has come.
    pub(super) fn look_at_fallbacks(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut due: Vec<(Vec<u8>, Bytes)> = Vec::new();
        let mut end = vec![7];
        end.extend(now.plus(1).0.to_be_bytes());
        self.store.reader()?.scan(family::INDEX, &[7], &end, |row, value| {
            due.push((row.to_vec(), Bytes::copy_from_slice(value)));
            due.len() < SLICE
        })?;
        for (key, value) in due {
            let Ok(fallback) = Fallback::decode(value) else {
                self.store.corrupt(family::INDEX);
                continue;
            };
            let decided = self.decide(&fallback, now)?;
            self.send(Settle::Fallback(key, Box::new(fallback), decided));
        }
        Ok(())
    }

    fn decide(&self, fallback: &Fallback, now: UnixMillis) -> Result<Decided, ReadError> {
        let forgotten = self.store.head(fallback.id)?.is_none() && self.store.list_message(ListKey::of(fallback.id))?.is_none();
        if forgotten {
            // `messages.retention` is over before the fallback's time: whether somebody was reached is not known any more.
            return Ok(Decided::Reached);
        }
        if self.is_erased(fallback) {
            return Ok(Decided::Reached);
        }
        let reader = self.store.reader()?;
        let mut waits = false;
        for (delivery, subscription) in &fallback.deliveries {
            let row = reader.value(family::OUTCOME, key::batch_key(&delivery.batch))?;
            let byte = row.as_ref().and_then(|bytes| bytes.get(usize::from(delivery.index))).copied().unwrap_or(0);
            let ending = match ending(byte) {
                None => self.list_over(&delivery.batch)?,
                ending => ending,
            };
            let reached = match ending {
                Some(Ending::Accepted) if !fallback.shown => true,
                // Withdrawn, or replaced by something newer.
                Some(Ending::Cancelled) => true,
                Some(Ending::Skipped) if fallback.when_offline => true,
                None => {
                    waits = true;
                    false
                }
                Some(_) => false,
            };
            let shown = || -> Result<bool, ReadError> {
                let row = reader.value(family::FEEDBACK, row::feedback_key(fallback.id, *subscription))?;
                Ok(row.is_some_and(|row| row.first().is_some_and(|bits| *bits > 0)))
            };
            if reached || fallback.shown && shown()? {
                return Ok(Decided::Reached);
            }
        }
        // It is on the page: what waits for the account to go offline is not unreachable yet.
        let online = fallback.when_offline && waits && {
            let hash = self.store.registry.app(&fallback.app).map(|app| account_hash(app, &fallback.account));
            hash.is_some_and(|who| lock(&self.store.presence).holds_back(who, now))
        };
        if online && now < fallback.expires {
            return Ok(Decided::Again(now.plus(fallback.after.max(1_000))));
        }
        Ok(Decided::Unreachable)
    }

    /// How all that was not in flight of a batch's list ended: that is not in the bytes.
    fn list_over(&self, batch: &BatchId) -> Result<Option<Ending>, ReadError> {
        let Some(key) = ListKey::of_batch(batch) else { return Ok(None) };
        let list = match self.store.lists.get(key) {
            None => self.store.stored_list(key)?,
            Some(list) => return Ok(list_state(&list).over),
        };
        Ok(list.and_then(|list| list_state(&list).over))
    }

    /// Whether its account was erased after its message had come.
    pub(super) fn is_erased(&self, fallback: &Fallback) -> bool {
        let Some(app) = self.store.registry.app(&fallback.app) else { return false };
        let who = Holder::Account(account_hash(app, &fallback.account));
        let before = (fallback.id.commit(), fallback.id.place());
        self.store.rules.load().cancelled.get(&who).is_some_and(|upto| before < *upto)
    }
}
