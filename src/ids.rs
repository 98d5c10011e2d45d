//! What clients see of message ids, and of positions in logs and lists: opaque.
//!
//! Inside, both count what all apps do together, so whoever got two of them could tell how much the others sent in between. Outside,
//! an id is still a ULID with the time of acceptance, but its other 80 bits are permuted with the store's key, and a position is one
//! enciphered block.
//!
//! Promises. Every id has one visible form and every visible form is that of one id, so nothing is kept for them and reading cannot
//! fail. The visible form of an id never changes, also not over restarts and restores. Ids and cursors that version 0.1 gave out
//! plain are read for as long as what they name is there ([`Since`]); of what came later no plain form is read, because trying them
//! one after the other would tell the numbers too.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::cipher::{AES_128, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::message::{MessageId, Service, SubscriptionKey};

/// Four rounds with a good round function are a permutation that cannot be told from a random one, even by who chooses forms to
/// read, up to about 2^20 ids of one millisecond (Luby and Rackoff; Patarin 2004).
const ROUNDS: u8 = 4;
/// Bits of half an id's permuted part.
const HALF_BITS: u32 = 40;
const HALF: u64 = (1 << HALF_BITS) - 1;
/// Characters of a position: 16 bytes in base64url.
pub const POSITION_CHARS: usize = 22;

/// The message id as clients see it. Only [`Ids`] knows which message it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VisibleId(u128);

impl VisibleId {
    /// The ULID, big-endian.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// What [`VisibleId::to_bytes`] gave. Any bytes are the visible form of some id.
    pub fn from_bytes(bytes: [u8; 16]) -> VisibleId {
        VisibleId(u128::from_be_bytes(bytes))
    }

    /// The ULID, written into `text`.
    pub fn text(self, text: &mut [u8; ulid::ULID_LEN]) -> &str {
        ulid::Ulid(self.0).array_to_str(text)
    }
}

impl fmt::Display for VisibleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; ulid::ULID_LEN]))
    }
}

impl FromStr for VisibleId {
    type Err = NotAUlid;

    fn from_str(text: &str) -> Result<Self, NotAUlid> {
        // 26 characters of 5 bits hold 130: a first one above 7 would be cut silently, and two texts would name one message.
        if !matches!(text.as_bytes().first(), Some(b'0'..=b'7')) {
            return Err(NotAUlid);
        }
        ulid::Ulid::from_string(text).map(|id| VisibleId(id.0)).map_err(|_| NotAUlid)
    }
}

/// The text is no ULID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAUlid;

/// A place to go on from, in a log or a list. `app` is the number of an app of the socket that was told the position: on a socket
/// without that app it is good for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Behind the event of this number.
    Event { app: u16, number: u64 },
    /// Before the list or campaign of this commit and place.
    Message { app: u16, commit: u64, place: u16 },
    /// Behind this subscription of this app.
    Subscription { app: u16, key: SubscriptionKey },
    /// Within an app.
    App(u16),
}

/// From where on ids and event cursors are opaque. What is older was given out plain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// The first such commit.
    pub commit: u64,
    /// The first such event's number.
    pub event: u64,
}

/// Shows and reads the ids and positions of one store.
pub struct Ids {
    round: EncryptingKey,
    seal: EncryptingKey,
    open: DecryptingKey,
    since: Since,
}

impl Ids {
    /// Those that only who knows the key can read.
    pub fn new(key: &[u8; 32], since: Since) -> Ids {
        const WHOLE: &str = "sixteen bytes are a key of AES-128";
        let (ids, positions) = key.split_at(16);
        let unbound = |key| UnboundCipherKey::new(&AES_128, key).expect(WHOLE);
        // The mode only means that each call is one block of the cipher: every input here is a single block.
        Ids {
            round: EncryptingKey::ecb(unbound(ids)).expect(WHOLE),
            seal: EncryptingKey::ecb(unbound(positions)).expect(WHOLE),
            open: DecryptingKey::ecb(unbound(positions)).expect(WHOLE),
            since,
        }
    }

