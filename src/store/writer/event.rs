//! One event of the log, as JSON.

use crate::ingest::request::EventType;
use crate::message::{Ending, MessageId, Reference, Service, SubscriptionId, UnixMillis};
use crate::store::Store;
use crate::store::record::Put;
use crate::store::writer::settle::ERASED;

/// What an event tells of.
#[derive(Clone, Copy)]
pub(super) enum What {
    Ended(Ending),
    Feedback(EventType),
    Unreachable,
}

impl What {
    pub(super) fn kind(self) -> EventType {
        match self {
            What::Ended(ending) => EventType::Ended(ending),
            What::Feedback(kind) => kind,
            What::Unreachable => EventType::Unreachable,
        }
    }
}

/// What an event tells.
#[derive(Clone, Copy)]
pub(super) struct Event<'a> {
    pub(super) time: UnixMillis,
    pub(super) what: What,
    /// None: it is of a subscription, not of a message.
    pub(super) id: Option<MessageId>,
    pub(super) message_ref: Option<&'a str>,
    pub(super) label: Option<&'a str>,
    /// Hashing the endpoint costs: only done for events that are kept.
    pub(super) subscription: Option<&'a dyn Fn() -> SubscriptionId>,
    pub(super) reference: Option<&'a Reference>,
    pub(super) account: Option<&'a str>,
    pub(super) app: &'a str,
    pub(super) service: Option<Service>,
    pub(super) status: Option<u16>,
    pub(super) reason: Option<&'a str>,
    pub(super) count: Option<u64>,
}

/// Events that are written together, a line each.
#[derive(Default)]
pub(super) struct Events {
    lines: Vec<u8>,
    count: u32,
}

impl Events {
    pub(super) fn push(&mut self, event: &Event<'_>, store: &Store) {
        let erased = Event { subscription: None, reference: None, account: None, ..*event };
        let event = if event.reason == Some(ERASED) { &erased } else { event };
        if self.count > 0 {
            self.lines.push(b'\n');
        }
        event.write(&mut self.lines, store);
        self.count += 1;
    }

    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// The row of these events and, behind them, others.
    pub(super) fn row_with(&self, others: &Events) -> Vec<u8> {
        let mut row = Put::versioned();
        row.u32(self.count + others.count).bytes(&self.lines);
        if self.count > 0 && others.count > 0 {
            row.bytes(b"\n");
        }
        row.bytes(&others.lines);
        row.0
    }
}

impl Event<'_> {
    /// The event as JSON without its cursor, which the reader knows.
    pub(super) fn write(&self, out: &mut Vec<u8>, store: &Store) {
        use base64::Engine;
        let mut object = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| object.insert(name.to_owned(), value);
        put("time", crate::ingest::reply::format_time(self.time).into());
        put("type", self.what.kind().as_str().into());
        if let Some(id) = self.id {
            put("message_id", store.ids.show(id).to_string().into());
        }
        if let Some(text) = self.message_ref {
            put("message_ref", text.into());
        }
        if let Some(label) = self.label {
            put("label", label.into());
        }
        if let Some(subscription) = self.subscription {
            let id = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(subscription().0);
            put("subscription_id", id.into());
        }
        match self.reference {
            None => {}
            Some(Reference::Text(text)) => {
                put("ref", text.as_str().into());
            }
            Some(Reference::Integer(number)) => {
                put("ref", (*number).into());
            }
        }
        if let Some(account) = self.account {
            put("account", account.into());
        }
        put("app", self.app.into());
        if let Some(service) = self.service {
            put("service", (*store.services.name(service)).into());
        }
        if let Some(status) = self.status {
            put("status", status.into());
        }
        if let Some(reason) = self.reason {
            put("reason", reason.into());
        }
        if let Some(count) = self.count {
            put("count", count.into());
        }
        serde_json::to_writer(out, &object).expect("a map of strings and numbers is JSON, and memory takes it");
    }
}
