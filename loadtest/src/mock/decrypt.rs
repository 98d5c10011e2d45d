//! What a browser does with a push message: RFC 8291 over RFC 8188, and the older `aesgcm` draft.
//!
//! Everything here is OpenSSL, so that an error in the sender's cryptography cannot be repeated by its checker. Each error names
//! what the browser would have tripped over; nothing is repaired.

use openssl::bn::{BigNum, BigNumContext};
use openssl::ec::{EcGroup, EcKey, EcPoint, PointConversionForm};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::symm::{Cipher, decrypt_aead};

/// Length of an uncompressed P-256 point.
pub const POINT: usize = 65;
const TAG: usize = 16;

/// The secret half of a subscription, as a browser holds it.
#[derive(Clone)]
pub struct BrowserKeys {
    /// Private scalar, big endian.
    pub private: [u8; 32],
    /// `p256dh`: the uncompressed public point.
    pub public: [u8; POINT],
    /// `auth`: RFC 8291 section 3.2.
    pub auth: [u8; 16],
}

impl BrowserKeys {
    /// Fresh keys from OpenSSL's generator.
    pub fn generate() -> BrowserKeys {
        let group = p256();
        let mut context = BigNumContext::new().expect("OpenSSL allocates");
        let key = EcKey::generate(&group).expect("P-256 keys can be made");
        let mut private = [0; 32];
        private.copy_from_slice(&key.private_key().to_vec_padded(32).expect("a scalar has 32 bytes"));
        let mut public = [0; POINT];
        let point =
            key.public_key().to_bytes(&group, PointConversionForm::UNCOMPRESSED, &mut context).expect("a point can be written");
        public.copy_from_slice(&point);
        let mut auth = [0; 16];
        openssl::rand::rand_bytes(&mut auth).expect("the system has randomness");
        BrowserKeys { private, public, auth }
    }
}

/// A decrypted body, and what must never come twice.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened {
    /// Without padding.
    pub plaintext: Vec<u8>,
    /// Bytes of padding that were taken off.
    pub padding: usize,
    /// RFC 8188 section 2.1: not reused with the same keying material.
    pub salt: [u8; 16],
    /// The sender's one-use public key (RFC 8291 section 3.1).
    pub sender: [u8; POINT],
}

/// Opens an `aes128gcm` body. It must be a single record (RFC 8291 section 4) whose delimiter is 0x02.
pub fn aes128gcm(keys: &BrowserKeys, body: &[u8]) -> Result<Opened, String> {
    if body.len() < 21 {
        return Err(format!("aes128gcm: a body of {} bytes has no header", body.len()));
    }
    let salt: [u8; 16] = body[..16].try_into().expect("16 bytes");
    let record = u32::from_be_bytes(body[16..20].try_into().expect("4 bytes")) as usize;
    if record < 18 {
        return Err(format!("aes128gcm: record size {record} is below 18"));
    }
    if usize::from(body[20]) != POINT || body.len() < 21 + POINT {
        return Err(format!("aes128gcm: the key id has {} bytes, not 65", body[20]));
    }
    let sender: [u8; POINT] = body[21..21 + POINT].try_into().expect("65 bytes");
    let sealed = &body[21 + POINT..];
    // Strictly greater: RFC 8291 section 4 wants `rs` above plaintext + delimiter + padding + 16, but that is the record's own
    // length, and RFC 8188 lets a last record be exactly `rs` long; so only a longer one is several records.
    if sealed.len() > record {
        return Err(format!("aes128gcm: {} bytes do not fit one record of {record}", sealed.len()));
    }
    let secret = agree(&keys.private, &sender)?;
    let mut info = Vec::with_capacity(14 + 2 * POINT);
    info.extend_from_slice(b"WebPush: info\0");
    info.extend_from_slice(&keys.public);
    info.extend_from_slice(&sender);
    let keying = expand(&hmac(&keys.auth, &secret), &info, 32);
    let key = hmac(&salt, &keying);
    let content_key = expand(&key, b"Content-Encoding: aes128gcm\0", 16);
    let nonce = expand(&key, b"Content-Encoding: nonce\0", 12);
    let mut plaintext = open(&content_key, &nonce, sealed).map_err(|problem| format!("aes128gcm: {problem}"))?;
    let end = plaintext.iter().rposition(|byte| *byte != 0).ok_or("aes128gcm: nothing but padding, no delimiter")?;
    if plaintext[end] != 2 {
        return Err(format!("aes128gcm: the last record's delimiter is {}, not 2", plaintext[end]));
    }
    let padding = plaintext.len() - end - 1;
    plaintext.truncate(end);
    Ok(Opened { plaintext, padding, salt, sender })
}

