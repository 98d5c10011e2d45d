//! The store, the scheduler and a played worker against a plain model, under random actions, crash and reopen among them.
//!
//! The model knows of each recipient what the test itself let become of it, now and as of the last checkpoint. It demands that
//! a delivery is in flight once at most, never after its end, never while it is paused, never after it was cancelled; that every
//! status adds up at every checkpoint; and that in the end, with everything resumed, every recipient has ended with exactly
//! one event, and no row of what waits is left.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use proptest::prelude::*;
use tokio::sync::oneshot;

use crate::clock;
use crate::encrypt::{load, unread};
use crate::ingest::request::{EventType, Payload, Send, Step, Subscriptions, Target, To};
use crate::message::{
    Delivery, Encoding, Ending, Endpoint, KeyId, MessageId, Origin, Recipient, Reference, Service, UnixMillis, Urgency,
};
use crate::schedule::lane::Heard;
use crate::schedule::origins::{Admit, Table};
use crate::schedule::{Queues, Run, Schedule};
use crate::store::commit::{Apps, Done, Op, Preparing, Writes, prepare_add, prepare_send};
use crate::store::writer::{News, Settings, Settle, Settled, Settlement, Writer};
use crate::store::{Store, family, testing};

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

#[derive(Clone, Copy, Debug)]
enum How {
    Accepted,
    Gone,
    Wait,
    Back,
    Condemned,
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

/// What runs, from one start to the next crash.
struct Running {
    store: Arc<Store>,
    writer: Writer,
    schedule: Schedule,
    table: Arc<Table>,
    commits: Sender<Writes>,
    settles: Sender<Settle>,
    high: Receiver<Run>,
    normal: Receiver<Run>,
    runs: VecDeque<Run>,
    in_flight: Vec<(Box<Delivery>, Origin)>,
}

struct World {
    directory: tempfile::TempDir,
    apps: Apps,
    running: Option<Running>,
    /// How far the scheduler's clock is ahead of the writer's.
    ahead: u64,
    messages: Vec<Known>,
    keys: HashMap<u8, MessageId>,
    next_reference: i64,
    ended: HashMap<i64, Ending>,
    ended_on_disk: HashMap<i64, Ending>,
    paused: HashSet<Option<u8>>,
    some_cancelled: bool,
}

const ALLOWED: [&str; 2] = ["one.example.net", "two.example.net"];

impl Running {
    fn start(directory: &std::path::Path, apps: &Apps) -> Running {
        let allowed: Vec<String> = ALLOWED.iter().map(|host| (*host).to_owned()).collect();
        let store = Arc::new(Store::open(directory, &testing::settings(), &allowed).expect("it opens"));
        let (wake, _rung) = bounded(1);
        let news = Arc::new(News::new(wake));
        let (commits, commits_out) = unbounded();
        let (settles, settles_out) = unbounded();
        let (cancelled, _sweep) = bounded(1);
        let settings = Settings {
            // Checkpoints are written when the test says so, or when they are forced.
            checkpoint_interval: Duration::from_secs(3_600),
            max_pending: 1_000_000,
            log: Ending::ALL.into_iter().map(EventType::Ended).collect(),
            first_keys: HashMap::new(),
            apps: apps.clone(),
            browsers_per_account: 10_000,
            undo: 604_800_000,
            grace: 120_000,
        };
        let writer = Writer::open(store.clone(), settings, commits_out, settles_out, news.clone(), cancelled).expect("it opens");
        let (high_in, high) = bounded(4);
        let (normal_in, normal) = bounded(4);
        let table = Arc::new(Table::new(16, |_| 1_000));
        let queues = Queues { high: high_in, normal: normal_in };
        let schedule = Schedule::new(store.clone(), news, table.clone(), queues, settles.clone()).expect("it reads");
        Running { store, writer, schedule, table, commits, settles, high, normal, runs: VecDeque::new(), in_flight: Vec::new() }
    }
}

impl World {
    fn new() -> World {
        // In memory where that can be: a crash of the process loses nothing that was written, so syncing adds nothing here.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let apps: Apps = Arc::new(vec![Arc::from("shop")]);
        let running = Some(Running::start(directory.path(), &apps));
        World {
            directory,
            apps,
            running,
            ahead: 0,
            messages: Vec::new(),
            keys: HashMap::new(),
            next_reference: 0,
            ended: HashMap::new(),
            ended_on_disk: HashMap::new(),
            paused: HashSet::new(),
            some_cancelled: false,
        }
    }

