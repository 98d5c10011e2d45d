//! What `status`, `list_messages` and `stats` answer: every number as it is on disk, so as of the last checkpoint.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use crate::message::{Account, Ending, MessageId, UnixMillis};
use crate::protocol::request::{By, State};
use crate::store::commit::Apps;
use crate::store::key;
use crate::store::live::{List, ListKey, Walk, ending, retries};
use crate::store::load::{MessageRow, message_key};
use crate::store::log::EventFilter;
use crate::store::record::{self, Counts, Head, Take};
use crate::store::registry::row::{App, disabled_from, disabled_key, disabled_prefix, feedback_counts_key};
use crate::store::writer::{StatsKey, feedback_counts, read_list};
use crate::store::{ReadError, Store, family, list_state};

/// What `status` tells of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub id: MessageId,
    pub state: State,
    /// While it is paused: on whose word, `message`, `label` and `app`.
    pub paused_by: Vec<&'static str>,
    pub open: bool,
    pub label: Option<Arc<str>>,
    pub reference: Option<Arc<str>>,
    pub at: UnixMillis,
    pub expires: UnixMillis,
    pub position: Option<Box<str>>,
    pub counts: Counts,
    pub in_flight: u64,
    pub rate: Option<f64>,
    /// Shown, clicked, dismissed.
    pub feedback: [u64; 3],
    /// Of a campaign: how much of its walk is done, from 0 to 1.
    pub walked: Option<f64>,
}

/// A cursor that `events` cannot go on from; both ends of what it can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorExpired {
    /// After this number no event was dropped.
    pub oldest: u64,
    /// The newest event's number.
    pub newest: u64,
}

impl Store {
    /// The status of a message of one of `apps`.
    pub fn status(&self, id: MessageId, apps: &Apps, now: UnixMillis) -> Result<Option<Status>, ReadError> {
        if let Some(list) = self.stored_list(ListKey::of(id))?
            && list.message.id == id
        {
            return Ok(apps.contains(&list.message.app).then(|| self.list_status(&list, now)));
        }
        match self.head(id)? {
            Some(head) if apps.contains(&head.app) => self.single_status(&head, now).map(Some),
            _ => Ok(None),
        }
    }

    /// How many receipts of a message have come back: shown, clicked, dismissed.
    pub fn feedback(&self, id: MessageId) -> Result<[u64; 3], ReadError> {
        let row = self.reader()?.value(family::FEEDBACK, feedback_counts_key(id))?;
        Ok(row.map_or([0; 3], |row| feedback_counts(&row)))
    }

    pub(super) fn stored_list(&self, key: ListKey) -> Result<Option<List>, ReadError> {
        let reader = self.reader()?;
        let row = |which| reader.value(family::MESSAGE, message_key(key, which));
        let Some(message) = row(MessageRow::Message)? else { return Ok(None) };
        // Endings first: read the other way round they could be more than the recipients known before.
        let counts = row(MessageRow::Counts)?;
        match read_list(message, row(MessageRow::State)?, counts) {
            Ok(list) => Ok(Some(list)),
            Err(record::Corrupt) => {
                self.corrupt(family::MESSAGE);
                Ok(None)
            }
        }
    }

    fn list_status(&self, list: &List, now: UnixMillis) -> Status {
        let message = &list.message;
        let stored = list_state(list).clone();
        let in_flight = self.lists.get(ListKey::of(message.id)).map_or(0, |live| list_state(&live).in_flight);
        let mut paused_by: Vec<_> = self.rules.load().paused_by(message.id, &message.app, message.label.as_ref()).collect();
        if stored.paused && !paused_by.contains(&"message") {
            paused_by.insert(0, "message");
        }
        let state = match () {
            () if stored.over == Some(Ending::Cancelled) => State::Cancelled,
            () if stored.over.is_some() || stored.done() => State::Done,
            () if !paused_by.is_empty() => State::Paused,
            () if message.at > now => State::Scheduled,
            () => State::Sending,
        };
        if state != State::Paused {
            paused_by.clear();
        }
        let walked = list.wanted.as_ref().map(|_| match &stored.walks {
            None => 0.0,
            Some(walks) => {
                let of = |walk: &Walk| (walk.passed.min(walk.last), walk.last);
                let (done, all) = walks.values().map(of).fold((0, 0), |sum, walk| (sum.0 + walk.0, sum.1 + walk.1));
                if all == 0 { 1.0 } else { done as f64 / all as f64 }
            }
        });
        Status {
            id: message.id,
            state,
            paused_by,
            // What ended with a campaign is told in one event, which comes last.
            open: !stored.closed || stored.unreported > 0,
            label: message.label.clone(),
            reference: message.reference.clone(),
            at: message.at,
            expires: message.expires,
            position: stored.position.clone(),
            counts: stored.counts,
            in_flight: in_flight.min(stored.counts.pending()),
            rate: stored.rate,
            feedback: self.feedback(message.id).unwrap_or_default(),
            walked,
        }
    }

