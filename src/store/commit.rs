//! What a connection prepares for the writer, and what the writer answers. The preparing (encoding, hashing) is done on the
//! connection's thread; the writer only numbers, looks up and concatenates.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::ingest::request::{Add, Problem, Send, State, Step, Subscriptions, Target, To};
use crate::limits::{CHUNK_RECIPIENTS_MAX, SINGLE_RECIPIENTS_MAX};
use crate::message::{KeyId, Lane, Message, MessageId, Origin, Recipient, Service, SubscriptionId, UnixMillis, Urgency};
use crate::store::record::{Put, put_message, put_recipient};

/// The lines of one connection that were read together, and where their answers go.
pub struct Writes {
    pub ops: Vec<Op>,
    pub reply: tokio::sync::oneshot::Sender<Vec<Done>>,
    /// The place in the writer's queue and the memory that these lines hold; given back when they are answered.
    pub places: Vec<tokio::sync::OwnedSemaphorePermit>,
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
    /// `ping`: a pass through the writer.
    Pass,
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
    /// For `stats`.
    pub keys: Vec<(Service, KeyId, u64)>,
    /// Origins that this store has not met yet.
    pub new_origins: Vec<(Service, Origin)>,
}

/// Recipients of a new message.
pub enum NewRecipients {
    /// Up to 64, without `rate` and `spread`.
    Single(Vec<Part>),
    List {
        chunks: Chunks,
        closed: bool,
    },
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
    },
    /// `add` and `close`.
    Added {
        recipients: u64,
        duplicate: bool,
        position: Option<Box<str>>,
    },
    /// `cancel`, `pause`, `resume`.
    Done,
    /// `drain`, `ping`: nothing is written for them.
    Passed,
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
    pub services: &'a super::Services,
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
        content_type: send.content_type,
        body: send.body,
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
        To::Stream => (NewRecipients::List { chunks: Vec::new(), closed: false }, 0, Vec::new(), Vec::new()),
        To::Subscriptions(Subscriptions { good, rejected }) => {
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
        keys,
        new_origins,
    }
}

/// An `add`, ready for the writer.
pub fn prepare_add(add: Add, app: &Arc<str>, topic: Option<&str>, apps: Apps, preparing: &Preparing<'_>) -> Op {
    let rejected = u32::try_from(add.subscriptions.rejected.len()).unwrap_or(u32::MAX);
    let chunks = prepare_chunks(add.subscriptions.good, app, topic, preparing);
    Op::Add { message_id: add.message_id, chunks, rejected, step: add.step, apps }
}

fn parts(recipients: Vec<Recipient>, message: &Message) -> Vec<Part> {
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
        part.subscriptions.push(subscription_id(recipient.endpoint.as_str()));
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
            let mut row = Put::versioned();
            for recipient in slice {
                put_recipient(&mut row, recipient);
            }
            let topics =
                topic.map_or_else(Vec::new, |topic| slice.iter().map(|recipient| topic_key(app, recipient, topic)).collect());
            let (keys, new_origins) = tally(slice, preparing);
            let count = u16::try_from(slice.len()).expect("a chunk has at most 512 recipients");
            chunks.push(Chunk { service, count, row: row.0, topics, keys, new_origins });
        }
    }
    chunks
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

/// The id of the subscription with this endpoint (DESIGN 3.3).
pub fn subscription_id(endpoint: &str) -> SubscriptionId {
    let digest = Sha256::digest(endpoint.as_bytes());
    SubscriptionId(digest[..12].try_into().expect("twelve of 32 bytes"))
}

/// The key in `topic` of what this recipient may still have waiting.
fn topic_key(app: &str, recipient: &Recipient, topic: &str) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(app.as_bytes());
    hash.update([0]);
    hash.update(topic.as_bytes());
    hash.update([0]);
    hash.update(recipient.endpoint.bytes());
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
        },
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
            NewRecipients::List { .. } => 1,
        },
        _ => 0,
    }
}

/// The bytes of a message with its id in place.
pub fn with_id(mut encoded: Vec<u8>, id: MessageId) -> Bytes {
    encoded[..16].copy_from_slice(&id.0.to_be_bytes());
    Bytes::from(encoded)
}
