//! Values on disk: bytes <-> types. Every value begins with [`VERSION`]; a row of a newer version refuses to decode, and the
//! store refuses to open at all if its format row says so. The rule for changes: fields are only appended behind a higher
//! version, and the decoder of each older version stays for as long as rows of it can exist (35 days: `ttl_max` plus
//! `messages.retention`).

use std::sync::Arc;

use bytes::Bytes;

use crate::message::{
    AccountHash, Attributes, BatchId, ContentType, Delivery, DeliveryId, Encoding, Endpoint, KeyId, Lane, Message, MessageId,
    Name, Recipient, Reference, Registered, Segment, Service, SubscriptionId, SubscriptionKey, UnixMillis, Urgency,
};

/// Version of all rows that this program writes.
pub const VERSION: u8 = 1;

/// A row that will not decode: set aside and counted, never fatal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corrupt;

/// Appends fields to a value.
#[derive(Default)]
pub struct Put(pub Vec<u8>);

impl Put {
    /// A value that begins with the version.
    pub fn versioned() -> Put {
        Put(vec![VERSION])
    }

    pub fn u8(&mut self, value: u8) -> &mut Put {
        self.0.push(value);
        self
    }

    pub fn u16(&mut self, value: u16) -> &mut Put {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u32(&mut self, value: u32) -> &mut Put {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u64(&mut self, value: u64) -> &mut Put {
        self.bytes(&value.to_be_bytes())
    }

    pub fn u128(&mut self, value: u128) -> &mut Put {
        self.bytes(&value.to_be_bytes())
    }

    pub fn bytes(&mut self, value: &[u8]) -> &mut Put {
        self.0.extend_from_slice(value);
        self
    }

    /// Length in 16 bits, then the bytes. The bounds of `limits` keep every such field below 64 KiB.
    pub fn short(&mut self, value: &[u8]) -> &mut Put {
        self.u16(u16::try_from(value.len()).expect("limits.rs bounds every field below 64 KiB"));
        self.bytes(value)
    }

    /// Presence byte, then [`Put::short`].
    pub fn maybe(&mut self, value: Option<&str>) -> &mut Put {
        match value {
            None => self.u8(0),
            Some(text) => self.u8(1).short(text.as_bytes()),
        }
    }
}

/// Takes fields off a value, without copying what stays bytes.
pub struct Take {
    bytes: Bytes,
    at: usize,
}

impl Take {
    /// Reads from the start.
    pub fn new(bytes: Bytes) -> Take {
        Take { bytes, at: 0 }
    }

    /// Reads a value that begins with the version.
    pub fn versioned(bytes: Bytes) -> Result<Take, Corrupt> {
        let mut take = Take::new(bytes);
        if take.u8()? != VERSION {
            return Err(Corrupt);
        }
        Ok(take)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let end = self.at.checked_add(N).ok_or(Corrupt)?;
        let field = self.bytes.get(self.at..end).ok_or(Corrupt)?;
        self.at = end;
        Ok(field.try_into().expect("a slice of N bytes"))
    }

    pub fn u8(&mut self) -> Result<u8, Corrupt> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<u16, Corrupt> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub fn u32(&mut self) -> Result<u32, Corrupt> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64, Corrupt> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub fn u128(&mut self) -> Result<u128, Corrupt> {
        Ok(u128::from_be_bytes(self.array()?))
    }

    pub fn take(&mut self, len: usize) -> Result<Bytes, Corrupt> {
        let end = self.at.checked_add(len).ok_or(Corrupt)?;
        if end > self.bytes.len() {
            return Err(Corrupt);
        }
        let field = self.bytes.slice(self.at..end);
        self.at = end;
        Ok(field)
    }

    pub fn short(&mut self) -> Result<Bytes, Corrupt> {
        let len = self.u16()?;
        self.take(usize::from(len))
    }

    fn text(&mut self) -> Result<&str, Corrupt> {
        let len = usize::from(self.u16()?);
        let end = self.at.checked_add(len).ok_or(Corrupt)?;
        let field = self.bytes.get(self.at..end).ok_or(Corrupt)?;
        self.at = end;
        std::str::from_utf8(field).map_err(|_| Corrupt)
    }

    /// A [`Put::short`] of text.
    pub fn str(&mut self) -> Result<Arc<str>, Corrupt> {
        self.text().map(Arc::from)
    }

    pub fn maybe(&mut self) -> Result<Option<Arc<str>>, Corrupt> {
        match self.u8()? {
            0 => Ok(None),
            1 => self.str().map(Some),
            _ => Err(Corrupt),
        }
    }

    pub fn skip(&mut self, len: usize) -> Result<(), Corrupt> {
        self.at = self.at.checked_add(len).ok_or(Corrupt)?;
        if self.at > self.bytes.len() { Err(Corrupt) } else { Ok(()) }
    }

    pub fn at_end(&self) -> bool {
        self.at == self.bytes.len()
    }
}

// A recipient's flags.
const AESGCM: u8 = 1;
const HAS_KEY: u8 = 2;
const HAS_EXPIRATION: u8 = 4;
const REFERENCE_TEXT: u8 = 8;
const REFERENCE_INTEGER: u8 = 16;
const HAS_ATTRIBUTES: u8 = 32;
/// It is the registry's: only where it is kept stands here.
const REGISTERED: u8 = 64;
const TO_ACCOUNT: u8 = 128;

/// Appends a recipient.
pub fn put_recipient(put: &mut Put, recipient: &Recipient) {
    if let Some(Registered { key, account, .. }) = &recipient.registered {
        let flags = REGISTERED | if account.is_some() { TO_ACCOUNT } else { 0 };
        put.u16(key.service.0).u8(flags).u64(key.serial).bytes(&recipient.subscription_id().0);
        if let Some(account) = account {
            put.bytes(&account.0);
        }
        return;
    }
    put_whole_recipient(put, recipient);
}

/// Appends all of a recipient, also if it is the registry's.
pub fn put_whole_recipient(put: &mut Put, recipient: &Recipient) {
    let mut flags = 0;
    if recipient.attributes.is_some() {
        flags |= HAS_ATTRIBUTES;
    }
    if recipient.encoding == Encoding::Aesgcm {
        flags |= AESGCM;
    }
    if recipient.key.is_some() {
        flags |= HAS_KEY;
    }
    if recipient.expiration.is_some() {
        flags |= HAS_EXPIRATION;
    }
    flags |= match recipient.reference {
        None => 0,
        Some(Reference::Text(_)) => REFERENCE_TEXT,
        Some(Reference::Integer(_)) => REFERENCE_INTEGER,
    };
    put.u16(recipient.service.0).u8(flags).u16(recipient.endpoint.origin_len()).short(recipient.endpoint.bytes());
    put.bytes(&recipient.p256dh).bytes(&recipient.auth);
    if let Some(KeyId(id)) = recipient.key {
        put.bytes(&id);
    }
    if let Some(UnixMillis(time)) = recipient.expiration {
        put.u64(time);
    }
    match &recipient.reference {
        None => {}
        Some(Reference::Text(text)) => {
            put.short(text.as_bytes());
        }
        Some(Reference::Integer(number)) => {
            put.bytes(&number.to_be_bytes());
        }
    }
    if let Some(attributes) = &recipient.attributes {
        put_attributes(put, attributes);
    }
}

/// Appends attributes.
pub fn put_attributes(put: &mut Put, attributes: &Attributes) {
    put.u16(u16::try_from(attributes.len()).expect("limits.rs bounds attributes"));
    for (name, value) in attributes {
        put.short(name.as_bytes()).short(value.as_bytes());
    }
}

/// The attributes at the reader's position.
pub fn take_attributes(take: &mut Take) -> Result<Attributes, Corrupt> {
    let mut attributes = Attributes::new();
    for _ in 0..take.u16()? {
        let name = take.str()?;
        attributes.insert(name, take.text()?.into());
    }
    Ok(attributes)
}

/// Appends a segment.
pub fn put_segment(put: &mut Put, segment: &Segment) {
    let Segment { tags_any, tags_all, tags_none, attributes } = segment;
    for names in [tags_any, tags_all, tags_none] {
        put_names(put, names);
    }
    put_attributes(put, attributes);
}

/// The segment at the reader's position.
pub fn take_segment(take: &mut Take) -> Result<Segment, Corrupt> {
    Ok(Segment {
        tags_any: take_names(take)?,
        tags_all: take_names(take)?,
        tags_none: take_names(take)?,
        attributes: take_attributes(take)?,
    })
}

/// Appends names: tags or scopes.
pub fn put_names(put: &mut Put, names: &[Name]) {
    put.u16(u16::try_from(names.len()).expect("limits.rs bounds names"));
    for name in names {
        put.short(name.as_bytes());
    }
}

/// The names at the reader's position.
pub fn take_names(take: &mut Take) -> Result<Vec<Name>, Corrupt> {
    let count = take.u16()?;
    (0..count).map(|_| take.str()).collect()
}

/// The recipient at the reader's position.
pub fn take_recipient(take: &mut Take) -> Result<Recipient, Corrupt> {
    let service = Service(take.u16()?);
    let flags = take.u8()?;
    if flags & REGISTERED != 0 {
        let key = SubscriptionKey { service, serial: take.u64()? };
        let id = SubscriptionId(take.array()?);
        let account = if flags & TO_ACCOUNT != 0 { Some(AccountHash(take.array()?)) } else { None };
        return Ok(Recipient::unread(Registered { key, id, account }));
    }
    let origin_len = take.u16()?;
    let endpoint = take.short()?;
    if usize::from(origin_len) > endpoint.len() || !endpoint.is_ascii() {
        return Err(Corrupt);
    }
    let p256dh = take.array()?;
    let auth = take.array()?;
    let key = if flags & HAS_KEY != 0 { Some(KeyId(take.array()?)) } else { None };
    let expiration = if flags & HAS_EXPIRATION != 0 { Some(UnixMillis(take.u64()?)) } else { None };
    let reference = if flags & REFERENCE_TEXT != 0 {
        Some(Reference::Text(take.text()?.to_owned()))
    } else if flags & REFERENCE_INTEGER != 0 {
        Some(Reference::Integer(i64::from_be_bytes(take.array()?)))
    } else {
        None
    };
    let attributes = if flags & HAS_ATTRIBUTES != 0 { Some(Arc::new(take_attributes(take)?)) } else { None };
    Ok(Recipient {
        service,
        endpoint: Endpoint::from_checked(endpoint, origin_len),
        p256dh,
        auth,
        encoding: if flags & AESGCM != 0 { Encoding::Aesgcm } else { Encoding::Aes128gcm },
        key,
        expiration,
        reference,
        attributes,
        registered: None,
    })
}

/// Skips the recipient at the reader's position.
pub fn skip_recipient(take: &mut Take) -> Result<(), Corrupt> {
    take.skip(2)?;
    let flags = take.u8()?;
    if flags & REGISTERED != 0 {
        return take.skip(8 + 12 + if flags & TO_ACCOUNT != 0 { 8 } else { 0 });
    }
    take.skip(2)?;
    let endpoint = usize::from(take.u16()?);
    take.skip(endpoint + 65 + 16)?;
    take.skip(if flags & HAS_KEY != 0 { 8 } else { 0 } + if flags & HAS_EXPIRATION != 0 { 8 } else { 0 })?;
    if flags & REFERENCE_TEXT != 0 {
        let len = usize::from(take.u16()?);
        take.skip(len)?;
    } else if flags & REFERENCE_INTEGER != 0 {
        take.skip(8)?;
    }
    if flags & HAS_ATTRIBUTES != 0 {
        take_attributes(take)?;
    }
    Ok(())
}

/// Appends what the recipients of a message share. The first 16 bytes are its id.
pub fn put_message(put: &mut Put, message: &Message) {
    put.u128(message.id.0);
    let notification = message.content_type == ContentType::Notification;
    let flags = [message.ttl_zero, notification, message.when_offline, message.template, message.receipt_at.is_some()];
    put.u8((0..).zip(flags).map(|(bit, set)| u8::from(set) << bit).sum());
    put.u8(message.urgency as u8).u64(message.at.0).u64(message.expires.0).short(message.app.as_bytes());
    put.maybe(message.topic.as_deref()).maybe(message.label.as_deref()).maybe(message.reference.as_deref());
    put.maybe(message.scope.as_deref()).u16(message.receipt_at.unwrap_or(0)).short(&message.body);
}

/// The message at the reader's position.
pub fn take_message(take: &mut Take) -> Result<Message, Corrupt> {
    let id = MessageId(take.u128()?);
    let flags = take.u8()?;
    let urgency = take_urgency(take)?;
    Ok(Message {
        id,
        urgency,
        at: UnixMillis(take.u64()?),
        expires: UnixMillis(take.u64()?),
        ttl_zero: flags & 1 != 0,
        content_type: if flags & 2 != 0 { ContentType::Notification } else { ContentType::Opaque },
        when_offline: flags & 4 != 0,
        template: flags & 8 != 0,
        app: take.str()?,
        topic: take.maybe()?,
        label: take.maybe()?,
        reference: take.maybe()?,
        scope: take.maybe()?,
        receipt_at: Some(take.u16()?).filter(|_| flags & 16 != 0),
        body: take.short()?,
    })
}

fn take_urgency(take: &mut Take) -> Result<Urgency, Corrupt> {
    Urgency::ALL.get(usize::from(take.u8()?)).copied().ok_or(Corrupt)
}

/// A row of singles under construction: groups of (message, its recipients in this lane).
pub struct WorkRow {
    put: Put,
    count: u16,
    earliest: UnixMillis,
}

/// Bytes before the first group: version and earliest deadline.
const WORK_HEADER: usize = 1 + 8;

impl Default for WorkRow {
    fn default() -> WorkRow {
        let mut put = Put::versioned();
        put.u64(u64::MAX);
        WorkRow { put, count: 0, earliest: UnixMillis::NEVER }
    }
}

impl WorkRow {
    /// Appends a group: `message` as of [`put_message`], `recipients` as of [`put_recipient`], `count` of them. Gives the
    /// index of the first.
    pub fn push(&mut self, message: &[u8], recipients: &[u8], count: u16, expires: UnixMillis) -> u16 {
        let first = self.count;
        let len = message.len() + 2 + recipients.len();
        self.put.u32(u32::try_from(len).expect("a line is bounded")).bytes(message).u16(count).bytes(recipients);
        self.count += count;
        self.earliest = self.earliest.min(expires);
        first
    }

    /// Recipients so far.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.put.0.len()
    }

    /// Whether nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The value.
    pub fn finish(mut self) -> Bytes {
        self.put.0[1..WORK_HEADER].copy_from_slice(&self.earliest.0.to_be_bytes());
        Bytes::from(self.put.0)
    }
}

/// The earliest deadline of a row of singles.
pub fn work_row_earliest(row: &[u8]) -> Result<UnixMillis, Corrupt> {
    if row.first() != Some(&VERSION) {
        return Err(Corrupt);
    }
    let field = row.get(1..WORK_HEADER).ok_or(Corrupt)?;
    Ok(UnixMillis(u64::from_be_bytes(field.try_into().expect("eight bytes"))))
}

/// When the first message of a row of singles was accepted: its id begins behind the group's length.
pub fn work_row_created(row: &[u8]) -> Result<UnixMillis, Corrupt> {
    let id = row.get(WORK_HEADER + 4..WORK_HEADER + 20).ok_or(Corrupt)?;
    Ok(MessageId(u128::from_be_bytes(id.try_into().expect("sixteen bytes"))).created())
}

/// Gives each wanted delivery of a row of singles to `found`; `wanted` holds ascending indexes. What is not wanted is
/// skipped, not decoded.
pub fn read_work_row(row: &Bytes, batch: BatchId, wanted: &[u16], mut found: impl FnMut(Box<Delivery>)) -> Result<(), Corrupt> {
    let mut take = Take::versioned(row.clone())?;
    take.skip(8)?;
    let mut wanted = wanted.iter().copied().peekable();
    let mut index = 0u16;
    while !take.at_end() && wanted.peek().is_some() {
        let len = usize::try_from(take.u32()?).map_err(|_| Corrupt)?;
        let mut group = Take::new(take.take(len)?);
        // The recipient count stands behind the message, so the message is decoded first; groups are small.
        let message = Arc::new(take_message(&mut group)?);
        let count = group.u16()?;
        for _ in 0..count {
            if wanted.next_if_eq(&index).is_some() {
                let recipient = take_recipient(&mut group)?;
                found(Box::new(first_attempt(DeliveryId { batch, index }, message.clone(), recipient)));
            } else {
                skip_recipient(&mut group)?;
            }
            index += 1;
        }
    }
    if wanted.peek().is_some() { Err(Corrupt) } else { Ok(()) }
}

/// Gives each wanted delivery of a chunk of a list to `found`; `wanted` holds ascending indexes.
pub fn read_chunk_row(
    row: &Bytes,
    batch: BatchId,
    message: &Arc<Message>,
    wanted: &[u16],
    mut found: impl FnMut(Box<Delivery>),
) -> Result<(), Corrupt> {
    let mut take = Take::versioned(row.clone())?;
    let mut index = 0u16;
    for &next in wanted {
        while index < next {
            skip_recipient(&mut take)?;
            index += 1;
        }
        let recipient = take_recipient(&mut take)?;
        found(Box::new(first_attempt(DeliveryId { batch, index }, message.clone(), recipient)));
        index += 1;
    }
    Ok(())
}

fn first_attempt(id: DeliveryId, message: Arc<Message>, recipient: Recipient) -> Delivery {
    Delivery {
        id,
        message,
        recipient,
        attempts: 0,
        tried_keys: 0,
        shrink: false,
        due: None,
        account: None,
        lost: None,
        unproven: false,
    }
}

/// A row of `due`: a copy of what the delivery needs. A list's delivery names its message, whose row has the body.
pub fn due_row(delivery: &Delivery) -> Vec<u8> {
    let mut put = Put::versioned();
    put.u8(delivery.attempts).u8(delivery.tried_keys).u8(u8::from(delivery.shrink));
    if let BatchId::Commit { .. } = delivery.id.batch {
        put_message(&mut put, &delivery.message);
    }
    put_recipient(&mut put, &delivery.recipient);
    put.0
}

/// The delivery of a row of `due`; `list` finds the message of a list's delivery (None: that list is over).
pub fn read_due_row(
    row: Bytes,
    id: DeliveryId,
    due: UnixMillis,
    list: impl FnOnce() -> Option<Arc<Message>>,
) -> Result<Option<Box<Delivery>>, Corrupt> {
    let mut take = Take::versioned(row)?;
    let (attempts, tried_keys, shrink) = (take.u8()?, take.u8()?, take.u8()? != 0);
    let message = match id.batch {
        BatchId::Commit { .. } => Arc::new(take_message(&mut take)?),
        BatchId::Chunk { .. } | BatchId::Stretch { .. } => match list() {
            Some(message) => message,
            None => return Ok(None),
        },
    };
    let recipient = take_recipient(&mut take)?;
    let delivery = Delivery {
        id,
        message,
        recipient,
        attempts,
        tried_keys,
        shrink,
        due: Some(due),
        account: None,
        lost: None,
        unproven: false,
    };
    Ok(Some(Box::new(delivery)))
}

/// Appends a lane.
pub fn put_lane(put: &mut Put, lane: Lane) {
    put.u16(lane.service.0).u8(lane.urgency as u8);
}

/// The lane at the reader's position.
pub fn take_lane(take: &mut Take) -> Result<Lane, Corrupt> {
    Ok(Lane { service: Service(take.u16()?), urgency: take_urgency(take)? })
}

/// A recipient of a single, as its head keeps it: where its outcome byte is, and what its events tell.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadRecipient {
    pub id: DeliveryId,
    pub subscription: SubscriptionId,
    /// The account the message is addressed to, if it is.
    pub account: Option<AccountHash>,
    pub reference: Option<Reference>,
}

