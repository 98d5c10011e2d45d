//! Accepting: lines are numbered, looked up and put into the group that the next write makes durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::clock;
use crate::limits::{COMMIT_BYTES, IDEMPOTENCY_MILLIS, PIECE_BYTES, PIECE_RECIPIENTS_MAX, SINGLE_RECIPIENTS_MAX};
use crate::message::{AccountHash, BatchId, Delivery, DeliveryId, Lane, MessageId, Service, SubscriptionId, UnixMillis, Urgency};
use crate::protocol::request::{Code, Erase, Problem, State, Step};
use crate::store::commit::{self, Apps, Chunk, Done, NewMessage, NewRecipients, Op, Writes};
use crate::store::erase::Erasure;
use crate::store::key::{self, ChunkKey, DueKey};
use crate::store::live::{Holder, List, ListKey, ListState, Upto, lock};
use crate::store::load::{MessageRow, message_key};
use crate::store::record::{self, Counts, Head, HeadRecipient, Put, Take, WorkRow};
use crate::store::registry::row::{App, presence_key};
use crate::store::registry::walk::Wanted;
use crate::store::watch::Watch;
use crate::store::writer::Writer;
use crate::store::writer::event::Events;
use crate::store::writer::overlay::Overlay;
use crate::store::writer::rows::{held_key, list_counts_row, list_message_row, list_state_row, read_idempotency, read_topic};
use crate::store::writer::stats::StatsKey;
use crate::store::{ReadError, Rows, family, list_state};

impl Writer {
    /// Takes lines into a group, up to the bounds of a commit. Where they are reached, the rest of a slice waits for its next turn.
    pub(super) fn collect(&mut self) -> (Vec<Writes>, Group) {
        let mut group = Group::new(self.next_commit, clock::now());
        let mut writes = Vec::new();
        let (mut bytes, mut recipients, mut taken) = (0, 0, 0u32);
        let began = Instant::now();
        let mut full = false;
        self.commits.hear();
        while !full {
            let Some(mut incoming) = self.commits.next() else { break };
            while !full && let Some(mut op) = incoming.ops.pop_front() {
                if !self.prepare(&mut op, began + GROUP_TIME, &mut group) {
                    // It goes on at its next turn.
                    incoming.ops.push_front(op);
                    full = true;
                    break;
                }
                bytes += commit::weight(&op);
                recipients += commit::recipients(&op);
                taken += 1;
                // The clock is asked now and then for messages of a few recipients, which take microseconds, and after all else.
                let look = taken.is_multiple_of(LOOK_EVERY) || !matches!(&op, Op::Send(new) if new.is_single());
                incoming.done.push(self.take(op, &mut group));
                full = bytes >= COMMIT_BYTES
                    || recipients >= COMMIT_RECIPIENTS
                    || group.superseded.len() >= GROUP_SUPERSEDED
                    || look && began.elapsed() >= GROUP_TIME;
            }
            writes.push(incoming);
        }
        (writes, group)
    }

    /// Does some of the work that a line has with many names or browsers; whether that was all of it.
    fn prepare(&mut self, op: &mut Op, until: Instant, group: &mut Group) -> bool {
        // An error is found again, and answered, when the line is taken.
        match op {
            Op::Send(new) => self.look_up(new, until, group),
            Op::Switch { who, enabled, apps } => self.tally_some(who, *enabled, apps, group).unwrap_or(true),
            Op::Erase { erase: Erase::Account(who), apps, so_far, .. } => {
                self.erase_some(who, apps, so_far, group).unwrap_or(true)
            }
            _ => true,
        }
    }

    /// Looks up some of many names that a message is addressed to; whether all of them are.
    fn look_up(&self, new: &mut NewMessage, until: Instant, group: &Group) -> bool {
        let NewRecipients::Addressed(to, resolved) = &mut new.recipients else { return true };
        let all = self.resolve(to, resolved, &new.message.app, new.message.scope.as_ref(), Some(until), group);
        // What is wrong is found again, and answered, when it is taken.
        all.unwrap_or(true)
    }

