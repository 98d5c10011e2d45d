//! The client commands: each speaks the socket protocol (docs/protocol.md) and shows the result.
//!
//! They know nothing of the daemon's inside and need no right but to use its socket. On a terminal they show tables, to a program
//! JSON lines; whatever fails says what to do about it, and ends with one of the exit codes of [`crate::exit`].

pub mod arguments;
pub mod connection;
pub mod dev;
pub mod export;
pub mod import;
pub mod new_file;
pub mod output;
pub mod pages;
pub mod recipients;
pub mod registry;
pub mod send;
pub mod table;
pub mod watch;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::arguments::{Backup, Command, Switch};
use self::connection::Connection;
use self::output::{Output, note};
use self::table::Columns;
use crate::exit::{Exit, Failure};
use crate::printable;

/// Where the daemon listens unless it is told otherwise.
pub const SOCKET: &str = "/run/fanfare/fanfare.sock";
/// Where its store lies unless it is told otherwise.
const DATA_DIR: &str = "/var/lib/fanfare";

/// The command `backup`, which must know the daemon's data directory too.
pub type BackupCommand<'a> = &'a dyn Fn(&Path, &mut Output, &Backup) -> Result<(), Failure>;

/// Runs one client command against the daemon at `socket`; `backup` is the command of that name.
pub fn run(socket: &Path, backup: BackupCommand<'_>, json: bool, command: &Command) -> Result<(), Failure> {
    let mut output = Output::new(json);
    let output = &mut output;
    match command {
        Command::Send(arguments) => send::send(socket, output, arguments),
        Command::Status(arguments) => watch::status(socket, output, arguments),
        Command::Cancel(target) => change(socket, output, target.request("cancel")),
        Command::Pause(target) => change(socket, output, target.request("pause")),
        Command::Resume(arguments) => {
            let mut request = arguments.target.request("resume");
            if let Some(rate) = &arguments.rate {
                request.insert("rate".to_owned(), Value::Number(rate.clone()));
            }
            change(socket, output, request)
        }
        Command::Events(arguments) => watch::events(socket, output, arguments),
        Command::Stats(arguments) => {
            let reply = Connection::open(socket)?.call(&arguments.request())?;
            output.rows(&reply.elements("stats"), STATS_COLUMNS, "nothing was counted in these days")
        }
        Command::Origins => {
            let reply = Connection::open(socket)?.call(&json!({"op": "origins"}))?;
            output.rows(&reply.elements("origins"), ORIGIN_COLUMNS, "no push service has been sent to yet")
        }
        Command::List(arguments) => registry::list(socket, output, arguments),
        Command::Subscribe(arguments) => registry::subscribe(socket, output, arguments),
        Command::Update(arguments) => ask(socket, output, &arguments.request()?.into()),
        Command::Unsubscribe(arguments) => ask(socket, output, &arguments.request().into()),
        Command::Subscription(arguments) => ask(socket, output, &arguments.request().into()),
        Command::Account(arguments) => ask(socket, output, &arguments.request().into()),
        Command::Presence(arguments) => ask(socket, output, &arguments.request().into()),
        Command::MarkRead(arguments) => ask(socket, output, &arguments.request().into()),
        Command::Subscriptions(arguments) => registry::subscriptions(socket, output, arguments),
        Command::Count(arguments) => ask(socket, output, &arguments.request()?.into()),
        Command::Test(arguments) => registry::test(socket, output, arguments),
        Command::Feedback(arguments) => ask(socket, output, &arguments.request()),
        Command::Erase(arguments) => ask(socket, output, &arguments.request().into()),
        Command::Import(arguments) => import::import(socket, output, arguments),
        Command::Export(arguments) => export::export(socket, output, arguments),
        Command::Backup(arguments) => backup(socket, output, arguments),
        Command::Ping => ping(socket, output),
        Command::Reload => reload(socket, output),
        Command::VapidPublicKey(arguments) => ask(socket, output, &arguments.request()),
        Command::Drain(arguments) => ask(socket, output, &json!({"op": "drain", "on": arguments.switch == Switch::On})),
    }
}

const STATS_COLUMNS: &Columns = &[
    ("day", 0),
    ("label", 0),
    ("app", 0),
    ("service", 0),
    ("key", 0),
    ("recipients", 0),
    ("accepted", 0),
    ("gone", 1),
    ("refused", 1),
    ("expired", 1),
    ("cancelled", 2),
    ("skipped", 2),
    ("rejected", 3),
    ("retries", 3),
];

