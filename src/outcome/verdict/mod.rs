//! What an answer means: one table from (service, status, headers, body) to what happens to the delivery and what slows down.
//!
//! Promises. It is pure: the same [`Case`] always gives the same verdict, no clock, no I/O, no metrics. No answer makes it
//! panic, however long, torn or hostile. It decides by status first and by the vendor's own words second, so it never
//! *needs* a body (docs/push-services.md 3.7). In doubt the milder verdict holds. A subscription is `gone` only on
//! an answer that says so, because its owner deletes it then (docs/push-services.md 1, fact 8). Rows are those of 3.6 there.
//!
//! How much an answer condemns, from nothing to everything:
//!
//! ```text
//! the delivery is done  ->  this delivery  ->  this subscription  ->  our key at the origin  ->  the origin  ->  the service
//! 2xx                       400 405 413        404 410                401 403                    5xx 429 TLS     406 429
//! ```
//!
//! An answer that condemns the origin is no attempt (docs/design.md 4.3): the delivery returns to its lane. The exception are
//! deliveries with TTL 0, for which any post that left is the one attempt (promise 3).

#[cfg(test)]
mod tests;
mod told;

use http::{HeaderMap, StatusCode};

use self::told::{Told, WnsStatus, wns_status};
use super::retry_after::{continue_after, retry_after};
use crate::message::{Answer, Answered, Blame, ConnectFailure, Ending, Loss, Service, UnixMillis, Verdict};
use crate::protocol::reason;

/// One delivery's answer, with all that its meaning depends on.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// Whose answer it is.
    pub service: Service,
    /// What came back.
    pub answer: &'a Answer,
    /// The message has TTL 0: one attempt (promise 3).
    pub ttl_zero: bool,
    /// The body that was posted had padding, so a smaller one can be made.
    pub padded: bool,
    /// The app has another VAPID key that was not yet tried for this subscription.
    pub other_key: bool,
    /// Attempts that condemned this delivery before this one.
    pub attempts: u8,
    /// Since when it could be sent: the later of acceptance and `at`.
    pub since: UnixMillis,
    /// When the answer is judged.
    pub now: UnixMillis,
}

