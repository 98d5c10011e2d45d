//! The types that the stages hand to each other, in the order in which a message meets them.
//!
//! Nothing here does I/O, reads a clock or knows another module (but `limits`). A type that can be wrong is checked where
//! it is made (`ingest::line`, `endpoint`), so that no later stage checks again.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// A point of wall-clock time, in milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Later than every deadline: the time of what waits for a command, not for a moment.
    pub const NEVER: UnixMillis = UnixMillis(u64::MAX);

    /// This time plus `millis` milliseconds, at most [`UnixMillis::NEVER`].
    pub fn plus(self, millis: u64) -> UnixMillis {
        UnixMillis(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this time, 0 if `earlier` is the later one.
    pub fn since(self, earlier: UnixMillis) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A push service, as a number that is kept on disk. The four known ones and `other` are fixed; each entry of
/// `endpoints.allow_hosts` gets the next free number from [`Service::FIRST_ALLOWED`] on and keeps it for the store's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Service(pub u16);

impl Service {
    /// Any host that the policy `public` lets in and no other entry names.
    pub const OTHER: Service = Service(0);
    /// Google (docs/push-services.md 3.1).
    pub const FCM: Service = Service(1);
    /// Mozilla autopush (docs/push-services.md 3.2).
    pub const MOZILLA: Service = Service(2);
    /// Apple (docs/push-services.md 3.3).
    pub const APPLE: Service = Service(3);
    /// Microsoft WNS (docs/push-services.md 3.4).
    pub const WNS: Service = Service(4);
    /// The first number given to an entry of `endpoints.allow_hosts`.
    pub const FIRST_ALLOWED: Service = Service(16);
}

/// RFC 8030 section 5.3, most urgent first: the order of numbers is the order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Urgency {
    High = 0,
    Normal = 1,
    Low = 2,
    VeryLow = 3,
}

impl Urgency {
    /// All four, most urgent first.
    pub const ALL: [Urgency; 4] = [Urgency::High, Urgency::Normal, Urgency::Low, Urgency::VeryLow];

    /// The word of RFC 8030 section 5.3.
    pub fn as_str(self) -> &'static str {
        match self {
            Urgency::High => "high",
            Urgency::Normal => "normal",
            Urgency::Low => "low",
            Urgency::VeryLow => "very-low",
        }
    }

    /// The urgency of a word of RFC 8030 section 5.3.
    pub fn parse(word: &str) -> Option<Urgency> {
        Urgency::ALL.into_iter().find(|urgency| urgency.as_str() == word)
    }

    /// The two ranks that every queue between schedule and socket has.
    pub fn rank(self) -> Rank {
        if self == Urgency::High { Rank::High } else { Rank::Normal }
    }
}

/// What goes first inside the pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rank {
    High,
    Normal,
}

/// All that waits on disk is sorted by this first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub service: Service,
    pub urgency: Urgency,
}

/// A message's ULID. Its 80 low bits hold the commit number (56 bits), the place in it (16) and 8 random bits, so it needs
/// no index; the 48 high bits are the time of acceptance in milliseconds. Clients see it as a [`crate::ids::VisibleId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub u128);

impl MessageId {
    /// The id of the message at `place` of `commit`.
    pub fn new(created: UnixMillis, commit: u64, place: u16, random: u8) -> MessageId {
        assert!(commit < 1 << 56, "commit numbers have 56 bits");
        let time = u128::from(created.0 & ((1 << 48) - 1));
        MessageId(time << 80 | u128::from(commit) << 24 | u128::from(place) << 8 | u128::from(random))
    }

    /// When it was accepted, to the millisecond.
    pub fn created(self) -> UnixMillis {
        UnixMillis((self.0 >> 80) as u64)
    }

    /// The commit that accepted it.
    pub fn commit(self) -> u64 {
        (self.0 >> 24) as u64 & ((1 << 56) - 1)
    }

    /// Its place in that commit: for a single that of its first recipient.
    pub fn place(self) -> u16 {
        (self.0 >> 8) as u16
    }
}

/// For tests and panics only: it counts what all apps do, so it has no text that could be shown by mistake (see `ids`).
impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({}/{})", self.commit(), self.place())
    }
}

/// The base64url of the first 12 bytes of SHA-256(endpoint) names a subscription (docs/design.md 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub [u8; 12]);

impl SubscriptionId {
    /// Stands where the id was not needed yet.
    pub const UNKNOWN: SubscriptionId = SubscriptionId([0; 12]);

    /// The id of the subscription with this endpoint.
    pub fn of(endpoint: &str) -> SubscriptionId {
        use sha2::{Digest, Sha256};
        let digest = Sha256::digest(endpoint.as_bytes());
        SubscriptionId(digest[..12].try_into().expect("twelve of 32 bytes"))
    }

