//! The common `send`, read in one pass: to one subscription, with members that most applications give, none of them spelled in an
//! unusual way.
//!
//! Promises: what it takes is judged as the general way judges it, because both give what they have read to the same checks; what
//! it does not take, it leaves to the general way from the first byte on. So it never says what is wrong with a line's JSON, and
//! need not know: it gives up. What it saves is the tree: a name is compared once, where it stands, and values are slices of the
//! line, but for a payload that is an object.

use std::borrow::Cow;

use super::fields::{missing, within};
use super::fingerprint::fingerprint;
use super::{Rules, send, subscription};
use crate::limits::REQUEST_ID_MAX;
use crate::message::UnixMillis;
use crate::protocol::json::{Members, Value, plain_until, read_member};
use crate::protocol::request::{Problem, Request, RequestId, Send, Subscriptions, To};

/// Reads and checks a common `send`. None: the general way is to do it.
pub(super) fn parse(text: &str, rules: &Rules, now: UnixMillis) -> Option<(RequestId, Result<Request, Problem>)> {
    // Filled where it stands: it is too large to be handed around.
    let mut common = Common::default();
    let mut reader = Reader { text, bytes: text.as_bytes(), at: 0 };
    reader.skip_space();
    reader.send(&mut common)?;
    reader.skip_space();
    let whole = reader.at == reader.bytes.len();
    let is_send = matches!(&common.op, Some(Value::Text(op)) if op == "send");
    if !whole || !is_send || !common.has_to {
        return None;
    }
    Some((common.id.map(Box::from), common.send(rules, now).map(|send| Request::Send(Box::new(send)))))
}

/// The members of a common `send`; null is kept, so that a second one is noticed.
#[derive(Default)]
struct Common<'a> {
    /// As it was written.
    id: Option<&'a str>,
    op: Slot<'a>,
    payload: Slot<'a>,
    notification: Slot<'a>,
    ttl: Slot<'a>,
    urgency: Slot<'a>,
    topic: Slot<'a>,
    app: Slot<'a>,
    idempotency_key: Slot<'a>,
    label: Slot<'a>,
    reference: Slot<'a>,
    has_to: bool,
    // Of `to.subscription`.
    endpoint: Slot<'a>,
    expiration: Slot<'a>,
    encoding: Slot<'a>,
    server_key: Slot<'a>,
    own_reference: Slot<'a>,
    has_keys: bool,
    // Of `to.subscription.keys`.
    p256dh: Slot<'a>,
    auth: Slot<'a>,
}

/// None until the member is met.
type Slot<'a> = Option<Value<'a>>;

impl<'a> Common<'a> {
    /// Checks what was read, as [`send::send`] does.
    fn send(&mut self, rules: &Rules, now: UnixMillis) -> Result<Send, Problem> {
        let given = send::Given {
            payload: present(&self.payload),
            notification: present(&self.notification),
            ttl: present(&self.ttl),
            urgency: present(&self.urgency),
            topic: present(&self.topic),
            app: present(&self.app),
            idempotency_key: present(&self.idempotency_key),
            label: present(&self.label),
            reference: present(&self.reference),
            ..send::Given::default()
        };
        let mut send = given.send(rules, now, |judge| {
            let given = subscription::Given {
                endpoint: present(&self.endpoint),
                expiration: present(&self.expiration),
                encoding: present(&self.encoding),
                server_key: present(&self.server_key),
                own_reference: present(&self.own_reference),
                attributes: None,
            };
            let keys = || if self.has_keys { Ok([present(&self.p256dh), present(&self.auth)]) } else { Err(missing("keys")) };
            let recipient = judge.given(given, keys).map_err(|problem| within(problem, "to.subscription"))?;
            Ok(To::Subscriptions(Subscriptions { good: vec![recipient], rejected: Vec::new() }))
        })?;
        if send.idempotency_key.is_some() {
            send.fingerprint = fingerprint(&self.take_members());
        }
        Ok(send)
    }

    /// The tree after all, for what identifies a request.
    fn take_members(&mut self) -> Members<'a> {
        let keys = object([("p256dh", self.p256dh.take()), ("auth", self.auth.take())]);
        let subscription = object([
            ("endpoint", self.endpoint.take()),
            ("expirationTime", self.expiration.take()),
            ("contentEncoding", self.encoding.take()),
            ("applicationServerKey", self.server_key.take()),
            ("ref", self.own_reference.take()),
            ("keys", Some(keys)),
        ]);
        members([
            ("op", self.op.take()),
            ("payload", self.payload.take()),
            ("notification", self.notification.take()),
            ("ttl", self.ttl.take()),
            ("urgency", self.urgency.take()),
            ("topic", self.topic.take()),
            ("app", self.app.take()),
            ("label", self.label.take()),
            ("ref", self.reference.take()),
            ("to", Some(object([("subscription", Some(subscription))]))),
        ])
    }
}

