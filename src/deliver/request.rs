//! [`Sealed`] -> `http::Request`: the header fields of one attempt (RFC 8030 section 5, RFC 8291, RFC 8292). Pure.

use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, Method};

use bytes::Bytes;

use crate::message::{ContentType, Encoding, Message, Recipient, Sealed, Service, UnixMillis, Urgency};

const TTL: HeaderName = HeaderName::from_static("ttl");
const URGENCY: HeaderName = HeaderName::from_static("urgency");
const TOPIC: HeaderName = HeaderName::from_static("topic");
const ENCRYPTION: HeaderName = HeaderName::from_static("encryption");
const CRYPTO_KEY: HeaderName = HeaderName::from_static("crypto-key");
const WNS_CACHE_POLICY: HeaderName = HeaderName::from_static("x-wns-cache-policy");

/// The deadline has passed, or less than a second of it is left: the request must not leave (promise 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLate;

/// The value of `TTL` for an attempt that leaves at `now`: the whole seconds that are left, 0 only for a message of TTL 0.
/// A subscription's `expirationTime` ends it like the message's own deadline: nothing is sent after either.
pub(super) fn ttl(message: &Message, recipient: &Recipient, now: UnixMillis) -> Result<u64, TooLate> {
    let deadline = message.expires.min(recipient.expiration.unwrap_or(UnixMillis::NEVER));
    let left = deadline.since(now);
    if message.ttl_zero {
        return if left > 0 { Ok(0) } else { Err(TooLate) };
    }
    if left < 1_000 { Err(TooLate) } else { Ok(left / 1_000) }
}

/// The request's head for a connection to `authority`, body apart. HTTP/1.1 adds `Host` to it and leaves the authority out.
pub(super) fn head(sealed: &Sealed, authority: &Authority, now: UnixMillis) -> Result<http::Request<()>, TooLate> {
    let message = &sealed.delivery.message;
    let recipient = &sealed.delivery.recipient;
    let ttl = ttl(message, recipient, now)?;

    let mut fields = HeaderMap::with_capacity(12);
    fields.insert(TTL, HeaderValue::from(ttl));
    fields.insert(URGENCY, urgency(message.urgency));
    let mut authorization = sealed.authorization.clone();
    // Never put into a table of header compression by anyone on the way (RFC 7541 section 7.1.3).
    authorization.set_sensitive(true);
    fields.insert(AUTHORIZATION, authorization);
    // What is not there has neither a type nor an encoding. Its length is told all the same (RFC 9110 section 8.6).
    if !sealed.body.is_empty() {
        fields.insert(
            CONTENT_TYPE,
            HeaderValue::from_static(match message.content_type {
                ContentType::Notification => "application/notification+json",
                ContentType::Opaque => "application/octet-stream",
            }),
        );
        fields.insert(
            CONTENT_ENCODING,
            HeaderValue::from_static(match recipient.encoding {
                Encoding::Aes128gcm => "aes128gcm",
                Encoding::Aesgcm => "aesgcm",
            }),
        );
    }
    fields.insert(CONTENT_LENGTH, HeaderValue::from(sealed.body.len()));
    if let Some(topic) = &sealed.topic {
        fields.insert(TOPIC, topic.clone());
    }
    if let Some(encryption) = &sealed.encryption {
        fields.insert(ENCRYPTION, encryption.clone());
    }
    if let Some(crypto_key) = &sealed.crypto_key {
        fields.insert(CRYPTO_KEY, crypto_key.clone());
    }
    if recipient.service == Service::WNS {
        // TTL 0 without `no-cache` is answered 400 (docs/push-services.md 3.4).
        fields.insert(WNS_CACHE_POLICY, HeaderValue::from_static(if ttl == 0 { "no-cache" } else { "cache" }));
    }

    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(authority.clone());
    parts.path_and_query = Some(path(recipient.endpoint.path_and_query()));
    let uri = Uri::from_parts(parts).expect("scheme, authority and path are all there");

    let mut request = http::Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = fields;
    Ok(request)
}

fn urgency(urgency: Urgency) -> HeaderValue {
    HeaderValue::from_static(urgency.as_str())
}

