//! Settling: what became of deliveries goes into memory and into the next checkpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::TryRecvError;

use crate::clock;
use crate::ingest::request::EventType;
use crate::limits::CHECKPOINT_OUTCOMES;
use crate::message::{Delivery, Ending, KeyId, Service, UnixMillis};
use crate::metrics;
use crate::store::commit::subscription_id;
use crate::store::key::{self, DueKey};
use crate::store::live::{Batch, List, ListKey};
use crate::store::record::{self, Counts};
use crate::store::writer::command::Pursuit;
use crate::store::writer::event::Event;
use crate::store::writer::rows::{held_key, holder_row, rule_key, rule_row};
use crate::store::writer::stats::StatsKey;
use crate::store::writer::{Settle, Settled, Settlement, Writer};
use crate::store::{family, list_state};

impl Writer {
    pub(super) fn settle_all(&mut self) {
        let mut slices = 0;
        loop {
            match self.settles.try_recv() {
                Ok(settle) => self.settle(settle),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
            slices += 1;
            if slices >= 256 || self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES {
                break;
            }
        }
    }

    pub(super) fn settle(&mut self, settle: Settle) {
        match settle {
            Settle::Slice(slice) => {
                let now = clock::now();
                for settled in slice {
                    self.settle_one(settled, now);
                }
            }
            Settle::Unread { batch, count, due } => self.tell_back(batch, count, due),
            Settle::Stale(rows) => {
                self.checkpoint.touch();
                for due in rows {
                    self.drop_due(due);
                }
            }
            Settle::Over(key, ending) => {
                if let Some(list) = self.store.lists.get(key) {
                    self.end_list(key, &list, ending, if ending == Ending::Expired { "deadline" } else { "cancelled" });
                }
            }
            Settle::Expiry { put, drop } => {
                self.checkpoint.touch();
                for (time, waiting) in put {
                    self.checkpoint.expiry.insert(key::expiry_key(time, &waiting), true);
                }
                for row in drop {
                    self.checkpoint.expiry.entry(row).or_insert(false);
                }
            }
            Settle::Forget { ranges, put } => {
                self.checkpoint.touch();
                self.checkpoint.ranges.extend(ranges);
                self.checkpoint.rows.extend(put.into_iter().map(|(family, key, value)| (family, key, Some(value))));
            }
            Settle::Cancelled(deliveries) => {
                let now = clock::now();
                for delivery in deliveries {
                    self.cancel_waiting(delivery, now);
                }
            }
            Settle::Swept(holder, upto) => {
                // A newer cancellation of the same holder is still to be swept.
                if self.store.rules.load().cancelled.get(&holder) == Some(&upto) {
                    self.checkpoint.touch();
                    let row = (family::META, rule_key("cancel", &holder), Some(rule_row(&holder, upto, clock::now(), true)));
                    self.checkpoint.rows.push(row);
                }
            }
            Settle::Stop => self.stopping = true,
        }
    }

    pub(super) fn settle_one(&mut self, settled: Settled, now: UnixMillis) {
        let Settled { delivery, what } = settled;
        let Some(batch) = self.store.batches.get(&delivery.id.batch) else {
            // A claim keeps its batch in memory, so this cannot be.
            debug_assert!(false, "a settled delivery was claimed");
            return;
        };
        let list = ListKey::of_batch(&delivery.id.batch).and_then(|key| Some((key, self.store.lists.get(key)?)));
        let what = match what {
            Settlement::Wait { .. } | Settlement::Back | Settlement::Hold(_) => {
                self.overruled(&delivery, list.as_ref()).unwrap_or(what)
            }
            ended => ended,
        };
        match what {
            Settlement::Ended { ending, reason, status, key } => {
                self.pursued.remove(&delivery.id);
                if !batch.end(delivery.id.index, ending) {
                    return;
                }
                self.checkpoint.change(&batch);
                if let Some(time) = delivery.due {
                    self.drop_due(DueKey { lane: delivery.id.batch.lane(), time, delivery: delivery.id });
                }
                if let Some((key, list)) = &list {
                    let mut state = list_state(list);
                    state.in_flight -= 1;
                    state.counts.ended[ending as usize - 1] += 1;
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                let key = key.or(delivery.recipient.key).or_else(|| self.settings.first_keys.get(&delivery.message.app).copied());
                let service = delivery.recipient.service;
                self.ended(1, ending, &delivery.message.app, delivery.message.label.as_ref(), service, key, now);
                let subscription = || subscription_id(delivery.recipient.endpoint.as_str());
                self.event(&Event {
                    time: now,
                    ending,
                    id: delivery.message.id,
                    message_ref: delivery.message.reference.as_deref(),
                    label: delivery.message.label.as_deref(),
                    subscription: Some(&subscription),
                    reference: delivery.recipient.reference.as_ref(),
                    app: &delivery.message.app,
                    service: Some(service),
                    status,
                    reason,
                    count: None,
                });
            }
            Settlement::Wait { until, counts_retry } => {
                self.move_to_due(&delivery, &batch, until, counts_retry);
                if let Some((key, list)) = &list {
                    let mut state = list_state(list);
                    state.in_flight -= 1;
                    state.counts.retries += u64::from(counts_retry);
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                if counts_retry {
                    let key = delivery.recipient.key.or_else(|| self.settings.first_keys.get(&delivery.message.app).copied());
                    let counts = Counts { retries: 1, ..Counts::default() };
                    let of = StatsKey::new(
                        now,
                        &delivery.message.app,
                        delivery.message.label.as_ref(),
                        delivery.recipient.service,
                        key,
                    );
                    self.stats.ended(&self.store, of, &counts);
                }
            }
            Settlement::Hold(holder) => {
                let until = delivery.message.expires;
                self.move_to_due(&delivery, &batch, until, false);
                let due = DueKey { lane: delivery.id.batch.lane(), time: until, delivery: delivery.id };
                self.checkpoint.held.insert(held_key(&holder, &due), true);
                // `resume` may have come while this delivery was on its way: then nobody else would let it go.
                if !self.store.rules.load().paused.contains(&holder) && !self.releasing.contains(&holder) {
                    let row = (family::META, rule_key("release", &holder), Some(holder_row(&holder)));
                    self.checkpoint.rows.push(row);
                    self.releasing.push_back(holder);
                }
                if let Some((_, list)) = &list {
                    list_state(list).in_flight -= 1;
                }
            }
            Settlement::Back => {
                match &list {
                    None => batch.release(delivery.id.index),
                    Some((_, list)) => list.release(&batch, &[delivery.id.index]),
                }
                let count = u16::try_from(batch.size()).expect("a batch has at most 65,536 recipients");
                self.tell_back(delivery.id.batch, count, delivery.due);
            }
        }
    }

    /// Ends what a cancelled label or app has waiting.
    pub(super) fn cancel_waiting(&mut self, delivery: Box<Delivery>, now: UnixMillis) {
        let Ok(Some(batch)) = self.store.find_batch(delivery.id.batch) else { return };
        // A worker that claims it from here on finds the rule and does not send it.
        if batch.busy_in(delivery.id.index, 1) == 0 {
            let what = Settlement::Ended { ending: Ending::Cancelled, reason: "cancelled", status: None, key: None };
            self.settle_one(Settled { delivery, what }, now);
        }
    }

    /// A delivery that is not at its end may find that its message is: cancelled, or a list that is over.
    pub(super) fn overruled(&self, delivery: &Delivery, list: Option<&(ListKey, Arc<List>)>) -> Option<Settlement> {
        let over = match list {
            Some((_, list)) => list_state(list).over,
            None => None,
        };
        let message = &delivery.message;
        let cancelled = || self.store.rules.load().cancels(message.id, &message.app, message.label.as_ref());
        if let Some(Pursuit { ending, reason, .. }) = self.pursued.get(&delivery.id) {
            return Some(Settlement::Ended { ending: *ending, reason, status: None, key: None });
        }
        let ending = over.or_else(|| cancelled().then_some(Ending::Cancelled))?;
        let reason = if ending == Ending::Expired { "deadline" } else { "cancelled" };
        Some(Settlement::Ended { ending, reason, status: None, key: None })
    }

    pub(super) fn move_to_due(&mut self, delivery: &Delivery, batch: &Arc<Batch>, until: UnixMillis, counts_retry: bool) {
        if !batch.wait(delivery.id.index, counts_retry) {
            return;
        }
        self.checkpoint.change(batch);
        self.checkpoint.outcomes += 1;
        let lane = delivery.id.batch.lane();
        if let Some(time) = delivery.due {
            self.drop_due(DueKey { lane, time, delivery: delivery.id });
        }
        let due = DueKey { lane, time: until, delivery: delivery.id };
        self.checkpoint.due.insert(due, Some(record::due_row(delivery)));
        self.checkpoint.release.push((batch.clone(), delivery.id.index));
    }

    pub(super) fn drop_due(&mut self, due: DueKey) {
        self.checkpoint.due.insert(due, None);
    }

    /// Counts endings everywhere but in the list's own counters.
    #[allow(clippy::too_many_arguments, reason = "the dimensions of `stats`")]
    pub(super) fn ended(
        &mut self,
        count: u64,
        ending: Ending,
        app: &Arc<str>,
        label: Option<&Arc<str>>,
        service: Service,
        key: Option<KeyId>,
        now: UnixMillis,
    ) {
        self.checkpoint.touch();
        self.checkpoint.outcomes += usize::try_from(count).unwrap_or(usize::MAX).min(1);
        // Only the writer changes it. A commit that was refused for want of space and is on disk all the same was never counted.
        let pending = self.store.pending.load(Ordering::Relaxed).saturating_sub(count);
        self.store.pending.store(pending, Ordering::Relaxed);
        metrics::ended(&self.store.services.name(service), ending, count);
        let mut counts = Counts::default();
        counts.ended[ending as usize - 1] = count;
        self.stats.ended(&self.store, StatsKey::new(now, app, label, service, key), &counts);
    }

    /// Ends all of a list that is not in flight.
    pub(super) fn end_list(&mut self, key: ListKey, list: &Arc<List>, ending: Ending, reason: &'static str) {
        let now = clock::now();
        let (rest, chunks) = {
            let mut state = list_state(list);
            if state.over.is_some() {
                return;
            }
            state.over = Some(ending);
            state.closed = true;
            let rest = state.counts.pending() - state.in_flight;
            state.counts.ended[ending as usize - 1] += rest;
            (rest, state.chunks.clone())
        };
        self.checkpoint.touch();
        self.checkpoint.forced = true;
        self.checkpoint.lists.insert(key, list.clone());
        if rest > 0 {
            let message = &list.message;
            // Which of its services the rest was for is not known without reading it.
            let service = if chunks.len() == 1 { *chunks.keys().next().expect("one") } else { Service::OTHER };
            let first_key = self.settings.first_keys.get(&message.app).copied();
            self.ended(rest, ending, &message.app, message.label.as_ref(), service, first_key, now);
            self.event(&Event {
                time: now,
                ending,
                id: message.id,
                message_ref: message.reference.as_deref(),
                label: message.label.as_deref(),
                subscription: None,
                reference: None,
                app: &message.app,
                service: None,
                status: None,
                reason,
                count: Some(rest),
            });
        }
    }

    pub(super) fn event(&mut self, event: &Event<'_>) {
        if !self.settings.log.contains(&EventType::Ended(event.ending)) {
            return;
        }
        self.checkpoint.touch();
        if self.checkpoint.event_count > 0 {
            self.checkpoint.events.push(b'\n');
        }
        event.write(&mut self.checkpoint.events, &self.store);
        self.checkpoint.event_count += 1;
    }
}
