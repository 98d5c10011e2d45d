//! What keeps lines out, or deliveries in, for a while.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::store::live::lock;

/// Why lines are not taken, or nothing is sent, just now (promises 2 and 7).
#[derive(Debug)]
pub struct Gates {
    /// Free space is below `store.min_free_percent`.
    pub low_space: AtomicBool,
    /// A write failed for lack of space; the store is being reopened.
    pub full: AtomicBool,
    /// The last line of an app was refused for `messages.max_pending`.
    pub max_pending: AtomicBool,
    /// Those apps.
    full_of: Mutex<BTreeSet<Arc<str>>>,
    /// `drain` or SIGTERM: nothing new is taken.
    pub draining: AtomicBool,
    /// Outcomes that are not on disk are more than promise 2 allows.
    pub too_many_unsynced: AtomicBool,
    started: Instant,
    /// When the oldest outcome that is not on disk came, in milliseconds since `started`, plus one; 0: all are.
    unsynced_since: AtomicU64,
    /// A checkpoint that takes longer is late, in milliseconds.
    unsynced_max: u64,
}

impl Gates {
    /// All open; a checkpoint is late when it is overdue by its whole interval.
    pub fn new(checkpoint_interval: Duration) -> Gates {
        Gates {
            low_space: AtomicBool::new(false),
            full: AtomicBool::new(false),
            max_pending: AtomicBool::new(false),
            full_of: Mutex::default(),
            draining: AtomicBool::new(false),
            too_many_unsynced: AtomicBool::new(false),
            started: Instant::now(),
            unsynced_since: AtomicU64::new(0),
            unsynced_max: u64::try_from(checkpoint_interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(2),
        }
    }

    /// Whether the last line of this app was refused for `messages.max_pending`. Set by the writer alone.
    pub(crate) fn set_full_of(&self, app: &Arc<str>, full: bool) {
        // The rule: no app is refused, and no lock is taken for a line.
        if !full && !self.max_pending.load(Ordering::Relaxed) {
            return;
        }
        let mut apps = lock(&self.full_of);
        if full {
            apps.insert(app.clone());
        } else {
            apps.remove(app);
        }
        self.max_pending.store(!apps.is_empty(), Ordering::Relaxed);
    }

    /// Whether the last line of one of these apps was refused for `messages.max_pending`.
    pub fn is_full_of(&self, apps: &[Arc<str>]) -> bool {
        self.max_pending.load(Ordering::Relaxed) && {
            let full = lock(&self.full_of);
            apps.iter().any(|app| full.contains(app))
        }
    }

    /// Whether a worker may start something new.
    pub fn may_send(&self) -> bool {
        !self.full.load(Ordering::Relaxed) && !self.checkpoint_late()
    }

    /// Whether outcomes that are not on disk are more, or older, than they may be. Told by the clock, so that it holds while
    /// the writer is waiting for the disk.
    pub fn checkpoint_late(&self) -> bool {
        self.too_many_unsynced.load(Ordering::Relaxed) || self.unsynced_for().as_millis() > u128::from(self.unsynced_max)
    }

    /// How long the oldest outcome that is not on disk has been waiting.
    pub fn unsynced_for(&self) -> Duration {
        match self.unsynced_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => self.started.elapsed().saturating_sub(Duration::from_millis(since - 1)),
        }
    }

    /// The oldest outcome that is not on disk came then; None: all are.
    pub(crate) fn set_unsynced(&self, since: Option<Instant>) {
        let millis = |since: Instant| u64::try_from(since.duration_since(self.started).as_millis()).unwrap_or(u64::MAX - 1) + 1;
        self.unsynced_since.store(since.map_or(0, millis), Ordering::Relaxed);
    }
}