/// Null equals absent.
fn present<'v, 'a>(slot: &'v Slot<'a>) -> Option<&'v Value<'a>> {
    slot.as_ref().filter(|value| !matches!(value, Value::Null))
}

fn object<'a, const N: usize>(slots: [(&'static str, Slot<'a>); N]) -> Value<'a> {
    Value::Object(members(slots))
}

fn members<'a, const N: usize>(slots: [(&'static str, Slot<'a>); N]) -> Members<'a> {
    slots.into_iter().filter_map(|(name, slot)| Some((Cow::Borrowed(name), slot?))).collect()
}

/// Every function gives None where it gives up.
struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn send(&mut self, common: &mut Common<'a>) -> Option<()> {
        self.object(|reader, name| {
            let slot = match name {
                b"to" => {
                    once(&mut common.has_to)?;
                    return reader.to(common);
                }
                b"id" => {
                    let from = reader.at;
                    let scalar = reader.scalar()?;
                    let id = &reader.text[from..reader.at];
                    // A null is no id, and the one that is too long is not repeated.
                    let usual = scalar != Value::Null && id.len() <= REQUEST_ID_MAX;
                    return (usual && common.id.replace(id).is_none()).then_some(());
                }
                b"payload" => return put(&mut common.payload, reader.any()?),
                b"notification" => return put(&mut common.notification, reader.any()?),
                b"op" => &mut common.op,
                b"ttl" => &mut common.ttl,
                b"urgency" => &mut common.urgency,
                b"topic" => &mut common.topic,
                b"app" => &mut common.app,
                b"idempotency_key" => &mut common.idempotency_key,
                b"label" => &mut common.label,
                b"ref" => &mut common.reference,
                _ => return None,
            };
            put(slot, reader.scalar()?)
        })
    }

    /// An object with nothing but a `subscription`.
    fn to(&mut self, common: &mut Common<'a>) -> Option<()> {
        let mut met = false;
        self.object(|reader, name| {
            (name == b"subscription").then_some(())?;
            once(&mut met)?;
            reader.subscription(common)
        })
    }

    fn subscription(&mut self, common: &mut Common<'a>) -> Option<()> {
        self.object(|reader, name| {
            let slot = match name {
                b"keys" => {
                    once(&mut common.has_keys)?;
                    return reader.keys(common);
                }
                b"endpoint" => &mut common.endpoint,
                b"expirationTime" => &mut common.expiration,
                b"contentEncoding" => &mut common.encoding,
                b"applicationServerKey" => &mut common.server_key,
                b"ref" => &mut common.own_reference,
                _ => return None,
            };
            put(slot, reader.scalar()?)
        })
    }

    fn keys(&mut self, common: &mut Common<'a>) -> Option<()> {
        self.object(|reader, name| {
            let slot = match name {
                b"p256dh" => &mut common.p256dh,
                b"auth" => &mut common.auth,
                _ => return None,
            };
            put(slot, reader.scalar()?)
        })
    }

    /// An object that is not empty. `each` reads the value of the member whose name it is given.
    fn object(&mut self, mut each: impl FnMut(&mut Self, &[u8]) -> Option<()>) -> Option<()> {
        self.byte(b'{')?;
        loop {
            self.skip_space();
            let name = self.string()?;
            self.skip_space();
            self.byte(b':')?;
            self.skip_space();
            each(self, name.as_bytes())?;
            self.skip_space();
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => {
                    self.at += 1;
                    return Some(());
                }
                _ => return None,
            }
        }
    }

    /// A scalar, or what the reader of trees makes of an object or array.
    fn any(&mut self) -> Option<Value<'a>> {
        if !matches!(self.peek()?, b'{' | b'[') {
            return self.scalar();
        }
        let (value, behind) = read_member(self.text, self.at)?;
        self.at = behind;
        Some(value)
    }

    /// A string without escapes, an integer, or a word.
    fn scalar(&mut self) -> Option<Value<'a>> {
        match self.peek()? {
            b'"' => Some(Value::Text(Cow::Borrowed(self.string()?))),
            b'1'..=b'9' => {
                let from = self.at;
                while self.peek()?.is_ascii_digit() {
                    self.at += 1;
                }
                // Another number than an integer goes on with what ends no member.
                Some(Value::Number(&self.text[from..self.at]))
            }
            b'n' => self.word("null", Value::Null),
            b't' => self.word("true", Value::Bool(true)),
            b'f' => self.word("false", Value::Bool(false)),
            _ => None,
        }
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Option<Value<'a>> {
        let rest = self.bytes.get(self.at..)?;
        rest.starts_with(word.as_bytes()).then(|| {
            self.at += word.len();
            value
        })
    }

    fn string(&mut self) -> Option<&'a str> {
        self.byte(b'"')?;
        let from = self.at;
        self.at = plain_until(self.bytes, from);
        let text = &self.text[from..self.at];
        self.byte(b'"')?;
        Some(text)
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
        }
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }
}

