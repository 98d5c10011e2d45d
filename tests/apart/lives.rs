//! What an app does in its life: every operation with every member, and something of each kind left waiting.
//!
//! Both apps live the same life with names, browsers, ids and cursors of their own, so that each line of the one has its like in the
//! life of the other. In a line `$` is the app's name, `#3` its browser of that number, `##66` its first 66 browsers, `endpoint#3` and
//! `id#3` name one, `receipt#3` is in what that browser had last, and `@name/member` is in the answer to the line with that `id`.

use std::collections::BTreeMap;
use std::time::Duration;

use fanfare_loadtest::mock::{Mock, Subscription, subscription_id};
use serde_json::{Value, json};

use crate::world::World;

/// Browsers that an app's life needs.
pub const BROWSERS: usize = 66;
/// The one that the push service says is gone.
pub const GONE: usize = 7;

/// An empty line waits until all is at rest.
const DO: &str = r###"
{"op":"cancel","app":"$"}
{"op":"pause","app":"$"}
{"op":"resume","app":"$","rate":9000}
{"op":"vapid_public_key","app":"$","id":"keys"}
{"op":"subscribe","app":"$","subscription":{"#":0,"applicationServerKey":"@keys/public_key","ref":"$-row","attributes":{"$-size":"$-large"},"contentEncoding":"aes128gcm","expirationTime":4102444800000},"account":"$-account-0","name":"$-phone","user_agent":"$-browser","scopes":["$-scope"],"tags":["$-tag"],"attributes":{"$-language":"$-pl"},"confirm":{"payload":"$-welcome"}}
{"op":"subscribe","subscription":{"#":1,"applicationServerKey":"@keys/other_keys/0"},"account":"$-account-0","tags":["$-tag","$-tag-2"]}
{"op":"subscribe","subscription":"#2","account":"$-account-1","scopes":["$-scope"]}
{"op":"subscribe","subscription":"#3","account":"$-account-2"}
{"op":"subscribe","subscription":"#4","replaces":"endpoint#3","confirm":{"notification":{"title":"$-title","navigate":"https://$.example/"},"app_badge":7,"mutable":true}}
{"op":"subscribe","subscription":"#5","replaces":"id#4","confirm":{"payload_base64":"c2hvcA"}}
{"op":"subscribe","subscription":"#6"}
{"op":"subscribe","subscription":"#8","account":"$-erased"}
{"op":"update_subscription","subscription_id":"id#2","enabled":false,"name":"$-tablet","account":"$-account-1","scopes":["$-scope","$-scope-2"],"tags":["$-tag-2"],"attributes":{"$-language":"$-de"}}
{"op":"account","account":"$-closed-0","app":"$","enabled":false}
{"op":"account","account":"$-closed-1","enabled":false}
{"op":"presence","account":"$-account-0","app":"$","state":"online","lease":9000,"session":"$-session"}
{"op":"presence","account":"$-account-1","state":"offline"}
{"op":"unsubscribe","endpoint":"endpoint#6"}
{"op":"erase","account":"$-erased","app":"$"}

{"op":"send","to":{"segment":{"all":true}},"label":"$-campaign","template":true,"payload":{"text":"{{$-language|x}}"}}

{"op":"subscribe","subscription":"#7","account":"$-gone"}
{"op":"send","to":{"subscription":"#7"},"label":"$-gone","payload":"$"}

