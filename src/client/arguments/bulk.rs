//! Flags of the commands that take over, write out and keep whole registries and stores.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::registry::{SEGMENT_FLAGS, Segment};

/// `fanfare import`.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_HELP)]
pub struct Import {
    /// One JSON object a line, or CSV with a header; `-` reads standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Whose subscribers they are, whatever the lines say
    #[arg(long)]
    pub app: Option<String>,
    /// Check every line, send nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Where lines that are not taken are told, with their number and the reason [default: FILE.rejects]
    #[arg(long, value_name = "FILE")]
    pub rejects: Option<PathBuf>,
    /// What the file holds
    #[arg(long, default_value = "auto")]
    pub format: Format,
    /// Go on where an earlier import of this file stopped, or fail. Without it an import goes on if it can, else it begins
    #[arg(long, conflicts_with = "dry_run")]
    pub resume: bool,
}

const IMPORT_HELP: &str = "\
Members or columns are those of `subscribe`: subscription, app, account, name, user_agent, scopes, tags, attributes, replaces; and \
enabled (false switches it off, true on; without it, it stays as it is). A subscription may also be the line itself, its keys flat, \
and named as others name them (p256dh, public_key, keys.auth, auth_token, userId, …). In CSV, tags and scopes are separated by `;`, attributes are JSON or columns `attributes.NAME`, and an empty \
cell says nothing. A line without a subscription, {\"account\":…,\"app\":…,\"enabled\":false}, switches the account itself off. What \
is not known is left out, and named in the end.

A bad line stops nothing. When all lines were judged the exit code is 0, also if some were not taken: the last line says how many, and \
the file of rejects has one JSON object for each: line, code, field, message. Where an import was interrupted FILE.import-state says; \
running it again goes on there. A subscription that is taken twice is only brought up to date.";

/// What a file of subscriptions holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Judged by its first character
    Auto,
    /// One JSON object a line
    Ndjson,
    /// A header, then one subscription a row
    Csv,
}

/// `fanfare export`.
#[derive(Debug, Args)]
pub struct Export {
    /// Where to; it holds keys, so only its owner may read it. `-` is standard output
    #[arg(value_name = "FILE|-", default_value = "-")]
    pub file: PathBuf,
    /// Only of this app
    #[arg(long)]
    pub app: Option<String>,
    /// Every registered subscription, of every app that the socket knows: the same as without a segment
    #[arg(long, conflicts_with_all = SEGMENT_FLAGS, help_heading = "Which subscriptions")]
    pub all: bool,
    #[command(flatten)]
    pub segment: Segment,
}

/// `fanfare backup`.
#[derive(Debug, Args)]
pub struct Backup {
    /// What to call it; named after the time unless told
    pub name: Option<String>,
    /// Write it to a file (`-` is standard output) as one tar archive, and leave nothing in the data directory
    #[arg(long, value_name = "FILE|-")]
    pub to: Option<PathBuf>,
}

/// `fanfare restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// A directory that `backup` made, or an archive of `backup --to`; `-` reads an archive from standard input
    #[arg(value_name = "FROM")]
    pub from: PathBuf,
    /// Put an existing store aside, as db.before-restore-TIME
    #[arg(long, conflicts_with = "registry")]
    pub replace: bool,
    /// Hand only subscriptions and accounts to the running daemon; no message comes back
    #[arg(long)]
    pub registry: bool,
}
