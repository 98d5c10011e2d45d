//! VAPID tokens (RFC 8292), made ahead of need: a table of one token per app, key and origin.
//!
//! Promises: a token's `aud` is exactly the origin, its `exp` an integer at most 23 hours ahead of the moment it is used, also
//! after the clock was set; signing happens where a message waits only if there is no usable token at all; and a token is not
//! made anew within an hour (docs/push-services.md 1, fact 2), whatever a push service answers. The exceptions to
//! the hour are a clock that was set, and an origin that was dropped because the table was full.
//!
//! The table is bounded for each app: what was not used since its token was made is dropped instead of renewed, and where an app's
//! share is full, what it has not used for the longest time is dropped. No app's tokens make room for another's.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use foldhash::HashMap;
use http::HeaderValue;
use serde::Serialize;

use crate::message::{Encoding, KeyId, Origin, UnixMillis};
use crate::vapid::key::SigningKey;

const MINUTE: u64 = 60 * 1_000;
const HOUR: u64 = 60 * MINUTE;

/// RFC 8292 section 2 allows 24 hours, and Mozilla grants no minute more (docs/push-services.md 3.7). One hour is kept for
/// clocks that disagree.
const AHEAD_MAX: u64 = 23 * HOUR;
/// How far ahead `exp` lies when the token is made. Less than [`AHEAD_MAX`], so that a clock that is set back a little while does
/// not void every token.
const LIFETIME: u64 = 22 * HOUR;
/// A token with less left than this is not used: the push service's clock may be ahead.
const LEFT_MIN: u64 = 5 * MINUTE;
/// Apple: "Don't refresh your JWT more frequently than once per hour".
const REMAKE_MIN: u64 = HOUR;
/// Renewal at half of the life, give or take a tenth of it, so that the tokens of one start do not fall due together.
const DUE: u64 = LIFETIME / 2;
const JITTER: u64 = DUE / 5;
/// The time of the last use is noted to this precision: most messages then write nothing that threads share.
const USE_PRECISION: u64 = MINUTE;

const _: () = assert!(LIFETIME < AHEAD_MAX);
const _: () = assert!(DUE - JITTER / 2 > REMAKE_MIN);
const _: () = assert!(DUE + JITTER / 2 + LEFT_MIN < LIFETIME);

/// What signs for one app: its entry of the configuration with the key files read.
#[derive(Clone)]
pub struct AppKeys {
    /// Name in `[apps]`.
    pub app: Arc<str>,
    /// `sub` of its tokens, see [`check_subject`].
    pub subject: Arc<str>,
    /// In the order of the configuration.
    pub keys: Vec<SigningKey>,
}

/// What a request carries to prove who sends it.
#[derive(Clone, Debug)]
pub struct Authorization {
    /// The whole value of `Authorization`: `vapid t=…, k=…` (RFC 8292 section 3), for aesgcm `WebPush …`
    /// (docs/push-services.md 2.4).
    /// Marked as sensitive: its `Debug` does not show it.
    pub value: HeaderValue,
    /// The key that signed.
    pub key: KeyId,
    /// For aesgcm: the public key, base64url, for [`crate::encrypt::payload::AesgcmHeaders::crypto_key`].
    pub p256ecdsa: Option<Arc<str>>,
}

/// When a token expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expiry {
    pub app: Arc<str>,
    pub key: KeyId,
    pub origin: Origin,
    /// 0 when it has expired; it is made anew when it is needed.
    pub seconds_left: u64,
}

/// The table of tokens. Shared by all threads; reading takes no lock.
pub struct Tokens {
    apps: ArcSwap<HashMap<Arc<str>, Vec<Arc<Signer>>>>,
    /// Held while a token is made or an entry comes or goes, so that no two threads sign the same.
    writing: Mutex<()>,
    entries_max: usize,
}

struct Signer {
    subject: Arc<str>,
    key: SigningKey,
    public: Arc<str>,
    entries: ArcSwap<HashMap<Origin, Arc<Entry>>>,
}

