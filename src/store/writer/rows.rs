//! Rows of lists, rules, idempotency keys and topics: bytes <-> types.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;

use crate::message::{AccountHash, BatchId, DeliveryId, Ending, Lane, MessageId, Service, UnixMillis};
use crate::protocol::request::State;
use crate::store::commit::Done;
use crate::store::erase::{COMPACTION_ROW, Erasure};
use crate::store::key::{self, DueKey};
use crate::store::live::{ABSENT, Holder, List, ListKey, ListState, Open, SubscriptionHash, Upto, WAITING, Walk, ending};
use crate::store::record::{self, Put, Take};
use crate::store::registry::walk::{Shape, Wanted};
use crate::store::{ReadError, Store, family, list_state};

pub(super) fn put_maybe_f64(put: &mut Put, value: Option<f64>) {
    match value {
        None => put.u8(0),
        Some(value) => put.u8(1).u64(value.to_bits()),
    };
}

pub(super) fn take_maybe_f64(take: &mut Take) -> Result<Option<f64>, record::Corrupt> {
    Ok(if take.u8()? == 0 { None } else { Some(f64::from_bits(take.u64()?)) })
}

pub(super) fn list_state_row(state: &ListState) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u8(u8::from(state.closed) | u8::from(state.paused) << 1);
    put_maybe_f64(&mut put, state.rate);
    put.maybe(state.position.as_deref()).u64(state.counts.recipients).u64(state.counts.rejected);
    put.u16(u16::try_from(state.chunks.len()).expect("services have 16 bits"));
    for (service, chunks) in &state.chunks {
        put.u16(service.0).u32(*chunks);
    }
    put.0
}

pub(super) fn list_counts_row(state: &ListState) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u8(state.over.map_or(0, |over| over as u8)).u64(state.ended_at.map_or(0, |time| time.0));
    put.u64(state.counts.retries);
    for ended in state.counts.ended {
        put.u64(ended);
    }
    // Of a campaign. Those in flight are known, but are met anew after a crash.
    put.u64(state.counts.recipients).u64(state.settled).u64(state.unreported);
    match &state.walks {
        None => {
            put.u8(0);
        }
        Some(walks) => {
            put.u8(1).u16(u16::try_from(walks.len()).expect("services have 16 bits"));
            for (service, walk) in walks {
                put.u16(service.0).u64(walk.last).u64(walk.cursor()).u64(walk.passed);
            }
        }
    }
    put.0
}

/// The row `message` of a list or a campaign.
pub(super) fn list_message_row(message: &[u8], list: &List) -> Vec<u8> {
    let mut row = Put::versioned();
    row.bytes(message);
    put_maybe_f64(&mut row, list.spread);
    match &list.wanted {
        None => {
            row.u8(if list.keeps_outcomes { 2 } else { 0 });
        }
        Some(wanted) => {
            row.u8(1).u16(wanted.app);
            record::put_segment(&mut row, &wanted.segment);
        }
    }
    row.0
}

