//! The life of the app `shop`: every operation with every member that it has, and something of each kind left waiting.

use std::time::Duration;

use fanfare_loadtest::client::Client;
use fanfare_loadtest::mock::{Fault, Mock, Scope, Subscription, subscription_id};
use serde_json::{Value, json};

use crate::pool::Exchange;
use crate::told::Told;
use crate::world::World;

pub struct Shop {
    client: Client,
    /// All that was said so far.
    pub told: Vec<Exchange>,
    browsers: Vec<Subscription>,
    /// Its messages in the order in which they were made.
    ids: Vec<Value>,
    accounts: Vec<String>,
    public_keys: Vec<String>,
    single: Value,
    stream: Value,
    receipt: Value,
}

impl Shop {
    pub fn open(world: &World, mock: &Mock) -> Shop {
        let browsers: Vec<Subscription> = (0..2).flat_map(|origin| mock.subscribe(origin, 40)).collect();
        let mut shop = Shop {
            client: world.client("shop"),
            told: Vec::new(),
            browsers: browsers.clone(),
            ids: Vec::new(),
            accounts: (0..5).map(|n| format!("customer-{n}")).collect(),
            public_keys: Vec::new(),
            single: Value::Null,
            stream: Value::Null,
            receipt: Value::Null,
        };
        shop.subscribes(mock);
        shop.sends(mock);
        shop.reads();
        shop
    }

    fn say(&mut self, request: Value) -> Value {
        self.client.send(&request).expect("the daemon reads");
        let mut lines = Vec::new();
        loop {
            let line = self.client.recv().expect("an answer");
            lines.push(line.clone());
            if line.get("ok").is_some() {
                self.told.push((request, lines));
                return line;
            }
        }
    }

    fn ok(&mut self, request: Value) -> Value {
        let reply = self.say(request.clone());
        assert_eq!(reply["ok"], true, "{request} was answered {reply}");
        if let Some(id) = reply.get("message_id").filter(|id| !self.ids.contains(id)) {
            self.ids.push(id.clone());
        }
        reply
    }

    fn send(&mut self, to: Value, more: Value) -> Value {
        let mut request = json!({"op": "send", "to": to});
        request.as_object_mut().expect("an object").extend(more.as_object().expect("members").clone());
        self.ok(request)["message_id"].clone()
    }

    fn id_of(&self, n: usize) -> String {
        subscription_id(&self.browsers[n].endpoint)
    }

