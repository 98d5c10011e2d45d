//! Which singles a `cancel`, `pause` or `resume` of a label or an app concerns.
//!
//! Lists and campaigns are in the writer's memory, which counts them itself. Singles are on disk only: they are counted here, by a
//! thread that reads, in turns of some milliseconds, before the writer takes the command.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use bytes::Bytes;

use crate::message::{BatchId, DeliveryId, Message, MessageId};
use crate::protocol::request::Target;
use crate::store::commit::Apps;
use crate::store::key::{self, DueKey, WorkKey};
use crate::store::live::{Holder, ListKey, ending, lanes_of};
use crate::store::{ReadError, Store, family, record};

/// Deliveries that one count looks at, of all apps: some 0.2 s of one core.
const LOOKED_AT_MAX: usize = if cfg!(test) { 64 } else { 100_000 };
/// Rows, and bytes of them, that are read together.
const ROWS: usize = if cfg!(test) { 16 } else { 256 };
const BYTES: usize = 4 << 20;

/// What a command does to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Cancel,
    Pause,
    Resume,
}

/// The words that a target is: a label is one of each app of the socket.
pub fn words(target: &Target, apps: &Apps) -> Vec<Holder> {
    match target {
        Target::Message(id) => vec![Holder::Message(*id)],
        Target::Label(label) => apps.iter().map(|app| Holder::Label(app.clone(), label.clone())).collect(),
        Target::App(app) => vec![Holder::App(app.clone())],
    }
}

/// How much a command concerns of what has not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Concerned {
    pub messages: u64,
    pub recipients: u64,
    /// More waits than was looked at: both numbers are the least that it concerns.
    pub more: bool,
}

/// A count of singles, and how far it has come.
pub struct Counting {
    command: Command,
    words: Vec<Holder>,
    messages: HashSet<MessageId>,
    deliveries: HashSet<DeliveryId>,
    looked_at: usize,
    /// Prefixes of rows that are still to be read, and the key to go on at in the first of them.
    unread: VecDeque<(&'static str, Vec<u8>)>,
    start: Vec<u8>,
    /// Of `resume`: messages that are paused by themselves, of which is not known yet whether the words name them.
    unknown: Vec<MessageId>,
    paused: Vec<MessageId>,
}

/// What a count has found.
#[derive(Debug, Default)]
pub struct Counted {
    pub concerned: Concerned,
    /// Of `resume`: the singles that are paused by themselves: sent with `paused`, or paused by their id. Oldest first.
    pub paused: Vec<MessageId>,
}

impl Counting {
    /// A count of the singles that a command with these words concerns: those of them that have not ended, and, for `resume`, that
    /// nothing holds back any more once the words, and what was said of each message alone, are taken back.
    ///
    /// At most 100,000 deliveries of all apps are looked at.
    pub fn of(store: &Store, command: Command, words: Vec<Holder>) -> Counting {
        let lanes = store.services.all().into_iter().flat_map(|(service, _)| lanes_of(service));
        let unread: VecDeque<_> =
            lanes.flat_map(|lane| [family::WORK, family::DUE].map(|family| (family, key::lane_prefix(lane)))).collect();
        let start = unread.front().map(|(_, prefix)| prefix.clone()).unwrap_or_default();
        let alone = |holder: &Holder| if let Holder::Message(id) = holder { Some(*id) } else { None };
        let unknown = match command {
            Command::Resume => store.rules.load().paused.iter().filter_map(alone).collect(),
            Command::Cancel | Command::Pause => Vec::new(),
        };
        let (messages, deliveries, paused) = Default::default();
        Counting { command, words, messages, deliveries, looked_at: 0, unread, start, unknown, paused }
    }

