//! The registry: subscriptions, accounts, and who belongs to a segment. This is what reads it; what changes it is
//! `writer::registry`.
//!
//! Promises. A subscription keeps its key (service and serial) through upserts, updates and a change of endpoint, so what waits for
//! it follows by itself. Counts are those of subscriptions that can be reached (not gone, not disabled, nor their account) and
//! change in the commit, or the checkpoint, that changes the subscription. What belongs to one app is not found by another.

#[cfg(test)]
mod apart;
pub mod row;
#[cfg(test)]
mod stories;
pub mod walk;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::limits::DISABLED_ACCOUNTS_MAX;
use crate::message::{AccountHash, Delivery, Name, Recipient, Registered, Segment, Service, SubscriptionId, SubscriptionKey};
use crate::protocol::reason;
use crate::store::commit::Apps;
use crate::store::live::lock;
use crate::store::registry::row::{App, Detail, Kind, Posting, Subscription, View};
use crate::store::registry::walk::Wanted;
use crate::store::shares::Shares;
use crate::store::{ReadError, Store, family, key};

/// What of the registry is in memory.
pub struct Registry {
    apps: RwLock<Vec<(App, Arc<str>)>>,
    /// The accounts that receive nothing.
    disabled: RwLock<HashSet<AccountHash>>,
    /// How many of them each app has. Changed by the writer alone.
    switched_off: Mutex<Shares<App>>,
}

impl Default for Registry {
    fn default() -> Registry {
        let switched_off = Mutex::new(Shares::new(DISABLED_ACCOUNTS_MAX, []));
        Registry { apps: RwLock::default(), disabled: RwLock::default(), switched_off }
    }
}

impl Registry {
    /// The number of an app; None: no app of this name was ever configured.
    pub fn app(&self, name: &str) -> Option<App> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.iter().find(|(_, known)| **known == *name).map(|(number, _)| *number)
    }

    /// Whether this is the number of one of these apps.
    pub fn is_of(&self, number: App, apps: &[Arc<str>]) -> bool {
        apps.iter().any(|app| self.app(app) == Some(number))
    }

    /// The number by which positions in a log or a list are sealed for a socket that has these apps.
    pub fn seals_for(&self, apps: &[Arc<str>]) -> App {
        apps.iter().filter_map(|app| self.app(app)).min().unwrap_or_default()
    }

    /// The name of an app.
    pub fn app_name(&self, number: App) -> Arc<str> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.iter().find(|(known, _)| *known == number).map_or_else(|| Arc::from(""), |(_, name)| name.clone())
    }

    pub(super) fn learn_app(&self, number: App, name: Arc<str>) {
        lock(&self.switched_off).know(number);
        self.apps.write().unwrap_or_else(PoisonError::into_inner).push((number, name));
    }

    pub(super) fn next_app(&self) -> App {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.iter().map(|(number, _)| number + 1).max().unwrap_or(1)
    }

    /// Whether an account is disabled.
    pub fn is_disabled(&self, who: AccountHash) -> bool {
        self.disabled.read().unwrap_or_else(PoisonError::into_inner).contains(&who)
    }

    /// Whether any account is.
    fn some_disabled(&self) -> bool {
        !self.disabled.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// The numbers of all apps.
    pub(super) fn numbers(&self) -> Vec<App> {
        let apps = self.apps.read().unwrap_or_else(PoisonError::into_inner);
        apps.iter().map(|(number, _)| *number).collect()
    }

    /// How many accounts each app has disabled.
    pub(super) fn disabled_shares(&self) -> Vec<(App, u64)> {
        lock(&self.switched_off).each().copied().collect()
    }

    /// Whether an app may disable one more account.
    pub(super) fn may_disable(&self, app: App) -> bool {
        lock(&self.switched_off).room(&app) > 0
    }

    /// Only the writer switches accounts.
    pub(super) fn set_disabled(&self, app: App, who: AccountHash, disabled: bool) {
        let mut set = self.disabled.write().unwrap_or_else(PoisonError::into_inner);
        if disabled && set.insert(who) {
            lock(&self.switched_off).add(&app, 1);
        } else if !disabled && set.remove(&who) {
            lock(&self.switched_off).sub(&app, 1);
        }
    }
}

/// How rows name an account.
pub fn account_hash(app: App, account: &str) -> AccountHash {
    let mut hash = Sha256::new();
    hash.update(app.to_be_bytes());
    hash.update(account.as_bytes());
    AccountHash(hash.finalize()[..8].try_into().expect("eight of 32 bytes"))
}

