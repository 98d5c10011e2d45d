//! What changes the registry: subscriptions and accounts, in the commit that brings them; and what outcomes say of subscriptions,
//! in the checkpoint that settles them.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;

use crate::message::{
    Account, AccountHash, KeyId, MessageId, Name, Recipient, Registered, Service, SubscriptionId, SubscriptionKey, UnixMillis,
};
use crate::protocol::reason;
use crate::protocol::request::{Code, Erase, EventType, Problem, Rejected, Subscribe, Update, Whose};
use crate::store::commit::{Addressed, Apps, Done, Erasing, NewSubscription, Resolved};
use crate::store::live::{Holder, ListKey, subscription_hash};
use crate::store::record::Put;
use crate::store::registry::account_hash;
use crate::store::registry::row::{self, App, Detail, Kind, Posting, Subscription};
use crate::store::rows::number;
use crate::store::writer::Writer;
use crate::store::writer::accept::{Failure, Group};
use crate::store::writer::event::{Event, What};
use crate::store::{ReadError, Store, family};

/// `seen` is written once a day.
const SEEN_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// Names that are looked up between two looks at the clock.
const LOOKED_UP: usize = 16;

/// Both rows of a subscription.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    pub(super) subscription: Subscription,
    pub(super) detail: Detail,
}

impl Stored {
    pub(super) fn id(&self) -> SubscriptionId {
        SubscriptionId::of(self.subscription.recipient.endpoint.as_str())
    }
}

