//! A checked request, made by `line` from one line of the protocol.

use std::sync::Arc;

use bytes::Bytes;

use crate::ids::{Ids, VisibleId};
use crate::message::{
    Account, Attributes, ContentType, Ending, MessageId, Name, Recipient, Segment, SubscriptionId, UnixMillis, Urgency,
};

/// The `id` member as it was written, any JSON scalar; the reply repeats it.
pub type RequestId = Option<Box<str>>;

/// What one line asks for. Everything in it is checked: nothing here can fail later for its form.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    Send(Box<Send>),
    Add(Add),
    Close {
        message_id: VisibleId,
        step: Option<Step>,
    },
    Status {
        message_id: VisibleId,
    },
    Cancel(Target<VisibleId>),
    Pause(Target<VisibleId>),
    Resume {
        target: Target<VisibleId>,
        rate: Option<f64>,
    },
    ListMessages {
        state: Option<State>,
        label: Option<String>,
        limit: u32,
        after: Option<String>,
    },
    Events(Events),
    /// Days since 1970-01-01, both ends included.
    Stats {
        from: Option<u32>,
        to: Option<u32>,
        by: Vec<By>,
    },
    Origins,
    VapidPublicKey {
        app: Arc<str>,
    },
    Ping,
    Drain {
        on: bool,
    },
    /// The daemon is to read its configuration again.
    Reload,
    Subscribe(Box<Subscribe>),
    UpdateSubscription(Box<Update>),
    Unsubscribe {
        subscription: SubscriptionId,
    },
    Subscription {
        subscription: SubscriptionId,
        reveal: bool,
    },
    /// With `enabled` it is a write.
    Account {
        who: Whose,
        enabled: Option<bool>,
    },
    Presence {
        who: Whose,
        online: bool,
        /// Seconds, above 0; where `state` is online and none is given, `presence.grace`.
        lease: Option<f64>,
        session: Option<Box<str>>,
    },
    MarkRead {
        who: Whose,
        what: Read<VisibleId>,
    },
    ListSubscriptions {
        of: Of,
        app: Option<Arc<str>>,
        limit: u32,
        /// What an earlier reply told as `after`.
        after: Option<String>,
        /// Endpoints and keys too: what an export needs.
        reveal: bool,
    },
    /// The accounts that are switched off.
    DisabledAccounts {
        app: Option<Arc<str>>,
        limit: u32,
        /// What an earlier reply told as `after`.
        after: Option<String>,
    },
    Count {
        /// None: all.
        segment: Option<Segment>,
        scope: Option<Name>,
        /// None: all apps of the socket.
        app: Option<Arc<str>>,
    },
    Test(Box<Test>),
    Feedback {
        receipt: Receipt,
        /// Shown, clicked or dismissed.
        kind: EventType,
    },
    Erase(Erase),
    Backup {
        /// A file name, without a path; None: named after the time.
        name: Option<String>,
    },
}

/// An account, in one app or (None) in all apps of the socket.
#[derive(Clone, Debug, PartialEq)]
pub struct Whose {
    pub account: Account,
    pub app: Option<Arc<str>>,
}

impl Whose {
    /// The apps of a socket in which the account is meant.
    pub fn apps<'a>(&'a self, of_socket: &'a [Arc<str>]) -> &'a [Arc<str>] {
        self.app.as_ref().map_or(of_socket, std::slice::from_ref)
    }
}

/// `subscribe`. What is None was not given, and stays as it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscribe {
    pub app: Arc<str>,
    pub subscription: Recipient,
    pub account: Option<Account>,
    pub name: Option<Box<str>>,
    pub user_agent: Option<Box<str>>,
    pub scopes: Option<Scopes>,
    pub tags: Option<Vec<Name>>,
    pub attributes: Option<Attributes>,
    /// The subscription that this one takes the place of.
    pub replaces: Option<SubscriptionId>,
    /// Sent once if the subscription is created.
    pub confirm: Option<Payload>,
}

/// Which messages a subscription accepts. None: all; otherwise those with one of these scopes, and those without scope.
pub type Scopes = Option<Vec<Name>>;

/// `update_subscription`: what is None stays; `Some(None)` clears.
#[derive(Clone, Debug, PartialEq)]
pub struct Update {
    pub subscription: SubscriptionId,
    pub enabled: Option<bool>,
    pub name: Option<Option<Box<str>>>,
    pub account: Option<Option<Account>>,
    pub scopes: Option<Scopes>,
    pub tags: Option<Vec<Name>>,
    pub attributes: Option<Attributes>,
}

