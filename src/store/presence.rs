//! The accounts that are online (docs/design.md 8.3): a message with `when: offline` waits for them.
//!
//! An account is online while the lease of any of its sessions runs. It holds such messages back while it is online and for the
//! grace after that, because a reader who reloads the page has not left. Then it is free, which is told once, and forgotten.
//!
//! Promises. All this is soft: a crash loses what was told since the last checkpoint. After a start an account counts as online
//! until its stored lease ends, at least for the grace from the start, so that its pages can tell again. No account is held for
//! longer than `LEASE_MAX` and the grace from the last time it was told of, whatever the clock does: put back it makes no lease
//! longer, put forward it ends leases early. Memory goes with the accounts that are held, some 120 bytes each, and not with
//! renewals; leases are bounded in all, and each app has its part of them.
//!
//! It holds no clock: time is passed in. Accounts free without anybody asking are found by [`Presence::freed`], which must be
//! asked at [`Presence::next`], and every minute or so in case the clock was put back.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};

use crate::limits::{LEASE_MAX, PRESENCE_LEASES_MAX};
use crate::message::{AccountHash, UnixMillis};
use crate::store::registry::row::App;
use crate::store::shares::Shares;

/// Sessions of an account that are kept apart.
const SESSIONS_MAX: usize = 64;
/// Accounts that [`Presence::freed`] tells at once.
const FREED: usize = 1_024;
/// The longest lease, in milliseconds: no time that is told or stored is believed beyond it.
const LEASE_MAX_MILLIS: u64 = (LEASE_MAX * 1_000.0) as u64;

/// The accounts that are online, or were within the grace.
pub struct Presence {
    /// Milliseconds.
    grace: u64,
    sessions_max: usize,
    steady: Steady,
    /// A tree and no table of hashes, which all would wait for while it grows.
    accounts: BTreeMap<AccountHash, Account>,
    /// When each of `accounts` becomes free: exactly one entry for each.
    frees: BTreeSet<(Moment, AccountHash)>,
    /// What the next checkpoint writes.
    unsaved: BTreeSet<AccountHash>,
    /// The leases that each app has.
    held: Shares<App>,
    /// Sessions are known by a hash: whatever they are called, they take eight bytes.
    names: RandomState,
}

/// What became of an account by what was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub online: bool,
    /// When its last lease ends, or when it went offline; None: it was not here.
    pub until: Option<UnixMillis>,
}

struct Account {
    /// Whose it is; 0: it was restored, which does not say it.
    app: App,
    /// In the order in which they were told; those that have ended go when another comes.
    leases: Vec<Lease>,
    /// The latest end of a lease: when it goes, or went, offline.
    until: Moment,
    /// What its row says; None: it has none.
    written: Option<UnixMillis>,
}

struct Lease {
    session: u64,
    end: Moment,
}

impl Presence {
    /// Nobody is online. `grace_millis`: how long an account holds messages back after its last lease, and how long a lease is
    /// for which no time is told.
    pub fn new(grace_millis: u64) -> Presence {
        Presence {
            grace: grace_millis,
            sessions_max: SESSIONS_MAX,
            steady: Steady::default(),
            accounts: BTreeMap::new(),
            frees: BTreeSet::new(),
            unsaved: BTreeSet::new(),
            held: Shares::new(PRESENCE_LEASES_MAX, []),
            names: RandomState::new(),
        }
    }

    /// These apps share what may be held.
    pub fn share(&mut self, apps: impl IntoIterator<Item = App>) {
        debug_assert!(self.accounts.is_empty(), "asked before anybody is told of");
        self.held = Shares::new(PRESENCE_LEASES_MAX, apps);
    }

    /// The leases that each app has.
    pub fn shares(&self) -> Vec<(App, u64)> {
        self.held.each().copied().collect()
    }

