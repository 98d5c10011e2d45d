//! `cancel`, `pause`, `resume`, and topics that replace what still waits.

use std::sync::Arc;

use crate::clock;
use crate::message::{AccountHash, Delivery, DeliveryId, Ending, MessageId, SubscriptionId, UnixMillis};
use crate::protocol::reason;
use crate::protocol::request::{Code, Target};
use crate::store::commit::{Apps, Done};
use crate::store::concerned::words;
use crate::store::key::{self, DueKey};
use crate::store::live::{Holder, List, ListKey, Upto};
use crate::store::record::{self, Head};
use crate::store::writer::Writer;
use crate::store::writer::accept::{Failure, Group};
use crate::store::writer::event::{Event, What};
use crate::store::writer::rows::{holder_prefix, holder_row, rule_key, rule_row};
use crate::store::{ReadError, family, list_state};

impl Writer {
    /// Ends what newer messages of the same topic have replaced, in the batch that brings the newer ones. What is in flight, or
    /// came in this very batch, is pursued.
    pub(super) fn supersede(&mut self, group: &mut Group) {
        for (delivery, id) in std::mem::take(&mut group.superseded) {
            // A cancelled label's sweep may not have come there yet, but the status has told of it.
            let pursuit = if self.is_cancelled(id) {
                Pursuit { id, ending: Ending::Cancelled, reason: reason::CANCELLED }
            } else {
                Pursuit { id, ending: Ending::Skipped, reason: reason::SUPERSEDED }
            };
            if let Caught::Busy | Caught::Nowhere = self.catch(delivery, &pursuit, group.now) {
                self.pursued.insert(delivery, pursuit);
            }
        }
    }

    /// Whether a rule has cancelled a message of its own row; a list knows by itself that it is over.
    fn is_cancelled(&self, id: MessageId) -> bool {
        let rules = self.store.rules.load();
        !rules.cancelled.is_empty()
            && matches!(self.store.head(id), Ok(Some(head)) if rules.cancels(id, &head.app, head.label.as_ref()))
    }

    /// Looks again at what could not be ended at once. Called when a batch is on disk, before the scheduler hears of it.
    pub(super) fn pursue(&mut self, now: UnixMillis) {
        for (delivery, pursuit) in std::mem::take(&mut self.pursued) {
            if self.catch(delivery, &pursuit, now) == Caught::Busy {
                self.pursued.insert(delivery, pursuit);
            }
        }
    }

    /// Ends a delivery that nobody is busy with.
    pub(super) fn catch(&mut self, delivery: DeliveryId, pursuit: &Pursuit, now: UnixMillis) -> Caught {
        let batch = match self.store.find_batch(delivery.batch) {
            Ok(Some(batch)) => batch,
            Ok(None) => return Caught::Nowhere,
            Err(ReadError) => return Caught::Busy,
        };
        if batch.has_ended(delivery.index) {
            return Caught::EndedBefore;
        }
        let list = match ListKey::of_batch(&delivery.batch) {
            None => None,
            Some(key) => match self.store.lists.get(key) {
                Some(list) if list_state(&list).over.is_none() => Some((key, list)),
                _ => return Caught::EndedBefore,
            },
        };
        let freed = match &list {
            None => batch.end_if_free(delivery.index, pursuit.ending),
            Some((key, list)) => {
                let mut state = list_state(list);
                let freed = batch.end_if_free(delivery.index, pursuit.ending);
                if freed {
                    state.counts.ended[pursuit.ending as usize - 1] += 1;
                    drop(state);
                    self.checkpoint.lists.insert(*key, list.clone());
                }
                freed
            }
        };
        if !freed {
            return Caught::Busy;
        }
        self.checkpoint.change(&batch);
        self.checkpoint.forced = true;
        let list = list.map(|(_, list)| list);
        let head = if list.is_some() { None } else { self.store.head(pursuit.id).ok().flatten() };
        let waiting = list.as_ref().and_then(|list| self.store.waiting_delivery(delivery, Some(list)).ok().flatten());
        self.ended_by_command(delivery, pursuit, head.as_ref(), list.as_ref(), waiting.as_deref(), now);
        Caught::Ended
    }

