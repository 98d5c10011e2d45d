//! `docs/protocol.md` against a running daemon. The page is read as text; members are learnt from the daemon's `unknown_field`, words
//! from its `invalid_field` and from the source. So nothing here is shared with the parser, and a member, a code, an event type or an
//! example that is only on one side fails.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::{ConfigBuilder, Daemon, write_vapid_key};
use fanfare_loadtest::mock::{Fault, Mock, Options, Scope, Subscription, subscription_id};
use serde_json::{Value, json};

/// Generous: the machine may be busy with other things.
const PATIENCE: Duration = Duration::from_secs(30);
/// Lines that are written before their replies are read.
const BURST: usize = 500;
/// Stands in the page's examples for keys, which are secrets.
const SECRET: &str = "…";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn start() -> (Mock, Daemon) {
    let mock = Mock::start(Options::default());
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), ConfigBuilder::new().mock(&mock)).expect("the daemon starts");
    (mock, daemon)
}

// ---- the page ----

struct Page {
    tables: Vec<Table>,
    examples: Vec<Example>,
    /// Headings below "Operations", in their order.
    operations: Vec<String>,
}

struct Table {
    /// The heading that it stands below.
    section: String,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A request and its replies, which are more than one of `events`.
struct Example {
    section: String,
    request: String,
    replies: Vec<String>,
}

impl Page {
    fn read() -> Page {
        let text = fs::read_to_string(root().join("docs/protocol.md")).expect("the page is there");
        let mut page = Page { tables: Vec::new(), examples: Vec::new(), operations: Vec::new() };
        let (mut section, mut chapter, mut in_table) = (String::new(), String::new(), false);
        for line in text.lines() {
            let cells = cells(line);
            if let Some(heading) = line.strip_prefix("## ") {
                (section, chapter) = (heading.to_owned(), heading.to_owned());
            } else if let Some(heading) = line.strip_prefix("### ") {
                heading.clone_into(&mut section);
                if chapter == "Operations" {
                    page.operations.push(section.clone());
                }
            } else if line.starts_with("{\"") && line.contains("\"op\":") {
                page.examples.push(Example { section: section.clone(), request: line.to_owned(), replies: Vec::new() });
            } else if line.starts_with("{\"") {
                let example = page.examples.last_mut().unwrap_or_else(|| panic!("a reply without a request: {line}"));
                example.replies.push(line.to_owned());
            } else if let Some(cells) = &cells {
                if !in_table {
                    page.tables.push(Table { section: section.clone(), header: cells.clone(), rows: Vec::new() });
                } else if !cells[0].starts_with("---") {
                    page.tables.last_mut().expect("its header came first").rows.push(cells.clone());
                }
            }
            in_table = cells.is_some();
        }
        page
    }

    /// The words in the first cells of the tables whose first header is this, in a section or (None) anywhere.
    fn words(&self, header: &str, section: Option<&str>) -> BTreeSet<String> {
        let wanted = |table: &&Table| table.header[0] == header && section.is_none_or(|section| table.section == section);
        let rows = self.tables.iter().filter(wanted).flat_map(|table| &table.rows);
        rows.flat_map(|row| quoted(&row[0])).collect()
    }
}

/// The cells of a line of a table.
fn cells(line: &str) -> Option<Vec<String>> {
    let inner = line.strip_prefix('|')?.strip_suffix('|')?.replace("\\|", "\u{1}");
    Some(inner.split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect())
}

/// The words between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn same(place: &str, page: &BTreeSet<String>, program: &BTreeSet<String>) {
    let unnamed: Vec<_> = program.difference(page).collect();
    let unknown: Vec<_> = page.difference(program).collect();
    assert!(unnamed.is_empty(), "{place}: the page lacks {unnamed:?}");
    assert!(unknown.is_empty(), "{place}: the page names {unknown:?}, which there are not");
}

// ---- the source ----

/// Every source file without its tests.
fn sources() -> Vec<(PathBuf, String)> {
    let (mut found, mut left) = (Vec::new(), vec![root().join("src")]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                left.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let text = text.split("#[cfg(test)]\nmod tests").next().expect("the first part").to_owned();
                found.push((path, text));
            }
        }
    }
    found
}

