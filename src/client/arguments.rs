//! The flags of the client commands. Their help is the manual: it names things as the protocol does.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use serde_json::{Map, Number, Value, json};

/// Commands that speak the socket protocol.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand in a push message for one subscription, or for a file of them
    Send(Send),
    /// Show where a message stands
    Status(Status),
    /// End everything of a message, label or app that is not yet in flight
    Cancel(Target),
    /// Hold a message, label or app; its deadline does not move
    Pause(Target),
    /// Let a paused message, label or app go on
    Resume(Resume),
    /// Show what ended and how: the durable outcome log, in order
    Events(Events),
    /// Show counters by day, label, app, service or key
    Stats(Stats),
    /// Show each push service: its lanes, what waits, the last error
    Origins,
    /// Show messages with many recipients, newest first
    List(List),
    /// Ask the daemon how it is
    Ping,
    /// Show the key that pages need for `applicationServerKey`
    VapidPublicKey(VapidPublicKey),
    /// Take no new messages while those at hand are sent, or take them again (operator's socket only)
    Drain(Drain),
}

/// `fanfare send`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("recipients").required(true).args(["to", "subscription"])))]
#[command(group(ArgGroup::new("body_of").args(["payload", "payload_file", "title"])))]
pub struct Send {
    /// Subscriptions as browsers serialise them: one JSON object a line, or a JSON array; `-` reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub to: Option<PathBuf>,
    /// One subscription: {"endpoint":…,"keys":{"p256dh":…,"auth":…}}
    #[arg(long, value_name = "JSON")]
    pub subscription: Option<String>,
    /// The payload, sent as it is
    #[arg(long, value_name = "TEXT")]
    pub payload: Option<String>,
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

/// `fanfare status`.
#[derive(Debug, Args)]
pub struct Status {
    /// The message's id, as `send` told it
    #[arg(value_name = "MESSAGE_ID")]
    pub message_id: String,
    /// Look again every second until every recipient has ended
    #[arg(long)]
    pub watch: bool,
}

/// What `cancel`, `pause` and `resume` concern; exactly one.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("target").required(true).args(["message_id", "label", "app"])))]
pub struct Target {
    /// One message, by its id
    #[arg(value_name = "MESSAGE_ID")]
    pub message_id: Option<String>,
    /// Every message with this label
    #[arg(long)]
    pub label: Option<String>,
    /// Every message of this app
    #[arg(long)]
    pub app: Option<String>,
}

impl Target {
    /// The request of `op` for this target.
    pub fn request(&self, op: &str) -> Map<String, Value> {
        request(op, &[("message_id", &self.message_id), ("label", &self.label), ("app", &self.app)])
    }
}

/// `fanfare resume`.
#[derive(Debug, Args)]
pub struct Resume {
    #[command(flatten)]
    pub target: Target,
    /// Go on with this many deliveries a second at most
    #[arg(long, value_name = "PER_SECOND", value_parser = positive)]
    pub rate: Option<Number>,
}

/// `fanfare events`.
#[derive(Debug, Args)]
pub struct Events {
    /// Where to begin: a cursor, `oldest` or `newest`
    #[arg(long, value_name = "CURSOR", default_value = "oldest")]
    pub after: String,
    /// At most so many; all there are unless told
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    /// Wait for what comes
    #[arg(long, short)]
    pub follow: bool,
    /// Only these types: accepted, gone, refused, expired, cancelled, skipped, unreachable, shown, clicked, dismissed
    #[arg(long, value_name = "TYPE,…", value_delimiter = ',')]
    pub types: Vec<String>,
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
    /// Only of messages with this label
    #[arg(long)]
    pub label: Option<String>,
    /// Only of this message
    #[arg(long = "message", value_name = "MESSAGE_ID")]
    pub message_id: Option<String>,
    /// Only of this account's browsers
    #[arg(long)]
    pub account: Option<String>,
    /// Only of this subscription
    #[arg(long = "subscription", value_name = "SUBSCRIPTION_ID")]
    pub subscription_id: Option<String>,
}

impl Events {
    /// The request for what comes after `cursor`, at most `limit` lines.
    pub fn request(&self, cursor: &str, limit: Option<u64>) -> Value {
        let mut request = request(
            "events",
            &[
                ("app", &self.app),
                ("label", &self.label),
                ("message_id", &self.message_id),
                ("account", &self.account),
                ("subscription_id", &self.subscription_id),
            ],
        );
        request.insert("after".to_owned(), cursor.into());
        if let Some(limit) = limit {
            request.insert("limit".to_owned(), limit.into());
        }
        if self.follow {
            request.insert("follow".to_owned(), true.into());
        }
        if !self.types.is_empty() {
            request.insert("types".to_owned(), json!(self.types));
        }
        Value::Object(request)
    }
}

/// `fanfare stats`.
#[derive(Debug, Args)]
pub struct Stats {
    /// First day (2027-01-31)
    #[arg(long, value_name = "DAY")]
    pub from: Option<String>,
    /// Last day
    #[arg(long, value_name = "DAY")]
    pub to: Option<String>,
    /// What to keep apart: day, label, app, service, key
    #[arg(long, value_name = "WHAT,…", value_delimiter = ',')]
    pub by: Vec<String>,
}

impl Stats {
    /// The request.
    pub fn request(&self) -> Value {
        let mut request = request("stats", &[("from", &self.from), ("to", &self.to)]);
        match self.by.as_slice() {
            [] => {}
            [one] => drop(request.insert("by".to_owned(), one.as_str().into())),
            several => drop(request.insert("by".to_owned(), json!(several))),
        }
        Value::Object(request)
    }
}

/// `fanfare list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only messages in this state: scheduled, sending, paused, done, cancelled
    #[arg(long)]
    pub state: Option<String>,
    /// Only messages with this label
    #[arg(long)]
    pub label: Option<String>,
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000), default_value = "50")]
    pub limit: u64,
    /// Go on behind this place, as the end of the last list told it
    #[arg(long, value_name = "PLACE")]
    pub after: Option<String>,
}