    /// The id as the protocol shows it.
    pub fn name(&self) -> String {
        use base64::Engine;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// A name of the application's own: a tag, a scope, the name of an attribute.
pub type Name = Arc<str>;

/// An account: any string of the application, 1 to 128 bytes.
pub type Account = Arc<str>;

/// The attributes of a subscription, by name: scalars as compact JSON, numbers in one spelling, so that equal values are equal text.
pub type Attributes = std::collections::BTreeMap<Name, Box<str>>;

/// A choice of subscriptions for a campaign, a list or a count: all members must hold. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// At least one of these tags; empty: any.
    pub tags_any: Vec<Name>,
    /// All of these tags.
    pub tags_all: Vec<Name>,
    /// None of these tags.
    pub tags_none: Vec<Name>,
    /// These attributes with these values.
    pub attributes: Attributes,
}

/// First 8 bytes of the SHA-256 of an uncompressed VAPID public key (65 bytes): how rows name the key a subscription was
/// made with, whatever its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

/// The content encoding a subscription asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// RFC 8291.
    Aes128gcm,
    /// draft-ietf-webpush-encryption-04, only where the subscription says so.
    Aesgcm,
}

/// The application's own reference of a recipient, told in its events as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    Text(String),
    Integer(i64),
}

/// `scheme://host[:port]` of an endpoint, as `aud` of a VAPID token wants it (RFC 8292 section 2): lower case, default
/// port left out. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(pub Arc<str>);

impl Origin {
    /// Host, without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let host = match authority.rfind(':') {
            Some(colon) if !authority.ends_with(']') => &authority[..colon],
            _ => authority,
        };
        host.trim_start_matches('[').trim_end_matches(']')
    }

    /// Port, 443 where none is written.
    pub fn port(&self) -> u16 {
        let authority = self.authority();
        match authority.rfind(':') {
            Some(colon) if !authority.ends_with(']') => authority[colon + 1..].parse().unwrap_or(443),
            _ => 443,
        }
    }

    /// `host[:port]`, the value of `:authority`.
    pub fn authority(&self) -> &str {
        self.0.strip_prefix("https://").unwrap_or(&self.0)
    }
}

/// A checked endpoint: https, no userinfo, no fragment, at most 2 KiB, a host that the policy lets in. A capability URL:
/// its `Debug` shows the origin only.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    text: Bytes,
    origin_len: u16,
}

impl Endpoint {
    /// Takes a checked URL in its serialised form whose first `origin_len` bytes are its origin. Called by `endpoint` and by
    /// the decoder of stored rows only.
    pub fn from_checked(text: Bytes, origin_len: u16) -> Endpoint {
        debug_assert!(usize::from(origin_len) <= text.len());
        Endpoint { text, origin_len }
    }

    /// The whole URL.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.text).expect("checked when it was made: a serialised URL is ASCII")
    }

    /// Its first bytes, `https://host[:port]`.
    pub fn origin_str(&self) -> &str {
        &self.as_str()[..usize::from(self.origin_len)]
    }

    /// Length of the origin in bytes.
    pub fn origin_len(&self) -> u16 {
        self.origin_len
    }

    /// What stands behind the origin: path and query, starting with `/`.
    pub fn path_and_query(&self) -> Bytes {
        self.text.slice(usize::from(self.origin_len)..)
    }

    /// The bytes of the URL.
    pub fn bytes(&self) -> &Bytes {
        &self.text
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({}/…)", self.origin_str())
    }
}

/// One browser to reach, checked: the key is on the curve, the endpoint may be contacted.
#[derive(Clone, PartialEq, Eq)]
pub struct Recipient {
    pub service: Service,
    pub endpoint: Endpoint,
    /// Uncompressed point, 65 bytes starting with 4 (RFC 8291 section 3.1), on the curve.
    pub p256dh: [u8; 65],
    /// RFC 8291 section 3.2.
    pub auth: [u8; 16],
    pub encoding: Encoding,
    /// The VAPID key the subscription was made with, if it was told.
    pub key: Option<KeyId>,
    /// `expirationTime` of the Push API: nothing is sent after it.
    pub expiration: Option<UnixMillis>,
    pub reference: Option<Reference>,
    /// What a template is filled from; kept with a message only if it has one.
    pub attributes: Option<Arc<Attributes>>,
    /// Set if it is a subscription of the registry. What waits holds only this, and the rest is read when its turn comes: until
    /// then the endpoint is empty.
    pub registered: Option<Registered>,
}

impl Recipient {
    /// A subscription of the registry that has not been read yet.
    pub fn unread(registered: Registered) -> Recipient {
        Recipient {
            service: registered.key.service,
            endpoint: Endpoint::from_checked(Bytes::new(), 0),
            p256dh: [0; 65],
            auth: [0; 16],
            encoding: Encoding::Aes128gcm,
            key: None,
            expiration: None,
            reference: None,
            attributes: None,
            registered: Some(registered),
        }
    }

