//! What the mock knows and has seen: subscriptions, faults on order, what arrived. One lock for the log; cryptography happens
//! outside it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::watch;

use super::check::{self, Violation};
use super::fault::{self, Answer, Fault, Scope, Wrong};
use super::subscription::{Place, Registry, Vendor, token_of};
use super::tally::{Measured, Tally};
use super::vapid::{Vapid, Verifier};

/// Texts of violations that are kept.
const VIOLATIONS: usize = 1_000;
/// What MAX_CONCURRENT_STREAMS is unless told: what nginx has.
const STREAMS: u32 = 128;
/// Salts and senders' keys that are remembered at most; beyond it all are forgotten at once.
const USED: usize = 1 << 21;

/// One request for a known subscription, in the order of arrival.
#[derive(Clone, Debug, Serialize)]
pub struct Received {
    /// 1, 2, 3, ...
    pub number: u64,
    /// Microseconds since 1970 when the whole request was there.
    pub time: u64,
    /// Which of the mock's origins it came to.
    pub origin: usize,
    /// [`Subscription::token`](super::Subscription::token).
    pub subscription: String,
    /// Decrypted; None if there was no body, if it broke a rule before, or if only a sample is decrypted.
    /// In JSON base64.
    #[serde(serialize_with = "base64_text")]
    pub payload: Option<Bytes>,
    /// Bytes of the body as sent.
    pub body_length: usize,
    /// Padding that was taken off.
    pub padding: usize,
    /// Seconds; None if it was wrong.
    pub ttl: Option<u64>,
    pub urgency: Option<String>,
    pub topic: Option<String>,
    pub content_encoding: Option<String>,
    pub content_type: Option<String>,
    pub wns_cache_policy: Option<String>,
    /// 1, 2, 3, ... over all origins.
    pub connection: u64,
    /// `HTTP/2.0` or `HTTP/1.1`.
    pub version: String,
    /// Verified; None if it was wrong.
    #[serde(serialize_with = "shared")]
    pub vapid: Option<Arc<Vapid>>,
    /// The status it is answered with; None for no answer at all.
    pub status: Option<u16>,
    /// How often this subscription had taken this very payload before.
    pub repeat: u32,
    /// The rule that was broken.
    pub violation: Option<String>,
}

impl Received {
    /// Whether the mock took the message: the answer is a 2xx.
    pub fn taken(&self) -> bool {
        self.status.is_some_and(|status| (200..300).contains(&status))
    }

    /// The payload as text; empty if there is none.
    pub fn text(&self) -> String {
        self.payload.as_deref().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default()
    }
}

/// Totals since the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Requests read whole, also for unknown subscriptions.
    pub requests: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Messages taken (2xx), repeats included.
    pub accepted: u64,
    /// Messages taken that had not been taken before. (Unknown, and counted as new, for what is not decrypted.)
    pub distinct: u64,
    /// Messages taken again: the same payload for the same subscription.
    pub repeats: u64,
    /// Requests whose body was decrypted and whose token was verified without a complaint.
    pub verified: u64,
    /// Broken rules; their texts, the first thousand, are in `violations`.
    pub violation_count: u64,
    /// `subscription token: what was wrong`.
    pub violations: Vec<String>,
    /// Requests signed by another key than the subscription's; among the violations too.
    pub key_mismatches: u64,
    /// Answers by status.
    pub answers: BTreeMap<u16, u64>,
    /// Requests that met a fault instead of the usual answer.
    pub faulted: u64,
    /// Streams refused for coming beyond MAX_CONCURRENT_STREAMS.
    pub refused_streams: u64,
    /// Requests that were not processed because a GOAWAY lay below them.
    pub unprocessed: u64,
    /// Different VAPID tokens seen.
    pub tokens: u64,
    /// By origin.
    pub origins: Vec<OriginCounters>,
}