/// A list's message, spread and state from its three rows.
pub fn read_list(message: Bytes, state: Option<Bytes>, counts: Option<Bytes>) -> Result<List, record::Corrupt> {
    let mut take = Take::versioned(message)?;
    let message = record::take_message(&mut take)?;
    let spread = take_maybe_f64(&mut take)?;
    let kind = take.u8()?;
    let wanted = match kind {
        0 | 2 => None,
        _ => Some(Wanted { app: take.u16()?, scope: message.scope.clone(), segment: record::take_segment(&mut take)? }),
    };
    let mut read = ListState::default();
    if let Some(row) = state {
        let mut take = Take::versioned(row)?;
        let flags = take.u8()?;
        (read.closed, read.paused) = (flags & 1 != 0, flags & 2 != 0);
        read.rate = take_maybe_f64(&mut take)?;
        read.position = take.maybe()?.map(|position| (*position).into());
        (read.counts.recipients, read.counts.rejected) = (take.u64()?, take.u64()?);
        for _ in 0..take.u16()? {
            read.chunks.insert(Service(take.u16()?), take.u32()?);
        }
        read.written = read.chunks.clone();
    }
    if let Some(row) = counts {
        let mut take = Take::versioned(row)?;
        let over = take.u8()?;
        read.over = if over == 0 { None } else { Some(*Ending::ALL.get(usize::from(over) - 1).ok_or(record::Corrupt)?) };
        let ended = take.u64()?;
        read.ended_at = (ended != 0).then_some(UnixMillis(ended));
        read.counts.retries = take.u64()?;
        for ended in &mut read.counts.ended {
            *ended = take.u64()?;
        }
        let known = take.u64()?;
        (read.settled, read.unreported) = (take.u64()?, take.u64()?);
        if take.u8()? == 1 {
            let mut walks = BTreeMap::new();
            for _ in 0..take.u16()? {
                let service = Service(take.u16()?);
                let last = take.u64()?;
                walks.insert(service, Walk { next: take.u64()?, passed: take.u64()?, ..Walk::new(last) });
            }
            read.walks = Some(walks);
        }
        if wanted.is_some() {
            read.counts.recipients = known;
            read.closed = read.walked();
        } else {
            read.closed |= read.over.is_some();
        }
    }
    Ok(List::new(message, spread, wanted, kind == 2, read))
}

/// The stretches of a campaign that were opened before the start. What was in flight then is met anew.
fn load_stretches(store: &Store, list: &List) -> Result<(), ReadError> {
    let mut state = list_state(list);
    state.counts.recipients = state.settled;
    let prefix = key::outcome_campaign_prefix(list.message.id.commit(), list.message.id.place());
    let Some(walks) = &mut state.walks else { return Ok(()) };
    store.reader()?.scan(family::OUTCOME, &prefix, &key::after_prefix(&prefix), |row, value| {
        let decoded = key::batch_from_key(row).and_then(|batch| Ok((batch, Shape::decode(Bytes::copy_from_slice(value))?)));
        match decoded {
            Ok((BatchId::Stretch { lane, first, .. }, (shape, bytes))) => {
                if let Some(walk) = walks.get_mut(&lane.service).filter(|walk| first >= walk.next) {
                    let settled = bytes.iter().filter(|byte| **byte != WAITING).count();
                    let done = settled == bytes.len();
                    let ended = done && bytes.iter().all(|byte| ending(*byte).is_some() || *byte == ABSENT);
                    walk.open.insert(first, Open { shape: Arc::new(shape), done, ended, settled });
                }
            }
            _ => store.corrupt(family::OUTCOME),
        }
        true
    })?;
    state.closed = state.walked();
    Ok(())
}

/// Reads the lists that are open, row by row: of those that have ended, which are kept for their status, nothing stays in memory.
pub(super) fn load_lists(store: &Store) -> Result<(), ReadError> {
    let mut rows: [Option<Bytes>; 3] = Default::default();
    let mut of: Vec<u8> = Vec::new();
    let mut open = Vec::new();
    let mut take = |rows: &mut [Option<Bytes>; 3]| {
        let [message, state, counts] = std::mem::take(rows);
        let Some(message) = message else { return };
        match read_list(message, state, counts) {
            Ok(list) if list_state(&list).ended_at.is_some() => {}
            Ok(list) => open.push(list),
            Err(record::Corrupt) => store.corrupt(family::MESSAGE),
        }
    };
    store.reader()?.scan(family::MESSAGE, &[], &[255; 16], |key, value| {
        if let Some((row, prefix)) = key.split_last()
            && usize::from(*row) < rows.len()
        {
            if of != prefix {
                take(&mut rows);
                of = prefix.to_vec();
            }
            rows[usize::from(*row)] = Some(Bytes::copy_from_slice(value));
        }
        true
    })?;
    take(&mut rows);
    for list in open {
        if list.wanted.is_some() {
            load_stretches(store, &list)?;
        }
        store.lists.insert(ListKey::of(list.message.id), Arc::new(list));
    }
    Ok(())
}

