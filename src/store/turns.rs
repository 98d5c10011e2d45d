//! The writer's queue: lines of all connections wait here, and sockets take turns, so that one socket's flood costs another one turn.
//!
//! Promises. A connection's slices are taken in the order in which they came. Among sockets, and among the connections of one socket,
//! turns go round. Slices with something urgent go first, three turns of four while both kinds wait, so that neither kind starves.
//! The queue never waits: its places are counted before a slice is put in (see [`crate::ingest`]).

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use crate::message::Rank;
use crate::queue::Bell;
use crate::store::commit::Writes;
use crate::store::live::lock;

/// Turns of urgent slices in a row while others wait.
const URGENT_TURNS: u32 = 3;

/// Where a slice came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct From {
    /// Number of the socket.
    pub socket: u16,
    /// Number of the connection, unique since the start.
    pub connection: u64,
}

/// The end that slices are put in at.
#[derive(Clone)]
pub struct Turns {
    waiting: Arc<Mutex<Waiting>>,
    bell: Bell,
}

/// The writer's end. When it is dropped, what waits is dropped with it, and so is all that comes later.
pub struct Commits {
    waiting: Arc<Mutex<Waiting>>,
    bell: Bell,
}

/// A queue that holds nothing.
pub fn turns() -> (Turns, Commits) {
    let bell = Bell::default();
    let waiting = Arc::new(Mutex::new(Waiting::default()));
    (Turns { waiting: waiting.clone(), bell: bell.clone() }, Commits { waiting, bell })
}

#[derive(Default)]
struct Waiting {
    slices: HashMap<From, VecDeque<Writes>>,
    /// Who is next, by rank: high, normal.
    rings: [Ring; 2],
    urgent_turns: u32,
    closed: bool,
}

/// Sockets in turn, and in each its connections in turn. A connection is in one ring at most, by the rank of its first slice.
#[derive(Default)]
struct Ring {
    sockets: VecDeque<u16>,
    connections: HashMap<u16, VecDeque<From>>,
}

impl Ring {
    fn push(&mut self, from: From) {
        let connections = self.connections.entry(from.socket).or_default();
        if connections.is_empty() {
            self.sockets.push_back(from.socket);
        }
        connections.push_back(from);
    }

    fn push_front(&mut self, from: From) {
        let connections = self.connections.entry(from.socket).or_default();
        if connections.is_empty() {
            self.sockets.push_back(from.socket);
        }
        connections.push_front(from);
    }

    fn pop(&mut self) -> Option<From> {
        let socket = self.sockets.pop_front()?;
        let connections = self.connections.get_mut(&socket)?;
        let from = connections.pop_front();
        if connections.is_empty() {
            self.connections.remove(&socket);
        } else {
            self.sockets.push_back(socket);
        }
        from
    }
}

fn ring(writes: &Writes) -> usize {
    match writes.rank {
        Rank::High => 0,
        Rank::Normal => 1,
    }
}

impl Waiting {
    fn pop(&mut self) -> Option<Writes> {
        let first = usize::from(self.urgent_turns >= URGENT_TURNS);
        let (ring_of, from) = [first, 1 - first].into_iter().find_map(|ring| Some((ring, self.rings[ring].pop()?)))?;
        self.urgent_turns = if ring_of == 0 { self.urgent_turns + 1 } else { 0 };
        let slices = self.slices.get_mut(&from)?;
        let writes = slices.pop_front();
        match slices.front() {
            Some(next) => self.rings[ring(next)].push(from),
            None => {
                self.slices.remove(&from);
            }
        }
        writes
    }
}

impl Turns {
    /// Puts a slice behind those of its connection. Given back if the writer has ended.
    // As large as what a channel gives back.
    #[allow(clippy::result_large_err, reason = "as a channel's")]
    pub fn send(&self, writes: Writes) -> Result<(), Writes> {
        let mut waiting = lock(&self.waiting);
        if waiting.closed {
            return Err(writes);
        }
        let (from, ring) = (writes.from, ring(&writes));
        let slices = waiting.slices.entry(from).or_default();
        let first = slices.is_empty();
        slices.push_back(writes);
        if first {
            waiting.rings[ring].push(from);
        }
        drop(waiting);
        self.bell.ring();
        Ok(())
    }
}

impl Commits {
    /// The slice whose turn it is.
    pub fn next(&self) -> Option<Writes> {
        lock(&self.waiting).pop()
    }

