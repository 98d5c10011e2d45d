//! The flags of the client commands. Their help is the manual: it names things as the protocol does.

pub mod bulk;
pub mod messages;
pub mod registry;
pub mod send;

use clap::Subcommand;
use serde_json::{Map, Number, Value};

pub use self::bulk::{Backup, Export, Import, Restore};
pub use self::messages::{Drain, Events, List, Page, Resume, Stats, Status, Switch, Target, VapidPublicKey};
pub use self::registry::{
    Account, Count, Erase, Feedback, MarkRead, Presence, Segment, Subscribe, Subscriptions, Test, Unsubscribe, Update, Which,
};
pub use self::send::{Body, Devices, Send};

/// Commands that speak the socket protocol.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand in a push message: for subscriptions, for accounts, or for a segment of the registry
    Send(Box<Send>),
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
    /// Keep a browser's subscription, or bring what is kept of it up to date
    Subscribe(Subscribe),
    /// Change what is kept of a subscription
    Update(Update),
    /// Forget a subscription
    Unsubscribe(Unsubscribe),
    /// Show one subscription
    Subscription(Which),
    /// Show an account, or switch it on or off
    Account(Account),
    /// Say that an account is looking at the application, or no longer
    Presence(Presence),
    /// Withdraw what an account has read elsewhere
    MarkRead(MarkRead),
    /// Show subscriptions: all, of an account, or of a segment
    Subscriptions(Subscriptions),
    /// Count subscriptions that can be reached: what is switched off is not counted
    Count(Count),
    /// Send one message to a few browsers at once and see what each push service says
    Test(Test),
    /// Hand back a receipt: the notification was shown, clicked or dismissed
    Feedback(Feedback),
    /// Forget an account or a subscription for good: cancels what waits, blanks its name in the event log
    Erase(Erase),
    /// Take over subscriptions from a file, as other senders and `export` write them
    Import(Import),
    /// Write all subscriptions, or a segment, to a file that `import` reads
    Export(Export),
    /// Copy the store while the daemon runs (operator's socket only)
    Backup(Backup),
    /// Ask the daemon how it is; ends with 75 while it takes no new messages
    Ping,
    /// Have the daemon read its configuration again, and say what came of it (operator's socket only)
    Reload,
    /// Show the key that pages need for `applicationServerKey`
    VapidPublicKey(VapidPublicKey),
    /// Take no new messages while those at hand are sent, or take them again (operator's socket only)
    Drain(Drain),
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
