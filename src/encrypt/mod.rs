//! Worker threads: each takes a run, reads its row once, claims and filters what is in it, seals it in slices of eight, and posts
//! each slice. Between two slices it looks for an urgent run. One that has had no run for a while makes key agreements ahead
//! (`warm`), and looks for a run after each few.
//!
//! What is claimed leaves a worker in exactly one way: posted, or settled (ended, held back, waiting by itself, or given back).

pub mod fill;
pub mod payload;
pub mod warm;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use crossbeam_channel::Receiver;
use p256_batch::Agreed;

use crate::clock;
use crate::encrypt::fill::Filler;
use crate::encrypt::payload::{Body, Plain, SealError, Sealer, mobile_limited, padded_len};
use crate::encrypt::warm::Warm;
use crate::message::{Delivery, Ending, Origin, Rank, Sealed, UnixMillis};
use crate::metrics;
use crate::origin::table::{Admit, Table};
use crate::protocol::reason;
use crate::queue::{Bell, Sender};
use crate::receipt::Receipts;
use crate::store::live::{self, Holder};
use crate::store::run::{Loaded, Run, load, unread};
use crate::store::writer::{Settle, Settled, Settlement};
use crate::store::{ReadError, Store};
use crate::vapid::token::{Authorization, Tokens};

/// Deliveries that are sealed together; also how often a worker looks for an urgent run.
const SLICE: usize = 8;

/// What all workers share. `Post` takes a slice of sealed deliveries to the push services.
pub struct Shared<Post> {
    pub store: Arc<Store>,
    pub origins: Arc<Table>,
    pub tokens: Arc<Tokens>,
    pub post: Post,
    pub settles: Sender<Settle>,
    /// Rung when a run was taken, or left places unused: the scheduler may have another.
    pub wake: Bell,
    pub high: Receiver<Run>,
    pub normal: Receiver<Run>,
    /// `encrypt.padding`.
    pub padding: usize,
    pub receipts: Receipts,
    pub warm: Arc<Warm>,
    pub stop: Arc<AtomicBool>,
}

/// One worker thread.
pub struct Worker<Post> {
    shared: Arc<Shared<Post>>,
    sealer: Sealer,
    filler: Filler,
    bodies: Vec<Result<Body, SealError>>,
    /// Of the slice in work: agreements that were made ahead.
    ahead: Vec<Option<Agreed>>,
    /// Called at each turn, also while nothing may be sent: a full disk is no reason for the watchdog to bite.
    progress: Box<dyn Fn() + Send>,
}

impl<Post: Fn(Vec<Sealed>)> Worker<Post> {
    /// A worker with its own sealer.
    pub fn new(shared: Arc<Shared<Post>>, sealer: Sealer, progress: impl Fn() + Send + 'static) -> Worker<Post> {
        let (filler, bodies, ahead) = (Filler::default(), Vec::with_capacity(SLICE), Vec::with_capacity(SLICE));
        Worker { shared, sealer, filler, bodies, ahead, progress: Box::new(progress) }
    }

    /// Works until `stop` is set.
    pub fn run(mut self) {
        let shared = self.shared.clone();
        let mut patience = warm::QUIET;
        while !shared.stop.load(Ordering::Relaxed) {
            (self.progress)();
            let run = match shared.high.try_recv() {
                Ok(run) => run,
                Err(_) => {
                    let taken = crossbeam_channel::select_biased! {
                        recv(shared.high) -> run => run,
                        recv(shared.normal) -> run => run,
                        default(patience) => {
                            patience = shared.warm.step(&shared.store, self.sealer.agreement());
                            continue;
                        }
                    };
                    let Ok(run) = taken else { return };
                    run
                }
            };
            patience = warm::QUIET;
            shared.wake.ring();
            self.work(run);
        }
    }

    fn work(&mut self, run: Run) {
        let shared = self.shared.clone();
        let loaded = load(&shared.store, &run).unwrap_or_else(|ReadError| {
            // The store is being reopened: what the run held is still on disk, and the lane reads it again.
            Loaded { back: true, ..Loaded::default() }
        });
        let service = run.lane.service;
        let absent = usize::from(run.most) - loaded.deliveries.len();
        shared.origins.unsent(service, run.origin.as_ref(), absent);
        if loaded.back {
            shared.settle_unread(&run);
        }
        if let Some((batch, list, places)) = loaded.absent {
            // As above.
            let _ended = shared.settles.send(Settle::Absent { batch, list, places });
        }
        if !loaded.stale.is_empty() {
            // The writer ends after the workers.
            let _ended = shared.settles.send(Settle::Stale(loaded.stale));
        }
        let mut settled = Vec::new();
        let mut slice: Vec<Ready> = Vec::with_capacity(SLICE);
        let mut waiting = loaded.deliveries.into_iter();
        loop {
            for delivery in waiting.by_ref() {
                match shared.check(delivery, &run, clock::now()) {
                    Ok(ready) => slice.push(ready),
                    Err(done) => settled.push(*done),
                }
                if slice.len() == SLICE {
                    break;
                }
            }
            if slice.is_empty() {
                break;
            }
            if !shared.wait_for_gate(&self.progress) {
                settled.extend(slice.drain(..).map(|ready| shared.give_back(ready, &run)));
                continue;
            }
            self.seal(&mut slice, &run, &mut settled);
            // An urgent run is not interrupted by the next one.
            while run.lane.urgency.rank() == Rank::Normal
                && let Ok(urgent) = shared.high.try_recv()
            {
                shared.wake.ring();
                self.work(urgent);
            }
        }
        if absent > 0 || !settled.is_empty() {
            // Their places at the origin are free, and no answer will tell.
            shared.wake.ring();
        }
        if !settled.is_empty() {
            // The writer ends after the workers.
            let _ended = shared.settles.send(Settle::Slice(settled));
        }
    }

