//! Key agreements made ahead of need: of a push message's 24 us, a key pair and its ECDH secret take 9 (batched; 48 by aws-lc-rs),
//! and neither depends on the message. RFC 8291 section 3.1 asks for a new key pair for each message; it does not ask that it be made at
//! the last moment.
//!
//! Two things are kept. Key pairs, for whichever message is sealed alone: half of what aws-lc-rs would have to do for it. And,
//! for lists and campaigns that are paused or wait for their `at`, the whole agreement with their first recipients, list by list:
//! when such a one is let go, its messages cost HKDF and AES only. `plan.rs` says who is next.
//!
//! Promises. What is kept lies in memory only, never more than `encrypt.warm_memory`, and is in no log. Each pair and each secret
//! is taken out by the one message that uses it. A secret is used only for the very public key it was made with. It is wiped when it has been
//! used, when its list ends in whatever way (within about a second), and when the bound is lowered. Nothing is made while a
//! run waits for a worker: a worker that has none does one small step, and looks again.

mod plan;

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use p256_batch::Agreed;
use zeroize::Zeroizing;

use crate::encrypt::payload::{Agreement, Pair, wiping_stack};
use crate::encrypt::warm::plan::{Plan, Turn};
use crate::message::{Delivery, Recipient, UnixMillis};
use crate::metrics::WarmUsage;
use crate::store::Store;
use crate::store::live::{ListKey, lock};

/// A worker that has had no run for so long is idle. Between the runs of a burst the sockets need the cores.
pub const QUIET: Duration = Duration::from_millis(20);
/// How long a worker waits for a run when there is nothing to make.
const NOTHING: Duration = Duration::from_millis(500);
/// How long while another one looks for what is next.
const ELSEWHERE: Duration = Duration::from_millis(1);

/// Key pairs at most; and of the bound they take no more than this share.
const PAIRS: usize = 1_024;
const PAIRS_SHARE: usize = 16;
/// A pair's memory, measured: an EVP_PKEY with its EC_KEY, point and scalar are four allocations.
const PAIR_BYTES: usize = 768;

/// Secrets of a list are spread over so many maps, so that workers do not wait for each other.
const SHARDS: usize = 16;
/// A secret's memory: its box, and its share of a map at its emptiest, which is when it has just grown (16 bytes and one of
/// control for each bucket, of which at least 7 in 16 are taken, and what the allocator rounds up).
const SECRET_BYTES: usize = size_of::<Secret>();
const PLACE_BYTES: usize = 46;
/// A list's memory beside them.
const STOCK_BYTES: usize = size_of::<Stock>() + 64 * SHARDS;

// One of jemalloc's size classes: nothing is rounded up.
const _: () = assert!(SECRET_BYTES == 160);

/// What is kept ahead, shared by all workers.
pub struct Warm {
    held: Arc<Held>,
    pairs: Mutex<Vec<Pair>>,
    stocks: RwLock<HashMap<ListKey, Arc<Stock>>>,
    plan: Mutex<Plan>,
    /// Its keys are this process's own: nobody can choose public keys that meet in one place.
    hasher: RandomState,
    secrets_used: AtomicU64,
    pairs_used: AtomicU64,
}

/// Bytes in use and their bound.
struct Held {
    bytes: AtomicUsize,
    bound: AtomicUsize,
    secrets: AtomicUsize,
}

/// The secrets of one list.
struct Stock {
    held: Arc<Held>,
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// By a keyed hash of the recipient's public key and `auth`. No second one under a hash: that would be the same browser twice.
    secrets: HashMap<u64, Box<Secret>>,
    /// As many as it has ever had at once, which is what it has memory for: it does not shrink when secrets are taken out.
    places: usize,
}

/// An agreement with one browser. Public keys without the byte that all of them begin with.
struct Secret {
    theirs: [u8; 64],
    ours: [u8; 64],
    secret: Zeroizing<[u8; 32]>,
}

/// Whom a secret is made for.
#[derive(Clone, Copy)]
struct Browser {
    hash: u64,
    p256dh: [u8; 65],
}

impl Warm {
    /// At most `bound` bytes; 0 keeps nothing.
    pub fn new(bound: usize) -> Warm {
        Warm {
            held: Arc::new(Held { bytes: 0.into(), bound: bound.into(), secrets: 0.into() }),
            pairs: Mutex::default(),
            stocks: RwLock::default(),
            plan: Mutex::default(),
            hasher: RandomState::new(),
            secrets_used: 0.into(),
            pairs_used: 0.into(),
        }
    }

