//! Payloads become bodies: RFC 8188 and RFC 8291 (`aes128gcm`), and `aesgcm` of draft-ietf-webpush-encryption-04 for the
//! subscriptions that still ask for it (docs/push-services.md 2.4).
//!
//! Promises: every body has an ephemeral key pair and a salt of its own, both from the library's CSPRNG (RFC 8291 section
//! 3.1 demands a new key pair; RFC 8188 section 2.1 forbids a salt twice); secrets are wiped when they have been used; and one
//! bad recipient of a slice gets an error in its place, while its neighbours are sealed. Nothing here does I/O or keeps state
//! from one slice to the next.
//!
//! The elliptic curve work of a slice is done first, for all of it that was not made ahead (`warm`), then the symmetric work one by
//! one: so that `p256_batch` can compute several key pairs at once.

use aes::{LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{aead as aes, agreement, rand};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::HeaderValue;
use p256::elliptic_curve::Generate;
use p256::elliptic_curve::sec1::ToSec1Point;
use p256_batch::{Agreed, Batch, LANES};
use sha2::Sha256;
use zeroize::{Zeroizing, zeroize_stack};

use crate::limits::PAYLOAD_MAX;
use crate::message::{Encoding, Service};

/// Bytes that `aes128gcm` adds to the padded plaintext: header 86, delimiter 1, tag 16.
pub const AES128GCM_OVERHEAD: usize = HEADER_LEN + 1 + TAG_LEN;

/// Largest body that surely reaches Firefox for Android: the service wraps it, as base64, in an FCM message of 4,096 bytes
/// and answers 413 to more (docs/push-services.md 1, fact 6).
pub const MOBILE_BODY_MAX: usize = 3_070;

/// RFC 8188 section 2.1: salt 16, record size 4, length of the key id 1, then the key id, an uncompressed P-256 point.
const HEADER_LEN: usize = 16 + 4 + 1 + 65;
const TAG_LEN: usize = 16;
/// RFC 8291 section 4 wants more than plaintext, delimiter, padding and tag together; a receiver may ignore it.
const RECORD_SIZE: u32 = 4_096;

const _: () = assert!(PAYLOAD_MAX + AES128GCM_OVERHEAD == RECORD_SIZE as usize);
const _: () = assert!(MOBILE_BODY_MAX > AES128GCM_OVERHEAD && MOBILE_BODY_MAX < RECORD_SIZE as usize);

/// One payload to seal for one browser.
#[derive(Clone, Copy)]
pub struct Plain<'a> {
    /// The browser's public key, an uncompressed point (RFC 8291 section 3.1).
    pub p256dh: &'a [u8; 65],
    /// The browser's authentication secret (RFC 8291 section 3.2).
    pub auth: &'a [u8; 16],
    pub encoding: Encoding,
    pub payload: &'a [u8],
    /// Length of the plaintext in bytes after padding, see [`padded_len`]. Less than the payload's length means no padding.
    pub pad_to: usize,
}

/// A sealed payload: the body of a push request and the headers that belong to it.
#[derive(Clone, Debug)]
pub struct Body {
    pub bytes: Bytes,
    /// For [`Encoding::Aesgcm`], which keeps salt and public key out of the body.
    pub aesgcm: Option<AesgcmHeaders>,
}

impl Body {
    /// The body of a message without payload: nothing is encrypted (RFC 8030 section 5).
    pub fn none() -> Body {
        Body { bytes: Bytes::new(), aesgcm: None }
    }
}

/// The value of `Crypto-Key` of a request without body to a browser of the old encoding: the VAPID public key alone, base64url.
pub fn crypto_key_without_body(p256ecdsa: &str) -> HeaderValue {
    HeaderValue::from_maybe_shared(Bytes::from(format!("p256ecdsa={p256ecdsa}"))).expect("base64url is legal in a header")
}

/// What `aesgcm` tells in headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AesgcmHeaders {
    /// The whole value of `Encryption`: `salt=…`.
    pub encryption: HeaderValue,
    /// The part of `Crypto-Key` that belongs to this body: `dh=…`.
    pub crypto_key_dh: String,
}

impl AesgcmHeaders {
    /// The whole value of `Crypto-Key`: `dh=…;p256ecdsa=…`, where `p256ecdsa` is the base64url of the VAPID public key. The
    /// parts are joined by `;`, as old push services expect (docs/push-services.md 2.4).
    pub fn crypto_key(&self, p256ecdsa: &str) -> HeaderValue {
        HeaderValue::from_maybe_shared(Bytes::from(format!("{};p256ecdsa={p256ecdsa}", self.crypto_key_dh)))
            .expect("base64url and punctuation are legal in a header")
    }
}

/// Why a payload was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SealError {
    /// `p256dh` is no point of the curve: this browser can never be reached (RFC 8291 section 7).
    InvalidKey,
    /// Payload or padding beyond [`PAYLOAD_MAX`].
    TooLong,
    /// The library could not make a key pair or a salt: nothing is wrong with the delivery.
    Random,
}

impl std::fmt::Display for SealError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SealError::InvalidKey => "the subscription's p256dh is no point on P-256",
            SealError::TooLong => "the padded payload is longer than 3,993 bytes",
            SealError::Random => "no random key could be made",
        })
    }
}

impl std::error::Error for SealError {}

/// Who does the elliptic curve work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Eight at once with AVX-512 IFMA: key pair and ECDH take 9 us measured in a full slice of eight. A slice that has one message
    /// only, or a last one, is left to aws-lc-rs.
    Batch(Batch),
    /// aws-lc-rs: 50 us a whole message measured, of which the key pair takes 13 and ECDH 35.
    AwsLc,
    /// The p256 crate, pure Rust: 190 us a whole message measured; the oracle of the tests.
    P256,
}

