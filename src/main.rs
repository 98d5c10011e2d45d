//! Flags, configuration, start, exit code: what each command does stands in `daemon`, `setup`, `client` and `backup`.

// They panic where the output takes no more: `client::output` has `say` and `note`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fanfare::client::output::{Output, note};
use fanfare::config::{self, Config, Problems};
use fanfare::exit::{Exit, Failure};
use fanfare::printable::{self, LogLines};
use fanfare::{backup, client, journal, setup};
use nix::sys::stat::{Mode, umask};
use tracing_subscriber::fmt::MakeWriter;

// Millions of small allocations of all sizes from many threads: with glibc's allocator the resident set keeps growing.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CONFIGURATION: &str = "/etc/fanfare/fanfare.toml";

/// The umask under which the store is written: only its owner reads it.
const PRIVATE: Mode = Mode::S_IRWXG.union(Mode::S_IRWXO);

/// Web Push delivery daemon: durable, fast, one host
#[derive(Debug, Parser)]
#[command(name = "fanfare", version, propagate_version = true, max_term_width = 100, after_help = EXIT_CODES)]
struct Arguments {
    /// The configuration [default: /etc/fanfare/fanfare.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Everywhere")]
    config: Option<PathBuf>,
    /// The daemon's socket [default: `ingest.socket` of the configuration]
    #[arg(long, global = true, value_name = "PATH", help_heading = "Everywhere")]
    socket: Option<PathBuf>,
    /// JSON lines instead of tables, as when standard output is no terminal
    #[arg(long, global = true, help_heading = "Everywhere")]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 64 usage, 69 unavailable or not found, 74 input or output failed, 75 try again later, \
                          77 no permission, 78 configuration";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve,
    /// Make what the daemon needs before its first start: user, directories, key, configuration
    Setup(setup::Setup),
    /// Name every problem of the configuration at once, and show each app's public key
    CheckConfig(setup::check::CheckConfig),
    /// Make a VAPID key pair, or import one
    Keygen(setup::Keygen),
    #[command(flatten)]
    Client(Box<client::arguments::Command>),
    /// Put a backup in place of the store, or hand its subscriptions to the running daemon
    Restore(client::arguments::Restore),
    /// Run daemon and mock push service in a temporary directory, to develop an application against
    Dev,
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help and version are no errors.
        Err(error) if !error.use_stderr() => {
            return error.print().map_or_else(|error| Failure::output(&error).report(), |()| ExitCode::SUCCESS);
        }
        Err(error) => {
            let _unread = write!(io::stderr(), "{}", usage(error, std::env::args_os()));
            return ExitCode::from(Exit::Usage as u8);
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// What is wrong with the arguments. It repeats them, and a script may have been given them by anybody: it is found out once more, with
/// arguments that are only text.
fn usage(error: clap::Error, arguments: impl Iterator<Item = OsString>) -> String {
    let shown = arguments.map(|argument| printable::line(&argument.to_string_lossy()).into_owned());
    let error = Arguments::try_parse_from(shown).err().unwrap_or(error);
    printable::lines(&error.render().to_string()).into_owned()
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config, socket, json, command } = arguments;
    match command {
        Command::Serve => serve(config.as_deref(), socket),
        Command::CheckConfig(arguments) => {
            let data_dir = client::data_dir(config.as_deref().unwrap_or(Path::new(CONFIGURATION)), config.is_some());
            let daemon = arguments.become_daemon(data_dir.ok().as_deref())?;
            let doubts = doubts(config.as_deref());
            let config = load(config.as_deref(), socket).map_err(|failure| daemon.explain(failure))?;
            daemon.check(&config, &doubts, &mut Output::new(json), json)
        }
        Command::Setup(arguments) => setup::setup(&arguments),
        Command::Keygen(arguments) => setup::keygen(&arguments),
        Command::Dev => client::dev::dev(),
        Command::Restore(arguments) if arguments.registry => {
            backup::restore_registry(&named(config.as_deref(), socket)?, &mut Output::new(json), &arguments)
        }
        Command::Restore(arguments) => {
            umask(PRIVATE);
            let data_dir = load(config.as_deref(), socket)?.data_dir;
            // It may tell root where to write.
            doubts(config.as_deref()).iter().for_each(|doubt| note(format_args!("fanfare: {doubt}")));
            backup::restore(&data_dir, &mut Output::new(json), &arguments)
        }
        Command::Client(command) => {
            let data_dir = || client::data_dir(config.as_deref().unwrap_or(Path::new(CONFIGURATION)), config.is_some());
            let backup = |socket: &Path, output: &mut Output, arguments: &client::arguments::Backup| {
                backup::backup(socket, &data_dir, output, arguments)
            };
            client::run(&named(config.as_deref(), socket)?, &backup, json, &command)
        }
    }
}

/// The socket that a client command uses.
fn named(config: Option<&Path>, socket: Option<PathBuf>) -> Result<PathBuf, Failure> {
    client::socket(socket, config.unwrap_or(Path::new(CONFIGURATION)), config.is_some())
}

/// The configuration from `file`, or from where it lies by convention, and the environment. A daemon configured by the environment
/// alone needs no file.
fn load(file: Option<&Path>, socket: Option<PathBuf>) -> Result<Config, Failure> {
    let file = chosen(file);
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = Config::load(file, environment).map_err(|problems| {
        match &problems {
            Problems::Unreadable { error, path } if error.kind() == ErrorKind::PermissionDenied => {
                let remedy = format!("chmod a+r {}", printable::path(path));
                Failure::new(Exit::Permission, format!("the configuration cannot be used:\n{problems}: {remedy}"))
            }
            Problems::Unreadable { error, path } if error.kind() == ErrorKind::NotFound => missing(path),
            // Without a file the environment may say everything; where it says nothing, the file is what is missing.
            Problems::Wrong(wrong) if file.is_none() && wrong.iter().any(|problem| problem.key == "apps") => {
                missing(Path::new(CONFIGURATION))
            }
            _ => Failure::new(Exit::Configuration, format!("the configuration cannot be used:\n{problems}")),
        }
    })?;
    if let Some(socket) = socket {
        config.ingest.socket = socket;
    }
    Ok(config)
}

fn missing(file: &Path) -> Failure {
    let message = format!(
        "there is no configuration {}. `fanfare setup --subject mailto:you@example.com` makes {CONFIGURATION} and what else the daemon \
         needs; `--config FILE` names another",
        printable::path(file)
    );
    Failure::new(Exit::Configuration, message)
}

/// The configuration that was named, or the one where it lies by convention. Where it cannot be told whether there is one, reading it
/// says why.
fn chosen(named: Option<&Path>) -> Option<&Path> {
    let conventional = Path::new(CONFIGURATION);
    named.or_else(|| (!matches!(conventional.try_exists(), Ok(false))).then_some(conventional))
}

/// Who else could change the configuration, a sentence each.
fn doubts(file: Option<&Path>) -> Vec<String> {
    chosen(file).map(|file| config::doubts(file, None)).unwrap_or_default()
}

/// Runs the daemon; at SIGHUP it reads the same file and environment again.
fn serve(file: Option<&Path>, socket: Option<PathBuf>) -> Result<(), Failure> {
    // Before anything is made: nobody but this user reads or writes it. A socket gets its own mode.
    umask(PRIVATE);
    log();
    let config = load(file, socket.clone())?;
    let doubts: BTreeSet<String> = doubts(file).into_iter().chain(config.doubts(None)).collect();
    for warning in config.warnings().into_iter().chain(doubts) {
        tracing::warn!("{warning}");
    }
    let reload = || load(file, socket.clone()).map_err(|failure| failure.message);
    fanfare::daemon::serve(config, reload).map_err(|error| Failure::new(error.exit(), error.to_string()))
}

/// Logs to stderr, from `info` on unless `FANFARE_LOG` says otherwise. The journal has its own clock.
fn log() {
    let filter =
        tracing_subscriber::EnvFilter::try_from_env("FANFARE_LOG").unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    // At `debug` these show the headers of requests, and with them endpoints and tokens. A peer or a name server can cause their
    // warnings, and some of their errors, as often as it likes; we say ourselves, and seldom, what went wrong.
    let filter = ["h2=off", "hyper=off", "rustls=off", "hickory_resolver=off", "hickory_net=off", "hickory_proto=off"]
        .into_iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, tracing_subscriber::EnvFilter::add_directive);
    // Without colours: their escapes could not be told from those in what is logged.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(false)
        .with_writer(Log)
        // It would be told on standard error, with a panic where that takes no more.
        .log_internal_errors(false);
    if !journal::is_stderr() {
        return lines.init();
    }
    lines.without_time().init();
    // Of the default message each line would be an entry.
    std::panic::set_hook(Box::new(|panic| {
        let _unread = writeln!(io::stderr(), "{}{}", journal::ERROR, printable::joined(&panic.to_string()));
    }));
}

/// Where the log goes: to standard error, each event with its priority if that is the journal.
struct Log;

impl<'a> MakeWriter<'a> for Log {
    type Writer = LogLines<std::io::Stderr>;

    fn make_writer(&'a self) -> Self::Writer {
        LogLines { to: std::io::stderr(), prefix: "" }
    }

    fn make_writer_for(&'a self, event: &tracing::Metadata<'_>) -> Self::Writer {
        LogLines { to: std::io::stderr(), prefix: if journal::is_stderr() { journal::prefix(*event.level()) } else { "" } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_argument_is_repeated_as_text_only() {
        let hostile = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\nfanfare: done";
        for arguments in
            [vec!["fanfare", hostile], vec!["fanfare", "status", "A", hostile], vec!["fanfare", "send", "--ttl", hostile]]
        {
            let error = Arguments::try_parse_from(&arguments).expect_err("it is wrong");
            let told = usage(error, arguments.iter().map(OsString::from));
            assert!(!told.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'), "{told:?}");
            assert!(told.contains(r"\u001b]0;owned") && !told.contains("\nfanfare: done"), "{told}");
        }
    }
}