    /// Another bound. What is beyond it goes with the next [`Warm::look`].
    pub fn set_bound(&self, bound: usize) {
        self.held.bound.store(bound, Ordering::Relaxed);
    }

    /// What there is.
    pub fn usage(&self) -> WarmUsage {
        WarmUsage {
            bytes: self.held.bytes.load(Ordering::Relaxed),
            secrets: self.held.secrets.load(Ordering::Relaxed),
            pairs: lock(&self.pairs).len(),
            secrets_used: self.secrets_used.load(Ordering::Relaxed),
            pairs_used: self.pairs_used.load(Ordering::Relaxed),
        }
    }

    /// Takes out the agreements of a slice's deliveries that there are: one place for each in `taken`, in place of the last slice's.
    pub fn take<'a>(&self, slice: impl Iterator<Item = &'a Delivery>, taken: &mut Vec<Option<Agreed>>) {
        taken.clear();
        let stocks = self.stocks.read().unwrap_or_else(PoisonError::into_inner);
        if stocks.is_empty() {
            return;
        }
        wiping_stack(|| {
            taken.extend(slice.map(|delivery| {
                let stock = stocks.get(&ListKey::of_batch(&delivery.id.batch)?)?;
                stock.take(&self.browser(&delivery.recipient))
            }))
        });
        let used = taken.iter().flatten().count();
        self.secrets_used.fetch_add(used as u64, Ordering::Relaxed);
    }

    /// Takes out a key pair, if there is one.
    pub fn take_pair(&self) -> Option<Pair> {
        let pair = lock(&self.pairs).pop()?;
        self.held.give_back(PAIR_BYTES);
        self.pairs_used.fetch_add(1, Ordering::Relaxed);
        Some(pair)
    }

    /// Does one small step of what is to be done ahead, and says how long to wait for a run before the next. A step is a key
    /// pair, a pass of key agreements, or the reading of a few recipients: a run that comes meanwhile waits for some 100 us.
    pub fn step(&self, store: &Store, agreement: Agreement) -> Duration {
        if self.held.bound() == 0 {
            return NOTHING;
        }
        if self.make_pair() {
            return Duration::ZERO;
        }
        let Ok(mut plan) = self.plan.try_lock() else { return ELSEWHERE };
        let turn = plan.turn(self, store, agreement.together());
        drop(plan);
        match turn {
            Turn::Nothing => NOTHING,
            Turn::Again => Duration::ZERO,
            Turn::Make(stock, browsers) => {
                self.make(&stock, &browsers, agreement);
                Duration::ZERO
            }
        }
    }

    /// Looks which lists wait, and wipes what belongs to those that have ended, and what is beyond the bound. To be called every second
    /// or so, by nobody whom a run waits for.
    pub fn look(&self, store: &Store, now: UnixMillis) {
        let most = self.pairs_most();
        let beyond = {
            let mut pairs = lock(&self.pairs);
            let keep = pairs.len().min(most);
            pairs.split_off(keep)
        };
        self.held.give_back(beyond.len() * PAIR_BYTES);
        let ended = lock(&self.plan).look(self, store, now);
        // Hundreds of thousands of secrets take a while to wipe: not under the lock.
        drop(ended);
    }

    fn pairs_most(&self) -> usize {
        PAIRS.min(self.held.bound() / PAIRS_SHARE / PAIR_BYTES)
    }

    /// Makes one key pair, if one is missing.
    fn make_pair(&self) -> bool {
        if lock(&self.pairs).len() >= self.pairs_most() || !self.held.reserve(PAIR_BYTES) {
            return false;
        }
        match Pair::generate() {
            Ok(pair) => {
                lock(&self.pairs).push(pair);
                true
            }
            Err(_) => {
                self.held.give_back(PAIR_BYTES);
                false
            }
        }
    }

    /// Agrees with these browsers. The memory is reserved.
    fn make(&self, stock: &Stock, browsers: &[Browser], agreement: Agreement) {
        let theirs: Vec<&[u8; 65]> = browsers.iter().map(|browser| &browser.p256dh).collect();
        let mut agreed = Vec::with_capacity(theirs.len());
        wiping_stack(|| {
            agreement.agree(&theirs, || self.take_pair_unused(), &mut agreed);
            for (browser, agreed) in browsers.iter().zip(&agreed) {
                // A key that is no point of the curve is met again, and told, when the message is sealed.
                if !agreed.as_ref().is_ok_and(|agreed| stock.keep(browser, agreed)) {
                    self.held.give_back(SECRET_BYTES + PLACE_BYTES);
                }
            }
        });
    }

    /// As [`Warm::take_pair`], for what is made ahead itself: no message has been served.
    fn take_pair_unused(&self) -> Option<Pair> {
        let pair = lock(&self.pairs).pop()?;
        self.held.give_back(PAIR_BYTES);
        Some(pair)
    }

    fn browser(&self, recipient: &Recipient) -> Browser {
        let hash = self.hasher.hash_one((&recipient.p256dh, &recipient.auth));
        Browser { hash, p256dh: recipient.p256dh }
    }

    fn stock(&self, list: ListKey) -> Option<Arc<Stock>> {
        self.stocks.read().unwrap_or_else(PoisonError::into_inner).get(&list).cloned()
    }

    /// A list's stock, with memory reserved for so many more secrets. None: there is no room.
    fn reserve(&self, list: ListKey, secrets: usize) -> Option<Arc<Stock>> {
        let known = self.stock(list);
        let base = if known.is_none() { STOCK_BYTES } else { 0 };
        if !self.held.reserve(base + secrets * (SECRET_BYTES + PLACE_BYTES)) {
            return None;
        }
        Some(known.unwrap_or_else(|| {
            let stock = Arc::new(Stock { held: self.held.clone(), shards: Default::default() });
            self.stocks.write().unwrap_or_else(PoisonError::into_inner).insert(list, stock.clone());
            stock
        }))
    }

    /// Takes a list's secrets away from everybody: they are wiped where what this gives is dropped.
    fn forget(&self, list: ListKey) -> Option<Arc<Stock>> {
        self.stocks.write().unwrap_or_else(PoisonError::into_inner).remove(&list)
    }
}

