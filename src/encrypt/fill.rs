//! The plaintexts of a slice: for most messages their body, which is not touched; where it differs by recipient, that recipient's
//! own, filled in here.
//!
//! A body is compiled once and kept for the messages that a worker met last, because a list's recipients come slice by slice,
//! and other messages between them.

use std::collections::VecDeque;
use std::ops::Range;

use crate::ids::{Ids, VisibleId};
use crate::message::{Delivery, Message, MessageId};
use crate::receipt::Receipts;
use crate::template::Form;

/// Messages whose bodies are kept compiled, a worker: a few times what lanes take turns.
const FORMS_MAX: usize = 16;

/// What is worked out once for all recipients of a message.
struct Compiled {
    form: Form,
    /// What its receipts name it by.
    shown: VisibleId,
}

/// What a worker fills bodies with.
#[derive(Default)]
pub struct Filler {
    forms: VecDeque<(MessageId, Compiled)>,
    /// The filled bodies of this slice, one behind the other.
    text: Vec<u8>,
    /// One for each delivery of this slice; None: its message's body as it is.
    places: Vec<Option<Range<usize>>>,
}

impl Filler {
    /// Makes the plaintexts of a slice, in place of the last slice's.
    pub fn fill<'a>(&mut self, slice: impl Iterator<Item = &'a Delivery>, receipts: &Receipts, ids: &Ids) {
        self.text.clear();
        self.places.clear();
        for delivery in slice {
            let message = &delivery.message;
            let differs = message.template || message.receipt_at.is_some();
            let place = differs.then(|| self.fill_one(delivery, receipts, ids));
            self.places.push(place);
        }
    }

    /// The plaintext of the slice's n-th delivery, whose message this is.
    pub fn payload<'a>(&'a self, n: usize, message: &'a Message) -> &'a [u8] {
        match self.places.get(n) {
            Some(Some(place)) => &self.text[place.clone()],
            _ => &message.body,
        }
    }

    fn fill_one(&mut self, delivery: &Delivery, receipts: &Receipts, ids: &Ids) -> Range<usize> {
        let (message, recipient) = (&delivery.message, &delivery.recipient);
        let start = self.text.len();
        let Compiled { form, shown } = compiled(&mut self.forms, message, ids);
        let receipt = message.receipt_at.map(|_| receipts.issue(*shown, recipient.subscription_id()));
        form.fill(recipient.attributes.as_deref(), receipt.as_ref(), &mut self.text);
        start..self.text.len()
    }
}

