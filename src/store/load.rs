//! What a worker reads before it seals: the batch of a run, claimed, and its deliveries.

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{BatchId, Delivery, DeliveryId, Message, MessageId, Recipient, Registered, SubscriptionId};
use crate::store::key::{self, ChunkKey, DueKey, WorkKey};
use crate::store::live::{self, Batch, List, ListKey};
use crate::store::record::{self, Head, Take};
use crate::store::registry::row::View;
use crate::store::registry::walk::Shape;
use crate::store::{ReadError, Store, family, list_state};

/// What came of claiming a delivery that waits by itself.
pub enum DueClaim {
    Claimed(Box<Delivery>),
    /// It is in flight, or waits under another time: whoever moves it takes care of its row.
    Elsewhere,
    /// It has ended: the row is a hint that nobody needs any more.
    Stale,
}

impl Store {
    /// A batch of `count` recipients whose row is known to exist.
    pub fn batch(&self, id: BatchId, count: u16) -> Result<Arc<Batch>, ReadError> {
        self.batches.get_or_load(id, || self.load(&id, usize::from(count), None))
    }

    /// The batch of a stretch.
    pub fn stretch(&self, id: BatchId, shape: &Arc<Shape>) -> Result<Arc<Batch>, ReadError> {
        self.batches.get_or_load(id, || self.load(&id, shape.len(), Some(shape)))
    }

    /// Those places of a batch, of a stretch if it has a shape, that wait at the moment. It does not get into memory by that.
    pub fn waiting(&self, id: BatchId, count: usize, shape: Option<&Arc<Shape>>) -> Result<Vec<u16>, ReadError> {
        Ok(self.batches.peek(id, || self.load(&id, count, shape))?.waiting())
    }

    /// A batch of `count` singles, only for looking: it does not get into memory by that.
    pub(super) fn peek(&self, id: BatchId, count: usize) -> Result<Arc<Batch>, ReadError> {
        self.batches.peek(id, || self.load(&id, count, None))
    }

    fn load(&self, id: &BatchId, count: usize, shape: Option<&Arc<Shape>>) -> Result<live::Loaded, ReadError> {
        Ok(match self.reader()?.value(family::OUTCOME, key::batch_key(id))? {
            None => (vec![0; count], shape.cloned()),
            Some(row) => self.stored_outcomes(id, row),
        })
    }

    fn stored_outcomes(&self, id: &BatchId, row: Bytes) -> live::Loaded {
        let BatchId::Stretch { .. } = id else { return (row.to_vec(), None) };
        match Shape::decode(row) {
            Ok((shape, bytes)) => (bytes, Some(Arc::new(shape))),
            Err(_) => {
                self.corrupt(family::OUTCOME);
                (Vec::new(), None)
            }
        }
    }

    /// The deliveries of what was claimed in a stretch of a campaign, and the places where nobody is whom it concerns.
    #[allow(clippy::vec_box, reason = "each is moved on as a box")]
    pub fn judge(&self, batch: &Batch, list: &List, claimed: &[u16]) -> Result<(Vec<Box<Delivery>>, Vec<u16>), ReadError> {
        let message = self.whole_message(list)?;
        let (Some(shape), Some(wanted)) = (&batch.shape, &list.wanted) else { return Ok((Vec::new(), claimed.to_vec())) };
        let mut found = Vec::with_capacity(claimed.len());
        self.read_stretch(batch.id.lane().service, shape, claimed, |place, key, row| {
            let judged = View::of(row).and_then(|view| {
                if !self.reachable(&view) || !wanted.matches(&view) {
                    return Ok(None);
                }
                let row = Bytes::copy_from_slice(row);
                let registered = Registered { key, id: SubscriptionId::UNKNOWN, account: None };
                let attributes = message.template.then(|| Arc::new(view.attributes()));
                let recipient = Recipient { registered: Some(registered), attributes, ..view.recipient(&row)? };
                Ok(Some(Box::new(Delivery {
                    id: DeliveryId { batch: batch.id, index: place },
                    message: message.clone(),
                    recipient,
                    attempts: 0,
                    tried_keys: 0,
                    shrink: false,
                    due: None,
                    account: view.account().map(|(_, name)| Arc::from(name)),
                    lost: None,
                    unproven: false,
                })))
            });
            match judged {
                Ok(Some(delivery)) => found.push(delivery),
                Ok(None) => {}
                Err(record::Corrupt) => self.corrupt(family::SUBSCRIPTION),
            }
        })?;
        let mut matched = found.iter().map(|delivery| delivery.id.index).peekable();
        let absent = claimed.iter().copied().filter(|place| matched.next_if_eq(place).is_none()).collect();
        Ok((found, absent))
    }