impl Agreement {
    /// The fastest on this processor. To be asked once: the first time, the tables of the batch are made.
    pub fn fastest() -> Agreement {
        Batch::detect().map_or(Agreement::AwsLc, Agreement::Batch)
    }

    /// How many agreements are made in one pass.
    pub fn together(self) -> usize {
        match self {
            Agreement::Batch(_) => LANES,
            Agreement::AwsLc | Agreement::P256 => 1,
        }
    }

    /// Appends a new key pair and its ECDH secret for each of these keys to `agreed`. Where aws-lc-rs makes them, `pair` gives the key
    /// pairs that there are already.
    pub fn agree(
        self,
        theirs: &[&[u8; 65]],
        mut pair: impl FnMut() -> Option<Pair>,
        agreed: &mut Vec<Result<Agreed, SealError>>,
    ) {
        let mut by_aws_lc = |theirs: &[u8; 65]| agree_aws_lc(pair(), theirs);
        match self {
            Agreement::Batch(batch) => {
                for eight in theirs.chunks(LANES) {
                    // A pass costs less than two agreements by aws-lc-rs, and more than one.
                    if let [one] = eight {
                        agreed.push(by_aws_lc(one));
                        continue;
                    }
                    match batch.agree(eight) {
                        Ok(passed) => {
                            let passed = passed.into_iter().take(eight.len());
                            agreed.extend(passed.map(|agreed| agreed.ok_or(SealError::InvalidKey)));
                        }
                        Err(_) => agreed.extend(eight.iter().map(|_| Err(SealError::Random))),
                    }
                }
            }
            Agreement::AwsLc => agreed.extend(theirs.iter().map(|theirs| by_aws_lc(theirs))),
            Agreement::P256 => agreed.extend(theirs.iter().map(|theirs| agree_p256(theirs))),
        }
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Agreement::Batch(_) => "eight at once, AVX-512 IFMA",
            Agreement::AwsLc => "aws-lc-rs",
            Agreement::P256 => "p256",
        })
    }
}

/// Seals slices of payloads. Keeps its scratch space, so a worker makes one and uses it again and again.
pub struct Sealer {
    agreement: Agreement,
    /// Made for this slice.
    agreed: Vec<Result<Agreed, SealError>>,
    salts: Vec<u8>,
}

impl Sealer {
    /// A sealer whose elliptic curve work is done by `agreement`.
    pub fn new(agreement: Agreement) -> Sealer {
        Sealer { agreement, agreed: Vec::new(), salts: Vec::new() }
    }

    /// Who does its elliptic curve work.
    pub fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Seals each of `slice` and appends one result for each to `out`, in order. An error concerns its own place only.
    pub fn seal(&mut self, slice: &[Plain<'_>], out: &mut Vec<Result<Body, SealError>>) {
        self.seal_ahead(slice, &mut Vec::new(), || None, out);
    }

    /// The same with what was made ahead: agreements with the browsers of the slice, place by place (they are used up; of places
    /// behind the last one there is none), and key pairs for those that have to be made singly.
    pub fn seal_ahead<'a>(
        &mut self,
        slice: &[Plain<'a>],
        ahead: &mut Vec<Option<Agreed>>,
        pair: impl FnMut() -> Option<Pair>,
        out: &mut Vec<Result<Body, SealError>>,
    ) {
        wiping_stack(|| self.seal_slice(slice, ahead, pair, out));
    }

    fn seal_slice<'a>(
        &mut self,
        slice: &[Plain<'a>],
        ahead: &mut Vec<Option<Agreed>>,
        pair: impl FnMut() -> Option<Pair>,
        out: &mut Vec<Result<Body, SealError>>,
    ) {
        ahead.resize_with(slice.len(), || None);
        // One call for the salts of the slice: its price (0.65 us) does not depend on the length.
        self.salts.resize(slice.len() * 16, 0);
        if rand::fill(&mut self.salts).is_err() {
            ahead.clear();
            out.extend(slice.iter().map(|_| Err(SealError::Random)));
            return;
        }
        let missing = |(plain, ahead): (&Plain<'a>, &Option<Agreed>)| plain.check().ok().filter(|_| ahead.is_none());
        let theirs: Vec<&[u8; 65]> = slice.iter().zip(&*ahead).filter_map(missing).collect();
        self.agreement.agree(&theirs, pair, &mut self.agreed);
        let mut made = self.agreed.iter();
        out.reserve(slice.len());
        for ((plain, ahead), salt) in slice.iter().zip(&*ahead).zip(self.salts.as_chunks().0) {
            let agreed = plain.check().and_then(|_| match ahead {
                Some(agreed) => Ok(agreed),
                None => made.next().expect("one for each that was missing").as_ref().map_err(|error| *error),
            });
            out.push(agreed.map(|agreed| encrypt(plain, agreed, salt)));
        }
        // Wiped where they lie.
        self.agreed.clear();
        ahead.clear();
    }
}

/// Does `work` and wipes what it left on the stack: what is returned by value, such as an ECDH secret, is moved, and leaves copies
/// behind.
#[inline(never)]
pub fn wiping_stack(work: impl FnOnce()) {
    // Frames of its own, so that they lie below this one's, where the wiping begins.
    #[inline(never)]
    fn below(work: impl FnOnce()) {
        work();
    }
    below(work);
    zeroize_stack::<{ 16 * 1024 }>();
}

/// The length to which a payload of `payload_len` bytes is padded, for [`Plain::pad_to`]: the next multiple of `multiple`
/// bytes (an empty payload counts as one byte, else it would show), 0 meaning no padding. Never beyond [`PAYLOAD_MAX`], and
/// with `mobile_limited` never so far that the body exceeds [`MOBILE_BODY_MAX`] where it would fit unpadded.
pub fn padded_len(payload_len: usize, multiple: usize, mobile_limited: bool) -> usize {
    if multiple == 0 {
        return payload_len;
    }
    let mobile_max = MOBILE_BODY_MAX - AES128GCM_OVERHEAD;
    let max = if mobile_limited && payload_len <= mobile_max { mobile_max } else { PAYLOAD_MAX };
    let wanted = payload_len.max(1).checked_next_multiple_of(multiple).unwrap_or(usize::MAX);
    wanted.min(max).max(payload_len)
}

/// Whether bodies for `service` may end at a browser with the limit [`MOBILE_BODY_MAX`]. An endpoint does not tell Firefox for
/// Android from Firefox on a desk, so it holds for all of Mozilla's.
pub fn mobile_limited(service: Service) -> bool {
    service == Service::MOZILLA
}

impl<'a> Plain<'a> {
    /// The browser's key, if the lengths are in bounds: checked before the expensive step.
    fn check(&self) -> Result<&'a [u8; 65], SealError> {
        if self.payload.len().max(self.pad_to) > PAYLOAD_MAX { Err(SealError::TooLong) } else { Ok(self.p256dh) }
    }

    /// Bytes of padding.
    fn padding(&self) -> usize {
        self.pad_to.saturating_sub(self.payload.len())
    }
}

/// An ephemeral key pair of aws-lc-rs, good for one agreement: its type says so. What of it lies in the library's memory the library
/// wipes.
pub struct Pair {
    private: agreement::EphemeralPrivateKey,
    as_public: [u8; 65],
}

impl Pair {
    /// A new one from the library's CSPRNG.
    pub fn generate() -> Result<Pair, SealError> {
        let private = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &rand::SystemRandom::new());
        let private = private.map_err(|_| SealError::Random)?;
        let public = private.compute_public_key().map_err(|_| SealError::Random)?;
        let as_public = public.as_ref().try_into().map_err(|_| SealError::Random)?;
        Ok(Pair { private, as_public })
    }
}

