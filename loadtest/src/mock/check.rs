//! Judges one request as the strictest push service would: headers by RFC 8030, the token by RFC 8292, the body by RFC 8291.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, Method, Version, header};

use super::decrypt::{self, Opened};
use super::fault::Wrong;
use super::subscription::{Known, Vendor};
use super::vapid::{Problem, Vapid, Verifier, parameter};

/// 28 days: the maximum of FCM (docs/push-services.md 3.1). Mozilla and Apple cut silently at 30.
const TTL_MAX_FCM: u64 = 2_419_200;

/// A request that broke a rule.
#[derive(Debug)]
pub(super) struct Violation {
    pub what: Wrong,
    /// The status the standard gives it.
    pub status: u16,
    pub text: String,
}

fn violation(what: Wrong, status: u16, text: impl Into<String>) -> Violation {
    Violation { what, status, text: text.into() }
}

/// What the headers say, once they are known to be right.
#[derive(Debug)]
pub(super) struct Headers {
    pub ttl: u64,
    pub vapid: Arc<Vapid>,
}

/// Everything but the body's contents.
pub(super) fn headers(
    known: &Known,
    verifier: &Verifier,
    parts: &http::request::Parts,
    body_length: usize,
    now: u64,
) -> Result<Headers, Violation> {
    if parts.method != Method::POST {
        return Err(violation(Wrong::Other, 405, format!("the method is {}", parts.method)));
    }
    host(known, parts)?;
    let headers = &parts.headers;
    let ttl = ttl(known.vendor, headers)?;
    if let Some(urgency) = one(headers, "urgency").map_err(|text| violation(Wrong::Urgency, 400, text))?
        && !["very-low", "low", "normal", "high"].contains(&urgency)
    {
        return Err(violation(Wrong::Urgency, 400, format!("Urgency is {urgency:?}")));
    }
    if let Some(topic) = one(headers, "topic").map_err(|text| violation(Wrong::Topic, 400, text))? {
        check_topic(known.vendor, topic)?;
    }
    if parts.version < Version::HTTP_2 {
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(violation(Wrong::Other, 411, "Transfer-Encoding over HTTP/1.1: WNS takes no chunks"));
        }
        if !headers.contains_key(header::CONTENT_LENGTH) {
            return Err(violation(Wrong::Other, 411, "no Content-Length over HTTP/1.1"));
        }
        if headers.contains_key(header::EXPECT) {
            return Err(violation(Wrong::Other, 417, "Expect: WNS wants none"));
        }
    }
    if headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length.as_bytes() != body_length.to_string().as_bytes()) {
        return Err(violation(Wrong::Other, 400, "Content-Length is not the body's length"));
    }
    if known.vendor == Vendor::Wns {
        let wanted = if ttl == 0 { "no-cache" } else { "cache" };
        let policy = one(headers, "x-wns-cache-policy").map_err(|text| violation(Wrong::Ttl, 400, text))?;
        if ttl == 0 && policy != Some(wanted) || policy.is_some_and(|policy| policy != wanted) {
            return Err(violation(Wrong::Ttl, 400, "Ttl value conflicts with X-WNS-Cache-Policy."));
        }
    }
    let limit = match known.vendor {
        Vendor::Mozilla => 5_630,
        Vendor::Wns => 5_000,
        _ => 4_096,
    };
    if body_length > limit {
        return Err(violation(Wrong::TooLarge, 413, format!("a body of {body_length} bytes, more than {limit}")));
    }
    let authorization = one(headers, "authorization").map_err(|text| violation(Wrong::Vapid, 401, text))?;
    let crypto_key = one(headers, "crypto-key").map_err(|text| violation(Wrong::Encryption, 400, text))?;
    let vapid = verifier.verify(authorization, crypto_key, &known.origin, now).map_err(|problem| match problem {
        Problem::Absent(text) => violation(Wrong::NoVapid, 401, text),
        Problem::Invalid(text) => violation(Wrong::Vapid, 403, text),
    })?;
    if known.application_server_key.as_deref().is_some_and(|key| key != vapid.key) {
        return Err(violation(Wrong::KeyMismatch, 403, "key mismatch: the subscription was made with another key"));
    }
    Ok(Headers { ttl, vapid })
}