    /// Puts the rest of a slice back in front of its connection's others; others have their turns before it.
    pub fn put_back(&self, writes: Writes) {
        let mut waiting = lock(&self.waiting);
        let from = writes.from;
        // Its connection waits already where it has more slices; the rest goes when that turn comes.
        if let Some(slices) = waiting.slices.get_mut(&from) {
            slices.push_front(writes);
            return;
        }
        let ring = ring(&writes);
        waiting.slices.insert(from, VecDeque::from([writes]));
        waiting.rings[ring].push_front(from);
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        lock(&self.waiting).slices.is_empty()
    }

    /// What rang is heard: called before looking at what waits.
    pub fn hear(&self) {
        let _looks_anyway = self.bell.hear();
    }

    /// Rung when a slice has come.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        let mut waiting = lock(&self.waiting);
        waiting.closed = true;
        let slices = std::mem::take(&mut waiting.slices);
        waiting.rings = Default::default();
        drop(waiting);
        // Whoever waits for their answers hears that the writer has ended.
        drop(slices);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::commit::Op;

    fn slice(socket: u16, connection: u64, rank: Rank, ops: usize) -> Writes {
        let (reply, _nobody) = tokio::sync::oneshot::channel();
        let ops = (0..ops).map(|_| Op::Pass { apps: None }).collect();
        Writes { rank, from: From { socket, connection }, ..Writes::new(ops, reply) }
    }

    fn order(commits: &Commits) -> Vec<(u16, u64, usize)> {
        std::iter::from_fn(|| commits.next()).map(|of| (of.from.socket, of.from.connection, of.ops.len())).collect()
    }

    #[test]
    fn sockets_and_their_connections_take_turns() {
        let (turns, commits) = turns();
        for n in 1..=3 {
            for connection in [10, 11] {
                assert!(turns.send(slice(1, connection, Rank::Normal, n)).is_ok());
            }
        }
        assert!(turns.send(slice(2, 20, Rank::Normal, 9)).is_ok());
        let expected = [(1, 10, 1), (2, 20, 9), (1, 11, 1), (1, 10, 2), (1, 11, 2), (1, 10, 3), (1, 11, 3)];
        assert_eq!(order(&commits), expected, "the second socket waits one turn, and a connection's slices keep their order");
        assert!(commits.is_empty());
    }

    #[test]
    fn urgent_slices_go_first_and_starve_nobody() {
        let (turns, commits) = turns();
        for n in 1..=8 {
            assert!(turns.send(slice(1, n, Rank::High, 1)).is_ok());
        }
        assert!(turns.send(slice(2, 20, Rank::Normal, 2)).is_ok());
        assert!(turns.send(slice(3, 30, Rank::Normal, 3)).is_ok());
        let sockets: Vec<u16> = order(&commits).iter().map(|(socket, ..)| *socket).collect();
        assert_eq!(sockets, [1, 1, 1, 2, 1, 1, 1, 3, 1, 1]);
    }

    #[test]
    fn an_urgent_slice_does_not_overtake_its_own_connection() {
        let (turns, commits) = turns();
        assert!(turns.send(slice(1, 1, Rank::Normal, 1)).is_ok());
        assert!(turns.send(slice(1, 1, Rank::High, 2)).is_ok());
        assert_eq!(order(&commits), [(1, 1, 1), (1, 1, 2)]);
    }

    #[test]
    fn the_rest_of_a_slice_stays_ahead_of_its_connection_and_behind_other_sockets() {
        let (turns, commits) = turns();
        assert!(turns.send(slice(1, 1, Rank::Normal, 5)).is_ok());
        assert!(turns.send(slice(2, 2, Rank::Normal, 7)).is_ok());
        let first = commits.next().expect("one waits");
        assert!(turns.send(slice(1, 1, Rank::Normal, 6)).is_ok());
        commits.put_back(Writes { ops: first.ops.into_iter().skip(1).collect(), ..slice(1, 1, Rank::Normal, 0) });
        assert_eq!(order(&commits), [(2, 2, 7), (1, 1, 4), (1, 1, 6)]);
        commits.put_back(slice(1, 1, Rank::Normal, 3));
        assert_eq!(order(&commits), [(1, 1, 3)]);
    }

    #[test]
    fn slices_are_given_back_when_the_writer_has_ended() {
        let (turns, commits) = turns();
        assert!(turns.send(slice(1, 1, Rank::Normal, 1)).is_ok());
        drop(commits);
        assert!(turns.send(slice(1, 1, Rank::Normal, 1)).is_err());
    }
}
