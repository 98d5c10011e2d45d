//! A small registry and campaigns over it, with the writer, the scheduler, the sweep and a worker played by hand, under random
//! actions, crash and reopen among them. Stretches are three places long here.
//!
//! Demanded: who is in flight, or has ended, is not handed out again; every status adds up; the kept counts are those of the
//! rows; and in the end every campaign has ended, with one event a recipient, nobody left out who was there all the time, and no
//! row of what waits left.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::oneshot;

use crate::clock;
use crate::message::{
    Account, Delivery, Ending, Message, MessageId, Name, Recipient, Reference, Segment, SubscriptionId, SubscriptionKey,
};
use crate::protocol::request::{Code, Devices, Erase, EventType, Payload, Read, Send, Subscribe, Target, To, Update, Whose};
use crate::store::commit::{Done, Erasing, Op, prepare_send, prepare_subscribe};
use crate::store::erase::{COMPACTION_ROW, Swept};
use crate::store::harness::{self, HOSTS, How, Model, Setup};
use crate::store::registry::account_hash;
use crate::store::registry::row::{Kind, Posting, View};
use crate::store::testing::Failing;
use crate::store::{Store, family};

#[derive(Clone, Debug)]
enum Act {
    Subscribe { who: u8, tag: Option<u8>, replaces: Option<u8> },
    Unsubscribe(u8),
    Campaign { tag: Option<u8>, label: bool, paused: bool, later: bool },
    Cancel(u8),
    Pause(u8),
    Resume(u8),
    PauseLabel,
    ResumeLabel,
    Step,
    Load(u8),
    Settle(u8, How),
    Sweep,
    Later(u16),
    Checkpoint,
    Crash,
}

fn act() -> impl Strategy<Value = Act> {
    let how = prop_oneof![4 => Just(How::Accepted), 1 => Just(How::Gone), 2 => Just(How::Wait), 2 => Just(How::Back)];
    let tag = || prop::option::weighted(0.6, 0..2u8);
    let odd = || prop::bool::weighted(0.2);
    prop_oneof![
        8 => (0..24u8, tag(), prop::option::weighted(0.3, 0..24u8)).prop_map(|(who, tag, replaces)| Act::Subscribe { who, tag, replaces }),
        2 => (0..24u8).prop_map(Act::Unsubscribe),
        3 => (tag(), odd(), odd(), odd()).prop_map(|(tag, label, paused, later)| Act::Campaign { tag, label, paused, later }),
        1 => any::<u8>().prop_map(Act::Cancel),
        1 => any::<u8>().prop_map(Act::Pause),
        2 => any::<u8>().prop_map(Act::Resume),
        1 => Just(Act::PauseLabel),
        1 => Just(Act::ResumeLabel),
        8 => Just(Act::Step),
        8 => (1..5u8).prop_map(Act::Load),
        8 => (1..8u8, how).prop_map(|(n, how)| Act::Settle(n, how)),
        2 => Just(Act::Sweep),
        2 => (100..40_000u16).prop_map(Act::Later),
        3 => Just(Act::Checkpoint),
        2 => Just(Act::Crash),
    ]
}

struct Known {
    id: MessageId,
    /// Those who were there when it was sent, and that nothing has happened to since.
    members: BTreeSet<u8>,
    cancelled: bool,
    paused: bool,
    label: bool,
}

type Of = (MessageId, SubscriptionKey);

/// What the test knows.
#[derive(Default)]
struct Readers {
    /// Who is there by now, with the tag.
    there: BTreeMap<u8, Option<u8>>,
    messages: Vec<Known>,
    label_paused: bool,
}

type World = harness::World<Readers>;

impl Model for Readers {
    type Of = Of;

    fn of(delivery: &Delivery) -> Of {
        (delivery.message.id, delivery.recipient.registered.expect("all are registered").key)
    }

    fn check_sent(&self, of: Of, message: &Message) {
        if let Some(known) = self.messages.iter().find(|known| known.id == message.id) {
            assert!(!(known.paused || known.label && self.label_paused), "{of:?} is paused and is sent");
            assert!(!known.cancelled, "{of:?} was cancelled and is sent");
        }
    }

