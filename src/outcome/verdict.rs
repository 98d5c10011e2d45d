//! What an answer means: one table from (service, status, headers, body) to what happens to the delivery and what slows down.
//!
//! Promises. It is pure: the same [`Case`] always gives the same verdict, no clock, no I/O, no metrics. No answer makes it
//! panic, however long, torn or hostile. It decides by status first and by the vendor's own words second, so it never
//! *needs* a body (PUSH-SERVICES 3.7). Where a row leaves a choice it takes the milder one: a subscription is `gone` only on
//! words that say so, because its owner deletes it then (PUSH-SERVICES 1, fact 8).
//!
//! How much an answer condemns, from nothing to everything:
//!
//! ```text
//! the delivery is done  ->  this delivery  ->  this subscription  ->  our key at the origin  ->  the origin  ->  the service
//! 2xx                       400 405 413        404 410                401 403                    5xx 429 TLS     406 429
//! ```
//!
//! What condemns the origin is no attempt of the delivery (DESIGN 2.2): it is returned to its lane as it was. The exception are
//! deliveries with TTL 0, for which any post that left is the one attempt (promise 3).

use http::{HeaderMap, StatusCode};
use serde_json::Value;

use super::retry_after::{continue_after, retry_after};
use crate::message::{Answer, Answered, Blame, ConnectFailure, Ending, Loss, Service, UnixMillis, Verdict};

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
            padded: padding && !delivery.shrink,
            other_key,
            attempts: delivery.attempts,
            since: delivery.message.id.created().max(delivery.message.at),
            now,
        }
    }
}

/// The words that a verdict gives as its reason: labels of metrics, `reason` of events. Bounded, and stable once published.
pub mod reason {
    /// 2xx.
    pub const ACCEPTED: &str = "accepted";
    /// 404, or Apple's `BadPath`: the endpoint does not exist (any more).
    pub const NOT_FOUND: &str = "not_found";
    /// 410: unsubscribed or expired.
    pub const UNSUBSCRIBED: &str = "unsubscribed";
    /// The subscription was made with a VAPID key that this app does not have.
    pub const KEY_MISMATCH: &str = "key_mismatch";
    /// The endpoint's host is not in the DNS.
    pub const NO_SUCH_HOST: &str = "no_such_host";
    /// 400 without a known cause.
    pub const BAD_REQUEST: &str = "bad_request";
    /// 400: the TTL.
    pub const BAD_TTL: &str = "bad_ttl";
    /// 400: the topic.
    pub const BAD_TOPIC: &str = "bad_topic";
    /// 400: the urgency.
    pub const BAD_URGENCY: &str = "bad_urgency";
    /// 400: the encryption or its headers.
    pub const BAD_ENCRYPTION: &str = "bad_encryption";
    /// 401 or 403: our VAPID token is not valid there (expired, audience, subject, signature).
    pub const BAD_TOKEN: &str = "bad_token";
    /// 403 without a known cause.
    pub const FORBIDDEN: &str = "forbidden";
    /// 3xx, which is never followed.
    pub const REDIRECT: &str = "redirect";
    /// 405.
    pub const METHOD_NOT_ALLOWED: &str = "method_not_allowed";
    /// 406 of a service that does not throttle by it.
    pub const NOT_ACCEPTABLE: &str = "not_acceptable";
    /// 411.
    pub const LENGTH_REQUIRED: &str = "length_required";
    /// 413, and there is no padding to leave out.
    pub const PAYLOAD_TOO_LARGE: &str = "payload_too_large";
    /// 415.
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "unsupported_media_type";
    /// Any other 4xx.
    pub const CLIENT_ERROR: &str = "client_error";
    /// A status that HTTP does not know.
    pub const UNEXPECTED_STATUS: &str = "unexpected_status";
    /// WNS took it and dropped it.
    pub const DROPPED: &str = "dropped";
    /// 429, or WNS's words for it.
    pub const THROTTLED: &str = "throttled";
    /// 503.
    pub const UNAVAILABLE: &str = "unavailable";
    /// Any other 5xx.
    pub const SERVER_ERROR: &str = "server_error";
    /// 408: the service waited for us.
    pub const REQUEST_TIMEOUT: &str = "request_timeout";
    /// 421 or 425: another connection, or the same a little later, will do.
    pub const WRONG_CONNECTION: &str = "wrong_connection";
    /// No answer within `deliver.timeout`: the service may have taken the message.
    pub const TIMEOUT: &str = "timeout";
    /// The stream was reset before its answer: the service may have taken the message.
    pub const RESET: &str = "reset";
    /// The connection ended before the answer: the service may have taken the message.
    pub const CONNECTION_CLOSED: &str = "connection_closed";
    /// The resolver failed.
    pub const RESOLVE: &str = "resolve";
    /// The host has only addresses where the daemon may not connect (DESIGN 7).
    pub const ADDRESS_FORBIDDEN: &str = "address_forbidden";
    /// The host refuses connections.
    pub const CONNECT_REFUSED: &str = "connect_refused";
    /// The host does not answer to connecting.
    pub const CONNECT_TIMEOUT: &str = "connect_timeout";
    /// The TLS handshake failed.
    pub const TLS: &str = "tls";
    /// The configured proxy failed.
    pub const PROXY: &str = "proxy";
    /// HTTP could not be started on a new connection.
    pub const PROTOCOL: &str = "protocol";
    /// The deadline passed before the request left.
    pub const DEADLINE: &str = "deadline";
    /// TTL 0: the one attempt was made, and what came of it would be tried again otherwise.
    pub const TTL_ZERO_ONE_ATTEMPT: &str = "ttl_zero_one_attempt";
    /// The daemon stops.
    pub const STOPPED: &str = "stopped";
}

