//! Whatever a push service sends for a time to come again, it is none, or lies between now and a day from now.

#![no_main]

use fanfare_fuzz::message::UnixMillis;
use fanfare_fuzz::retry_after::{RETRY_AFTER_MAX_MILLIS, X_WNS_CONTINUE_AFTER, continue_after, retry_after};
use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

// The clock in eight bytes, then a header a line; one that begins with `!` is WNS's own.
fuzz_target!(|input: (u64, &[u8])| {
    let (clock, lines) = input;
    let mut headers = HeaderMap::new();
    for line in lines.split(|byte| *byte == b'\n').take(8) {
        let (name, value) = match line.strip_prefix(b"!") {
            Some(value) => (HeaderName::from_static(X_WNS_CONTINUE_AFTER), value),
            None => (RETRY_AFTER, line),
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    }
    for now in [UnixMillis(clock), fanfare_fuzz::NOW] {
        let (alone, both) = (retry_after(&headers, now), continue_after(&headers, now));
        assert!(both >= alone);
        for time in alone.into_iter().chain(both) {
            assert!(time >= now && time.since(now) <= RETRY_AFTER_MAX_MILLIS);
        }
    }
});
