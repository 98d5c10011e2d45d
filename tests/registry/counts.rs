//! Segments and counts are those of a plain model, whatever was done before, a kill -9 among it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use fanfare_loadtest::client::Client;
use fanfare_loadtest::daemon::Daemon;
use fanfare_loadtest::mock::{Fault, Scope, Subscription};
use fanfare_loadtest::population::{self, EVERYBODY, SCOPE};
use serde_json::{Value, json};

use crate::support::{Random, answer, count, id_of, number, send, start, wait_ended};

const BROWSERS: usize = 80;
const STEPS: usize = 1_500;
/// Steps between two comparisons.
const EVERY: usize = 50;
const TAGS: [&str; 5] = ["a", "b", "c", "rare", "ż"];
const SCOPES: [&str; 3] = ["news", "sport", "weather"];

#[derive(Clone, Debug, Default)]
struct Row {
    tags: BTreeSet<&'static str>,
    scopes: Option<BTreeSet<&'static str>>,
    lang: Option<&'static str>,
    account: Option<String>,
    /// Its push service does not know it any more; it comes back as it was if the browser does.
    gone: bool,
}

type Model = BTreeMap<usize, Row>;

#[test]
fn random_changes_leave_what_a_model_says() {
    let mut random = Random::new();
    let (mock, mut daemon) = start(|config| config.set("retry.min", 0.1));
    let browsers: Vec<Subscription> = (0..BROWSERS).map(|number| mock.subscribe(number % 2, 1).remove(0)).collect();
    let mut client = daemon.client();
    let mut model = Model::new();
    for step in 0..STEPS {
        change(&mut client, &mock, &browsers, &mut model, &mut random);
        if step % EVERY == EVERY - 1 {
            compare(&mut client, &browsers, &model, &mut random);
        }
        if step % 400 == 399 {
            daemon.kill9();
            daemon.restart().expect("it starts after a kill");
            client = daemon.client();
            compare(&mut client, &browsers, &model, &mut random);
        }
    }
    assert_eq!(mock.counters().violations, Vec::<String>::new());
}

/// Subscriptions that a walk looks at: so many that walks begun together would meet.
const WALKED: usize = 30_000;
/// Connections that have something counted at the same time, and counts of each.
const COUNTERS: usize = 60;
const COUNTS: usize = 3;

#[test]
fn walks_take_turns() {
    let (mock, daemon) = start(|config| config);
    let mut client = daemon.client();
    // The mock needs to know none of them.
    let browser = mock.subscribe(0, 1).remove(0);
    let request = |number: usize| {
        let mut own = browser.json();
        own["endpoint"] = format!("{}-{number}", browser.endpoint).into();
        json!({"op": "subscribe", "subscription": own, "attributes": {"n": number % COUNTS}})
    };
    for burst in (0..WALKED).collect::<Vec<_>>().chunks(2_000) {
        burst.iter().for_each(|number| client.send(&request(*number)).expect("the daemon reads"));
        burst.iter().for_each(|_| assert_eq!(client.recv().expect("a reply")["ok"], true));
    }
    let mut counters: Vec<Client> = (0..COUNTERS).map(|_| daemon.client()).collect();
    let threads = threads(&daemon);
    for counter in &mut counters {
        for n in 0..COUNTS {
            let count = json!({"op": "count", "segment": {"attributes": {"n": n}}, "id": n});
            counter.send(&count).expect("the daemon reads");
        }
    }
    // One of them does not wait for its numbers.
    counters.pop();
    let asked = Instant::now();
    client.ok(&json!({"op": "ping"}));
    println!("a ping meanwhile: {:?}", asked.elapsed());
    for counter in &mut counters {
        for n in 0..COUNTS {
            let reply = counter.recv().expect("a reply");
            assert_eq!((&reply["id"], &reply["count"]), (&json!(n), &json!(WALKED / COUNTS)), "{reply}");
        }
    }
    println!("all counted: {:?}", asked.elapsed());
    // A thread that walked stays a while: those that were needed at once are still there. Two walk; a few more come because a
    // thread that has just ended a walk is not idle yet when the next one begins.
    let more = self::threads(&daemon).saturating_sub(threads);
    assert!(more <= COUNTERS / 3, "{more} threads more");
}

