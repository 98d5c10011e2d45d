//! RocksDB: how it is opened, with the options of each column family, and the meaning of its errors.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, CompactionDecision, DBCompressionType, DBRecoveryMode, DBWithThreadMode,
    MultiThreaded, Options, WriteBufferManager,
};

use crate::clock;
use crate::config;
use crate::message::UnixMillis;
use crate::store::{WriteError, family};

pub(super) type Db = DBWithThreadMode<MultiThreaded>;

/// Sorts RocksDB's words: the binding keeps no more of a status than its text. `strerror` of ENOSPC, EDQUOT, EMFILE and ENFILE stands
/// in it.
pub(super) fn classify(text: &str) -> WriteError {
    if text.contains("No space left on device") || text.contains("Disk quota exceeded") || text.contains("Max allowed space") {
        WriteError::Full(text.to_owned())
    } else if text.contains("Too many open files") {
        WriteError::Descriptors(text.to_owned())
    } else {
        WriteError::Broken(text.to_owned())
    }
}

pub(super) fn open_database(path: &Path, settings: &config::Store, files: usize) -> Result<Db, String> {
    let memory = settings.cache_mb << 20;
    let cache = Cache::new_lru_cache(memory);
    // cache_mb includes the write buffers: they are charged to the block cache, at most half of it.
    let buffers = WriteBufferManager::new_write_buffer_manager_with_cache(memory / 2, false, cache.clone());
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_write_buffer_manager(&buffers);
    // Bounds the replay at a start. With 128 MiB, and singles committed one by one, the replay alone took more
    // than the second that a start may take (`fanfare-load restart --connections 1 --window 1`).
    options.set_max_total_wal_size(64 << 20);
    // What was answered was synced, so it lies before the first torn record: reading ends there. (Refusing to start because of
    // blocks that reached the disk out of order behind it would help nobody.)
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_background_jobs(2);
    options.set_max_open_files(i32::try_from(files).unwrap_or(i32::MAX));
    // A start opens no file that it does not need.
    options.set_skip_stats_update_on_db_open(true);
    options.set_bytes_per_sync(1 << 20);
    // The manifest names the first and last key of every file that there was since it was begun: a new one is begun with each
    // change, so that what was erased is not named for longer than its file lives.
    options.set_max_manifest_file_size(1_024);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_stats_dump_period_sec(0);
    // One writer thread: the parallel memtable insertion and its spinning are for many.
    options.set_allow_concurrent_memtable_write(false);
    options.set_enable_write_thread_adaptive_yield(false);
    let families = family::ALL.map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &cache)));
    Db::open_cf_descriptors(&options, path, families).map_err(rocksdb::Error::into_string)
}

fn family_options(name: &str, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // Index and filter blocks count as memory too (promise 6).
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    let mut options = Options::default();
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_level_compaction_dynamic_level_bytes(true);
    match name {
        // Read in order and deleted from the front: without this a scan walks over what is long gone.
        family::WORK | family::LIST | family::DUE | family::EXPIRY | family::HELD => {
            options.set_write_buffer_size(32 << 20);
            options.add_compact_on_deletion_collector_factory(4_096, 2_048, 0.5);
            table.set_block_size(16 << 10);
        }
        // Looked up by point, mostly in vain: ten bits a key answer that from memory.
        family::IDEMPOTENCY | family::TOPIC => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
            options.set_memtable_whole_key_filtering(true);
            options.set_memtable_prefix_bloom_ratio(0.1);
            // Their values begin with the time after which they mean nothing.
            options.set_compaction_filter(c"past_its_time", |_level, _key, value| {
                match value.get(..8).map(|field| u64::from_be_bytes(field.try_into().expect("eight bytes"))) {
                    Some(until) if UnixMillis(until) < clock::now() => CompactionDecision::Remove,
                    _ => CompactionDecision::Keep,
                }
            });
            options.set_periodic_compaction_seconds(24 * 60 * 60);
        }
        // A walk reads them in order; endpoints and keys do not compress, what they have in common does.
        family::SUBSCRIPTION => {
            options.set_write_buffer_size(32 << 20);
            table.set_block_size(16 << 10);
            table.set_bloom_filter(10.0, false);
        }
        // Looked up for each `subscribe`, in vain if it is new.
        family::INDEX | family::DETAIL | family::POSTING => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
        }
        family::HEAD | family::OUTCOME => {
            options.set_write_buffer_size(16 << 20);
            table.set_bloom_filter(10.0, false);
        }
        // Text that repeats itself, read seldom: the better compression pays.
        family::EVENTS => {
            options.set_write_buffer_size(8 << 20);
            options.set_compression_type(DBCompressionType::Zstd);
        }
        _ => options.set_write_buffer_size(4 << 20),
    }
    options.set_block_based_table_factory(&table);
    options
}