{"op":"send","id":"single","app":"$","to":{"subscription":"#0"},"paused":true,"label":"$-label","ref":"$-ref","topic":"$-topic","idempotency_key":"$-key","ttl":86400,"urgency":"high","payload":"$-payload"}
{"op":"send","id":"list","to":{"subscriptions":"##66"},"paused":true,"label":"$-label","spread":80000,"payload_base64":"c2hvcA"}
{"op":"send","id":"stream","to":{"stream":true},"paused":true,"label":"$-stream","rate":9000,"payload":["$"]}
{"op":"add","message_id":"@stream/message_id","subscriptions":["#10","#11"],"position":"$-position-1"}
{"op":"add","message_id":"@stream/message_id","subscriptions":["#12"],"position":"$-position-2","previous":"$-position-1"}
{"op":"send","id":"closed","to":{"stream":true},"label":"$-stream","payload":"$"}
{"op":"add","message_id":"@closed/message_id","subscriptions":["#13"],"position":4100}
{"op":"close","message_id":"@closed/message_id","position":4200,"previous":4100}
{"op":"send","id":"campaign","to":{"segment":{"all":true,"tags":{"any":["$-tag"],"all":["$-tag"],"none":["$-tag-3"]},"attributes":{"$-language":"$-pl"}}},"paused":true,"scope":"$-scope","label":"$-campaign","payload":"$"}
{"op":"send","id":"later","to":{"subscription_ids":["id#0","id#1"]},"at":"tomorrow","label":"$-later","payload":"$"}
{"op":"send","to":{"accounts":["$-account-0"],"devices":"latest"},"when":"offline","topic":"$-topic-2","payload":"$"}
{"op":"send","id":"fallback","to":{"accounts":["$-account-0","$-account-1"]},"paused":true,"fallback":{"after":9000},"payload":"$"}
{"op":"send","to":{"accounts":["$-nobody"]},"fallback":{"after":9000},"ref":"$-order","payload":"$"}
{"op":"send","id":"receipts","to":{"subscriptions":[{"#":20,"applicationServerKey":"@keys/public_key","ref":"$-row","attributes":{"$-size":"$-large"},"contentEncoding":"aes128gcm","expirationTime":4102444800000},"#21"]},"receipts":true,"payload":{"text":"$"}}
{"op":"pause","label":"$-held"}
{"op":"send","id":"held","to":{"subscription":"#1"},"label":"$-held","payload":"$"}
{"op":"send","id":"cancelled","to":{"subscription":"#1"},"label":"$-cancelled","paused":true,"payload":"$"}
{"op":"pause","message_id":"@cancelled/message_id"}
{"op":"cancel","label":"$-cancelled"}
{"op":"send","to":{"subscription":{"#":22,"applicationServerKey":"@keys/public_key","ref":"$-row","attributes":{"$-size":"$-large"},"contentEncoding":"aes128gcm","expirationTime":4102444800000}},"notification":{"title":"$-title","navigate":"https://$.example/"},"app_badge":7,"mutable":true}
{"op":"test","app":"$","subscription_ids":["id#0"],"wait":0,"payload":"$"}
{"op":"test","account":"$-account-0","notification":{"title":"$-title","navigate":"https://$.example/"},"app_badge":7,"mutable":true}
{"op":"test","account":"$-account-0","payload_base64":"c2hvcA"}
{"op":"mark_read","account":"$-account-2","app":"$","topic":"$-topic-3"}
{"op":"mark_read","account":"$-account-2","message_id":"@closed/message_id"}

{"op":"feedback","receipt":"receipt#20","type":"shown"}
{"op":"drain","on":false}
{"op":"backup","name":"$-backup"}
{"op":"reload"}
"###;