    /// A batch by its id alone; None if nothing of it is left.
    pub fn find_batch(&self, id: BatchId) -> Result<Option<Arc<Batch>>, ReadError> {
        if let Some(batch) = self.batches.get(&id) {
            return Ok(Some(batch));
        }
        let reader = self.reader()?;
        if reader.value(family::OUTCOME, key::batch_key(&id))?.is_some() {
            drop(reader);
            // The count is the stored array's; the one given is not used.
            return self.batch(id, 0).map(Some);
        }
        let Some(count) = row_of(&reader, &id)?.map(|(_, count)| count) else { return Ok(None) };
        drop(reader);
        self.batch(id, count).map(Some)
    }

    /// The row's value of a batch of singles, from memory or disk. None: its row is gone, so nothing waits in it.
    pub fn work_row(&self, batch: &Batch, key: &WorkKey) -> Result<Option<Bytes>, ReadError> {
        self.row(batch, family::WORK, &key.encode())
    }

    /// The row's value of a chunk.
    pub fn chunk_row(&self, batch: &Batch, key: &ChunkKey) -> Result<Option<Bytes>, ReadError> {
        self.row(batch, family::LIST, &key.encode())
    }

    fn row(&self, batch: &Batch, family: &str, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        if let Some(row) = batch.row() {
            return Ok(Some(row.clone()));
        }
        Ok(self.reader()?.value(family, key)?.map(|row| batch.keep_row(row).clone()))
    }

    /// Claims a delivery that waits by itself and reads it.
    pub fn claim_due(&self, due: &DueKey) -> Result<DueClaim, ReadError> {
        // A row that is gone is no reason to claim even for a moment: somebody with the right time might meet the claim and pass on.
        if !self.due_exists(due)? {
            return Ok(DueClaim::Elsewhere);
        }
        let Some(batch) = self.find_batch(due.delivery.batch)? else { return Ok(DueClaim::Stale) };
        let index = due.delivery.index;
        let list = match ListKey::of_batch(&due.delivery.batch) {
            None => None,
            Some(key) => match self.lists.get(key) {
                None => return Ok(DueClaim::Stale),
                some => some,
            },
        };
        let claimed = match &list {
            None => batch.claim_moved(index),
            Some(list) => list.claim_moved(&batch, index),
        };
        if !claimed {
            let over = list.is_some_and(|list| list_state(&list).over.is_some());
            return Ok(if over || batch.has_ended(index) { DueClaim::Stale } else { DueClaim::Elsewhere });
        }
        let release = || match &list {
            None => batch.release(index),
            Some(list) => list.release(&batch, &[index]),
        };
        // Read after the claim: nobody but the claimer moves it, so the row under this key is the one that counts, or is gone.
        let read = self.reader().and_then(|reader| reader.value(family::DUE, due.encode()));
        let row = match read {
            Ok(Some(row)) => row,
            Ok(None) => {
                release();
                return Ok(DueClaim::Elsewhere);
            }
            Err(error) => {
                release();
                return Err(error);
            }
        };
        let message = match list.as_ref().map(|list| self.whole_message(list)).transpose() {
            Ok(message) => message,
            Err(error) => {
                release();
                return Err(error);
            }
        };
        match record::read_due_row(row, due.delivery, due.time, || message) {
            Ok(Some(mut delivery)) => {
                if let Err(error) = self.resolve(&mut delivery) {
                    release();
                    return Err(error);
                }
                Ok(DueClaim::Claimed(delivery))
            }
            // Stays claimed until the next start, so that it is not met again and again.
            Ok(None) | Err(_) => {
                self.corrupt(family::DUE);
                Ok(DueClaim::Elsewhere)
            }
        }
    }

    /// Whether the delivery's row of `due` is there.
    pub fn due_exists(&self, due: &DueKey) -> Result<bool, ReadError> {
        Ok(self.reader()?.value(family::DUE, due.encode())?.is_some())
    }

    /// The head of a single. None: no single has this id, or it was forgotten.
    pub fn head(&self, id: MessageId) -> Result<Option<Head>, ReadError> {
        Ok(self.head_at(id.commit(), id.place())?.filter(|head| head.id == id))
    }

    fn head_at(&self, commit: u64, place: u16) -> Result<Option<Head>, ReadError> {
        let reader = self.reader()?;
        let floor = key::head_key(commit, 0);
        let Some((_, value)) = reader.last_at_most(family::HEAD, &key::head_key(commit, place), &floor)? else {
            return Ok(None);
        };
        let mut found = None;
        let decoded = Take::versioned(value).and_then(|mut take| {
            while !take.at_end() && found.is_none() {
                let head = record::take_head(&mut take, commit)?;
                if head.id.place() == place {
                    found = Some(head);
                }
            }
            Ok(())
        });
        if decoded.is_err() {
            self.corrupt(family::HEAD);
        }
        Ok(found)
    }

