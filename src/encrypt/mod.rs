//! Worker threads that load runs, seal them and hand them to `deliver`.

pub mod key;
pub mod payload;
pub mod vapid;
