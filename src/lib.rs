//! Fanfare: a Web Push delivery daemon for one Linux host.

pub mod client;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod encrypt;
pub mod endpoint;
pub mod exit;
pub mod ingest;
pub mod limits;
pub mod message;
pub mod metrics;
pub mod outcome;
pub mod schedule;
pub mod setup;
pub mod store;
