//! Connections to push services, by origin.
//!
//! [`Pool::post`] takes sealed deliveries and each is answered exactly once: with the push service's answer, or with the
//! reason why there is none. That holds whatever a peer does, however tasks end, and when the pool stops.
//!
//! - One origin's trouble is its own: each has its queue and its connections, and nothing here waits for anything shared.
//! - Up to `deliver.connections_per_origin` connections an origin, each filled up to the peer's MAX_CONCURRENT_STREAMS of the
//!   moment; a further one is opened when the open ones are full. HTTP/1.1 where ALPN gives no h2.
//! - What the peer has not processed (REFUSED_STREAM, beyond GOAWAY's last stream) is sent again at once elsewhere.
//! - When no connection comes about, all that is queued for the origin is answered [`Answer::NotConnected`]: one attempt to
//!   connect serves everything. The pool neither retries nor backs off; its caller does.
//! - What a peer may send is bounded by what it is asked (`allowance`): whoever floods a connection loses it, and the origin is
//!   condemned.
//! - It connects only to permitted addresses (docs/design.md 6.1), follows no redirect, and reads 4 KiB of an answer.
//!
//! ```text
//! post -> origin.rs (queue of two ranks, the desk) <- pull - http2.rs, http1.rs (a task a connection) -> answers
//!              | plan: open one                               ^
//!              `-> connection.rs -> connect.rs (resolve.rs, address.rs, proxy.rs, tls.rs)
//! ```

mod address;
mod allowance;
mod connect;
mod connection;
mod http1;
mod http2;
mod origin;
mod parcel;
mod proxy;
mod request;
mod resolve;
mod streams;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

pub use self::address::permitted;
pub use self::tls::Roots;

use self::connect::Connector;
use self::connection::Limits;
use self::origin::{Destination, NotTaken, Phase, Plan, STREAMS_ASSUMED};
use self::parcel::Parcel;
use crate::message::{Answer, Answered, ConnectFailure, Origin, Sealed, UnixMillis};
use crate::queue::Sender;

/// How long connections that were told to give up may take to do so.
const GIVING_UP: Duration = Duration::from_secs(2);

/// How long a connection that wants to be opened waits before it looks again for others that have nothing to do.
const ROOM_PAUSE: Duration = Duration::from_millis(100);

/// What the pool takes from the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Connections an origin may have, at least 1.
    pub connections_per_origin: usize,
    /// Origins that are kept; beyond that the one that was not used for longest goes first.
    pub origins: usize,
    /// Connections of all origins together. Where they are all open, those that have nothing to do are closed for others, and an
    /// origin that has one gets no further one while less than half of them is free.
    pub connections: usize,
    /// From the opening of a stream to the end of its answer.
    pub timeout: Duration,
    /// `http://host:port` of an HTTP CONNECT proxy.
    pub proxy: Option<String>,
    /// The trusted CAs beside those of `extra_roots`.
    pub roots: Roots,
    /// A PEM file of further trusted CAs.
    pub extra_roots: Option<PathBuf>,
    /// Networks that may be connected to although they are not public.
    pub allow_networks: Vec<IpNet>,
}

impl Settings {
    /// Those of `[deliver]` and `[endpoints]`, with the system's roots; and as many connections as there are descriptors for.
    pub fn new(deliver: &crate::config::Deliver, endpoints: &crate::config::Endpoints, connections: usize) -> Settings {
        // `drain` is given to `Pool::stop`; naming all keeps a new one from being forgotten.
        let crate::config::Deliver { connections_per_origin, origins, timeout, drain: _, proxy, extra_roots } = deliver.clone();
        Settings {
            connections_per_origin,
            origins,
            connections,
            timeout,
            proxy,
            roots: Roots::System,
            extra_roots,
            allow_networks: endpoints.allow_networks.clone(),
        }
    }
}

/// Why the pool cannot start, or its roots not be read again.
#[derive(Debug)]
pub enum StartError {
    /// `deliver.proxy` is not `http://host:port`.
    Proxy,
    /// `deliver.extra_roots` cannot be used.
    ExtraRoots { path: PathBuf, reason: String },
    /// The system trusts no CA and `deliver.extra_roots` is not set: no push service could be reached.
    NoRoots,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Proxy => f.write_str("deliver.proxy must have the form http://host:port"),
            StartError::ExtraRoots { path, reason } => write!(f, "deliver.extra_roots, {}: {reason}", path.display()),
            StartError::NoRoots => f.write_str("this system has no trusted CA certificates (package ca-certificates?)"),
        }
    }
}

impl std::error::Error for StartError {}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    Http2,
}

impl Protocol {
    /// The name that ALPN gives it (RFC 7301).
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http1 => "http/1.1",
            Protocol::Http2 => "h2",
        }
    }
}

