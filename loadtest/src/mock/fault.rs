//! Everything that can go wrong on a push service's side, on command.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::flood::Flood;
use super::subscription::Vendor;

/// What a fault concerns.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Every origin.
    Everything,
    /// The origin with this number.
    Origin(usize),
    /// The subscription with this token; only faults of a request.
    Subscription(String),
}

/// A fault or a quirk.
///
/// The first five are faults of a request: the request is read, decrypted, checked and noted as always, and then this happens
/// instead of 201. The others are faults of a connection, taken when one is accepted; [`Fault::MaxStreams`] also changes those that are open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// This answer. A 2xx means that the push service took the message.
    Answer(Answer),
    /// The request is read and never answered.
    Stall,
    /// RST_STREAM with this code (RFC 9113 section 7: 7 is REFUSED_STREAM, 8 CANCEL, 2 INTERNAL_ERROR, 11
    /// ENHANCE_YOUR_CALM); over HTTP/1.1 the connection closes.
    Reset(u32),
    /// The TCP connection is closed instead of an answer.
    Close,
    /// The answer leaves half way: headers and some body, then the connection is closed.
    CloseInAnswer,

    /// TCP is accepted, TLS never answered.
    TlsStall,
    /// The certificate is from an authority that nobody knows.
    Untrusted,
    /// ALPN offers http/1.1 only.
    Http1Only,
    /// ALPN says h2, then come bytes that are no HTTP/2.
    Garbage,
    /// GOAWAY when a connection has had this many requests.
    GoAwayAfter(GoAway),
    /// Frames that answer nothing, from a connection's first request on.
    Flood(Flood),
    /// The path is slow.
    Slow(Slow),

    /// MAX_CONCURRENT_STREAMS, for new and open connections. Streams beyond it are refused once the peer has acknowledged it.
    MaxStreams(u32),
    /// As Apple does (docs/push-services.md 3.3): after an answer that is no 2xx one stream at a time, until a good one.
    NarrowAfterRejection,
}

/// An answer other than the usual 201.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// In this order.
    pub headers: Vec<(String, String)>,
    pub body: Body,
    /// Waits this long before answering; in JSON seconds.
    #[serde(with = "seconds")]
    pub delay: Duration,
}

impl Default for Answer {
    fn default() -> Answer {
        Answer { status: 201, headers: Vec::new(), body: Body::Empty, delay: Duration::ZERO }
    }
}

/// What an answer says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Body {
    #[default]
    Empty,
    Text(String),
    /// This many bytes.
    Huge(u64),
    /// Never ends.
    Endless,
    /// So many bytes, one each interval (seconds in JSON).
    Drip {
        bytes: u64,
        #[serde(with = "seconds")]
        interval: Duration,
    },
}

/// When a connection says goodbye (RFC 9113 section 6.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoAway {
    /// Requests of the connection, the last one included.
    pub requests: u64,
    /// The last so many of them are not processed: the GOAWAY's last stream lies below them, and they are never answered. 0 is
    /// the way of nginx (docs/push-services.md 3.7): the last request is still answered, then the connection ends.
    /// If the rest does not come within 50 ms of the first unprocessed request, GOAWAY is sent anyway.
    #[serde(default)]
    pub unprocessed: u64,
    /// The error code; 0 is NO_ERROR.
    #[serde(default)]
    pub code: u32,
}

/// A slow path, each way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    /// Bytes a second; 0 is no bound.
    pub bandwidth: u64,
    /// One way; in JSON seconds.
    #[serde(with = "seconds")]
    pub latency: Duration,
}

impl Fault {
    /// An answer with this status and nothing else.
    pub fn status(status: u16) -> Answer {
        Answer { status, ..Answer::default() }
    }

    /// 201, but late.
    pub fn late(delay: Duration) -> Fault {
        Answer { delay, ..Answer::default() }.into()
    }

    /// 301 or 307 to another place (RFC 9110 section 15.4): must never be followed.
    pub fn redirect(status: u16, location: &str) -> Fault {
        Fault::status(status).header("location", location).into()
    }

    /// Whether it is met when a connection is accepted.
    pub(super) fn of_connection(&self) -> bool {
        matches!(
            self,
            Fault::TlsStall
                | Fault::Untrusted
                | Fault::Http1Only
                | Fault::Garbage
                | Fault::GoAwayAfter(_)
                | Fault::Flood(_)
                | Fault::Slow(_)
        )
    }
}

