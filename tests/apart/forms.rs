//! Which operations there are, which members each takes, and what must stand beside a member for the line to be more than malformed:
//! all of it found by asking a daemon. From that comes a script: each value of the pool in each of these places.

use std::collections::BTreeSet;
use std::time::Duration;

use fanfare_loadtest::client::Client;
use serde_json::{Map, Value, json};

use crate::pool::{Pool, operations, words_of_the_parser};
use crate::told::{Mask, Told};
use crate::world::World;

/// Lines and bytes that are on their way at once: the socket takes them whole, whoever reads first.
const PIPELINED: usize = 200;
const PIPELINED_BYTES: usize = 64 * 1024;
/// The shop's own values that two members have at the same time: of one that is varied, of plain ones beside it, and of others.
const VARIED: usize = 4;
const PLAIN_BESIDE: usize = 24;
const NESTED_BESIDE: usize = 6;
/// Values for two members at a time are the shop's own for each, and not large ones.
const PAIRED_BYTES: usize = 2_000;
/// Answers for a line's form. All others mean that it was understood.
const MALFORMED: [&str; 6] =
    ["bad_json", "missing_field", "invalid_field", "unknown_field", "endpoint_refused", "payload_too_large"];

/// What is asked of an app's socket, operation by operation.
pub struct Script {
    operations: Vec<(String, Vec<(String, Value)>)>,
}

impl Script {
    pub fn learn(scratch: &World, pool: &Pool) -> Script {
        let words = words_of_the_parser().into_iter().map(Value::from).collect();
        let client = scratch.client("news");
        let mut student = Student { client, pool, words: &words, refused: None, hopeless: BTreeSet::new() };
        let operations = operations(&mut student.client);
        let learnt: Vec<_> = operations.into_iter().map(|op| (op.clone(), student.requests(&op))).collect();
        Script { operations: learnt }
    }

    pub fn len(&self) -> usize {
        self.operations.iter().map(|(_, requests)| requests.len()).sum()
    }

    /// Asks everything on the socket of the news, and then for all that it knows of itself.
    pub fn play(&self, world: &World, mask: &mut Mask<'_>) -> Vec<Told> {
        let mut told = Vec::new();
        // The first look, before the news has done anything of its own.
        let bare: Vec<_> = self.operations.iter().map(|(op, _)| (op.clone(), json!({"op": op}))).collect();
        told.extend(ask_all(world, &bare, mask));
        for (_, requests) in &self.operations {
            let answers = ask_all(world, requests, mask);
            let sent = |line: &String| line.contains("\"message_id\"") || line.contains("\"created\"");
            let sends = answers.iter().any(|told| told.lines.iter().any(sent));
            told.extend(answers);
            if sends {
                settle(world);
            }
        }
        told.extend(ask_all(world, &bare, mask));
        // Last, because one more or less of them must not move the others.
        let statuses: Vec<_> =
            mask.ids.iter().map(|id| ("status of its own".to_owned(), json!({"op": "status", "message_id": id}))).collect();
        for mut status in ask_all(world, &statuses, mask) {
            // Another one in each world.
            status.request = json!({"op": "status"});
            told.push(status);
        }
        told
    }
}

fn ask_all(world: &World, requests: &[(String, Value)], mask: &mut Mask<'_>) -> Vec<Told> {
    let mut told = Vec::with_capacity(requests.len());
    let mut client = world.client("news");
    let follows = |request: &Value| request["follow"] == true;
    for burst in bursts(requests) {
        let lines: String =
            burst.iter().filter(|(_, request)| !follows(request)).map(|(_, request)| format!("{request}\n")).collect();
        client.send_raw(lines.as_bytes()).expect("the daemon reads");
        for (form, request) in burst {
            let lines = if follows(request) { followed(world, request) } else { answer(&mut client, request) };
            told.push(Told { form: form.clone(), request: request.clone(), lines: mask.lines(lines) });
        }
    }
    told
}

/// Requests that can be on their way at once: of one form, because one that only reads may see a write that comes behind it.
fn bursts(requests: &[(String, Value)]) -> Vec<&[(String, Value)]> {
    let (mut bursts, mut from, mut bytes) = (Vec::new(), 0, 0);
    for (number, (form, request)) in requests.iter().enumerate() {
        let length = request.to_string().len();
        let full = number - from >= PIPELINED || bytes + length > PIPELINED_BYTES;
        if number > from && (full || *form != requests[from].0) {
            bursts.push(&requests[from..number]);
            (from, bytes) = (number, 0);
        }
        bytes += length;
    }
    bursts.push(&requests[from..]);
    bursts
}

/// Lines until the one that ends the answer.
fn answer(client: &mut Client, request: &Value) -> Vec<Value> {
    let mut lines = Vec::new();
    loop {
        let line = client.recv().unwrap_or_else(|problem| panic!("{problem} instead of an answer to {request}"));
        let last = line.get("ok").is_some();
        lines.push(line);
        if last {
            return lines;
        }
    }
}

