//! Promise 5 from the side of correctness: whatever a push service does to a connection or a stream, nothing is lost, nothing is sent
//! twice but what is ambiguous, what was not processed is no attempt, and another origin does not notice.

use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::Daemon;
use fanfare_loadtest::machine::{self, Cpu};
use fanfare_loadtest::mock::{Body, Fault, Flood, GoAway, Mock, Scope, Subscription};
use serde_json::{Value, json};

use crate::support::*;

/// Origin 0 is the hostile one, origin 1 the neighbour.
const HOSTILE: Scope = Scope::Origin(0);

struct Pair {
    mock: Mock,
    daemon: Daemon,
    client: Client,
}

fn pair() -> Pair {
    let mock = mock(2);
    let daemon = daemon(&mock, |config| config.set("deliver.timeout", 1).set("retry.min", 0.2).set("retry.max", 1));
    let client = daemon.client();
    Pair { mock, daemon, client }
}

impl Pair {
    /// Sends one message each to `n` browsers of an origin.
    fn send(&mut self, origin: usize, n: usize) -> (Vec<Subscription>, Vec<String>) {
        let browsers = self.mock.subscribe(origin, n);
        let requests: Vec<Value> =
            browsers.iter().map(|browser| send_of(&browser.json(), json!({"payload": browser.token}))).collect();
        let ids = send_all(&mut self.client, &requests);
        (browsers, ids)
    }

    /// The other origin takes messages, without retries, while the first is what it is.
    fn neighbour_is_well(&mut self) {
        let (_, ids) = self.send(1, 50);
        for id in &ids {
            let ended = wait_ended(&mut self.client, id);
            assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "{ended}");
        }
    }

    /// All of them are accepted in the end; gives the sum of their retries.
    fn all_accepted(&mut self, browsers: &[Subscription], ids: &[String]) -> u64 {
        let mut retries = 0;
        for id in ids {
            let ended = wait_ended(&mut self.client, id);
            assert_eq!(ended["accepted"], 1, "{ended}; {}", origin(&mut self.client, &self.mock.origin(0)));
            retries += ended["retries"].as_u64().expect("a number");
        }
        for browser in browsers {
            let taken = self.mock.received_by(browser).iter().filter(|received| received.taken()).count();
            assert!(taken >= 1, "accepted, and never taken");
        }
        assert_eq!(self.mock.counters().violations, Vec::<String>::new());
        retries
    }

    fn repeats(&self) -> u64 {
        self.mock.counters().repeats
    }
}

#[test]
fn a_stalled_service_times_out_and_is_tried_again() {
    let mut pair = pair();
    pair.mock.set_fault_times(HOSTILE, Fault::Stall, 20);
    let (browsers, ids) = pair.send(0, 60);
    pair.neighbour_is_well();
    let retries = pair.all_accepted(&browsers, &ids);
    assert_eq!(retries, 20, "each of the twenty that were not answered left, and is an attempt");
    assert_eq!(pair.repeats(), 0, "the mock took none of those");
}

#[test]
fn reset_streams_are_tried_again() {
    let mut pair = pair();
    for code in [8, 2, 11] {
        pair.mock.set_fault_times(HOSTILE, Fault::Reset(code), 3);
    }
    let (browsers, ids) = pair.send(0, 60);
    pair.neighbour_is_well();
    assert_eq!(pair.all_accepted(&browsers, &ids), 9);
    assert_eq!(pair.repeats(), 0);
}

#[test]
fn refused_streams_are_sent_again_and_are_no_attempt() {
    let mut pair = pair();
    pair.mock.set_fault_times(HOSTILE, Fault::Reset(7), 20);
    let (browsers, ids) = pair.send(0, 60);
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    assert_eq!(pair.mock.counters().requests, 80);
    assert_eq!(pair.repeats(), 0);
}

#[test]
fn a_graceful_goaway_costs_nothing() {
    let mut pair = pair();
    pair.mock.set_fault(HOSTILE, Fault::GoAwayAfter(GoAway { requests: 7, unprocessed: 0, code: 0 }));
    let (browsers, ids) = pair.send(0, 100);
    pair.neighbour_is_well();
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    assert_eq!(pair.repeats(), 0, "what lies at or below the last stream is read to its end");
    assert!(pair.mock.counters().origins[0].connections >= 100 / 7);
}

#[test]
fn what_a_goaway_leaves_out_is_sent_again_and_is_no_attempt() {
    let mut pair = pair();
    pair.mock.set_fault(HOSTILE, Fault::GoAwayAfter(GoAway { requests: 10, unprocessed: 3, code: 0 }));
    let (browsers, ids) = pair.send(0, 100);
    pair.neighbour_is_well();
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    assert_eq!(pair.repeats(), 0);
    assert!(pair.mock.counters().unprocessed > 0, "the fault was played");
}