/// Totals of one origin.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct OriginCounters {
    /// TCP connections accepted.
    pub connections: u64,
    pub connections_open: u64,
    pub connections_open_peak: u64,
    /// TLS handshakes completed.
    pub handshakes: u64,
    pub requests: u64,
    pub accepted: u64,
    /// Requests that have come and not been answered.
    pub in_flight: u64,
    pub in_flight_peak: u64,
}

/// What happens to a request.
pub(super) enum Reply {
    Answer(Answer),
    Stall,
    Reset(u32),
    Close,
    CloseInAnswer,
}

/// A request as it came.
pub(super) struct Arrival {
    pub origin: usize,
    pub connection: u64,
    pub parts: http::request::Parts,
    pub body: Bytes,
    /// When the whole of it was there, since 1970.
    pub at: Duration,
}

impl Arrival {
    /// A request whose last byte has just been read.
    pub fn now(origin: usize, connection: u64, parts: http::request::Parts, body: Bytes) -> Arrival {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Arrival { origin, connection, parts, body, at }
    }
}

/// One origin's switches.
pub(super) struct OriginState {
    pub url: Arc<str>,
    pub max_streams: watch::Sender<u32>,
    pub narrow: AtomicBool,
}

impl OriginState {
    pub fn new(url: Arc<str>) -> OriginState {
        OriginState { url, max_streams: watch::Sender::new(STREAMS), narrow: AtomicBool::new(false) }
    }
}

pub(super) struct State {
    pub origins: Vec<OriginState>,
    pub subscriptions: RwLock<Registry>,
    /// By origin.
    tallies: Vec<Mutex<Tally>>,
    verifier: Verifier,
    verify_every: AtomicU64,
    keep: usize,
    /// Nothing is looked at.
    pub sink: bool,
    connections: AtomicU64,
    rules: Mutex<HashMap<Scope, Rules>>,
    /// So that a measurement without faults takes no lock for them.
    ruled: AtomicBool,
    log: Mutex<Log>,
    changed: Condvar,
}

#[derive(Default)]
struct Rules {
    counted: VecDeque<(Fault, u64)>,
    /// One fault of a request; of a connection one of each kind.
    lasting: Vec<Lasting>,
}

struct Lasting {
    fault: Fault,
    every: u64,
    seen: u64,
}

#[derive(Default)]
struct Log {
    received: VecDeque<Received>,
    numbers: u64,
    counters: Counters,
    /// How often (subscription, payload) was taken.
    taken: HashMap<(u32, u64), u32>,
    /// Salt or sender's key, shortened to 64 bits, to the body it was used for: a body may be sent again, but not its parts.
    used: HashMap<u64, u64>,
    tokens: BTreeSet<u64>,
}

impl State {
    pub fn new(origins: Vec<OriginState>, verify_every: u64, keep: usize, sink: bool) -> State {
        let log = Log {
            counters: Counters { origins: vec![OriginCounters::default(); origins.len()], ..Counters::default() },
            ..Log::default()
        };
        State {
            tallies: origins.iter().map(|_| Mutex::default()).collect(),
            origins,
            subscriptions: RwLock::default(),
            verifier: Verifier::default(),
            verify_every: AtomicU64::new(verify_every.max(1)),
            keep,
            sink,
            connections: AtomicU64::new(0),
            rules: Mutex::default(),
            ruled: AtomicBool::new(false),
            log: Mutex::new(log),
            changed: Condvar::new(),
        }
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().expect("no holder panics")
    }

    /// A new connection of an origin: its number.
    pub fn connected(&self, origin: usize) -> u64 {
        let mut log = self.log();
        let counters = &mut log.counters.origins[origin];
        counters.connections += 1;
        counters.connections_open += 1;
        counters.connections_open_peak = counters.connections_open_peak.max(counters.connections_open);
        self.connections.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn disconnected(&self, origin: usize) {
        self.log().counters.origins[origin].connections_open -= 1;
    }

    pub fn handshaken(&self, origin: usize) {
        self.log().counters.origins[origin].handshakes += 1;
    }

    /// A request has begun; counted as in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>, origin: usize) -> InFlight {
        let mut log = self.log();
        let counters = &mut log.counters.origins[origin];
        counters.in_flight += 1;
        counters.in_flight_peak = counters.in_flight_peak.max(counters.in_flight);
        InFlight { state: self.clone(), origin }
    }

