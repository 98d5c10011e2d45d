//! The store, the scheduler and a played worker against a plain model, under random actions, crash and reopen among them.
//!
//! The model knows of each recipient what the test itself let become of it, now and as of the last checkpoint. It demands that
//! a delivery is in flight once at most, never after its end, never while it is paused, never after it was cancelled; that every
//! status adds up at every checkpoint; and that in the end, with everything resumed, every recipient has ended with exactly
//! one event, and no row of what waits is left.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use proptest::prelude::*;

use crate::clock;
use crate::ids::{Since, VisibleId};
use crate::message::{Delivery, Ending, Message, MessageId, Recipient, Reference, Urgency};
use crate::protocol::request::{Payload, Send, Step, Subscriptions, Target, To};
use crate::store::commit::{Done, Op, prepare_add, prepare_send};
use crate::store::concerned::{Command, words};
use crate::store::harness::{self, HOSTS, How, Model, Setup};
use crate::store::log::EventFilter;
use crate::store::open::encode_since;
use crate::store::{Rows, family};

/// How a message gets its recipients.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Single,
    List,
    Stream,
}

#[derive(Clone, Debug)]
struct New {
    kind: Kind,
    recipients: u8,
    first: u8,
    urgency: u8,
    label: Option<u8>,
    topic: Option<u8>,
    key: Option<u8>,
    paused: bool,
    later: bool,
    short: bool,
}

#[derive(Clone, Copy, Debug)]
enum Aim {
    Message(u8),
    Label(u8),
    App,
}

#[derive(Clone, Debug)]
enum Act {
    /// Lines of one connection that are handed over together.
    Send(Vec<New>),
    Add {
        message: u8,
        recipients: u8,
    },
    Close(u8),
    Cancel(Aim),
    /// A cancel with a send right behind it.
    CancelThenSend(Aim, New),
    Pause(Aim),
    Resume(Aim, Option<u16>),
    Step,
    Load(u8),
    Settle(u8, How),
    Later(u16),
    Checkpoint,
    Crash,
}

