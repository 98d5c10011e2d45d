//! What it costs to judge an answer, by kind of answer: it happens once for every post.

use bytes::Bytes;
use divan::{Bencher, black_box};
use fanfare::message::{Answer, Loss, Service, UnixMillis};
use fanfare::outcome::verdict::{Case, verdict};
use http::{HeaderMap, HeaderValue, StatusCode};

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);

fn main() {
    divan::main();
}

fn response(status: u16, retry_after: Option<&'static str>, body: &'static str) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert("ttl", HeaderValue::from_static("86400"));
    headers.insert("location", HeaderValue::from_static("https://push.example/m/abcdefghijklmnopqrstuvwxyz"));
    if let Some(value) = retry_after {
        headers.insert("retry-after", HeaderValue::from_static(value));
    }
    let status = StatusCode::from_u16(status).expect("a legal status");
    Answer::Response { status, headers, body: Bytes::from_static(body.as_bytes()) }
}

/// Name, service, answer.
fn kinds() -> [(&'static str, Service, Answer); 9] {
    const MISMATCH: &str =
        r#"{"code":401,"errno":109,"error":"Unauthorized","message":"VAPID public key mismatch","more_info":"http://x"}"#;
    [
        ("201 of FCM", Service::FCM, response(201, None, "")),
        ("201 of WNS", Service::WNS, response(201, None, "")),
        ("401 of Mozilla", Service::MOZILLA, response(401, None, MISMATCH)),
        ("400 of Apple", Service::APPLE, response(400, None, r#"{"reason":"VapidPkHashMismatch"}"#)),
        ("410 empty", Service::FCM, response(410, None, "")),
        ("429 in seconds", Service::FCM, response(429, Some("120"), "")),
        ("503 with a date", Service::MOZILLA, response(503, Some("Fri, 15 Jan 2027 08:05:00 GMT"), "")),
        ("502 with HTML of 4 KiB", Service::MOZILLA, response(502, None, HTML)),
        ("no answer", Service::FCM, Answer::Lost(Loss::Timeout)),
    ]
}

const HTML: &str = match std::str::from_utf8(&[b'<'; 4096]) {
    Ok(text) => text,
    Err(_) => panic!("ASCII is UTF-8"),
};

#[divan::bench(args = kinds().map(|(name, ..)| name))]
fn judge(bencher: Bencher, wanted: &str) {
    let kinds = kinds();
    let (_, service, answer) = kinds.iter().find(|(name, ..)| *name == wanted).expect("the names come from there");
    let case =
        Case { service: *service, answer, ttl_zero: false, padded: false, other_key: false, attempts: 0, since: NOW, now: NOW };
    bencher.bench_local(|| verdict(black_box(&case)));
}