pub(super) fn read_idempotency(row: Bytes, now: UnixMillis) -> Result<Option<([u8; 16], Done)>, record::Corrupt> {
    let mut take = Take::new(row);
    if UnixMillis(take.u64()?) < now {
        return Ok(None);
    }
    let fingerprint = take.array()?;
    let (message_id, expires, recipients) = (MessageId(take.u128()?), UnixMillis(take.u64()?), take.u64()?);
    let state = match take.u8()? {
        0 => State::Scheduled,
        1 => State::Sending,
        2 => State::Paused,
        _ => return Err(record::Corrupt),
    };
    let done = Done::Taken { message_id, state, expires, recipients, duplicate: false, position: None, rejected: Vec::new() };
    Ok(Some((fingerprint, done)))
}

pub(super) fn read_topic(row: Bytes) -> Result<(DeliveryId, MessageId), record::Corrupt> {
    // A batch's key tells its kind and length itself; the due key's decoder reads both with an index behind.
    let mut due = Put::default();
    due.bytes(&[0; 3]).u64(0);
    let body = row.get(8..row.len().saturating_sub(16)).ok_or(record::Corrupt)?;
    due.bytes(body);
    let delivery = DueKey::decode(&due.0)?.delivery;
    let id = row.last_chunk::<16>().ok_or(record::Corrupt)?;
    Ok((delivery, MessageId(u128::from_be_bytes(*id))))
}

pub(super) fn holder_row(holder: &Holder) -> Vec<u8> {
    let mut put = Put::versioned();
    put_holder(&mut put, holder);
    put.0
}

fn put_holder(put: &mut Put, holder: &Holder) {
    match holder {
        Holder::Message(id) => put.u8(0).u128(id.0),
        Holder::Label(app, label) => put.u8(1).short(app.as_bytes()).short(label.as_bytes()),
        Holder::App(app) => put.u8(2).short(app.as_bytes()),
        Holder::Account(who) => put.u8(3).bytes(&who.0),
        Holder::Subscription(None, id) => put.u8(4).bytes(&id.0),
        Holder::Subscription(Some(app), id) => put.u8(5).short(app.as_bytes()).bytes(&id.0),
    };
}

pub(super) fn take_holder(take: &mut Take) -> Result<Holder, record::Corrupt> {
    Ok(match take.u8()? {
        0 => Holder::Message(MessageId(take.u128()?)),
        1 => Holder::Label(take.str()?, take.str()?),
        2 => Holder::App(take.str()?),
        3 => Holder::Account(AccountHash(take.array()?)),
        4 => Holder::Subscription(None, SubscriptionHash(take.array()?)),
        5 => Holder::Subscription(Some(take.str()?), SubscriptionHash(take.array()?)),
        _ => return Err(record::Corrupt),
    })
}

pub(super) fn holder_from(row: Bytes) -> Option<Holder> {
    Take::versioned(row).and_then(|mut take| take_holder(&mut take)).ok()
}

/// A rule's row: whom it concerns, up to which message, since when, and whether the sweep has seen all that it ends.
pub(super) fn rule_row(holder: &Holder, upto: Upto, now: UnixMillis, swept: bool) -> Vec<u8> {
    let mut put = Put(holder_row(holder));
    put.u64(upto.0).u16(upto.1).u64(now.0).u8(u8::from(swept));
    put.0
}

/// A rule as it is on disk.
pub struct StoredRule {
    pub holder: Holder,
    pub upto: Upto,
    pub since: UnixMillis,
    pub swept: bool,
}

/// Reads a rule's row.
pub fn read_rule(row: Bytes) -> Result<StoredRule, record::Corrupt> {
    let mut take = Take::versioned(row)?;
    let holder = take_holder(&mut take)?;
    Ok(StoredRule { holder, upto: (take.u64()?, take.u16()?), since: UnixMillis(take.u64()?), swept: take.u8()? != 0 })
}