    fn single_status(&self, head: &Head, now: UnixMillis) -> Result<Status, ReadError> {
        let mut counts =
            Counts { recipients: head.recipients.len() as u64, rejected: u64::from(head.rejected), ..Counts::default() };
        let rules = self.rules.load();
        // A cancellation that is not on disk yet may be forgotten in a crash: nothing is told of it.
        let written = self.written.load(Ordering::Acquire);
        let cancelled = rules.has_cancelled(head.id, &head.app, head.label.as_ref(), written);
        let mut paused_by: Vec<_> = rules.paused_by(head.id, &head.app, head.label.as_ref()).collect();
        drop(rules);
        let mut in_flight = 0;
        // Memory first: what is neither busy nor ended there, and not ended on disk after that, nobody sends any more once it is
        // cancelled, because a worker looks at the rules after its claim.
        let live: Vec<_> = head
            .recipients
            .iter()
            .map(|recipient| self.batches.get(&recipient.id.batch).map_or((None, false), |batch| batch.now(recipient.id.index)))
            .collect();
        let mut rows: BTreeMap<_, Option<Bytes>> = BTreeMap::new();
        let reader = self.reader()?;
        for (recipient, (ended, busy)) in head.recipients.iter().zip(live) {
            let batch = recipient.id.batch;
            if let Entry::Vacant(row) = rows.entry(batch) {
                row.insert(reader.value(family::OUTCOME, key::batch_key(&batch))?);
            }
            let byte = rows[&batch].as_ref().and_then(|bytes| bytes.get(usize::from(recipient.id.index))).copied().unwrap_or(0);
            counts.retries += retries(byte);
            match ending(byte) {
                Some(ending) => counts.ended[ending as usize - 1] += 1,
                // The sweep of a cancelled label or app may not have come here yet; it has ended all the same. What has ended
                // otherwise is told when that is on disk.
                None if cancelled && !busy && matches!(ended, None | Some(Ending::Cancelled)) => {
                    counts.ended[Ending::Cancelled as usize - 1] += 1;
                }
                None => in_flight += u64::from(busy),
            }
        }
        let pending = counts.pending();
        let state = match () {
            () if pending == 0 && counts.ended[Ending::Cancelled as usize - 1] > 0 => State::Cancelled,
            () if pending == 0 => State::Done,
            () if !paused_by.is_empty() => State::Paused,
            () if head.at > now => State::Scheduled,
            () => State::Sending,
        };
        if state != State::Paused {
            paused_by.clear();
        }
        Ok(Status {
            id: head.id,
            state,
            paused_by,
            open: false,
            label: head.label.clone(),
            reference: head.reference.clone(),
            at: head.at,
            expires: head.expires,
            position: None,
            counts,
            in_flight,
            rate: None,
            feedback: self.feedback(head.id)?,
            walked: None,
        })
    }

