//! A run: the deliveries that a worker takes together. The scheduler makes runs, workers load them.

use std::sync::Arc;

use crate::message::{BatchId, Delivery, Lane, Origin};
use crate::store::key::{ChunkKey, DueKey, WorkKey};
use crate::store::live::{Batch, List, ListKey};
use crate::store::load::DueClaim;
use crate::store::registry::walk::Shape;
use crate::store::writer::Settle;
use crate::store::{ReadError, Store, family, record};

/// What a worker is to do: read these, claim them, seal them.
pub struct Run {
    pub lane: Lane,
    pub source: Source,
    /// Index of the first delivery in the row.
    pub from: u16,
    /// Places of the row from `from` on, or rows of `due`; all are counted as handed out.
    pub most: u16,
    /// The service's one origin, where it has one: the run is counted there too.
    pub origin: Option<Origin>,
    /// The batch with its row, if it was committed just now.
    pub batch: Option<Arc<Batch>>,
}

/// Where the deliveries of a run are.
pub enum Source {
    Row(WorkKey),
    Chunk(ChunkKey, Arc<List>),
    /// A stretch of a campaign.
    Stretch(BatchId, Arc<Shape>, Arc<List>),
    Due(Vec<DueKey>),
}

/// What [`load`] found.
#[derive(Default)]
pub(crate) struct Loaded {
    #[allow(clippy::vec_box, reason = "each is moved on as a box")]
    pub(crate) deliveries: Vec<Box<Delivery>>,
    /// Rows of `due` that nobody needs any more.
    pub(crate) stale: Vec<DueKey>,
    /// Something could not be read, or not be claimed, just now: its lane reads it again.
    pub(crate) back: bool,
    /// Places of a stretch where nobody is whom its campaign concerns.
    pub(crate) absent: Option<(Arc<Batch>, ListKey, Vec<u16>)>,
}

/// Claims and reads the deliveries of a run.
pub(crate) fn load(store: &Store, run: &Run) -> Result<Loaded, ReadError> {
    let mut deliveries = Vec::new();
    match &run.source {
        Source::Row(key) => {
            let batch = match &run.batch {
                Some(batch) => batch.clone(),
                None => store.batch(key.batch(), key.count)?,
            };
            let Some(row) = store.work_row(&batch, key)? else { return Ok(Loaded { deliveries, ..Loaded::default() }) };
            let claimed = batch.claim(run.from, run.most);
            deliveries = store.work_row_deliveries(key, &claimed, &row);
            release_missing(&batch, None, &claimed, &deliveries);
            if resolve(store, &mut deliveries).is_err() {
                claimed.iter().for_each(|index| batch.release(*index));
                return Err(ReadError);
            }
        }
        Source::Chunk(key, list) => {
            let id = key.batch(list.message.urgency);
            let batch = store.batch(id, key.count)?;
            let Some(row) = store.chunk_row(&batch, key)? else { return Ok(Loaded { deliveries, ..Loaded::default() }) };
            let message = store.whole_message(list)?;
            // Paused since it was handed out: its lane keeps it for `resume`.
            let Some(claimed) = list.claim(&batch, run.from, run.most) else {
                return Ok(Loaded { back: true, ..Loaded::default() });
            };
            if record::read_chunk_row(&row, id, &message, &claimed, |delivery| deliveries.push(delivery)).is_err() {
                store.corrupt(family::LIST);
            }
            release_missing(&batch, Some(list), &claimed, &deliveries);
            if resolve(store, &mut deliveries).is_err() {
                let held: Vec<u16> = deliveries.iter().map(|delivery| delivery.id.index).collect();
                list.release(&batch, &held);
                return Err(ReadError);
            }
        }
        Source::Stretch(id, shape, list) => {
            let batch = store.stretch(*id, shape)?;
            // Paused since it was handed out, as above.
            let Some(claimed) = list.claim_stretch(&batch, run.from, run.most) else {
                return Ok(Loaded { back: true, ..Loaded::default() });
            };
            let Ok((deliveries, absent)) = store.judge(&batch, list, &claimed) else {
                claimed.iter().for_each(|place| batch.release(*place));
                return Err(ReadError);
            };
            list.judged(deliveries.len());
            let absent = (!absent.is_empty()).then(|| (batch, ListKey::of(list.message.id), absent));
            return Ok(Loaded { deliveries, absent, ..Loaded::default() });
        }
        Source::Due(keys) => {
            let mut stale = Vec::new();
            for key in keys {
                match store.claim_due(key) {
                    Ok(DueClaim::Claimed(delivery)) => deliveries.push(delivery),
                    Ok(DueClaim::Stale) => stale.push(*key),
                    Ok(DueClaim::Elsewhere) => {}
                    Err(ReadError) => return Ok(Loaded { deliveries, stale, back: true, absent: None }),
                }
            }
            return Ok(Loaded { deliveries, stale, back: false, absent: None });
        }
    }
    Ok(Loaded { deliveries, ..Loaded::default() })
}

/// Reads those that the registry keeps.
fn resolve(store: &Store, deliveries: &mut [Box<Delivery>]) -> Result<(), ReadError> {
    deliveries.iter_mut().try_for_each(|delivery| store.resolve(delivery))
}

/// What was claimed but would not decode is given back: it is counted and told, and never sent.
fn release_missing(batch: &Arc<Batch>, list: Option<&Arc<List>>, claimed: &[u16], read: &[Box<Delivery>]) {
    if claimed.len() == read.len() {
        return;
    }
    let missing: Vec<u16> =
        claimed.iter().copied().filter(|index| !read.iter().any(|delivery| delivery.id.index == *index)).collect();
    match list {
        None => missing.iter().for_each(|index| batch.release(*index)),
        Some(list) => list.release(batch, &missing),
    }
}

/// Tells the lane of a run to read it again.
pub(crate) fn unread(run: &Run) -> Option<Settle> {
    Some(match &run.source {
        Source::Row(key) => Settle::Unread { batch: key.batch(), count: key.count, due: None },
        Source::Stretch(batch, ..) => Settle::Unread { batch: *batch, count: 0, due: None },
        Source::Chunk(key, list) => Settle::Unread { batch: key.batch(list.message.urgency), count: key.count, due: None },
        Source::Due(keys) => {
            let first = keys.first()?;
            Settle::Unread { batch: first.delivery.batch, count: 0, due: Some(first.time) }
        }
    })
}