/// Threads of the daemon's process.
fn threads(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).expect("it runs").count()
}

fn change(
    client: &mut Client,
    mock: &fanfare_loadtest::mock::Mock,
    browsers: &[Subscription],
    model: &mut Model,
    random: &mut Random,
) {
    let which = random.below(BROWSERS as u64) as usize;
    let browser = &browsers[which];
    match random.below(20) {
        0..=9 => {
            // A browser that was gone may be back under its endpoint.
            mock.clear_faults(&Scope::Subscription(browser.token.clone()));
            let created = !model.contains_key(&which);
            let row = model.entry(which).or_default();
            row.gone = false;
            let mut request = json!({"op": "subscribe", "subscription": browser.json()});
            fields(row, &mut request, random);
            if random.below(4) == 0 {
                row.account = Some(format!("account-{}", random.below(10)));
                request["account"] = json!(row.account);
            }
            let reply = client.ok(&request);
            assert_eq!(reply["created"], created, "{request} was answered {reply}");
        }
        10..=14 => {
            let mut request = json!({"op": "update_subscription", "subscription_id": id_of(browser)});
            match model.get_mut(&which) {
                Some(row) => {
                    fields(row, &mut request, random);
                    if random.below(4) == 0 {
                        row.account = None;
                        request["account"] = Value::Null;
                    }
                    if request.as_object().is_some_and(|members| members.len() > 2) {
                        client.ok(&request);
                    }
                }
                None => {
                    request["enabled"] = json!(true);
                    assert_eq!(client.error(&request)["code"], "not_found");
                }
            }
        }
        15..=17 => {
            let known = model.remove(&which).is_some();
            let reply = client.ok(&json!({"op": "unsubscribe", "subscription_id": id_of(browser)}));
            assert_eq!(reply["removed"], known, "{reply}");
        }
        _ if model.get(&which).is_some_and(|row| !row.gone) => {
            answer(mock, browser, Fault::status(410));
            let id = send(client, json!({"subscription_ids": [id_of(browser)]}), json!({}));
            assert_eq!(number(&wait_ended(client, &id), "gone"), 1);
            model.get_mut(&which).expect("it is there").gone = true;
        }
        _ => {}
    }
}

/// Some of tags, scopes and attributes, in the model and in the request.
fn fields(row: &mut Row, request: &mut Value, random: &mut Random) {
    if random.below(2) == 0 {
        row.tags = TAGS.into_iter().filter(|_| random.below(3) == 0).collect();
        request["tags"] = json!(row.tags);
    }
    if random.below(2) == 0 {
        row.scopes = Some(SCOPES.into_iter().filter(|_| random.below(2) == 0).collect());
        request["scopes"] = json!(row.scopes);
    }
    if random.below(3) == 0 {
        row.lang = Some(random.one(&["pl", "en"]));
        request["attributes"] = json!({"lang": row.lang});
    }
}

