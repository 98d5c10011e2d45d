//! Accounts with many browsers. To erase or to switch one goes over several turns of the writer, so that no other line waits for all
//! of its browsers.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::{Account, SubscriptionKey};
use crate::protocol::request::Whose;
use crate::store::commit::{Apps, Erasing};
use crate::store::erase::Erasure;
use crate::store::live::{Holder, subscription_hash};
use crate::store::registry::account_hash;
use crate::store::registry::row::{self, App, Posting};
use crate::store::writer::Writer;
use crate::store::writer::accept::{Failure, Group};
use crate::store::writer::registry::{Stored, counted_if_enabled};
use crate::store::writer::rows::{erasure_key, erasure_row};
use crate::store::{ReadError, family};

/// Browsers of one account that a turn looks at, some milliseconds of work.
const BROWSERS_A_TURN: usize = if cfg!(test) { 3 } else { 64 };
/// An account with so many browsers is not counted anew for each that comes.
const CROWD: usize = 64;
/// Such accounts that are kept in memory.
const CROWDS: usize = 4_096;

/// The counts that an account's browsers are in, as far as they are looked at. A browser that changes meanwhile changes it, too.
#[derive(Default)]
pub(super) struct Tally {
    counts: BTreeMap<Posting, i64>,
    /// Key in `index` of the last browser that is looked at.
    behind: Vec<u8>,
}

impl Writer {
    /// How many browsers an account has. Of an account with many the number is kept.
    pub(super) fn browsers_of(&mut self, app: App, account: &str, group: &Group) -> Result<usize, ReadError> {
        let who = account_hash(app, account);
        if let Some(browsers) = self.crowds.get(&who) {
            return Ok(*browsers);
        }
        let browsers = self.account_keys(app, account, group)?.len();
        if browsers >= CROWD {
            if self.crowds.len() >= CROWDS {
                self.crowds.clear();
            }
            self.crowds.insert(who, browsers);
        }
        Ok(browsers)
    }

    /// A subscription changes, and may belong to another account now.
    pub(super) fn recount(&mut self, key: SubscriptionKey, old: Option<&Stored>, new: Option<&Stored>) {
        if self.crowds.is_empty() && self.tallies.is_empty() {
            return;
        }
        for (stored, step) in [(old, -1), (new, 1)] {
            let Some(stored) = stored else { continue };
            let Some(account) = &stored.subscription.account else { continue };
            let app = stored.subscription.app;
            let who = account_hash(app, account);
            if let Some(browsers) = self.crowds.get_mut(&who) {
                *browsers = browsers.saturating_add_signed(step as isize);
            }
            if let Some(tally) = self.tallies.get_mut(&who)
                && row::account_key(app, account, key) <= tally.behind
            {
                tally.add(stored, step);
            }
        }
    }

    /// Looks at some browsers of an account that is to be switched on or off; whether all of them are looked at.
    pub(super) fn tally_some(&mut self, who: &Whose, enabled: bool, apps: &Apps, group: &Group) -> Result<bool, Failure> {
        for app in who.apps(apps) {
            let number = self.app(app)?;
            let registry = &self.store.registry;
            let switched = registry.is_disabled(account_hash(number, &who.account)) == enabled;
            // One that may not be disabled is refused when the line is taken.
            if switched && (enabled || registry.may_disable(number)) && !self.tally_on(number, &who.account, group)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tally_on(&mut self, app: App, account: &Account, group: &Group) -> Result<bool, ReadError> {
        let who = account_hash(app, account);
        let mut tally = self.tallies.remove(&who).unwrap_or_default();
        let prefix = row::account_prefix(app, account);
        let keys = group.registry.keys_behind(&self.store, family::INDEX, &prefix, &tally.behind, BROWSERS_A_TURN)?;
        for key in keys.iter().filter_map(|key| row::take_key(key).ok()) {
            if let Some(stored) = self.stored(key, group)? {
                tally.add(&stored, 1);
            }
        }
        let all = keys.len() < BROWSERS_A_TURN;
        tally.behind = keys.into_iter().next_back().unwrap_or(tally.behind);
        self.tallies.insert(who, tally);
        Ok(all)
    }

    /// The counts that the browsers of an account are in while it is enabled.
    pub(super) fn tally(&mut self, app: App, account: &Account, group: &Group) -> Result<BTreeMap<Posting, i64>, ReadError> {
        while !self.tally_on(app, account, group)? {}
        Ok(self.tallies.remove(&account_hash(app, account)).unwrap_or_default().counts)
    }

    /// Erases some browsers of an account; whether those that are left are few. Each part has an erasure of its own, which a start
    /// goes on with; whoever asked is told when all of them are finished.
    pub(super) fn erase_some(
        &mut self,
        who: &Whose,
        apps: &Apps,
        so_far: &mut Erasing,
        group: &mut Group,
    ) -> Result<bool, Failure> {
        if !so_far.begun {
            self.may_erase(who, apps, group)?;
            so_far.begun = true;
        }
        for app in who.apps(apps) {
            let prefix = row::account_prefix(self.app(app)?, &who.account);
            let keys = group.registry.keys_behind(&self.store, family::INDEX, &prefix, &[], BROWSERS_A_TURN + 1)?;
            if keys.len() <= BROWSERS_A_TURN {
                continue;
            }
            let first = group.erased.len();
            let keys = keys.iter().take(BROWSERS_A_TURN).filter_map(|key| row::take_key(key).ok()).collect();
            so_far.removed += self.erase_browsers(app, keys, group)?;
            self.begin_erasure(first, so_far, group);
            return Ok(false);
        }
        Ok(true)
    }

    /// Refuses to erase an account where its apps have no room for so many rules.
    pub(super) fn may_erase(&mut self, who: &Whose, apps: &Apps, group: &Group) -> Result<(), Failure> {
        for app in who.apps(apps) {
            let browsers = self.browsers_of(self.app(app)?, &who.account, group)? as u64;
            self.may_have_rules(app, 1 + browsers)?;
        }
        Ok(())
    }

    /// Removes browsers and has the sweep end all that waits for them. Gives how many there were.
    pub(super) fn erase_browsers(
        &mut self,
        app: &Arc<str>,
        keys: Vec<SubscriptionKey>,
        group: &mut Group,
    ) -> Result<u64, ReadError> {
        let mut removed = 0;
        for key in keys {
            if let Some(old) = self.stored(key, group)? {
                self.put_stored(key, Some(&old), None, group)?;
                // In another app the browser may be somebody else's.
                self.sweep_until_here(Holder::Subscription(Some(app.clone()), subscription_hash(old.id())), group);
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Has the logs blanked of those whom the group erases, from the rule of this number on.
    pub(super) fn begin_erasure(&mut self, first: usize, so_far: &Erasing, group: &mut Group) {
        let key = erasure_key(group.commit, group.erasures.len());
        let erasure = Erasure::new(key, &group.erased[first..], so_far.asked.clone());
        group.registry.put(family::META, erasure.row.clone(), erasure_row(&erasure));
        group.erasures.push(erasure);
    }
}

impl Tally {
    fn add(&mut self, stored: &Stored, step: i64) {
        for posting in counted_if_enabled(stored) {
            *self.counts.entry(posting).or_default() += step;
        }
    }
}
