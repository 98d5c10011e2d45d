//! Erasures on their way: the writer removes what belongs to somebody at once; what waits is ended, and what the logs say is blanked,
//! by the sweep, which tells the counts to who asked.
//!
//! Promise: an erasure that was answered is finished, whatever happens. Each has a row, written in the commit that removes and
//! dropped by the checkpoint that blanks the last of the logs; a start goes on with those that are left, from the beginning of the
//! logs: to blank a second time changes nothing. The row names whom it is about by hashes alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::oneshot;

use crate::message::{AccountHash, SubscriptionId};
use crate::store::live::{Holder, SubscriptionHash, Upto, lock, subscription_hash};
use crate::store::record::{self, Put, Take};
use crate::store::registry::account_hash;
use crate::store::registry::row::App;

/// Those that are not finished.
#[derive(Default)]
pub struct Erasures(Mutex<Vec<Erasure>>, Mutex<Compaction>);

/// When the files are to be written anew. That, too, has a row, [`COMPACTION_ROW`].
#[derive(Default)]
struct Compaction {
    wanted: Option<Instant>,
    last: Option<Instant>,
    /// It was done, and the row is still there.
    done: bool,
}

/// Key in `meta`: what was erased is still in files.
pub(super) const COMPACTION_ROW: &[u8] = b"erased";

/// So long after an erasure what it changed is on disk, and others that come with it are in.
const COMPACTION_DELAY: Duration = Duration::from_secs(5);
const COMPACTION_EVERY: Duration = Duration::from_secs(3_600);

/// What the sweep has done for an erasure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Deliveries that waited.
    pub cancelled: u64,
    /// Events that do not say any more whom they are about.
    pub blanked: u64,
}

/// Somebody who is erased.
pub struct Erasure {
    /// Key of its row in `meta`.
    pub(super) row: Vec<u8>,
    /// An account, and its browsers; or a browser.
    pub(super) whom: Vec<Holder>,
    /// Of whom the sweep has still to end what waits, and the message up to which.
    waits_for: HashMap<Holder, Upto>,
    cancelled: u64,
    /// Nobody waits for what was begun before the start.
    asked: Option<Arc<Asked>>,
}

/// The one that asked for an erasure, which may have several parts.
pub struct Asked {
    swept: Mutex<Swept>,
    reply: oneshot::Sender<Swept>,
}

impl Asked {
    /// Told when the last part is done: when nothing but that part holds this any more.
    pub fn new(reply: oneshot::Sender<Swept>) -> Arc<Asked> {
        Arc::new(Asked { swept: Mutex::default(), reply })
    }
}

impl Erasures {
    /// Has the logs blanked of somebody once the cancellations are swept.
    pub(super) fn add(&self, erasure: Erasure) {
        lock(&self.0).push(erasure);
    }

    /// The rows of all of them.
    pub(super) fn rows(&self) -> Vec<Vec<u8>> {
        lock(&self.0).iter().map(|erasure| erasure.row.clone()).collect()
    }

    pub(super) fn want_compaction(&self) {
        lock(&self.1).wanted.get_or_insert_with(Instant::now);
    }

    /// Whether the files are to be written anew now; told once.
    pub(super) fn compaction_due(&self) -> bool {
        let mut compaction = lock(&self.1);
        let waited = compaction.wanted.is_some_and(|since| since.elapsed() >= COMPACTION_DELAY);
        let due = waited && compaction.last.is_none_or(|last| last.elapsed() >= COMPACTION_EVERY);
        if due {
            *compaction = Compaction { wanted: None, last: Some(Instant::now()), done: false };
        }
        due
    }

    /// Whether one of them waits for this cancellation to be swept.
    pub(super) fn wait_for(&self, holder: &Holder) -> bool {
        lock(&self.0).iter().any(|erasure| erasure.waits_for.contains_key(holder))
    }

    pub(super) fn compacted(&self) {
        lock(&self.1).done = true;
    }

    /// Whether the files hold nothing any more of who was erased, told once.
    pub(super) fn clean(&self) -> bool {
        let mut compaction = lock(&self.1);
        std::mem::take(&mut compaction.done) && compaction.wanted.is_none()
    }

    /// A cancellation has been swept, up to this message.
    pub(super) fn swept(&self, holder: &Holder, upto: Upto, cancelled: u64) {
        for erasure in lock(&self.0).iter_mut() {
            if erasure.waits_for.get(holder).is_some_and(|wanted| *wanted <= upto) {
                erasure.waits_for.remove(holder);
                erasure.cancelled += cancelled;
            }
        }
    }

    /// Those for which nothing waits any more.
    pub(super) fn ready(&self) -> Vec<Erasure> {
        lock(&self.0).extract_if(.., |erasure| erasure.waits_for.is_empty()).collect()
    }
}

impl Erasure {
    /// One whose rules are not swept yet.
    pub(super) fn new(row: Vec<u8>, rules: &[(Holder, Upto)], asked: Arc<Asked>) -> Erasure {
        let whom = rules.iter().map(|(holder, _)| holder.clone()).collect();
        Erasure { row, whom, waits_for: rules.iter().cloned().collect(), cancelled: 0, asked: Some(asked) }
    }

    /// One that the last run has left; of its rules these are not swept yet.
    pub(super) fn left(row: Vec<u8>, whom: Vec<Holder>, unswept: HashMap<Holder, Upto>) -> Erasure {
        Erasure { row, whom, waits_for: unswept, cancelled: 0, asked: None }
    }

