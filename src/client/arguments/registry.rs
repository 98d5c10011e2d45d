//! Flags of the commands about the registry: subscriptions, accounts, segments.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Number, Value, json};

use super::messages::Page;
use super::send::Body;
use super::{request, seconds};
use crate::exit::{Exit, Failure};

/// The flags of [`Segment`], which say more than `--all`.
pub const SEGMENT_FLAGS: [&str; 5] = ["segment", "tag", "tag_any", "tag_none", "attribute"];

/// Which subscriptions: those for which everything that is given holds.
#[derive(Debug, Default, Args)]
pub struct Segment {
    /// The segment as the protocol writes it: {"tags": {"any": […], "all": […], "none": […]}, "attributes": {…}}
    #[arg(long, value_name = "JSON", help_heading = "Which subscriptions")]
    pub segment: Option<String>,
    /// Only those with this tag; repeated: with all of them
    #[arg(long, help_heading = "Which subscriptions")]
    pub tag: Vec<String>,
    /// Only those with at least one of the tags given so
    #[arg(long, value_name = "TAG", help_heading = "Which subscriptions")]
    pub tag_any: Vec<String>,
    /// Only those without this tag; may be repeated
    #[arg(long, value_name = "TAG", help_heading = "Which subscriptions")]
    pub tag_none: Vec<String>,
    /// Only those whose attribute is this text; other values: --segment
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value, help_heading = "Which subscriptions")]
    pub attribute: Vec<(String, String)>,
}

impl Segment {
    /// Whether any of its flags was used.
    pub fn is_given(&self) -> bool {
        self.segment.is_some() || self.has_parts()
    }

    fn has_parts(&self) -> bool {
        !(self.tag.is_empty() && self.tag_any.is_empty() && self.tag_none.is_empty() && self.attribute.is_empty())
    }

    /// The protocol's `segment`; None if nothing was given. Exit 64 if `--segment` is no JSON object, or not alone.
    pub fn json(&self) -> Result<Option<Value>, Failure> {
        if let Some(text) = &self.segment {
            if self.has_parts() {
                return Err(Failure::new(Exit::Usage, "--segment says it all: it goes with no --tag… and no --attribute"));
            }
            return Ok(Some(Value::Object(object("--segment", text)?)));
        }
        if !self.has_parts() {
            return Ok(None);
        }
        let mut segment = Map::new();
        let tags: Map<String, Value> = [("all", &self.tag), ("any", &self.tag_any), ("none", &self.tag_none)]
            .into_iter()
            .filter(|(_, tags)| !tags.is_empty())
            .map(|(name, tags)| (name.to_owned(), json!(tags)))
            .collect();
        if !tags.is_empty() {
            segment.insert("tags".to_owned(), tags.into());
        }
        if !self.attribute.is_empty() {
            segment.insert("attributes".to_owned(), attributes(&self.attribute));
        }
        Ok(Some(segment.into()))
    }
}

fn attributes(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect())
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("an attribute is NAME=VALUE".to_owned()),
    }
}

/// A JSON object that was given as an argument.
pub fn object(flag: &str, text: &str) -> Result<Map<String, Value>, Failure> {
    serde_json::from_str(text).map_err(|error| Failure::new(Exit::Usage, format!("{flag} takes a JSON object: {error}")))
}

/// What is kept of a subscription beside its keys.
#[derive(Debug, Args)]
pub struct Kept {
    /// Shown in lists: "Anna's phone"
    #[arg(long)]
    pub name: Option<String>,
    /// Accepts messages of this scope; may be repeated. A browser that never got any accepts all
    #[arg(long)]
    pub scope: Vec<String>,
    /// Accepts no message that has a scope
    #[arg(long, conflicts_with = "scope")]
    pub no_scopes: bool,
    /// A tag to select by; may be repeated
    #[arg(long)]
    pub tag: Vec<String>,
    /// An attribute to select by and to fill templates with, as text; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    pub attribute: Vec<(String, String)>,
    /// All attributes at once: {"lang":"pl","age":42}
    #[arg(long, value_name = "JSON", conflicts_with = "attribute")]
    pub attributes: Option<String>,
}

