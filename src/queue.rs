//! Queues between threads whose consumer sleeps as soon as it finds nothing.
//!
//! A blocking receive of crossbeam gives its time slice away eight times or so before it sleeps. On a machine where more threads
//! want to run than there are cores, each of these costs a round of all others: some 25 ms, in every thread that a message passes.
//! Here a consumer that finds its queue empty sleeps at once, and whoever puts something in wakes it, with one system call if it
//! sleeps and none if it does not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

pub use crossbeam_channel::{RecvTimeoutError, SendError, TryRecvError, TrySendError};

/// Wakes one thread. Rung while that thread is awake, it is heard at the next [`listen`].
#[derive(Clone, Default)]
pub struct Bell(Arc<State>);

#[derive(Default)]
struct State {
    rung: AtomicBool,
    sleeper: Mutex<Option<Thread>>,
}

impl Bell {
    /// Wakes the thread that listens, or will listen.
    pub fn ring(&self) {
        // Whoever rang first has woken it.
        if !self.0.rung.swap(true, Ordering::SeqCst)
            && let Some(sleeper) = &*self.0.sleeper.lock().unwrap_or_else(PoisonError::into_inner)
        {
            sleeper.unpark();
        }
    }

    /// Whether it was rung since it was heard last.
    pub fn hear(&self) -> bool {
        self.0.rung.swap(false, Ordering::SeqCst)
    }

    /// Its sleeper is this thread from now on.
    fn attend(&self) {
        let mut sleeper = self.0.sleeper.lock().unwrap_or_else(PoisonError::into_inner);
        if sleeper.as_ref().is_none_or(|sleeper| sleeper.id() != thread::current().id()) {
            *sleeper = Some(thread::current());
        }
    }
}

/// Sleeps until one of the bells is rung, at most so long; true if one was. They have one listening thread each.
pub fn listen(bells: &[&Bell], patience: Duration) -> bool {
    bells.iter().for_each(|bell| bell.attend());
    let began = Instant::now();
    loop {
        // All of them: what one says is looked at once.
        if bells.iter().fold(false, |heard, bell| bell.hear() | heard) {
            return true;
        }
        let left = patience.saturating_sub(began.elapsed());
        if left.is_zero() {
            return false;
        }
        thread::park_timeout(left);
    }
}

/// The end of a queue that things are put in at.
pub struct Sender<T> {
    queue: crossbeam_channel::Sender<T>,
    bell: Bell,
}

/// The end of a queue for its one consumer.
pub struct Receiver<T> {
    queue: crossbeam_channel::Receiver<T>,
    bell: Bell,
}

/// A queue of at most so many things.
pub fn bounded<T>(most: usize) -> (Sender<T>, Receiver<T>) {
    ends(crossbeam_channel::bounded(most))
}

/// A queue that takes everything.
pub fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    ends(crossbeam_channel::unbounded())
}

fn ends<T>((sender, receiver): (crossbeam_channel::Sender<T>, crossbeam_channel::Receiver<T>)) -> (Sender<T>, Receiver<T>) {
    let bell = Bell::default();
    (Sender { queue: sender, bell: bell.clone() }, Receiver { queue: receiver, bell })
}

impl<T> Sender<T> {
    /// Puts something in; waits while the queue is full. Given back if the consumer has gone.
    pub fn send(&self, thing: T) -> Result<(), SendError<T>> {
        let sent = self.queue.send(thing);
        self.bell.ring();
        sent
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        Sender { queue: self.queue.clone(), bell: self.bell.clone() }
    }
}

impl<T> Receiver<T> {
    /// Takes the first thing, if there is one.
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.queue.try_recv()
    }

    /// Takes the first thing; waits for it so long at most.
    pub fn recv_timeout(&self, patience: Duration) -> Result<T, RecvTimeoutError> {
        let began = Instant::now();
        loop {
            match self.queue.try_recv() {
                Ok(thing) => return Ok(thing),
                Err(TryRecvError::Disconnected) => return Err(RecvTimeoutError::Disconnected),
                Err(TryRecvError::Empty) => {}
            }
            if !listen(&[&self.bell], patience.saturating_sub(began.elapsed())) {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }

    /// How many things are in it.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Rung when something was put in.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn everything_arrives_in_order_from_many_threads() {
        let (sender, receiver) = bounded(3);
        let threads: Vec<_> = (0..4u32)
            .map(|thread| {
                let sender = sender.clone();
                thread::spawn(move || (0..2_000u32).for_each(|number| sender.send((thread, number)).expect("it is received")))
            })
            .collect();
        let mut next = [0; 4];
        for _ in 0..8_000 {
            let (thread, number) = receiver.recv_timeout(LONG).expect("more to come");
            assert_eq!(number, next[thread as usize]);
            next[thread as usize] += 1;
        }
        threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
        assert_eq!(receiver.recv_timeout(Duration::from_millis(1)), Err(RecvTimeoutError::Timeout));
    }

    #[test]
    fn a_sleeper_is_woken_by_what_comes() {
        let (sender, receiver) = unbounded();
        let consumer = thread::spawn(move || receiver.recv_timeout(LONG));
        thread::sleep(Duration::from_millis(50));
        let began = Instant::now();
        sender.send(7).expect("it is received");
        assert_eq!(consumer.join().expect("no panic"), Ok(7));
        assert!(began.elapsed() < LONG / 2);
    }

    #[test]
    fn either_bell_wakes_and_is_kept_for_who_is_awake() {
        let (one, two) = (Bell::default(), Bell::default());
        assert!(!listen(&[&one, &two], Duration::from_millis(1)));
        two.ring();
        assert!(listen(&[&one, &two], LONG));
        assert!(!listen(&[&one, &two], Duration::from_millis(1)), "it was heard");
        let ringer = {
            let one = one.clone();
            thread::spawn(move || {
                thread::sleep(Duration::from_millis(50));
                one.ring();
            })
        };
        let began = Instant::now();
        assert!(listen(&[&two, &one], LONG));
        assert!(began.elapsed() < LONG / 2);
        ringer.join().expect("no panic");
    }

    #[test]
    fn who_waits_for_senders_that_have_gone_waits_no_longer_than_it_said() {
        let (sender, receiver) = unbounded::<()>();
        drop(sender);
        assert_eq!(receiver.recv_timeout(LONG), Err(RecvTimeoutError::Disconnected));
    }
}