    /// The id as clients see it.
    pub fn show(&self, id: MessageId) -> VisibleId {
        if self.is_plain(id.0) {
            return VisibleId(id.0);
        }
        // What would look like a plain one is permuted again. Permuting leads in circles, so this comes back to an id that is not
        // plain, at the latest to this one.
        let mut shown = self.permute(id.0);
        while self.is_plain(shown) {
            shown = self.permute(shown);
        }
        VisibleId(shown)
    }

    /// The id that is shown so. There need not be such a message.
    pub fn read(&self, id: VisibleId) -> MessageId {
        if self.is_plain(id.0) {
            return MessageId(id.0);
        }
        let mut read = self.permute_back(id.0);
        while self.is_plain(read) {
            read = self.permute_back(read);
        }
        MessageId(read)
    }

    /// The position as clients see it, [`POSITION_CHARS`] characters of base64url.
    pub fn seal(&self, position: Position) -> String {
        let mut block = position.block();
        self.seal.encrypt(&mut block).expect("a block is encrypted");
        URL_SAFE_NO_PAD.encode(block)
    }

    /// The position that this store has sealed so; None: it is none.
    pub fn open(&self, text: &str) -> Option<Position> {
        let mut block = [0; 16];
        if text.len() != POSITION_CHARS || URL_SAFE_NO_PAD.decode_slice(text, &mut block) != Ok(16) {
            return None;
        }
        self.open.decrypt(&mut block, DecryptionContext::None).expect("a block is decrypted");
        Position::of_block(&block)
    }

    /// The number of an event from its position, if that was told to who has this app, or from its plain number if it was given out so.
    pub fn event_number(&self, text: &str, has: impl Fn(u16) -> bool) -> Option<u64> {
        if text.len() == POSITION_CHARS {
            return match self.open(text)? {
                Position::Event { app, number } if has(app) => Some(number),
                _ => None,
            };
        }
        let digits = Some(text).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok().filter(|number| *number < self.since.event)
    }

    fn is_plain(&self, id: u128) -> bool {
        MessageId(id).commit() < self.since.commit
    }

    /// A Feistel network over the low 80 bits; the time stays, and with each time the permutation is another one.
    fn permute(&self, id: u128) -> u128 {
        let [time, mut left, mut right] = split(id);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ self.round(round, time, right));
        }
        join([time, left, right])
    }

    fn permute_back(&self, id: u128) -> u128 {
        let [time, mut left, mut right] = split(id);
        for round in (0..ROUNDS).rev() {
            (left, right) = (right ^ self.round(round, time, left), left);
        }
        join([time, left, right])
    }

    fn round(&self, round: u8, time: u64, half: u64) -> u64 {
        let mut block = (u128::from(round) << 120 | u128::from(time) << 64 | u128::from(half)).to_be_bytes();
        self.round.encrypt(&mut block).expect("a block is encrypted");
        u128::from_be_bytes(block) as u64 & HALF
    }
}

fn split(id: u128) -> [u64; 3] {
    [(id >> (2 * HALF_BITS)) as u64, (id >> HALF_BITS) as u64 & HALF, id as u64 & HALF]
}

fn join([time, left, right]: [u64; 3]) -> u128 {
    u128::from(time) << (2 * HALF_BITS) | u128::from(left) << HALF_BITS | u128::from(right)
}

impl Position {
    /// Kind, two small numbers, a large one, and zeros: a text that was made up does not open, because they would have to come out.
    fn block(self) -> [u8; 16] {
        let (kind, first, second, number) = match self {
            Position::Event { app, number } => (1, app, 0, number),
            Position::Message { app, commit, place } => (2, place, app, commit),
            Position::Subscription { app, key } => (3, app, key.service.0, key.serial),
            Position::App(app) => (4, app, 0, 0),
        };
        let mut block = [0; 16];
        block[0] = kind;
        block[1..3].copy_from_slice(&u16::to_be_bytes(first));
        block[3..5].copy_from_slice(&u16::to_be_bytes(second));
        block[5..13].copy_from_slice(&u64::to_be_bytes(number));
        block
    }