/// The ECDH secret of a key pair, a new one if there is none, by aws-lc-rs. Handing over the raw point is as fast as a DER structure
/// (0.58 against 0.64 us to parse).
fn agree_aws_lc(pair: Option<Pair>, p256dh: &[u8; 65]) -> Result<Agreed, SealError> {
    let Pair { private, as_public } = pair.map_or_else(Pair::generate, Ok)?;
    let theirs = uncompressed(p256dh)?;
    agreement::agree_ephemeral(private, theirs, SealError::InvalidKey, |secret| agreed(as_public, secret))
}

/// The same by the p256 crate.
fn agree_p256(p256dh: &[u8; 65]) -> Result<Agreed, SealError> {
    agree_p256_with(&p256::SecretKey::try_generate().map_err(|_| SealError::Random)?, p256dh)
}

fn agree_p256_with(private: &p256::SecretKey, p256dh: &[u8; 65]) -> Result<Agreed, SealError> {
    let theirs = p256::PublicKey::from_sec1_bytes(p256dh).map_err(|_| SealError::InvalidKey)?;
    let public = private.public_key().to_sec1_point(false);
    let as_public = public.as_bytes().try_into().map_err(|_| SealError::Random)?;
    agreed(as_public, private.diffie_hellman(&theirs).raw_secret_bytes())
}

fn agreed(as_public: [u8; 65], secret: &[u8]) -> Result<Agreed, SealError> {
    Ok(Agreed { as_public, secret: Zeroizing::new(secret.try_into().map_err(|_| SealError::InvalidKey)?) })
}

/// The browser's key for aws-lc-rs, which would also take the hybrid form (first byte 6 or 7) that RFC 8291 does not know.
fn uncompressed(p256dh: &[u8; 65]) -> Result<agreement::UnparsedPublicKey<&[u8; 65]>, SealError> {
    if p256dh[0] != 4 {
        return Err(SealError::InvalidKey);
    }
    Ok(agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, p256dh))
}

/// The symmetric step.
fn encrypt(plain: &Plain<'_>, agreed: &Agreed, salt: &[u8; 16]) -> Body {
    match plain.encoding {
        Encoding::Aes128gcm => {
            let ikm = ikm_aes128gcm(plain, agreed);
            let keys = RecordKeys::derive(salt, &ikm[..], &[b"Content-Encoding: aes128gcm\0"], &[b"Content-Encoding: nonce\0"]);
            Body { bytes: aes128gcm(salt, &agreed.as_public, plain.payload, plain.padding(), keys), aesgcm: None }
        }
        Encoding::Aesgcm => {
            let encryption = format!("salt={}", URL_SAFE_NO_PAD.encode(salt));
            let headers = AesgcmHeaders {
                encryption: HeaderValue::from_maybe_shared(Bytes::from(encryption)).expect("base64url is legal in a header"),
                crypto_key_dh: format!("dh={}", URL_SAFE_NO_PAD.encode(agreed.as_public)),
            };
            Body { bytes: aesgcm(plain, keys_aesgcm(plain, agreed, salt)), aesgcm: Some(headers) }
        }
    }
}