struct Entry {
    token: ArcSwap<Token>,
    /// [`UnixMillis`] of the last use, to [`USE_PRECISION`].
    used: AtomicU64,
}

struct Token {
    vapid: HeaderValue,
    webpush: HeaderValue,
    made: UnixMillis,
    due: UnixMillis,
    expires: UnixMillis,
}

impl Tokens {
    /// A table without tokens, for these apps, of at most `entries_max` tokens each (at least 1).
    pub fn new(apps: Vec<AppKeys>, entries_max: usize) -> Tokens {
        let tokens = Tokens { apps: ArcSwap::default(), writing: Mutex::new(()), entries_max: entries_max.max(1) };
        tokens.reload(apps);
        tokens
    }

    /// Takes a new configuration. Tokens whose app, key and subject stay are kept.
    pub fn reload(&self, apps: Vec<AppKeys>) {
        let _writing = self.lock();
        let old = self.apps.load();
        let signer = |app: &str, subject: &Arc<str>, key: SigningKey| {
            let known = old.get(app).into_iter().flatten().find(|known| known.key.id() == key.id() && known.subject == *subject);
            known.cloned().unwrap_or_else(|| Arc::new(Signer::new(subject.clone(), key)))
        };
        let new = apps.into_iter().map(|AppKeys { app, subject, keys }| {
            let signers = keys.into_iter().map(|key| signer(&app, &subject, key)).collect();
            (app, signers)
        });
        self.apps.store(Arc::new(new.collect()));
    }

    /// The app's keys in the order of the configuration; empty if there is no such app.
    pub fn keys(&self, app: &str) -> Vec<KeyId> {
        self.apps.load().get(app).into_iter().flatten().map(|signer| signer.key.id()).collect()
    }

    /// The names of all apps.
    pub fn apps(&self) -> Vec<Arc<str>> {
        self.apps.load().keys().cloned().collect()
    }

    /// The place of a key among the app's.
    pub fn key_index(&self, app: &str, key: KeyId) -> Option<usize> {
        self.apps.load().get(app)?.iter().position(|signer| signer.key.id() == key)
    }

    /// The app's first public key, the one that pages subscribe with, as base64url.
    pub fn public_key(&self, app: &str) -> Option<Arc<str>> {
        Some(self.apps.load().get(app)?.first()?.public.clone())
    }

    /// A public key of the app's as base64url; None if it is not the app's, or not any more.
    pub fn public_key_of(&self, app: &str, key: KeyId) -> Option<Arc<str>> {
        self.apps.load().get(app)?.iter().find(|signer| signer.key.id() == key).map(|signer| signer.public.clone())
    }

    /// The authorization of a request to `origin`, by the app's key number `key`; None if there is no such app or key. Cheap,
    /// unless there is no usable token: then it is signed here, which takes some 70 us and a lock.
    pub fn authorization(
        &self,
        app: &str,
        key: usize,
        origin: &Origin,
        encoding: Encoding,
        now: UnixMillis,
    ) -> Option<Authorization> {
        let apps = self.apps.load();
        let signers = apps.get(app)?;
        let signer = signers.get(key)?;
        if let Some(entry) = signer.entries.load().get(origin) {
            let token = entry.token.load();
            if token.usable(now) {
                entry.note_use(now);
                return Some(signer.authorization(&token, encoding));
            }
        }
        Some(signer.authorization(&self.make(signers, signer, origin, now), encoding))
    }

    /// Makes the tokens anew that have lived half of their life, and drops those that nobody used since they were made. For
    /// a background thread, about once a minute. Answers how many were made.
    pub fn renew_due(&self, now: UnixMillis) -> usize {
        let mut made = 0;
        for signer in self.apps.load().values().flatten() {
            let mut idle = false;
            for (origin, entry) in signer.entries.load().iter() {
                let token = entry.token.load_full();
                if token.usable(now) && now < token.due {
                    continue;
                }
                if entry.idle(&token) {
                    idle = true;
                    continue;
                }
                // Signed without the lock: a message that waits for a token of its own need not wait for this one.
                let renewed = Arc::new(signer.sign(origin, now));
                let _writing = self.lock();
                // Unless another thread replaced it meanwhile.
                if Arc::ptr_eq(&token, &entry.token.load()) {
                    entry.token.store(renewed);
                    made += 1;
                }
            }
            if idle {
                let _writing = self.lock();
                let mut entries = HashMap::clone(&signer.entries.load());
                entries.retain(|_, entry| {
                    let token = entry.token.load();
                    (token.usable(now) && now < token.due) || !entry.idle(&token)
                });
                signer.entries.store(Arc::new(entries));
            }
        }
        made
    }

