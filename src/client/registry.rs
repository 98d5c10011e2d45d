//! The commands about the registry: subscriptions, accounts, and what they have seen.

use std::io::BufReader;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::client::arguments::{List, Page as Which, Subscribe, Subscriptions, Test};
use crate::client::connection::{Connection, Reply};
use crate::client::output::{Output, note};
use crate::client::pages::{self, Page};
use crate::client::send::{add_body, line, members, one_subscription, open};
use crate::client::table::Columns;
use crate::exit::Failure;
use crate::printable;

/// What is known of a subscription, most telling first.
pub const SUBSCRIPTION_MEMBERS: &[&str] = &[
    "subscription_id",
    "app",
    "account",
    "name",
    "service",
    "enabled",
    "valid",
    "reason",
    "seen",
    "scopes",
    "tags",
    "attributes",
];

const SUBSCRIPTION_COLUMNS: &Columns = &[
    ("subscription_id", 0),
    ("account", 0),
    ("name", 1),
    ("app", 2),
    ("service", 1),
    ("enabled", 1),
    ("valid", 2),
    ("reason", 2),
    ("seen", 1),
    ("scopes", 3),
    ("tags", 2),
];

/// The other counters are shown where they are not 0.
const LIST_COLUMNS: &Columns = &[
    ("message_id", 0),
    ("state", 0),
    ("label", 1),
    ("ref", 3),
    ("created", 2),
    ("recipients", 0),
    ("pending", 0),
    ("accepted", 1),
];

/// Hands in one subscription.
pub fn subscribe(socket: &Path, output: &mut Output, arguments: &Subscribe) -> Result<(), Failure> {
    let subscription = match (&arguments.subscription, &arguments.file) {
        (Some(text), _) => one_subscription(text.as_bytes(), "--subscription")?,
        (None, Some(file)) => one_subscription(BufReader::new(open(file)?), "subscribe")?,
        (None, None) => String::new(),
    };
    let mut request = arguments.request()?;
    // Written by `line`, before all others.
    request.remove("op");
    let mut connection = Connection::open(socket)?;
    connection.send(&line("subscribe", &members(&request), &format!(r#""subscription":{subscription}"#)))?;
    output.reply(&connection.receive()?.good()?, SUBSCRIPTION_MEMBERS)
}

/// Lists messages with many recipients.
pub fn list(socket: &Path, output: &mut Output, arguments: &List) -> Result<(), Failure> {
    let none = "no message with many recipients (singles are found by their id)";
    let shown = Shown { list: "messages", columns: LIST_COLUMNS, none };
    shown.pages(socket, output, arguments.request(), &arguments.page)
}

/// Lists subscriptions.
pub fn subscriptions(socket: &Path, output: &mut Output, arguments: &Subscriptions) -> Result<(), Failure> {
    let shown = Shown { list: "subscriptions", columns: SUBSCRIPTION_COLUMNS, none: "no subscription" };
    shown.pages(socket, output, arguments.request()?, &arguments.page)
}

/// How a list is shown: the member of the reply that holds it, its first columns, and what is said if it is empty.
struct Shown {
    list: &'static str,
    columns: &'static Columns,
    none: &'static str,
}

impl Shown {
    fn pages(&self, socket: &Path, output: &mut Output, mut request: Map<String, Value>, which: &Which) -> Result<(), Failure> {
        let mut connection = Connection::open(socket)?;
        let limit = (!which.all).then_some(which.limit);
        let mut first = true;
        let read = pages::each(which.after.clone(), limit, |after, limit| {
            request.insert("limit".to_owned(), limit.into());
            if let Some(after) = after {
                request.insert("after".to_owned(), after.into());
            }
            let reply = connection.call(&Value::Object(request.clone()))?;
            let elements = reply.elements(self.list);
            if first || !elements.is_empty() {
                output.rows(&elements, self.columns, self.none)?;
            }
            first = false;
            let after = reply.text("after").map(str::to_owned);
            Ok(Page { count: elements.len() as u64, more: after.is_some(), after })
        })?;
        match read.after {
            Some(after) if read.more && !output.json() => {
                note(format_args!("there are more: --after {}", printable::line(&after)))
            }
            Some(after) if read.more => output.line(&json!({ "after": after }).to_string())?,
            _ => {}
        }
        Ok(())
    }
}

/// Sends a test, and shows what became of it if that was waited for.
pub fn test(socket: &Path, output: &mut Output, arguments: &Test) -> Result<(), Failure> {
    let mut request = arguments.request();
    request.remove("op");
    let mut rest = members(&request);
    add_body(&mut rest, &arguments.content, false)?;
    let mut connection = Connection::open(socket)?;
    connection.send(&format!(r#"{{"op":"test"{rest}}}"#))?;
    let reply = connection.receive()?.good()?;
    let nobody = |reply: &Reply| reply.members.get("results").and_then(Value::as_array).is_some_and(Vec::is_empty);
    if !output.json() && nobody(&reply) && reply.count("pending") == 0 {
        note("nobody was written to: no browser, or switched off; `fanfare account` and `fanfare subscription` tell");
    }
    output.reply(&reply, &["message_id", "subscription_id", "type", "status", "reason"])
}