    /// Statuses add up, and kept counts are those of the rows.
    fn check(world: &mut World) {
        let store = world.store();
        let mut pending = 0;
        for known in &world.model.messages {
            let counts = world.status(known.id).counts;
            assert!(counts.ended.iter().sum::<u64>() <= counts.recipients, "{:?}: {counts:?}", known.id);
            let accepted = world.ended.iter().filter(|((id, _), how)| *id == known.id && **how == Ending::Accepted).count();
            assert_eq!(counts.ended[Ending::Accepted as usize - 1], accepted as u64, "{:?}", known.id);
            if let Some(list) = store.lists.get(crate::store::live::ListKey::of(known.id)) {
                let state = crate::store::list_state(&list);
                pending += state.settled - state.counts.ended.iter().sum::<u64>().min(state.settled);
            }
        }
        assert_eq!(store.pending.load(Ordering::Relaxed), pending, "what waits is counted");
        let app = store.registry.app("shop").expect("configured");
        let (mut all, mut tags, mut any_scope) = (0, BTreeMap::<Name, u64>::new(), 0);
        let reader = store.reader().expect("open");
        reader
            .scan(family::SUBSCRIPTION, &[], &[255; 11], |_, row| {
                let view = View::of(row).expect("sound");
                if store.reachable(&view) {
                    all += 1;
                    any_scope += 1;
                    for tag in (0..2).map(tag_name).filter(|tag| view.has_tag(tag)) {
                        *tags.entry(tag).or_default() += 1;
                    }
                }
                true
            })
            .expect("read");
        assert_eq!(store.kept_count(&Store::app_posting(app)).expect("read"), all);
        let any = Posting { app, kind: Kind::AnyScope, name: Arc::from("") };
        assert_eq!(store.kept_count(&any).expect("read"), any_scope);
        for tag in (0..2).map(tag_name) {
            let posting = Posting { app, kind: Kind::Tag, name: tag.clone() };
            assert_eq!(store.kept_count(&posting).expect("read"), tags.get(&tag).copied().unwrap_or(0), "{tag}");
        }
    }
}

fn endpoint(who: u8) -> String {
    format!("https://{}/{who}", HOSTS[usize::from(who) % 2])
}

fn id_of(who: u8) -> SubscriptionId {
    SubscriptionId::of(&endpoint(who))
}

fn who_is(recipient: &Recipient) -> u8 {
    recipient.endpoint.as_str().rsplit('/').next().expect("a path").parse().expect("a number")
}

fn to_account(account: &str) -> To {
    To::Accounts { accounts: vec![Account::from(account)], devices: Devices::All }
}

fn tag_name(tag: u8) -> Name {
    Arc::from(format!("tag{tag}"))
}

impl World {
    fn new() -> World {
        World::with_accounts_of(2)
    }

    fn with_accounts_of(browsers_per_account: usize) -> World {
        World::start(Setup { browsers_per_account, events_max: 64 << 20, looks_on: false }, Readers::default())
    }

    /// A line that comes when the disk is full; then there is space again.
    fn refused(&mut self, op: Op, how: Failing) -> Done {
        let store = self.store();
        let mut answers = self.hand_in(vec![op]);
        store.fail(Some(how));
        self.run().writer.play();
        store.fail(None);
        self.run().writer.try_again();
        self.pump();
        answers.try_recv().expect("it is answered").remove(0)
    }

    /// Lets the sweep do all that there is to do.
    fn sweep(&mut self) {
        while self.sweep_once() {}
    }

    fn sweep_once(&mut self) -> bool {
        let now = self.now();
        let goes_on = self.run().sweep.play(now);
        self.write_checkpoint();
        goes_on
    }

    /// Sends to an account, and has it accepted.
    fn deliver(&mut self, account: &str) -> MessageId {
        let id = self.send(self.message(to_account(account)));
        self.act(&Act::Step);
        self.act(&Act::Load(9));
        self.settle(9, How::Accepted);
        self.write_checkpoint();
        id
    }

    fn events(&mut self) -> Vec<String> {
        let events = self.store().events_after(0, 1_000).expect("read");
        events.iter().map(|event| String::from_utf8_lossy(&event.json).into_owned()).collect()
    }

    /// How many rows of a family hold these bytes in key or value.
    fn rows_with(&mut self, family: &str, bytes: &[u8]) -> usize {
        let holds = |row: &[u8]| row.windows(bytes.len()).any(|window| window == bytes);
        self.rows(family, &[], &[255; 64], |key, value| holds(key) || holds(value))
    }

    fn subscription(&self, who: u8) -> Recipient {
        let host = HOSTS[usize::from(who) % 2];
        self.recipient(host, &format!("https://{host}"), who)
    }

    fn subscribe(&mut self, who: u8, tags: Option<Vec<Name>>, replaces: Option<u8>, account: Option<&str>) -> Done {
        let subscribe = Subscribe { tags, replaces: replaces.map(id_of), ..self.subscribing(who, account) };
        let op = prepare_subscribe(subscribe, None, &self.preparing());
        self.hand_over(op)
    }