    /// Makes a token anew that a push service called bad, once: false if that token is younger than an hour (then it is not the
    /// token's age that is wrong), or unknown.
    pub fn remake(&self, app: &str, key: KeyId, origin: &Origin, now: UnixMillis) -> bool {
        let apps = self.apps.load();
        let Some(signer) = apps.get(app).and_then(|signers| signers.iter().find(|signer| signer.key.id() == key)) else {
            return false;
        };
        let _writing = self.lock();
        let entries = signer.entries.load();
        let Some(entry) = entries.get(origin) else { return false };
        let token = entry.token.load();
        if token.usable(now) && now.since(token.made) < REMAKE_MIN {
            return false;
        }
        entry.token.store(Arc::new(signer.sign(origin, now)));
        true
    }

    /// All tokens with what is left of their lives, in no order.
    pub fn expiries(&self, now: UnixMillis) -> Vec<Expiry> {
        let mut expiries = Vec::new();
        for (app, signers) in self.apps.load().iter() {
            for signer in signers {
                expiries.extend(signer.entries.load().iter().map(|(origin, entry)| Expiry {
                    app: app.clone(),
                    key: signer.key.id(),
                    origin: origin.clone(),
                    seconds_left: entry.token.load().expires.since(now) / 1_000,
                }));
            }
        }
        expiries
    }

    /// A usable token where there was none; `signers` are all of the app.
    fn make(&self, signers: &[Arc<Signer>], signer: &Signer, origin: &Origin, now: UnixMillis) -> Arc<Token> {
        let _writing = self.lock();
        // Another thread may have made it meanwhile.
        if let Some(entry) = signer.entries.load().get(origin) {
            entry.note_use(now);
            let token = entry.token.load_full();
            if token.usable(now) {
                return token;
            }
            let token = Arc::new(signer.sign(origin, now));
            entry.token.store(token.clone());
            return token;
        }
        let token = Arc::new(signer.sign(origin, now));
        self.make_room(signers);
        let mut entries = HashMap::clone(&signer.entries.load());
        let entry = Entry { token: ArcSwap::new(token.clone()), used: AtomicU64::new(now.0) };
        entries.insert(origin.clone(), Arc::new(entry));
        signer.entries.store(Arc::new(entries));
        token
    }

