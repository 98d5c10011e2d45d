//! Two apps that know the same browsers, each with an account of the same name: whatever one of them erases, nothing of the other's
//! is ended, blanked or counted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::oneshot;

use crate::clock;
use crate::message::{Account, Ending, MessageId, Recipient, Reference, Segment, SubscriptionId};
use crate::protocol::request::{By, Devices, Erase, EventType, Payload, Send, Subscribe, Subscriptions, Target, To, Whose};
use crate::store::commit::{Apps, Done, Erasing, Op, prepare_send, prepare_subscribe};
use crate::store::erase::Swept;
use crate::store::harness::{self, HOSTS, HarnessOnly, Setup};
use crate::store::key::after_prefix;
use crate::store::live::Holder;
use crate::store::registry::row::Fallback;
use crate::store::writer::{read_rule, rule_key};
use crate::store::{Rows, family};

const APPS: [&str; 2] = ["shop", "news"];
const ACCOUNT: &str = "anna";
/// Of the account.
static OWN: [u8; 2] = [0, 1];
/// Of nobody who is erased.
const OTHER: u8 = 2;
const LATER: u64 = 600_000;

type World = harness::World<HarnessOnly>;

/// What an app has in the store.
struct Has {
    app: &'static str,
    singles: Vec<MessageId>,
    /// Those in one chunk, those of an account, and a campaign.
    lists: [MessageId; 3],
    past: Vec<MessageId>,
}

impl Has {
    fn all(&self) -> impl Iterator<Item = MessageId> {
        self.singles.iter().chain(&self.lists).chain(&self.past).copied()
    }
}

fn id_of(who: u8) -> SubscriptionId {
    SubscriptionId::of(&format!("https://{}/{who}", HOSTS[usize::from(who) % 2]))
}

fn text_of(who: u8) -> String {
    URL_SAFE_NO_PAD.encode(id_of(who).0)
}

fn only(app: &str) -> Apps {
    Arc::new(vec![Arc::from(app)])
}

impl World {
    fn new() -> World {
        World::start_with(Setup { browsers_per_account: 9, events_max: 64 << 20, looks_on: false }, HarnessOnly, &APPS)
    }

    fn browser(&self, who: u8) -> Recipient {
        let host = HOSTS[usize::from(who) % 2];
        let raw = self.recipient(host, &format!("https://{host}"), who);
        Recipient { reference: Some(Reference::Integer(i64::from(who))), ..raw }
    }

    fn raw(&self, whom: &[u8]) -> To {
        let good = whom.iter().map(|who| self.browser(*who)).collect();
        To::Subscriptions(Subscriptions { good, rejected: Vec::new() })
    }

    fn send(&mut self, app: &str, to: To, more: impl FnOnce(Send) -> Send) -> MessageId {
        let send = Send::new(Arc::from(app), to, Payload::opaque(Bytes::from_static(b"hello")), 2_419_200);
        let op = Op::Send(Box::new(prepare_send(more(send), &self.preparing())));
        match self.hand_over(op) {
            Done::Taken { message_id, .. } => message_id,
            other => panic!("{other:?}"),
        }
    }

    /// The account's browsers and another one, what they were sent and have seen, and what waits for them in every way.
    fn fill(&mut self, app: &'static str) -> Has {
        for who in [OWN[0], OWN[1], OTHER] {
            let subscribe = Subscribe {
                app: Arc::from(app),
                subscription: self.browser(who),
                account: Some(Account::from(if who == OTHER { "berta" } else { ACCOUNT })),
                name: None,
                user_agent: None,
                scopes: None,
                tags: None,
                attributes: None,
                replaces: None,
                confirm: None,
            };
            let op = prepare_subscribe(subscribe, None, &self.preparing());
            assert!(matches!(self.hand_over(op), Done::Subscribed { created: true, .. }));
        }
        let account = || To::Accounts { accounts: vec![Account::from(ACCOUNT)], devices: Devices::All };
        let to = self.raw(&[OWN[0]]);
        let past = vec![self.send(app, account(), |send| send), self.send(app, to, |send| send)];
        self.drain();
        for id in &past {
            assert_eq!(self.shown(app, *id, OWN[0]), Done::Updated);
        }
        let at = Some(clock::now().plus(LATER));
        let later = |send: Send| Send { at, ..send };
        // A rate makes a list of however few.
        let list = |send: Send| Send { at, rate: Some(1e6), ..send };
        let (one, some) = (self.raw(&[OWN[0]]), self.raw(&[OWN[0], OTHER]));
        let singles = vec![
            self.send(app, one, later),
            self.send(app, To::Ids(vec![id_of(OWN[0])]), later),
            self.send(app, account(), |send| Send { fallback: Some(3_600.0), ..later(send) }),
        ];
        let lists =
            [self.send(app, some, list), self.send(app, account(), list), self.send(app, To::Segment(Segment::default()), later)];
        self.write_checkpoint();
        Has { app, singles, lists, past }
    }