    pub(super) fn take(&mut self, op: Op, group: &mut Group) -> Done {
        let done = match op {
            Op::Send(new) => self.take_send(*new, group),
            Op::Add { message_id, chunks, rejected, step, apps } => {
                self.take_add(message_id, chunks, rejected, step, &apps, group)
            }
            Op::Close { message_id, step, apps } => self.take_close(message_id, step, &apps, group),
            Op::Cancel { target, apps } => self.take_cancel(target, &apps, group),
            Op::Pause { target, apps } => self.take_pause(target, &apps, group),
            Op::Resume { target, rate, apps } => self.take_resume(target, rate, &apps, group),
            Op::Drain { on } => {
                self.store.gates.draining.store(on, Ordering::Relaxed);
                Ok(Done::Passed)
            }
            Op::Pass { apps } => Ok(self.pending_of(apps.as_ref())),
            Op::Subscribe(new) => self.take_subscribe(*new, group),
            Op::Update { update, apps } => self.take_update(*update, &apps, group),
            Op::Unsubscribe { subscription, apps } => self.take_unsubscribe(subscription, &apps, group),
            Op::Switch { who, enabled, apps } => self.take_account(&who, enabled, &apps, group),
            Op::Presence { who, online, lease, session, apps } => {
                self.take_presence(&who, online, lease, session.as_deref(), &apps, group)
            }
            Op::MarkRead { who, what, apps } => self.take_mark_read(&who, &what, &apps, group),
            Op::Feedback { id, subscription, kind, apps } => self.take_feedback(id, subscription, kind, &apps, group),
            Op::Erase { erase, everywhere, apps, so_far } => self.take_erase(&erase, everywhere, &apps, so_far, group),
        };
        done.unwrap_or_else(|failure| failure.into_done())
    }

    /// Deliveries of these apps that have not ended; None: of all. What a campaign has not met yet is not among them.
    pub(super) fn pending_of(&self, apps: Option<&Apps>) -> Done {
        Done::Pending(match apps {
            None => self.store.pending.load(Ordering::Relaxed),
            Some(apps) => self.pending.each().filter(|(app, _)| apps.contains(app)).map(|(_, pending)| pending).sum(),
        })
    }

    /// Why new lines of an app are not taken just now, if they are not. The operator's urgent work is not refused because others fill
    /// the store: a twentieth is kept for it.
    pub(super) fn closed_door(&self, app: &Arc<str>, recipients: u64, operators: bool) -> Option<Failure> {
        let gates = &self.store.gates;
        if gates.draining.load(Ordering::Relaxed) {
            return Some(Failure::later(Code::ShuttingDown, "the daemon takes no new messages: it is draining", 5.0));
        }
        if gates.low_space.load(Ordering::Relaxed) {
            return Some(Failure::later(Code::ReadOnly, "the disk is almost full: no new messages are taken", 5.0));
        }
        let most = self.settings.max_pending;
        let full = match operators {
            true => self.pending.total() + recipients > most.saturating_add(most / 20),
            false => recipients > self.pending.room(app),
        };
        gates.set_full_of(app, full);
        full.then(|| {
            let message = "messages.max_pending deliveries are waiting already, with the parts that are kept for other apps";
            Failure::later(Code::Overloaded, message, 5.0)
        })
    }

    /// Whether one more `test` of an app may wait for its results.
    fn may_watch(&mut self, app: &Arc<str>) -> bool {
        if self.watched.room(app) == 0 {
            // What a command ended, or nobody waits for any more, tells no results.
            let left = |_: &MessageId, watch: &mut Watch| !watch.results.is_closed();
            for (_, watch) in self.watches.extract_if(|id, watch| !left(id, watch)) {
                self.watched.sub(&watch.app, 1);
            }
        }
        self.watched.room(app) > 0
    }

    /// Why an app may not have one more list that is open, if it may not.
    fn too_many_open(&self, app: &Arc<str>) -> Option<Failure> {
        (self.open_lists.room(app) == 0).then(|| {
            let message =
                "messages.max_open lists, streams and campaigns are open already, with the parts that are kept for other apps";
            Failure::later(Code::Overloaded, message, 5.0)
        })
    }