    /// Tells who asked.
    pub(super) fn done(self, blanked: u64) {
        let Some(asked) = self.asked else { return };
        {
            let mut swept = lock(&asked.swept);
            swept.cancelled += self.cancelled;
            swept.blanked += blanked;
        }
        if let Some(Asked { swept, reply }) = Arc::into_inner(asked) {
            // Nobody may wait for it any more.
            let _gone = reply.send(swept.into_inner().unwrap_or_else(PoisonError::into_inner));
        }
    }
}

/// Everybody whom the logs are blanked of in one go, with the place of the erasure.
#[derive(Default)]
pub(super) struct Whom {
    accounts: HashMap<AccountHash, usize>,
    subscriptions: HashMap<SubscriptionHash, Vec<InApp>>,
}

/// An app that a subscription is erased in, and the place of the erasure; None: it is erased in every app.
type InApp = (Option<Arc<str>>, usize);

/// Of an event: whom it is about.
#[derive(Deserialize)]
struct Names<'a> {
    app: Option<String>,
    account: Option<String>,
    subscription_id: Option<&'a str>,
}

impl Whom {
    pub(super) fn of(erasures: &[Erasure]) -> Whom {
        let mut whom = Whom::default();
        for (place, erasure) in erasures.iter().enumerate() {
            for holder in &erasure.whom {
                match holder {
                    Holder::Account(who) => _ = whom.accounts.entry(*who).or_insert(place),
                    Holder::Subscription(app, hash) => whom.subscriptions.entry(*hash).or_default().push((app.clone(), place)),
                    Holder::Message(_) | Holder::Label(..) | Holder::App(_) => {}
                }
            }
        }
        whom
    }

    /// The erasure of a subscription in an app.
    fn subscription(&self, id: SubscriptionId, app: &str) -> Option<usize> {
        let erased = self.subscriptions.get(&subscription_hash(id))?;
        erased.iter().find(|(of, _)| of.as_deref().is_none_or(|of| of == app)).map(|(_, place)| *place)
    }

    /// A row of the event log without the names of who is erased; None: they are not in it. The events that they stood in are
    /// added to `blanked`, erasure by erasure.
    pub(super) fn blank_events(&self, row: &[u8], app: impl Fn(&str) -> Option<App>, blanked: &mut [u64]) -> Option<Vec<u8>> {
        let text = std::str::from_utf8(row.get(5..)?).ok()?;
        let mut met = false;
        let mut out = row[..5].to_vec();
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                out.push(b'\n');
            }
            match self.blank(line, &app) {
                Some((place, line)) => {
                    met = true;
                    blanked[place] += 1;
                    out.extend_from_slice(line.as_bytes());
                }
                None => out.extend_from_slice(line.as_bytes()),
            }
        }
        met.then_some(out)
    }

    fn blank(&self, line: &str, app: impl Fn(&str) -> Option<App>) -> Option<(usize, String)> {
        let Names { app: of, account, subscription_id } = serde_json::from_str(line).ok()?;
        let by_id = || {
            let mut id = [0; 12];
            let whole = URL_SAFE_NO_PAD.decode_slice(subscription_id?, &mut id) == Ok(id.len());
            self.subscription(SubscriptionId(id), of.as_deref().unwrap_or_default()).filter(|_| whole)
        };
        let by_account = || self.accounts.get(&account_hash(app(of.as_deref()?)?, account.as_deref()?)).copied();
        let place = by_id().or_else(by_account)?;
        let mut event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        for name in ["subscription_id", "account", "ref"] {
            event.remove(name);
        }
        Some((place, serde_json::to_string(&event).ok()?))
    }

    /// A row of heads without them; None: they are not in it.
    pub(super) fn blank_heads(&self, key: &[u8], row: &[u8]) -> Option<Vec<u8>> {
        let commit = u64::from_be_bytes(*key.first_chunk::<8>()?);
        let mut take = Take::versioned(Bytes::copy_from_slice(row)).ok()?;
        let mut put = Put::versioned();
        let mut met = false;
        while !take.at_end() {
            let mut head = record::take_head(&mut take, commit).ok()?;
            for recipient in &mut head.recipients {
                let account = recipient.account.and_then(|who| self.accounts.get(&who));
                if account.is_some() || self.subscription(recipient.subscription, &head.app).is_some() {
                    met = true;
                    (recipient.subscription, recipient.account, recipient.reference) = (SubscriptionId::UNKNOWN, None, None);
                }
            }
            record::put_head(&mut put, &head);
        }
        met.then_some(put.0)
    }

    /// Whether the key of a row of `feedback` ends with the id of one that is erased in some app.
    pub(super) fn may_name(&self, key: &[u8]) -> bool {
        receipt_of(key).is_some_and(|id| self.subscriptions.contains_key(&subscription_hash(id)))
    }

    /// Whether it ends with the id of one that is erased in the app.
    pub(super) fn names(&self, key: &[u8], app: &str) -> bool {
        receipt_of(key).is_some_and(|id| self.subscription(id, app).is_some())
    }
}

/// Whose receipts a row of `feedback` notes, by its key.
fn receipt_of(key: &[u8]) -> Option<SubscriptionId> {
    key.last_chunk().filter(|_| key.len() > 12).map(|id| SubscriptionId(*id))
}