/// The body; None for a message without one.
pub(super) fn body(known: &Known, headers: &HeaderMap, vapid: &Vapid, body: &[u8]) -> Result<Option<Opened>, Violation> {
    let wrong = |text: String| violation(Wrong::Encryption, 400, text);
    let encoding = one(headers, "content-encoding").map_err(wrong)?;
    if body.is_empty() {
        if one(headers, "encryption").map_err(wrong)?.is_some() {
            return Err(wrong("Encryption without a body".to_owned()));
        }
        return match encoding {
            None => Ok(None),
            Some(_) => Err(wrong("Content-Encoding without a body".to_owned())),
        };
    }
    let opened = match (encoding, known.aesgcm) {
        (Some("aes128gcm"), false) => {
            for (name, word) in [("encryption", "salt"), ("crypto-key", "dh")] {
                if one(headers, name).map_err(wrong)?.is_some_and(|value| parameter(value, word).is_some()) {
                    return Err(wrong(format!("Do not include '{word}' header in aes128gcm")));
                }
            }
            decrypt::aes128gcm(&known.keys, body).map_err(wrong)?
        }
        (Some("aesgcm"), true) => {
            let salt = header_bytes::<16>(headers, "encryption", "salt")?;
            let sender = header_bytes::<{ decrypt::POINT }>(headers, "crypto-key", "dh")?;
            decrypt::aesgcm(&known.keys, salt, sender, body).map_err(wrong)?
        }
        (Some(other), aesgcm) => {
            return Err(wrong(format!(
                "Content-Encoding is {other:?}, the browser {}",
                if aesgcm { "is old" } else { "is not" }
            )));
        }
        (None, _) => return Err(wrong("Missing Content-Encoding header".to_owned())),
    };
    // Chromium acknowledges such a record to its push service, and no event reaches the page.
    if opened.plaintext.is_empty() {
        return Err(wrong("an encrypted record of nothing: a message without payload has no body".to_owned()));
    }
    // RFC 8292 section 3.2: the signing key must not be used for encryption.
    if vapid.key == URL_SAFE_NO_PAD.encode(opened.sender) {
        return Err(wrong("the VAPID key is also the ECDH key".to_owned()));
    }
    Ok(Some(opened))
}

/// The request must be meant for the subscription's own origin.
fn host(known: &Known, parts: &http::request::Parts) -> Result<(), Violation> {
    let meant = match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => one(&parts.headers, "host").map_err(|text| violation(Wrong::Other, 400, text))?.unwrap_or(""),
    };
    let own = known.origin.strip_prefix("https://").unwrap_or(&known.origin);
    if meant != own && meant.strip_suffix(":443") != Some(own) {
        return Err(violation(Wrong::Other, 421, format!("the request is for host {meant:?}, the subscription lies at {own:?}")));
    }
    Ok(())
}

fn ttl(vendor: Vendor, headers: &HeaderMap) -> Result<u64, Violation> {
    let wrong = |text: String| violation(Wrong::Ttl, 400, text);
    let text = one(headers, "ttl").map_err(wrong)?.ok_or_else(|| wrong("Missing TTL value".to_owned()))?;
    // RFC 8030 section 5.2: 1*DIGIT.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong(format!("TTL is {text:?}")));
    }
    let ttl = text.parse().map_err(|_| wrong(format!("TTL is {text}")))?;
    if vendor == Vendor::Fcm && ttl > TTL_MAX_FCM {
        return Err(wrong(format!("TTL is {ttl}, more than 28 days")));
    }
    if vendor == Vendor::Apple && ttl == 0 {
        return Err(wrong("TTL is not a positive number".to_owned()));
    }
    Ok(ttl)
}

fn check_topic(vendor: Vendor, topic: &str) -> Result<(), Violation> {
    let wrong = |text: String| violation(Wrong::Topic, 400, text);
    if topic.is_empty() || topic.len() > 32 {
        return Err(wrong(format!("Topic of {} characters", topic.len())));
    }
    if !topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_') {
        return Err(wrong("Topic must be URL and Filename safe Base64 alphabet".to_owned()));
    }
    if vendor == Vendor::Apple && topic.len() % 4 == 1 {
        return Err(wrong("Topic does not decode as base64url".to_owned()));
    }
    Ok(())
}

/// The one value of a header.
fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        return Err(format!("{name} is given twice"));
    }
    value.map(|value| value.to_str().map_err(|_| format!("{name} is not ASCII"))).transpose()
}

fn header_bytes<const N: usize>(headers: &HeaderMap, name: &str, word: &str) -> Result<[u8; N], Violation> {
    let wrong = |text: String| violation(Wrong::Encryption, 400, text);
    let value = one(headers, name).map_err(wrong)?.and_then(|value| parameter(value, word));
    let value = value.ok_or_else(|| wrong(format!("{name} has no {word}")))?;
    let bytes = URL_SAFE_NO_PAD.decode(value).map_err(|_| wrong(format!("{word} is not base64url")))?;
    bytes.try_into().map_err(|_| wrong(format!("{word} has a wrong length")))
}