/// What a request tells that is never answered to the end.
fn followed(world: &World, request: &Value) -> Vec<Value> {
    let mut client = world.client("news");
    client.set_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    client.send(request).expect("the daemon reads");
    let mut lines = Vec::new();
    while let Ok(line) = client.recv() {
        lines.push(line);
    }
    lines
}

/// Waits until the news has nothing under way, and ends what would wait for long.
fn settle(world: &World) {
    let mut news = world.client("news");
    let mut operator = world.daemon.client();
    let mut state = |news: &mut Client| {
        let stats = news.ok(&json!({"op": "stats"}));
        let origins = operator.ok(&json!({"op": "origins"}));
        let busy =
            origins["origins"].as_array().expect("an array").iter().any(|one| one["in_flight"] != 0 || one["waiting"] != 0);
        (stats, busy)
    };
    let mut still = 0;
    let mut last = state(&mut news);
    assert!(
        fanfare_loadtest::wait(Duration::from_secs(60), || {
            let now = state(&mut news);
            still = if now == last && !now.1 { still + 1 } else { 0 };
            last = now;
            still >= 12
        }),
        "the news never comes to rest: {last:?}"
    );
    news.ok(&json!({"op": "cancel", "app": "news"}));
    assert!(
        fanfare_loadtest::wait(Duration::from_secs(60), || {
            let (stats, busy) = state(&mut news);
            !busy && stats["stats"].as_array().expect("an array").iter().all(all_ended)
        }),
        "what was cancelled does not end"
    );
}

fn all_ended(counts: &Value) -> bool {
    let number = |name: &str| counts[name].as_u64().unwrap_or_default();
    let ended: u64 = ["accepted", "gone", "refused", "expired", "cancelled", "skipped"].into_iter().map(number).sum();
    ended == number("recipients")
}

struct Student<'p> {
    client: Client,
    pool: &'p Pool,
    /// The words of the parser.
    words: &'p Vec<Value>,
    /// A line that lacks nothing, of which the daemon does not like a value: it has to do where no value is good, as where only what
    /// the app itself was given is taken.
    refused: Option<Value>,
    /// Members of which none of the values was good for an operation.
    hopeless: BTreeSet<(String, String)>,
}

impl<'p> Student<'p> {
    /// Everything that is asked with one operation.
    fn requests(&mut self, op: &str) -> Vec<(String, Value)> {
        let members = self.members(op);
        let mut requests = Vec::new();
        let starts: Vec<Value> = members
            .iter()
            .flat_map(|member| self.pool.named(member).map(move |value| with(&json!({"op": op}), member, value)))
            .collect();
        for member in &members {
            self.refused = None;
            let line = self.line_with(member, &[json!({"op": op})]);
            // Some members can only stand beside another one that is not needed by itself.
            let line = line.or_else(|| self.line_with(member, &starts)).or_else(|| self.refused.take());
            let line = line.unwrap_or_else(|| {
                panic!("`{op}` takes `{member}`, but with which value? Let the shop use it, so that its values are tried too")
            });
            let form = format!("{op} {member}");
            let mut add = |request: Value| requests.push((form.clone(), request));
            for value in self.pool.all(member) {
                add(with(&line, member, value));
            }
            // Together with each of the shop's own values for what stands beside it.
            let small = |value: &&Value| value.to_string().len() <= PAIRED_BYTES;
            for companion in line.as_object().expect("a request").keys().filter(|name| *name != "op" && *name != member) {
                let beside = self.pool.named(companion).filter(small);
                let (plain, nested): (Vec<_>, Vec<_>) = beside.partition(|value| !(value.is_object() || value.is_array()));
                for beside in plain.into_iter().take(PLAIN_BESIDE).chain(nested.into_iter().take(NESTED_BESIDE)) {
                    for value in self.pool.named(member).filter(small).take(VARIED) {
                        add(with(&with(&line, companion, beside), member, value));
                    }
                }
            }
            for (inner, request) in self.inside(&line, member) {
                requests.push((format!("{op} {member}.{inner}"), request));
            }
        }
        requests
    }

    /// The members of an operation.
    fn members(&mut self, op: &str) -> Vec<String> {
        let words: Vec<String> = self.names().filter(|word| !matches!(&**word, "op" | "id")).collect();
        let requests: Vec<Value> = words.iter().map(|word| with(&json!({"op": op}), word, &json!([[]]))).collect();
        let replies = self.ask_all(requests);
        let known =
            |(word, reply): &(String, Value)| !(reply["error"]["code"] == "unknown_field" && reply["error"]["field"] == **word);
        words.into_iter().zip(replies).filter(known).map(|(word, _)| word).collect()
    }

    /// A line with this member that is understood: one of these with it, and with what is still missing.
    fn line_with(&mut self, member: &str, starts: &[Value]) -> Option<Value> {
        for start in starts.iter().filter(|start| start.get(member).is_none()) {
            for value in self.candidates(member) {
                if let Some(line) = self.complete(with(start, member, value), 5) {
                    return Some(line);
                }
            }
        }
        None
    }