    /// A receipt comes back.
    fn shown(&mut self, app: &str, id: MessageId, who: u8) -> Done {
        let kind = EventType::Shown;
        self.hand_over(Op::Feedback { id, subscription: id_of(who), kind, apps: only(app) })
    }

    /// The time of what waits has come.
    fn later(&mut self) {
        self.ahead += LATER + 1_000;
        for _ in 0..2 {
            self.drain();
            self.sweep();
        }
    }

    fn erase(&mut self, erase: Erase, everywhere: bool, apps: Apps) -> (u64, oneshot::Receiver<Swept>) {
        let (reply, swept) = oneshot::channel();
        match self.hand_over(Op::Erase { erase, everywhere, apps, so_far: Erasing::new(reply) }) {
            Done::Erased { removed } => (removed, swept),
            other => panic!("{other:?}"),
        }
    }

    fn sweep(&mut self) {
        loop {
            let now = self.now();
            let goes_on = self.run().sweep.play(now);
            self.write_checkpoint();
            if !goes_on {
                return;
            }
        }
    }

    fn events(&self, app: &str) -> Vec<String> {
        let events = self.store().events_after(0, 1_000).expect("read").into_iter();
        let texts = events.map(|event| String::from_utf8_lossy(&event.json).into_owned());
        texts.filter(|text| text.contains(&format!("\"app\":\"{app}\""))).collect()
    }

    /// An app's events that name one of these browsers.
    fn naming(&self, app: &str, whom: &[u8]) -> u64 {
        let names = |event: &&String| whom.iter().any(|who| event.contains(&text_of(*who)));
        self.events(app).iter().filter(names).count() as u64
    }

    /// All that an app can see of what is its own.
    fn seen(&self, has: &Has) -> Vec<String> {
        let (store, apps) = (self.store(), only(has.app));
        let number = store.registry.app(has.app).expect("configured");
        let mut seen = self.events(has.app);
        for id in has.all() {
            let status = store.status(id, &apps, self.now()).expect("read").expect("it is there");
            seen.push(format!("{status:?} {:?} {:?}", store.head(id), store.feedback(id)));
        }
        let (mut sums, later) = (BTreeMap::new(), Instant::now() + Duration::from_secs(60));
        store.stats(&[0; 4], u32::MAX, &[By::App, By::Service], &apps, later, &mut sums).expect("read");
        seen.push(format!("{sums:?}"));
        seen.push(format!("{:?}", store.account_subscriptions(number, ACCOUNT).expect("read")));
        seen.push(format!("{:?}", store.count(&apps, None, None, (0, None), later)));
        let receipts = self.rows(family::FEEDBACK, &[], &[255; 32], |key, _| store.app_of(key) == Ok(Some(apps[0].clone())));
        let fallbacks = self.rows(family::INDEX, &[7], &[8], |_, row| {
            Fallback::decode(Bytes::copy_from_slice(row)).is_ok_and(|fallback| *fallback.app == *has.app)
        });
        assert_eq!((receipts, fallbacks), (4, 1), "of each past message one, and how many there are; {}", has.app);
        seen
    }

    fn accepted(&self, id: MessageId) -> BTreeSet<SubscriptionId> {
        let of = self.ended.iter().filter(|((message, _), ending)| *message == id && **ending == Ending::Accepted);
        of.map(|((_, whom), _)| *whom).collect()
    }

