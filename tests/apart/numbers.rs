//! What an app is given to refer to something by (ids, cursors) does not count what the others do.

use std::time::{Duration, Instant};

use fanfare_loadtest::mock::{Mock, Options, subscription_id};
use fanfare_loadtest::random::Random;
use serde_json::{Value, json};

use crate::world::{Keys, World};

/// Steps of the news between which the shop does more or less.
const STEPS: usize = 32;
/// Of series of so many numbers that have nothing to do with each other, one in a thousand million is as much alike.
const ALIKE: f64 = 0.9;
/// A step takes so long however much the shop does in it, and by chance up to half as much more: ids may tell the time.
const STEP: Duration = Duration::from_millis(200);
/// Characters of a message id that tell the time.
const TIME_CHARACTERS: usize = 10;
/// The same of a receipt, which begins with the message's id.
const RECEIPT_TIME_CHARACTERS: usize = 8;

#[test]
fn ids_and_cursors_of_one_app_do_not_tell_how_much_another_does() {
    let mock = Mock::start(Options::default());
    let keys = Keys::write();
    let world = World::start(&mock, &keys);
    let [mut shop, mut news] = ["shop", "news"].map(|app| world.client(app));
    let browsers = mock.subscribe(0, STEPS * 20);
    let mut random = Random::new();
    let mut done = Vec::new();
    let (mut ids, mut receipts, mut events, mut lists) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut shops = browsers[STEPS..].iter();
    for own in &browsers[..STEPS] {
        let begin = Instant::now();
        let held = |browser: Value| json!({"op": "send", "to": {"subscription": browser}, "paused": true, "label": "l"});
        ids.push(text(&news.ok(&held(own.json()))["message_id"]));
        news.ok(&json!({"op": "cancel", "message_id": ids.last()}));
        let with_receipt = json!({"op": "send", "to": {"subscription": own.json()}, "receipts": true, "payload": {}});
        news.ok(&with_receipt);
        assert!(fanfare_loadtest::wait(Duration::from_secs(20), || !mock.received_by(own).is_empty()));
        let payload: Value = serde_json::from_str(&mock.received_by(own)[0].text()).expect("JSON");
        receipts.push(text(&payload["receipt"]));
        events.push(text(&news.ok(&json!({"op": "events", "after": "newest"}))["cursor"]));
        news.ok(&json!({"op": "subscribe", "subscription": own.json(), "account": subscription_id(&own.endpoint)}));
        let work = random.below(18) as usize;
        done.push(work as f64);
        for _ in 0..work {
            let browser = shops.next().expect("there are enough");
            shop.ok(&json!({"op": "subscribe", "subscription": browser.json()}));
            let id = shop.ok(&held(browser.json()))["message_id"].clone();
            shop.ok(&json!({"op": "cancel", "message_id": id}));
        }
        let step = STEP + Duration::from_millis(random.below(100));
        std::thread::sleep(step.saturating_sub(begin.elapsed()));
    }
    let mut after = Value::Null;
    loop {
        let page = news.ok(&json!({"op": "list_subscriptions", "limit": 1, "after": after}));
        after = page["after"].clone();
        if after.is_null() {
            break;
        }
        lists.push(text(&after));
    }
    assert!(lists.len() >= STEPS - 1, "{lists:?}");
    let mut wrong = Vec::new();
    let ids: Vec<String> = ids.iter().map(|id| id[TIME_CHARACTERS..].to_owned()).collect();
    let receipts: Vec<String> = receipts.iter().map(|receipt| receipt[RECEIPT_TIME_CHARACTERS..].to_owned()).collect();
    for (what, given) in [
        ("message ids", &ids),
        ("receipts", &receipts),
        ("cursors of events", &events),
        ("cursors of list_subscriptions", &lists),
    ] {
        for (reading, numbers) in readings(given) {
            let steps: Vec<f64> = numbers.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let alike =
                [&done[..steps.len()], &done[1..]].into_iter().map(|work| rank_correlation(work, &steps)).fold(0.0, f64::max);
            if alike > ALIKE {
                wrong.push(format!(
                    "{what} follow what the other app does ({reading}, {alike:.2}), such as {} and {}",
                    given[3], given[4]
                ));
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("text, not {value}")).to_owned()
}

/// The numbers that a text may be: each of its decimal numbers, its last characters in the alphabets in use, and parts of that.
fn readings(texts: &[String]) -> Vec<(String, Vec<f64>)> {
    let mut all = Vec::new();
    let decimals =
        |text: &str| -> Vec<f64> { text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect() };
    let fewest = texts.iter().map(|text| decimals(text).len()).min().unwrap_or_default();
    for place in 0..fewest {
        all.push((format!("decimal number {place}"), texts.iter().map(|text| decimals(text)[place]).collect()));
    }
    const CROCKFORD: &str = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    const BASE64: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const HEX: &str = "0123456789abcdef";
    for alphabet in [CROCKFORD, BASE64, HEX] {
        let read = |text: &str| text.bytes().map(|byte| alphabet.bytes().position(|one| one == byte)).collect::<Option<Vec<_>>>();
        let Some(digits) = texts.iter().map(|text| read(text)).collect::<Option<Vec<_>>>() else { continue };
        let longest = digits.iter().map(Vec::len).min().unwrap_or_default();
        for from in 0..longest {
            for to in from + 1..=longest {
                let number = |digits: &Vec<usize>| {
                    digits[from..to].iter().fold(0.0, |sum, digit| sum * alphabet.len() as f64 + *digit as f64)
                };
                all.push((format!("characters {from} to {to}"), digits.iter().map(number).collect()));
            }
        }
    }
    all
}

/// Spearman's: 1 if the one grows whenever the other does.
fn rank_correlation(one: &[f64], other: &[f64]) -> f64 {
    let (one, other) = (ranks(one), ranks(other));
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_one, mean_other) = (mean(&one), mean(&other));
    let sum = |f: &dyn Fn(f64, f64) -> f64| one.iter().zip(&other).map(|(a, b)| f(a - mean_one, b - mean_other)).sum::<f64>();
    let spread = (sum(&|a, _| a * a) * sum(&|_, b| b * b)).sqrt();
    if spread == 0.0 { 0.0 } else { sum(&|a, b| a * b) / spread }
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |value: &f64| {
        let (below, same) =
            (values.iter().filter(|other| *other < value).count(), values.iter().filter(|other| *other == value).count());
        below as f64 + same as f64 / 2.0
    };
    values.iter().map(rank).collect()
}