    pub(super) fn take_send(&mut self, new: NewMessage, group: &mut Group) -> Result<Done, Failure> {
        if let Some((key, fingerprint)) = &new.idempotency
            && let Some(first) = self.first_answer(key, fingerprint, group)?
        {
            return Ok(first);
        }
        let NewMessage {
            mut message,
            encoded,
            mut recipients,
            mut rejected,
            idempotency,
            paused,
            rate,
            spread,
            fallback,
            mut keys,
            new_origins,
            watch,
            operators,
        } = new;
        let (mut unsent, mut accounts) = (Vec::new(), Vec::new());
        if let NewRecipients::Addressed(to, resolved) = &mut recipients {
            let mut resolved = std::mem::take(resolved);
            self.resolve(to, &mut resolved, &message.app, message.scope.as_ref(), None, group)?;
            let resolved = *resolved;
            if let (true, Some(first)) = (resolved.recipients.is_empty(), resolved.rejected.first()) {
                return Err(Failure { problem: first.problem.clone(), retry_after: None, position: None });
            }
            rejected = u32::try_from(resolved.rejected.len()).unwrap_or(u32::MAX);
            keys = resolved.keys.into_iter().map(|((service, key), count)| (service, key, count)).collect();
            (unsent, accounts) = (resolved.rejected, resolved.accounts);
            let paced = rate.is_some() || spread.is_some();
            recipients = if resolved.recipients.len() > SINGLE_RECIPIENTS_MAX || paced {
                let chunks = commit::addressed_chunks(resolved.recipients, &message.app, message.topic.as_deref());
                NewRecipients::List { chunks, closed: true }
            } else {
                NewRecipients::Single(commit::parts(resolved.recipients, &message))
            };
        }
        let count = match &recipients {
            NewRecipients::Single(parts) => parts.iter().map(|part| part.recipients.len() as u64).sum::<u64>(),
            NewRecipients::List { chunks, .. } => chunks.iter().map(|chunk| u64::from(chunk.count)).sum(),
            NewRecipients::Addressed(..) | NewRecipients::Campaign(_) => 0,
        };
        let operators = operators && message.urgency == Urgency::High;
        if let Some(failure) = self.closed_door(&message.app, count, operators) {
            return Err(failure);
        }
        if let NewRecipients::List { .. } | NewRecipients::Campaign(_) = &recipients
            && let Some(failure) = self.too_many_open(&message.app)
        {
            return Err(failure);
        }
        if watch.is_some() && !self.may_watch(&message.app) {
            return Err(Failure::later(Code::Overloaded, "as many tests wait for their results as may", 5.0));
        }
        if paused && let NewRecipients::Single(_) = &recipients {
            self.may_have_rules(&message.app, 1)?;
        }
        let place = u16::try_from(group.places).expect("a group is closed long before its places are used up");
        message.id = MessageId::new(group.now, group.commit, place, group.random());
        let id = message.id;
        let rules = self.store.rules.load();
        let held = paused || rules.pauses(id, &message.app, message.label.as_ref());
        drop(rules);
        let state = state_of(held, message.at, group.now);
        let single = matches!(recipients, NewRecipients::Single(_));
        let (expires, app, label) = (message.expires, message.app.clone(), message.label.clone());
        let mut addressed: Vec<(SubscriptionId, DeliveryId)> = Vec::new();
        if let Some(results) = watch
            && count > 0
        {
            self.watched.add(&app, 1);
            self.watches.insert(id, Watch { app: app.clone(), results, left: usize::try_from(count).unwrap_or(usize::MAX) });
        }
        self.learn_origins(new_origins, group)?;
        for (service, key, count) in keys {
            let counts = Counts { recipients: count, ..Counts::default() };
            self.stats.taken(&self.store, StatsKey::new(group.now, &app, label.as_ref(), service, Some(key)), &counts);
        }
        if rejected > 0 {
            let counts = Counts { rejected: u64::from(rejected), ..Counts::default() };
            let first_key = self.settings.first_keys.get(&app).copied();
            self.stats.taken(&self.store, StatsKey::new(group.now, &app, label.as_ref(), Service::OTHER, first_key), &counts);
        }
        match recipients {
            NewRecipients::Single(parts) => {
                // Parked here, it can be withdrawn from the moment it is answered.
                let waits = paused || message.at > group.now || message.when_offline;
                let mut head = Head {
                    id,
                    app: app.clone(),
                    label: label.clone(),
                    reference: message.reference.clone(),
                    at: message.at,
                    expires,
                    rejected,
                    recipients: Vec::with_capacity(1),
                };
                // One that reaches nobody has a place too, or the next message would have its id but for eight random bits.
                group.places += parts.iter().map(|part| part.recipients.len()).sum::<usize>().max(1);
                let holder = Holder::Message(id);
                if paused {
                    self.set_rule_paused(&holder, Some(&app), group, true)?;
                }
                let encoded = commit::with_id(encoded, id);
                let message = Arc::new(message.clone());
                for part in parts {
                    let lane = commit::lane(part.service, message.urgency);
                    let n = u16::try_from(part.recipients.len()).expect("a single has at most 64 recipients");
                    let first = if waits {
                        self.put_waiting(&part, lane, &message, paused.then_some(&holder), group)?
                    } else {
                        let first = group.push_work(lane, &encoded, &part.encoded, n, expires);
                        DeliveryId { batch: BatchId::Commit { commit: group.commit, lane, piece: first.0 }, index: first.1 }
                    };
                    let mut topics = part.topics.into_iter();
                    for (offset, (recipient, subscription)) in (0..).zip(part.recipients.into_iter().zip(part.subscriptions)) {
                        let delivery = DeliveryId { index: first.index + offset, ..first };
                        if let Some(topic) = topics.next() {
                            self.put_topic(topic, delivery, id, expires, group)?;
                        }
                        let account = recipient.registered.and_then(|registered| registered.account);
                        if fallback.is_some() {
                            addressed.push((subscription, delivery));
                        }
                        head.recipients.push(HeadRecipient {
                            id: delivery,
                            subscription,
                            account,
                            reference: recipient.reference,
                        });
                    }
                }
                group.heads.push(head);
            }
            NewRecipients::List { chunks, closed } => {
                group.places += 1;
                let key = ListKey::of(id);
                let mut state = ListState { closed, paused, rate, ..ListState::default() };
                state.counts.rejected = u64::from(rejected);
                let list = Arc::new(List::new(message.clone(), spread, None, fallback.is_some(), state));
                self.put_list(key, &list, &commit::with_id(encoded, id), group)?;
                if fallback.is_some() {
                    addressed = addressed_in(&chunks, key, message.urgency);
                }
                self.put_chunks(key, &list, chunks, group)?;
            }
            NewRecipients::Campaign(segment) => {
                group.places += 1;
                let key = ListKey::of(id);
                let number = self.store.registry.app(&app).unwrap_or(0);
                let wanted = Some(Wanted { app: number, scope: message.scope.clone(), segment });
                // Who comes later is not in it. If it begins later, that is decided then.
                let begins = state_of(paused, message.at, group.now) == State::Sending;
                let walks = begins.then(|| self.walks_from_now());
                let state = ListState { paused, rate, walks, ..ListState::default() };
                let list = Arc::new(List::new(message.clone(), spread, wanted, false, state));
                self.put_list(key, &list, &commit::with_id(encoded, id), group)?;
                let counts = list_counts_row(&list_state(&list));
                let reader = self.store.reader()?;
                group.rows.put(&reader, family::MESSAGE, message_key(key, MessageRow::Counts), counts);
                drop(reader);
                self.put_list_state(key, &list, group)?;
            }
            NewRecipients::Addressed(..) => unreachable!("resolved above"),
        }
        if let Some(after) = fallback {
            self.put_fallbacks(&message, after, accounts, &addressed, group);
        }
        self.count_pending(&message.app, count, group);
        let done = Done::Taken {
            message_id: id,
            state: if count == 0 && single { State::Done } else { state },
            expires,
            recipients: count,
            duplicate: false,
            position: None,
            rejected: unsent,
        };
        if let Some((key, fingerprint)) = idempotency {
            let mut row = Put::default();
            row.u64(group.now.plus(IDEMPOTENCY_MILLIS).0).bytes(&fingerprint).u128(id.0).u64(expires.0).u64(count);
            row.u8(state as u8);
            let reader = self.store.reader()?;
            group.rows.put(&reader, family::IDEMPOTENCY, &key, &row.0);
            group.idempotency.insert(key, (fingerprint, done.clone()));
        }
        Ok(done)
    }

