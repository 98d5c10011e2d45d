//! The measurements, one a file, over what they share: the place they are made in, the pump that sends lines, the report. The suite
//! runs many of them and draws what they say.

pub mod burst;
pub mod campaign;
pub mod demo;
pub mod fair;
pub mod ingest;
pub mod lone;
pub mod mixed;
pub mod one_to_one;
pub mod presence;
pub mod registry;
pub mod restart;
pub mod small_campaigns;
pub mod stream;
pub mod suite;

mod bench;
mod page;
mod plot;
mod progress;
mod pump;
mod readers;
mod report;
mod results;
mod urgent;