    /// Drops an app's entries until one more fits. Called with the lock held.
    fn make_room(&self, signers: &[Arc<Signer>]) {
        let count = || signers.iter().map(|signer| signer.entries.load().len()).sum::<usize>();
        while count() >= self.entries_max {
            let mut oldest: Option<(u64, &Arc<Signer>, Origin)> = None;
            for signer in signers {
                for (origin, entry) in signer.entries.load().iter() {
                    let used = entry.used.load(Ordering::Relaxed);
                    if oldest.as_ref().is_none_or(|(oldest, ..)| used < *oldest) {
                        oldest = Some((used, signer, origin.clone()));
                    }
                }
            }
            let Some((_, signer, origin)) = oldest else { return };
            let mut entries = HashMap::clone(&signer.entries.load());
            entries.remove(&origin);
            signer.entries.store(Arc::new(entries));
        }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data of its own, and each change is one store: a panic leaves nothing half done.
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signer {
    fn new(subject: Arc<str>, key: SigningKey) -> Signer {
        Signer { public: key.public_key_base64url().into(), subject, key, entries: ArcSwap::default() }
    }

    fn authorization(&self, token: &Token, encoding: Encoding) -> Authorization {
        let (value, p256ecdsa) = match encoding {
            Encoding::Aes128gcm => (token.vapid.clone(), None),
            Encoding::Aesgcm => (token.webpush.clone(), Some(self.public.clone())),
        };
        Authorization { value, key: self.key.id(), p256ecdsa }
    }

    fn sign(&self, origin: &Origin, now: UnixMillis) -> Token {
        // Cut to whole seconds: a float as `exp` is refused (docs/push-services.md 3.7).
        let exp = now.plus(LIFETIME).0 / 1_000;
        let jwt = jwt(&self.key, &Claims { aud: &origin.0, exp, sub: &self.subject });
        Token {
            vapid: sensitive(format!("vapid t={jwt}, k={}", self.public)),
            webpush: sensitive(format!("WebPush {jwt}")),
            made: now,
            due: now.plus(DUE - JITTER / 2 + random_below(JITTER)),
            expires: UnixMillis(exp * 1_000),
        }
    }
}

impl Entry {
    fn note_use(&self, now: UnixMillis) {
        if now.0.abs_diff(self.used.load(Ordering::Relaxed)) > USE_PRECISION {
            self.used.store(now.0, Ordering::Relaxed);
        }
    }

    /// Not used since `token` was made, but perhaps in its first minute.
    fn idle(&self, token: &Token) -> bool {
        self.used.load(Ordering::Relaxed) <= token.made.0
    }
}

impl Token {
    /// Neither expired nor too far ahead. The latter is seen after the clock was set back; a token that was made in a future
    /// that has not come yet shows in the same way, and does no harm while its `exp` is in bounds: it carries no `iat`.
    fn usable(&self, now: UnixMillis) -> bool {
        let left = self.expires.since(now);
        left > LEFT_MIN && left <= AHEAD_MAX
    }
}

/// RFC 8292 section 2. `sub` is the app's contact.
#[derive(Serialize)]
struct Claims<'a> {
    aud: &'a str,
    exp: u64,
    sub: &'a str,
}

/// RFC 7515 section 7.1, signed with ES256.
fn jwt(key: &SigningKey, claims: &Claims<'_>) -> String {
    let claims = serde_json::to_vec(claims).expect("strings and an integer are JSON");
    let mut jwt = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"ES256"}"#);
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut jwt);
    let signature = key.sign(jwt.as_bytes());
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(signature, &mut jwt);
    jwt
}

fn sensitive(value: String) -> HeaderValue {
    let mut value = HeaderValue::from_maybe_shared(Bytes::from(value)).expect("base64url and punctuation are legal in a header");
    value.set_sensitive(true);
    value
}

/// A random number below `bound`; only to spread work, so that 0 will do where there is none.
fn random_below(bound: u64) -> u64 {
    let mut bytes = [0; 8];
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => u64::from_le_bytes(bytes) % bound,
        Err(_) => 0,
    }
}

/// Whether every push service takes `subject` as a token's `sub`: `mailto:user@host` or an `https:` URL, whose host is a name
/// that can exist. Apple refuses all tokens of a sender whose subject has spaces or angle brackets, is a bare address, or
/// names localhost or a host that cannot be resolved (docs/push-services.md 3.3).
pub fn check_subject(subject: &str) -> Result<(), SubjectError> {
    if !subject.bytes().all(|byte| byte.is_ascii_graphic()) || subject.contains(['<', '>', '"']) {
        return Err(SubjectError::Character);
    }
    if let Some(address) = subject.strip_prefix("mailto:") {
        let (user, host) = address.rsplit_once('@').ok_or(SubjectError::Address)?;
        // RFC 5322 section 3.2.3, less what a mailto: URL gives a meaning of its own (RFC 6068 section 2).
        let is_atom = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!$'*+-/=^_`{|}~".contains(&byte))
        };
        if !user.split('.').all(is_atom) {
            return Err(SubjectError::Address);
        }
        check_host(host)
    } else if subject.starts_with("https://") {
        let url = url::Url::parse(subject).map_err(|_| SubjectError::Host)?;
        match url.host() {
            Some(url::Host::Domain(host)) if url.username().is_empty() && url.password().is_none() => check_host(host),
            _ => Err(SubjectError::Host),
        }
    } else {
        Err(SubjectError::Scheme)
    }
}

