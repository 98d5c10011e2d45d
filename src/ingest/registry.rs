//! Replies of the operations on the registry.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::ids::Position;
use crate::message::{Encoding, Name, Reference, Segment, SubscriptionId, SubscriptionKey, UnixMillis};
use crate::protocol::json::write_string;
use crate::protocol::reply::{begin_ok, end, member, member_text, member_time};
use crate::protocol::request::{Code, Of, Problem, RequestId, Whose};
use crate::store::commit::Apps;
use crate::store::live::lock;
use crate::store::registry::{Known, account_hash};
use crate::store::{ReadError, Store, watch};
use crate::vapid::token::Tokens;

/// One subscription, as JSON. `reveal`: what it takes to send to it, too, with the public key that it was made with.
fn write_known(store: &Store, known: &Known, reveal: Option<&Tokens>, out: &mut Vec<u8>) {
    let Known { id, app, subscription, detail, key: at } = known;
    let recipient = &subscription.recipient;
    let start = out.len();
    member_text(out, "subscription_id", &id.name());
    member_text(out, "app", app);
    text_or_null(out, "account", subscription.account.as_deref());
    text_or_null(out, "name", detail.name.as_deref());
    text_or_null(out, "user_agent", detail.user_agent.as_deref());
    member_text(out, "service", &store.services.name(at.service));
    member_time(out, "created", detail.created);
    member_time(out, "seen", detail.seen);
    member(out, "enabled", subscription.enabled);
    match &subscription.scopes {
        None => member(out, "scopes", "null"),
        Some(scopes) => names(out, "scopes", scopes),
    }
    names(out, "tags", &subscription.tags);
    out.extend_from_slice(b",\"attributes\":{");
    for (index, (name, value)) in subscription.attributes.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(name, out);
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
    match &recipient.key {
        None => member(out, "key", "null"),
        Some(key) => member_text(out, "key", &key.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    }
    match (subscription.gone, subscription.proven) {
        (true, _) => member(out, "valid", false),
        (false, true) => member(out, "valid", true),
        (false, false) => member_text(out, "valid", "unknown"),
    }
    time_or_null(out, "last_failure", detail.last_failure);
    text_or_null(out, "reason", detail.reason.as_deref());
    match &recipient.reference {
        None => {}
        Some(Reference::Text(text)) => member_text(out, "ref", text),
        Some(Reference::Integer(number)) => member(out, "ref", number),
    }
    if let Some(tokens) = reveal {
        member_text(out, "endpoint", recipient.endpoint.as_str());
        match recipient.expiration {
            None => member(out, "expirationTime", "null"),
            Some(time) => member(out, "expirationTime", time.0),
        }
        out.extend_from_slice(b",\"keys\":{\"p256dh\":\"");
        out.extend_from_slice(URL_SAFE_NO_PAD.encode(recipient.p256dh).as_bytes());
        out.extend_from_slice(b"\",\"auth\":\"");
        out.extend_from_slice(URL_SAFE_NO_PAD.encode(recipient.auth).as_bytes());
        out.extend_from_slice(b"\"}");
        if recipient.encoding == Encoding::Aesgcm {
            member_text(out, "contentEncoding", "aesgcm");
        }
        if let Some(key) = recipient.key.and_then(|key| tokens.public_key_of(app, key)) {
            member_text(out, "applicationServerKey", &key);
        }
        // Else an export would forget who is switched off.
        let number = store.registry.app(app).zip(subscription.account.as_ref());
        if number.is_some_and(|(app, account)| store.registry.is_disabled(account_hash(app, account))) {
            member(out, "account_enabled", false);
        }
    }
    out[start] = b'{';
    out.push(b'}');
}

fn text_or_null(out: &mut Vec<u8>, name: &str, text: Option<&str>) {
    match text {
        Some(text) => member_text(out, name, text),
        None => member(out, name, "null"),
    }
}

fn time_or_null(out: &mut Vec<u8>, name: &str, time: Option<UnixMillis>) {
    match time {
        Some(time) => member_time(out, name, time),
        None => member(out, name, "null"),
    }
}

fn names(out: &mut Vec<u8>, name: &str, names: &[Name]) {
    member(out, name, "[");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_string(name, out);
    }
    out.push(b']');
}