/// Every word that could be a member's name.
fn literals() -> BTreeSet<String> {
    let is_word = |text: &&str| {
        !text.is_empty() && text.len() < 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let sources = sources();
    // A backslash ends a word of JSON that stands in a string.
    let words = sources.iter().flat_map(|(_, text)| text.split('"').map(|word| word.trim_end_matches('\\')));
    let words: BTreeSet<String> = words.filter(is_word).map(str::to_owned).collect();
    assert!(words.len() > 300 && words.contains("idempotency_key"), "{} words were found", words.len());
    words
}

/// The words that an enumeration has in the protocol: those of its `as_str`.
fn words_of(name: &str) -> BTreeSet<String> {
    let start = format!("impl {name} {{\n");
    let sources = sources();
    let (_, body) = sources.iter().find_map(|(_, text)| text.split_once(&start)).unwrap_or_else(|| panic!("no {name}"));
    let body = body.split("\n}\n").next().expect("the first part");
    let words: BTreeSet<String> =
        body.split("=> \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    assert!(words.len() > 3, "{name}: {words:?}");
    words
}

/// Why a delivery ends or is tried again: constants of `reason.rs`.
fn reasons_of_the_source() -> BTreeSet<String> {
    let sources = sources();
    let (_, text) = sources.iter().find(|(path, _)| path.ends_with("reason.rs")).expect("the file of reasons");
    let words: BTreeSet<String> =
        text.split(": &str = \"").skip(1).filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect();
    assert!(words.len() > 30, "{words:?}");
    words
}

// ---- the daemon ----

/// Asks many lines at once; the replies in their order.
fn ask_all(client: &mut Client, lines: &[String]) -> Vec<Value> {
    let mut replies = Vec::with_capacity(lines.len());
    for burst in lines.chunks(BURST) {
        client.send_raw((burst.join("\n") + "\n").as_bytes()).expect("the daemon reads");
        replies.extend(burst.iter().map(|_| client.recv().expect("a reply")));
    }
    replies
}

/// Which of these names an object takes: `line` has `NAME` where a member's name is tried, and `path` is its path in an error.
fn taken(client: &mut Client, names: &BTreeSet<String>, line: &str, path: &str) -> BTreeSet<String> {
    let lines: Vec<String> = names.iter().map(|name| line.replace("NAME", name)).collect();
    let replies = ask_all(client, &lines);
    let unknown = |name: &str, reply: &Value| {
        reply["error"]["code"] == "unknown_field" && reply["error"]["field"] == path.replace("NAME", name)
    };
    names.iter().zip(&replies).filter(|(name, reply)| !unknown(name, reply)).map(|(name, _)| name.clone()).collect()
}

/// The words of "must be one of a, b, c" in an error.
fn choice(reply: &Value) -> Option<BTreeSet<String>> {
    let words = reply["error"]["message"].as_str()?.strip_prefix("must be one of ")?;
    Some(words.split(", ").map(str::to_owned).collect())
}

#[test]
fn every_operation_and_member_is_on_the_page_and_no_other() {
    let page = Page::read();
    let (mock, daemon) = start();
    let mut client = daemon.client();
    let operations = choice(&client.request(&json!({"op": "?"}))).expect("a list of operations");
    same("operations", &page.operations.iter().cloned().collect(), &operations);

    let mut names = literals();
    names.extend(page.tables.iter().flat_map(|table| &table.rows).flat_map(|row| quoted(&row[0])));
    names.retain(|name| !name.contains(['"', '\\', '{']) && name != "op" && name != "id");
    // An object is no good value of any member, but for bodies, which lack a recipient here: nothing is done by asking.
    for operation in &operations {
        let line = format!(r#"{{"op":"{operation}","NAME":{{"x":[]}}}}"#);
        let taken = taken(&mut client, &names, &line, "NAME");
        same(operation, &page.words("member", Some(operation)), &taken);
    }
    for (header, line, path) in [
        ("member of `to`", r#"{"op":"send","to":{"NAME":[{}]}}"#, "to.NAME"),
        ("member of `fallback`", r#"{"op":"send","to":{},"fallback":{"NAME":[]}}"#, "fallback.NAME"),
        ("member of a segment", r#"{"op":"count","segment":{"NAME":[{}]}}"#, "segment.NAME"),
        ("member of `tags`", r#"{"op":"count","segment":{"tags":{"NAME":[{}]}}}"#, "segment.tags.NAME"),
        ("member of a body", r#"{"op":"subscribe","subscription":{},"confirm":{"NAME":7}}"#, "confirm.NAME"),
    ] {
        let taken = taken(&mut client, &names, line, path);
        same(header, &page.words(header, None), &taken);
    }

    // Of a browser's own object unknown members are ignored: those that count are refused with a value that suits none of them.
    let browser = mock.subscribe(0, 1)[0].json();
    for (header, of_keys) in [("member of S", false), ("member of `keys`", true)] {
        let tried = names.iter().map(|name| {
            let mut browser = browser.clone();
            let object = if of_keys { &mut browser["keys"] } else { &mut browser };
            object[name] = json!({"x": []});
            browser
        });
        let request = json!({"op": "send", "to": {"subscriptions": tried.collect::<Vec<_>>()}, "paused": true});
        let reply = client.ok(&request);
        let places = reply["rejected"].as_array().expect("some are rejected");
        let place = |entry: &Value| usize::try_from(entry["index"].as_u64().expect("a place")).expect("few");
        let taken = places.iter().map(|entry| names.iter().nth(place(entry)).expect("one of the names").clone()).collect();
        same(header, &page.words(header, None), &taken);
    }
}

#[test]
fn every_code_type_state_ending_and_reason_is_on_the_page_and_no_other() {
    let page = Page::read();
    let (_mock, daemon) = start();
    let mut client = daemon.client();
    same("error codes", &page.words("code", None), &words_of("Code"));
    same("endings", &page.words("ending", None), &words_of("Ending"));
    let types = choice(&client.request(&json!({"op": "events", "types": "?"}))).expect("a list of types");
    same("event types", &page.words("type", Some("Event log and cursors")), &types);
    let states = choice(&client.request(&json!({"op": "list_messages", "state": "?"}))).expect("a list of states");
    same("states", &page.words("state", None), &states);

    let endings = ["reason", "own reason", "retried reason"];
    let reasons = endings.iter().flat_map(|header| page.words(header, None)).collect();
    same("reasons", &reasons, &reasons_of_the_source());
    let (unreachable, literals) = (page.words("unreachable reason", None), literals());
    assert!(!unreachable.is_empty(), "the table has rows");
    let made_up: Vec<_> = unreachable.difference(&literals).collect();
    assert!(made_up.is_empty(), "the page names the reasons {made_up:?}, which the program never says");
}

/// Bounds and choices that stand in the tables of operations are those that the daemon names when they are broken.
#[test]
fn bounds_on_the_page_are_those_that_the_daemon_tells() {
    let page = Page::read();
    let (mock, daemon) = start();
    let mut client = daemon.client();
    let mut story = Story::new(&mock, false);
    let types: BTreeMap<&str, &str> = page
        .tables
        .iter()
        .filter(|table| table.section == "Values")
        .flat_map(|table| table.rows.iter().map(|row| (row[0].as_str(), row[1].as_str())))
        .collect();
    let mut compared = 0;
    for table in page.tables.iter().filter(|table| table.header[0] == "member") {
        let example = page.examples.iter().find(|example| example.request.contains(&format!(r#""op":"{}""#, table.section)));
        let example = story.request(&parsed(&example.expect("an example of each operation").request));
        for row in &table.rows {
            let first = row[1].split([' ', ',']).next().expect("a word");
            let kind = types.get(first).copied().unwrap_or(&row[1]);
            let within = |start: &str| {
                let (from, to) = kind.strip_prefix(start)?.split(')').next()?.split_once('–')?;
                Some(format!("{from} to {}", to.replace(',', "")))
            };
            // A value that is out of bounds, and the sentence that the daemon must answer.
            let (value, sentence) = if let Some(bound) = within("text(") {
                (json!("x".repeat(5_000)), format!("must be {bound} bytes long"))
            } else if let Some(bound) = within("integer(") {
                (json!(1u64 << 40), format!("must be an integer from {bound}"))
            } else if let Some(words) = row[1].strip_prefix("one of ") {
                let words = words.split(" or ").next().expect("the first part");
                (json!("?"), format!("must be one of {}", quoted(words).join(", ")))
            } else {
                continue;
            };
            for member in quoted(&row[0]) {
                let alone = json!({"op": table.section, &member: value});
                let mut with_others = example.clone();
                with_others[&member] = value.clone();
                let replies = [client.request(&alone), client.request(&with_others)];
                let is_told =
                    |reply: &Value| reply["error"]["field"] == *member && reply["error"]["message"] == sentence.as_str();
                assert!(
                    replies.iter().any(is_told),
                    "{} {member}: the page says {sentence:?}, the daemon {replies:?}",
                    table.section
                );
                compared += 1;
            }
        }
    }
    assert!(compared > 30, "only {compared} bounds were found");
}

/// Each request of the page is asked in the order of the page, and answered with the members and types that the page shows.
#[test]
fn every_example_is_a_real_exchange() {
    let page = Page::read();
    let mock = Mock::start(Options::default());
    let directory = tempfile::tempdir().expect("a directory");
    // The second key is told too.
    let keys = ["first.pem", "second.pem"].map(|name| directory.path().join(name));
    keys.iter().for_each(|key| write_vapid_key(key).expect("a key"));
    let config = ConfigBuilder::new().mock(&mock).set("apps.default.vapid_keys", json!(keys));
    let daemon = Daemon::start(env!("CARGO_BIN_EXE_fanfare"), config).expect("the daemon starts");
    let mut client = daemon.client();
    let mut story = Story::new(&mock, true);
    let mut met = Met::new();
    for example in &page.examples {
        let asked = parsed(&example.request);
        let operation = asked["op"].as_str().expect("an operation").to_owned();
        let shown: Vec<Value> = example.replies.iter().map(|reply| parsed(reply)).collect();
        let (shown_reply, shown_events) = shown.split_last().unwrap_or_else(|| panic!("{operation} has no reply"));
        let request = story.request(&asked);
        let began = Instant::now();
        let (events, reply) = loop {
            let (events, reply) = client.events(&request).expect("a reply");
            let code = reply["error"]["code"].as_str().unwrap_or_default();
            assert!(
                !matches!(code, "bad_json" | "unknown_op" | "unknown_field" | "missing_field" | "invalid_field"),
                "{} is answered {reply}",
                example.request
            );
            // Numbers and events are told as of the last checkpoint.
            let late = shown_events.iter().find(|shown| !events.iter().any(|event| alike("", shown, event).is_ok()));
            let unlike = alike("", shown_reply, &reply).err().or(late.map(|shown| format!("no event is like {shown}")));
            match unlike {
                None => break (events, reply),
                Some(unlike) if began.elapsed() > PATIENCE || !is_read(&operation) => {
                    panic!("{operation}: {unlike}; the page shows {shown_reply}, the daemon answers {reply} after {events:?}")
                }
                Some(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        story.learn(shown_reply, &reply);
        note(&operation, &events, &reply, &mut met);
    }
    let shown: BTreeSet<&str> = page.examples.iter().map(|example| example.section.as_str()).collect();
    let without: Vec<_> = page.operations.iter().filter(|operation| !shown.contains(operation.as_str())).collect();
    assert!(without.is_empty(), "{without:?} have no example");

    ask_for_the_rest(&mock, &mut client, &mut met);
    for (of, members) in met {
        let mut named = page.words("reply", Some(&of));
        named.extend(page.words(&format!("member of `{of}`"), None));
        named.extend(page.words(&format!("member of {of}"), None));
        same(&format!("members of replies, {of}"), &named, &members);
    }
}

/// Asks for the members of replies that no example of the page has.
fn ask_for_the_rest(mock: &Mock, client: &mut Client, met: &mut Met) {
    let mut ask = |request: Value| {
        let (events, reply) = client.events(&request).expect("a reply");
        note(request["op"].as_str().expect("an operation"), &events, &reply, met);
        (reply, met["an event"].clone())
    };
    let [old, gone, known] = mock.subscribe(0, 3).try_into().unwrap_or_else(|_| panic!("three browsers"));
    let mut old_json = old.json();
    (old_json["ref"], old_json["contentEncoding"]) = ("old".into(), "aesgcm".into());

    let stream = json!({
        "op": "send", "to": {"stream": true}, "paused": true, "label": "rest", "ref": "m", "idempotency_key": "rest", "rate": 1
    });
    let id = ask(stream.clone()).0["message_id"].take();
    ask(json!({"op": "add", "message_id": id, "subscriptions": [old_json, {"ref": 1}], "position": 1}));
    ask(stream);
    ask(json!({"op": "close", "message_id": id}));
    ask(json!({"op": "close", "message_id": id}));
    ask(json!({"op": "cancel", "message_id": id}));

    mock.set_fault(Scope::Subscription(gone.token.clone()), Fault::status(410));
    let mut gone_json = gone.json();
    gone_json["ref"] = 7.into();
    ask(json!({"op": "send", "to": {"subscription": gone_json}}));
    let began = Instant::now();
    // Of the one that is gone and of those that were cancelled together.
    while !["status", "count"].iter().all(|name| ask(json!({"op": "events"})).1.contains(*name)) {
        assert!(began.elapsed() < PATIENCE, "no such events");
        std::thread::sleep(Duration::from_millis(50));
    }
    ask(json!({"op": "subscribe", "subscription": old_json, "account": "dora"}));
    ask(json!({"op": "account", "account": "dora", "enabled": false}));
    ask(json!({"op": "subscription", "subscription_id": subscription_id(&old.endpoint), "reveal": true}));
    ask(json!({"op": "subscribe", "subscription": known.json()}));
    ask(json!({"op": "test", "subscription_ids": [subscription_id(&known.endpoint), subscription_id("nobody's")]}));
    ask(json!({"op": "stats", "by": ["day", "label", "app", "service", "key"]}));
    ask(json!({"op": "events", "after": "another store's"}));
    ask(json!({"op": "drain"}));
    ask(json!({"op": "send", "to": {"stream": true}}));
}

/// The members of replies that were met, by the table that names them.
type Met = BTreeMap<String, BTreeSet<String>>;

fn note(operation: &str, events: &[Value], reply: &Value, met: &mut Met) {
    members_of("error", &reply["error"], met);
    members_of(operation, reply, met);
    events.iter().for_each(|event| members_of("an event", event, met));
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON: {error}: {line}"))
}

/// May be asked again.
fn is_read(operation: &str) -> bool {
    matches!(operation, "status" | "events" | "stats" | "origins" | "list_messages" | "subscription" | "count")
}

/// Whether a reply has the members that the page shows, at every depth, with values of the same types; null is of any. Of arrays the
/// first items are compared.
fn alike(place: &str, shown: &Value, real: &Value) -> Result<(), String> {
    match (shown, real) {
        (Value::Null, _) | (_, Value::Null) => Ok(()),
        // "unknown" until the first message is accepted.
        _ if place.ends_with(".valid") => Ok(()),
        (Value::Object(shown), Value::Object(real)) => {
            // The application's own words.
            if place.ends_with(".attributes") {
                return Ok(());
            }
            let names = |members: &serde_json::Map<String, Value>| members.keys().cloned().collect::<BTreeSet<_>>();
            if names(shown) != names(real) {
                return Err(format!("{place} has the members {:?}", names(real)));
            }
            // An event is one of its type, an error one of its code.
            for name in ["type", "code"] {
                if shown.get(name) != real.get(name) {
                    return Err(format!("{place}.{name} is {:?}", real.get(name)));
                }
            }
            shown.iter().try_for_each(|(name, value)| alike(&format!("{place}.{name}"), value, &real[name]))
        }
        (Value::Array(shown), Value::Array(real)) => match (shown.first(), real.first()) {
            (Some(shown), Some(real)) => alike(&format!("{place}[0]"), shown, real),
            (None, None) => Ok(()),
            _ => Err(format!("{place} has {} items", real.len())),
        },
        (Value::Bool(shown), Value::Bool(real)) if shown != real => Err(format!("{place} is {real}")),
        (Value::Bool(_), Value::Bool(_)) | (Value::Number(_), Value::Number(_)) | (Value::String(_), Value::String(_)) => Ok(()),
        _ => Err(format!("{place} is {real}")),
    }
}

/// Collects the members of a reply, and of the objects in it, by the table that names them.
fn members_of(of: &str, value: &Value, met: &mut Met) {
    let Value::Object(members) = value else { return };
    let known = met.entry(of.to_owned()).or_default();
    known.extend(members.keys().filter(|name| !matches!(name.as_str(), "id" | "ok" | "error")).cloned());
    for (name, value) in members {
        let of = match name.as_str() {
            "subscription" | "subscriptions" => "a subscription",
            "messages" => "status",
            "accounts" | "rejected" | "results" | "origins" | "stats" | "limits" | "keys" => name.as_str(),
            _ => continue,
        };
        match value {
            Value::Array(items) => items.iter().for_each(|item| members_of(of, item, met)),
            value => members_of(of, value, met),
        }
    }
}

/// The page's examples as a story: its browsers are played by the mock, and ids are those that the daemon gave.
struct Story<'a> {
    mock: &'a Mock,
    browsers: BTreeMap<String, Subscription>,
    /// A text of the page, and the one that stands for it.
    real: BTreeMap<String, String>,
    /// Whether messages with receipts are sent; otherwise the page's own receipt stays.
    receipts: bool,
}

impl Story<'_> {
    fn new(mock: &Mock, receipts: bool) -> Story<'_> {
        Story { mock, browsers: BTreeMap::new(), real: BTreeMap::new(), receipts }
    }

    fn request(&mut self, shown: &Value) -> Value {
        match shown {
            Value::Object(members) if members.get("keys").is_some_and(|keys| keys["auth"] == SECRET) => {
                let endpoint = members["endpoint"].as_str().expect("an endpoint");
                let mock = self.mock;
                let browser = self.browsers.entry(endpoint.to_owned()).or_insert_with(|| mock.subscribe(0, 1).remove(0));
                self.real.insert(endpoint.to_owned(), browser.endpoint.clone());
                self.real.insert(subscription_id(endpoint), subscription_id(&browser.endpoint));
                let mut request = shown.clone();
                request["endpoint"] = browser.endpoint.as_str().into();
                request["keys"] = browser.json()["keys"].take();
                request
            }
            Value::Object(members) => {
                let told = |(name, value): (&String, &Value)| {
                    let value = if name == "receipt" && self.receipts { self.receipt().into() } else { self.request(value) };
                    (name.clone(), value)
                };
                members.iter().map(told).collect::<serde_json::Map<_, _>>().into()
            }
            Value::Array(items) => items.iter().map(|item| self.request(item)).collect(),
            Value::String(text) => self.real.get(text).unwrap_or(text).as_str().into(),
            other => other.clone(),
        }
    }

    fn learn(&mut self, shown: &Value, real: &Value) {
        if let (Some(shown), Some(real)) = (shown["message_id"].as_str(), real["message_id"].as_str()) {
            self.real.insert(shown.to_owned(), real.to_owned());
        }
        if let Some(shown) = shown["subscription_id"].as_str() {
            let of_browser = self.real.get(shown).map(String::as_str);
            assert_eq!(of_browser, real["subscription_id"].as_str(), "{shown} is the id of no endpoint of the page");
        }
    }

    /// The receipt that came last.
    fn receipt(&self) -> String {
        let began = Instant::now();
        loop {
            let received = self.mock.received();
            let bodies = received.iter().rev().map(|received| received.text());
            let receipt =
                bodies.filter_map(|body| Some(body.split_once("\"receipt\":\"")?.1.split('"').next()?.to_owned())).next();
            if let Some(receipt) = receipt {
                return receipt;
            }
            assert!(began.elapsed() < PATIENCE, "no receipt has come");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