/// RFC 8291 section 3.3: from the ECDH secret and the authentication secret to RFC 8188's input keying material.
fn ikm_aes128gcm(plain: &Plain<'_>, agreed: &Agreed) -> Zeroizing<[u8; 32]> {
    let prk_key = hmac(plain.auth, &[&agreed.secret[..]]);
    hmac(&prk_key[..], &[b"WebPush: info\0", plain.p256dh, &agreed.as_public, &[1]])
}

/// RFC 8188 section 2.1 and 2.2: header and one record, which is the last one.
fn aes128gcm(salt: &[u8; 16], key_id: &[u8], payload: &[u8], padding: usize, keys: RecordKeys) -> Bytes {
    let mut body = Vec::with_capacity(16 + 4 + 1 + key_id.len() + payload.len() + 1 + padding + TAG_LEN);
    body.extend_from_slice(salt);
    body.extend_from_slice(&RECORD_SIZE.to_be_bytes());
    body.push(u8::try_from(key_id.len()).expect("a key id is a point or nothing"));
    body.extend_from_slice(key_id);
    let record = body.len();
    body.extend_from_slice(payload);
    // Delimiter of the last record, then padding.
    body.push(2);
    body.resize(body.len() + padding, 0);
    keys.seal(&mut body, record);
    body.into()
}

/// draft-ietf-webpush-encryption-04 section 3.3 and 3.4, with the keys of draft-ietf-httpbis-encryption-encoding-03.
fn keys_aesgcm(plain: &Plain<'_>, agreed: &Agreed, salt: &[u8; 16]) -> RecordKeys {
    let prk_key = hmac(plain.auth, &[&agreed.secret[..]]);
    let ikm = hmac(&prk_key[..], &[b"Content-Encoding: auth\0", &[1]]);
    let context: [&[u8]; 5] = [b"P-256\0", &[0, 65], plain.p256dh, &[0, 65], &agreed.as_public];
    let info = |name: &'static [u8]| [name, context[0], context[1], context[2], context[3], context[4]];
    RecordKeys::derive(salt, &ikm[..], &info(b"Content-Encoding: aesgcm\0"), &info(b"Content-Encoding: nonce\0"))
}

/// draft-ietf-httpbis-encryption-encoding-03 section 2: the length of the padding in two bytes, padding, payload, tag. One
/// record: the default record size, 4,096, is more than all of it.
fn aesgcm(plain: &Plain<'_>, keys: RecordKeys) -> Bytes {
    let padding = plain.padding();
    let mut body = Vec::with_capacity(2 + padding + plain.payload.len() + TAG_LEN);
    body.extend_from_slice(&u16::try_from(padding).expect("checked: at most PAYLOAD_MAX").to_be_bytes());
    body.resize(2 + padding, 0);
    body.extend_from_slice(plain.payload);
    keys.seal(&mut body, 0);
    body.into()
}

/// Key and nonce of the only record.
struct RecordKeys {
    key: Zeroizing<[u8; 16]>,
    /// RFC 8188 section 2.3 mixes the record's number into it, which is 0.
    nonce: Zeroizing<[u8; 12]>,
}

impl RecordKeys {
    /// RFC 8188 section 2.2 and 2.3: HKDF-SHA-256 of `ikm`, once for the key and once for the nonce. Each needs less than
    /// one block, so an expansion is one HMAC over info and the byte 1.
    fn derive(salt: &[u8; 16], ikm: &[u8], key_info: &[&[u8]], nonce_info: &[&[u8]]) -> RecordKeys {
        let prk = hmac(salt, &[ikm]);
        let prk = keyed(&prk[..]);
        let (key, nonce) = (expand(prk.clone(), key_info), expand(prk, nonce_info));
        RecordKeys { key: Zeroizing::new(*first(&key)), nonce: Zeroizing::new(*first(&nonce)) }
    }

    /// Encrypts `body` from `start` on in place and appends the tag.
    fn seal(self, body: &mut Vec<u8>, start: usize) {
        let key = UnboundKey::new(&aes::AES_128_GCM, &self.key[..]).expect("a key of 16 bytes is right for AES-128");
        let nonce = Nonce::assume_unique_for_key(*self.nonce);
        let tag = LessSafeKey::new(key)
            .seal_in_place_separate_tag(nonce, aes::Aad::empty(), &mut body[start..])
            .expect("AES-GCM takes anything below 64 GiB");
        body.extend_from_slice(tag.as_ref());
    }
}

/// The first `N` of 32 bytes.
fn first<const N: usize>(bytes: &[u8; 32]) -> &[u8; N] {
    bytes.first_chunk().expect("N is at most 32")
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length")
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    finish(keyed(key), parts)
}

fn expand(prk: Hmac<Sha256>, info: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut mac = prk;
    for part in info {
        mac.update(part);
    }
    finish(mac, &[&[1]])
}

