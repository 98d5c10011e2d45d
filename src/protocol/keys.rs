//! Base64 text -> the keys of a subscription (RFC 8291 sections 2.1 and 3.2).
//!
//! Promises: a point that leaves this module is on the curve, so that encryption cannot fail for it later (RFC 8291
//! section 7). Both alphabets are taken, with and without padding, because libraries serialise subscriptions in all these ways.

use p256::AffinePoint;
use p256::elliptic_curve::point::AffineCoordinates;
use sha2::{Digest, Sha256};

use crate::message::KeyId;

/// The uncompressed point of `keys.p256dh` or `applicationServerKey`, checked to be on P-256.
pub fn decode_point(text: &str) -> Result<[u8; 65], PointProblem> {
    let point: [u8; 65] = decode_exactly(text).ok_or(PointProblem::Length)?;
    if is_on_curve(&point) { Ok(point) } else { Err(PointProblem::NotOnCurve) }
}

/// How rows name a VAPID key.
pub fn key_id(point: &[u8; 65]) -> KeyId {
    let hash: [u8; 32] = Sha256::digest(point).into();
    KeyId(*hash.first_chunk().expect("8 is less than 32"))
}

/// Why a text is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PointProblem {
    /// Not base64, or not 65 bytes.
    Length,
    NotOnCurve,
}

/// Exactly `N` bytes of base64 in either alphabet, padded or not.
pub fn decode_exactly<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (decode_into(text.as_bytes(), &mut bytes)? == N).then_some(bytes)
}

/// Any number of bytes of base64 in either alphabet, padded or not.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; text.len() / 4 * 3 + 3];
    let length = decode_into(text.as_bytes(), &mut bytes)?;
    bytes.truncate(length);
    Some(bytes)
}

/// Two field elements are read and y² = x³ - 3x + b is compared: no multiplication of points.
fn is_on_curve(point: &[u8; 65]) -> bool {
    let (Ok(x), Ok(y)) = (<[u8; 32]>::try_from(&point[1..33]), <[u8; 32]>::try_from(&point[33..])) else { return false };
    // 4: SEC 1 section 2.3.3, uncompressed.
    point[0] == 4 && bool::from(AffinePoint::from_coordinates(&x.into(), &y.into()).is_some())
}

/// Decodes into `out` and returns how many bytes that were; None also if they do not fit. Bits behind the last byte are not
/// looked at: some encoders leave them set, and they mean nothing.
fn decode_into(text: &[u8], out: &mut [u8]) -> Option<usize> {
    let text = match text {
        [start @ .., b'=', b'='] | [start @ .., b'='] if text.len().is_multiple_of(4) => start,
        _ => text,
    };
    let value = |byte: u8| VALUES[usize::from(byte)];
    let shifted = |place: usize, byte: u8| SHIFTED[place][usize::from(byte)];
    let (whole, rest) = text.as_chunks::<4>();
    let length = whole.len() * 3 + rest.len().saturating_sub(1);
    if length > out.len() || rest.len() == 1 {
        return None;
    }
    let mut words = 0;
    for ([a, b, c, d], three) in whole.iter().zip(out.chunks_exact_mut(3)) {
        let word = shifted(0, *a) | shifted(1, *b) | shifted(2, *c) | shifted(3, *d);
        words |= word;
        let [_, first, second, third] = word.to_be_bytes();
        three.copy_from_slice(&[first, second, third]);
    }
    let mut bad = (words >> 24) as u8;
    let tail = &mut out[whole.len() * 3..length];
    match *rest {
        [a, b] => {
            let [a, b] = [a, b].map(value);
            bad |= a | b;
            tail.copy_from_slice(&[a << 2 | b >> 4]);
        }
        [a, b, c] => {
            let [a, b, c] = [a, b, c].map(value);
            bad |= a | b | c;
            tail.copy_from_slice(&[a << 2 | b >> 4, b << 4 | c >> 2]);
        }
        _ => {}
    }
    (bad & NOT_BASE64 == 0).then_some(length)
}

/// Set in the table for what belongs to no alphabet.
const NOT_BASE64: u8 = 0x80;