impl List {
    /// The request.
    pub fn request(&self) -> Value {
        let mut request = request("list_messages", &[("state", &self.state), ("label", &self.label), ("after", &self.after)]);
        request.insert("limit".to_owned(), self.limit.into());
        Value::Object(request)
    }
}

/// `fanfare vapid-public-key`.
#[derive(Debug, Args)]
pub struct VapidPublicKey {
    /// Whose key; the socket's only app, or `default`
    #[arg(long)]
    pub app: Option<String>,
}

impl VapidPublicKey {
    /// The request.
    pub fn request(&self) -> Value {
        Value::Object(request("vapid_public_key", &[("app", &self.app)]))
    }
}

/// `fanfare drain`.
#[derive(Debug, Args)]
pub struct Drain {
    /// `on` refuses new messages while the accepted ones go on, `off` takes them again
    pub switch: Switch,
}

/// on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// A request of `op` with those of `members` that were given.
fn request(op: &str, members: &[(&str, &Option<String>)]) -> Map<String, Value> {
    let mut request = Map::new();
    request.insert("op".to_owned(), op.into());
    for (name, value) in members {
        if let Some(value) = value {
            request.insert((*name).to_owned(), value.as_str().into());
        }
    }
    request
}

/// Seconds, or a number with one of the letters s, m, h, d, w behind it.
fn seconds(text: &str) -> Result<Number, String> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1.0),
        Some((at, 'm')) => (&text[..at], 60.0),
        Some((at, 'h')) => (&text[..at], 3_600.0),
        Some((at, 'd')) => (&text[..at], 86_400.0),
        Some((at, 'w')) => (&text[..at], 604_800.0),
        _ => (text, 1.0),
    };
    number(digits, unit)
        .filter(|_| !text.starts_with('-'))
        .ok_or_else(|| "a time is seconds, or like 30m, 12h, 7d, 4w".to_owned())
}

fn positive(text: &str) -> Result<Number, String> {
    number(text, 1.0)
        .filter(|number| number.as_f64().is_some_and(|number| number > 0.0))
        .ok_or_else(|| "a rate is a number above 0".to_owned())
}

/// Whole numbers stay whole: `ttl` of 60 is `60` and not `60.0`.
fn number(digits: &str, unit: f64) -> Option<Number> {
    let value = digits.parse::<f64>().ok()? * unit;
    if value.fract() == 0.0 && value.abs() < 1e15 { Some(Number::from(value as i64)) } else { Number::from_f64(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_units() {
        for (text, expected) in [
            ("0", "0"),
            ("90", "90"),
            ("1.5", "1.5"),
            ("30m", "1800"),
            ("12h", "43200"),
            ("7d", "604800"),
            ("4w", "2419200"),
            ("5s", "5"),
        ] {
            assert_eq!(seconds(text).expect(text).to_string(), expected);
        }
        for text in ["", "m", "-1", "1y", "1 h", "inf", "NaN", "é"] {
            assert!(seconds(text).is_err(), "{text}");
        }
        assert!(positive("0").is_err() && positive("-3").is_err() && positive("2.5").is_ok());
    }
}