/// What an app can learn of itself.
const LOOK: &str = r###"
{"op":"status","message_id":"@single/message_id"}
{"op":"status","message_id":"@list/message_id"}
{"op":"status","message_id":"@stream/message_id"}
{"op":"status","message_id":"@closed/message_id"}
{"op":"status","message_id":"@campaign/message_id"}
{"op":"status","message_id":"@later/message_id"}
{"op":"status","message_id":"@fallback/message_id"}
{"op":"status","message_id":"@receipts/message_id"}
{"op":"status","message_id":"@held/message_id"}
{"op":"status","message_id":"@cancelled/message_id"}
{"op":"list_messages","limit":1000}
{"op":"list_messages","limit":1000,"state":"paused","label":"$-label"}
{"op":"list_messages","id":"messages","limit":1}
{"op":"list_messages","after":"@messages/after"}
{"op":"events","limit":100000}
{"op":"events","after":"oldest","types":["gone","cancelled","skipped","unreachable","shown"],"app":"$"}
{"op":"events","label":"$-gone","account":"$-gone"}
{"op":"events","label":"$-gone","last":1000}
{"op":"events","subscription_id":"id#7"}
{"op":"events","message_id":"@cancelled/message_id"}
{"op":"events","id":"middle","limit":1}
{"op":"events","after":"@middle/cursor"}
{"op":"events","after":"@middle/cursor","follow":true}
{"op":"stats","by":["day","label","app","service","key"],"from":"1970-01-01","to":"2199-01-01"}
{"op":"origins"}
{"op":"ping"}
{"op":"vapid_public_key"}
{"op":"subscription","endpoint":"endpoint#0","reveal":true}
{"op":"subscription","subscription_id":"id#1"}
{"op":"account","account":"$-account-0"}
{"op":"account","account":"$-closed-0"}
{"op":"list_subscriptions","limit":1000,"reveal":true}
{"op":"list_subscriptions","account":"$-account-0","app":"$"}
{"op":"list_subscriptions","segment":{"all":true,"tags":{"any":["$-tag"],"all":["$-tag"],"none":["$-tag-3"]},"attributes":{"$-language":"$-pl"}}}
{"op":"list_subscriptions","id":"subscriptions","limit":1}
{"op":"list_subscriptions","after":"@subscriptions/after"}
{"op":"disabled_accounts","app":"$","limit":1000}
{"op":"disabled_accounts","id":"disabled","limit":1}
{"op":"disabled_accounts","after":"@disabled/after"}
{"op":"count"}
{"op":"count","segment":{"all":true,"tags":{"any":["$-tag"],"all":["$-tag"],"none":["$-tag-3"]},"attributes":{"$-language":"$-pl"}},"scope":"$-scope","app":"$"}
"###;

/// An app uses what waits, uses names for the first time, and removes what it has.
const USE: &str = r###"
{"op":"send","id":"single","app":"$","to":{"subscription":"#0"},"paused":true,"label":"$-label","ref":"$-ref","topic":"$-topic","idempotency_key":"$-key","ttl":86400,"urgency":"high","payload":"$-payload"}
{"op":"add","message_id":"@stream/message_id","subscriptions":["#14"],"position":"$-position-3","previous":"$-position-2"}
{"op":"close","message_id":"@stream/message_id"}
{"op":"resume","message_id":"@stream/message_id"}
{"op":"resume","message_id":"@single/message_id"}
{"op":"resume","label":"$-held"}
{"op":"feedback","receipt":"receipt#21","type":"clicked"}
{"op":"subscribe","subscription":"#30","account":"$-new-account"}
{"op":"send","to":{"accounts":["$-new-account"]},"label":"$-new-label","topic":"$-new-topic","idempotency_key":"$-new-key","payload":"$"}
{"op":"presence","account":"$-new-account","state":"online","lease":9000,"session":"$-new-session"}

{"op":"cancel","label":"$-campaign"}
{"op":"cancel","message_id":"@list/message_id"}
{"op":"erase","account":"$-account-1"}
{"op":"erase","endpoint":"endpoint#0"}
{"op":"erase","subscription_id":"id#1"}
{"op":"unsubscribe","subscription_id":"id#5"}
{"op":"account","account":"$-closed-0","enabled":true}
"###;

/// A request and the lines that answered it.
pub type Told = (Value, Vec<Value>);

/// An app's life in one world.
pub struct Life<'w> {
    world: &'w World,
    mock: &'w Mock,
    app: &'static str,
    browsers: &'w [Subscription],
    replies: BTreeMap<String, Value>,
    /// What it has done and seen.
    pub past: Vec<Told>,
    /// What it will still do.
    pub future: Vec<Value>,
}