    fn run(&mut self) -> &mut Running {
        self.running.as_mut().expect("it runs")
    }

    fn now(&self) -> UnixMillis {
        clock::now().plus(self.ahead)
    }

    /// Lets the writer do all that there is to do, with the scheduler looking at it meanwhile.
    fn pump(&mut self) {
        let now = self.now();
        loop {
            let Running { writer, schedule, .. } = self.running.as_mut().expect("it runs");
            let checkpoint = std::thread::scope(|threads| {
                let playing = threads.spawn(|| writer.play());
                while !playing.is_finished() {
                    schedule.step(now);
                    std::thread::sleep(Duration::from_micros(200));
                }
                playing.join().expect("the writer does not panic")
            });
            if checkpoint {
                self.ended_on_disk = self.ended.clone();
            }
            if self.run().writer.idle() {
                return;
            }
        }
    }

    fn hand_over(&mut self, ops: Vec<Op>) -> Vec<Done> {
        let (reply, mut answers) = oneshot::channel();
        self.run().commits.send(Writes { ops, reply, places: Vec::new() }).expect("the writer takes it");
        self.pump();
        answers.try_recv().expect("it is answered")
    }

    /// Recipients at three origins of two services.
    fn recipients(&mut self, first: u8, count: u8) -> Vec<Recipient> {
        let services: Vec<Service> =
            ALLOWED.iter().map(|host| self.run().store.service_of(host).expect("it is allowed")).collect();
        (0..count)
            .map(|offset| {
                let place = (first + offset) % 6;
                let (service, origin) = match place % 3 {
                    0 => (services[0], "https://one.example.net"),
                    1 => (services[1], "https://a.two.example.net"),
                    _ => (services[1], "https://b.two.example.net"),
                };
                let reference = self.next_reference;
                self.next_reference += 1;
                Recipient {
                    service,
                    endpoint: Endpoint::from_checked(Bytes::from(format!("{origin}/{place}")), origin.len() as u16),
                    p256dh: [4; 65],
                    auth: [1; 16],
                    encoding: Encoding::Aes128gcm,
                    key: None,
                    expiration: None,
                    reference: Some(Reference::Integer(reference)),
                    attributes: None,
                    registered: None,
                }
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
        let services = &self.running.as_ref().expect("it runs").store.services;
        let preparing =
            Preparing { now: clock::now(), ttl0_patience: Duration::from_secs(5), first_key: KeyId([0; 8]), services };
        (Op::Send(Box::new(prepare_send(send, &preparing))), references)
    }

    fn taken(&mut self, new: &New, references: Vec<i64>, done: Done) {
        let Done::Taken { message_id, recipients, duplicate, .. } = done else { panic!("{done:?}") };
        if let Some(key) = new.key {
            let first = self.keys.get(&key).copied();
            assert_eq!(duplicate, first.is_some(), "an idempotency key is known from its first use on");
            if let Some(first) = first {
                assert_eq!(message_id, first);
                return;
            }
            self.keys.insert(key, message_id);
        }
        assert_eq!(recipients, references.len() as u64);
        self.messages.push(Known {
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
        let mut done = self.hand_over(before.into_iter().chain(ops).collect());
        for ((new, references), done) in all.iter().zip(references).zip(done.drain(lead..)) {
            self.taken(new, references, done);
        }
    }

    fn pick(&self, message: u8) -> Option<usize> {
        (!self.messages.is_empty()).then(|| usize::from(message) % self.messages.len())
    }

    fn target(&self, aim: Aim) -> Option<Target> {
        Some(match aim {
            Aim::Message(message) => Target::Message(self.messages[self.pick(message)?].id),
            Aim::Label(label) => Target::Label(Arc::from(format!("label{label}"))),
            Aim::App => Target::App(self.apps[0].clone()),
        })
    }

    fn aimed(&mut self, aim: Aim) -> Vec<&mut Known> {
        let picked = if let Aim::Message(message) = aim { self.pick(message) } else { None };
        let all = self.messages.iter_mut().enumerate();
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
                let Some(index) = self.pick(*message).filter(|index| self.messages[*index].kind == Kind::Stream) else { return };
                self.hand_over(vec![Op::Close { message_id: self.messages[index].id, step: None, apps }]);
            }
            Act::Cancel(aim) => {
                let Some(target) = self.target(*aim) else { return };
                self.aimed(*aim).into_iter().for_each(|known| known.cancelled = true);
                self.some_cancelled = true;
                assert_eq!(self.hand_over(vec![Op::Cancel { target, apps }]), [Done::Done]);
            }
            Act::CancelThenSend(aim, new) => {
                let Some(target) = self.target(*aim) else { return };
                self.aimed(*aim).into_iter().for_each(|known| known.cancelled = true);
                self.some_cancelled = true;
                self.send(Some(Op::Cancel { target, apps }), std::slice::from_ref(new));
            }
            Act::Pause(aim) => {
                let Some(target) = self.target(*aim) else { return };
                assert_eq!(self.hand_over(vec![Op::Pause { target, apps }]), [Done::Done]);
                match aim {
                    Aim::Message(_) => self.aimed(*aim).into_iter().for_each(|known| known.paused = true),
                    Aim::Label(label) => _ = self.paused.insert(Some(*label)),
                    Aim::App => _ = self.paused.insert(None),
                }
            }
            Act::Resume(aim, rate) => {
                let Some(target) = self.target(*aim) else { return };
                match aim {
                    Aim::Message(_) => self.aimed(*aim).into_iter().for_each(|known| known.paused = false),
                    Aim::Label(label) => _ = self.paused.remove(&Some(*label)),
                    Aim::App => _ = self.paused.remove(&None),
                }
                let done = self.hand_over(vec![Op::Resume { target, rate: rate.map(f64::from), apps }]);
                assert_eq!(done, [Done::Done]);
            }
            Act::Step => {
                let now = self.now();
                self.run().schedule.step(now);
                let Running { runs, high, normal, .. } = self.run();
                runs.extend(high.try_iter());
                runs.extend(normal.try_iter());
            }
            Act::Load(n) => (0..*n).for_each(|_| self.load_one()),
            Act::Settle(n, how) => self.settle(usize::from(*n), *how),
            Act::Later(millis) => self.ahead += u64::from(*millis),
            Act::Checkpoint => self.checkpoint(),
            Act::Crash => self.crash(),
        }
    }

    fn add(&mut self, message: u8, recipients: u8) {
        let Some(index) = self.pick(message).filter(|index| self.messages[*index].kind == Kind::Stream) else { return };
        let good = self.recipients(0, recipients);
        let references: Vec<i64> = good.iter().map(reference).collect();
        let (id, steps) = (self.messages[index].id, self.messages[index].steps);
        let step = Step { position: (steps + 1).to_string().into(), previous: (steps > 0).then(|| steps.to_string().into()) };
        let add = crate::ingest::request::Add {
            message_id: id,
            subscriptions: Subscriptions { good, rejected: Vec::new() },
            step: Some(step),
        };
        let store = &self.running.as_ref().expect("it runs").store;
        let message = store.list_message(crate::store::live::ListKey::of(id)).expect("read").expect("it is there");
        let services = &store.services;
        let preparing =
            Preparing { now: clock::now(), ttl0_patience: Duration::from_secs(5), first_key: KeyId([0; 8]), services };
        let op = prepare_add(add, &message, self.apps.clone(), &preparing);
        match &self.hand_over(vec![op])[..] {
            [Done::Added { duplicate: false, .. }] => {
                self.messages[index].recipients.extend(references);
                self.messages[index].steps += 1;
            }
            // Closed, cancelled or out of time.
            [Done::Failed { .. }] => {}
            other => panic!("{other:?}"),
        }
    }

    fn known(&self, id: MessageId) -> &Known {
        self.messages.iter().find(|known| known.id == id).expect("only what was answered is handed out")
    }

    /// Plays a worker with one run.
    fn load_one(&mut self) {
        let now = self.now();
        let Some(run) = self.run().runs.pop_front() else { return };
        let (service, store, table) = (run.lane.service, self.run().store.clone(), self.run().table.clone());
        let loaded = load(&store, &run).expect("the store is open");
        table.unsent(service, run.origin.as_ref(), usize::from(run.most) - loaded.deliveries.len());
        if loaded.back {
            self.run().settles.send(unread(&run).expect("a run of something")).expect("taken");
        }
        if !loaded.stale.is_empty() {
            self.run().settles.send(Settle::Stale(loaded.stale)).expect("taken");
        }
        let mut settled = Vec::new();
        for delivery in loaded.deliveries {
            let of = reference(&delivery.recipient);
            assert!(!self.ended.contains_key(&of), "{of} has ended and is handed out again");
            assert!(self.run().in_flight.iter().all(|(other, _)| reference(&other.recipient) != of), "{of} is in flight twice");
            let message = delivery.message.clone();
            assert!(message.at <= now, "{of} is early");
            let rules = store.rules.load();
            let what = if rules.cancels(message.id, &message.app, message.label.as_ref()) {
                Some(Settlement::Ended { ending: Ending::Cancelled, reason: "cancelled", status: None, key: None })
            } else if message.expires.since(now) < 1_000 {
                Some(Settlement::Ended { ending: Ending::Expired, reason: "deadline", status: None, key: None })
            } else {
                rules.holder(&message).map(Settlement::Hold)
            };
            drop(rules);
            if let Some(what) = what {
                if let Settlement::Ended { ending, .. } = &what {
                    self.ended.insert(of, *ending);
                }
                table.unsent(service, run.origin.as_ref(), 1);
                settled.push(Settled { delivery, what });
                continue;
            }
            let origin = Origin(Arc::from(delivery.recipient.endpoint.origin_str()));
            if run.origin.is_none()
                && let Admit::Wait(until) = table.admit(service, &origin, now, run.lane.urgency.rank())
            {
                table.unsent(service, None, 1);
                let until = until.min(message.expires);
                settled.push(Settled { delivery, what: Settlement::Wait { until, counts_retry: false } });
                continue;
            }
            let known = self.known(message.id);
            assert!(!known.cancelled, "{of} was cancelled and is sent");
            assert!(!known.paused, "{of} is paused and is sent");
            assert!(
                !self.paused.contains(&None) && (known.label.is_none() || !self.paused.contains(&known.label)),
                "{of} is held"
            );
            self.run().in_flight.push((delivery, origin));
        }
        self.run().settles.send(Settle::Slice(settled)).expect("taken");
        self.pump();
    }

    fn settle(&mut self, n: usize, how: How) {
        let now = self.now();
        let mut settled = Vec::new();
        for _ in 0..n {
            // Now the oldest, now the newest: answers come in any order.
            let Running { in_flight, .. } = self.run();
            let Some(last) = in_flight.len().checked_sub(1) else { break };
            let (delivery, origin) = in_flight.remove(if last % 2 == 0 { 0 } else { last });
            let of = reference(&delivery.recipient);
            let ended = |ending| Settlement::Ended { ending, reason: "", status: None, key: None };
            let (what, heard) = match how {
                How::Accepted => (ended(Ending::Accepted), Some(Heard::Answer)),
                How::Gone => (ended(Ending::Gone), Some(Heard::Answer)),
                How::Wait => (Settlement::Wait { until: now.plus(5_000), counts_retry: true }, Some(Heard::Answer)),
                How::Back => (Settlement::Back, None),
                How::Condemned => (Settlement::Back, Some(Heard::Condemned { not_before: None })),
            };
            if let Settlement::Ended { ending, .. } = &what {
                self.ended.insert(of, *ending);
            }
            let service = delivery.recipient.service;
            self.run().table.answered(service, &origin, now, heard, None);
            settled.push(Settled { delivery, what });
        }
        self.run().settles.send(Settle::Slice(settled)).expect("taken");
        self.pump();
    }

    fn checkpoint(&mut self) {
        self.run().writer.force();
        self.pump();
        self.check_statuses();
    }

    fn crash(&mut self) {
        self.running = None;
        self.ended = self.ended_on_disk.clone();
        self.running = Some(Running::start(self.directory.path(), &self.apps));
        self.run().writer.force();
        self.pump();
        self.check_statuses();
    }

    /// Right after a checkpoint.
    fn check_statuses(&mut self) {
        let now = self.now();
        let store = self.run().store.clone();
        let mut pending = 0;
        for known in &self.messages {
            let status =
                store.status(known.id, &self.apps, now).expect("read").expect("every message that was answered is there");
            let counts = status.counts;
            assert_eq!(counts.recipients, known.recipients.len() as u64, "{}", known.id);
            let ended: u64 = counts.ended.iter().sum();
            assert!(ended <= counts.recipients, "{}: {counts:?}", known.id);
            pending += counts.pending();
            for ending in [Ending::Accepted, Ending::Gone] {
                let ours = known.recipients.iter().filter(|of| self.ended.get(of) == Some(&ending)).count() as u64;
                assert_eq!(counts.ended[ending as usize - 1], ours, "{}: {}", known.id, ending.as_str());
            }
        }
        // What a cancel has met in flight, and what it will end of a label or app, is told as cancelled before it is settled.
        if !self.some_cancelled {
            assert_eq!(store.pending.load(std::sync::atomic::Ordering::Relaxed), pending);
        }
    }

    /// Lets everything go and demands that everything ends.
    fn finish(&mut self) {
        let apps = self.apps.clone();
        for aim in [Aim::App, Aim::Label(0), Aim::Label(1)] {
            self.act(&Act::Resume(aim, None));
        }
        for index in 0..self.messages.len() {
            let target = Target::Message(self.messages[index].id);
            self.messages[index].paused = false;
            self.hand_over(vec![Op::Resume { target, rate: None, apps: apps.clone() }]);
            if self.messages[index].kind == Kind::Stream {
                let message_id = self.messages[index].id;
                self.hand_over(vec![Op::Close { message_id, step: None, apps: apps.clone() }]);
            }
        }
        let pending = |world: &mut World| world.run().store.pending.load(std::sync::atomic::Ordering::Relaxed);
        let mut rounds = 0;
        while pending(self) > 0 {
            rounds += 1;
            assert!(rounds < 100, "{} deliveries are stuck: {:?}", pending(self), self.open_messages());
            self.ahead += 31_000;
            self.drain();
            self.checkpoint();
        }
        // Hints of what has ended leave when their time comes.
        self.ahead += 40 * 86_400_000;
        self.drain();
        self.drain();
        self.checkpoint();
        assert!(self.run().store.lists.all().is_empty(), "a list is open that has ended");
        for family in [family::WORK, family::LIST, family::DUE, family::HELD] {
            let mut rows = 0;
            let store = self.run().store.clone();
            store
                .reader()
                .expect("open")
                .scan(family, &[], &[255; 64], |_, _| {
                    rows += 1;
                    true
                })
                .expect("read");
            assert_eq!(rows, 0, "rows left in {family}");
        }
        self.check_events();
        self.crash();
        assert_eq!(pending(self), 0);
        self.check_events();
    }

    fn drain(&mut self) {
        loop {
            self.settle(usize::MAX, How::Accepted);
            self.act(&Act::Step);
            if self.run().runs.is_empty() {
                return;
            }
            while !self.run().runs.is_empty() {
                self.load_one();
            }
        }
    }

    fn open_messages(&mut self) -> Vec<String> {
        let (now, store) = (self.now(), self.run().store.clone());
        let open = |known: &Known| {
            let status = store.status(known.id, &self.apps, now).ok()??;
            (status.counts.pending() > 0).then(|| format!("{:?} {status:?}", known.kind))
        };
        self.messages.iter().filter_map(open).collect()
    }

    /// One ending event a recipient, and no other.
    fn check_events(&mut self) {
        let (now, store) = (self.now(), self.run().store.clone());
        let mut told: BTreeMap<String, [u64; 6]> = BTreeMap::new();
        let mut seen = HashSet::new();
        let mut after = 0;
        loop {
            let page = store.events_after(after, 100).expect("read");
            let Some(last) = page.last() else { break };
            after = last.number;
            for event in page {
                let event: serde_json::Value = serde_json::from_slice(&event.json).expect("an event is JSON");
                let word = event["type"].as_str().expect("a type");
                let ending = Ending::ALL.into_iter().find(|ending| ending.as_str() == word).expect("an ending");
                if let Some(of) = event["ref"].as_i64() {
                    assert!(seen.insert(of), "{of} has two events");
                    if let Some(ours) = self.ended.get(&of) {
                        assert_eq!(ending, *ours, "{of}");
                    }
                }
                let id = event["message_id"].as_str().expect("an id").to_owned();
                told.entry(id).or_default()[ending as usize - 1] += event["count"].as_u64().unwrap_or(1);
            }
        }
        for known in &self.messages {
            let counts = store.status(known.id, &self.apps, now).expect("read").expect("there").counts;
            assert_eq!(counts.pending(), 0, "{}", known.id);
            assert_eq!(told.get(&known.id.to_string()).copied().unwrap_or_default(), counts.ended, "{}", known.id);
        }
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
        let store = world.run().store.clone();
        for (known, ending) in world.messages.iter().zip([Ending::Skipped, Ending::Accepted]) {
            let status = store.status(known.id, &world.apps, world.now()).expect("read").expect("there");
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
    let status = world.run().store.clone().status(world.messages[0].id, &world.apps, world.now()).expect("read").expect("there");
    assert_eq!(status.counts.ended[Ending::Accepted as usize - 1], 5);
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