    /// The line with all that the daemon says is missing in it.
    fn complete(&mut self, line: Value, depth: usize) -> Option<Value> {
        let reply = self.ask(&line);
        if understood(&reply) {
            return Some(line);
        }
        let missing = reply["error"]["field"].as_str().filter(|_| reply["error"]["code"] == "missing_field")?.to_owned();
        let key = (line["op"].to_string(), missing.clone());
        if depth == 0 || line.get(&missing).is_some() || missing.contains('.') {
            return None;
        }
        let first = self.candidates(&missing)[0];
        if self.hopeless.contains(&key) {
            self.refused.get_or_insert(with(&line, &missing, first));
            return None;
        }
        for value in self.candidates(&missing) {
            let longer = with(&line, &missing, value);
            let reply = self.ask(&longer);
            let of_this = reply["error"]["field"].as_str().is_some_and(|field| is_within(field, &missing));
            if understood(&reply) {
                return Some(longer);
            }
            if !of_this {
                if reply["error"]["code"] == "missing_field" {
                    return self.complete(longer, depth - 1);
                }
                // It was good, and the member that it was wanted for is not.
                self.refused.get_or_insert(longer);
                return None;
            }
        }
        self.refused.get_or_insert(with(&line, &missing, first));
        self.hopeless.insert(key);
        None
    }

    /// What a member may want: the shop's values for it, or, where the shop has none, all others and the words of the protocol.
    fn candidates(&self, member: &str) -> Vec<&'p Value> {
        let own: Vec<_> = self.pool.named(member).collect();
        if own.is_empty() { self.pool.all(member).chain(self.words).collect() } else { own }
    }

    fn names(&self) -> impl Iterator<Item = String> + use<'p> {
        self.words.iter().map(|word| word.as_str().expect("a word").to_owned())
    }

    /// The same for the members of an object that stands under a member, or in a list there.
    fn inside(&mut self, line: &Value, member: &str) -> Vec<(String, Value)> {
        let mut requests = Vec::new();
        let listed = line[member].is_array();
        let wrap = |object: Value| if listed { json!([object]) } else { object };
        let object = if listed { &line[member][0] } else { &line[member] };
        let Value::Object(object) = object else { return requests };
        let objects = [Value::Object(object.clone()), Value::Object(Map::new())];
        let mut names: Vec<String> = object.keys().cloned().collect();
        let of = |name: &str, value: &Value, object: &Value| with(line, member, &wrap(with(object, name, value)));
        let strange = "no-name-of-the-protocol";
        let words: Vec<String> = self.names().chain([strange.to_owned()]).collect();
        // No member takes both of these, and one that is not looked at takes both.
        let probes = [json!([[]]), json!(7)];
        let asked = words.iter().flat_map(|word| probes.iter().map(|probe| of(word, probe, &objects[0]))).collect();
        let replies = self.ask_all(asked);
        let refused = |reply: &Value| reply["error"]["code"] != "unknown_field" && !taken(reply);
        let judged: Vec<String> = words
            .into_iter()
            .zip(replies.chunks(probes.len()))
            .filter(|(_, replies)| replies.iter().any(refused))
            .map(|(word, _)| word)
            .collect();
        // Where every name is good, as in attributes, there are no others to find.
        if !judged.iter().any(|word| word == strange) {
            names.extend(judged);
            names.sort();
            names.dedup();
        }
        for name in names {
            for value in self.pool.all(&name) {
                for object in &objects {
                    requests.push((name.clone(), of(&name, value, object)));
                }
            }
        }
        requests
    }

    /// The last lines of the answers to many requests.
    fn ask_all(&mut self, requests: Vec<Value>) -> Vec<Value> {
        let requests: Vec<(String, Value)> = requests.into_iter().map(|request| (String::new(), request)).collect();
        let mut replies = Vec::new();
        for burst in bursts(&requests) {
            let lines: String = burst.iter().map(|(_, request)| format!("{request}\n")).collect();
            self.client.send_raw(lines.as_bytes()).expect("the daemon reads");
            replies.extend(burst.iter().map(|(_, request)| answer(&mut self.client, request).pop().expect("the last line")));
        }
        replies
    }

    fn ask(&mut self, request: &Value) -> Value {
        if request["follow"] == true {
            // It would never be answered to the end.
            return json!({"ok": true});
        }
        self.client.send(request).expect("the daemon reads");
        answer(&mut self.client, request).pop().expect("the last line")
    }
}

/// Whether a line got as far as being carried out.
fn understood(reply: &Value) -> bool {
    reply["ok"] == true || MALFORMED.iter().all(|code| reply["error"]["code"] != *code)
}

/// Understood, and nothing of it set aside.
fn taken(reply: &Value) -> bool {
    understood(reply) && reply.get("rejected").is_none()
}

fn is_within(field: &str, member: &str) -> bool {
    field.strip_prefix(member).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn with(object: &Value, name: &str, value: &Value) -> Value {
    let mut object = object.clone();
    object[name] = value.clone();
    object
}
