//! What a connection prepares for the writer, and what the writer answers. The preparing (encoding, hashing) is done on the
//! connection's thread; the writer only numbers, looks up and concatenates.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::limits::{CHUNK_RECIPIENTS_MAX, SINGLE_RECIPIENTS_MAX};
use crate::message::{
    Account, KeyId, Lane, Message, MessageId, Origin, Rank, Recipient, Segment, Service, SubscriptionId, UnixMillis, Urgency,
};
use crate::protocol::request::{
    Add, Devices, Erase, EventType, Problem, Read, Rejected, Send, State, Step, Subscribe, Subscriptions, Target, To, Update,
    Whose,
};
use crate::services::Services;
use crate::store::erase::{Asked, Swept};
use crate::store::record::{Put, put_message, put_recipient};
use crate::store::{turns, watch};

/// The lines of one connection that were read together, and where their answers go.
pub struct Writes {
    /// Those that the writer has not taken yet.
    pub ops: VecDeque<Op>,
    /// The answers of the others, given when all are on disk.
    pub done: Vec<Done>,
    /// So many of the answers are of earlier groups, which are on disk.
    pub synced: usize,
    pub reply: tokio::sync::oneshot::Sender<Vec<Done>>,
    /// Whether they go before others in the writer's queue.
    pub rank: Rank,
    pub from: turns::From,
    /// The place in the writer's queue and the memory that these lines hold; given back when they are answered.
    pub places: Vec<tokio::sync::OwnedSemaphorePermit>,
}

impl Writes {
    /// Lines from inside the daemon, which hold no place of a connection.
    pub fn new(ops: Vec<Op>, reply: tokio::sync::oneshot::Sender<Vec<Done>>) -> Writes {
        let rank = if ops.iter().any(Op::is_urgent) { Rank::High } else { Rank::Normal };
        let (from, done) = (turns::From::default(), Vec::with_capacity(ops.len()));
        Writes { ops: ops.into(), done, synced: 0, reply, rank, from, places: Vec::new() }
    }
}

/// One write.
pub enum Op {
    Send(Box<NewMessage>),
    Add {
        message_id: MessageId,
        chunks: Chunks,
        rejected: u32,
        step: Option<Step>,
        apps: Apps,
    },
    Close {
        message_id: MessageId,
        step: Option<Step>,
        apps: Apps,
    },
    Cancel {
        target: Target,
        apps: Apps,
    },
    Pause {
        target: Target,
        apps: Apps,
    },
    Resume {
        target: Target,
        rate: Option<f64>,
        apps: Apps,
    },
    Drain {
        on: bool,
    },
    /// `ping`: a pass through the writer, which says how many deliveries of these apps are pending. None: of all.
    Pass {
        apps: Option<Apps>,
    },
    Subscribe(Box<NewSubscription>),
    Update {
        update: Box<Update>,
        apps: Apps,
    },
    Unsubscribe {
        subscription: SubscriptionId,
        apps: Apps,
    },
    /// `account` with `enabled`.
    Switch {
        who: Whose,
        enabled: bool,
        apps: Apps,
    },
    Presence {
        who: Whose,
        online: bool,
        lease: Option<f64>,
        session: Option<Box<str>>,
        apps: Apps,
    },
    MarkRead {
        who: Whose,
        what: Read,
        apps: Apps,
    },
    Feedback {
        id: MessageId,
        subscription: SubscriptionId,
        kind: EventType,
        apps: Apps,
    },
    Erase {
        erase: Erase,
        /// On the operator's word: also in apps that are not configured any more.
        everywhere: bool,
        apps: Apps,
        so_far: Erasing,
    },
}

/// An erasure that may take several turns.
pub struct Erasing {
    /// Subscriptions that are removed.
    pub removed: u64,
    /// There is room for all its rules.
    pub begun: bool,
    /// Told when nothing waits any more and the logs are blanked.
    pub asked: Arc<Asked>,
}

impl Erasing {
    /// One that has not begun.
    pub fn new(reply: tokio::sync::oneshot::Sender<Swept>) -> Erasing {
        Erasing { removed: 0, begun: false, asked: Asked::new(reply) }
    }
}

