//! Rows of the database: reading them, and writing some together.

use std::sync::{Arc, PoisonError, RwLockReadGuard};

use bytes::Bytes;
use rocksdb::{BoundColumnFamily, WriteBatch, WriteOptions};

use crate::complaint::Complaint;
use crate::store::database::{Db, classify};
#[cfg(test)]
use crate::store::live::lock;
use crate::store::record::Put;
#[cfg(test)]
use crate::store::testing;
use crate::store::{ReadError, Store, WriteError};

static READ_FAILED: Complaint = Complaint::some();

/// The database for the time of some reads. Dropped before anything that waits.
pub struct Reader<'a>(RwLockReadGuard<'a, Option<Db>>);

impl Reader<'_> {
    pub(super) fn db(&self) -> &Db {
        self.0.as_ref().expect("a Reader is only made of an open database")
    }

    pub(super) fn family(&self, name: &str) -> Arc<BoundColumnFamily<'_>> {
        self.db().cf_handle(name).expect("every family is opened with the database")
    }

    /// A row's value.
    pub fn value(&self, family: &str, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, ReadError> {
        match self.db().get_cf(&self.family(family), key) {
            Ok(value) => Ok(value.map(Bytes::from)),
            Err(error) => {
                if let Some(left_out) = READ_FAILED.tell() {
                    tracing::error!(family, %error, left_out, "read failed");
                }
                Err(ReadError)
            }
        }
    }

    /// Rows from `start` (included) to `end` (not included), in order, to `each` until it says false.
    pub fn scan(&self, family: &str, start: &[u8], end: &[u8], each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), ReadError> {
        self.scan_with(rocksdb::ReadOptions::default(), family, start, end, each)
    }

    /// As [`Reader::scan`], of rows that nobody is going to read again soon: they do not push others out of the cache.
    pub fn pass_over(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.fill_cache(false);
        self.scan_with(options, family, start, end, each)
    }

    fn scan_with(
        &self,
        mut options: rocksdb::ReadOptions,
        family: &str,
        start: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        options.set_iterate_lower_bound(start);
        options.set_iterate_upper_bound(end);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_to_first();
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if !each(key, value) {
                return Ok(());
            }
            rows.next();
        }
        rows.status().map_err(|error| {
            if let Some(left_out) = READ_FAILED.tell() {
                tracing::error!(family, %error, left_out, "scan failed");
            }
            ReadError
        })
    }

    /// The last row whose key is at most `key` and not below `floor`.
    pub fn last_at_most(&self, family: &str, key: &[u8], floor: &[u8]) -> Result<Option<(Vec<u8>, Bytes)>, ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_lower_bound(floor);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_for_prev(key);
        let found = match (rows.key(), rows.value()) {
            (Some(key), Some(value)) => Some((key.to_vec(), Bytes::copy_from_slice(value))),
            _ => None,
        };
        rows.status().map_err(|_| ReadError)?;
        Ok(found)
    }

    /// Rows of a family from `end` downwards to `floor`, newest first, to `each` until it says false.
    pub fn scan_back(
        &self,
        family: &str,
        floor: &[u8],
        end: &[u8],
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut options = rocksdb::ReadOptions::default();
        options.set_iterate_lower_bound(floor);
        options.set_iterate_upper_bound(end);
        let mut rows = self.db().raw_iterator_cf_opt(&self.family(family), options);
        rows.seek_to_last();
        while let (Some(key), Some(value)) = (rows.key(), rows.value()) {
            if !each(key, value) {
                return Ok(());
            }
            rows.prev();
        }
        rows.status().map_err(|_| ReadError)
    }

    /// An integer property of a family, 0 where RocksDB has none.
    pub fn property(&self, family: &str, name: &str) -> u64 {
        self.db().property_int_value_cf(&self.family(family), name).ok().flatten().unwrap_or(0)
    }
}

/// Rows to be written together.
pub struct Rows {
    batch: WriteBatch,
}

impl Rows {
    /// None yet.
    pub fn new() -> Rows {
        Rows { batch: WriteBatch::default() }
    }

    pub fn put(&mut self, reader: &Reader<'_>, family: &str, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.batch.put_cf(&reader.family(family), key, value);
    }

    pub fn delete(&mut self, reader: &Reader<'_>, family: &str, key: impl AsRef<[u8]>) {
        self.batch.delete_cf(&reader.family(family), key);
    }

    pub fn delete_range(&mut self, reader: &Reader<'_>, family: &str, from: &[u8], to: &[u8]) {
        self.batch.delete_range_cf(&reader.family(family), from, to);
    }

    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Bytes so far.
    pub fn size(&self) -> usize {
        self.batch.size_in_bytes()
    }
}

impl Default for Rows {
    fn default() -> Rows {
        Rows::new()
    }
}

impl Store {
    /// The database, for the time of some reads.
    pub fn reader(&self) -> Result<Reader<'_>, ReadError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        if guard.is_some() { Ok(Reader(guard)) } else { Err(ReadError) }
    }

    /// Writes rows and returns when the write-ahead log that holds them is synced.
    pub fn write(&self, rows: Rows) -> Result<(), WriteError> {
        let guard = self.db.read().unwrap_or_else(PoisonError::into_inner);
        let Some(db) = guard.as_ref() else { return Err(WriteError::Closed) };
        #[cfg(test)]
        if let Some(failing) = *lock(&self.failing) {
            if failing == testing::Failing::Written {
                db.write(rows.batch).expect("there is space");
            }
            return Err(WriteError::Full("as the test says".to_owned()));
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        db.write_opt(rows.batch, &options).map_err(|error| classify(&error.into_string()))
    }
}

/// A value of one number.
pub(super) fn number(value: u64) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(value);
    put.0
}
