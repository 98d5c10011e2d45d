//! The documents of the repository are true and hang together.

mod links;
