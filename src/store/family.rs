//! Column families, by access pattern. The reason for each option stands where it is set, in `database.rs`.

/// Version of the whole layout, in the row `format`. A store with a higher one is not opened.
pub(super) const FORMAT: u8 = 1;

/// Small rows about the store itself: rewritten, read at start.
pub const META: &str = "meta";
/// Rows of singles: written once, read in order, deleted from the front.
pub const WORK: &str = "work";
/// Rows of lists: written once, read in order within their list, deleted from the front of each.
pub const LIST: &str = "list";
/// What waits by itself, by time: written, read in order, deleted from the front. `expiry` and `held` are alike.
pub const DUE: &str = "due";
pub const EXPIRY: &str = "expiry";
pub const HELD: &str = "held";
/// What a status of a single needs: written once, read by point, dropped by range.
pub const HEAD: &str = "head";
/// Outcome bytes: rewritten a few times within a second, read by point, dropped by range.
pub const OUTCOME: &str = "outcome";
/// Messages of lists: their row, state and counters.
pub const MESSAGE: &str = "message";
/// Idempotency keys and topics: looked up by point, mostly in vain, dropped by a compaction filter.
pub const IDEMPOTENCY: &str = "idempotency";
pub const TOPIC: &str = "topic";
/// The event log: appended, read in order, dropped by range.
pub const EVENTS: &str = "events";
/// Counters by day: rewritten.
pub const STATS: &str = "stats";

/// Subscriptions: what sending needs, read in order by walks and by point. `detail` is the rest, read seldom.
pub const SUBSCRIPTION: &str = "subscription";
pub const DETAIL: &str = "detail";
/// Small rows about the registry, read by point or prefix.
pub const INDEX: &str = "index";
/// Who has a tag or accepts a scope: keys only, read in order.
pub const POSTING: &str = "posting";
/// Receipts that have come back: written and read by point, dropped by range.
pub const FEEDBACK: &str = "feedback";

pub const ALL: [&str; 18] = [
    META,
    WORK,
    LIST,
    DUE,
    EXPIRY,
    HELD,
    HEAD,
    OUTCOME,
    MESSAGE,
    IDEMPOTENCY,
    TOPIC,
    EVENTS,
    STATS,
    SUBSCRIPTION,
    DETAIL,
    INDEX,
    POSTING,
    FEEDBACK,
];