    fn subscribes(&mut self, mock: &Mock) {
        self.ok(json!({"op": "cancel", "app": "shop"}));
        self.ok(json!({"op": "pause", "app": "shop"}));
        self.ok(json!({"op": "resume", "app": "shop", "rate": 9_000}));
        let keys = self.ok(json!({"op": "vapid_public_key", "app": "shop"}));
        self.public_keys =
            [&keys["public_key"], &keys["other_keys"][0]].map(|key| key.as_str().expect("a key").to_owned()).to_vec();
        for n in 0..10 {
            let mut subscription = self.browsers[n].json();
            subscription["applicationServerKey"] = self.public_keys[n % 2].as_str().into();
            subscription["ref"] = if n == 0 { json!("shop-row") } else { json!(700_000 + n) };
            subscription["attributes"] = json!({"shop-size": "large"});
            let mut request = json!({
                "op": "subscribe", "app": "shop", "subscription": subscription, "account": self.accounts[n / 2], "name": "shop phone",
                "user_agent": "ShopBrowser/1", "scopes": ["shop-scope"], "tags": ["shop-tag"], "attributes": {"shop-language": "pl"},
            });
            if n == 1 {
                request["confirm"] = json!({"payload": "shop-welcome"});
            }
            self.ok(request);
        }
        let replacing = json!({
            "op": "subscribe", "subscription": self.browsers[10].json(), "replaces": self.browsers[9].endpoint,
            "confirm": {"notification": {"title": "shop-title", "navigate": "https://shop.example/"}, "app_badge": 9_000, "mutable": true},
        });
        self.ok(replacing);
        self.ok(json!({"op": "subscribe", "subscription": self.browsers[11].json(), "replaces": self.id_of(10), "confirm": {"payload_base64": "c2hvcA"}}));
        self.ok(json!({"op": "update_subscription", "subscription_id": self.id_of(2), "enabled": false, "name": "shop tablet",
            "account": self.accounts[1], "scopes": ["shop-scope", "shop-scope-2"], "tags": ["shop-tag", "shop-tag-2"], "attributes": {"shop-language": "de"}}));
        for account in ["shop-closed-1", "shop-closed-2"] {
            self.ok(json!({"op": "account", "account": account, "app": "shop", "enabled": false}));
        }
        for session in ["shop-session", "shop-session-2"] {
            self.ok(json!({"op": "presence", "account": self.accounts[0], "app": "shop", "state": "online", "lease": 9_000, "session": session}));
        }
        self.ok(json!({"op": "presence", "account": self.accounts[1], "state": "offline"}));
        // One leaves, one is erased, one is gone.
        self.ok(json!({"op": "subscribe", "subscription": self.browsers[12].json()}));
        self.ok(json!({"op": "unsubscribe", "endpoint": self.browsers[12].endpoint}));
        self.ok(json!({"op": "subscribe", "subscription": self.browsers[13].json(), "account": "customer-erased"}));
        self.ok(json!({"op": "erase", "account": "customer-erased", "app": "shop"}));
        self.ok(json!({"op": "erase", "subscription_id": self.id_of(13)}));
        mock.set_fault(Scope::Subscription(self.browsers[14].token.clone()), Fault::status(410));
        self.ok(json!({"op": "subscribe", "subscription": self.browsers[14].json(), "account": "customer-gone"}));
    }

