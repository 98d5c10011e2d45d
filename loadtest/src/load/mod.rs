//! The measurements, one a file, over what they share: the place they are made in, the pump that sends lines, the report.

pub mod burst;
pub mod campaign;
pub mod demo;
pub mod ingest;
pub mod one_to_one;
pub mod presence;
pub mod registry;
pub mod restart;
pub mod small_campaigns;
pub mod stream;

mod bench;
mod progress;
mod pump;
mod readers;
mod report;
mod urgent;