    /// Lists, newest first, from before `after` on, of at most `most` that are looked at; the second value is the list to go on after,
    /// if there may be more. It may be one of another app.
    pub fn list_messages(
        &self,
        wanted: impl Fn(&Status) -> bool,
        limit: usize,
        after: Option<ListKey>,
        most: usize,
        apps: &Apps,
        now: UnixMillis,
    ) -> Result<(Vec<Status>, Option<ListKey>), ReadError> {
        let end = after.map_or_else(|| vec![255; 16], |list| key::list_prefix(list.commit, list.place));
        let mut keys = Vec::new();
        let mut found = Vec::new();
        // Ids first, then each by point: a status wants all three rows and the live state.
        self.reader()?.scan_back(family::MESSAGE, &[], &end, |row, _| {
            if let (Some(0), Some(commit), Some(place)) = (row.last(), row.get(..8), row.get(8..10)) {
                let commit = u64::from_be_bytes(commit.try_into().expect("eight bytes"));
                keys.push(ListKey { commit, place: u16::from_be_bytes(place.try_into().expect("two bytes")) });
            }
            keys.len() < most
        })?;
        let mut more = None;
        let last = keys.last().copied();
        let all_seen = keys.len() < most;
        for key in keys {
            let Some(list) = self.stored_list(key)? else { continue };
            if !apps.contains(&list.message.app) {
                continue;
            }
            let status = self.list_status(&list, now);
            if wanted(&status) {
                if found.len() == limit {
                    more = found.last().map(|status: &Status| ListKey::of(status.id));
                    break;
                }
                found.push(status);
            }
        }
        if more.is_none() && !all_seen {
            more = last;
        }
        Ok((found, more))
    }

    /// The disabled accounts of an app, shorter names first, from behind `after` on; `most` of them.
    pub fn disabled_accounts(&self, app: App, after: Option<&str>, most: usize) -> Result<Vec<Account>, ReadError> {
        let mut found = Vec::new();
        let prefix = disabled_prefix(app);
        let mut start = after.map_or_else(|| prefix.clone(), |account| disabled_key(app, account));
        // The first key behind it.
        start.extend(after.map(|_| 0));
        self.reader()?.scan(family::INDEX, &start, &key::after_prefix(&prefix), |row, _| {
            if found.len() < most {
                match disabled_from(row) {
                    Ok((_, account)) => found.push(account),
                    Err(record::Corrupt) => self.corrupt(family::INDEX),
                }
            }
            found.len() < most
        })?;
        Ok(found)
    }

    /// After which number nothing of these apps is missing, and the newest number.
    pub fn event_range(&self, filter: &EventFilter) -> CursorExpired {
        let newest = *self.events_end.borrow() - 1;
        CursorExpired { oldest: self.log.dropped(filter).into_values().max().unwrap_or(0), newest }
    }

    /// Adds counters to `sums`, by the dimensions in `by`: from key `from` (a day, or where it was left) to day `to`, included, as many
    /// as are met until then. Gives where to go on.
    pub fn stats(
        &self,
        from: &[u8],
        to: u32,
        by: &[By],
        apps: &Apps,
        until: Instant,
        sums: &mut BTreeMap<StatsKey, Counts>,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let end = to.checked_add(1).map_or_else(|| vec![255; 5], |day| day.to_be_bytes().to_vec());
        let reader = self.reader()?;
        let mut next = Some(from.to_vec());
        let mut met = 0u32;
        while let Some(from) = next.take() {
            let (mut late, mut corrupt) = (false, false);
            reader.scan(family::STATS, &from, &end, |row, value| {
                let decoded = StatsKey::decode(row).and_then(|(key, _)| {
                    let counts =
                        Take::versioned(Bytes::copy_from_slice(value)).and_then(|mut take| record::take_counts(&mut take))?;
                    Ok((key, counts))
                });
                met += 1;
                late = met.is_multiple_of(64) && Instant::now() >= until;
                match decoded {
                    Ok((key, counts)) if apps.contains(&key.app) => {
                        let has = |dimension| by.contains(&dimension);
                        let group = StatsKey {
                            day: if has(By::Day) { key.day } else { 0 },
                            app: if has(By::App) { key.app } else { Arc::from("") },
                            label: if has(By::Label) { key.label } else { Arc::from("") },
                            service: if has(By::Service) { key.service } else { crate::message::Service::OTHER },
                            key: if has(By::Key) { key.key } else { [0; 8] },
                        };
                        sums.entry(group).or_default().add(&counts);
                        if late {
                            next = Some([row, &[0]].concat());
                        }
                    }
                    // The rest of another app's day is passed over.
                    Ok((key, _)) => next = Some(key::after_prefix(&row[..4 + 2 + key.app.len()])),
                    Err(record::Corrupt) => {
                        corrupt = true;
                        if late {
                            next = Some([row, &[0]].concat());
                        }
                    }
                }
                next.is_none()
            })?;
            if corrupt {
                self.corrupt(family::STATS);
            }
            if late {
                return Ok(next);
            }
        }
        Ok(None)
    }
}
