//! The lists that have something left for a lane, in the order of their turns: apps in turn, and each app's lists in turn, so that an
//! app with ten thousand campaigns delays another one's by one turn.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::store::live::ListKey;

/// Lists in turn. A list is in it once at most.
#[derive(Default)]
pub struct Ring {
    /// Apps with lists, in the order of their turns.
    apps: VecDeque<Arc<str>>,
    lists: HashMap<Arc<str>, VecDeque<ListKey>>,
    known: HashSet<ListKey>,
}

impl Ring {
    /// A list waits for its turn, behind its app's others; nothing changes if it waits already.
    pub fn push(&mut self, app: &Arc<str>, list: ListKey) {
        if !self.known.insert(list) {
            return;
        }
        let lists = match self.lists.get_mut(app) {
            Some(lists) => lists,
            None => self.lists.entry(app.clone()).or_default(),
        };
        if lists.is_empty() {
            self.apps.push_back(app.clone());
        }
        lists.push_back(list);
    }

    /// The list whose turn it is, taken out of the ring.
    pub fn pop(&mut self) -> Option<ListKey> {
        let app = self.apps.pop_front()?;
        let lists = self.lists.get_mut(&app)?;
        let list = lists.pop_front();
        if lists.is_empty() {
            self.lists.remove(&app);
        } else {
            self.apps.push_back(app);
        }
        if let Some(list) = list {
            self.known.remove(&list);
        }
        list
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apps_take_turns_and_so_do_their_lists() {
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let list = |commit| ListKey { commit, place: 0 };
        let mut ring = Ring::default();
        for commit in 1..=3 {
            ring.push(&a, list(commit));
        }
        ring.push(&b, list(9));
        ring.push(&a, list(2));
        assert_eq!(ring.len(), 4, "a list is in it once");
        let mut order = Vec::new();
        for _ in 0..6 {
            let next = ring.pop().expect("some wait");
            order.push(next.commit);
            ring.push(if next.commit == 9 { &b } else { &a }, next);
        }
        assert_eq!(order, [1, 9, 2, 9, 3, 9]);
        while ring.pop().is_some() {}
        assert!(ring.is_empty());
    }
}