    /// Whether there is room for a session of an account to be online: it has a lease already, or its app may have one more.
    pub fn has_room(&self, app: App, who: AccountHash, session: Option<&str>, now: UnixMillis) -> bool {
        let (moment, session) = (self.steady.at(now), self.names.hash_one(session.unwrap_or("")));
        let account = self.accounts.get(&who);
        // What a new lease takes the place of: its session's last one, one that has ended, or the first of too many.
        account.is_some_and(|account| {
            let goes = |lease: &Lease| lease.end <= moment || lease.session == session;
            account.leases.len() >= self.sessions_max || account.leases.iter().any(goes)
        }) || self.held.room(&app) > 0
    }

    /// Online: the session's lease runs from now on, however long its last one was. Offline: the session has ended, or all have,
    /// if none is named. A session without a name is one of its own.
    pub fn told(
        &mut self,
        app: App,
        who: AccountHash,
        online: bool,
        lease_millis: Option<u64>,
        session: Option<&str>,
        now: UnixMillis,
    ) -> Told {
        let moment = self.steady.pass(now);
        if online {
            let lease = lease_millis.unwrap_or(self.grace).min(LEASE_MAX_MILLIS);
            let session = self.names.hash_one(session.unwrap_or(""));
            self.lease(app, who, session, moment.plus(lease), moment, None);
        } else if let Some(account) = self.accounts.get_mut(&who)
            // Who is offline already went then, not now.
            && account.until > moment
        {
            let ended = session.map(|name| self.names.hash_one(name));
            let before = account.leases.len();
            account.leases.retain(|lease| lease.end > moment && ended.is_some_and(|ended| lease.session != ended));
            let until = account.leases.iter().map(|lease| lease.end).max().unwrap_or(moment);
            self.held.sub(&account.app, (before - account.leases.len()) as u64);
            self.set_until(who, until);
        }
        self.save_if_worth(who, moment);
        let account = self.accounts.get(&who);
        Told {
            online: account.is_some_and(|account| account.until > moment),
            until: account.map(|account| self.steady.shown(account.until)),
        }
    }

    /// A row found at the start: it counts as online until `until`, at least for the grace from now. That lease belongs to no
    /// session that can be named: it ends by its time, or when the whole account is told to be offline.
    pub fn restore(&mut self, who: AccountHash, until: UnixMillis, now: UnixMillis) {
        let moment = self.steady.pass(now);
        let end = self.steady.believed(until, moment).max(moment.plus(self.grace));
        // Names are texts: nothing else hashes like this.
        let session = self.names.hash_one(0_u8);
        self.lease(0, who, session, end, moment, Some(until));
    }

    /// The account is erased: nothing of it stays, and its row goes.
    pub fn forget(&mut self, who: AccountHash) {
        if let Some(account) = self.accounts.remove(&who) {
            self.frees.remove(&(account.until.plus(self.grace), who));
            self.unsaved.insert(who);
            self.held.sub(&account.app, account.leases.len() as u64);
        }
    }

    /// Accounts that are held: online, or within the grace.
    pub fn len(&self) -> usize {
        self.accounts.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.accounts.is_empty()
    }

    /// Whether a lease of the account runs.
    pub fn is_online(&self, who: AccountHash, now: UnixMillis) -> bool {
        self.accounts.get(&who).is_some_and(|account| account.until > self.steady.at(now))
    }

    /// Whether messages with `when: offline` wait: it is online, or went less than the grace ago.
    pub fn holds_back(&self, who: AccountHash, now: UnixMillis) -> bool {
        self.free_at(who, now).is_some()
    }

    /// When it will have been offline for the grace if nothing more is told; None: it is free now.
    pub fn free_at(&self, who: AccountHash, now: UnixMillis) -> Option<UnixMillis> {
        let free = self.accounts.get(&who)?.until.plus(self.grace);
        (free > self.steady.at(now)).then(|| self.steady.shown(free))
    }

    /// The accounts that have become free since the last call, each once; they are forgotten by that. One that became free and
    /// was told to be online again before anybody asked is not among them. So many at a time that the writer is not kept.
    pub fn freed(&mut self, now: UnixMillis) -> Vec<AccountHash> {
        let moment = self.steady.pass(now);
        let mut freed = Vec::new();
        while let Some((free, who)) = self.frees.first().copied()
            && free <= moment
            && freed.len() < FREED
        {
            self.frees.pop_first();
            if let Some(account) = self.accounts.remove(&who) {
                self.held.sub(&account.app, account.leases.len() as u64);
            }
            self.unsaved.insert(who);
            freed.push(who);
        }
        freed
    }