    /// The message of an open list with its body, which is needed to send it.
    pub fn whole_message(&self, list: &List) -> Result<Arc<Message>, ReadError> {
        let key = ListKey::of(list.message.id);
        // An open list has its row.
        list.whole(|| self.stored_message(key)?.ok_or(ReadError))
    }

    /// The app of the message that a row of `feedback` is about; None: it is forgotten.
    pub(super) fn app_of(&self, feedback: &[u8]) -> Result<Option<Arc<str>>, ReadError> {
        let (Some(commit), Some(place)) = (feedback.first_chunk(), feedback.get(8..10)) else { return Ok(None) };
        let (commit, place) = (u64::from_be_bytes(*commit), u16::from_be_bytes([place[0], place[1]]));
        if let Some(message) = self.list_message(ListKey { commit, place })? {
            return Ok(Some(message.app.clone()));
        }
        Ok(self.head_at(commit, place)?.map(|head| head.app))
    }

    /// The message of a list, open or ended, without the body if it is open.
    pub fn list_message(&self, key: ListKey) -> Result<Option<Arc<Message>>, ReadError> {
        if let Some(list) = self.lists.get(key) {
            return Ok(Some(list.message.clone()));
        }
        self.stored_message(key)
    }

    fn stored_message(&self, key: ListKey) -> Result<Option<Arc<Message>>, ReadError> {
        let row = self.reader()?.value(family::MESSAGE, message_key(key, MessageRow::Message))?;
        Ok(row.and_then(|row| match Take::versioned(row).and_then(|mut take| record::take_message(&mut take)) {
            Ok(message) => Some(Arc::new(message)),
            Err(_) => {
                self.corrupt(family::MESSAGE);
                None
            }
        }))
    }

    /// One delivery of a row that still waits in it, for its event.
    pub fn waiting_delivery(&self, id: DeliveryId, list: Option<&Arc<List>>) -> Result<Option<Box<Delivery>>, ReadError> {
        let reader = self.reader()?;
        let Some((row_key, _)) = row_of(&reader, &id.batch)? else { return Ok(None) };
        let mut found = None;
        let take = |delivery| found = Some(delivery);
        let decoded = match (id.batch, list) {
            (BatchId::Commit { .. }, _) => match reader.value(family::WORK, row_key)? {
                Some(row) => record::read_work_row(&row, id.batch, &[id.index], take),
                None => return Ok(None),
            },
            (BatchId::Chunk { .. }, Some(list)) => match reader.value(family::LIST, row_key)? {
                Some(row) => record::read_chunk_row(&row, id.batch, &list.message, &[id.index], take),
                None => return Ok(None),
            },
            // A campaign's recipients lie in the registry.
            (BatchId::Chunk { .. }, None) | (BatchId::Stretch { .. }, _) => return Ok(None),
        };
        if decoded.is_err() {
            self.corrupt("work");
        }
        Ok(found)
    }

    /// The earliest deadline of a row of singles, and its recipients that wait.
    #[allow(clippy::vec_box, reason = "each is moved on as a box")]
    pub fn work_row_deliveries(&self, key: &WorkKey, wanted: &[u16], row: &Bytes) -> Vec<Box<Delivery>> {
        let mut found = Vec::with_capacity(wanted.len());
        if record::read_work_row(row, key.batch(), wanted, |delivery| found.push(delivery)).is_err() {
            self.corrupt(family::WORK);
        }
        found
    }
}

/// Key and count of the row of a batch, if it is still there.
fn row_of(reader: &super::Reader<'_>, id: &BatchId) -> Result<Option<(Vec<u8>, u16)>, ReadError> {
    let (family, prefix) = match *id {
        BatchId::Commit { commit, lane, piece } => {
            let mut prefix = WorkKey { lane, commit, piece, count: 0 }.encode();
            prefix.truncate(prefix.len() - 2);
            (family::WORK, prefix)
        }
        BatchId::Chunk { commit, place, lane, chunk } => {
            let mut prefix = ChunkKey { commit, place, service: lane.service, chunk, count: 0 }.encode();
            prefix.truncate(prefix.len() - 2);
            (family::LIST, prefix)
        }
        BatchId::Stretch { .. } => return Ok(None),
    };
    let mut found = None;
    reader.scan(family, &prefix, &key::after_prefix(&prefix), |row, _| {
        if let Some(count) = row.last_chunk::<2>() {
            found = Some((row.to_vec(), u16::from_be_bytes(*count)));
        }
        false
    })?;
    Ok(found)
}

/// The three rows of a list in `message`.
#[derive(Clone, Copy)]
pub enum MessageRow {
    /// Written once.
    Message = 0,
    /// Written with commits: what the application says.
    State = 1,
    /// Written with checkpoints: what has come of it.
    Counts = 2,
}

/// Key of a row in `message`.
pub fn message_key(key: ListKey, row: MessageRow) -> Vec<u8> {
    let mut bytes = key::list_prefix(key.commit, key.place);
    bytes.push(row as u8);
    bytes
}