const ORIGIN_COLUMNS: &Columns = &[
    ("service", 0),
    ("origin", 2),
    ("state", 0),
    ("last_error", 1),
    ("last_error_at", 2),
    ("in_flight", 0),
    ("waiting", 0),
    ("window", 3),
    ("connections", 3),
    ("probe_at", 3),
    ("token_expires", 4),
];

/// What stands first in a reply of these names.
const FIRST: &[&str] = &[
    "version",
    "protocol",
    "state",
    "reasons",
    "pending",
    "uptime",
    "messages",
    "recipients",
    "message_id",
    "subscription_id",
    "app",
    "account",
    "name",
    "public_key",
    "service",
    "enabled",
    "presence",
    "reachable",
    "valid",
    "reason",
    "seen",
    "scopes",
    "tags",
    "attributes",
];

fn ask(socket: &Path, output: &mut Output, request: &Value) -> Result<(), Failure> {
    let reply = Connection::open(socket)?.call(request)?;
    output.reply(&reply, FIRST)
}

/// `cancel`, `pause`, `resume`. Exit 69 if they concern no message: the label may be misspelt.
fn change(socket: &Path, output: &mut Output, request: Map<String, Value>) -> Result<(), Failure> {
    let reply = Connection::open(socket)?.call(&Value::Object(request))?;
    output.reply(&reply, FIRST)?;
    if reply.members.get("messages") == Some(&json!(0)) && !reply.says("more") {
        return Err(Failure::new(Exit::Unavailable, "it concerns no message: nothing that is named so waits"));
    }
    Ok(())
}

/// Exit 75 while no new messages are taken.
fn ping(socket: &Path, output: &mut Output) -> Result<(), Failure> {
    let reply = Connection::open(socket)?.call(&json!({"op": "ping"}))?;
    output.reply(&reply, FIRST)?;
    let why = match reply.text("state") {
        Some("read_only") => {
            "the disk is full, or almost: accepted messages are kept, and new ones are refused until there is space"
        }
        Some("draining") => "it is draining: new messages are refused until `fanfare drain off`",
        _ => return Ok(()),
    };
    Err(Failure::new(Exit::Temporary, why))
}

/// Exit 78 if the configuration is wrong; then the old one stays.
fn reload(socket: &Path, output: &mut Output) -> Result<(), Failure> {
    let mut connection = Connection::open(socket)?;
    connection.send(&json!({"op": "reload"}).to_string())?;
    let reply = connection.receive()?.good().map_err(|refusal| match refusal.code.as_str() {
        "invalid_field" => {
            Failure::new(Exit::Configuration, format!("not reloaded, the old configuration stays: {}", refusal.message))
        }
        _ => refusal.into(),
    })?;
    if output.json() {
        return output.line(&reply.line);
    }
    let restart: Vec<&str> =
        reply.members.get("restart").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    if !restart.is_empty() {
        note(format_args!("changed, and used only after a restart: {}", printable::line(&restart.join(", "))));
    }
    output.line("reloaded")
}

/// The socket a client command uses: `named` by the user, else by the environment or the configuration `file` as the daemon reads
/// them, else [`SOCKET`]. `explicit` says that the user named the file: then it must be readable.
///
/// Only this one key is read. A client command works for whoever may use the socket, and has no business failing over a key file or
/// an app that it cannot see.
pub fn socket(named: Option<PathBuf>, file: &Path, explicit: bool) -> Result<PathBuf, Failure> {
    match named {
        Some(named) => Ok(named),
        None => setting("ingest.socket", "FANFARE__INGEST__SOCKET", SOCKET, file, explicit),
    }
}

/// Where the daemon's store lies, found as the socket is.
pub fn data_dir(file: &Path, explicit: bool) -> Result<PathBuf, Failure> {
    setting("data_dir", "FANFARE__DATA_DIR", DATA_DIR, file, explicit)
}

fn setting(key: &str, variable: &str, default: &str, file: &Path, explicit: bool) -> Result<PathBuf, Failure> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let read = config::Config::builder().add_source(config::File::from(file).format(config::FileFormat::Toml)).build();
    match read {
        Ok(settings) => Ok(settings.get_string(key).unwrap_or_else(|_| default.to_owned()).into()),
        Err(error) if explicit => {
            Err(Failure::new(Exit::Configuration, format!("cannot read the configuration {}: {error}", printable::path(file))))
        }
        Err(_) => Ok(default.into()),
    }
}
