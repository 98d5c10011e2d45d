//! The sockets: one task a connection.

pub mod json;
pub mod keys;
pub mod line;
pub mod reply;
pub mod request;