    /// When the next account becomes free, as the clock went when time was last passed in.
    pub fn next(&self) -> Option<UnixMillis> {
        self.frees.first().map(|(free, _)| self.steady.shown(*free))
    }

    /// What the next checkpoint writes: until when an account counts as online; None: its row goes.
    ///
    /// A row is written when the account comes, and then only if a start at this moment would take it for online for another
    /// time, longer or shorter, by half of the grace or more. As a start counts at least the grace, leases up to the grace, which
    /// are the rule, are written once however often they are renewed; and what a row falls short of the truth is less than the
    /// grace that follows it, so that no start sends to somebody while his lease runs.
    /// At most so many; the others are written with later ones.
    pub fn changed(&mut self, most: usize) -> Vec<(AccountHash, Option<UnixMillis>)> {
        let rest = self.unsaved.iter().nth(most).copied();
        let later = rest.map_or_else(BTreeSet::new, |first| self.unsaved.split_off(&first));
        let unsaved = std::mem::replace(&mut self.unsaved, later);
        let write = |who| {
            let row = self.accounts.get_mut(&who).map(|account| {
                let until = self.steady.shown(account.until);
                account.written = Some(until);
                until
            });
            (who, row)
        };
        unsaved.into_iter().map(write).collect()
    }

    /// Gives a session a lease in place of its last one. `written`: what the account's row says, if that is where it comes from.
    fn lease(&mut self, app: App, who: AccountHash, session: u64, end: Moment, moment: Moment, written: Option<UnixMillis>) {
        let account = self.accounts.entry(who).or_insert(Account { app, leases: Vec::new(), until: Moment(0), written: None });
        account.written = written.or(account.written);
        let before = account.leases.len();
        account.leases.retain(|lease| lease.end > moment && lease.session != session);
        if account.leases.len() >= self.sessions_max {
            // The one that ends first: the account stays online as long as it was told to.
            let first = (0..account.leases.len()).min_by_key(|index| account.leases[*index].end);
            first.map(|index| account.leases.remove(index));
        }
        if account.leases.is_empty() {
            // Most accounts have one.
            account.leases.reserve_exact(1);
        }
        account.leases.push(Lease { session, end });
        self.held.sub(&account.app, before as u64);
        self.held.add(&account.app, account.leases.len() as u64);
        let until = account.leases.iter().map(|lease| lease.end).max().unwrap_or(end);
        self.set_until(who, until);
    }

    fn set_until(&mut self, who: AccountHash, until: Moment) {
        let Some(account) = self.accounts.get_mut(&who) else { return };
        self.frees.remove(&(account.until.plus(self.grace), who));
        account.until = until;
        self.frees.insert((until.plus(self.grace), who));
    }

    /// The rule of [`Presence::changed`].
    fn save_if_worth(&mut self, who: AccountHash, moment: Moment) {
        let Some(account) = self.accounts.get(&who) else { return };
        let least = self.steady.shown(moment).plus(self.grace);
        let worth = account.written.is_none_or(|written| {
            let (row, truth) = (written.max(least), self.steady.shown(account.until).max(least));
            row.0.abs_diff(truth.0) >= (self.grace / 2).max(1)
        });
        if worth {
            self.unsaved.insert(who);
        }
    }
}

/// A point of a time that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(u64);

impl Moment {
    fn plus(self, millis: u64) -> Moment {
        Moment(self.0.saturating_add(millis))
    }
}

/// Makes moments of the clock's time: where the clock is put back, the moments go on from where they were.
#[derive(Debug, Default)]
struct Steady {
    latest: Moment,
    /// By how much the clock was put back, all in all.
    behind: u64,
}