    fn sends(&mut self, mock: &Mock) {
        let raw = |browser: &Subscription| json!({"subscription": browser.json()});
        let browsers = self.browsers.clone();
        let tomorrow = time::OffsetDateTime::now_utc() + time::Duration::days(1);
        let tomorrow = tomorrow.format(&time::format_description::well_known::Rfc3339).expect("a time");
        let listed: Vec<Value> = browsers[..66].iter().map(Subscription::json).collect();
        let segment = json!({"all": true, "tags": {"any": ["shop-tag"], "all": ["shop-tag"], "none": ["shop-tag-3"]}, "attributes": {"shop-language": "pl"}});

        self.single = self.send(
            raw(&browsers[0]),
            json!({"paused": true, "label": "shop-label", "ref": "shop-ref", "topic": "shop-topic", "idempotency_key": "shop-key",
                "ttl": 86_400, "urgency": "high", "payload": "shop-payload", "app": "shop"}),
        );
        self.send(
            json!({"subscriptions": listed}),
            json!({"paused": true, "label": "shop-label", "spread": 80_000, "payload_base64": "c2hvcC1wYXlsb2Fk"}),
        );
        self.stream = self
            .send(json!({"stream": true}), json!({"paused": true, "label": "shop-stream", "rate": 9_000, "payload": ["shop"]}));
        let rows = |from: usize| json!([browsers[from].json(), browsers[from + 1].json()]);
        let stream = self.stream.clone();
        self.ok(json!({"op": "add", "message_id": stream, "subscriptions": rows(15), "position": "shop-position-1"}));
        self.ok(json!({"op": "add", "message_id": stream, "subscriptions": rows(17), "position": "shop-position-2", "previous": "shop-position-1"}));
        let closed = self.send(json!({"stream": true}), json!({"label": "shop-stream", "payload": "shop"}));
        self.ok(json!({"op": "add", "message_id": closed, "subscriptions": rows(19), "position": 4_100}));
        self.ok(json!({"op": "close", "message_id": closed, "position": 4_200, "previous": 4_100}));
        self.send(
            json!({"segment": segment}),
            json!({"paused": true, "scope": "shop-scope", "label": "shop-campaign", "payload": "shop"}),
        );
        self.send(
            json!({"segment": {"all": true}}),
            json!({"label": "shop-campaign", "template": true, "payload": {"text": "{{shop-language|x}}"}}),
        );
        self.send(
            json!({"subscription_ids": [self.id_of(0), self.id_of(3)]}),
            json!({"at": tomorrow, "label": "shop-later", "payload": "shop"}),
        );
        let [online, offline] = [0, 1].map(|n| self.accounts[n].clone());
        self.send(
            json!({"accounts": [online], "devices": "latest"}),
            json!({"when": "offline", "topic": "shop-topic-2", "payload": "shop"}),
        );
        self.send(
            json!({"accounts": [offline, online]}),
            json!({"paused": true, "fallback": {"after": 9_000}, "payload": "shop"}),
        );
        self.send(
            json!({"accounts": ["customer-nobody"]}),
            json!({"fallback": {"after": 9_000}, "ref": "shop-order", "payload": "shop"}),
        );
        self.send(raw(&browsers[14]), json!({"label": "shop-gone", "payload": "shop"}));
        // It may be gone already: the campaign to all has found it too.
        self.say(json!({"op": "send", "to": {"subscription_ids": [self.id_of(14)]}, "payload": "shop"}));

        let issued = json!({"receipts": true, "payload": {"text": "shop-receipt"}});
        let with_receipts = self.send(json!({"subscriptions": [browsers[20].json(), browsers[21].json()]}), issued);
        self.wait_ended(&with_receipts);
        let receipts: Vec<Value> = [20, 21].map(|n| receipt(mock, &browsers[n])).to_vec();
        self.ok(json!({"op": "feedback", "receipt": receipts[0], "type": "shown"}));
        self.receipt = receipts[1].clone();
        // Known to the pool, and not yet used.
        self.told.push((json!({"receipt": self.receipt}), Vec::new()));

        self.ok(json!({"op": "pause", "label": "shop-held"}));
        self.send(raw(&browsers[1]), json!({"label": "shop-held", "payload": "shop"}));
        let cancelled = self.send(raw(&browsers[2]), json!({"label": "shop-cancelled", "paused": true, "payload": "shop"}));
        self.ok(json!({"op": "cancel", "label": "shop-cancelled"}));
        self.ok(json!({"op": "pause", "message_id": cancelled}));
        self.ok(json!({"op": "cancel", "message_id": cancelled}));
        let notification = json!({"title": "shop-title", "navigate": "https://shop.example/", "data": {"shop": true}});
        self.send(raw(&browsers[22]), json!({"notification": notification, "app_badge": 9_000, "mutable": true}));
        self.ok(json!({"op": "test", "subscription_ids": [self.id_of(0)], "app": "shop", "wait": 0, "payload": "shop-test"}));
        let notification = json!({"title": "shop-title", "navigate": "https://shop.example/"});
        self.ok(
            json!({"op": "test", "account": self.accounts[4], "notification": notification, "app_badge": 9_000, "mutable": true}),
        );
        self.ok(json!({"op": "test", "account": self.accounts[4], "payload_base64": "c2hvcC10ZXN0"}));
        self.ok(json!({"op": "mark_read", "account": self.accounts[3], "app": "shop", "topic": "shop-topic-3"}));
        let closed = closed.clone();
        self.ok(json!({"op": "mark_read", "account": self.accounts[3], "message_id": closed}));
        self.wait_ended(&closed);
    }