/// The message's form, compiled if it is not among the last ones; the one that came first makes room.
fn compiled<'a>(forms: &'a mut VecDeque<(MessageId, Compiled)>, message: &Message, ids: &Ids) -> &'a Compiled {
    let known = forms.iter().rposition(|(id, _)| *id == message.id);
    let index = known.unwrap_or_else(|| {
        if forms.len() == FORMS_MAX {
            forms.pop_front();
        }
        let form = Form::new(&message.body, message.template, message.receipt_at);
        forms.push_back((message.id, Compiled { form, shown: ids.show(message.id) }));
        forms.len() - 1
    });
    &forms[index].1
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use bytes::Bytes;

    use super::*;
    use crate::ids::Since;
    use crate::limits::RECEIPT_CHARS;
    use crate::message::{
        BatchId, ContentType, DeliveryId, Encoding, Endpoint, Lane, Recipient, Registered, Service, SubscriptionId,
        SubscriptionKey, UnixMillis, Urgency,
    };

    fn message(id: u128, body: &str, template: bool, receipt_at: Option<u16>) -> Arc<Message> {
        Arc::new(Message {
            id: MessageId(id),
            app: "default".into(),
            urgency: Urgency::Normal,
            at: UnixMillis(0),
            expires: UnixMillis::NEVER,
            ttl_zero: false,
            topic: None,
            label: None,
            reference: None,
            scope: None,
            when_offline: false,
            content_type: ContentType::Opaque,
            body: Bytes::copy_from_slice(body.as_bytes()),
            template,
            receipt_at,
        })
    }

    fn delivery(message: &Arc<Message>, name: &str) -> Delivery {
        let endpoint = format!("https://push.example/{name}");
        let lane = Lane { service: Service::OTHER, urgency: Urgency::Normal };
        Delivery {
            id: DeliveryId { batch: BatchId::Commit { commit: 1, lane, piece: 0 }, index: 0 },
            message: message.clone(),
            recipient: Recipient {
                service: Service::OTHER,
                endpoint: Endpoint::from_checked(endpoint.into_bytes().into(), 20),
                p256dh: [4; 65],
                auth: [0; 16],
                encoding: Encoding::Aes128gcm,
                key: None,
                expiration: None,
                reference: None,
                attributes: Some(Arc::new([("name".into(), format!("\"{name}\"").into())].into())),
                registered: None,
            },
            attempts: 0,
            tried_keys: 0,
            shrink: false,
            due: None,
            account: None,
            lost: None,
            unproven: false,
        }
    }

    #[test]
    fn each_gets_its_own() {
        let (receipts, ids) = (Receipts::new(&[7; 32]), Ids::new(&[7; 32], Since::default()));
        let zeros = "0".repeat(RECEIPT_CHARS);
        let plain = message(1, r#"{"a":"{{name}}"}"#, false, None);
        let template = message(2, r#"{"a":"{{name}}"}"#, true, None);
        let with_receipt = message(3, &format!(r#"{{"receipt":"{zeros}"}}"#), false, Some(12));
        let mut slice = [
            delivery(&plain, "anna"),
            delivery(&template, "anna"),
            delivery(&with_receipt, "anna"),
            delivery(&template, "bert"),
            delivery(&plain, "bert"),
            delivery(&with_receipt, "bert"),
        ];
        let registered = Registered {
            key: SubscriptionKey { service: Service::OTHER, serial: 1 },
            id: SubscriptionId([5; 12]),
            account: None,
        };
        slice[5].recipient.registered = Some(registered);
        let mut filler = Filler::default();
        for _ in 0..2 {
            filler.fill(slice.iter(), &receipts, &ids);
            let text = |n: usize| std::str::from_utf8(filler.payload(n, &slice[n].message)).expect("UTF-8");
            assert_eq!((text(0), text(4)), (r#"{"a":"{{name}}"}"#, r#"{"a":"{{name}}"}"#));
            assert_eq!((text(1), text(3)), (r#"{"a":"anna"}"#, r#"{"a":"bert"}"#));
            // The body that needs nothing is not even copied.
            assert_eq!(text(0).as_ptr(), plain.body.as_ptr());
            let opened = |n: usize| {
                let receipt = URL_SAFE_NO_PAD.decode(&text(n)[12..12 + RECEIPT_CHARS]).expect("base64url");
                receipts.open(&receipt.try_into().expect("its length"))
            };
            assert_eq!(opened(2), Some((ids.show(MessageId(3)), SubscriptionId::of("https://push.example/anna"))));
            assert_eq!(opened(5), Some((ids.show(MessageId(3)), SubscriptionId([5; 12]))));
            assert_eq!(filler.forms.len(), 2);
        }
    }

    #[test]
    fn forms_are_bounded() {
        let (receipts, ids) = (Receipts::new(&[7; 32]), Ids::new(&[7; 32], Since::default()));
        let mut filler = Filler::default();
        for n in 0..100 {
            let message = message(n, &format!(r#"{{"a":"{{{{name}}}} {n}"}}"#), true, None);
            let slice = [delivery(&message, "anna"), delivery(&message, "bert")];
            filler.fill(slice.iter(), &receipts, &ids);
            assert_eq!(filler.payload(1, &message), format!(r#"{{"a":"bert {n}"}}"#).as_bytes());
        }
        assert_eq!(filler.forms.len(), FORMS_MAX);
    }
}
