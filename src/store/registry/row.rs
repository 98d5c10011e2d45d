//! Rows of the registry: bytes <-> types.
//!
//! ```text
//! subscription <service u16><serial u64>                                 what sending and judging need
//! detail       <service u16><serial u64>                                 name, user agent, times
//! posting      <app u16><kind u8><name><service u16><serial u64>         who has a tag or accepts a scope
//! index        <0><app u16><subscription id 12>                          service and serial
//!              <1><app u16><account><service u16><serial u64>            the browsers of an account
//!              <2><app u16><account>                                     a disabled account
//!              <3><app u16><kind u8><name>                               how many can be reached
//!              <4><time u64><service u16><serial u64>                    to be looked at: expired, or gone for good
//!              <5><account hash 8>                                       until when it counts as online
//!              <6><service u16>                                          the next serial
//!              <7><time u64><commit u64><place u16><n u16>               a fallback to be decided
//! feedback     <commit u64><place u16><subscription id 12>               which receipts have come
//!              <commit u64><place u16>                                   how many
//! ```
//! A name or account is preceded by its length (u16), so that no other one begins with it.

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{
    Account, AccountHash, Attributes, DeliveryId, MessageId, Name, Recipient, Service, SubscriptionId, SubscriptionKey,
    UnixMillis,
};
use crate::store::key;
use crate::store::record::{self, Corrupt, Put, Take};

/// The number of an app in rows.
pub type App = u16;

/// What a posting list, or a count, is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// All of an app; only counted.
    App = 0,
    /// Those that accept a scope by name.
    Scope = 1,
    Tag = 2,
    /// Those that accept every scope.
    AnyScope = 3,
}

/// A posting list or a count: `name` is empty where the kind has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Posting {
    pub app: App,
    pub kind: Kind,
    pub name: Name,
}

impl Posting {
    /// Where its rows begin in `posting`.
    pub fn prefix(&self) -> Vec<u8> {
        let mut put = Put::default();
        put.u16(self.app).u8(self.kind as u8).short(self.name.as_bytes());
        put.0
    }

    /// Key of a subscription in it.
    pub fn key(&self, of: SubscriptionKey) -> Vec<u8> {
        let mut put = Put(self.prefix());
        put.u16(of.service.0).u64(of.serial);
        put.0
    }

    /// Key of its count in `index`.
    pub fn count_key(&self) -> Vec<u8> {
        let mut put = Put::default();
        put.u8(3).bytes(&self.prefix());
        put.0
    }
}

/// Key in `subscription` and `detail`.
pub fn subscription_key(key: SubscriptionKey) -> Vec<u8> {
    let mut put = Put::default();
    put.u16(key.service.0).u64(key.serial);
    put.0
}

/// The subscription that the last ten bytes of a key name.
pub fn take_key(row: &[u8]) -> Result<SubscriptionKey, Corrupt> {
    let tail = row.last_chunk::<10>().ok_or(Corrupt)?;
    let [service @ .., _, _, _, _, _, _, _, _] = *tail;
    let serial = *tail.last_chunk::<8>().expect("ten bytes");
    Ok(SubscriptionKey { service: Service(u16::from_be_bytes(service)), serial: u64::from_be_bytes(serial) })
}

/// Key in `index` of a subscription's id.
pub fn id_key(app: App, id: SubscriptionId) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(0).u16(app).bytes(&id.0);
    put.0
}

/// Where the browsers of an account begin in `index`.
pub fn account_prefix(app: App, account: &str) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(1).u16(app).short(account.as_bytes());
    put.0
}

/// Key in `index` of a browser of an account.
pub fn account_key(app: App, account: &str, key: SubscriptionKey) -> Vec<u8> {
    let mut put = Put(account_prefix(app, account));
    put.bytes(&subscription_key(key));
    put.0
}

/// Where the disabled accounts of an app begin in `index`.
pub fn disabled_prefix(app: App) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(2).u16(app);
    put.0
}

/// Key in `index` of a disabled account.
pub fn disabled_key(app: App, account: &str) -> Vec<u8> {
    let mut put = Put(disabled_prefix(app));
    put.short(account.as_bytes());
    put.0
}

/// App and account of a key made by [`disabled_key`].
pub fn disabled_from(row: &[u8]) -> Result<(App, Account), Corrupt> {
    let mut take = Take::new(Bytes::copy_from_slice(row));
    take.skip(1)?;
    Ok((take.u16()?, take.str()?))
}

/// Key in `index` of a subscription that is to be looked at.
pub fn look_key(time: UnixMillis, key: SubscriptionKey) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(4).u64(time.0).bytes(&subscription_key(key));
    put.0
}