/// [`VALUES`], shifted to the place of each of four characters: a word of them has three bytes below [`NOT_BASE64`].
const SHIFTED: [[u32; 256]; 4] = {
    let mut shifted = [[0; 256]; 4];
    let mut place = 0;
    while place < 4 {
        let mut byte = 0;
        while byte < 256 {
            let value = VALUES[byte];
            shifted[place][byte] =
                if value == NOT_BASE64 { (NOT_BASE64 as u32) << 24 } else { (value as u32) << (18 - 6 * place) };
            byte += 1;
        }
        place += 1;
    }
    shifted
};

/// The six bits of each character, of both alphabets of RFC 4648 (sections 4 and 5).
const VALUES: [u8; 256] = {
    let mut table = [NOT_BASE64; 256];
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut n = 0;
    while n < alphabet.len() {
        table[alphabet[n] as usize] = n as u8;
        n += 1;
    }
    table[b'+' as usize] = 62;
    table[b'-' as usize] = 62;
    table[b'/' as usize] = 63;
    table[b'_' as usize] = 63;
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    /// RFC 8291 section 5.
    const RFC_POINT: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";

    #[test]
    fn points() {
        let point = decode_point(RFC_POINT).expect("the RFC's own");
        assert_eq!(point[0], 4);
        for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
            assert_eq!(decode_point(&engine.encode(point)), Ok(point));
        }
        let encoded = |point: [u8; 65]| decode_point(&URL_SAFE_NO_PAD.encode(point));
        for at in 0..65 {
            let mut other = point;
            other[at] ^= 1;
            assert_eq!(encoded(other), Err(PointProblem::NotOnCurve), "byte {at}");
        }
        let mut negated = [0xff; 65];
        negated[0] = 4;
        assert_eq!(encoded(negated), Err(PointProblem::NotOnCurve), "coordinates beyond the field");
        let mut nought = [0; 65];
        assert_eq!(encoded(nought), Err(PointProblem::NotOnCurve));
        nought[0] = 4;
        assert_eq!(encoded(nought), Err(PointProblem::NotOnCurve));
        assert_eq!(decode_point(&RFC_POINT[..86]), Err(PointProblem::Length));
        assert_eq!(decode_point(&format!("{RFC_POINT}A")), Err(PointProblem::Length));
        assert_eq!(decode_point(&RFC_POINT.replace('_', "*")), Err(PointProblem::Length));
        assert_eq!(decode_point(""), Err(PointProblem::Length));
    }

    #[test]
    fn base64_texts() {
        for (text, bytes) in [
            ("", Some(&b""[..])),
            ("YQ", Some(b"a")),
            ("YQ==", Some(b"a")),
            ("YR==", Some(b"a")),
            ("YWI", Some(b"ab")),
            ("YWI=", Some(b"ab")),
            ("YWJj", Some(b"abc")),
            ("-_+/", Some(b"\xfb\xff\xbf")),
            ("Y", None),
            ("YQ=", None),
            ("Y===", None),
            ("====", None),
            ("YWJj====", None),
            ("YWJj=", None),
            ("YQ==YQ==", None),
            ("Y Q=", None),
            ("YWJj\n", None),
            ("YWJé", None),
        ] {
            assert_eq!(decode(text).as_deref(), bytes, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn base64_goes_there_and_back(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for engine in [&STANDARD, &STANDARD_NO_PAD, &URL_SAFE, &URL_SAFE_NO_PAD] {
                prop_assert_eq!(decode(&engine.encode(&bytes)), Some(bytes.clone()));
            }
        }

        #[test]
        fn agrees_with_p256(scalar in 1u64.., flip in 0usize..1_000, bit in 0u8..8) {
            use p256::elliptic_curve::sec1::ToSec1Point;
            let mut secret = [0; 32];
            secret[24..].copy_from_slice(&scalar.to_be_bytes());
            let key = p256::SecretKey::from_slice(&secret).expect("below the order").public_key();
            let mut point: [u8; 65] = key.to_sec1_point(false).as_bytes().try_into().expect("uncompressed");
            if let Some(byte) = point.get_mut(flip) {
                *byte ^= 1 << bit;
            }
            prop_assert_eq!(is_on_curve(&point), p256::PublicKey::from_sec1_bytes(&point).is_ok());
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = decode_point(&text);
        }
    }
}