impl Kept {
    fn add_to(&self, request: &mut Map<String, Value>) -> Result<(), Failure> {
        if let Some(name) = &self.name {
            request.insert("name".to_owned(), name.as_str().into());
        }
        if self.no_scopes || !self.scope.is_empty() {
            request.insert("scopes".to_owned(), json!(self.scope));
        }
        if !self.tag.is_empty() {
            request.insert("tags".to_owned(), json!(self.tag));
        }
        if let Some(text) = &self.attributes {
            request.insert("attributes".to_owned(), object("--attributes", text)?.into());
        } else if !self.attribute.is_empty() {
            request.insert("attributes".to_owned(), attributes(&self.attribute));
        }
        Ok(())
    }
}

/// `fanfare subscribe`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["file", "subscription"])))]
pub struct Subscribe {
    /// A file with one subscription as the browser serialises it; `-` reads standard input. Many: `fanfare import`
    #[arg(value_name = "FILE|-")]
    pub file: Option<PathBuf>,
    /// The subscription itself: {"endpoint":…,"keys":{"p256dh":…,"auth":…}}
    #[arg(long, value_name = "JSON")]
    pub subscription: Option<String>,
    /// Whose subscriber it is
    #[arg(long)]
    pub app: Option<String>,
    /// Whose browser it is
    #[arg(long)]
    pub account: Option<String>,
    /// The browser's User-Agent
    #[arg(long, value_name = "TEXT")]
    pub user_agent: Option<String>,
    /// The old endpoint or subscription id that this one takes the place of (`pushsubscriptionchange`)
    #[arg(long, value_name = "ENDPOINT|ID")]
    pub replaces: Option<String>,
    /// A message that is sent once if the subscription is new: {"notification":{"title":…,"navigate":…}}
    #[arg(long, value_name = "JSON")]
    pub confirm: Option<String>,
    #[command(flatten)]
    pub kept: Kept,
}

impl Subscribe {
    /// The request, without its `subscription`.
    pub fn request(&self) -> Result<Map<String, Value>, Failure> {
        let mut request = request(
            "subscribe",
            &[("app", &self.app), ("account", &self.account), ("user_agent", &self.user_agent), ("replaces", &self.replaces)],
        );
        self.kept.add_to(&mut request)?;
        if let Some(text) = &self.confirm {
            request.insert("confirm".to_owned(), object("--confirm", text)?.into());
        }
        Ok(request)
    }
}

/// `fanfare update`.
#[derive(Debug, Args)]
#[command(override_usage = "fanfare update [OPTIONS] <--enable|--name <NAME>|…> <SUBSCRIPTION_ID>")]
#[command(group(ArgGroup::new("change").required(true).multiple(true).args([
    "enable", "disable", "account", "detach", "name", "no_name", "scope", "no_scopes", "all_scopes", "tag", "no_tags", "attribute",
    "attributes", "no_attributes",
])))]
pub struct Update {
    /// The subscription's id, as `subscribe` told it
    #[arg(value_name = "SUBSCRIPTION_ID")]
    pub subscription_id: String,
    /// It receives messages again
    #[arg(long)]
    pub enable: bool,
    /// It receives nothing, and stays known
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// It is this account's browser now
    #[arg(long)]
    pub account: Option<String>,
    /// It belongs to no account: at logout
    #[arg(long, conflicts_with = "account")]
    pub detach: bool,
    /// It has no name any more
    #[arg(long, conflicts_with = "name")]
    pub no_name: bool,
    /// It accepts every scope again
    #[arg(long, conflicts_with_all = ["scope", "no_scopes"])]
    pub all_scopes: bool,
    /// It has no tags any more
    #[arg(long, conflicts_with = "tag")]
    pub no_tags: bool,
    /// It has no attributes any more
    #[arg(long, conflicts_with_all = ["attribute", "attributes"])]
    pub no_attributes: bool,
    #[command(flatten)]
    pub kept: Kept,
}

impl Update {
    /// The request: what is given is set, what is cleared is null.
    pub fn request(&self) -> Result<Map<String, Value>, Failure> {
        let mut request = request("update_subscription", &[("account", &self.account)]);
        request.insert("subscription_id".to_owned(), self.subscription_id.as_str().into());
        self.kept.add_to(&mut request)?;
        if self.enable || self.disable {
            request.insert("enabled".to_owned(), self.enable.into());
        }
        for (name, cleared) in [
            ("account", self.detach),
            ("name", self.no_name),
            ("scopes", self.all_scopes),
            ("tags", self.no_tags),
            ("attributes", self.no_attributes),
        ] {
            if cleared {
                request.insert(name.to_owned(), Value::Null);
            }
        }
        Ok(request)
    }
}