    /// So many deliveries more wait, from the group on.
    fn count_pending(&mut self, app: &Arc<str>, count: u64, group: &mut Group) {
        self.store.pending.fetch_add(count, Ordering::Relaxed);
        self.pending.add(app, count);
        match group.added.iter_mut().find(|(of, _)| of == app) {
            Some((_, added)) => *added += count,
            None => group.added.push((app.clone(), count)),
        }
    }

    /// The first row of a list or a campaign.
    fn put_list(&mut self, key: ListKey, list: &Arc<List>, message: &[u8], group: &mut Group) -> Result<(), Failure> {
        let row = list_message_row(message, list);
        let reader = self.store.reader()?;
        group.rows.put(&reader, family::MESSAGE, message_key(key, MessageRow::Message), row);
        drop(reader);
        group.undo_lists.insert(key, None);
        self.store.lists.insert(key, list.clone());
        self.open_lists.add(&list.message.app, 1);
        Ok(())
    }

    /// The answer that this idempotency key had before, or the conflict.
    pub(super) fn first_answer(&self, key: &[u8], fingerprint: &[u8; 16], group: &Group) -> Result<Option<Done>, Failure> {
        let first = match group.idempotency.get(key) {
            Some((known, done)) => Some((*known, done.clone())),
            None => match self.store.reader()?.value(family::IDEMPOTENCY, key)? {
                None => None,
                Some(row) => match read_idempotency(row, group.now) {
                    Ok(found) => found,
                    Err(record::Corrupt) => {
                        self.store.corrupt(family::IDEMPOTENCY);
                        None
                    }
                },
            },
        };
        let Some((known, done)) = first else { return Ok(None) };
        if known != *fingerprint {
            return Err(Failure::of(
                Code::Conflict,
                Some("idempotency_key"),
                "this idempotency_key was used with another request",
            ));
        }
        let Done::Taken { message_id, state, expires, recipients, rejected, .. } = done else { return Ok(None) };
        let key = ListKey::of(message_id);
        let position = match self.store.lists.get(key) {
            Some(list) => list_state(&list).position.clone(),
            None => self.store.stored_list(key)?.and_then(|list| list_state(&list).position.clone()),
        };
        Ok(Some(Done::Taken { message_id, state, expires, recipients, duplicate: true, position, rejected }))
    }