fn finish(mut mac: Hmac<Sha256>, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    for part in parts {
        mac.update(part);
    }
    Zeroizing::new(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use aes_gcm::{AeadInOut, Aes128Gcm};
    use aws_lc_rs::hkdf;
    use proptest::prelude::*;

    use super::*;

    /// A browser, which opens bodies with other code than seals them: p256 and aws-lc-rs's HKDF and the aes-gcm crate.
    struct Browser {
        private: p256::SecretKey,
        p256dh: [u8; 65],
        auth: [u8; 16],
    }

    impl Browser {
        fn new() -> Browser {
            let mut auth = [0; 16];
            rand::fill(&mut auth).unwrap();
            Browser::with(p256::SecretKey::generate(), auth)
        }

        fn with(private: p256::SecretKey, auth: [u8; 16]) -> Browser {
            let p256dh = private.public_key().to_sec1_point(false).as_bytes().try_into().unwrap();
            Browser { private, p256dh, auth }
        }

        fn plain<'a>(&'a self, encoding: Encoding, payload: &'a [u8], pad_to: usize) -> Plain<'a> {
            Plain { p256dh: &self.p256dh, auth: &self.auth, encoding, payload, pad_to }
        }

        fn ecdh(&self, as_public: &[u8]) -> Vec<u8> {
            let public = p256::PublicKey::from_sec1_bytes(as_public).unwrap();
            self.private.diffie_hellman(&public).raw_secret_bytes().to_vec()
        }

        /// The payload and the number of bytes of padding.
        fn open(&self, body: &Body) -> (Vec<u8>, usize) {
            match &body.aesgcm {
                None => self.open_aes128gcm(&body.bytes),
                Some(headers) => {
                    let salt = headers.encryption.to_str().unwrap().strip_prefix("salt=").unwrap();
                    self.open_aesgcm(&body.bytes, &decode(salt), &decode(headers.crypto_key_dh.strip_prefix("dh=").unwrap()))
                }
            }
        }

        fn open_aes128gcm(&self, body: &[u8]) -> (Vec<u8>, usize) {
            let (salt, rest) = body.split_at(16);
            let (header, rest) = rest.split_at(5);
            assert_eq!(header, [0, 0, 0x10, 0, 65], "record size 4,096, and the length of a point");
            let (as_public, record) = rest.split_at(65);
            let info = [b"WebPush: info\0", &self.p256dh[..], as_public].concat();
            let ikm = hkdf(&self.auth, &self.ecdh(as_public), &info, 32);
            let key = hkdf(salt, &ikm, b"Content-Encoding: aes128gcm\0", 16);
            let nonce = hkdf(salt, &ikm, b"Content-Encoding: nonce\0", 12);
            let mut plain = open_record(&key, &nonce, record);
            let len = plain.len();
            let delimiter = plain.iter().rposition(|byte| *byte != 0).unwrap();
            assert_eq!(plain[delimiter], 2, "delimiter of the last record");
            plain.truncate(delimiter);
            (plain, len - delimiter - 1)
        }

        fn open_aesgcm(&self, body: &[u8], salt: &[u8], as_public: &[u8]) -> (Vec<u8>, usize) {
            let context = [b"P-256\0\0\x41", &self.p256dh[..], b"\0\x41", as_public].concat();
            let ikm = hkdf(&self.auth, &self.ecdh(as_public), b"Content-Encoding: auth\0", 32);
            let key = hkdf(salt, &ikm, &[b"Content-Encoding: aesgcm\0", &context[..]].concat(), 16);
            let nonce = hkdf(salt, &ikm, &[b"Content-Encoding: nonce\0", &context[..]].concat(), 12);
            let plain = open_record(&key, &nonce, body);
            let padding = usize::from(u16::from_be_bytes([plain[0], plain[1]]));
            assert!(plain[2..2 + padding].iter().all(|byte| *byte == 0));
            (plain[2 + padding..].to_vec(), padding)
        }
    }

    struct Len(usize);

    impl hkdf::KeyType for Len {
        fn len(&self) -> usize {
            self.0
        }
    }

    fn hkdf(salt: &[u8], ikm: &[u8], info: &[u8], len: usize) -> Vec<u8> {
        let prk = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(ikm);
        let mut out = vec![0; len];
        prk.expand(&[info], Len(len)).unwrap().fill(&mut out).unwrap();
        out
    }

    fn open_record(key: &[u8], nonce: &[u8], record: &[u8]) -> Vec<u8> {
        let (text, tag) = record.split_at(record.len() - TAG_LEN);
        let mut text = text.to_vec();
        let cipher = <Aes128Gcm as aes_gcm::KeyInit>::new_from_slice(key).unwrap();
        let (nonce, tag) = (nonce.try_into().unwrap(), tag.try_into().unwrap());
        cipher.decrypt_inout_detached(nonce, b"", text.as_mut_slice().into(), tag).expect("authentic");
        text
    }

    fn decode(base64url: &str) -> Vec<u8> {
        URL_SAFE_NO_PAD.decode(base64url).unwrap()
    }

    fn array<const N: usize>(base64url: &str) -> [u8; N] {
        decode(base64url).try_into().unwrap()
    }

    /// The whole way of one payload, with a given key pair and salt.
    fn seal_with(by: Agreement, plain: &Plain<'_>, as_private: &[u8; 32], salt: &[u8; 16]) -> Result<Body, SealError> {
        let agreed = match by {
            Agreement::Batch(_) => unreachable!("draws its keys itself; its own tests give them"),
            Agreement::P256 => agree_p256_with(&p256::SecretKey::from_slice(as_private).unwrap(), plain.check()?)?,
            Agreement::AwsLc => {
                let private = agreement::PrivateKey::from_private_key(&agreement::ECDH_P256, as_private).unwrap();
                let as_public = private.compute_public_key().unwrap().as_ref().try_into().unwrap();
                let theirs = uncompressed(plain.check()?)?;
                agreement::agree(&private, theirs, SealError::InvalidKey, |secret| agreed(as_public, secret))?
            }
        };
        Ok(encrypt(plain, &agreed, salt))
    }

    fn seal_one(by: Agreement, plain: Plain<'_>) -> Result<Body, SealError> {
        let mut out = Vec::new();
        Sealer::new(by).seal(&[plain], &mut out);
        assert_eq!(out.len(), 1);
        out.remove(0)
    }

    const BACK_ENDS: [Agreement; 2] = [Agreement::AwsLc, Agreement::P256];

    /// Those two, and the fastest here.
    fn back_ends() -> impl Iterator<Item = Agreement> {
        BACK_ENDS.into_iter().chain([Agreement::fastest()])
    }

    const ENCODINGS: [Encoding; 2] = [Encoding::Aes128gcm, Encoding::Aesgcm];

    #[test]
    fn rfc8291_section_5() {
        let body = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_y\
                    l95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";
        let private = p256::SecretKey::from_slice(&decode("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")).unwrap();
        let browser = Browser::with(private, array("BTBZMqHH6r4Tts7J_aSIgg"));
        let p256dh = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
        assert_eq!(browser.p256dh, array::<65>(p256dh));
        let plain = browser.plain(Encoding::Aes128gcm, b"When I grow up, I want to be a watermelon", 0);
        for by in BACK_ENDS {
            let as_private = array("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw");
            let sealed = seal_with(by, &plain, &as_private, &array("DGv6ra1nlYgDCS1FRnbzlw")).unwrap();
            assert_eq!(URL_SAFE_NO_PAD.encode(&sealed.bytes), body);
            assert_eq!(sealed.bytes.len(), 144);
            assert_eq!(sealed.aesgcm, None);
            assert_eq!(browser.open(&sealed), (plain.payload.to_vec(), 0));
        }
    }

    #[test]
    fn rfc8291_appendix_a() {
        let browser_public = array("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4");
        let as_private = p256::SecretKey::from_slice(&decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw")).unwrap();
        let agreed = agree_p256_with(&as_private, &browser_public).unwrap();
        assert_eq!(agreed.secret[..], decode("kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs"));
        let auth = array("BTBZMqHH6r4Tts7J_aSIgg");
        let plain = Plain { p256dh: &browser_public, auth: &auth, encoding: Encoding::Aes128gcm, payload: b"", pad_to: 0 };
        let ikm = ikm_aes128gcm(&plain, &agreed);
        assert_eq!(ikm[..], decode("S4lYMb_L0FxCeq0WhDx813KgSYqU26kOyzWUdsXYyrg"));
        let salt = array("DGv6ra1nlYgDCS1FRnbzlw");
        let keys = RecordKeys::derive(&salt, &ikm[..], &[b"Content-Encoding: aes128gcm\0"], &[b"Content-Encoding: nonce\0"]);
        assert_eq!(keys.key[..], decode("oIhVW04MRdy2XN9CiKLxTg"));
        assert_eq!(keys.nonce[..], decode("4h_95klXJ5E_qnoN"));
    }

    /// The example's key is given, not agreed upon, and its key id is empty; from there on it is the same.
    #[test]
    fn rfc8188_section_3_1() {
        let (salt, ikm) = (array("I1BsxtFttlv3u_Oo94xnmw"), decode("yqdlZ-tYemfogSmv7Ws5PQ"));
        let keys = RecordKeys::derive(&salt, &ikm, &[b"Content-Encoding: aes128gcm\0"], &[b"Content-Encoding: nonce\0"]);
        assert_eq!(keys.key[..], decode("_wniytB-ofscZDh4tbSjHw"));
        assert_eq!(keys.nonce[..], decode("Bcs8gkIRKLI8GeI8"));
        let body = aes128gcm(&salt, b"", b"I am the walrus", 0, keys);
        assert_eq!(URL_SAFE_NO_PAD.encode(body), "I1BsxtFttlv3u_Oo94xnmwAAEAAA-NAVub2qFgBEuQKRapoZu-IxkIva3MEB1PD-ly8Thjg");
    }

    #[test]
    fn draft_webpush_encryption_04_section_5() {
        let private = p256::SecretKey::from_slice(&decode("9FWl15_QUQAWDaD3k3l50ZBZQJ4au27F1V4F0uLSD_M")).unwrap();
        let browser = Browser::with(private, array("R29vIGdvbyBnJyBqb29iIQ"));
        let plain = browser.plain(Encoding::Aesgcm, b"I am the walrus", 0);
        for by in BACK_ENDS {
            let as_private = array("nCScek-QpEjmOOlT-rQ38nZzvdPlqa00Zy0i6m2OJvY");
            let sealed = seal_with(by, &plain, &as_private, &array("lngarbyKfMoi9Z75xYXmkg")).unwrap();
            assert_eq!(URL_SAFE_NO_PAD.encode(&sealed.bytes), "6nqAQUME8hNqw5J3kl8cpVVJylXKYqZOeseZG8UueKpA");
            let headers = sealed.aesgcm.as_ref().unwrap();
            assert_eq!(headers.encryption, "salt=lngarbyKfMoi9Z75xYXmkg");
            let dh = "dh=BNoRDbb84JGm8g5Z5CFxurSqsXWJ11ItfXEWYVLE85Y7CYkDjXsIEc4aqxYaQ1G8BqkXCJ6DPpDrWtdWj_mugHU";
            assert_eq!(headers.crypto_key_dh, dh);
            assert_eq!(headers.crypto_key("BPk"), format!("{dh};p256ecdsa=BPk"));
            assert_eq!(browser.open(&sealed), (plain.payload.to_vec(), 0));
        }
    }

    #[test]
    fn every_size_arrives_and_bodies_have_the_promised_length() {
        let browser = Browser::new();
        let payload: Vec<u8> = (0..PAYLOAD_MAX).map(|i| (i * 7 % 251) as u8).collect();
        for by in back_ends() {
            for encoding in ENCODINGS {
                for len in [0, 1, 15, 16, 17, 250, 2_967, 2_968, 3_992, 3_993] {
                    for pad_to in [0, len, (len + 1).min(PAYLOAD_MAX), (len + 300).min(PAYLOAD_MAX), PAYLOAD_MAX] {
                        let sealed = seal_one(by, browser.plain(encoding, &payload[..len], pad_to)).unwrap();
                        let padded = len.max(pad_to);
                        assert_eq!(browser.open(&sealed), (payload[..len].to_vec(), padded - len));
                        let overhead = if encoding == Encoding::Aes128gcm { AES128GCM_OVERHEAD } else { 18 };
                        assert_eq!(sealed.bytes.len(), padded + overhead);
                    }
                }
            }
        }
        let longest = seal_one(Agreement::AwsLc, browser.plain(Encoding::Aes128gcm, &payload, 0)).unwrap();
        assert_eq!(longest.bytes.len(), 4_096);
    }

    #[test]
    fn a_bad_neighbour_fails_alone() {
        let (good, mut off_curve) = (Browser::new(), Browser::new());
        off_curve.p256dh[64] ^= 1;
        let bad_first_byte = |byte: u8| {
            let mut browser = Browser::new();
            browser.p256dh[0] = byte;
            browser
        };
        let mut infinity = Browser::new();
        infinity.p256dh = [0; 65];
        let mut compressed = Browser::new();
        compressed.p256dh[0] = 2;
        compressed.p256dh[33..].fill(0);
        let hybrids = [6, 7].map(bad_first_byte);
        let long = vec![0; PAYLOAD_MAX + 1];
        for by in back_ends() {
            for encoding in ENCODINGS {
                let mut slice = vec![good.plain(encoding, b"first", 0)];
                let bad = [&off_curve, &infinity, &compressed, &hybrids[0], &hybrids[1]];
                slice.extend(bad.map(|browser| browser.plain(encoding, b"never", 0)));
                slice.push(good.plain(encoding, &long, 0));
                slice.push(good.plain(encoding, b"", PAYLOAD_MAX + 1));
                slice.push(good.plain(encoding, b"last", 0));
                let mut out = Vec::new();
                Sealer::new(by).seal(&slice, &mut out);
                let ended: Vec<_> =
                    out.iter().map(|result| result.as_ref().map(|body| good.open(body).0).map_err(|e| *e)).collect();
                let mut expected = vec![Ok(b"first".to_vec())];
                expected.extend([const { Err(SealError::InvalidKey) }; 5]);
                expected.extend([const { Err(SealError::TooLong) }; 2]);
                expected.push(Ok(b"last".to_vec()));
                assert_eq!(ended, expected, "{by:?} {encoding:?}");
            }
        }
    }

    #[test]
    fn no_key_pair_and_no_salt_is_used_twice() {
        let browser = Browser::new();
        for by in back_ends() {
            let mut sealer = Sealer::new(by);
            let mut out = Vec::new();
            for _ in 0..3 {
                sealer.seal(&[browser.plain(Encoding::Aes128gcm, b"same", 0); 20], &mut out);
            }
            let bodies: Vec<Bytes> = out.into_iter().map(|result| result.unwrap().bytes).collect();
            assert_eq!(bodies.len(), 60);
            for part in [0..16, 21..86, 86..107] {
                let distinct: std::collections::HashSet<_> = bodies.iter().map(|body| body.slice(part.clone())).collect();
                assert_eq!(distinct.len(), 60, "{part:?}");
            }
        }
    }

    /// Full passes, part-filled ones, a last one alone, and between them what fails: each body is in its place and opens.
    #[test]
    fn slices_of_every_length_keep_their_order() {
        let browsers: [Browser; 20] = std::array::from_fn(|_| Browser::new());
        let (mut off_curve, long) = (Browser::new(), vec![0; PAYLOAD_MAX + 1]);
        off_curve.p256dh[40] ^= 1;
        for by in [Agreement::fastest(), Agreement::AwsLc] {
            let mut sealer = Sealer::new(by);
            for len in 0..=browsers.len() {
                for bad in 0..=len {
                    let names: Vec<[u8; 1]> = (0..len).map(|place| [place as u8]).collect();
                    let mut slice: Vec<_> = std::iter::zip(&browsers, &names)
                        .map(|(browser, name)| browser.plain(Encoding::Aes128gcm, name, 0))
                        .collect();
                    if bad < len {
                        slice[bad] = off_curve.plain(Encoding::Aes128gcm, b"never", 0);
                        slice[len - 1 - bad] = browsers[0].plain(Encoding::Aes128gcm, &long, 0);
                    }
                    let mut out = Vec::new();
                    sealer.seal(&slice, &mut out);
                    assert_eq!(out.len(), len);
                    for (place, body) in out.iter().enumerate() {
                        let error = body.as_ref().err().copied();
                        if bad < len && place == len - 1 - bad {
                            assert_eq!(error, Some(SealError::TooLong));
                        } else if place == bad {
                            assert_eq!(error, Some(SealError::InvalidKey));
                        } else if len < 12 || place == (bad + 1) % len {
                            // p256 opens, slowly: of the long slices one is enough.
                            assert_eq!(browsers[place].open(body.as_ref().unwrap()).0, names[place]);
                        } else {
                            assert_eq!(error, None);
                        }
                    }
                }
            }
        }
    }

    /// What was made ahead is used in its own place and used up; for the others it is made now, by key pairs that are there first.
    #[test]
    fn agreements_and_key_pairs_that_are_there_are_used_once() {
        let browsers: [Browser; 6] = std::array::from_fn(|_| Browser::new());
        let long = vec![0; PAYLOAD_MAX + 1];
        for by in back_ends() {
            let mut made = Vec::new();
            by.agree(&browsers.each_ref().map(|browser| &browser.p256dh), || None, &mut made);
            let mut ahead: Vec<Option<Agreed>> = made.into_iter().map(Result::ok).collect();
            let known: Vec<Option<[u8; 65]>> =
                ahead.iter().map(|agreed| agreed.as_ref().map(|agreed| agreed.as_public)).collect();
            ahead[2] = None;
            ahead.truncate(5);
            let mut slice: Vec<_> = browsers.iter().map(|browser| browser.plain(Encoding::Aes128gcm, b"ahead", 0)).collect();
            slice[3] = browsers[3].plain(Encoding::Aes128gcm, &long, 0);
            let mut pairs = vec![Pair::generate().unwrap(), Pair::generate().unwrap()];
            let ours: Vec<[u8; 65]> = pairs.iter().map(|pair| pair.as_public).collect();
            let (mut sealer, mut out) = (Sealer::new(by), Vec::new());
            sealer.seal_ahead(&slice, &mut ahead, || pairs.pop(), &mut out);
            assert!(ahead.is_empty(), "used up, also what was too long");
            let keys: Vec<Option<[u8; 65]>> = out.iter().map(as_public_of).collect();
            for (place, body) in out.iter().enumerate() {
                match place {
                    3 => assert_eq!(body.as_ref().err(), Some(&SealError::TooLong)),
                    _ => assert_eq!(browsers[place].open(body.as_ref().unwrap()).0, b"ahead"),
                }
            }
            assert_eq!([keys[0], keys[1], keys[4]], [known[0], known[1], known[4]]);
            assert!(!known.contains(&keys[2]) && !known.contains(&keys[5]));
            if by == Agreement::AwsLc {
                assert_eq!([keys[2], keys[5]], [Some(ours[1]), Some(ours[0])]);
            }
            let mut again = Vec::new();
            sealer.seal_ahead(&slice, &mut ahead, || pairs.pop(), &mut again);
            assert!(again.iter().filter_map(as_public_of).all(|key| !keys.contains(&Some(key))));
        }
    }

    fn as_public_of(body: &Result<Body, SealError>) -> Option<[u8; 65]> {
        Some(body.as_ref().ok()?.bytes[21..86].try_into().unwrap())
    }

    #[test]
    fn an_empty_slice_is_sealed_to_nothing() {
        let mut out = Vec::new();
        Sealer::new(Agreement::fastest()).seal(&[], &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn padding_stays_in_its_bounds() {
        for (payload, multiple, limited, padded) in [
            (0, 0, false, 0),
            (250, 0, true, 250),
            (0, 128, false, 128),
            (1, 128, false, 128),
            (128, 128, false, 128),
            (129, 128, false, 256),
            (100, 1, false, 100),
            (3_990, 128, false, 3_993),
            (3_993, 128, true, 3_993),
            (100, 5_000, false, 3_993),
            (100, usize::MAX, false, 3_993),
            (100, 5_000, true, 2_967),
            (2_967, 128, true, 2_967),
            (2_900, 1_000, true, 2_967),
            (2_900, 1_000, false, 3_000),
            // It does not fit unpadded either: padding may as well hide its length.
            (2_968, 1_000, true, 3_000),
        ] {
            assert_eq!(padded_len(payload, multiple, limited), padded, "{payload} {multiple} {limited}");
        }
        assert!(mobile_limited(Service::MOZILLA));
        assert!(!mobile_limited(Service::FCM));
    }

    proptest! {
        #[test]
        fn padding_never_shrinks_nor_exceeds(len in 0..=PAYLOAD_MAX, multiple in 0..6_000usize, limited: bool) {
            let padded = padded_len(len, multiple, limited);
            prop_assert!((len..=PAYLOAD_MAX).contains(&padded));
            if limited && len + AES128GCM_OVERHEAD <= MOBILE_BODY_MAX {
                prop_assert!(padded + AES128GCM_OVERHEAD <= MOBILE_BODY_MAX);
            }
        }

        #[test]
        fn any_payload_arrives(
            payload in proptest::collection::vec(any::<u8>(), 0..=PAYLOAD_MAX),
            pad in 0..=PAYLOAD_MAX,
            legacy: bool,
        ) {
            let browser = Browser::new();
            let encoding = ENCODINGS[usize::from(legacy)];
            let sealed = seal_one(Agreement::AwsLc, browser.plain(encoding, &payload, pad)).unwrap();
            let padding = pad.saturating_sub(payload.len());
            prop_assert_eq!(browser.open(&sealed), (payload, padding));
        }

        #[test]
        fn both_back_ends_make_the_same(
            as_private in proptest::array::uniform32(1..=254u8),
            salt: [u8; 16],
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            legacy: bool,
        ) {
            let browser = Browser::new();
            let plain = browser.plain(ENCODINGS[usize::from(legacy)], &payload, 0);
            let [one, other] = BACK_ENDS.map(|by| seal_with(by, &plain, &as_private, &salt).unwrap());
            prop_assert_eq!(one.bytes, other.bytes);
            prop_assert_eq!(one.aesgcm, other.aesgcm);
        }

        #[test]
        fn any_bytes_as_key_give_an_error_not_a_panic(p256dh in proptest::collection::vec(any::<u8>(), 65), four: bool) {
            let mut p256dh: [u8; 65] = p256dh.try_into().unwrap();
            if four {
                p256dh[0] = 4;
            }
            for by in back_ends() {
                let plain = Plain { p256dh: &p256dh, auth: &[7; 16], encoding: Encoding::Aes128gcm, payload: b"x", pad_to: 0 };
                prop_assert_eq!(seal_one(by, plain).unwrap_err(), SealError::InvalidKey);
            }
        }
    }
}