    fn subscribing(&mut self, who: u8, account: Option<&str>) -> Subscribe {
        Subscribe {
            app: self.apps[0].clone(),
            subscription: self.subscription(who),
            account: account.map(Account::from),
            name: None,
            user_agent: None,
            scopes: None,
            tags: None,
            attributes: None,
            replaces: None,
            confirm: None,
        }
    }

    fn message(&self, to: To) -> Send {
        Send::new(self.apps[0].clone(), to, Payload::opaque(Bytes::from_static(b"hello")), 2_419_200)
    }

    fn send(&mut self, send: Send) -> MessageId {
        let op = Op::Send(Box::new(prepare_send(send, &self.preparing())));
        match self.hand_over(op) {
            Done::Taken { message_id, .. } => message_id,
            other => panic!("{other:?}"),
        }
    }

    fn campaign(&mut self, tag: Option<u8>, label: bool, paused: bool, later: bool) {
        let segment = Segment { tags_any: tag.into_iter().map(tag_name).collect(), ..Segment::default() };
        let send = Send {
            label: label.then(|| Arc::from("label")),
            paused,
            at: later.then(|| clock::now().plus(600_000)),
            ..self.message(To::Segment(segment))
        };
        let id = self.send(send);
        let wanted = |(_, has): &(&u8, &Option<u8>)| tag.is_none() || **has == tag;
        let members = self.model.there.iter().filter(wanted).map(|(who, _)| *who).collect();
        self.model.messages.push(Known { id, members, cancelled: false, paused, label });
    }

    /// Something has happened to this subscription: it may or may not be in campaigns that were on their way.
    fn touched(&mut self, who: u8) {
        self.model.messages.iter_mut().for_each(|known| _ = known.members.remove(&who));
    }

    fn pick(&self, message: u8) -> Option<usize> {
        (!self.model.messages.is_empty()).then(|| usize::from(message) % self.model.messages.len())
    }

    fn act(&mut self, act: &Act) {
        let apps = self.apps.clone();
        let label = || Target::Label(Arc::from("label"));
        match *act {
            Act::Subscribe { who, tag, replaces } => {
                let tags = Some(tag.into_iter().map(tag_name).collect());
                assert!(matches!(self.subscribe(who, tags, replaces, None), Done::Subscribed { .. }));
                if let Some(replaced) = replaces {
                    self.model.there.remove(&replaced);
                    self.touched(replaced);
                }
                self.model.there.insert(who, tag);
                self.touched(who);
            }
            Act::Unsubscribe(who) => {
                let Done::Removed(_) = self.hand_over(Op::Unsubscribe { subscription: id_of(who), apps }) else { panic!() };
                self.model.there.remove(&who);
                self.touched(who);
            }
            Act::Campaign { tag, label, paused, later } => self.campaign(tag, label, paused, later),
            Act::Cancel(message) => {
                let Some(index) = self.pick(message) else { return };
                let target = Target::Message(self.model.messages[index].id);
                self.model.messages[index].cancelled = true;
                assert!(matches!(self.hand_over(Op::Cancel { target, apps }), Done::Changed { .. }));
            }
            Act::Pause(message) => {
                let Some(index) = self.pick(message) else { return };
                let target = Target::Message(self.model.messages[index].id);
                self.model.messages[index].paused = true;
                assert!(matches!(self.hand_over(Op::Pause { target, apps }), Done::Changed { .. }));
            }
            Act::Resume(message) => {
                let Some(index) = self.pick(message) else { return };
                let target = Target::Message(self.model.messages[index].id);
                self.model.messages[index].paused = false;
                assert!(matches!(self.hand_over(Op::Resume { target, rate: None, apps }), Done::Changed { .. }));
            }
            Act::PauseLabel => {
                self.model.label_paused = true;
                assert!(matches!(self.hand_over(Op::Pause { target: label(), apps }), Done::Changed { .. }));
            }
            Act::ResumeLabel => {
                self.model.label_paused = false;
                self.model.messages.iter_mut().filter(|known| known.label).for_each(|known| known.paused = false);
                assert!(matches!(self.hand_over(Op::Resume { target: label(), rate: None, apps }), Done::Changed { .. }));
            }
            Act::Step => self.step(),
            Act::Load(n) => (0..n).for_each(|_| self.load_one()),
            Act::Settle(n, how) => self.settle(usize::from(n), how),
            Act::Sweep => {
                let now = self.now();
                self.run().sweep.play(now);
                self.pump();
            }
            Act::Later(millis) => self.ahead += u64::from(millis),
            Act::Checkpoint => self.checkpoint(),
            Act::Crash => self.crash(),
        }
    }