    /// So many requests, with bodies of so many bytes, were taken unread.
    pub fn sank(&self, origin: usize, requests: u64, bytes: u64) {
        let mut log = self.log();
        let counters = &mut log.counters;
        counters.requests += requests;
        counters.accepted += requests;
        counters.distinct += requests;
        counters.body_bytes += bytes;
        *counters.answers.entry(201).or_default() += requests;
        counters.origins[origin].requests += requests;
        counters.origins[origin].accepted += requests;
        drop(log);
        self.changed.notify_all();
    }

    pub fn refused_stream(&self) {
        self.log().counters.refused_streams += 1;
    }

    pub fn unprocessed(&self) {
        self.log().counters.unprocessed += 1;
    }

    /// Judges a request, notes it, and says what becomes of it.
    ///
    /// Where every body is decrypted (some 100 us) that happens on threads of its own, so that the connections go on reading: what
    /// arrives meanwhile has arrived, and is timed so.
    pub async fn judge(self: &Arc<Self>, arrival: Arrival) -> Reply {
        if self.verify_every.load(Ordering::Relaxed) > 1 {
            return self.handle(&arrival);
        }
        let state = self.clone();
        let judged = tokio::task::spawn_blocking(move || state.handle(&arrival)).await;
        // It panicked, or the mock ends.
        judged.unwrap_or(Reply::Close)
    }