    fn reads(&mut self) {
        std::thread::sleep(Duration::from_millis(300));
        for request in [
            json!({"op": "status", "message_id": self.single}),
            json!({"op": "list_messages", "limit": 1_000}),
            json!({"op": "list_messages", "limit": 1000, "state": "paused", "label": "shop-label"}),
            json!({"op": "events", "after": "oldest", "limit": 1_000, "types": ["cancelled", "gone", "skipped", "unreachable"], "app": "shop"}),
            json!({"op": "events", "after": "oldest"}),
            json!({"op": "events", "after": "newest"}),
            json!({"op": "events", "label": "shop-gone", "account": "customer-gone"}),
            json!({"op": "events", "subscription_id": self.id_of(14), "message_id": self.single}),
            json!({"op": "stats", "by": ["day", "label", "app", "service", "key"], "from": "2026-01-01", "to": "2199-01-01"}),
            json!({"op": "origins"}),
            json!({"op": "ping"}),
            json!({"op": "vapid_public_key"}),
            json!({"op": "subscription", "endpoint": self.browsers[0].endpoint, "reveal": true}),
            json!({"op": "subscription", "subscription_id": self.id_of(1)}),
            json!({"op": "account", "account": self.accounts[0]}),
            json!({"op": "list_subscriptions", "limit": 1_000}),
            json!({"op": "list_subscriptions", "account": self.accounts[0], "app": "shop", "reveal": true}),
            json!({"op": "list_subscriptions", "segment": {"tags": {"any": ["shop-tag"]}}}),
            json!({"op": "disabled_accounts", "app": "shop", "limit": 1_000}),
            json!({"op": "count", "segment": {"attributes": {"shop-language": "pl"}}, "scope": "shop-scope", "app": "shop"}),
        ] {
            self.ok(request);
        }
        // Where a list goes on; so small a number would be a rate or a time that is over soon.
        for op in ["list_messages", "events", "list_subscriptions", "disabled_accounts"] {
            self.ok(json!({"op": op, "limit": 1}));
            self.told.last_mut().expect("just said").0 = json!({});
        }
        for refused in [json!({"op": "drain", "on": true}), json!({"op": "backup", "name": "shop-backup"})] {
            assert_eq!(self.say(refused)["error"]["code"], "not_allowed");
        }
        // The cursor in the middle of its events, where the next one begins.
        let cursors: Vec<Value> =
            self.told.iter().flat_map(|(_, lines)| lines).filter_map(|line| line.get("cursor").cloned()).collect();
        assert!(cursors.len() > 3);
        self.told.push((json!({"after": cursors[cursors.len() / 2]}), Vec::new()));
        self.told.push((json!({"follow": true}), Vec::new()));
    }

    /// All that the shop can learn of what it has, once that rests.
    pub fn view(&mut self) -> Vec<Told> {
        let mut last = self.look();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let mut still = 0;
        loop {
            std::thread::sleep(Duration::from_millis(30));
            let now = self.look();
            still = if now.iter().zip(&last).all(|(now, last)| now.lines == last.lines) { still + 1 } else { 0 };
            last = now;
            if still > 10 {
                return last;
            }
            assert!(std::time::Instant::now() < deadline, "the shop never comes to rest");
        }
    }

    fn look(&mut self) -> Vec<Told> {
        let mut requests: Vec<Value> = self.ids.iter().map(|id| json!({"op": "status", "message_id": id})).collect();
        requests.extend(
            self.browsers[..24].iter().map(|browser| json!({"op": "subscription", "endpoint": browser.endpoint, "reveal": true})),
        );
        let accounts = self.accounts.iter().map(String::as_str).chain([
            "shop-closed-1",
            "customer-gone",
            "customer-erased",
            "customer-nobody",
        ]);
        requests.extend(accounts.map(|account| json!({"op": "account", "account": account})));
        requests.extend([
            json!({"op": "list_messages", "limit": 1000}),
            json!({"op": "events", "limit": 100_000}),
            json!({"op": "stats", "by": ["day", "label", "app", "service", "key"]}),
            json!({"op": "vapid_public_key"}),
            json!({"op": "list_subscriptions", "limit": 1000, "reveal": true}),
            json!({"op": "disabled_accounts"}),
            json!({"op": "count"}),
            json!({"op": "count", "scope": "shop-scope"}),
            json!({"op": "count", "segment": {"tags": {"any": ["shop-tag"]}}}),
            json!({"op": "count", "segment": {"tags": {"any": ["shop-tag", "shop-tag-2"]}}}),
        ]);
        requests
            .into_iter()
            .map(|request| {
                self.client.send(&request).expect("the daemon reads");
                let mut lines = Vec::new();
                loop {
                    let line = self.client.recv().expect("an answer");
                    lines.push(line.to_string());
                    if line.get("ok").is_some() {
                        return Told { form: request["op"].to_string(), request, lines };
                    }
                }
            })
            .collect()
    }

