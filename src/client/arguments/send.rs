//! Flags of `fanfare send`: whom, what, and how.

use std::path::PathBuf;

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Number, Value, json};

use super::registry::Segment;
use super::{positive, seconds};

/// `fanfare send`. To exactly one of: a file, a subscription, accounts, ids, a segment, all; checked by [`Send::kinds`].
#[derive(Debug, Args)]
#[command(override_usage = "fanfare send [OPTIONS] <--to <FILE>|--to-account <ACCOUNT>|--all|…>")]
#[command(group(ArgGroup::new("recipients").required(true).multiple(true).args([
    "to", "subscription", "to_account", "to_id", "all", "segment", "tag", "tag_any", "tag_none", "attribute",
])))]
pub struct Send {
    /// Subscriptions as browsers serialise them: one JSON object a line, or a JSON array; `-` reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub to: Option<PathBuf>,
    /// One subscription: {"endpoint":…,"keys":{"p256dh":…,"auth":…}}
    #[arg(long, value_name = "JSON")]
    pub subscription: Option<String>,
    /// The browsers of this account; may be repeated
    #[arg(long, value_name = "ACCOUNT")]
    pub to_account: Vec<String>,
    /// Of each account all browsers, or the one that was seen last
    #[arg(long, requires = "to_account")]
    pub devices: Option<Devices>,
    /// This registered subscription; may be repeated
    #[arg(long, value_name = "SUBSCRIPTION_ID")]
    pub to_id: Vec<String>,
    /// Every registered subscription
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub segment: Segment,
    #[command(flatten)]
    pub content: Body,
    /// Fill {{name}} and {{name|default}} in its text from each subscription's attributes
    #[arg(long)]
    pub template: bool,
    /// Put a receipt into it, which the page hands back as `feedback`
    #[arg(long)]
    pub receipts: bool,
    /// Reaches only registered browsers that accept this scope
    #[arg(long)]
    pub scope: Option<String>,
    /// Waits while the account is online
    #[arg(long, requires = "to_account")]
    pub when: Option<When>,
    /// Tell of accounts that were not reached within this time by an event `unreachable`: seconds, or 5m, 2h
    #[arg(long, value_name = "TIME", value_parser = seconds, requires = "to_account")]
    pub fallback: Option<Number>,
    /// How long the message is worth delivering: seconds, or 30m, 12h, 7d; 0 means now or never
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub ttl: Option<Number>,
    /// How much it matters (RFC 8030 section 5.3); normal unless told
    #[arg(long)]
    pub urgency: Option<Urgency>,
    /// Replaces what is still undelivered under the same topic: 1 to 32 characters of base64url
    #[arg(long)]
    pub topic: Option<String>,
    /// Whose VAPID key signs
    #[arg(long)]
    pub app: Option<String>,
    /// For statistics, and to pause or cancel by
    #[arg(long)]
    pub label: Option<String>,
    /// The application's own reference, told in events as message_ref
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,
    /// Not before this time (RFC 3339: 2027-01-31T18:00:00Z)
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
    /// Take it in, but wait for `fanfare resume`
    #[arg(long)]
    pub paused: bool,
    /// Makes the command safe to repeat: what was taken under this key is not taken twice, and a file goes on where it stopped
    #[arg(long, value_name = "KEY")]
    pub idempotency_key: Option<String>,
    /// Deliveries a second at most
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    pub rate: Option<Number>,
    /// Spread the deliveries evenly over this time: seconds, or 30m, 12h
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    pub spread: Option<Number>,
}

impl Send {
    /// Which kinds of recipients were named: one of them is right.
    pub fn kinds(&self) -> usize {
        let named = [
            self.to.is_some(),
            self.subscription.is_some(),
            !self.to_account.is_empty(),
            !self.to_id.is_empty(),
            self.all,
            self.segment.is_given(),
        ];
        named.into_iter().filter(|named| *named).count()
    }

    /// The options of the protocol's `send`, without `op`, `to` and the body.
    pub fn options(&self) -> Map<String, Value> {
        let text = |value: &Option<String>| value.clone().map(Value::String);
        let number = |value: &Option<Number>| value.clone().map(Value::Number);
        [
            ("ttl", number(&self.ttl)),
            ("urgency", self.urgency.map(|urgency| Value::from(urgency.as_str()))),
            ("topic", text(&self.topic)),
            ("app", text(&self.app)),
            ("label", text(&self.label)),
            ("ref", text(&self.reference)),
            ("at", text(&self.at)),
            ("paused", self.paused.then_some(Value::Bool(true))),
            ("idempotency_key", text(&self.idempotency_key)),
            ("rate", number(&self.rate)),
            ("spread", number(&self.spread)),
            ("scope", text(&self.scope)),
            ("when", self.when.map(|When::Offline| Value::from("offline"))),
            ("receipts", self.receipts.then_some(Value::Bool(true))),
            ("template", self.template.then_some(Value::Bool(true))),
            ("fallback", self.fallback.as_ref().map(|after| json!({ "after": after }))),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
    }
}

/// The words of RFC 8030 section 5.3.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Urgency {
    VeryLow,
    Low,
    Normal,
    High,
}

impl Urgency {
    fn as_str(self) -> &'static str {
        match self {
            Urgency::VeryLow => "very-low",
            Urgency::Low => "low",
            Urgency::Normal => "normal",
            Urgency::High => "high",
        }
    }
}

/// Which browsers of an account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Devices {
    All,
    Latest,
}

/// The only word of `when`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum When {
    Offline,
}

/// What is in a message; at most one kind of body.
#[derive(Debug, Default, Args)]
#[command(group(ArgGroup::new("body_of").args(["payload", "payload_json", "payload_file", "title"])))]
pub struct Body {
    /// The payload, sent as it is
    #[arg(long, value_name = "TEXT")]
    pub payload: Option<String>,
    /// The payload as a JSON object or array, its members in this order
    #[arg(long, value_name = "JSON")]
    pub payload_json: Option<String>,
    /// A file with the payload, sent as it is; `-` reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub payload_file: Option<PathBuf>,
    /// A notification (Declarative Web Push) with this title; needs --navigate
    #[arg(long, requires = "navigate")]
    pub title: Option<String>,
    /// The absolute URL that a click on the notification opens
    #[arg(long, value_name = "URL", requires = "title")]
    pub navigate: Option<String>,
    /// The notification's text
    #[arg(long, value_name = "TEXT", requires = "title")]
    pub body: Option<String>,
}
