//! What waits for a person: messages with `when: offline` while their account is online, `mark_read`, and fallbacks. Presence and
//! parking are decided here, by one thread.

use bytes::Bytes;

use crate::clock;
use crate::message::{AccountHash, DeliveryId, Ending, MessageId, SubscriptionId, SubscriptionKey, UnixMillis};
use crate::protocol::reason;
use crate::protocol::request::{Code, Read, Whose};
use crate::store::commit::{Apps, Done, topic_key};
use crate::store::key::{self, ChunkKey};
use crate::store::live::{Holder, List, lock};
use crate::store::presence::Presence;
use crate::store::record;
use crate::store::registry::account_hash;
use crate::store::registry::row::{self, Fallback};
use crate::store::writer::accept::{Failure, Group};
use crate::store::writer::command::{Caught, Found, Pursuit};
use crate::store::writer::event::{Event, What};
use crate::store::writer::rows::{holder_row, read_topic, rule_key};
use crate::store::writer::{CHECKPOINT_ROWS, Decided, Writer};
use crate::store::{ReadError, Store, family};

impl Writer {
    pub(super) fn take_presence(
        &mut self,
        who: &Whose,
        online: bool,
        lease: Option<f64>,
        session: Option<&str>,
        apps: &Apps,
        group: &Group,
    ) -> Result<Done, Failure> {
        let mut told = None;
        if online {
            let presence = lock(&self.store.presence);
            let numbers = who.apps(apps).iter().filter_map(|app| self.store.registry.app(app));
            for number in numbers {
                if !presence.has_room(number, account_hash(number, &who.account), session, group.now) {
                    return Err(Failure::later(Code::Overloaded, "as many accounts are online as may be held", 60.0));
                }
            }
        }
        for app in who.apps(apps) {
            let Some(number) = self.store.registry.app(app) else { continue };
            let hash = account_hash(number, &who.account);
            let lease = lease.map(|seconds| (seconds * 1_000.0) as u64);
            told = Some(lock(&self.store.presence).told(number, hash, online, lease, session, group.now));
        }
        let online = told.is_some_and(|told| told.online);
        Ok(Done::Presence { online, until: told.and_then(|told| told.until) })
    }

    /// Lets go what waited for accounts that have been offline for the grace.
    pub(super) fn release_present(&mut self) {
        let (freed, changed) = {
            let mut presence = lock(&self.store.presence);
            let freed = presence.freed(clock::now());
            // Written with the next checkpoint that there is, but at least when somebody becomes free.
            let room = CHECKPOINT_ROWS.saturating_sub(self.checkpoint.rows.len());
            let changed = if freed.is_empty() && !self.checkpoint.dirty() { Vec::new() } else { presence.changed(room) };
            (freed, changed)
        };
        for (who, until) in changed {
            let value = until.map(|until| crate::store::rows::number(until.0));
            self.checkpoint.touch();
            self.checkpoint.rows.push((family::INDEX, row::presence_key(who), value));
        }
        for who in freed {
            let holder = Holder::Account(who);
            self.checkpoint.touch();
            self.checkpoint.rows.push((family::META, rule_key("release", &holder), Some(holder_row(&holder))));
            self.releasing.push_back(holder);
        }
    }

    /// Withdraws what of a message or a topic has not left yet for an account: it has been read.
    pub(super) fn take_mark_read(&mut self, who: &Whose, what: &Read, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let of = who.apps(apps);
        let mut withdrawn = 0;
        match what {
            Read::Message(id) => {
                let hashes: Vec<AccountHash> =
                    of.iter().filter_map(|app| Some(account_hash(self.store.registry.app(app)?, &who.account))).collect();
                let waiting = match self.find_message(*id, apps) {
                    Ok(Found::Ended) => Vec::new(),
                    Ok(Found::Single(head)) => {
                        let own = head.recipients.iter().filter(|one| one.account.is_some_and(|who| hashes.contains(&who)));
                        own.map(|one| one.id).collect()
                    }
                    Ok(Found::List(_, list)) => self.deliveries_to(&list, &hashes)?,
                    Err(failure) => return Err(failure),
                };
                for delivery in waiting {
                    withdrawn += self.withdraw(delivery, *id, group.now);
                }
            }
            Read::Topic(topic) => {
                for app in of {
                    let Some(number) = self.store.registry.app(app) else { continue };
                    for known in self.store.account_subscriptions(number, &who.account)? {
                        if let Some((delivery, id)) = self.waiting_topic(app, known.key, known.id, topic, group)? {
                            withdrawn += self.withdraw(delivery, id, group.now);
                        }
                    }
                }
            }
        }
        Ok(Done::Withdrawn(withdrawn))
    }

    fn withdraw(&mut self, delivery: DeliveryId, id: MessageId, now: UnixMillis) -> u64 {
        let pursuit = Pursuit { id, ending: Ending::Cancelled, reason: reason::READ };
        match self.catch(delivery, &pursuit, now) {
            Caught::Ended => 1,
            Caught::EndedBefore => 0,
            // In flight: if it would be tried again, it ends instead.
            Caught::Busy | Caught::Nowhere => {
                self.pursued.insert(delivery, pursuit);
                0
            }
        }
    }

