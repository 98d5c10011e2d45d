//! What is kept no longer: messages past `retention`, events past theirs, or of who has too many of them, days of statistics, rules that
//! nothing can meet any more.
//!
//! Promise: a message of which something is still open is kept, however old it is, and noted, so that it is looked at again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use bytes::Bytes;

use crate::message::{BatchId, UnixMillis};
use crate::store::key::just_behind;
use crate::store::live::{Holder, ListKey, ending};
use crate::store::log::{Dropped, Excess};
use crate::store::record::{self, Take};
use crate::store::rows::number;
use crate::store::sweep::{Puts, Ranges, Sweep};
use crate::store::writer::{Lifted, Settle, read_list, read_rule};
use crate::store::{ReadError, Reader, family, key, list_state};

/// Cancellations are kept as long as what they cancelled can be in flight or be tried again.
const RULE_MILLIS: u64 = 36 * 86_400_000;
/// Those that were swept are kept for what was in flight then.
const SWEPT_MILLIS: u64 = 86_400_000;
/// A paused message that has ended is looked for after this time: one that was just committed is not on disk everywhere.
const ENDED_MILLIS: u64 = 60_000;

impl Sweep {
    /// Drops what is kept no longer.
    pub(super) fn forget(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut ranges = Vec::new();
        let mut put = Vec::new();
        self.forget_singles(now, &mut ranges, &mut put)?;
        self.forget_lists(now, &mut ranges)?;
        self.forget_events(now, &mut ranges, &mut put)?;
        let today = u32::try_from(now.0 / 86_400_000).unwrap_or(u32::MAX);
        let kept_from = today.saturating_sub(self.settings.stats_keep_days);
        if kept_from > 0 {
            ranges.push((family::STATS, vec![0; 4], kept_from.to_be_bytes().to_vec()));
        }
        self.lift_rules(now)?;
        if !ranges.is_empty() || !put.is_empty() {
            self.send(Settle::Forget { ranges, put });
        }
        Ok(())
    }

