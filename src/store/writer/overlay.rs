//! Rows of the registry as they will be when the group under construction is written: what its lines have changed, over what is on
//! disk. So each line sees those before it, and a row that many lines change (a count, an account) is written once.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::store::{ReadError, Reader, Rows, Store, key};

/// The changes of a group: the new value, or None where the row goes.
#[derive(Default)]
pub(super) struct Overlay(BTreeMap<(&'static str, Vec<u8>), Option<Vec<u8>>>);

impl Overlay {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn put(&mut self, family: &'static str, key: Vec<u8>, value: Vec<u8>) {
        self.0.insert((family, key), Some(value));
    }

    pub(super) fn delete(&mut self, family: &'static str, key: Vec<u8>) {
        self.0.insert((family, key), None);
    }

    /// A row's value.
    pub(super) fn value(&self, store: &Store, family: &'static str, key: Vec<u8>) -> Result<Option<Bytes>, ReadError> {
        let at = (family, key);
        match self.0.get(&at) {
            Some(changed) => Ok(changed.as_ref().map(|value| Bytes::copy_from_slice(value))),
            None => store.reader()?.value(family, &at.1),
        }
    }

    /// The keys that begin with `prefix`, in order.
    pub(super) fn keys(&self, store: &Store, family: &'static str, prefix: &[u8]) -> Result<Vec<Vec<u8>>, ReadError> {
        self.keys_behind(store, family, prefix, &[], usize::MAX)
    }

    /// The first keys that begin with `prefix` and sort behind `behind`, in order, so many at most.
    pub(super) fn keys_behind(
        &self,
        store: &Store,
        family: &'static str,
        prefix: &[u8],
        behind: &[u8],
        most: usize,
    ) -> Result<Vec<Vec<u8>>, ReadError> {
        let from = if behind.is_empty() { prefix.to_vec() } else { key::just_behind(behind) };
        let mut keys = BTreeSet::new();
        store.reader()?.scan(family, &from, &key::after_prefix(prefix), |key, _| {
            let deleted = !self.0.is_empty() && matches!(self.0.get(&(family, key.to_vec())), Some(None));
            if !deleted {
                keys.insert(key.to_vec());
            }
            keys.len() < most
        })?;
        #[cfg(test)]
        store.walked.fetch_add(keys.len(), std::sync::atomic::Ordering::Relaxed);
        let changed = self.0.range((family, from)..).take_while(|((of, key), _)| *of == family && key.starts_with(prefix));
        keys.extend(changed.filter(|(_, value)| value.is_some()).map(|((_, key), _)| key.clone()));
        Ok(keys.into_iter().take(most).collect())
    }

    /// Puts all changes.
    pub(super) fn write(&self, reader: &Reader<'_>, rows: &mut Rows) {
        for ((family, key), value) in &self.0 {
            match value {
                Some(value) => rows.put(reader, family, key, value),
                None => rows.delete(reader, family, key),
            }
        }
    }
}
