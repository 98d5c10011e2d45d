//! Campaigns: what the writer keeps of a walk. The scheduler opens stretches and the workers judge who belongs; here it is kept how
//! far all that is done, so that a start goes on where the last checkpoint was.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::{BatchId, Service};
use crate::store::live::{Batch, List, ListKey, ListState, WAITING, Walk};
use crate::store::registry::row::App;
use crate::store::writer::Writer;
use crate::store::{ReadError, Rows, Store, family, key, list_state};

impl Writer {
    /// A walk over each service, up to the subscriptions that there are now.
    pub(super) fn walks_from_now(&self) -> BTreeMap<Service, Walk> {
        self.next_serial.iter().map(|(service, next)| (*service, Walk::new(next - 1))).collect()
    }

    /// The moment has come at which it is decided who was there in time.
    pub(super) fn begin_campaign(&mut self, key: ListKey) {
        let Some(list) = self.store.lists.get(key) else { return };
        {
            let mut state = list_state(&list);
            if state.walks.is_some() || state.over.is_some() {
                return;
            }
            state.walks = Some(self.walks_from_now());
        }
        self.checkpoint.touch();
        self.checkpoint.forced = true;
        self.checkpoint.lists.insert(key, list);
        self.checkpoint.begun.push(key);
    }
}

/// Puts the rows of stretches that have changed, and moves the cursors of their walks: everything below a cursor is done with,
/// and what waits by itself has its row. A stretch behind the cursor keeps its row, also when all of it has ended: a start
/// opens it from there, and not anew.
pub(super) fn put_walk(list: &List, changed: &[Arc<Batch>], rows: &mut Rows, reader: &crate::store::Reader<'_>) {
    let mut state = list_state(list);
    let ListState { walks: Some(walks), .. } = &mut *state else { return };
    for batch in changed {
        let BatchId::Stretch { lane, first, .. } = batch.id else { continue };
        let Some(shape) = &batch.shape else { continue };
        let (bytes, done, ended) = batch.image();
        let row = key::batch_key(&batch.id);
        let open = walks.get_mut(&lane.service).and_then(|walk| walk.open.get_mut(&first));
        match open {
            Some(open) => {
                (open.done, open.ended) = (done, ended);
                open.settled = bytes.iter().filter(|byte| **byte != WAITING).count();
                rows.put(reader, family::OUTCOME, row, shape.encode(&bytes));
            }
            None if ended => rows.delete(reader, family::OUTCOME, row),
            None => rows.put(reader, family::OUTCOME, row, shape.encode(&bytes)),
        }
    }
    for (service, walk) in walks {
        for first in walk.pass() {
            rows.delete(reader, family::OUTCOME, key::batch_key(&list.stretch(*service, first)));
        }
        walk.passed = walk.passed.max(walk.progress());
    }
    state.closed = state.walked();
}

/// Gives each app of the configuration the number that it keeps.
pub(super) fn know_apps(store: &Store, apps: &[Arc<str>]) -> Result<(), ReadError> {
    let mut rows = Rows::new();
    {
        let reader = store.reader()?;
        for app in apps.iter().filter(|app| store.registry.app(app).is_none()) {
            let number: App = store.registry.next_app();
            rows.put(&reader, family::META, format!("app/{app}"), number.to_be_bytes());
            store.registry.learn_app(number, app.clone());
        }
    }
    if rows.is_empty() { Ok(()) } else { store.write(rows).map_err(|_| ReadError) }
}
