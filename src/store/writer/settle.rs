//! Settling: what became of deliveries goes into memory and into the next checkpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::clock;
use crate::limits::CHECKPOINT_OUTCOMES;
use crate::message::{Delivery, Ending, KeyId, Recipient, Registered, Service, SubscriptionId, UnixMillis};
use crate::protocol::reason;
use crate::store::key::{self, DueKey};
use crate::store::live::{Batch, Holder, List, ListKey, lock};
use crate::store::record::{self, Counts};
use crate::store::watch;
use crate::store::writer::accept::Group;
use crate::store::writer::command::Pursuit;
use crate::store::writer::event::{Event, What};
use crate::store::writer::registry::Verdict;
use crate::store::writer::rows::{held_key, holder_row, rule_key, rule_row};
use crate::store::writer::stats::StatsKey;
use crate::store::writer::{Settle, Settled, Settlement, Writer};
use crate::store::{family, list_state};

/// How long a turn settles: lines wait so long for their group.
const SETTLE_TIME: Duration = if cfg!(test) { Duration::from_secs(60) } else { Duration::from_millis(5) };

impl Writer {
    pub(super) fn settle_all(&mut self) {
        let began = Instant::now();
        let _looks_anyway = self.settles.bell().hear();
        while let Ok(settle) = self.settles.try_recv() {
            self.settle(settle);
            if began.elapsed() >= SETTLE_TIME || self.checkpoint.outcomes >= CHECKPOINT_OUTCOMES {
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
                    self.end_list(key, &list, ending, over_reason(ending));
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
            Settle::Cancelled(deliveries, reason) => {
                let now = clock::now();
                for delivery in deliveries {
                    self.cancel_waiting(delivery, reason, now);
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
            Settle::Absent { batch, list, places } => self.settle_absent(&batch, list, &places),
            Settle::Rest { batch, list, matched, absent } => self.settle_rest(&batch, list, &matched, &absent),
            Settle::Walked(key) => {
                if let Some(list) = self.store.lists.get(key) {
                    self.checkpoint.touch();
                    self.checkpoint.lists.insert(key, list);
                }
            }
            Settle::Begin(key) => self.begin_campaign(key),
            Settle::Look(keys) => {
                self.checkpoint.touch();
                self.checkpoint.looked.extend(keys);
            }
            Settle::Fallback(key, fallback, again) => self.decide_fallback(key, *fallback, again),
            Settle::Lift(rules) => rules.into_iter().for_each(|lifted| self.lift(lifted)),
            Settle::Written(told) => {
                self.checkpoint.touch();
                self.checkpoint.told.push(told);
            }
            Settle::Stop => self.stopping = true,
        }
    }

    pub(super) fn settle_one(&mut self, settled: Settled, now: UnixMillis) {
        let Settled { mut delivery, what } = settled;
        let Some(batch) = self.store.batches.get(&delivery.id.batch) else {
            // A claim keeps its batch in memory, so this cannot be.
            debug_assert!(false, "a settled delivery was claimed");
            return;
        };
        let list = ListKey::of_batch(&delivery.id.batch).and_then(|key| Some((key, self.store.lists.get(key)?)));
        // Heard first: what is gone from an endpoint that it had is due again, which its message's end forbids.
        let what = match self.hear(&mut delivery, what) {
            what @ (Settlement::Wait { .. } | Settlement::Back | Settlement::Hold(_)) => {
                self.overruled(&delivery, list.as_ref()).unwrap_or(what)
            }
            ended => ended,
        };
        // Of a campaign: known from its claim on, and kept from here on.
        if let Some((_, list)) = list.as_ref().filter(|(_, list)| list.wanted.is_some() && what != Settlement::Back)
            && batch.is_waiting(delivery.id.index)
        {
            list_state(list).settled += 1;
            self.pending.add(&delivery.message.app, 1);
            self.store.pending.fetch_add(1, Ordering::Relaxed);
            let counts = Counts { recipients: 1, ..Counts::default() };
            let key = delivery.recipient.key.or_else(|| self.settings.first_keys.get(&delivery.message.app).copied());
            let message = &delivery.message;
            let of = StatsKey::new(now, &message.app, message.label.as_ref(), delivery.recipient.service, key);
            self.stats.ended(&self.store, of, &counts);
        }
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
                let message = &delivery.message;
                let erased = self.store.rules.load().erased_by(message.id, &message.app, &delivery.recipient).is_some();
                let subscription = || delivery.recipient.subscription_id();
                self.tell_watch(&delivery, ending, status, reason);
                self.event(&Event {
                    time: now,
                    what: What::Ended(ending),
                    id: Some(delivery.message.id),
                    message_ref: delivery.message.reference.as_deref(),
                    label: delivery.message.label.as_deref(),
                    subscription: Some(&subscription),
                    reference: delivery.recipient.reference.as_ref(),
                    account: delivery.account.as_deref(),
                    app: &delivery.message.app,
                    service: Some(service),
                    status,
                    reason: Some(if erased { reason::ERASED } else { reason }),
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
                // `resume` may have come while this delivery was on its way, or the account be gone: then nobody else would let it go.
                if !self.holds(&holder, now) && !self.releasing.contains(&holder) {
                    let row = (family::META, rule_key("release", &holder), Some(holder_row(&holder)));
                    self.checkpoint.rows.push(row);
                    self.releasing.push_back(holder);
                }
                if let Some((key, list)) = &list {
                    list_state(list).in_flight -= 1;
                    // A campaign's rows are written with its list.
                    self.checkpoint.lists.insert(*key, list.clone());
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

    /// Whether what waits on this word still has to.
    fn holds(&self, holder: &Holder, now: UnixMillis) -> bool {
        match holder {
            Holder::Account(who) => lock(&self.store.presence).holds_back(*who, now),
            _ => self.store.rules.load().paused.contains(holder),
        }
    }

    /// What an outcome says of a subscription of the registry. One that is gone is gone only if the verdict is about the endpoint
    /// that it still has: otherwise the delivery is due again at the new one.
    fn hear(&mut self, delivery: &mut Delivery, what: Settlement) -> Settlement {
        let Some(registered) = delivery.recipient.registered.filter(|_| !delivery.recipient.is_unread()) else { return what };
        let verdict = match &what {
            Settlement::Ended { ending: Ending::Gone, reason, .. } => Verdict::Gone(reason),
            Settlement::Ended { ending: Ending::Refused, reason, .. } => Verdict::Failed(reason),
            Settlement::Ended { ending: Ending::Accepted, .. } if delivery.unproven => Verdict::Proven,
            _ => return what,
        };
        let id = SubscriptionId::of(delivery.recipient.endpoint.as_str());
        if let Verdict::Gone(_) = verdict
            && let Ok(Some(known)) = self.store.known(registered.key)
            && known.id != id
            && !known.subscription.gone
        {
            let registered = Registered { id: known.id, ..registered };
            (delivery.attempts, delivery.tried_keys, delivery.shrink) = (0, 0, false);
            delivery.recipient = Recipient::unread(registered);
            return Settlement::Wait { until: clock::now(), counts_retry: false };
        }
        self.checkpoint.touch();
        // Whoever is gone stays so, whatever another message hears in the same moment.
        let known = self.checkpoint.verdicts.entry(registered.key).or_insert((id, verdict.clone()));
        if known.0 != id || !matches!(known.1, Verdict::Gone(_)) {
            *known = (id, verdict);
        }
        what
    }

    fn tell_watch(&mut self, delivery: &Delivery, ending: Ending, status: Option<u16>, reason: &'static str) {
        // The rule: nobody watches, and the id is not even hashed.
        if self.watches.is_empty() {
            return;
        }
        if let Some(watch) = self.watches.get_mut(&delivery.message.id) {
            let result = watch::Result { subscription: delivery.recipient.subscription_id(), ending, status, reason };
            watch.left -= 1;
            if watch.results.send(result).is_err() || watch.left == 0 {
                self.watches.remove(&delivery.message.id);
                self.watched.sub(&delivery.message.app, 1);
            }
        }
    }

    /// Nobody whom the campaign concerns is at these places.
    fn settle_absent(&mut self, batch: &Arc<Batch>, key: ListKey, places: &[u16]) {
        places.iter().for_each(|place| batch.set_absent(*place));
        self.checkpoint.change(batch);
        if let Some(list) = self.store.lists.get(key) {
            self.checkpoint.lists.insert(key, list);
        }
    }

    /// What a campaign that is over had not met: counted, and told in one event at its end.
    fn settle_rest(&mut self, batch: &Arc<Batch>, key: ListKey, matched: &[u16], absent: &[u16]) {
        self.settle_absent(batch, key, absent);
        let Some(list) = self.store.lists.get(key) else { return };
        let ending = list_state(&list).over.unwrap_or(Ending::Cancelled);
        let ended = matched.iter().filter(|place| batch.end(**place, ending)).count() as u64;
        {
            let mut state = list_state(&list);
            state.counts.recipients += ended;
            state.counts.ended[ending as usize - 1] += ended;
            state.settled += ended;
            state.unreported += ended;
        }
        if ended > 0 {
            let (message, service) = (&list.message, batch.id.lane().service);
            let first_key = self.settings.first_keys.get(&message.app).copied();
            self.pending.add(&message.app, ended);
            self.store.pending.fetch_add(ended, Ordering::Relaxed);
            let now = clock::now();
            let of = StatsKey::new(now, &message.app, message.label.as_ref(), service, first_key);
            self.stats.ended(&self.store, of, &Counts { recipients: ended, ..Counts::default() });
            self.ended(ended, ending, &message.app, message.label.as_ref(), service, first_key, now);
        }
    }

    /// Tells of what ended with a campaign, once everybody was met.
    pub(super) fn report_campaigns(&mut self) {
        for key in std::mem::take(&mut self.walked_out) {
            let Some(list) = self.store.lists.get(key) else { continue };
            let (count, ending) = {
                let mut state = list_state(&list);
                (std::mem::take(&mut state.unreported), state.over.unwrap_or(Ending::Cancelled))
            };
            self.checkpoint.touch();
            self.checkpoint.lists.insert(key, list.clone());
            if count > 0 {
                self.event_of_rest(&list, ending, over_reason(ending), count);
            }
        }
    }

    /// Ends what a cancelled label or app has waiting.
    pub(super) fn cancel_waiting(&mut self, delivery: Box<Delivery>, reason: &'static str, now: UnixMillis) {
        let Ok(Some(batch)) = self.store.find_batch(delivery.id.batch) else { return };
        // A worker that claims it from here on finds the rule and does not send it.
        if batch.busy_in(delivery.id.index, 1) == 0 {
            let what = Settlement::Ended { ending: Ending::Cancelled, reason, status: None, key: None };
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
        let reason = over_reason(ending);
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
        self.pending.sub(app, count);
        self.endings.count(&self.store.services, service, ending, count);
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
            // A campaign is walked to its end, so that the others are counted.
            state.closed |= list.wanted.is_none();
            if list.wanted.is_some() && state.walks.is_none() {
                state.walks = Some(self.walks_from_now());
            }
            let rest = state.counts.pending().saturating_sub(state.in_flight);
            state.counts.ended[ending as usize - 1] += rest;
            if list.wanted.is_some() {
                state.unreported += rest;
            }
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
            if list.wanted.is_none() {
                self.event_of_rest(list, ending, reason, rest);
            }
        }
    }

    fn event_of_rest(&mut self, list: &List, ending: Ending, reason: &'static str, count: u64) {
        let message = &list.message;
        self.event(&Event {
            time: clock::now(),
            what: What::Ended(ending),
            id: Some(message.id),
            message_ref: message.reference.as_deref(),
            label: message.label.as_deref(),
            subscription: None,
            reference: None,
            account: None,
            app: &message.app,
            service: None,
            status: None,
            reason: Some(reason),
            count: Some(count),
        });
    }

    pub(super) fn event(&mut self, event: &Event<'_>) {
        if self.settings.log.contains(&event.what.kind()) {
            self.checkpoint.touch();
            self.checkpoint.events.push(event, &self.store);
        }
    }

    /// An event of what a line has changed: it lies in the same batch, and is gone with the group if that is refused.
    pub(super) fn event_of_group(&mut self, event: &Event<'_>, group: &mut Group) {
        if self.settings.log.contains(&event.what.kind()) {
            self.checkpoint.touch();
            self.checkpoint.forced = true;
            group.events.push(event, &self.store);
        }
    }
}

/// Why all of a message ended so.
pub(super) fn over_reason(ending: Ending) -> &'static str {
    if ending == Ending::Expired { reason::DEADLINE } else { reason::CANCELLED }
}