    fn seal(&mut self, slice: &mut Vec<Ready>, run: &Run, settled: &mut Vec<Settled>) {
        let started = Instant::now();
        let shared = &self.shared;
        self.filler.fill(slice.iter().map(|ready| &*ready.delivery), &shared.receipts, &shared.store.ids);
        let filler = &self.filler;
        let has_body = |n: usize, ready: &Ready| !filler.payload(n, &ready.delivery.message).is_empty();
        let plains: Vec<Plain<'_>> = slice
            .iter()
            .enumerate()
            .filter(|(n, ready)| has_body(*n, ready))
            .map(|(n, Ready { delivery, .. })| {
                let (message, recipient) = (&delivery.message, &delivery.recipient);
                let payload = filler.payload(n, message);
                let padding = if delivery.shrink { 0 } else { shared.padding };
                Plain {
                    p256dh: &recipient.p256dh,
                    auth: &recipient.auth,
                    encoding: recipient.encoding,
                    payload,
                    pad_to: padded_len(payload.len(), padding, mobile_limited(recipient.service)),
                }
            })
            .collect();
        let any = !plains.is_empty();
        if any {
            let with_body = slice.iter().enumerate().filter(|(n, ready)| has_body(*n, ready));
            shared.warm.take(with_body.map(|(_, ready)| &*ready.delivery), &mut self.ahead);
            self.sealer.seal_ahead(&plains, &mut self.ahead, || shared.warm.take_pair(), &mut self.bodies);
        }
        drop(plains);
        let mut bodies = self.bodies.drain(..);
        let mut sealed = Vec::with_capacity(slice.len());
        for (n, ready) in slice.drain(..).enumerate() {
            // A message without a body is posted without one (RFC 8030 section 5): browsers that get an encrypted record of
            // nothing acknowledge the message and tell the page nothing.
            let body = if has_body(n, &ready) { bodies.next().expect("one for each that has a body") } else { Ok(Body::none()) };
            match body {
                Ok(body) => sealed.push(shared.sealed(ready, body)),
                Err(SealError::Random) => settled.push(shared.give_back(ready, run)),
                Err(SealError::InvalidKey | SealError::TooLong) => {
                    // Checked at the door: only a damaged row comes here.
                    shared.origins.answered(run.lane.service, &ready.origin, clock::now(), None, None);
                    settled.push(ended(ready.delivery, Ending::Refused, reason::BAD_ENCRYPTION));
                }
            }
        }
        if any {
            metrics::sealed(started.elapsed());
        }
        (shared.post)(sealed);
    }
}

/// A delivery that may be sent, with where and how it is signed.
struct Ready {
    delivery: Box<Delivery>,
    origin: Origin,
    authorization: Authorization,
}

