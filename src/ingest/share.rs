//! Places and memory that the sockets share. Each socket has a part of its own that no other can take; the rest is for whoever comes
//! first. So one app's socket can hold all but what is left to every other socket, and whatever it does the operator gets in.
//!
//! `ingest.memory_mb` has four parts, so that none waits for one that waits for it: what is read of lines that are not whole yet
//! (an eighth in buffers of [`CHUNK_BYTES`], a quarter for lines that are longer), what is not answered yet (three eighths), answers
//! that are being made or not taken (a quarter). Whoever holds memory of the first two and the last without getting on must give it up
//! when others wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config;
use crate::ingest::{CHUNK_BYTES, QUEUE_LINES, SLICE_LINES};
use crate::limits::ANSWER_KIB;

/// What one socket may take.
pub struct Shares {
    pub connections: Share,
    /// Places in the writer's queue.
    pub places: Share,
    /// KiB of buffers that are read into.
    pub chunks: Share,
    /// KiB of lines that are longer than such a buffer, as long as they are not whole.
    pub lines: Share,
    /// KiB of lines, and of short answers, until they are answered.
    pub unanswered: Share,
    /// KiB of what was read for an answer, until the client has taken it.
    pub answers: Share,
    /// Turns of this socket's connections on the threads that read and answer: all of these threads but one, which is there for other
    /// sockets. The other connections of a socket wait in a queue of their own.
    turns: Arc<Semaphore>,
}

/// Threads that read, answer and post: one for each core, and at least two.
pub fn reading_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from).max(2)
}

/// A connection's turn, until it is dropped.
pub type Turn = OwnedSemaphorePermit;

impl Shares {
    /// Divides so many connections, and the memory of `[ingest]`, among `sockets`.
    pub fn divide(connections: usize, ingest: &config::Ingest, sockets: usize) -> Vec<Shares> {
        let kib = ingest.memory_mb * 1_024;
        let turns = reading_threads() - 1;
        let line = line_kib(ingest.line_limit);
        let all = shares(connections, sockets, 1)
            .into_iter()
            .zip(shares(QUEUE_LINES, sockets, SLICE_LINES))
            .zip(shares(kib / 8, sockets, CHUNK_BYTES / 1_024))
            .zip(shares(kib / 4, sockets, line))
            .zip(shares(kib * 3 / 8, sockets, 1))
            .zip(shares(kib / 4, sockets, ANSWER_KIB));
        all.map(|(((((connections, places), chunks), lines), unanswered), answers)| Shares {
            connections,
            places,
            chunks,
            lines,
            unanswered,
            answers,
            turns: Arc::new(Semaphore::new(turns)),
        })
        .collect()
    }

    /// Waits for a turn, in the order of those who ask. Whoever has it must not wait for anything.
    pub async fn turn(&self) -> Turn {
        self.turns.clone().acquire_owned().await.expect("it is never closed")
    }
}

/// KiB that are taken for a line that is longer than [`CHUNK_BYTES`], whatever it will have: nobody who holds some waits for more.
pub fn line_kib(line_limit: usize) -> usize {
    (line_limit + CHUNK_BYTES) / 1_024 + 1
}

/// What one socket may take of something.
#[derive(Clone)]
pub struct Share {
    own: Arc<Semaphore>,
    common: Arc<Semaphore>,
    /// What `own` and `common` have in all. More than the larger of them cannot be taken at once: such a wish is cut to it.
    own_size: usize,
    common_size: usize,
    /// How many wait, on this socket.
    waiting: Arc<AtomicUsize>,
}