fn new_message() -> impl Strategy<Value = New> {
    let kind = prop_oneof![3 => Just(Kind::Single), 2 => Just(Kind::List), 2 => Just(Kind::Stream)];
    let rare = || prop::option::weighted(0.25, 0..2u8);
    let odd = || prop::bool::weighted(0.15);
    (kind, 1..6u8, 0..6u8, 0..4u8, rare(), rare(), rare(), odd(), odd(), odd()).prop_map(
        |(kind, recipients, first, urgency, label, topic, key, paused, later, short)| New {
            kind,
            recipients,
            first,
            urgency,
            label,
            topic,
            key,
            paused,
            later,
            short,
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    let aim = || prop_oneof![12 => any::<u8>().prop_map(Aim::Message), 6 => (0..2u8).prop_map(Aim::Label), 1 => Just(Aim::App)];
    let how = prop_oneof![
        4 => Just(How::Accepted), 1 => Just(How::Gone), 2 => Just(How::Wait), 2 => Just(How::Back), 1 => Just(How::Condemned)
    ];
    prop_oneof![
        6 => prop::collection::vec(new_message(), 1..4).prop_map(Act::Send),
        4 => (any::<u8>(), 1..6u8).prop_map(|(message, recipients)| Act::Add { message, recipients }),
        1 => any::<u8>().prop_map(Act::Close),
        1 => aim().prop_map(Act::Cancel),
        1 => (aim(), new_message()).prop_map(|(aim, new)| Act::CancelThenSend(aim, new)),
        2 => aim().prop_map(Act::Pause),
        3 => (aim(), prop::option::of(1_000..2_000u16)).prop_map(|(aim, rate)| Act::Resume(aim, rate)),
        8 => Just(Act::Step),
        8 => (1..5u8).prop_map(Act::Load),
        8 => (1..8u8, how).prop_map(|(n, how)| Act::Settle(n, how)),
        3 => (100..40_000u16).prop_map(Act::Later),
        3 => Just(Act::Checkpoint),
        2 => Just(Act::Crash),
    ]
}

/// What the model knows of a message.
struct Known {
    id: MessageId,
    kind: Kind,
    label: Option<u8>,
    recipients: Vec<i64>,
    cancelled: bool,
    paused: bool,
    steps: u32,
}

/// What the test knows.
#[derive(Default)]
struct Plain {
    messages: Vec<Known>,
    keys: HashMap<u8, MessageId>,
    next_reference: i64,
    paused: HashSet<Option<u8>>,
    some_cancelled: bool,
}

type World = harness::World<Plain>;

impl Model for Plain {
    type Of = i64;

    fn of(delivery: &Delivery) -> i64 {
        reference(&delivery.recipient)
    }

    fn check_sent(&self, of: i64, message: &Message) {
        let known = self.messages.iter().find(|known| known.id == message.id).expect("only what was answered is handed out");
        assert!(!known.cancelled, "{of} was cancelled and is sent");
        assert!(!known.paused, "{of} is paused and is sent");
        assert!(!self.paused.contains(&None) && (known.label.is_none() || !self.paused.contains(&known.label)), "{of} is held");
    }

    fn check(world: &mut World) {
        let mut pending = 0;
        for known in &world.model.messages {
            let counts = world.status(known.id).counts;
            assert_eq!(counts.recipients, known.recipients.len() as u64, "{:?}", known.id);
            let ended: u64 = counts.ended.iter().sum();
            assert!(ended <= counts.recipients, "{:?}: {counts:?}", known.id);
            pending += counts.pending();
            for ending in [Ending::Accepted, Ending::Gone] {
                let ours = known.recipients.iter().filter(|of| world.ended.get(of) == Some(&ending)).count() as u64;
                assert_eq!(counts.ended[ending as usize - 1], ours, "{:?}: {}", known.id, ending.as_str());
            }
        }
        // What a cancel has met in flight, and what it will end of a label or app, is told as cancelled before it is settled.
        if !world.model.some_cancelled {
            assert_eq!(world.store().pending.load(Ordering::Relaxed), pending);
        }
    }
}

impl World {
    fn new() -> World {
        World::start(Setup { browsers_per_account: 10_000, events_max: 64 << 20, looks_on: true }, Plain::default())
    }

    /// Recipients at three origins of two services.
    fn recipients(&mut self, first: u8, count: u8) -> Vec<Recipient> {
        (0..count)
            .map(|offset| {
                let place = (first + offset) % 6;
                let (host, origin) = match place % 3 {
                    0 => (HOSTS[0], "https://one.example.net"),
                    1 => (HOSTS[1], "https://a.two.example.net"),
                    _ => (HOSTS[1], "https://b.two.example.net"),
                };
                let reference = Some(Reference::Integer(self.model.next_reference));
                self.model.next_reference += 1;
                Recipient { reference, ..self.recipient(host, origin, place) }
            })
            .collect()
    }

    fn op(&mut self, new: &New) -> (Op, Vec<i64>) {
        let good = if new.kind == Kind::Stream { Vec::new() } else { self.recipients(new.first, new.recipients) };
        let references = good.iter().map(reference).collect();
        let to =
            if new.kind == Kind::Stream { To::Stream } else { To::Subscriptions(Subscriptions { good, rejected: Vec::new() }) };
        let ttl = if new.short { 60 } else { 2_419_200 };
        let send = Send {
            urgency: Urgency::ALL[usize::from(new.urgency)],
            topic: new.topic.map(|topic| Arc::from(format!("topic{topic}"))),
            idempotency_key: new.key.map(|key| format!("key{key}")),
            fingerprint: [new.key.unwrap_or(0); 16],
            at: new.later.then(|| clock::now().plus(600_000)),
            paused: new.paused,
            label: new.label.map(|label| Arc::from(format!("label{label}"))),
            // Makes a list of however few.
            rate: (new.kind == Kind::List).then_some(1e6),
            ..Send::new(self.apps[0].clone(), to, Payload::opaque(Bytes::from_static(b"hello")), ttl)
        };
        (Op::Send(Box::new(prepare_send(send, &self.preparing()))), references)
    }

    fn taken(&mut self, new: &New, references: Vec<i64>, done: Done) {
        let Done::Taken { message_id, recipients, duplicate, .. } = done else { panic!("{done:?}") };
        if let Some(key) = new.key {
            let first = self.model.keys.get(&key).copied();
            assert_eq!(duplicate, first.is_some(), "an idempotency key is known from its first use on");
            if let Some(first) = first {
                assert_eq!(message_id, first);
                return;
            }
            self.model.keys.insert(key, message_id);
        }
        assert_eq!(recipients, references.len() as u64);
        self.model.messages.push(Known {
            id: message_id,
            kind: new.kind,
            label: new.label,
            recipients: references,
            cancelled: false,
            paused: new.paused,
            steps: 0,
        });
    }

    fn send(&mut self, before: Option<Op>, all: &[New]) {
        let lead = usize::from(before.is_some());
        let (ops, references): (Vec<Op>, Vec<Vec<i64>>) = all.iter().map(|new| self.op(new)).unzip();
        let mut done = self.hand_over_together(before.into_iter().chain(ops).collect());
        for ((new, references), done) in all.iter().zip(references).zip(done.drain(lead..)) {
            self.taken(new, references, done);
        }
    }

    fn pick(&self, message: u8) -> Option<usize> {
        (!self.model.messages.is_empty()).then(|| usize::from(message) % self.model.messages.len())
    }

    fn target(&self, aim: Aim) -> Option<Target> {
        Some(match aim {
            Aim::Message(message) => Target::Message(self.model.messages[self.pick(message)?].id),
            Aim::Label(label) => Target::Label(Arc::from(format!("label{label}"))),
            Aim::App => Target::App(self.apps[0].clone()),
        })
    }

    fn aimed(&mut self, aim: Aim) -> Vec<&mut Known> {
        let picked = if let Aim::Message(message) = aim { self.pick(message) } else { None };
        let all = self.model.messages.iter_mut().enumerate();
        all.filter(|(index, known)| match aim {
            Aim::Message(_) => Some(*index) == picked,
            Aim::Label(label) => known.label == Some(label),
            Aim::App => true,
        })
        .map(|(_, known)| known)
        .collect()
    }

    fn act(&mut self, act: &Act) {
        let apps = self.apps.clone();
        match act {
            Act::Send(all) => self.send(None, all),
            Act::Add { message, recipients } => self.add(*message, *recipients),
            Act::Close(message) => {
                let Some(index) = self.pick(*message).filter(|index| self.model.messages[*index].kind == Kind::Stream) else {
                    return;
                };
                self.hand_over(Op::Close { message_id: self.model.messages[index].id, step: None, apps });
            }
            Act::Cancel(aim) => {
                let Some(target) = self.target(*aim) else { return };
                self.aimed(*aim).into_iter().for_each(|known| known.cancelled = true);
                self.model.some_cancelled = true;
                assert!(matches!(self.hand_over(Op::Cancel { target, apps }), Done::Changed { .. }));
            }
            Act::CancelThenSend(aim, new) => {
                let Some(target) = self.target(*aim) else { return };
                self.aimed(*aim).into_iter().for_each(|known| known.cancelled = true);
                self.model.some_cancelled = true;
                self.send(Some(Op::Cancel { target, apps }), std::slice::from_ref(new));
            }
            Act::Pause(aim) => {
                let Some(target) = self.target(*aim) else { return };
                assert!(matches!(self.hand_over(Op::Pause { target, apps }), Done::Changed { .. }));
                match aim {
                    Aim::Message(_) => self.aimed(*aim).into_iter().for_each(|known| known.paused = true),
                    Aim::Label(label) => _ = self.model.paused.insert(Some(*label)),
                    Aim::App => _ = self.model.paused.insert(None),
                }
            }
            Act::Resume(aim, rate) => {
                let Some(target) = self.target(*aim) else { return };
                match aim {
                    Aim::Message(_) => {}
                    Aim::Label(label) => _ = self.model.paused.remove(&Some(*label)),
                    Aim::App => _ = self.model.paused.remove(&None),
                }
                self.aimed(*aim).into_iter().for_each(|known| known.paused = false);
                // As the socket's side does it: singles that are paused by themselves are resumed one by one.
                for id in self.store().counted(Command::Resume, words(&target, &apps)).paused {
                    self.hand_over(Op::Resume { target: Target::Message(id), rate: None, apps: apps.clone() });
                }
                assert!(matches!(self.hand_over(Op::Resume { target, rate: rate.map(f64::from), apps }), Done::Changed { .. }));
            }
            Act::Step => self.step(),
            Act::Load(n) => (0..*n).for_each(|_| self.load_one()),
            Act::Settle(n, how) => self.settle(usize::from(*n), *how),
            Act::Later(millis) => self.ahead += u64::from(*millis),
            Act::Checkpoint => self.checkpoint(),
            Act::Crash => self.crash(),
        }
    }

    fn add(&mut self, message: u8, recipients: u8) {
        let Some(index) = self.pick(message).filter(|index| self.model.messages[*index].kind == Kind::Stream) else { return };
        let good = self.recipients(0, recipients);
        let references: Vec<i64> = good.iter().map(reference).collect();
        let (id, steps) = (self.model.messages[index].id, self.model.messages[index].steps);
        let step = Step { position: (steps + 1).to_string().into(), previous: (steps > 0).then(|| steps.to_string().into()) };
        let add = crate::protocol::request::Add {
            message_id: self.store().ids.show(id),
            subscriptions: Subscriptions { good, rejected: Vec::new() },
            step: Some(step),
        };
        let message = self.store().list_message(crate::store::live::ListKey::of(id)).expect("read").expect("it is there");
        let op = prepare_add(add, &message, self.apps.clone(), &self.preparing());
        match self.hand_over(op) {
            Done::Added { duplicate: false, .. } => {
                self.model.messages[index].recipients.extend(references);
                self.model.messages[index].steps += 1;
            }
            // Closed, cancelled or out of time.
            Done::Failed { .. } => {}
            other => panic!("{other:?}"),
        }
    }

    fn settle(&mut self, n: usize, how: How) {
        let ending = match how {
            How::Accepted => Some(Ending::Accepted),
            How::Gone => Some(Ending::Gone),
            How::Wait | How::Back | How::Condemned => None,
        };
        let answered = self.answer(n, how);
        self.ended.extend(answered.into_iter().filter_map(|(of, _)| Some((of, ending?))));
        self.pump();
    }

    /// Lets everything go and demands that everything ends.
    fn finish(&mut self) {
        let apps = self.apps.clone();
        for aim in [Aim::App, Aim::Label(0), Aim::Label(1)] {
            self.act(&Act::Resume(aim, None));
        }
        for index in 0..self.model.messages.len() {
            let target = Target::Message(self.model.messages[index].id);
            self.model.messages[index].paused = false;
            self.hand_over(Op::Resume { target, rate: None, apps: apps.clone() });
            if self.model.messages[index].kind == Kind::Stream {
                let message_id = self.model.messages[index].id;
                self.hand_over(Op::Close { message_id, step: None, apps: apps.clone() });
            }
        }
        let pending = |world: &World| world.store().pending.load(Ordering::Relaxed);
        let mut rounds = 0;
        while pending(self) > 0 {
            rounds += 1;
            assert!(rounds < 100, "{} deliveries are stuck: {:?}", pending(self), self.open_messages());
            self.ahead += 31_000;
            self.drain();
            self.checkpoint();
        }
        self.check_nothing_waits(&[family::WORK, family::LIST, family::DUE, family::HELD]);
        assert!(self.store().lists.all().is_empty(), "a list is open that has ended");
        self.check_told();
        self.crash();
        assert_eq!(pending(self), 0);
        self.check_told();
    }

    fn open_messages(&self) -> Vec<String> {
        let open = |known: &Known| {
            let status = self.status(known.id);
            (status.counts.pending() > 0).then(|| format!("{:?} {status:?}", known.kind))
        };
        self.model.messages.iter().filter_map(open).collect()
    }

    fn check_told(&self) {
        let mut seen = HashSet::new();
        self.check_events(self.model.messages.iter().map(|known| known.id), |event, ending| {
            let Some(of) = event["ref"].as_i64() else { return };
            assert!(seen.insert(of), "{of} has two events");
            if let Some(ours) = self.ended.get(&of) {
                assert_eq!(ending, *ours, "{of}");
            }
        });
    }
}

fn reference(recipient: &Recipient) -> i64 {
    match recipient.reference {
        Some(Reference::Integer(number)) => number,
        _ => panic!("every recipient of this test has a number"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_a_plain_model_does(acts in prop::collection::vec(act(), 10..80)) {
        let mut world = World::new();
        for act in &acts {
            world.act(act);
        }
        world.finish();
    }
}

const PLAIN: New = New {
    kind: Kind::Single,
    recipients: 5,
    first: 0,
    urgency: 1,
    label: None,
    topic: None,
    key: None,
    paused: false,
    later: false,
    short: false,
};

fn play(acts: &[Act]) {
    let mut world = World::new();
    acts.iter().for_each(|act| world.act(act));
    world.finish();
}

#[test]
fn a_list_paused_between_the_scheduler_and_the_worker_goes_on_with_resume() {
    let list = New { kind: Kind::List, ..PLAIN };
    let first = Aim::Message(0);
    play(&[Act::Send(vec![list]), Act::Step, Act::Pause(first), Act::Load(9), Act::Resume(first, None)]);
}

#[test]
fn a_label_is_resumed_with_a_rate() {
    let list = New { kind: Kind::List, label: Some(0), ..PLAIN };
    play(&[Act::Send(vec![list]), Act::Pause(Aim::Label(0)), Act::Resume(Aim::Label(0), Some(1_000))]);
}

#[test]
fn a_list_cancelled_in_flight_ends_after_a_crash() {
    let list = New { kind: Kind::List, ..PLAIN };
    play(&[Act::Send(vec![list]), Act::Step, Act::Load(1), Act::Cancel(Aim::Message(0)), Act::Crash]);
}

#[test]
fn a_stream_closed_after_its_last_outcome_ends() {
    let stream = New { kind: Kind::Stream, ..PLAIN };
    let add = Act::Add { message: 0, recipients: 5 };
    let all = [Act::Send(vec![stream]), add, Act::Step, Act::Load(9), Act::Settle(9, How::Accepted), Act::Checkpoint];
    play(&[&all[..], &[Act::Close(0)]].concat());
}

#[test]
fn of_two_of_a_topic_in_one_commit_the_newer_is_sent() {
    for later in [false, true] {
        let one = New { topic: Some(0), later, ..PLAIN };
        let mut world = World::new();
        world.act(&Act::Send(vec![one.clone(), one]));
        world.finish();
        for (known, ending) in world.model.messages.iter().zip([Ending::Skipped, Ending::Accepted]) {
            let status = world.status(known.id);
            assert_eq!(status.counts.ended[ending as usize - 1], 5, "{later} {status:?}");
        }
    }
}

#[test]
fn what_is_sent_behind_a_cancel_is_not_cancelled() {
    let labelled = New { label: Some(1), ..PLAIN };
    let mut world = World::new();
    world.act(&Act::CancelThenSend(Aim::Label(1), labelled));
    world.finish();
    let status = world.status(world.model.messages[0].id);
    assert_eq!(status.counts.ended[Ending::Accepted as usize - 1], 5);
}

#[test]
fn what_is_cancelled_stays_so_though_a_newer_one_of_its_topic_comes() {
    let older = New { topic: Some(0), label: Some(1), ..PLAIN };
    let newer = New { topic: Some(0), ..PLAIN };
    let mut world = World::new();
    world.act(&Act::Send(vec![older]));
    world.act(&Act::CancelThenSend(Aim::Label(1), newer));
    world.finish();
    for (known, ending) in world.model.messages.iter().zip([Ending::Cancelled, Ending::Accepted]) {
        let status = world.status(known.id);
        assert_eq!(status.counts.ended[ending as usize - 1], 5, "{status:?}");
    }
}

#[test]
fn what_is_cancelled_before_its_time_leaves_nothing_behind() {
    let waits = New { later: true, ..PLAIN };
    let held = New { paused: true, ..PLAIN };
    play(&[Act::Send(vec![waits, held]), Act::Cancel(Aim::Message(0)), Act::Cancel(Aim::Message(1)), Act::Crash]);
}

#[test]
fn cancelling_what_has_ended_changes_nothing() {
    play(&[
        Act::Send(vec![PLAIN]),
        Act::Step,
        Act::Load(9),
        Act::Settle(9, How::Gone),
        Act::Checkpoint,
        Act::Cancel(Aim::Message(0)),
    ]);
}

/// Opens the store anew with this row.
fn restart_with(world: &mut World, since: Option<Since>) {
    let store = world.store();
    let mut rows = Rows::new();
    let reader = store.reader().expect("open");
    match since {
        Some(since) => rows.put(&reader, family::META, "opaque_since", encode_since(since)),
        None => rows.delete(&reader, family::META, "opaque_since"),
    }
    drop(reader);
    store.write(rows).expect("written");
    drop(store);
    world.crash();
}

/// The ids that the events name.
fn told_ids(world: &World) -> HashSet<String> {
    let events = world.store().events_after(0, 1_000).expect("read");
    let of = |json: &[u8]| serde_json::from_slice::<serde_json::Value>(json).expect("JSON")["message_id"].clone();
    events.iter().map(|event| of(&event.json).as_str().expect("text").to_owned()).collect()
}

#[test]
fn ids_and_cursors_that_were_given_out_plain_stay_good_and_newer_ones_are_opaque() {
    let mut world = World::new();
    // What version 0.1 did: all is plain, and there is no such row.
    restart_with(&mut world, Some(Since { commit: u64::MAX, event: u64::MAX }));
    world.act(&Act::Send(vec![PLAIN, New { kind: Kind::List, ..PLAIN }]));
    world.drain();
    world.checkpoint();
    world.act(&Act::Send(vec![New { paused: true, ..PLAIN }]));
    let old: Vec<MessageId> = world.model.messages.iter().map(|known| known.id).collect();
    let plain: Vec<String> = old.iter().map(|id| ulid::Ulid(id.0).to_string()).collect();
    let newest = world.store().event_range(&EventFilter::all()).newest;
    assert_eq!((told_ids(&world), newest), (plain[..2].iter().cloned().collect(), 10));

    restart_with(&mut world, None);
    for _ in 0..2 {
        world.act(&Act::Send(vec![PLAIN]));
        world.drain();
        world.checkpoint();
        let store = world.store();
        for (id, text) in old.iter().zip(&plain) {
            assert_eq!(store.ids.show(*id).to_string(), *text);
            assert_eq!(store.ids.read(text.parse().expect("a ULID")), *id);
            assert_eq!(world.status(*id).id, *id);
        }
        for known in &world.model.messages[3..] {
            let text = ulid::Ulid(known.id.0).to_string();
            let shown = store.ids.show(known.id);
            assert_ne!(shown.to_string(), text);
            assert_eq!(store.ids.read(shown), known.id);
            let guessed = store.ids.read(text.parse::<VisibleId>().expect("a ULID"));
            assert!(store.status(guessed, &world.apps, world.now()).expect("read").is_none(), "its plain form names nothing");
        }
        // Also those of what is told of it later.
        let mut told: HashSet<String> = world.model.messages.iter().map(|known| store.ids.show(known.id).to_string()).collect();
        assert!(told.remove(&plain[2]), "it is still paused");
        assert_eq!(told_ids(&world), told);
        assert_eq!(store.ids.event_number(&newest.to_string(), |_| true), Some(newest));
        assert_eq!(store.ids.event_number(&(newest + 1).to_string(), |_| true), None, "it was not given out plain");
        drop(store);
        world.crash();
    }
    world.finish();
    assert!(told_ids(&world).contains(&plain[2]), "it ended last, and is named as it was");
}