    /// Counts until then, or to its end, which is told by true. Errors: the store is being opened again.
    pub fn go_on(&mut self, store: &Store, until: Instant) -> Result<bool, ReadError> {
        while let Some(id) = self.unknown.pop() {
            // The writer has the lists.
            if store.lists.get(ListKey::of(id)).is_none()
                && let Some(head) = store.head(id)?
                && self.words.iter().any(|word| word.concerns(id, &head.app, head.label.as_ref()))
            {
                self.paused.push(id);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        while self.looked_at < LOOKED_AT_MAX && !self.unread.is_empty() {
            self.count_rows(store)?;
            if Instant::now() >= until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// What was found.
    pub fn end(mut self) -> Counted {
        self.paused.sort_unstable();
        let (messages, recipients) = (self.messages.len() as u64, self.deliveries.len() as u64);
        let concerned = Concerned { messages, recipients, more: !self.unread.is_empty() };
        Counted { concerned, paused: self.paused }
    }

    fn count_rows(&mut self, store: &Store) -> Result<(), ReadError> {
        let Some((family, prefix)) = self.unread.front() else { return Ok(()) };
        let family = *family;
        let mut rows: Vec<(Vec<u8>, Bytes)> = Vec::new();
        let mut bytes = 0;
        store.reader()?.scan(family, &self.start, &key::after_prefix(prefix), |row, value| {
            bytes += value.len();
            rows.push((row.to_vec(), Bytes::copy_from_slice(value)));
            rows.len() < ROWS && bytes < BYTES
        })?;
        let Some((last, _)) = rows.last() else {
            self.unread.pop_front();
            self.start = self.unread.front().map(|(_, prefix)| prefix.clone()).unwrap_or_default();
            return Ok(());
        };
        self.start.clone_from(last);
        self.start.push(0);
        for (row, value) in rows {
            if family == family::WORK {
                let Ok(key) = WorkKey::decode(&row) else { continue };
                let batch = store.peek(key.batch(), usize::from(key.count))?;
                // Whether somebody is busy with them or not.
                let waiting: Vec<u16> = (0..key.count).filter(|index| batch.is_waiting(*index)).collect();
                for delivery in store.work_row_deliveries(&key, &waiting, &value) {
                    self.meet(store, delivery.id, &delivery.message);
                }
            } else if let Ok(key) = DueKey::decode(&row)
                && let BatchId::Commit { .. } = key.delivery.batch
                && !store.has_ended(key.delivery)?
                && let Ok(Some(delivery)) = record::read_due_row(value, key.delivery, key.time, || None)
            {
                self.meet(store, delivery.id, &delivery.message);
            }
        }
        Ok(())
    }

    fn meet(&mut self, store: &Store, delivery: DeliveryId, message: &Message) {
        self.looked_at += 1;
        let (id, app, label) = (message.id, &message.app, message.label.as_ref());
        if !self.words.iter().any(|word| word.concerns(id, app, label)) {
            return;
        }
        let rules = store.rules.load();
        let concerned = match self.command {
            Command::Resume => rules.lets_go(id, app, label, false, &self.words),
            // What a cancellation has not been swept from yet has ended all the same.
            Command::Cancel | Command::Pause => !rules.cancels(id, app, label),
        };
        drop(rules);
        // What waits in a row, and meanwhile by itself, is met twice.
        if concerned && self.deliveries.insert(delivery) {
            self.messages.insert(id);
        }
    }
}

impl Store {
    /// Whether a single's delivery has ended, as far as is known by now.
    pub fn has_ended(&self, delivery: DeliveryId) -> Result<bool, ReadError> {
        if let Some(batch) = self.batches.get(&delivery.batch) {
            return Ok(batch.has_ended(delivery.index));
        }
        let row = self.reader()?.value(family::OUTCOME, key::batch_key(&delivery.batch))?;
        let byte = row.as_ref().and_then(|bytes| bytes.get(usize::from(delivery.index)));
        Ok(byte.is_some_and(|byte| ending(*byte).is_some()))
    }

    /// A whole count, for tests that play the socket's side.
    #[cfg(test)]
    pub(super) fn counted(&self, command: Command, words: Vec<Holder>) -> Counted {
        let mut counting = Counting::of(self, command, words);
        while !counting.go_on(self, Instant::now()).expect("the store is open") {}
        counting.end()
    }
}
