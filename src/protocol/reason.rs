//! The words that say why a delivery ended, is tried again or went back to its lane: labels of metrics, `reason` of events. Bounded,
//! and stable once published.

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
/// The daemon may not connect to any of the host's addresses (docs/design.md 6.1).
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
/// The daemon has no descriptor, or no place among `deliver.origins`, for a connection: look at its limit of open files.
pub const NO_DESCRIPTOR: &str = "no_descriptor";
/// The deadline passed before the request left.
pub const DEADLINE: &str = "deadline";
/// TTL 0: the one attempt was made, and what came of it would be tried again otherwise.
pub const TTL_ZERO_ONE_ATTEMPT: &str = "ttl_zero_one_attempt";
/// The daemon stops.
pub const STOPPED: &str = "stopped";

/// TTL 0: the delivery found no free place at its push service in time.
pub const TTL_ZERO_PATIENCE: &str = "ttl_zero_patience";
/// `cancel`, or the end of a list that was cancelled.
pub const CANCELLED: &str = "cancelled";
/// A newer message of the same topic took its place.
pub const SUPERSEDED: &str = "superseded";
/// `mark_read`: the account has read it elsewhere.
pub const READ: &str = "read";
/// The recipient was erased. The event does not say whose it was.
pub const ERASED: &str = "erased";
/// The subscription's own expiration time has passed.
pub const EXPIRATION_TIME: &str = "expiration_time";
/// The message's app is not configured any more, or has no key.
pub const NO_SUCH_APP: &str = "no_such_app";
/// `when: offline`, and the account was online until the deadline.
pub const PRESENT: &str = "present";
/// The subscription is not in the registry any more.
pub const REMOVED: &str = "removed";
/// The subscription belongs to another account now.
pub const MOVED: &str = "moved";
/// The subscription or its account is switched off.
pub const DISABLED: &str = "disabled";
/// The subscription does not accept the message's scope.
pub const SCOPE: &str = "scope";

/// Each word of a verdict, and whether the operator has to mend something (A in docs/push-services.md 3.6), not the browser.
const WORDS: &[(&str, bool)] = &[
    (ACCEPTED, false),
    (NOT_FOUND, false),
    (UNSUBSCRIBED, false),
    (KEY_MISMATCH, true),
    (NO_SUCH_HOST, false),
    (BAD_REQUEST, true),
    (BAD_TTL, true),
    (BAD_TOPIC, true),
    (BAD_URGENCY, true),
    (BAD_ENCRYPTION, true),
    (BAD_TOKEN, true),
    (FORBIDDEN, true),
    (REDIRECT, true),
    (METHOD_NOT_ALLOWED, true),
    (NOT_ACCEPTABLE, true),
    (LENGTH_REQUIRED, true),
    (PAYLOAD_TOO_LARGE, false),
    (UNSUPPORTED_MEDIA_TYPE, true),
    (CLIENT_ERROR, true),
    (UNEXPECTED_STATUS, true),
    (DROPPED, false),
    (THROTTLED, false),
    (UNAVAILABLE, false),
    (SERVER_ERROR, false),
    (REQUEST_TIMEOUT, false),
    (WRONG_CONNECTION, false),
    (TIMEOUT, false),
    (RESET, false),
    (CONNECTION_CLOSED, false),
    (RESOLVE, false),
    (ADDRESS_FORBIDDEN, true),
    (CONNECT_REFUSED, false),
    (CONNECT_TIMEOUT, false),
    (TLS, true),
    (PROXY, true),
    (PROTOCOL, false),
    (NO_DESCRIPTOR, true),
    (DEADLINE, false),
    (TTL_ZERO_ONE_ATTEMPT, false),
    (STOPPED, false),
];

/// The words that no answer of a push service leads to.
const OWN_WORDS: [&str; 12] = [
    TTL_ZERO_PATIENCE,
    CANCELLED,
    SUPERSEDED,
    READ,
    ERASED,
    EXPIRATION_TIME,
    NO_SUCH_APP,
    PRESENT,
    REMOVED,
    MOVED,
    DISABLED,
    SCOPE,
];

/// Every reason there is.
pub const REASONS: [&str; WORDS.len() + OWN_WORDS.len()] = {
    let mut words = [""; WORDS.len() + OWN_WORDS.len()];
    let mut n = 0;
    while n < words.len() {
        words[n] = if n < WORDS.len() { WORDS[n].0 } else { OWN_WORDS[n - WORDS.len()] };
        n += 1;
    }
    words
};

/// Whether it is ours to mend. The first few such at an origin deserve a line in the log that an operator reads.
pub fn concerns_the_operator(reason: &str) -> bool {
    WORDS.contains(&(reason, true))
}