/// `fanfare unsubscribe`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["subscription_id", "endpoint"])))]
pub struct Unsubscribe {
    /// The subscription's id
    #[arg(value_name = "SUBSCRIPTION_ID")]
    pub subscription_id: Option<String>,
    /// Its endpoint instead of its id
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
}

impl Unsubscribe {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        request("unsubscribe", &[("subscription_id", &self.subscription_id), ("endpoint", &self.endpoint)])
    }
}

/// `fanfare subscription`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["subscription_id", "endpoint"])))]
pub struct Which {
    /// The subscription's id
    #[arg(value_name = "SUBSCRIPTION_ID")]
    pub subscription_id: Option<String>,
    /// Its endpoint instead of its id
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// Show endpoint and keys too: who has them can write to the browser
    #[arg(long)]
    pub reveal: bool,
}

impl Which {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = request("subscription", &[("subscription_id", &self.subscription_id), ("endpoint", &self.endpoint)]);
        if self.reveal {
            request.insert("reveal".to_owned(), true.into());
        }
        request
    }
}

/// `fanfare account`.
#[derive(Debug, Args)]
pub struct Account {
    /// The account, as the application names it
    pub account: String,
    /// It receives messages again
    #[arg(long)]
    pub enable: bool,
    /// Its browsers receive nothing, and it takes no new ones; they stay known
    #[arg(long, conflicts_with = "enable")]
    pub disable: bool,
    /// In this app only
    #[arg(long)]
    pub app: Option<String>,
}

impl Account {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = request("account", &[("app", &self.app)]);
        request.insert("account".to_owned(), self.account.as_str().into());
        if self.enable || self.disable {
            request.insert("enabled".to_owned(), self.enable.into());
        }
        request
    }
}

/// `fanfare presence`.
#[derive(Debug, Args)]
pub struct Presence {
    /// The account, as the application names it
    pub account: String,
    /// Whether it is looking at the application
    pub state: State,
    /// How long `online` counts if it is not said again: seconds, or 5m
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub lease: Option<Number>,
    /// Which of its windows or devices says so; it is online while one of them is
    #[arg(long)]
    pub session: Option<String>,
    /// In this app only
    #[arg(long)]
    pub app: Option<String>,
}

/// online or offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum State {
    Online,
    Offline,
}

impl Presence {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = request("presence", &[("session", &self.session), ("app", &self.app)]);
        request.insert("account".to_owned(), self.account.as_str().into());
        request.insert("state".to_owned(), if self.state == State::Online { "online" } else { "offline" }.into());
        if let Some(lease) = &self.lease {
            request.insert("lease".to_owned(), lease.clone().into());
        }
        request
    }
}

/// `fanfare mark-read`.
#[derive(Debug, Args)]
#[command(override_usage = "fanfare mark-read [OPTIONS] <--message <ID>|--topic <TOPIC>> <ACCOUNT>")]
#[command(group(ArgGroup::new("what").required(true).args(["message_id", "topic"])))]
pub struct MarkRead {
    /// The account, as the application names it
    pub account: String,
    /// The message that was read
    #[arg(long = "message", value_name = "MESSAGE_ID")]
    pub message_id: Option<String>,
    /// Everything under this topic was read
    #[arg(long)]
    pub topic: Option<String>,
    /// In this app only
    #[arg(long)]
    pub app: Option<String>,
}

impl MarkRead {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = request("mark_read", &[("message_id", &self.message_id), ("topic", &self.topic), ("app", &self.app)]);
        request.insert("account".to_owned(), self.account.as_str().into());
        request
    }
}

/// `fanfare subscriptions`.
#[derive(Debug, Args)]
pub struct Subscriptions {
    /// Only the browsers of this account
    #[arg(long, conflicts_with_all = SEGMENT_FLAGS)]
    pub account: Option<String>,
    #[command(flatten)]
    pub segment: Segment,
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
    /// Show endpoints and keys too: who has them can write to the browsers
    #[arg(long)]
    pub reveal: bool,
    #[command(flatten)]
    pub page: Page,
}

