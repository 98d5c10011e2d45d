//! Turns of what only reads: so many at a time, and socket by socket, so that whoever asks much waits for itself.
//!
//! Promise: who waits, waits for those who have a turn and for at most one turn of each other socket that was there before; on no
//! thread; and who has gone is passed over.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::store::live::lock;

/// Who has a turn, and who waits for one.
pub struct Turns(Mutex<State>);

struct State {
    free: usize,
    /// Sockets of which somebody waits, the one whose turn it is first.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    socket: String,
    /// In the order in which they came.
    those: VecDeque<oneshot::Sender<Turn>>,
}

/// A turn, which ends when it is dropped. None: it was never handed out.
pub struct Turn(Option<Arc<Turns>>);

impl Turns {
    /// So many at a time.
    pub fn new(places: usize) -> Arc<Turns> {
        Arc::new(Turns(Mutex::new(State { free: places, waiting: VecDeque::new() })))
    }

    /// Waits for a turn of somebody on this socket.
    pub async fn take(self: &Arc<Self>, socket: &str) -> Turn {
        let given = {
            let mut state = lock(&self.0);
            if state.free > 0 {
                // Nobody waits while one is free.
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (give, given) = oneshot::channel();
            match state.waiting.iter_mut().find(|waiting| waiting.socket == socket) {
                Some(waiting) => waiting.those.push_back(give),
                None => state.waiting.push_back(Waiting { socket: socket.to_owned(), those: [give].into() }),
            }
            given
        };
        given.await.expect("who waits is only taken off to be given a turn")
    }
}

/// Places of requests that keep what they have found until they have found all: so many a socket.
pub struct Places {
    each: usize,
    /// Sockets are few: the configuration names them.
    sockets: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Places {
    /// So many each.
    pub fn new(each: usize) -> Places {
        Places { each, sockets: Mutex::default() }
    }

    /// Waits for one of this socket's.
    pub async fn take(&self, socket: &str) -> OwnedSemaphorePermit {
        let places = {
            let mut sockets = lock(&self.sockets);
            let new = || Arc::new(Semaphore::new(self.each));
            sockets.get(socket).cloned().unwrap_or_else(|| sockets.entry(socket.to_owned()).or_insert_with(new).clone())
        };
        places.acquire_owned().await.expect("it is never closed")
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turns) = self.0.take() else { return };
        let mut state = lock(&turns.0);
        while let Some(mut waiting) = state.waiting.pop_front() {
            let mut turn = Turn(Some(turns.clone()));
            let mut given = false;
            while !given && let Some(next) = waiting.those.pop_front() {
                match next.send(turn) {
                    Ok(()) => {
                        given = true;
                        turn = Turn(None);
                    }
                    // It has gone.
                    Err(back) => turn = back,
                }
            }
            if !waiting.those.is_empty() {
                // The other sockets come first.
                state.waiting.push_back(waiting);
            }
            if given {
                return;
            }
            turn.0 = None;
        }
        state.free += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::task::JoinHandle;

    use super::*;

    fn waiter(turns: &Arc<Turns>, socket: &'static str) -> JoinHandle<Turn> {
        let turns = turns.clone();
        tokio::spawn(async move { turns.take(socket).await })
    }

    async fn had(turn: JoinHandle<Turn>) -> Turn {
        tokio::time::timeout(Duration::from_secs(20), turn).await.expect("its turn").expect("no panic")
    }

    #[tokio::test]
    async fn a_socket_waits_for_one_turn_of_another_however_many_of_it_wait() {
        let turns = Turns::new(1);
        let mut held = Some(turns.take("a").await);
        let mut of_a: VecDeque<_> = (0..64).map(|_| waiter(&turns, "a")).collect();
        tokio::task::yield_now().await;
        for _ in 0..3 {
            let of_b = waiter(&turns, "b");
            tokio::task::yield_now().await;
            drop(held.take());
            held = Some(had(of_a.pop_front().expect("one")).await);
            assert!(!of_b.is_finished(), "it came later");
            drop(held.take());
            held = Some(had(of_b).await);
        }
        assert!(of_a.iter().all(|waits| !waits.is_finished()));
    }
}
