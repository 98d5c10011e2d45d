//! Makes every channel, thread and task, joins them, and stops them in order.
//!
//! ```text
//!            tokio                     threads                                 tokio
//!   sockets -> ingest ==commits==> writer --news--> schedule ==runs==> workers --posts--> deliver
//!                 ^------answers------+ ^                                 |                  |
//!                                       +=========settles=================+    outcome <==answers
//!                                       +=========settles======================+
//! ```
//!
//! Stopping, in order: no line is read any more; what was handed over is answered; the scheduler and the workers stop and give
//! back what they hold; what is in flight has `deliver.drain` to be answered; the writer writes a last checkpoint.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
mod levels;
mod sockets;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use nix::sys::signal::SigSet;
use nix::unistd::{User, geteuid};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use self::levels::{Levels, Shown};
use crate::clock;
use crate::complaint::Complaint;
use crate::config::Config;
use crate::deliver::{self, Pool};
use crate::descriptors::{self, Descriptors};
use crate::encrypt::payload::{Agreement, Sealer};
use crate::encrypt::warm::Warm;
use crate::encrypt::{Shared, Worker};
use crate::endpoint::EndpointPolicy;
use crate::exit::Exit;
use crate::ingest::answer::turns::{Places, Turns};
use crate::ingest::line::Rules;
use crate::ingest::share::reading_threads;
use crate::ingest::{COLLECTING, Door, READS, Reload, Socket, WALKS};
use crate::message::{Encoding, UnixMillis};
use crate::metrics;
use crate::origin::table::Table;
use crate::outcome::Outcome;
use crate::outcome::backoff::Bounds;
use crate::printable;
use crate::protocol::request::Target;
use crate::protocol::time::format_time;
use crate::queue::{self, Bell, Sender};
use crate::receipt::Receipts;
use crate::schedule::{Queues, Schedule};
use crate::scrape;
use crate::services::Origins;
use crate::store::commit::{Op, Writes};
use crate::store::sweep::{self, Sweep};
use crate::store::turns::{self, turns};
use crate::store::writer::{self, News, Settle, Writer};
use crate::store::{self, OpenError, Store, WriteError};
use crate::vapid::key::{KeyFileError, SigningKey};
use crate::vapid::token::{AppKeys, Tokens};

// Neither the page of metrics nor the store's spare files may eat up the descriptors that are nobody's share.
const _: () = assert!(scrape::CONNECTIONS + store::SPARE_FILES < descriptors::RESERVE / 2);

/// A store that was not written for so long starts with every message paused.
const STALE_MILLIS: u64 = 24 * 60 * 60 * 1_000;
/// Tokens that an app has for each origin; its keys share them.
const TOKENS_PER_ORIGIN: usize = 4;
/// Slices that wait for the writer.
const SETTLES: usize = 4_096;
/// A loop that has not come round for so long keeps the watchdog from being fed.
const STUCK: Duration = Duration::from_secs(15);
static STUCK_TOLD: Complaint = Complaint::each_minute();
/// Seconds between two lines of `systemctl status`.
const STATUS_SECONDS: u64 = 5;
/// Days that `stats` looks back.
const STATS_DAYS: u32 = 400;

/// The reason why the daemon does not run (any more), as its exit code says.
#[derive(Debug)]
pub enum ServeError {
    /// 78.
    Config(String),
    /// 77.
    Permission(String),
    /// 75: another instance holds the store.
    Temporary(String),
    /// 74.
    Io(String),
}

impl ServeError {
    /// The exit code for this reason.
    pub fn exit(&self) -> Exit {
        match self {
            ServeError::Config(_) => Exit::Configuration,
            ServeError::Permission(_) => Exit::Permission,
            ServeError::Temporary(_) => Exit::Temporary,
            ServeError::Io(_) => Exit::Io,
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServeError::Config(text) | ServeError::Permission(text) | ServeError::Temporary(text) | ServeError::Io(text) => {
                f.write_str(text)
            }
        }
    }
}