/// Key in `index` of an account's presence.
pub fn presence_key(who: AccountHash) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(5).bytes(&who.0);
    put.0
}

/// Key in `index` of a service's next serial.
pub fn serial_key(service: Service) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(6).u16(service.0);
    put.0
}

/// Key in `index` of a fallback.
pub fn fallback_key(time: UnixMillis, id: MessageId, n: u16) -> Vec<u8> {
    let mut put = Put::default();
    put.u8(7).u64(time.0).u64(id.commit()).u16(id.place()).u16(n);
    put.0
}

/// Key in `feedback` of a recipient.
pub fn feedback_key(id: MessageId, subscription: SubscriptionId) -> Vec<u8> {
    let mut put = Put(feedback_counts_key(id));
    put.bytes(&subscription.0);
    put.0
}

/// Key in `feedback` of a message's counts.
pub fn feedback_counts_key(id: MessageId) -> Vec<u8> {
    key::list_prefix(id.commit(), id.place())
}

const ENABLED: u8 = 1;
const GONE: u8 = 2;
const HAS_ACCOUNT: u8 = 4;
const ANY_SCOPE: u8 = 8;
const PROVEN: u8 = 16;

/// A subscription: what sending and judging need. A row of `subscription`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subscription {
    pub app: App,
    pub enabled: bool,
    /// Its push service said so, or its time is over; it can be undone until the row is dropped.
    pub gone: bool,
    /// A push service has accepted a message for this endpoint.
    pub proven: bool,
    pub account: Option<Account>,
    /// None: accepts every scope.
    pub scopes: Option<Vec<Name>>,
    pub tags: Vec<Name>,
    pub attributes: Attributes,
    pub recipient: Recipient,
}

impl Subscription {
    /// The row's value. `hash` is that of the account.
    pub fn encode(&self, hash: impl Fn(App, &str) -> AccountHash) -> Vec<u8> {
        let mut put = Put::versioned();
        let flags = [
            (ENABLED, self.enabled),
            (GONE, self.gone),
            (HAS_ACCOUNT, self.account.is_some()),
            (ANY_SCOPE, self.scopes.is_none()),
            (PROVEN, self.proven),
        ];
        put.u8(flags.into_iter().filter(|(_, set)| *set).map(|(bit, _)| bit).sum()).u16(self.app);
        if let Some(account) = &self.account {
            put.bytes(&hash(self.app, account).0).short(account.as_bytes());
        }
        record::put_names(&mut put, self.scopes.as_deref().unwrap_or_default());
        record::put_names(&mut put, &self.tags);
        record::put_attributes(&mut put, &self.attributes);
        record::put_whole_recipient(&mut put, &self.recipient);
        put.0
    }

    /// The subscription of a row.
    pub fn decode(row: Bytes) -> Result<Subscription, Corrupt> {
        let mut take = Take::versioned(row)?;
        let flags = take.u8()?;
        let app = take.u16()?;
        let account = if flags & HAS_ACCOUNT != 0 {
            take.skip(8)?;
            Some(take.str()?)
        } else {
            None
        };
        let scopes = record::take_names(&mut take)?;
        Ok(Subscription {
            app,
            enabled: flags & ENABLED != 0,
            gone: flags & GONE != 0,
            proven: flags & PROVEN != 0,
            account,
            scopes: if flags & ANY_SCOPE != 0 { None } else { Some(scopes) },
            tags: record::take_names(&mut take)?,
            attributes: record::take_attributes(&mut take)?,
            recipient: record::take_recipient(&mut take)?,
        })
    }

    /// The posting lists it is in, unless it is gone.
    pub fn postings(&self) -> Vec<Posting> {
        let posting = |kind, name: &Name| Posting { app: self.app, kind, name: name.clone() };
        let mut postings: Vec<Posting> = self.tags.iter().map(|tag| posting(Kind::Tag, tag)).collect();
        match &self.scopes {
            None => postings.push(posting(Kind::AnyScope, &Arc::from(""))),
            Some(scopes) => postings.extend(scopes.iter().map(|scope| posting(Kind::Scope, scope))),
        }
        postings
    }
}

/// A row of `subscription`, looked at without being taken apart: what a walk does with each that it meets.
pub struct View<'a> {
    flags: u8,
    app: App,
    account: Option<(AccountHash, &'a str)>,
    scopes: &'a [u8],
    tags: &'a [u8],
    attributes: &'a [u8],
    recipient: usize,
}

