//! The pool against peers that play every fault on command, over real TLS on loopback. Each test ends by checking the
//! contract that all accounting stands on: every post was answered exactly once.
//!
//! `stage` holds the pool, the listener and the peer that is played frame by frame; the tests lie by what is tried: `http2`, `http1`,
//! `connecting` (addresses, TLS, proxies), `floods`, `pool` (stopping, ranks, time, bounds, all faults at once).

mod connecting;
mod floods;
mod http1;
mod http2;
mod pool;
mod stage;

pub(super) use self::stage::sealed;
