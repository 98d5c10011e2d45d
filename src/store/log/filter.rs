//! Which events a reader wants. What does not concern it is passed over by its bytes alone; only what may be wanted is taken apart
//! and judged.

use std::collections::BTreeSet;
use std::sync::Arc;

use memchr::memmem::Finder;
use serde::Deserialize;

use crate::message::SubscriptionId;
use crate::protocol::request::{EventType, Events};
use crate::store::log::MIXED;

/// What a reader wants of which apps.
pub struct EventFilter {
    /// None: every app.
    apps: Option<BTreeSet<Arc<str>>>,
    types: Option<Vec<EventType>>,
    /// Members that an event must have, with their values.
    label: Option<String>,
    message_id: Option<String>,
    account: Option<String>,
    subscription_id: Option<String>,
    /// Bytes of which a line holds at least one in each part, if it is wanted.
    needles: Vec<Vec<Finder<'static>>>,
    /// The same, for rows that are of all apps.
    app_needles: Vec<Finder<'static>>,
    /// Lines that were taken apart.
    #[cfg(test)]
    pub(super) parsed: std::sync::atomic::AtomicUsize,
}

/// What of an event is judged.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "type")]
    kind: Option<String>,
    app: Option<String>,
    label: Option<String>,
    message_id: Option<String>,
    account: Option<String>,
    subscription_id: Option<String>,
}

/// A member as every event is written, whatever is in its value: by the same `serde_json`, without spaces.
pub(super) fn written(name: &str, value: &str) -> Finder<'static> {
    let member = format!("\"{name}\":{}", serde_json::Value::from(value));
    Finder::new(member.as_bytes()).into_owned()
}

impl EventFilter {
    /// Every event of every app.
    pub fn all() -> EventFilter {
        EventFilter {
            apps: None,
            types: None,
            label: None,
            message_id: None,
            account: None,
            subscription_id: None,
            needles: Vec::new(),
            app_needles: Vec::new(),
            #[cfg(test)]
            parsed: Default::default(),
        }
    }

    /// What a request wants on a socket that has these apps.
    pub fn new(asked: &Events, apps: &[Arc<str>]) -> EventFilter {
        let apps: BTreeSet<Arc<str>> =
            apps.iter().filter(|app| asked.app.as_ref().is_none_or(|named| named == *app)).cloned().collect();
        let mut filter = EventFilter {
            types: asked.types.clone(),
            label: asked.label.clone(),
            message_id: asked.message_id.map(|id| id.to_string()),
            account: asked.account.clone(),
            subscription_id: asked.subscription_id.as_ref().map(SubscriptionId::name),
            app_needles: apps.iter().map(|app| written("app", app)).collect(),
            apps: Some(apps),
            ..EventFilter::all()
        };
        let one = |name, value: &Option<String>| value.as_ref().map(|value| vec![written(name, value)]);
        let types = |types: &Vec<EventType>| types.iter().map(|kind| written("type", kind.as_str())).collect();
        // The rarest first.
        let needles = [
            one("message_id", &filter.message_id),
            one("subscription_id", &filter.subscription_id),
            one("account", &filter.account),
            one("label", &filter.label),
            filter.types.as_ref().map(types),
        ];
        filter.needles = needles.into_iter().flatten().collect();
        filter
    }

    /// Whether rows of this app are read.
    pub(super) fn reads(&self, app: &str) -> bool {
        app == MIXED || self.apps.as_ref().is_none_or(|apps| apps.contains(app))
    }

    /// Whether something wanted may be in these bytes.
    pub(super) fn may_be_in(&self, bytes: &[u8], mixed: bool) -> bool {
        let any = |needles: &[Finder<'static>]| needles.iter().any(|needle| needle.find(bytes).is_some());
        self.needles.iter().all(|needles| any(needles)) && (!mixed || self.apps.is_none() || any(&self.app_needles))
    }

    pub(super) fn takes(&self, line: &[u8], mixed: bool) -> bool {
        if !self.may_be_in(line, mixed) {
            return false;
        }
        if self.needles.is_empty() && (!mixed || self.apps.is_none()) {
            return true;
        }
        #[cfg(test)]
        self.parsed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let Ok(event) = serde_json::from_slice::<Named>(line) else { return false };
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let kind = || event.kind.as_deref().and_then(EventType::parse);
        self.apps.as_ref().is_none_or(|apps| event.app.as_deref().is_some_and(|app| apps.contains(app)))
            && is(&self.label, &event.label)
            && is(&self.message_id, &event.message_id)
            && is(&self.account, &event.account)
            && is(&self.subscription_id, &event.subscription_id)
            && self.types.as_ref().is_none_or(|types| kind().is_some_and(|kind| types.contains(&kind)))
    }
}