/// Every word that [`verdict`] can give, to register metrics and to check stored events against.
pub const REASONS: &[&str] = &[
    reason::ACCEPTED,
    reason::NOT_FOUND,
    reason::UNSUBSCRIBED,
    reason::KEY_MISMATCH,
    reason::NO_SUCH_HOST,
    reason::BAD_REQUEST,
    reason::BAD_TTL,
    reason::BAD_TOPIC,
    reason::BAD_URGENCY,
    reason::BAD_ENCRYPTION,
    reason::BAD_TOKEN,
    reason::FORBIDDEN,
    reason::REDIRECT,
    reason::METHOD_NOT_ALLOWED,
    reason::NOT_ACCEPTABLE,
    reason::LENGTH_REQUIRED,
    reason::PAYLOAD_TOO_LARGE,
    reason::UNSUPPORTED_MEDIA_TYPE,
    reason::CLIENT_ERROR,
    reason::UNEXPECTED_STATUS,
    reason::DROPPED,
    reason::THROTTLED,
    reason::UNAVAILABLE,
    reason::SERVER_ERROR,
    reason::REQUEST_TIMEOUT,
    reason::WRONG_CONNECTION,
    reason::TIMEOUT,
    reason::RESET,
    reason::CONNECTION_CLOSED,
    reason::RESOLVE,
    reason::ADDRESS_FORBIDDEN,
    reason::CONNECT_REFUSED,
    reason::CONNECT_TIMEOUT,
    reason::TLS,
    reason::PROXY,
    reason::PROTOCOL,
    reason::DEADLINE,
    reason::TTL_ZERO_ONE_ATTEMPT,
    reason::STOPPED,
];

/// The reasons marked A in PUSH-SERVICES 3.6: ours to mend, not the browser's. The first few of them at an origin deserve a line
/// in the log that an operator reads.
pub const CONCERN_THE_OPERATOR: &[&str] = &[
    reason::KEY_MISMATCH,
    reason::BAD_REQUEST,
    reason::BAD_TTL,
    reason::BAD_TOPIC,
    reason::BAD_URGENCY,
    reason::BAD_ENCRYPTION,
    reason::BAD_TOKEN,
    reason::FORBIDDEN,
    reason::REDIRECT,
    reason::METHOD_NOT_ALLOWED,
    reason::NOT_ACCEPTABLE,
    reason::LENGTH_REQUIRED,
    reason::UNSUPPORTED_MEDIA_TYPE,
    reason::CLIENT_ERROR,
    reason::UNEXPECTED_STATUS,
    reason::ADDRESS_FORBIDDEN,
    reason::TLS,
    reason::PROXY,
];

/// FCM names no time: PUSH-SERVICES 3.6, row 429, "no header -> 60 s FCM".
const FCM_THROTTLE_MILLIS: u64 = 60_000;
/// Any other service names no time: same row, "30 s x2^n else".
const THROTTLE_MILLIS: u64 = 30_000;
/// Where the doubling of [`THROTTLE_MILLIS`] ends: the same hour at which `retry.max` ends the backoff by default.
const THROTTLE_MILLIS_MAX: u64 = 3_600_000;
/// WNS throttles an app and names no time: PUSH-SERVICES 3.6, row 406, "default 15 min".
const WNS_THROTTLE_MILLIS: u64 = 15 * 60_000;
/// "R slowly" of row 403: the first wait, doubled with each attempt.
const FORBIDDEN_MILLIS: u64 = 10 * 60_000;
/// "quarantine after n" of row 403: after waits of 10, 20, 40, 80 and 160 minutes it ends.
const FORBIDDEN_RETRIES: u8 = 5;
/// The sum of those waits.
const FORBIDDEN_AGE_MILLIS: u64 = FORBIDDEN_MILLIS * ((1 << FORBIDDEN_RETRIES) - 1);
/// Row DNS NXDOMAIN, "R 3 times over 24 h": the first wait is short, because most such answers are a resolver's mishap; the third
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
        // Row 408 / timeout / reset: R, ambiguous. Trouble: a service that takes requests and answers none is as bad for its
        // neighbours as one that answers 5xx.
        Answer::Lost(loss) => (again(loss_reason(*loss)), Blame::Trouble),
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
        // The operator's configuration, or a name that points where it must not (DESIGN 7): no time heals it. At a
        // known service it can only be the resolver.
        ConnectFailure::Forbidden if documented(case.service) || case.service == Service::WNS => {
            (Verdict::Return { reason: word }, origin)
        }
        ConnectFailure::Forbidden => (ended(Ending::Refused, word), Blame::Delivery),
        // Row DNS, "SERVFAIL/timeouts = R + L", and DESIGN 2.2: connect and TLS condemn the origin.
        ConnectFailure::Resolve
        | ConnectFailure::Refused
        | ConnectFailure::Timeout
        | ConnectFailure::Tls
        | ConnectFailure::Proxy
        | ConnectFailure::Protocol => (Verdict::Return { reason: word }, origin),
    }
}

