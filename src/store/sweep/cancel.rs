//! What `cancel` of a label or an app, and an erasure, end of what waits by itself.
//!
//! Promise: a rule is marked as swept when all that it concerns, up to its message, was sent to the writer; a start begins
//! again with those that are not marked. What is in flight, and what is met later, knows the rule from memory.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::message::{BatchId, Delivery, DeliveryId, Lane};
use crate::protocol::reason;
use crate::store::key::{self, DueKey, WorkKey};
use crate::store::live::{Holder, RuleSet};
use crate::store::record;
use crate::store::sweep::{SLICE, Sweep};
use crate::store::writer::{Settle, StoredRule, read_rule};
use crate::store::{ReadError, family};

impl Sweep {
    /// Ends what `cancel` of a label or an app has left to be found.
    pub(super) fn sweep_cancelled(&self) -> Result<(), ReadError> {
        let mut rules: Vec<StoredRule> = Vec::new();
        self.store.reader()?.scan(family::META, b"cancel/", b"cancel0", |_, value| {
            // Who is erased twice with no message between the two has one rule, which the first sweep may have marked.
            let due = |rule: &StoredRule| !rule.swept || self.store.erasures.wait_for(&rule.holder);
            rules.extend(read_rule(Bytes::copy_from_slice(value)).ok().filter(due));
            true
        })?;
        {
            // An erasure that memory does not know yet is being committed: the bell rings when it is.
            let known = self.store.rules.load();
            rules.retain(|rule| !rule.holder.erases() || known.cancelled.get(&rule.holder) >= Some(&rule.upto));
        }
        if rules.is_empty() {
            return Ok(());
        }
        // All in one walk: an account has one for each of its browsers.
        let mut due = RuleSet::default();
        for rule in &rules {
            due.erasing |= rule.holder.erases();
            due.cancelled.insert(rule.holder.clone(), rule.upto);
        }
        let mut met = Met::default();
        for lane in self.lanes() {
            self.sweep_lane(lane, &due, &mut met)?;
        }
        for rule in rules {
            let cancelled = met.counts.get(&rule.holder).copied().unwrap_or(0);
            self.store.erasures.swept(&rule.holder, rule.upto, cancelled);
            self.send(Settle::Swept(rule.holder, rule.upto));
        }
        Ok(())
    }

    fn sweep_lane(&self, lane: Lane, due: &RuleSet, met: &mut Met) -> Result<(), ReadError> {
        let prefix = key::lane_prefix(lane);
        for family in [family::WORK, family::DUE] {
            let mut start = prefix.clone();
            loop {
                let mut rows: Vec<(Vec<u8>, Bytes)> = Vec::new();
                let mut bytes = 0;
                self.store.reader()?.scan(family, &start, &key::after_prefix(&prefix), |row, value| {
                    bytes += value.len();
                    rows.push((row.to_vec(), Bytes::copy_from_slice(value)));
                    rows.len() < SLICE && bytes < 4 << 20
                })?;
                let Some((last, _)) = rows.last() else { break };
                start = key::just_behind(last);
                // Nothing is claimed: what the cancellation does not concern is not touched, and what it does concern is not
                // shown as in flight in between.
                let (mut erased, mut cancelled) = (Vec::new(), Vec::new());
                let mut judge = |delivery: Box<Delivery>| {
                    let message = &delivery.message;
                    if let Some(holder) = due.erased_by(message.id, &message.app, &delivery.recipient) {
                        met.count(delivery.id, holder);
                        erased.push(delivery);
                    } else if due.cancels(message.id, &message.app, message.label.as_ref()) {
                        cancelled.push(delivery);
                    }
                };
                for (row, value) in rows {
                    if family == family::WORK {
                        let Ok(key) = WorkKey::decode(&row) else { continue };
                        self.waiting(&key, &value)?.into_iter().for_each(&mut judge);
                    } else if let Ok(key) = DueKey::decode(&row)
                        && let BatchId::Commit { .. } = key.delivery.batch
                        && let Ok(Some(delivery)) = record::read_due_row(value, key.delivery, key.time, || None)
                    {
                        judge(delivery);
                    }
                }
                for (found, reason) in [(erased, reason::ERASED), (cancelled, reason::CANCELLED)] {
                    if !found.is_empty() {
                        self.send(Settle::Cancelled(found, reason));
                    }
                }
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ReadError);
                }
            }
        }
        Ok(())
    }
}

/// What was found of those who are erased, by the word that it was found on.
#[derive(Default)]
struct Met {
    /// What waits in a row, and meanwhile by itself, is met twice, and counted once.
    seen: HashSet<DeliveryId>,
    counts: HashMap<Holder, u64>,
}

impl Met {
    fn count(&mut self, delivery: DeliveryId, holder: Holder) {
        if self.seen.insert(delivery) {
            *self.counts.entry(holder).or_default() += 1;
        }
    }
}