impl From<OpenError> for ServeError {
    fn from(error: OpenError) -> ServeError {
        let text = error.to_string();
        match error {
            OpenError::Locked { .. } => ServeError::Temporary(text),
            OpenError::Newer { .. } => ServeError::Config(text),
            OpenError::Directory { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
                ServeError::Permission(text)
            }
            OpenError::Directory { .. } | OpenError::Database(_) => ServeError::Io(text),
        }
    }
}

/// Reads the keys of all apps. The error names the file.
pub fn read_keys(config: &Config) -> Result<Vec<AppKeys>, ServeError> {
    let mut apps = Vec::new();
    for (name, app) in &config.apps {
        let mut signing = Vec::new();
        for path in &app.vapid_keys {
            signing.push(SigningKey::read(path).map_err(|error| {
                let user = User::from_uid(geteuid()).ok().flatten().map_or(geteuid().to_string(), |user| user.name);
                let remedy = match &error {
                    KeyFileError::Unreadable(io) if io.kind() == std::io::ErrorKind::NotFound => format!(
                        ". `fanfare setup --subject mailto:you@example.com` makes the first key, `fanfare keygen --out {}` any other",
                        path.display()
                    ),
                    _ => error.remedy(path, &user).map(|command| format!(": {command}")).unwrap_or_default(),
                };
                let text = format!("apps.{name}.vapid_keys, {}: {error}{remedy}", path.display());
                if error.is_about_rights() { ServeError::Permission(text) } else { ServeError::Config(text) }
            })?);
        }
        apps.push(AppKeys { app: Arc::from(name.as_str()), subject: Arc::from(app.subject.as_str()), keys: signing });
    }
    Ok(apps)
}

/// Turns of tasks on a thread before it looks for sockets that have become ready. A turn takes a tenth of a millisecond (`ingest`), or
/// some of them where more threads want to run than there are cores; the runtime's own 61 would keep an urgent line waiting for 20 ms.
const TASKS_BETWEEN_LOOKS: u32 = 8;

/// Runs the daemon until SIGTERM or SIGINT. `reload` reads the configuration again at SIGHUP; its error is a text.
pub fn serve(config: Config, reload: impl Fn() -> Result<Config, String>) -> Result<(), ServeError> {
    // Who started us may have blocked signals in itself, which is inherited; SIGTERM must end the daemon whoever started it.
    // Before the first thread, so that all threads have it.
    if let Err(error) = SigSet::all().thread_unblock() {
        tracing::warn!(%error, "signals cannot be unblocked");
    }
    let apps = read_keys(&config)?;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(reading_threads())
        // Each reads for one request; what all of them hold of the answers is bounded with their number.
        .max_blocking_threads(cores.max(16) * 4)
        .event_interval(TASKS_BETWEEN_LOOKS)
        .thread_name("fanfare-sockets")
        .enable_all()
        .build()
        .map_err(|error| ServeError::Io(format!("no runtime: {error}")))?;
    let _in_runtime = runtime.enter();
    let allowed: Vec<String> = config.endpoints.allow_hosts.iter().map(ToString::to_string).collect();
    let descriptors = share_out_descriptors(&config)?;
    let store = Arc::new(Store::open_with(&config.data_dir, &config.store, &allowed, descriptors.store)?);
    if let Some(listen) = config.metrics.listen {
        metrics::listen(listen).map_err(ServeError::Io)?;
    }
    let daemon = Daemon::start(&config, apps, store, &runtime, cores, descriptors)?;
    runtime.block_on(daemon.run(config, reload))
}

fn share_out_descriptors(config: &Config) -> Result<Descriptors, ServeError> {
    let pool = config.deliver.origins.saturating_mul(config.deliver.connections_per_origin);
    Descriptors::share_out(pool, config.ingest.connections, config.sockets.len() + 1).map_err(|limit| {
        let text = format!(
            "the process may have {limit} open files, which is too few: raise LimitNOFILE= in fanfare.service, or `ulimit -Hn`"
        );
        ServeError::Config(text)
    })
}