/// Divides `total` among `sockets`: a quarter of it belongs to them one by one, in equal parts of at least `least`, the rest to all.
/// Where `total` is less than `least` for each it is exceeded: each can do one thing at a time.
pub fn shares(total: usize, sockets: usize, least: usize) -> Vec<Share> {
    let sockets = sockets.max(1);
    let own = (total / 4 / sockets).max(least).min(Semaphore::MAX_PERMITS / 2);
    let common = total.saturating_sub(own * sockets).min(Semaphore::MAX_PERMITS / 2);
    let shared = Arc::new(Semaphore::new(common));
    let share = |_| Share {
        own: Arc::new(Semaphore::new(own)),
        common: shared.clone(),
        own_size: own,
        common_size: common,
        waiting: Arc::default(),
    };
    (0..sockets).map(share).collect()
}

impl Share {
    /// Takes `n`, or None if they are not free.
    pub fn try_take(&self, n: usize) -> Option<OwnedSemaphorePermit> {
        let n = self.wish(n);
        self.own.clone().try_acquire_many_owned(n).or_else(|_| self.common.clone().try_acquire_many_owned(n)).ok()
    }

    /// Takes `n` as soon as they are free, in the order of those who ask. Nothing is taken if it is dropped before.
    pub async fn take(&self, n: usize) -> OwnedSemaphorePermit {
        if let Some(taken) = self.try_take(n) {
            return taken;
        }
        let n = self.wish(n);
        let _one_more = Waiting::count(&self.waiting);
        let never = "it is never closed";
        let (own, common) = (self.own.clone().acquire_many_owned(n), self.common.clone().acquire_many_owned(n));
        // Where it can never be granted it does not wait, for it would keep from others what it gathers.
        tokio::select! {
            taken = own, if n as usize <= self.own_size => taken.expect(never),
            taken = common, if n as usize <= self.common_size => taken.expect(never),
        }
    }

    /// Whether somebody waits, so that those who hold more than they need should give it up.
    pub fn waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// What the socket could take now.
    pub fn free(&self) -> usize {
        self.own.available_permits() + self.common.available_permits()
    }

    fn wish(&self, n: usize) -> u32 {
        u32::try_from(n.min(self.own_size.max(self.common_size))).unwrap_or(u32::MAX)
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Waiting<'_> {
    fn count(waiting: &AtomicUsize) -> Waiting<'_> {
        waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    fn take_all(share: &Share) -> Vec<OwnedSemaphorePermit> {
        std::iter::from_fn(|| share.try_take(1)).collect()
    }

    #[test]
    fn a_socket_that_takes_all_it_can_leaves_every_other_its_part() {
        for (total, sockets) in [(4_096, 1), (4_096, 2), (4_096, 7), (448, 3), (3, 1), (3, 3), (2, 5)] {
            let shares = shares(total, sockets, 1);
            let greedy = take_all(&shares[0]);
            let others: Vec<usize> = shares[1..].iter().map(|share| take_all(share).len()).collect();
            assert!(others.iter().all(|taken| *taken == (total / 4 / sockets).max(1)), "{others:?}");
            assert_eq!(greedy.len() + others.iter().sum::<usize>(), total.max(sockets), "{total} of {sockets}");
            drop(greedy);
            assert!(shares[sockets - 1].try_take(1).is_some());
        }
    }

    #[tokio::test]
    async fn who_waits_is_seen_and_gets_what_is_given_back() {
        let shares = shares(100, 2, 1);
        let most = shares[0].try_take(1_000).expect("a wish is cut to what there can be");
        assert_eq!(most.num_permits(), 76);
        let own = shares[0].try_take(12).expect("its own part");
        assert!(shares[0].try_take(1).is_none() && !shares[0].waited_for());
        let waiter = {
            let share = shares[0].clone();
            tokio::spawn(async move { share.take(5).await })
        };
        while !shares[0].waited_for() {
            tokio::task::yield_now().await;
        }
        assert!(!shares[1].waited_for(), "another socket's trouble is not this one's");
        drop(own);
        let taken = timeout(Duration::from_secs(10), waiter).await.expect("it is given").expect("no panic");
        assert_eq!((taken.num_permits(), shares[0].waited_for()), (5, false));
    }
}
