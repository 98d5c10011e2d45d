//! What the logs say of those who were erased, and the files that still have it.
//!
//! Promise: see [`crate::store::erase`]. The logs are read slice by slice, each after the one before it is on disk, so that nothing
//! that was blanked is written again; the row of an erasure goes with the last slice, so a start that finds it begins anew.

use bytes::Bytes;
use crossbeam_channel::Receiver;

use crate::store::erase::{COMPACTION_ROW, Erasure, Whom};
use crate::store::key::just_behind;
use crate::store::registry::row::Fallback;
use crate::store::sweep::{Puts, Ranges, Sweep};
use crate::store::writer::Settle;
use crate::store::{ReadError, family};

/// Rows of the logs that are blanked in one checkpoint, and their bytes: it must not keep the writer for long.
const BLANKED_ROWS: usize = if cfg!(test) { 2 } else { 512 };
const BLANKED_BYTES: usize = 1 << 20;
/// Bytes of the logs that are read in one step: meanwhile nothing else is swept.
const SCANNED_BYTES: usize = 64 << 20;

/// Logs that are being blanked, slice by slice, of all who were ready when it began: one go at a time, for each slice is read when
/// what was blanked before it is on disk.
pub(super) struct Blanking {
    erasures: Vec<Erasure>,
    whom: Whom,
    /// Events so far, erasure by erasure.
    blanked: Vec<u64>,
    /// Of [`LOGS`], and where in it; behind the last one all is sent.
    log: usize,
    from: Vec<u8>,
    /// What was sent is on its way to the disk.
    sent: Option<Receiver<()>>,
}

/// Where names lie, and the bounds of it.
const LOGS: [(&str, &[u8], &[u8]); 4] = [
    (family::EVENTS, &[], &[255; 9]),
    (family::HEAD, &[], &[255; 11]),
    (family::FEEDBACK, &[], &[255; 23]),
    (family::INDEX, &[7], &[8]),
];

/// A part of the logs that was read: what is to be written, and where the next one begins.
struct Blanked {
    put: Puts,
    ranges: Ranges,
    events: Vec<u64>,
    log: usize,
    from: Vec<u8>,
}

impl Sweep {
    /// Goes on blanking what the logs say of those who were erased, once nothing waits for them any more: the next slice, if the
    /// last one is on disk.
    pub(super) fn blank_erased(&mut self) -> Result<(), ReadError> {
        let Some(mut blanking) = self.blanking.take().or_else(|| self.begin_blanking()) else { return Ok(()) };
        if blanking.sent.as_ref().is_some_and(|written| written.try_recv().is_err()) {
            self.blanking = Some(blanking);
            return Ok(());
        }
        blanking.sent = None;
        if blanking.log == LOGS.len() {
            blanking.erasures.into_iter().zip(blanking.blanked).for_each(|(erasure, blanked)| erasure.done(blanked));
            self.store.erasures.want_compaction();
            return Ok(());
        }
        let read = self.blank_some(&blanking).map(|blanked| self.send_blanked(&mut blanking, blanked));
        self.blanking = Some(blanking);
        read
    }

    fn send_blanked(&self, blanking: &mut Blanking, blanked: Blanked) {
        let Blanked { mut put, mut ranges, events, log, from } = blanked;
        (blanking.log, blanking.from) = (log, from);
        blanking.blanked.iter_mut().zip(events).for_each(|(all, some)| *all += some);
        if log == LOGS.len() {
            // With the last of it, so that a start has nothing left to do.
            let rows = blanking.erasures.iter().map(|erasure| (family::META, erasure.row.clone(), just_behind(&erasure.row)));
            ranges.extend(rows);
            put.push((family::META, COMPACTION_ROW.to_vec(), Vec::new()));
        }
        if !put.is_empty() || !ranges.is_empty() {
            self.send(Settle::Forget { ranges, put });
            blanking.sent = Some(self.written());
        }
    }

    fn begin_blanking(&self) -> Option<Blanking> {
        let erasures = self.store.erasures.ready();
        if erasures.is_empty() {
            return None;
        }
        let (whom, blanked) = (Whom::of(&erasures), vec![0; erasures.len()]);
        // What was sent before, ranges of these logs among it, is on disk when they are read.
        Some(Blanking { erasures, whom, blanked, log: 0, from: LOGS[0].1.to_vec(), sent: Some(self.written()) })
    }

    /// Reads the logs on until there is enough to write.
    fn blank_some(&self, blanking: &Blanking) -> Result<Blanked, ReadError> {
        let Blanking { whom, log, from, .. } = blanking;
        let (family, _, end) = LOGS[*log];
        let mut blanked = Blanked {
            put: Vec::new(),
            ranges: Vec::new(),
            events: vec![0; blanking.blanked.len()],
            log: log + 1,
            from: LOGS.get(log + 1).map_or_else(Vec::new, |(_, start, _)| start.to_vec()),
        };
        let (mut scanned, mut bytes) = (0, 0);
        // Their app is that of their message, which is looked up when nothing is being read.
        let mut receipts: Vec<Vec<u8>> = Vec::new();
        self.store.reader()?.scan(family, from, end, |row, value| {
            scanned += row.len() + value.len();
            let put = match family {
                family::EVENTS => whom.blank_events(value, |app| self.store.registry.app(app), &mut blanked.events),
                family::HEAD => whom.blank_heads(row, value),
                _ => None,
            };
            let drops = match family {
                family::INDEX => Fallback::decode(Bytes::copy_from_slice(value)).is_ok_and(|fallback| self.is_erased(&fallback)),
                _ => false,
            };
            if let Some(value) = put {
                bytes += value.len();
                blanked.put.push((family, row.to_vec(), value));
            }
            if drops {
                blanked.ranges.push((family, row.to_vec(), just_behind(row)));
            }
            if family == family::FEEDBACK && whom.may_name(row) {
                receipts.push(row.to_vec());
            }
            let rows = blanked.put.len() + blanked.ranges.len() + receipts.len();
            let enough = rows >= BLANKED_ROWS || bytes >= BLANKED_BYTES || scanned >= SCANNED_BYTES;
            if enough {
                (blanked.log, blanked.from) = (*log, just_behind(row));
            }
            !enough
        })?;
        for row in receipts {
            // Of a message that is forgotten already nobody can be told.
            if self.store.app_of(&row)?.is_none_or(|app| whom.names(&row, &app)) {
                let end = just_behind(&row);
                blanked.ranges.push((family, row, end));
            }
        }
        Ok(blanked)
    }

    /// What was erased leaves the files as well: some seconds after it, and once an hour at most, for it costs as much as copying
    /// the store.
    pub(super) fn compact_erased(&self) {
        if self.blanking.is_none() && self.store.erasures.clean() {
            let ranges = vec![(family::META, COMPACTION_ROW.to_vec(), just_behind(COMPACTION_ROW))];
            self.send(Settle::Forget { ranges, put: Vec::new() });
        }
        if !self.store.erasures.compaction_due() {
            return;
        }
        let store = self.store.clone();
        std::thread::spawn(move || match store.compact() {
            Ok(()) => store.erasures.compacted(),
            Err(ReadError) => store.erasures.want_compaction(),
        });
    }
}
