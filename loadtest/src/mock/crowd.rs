//! Subscriptions by the million, of which nothing is kept but what came.
//!
//! A member is a number. Its endpoint, its keys and its `auth` follow from the crowd's seed and that number, here and in any
//! other process that knows the [`Plan`]; so a load generator writes a million of them without asking, and the mock recognises each
//! by its token alone. Key pairs are expensive (some 15 us), and a sender's work does not depend on them: members share
//! `keys` pairs in turn, each with an `auth` of its own; as many pairs as members are possible, at 97 bytes each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openssl::sha::sha256;
use serde::{Deserialize, Serialize};

use super::decrypt::{BrowserKeys, POINT};

/// Bytes of a token at least: the member's number and a check of it.
const TOKEN_HEAD: usize = 16;

/// What a crowd is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Plan {
    /// All else follows from it.
    pub seed: u64,
    /// Members; the numbers are 0 to `members` - 1.
    pub members: u32,
    /// Different key pairs.
    pub keys: u32,
    /// Length of an endpoint; shorter than some 50 bytes it does not become. FCM's have some 190, Mozilla's some 240.
    pub endpoint_bytes: usize,
    /// Decrypt one body in this many.
    pub verify_every: u64,
    /// Which of the mock's origins they lie at.
    pub origin: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { seed: 1, members: 1_000, keys: 1_000, endpoint_bytes: 0, verify_every: 1, origin: 0 }
    }
}

/// The members' side: what browsers know.
pub struct Members {
    plan: Plan,
    /// `https://host:port`.
    origin: Arc<str>,
    /// Private and public; `auth` is each member's own.
    pairs: Vec<([u8; 32], [u8; POINT])>,
}

impl Members {
    /// The members of a plan at an origin, `https://host:port`.
    pub fn new(plan: Plan, origin: &str) -> Members {
        let keys = plan.keys.clamp(1, plan.members.max(1));
        let threads = std::thread::available_parallelism().map_or(1, usize::from) as u32;
        let share = keys.div_ceil(threads).max(1);
        let pairs = std::thread::scope(|scope| {
            let parts: Vec<_> = (0..keys)
                .step_by(share as usize)
                .map(|first| {
                    let numbers = first..keys.min(first + share);
                    scope.spawn(move || numbers.map(|number| pair(plan.seed, number)).collect::<Vec<_>>())
                })
                .collect();
            parts.into_iter().flat_map(|part| part.join().expect("keys can be made")).collect()
        });
        Members { plan, origin: origin.into(), pairs }
    }

    /// How many.
    pub fn count(&self) -> u32 {
        self.plan.members
    }

