//! A store with its writer, the scheduler, the sweep and a worker, all played by hand, with crash and reopen; a test's [`Model`]
//! says what must become of whom.
//!
//! Demanded of all of them: a delivery is in flight once at most, never after its end and never before its time.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, bounded};
use serde_json::Value;
use tokio::sync::oneshot;

use super::commit::{Apps, Done, Op, Preparing, Writes};
use super::read::Status;
use super::run::{Run, load, unread};
use super::sweep::{self, Sweep};
use super::turns::{From, Turns, turns};
use super::writer::{News, Settings, Settle, Settled, Settlement, Writer};
use super::{Store, testing};
use crate::clock;
use crate::message::{
    Delivery, Encoding, Ending, Endpoint, KeyId, Message, MessageId, Origin, Recipient, SubscriptionId, UnixMillis,
};
use crate::origin::health::Heard;
use crate::origin::table::{Admit, Table};
use crate::protocol::request::EventType;
use crate::queue::{self, Bell, Sender};
use crate::schedule::{Queues, Schedule};

/// Hosts with a service each.
pub const HOSTS: [&str; 2] = ["one.example.net", "two.example.net"];

/// What a test itself knows of its messages.
pub trait Model: Sized {
    /// Names one recipient of one message.
    type Of: Copy + Debug + Eq + Hash;

    fn of(delivery: &Delivery) -> Self::Of;

    /// It is about to be sent: nothing that the test did may be against it.
    fn check_sent(&self, of: Self::Of, message: &Message);

    /// Right after a checkpoint.
    fn check(world: &mut World<Self>);
}

/// Knows nothing: the harness alone demands enough, one delivery at a time and none after its end.
pub struct HarnessOnly;

impl Model for HarnessOnly {
    type Of = (MessageId, SubscriptionId);

    fn of(delivery: &Delivery) -> Self::Of {
        (delivery.message.id, delivery.recipient.subscription_id())
    }

    fn check_sent(&self, _: Self::Of, _: &Message) {}

    fn check(_: &mut World<Self>) {}
}

pub struct World<M: Model> {
    pub model: M,
    pub apps: Apps,
    /// How far the scheduler's clock is ahead of the writer's.
    pub ahead: u64,
    pub ended: HashMap<M::Of, Ending>,
    ended_on_disk: HashMap<M::Of, Ending>,
    directory: tempfile::TempDir,
    setup: Setup,
    running: Option<Running>,
}

#[derive(Clone, Copy)]
pub struct Setup {
    pub browsers_per_account: usize,
    /// Bytes of the event log.
    pub events_max: u64,
    /// The scheduler looks on while the writer works; else it looks when it is told, and the writer does at once what it then wants.
    pub looks_on: bool,
}

/// What runs, from one start to the next crash.
pub struct Running {
    pub store: Arc<Store>,
    pub writer: Writer,
    pub sweep: Sweep,
    pub runs: VecDeque<Run>,
    schedule: Schedule,
    table: Arc<Table>,
    commits: Turns,
    settles: Sender<Settle>,
    high: Receiver<Run>,
    normal: Receiver<Run>,
    in_flight: Vec<(Box<Delivery>, Origin)>,
}

/// What a push service answers.
#[derive(Clone, Copy, Debug)]
pub enum How {
    Accepted,
    Gone,
    Wait,
    Back,
    Condemned,
}

