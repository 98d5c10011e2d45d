//! Promise 8 between applications: what belongs to one app does not exist on the socket of another, and neither can change, stop
//! or learn anything of the other.
//!
//! The test plays the same game twice. In one world the app `shop` has a life of its own, and the app `news` then tries every value
//! that the shop ever wrote or read in every member of every operation. In the other world there is no shop, so that the very same
//! values are nobody's. Whatever the news is told must be the same in both, and the shop must find everything as it was.
//!
//! No operation, member or value is listed here. The operations come from the daemon, which tells them in its answer to an unknown
//! one; the members are those words of the parser's source that an operation takes; the values are the shop's own lines and replies.
//! A new operation is in the game from its first day; where the shop never uses a member, the test asks for that.

mod forms;
mod numbers;
mod pool;
mod shop;
mod told;
mod world;

use std::collections::BTreeMap;

use fanfare_loadtest::mock::{Mock, Options};
use serde_json::json;

use forms::Script;
use pool::Pool;
use shop::Shop;
use told::{Mask, Told};
use world::{Keys, World};

/// Differences that a failure shows.
const SHOWN: usize = 200;

#[test]
fn whatever_one_app_tries_with_the_values_of_another_is_answered_as_if_they_were_nobodys_and_changes_nothing() {
    let mock = Mock::start(Options { listeners: 2, ..Options::default() });
    let keys = Keys::write();
    let own = mock.subscribe(0, 2);

    let busy = World::start(&mock, &keys, true);
    let mut shop = Shop::open(&busy, &mock);
    let mut pool = Pool::of(&shop.told);
    pool.add("app", &json!("news"));
    pool.add("subscription", &own[0].json());
    pool.add("subscription_id", &json!(fanfare_loadtest::mock::subscription_id(&own[0].endpoint)));
    let script = Script::learn(&World::start(&mock, &keys, false), &pool);
    println!("{} values of the shop, {} requests of the news", pool.values.len(), script.len());

    let mut wrong = Vec::new();
    let mut mask = Mask::new(&pool);
    let mut with_shop = Vec::new();
    for round in ["before the shop has used what it has", "after it has"] {
        let (view, posts) = (shop.view(), shop.posts(&mock));
        with_shop.push(script.play(&busy, &mut mask));
        for (_, request, before, after) in differences(&view, &shop.view()) {
            wrong.push(format!("{round}, the news changed what the shop is told\n    {request}\n      {before}\n      {after}"));
        }
        let later = shop.posts(&mock);
        if later != posts {
            wrong.push(format!("{round}, the news had {} posts made in the shop's name", later - posts));
        }
        if with_shop.len() == 1 {
            wrong.extend(shop.use_all(&mock));
        }
    }
    drop(busy);

    let alone = World::start(&mock, &keys, false);
    let mut mask = Mask::new(&pool);
    for (told, round) in with_shop.iter().zip(["before the shop has used what it has", "after it has"]) {
        let without = script.play(&alone, &mut mask);
        let mut by_form: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for (form, request, before, after) in differences(told, &without) {
            by_form
                .entry(form)
                .or_default()
                .push(format!("{request}\n      with a shop:    {before}\n      without a shop: {after}"));
        }
        for (form, all) in by_form {
            wrong.push(format!("{round}, `{form}` tells of the shop, {} times, such as\n    {}", all.len(), all[0]));
        }
    }
    assert!(wrong.is_empty(), "{} borders do not hold:\n{}", wrong.len(), wrong[..wrong.len().min(SHOWN)].join("\n"));
}

/// What was answered otherwise the second time: the form, the request, and both answers.
fn differences<'t>(one: &'t [Told], other: &'t [Told]) -> Vec<(&'t str, String, String, String)> {
    let pairs = one.iter().zip(other).filter(|(one, other)| one.lines != other.lines);
    let mut found: Vec<_> = pairs
        .map(|(one, other)| {
            let (first, second) = (unlike(&one.lines, &other.lines), unlike(&other.lines, &one.lines));
            (&*one.form, short(&one.request.to_string()), first, second)
        })
        .collect();
    if one.len() != other.len() {
        let count = |told: &[Told]| format!("{} answers", told.len());
        found.push(("all", "everything, and the status of each message made".to_owned(), count(one), count(other)));
    }
    found
}

/// The first line that the other has not.
fn unlike(lines: &[String], other: &[String]) -> String {
    let line = lines.iter().zip(other).find(|(line, other)| line != other).map(|(line, _)| line);
    match line.or_else(|| lines.get(other.len())) {
        Some(line) => format!("{} lines, {}", lines.len(), short(line)),
        None => format!("{} lines", lines.len()),
    }
}

fn short(text: &str) -> String {
    const LONGEST: usize = 700;
    match text.char_indices().nth(LONGEST) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}
