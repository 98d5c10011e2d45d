//! Section 2.2: who is told to wait waits. A 503 or FCM's 429 with Retry-After closes the origin, which is not probed before; a 429
//! of any other service concerns that delivery alone; WNS's 406 the whole service; a 500 is a backoff; mostly 5xx closes the lane,
//! which is probed after 1 s, 2 s, 4 s; and what waited meanwhile goes by urgency, then age.

use std::time::{Duration, SystemTime};

use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscribe, http_date};
use serde_json::{Value, json};

use crate::support::*;

/// The daemon reads clocks in milliseconds, and the mock notes a request before it answers it.
const GRAIN: f64 = 0.002;

fn of(token: &str) -> Scope {
    Scope::Subscription(token.to_owned())
}

#[test]
fn a_503_with_a_time_closes_the_origin_until_then() {
    let mock = mock(2);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 3);
    for date in [false, true] {
        let before = mock.counters().requests;
        let told = now() + 4.0;
        let answer = match date {
            false => Fault::status(503).retry_after(3),
            true => {
                Fault::status(503).header("retry-after", &http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(told as u64)))
            }
        };
        mock.set_fault_times(of(&browsers[0].token), answer, 1);
        let first = send(&mut client, &browsers[0], json!({"payload": format!("first {date}")}));
        wait_origin(&mut client, &mock.origin(0), "closed");
        // To the same origin they wait, to another they do not.
        let others: Vec<String> =
            browsers[1..].iter().map(|browser| send(&mut client, browser, json!({"payload": format!("other {date}")}))).collect();
        let elsewhere = send(&mut client, &mock.subscribe(1, 1)[0], json!({"payload": "elsewhere"}));
        wait_ended(&mut client, &elsewhere);
        let shown = origin(&mut client, &mock.origin(0));
        assert_eq!((&shown["state"], &shown["last_error"]), (&json!("closed"), &json!("503")), "{shown}");
        for id in others.iter().chain([&first]) {
            let ended = wait_ended(&mut client, id);
            // What condemns the origin is no attempt of the delivery.
            assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "{ended}");
        }
        let requests: Vec<_> = mock.received_after(before).into_iter().filter(|received| received.origin == 0).collect();
        assert_eq!(requests.len(), 4, "the one that was told to wait, and then all three");
        let not_before = if date { told.floor() } else { time(&requests[0]) + 3.0 };
        for later in &requests[1..] {
            assert!(time(later) >= not_before - GRAIN, "{} s too early", not_before - time(later));
            assert!(time(later) < not_before + 10.0, "{} s too late", time(later) - not_before);
        }
    }
    assert_eq!(mock.counters().repeats, 0);
}

#[test]
fn a_429_of_an_unnamed_service_concerns_that_delivery_only() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config);
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 12);
    let told = (now() + 4.0).floor();
    let date = http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(told as u64));
    mock.set_fault_times(of(&browsers[0].token), Fault::status(429).retry_after(3), 1);
    mock.set_fault_times(of(&browsers[1].token), Fault::status(429).header("retry-after", &date), 1);
    let requests: Vec<Value> = browsers.iter().map(|browser| send_of(&browser.json(), json!({"payload": "x"}))).collect();
    let ids = send_all(&mut client, &requests);
    for id in &ids[2..] {
        assert_eq!(wait_ended(&mut client, id)["retries"], 0);
    }
    assert_eq!(origin(&mut client, &mock.origin(0))["state"], "open");
    for id in &ids[..2] {
        let ended = wait_ended(&mut client, id);
        assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(1)), "{ended}");
    }
    let seconds = mock.received_by(&browsers[0]);
    assert_eq!(seconds.len(), 2);
    assert!(time(&seconds[1]) - time(&seconds[0]) >= 3.0 - GRAIN);
    let date = mock.received_by(&browsers[1]);
    assert_eq!(date.len(), 2);
    assert!(time(&date[1]) >= told - GRAIN);
    let last_other = browsers[2..].iter().map(|browser| time(&mock.received_by(browser)[0])).fold(0.0, f64::max);
    assert!(last_other < time(&seconds[1]), "the others went on");
}