    fn of_block(block: &[u8; 16]) -> Option<Position> {
        let [kind, a, b, c, d, number @ .., 0, 0, 0] = *block else { return None };
        let (first, second, number) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), u64::from_be_bytes(number));
        let position = match kind {
            1 => Position::Event { app: first, number },
            2 => Position::Message { app: second, commit: number, place: first },
            3 => Position::Subscription { app: first, key: SubscriptionKey { service: Service(second), serial: number } },
            4 => Position::App(first),
            _ => return None,
        };
        (position.block() == *block).then_some(position)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::message::UnixMillis;

    fn ids(commit: u64) -> Ids {
        Ids::new(&[7; 32], Since { commit, event: 0 })
    }

    fn id(time: u64, commit: u64, place: u16, random: u8) -> MessageId {
        MessageId::new(UnixMillis(time), commit, place, random)
    }

    /// Applications keep ids, receipts hold them, and events are stored with them: no later version may show another form.
    #[test]
    fn the_forms_stay_as_they_are() {
        let ids = Ids::new(&[7; 32], Since::default());
        assert_eq!(ids.show(id(1_795_343_400_123, 1, 0, 0)).to_string(), "01M81CWF5VPKRBQGDZG6J4QP95");
        assert_eq!(ids.seal(Position::Event { app: 0, number: 1 }), "uNkJC_iLxv5iSXGIIYdIzw");
        let key = SubscriptionKey { service: Service(3), serial: 4 };
        assert_eq!(ids.seal(Position::Subscription { app: 2, key }), "nwXo-2vHXtJ6mrGzZ1EPqw");
    }

    #[test]
    fn a_ulid_is_read_in_any_case_and_nothing_else_is() {
        let text = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        let read: VisibleId = text.parse().expect("a ULID");
        assert_eq!(text.to_lowercase().parse(), Ok(read));
        assert_eq!(read.to_string(), text);
        assert_eq!(VisibleId::from_bytes(read.to_bytes()), read);
        for text in [
            "",
            "01ARZ3NDEKTSV4RRFFQ69G5FA",
            "01ARZ3NDEKTSV4RRFFQ69G5FAVV",
            "81ARZ3NDEKTSV4RRFFQ69G5FAV",
            "01ARZ3NDEKTSV4RRFFQ69G5FAU",
        ] {
            assert_eq!(text.parse::<VisibleId>(), Err(NotAUlid), "{text}");
        }
    }

    /// The pipe of one commit, and one commit after the other in the same millisecond: what an app would compare.
    #[test]
    fn neighbours_have_nothing_in_common_but_their_time() {
        let ids = ids(0);
        let neighbours: Vec<u128> = (0..2_000).map(|n| ids.show(id(1_000, 5 + n / 4, n as u16 % 4, 0)).0).collect();
        let mut bits = [0_u32; 80];
        for pair in neighbours.windows(2) {
            assert_eq!((pair[0] >> 80, pair[1] >> 80), (1_000, 1_000));
            for (bit, count) in bits.iter_mut().enumerate() {
                *count += ((pair[0] ^ pair[1]) >> bit & 1) as u32;
            }
        }
        // Of 1,999 throws of a coin fewer than 800 or more than 1,200 heads come once in 10^18.
        assert!(bits.iter().all(|count| (800..1_200).contains(count)), "{bits:?}");
        let rising = neighbours.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((800..1_200).contains(&rising), "{rising} of 1,999 are greater than the one before");
    }

    #[test]
    fn each_millisecond_and_each_store_has_its_own_permutation() {
        let ids = ids(0);
        let low = |shown: VisibleId| shown.0 & ((1 << 80) - 1);
        assert_ne!(low(ids.show(id(1_000, 5, 0, 0))), low(ids.show(id(1_001, 5, 0, 0))));
        let other = Ids::new(&[8; 32], Since::default());
        assert_ne!(ids.show(id(1_000, 5, 0, 0)), other.show(id(1_000, 5, 0, 0)));
        let event = Position::Event { app: 1, number: 5 };
        assert_ne!(ids.seal(event), other.seal(event));
        assert_eq!(other.open(&ids.seal(event)), None);
    }

    #[test]
    fn what_was_given_out_plain_stays_plain_and_nothing_else_becomes_it() {
        // Half of all commits are plain, so that permuting once is not enough for half of the others.
        let ids = ids(1 << 55);
        let (mut seen, mut again) = (HashSet::new(), 0);
        for n in 0..2_000 {
            let plain = id(n, n, n as u16, n as u8);
            assert_eq!(ids.show(plain).0, plain.0);
            assert_eq!(ids.read(VisibleId(plain.0)), plain);
            let later = id(n, (1 << 55) + n, n as u16, n as u8);
            let shown = ids.show(later);
            assert!(MessageId(shown.0).commit() >= 1 << 55, "{n}: it would be read as a plain one");
            assert_eq!(ids.read(shown), later);
            assert_ne!(ids.read(VisibleId(later.0)), later, "{n}: its plain form is not read");
            again += u64::from(ids.permute(later.0) != shown.0);
            assert!(seen.insert(shown.0));
        }
        assert!((800..1_200).contains(&again), "{again} of 2,000 were permuted again");
    }

    #[test]
    fn plain_event_numbers_are_read_up_to_where_they_were_given_out() {
        let ids = Ids::new(&[7; 32], Since { commit: 0, event: 10 });
        assert_eq!(ids.event_number("0", |_| false), Some(0));
        assert_eq!(ids.event_number("9", |_| false), Some(9));
        for text in ["10", "11", "", "+1", "-1", "9 ", "99999999999999999999", "a", &"0".repeat(POSITION_CHARS)] {
            assert_eq!(ids.event_number(text, |_| true), None, "{text}");
        }
        for number in [0, 9, 10, u64::MAX] {
            let sealed = ids.seal(Position::Event { app: 3, number });
            assert_eq!(ids.event_number(&sealed, |app| app == 3), Some(number));
            assert_eq!(ids.event_number(&sealed, |app| app != 3), None, "it was told to another app");
        }
        let message = ids.seal(Position::Message { app: 3, commit: 1, place: 0 });
        assert_eq!(ids.event_number(&message, |_| true), None, "it is no event's");
    }

    fn positions() -> impl Strategy<Value = Position> {
        let key =
            (any::<u16>(), any::<u64>()).prop_map(|(service, serial)| SubscriptionKey { service: Service(service), serial });
        prop_oneof![
            (any::<u16>(), any::<u64>()).prop_map(|(app, number)| Position::Event { app, number }),
            (any::<u16>(), any::<u64>(), any::<u16>()).prop_map(|(app, commit, place)| Position::Message { app, commit, place }),
            (any::<u16>(), key).prop_map(|(app, key)| Position::Subscription { app, key }),
            any::<u16>().prop_map(Position::App),
        ]
    }

    proptest! {
        #[test]
        fn every_id_has_one_visible_form(key in any::<[u8; 32]>(), commit in 0u64..1 << 55, one in any::<u128>(), other in any::<u128>()) {
            let ids = Ids::new(&key, Since { commit, event: 0 });
            for id in [one, other] {
                prop_assert_eq!(ids.read(ids.show(MessageId(id))), MessageId(id));
                prop_assert_eq!(ids.show(ids.read(VisibleId(id))), VisibleId(id));
                prop_assert_eq!(ids.show(MessageId(id)).0 >> 80, id >> 80);
            }
            prop_assert_eq!(one == other, ids.show(MessageId(one)) == ids.show(MessageId(other)));
        }

        #[test]
        fn positions_come_back(key in any::<[u8; 32]>(), position in positions()) {
            let ids = Ids::new(&key, Since::default());
            let sealed = ids.seal(position);
            prop_assert_eq!(sealed.len(), POSITION_CHARS);
            prop_assert_eq!(ids.open(&sealed), Some(position));
        }

        #[test]
        fn what_was_made_up_does_not_open(block in any::<[u8; 16]>(), text in any::<String>()) {
            let ids = Ids::new(&[7; 32], Since::default());
            prop_assert_eq!(ids.open(&URL_SAFE_NO_PAD.encode(block)), None);
            prop_assert_eq!(ids.open(&text), None);
        }
    }
}