/// Row DNS NXDOMAIN: R 3 times over 24 h, then S. The age counts beside the attempts, for those may have been used up by
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
    // PUSH-SERVICES 3.3: "Key on `reason`, not on the status."
    if let Some(outcome) = told.reason.as_deref().and_then(|word| apple(case, word, headers)) {
        return outcome;
    }
    match status.as_u16() {
        // Never followed: a redirect could lead anywhere (DESIGN 7).
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

/// Row 200/201/202/204, and any other 2xx: accepted; at WNS unless its own header says otherwise (PUSH-SERVICES 3.4: "This can be used
/// rather than interpreting response codes").
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

/// The reasons of PUSH-SERVICES 3.3, whatever their status. None: not one of them, the status decides.
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

/// Row 400: M. What is wrong with the key is not the message's fault.
fn bad_request(case: &Case<'_>, told: &Told) -> (Verdict, Blame) {
    // PUSH-SERVICES 3.1: "VAPID missing/wrong", and none of our posts goes without. The row says M, so without another key the
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

/// Row 401: about our key, clock or origin, "never a reason to drop a subscription" (PUSH-SERVICES 3.7).
fn unauthorized(case: &Case<'_>, told: &Told) -> (Verdict, Blame) {
    if told.wrong_key() {
        other_key(case, Ending::Refused)
    } else if told.wrong_token() || told.errno != Some(109) {
        bad_token()
    } else {
        // errno 109 without a known text: "one subscription -> key mismatch" (PUSH-SERVICES 3.2).
        other_key(case, Ending::Refused)
    }
}

/// Row 403: key-mismatch text -> S; bad token -> sign again, A; else R slowly, quarantine after n.
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
    // FCM's "invalid push subscription endpoint" is seen to heal (PUSH-SERVICES 3.1).
    let not_before = case.now.plus(FORBIDDEN_MILLIS << case.attempts.min(FORBIDDEN_RETRIES - 1));
    (Verdict::Retry { not_before: Some(not_before), reason: reason::FORBIDDEN }, Blame::Delivery)
}

/// Row 413: once without padding, else M.
fn too_large(case: &Case<'_>) -> (Verdict, Blame) {
    if case.padded { (Verdict::Shrink, Blame::Delivery) } else { refused(reason::PAYLOAD_TOO_LARGE) }
}

/// Row 429, which has three scopes (PUSH-SERVICES 1, fact 3).
fn throttled(case: &Case<'_>, headers: &HeaderMap) -> (Verdict, Blame) {
    match case.service {
        // A site's limit, or overload. The scope is (VAPID key, origin); an origin's lane is the finest that can close.
        Service::FCM => {
            let not_before = retry_after(headers, case.now).unwrap_or(case.now.plus(FCM_THROTTLE_MILLIS));
            (Verdict::Return { reason: reason::THROTTLED }, Blame::Origin { not_before: Some(not_before) })
        }
        Service::WNS => wns_throttled(case, headers, doubled(THROTTLE_MILLIS, case.attempts)),
        // Apple means one device. A service not named in the row: DESIGN 2.2, that delivery only (RFC 8030 section 8.4 speaks of "a
        // push resource").
        _ => {
            let not_before = retry_after(headers, case.now).unwrap_or(case.now.plus(doubled(THROTTLE_MILLIS, case.attempts)));
            (Verdict::Retry { not_before: Some(not_before), reason: reason::THROTTLED }, Blame::Delivery)
        }
    }
}

/// WNS throttles one channel (that subscription) or the app at all hosts; without a word it is the app (PUSH-SERVICES 3.4).
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
        // Mozilla's errno 202 is one conditional write that failed, "retry at once allowed" (PUSH-SERVICES 3.2): no reason to close the
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

/// The services whose hosts are documented and few (PUSH-SERVICES 3.1 to 3.3); WNS has a host a region.
fn documented(service: Service) -> bool {
    matches!(service, Service::FCM | Service::MOZILLA | Service::APPLE)
}

fn loss_reason(loss: Loss) -> &'static str {
    match loss {
        Loss::Timeout => reason::TIMEOUT,
        Loss::Reset => reason::RESET,
        Loss::Closed => reason::CONNECTION_CLOSED,
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
    }
}

/// What WNS says beside the status (PUSH-SERVICES 3.4); `received` is no news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WnsStatus {
    Dropped,
    ChannelThrottled,
    AppThrottled,
}

fn wns_status(headers: &HeaderMap) -> Option<WnsStatus> {
    ["x-wns-status", "x-wns-notificationstatus"].into_iter().find_map(|name| {
        let word = headers.get(name)?.to_str().ok()?.trim();
        [
            ("dropped", WnsStatus::Dropped),
            ("channelthrottled", WnsStatus::ChannelThrottled),
            ("appthrottled", WnsStatus::AppThrottled),
        ]
        .into_iter()
        .find_map(|(known, status)| known.eq_ignore_ascii_case(word).then_some(status))
    })
}

/// An error in the service's own words. Empty, HTML, torn or not even text: then there are no words, and the status decides.
#[derive(Debug, Default)]
struct Told {
    /// Mozilla's number (PUSH-SERVICES 3.2); null at times.
    errno: Option<u64>,
    /// Apple's word (PUSH-SERVICES 3.3).
    reason: Option<String>,
    /// Body and WNS's description (PUSH-SERVICES 3.4), in lower case.
    text: String,
}