    pub(super) fn learn_origins(&self, new: Vec<(Service, crate::message::Origin)>, group: &mut Group) -> Result<(), Failure> {
        for (service, origin) in new {
            if !self.store.services.knows(service, &origin.0) {
                // Two are enough: from then on the service's origins close one by one.
                let mut row = b"origin/".to_vec();
                row.extend_from_slice(&service.0.to_be_bytes());
                row.extend_from_slice(origin.0.as_bytes());
                let reader = self.store.reader()?;
                group.rows.put(&reader, family::META, &row, []);
                drop(reader);
                group.origins.push(row);
                self.store.services.learn(service, origin);
            }
        }
        Ok(())
    }

    /// Rows of `due` for a part that waits from the start.
    pub(super) fn put_waiting(
        &mut self,
        part: &commit::Part,
        lane: Lane,
        message: &Arc<crate::message::Message>,
        paused: Option<&Holder>,
        group: &mut Group,
    ) -> Result<DeliveryId, Failure> {
        let n = u16::try_from(part.recipients.len()).expect("a single has at most 64 recipients");
        let next = group.waiting.entry(lane).or_default();
        let first = *next;
        *next += n;
        let batch = BatchId::Commit { commit: group.commit, lane, piece: WAITING_PIECE };
        let reader = self.store.reader()?;
        let presence = lock(&self.store.presence);
        for (index, recipient) in (first..).zip(&part.recipients) {
            let account = recipient.registered.and_then(|registered| registered.account);
            let online = account.filter(|who| message.when_offline && presence.holds_back(*who, group.now));
            let (time, holder) = match (paused, online) {
                (Some(holder), _) => (message.expires, Some(holder.clone())),
                (None, _) if message.at > group.now => (message.at, None),
                (None, Some(who)) => (message.expires, Some(Holder::Account(who))),
                (None, None) => (group.now, None),
            };
            let delivery = Delivery {
                id: DeliveryId { batch, index },
                message: message.clone(),
                recipient: recipient.clone(),
                attempts: 0,
                tried_keys: 0,
                shrink: false,
                due: None,
                account: None,
                lost: None,
                unproven: false,
            };
            let due = DueKey { lane, time, delivery: delivery.id };
            group.rows.put(&reader, family::DUE, due.encode(), record::due_row(&delivery));
            if let Some(holder) = &holder {
                group.rows.put(&reader, family::HELD, held_key(holder, &due), []);
            }
            if let (Some(Holder::Account(who)), Some(free)) = (&holder, online.and_then(|who| presence.free_at(who, group.now))) {
                // With the presence that it waits for: after a crash somebody must let it go.
                let until = free.0.saturating_sub(self.settings.grace);
                group.registry.put(family::INDEX, presence_key(*who), crate::store::rows::number(until));
            }
            let earliest = group.due.entry(lane).or_insert(time);
            *earliest = (*earliest).min(time);
        }
        Ok(DeliveryId { batch, index: first })
    }