/// What a status needs of a single: one entry of a `head` row.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    pub id: MessageId,
    pub app: Arc<str>,
    pub label: Option<Arc<str>>,
    pub reference: Option<Arc<str>>,
    pub at: UnixMillis,
    pub expires: UnixMillis,
    pub rejected: u32,
    pub recipients: Vec<HeadRecipient>,
}

/// Appends a head.
pub fn put_head(put: &mut Put, head: &Head) {
    put.u128(head.id.0).short(head.app.as_bytes()).maybe(head.label.as_deref()).maybe(head.reference.as_deref());
    put.u64(head.at.0).u64(head.expires.0).u32(head.rejected);
    put.u8(u8::try_from(head.recipients.len()).expect("a single has at most 64 recipients"));
    for recipient in &head.recipients {
        let BatchId::Commit { lane, piece, .. } = recipient.id.batch else { unreachable!("a head is of singles") };
        put_lane(put, lane);
        put.u16(piece).u16(recipient.id.index).bytes(&recipient.subscription.0);
        match (&recipient.reference, &recipient.account) {
            (None, None) => put.u8(0),
            (Some(Reference::Text(text)), _) => put.u8(1).short(text.as_bytes()),
            (Some(Reference::Integer(number)), _) => put.u8(2).bytes(&number.to_be_bytes()),
            // Only raw subscriptions have a reference.
            (None, Some(account)) => put.u8(3).bytes(&account.0),
        };
    }
}