    fn settle(&mut self, n: usize, how: How) {
        for (of, recipient) in self.answer(n, how) {
            match how {
                How::Accepted => _ = self.ended.insert(of, Ending::Accepted),
                // It may be about an endpoint that it does not have any more: then it is due again.
                How::Gone => {
                    let who = who_is(&recipient);
                    self.model.there.remove(&who);
                    self.touched(who);
                }
                How::Wait | How::Back | How::Condemned => {}
            }
        }
        if let How::Gone = how {
            // Until the checkpoint a browser that comes again with this endpoint is taken for the old one, and goes with it.
            self.run().writer.force();
        }
        self.pump();
    }

    fn finish(&mut self) {
        self.act(&Act::ResumeLabel);
        (0..self.model.messages.len()).for_each(|index| self.act(&Act::Resume(index as u8)));
        let mut rounds = 0;
        while !self.store().lists.all().is_empty() {
            rounds += 1;
            assert!(rounds < 60, "campaigns are stuck: {:?}", self.open());
            self.ahead += 31_000;
            self.drain();
            self.act(&Act::Sweep);
            self.checkpoint();
        }
        for known in &self.model.messages {
            let counts = self.status(known.id).counts;
            assert_eq!(counts.pending(), 0, "{:?}", known.id);
            if !known.cancelled {
                for who in &known.members {
                    let key = self.store().find_subscription(1, id_of(*who)).expect("read").expect("it is there");
                    assert_eq!(self.ended.get(&(known.id, key)), Some(&Ending::Accepted), "{who} of {:?} was left out", known.id);
                }
            }
        }
        self.check_nothing_waits(&[family::WORK, family::LIST, family::DUE, family::HELD, family::OUTCOME]);
        self.check_told();
        self.crash();
        self.check_told();
    }

    fn open(&mut self) -> Vec<String> {
        let store = self.store();
        store.lists.all().iter().map(|(_, list)| format!("{:?}", crate::store::list_state(list))).collect()
    }

    fn check_told(&self) {
        self.check_events(self.model.messages.iter().map(|known| known.id), |_, _| {});
    }
}

fn play(acts: &[Act]) {
    let mut world = World::new();
    acts.iter().for_each(|act| world.act(act));
    world.finish();
}

fn readers(n: u8) -> Vec<Act> {
    (0..n).map(|who| Act::Subscribe { who, tag: None, replaces: None }).collect()
}

const ALL: Act = Act::Campaign { tag: None, label: true, paused: false, later: false };

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn campaigns_do_what_a_plain_model_does(acts in prop::collection::vec(act(), 10..100)) {
        play(&[readers(6), acts].concat());
    }
}

#[test]
fn a_label_paused_between_the_claim_and_the_sending_loses_nobody() {
    play(
        &[readers(6), vec![ALL, Act::Step, Act::Checkpoint, Act::PauseLabel, Act::Load(9), Act::Checkpoint, Act::ResumeLabel]]
            .concat(),
    );
}

/// After a start a walk begins at the first stretch that is open, which may be done with before the walk goes on.
#[test]
fn a_stretch_that_is_done_with_before_the_walk_goes_on_is_not_opened_again() {
    // Which of several campaigns and services comes first is not always the same.
    for _ in 0..20 {
        let first = vec![ALL, ALL, ALL, Act::Step, Act::Load(1), ALL, Act::Settle(1, How::Accepted), Act::Cancel(1), Act::Crash];
        play(&[readers(6), first, vec![Act::Step, Act::Load(1), Act::Settle(2, How::Gone)]].concat());
    }
}

#[test]
fn a_subscribe_that_is_refused_changes_nothing() {
    let mut world = World::new();
    for who in [0, 2] {
        world.subscribe(who, None, None, Some("full"));
    }
    world.subscribe(4, None, None, None);
    world.subscribe(6, None, None, None);
    // Of another service, and of the same one with the new endpoint known by itself.
    for (who, replaces) in [(1, 4), (6, 4)] {
        let done = world.subscribe(who, None, Some(replaces), Some("full"));
        assert!(matches!(&done, Done::Failed { problem, .. } if problem.code == Code::NotAllowed), "{done:?}");
        let store = world.store();
        for there in [4, 6] {
            assert!(store.find_subscription(1, id_of(there)).expect("read").is_some(), "{there} after {who}");
        }
    }
    // Who leaves in the same line makes room.
    assert!(matches!(world.subscribe(1, None, Some(0), Some("full")), Done::Subscribed { .. }));
    Readers::check(&mut world);
}

