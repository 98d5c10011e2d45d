//! What `cancel` of a label or an app, and an erasure, end of what waits by itself.
//!
//! Promise: a rule is marked as swept when all that it concerns, up to its message, was sent to the writer; a start begins
//! again with those that are not marked. What is in flight, and what is met later, knows the rule from memory.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::message::{BatchId, Delivery, DeliveryId, Lane};
use crate::store::key::{self, DueKey, WorkKey};
use crate::store::live::{Holder, subscription_hash};
use crate::store::record;
use crate::store::sweep::{SLICE, Sweep, just_behind};
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
        // One that is erased with its account is met on both words, and counted once.
        let mut met = HashSet::new();
        for rule in rules {
            let mut cancelled = 0;
            for lane in self.lanes() {
                cancelled += self.sweep_lane(lane, &rule, &mut met)?;
            }
            self.store.erasures.swept(&rule.holder, rule.upto, cancelled);
            self.send(Settle::Swept(rule.holder, rule.upto));
        }
        Ok(())
    }

    /// Gives how many it has found for an erasure that were not met before.
    fn sweep_lane(&self, lane: Lane, rule: &StoredRule, met: &mut HashSet<DeliveryId>) -> Result<u64, ReadError> {
        let mut cancelled = 0;
        let concerns = |delivery: &Delivery| {
            let message = &delivery.message;
            (message.id.commit(), message.id.place()) < rule.upto
                && match &rule.holder {
                    Holder::Message(id) => message.id == *id,
                    Holder::Label(app, label) => message.app == *app && message.label.as_ref() == Some(label),
                    Holder::App(app) => message.app == *app,
                    Holder::Account(who) => delivery.recipient.registered.and_then(|one| one.account) == Some(*who),
                    Holder::Subscription(hash) => subscription_hash(delivery.recipient.subscription_id()) == *hash,
                }
        };
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
                start = just_behind(last);
                // Nothing is claimed: what the cancellation does not concern is not touched, and what it does concern is not
                // shown as in flight in between.
                let mut found = Vec::new();
                for (row, value) in rows {
                    if family == family::WORK {
                        let Ok(key) = WorkKey::decode(&row) else { continue };
                        found.extend(self.waiting(&key, &value)?.into_iter().filter(|delivery| concerns(delivery)));
                    } else if let Ok(due) = DueKey::decode(&row)
                        && let BatchId::Commit { .. } = due.delivery.batch
                        && let Ok(Some(delivery)) = record::read_due_row(value, due.delivery, due.time, || None)
                        && concerns(&delivery)
                    {
                        found.push(delivery);
                    }
                }
                if rule.holder.erases() {
                    cancelled += found.iter().filter(|delivery| met.insert(delivery.id)).count() as u64;
                }
                self.send(Settle::Cancelled(found, if rule.holder.erases() { "erased" } else { "cancelled" }));
                if self.stop.load(Ordering::Relaxed) {
                    return Err(ReadError);
                }
            }
        }
        Ok(cancelled)
    }
}
