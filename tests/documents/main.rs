//! The documents of the repository are true and hang together: a page that has fallen behind fails here.

mod links;
mod protocol;