/// One beat a loop: the time of its last turn, in milliseconds since the start.
#[derive(Clone)]
struct Beats {
    started: Instant,
    loops: Arc<std::sync::Mutex<Vec<Beat>>>,
}

/// A loop's name and the time of its last turn.
type Beat = (&'static str, Arc<AtomicU64>);

impl Beats {
    fn new() -> Beats {
        Beats { started: Instant::now(), loops: Arc::default() }
    }

    fn beat(&self, name: &'static str) -> impl Fn() + Send + 'static {
        let (started, last) = (self.started, Arc::new(AtomicU64::new(0)));
        crate::store::live::lock(&self.loops).push((name, last.clone()));
        let now = move || u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        last.store(now(), Ordering::Relaxed);
        move || last.store(now(), Ordering::Relaxed)
    }

    /// The first loop that has not come round in time.
    fn stuck(&self) -> Option<&'static str> {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let limit = STUCK.as_millis() as u64;
        let loops = crate::store::live::lock(&self.loops);
        loops.iter().find(|(_, last)| now.saturating_sub(last.load(Ordering::Relaxed)) > limit).map(|(name, _)| *name)
    }
}

/// Everything that runs.
struct Daemon {
    store: Arc<Store>,
    tokens: Arc<Tokens>,
    pool: Pool,
    origins: Arc<Table>,
    warm: Arc<Warm>,
    beats: Beats,
    /// Stops the scheduler, the workers and the sweep.
    stop: Arc<AtomicBool>,
    /// Stops the outcome thread, once everything is answered.
    stop_outcome: Arc<AtomicBool>,
    /// Stops reading lines.
    stop_lines: watch::Sender<bool>,
    settles: Sender<Settle>,
    commits: turns::Turns,
    writer: JoinHandle<Result<(), WriteError>>,
    workers: Vec<JoinHandle<()>>,
    outcome: JoinHandle<()>,
    sockets: Vec<Arc<Socket>>,
    socket_paths: Vec<PathBuf>,
    door: Arc<Door>,
    /// Those who ask for a reload, and wait for its answer.
    reloads: mpsc::Receiver<Reload>,
    /// Told when the writer has ended, which it does of itself only if it is broken.
    writer_ended: oneshot::Receiver<()>,
}

impl Daemon {
    fn start(
        config: &Config,
        apps: Vec<AppKeys>,
        store: Arc<Store>,
        runtime: &tokio::runtime::Runtime,
        cores: usize,
        descriptors: Descriptors,
    ) -> Result<Daemon, ServeError> {
        let beats = Beats::new();
        let stop = Arc::new(AtomicBool::new(false));
        let stop_outcome = Arc::new(AtomicBool::new(false));
        let closed = |_| ServeError::Io("the store cannot be read".to_owned());

        let first_keys: HashMap<Arc<str>, _> =
            apps.iter().filter_map(|app| Some((app.app.clone(), app.keys.first()?.id()))).collect();
        let tokens = Arc::new(Tokens::new(apps, config.deliver.origins * TOKENS_PER_ORIGIN));

        let (settles, settles_out) = queue::bounded::<Settle>(SETTLES);
        let (commits, commits_out) = turns();
        let (cancelled, cancelled_out) = bounded::<()>(1);
        let wake = Bell::default();
        let news = Arc::new(News::new(wake.clone()));
        let settings = writer::Settings {
            checkpoint_interval: config.store.checkpoint_interval,
            max_pending: config.messages.max_pending,
            max_open: config.messages.max_open,
            log: config.events.log.iter().copied().collect::<HashSet<_>>(),
            first_keys,
            apps: Arc::new(config.apps.keys().map(|name| Arc::from(name.as_str())).collect()),
            browsers_per_account: config.registry.browsers_per_account as usize,
            undo: config.registry.undo.as_millis() as u64,
            grace: config.presence.grace.as_millis() as u64,
        };
        let the_writer =
            Writer::open(store.clone(), settings, commits_out, settles_out, news.clone(), cancelled).map_err(closed)?;
        let (ended, writer_ended) = oneshot::channel();
        let beat = beats.beat("writer");
        let writer = spawn("writer", move || {
            let result = the_writer.run(beat);
            // The daemon has ended first: then nobody wants to know.
            let _unheard = ended.send(());
            result
        })?;
        pause_if_old(&store, config, &commits)?;

        // How many wait for an answer is bounded by the windows of `origin::table`.
        let (answers, answers_out) = queue::unbounded();
        let settings = deliver::Settings::new(&config.deliver, &config.endpoints, descriptors.pool);
        let pool =
            Pool::start(settings, runtime.handle().clone(), answers).map_err(|error| ServeError::Config(error.to_string()))?;
        let capacity = pool.clone();
        let origins = Arc::new(Table::new(config.deliver.origins, move |origin| capacity.capacity(origin)));

        // Two runs a worker and rank: at 60 us a message, by aws-lc-rs, that is some 15 ms of work.
        let threads = if config.encrypt.threads == 0 { cores } else { config.encrypt.threads };
        let (high, high_out) = bounded(threads * 2);
        let (normal, normal_out) = bounded(threads * 2);
        let warm = Arc::new(Warm::new(config.encrypt.warm_memory << 20));
        let to_pool = pool.clone();
        let shared = Arc::new(Shared {
            store: store.clone(),
            origins: origins.clone(),
            tokens: tokens.clone(),
            post: move |sealed| to_pool.post(sealed),
            settles: settles.clone(),
            wake: wake.clone(),
            high: high_out,
            normal: normal_out,
            padding: config.encrypt.padding,
            receipts: Receipts::new(&store.keyed_hash(b"receipts")),
            warm: warm.clone(),
            stop: stop.clone(),
        });
        let agreement = Agreement::fastest();
        tracing::info!(threads, key_agreement = %agreement, "sealing");
        let mut workers = Vec::new();
        for _ in 0..threads {
            let worker = Worker::new(shared.clone(), Sealer::new(agreement), beats.beat("worker"));
            workers.push(spawn("worker", move || worker.run())?);
        }
        let retry = Bounds::new(config.retry.min.as_millis() as u64, config.retry.max.as_millis() as u64)
            .ok_or_else(|| ServeError::Config("retry.min must be above 0 and at most retry.max".to_owned()))?;
        let the_outcome = Outcome {
            store: store.clone(),
            answers: answers_out,
            settles: settles.clone(),
            origins: origins.clone(),
            tokens: tokens.clone(),
            wake: wake.clone(),
            retry,
            padding: config.encrypt.padding > 0,
            stop: stop_outcome.clone(),
            complaints: Default::default(),
            counted: Default::default(),
        };
        let beat = beats.beat("outcome");
        let outcome = spawn("outcome", move || the_outcome.run(beat))?;

        let schedule =
            Schedule::new(store.clone(), news, origins.clone(), Queues { high, normal }, settles.clone()).map_err(closed)?;
        let (beat, stopped) = (beats.beat("schedule"), stop.clone());
        workers.push(spawn("schedule", move || run_schedule(schedule, &wake, &stopped, beat))?);

        let sweep = Sweep::new(
            store.clone(),
            sweep::Settings {
                retention: config.messages.retention,
                events_retention: config.events.retention,
                events_max: config.events.max_mb << 20,
                apps: config.apps.keys().map(|name| Arc::from(name.as_str())).collect::<Vec<_>>().into(),
                stats_keep_days: STATS_DAYS,
                min_free_percent: config.store.min_free_percent,
            },
            settles.clone(),
            cancelled_out,
            stop.clone(),
        );
        let beat = beats.beat("sweep");
        workers.push(spawn("sweep", move || sweep.run(beat))?);
        let (renewing, known, stopped, beat) = (tokens.clone(), store.clone(), stop.clone(), beats.beat("tokens"));
        workers.push(spawn("tokens", move || {
            make_tokens(&renewing, &known);
            let mut renewed: Option<Instant> = None;
            while !stopped.load(Ordering::Relaxed) {
                beat();
                if renewed.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                    renewing.renew_due(clock::now());
                    renewed = Some(Instant::now());
                }
                thread::sleep(Duration::from_millis(200));
            }
        })?);

        let (stop_lines, stop_reading) = watch::channel(false);
        let shown = Shown { store: store.clone(), origins: origins.clone(), pool: pool.clone(), tokens: tokens.clone() };
        let (ask_reload, reloads) = mpsc::channel(1);
        let door = Arc::new(Door {
            store: store.clone(),
            tokens: tokens.clone(),
            commits: commits.clone(),
            walks: Turns::new(WALKS),
            collecting: Places::new(COLLECTING),
            reads: Turns::new(READS),
            line_limit: config.ingest.line_limit,
            ttl0_patience: config.messages.ttl0_patience,
            receipts: Receipts::new(&store.keyed_hash(b"receipts")),
            origins: Box::new(move |apps| shown.origins_json(apps)),
            reloads: ask_reload,
            started: Instant::now(),
            open: AtomicUsize::new(0),
            connected: AtomicU64::new(0),
            stop: stop_reading,
        });
        let mut daemon = Daemon {
            store,
            tokens,
            pool,
            origins,
            warm,
            beats,
            stop,
            stop_outcome,
            stop_lines,
            settles,
            commits,
            writer,
            workers,
            outcome,
            sockets: Vec::new(),
            socket_paths: Vec::new(),
            door,
            reloads,
            writer_ended,
        };
        daemon.open_sockets(config, descriptors.connections)?;
        Ok(daemon)
    }

    async fn run(mut self, config: Config, reload: impl Fn() -> Result<Config, String>) -> Result<(), ServeError> {
        let signals = || -> std::io::Result<_> {
            Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?))
        };
        let (mut terminate, mut interrupt, mut hangup) =
            signals().map_err(|error| ServeError::Io(format!("no signal handlers: {error}")))?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            pending = self.store.pending.load(Ordering::Relaxed),
            "ready: lines are taken"
        );
        notify(&[NotifyState::Ready]);
        let watchdog = sd_notify::watchdog_enabled();
        let mut every = tokio::time::interval(Duration::from_secs(1));
        let mut turns = 0u64;
        let mut answered = 0;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    // What comes of it is in the log.
                    let _logged = self.reload(&config, &reload);
                }
                Some(reply) = self.reloads.recv() => {
                    // Who asked may have gone.
                    let _gone = reply.send(self.reload(&config, &reload));
                }
                _ = &mut self.writer_ended => return Err(self.broken()),
                _ = every.tick() => {
                    turns += 1;
                    match self.beats.stuck() {
                        None if watchdog.is_some() => notify(&[NotifyState::Watchdog]),
                        None => {}
                        Some(name) => {
                            if let Some(left_out) = STUCK_TOLD.tell() {
                                tracing::error!(name, left_out, "a loop has not come round for 15 s");
                            }
                        }
                    }
                    let levels = Levels { store: self.store.clone(), origins: self.origins.clone(), pool: self.pool.clone(), tokens: self.tokens.clone() };
                    let warm = self.warm.clone();
                    let mut since = None;
                    if turns % STATUS_SECONDS == 1 {
                        let all = self.origins.answers();
                        since = Some(all - std::mem::replace(&mut answered, all));
                    }
                    tokio::task::spawn_blocking(move || {
                        warm.look(&levels.store, clock::now());
                        metrics::warm(&warm.usage());
                        levels.set(turns % 10 == 1);
                        if let Some(since) = since {
                            notify(&[NotifyState::Status(&levels.status(since as f64 / STATUS_SECONDS as f64))]);
                        }
                    });
                    for socket in &self.sockets {
                        socket.show();
                    }
                }
            }
        }
        self.shut(&config).await
    }

    /// The writer ended by itself.
    fn broken(self) -> ServeError {
        match self.writer.join() {
            Ok(Err(error)) => ServeError::Io(format!("the store cannot be written: {error}")),
            _ => ServeError::Io("the writer has ended".to_owned()),
        }
    }

    /// Reads the configuration again, and applies what can be applied while it runs. Gives the keys that were changed since the start
    /// and are used only after a restart; the error says what is wrong: then nothing has changed.
    fn reload(&self, old: &Config, read: impl Fn() -> Result<Config, String>) -> Result<Vec<String>, String> {
        notify_reloading();
        let applied = read().and_then(|mut config| {
            let apps = read_keys(&config).map_err(|error| error.to_string())?;
            let restart = old.wants_restart(&config);
            // What is told of these bounds is what holds.
            config.messages.max_pending = old.messages.max_pending;
            self.pool.reload_roots().map_err(|error| error.to_string())?;
            self.tokens.reload(apps);
            self.warm.set_bound(config.encrypt.warm_memory << 20);
            for socket in &self.sockets {
                let apps: Vec<String> = socket.rules.load().apps.keys().map(|app| app.to_string()).collect();
                socket.rules.store(Arc::new(rules(&config, &apps, &self.tokens, &self.store)));
            }
            Ok(restart)
        });
        match &applied {
            Ok(restart) => {
                tracing::info!(
                    "reloaded: keys, subjects, scopes, certificates, ttl and at bounds, the endpoint policy, encrypt.warm_memory"
                );
                if !restart.is_empty() {
                    tracing::warn!("changed, and used only after a restart: {}", restart.join(", "));
                }
            }
            // One entry, whatever the number of problems.
            Err(error) => tracing::error!("not reloaded, the old configuration stays: {}", printable::joined(error)),
        }
        notify(&[NotifyState::Ready]);
        applied
    }

    async fn shut(self, config: &Config) -> Result<(), ServeError> {
        notify(&[NotifyState::Stopping]);
        tracing::info!("stopping: no lines are taken any more");
        let _nobody_reads = self.stop_lines.send(true);
        // What was handed over is answered, for a while.
        let until = Instant::now() + Duration::from_secs(5);
        while self.door.open.load(Ordering::Relaxed) > 0 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            join(worker).await;
        }
        self.pool.stop(config.deliver.drain).await;
        self.stop_outcome.store(true, Ordering::Relaxed);
        join(self.outcome).await;
        let _ended = self.settles.send(Settle::Stop);
        drop(self.commits);
        let written = tokio::task::spawn_blocking(move || self.writer.join()).await;
        let pending = self.store.pending.load(Ordering::Relaxed);
        self.store.close();
        for path in &self.socket_paths {
            // Somebody else may have removed it.
            let _gone = std::fs::remove_file(path);
        }
        match written {
            Ok(Ok(Ok(()))) => {
                tracing::info!(pending, "stopped; what is pending is on disk");
                Ok(())
            }
            Ok(Ok(Err(error))) => Err(ServeError::Io(format!("the last checkpoint could not be written: {error}"))),
            _ => Err(ServeError::Io("the writer has ended in a panic".to_owned())),
        }
    }
}