impl<'a> View<'a> {
    /// Reads the fields before the recipient.
    pub fn of(row: &'a [u8]) -> Result<View<'a>, Corrupt> {
        let mut fields = Slices { row, at: 0 };
        if fields.u8()? != record::VERSION {
            return Err(Corrupt);
        }
        let flags = fields.u8()?;
        let app = fields.u16()?;
        let account = if flags & HAS_ACCOUNT != 0 {
            let hash = AccountHash(fields.take(8)?.try_into().expect("eight bytes"));
            Some((hash, std::str::from_utf8(fields.short()?).map_err(|_| Corrupt)?))
        } else {
            None
        };
        let scopes = fields.many(1)?;
        let tags = fields.many(1)?;
        let attributes = fields.many(2)?;
        Ok(View { flags, app, account, scopes, tags, attributes, recipient: fields.at })
    }

    pub fn app(&self) -> App {
        self.app
    }

    pub fn enabled(&self) -> bool {
        self.flags & ENABLED != 0
    }

    pub fn gone(&self) -> bool {
        self.flags & GONE != 0
    }

    pub fn proven(&self) -> bool {
        self.flags & PROVEN != 0
    }

    pub fn account(&self) -> Option<(AccountHash, &'a str)> {
        self.account
    }

    pub fn has_tag(&self, tag: &str) -> bool {
        names(self.tags).any(|name| name == tag.as_bytes())
    }

    pub fn accepts(&self, scope: &str) -> bool {
        self.flags & ANY_SCOPE != 0 || names(self.scopes).any(|name| name == scope.as_bytes())
    }

    pub fn attribute(&self, name: &str) -> Option<&'a [u8]> {
        let mut texts = names(self.attributes);
        while let (Some(known), Some(value)) = (texts.next(), texts.next()) {
            if known == name.as_bytes() {
                return Some(value);
            }
        }
        None
    }

    /// The attributes, for a template.
    pub fn attributes(&self) -> Attributes {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut found = Attributes::new();
        let mut texts = names(self.attributes);
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            found.insert(Arc::from(text(name)), text(value).into_boxed_str());
        }
        found
    }

    /// The recipient of the row that this is a view of.
    pub fn recipient(&self, row: &Bytes) -> Result<Recipient, Corrupt> {
        record::take_recipient(&mut Take::new(row.slice(self.recipient..)))
    }
}

/// Texts one after the other, each behind its length.
fn names(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (len, behind) = rest.split_first_chunk::<2>()?;
        let (name, behind) = behind.split_at_checked(usize::from(u16::from_be_bytes(*len)))?;
        rest = behind;
        Some(name)
    })
}

struct Slices<'a> {
    row: &'a [u8],
    at: usize,
}

impl<'a> Slices<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Corrupt> {
        let field = self.row.get(self.at..self.at + len).ok_or(Corrupt)?;
        self.at += len;
        Ok(field)
    }

    fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Corrupt> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().expect("two bytes")))
    }

    fn short(&mut self) -> Result<&'a [u8], Corrupt> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    /// A number of entries of `texts` texts each; without the number.
    fn many(&mut self, texts: usize) -> Result<&'a [u8], Corrupt> {
        let count = usize::from(self.u16()?) * texts;
        let from = self.at;
        for _ in 0..count {
            self.short()?;
        }
        Ok(&self.row[from..self.at])
    }
}

/// What is known of a subscription beside that. A row of `detail`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detail {
    pub name: Option<Box<str>>,
    pub user_agent: Option<Box<str>>,
    pub created: UnixMillis,
    /// To the day.
    pub seen: UnixMillis,
    pub last_failure: Option<UnixMillis>,
    pub reason: Option<Box<str>>,
    pub gone_at: Option<UnixMillis>,
}

impl Detail {
    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put::versioned();
        put.maybe(self.name.as_deref()).maybe(self.user_agent.as_deref()).u64(self.created.0).u64(self.seen.0);
        put.u64(self.last_failure.unwrap_or_default().0).maybe(self.reason.as_deref());
        put.u64(self.gone_at.unwrap_or_default().0);
        put.0
    }

    pub fn decode(row: Bytes) -> Result<Detail, Corrupt> {
        let mut take = Take::versioned(row)?;
        let text = |text: Option<Arc<str>>| text.map(|text| Box::from(&*text));
        let time = |millis: u64| (millis > 0).then_some(UnixMillis(millis));
        Ok(Detail {
            name: text(take.maybe()?),
            user_agent: text(take.maybe()?),
            created: UnixMillis(take.u64()?),
            seen: UnixMillis(take.u64()?),
            last_failure: time(take.u64()?),
            reason: text(take.maybe()?),
            gone_at: time(take.u64()?),
        })
    }
}

