//! The registry, its campaigns, presence and receipts, over the socket of a running daemon, with the mock push
//! service as the other end. A file a promise; one binary, because each links RocksDB.

mod apps;
mod campaign;
mod counts;
mod erase;
mod fallback;
mod inputs;
mod presence;
mod receipts;
mod replaces;
mod subscribe;
mod support;
mod switches;
mod templates;
mod warm;