fn write_all(store: &Store, found: &[Known], reveal: Option<&Tokens>, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"subscriptions\":[");
    for (index, known) in found.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_known(store, known, reveal, out);
    }
    out.push(b']');
}

pub(super) fn write_subscription(store: &Store, id: &RequestId, known: &Known, reveal: Option<&Tokens>, out: &mut Vec<u8>) {
    begin_ok(out, id);
    out.extend_from_slice(b",\"subscription\":");
    write_known(store, known, reveal, out);
    end(out);
}

/// The browsers of an account in the apps that are meant.
fn browsers(store: &Store, who: &Whose, apps: &Apps) -> Result<Vec<Known>, ReadError> {
    let mut found = Vec::new();
    for app in who.apps(apps) {
        if let Some(number) = store.registry.app(app) {
            found.extend(store.account_subscriptions(number, &who.account)?);
        }
    }
    Ok(found)
}

pub(super) fn write_account(
    store: &Store,
    id: &RequestId,
    who: &Whose,
    apps: &Apps,
    now: UnixMillis,
    out: &mut Vec<u8>,
) -> Result<(), ReadError> {
    let found = browsers(store, who, apps)?;
    let hashes: Vec<_> =
        who.apps(apps).iter().filter_map(|app| Some(account_hash(store.registry.app(app)?, &who.account))).collect();
    let enabled = !hashes.iter().any(|hash| store.registry.is_disabled(*hash));
    let online = {
        let presence = lock(&store.presence);
        hashes.iter().any(|hash| presence.is_online(*hash, now))
    };
    begin_ok(out, id);
    member_text(out, "account", &who.account);
    member(out, "enabled", enabled);
    member_text(out, "presence", if online { "online" } else { "offline" });
    member(out, "reachable", enabled && found.iter().any(|known| known.subscription.enabled));
    write_all(store, &found, None, out);
    end(out);
    Ok(())
}

/// The app's number and the key that a list goes on behind.
fn parse_cursor(store: &Store, text: &str) -> Option<(u16, SubscriptionKey)> {
    match store.ids.open(text)? {
        Position::Subscription { app, key } => Some((app, key)),
        _ => None,
    }
}

/// What a list is to have.
pub(super) struct Listing<'a> {
    pub(super) of: &'a Of,
    pub(super) app: Option<&'a str>,
    pub(super) limit: usize,
}

/// Where a list goes on: an app's number, and a subscription of it.
pub(super) type Behind = (u16, SubscriptionKey);

/// Where an earlier reply to these apps has ended.
pub(super) fn behind(store: &Store, text: Option<&str>, apps: &Apps) -> Result<Option<Behind>, ListError> {
    let after = text.map(|text| parse_cursor(store, text).ok_or(ListError::Cursor)).transpose()?;
    if after.is_some_and(|(of, _)| !store.registry.is_of(of, apps)) {
        return Err(ListError::Cursor);
    }
    Ok(after)
}

/// Finds what is there behind `after`, as much as can be found until then; and behind what there may be more.
pub(super) fn list_some(
    store: &Store,
    listing: &Listing<'_>,
    apps: &Apps,
    after: Option<Behind>,
    until: Instant,
    found: &mut Vec<Known>,
) -> Result<Option<Behind>, ReadError> {
    let all = Segment::default();
    let mut numbers: Vec<u16> = apps
        .iter()
        .filter(|app| listing.app.is_none_or(|named| named == &***app))
        .filter_map(|app| store.registry.app(app))
        .filter(|number| after.is_none_or(|(app, _)| *number >= app))
        .collect();
    numbers.sort_unstable();
    for number in numbers {
        let behind = after.filter(|(app, _)| *app == number).map(|(_, key)| key);
        let left = listing.limit - found.len();
        let (page, more) = match listing.of {
            Of::Account(account) => {
                let mut page = store.account_subscriptions(number, account)?;
                page.retain(|known| behind.is_none_or(|behind| known.key > behind));
                let more = page.len() > left;
                page.truncate(left);
                let last = page.last().map(|known| known.key).filter(|_| more);
                (page, last)
            }
            Of::Segment(segment) => store.segment_page(number, segment, behind, left, until)?,
            Of::All => store.segment_page(number, &all, behind, left, until)?,
        };
        found.extend(page);
        if let Some(more) = more {
            return Ok(Some((number, more)));
        }
        if found.len() == listing.limit {
            return Ok(found.last().map(|known| (number, known.key)));
        }
    }
    Ok(None)
}