    /// Posts that were signed with one of the shop's keys.
    pub fn posts(&self, mock: &Mock) -> usize {
        let ours = |key: &str| self.public_keys.iter().any(|own| own == key);
        mock.received().iter().filter(|received| received.vapid.as_ref().is_some_and(|vapid| ours(&vapid.key))).count()
    }

    /// The shop uses what waits, and erases what it has: all of it is still good for that. What was not, if anything.
    pub fn use_all(&mut self, mock: &Mock) -> Vec<String> {
        let mut wrong = Vec::new();
        let (single, stream) = (self.single.clone(), self.stream.clone());
        let key = self
            .told
            .iter()
            .map(|(request, _)| request)
            .find(|request| request["idempotency_key"] == "shop-key")
            .expect("it was used");
        let again = self.say(key.clone());
        if again["duplicate"] != true || again["message_id"] != single {
            wrong.push(format!("the shop's idempotency key is no longer known: {again}"));
        }
        let rows = json!([self.browsers[25].json()]);
        let add = self.say(json!({"op": "add", "message_id": stream, "subscriptions": rows, "position": "shop-position-3", "previous": "shop-position-2"}));
        if add["ok"] != true {
            wrong.push(format!("the shop's stream does not go on: {add}"));
        }
        let receipt = self.receipt.clone();
        for request in [
            json!({"op": "close", "message_id": stream}),
            json!({"op": "resume", "message_id": stream}),
            json!({"op": "resume", "message_id": single}),
            json!({"op": "resume", "label": "shop-held"}),
            json!({"op": "feedback", "receipt": receipt, "type": "clicked"}),
        ] {
            let reply = self.say(request.clone());
            if reply["ok"] != true {
                wrong.push(format!("{request} was answered {reply}"));
            }
        }
        let stream = self.wait_ended(&stream);
        if stream["accepted"] != 5 {
            wrong.push(format!("the shop's stream did not reach its recipients: {stream}"));
        }
        let single = self.wait_ended(&single);
        if single["accepted"] != 1 || !mock.received_by(&self.browsers[0]).iter().any(|post| post.text() == "shop-payload") {
            wrong.push(format!("the shop's message did not reach its recipient: {single}"));
        }
        for request in [
            json!({"op": "erase", "account": self.accounts[1]}),
            json!({"op": "erase", "endpoint": self.browsers[0].endpoint}),
            json!({"op": "unsubscribe", "subscription_id": self.id_of(6)}),
            json!({"op": "account", "account": "shop-closed-1", "enabled": true}),
            json!({"op": "cancel", "label": "shop-campaign"}),
        ] {
            let reply = self.say(request.clone());
            if reply["ok"] != true {
                wrong.push(format!("{request} was answered {reply}"));
            }
        }
        wrong
    }

    fn wait_ended(&mut self, id: &Value) -> Value {
        let mut last = Value::Null;
        let met = fanfare_loadtest::wait(Duration::from_secs(20), || {
            last = self.client.request(&json!({"op": "status", "message_id": id}));
            last["pending"] == 0 && last["open"] == false
        });
        assert!(met, "{last}");
        last
    }
}

/// The receipt in what a browser had last.
fn receipt(mock: &Mock, browser: &Subscription) -> Value {
    let text = mock.received_by(browser).last().expect("it had a message").text();
    serde_json::from_str::<Value>(&text).expect("JSON")["receipt"].take()
}