/// Opens a body of the older draft (draft-ietf-webpush-encryption-04): `salt` and `sender` come from the headers.
pub fn aesgcm(keys: &BrowserKeys, salt: [u8; 16], sender: [u8; POINT], body: &[u8]) -> Result<Opened, String> {
    let secret = agree(&keys.private, &sender)?;
    let keying = expand(&hmac(&keys.auth, &secret), b"Content-Encoding: auth\0", 32);
    let key = hmac(&salt, &keying);
    let mut context = Vec::with_capacity(6 + 2 * (2 + POINT));
    context.extend_from_slice(b"P-256\0");
    for point in [&keys.public, &sender] {
        context.extend_from_slice(&(POINT as u16).to_be_bytes());
        context.extend_from_slice(point);
    }
    let with_context = |label: &[u8]| [label, &context].concat();
    let content_key = expand(&key, &with_context(b"Content-Encoding: aesgcm\0"), 16);
    let nonce = expand(&key, &with_context(b"Content-Encoding: nonce\0"), 12);
    let padded = open(&content_key, &nonce, body).map_err(|problem| format!("aesgcm: {problem}"))?;
    if padded.len() < 2 {
        return Err("aesgcm: no padding length".to_owned());
    }
    let padding = usize::from(u16::from_be_bytes([padded[0], padded[1]]));
    if padded.len() < 2 + padding || padded[2..2 + padding].iter().any(|byte| *byte != 0) {
        return Err("aesgcm: wrong padding".to_owned());
    }
    Ok(Opened { plaintext: padded[2 + padding..].to_vec(), padding, salt, sender })
}

/// The group of everything in Web Push.
pub(super) fn p256() -> EcGroup {
    EcGroup::from_curve_name(Nid::X9_62_PRIME256V1).expect("OpenSSL knows P-256")
}

/// The public point of a private scalar.
pub(super) fn public_of(private: &[u8; 32]) -> [u8; POINT] {
    let group = p256();
    let mut context = BigNumContext::new().expect("OpenSSL allocates");
    let scalar = BigNum::from_slice(private).expect("32 bytes are a number");
    let mut point = EcPoint::new(&group).expect("OpenSSL allocates");
    point.mul_generator2(&group, &scalar, &mut context).expect("a scalar below the order has a point");
    let bytes = point.to_bytes(&group, PointConversionForm::UNCOMPRESSED, &mut context).expect("a point can be written");
    bytes.try_into().expect("an uncompressed point has 65 bytes")
}

fn agree(private: &[u8; 32], peer: &[u8; POINT]) -> Result<[u8; 32], String> {
    // A group costs as much as a tenth of the multiplication: one a thread is enough.
    thread_local! {
        static GROUP: EcGroup = p256();
    }
    GROUP.with(|group| {
        let mut context = BigNumContext::new().expect("OpenSSL allocates");
        let point = EcPoint::from_bytes(group, peer, &mut context).map_err(|_| "the sender's key is not on P-256".to_owned())?;
        let scalar = BigNum::from_slice(private).expect("32 bytes are a number");
        let mut shared = EcPoint::new(group).expect("OpenSSL allocates");
        shared.mul2(group, &point, &scalar, &mut context).map_err(|problem| format!("ECDH: {problem}"))?;
        let bytes = shared
            .to_bytes(group, PointConversionForm::UNCOMPRESSED, &mut context)
            .map_err(|_| "ECDH gives the point at infinity".to_owned())?;
        Ok(bytes[1..33].try_into().expect("an uncompressed point has 65 bytes"))
    })
}

fn hmac(key: &[u8], message: &[u8]) -> [u8; 32] {
    let key = PKey::hmac(key).expect("any bytes are an HMAC key");
    let mut signer = Signer::new(MessageDigest::sha256(), &key).expect("HMAC-SHA-256 exists");
    let mut tag = [0; 32];
    signer.sign_oneshot(&mut tag, message).expect("32 bytes hold the tag");
    tag
}

/// HKDF-Expand of at most one block (RFC 5869 section 2.3).
fn expand(key: &[u8], info: &[u8], length: usize) -> Vec<u8> {
    let mut block = hmac(key, &[info, &[1]].concat()).to_vec();
    block.truncate(length);
    block
}

