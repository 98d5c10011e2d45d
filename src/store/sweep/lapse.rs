//! Subscriptions whose time has passed: the index has a row for each at that time, and the writer decides what becomes of it.

use crate::message::UnixMillis;
use crate::store::registry::row;
use crate::store::sweep::{SLICE, Sweep};
use crate::store::writer::Settle;
use crate::store::{ReadError, family};

impl Sweep {
    /// Subscriptions whose `expirationTime` has passed, and gone ones that cannot be undone any more: so many in one checkpoint, and
    /// more when it is written.
    pub(super) fn look(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        let mut keys = Vec::new();
        let mut end = vec![4];
        end.extend(now.plus(1).0.to_be_bytes());
        self.store.reader()?.scan(family::INDEX, &[4], &end, |row, _| {
            if let (Some(time), Ok(key)) = (row.get(1..).and_then(|row| row.first_chunk()), row::take_key(row)) {
                keys.push((UnixMillis(u64::from_be_bytes(*time)), key));
            }
            keys.len() < SLICE
        })?;
        let more = keys.len() == SLICE;
        if !keys.is_empty() {
            self.send(Settle::Look(keys));
        }
        self.looking = more.then(|| self.written());
        Ok(())
    }

    /// Looks at more of them, if those before are done with.
    pub(super) fn look_on(&mut self, now: UnixMillis) -> Result<(), ReadError> {
        match &self.looking {
            Some(written) if written.try_recv().is_ok() => {
                // Should the store be closed just now, the next round begins anew.
                self.looking = None;
                self.look(now)
            }
            _ => Ok(()),
        }
    }
}