#[test]
fn an_abrupt_end_repeats_at_most_what_was_in_flight() {
    let mut pair = pair();
    let (browsers, ids) = pair.send(0, 5);
    pair.all_accepted(&browsers, &ids);
    pair.mock.set_fault_times(HOSTILE, Fault::Close, 3);
    let (browsers, ids) = pair.send(0, 200);
    pair.neighbour_is_well();
    pair.all_accepted(&browsers, &ids);
    assert!(pair.repeats() <= 3 * 64, "{} repeats", pair.repeats());
}

#[test]
fn an_answer_that_breaks_off_is_an_answer() {
    let mut pair = pair();
    pair.mock.set_fault_times(HOSTILE, Fault::CloseInAnswer, 1);
    let (browsers, ids) = pair.send(0, 1);
    let ended = wait_ended(&mut pair.client, &ids[0]);
    assert_eq!((&ended["accepted"], &ended["retries"]), (&json!(1), &json!(0)), "its status was 201: {ended}");
    assert_eq!(pair.mock.received_by(&browsers[0]).len(), 1);
    let (browsers, ids) = pair.send(0, 20);
    pair.all_accepted(&browsers, &ids);
}

#[test]
fn one_stream_at_a_time_is_enough() {
    let mut pair = pair();
    pair.mock.set_fault(HOSTILE, Fault::MaxStreams(1));
    let (browsers, ids) = pair.send(0, 100);
    pair.neighbour_is_well();
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    let counters = pair.mock.counters();
    assert!(counters.origins[0].in_flight_peak <= 4, "one a connection: {}", counters.origins[0].in_flight_peak);
    assert_eq!((counters.refused_streams, counters.repeats), (0, 0));
}

#[test]
fn streams_may_become_fewer_at_any_time() {
    let mut pair = pair();
    pair.mock.set_fault(HOSTILE, Fault::late(Duration::from_millis(20)));
    let (mut browsers, mut ids) = pair.send(0, 100);
    for streams in [1, 50, 3] {
        pair.mock.set_fault(HOSTILE, Fault::MaxStreams(streams));
        let (more, of_more) = pair.send(0, 100);
        browsers.extend(more);
        ids.extend(of_more);
    }
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    assert_eq!(pair.repeats(), 0);
}

#[test]
fn http_1_1_is_spoken_where_there_is_no_http_2() {
    let mut pair = pair();
    pair.mock.set_fault(HOSTILE, Fault::Http1Only);
    pair.mock.set_fault(HOSTILE, Fault::GoAwayAfter(GoAway { requests: 7, unprocessed: 0, code: 0 }));
    let (browsers, ids) = pair.send(0, 60);
    pair.neighbour_is_well();
    assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries");
    let received = pair.mock.received();
    let versions = received.iter().map(|received| (received.origin, received.version.as_str()));
    assert!(versions.into_iter().all(|(origin, version)| version == if origin == 0 { "HTTP/1.1" } else { "HTTP/2.0" }));
    assert_eq!(pair.repeats(), 0);
}

#[test]
fn a_redirect_is_never_followed() {
    let mut pair = pair();
    let trap = pair.mock.subscribe(1, 1).remove(0);
    for status in [301, 302, 303, 307, 308] {
        pair.mock.set_fault_times(HOSTILE, Fault::redirect(status, &trap.endpoint), 1);
    }
    let (_, ids) = pair.send(0, 5);
    for id in &ids {
        assert_eq!(wait_ended(&mut pair.client, id)["refused"], 1);
        assert_eq!(event_of(&mut pair.client, id)["reason"], "redirect");
    }
    pair.neighbour_is_well();
    assert_eq!(pair.mock.received_by(&trap).len(), 0);
    assert_eq!(pair.mock.counters().requests, 55);
}

#[test]
fn an_answer_without_end_is_read_as_far_as_it_matters() {
    let mut pair = pair();
    let bodies = [Body::Huge(50_000_000), Body::Endless, Body::Drip { bytes: 1_000_000, interval: Duration::from_millis(5) }];
    for body in &bodies {
        for status in [201, 410] {
            pair.mock.set_fault_times(HOSTILE, Fault::status(status).body(body.clone()), 2);
        }
    }
    let began = Instant::now();
    let (_, ids) = pair.send(0, 12);
    pair.neighbour_is_well();
    let (mut accepted, mut gone) = (0, 0);
    for id in &ids {
        let ended = wait_ended(&mut pair.client, id);
        accepted += ended["accepted"].as_u64().expect("a number");
        gone += ended["gone"].as_u64().expect("a number");
        assert_eq!(ended["retries"], 0, "the status says it all: {ended}");
    }
    assert_eq!((accepted, gone), (6, 6));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    // And the connection, or another one, goes on.
    let (browsers, ids) = pair.send(0, 20);
    pair.all_accepted(&browsers, &ids);
    assert_eq!(pair.repeats(), 0);
}

