//! What a line costs before it reaches the writer: reading, checking, and the parts that were suspected to be dear.

mod fixture;

use std::hint::black_box;

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use fanfare::endpoint::{AllowedHost, EndpointPolicy, Policy};
use fanfare::ingest::line::{Rules, parse};
use fanfare::message::Service;
use fanfare::protocol::json::read_line;
use fanfare::protocol::keys::decode_point;

use self::fixture::{NOW, POINT};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ENDPOINTS: [(&str, &str); 4] = [
    (
        "fcm",
        "https://fcm.googleapis.com/fcm/send/dQw4w9WgXcQ:APA91bGv5Rk2q0nA7yTt3mB8sVxJ4ZcLhPqWdEfUiOoKl1-_MnBvCxZaSdFgHjKlQwErTyUiOpAsDfGhJkLzXcVbNm1234567890abcdefghijklmnopqrstuv",
    ),
    (
        "mozilla",
        "https://updates.push.services.mozilla.com/wpush/v2/gAAAAABnPq0Zr3n7Qw8Xy1Zt5Vb9Nm2Kl4Jh6Gf8Ds0Aa3Ss5Dd7Ff9Gg1Hh3Jj5Kk7Ll9Zz1Xx3Cc5Vv7Bb9Nn1Mm==",
    ),
    (
        "wns",
        "https://wns2-par02p.notify.windows.com/w/?token=BQYAAAB%2fQ8zXyT1vB3nM5kL7jH9gF1dS3aP5oI7uY9tR1eW3qZ5xC7vB9nM1kL3j%2bH5gF7dS9a%3d",
    ),
    ("mock", "https://127.0.0.1:44300/push/0123456789abcdef0123456789abcdef"),
];

fn main() {
    divan::main();
}

fn policy() -> EndpointPolicy {
    EndpointPolicy::new(Policy::Known, vec![(AllowedHost { host: "127.0.0.1".to_owned(), port: None }, Service::FIRST_ALLOWED)])
}

fn rules() -> Rules {
    fixture::rules(policy())
}

fn subscription(n: usize) -> String {
    let (_, endpoint) = ENDPOINTS[0];
    format!(
        r#"{{"endpoint":"{endpoint}{n}","expirationTime":null,"keys":{{"p256dh":"{POINT}","auth":"BTBZMqHH6r4Tts7J_aSIgg"}}}}"#
    )
}

/// One recipient, own body: 600 bytes.
fn single(more: &str) -> String {
    let start = format!(
        r#"{{"op":"send","id":1,"to":{{"subscription":{}}},"urgency":"high","ttl":3600{more},"payload":""#,
        subscription(0)
    );
    format!("{start}{}\"}}", "a".repeat(598 - start.len()))
}

#[divan::bench]
fn line_with_one_recipient(bencher: Bencher) {
    let (line, rules) = (single(""), rules());
    assert!(parse(line.as_bytes(), &rules, NOW).1.is_ok());
    bencher.counter(BytesCount::of_str(&line)).bench_local(|| parse(black_box(line.as_bytes()), &rules, NOW));
}

#[divan::bench]
fn line_with_an_idempotency_key(bencher: Bencher) {
    let (line, rules) = (single(r#","idempotency_key":"0123456789abcdef""#), rules());
    assert!(parse(line.as_bytes(), &rules, NOW).1.is_ok());
    bencher.counter(BytesCount::of_str(&line)).bench_local(|| parse(black_box(line.as_bytes()), &rules, NOW));
}

#[divan::bench(args = [64, 1_024])]
fn recipients_of_a_list(bencher: Bencher, recipients: usize) {
    let list: Vec<String> = (0..recipients).map(subscription).collect();
    let line = format!(r#"{{"op":"send","to":{{"subscriptions":[{}]}},"payload":"news"}}"#, list.join(","));
    let rules = rules();
    assert!(parse(line.as_bytes(), &rules, NOW).1.is_ok());
    bencher.counter(ItemsCount::new(recipients)).bench_local(|| parse(black_box(line.as_bytes()), &rules, NOW));
}

#[divan::bench]
fn json_alone(bencher: Bencher) {
    let line = single("");
    bencher.counter(BytesCount::of_str(&line)).bench_local(|| read_line(black_box(&line)).members.is_ok());
}

#[divan::bench]
fn point_on_the_curve(bencher: Bencher) {
    bencher.bench_local(|| decode_point(black_box(POINT)));
}

#[divan::bench(args = ENDPOINTS.map(|(name, _)| name))]
fn endpoint(bencher: Bencher, name: &str) {
    let policy = policy();
    let (_, text) = ENDPOINTS.iter().find(|(other, _)| *other == name).expect("one of the names");
    assert!(policy.check(text).is_ok());
    bencher.bench_local(|| policy.check(black_box(text)));
}