/// The head at the reader's position, of `commit`.
pub fn take_head(take: &mut Take, commit: u64) -> Result<Head, Corrupt> {
    let mut head = Head {
        id: MessageId(take.u128()?),
        app: take.str()?,
        label: take.maybe()?,
        reference: take.maybe()?,
        at: UnixMillis(take.u64()?),
        expires: UnixMillis(take.u64()?),
        rejected: take.u32()?,
        recipients: Vec::new(),
    };
    for _ in 0..take.u8()? {
        let lane = take_lane(take)?;
        let batch = BatchId::Commit { commit, lane, piece: take.u16()? };
        head.recipients.push(HeadRecipient {
            id: DeliveryId { batch, index: take.u16()? },
            subscription: SubscriptionId(take.array()?),
            account: None,
            reference: None,
        });
        let last = head.recipients.last_mut().expect("one was pushed");
        match take.u8()? {
            0 => {}
            1 => last.reference = Some(Reference::Text(take.text()?.to_owned())),
            2 => last.reference = Some(Reference::Integer(i64::from_be_bytes(take.array()?))),
            3 => last.account = Some(AccountHash(take.array()?)),
            _ => return Err(Corrupt),
        }
    }
    Ok(head)
}

/// Counters of a message, or of a line of `stats`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub recipients: u64,
    pub rejected: u64,
    /// By `Ending as usize - 1`.
    pub ended: [u64; 6],
    pub retries: u64,
}

