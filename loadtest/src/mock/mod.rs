//! The mock push service: what the daemon posts to in tests and measurements.
//!
//! It promises to be stricter than any real push service: every body is decrypted with the recipient's own key, every VAPID token
//! verified, every header checked. A sender that breaks a rule is answered as that vendor would, and the breach is kept in
//! [`Counters::violations`], so that a test can demand that there were none. And it fails on command, in every way that push
//! services were seen to ([`Fault`]).
//!
//! ```no_run
//! use std::time::Duration;
//! use fanfare_loadtest::mock::{Fault, Mock, Options, Scope};
//!
//! let mock = Mock::start(Options::default());
//! let browsers = mock.subscribe(0, 3);
//! mock.set_fault_times(Scope::Subscription(browsers[1].token.clone()), Fault::status(503).retry_after(2), 1);
//! // ... send to browsers[i].json() ...
//! assert!(mock.wait_received(3, Duration::from_secs(10)));
//! assert_eq!(mock.counters().violations, Vec::<String>::new());
//! ```

mod admin;
mod answer;
mod certificates;
mod check;
mod crowd;
mod decrypt;
mod fault;
mod flood;
mod frames;
mod http1;
mod http2;
mod listener;
mod proxy;
mod sink;
mod slow;
mod state;
mod subscription;
mod tally;
mod vapid;
mod wire;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub use crowd::{Crowd, CrowdCounts, Members, Plan, payload_hash, subscription_id};
pub use decrypt::{BrowserKeys, Opened, aes128gcm, aesgcm};
pub use fault::{Answer, Body, Fault, GoAway, Scope, Slow, http_date, vendor};
pub use flood::Flood;
pub use state::{Counters, OriginCounters, Received};
pub use subscription::{Subscribe, Subscription, Vendor};
pub use tally::{CURVE, Measured, curve, payload_head};
pub use vapid::Vapid;

use certificates::Acceptors;
use state::{OriginState, State};

/// How a mock is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// TLS origins, each on a port of its own.
    pub listeners: usize,
    /// The port of the first; 0 is any, and all others are any.
    pub port: u16,
    /// Serve commands over HTTP on this port (0: any); None: not at all.
    pub admin_port: Option<u16>,
    /// Decrypt one body in this many; 1 is every one. The others only get the cheap checks, for measurements in which the
    /// mock would be the bottleneck.
    pub verify_every: u64,
    /// Requests that [`Mock::received`] keeps; the oldest are forgotten first.
    pub keep: usize,
    /// Threads of its runtime.
    pub threads: usize,
    /// Further host names in its certificate.
    pub hosts: Vec<String>,
    /// Take every HTTP/2 request without looking at it, for some microseconds: see the module `sink`. Then faults of requests are not
    /// played, no subscription is known, and only requests and bytes are counted.
    pub sink: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listeners: 1,
            port: 0,
            admin_port: None,
            verify_every: 1,
            keep: 1_000_000,
            threads: 2,
            hosts: Vec::new(),
            sink: false,
        }
    }
}

/// A running mock; it ends when this is dropped. Everything here is synchronous and may be called from any thread.
pub struct Mock {
    inner: Arc<Inner>,
    proxy: SocketAddr,
    admin: Option<SocketAddr>,
    /// Taken when dropped.
    runtime: Option<Runtime>,
}

struct Inner {
    state: Arc<State>,
    acceptors: Arc<Acceptors>,
    ports: Vec<u16>,
    /// Orders to each listener, and what it has come to.
    listening: Vec<(watch::Sender<bool>, watch::Receiver<bool>)>,
    connects: Arc<Mutex<Vec<String>>>,
}

impl Mock {
    /// Starts a mock.
    ///
    /// # Panics
    ///
    /// If ports or threads cannot be had.
    pub fn start(options: Options) -> Mock {
        Mock::try_start(options).expect("the mock push service starts")
    }