/// All that is known of a subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Known {
    pub key: SubscriptionKey,
    pub id: SubscriptionId,
    pub app: Arc<str>,
    pub subscription: Subscription,
    pub detail: Detail,
}

/// Subscriptions that a page of a list has, and where the next one begins.
pub type Page = (Vec<Known>, Option<SubscriptionKey>);

impl Store {
    /// Reads what of the registry is in memory.
    pub(super) fn read_registry(&self) -> Result<(), ReadError> {
        let reader = self.reader()?;
        reader.scan(family::META, b"app/", b"app0", |key, value| {
            if let (Ok(number), Ok(name)) = (value.try_into(), std::str::from_utf8(&key[4..])) {
                self.registry.learn_app(App::from_be_bytes(number), Arc::from(name));
            }
            true
        })?;
        reader.scan(family::INDEX, &[2], &[3], |key, _| {
            match row::disabled_from(key) {
                Ok((app, account)) => self.registry.set_disabled(app, account_hash(app, &account), true),
                Err(_) => self.corrupt(family::INDEX),
            }
            true
        })
    }

    /// The key of a subscription of an app, also if it is gone.
    pub fn find_subscription(&self, app: App, id: SubscriptionId) -> Result<Option<SubscriptionKey>, ReadError> {
        let row = self.reader()?.value(family::INDEX, row::id_key(app, id))?;
        Ok(row.and_then(|row| row::take_key(&row).ok()))
    }

    /// A subscription by its id, of one of these apps.
    pub fn subscription(&self, id: SubscriptionId, apps: &Apps) -> Result<Option<Known>, ReadError> {
        for app in apps.iter() {
            let Some(number) = self.registry.app(app) else { continue };
            if let Some(key) = self.find_subscription(number, id)? {
                return self.known(key);
            }
        }
        Ok(None)
    }

    /// Both rows of a subscription.
    pub fn known(&self, key: SubscriptionKey) -> Result<Option<Known>, ReadError> {
        let reader = self.reader()?;
        let at = row::subscription_key(key);
        let Some(row) = reader.value(family::SUBSCRIPTION, &at)? else { return Ok(None) };
        let detail = reader.value(family::DETAIL, &at)?;
        Ok(self.known_from(key, row, detail))
    }

    fn known_from(&self, key: SubscriptionKey, row: Bytes, detail: Option<Bytes>) -> Option<Known> {
        let decoded = Subscription::decode(row).and_then(|subscription| {
            let detail = detail.map(Detail::decode).transpose()?.unwrap_or_default();
            Ok((subscription, detail))
        });
        match decoded {
            Ok((subscription, detail)) => {
                let id = SubscriptionId::of(subscription.recipient.endpoint.as_str());
                Some(Known { key, id, app: self.registry.app_name(subscription.app), subscription, detail })
            }
            Err(_) => {
                self.corrupt(family::SUBSCRIPTION);
                None
            }
        }
    }

    /// The browsers of an account that are not gone, oldest first.
    pub fn account_subscriptions(&self, app: App, account: &str) -> Result<Vec<Known>, ReadError> {
        let mut keys = Vec::new();
        let prefix = row::account_prefix(app, account);
        self.reader()?.scan(family::INDEX, &prefix, &key::after_prefix(&prefix), |row, _| {
            keys.extend(row::take_key(row).ok());
            true
        })?;
        let mut found = Vec::new();
        for key in keys {
            found.extend(self.known(key)?.filter(|known| !known.subscription.gone));
        }
        Ok(found)
    }

    /// Whether a message may be sent to this browser at all.
    pub(super) fn reachable(&self, view: &View<'_>) -> bool {
        view.enabled() && !view.gone() && !view.account().is_some_and(|(hash, _)| self.registry.is_disabled(hash))
    }

    /// Reads the recipient of a delivery whose row only says where the registry keeps it. What must not be sent says why.
    pub fn resolve(&self, delivery: &mut Delivery) -> Result<(), ReadError> {
        let Some(registered) = delivery.recipient.registered.filter(|_| delivery.recipient.is_unread()) else { return Ok(()) };
        let row = self.reader()?.value(family::SUBSCRIPTION, row::subscription_key(registered.key))?;
        match row {
            None => delivery.lost = Some(reason::REMOVED),
            Some(row) => {
                if self.resolve_from(delivery, &registered, &row).is_err() {
                    self.corrupt(family::SUBSCRIPTION);
                    delivery.lost = Some(reason::REMOVED);
                }
            }
        }
        Ok(())
    }