#[test]
fn each_vendor_s_throttle_has_its_own_scope() {
    let hosts = ["fcm.googleapis.com", "web.push.apple.com", "wns2-a.notify.windows.com", "wns2-b.notify.windows.com"];
    let mock = Mock::start(Options { listeners: 1, hosts: hosts.map(str::to_owned).to_vec(), ..Options::default() });
    let daemon = daemon_of_real_names(&mock);
    let mut client = daemon.client();
    let at = |host: &str, n| mock.subscribe_with(0, n, &Subscribe { host: Some(host.to_owned()), ..Subscribe::default() });
    let [fcm, apple, wns, wns_b] = hosts.map(|host| at(host, 3));
    // Each origin has been met, but one: WNS throttles an app at all of its hosts.
    for browser in [&fcm[0], &apple[0], &wns[0]] {
        let id = send(&mut client, browser, json!({"payload": "hello"}));
        assert_eq!(wait_ended(&mut client, &id)["accepted"], 1);
    }
    mock.set_fault_times(of(&fcm[1].token), Fault::status(429).retry_after(4), 1);
    mock.set_fault_times(of(&apple[1].token), Fault::status(429).retry_after(4), 1);
    mock.set_fault_times(of(&wns[1].token), Fault::status(406).retry_after(4), 1);
    let throttled: Vec<String> =
        [&fcm[1], &apple[1], &wns[1]].map(|browser| send(&mut client, browser, json!({"payload": "throttled"}))).to_vec();
    for url in ["https://fcm.googleapis.com", "https://wns2-a.notify.windows.com"] {
        wait_origin(&mut client, url, "closed");
    }
    let others: Vec<String> =
        [&fcm[2], &apple[2], &wns[2], &wns_b[2]].map(|browser| send(&mut client, browser, json!({"payload": "other"}))).to_vec();
    assert_eq!(wait_ended(&mut client, &others[1])["accepted"], 1, "Apple means one device");
    let apple_other = time(&mock.received_by(&apple[2])[0]);
    assert!(apple_other < time(&mock.received_by(&fcm[1])[0]) + 4.0, "and its others do not wait");
    for id in throttled.iter().chain(&others) {
        assert_eq!(wait_ended(&mut client, id)["accepted"], 1);
    }
    for (first, waiting) in
        [(&fcm[1], vec![&fcm[1], &fcm[2]]), (&wns[1], vec![&wns[1], &wns[2], &wns_b[2]]), (&apple[1], vec![&apple[1]])]
    {
        let told = time(&mock.received_by(first)[0]) + 4.0;
        for browser in waiting {
            let last = mock.received_by(browser).last().map(time).expect("it arrived");
            assert!(last >= told - GRAIN, "{}: {} s too early", browser.origin, told - last);
            assert!(last < told + 10.0, "{}: {} s too late", browser.origin, last - told);
        }
    }
    let asked = mock.proxy_connects();
    assert!(hosts.iter().all(|host| asked.contains(&format!("{host}:443"))), "{asked:?}");
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

#[test]
fn a_500_is_tried_again_with_backoff() {
    let mock = mock(1);
    let daemon = daemon(&mock, |config| config.set("retry.min", 0.5));
    let mut client = daemon.client();
    let browsers = mock.subscribe(0, 20);
    for status in [500, 502] {
        mock.set_fault_times(of(&browsers[0].token), Fault::status(status), 1);
    }
    // Good answers beside it, so that the origin stays open.
    let requests: Vec<Value> = browsers.iter().rev().map(|browser| send_of(&browser.json(), json!({"payload": "x"}))).collect();
    let id = send_all(&mut client, &requests).pop().expect("an id");
    let ended = wait_ended(&mut client, &id);
    assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(2)), "{ended}");
    let times: Vec<f64> = mock.received_by(&browsers[0]).iter().map(time).collect();
    assert_eq!(times.len(), 3);
    // The n-th wait is drawn between min and min * 2^n; the rest is the machine's.
    for (n, wait) in times.windows(2).map(|pair| pair[1] - pair[0]).enumerate() {
        let most = 0.5 * f64::from(2 << n);
        assert!(wait >= 0.5 - GRAIN && wait < most + 5.0, "wait {n} was {wait} s");
    }
    assert_eq!(origin(&mut client, &mock.origin(0))["state"], "open");
}

