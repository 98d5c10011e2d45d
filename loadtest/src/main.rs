//! `fanfare-load`: drives the daemon through its socket and measures it.
//!
//! Daemon and mock push service run as processes of their own in a temporary directory, so that each one's CPU time is known
//! apart. Every number comes from where it cannot be flattering: acknowledgements from the socket, deliveries from the mock, CPU and
//! memory from `/proc`.

// They panic where the output takes no more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod load;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fanfare_loadtest::say;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Drives fanfare through its socket and measures it.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Flags {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// One line, one recipient, one body: what a message costs.
    OneToOne(OneToOne),
    /// Durable acknowledgements a second, while the push service is down.
    Ingest(Ingest),
    /// One message to many, as a stream.
    Stream(Stream),
    /// kill -9 with many pending messages: the time from start to the first post.
    Restart(Restart),
    /// A million subscriptions, registered over the socket: what one costs, and how fast they are counted.
    Registry(Registry),
    /// One campaign to all registered subscriptions, with urgent messages meanwhile.
    Campaign(Campaign),
    /// A paused campaign that is let go when its key agreements have been made: what a message costs then.
    Burst(Burst),
    /// A thousand campaigns to 500 each against one to all those.
    SmallCampaigns(SmallCampaigns),
    /// Urgent messages one at a time to an idle daemon: what the way takes, fsync included.
    Lone(Lone),
    /// Half of the messages to a push service that is slow: what the other half loses by it.
    Mixed(Mixed),
    /// Accounts that come and go, and messages that wait for them to leave.
    Presence(Presence),
    /// One app floods, with each operation in turn: what another app and the operator notice of it, and how memory grows. Fails where
    /// that is more than allowed.
    Fair(Fair),
    /// Two hundred thousand browsers, a campaign, and urgent messages that overtake it, in less than a minute.
    Demo(Demo),
    /// The measurements of `make bench`, one after another, and a page with tables and plots of them.
    Bench(Suite),
    /// Draws that page again from what `bench` has written.
    Report(Drawn),
}

