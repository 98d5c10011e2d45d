//! Flags, configuration, start, exit code: what each command does stands in `daemon`, `setup` and `client`.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use fanfare::client::output::Output;
use fanfare::config::{Config, Problems};
use fanfare::exit::{Exit, Failure};
use fanfare::{client, setup};

// Millions of small allocations of all sizes from many threads: with glibc's allocator the resident set keeps growing.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const CONFIGURATION: &str = "/etc/fanfare/fanfare.toml";

/// Web Push delivery daemon: durable, fast, one host
#[derive(Debug, Parser)]
#[command(name = "fanfare", version, propagate_version = true, after_help = EXIT_CODES)]
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
    CheckConfig,
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
        Err(error) => {
            // Help and version are no errors; where their reader has gone, nobody is there to be told.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS };
        }
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: Arguments) -> Result<(), Failure> {
    let Arguments { config, socket, json, command } = arguments;
    match command {
        Command::Serve => serve(config.as_deref(), socket),
        Command::CheckConfig => setup::check(&load(config.as_deref(), socket)?, json),
        Command::Setup(arguments) => setup::setup(&arguments),
        Command::Keygen(arguments) => setup::keygen(&arguments),
        Command::Dev => client::dev::dev(),
        Command::Restore(arguments) if arguments.registry => {
            client::backup::restore_registry(&named(config.as_deref(), socket)?, &mut Output::new(json), &arguments)
        }
        Command::Restore(arguments) => {
            let data_dir = load(config.as_deref(), socket)?.data_dir;
            client::backup::restore(&data_dir, &mut Output::new(json), &arguments)
        }
        Command::Client(command) => client::run(&named(config.as_deref(), socket)?, json, &command),
    }
}

/// The socket that a client command uses.
fn named(config: Option<&Path>, socket: Option<PathBuf>) -> Result<PathBuf, Failure> {
    client::socket(socket, config.unwrap_or(Path::new(CONFIGURATION)), config.is_some())
}

/// The configuration from `file`, or from where it lies by convention, and the environment. A daemon configured by the environment
/// alone needs no file.
fn load(file: Option<&Path>, socket: Option<PathBuf>) -> Result<Config, Failure> {
    // Where it cannot be told whether there is one, reading it says why.
    let conventional = Path::new(CONFIGURATION);
    let file = file.or_else(|| (!matches!(conventional.try_exists(), Ok(false))).then_some(conventional));
    let environment = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut config = Config::load(file, environment).map_err(|problems| {
        let exit = match &problems {
            Problems::Unreadable { error, .. } if error.kind() == ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Configuration,
        };
        Failure::new(exit, format!("the configuration cannot be used:\n{problems}"))
    })?;
    if let Some(socket) = socket {
        config.ingest.socket = socket;
    }
    Ok(config)
}

/// Runs the daemon; at SIGHUP it reads the same file and environment again.
fn serve(file: Option<&Path>, socket: Option<PathBuf>) -> Result<(), Failure> {
    let config = load(file, socket.clone())?;
    log();
    for warning in config.warnings() {
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
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    if std::env::var_os("JOURNAL_STREAM").is_some() { lines.without_time().init() } else { lines.init() }
}
