use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::super::retry_after::RETRY_AFTER_MAX_MILLIS;
use super::*;
use crate::protocol::reason::REASONS;

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

/// Mozilla's error (docs/push-services.md 3.2).
fn mozilla(status: u16, errno: &str, message: &str) -> String {
    format!(r#"{{"code":{status},"errno":{errno},"error":"x","message":"{message}","more_info":"http://x"}}"#)
}

fn apple(word: &str) -> String {
    format!(r#"{{"reason":"{word}"}}"#)
}

/// docs/push-services.md 3.6, row 2xx: accepted, also with the TTL cut (3.7) and whatever the body.
#[test]
fn row_2xx_is_accepted() {
    for who in EVERYONE {
        for status in [200, 201, 202, 204, 203, 207, 299] {
            assert_eq!(judge(who, status, &[("ttl", "60")], "anything"), end(Ending::Accepted, "accepted"), "{who:?} {status}");
        }
    }
}

/// docs/push-services.md 3.6, row 2xx, and 3.4: WNS says more in a header.
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

/// docs/push-services.md 3.6, row 3xx: refused, never followed.
#[test]
fn row_3xx_is_refused() {
    for who in EVERYONE {
        for status in [300, 301, 302, 303, 304, 307, 308] {
            let got = judge(who, status, &[("location", "https://elsewhere.example/")], "");
            assert_eq!(got, end(Ending::Refused, "redirect"), "{who:?} {status}");
        }
    }
}

/// docs/push-services.md 3.6, row 400, and 3.1.
#[test]
fn row_400_of_fcm() {
    assert_eq!(judge(Service::FCM, 400, &[], "InvalidTtlParameter"), end(Ending::Refused, "bad_ttl"));
    assert_eq!(judge(Service::FCM, 400, &[], "UnauthorizedRegistration"), (Verdict::OtherKey, Blame::Delivery));
    assert_eq!(judge_last(Service::FCM, 400, &[], "UnauthorizedRegistration"), end(Ending::Refused, "key_mismatch"));
    assert_eq!(judge(Service::FCM, 400, &[], "<html>Bad Request</html>"), end(Ending::Refused, "bad_request"));
}

/// docs/push-services.md 3.6, row 400, 3.2 and 3.7: by errno, null and nothing among them.
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

/// docs/push-services.md 3.3: the reason decides, under any status.
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

/// docs/push-services.md 3.6, row 400, and 3.4: the words stand in a header.
#[test]
fn row_400_of_wns() {
    let conflict = [("x-wns-error-description", "Ttl value conflicts with X-WNS-Cache-Policy.")];
    assert_eq!(judge(Service::WNS, 400, &conflict, ""), end(Ending::Refused, "bad_ttl"));
    assert_eq!(judge(Service::WNS, 400, &[], ""), end(Ending::Refused, "bad_request"));
}

/// docs/push-services.md 3.6, row 401, and 3.7: 109 with each of the observed texts; never a reason to drop the subscription.
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

/// docs/push-services.md 3.6, row 401, and 3.4; and services that say nothing.
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

/// docs/push-services.md 3.6, row 403, 3.1 and 3.3: key mismatch, bad token, and the rest slowly.
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
    let aged = |minutes: u64| Case { attempts: 5, since: UnixMillis(NOW.0 - minutes * 60_000), ..fresh(Service::FCM, &healing) };
    assert_eq!(verdict(&aged(310)), end(Ending::Refused, "forbidden"));
    // Attempts used up by other failures do not count as patience.
    assert_eq!(verdict(&aged(309)), retry(Some(160 * 60_000), "forbidden", Blame::Delivery));
}

/// docs/push-services.md 3.6, rows 404 and 410: gone; with empty bodies (3.7) as well as others.
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

/// docs/push-services.md 3.6, row 405, 411, 415: refused.
#[test]
fn row_405_411_415_is_refused() {
    for who in EVERYONE {
        assert_eq!(judge(who, 405, &[("allow", "POST")], ""), end(Ending::Refused, "method_not_allowed"));
        assert_eq!(judge(who, 411, &[], ""), end(Ending::Refused, "length_required"));
        assert_eq!(judge(who, 415, &[], ""), end(Ending::Refused, "unsupported_media_type"));
    }
}

/// docs/push-services.md 3.6, row 406: WNS throttles by it; nobody else does.
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

/// docs/push-services.md 3.6, rows 408 and "no answer": tried again.
#[test]
fn row_408_timeout_reset_is_tried_again() {
    for who in EVERYONE {
        assert_eq!(judge(who, 408, &[], ""), retry(None, "request_timeout", Blame::Trouble));
        for (loss, reason) in [(Loss::Timeout, "timeout"), (Loss::Reset, "reset"), (Loss::Closed, "connection_closed")] {
            assert_eq!(verdict(&fresh(who, &Answer::Lost(loss))), retry(None, reason, Blame::Trouble), "{who:?}");
        }
        let condemned = Blame::Origin { not_before: None };
        assert_eq!(verdict(&fresh(who, &Answer::Lost(Loss::Flood))), retry(None, "protocol", condemned), "{who:?}");
    }
}

/// docs/push-services.md 3.6, row 413: once unpadded, else refused.
#[test]
fn row_413() {
    for who in EVERYONE {
        for body in ["", &mozilla(413, "104", "This message is intended for a constrained device")] {
            assert_eq!(judge(who, 413, &[], body), (Verdict::Shrink, Blame::Delivery), "{who:?}");
            assert_eq!(judge_last(who, 413, &[], body), end(Ending::Refused, "payload_too_large"), "{who:?}");
        }
    }
}

/// docs/push-services.md 3.6, row 429: FCM the origin, WNS the service, any other that delivery only.
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

/// docs/push-services.md 3.6, row "other 5xx" (3.7: no Retry-After, HTML of a proxy): tried again; the origin's health judges.
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

/// docs/push-services.md 3.6, row 503: with Retry-After the origin, without one more 5xx.
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

/// docs/push-services.md 3.6, row "no such host": 3 times over 24 h, then gone; never gone where the host is documented.
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

/// docs/push-services.md 3.6, row "no connection": it condemns the origin and is no attempt.
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
            (ConnectFailure::NoDescriptor, "no_descriptor"),
        ] {
            let got = verdict(&fresh(who, &Answer::NotConnected(failure)));
            assert_eq!(got, (Verdict::Return { reason }, Blame::Origin { not_before: None }), "{who:?}");
        }
    }
}

/// A host with forbidden addresses only (docs/design.md 6.1).
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
    for (who, failure, reason) in
        [(Service::FCM, ConnectFailure::Refused, "connect_refused"), (Service::OTHER, ConnectFailure::NoSuchHost, "no_such_host")]
    {
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
        ConnectFailure::NoDescriptor,
    ]);
    prop_oneof![
        8 => (100u16..1000, headers, body).prop_map(|(status, headers, body)| match answer(status, &headers, "") {
            Answer::Response { status, headers, .. } => Answer::Response { status, headers, body },
            other => other,
        }),
        1 => failure.prop_map(Answer::NotConnected),
        1 => proptest::sample::select(vec![Loss::Timeout, Loss::Reset, Loss::Closed, Loss::Flood]).prop_map(Answer::Lost),
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