impl Told {
    fn of(headers: &HeaderMap, body: &[u8]) -> Told {
        let json: Option<Value> = serde_json::from_slice(body).ok();
        let member = |name| json.as_ref().and_then(|json| json.get(name));
        let errno = member("errno").and_then(Value::as_u64);
        let reason = member("reason").and_then(Value::as_str).map(str::to_owned);
        let mut text = String::from_utf8_lossy(body).to_ascii_lowercase();
        if let Some(description) = headers.get("x-wns-error-description") {
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(description.as_bytes()).to_ascii_lowercase());
        }
        Told { errno, reason, text }
    }

    fn says(&self, lower_case: &str) -> bool {
        self.text.contains(lower_case)
    }

    /// The texts that mean: this subscription was made with another key.
    fn wrong_key(&self) -> bool {
        // FCM (PUSH-SERVICES 3.1): "the VAPID credentials in the authorization header do not correspond to the credentials used to
        // create the subscriptions."
        self.says("do not correspond to the credentials")
            // Mozilla (3.7): "VAPID public key mismatch".
            || self.says("public key mismatch")
            // WNS (3.4): "JWT Authentication Failed", "public key ... channel Url".
            || self.says("jwt authentication failed")
            || self.says("public key") && self.says("channel url")
    }

    /// The texts that mean: this token is not valid, whatever the subscription.
    fn wrong_token(&self) -> bool {
        const TEXTS: [&str; 8] = [
            // FCM (PUSH-SERVICES 3.1).
            "invalid jwt",
            // Mozilla (3.7).
            "missing vapid",
            "invalid vapid",
            "unknown auth scheme",
            "expiredsignature",
            "token expiration is too long",
            "invalidsignature",
            "invalidalgorithm",
        ];
        TEXTS.into_iter().any(|text| self.says(text))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::super::retry_after::RETRY_AFTER_MAX_MILLIS;
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
    const ALLOWED: Service = Service::FIRST_ALLOWED;
    const EVERYONE: [Service; 6] = [Service::FCM, Service::MOZILLA, Service::APPLE, Service::WNS, Service::OTHER, ALLOWED];

    type Headers<'a> = &'a [(&'static str, &'a str)];

    fn answer(status: u16, headers: Headers<'_>, body: &str) -> Answer {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_static(name), HeaderValue::from_str(value).expect("a legal value"));
        }
        let status = StatusCode::from_u16(status).expect("a legal status");
        Answer::Response { status, headers: map, body: Bytes::copy_from_slice(body.as_bytes()) }
    }

    /// The first attempt of a fresh message with a TTL, padded, whose app has another key.
    fn fresh(service: Service, answer: &Answer) -> Case<'_> {
        Case { service, answer, ttl_zero: false, padded: true, other_key: true, attempts: 0, since: NOW, now: NOW }
    }

    /// What [`fresh`] is judged to be.
    fn judge(service: Service, status: u16, headers: Headers<'_>, body: &str) -> (Verdict, Blame) {
        verdict(&fresh(service, &answer(status, headers, body)))
    }

    /// The same without padding or another key.
    fn judge_last(service: Service, status: u16, headers: Headers<'_>, body: &str) -> (Verdict, Blame) {
        verdict(&Case { padded: false, other_key: false, ..fresh(service, &answer(status, headers, body)) })
    }

    fn end(ending: Ending, reason: &'static str) -> (Verdict, Blame) {
        (Verdict::Ended { ending, reason }, Blame::Delivery)
    }

    fn retry(wait: Option<u64>, reason: &'static str, blame: Blame) -> (Verdict, Blame) {
        (Verdict::Retry { not_before: wait.map(|wait| NOW.plus(wait)), reason }, blame)
    }

    fn origin(wait: u64, reason: &'static str) -> (Verdict, Blame) {
        (Verdict::Return { reason }, Blame::Origin { not_before: Some(NOW.plus(wait)) })
    }

    fn service(wait: u64, reason: &'static str) -> (Verdict, Blame) {
        (Verdict::Return { reason }, Blame::Service { not_before: Some(NOW.plus(wait)) })
    }

    /// Mozilla's error (PUSH-SERVICES 3.2).
    fn mozilla(status: u16, errno: &str, message: &str) -> String {
        format!(r#"{{"code":{status},"errno":{errno},"error":"x","message":"{message}","more_info":"http://x"}}"#)
    }

    fn apple(word: &str) -> String {
        format!(r#"{{"reason":"{word}"}}"#)
    }

    /// 3.6 row 200/201/202/204: accepted, also with the TTL cut (3.7, TTL 2592001) and whatever the body.
    #[test]
    fn row_2xx_is_accepted() {
        for who in EVERYONE {
            for status in [200, 201, 202, 204, 203, 207, 299] {
                assert_eq!(
                    judge(who, status, &[("ttl", "60")], "anything"),
                    end(Ending::Accepted, "accepted"),
                    "{who:?} {status}"
                );
            }
        }
    }

    /// 3.6 row 200/201/202/204, "read X-WNS-Status"; 3.4 "check it on 2xx too".
    #[test]
    fn row_2xx_of_wns_is_what_its_header_says() {
        for name in ["x-wns-status", "x-wns-notificationstatus"] {
            assert_eq!(judge(Service::WNS, 201, &[(name, "received")], ""), end(Ending::Accepted, "accepted"));
            assert_eq!(judge(Service::WNS, 200, &[(name, "dropped")], ""), end(Ending::Refused, "dropped"));
            assert_eq!(judge(Service::WNS, 200, &[(name, "Dropped")], ""), end(Ending::Refused, "dropped"));
            assert_eq!(judge(Service::WNS, 200, &[(name, "appthrottled")], ""), service(900_000, "throttled"));
            assert_eq!(
                judge(Service::WNS, 200, &[(name, "channelthrottled"), ("x-wns-continue-after", "77")], ""),
                retry(Some(77_000), "throttled", Blame::Delivery)
            );
            // Only WNS speaks this dialect.
            assert_eq!(judge(Service::FCM, 201, &[(name, "dropped")], ""), end(Ending::Accepted, "accepted"));
        }
    }

    /// 3.6 row 3xx: never follow; M.
    #[test]
    fn row_3xx_is_refused() {
        for who in EVERYONE {
            for status in [300, 301, 302, 303, 304, 307, 308] {
                let got = judge(who, status, &[("location", "https://elsewhere.example/")], "");
                assert_eq!(got, end(Ending::Refused, "redirect"), "{who:?} {status}");
            }
        }
    }

    /// 3.6 row 400, column FCM (3.1).
    #[test]
    fn row_400_of_fcm() {
        assert_eq!(judge(Service::FCM, 400, &[], "InvalidTtlParameter"), end(Ending::Refused, "bad_ttl"));
        assert_eq!(judge(Service::FCM, 400, &[], "UnauthorizedRegistration"), (Verdict::OtherKey, Blame::Delivery));
        assert_eq!(judge_last(Service::FCM, 400, &[], "UnauthorizedRegistration"), end(Ending::Refused, "key_mismatch"));
        assert_eq!(judge(Service::FCM, 400, &[], "<html>Bad Request</html>"), end(Ending::Refused, "bad_request"));
    }

    /// 3.6 row 400, column Mozilla (3.2, 3.7): by errno, null and nothing among them.
    #[test]
    fn row_400_of_mozilla() {
        for (errno, message, reason) in [
            ("101", "crypto keys", "bad_encryption"),
            ("110", "Missing Content-Encoding header", "bad_encryption"),
            ("111", "Missing TTL value", "bad_ttl"),
            ("112", "TTL", "bad_ttl"),
            ("114", "ttl: TTL must be greater than 0", "bad_ttl"),
            ("113", "topic: Topic must be no greater than 32 characters", "bad_topic"),
            ("null", "payload reached EOF before completing", "bad_request"),
            ("\"113\"", "a string is no errno", "bad_request"),
            ("-113", "", "bad_request"),
        ] {
            assert_eq!(judge(Service::MOZILLA, 400, &[], &mozilla(400, errno, message)), end(Ending::Refused, reason), "{errno}");
        }
        assert_eq!(judge(Service::MOZILLA, 400, &[], ""), end(Ending::Refused, "bad_request"));
    }

    /// 3.6 row 400, column Apple (3.3): the reason decides, under any status.
    #[test]
    fn row_400_of_apple_goes_by_reason() {
        for status in [400, 403, 418] {
            for (word, reason) in [
                ("BadTtl", "bad_ttl"),
                ("BadUrgency", "bad_urgency"),
                ("BadWebPushTopic", "bad_topic"),
                ("BadWebPushRequest", "bad_encryption"),
                ("MethodNotAllowed", "method_not_allowed"),
            ] {
                let got = judge(Service::APPLE, status, &[("apns-id", "1")], &apple(word));
                assert_eq!(got, end(Ending::Refused, reason), "{status} {word}");
            }
            for word in ["BadJwtToken", "BadAuthorizationHeader", "BadVapidPublicKey"] {
                let got = judge(Service::APPLE, status, &[], &apple(word));
                assert_eq!(got, retry(None, "bad_token", Blame::Sender), "{status} {word}");
            }
            let mismatch = apple("VapidPkHashMismatch");
            assert_eq!(judge(Service::APPLE, status, &[], &mismatch), (Verdict::OtherKey, Blame::Delivery));
            assert_eq!(judge_last(Service::APPLE, status, &[], &mismatch), end(Ending::Gone, "key_mismatch"));
            assert_eq!(judge(Service::APPLE, status, &[], &apple("BadPath")), end(Ending::Gone, "not_found"));
            assert_eq!(judge(Service::APPLE, status, &[], &apple("PayloadTooLarge")), (Verdict::Shrink, Blame::Delivery));
            let many = retry(Some(30_000), "throttled", Blame::Delivery);
            assert_eq!(judge(Service::APPLE, status, &[], &apple("TooManyRequests")), many);
            let server = retry(None, "server_error", Blame::Trouble);
            assert_eq!(judge(Service::APPLE, status, &[], &apple("InternalServerError")), server);
            for word in ["ServiceUnavailable", "Shutdown"] {
                assert_eq!(judge(Service::APPLE, status, &[], &apple(word)), retry(None, "unavailable", Blame::Trouble));
            }
            let idle = retry(None, "request_timeout", Blame::Delivery);
            assert_eq!(judge(Service::APPLE, status, &[], &apple("IdleTimeout")), idle);
        }
        assert_eq!(judge(Service::APPLE, 400, &[], &apple("NeverHeardOf")), end(Ending::Refused, "bad_request"));
        assert_eq!(judge(Service::APPLE, 410, &[], &apple("Unregistered")), end(Ending::Gone, "unsubscribed"));
    }

    /// 3.6 row 400, column WNS (3.4): the words stand in a header.
    #[test]
    fn row_400_of_wns() {
        let conflict = [("x-wns-error-description", "Ttl value conflicts with X-WNS-Cache-Policy.")];
        assert_eq!(judge(Service::WNS, 400, &conflict, ""), end(Ending::Refused, "bad_ttl"));
        assert_eq!(judge(Service::WNS, 400, &[], ""), end(Ending::Refused, "bad_request"));
    }

    /// 3.6 row 401, column Mozilla (3.7): 109 with each of the observed texts; never a reason to drop the subscription.
    #[test]
    fn row_401_of_mozilla() {
        for message in [
            "Missing VAPID public key",
            "Missing VAPID token",
            "Unknown auth scheme",
            "Invalid VAPID audience",
            "Invalid VAPID token: Missing required aud",
            "Invalid VAPID token: A value in the vapid claims is either missing or incorrectly specified",
            "ExpiredSignature",
            "The VAPID token expiration is too long",
            "InvalidSignature",
            "InvalidAlgorithm",
        ] {
            let got = judge(Service::MOZILLA, 401, &[], &mozilla(401, "109", message));
            assert_eq!(got, retry(None, "bad_token", Blame::Sender), "{message}");
        }
        for message in ["VAPID public key mismatch", "", "something new"] {
            let body = mozilla(401, "109", message);
            assert_eq!(judge(Service::MOZILLA, 401, &[], &body), (Verdict::OtherKey, Blame::Delivery), "{message}");
            assert_eq!(judge_last(Service::MOZILLA, 401, &[], &body), end(Ending::Refused, "key_mismatch"), "{message}");
        }
        assert_eq!(judge(Service::MOZILLA, 401, &[], ""), retry(None, "bad_token", Blame::Sender));
    }

    /// 3.6 row 401, column WNS (3.4), and services that say nothing.
    #[test]
    fn row_401_of_others() {
        for text in ["JWT Authentication Failed", "The public key does not match the one of the channel Url"] {
            let told = [("x-wns-error-description", text)];
            assert_eq!(judge(Service::WNS, 401, &told, ""), (Verdict::OtherKey, Blame::Delivery));
            assert_eq!(judge_last(Service::WNS, 401, &told, ""), end(Ending::Refused, "key_mismatch"));
        }
        for who in EVERYONE {
            assert_eq!(judge_last(who, 401, &[], "<h1>Unauthorized</h1>"), retry(None, "bad_token", Blame::Sender), "{who:?}");
        }
    }

    /// 3.6 row 403 (3.1, 3.3): key mismatch, bad token, and the rest slowly.
    #[test]
    fn row_403() {
        let mismatch = "the VAPID credentials in the authorization header do not correspond to the credentials used to create the \
                        subscriptions.";
        assert_eq!(judge(Service::FCM, 403, &[], mismatch), (Verdict::OtherKey, Blame::Delivery));
        assert_eq!(judge_last(Service::FCM, 403, &[], mismatch), end(Ending::Gone, "key_mismatch"));
        assert_eq!(judge(Service::FCM, 403, &[], "invalid JWT provided"), retry(None, "bad_token", Blame::Sender));
        assert_eq!(judge(Service::APPLE, 403, &[], &apple("BadJwtToken")), retry(None, "bad_token", Blame::Sender));
        let healing = answer(403, &[], "invalid push subscription endpoint");
        for (attempts, minutes) in [(0, 10), (1, 20), (2, 40), (3, 80), (4, 160)] {
            let got = verdict(&Case { attempts, ..fresh(Service::FCM, &healing) });
            assert_eq!(got, retry(Some(minutes * 60_000), "forbidden", Blame::Delivery), "{attempts}");
        }
        let aged =
            |minutes: u64| Case { attempts: 5, since: UnixMillis(NOW.0 - minutes * 60_000), ..fresh(Service::FCM, &healing) };
        assert_eq!(verdict(&aged(310)), end(Ending::Refused, "forbidden"));
        // Attempts used up by other failures do not count as patience.
        assert_eq!(verdict(&aged(309)), retry(Some(160 * 60_000), "forbidden", Blame::Delivery));
    }

    /// 3.6 rows 404 and 410: S; empty bodies (3.7) as well as others.
    #[test]
    fn rows_404_and_410_are_gone() {
        for who in EVERYONE {
            for body in ["", "A valid push subscription endpoint should be specified", "<html>", &mozilla(404, "102", "x")] {
                assert_eq!(judge(who, 404, &[], body), end(Ending::Gone, "not_found"), "{who:?}");
            }
            for body in ["", "push subscription has unsubscribed or expired.", &mozilla(410, "106", "No such subscription")] {
                let got = judge(who, 410, &[("cache-control", "max-age=86400")], body);
                assert_eq!(got, end(Ending::Gone, "unsubscribed"), "{who:?}");
            }
        }
    }

    /// 3.6 row 405/411/415: M.
    #[test]
    fn row_405_411_415_is_refused() {
        for who in EVERYONE {
            assert_eq!(judge(who, 405, &[("allow", "POST")], ""), end(Ending::Refused, "method_not_allowed"));
            assert_eq!(judge(who, 411, &[], ""), end(Ending::Refused, "length_required"));
            assert_eq!(judge(who, 415, &[], ""), end(Ending::Refused, "unsupported_media_type"));
        }
    }

    /// 3.6 row 406: WNS throttles by it; nobody else does.
    #[test]
    fn row_406() {
        let app = ("x-wns-status", "appthrottled");
        assert_eq!(judge(Service::WNS, 406, &[app, ("retry-after", "600")], ""), service(600_000, "throttled"));
        assert_eq!(judge(Service::WNS, 406, &[app], ""), service(900_000, "throttled"));
        assert_eq!(judge(Service::WNS, 406, &[], ""), service(900_000, "throttled"));
        // 3.4: X-WNS-CONTINUE-AFTER, channel throttled: that subscription only.
        let channel = ("x-wns-notificationstatus", "channelthrottled");
        let named = judge(Service::WNS, 406, &[channel, ("x-wns-continue-after", "45")], "");
        assert_eq!(named, retry(Some(45_000), "throttled", Blame::Delivery));
        assert_eq!(judge(Service::WNS, 406, &[channel], ""), retry(Some(30_000), "throttled", Blame::Delivery));
        for who in [Service::FCM, Service::MOZILLA, Service::APPLE, Service::OTHER, ALLOWED] {
            assert_eq!(judge(who, 406, &[], ""), end(Ending::Refused, "not_acceptable"), "{who:?}");
        }
    }

    /// 3.6 row 408 / timeout / reset after the body was sent: R.
    #[test]
    fn row_408_timeout_reset_is_tried_again() {
        for who in EVERYONE {
            assert_eq!(judge(who, 408, &[], ""), retry(None, "request_timeout", Blame::Trouble));
            for (loss, reason) in [(Loss::Timeout, "timeout"), (Loss::Reset, "reset"), (Loss::Closed, "connection_closed")] {
                assert_eq!(verdict(&fresh(who, &Answer::Lost(loss))), retry(None, reason, Blame::Trouble), "{who:?}");
            }
        }
    }

    /// 3.6 row 413: once unpadded, else M.
    #[test]
    fn row_413() {
        for who in EVERYONE {
            for body in ["", &mozilla(413, "104", "This message is intended for a constrained device")] {
                assert_eq!(judge(who, 413, &[], body), (Verdict::Shrink, Blame::Delivery), "{who:?}");
                assert_eq!(judge_last(who, 413, &[], body), end(Ending::Refused, "payload_too_large"), "{who:?}");
            }
        }
    }

    /// 3.6 row 429: FCM the origin, WNS the service, Apple that subscription; DESIGN 2.2: any other that delivery.
    #[test]
    fn row_429_has_three_scopes() {
        let after = [("retry-after", "120")];
        assert_eq!(judge(Service::FCM, 429, &after, ""), origin(120_000, "throttled"));
        assert_eq!(judge(Service::FCM, 429, &[], ""), origin(60_000, "throttled"));
        assert_eq!(judge(Service::FCM, 429, &[("retry-after", "junk")], ""), origin(60_000, "throttled"));
        assert_eq!(judge(Service::WNS, 429, &after, ""), service(120_000, "throttled"));
        assert_eq!(judge(Service::WNS, 429, &[], ""), service(30_000, "throttled"));
        let channel = ("x-wns-status", "channelthrottled");
        assert_eq!(judge(Service::WNS, 429, &[channel], ""), retry(Some(30_000), "throttled", Blame::Delivery));
        for who in [Service::APPLE, Service::MOZILLA, Service::OTHER, ALLOWED] {
            assert_eq!(judge(who, 429, &after, ""), retry(Some(120_000), "throttled", Blame::Delivery), "{who:?}");
            for (attempts, wait) in [(0, 30_000), (1, 60_000), (3, 240_000), (6, 1_920_000), (7, 3_600_000), (255, 3_600_000)] {
                let got = verdict(&Case { attempts, ..fresh(who, &answer(429, &[], "")) });
                assert_eq!(got, retry(Some(wait), "throttled", Blame::Delivery), "{who:?} {attempts}");
            }
        }
    }

    /// 3.6 row 500/502/504 (3.7: no Retry-After, HTML of a proxy): R; the lane judges the origin.
    #[test]
    fn row_500_502_504_is_trouble() {
        for who in EVERYONE {
            for status in [500, 501, 502, 504, 507, 599] {
                let got = judge(who, status, &[], "<html><h1>502 Bad Gateway</h1></html>");
                assert_eq!(got, retry(None, "server_error", Blame::Trouble), "{who:?} {status}");
            }
            for errno in ["900", "901", "902", "903", "null"] {
                let got = judge(who, 502, &[], &mozilla(502, errno, "bridge"));
                assert_eq!(got, retry(None, "server_error", Blame::Trouble), "{who:?} {errno}");
            }
            let named = judge(who, 500, &[("retry-after", "7")], "");
            assert_eq!(named, retry(Some(7_000), "server_error", Blame::Trouble), "{who:?}");
        }
    }

    /// 3.6 row 503: with Retry-After the origin, without one more 5xx.
    #[test]
    fn row_503() {
        let after = [("retry-after", "120")];
        for who in EVERYONE {
            assert_eq!(judge(who, 503, &after, &mozilla(503, "201", "x")), origin(120_000, "unavailable"), "{who:?}");
            assert_eq!(judge(who, 503, &after, &mozilla(503, "null", "x")), origin(120_000, "unavailable"), "{who:?}");
            assert_eq!(judge(who, 503, &[], ""), retry(None, "unavailable", Blame::Trouble), "{who:?}");
            assert_eq!(judge(who, 503, &[("retry-after", "99999999")], ""), origin(RETRY_AFTER_MAX_MILLIS, "unavailable"));
        }
        // 3.2: errno 202, "retry at once allowed", is about one write.
        let write = judge(Service::MOZILLA, 503, &after, &mozilla(503, "202", "conditional write failed"));
        assert_eq!(write, retry(Some(120_000), "unavailable", Blame::Trouble));
    }

    /// 3.6 row DNS NXDOMAIN: R 3 times over 24 h, then S; never S where the host is documented.
    #[test]
    fn row_dns_nxdomain() {
        let missing = Answer::NotConnected(ConnectFailure::NoSuchHost);
        let nobody = Blame::Origin { not_before: None };
        for who in [Service::WNS, Service::OTHER, ALLOWED] {
            let (mut now, mut attempts) = (NOW, 0);
            loop {
                match verdict(&Case { now, attempts, ..fresh(who, &missing) }) {
                    (Verdict::Retry { not_before: Some(time), reason: "no_such_host" }, blame) if blame == nobody => {
                        (now, attempts) = (time, attempts + 1);
                    }
                    (Verdict::Ended { ending: Ending::Gone, reason: "no_such_host" }, blame) if blame == nobody => break,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((attempts, now.since(NOW)), (3, 24 * 3_600_000), "{who:?}");
            // Many attempts within a short time are no evidence.
            let hasty = verdict(&Case { attempts: 200, now: NOW.plus(3_600_000), ..fresh(who, &missing) });
            assert!(matches!(hasty.0, Verdict::Retry { .. }), "{hasty:?}");
        }
        for who in [Service::FCM, Service::MOZILLA, Service::APPLE] {
            let got = verdict(&Case { attempts: 9, now: NOW.plus(7 * DAY_MILLIS), ..fresh(who, &missing) });
            assert_eq!(got, (Verdict::Return { reason: "no_such_host" }, nobody));
        }
    }

    /// 3.6 row DNS, SERVFAIL/timeouts, and DESIGN 2.2: connect and TLS condemn the origin and are no attempt.
    #[test]
    fn what_fails_before_the_post_condemns_the_origin() {
        for who in EVERYONE {
            for (failure, reason) in [
                (ConnectFailure::Resolve, "resolve"),
                (ConnectFailure::Refused, "connect_refused"),
                (ConnectFailure::Timeout, "connect_timeout"),
                (ConnectFailure::Tls, "tls"),
                (ConnectFailure::Proxy, "proxy"),
                (ConnectFailure::Protocol, "protocol"),
            ] {
                let got = verdict(&fresh(who, &Answer::NotConnected(failure)));
                assert_eq!(got, (Verdict::Return { reason }, Blame::Origin { not_before: None }), "{who:?}");
            }
        }
    }

    /// DESIGN 7: a host with forbidden addresses only.
    #[test]
    fn a_forbidden_address_ends_it_unless_the_host_is_known() {
        let forbidden = Answer::NotConnected(ConnectFailure::Forbidden);
        for who in [Service::FCM, Service::MOZILLA, Service::APPLE, Service::WNS] {
            let got = verdict(&fresh(who, &forbidden));
            assert_eq!(got, (Verdict::Return { reason: "address_forbidden" }, Blame::Origin { not_before: None }));
        }
        for who in [Service::OTHER, ALLOWED] {
            assert_eq!(verdict(&fresh(who, &forbidden)), end(Ending::Refused, "address_forbidden"));
        }
    }

    #[test]
    fn what_did_not_leave() {
        assert_eq!(verdict(&fresh(Service::FCM, &Answer::TooLate)), end(Ending::Expired, "deadline"));
        let stopped = (Verdict::Return { reason: "stopped" }, Blame::Delivery);
        assert_eq!(verdict(&fresh(Service::FCM, &Answer::Stopped)), stopped);
    }

    /// RFC 9110 section 15.5.20, RFC 8470 section 5.2, and what no row names.
    #[test]
    fn other_statuses() {
        for who in EVERYONE {
            for status in [421, 425] {
                assert_eq!(judge(who, status, &[], ""), retry(None, "wrong_connection", Blame::Delivery));
            }
            for status in [402, 407, 409, 412, 418, 426, 431, 451, 499] {
                assert_eq!(judge(who, status, &[], ""), end(Ending::Refused, "client_error"), "{status}");
            }
            for status in [100, 101, 199, 600, 999] {
                assert_eq!(judge(who, status, &[], ""), end(Ending::Refused, "unexpected_status"), "{status}");
            }
        }
    }

    /// Promise 3: with TTL 0 any post that left is the one attempt, also when its answer condemns the origin.
    #[test]
    fn ttl_zero_is_one_attempt() {
        let zero = |service, answer: &Answer| verdict(&Case { ttl_zero: true, ..fresh(service, answer) });
        let spent = |blame| (Verdict::Ended { ending: Ending::Expired, reason: "ttl_zero_one_attempt" }, blame);
        let minute = Some(NOW.plus(60_000));
        assert_eq!(zero(Service::FCM, &answer(201, &[], "")), end(Ending::Accepted, "accepted"));
        assert_eq!(zero(Service::FCM, &answer(410, &[], "")), end(Ending::Gone, "unsubscribed"));
        assert_eq!(zero(Service::FCM, &answer(500, &[], "")), spent(Blame::Trouble));
        assert_eq!(zero(Service::FCM, &answer(429, &[], "")), spent(Blame::Origin { not_before: minute }));
        assert_eq!(zero(Service::APPLE, &answer(429, &[], "")), spent(Blame::Delivery));
        let busy = answer(503, &[("retry-after", "60")], "");
        assert_eq!(zero(Service::MOZILLA, &busy), spent(Blame::Origin { not_before: minute }));
        assert_eq!(zero(Service::WNS, &answer(406, &[("retry-after", "60")], "")), spent(Blame::Service { not_before: minute }));
        assert_eq!(zero(Service::FCM, &answer(403, &[], "invalid JWT provided")), spent(Blame::Sender));
        assert_eq!(zero(Service::FCM, &Answer::Lost(Loss::Closed)), spent(Blame::Trouble));
        let other = answer(401, &[], &mozilla(401, "109", "VAPID public key mismatch"));
        assert_eq!(zero(Service::MOZILLA, &other), end(Ending::Refused, "key_mismatch"));
        assert_eq!(zero(Service::FCM, &answer(413, &[], "")), end(Ending::Refused, "payload_too_large"));
        // What did not leave was no attempt.
        let origin = Blame::Origin { not_before: None };
        for (who, failure, reason) in [
            (Service::FCM, ConnectFailure::Refused, "connect_refused"),
            (Service::OTHER, ConnectFailure::NoSuchHost, "no_such_host"),
        ] {
            assert_eq!(zero(who, &Answer::NotConnected(failure)), (Verdict::Return { reason }, origin));
        }
        let stopped = (Verdict::Return { reason: "stopped" }, Blame::Delivery);
        assert_eq!(zero(Service::FCM, &Answer::Stopped), stopped);
    }

    #[test]
    fn last_errors_are_words() {
        assert_eq!(last_error(&answer(201, &[], "")), None);
        assert_eq!(last_error(&answer(410, &[], "")), None);
        assert_eq!(last_error(&answer(503, &[], "secret")), Some("503"));
        assert_eq!(last_error(&answer(505, &[], "")), Some("5xx"));
        assert_eq!(last_error(&Answer::NotConnected(ConnectFailure::Tls)), Some("tls"));
        assert_eq!(last_error(&Answer::TooLate), None);
    }

    #[test]
    fn reasons_are_distinct_words() {
        let distinct: std::collections::BTreeSet<_> = REASONS.iter().collect();
        assert_eq!(distinct.len(), REASONS.len());
        assert!(REASONS.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        assert!(CONCERN_THE_OPERATOR.iter().all(|word| REASONS.contains(word)));
    }

    fn any_answer() -> impl Strategy<Value = Answer> {
        let body = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from),
            proptest::sample::select(vec![
                r#"{"errno":109}"#,
                r#"{"errno":202}"#,
                r#"{"reason":"BadJwtToken"}"#,
                r#"{"reason":"VapidPkHashMismatch"}"#,
                r#"{"reason":"TooManyRequests"}"#,
                r#"{"reason":["#,
                r#"[[[[{"reason":1e999}"#,
                "{}",
                "invalid JWT",
            ])
            .prop_map(|text| Bytes::from_static(text.as_bytes())),
        ];
        let header = (
            proptest::sample::select(vec!["retry-after", "x-wns-status", "x-wns-continue-after", "x-wns-error-description"]),
            proptest::sample::select(vec!["0", "5", "junk", "99999999999", "dropped", "appthrottled", "channelthrottled"]),
        );
        let headers = proptest::collection::vec(header, 0..4);
        let failure = proptest::sample::select(vec![
            ConnectFailure::NoSuchHost,
            ConnectFailure::Resolve,
            ConnectFailure::Forbidden,
            ConnectFailure::Refused,
            ConnectFailure::Timeout,
            ConnectFailure::Tls,
            ConnectFailure::Proxy,
            ConnectFailure::Protocol,
        ]);
        prop_oneof![
            8 => (100u16..1000, headers, body).prop_map(|(status, headers, body)| match answer(status, &headers, "") {
                Answer::Response { status, headers, .. } => Answer::Response { status, headers, body },
                other => other,
            }),
            1 => failure.prop_map(Answer::NotConnected),
            1 => proptest::sample::select(vec![Loss::Timeout, Loss::Reset, Loss::Closed]).prop_map(Answer::Lost),
            1 => any::<bool>().prop_map(|late| if late { Answer::TooLate } else { Answer::Stopped }),
        ]
    }

    proptest! {
        #[test]
        fn any_answer_gives_a_known_reason_and_keeps_the_promises(
            answer in any_answer(), who in proptest::sample::select(EVERYONE.to_vec()), ttl_zero in any::<bool>(),
            padded in any::<bool>(), other_key in any::<bool>(), attempts in any::<u8>(), age in 0u64..10 * DAY_MILLIS,
        ) {
            let since = UnixMillis(NOW.0 - age);
            let case = Case { service: who, answer: &answer, ttl_zero, padded, other_key, attempts, since, now: NOW };
            let (verdict, blame) = verdict(&case);
            let left = matches!(answer, Answer::Response { .. } | Answer::Lost(_));
            match verdict {
                Verdict::Ended { ending, reason } => {
                    prop_assert!(REASONS.contains(&reason), "{reason}");
                    prop_assert!(!matches!(ending, Ending::Cancelled | Ending::Skipped));
                    // Only the service's own word makes it accepted.
                    let success = matches!(&answer, Answer::Response { status, .. } if status.is_success());
                    prop_assert!(ending != Ending::Accepted || success);
                }
                Verdict::Retry { reason, not_before } => {
                    prop_assert!(!ttl_zero && REASONS.contains(&reason), "{reason}");
                    prop_assert!(not_before.is_none_or(|time| time.since(NOW) <= RETRY_AFTER_MAX_MILLIS && time >= NOW));
                }
                Verdict::Return { reason } => {
                    prop_assert!(REASONS.contains(&reason), "{reason}");
                    prop_assert!(!(ttl_zero && left));
                    // Returned without a wait, it must be the origin that waits, or the delivery would spin.
                    let waits = matches!(blame, Blame::Origin { .. } | Blame::Service { .. });
                    prop_assert!(waits || matches!(answer, Answer::Stopped));
                }
                Verdict::OtherKey => prop_assert!(other_key && !ttl_zero),
                Verdict::Shrink => prop_assert!(padded && !ttl_zero),
            }
            if let Blame::Origin { not_before: Some(time) } | Blame::Service { not_before: Some(time) } = blame {
                prop_assert!(time >= NOW && time.since(NOW) <= RETRY_AFTER_MAX_MILLIS);
            }
        }
    }
}
