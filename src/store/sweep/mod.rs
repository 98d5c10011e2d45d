//! One thread that looks after time and space: deadlines of what waits unread, cancellations of labels and apps, retention,
//! free space. It reads; what is to be written goes to the writer.
//!
//! Promise: what it looks for is found by rows, so a read that fails (the store is being opened again) or a stop in the middle
//! loses nothing: the next round, or the next start, meets the same rows.
//!
//! - `expire`: what waits unread past its deadline.
//! - `cancel`: what a cancellation or an erasure ends.
//! - `rest`: campaigns that are over are walked to their end, so that the rest is counted.
//! - `lapse`: subscriptions whose time has passed.
//! - `fallback`: whether somebody was reached in time.
//! - `blank`: what the logs say of who was erased.
//! - `forget`: what is past its retention.

mod blank;
mod cancel;
mod expire;
mod fallback;
mod forget;
mod lapse;
mod rest;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::Receiver;

use self::blank::Blanking;
use crate::clock;
use crate::message::{Delivery, Lane};
use crate::queue::Sender;
use crate::store::commit::Apps;
use crate::store::key::WorkKey;
use crate::store::live::lanes_of;
use crate::store::writer::Settle;
use crate::store::{ReadError, Store};

/// How often ages and deadlines are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// What the sweep goes on with as soon as a checkpoint is written is looked at this often.
const SOON: Duration = Duration::from_millis(50);
/// Rows looked at in one step: few in tests, so that there is always a next one.
const SLICE: usize = if cfg!(test) { 4 } else { 1_024 };

/// What the sweep needs from the configuration.
pub struct Settings {
    pub retention: Duration,
    pub events_retention: Duration,
    /// Bytes of the event log.
    pub events_max: u64,
    /// All apps: each has its share of that.
    pub apps: Apps,
    pub stats_keep_days: u32,
    pub min_free_percent: f64,
}

/// The sweep's state.
pub struct Sweep {
    store: Arc<Store>,
    settings: Settings,
    settles: Sender<Settle>,
    cancelled: Receiver<()>,
    stop: Arc<AtomicBool>,
    aged: HashMap<(&'static str, Lane), Vec<u8>>,
    /// Logs that are being blanked.
    blanking: Option<Blanking>,
    /// More subscriptions are to be looked at when those that the writer has are.
    looking: Option<Receiver<()>>,
}

impl Sweep {
    /// Nothing is read before [`Sweep::run`].
    pub fn new(
        store: Arc<Store>,
        settings: Settings,
        settles: Sender<Settle>,
        cancelled: Receiver<()>,
        stop: Arc<AtomicBool>,
    ) -> Sweep {
        Sweep { store, settings, settles, cancelled, stop, aged: HashMap::new(), blanking: None, looking: None }
    }

    /// Works until `stop` is set.
    pub fn run(mut self, progress: impl Fn()) {
        let mut looked: Option<Instant> = None;
        let mut forgot: Option<Instant> = None;
        let forget_every = (self.settings.retention / 10).clamp(Duration::from_secs(1), Duration::from_secs(3_600));
        let mut cancellations = true;
        while !self.stop.load(Ordering::Relaxed) {
            progress();
            self.watch_space();
            let now = clock::now();
            // A failed read means that the store is being reopened: the next round finds it again.
            if std::mem::take(&mut cancellations) && self.sweep_cancelled().is_err() {
                cancellations = true;
            }
            let _retried = self.blank_erased();
            self.compact_erased();
            let _retried = self.count_rest().and_then(|()| self.look_at_fallbacks(now));
            if looked.is_none_or(|at| at.elapsed() >= EVERY) {
                looked = Some(Instant::now());
                let _retried = self.age(now).and_then(|()| self.expire(now));
                if self.blanking.is_none() {
                    let _retried = self.shrink_events();
                }
                if self.looking.is_none() {
                    let _retried = self.look(now);
                }
            }
            let _retried = self.look_on(now);
            // What it drops would be put again by a slice of the logs that was read before.
            if forgot.is_none_or(|at| at.elapsed() >= forget_every) && self.blanking.is_none() {
                forgot = Some(Instant::now());
                let _retried = self.forget(now);
            }
            let goes_on = self.blanking.is_some() || self.looking.is_some();
            let patience = if goes_on { SOON } else { Duration::from_millis(500) };
            cancellations |= self.cancelled.recv_timeout(patience).is_ok();
        }
    }

    /// Opens and closes the gate of promise 7, with one percent between the two.
    fn watch_space(&self) {
        let Some(free) = self.store.free_percent() else { return };
        let gate = &self.store.gates.low_space;
        let low = gate.load(Ordering::Relaxed);
        let limit = self.settings.min_free_percent;
        if !low && free < limit {
            tracing::error!(free_percent = %format_args!("{free:.1}"), "the disk is almost full: new messages are refused, accepted ones go on");
            gate.store(true, Ordering::Relaxed);
        } else if low && free >= limit + (limit * 0.2).min(1.0) {
            tracing::info!(free_percent = %format_args!("{free:.1}"), "there is space again: new messages are taken");
            gate.store(false, Ordering::Relaxed);
        }
    }

    fn send(&self, settle: Settle) {
        // The writer has ended: so does the process.
        let _ended = self.settles.send(settle);
    }

    /// Tells when all that was sent so far is on disk.
    fn written(&self) -> Receiver<()> {
        let (told, written) = crossbeam_channel::bounded(1);
        self.send(Settle::Written(told));
        written
    }

    fn lanes(&self) -> Vec<Lane> {
        self.store.services.all().into_iter().flat_map(|(service, _)| lanes_of(service)).collect()
    }

    #[allow(clippy::vec_box, reason = "each is moved on as a box")]
    fn waiting(&self, key: &WorkKey, row: &Bytes) -> Result<Vec<Box<Delivery>>, ReadError> {
        let batch = self.store.batch(key.batch(), key.count)?;
        Ok(self.store.work_row_deliveries(key, &batch.waiting(), row))
    }
}

/// For tests that play the sweep's thread themselves.
#[cfg(test)]
impl Sweep {
    /// What it does every hour.
    pub(super) fn play_forget(&self, now: crate::message::UnixMillis) {
        self.forget(now).expect("the store is open");
    }

    /// What it does all the time. Gives whether it goes on when a checkpoint is written.
    pub(super) fn play(&mut self, now: crate::message::UnixMillis) -> bool {
        let swept = self.sweep_cancelled().and_then(|()| self.blank_erased()).and_then(|()| self.count_rest());
        self.compact_erased();
        let looked = if self.looking.is_none() { self.look(now) } else { self.look_on(now) };
        swept.and(looked).and_then(|()| self.look_at_fallbacks(now)).expect("the store is open");
        self.blanking.is_some() || self.looking.is_some()
    }
}

type Ranges = Vec<(&'static str, Vec<u8>, Vec<u8>)>;
type Puts = Vec<(&'static str, Vec<u8>, Vec<u8>)>;