impl Running {
    fn start(directory: &Path, apps: &Apps, setup: Setup) -> Running {
        let store = Arc::new(Store::open(directory, &testing::settings(), &HOSTS.map(str::to_owned)).expect("it opens"));
        let news = Arc::new(News::new(Bell::default()));
        let (commits, commits_out) = turns();
        let (settles, settles_out) = queue::unbounded();
        let (cancelled, cancellations) = bounded(1);
        let settings = Settings {
            // Checkpoints are written when the test says so, or when they are forced.
            checkpoint_interval: Duration::from_secs(3_600),
            max_pending: 1_000_000,
            max_open: 100_000,
            log: Ending::ALL.into_iter().map(EventType::Ended).chain([EventType::Unreachable, EventType::Shown]).collect(),
            first_keys: HashMap::new(),
            apps: apps.clone(),
            browsers_per_account: setup.browsers_per_account,
            undo: 604_800_000,
            grace: 120_000,
        };
        let writer = Writer::open(store.clone(), settings, commits_out, settles_out, news.clone(), cancelled).expect("it opens");
        let (high_in, high) = bounded(4);
        let (normal_in, normal) = bounded(4);
        let table = Arc::new(Table::new(16, |_| 1_000));
        let queues = Queues { high: high_in, normal: normal_in };
        let schedule = Schedule::new(store.clone(), news, table.clone(), queues, settles.clone()).expect("it reads");
        let settings = sweep::Settings {
            retention: Duration::from_secs(604_800),
            events_retention: Duration::from_secs(604_800),
            events_max: setup.events_max,
            apps: apps.clone(),
            stats_keep_days: 400,
            min_free_percent: 0.0,
        };
        let sweep = Sweep::new(store.clone(), settings, settles.clone(), cancellations, Arc::default());
        let (runs, in_flight) = (VecDeque::new(), Vec::new());
        Running { store, writer, sweep, runs, schedule, table, commits, settles, high, normal, in_flight }
    }
}

impl<M: Model> World<M> {
    pub fn start(setup: Setup, model: M) -> World<M> {
        World::start_with(setup, model, &["shop"])
    }

    pub fn start_with(setup: Setup, model: M, apps: &[&str]) -> World<M> {
        // In memory where that can be: a crash of the process loses nothing that was written, so syncing adds nothing here.
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        let apps: Apps = Arc::new(apps.iter().map(|app| Arc::from(*app)).collect());
        let running = Some(Running::start(directory.path(), &apps, setup));
        World { model, apps, ahead: 0, ended: HashMap::new(), ended_on_disk: HashMap::new(), directory, setup, running }
    }

    pub fn run(&mut self) -> &mut Running {
        self.running.as_mut().expect("it runs")
    }

    pub fn store(&self) -> Arc<Store> {
        self.running.as_ref().expect("it runs").store.clone()
    }

    pub fn now(&self) -> UnixMillis {
        clock::now().plus(self.ahead)
    }

    /// Lets the writer do all that there is to do.
    pub fn pump(&mut self) {
        let (now, looks_on) = (self.now(), self.setup.looks_on);
        loop {
            let Running { writer, schedule, .. } = self.run();
            let checkpoint = if looks_on { play_looked_at(writer, schedule, now) } else { writer.play() };
            if checkpoint {
                self.ended_on_disk = self.ended.clone();
            }
            if self.run().writer.idle() {
                return;
            }
        }
    }

    /// Lines of one connection that are handed over together.
    pub fn hand_over_together(&mut self, ops: Vec<Op>) -> Vec<Done> {
        let mut answers = self.hand_in(ops);
        self.pump();
        answers.try_recv().expect("it is answered")
    }

    pub fn hand_over(&mut self, op: Op) -> Done {
        self.hand_over_together(vec![op]).remove(0)
    }

    /// The writer has yet to take them.
    pub fn hand_in(&mut self, ops: Vec<Op>) -> oneshot::Receiver<Vec<Done>> {
        let (reply, answers) = oneshot::channel();
        assert!(self.run().commits.send(Writes::new(ops, reply)).is_ok(), "the writer takes it");
        answers
    }

    /// The same on another connection; nobody waits for its answer.
    pub fn hand_in_beside(&mut self, op: Op) {
        let (reply, _nobody) = oneshot::channel();
        let from = From { socket: 7, connection: 7 };
        assert!(self.run().commits.send(Writes { from, ..Writes::new(vec![op], reply) }).is_ok(), "the writer takes it");
    }