    pub(super) fn put_chunks(
        &mut self,
        key: ListKey,
        list: &Arc<List>,
        chunks: Vec<Chunk>,
        group: &mut Group,
    ) -> Result<(), Failure> {
        for chunk in chunks {
            self.learn_origins(chunk.new_origins, group)?;
            for (service, app_key, count) in chunk.keys {
                let counts = Counts { recipients: count, ..Counts::default() };
                let of = StatsKey::new(group.now, &list.message.app, list.message.label.as_ref(), service, Some(app_key));
                self.stats.taken(&self.store, of, &counts);
            }
            let number = {
                let mut state = list_state(list);
                state.counts.recipients += u64::from(chunk.count);
                let next = state.chunks.entry(chunk.service).or_insert(0);
                *next += 1;
                *next - 1
            };
            let row =
                ChunkKey { commit: key.commit, place: key.place, service: chunk.service, chunk: number, count: chunk.count };
            let reader = self.store.reader()?;
            group.rows.put(&reader, family::LIST, row.encode(), &chunk.row);
            drop(reader);
            let batch = row.batch(list.message.urgency);
            for (index, topic) in (0..).zip(chunk.topics) {
                self.put_topic(topic, DeliveryId { batch, index }, list.message.id, list.message.expires, group)?;
            }
        }
        self.put_list_state(key, list, group)
    }

    pub(super) fn put_list_state(&self, key: ListKey, list: &List, group: &mut Group) -> Result<(), Failure> {
        let state = list_state(list);
        let row = list_state_row(&state);
        let reader = self.store.reader()?;
        group.rows.put(&reader, family::MESSAGE, message_key(key, MessageRow::State), row);
        group.lists.push(key);
        Ok(())
    }

    /// What this topic has waiting for the recipient is superseded.
    pub(super) fn put_topic(
        &mut self,
        topic: [u8; 16],
        delivery: DeliveryId,
        id: MessageId,
        expires: UnixMillis,
        group: &mut Group,
    ) -> Result<(), Failure> {
        let older = match group.topics.insert(topic, (delivery, id)) {
            some @ Some(_) => some,
            None => match self.store.reader()?.value(family::TOPIC, topic)? {
                None => None,
                Some(row) => read_topic(row).ok(),
            },
        };
        group.superseded.extend(older);
        let mut row = Put::default();
        // Wherever the older one waits, it has ended when its time is over.
        row.u64(expires.0).bytes(&key::batch_key(&delivery.batch)).u16(delivery.index).u128(id.0);
        let reader = self.store.reader()?;
        group.rows.put(&reader, family::TOPIC, topic, &row.0);
        Ok(())
    }

    pub(super) fn open_list(&self, id: MessageId, apps: &Apps) -> Result<(ListKey, Arc<List>), Failure> {
        let key = ListKey::of(id);
        match self.store.lists.get(key) {
            Some(list) if list.message.id == id && apps.contains(&list.message.app) => Ok((key, list)),
            _ => match self.store.list_message(key)? {
                Some(message) if message.id == id && apps.contains(&message.app) => {
                    Err(Failure::of(Code::Conflict, Some("message_id"), "this message has ended"))
                }
                _ => Err(Failure::of(Code::NotFound, Some("message_id"), "no such message")),
            },
        }
    }

    pub(super) fn take_add(
        &mut self,
        id: MessageId,
        chunks: Vec<Chunk>,
        rejected: u32,
        step: Option<Step>,
        apps: &Apps,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let (key, list) = self.open_list(id, apps)?;
        if let Some(done) = self.repeated(&list, step.as_ref())? {
            return Ok(done);
        }
        if list_state(&list).closed {
            return Err(Failure::of(Code::Conflict, Some("message_id"), "this stream is closed"));
        }
        let count: u64 = chunks.iter().map(|chunk| u64::from(chunk.count)).sum();
        if let Some(failure) = self.closed_door(&list.message.app, count, false) {
            return Err(failure);
        }
        group.remember(key, &list);
        {
            let mut state = list_state(&list);
            state.counts.rejected += u64::from(rejected);
            if let Some(step) = step {
                state.position = Some(step.position);
            }
        }
        self.put_chunks(key, &list, chunks, group)?;
        self.count_pending(&list.message.app, count, group);
        let state = list_state(&list);
        Ok(Done::Added { recipients: state.counts.recipients, duplicate: false, position: state.position.clone() })
    }