/// What is measured, and where.
#[derive(Args)]
struct Place {
    /// The daemon's binary; beside this one unless told.
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Drive a daemon that runs already, at this socket. It must allow the mock's endpoints and trust its authority.
    #[arg(long, value_name = "PATH", requires = "mock")]
    socket: Option<PathBuf>,
    /// The command address (host:port) of a fanfare-mock that runs already; with --socket.
    #[arg(long, value_name = "ADDRESS", requires = "socket")]
    mock: Option<std::net::SocketAddr>,
    /// A key of the daemon's configuration, such as deliver.connections_per_origin=2.
    #[arg(long = "set", value_name = "KEY=JSON")]
    settings: Vec<String>,
    /// Have the mock decrypt one body in this many.
    #[arg(long, default_value_t = 1)]
    verify_every: u64,
    /// Have the mock take everything and look at nothing: it then costs some microsecond a message, and the daemon has the
    /// machine. That messages are right is shown without this. With --mock: that one was started so.
    #[arg(long, conflicts_with = "verify_every")]
    sink: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl Place {
    /// Whether the mock decrypts and verifies every message.
    fn verifies_all(&self) -> bool {
        self.verify_every == 1 && !self.sink
    }
}

/// How lines are sent.
#[derive(Args, Clone, Copy)]
struct Sending {
    /// Connections to the socket.
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Lines that a connection may have unanswered.
    #[arg(long, visible_alias = "pipeline", default_value_t = 500)]
    window: usize,
    /// Lines a second at most, all connections together; 0 is as fast as they are answered. Latency is honest only below what
    /// the daemon can do.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
}

/// Messages to one recipient each.
#[derive(Args)]
struct Singles {
    /// Bytes of each payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
    /// Different subscriptions.
    #[arg(long, default_value_t = 10_000)]
    subscriptions: usize,
}

#[derive(Args)]
struct OneToOne {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    /// Messages measured, after a warm-up of 1,000.
    #[arg(long, default_value_t = 200_000)]
    messages: u64,
    #[command(flatten)]
    singles: Singles,
}

#[derive(Args)]
struct Ingest {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    #[arg(long, default_value_t = 500_000)]
    messages: u64,
    #[command(flatten)]
    singles: Singles,
}

#[derive(Args)]
struct Stream {
    #[command(flatten)]
    place: Place,
    /// Recipients, each a subscription of its own.
    #[arg(long, default_value_t = 200_000)]
    recipients: usize,
    /// Subscriptions in one line.
    #[arg(long, default_value_t = 1_000)]
    chunk: usize,
    /// Lines that may be unanswered.
    #[arg(long, default_value_t = 4)]
    window: usize,
    /// Bytes of the payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
}

#[derive(Args)]
struct Restart {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    /// Messages pending when the daemon is killed. Committed one by one (--connections 1 --pipeline 1) is the hard case.
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    #[command(flatten)]
    singles: Singles,
    /// Also wait until all are delivered.
    #[arg(long)]
    drain: bool,
}

#[derive(Args)]
struct Demo {
    /// The daemon's binary; beside this one unless told.
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Browsers that subscribe and get the campaign.
    #[arg(long, default_value_t = 200_000)]
    browsers: u32,
    /// Messages of their own, one a line.
    #[arg(long, default_value_t = 20_000)]
    messages: u64,
}

/// Who subscribes.
#[derive(Args, Clone)]
struct Readers {
    /// Subscriptions that are registered.
    #[arg(long, visible_alias = "recipients", default_value_t = 1_000_000)]
    subscriptions: u32,
    /// Key pairs that they share; the daemon's work does not depend on it.
    #[arg(long, default_value_t = 20_000)]
    keys: u32,
    /// Length of an endpoint: FCM's have some 190.
    #[arg(long, default_value_t = 190)]
    endpoint_bytes: usize,
    /// Leave the daemon's directory here, and use what an earlier run left: nobody has to register again.
    #[arg(long, value_name = "DIR", conflicts_with = "socket")]
    keep: Option<PathBuf>,
}

#[derive(Args)]
struct Registry {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    #[command(flatten)]
    readers: Readers,
}

#[derive(Args)]
struct Campaign {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    #[command(flatten)]
    readers: Readers,
    /// Bytes of the payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
    /// Run the campaign so often.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// First with a tenth of the subscriptions: whether a message costs the same.
    #[arg(long, conflicts_with_all = ["keep", "socket"])]
    compare: bool,
}

#[derive(Args)]
struct Burst {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    /// Subscriptions that are registered.
    #[arg(long, visible_alias = "recipients", default_value_t = 200_000)]
    subscriptions: u32,
    /// Bytes of the payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
}

#[derive(Args)]
struct SmallCampaigns {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    #[command(flatten)]
    readers: Readers,
    /// Bytes of the payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
}

#[derive(Args)]
struct Presence {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    sending: Sending,
    /// Accounts, each with two browsers.
    #[arg(long, default_value_t = 10_000)]
    accounts: u32,
    /// Leases renewed.
    #[arg(long, default_value_t = 200_000)]
    renewals: u64,
}

#[derive(Args)]
struct Lone {
    #[command(flatten)]
    place: Place,
    /// Messages a second. Of a rate that divides the time between two checkpoints every fifth message would meet one, or none.
    #[arg(long, default_value_t = 19.0)]
    rate: f64,
    /// How long.
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
}

#[derive(Args)]
struct Mixed {
    #[command(flatten)]
    place: Place,
    /// Messages to each push service where throughput is measured.
    #[arg(long, default_value_t = 50_000)]
    messages: u64,
    /// Messages a second to each where latency is measured.
    #[arg(long, default_value_t = 1_000.0)]
    rate: f64,
    /// How long latency is measured.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Milliseconds after which the slow one answers.
    #[arg(long, default_value_t = 500)]
    delay: u64,
    /// Bytes of each payload.
    #[arg(long, default_value_t = 250)]
    body: usize,
}

#[derive(Args)]
struct Fair {
    #[command(flatten)]
    place: Place,
    /// Operations that are played, separated by commas; all unless told. An unknown one names them.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    operations: Vec<String>,
    /// Connections of the app that floods, one case for each number.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_values_t = [1, 64])]
    connections: Vec<usize>,
    /// How it behaves, one case for each.
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',', default_values_t = [load::fair::Manner::Stay, load::fair::Manner::Silent, load::fair::Manner::Leave])]
    manners: Vec<load::fair::Manner>,
    /// How long a flood lasts.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long the neighbour is measured alone before it.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    alone: f64,
    /// Subscribers of the app that floods.
    #[arg(long, default_value_t = 20_000)]
    subscriptions: u32,
    /// Events that it has in the log.
    #[arg(long, default_value_t = 30_000)]
    events: u32,
    /// Milliseconds that the neighbour's urgent messages may take more than alone (p99).
    #[arg(long, value_name = "MS", default_value_t = 50.0)]
    message_ms: f64,
    /// Milliseconds that a ping may take more than alone (p99), on an open connection or on a new one.
    #[arg(long, value_name = "MS", default_value_t = 100.0)]
    ping_ms: f64,
    /// Percent that the daemon's memory may be above what is configured and what it has at its start.
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    memory_slack: u32,
}

#[derive(Args)]
struct Suite {
    /// The daemon's binary; beside this one unless told.
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Where results, plots and page are written.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Two or three minutes instead of five, and numbers that are less exact.
    #[arg(long)]
    quick: bool,
    /// What the measured source is called, such as its commit.
    #[arg(long, value_name = "NAME")]
    commit: Option<String>,
}

#[derive(Args)]
struct Drawn {
    /// Where `bench` has written.
    #[arg(value_name = "DIR")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let flags: Flags = match say::flags() {
        Ok(flags) => flags,
        Err(code) => return code,
    };
    let done = match flags.what {
        What::OneToOne(flags) => load::one_to_one::run(&flags),
        What::Ingest(flags) => load::ingest::run(&flags),
        What::Stream(flags) => load::stream::run(&flags),
        What::Restart(flags) => load::restart::run(&flags),
        What::Registry(flags) => load::registry::run(&flags),
        What::Campaign(flags) => load::campaign::run(&flags),
        What::Burst(flags) => load::burst::run(&flags),
        What::SmallCampaigns(flags) => load::small_campaigns::run(&flags),
        What::Presence(flags) => load::presence::run(&flags),
        What::Lone(flags) => load::lone::run(&flags),
        What::Mixed(flags) => load::mixed::run(&flags),
        What::Fair(flags) => load::fair::run(&flags),
        What::Demo(flags) => load::demo::run(&flags),
        What::Bench(flags) => load::suite::run(&flags),
        What::Report(flags) => load::suite::draw(&flags),
    };
    say::ended("fanfare-load", done)
}
