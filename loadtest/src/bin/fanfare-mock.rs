//! `fanfare-mock`: the mock push service as a process of its own.
//!
//! Prints one JSON line with its addresses when it is ready, then serves until it is told to end (or, with `--with-parent`, until its
//! standard input closes).

// They panic where the output takes no more.
#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fanfare_loadtest::mock::{Fault, Mock, Options, Plan, Scope};
use fanfare_loadtest::{population, say};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A push service for tests: decrypts every message, verifies every token, fails on command.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Flags {
    /// Port of the first TLS origin; 0 is any.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Port for commands over plain HTTP; 0 is any.
    #[arg(long, default_value_t = 0)]
    admin_port: u16,
    /// TLS origins, each on a port of its own.
    #[arg(long, default_value_t = 1)]
    listeners: usize,
    /// Write the certificate authority here (PEM).
    #[arg(long, value_name = "FILE")]
    ca_out: Option<PathBuf>,
    /// Decrypt one body in this many; the others only get the cheap checks.
    #[arg(long, default_value_t = 1)]
    verify_every: u64,
    /// Take every HTTP/2 request without looking at it, for some microseconds each: nothing is decrypted, verified or known, only
    /// counted. For measuring senders that were checked before.
    #[arg(long, conflicts_with_all = ["verify_every", "crowd"])]
    sink: bool,
    /// MAX_CONCURRENT_STREAMS of every connection.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_streams: u32,
    /// Requests that are kept for GET /received; the oldest are forgotten first.
    #[arg(long, default_value_t = 100_000)]
    keep: usize,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Also serve so many subscriptions that are not kept but derived: a million costs no memory to speak of.
    #[arg(long, value_name = "N", requires = "crowd_out")]
    crowd: Option<u32>,
    /// Write those here, a line each as `fanfare import` takes it, with accounts, tags and scopes.
    #[arg(long, value_name = "FILE", requires = "crowd")]
    crowd_out: Option<PathBuf>,
    /// Key pairs that those share; as many as there are is possible, at 15 us each.
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    crowd_keys: u32,
    /// Length of their endpoints.
    #[arg(long, value_name = "BYTES", default_value_t = 190)]
    endpoint_bytes: usize,
    /// What they follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// End when standard input closes.
    #[arg(long)]
    with_parent: bool,
}

fn main() -> ExitCode {
    match say::flags() {
        Ok(flags) => say::ended("fanfare-mock", serve(&flags)),
        Err(code) => code,
    }
}

fn serve(flags: &Flags) -> std::io::Result<()> {
    let mock = Mock::try_start(Options {
        listeners: flags.listeners,
        port: flags.port,
        admin_port: Some(flags.admin_port),
        verify_every: flags.verify_every,
        keep: flags.keep,
        threads: flags.threads,
        hosts: Vec::new(),
        sink: flags.sink,
    })?;
    mock.set_fault(Scope::Everything, Fault::MaxStreams(flags.max_streams));
    if let Some(path) = &flags.ca_out {
        std::fs::write(path, mock.ca_pem())?;
    }
    if let (Some(members), Some(path)) = (flags.crowd, &flags.crowd_out) {
        let crowd = mock.crowd(Plan {
            seed: flags.seed,
            members,
            keys: flags.crowd_keys,
            endpoint_bytes: flags.endpoint_bytes,
            verify_every: flags.verify_every,
            origin: 0,
        });
        let mut file = BufWriter::new(std::fs::File::create(path)?);
        let mut line = Vec::new();
        for number in 0..members {
            line.clear();
            population::write_import(&crowd.members, number, &mut line);
            file.write_all(&line)?;
        }
        file.flush()?;
    }
    let origins: Vec<String> = (0..flags.listeners.max(1)).map(|index| mock.origin(index)).collect();
    let admin = mock.admin_address().map(|address| format!("http://{address}"));
    let ready = serde_json::json!({"origins": origins, "hosts": mock.hosts(), "admin": admin, "proxy": mock.proxy_url()});
    say::line(ready)?;
    if flags.with_parent {
        let mut input = std::io::stdin().lock();
        let mut ignored = [0; 64];
        while input.read(&mut ignored)? > 0 {}
    } else {
        loop {
            std::thread::park();
        }
    }
    Ok(())
}