/// What `mark_read` has been read.
#[derive(Clone, Debug, PartialEq)]
pub enum Read<Id = MessageId> {
    Message(Id),
    Topic(Arc<str>),
}

impl Read<VisibleId> {
    /// The same with the message's own id.
    pub fn read(self, ids: &Ids) -> Read {
        match self {
            Read::Message(id) => Read::Message(ids.read(id)),
            Read::Topic(topic) => Read::Topic(topic),
        }
    }
}

/// Which subscriptions `list_subscriptions` lists.
#[derive(Clone, Debug, PartialEq)]
pub enum Of {
    Account(Account),
    Segment(Segment),
    /// Neither was given.
    All,
}

/// `test`.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    pub app: Arc<str>,
    pub to: TestTo,
    pub payload: Payload,
    /// Seconds, at most 60; None: it is answered when it is taken.
    pub wait: Option<f64>,
}

/// Whom a `test` goes to.
#[derive(Clone, Debug, PartialEq)]
pub enum TestTo {
    Ids(Vec<SubscriptionId>),
    Account(Account),
}

/// A body and how it is to be filled in for each recipient.
#[derive(Clone, Debug, PartialEq)]
pub struct Payload {
    pub content_type: ContentType,
    /// Plaintext; empty where no body was given.
    pub body: Bytes,
    /// `template`: placeholders in it are filled from attributes.
    pub template: bool,
    /// `receipts`: at this place of the body a receipt of [`crate::limits::RECEIPT_CHARS`] characters is put; that many zeros
    /// stand there.
    pub receipt_at: Option<u16>,
}

impl Payload {
    /// A body that says nothing about itself and is the same for all.
    pub fn opaque(body: Bytes) -> Payload {
        Payload { content_type: ContentType::Opaque, body, template: false, receipt_at: None }
    }
}

/// The token of a message's recipient, as `feedback` hands it back; not yet verified.
pub type Receipt = [u8; crate::limits::RECEIPT_BYTES];

/// `erase`.
#[derive(Clone, Debug, PartialEq)]
pub enum Erase {
    Account(Whose),
    Subscription(SubscriptionId),
}

/// `send`.
#[derive(Clone, Debug, PartialEq)]
pub struct Send {
    pub app: Arc<str>,
    pub to: To,
    pub payload: Payload,
    /// Seconds, checked against `messages.ttl_max`; fractions are cut. 0 means one attempt.
    pub ttl: u32,
    pub urgency: Urgency,
    pub topic: Option<Arc<str>>,
    pub idempotency_key: Option<String>,
    /// First 16 bytes of the SHA-256 of everything this request asks for (not of `id` and `idempotency_key`): equal for equal
    /// requests, whatever the order of their members and the spelling of their numbers. All zero where there is no
    /// `idempotency_key`: nothing is compared then, and hashing would be a third of the work on a line.
    pub fingerprint: [u8; 16],
    /// Absent, or not later than now, means now.
    pub at: Option<UnixMillis>,
    pub paused: bool,
    pub label: Option<Arc<str>>,
    pub reference: Option<Arc<str>>,
    /// Deliveries a second at most, above 0.
    pub rate: Option<f64>,
    /// Seconds over which it is spread evenly, above 0, at most `ttl`.
    pub spread: Option<f64>,
    /// Reaches only registered browsers that accept it.
    pub scope: Option<Name>,
    /// `when: offline`; only with [`To::Accounts`].
    pub when_offline: bool,
    /// Seconds; only with [`To::Accounts`].
    pub fallback: Option<f64>,
}

impl Send {
    /// A message without any option; `ttl` in seconds.
    pub fn new(app: Arc<str>, to: To, payload: Payload, ttl: u32) -> Send {
        Send {
            app,
            to,
            payload,
            ttl,
            urgency: Urgency::Normal,
            topic: None,
            idempotency_key: None,
            fingerprint: [0; 16],
            at: None,
            paused: false,
            label: None,
            reference: None,
            rate: None,
            spread: None,
            scope: None,
            when_offline: false,
            fallback: None,
        }
    }
}

/// Whom a `send` goes to.
#[derive(Clone, Debug, PartialEq)]
pub enum To {
    /// `subscription` or `subscriptions`: at least one good one, an endpoint once.
    Subscriptions(Subscriptions),
    Stream,
    /// `subscription_ids`: at least one, each once.
    Ids(Vec<SubscriptionId>),
    /// `accounts`: at least one, each once.
    Accounts {
        accounts: Vec<Account>,
        devices: Devices,
    },
    Segment(Segment),
}

/// Which browsers of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    All,
    /// The one that was seen last.
    Latest,
}