    /// Its subscription's id.
    pub fn subscription_id(&self) -> SubscriptionId {
        match self.registered {
            Some(Registered { id, .. }) if id != SubscriptionId::UNKNOWN => id,
            _ => SubscriptionId::of(self.endpoint.as_str()),
        }
    }

    /// Whether the registry must still be asked for the rest.
    pub fn is_unread(&self) -> bool {
        self.endpoint.bytes().is_empty()
    }
}

/// Where the registry keeps a subscription: its service, and its number in it, which only grows and survives a change of endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionKey {
    pub service: Service,
    pub serial: u64,
}

/// A recipient that the registry keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    pub key: SubscriptionKey,
    /// The id it had when the message was taken; [`SubscriptionId::UNKNOWN`] while the endpoint stands beside it.
    pub id: SubscriptionId,
    /// The account the message is addressed to, if it is: another account's browser does not get it.
    pub account: Option<AccountHash>,
}

/// First 8 bytes of a hash of an app and an account's name: how rows and sets name an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountHash(pub [u8; 8]);

impl fmt::Debug for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipient").field("service", &self.service).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// The content type of the plaintext (docs/push-services.md 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType {
    /// No header.
    Opaque,
    /// `application/notification+json`: Declarative Web Push.
    Notification,
}

/// What all recipients of a message share. It goes to disk with the message and travels with each delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub id: MessageId,
    /// Name of the app in the configuration.
    pub app: Arc<str>,
    pub urgency: Urgency,
    /// Not before this time.
    pub at: UnixMillis,
    /// The one deadline (promise 3). For TTL 0: acceptance (or `at`) plus `messages.ttl0_patience`.
    pub expires: UnixMillis,
    /// TTL 0: one attempt.
    pub ttl_zero: bool,
    /// 1 to 32 characters of base64url, as the application gave it; a keyed hash of it goes out.
    pub topic: Option<Arc<str>>,
    pub label: Option<Arc<str>>,
    pub reference: Option<Arc<str>>,
    /// Only browsers that accept it get the message.
    pub scope: Option<Name>,
    /// Waits while its account is online.
    pub when_offline: bool,
    pub content_type: ContentType,
    /// Plaintext, at most 3,993 bytes (RFC 8291 section 4), also when it has been filled in.
    pub body: Bytes,
    /// Placeholders in the body are filled from the recipient's attributes.
    pub template: bool,
    /// Where in the body each recipient's receipt is put.
    pub receipt_at: Option<u16>,
}

/// A row of recipients that are read, sent and settled together, and share one array of outcome bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BatchId {
    /// Singles of one lane accepted by one commit; `piece` where they did not fit one row.
    Commit { commit: u64, lane: Lane, piece: u16 },
    /// A chunk of a list: `commit` and `place` name the message.
    Chunk { commit: u64, place: u16, lane: Lane, chunk: u32 },
    /// A stretch of a campaign's walk: `commit` and `place` name the message, `first` is the stretch's first serial.
    Stretch { commit: u64, place: u16, lane: Lane, first: u64 },
}

impl BatchId {
    /// The lane that its recipients wait in.
    pub fn lane(&self) -> Lane {
        match self {
            BatchId::Commit { lane, .. } | BatchId::Chunk { lane, .. } | BatchId::Stretch { lane, .. } => *lane,
        }
    }
}

/// One recipient of one message: its batch and its index in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    pub batch: BatchId,
    pub index: u16,
}

/// One delivery on its way from loading to settling.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub id: DeliveryId,
    pub message: Arc<Message>,
    pub recipient: Recipient,
    /// Attempts made so far that condemned this delivery.
    pub attempts: u8,
    /// Bit n: the app's n-th key was answered with a key mismatch.
    pub tried_keys: u8,
    /// A 413 was met: send unpadded.
    pub shrink: bool,
    /// Set if it was loaded from a row of its own: that row's time.
    pub due: Option<UnixMillis>,
    /// The account its browser belongs to, as the registry says: told in its events.
    pub account: Option<Account>,
    /// The registry says that it must not be sent: the reason.
    pub lost: Option<&'static str>,
    /// The registry does not know yet that this endpoint works.
    pub unproven: bool,
}