impl<'a> Case<'a> {
    /// The case of what `deliver` hands back. `padding` says that padding is configured, `other_key` that a key of the app is
    /// left which neither signed this post nor is in `tried_keys`.
    pub fn of(answered: &'a Answered, padding: bool, other_key: bool, now: UnixMillis) -> Case<'a> {
        let delivery = &answered.delivery;
        Case {
            service: delivery.recipient.service,
            answer: &answered.answer,
            ttl_zero: delivery.message.ttl_zero,
            padded: padding && !delivery.shrink && !delivery.message.body.is_empty(),
            other_key,
            attempts: delivery.attempts,
            since: delivery.message.id.created().max(delivery.message.at),
            now,
        }
    }
}

/// FCM names no time: docs/push-services.md 3.6, row 429.
const FCM_THROTTLE_MILLIS: u64 = 60_000;
/// Any other service names no time: the same row.
const THROTTLE_MILLIS: u64 = 30_000;
/// Where the doubling of [`THROTTLE_MILLIS`] ends: the same hour at which `retry.max` ends the backoff by default.
const THROTTLE_MILLIS_MAX: u64 = 3_600_000;
/// WNS throttles an app and names no time: docs/push-services.md 3.6, row 406.
const WNS_THROTTLE_MILLIS: u64 = 15 * 60_000;
/// Row 403, no known cause: the first wait, doubled with each attempt.
const FORBIDDEN_MILLIS: u64 = 10 * 60_000;
/// Row 403, no known cause: after waits of 10, 20, 40, 80 and 160 minutes the delivery ends.
const FORBIDDEN_RETRIES: u8 = 5;
/// The sum of those waits.
const FORBIDDEN_AGE_MILLIS: u64 = FORBIDDEN_MILLIS * ((1 << FORBIDDEN_RETRIES) - 1);
/// Row "no such host": the first wait is short, because most such answers are a resolver's mishap; the third
/// ends 24 hours after the first failure.
const NO_SUCH_HOST_MILLIS: [u64; 3] = [10 * 60_000, 4 * 3_600_000, 19 * 3_600_000 + 50 * 60_000];
const DAY_MILLIS: u64 = 24 * 3_600_000;

const _: () = assert!(NO_SUCH_HOST_MILLIS[0] + NO_SUCH_HOST_MILLIS[1] + NO_SUCH_HOST_MILLIS[2] == DAY_MILLIS);

/// What the answer means for the delivery, and what must slow down beside it.
///
/// [`Blame`] is what one answer says. Two conclusions need more than one, and belong to those who see many: that an origin answers
/// mostly 5xx (its lane), and that a key is refused by more than one subscription (the keeper of the keys, by [`Blame::Sender`]
/// and the reason `key_mismatch`).
pub fn verdict(case: &Case<'_>) -> (Verdict, Blame) {
    let (verdict, blame) = match case.answer {
        Answer::Response { status, headers, body } => response(case, *status, headers, body),
        Answer::NotConnected(failure) => not_connected(case, *failure),
        // Row "no answer". Trouble: a service that takes requests and answers none is as bad for its
        // neighbours as one that answers 5xx.
        // A flood condemns besides: the next connection would be flooded too.
        Answer::Lost(loss) => {
            let blame = if *loss == Loss::Flood { Blame::Origin { not_before: None } } else { Blame::Trouble };
            (again(loss_reason(*loss)), blame)
        }
        Answer::TooLate => (ended(Ending::Expired, reason::DEADLINE), Blame::Delivery),
        Answer::Stopped => (Verdict::Return { reason: reason::STOPPED }, Blame::Delivery),
    };
    (if case.ttl_zero { one_attempt(case.answer, verdict) } else { verdict }, blame)
}

/// What the operator is shown as an origin's last error: a few words, never the service's own text. None if all is well.
pub fn last_error(answer: &Answer) -> Option<&'static str> {
    match answer {
        Answer::Response { status, .. } => match status.as_u16() {
            404 | 410 => None,
            400 => Some("400"),
            401 => Some("401"),
            403 => Some("403"),
            406 => Some("406"),
            413 => Some("413"),
            429 => Some("429"),
            500 => Some("500"),
            502 => Some("502"),
            503 => Some("503"),
            504 => Some("504"),
            _ if status.is_success() => None,
            _ if status.is_redirection() => Some(reason::REDIRECT),
            _ if status.is_client_error() => Some("4xx"),
            _ if status.is_server_error() => Some("5xx"),
            _ => Some(reason::UNEXPECTED_STATUS),
        },
        Answer::NotConnected(failure) => Some(connect_reason(*failure)),
        Answer::Lost(loss) => Some(loss_reason(*loss)),
        Answer::TooLate | Answer::Stopped => None,
    }
}

/// Promise 3, TTL 0: a post that left was the one attempt, whatever its answer says about origin, key or size. A post that did
/// not leave is none: the delivery goes back to its lane while `messages.ttl0_patience` lasts.
fn one_attempt(answer: &Answer, verdict: Verdict) -> Verdict {
    let left = matches!(answer, Answer::Response { .. } | Answer::Lost(_));
    match verdict {
        Verdict::Retry { .. } | Verdict::Return { .. } if left => ended(Ending::Expired, reason::TTL_ZERO_ONE_ATTEMPT),
        Verdict::Retry { reason, .. } => Verdict::Return { reason },
        // The service refused what it was given, and nothing else may be posted: told as that, not as a matter of time.
        Verdict::OtherKey => ended(Ending::Refused, reason::KEY_MISMATCH),
        Verdict::Shrink => ended(Ending::Refused, reason::PAYLOAD_TOO_LARGE),
        verdict => verdict,
    }
}

fn not_connected(case: &Case<'_>, failure: ConnectFailure) -> (Verdict, Blame) {
    let word = connect_reason(failure);
    let origin = Blame::Origin { not_before: None };
    match failure {
        // FCM, Mozilla and Apple live at names that are documented: if one is missing, the resolver is broken, not the
        // subscription. Elsewhere a missing name is the end of that push service (or of a WNS region), but only after a day.
        // The origin closes besides, so that only probes ask, and what waits behind them keeps no timer.
        ConnectFailure::NoSuchHost if documented(case.service) => (Verdict::Return { reason: word }, origin),
        ConnectFailure::NoSuchHost => (no_such_host(case), origin),
        // The operator's configuration, or a name with a forbidden address (docs/design.md 6.1): no time heals it. At a
        // known service it can only be the resolver.
        ConnectFailure::Forbidden if documented(case.service) || case.service == Service::WNS => {
            (Verdict::Return { reason: word }, origin)
        }
        ConnectFailure::Forbidden => (ended(Ending::Refused, word), Blame::Delivery),
        // Row "no connection": it condemns the origin.
        ConnectFailure::Resolve
        | ConnectFailure::Refused
        | ConnectFailure::Timeout
        | ConnectFailure::Tls
        | ConnectFailure::Proxy
        | ConnectFailure::Protocol
        // No fault of the service, as the word says; but nothing can be sent there for the moment, and one probe at a time finds out when.
        | ConnectFailure::NoDescriptor => (Verdict::Return { reason: word }, origin),
    }
}