#[test]
fn gone_from_an_endpoint_it_had_ends_with_its_cancelled_campaign() {
    let replaced = Act::Subscribe { who: 8, tag: None, replaces: Some(0) };
    play(
        &[
            vec![Act::Subscribe { who: 0, tag: None, replaces: None }, ALL, Act::Step, Act::Load(9), replaced],
            vec![Act::Cancel(0), Act::Settle(9, How::Gone), Act::Checkpoint],
        ]
        .concat(),
    );
}

/// Of a list, a fallback looks at how its recipients have ended, also when all of them have.
#[test]
fn a_list_that_reached_everybody_has_no_fallback() {
    for (how, told) in [(How::Accepted, 0), (How::Back, 1)] {
        let mut world = World::new();
        world.subscribe(0, None, None, Some("anna"));
        let to = To::Accounts { accounts: vec![Account::from("anna")], devices: Devices::All };
        // A rate makes a list of however few.
        let send = Send { rate: Some(1e6), fallback: Some(0.001), ..world.message(to) };
        world.send(send);
        world.act(&Act::Step);
        world.act(&Act::Load(9));
        world.settle(9, how);
        world.write_checkpoint();
        std::thread::sleep(Duration::from_millis(5));
        world.act(&Act::Sweep);
        world.write_checkpoint();
        let events = world.store().events_after(0, 100).expect("read");
        let unreachable = events.iter().filter(|event| String::from_utf8_lossy(&event.json).contains("unreachable")).count();
        assert_eq!(unreachable, told, "{how:?}");
    }
}

#[test]
fn who_is_erased_is_told_of_no_more() {
    let mut world = World::new();
    let apps = world.apps.clone();
    world.subscribe(0, None, None, Some("anna"));
    let to = || To::Accounts { accounts: vec![Account::from("anna")], devices: Devices::All };
    let ids = [0.001, 3_600.0].map(|after| {
        let send = Send { fallback: Some(after), ..world.message(to()) };
        world.send(send)
    });
    let (reply, mut swept) = oneshot::channel();
    let erase = Erase::Account(Whose { account: Account::from("anna"), app: None });
    assert_eq!(
        world.hand_over(Op::Erase { erase, everywhere: false, apps: apps.clone(), so_far: Erasing::new(reply) }),
        Done::Erased { removed: 1 }
    );
    std::thread::sleep(Duration::from_millis(5));
    world.sweep();
    assert_eq!(swept.try_recv().expect("told").cancelled, 2);
    // A receipt that was still on its way.
    let late = Op::Feedback { id: ids[0], subscription: id_of(0), kind: EventType::Shown, apps };
    assert_eq!(world.hand_over(late), Done::Updated);
    world.checkpoint();
    let store = world.store();
    let events = store.events_after(0, 100).expect("read");
    let told = |event: &str| events.iter().any(|known| String::from_utf8_lossy(&known.json).contains(event));
    assert!(!told("unreachable") && !told("shown"));
    assert_eq!(world.rows_with(family::FEEDBACK, &id_of(0).0), 0);
    assert_eq!(world.rows(family::INDEX, &[7], &[8], |_, _| true), 0, "fallbacks are left");
}

fn erase(world: &mut World, account: &str) -> (Op, oneshot::Receiver<Swept>) {
    let (reply, swept) = oneshot::channel();
    let erase = Erase::Account(Whose { account: Account::from(account), app: None });
    (Op::Erase { erase, everywhere: false, apps: world.apps.clone(), so_far: Erasing::new(reply) }, swept)
}

#[test]
fn a_message_that_reaches_nobody_has_a_place_of_its_own() {
    let mut world = World::new();
    world.subscribe(0, None, None, Some("anna"));
    let ops = ["nobody", "nobody", "anna"].map(|account| {
        let send = world.message(to_account(account));
        Op::Send(Box::new(prepare_send(send, &world.preparing())))
    });
    let done = world.hand_over_together(ops.into());
    let place = |done: &Done| match done {
        Done::Taken { message_id, .. } => message_id.place(),
        other => panic!("{other:?}"),
    };
    let places: Vec<u16> = done.iter().map(place).collect();
    assert_eq!(places, [places[0], places[0] + 1, places[0] + 2]);
}