    pub(super) fn take_close(
        &mut self,
        id: MessageId,
        step: Option<Step>,
        apps: &Apps,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let (key, list) = match self.open_list(id, apps) {
            Ok(found) => found,
            // A repeated `close` of a stream that has ended meanwhile.
            Err(failure) if failure.problem.code == Code::Conflict => {
                return Ok(Done::Added { recipients: 0, duplicate: true, position: step.map(|step| step.position) });
            }
            Err(failure) => return Err(failure),
        };
        if let Some(done) = self.repeated(&list, step.as_ref())? {
            // The add that brought this position is not the close.
            if list_state(&list).closed {
                return Ok(done);
            }
        }
        group.remember(key, &list);
        let (duplicate, done) = {
            let mut state = list_state(&list);
            let duplicate = state.closed;
            state.closed = true;
            if let Some(step) = step {
                state.position = Some(step.position);
            }
            (duplicate, state.done())
        };
        if done {
            // Its last recipient has ended already: nothing else would bring it to the checkpoint that ends it.
            self.checkpoint.touch();
            self.checkpoint.lists.insert(key, list.clone());
        }
        self.put_list_state(key, &list, group)?;
        let state = list_state(&list);
        Ok(Done::Added { recipients: state.counts.recipients, duplicate, position: state.position.clone() })
    }

    /// A step whose position is the kept one was taken before; one that does not follow the kept one is refused.
    pub(super) fn repeated(&self, list: &List, step: Option<&Step>) -> Result<Option<Done>, Failure> {
        let Some(step) = step else { return Ok(None) };
        let state = list_state(list);
        if state.position.as_ref() == Some(&step.position) {
            let position = state.position.clone();
            return Ok(Some(Done::Added { recipients: state.counts.recipients, duplicate: true, position }));
        }
        if step.previous != state.position {
            let mut failure =
                Failure::of(Code::Conflict, Some("previous"), "previous is not the position that this message has reached");
            failure.position = Some(state.position.clone().unwrap_or_else(|| "null".into()));
            return Err(failure);
        }
        Ok(None)
    }
}

fn state_of(held: bool, at: UnixMillis, now: UnixMillis) -> State {
    match () {
        () if held => State::Paused,
        () if at > now => State::Scheduled,
        () => State::Sending,
    }
}

/// Where the recipients of a new list will be, for its fallbacks.
fn addressed_in(chunks: &[Chunk], key: ListKey, urgency: Urgency) -> Vec<(SubscriptionId, DeliveryId)> {
    let mut numbers: BTreeMap<Service, u32> = BTreeMap::new();
    let mut found = Vec::new();
    for chunk in chunks {
        let number = numbers.entry(chunk.service).or_default();
        let of = ChunkKey { commit: key.commit, place: key.place, service: chunk.service, chunk: *number, count: chunk.count };
        *number += 1;
        let mut take = Take::new(Bytes::copy_from_slice(&chunk.row[1..]));
        for index in 0..chunk.count {
            let Ok(recipient) = record::take_recipient(&mut take) else { break };
            found.push((recipient.subscription_id(), DeliveryId { batch: of.batch(urgency), index }));
        }
    }
    found
}

/// The piece number of singles that wait by themselves from the start (`at`, `paused`): they lie in no row of `work`.
pub(super) const WAITING_PIECE: u16 = 0x8000;

/// How long lines are taken into one group: what an urgent line of another socket waits for, twice at most.
const GROUP_TIME: Duration = Duration::from_millis(5);
/// Singles between two looks at the clock.
const LOOK_EVERY: u32 = 32;

/// Deliveries that a group supersedes, at most: each is looked up and ended when the group is on disk.
const GROUP_SUPERSEDED: usize = 128;

/// Recipients of singles in one group commit, at most; well below the 65,536 that places allow.
pub(super) const COMMIT_RECIPIENTS: usize = 4_096;

/// A group commit under construction.
pub(super) struct Group {
    pub(super) commit: u64,
    pub(super) now: UnixMillis,
    pub(super) rows: Rows,
    pub(super) work: BTreeMap<Lane, Vec<WorkRow>>,
    pub(super) waiting: BTreeMap<Lane, u16>,
    pub(super) heads: Vec<Head>,
    pub(super) places: usize,
    /// Deliveries that it adds, by app.
    pub(super) added: Vec<(Arc<str>, u64)>,
    /// A label or an app was cancelled: the sweep is told when that is on disk.
    pub(super) cancels: bool,
    pub(super) idempotency: HashMap<Vec<u8>, ([u8; 16], Done)>,
    /// What its lines tell of.
    pub(super) events: Events,
    /// What its lines change of the registry.
    pub(super) registry: Overlay,
    /// Who is erased, up to which message; and what the sweep has to do for that.
    pub(super) erased: Vec<(Holder, Upto)>,
    pub(super) erasures: Vec<Erasure>,
    /// Accounts that were switched, and to what.
    pub(super) switched: Vec<(App, AccountHash, bool)>,
    pub(super) topics: HashMap<[u8; 16], (DeliveryId, MessageId)>,
    pub(super) superseded: Vec<(DeliveryId, MessageId)>,
    pub(super) lists: Vec<ListKey>,
    pub(super) due: BTreeMap<Lane, UnixMillis>,
    /// Rows of origins that were met for the first time.
    pub(super) origins: Vec<Vec<u8>>,
    /// What to restore if the batch cannot be written.
    pub(super) undo_lists: HashMap<ListKey, Option<ListState>>,
    pub(super) random: [u8; 256],
    pub(super) random_next: usize,
}