    fn handle(&self, arrival: &Arrival) -> Reply {
        let now = arrival.at;
        let token = token_of(&arrival.parts.uri);
        let known = self.subscriptions.read().expect("no holder panics").find(token);
        let Some((place, known)) = known else {
            let host = arrival.parts.uri.host().unwrap_or("");
            let fault = self.request_fault(arrival.origin, token);
            let reply = fault.map_or_else(
                || Reply::Answer(fault::refusal(Vendor::of_host(host), Wrong::Unknown, 404, "unknown subscription")),
                reply_of,
            );
            let mut log = self.log();
            log.counters.requests += 1;
            log.counters.body_bytes += arrival.body.len() as u64;
            log.counters.origins[arrival.origin].requests += 1;
            if let Reply::Answer(answer) = &reply {
                *log.counters.answers.entry(answer.status).or_default() += 1;
            }
            self.changed.notify_all();
            return reply;
        };
        let headers = &arrival.parts.headers;
        let judged = check::headers(&known, &self.verifier, &arrival.parts, arrival.body.len(), now.as_secs());
        let every = match &place {
            Place::One(_) => self.verify_every.load(Ordering::Relaxed),
            Place::Member(crowd, _) => crowd.verify_every(),
        };
        let sampled = every > 1 && !place_of_sample(&arrival.body, every);
        let (ttl, vapid, opened, violation) = match judged {
            Ok(judged) if sampled => (Some(judged.ttl), Some(judged.vapid), None, None),
            Ok(judged) => match check::body(&known, headers, &judged.vapid, &arrival.body) {
                Ok(opened) => (Some(judged.ttl), Some(judged.vapid), opened, None),
                Err(violation) => (Some(judged.ttl), Some(judged.vapid), None, Some(violation)),
            },
            Err(violation) => (None, None, None, Some(violation)),
        };
        let fault = self.request_fault(arrival.origin, token);
        let fault = fault.or_else(|| match &place {
            Place::Member(crowd, number) if crowd.is_gone(*number) => Some(Fault::status(410).into()),
            _ => None,
        });
        let faulted = fault.is_some();

        let mut log = self.log();
        let violation = violation.or_else(|| {
            let opened = opened.as_ref()?;
            let body = hash(&arrival.body);
            // Both are random: 64 bits of them meet by chance once in billions of messages.
            let parts = [
                (hash(&opened.salt), "the salt was used for another body"),
                (hash(&opened.sender), "the sender's one-use key was used for another body"),
            ];
            if log.used.len() >= USED {
                log.used.clear();
            }
            let mut wrong = None;
            for (part, text) in parts {
                if *log.used.entry(part).or_insert(body) != body {
                    wrong = Some(Violation { what: Wrong::Encryption, status: 400, text: text.to_owned() });
                }
            }
            wrong
        });
        let reply = match (fault, &violation) {
            (Some(fault), _) => reply_of(fault),
            (None, Some(wrong)) => Reply::Answer(fault::refusal(known.vendor, wrong.what, wrong.status, &wrong.text)),
            (None, None) => Reply::Answer(accepted(known.vendor, log.numbers + 1, ttl.unwrap_or(0))),
        };
        let status = match &reply {
            Reply::Answer(answer) => Some(answer.status),
            _ => None,
        };
        let taken = status.is_some_and(|status| (200..300).contains(&status));

        let mut repeat = 0;
        match (&place, &opened) {
            // A crowd remembers only the last.
            (Place::Member(crowd, number), opened) => {
                let payload = opened.as_ref().map(|opened| opened.plaintext.as_slice());
                repeat = u32::from(crowd.note(*number, taken, payload));
            }
            (Place::One(place), Some(opened)) => {
                let time = now.as_micros() as u64;
                // The load generator numbers its messages itself, which is cheaper than to remember each payload.
                match taken.then(|| self.tally(arrival.origin).count(&opened.plaintext, time)).flatten() {
                    Some(times) => repeat = times,
                    None => {
                        let times = log.taken.entry((*place, hash(&opened.plaintext))).or_insert(0);
                        repeat = *times;
                        *times += u32::from(taken);
                    }
                }
            }
            (Place::One(_), None) => {}
        }
        log.numbers += 1;
        let number = log.numbers;
        if let Some(vapid) = &vapid {
            log.tokens.insert(hash(vapid.token.as_bytes()));
        }
        let tokens = log.tokens.len() as u64;
        let counters = &mut log.counters;
        counters.requests += 1;
        counters.body_bytes += arrival.body.len() as u64;
        counters.origins[arrival.origin].requests += 1;
        counters.tokens = tokens;
        counters.faulted += u64::from(faulted);
        counters.verified += u64::from(violation.is_none() && !sampled);
        if let Some(status) = status {
            *counters.answers.entry(status).or_default() += 1;
        }
        if taken {
            counters.accepted += 1;
            counters.origins[arrival.origin].accepted += 1;
            counters.distinct += u64::from(repeat == 0);
            counters.repeats += u64::from(repeat > 0);
        }
        if let Some(violation) = &violation {
            counters.violation_count += 1;
            counters.key_mismatches += u64::from(violation.what == Wrong::KeyMismatch);
            if counters.violations.len() < VIOLATIONS {
                counters.violations.push(format!("{token}: {}", violation.text));
            }
        }
        if self.keep > 0 {
            let text = |name: &str| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
            if log.received.len() == self.keep {
                log.received.pop_front();
            }
            log.received.push_back(Received {
                number,
                time: now.as_micros() as u64,
                origin: arrival.origin,
                subscription: token.to_owned(),
                padding: opened.as_ref().map_or(0, |opened| opened.padding),
                payload: opened.map(|opened| Bytes::from(opened.plaintext)),
                body_length: arrival.body.len(),
                ttl: ttl.or_else(|| text("ttl").and_then(|ttl| ttl.parse().ok())),
                urgency: text("urgency"),
                topic: text("topic"),
                content_encoding: text("content-encoding"),
                content_type: text("content-type"),
                wns_cache_policy: text("x-wns-cache-policy"),
                connection: arrival.connection,
                version: format!("{:?}", arrival.parts.version),
                vapid,
                status,
                repeat,
                violation: violation.map(|violation| violation.text),
            });
        }
        drop(log);
        self.changed.notify_all();
        reply
    }

