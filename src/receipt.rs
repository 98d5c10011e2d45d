//! Receipts (docs/design.md 8.4): the token that a recipient's service worker hands back, through the application, as `feedback`.
//!
//! Promises. A receipt names the message and the subscription it was issued for, and only this store can issue one: it ends in a
//! keyed MAC, checked in constant time. It holds no secret: both ids are those that the application sees, and tell whoever reads
//! them no more than they tell the application. Issuing and opening need no store: nothing is kept for a receipt until it comes back.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::ids::VisibleId;
use crate::limits::{RECEIPT_BYTES, RECEIPT_CHARS};
use crate::message::SubscriptionId;
use crate::protocol::request::Receipt;

/// Of the MAC: RFC 2104 section 5 lets it be cut to half, and 128 bits cannot be guessed through a socket.
const MAC_BYTES: usize = 16;
/// Where the MAC starts.
const IDS_BYTES: usize = RECEIPT_BYTES - MAC_BYTES;
/// Keeps this MAC apart from all others made with the same secret.
const DOMAIN: &[u8] = b"receipt\0";

/// Issues and opens the receipts of one store.
pub struct Receipts {
    /// With the key taken in already: that is half of the work.
    keyed: Hmac<Sha256>,
}

impl Receipts {
    /// Receipts that only who knows the secret can issue.
    pub fn new(secret: &[u8; 32]) -> Receipts {
        let mut keyed = Hmac::new_from_slice(secret).expect("HMAC takes keys of any length");
        keyed.update(DOMAIN);
        Receipts { keyed }
    }

    /// The receipt of this recipient of the message, in base64url.
    pub fn issue(&self, message: VisibleId, subscription: SubscriptionId) -> [u8; RECEIPT_CHARS] {
        let mut receipt: Receipt = [0; RECEIPT_BYTES];
        receipt[..16].copy_from_slice(&message.to_bytes());
        receipt[16..IDS_BYTES].copy_from_slice(&subscription.0);
        let mac = self.keyed.clone().chain_update(&receipt[..IDS_BYTES]).finalize().into_bytes();
        receipt[IDS_BYTES..].copy_from_slice(&mac[..MAC_BYTES]);
        let mut text = [0; RECEIPT_CHARS];
        let written = URL_SAFE_NO_PAD.encode_slice(receipt, &mut text);
        debug_assert_eq!(written, Ok(RECEIPT_CHARS), "limits asserts the length");
        text
    }

    /// What the receipt was issued for, if this store issued it. Takes as long for a wrong one as for a right one.
    pub fn open(&self, receipt: &Receipt) -> Option<(VisibleId, SubscriptionId)> {
        let (ids, mac) = receipt.split_at(IDS_BYTES);
        self.keyed.clone().chain_update(ids).verify_truncated_left(mac).ok()?;
        let (message, subscription) = ids.split_first_chunk()?;
        Some((VisibleId::from_bytes(*message), SubscriptionId(subscription.try_into().ok()?)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoded(text: &[u8; RECEIPT_CHARS]) -> Receipt {
        URL_SAFE_NO_PAD.decode(text).expect("base64url").try_into().expect("its length")
    }

    /// Kept by pages and tested by others: receipts already issued must open after an update.
    #[test]
    fn the_form_stays_as_it_is() {
        let text = Receipts::new(&[7; 32])
            .issue(VisibleId::from_bytes(std::array::from_fn(|n| n as u8 + 1)), SubscriptionId([0xff; 12]));
        let mut mac = Hmac::<Sha256>::new_from_slice(&[7; 32]).expect("a key");
        mac.update(b"receipt\0\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10");
        mac.update(&[0xff; 12]);
        let mut bytes: Vec<u8> = (1..=16).collect();
        bytes.extend([0xff; 12]);
        bytes.extend(&mac.finalize().into_bytes()[..16]);
        assert_eq!(std::str::from_utf8(&text), Ok(URL_SAFE_NO_PAD.encode(bytes).as_str()));
        assert!(text.starts_with(b"AQIDBAUGBwgJCgsMDQ4PEP______________"));
    }

    proptest! {
        #[test]
        fn what_was_issued_opens(secret in any::<[u8; 32]>(), message in any::<[u8; 16]>(), subscription in any::<[u8; 12]>()) {
            let receipts = Receipts::new(&secret);
            let receipt = decoded(&receipts.issue(VisibleId::from_bytes(message), SubscriptionId(subscription)));
            prop_assert_eq!(receipts.open(&receipt), Some((VisibleId::from_bytes(message), SubscriptionId(subscription))));
        }

        #[test]
        fn every_flipped_bit_is_refused(secret in any::<[u8; 32]>(), message in any::<[u8; 16]>(), subscription in any::<[u8; 12]>()) {
            let receipts = Receipts::new(&secret);
            let receipt = decoded(&receipts.issue(VisibleId::from_bytes(message), SubscriptionId(subscription)));
            for bit in 0..RECEIPT_BYTES * 8 {
                let mut flipped = receipt;
                flipped[bit / 8] ^= 1 << (bit % 8);
                prop_assert_eq!(receipts.open(&flipped), None, "bit {}", bit);
            }
        }

        #[test]
        fn another_store_refuses_it(
            one in any::<[u8; 32]>(), other in any::<[u8; 32]>(), message in any::<[u8; 16]>(), subscription in any::<[u8; 12]>(),
        ) {
            prop_assume!(one != other);
            let receipt = decoded(&Receipts::new(&one).issue(VisibleId::from_bytes(message), SubscriptionId(subscription)));
            prop_assert_eq!(Receipts::new(&other).open(&receipt), None);
        }

        #[test]
        fn any_bytes_are_survived(secret in any::<[u8; 32]>(), start in any::<[u8; 28]>(), end in any::<[u8; 16]>()) {
            let mut receipt: Receipt = [0; RECEIPT_BYTES];
            receipt[..28].copy_from_slice(&start);
            receipt[28..].copy_from_slice(&end);
            prop_assert_eq!(Receipts::new(&secret).open(&receipt), None);
        }
    }
}
