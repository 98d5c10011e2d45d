//! Any answer of a push service gets a verdict, and no `Retry-After` moves anything further than it may.

#![no_main]

use bytes::Bytes;
use fanfare_fuzz::message::{Answer, Ending, Service, UnixMillis, Verdict};
use fanfare_fuzz::outcome::retry_after::{RETRY_AFTER_MAX_MILLIS, X_WNS_CONTINUE_AFTER, continue_after, retry_after};
use fanfare_fuzz::outcome::verdict::{Case, verdict};
use fanfare_fuzz::protocol::reason::REASONS;
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;

const NOW: UnixMillis = UnixMillis(1_800_000_000_000);
const SERVICES: [Service; 6] =
    [Service::OTHER, Service::FCM, Service::MOZILLA, Service::APPLE, Service::WNS, Service::FIRST_ALLOWED];

// Status and flags, then lines: Retry-After, X-WNS-CONTINUE-AFTER, X-WNS-Status, and the body.
fuzz_target!(|data: &[u8]| {
    let Some((head, rest)) = data.split_first_chunk::<3>() else { return };
    let Ok(status) = StatusCode::from_u16(100 + u16::from_be_bytes([head[0], head[1]]) % 900) else { return };
    let mut parts = rest.splitn(4, |byte| *byte == b'\n');
    let mut headers = HeaderMap::new();
    for name in [RETRY_AFTER.as_str(), X_WNS_CONTINUE_AFTER, "x-wns-status"] {
        if let Some(Ok(value)) = parts.next().map(HeaderValue::from_bytes) {
            headers.insert(name, value);
        }
    }
    for time in [retry_after(&headers, NOW), continue_after(&headers, NOW)].into_iter().flatten() {
        assert!(time >= NOW && time.since(NOW) <= RETRY_AFTER_MAX_MILLIS);
    }
    let answer = Answer::Response { status, headers, body: Bytes::copy_from_slice(parts.next().unwrap_or_default()) };
    let flags = head[2];
    let case = Case {
        service: SERVICES[usize::from(flags >> 3) % SERVICES.len()],
        answer: &answer,
        ttl_zero: flags & 1 != 0,
        padded: flags & 2 != 0,
        other_key: flags & 4 != 0,
        attempts: flags,
        since: NOW,
        now: NOW,
    };
    let (judged, _) = verdict(&case);
    match judged {
        Verdict::Ended { ending, reason } => {
            assert!(REASONS.contains(&reason));
            assert!(ending != Ending::Accepted || status.is_success());
        }
        Verdict::Retry { reason, .. } | Verdict::Return { reason } => {
            assert!(REASONS.contains(&reason));
            assert!(!case.ttl_zero, "a post that left was the one attempt");
        }
        Verdict::OtherKey | Verdict::Shrink => assert!(!case.ttl_zero),
    }
});
