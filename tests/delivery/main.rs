//! How deliveries behave when push services do not: the shipped daemon against the mock push service, over real TLS and HTTP/2.
//! A file a promise; one binary, because each links RocksDB.

mod bad_neighbour;
mod gone_is_forgotten;
mod hostile_services;
mod keys_and_bodies;
mod nothing_leaks;
mod orderly_stop;
mod retry_after_is_kept;
mod support;
mod ttl_is_kept;
mod urgent_overtakes;