#[test]
fn an_account_of_many_browsers_is_switched_and_erased_over_several_turns() {
    let mut world = World::with_accounts_of(100);
    for who in 0..10 {
        world.subscribe(who, Some(vec![tag_name(who % 2)]), None, Some("anna"));
    }
    let (anna, apps) = (Whose { account: Account::from("anna"), app: None }, world.apps.clone());
    for enabled in [false, true] {
        let op = Op::Switch { who: anna.clone(), enabled, apps: apps.clone() };
        let mut answers = world.hand_in(vec![op]);
        for other in 0..2u8 {
            world.run().writer.play();
            assert!(answers.try_recv().is_err(), "it is not done in one turn");
            // Those of another connection change meanwhile: one that is counted already, and one that is not.
            let who = if enabled { 1 + 7 * other } else { 9 * other };
            let update = Update {
                subscription: id_of(who),
                enabled: None,
                name: None,
                account: None,
                scopes: None,
                tags: Some(vec![tag_name(1 - who % 2)]),
                attributes: None,
            };
            world.hand_in_beside(Op::Update { update: Box::new(update), apps: apps.clone() });
        }
        world.pump();
        assert_eq!(answers.try_recv().expect("it is answered"), [Done::Updated]);
        Readers::check(&mut world);
    }
    let (op, mut swept) = erase(&mut world, "anna");
    let mut answers = world.hand_in(vec![op]);
    let mut turns = 0;
    while answers.try_recv().is_err() {
        assert!(turns < 20 && swept.try_recv().is_err());
        world.run().writer.play();
        turns += 1;
    }
    assert!(turns > 2, "{turns} turns");
    world.sweep();
    assert!(swept.try_recv().is_ok(), "told once all parts are done");
    assert_eq!((world.rows_with(family::META, b"erase/"), world.rows_with(family::INDEX, b"anna")), (0, 0));
    Readers::check(&mut world);
}

/// Rows of events and heads that name a browser or its account.
fn named(world: &mut World, who: u8, account: &str) -> usize {
    let text = URL_SAFE_NO_PAD.encode(id_of(who).0);
    let by_account = world.rows_with(family::EVENTS, account.as_bytes());
    assert_eq!(by_account, world.rows_with(family::EVENTS, text.as_bytes()), "of both or of none");
    by_account + world.rows_with(family::HEAD, &id_of(who).0)
}

#[test]
fn an_erasure_is_finished_after_a_crash() {
    let mut world = World::new();
    world.subscribe(0, None, None, Some("anna"));
    world.subscribe(1, None, None, Some("berta"));
    for account in ["anna", "anna", "berta"] {
        world.deliver(account);
    }
    let (op, _nobody_waits) = erase(&mut world, "anna");
    assert_eq!(world.hand_over(op), Done::Erased { removed: 1 });
    assert_eq!((named(&mut world, 0, "anna"), world.rows_with(family::META, b"erase/")), (4, 1));
    assert_eq!(world.rows_with(family::META, b"anna"), 0, "its row says no more than hashes");
    world.crash();
    assert_eq!(named(&mut world, 0, "anna"), 4);
    world.sweep();
    assert_eq!((named(&mut world, 0, "anna"), named(&mut world, 1, "berta")), (0, 2));
    assert_eq!(world.rows_with(family::META, b"erase/"), 0, "it is gone itself");
    assert_eq!(world.events().len(), 3);
}

#[test]
fn files_that_hold_what_was_erased_are_written_anew_after_a_crash_too() {
    let mut world = World::new();
    world.subscribe(0, None, None, Some("anna"));
    let (op, _nobody_waits) = erase(&mut world, "anna");
    world.hand_over(op);
    world.sweep();
    world.crash();
    let compactions = |world: &mut World, row: usize| {
        let store = world.store();
        assert_eq!(world.rows_with(family::META, COMPACTION_ROW), row);
        (0..60).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            store.erasures.compaction_due()
        })
    };
    assert!(compactions(&mut world, 1), "it is due some seconds after the start");
    world.store().erasures.compacted();
    world.sweep();
    world.crash();
    assert!(!compactions(&mut world, 0), "it was done");
}

#[test]
fn logs_are_blanked_in_slices_across_a_crash() {
    for crash in [false, true] {
        let mut world = World::new();
        world.subscribe(0, None, None, Some("anna"));
        for _ in 0..5 {
            world.deliver("anna");
        }
        let (op, mut swept) = erase(&mut world, "anna");
        world.hand_over(op);
        let (mut left, mut crash_at) = (named(&mut world, 0, "anna"), crash.then_some(6));
        assert_eq!(left, 10);
        loop {
            let goes_on = world.sweep_once();
            let now = named(&mut world, 0, "anna");
            assert!(left - now <= 2, "{} in one checkpoint", left - now);
            assert!(now == 0 || world.rows_with(family::META, b"erase/") == 1, "a start knows that {now} are left");
            left = now;
            if !goes_on {
                break;
            }
            if crash_at == Some(now) {
                crash_at = None;
                world.crash();
            }
        }
        assert_eq!((left, world.rows_with(family::META, b"erase/")), (0, 0));
        let told = swept.try_recv();
        assert!(if crash { told.is_err() } else { told == Ok(Swept { cancelled: 0, blanked: 5 }) }, "{told:?}");
    }
}