impl<Post> Shared<Post> {
    /// Whether a claimed delivery is sent now; otherwise what becomes of it.
    fn check(&self, delivery: Box<Delivery>, run: &Run, now: UnixMillis) -> Result<Ready, Box<Settled>> {
        let out = |delivery, what| {
            self.origins.unsent(run.lane.service, run.origin.as_ref(), 1);
            Err(Box::new(Settled { delivery, what }))
        };
        let message = &delivery.message;
        let rules = self.store.rules.load();
        if rules.cancels(message.id, &message.app, message.label.as_ref()) {
            return out(delivery, end(Ending::Cancelled, reason::CANCELLED));
        }
        if rules.erased_by(message.id, &message.app, &delivery.recipient).is_some() {
            return out(delivery, end(Ending::Cancelled, reason::ERASED));
        }
        if let Some(reason) = delivery.lost {
            return out(delivery, end(Ending::Skipped, reason));
        }
        // With `when: offline` it waits while its account is online.
        let present = delivery
            .recipient
            .registered
            .and_then(|registered| registered.account)
            .filter(|who| message.when_offline && live::lock(&self.store.presence).holds_back(*who, now));
        // RFC 8030 counts TTL in whole seconds: with less than one left there is nothing to send.
        let too_late = if message.ttl_zero { message.expires <= now } else { message.expires.since(now) < 1_000 };
        if too_late {
            if present.is_some() {
                return out(delivery, end(Ending::Skipped, reason::PRESENT));
            }
            let why = if message.ttl_zero { reason::TTL_ZERO_PATIENCE } else { reason::DEADLINE };
            return out(delivery, end(Ending::Expired, why));
        }
        if delivery.recipient.expiration.is_some_and(|expiration| expiration <= now) {
            return out(delivery, end(Ending::Gone, reason::EXPIRATION_TIME));
        }
        if let Some(holder) = rules.holder(message).or(present.map(Holder::Account)) {
            return out(delivery, Settlement::Hold(holder));
        }
        drop(rules);
        let origin = match &run.origin {
            Some(origin) if *origin.0 == *delivery.recipient.endpoint.origin_str() => origin.clone(),
            _ => {
                // Not the origin that the run was counted at: this delivery asks for itself.
                let origin = Origin(Arc::from(delivery.recipient.endpoint.origin_str()));
                if let Some(counted) = &run.origin {
                    self.origins.unsent(run.lane.service, Some(counted), 1);
                    self.origins.handed_out(run.lane.service, None, now, 1);
                }
                match self.origins.admit(run.lane.service, &origin, now, run.lane.urgency.rank()) {
                    Admit::Go => origin,
                    Admit::Wait(until) => {
                        self.origins.unsent(run.lane.service, None, 1);
                        let until = until.min(message.expires);
                        let what = Settlement::Wait { until, counts_retry: false };
                        return Err(Box::new(Settled { delivery, what }));
                    }
                }
            }
        };
        let done = |what, delivery| {
            self.origins.answered(run.lane.service, &origin, now, None, None);
            Err(Box::new(Settled { delivery, what }))
        };
        let Some(key) = self.key_for(&delivery) else {
            return done(end(Ending::Refused, reason::NO_SUCH_APP), delivery);
        };
        let (app, encoding) = (&delivery.message.app, delivery.recipient.encoding);
        match self.tokens.authorization(app, key, &origin, encoding, now) {
            Some(authorization) => Ok(Ready { delivery, origin, authorization }),
            None => done(end(Ending::Refused, reason::NO_SUCH_APP), delivery),
        }
    }

    /// Which of the app's keys signs: the one the subscription was made with, or the next that was not answered with a
    /// mismatch.
    fn key_for(&self, delivery: &Delivery) -> Option<usize> {
        let app = &delivery.message.app;
        let keys = self.tokens.keys(app);
        let own = delivery.recipient.key.and_then(|key| keys.iter().position(|known| *known == key)).unwrap_or(0);
        let untried = |index: &usize| delivery.tried_keys >> *index & 1 == 0;
        std::iter::once(own).chain(0..keys.len().min(8)).find(untried).or(Some(own)).filter(|index| *index < keys.len())
    }

    fn sealed(&self, ready: Ready, body: Body) -> Sealed {
        let Ready { delivery, origin, authorization } = ready;
        let (encryption, crypto_key) = match (body.aesgcm, &authorization.p256ecdsa) {
            (Some(headers), Some(key)) => {
                let crypto_key = headers.crypto_key(key);
                (Some(headers.encryption), Some(crypto_key))
            }
            (None, Some(key)) => (None, Some(payload::crypto_key_without_body(key))),
            (_, None) => (None, None),
        };
        let topic = delivery.message.topic.as_ref().map(|topic| self.topic(&delivery.message.app, topic));
        let Authorization { value: authorization, key, .. } = authorization;
        Sealed { delivery, origin, authorization, key, topic, encryption, crypto_key, body: body.bytes }
    }

    /// The keyed hash that goes out as `Topic`. Apple decodes it, hence 32 characters (docs/push-services.md 1, fact 7). The push
    /// service does not learn what the application calls its topics (RFC 8030 section 5.4).
    fn topic(&self, app: &str, topic: &str) -> http::HeaderValue {
        let hash = self.store.keyed_hash(format!("topic\0{app}\0{topic}").as_bytes());
        let text = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(&hash[..24]);
        http::HeaderValue::try_from(text).expect("base64url is visible ASCII")
    }

    /// Waits while nothing may be sent (a late checkpoint, a full disk); false if the daemon stops meanwhile.
    fn wait_for_gate(&self, progress: impl Fn()) -> bool {
        while !self.store.gates.may_send() {
            progress();
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        !self.stop.load(Ordering::Relaxed)
    }

    fn give_back(&self, ready: Ready, run: &Run) -> Settled {
        self.origins.answered(run.lane.service, &ready.origin, clock::now(), None, None);
        Settled { delivery: ready.delivery, what: Settlement::Back }
    }

    /// A run that could not be read: its lane is told to read it again.
    fn settle_unread(&self, run: &Run) {
        if let Some(unread) = unread(run) {
            let _ended = self.settles.send(unread);
        }
    }
}

fn end(ending: Ending, reason: &'static str) -> Settlement {
    Settlement::Ended { ending, reason, status: None, key: None }
}

fn ended(delivery: Box<Delivery>, ending: Ending, reason: &'static str) -> Settled {
    Settled { delivery, what: end(ending, reason) }
}
