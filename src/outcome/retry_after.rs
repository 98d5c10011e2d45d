//! When a push service wants to be asked again.
//!
//! Promise: a header is a wish of a stranger. It is taken when it can be read, ignored when it cannot, and never moves
//! anything further than [`RETRY_AFTER_MAX_MILLIS`] away.

use std::time::UNIX_EPOCH;

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::message::UnixMillis;

/// The longest wait that a service can ask for, in milliseconds: 24 hours. Chrome's shortest penalty is a day
/// (docs/push-services.md 1, fact 1), WNS throttles for "an hour to a day" (3.4 there). After a longer one
/// the probe of the next day learns it
/// again, which costs one request, whereas a header that says a year by mistake would silence a service until a restart.
pub const RETRY_AFTER_MAX_MILLIS: u64 = 24 * 60 * 60 * 1_000;

/// Seconds until a channel that WNS throttles takes messages again (docs/push-services.md 3.4).
pub const X_WNS_CONTINUE_AFTER: &str = "x-wns-continue-after";

/// The time that `Retry-After` names (RFC 9110 section 10.2.3): seconds from `now`, or an HTTP date. A date in the past is
/// `now`; of several headers the latest counts; what is neither is ignored.
pub fn retry_after(headers: &HeaderMap, now: UnixMillis) -> Option<UnixMillis> {
    latest(headers, RETRY_AFTER.as_str(), now)
}

/// Like [`retry_after`], with WNS's own `X-WNS-CONTINUE-AFTER` beside it: the later of the two.
pub fn continue_after(headers: &HeaderMap, now: UnixMillis) -> Option<UnixMillis> {
    retry_after(headers, now).max(latest(headers, X_WNS_CONTINUE_AFTER, now))
}

fn latest(headers: &HeaderMap, name: &str, now: UnixMillis) -> Option<UnixMillis> {
    headers.get_all(name).iter().filter_map(|value| parse(value.to_str().ok()?.trim(), now)).max()
}

fn parse(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a u64 holds is a readable number all the same: the bound below is its meaning.
        text.parse::<u64>().unwrap_or(u64::MAX).saturating_mul(1_000)
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let millis = u64::try_from(date.duration_since(UNIX_EPOCH).ok()?.as_millis()).ok()?;
        UnixMillis(millis).since(now)
    };
    Some(now.plus(wait.min(RETRY_AFTER_MAX_MILLIS)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110 section 5.6.7.
    const NOW: UnixMillis = UnixMillis(784_111_777_000);

    fn headers(name: &'static str, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name, HeaderValue::from_str(value).expect("a legal value"));
        }
        headers
    }

    fn wait(value: &str) -> Option<u64> {
        retry_after(&headers("retry-after", &[value]), NOW).map(|time| time.since(NOW))
    }

    #[test]
    fn seconds_count_from_now() {
        assert_eq!(wait("120"), Some(120_000));
        assert_eq!(wait(" 900 "), Some(900_000));
        assert_eq!(wait("0"), Some(0));
    }

    #[test]
    fn the_three_date_formats_of_rfc_9110() {
        assert_eq!(wait("Sun, 06 Nov 1994 08:50:37 GMT"), Some(60_000));
        assert_eq!(wait("Sunday, 06-Nov-94 08:50:37 GMT"), Some(60_000));
        assert_eq!(wait("Sun Nov  6 08:50:37 1994"), Some(60_000));
    }

    #[test]
    fn a_date_in_the_past_is_now() {
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:36 GMT"), Some(0));
        assert_eq!(wait("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
    }

    #[test]
    fn garbage_is_ignored() {
        for value in ["", " ", "-1", "+5", "1.5", "5s", "soon", "0x10", "Sun, 31 Feb 2026 00:00:00 GMT", "12 13", "٣"] {
            assert_eq!(wait(value), None, "{value:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
        let mut bytes = HeaderMap::new();
        bytes.insert("retry-after", HeaderValue::from_bytes(b"\xff12").expect("obs-text is legal"));
        assert_eq!(retry_after(&bytes, NOW), None);
    }

    #[test]
    fn a_day_is_the_most() {
        assert_eq!(wait("86400"), Some(RETRY_AFTER_MAX_MILLIS));
        for value in ["86401", "31536000", "18446744073709551616", "99999999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"] {
            assert_eq!(wait(value), Some(RETRY_AFTER_MAX_MILLIS), "{value}");
        }
    }

    #[test]
    fn the_latest_of_several_counts() {
        assert_eq!(retry_after(&headers("retry-after", &["5", "junk", "60", "7"]), NOW), Some(NOW.plus(60_000)));
        let mut both = headers("retry-after", &["5"]);
        both.insert(X_WNS_CONTINUE_AFTER, HeaderValue::from_static("11"));
        assert_eq!(continue_after(&both, NOW), Some(NOW.plus(11_000)));
        assert_eq!(retry_after(&both, NOW), Some(NOW.plus(5_000)));
        assert_eq!(continue_after(&headers(X_WNS_CONTINUE_AFTER, &["junk"]), NOW), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_bounded(value in proptest::collection::vec(any::<u8>(), 0..40), now in any::<u64>()) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut headers = HeaderMap::new();
                headers.insert(RETRY_AFTER, value);
                if let Some(time) = retry_after(&headers, UnixMillis(now)) {
                    prop_assert!(time >= UnixMillis(now) && time.since(UnixMillis(now)) <= RETRY_AFTER_MAX_MILLIS);
                }
            }
        }
    }
}
