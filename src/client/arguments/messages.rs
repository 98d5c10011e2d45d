//! Flags of the commands about messages: what became of them, what holds or ends them.

use clap::{ArgGroup, Args, ValueEnum};
use serde_json::{Map, Number, Value, json};

use super::{positive, request};

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
    /// Where to begin: `oldest`, `newest`, or behind a cursor [default: `oldest`; with --follow ten events before the end]
    #[arg(long, visible_alias = "from", value_name = "oldest|newest|CURSOR")]
    pub after: Option<String>,
    /// Begin so many events before the end (1,000 at most)
    #[arg(long, value_name = "N", conflicts_with = "after", value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub last: Option<u64>,
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

/// Events before the end with which `--follow` begins, as `tail -f` does with lines.
const FOLLOWED_FROM: u64 = 10;

impl Events {
    /// The request for what comes behind `cursor`, at most `limit` lines. None: from where the flags say.
    pub fn request(&self, cursor: Option<&str>, limit: Option<u64>) -> Value {
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
        match (cursor.or(self.after.as_deref()), self.last) {
            (Some(cursor), _) => drop(request.insert("after".to_owned(), cursor.into())),
            (None, Some(last)) => drop(request.insert("last".to_owned(), last.into())),
            (None, None) if self.follow => drop(request.insert("last".to_owned(), FOLLOWED_FROM.into())),
            (None, None) => drop(request.insert("after".to_owned(), "oldest".into())),
        }
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
    #[command(flatten)]
    pub page: Page,
}

impl List {
    /// The request, without the place and the limit.
    pub fn request(&self) -> Map<String, Value> {
        request("list_messages", &[("state", &self.state), ("label", &self.label)])
    }
}

/// Which part of a long list.
#[derive(Debug, Args)]
pub struct Page {
    /// At most so many
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), default_value = "50")]
    pub limit: u64,
    /// All there are
    #[arg(long, conflicts_with = "limit")]
    pub all: bool,
    /// Go on behind this place, as the end of the last list told it
    #[arg(long, value_name = "PLACE")]
    pub after: Option<String>,
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