impl Op {
    /// Whether somebody waits for it just now: an urgent message, and what an operator says to a daemon that is busy.
    pub fn is_urgent(&self) -> bool {
        match self {
            Op::Send(new) => new.message.urgency == Urgency::High,
            Op::Cancel { .. } | Op::Pause { .. } | Op::Resume { .. } | Op::Drain { .. } | Op::Pass { .. } => true,
            _ => false,
        }
    }
}

/// A `subscribe` that is to be taken.
pub struct NewSubscription {
    pub subscribe: Subscribe,
    pub id: SubscriptionId,
    /// The key that pages get: what a new subscription is taken to be made with.
    pub first_key: KeyId,
    /// The origin, if this store has not met it yet.
    pub new_origins: Vec<(Service, Origin)>,
    /// The message that is sent if the subscription is created.
    pub confirm: Option<Box<NewMessage>>,
}

/// Whom the registry is to look up for a message.
#[derive(Clone, Debug, PartialEq)]
pub enum Addressed {
    Ids(Vec<SubscriptionId>),
    Accounts {
        accounts: Vec<Account>,
        /// Only the browser that was seen last.
        latest: bool,
    },
}

/// Whom an addressed message goes to, as the registry says when it is taken.
#[derive(Default)]
pub struct Resolved {
    /// So many of the ids or accounts were looked up.
    pub(super) names: usize,
    pub(super) recipients: Vec<Recipient>,
    pub(super) rejected: Vec<Rejected>,
    /// For `stats`.
    pub(super) keys: BTreeMap<(Service, KeyId), u64>,
    /// The recipients of each account, for its fallback.
    pub(super) accounts: Vec<(Account, Vec<SubscriptionId>)>,
}

impl Addressed {
    /// How many ids or accounts.
    pub fn names(&self) -> usize {
        match self {
            Addressed::Ids(ids) => ids.len(),
            Addressed::Accounts { accounts, .. } => accounts.len(),
        }
    }
}

/// The apps of the socket a line came in by: what belongs to others is not found.
pub type Apps = Arc<Vec<Arc<str>>>;

/// A message that is to be taken.
pub struct NewMessage {
    /// Its id is set by the writer.
    pub message: Message,
    /// [`put_message`] of it; the first 16 bytes wait for the id.
    pub encoded: Vec<u8>,
    pub recipients: NewRecipients,
    pub rejected: u32,
    /// Key in `idempotency`, and the request's fingerprint.
    pub idempotency: Option<(Vec<u8>, [u8; 16])>,
    pub paused: bool,
    pub rate: Option<f64>,
    pub spread: Option<f64>,
    /// Milliseconds.
    pub fallback: Option<u64>,
    /// For `stats`.
    pub keys: Vec<(Service, KeyId, u64)>,
    /// Origins that this store has not met yet.
    pub new_origins: Vec<(Service, Origin)>,
    /// Who waits for its results.
    pub watch: Option<tokio::sync::mpsc::UnboundedSender<watch::Result>>,
    /// It came by the operator's socket.
    pub operators: bool,
}

impl NewMessage {
    /// Whether it is a message of a few recipients that came with their keys: nothing has to be looked up for it.
    pub fn is_single(&self) -> bool {
        matches!(self.recipients, NewRecipients::Single(_))
    }
}

/// Recipients of a new message.
pub enum NewRecipients {
    /// Up to 64, without `rate` and `spread`.
    Single(Vec<Part>),
    List {
        chunks: Chunks,
        closed: bool,
    },
    /// Looked up by the writer, so that every line before this one counts; and what it has found so far.
    Addressed(Addressed, Box<Resolved>),
    Campaign(Segment),
}

/// Recipients of a single at one service.
pub struct Part {
    pub service: Service,
    /// [`put_recipient`] of each.
    pub encoded: Vec<u8>,
    pub recipients: Vec<Recipient>,
    /// One a recipient.
    pub subscriptions: Vec<SubscriptionId>,
    /// Keys in `topic`, one a recipient, if the message has a topic.
    pub topics: Vec<[u8; 16]>,
}

/// Chunks of a list by service, each at most 512 recipients.
pub type Chunks = Vec<Chunk>;

