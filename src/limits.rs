//! Every bound that is no configuration key, and the relations between them, checked when this file is compiled.

/// Largest plaintext: 4,096 - 86 (RFC 8188 header with a P-256 key id) - 1 (delimiter) - 16 (tag), RFC 8291 section 4.
pub const PAYLOAD_MAX: usize = 3_993;
/// Largest endpoint in bytes (docs/design.md 6.1).
pub const ENDPOINT_MAX: usize = 2_048;
/// A `send` with more recipients is a list.
pub const SINGLE_RECIPIENTS_MAX: usize = 64;
/// Recipients one commit takes at most: a place has 16 bits.
pub const COMMIT_RECIPIENTS_MAX: usize = 65_536;
/// Recipients of one row of a list. A row is read whole by the worker that sends it.
pub const CHUNK_RECIPIENTS_MAX: usize = 512;
/// Recipients of one row of singles.
pub const PIECE_RECIPIENTS_MAX: usize = 256;
/// A row of singles is closed when its value has grown to this many bytes.
pub const PIECE_BYTES: usize = 128 * 1024;
/// A group commit is closed when its rows have grown to this many bytes: about five milliseconds of writing, for which all others wait.
pub const COMMIT_BYTES: usize = 1024 * 1024;
/// Outcomes that a crash may repeat at most (promise 2).
pub const CHECKPOINT_OUTCOMES: usize = 8_192;
/// Lines that a connection may have unanswered.
pub const CONNECTION_LINES: usize = 10_000;
/// Bytes of lines that a connection may have unanswered.
pub const CONNECTION_BYTES: usize = 4 * 1024 * 1024;
/// Seconds that a line may take from its first byte to its end: a client that sends half a line and no more holds memory.
pub const LINE_SECONDS: u64 = 30;
/// KiB of `ingest.memory_mb` that are taken before something is read for an answer, until the client has taken it.
pub const ANSWER_KIB: usize = 512;
/// Bytes of an answer's body that are read (docs/design.md 6.3).
pub const ANSWER_BODY_MAX: usize = 4_096;
/// Bytes of `label` and `ref` of a message.
pub const LABEL_MAX: usize = 128;
/// Bytes of a recipient's `ref`.
pub const REFERENCE_MAX: usize = 64;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_MAX: usize = 128;
/// Bytes of a request's `id`, as it is written: every line of its reply repeats it.
pub const REQUEST_ID_MAX: usize = 1_024;
/// Bytes of `position` and `previous`, as compact JSON: a stream keeps its last one.
pub const POSITION_MAX: usize = 1_024;
/// Bytes of an account.
pub const ACCOUNT_MAX: usize = 128;
/// Bytes of a tag, a scope, or the name of an attribute.
pub const NAME_MAX: usize = 64;
/// Tags of a subscription, and scopes, and names in each part of a segment.
pub const NAMES_MAX: usize = 64;
/// Attributes of a subscription, and of a segment.
pub const ATTRIBUTES_MAX: usize = 64;
/// Bytes of the attributes of a subscription, names and values together.
pub const ATTRIBUTES_BYTES_MAX: usize = 4_096;
/// Bytes of a subscription's `name`.
pub const SUBSCRIPTION_NAME_MAX: usize = 128;
/// Bytes of a subscription's `user_agent`; a longer one is cut.
pub const USER_AGENT_MAX: usize = 512;
/// Bytes of a presence `session`.
pub const SESSION_MAX: usize = 128;
/// Seconds of a presence `lease` at most.
pub const LEASE_MAX: f64 = 86_400.0;
/// Leases of presence that are held at the same time: sessions that are online, or were until their account went offline, within
/// the grace. Some 140 bytes each.
pub const PRESENCE_LEASES_MAX: u64 = 500_000;
/// Rules that are known at the same time: paused messages, labels and apps, cancelled ones, erased accounts and browsers. Some 130
/// bytes each.
pub const RULES_MAX: u64 = if cfg!(test) { 4_096 } else { 262_144 };
/// Accounts that are disabled at the same time. Their hashes are in memory, some 20 bytes each.
pub const DISABLED_ACCOUNTS_MAX: u64 = 1_000_000;
/// `test`s that wait for their results at the same time.
pub const WATCHES_MAX: u64 = 1_024;
/// Seconds that `test` waits at most.
pub const TEST_WAIT_MAX: f64 = 60.0;
/// Seconds after which a `fallback` comes at most: 90 days.
pub const FALLBACK_MAX: f64 = 90.0 * 86_400.0;
/// Bytes of a receipt: message id 16, subscription id 12, MAC 16.
pub const RECEIPT_BYTES: usize = 16 + 12 + 16;
/// Characters of a receipt in base64url.
pub const RECEIPT_CHARS: usize = 59;
/// Characters of a backup's name.
pub const BACKUP_NAME_MAX: usize = 64;
/// How long an idempotency key is remembered at least, in milliseconds.
pub const IDEMPOTENCY_MILLIS: u64 = 24 * 60 * 60 * 1_000;
/// Characters of a topic (RFC 8030 section 5.4).
pub const TOPIC_MAX: usize = 32;
/// Labels a day that `stats` keeps apart for each app; the rest of an app's stand under `other`.
pub const STATS_LABELS: usize = 1_000;

const _: () = assert!((RECEIPT_BYTES * 8).div_ceil(6) == RECEIPT_CHARS);
const _: () = assert!(SINGLE_RECIPIENTS_MAX <= PIECE_RECIPIENTS_MAX);
const _: () = assert!(PIECE_RECIPIENTS_MAX <= COMMIT_RECIPIENTS_MAX);
const _: () = assert!(CHUNK_RECIPIENTS_MAX <= CHECKPOINT_OUTCOMES);
