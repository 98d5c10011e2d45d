//! What the writer tells the scheduler.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::message::{BatchId, Lane, Service, UnixMillis};
use crate::queue::Bell;
use crate::store::key::WorkKey;
use crate::store::live::{Batch, ListKey};

/// What the writer tells the scheduler: one place that holds what is new until the scheduler takes it, so that the writer never
/// waits and nothing is lost. It is bounded: per lane a few fresh rows (the others are on disk, and `newest` says so), else one
/// entry a lane or list.
pub struct News {
    pub(super) state: std::sync::Mutex<Latest>,
    pub(super) wake: Bell,
}

/// All that is new since the scheduler looked last.
#[derive(Default)]
pub struct Latest {
    /// Rows of singles that were just committed.
    pub fresh: Vec<Fresh>,
    /// The newest row of each lane since the start; never taken away.
    pub newest: HashMap<Lane, WorkKey>,
    /// Rows that deliveries came back to: the first of each lane.
    pub back_rows: HashMap<Lane, WorkKey>,
    /// Chunks that deliveries came back to: the first of each list and service.
    pub back_chunks: HashMap<(ListKey, Service), u32>,
    /// Stretches of campaigns that deliveries came back to.
    pub back_stretches: HashSet<BatchId>,
    /// Rows of `due` that were made, or that deliveries came back to: the earliest of each lane.
    pub due: HashMap<Lane, UnixMillis>,
    /// Lists that came, grew or changed otherwise.
    pub lists: HashSet<ListKey>,
}

/// A row of singles that was just committed.
pub struct Fresh {
    pub key: WorkKey,
    /// The lane's last row before it, if one was committed since the start.
    pub previous: Option<WorkKey>,
    /// Present while `store.fresh_mb` allows: then it need not be read.
    pub batch: Option<Arc<Batch>>,
}

/// Fresh rows that wait for the scheduler, at most; more are read from disk.
pub(super) const FRESH_ROWS: usize = 1_024;

impl News {
    /// Nothing is new. `wake` is rung when something is.
    pub fn new(wake: Bell) -> News {
        News { state: std::sync::Mutex::default(), wake }
    }

    /// Takes what is new.
    pub fn take(&self) -> Latest {
        let mut state = crate::store::live::lock(&self.state);
        let newest = state.newest.clone();
        std::mem::replace(&mut *state, Latest { newest, ..Latest::default() })
    }

    pub(super) fn tell(&self, change: impl FnOnce(&mut Latest)) {
        change(&mut crate::store::live::lock(&self.state));
        self.wake.ring();
    }
}

pub(super) fn earliest(due: &mut HashMap<Lane, UnixMillis>, lane: Lane, time: UnixMillis) {
    let known = due.entry(lane).or_insert(time);
    *known = (*known).min(time);
}
