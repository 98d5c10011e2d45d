//! How deliveries behave when push services do not: the shipped daemon against the mock push service, over real TLS and HTTP/2.
//! A file a promise; one binary, because each links RocksDB.

mod gone_is_forgotten;
mod retry_after_is_kept;
mod support;
mod ttl_is_kept;