/// A name with a dot that the public DNS can know.
fn check_host(host: &str) -> Result<(), SubjectError> {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let lower = host.to_ascii_lowercase();
    let (_, top) = lower.rsplit_once('.').ok_or(SubjectError::Host)?;
    // RFC 6761 section 6, RFC 6762 section 3.
    let never = ["localhost", "localdomain", "local", "invalid"].contains(&top);
    if host.len() > 253 || never || top.bytes().all(|byte| byte.is_ascii_digit()) || !host.split('.').all(is_label) {
        return Err(SubjectError::Host);
    }
    Ok(())
}

/// Why a subject will not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubjectError {
    /// Neither `mailto:` nor `https://`.
    Scheme,
    /// A space, an angle bracket, a quotation mark or something that is not ASCII.
    Character,
    /// No `user@host` behind `mailto:`.
    Address,
    /// The host is no name of the public DNS, or the URL no URL.
    Host,
}

impl fmt::Display for SubjectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SubjectError::Scheme => "must start with mailto: or https://",
            SubjectError::Character => "must not contain spaces, angle brackets, quotation marks or non-ASCII characters",
            SubjectError::Address => "must be mailto: and one address, such as mailto:push@example.com",
            SubjectError::Host => "must name a real host, with a dot in it: no localhost, no IP address",
        })
    }
}

impl std::error::Error for SubjectError {}

#[cfg(test)]
mod tests {
    use p256::ecdsa::signature::Verifier;

    use super::*;

    const START: UnixMillis = UnixMillis(1_800_000_000_123);
    const SUBJECT: &str = "mailto:push@example.com";

    fn origin(name: &str) -> Origin {
        Origin(format!("https://{name}").into())
    }

    fn app(name: &str, keys: &[&SigningKey]) -> AppKeys {
        AppKeys { app: name.into(), subject: SUBJECT.into(), keys: keys.iter().map(|key| (*key).clone()).collect() }
    }

    /// A table with one app of one key.
    fn table(entries_max: usize) -> (Tokens, SigningKey) {
        let key = SigningKey::generate();
        (Tokens::new(vec![app("default", &[&key])], entries_max), key)
    }

    fn authorize(tokens: &Tokens, origin: &Origin, now: UnixMillis) -> String {
        let authorization = tokens.authorization("default", 0, origin, Encoding::Aes128gcm, now).unwrap();
        authorization.value.to_str().unwrap().to_owned()
    }

    fn token(authorization: &str) -> &str {
        authorization.strip_prefix("vapid t=").unwrap().split_once(", k=").unwrap().0
    }