/// A delivery that is ready for the wire. What is not sealed cannot be posted.
pub struct Sealed {
    pub delivery: Box<Delivery>,
    pub origin: Origin,
    /// The whole value of `Authorization` (RFC 8292 section 3).
    pub authorization: http::HeaderValue,
    /// The KeyId of the VAPID key that signed it.
    pub key: KeyId,
    /// The value of `Topic`, hashed.
    pub topic: Option<http::HeaderValue>,
    /// For aesgcm: the value of `Encryption`. None if there is no body.
    pub encryption: Option<http::HeaderValue>,
    /// For aesgcm: the value of `Crypto-Key`.
    pub crypto_key: Option<http::HeaderValue>,
    /// Empty if the message has no body: nothing is encrypted then.
    pub body: Bytes,
}

/// What came of a post.
pub struct Answered {
    pub delivery: Box<Delivery>,
    pub origin: Origin,
    pub key: KeyId,
    pub answer: Answer,
    /// From the moment the request was handed to the connection, in microseconds.
    pub latency_micros: u64,
}

/// The push service's answer, or why there is none.
#[derive(Debug)]
pub enum Answer {
    /// A complete answer; `body` is cut at 4 KiB.
    Response { status: http::StatusCode, headers: http::HeaderMap, body: Bytes },
    /// Nothing was processed: connecting failed, so no byte of the request left. Condemns the origin.
    NotConnected(ConnectFailure),
    /// The request left, or may have, and no whole answer came: the service may have taken it.
    Lost(Loss),
    /// The deadline passed before the request left.
    TooLate,
    /// The daemon stops: the request did not leave.
    Stopped,
}

/// Why no connection came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectFailure {
    /// The name does not exist (NXDOMAIN).
    NoSuchHost,
    /// The resolver failed or timed out.
    Resolve,
    /// The daemon may not connect to any of the host's addresses (docs/design.md 6.1).
    Forbidden,
    Refused,
    Timeout,
    Tls,
    Proxy,
    /// The HTTP/2 preface or any other start of the protocol failed.
    Protocol,
    /// Ours: there was no descriptor, or none of the pool's places, for a connection.
    NoDescriptor,
}

/// In words for the log.
impl fmt::Display for ConnectFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectFailure::NoSuchHost => "there is no host of this name",
            ConnectFailure::Resolve => "the name servers do not answer",
            ConnectFailure::Forbidden => "all its addresses are among those that the daemon may not connect to",
            ConnectFailure::Refused => "it refuses connections",
            ConnectFailure::Timeout => "it does not answer in time",
            ConnectFailure::Tls => "TLS failed, or its certificate is not trusted",
            ConnectFailure::Proxy => "the proxy (deliver.proxy) does not connect",
            ConnectFailure::Protocol => "it does not speak HTTP",
            ConnectFailure::NoDescriptor => "the process has no file descriptor left (LimitNOFILE=)",
        })
    }
}

/// How an answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Loss {
    Timeout,
    /// RST_STREAM other than REFUSED_STREAM.
    Reset,
    /// The connection ended.
    Closed,
    /// The peer sent so much that answers nothing that the connection was ended. Condemns the origin.
    Flood,
}

/// How a recipient ends: exactly one of these (promise 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    Accepted = 1,
    Gone = 2,
    Refused = 3,
    Expired = 4,
    Cancelled = 5,
    Skipped = 6,
}

impl Ending {
    /// All six, in the order of their bytes.
    pub const ALL: [Ending; 6] =
        [Ending::Accepted, Ending::Gone, Ending::Refused, Ending::Expired, Ending::Cancelled, Ending::Skipped];

    /// The word of the protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Ending::Accepted => "accepted",
            Ending::Gone => "gone",
            Ending::Refused => "refused",
            Ending::Expired => "expired",
            Ending::Cancelled => "cancelled",
            Ending::Skipped => "skipped",
        }
    }
}

/// What an answer means for the delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has ended; `reason` is a word for events and metrics, from a bounded set.
    Ended { ending: Ending, reason: &'static str },
    /// The delivery is tried again: at `not_before` if the service named a time, else after backoff. Counts an attempt.
    Retry { not_before: Option<UnixMillis>, reason: &'static str },
    /// Sent again at once with the app's next key. Given only while one is left: then it ends, reason `key_mismatch`.
    OtherKey,
    /// Sent again once without padding (413). Given only if it had some: else it ends, reason `payload_too_large`.
    Shrink,
    /// No attempt: it goes back to its lane as it was.
    Return { reason: &'static str },
}

/// What must slow down, beside the delivery itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// Nothing but this delivery.
    Delivery,
    /// The origin closes; not before `not_before` if the service named a time.
    Origin { not_before: Option<UnixMillis> },
    /// All origins of the service close: throttling by WNS spans hosts (docs/push-services.md 3.4).
    Service { not_before: Option<UnixMillis> },
    /// A 5xx, or no answer at all: the origin closes when they are most of the last answers.
    Trouble,
    /// The signing key at this origin: the token is made anew once, then the operator is told.
    Sender,
}