#[test]
fn mostly_5xx_closes_the_lane_and_it_is_probed_after_1_2_and_4_seconds() {
    let mock = mock(1);
    // Whoever met a 500 waits longer than the test looks: then what comes are the probes.
    let daemon = daemon(&mock, |config| config.set("retry.min", 15).set("retry.max", 15));
    let mut client = daemon.client();
    mock.set_fault(Scope::Origin(0), Fault::status(500));
    let list = list_of(&mock.subscribe(0, 300), json!({"payload": "x"}));
    let id = id_of(&client.ok(&list));
    wait_origin(&mut client, &mock.origin(0), "closed");
    // What had left is answered.
    assert!(wait(PATIENCE, || mock.counters().origins[0].in_flight == 0));
    let burst = mock.counters().requests;
    assert!(burst <= 32, "the first window is 32, and {burst} went");
    assert!(mock.wait_requests(burst + 3, PATIENCE));
    let all: Vec<f64> = mock.received().iter().map(time).collect();
    let probes = &all[burst as usize - 1..];
    for (n, wait) in probes.windows(2).take(3).map(|pair| pair[1] - pair[0]).enumerate() {
        let expected = f64::from(1 << n);
        assert!(wait > expected * 0.9 && wait < expected + 3.0, "probe {n} came {wait} s after the last request");
    }
    mock.clear_all_faults();
    let ended = wait_ended(&mut client, &id);
    assert_eq!(ended["accepted"], 300, "{ended}");
    assert_eq!(mock.counters().repeats, 0);
}

#[test]
fn what_waited_goes_by_urgency_then_age() {
    let mock = mock(1);
    let one_by_one = |config: fanfare_loadtest::daemon::ConfigBuilder| {
        config.set("deliver.connections_per_origin", 1).set("encrypt.threads", 1)
    };
    let daemon = daemon(&mock, one_by_one);
    let mut client = daemon.client();
    mock.set_fault(Scope::Origin(0), Fault::MaxStreams(1));
    let browsers = mock.subscribe(0, 41);
    mock.set_fault_times(of(&browsers[40].token), Fault::status(503).retry_after(3), 1);
    let first = send(&mut client, &browsers[40], json!({"payload": "first", "urgency": "very-low"}));
    wait_origin(&mut client, &mock.origin(0), "closed");
    let urgencies = ["very-low", "low", "normal", "high"];
    let requests: Vec<Value> = browsers[..40]
        .iter()
        .enumerate()
        .map(|(n, browser)| send_of(&browser.json(), json!({"payload": n.to_string(), "urgency": urgencies[n % 4]})))
        .collect();
    let ids = send_all(&mut client, &requests);
    for id in ids.iter().chain([&first]) {
        assert_eq!(wait_ended(&mut client, id)["accepted"], 1);
    }
    let arrived: Vec<String> = mock.received().iter().skip(1).map(|received| received.text()).collect();
    let mut expected: Vec<String> =
        [3, 2, 1, 0].into_iter().flat_map(|class| (0..40).filter(move |n| n % 4 == class)).map(|n| n.to_string()).collect();
    // The one that was told to wait is the oldest of its lane.
    expected.insert(30, "first".to_owned());
    assert_eq!(arrived, expected);
}
