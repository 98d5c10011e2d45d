//! The descriptors of the process: how many there are, and who gets how many.
//!
//! Promise: what is given out by these shares stays below the limit of the process (RLIMIT_NOFILE), so that whoever opens connections
//! to our sockets takes none from the store or from the connections to push services, and the other way round. What still meets
//! EMFILE tries again.

use std::io;

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Whether the process (EMFILE) or the machine (ENFILE) has no descriptor left: nobody's fault but ours, and worth another try.
pub fn lacking(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}

/// With fewer there may be too few to share out; it depends on the number of sockets.
const LEAST: usize = 256;
/// What has no share: standard streams, the runtime, the files of RocksDB that are no tables (log, manifest, directories), what a
/// compaction or a backup opens, the store's spare ones, the page of metrics, questions to name servers, what is read at SIGHUP.
pub(crate) const RESERVE: usize = 128;
/// Each socket has its listener and a spare one.
const A_SOCKET: usize = 2;
/// RocksDB keeps at most so many tables open; more would hardly make it faster.
const STORE_MOST: usize = 512;
/// With fewer connections to push services one slow service would hold up the others.
const POOL_LEAST: usize = 16;

const _: () = assert!((LEAST - RESERVE) / 4 > POOL_LEAST);

/// Who gets how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptors {
    /// Tables that RocksDB keeps open.
    pub store: usize,
    /// Connections to push services.
    pub pool: usize,
    /// Connections of clients.
    pub connections: usize,
}

impl Descriptors {
    /// Raises the limit of the process as far as it can be, and shares it out: to the store as many as it can use, to `pool` and
    /// `connections` what they ask for, if there are so many; it is logged where clients get fewer. The error is the limit, if there is
    /// not enough for so many `sockets` to listen on.
    pub fn share_out(pool: usize, connections: usize, sockets: usize) -> Result<Descriptors, usize> {
        let limit = raise();
        let wanted = Descriptors { store: STORE_MOST, pool, connections };
        let shares = wanted.within(limit, sockets).ok_or(limit)?;
        if shares.connections < connections {
            tracing::warn!(
                limit,
                connections = shares.connections,
                wanted = connections,
                to_push_services = shares.pool,
                "the limit of open files does not allow ingest.connections: fewer are taken; raise LimitNOFILE= in fanfare.service, \
                 or `ulimit -Hn`"
            );
        }
        Ok(shares)
    }

    /// The shares of a `limit`: a quarter for the store and a quarter for the pool at most, the rest for clients of so many sockets.
    /// None if there is not enough.
    fn within(self, limit: usize, sockets: usize) -> Option<Descriptors> {
        let rest = limit.checked_sub(RESERVE + sockets * A_SOCKET).filter(|rest| rest / 4 >= POOL_LEAST)?;
        let store = self.store.min(rest / 4);
        let pool = self.pool.clamp(POOL_LEAST, rest / 4);
        Some(Descriptors { store, pool, connections: self.connections.min(rest - store - pool) })
    }
}

/// Raises the soft limit to the hard one; what it is then.
fn raise() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            // The kernel's default for the soft limit.
            tracing::warn!(%error, "the limit of open files cannot be read: it is taken to be 1024");
            return 1_024;
        }
    };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        // In a unit with a filter of system calls both are the same.
        Err(_) => soft,
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Descriptors = Descriptors { store: STORE_MOST, pool: 4_096, connections: 4_096 };

    #[test]
    fn the_limit_of_the_unit_gives_everybody_what_the_defaults_ask_for() {
        assert_eq!(WANTED.within(65_536, 1), Some(WANTED));
        assert_eq!(WANTED.within(usize::MAX, 20), Some(WANTED));
    }

    #[test]
    fn a_small_limit_is_shared_out_and_not_exceeded() {
        assert_eq!(WANTED.within(1_024, 2), Some(Descriptors { store: 223, pool: 223, connections: 446 }));
        assert_eq!(WANTED.within(150, 1), None);
        for limit in LEAST..20_000 {
            let Descriptors { store, pool, connections } = WANTED.within(limit, 8).expect("it is enough");
            assert!(store + pool + connections + RESERVE + 8 * A_SOCKET <= limit, "{limit}");
            assert!(store >= 28 && pool >= POOL_LEAST && connections >= 56, "{limit}");
        }
        let modest = Descriptors { store: STORE_MOST, pool: 4, connections: 3 };
        assert_eq!(modest.within(1_024, 2), Some(Descriptors { store: 223, pool: POOL_LEAST, connections: 3 }));
    }
}