pub(super) fn holder_prefix(holder: &Holder) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    Sha256::digest(holder_row(holder))[..16].to_vec()
}

/// Key of a rule in `meta`.
pub fn rule_key(kind: &str, holder: &Holder) -> Vec<u8> {
    let mut key = kind.as_bytes().to_vec();
    key.push(b'/');
    key.extend(holder_prefix(holder));
    key
}

pub(super) fn held_key(holder: &Holder, due: &DueKey) -> Vec<u8> {
    let mut key = holder_prefix(holder);
    key.extend(due.encode());
    key
}

/// Key in `meta` of the first live row of a lane.
pub fn first_row_key(family: &str, lane: Lane) -> Vec<u8> {
    let mut key = format!("first/{family}/").into_bytes();
    key.extend(key::lane_prefix(lane));
    key
}

pub(super) fn load_rules(store: &Store) -> Result<(), ReadError> {
    let mut rules = crate::store::live::RuleSet::default();
    let reader = store.reader()?;
    reader.scan(family::META, b"pause/", b"pause0", |_, value| {
        match read_rule(Bytes::copy_from_slice(value)) {
            Ok(rule) => {
                rules.paused.insert(rule.holder);
            }
            Err(record::Corrupt) => store.corrupt(family::META),
        }
        true
    })?;
    reader.scan(family::META, b"cancel/", b"cancel0", |_, value| {
        match read_rule(Bytes::copy_from_slice(value)) {
            Ok(rule) => {
                rules.erasing |= rule.holder.erases();
                rules.cancelled.insert(rule.holder, rule.upto);
            }
            Err(record::Corrupt) => store.corrupt(family::META),
        }
        true
    })?;
    drop(reader);
    store.rules.change(|known| *known = rules);
    Ok(())
}

/// Key in `meta` of an erasure: the n-th of its commit.
pub(super) fn erasure_key(commit: u64, n: usize) -> Vec<u8> {
    let mut put = Put::default();
    put.bytes(b"erase/").u64(commit).u16(u16::try_from(n).expect("a commit has at most 65,536 lines"));
    put.0
}

/// An erasure's row: whom it is about, by hashes.
pub(super) fn erasure_row(erasure: &Erasure) -> Vec<u8> {
    let mut put = Put::versioned();
    erasure.whom.iter().for_each(|holder| put_holder(&mut put, holder));
    put.0
}

/// Erasures that are on disk and not in memory: they are to be finished. That is what the last run has left; or what was refused
/// for want of space and is there after all, with rules that memory does not know yet.
pub(super) fn load_erasures(store: &Store) -> Result<(), ReadError> {
    let known = store.erasures.rows();
    if store.reader()?.value(family::META, COMPACTION_ROW)?.is_some() {
        store.erasures.want_compaction();
    }
    let mut left: Vec<(Vec<u8>, Bytes)> = Vec::new();
    let reader = store.reader()?;
    reader.scan(family::META, b"erase/", b"erase0", |key, value| {
        if !known.iter().any(|row| row == key) {
            left.push((key.to_vec(), Bytes::copy_from_slice(value)));
        }
        true
    })?;
    for (row, value) in left {
        let mut whom = Vec::new();
        let decoded = Take::versioned(value).and_then(|mut take| {
            while !take.at_end() {
                whom.push(take_holder(&mut take)?);
            }
            Ok(())
        });
        if decoded.is_err() {
            store.corrupt(family::META);
        }
        let mut unswept = HashMap::new();
        for holder in &whom {
            let rule = reader.value(family::META, rule_key("cancel", holder))?.and_then(|rule| read_rule(rule).ok());
            let Some(rule) = rule else { continue };
            if !rule.swept {
                unswept.insert(holder.clone(), rule.upto);
            }
            store.rules.change(|rules| rules.erase(rule.holder, rule.upto));
        }
        store.erasures.add(Erasure::left(row, whom, unswept));
    }
    Ok(())
}