    /// Counters and event of a delivery that was ended without having been loaded.
    pub(super) fn ended_by_command(
        &mut self,
        delivery: DeliveryId,
        pursuit: &Pursuit,
        head: Option<&Head>,
        list: Option<&Arc<List>>,
        loaded: Option<&Delivery>,
        now: UnixMillis,
    ) {
        let Pursuit { id, ending, reason } = *pursuit;
        let entry = head.and_then(|head| head.recipients.iter().find(|recipient| recipient.id == delivery));
        let (app, label, message_ref) = match (head, list) {
            (Some(head), _) => (head.app.clone(), head.label.clone(), head.reference.clone()),
            (None, Some(list)) => (list.message.app.clone(), list.message.label.clone(), list.message.reference.clone()),
            (None, None) => return,
        };
        let service = delivery.batch.lane().service;
        let key = self.settings.first_keys.get(&app).copied();
        self.ended(1, ending, &app, label.as_ref(), service, key, now);
        let recipient = entry
            .map(|entry| (entry.subscription, entry.account))
            .or_else(|| loaded.map(|delivery| (delivery.recipient.subscription_id(), account_of(delivery))));
        let erased =
            recipient.is_some_and(|(known, account)| self.store.rules.load().erased_named_by(id, &app, known, account).is_some());
        let told: Option<&dyn Fn() -> SubscriptionId> = None;
        let subscription = || recipient.expect("only called if it is known").0;
        let of_row = entry
            .map_or_else(|| loaded.and_then(|delivery| delivery.recipient.reference.as_ref()), |entry| entry.reference.as_ref());
        // What waits for one of the registry says neither whose it is nor the reference.
        let known = match (of_row, loaded.and_then(|delivery| delivery.recipient.registered), recipient) {
            (Some(_), ..) => None,
            (None, Some(registered), _) => self.store.known(registered.key).ok().flatten(),
            (None, None, Some((known, account))) if account.is_some() || ending == Ending::Cancelled => {
                self.store.subscription(known, &Apps::new(vec![app.clone()])).ok().flatten()
            }
            (None, None, _) => None,
        };
        let of_registry = known.as_ref().map(|known| &known.subscription);
        self.event(&Event {
            time: now,
            what: What::Ended(ending),
            id: Some(id),
            message_ref: message_ref.as_deref(),
            label: label.as_deref(),
            subscription: if recipient.is_some() { Some(&subscription) } else { told },
            reference: of_row.or_else(|| of_registry?.recipient.reference.as_ref()),
            account: of_registry.and_then(|of| of.account.as_deref()),
            app: &app,
            service: Some(service),
            status: None,
            reason: Some(if erased { reason::ERASED } else { reason }),
            count: None,
        });
    }

    /// The lists that a rule concerns.
    pub(super) fn lists_of(&self, holder: &Holder) -> Vec<(ListKey, Arc<List>)> {
        match holder {
            Holder::Message(id) => {
                let key = ListKey::of(*id);
                self.store.lists.get(key).filter(|list| list.message.id == *id).map(|list| (key, list)).into_iter().collect()
            }
            Holder::Label(app, label) => self.store.lists.of(|of| of.app == *app && of.label.as_ref() == Some(label)),
            Holder::App(app) => self.store.lists.of(|of| of.app == *app),
            Holder::Account(_) | Holder::Subscription(..) => Vec::new(),
        }
    }

    /// What a message id names: an open list, or the head of a single; None: a list that has ended.
    pub(super) fn find_message(&self, id: MessageId, apps: &Apps) -> Result<Found, Failure> {
        match self.open_list(id, apps) {
            Ok((key, list)) => return Ok(Found::List(key, list)),
            Err(failure) if failure.problem.code == Code::Conflict => return Ok(Found::Ended),
            Err(failure) if failure.problem.code == Code::NotFound => {}
            Err(failure) => return Err(failure),
        }
        // One of this very group has not been answered yet: nobody can know its id.
        match self.store.head(id)? {
            Some(head) if apps.contains(&head.app) => Ok(Found::Single(head)),
            _ => Err(Failure::of(Code::NotFound, Some("message_id"), "no such message")),
        }
    }

    /// How many recipients of a single have not ended.
    fn unended(&self, head: &Head) -> Result<u64, Failure> {
        let mut unended = 0;
        for recipient in &head.recipients {
            unended += u64::from(!self.store.has_ended(recipient.id)?);
        }
        Ok(unended)
    }

