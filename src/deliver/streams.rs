//! The open streams of one HTTP/2 connection, in slots with a waker each.
//!
//! A slot is used again by the next stream, so a message costs no task and no allocation here, and only the streams that
//! have news are looked at.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Wake, Waker};

/// A slab of `T`, each with a waker that notes its index.
pub(super) struct Streams<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    woken: Arc<Woken>,
    taken: Vec<usize>,
}

struct Slot<T> {
    stream: Option<T>,
    note: Arc<Note>,
    waker: Waker,
}

/// Which slots have news, and the task to wake for them.
struct Woken {
    list: Mutex<List>,
    /// The task is running and will look at the list before it sleeps.
    running: AtomicBool,
}

#[derive(Default)]
struct List {
    indices: Vec<usize>,
    task: Option<Waker>,
}

struct Note {
    index: usize,
    noted: AtomicBool,
    woken: Arc<Woken>,
}

impl Wake for Note {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.noted.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut list = self.woken.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.indices.push(self.index);
        if !self.woken.running.load(Ordering::Acquire)
            && let Some(task) = list.task.take()
        {
            drop(list);
            task.wake();
        }
    }
}

impl<T> Streams<T> {
    pub(super) fn new() -> Streams<T> {
        let woken = Arc::new(Woken { list: Mutex::default(), running: AtomicBool::new(false) });
        Streams { slots: Vec::new(), free: Vec::new(), woken, taken: Vec::new() }
    }

    /// Streams that are open.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The task runs: until [`Streams::sleep`] news are noted without waking it.
    pub(super) fn run(&self, task: &Waker) {
        self.woken.running.store(true, Ordering::Release);
        let mut list = self.woken.list.lock().unwrap_or_else(PoisonError::into_inner);
        if !list.task.as_ref().is_some_and(|known| known.will_wake(task)) {
            list.task = Some(task.clone());
        }
    }

    /// The task is about to sleep. True if there are news, for which it must be polled again.
    pub(super) fn sleep(&self) -> bool {
        self.woken.running.store(false, Ordering::Release);
        !self.woken.list.lock().unwrap_or_else(PoisonError::into_inner).indices.is_empty()
    }

    pub(super) fn insert(&mut self, stream: T) -> usize {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.slots.len();
            let note = Arc::new(Note { index, noted: AtomicBool::new(false), woken: self.woken.clone() });
            self.slots.push(Slot { stream: None, waker: Waker::from(note.clone()), note });
            index
        });
        self.slots[index].stream = Some(stream);
        index
    }

    /// Polls one stream with its own waker. `poll` says whether it has ended, and then it is returned.
    pub(super) fn poll(&mut self, index: usize, poll: impl FnOnce(&mut T, &mut Context<'_>) -> bool) -> Option<T> {
        let slot = &mut self.slots[index];
        // A late note of the slot's former stream does no harm.
        let ended = slot.stream.as_mut().is_some_and(|stream| poll(stream, &mut Context::from_waker(&slot.waker)));
        if !ended {
            return None;
        }
        self.free.push(index);
        slot.stream.take()
    }

    /// The slots with news, each once. Give the list back to [`Streams::recycle`].
    pub(super) fn news(&mut self) -> Vec<usize> {
        let mut news = std::mem::take(&mut self.taken);
        let mut list = self.woken.list.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut list.indices, &mut news);
        drop(list);
        for &index in &news {
            self.slots[index].note.noted.store(false, Ordering::Release);
        }
        news
    }

    pub(super) fn recycle(&mut self, mut news: Vec<usize>) {
        news.clear();
        self.taken = news;
    }

    /// One more than the highest index in use.
    pub(super) fn end(&self) -> usize {
        self.slots.len()
    }

    /// The stream in a slot, if there is one.
    pub(super) fn at(&self, index: usize) -> Option<&T> {
        self.slots[index].stream.as_ref()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// How often a task was woken.
    #[derive(Default)]
    pub struct Count(pub AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn news_are_noted_once_and_wake_a_sleeping_task_only() {
        let count = Arc::new(Count::default());
        let task = Waker::from(count.clone());
        let mut streams: Streams<Option<Waker>> = Streams::new();
        streams.run(&task);
        let first = streams.insert(None);
        let second = streams.insert(None);
        for index in [first, second] {
            assert!(streams.poll(index, |kept, cx| kept.insert(cx.waker().clone()).will_wake(Waker::noop())).is_none());
        }
        let wake = |streams: &Streams<Option<Waker>>, index| streams.at(index).unwrap().as_ref().unwrap().wake_by_ref();
        wake(&streams, second);
        wake(&streams, second);
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "it runs");
        let news = streams.news();
        assert_eq!(news, [second]);
        streams.recycle(news);
        assert!(!streams.sleep());
        wake(&streams, first);
        assert_eq!(count.0.load(Ordering::Relaxed), 1, "it slept");
        assert_eq!(streams.news(), [first]);
    }

    #[test]
    fn a_note_between_the_last_look_and_sleep_is_not_lost() {
        let mut streams: Streams<Option<Waker>> = Streams::new();
        streams.run(Waker::noop());
        let index = streams.insert(None);
        streams.poll(index, |kept, cx| kept.insert(cx.waker().clone()).will_wake(Waker::noop()));
        streams.at(index).unwrap().as_ref().unwrap().wake_by_ref();
        assert!(streams.sleep());
    }

    #[test]
    fn slots_are_used_again() {
        let mut streams = Streams::new();
        let index = streams.insert('a');
        assert_eq!(streams.poll(index, |_, _| true), Some('a'));
        assert_eq!((streams.len(), streams.insert('b')), (0, index));
        assert_eq!((streams.len(), streams.end()), (1, 1));
    }
}