fn compare(client: &mut Client, browsers: &[Subscription], model: &Model, random: &mut Random) {
    let model: Model = model.iter().filter(|(_, row)| !row.gone).map(|(which, row)| (*which, row.clone())).collect();
    assert_eq!(count(client, json!({})), model.len() as u64);
    for tag in TAGS {
        let wanted = model.values().filter(|row| row.tags.contains(tag)).count() as u64;
        assert_eq!(count(client, json!({"segment": {"tags": {"any": [tag]}}})), wanted, "{tag}");
    }
    let accepts = |row: &Row, scope: &str| row.scopes.as_ref().is_none_or(|scopes| scopes.contains(scope));
    for scope in SCOPES {
        let wanted = model.values().filter(|row| accepts(row, scope)).count() as u64;
        assert_eq!(count(client, json!({"scope": scope})), wanted, "{scope}");
    }
    for _ in 0..6 {
        let pick =
            |random: &mut Random| -> BTreeSet<&'static str> { TAGS.into_iter().filter(|_| random.below(3) == 0).collect() };
        let (any, all, none) = (pick(random), pick(random), pick(random));
        let lang = (random.below(3) == 0).then(|| random.one(&["pl", "en"]));
        let mut tags = json!({});
        for (name, set) in [("any", &any), ("all", &all), ("none", &none)] {
            if !set.is_empty() {
                tags[name] = json!(set);
            }
        }
        let mut segment = json!({});
        if tags != json!({}) {
            segment["tags"] = tags;
        }
        if let Some(lang) = lang {
            segment["attributes"] = json!({"lang": lang});
        }
        if segment == json!({}) {
            segment["all"] = json!(true);
        }
        let holds = |row: &Row| {
            (any.is_empty() || any.iter().any(|tag| row.tags.contains(tag)))
                && all.iter().all(|tag| row.tags.contains(tag))
                && !none.iter().any(|tag| row.tags.contains(tag))
                && lang.is_none_or(|lang| row.lang == Some(lang))
        };
        let wanted: BTreeSet<String> =
            model.iter().filter(|(_, row)| holds(row)).map(|(which, _)| id_of(&browsers[*which])).collect();
        assert_eq!(count(client, json!({"segment": segment})), wanted.len() as u64, "{segment}");
        assert_eq!(listed(client, json!({"segment": segment}), random), wanted, "{segment}");
        let scope = random.one(&SCOPES);
        let both = model.values().filter(|row| holds(row) && accepts(row, scope)).count() as u64;
        assert_eq!(count(client, json!({"segment": segment, "scope": scope})), both, "{scope} of {segment}");
    }
    let account = format!("account-{}", random.below(10));
    let wanted: BTreeSet<String> = model
        .iter()
        .filter(|(_, row)| row.account.as_ref() == Some(&account))
        .map(|(which, _)| id_of(&browsers[*which]))
        .collect();
    assert_eq!(listed(client, json!({"account": account}), random), wanted, "{account}");
}

/// What `list_subscriptions` lists, page by page; nothing twice.
fn listed(client: &mut Client, of: Value, random: &mut Random) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    let mut after = Value::Null;
    loop {
        let page = crate::support::with(json!({"op": "list_subscriptions", "limit": 1 + random.below(40)}), of.clone());
        let page = client.ok(&crate::support::with(page, json!({"after": after})));
        for subscription in page["subscriptions"].as_array().expect("an array") {
            let id = subscription["subscription_id"].as_str().unwrap_or_else(|| panic!("{subscription} has no id")).to_owned();
            assert!(subscription.get("endpoint").is_none_or(Value::is_null), "an endpoint only with `reveal`: {subscription}");
            assert!(all.insert(id.clone()), "{id} is listed twice");
        }
        after = page["after"].clone();
        if after.is_null() {
            return all;
        }
    }
}

/// Kept counts are read, not counted: however many there are.
#[test]
fn a_count_does_not_depend_on_how_many() {
    let (mock, daemon) = start(|config| config);
    let crowd = mock.crowd(fanfare_loadtest::mock::Plan { members: 20_000, keys: 100, ..Default::default() });
    population::subscribe_all(&daemon.socket(), &crowd.members, 0..20_000).expect("all are taken");
    let mut client = daemon.client();
    for (request, wanted) in [
        (json!({}), 20_000),
        (json!({"segment": {"tags": {"any": [EVERYBODY]}}}), 20_000),
        (json!({"segment": {"tags": {"all": ["t7"]}}}), 10),
        (json!({"scope": SCOPE}), 20_000),
        (json!({"scope": "another"}), 10_000),
    ] {
        let begin = Instant::now();
        for _ in 0..100 {
            assert_eq!(count(&mut client, request.clone()), wanted, "{request}");
        }
        let each = begin.elapsed() / 100;
        assert!(each < Duration::from_millis(5), "{request} took {each:?}");
    }
}