/// The endpoint's path and query as they are. What the URL parser lets through and `http` does not is percent-encoded, so
/// that there is no endpoint that can be accepted and never sent.
fn path(text: Bytes) -> PathAndQuery {
    PathAndQuery::from_maybe_shared(text.clone()).unwrap_or_else(|_| {
        let mut encoded = String::with_capacity(text.len() + 16);
        if text.first() != Some(&b'/') {
            encoded.push('/');
        }
        for &byte in &text {
            if byte.is_ascii_alphanumeric() || b"-._~:/?@!$&'()*+,;=%".contains(&byte) {
                encoded.push(char::from(byte));
            } else {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        PathAndQuery::try_from(encoded).expect("only characters of RFC 3986 are left, and it starts with a slash")
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::deliver::tests::sealed;

    const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

    fn fields(sealed: &Sealed, now: UnixMillis) -> Result<HeaderMap, TooLate> {
        head(sealed, &Authority::from_static("push.example"), now).map(|request| request.into_parts().0.headers)
    }

    fn with(change: impl FnOnce(&mut Message, &mut Recipient)) -> Sealed {
        let mut sealed = sealed("https://push.example", "/send/abc?x=1", 0);
        let mut message = (*sealed.delivery.message).clone();
        message.expires = NOW.plus(60_000);
        change(&mut message, &mut sealed.delivery.recipient);
        sealed.delivery.message = Arc::new(message);
        sealed
    }

    #[test]
    fn ttl_is_what_is_left_in_whole_seconds() {
        let sealed = with(|_, _| ());
        for (later, ttl) in [(0, "60"), (1, "59"), (1_000, "59"), (58_999, "1"), (59_000, "1")] {
            assert_eq!(fields(&sealed, NOW.plus(later)).unwrap()["ttl"], ttl, "{later}");
        }
        for later in [59_001, 60_000, 99_000] {
            assert_eq!(fields(&sealed, NOW.plus(later)).unwrap_err(), TooLate, "{later}");
        }
    }

    #[test]
    fn ttl_zero_leaves_before_its_deadline_or_never() {
        let sealed = with(|message, _| message.ttl_zero = true);
        assert_eq!(fields(&sealed, NOW.plus(59_999)).unwrap()["ttl"], "0");
        assert_eq!(fields(&sealed, NOW.plus(60_000)).unwrap_err(), TooLate);
    }

    #[test]
    fn an_expired_subscription_gets_nothing() {
        let sealed = with(|_, recipient| recipient.expiration = Some(NOW.plus(10_000)));
        assert_eq!(fields(&sealed, NOW).unwrap()["ttl"], "10");
        assert_eq!(fields(&sealed, NOW.plus(9_500)).unwrap_err(), TooLate);
        let zero = with(|message, recipient| {
            message.ttl_zero = true;
            recipient.expiration = Some(NOW);
        });
        assert_eq!(fields(&zero, NOW).unwrap_err(), TooLate);
    }

    #[test]
    fn a_request_has_the_fields_of_rfc_8030_and_no_others() {
        let mut sealed = with(|message, _| message.urgency = Urgency::VeryLow);
        sealed.topic = Some(HeaderValue::from_static("abcd"));
        let request = head(&sealed, &Authority::from_static("push.example:8443"), NOW).unwrap();
        assert_eq!(request.uri().to_string(), "https://push.example:8443/send/abc?x=1");
        assert_eq!(request.method(), Method::POST);
        let fields = request.headers();
        assert!(fields["authorization"].is_sensitive());
        assert_eq!(fields["urgency"], "very-low");
        assert_eq!(fields["topic"], "abcd");
        assert_eq!(fields["content-encoding"], "aes128gcm");
        assert_eq!(fields["content-type"], "application/octet-stream");
        assert_eq!(fields["content-length"], sealed.body.len().to_string().as_str());
        assert_eq!(fields.len(), 7);
    }

    #[test]
    fn a_request_without_body_has_neither_type_nor_encoding() {
        for encoding in [Encoding::Aes128gcm, Encoding::Aesgcm] {
            let mut sealed = with(|_, recipient| recipient.encoding = encoding);
            sealed.body = Bytes::new();
            let fields = fields(&sealed, NOW).unwrap();
            let mut names: Vec<&str> = fields.keys().map(HeaderName::as_str).collect();
            names.sort_unstable();
            assert_eq!(
                (names, &fields["content-length"]),
                (vec!["authorization", "content-length", "ttl", "urgency"], &HeaderValue::from_static("0"))
            );
        }
    }

    #[test]
    fn aesgcm_and_notification_have_their_fields() {
        let mut sealed = with(|message, recipient| {
            message.content_type = ContentType::Notification;
            recipient.encoding = Encoding::Aesgcm;
        });
        sealed.encryption = Some(HeaderValue::from_static("salt=a"));
        sealed.crypto_key = Some(HeaderValue::from_static("dh=b;p256ecdsa=c"));
        let fields = fields(&sealed, NOW).unwrap();
        assert_eq!(fields["content-encoding"], "aesgcm");
        assert_eq!(fields["encryption"], "salt=a");
        assert_eq!(fields["crypto-key"], "dh=b;p256ecdsa=c");
        assert_eq!(fields["content-type"], "application/notification+json");
    }

    #[test]
    fn wns_gets_its_cache_policy() {
        let wns = |zero| {
            with(|message, recipient| {
                message.ttl_zero = zero;
                recipient.service = Service::WNS;
            })
        };
        assert_eq!(fields(&wns(true), NOW).unwrap()["x-wns-cache-policy"], "no-cache");
        assert_eq!(fields(&wns(false), NOW).unwrap()["x-wns-cache-policy"], "cache");
        assert!(!fields(&with(|_, _| ()), NOW).unwrap().contains_key("x-wns-cache-policy"));
    }

    #[test]
    fn no_path_is_impossible_to_send() {
        for (given, sent) in [("/a|b?c`d", "/a|b?c`d"), ("/a b", "/a%20b"), ("/\u{7f}<", "/%7F%3C"), ("", "/")] {
            assert_eq!(path(Bytes::from(given)).as_str(), sent);
        }
    }
}