/// What outcomes say of a subscription: written with the checkpoint that settles them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Its push service does not know it any more, or its time is over.
    Gone(&'static str),
    Failed(&'static str),
    /// A message for this endpoint was accepted.
    Proven,
}

impl Writer {
    pub(super) fn app(&self, app: &str) -> Result<App, Failure> {
        self.store.registry.app(app).ok_or_else(|| Failure::of(Code::InvalidField, Some("app"), "is no app of this daemon"))
    }

    fn key_of(&self, app: App, id: SubscriptionId, group: &Group) -> Result<Option<SubscriptionKey>, ReadError> {
        let row = group.registry.value(&self.store, family::INDEX, row::id_key(app, id))?;
        Ok(row.and_then(|row| row::take_key(&row).ok()))
    }

    pub(super) fn stored(&self, key: SubscriptionKey, group: &Group) -> Result<Option<Stored>, ReadError> {
        let at = row::subscription_key(key);
        let Some(row) = group.registry.value(&self.store, family::SUBSCRIPTION, at.clone())? else { return Ok(None) };
        let detail = group.registry.value(&self.store, family::DETAIL, at)?;
        let decoded = Subscription::decode(row).and_then(|subscription| {
            let detail = detail.map(Detail::decode).transpose()?.unwrap_or_default();
            Ok(Stored { subscription, detail })
        });
        if decoded.is_err() {
            self.store.corrupt(family::SUBSCRIPTION);
        }
        Ok(decoded.ok())
    }

    fn find(&self, app: App, id: SubscriptionId, group: &Group) -> Result<Option<(SubscriptionKey, Stored)>, ReadError> {
        let Some(key) = self.key_of(app, id, group)? else { return Ok(None) };
        Ok(self.stored(key, group)?.map(|stored| (key, stored)))
    }

    /// A subscription in each of these apps that has it: an endpoint may be known to several.
    fn find_in(&self, apps: &Apps, id: SubscriptionId, group: &Group) -> Result<Vec<(SubscriptionKey, Stored)>, ReadError> {
        let numbers = apps.iter().filter_map(|app| self.store.registry.app(app));
        numbers.filter_map(|number| self.find(number, id, group).transpose()).collect()
    }

    pub(super) fn account_keys(&self, app: App, account: &str, group: &Group) -> Result<Vec<SubscriptionKey>, ReadError> {
        let keys = group.registry.keys(&self.store, family::INDEX, &row::account_prefix(app, account))?;
        Ok(keys.iter().filter_map(|key| row::take_key(key).ok()).collect())
    }

    // ---- one way in for every change ----

    /// Makes a subscription what it is to be: all rows that follow from it, and the counts.
    pub(super) fn put_stored(
        &mut self,
        key: SubscriptionKey,
        old: Option<&Stored>,
        new: Option<&Stored>,
        group: &mut Group,
    ) -> Result<(), ReadError> {
        self.recount(key, old, new);
        let at = row::subscription_key(key);
        let undo = self.settings.undo;
        let before = old.map_or_else(BTreeMap::new, |stored| derived(key, stored, undo));
        let after = new.map_or_else(BTreeMap::new, |stored| derived(key, stored, undo));
        for row in before.keys().filter(|row| !after.contains_key(*row)) {
            group.registry.delete(row.0, row.1.clone());
        }
        for (row, value) in after {
            if before.get(&row) != Some(&value) {
                group.registry.put(row.0, row.1, value);
            }
        }
        match (old, new) {
            (Some(old), Some(new)) if old.subscription == new.subscription => {}
            (_, Some(new)) => group.registry.put(family::SUBSCRIPTION, at.clone(), new.subscription.encode(account_hash)),
            (_, None) => group.registry.delete(family::SUBSCRIPTION, at.clone()),
        }
        match (old, new) {
            (Some(old), Some(new)) if old.detail == new.detail => {}
            (_, Some(new)) => group.registry.put(family::DETAIL, at, new.detail.encode()),
            (_, None) => group.registry.delete(family::DETAIL, at),
        }
        let mut changes: BTreeMap<Posting, i64> = BTreeMap::new();
        for (stored, step) in [(old, -1), (new, 1)] {
            for posting in stored.map_or_else(Vec::new, |stored| self.counted(stored)) {
                *changes.entry(posting).or_default() += step;
            }
        }
        self.count(changes, group)
    }

    /// The counts that a subscription is in: none if it cannot be reached.
    fn counted(&self, stored: &Stored) -> Vec<Posting> {
        let of = &stored.subscription;
        let disabled = of.account.as_ref().is_some_and(|account| self.store.registry.is_disabled(account_hash(of.app, account)));
        if disabled { Vec::new() } else { counted_if_enabled(stored) }
    }

    fn count(&self, changes: BTreeMap<Posting, i64>, group: &mut Group) -> Result<(), ReadError> {
        for (posting, change) in changes.into_iter().filter(|(_, change)| *change != 0) {
            let key = posting.count_key();
            let known = group.registry.value(&self.store, family::INDEX, key.clone())?;
            let known = known.and_then(|row| row.as_ref().try_into().ok().map(u64::from_be_bytes)).unwrap_or(0);
            match known.saturating_add_signed(change) {
                0 => group.registry.delete(family::INDEX, key),
                count => group.registry.put(family::INDEX, key, number(count)),
            }
        }
        Ok(())
    }

    fn new_key(&mut self, service: Service, group: &mut Group) -> SubscriptionKey {
        let next = self.next_serial.entry(service).or_insert(1);
        let key = SubscriptionKey { service, serial: *next };
        *next += 1;
        group.registry.put(family::INDEX, row::serial_key(service), number(*next));
        key
    }

    // ---- subscriptions ----

    pub(super) fn take_subscribe(&mut self, new: NewSubscription, group: &mut Group) -> Result<Done, Failure> {
        let NewSubscription { subscribe, id, first_key, new_origins, confirm } = new;
        if let Some(failure) = self.closed_door(&subscribe.app, 0, false) {
            return Err(failure);
        }
        let app = self.app(&subscribe.app)?;
        self.learn_origins(new_origins, group)?;
        let mut found = self.find(app, id, group)?;
        let (mut inherited, mut leaves) = (None, None);
        if let Some(replaced) = subscribe.replaces.filter(|replaced| *replaced != id)
            && let Some((key, old)) = self.find(app, replaced, group)?
        {
            if key.service == subscribe.subscription.service {
                // What waits for the old endpoint follows its key. Had the new endpoint come by itself before, it gives way.
                leaves = found.replace((key, old));
            } else {
                inherited = Some(old.clone());
                leaves = Some((key, old));
            }
        }
        let (key, old) = match found {
            Some((key, old)) => (Some(key), Some(old)),
            None => (None, None),
        };
        let base = old.clone().or(inherited);
        let stored = merged(&subscribe, app, base, first_key, group.now);
        let was = old.as_ref().and_then(|old| old.subscription.account.clone());
        if let Some(account) = &stored.subscription.account
            && was.as_ref() != Some(account)
        {
            // Who leaves in this line makes room, and leaves only if nothing is against it.
            let room = leaves.iter().filter(|(_, stored)| stored.subscription.account.as_ref() == Some(account)).count();
            self.may_have_one_more(app, account, room, group)?;
        }
        let created = old.is_none();
        // Nothing is changed before it is sure that the message, too, is taken.
        let confirm = confirm.filter(|_| created);
        if let Some(failure) = confirm.as_ref().and_then(|_| self.closed_door(&subscribe.app, 1, false)) {
            return Err(failure);
        }
        if let Some((other, stored)) = leaves {
            self.put_stored(other, Some(&stored), None, group)?;
        }
        let key = match key {
            Some(key) => key,
            None => self.new_key(stored.subscription.recipient.service, group),
        };
        self.put_stored(key, old.as_ref(), Some(&stored), group)?;
        if let Some(confirm) = confirm {
            self.take_send(*confirm, group)?;
        }
        Ok(Done::Subscribed { id, created })
    }

    /// A disabled account takes no new browser, and no account more than it may have.
    fn may_have_one_more(&mut self, app: App, account: &str, room: usize, group: &Group) -> Result<(), Failure> {
        if self.store.registry.is_disabled(account_hash(app, account)) {
            return Err(Failure::of(Code::NotAllowed, Some("account"), "this account is disabled"));
        }
        let most = self.settings.browsers_per_account;
        if self.browsers_of(app, account, group)? >= most + room {
            let message = format!("this account has {most} browsers already (registry.browsers_per_account)");
            return Err(Failure::of(Code::NotAllowed, Some("account"), &message));
        }
        Ok(())
    }

    pub(super) fn take_update(&mut self, update: Update, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let Update { subscription: id, enabled, name, account, scopes, tags, attributes } = update;
        // Of several apps that know it, the first: scopes and tags are an app's own.
        let Some((key, old)) = self.find_in(apps, id, group)?.into_iter().next() else { return Err(no_subscription()) };
        let mut stored = old.clone();
        let of = &mut stored.subscription;
        of.enabled = enabled.unwrap_or(of.enabled);
        of.scopes = scopes.unwrap_or_else(|| of.scopes.take());
        of.tags = tags.unwrap_or_else(|| std::mem::take(&mut of.tags));
        of.attributes = attributes.unwrap_or_else(|| std::mem::take(&mut of.attributes));
        if let Some(name) = name {
            stored.detail.name = name;
        }
        if let Some(account) = account {
            if account != of.account
                && let Some(account) = &account
            {
                self.may_have_one_more(of.app, account, 0, group)?;
            }
            of.account = account;
        }
        self.put_stored(key, Some(&old), Some(&stored), group)?;
        Ok(Done::Updated)
    }

    pub(super) fn take_unsubscribe(&mut self, id: SubscriptionId, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        let found = self.find_in(apps, id, group)?;
        for (key, old) in &found {
            self.put_stored(*key, Some(old), None, group)?;
        }
        Ok(Done::Removed(!found.is_empty()))
    }

    pub(super) fn take_account(&mut self, who: &Whose, enabled: bool, apps: &Apps, group: &mut Group) -> Result<Done, Failure> {
        for app in who.apps(apps) {
            let number = self.app(app)?;
            if !enabled && !self.store.registry.may_disable(number) {
                return Err(Failure::later(Code::Overloaded, "as many accounts are disabled as may be", 3_600.0));
            }
            self.switch(number, &who.account, enabled, group)?;
        }
        Ok(Done::Updated)
    }

    fn switch(&mut self, app: App, account: &Account, enabled: bool, group: &mut Group) -> Result<(), ReadError> {
        let hash = account_hash(app, account);
        if self.store.registry.is_disabled(hash) != enabled {
            return Ok(());
        }
        let mut counts = self.tally(app, account, group)?;
        self.store.registry.set_disabled(app, hash, !enabled);
        group.switched.push((app, hash, enabled));
        match enabled {
            true => group.registry.delete(family::INDEX, row::disabled_key(app, account)),
            false => {
                group.registry.put(family::INDEX, row::disabled_key(app, account), Vec::new());
                counts.values_mut().for_each(|count| *count = -*count);
            }
        }
        self.count(counts, group)
    }

    /// Removes, without a way back, all that belongs to an account or a subscription in these apps, and lets the sweep end what waits
    /// for it there. `everywhere`: the rest that an app which is not configured any more has left of a subscription goes as well.
    pub(super) fn take_erase(
        &mut self,
        erase: &Erase,
        everywhere: bool,
        apps: &Apps,
        so_far: Erasing,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let mut removed = so_far.removed;
        match erase {
            Erase::Account(_) if so_far.begun => {}
            Erase::Account(who) => self.may_erase(who, apps, group)?,
            Erase::Subscription(_) if everywhere => {}
            Erase::Subscription(_) => apps.iter().try_for_each(|app| self.may_have_rules(app, 1))?,
        }
        let first = group.erased.len();
        match erase {
            Erase::Account(who) => {
                for app in who.apps(apps) {
                    let number = self.app(app)?;
                    let keys = self.account_keys(number, &who.account, group)?;
                    removed += self.erase_browsers(app, keys, group)?;
                    // Disabled or not is the account's too.
                    self.switch(number, &who.account, true, group)?;
                    let hash = account_hash(number, &who.account);
                    group.registry.delete(family::INDEX, row::presence_key(hash));
                    self.whose.insert(Holder::Account(hash), app.clone());
                    self.sweep_until_here(Holder::Account(hash), group);
                }
            }
            Erase::Subscription(id) => {
                for (key, old) in self.find_in(apps, *id, group)? {
                    self.put_stored(key, Some(&old), None, group)?;
                    removed += 1;
                }
                let hash = subscription_hash(*id);
                match everywhere {
                    true => self.sweep_until_here(Holder::Subscription(None, hash), group),
                    // A raw send leaves no row in the registry: each app may have something waiting.
                    false => {
                        apps.iter().for_each(|app| self.sweep_until_here(Holder::Subscription(Some(app.clone()), hash), group))
                    }
                }
            }
        }
        self.begin_erasure(first, &so_far, group);
        Ok(Done::Erased { removed })
    }

    // ---- whom a message goes to ----

    /// The browsers that ids or accounts name, from where it stopped the last time, until that time if one is given; whether all of
    /// them are looked up. Those that may not be sent to are left out.
    pub(super) fn resolve(
        &self,
        to: &Addressed,
        resolved: &mut Resolved,
        app: &str,
        scope: Option<&Name>,
        until: Option<Instant>,
        group: &Group,
    ) -> Result<bool, Failure> {
        let number = self.app(app)?;
        let first_key = self.settings.first_keys.get(app).copied().unwrap_or(KeyId([0; 8]));
        let over = |names: usize| names.is_multiple_of(LOOKED_UP) && until.is_some_and(|until| Instant::now() >= until);
        let begun = resolved.names;
        let take = |resolved: &mut Resolved, key: SubscriptionKey, stored: &Stored, account: Option<AccountHash>| {
            let registered = Registered { key, id: stored.id(), account };
            resolved.recipients.push(Recipient::unread(registered));
            let signs = stored.subscription.recipient.key.unwrap_or(first_key);
            *resolved.keys.entry((key.service, signs)).or_default() += 1;
            registered.id
        };
        let accepts = |stored: &Stored| {
            let of = &stored.subscription;
            !self.counted(stored).is_empty()
                && scope.is_none_or(|scope| of.scopes.as_ref().is_none_or(|scopes| scopes.contains(scope)))
        };
        match to {
            Addressed::Ids(ids) => {
                for (index, id) in ids.iter().enumerate().skip(begun) {
                    if index > begun && over(index) {
                        return Ok(false);
                    }
                    resolved.names = index + 1;
                    match self.find(number, *id, group)? {
                        // Asked for by its name it is counted, also if it then turns out to be disabled: it ends skipped.
                        Some((key, stored)) if !stored.subscription.gone => {
                            take(resolved, key, &stored, None);
                        }
                        found => {
                            let gone = found.is_some();
                            let message = if gone { "this subscription is gone" } else { "no such subscription" };
                            let field = Some(format!("to.subscription_ids[{index}]"));
                            let problem = Problem { code: Code::NotFound, field, message: message.to_owned() };
                            resolved.rejected.push(Rejected { index, reference: None, problem });
                        }
                    }
                }
            }
            Addressed::Accounts { accounts, latest } => {
                for (index, account) in accounts.iter().enumerate().skip(begun) {
                    if index > begun && over(index) {
                        return Ok(false);
                    }
                    resolved.names = index + 1;
                    let hash = account_hash(number, account);
                    let mut browsers = Vec::new();
                    for key in self.account_keys(number, account, group)? {
                        browsers.extend(self.stored(key, group)?.filter(accepts).map(|stored| (key, stored)));
                    }
                    if *latest {
                        let last = browsers.iter().enumerate().max_by_key(|(_, (key, stored))| {
                            let detail = &stored.detail;
                            (detail.seen.max(detail.created), detail.created, key.serial)
                        });
                        browsers = last.map(|(place, _)| place).map(|place| browsers.swap_remove(place)).into_iter().collect();
                    }
                    let ids = browsers.iter().map(|(key, stored)| take(resolved, *key, stored, Some(hash))).collect();
                    resolved.accounts.push((account.clone(), ids));
                }
            }
        }
        Ok(true)
    }

    // ---- feedback ----

    pub(super) fn take_feedback(
        &mut self,
        id: MessageId,
        subscription: SubscriptionId,
        kind: EventType,
        apps: &Apps,
        group: &mut Group,
    ) -> Result<Done, Failure> {
        let stale = || Failure::of(Code::InvalidField, Some("receipt"), "is no receipt of this daemon, or too old");
        let told = match self.store.list_message(ListKey::of(id))?.filter(|message| message.id == id) {
            Some(message) => (message.app.clone(), message.label.clone(), message.reference.clone()),
            None => {
                let head = self.store.head(id)?.ok_or_else(stale)?;
                (head.app, head.label, head.reference)
            }
        };
        let (app, label, message_ref) = told;
        if !apps.contains(&app) {
            return Err(stale());
        }
        // Who was erased meanwhile is told of no more, by a receipt that was still on its way neither.
        if self.store.rules.load().erased_named_by(id, &app, subscription, None).is_some() {
            return Ok(Done::Updated);
        }
        let bit = match kind {
            EventType::Shown => 0,
            EventType::Clicked => 1,
            _ => 2,
        };
        let key = row::feedback_key(id, subscription);
        let known = group.registry.value(&self.store, family::FEEDBACK, key.clone())?;
        let known = known.and_then(|row| row.first().copied()).unwrap_or(0);
        if known >> bit & 1 == 1 {
            return Ok(Done::Updated);
        }
        group.registry.put(family::FEEDBACK, key, vec![known | 1 << bit]);
        let counts_key = row::feedback_counts_key(id);
        let counts = group.registry.value(&self.store, family::FEEDBACK, counts_key.clone())?;
        let mut counts = counts.map_or([0; 3], |row| feedback_counts(&row));
        counts[bit] += 1;
        let mut put = Put::default();
        counts.iter().for_each(|count| {
            put.u64(*count);
        });
        group.registry.put(family::FEEDBACK, counts_key, put.0);
        let account = match self.store.registry.app(&app) {
            Some(number) => self.find(number, subscription, group)?.and_then(|(_, stored)| stored.subscription.account),
            None => None,
        };
        let told: &dyn Fn() -> SubscriptionId = &|| subscription;
        let event = Event {
            time: group.now,
            what: What::Feedback(kind),
            id: Some(id),
            message_ref: message_ref.as_deref(),
            label: label.as_deref(),
            subscription: Some(told),
            reference: None,
            account: account.as_deref(),
            app: &app,
            service: None,
            status: None,
            reason: None,
            count: None,
        };
        self.event_of_group(&event, group);
        Ok(Done::Updated)
    }

    // ---- what outcomes say ----

    /// Puts what outcomes said of subscriptions since the last checkpoint.
    pub(super) fn put_verdicts(&mut self, group: &mut Group) -> Result<(), ReadError> {
        let now = group.now;
        for (key, (id, verdict)) in self.checkpoint.verdicts.clone() {
            let Some(old) = self.stored(key, group)? else { continue };
            // A late word about an endpoint that it has no more.
            if old.id() != id {
                continue;
            }
            let mut new = old.clone();
            match verdict {
                Verdict::Gone(reason) if !old.subscription.gone => {
                    new.subscription.gone = true;
                    new.subscription.proven = false;
                    new.detail.gone_at = Some(now);
                    (new.detail.last_failure, new.detail.reason) = (Some(now), Some(reason.into()));
                }
                Verdict::Gone(_) => {}
                Verdict::Failed(reason) => (new.detail.last_failure, new.detail.reason) = (Some(now), Some(reason.into())),
                Verdict::Proven => new.subscription.proven = true,
            }
            self.put_stored(key, Some(&old), Some(&new), group)?;
        }
        for (time, key) in self.checkpoint.looked.clone() {
            self.look_at(time, key, group)?;
        }
        Ok(())
    }

    /// A subscription whose time has come: its `expirationTime`, or the end of `registry.undo`.
    fn look_at(&mut self, time: UnixMillis, key: SubscriptionKey, group: &mut Group) -> Result<(), ReadError> {
        // Whatever it is now: a row made under another `registry.undo` would be met again and again.
        group.registry.delete(family::INDEX, row::look_key(time, key));
        let Some(old) = self.stored(key, group)? else { return Ok(()) };
        let expired = old.subscription.recipient.expiration.is_some_and(|time| time <= group.now);
        let dropped = old.detail.gone_at.is_some_and(|time| time.plus(self.settings.undo) <= group.now);
        if old.subscription.gone {
            if dropped {
                return self.put_stored(key, Some(&old), None, group);
            }
            if let Some(time) = look_time(&old, self.settings.undo) {
                group.registry.put(family::INDEX, row::look_key(time, key), Vec::new());
            }
        } else if expired {
            let mut new = old.clone();
            new.subscription.gone = true;
            new.detail.gone_at = Some(group.now);
            new.detail.reason = Some(reason::EXPIRATION_TIME.into());
            self.put_stored(key, Some(&old), Some(&new), group)?;
            // A checkpoint that found no space is built once more.
            if !self.checkpoint.expired.insert(key) {
                return Ok(());
            }
            let app = self.store.registry.app_name(old.subscription.app);
            let told: &dyn Fn() -> SubscriptionId = &|| old.id();
            self.event(&Event {
                time: group.now,
                what: What::Ended(crate::message::Ending::Gone),
                id: None,
                message_ref: None,
                label: None,
                subscription: Some(told),
                reference: None,
                account: old.subscription.account.as_deref(),
                app: &app,
                service: Some(key.service),
                status: None,
                reason: Some(reason::EXPIRATION_TIME),
                count: None,
            });
        } else if let Some(time) = look_time(&old, self.settings.undo) {
            group.registry.put(family::INDEX, row::look_key(time, key), Vec::new());
        }
        Ok(())
    }
}

/// Shown, clicked and dismissed of a message's row.
pub fn feedback_counts(row: &Bytes) -> [u64; 3] {
    let mut counts = [0; 3];
    for (count, bytes) in counts.iter_mut().zip(row.chunks_exact(8)) {
        *count = u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    }
    counts
}

fn no_subscription() -> Failure {
    Failure::of(Code::NotFound, Some("subscription_id"), "no such subscription")
}

/// What a subscription is after `subscribe`: what was not given stays.
fn merged(subscribe: &Subscribe, app: App, base: Option<Stored>, first_key: KeyId, now: UnixMillis) -> Stored {
    let Subscribe { subscription, account, name, user_agent, scopes, tags, attributes, .. } = subscribe;
    let recipient = Recipient { attributes: None, reference: subscription.reference.clone(), ..subscription.clone() };
    let mut stored = base.unwrap_or_else(|| Stored {
        subscription: Subscription {
            app,
            enabled: true,
            gone: false,
            proven: false,
            account: None,
            scopes: None,
            tags: Vec::new(),
            attributes: Default::default(),
            recipient: recipient.clone(),
        },
        detail: Detail { created: now, seen: now, ..Detail::default() },
    });
    let of = &mut stored.subscription;
    if of.recipient.endpoint != recipient.endpoint || of.gone {
        of.proven = false;
        of.gone = false;
        stored.detail.gone_at = None;
        stored.detail.reason = None;
        stored.detail.last_failure = None;
    }
    // An endpoint keeps the key it was made with; a new one is made with what pages get now.
    let made_with = of.recipient.key.filter(|_| of.recipient.endpoint == recipient.endpoint);
    of.recipient = Recipient {
        key: recipient.key.or(made_with).or(Some(first_key)),
        reference: recipient.reference.clone().or_else(|| of.recipient.reference.clone()),
        ..recipient
    };
    if let Some(account) = account {
        of.account = Some(account.clone());
    }
    if let Some(scopes) = scopes {
        of.scopes = scopes.clone();
    }
    if let Some(tags) = tags {
        of.tags = tags.clone();
    }
    if let Some(attributes) = attributes {
        of.attributes = attributes.clone();
    }
    let detail = &mut stored.detail;
    if name.is_some() {
        detail.name = name.clone();
    }
    if user_agent.is_some() {
        detail.user_agent = user_agent.clone();
    }
    if now.since(detail.seen) >= SEEN_MILLIS {
        detail.seen = now;
    }
    stored
}

/// When a subscription is to be looked at.
fn look_time(stored: &Stored, undo: u64) -> Option<UnixMillis> {
    match stored.detail.gone_at {
        Some(gone) => Some(gone.plus(undo)),
        None => stored.subscription.recipient.expiration,
    }
}

type Derived = BTreeMap<(&'static str, Vec<u8>), Vec<u8>>;

/// The rows that follow from a subscription.
fn derived(key: SubscriptionKey, stored: &Stored, undo: u64) -> Derived {
    let of = &stored.subscription;
    let mut rows = Derived::new();
    let mut put = |family, key, value| rows.insert((family, key), value);
    put(family::INDEX, row::id_key(of.app, stored.id()), row::subscription_key(key));
    if let Some(account) = &of.account {
        put(family::INDEX, row::account_key(of.app, account, key), Vec::new());
    }
    if let Some(time) = look_time(stored, undo) {
        put(family::INDEX, row::look_key(time, key), Vec::new());
    }
    if !of.gone {
        for posting in of.postings().into_iter().filter(|posting| posting.kind != Kind::App) {
            put(family::POSTING, posting.key(key), Vec::new());
        }
    }
    rows
}

/// The counts that a subscription is in while its account is enabled: none if it cannot be reached.
pub(super) fn counted_if_enabled(stored: &Stored) -> Vec<Posting> {
    let of = &stored.subscription;
    if of.gone || !of.enabled {
        return Vec::new();
    }
    let mut counted = of.postings();
    counted.push(Store::app_posting(of.app));
    counted
}