async fn join<T: Send + 'static>(thread: JoinHandle<T>) {
    // A thread that panicked has brought the process down already.
    let _ended = tokio::task::spawn_blocking(move || thread.join()).await;
}

/// With the time, which Type=notify-reload asks for and Type=notify ignores.
fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(_) => notify(&[NotifyState::Reloading]),
    }
}

/// Outside systemd there is nobody to tell.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// A thread whose panic is the end of the process: with a loop missing nothing that is promised would hold.
fn spawn<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, ServeError> {
    let run = move || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
            // The panic's own message is on stderr already.
            std::process::abort()
        })
    };
    thread::Builder::new()
        .name(format!("fanfare-{name}"))
        .spawn(run)
        .map_err(|error| ServeError::Io(format!("no thread: {error}")))
}

fn run_schedule(mut schedule: Schedule, wake: &Bell, stop: &AtomicBool, progress: impl Fn()) {
    while !stop.load(Ordering::Relaxed) {
        progress();
        let now = clock::now();
        let patience = match schedule.step(now) {
            Some(next) => Duration::from_millis(next.since(now).clamp(1, 500)),
            None => Duration::from_millis(500),
        };
        // Woken or not, the next step finds out what there is to do.
        let _woken = queue::listen(&[wake], patience);
    }
}