impl Steady {
    fn pass(&mut self, now: UnixMillis) -> Moment {
        let moment = now.0.saturating_add(self.behind);
        self.behind = self.behind.saturating_add(self.latest.0.saturating_sub(moment));
        self.latest = self.latest.max(Moment(moment));
        self.latest
    }

    fn at(&self, now: UnixMillis) -> Moment {
        self.latest.max(Moment(now.0.saturating_add(self.behind)))
    }

    fn shown(&self, moment: Moment) -> UnixMillis {
        UnixMillis(moment.0.saturating_sub(self.behind))
    }

    /// A stored time: beyond the longest lease it was stored under another clock.
    fn believed(&self, stored: UnixMillis, moment: Moment) -> Moment {
        Moment(stored.0.saturating_add(self.behind)).min(moment.plus(LEASE_MAX_MILLIS))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_000);
    const GRACE: u64 = 120_000;
    const APP: App = 1;
    const ANNA: AccountHash = AccountHash(*b"anna----");
    const BERT: AccountHash = AccountHash(*b"bert----");

    #[test]
    fn an_app_has_as_many_leases_as_there_is_room_for() {
        let mut presence = Presence { held: Shares::new(4, [APP, 2]), ..presence() };
        let room = |presence: &Presence, app, who, session| presence.has_room(app, who, Some(session), START);
        presence.told(APP, ANNA, true, Some(1_000), Some("a"), START);
        presence.told(APP, ANNA, true, Some(5_000), Some("b"), START);
        assert!(room(&presence, APP, BERT, "a"));
        presence.told(APP, BERT, true, Some(9_000), Some("a"), START);
        assert!(
            !room(&presence, APP, BERT, "b") && !room(&presence, APP, AccountHash(*b"carl----"), "a"),
            "one is the other app's"
        );
        assert!(room(&presence, APP, ANNA, "a"), "a renewal takes no more");
        assert!(room(&presence, 2, AccountHash(*b"dora----"), "a"));
        presence.told(APP, ANNA, false, None, Some("b"), START);
        assert!(room(&presence, APP, BERT, "b"), "a session that has ended gives its place back");
        presence.told(APP, ANNA, true, Some(1_000), Some("c"), START);
        assert_eq!(presence.freed(at(10 * GRACE)).len(), 2);
        assert_eq!(presence.held.total(), 0);
        presence.told(APP, ANNA, true, None, Some("b"), at(10 * GRACE));
        presence.forget(ANNA);
        assert_eq!(presence.held.total(), 0);
    }

    fn presence() -> Presence {
        Presence::new(GRACE)
    }

    fn at(millis: u64) -> UnixMillis {
        START.plus(millis)
    }

    fn online(until: UnixMillis) -> Told {
        Told { online: true, until: Some(until) }
    }

    fn offline(since: UnixMillis) -> Told {
        Told { online: false, until: Some(since) }
    }

    #[test]
    fn a_lease_runs_then_the_grace() {
        let mut presence = presence();
        assert_eq!(presence.told(APP, ANNA, true, Some(30_000), None, START), online(at(30_000)));
        assert!(presence.is_online(ANNA, at(29_999)) && !presence.is_online(ANNA, at(30_000)));
        assert!(presence.holds_back(ANNA, at(149_999)) && !presence.holds_back(ANNA, at(150_000)));
        assert_eq!(presence.free_at(ANNA, at(10)), Some(at(150_000)));
        assert_eq!(presence.free_at(ANNA, at(150_000)), None);
        assert_eq!(presence.next(), Some(at(150_000)));
        assert_eq!(presence.freed(at(149_999)), []);
        assert_eq!(presence.freed(at(150_000)), [ANNA]);
        assert_eq!((presence.freed(at(150_000)), presence.next()), (vec![], None));
        assert!(presence.accounts.is_empty());
        assert!(!presence.is_online(BERT, START) && !presence.holds_back(BERT, START));
    }

    #[test]
    fn the_grace_is_the_default_lease() {
        let mut presence = presence();
        assert_eq!(presence.told(APP, ANNA, true, None, Some("tab"), START), online(at(GRACE)));
    }