/// The judged subscriptions of a line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Subscriptions {
    pub good: Vec<Recipient>,
    pub rejected: Vec<Rejected>,
}

/// One subscription that was not taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Rejected {
    pub index: usize,
    pub reference: Option<crate::message::Reference>,
    pub problem: Problem,
}

/// `add`.
#[derive(Clone, Debug, PartialEq)]
pub struct Add {
    pub message_id: VisibleId,
    pub subscriptions: Subscriptions,
    pub step: Option<Step>,
}

/// `position` and `previous` of `add` and `close`, as compact JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub position: Box<str>,
    /// None: null or absent.
    pub previous: Option<Box<str>>,
}

/// What `cancel`, `pause` and `resume` concern; exactly one. A request names a message as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target<Id = MessageId> {
    Message(Id),
    Label(Arc<str>),
    App(Arc<str>),
}

impl Target<VisibleId> {
    /// The same with the message's own id.
    pub fn read(self, ids: &Ids) -> Target {
        match self {
            Target::Message(id) => Target::Message(ids.read(id)),
            Target::Label(label) => Target::Label(label),
            Target::App(app) => Target::App(app),
        }
    }
}

/// The state of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Scheduled,
    Sending,
    Paused,
    Done,
    Cancelled,
}

impl State {
    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Scheduled => "scheduled",
            State::Sending => "sending",
            State::Paused => "paused",
            State::Done => "done",
            State::Cancelled => "cancelled",
        }
    }
}

/// `events`.
#[derive(Clone, Debug, PartialEq)]
pub struct Events {
    pub after: After,
    /// Lines at most; 1,000 unless told, and no limit with `follow` unless told.
    pub limit: Option<u32>,
    pub follow: bool,
    /// None: all.
    pub types: Option<Vec<EventType>>,
    pub app: Option<Arc<str>>,
    pub label: Option<String>,
    pub message_id: Option<VisibleId>,
    pub account: Option<String>,
    pub subscription_id: Option<SubscriptionId>,
}

/// Where `events` begins.
#[derive(Clone, Debug, PartialEq)]
pub enum After {
    Oldest,
    Newest,
    /// So many of the newest events come first, as far as they are near.
    Last(u32),
    Cursor(String),
}

/// The types of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Ended(Ending),
    Unreachable,
    Shown,
    Clicked,
    Dismissed,
}

impl EventType {
    /// All ten.
    pub const ALL: [EventType; 10] = [
        EventType::Ended(Ending::Gone),
        EventType::Ended(Ending::Refused),
        EventType::Ended(Ending::Expired),
        EventType::Ended(Ending::Cancelled),
        EventType::Ended(Ending::Skipped),
        EventType::Ended(Ending::Accepted),
        EventType::Unreachable,
        EventType::Shown,
        EventType::Clicked,
        EventType::Dismissed,
    ];

    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            EventType::Ended(ending) => ending.as_str(),
            EventType::Unreachable => "unreachable",
            EventType::Shown => "shown",
            EventType::Clicked => "clicked",
            EventType::Dismissed => "dismissed",
        }
    }

    /// The type of a word of the protocol.
    pub fn parse(word: &str) -> Option<EventType> {
        EventType::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A dimension of `stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Day,
    Label,
    App,
    Service,
    Key,
}

/// An error of the protocol, or of one subscription in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub code: Code,
    /// A path such as `to.subscriptions[3].keys.auth`.
    pub field: Option<String>,
    /// One sentence for the person who writes the client; never a key, an endpoint's path or a payload.
    pub message: String,
}

/// `error.code`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    BadJson,
    LineTooLong,
    UnknownOp,
    UnknownField,
    MissingField,
    InvalidField,
    EndpointRefused,
    PayloadTooLarge,
    NotFound,
    NotAllowed,
    Conflict,
    CursorExpired,
    Overloaded,
    ReadOnly,
    ShuttingDown,
    Internal,
}

impl Code {
    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::BadJson => "bad_json",
            Code::LineTooLong => "line_too_long",
            Code::UnknownOp => "unknown_op",
            Code::UnknownField => "unknown_field",
            Code::MissingField => "missing_field",
            Code::InvalidField => "invalid_field",
            Code::EndpointRefused => "endpoint_refused",
            Code::PayloadTooLarge => "payload_too_large",
            Code::NotFound => "not_found",
            Code::NotAllowed => "not_allowed",
            Code::Conflict => "conflict",
            Code::CursorExpired => "cursor_expired",
            Code::Overloaded => "overloaded",
            Code::ReadOnly => "read_only",
            Code::ShuttingDown => "shutting_down",
            Code::Internal => "internal",
        }
    }
}