/// One origin at a glance, for the operator and for metrics.
#[derive(Clone, Debug)]
pub struct OriginStatus {
    pub origin: Origin,
    /// Of the connection opened last; None before the first.
    pub protocol: Option<Protocol>,
    /// Open connections that take requests.
    pub connections: usize,
    /// Open connections that only wait for their last answers.
    pub connections_retiring: usize,
    /// One more is being opened.
    pub connecting: bool,
    /// Requests without an answer.
    pub in_flight: usize,
    /// Deliveries that wait for a stream.
    pub queued: usize,
    /// See [`Pool::capacity`].
    pub capacity: usize,
    /// Why the last connection that failed did, and when.
    pub last_failure: Option<(ConnectFailure, UnixMillis)>,
    /// Connections opened since the origin is known.
    pub connections_opened: u64,
    /// Requests that were sent again because the peer had not processed them.
    pub resends: u64,
    /// Requests without an answer in time.
    pub timeouts: u64,
}

/// The connections of all origins. Cheap to clone; all clones are one pool.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Connector,
    limits: Limits,
    connections_per_origin: usize,
    origins: usize,
    /// One for each connection that may still be opened, of so many in all.
    places: Arc<Semaphore>,
    connections: usize,
    runtime: Handle,
    answers: Sender<Answered>,
    destinations: Mutex<HashMap<Origin, Arc<Destination>>>,
    phase: watch::Sender<Phase>,
    /// Told when the last task has ended: each holds a [`Running`].
    tasks: watch::Sender<()>,
}

/// Held by each task of a connection; [`Pool::stop`] waits until none is left.
type Running = watch::Receiver<()>;

impl Pool {
    /// Reads the trusted certificates and is ready. Tasks run on `runtime`. `answers` must have room for everything that is
    /// posted and not yet answered (the poster's windows bound that): a full channel would hold up a thread of `runtime`.
    pub fn start(settings: Settings, runtime: Handle, answers: Sender<Answered>) -> Result<Pool, StartError> {
        let limits = Limits::new(settings.timeout);
        Pool::start_with(settings, limits, runtime, answers)
    }

    fn start_with(settings: Settings, limits: Limits, runtime: Handle, answers: Sender<Answered>) -> Result<Pool, StartError> {
        let shared = Shared {
            connector: Connector::new(&settings)?,
            limits,
            connections_per_origin: settings.connections_per_origin.max(1),
            origins: settings.origins.max(1),
            places: Arc::new(Semaphore::new(settings.connections.clamp(1, Semaphore::MAX_PERMITS))),
            connections: settings.connections.clamp(1, Semaphore::MAX_PERMITS),
            runtime,
            answers,
            destinations: Mutex::default(),
            phase: watch::Sender::new(Phase::Open),
            tasks: watch::Sender::new(()),
        };
        Ok(Pool { shared: Arc::new(shared) })
    }

    /// Takes deliveries, of one origin or several, and answers each exactly once. From any thread; never waits for a peer or a
    /// connection. How much is outstanding is the caller's to bound.
    pub fn post(&self, slice: Vec<Sealed>) {
        let mut rest = slice.into_iter().peekable();
        let mut groups: HashMap<Origin, Vec<Parcel>> = HashMap::new();
        while let Some(first) = rest.next() {
            // Neighbours mostly have the same origin, which is then looked up once.
            let group = groups.entry(first.origin.clone()).or_default();
            let same = first.origin.clone();
            group.push(Parcel::new(first, self.shared.answers.clone()));
            while let Some(next) = rest.next_if(|next| next.origin == same) {
                group.push(Parcel::new(next, self.shared.answers.clone()));
            }
        }
        for (origin, parcels) in groups {
            self.shared.post(origin, parcels);
        }
    }

    /// Streams that the origin can carry at the moment: those that its open connections' peers allow (at most 1,000 each),
    /// and as many again for each connection that could still be opened; 100 for each where none was open before.
    pub fn capacity(&self, origin: &Origin) -> usize {
        let destination = self.shared.lock().get(origin).cloned();
        destination.map_or(self.shared.connections_per_origin * STREAMS_ASSUMED, |known| known.capacity(Instant::now()))
    }

    /// All origins that are known at the moment, in no particular order.
    pub fn status(&self) -> Vec<OriginStatus> {
        let now = Instant::now();
        self.shared.all().iter().map(|destination| destination.status(now)).collect()
    }

    /// Reads the trusted certificates again; connections opened from now on use them. If that fails the old ones stay.
    pub fn reload_roots(&self) -> Result<(), StartError> {
        self.shared.connector.reload_roots()
    }

    /// Stops for good: what is queued, and what is posted later, is answered [`Answer::Stopped`]; what is in flight has
    /// `drain` to be answered and is [`crate::message::Loss::Closed`] after that. When it returns, everything is answered.
    pub async fn stop(&self, drain: Duration) {
        self.shared.enter(Phase::Draining);
        if tokio::time::timeout(drain, self.shared.tasks.closed()).await.is_err() {
            self.shared.enter(Phase::Closed);
            // They need no peer to end; should one not, its parcels still answer when the runtime ends.
            let _ = tokio::time::timeout(GIVING_UP, self.shared.tasks.closed()).await;
        }
    }
}