    fn tally(&self, origin: usize) -> MutexGuard<'_, Tally> {
        self.tallies[origin].lock().expect("no holder panics")
    }

    /// What is known of a measurement's messages; None: at all origins together.
    pub fn measured(&self, origin: Option<usize>) -> Measured {
        let mut whole = Tally::default();
        for index in (0..self.tallies.len()).filter(|index| origin.is_none_or(|origin| origin == *index)) {
            whole.join(&self.tally(index));
        }
        whole.measured()
    }

    /// Counts a measurement's messages anew.
    pub fn reset_measured(&self) {
        for index in 0..self.tallies.len() {
            self.tally(index).reset();
        }
    }

    /// Everything noted with a number above this.
    pub fn received_after(&self, number: u64) -> Vec<Received> {
        let log = self.log();
        let begin = log.received.partition_point(|received| received.number <= number);
        log.received.range(begin..).cloned().collect()
    }

    pub fn counters(&self) -> Counters {
        self.log().counters.clone()
    }

    /// Waits until `enough` is so; false when it was not in time.
    pub fn wait(&self, timeout: Duration, enough: impl Fn(&Counters) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut log = self.log();
        while !enough(&log.counters) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            // Counters of connections change without a notice, so it looks by itself too.
            log = self.changed.wait_timeout(log, left.min(Duration::from_millis(20))).expect("no holder panics").0;
        }
        true
    }

    pub fn set_verify_every(&self, every: u64) {
        self.verify_every.store(every.max(1), Ordering::Relaxed);
    }

    /// Orders a fault: for the next `times` requests (or connections), or lasting and then for every `every`-th.
    pub fn set_fault(&self, scope: Scope, fault: Fault, times: Option<u64>, every: u64) {
        if self.switch(&scope, &fault, true) {
            return;
        }
        let mut rules = self.rules.lock().expect("no holder panics");
        let rules = rules.entry(scope).or_default();
        match times {
            Some(times) => rules.counted.push_back((fault, times)),
            None => {
                let kind = std::mem::discriminant(&fault);
                let of_connection = fault.of_connection();
                rules.lasting.retain(|other| {
                    other.fault.of_connection() != of_connection || of_connection && std::mem::discriminant(&other.fault) != kind
                });
                rules.lasting.push(Lasting { fault, every: every.max(1), seen: 0 });
            }
        }
        self.ruled.store(true, Ordering::Release);
    }

    /// Withdraws all faults of a scope; None: of all scopes.
    pub fn clear_faults(&self, scope: Option<&Scope>) {
        let mut rules = self.rules.lock().expect("no holder panics");
        match scope {
            Some(scope) => {
                rules.remove(scope);
            }
            None => rules.clear(),
        }
        self.ruled.store(!rules.is_empty(), Ordering::Release);
        drop(rules);
        let scope = scope.unwrap_or(&Scope::Everything);
        self.switch(scope, &Fault::MaxStreams(STREAMS), true);
        self.switch(scope, &Fault::NarrowAfterRejection, false);
    }

    /// The quirks that are a state of an origin rather than an event.
    fn switch(&self, scope: &Scope, fault: &Fault, on: bool) -> bool {
        let origins = self.origins.iter().enumerate().filter(|(index, _)| match scope {
            Scope::Everything => true,
            Scope::Origin(origin) => origin == index,
            Scope::Subscription(_) => false,
        });
        match fault {
            Fault::MaxStreams(streams) => origins.for_each(|(_, origin)| {
                origin.max_streams.send_replace(*streams);
            }),
            Fault::NarrowAfterRejection => origins.for_each(|(_, origin)| origin.narrow.store(on, Ordering::Relaxed)),
            _ => return false,
        }
        true
    }

    /// The fault that a request meets: of its subscription, else of its origin, else of everything.
    fn request_fault(&self, origin: usize, token: &str) -> Option<Fault> {
        if !self.ruled.load(Ordering::Acquire) {
            return None;
        }
        let mut rules = self.rules.lock().expect("no holder panics");
        [Scope::Subscription(token.to_owned()), Scope::Origin(origin), Scope::Everything]
            .iter()
            .find_map(|scope| rules.get_mut(scope)?.next_of_request())
    }

    /// The faults that a connection meets.
    pub fn connection_faults(&self, origin: usize) -> Vec<Fault> {
        if !self.ruled.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut rules = self.rules.lock().expect("no holder panics");
        let scopes = [Scope::Origin(origin), Scope::Everything];
        scopes.iter().filter_map(|scope| rules.get_mut(scope).map(Rules::next_of_connection)).flatten().collect()
    }
}

