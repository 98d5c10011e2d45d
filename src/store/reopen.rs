//! Giving the database up and taking it back: reopening where it found no room, compacting, closing; and the reserves for that.

use std::fs;
use std::sync::PoisonError;

use crate::clock;
use crate::store::database::{classify, open_database};
use crate::store::live::lock;
use crate::store::{ReadError, Rows, Store, WriteError, family};

/// So many small changes begin a new manifest for certain.
const MANIFEST_CHANGES: usize = 256;
/// Descriptors that are held for nothing, and given up when RocksDB finds none: what it needs to be opened again is then there.
pub const SPARE_FILES: usize = 16;

impl Store {
    /// Closes the database and opens it again; Ok when a synced probe succeeded. Gives up the reserve file and the spare descriptors
    /// first, so that RocksDB can write what recovery needs.
    pub fn reopen(&self) -> Result<(), WriteError> {
        if let Err(error) = fs::remove_file(&self.reserve)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the reserve file cannot be given up");
        }
        lock(&self.spare).clear();
        let mut guard = self.db.write().unwrap_or_else(PoisonError::into_inner);
        *guard = None;
        let db = open_database(&self.path, &self.settings, self.files).map_err(|text| classify(&text))?;
        *guard = Some(db);
        drop(guard);
        let mut rows = Rows::new();
        {
            let reader = self.reader().map_err(|_| WriteError::Closed)?;
            rows.put(&reader, family::META, "probe", clock::now().0.to_be_bytes());
        }
        self.write(rows)?;
        self.restore_reserve();
        self.restore_spare();
        Ok(())
    }

    /// Takes spare descriptors again, as many as there are.
    pub(super) fn restore_spare(&self) {
        let mut spare = lock(&self.spare);
        while spare.len() < SPARE_FILES
            && let Ok(file) = fs::File::open("/dev/null")
        {
            spare.push(file);
        }
    }

    /// Writes everything out and compacts it: what was deleted is not in any file after this. Takes as long as copying the store.
    pub fn compact(&self) -> Result<(), ReadError> {
        let reader = self.reader()?;
        for name in family::ALL {
            let family = reader.family(name);
            reader.db().flush_cf(&family).map_err(|_| ReadError)?;
            let mut options = rocksdb::CompactOptions::default();
            options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
            reader.db().compact_range_cf_opt(&family, None::<&[u8]>, None::<&[u8]>, &options);
        }
        // The manifest still names the keys that the old files began and ended with, until a new one is begun.
        let manifest = || fs::read(self.path.join("CURRENT")).unwrap_or_default();
        let before = manifest();
        let meta = reader.family(family::META);
        for _ in 0..MANIFEST_CHANGES {
            let changed = reader.db().put_cf(&meta, "probe", clock::now().0.to_be_bytes());
            changed.and_then(|()| reader.db().flush_cf(&meta)).map_err(|_| ReadError)?;
            if manifest() != before {
                break;
            }
        }
        Ok(())
    }

    /// Closes the database in order, at the end.
    pub fn close(&self) {
        let mut guard = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = guard.take() {
            db.cancel_all_background_work(true);
        }
    }

    /// Makes the reserve file where there is room for it; it is given up when a checkpoint finds no space.
    pub(super) fn restore_reserve(&self) {
        let bytes = self.settings.reserve_mb << 20;
        if fs::metadata(&self.reserve).is_ok_and(|file| file.len() == bytes) {
            return;
        }
        let made = fs::File::create(&self.reserve).and_then(|file| {
            let len = i64::try_from(bytes).unwrap_or(i64::MAX);
            nix::fcntl::posix_fallocate(&file, 0, len).map_err(std::io::Error::from)
        });
        if let Err(error) = made {
            tracing::warn!(%error, "no room for the reserve file");
            let _gone = fs::remove_file(&self.reserve);
        }
    }

    /// Share of the file system that is free, in percent.
    pub fn free_percent(&self) -> Option<f64> {
        let stat = nix::sys::statvfs::statvfs(&self.path).ok()?;
        Some(stat.blocks_available() as f64 * 100.0 / (stat.blocks().max(1)) as f64)
    }
}