/// Row "no such host": tried 3 times over 24 h, then gone. The age counts beside the attempts, for those may have been used up by
/// something else (5xx, say) within minutes.
fn no_such_host(case: &Case<'_>) -> Verdict {
    if case.attempts >= 3 && case.now.since(case.since) >= DAY_MILLIS {
        return ended(Ending::Gone, reason::NO_SUCH_HOST);
    }
    let wait = NO_SUCH_HOST_MILLIS[usize::from(case.attempts).min(2)];
    Verdict::Retry { not_before: Some(case.now.plus(wait)), reason: reason::NO_SUCH_HOST }
}

fn response(case: &Case<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> (Verdict, Blame) {
    if status.is_success() {
        return success(case, headers);
    }
    let told = Told::of(headers, body);
    // The reason decides under any status (docs/push-services.md 3.3).
    if let Some(outcome) = told.reason.as_deref().and_then(|word| apple(case, word, headers)) {
        return outcome;
    }
    match status.as_u16() {
        // Never followed: a redirect could lead anywhere (docs/design.md 6.1).
        300..=399 => refused(reason::REDIRECT),
        400 => bad_request(case, &told),
        401 => unauthorized(case, &told),
        403 => forbidden(case, &told),
        404 => (ended(Ending::Gone, reason::NOT_FOUND), Blame::Delivery),
        405 => refused(reason::METHOD_NOT_ALLOWED),
        406 if case.service == Service::WNS => wns_throttled(case, headers, WNS_THROTTLE_MILLIS),
        406 => refused(reason::NOT_ACCEPTABLE),
        408 => (Verdict::Retry { not_before: retry_after(headers, case.now), reason: reason::REQUEST_TIMEOUT }, Blame::Trouble),
        410 => (ended(Ending::Gone, reason::UNSUBSCRIBED), Blame::Delivery),
        411 => refused(reason::LENGTH_REQUIRED),
        413 => too_large(case),
        415 => refused(reason::UNSUPPORTED_MEDIA_TYPE),
        // RFC 9110 section 15.5.20, RFC 8470 section 5.2: nothing was processed, and the message is not at fault.
        421 | 425 => (again(reason::WRONG_CONNECTION), Blame::Delivery),
        429 => throttled(case, headers),
        503 => unavailable(case, &told, headers),
        500..=599 => {
            (Verdict::Retry { not_before: retry_after(headers, case.now), reason: reason::SERVER_ERROR }, Blame::Trouble)
        }
        _ if status.is_client_error() => refused(reason::CLIENT_ERROR),
        _ => refused(reason::UNEXPECTED_STATUS),
    }
}

/// Row 2xx: accepted; at WNS unless its own header says otherwise (docs/push-services.md 3.4).
fn success(case: &Case<'_>, headers: &HeaderMap) -> (Verdict, Blame) {
    if case.service == Service::WNS {
        match wns_status(headers) {
            Some(WnsStatus::Dropped) => return refused(reason::DROPPED),
            Some(WnsStatus::AppThrottled | WnsStatus::ChannelThrottled) => {
                return wns_throttled(case, headers, WNS_THROTTLE_MILLIS);
            }
            None => {}
        }
    }
    (ended(Ending::Accepted, reason::ACCEPTED), Blame::Delivery)
}

/// Apple's reasons (docs/push-services.md 3.3), under any status. None: another word, the status decides.
fn apple(case: &Case<'_>, word: &str, headers: &HeaderMap) -> Option<(Verdict, Blame)> {
    Some(match word {
        "BadTtl" => refused(reason::BAD_TTL),
        "BadUrgency" => refused(reason::BAD_URGENCY),
        "BadWebPushTopic" => refused(reason::BAD_TOPIC),
        "BadWebPushRequest" => refused(reason::BAD_ENCRYPTION),
        "MethodNotAllowed" => refused(reason::METHOD_NOT_ALLOWED),
        "VapidPkHashMismatch" => other_key(case, Ending::Gone),
        "BadJwtToken" | "BadAuthorizationHeader" | "BadVapidPublicKey" => bad_token(),
        "BadPath" => (ended(Ending::Gone, reason::NOT_FOUND), Blame::Delivery),
        "PayloadTooLarge" => too_large(case),
        "TooManyRequests" => throttled(case, headers),
        "InternalServerError" => {
            (Verdict::Retry { not_before: retry_after(headers, case.now), reason: reason::SERVER_ERROR }, Blame::Trouble)
        }
        "ServiceUnavailable" | "Shutdown" => unavailable(case, &Told::default(), headers),
        "IdleTimeout" => (again(reason::REQUEST_TIMEOUT), Blame::Delivery),
        _ => return None,
    })
}

/// Row 400: refused. A wrong key is not the message's fault.
fn bad_request(case: &Case<'_>, told: &Told) -> (Verdict, Blame) {
    // No VAPID key or a wrong one (docs/push-services.md 3.1), and every post of ours has one. Without another key the
    // message fails and the subscription stays.
    if told.says("unauthorizedregistration") {
        return other_key(case, Ending::Refused);
    }
    refused(match told.errno {
        Some(101 | 110) => reason::BAD_ENCRYPTION,
        Some(111 | 112 | 114) => reason::BAD_TTL,
        Some(113) => reason::BAD_TOPIC,
        // FCM "InvalidTtlParameter", WNS "Ttl value conflicts with X-WNS-Cache-Policy."
        _ if told.says("invalidttlparameter") || told.says("ttl value conflicts") => reason::BAD_TTL,
        _ => reason::BAD_REQUEST,
    })
}

/// Row 401: our key, clock or origin is at fault, which is no reason to drop a subscription (docs/push-services.md 3.7).
fn unauthorized(case: &Case<'_>, told: &Told) -> (Verdict, Blame) {
    if told.wrong_key() {
        other_key(case, Ending::Refused)
    } else if told.wrong_token() || told.errno != Some(109) {
        bad_token()
    } else {
        // errno 109 without a known text is taken as a wrong key (docs/push-services.md 3.2).
        other_key(case, Ending::Refused)
    }
}

/// Row 403: another key -> gone; bad token -> signed again; else tried again slowly, a few times.
fn forbidden(case: &Case<'_>, told: &Told) -> (Verdict, Blame) {
    if told.wrong_key() {
        return other_key(case, Ending::Gone);
    }
    if told.wrong_token() {
        return bad_token();
    }
    // The age counts beside the attempts, as in `no_such_host`.
    if case.attempts >= FORBIDDEN_RETRIES && case.now.since(case.since) >= FORBIDDEN_AGE_MILLIS {
        return refused(reason::FORBIDDEN);
    }
    // FCM's "invalid push subscription endpoint" heals at times (docs/push-services.md 3.1).
    let not_before = case.now.plus(FORBIDDEN_MILLIS << case.attempts.min(FORBIDDEN_RETRIES - 1));
    (Verdict::Retry { not_before: Some(not_before), reason: reason::FORBIDDEN }, Blame::Delivery)
}

/// Row 413: once without padding, else refused.
fn too_large(case: &Case<'_>) -> (Verdict, Blame) {
    if case.padded { (Verdict::Shrink, Blame::Delivery) } else { refused(reason::PAYLOAD_TOO_LARGE) }
}

/// Row 429, which has three scopes (docs/push-services.md 1, fact 3).
fn throttled(case: &Case<'_>, headers: &HeaderMap) -> (Verdict, Blame) {
    match case.service {
        // A site's limit, or overload. The scope is (VAPID key, origin); an origin's lane is the finest that can close.
        Service::FCM => {
            let not_before = retry_after(headers, case.now).unwrap_or(case.now.plus(FCM_THROTTLE_MILLIS));
            (Verdict::Return { reason: reason::THROTTLED }, Blame::Origin { not_before: Some(not_before) })
        }
        Service::WNS => wns_throttled(case, headers, doubled(THROTTLE_MILLIS, case.attempts)),
        // Apple means one device. A service not named in the row: that delivery only (RFC 8030 section 8.4 speaks of "a
        // push resource").
        _ => {
            let not_before = retry_after(headers, case.now).unwrap_or(case.now.plus(doubled(THROTTLE_MILLIS, case.attempts)));
            (Verdict::Retry { not_before: Some(not_before), reason: reason::THROTTLED }, Blame::Delivery)
        }
    }
}

/// WNS throttles one channel (that subscription) or the app at all hosts; without a word, the app (docs/push-services.md 3.4).
fn wns_throttled(case: &Case<'_>, headers: &HeaderMap, default_millis: u64) -> (Verdict, Blame) {
    let named = continue_after(headers, case.now);
    if wns_status(headers) == Some(WnsStatus::ChannelThrottled) {
        let not_before = named.unwrap_or(case.now.plus(doubled(THROTTLE_MILLIS, case.attempts)));
        return (Verdict::Retry { not_before: Some(not_before), reason: reason::THROTTLED }, Blame::Delivery);
    }
    let not_before = named.unwrap_or(case.now.plus(default_millis));
    (Verdict::Return { reason: reason::THROTTLED }, Blame::Service { not_before: Some(not_before) })
}

/// Row 503: with a time it speaks for the origin, which stays closed until then; without, it is one 5xx among the last answers.
fn unavailable(case: &Case<'_>, told: &Told, headers: &HeaderMap) -> (Verdict, Blame) {
    match retry_after(headers, case.now) {
        // Mozilla's errno 202 is one conditional write that failed (docs/push-services.md 3.2): no reason to close the
        // origin for the two minutes that its header always says.
        not_before if told.errno == Some(202) => (Verdict::Retry { not_before, reason: reason::UNAVAILABLE }, Blame::Trouble),
        Some(time) => (Verdict::Return { reason: reason::UNAVAILABLE }, Blame::Origin { not_before: Some(time) }),
        None => (again(reason::UNAVAILABLE), Blame::Trouble),
    }
}

/// The subscription answers only to the key it was made with (RFC 8292 section 4.2).
fn other_key(case: &Case<'_>, without: Ending) -> (Verdict, Blame) {
    let verdict = if case.other_key { Verdict::OtherKey } else { ended(without, reason::KEY_MISMATCH) };
    (verdict, Blame::Delivery)
}

/// Our token, not the subscription: it is signed again, and the delivery waits for that.
fn bad_token() -> (Verdict, Blame) {
    (again(reason::BAD_TOKEN), Blame::Sender)
}

fn refused(reason: &'static str) -> (Verdict, Blame) {
    (ended(Ending::Refused, reason), Blame::Delivery)
}

fn ended(ending: Ending, reason: &'static str) -> Verdict {
    Verdict::Ended { ending, reason }
}

fn again(reason: &'static str) -> Verdict {
    Verdict::Retry { not_before: None, reason }
}

/// `millis * 2^attempts`, at most [`THROTTLE_MILLIS_MAX`].
fn doubled(millis: u64, attempts: u8) -> u64 {
    (millis << attempts.min(16)).min(THROTTLE_MILLIS_MAX)
}

/// The services whose hosts are documented and few (docs/push-services.md 3.1 to 3.3); WNS has a host a region.
fn documented(service: Service) -> bool {
    matches!(service, Service::FCM | Service::MOZILLA | Service::APPLE)
}

fn loss_reason(loss: Loss) -> &'static str {
    match loss {
        Loss::Timeout => reason::TIMEOUT,
        Loss::Reset => reason::RESET,
        Loss::Closed => reason::CONNECTION_CLOSED,
        Loss::Flood => reason::PROTOCOL,
    }
}

fn connect_reason(failure: ConnectFailure) -> &'static str {
    match failure {
        ConnectFailure::NoSuchHost => reason::NO_SUCH_HOST,
        ConnectFailure::Resolve => reason::RESOLVE,
        ConnectFailure::Forbidden => reason::ADDRESS_FORBIDDEN,
        ConnectFailure::Refused => reason::CONNECT_REFUSED,
        ConnectFailure::Timeout => reason::CONNECT_TIMEOUT,
        ConnectFailure::Tls => reason::TLS,
        ConnectFailure::Proxy => reason::PROXY,
        ConnectFailure::Protocol => reason::PROTOCOL,
        ConnectFailure::NoDescriptor => reason::NO_DESCRIPTOR,
    }
}