    pub fn preparing(&self) -> Preparing<'_> {
        let services = &self.running.as_ref().expect("it runs").store.services;
        Preparing {
            now: clock::now(),
            ttl0_patience: Duration::from_secs(5),
            first_key: KeyId([0; 8]),
            services,
            operators: false,
        }
    }

    /// A browser at an origin that belongs to the service of `host`.
    pub fn recipient(&self, host: &str, origin: &str, path: u8) -> Recipient {
        Recipient {
            service: self.store().service_of(host).expect("it is allowed"),
            endpoint: Endpoint::from_checked(Bytes::from(format!("{origin}/{path}")), origin.len() as u16),
            p256dh: [4; 65],
            auth: [1; 16],
            encoding: Encoding::Aes128gcm,
            key: None,
            expiration: None,
            reference: None,
            attributes: None,
            registered: None,
        }
    }

    /// The scheduler looks once.
    pub fn step(&mut self) {
        let now = self.now();
        let Running { schedule, runs, high, normal, .. } = self.run();
        schedule.step(now);
        runs.extend(high.try_iter());
        runs.extend(normal.try_iter());
        if !self.setup.looks_on {
            self.pump();
        }
    }

    /// Plays a worker with one run.
    pub fn load_one(&mut self) {
        let now = self.now();
        let Running { runs, store, table, settles, in_flight, .. } = self.running.as_mut().expect("it runs");
        let Some(run) = runs.pop_front() else { return };
        let service = run.lane.service;
        let loaded = load(store, &run).expect("the store is open");
        table.unsent(service, run.origin.as_ref(), usize::from(run.most) - loaded.deliveries.len());
        if loaded.back {
            settles.send(unread(&run).expect("a run of something")).expect("taken");
        }
        if let Some((batch, list, places)) = loaded.absent {
            settles.send(Settle::Absent { batch, list, places }).expect("taken");
        }
        if !loaded.stale.is_empty() {
            settles.send(Settle::Stale(loaded.stale)).expect("taken");
        }
        let mut settled = Vec::new();
        for delivery in loaded.deliveries {
            let of = M::of(&delivery);
            assert!(!self.ended.contains_key(&of), "{of:?} has ended and is handed out again");
            assert!(in_flight.iter().all(|(other, _)| M::of(other) != of), "{of:?} is in flight twice");
            let message = delivery.message.clone();
            assert!(message.at <= now, "{of:?} is early");
            let rules = store.rules.load();
            let ended = |ending, reason| Some(Settlement::Ended { ending, reason, status: None, key: None });
            let what = if rules.cancels(message.id, &message.app, message.label.as_ref()) {
                ended(Ending::Cancelled, "cancelled")
            } else if rules.erased_by(message.id, &message.app, &delivery.recipient).is_some() {
                ended(Ending::Cancelled, "erased")
            } else if let Some(lost) = delivery.lost {
                ended(Ending::Skipped, lost)
            } else if message.expires.since(now) < 1_000 {
                ended(Ending::Expired, "deadline")
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
            self.model.check_sent(of, &message);
            in_flight.push((delivery, origin));
        }
        settles.send(Settle::Slice(settled)).expect("taken");
        self.pump();
    }

    /// Answers so many of what is in flight, and gives whom they were for. The writer has yet to take it, and the test to note it.
    pub fn answer(&mut self, n: usize, how: How) -> Vec<(M::Of, Recipient)> {
        let now = self.now();
        let Running { in_flight, table, settles, .. } = self.running.as_mut().expect("it runs");
        let (mut settled, mut answered) = (Vec::new(), Vec::new());
        for _ in 0..n {
            // Now the oldest, now the newest: answers come in any order.
            let Some(last) = in_flight.len().checked_sub(1) else { break };
            let (delivery, origin) = in_flight.remove(if last % 2 == 0 { 0 } else { last });
            let ended = |ending| Settlement::Ended { ending, reason: "", status: None, key: None };
            let (what, heard) = match how {
                How::Accepted => (ended(Ending::Accepted), Some(Heard::Answer)),
                How::Gone => (ended(Ending::Gone), Some(Heard::Answer)),
                How::Wait => (Settlement::Wait { until: now.plus(5_000), counts_retry: true }, Some(Heard::Answer)),
                How::Back => (Settlement::Back, None),
                How::Condemned => (Settlement::Back, Some(Heard::Condemned { not_before: None })),
            };
            table.answered(delivery.recipient.service, &origin, now, heard, None);
            answered.push((M::of(&delivery), delivery.recipient.clone()));
            settled.push(Settled { delivery, what });
        }
        settles.send(Settle::Slice(settled)).expect("taken");
        answered
    }

    /// Has everything sent that is due, and accepted.
    pub fn drain(&mut self) {
        loop {
            let accepted = self.answer(usize::MAX, How::Accepted);
            self.ended.extend(accepted.into_iter().map(|(of, _)| (of, Ending::Accepted)));
            self.pump();
            self.step();
            if self.run().runs.is_empty() {
                return;
            }
            while !self.run().runs.is_empty() {
                self.load_one();
            }
        }
    }

    pub fn checkpoint(&mut self) {
        self.write_checkpoint();
        M::check(self);
    }

    pub fn write_checkpoint(&mut self) {
        self.run().writer.force();
        self.pump();
    }

    pub fn crash(&mut self) {
        self.running = None;
        self.ended = self.ended_on_disk.clone();
        self.running = Some(Running::start(self.directory.path(), &self.apps, self.setup));
        self.checkpoint();
    }

    /// When all has ended, no row may be left in these families once the time of every hint has come.
    pub fn check_nothing_waits(&mut self, families: &[&str]) {
        self.ahead += 40 * 86_400_000;
        self.drain();
        self.drain();
        self.checkpoint();
        for family in families {
            assert_eq!(self.rows(family, &[], &[255; 64], |_, _| true), 0, "rows left in {family}");
        }
    }

    /// Of these rows, how many are `such`.
    pub fn rows(&self, family: &str, from: &[u8], to: &[u8], such: impl Fn(&[u8], &[u8]) -> bool) -> usize {
        let mut found = 0;
        let count = |key: &[u8], value: &[u8]| {
            found += usize::from(such(key, value));
            true
        };
        self.store().reader().expect("open").scan(family, from, to, count).expect("read");
        found
    }

    pub fn status(&self, id: MessageId) -> Status {
        self.store().status(id, &self.apps, self.now()).expect("read").expect("every message that was answered is there")
    }

    /// One ending event a recipient of these messages, and no other. `each` sees them all.
    pub fn check_events(&self, messages: impl IntoIterator<Item = MessageId>, mut each: impl FnMut(&Value, Ending)) {
        let store = self.store();
        let mut told: BTreeMap<String, [u64; 6]> = BTreeMap::new();
        let mut after = 0;
        loop {
            let page = store.events_after(after, 100).expect("read");
            let Some(last) = page.last() else { break };
            after = last.number;
            for event in page {
                let event: Value = serde_json::from_slice(&event.json).expect("an event is JSON");
                let word = event["type"].as_str().expect("a type");
                let ending = Ending::ALL.into_iter().find(|ending| ending.as_str() == word).expect("an ending");
                each(&event, ending);
                let id = event["message_id"].as_str().expect("an id").to_owned();
                told.entry(id).or_default()[ending as usize - 1] += event["count"].as_u64().unwrap_or(1);
            }
        }
        for id in messages {
            let counts = self.status(id).counts;
            assert_eq!(counts.pending(), 0, "{id:?}");
            let told = told.get(&store.ids.show(id).to_string()).copied();
            assert_eq!(told.unwrap_or_default(), counts.ended, "{id:?}");
        }
    }
}

/// One turn of the writer, with the scheduler looking at it meanwhile. Gives whether it wrote a checkpoint.
fn play_looked_at(writer: &mut Writer, schedule: &mut Schedule, now: UnixMillis) -> bool {
    std::thread::scope(|threads| {
        let playing = threads.spawn(|| writer.play());
        while !playing.is_finished() {
            schedule.step(now);
            std::thread::sleep(Duration::from_micros(200));
        }
        playing.join().expect("the writer does not panic")
    })
}
