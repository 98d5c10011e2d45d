//! The measurements, one a file, over what they share: the place they are made in, the pump that sends lines, the report.

pub mod demo;
pub mod ingest;
pub mod one_to_one;
pub mod restart;
pub mod stream;

mod bench;
mod progress;
mod pump;
mod report;