/// A row of a list.
pub struct Chunk {
    pub service: Service,
    pub count: u16,
    pub row: Vec<u8>,
    /// As in [`Part`].
    pub topics: Vec<[u8; 16]>,
    /// For `stats`.
    pub keys: Vec<(Service, KeyId, u64)>,
    pub new_origins: Vec<(Service, Origin)>,
}

/// What the writer answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    /// `send`.
    Taken {
        message_id: MessageId,
        state: State,
        expires: UnixMillis,
        recipients: u64,
        duplicate: bool,
        position: Option<Box<str>>,
        /// Ids that cannot be sent to.
        rejected: Vec<Rejected>,
    },
    /// `add` and `close`.
    Added {
        recipients: u64,
        duplicate: bool,
        position: Option<Box<str>>,
    },
    /// `cancel`, `pause`, `resume`: so many messages are concerned, with so many recipients that have not ended. Of a label or an app
    /// these are its lists and campaigns: singles are counted by [`crate::store::concerned`].
    Changed {
        messages: u64,
        recipients: u64,
    },
    /// `drain`: nothing is written for it.
    Passed,
    /// `ping`: nothing is written for it either. Deliveries that have not ended.
    Pending(u64),
    Subscribed {
        id: SubscriptionId,
        created: bool,
    },
    /// What it is now is read from the store.
    Updated,
    Removed(bool),
    Presence {
        online: bool,
        until: Option<UnixMillis>,
    },
    Withdrawn(u64),
    /// Subscriptions that were removed.
    Erased {
        removed: u64,
    },
    Failed {
        problem: Problem,
        retry_after: Option<f64>,
        position: Option<Box<str>>,
    },
}

/// What preparing needs to know.
pub struct Preparing<'a> {
    pub now: UnixMillis,
    /// `messages.ttl0_patience`.
    pub ttl0_patience: std::time::Duration,
    /// The key that is given to pages of the app: what a subscription is taken to be made with.
    pub first_key: KeyId,
    pub services: &'a Services,
    /// The line came by the operator's socket.
    pub operators: bool,
}

/// A `send`, ready for the writer.
pub fn prepare_send(send: Send, preparing: &Preparing<'_>) -> NewMessage {
    let now = preparing.now;
    let at = send.at.unwrap_or(now).max(now);
    let ttl_zero = send.ttl == 0;
    let life = if ttl_zero { preparing.ttl0_patience.as_millis() as u64 } else { u64::from(send.ttl) * 1_000 };
    let message = Message {
        id: MessageId(0),
        app: send.app,
        urgency: send.urgency,
        at,
        expires: at.plus(life),
        ttl_zero,
        topic: send.topic,
        label: send.label,
        reference: send.reference,
        scope: send.scope,
        when_offline: send.when_offline,
        content_type: send.payload.content_type,
        body: send.payload.body,
        template: send.payload.template,
        receipt_at: send.payload.receipt_at,
    };
    let mut encoded = Put::default();
    put_message(&mut encoded, &message);
    let idempotency = send.idempotency_key.map(|key| {
        let mut row = message.app.as_bytes().to_vec();
        row.push(0);
        row.extend_from_slice(key.as_bytes());
        (row, send.fingerprint)
    });
    let paced = send.rate.is_some() || send.spread.is_some();
    let (recipients, rejected, keys, new_origins) = match send.to {
        To::Ids(ids) => (NewRecipients::Addressed(Addressed::Ids(ids), Box::default()), 0, Vec::new(), Vec::new()),
        To::Accounts { accounts, devices } => {
            let latest = devices == Devices::Latest;
            (NewRecipients::Addressed(Addressed::Accounts { accounts, latest }, Box::default()), 0, Vec::new(), Vec::new())
        }
        To::Segment(segment) => (NewRecipients::Campaign(segment), 0, Vec::new(), Vec::new()),
        To::Stream => (NewRecipients::List { chunks: Vec::new(), closed: false }, 0, Vec::new(), Vec::new()),
        To::Subscriptions(Subscriptions { mut good, rejected }) => {
            if !message.template {
                good.iter_mut().for_each(|recipient| recipient.attributes = None);
            }
            let rejected = u32::try_from(rejected.len()).unwrap_or(u32::MAX);
            if good.len() > SINGLE_RECIPIENTS_MAX || paced {
                let chunks = prepare_chunks(good, &message.app, message.topic.as_deref(), preparing);
                (NewRecipients::List { chunks, closed: true }, rejected, Vec::new(), Vec::new())
            } else {
                let (keys, new_origins) = tally(&good, preparing);
                (NewRecipients::Single(parts(good, &message)), rejected, keys, new_origins)
            }
        }
    };
    NewMessage {
        message,
        encoded: encoded.0,
        recipients,
        rejected,
        idempotency,
        paused: send.paused,
        rate: send.rate,
        spread: send.spread,
        fallback: send.fallback.map(|seconds| (seconds * 1_000.0) as u64),
        keys,
        new_origins,
        watch: None,
        operators: preparing.operators,
    }
}