impl Held {
    fn bound(&self) -> usize {
        self.bound.load(Ordering::Relaxed)
    }

    /// Takes so many bytes, if they are there.
    fn reserve(&self, bytes: usize) -> bool {
        let bound = self.bound();
        let more = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= bound);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Stock {
    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[hash as usize % SHARDS]
    }

    fn has(&self, browser: &Browser) -> bool {
        lock(self.shard(browser.hash)).secrets.contains_key(&browser.hash)
    }

    /// Keeps an agreement whose memory is reserved; false: there is one.
    fn keep(&self, browser: &Browser, agreed: &Agreed) -> bool {
        let mut shard = lock(self.shard(browser.hash));
        let Entry::Vacant(place) = shard.secrets.entry(browser.hash) else { return false };
        let after_first = |point: &[u8; 65]| *point[1..].first_chunk().expect("64 of 65 bytes");
        place.insert(Box::new(Secret {
            theirs: after_first(&browser.p256dh),
            ours: after_first(&agreed.as_public),
            secret: agreed.secret.clone(),
        }));
        if shard.secrets.len() > shard.places {
            shard.places = shard.secrets.len();
        } else {
            self.held.give_back(PLACE_BYTES);
        }
        self.held.secrets.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Takes out the agreement with this browser, if it was made with this very key.
    fn take(&self, browser: &Browser) -> Option<Agreed> {
        let found = {
            let mut shard = lock(self.shard(browser.hash));
            match shard.secrets.entry(browser.hash) {
                Entry::Occupied(found) if browser.p256dh[0] == 4 && found.get().theirs[..] == browser.p256dh[1..] => {
                    found.remove()
                }
                _ => return None,
            }
        };
        self.gone(1);
        let mut as_public = [4; 65];
        as_public[1..].copy_from_slice(&found.ours);
        Some(Agreed { as_public, secret: found.secret.clone() })
    }

    /// Wipes as many as `most`; false: there is none.
    fn wipe(&self, most: usize) -> bool {
        let mut wiped = 0;
        for shard in &self.shards {
            wiped += lock(shard).secrets.extract_if(|_, _| true).take(most - wiped).count();
        }
        self.gone(wiped);
        wiped > 0
    }

    fn is_empty(&self) -> bool {
        self.shards.iter().all(|shard| lock(shard).secrets.is_empty())
    }

    /// The memory that it takes.
    fn bytes(&self) -> usize {
        let of = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            shard.places * PLACE_BYTES + shard.secrets.len() * SECRET_BYTES
        };
        STOCK_BYTES + self.shards.iter().map(of).sum::<usize>()
    }