    /// When its time has come everything of this app reaches whom it is for.
    fn all_arrives(&self, has: &Has) {
        let ids = |whom: &[u8]| whom.iter().map(|who| id_of(*who)).collect::<BTreeSet<_>>();
        let [chunk, account, campaign] = has.lists;
        let singles = has.singles.iter().zip([&OWN[..1], &OWN[..1], &OWN]).map(|(id, whom)| (*id, ids(whom)));
        let lists = [(chunk, ids(&[OWN[0], OTHER])), (account, ids(&OWN)), (campaign, ids(&[OWN[0], OWN[1], OTHER]))];
        for (id, whom) in singles.chain(lists) {
            assert_eq!(self.accepted(id), whom, "{id:?} of {}", has.app);
        }
    }
}

fn erasures() -> [(Erase, &'static [u8], u64); 2] {
    [
        (Erase::Subscription(id_of(OWN[0])), &OWN[..1], 3),
        (Erase::Account(Whose { account: Account::from(ACCOUNT), app: None }), &OWN, 4),
    ]
}

#[test]
fn what_one_app_erases_is_left_to_another() {
    for (erase, whom, waiting) in erasures() {
        for crash in [false, true] {
            let mut world = World::new();
            let [shop, news] = APPS.map(|app| world.fill(app));
            let before = world.seen(&news);
            let (named, kept) = (world.naming("shop", whom), world.naming("news", whom));
            assert!(named > 2 && named == kept);
            let (removed, mut swept) = world.erase(erase.clone(), false, only("shop"));
            assert_eq!(removed, whom.len() as u64, "{erase:?}");
            if crash {
                world.crash();
            }
            world.sweep();
            if !crash {
                assert_eq!(swept.try_recv(), Ok(Swept { cancelled: waiting, blanked: named }), "{erase:?}");
            }
            assert_eq!((world.naming("shop", whom), world.naming("news", whom)), (0, kept), "{erase:?}");
            assert_eq!(world.seen(&news), before, "{erase:?}");
            // A receipt that comes now.
            let told = world.naming("news", &OWN);
            assert_eq!(world.shown("news", news.past[0], OWN[1]), Done::Updated);
            world.write_checkpoint();
            assert_eq!(world.naming("news", &OWN), told + 1);

            world.later();
            world.all_arrives(&news);
            for id in shop.all().filter(|id| !shop.past.contains(id)) {
                let erased = whom.iter().map(|who| id_of(*who)).collect();
                assert!(world.accepted(id).is_disjoint(&erased), "{erase:?}");
            }
            let [chunk, ..] = shop.lists;
            assert_eq!(world.ended.get(&(chunk, id_of(OWN[0]))), Some(&Ending::Cancelled), "{erase:?}");
            assert_eq!(world.accepted(chunk), [id_of(OTHER)].into());
        }
    }
}

#[test]
fn an_erasure_on_the_operators_word_is_one_in_every_app_also_in_one_that_is_configured_no_more() {
    let mut world = World::new();
    let all = APPS.map(|app| world.fill(app));
    world.apps = only("shop");
    world.crash();
    let named: u64 = APPS.map(|app| world.naming(app, &OWN[..1])).iter().sum();
    let (removed, mut swept) = world.erase(Erase::Subscription(id_of(OWN[0])), true, only("shop"));
    world.sweep();
    assert_eq!((removed, swept.try_recv()), (1, Ok(Swept { cancelled: 6, blanked: named })));
    for has in &all {
        assert_eq!(world.naming(has.app, &OWN[..1]), 0, "{}", has.app);
        for id in &has.past {
            let head = world.store().head(*id).expect("read").expect("it is there");
            assert!(head.recipients.iter().all(|one| one.subscription != id_of(OWN[0])), "{}", has.app);
        }
    }
}

/// As the version that knew rules without an app wrote it: a rule that is not swept, and the erasure that waits for it.
#[test]
fn an_erasure_that_was_begun_when_rules_named_no_app_is_finished_in_all_apps() {
    let mut world = World::new();
    let all = APPS.map(|app| world.fill(app));
    let store = world.store();
    let mut holder = vec![1, 4];
    holder.extend(&Sha256::digest(id_of(OWN[0]).0)[..8]);
    let rule_key = [&b"cancel/"[..], &Sha256::digest(&holder)[..16]].concat();
    // All that was sent so far.
    let upto = all[1].lists[2].commit() + 1;
    let rule = [&holder[..], &upto.to_be_bytes(), &[0, 0], &clock::now().0.to_be_bytes(), &[0]].concat();
    let erasure_key = [&b"erase/"[..], &upto.to_be_bytes(), &[0, 0]].concat();
    let mut rows = Rows::new();
    let reader = store.reader().expect("open");
    rows.put(&reader, family::META, &rule_key, rule);
    rows.put(&reader, family::META, &erasure_key, holder);
    drop(reader);
    store.write(rows).expect("there is space");
    drop(store);
    world.crash();
    assert_eq!(world.rows(family::META, b"erase/", b"erase0", |_, _| true), 1);
    world.sweep();
    for has in &all {
        assert_eq!(world.naming(has.app, &OWN[..1]), 0, "{}", has.app);
        let singles = has.singles.iter().map(|id| {
            let status = world.store().status(*id, &only(has.app), world.now()).expect("read").expect("it is there");
            (status.counts.ended[Ending::Cancelled as usize - 1], status.counts.pending())
        });
        assert_eq!(singles.collect::<Vec<_>>(), [(1, 0), (1, 0), (1, 1)], "{}", has.app);
        let events = world.events(has.app);
        let erased = |event: &&String| serde_json::from_str::<Value>(event).expect("JSON")["reason"] == "erased";
        assert_eq!(events.iter().filter(erased).count(), 3, "{events:?}");
    }
    let swept = |key: &[u8], row: &[u8]| key == rule_key && read_rule(Bytes::copy_from_slice(row)).expect("it can be read").swept;
    assert_eq!(world.rows(family::META, b"cancel/", b"cancel0", swept), 1);
    assert_eq!(world.rows(family::META, b"erase/", b"erase0", |_, _| true), 0);
    // And not a second time after the next start.
    world.crash();
    let before = APPS.map(|app| world.events(app));
    world.sweep();
    assert_eq!(APPS.map(|app| world.events(app)), before);
    world.later();
    for has in &all {
        assert_eq!(world.ended.get(&(has.lists[0], id_of(OWN[0]))), Some(&Ending::Cancelled), "{}", has.app);
    }
}

#[test]
fn a_page_of_lists_goes_on_without_naming_another_apps_message() {
    let mut world = World::new();
    let send = |world: &mut World, app: &str| {
        let to = world.raw(&[OTHER]);
        world.send(app, to, |send| Send { paused: true, rate: Some(1e6), ..send })
    };
    let own = send(&mut world, "shop");
    for _ in 0..10 {
        send(&mut world, "news");
    }
    let (mut after, mut pages, mut found) = (None, 0, Vec::new());
    loop {
        let (page, next) = world.store().list_messages(|_| true, 9, after, 4, &only("shop"), world.now()).expect("read");
        found.extend(page.into_iter().map(|status| status.id));
        pages += 1;
        let Some(next) = next else { break };
        assert!(pages < 9, "{next:?} after {pages}");
        after = Some(next);
    }
    assert_eq!((found, pages), (vec![own], 3), "four are looked at for a page");
}

#[test]
fn what_an_app_resumes_does_not_wait_for_all_that_another_has_held() {
    let mut world = World::new();
    let label: Arc<str> = Arc::from("label");
    let target = || Target::Label(label.clone());
    for (app, sends) in [("shop", 5), ("news", 1)] {
        assert!(matches!(world.hand_over(Op::Pause { target: target(), apps: only(app) }), Done::Changed { .. }));
        for _ in 0..sends {
            let to = world.raw(&(0..60).collect::<Vec<u8>>());
            world.send(app, to, |send| Send { label: Some(label.clone()), ..send });
        }
    }
    world.drain();
    world.write_checkpoint();
    let held = |world: &World| {
        APPS.map(|app| {
            let prefix = rule_key("", &Holder::Label(Arc::from(app), label.clone()))[1..].to_vec();
            world.rows(family::HELD, &prefix, &after_prefix(&prefix), |_, _| true)
        })
    };
    assert_eq!(held(&world), [300, 60]);
    let resume = |app| Op::Resume { target: target(), rate: None, apps: only(app) };
    let _answers = world.hand_in(vec![resume("shop"), resume("news")]);
    let mut turns = 0;
    while held(&world)[1] > 0 {
        turns += 1;
        assert!(turns < 50, "{:?}", held(&world));
        world.run().writer.play();
    }
    assert!(held(&world)[0] > 100, "{:?}", held(&world));
    world.pump();
    world.drain();
    assert_eq!(held(&world), [0, 0]);
    assert_eq!(world.ended.values().filter(|ending| **ending == Ending::Accepted).count(), 360);
}