    #[test]
    fn any_session_keeps_it_online() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, Some(30_000), Some("phone"), START);
        presence.told(APP, ANNA, true, Some(60_000), Some("desk"), START);
        presence.told(APP, ANNA, true, Some(10_000), None, START);
        assert_eq!(presence.told(APP, ANNA, false, None, Some("desk"), at(1_000)), online(at(30_000)));
        // One that is not known, or has ended, changes nothing.
        assert_eq!(presence.told(APP, ANNA, false, None, Some("desk"), at(2_000)), online(at(30_000)));
        // Nor does the one without a name end the others, but for a message that names none.
        assert_eq!(presence.told(APP, ANNA, false, None, Some(""), at(3_000)), online(at(30_000)));
        assert_eq!(presence.told(APP, ANNA, false, None, Some("phone"), at(4_000)), offline(at(4_000)));
        assert_eq!(presence.free_at(ANNA, at(4_000)), Some(at(4_000 + GRACE)));
    }

    #[test]
    fn offline_without_a_session_ends_all() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, None, Some("phone"), START);
        presence.told(APP, ANNA, true, None, None, START);
        assert_eq!(presence.told(APP, ANNA, false, None, None, at(5_000)), offline(at(5_000)));
        // Said again it does not start the grace anew.
        assert_eq!(presence.told(APP, ANNA, false, None, None, at(50_000)), offline(at(5_000)));
        assert_eq!(presence.told(APP, ANNA, false, None, Some("phone"), at(60_000)), offline(at(5_000)));
        assert_eq!(presence.freed(at(5_000 + GRACE)), [ANNA]);
    }

    #[test]
    fn who_was_not_here_need_not_wait() {
        let mut presence = presence();
        assert_eq!(presence.told(APP, ANNA, false, None, None, START), Told { online: false, until: None });
        assert!(!presence.holds_back(ANNA, START));
        assert_eq!((presence.next(), presence.changed(usize::MAX)), (None, vec![]));
    }

    #[test]
    fn a_shorter_lease_takes_the_place_of_a_longer_one() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, Some(3_600_000), None, START);
        assert_eq!(presence.told(APP, ANNA, true, Some(1_000), None, at(10)), online(at(1_010)));
        assert_eq!(presence.next(), Some(at(1_010 + GRACE)));
    }

    #[test]
    fn a_reload_within_the_grace_is_no_leaving() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, None, None, START);
        presence.told(APP, ANNA, false, None, None, at(1_000));
        presence.told(APP, ANNA, true, None, None, at(3_000));
        assert_eq!(presence.freed(at(1_000 + GRACE)), []);
        // Free for a moment, and back before anybody asked: then it is told when it is free for good.
        presence.told(APP, ANNA, true, Some(1), None, at(10 * GRACE));
        assert_eq!(presence.freed(at(10 * GRACE)), []);
        assert_eq!(presence.freed(at(11 * GRACE + 1)), [ANNA]);
    }

    #[test]
    fn renewals_take_no_memory_and_few_writes() {
        let mut presence = presence();
        let mut rows = 0;
        for n in 0..10_000 {
            presence.told(APP, ANNA, true, None, Some("tab"), at(n * 30_000));
            presence.told(APP, BERT, true, Some(3_600_000), Some("tab"), at(n * 1_000));
            rows += presence.changed(usize::MAX).iter().filter(|(who, _)| *who == ANNA).count();
        }
        assert_eq!((presence.frees.len(), presence.accounts[&ANNA].leases.len()), (2, 1));
        assert_eq!(presence.accounts[&ANNA].leases.capacity(), 1);
        assert_eq!(rows, 1, "a lease no longer than the grace is written once");
        assert!(presence.unsaved.is_empty());
    }

    #[test]
    fn long_leases_are_written_each_half_of_the_grace() {
        let mut presence = presence();
        let mut rows = Vec::new();
        for second in 0..600 {
            presence.told(APP, ANNA, true, Some(3_600_000), None, at(second * 1_000));
            rows.extend(presence.changed(usize::MAX));
        }
        let expected: Vec<_> = (0..10).map(|minute| (ANNA, Some(at(3_600_000 + minute * 60_000)))).collect();
        assert_eq!(rows, expected);
        // Leaving is far from what the row says.
        presence.told(APP, ANNA, false, None, None, at(600_000));
        assert_eq!(presence.changed(usize::MAX), [(ANNA, Some(at(600_000)))]);
        presence.freed(at(600_000 + GRACE));
        assert_eq!(presence.changed(usize::MAX), [(ANNA, None)]);
        assert_eq!(presence.changed(usize::MAX), []);
    }

    #[test]
    fn sessions_are_bounded() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, Some(1_000_000), Some("the longest"), START);
        for n in 0..1_000 {
            presence.told(APP, ANNA, true, Some(10_000 + n), Some(&n.to_string()), START);
        }
        assert_eq!(presence.accounts[&ANNA].leases.len(), SESSIONS_MAX);
        assert!(presence.accounts[&ANNA].leases.capacity() <= SESSIONS_MAX);
        assert_eq!(presence.told(APP, ANNA, false, None, Some("999"), at(1)), online(at(1_000_000)));
        assert_eq!(presence.told(APP, ANNA, false, None, Some("the longest"), at(1)), online(at(10_998)));
        // The sessions that have ended make room.
        presence.told(APP, ANNA, true, None, Some("new"), at(20_000));
        assert_eq!(presence.accounts[&ANNA].leases.len(), 1);
    }

    #[test]
    fn a_start_counts_the_stored_lease_and_at_least_the_grace() {
        let mut presence = presence();
        presence.restore(ANNA, at(1_000_000), START);
        presence.restore(BERT, UnixMillis(1), START);
        assert!(presence.is_online(ANNA, at(999_999)) && !presence.is_online(ANNA, at(1_000_000)));
        assert!(presence.is_online(BERT, at(GRACE - 1)) && !presence.is_online(BERT, at(GRACE)));
        assert_eq!(presence.free_at(BERT, START), Some(at(2 * GRACE)));
        // What was read is not written again.
        assert_eq!(presence.changed(usize::MAX), []);
        // The stored lease belongs to no session, but the whole account can leave.
        presence.told(APP, ANNA, true, None, Some("tab"), START);
        assert_eq!(presence.told(APP, ANNA, false, None, Some("tab"), at(1)), online(at(1_000_000)));
        assert_eq!(presence.told(APP, ANNA, false, None, None, at(2)), offline(at(2)));
        assert_eq!(presence.freed(at(2 * GRACE)), [ANNA, BERT]);
        assert_eq!(presence.changed(usize::MAX), [(ANNA, None), (BERT, None)]);
    }

    #[test]
    fn a_clock_put_back_makes_no_lease_longer() {
        let mut presence = presence();
        presence.told(APP, ANNA, true, Some(30_000), None, START);
        presence.told(APP, BERT, true, Some(3_600_000), None, START);
        assert_eq!(presence.freed(at(10_000)), []);
        // A year: 20 s of the lease are left.
        let back = |millis: u64| UnixMillis(START.0 - 31_536_000_000 + millis);
        assert_eq!(presence.free_at(ANNA, back(0)), Some(at(150_000)), "not noticed yet");
        assert_eq!(presence.freed(back(0)), []);
        assert_eq!(presence.free_at(ANNA, back(0)), Some(back(140_000)));
        assert_eq!(presence.next(), Some(back(140_000)));
        assert!(presence.is_online(ANNA, back(19_999)) && !presence.is_online(ANNA, back(20_000)));
        assert_eq!(presence.freed(back(140_000)), [ANNA]);
        // New leases are told in the new time, and put into the rows.
        let told = presence.told(APP, BERT, true, Some(3_600_000), None, back(150_000));
        assert_eq!(told, online(back(3_750_000)));
        assert!(presence.changed(usize::MAX).contains(&(BERT, Some(back(3_750_000)))));
    }

    #[test]
    fn a_row_of_another_clock_holds_for_a_day_at_most() {
        let mut presence = presence();
        presence.restore(ANNA, UnixMillis::NEVER, START);
        assert_eq!(presence.next(), Some(at(86_400_000 + GRACE)));
        presence.told(APP, BERT, true, Some(u64::MAX), None, START);
        assert_eq!(presence.free_at(BERT, START), Some(at(86_400_000 + GRACE)));
        presence.told(APP, BERT, true, None, None, UnixMillis::NEVER);
        presence.freed(UnixMillis(0));
        presence.freed(UnixMillis::NEVER);
    }

    /// Keeps every lease ever told, from when to when, and searches them all.
    #[derive(Default)]
    struct Model {
        leases: BTreeMap<AccountHash, Vec<(Option<String>, UnixMillis, UnixMillis)>>,
    }

    impl Model {
        fn told(&mut self, who: AccountHash, lease: Option<u64>, session: Option<&str>, most: usize, now: UnixMillis) -> Told {
            let entry = self.leases.entry(who);
            match lease {
                Some(lease) => {
                    let name = Some(session.unwrap_or("").to_owned());
                    let all = entry.or_default();
                    let end = |lease: &mut (Option<String>, UnixMillis, UnixMillis)| lease.2 = lease.2.min(now);
                    all.iter_mut().filter(|(known, ..)| *known == name).for_each(end);
                    let mut running: Vec<_> = all.iter_mut().filter(|(.., end)| *end > now).collect();
                    if running.len() >= most {
                        running.sort_by_key(|(.., end)| *end);
                        end(running[0]);
                    }
                    all.push((name, now, now.plus(lease)));
                }
                None => {
                    for (known, _, end) in entry.or_default() {
                        if session.is_none() || known.as_deref() == session {
                            *end = now.min(*end);
                        }
                    }
                }
            }
            Told { online: self.online(who, now), until: self.until(who) }
        }

        fn online(&self, who: AccountHash, now: UnixMillis) -> bool {
            self.leases.get(&who).is_some_and(|all| all.iter().any(|(_, start, end)| *start <= now && now < *end))
        }

        fn until(&self, who: AccountHash) -> Option<UnixMillis> {
            self.leases.get(&who)?.iter().map(|(.., end)| *end).max()
        }

        fn free_at(&self, who: AccountHash, grace: u64, now: UnixMillis) -> Option<UnixMillis> {
            Some(self.until(who)?.plus(grace)).filter(|free| *free > now)
        }

        fn freed(&mut self, grace: u64, now: UnixMillis) -> Vec<AccountHash> {
            let free = |who: &AccountHash| self.until(*who).is_some_and(|until| until.plus(grace) <= now);
            let freed: Vec<_> = self.leases.keys().copied().filter(free).collect();
            self.leases.retain(|who, all| !freed.contains(who) && !all.is_empty());
            freed
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Online {
            who: u8,
            lease: Option<u64>,
            session: Option<u8>,
        },
        Offline {
            who: u8,
            session: Option<u8>,
        },
        Pass(u64),
        Freed,
        Checkpoint,
        /// What was told since the last checkpoint is lost.
        Restart,
        /// The clock is put back by so much.
        Back(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let session = || proptest::option::of(0u8..6);
        prop_oneof![
            8 => (0u8..12, proptest::option::of(0u64..5_000), session())
                .prop_map(|(who, lease, session)| Step::Online { who, lease, session }),
            3 => (0u8..12, session()).prop_map(|(who, session)| Step::Offline { who, session }),
            8 => (0u64..1_500).prop_map(Step::Pass),
            4 => Just(Step::Freed),
            4 => Just(Step::Checkpoint),
            1 => Just(Step::Restart),
            1 => (0u64..10_000).prop_map(Step::Back),
        ]
    }

    proptest! {
        /// The model lives in a time that never goes back, `ahead` of the clock that the other is told.
        #[test]
        fn agrees_with_a_plain_model(grace in 0u64..2_000, steps in proptest::collection::vec(step(), 1..200)) {
            const MOST: usize = 3;
            let name = |who: u8| AccountHash([who; 8]);
            let fresh = || Presence { sessions_max: MOST, ..Presence::new(grace) };
            let (mut presence, mut model) = (fresh(), Model::default());
            let mut rows: BTreeMap<AccountHash, UnixMillis> = BTreeMap::new();
            let (mut time, mut ahead) = (START, 0);
            for step in steps {
                let clock = UnixMillis(time.0 - ahead);
                let shown = |time: UnixMillis| UnixMillis(time.0 - ahead);
                match step {
                    Step::Online { who, lease, session } => {
                        let session = session.map(|session| session.to_string());
                        let told = presence.told(APP, name(who), true, lease, session.as_deref(), clock);
                        let expected = model.told(name(who), Some(lease.unwrap_or(grace)), session.as_deref(), MOST, time);
                        prop_assert_eq!(told, Told { until: expected.until.map(shown), ..expected });
                    }
                    Step::Offline { who, session } => {
                        let session = session.map(|session| session.to_string());
                        let told = presence.told(APP, name(who), false, None, session.as_deref(), clock);
                        let expected = model.told(name(who), None, session.as_deref(), MOST, time);
                        prop_assert_eq!(told, Told { until: expected.until.map(shown), ..expected });
                    }
                    Step::Pass(millis) => time = time.plus(millis),
                    Step::Freed => {
                        let mut freed = presence.freed(clock);
                        freed.sort();
                        prop_assert_eq!(freed, model.freed(grace, time));
                    }
                    Step::Checkpoint => {
                        for (who, row) in presence.changed(usize::MAX) {
                            match row {
                                Some(until) => rows.insert(who, until),
                                None => rows.remove(&who),
                            };
                        }
                        prop_assert_eq!(presence.changed(usize::MAX), vec![]);
                        // Who is known has a row, nobody else has; and a start now would not be far off.
                        let known: Vec<_> = model.leases.iter().filter(|(_, all)| !all.is_empty()).map(|(who, _)| *who).collect();
                        prop_assert_eq!(rows.keys().copied().collect::<Vec<_>>(), known);
                        for (who, row) in rows.iter().filter(|_| ahead == 0) {
                            let truth = model.until(*who).expect("it is known").max(time.plus(grace));
                            let counted = (*row).max(time.plus(grace));
                            prop_assert!(counted.0.abs_diff(truth.0) < (grace / 2).max(1));
                            prop_assert!(counted.plus(grace) >= truth);
                        }
                    }
                    Step::Restart => {
                        // From here on the clock is right.
                        (presence, model, ahead, time) = (fresh(), Model::default(), 0, clock);
                        for (who, until) in &rows {
                            presence.restore(*who, *until, clock);
                            // docs/design.md 8.3: until its stored lease ends, at least for the grace.
                            let end = (*until).min(time.plus(LEASE_MAX_MILLIS)).max(time.plus(grace));
                            model.leases.insert(*who, vec![(None, time, end)]);
                        }
                    }
                    Step::Back(millis) => {
                        // What it looked at last, so that nothing of the time between is lost.
                        prop_assert_eq!(presence.freed(clock).len(), model.freed(grace, time).len());
                        ahead += millis;
                        prop_assert_eq!(presence.freed(UnixMillis(time.0 - ahead)), vec![]);
                    }
                }
                let clock = UnixMillis(time.0 - ahead);
                let shown = |time: UnixMillis| UnixMillis(time.0 - ahead);
                for who in (0..12).map(name) {
                    prop_assert_eq!(presence.is_online(who, clock), model.online(who, time));
                    prop_assert_eq!(presence.free_at(who, clock), model.free_at(who, grace, time).map(shown));
                    prop_assert_eq!(presence.holds_back(who, clock), model.free_at(who, grace, time).is_some());
                }
                let next = model.leases.keys().filter_map(|who| model.until(*who)).min();
                prop_assert_eq!(presence.next(), next.map(|until| shown(until.plus(grace))));
                prop_assert_eq!(presence.frees.len(), presence.accounts.len());
                prop_assert!(presence.accounts.values().all(|account| account.leases.len() <= MOST));
            }
        }
    }
}