impl Subscriptions {
    /// The request, without the place and the limit.
    pub fn request(&self) -> Result<Map<String, Value>, Failure> {
        let mut request = request("list_subscriptions", &[("account", &self.account), ("app", &self.app)]);
        if let Some(segment) = self.segment.json()? {
            request.insert("segment".to_owned(), segment);
        }
        if self.reveal {
            request.insert("reveal".to_owned(), true.into());
        }
        Ok(request)
    }
}

/// `fanfare count`.
#[derive(Debug, Args)]
pub struct Count {
    /// Every registered subscription, of every app that the socket knows: the same as without a segment
    #[arg(long, conflicts_with_all = SEGMENT_FLAGS, help_heading = "Which subscriptions")]
    pub all: bool,
    #[command(flatten)]
    pub segment: Segment,
    /// Only those that accept this scope
    #[arg(long)]
    pub scope: Option<String>,
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
}

impl Count {
    /// The request.
    pub fn request(&self) -> Result<Map<String, Value>, Failure> {
        let mut request = request("count", &[("scope", &self.scope), ("app", &self.app)]);
        if let Some(segment) = self.segment.json()? {
            request.insert("segment".to_owned(), segment);
        }
        Ok(request)
    }
}

/// `fanfare test`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("whom").required(true).args(["subscription_ids", "account"])))]
pub struct Test {
    /// The subscriptions, by id
    #[arg(value_name = "SUBSCRIPTION_ID")]
    pub subscription_ids: Vec<String>,
    /// All browsers of this account
    #[arg(long)]
    pub account: Option<String>,
    #[command(flatten)]
    pub content: Body,
    /// Wait for the push services' answers, at most this long (up to 60 s), and show them
    #[arg(long, value_name = "TIME", value_parser = seconds, num_args = 0..=1, default_missing_value = "10")]
    pub wait: Option<Number>,
    /// Whose VAPID key signs
    #[arg(long)]
    pub app: Option<String>,
}

impl Test {
    /// The request, without the body.
    pub fn request(&self) -> Map<String, Value> {
        let mut request = request("test", &[("account", &self.account), ("app", &self.app)]);
        if !self.subscription_ids.is_empty() {
            request.insert("subscription_ids".to_owned(), json!(self.subscription_ids));
        }
        if let Some(wait) = &self.wait {
            request.insert("wait".to_owned(), wait.clone().into());
        }
        request
    }
}

/// `fanfare feedback`.
#[derive(Debug, Args)]
pub struct Feedback {
    /// The receipt that came with the message
    pub receipt: String,
    /// What became of the notification
    #[arg(value_name = "WHAT")]
    pub kind: Seen,
}

/// What a page can tell of a notification.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Seen {
    Shown,
    Clicked,
    Dismissed,
}

impl Feedback {
    /// The request.
    pub fn request(&self) -> Value {
        let kind = match self.kind {
            Seen::Shown => "shown",
            Seen::Clicked => "clicked",
            Seen::Dismissed => "dismissed",
        };
        json!({"op": "feedback", "receipt": self.receipt, "type": kind})
    }
}

/// `fanfare erase`.
#[derive(Debug, Args)]
#[command(override_usage = "fanfare erase <--account <NAME>|--subscription <ID>|--endpoint <URL>>")]
#[command(group(ArgGroup::new("whom").required(true).args(["account", "subscription_id", "endpoint"])))]
pub struct Erase {
    /// The account with all its browsers
    #[arg(long)]
    pub account: Option<String>,
    /// One subscription, by its id
    #[arg(long = "subscription", value_name = "SUBSCRIPTION_ID")]
    pub subscription_id: Option<String>,
    /// One subscription, by its endpoint
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
    /// The account in this app only
    #[arg(long, requires = "account")]
    pub app: Option<String>,
}

impl Erase {
    /// The request.
    pub fn request(&self) -> Map<String, Value> {
        request(
            "erase",
            &[
                ("account", &self.account),
                ("subscription_id", &self.subscription_id),
                ("endpoint", &self.endpoint),
                ("app", &self.app),
            ],
        )
    }
}
