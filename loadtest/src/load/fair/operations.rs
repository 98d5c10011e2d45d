//! What the flooding app can ask for: the lines of each operation, every one of them valid unless its name says otherwise.

use std::io::Write;
use std::sync::Arc;

use fanfare_loadtest::mock::Members;
use fanfare_loadtest::population::{self, TAGS};

/// Recipients of a line that has many.
const MANY: u64 = 100;

/// What the lines speak of: made once, in the store that every case begins with.
pub struct Known {
    /// The first [`Known::bodies`] have subscribed.
    pub members: Arc<Members>,
    /// A browser's own object for each who has subscribed.
    pub bodies: Vec<String>,
    pub ids: Vec<String>,
    /// Messages that are open for `add`.
    pub streams: Vec<String>,
    /// Paused messages of one recipient.
    pub paused: Vec<String>,
    /// A time hours ahead.
    pub later: String,
}

/// Appends the line of a number, newline included.
pub type Line = Box<dyn Fn(&Known, u64, &mut Vec<u8>) + Send + Sync>;

/// What a connection does with itself.
pub enum Kind {
    /// Nothing is asked: how much the numbers differ by themselves.
    Nothing,
    /// One core is kept busy and the daemon asked nothing: what the machine is too small for.
    Spin,
    /// Line after line.
    Lines(Line),
    /// The first line is the connection's last.
    Once(Line),
    /// Half of the connections have a line that is their last, and the others line after line.
    Both(Line, Line),
    /// So many bytes and never a newline.
    HalfLine(usize),
    /// Bytes without end and never a newline.
    Endless,
    /// Connections and no line, as many as can be had.
    Idle,
    /// Connections that are closed at once.
    Churn,
}

pub struct Operation {
    pub name: &'static str,
    pub kind: Kind,
}

impl Known {
    fn body(&self, number: u64) -> &str {
        &self.bodies[(number % self.bodies.len() as u64) as usize]
    }

    fn id(&self, number: u64) -> &str {
        &self.ids[(number % self.ids.len() as u64) as usize]
    }

    /// An account that somebody has.
    fn account(&self, number: u64) -> String {
        population::account((number % self.bodies.len() as u64) as u32)
    }

    fn many(&self, number: u64) -> String {
        let first = number.wrapping_mul(MANY);
        (first..first + MANY).map(|number| self.body(number)).collect::<Vec<_>>().join(",")
    }
}

/// Which of a list is meant.
fn turn(list: &[String], number: u64) -> &str {
    &list[(number % list.len() as u64) as usize]
}

/// A line after `{"op":`, without the closing brace.
fn op(make: impl Fn(&Known, u64) -> String + Send + Sync + 'static) -> Line {
    Box::new(move |known, number, into| {
        // A Vec takes everything.
        let _ = writeln!(into, "{{\"op\":{}}}", make(known, number));
    })
}

/// The same line again and again.
fn same(line: &'static str) -> Line {
    Box::new(move |_, _, into| {
        into.extend_from_slice(line.as_bytes());
        into.push(b'\n');
    })
}

