//! Erasures on their way: the writer removes what belongs to somebody at once; what waits is ended, and what the logs say is blanked,
//! by the sweep, which tells the counts to who asked.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::message::{AccountHash, SubscriptionId};
use crate::store::live::{Holder, lock, subscription_hash};
use crate::store::record::{self, Put, Take};

/// Those that are not finished.
#[derive(Default)]
pub struct Erasures(Mutex<Vec<Erasure>>, Mutex<Compaction>);

/// When the files are to be written anew.
#[derive(Default)]
struct Compaction {
    wanted: Option<Instant>,
    last: Option<Instant>,
}

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
    ids: Vec<SubscriptionId>,
    texts: Vec<String>,
    account: Option<String>,
    accounts: Vec<AccountHash>,
    waits_for: Vec<Holder>,
    cancelled: u64,
    reply: oneshot::Sender<Swept>,
}

impl Erasures {
    /// Has the logs blanked of these once their cancellations are swept. The reply comes when that is done.
    pub(super) fn add(
        &self,
        ids: Vec<SubscriptionId>,
        accounts: Vec<AccountHash>,
        account: Option<&str>,
        reply: oneshot::Sender<Swept>,
    ) {
        let mut waits_for: Vec<Holder> = ids.iter().map(|id| Holder::Subscription(subscription_hash(*id))).collect();
        waits_for.extend(accounts.iter().copied().map(Holder::Account));
        let texts = ids.iter().map(|id| URL_SAFE_NO_PAD.encode(id.0)).collect();
        let account = account.map(str::to_owned);
        lock(&self.0).push(Erasure { ids, texts, account, accounts, waits_for, cancelled: 0, reply });
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
            *compaction = Compaction { wanted: None, last: Some(Instant::now()) };
        }
        due
    }

    /// A cancellation has been swept.
    pub(super) fn swept(&self, holder: &Holder, cancelled: u64) {
        for erasure in lock(&self.0).iter_mut().filter(|erasure| erasure.waits_for.contains(holder)) {
            erasure.waits_for.retain(|known| known != holder);
            erasure.cancelled += cancelled;
        }
    }

    /// Those whose logs could not be read are looked at again.
    pub(super) fn give_back(&self, erasures: Vec<Erasure>) {
        lock(&self.0).extend(erasures);
    }

    /// Those for which nothing waits any more.
    pub(super) fn ready(&self) -> Vec<Erasure> {
        lock(&self.0).extract_if(.., |erasure| erasure.waits_for.is_empty()).collect()
    }
}

impl Erasure {
    /// A row of the event log without the names of who is erased, and in how many events they stood; None: in none.
    pub(super) fn blank_events(&self, row: &[u8]) -> Option<(Vec<u8>, u64)> {
        let text = std::str::from_utf8(row.get(5..)?).ok()?;
        let account = self.account.as_ref().and_then(|account| serde_json::to_string(account).ok());
        let met = self.texts.iter().any(|id| text.contains(id.as_str())) || account.is_some_and(|name| text.contains(&name));
        if !met {
            return None;
        }
        let mut blanked = 0;
        let mut out = row[..5].to_vec();
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                out.push(b'\n');
            }
            match self.blank(line) {
                Some(line) => {
                    blanked += 1;
                    out.extend_from_slice(line.as_bytes());
                }
                None => out.extend_from_slice(line.as_bytes()),
            }
        }
        (blanked > 0).then_some((out, blanked))
    }

    fn blank(&self, line: &str) -> Option<String> {
        let mut event: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
        let is = |name: &str, texts: &[String]| {
            event.get(name).and_then(|value| value.as_str()).is_some_and(|text| texts.iter().any(|known| known == text))
        };
        if !is("subscription_id", &self.texts) && !is("account", self.account.as_slice()) {
            return None;
        }
        for name in ["subscription_id", "account", "ref"] {
            event.remove(name);
        }
        serde_json::to_string(&event).ok()
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
                let own = self.ids.contains(&recipient.subscription)
                    || recipient.account.is_some_and(|who| self.accounts.contains(&who));
                if own {
                    met = true;
                    (recipient.subscription, recipient.account, recipient.reference) = (SubscriptionId::UNKNOWN, None, None);
                }
            }
            record::put_head(&mut put, &head);
        }
        met.then_some(put.0)
    }

    /// Whether a row's key ends with the id of one of them.
    pub(super) fn names(&self, key: &[u8]) -> bool {
        key.len() > 12 && self.ids.iter().any(|id| key.ends_with(&id.0))
    }

    /// Tells who asked.
    pub(super) fn done(self, blanked: u64) {
        // Nobody may wait for it any more.
        let _gone = self.reply.send(Swept { cancelled: self.cancelled, blanked });
    }
}