    /// Verifies the signature and answers the claims.
    fn claims(jwt: &str, key: &SigningKey) -> serde_json::Value {
        let (signed, signature) = jwt.rsplit_once('.').unwrap();
        let (header, claims) = signed.split_once('.').unwrap();
        let header: serde_json::Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).unwrap()).unwrap();
        assert_eq!(header, serde_json::json!({"typ": "JWT", "alg": "ES256"}));
        let signature = p256::ecdsa::Signature::from_slice(&URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
        let public = p256::ecdsa::VerifyingKey::from_sec1_bytes(&key.public_key()).unwrap();
        public.verify(signed.as_bytes(), &signature).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
    }

    fn exp(authorization: &str, key: &SigningKey) -> u64 {
        claims(token(authorization), key)["exp"].as_u64().unwrap()
    }

    #[test]
    fn a_token_says_what_rfc8292_wants() {
        let (tokens, key) = table(10);
        let push = origin("push.example.net:8443");
        let authorization = tokens.authorization("default", 0, &push, Encoding::Aes128gcm, START).unwrap();
        assert_eq!((authorization.key, authorization.p256ecdsa), (key.id(), None));
        assert_eq!(format!("{:?}", authorization.value), "Sensitive");
        let value = authorization.value.to_str().unwrap();
        assert!(value.ends_with(&format!(", k={}", key.public_key_base64url())));
        let claims = claims(token(value), &key);
        let exp = (START.0 + LIFETIME) / 1_000;
        assert_eq!(claims, serde_json::json!({"aud": "https://push.example.net:8443", "exp": exp, "sub": SUBJECT}));
        assert!(exp * 1_000 <= START.0 + AHEAD_MAX);
    }

    #[test]
    fn aesgcm_gets_the_old_scheme() {
        let (tokens, key) = table(10);
        let old = tokens.authorization("default", 0, &origin("a.example"), Encoding::Aesgcm, START).unwrap();
        assert_eq!(*old.p256ecdsa.unwrap(), *key.public_key_base64url());
        let old = old.value.to_str().unwrap().strip_prefix("WebPush ").unwrap().to_owned();
        assert_eq!(old, token(&authorize(&tokens, &origin("a.example"), START)));
        claims(&old, &key);
    }

    #[test]
    fn a_token_is_used_again_until_it_is_due() {
        let (tokens, _) = table(10);
        let first = authorize(&tokens, &origin("a.example"), START);
        assert_eq!(authorize(&tokens, &origin("a.example"), START.plus(10 * HOUR)), first);
        assert_ne!(token(&authorize(&tokens, &origin("b.example"), START)), token(&first));
        assert_eq!(tokens.renew_due(START.plus(DUE - JITTER / 2 - 1)), 0);
        assert_eq!(authorize(&tokens, &origin("a.example"), START.plus(9 * HOUR)), first);
        // b.example was not used since: it goes instead of being renewed.
        let later = START.plus(DUE + JITTER / 2);
        assert_eq!(tokens.renew_due(later), 1);
        assert_eq!(tokens.expiries(later).len(), 1);
        let second = authorize(&tokens, &origin("a.example"), later);
        assert_ne!(second, first);
        assert_eq!(tokens.renew_due(later), 0);
        // Unused since the renewal: dropped at the next one.
        tokens.renew_due(later.plus(LIFETIME));
        assert_eq!(tokens.expiries(later), []);
    }

    #[test]
    fn tokens_of_one_start_do_not_fall_due_together() {
        let (tokens, _) = table(1_000);
        for number in 0..40 {
            authorize(&tokens, &origin(&format!("p{number}.example")), START);
            authorize(&tokens, &origin(&format!("p{number}.example")), START.plus(HOUR));
        }
        let half = tokens.renew_due(START.plus(DUE));
        assert!((1..40).contains(&half), "{half} of 40");
    }

    #[test]
    fn renewal_is_not_more_often_than_hourly() {
        let (tokens, _) = table(10);
        let a = origin("a.example");
        let mut made = vec![START];
        let mut last = authorize(&tokens, &a, START);
        for minute in 1..4 * 24 * 60 {
            let now = START.plus(minute * MINUTE);
            tokens.renew_due(now);
            let key = tokens.keys("default")[0];
            tokens.remake("default", key, &a, now);
            let value = authorize(&tokens, &a, now);
            if value != last {
                assert!(now.since(*made.last().unwrap()) >= HOUR);
                made.push(now);
                last = value;
            }
        }
        assert_eq!(made.len(), 4 * 24);
    }

    #[test]
    fn a_refused_token_is_made_anew_once_an_hour() {
        let (tokens, key) = table(10);
        let a = origin("a.example");
        assert!(!tokens.remake("default", key.id(), &a, START), "there is none yet");
        let first = authorize(&tokens, &a, START);
        assert!(!tokens.remake("default", key.id(), &a, START.plus(HOUR - 1)));
        assert_eq!(authorize(&tokens, &a, START.plus(HOUR)), first);
        assert!(tokens.remake("default", key.id(), &a, START.plus(HOUR)));
        assert_ne!(authorize(&tokens, &a, START.plus(HOUR)), first);
        assert!(!tokens.remake("default", key.id(), &a, START.plus(HOUR)));
        assert!(!tokens.remake("default", SigningKey::generate().id(), &a, START.plus(3 * HOUR)));
        assert!(!tokens.remake("other", key.id(), &a, START.plus(3 * HOUR)));
    }

    #[test]
    fn the_clock_may_be_set() {
        let day = 24 * HOUR;
        for (step, anew) in [
            (UnixMillis(START.0 + 22 * HOUR - LEFT_MIN - 1_000), false),
            (UnixMillis(START.0 + 22 * HOUR - LEFT_MIN), true),
            (UnixMillis(START.0 + 400 * day), true),
            (UnixMillis(START.0 - HOUR / 2), false),
            (UnixMillis(START.0 - HOUR - 1_000), true),
            (UnixMillis(START.0 - 400 * day), true),
            (UnixMillis(0), true),
        ] {
            let (tokens, key) = table(10);
            let first = authorize(&tokens, &origin("a.example"), START);
            let second = authorize(&tokens, &origin("a.example"), step);
            assert_eq!(first != second, anew, "{step:?}");
            let exp = exp(&second, &key) * 1_000;
            assert!(exp > step.0 && exp <= step.0 + AHEAD_MAX);
            // And in the background, for an origin in use.
            let (tokens, key) = table(10);
            authorize(&tokens, &origin("a.example"), START);
            authorize(&tokens, &origin("a.example"), START.plus(2 * MINUTE));
            assert_eq!(tokens.renew_due(step) == 1, anew || step.0 >= START.0 + 13 * HOUR, "{step:?}");
            assert!(!tokens.remake("default", key.id(), &origin("a.example"), step), "usable, and young or renewed");
        }
    }

    #[test]
    fn the_table_is_bounded_and_drops_what_was_used_longest_ago() {
        let (tokens, _) = table(3);
        for (minute, name) in [(0, "a"), (2, "b"), (4, "c"), (6, "a"), (8, "d")] {
            authorize(&tokens, &origin(name), START.plus(minute * MINUTE));
        }
        let mut left: Vec<_> = tokens.expiries(START).into_iter().map(|expiry| expiry.origin).collect();
        left.sort();
        assert_eq!(left, ["a", "c", "d"].map(origin));
        for number in 0..50 {
            authorize(&tokens, &origin(&number.to_string()), START.plus(HOUR));
            assert_eq!(tokens.expiries(START).len(), 3);
        }
    }

    #[test]
    fn no_app_drops_a_token_of_another() {
        let keys = [(); 2].map(|()| SigningKey::generate());
        let tokens = Tokens::new(vec![app("shop", &[&keys[0]]), app("news", &[&keys[1]])], 3);
        let get = |app: &str, origin: &Origin, now| tokens.authorization(app, 0, origin, Encoding::Aes128gcm, now).unwrap().value;
        let first = get("news", &origin("a"), START);
        for number in 0..9 {
            get("shop", &origin(&number.to_string()), START.plus(2 * MINUTE));
        }
        assert_eq!(tokens.expiries(START).iter().filter(|expiry| &*expiry.app == "shop").count(), 3, "its own share");
        assert_eq!(get("news", &origin("a"), START.plus(2 * MINUTE)), first, "the hour is kept");
    }

    #[test]
    fn expiries_tell_what_is_left() {
        let (tokens, key) = table(3);
        authorize(&tokens, &origin("a"), START);
        let left = |now| {
            let expiries = tokens.expiries(now);
            assert_eq!((&*expiries[0].app, expiries[0].key, &expiries[0].origin), ("default", key.id(), &origin("a")));
            expiries[0].seconds_left
        };
        assert!((22 * 3_600 - 1..=22 * 3_600).contains(&left(START)));
        assert_eq!(left(START.plus(30 * HOUR)), 0);
    }

    #[test]
    fn apps_and_keys_are_found_and_reloaded() {
        let [one, two, three] = [(); 3].map(|()| SigningKey::generate());
        let tokens = Tokens::new(vec![app("default", &[&one, &two]), app("shop", &[&two])], 100);
        assert_eq!(tokens.keys("default"), [one.id(), two.id()]);
        assert_eq!(tokens.key_index("default", two.id()), Some(1));
        assert_eq!(tokens.key_index("shop", one.id()), None);
        assert_eq!(*tokens.public_key("shop").unwrap(), *two.public_key_base64url());
        assert_eq!((tokens.keys("none"), tokens.public_key("none")), (vec![], None));
        let a = origin("a");
        let get = |app, key| tokens.authorization(app, key, &a, Encoding::Aes128gcm, START).map(|found| (found.key, found.value));
        assert_eq!(get("default", 2), None);
        assert_eq!(get("none", 0), None);
        let [first, second, shop] = [("default", 0), ("default", 1), ("shop", 0)].map(|(app, key)| get(app, key).unwrap());
        assert_eq!((first.0, second.0, shop.0), (one.id(), two.id(), two.id()));

        // The order changes, a key comes, a key's app changes its subject: what stayed keeps its token.
        let subject = AppKeys { subject: "https://example.org/".into(), ..app("shop", &[&two]) };
        tokens.reload(vec![app("default", &[&three, &two]), subject]);
        assert_eq!(get("default", 1).unwrap(), second);
        assert_eq!(get("default", 0).unwrap().0, three.id());
        let shop_now = get("shop", 0).unwrap().1;
        assert_ne!(shop_now, shop.1);
        assert_eq!(claims(token(shop_now.to_str().unwrap()), &two)["sub"], "https://example.org/");
    }

    #[test]
    fn threads_that_want_the_same_token_get_the_same() {
        let (tokens, _) = table(100);
        let values: Vec<String> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| authorize(&tokens, &origin("a"), START))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(values.iter().all(|value| *value == values[0]));
        assert_eq!(tokens.expiries(START).len(), 1);
    }

    #[test]
    fn subjects() {
        for good in [
            "mailto:push@example.com",
            "mailto:web-push+alerts@mail.example.co.uk",
            "mailto:o'neil@example.com",
            "https://example.com",
            "https://example.com/contact?topic=push",
            "https://example.com:8443/",
            "https://xn--bcher-kva.example/",
        ] {
            assert_eq!(check_subject(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", SubjectError::Scheme),
            ("push@example.com", SubjectError::Scheme),
            ("http://example.com", SubjectError::Scheme),
            ("https:example.com", SubjectError::Scheme),
            ("tel:+123", SubjectError::Scheme),
            ("MAILTO:push@example.com", SubjectError::Scheme),
            ("mailto: push@example.com", SubjectError::Character),
            ("mailto:<push@example.com>", SubjectError::Character),
            ("mailto:push@example.com\n", SubjectError::Character),
            ("mailto:\"push\"@example.com", SubjectError::Character),
            ("mailto:pusz\u{105}@example.com", SubjectError::Character),
            ("https://example.com/a b", SubjectError::Character),
            ("mailto:", SubjectError::Address),
            ("mailto:push", SubjectError::Address),
            ("mailto:@example.com", SubjectError::Address),
            ("mailto:a..b@example.com", SubjectError::Address),
            ("mailto:a@b@example.com", SubjectError::Address),
            ("mailto:a@example.com,b@example.com", SubjectError::Address),
            ("mailto:push@example.com?subject=x", SubjectError::Host),
            ("mailto:push@localhost", SubjectError::Host),
            ("mailto:push@server", SubjectError::Host),
            ("mailto:push@server.local", SubjectError::Host),
            ("mailto:push@example.com.", SubjectError::Host),
            ("mailto:push@.com", SubjectError::Host),
            ("mailto:push@-a.com", SubjectError::Host),
            ("mailto:push@192.0.2.1", SubjectError::Host),
            ("mailto:push@[192.0.2.1]", SubjectError::Host),
            ("https://", SubjectError::Host),
            ("https://localhost", SubjectError::Host),
            ("https://LocalHost:8080/", SubjectError::Host),
            ("https://a.localhost/", SubjectError::Host),
            ("https://server", SubjectError::Host),
            ("https://127.0.0.1/", SubjectError::Host),
            ("https://[::1]/", SubjectError::Host),
            ("https://user@example.com/", SubjectError::Host),
        ] {
            assert_eq!(check_subject(bad), Err(why), "{bad}");
        }
    }
}