    pub(super) fn take_cancel(&mut self, target: Target, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let mut changed = Changed::default();
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => {}
                Found::List(key, list) => {
                    changed.list(&list);
                    self.end_list(key, &list, Ending::Cancelled, reason::CANCELLED);
                }
                Found::Single(head) => {
                    changed.single(self.unended(&head)?);
                    self.cancel_single(&head, group)?;
                }
            }
            // What was held for it is let go, and found to have ended.
            self.set_rule_paused(&Holder::Message(id), None, group, false)?;
            return Ok(changed.done());
        }
        let holders = words(&target, apps);
        for holder in &holders {
            let known = self.store.rules.load().cancelled.contains_key(holder);
            if let Some(app) = holder.app().filter(|_| !known) {
                self.may_have_rules(app, 1)?;
            }
        }
        for holder in holders {
            for (key, list) in self.lists_of(&holder) {
                changed.list(&list);
                self.end_list(key, &list, Ending::Cancelled, reason::CANCELLED);
            }
            self.sweep_until_here(holder, group);
        }
        Ok(changed.done())
    }

    // ---- how many rules there are ----

    /// Refuses more rules than an app's share has room for.
    pub(super) fn may_have_rules(&self, app: &Arc<str>, n: u64) -> Result<(), Failure> {
        if n <= self.rules.room(app) {
            return Ok(());
        }
        let message =
            "as many messages and labels are paused, cancelled or erased as may be; those that are over are dropped in time";
        Err(Failure::later(Code::Overloaded, message, 60.0))
    }

    /// One rule more, of this app.
    pub(super) fn count_rule(&mut self, holder: &Holder, app: &Arc<str>) {
        self.rules.add(app, 1);
        if holder.app().is_none() {
            self.whose.insert(holder.clone(), app.clone());
        }
    }

    /// One rule less.
    fn uncount_rule(&mut self, holder: &Holder) {
        match holder.app().or_else(|| self.whose.get(holder)) {
            Some(app) => self.rules.sub(app, 1),
            None => self.rules.sub(&Arc::from(""), 1),
        }
        let rules = self.store.rules.load();
        if !rules.paused.contains(holder) && !rules.cancelled.contains_key(holder) {
            self.whose.remove(holder);
        }
    }

    /// Drops a rule that nothing can meet any more, unless it was said anew.
    pub(super) fn lift(&mut self, lifted: Lifted) {
        let (kind, holder) = match lifted {
            Lifted::Pause(holder) => {
                self.store.rules.change(|rules| rules.paused.remove(&holder));
                ("pause", holder)
            }
            Lifted::Cancellation(holder, upto) => {
                if self.store.rules.load().cancelled.get(&holder).is_some_and(|known| *known != upto) {
                    return;
                }
                self.store.rules.change(|rules| rules.cancelled.remove(&holder));
                ("cancel", holder)
            }
        };
        self.uncount_rule(&holder);
        self.checkpoint.touch();
        self.checkpoint.rows.push((family::META, rule_key(kind, &holder), None));
    }

    /// Has the sweep end all that waits on this word up to here: it begins when the rule, and all that waits by itself by now, is on
    /// disk. An erasure is a rule from then on only: one that is refused must change nothing.
    pub(super) fn sweep_until_here(&mut self, holder: Holder, group: &mut Group) {
        let app = holder.app().cloned().unwrap_or_else(|| Arc::from(""));
        self.put_cancellation(holder, &app, false, group);
        self.checkpoint.touch();
        self.checkpoint.forced = true;
        group.cancels = true;
    }

    fn put_cancellation(&mut self, holder: Holder, app: &Arc<str>, swept: bool, group: &mut Group) {
        let upto = group.next_message();
        group.registry.put(family::META, rule_key("cancel", &holder), rule_row(&holder, upto, group.now, swept));
        if holder.erases() {
            group.erased.push((holder, upto));
        } else if self.store.rules.change(|rules| rules.cancelled.insert(holder.clone(), upto)).is_none() {
            self.count_rule(&holder, app);
        }
    }

    pub(super) fn cancel_single(&mut self, head: &Head, group: &mut Group) -> Result<(), Failure> {
        let mut busy = false;
        for recipient in &head.recipients {
            let pursuit = Pursuit { id: head.id, ending: Ending::Cancelled, reason: reason::CANCELLED };
            let Some(batch) = self.store.find_batch(recipient.id.batch)? else { continue };
            if batch.end_if_free(recipient.id.index, Ending::Cancelled) {
                self.checkpoint.change(&batch);
                self.ended_by_command(recipient.id, &pursuit, Some(head), None, None, group.now);
            } else if !batch.has_ended(recipient.id.index) {
                busy = true;
                self.pursued.insert(recipient.id, pursuit);
            }
        }
        self.checkpoint.forced |= self.checkpoint.dirty();
        if busy {
            // What is in flight is let finish; if it would be tried again, it ends instead.
            self.put_cancellation(Holder::Message(head.id), &head.app, true, group);
        }
        Ok(())
    }

    pub(super) fn take_pause(&mut self, target: Target, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let mut changed = Changed::default();
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => {}
                Found::List(key, list) => {
                    changed.list(&list);
                    // The rule holds back what of it waits by itself.
                    self.set_list_paused(key, &list, true, None, group)?;
                    self.set_rule_paused(&Holder::Message(id), Some(&list.message.app), group, true)?;
                }
                Found::Single(head) => {
                    changed.single(self.unended(&head)?);
                    self.set_rule_paused(&Holder::Message(id), Some(&head.app), group, true)?;
                }
            }
            return Ok(changed.done());
        }
        for holder in words(&target, apps) {
            self.set_rule_paused(&holder, None, group, true)?;
            for (key, list) in self.lists_of(&holder) {
                changed.list(&list);
                group.lists.push(key);
            }
        }
        Ok(changed.done())
    }

    pub(super) fn take_resume(
        &mut self,
        target: Target,
        rate: Option<f64>,
        apps: &Apps,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let mut changed = Changed::default();
        let words = words(&target, apps);
        if let Target::Message(id) = target {
            match self.find_message(id, apps)? {
                Found::Ended => return Ok(changed.done()),
                Found::Single(head) => {
                    let lets_go = self.store.rules.load().lets_go(id, &head.app, head.label.as_ref(), false, &words);
                    changed.single(if lets_go { self.unended(&head)? } else { 0 });
                }
                // Found again below.
                Found::List(..) => {}
            }
        }
        for holder in &words {
            for (key, list) in self.lists_of(holder) {
                let message = &list.message;
                // Bound first: a guard inside the call would still be held in it.
                let paused = list_state(&list).paused;
                if self.store.rules.load().lets_go(message.id, &message.app, message.label.as_ref(), paused, &words) {
                    changed.list(&list);
                }
                if paused || rate.is_some() {
                    self.set_list_paused(key, &list, false, rate, group)?;
                }
                // What was said of the list alone is taken back with the word that names it among others.
                self.set_rule_paused(&Holder::Message(message.id), None, group, false)?;
                group.lists.push(key);
            }
            self.set_rule_paused(holder, None, group, false)?;
        }
        Ok(changed.done())
    }

    pub(super) fn set_list_paused(
        &self,
        key: ListKey,
        list: &Arc<List>,
        paused: bool,
        rate: Option<f64>,
        group: &mut Group,
    ) -> Result<(), Failure> {
        group.remember(key, list);
        {
            let mut state = list_state(list);
            state.paused = paused;
            if rate.is_some() {
                state.rate = rate;
            }
        }
        self.put_list_state(key, list, group)
    }

    /// `app`: whose a message is that is paused.
    pub(super) fn set_rule_paused(
        &mut self,
        holder: &Holder,
        app: Option<&Arc<str>>,
        group: &mut Group,
        paused: bool,
    ) -> Result<(), Failure> {
        if self.store.rules.load().paused.contains(holder) == paused {
            return Ok(());
        }
        let app = app.or(holder.app()).cloned().unwrap_or_else(|| Arc::from(""));
        if paused {
            self.may_have_rules(&app, 1)?;
        }
        let reader = self.store.reader()?;
        if paused {
            let row = rule_row(holder, group.next_message(), group.now, false);
            group.rows.put(&reader, family::META, rule_key("pause", holder), row);
            group.rows.delete(&reader, family::META, rule_key("release", holder));
        } else {
            group.rows.delete(&reader, family::META, rule_key("pause", holder));
            // Until all that was held is due again, a start goes on with it.
            group.rows.put(&reader, family::META, rule_key("release", holder), holder_row(holder));
        }
        drop(reader);
        if paused {
            self.releasing.retain(|releasing| releasing != holder);
        } else {
            self.releasing.push_back(holder.clone());
        }
        self.store.rules.change(|rules| if paused { rules.paused.insert(holder.clone()) } else { rules.paused.remove(holder) });
        if paused {
            self.count_rule(holder, &app);
        } else {
            self.uncount_rule(holder);
        }
        Ok(())
    }

    /// Makes some of what `resume` has freed due again.
    pub(super) fn release_some(&mut self) {
        let Some(holder) = self.releasing.front().cloned() else { return };
        let prefix = holder_prefix(&holder);
        let now = clock::now();
        let mut held = Vec::new();
        let mut freed = Vec::new();
        {
            let Ok(reader) = self.store.reader() else { return };
            let scanned = reader.scan(family::HELD, &prefix, &key::after_prefix(&prefix), |row, _| {
                held.push(row.to_vec());
                held.len() < RELEASE_SLICE
            });
            if scanned.is_err() {
                return;
            }
            for row in &held {
                let Ok(due) = DueKey::decode(&row[prefix.len()..]) else {
                    self.store.corrupt(family::HELD);
                    continue;
                };
                match reader.value(family::DUE, due.encode()) {
                    Ok(Some(value)) => freed.push((due, value)),
                    Ok(None) => {}
                    Err(_) => return,
                }
            }
        }
        self.checkpoint.touch();
        // Rows that the next checkpoint would make are not there yet: it is written, then looked at again.
        let unwritten = self.checkpoint.held.iter().any(|(row, made)| *made && row.starts_with(&prefix));
        for row in &held {
            self.checkpoint.held.insert(row.clone(), false);
        }
        for (due, value) in freed {
            let list = ListKey::of_batch(&due.delivery.batch).and_then(|key| self.store.lists.get(key));
            let Ok(Some(delivery)) =
                record::read_due_row(value.clone(), due.delivery, due.time, || list.as_ref().map(|list| list.message.clone()))
            else {
                continue;
            };
            let again = DueKey { time: delivery.message.at.max(now), ..due };
            self.checkpoint.due.entry(due).or_insert(None);
            self.checkpoint.due.insert(again, Some(value.to_vec()));
        }
        if held.len() < RELEASE_SLICE && !unwritten {
            self.releasing.pop_front();
            self.checkpoint.rows.push((family::META, rule_key("release", &holder), None));
        } else {
            // In turn: what an app has held for long does not keep another's waiting.
            self.releasing.rotate_left(1);
        }
        self.checkpoint.forced = true;
    }
}