/// None if the member was met before.
fn put<'a>(slot: &mut Slot<'a>, value: Value<'a>) -> Option<()> {
    if slot.is_some() {
        return None;
    }
    *slot = Some(value);
    Some(())
}

/// None if it was met before.
fn once(met: &mut bool) -> Option<()> {
    (!std::mem::replace(met, true)).then_some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::super::parse_by_tree;
    use super::super::testing::*;
    use super::*;

    fn takes(line: &str) -> bool {
        parse(line, &rules(), NOW).is_some()
    }

    #[test]
    fn common_lines_are_taken() {
        let full = format!(
            r#" {{ "id" : 1, "ref": "r", "label":"ż","idempotency_key":"k","ttl":60 ,"urgency":"high","topic":"t","app":"shop","op":"send",
               "payload" : {{"a":[1.50,{{"b":"\u017c"}}]}}, "to":{{"subscription":{}}}}}{}"#,
            s(r#","ref":7,"contentEncoding":"aesgcm""#),
            "\r"
        );
        let odd_order = format!(
            r#"{{"to":{{"subscription":{{"keys":{{"auth":"{AUTH}","p256dh":"{POINT}"}},"endpoint":"{FCM}"}}}},"op":"send","id":"a"}}"#
        );
        for line in [
            line(""),
            full,
            odd_order,
            line(r#","payload":"text""#),
            line(r#","notification":{"title":"t","navigate":"https://e.com/"}"#),
            line(r#","payload":null,"ttl":null,"id":true"#),
            // What is wrong with a value, both ways tell.
            line(r#","ttl":99999999999,"id":7"#),
            line(r#","topic":"?""#),
            line("").replace(POINT, "AAAA"),
        ] {
            assert!(takes(&line), "{line}");
            assert_eq!(
                super::super::parse(line.as_bytes(), &rules(), NOW),
                parse_by_tree(line.as_bytes(), &rules(), NOW),
                "{line}"
            );
        }
    }

    #[test]
    fn what_is_unusual_is_left_alone() {
        let long = "a".repeat(REQUEST_ID_MAX);
        for line in [
            String::new(),
            "{}".to_owned(),
            r#"{"op":"ping"}"#.to_owned(),
            line("") + "x",
            line(r#","label":"\u0061""#),
            line(r#","l\u0061bel":"a""#),
            line(r#","ttl":1.5"#),
            line(r#","ttl":1e3"#),
            line(r#","ttl":0"#),
            line(r#","ttl":-1"#),
            line(r#","ttl":01"#),
            line(r#","ttl":1,"ttl":1"#),
            line(r#","ttl":null,"ttl":1"#),
            line(r#","to":{"stream":true}"#),
            line(r#","payload":{"a":1,"a":2}"#),
            line(r#","rate":5"#),
            line(r#","odd":null"#),
            line(r#","id":null"#),
            line(r#","id":[1]"#),
            line(&format!(r#","id":"{long}""#)),
            line(","),
            line("").replace("\"op\":\"send\",", ""),
            line("").replace("send", "test"),
            line("").replace("\"keys\"", "\"odd\":1,\"keys\""),
            line("").replace(&format!("\"{AUTH}\""), "{}"),
            line("").replace(&format!("\"{AUTH}\""), &format!("\"{AUTH}\",\"auth\":null")),
        ] {
            assert!(!takes(&line), "{line}");
        }
    }

    /// A member's text, mostly a good one.
    fn member(name: &'static str, good: &[&str]) -> impl Strategy<Value = String> + use<> {
        let good: Vec<String> = good.iter().map(|text| (*text).to_owned()).collect();
        let odd = select(vec![
            "null",
            "true",
            "0",
            "-1",
            "60.5",
            "1e2",
            "7",
            "\"\"",
            "\"\\u0061\"",
            "\"ż\"",
            "[]",
            "{}",
            "{\"a\":1,\"a\":2}",
        ]);
        prop_oneof![8 => select(good), 1 => odd.prop_map(str::to_owned)].prop_map(move |value| format!("\"{name}\":{value}"))
    }

    /// Some of these members in any order, with spaces here and there, now and then one of them twice.
    fn object(members: Vec<(u32, BoxedStrategy<String>)>) -> BoxedStrategy<String> {
        let some: Vec<_> = members
            .into_iter()
            .map(|(present, member)| prop_oneof![present => member.prop_map(Some), 1 => Just(None)].boxed())
            .collect();
        let space = select(vec!["", "", "", "", " ", "\t\r\n "]);
        (some, any::<u64>(), space, 0..40u8)
            .prop_map(|(some, mut order, space, twice)| {
                let mut left: Vec<String> = some.into_iter().flatten().collect();
                if twice == 0
                    && let Some(first) = left.first().cloned()
                {
                    left.push(first);
                }
                let mut members = Vec::new();
                while !left.is_empty() {
                    members.push(left.remove((order % left.len() as u64) as usize));
                    order = order.rotate_right(7);
                }
                format!("{{{space}{}{space}}}", members.join(&format!("{space},{space}")).replacen(':', &format!("{space}:"), 1))
            })
            .boxed()
    }

    fn lines() -> impl Strategy<Value = String> {
        let quoted = |text: &str| format!("\"{text}\"");
        let keys = object(vec![
            (60, member("p256dh", &[&quoted(POINT), &quoted(OTHER_POINT)]).boxed()),
            (60, member("auth", &[&quoted(AUTH)]).boxed()),
            (1, member("odd", &["1"]).boxed()),
        ]);
        let in_named =
            |name: &'static str, object: BoxedStrategy<String>| object.prop_map(move |object| format!("\"{name}\":{object}"));
        let subscription = object(vec![
            (60, member("endpoint", &[&quoted(FCM), "\"https://web.push.apple.com/b\"", "\"https://example.com/\""]).boxed()),
            (2, member("expirationTime", &["null", "1795343400001", "1"]).boxed()),
            (60, in_named("keys", keys).boxed()),
            (1, member("ref", &["\"r\"", "5"]).boxed()),
            (1, member("contentEncoding", &["\"aesgcm\"", "\"aes128gcm\""]).boxed()),
            (1, member("applicationServerKey", &[&quoted(POINT)]).boxed()),
        ]);
        let to = object(vec![(200, in_named("subscription", subscription).boxed())]);
        object(vec![
            (60, member("op", &["\"send\""]).boxed()),
            (60, in_named("to", to).boxed()),
            (1, member("id", &["1", "\"a\"", "true"]).boxed()),
            (4, member("payload", &["\"text\"", "{\"n\":1.50,\"s\":[null, \"\\u017c\"]}", "[1]"]).boxed()),
            (1, member("ttl", &["60", "3600", "99999999"]).boxed()),
            (1, member("urgency", &["\"high\"", "\"low\"", "\"soon\""]).boxed()),
            (1, member("topic", &["\"t\""]).boxed()),
            (1, member("app", &["\"shop\"", "\"default\"", "\"other\""]).boxed()),
            (1, member("idempotency_key", &["\"k\"", "\"0123456789abcdef\""]).boxed()),
            (1, member("label", &["\"news\""]).boxed()),
            (1, member("ref", &["\"42\""]).boxed()),
        ])
    }

    fn same(line: &[u8]) -> Result<(), TestCaseError> {
        let rules = rules();
        prop_assert_eq!(super::super::parse(line, &rules, NOW), parse_by_tree(line, &rules, NOW));
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn both_ways_agree(line in lines()) {
            same(line.as_bytes())?;
        }

        /// What is damaged in one or two places, by a byte that JSON is made of, or any.
        #[test]
        fn both_ways_agree_on_damaged_lines(
            line in lines(),
            damage in proptest::collection::vec(
                (any::<usize>(), prop_oneof![select(br#"{}[]:,"\ 0n-.e"#.to_vec()), any::<u8>()], 0..3u8), 1..3),
        ) {
            let mut line = line.into_bytes();
            for (at, byte, how) in damage {
                let at = at % line.len();
                match how {
                    0 => line[at] = byte,
                    1 => line.insert(at, byte),
                    _ => drop(line.remove(at)),
                }
            }
            same(&line)?;
        }

        #[test]
        fn both_ways_agree_on_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            same(&bytes)?;
        }
    }
}
