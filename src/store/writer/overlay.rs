//! Rows of the registry as they will be when the group under construction is written: what its lines have changed, over what is on
//! disk. So each line sees those before it, and a row that many lines change (a count, an account) is written once.

use std::collections::BTreeMap;

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
        let mut keys = BTreeMap::new();
        store.reader()?.scan(family, prefix, &key::after_prefix(prefix), |key, _| {
            keys.insert(key.to_vec(), true);
            true
        })?;
        #[cfg(test)]
        store.walked.fetch_add(keys.len(), std::sync::atomic::Ordering::Relaxed);
        let changed =
            self.0.range((family, prefix.to_vec())..).take_while(|((of, key), _)| *of == family && key.starts_with(prefix));
        for ((_, key), value) in changed {
            keys.insert(key.clone(), value.is_some());
        }
        Ok(keys.into_iter().filter(|(_, there)| *there).map(|(key, _)| key).collect())
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