    fn resolve_from(&self, delivery: &mut Delivery, registered: &Registered, row: &Bytes) -> Result<(), super::record::Corrupt> {
        let view = View::of(row)?;
        let message = &delivery.message;
        delivery.account = view.account().map(|(_, name)| Arc::from(name));
        let account = view.account().map(|(hash, _)| hash);
        delivery.lost = match () {
            () if self.registry.app(&message.app) != Some(view.app()) => Some(reason::REMOVED),
            () if registered.account.is_some() && registered.account != account => Some(reason::MOVED),
            () if view.gone() => Some(reason::REMOVED),
            () if !self.reachable(&view) => Some(reason::DISABLED),
            () if message.scope.as_ref().is_some_and(|scope| !view.accepts(scope)) => Some(reason::SCOPE),
            () => None,
        };
        let attributes = message.template.then(|| Arc::new(view.attributes()));
        delivery.unproven = !view.proven();
        delivery.recipient = Recipient { registered: Some(*registered), attributes, ..view.recipient(row)? };
        Ok(())
    }

    /// How many subscriptions of these apps can be reached, of a segment and with a scope: as many as are met until then, from `from`
    /// on; and where to go on.
    pub fn count(
        &self,
        apps: &[Arc<str>],
        segment: Option<&Segment>,
        scope: Option<&Name>,
        from: (App, Option<SubscriptionKey>),
        until: Instant,
    ) -> Result<(u64, Option<(App, SubscriptionKey)>), ReadError> {
        let mut count = 0;
        let mut numbers: Vec<App> = apps.iter().filter_map(|app| self.registry.app(app)).filter(|app| *app >= from.0).collect();
        numbers.sort_unstable();
        for number in numbers {
            let wanted = Wanted { app: number, scope: scope.cloned(), segment: segment.cloned().unwrap_or_default() };
            if let Some(postings) = wanted.kept_counts() {
                for posting in postings {
                    count += self.kept_count(&posting)?;
                }
                continue;
            }
            let after = from.1.filter(|_| number == from.0);
            let met = self.each_candidate(&wanted, after, until, |_, view, _| {
                count += u64::from(self.reachable(view));
                true
            })?;
            if let Some(met) = met {
                return Ok((count, Some((number, met))));
            }
        }
        Ok((count, None))
    }

    /// A count as it is kept.
    pub fn kept_count(&self, posting: &Posting) -> Result<u64, ReadError> {
        let row = self.reader()?.value(family::INDEX, posting.count_key())?;
        Ok(row.and_then(|row| row.as_ref().try_into().ok().map(u64::from_be_bytes)).unwrap_or(0))
    }

    /// The subscriptions of a segment that are not gone, from behind `after` on, as many as are met until then; and behind which one
    /// there may be more.
    pub fn segment_page(
        &self,
        app: App,
        segment: &Segment,
        after: Option<SubscriptionKey>,
        limit: usize,
        until: Instant,
    ) -> Result<Page, ReadError> {
        let wanted = Wanted { app, scope: None, segment: segment.clone() };
        let mut keys = Vec::new();
        let met = self.each_candidate(&wanted, after, until, |key, view, _| {
            if !view.gone() {
                keys.push(key);
            }
            keys.len() <= limit
        })?;
        let more = keys.len() > limit;
        keys.truncate(limit);
        let next = keys.last().copied().filter(|_| more).or(met);
        let mut page = Vec::with_capacity(keys.len());
        for key in keys {
            page.extend(self.known(key)?);
        }
        Ok((page, next))
    }

    /// Every service that has subscriptions, and its last serial.
    pub fn last_serials(&self) -> Result<Vec<(Service, u64)>, ReadError> {
        let mut last = Vec::new();
        self.reader()?.scan(family::INDEX, &[6], &[7], |row, value| {
            if let (Some(service), Ok(next)) = (row.get(1..3), value.try_into()) {
                let service = Service(u16::from_be_bytes(service.try_into().expect("two bytes")));
                last.push((service, u64::from_be_bytes(next) - 1));
            }
            true
        })?;
        Ok(last)
    }

    /// What of a segment's posting is of an app as a whole.
    pub fn app_posting(app: App) -> Posting {
        Posting { app, kind: Kind::App, name: Arc::from("") }
    }

    pub(super) fn nobody_is_disabled(&self) -> bool {
        !self.registry.some_disabled()
    }
}