    fn gone(&self, secrets: usize) {
        self.held.give_back(secrets * SECRET_BYTES);
        self.held.secrets.fetch_sub(secrets, Ordering::Relaxed);
    }
}

impl Drop for Stock {
    fn drop(&mut self) {
        self.held.give_back(self.bytes());
        let left = self.shards.iter().map(|shard| lock(shard).secrets.len()).sum();
        self.held.secrets.fetch_sub(left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use p256::elliptic_curve::sec1::ToSec1Point;

    use super::*;
    use crate::encrypt::payload::{Plain, Sealer};
    use crate::message::Encoding;

    const LIST: ListKey = ListKey { commit: 1, place: 0 };

    /// The browser with this number, and an agreement with it that nobody has made.
    fn one(number: u64) -> (Browser, Agreed) {
        let mut p256dh = [4; 65];
        p256dh[1..9].copy_from_slice(&number.to_be_bytes());
        // Spread, as hashes are.
        let browser = Browser { hash: number.wrapping_mul(0x9e37_79b9_7f4a_7c15), p256dh };
        (browser, Agreed { as_public: p256dh, secret: Zeroizing::new([number as u8; 32]) })
    }

    fn keep(warm: &Warm, list: ListKey, number: u64) -> bool {
        let Some(stock) = warm.reserve(list, 1) else { return false };
        let (browser, agreed) = one(number);
        stock.keep(&browser, &agreed)
    }

    #[test]
    fn a_secret_is_taken_once_and_for_its_very_key() {
        let warm = Warm::new(1 << 20);
        assert!(keep(&warm, LIST, 7));
        let stock = warm.stock(LIST).unwrap();
        let (browser, agreed) = one(7);
        assert!(!stock.keep(&browser, &agreed), "there is one");
        for changed in [0, 1, 64] {
            let mut other = browser;
            other.p256dh[changed] ^= 1;
            assert!(stock.take(&other).is_none(), "under the same hash");
        }
        assert!(warm.stock(ListKey { place: 1, ..LIST }).is_none(), "a list of its own");
        let taken = stock.take(&browser).unwrap();
        assert_eq!((taken.as_public, *taken.secret), (browser.p256dh, [7; 32]));
        assert!(stock.take(&browser).is_none());
        assert_eq!(warm.usage().secrets, 0);
    }

    #[test]
    fn what_is_counted_is_given_back() {
        let warm = Warm::new(100_000);
        let most = (0..).take_while(|number| keep(&warm, LIST, *number)).count();
        let full = warm.usage();
        assert_eq!(full.secrets, most);
        assert!(full.bytes <= 100_000 && full.bytes + SECRET_BYTES + PLACE_BYTES > 100_000, "{full:?}");
        assert!(warm.reserve(ListKey { place: 1, ..LIST }, 1).is_none(), "it is full");
        let stock = warm.stock(LIST).unwrap();
        assert_eq!(stock.bytes(), full.bytes);
        (0..10).for_each(|number| assert!(stock.take(&one(number).0).is_some()));
        assert!(stock.wipe(20));
        assert_eq!((warm.usage().secrets, warm.usage().bytes), (most - 30, full.bytes - 30 * SECRET_BYTES));
        // Who is making some for a list that has ended keeps it a moment longer.
        let forgotten = warm.forget(LIST).unwrap();
        drop(forgotten);
        assert_eq!(warm.usage().secrets, most - 30);
        drop(stock);
        assert_eq!((warm.usage().secrets, warm.usage().bytes), (0, 0));
    }

    #[test]
    fn key_pairs_are_bounded_and_taken_once() {
        let warm = Warm::new(PAIRS_SHARE * PAIR_BYTES * 3);
        assert_eq!((0..).take_while(|_| warm.make_pair()).count(), 3);
        assert_eq!((warm.usage().pairs, warm.usage().bytes), (3, 3 * PAIR_BYTES));
        assert!(warm.take_pair().is_some() && warm.make_pair() && !warm.make_pair());
        assert_eq!((0..).take_while(|_| warm.take_pair().is_some()).count(), 3);
        assert_eq!((warm.usage().bytes, warm.usage().pairs_used), (0, 4));
        assert!(!Warm::new(0).make_pair());
    }

    #[test]
    fn a_place_is_counted_once() {
        let warm = Warm::new(100_000);
        let fill = |from: u64| (from..).take_while(|number| keep(&warm, LIST, *number)).count() as u64;
        let most = fill(0);
        let full = warm.usage();
        for round in 1..10 {
            let stock = warm.stock(LIST).unwrap();
            let from = 1_000_000 * (round - 1);
            (from..from + most).for_each(|number| drop(stock.take(&one(number).0)));
            assert!(stock.is_empty());
            // The hashes are others, and spread over the maps in another way.
            let again = fill(1_000_000 * round);
            assert!(again + 64 > most && again <= most, "{again} where there were {most}");
            (again..most).for_each(|number| assert!(!keep(&warm, LIST, 1_000_000 * round + number)));
            assert!(warm.usage().bytes <= full.bytes);
        }
    }

    /// The calling thread's stack, to be looked at also where nothing lies any more.
    struct Stack {
        memory: std::fs::File,
        from: u64,
        bytes: Vec<u8>,
    }

    impl Stack {
        fn find() -> Stack {
            let local = 0u8;
            let here = (&raw const local).addr();
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
            let mut ranges = maps.lines().map(|line| {
                let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
                usize::from_str_radix(from, 16).unwrap()..usize::from_str_radix(to, 16).unwrap()
            });
            let range = ranges.find(|range| range.contains(&here)).unwrap();
            let memory = std::fs::File::open("/proc/self/mem").unwrap();
            Stack { memory, from: range.start as u64, bytes: vec![0; range.len()] }
        }

        /// One system call, so that little is overwritten by looking.
        #[inline(never)]
        fn look(&mut self) {
            assert_eq!(self.memory.read_at(&mut self.bytes, self.from).ok(), Some(self.bytes.len()));
        }
    }

    #[test]
    fn no_secret_stays_on_the_stack() {
        let private = p256::SecretKey::from_slice(&[0x37; 32]).unwrap();
        let p256dh: [u8; 65] = private.public_key().to_sec1_point(false).as_bytes().try_into().unwrap();
        let auth = [7; 16];
        let play = move |agreement: Agreement, made_ahead: bool| {
            let (warm, mut sealer) = (Warm::new(1 << 20), Sealer::new(agreement));
            let plain = || Plain { p256dh: &p256dh, auth: &auth, encoding: Encoding::Aes128gcm, payload: b"news", pad_to: 0 };
            let slice: [Plain<'_>; 8] = std::array::from_fn(|_| plain());
            let (mut ahead, mut out) = (Vec::with_capacity(8), Vec::with_capacity(8));
            let mut looks = [Stack::find(), Stack::find()];
            if made_ahead {
                let browsers: [Browser; 8] = std::array::from_fn(|hash| Browser { hash: hash as u64, p256dh });
                let stock = warm.reserve(LIST, 8).unwrap();
                warm.make(&stock, &browsers, agreement);
                looks[0].look();
                wiping_stack(|| ahead.extend(browsers.iter().map(|browser| stock.take(browser))));
                assert!(ahead.iter().all(Option::is_some));
            }
            sealer.seal_ahead(&slice, &mut ahead, || warm.take_pair(), &mut out);
            looks[1].look();
            for body in out {
                // RFC 8188 section 2.1: salt, record size, and behind a length the sender's public key.
                let ours = p256::PublicKey::from_sec1_bytes(&body.unwrap().bytes[21..86]).unwrap();
                let secret = private.diffie_hellman(&ours);
                for look in &looks {
                    let found = look.bytes.windows(32).filter(|bytes| bytes == &&secret.raw_secret_bytes()[..]).count();
                    assert_eq!(found, 0, "{agreement}, made ahead: {made_ahead}");
                }
            }
        };
        for agreement in [Agreement::fastest(), Agreement::AwsLc] {
            for made_ahead in [false, true] {
                let play = play.clone();
                std::thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || play(agreement, made_ahead))
                    .unwrap()
                    .join()
                    .unwrap();
            }
        }
    }

    /// What the process really grows by.
    #[test]
    fn what_is_counted_is_not_less_than_what_is_used() {
        let resident = || {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
        };
        let before = resident();
        let pairs: Vec<Pair> = (0..10_000).map(|_| Pair::generate().unwrap()).collect();
        let grown = resident() - before;
        assert!(grown < pairs.len() * PAIR_BYTES * 11 / 10, "{} bytes a pair", grown / pairs.len());
        let (warm, before) = (Warm::new(1 << 30), resident());
        // Just after the maps have grown.
        (0..115_500).for_each(|number| assert!(keep(&warm, LIST, number)));
        let (grown, counted) = (resident() - before, warm.usage().bytes);
        assert!(grown < counted * 11 / 10, "{grown} bytes, counted as {counted}");
    }
}