impl Shared {
    fn post(self: &Arc<Self>, origin: Origin, mut parcels: Vec<Parcel>) {
        loop {
            let now = Instant::now();
            let destination = match self.destination(&origin, now) {
                Ok(destination) => destination,
                Err(answer) => return parcels.into_iter().for_each(|parcel| parcel.answer(answer.answer())),
            };
            match destination.post(parcels, now) {
                Ok(plan) => return self.act(&destination, plan),
                Err(NotTaken::Stopped(parcels)) => return parcels.into_iter().for_each(|parcel| parcel.answer(Answer::Stopped)),
                // It was removed from the table in between.
                Err(NotTaken::Evicted(untaken)) => parcels = untaken,
            }
        }
    }

    /// The destination of `origin`, made if there is none.
    fn destination(self: &Arc<Self>, origin: &Origin, now: Instant) -> Result<Arc<Destination>, Unknown> {
        let mut destinations = self.lock();
        if let Some(known) = destinations.get(origin) {
            return Ok(known.clone());
        }
        // Looked at under the lock with which `enter` lists the destinations.
        if *self.phase.borrow() != Phase::Open {
            return Err(Unknown::Stopped);
        }
        let evicted = if destinations.len() >= self.origins { evict(&mut destinations, Destination::unused_since) } else { None };
        let made = Destination::new(origin.clone(), self.connections_per_origin, now).map(Arc::new);
        if let Some(made) = &made {
            destinations.insert(origin.clone(), made.clone());
        }
        drop(destinations);
        if let Some((destination, plan)) = evicted {
            self.act(&destination, plan);
        }
        made.ok_or(Unknown::NoOrigin)
    }

    /// A place for one more connection of `destination`, as soon as there is one. None: it has a connection, and what is left is for
    /// those that have none.
    async fn place(self: &Arc<Self>, destination: &Destination) -> Option<OwnedSemaphorePermit> {
        if destination.connected_already() && self.places.available_permits() < self.connections / 2 {
            return None;
        }
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        let mut place = std::pin::pin!(self.places.clone().acquire_owned());
        loop {
            self.close_unused();
            tokio::select! {
                biased;
                // It is never closed.
                place = &mut place => return place.ok(),
                () = tokio::time::sleep(ROOM_PAUSE) => {}
            }
        }
    }

    /// Closes the connections of the origin that has had nothing to do for longest.
    fn close_unused(self: &Arc<Self>) {
        let evicted = evict(&mut self.lock(), Destination::idle_since);
        if let Some((destination, plan)) = evicted {
            self.act(&destination, plan);
        }
    }

    /// Does what a plan asks for, outside all locks.
    fn act(self: &Arc<Self>, destination: &Arc<Destination>, plan: Plan) {
        let Plan { wake, connect, fail, stop } = plan;
        if connect {
            connection::spawn(self, destination);
        }
        for waker in wake {
            waker.wake();
        }
        if let Some((failure, parcels)) = fail {
            for parcel in parcels {
                parcel.answer(Answer::NotConnected(failure));
            }
        }
        for parcel in stop {
            parcel.answer(Answer::Stopped);
        }
    }

    fn enter(self: &Arc<Self>, phase: Phase) {
        self.phase.send_replace(phase);
        for destination in self.all() {
            let plan = destination.enter(phase);
            self.act(&destination, plan);
        }
    }

    fn all(&self) -> Vec<Arc<Destination>> {
        self.lock().values().cloned().collect()
    }

    fn running(&self) -> Running {
        self.tasks.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Origin, Arc<Destination>>> {
        self.destinations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why there is no destination.
enum Unknown {
    Stopped,
    /// It is no origin, so nothing can be connected to.
    NoOrigin,
}

impl Unknown {
    fn answer(&self) -> Answer {
        match self {
            Unknown::Stopped => Answer::Stopped,
            Unknown::NoOrigin => Answer::NotConnected(ConnectFailure::Protocol),
        }
    }
}

/// Removes the origin that was not used for longest, by `since`. None if all are in use: then the table grows beyond its bound, up to
/// what is outstanding.
fn evict(
    destinations: &mut HashMap<Origin, Arc<Destination>>,
    since: impl Fn(&Destination) -> Option<Instant>,
) -> Option<(Arc<Destination>, Plan)> {
    let unused = destinations.values().filter_map(|known| Some((since(known)?, known)));
    let oldest = unused.min_by_key(|(since, _)| *since).map(|(_, known)| known.clone())?;
    let plan = oldest.evict()?;
    destinations.remove(&oldest.origin);
    Some((oldest, plan))
}
