//! Why the store cannot be opened, written or read.

use std::path::PathBuf;

use crate::printable;
use crate::store::family::FORMAT;

/// Why the store cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// Another instance holds it; its pid if it could be read.
    Locked { pid: Option<u32> },
    /// It was written by a newer Fanfare.
    Newer { found: u8 },
    /// The directory cannot be used.
    Directory { path: PathBuf, error: std::io::Error },
    /// RocksDB says no.
    Database(String),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Locked { pid: Some(pid) } => write!(f, "the store is in use by the process {pid}"),
            OpenError::Locked { pid: None } => f.write_str("the store is in use by another process"),
            OpenError::Newer { found } => {
                write!(f, "the store has format {found}, this program knows formats up to {FORMAT}: start a newer fanfare")
            }
            OpenError::Directory { path, error } => write!(f, "cannot use the directory {}: {error}", printable::path(path)),
            OpenError::Database(text) => write!(f, "cannot open the database: {text}"),
        }
    }
}

/// Why a write failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WriteError {
    /// No space: the store is closed and opened again until a probe succeeds.
    Full(String),
    /// The process, or the machine, has no descriptor for a file that RocksDB wants to open: closed and opened again likewise. What was
    /// synced before is there; nothing of this write was answered.
    Descriptors(String),
    /// The store is closed just now.
    Closed,
    /// Anything else: what the kernel dropped cannot be known, so the process ends with 74.
    Broken(String),
}

impl std::fmt::Display for WriteError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WriteError::Full(text) | WriteError::Descriptors(text) | WriteError::Broken(text) => f.write_str(text),
            WriteError::Closed => f.write_str("the store is being opened again"),
        }
    }
}

/// A read that failed: the store is closed just now, or RocksDB cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadError;