/// Makes the tokens of the first keys for the origins that are known already, ahead of need.
fn make_tokens(tokens: &Tokens, store: &Store) {
    let now = clock::now();
    for (service, _) in store.services.all() {
        if let Some(Origins::One(origin)) = store.services.origins(service) {
            for app in tokens.apps() {
                // Kept in the table; who needs it finds it there.
                let _made = tokens.authorization(&app, 0, &origin, Encoding::Aes128gcm, now);
            }
        }
    }
}

/// A store that lay still for a day, or comes from a backup, starts with everything paused: nobody wants last night's newsletter
/// twice.
fn pause_if_old(store: &Store, config: &Config, commits: &turns::Turns) -> Result<(), ServeError> {
    let backup = store.from_backup();
    let stale = store.last_written.filter(|last| clock::now().since(*last) >= STALE_MILLIS);
    // A campaign that is not walked to its end may have nothing pending.
    let nothing_waits = store.pending.load(Ordering::Relaxed) == 0 && store.lists.all().is_empty();
    if backup.is_none() && (stale.is_none() || nothing_waits) {
        return Ok(());
    }
    let apps: Arc<Vec<Arc<str>>> = Arc::new(config.apps.keys().map(|name| Arc::from(name.as_str())).collect());
    let ops = apps.iter().map(|app| Op::Pause { target: Target::App(app.clone()), apps: apps.clone() }).collect();
    let (reply, answered) = oneshot::channel();
    let refused = |_| ServeError::Io("the writer has ended".to_owned());
    commits.send(Writes::new(ops, reply)).map_err(|_| refused(()))?;
    answered.blocking_recv().map_err(|_| refused(()))?;
    if let Some(backup) = backup {
        store.forget_backup().map_err(|error| ServeError::Io(format!("the store's note of its backup: {error}")))?;
        tracing::warn!(
            backup = backup.name,
            made = format_time(UnixMillis(backup.made)),
            "this store comes from a backup: every app is paused; `fanfare resume --app NAME` lets it go"
        );
    } else if let Some(last) = stale {
        tracing::warn!(
            last_written = format_time(last),
            "this store was last written more than a day ago: every app is paused; `fanfare resume --app NAME` lets it go"
        );
    }
    Ok(())
}

fn rules(config: &Config, apps: &[String], tokens: &Tokens, store: &Store) -> Rules {
    let scopes = apps
        .iter()
        .filter_map(|name| Some((Arc::from(name.as_str()), &config.apps.get(name)?.scopes)))
        .filter(|(_, scopes)| !scopes.is_empty())
        .map(|(name, scopes)| (name, scopes.iter().map(|scope| Arc::from(scope.as_str())).collect()))
        .collect();
    let apps: BTreeMap<Arc<str>, _> = apps.iter().map(|name| (Arc::from(name.as_str()), tokens.keys(name))).collect();
    let allowed = config
        .endpoints
        .allow_hosts
        .iter()
        .filter_map(|host| Some((host.clone(), store.service_of(&host.to_string())?)))
        .collect();
    let policy = Arc::new(EndpointPolicy::new(config.endpoints.policy, allowed));
    Rules::new(apps, policy, config.messages.clone()).with_scopes(scopes)
}
