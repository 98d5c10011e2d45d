//! One event of the log, as JSON.

use std::sync::Arc;

use crate::message::{Ending, MessageId, Reference, Service, SubscriptionId, UnixMillis};
use crate::protocol::reason;
use crate::protocol::request::EventType;
use crate::store::Store;
use crate::store::record::Put;

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

/// Events that are written together, a line each: rows of one app each, those of an app in order.
#[derive(Default)]
pub(super) struct Events(Vec<OfApp>);

struct OfApp {
    app: Arc<str>,
    lines: Vec<u8>,
    count: u32,
}

/// A row takes no more lines when it has grown to so many bytes: it is read whole.
const ROW_BYTES: usize = if cfg!(test) { 1_024 } else { 64 << 10 };

impl Events {
    pub(super) fn push(&mut self, event: &Event<'_>, store: &Store) {
        let erased = Event { subscription: None, reference: None, account: None, ..*event };
        let event = if event.reason == Some(reason::ERASED) { &erased } else { event };
        // Rows are few.
        let last = self.0.iter().rposition(|of| *of.app == *event.app);
        let place = last.filter(|last| self.0[*last].lines.len() < ROW_BYTES).unwrap_or_else(|| {
            let app = last.map_or_else(|| event.app.into(), |last| self.0[last].app.clone());
            self.0.push(OfApp { app, lines: Vec::new(), count: 0 });
            self.0.len() - 1
        });
        let of = &mut self.0[place];
        if of.count > 0 {
            of.lines.push(b'\n');
        }
        event.write(&mut of.lines, store);
        of.count += 1;
    }

    /// The rows of these events and, behind them, of others: of which app, how many events, and the value.
    pub(super) fn rows_with(&self, others: &Events) -> Vec<(Arc<str>, u32, Vec<u8>)> {
        let row = |of: &OfApp| {
            let mut row = Put::versioned();
            row.u32(of.count).bytes(&of.lines);
            (of.app.clone(), of.count, row.0)
        };
        self.0.iter().chain(&others.0).map(row).collect()
    }
}

impl Event<'_> {
    /// The event as JSON without its cursor, which the reader knows.
    pub(super) fn write(&self, out: &mut Vec<u8>, store: &Store) {
        use base64::Engine;
        let mut object = serde_json::Map::new();
        let mut put = |name: &str, value: serde_json::Value| object.insert(name.to_owned(), value);
        put("time", crate::protocol::time::format_time(self.time).into());
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
