//! The words of the protocol, below everything that uses them: clients, the store and the stages of the daemon alike.
//!
//! | file | holds |
//! |---|---|
//! | [`json`] | a line as a tree of JSON values, and JSON text from one |
//! | [`keys`] | base64 text as bytes and as the keys of a subscription |
//! | [`request`] | checked requests, error codes and the types of events |
//! | [`reason`] | why a delivery ended or is tried again |
//! | [`reply`] | the members of a reply, and replies of failure |
//! | [`time`] | times as text |

pub mod json;
pub mod keys;
pub mod reason;
pub mod reply;
pub mod request;
pub mod time;