    fn waiting_topic(
        &self,
        app: &str,
        key: SubscriptionKey,
        id: SubscriptionId,
        topic: &str,
        group: &Group,
    ) -> Result<Option<(DeliveryId, MessageId)>, ReadError> {
        let registered = crate::message::Registered { key, id, account: None };
        let at = topic_key(app, &crate::message::Recipient::unread(registered), topic);
        if let Some(found) = group.topics.get(&at) {
            return Ok(Some(*found));
        }
        let row = self.store.reader()?.value(family::TOPIC, at)?;
        Ok(row.and_then(|row| read_topic(row).ok()))
    }

    /// The deliveries of a list that are addressed to these accounts.
    fn deliveries_to(&self, list: &List, accounts: &[AccountHash]) -> Result<Vec<DeliveryId>, ReadError> {
        let id = list.message.id;
        let mut found = Vec::new();
        let prefix = key::list_prefix(id.commit(), id.place());
        self.store.reader()?.scan(family::LIST, &prefix, &key::after_prefix(&prefix), |row, value| {
            let Ok(key) = ChunkKey::decode(row) else { return true };
            let batch = key.batch(list.message.urgency);
            let wanted: Vec<u16> = (0..key.count).collect();
            let value = Bytes::copy_from_slice(value);
            // All recipients of a list came with their keys, or all are of the registry: only the latter have accounts, and a list of
            // millions of the former is not read.
            let mut registered = true;
            let first = &wanted[..wanted.len().min(1)];
            let _set_aside = record::read_chunk_row(&value, batch, &list.message, first, |delivery| {
                registered = delivery.recipient.registered.is_some();
            });
            if !registered {
                return false;
            }
            let _set_aside = record::read_chunk_row(&value, batch, &list.message, &wanted, |delivery| {
                let account = delivery.recipient.registered.and_then(|registered| registered.account);
                if account.is_some_and(|account| accounts.contains(&account)) {
                    found.push(delivery.id);
                }
            });
            true
        })?;
        Ok(found)
    }

    // ---- fallbacks ----

    /// Notes when it is to be decided whether somebody was reached, account by account; at once where there is nobody to reach.
    pub(super) fn put_fallbacks(
        &mut self,
        message: &crate::message::Message,
        after: u64,
        accounts: Vec<(crate::message::Account, Vec<SubscriptionId>)>,
        deliveries: &[(SubscriptionId, DeliveryId)],
        group: &mut Group,
    ) {
        for (n, (account, ids)) in (0..).zip(accounts) {
            let own = |id: &SubscriptionId| deliveries.iter().find(|(of, _)| of == id).map(|(of, delivery)| (*delivery, *of));
            let fallback = Fallback {
                id: message.id,
                app: message.app.clone(),
                account,
                label: message.label.clone(),
                reference: message.reference.clone(),
                when_offline: message.when_offline,
                shown: message.receipt_at.is_some(),
                after,
                expires: message.expires,
                deliveries: ids.iter().filter_map(own).collect(),
            };
            if ids.is_empty() {
                self.event_of_group(&unreachable_event(&fallback, "no_subscription", group.now), group);
            } else {
                let at = row::fallback_key(message.at.max(group.now).plus(after), message.id, n);
                group.registry.put(family::INDEX, at, fallback.encode());
            }
        }
    }

    pub(super) fn decide_fallback(&mut self, key: Vec<u8>, fallback: Fallback, decided: Decided) {
        self.checkpoint.touch();
        match decided {
            Decided::Unreachable => {
                let reason = if fallback.shown { "not_shown" } else { "not_accepted" };
                self.event(&unreachable_event(&fallback, reason, clock::now()));
            }
            Decided::Reached => {}
            Decided::Again(time) => {
                let mut again = row::fallback_key(time, fallback.id, 0);
                // The account's number among those of the message stays.
                let n = again.len() - 2;
                again[n..].copy_from_slice(&key[key.len() - 2..]);
                self.checkpoint.rows.push((family::INDEX, again, Some(fallback.encode())));
            }
        }
        self.checkpoint.rows.push((family::INDEX, key, None));
    }
}

/// The event that nobody was reached.
fn unreachable_event<'a>(fallback: &'a Fallback, reason: &'static str, now: UnixMillis) -> Event<'a> {
    Event {
        time: now,
        what: What::Unreachable,
        id: Some(fallback.id),
        message_ref: fallback.reference.as_deref(),
        label: fallback.label.as_deref(),
        subscription: None,
        reference: None,
        account: Some(&fallback.account),
        app: &fallback.app,
        service: None,
        status: None,
        reason: Some(reason),
        count: None,
    }
}

/// Who counts as online at the start.
pub(super) fn load_presence(store: &Store, grace: u64) -> Result<(), ReadError> {
    let mut presence = Presence::new(grace);
    presence.share(store.registry.numbers());
    let now = clock::now();
    store.reader()?.scan(family::INDEX, &[5], &[6], |row, value| {
        if let (Some(who), Ok(until)) = (row.get(1..9), value.try_into()) {
            let who = AccountHash(who.try_into().expect("eight bytes"));
            presence.restore(who, UnixMillis(u64::from_be_bytes(until)), now);
        }
        true
    })?;
    *lock(&store.presence) = presence;
    Ok(())
}