/// A fallback that is to be decided. A row of `index`.
#[derive(Clone, Debug, PartialEq)]
pub struct Fallback {
    pub id: MessageId,
    pub app: Name,
    pub account: Account,
    pub label: Option<Arc<str>>,
    pub reference: Option<Arc<str>>,
    pub when_offline: bool,
    /// With receipts it is "shown" that counts, not "accepted".
    pub shown: bool,
    /// Milliseconds between two looks, while it waits for the account to go offline.
    pub after: u64,
    pub expires: UnixMillis,
    pub deliveries: Vec<(DeliveryId, SubscriptionId)>,
}

impl Fallback {
    pub fn encode(&self) -> Vec<u8> {
        let mut put = Put::versioned();
        put.u128(self.id.0).short(self.app.as_bytes()).short(self.account.as_bytes());
        put.maybe(self.label.as_deref()).maybe(self.reference.as_deref());
        put.u8(u8::from(self.when_offline) | u8::from(self.shown) << 1).u64(self.after).u64(self.expires.0);
        put.u16(u16::try_from(self.deliveries.len()).unwrap_or(u16::MAX));
        for (delivery, id) in self.deliveries.iter().take(usize::from(u16::MAX)) {
            put.short(&key::batch_key(&delivery.batch)).u16(delivery.index).bytes(&id.0);
        }
        put.0
    }

    pub fn decode(row: Bytes) -> Result<Fallback, Corrupt> {
        let mut take = Take::versioned(row)?;
        let id = MessageId(take.u128()?);
        let (app, account) = (take.str()?, take.str()?);
        let (label, reference) = (take.maybe()?, take.maybe()?);
        let flags = take.u8()?;
        let (after, expires) = (take.u64()?, UnixMillis(take.u64()?));
        let mut deliveries = Vec::new();
        for _ in 0..take.u16()? {
            let batch = key::batch_from_key(&take.short()?)?;
            deliveries.push((DeliveryId { batch, index: take.u16()? }, SubscriptionId(take.array()?)));
        }
        Ok(Fallback {
            id,
            app,
            account,
            label,
            reference,
            when_offline: flags & 1 != 0,
            shown: flags & 2 != 0,
            after,
            expires,
            deliveries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::samples;

    fn subscription() -> Subscription {
        Subscription {
            app: 3,
            enabled: true,
            gone: false,
            proven: true,
            account: Some(Arc::from("ada")),
            scopes: Some(vec![Arc::from("news"), Arc::from("sport")]),
            tags: vec![Arc::from("vip")],
            attributes: Attributes::from([(Arc::from("lang"), Box::from("\"pl\"")), (Arc::from("n"), Box::from("5"))]),
            recipient: samples::recipient(7),
        }
    }

    #[test]
    fn a_subscription_comes_back_and_can_be_looked_at() {
        let whole = subscription();
        let hash = AccountHash([9; 8]);
        let row = Bytes::from(whole.encode(|_, _| hash));
        assert_eq!(Subscription::decode(row.clone()), Ok(whole.clone()));
        let view = View::of(&row).expect("it was written so");
        assert_eq!((view.app(), view.enabled(), view.gone(), view.proven()), (3, true, false, true));
        assert_eq!(view.account(), Some((hash, "ada")));
        assert!(view.has_tag("vip") && !view.has_tag("vi") && !view.has_tag("news"));
        assert!(view.accepts("sport") && !view.accepts("vip"));
        assert_eq!(
            (view.attribute("lang"), view.attribute("n"), view.attribute("\"pl\"")),
            (Some(&b"\"pl\""[..]), Some(&b"5"[..]), None)
        );
        assert_eq!(view.attributes(), whole.attributes);
        assert_eq!(view.recipient(&row), Ok(whole.recipient.clone()));
        for cut in 0..row.len() {
            assert!(Subscription::decode(row.slice(..cut)).is_err());
            let _no_panic = View::of(&row[..cut]).map(|view| view.recipient(&row.slice(..cut)));
        }
        let any = Subscription { scopes: None, account: None, ..whole };
        let row = Bytes::from(any.encode(|_, _| hash));
        assert_eq!(Subscription::decode(row.clone()), Ok(any));
        assert!(View::of(&row).expect("it was written so").accepts("whatever"));
    }

    #[test]
    fn details_and_keys_come_back() {
        let detail = Detail { name: Some("phone".into()), seen: UnixMillis(5), ..Detail::default() };
        assert_eq!(Detail::decode(Bytes::from(detail.encode())), Ok(detail));
        let key = SubscriptionKey { service: Service(300), serial: 1 << 40 };
        assert_eq!(take_key(&account_key(1, "a", key)), Ok(key));
        assert_eq!(disabled_from(&disabled_key(7, "b")), Ok((7, Arc::from("b"))));
    }
}