#[test]
fn a_service_without_tls_or_http_is_closed_and_probed() {
    // Each with what `origins` calls it. A TLS handshake that hangs takes the connect time-out of 10 s.
    for (fault, errors) in
        [(Fault::Untrusted, vec!["tls"]), (Fault::Garbage, vec!["protocol"]), (Fault::TlsStall, vec!["connect_timeout", "tls"])]
    {
        let mut pair = pair();
        pair.mock.set_fault(HOSTILE, fault.clone());
        let (browsers, ids) = pair.send(0, 100);
        pair.neighbour_is_well();
        wait_origin(&mut pair.client, &pair.mock.origin(0), "closed");
        let shown = origin(&mut pair.client, &pair.mock.origin(0));
        assert!(errors.iter().any(|error| shown["last_error"] == *error), "{fault:?}: {shown}");
        assert_eq!(pair.mock.counters().origins[0].requests, 0);
        assert!(pair.mock.counters().origins[0].connections < 10, "it is not hammered");
        pair.mock.clear_all_faults();
        // What condemns the origin is no attempt of the delivery.
        assert_eq!(pair.all_accepted(&browsers, &ids), 0, "retries after {fault:?}");
        assert_eq!(pair.repeats(), 0);
    }
}

/// What a flood may cost the daemon, its reconnects and the neighbour's messages included. A core that reads a flood as fast as it can
/// uses up all of the time.
const FLOOD_CPU: Duration = Duration::from_millis(400);
/// How long a flood is looked at.
const FLOOD_WATCH: Duration = Duration::from_secs(2);
const FLOOD_MEMORY: u64 = 10 << 20;

#[test]
fn frames_that_answer_nothing_end_their_connection_and_cost_next_to_nothing() {
    for flood in Flood::ALL {
        a_flood_is_ended(flood, &[]);
    }
}

#[test]
fn informational_answers_without_end_over_http_1_1_end_their_connection_and_cost_next_to_nothing() {
    a_flood_is_ended(Flood::Informational, &[Fault::Http1Only]);
}

fn a_flood_is_ended(flood: Flood, beside: &[Fault]) {
    // Nothing but the count of what comes ends it: the time-out is far away.
    let mock = mock(2);
    let daemon = daemon(&mock, |config| config.set("deliver.timeout", 30).set("retry.min", 0.2).set("retry.max", 1));
    let client = daemon.client();
    let mut pair = Pair { mock, daemon, client };
    // The neighbour's connection and all that is allocated once are there.
    pair.neighbour_is_well();
    pair.neighbour_is_well();
    beside.iter().for_each(|fault| pair.mock.set_fault(HOSTILE, fault.clone()));
    pair.mock.set_fault(HOSTILE, Fault::Flood(flood));
    machine::reset_peak(pair.daemon.pid()).expect("it is the test's own process");
    let before = used(&pair.daemon);
    let began = Instant::now();
    let (_, ids) = pair.send(0, 3);
    let ended = fanfare_loadtest::wait(Duration::from_secs(2), || {
        let now = pair.mock.counters().origins[0].clone();
        now.connections > 0 && now.connections_open < now.connections
    });
    assert!(ended, "{flood:?} goes on");
    pair.neighbour_is_well();
    std::thread::sleep(FLOOD_WATCH.saturating_sub(began.elapsed()));
    let after = used(&pair.daemon);
    let (cpu, memory) = (after.0 - before.0, after.1.saturating_sub(before.1));
    println!("{flood:?}: {cpu:?} of CPU in {:?}, {} KiB more at the peak", began.elapsed(), memory >> 10);
    assert!(cpu < FLOOD_CPU, "{flood:?} costs {cpu:?}");
    assert!(memory < FLOOD_MEMORY, "{flood:?} takes {memory} B");
    assert!(pair.mock.counters().origins[0].connections < 12, "{flood:?}: it is not hammered");
    // Nothing is lost.
    pair.mock.clear_all_faults();
    for id in &ids {
        assert_eq!(wait_ended(&mut pair.client, id)["accepted"], 1, "{flood:?}");
    }
}

/// CPU time of the daemon, and the peak of its resident memory in bytes.
fn used(daemon: &Daemon) -> (Duration, u64) {
    let Cpu { user, system } = Cpu::of(daemon.pid()).expect("it runs");
    (user + system, machine::status_bytes(daemon.pid(), "VmHWM").expect("it runs"))
}