fn open(key: &[u8], nonce: &[u8], sealed: &[u8]) -> Result<Vec<u8>, String> {
    let Some(length) = sealed.len().checked_sub(TAG) else {
        return Err(format!("a record of {} bytes has no tag", sealed.len()));
    };
    decrypt_aead(Cipher::aes_128_gcm(), key, Some(nonce), &[], &sealed[..length], &sealed[length..])
        .map_err(|_| "the tag does not match".to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use openssl::symm::encrypt_aead;

    fn decode<const N: usize>(text: &str) -> [u8; N] {
        URL_SAFE_NO_PAD.decode(text).expect("base64url").try_into().expect("the right length")
    }

    /// The browser of RFC 8291 section 5.
    fn browser() -> BrowserKeys {
        BrowserKeys {
            private: decode("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94"),
            public: decode("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"),
            auth: decode("BTBZMqHH6r4Tts7J_aSIgg"),
        }
    }

    const BODY: &str = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN";

    /// What a sender does, for the tests: `delimiter` and `record` can be wrong on purpose.
    pub(crate) fn seal(keys: &BrowserKeys, plaintext: &[u8], padding: usize, delimiter: u8, record: u32) -> Vec<u8> {
        let sender = BrowserKeys::generate();
        let mut salt = [0; 16];
        openssl::rand::rand_bytes(&mut salt).unwrap();
        let secret = agree(&sender.private, &keys.public).unwrap();
        let info = [&b"WebPush: info\0"[..], &keys.public, &sender.public].concat();
        let key = hmac(&salt, &expand(&hmac(&keys.auth, &secret), &info, 32));
        let content_key = expand(&key, b"Content-Encoding: aes128gcm\0", 16);
        let nonce = expand(&key, b"Content-Encoding: nonce\0", 12);
        let padded = [plaintext, &[delimiter], &vec![0; padding]].concat();
        let mut tag = [0; TAG];
        let sealed = encrypt_aead(Cipher::aes_128_gcm(), &content_key, Some(&nonce), &[], &padded, &mut tag).unwrap();
        [&salt[..], &record.to_be_bytes(), &[POINT as u8], &sender.public, &sealed, &tag].concat()
    }

    /// The older draft's sender: salt, public key and body.
    pub(crate) fn seal_aesgcm(keys: &BrowserKeys, plaintext: &[u8]) -> ([u8; 16], [u8; POINT], Vec<u8>) {
        let sender = BrowserKeys::generate();
        let salt = [7; 16];
        let secret = agree(&sender.private, &keys.public).unwrap();
        let key = hmac(&salt, &expand(&hmac(&keys.auth, &secret), b"Content-Encoding: auth\0", 32));
        let context = [&b"P-256\0\0A"[..], &keys.public, b"\0A", &sender.public].concat();
        let content_key = expand(&key, &[&b"Content-Encoding: aesgcm\0"[..], &context].concat(), 16);
        let nonce = expand(&key, &[&b"Content-Encoding: nonce\0"[..], &context].concat(), 12);
        let padded = [&[0, 3, 0, 0, 0], plaintext].concat();
        let mut tag = [0; TAG];
        let sealed = encrypt_aead(Cipher::aes_128_gcm(), &content_key, Some(&nonce), &[], &padded, &mut tag).unwrap();
        (salt, sender.public, [&sealed[..], &tag].concat())
    }

    #[test]
    fn opens_the_example_of_rfc_8291() {
        let body = URL_SAFE_NO_PAD.decode(BODY).unwrap();
        assert_eq!(body.len(), 144);
        let opened = aes128gcm(&browser(), &body).unwrap();
        assert_eq!(opened.plaintext, b"When I grow up, I want to be a watermelon");
        assert_eq!(opened.padding, 0);
        assert_eq!(opened.salt, decode::<16>("DGv6ra1nlYgDCS1FRnbzlw"));
        let secret = agree(&browser().private, &opened.sender).unwrap();
        assert_eq!(secret, decode::<32>("kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs"));
    }

    #[test]
    fn any_flipped_byte_is_noticed() {
        let body = URL_SAFE_NO_PAD.decode(BODY).unwrap();
        // The record size (16..20) is not authenticated: the receiver may ignore it.
        for place in (0..body.len()).filter(|place| !(16..20).contains(place)) {
            let mut wrong = body.clone();
            wrong[place] ^= 1;
            assert!(aes128gcm(&browser(), &wrong).is_err(), "byte {place}");
        }
        for length in 0..body.len() {
            assert!(aes128gcm(&browser(), &body[..length]).is_err(), "cut to {length}");
        }
    }

    #[test]
    fn padding_delimiter_and_record_are_checked() {
        let keys = BrowserKeys::generate();
        let opened = aes128gcm(&keys, &seal(&keys, b"hello", 40, 2, 4096)).unwrap();
        assert_eq!((opened.plaintext.as_slice(), opened.padding), (&b"hello"[..], 40));
        assert_eq!(aes128gcm(&keys, &seal(&keys, b"", 0, 2, 4096)).unwrap().plaintext, b"");
        assert!(aes128gcm(&keys, &seal(&keys, b"hello", 0, 1, 4096)).unwrap_err().contains("delimiter"));
        assert!(aes128gcm(&keys, &seal(&keys, b"", 3, 0, 4096)).unwrap_err().contains("no delimiter"));
        assert!(aes128gcm(&keys, &seal(&keys, b"hello", 0, 2, 21)).unwrap_err().contains("one record"));
        assert!(aes128gcm(&keys, &seal(&keys, b"hello", 0, 2, 22)).is_ok());
        assert!(aes128gcm(&keys, &seal(&keys, b"hello", 0, 2, 17)).unwrap_err().contains("below 18"));
        assert!(aes128gcm(&BrowserKeys::generate(), &seal(&keys, b"hello", 0, 2, 4096)).is_err());
    }

    #[test]
    fn opens_the_older_draft() {
        let keys = BrowserKeys::generate();
        let (salt, sender, body) = seal_aesgcm(&keys, b"old");
        let opened = aesgcm(&keys, salt, sender, &body).unwrap();
        assert_eq!((opened.plaintext.as_slice(), opened.padding), (&b"old"[..], 3));
        assert!(aesgcm(&keys, [8; 16], sender, &body).is_err());
    }
}