    /// Starts a mock; an error is a port that cannot be had.
    pub fn try_start(options: Options) -> io::Result<Mock> {
        let Options { listeners, port, admin_port, verify_every, keep, threads, hosts, sink } = options;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            // They decrypt: [`State::judge`].
            .max_blocking_threads(threads.max(1))
            .thread_name("mock")
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let mut sockets = Vec::new();
        let mut ports = Vec::new();
        for index in 0..listeners.max(1) {
            let socket = listener::reserve(if index == 0 { port } else { 0 })?;
            ports.push(socket.local_addr()?.port());
            sockets.push(socket);
        }
        let origins = ports.iter().map(|port| OriginState::new(format!("https://127.0.0.1:{port}").into())).collect();
        let state = Arc::new(State::new(origins, verify_every, keep, sink));
        let acceptors = Arc::new(Acceptors::make(&hosts));
        let mut listening = Vec::new();
        for (index, socket) in sockets.into_iter().enumerate() {
            let (order, ordered) = watch::channel(true);
            let (confirm, confirmed) = watch::channel(false);
            runtime.spawn(listener::run(state.clone(), acceptors.clone(), index, socket, ordered, confirm));
            listening.push((order, confirmed));
        }
        let connects = Arc::new(Mutex::new(Vec::new()));
        let inner = Arc::new(Inner { state, acceptors, ports, listening, connects });
        for index in 0..inner.ports.len() {
            runtime.block_on(inner.listen(index, true));
        }
        let loopback = |port| runtime.block_on(TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))));
        let tunnels = loopback(0)?;
        let proxy = tunnels.local_addr()?;
        runtime.spawn(proxy::run(tunnels, inner.ports[0], inner.connects.clone()));
        let mut admin = None;
        if let Some(port) = admin_port {
            let commands = loopback(port)?;
            admin = Some(commands.local_addr()?);
            runtime.spawn(admin::run(commands, inner.clone()));
        }
        drop(guard);
        Ok(Mock { inner, proxy, admin, runtime: Some(runtime) })
    }

    /// The authority that signed its certificates, for `deliver.extra_roots`.
    pub fn ca_pem(&self) -> &str {
        &self.inner.acceptors.authority_pem
    }

    /// `https://127.0.0.1:PORT`.
    pub fn origin(&self, index: usize) -> String {
        self.inner.state.origins[index].url.to_string()
    }

    /// `127.0.0.1:PORT`, for `endpoints.allow_hosts`.
    pub fn host(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.inner.ports[index])
    }

    /// [`Mock::host`] of every origin.
    pub fn hosts(&self) -> Vec<String> {
        (0..self.inner.ports.len()).map(|index| self.host(index)).collect()
    }

    /// `http://127.0.0.1:PORT` of a CONNECT proxy that leads every name to the first origin, for `deliver.proxy`.
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.proxy)
    }

    /// `host:port` of every CONNECT the proxy was asked for.
    pub fn proxy_connects(&self) -> Vec<String> {
        self.inner.connects.lock().expect("no holder panics").clone()
    }

    /// Where commands are taken, if [`Options::admin_port`] was given.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Fresh subscriptions at an origin.
    pub fn subscribe(&self, origin: usize, count: usize) -> Vec<Subscription> {
        self.subscribe_with(origin, count, &Subscribe::default())
    }

    /// Fresh subscriptions of a certain kind.
    pub fn subscribe_with(&self, origin: usize, count: usize, how: &Subscribe) -> Vec<Subscription> {
        self.inner.subscribe(origin, count, how)
    }

    /// A crowd: subscriptions by the million.
    pub fn crowd(&self, plan: Plan) -> Arc<Crowd> {
        self.inner.add_crowd(plan).1
    }

    /// Every request for a known subscription, in the order of arrival, whatever became of it.
    pub fn received(&self) -> Vec<Received> {
        self.received_after(0)
    }

    /// Those with a number above this.
    pub fn received_after(&self, number: u64) -> Vec<Received> {
        self.inner.state.received_after(number)
    }

    /// Those of one subscription.
    pub fn received_by(&self, subscription: &Subscription) -> Vec<Received> {
        self.received().into_iter().filter(|received| received.subscription == subscription.token).collect()
    }

    /// Totals since the start.
    pub fn counters(&self) -> Counters {
        self.inner.state.counters()
    }

    /// Waits until this many messages were taken, repeats included; false when that was not so in time.
    pub fn wait_received(&self, messages: u64, timeout: Duration) -> bool {
        self.wait(timeout, |counters| counters.accepted >= messages)
    }

    /// Waits until this many different messages were taken.
    pub fn wait_distinct(&self, messages: u64, timeout: Duration) -> bool {
        self.wait(timeout, |counters| counters.distinct >= messages)
    }

    /// Waits until this many requests have come, whatever became of them.
    pub fn wait_requests(&self, requests: u64, timeout: Duration) -> bool {
        self.wait(timeout, |counters| counters.requests >= requests)
    }

    /// Waits until the totals are as wanted.
    pub fn wait(&self, timeout: Duration, enough: impl Fn(&Counters) -> bool) -> bool {
        self.inner.state.wait(timeout, enough)
    }

    /// A fault that lasts until [`Mock::clear_faults`]. A subscription's faults come before its origin's, and those before
    /// everything's; counted ones before lasting ones. A new lasting fault of a request replaces the scope's older one.
    pub fn set_fault(&self, scope: Scope, fault: impl Into<Fault>) {
        self.inner.state.set_fault(scope, fault.into(), None, 1);
    }

    /// A fault for the next so many requests (or connections) of the scope; several are played in the order given.
    pub fn set_fault_times(&self, scope: Scope, fault: impl Into<Fault>, times: u64) {
        self.inner.state.set_fault(scope, fault.into(), Some(times), 1);
    }

    /// A lasting fault for every `every`-th request (or connection) of the scope.
    pub fn set_fault_every(&self, scope: Scope, fault: impl Into<Fault>, every: u64) {
        self.inner.state.set_fault(scope, fault.into(), None, every);
    }

    /// Withdraws all faults of a scope, and for an origin or everything its limit of streams too.
    pub fn clear_faults(&self, scope: &Scope) {
        self.inner.state.clear_faults(Some(scope));
    }

    /// Withdraws every fault.
    pub fn clear_all_faults(&self) {
        self.inner.state.clear_faults(None);
    }

    /// The service is down: its connections end, new ones are refused. Returns when that is so.
    pub fn stop_listening(&self, origin: usize) {
        self.block_on(self.inner.listen(origin, false));
    }

    /// The service is back, on the same port. Returns when it is.
    pub fn resume_listening(&self, origin: usize) {
        self.block_on(self.inner.listen(origin, true));
    }

    /// From now on decrypts one body in this many.
    pub fn set_verify_every(&self, every: u64) {
        self.inner.state.set_verify_every(every);
    }

    /// What is known of a measurement's messages (payloads that begin as [`payload_head`] writes).
    pub fn measured(&self) -> Measured {
        self.inner.state.measured(None)
    }

    /// Counts a measurement's messages anew.
    pub fn reset_measured(&self) {
        self.inner.state.reset_measured();
    }

    fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.as_ref().expect("only dropping takes it").block_on(future)
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Waiting is not allowed when this is dropped inside another runtime; the threads end by themselves.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    fn subscribe(&self, origin: usize, count: usize, how: &Subscribe) -> Vec<Subscription> {
        let url: Arc<str> = match &how.host {
            Some(host) => format!("https://{host}").into(),
            None => self.state.origins[origin].url.clone(),
        };
        let made: Vec<Subscription> = (0..count).map(|_| Subscription::make(&url, how)).collect();
        let mut subscriptions = self.state.subscriptions.write().expect("no holder panics");
        for subscription in &made {
            subscriptions.add(subscription);
        }
        made
    }

    async fn listen(&self, origin: usize, listening: bool) {
        let (order, confirmed) = &self.listening[origin];
        order.send_replace(listening);
        // An error is a listener that has ended, with the runtime.
        let _ = confirmed.clone().wait_for(|state| *state == listening).await;
    }

    /// The crowd and its number.
    fn add_crowd(&self, plan: Plan) -> (usize, Arc<Crowd>) {
        let crowd = Arc::new(Crowd::new(Members::new(plan, &self.state.origins[plan.origin].url)));
        let number = self.state.subscriptions.write().expect("no holder panics").add_crowd(crowd.clone());
        (number, crowd)
    }
}

#[cfg(test)]
mod tests;
