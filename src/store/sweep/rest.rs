//! Campaigns that are over before their walk is, by a cancellation or their deadline: they are walked to their end without sending,
//! so that every recipient ends in one state and the counts add up.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::message::Service;
use crate::store::live::{List, ListKey};
use crate::store::registry::walk::Shape;
use crate::store::sweep::Sweep;
use crate::store::writer::Settle;
use crate::store::{ReadError, list_state};

impl Sweep {
    /// Walks campaigns that are over to their end without sending, so that the rest is counted.
    pub(super) fn count_rest(&self) -> Result<(), ReadError> {
        for (key, list) in self.store.lists.all() {
            let Some(wanted) = &list.wanted else { continue };
            let services: Vec<Service> = {
                let state = list_state(&list);
                match &state.walks {
                    Some(walks) if state.over.is_some() && !state.closed => walks.keys().copied().collect(),
                    _ => continue,
                }
            };
            let path = self.store.path(wanted)?;
            for service in services {
                // Those that were opened before, then each new one: a stretch is looked at once in a round.
                for shape in open_shapes(&list, service) {
                    self.count_stretch(key, &list, service, &shape)?;
                }
                while let Some(shape) = self.store.open_stretch(&list, &path, service)? {
                    if self.stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    self.count_stretch(key, &list, service, &shape)?;
                }
            }
            self.send(Settle::Walked(key));
        }
        Ok(())
    }

    /// Ends what of an open stretch of a walk nobody is busy with.
    fn count_stretch(&self, key: ListKey, list: &List, service: Service, shape: &Arc<Shape>) -> Result<(), ReadError> {
        let batch = self.store.stretch(list.stretch(service, shape.first), shape)?;
        let claimed = batch.claim(0, u16::MAX);
        if claimed.is_empty() {
            return Ok(());
        }
        match self.store.judge(&batch, list, &claimed) {
            Ok((matched, absent)) => {
                let matched = matched.iter().map(|delivery| delivery.id.index).collect();
                self.send(Settle::Rest { batch, list: key, matched, absent });
                Ok(())
            }
            Err(error) => {
                claimed.iter().for_each(|place| batch.release(*place));
                Err(error)
            }
        }
    }
}

/// The stretches of a walk of which something is still to be settled.
fn open_shapes(list: &List, service: Service) -> Vec<Arc<Shape>> {
    let state = list_state(list);
    let walk = state.walks.as_ref().and_then(|walks| walks.get(&service));
    walk.map_or_else(Vec::new, |walk| walk.open.values().filter(|open| !open.done).map(|open| open.shape.clone()).collect())
}