impl Group {
    pub(super) fn new(commit: u64, now: UnixMillis) -> Group {
        Group {
            commit,
            now,
            rows: Rows::new(),
            work: BTreeMap::new(),
            waiting: BTreeMap::new(),
            heads: Vec::new(),
            places: 0,
            added: Vec::new(),
            cancels: false,
            idempotency: HashMap::new(),
            events: Events::default(),
            registry: Overlay::default(),
            erased: Vec::new(),
            erasures: Vec::new(),
            switched: Vec::new(),
            topics: HashMap::new(),
            superseded: Vec::new(),
            lists: Vec::new(),
            due: BTreeMap::new(),
            origins: Vec::new(),
            undo_lists: HashMap::new(),
            random: [0; 256],
            random_next: 256,
        }
    }

    /// Whether nothing has to be written for it.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.registry.is_empty() && self.work.is_empty() && self.heads.is_empty()
    }

    /// Where the next message of this group will be: a rule concerns those before it.
    pub(super) fn next_message(&self) -> Upto {
        (self.commit, u16::try_from(self.places).expect("a group is closed long before its places are used up"))
    }

    /// Eight bits that make ids unguessable from their neighbours' a little.
    pub(super) fn random(&mut self) -> u8 {
        if self.random_next == self.random.len() {
            // Without random numbers ids are still unique.
            let _unguessable = aws_lc_rs::rand::fill(&mut self.random);
            self.random_next = 0;
        }
        self.random_next += 1;
        self.random[self.random_next - 1]
    }

    /// Appends recipients of a single to the lane's last row, or to a new one; gives its piece and the first index.
    pub(super) fn push_work(
        &mut self,
        lane: Lane,
        message: &[u8],
        recipients: &[u8],
        count: u16,
        expires: UnixMillis,
    ) -> (u16, u16) {
        let rows = self.work.entry(lane).or_default();
        let full = rows
            .last()
            .is_none_or(|row| usize::from(row.count()) + usize::from(count) > PIECE_RECIPIENTS_MAX || row.len() > PIECE_BYTES);
        if full {
            rows.push(WorkRow::default());
        }
        let piece = u16::try_from(rows.len() - 1).expect("a commit has at most 65,536 recipients");
        let row = rows.last_mut().expect("one was pushed");
        (piece, row.push(message, recipients, count, expires))
    }

    /// Keeps the list's state as it is, in case the group cannot be written.
    pub(super) fn remember(&mut self, key: ListKey, list: &List) {
        self.undo_lists.entry(key).or_insert_with(|| Some(list_state(list).clone()));
    }
}

/// An error of one line.
pub(super) struct Failure {
    pub(super) problem: Problem,
    pub(super) retry_after: Option<f64>,
    pub(super) position: Option<Box<str>>,
}

impl Failure {
    pub(super) fn of(code: Code, field: Option<&str>, message: &str) -> Failure {
        let problem = Problem { code, field: field.map(str::to_owned), message: message.to_owned() };
        Failure { problem, retry_after: None, position: None }
    }

    pub(super) fn later(code: Code, message: &str, retry_after: f64) -> Failure {
        Failure { retry_after: Some(retry_after), ..Failure::of(code, None, message) }
    }

    pub(super) fn into_done(self) -> Done {
        Done::Failed { problem: self.problem, retry_after: self.retry_after, position: self.position }
    }
}

impl From<ReadError> for Failure {
    fn from(_: ReadError) -> Failure {
        Failure::later(Code::Internal, "the store cannot be read just now", 5.0)
    }
}

pub(super) fn read_only() -> Done {
    Failure::later(Code::ReadOnly, "there is no space on the disk, or no descriptor for a file: nothing can be written", 5.0)
        .into_done()
}