/// A `subscribe`, ready for the writer; `confirm` is the message that its creation is followed by.
pub fn prepare_subscribe(subscribe: Subscribe, confirm: Option<Send>, preparing: &Preparing<'_>) -> Op {
    let id = subscribe.subscription.subscription_id();
    let (_, new_origins) = tally(std::slice::from_ref(&subscribe.subscription), preparing);
    let confirm = confirm.map(|send| Box::new(prepare_send(send, preparing)));
    Op::Subscribe(Box::new(NewSubscription { subscribe, id, first_key: preparing.first_key, new_origins, confirm }))
}

/// Rows of a list whose recipients the registry keeps.
pub fn addressed_chunks(recipients: Vec<Recipient>, app: &str, topic: Option<&str>) -> Chunks {
    let mut by_service: BTreeMap<Service, Vec<Recipient>> = BTreeMap::new();
    for recipient in recipients {
        by_service.entry(recipient.service).or_default().push(recipient);
    }
    let rows = |(service, recipients): (Service, Vec<Recipient>)| {
        let row = |slice: &[Recipient]| chunk(service, slice, app, topic, (Vec::new(), Vec::new()));
        recipients.chunks(CHUNK_RECIPIENTS_MAX).map(row).collect::<Vec<_>>()
    };
    by_service.into_iter().flat_map(rows).collect()
}

/// An `add`, ready for the writer.
pub fn prepare_add(mut add: Add, message: &Message, apps: Apps, preparing: &Preparing<'_>) -> Op {
    let rejected = u32::try_from(add.subscriptions.rejected.len()).unwrap_or(u32::MAX);
    if !message.template {
        add.subscriptions.good.iter_mut().for_each(|recipient| recipient.attributes = None);
    }
    let chunks = prepare_chunks(add.subscriptions.good, &message.app, message.topic.as_deref(), preparing);
    Op::Add { message_id: message.id, chunks, rejected, step: add.step, apps }
}

pub fn parts(recipients: Vec<Recipient>, message: &Message) -> Vec<Part> {
    let mut by_service: BTreeMap<Service, Part> = BTreeMap::new();
    for recipient in recipients {
        let part = by_service.entry(recipient.service).or_insert_with(|| Part {
            service: recipient.service,
            encoded: Vec::with_capacity(384),
            recipients: Vec::new(),
            subscriptions: Vec::new(),
            topics: Vec::new(),
        });
        let mut put = Put(std::mem::take(&mut part.encoded));
        put_recipient(&mut put, &recipient);
        part.encoded = put.0;
        if let Some(topic) = &message.topic {
            part.topics.push(topic_key(&message.app, &recipient, topic));
        }
        part.subscriptions.push(recipient.subscription_id());
        part.recipients.push(recipient);
    }
    by_service.into_values().collect()
}

/// Splits recipients by service into rows.
pub fn prepare_chunks(recipients: Vec<Recipient>, app: &str, topic: Option<&str>, preparing: &Preparing<'_>) -> Chunks {
    let mut by_service: BTreeMap<Service, Vec<Recipient>> = BTreeMap::new();
    for recipient in recipients {
        by_service.entry(recipient.service).or_default().push(recipient);
    }
    let mut chunks = Vec::new();
    for (service, recipients) in by_service {
        for slice in recipients.chunks(CHUNK_RECIPIENTS_MAX) {
            chunks.push(chunk(service, slice, app, topic, tally(slice, preparing)));
        }
    }
    chunks
}