impl Rules {
    fn next_counted(&mut self, of_connection: bool) -> Option<Fault> {
        let place = self.counted.iter().position(|(fault, left)| fault.of_connection() == of_connection && *left > 0)?;
        let (fault, left) = &mut self.counted[place];
        *left -= 1;
        let fault = fault.clone();
        self.counted.retain(|(_, left)| *left > 0);
        Some(fault)
    }

    fn next_of_request(&mut self) -> Option<Fault> {
        if let Some(fault) = self.next_counted(false) {
            return Some(fault);
        }
        let lasting = self.lasting.iter_mut().find(|lasting| !lasting.fault.of_connection())?;
        lasting.seen += 1;
        (lasting.seen % lasting.every == 0).then(|| lasting.fault.clone())
    }

    fn next_of_connection(&mut self) -> Vec<Fault> {
        let mut faults: Vec<Fault> = self.next_counted(true).into_iter().collect();
        for lasting in self.lasting.iter_mut().filter(|lasting| lasting.fault.of_connection()) {
            lasting.seen += 1;
            if lasting.seen % lasting.every == 0 {
                faults.push(lasting.fault.clone());
            }
        }
        faults
    }
}

/// Counts a request as in flight as long as it lives.
pub(super) struct InFlight {
    state: Arc<State>,
    origin: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.state.log().counters.origins[self.origin].in_flight -= 1;
    }
}

fn reply_of(fault: Fault) -> Reply {
    match fault {
        Fault::Answer(answer) => Reply::Answer(answer),
        Fault::Stall => Reply::Stall,
        Fault::Reset(code) => Reply::Reset(code),
        Fault::CloseInAnswer => Reply::CloseInAnswer,
        // Faults of a connection are never ordered for a request.
        _ => Reply::Close,
    }
}

/// The usual answer, with what the service adds.
fn accepted(vendor: Vendor, number: u64, ttl: u64) -> Answer {
    let answer = Fault::status(201).header("location", &format!("/m/{number}"));
    match vendor {
        Vendor::Mozilla => answer.header("ttl", &ttl.min(2_592_000).to_string()),
        Vendor::Apple => answer.header("apns-id", &format!("{number:032X}")),
        Vendor::Wns => answer.header("x-wns-status", "received").header("x-wns-notificationstatus", "received"),
        Vendor::Generic | Vendor::Fcm => answer,
    }
}

/// Whether this body belongs to the sample: chosen by its salt, which is random.
fn place_of_sample(body: &[u8], every: u64) -> bool {
    body.first_chunk::<8>().is_none_or(|salt| u64::from_le_bytes(*salt) % every == 0)
}

fn hash(bytes: &[u8]) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    static KEYS: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    KEYS.get_or_init(RandomState::new).hash_one(bytes)
}

fn base64_text<S: Serializer>(payload: &Option<Bytes>, serializer: S) -> Result<S::Ok, S::Error> {
    payload.as_ref().map(|bytes| STANDARD.encode(bytes)).serialize(serializer)
}

fn shared<S: Serializer>(vapid: &Option<Arc<Vapid>>, serializer: S) -> Result<S::Ok, S::Error> {
    vapid.as_deref().serialize(serializer)
}