#[test]
fn an_erase_for_which_there_is_no_space_changes_nothing() {
    let mut world = World::new();
    let apps = world.apps.clone();
    world.subscribe(0, None, None, Some("anna"));
    let who = Whose { account: Account::from("anna"), app: None };
    world.hand_over(Op::Presence { who, online: true, lease: Some(600.0), session: None, apps: apps.clone() });
    let id = world.send(Send { when_offline: true, ..world.message(to_account("anna")) });
    let (op, _refused) = erase(&mut world, "anna");
    assert!(matches!(world.refused(op, Failing::Unwritten), Done::Failed { problem, .. } if problem.code == Code::ReadOnly));
    world.sweep();
    let store = world.store();
    assert!(store.erasures.rows().is_empty() && store.rules.load().cancelled.is_empty() && !store.rules.load().erasing);
    assert!(store.find_subscription(1, id_of(0)).expect("read").is_some());
    let hash = account_hash(1, "anna");
    assert!(crate::store::live::lock(&store.presence).holds_back(hash, clock::now()), "it still waits for anna to leave");
    let pending = |world: &mut World| world.status(id).counts.pending();
    assert_eq!(pending(&mut world), 1);
    // The next one is taken.
    let (op, mut swept) = erase(&mut world, "anna");
    assert_eq!(world.hand_over(op), Done::Erased { removed: 1 });
    world.sweep();
    assert_eq!((swept.try_recv().expect("told").cancelled, pending(&mut world)), (1, 0));
}

#[test]
fn an_erase_that_was_refused_and_is_there_after_all_is_finished() {
    let mut world = World::new();
    world.subscribe(0, None, None, Some("anna"));
    world.deliver("anna");
    let (op, _refused) = erase(&mut world, "anna");
    assert!(matches!(world.refused(op, Failing::Written), Done::Failed { .. }));
    assert_eq!(named(&mut world, 0, "anna"), 2);
    world.sweep();
    assert_eq!((named(&mut world, 0, "anna"), world.rows_with(family::META, b"erase/")), (0, 0));
}

#[test]
fn what_is_told_of_a_line_is_told_once_though_it_was_refused_first() {
    let mut world = World::new();
    let apps = world.apps.clone();
    world.subscribe(0, None, None, Some("anna"));
    let id = world.deliver("anna");
    let seen = || Op::Feedback { id, subscription: id_of(0), kind: EventType::Shown, apps: apps.clone() };
    let nobody = |world: &World| {
        let send = Send { fallback: Some(60.0), ..world.message(to_account("nobody")) };
        Op::Send(Box::new(prepare_send(send, &world.preparing())))
    };
    for how in [Failing::Unwritten, Failing::Unwritten] {
        assert!(matches!(world.refused(seen(), how), Done::Failed { .. }));
        let op = nobody(&world);
        assert!(matches!(world.refused(op, how), Done::Failed { .. }));
    }
    assert_eq!(world.hand_over(seen()), Done::Updated);
    let op = nobody(&world);
    assert!(matches!(world.hand_over(op), Done::Taken { .. }));
    let events = world.events();
    let told = |word: &str| events.iter().filter(|event| event.contains(word)).count();
    assert_eq!((told("\"shown\""), told("no_subscription")), (1, 1), "{events:?}");
}

#[test]
fn what_was_read_is_told_with_account_and_ref() {
    // As a single, and as a list.
    for rate in [None, Some(1e6)] {
        let mut world = World::new();
        let apps = world.apps.clone();
        let mut subscribe = world.subscribing(0, Some("anna"));
        subscribe.subscription.reference = Some(Reference::Text("phone".to_owned()));
        let op = prepare_subscribe(subscribe, None, &world.preparing());
        world.hand_over(op);
        let later = Some(clock::now().plus(600_000));
        let id = world.send(Send { at: later, rate, ..world.message(to_account("anna")) });
        let who = Whose { account: Account::from("anna"), app: None };
        assert_eq!(world.hand_over(Op::MarkRead { who, what: Read::Message(id), apps }), Done::Withdrawn(1));
        let events = world.events();
        let event: serde_json::Value = serde_json::from_str(&events[0]).expect("JSON");
        assert_eq!((&event["type"], &event["reason"]), (&"cancelled".into(), &"read".into()), "{events:?}");
        assert_eq!((&event["account"], &event["ref"]), (&"anna".into(), &"phone".into()), "{events:?}");
    }
}