    /// The part of the endpoint that names it.
    pub fn token(&self, number: u32) -> String {
        let mut bytes = Vec::with_capacity(160);
        let check = head_of(&derived(self.plan.seed, b"check", u64::from(number)));
        let mask = head_of(&derived(self.plan.seed, b"mask", u64::from_be_bytes(check)));
        bytes.extend_from_slice(&(u64::from(number) ^ u64::from_be_bytes(mask)).to_be_bytes());
        bytes.extend_from_slice(&check);
        let wanted = self.plan.endpoint_bytes.saturating_sub(self.origin.len() + "/push/".len()) * 3 / 4;
        let mut block = 0;
        while bytes.len() < wanted {
            let more = derived(self.plan.seed, b"pad", u64::from(number) << 16 | block);
            bytes.extend_from_slice(&more[..more.len().min(wanted - bytes.len())]);
            block += 1;
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// The member with this token.
    pub fn number(&self, token: &str) -> Option<u32> {
        // 22 characters are the head and two bits of what follows, which are none or the padding's.
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (sealed, check) = (bytes.get(..8)?, bytes.get(8..TOKEN_HEAD)?);
        let mask = head_of(&derived(self.plan.seed, b"mask", u64::from_be_bytes(check.try_into().ok()?)));
        let number = u64::from_be_bytes(sealed.try_into().ok()?) ^ u64::from_be_bytes(mask);
        let number = u32::try_from(number).ok().filter(|number| *number < self.plan.members)?;
        (self.token(number) == token).then_some(number)
    }

    /// The push resource's URL.
    pub fn endpoint(&self, number: u32) -> String {
        format!("{}/push/{}", self.origin, self.token(number))
    }

    /// The subscription's id.
    pub fn id(&self, number: u32) -> String {
        subscription_id(&self.endpoint(number))
    }

    /// Private and public key, and `auth`.
    pub fn keys(&self, number: u32) -> BrowserKeys {
        let (private, public) = self.pairs[number as usize % self.pairs.len()];
        let mut auth = [0; 16];
        auth.copy_from_slice(&derived(self.plan.seed, b"auth", u64::from(number))[..16]);
        BrowserKeys { private, public, auth }
    }

    /// Appends what the browser's `JSON.stringify(subscription)` gives.
    pub fn write_json(&self, number: u32, into: &mut Vec<u8>) {
        let keys = self.keys(number);
        into.extend_from_slice(b"{\"endpoint\":\"");
        into.extend_from_slice(self.endpoint(number).as_bytes());
        into.extend_from_slice(b"\",\"expirationTime\":null,\"keys\":{\"p256dh\":\"");
        into.extend_from_slice(URL_SAFE_NO_PAD.encode(keys.public).as_bytes());
        into.extend_from_slice(b"\",\"auth\":\"");
        into.extend_from_slice(URL_SAFE_NO_PAD.encode(keys.auth).as_bytes());
        into.extend_from_slice(b"\"}}");
    }

    /// The same as a value.
    pub fn json(&self, number: u32) -> serde_json::Value {
        let mut text = Vec::new();
        self.write_json(number, &mut text);
        serde_json::from_slice(&text).expect("it is JSON")
    }

    pub(super) fn origin(&self) -> &Arc<str> {
        &self.origin
    }
}

/// The id of the subscription: base64url of the first 12 bytes of SHA-256 of the endpoint (docs/design.md 3.1).
pub fn subscription_id(endpoint: &str) -> String {
    URL_SAFE_NO_PAD.encode(&sha256(endpoint.as_bytes())[..12])
}

fn derived(seed: u64, what: &[u8], number: u64) -> [u8; 32] {
    let mut input = [0; 32];
    input[..8].copy_from_slice(&seed.to_be_bytes());
    input[8..16].copy_from_slice(&number.to_be_bytes());
    input[16..16 + what.len()].copy_from_slice(what);
    sha256(&input)
}

fn head_of(bytes: &[u8; 32]) -> [u8; 8] {
    bytes[..8].try_into().expect("8 bytes")
}

fn pair(seed: u64, number: u32) -> ([u8; 32], [u8; POINT]) {
    let mut private = derived(seed, b"key", u64::from(number));
    // Below the order of the group, whatever the rest; and zero is not met.
    private[0] &= 0x7f;
    (private, super::decrypt::public_of(&private))
}

/// A crowd at the mock: its members and what came for each.
pub struct Crowd {
    pub members: Members,
    /// Requests, whatever became of them; a counter stays at 255.
    asked: Vec<AtomicU8>,
    /// Messages taken (2xx).
    taken: Vec<AtomicU8>,
    /// Hash of the last payload that was taken and decrypted; 0 is none.
    last: Vec<AtomicU64>,
    /// A bit a member: it is answered 410.
    gone: Vec<AtomicU64>,
    whole: AtomicU64,
}

/// What came for a crowd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrowdCounts {
    pub members: u64,
    /// Members that have taken exactly one message.
    pub once: u64,
    /// Members that have taken more than one.
    pub more: u64,
    /// Messages taken.
    pub taken: u64,
    /// What one member took at most.
    pub most: u64,
}

impl Crowd {
    pub(super) fn new(members: Members) -> Crowd {
        let count = members.count() as usize;
        Crowd {
            members,
            asked: (0..count).map(|_| AtomicU8::new(0)).collect(),
            taken: (0..count).map(|_| AtomicU8::new(0)).collect(),
            last: (0..count).map(|_| AtomicU64::new(0)).collect(),
            gone: (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            whole: AtomicU64::new(0),
        }
    }

    /// From now on the push service answers 410 for this member.
    pub fn set_gone(&self, number: u32) {
        self.gone[number as usize / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }

    /// Whether it does.
    pub fn is_gone(&self, number: u32) -> bool {
        self.gone[number as usize / 64].load(Ordering::Relaxed) & 1 << (number % 64) != 0
    }

    /// Requests for this member, whatever became of them.
    pub fn asked(&self, number: u32) -> u64 {
        u64::from(self.asked[number as usize].load(Ordering::Relaxed))
    }

    /// Messages this member has taken.
    pub fn taken(&self, number: u32) -> u64 {
        u64::from(self.taken[number as usize].load(Ordering::Relaxed))
    }

    /// [`payload_hash`] of the last message that this member took, if it was decrypted.
    pub fn last(&self, number: u32) -> Option<u64> {
        Some(self.last[number as usize].load(Ordering::Relaxed)).filter(|hash| *hash != 0)
    }

    /// Messages taken by all members.
    pub fn whole(&self) -> u64 {
        self.whole.load(Ordering::Relaxed)
    }

    /// Looks at every member.
    pub fn counts(&self) -> CrowdCounts {
        let mut counts = CrowdCounts { members: self.taken.len() as u64, taken: self.whole(), ..CrowdCounts::default() };
        for taken in &self.taken {
            let taken = u64::from(taken.load(Ordering::Relaxed));
            counts.once += u64::from(taken == 1);
            counts.more += u64::from(taken > 1);
            counts.most = counts.most.max(taken);
        }
        counts
    }

    /// Counts anew; who is gone stays so.
    pub fn reset(&self) {
        for counter in self.asked.iter().chain(&self.taken) {
            counter.store(0, Ordering::Relaxed);
        }
        for last in &self.last {
            last.store(0, Ordering::Relaxed);
        }
        self.whole.store(0, Ordering::Relaxed);
    }

    pub(super) fn verify_every(&self) -> u64 {
        self.members.plan.verify_every.max(1)
    }

    /// Notes a request; whether the very payload was the last one taken. The caller holds the log's lock.
    pub(super) fn note(&self, number: u32, taken: bool, payload: Option<&[u8]>) -> bool {
        let place = number as usize;
        let count = |counter: &AtomicU8| counter.store(counter.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
        count(&self.asked[place]);
        if !taken {
            return false;
        }
        count(&self.taken[place]);
        self.whole.fetch_add(1, Ordering::Relaxed);
        let Some(payload) = payload else { return false };
        let hash = payload_hash(payload);
        self.last[place].swap(hash, Ordering::Relaxed) == hash
    }
}

/// How [`Crowd::last`] names a payload; never 0.
pub fn payload_hash(payload: &[u8]) -> u64 {
    u64::from_be_bytes(head_of(&sha256(payload))).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: &str = "https://127.0.0.1:4443";

    #[test]
    fn a_member_is_found_by_its_token_and_nothing_else_is() {
        for endpoint_bytes in [0, 190, 191, 192] {
            let members = Members::new(Plan { members: 500, keys: 3, endpoint_bytes, ..Plan::default() }, ORIGIN);
            let again = Members::new(Plan { members: 500, keys: 3, endpoint_bytes, ..Plan::default() }, ORIGIN);
            for number in [0, 1, 255, 256, 499] {
                let token = members.token(number);
                assert_eq!(members.number(&token), Some(number));
                assert_eq!(again.endpoint(number), members.endpoint(number));
                let mut other = token.clone().into_bytes();
                other[7] ^= 1;
                assert_eq!(members.number(std::str::from_utf8(&other).unwrap()), None);
                assert_eq!(members.number(&token[..token.len() - 1]), None);
                assert!(members.endpoint(number).len().abs_diff(endpoint_bytes.max(50)) < 4, "{}", members.endpoint(number));
            }
            assert_eq!(Members::new(Plan { seed: 2, ..members.plan }, ORIGIN).number(&members.token(1)), None);
            assert_eq!(Members::new(Plan { members: 400, ..members.plan }, ORIGIN).number(&members.token(499)), None);
            assert_eq!(members.number(""), None);
        }
    }

    #[test]
    fn keys_belong_together_and_auth_is_each_ones_own() {
        let members = Members::new(Plan { members: 100, keys: 7, ..Plan::default() }, ORIGIN);
        let (a, b, c) = (members.keys(0), members.keys(7), members.keys(8));
        assert_eq!(a.private, b.private);
        assert_ne!(a.auth, b.auth);
        assert_ne!(b.private, c.private);
        let sealed = super::super::decrypt::tests::seal(&c, b"hello", 0, 2, 4096);
        assert_eq!(super::super::decrypt::aes128gcm(&c, &sealed).unwrap().plaintext, b"hello");
        let json = members.json(8);
        assert_eq!(json["endpoint"], members.endpoint(8));
        assert_eq!(json["keys"]["p256dh"], URL_SAFE_NO_PAD.encode(c.public));
    }

    #[test]
    fn what_came_is_counted_by_member() {
        let crowd = Crowd::new(Members::new(Plan { members: 100, keys: 1, ..Plan::default() }, ORIGIN));
        assert!(!crowd.note(5, true, Some(b"a")));
        assert!(!crowd.note(6, false, None));
        assert!(crowd.note(5, true, Some(b"a")));
        assert!(!crowd.note(5, true, Some(b"b")));
        assert!(!crowd.note(99, true, None));
        assert_eq!((crowd.asked(5), crowd.taken(5), crowd.asked(6), crowd.taken(6)), (3, 3, 1, 0));
        assert_eq!((crowd.last(5), crowd.last(99)), (Some(payload_hash(b"b")), None));
        assert_eq!(crowd.counts(), CrowdCounts { members: 100, once: 1, more: 1, taken: 4, most: 3 });
        crowd.set_gone(64);
        assert!(crowd.is_gone(64) && !crowd.is_gone(63));
        crowd.reset();
        assert_eq!(crowd.counts(), CrowdCounts { members: 100, ..CrowdCounts::default() });
    }
}