fn chunk(service: Service, slice: &[Recipient], app: &str, topic: Option<&str>, (keys, new_origins): Tally) -> Chunk {
    let mut row = Put::versioned();
    for recipient in slice {
        put_recipient(&mut row, recipient);
    }
    let topics = topic.map_or_else(Vec::new, |topic| slice.iter().map(|recipient| topic_key(app, recipient, topic)).collect());
    let count = u16::try_from(slice.len()).expect("a chunk has at most 512 recipients");
    Chunk { service, count, row: row.0, topics, keys, new_origins }
}

type Tally = (Vec<(Service, KeyId, u64)>, Vec<(Service, Origin)>);

fn tally(recipients: &[Recipient], preparing: &Preparing<'_>) -> Tally {
    let mut keys: Vec<(Service, KeyId, u64)> = Vec::new();
    let mut new_origins: Vec<(Service, Origin)> = Vec::new();
    for recipient in recipients {
        let key = recipient.key.unwrap_or(preparing.first_key);
        match keys.iter_mut().find(|(service, known, _)| (*service, *known) == (recipient.service, key)) {
            Some((_, _, count)) => *count += 1,
            None => keys.push((recipient.service, key, 1)),
        }
        let origin = recipient.endpoint.origin_str();
        if !preparing.services.knows(recipient.service, origin)
            && !new_origins.iter().any(|(service, known)| *service == recipient.service && *known.0 == *origin)
        {
            new_origins.push((recipient.service, Origin(Arc::from(origin))));
        }
    }
    (keys, new_origins)
}

/// The key in `topic` of what this recipient may still have waiting.
pub fn topic_key(app: &str, recipient: &Recipient, topic: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(app.as_bytes());
    hash.update([0]);
    hash.update(topic.as_bytes());
    hash.update([0]);
    match &recipient.registered {
        // It keeps its key when its endpoint changes.
        Some(registered) => {
            hash.update(registered.key.service.0.to_be_bytes());
            hash.update(registered.key.serial.to_be_bytes());
        }
        None => hash.update(recipient.endpoint.bytes()),
    }
    hash.finalize()[..16].try_into().expect("sixteen of 32 bytes")
}

/// The lane of a part.
pub fn lane(service: Service, urgency: Urgency) -> Lane {
    Lane { service, urgency }
}

/// Bytes that a line's rows will take, to bound a group commit.
pub fn weight(op: &Op) -> usize {
    match op {
        Op::Send(new) => match &new.recipients {
            NewRecipients::Single(parts) => parts.iter().map(|part| new.encoded.len() + part.encoded.len()).sum::<usize>() + 128,
            NewRecipients::List { chunks, .. } => {
                new.encoded.len() + chunks.iter().map(|chunk| chunk.row.len()).sum::<usize>() + 128
            }
            NewRecipients::Addressed(Addressed::Ids(ids), _) => new.encoded.len() + ids.len() * 64 + 128,
            NewRecipients::Addressed(Addressed::Accounts { accounts, .. }, _) => new.encoded.len() + accounts.len() * 256 + 128,
            NewRecipients::Campaign(_) => new.encoded.len() + 1_024,
        },
        Op::Subscribe(_) | Op::Update { .. } => 1_024,
        Op::Add { chunks, .. } => chunks.iter().map(|chunk| chunk.row.len()).sum::<usize>() + 128,
        _ => 64,
    }
}

/// Recipients of a line.
pub fn recipients(op: &Op) -> usize {
    match op {
        Op::Send(new) => match &new.recipients {
            NewRecipients::Single(parts) => parts.iter().map(|part| part.recipients.len()).sum(),
            // A list takes one place in the commit, whatever its recipients.
            NewRecipients::List { .. } | NewRecipients::Campaign(_) => 1,
            // More of them make a list.
            NewRecipients::Addressed(..) => SINGLE_RECIPIENTS_MAX,
        },
        Op::Subscribe(_) => 1,
        _ => 0,
    }
}

/// The bytes of a message with its id in place.
pub fn with_id(mut encoded: Vec<u8>, id: MessageId) -> Bytes {
    encoded[..16].copy_from_slice(&id.0.to_be_bytes());
    Bytes::from(encoded)
}