impl Counts {
    /// Recipients that have not ended.
    pub fn pending(&self) -> u64 {
        self.recipients - self.ended.iter().sum::<u64>()
    }

    /// Adds another's counters.
    pub fn add(&mut self, other: &Counts) {
        self.recipients += other.recipients;
        self.rejected += other.rejected;
        self.retries += other.retries;
        for (mine, theirs) in self.ended.iter_mut().zip(other.ended) {
            *mine += theirs;
        }
    }
}

/// Appends counters.
pub fn put_counts(put: &mut Put, counts: &Counts) {
    put.u64(counts.recipients).u64(counts.rejected).u64(counts.retries);
    for ended in counts.ended {
        put.u64(ended);
    }
}

/// The counters at the reader's position.
pub fn take_counts(take: &mut Take) -> Result<Counts, Corrupt> {
    let mut counts = Counts { recipients: take.u64()?, rejected: take.u64()?, retries: take.u64()?, ended: [0; 6] };
    for ended in &mut counts.ended {
        *ended = take.u64()?;
    }
    Ok(counts)
}

#[cfg(test)]
pub mod samples {
    //! Values for the tests of the store.

    use super::*;

    /// A recipient whose endpoint ends in `n`.
    pub fn recipient(n: u32) -> Recipient {
        let origin = "https://push.example.net";
        Recipient {
            service: Service(16),
            endpoint: Endpoint::from_checked(Bytes::from(format!("{origin}/p/{n}")), u16::try_from(origin.len()).expect("short")),
            p256dh: [4; 65],
            auth: [7; 16],
            encoding: Encoding::Aes128gcm,
            key: None,
            expiration: None,
            reference: Some(Reference::Integer(i64::from(n))),
            attributes: None,
            registered: None,
        }
    }