/// A `send` to one subscription, with more members.
fn send(more: impl Fn(u64) -> String + Send + Sync + 'static) -> Line {
    op(move |known, n| {
        let body = known.body(n);
        format!(r#""send","label":"flood","ttl":3600,"to":{{"subscription":{body}}},"payload":"flood {n}"{}"#, more(n))
    })
}

/// A `send` to a segment, with more members.
fn campaign(segment: impl Fn(u64) -> String + Send + Sync + 'static, more: &'static str) -> Line {
    op(move |_, n| format!(r#""send","label":"flood","ttl":3600,"to":{{"segment":{}}},"payload":"flood {n}"{more}"#, segment(n)))
}

/// All of them, in the order in which they are played.
pub fn all() -> Vec<Operation> {
    use Kind::{Both, Lines, Once};
    let everybody = |_| r#"{"all":true}"#.to_owned();
    let kinds = [
        ("nothing", Kind::Nothing),
        ("spin", Kind::Spin),
        // Messages to few.
        ("send", Lines(send(|_| String::new()))),
        ("send_urgent", Lines(send(|_| r#","urgency":"high""#.to_owned()))),
        (
            "send_many",
            Lines(op(|known, n| {
                format!(r#""send","label":"flood","ttl":3600,"to":{{"subscriptions":[{}]}},"payload":"flood {n}""#, known.many(n))
            })),
        ),
        (
            "send_id",
            Lines(op(|known, n| {
                format!(r#""send","label":"flood","ttl":3600,"to":{{"subscription_ids":["{}"]}},"payload":"flood""#, known.id(n))
            })),
        ),
        (
            "send_account",
            Lines(op(|known, n| {
                format!(r#""send","label":"flood","ttl":3600,"to":{{"accounts":["{}"]}},"payload":"flood""#, known.account(n))
            })),
        ),
        (
            "send_label",
            Lines(op(|known, n| {
                format!(r#""send","label":"flood {n}","ttl":3600,"to":{{"subscription":{}}},"payload":"flood""#, known.body(n))
            })),
        ),
        ("send_idempotent", Lines(send(|n| format!(r#","idempotency_key":"key {n}""#)))),
        (
            "send_topic",
            Lines(op(|known, n| {
                let body = known.body(n % 8);
                format!(r#""send","ttl":3600,"topic":"flood","to":{{"subscription":{body}}},"payload":"flood {n}""#)
            })),
        ),
        ("send_paused", Lines(send(|_| r#","paused":true"#.to_owned()))),
        (
            "send_later",
            Lines(op(|known, n| {
                let (body, later) = (known.body(n), &known.later);
                format!(r#""send","label":"flood","ttl":3600,"at":"{later}","to":{{"subscription":{body}}},"payload":"flood""#)
            })),
        ),
        (
            "send_offline",
            Lines(op(|known, n| {
                // He comes, and then there is something for when he has left.
                let account = known.account(n / 2 * 2);
                if n.is_multiple_of(2) {
                    format!(r#""presence","account":"{account}","state":"online","lease":600"#)
                } else {
                    format!(r#""send","to":{{"accounts":["{account}"]}},"when":"offline","ttl":3600,"payload":"flood""#)
                }
            })),
        ),
        (
            "send_fallback",
            Lines(op(|known, n| {
                let account = known.account(n);
                format!(r#""send","to":{{"accounts":["{account}"]}},"fallback":{{"after":3600}},"ttl":7200,"payload":"flood""#)
            })),
        ),
        // Messages to many.
        ("stream", Lines(op(|_, n| format!(r#""send","label":"flood","to":{{"stream":true}},"payload":"flood {n}""#)))),
        (
            "add",
            Lines(op(|known, n| {
                format!(r#""add","message_id":"{}","subscriptions":[{}]"#, turn(&known.streams, n), known.many(n))
            })),
        ),
        ("campaign", Lines(campaign(everybody, ""))),
        ("campaign_small", Lines(campaign(|n| format!(r#"{{"tags":{{"any":["t{}"]}}}}"#, n % u64::from(TAGS)), ""))),
        ("campaign_nobody", Lines(campaign(|_| r#"{"tags":{"any":["nobody"]}}"#.to_owned(), ""))),
        ("campaign_walk", Lines(campaign(|_| r#"{"attributes":{"nobody":"has"}}"#.to_owned(), ""))),
        ("campaign_paused", Lines(campaign(everybody, r#","paused":true"#))),
        (
            "campaign_later",
            Lines(op(|known, _| {
                let later = &known.later;
                format!(r#""send","label":"flood","ttl":3600,"at":"{later}","to":{{"segment":{{"all":true}}}},"payload":"flood""#)
            })),
        ),
        // What becomes of them.
        ("cancel", Lines(op(|_, n| format!(r#""cancel","label":"cancelled {n}""#)))),
        ("cancel_id", Lines(op(|known, n| format!(r#""cancel","message_id":"{}""#, turn(&known.paused, n))))),
        ("cancel_app", Lines(same(r#"{"op":"cancel","app":"a"}"#))),
        ("pause", Lines(op(|_, n| format!(r#""pause","label":"paused {n}""#)))),
        (
            "pause_resume",
            Lines(op(|_, n| format!(r#""{}","label":"paused {}""#, if n.is_multiple_of(2) { "pause" } else { "resume" }, n / 2))),
        ),
        (
            "pause_id",
            Lines(op(|known, n| {
                let verb = if n.is_multiple_of(2) { "pause" } else { "resume" };
                format!(r#""{verb}","message_id":"{}""#, turn(&known.paused, n / 2))
            })),
        ),
        ("status", Lines(op(|known, n| format!(r#""status","message_id":"{}""#, turn(&known.paused, n))))),
        ("list_messages", Lines(same(r#"{"op":"list_messages","limit":1000}"#))),
        ("list_messages_none", Lines(same(r#"{"op":"list_messages","label":"nobody has it"}"#))),
        ("stats", Lines(same(r#"{"op":"stats","by":["day","label","app","service","key"]}"#))),
        ("origins", Lines(same(r#"{"op":"origins"}"#))),
        // The log.
        ("events", Lines(same(r#"{"op":"events"}"#))),
        ("events_page", Lines(same(r#"{"op":"events","limit":100}"#))),
        ("events_none", Lines(same(r#"{"op":"events","label":"nobody has it"}"#))),
        ("follow", Once(same(r#"{"op":"events","follow":true}"#))),
        ("follow_none", Once(same(r#"{"op":"events","follow":true,"label":"nobody has it"}"#))),
        (
            "follow_live",
            Both(
                same(r#"{"op":"events","after":"newest","follow":true}"#),
                // Cancelling is what makes events.
                op(|known, n| {
                    let label = format!("live {}", n / 2);
                    if n.is_multiple_of(2) {
                        let some = known.many(n / 2);
                        format!(r#""send","label":"{label}","paused":true,"to":{{"subscriptions":[{some}]}},"payload":"live""#)
                    } else {
                        format!(r#""cancel","label":"{label}""#)
                    }
                }),
            ),
        ),
        // The registry.
        (
            "subscribe",
            Lines(Box::new(|known, n, into| {
                let new = known.bodies.len() as u64 + n;
                population::write_subscribe(&known.members, (new % u64::from(known.members.count())) as u32, into);
            })),
        ),
        ("subscribe_again", Lines(op(|known, n| format!(r#""subscribe","subscription":{}"#, known.body(n))))),
        (
            "update",
            Lines(op(|known, n| {
                format!(r#""update_subscription","subscription_id":"{}","tags":["new {}"]"#, known.id(n), n % 1_000)
            })),
        ),
        ("unsubscribe", Lines(op(|known, n| format!(r#""unsubscribe","subscription_id":"{}""#, known.id(n))))),
        ("subscription", Lines(op(|known, n| format!(r#""subscription","subscription_id":"{}","reveal":true"#, known.id(n))))),
        ("account", Lines(op(|known, n| format!(r#""account","account":"{}""#, known.account(n))))),
        ("account_disable", Lines(op(|_, n| format!(r#""account","account":"stranger {n}","enabled":false"#)))),
        ("disabled_accounts", Lines(same(r#"{"op":"disabled_accounts"}"#))),
        ("list", Lines(same(r#"{"op":"list_subscriptions","limit":1000,"reveal":true}"#))),
        ("list_none", Lines(same(r#"{"op":"list_subscriptions","segment":{"attributes":{"nobody":"has"}}}"#))),
        ("count", Lines(same(r#"{"op":"count","segment":{"attributes":{"nobody":"has"}}}"#))),
        ("count_tags", Lines(same(r#"{"op":"count","segment":{"tags":{"any":["half"],"none":["t1"]}}}"#))),
        ("erase", Lines(op(|known, n| format!(r#""erase","subscription_id":"{}""#, known.id(n))))),
        ("erase_account", Lines(op(|known, n| format!(r#""erase","account":"{}""#, known.account(n * 2))))),
        // Who is there.
        ("presence", Lines(op(|_, n| format!(r#""presence","account":"visitor {n}","state":"online","lease":86400"#)))),
        (
            "presence_sessions",
            Lines(op(|_, n| format!(r#""presence","account":"reader-1","state":"online","lease":86400,"session":"{n}""#))),
        ),
        ("mark_read", Lines(op(|known, n| format!(r#""mark_read","account":"{}","topic":"flood""#, known.account(n))))),
        (
            "test_wait",
            Lines(op(|known, n| format!(r#""test","subscription_ids":["{}"],"payload":"flood","wait":60"#, known.id(n)))),
        ),
        // Refused, each with a reply.
        ("feedback_forged", Lines(op(|_, n| format!(r#""feedback","receipt":"{n:059}","type":"shown""#)))),
        ("bad_json", Lines(same("{\"op\":"))),
        ("bad_op", Lines(same(r#"{"op":"fly"}"#))),
        ("backup_refused", Lines(same(r#"{"op":"backup"}"#))),
        // Hardly a request at all.
        ("ping", Lines(same(r#"{"op":"ping"}"#))),
        ("empty_lines", Lines(same(""))),
        ("half_line", Kind::HalfLine(1_000_000)),
        ("endless_line", Kind::Endless),
        ("idle", Kind::Idle),
        ("churn", Kind::Churn),
    ];
    kinds.into_iter().map(|(name, kind)| Operation { name, kind }).collect()
}

#[cfg(test)]
mod tests {
    use fanfare_loadtest::mock::Plan;
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_line_is_a_request_of_its_own() {
        let members = Arc::new(Members::new(Plan { members: 500, keys: 1, ..Plan::default() }, "https://127.0.0.1:1"));
        let bodies = (0..300).map(|number| members.json(number).to_string()).collect();
        let ids = (0..300).map(|number| members.id(number)).collect();
        let texts = |text: &str| vec![text.to_owned()];
        let known = Known { members, bodies, ids, streams: texts("s"), paused: texts("p"), later: "later".to_owned() };
        let mut names = std::collections::BTreeSet::new();
        for operation in all() {
            assert!(names.insert(operation.name), "{} is there twice", operation.name);
            let lines = match &operation.kind {
                Kind::Lines(line) | Kind::Once(line) => vec![line],
                Kind::Both(last, line) => vec![last, line],
                _ => continue,
            };
            for (line, number) in lines.into_iter().flat_map(|line| [0, 1, 299, 300, 1 << 40].map(|number| (line, number))) {
                let mut text = Vec::new();
                line(&known, number, &mut text);
                assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1, "{}", operation.name);
                if !["bad_json", "empty_lines"].contains(&operation.name) {
                    let line: Value = serde_json::from_slice(&text).unwrap_or_else(|_| panic!("{}", operation.name));
                    assert!(line["op"].is_string(), "{}", operation.name);
                }
            }
        }
    }
}