/// What a command concerns, as far as the writer knows it without looking at every recipient.
#[derive(Default)]
struct Changed {
    messages: u64,
    recipients: u64,
}

impl Changed {
    /// A list or a campaign: by its own counters, which know of the recipients that it has met so far.
    fn list(&mut self, list: &List) {
        let state = list_state(list);
        if state.over.is_none() && !state.done() {
            self.messages += 1;
            self.recipients += state.counts.pending();
        }
    }

    /// A single with so many recipients that have not ended.
    fn single(&mut self, unended: u64) {
        self.messages += u64::from(unended > 0);
        self.recipients += unended;
    }

    fn done(self) -> Done {
        Done::Changed { messages: self.messages, recipients: self.recipients }
    }
}

/// A rule that nothing can meet any more.
pub enum Lifted {
    /// Its message has ended.
    Pause(Holder),
    /// What it ended, up to this message, is settled.
    Cancellation(Holder, Upto),
}

fn account_of(delivery: &Delivery) -> Option<AccountHash> {
    delivery.recipient.registered.and_then(|registered| registered.account)
}

/// Rows that `resume` moves between two looks at the channels.
pub(super) const RELEASE_SLICE: usize = if cfg!(test) { 64 } else { 2_048 };

/// A delivery that a command, or a newer message, has ended.
#[derive(Clone, Copy)]
pub(super) struct Pursuit {
    pub(super) id: MessageId,
    pub(super) ending: Ending,
    pub(super) reason: &'static str,
}

/// What came of ending it.
#[derive(PartialEq)]
pub(super) enum Caught {
    Ended,
    EndedBefore,
    /// Somebody is busy with it.
    Busy,
    /// There is no such row: it came in the batch that is being made, or is long gone.
    Nowhere,
}

/// What a message id names.
pub(super) enum Found {
    List(ListKey, Arc<List>),
    Single(Head),
    Ended,
}