    /// A message with a body that names `n`.
    pub fn message(n: u32, expires: u64) -> Message {
        Message {
            id: MessageId::new(UnixMillis(1_000), u64::from(n), 0, 1),
            app: Arc::from("default"),
            urgency: Urgency::Normal,
            at: UnixMillis(0),
            expires: UnixMillis(expires),
            ttl_zero: false,
            topic: None,
            label: Some(Arc::from("news")),
            reference: None,
            scope: None,
            when_offline: false,
            content_type: ContentType::Opaque,
            body: Bytes::from(format!("body {n}")),
            template: false,
            receipt_at: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane { service: Service(16), urgency: Urgency::Normal }
    }

    #[test]
    fn a_work_row_gives_back_what_was_pushed() {
        let mut row = WorkRow::default();
        let mut message = Put::default();
        put_message(&mut message, &samples::message(1, 50));
        let mut recipients = Put::default();
        for n in 0..3 {
            put_recipient(&mut recipients, &samples::recipient(n));
        }
        assert_eq!(row.push(&message.0, &recipients.0, 3, UnixMillis(50)), 0);
        assert_eq!(row.push(&message.0, &recipients.0, 3, UnixMillis(40)), 3);
        let bytes = row.finish();
        assert_eq!(work_row_earliest(&bytes), Ok(UnixMillis(40)));
        let batch = BatchId::Commit { commit: 1, lane: lane(), piece: 0 };
        let mut found = Vec::new();
        read_work_row(&bytes, batch, &[1, 2, 5], |delivery| found.push(delivery)).unwrap();
        assert_eq!(found.iter().map(|d| d.id.index).collect::<Vec<_>>(), [1, 2, 5]);
        assert_eq!(found[2].recipient, samples::recipient(2));
        assert_eq!(*found[0].message, samples::message(1, 50));
        assert_eq!(read_work_row(&bytes, batch, &[6], |_| ()), Err(Corrupt));
        for cut in 0..bytes.len() {
            let _no_panic = read_work_row(&bytes.slice(..cut), batch, &[0, 5], |_| ());
        }
    }

    #[test]
    fn every_field_of_a_recipient_survives() {
        let mut odd = samples::recipient(9);
        odd.encoding = Encoding::Aesgcm;
        odd.key = Some(KeyId([3; 8]));
        odd.expiration = Some(UnixMillis(77));
        odd.reference = Some(Reference::Text("row 9".into()));
        let mut put = Put::default();
        put_recipient(&mut put, &odd);
        put_recipient(&mut put, &samples::recipient(1));
        let bytes = Bytes::from(put.0);
        let mut take = Take::new(bytes.clone());
        assert_eq!(take_recipient(&mut take).unwrap(), odd);
        let mut take = Take::new(bytes);
        skip_recipient(&mut take).unwrap();
        assert_eq!(take_recipient(&mut take).unwrap(), samples::recipient(1));
        assert!(take.at_end());
    }

    #[test]
    fn a_newer_version_is_refused() {
        let mut row = WorkRow::default().finish().to_vec();
        row[0] = VERSION + 1;
        assert_eq!(work_row_earliest(&row), Err(Corrupt));
    }
}
