//! Shares of something that is bounded in all: an app may have what is free, less what the others may still claim.
//!
//! Promise: half of the whole is divided equally among the apps, and nobody takes an app's part of it; the other half goes to whoever
//! comes first. So one app alone has all of it, and no app fills it for the others.

/// Something bounded, and how much of it each app has.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares<App> {
    most: u64,
    used: Vec<(App, u64)>,
    /// Held by no app that is known: kept by a version that did not note whose it is, or of an app that is configured no more.
    unknown: u64,
}

impl<App: Clone + PartialEq> Shares<App> {
    /// Nobody has any. `most` is the bound in all.
    pub fn new(most: u64, apps: impl IntoIterator<Item = App>) -> Shares<App> {
        Shares { most, used: apps.into_iter().map(|app| (app, 0)).collect(), unknown: 0 }
    }

    /// One app more: it has none yet.
    pub fn know(&mut self, app: App) {
        if self.used.iter().all(|(of, _)| *of != app) {
            self.used.push((app, 0));
        }
    }

    /// How much more an app may take.
    pub fn room(&self, app: &App) -> u64 {
        let part = self.most / (2 * self.used.len().max(1) as u64);
        let kept: u64 = self.used.iter().filter(|(of, _)| of != app).map(|(_, used)| part.saturating_sub(*used)).sum();
        self.most.saturating_sub(self.total() + kept)
    }

    /// An app has taken so much, whether there was room or not.
    pub fn add(&mut self, app: &App, n: u64) {
        match self.used.iter_mut().find(|(of, _)| of == app) {
            Some((_, used)) => *used += n,
            None => self.unknown += n,
        }
    }

    /// An app gives so much back.
    pub fn sub(&mut self, app: &App, n: u64) {
        let rest = match self.used.iter_mut().find(|(of, _)| of == app) {
            Some((_, used)) => {
                let own = n.min(*used);
                *used -= own;
                n - own
            }
            None => n,
        };
        self.unknown = self.unknown.saturating_sub(rest);
    }

    /// So much is held by nobody who is known.
    pub fn add_unknown(&mut self, n: u64) {
        self.unknown += n;
    }

    /// What all have together.
    pub fn total(&self) -> u64 {
        self.used.iter().map(|(_, used)| used).sum::<u64>() + self.unknown
    }

    /// What each app has.
    pub fn each(&self) -> impl Iterator<Item = &(App, u64)> {
        self.used.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_alone_has_all_of_it() {
        let mut shares = Shares::new(10, ["a"]);
        assert_eq!(shares.room(&"a"), 10);
        shares.add(&"a", 10);
        assert_eq!(shares.room(&"a"), 0);
        shares.sub(&"a", 4);
        assert_eq!((shares.room(&"a"), shares.total()), (4, 6));
    }

    #[test]
    fn no_app_takes_another_ones_part() {
        let mut shares = Shares::new(100, ["a", "b", "c", "d", "e"]);
        assert_eq!(shares.room(&"a"), 60, "four others may claim ten each");
        shares.add(&"a", 60);
        assert_eq!((shares.room(&"a"), shares.room(&"b")), (0, 10));
        shares.add(&"b", 10);
        assert_eq!((shares.room(&"a"), shares.room(&"b"), shares.room(&"c")), (0, 0, 10));
        shares.sub(&"a", 30);
        assert_eq!((shares.room(&"a"), shares.room(&"b"), shares.room(&"c")), (30, 30, 40));
    }

    #[test]
    fn what_nobody_is_known_to_have_counts_until_it_is_given_back() {
        let mut shares = Shares::new(10, ["a", "b"]);
        shares.add_unknown(6);
        shares.add(&"gone", 1);
        assert_eq!((shares.total(), shares.room(&"a")), (7, 1));
        shares.add(&"a", 1);
        shares.sub(&"a", 3);
        assert_eq!(shares.total(), 5, "one was its own, two were not noted");
        shares.sub(&"b", 9);
        assert_eq!(shares.total(), 0);
    }
}
