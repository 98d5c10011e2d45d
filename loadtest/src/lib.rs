//! What Fanfare is tested and measured with: a strict [mock push service](mock), a [daemon](daemon::Daemon) in a temporary
//! directory, a [client](client::Client) of its socket, a [disk](disk::Disk) that fails, and readings of the [machine], and a [population] that subscribes.
//!
//! Nothing here shares code with the daemon: all cryptography is OpenSSL's, and the protocol is written down a second time.

pub mod client;
pub mod daemon;
pub mod disk;
pub mod machine;
pub mod mock;
pub mod population;