    /// Rules that nothing can meet any more leave memory and disk.
    fn lift_rules(&self, now: UnixMillis) -> Result<(), ReadError> {
        let mut lifted = Vec::new();
        let reader = self.store.reader()?;
        reader.scan(family::META, b"cancel/", b"cancel0", |_, value| {
            if let Ok(rule) = read_rule(Bytes::copy_from_slice(value)) {
                // What a rule has ended by its sweep, and what was in flight then, is settled within minutes. Receipts of somebody who
                // is erased may come back for weeks.
                let kept = if rule.swept && !rule.holder.erases() { SWEPT_MILLIS } else { RULE_MILLIS };
                if now.since(rule.since) > kept {
                    lifted.push(Lifted::Cancellation(rule.holder, rule.upto));
                }
            }
            true
        })?;
        let mut failed = None;
        reader.scan(family::META, b"pause/", b"pause0", |_, value| {
            // A paused label or app stays paused until it is resumed.
            if let Ok(rule) = read_rule(Bytes::copy_from_slice(value))
                && let Holder::Message(id) = rule.holder
                && now.since(rule.since) > ENDED_MILLIS
                && self.store.lists.get(ListKey::of(id)).is_none()
            {
                match self.store.head(id).and_then(|head| head.map_or(Ok(true), |head| self.all_ended(&reader, &[head]))) {
                    Ok(true) => lifted.push(Lifted::Pause(rule.holder)),
                    Ok(false) => {}
                    Err(error) => failed = Some(error),
                }
            }
            true
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        if !lifted.is_empty() {
            self.send(Settle::Lift(lifted));
        }
        Ok(())
    }

    /// Heads and outcomes of commits that are old enough, but for those of which something is still open: these are noted, and
    /// looked at again.
    fn forget_singles(&self, now: UnixMillis, ranges: &mut Ranges, put: &mut Puts) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
        let cutoff = UnixMillis(now.0.saturating_sub(retention));
        let reader = self.store.reader()?;
        let floor_key = b"retention/floor".to_vec();
        let floor = reader.value(family::META, &floor_key)?.and_then(|row| Take::new(row).u64().ok()).unwrap_or(0);
        let mut next = floor;
        let mut open = Vec::new();
        let mut seen = 0;
        let mut error = None;
        reader.scan(family::HEAD, &floor.to_be_bytes(), &[255; 10], |row, value| {
            let Some(commit) = row.first_chunk::<8>().map(|commit| u64::from_be_bytes(*commit)) else { return true };
            // A commit is judged by all of its heads.
            if seen >= 100_000 && commit >= next {
                return false;
            }
            match heads(value, commit) {
                Ok(heads) => {
                    if heads.first().is_some_and(|head| head.id.created() >= cutoff) {
                        return false;
                    }
                    match self.all_ended(&reader, &heads) {
                        Ok(true) => {}
                        Ok(false) if open.last() == Some(&commit) => {}
                        Ok(false) => open.push(commit),
                        Err(failed) => error = Some(failed),
                    }
                }
                Err(record::Corrupt) => self.store.corrupt(family::HEAD),
            }
            next = commit + 1;
            seen += 1;
            true
        })?;
        if let Some(error) = error {
            return Err(error);
        }
        let mut from = floor;
        for commit in open.iter().copied().chain([next]) {
            if commit > from {
                forget_commits(from, commit, ranges);
            }
            from = commit + 1;
        }
        for commit in open {
            put.push((family::META, linger_key(commit), number(0)));
        }
        if next > floor {
            put.push((family::META, floor_key, number(next)));
        }
        reader.scan(family::META, b"linger/", b"linger0", |row, value| {
            let (Some(commit), Some(drop_at)) = (row.last_chunk::<8>(), value.first_chunk::<8>()) else { return true };
            let (commit, drop_at) = (u64::from_be_bytes(*commit), UnixMillis(u64::from_be_bytes(*drop_at)));
            if drop_at.0 == 0 {
                let ended = self.commit_ended(&reader, commit);
                if ended == Ok(true) {
                    put.push((family::META, linger_key(commit), number(now.plus(retention).0)));
                }
            } else if drop_at <= now {
                forget_commits(commit, commit + 1, ranges);
                ranges.push((family::META, row.to_vec(), just_behind(row)));
            }
            true
        })
    }

    fn commit_ended(&self, reader: &Reader<'_>, commit: u64) -> Result<bool, ReadError> {
        let mut all = true;
        reader.scan(family::HEAD, &key::head_key(commit, 0), &key::head_key(commit + 1, 0), |_, value| {
            all &= heads(value, commit).is_ok_and(|heads| self.all_ended(reader, &heads) == Ok(true));
            all
        })?;
        Ok(all)
    }

    fn all_ended(&self, reader: &Reader<'_>, heads: &[record::Head]) -> Result<bool, ReadError> {
        let mut rows: HashMap<BatchId, Option<Bytes>> = HashMap::new();
        for recipient in heads.iter().flat_map(|head| &head.recipients) {
            let batch = recipient.id.batch;
            if let Entry::Vacant(entry) = rows.entry(batch) {
                entry.insert(reader.value(family::OUTCOME, key::batch_key(&batch))?);
            }
            let byte = rows[&batch].as_ref().and_then(|row| row.get(usize::from(recipient.id.index))).copied().unwrap_or(0);
            if ending(byte).is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn forget_lists(&self, now: UnixMillis, ranges: &mut Ranges) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.retention.as_millis()).unwrap_or(u64::MAX);
        let mut message: Option<(Vec<u8>, Bytes)> = None;
        self.store.reader()?.scan(family::MESSAGE, &[], &[255; 16], |row, value| {
            match row.last() {
                Some(0) => message = Some((row[..row.len() - 1].to_vec(), Bytes::copy_from_slice(value))),
                Some(2) => {
                    if let Some((prefix, message)) = message.take()
                        && row.starts_with(&prefix)
                        && let Ok(list) = read_list(message, None, Some(Bytes::copy_from_slice(value)))
                        && list_state(&list).ended_at.is_some_and(|ended| ended.plus(retention) <= now)
                    {
                        ranges.push((family::MESSAGE, prefix.clone(), key::after_prefix(&prefix)));
                        if list.keeps_outcomes {
                            let outcomes = key::outcome_list_prefix(list.message.id.commit(), list.message.id.place());
                            ranges.push((family::OUTCOME, outcomes.clone(), key::after_prefix(&outcomes)));
                        }
                    }
                }
                _ => {}
            }
            true
        })
    }

    /// Events past `events.retention`.
    fn forget_events(&self, now: UnixMillis, ranges: &mut Ranges, put: &mut Puts) -> Result<(), ReadError> {
        let retention = u64::try_from(self.settings.events_retention.as_millis()).unwrap_or(u64::MAX);
        let cutoff = UnixMillis(now.0.saturating_sub(retention));
        let mut dropped = Dropped::default();
        for (app, _) in self.store.log.bytes() {
            let keep = |_, row: &[u8]| first_event_time(row).is_none_or(|time| time >= cutoff);
            self.store.drop_events(&app, keep, &self.settings.apps, &mut dropped)?;
        }
        ranges.append(&mut dropped.ranges);
        put.append(&mut dropped.put);
        Ok(())
    }

    /// The oldest events of those apps that have more than they may while the log is larger than `events.max_mb`.
    pub(super) fn shrink_events(&self) -> Result<(), ReadError> {
        let mut dropped = Dropped::default();
        for Excess { app, keep_from } in self.store.log.excess(&self.settings.apps, self.settings.events_max) {
            self.store.drop_events(&app, |position, _| position >= keep_from, &self.settings.apps, &mut dropped)?;
        }
        let Dropped { ranges, put } = dropped;
        if !ranges.is_empty() {
            self.send(Settle::Forget { ranges, put });
        }
        Ok(())
    }
}

fn forget_commits(from: u64, to: u64, ranges: &mut Ranges) {
    ranges.push((family::HEAD, key::head_key(from, 0), key::head_key(to, 0)));
    ranges.push((family::FEEDBACK, key::head_key(from, 0), key::head_key(to, 0)));
    ranges.push((family::OUTCOME, key::outcome_commit_prefix(from), key::outcome_commit_prefix(to)));
}

fn linger_key(commit: u64) -> Vec<u8> {
    let mut key = b"linger/".to_vec();
    key.extend(commit.to_be_bytes());
    key
}

fn heads(value: &[u8], commit: u64) -> Result<Vec<record::Head>, record::Corrupt> {
    let mut take = Take::versioned(Bytes::copy_from_slice(value))?;
    let mut heads = Vec::new();
    while !take.at_end() {
        heads.push(record::take_head(&mut take, commit)?);
    }
    Ok(heads)
}

fn first_event_time(row: &[u8]) -> Option<UnixMillis> {
    let line = row.get(5..)?.split(|byte| *byte == b'\n').next()?;
    let event: serde_json::Value = serde_json::from_slice(line).ok()?;
    crate::protocol::time::parse_time(event.get("time")?.as_str()?)
}