#[test]
fn a_subscribe_whose_confirm_is_not_taken_changes_nothing() {
    let mut world = World::new();
    world.subscribe(2, None, None, None);
    let store = world.store();
    let op = |world: &mut World, who, replaces: Option<u8>| {
        let subscribe = Subscribe { replaces: replaces.map(id_of), ..world.subscribing(who, Some("anna")) };
        let confirm = world.message(To::Ids(vec![id_of(who)]));
        prepare_subscribe(subscribe, Some(confirm), &world.preparing())
    };
    // As many wait as may.
    world.run().writer.fill(1_000_000);
    let refused = op(&mut world, 1, Some(2));
    let done = world.hand_over(refused);
    assert!(matches!(&done, Done::Failed { problem, .. } if problem.code == Code::Overloaded), "{done:?}");
    let there = |who| store.find_subscription(1, id_of(who)).expect("read").is_some();
    assert_eq!((there(1), there(2)), (false, true));
    // Nothing is sent to one that is known, so nothing is against it.
    let known = op(&mut world, 2, None);
    assert_eq!(world.hand_over(known), Done::Subscribed { id: id_of(2), created: false });
    world.run().writer.unfill(1_000_000);
    let taken = op(&mut world, 1, None);
    assert_eq!(world.hand_over(taken), Done::Subscribed { id: id_of(1), created: true });
    assert_eq!(store.pending.load(Ordering::Relaxed), 1);
}

#[test]
fn all_whose_time_has_come_are_looked_at_before_the_sweep_waits() {
    let mut world = World::new();
    for who in 0..20 {
        let mut subscribe = world.subscribing(who, None);
        subscribe.subscription.expiration = Some(clock::now());
        let op = prepare_subscribe(subscribe, None, &world.preparing());
        world.hand_over(op);
    }
    std::thread::sleep(Duration::from_millis(2));
    let mut told = 0;
    loop {
        let goes_on = world.sweep_once();
        let now = world.events().len();
        assert!(now - told <= 4, "{} in one checkpoint", now - told);
        told = now;
        if !goes_on {
            break;
        }
    }
    assert_eq!(told, 20);
}

#[test]
fn a_stretch_is_counted_once_in_a_round() {
    let mut world = World::new();
    for who in 0..200 {
        world.subscribe(who, None, None, None);
    }
    world.campaign(None, false, false, false);
    assert_eq!(
        world.hand_over(Op::Cancel { target: Target::Message(world.model.messages[0].id), apps: world.apps.clone() }),
        Done::Changed { messages: 1, recipients: 0 },
        "whom it has not met is not counted"
    );
    let before = world.store().batches.asked();
    let now = world.now();
    world.run().sweep.play(now);
    let asked = world.store().batches.asked() - before;
    // Three subscriptions a stretch, of two services.
    assert!((60..=70).contains(&asked), "{asked}");
}

#[test]
fn the_browsers_of_a_crowd_are_not_counted_for_each_that_comes() {
    let mut world = World::with_accounts_of(120);
    let there = |done: Done| matches!(done, Done::Subscribed { .. });
    for who in 0..120 {
        let before = world.store().walked.load(Ordering::Relaxed);
        assert!(there(world.subscribe(who, None, None, Some("kiosk"))), "{who}");
        let walked = world.store().walked.load(Ordering::Relaxed) - before;
        assert_eq!(walked, if who <= 64 { usize::from(who) } else { 0 }, "rows that are read when {who} are there");
    }
    assert!(!there(world.subscribe(120, None, None, Some("kiosk"))), "full");
    // Every way in and out is counted.
    world.act(&Act::Unsubscribe(0));
    let refused = world.subscribing(120, Some("kiosk"));
    let refused = prepare_subscribe(refused, None, &world.preparing());
    assert!(!there(world.refused(refused, Failing::Unwritten)));
    assert!(there(world.subscribe(120, None, None, Some("kiosk"))), "one has left");
    assert!(!there(world.subscribe(121, None, None, Some("kiosk"))), "full");
    assert!(there(world.subscribe(1, None, None, Some("another"))), "it moves");
    assert!(there(world.subscribe(121, None, Some(2), Some("kiosk"))), "one is replaced");
    assert!(there(world.subscribe(122, None, None, Some("kiosk"))), "one has moved");
    assert!(!there(world.subscribe(123, None, None, Some("kiosk"))), "full");
    world.crash();
    assert!(!there(world.subscribe(123, None, None, Some("kiosk"))), "full after a start");
}