impl From<Answer> for Fault {
    fn from(answer: Answer) -> Fault {
        Fault::Answer(answer)
    }
}

impl Answer {
    /// One more header.
    pub fn header(mut self, name: &str, value: &str) -> Answer {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// This text as its body.
    pub fn text(mut self, text: &str) -> Answer {
        self.body = Body::Text(text.to_owned());
        self
    }

    /// This body.
    pub fn body(mut self, body: Body) -> Answer {
        self.body = body;
        self
    }

    /// Retry-After in seconds. For an HTTP date use [`Answer::header`] with [`http_date`].
    pub fn retry_after(self, seconds: u64) -> Answer {
        self.header("retry-after", &seconds.to_string())
    }

    /// After this long.
    pub fn delay(mut self, delay: Duration) -> Answer {
        self.delay = delay;
        self
    }

    /// Whether the push service took the message.
    pub fn takes(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// An IMF-fixdate (RFC 9110 section 5.6.7), for Retry-After.
pub fn http_date(at: std::time::SystemTime) -> String {
    httpdate::fmt_http_date(at)
}

/// Answers of the push services (docs/push-services.md 3.1 to 3.7).
pub mod vendor {
    use super::{Answer, Fault};

    /// FCM 403: made with another key; permanent for that subscription.
    pub fn fcm_key_mismatch() -> Answer {
        Fault::status(403).text(
            "the VAPID credentials in the authorization header do not correspond to the credentials used to create the subscriptions.",
        )
    }

    /// FCM 403: our token or clock is wrong.
    pub fn fcm_invalid_jwt() -> Answer {
        Fault::status(403).text("invalid JWT provided")
    }

    /// FCM 400: VAPID missing or wrong.
    pub fn fcm_unauthorized_registration() -> Answer {
        Fault::status(400).text("UnauthorizedRegistration")
    }

    /// FCM 404: stale or corrupt.
    pub fn fcm_stale() -> Answer {
        Fault::status(404)
            .text("A valid push subscription endpoint should be specified in the URL as such: https://fcm.googleapis.com/wp/...")
    }

    /// FCM 410.
    pub fn fcm_gone() -> Answer {
        Fault::status(410).text("push subscription has unsubscribed or expired.\n")
    }

    /// Mozilla's JSON; `errno` may be null there.
    pub fn mozilla(code: u16, errno: Option<u16>, message: &str) -> Answer {
        let error = http::StatusCode::from_u16(code).ok().and_then(|status| status.canonical_reason()).unwrap_or("Error");
        let body = serde_json::json!({
            "code": code, "errno": errno, "error": error, "message": message,
            "more_info": "http://autopush.readthedocs.io/en/latest/http.html#error-codes",
        });
        Fault::status(code).header("content-type", "application/json").text(&body.to_string())
    }

    /// Mozilla 410, errno 106, as seen.
    pub fn mozilla_gone() -> Answer {
        mozilla(410, Some(106), "No such subscription").header("cache-control", "max-age=86400")
    }

    /// Mozilla 503: overload, with its Retry-After of 120.
    pub fn mozilla_overload() -> Answer {
        mozilla(503, Some(201), "Please slow down").retry_after(120)
    }

    /// Mozilla 401 errno 109.
    pub fn mozilla_vapid(message: &str) -> Answer {
        mozilla(401, Some(109), message)
    }

    /// nginx in front of a dead back end.
    pub fn nginx_bad_gateway() -> Answer {
        Fault::status(502).header("content-type", "text/html").text(
            "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n",
        )
    }

    /// Apple's JSON: key on the reason, not on the status.
    pub fn apple(status: u16, reason: &str) -> Answer {
        Fault::status(status)
            .header("content-type", "application/json")
            .header("apns-id", "5E3F0CB4-6C6B-4B2F-9C0B-1A2B3C4D5E6F")
            .text(&serde_json::json!({"reason": reason}).to_string())
    }

    /// Apple 410 for a token that has expired.
    pub fn apple_gone() -> Answer {
        apple(410, "Unregistered")
    }

    /// Apple 429: that device only, without Retry-After.
    pub fn apple_too_many_requests() -> Answer {
        apple(429, "TooManyRequests")
    }

    /// WNS: text in headers, body empty.
    pub fn wns(status: u16, wns_status: &str, description: &str) -> Answer {
        Fault::status(status)
            .header("x-wns-status", wns_status)
            .header("x-wns-notificationstatus", wns_status)
            .header("x-wns-error-description", description)
            .header("x-wns-msg-id", "5A3F0CB46C6B4B2F")
            .header("x-wns-debug-trace", "BN3WNS2011531")
            .header("ms-cv", "b6Z8hJ6NkU2r0A1B.0")
    }

    /// WNS 406: the whole application is throttled, 15 minutes.
    pub fn wns_app_throttled() -> Answer {
        wns(406, "appthrottled", "The cloud service has exceeded its throttle limit").retry_after(900)
    }

    /// WNS 406: one channel is throttled.
    pub fn wns_channel_throttled(seconds: u64) -> Answer {
        wns(406, "channelthrottled", "The channel has exceeded its throttle limit")
            .header("x-wns-continue-after", &seconds.to_string())
    }

    /// WNS 200 that is none: dropped.
    pub fn wns_dropped() -> Answer {
        wns(200, "dropped", "")
    }

    /// WNS 410.
    pub fn wns_gone() -> Answer {
        wns(410, "dropped", "Channel expired")
    }
}

/// The answer of a service of this kind to a fault of the sender. `status` is RFC 8030's and 8292's own.
pub(super) fn refusal(vendor: Vendor, what: Wrong, status: u16, text: &str) -> Answer {
    match (vendor, what) {
        (Vendor::Fcm, Wrong::KeyMismatch) => vendor::fcm_key_mismatch(),
        (Vendor::Fcm, Wrong::NoVapid) => vendor::fcm_unauthorized_registration(),
        (Vendor::Fcm, Wrong::Vapid) => vendor::fcm_invalid_jwt(),
        (Vendor::Fcm, Wrong::Ttl) => Fault::status(400).text("InvalidTtlParameter"),
        (Vendor::Fcm, Wrong::Unknown) => vendor::fcm_stale(),
        (Vendor::Mozilla, Wrong::KeyMismatch) => vendor::mozilla_vapid("VAPID public key mismatch"),
        (Vendor::Mozilla, Wrong::NoVapid | Wrong::Vapid) => vendor::mozilla_vapid(text),
        (Vendor::Mozilla, Wrong::Ttl) => vendor::mozilla(400, Some(111), "Missing TTL value"),
        (Vendor::Mozilla, Wrong::Topic) => vendor::mozilla(400, Some(113), text),
        (Vendor::Mozilla, Wrong::Encryption) => vendor::mozilla(400, Some(110), text),
        (Vendor::Mozilla, Wrong::TooLarge) => vendor::mozilla(413, Some(104), "payload reached size limit"),
        (Vendor::Mozilla, Wrong::Unknown) => Fault::status(404),
        (Vendor::Apple, Wrong::KeyMismatch) => vendor::apple(400, "VapidPkHashMismatch"),
        (Vendor::Apple, Wrong::NoVapid) => vendor::apple(403, "BadAuthorizationHeader"),
        (Vendor::Apple, Wrong::Vapid) => vendor::apple(403, "BadJwtToken"),
        (Vendor::Apple, Wrong::Ttl) => vendor::apple(400, "BadTtl"),
        (Vendor::Apple, Wrong::Urgency) => vendor::apple(400, "BadUrgency"),
        (Vendor::Apple, Wrong::Topic) => vendor::apple(400, "BadWebPushTopic"),
        (Vendor::Apple, Wrong::Encryption) => vendor::apple(400, "BadWebPushRequest"),
        (Vendor::Apple, Wrong::TooLarge) => vendor::apple(413, "PayloadTooLarge"),
        (Vendor::Apple, Wrong::Unknown) => vendor::apple(404, "BadPath"),
        (Vendor::Wns, Wrong::KeyMismatch) => vendor::wns(401, "dropped", "The public key does not match the channel Url"),
        (Vendor::Wns, Wrong::NoVapid | Wrong::Vapid) => vendor::wns(401, "dropped", "JWT Authentication Failed"),
        (Vendor::Wns, _) => vendor::wns(status, "dropped", text),
        _ => Fault::status(status).text(text),
    }
}

/// What a sender got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    KeyMismatch,
    NoVapid,
    Vapid,
    Ttl,
    Urgency,
    Topic,
    Encryption,
    TooLarge,
    Unknown,
    Other,
}

/// Durations as decimal seconds.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(duration.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        Duration::try_from_secs_f64(seconds).map_err(serde::de::Error::custom)
    }
}
