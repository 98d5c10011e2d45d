//! Serves tests that need a store of their own.

use crate::config;
use crate::store::Store;
use crate::store::live::lock;

/// A disk without space.
#[derive(Clone, Copy, PartialEq)]
pub enum Failing {
    /// Nothing is written.
    Unwritten,
    /// Only the sync fails: it is there after all.
    Written,
}

impl Store {
    /// How writes fail from now on.
    pub fn fail(&self, how: Option<Failing>) {
        *lock(&self.failing) = how;
    }
}

/// Small and with short checkpoints.
pub fn settings() -> config::Store {
    config::Store {
        checkpoint_interval: std::time::Duration::from_millis(250),
        cache_mb: 16,
        min_free_percent: 0.0,
        reserve_mb: 1,
        fresh_mb: 1,
    }
}