pub(super) fn write_list(
    store: &Store,
    id: &RequestId,
    found: &[Known],
    next: Option<Behind>,
    reveal: Option<&Tokens>,
    out: &mut Vec<u8>,
) {
    begin_ok(out, id);
    write_all(store, found, reveal, out);
    match next {
        Some((app, key)) => member_text(out, "after", &store.ids.seal(Position::Subscription { app, key })),
        None => member(out, "after", "null"),
    }
    end(out);
}

/// The accounts of these apps that are switched off, by app and name, from behind `after` on: each as a line that `account` takes.
pub(super) fn write_disabled(
    store: &Store,
    id: &RequestId,
    apps: &Apps,
    limit: usize,
    after: Option<&str>,
    out: &mut Vec<u8>,
) -> Result<(), ListError> {
    let cursor = |text: &str| {
        let (app, account) = text.split_once('.')?;
        match store.ids.open(app)? {
            Position::App(number) => Some((number, account.to_owned())),
            _ => None,
        }
    };
    let after = after.map(|text| cursor(text).ok_or(ListError::Cursor)).transpose()?;
    let mut numbers: Vec<(u16, &Arc<str>)> = apps.iter().filter_map(|app| Some((store.registry.app(app)?, app))).collect();
    numbers.sort_unstable();
    if after.as_ref().is_some_and(|(of, _)| !numbers.iter().any(|(number, _)| number == of)) {
        return Err(ListError::Cursor);
    }
    let mut found = Vec::new();
    for (number, app) in numbers {
        let behind = match &after {
            Some((last, _)) if number < *last => continue,
            Some((last, account)) if number == *last => Some(account.as_str()),
            _ => None,
        };
        // One more than asked for tells whether there is more.
        let accounts = store.disabled_accounts(number, behind, limit + 1 - found.len())?;
        found.extend(accounts.into_iter().map(|account| (number, app, account)));
    }
    let more = found.len() > limit;
    found.truncate(limit);
    begin_ok(out, id);
    out.extend_from_slice(b",\"accounts\":[");
    for (index, (_, app, account)) in found.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let start = out.len();
        member_text(out, "account", account);
        member_text(out, "app", app);
        member(out, "enabled", false);
        out[start] = b'{';
        out.push(b'}');
    }
    out.push(b']');
    match found.last().filter(|_| more) {
        Some((number, _, account)) => member_text(out, "after", &format!("{}.{account}", store.ids.seal(Position::App(*number)))),
        None => member(out, "after", "null"),
    }
    end(out);
    Ok(())
}

/// Why there is no list.
pub(super) enum ListError {
    Cursor,
    Read,
}

impl From<ReadError> for ListError {
    fn from(_: ReadError) -> ListError {
        ListError::Read
    }
}

/// What is wrong with a cursor of a list.
pub(super) fn bad_cursor() -> Problem {
    Problem {
        code: Code::InvalidField,
        field: Some("after".to_owned()),
        message: "must be what an earlier reply told as after".to_owned(),
    }
}

/// `"results":[…]` of a `test`.
pub(super) fn write_results(results: &[watch::Result], pending: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"results\":[");
    for (index, result) in results.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        let start = out.len();
        member_text(out, "subscription_id", &name(result.subscription));
        member_text(out, "type", result.ending.as_str());
        match result.status {
            Some(status) => member(out, "status", status),
            None => member(out, "status", "null"),
        }
        member_text(out, "reason", result.reason);
        out[start] = b'{';
        out.push(b'}');
    }
    out.push(b']');
    member(out, "pending", pending);
}

fn name(id: SubscriptionId) -> String {
    id.name()
}