impl<'w> Life<'w> {
    /// Lives up to where much waits for being used.
    pub fn begin(world: &'w World, mock: &'w Mock, app: &'static str, browsers: &'w [Subscription]) -> Life<'w> {
        let mut life = Life { world, mock, app, browsers, replies: BTreeMap::new(), past: Vec::new(), future: Vec::new() };
        for script in [DO, LOOK] {
            life.settle();
            for line in script.trim().lines() {
                if line.is_empty() {
                    life.settle();
                    continue;
                }
                let line: Value = serde_json::from_str(line).unwrap_or_else(|problem| panic!("{problem} in {line}"));
                let mut request = life.fill(&line);
                let name = request.as_object_mut().expect("a request").remove("id");
                let lines = life.say(&request);
                if let Some(Value::String(name)) = name {
                    life.replies.insert(name, lines.last().expect("an answer").clone());
                }
                life.past.push((request, lines));
            }
        }
        life.future = parsed(USE).map(|line| life.filled(&line)).collect();
        life.settle();
        life
    }

    /// What the app is told of itself.
    pub fn look(&self) -> Vec<Told> {
        let requests: Vec<Value> = parsed(LOOK).map(|line| self.filled(&line)).collect();
        let told = self.ask(&requests);
        requests.into_iter().zip(told).collect()
    }

    /// Does the rest, and tells what it was told.
    pub fn end(&self) -> Vec<Told> {
        self.future
            .iter()
            .map(|request| {
                let lines = self.ask(std::slice::from_ref(request)).remove(0);
                self.settle();
                (request.clone(), lines)
            })
            .collect()
    }

    /// The lines that answer requests of its own choice.
    pub fn ask(&self, requests: &[Value]) -> Vec<Vec<Value>> {
        self.world.ask(self.app, requests)
    }

    pub fn settle(&self) {
        self.world.settle(self.app);
    }

    fn say(&self, request: &Value) -> Vec<Value> {
        let lines = self.world.ask(self.app, std::slice::from_ref(request)).remove(0);
        let good = |line: &Value| line["ok"] == true || line["error"]["code"] == "not_allowed";
        assert!(request["follow"] == true || lines.last().is_some_and(good), "{request} was answered {lines:?}");
        lines
    }

    /// A line of the script as this app says it, without the name of its answer.
    fn filled(&self, line: &Value) -> Value {
        let mut request = self.fill(line);
        request.as_object_mut().expect("a request").remove("id");
        request
    }

    fn fill(&self, value: &Value) -> Value {
        let browser = |number: &str| &self.browsers[number.parse::<usize>().expect("a browser's number")];
        match value {
            Value::Array(items) => items.iter().map(|item| self.fill(item)).collect(),
            Value::Object(members) => {
                let mut filled = members.get("#").map_or(json!({}), |number| browser(&number.to_string()).json());
                for (name, value) in members.iter().filter(|(name, _)| *name != "#") {
                    filled[name.replace('$', self.app)] = self.fill(value);
                }
                filled
            }
            Value::String(text) => match (&**text, text.split_once('#')) {
                ("tomorrow", _) => {
                    let tomorrow = time::OffsetDateTime::now_utc() + time::Duration::days(1);
                    tomorrow.format(&time::format_description::well_known::Rfc3339).expect("a time").into()
                }
                (_, Some(("", number))) => match number.strip_prefix('#') {
                    Some(count) => {
                        self.browsers[..count.parse::<usize>().expect("a number")].iter().map(Subscription::json).collect()
                    }
                    None => browser(number).json(),
                },
                (_, Some(("endpoint", number))) => browser(number).endpoint.clone().into(),
                (_, Some(("id", number))) => subscription_id(&browser(number).endpoint).into(),
                (_, Some(("receipt", number))) => self.receipt(browser(number)),
                _ => match text.strip_prefix('@').and_then(|text| text.split_once('/')) {
                    Some((name, member)) => {
                        let reply = self.replies.get(name).unwrap_or_else(|| panic!("no answer is called {name}"));
                        reply.pointer(&format!("/{member}")).unwrap_or_else(|| panic!("no {member} in {reply}")).clone()
                    }
                    None => text.replace('$', self.app).into(),
                },
            },
            other => other.clone(),
        }
    }

    /// The receipt in what a browser had last.
    fn receipt(&self, browser: &Subscription) -> Value {
        let received = || self.mock.received_by(browser);
        assert!(fanfare_loadtest::wait(Duration::from_secs(20), || !received().is_empty()), "it had no message");
        let text = received().last().expect("one").text();
        serde_json::from_str::<Value>(&text).expect("JSON")["receipt"].take()
    }
}

fn parsed(script: &str) -> impl Iterator<Item = Value> {
    script.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).expect("JSON"))
}
