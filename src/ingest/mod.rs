//! The sockets: one task a connection.

pub mod request;
